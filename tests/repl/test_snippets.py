# SPDX-License-Identifier: Apache-2.0
"""Hostile snippets (tests/snippets.py): after each the next cell works; or the process ends in a
defined way, and the agent (played by the test) knows how."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import pytest
from repl_process import Died, Repl, Stuck
from snippets import KILL, SNIPPETS, End, Stop

GIB = 1 << 30

# After these, other code of the user's does not work either, and says so.
BROKEN = {"no import", "modules deleted", "import system deleted", "sys emptied", "no more files"}


@pytest.mark.parametrize("name", SNIPPETS)
def test_snippet(tmp_path: Path, name: str) -> None:
    code, outcome = SNIPPETS[name]
    with Repl(cwd=tmp_path) as repl:
        limit = 2 * GIB
        resource.prlimit(repl.process.pid, resource.RLIMIT_AS, (limit, limit))
        resource.prlimit(repl.process.pid, resource.RLIMIT_CORE, (0, 0))
        assert repl.run("keep = 41").exit_code == 0
        if isinstance(outcome, Stop) or outcome == KILL:
            if isinstance(outcome, Stop):
                code = "print('ready', flush=True)\n" + code
            repl.start(code)
            repl.finish(until=b"ready\n")
            time.sleep(0.1)
            repl.interrupt()
            if isinstance(outcome, Stop):
                assert repl.finish().exit_code == outcome.code
                repl.ping()
            else:
                with pytest.raises(Stuck):
                    repl.finish(0.5)
                os.killpg(repl.process.pid, signal.SIGKILL)
                with pytest.raises(Died) as died:
                    repl.finish()
                assert died.value.status == -9
                return
        elif isinstance(outcome, End):
            with pytest.raises(Died) as died:
                repl.run(code, 60)
            assert died.value.status in outcome.statuses, died.value
            return
        else:
            repl.start(code)
            result = repl.finish(120, keep=1 << 22)
            wanted = outcome if isinstance(outcome, tuple) else (outcome,)
            assert result.exit_code in wanted, result.errors[-2000:]
            assert result.state == "preserved"
            if result.exit_code == 1 and "SystemExit" not in code:
                assert result.err and result.error is not None
        the_next_cell_works(repl, name)


def the_next_cell_works(repl: Repl, name: str) -> None:
    """Output, result, names, an error and an interrupt, as in a fresh interpreter."""
    result = repl.run("print('alive')\nkeep + 1", 60)
    assert "alive" in result.text, result.errors
    if "displayhook" not in SNIPPETS[name][0]:
        if "clears its globals" in name:
            assert result.exit_code == 1 and (result.error or {})["name"] == "NameError"
        else:
            assert result.value == "42" and result.exit_code == 0, result.errors
    result = repl.run("1 / 0")
    assert result.exit_code == 1 and "ZeroDivisionError" in result.errors
    if name not in BROKEN:
        repl.start("print('wait', flush=True)\nwhile True: pass")
        repl.finish(until=b"wait")  # a thread may write in between
        repl.interrupt()
        assert repl.finish().exit_code == 130
        repl.ping()


def test_kill_of_the_parent(tmp_path: Path) -> None:
    """The agent runs as root, and cannot be killed; a parent that can be takes nothing along."""
    with Repl(cwd=tmp_path, prefix=("/bin/sh", "-c", '"$@"; exit', "sh")) as repl:
        assert repl.run("import os, signal\nos.getppid() > 1").value == "True"
        assert repl.run("os.kill(os.getppid(), signal.SIGKILL)").exit_code == 0
        assert repl.run("6 * 7").value == "42"
