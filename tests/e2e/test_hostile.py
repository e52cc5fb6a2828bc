# SPDX-License-Identifier: Apache-2.0
"""Hostile code in a real guest, through the SDK: each call ends in a defined way, and the next one
works or says why not. What can be seen without a guest is in tests/repl/test_snippets.py and
tests/repl/test_hostile.py; this is about processes that want to outlive their call or kill others, calls
beside each other, and agents that cannot help. Code that takes everything: test_exhaustion.py."""

from __future__ import annotations

import threading
import time
from typing import Callable

import pytest
from guest import SMALL, py, sh, together
from hostile import SLACK, SLEEP, Case, left, run
from served import wait_until

import podflare
from podflare import ExecResult, Sandbox

pytestmark = pytest.mark.limit(300)

# --- what wants to outlive its deadline ------------------------------------------------------

HANGING = {
    "python setsid": Case(
        f"import subprocess, time\nsubprocess.Popen('{SLEEP}'.split(), start_new_session=True)\n"
        "time.sleep(1000)",
    ),
    "python double fork": Case(
        "import os, time\n"
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        os.execvp('sleep', '{SLEEP}'.split())\n    os._exit(0)\n"
        "time.sleep(1000)",
    ),
    "python waits for a deaf child": Case(
        "import subprocess\n"
        f"subprocess.run([\"trap '' HUP INT TERM; exec {SLEEP}\"], shell=True)",
    ),
    "python reads what a child holds open": Case(
        f"import subprocess\nsubprocess.check_output('setsid {SLEEP} & true', shell=True)",
    ),
    "python deaf": Case(
        "import signal\nfor n in (1, 2, 3, 13, 15): signal.signal(n, signal.SIG_IGN)\n"
        "while True:\n    try: signal.pause()\n    except BaseException: pass",
        state="lost",
    ),
    "python that never looks": Case("sum(iter(int, 1))", state="lost"),
    # Its thread sits in the kernel (state D) while the child that posix_spawn() has made waits for
    # the other end of a pipe with all signals blocked: nothing but SIGKILL ends either.
    "python in an uninterruptible wait": Case(
        "import os\nos.path.exists('/tmp/stall') or os.mkfifo('/tmp/stall')\n"
        "os.posix_spawn('/bin/true', ['true'], {}, file_actions=[\n"
        "    (os.POSIX_SPAWN_OPEN, 0, '/tmp/stall', os.O_RDONLY, 0)])",
        state="lost",
    ),
    "bash double fork": Case(
        f"(trap '' HUP INT TERM; setsid bash -c '{SLEEP} & disown') & sleep 1000", "bash"
    ),
    "bash holds stdout open": Case(
        f"(trap '' HUP INT TERM; exec {SLEEP}) & trap '' INT TERM; while :; do wait; done", "bash"
    ),
    "bash stopped": Case(f"{SLEEP} & kill -STOP $$; echo never", "bash"),
    "root's processes": Case(f"sudo bash -c 'trap \"\" INT TERM; {SLEEP} & wait; wait'", "bash"),
}


@pytest.mark.parametrize("name", HANGING)
def test_nothing_escapes_a_deadline(box: Sandbox, name: str):
    case = HANGING[name]
    run(
        box,
        Case(case.code, case.language, ("timeout",), 124, case.state, timeout=2),
    )
    assert left(box) == 0


def test_what_was_kept_lives_on(box: Sandbox):
    """Processes that a call left behind when it ended by itself survive the deadline of another call,
    even one that costs the session its life, and so do those of bash."""
    py(box, f"import subprocess\nchild = subprocess.Popen('{SLEEP}'.split())")
    assert sh(box, f"setsid {SLEEP} & echo $!") != ""
    assert left(box) == 2
    r = box.run_code("import time; time.sleep(1000)", timeout=1)
    assert (r.termination_reason, r.state) == ("timeout", "preserved") and left(box) == 2
    assert py(box, "print(child.poll())") == "None\n"
    r = box.run_code("sleep 1000", "bash", timeout=1)
    assert r.termination_reason == "timeout" and left(box) == 2
    r = box.run_code(HANGING["python deaf"].code, timeout=1)
    assert (r.termination_reason, r.state) == ("timeout", "lost") and left(box) == 2
    sh(box, "pkill -f '^[s]leep 31337'")


# --- what kills ------------------------------------------------------------------------------

KILLING = {
    "os._exit": Case("import os; os._exit(5)", exit_code=5, state="lost"),
    "abort": Case("import os; os.abort()", "python", ("signaled",), 134, "lost", 6),
    "segfault": Case(
        "import ctypes; ctypes.string_at(0)", "python", ("signaled",), 139, "lost", 11
    ),
    "crash by recursion": Case(
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return list(map(lambda _: f(), [0]))\nf()",
        "python",
        ("signaled", "oom"),
        None,
        "lost",
    ),
    "kill of the parent": Case(
        "import os; os.kill(os.getppid(), 9)", exit_code=1, error="PermissionError"
    ),
    "kill of all others": Case("import os; os.kill(-1, 9)", exit_code=0),
    "signals to its group": Case(
        "import os; os.killpg(0, 9)", "python", ("signaled",), 137, "lost", 9
    ),
    "unpickled kill": Case(
        "import pickle\npickle.loads(b'cos\\nkill\\n(cos\\ngetpid\\n(tRI9\\ntR.')",
        "python",
        ("signaled",),
        137,
        "lost",
        9,
    ),
    "bash kills itself": Case("kill -9 $$", "bash", ("signaled",), 137, signal=9),
    "root kills process 1": Case("sudo kill -9 1; sudo kill -ABRT 1; exit 3", "bash", exit_code=3),
}


@pytest.mark.parametrize("name", KILLING)
def test_code_that_kills(box: Sandbox, name: str):
    run(box, KILLING[name])


@pytest.mark.parametrize("script", ["kill -9 -1; exit 3", "sudo kill -9 -1; exit 3"])
def test_kill_of_everything(box: Sandbox, script: str):
    box.run_code("kept = 1")
    r = box.run_code(script, "bash")
    # Of root's it dies itself; the user's spares the one that calls.
    how = (r.termination_reason, r.exit_code)
    assert how in (("exited", 3), ("signaled", 137)), r
    after = box.run_code("print('kept' in globals())")
    # What the idle session had is gone, and that is said: with the next call, which a new one runs; or
    # which has met the old one while it was still on its way out.
    assert any("variables" in one for one in after.notices), after
    if after.termination_reason == "signaled":
        assert (after.exit_code, after.state, after.stdout) == (137, "lost", ""), after
        after = box.run_code("print('kept' in globals())")
    assert after.stdout == "False\n", after
    assert py(box, "print(1)") == "1\n" and sh(box, "echo 2") == "2\n"


# --- beside each other -------------------------------------------------------------------------


def test_contexts_in_parallel(box: Sandbox):
    """Each waits for the others, one of them ends at its deadline; nobody else notices."""
    box.run_code(
        "import os\nfor n in '012': os.path.exists('/tmp/m' + n) and os.remove('/tmp/m' + n)"
    )
    meet = """
        import os, time
        kept = {n}
        open('/tmp/m{n}', 'w').close()
        while not all(os.path.exists(f'/tmp/m{{n}}') for n in range(3)): time.sleep(0.05)
        """
    with box.create_context("one") as one, box.create_context("two") as two:
        calls = list(enumerate((box, one, two)))
        done: list[ExecResult] = together(  # type: ignore[assignment]
            lambda it: it[1].run_code(meet.format(n=it[0]), timeout=120), calls  # type: ignore
        )
        assert all(r.ok for r in done), done
        deaf = threading.Thread(
            target=lambda: done.append(one.run_code(HANGING["python deaf"].code, timeout=3)),
        )
        deaf.start()
        assert two.run_code("print(kept)").stdout == "2\n"
        assert py(box, "print(kept)") == "0\n"
        deaf.join()
        assert (done[-1].termination_reason, done[-1].state) == ("timeout", "lost"), done[-1]
        assert two.run_code("print(kept)").stdout == "2\n"
        assert py(box, "print(kept)") == "0\n"
        assert one.run_code("print('kept' in globals())").stdout == "False\n"


def test_a_fork_while_a_call_with_a_deadline_runs(parent: Sandbox):
    """The deadline holds in the copy as well, where nobody waits for the call."""
    parent.run_code("kept = 41")
    ours: list[ExecResult] = []
    code = (
        f"import subprocess\nopen('/tmp/underway', 'w').close()\nsubprocess.run('{SLEEP}'.split())"
    )
    thread = threading.Thread(target=lambda: ours.append(parent.run_code(code, timeout=8)))
    thread.start()
    wait_until("the call runs", lambda: parent.files.exists("/tmp/underway"), 60)
    with parent.fork(1) as (child,):
        r = child.run_code("print(kept)", timeout=60 + SLACK)
        assert r.stdout == "41\n" and any("forked while" in one for one in r.notices), r
        assert left(child) == 0
        thread.join()
        assert (ours[0].termination_reason, ours[0].state) == ("timeout", "preserved"), ours
        assert py(parent, "print(kept)") == "41\n" and left(parent) == 0
    parent.files.remove("/tmp/underway")


def test_forks_of_a_session_that_starts_programs(parent: Sandbox):
    """Most of the time it waits between vfork and exec, where it could not be told who it is."""
    parent.run_code("kept = 41")
    code = "import subprocess\nprint('underway', flush=True)\nwhile True: subprocess.run(['true'])"
    stream = parent.run_code_stream(code, timeout=100)
    assert next(stream).data.startswith("underway")
    for _ in range(4):
        with parent.fork(1) as (child,):
            assert sh(child, "echo alive") == "alive\n"
    assert stream.interrupt() is True
    last = list(stream)[-1]
    assert last.extra["termination_reason"] == "interrupted", last
    assert py(parent, "print(kept)") == "41\n"


# --- when the agent cannot help ----------------------------------------------------------------

STARVE = (
    "sudo chrt -f 99 bash -c 'while :; do :; done' & sudo chrt -f 99 bash -c 'while :; do :; done'"
)

# Root puts process 1, which is the agent, into a group that is frozen.
SILENCE = (
    "sudo bash -c 'cd /sys/fs/cgroup; mkdir ice; echo 1 > ice/cgroup.procs; echo 1 > ice/cgroup.freeze';"
    " sleep 1000"
)


def test_processors_taken_by_real_time_processes(small: Sandbox):
    r = small.run_code(STARVE, "bash", timeout=4)
    assert (r.termination_reason, r.exit_code) == ("timeout", 124), r
    assert sh(small, "pgrep -f '[w]hile :' || true") == "" and py(small, "print(1)") == "1\n"


def test_an_agent_that_is_silent_costs_the_sandbox(fresh: Callable[..., Sandbox]):
    s = fresh(**SMALL)
    start = time.monotonic()
    r = s.run_code(SILENCE, "bash", timeout=8)  # time enough to get so far
    assert (r.termination_reason, r.exit_code, r.state) == ("timeout", 124, "lost"), r
    assert r.truncated and r.bytes_dropped == 0  # what it may have written nobody knows
    assert "does not answer" in r.stderr and time.monotonic() - start < 8 + 2 * SLACK
    with pytest.raises(podflare.PodflareError):
        s.run_code("echo alive?", "bash")


def test_a_silent_agent_does_not_keep_a_command_for_ever(fresh: Callable[..., Sandbox]):
    """Nobody watches it; its time limit holds all the same."""
    s = fresh(**SMALL)
    s.commands.run(SILENCE, background=True, timeout=8)
    end = time.monotonic() + 8 + 4 * SLACK
    while (info := s.info()).state != "ended":
        assert time.monotonic() < end
        time.sleep(0.5)
    assert info.ended_reason == "guest does not answer"
