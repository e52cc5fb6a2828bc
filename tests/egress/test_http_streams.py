# SPDX-License-Identifier: Apache-2.0
"""Bodies: they pass as they come, in both directions, whatever their size, and nobody's slowness
fills the proxy's memory."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from pathlib import Path

import pytest
from conftest import WAIT, Proxy, recv_exactly, until
from http_parts import BIG, BOUND, MIB, OK, Reply, Request, Upstream, closed, get, head, memory

pytestmark = pytest.mark.jail

PIECE = bytes(range(256)) * 4096  # 1 MiB


def test_events_come_as_they_come(proxy: Proxy) -> None:
    """Server-sent events: the next one is sent only when the one before has arrived."""
    arrived = threading.Semaphore(0)

    def answer(r: Request) -> None:
        if r.target == "/next":
            r.socket.sendall(OK)
            return
        r.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                         b"Transfer-Encoding: chunked\r\n\r\n")  # fmt: skip
        for i in range(20):
            assert arrived.acquire(timeout=WAIT)
            event = f"data: {i}\n\n".encode()
            r.socket.sendall(f"{len(event):x}\r\n".encode() + event + b"\r\n")
        r.socket.sendall(b"0\r\n\r\n")

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        s.sendall(head("GET", f"http://a.test:{up.port}/"))
        r = Reply(s, head_only=True)
        assert r.one("content-type") == "text/event-stream"
        for i in range(20):
            arrived.release()
            assert r.read_chunk() == f"data: {i}\n\n".encode()
        assert r.read_chunk() == b""
        assert get(s, f"http://a.test:{up.port}/next").body == b"ok"  # the connection goes on


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_upload_passes_as_it_comes(proxy: Proxy, framing: str) -> None:
    """Each piece is sent only when the one before has arrived."""
    arrived = threading.Semaphore(0)

    def answer(r: Request) -> None:
        for _ in range(10):
            piece = r.read_chunk() if framing == "chunked" else recv_exactly(r.socket, 100)
            assert piece == bytes(100)
            arrived.release()
        assert framing == "length" or r.read_chunk() == b""
        r.socket.sendall(OK)

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        field = "Transfer-Encoding: chunked" if framing == "chunked" else "Content-Length: 1000"
        s.sendall(head("POST", f"http://a.test:{up.port}/", field))
        for _ in range(10):
            s.sendall(b"64\r\n" + bytes(100) + b"\r\n" if framing == "chunked" else bytes(100))
            assert arrived.acquire(timeout=WAIT)
        if framing == "chunked":
            s.sendall(b"0\r\n\r\n")
        assert Reply(s).body == b"ok"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_big_upload(proxy: Proxy, framing: str) -> None:
    sums: list[str] = []

    def answer(r: Request) -> None:
        digest = hashlib.sha256()
        if framing == "chunked":
            while chunk := r.read_chunk():
                digest.update(chunk)
        else:
            left = int(r.one("content-length") or 0)
            while left:
                data = r.socket.recv(min(left, 1 << 18))
                digest.update(data)
                left -= len(data)
        sums.append(digest.hexdigest())
        r.socket.sendall(OK)

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        before = memory(proxy)
        field = "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {BIG}"
        s.sendall(head("POST", f"http://a.test:{up.port}/", field))
        digest = hashlib.sha256()
        for _ in range(BIG // MIB):
            digest.update(PIECE)
            s.sendall(b"100000\r\n" + PIECE + b"\r\n" if framing == "chunked" else PIECE)
        if framing == "chunked":
            s.sendall(b"0\r\n\r\n")
        assert Reply(s).body == b"ok"
        assert sums == [digest.hexdigest()]
        assert memory(proxy) - before < BOUND
        proxy.decision()
        bytes_up = proxy.end()["bytes_up"] - up.requests[0].size
        if framing == "length":
            assert bytes_up == BIG
        else:  # with the sizes of chunks
            assert BIG < bytes_up < BIG + BIG // 100


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_big_download(proxy: Proxy, framing: str) -> None:
    def answer(r: Request) -> None:
        field = ""
        if framing != "close":
            length = f"Content-Length: {BIG}\r\n"
            field = length if framing == "length" else "Transfer-Encoding: chunked\r\n"
        r.socket.sendall(f"HTTP/1.1 200 OK\r\n{field}\r\n".encode())
        for _ in range(BIG // MIB):
            r.socket.sendall(b"100000\r\n" + PIECE + b"\r\n" if framing == "chunked" else PIECE)
        if framing == "chunked":
            r.socket.sendall(b"0\r\n\r\n")
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        before = memory(proxy)
        s.sendall(head("GET", f"http://a.test:{up.port}/"))
        r = Reply(s, head_only=True)
        digest, size = hashlib.sha256(), 0
        if framing == "length":
            assert r.one("content-length") == str(BIG)
            while size < BIG:
                data = s.recv(1 << 18)
                digest.update(data)
                size += len(data)
        else:
            while data := r.read_chunk():
                digest.update(data)
                size += len(data)
        assert size == BIG
        expected = hashlib.sha256()
        for _ in range(BIG // MIB):
            expected.update(PIECE)
        assert digest.digest() == expected.digest()
        assert memory(proxy) - before < BOUND


def test_slow_reader(proxy: Proxy) -> None:
    """The client does not read: the server can send no more than buffers hold, and nothing is lost
    when the client goes on."""
    sent = [0]
    stuck = threading.Event()

    def answer(r: Request) -> None:
        r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n".encode())
        r.socket.settimeout(1)
        data = memoryview(PIECE)
        while sent[0] < BIG:
            try:
                sent[0] += r.socket.send(data[sent[0] % MIB :])
            except TimeoutError:
                stuck.set()

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        before = memory(proxy)
        s.sendall(head("GET", f"http://a.test:{up.port}/"))
        assert stuck.wait(WAIT)
        assert sent[0] < BIG // 2
        assert memory(proxy) - before < BOUND
        r = Reply(s, head_only=True)
        assert r.status == 200
        for _ in range(BIG // MIB):
            assert recv_exactly(s, MIB) == PIECE
        assert memory(proxy) - before < BOUND


def test_slow_server(proxy: Proxy) -> None:
    """The server does not read: the client can send no more than buffers hold."""
    go = threading.Event()

    def answer(r: Request) -> None:
        assert go.wait(WAIT)
        for _ in range(BIG // MIB):
            assert recv_exactly(r.socket, MIB) == PIECE
        r.socket.sendall(OK)

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        before = memory(proxy)
        s.sendall(head("PUT", f"http://a.test:{up.port}/", f"Content-Length: {BIG}"))
        sent, data = 0, memoryview(PIECE)
        s.settimeout(1)
        with pytest.raises(TimeoutError):
            while sent < BIG:
                sent += s.send(data[sent % MIB :])
        assert sent < BIG // 2
        assert memory(proxy) - before < BOUND
        go.set()
        s.settimeout(WAIT)
        while sent < BIG:
            sent += s.send(data[sent % MIB :])
        assert Reply(s).body == b"ok"


def test_others_are_served_while_one_is_stuck(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        if r.target == "/big":
            r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n".encode())
            r.socket.sendall(bytes(BIG))
        r.socket.sendall(OK)

    with Upstream(answer) as up, proxy.stream() as stuck, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        stuck.sendall(head("GET", f"http://a.test:{up.port}/big"))
        Reply(stuck, head_only=True)
        for _ in range(20):
            assert get(s, f"http://a.test:{up.port}/").body == b"ok"


def test_continue(proxy: Proxy) -> None:
    """A client that waits for 100 Continue gets it from us, once it is allowed."""
    with Upstream() as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        fields = ("Content-Length: 3", "Expect: 100-continue")
        s.sendall(head("PUT", f"http://a.test:{up.port}/", *fields))
        assert Reply(s).status == 100
        s.sendall(b"abc")
        assert Reply(s).body == b"ok"
        assert up.requests[0].body == b"abc" and up.requests[0].one("expect") is None


@pytest.mark.parametrize("status", [413, 302])
def test_answer_before_the_upload_ends(proxy: Proxy, status: int) -> None:
    """The server has heard enough, and closes: its side first, or what it has said could be lost on the
    way with what it has not read (RFC 9112, 9.6)."""

    def answer(r: Request) -> None:
        r.socket.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno".encode())
        r.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while r.socket.recv(1 << 16):
                pass
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        size = 8 * MIB
        s.sendall(head("POST", f"http://a.test:{up.port}/", f"Content-Length: {size}"))
        s.sendall(bytes(size))
        r = Reply(s)
        assert (r.status, r.body) == (status, b"no")


def test_answer_while_the_upload_goes_on(proxy: Proxy) -> None:
    """An early 200 is no reason to stop: the server goes on reading."""
    got: list[bytes] = []

    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        got.append(r.read_body())
        r.socket.sendall(b"ok")

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        assert get(s, f"http://a.test:{up.port}/", method="POST", body=PIECE).body == b"ok"
        assert got == [PIECE]


def test_nobody_listens(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    proxy.policy([f"a.test:{port}"])
    for size in (0, 3, MIB, BIG):
        with proxy.stream() as s:
            s.sendall(head("POST", f"http://a.test:{port}/", f"Content-Length: {size}"))
            s.sendall(bytes(min(size, MIB)))  # the rest of the last is never sent
            r = Reply(s)
            assert r.status == 502
            assert r.denial["reason"] == "upstream" and "refused" in r.denial["detail"]
        proxy.end(why="upstream")


def test_nobody_answers(proxy: Proxy) -> None:
    """Not even to the first packet: the queue of the listener is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = []
        for _ in range(4):
            s = socket.socket()
            s.setblocking(False)
            s.connect_ex(("127.0.0.1", port))
            waiting.append(s)
        proxy.policy([f"a.test:{port}"])
        with proxy.stream() as s:
            r = get(s, f"http://a.test:{port}/")
            assert r.status == 504 and r.denial["reason"] == "upstream", r.body
        for s in waiting:
            s.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"a" * 100000,
        b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
    ],
    ids=["ssh", "nothing", "status", "101", "long", "many", "lengths", "negative", "nul"],
)
def test_answers_that_are_none(proxy: Proxy, answer: bytes) -> None:
    def serve(r: Request) -> None:
        r.socket.sendall(answer)
        raise EOFError

    with Upstream(serve) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        r = get(s, f"http://a.test:{up.port}/")
        assert r.status == 502 and r.denial["reason"] == "upstream"
        assert proxy.decision(verdict="deny")["reason"] == "upstream"
        assert proxy.end()["why"] == "upstream"


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_answer_that_breaks_off(proxy: Proxy, framing: str) -> None:
    """The client must not take it for the whole."""

    def answer(r: Request) -> None:
        if framing == "length":
            r.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        else:
            r.socket.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome")
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        s.sendall(head("GET", f"http://a.test:{up.port}/"))
        with pytest.raises((EOFError, ConnectionResetError)):
            Reply(s)
        assert proxy.end()["why"] == "upstream"


def test_new_policy_cuts(proxy: Proxy) -> None:
    """An answer under way breaks off; one that has not begun is a denial; what goes on being
    allowed goes on."""

    def answer(r: Request) -> None:
        if r.target == "/begun":
            r.socket.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        assert r.socket.recv(1) == b""
        raise EOFError

    with Upstream(answer) as up, Upstream() as other:
        proxy.policy([f"a.test:{up.port}", f"b.test:{other.port}"])
        with proxy.stream() as begun, proxy.stream() as waits, proxy.stream() as stays:
            begun.sendall(head("GET", f"http://a.test:{up.port}/begun"))
            assert Reply(begun, head_only=True).read_chunk() == b"a"
            waits.sendall(head("GET", f"http://a.test:{up.port}/waits"))
            assert get(stays, f"http://b.test:{other.port}/").body == b"ok"
            until(lambda: len(up.requests) == 2)
            proxy.policy([f"b.test:{other.port}"])
            assert closed(begun)
            r = Reply(waits)
            assert r.status == 403 and r.denial["reason"] == "policy_changed"
            assert get(stays, f"http://b.test:{other.port}/").body == b"ok"
            assert get(stays, f"http://a.test:{up.port}/").denial["reason"] == "not_allowed"
        assert up.ended.wait(WAIT)


def test_new_policy_cuts_an_upload(proxy: Proxy) -> None:
    """The client hears it in the middle of what it sends."""

    def answer(r: Request) -> None:
        assert recv_exactly(r.socket, 5) == b"begun"
        assert r.socket.recv(1) == b""
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        fields = ("Content-Length: 100000", "Expect: 100-continue")
        s.sendall(head("PUT", f"http://a.test:{up.port}/", *fields))
        assert Reply(s).status == 100
        s.sendall(b"begun")
        until(lambda: len(up.requests) == 1)
        proxy.policy([])
        r = Reply(s)
        assert r.status == 403 and r.denial["reason"] == "policy_changed" and closed(s)
        assert up.ended.wait(WAIT)


def test_answered_upload_is_not_read_for_ever(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        s.sendall(head("POST", f"http://a.test:{up.port}/", "Transfer-Encoding: chunked"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(20000):
                s.sendall(b"100000\r\n" + PIECE + b"\r\n")


# The limits that a request is cut by while the guest says nothing, and None: a new policy.
CUTS = [("idle", {"idle_s": 1}), ("total", {"total_s": 1}), ("policy_changed", {})]


def cut(proxy: Proxy, why: str) -> None:
    """A new policy, if it is that; the end is told while the guest has done nothing, and then there
    is room for another connection."""
    if why == "policy_changed":
        proxy.policy(["b.test:1"], limits={"connections": 1})
    told = [m for m in proxy.seen if m["type"] == "end"] or [proxy.end()]  # ahead of the reply
    assert [m["why"] for m in told] == [why]
    assert proxy.connect("b.test", 1).denial["reason"] == "upstream"


@pytest.mark.parametrize(("why", "limits"), CUTS)
@pytest.mark.parametrize("status", [200, 413])
def test_cut_with_an_answer_before_the_upload_ends(
    proxy: Proxy, status: int, why: str, limits: dict[str, int]
) -> None:
    """The answer waits for the rest of the upload, which does not come."""

    def answer(r: Request) -> None:
        r.socket.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok".encode())
        with contextlib.suppress(OSError):
            while r.socket.recv(1 << 16):
                pass
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        limits = {**limits, "connections": 1}
        proxy.policy([f"a.test:{up.port}", "b.test:1"], limits=limits)
        s.sendall(head("POST", f"http://a.test:{up.port}/", "Content-Length: 1000") + b"abc")
        until(lambda: len(up.requests) == 1)
        cut(proxy, why)
        assert up.ended.wait(WAIT)
        r = Reply(s)
        assert r.status == 403 and r.denial["reason"] == why and closed(s)


@pytest.mark.parametrize(("why", "limits"), CUTS)
def test_cut_while_the_guest_does_not_read(
    proxy: Proxy, why: str, limits: dict[str, int]
) -> None:
    def answer(r: Request) -> None:
        with contextlib.suppress(OSError):
            r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n".encode())
            r.socket.sendall(bytes(BIG))
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        limits = {**limits, "connections": 1}
        proxy.policy([f"a.test:{up.port}", "b.test:1"], limits=limits)
        s.sendall(head("GET", f"http://a.test:{up.port}/"))
        assert Reply(s, head_only=True).status == 200
        cut(proxy, why)
        assert up.ended.wait(WAIT)
        with pytest.raises((EOFError, ConnectionResetError)):  # it is not the whole
            recv_exactly(s, BIG)


def test_upload_that_is_dropped_is_not_idle(proxy: Proxy) -> None:
    """The server has heard enough, the client needs longer than idle_s to be through."""

    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\nno")
        r.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while r.socket.recv(1 << 16):
                pass
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], limits={"idle_s": 1})
        s.sendall(head("POST", f"http://a.test:{up.port}/", "Content-Length: 10"))
        for _ in range(10):
            time.sleep(0.3)
            s.sendall(b"x")
        r = Reply(s)
        assert (r.status, r.body) == (413, b"no")


def test_limit_of_bytes(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n".encode())
        r.socket.sendall(bytes(BIG))

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], limits={"bytes": 4 * MIB})
        s.sendall(head("GET", f"http://a.test:{up.port}/"))
        assert Reply(s, head_only=True).status == 200
        size = 0
        try:
            while data := s.recv(65536):
                size += len(data)
        except ConnectionResetError:
            pass
        assert 0 < size <= 5 * MIB
        assert proxy.end()["why"] == "bytes"


def test_limit_of_rate(proxy: Proxy) -> None:
    """Both ways go on, again and again, when there is room."""

    def answer(r: Request) -> None:
        body = r.read_body()
        r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], limits={"bytes_per_s": 4 * MIB})
        assert get(s, f"http://a.test:{up.port}/", method="POST", body=PIECE).body == PIECE


@pytest.mark.parametrize("size", [10, 30000])
def test_heads_count(proxy: Proxy, ca: Path, size: int) -> None:
    """Those of requests and answers, also such that do not go out at once."""
    with Upstream(cert=(ca / "server.pem", ca / "server.key")) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=(ca / "ca.pem").read_text())
        for body in (b"", b"12345"):
            url = f"http://a.test.egress:{up.port}/"
            assert get(s, url, "X-Long: " + size * "x", method="PUT", body=body).body == b"ok"
            e = proxy.end()
            assert up.requests[-1].size > size
            assert (e["bytes_up"], e["bytes_down"]) == (up.requests[-1].size + len(body), len(OK))


def answer_empty(r: Request) -> None:
    r.socket.sendall(b"HTTP/1.1 204 X\r\n\r\n")


def test_limit_of_bytes_in_heads(proxy: Proxy) -> None:
    with Upstream(answer_empty) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], limits={"bytes": 100000})
        url = f"http://a.test:{up.port}/"
        statuses = [get(s, url, "X-Long: " + 8000 * "x").status for _ in range(14)]
        assert statuses[:12] == [204] * 12
        assert get(s, url).denial["reason"] == "bytes"
        assert len(up.requests) < 14


@pytest.mark.parametrize("where", ["extensions", "an extension", "trailers"])
@pytest.mark.parametrize("limit", ["bytes", "bytes_per_s"])
def test_limits_of_what_frames_a_body(proxy: Proxy, where: str, limit: str) -> None:
    """Chunk extensions and trailers come from the destination like the body, whoever drops them."""
    sent, most = [0], 16 * MIB

    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"1;" + 8000 * b"x" + b"\r\na\r\n"
        if where == "an extension":
            r.socket.sendall(b"1;")
            piece = 8000 * b"x"
        elif where == "trailers":
            r.socket.sendall(b"0\r\n")
            piece = b"X: " + 1000 * b"x" + b"\r\n"
        with contextlib.suppress(OSError):
            while sent[0] < most:
                r.socket.sendall(piece)
                sent[0] += len(piece)
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], limits={limit: 100000})
        s.sendall(head("GET", f"http://a.test:{up.port}/"))
        if limit == "bytes":
            e = proxy.end()
            assert e["why"] == "bytes" and 100000 <= e["bytes_down"] < 4 * MIB
        else:
            time.sleep(2)
        # What buffers of sockets hold may be sent.
        assert sent[0] < most


def test_chunks_count(proxy: Proxy) -> None:
    body = b"5;x=y\r\nhello\r\n0\r\nX-Trailer: z\r\n\r\n"
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Upstream(lambda r: r.socket.sendall(start + body)) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        assert get(s, f"http://a.test:{up.port}/").body == b"hello"
        assert proxy.end()["bytes_down"] == len(start + body)


def test_limit_of_rate_in_heads(proxy: Proxy) -> None:
    """Nothing but heads: each begins when there is room."""
    with Upstream(answer_empty) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], limits={"bytes_per_s": 50000})
        began = time.monotonic()
        for _ in range(20):
            assert get(s, f"http://a.test:{up.port}/", "X-Long: " + 8000 * "x").status == 204
        # 160000 bytes at 50000 a second, less the last and what the bucket had.
        assert time.monotonic() - began > 2


def test_a_new_injection_for_what_waits(proxy: Proxy, ca: Path) -> None:
    """A request that has not begun for the rate is not sent with what was injected before."""

    def inject(value: str) -> None:
        proxy.policy(
            [f"a.test:{up.port}"],
            upstream_ca_pem=(ca / "ca.pem").read_text(),
            inject={"a.test": {"headers": {"X-Key": value}, "intercept": False}},
            limits={"bytes_per_s": 5000},
        )

    with Upstream(answer_empty, cert=(ca / "server.pem", ca / "server.key")) as up:
        url = f"http://a.test.egress:{up.port}/"
        inject("old")
        with proxy.stream() as one, proxy.stream() as other:
            assert get(one, url, "X-Long: " + 30000 * "x").status == 204
            proxy.end()
            other.sendall(head("GET", url))
            proxy.decision()
            inject("new")
            assert Reply(other).denial["reason"] == "policy_changed"
            assert get(one, url).status == 204
        assert [r.one("x-key") for r in up.requests] == ["old", "new"]


def test_idle_request_is_cut(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        assert r.socket.recv(1) == b""
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], limits={"idle_s": 1})
        r = get(s, f"http://a.test:{up.port}/")
        assert r.status == 403 and r.denial["reason"] == "idle"
        assert up.ended.wait(WAIT)
