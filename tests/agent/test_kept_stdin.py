# SPDX-License-Identifier: Apache-2.0
"""Standard input of kept commands: one stream at a time writes, and it outlives each of them."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from typing import Iterator

import pytest
from agent_client import EXEC, STDIN, STDIN_END, Closed
from conftest import Agent, wait_for
from kept_client import ask, attach, entries, forget, refused, run, start

WINDOW = 65536


@pytest.fixture(autouse=True)
def forget_all(agent: Agent) -> Iterator[None]:
    """Leaves none behind in the agent that the tests share."""
    yield
    forget(agent, *entries(agent))


def attach_refused(agent: Agent, keep: str) -> str:
    """Why it may not write."""
    return refused(agent, {"op": "attach", "id": keep, "stdin": True})


def test_from_stream_to_stream(agent: Agent) -> None:
    """The close of a stream does not close the input; STDIN_END does, for good."""
    keep, a = start(agent, "cat; echo end", stdin=True)
    a.stream.send(STDIN, b"one ")
    while a.acked < 4:
        a.step()
    a.close()
    wait_for(lambda: attach_works(agent, keep), "the first stream to be gone")
    b = attach(agent, keep, stdin=True)
    b.stream.send(STDIN, b"two ")
    b.stream.send(STDIN_END)
    end = b.finish()
    assert b.stdout == b"one two end\n" and end["exit_code"] == 0 and b.acked == 4


def attach_works(agent: Agent, keep: str) -> bool:
    """Whether the input is free."""
    with agent.stream() as s:
        s.send(0x15, {"op": "attach", "id": keep, "stdin": True, "stdout": -1, "stderr": -1})
        return s.recv()[0] == 0x89


def test_one_at_a_time(agent: Agent) -> None:
    keep, a = start(agent, "cat", stdin=True)
    assert attach_refused(agent, keep) == "busy"
    reader = attach(agent, keep)
    a.close()
    wait_for(lambda: attach_works(agent, keep), "the first stream to be gone")
    b = attach(agent, keep, stdin=True)
    assert attach_refused(agent, keep) == "busy"
    b.stream.send(STDIN, b"x")
    reader.until(b"x")
    b.stream.send(STDIN_END)
    b.finish()
    assert reader.finish()["exit_code"] == 0


def test_what_is_refused(agent: Agent) -> None:
    keep, a = start(agent, "echo on; sleep 1000")
    assert attach_refused(agent, keep) == "bad_request"
    keep, a = start(agent, "cat; sleep 1000", stdin=True)
    a.stream.send(STDIN_END)
    a.close()
    wait_for(lambda: attach_refused(agent, keep) == "closed", "the end of the input")
    keep = run(agent, "true", stdin=True)
    assert attach_refused(agent, keep) == "ended"


@pytest.mark.parametrize("size", [1, 65536, 3_000_000])
def test_bytes_and_acknowledgements(agent: Agent, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]
    keep, a = start(agent, "sha256sum; cat", stdin=True)
    sent = 0
    while sent < size:
        while sent - a.acked == WINDOW:
            a.step()
        part = data[sent : sent + min(30_000, WINDOW - (sent - a.acked))]
        a.stream.send(STDIN, part)
        sent += len(part)
    a.stream.send(STDIN_END)
    a.finish()
    assert a.acked == size
    assert a.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_back_pressure(agent: Agent) -> None:
    """A command that does not read: one window beyond its pipe, and not a byte more."""
    keep, a = start(agent, "echo on; sleep 1000", stdin=True)
    a.until(b"on\n")
    a.stream.send(STDIN, b"x" * WINDOW)
    while a.acked < WINDOW:
        a.step()  # the pipe
    a.stream.send(STDIN, b"x" * WINDOW)
    a.stream.send(STDIN, b"x")
    with pytest.raises((Closed, AssertionError)):
        while True:
            a.step()
    assert entries(agent)[keep]["state"] == "running"


def test_what_a_writer_left(agent: Agent) -> None:
    """All that was sent goes to the command, also when the stream is closed before it is taken, with
    its end; nobody else may write meanwhile."""
    keep, a = start(agent, "echo on; while [ ! -e go ]; do sleep 0.02; done; cat | wc -c", stdin=True)
    a.until(b"on\n")
    a.stream.send(STDIN, b"x" * WINDOW)
    while a.acked < WINDOW:
        a.step()
    a.stream.send(STDIN, b"x" * 50_000)
    a.close()
    time.sleep(0.2)
    assert attach_refused(agent, keep) == "busy"
    (agent.home / "go").touch()
    wait_for(lambda: attach_works(agent, keep), "the rest to be taken")
    (agent.home / "go").unlink()
    b = attach(agent, keep, stdin=True)
    b.stream.send(STDIN, b"y" * WINDOW)
    b.stream.send(STDIN_END)
    b.finish()
    assert b.stdout == b"on\n%d\n" % (2 * WINDOW + 50_000)


def test_end_behind_what_was_left(agent: Agent) -> None:
    keep, a = start(agent, "while [ ! -e go2 ]; do sleep 0.02; done; wc -c", stdin=True)
    a.stream.send(STDIN, b"x" * WINDOW)
    while a.acked < WINDOW:
        a.step()
    a.stream.send(STDIN, b"x" * WINDOW)
    a.stream.send(STDIN_END)
    a.close()
    (agent.home / "go2").touch()
    b = attach(agent, keep)
    b.finish()
    (agent.home / "go2").unlink()
    assert b.stdout == b"%d\n" % (2 * WINDOW)


def test_after_the_end(agent: Agent) -> None:
    """What comes for one that has ended is taken and thrown away, also while its output is read."""
    keep, a = start(agent, "head -c 5000000 /dev/zero", stdin=True)
    wait_for(lambda: entries(agent)[keep]["state"] == "ended", "its end")
    for _ in range(5):
        sent = a.acked
        a.stream.send(STDIN, b"x" * 60_000)
        while a.acked < sent + 60_000 and a.exit is None:
            a.step()
    a.stream.send(STDIN_END)
    a.finish()
    assert len(a.stdout) == 5_000_000
    assert a.stream.bash("echo x").stdout == b"x\n"


def test_in_one_segment(agent: Agent) -> None:
    """A host that sends all at once, and goes away."""
    request = json.dumps({"language": "bash", "stdin": True, "keep": "segment"}).encode()
    parts = [(EXEC, request), (6, b"cat; echo end"), (7, b""), (STDIN, b"a\n"), (STDIN_END, b"")]
    with agent.stream() as s:
        s.raw(b"".join(struct.pack("<IB3x", len(p), kind) + p for kind, p in parts))
        s.recv()
    wait_for(lambda: entries(agent)["segment"]["state"] == "ended", "its end")
    b = attach(agent, "segment")
    b.finish()
    assert b.stdout == b"a\nend\n"
    assert ask(agent, "forget", "segment") == {}
