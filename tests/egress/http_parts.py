# SPDX-License-Identifier: Apache-2.0
"""HTTP for the tests, byte by byte: a server that says exactly what a test wants, and a client that
shows exactly what came."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Optional

from conftest import SANITIZED, WAIT, Proxy, recv_exactly, until
from servers import Tcp

MIB = 1 << 20
# More than the proxy's buffers and those of the sockets could hold, and what a connection may add
# to the proxy's memory: buffers of a few times 64 KiB and what libraries need, with room. The
# sanitizers keep what was freed: there the plain build tells (the mark jail).
BIG = 96 * MIB
BOUND = (4096 if SANITIZED else 8) * MIB

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Message:
    """What requests and replies have in common: fields as they came, and bodies in chunks."""

    socket: socket.socket
    fields: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        return [v for k, v in self.fields if k.lower() == name.lower()]

    def one(self, name: str) -> Optional[str]:
        values = self.all(name)
        assert len(values) < 2, (name, values)
        return values[0] if values else None

    def read_chunk(self) -> bytes:
        """The next chunk of a chunked body; empty: the last."""
        size = b""
        while not size.endswith(b"\r\n"):
            size += recv_exactly(self.socket, 1)
        data = recv_exactly(self.socket, int(size, 16))
        assert recv_exactly(self.socket, 2) == b"\r\n"
        return data


class Request(Message):
    """One that a server got: its first line, fields as they came, how long its head is, and its body
    (or what there is of it: see Upstream.read_body)."""

    def __init__(self, s: socket.socket) -> None:
        self.socket = s
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            more = s.recv(1)
            if not more:
                raise EOFError
            head += more
        self.size = len(head)
        lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, self.version = lines[0].split(" ")
        pairs = (x.split(":", 1) for x in lines[1:] if x)
        self.fields = [(k, v.removeprefix(" ")) for k, v in pairs]
        self.body = b""

    def read_body(self) -> bytes:
        if self.one("transfer-encoding") == "chunked":
            while chunk := self.read_chunk():
                self.body += chunk
        else:
            self.body = recv_exactly(self.socket, int(self.one("content-length") or 0))
        return self.body


def answer_ok(r: Request) -> None:
    r.read_body()
    r.socket.sendall(OK if r.method != "HEAD" else OK[:-2])


class Upstream(Tcp):
    """An HTTP/1.1 server, over TLS with a certificate (a pair of files)."""

    def __init__(
        self,
        answer: Callable[[Request], Any] = answer_ok,
        cert: Optional[tuple[Path, Path]] = None,
        **where: Any,
    ) -> None:
        super().__init__(self.speak, **where)
        self.answer = answer
        self.requests: list[Request] = []
        self.names: list[Optional[str]] = []
        self.alpn: list[Optional[str]] = []
        self.ended = threading.Event()  # some connection of it has ended
        self.context: Optional[ssl.SSLContext] = None
        if cert:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(*cert)
            self.context.set_alpn_protocols(["h2", "http/1.1"])
            self.context.sni_callback = lambda s, name, c: self.names.append(name)

    def speak(self, s: socket.socket) -> None:
        try:
            if self.context:
                s = self.context.wrap_socket(s, server_side=True)
                self.open.append(s)
                self.alpn.append(s.selected_alpn_protocol())
            while True:
                r = Request(s)
                self.requests.append(r)
                self.answer(r)
        except EOFError:
            pass
        finally:
            self.ended.set()
            s.close()


class Reply(Message):
    """What a client got."""

    def __init__(self, s: socket.socket, head_only: bool = False) -> None:
        self.socket = s
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += recv_exactly(s, 1)
        lines = head.decode("latin-1").split("\r\n")
        self.version, status, self.phrase = lines[0].split(" ", 2)
        self.status = int(status)
        self.fields = [tuple(x.split(": ", 1)) for x in lines[1:] if x]
        self.body = b""
        if not head_only and self.status >= 200 and self.status not in (204, 304):
            self.read_body()

    def read_body(self) -> bytes:
        length = self.one("content-length")
        if self.one("transfer-encoding") == "chunked":
            while chunk := self.read_chunk():
                self.body += chunk
        elif length is not None:
            self.body = recv_exactly(self.socket, int(length))
        else:
            while data := self.socket.recv(65536):
                self.body += data
        return self.body

    @property
    def denial(self) -> dict[str, Any]:
        """What a denial says; everything that every denial has is checked."""
        assert self.one("content-type") == "application/json"
        told = json.loads(self.body)
        assert told["code"] == "egress_denied"
        assert set(told) == {"code", "host", "port", "reason", "detail", "hint"}
        assert told["detail"] and told["hint"]
        return told


def head(method: str, url: str, *fields: str, host: Optional[str] = None) -> bytes:
    """A request's head. Host is that of the URL unless it is said."""
    if host is None:
        host = url.split("/")[2]
    lines = [f"{method} {url} HTTP/1.1", f"Host: {host}", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def get(s: socket.socket, url: str, *fields: str, method: str = "GET", body: bytes = b"") -> Reply:
    """One request on an open connection."""
    if body:
        fields += (f"Content-Length: {len(body)}",)
    s.sendall(head(method, url, *fields) + body)
    return Reply(s, head_only=method == "HEAD")


def once(proxy: Proxy, url: str, *fields: str, **how: Any) -> Reply:
    """One request on a connection of its own."""
    with proxy.stream() as s:
        return get(s, url, *fields, **how)


@contextlib.contextmanager
def read(proxy: Proxy) -> Iterator[list[dict[str, Any]]]:
    """Reads records as the daemon does, for tests that make more than the socket takes; gives the
    list that they go into."""
    stop, poke = socket.socketpair()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            while proxy.ctl in select.select([proxy.ctl, stop], [], [])[0]:
                proxy.receive()
        except (OSError, EOFError) as e:
            failed.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield proxy.seen
    finally:
        poke.close()
        thread.join(WAIT)
        stop.close()
    assert not failed, failed


def ends(proxy: Proxy, n: int) -> None:
    """Waits until n requests that were allowed have been told to be over."""
    until(lambda: sum(m["type"] == "end" for m in proxy.seen) >= n)


def closed(s: socket.socket) -> bool:
    """Whether the other side ends the connection now."""
    s.settimeout(WAIT)
    try:
        return s.recv(1) == b""
    except ConnectionResetError:
        return True


def memory(proxy: Proxy) -> int:
    """Bytes of memory of its own that the proxy has at most had."""
    for line in Path(f"/proc/{proxy.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
