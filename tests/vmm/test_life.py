# SPDX-License-Identifier: Apache-2.0
"""A whole life of a VMM: boot, a guest's work on the disk and on streams (guest.c), forks live and
paused, a rehearsal, the end, each process with status 0. And that of a leaf, which gives up for
good what forks take."""

from __future__ import annotations

import os
import socket
import time

import pytest

from conftest import CONNECT, CONNECTED, EXIT_STOPPED, EXITED, LEAF, LEARN, LEARNED, RECORD
from conftest import RECORDED, REHEARSAL, STAT_STREAMS, STOP, WARM, Host, Message, Vmm


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
    with stream(vmm, 4) as s, stream(vmm, 8) as other:
        s.sendall(b"E")
        assert exactly(s, 1) == b"E"
        other.sendall(b"x")
        assert exactly(other, 1) == b"x"  # so the RST has come; the last bytes wait for the socket
        assert exactly(s, (32 << 10) - 1) == b"E" * ((32 << 10) - 1)
        assert s.recv(1) == b""
    while vmm.stats()[STAT_STREAMS]:
        time.sleep(0.005)


def ask(vmm: Vmm, kind: int, answer: int, code: int = 0) -> None:
    vmm.send(Message(kind, id=9, code=code))
    assert vmm.expect(answer).code == 0


def rehearse(template: Vmm) -> None:
    rehearsal = template.fork(REHEARSAL)
    ask(rehearsal, RECORD, RECORDED, 0)
    ask(rehearsal, RECORD, RECORDED, 1)
    rehearsal.ctl.close()
    ask(template, LEARN, LEARNED)


def life(host: Host) -> None:
    host.plan.guest = host.plan.maps = 1
    template = host.booted(vcpus=2)
    host.plan.write = 1
    use_streams(template)
    child = template.fork()  # live: both go on
    use_streams(template)
    child.stats()
    template.pause()
    rehearse(template)
    copy = template.fork()
    copy.send(Message(WARM, code=1))
    while host.plan.mapped < 3 + 2:
        copy.stats()
    copy.send(Message(STOP))
    assert copy.expect(EXITED).code == EXIT_STOPPED
    assert host.plan.wrong == 0


def use_disk(vmm: Vmm) -> None:
    with stream(vmm, 5) as s:
        s.sendall(b"D")
        assert exactly(s, 1) == b"D"


def enter_the_guest(vmm: Vmm) -> None:
    with stream(vmm, 7) as s:
        s.sendall(b"K")
        assert exactly(s, 1) == b"K"


def meet_at_the_lock(vmm: Vmm) -> None:
    """The loop's thread wants the device lock while a vCPU's has it."""
    with stream(vmm, 6) as s:
        s.sendall(b"H")
        s.setblocking(False)
        while True:
            vmm.stats()
            try:
                assert s.recv(1) == b"H"
                break
            except BlockingIOError:
                time.sleep(0.002)


def leaf_life(host: Host) -> None:
    host.plan.guest = host.plan.maps = 1
    template = host.booted(vcpus=2)
    use_streams(template)
    template.pause()
    rehearse(template)
    leaf = template.fork(LEAF)
    leaf.send(Message(WARM, code=1))
    use_streams(leaf)
    use_disk(leaf)
    enter_the_guest(leaf)
    meet_at_the_lock(leaf)
    while host.plan.mapped < 3 + 2:
        leaf.stats()
    leaf.send(Message(STOP))
    assert leaf.expect(EXITED).code == EXIT_STOPPED
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


def test_a_leafs_life(host: Host) -> None:
    leaf_life(host)
    assert ends(host) == [0] * 3


def test_what_else_the_guest_does(host: Host) -> None:
    host.plan.guest = 1
    vmm = host.booted()
    use_disk(vmm)
    enter_the_guest(vmm)
    meet_at_the_lock(vmm)
    assert host.plan.wrong == 0
