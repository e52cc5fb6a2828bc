# SPDX-License-Identifier: Apache-2.0
"""What is allowed works: tunnels by CONNECT and SOCKS5, both ways, and is told in records."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from conftest import Proxy, read_reply, recv_all, recv_exactly, until
from servers import Tcp, TlsServer


def client_context(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca / "ca.pem"))
    return context


def open_echo(proxy: Proxy, port: int, host: str = "a.test") -> socket.socket:
    reply = proxy.connect(host, port)
    assert reply.status == 200
    return reply.socket


def plain(port: int, host: str = "a.test") -> dict:
    """An entry for a tunnel that need not be TLS."""
    return {"host": host, "ports": [port], "tls": False}


@pytest.mark.jail
def test_connect_carries_tls(proxy: Proxy, tls: TlsServer, ca: Path) -> None:
    proxy.policy([f"a.test:{tls.port}"])
    reply = proxy.connect("a.test", tls.port, "exec_1")
    assert reply.status == 200
    with client_context(ca).wrap_socket(reply.socket, server_hostname="a.test") as t:
        assert recv_exactly(t, 13) == b"hello a.test\n"
        t.sendall(b"x" * 100000)
        assert recv_exactly(t, 100000) == b"x" * 100000
    told = proxy.decision()
    assert told["verdict"] == "allow" and told["reason"] is None
    assert (told["host"], told["port"], told["proto"]) == ("a.test", tls.port, "connect")
    assert (told["exec"], told["stream"], told["id"]) == ("exec_1", 1, 1)
    assert (told["address"], told["rule"], told["method"]) == (
        "127.0.0.1",
        f"a.test:{tls.port}",
        None,
    )
    end = proxy.end()
    assert (end["id"], end["why"], end["exec"]) == (1, "none", "exec_1")
    assert end["bytes_up"] > 100000 and end["bytes_down"] > 100000
    assert end["duration_ms"] >= 0 and end["time"] >= told["time"]


def test_record_times_are_utc(proxy: Proxy) -> None:
    proxy.policy([])
    proxy.connect("a.test", 443)
    told = proxy.decision()["time"]
    parsed = time.strptime(told[:19], "%Y-%m-%dT%H:%M:%S")
    assert told[19] == "." and told[20:23].isdigit() and told[23:] == "Z"
    assert abs(time.mktime(parsed) - time.timezone - time.time()) < 86400


@pytest.mark.jail
def test_socks_carries_tls(proxy: Proxy, tls: TlsServer, ca: Path) -> None:
    proxy.policy([f"a.test:{tls.port}"])
    code, s = proxy.socks_name(b"a.test", tls.port)
    assert code == 0
    with client_context(ca).wrap_socket(s, server_hostname="a.test") as t:
        assert recv_exactly(t, 13) == b"hello a.test\n"
    assert proxy.decision()["proto"] == "socks"


def test_greeting_and_request_in_one_piece(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)])
    s = proxy.stream()
    s.sendall(b"\x05\x02\x02\x00" + b"\x05\x01\x00\x03\x06a.test" + echo.port.to_bytes(2, "big"))
    assert recv_exactly(s, 12)[:4] == b"\x05\x00\x05\x00"
    s.sendall(b"ping")
    assert recv_exactly(s, 4) == b"ping"


def test_socks_byte_by_byte(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)])
    s = proxy.stream()
    for byte in b"\x05\x01\x00":
        s.sendall(bytes([byte]))
    assert recv_exactly(s, 2) == b"\x05\x00"
    for byte in b"\x05\x01\x00\x03\x06a.test" + echo.port.to_bytes(2, "big"):
        s.sendall(bytes([byte]))
    assert recv_exactly(s, 10)[1] == 0


def test_head_byte_by_byte(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)])
    s = proxy.stream()
    for byte in f"CONNECT a.test:{echo.port} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode():
        s.sendall(bytes([byte]))
    assert read_reply(s).status == 200
    s.sendall(b"ping")
    assert recv_exactly(s, 4) == b"ping"


def test_bytes_behind_the_head_are_the_tunnels(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)])
    s = proxy.stream()
    s.sendall(f"CONNECT a.test:{echo.port} HTTP/1.1\r\n\r\nearly".encode())
    assert read_reply(s).status == 200
    assert recv_exactly(s, 5) == b"early"


def test_case_and_idn_are_normalised(proxy: Proxy, echo: Tcp) -> None:
    allow = [plain(echo.port, "bücher.test"), plain(echo.port)]
    resolve = {"xn--bcher-kva.test": ["127.0.0.1"], "a.test": ["127.0.0.1"]}
    proxy.policy(allow, resolve=resolve)
    assert proxy.connect("A.TeSt", echo.port).status == 200
    assert proxy.decision()["host"] == "a.test"
    code, _ = proxy.socks_name("BÜCHER.test".encode(), echo.port)
    assert code == 0
    assert proxy.decision()["host"] == "xn--bcher-kva.test"


def test_wildcard_and_group(proxy: Proxy, echo: Tcp) -> None:
    groups = {"mine": [plain(echo.port, "*.wild.test")]}
    proxy.policy(["mine"], groups=groups, resolve={"x.wild.test": ["127.0.0.1"]})
    open_echo(proxy, echo.port, "x.wild.test")
    assert proxy.decision()["rule"].startswith("mine: *.wild.test")


@pytest.mark.jail
def test_end_of_the_guest_is_passed_on(proxy: Proxy) -> None:
    got = []

    def serve(s: socket.socket) -> None:
        got.append(recv_all(s))
        s.sendall(b"answer")

    with Tcp(serve) as server:
        proxy.policy([plain(server.port)])
        s = open_echo(proxy, server.port)
        s.sendall(b"question")
        s.shutdown(socket.SHUT_WR)
        assert recv_all(s) == b"answer"
        assert got == [b"question"]
    end = proxy.end()
    assert (end["bytes_up"], end["bytes_down"], end["why"]) == (8, 6, "none")


def test_end_of_the_destination_is_passed_on(proxy: Proxy) -> None:
    got = []

    def serve(s: socket.socket) -> None:
        s.sendall(b"first")
        s.shutdown(socket.SHUT_WR)
        got.append(recv_all(s))

    with Tcp(serve) as server:
        proxy.policy([plain(server.port)])
        s = open_echo(proxy, server.port)
        assert recv_all(s) == b"first"
        s.sendall(b"after the end")
        s.shutdown(socket.SHUT_WR)
        until(lambda: got == [b"after the end"])
    assert proxy.end()["why"] == "none"


def test_guest_that_is_gone_ends_the_destination(proxy: Proxy) -> None:
    got = []
    with Tcp(lambda s: got.append(recv_all(s))) as server:
        proxy.policy([plain(server.port)])
        s = open_echo(proxy, server.port)
        s.sendall(b"last words")
        s.close()
        until(lambda: got == [b"last words"])
    assert proxy.end()["bytes_up"] == 10


def test_destination_that_resets(proxy: Proxy) -> None:
    def serve(s: socket.socket) -> None:
        recv_exactly(s, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        s.close()

    with Tcp(serve) as server:
        proxy.policy([plain(server.port)])
        s = open_echo(proxy, server.port)
        s.sendall(b"x")
        assert s.recv(1) == b""
    assert proxy.end()["why"] == "upstream"


def memory(pid: int) -> int:
    """Bytes of a process that are in memory and its own."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty"):
            return int(line.split()[1]) << 10
    raise AssertionError


def test_reader_that_does_not_read_stops_the_sender(proxy: Proxy) -> None:
    sent = 0
    blocked = threading.Event()

    def serve(s: socket.socket) -> None:
        nonlocal sent
        s.setblocking(False)
        chunk = bytes(65536)
        quiet = 0
        while quiet < 20 and sent < 1 << 30:
            try:
                sent += s.send(chunk)
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.05)
        blocked.set()

    with Tcp(serve) as server:
        proxy.policy([plain(server.port)])
        before = memory(proxy.pid)
        s = open_echo(proxy, server.port)
        assert blocked.wait(30)
        # Socket buffers of the kernel are what holds most of it.
        assert sent < 64 << 20
        assert memory(proxy.pid) - before < 4 << 20
        total = len(recv_all(s))
        assert total == sent


@pytest.mark.parametrize("size", [1 << 20, 64 << 20])
def test_much_goes_through_unchanged(proxy: Proxy, echo: Tcp, size: int) -> None:
    proxy.policy([plain(echo.port)])
    s = open_echo(proxy, echo.port)
    block = bytes(range(256)) * 4096  # 1 MiB
    got = bytearray()

    def read() -> None:
        while len(got) < size:
            data = s.recv(1 << 20)
            if not data:
                return
            got.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(size >> 20):
        s.sendall(block)
    reader.join(120)
    assert len(got) == size
    assert bytes(got) == block * (size >> 20)


@pytest.mark.jail
def test_many_at_once(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)])
    streams = [open_echo(proxy, echo.port) for _ in range(60)]
    for i, s in enumerate(streams):
        s.sendall(b"%04d" % i)
    for i, s in enumerate(streams):
        assert recv_exactly(s, 4) == b"%04d" % i
    for s in streams:
        s.close()
    until(lambda: proxy.receive() is not None and sum(m["type"] == "end" for m in proxy.seen) == 60)


@pytest.mark.jail
def test_ipv6(proxy: Proxy) -> None:
    try:
        server = Tcp(address="::1")
    except OSError:
        pytest.skip("this host has no IPv6")
    with server:
        proxy.policy([plain(server.port)], resolve={"a.test": ["::1"]}, allow_ranges=["::1/128"])
        s = open_echo(proxy, server.port)
        s.sendall(b"six")
        assert recv_exactly(s, 3) == b"six"
    assert proxy.decision()["address"] == "::1"
