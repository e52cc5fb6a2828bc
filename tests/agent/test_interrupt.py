# SPDX-License-Identifier: Apache-2.0
"""INTERRUPT: one SIGINT to what runs on this stream, and to nothing else."""

from __future__ import annotations

import time

import pytest
from agent_client import CANCEL, EXEC, INTERRUPT, STDOUT, Stream, begun
from conftest import Agent
from test_bash import alive, needs_cgroups


def interrupted(stream: Stream) -> None:
    """The end of a call because of an interrupt."""
    stream.send(INTERRUPT)
    r = stream.finish()
    assert r.exit is not None
    assert (r.code, r.exit["reason"], r.exit["state"]) == (130, "interrupted", "preserved")


def test_bash(stream: Stream) -> None:
    stream.start("echo on; sleep 100; echo never")
    begun(stream)
    interrupted(stream)


def test_bash_that_goes_on(stream: Stream) -> None:
    """It is not repeated, and nothing is killed."""
    stream.start("trap 'echo int' INT; echo on; for i in 1 2 3 4; do sleep 0.7; done; exit 5")
    begun(stream)
    stream.send(INTERRUPT)
    r = stream.finish()
    assert r.exit is not None
    assert (r.stdout, r.code, r.exit["reason"]) == (b"int\n", 5, "exited")


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(100)",
        "while True: pass",
        "import subprocess; subprocess.run(['sleep', '100'])",
        "import threading; threading.Lock().acquire() and threading.Event().wait()",
        "import asyncio\nawait asyncio.sleep(100)",
    ],
)
def test_python(stream: Stream, code: str) -> None:
    stream.python("kept = 1")
    stream.start("print('on', flush=True)\n" + code, "python")
    begun(stream)
    interrupted(stream)
    r = stream.python("print(kept)")
    assert (r.stdout, r.code, r.events) == (b"1\n", 0, [])


def test_python_that_goes_on(stream: Stream) -> None:
    stream.start(
        "import time\ntry:\n    print('on', flush=True); time.sleep(100)\n"
        "except KeyboardInterrupt:\n    print('caught')\ntime.sleep(2.5)\nprint('end')",
        "python",
    )
    begun(stream)
    stream.send(INTERRUPT)
    r = stream.finish()
    assert r.exit is not None
    assert (r.stdout, r.code, r.exit["reason"]) == (b"caught\nend\n", 0, "exited")


@needs_cgroups
def test_hits_what_the_cell_started_and_nothing_older(stream: Stream) -> None:
    """Children in another session as well; not those of earlier cells, in whatever group they are."""
    r = stream.python(
        "import subprocess\np = subprocess.Popen(['sleep', '4346'])\nprint(p.pid, flush=True)"
    )
    older = int(r.stdout)
    stream.start(
        "q = subprocess.Popen(['sleep', '4347'], start_new_session=True)\nprint('on', flush=True)\n"
        # Not q.wait(): interrupted just behind waitpid(2), Python forgets the status it got.
        "import time; time.sleep(1000)",
        "python",
    )
    begun(stream)
    interrupted(stream)
    assert stream.python("print(q.wait(), p.poll())").stdout == b"-2 None\n"
    assert alive(older)
    stream.python("p.kill(); p.wait()")


def test_does_not_hit_the_next(stream: Stream) -> None:
    stream.python("import time")
    for n in range(40):
        stream.start(f"time.sleep({n % 4 / 1000})", "python")
        stream.send(INTERRUPT)
        r = stream.finish()
        assert r.exit is not None and r.exit["reason"] in ("interrupted", "exited")
        r = stream.python("for _ in range(2000): pass\nprint('whole')")
        assert (r.stdout, r.code) == (b"whole\n", 0)


def test_flood(stream: Stream) -> None:
    """Many at once are one: the session bears them, whenever they come."""
    stream.python("import time\nkept = 2")
    for n in range(30):
        stream.start(f"print('on', flush=True)\ntime.sleep({n % 7 / 1000})", "python")
        for _ in range(50):
            stream.send(INTERRUPT)
        r = stream.finish()
        assert r.exit is not None and r.exit["state"] == "preserved"
    assert stream.python("print(kept)").stdout == b"2\n"


def test_with_nothing_to_interrupt(stream: Stream) -> None:
    stream.send(INTERRUPT)
    assert stream.bash("echo fine").stdout == b"fine\n"
    assert stream.put("x", b"1")["size"] == 1


@pytest.mark.parametrize("language", ["bash", "python"])
def test_before_the_code_is_complete(stream: Stream, language: str) -> None:
    stream.send(EXEC, {"language": language})
    stream.send(6, b"never")
    stream.send(INTERRUPT)
    stream.send(7)
    r = stream.finish()
    assert r.exit is not None and (r.code, r.exit["reason"]) == (130, "interrupted")
    assert r.stdout == r.stderr == b""


def test_of_a_cell_that_waits(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.start("print('never')", "python")
        s.send(INTERRUPT)
        r = s.finish()
        assert r.exit is not None and r.exit["reason"] in ("interrupted", "exited")
        assert s.python("print(1)").stdout == b"1\n"


def test_then_cancel(stream: Stream) -> None:
    """Harder means can follow; the reason is that of the hardest."""
    stream.start(
        "import time\ntry: print('on', flush=True); time.sleep(100)\nexcept KeyboardInterrupt: pass\n"
        "time.sleep(100)",
        "python",
    )
    begun(stream)
    stream.send(INTERRUPT)
    time.sleep(0.5)
    stream.send(CANCEL)
    r = stream.finish()
    assert r.exit is not None and (r.exit["reason"], r.exit["state"]) == ("cancelled", "preserved")
    stream.start("trap '' INT; echo on; while :; do sleep 1; done")
    assert stream.recv() == (STDOUT, b"on\n")
    stream.send(INTERRUPT)
    stream.send(CANCEL)
    r = stream.finish()
    assert r.exit is not None and r.exit["reason"] == "cancelled"
