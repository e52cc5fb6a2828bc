# SPDX-License-Identifier: Apache-2.0
"""Cancel: SIGINT to the process group ends the cell with 130, and nothing else."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from repl_process import Died, Repl, Stuck
from test_streams import switches

READY = "print('ready', flush=True)\n"


def status(repl: Repl) -> bytes:
    """/proc/PID/status of the interpreter."""
    return Path(f"/proc/{repl.process.pid}/status").read_bytes()


def cancel(repl: Repl, code: str, limit: float = 3.0) -> object:
    """Starts the cell, interrupts it once it has said that it runs, returns its result."""
    repl.start("import time, sys, subprocess, threading\n" + code)
    repl.finish(until=b"ready")
    time.sleep(0.05)
    began = time.monotonic()
    repl.interrupt()
    result = repl.finish(limit)
    assert time.monotonic() - began < limit
    return result


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(60)",
        "while True: pass",
        "subprocess.run(['sleep', '60'])",
        "threading.Event().wait()",
        "import os; os.read(os.pipe()[0], 1)",
        "while True: print('x' * 1000)",
        "import asyncio\nawait asyncio.sleep(60)",
        "import asyncio\nasyncio.run(asyncio.sleep(60))",
        "class R:\n    def __repr__(self):\n        while True: pass\nR()",
        "class E(Exception):\n    def __str__(self):\n        time.sleep(60)\nraise E",
        "subprocess.Popen(['sh', '-c', 'trap \"\" INT; sleep 0.3']).wait()\ntime.sleep(60)",
    ],
)
def test_cancel_keeps_names(repl: Repl, code: str) -> None:
    repl.run("keep = 'kept'")
    result = cancel(repl, READY + code)
    assert result.exit_code in ((130, 1) if "__str__" in code else (130,))  # type: ignore
    assert result.state == "preserved"  # type: ignore[attr-defined]
    after = repl.run("print(keep)")
    assert after.text.endswith("kept\n") and after.exit_code == 0


def test_traceback_says_where_it_was(repl: Repl) -> None:
    result = cancel(repl, READY + "def work():\n    time.sleep(60)\nwork()")
    assert "time.sleep(60)" in result.errors  # type: ignore[attr-defined]
    assert result.error["name"] == "KeyboardInterrupt"  # type: ignore[attr-defined]


def test_cleanup_code_runs(repl: Repl) -> None:
    code = READY + "try:\n    time.sleep(60)\nfinally:\n    print('cleaned')"
    assert cancel(repl, code).text.split() == ["cleaned"]  # type: ignore[attr-defined]


def test_interrupt_right_after_the_cell_was_sent_is_not_lost(repl: Repl) -> None:
    for _ in range(60):
        repl.start("import time\ntime.sleep(20)")
        repl.interrupt()
        assert repl.finish(5).exit_code == 130
        assert repl.run("1 + 1").value == "2"


def test_interrupt_between_cells_is_dropped(repl: Repl) -> None:
    for _ in range(100):
        repl.interrupt()
        repl.ping()
        result = repl.run("print(1)")
        assert (result.text, result.exit_code) == ("1\n", 0)


def test_interrupt_of_an_idle_interpreter_is_dropped_at_once(repl: Repl) -> None:
    """Without PING: it is enough that the process has slept again since."""
    for _ in range(5):
        before = switches(repl)
        repl.interrupt()
        while switches(repl) == before or b"\nState:\tS" not in status(repl):
            time.sleep(0.001)
        assert repl.run("'on'").value == "'on'"


def test_interrupts_at_any_moment_leave_a_working_interpreter(repl: Repl) -> None:
    """Interrupts spread over starts, ends and repairs of short cells."""
    repl.run("n = 0")
    for i in range(300):
        repl.start("n += 1\nfor i in range(40): print(i)\nn")
        end = time.monotonic() + (i % 50) * 2e-5
        while time.monotonic() < end:
            pass
        repl.interrupt()
        assert repl.finish(5).exit_code in (0, 130)
        repl.ping()
        assert repl.run("1").exit_code == 0
    assert 0 < int(repl.run("n").value or 0) <= 300
    assert repl.run("print('fine')").text == "fine\n"


@pytest.mark.parametrize("send_buffer", [None, 2048])
def test_interrupt_leaves_no_half_frame(send_buffer: int | None) -> None:
    """The peer does not read: the cell is blocked inside an event when it is interrupted."""
    with Repl(send_buffer=send_buffer) as repl:
        for size in (50_000, 40_000, 30_000, 1_500):
            repl.start(f"import sys\nwhile True: sys.displayhook('x' * {size})")
            time.sleep(0.1)
            repl.interrupt()
            time.sleep(0.02)
            result = repl.finish(5)
            assert result.exit_code == 130 and result.error is not None
            shown = [e["data"]["text/plain"] for e in result.events if e["type"] == "result"]
            assert shown and {len(text) for text in shown} == {size + 2}
            repl.ping()


def test_two_interrupts(repl: Repl) -> None:
    code = READY + "try:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    time.sleep(60)"
    repl.start("import time\n" + code)
    repl.finish(until=b"ready")
    time.sleep(0.05)
    repl.interrupt()
    time.sleep(0.2)
    repl.interrupt()
    assert repl.finish(3).exit_code == 130
    assert repl.run("1").value == "1"


def test_handler_of_one_cell_does_not_stop_the_cancel_of_the_next(repl: Repl) -> None:
    repl.run("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert cancel(repl, READY + "time.sleep(60)").exit_code == 130  # type: ignore[attr-defined]


def test_code_that_swallows_interrupts_can_be_killed(repl: Repl) -> None:
    code = READY + "while True:\n    try:\n        while True: time.sleep(1)\n"
    code += "    except KeyboardInterrupt: print('no')"
    with pytest.raises(Stuck):
        cancel(repl, code, 0.6)
    repl.process.kill()
    with pytest.raises(Died) as died:
        repl.finish(5)
    assert died.value.status == -signal.SIGKILL


def test_forked_child_is_interrupted_too(repl: Repl) -> None:
    code = "import os\npid = os.fork()\nif pid == 0:\n    print('ready', flush=True)\n"
    code += "time.sleep(60)"
    assert cancel(repl, code).exit_code == 130  # type: ignore[attr-defined]
    result = repl.run("os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])")
    assert result.value == "130"


def test_raised_by_the_user(repl: Repl) -> None:
    assert repl.run("raise KeyboardInterrupt").exit_code == 130


def test_signal_handler_that_raises_between_cells(repl: Repl) -> None:
    code = "import signal\ndef handler(*a): raise TimeoutError('late alarm')\n"
    code += "signal.signal(signal.SIGALRM, handler)\nsignal.setitimer(signal.ITIMER_REAL, 0.1)"
    assert repl.run(code).exit_code == 0
    assert "TimeoutError: late alarm" in repl.drain(0.3).errors
    assert repl.run("2").value == "2"


def test_alarm_inside_a_cell(repl: Repl) -> None:
    code = "import signal, time\ndef handler(*a): raise TimeoutError('in time')\n"
    code += "signal.signal(signal.SIGALRM, handler)\nsignal.setitimer(signal.ITIMER_REAL, 0.1)\n"
    result = repl.run(code + "time.sleep(10)")
    assert result.exit_code == 1 and "TimeoutError: in time" in result.errors


def test_multiprocessing_spawn_can_be_cancelled(repl: Repl) -> None:
    code = "import multiprocessing as mp, time\n"
    code += "with mp.get_context('spawn').Pool(1) as p:\n    " + READY + "    p.map(time.sleep, [1000])"
    result = cancel(repl, code, 10)
    assert result.exit_code == 130  # type: ignore[attr-defined]
    repl.drain(0.3)
    code = "import gc\ndel p, sys.last_traceback, sys.last_value\ngc.collect() >= 0"
    assert repl.run(code).value == "True"  # and the pool's semaphores are gone


def test_sigint_disposition_in_children_is_the_default(repl: Repl) -> None:
    line = repl.run("import os; os.system('grep SigIgn /proc/self/status')").text.split()[1]
    assert not int(line, 16) & (1 << (signal.SIGINT - 1))
    assert os.getpid()
