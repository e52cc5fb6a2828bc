# SPDX-License-Identifier: Apache-2.0
"""A whole life of a VMM: boot, a guest's work on the disk and on streams (guest.c), forks live and
paused, a rehearsal, the end, each process with status 0."""

from __future__ import annotations

import os
import socket
import time

import pytest

from conftest import CONNECT, CONNECTED, EXIT_STOPPED, EXITED, LEARN, LEARNED, RECORD, RECORDED
from conftest import REHEARSAL, STAT_STREAMS, STOP, WARM, Host, Message, Vmm


def stream(vmm: Vmm, number: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    vmm.send(Message(CONNECT, id=number, port=5555), (theirs.fileno(),))
    theirs.close()
    ours.settimeout(20)
    try:
        assert vmm.expect(CONNECTED).id == number
    except BaseException:
        ours.close()
        raise
    return ours


def exactly(s: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        assert piece, "the stream has ended"
        data += piece
    return data


def use_streams(vmm: Vmm) -> None:
    with stream(vmm, 1) as s:
        text = b"x" * 20000  # more than the guest has room for at a time
        s.sendall(text)
        assert exactly(s, len(text)) == text
    with stream(vmm, 2) as s:
        s.sendall(b"S")
        with pytest.raises(BrokenPipeError):
            for _ in range(2000):
                s.sendall(b"x")
                time.sleep(0.005)
    with stream(vmm, 3) as s:
        s.sendall(b"B")  # more than the socket takes
        assert exactly(s, 32 << 10) == b"B" * (32 << 10)
        s.sendall(b"R")
        assert s.recv(1) == b""
    while vmm.stats()[STAT_STREAMS]:
        time.sleep(0.005)


def ask(vmm: Vmm, kind: int, answer: int, code: int = 0) -> None:
    vmm.send(Message(kind, id=9, code=code))
    assert vmm.expect(answer).code == 0


def life(host: Host) -> None:
    host.plan.guest = 1
    template = host.booted(vcpus=2)
    host.plan.write = 1
    use_streams(template)
    child = template.fork()  # live: both go on
    use_streams(template)
    child.stats()
    template.pause()
    rehearsal = template.fork(REHEARSAL)
    ask(rehearsal, RECORD, RECORDED, 0)
    ask(rehearsal, RECORD, RECORDED, 1)
    rehearsal.ctl.close()
    ask(template, LEARN, LEARNED)
    copy = template.fork()
    copy.send(Message(WARM, code=1))
    copy.stats()
    copy.send(Message(STOP))
    assert copy.expect(EXITED).code == EXIT_STOPPED
    assert host.plan.wrong == 0


def ends(host: Host) -> list[int]:
    """Everything that has been started ends: with these statuses."""
    for vmm in host.vmms:
        vmm.ctl.close()
    found = []
    while True:
        try:
            found.append(os.waitpid(-1, 0)[1])
        except ChildProcessError:
            return found


def test_a_whole_life(host: Host) -> None:
    life(host)
    assert ends(host) == [0] * 4
