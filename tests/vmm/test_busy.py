# SPDX-License-Identifier: Apache-2.0
"""Forks of machines whose every vCPU is at work: the first one's reads and writes of the disk are in
flight at any moment, the others compute in memory (guest.c). Every copy goes on with all of it, and
so does its original: nothing is lost, done twice, or of another state than the rest."""

from __future__ import annotations

import pytest

from conftest import BOOTED, BUSY, FORKED, LEAF, STAT_DISK_ERRORS, STATUS, Host, Vmm

READY = 1


def works(vmm: Vmm) -> None:
    """All its vCPUs have done a good deal since it was made."""
    assert vmm.expect(STATUS).code == READY


def busy(host: Host, vcpus: int) -> Vmm:
    host.plan.guest = BUSY
    vmm = host.booted(vcpus=vcpus)
    works(vmm)
    return vmm


def check(host: Host, vmm: Vmm) -> None:
    assert vmm.stats()[STAT_DISK_ERRORS] == 0
    assert host.plan.wrong == 0


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_live(host: Host, vcpus: int) -> None:
    vmm = busy(host, vcpus)
    for i in range(12):
        child, other = vmm.fork(LEAF if i % 3 == 0 else 0), vmm.fork()
        for copy in (child, other):
            works(copy)
            check(host, copy)
            copy.end()
    check(host, vmm)


@pytest.mark.parametrize("vcpus", [2, 4])
def test_paused(host: Host, vcpus: int) -> None:
    """What was in flight is carried out before it stands still."""
    vmm = busy(host, vcpus)
    vmm.pause()
    for _ in range(6):
        child = vmm.fork()
        works(child)
        works(child.fork())
        check(host, child)
        child.end()
    check(host, vmm)


@pytest.mark.parametrize("vcpus", [2, 4])
def test_chain(host: Host, vcpus: int) -> None:
    """The original is gone before the copy has done anything, or goes on beside it for a while."""
    vmm = busy(host, vcpus)
    for depth in range(24):
        child = vmm.fork()
        if depth % 2:
            works(child)
        check(host, vmm)
        vmm.end()
        if not depth % 2:
            works(child)
        vmm = child
    check(host, vmm)


def test_forks_at_once(host: Host) -> None:
    """One behind the other, with no answer waited for."""
    vmm = busy(host, 4)
    children = [vmm.start_fork() for _ in range(6)]
    for child in children:
        forked = vmm.expect(FORKED)
        assert forked.code == 0, forked
        child.pid = forked.value[0]
    for child in children:
        child.expect(BOOTED)
        works(child)
        check(host, child)
    check(host, vmm)
