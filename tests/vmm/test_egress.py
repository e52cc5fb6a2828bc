# SPDX-License-Identifier: Apache-2.0
"""What the daemon may say about connections of the guest when there is none: too early, about ids
that are nobody's, without room for the descriptor. The VMM lives on and keeps nothing."""

from __future__ import annotations

import resource
import socket

import pytest

from conftest import ACCEPT, EGRESS, REJECT, STAT_STREAMS, Host, Message, Vmm


def accept(vmm: Vmm, number: int) -> socket.socket:
    """Sends CTL_ACCEPT: our end of the stream."""
    ours, theirs = socket.socketpair()
    vmm.send(Message(ACCEPT, id=number), (theirs.fileno(),))
    theirs.close()
    ours.settimeout(20)
    return ours


@pytest.mark.parametrize("state", ["not booted", "off", "on", "paused", "copy"])
def test_answers_to_nobody(host: Host, state: str) -> None:
    vmm = host.start() if state == "not booted" else host.booted()
    if state != "off":
        vmm.send(Message(EGRESS, code=1))
    if state == "paused":
        vmm.pause()
    if state == "copy":
        vmm = vmm.fork()
    before = vmm.fds()
    for number in (0, 1, 64, 65, 1 << 31, (1 << 32) - 1):
        with accept(vmm, number) as ours:
            assert ours.recv(1) == b""
        vmm.send(Message(REJECT, id=number))
    vmm.send(Message(EGRESS, code=0))
    vmm.send(Message(EGRESS, code=0))
    assert vmm.stats()[STAT_STREAMS] == 0
    assert vmm.fds() == before


def test_no_room_for_the_stream(host: Host) -> None:
    vmm = host.booted()
    vmm.send(Message(EGRESS, code=1))
    before = vmm.fds()
    resource.prlimit(vmm.pid, resource.RLIMIT_NOFILE, (len(before), 1024))
    with accept(vmm, 64) as ours:
        assert ours.recv(1) == b""
    resource.prlimit(vmm.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    assert vmm.fds() == before
