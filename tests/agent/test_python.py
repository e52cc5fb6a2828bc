# SPDX-License-Identifier: Apache-2.0
"""Python cells through the agent: order, waiting, cancel, death of the interpreter."""

from __future__ import annotations

import time

from agent_client import CANCEL, EVENT, STDERR, STDOUT, WARM, Stream, begun
from conftest import Agent, wait_for
from test_bash import alive, needs_cgroups


def told_of_the_loss(stream: Stream, why: str) -> None:
    """The first cell of a new session is told that variables are gone and why, no other one."""
    r = stream.python("print('kept' in globals())")
    assert r.stdout == b"False\n" and [e["type"] for e in r.events] == ["notice"]
    assert why in r.events[0]["text"] and "gone" in r.events[0]["text"]
    assert stream.python("1;").events == []


def test_state_persists(stream: Stream) -> None:
    assert stream.python("x = 41").code == 0
    r = stream.python("x += 1\nprint(x)")
    assert (r.stdout, r.code) == (b"42\n", 0)
    assert r.exit is not None and r.exit["state"] == "preserved" and r.exit["reason"] == "exited"


def test_a_cell_that_comes_before_ready_waits(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        assert s.python("print('warm')").stdout == b"warm\n"


def test_result_event(stream: Stream) -> None:
    r = stream.python("6 * 7")
    assert r.events == [{"type": "result", "data": {"text/plain": "42"}}]


def test_exception_and_system_exit(stream: Stream) -> None:
    r = stream.python("1/0")
    assert r.code == 1 and b"ZeroDivisionError" in r.stderr
    assert stream.python("raise SystemExit(5)").code == 5
    assert stream.python("print('alive')").stdout == b"alive\n"


def test_events_stand_behind_the_output_before_them(stream: Stream) -> None:
    """All output written before a display() comes before its event."""
    stream.start(
        "import os\n" "for n in range(50):\n" "    os.write(1, b'%d\\n' % n)\n" "    display(n)\n",
        "python",
    )
    output, events = b"", 0
    for kind, payload in stream.frames():
        if kind == STDOUT:
            output += payload
        elif kind == EVENT:
            assert output.split()[events] == b"%d" % events
            events += 1
    assert events == 50 and output.split() == [b"%d" % n for n in range(50)]


def test_warm(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        assert s.ask(WARM) == {}
        r = s.python("import sys\nprint('IPython' in sys.modules)")
        assert r.stdout == b"True\n"


def test_cancels_in_quick_succession(stream: Stream) -> None:
    """An interrupt hits its own cell or none."""
    stream.python("import time")
    for n in range(60):
        stream.start(f"time.sleep({n % 3 / 1000})", "python")
        stream.send(CANCEL)
        assert stream.finish().exit is not None
        r = stream.python("for _ in range(2000): pass\nprint('whole')")
        assert (r.stdout, r.code) == (b"whole\n", 0)


def test_large_code(stream: Stream) -> None:
    value = "a" * 3_000_000
    r = stream.python(f"big = '{value}'\nprint(len(big))")
    assert r.stdout == b"3000000\n"


def test_large_output_is_complete_at_exit(stream: Stream) -> None:
    r = stream.python(
        "import sys\nsys.stdout.write('x' * 5_000_000)\nsys.stderr.write('y' * 100_000);"
    )
    assert (len(r.stdout), len(r.stderr)) == (5_000_000, 100_000)


def test_second_cell_is_refused(agent: Agent, stream: Stream) -> None:
    stream.start("import time\nprint('on')\ntime.sleep(2)", "python")
    begun(stream)
    with agent.stream() as other, agent.stream() as third:
        third.start("print(3)", "python")
        r = other.python("print(1)")
        assert r.error is not None and r.error["code"] == "busy"
        r = third.finish()
        assert r.error is not None and r.error["code"] == "busy"
        assert other.bash("echo beside").stdout == b"beside\n"
        assert other.status()["repl"] == "busy"
    assert stream.finish().code == 0
    assert stream.status()["repl"] == "ready"


def test_bash_and_files_follow_the_directory_of_the_session(agent: Agent, stream: Stream) -> None:
    stream.python("import os\nos.makedirs('here/there', exist_ok=True)\nos.chdir('here')")
    try:
        assert stream.bash("pwd").stdout.decode().strip() == str(agent.home / "here")
        assert stream.bash("pwd", cwd="there").stdout.decode().strip().endswith("/here/there")
        assert stream.put("f", b"1")["path"] == str(agent.home / "here" / "f")
        assert stream.get("f")[1] == b"1"
        stream.python("os.makedirs('gone', exist_ok=True); os.chdir('gone'); os.rmdir('../gone')")
        r = stream.bash("pwd")
        assert r.error is not None and r.error["code"] == "not_found"
        assert "does not exist any more" in r.error["message"]
    finally:
        stream.python("os.chdir(os.path.expanduser('~'))")


def test_cancel_keeps_the_state(stream: Stream) -> None:
    stream.python("kept = 1")
    stream.start("import time\nprint('on', flush=True)\ntime.sleep(100)", "python")
    begun(stream)
    start = time.monotonic()
    stream.send(CANCEL)
    r = stream.finish()
    assert time.monotonic() - start < 2
    assert r.exit is not None
    assert (r.exit["reason"], r.exit["state"]) == ("cancelled", "preserved")
    assert stream.python("print(kept)").stdout == b"1\n"


def test_cancel_of_code_that_swallows_one_interrupt(stream: Stream) -> None:
    stream.python("kept = 2")
    stream.start(
        "import time\n"
        "try:\n    print('on', flush=True); time.sleep(100)\n"
        "except KeyboardInterrupt:\n    time.sleep(100)\n",
        "python",
    )
    begun(stream)
    stream.send(CANCEL)
    r = stream.finish()
    assert r.exit is not None
    assert (r.exit["reason"], r.exit["state"]) == ("cancelled", "preserved")
    assert stream.python("print(kept)").stdout == b"2\n"


def test_cancel_of_code_that_does_not_stop(stream: Stream) -> None:
    stream.python("kept = 3")
    stream.start(
        "import time\nsaid = False\n"
        "while True:\n"
        "    try:\n"
        "        if not said:\n"
        "            said = True; print('on', flush=True)\n"
        "        time.sleep(100)\n"
        "    except KeyboardInterrupt: pass\n",
        "python",
    )
    begun(stream)
    start = time.monotonic()
    stream.send(CANCEL)
    r = stream.finish()
    assert 0.9 < time.monotonic() - start < 8
    assert r.exit is not None
    assert (r.code, r.exit["reason"], r.exit["state"]) == (137, "cancelled", "lost")
    assert [e["type"] for e in r.events] == ["notice"]
    assert "did not stop when it was cancelled" in r.events[0]["text"]
    told_of_the_loss(stream, "did not stop when it was cancelled")


def test_cancel_though_nobody_reads(stream: Stream) -> None:
    stream.python("kept = 4")
    stream.start("while True: print('x' * 1000)", "python")
    time.sleep(0.5)
    stream.send(CANCEL)
    r = stream.finish()
    assert r.exit is not None
    assert (r.exit["reason"], r.exit["state"]) == ("cancelled", "preserved")
    assert stream.python("print(kept)").stdout == b"4\n"


def test_closing_the_stream_cancels_and_the_next_cell_waits(agent: Agent, stream: Stream) -> None:
    stream.python("kept = 5")
    other = agent.stream()
    other.start("import time\nprint('on', flush=True)\ntime.sleep(100)", "python")
    begun(other)
    other.close()
    # Not refused as busy: the cell before is on its way out, seen by the agent already or not.
    assert stream.python("print(kept)").stdout == b"5\n"


def test_crash(stream: Stream) -> None:
    stream.python("kept = 6")
    r = stream.python(
        "import os, signal\nprint('last words', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)"
    )
    assert r.stdout == b"last words\n"
    assert r.exit is not None
    assert (r.code, r.exit["reason"], r.exit["state"], r.exit["signal"]) == (
        139,
        "signaled",
        "lost",
        11,
    )
    assert r.events[0]["type"] == "notice" and "SIGSEGV" in r.events[0]["text"]
    told_of_the_loss(stream, "SIGSEGV")


def test_os_exit(stream: Stream) -> None:
    r = stream.python("import os\nos.write(1, b'x' * 200_000)\nos._exit(9)")
    assert len(r.stdout) == 200_000
    assert r.exit is not None
    assert (r.code, r.exit["reason"], r.exit["state"]) == (9, "exited", "lost")
    assert "signal" not in r.exit
    told_of_the_loss(stream, "exit status 9")


def test_death_between_cells_is_told_to_the_next(stream: Stream) -> None:
    r = stream.python(
        "import os, signal, threading\nprint(os.getpid())\n"
        "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()"
    )
    pid = int(r.stdout)
    assert r.code == 0
    wait_for(lambda: not alive(pid), "the death")
    r = stream.python("print('new')")
    assert r.stdout == b"new\n" and r.code == 0
    assert len(r.events) == 1 and r.events[0]["type"] == "notice"
    assert "SIGKILL" in r.events[0]["text"] and "gone" in r.events[0]["text"]
    assert stream.python("print(1)").events == []


@needs_cgroups
def test_children_of_a_dead_session(stream: Stream) -> None:
    """What the cell had started under which it died is dead before EXIT; the rest lives on."""
    start = "import subprocess, os\np = subprocess.Popen(['sleep', '4321'])\nprint(p.pid, flush=True)\n"
    kept = int(stream.python(start).stdout)
    own = int(stream.python(start + "os.abort()").stdout)
    assert alive(kept) and not alive(own)
    assert stream.bash(f"kill {kept}").code == 0


def test_output_between_cells_belongs_to_nobody(stream: Stream) -> None:
    stream.python("import threading, time\n" "threading.Timer(0.2, lambda: print('late')).start()")
    time.sleep(0.5)
    assert stream.python("print('mine')").stdout == b"mine\n"


def test_late_writer_does_not_delay_the_end(stream: Stream) -> None:
    start = time.monotonic()
    r = stream.python(
        "import subprocess\np = subprocess.Popen('sleep 3; echo late', shell=True)\nprint(1)"
    )
    assert r.stdout == b"1\n" and time.monotonic() - start < 2.5
    stream.python("p.kill()")


def test_closed_control_channel(stream: Stream) -> None:
    """Code that closes every descriptor breaks its own session, not the sandbox."""
    r = stream.python("import os\nos.closerange(3, 4096)\nprint('closed')")
    assert r.stdout == b"closed\n" or r.exit is not None
    assert r.exit is not None and r.exit["reason"] in ("signaled", "exited")
    assert stream.python("print('works')").stdout == b"works\n"


def test_concurrent_bash_and_python(agent: Agent, stream: Stream) -> None:
    others = [agent.stream() for _ in range(5)]
    for n, s in enumerate(others):
        s.start(f"sleep 0.2; echo {n}")
    assert stream.python("print(sum(range(10)))").stdout == b"45\n"
    for n, s in enumerate(others):
        assert s.finish().stdout == b"%d\n" % n
        s.close()


def test_stderr_is_separate(stream: Stream) -> None:
    stream.start("import os\nos.write(2, b'e')\nos.write(1, b'o')", "python")
    got = {kind: payload for kind, payload in stream.frames()}
    assert got[STDERR] == b"e" and got[STDOUT] == b"o"
