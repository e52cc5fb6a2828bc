# SPDX-License-Identifier: Apache-2.0
"""A REPL that misbehaves: the agent ends it, says so, and goes on."""

from __future__ import annotations

import time
from typing import Callable

import pytest
from agent_client import STDOUT, WARM
from conftest import Agent, wait_for

MakeAgent = Callable[[str], Agent]

BROKEN = {
    "unknown type": "send(0x42, b'')",
    "exec": "send(0x01, {'id': 1})",
    "second ready": "send(READY, {})",
    "oversize": "ctl.sendall(struct.pack('<IB3x', 65537, EVENT))",
    "reserved bytes": "ctl.sendall(b'\\x00\\x00\\x00\\x00\\x89\\x01\\x00\\x00')",
    "garbage": "ctl.sendall(os.urandom(7) + b'\\xff' * 5000)",
    "exit that is no JSON": "send(EXIT, b'{')",
    "exit that is no object": "send(EXIT, b'[1]')",
    "exit without code": "send(EXIT, {'state': 'preserved'})",
    "exit code of a wrong type": "send(EXIT, {'exit_code': '0'})",
    "exit code out of range": "send(EXIT, {'exit_code': 256})",
    "negative exit code": "send(EXIT, {'exit_code': -1})",
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_frames_in_a_cell(stub_agent: MakeAgent, what: str) -> None:
    agent = stub_agent(
        f"""
send(READY, {{}})
code = cell()
os.write(1, b"before\\n")
{BROKEN[what]}
time.sleep(100)
"""
    )
    with agent.stream() as s:
        r = s.python("x")
        assert r.exit is not None
        assert (r.exit["reason"], r.exit["state"], r.code) == ("signaled", "lost", 137)
        assert r.stdout == b"before\n"
        assert "ended by the agent" in r.events[-1]["text"]
        assert s.bash("echo fine").stdout == b"fine\n"


def test_exit_between_cells(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        """
send(READY, {})
if os.path.exists("once"):
    cell(); send(EXIT, {"exit_code": 0})
open("once", "w").close()
send(EXIT, {"exit_code": 0})
time.sleep(100)
"""
    )
    with agent.stream() as s:
        wait_for(lambda: (agent.home / "once").exists(), "the first process")
        r = s.python("x")
        assert r.code == 0
        assert len(r.events) == 1 and "not its turn" in r.events[0]["text"]


def test_a_session_that_does_not_start(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        """
sys.stderr.write("the reason is this\\n")
if not os.path.exists("repaired"):
    sys.exit(3)
send(READY, {})
while True:
    cell(); send(EXIT, {"exit_code": 0})
"""
    )
    with agent.stream() as s:
        wait_for(lambda: s.status()["repl"] == "absent", "the failure")
        r = s.python("x")
        assert r.error is not None and r.error["code"] == "io_error"
        assert "exit status 3" in r.error["message"] and "the reason is this" in r.error["message"]
        s.bash("touch repaired")
        assert s.python("x").code == 0


def test_closes_its_control_channel(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        """
send(READY, {})
cell()
ctl.close()
time.sleep(100)
"""
    )
    with agent.stream() as s:
        r = s.python("x")
        assert r.exit is not None and r.exit["state"] == "lost"
        assert "control channel" in r.events[-1]["text"]


def test_exit_then_death(stub_agent: MakeAgent) -> None:
    """Frames sent before the death still count: this cell ended well, the next is told."""
    agent = stub_agent(
        """
send(READY, {})
cell()
os.write(1, b"x" * 100000)
send(EVENT, {"type": "notice", "text": "hello"})
os.write(1, b"y")
send(EXIT, {"exit_code": 4})
os._exit(1)
"""
    )
    with agent.stream() as s:
        for n in range(4):
            r = s.python("x")
            assert r.code == 4, r
            assert r.stdout == b"x" * 100000 + b"y"
            texts = [e["text"] for e in r.events]
            assert texts[-1] == "hello"
            if n:
                assert len(texts) == 2 and "exit status 1" in texts[0]
            time.sleep(0.3)  # what comes before the agent sees the death dies with it


def test_event_flood_is_back_pressured(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        """
send(READY, {})
cell()
for n in range(2000):
    send(EVENT, {"type": "notice", "text": "x" * 60000})
send(EXIT, {"exit_code": 0})
cell()
"""
    )
    with agent.stream() as s:
        s.bash("true")
        before = agent.rss_kib()
        s.start("x", "python")
        time.sleep(1)
        assert agent.rss_kib() - before < 4096
        r = s.finish()
        assert r.code == 0 and len(r.events) == 2000


def test_event_flood_between_cells_is_dropped(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        """
send(READY, {})
for n in range(3000):
    send(EVENT, {"type": "notice", "text": "x" * 1000})
open("flooded", "w").close()
cell()
send(EXIT, {"exit_code": 0})
cell()
"""
    )
    with agent.stream() as s:
        wait_for(lambda: (agent.home / "flooded").exists(), "the flood")
        time.sleep(0.2)
        assert s.python("x").events == []


def test_ignores_interrupt_while_the_code_is_sent(stub_agent: MakeAgent) -> None:
    """A REPL that never reads the code: cancel must still end it."""
    agent = stub_agent(
        """
signal.signal(signal.SIGINT, signal.SIG_IGN)
send(READY, {})
time.sleep(100)
"""
    )
    with agent.stream() as s:
        wait_for(lambda: s.status()["repl"] == "ready", "the start")
        s.start("#" * 3_000_000, "python")
        s.send(2)
        r = s.finish()
        assert r.exit is not None
        assert (r.exit["reason"], r.exit["state"], r.code) == ("cancelled", "lost", 137)


def test_cancel_while_it_waits_for_the_start(stub_agent: MakeAgent) -> None:
    agent = stub_agent("time.sleep(100)")
    with agent.stream() as s:
        s.start("x", "python")
        s.send(2)
        r = s.finish()
        assert r.exit is not None
        assert (r.exit["reason"], r.exit["state"], r.code) == ("cancelled", "preserved", 130)
        with agent.stream() as other:
            other.start("x", "python")
            other.close()
        s.start("y", "python")
        s.send(2)
        assert s.finish().exit is not None


def test_child_that_holds_the_channel(stub_agent: MakeAgent) -> None:
    """The end of the REPL is seen by its process, not by EOF of a socket that others hold."""
    agent = stub_agent(
        """
send(READY, {})
cell()
if os.fork() == 0:
    os.setsid()
    while True:
        try: send(EVENT, {"type": "notice", "text": "from the child"})
        except OSError: os._exit(0)
os.write(1, b"bye")
os._exit(0)
"""
    )
    with agent.stream() as s:
        r = s.python("x")
        assert r.exit is not None and r.exit["state"] == "lost"
        assert s.bash("echo fine").stdout == b"fine\n"


def test_status_while_starting(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        "time.sleep(0.5)\nsend(READY, {})\ncell()\nsend(EXIT, {'exit_code': 0})\ncell()"
    )
    with agent.stream() as s:
        assert s.status()["repl"] == "starting"
        s.start("x", "python")
        assert s.finish().code == 0


def test_output_before_ready_belongs_to_nobody(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        """
os.write(1, b"greeting")
send(READY, {})
cell()
os.write(1, b"cell")
send(EXIT, {"exit_code": 0})
cell()
"""
    )
    with agent.stream() as s:
        s.start("x", "python")
        frames = list(s.frames())
        assert [p for k, p in frames if k == STDOUT] == [b"cell"]


def test_interrupt_that_crosses_the_end(stub_agent: MakeAgent) -> None:
    """After a cancel the agent asks whether the interrupt is used up before the next cell begins."""
    agent = stub_agent(
        """
signal.signal(signal.SIGINT, lambda s, f: None)
send(READY, {})
cell()
os.write(1, b"on\\n")
signal.pause()
send(EXIT, {"exit_code": 0})
kind, payload = recv()
assert kind == 3, kind
time.sleep(0.5)
send(0x85, payload)
kind, payload = recv()
assert kind == 1, kind
cell()
os.write(1, b"second")
send(EXIT, {"exit_code": 0})
kind, payload = recv()
assert kind == 1, kind
cell()
send(EXIT, {"exit_code": 7})
cell()
"""
    )
    with agent.stream() as s:
        s.start("x", "python")
        assert s.recv() == (STDOUT, b"on\n")
        s.send(2)
        r = s.finish()
        assert r.exit is not None and r.exit["reason"] == "cancelled"
        assert s.status()["repl"] == "ready"
        began = time.monotonic()
        r = s.python("y")
        assert (r.stdout, r.code, r.events) == (b"second", 0, [])
        assert time.monotonic() - began > 0.3
        assert s.python("z").code == 7  # nothing is asked without an interrupt


def test_pong_out_of_turn(stub_agent: MakeAgent) -> None:
    agent = stub_agent("send(READY, {})\ncell()\nsend(0x85, b'')\ntime.sleep(100)")
    with agent.stream() as s:
        r = s.python("x")
        assert r.exit is not None and r.exit["state"] == "lost"


def test_warm(stub_agent: MakeAgent) -> None:
    """Waits for the start, is passed on, and its answer comes back; cells wait meanwhile."""
    agent = stub_agent(
        """
time.sleep(0.3)
send(READY, {})
assert recv() == (11, b"{}")
time.sleep(0.5)
send(OK, {})
cell(); os.write(1, b"ran"); send(EXIT, {"exit_code": 0})
assert recv()[0] == 11
send(0x84, {"code": "io_error", "message": "no such module"})
assert recv()[0] == 11
os._exit(3)
"""
    )
    with agent.stream() as s, agent.stream() as other:
        s.send(WARM, {})
        wait_for(lambda: other.status()["repl"] == "busy", "the warming")
        assert other.ask(WARM)["code"] == "busy"
        r = other.python("x")
        assert (r.stdout, r.code) == (b"ran", 0)
        assert s.recv_json(0x86) == {}
        error = s.ask(WARM)
        assert error["code"] == "io_error" and "no such module" in error["message"]
        error = s.ask(WARM)
        assert error["code"] == "io_error" and "exit status 3" in error["message"]


def test_warm_beside_a_cell_and_without_a_session(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        """
if os.path.exists("broken"): sys.exit("the reason")
send(READY, {})
cell(); os.write(1, b"on"); time.sleep(0.5); open("broken", "w"); os._exit(0)
"""
    )
    with agent.stream() as s, agent.stream() as other:
        s.start("x", "python")
        assert s.recv() == (STDOUT, b"on")
        assert other.ask(WARM)["code"] == "busy"
        s.finish()
        error = other.ask(WARM)
        assert error["code"] == "io_error" and "the reason" in error["message"]


def test_warm_whose_host_has_gone(stub_agent: MakeAgent) -> None:
    agent = stub_agent(
        """
send(READY, {})
assert recv() == (11, b"{}")
while not os.path.exists("gone"): time.sleep(0.01)
time.sleep(0.2)
send(OK, {})
cell(); send(EXIT, {"exit_code": 4}); cell()
"""
    )
    with agent.stream() as s:
        wait_for(lambda: s.status()["repl"] == "ready", "the session")
        with agent.stream() as host:
            host.send(WARM, {})
            wait_for(lambda: s.status()["repl"] == "busy", "the warming")
        (agent.home / "gone").touch()
        assert s.python("x").code == 4
