"""Requests whose last bytes come at the same moment: what they take of memory, and of the loop's time."""

import json
import re
import select
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from conftest import SANITIZED, Daemon, all_read

KEYS = ("pk_ann_1f0c", "pk_bob_77e2")
# 16384 paths: as many values as an entry may have, in every entry that there may be.
LONG = [{"host": f"a{i}.test", "paths": [f"/{j}" for j in range(64)]} for i in range(256)]


def most_kib(d: Daemon) -> int:
    """Resident memory, at its most."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{d.proc.pid}/status").read_text())[1])


def answer(s: socket.socket) -> tuple[int, dict]:
    """Of one request: status and body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += s.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    while len(body) < length:
        body += s.recv(65536)
    return int(head[9:12]), json.loads(body)


class Burst:
    """Requests that lack their last byte, until go()."""

    def __init__(self, stack: ExitStack, d: Daemon, n: int, path: str, body: bytes, key: str = "") -> None:
        more = f"Authorization: Bearer {key}\r\n" if key else ""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {len(body)}\r\n\r\n"
        self.last = body[-1:]
        self.socks = []
        for _ in range(n):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", d.port), timeout=60))
            s.sendall(head.encode() + body[:-1])
            self.socks.append(s)

    def go(self) -> None:
        """All of them end."""
        for s in self.socks:
            s.sendall(self.last)

    def answered(self) -> int:
        """How many have been, by now."""
        return len(select.select(self.socks, [], [], 0)[0])

    def answers(self) -> list[tuple[int, dict]]:
        """Of all."""
        return [answer(s) for s in self.socks]


@pytest.mark.bounds
@pytest.mark.parametrize("path", ["/v1/policy/test", "/v1/sandboxes"])
@pytest.mark.parametrize(("n", "values"), [(40, 65000), (200, 21000)])
def test_bodies_that_end_at_once(start: Callable[..., Daemon], path: str, n: int, values: int) -> None:
    """Each of them takes many times its length once it is read: one at a time, and none longer than that."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "16"})
    d.templates_ready()
    body = b'{"host":"a.test","allow":[' + b"{}," * (values - 1) + b"{}]}"
    if path == "/v1/sandboxes":
        body = b'{"egress":' + body.replace(b'"host":"a.test",', b"") + b"}"
    with ExitStack() as stack:
        burst = Burst(stack, d, n, path, body)
        all_read(d)
        before = most_kib(d)
        burst.go()
        answers = burst.answers()
        assert {code for code, _ in answers} == {400}
        if not SANITIZED:
            assert most_kib(d) - before < 50 * 1024


@pytest.mark.bounds
def test_creates_that_are_refused_keep_nothing(start: Callable[..., Daemon]) -> None:
    d = start(args=["--max-sandboxes", "1"])
    d.create()
    body = json.dumps({"egress": {"allow": LONG}}, separators=(",", ":")).encode()
    with ExitStack() as stack:
        burst = Burst(stack, d, 60, "/v1/sandboxes", body)
        all_read(d)
        before, ticks = most_kib(d), d.cpu_ticks()
        burst.go()
        assert {(code, o["code"]) for code, o in burst.answers()} == {(429, "too_many_sandboxes")}
        if not SANITIZED:
            assert most_kib(d) - before < 50 * 1024
            # They are refused before what they ask for is looked at.
            assert d.cpu_ticks() - ticks < 60


@pytest.mark.bounds
def test_a_burst_does_not_stop_the_loop(start: Callable[..., Daemon]) -> None:
    """Who asks for little is answered in the middle of it."""
    d = start(env={"PODFLARE_API_KEYS": ",".join(KEYS)})
    d.http.headers["Authorization"] = f"Bearer {KEYS[0]}"
    d.templates_ready()
    body = json.dumps({"egress": {"allow": [*LONG[1:], "10.0.0.1"]}}, separators=(",", ":")).encode()
    little = json.dumps({"memory_mib": 1}).encode()
    with ExitStack() as stack:
        burst = Burst(stack, d, 100, "/v1/sandboxes", body, KEYS[0])
        other = Burst(stack, d, 1, "/v1/sandboxes", little, KEYS[1])
        health = stack.enter_context(socket.create_connection(("127.0.0.1", d.port), timeout=60))
        all_read(d)
        burst.go()
        health.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        other.go()
        assert health.recv(100).startswith(b"HTTP/1.1 200 ")
        assert burst.answered() < 50
        assert other.answers()[0][0] == 400
        assert burst.answered() < 50
        answers = burst.answers()
        assert {(code, o["field"]) for code, o in answers} == {(400, "egress.allow")}
