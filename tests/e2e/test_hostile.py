# SPDX-License-Identifier: Apache-2.0
"""Hostile code in a real guest, through the SDK: each call ends in a defined way, and the next one
works or says why not. What can be seen without a guest is in tests/repl/test_snippets.py and
tests/repl/test_hostile.py; this is about cgroups, the kernel's out-of-memory killer, full disks, the
limit of processes, and processes that want to outlive their call."""

from __future__ import annotations

import json
import resource
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional

import pytest
from guest import SMALL, py, sh, together
from served import wait_until

import podflare
from podflare import ExecResult, Language, Sandbox

pytestmark = pytest.mark.limit(300)

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


@pytest.fixture(scope="module")
def box(parent: Sandbox) -> Iterator[Sandbox]:
    """One sandbox for most of this file: what it breaks is its own."""
    with parent.fork(1) as copies:
        yield copies[0]


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


# --- what takes everything ---------------------------------------------------------------------

EAT = "blocks = []\nwhile True: blocks.append(b'x' * (1 << 20))"


@pytest.fixture(scope="module")
def smalls(client: podflare.Client) -> Iterator[list[Sandbox]]:
    """The ones of `small`, the last of which is used."""
    made: list[Sandbox] = []
    yield made
    for sandbox in made:
        sandbox.close()


@pytest.fixture
def small(client: podflare.Client, smalls: list[Sandbox]) -> Sandbox:
    """One to be exhausted; another when a test has broken it, so that only that test fails."""
    if smalls:
        try:
            answer = smalls[-1].run_code("echo well", "bash", timeout=5).stdout
        except podflare.PodflareError:
            answer = ""
        if answer == "well\n":
            return smalls[-1]
        smalls.pop().close()
    smalls.append(Sandbox(client=client, **SMALL))
    return smalls[-1]


MEMORY = {
    "python": Case(EAT, "python", ("oom",), 137, "lost", 9, notice="memory"),
    "child of python": Case(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {EAT!r}], check=True)",
        "python",
        ("oom",),
        1,
        error="CalledProcessError",
        notice="memory",
    ),
    "bash": Case("tail /dev/zero", "bash", ("oom",), 137, notice="memory"),
    "refused at once": Case("b'x' * (1 << 40)", exit_code=1, error="MemoryError"),
    "unpickled": Case(
        "import pickle\npickle.loads(b'\\x80\\x04K\\x01r\\xff\\xff\\xff\\x7f.')",
        "python",
        ("exited", "oom"),
        state=None,
        error="MemoryError",
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_all_memory(small: Sandbox, name: str):
    run(small, MEMORY[name])


def test_a_value_whose_repr_is_endless(box: Sandbox):
    """2^40 words to be shown, of a value that takes no memory (as an unpickling bomb makes)."""
    r = run(
        box,
        Case(
            "import pickle\nx = 'lol'\nfor _ in range(40): x = [x, x]\npickle.loads(pickle.dumps(x))",
            "python",
            ("timeout", "oom", "exited"),
            state=None,
            timeout=3,
        ),
    )
    assert not r.ok


@pytest.mark.parametrize(
    "code", ["'x' * 50_000_000", "list(range(3_000_000))", "display('é' * 9**8)"]
)
def test_huge_values_are_shown_in_part(box: Sandbox, code: str):
    r = box.run_code(code)
    assert r.ok and r.text is not None and 1000 < len(r.text) < 2 << 20, r
    assert py(box, "print(1)") == "1\n"


def test_a_full_disk(small: Sandbox):
    small.run_code("kept = 41")
    r = small.run_code(
        "with open('/home/user/big', 'wb', 0) as f:\n    while True: f.write(bytes(1 << 20))"
    )
    assert r.error is not None and r.error.name == "OSError" and "No space" in r.error.value, r
    r = small.run_code("cat /dev/zero > /home/user/more", "bash")
    assert r.exit_code == 1 and "No space left" in r.stderr, r
    with pytest.raises(podflare.DiskFullError):
        small.upload(b"x" * (4 << 20), "/home/user/upload")
    assert py(small, "print(kept)") == "41\n" and sh(small, "echo alive") == "alive\n"
    # More output than is kept, and no room for the log: the ends are told all the same.
    r = small.run_code("seq 200000", "bash", output_limit=1 << 16)
    assert r.ok and r.truncated and r.log_truncated, r
    assert r.stdout.startswith("1\n2\n") and r.stdout.endswith("\n199999\n200000\n")
    assert r.bytes_dropped == sum(len(str(i)) + 1 for i in range(1, 200001)) - len(r.stdout_bytes)
    sh(small, "rm /home/user/big /home/user/more")
    assert small.upload(b"x" * (4 << 20), "/home/user/upload").size == 4 << 20


def test_ten_thousand_threads(small: Sandbox):
    small.run_code("kept = 41")
    r = small.run_code(
        """
        import threading
        go = threading.Event()
        for i in range(10_000):
            threading.Thread(target=go.wait, daemon=True).start()
        """,
        timeout=120,
    )
    assert r.termination_reason in ("exited", "oom") and not r.ok, r
    if r.state == "preserved":
        assert r.error is not None and r.error.name in ("RuntimeError", "MemoryError"), r
        # They live on, and are not in the way of others.
        assert py(small, "print(kept, threading.active_count() > 100)") == "41 True\n"
        assert sh(small, "echo alive") == "alive\n"
        py(small, "go.set()")
    assert sh(small, "echo alive") == "alive\n"
    assert py(small, "print(1)") == "1\n"


@pytest.mark.parametrize(
    "language, code",
    [
        ("bash", "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1000"),
        ("python", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"),
    ],
    ids=["bash", "python"],
)
def test_a_fork_bomb_ends_with_its_call(small: Sandbox, language: Any, code: str):
    start = time.monotonic()
    r = small.run_code(code, language, timeout=4)
    assert time.monotonic() - start < 4 + 2 * SLACK
    assert r.termination_reason in ("timeout", "oom"), r
    assert r.termination_reason == "oom" or r.exit_code == 124
    assert sh(small, "echo alive") == "alive\n"
    assert py(small, "print(1)") == "1\n"
    assert int(sh(small, "ps -u user --no-headers | wc -l")) < 20


# What a call leaves behind, and how many processes of it are too few to be called that.
LEAVES = {
    "bash": ("bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1; exit 3", "bash", 3),
    "python": (
        """
        import os, time
        if os.fork() == 0:
            while True:
                try: os.fork()
                except OSError: pass
        time.sleep(1)
        """,
        "python",
        0,
    ),
    "fed": (
        "for i in 1 2 3 4 5 6 7 8; do (while :; do python3 -c 'x = []\nwhile True: x.append(bytes(1 << 20))';"
        " done) & done; sleep 1; exit 3",
        "bash",
        3,
    ),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_bomb_that_its_call_leaves_behind(small: Sandbox, name: str):
    """It takes neither all processes, nor all of the processor, nor the session's memory: there is
    room for the next calls, which can end it."""
    code, language, status = LEAVES[name]
    small.run_code("kept = 41")
    r = small.run_code(code, language)  # type: ignore[arg-type]
    assert r.termination_reason in ("exited", "oom") and r.exit_code == status, r
    for _ in range(5):
        time.sleep(1)
        assert py(small, "print(kept)") == "41\n"
        assert sh(small, "echo alive") == "alive\n"
    # At once: one that still lives would make another for each that is killed.
    sh(small, "kill -9 -1; echo done")
    wait_until("they are gone", lambda: int(sh(small, "ps -u user --no-headers | wc -l")) < 20, 60)
    assert py(small, "print(1)") == "1\n"


def test_what_was_left_behind_goes_first_and_as_one(small: Sandbox):
    """When memory runs out, a session that has less than half of it is not what is ended."""
    small.run_code("kept = bytearray(40 << 20)")
    sh(small, "sleep 31337 & (sleep 3; exec tail /dev/zero) & echo on")
    assert left(small) == 1
    # One of the group takes all memory, and the other goes with it.
    wait_until("both are gone", lambda: left(small) == 0, 60)
    assert py(small, "print(len(kept)); del kept") == f"{40 << 20}\n"


def test_gigabytes_of_output_without_newline(box: Sandbox):
    """With the default limit: head and tail, the counts, and the log, which stops at 1 GiB. This
    process takes little more than is kept; the daemon is looked at in tests/daemon."""
    mib = 1100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    r = box.run_code(
        f"""
        import os, sys
        block = b'x' * (1 << 20)
        _ = os.write(1, b'begin')
        for i in range({mib}): _ = sys.stdout.buffer.write(block)
        sys.stdout.flush()
        _ = os.write(1, b'end')
        """,
        timeout=0,
    )
    assert r.ok and r.truncated, r
    out = r.stdout_bytes
    assert out[:6] == b"beginx" and out[-4:] == b"xend" and (8 << 20) < len(out) <= (16 << 20)
    assert len(out) + r.bytes_dropped == (mib << 20) + 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 << 10
    log = box.files.stat(r.log["stdout"])
    assert (1 << 30) - (1 << 20) < log.size <= 1 << 30
    assert py(box, "print(1)") == "1\n"
    box.files.remove(r.log["stdout"])


def test_undecodable_bytes_everywhere(box: Sandbox):
    every = bytes(range(256))
    r = box.run_code(
        """
        import os, sys
        _ = sys.stdout.buffer.write(bytes(range(256)))
        _ = sys.stderr.buffer.write(bytes(range(255, -1, -1)))
        open(b'/tmp/\\xff\\xfe', 'w').close()
        '\\udcff\\ud800\\0'
        """
    )
    assert r.ok and (r.stdout_bytes, r.stderr_bytes) == (every, every[::-1])
    assert r.text is not None and json.dumps(r.text)
    names = [one.name for one in box.files.list("/tmp")]
    assert b"\xff\xfe".decode("utf-8", "surrogateescape") in names
    r = box.run_code("raise ValueError('\\udcff\\ud800\\0')")
    assert r.error is not None and r.error.name == "ValueError" and r.error.value != ""
    r = box.run_code("ls /tmp/\xff*; printf '\\377\\n' >&2; rm -f /tmp/$'\\377\\376'", "bash")
    assert r.stderr_bytes.endswith(b"\xff\n")
    assert py(box, "print(1)") == "1\n"


# --- interrupts ------------------------------------------------------------------------------

NEVER_ANSWERS = """
import http.client, socket, urllib.request
server = socket.create_server(("127.0.0.1", 0))
urllib.request.urlopen(f"http://127.0.0.1:{server.getsockname()[1]}/").read()
"""

INTERRUPTED = {
    "time.sleep": "import time\ntime.sleep(1000)",
    "loop": "while True: pass",
    "socket": NEVER_ANSWERS,
    "subprocess.run": f"import subprocess\nsubprocess.run('{SLEEP}'.split())",
    "lock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "join": "import threading, time\nt = threading.Thread(target=time.sleep, args=(1e4,), daemon=True)\n"
    "t.start(); t.join()",
    "asyncio": "import asyncio\nawait asyncio.sleep(1000)",
    "regex": "import re\nwhile True: re.match('(a*)*b', 'a' * 20)",
    "input of a child": "!cat /tmp/nobody-writes || mkfifo /tmp/nobody-writes; cat /tmp/nobody-writes",
}


def interrupt(s: Sandbox, code: str) -> ExecResult:
    """Start it, and interrupt it when it has said that it is underway."""
    underway, results = threading.Event(), []
    thread = threading.Thread(
        target=lambda: results.append(
            s.run_code(
                "print('underway', flush=True)\n" + code,
                timeout=60,
                on_stdout=lambda text: underway.set(),
            )
        ),
        daemon=True,
    )
    thread.start()
    assert underway.wait(120)
    time.sleep(0.5)
    assert s.interrupt() is True
    thread.join()
    (result,) = results
    assert isinstance(result, ExecResult)
    return result


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_keeps_variables(box: Sandbox, name: str):
    box.run_code("kept = 41")
    r = interrupt(box, INTERRUPTED[name])
    assert (r.termination_reason, r.exit_code, r.state) == ("interrupted", 130, "preserved"), r
    assert r.error is not None and r.error.name == "KeyboardInterrupt"
    assert py(box, "print(kept)") == "41\n" and left(box) == 0


def test_an_interrupt_in_numpy_keeps_variables(fresh: Callable[..., Sandbox]):
    s = fresh(template="python-datasci")
    s.run_code("import numpy as np\na = np.random.default_rng(1).random((200, 200))\nkept = 41")
    for code in ("while True: b = a @ a", "while True: np.linalg.svd(a)", "while True: np.sort(a)"):
        r = interrupt(s, code)
        assert (r.termination_reason, r.exit_code, r.state) == ("interrupted", 130, "preserved"), r
        assert py(s, "print(kept, a.shape)") == "41 (200, 200)\n"


def test_an_interrupt_never_hits_the_next_call(box: Sandbox):
    """It is sent around the end of a call, sooner or later; the call after it is never ended."""
    hits = 0
    for i in range(12):
        stream = box.run_code_stream("import time\nprint('underway', flush=True)\ntime.sleep(0.1)")
        next(stream)
        racer = threading.Thread(
            target=lambda: (time.sleep(i * 0.02), stream.interrupt()), daemon=True
        )
        racer.start()
        last = list(stream)[-1]
        hits += last.extra["termination_reason"] == "interrupted"
        r = box.run_code("import time\ntime.sleep(0.2)\nprint('whole')")
        racer.join()
        assert (r.stdout, r.termination_reason, r.error) == ("whole\n", "exited", None), (i, r)
    assert hits < 12


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
