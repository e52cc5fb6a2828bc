"""Kept commands over a WebSocket: both ways, and clients that do not behave."""

import base64
import hashlib
import json
import os
import socket
import struct
from collections.abc import Callable

import pytest

from conftest import SANITIZED, Daemon, wait_for
from kept import OK, base, begin, ended, info, lie, refused, write

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PTY = {"cols": 80, "rows": 24}


class Terminal:
    """A client that can also do what one must not."""

    def __init__(self, daemon: Daemon, sid: str, cid: str, query: str = "", more: bytes = b"") -> None:
        self.sock = socket.create_connection(("127.0.0.1", daemon.port))
        self.sock.settimeout(30)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET {base(sid, cid, 'terminal')}{query} HTTP/1.1\r\nHost: localhost\r\n"
        head += "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
        head += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        self.sock.sendall(head.encode() + more)
        self.buf = b""
        while b"\r\n\r\n" not in self.buf:
            self.buf += self.take()
        head, self.buf = self.buf.split(b"\r\n\r\n", 1)
        self.status = int(head.split()[1])
        if self.status == 101:
            magic = key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            accept = base64.b64encode(hashlib.sha1(magic.encode()).digest())
            assert b"sec-websocket-accept: " + accept.lower() in head.lower()

    def take(self) -> bytes:
        """Bytes that have come."""
        got = self.sock.recv(65536)
        if not got:
            raise EOFError
        return got

    def send(self, kind: int, data: bytes = b"", fin: bool = True) -> None:
        """One masked frame."""
        self.sock.sendall(frame(kind, data, fin))

    def recv(self) -> tuple[int, bytes]:
        """One frame of the daemon."""
        while True:
            if len(self.buf) >= 2:
                n, at = self.buf[1], 2
                assert n < 128, "a server does not mask"
                if n == 126:
                    n, at = int.from_bytes(self.buf[2:4], "big"), 4
                elif n == 127:
                    n, at = int.from_bytes(self.buf[2:10], "big"), 10
                if len(self.buf) >= at + n:
                    kind, data = self.buf[0] & 15, self.buf[at : at + n]
                    assert self.buf[0] & 0x80
                    self.buf = self.buf[at + n :]
                    return kind, data
            self.buf += self.take()

    def until(self, what: bytes) -> bytes:
        """Output, until it has this."""
        out = b""
        while what not in out:
            kind, data = self.recv()
            assert kind == BINARY, (kind, data, out)
            out += data
        return out

    def rest(self) -> tuple[bytes, dict | None, int]:
        """What comes until the end: output, exit event, code of the close."""
        out, told, code = b"", None, 0
        while True:
            try:
                kind, data = self.recv()
            except (EOFError, ConnectionResetError):
                return out, told, code
            if kind == BINARY:
                out += data
            elif kind == TEXT:
                told = json.loads(data)["exit"]
            elif kind == CLOSE:
                code = int.from_bytes(data[:2], "big")
                self.sock.sendall(frame(CLOSE, data[:2]))

    def close(self) -> None:
        """Leaves without a word."""
        self.sock.close()


def frame(kind: int, data: bytes = b"", fin: bool = True, masked: bool = True) -> bytes:
    """A frame of a client."""
    out = bytes([kind | (0x80 if fin else 0)])
    bit = 0x80 if masked else 0
    if len(data) < 126:
        out += bytes([bit | len(data)])
    elif len(data) < 65536:
        out += bytes([bit | 126]) + struct.pack(">H", len(data))
    else:
        out += bytes([bit | 127]) + struct.pack(">Q", len(data))
    if not masked:
        return out + data
    mask = os.urandom(4)
    return out + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data))


def test_bytes_both_ways_and_the_end(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "stty -echo; echo ready; read x; echo got $x; stty size; exit 4", pty=PTY)
    t = Terminal(daemon, sid, cid)
    t.until(b"ready\r\n")
    t.send(TEXT, b'{"resize": {"cols": 120, "rows": 40}}')
    t.send(PING, b"hm")
    assert t.recv() == (PONG, b"hm")
    t.send(BINARY, b"wo", fin=False)
    t.send(0, b"rd\n")
    out, told, code = t.rest()
    assert out == b"got word\r\n40 120\r\n" and code == 1000
    assert told["type"] == "exit" and told["exit_code"] == 4
    assert told["termination_reason"] == "exited"


def test_frames_that_come_with_the_request(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "cat", stdin=True)
    t = Terminal(daemon, sid, cid, more=frame(BINARY, b"early\n") + frame(PING, b"x"))
    seen = {t.recv(), t.recv()}
    assert seen == {(BINARY, b"early\n"), (PONG, b"x")}


def test_it_goes_on_without_the_client(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "while read x; do echo $x; done", stdin=True)
    one = Terminal(daemon, sid, cid)
    one.send(BINARY, b"first\n")
    one.until(b"first\n")
    other = Terminal(daemon, sid, cid)
    assert other.status == 409
    one.close()
    two = Terminal(daemon, sid, cid, "?stdout=2")
    assert two.until(b"\n") == b"rst\n"
    two.send(CLOSE, struct.pack(">H", 1000))
    assert two.rest()[2] == 1000
    assert write(daemon, sid, cid, b"last\n", "?close=1").status_code == 204
    assert ended(daemon, sid, cid)["termination_reason"] == "exited"
    out, told, code = Terminal(daemon, sid, cid).rest()
    assert (out, told["exit_code"], code) == (b"first\nlast\n", 0, 1000)


def test_one_without_input(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 0.5; echo x")
    t = Terminal(daemon, sid, cid)
    t.send(BINARY, bytes(60000))
    assert t.rest()[0] == b"x\n"


def test_much_of_it(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "cat", stdin=True)
    t = Terminal(daemon, sid, cid)
    data = os.urandom(60_000)
    got = b""
    for _ in range(20):
        t.send(BINARY, data)
        while len(got) < len(data):
            got += t.recv()[1]
        assert got == data
        got = b""


@pytest.mark.parametrize("left_out", ["Upgrade", "Connection", "Sec-WebSocket-Version"])
def test_requests_that_are_no_handshake(daemon: Daemon, left_out: str) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600", stdin=True)
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    }
    for change in ({left_out: "x"}, {left_out: ""}):
        r = daemon.http.get(base(sid, cid, "terminal"), headers={**headers, **change})
        assert refused(r) == (426, "upgrade_required", None)
        assert r.headers["sec-websocket-version"] == "13"
    for bad in ("", "x", "A" * 24):
        h = {**headers, "Sec-WebSocket-Key": bad}
        r = daemon.http.get(base(sid, cid, "terminal"), headers=h)
        assert refused(r) == (400, "invalid_request", "Sec-WebSocket-Key")
    r = daemon.http.get(base(sid, "none", "terminal"), headers=headers)
    assert refused(r) == (404, "command_not_found", None)
    r = daemon.http.get(base(sid, cid, "terminal"), headers={**headers, "Origin": "http://evil.example"})
    assert refused(r) == (403, "foreign_origin", None)


@pytest.mark.parametrize(
    "wire,code",
    [
        (frame(BINARY, b"x", masked=False), 1002),
        (frame(3, b"x"), 1002),
        (b"\xc2\x80" + bytes(4), 1002),
        (frame(0, b"x"), 1002),
        (frame(PING, bytes(126)), 1002),
        (frame(BINARY, bytes(65537)), 1009),
        (b"\x82\xff" + struct.pack(">Q", 1 << 62) + bytes(4), 1009),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"hello"), 1008),
        (frame(TEXT, b'{"resize": {"cols": 0, "rows": 1}}'), 1008),
        (frame(TEXT, b'{"resize": {"cols": 1001, "rows": 1}}'), 1008),
        (frame(TEXT, b'{"resize": 7}'), 1008),
        (frame(TEXT, b'{"resize": {"cols": 80, "rows": 24}, "more": [%s0]}' % (b"0," * 20)), 1008),
    ],
    ids=lambda v: str(v) if isinstance(v, int) else v[:4].hex(),
)
def test_frames_that_are_none(daemon: Daemon, wire: bytes, code: int) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600", pty=PTY)
    t = Terminal(daemon, sid, cid)
    t.sock.sendall(wire)
    assert t.rest()[2] == code
    assert info(daemon, sid, cid)["state"] == "running"


def test_half_frames_and_leaving_at_each_step(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "cat", stdin=True)
    wire = frame(BINARY, b"x" * 200)
    before = daemon.fds()
    for n in (0, 1, 2, 3, 5, 8, 100, len(wire)):
        t = Terminal(daemon, sid, cid)
        t.sock.sendall(wire[:n])
        t.close()
    for n in (10, 100, 200):  # in the middle of the handshake
        with socket.create_connection(("127.0.0.1", daemon.port)) as s:
            head = f"GET {base(sid, cid, 'terminal')} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            s.sendall(head.encode()[:n])
    wait_for(lambda: daemon.fds() <= before + 2)
    assert Terminal(daemon, sid, cid).status == 101


@pytest.mark.bounds
def test_a_client_that_never_reads(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "head -c 40000000 /dev/zero; sleep 600", stdin=True)
    before = daemon.rss_kib()
    t = Terminal(daemon, sid, cid)
    wait_for(lambda: info(daemon, sid, cid)["stdout"]["end"] == 40_000_000, 30)
    assert daemon.rss_kib() - before < (40_000 if SANITIZED else 4_000)
    t.close()


@pytest.mark.bounds
def test_floods(daemon: Daemon) -> None:
    """Of pings whose answers are not read, and of bytes that the command does not take."""
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600", stdin=True)
    before = daemon.rss_kib()
    for wire in (frame(PING, bytes(125)) * 500, frame(BINARY, bytes(60000))):
        t = Terminal(daemon, sid, cid)
        assert t.status == 101
        t.sock.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 << 20:
                sent += t.sock.send(wire)
        assert daemon.rss_kib() - before < (40_000 if SANITIZED else 4_000)
        t.close()
    assert daemon.exec(sid, "echo x")[0]["data"] == "x"


@pytest.mark.parametrize("how", ["delete", "poweroff"])
def test_the_sandbox_ends(daemon: Daemon, how: str) -> None:
    sid = daemon.create()
    t = Terminal(daemon, sid, begin(daemon, sid, "sleep 600", pty=PTY))
    if how == "delete":
        daemon.http.delete(f"/v1/sandboxes/{sid}")
    else:
        daemon.exec(sid, "#fake:poweroff")
    _, told, code = t.rest()
    assert code == 1000 and told["exit_code"] == -1 and told["state"] == "lost"
    assert told["termination_reason"] == ("closed" if how == "delete" else "vm_ended")


def test_the_daemon_stops(start: Callable[..., Daemon]) -> None:
    """With terminals open, one of which is full: the fixture looks at how it ends."""
    d = start()
    sid = d.create()
    idle = Terminal(d, sid, begin(d, sid, "sleep 600", pty=PTY))
    full = Terminal(d, sid, begin(d, sid, "cat /dev/zero", stdin=True))
    assert idle.status == full.status == 101
    assert d.stop() == 0


@pytest.mark.parametrize("bad", [(0x83, "{}"), (0x86, "{}"), (0x84, '{"code": "busy"}'), (0x8C, "abcd")])
def test_an_agent_that_lies(daemon: Daemon, bad: tuple) -> None:
    sid = daemon.create()
    lie(daemon, sid, OK, (0x81, "some"), bad)
    out, told, code = Terminal(daemon, sid, "a").rest()
    assert (out, told["termination_reason"], code) == (b"some", "agent_error", 1000)
