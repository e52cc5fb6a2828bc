# SPDX-License-Identifier: Apache-2.0
"""Rehearsals: the order of messages, what is refused, and when KVM is asked to map what was learned. (What
a guest writes is logged only where a guest runs: tests/e2e. Here vmm_still.c makes it up.)"""

from __future__ import annotations

import time

import pytest

from conftest import (
    BOOTED,
    FORKED,
    LEAF,
    LEARN,
    LEARNED,
    RECORD,
    RECORDED,
    REHEARSAL,
    WARM,
    Host,
    Message,
    Vmm,
)

READY, CALL = 0, 1


def ask(vmm: Vmm, kind: int, answer: int, code: int = 0) -> Message:
    vmm.send(Message(kind, id=9, code=code))
    reply = vmm.expect(answer)
    assert reply.id == 9
    return reply


def rehearse(template: Vmm) -> None:
    child = template.fork(REHEARSAL)
    for moment in (READY, CALL):
        assert ask(child, RECORD, RECORDED, moment).code == 0
    child.end()
    learned = ask(template, LEARN, LEARNED)
    assert learned.code == 0 and learned.text == ""


@pytest.mark.parametrize("vcpus", [1, 2])
def test_rehearsal(host: Host, vcpus: int) -> None:
    template = host.booted(vcpus=vcpus)
    template.pause()
    before = template.fds()
    rehearse(template)
    assert template.fds() == before
    child = template.fork()
    child.send(Message(WARM, code=CALL))
    grandchild = child.fork()
    grandchild.send(Message(WARM, code=CALL))
    child.stats()
    grandchild.stats()
    rehearse(template)  # it may learn anew


def test_children_do_not_share_the_bitmap(host: Host) -> None:
    """Only the rehearsal has memory in common with its template."""

    def shared(vmm: Vmm) -> int:
        vmm.stats()
        with open(f"/proc/{vmm.pid}/maps", encoding="ascii") as f:
            return sum(" rw-s " in line and "/dev/zero" in line for line in f)

    template = host.booted()
    template.pause()
    assert shared(template) == 0
    child = template.fork(REHEARSAL)
    assert shared(template) == shared(child) == 1
    other = template.fork()
    assert shared(other) == 0
    child.end()
    assert ask(template, LEARN, LEARNED).code == 0
    assert shared(template) == 0


def test_out_of_turn(host: Host) -> None:
    template = host.booted()
    template.start_fork(code=REHEARSAL)
    refused = template.expect(FORKED)
    assert refused.code == 22 and "template" in refused.text  # it is not paused
    template.pause()
    learned = ask(template, LEARN, LEARNED)
    assert learned.code == 22 and learned.text == "no rehearsal was begun"
    child = template.fork()
    recorded = ask(child, RECORD, RECORDED)
    assert recorded.code == 22 and "does not log" in recorded.text
    rehearsal = template.fork(REHEARSAL)
    rehearsal.start_fork()
    assert rehearsal.expect(FORKED).code == 22
    assert ask(rehearsal, RECORD, RECORDED, 2).code == 22
    assert ask(rehearsal, RECORD, RECORDED, 0xFFFFFFFF).code == 22
    child.send(Message(WARM, code=2))
    child.stats()
    template.stats()
    rehearsal.stats()


@pytest.mark.parametrize("kind", [RECORD, LEARN, WARM])
def test_before_boot(host: Host, kind: int) -> None:
    vmm = host.start()
    vmm.send(Message(kind))
    if kind != WARM:
        assert vmm.expect(RECORDED if kind == RECORD else LEARNED).code == 22
    vmm.stats()


def test_a_rehearsal_that_dies(host: Host) -> None:
    template = host.booted()
    template.pause()
    child = template.fork(REHEARSAL)
    child.kill()
    child.end()
    assert ask(template, LEARN, LEARNED).code == 0
    template.fork().stats()
    forked = template.start_fork(code=REHEARSAL)
    assert template.expect(FORKED).code == 0
    forked.expect(BOOTED)


def rehearsed(host: Host, vcpus: int, maps: int = 1) -> Vmm:
    """A template that knows of three pages for the first moment and two for the second."""
    host.plan.maps = maps
    template = host.booted(vcpus=vcpus)
    template.pause()
    rehearse(template)
    assert host.plan.moments == 2 and host.plan.mapped == 0
    return template


def mapped(host: Host, vmm: Vmm, pages: int) -> None:
    """So many have been asked for in all, and no more come."""
    while host.plan.mapped < pages:
        vmm.stats()
        time.sleep(0.005)
    vmm.stats()
    assert host.plan.mapped == pages and host.plan.wrong == 0


@pytest.mark.parametrize("maps", [1, 2], ids=["whole", "signals"])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_pages_are_mapped_by_the_first_vcpu(host: Host, vcpus: int, maps: int) -> None:
    template = rehearsed(host, vcpus, maps)
    child = template.fork()
    mapped(host, child, 3)  # before its guest runs
    child.send(Message(WARM, code=CALL))
    mapped(host, child, 5)
    child.send(Message(WARM, code=2))
    grandchild = child.fork()
    mapped(host, grandchild, 8)
    child.send(Message(WARM, code=READY))  # a fork took away what was mapped
    child.send(Message(WARM, code=CALL))
    mapped(host, child, 13)


def test_nothing_is_mapped_for_one_that_is_paused(host: Host) -> None:
    template = rehearsed(host, 2)
    template.send(Message(WARM, code=CALL))
    template.stats()
    assert host.plan.mapped == 0
    child = template.fork()
    mapped(host, child, 3)  # and what its template waits for is not the child's


def test_a_leaf_maps_when_it_has_left_its_guest(host: Host) -> None:
    leaf = rehearsed(host, 2).fork(LEAF)
    mapped(host, leaf, 3)
    leaf.send(Message(WARM, code=CALL))
    mapped(host, leaf, 3)  # no signal reaches its threads
    leaf.send(Message(WARM, code=READY))
    leaf.stats()


def test_a_kvm_that_cannot_map(host: Host) -> None:
    template = host.booted(vcpus=2)
    host.plan.maps = 1  # it was asked before
    template.pause()
    rehearse(template)
    child = template.fork()
    child.send(Message(WARM, code=CALL))
    child.fork().stats()
    mapped(host, child, 0)
