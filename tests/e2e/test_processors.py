# SPDX-License-Identifier: Apache-2.0
"""Sandboxes with more than one vCPU, which is not the default everywhere: they compute side by side,
and are forked while they do."""

from __future__ import annotations

from typing import Iterator

import pytest
from guest import py, sh, together

from podflare import Client, Sandbox

# The first one of another size waits for its template.
pytestmark = pytest.mark.limit(600)

BUSY = """
import subprocess, threading, time
# Threads that do little, so that they do not keep the interpreter from its renewal; and a process
# that does nothing but compute.
counts = [0] * 4
go = True
def work(i):
    while go:
        counts[i] += 1
        time.sleep(0.01)
workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(4)]
for w in workers: w.start()
busy = subprocess.Popen(["sh", "-c", "while :; do :; done"])
"""


@pytest.fixture
def many(client: Client) -> Iterator[Sandbox]:
    with Sandbox(client=client, vcpus=2, memory_mib=512) as s:
        assert sh(s, "nproc") == "2\n"
        yield s


def test_forks_of_a_busy_one(many: Sandbox):
    py(many, BUSY)
    many_at = "import time\nat = sum(counts); time.sleep(0.5); print(sum(counts) > at)"
    with many.fork(2) as children:
        assert len({sh(c, "cat /proc/sys/kernel/random/boot_id") for c in [many, *children]}) == 3
        assert together(lambda c: py(c, many_at), [many, *children]) == ["True\n"] * 3
        py(children[0], "go = False\nfor w in workers: w.join()\nbusy.kill(); busy.wait()")
        assert py(children[0], many_at) == "False\n"
        with children[1].fork() as (grandchild,):
            assert py(grandchild, many_at) == "True\n"
        assert py(many, many_at) == "True\n"


def test_processes_side_by_side(many: Sandbox):
    script = "for i in 1 2 3 4 5 6; do (n=0; while [ $n -lt 2000 ]; do n=$((n+1)); done; echo $i) & done; wait"
    assert sorted(sh(many, script).split()) == list("123456")
    with many.fork() as (child,):
        assert sorted(sh(child, script).split()) == list("123456")
