# SPDX-License-Identifier: Apache-2.0
"""Events that are longer than a frame: their pieces are passed on as they come, or not at all."""

from __future__ import annotations

import fcntl
import json
import socket
import sys
import termios
import time
from typing import Callable

import pytest
from agent_client import CANCEL, EVENT, EVENT_PART, EXIT, STDOUT, Stream
from conftest import Agent

MakeAgent = Callable[[str], Agent]

PIECES = """
PART = 0x8b
def event(size, end=True):
    text = json.dumps({"type": "result", "data": {"text/plain": "x" * size}}).encode()
    pieces = [text[n : n + 65536] for n in range(0, len(text), 65536)]
    for piece in pieces[:-1]: send(PART, piece); os.write(1, b".")
    if end: send(EVENT, pieces[-1])
send(READY, {})
"""


def test_whole(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        PIECES
        + """
for size in (65000, 65537, 400000, (8 << 20) - 100):
    cell(); event(size); event(10); send(EXIT, {"exit_code": 0})
cell()
"""
    )
    with agent.stream() as s:
        before = agent.rss_kib()
        for size in (65000, 65537, 400000, (8 << 20) - 100):
            r = s.python("x")
            assert [len(e["data"]["text/plain"]) for e in r.events] == [size, 10]
            assert r.code == 0 and r.stdout == b"." * ((size + 46) // 65536)
        assert not agent.grown(before + 2048)


def test_output_before_the_first_piece(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        PIECES
        + """
cell(); os.write(1, b"before" * 20000); send(PART, b'{"type":'); os.write(1, b"in")
send(EVENT, b'"x"}'); send(EXIT, {"exit_code": 0}); cell()
"""
    )
    with agent.stream() as s:
        s.start("x", "python")
        got, seen = b"", []
        for kind, payload in s.frames():
            if kind == STDOUT:
                got += payload
            elif kind in (EVENT, EVENT_PART):
                seen.append((kind, payload))
                assert got.startswith(b"before" * 20000)
        assert seen == [(EVENT_PART, b'{"type":'), (EVENT, b'"x"}')] and got.endswith(b"in")


def test_nobody_reads(stub_agent: MakeAgent) -> None:
    """Back-pressure holds between the pieces."""
    agent = stub_agent(PIECES + "cell(); event(6 << 20); send(EXIT, {'exit_code': 0}); cell()")
    with agent.stream() as s:
        s.bash("true")
        before = agent.rss_kib()
        s.start("x", "python")
        time.sleep(0.5)
        assert not agent.grown(before + 1024)
        assert len(s.finish().events[0]["data"]["text/plain"]) == 6 << 20


def test_taken_back(stub_agent: MakeAgent) -> None:
    """By the session, which was interrupted in the middle; the next event is whole."""
    agent = stub_agent(
        PIECES + "cell(); event(200000, end=False); send(PART); event(5); send(EXIT, {'exit_code': 0}); cell()"
    )
    with agent.stream() as s:
        r = s.python("x")
        assert [len(e["data"]["text/plain"]) for e in r.events] == [5] and r.code == 0


def test_death_in_the_middle(stub_agent: MakeAgent) -> None:
    """The pieces are taken back before the notice."""
    agent = stub_agent(PIECES + "cell(); event(200000, end=False); os._exit(3)")
    with agent.stream() as s:
        s.start("x", "python")
        kinds = [(kind, len(payload) > 0) for kind, payload in s.frames() if kind != STDOUT]
        assert kinds == [(EVENT_PART, True)] * 3 + [(EVENT_PART, False), (EVENT, True), (EXIT, True)]


def wait_until_full(s: Stream) -> None:
    """The agent has sent as much as goes in, and waits."""
    assert s.sock.recv(1, socket.MSG_PEEK)
    before, now = -1, 0
    while now != before:
        time.sleep(0.3)
        n = fcntl.ioctl(s.sock, termios.FIONREAD, bytes(4))
        before, now = now, int.from_bytes(n, sys.byteorder)


def test_cancel_though_nobody_reads(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        PIECES
        + """
signal.signal(signal.SIGINT, lambda n, f: None)
cell(); event(4 << 20); event(5); send(EXIT, {"exit_code": 130})
recv(); send(0x85); cell(); event(7); send(EXIT, {"exit_code": 0}); cell()
"""
    )
    with agent.stream() as s:
        s.start("x", "python")
        wait_until_full(s)
        s.send(CANCEL)
        r = s.finish()
        assert r.exit is not None and (r.exit["reason"], r.exit["state"]) == ("cancelled", "preserved")
        assert all(len(e["data"]["text/plain"]) == 5 for e in r.events)
        assert len(s.python("y").events[0]["data"]["text/plain"]) == 7


@pytest.mark.parametrize(
    "fault",
    [
        "send(PART, b'x'); send(EXIT, {'exit_code': 0})",
        "send(PART, b'x'); send(0x85)",
        "send(PART, b'x'); send(OK, {})",
        "[send(PART, b'x' * 65536) for _ in range(129)]",
        "[send(PART, b'x' * 65536) for _ in range(128)]; send(EVENT, b'x')",
    ],
)
def test_faults(stub_agent: MakeAgent, fault: str) -> None:
    agent = stub_agent(PIECES + f"cell(); {fault}; time.sleep(100)")
    with agent.stream() as s:
        r = s.python("x")
        assert r.exit is not None and r.exit["state"] == "lost"
        assert "ended by the agent" in r.events[-1]["text"] and "event" in r.events[-1]["text"]


def test_between_cells(stub_agent: MakeAgent) -> None:
    """Dropped like other events, and no cell gets the end of one."""
    agent = stub_agent(
        PIECES
        + """
cell(); send(EXIT, {"exit_code": 0})
event(200000, end=False); open("sent", "w").close()
cell(); send(EVENT, b"the end of something"); event(5); send(EXIT, {"exit_code": 0}); cell()
"""
    )
    with agent.stream() as s:
        assert s.python("x").code == 0
        while s.get("sent")[1] is None:
            time.sleep(0.05)
        s.start("y", "python")
        events = [payload for kind, payload in s.frames() if kind in (EVENT, EVENT_PART)]
        assert [json.loads(e)["data"]["text/plain"] for e in events] == ["x" * 5]
