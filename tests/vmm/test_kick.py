# SPDX-License-Identifier: Apache-2.0
"""The one signal that the filters of VMMs let them send, to whom they like where Landlock cannot tell:
it ends no VMM, whichever of its threads takes it."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import pytest

from conftest import LEAF, SERVES, Host, Vmm
from test_life import use_streams

LIBC = ctypes.CDLL(None, use_errno=True)


def kick(vmm: Vmm, times: int) -> None:
    """All of its threads, one by one: a VMM's filter lets it name nothing but a thread."""
    for _ in range(times):
        tids = [int(tid) for tid in os.listdir(f"/proc/{vmm.pid}/task")]
        assert len(tids) >= 3  # the loop's and the vCPUs'
        for tid in tids:
            assert LIBC.tgkill(vmm.pid, tid, signal.SIGUSR1) == 0
        time.sleep(0.002)


@pytest.mark.parametrize("kind", [0, LEAF], ids=["plain", "leaf"])
def test_the_kick_of_a_vcpu_ends_no_vmm(host: Host, kind: int) -> None:
    """A VM and a copy of it. What one that cannot be forked does at the end of a handler, its filters
    do not know: so no thread of it takes the signal."""
    host.plan.guest = SERVES
    vmm = host.booted(vcpus=2)
    use_streams(vmm)
    copy = vmm.fork(kind)
    use_streams(copy)
    for one in (vmm, copy):
        kick(one, 50)
    use_streams(copy)
    for one in (vmm, copy):
        one.stats()
