# SPDX-License-Identifier: Apache-2.0
"""Kept commands from the host's side: starts, attachments with the offsets they count, requests."""

from __future__ import annotations

import itertools
import json
import os
import struct
import time
from pathlib import Path
from typing import Any

from agent_client import (
    COMMAND,
    ERROR,
    EVENT,
    EXEC,
    EXIT,
    OK,
    STDERR,
    STDIN_ACK,
    STDOUT,
    Stream,
)
from conftest import Agent

numbers = itertools.count()


def new_id() -> str:
    """A name that no other test uses."""
    return f"id-{next(numbers)}"


class Attached:
    """A stream that is attached: what it got, and where that stands in the logs."""

    def __init__(self, stream: Stream) -> None:
        """The request has been sent."""
        self.stream = stream
        self.out: dict[int, bytes] = {STDOUT: b"", STDERR: b""}
        self.at: dict[int, int] = {}
        self.places: list[tuple[int, int]] = []
        self.acked = 0
        self.pid = 0
        self.exit: dict[str, Any] | None = None
        self.step()
        assert len(self.places) == 1
        self.began = dict(self.at)

    def step(self) -> None:
        """Takes one frame."""
        kind, payload = self.stream.recv()
        if kind in (STDOUT, STDERR):
            assert payload
            self.out[kind] += payload
            self.at[kind] += len(payload)
        elif kind == EVENT:
            event = json.loads(payload)
            assert set(event) == {"type", "pid", "stdout", "stderr"} and event["type"] == "position"
            self.pid = event["pid"]
            self.at = {STDOUT: event["stdout"], STDERR: event["stderr"]}
            self.places.append((event["stdout"], event["stderr"]))
        elif kind == STDIN_ACK:
            self.acked += struct.unpack("<I", payload)[0]
        else:
            assert kind == EXIT, (hex(kind), payload[:300])
            self.exit = json.loads(payload)

    def until(self, what: bytes, kind: int = STDOUT) -> None:
        """Reads until the output has that."""
        while what not in self.out[kind]:
            assert self.exit is None, (self.exit, self.out)
            self.step()

    def finish(self) -> dict[str, Any]:
        """Reads to the end; EXIT."""
        while self.exit is None:
            self.step()
        return self.exit

    @property
    def stdout(self) -> bytes:
        """What came on stdout."""
        return self.out[STDOUT]

    @property
    def stderr(self) -> bytes:
        """What came on stderr."""
        return self.out[STDERR]

    def close(self) -> None:
        """Detaches."""
        self.stream.close()


def start(agent: Agent, code: str, keep: str | None = None, **extra: Any) -> tuple[str, Attached]:
    """Starts bash code; its id and the stream that started it."""
    keep = keep or new_id()
    s = agent.stream()
    s.start(code, "bash", keep=keep, **extra)
    return keep, Attached(s)


def run(agent: Agent, code: str, **extra: Any) -> str:
    """Runs bash code to its end; its id."""
    keep, a = start(agent, code, **extra)
    a.finish()
    a.close()
    return keep


def attach(agent: Agent, keep: str, **extra: Any) -> Attached:
    """A new stream, attached."""
    s = agent.stream()
    s.send(COMMAND, {"op": "attach", "id": keep, **extra})
    return Attached(s)


def ask(agent: Agent, op: str, keep: str | None = None, **extra: Any) -> dict[str, Any]:
    """The answer to a request: the object of OK or ERROR."""
    with agent.stream() as s:
        return s.ask(COMMAND, {"op": op, **({"id": keep} if keep else {}), **extra})


def refused(agent: Agent, request: dict[str, Any], kind: int = COMMAND) -> str:
    """The code of the ERROR; the stream is still good."""
    with agent.stream() as s:
        s.send(kind, request)
        if kind == EXEC:
            s.body(b"")
        got, payload = s.recv()
        assert got == ERROR, (hex(got), payload[:300])
        assert "repl" in s.status()
        return str(json.loads(payload)["code"])


def entries(agent: Agent) -> dict[str, dict[str, Any]]:
    """The list, by id."""
    with agent.stream() as s:
        s.send(COMMAND, {"op": "list"})
        return {c["id"]: c for c in s.recv_json(OK)["commands"]}


def rests(agent: Agent) -> bool:
    """Whether the agent does next to nothing for half a second: neither sleeps often nor spins."""

    def busy() -> float:
        fields = Path(f"/proc/{agent.proc.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = agent.switches(), busy()
    time.sleep(0.5)
    return agent.switches() - before[0] < 5 and busy() - before[1] < 0.1


def forget(agent: Agent, *ids: str) -> None:
    """Forgets them."""
    for keep in ids:
        assert ask(agent, "forget", keep) == {}
