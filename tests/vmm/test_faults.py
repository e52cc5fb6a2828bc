# SPDX-License-Identifier: Apache-2.0
"""Forks that fail: at every call that can, in the parent and in the child; for want of descriptors
or memory; for layers that are none; and by SIGKILL at any moment. The parent goes on and answers,
or is gone; nothing is left over (conftest.py looks)."""

from __future__ import annotations

import errno
import os
import random
import resource
import time

import pytest

from conftest import (
    BOOTED,
    CHILD,
    EXIT_BOOT,
    EXIT_ERROR,
    EXITED,
    FORKED,
    LEAF,
    NOBODY,
    PARENT,
    STAT_DISK_LAYERS,
    UNJAILED,
    VCPUS,
    Host,
    Vmm,
)

KILLS = int(os.environ.get("PODFLARE_SOAK_KILLS", "24"))


def still_forks(host: Host, vmm: Vmm, before: list[str]) -> None:
    """The parent is as it was: same descriptors, and a fork of it works."""
    host.plan.side = NOBODY
    assert len(vmm.fds()) == len(before)
    vmm.fork().end()
    assert host.plan.wrong == 0


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EMFILE], ids=["ENOMEM", "EMFILE"])
@pytest.mark.parametrize("paused", [False, True], ids=["live", "paused"])
def test_every_call_of_the_parent(host: Host, paused: bool, error: int) -> None:
    vmm = host.booted(vcpus=2)
    vmm.fork().end()
    if paused:
        vmm.pause()
    host.plan.write = 1
    before = vmm.fds()
    failed = 0
    for nth in range(1, 200):
        host.fail(PARENT, nth, error)
        child = vmm.start_fork()
        said = vmm.expect(FORKED)
        host.plan.side = NOBODY
        if not host.plan.fired:
            assert said.code == 0
            child.pid = said.value[0]
            child.expect(BOOTED)
            break
        name = host.plan.name.decode()
        if said.code:
            assert said.text and os.strerror(error) in said.text, (name, said)
            assert child.receive() is None
            child.ctl.close()
            failed += 1
        else:  # KVM_KVMCLOCK_CTRL and its like: the fork does without
            child.pid = said.value[0]
            child.expect(BOOTED)
            child.end()
        host.plan.write = 0
        vmm.stats()
    # Live: reading the state of two vCPUs; both: the fstat of the new layer, clone.
    assert failed >= (3 if paused else 20), failed
    assert vmm.stats()[STAT_DISK_LAYERS] == 2
    assert len(vmm.fds()) <= len(before) + 1
    still_forks(host, vmm, vmm.fds())


@pytest.mark.parametrize("kind", [0, LEAF], ids=["plain", "leaf"])
@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EMFILE], ids=["ENOMEM", "EMFILE"])
def test_every_call_of_the_child(host: Host, error: int, kind: int) -> None:
    host.plan.write = 1
    vmm = host.booted(vcpus=2)
    vmm.fork().end()
    host.plan.write = 0
    before = vmm.fds()
    names = set()
    failed = 0
    for nth in range(1, 400):
        host.plan.entered = 0
        host.fail(CHILD, nth, error)
        child = vmm.start_fork(code=kind)
        said = vmm.expect(FORKED)
        assert said.code == 0, said
        child.pid = said.value[0]
        first = child.receive()
        host.plan.side = NOBODY
        assert first is not None
        if not host.plan.fired:
            assert first.type == BOOTED
            break
        names.add(host.plan.name.decode())
        if first.type == BOOTED:
            child.end()  # could do without it
            continue
        assert first.type == EXITED and first.code == EXIT_BOOT, host.plan.name
        assert os.strerror(error) in first.text or "Resource temporarily" in first.text, first
        assert child.receive() is None
        child.end()
        assert host.plan.entered == 0, host.plan.name  # by a vCPU whose thread was there already
        failed += 1
    else:
        pytest.fail("no end of calls that fail")
    assert failed >= 50, failed
    assert {"clone"}.isdisjoint(names)
    assert {"eventfd", "epoll_create1", "epoll_ctl", "close_range", "mmap64"} <= names
    assert {"fstat", "thread", "ioctl 0xae01", "ioctl 0xae41"} <= names
    assert ("seccomp" in names) == (kind == LEAF and not UNJAILED)
    still_forks(host, vmm, before)


@pytest.mark.skipif(UNJAILED, reason="there is no jail in this build")
@pytest.mark.parametrize("kind", [0, LEAF], ids=["plain", "leaf"])
def test_a_jail_that_a_vcpu_cannot_enter(host: Host, kind: int) -> None:
    """The VM ends; a leaf before any of its vCPUs runs the guest."""
    vmm = host.booted(vcpus=2)
    vmm.fork().end()  # its own vCPUs are in theirs
    before = vmm.fds()
    host.fail(VCPUS, 0, errno.ENOMEM)
    child = vmm.start_fork(code=kind)
    forked = vmm.expect(FORKED)
    assert forked.code == 0, forked
    child.pid = forked.value[0]
    said = child.receive()
    if kind != LEAF and said is not None and said.type == BOOTED:
        said = child.receive()
    assert host.plan.fired and said is not None and said.type == EXITED
    if kind == LEAF:
        assert said.code == EXIT_BOOT
        assert said.text == "cannot enter the jail of a leaf: Cannot allocate memory"
    else:
        assert said.code == EXIT_ERROR and "cannot enter its jail: errno 12" in said.text
    assert child.receive() is None
    child.end()
    still_forks(host, vmm, before)


@pytest.mark.parametrize("whose", ["parent", "child"])
@pytest.mark.parametrize("paused", [False, True], ids=["live", "paused"])
def test_layers_that_are_none(host: Host, whose: str, paused: bool) -> None:
    host.plan.write = 1
    vmm = host.booted()
    if paused:
        vmm.pause()
    before = vmm.fds()
    rw, ro = host.layer()
    other_rw, other_ro = host.layer()
    os.write(other_rw, b"x")
    pipe = os.pipe()
    for wrong in ((rw, rw), (ro, ro), (rw, other_ro), (other_rw, other_ro), pipe):
        child = vmm.start_fork({f"{whose}_rw": wrong[0], f"{whose}_ro": wrong[1]})
        said = vmm.expect(FORKED)
        if whose == "parent":
            assert said.code == errno.EINVAL and "layer of the disk" in said.text
            assert child.receive() is None
            continue
        assert said.code == 0
        child.pid = said.value[0]
        ended = child.expect(EXITED)
        assert ended.code == EXIT_BOOT and "layer of the disk" in ended.text
        child.end()
        host.plan.write = 0
    for fd in (rw, ro, other_rw, other_ro, *pipe):
        os.close(fd)
    host.plan.write = 0
    grown = whose == "child"  # the parent's own part of the first fork was good
    assert len(vmm.fds()) == len(before) + grown
    vmm.fork().end()
    assert host.plan.wrong == 0


def test_no_room_for_descriptors(host: Host) -> None:
    """Every limit from far too low to enough: refused on receipt, or the child's failure."""
    vmm = host.booted()
    before = vmm.fds()
    seen = set()
    for limit in range(4, 40):
        resource.prlimit(vmm.pid, resource.RLIMIT_NOFILE, (limit, 1024))
        child = vmm.start_fork()
        said = vmm.expect(FORKED)
        if said.code:
            assert said.code == errno.EMFILE
            seen.add("parent")
            child.ctl.close()
            continue
        child.pid = said.value[0]
        first = child.receive()
        assert first is not None
        seen.add("child" if first.type == EXITED else "works")
        child.end()
    assert {"parent", "works"} <= seen
    resource.prlimit(vmm.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    still_forks(host, vmm, before)


@pytest.mark.skipif("VMM_STILL_UNJAILED" in os.environ, reason="sanitizers need address space")
def test_no_room_for_memory(host: Host) -> None:
    """RLIMIT_AS stops the child's mappings (its console, its vCPUs' pages, its stacks)."""
    vmm = host.booted(vcpus=2)
    before = vmm.fds()
    size = int(open(f"/proc/{vmm.pid}/statm").read().split()[0]) * 4096
    seen = set()
    for extra in range(-(1 << 20), 40 << 20, 512 << 10):
        resource.prlimit(vmm.pid, resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))
        child = vmm.start_fork()
        said = vmm.expect(FORKED)
        if said.code:
            child.ctl.close()
            continue
        child.pid = said.value[0]
        first = child.receive()
        assert first is not None
        if first.type == EXITED:
            assert first.code == EXIT_BOOT and first.text
        seen.add(first.type)
        child.end()
    assert seen == {EXITED, BOOTED}
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(vmm.pid, resource.RLIMIT_AS, unlimited)
    still_forks(host, vmm, before)


def test_control_socket_that_is_none(host: Host) -> None:
    vmm = host.booted()
    before = vmm.fds()
    rw, ro = host.layer()
    child = vmm.start_fork({"control": rw})
    said = vmm.expect(FORKED)
    assert said.code == 0
    assert child.receive() is None
    host.reap(said.value[0])
    os.close(rw)
    os.close(ro)
    still_forks(host, vmm, before)


def test_fork_before_boot(host: Host) -> None:
    vmm = host.start()
    child = vmm.start_fork()
    said = vmm.expect(FORKED)
    assert said.code == errno.ENOTCONN
    assert child.receive() is None
    assert vmm.stats()


def outcome(child: Vmm) -> bool:
    """Whether the child came to life: it says so, or its socket ends."""
    first = child.receive()
    if first is None:
        return False
    assert first.type == BOOTED, first
    child.stats()
    return True


def test_parent_killed_at_any_moment(host: Host) -> None:
    rng = random.Random(20261127)
    host.plan.write = 1
    alive = 0
    root = host.booted(vcpus=2)
    root.pause()
    for _ in range(KILLS):
        parent = root.fork()
        children = [parent.start_fork() for _ in range(rng.choice((1, 1, 3)))]
        time.sleep(rng.random() * 0.004)
        parent.kill()
        alive += sum(outcome(child) for child in children)
        parent.end()
        for child in children:
            child.ctl.close()
        host.vmms = [root]
        left = [p for p in host.children() if p != root.pid]
        for pid in left:
            host.reap(pid)
        root.stats()
    assert 0 < alive
    assert host.plan.wrong == 0


def test_child_killed_at_any_moment(host: Host) -> None:
    rng = random.Random(20261128)
    host.plan.write = 1
    vmm = host.booted(vcpus=2)
    vmm.fork().end()
    host.plan.write = 0
    before = vmm.fds()
    unready = 0
    for _ in range(KILLS):
        child = vmm.start_fork()
        child.pid = vmm.expect(FORKED).value[0]
        time.sleep(rng.random() * 0.001)
        child.kill()
        unready += child.receive() is None
        child.end()
        host.vmms = [vmm]
    assert unready
    still_forks(host, vmm, before)


def test_daemon_lets_go_at_any_moment(host: Host) -> None:
    """The child's socket, or the parent's, is closed while the fork goes on."""
    rng = random.Random(20261129)
    root = host.booted()
    root.pause()
    before = root.fds()
    for i in range(KILLS):
        parent = root.fork()
        child = parent.start_fork()
        time.sleep(rng.random() * 0.003)
        (child if i % 2 else parent).ctl.close()
        if i % 2:
            parent.expect(FORKED)
            parent.stats()
        else:
            outcome(child)
        parent.ctl.close()
        child.ctl.close()
        host.vmms = [root]
        for pid in host.children():
            if pid != root.pid:
                host.reap(pid)
    still_forks(host, root, before)
