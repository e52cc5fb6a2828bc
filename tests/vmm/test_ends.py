# SPDX-License-Identifier: Apache-2.0
"""A machine that ends while it is to park: who asked is told at once why it ended."""

from __future__ import annotations

import errno

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
