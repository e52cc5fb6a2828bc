# SPDX-License-Identifier: Apache-2.0
"""Hostile code as a table tells of it: what is run, how its call has to end, and what must work then."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Optional

from guest import sh

from podflare import ExecResult, Language, Sandbox

# Seconds that an answer may take beyond the deadline. On hardware it is 2; the emulated host is ten
# to twenty times slower, and shared.
SLACK = 45

# What hostile code leaves running: nobody else sleeps for so long.
SLEEP = "sleep 31337"


def left(s: Sandbox) -> int:
    """How many of these run."""
    return len(sh(s, "pgrep -f '^[s]leep 31337' || true").split())


@dataclass(frozen=True)
class Case:
    """A snippet and how its call has to end. `reasons`: any of these, where it is the kernel's
    choice; `exit_code` None: whatever belongs to the reason."""

    code: str
    language: Language = "python"
    reasons: tuple[str, ...] = ("exited",)
    exit_code: Optional[int] = None
    state: Optional[str] = "preserved"
    signal: Optional[int] = None
    error: Optional[str] = None
    timeout: float = 200
    notice: Optional[str] = None


def run(s: Sandbox, case: Case) -> ExecResult:
    """Run it, and insist on what the case says, and on a sandbox that works afterwards."""
    s.run_code("kept = 41")
    start = time.monotonic()
    r = s.run_code(case.code, case.language, timeout=case.timeout)
    assert time.monotonic() - start < case.timeout + SLACK
    assert r.termination_reason in case.reasons, r
    if r.termination_reason == "timeout":
        assert r.exit_code == 124 and r.duration_ms is not None
        assert r.duration_ms >= case.timeout * 1000 - 100
    if case.exit_code is not None:
        assert r.exit_code == case.exit_code, r
    if case.state is not None:
        assert r.state == case.state, r
    assert case.signal is None or r.signal == case.signal, r
    if r.state == "preserved" and r.termination_reason != "timeout":
        assert (r.error and r.error.name) == case.error, r
    assert case.notice is None or any(case.notice in one for one in r.notices), r
    # The next calls work, and the truth was told about variables.
    assert s.run_code("echo alive", "bash").stdout == "alive\n"
    after = s.run_code("print('kept' in globals()); 6 * 7")
    assert after.text == "42", after
    if case.language == "python":
        assert after.stdout == f"{r.state == 'preserved'}\n", (r, after)
        assert any("variables" in one for one in after.notices) == (r.state == "lost"), after
    return r
