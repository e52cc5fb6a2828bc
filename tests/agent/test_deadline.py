# SPDX-License-Identifier: Apache-2.0
"""Deadlines: every call ends, with all that it started, and nothing else does.

What may escape a time limit elsewhere (another session, a double fork, ignored signals, a held-open
stdout, a fork bomb) is tried one by one. A limit for the answer is generous: the machine is shared.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import time
from pathlib import Path

import pytest
from agent_client import CANCEL, EXEC, FREEZE, RENEW, STDOUT, THAW, Result, Stream, renew_request
from conftest import ROOT, Agent, wait_for
from test_bash import alive, needs_cgroups

# A second to the kill, and what a busy machine needs.
SOON = 8.0


def pids(path: Path) -> list[int]:
    """Process ids that a call has written to a file."""
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def timed_out(r: Result, state: str = "preserved") -> None:
    """The end of a call at its deadline."""
    assert r.exit is not None, r.error
    assert (r.code, r.exit["reason"], r.exit["state"]) == (124, "timeout", state), r


def test_none(stream: Stream) -> None:
    for timeout in ({}, {"timeout_ms": 0}, {"timeout_ms": 60_000}):
        r = stream.bash("sleep 0.2; echo done", **timeout)
        assert (r.stdout, r.code) == (b"done\n", 0)
        r = stream.python("import time; time.sleep(0.2); print('done')", **timeout)
        assert (r.stdout, r.code) == (b"done\n", 0)


@pytest.mark.parametrize("value", [-1, 1.5, "1", True, None, 10**15])
def test_bad_values(stream: Stream, value: object) -> None:
    r = stream.bash("true", timeout_ms=value)
    assert r.error is not None and r.error["code"] == "bad_request"
    assert "timeout_ms" in r.error["message"]


def test_bash(stream: Stream) -> None:
    start = time.monotonic()
    r = stream.bash("echo before; sleep 100; echo after", timeout_ms=1000)
    timed_out(r)
    assert r.stdout == b"before\n" and 1 <= time.monotonic() - start < SOON
    assert r.exit is not None and 1000 <= r.exit["duration_ms"] < SOON * 1000
    assert stream.bash("echo next").stdout == b"next\n"


def test_bash_gets_to_clean_up(stream: Stream) -> None:
    """SIGINT first, SIGTERM half a second later."""
    r = stream.bash(
        "trap 'echo int' INT; trap 'echo term; exit 0' TERM\n"
        "while :; do sleep 0.05 2>/dev/null; done",
        timeout_ms=1500,
    )
    timed_out(r)
    assert r.stdout == b"int\nterm\n"


def test_bash_that_is_stopped(stream: Stream) -> None:
    """A stopped process gets its SIGTERM, too."""
    r = stream.bash("echo on; kill -STOP $$; echo never", timeout_ms=1000)
    timed_out(r)
    assert r.stdout == b"on\n"


@pytest.mark.parametrize("language", ["bash", "python"])
def test_ignores_every_signal(stream: Stream, language: str) -> None:
    stream.python("kept = 1")
    if language == "bash":
        r = stream.bash("trap '' INT TERM HUP QUIT; while :; do sleep 1; done", timeout_ms=1500)
        timed_out(r)
        assert r.exit is not None and r.exit["signal"] == signal.SIGKILL
        assert stream.python("print(kept)").stdout == b"1\n"
        return
    r = stream.python(
        "import signal\nfor n in (2, 15, 1): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        timeout_ms=1000,
    )
    timed_out(r, "lost")
    assert "time limit" in r.events[-1]["text"]
    r = stream.python("print('kept' in globals())")
    assert r.stdout == b"False\n" and "time limit" in r.events[0]["text"]


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(100)",
        "while True: pass",
        "import subprocess\nsubprocess.run(['sleep', '100'])",
        "import subprocess\nsubprocess.run('sleep 100', shell=True)",
        "import threading\nthreading.Event().wait()",
        "import asyncio\nawait asyncio.sleep(100)",
        "import os\nos.read(os.pipe()[0], 1)",
        "!sleep 100",
    ],
)
def test_python_keeps_its_state(stream: Stream, code: str) -> None:
    stream.python("kept = 7")
    start = time.monotonic()
    timed_out(stream.python("print('on')\n" + code, timeout_ms=800))
    assert time.monotonic() - start < SOON
    assert stream.python("print(kept)").stdout == b"7\n"


def test_time_of_waiting_counts(own_agent: Agent) -> None:
    """For a cell that is on its way out, or for the session: the host's own clock goes on, too."""
    with own_agent.stream() as s, own_agent.stream() as other:
        s.python("kept = 13")
        other.start(
            "import time\ntry:\n    print('on', flush=True)\n    time.sleep(100)\n"
            "except KeyboardInterrupt: time.sleep(3)",
            "python",
            grace_ms=60_000,
        )
        assert other.recv()[0] == STDOUT
        other.close()
        r = s.python("kept = 14", timeout_ms=300)
        timed_out(r)
        assert "was not run" in r.events[-1]["text"] and r.exit["duration_ms"] == 0
        assert s.python("print(kept)").stdout == b"13\n"


def seize(pid: int, options: int = 0) -> None:
    """This process becomes the tracer of that one: its parent cannot reap it while we do not wait
    for it, whatever kills it. So it looks like one that hangs in the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(0x4206, pid, None, ctypes.c_void_p(options)) != 0:  # PTRACE_SEIZE
        pytest.skip(f"cannot trace: {os.strerror(ctypes.get_errno())}")


def let_die(pid: int) -> None:
    """The tracer takes note of its end; or it lets go of one that it has stopped on its way."""
    if os.WIFSTOPPED(os.waitpid(pid, 0)[1]):
        ctypes.CDLL(None).ptrace(17, pid, None, None)  # PTRACE_DETACH


def test_command_that_does_not_die(own_agent: Agent) -> None:
    """Its end is told all the same; what it was is cleared away when it does die."""
    with own_agent.stream() as s:
        s.bash("true")
        groups = len(own_agent.groups())
        s.start("echo $$; exec sleep 100", timeout_ms=500, grace_ms=800)
        pid = int(s.recv()[1])
        seize(pid)
        start = time.monotonic()
        r = s.finish()
        assert time.monotonic() - start < SOON
        timed_out(r)
        assert r.events[-1]["text"].startswith("Not all processes of this call had died")
        assert Path(f"/proc/{pid}").exists()
        assert s.bash("echo next").stdout == b"next\n"
        let_die(pid)
        wait_for(lambda: not Path(f"/proc/{pid}").exists(), "the agent to reap it")
        wait_for(lambda: len(own_agent.groups()) <= groups, "its group to go")


def test_session_that_does_not_die(own_agent: Agent) -> None:
    """The same for Python: calls end in time, unrun, until there is a new session."""
    with own_agent.stream() as s:
        pid = int(s.python("import os, signal, time\nprint(os.getpid())").stdout)
        s.start(
            "signal.signal(2, signal.SIG_IGN)\nprint('on', flush=True)\nwhile True: time.sleep(1)",
            "python",
            timeout_ms=500,
            grace_ms=800,
        )
        assert s.recv()[0] == STDOUT
        seize(pid)
        start = time.monotonic()
        r = s.finish()
        assert time.monotonic() - start < SOON
        timed_out(r, "lost")
        assert r.events[-1]["text"].startswith("Not all processes of this call had died")
        r = s.python("print(1)", timeout_ms=300)
        timed_out(r)
        assert "was not run" in r.events[-1]["text"] and r.stdout == b""
        let_die(pid)
        r = s.python("print('time' in globals())")
        assert r.stdout == b"False\n" and "could not be stopped" in r.events[0]["text"]


@needs_cgroups
def test_child_that_does_not_die(own_agent: Agent) -> None:
    """A process that its tracer stops on its way out; the session is not to blame for it."""
    with own_agent.stream() as s:
        s.python("import subprocess\nkept = 15")
        s.start("subprocess.run(['setsid', 'sleep', '5434'])", "python", timeout_ms=3000, grace_ms=800)
        found: list[int] = []
        wait_for(lambda: found.extend(running("sleep 5434")) or found, "the process")
        seize(found[0], 0x40)  # PTRACE_O_TRACEEXIT
        start = time.monotonic()
        r = s.finish()
        assert time.monotonic() - start < 3 + SOON
        timed_out(r)
        assert r.events[-1]["text"].startswith("Not all processes of this call had died")
        assert s.python("print(kept)").stdout == b"15\n"
        let_die(found[0])


def running(command: str) -> list[int]:
    """Processes with this command line."""
    wanted = command.replace(" ", "\0").encode() + b"\0"
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == wanted:
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


@pytest.mark.parametrize("language", ["bash", "python"])
def test_output_of_one_that_ended_in_time(stream: Stream, language: str) -> None:
    """At its deadline nobody has read it all: what is not read in the time that is left is counted."""
    code = "seq 1000000" if language == "bash" else "for n in range(1, 1000001): print(n)"
    stream.start(code, language, timeout_ms=4000, grace_ms=800, output_limit=4 * 1024 * 1024)
    head = 0
    while head < 2 * 1024 * 1024:
        kind, payload = stream.recv()
        head += len(payload)
        assert kind == STDOUT
    time.sleep(6)
    r = stream.finish()
    assert r.exit is not None and (r.code, r.exit["reason"]) == (0, "exited")
    path = Path(r.exit["log"]["stdout"])
    assert r.exit["truncated"] and r.exit["bytes_dropped"] == path.stat().st_size - head - len(r.stdout) > 0
    path.unlink()


def test_results_that_nobody_reads_are_counted(stream: Stream) -> None:
    """An event that finds no room is not lost in silence."""
    stream.start(
        "from IPython.display import display\nwhile True: display('x' * 50000)",
        "python",
        timeout_ms=1500,
        grace_ms=2000,
    )
    time.sleep(4)
    r = stream.finish()
    timed_out(r)
    assert r.exit is not None and r.exit["truncated"] and r.exit["bytes_dropped"] >= 50000
    assert "log" not in r.exit


@pytest.mark.parametrize("value", [0, 199, 3_600_001, "1", None])
def test_bad_grace(stream: Stream, value: object) -> None:
    r = stream.bash("true", timeout_ms=1000, grace_ms=value)
    assert r.error is not None and "grace_ms" in r.error["message"]


def test_grace_sets_the_pace(stream: Stream) -> None:
    """A quarter of it for each step: SIGINT, SIGTERM, SIGKILL."""
    code = "trap '' INT TERM; echo on; while :; do sleep 0.1; done"
    r = stream.bash(code, timeout_ms=500, grace_ms=4000)
    timed_out(r)
    assert r.exit is not None and r.exit["duration_ms"] >= 2500


ESCAPES = {
    "child": "sleep 5432 & echo $! >>{pids}",
    "other session": "setsid sleep 5432 & echo $! >>{pids}; setsid -f sleep 5432",
    "double fork": "(setsid sh -c 'sleep 5432 & echo $! >>{pids}' &)",
    "ignores signals": "setsid sh -c 'trap \"\" INT TERM HUP; echo $$ >>{pids}; while :; do sleep 1; done' &",
    "holds stdout": "setsid sh -c 'echo $$ >>{pids}; while :; do echo x; sleep 0.01; done' & ",
    "floods stdout": "setsid sh -c 'echo $$ >>{pids}; exec yes' &",
    "stopped": "sh -c 'echo $$ >>{pids}; kill -STOP $$' &",
}


@needs_cgroups
@pytest.mark.parametrize("language", ["bash", "python"])
@pytest.mark.parametrize("what", ESCAPES)
def test_nothing_escapes(agent: Agent, stream: Stream, language: str, what: str) -> None:
    """All that the call has started is dead when EXIT comes; the session is not."""
    file = agent.home / "escaped"
    file.unlink(missing_ok=True)
    code = ESCAPES[what].format(pids=file)
    stream.python("import subprocess, time\nkept = 8")
    start = time.monotonic()
    if language == "bash":
        r = stream.bash(f"{code}\nuntil [ -s {file} ]; do sleep 0.01; done; sleep 100", timeout_ms=1500)
    else:
        r = stream.python(f"subprocess.Popen({code!r}, shell=True)\ntime.sleep(100)", timeout_ms=1500)
    timed_out(r)
    assert time.monotonic() - start < SOON
    found = pids(file)
    assert found and not [pid for pid in found if alive(pid)]
    assert stream.bash("pgrep -fx 'sleep 5432'").code == 1
    assert stream.python("print(kept)").stdout == b"8\n"


@needs_cgroups
@pytest.mark.skipif(not ROOT, reason="a limit of processes is needed that is the user's alone")
@pytest.mark.parametrize("language", ["bash", "python"])
def test_fork_bomb(agent: Agent, stream: Stream, language: str) -> None:
    """Bounded by a limit of processes, as in a guest by that of the cgroup."""
    stream.python("import subprocess\nkept = 9")
    bomb = "ulimit -u 600; bomb() { bomb | bomb & wait; }; bomb 2>/dev/null; sleep 100"
    start = time.monotonic()
    if language == "bash":
        r = stream.bash(bomb, timeout_ms=1000)
    else:
        r = stream.python(f"subprocess.run(['bash', '-c', {bomb!r}])", timeout_ms=1000)
    timed_out(r)
    assert time.monotonic() - start < 4 * SOON
    assert stream.bash("echo fine").stdout == b"fine\n"
    assert stream.python("print(kept)").stdout == b"9\n"
    assert agent.cgroup is not None
    left = [g.name for g in agent.groups() if len((g / "cgroup.procs").read_text().split()) > 1]
    assert left == []


@needs_cgroups
@needs_cgroups
def test_who_is_ended_first_when_memory_runs_out(agent: Agent, stream: Stream) -> None:
    """Commands, and what a call has left behind, before a session (oom_score_adj of proc(5))."""

    def adj(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert stream.python("print(open('/proc/self/oom_score_adj').read())").stdout == b"0\n\n"
    assert stream.bash("cat /proc/self/oom_score_adj").stdout == b"500\n"
    started = stream.python(
        "import subprocess\n"
        "for score in ('', 'echo 900 >/proc/self/oom_score_adj; '):\n"
        "    p = subprocess.Popen(['sh', '-c', score + 'echo on; exec sleep 5433'],\n"
        "                         stdout=subprocess.PIPE)\n"
        "    assert p.stdout.readline() == b'on\\n'\n"
        "    print(p.pid)"
    ).stdout.split()
    first, second = (int(word) for word in started)
    assert (adj(first), adj(second)) == (500, 900)
    assert stream.python("print(open('/proc/self/oom_score_adj').read())").stdout == b"0\n\n"
    for pid in (first, second):
        os.kill(pid, signal.SIGKILL)


def test_what_earlier_calls_left_lives_on(stream: Stream) -> None:
    """Also when the session itself has to be killed."""
    first = int(stream.bash("sleep 4343 >/dev/null & echo $!").stdout)
    start = "import subprocess\nprint(subprocess.Popen(['sleep', '4343']).pid, flush=True)\n"
    second = int(stream.python(start).stdout)
    third = int(stream.python(start).stdout)
    r = stream.python(start + "import time; time.sleep(100)", timeout_ms=1000)
    timed_out(r)
    assert [alive(pid) for pid in (first, second, third, int(r.stdout))] == [True] * 3 + [False]
    r = stream.python(
        start + "import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: pass", timeout_ms=1000
    )
    timed_out(r, "lost")
    assert [alive(pid) for pid in (first, second, third, int(r.stdout))] == [True] * 3 + [False]
    stream.bash(f"kill {first} {second} {third}")


@needs_cgroups
def test_background_processes_survive_a_normal_end(agent: Agent, stream: Stream) -> None:
    """And can still be waited for and ended by the session that started them."""
    r = stream.python("import subprocess\np = subprocess.Popen(['sleep', '4344'])\nprint(p.pid)")
    pid = int(r.stdout)
    for _ in range(3):
        assert stream.python("print(p.poll())").stdout == b"None\n"
    assert alive(pid)
    groups = len(agent.groups())
    assert stream.python("p.kill(); print(p.wait())").stdout == b"-9\n"
    wait_for(lambda: len(agent.groups()) < groups, "the group of what was left to go")


def test_cancel_ends_what_a_cell_started(stream: Stream) -> None:
    stream.start(
        "import subprocess, time\nprint(subprocess.Popen(['sleep', '4345']).pid, flush=True)\n"
        "time.sleep(100)",
        "python",
    )
    pid = int(stream.recv()[1])
    stream.send(CANCEL)
    r = stream.finish()
    assert r.exit is not None and (r.exit["reason"], r.exit["state"]) == ("cancelled", "preserved")
    if stream.bash("grep -q repl- /proc/self/cgroup || grep -q exec- /proc/self/cgroup").code == 0:
        assert not alive(pid)
    else:
        stream.bash(f"kill {pid}")


@pytest.mark.parametrize("language", ["bash", "python"])
def test_though_nobody_reads(stream: Stream, language: str) -> None:
    stream.python("kept = 10")
    code = "yes" if language == "bash" else "while True: print('y')"
    stream.start(code, language, timeout_ms=500)
    time.sleep(3)
    r = stream.finish()
    timed_out(r)
    assert stream.python("print(kept)").stdout == b"10\n"


def test_end_that_crosses_the_deadline(stream: Stream) -> None:
    """Whatever comes first, there is one EXIT, and the next call is not touched."""
    stream.python("import time\nkept = 11")
    for n in range(20):
        r = stream.python(f"time.sleep({0.045 + n / 2000})", timeout_ms=50)
        assert r.exit is not None and r.exit["reason"] in ("exited", "timeout")
        r = stream.bash(f"sleep {0.045 + n / 2000}", timeout_ms=50)
        assert r.exit is not None and r.exit["reason"] in ("exited", "timeout")
        r = stream.python("for _ in range(2000): pass\nprint(kept)")
        assert (r.stdout, r.code) == (b"11\n", 0)


def test_exec_and_cancel_in_one_segment(stream: Stream) -> None:
    """As a host that gives up at once sends them."""
    def frame(kind: int, payload: bytes = b"") -> bytes:
        return struct.pack("<IB3x", len(payload), kind) + payload

    for language, code in (("bash", b"sleep 100"), ("python", b"import time; time.sleep(100)")):
        request = json.dumps({"language": language, "timeout_ms": 60_000}).encode()
        for order in range(3):
            parts = [frame(EXEC, request), frame(6, code), frame(7)]
            parts.insert(order + 1, frame(CANCEL))
            stream.raw(b"".join(parts))
            r = stream.finish()
            assert r.exit is not None and r.exit["reason"] == "cancelled"
    assert stream.bash("echo fine").stdout == b"fine\n"
    assert stream.python("print('fine')").stdout == b"fine\n"


@needs_cgroups
def test_stands_still_while_everything_is_frozen(agent: Agent, stream: Stream) -> None:
    with agent.stream() as bash, agent.stream() as python, agent.stream() as host:
        bash.start("sleep 1; echo done", timeout_ms=1500)
        python.start("import time; time.sleep(0.3); print('done')", "python", timeout_ms=1500)
        time.sleep(0.2)
        assert "groups" in host.ask(FREEZE)
        time.sleep(2.5)
        assert host.ask(THAW) == {}
        # A sleep is over when its time has come, frozen or not: only the deadline could end these.
        for s in (bash, python):
            r = s.finish()
            assert (r.stdout, r.code) == (b"done\n", 0)


@needs_cgroups
def test_holds_in_a_copy(own_agent: Agent) -> None:
    """A call that a copy inherited ends at its deadline, too: its session is free then."""
    with own_agent.stream() as s:
        s.python("import time\nkept = 12")
    python, bash = own_agent.stream(), own_agent.stream()
    python.start("print('on', flush=True)\ntime.sleep(1000)", "python", timeout_ms=2000)
    bash.start("echo $$; sleep 1000", timeout_ms=2000)
    pid = int(bash.recv()[1])
    assert python.recv()[0] == STDOUT
    with own_agent.stream() as host:
        assert "groups" in host.ask(FREEZE)
        assert host.ask(RENEW, renew_request(kind="fork", generation=1)) == {}
    with own_agent.stream() as s:
        r = s.python("print(kept)")
        assert (r.stdout, r.code) == (b"12\n", 0)
    wait_for(lambda: not alive(pid), "the end of the command")
    python.close()
    bash.close()


def test_many_deadlines_leave_nothing_behind(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.python("import subprocess, time")
        s.bash("true")
        fds, groups = own_agent.fds(), len(own_agent.groups())
        for _ in range(10):
            timed_out(s.bash("sleep 100 & sleep 100", timeout_ms=20))
            timed_out(s.python("subprocess.Popen(['sleep', '100']); time.sleep(100)", timeout_ms=100))
        wait_for(lambda: own_agent.fds() <= fds, "descriptors to be closed")
        wait_for(lambda: len(own_agent.groups()) <= groups, "empty groups to go")
        assert os.path.exists(f"/proc/{own_agent.proc.pid}")
