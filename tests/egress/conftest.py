# SPDX-License-Identifier: Apache-2.0
"""A daemon's part for podflare-egress: starts one with a control socket, gives it policies and
streams, reads its records. What it reaches are servers on loopback that the tests start.

The binary is $PODFLARE_EGRESS, by default podflare-egress in $PODFLARE_BUILD or build/. One that was
built with AddressSanitizer is recognised: it has no jail, and what the sanitizers report fails the
test."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

import pytest

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from servers import Dns, Tcp, TlsServer, make_ca  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("PODFLARE_BUILD", ROOT / "build")).resolve()
PROXY = os.environ.get("PODFLARE_EGRESS", str(BUILD / "podflare-egress"))
SANITIZED = os.path.exists(PROXY) and b"__asan_init" in Path(PROXY).read_bytes()
WAIT = 30.0  # how long anything may take before a test gives up; nothing is measured by it

plain_only = pytest.mark.skipif(SANITIZED, reason="a build with sanitizers has no jail")

_F_ADD_SEALS, _SEALS = 1033, 2 | 4 | 8  # shrink, grow, write


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "plain: needs the build without sanitizers")
    config.addinivalue_line("markers", "jail: is run with the plain build too, in its jail")


def memfd(content: bytes, sealed: bool = True) -> int:
    fd = os.memfd_create("policy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    if sealed:
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    return fd


class Proxy:
    """A running podflare-egress."""

    def __init__(
        self,
        tmp: Path,
        args: tuple[str, ...] = (),
        room: int = 0,
        before: tuple[str, ...] = (),
        program: str = PROXY,
        env: Optional[dict[str, str]] = None,
    ) -> None:
        """room: bytes of records that may wait to be read; before: what starts it; program: another
        one, which takes these variables."""
        self.ctl, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if room:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        self.ctl.settimeout(WAIT)
        self.log = tmp / f"egress-{time.monotonic_ns()}.log"
        self.seen: list[dict[str, Any]] = []
        self.last_stream = self.last_serial = 0
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*before, program, *args],
                preexec_fn=lambda: os.dup2(theirs.fileno(), 3),
                pass_fds=(3,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "detect_leaks=1"), **(env or {})},
            )
        theirs.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    # control socket

    def send(self, message: Any, fds: tuple[int, ...] = ()) -> None:
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        socket.send_fds(self.ctl, [data], list(fds))

    def receive(self) -> dict[str, Any]:
        data = self.ctl.recv(70000)
        if not data:
            raise EOFError(f"the proxy ended: {self.log.read_text()}")
        message = json.loads(data)
        self.seen.append(message)
        return message

    def wait(self, kind: str, **members: Any) -> dict[str, Any]:
        """The next message of that type with those members; those before it are in seen."""
        while True:
            m = self.receive()
            if m["type"] == kind and all(m.get(k) == v for k, v in members.items()):
                return m

    def decision(self, **members: Any) -> dict[str, Any]:
        return self.wait("decision", **members)

    def end(self, **members: Any) -> dict[str, Any]:
        return self.wait("end", **members)

    def silent(self) -> bool:
        """Nothing was told that was not read. A test of the socket is answered in order."""
        self.last_serial += 1
        self.send({"type": "test", "serial": self.last_serial, "host": "silent.test", "port": 443})
        first = self.receive()
        return first["type"] == "test" and first["serial"] == self.last_serial

    # policies

    def put(self, document: Any, sealed: bool = True) -> dict[str, Any]:
        """A policy as it is; the reply."""
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.last_serial += 1
        fd = memfd(content, sealed)
        try:
            self.send({"type": "policy", "serial": self.last_serial}, (fd,))
        finally:
            os.close(fd)
        reply = self.wait("policy")
        assert reply["serial"] == self.last_serial
        return reply

    def policy(self, allow: list[Any], **members: Any) -> None:
        """One that is taken: loopback is allowed, names of tests are there."""
        reply = self.put(policy(allow, **members))
        assert reply["error"] is None, reply

    def test(self, host: str, port: int = 443, **members: Any) -> dict[str, Any]:
        self.last_serial += 1
        message = {"type": "test", "serial": self.last_serial, "host": host, "port": port}
        self.send({**message, **members})
        return self.wait("test", serial=self.last_serial)

    # streams

    def stream(self, exec_id: Optional[str] = None) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(WAIT)
        self.last_stream += 1
        self.send(
            {"type": "stream", "id": self.last_stream, "exec": exec_id}, (theirs.fileno(),)
        )
        theirs.close()
        return ours

    def connect(self, host: str, port: int, exec_id: Optional[str] = None) -> "Reply":
        """A CONNECT as clients write it."""
        s = self.stream(exec_id)
        s.sendall(f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        return read_reply(s)

    def raw(self, head: bytes) -> "Reply":
        s = self.stream()
        s.sendall(head)
        return read_reply(s)

    def socks(self, request: bytes) -> tuple[int, socket.socket]:
        """Greeting, a request after it; the code of the reply."""
        s = self.stream()
        s.sendall(b"\x05\x01\x00")
        assert recv_exactly(s, 2) == b"\x05\x00"
        s.sendall(request)
        reply = recv_exactly(s, 10)
        assert reply[0] == 5 and reply[2:] == b"\0\x01" + bytes(6)
        return reply[1], s

    def socks_name(self, host: bytes, port: int) -> tuple[int, socket.socket]:
        return self.socks(b"\x05\x01\x00\x03" + bytes([len(host)]) + host + port.to_bytes(2, "big"))

    # end

    def close(self) -> None:
        """Ends it as the daemon does; it has to end by itself, without a word on stderr."""
        self.ctl.close()
        try:
            status = self.process.wait(WAIT)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            self.process.wait()
            raise
        text = self.log.read_text(errors="replace")
        assert "Sanitizer" not in text and "runtime error" not in text, text
        assert status == 0, (status, text)


class Reply:
    """Of HTTP: status, phrase, fields, body; and the socket behind it."""

    def __init__(self, head: bytes, s: socket.socket) -> None:
        lines = head.decode().split("\r\n")
        version, status, self.phrase = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        self.status = int(status)
        self.fields = {k.lower(): v.strip() for k, v in (x.split(":", 1) for x in lines[1:] if x)}
        self.socket = s
        self.body = b""

    @property
    def denial(self) -> dict[str, Any]:
        """What a denial says; everything that every denial has is checked."""
        assert self.fields["content-type"] == "application/json"
        assert self.fields["connection"] == "close"
        told = json.loads(self.body)
        assert told["code"] == "egress_denied"
        assert set(told) == {"code", "host", "port", "reason", "detail", "hint"}
        assert told["detail"] and told["hint"]
        assert told["reason"] in self.phrase
        assert self.socket.recv(1) == b""  # and then it is closed
        return told


def recv_exactly(s: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        if not more:
            raise EOFError(f"{len(data)} of {n} bytes: {data!r}")
        data += more
    return data


def recv_all(s: socket.socket) -> bytes:
    data = b""
    while more := s.recv(65536):
        data += more
    return data


def read_reply(s: socket.socket) -> Reply:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += recv_exactly(s, 1)
    reply = Reply(head, s)
    reply.body = recv_exactly(s, int(reply.fields.get("content-length", 0)))
    return reply


def policy(allow: list[Any], **members: Any) -> dict[str, Any]:
    return {
        "sandbox": "sb_test",
        "allow": allow,
        "groups": {},
        "ceiling": None,
        "inject": {},
        "ca": None,
        "allow_ranges": ["127.0.0.0/8"],
        "resolve": {"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]},
        "resolvers": None,
        "upstream_ca_pem": None,
        "limits": {},
        **members,
    }


def until(true: Callable[[], bool]) -> None:
    """Waits for something that has to come."""
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "it did not come"
        select.select([], [], [], 0.01)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    p = Proxy(tmp_path)
    yield p
    p.close()


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca.pem and a server's certificate for the names of the tests."""
    return make_ca(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def echo() -> Iterator[Tcp]:
    with Tcp() as server:
        yield server


@pytest.fixture
def tls(ca: Path) -> Iterator[TlsServer]:
    with TlsServer(ca) as server:
        yield server


@pytest.fixture
def dns() -> Iterator[Dns]:
    with Dns() as server:
        yield server
