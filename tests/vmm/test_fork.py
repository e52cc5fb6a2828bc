# SPDX-License-Identifier: Apache-2.0
"""Forks that work: live and paused, deep and wide; what becomes of the disk, of descriptors, and of
children whose ancestors end."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from conftest import (
    BOOTED,
    CONNECT,
    EXIT_BOOT,
    EXITED,
    FORKED,
    HERE,
    LAYERS_MAX,
    LEAF,
    PAUSE,
    PAUSED,
    REFUSED,
    STAT_DISK_LAYERS,
    Host,
    Message,
    Vmm,
)


def layers(vmm: Vmm) -> int:
    return vmm.stats()[STAT_DISK_LAYERS]


@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("paused", [False, True], ids=["live", "paused"])
def test_children_and_grandchildren(host: Host, vcpus: int, paused: bool) -> None:
    host.plan.write = 1
    first = host.booted(vcpus=vcpus)
    if paused:
        first.pause()
    child = first.fork()
    grandchild = child.fork()
    first.stats()
    child.stats()
    first.end()
    child.end()
    assert layers(grandchild) == 3
    grandchild.fork().end()
    assert host.plan.wrong == 0


def test_child_tells_its_time(host: Host) -> None:
    vmm = host.booted()
    child = vmm.start_fork()
    forked = vmm.receive()
    booted = child.expect(BOOTED)
    assert forked is not None and forked.code == 0
    assert 0 < booted.value[0] < 10_000_000
    child.pid = forked.value[0]


def test_template_stays_as_it_is(host: Host) -> None:
    host.plan.write = 1
    vmm = host.booted()
    vmm.pause()
    vmm.fork().end()  # the top that the warm-up wrote goes under a new one, once
    host.plan.write = 0
    before = vmm.fds()
    assert layers(vmm) == 2
    for _ in range(2 * LAYERS_MAX):
        child = vmm.fork()
        assert layers(child) == 2
        child.end()
    assert layers(vmm) == 2
    assert vmm.fds() == before
    assert host.plan.wrong == 0


def test_unused_tops_do_not_add_up(host: Host) -> None:
    vmm = host.booted()
    before = vmm.fds()
    for _ in range(5):
        vmm.fork().end()
    assert layers(vmm) == 1
    assert vmm.fds() == before


def test_descriptors_of_a_child(host: Host) -> None:
    """The same as its parent's, one for one: nothing of the parent's comes along."""
    host.plan.write = 1
    vmm = host.booted(vcpus=2)
    child = vmm.fork()
    assert child.fds() == vmm.fds()
    grandchild = child.fork()
    assert grandchild.fds() == child.fds()
    assert len(grandchild.fds()) == len(vmm.fds()) + 1  # one layer more


def test_chain(host: Host) -> None:
    """Deeper than a disk has layers; every ancestor ends; all they wrote is there."""
    host.plan.write = 1
    vmm = host.booted(vcpus=2)
    for depth in range(LAYERS_MAX + 8):
        child = vmm.fork()
        vmm.end()
        vmm = child
        assert layers(vmm) <= min(depth + 2, LAYERS_MAX)
        assert host.plan.wrong == 0
    host.plan.write = 0
    # Thinned out in the background.
    deadline = time.monotonic() + 20
    while layers(vmm) > 9 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert layers(vmm) <= 9
    vmm.fork()
    assert host.plan.wrong == 0


def test_fan_out(host: Host) -> None:
    host.plan.write = 1
    vmm = host.booted()
    vmm.pause()
    children = [vmm.fork() for _ in range(100)]
    vmm.end()
    for child in children:
        child.stats()
    children[50].fork().stats()
    assert host.plan.wrong == 0


def test_forks_of_siblings_at_once(host: Host) -> None:
    """A fork is asked for while earlier children are still being made."""
    vmm = host.booted(vcpus=2)
    children = [vmm.start_fork() for _ in range(8)]
    for child in children:
        child.pid = vmm.receive().value[0]  # type: ignore[union-attr]
    for child in children:
        child.expect(BOOTED)
        child.stats()


def test_messages_wait_for_the_child(host: Host) -> None:
    """What is sent before CTL_BOOTED is answered after it."""
    vmm = host.booted()
    child = vmm.start_fork()
    child.send(Message(3, id=1))
    child.expect(BOOTED)
    assert child.receive().id == 1  # type: ignore[union-attr]
    vmm.receive()


def test_paused_machine_takes_no_streams(host: Host) -> None:
    import socket

    vmm = host.booted()
    vmm.pause()
    ours, theirs = socket.socketpair()
    vmm.send(Message(CONNECT, id=3, port=5555), (theirs.fileno(),))
    theirs.close()
    assert vmm.expect(REFUSED).id == 3
    assert ours.recv(1) == b""
    ours.close()


@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("paused", [False, True], ids=["live", "paused"])
def test_a_leaf_is_neither_forked_nor_paused(host: Host, vcpus: int, paused: bool) -> None:
    """It refuses with a reason, keeps nothing of the request, and goes on."""
    host.plan.write = 1
    vmm = host.booted(vcpus=vcpus)
    if paused:
        vmm.pause()
    leaf = vmm.fork(LEAF)
    before = leaf.fds()
    for kind in (0, LEAF, 1):
        child = leaf.start_fork(code=kind)
        refused = leaf.expect(FORKED)
        assert (refused.code, refused.text) == (1, "this machine was made not to be forked")
        assert child.receive() is None
    leaf.send(Message(PAUSE, id=8))
    refused = leaf.expect(PAUSED)
    assert (refused.id, refused.code) == (8, 1)
    assert leaf.fds() == before
    # Whom it was forked from is as before.
    vmm.fork().fork(LEAF).stats()
    vmm.end()
    leaf.stats()
    assert host.plan.wrong == 0


@pytest.mark.parametrize("kind", [3, 0xFFFFFFFF])
def test_no_such_kind_of_fork(host: Host, kind: int) -> None:
    vmm = host.booted()
    vmm.start_fork(code=kind)
    refused = vmm.expect(FORKED)
    assert refused.code == 22 and "no such kind" in refused.text
    vmm.fork().stats()


def test_a_leaf_of_many_layers(host: Host) -> None:
    """They are thinned out by the loop of a leaf as well."""
    host.plan.write = 1
    vmm = host.booted()
    for _ in range(20):
        child = vmm.fork()
        vmm.end()
        vmm = child
    leaf = vmm.fork(LEAF)
    vmm.end()
    deadline = time.monotonic() + 20
    while layers(leaf) > 9 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert layers(leaf) <= 9
    assert host.plan.wrong == 0


@pytest.mark.parametrize("paused", [False, True], ids=["live", "paused"])
def test_a_child_waits_at_its_gate(host: Host, paused: bool) -> None:
    """It has neither a VM nor a thread beside its own until a byte comes; its parent goes on."""
    vmm = host.booted(vcpus=2)
    if paused:
        vmm.pause()
    gate, opener = os.pipe()
    child = vmm.start_fork({"gate": gate})
    os.close(gate)
    child.pid = vmm.expect(FORKED).value[0]
    here = child.receive_any()  # by which the daemon knows whose process it is
    assert here is not None and here.type == HERE
    with pytest.raises(TimeoutError):
        child.receive(0.3)
    links = [os.readlink(f.path) for f in os.scandir(f"/proc/{child.pid}/fd")]
    assert not any(link.startswith("anon_inode:kvm-v") for link in links), links
    assert len(os.listdir(f"/proc/{child.pid}/task")) == 1
    vmm.stats()
    vmm.fork().end()
    os.write(opener, b"x")
    child.expect(BOOTED)
    child.stats()
    names = [(task / "comm").read_text() for task in Path(f"/proc/{child.pid}/task").iterdir()]
    # Newer kernels add one of their own ("kvm-nx-lpage-recovery") when a vCPU runs.
    assert len([name for name in names if not name.startswith("kvm-")]) == 3, names
    os.close(opener)
    child.stats()


def test_a_gate_that_does_not_open(host: Host) -> None:
    """Whoever was to open it is gone: the child ends and says so, its parent lives."""
    vmm = host.booted()
    gate, opener = os.pipe()
    child = vmm.start_fork({"gate": gate})
    os.close(gate)
    child.pid = vmm.expect(FORKED).value[0]
    os.close(opener)
    said = child.expect(EXITED)
    assert said.code == EXIT_BOOT and said.text == "the child was not let go on"
    assert child.receive() is None
    vmm.fork().end()
