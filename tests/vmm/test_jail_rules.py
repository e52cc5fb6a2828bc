# SPDX-License-Identifier: Apache-2.0
"""Each rule of the jail is needed: a whole life of a VMM (test_life.py) passes with all of them, and
something dies of the lack of any one; of the rules that a leaf keeps, in a leaf's life. Those that
this life does not use are named here, each with who does."""

from __future__ import annotations

import os
import subprocess
from signal import SIGSYS

import pytest

from conftest import Host
from test_jail import PROBE, RULES as NAMES, number
from test_life import ends, leaf_life, life

RULES = [f"{where} {name}" for where, names in NAMES.items() for name in names]

# Who needs a rule that this life does without.
ELSEWHERE = {
    "process clock_gettime": "hosts whose clock the vDSO cannot read",
    "process brk": "a heap that grows: whether it must is up to what making the filters left of it",
    "process restart_syscall": "a wait with a deadline that SIGSTOP has interrupted",
    "process madvise-66": "glibc from 2.42 on; vmm-jail-probe says what it gets",
    "leaf clock_gettime": "as in the process",
}
# What only the end of a thread does, while the process goes on: a probe on such a thread.
ENDS = {
    "process exit": "vcpu",
    "vcpu exit": "vcpu",
    "vcpu rt_sigprocmask": "vcpu",
    "leaf-vcpu exit": "leaf-vcpu",
    "leaf-vcpu rt_sigprocmask": "leaf-vcpu",
}


def plain(rule: str) -> str:
    """Without its number."""
    table, _, name = rule.partition(" ")
    return f"{table} {name.partition('-')[2]}"


def test_those_named_are_rules() -> None:
    assert ELSEWHERE.keys() | ENDS.keys() <= {plain(rule) for rule in RULES}
    assert len(RULES) > 140


@pytest.mark.parametrize("rule", [rule for rule in RULES if plain(rule) not in ELSEWHERE])
def test_it_dies_without(host: Host, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, _, name = rule.partition(" ")
    monkeypatch.setenv("VMM_STILL_WITHOUT", f"{where} {number(name)}")
    if plain(rule) in ENDS:
        done = subprocess.run([PROBE, ENDS[plain(rule)], "nothing"], timeout=60, check=False)
        assert done.returncode == -SIGSYS
        return
    try:
        leaf_life(host) if rule.startswith("leaf") else life(host)
    except (AssertionError, OSError):
        pass  # of what died: which is seen below
    assert SIGSYS in [os.WTERMSIG(s) for s in ends(host) if os.WIFSIGNALED(s)]
