# SPDX-License-Identifier: Apache-2.0
"""A machine that ends while it is to park: who asked is told at once why it ended. And that layers which
a machine still has would be found."""

from __future__ import annotations

import errno
import os

import pytest

from conftest import ENDS, EXIT_RESET, EXITED, FORKED, PAUSE, PAUSED, Host, Message

WHY = "the guest rebooted or its kernel crashed"


@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("asked", [FORKED, PAUSED], ids=["fork", "pause"])
def test_a_machine_that_ends_instead_of_parking(host: Host, vcpus: int, asked: int) -> None:
    vmm = host.booted(vcpus=vcpus)
    vmm.fork().end()
    host.plan.guest = ENDS
    if asked == FORKED:
        child = vmm.start_fork()
    else:
        vmm.send(Message(PAUSE))
    said = vmm.expect(asked)
    assert (said.code, said.text.partition(": ")[0]) == (errno.ESHUTDOWN, "the machine has ended")
    assert WHY in said.text
    ended = vmm.expect(EXITED)
    assert (ended.code, ended.text) == (EXIT_RESET, WHY)
    assert vmm.receive() is None
    if asked == FORKED:
        assert child.receive() is None


def test_layers_of_a_machine_that_lives_are_found(host: Host) -> None:
    """What each test's end looks for is there before, of the machine and of its copy."""
    if os.geteuid() != 0:
        pytest.skip("only root sees the descriptors of a VMM")
    assert host.holders() == []
    vmm = host.booted()
    child = vmm.fork()
    found = {int(line.partition(":")[0]) for line in host.holders()}
    assert found == {vmm.pid, child.pid}
