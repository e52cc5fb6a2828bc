# SPDX-License-Identifier: Apache-2.0
"""Connections to destinations that are kept: for the next request of the same connection of the
guest, and for nothing and nobody else."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from pathlib import Path

import pytest

from conftest import Proxy, plain_only, recv_exactly, until
from http_parts import OK, Reply, Request, Upstream, get, once, read
from servers import Dns

EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


def closed_by_proxy(up: Upstream, n: int = 0) -> None:
    """The n-th connection to that server is ended from the other side."""
    s = up.open[n]
    assert s.fileno() < 0 or select.select([s], [], [], 30)[0]


@pytest.mark.jail
def test_the_next_request_of_a_connection(proxy: Proxy) -> None:
    """Each is decided and recorded by itself all the same."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            for i in range(5):
                assert get(s, f"http://a.test:{up.port}/{i}").body == b"ok"
        assert up.accepted == 1
        assert [r.target for r in up.requests] == [f"/{i}" for i in range(5)]
        with read(proxy) as seen:
            until(lambda: sum(m["type"] == "end" for m in seen) == 5)
        decisions = [m for m in seen if m["type"] == "decision"]
        assert [d["verdict"] for d in decisions] == ["allow"] * 5
        assert len({d["id"] for d in decisions}) == 5


def test_it_is_nobody_elses(proxy: Proxy) -> None:
    """One connection for each of the guest's, also one after the other; it ends with it."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        url = f"http://a.test:{up.port}/"
        with proxy.stream() as one, proxy.stream() as other:
            for _ in range(3):
                assert get(one, url).body == b"ok" and get(other, url).body == b"ok"
            assert up.accepted == 2
        for n in range(2):
            closed_by_proxy(up, n)
        assert once(proxy, url).body == b"ok"
        assert up.accepted == 3


def test_of_many_connections_each_has_its_own(proxy: Proxy) -> None:
    """As many as a sandbox may have by default; none is closed because there are others."""
    with Upstream() as up, contextlib.ExitStack() as stack:
        proxy.policy([f"a.test:{up.port}"], limits={"connections": 64})
        stack.enter_context(read(proxy))
        streams = [stack.enter_context(proxy.stream()) for _ in range(64)]
        for _ in range(4):
            for s in streams:
                assert get(s, f"http://a.test:{up.port}/").body == b"ok"
        assert up.accepted == 64 and len(up.requests) == 256


@pytest.mark.plain
@plain_only
def test_of_as_many_as_there_may_be(proxy: Proxy) -> None:
    """Also the descriptors that the jail allows are enough, when each has gone to two hosts."""
    with Upstream() as a, Upstream() as b, contextlib.ExitStack() as stack:
        proxy.policy([f"a.test:{a.port}", f"b.test:{b.port}"], limits={"connections": 256})
        stack.enter_context(read(proxy))
        streams = [stack.enter_context(proxy.stream()) for _ in range(256)]
        for up, name in ((a, "a.test"), (b, "b.test")):
            for s in streams:
                r = get(s, f"http://{name}:{up.port}/")
                assert r.body == b"ok", r.body
        assert a.accepted == b.accepted == 256


def test_another_host_and_another_port(proxy: Proxy) -> None:
    """Have connections of their own, and only the last one is kept."""
    with Upstream() as a, Upstream() as b:
        proxy.policy([f"a.test:{a.port}", f"b.test:{b.port}", f"b.test:{a.port}"])
        with proxy.stream() as s:
            for url, accepted in (
                (f"http://a.test:{a.port}/", (1, 0)),
                (f"http://b.test:{b.port}/", (1, 1)),
                (f"http://b.test:{b.port}/", (1, 1)),
                # The same address and port as the first, under another name.
                (f"http://b.test:{a.port}/", (2, 1)),
                (f"http://a.test:{a.port}/", (3, 1)),
            ):
                assert get(s, url).body == b"ok"
                assert (a.accepted, b.accepted) == accepted, url
            for up, n in ((a, 0), (b, 0), (a, 1)):
                closed_by_proxy(up, n)
        hosts = [r.one("host") for r in a.requests]
        assert hosts == [f"{h}.test:{a.port}" for h in "aba"]


def test_what_is_denied_in_between(proxy: Proxy) -> None:
    """It does not go over the kept connection, which stays."""
    with Upstream() as up:
        proxy.policy([{"host": "a.test", "ports": [up.port], "methods": ["GET"]}])
        url = f"http://a.test:{up.port}/"
        with proxy.stream() as s:
            assert get(s, url).body == b"ok"
            assert get(s, url, method="DELETE").denial["reason"] == "method"
            assert get(s, url).body == b"ok"
        assert up.accepted == 1 and [r.method for r in up.requests] == ["GET", "GET"]


def test_another_address_of_the_name(proxy: Proxy, dns: Dns) -> None:
    """The name leads elsewhere now: nothing goes over the connection to where it led before."""
    with Upstream() as first, Upstream(address="127.0.0.2", port=first.port) as second:
        led: list[str] = ["127.0.0.1"]
        dns.answers["moves.test"] = lambda kind: list(led)
        proxy.policy([f"moves.test:{first.port}"], resolvers=[dns.address], resolve={})
        url = f"http://moves.test:{first.port}/"
        with proxy.stream() as s:
            for _ in range(2):
                assert get(s, url).body == b"ok"
            led[0] = "127.0.0.2"
            assert get(s, url).body == b"ok"
            assert (len(first.requests), len(second.requests)) == (2, 1)
            closed_by_proxy(first)
            led[0] = "127.0.0.1"
            assert get(s, url).body == b"ok"
            assert (first.accepted, second.accepted) == (2, 1)


@pytest.mark.jail
def test_a_new_policy(proxy: Proxy) -> None:
    """Closes it at once, whatever it allows; the guest's connection goes on."""
    with Upstream() as up:
        allow = [f"a.test:{up.port}"]
        url = f"http://a.test:{up.port}/"
        proxy.policy(allow)
        with proxy.stream() as s:
            assert get(s, url).body == b"ok"
            proxy.policy(allow)
            closed_by_proxy(up)
            for _ in range(2):
                assert get(s, url).body == b"ok"
            assert up.accepted == 2
            proxy.policy(["b.test"])
            closed_by_proxy(up, 1)
            assert get(s, url).denial["reason"] == "not_allowed"
            assert up.accepted == 2 and len(up.requests) == 3


def test_a_new_policy_in_the_middle_of_an_answer(proxy: Proxy) -> None:
    """What it still allows ends well, and its connection is not for what comes later."""
    with Upstream(lambda r: r.socket.sendall(OK[:-1])) as up:
        proxy.policy([f"a.test:{up.port}"])
        url = f"http://a.test:{up.port}/"
        with proxy.stream() as s:
            s.sendall(f"GET {url} HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
            r = Reply(s, head_only=True)
            assert recv_exactly(s, 1) == b"o"
            proxy.policy([f"a.test:{up.port}", "b.test"])
            up.open[0].sendall(b"k")
            assert recv_exactly(s, 1) == b"k" and r.status == 200
            closed_by_proxy(up)
            up.answer = lambda r: r.socket.sendall(OK)
            assert get(s, url).body == b"ok"
            assert up.accepted == 2


TOO_MUCH = {
    "length": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    "no length": ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "redirect": ("GET", b"HTTP/1.1 302 X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
    "chunked": ("GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
}


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("kind", TOO_MUCH)
def test_more_than_an_answer(proxy: Proxy, kind: str, when: str) -> None:
    """Is nobody's: the connection is closed, and the next request gets its own answer."""
    method, answer = TOO_MUCH[kind]

    def serve(r: Request) -> None:
        if r.target == "/first":
            r.socket.sendall(answer + (EVIL if when == "at once" else b""))
        else:
            r.socket.sendall(OK)

    with Upstream(serve) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            first = get(s, f"http://a.test:{up.port}/first", method=method)
            assert first.status in (200, 302) and first.body in (b"", b"ok")
            if when == "later":
                up.open[0].sendall(EVIL)
                time.sleep(0.05)  # it is on its way over loopback: nothing tells when it has come
            assert get(s, f"http://a.test:{up.port}/second").body == b"ok"
            assert up.accepted == 2
            assert get(s, f"http://a.test:{up.port}/third").body == b"ok"
            assert up.accepted == 2


@pytest.mark.parametrize("kind", ["length", "no length", "chunked", "HEAD"])
def test_exactly_an_answer(proxy: Proxy, kind: str) -> None:
    """The same without the rest: kept."""
    method, answer = TOO_MUCH[kind]
    with Upstream(lambda r: r.socket.sendall(answer)) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            for _ in range(3):
                assert get(s, f"http://a.test:{up.port}/", method=method).status == 200
        assert up.accepted == 1


@pytest.mark.jail
@pytest.mark.parametrize("when", ["at once", "in the rest of a record", "later"])
def test_more_than_an_answer_over_tls(proxy: Proxy, ca: Path, when: str) -> None:
    """Also where the rest of the answer and what is beyond it are one record of TLS: of that the
    proxy's library takes what is the answer's, and the socket is empty."""

    def serve(r: Request) -> None:
        if when == "in the rest of a record" and r.target == "/first":
            r.socket.sendall(OK[:-2])
            r.socket.sendall(OK[-2:] + EVIL)
            return
        r.socket.sendall(OK + (EVIL if when == "at once" and r.target == "/first" else b""))

    with Upstream(serve, cert=(ca / "server.pem", ca / "server.key")) as up:
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=(ca / "ca.pem").read_text())
        url = f"http://a.test.egress:{up.port}"
        with proxy.stream() as s:
            for _ in range(2):
                assert get(s, url + "/before").body == b"ok"
            assert up.accepted == 1
            assert get(s, url + "/first").body == b"ok"
            if when == "later":
                up.requests[-1].socket.sendall(EVIL)
                time.sleep(0.05)
            assert get(s, url + "/second").body == b"ok"
            assert up.accepted == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_what_the_destination_says(proxy: Proxy, answer: bytes) -> None:
    """It wants to close, or speaks an HTTP without keeping, and does not close by itself."""
    with Upstream(lambda r: r.socket.sendall(answer)) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            for n in range(1, 4):
                assert get(s, f"http://a.test:{up.port}/").body == b"ok"
                assert up.accepted == n
                closed_by_proxy(up, n - 1)


def test_a_body_that_was_not_read_to_its_end(proxy: Proxy) -> None:
    """The guest leaves in the middle of an answer: nothing of it is kept."""

    def serve(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome")

    with Upstream(serve) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            s.sendall(f"GET http://a.test:{up.port}/ HTTP/1.1\r\nHost: a.test:{up.port}\r\n\r\n".encode())
            Reply(s, head_only=True)
        assert up.ended.wait(30)


def test_the_destination_has_closed_it(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(OK)
        r.socket.shutdown(socket.SHUT_RDWR)

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            for n in range(1, 6):
                assert get(s, f"http://a.test:{up.port}/").body == b"ok"
                assert up.accepted == n


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_it_is_closed_while_the_next_request_comes(proxy: Proxy, method: str) -> None:
    """The request is made once more, on a new connection, as it may be made twice."""

    def answer(r: Request) -> None:
        if len(up.requests) == 2:
            r.socket.shutdown(socket.SHUT_RDWR)
            raise EOFError
        r.socket.sendall(OK if r.method != "HEAD" else OK[:-2])

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            for _ in range(2):
                assert get(s, f"http://a.test:{up.port}/", method=method).status == 200
        assert up.accepted == 2 and len(up.requests) == 3
        with read(proxy) as seen:
            until(lambda: sum(m["type"] == "end" for m in seen) == 2)
        assert sum(m["type"] == "decision" for m in seen) == 2


@pytest.mark.parametrize("method,body", [("POST", b""), ("POST", b"x"), ("DELETE", b""), ("GET", b"x")])
def test_what_must_not_be_sent_twice(proxy: Proxy, method: str, body: bytes) -> None:
    """Does not begin on a connection that may be closed already, and is sent once whatever comes of
    it."""

    def answer(r: Request) -> None:
        r.read_body()
        if r.target == "/fails":
            r.socket.shutdown(socket.SHUT_RDWR)
            raise EOFError
        r.socket.sendall(OK)

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        url = f"http://a.test:{up.port}/"
        with proxy.stream() as s:
            assert get(s, url).body == b"ok"
            for n in (2, 3):
                assert get(s, url, method=method, body=body).body == b"ok"
                assert up.accepted == n
            r = get(s, url + "fails", method=method, body=body)
            assert r.status == 502 and r.denial["reason"] == "upstream"
        assert up.accepted == 4 and [r.target for r in up.requests].count("/fails") == 1


@pytest.mark.jail
def test_more_than_an_answer_and_a_request_that_fails(proxy: Proxy, ca: Path) -> None:
    """A request that goes over another connection does not hide what came on the kept one."""

    def serve(r: Request) -> None:
        r.read_body()
        if r.target == "/fails":
            raise EOFError
        r.socket.sendall(OK)

    with Upstream(serve, cert=(ca / "server.pem", ca / "server.key")) as up:
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=(ca / "ca.pem").read_text())
        url = f"http://a.test.egress:{up.port}"
        with proxy.stream() as s:
            assert get(s, url + "/first").body == b"ok"
            assert get(s, url + "/fails", method="POST", body=b"x").status == 502
            with contextlib.suppress(OSError):  # it is closed by now
                up.requests[0].socket.sendall(EVIL)
                time.sleep(0.05)
            assert get(s, url + "/second").body == b"ok"
            assert up.accepted == 3


# --- limits ---


@pytest.mark.jail
def test_limit_of_idleness(proxy: Proxy) -> None:
    """It is closed, and the guest's connection goes on."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"], limits={"idle_s": 4})
        url = f"http://a.test:{up.port}/"
        with proxy.stream() as s:
            for n in range(2):
                assert get(s, url).body == b"ok"
                assert up.accepted == n + 1
                closed_by_proxy(up, n)


def test_limit_of_total_time(proxy: Proxy) -> None:
    """One that is never idle for long is not used for ever; and it is closed when it cannot be."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"], limits={"total_s": 4, "idle_s": 3600})
        url = f"http://a.test:{up.port}/"
        with proxy.stream() as s:
            began = time.monotonic()
            while up.accepted < 2:
                assert get(s, url).body == b"ok"
                assert time.monotonic() - began < 30
                time.sleep(0.1)
            assert time.monotonic() - began > 3.5 and len(up.requests) > 2
            for n in range(2):
                closed_by_proxy(up, n)


@pytest.mark.jail
def test_limit_of_connections(proxy: Proxy) -> None:
    """What is idle counts, and makes room for what is new, the longest idle first."""

    def ask(s: socket.socket) -> None:
        assert get(s, url).body == b"ok"
        proxy.end()  # else the request itself may count yet

    with Upstream() as up, contextlib.ExitStack() as stack:
        proxy.policy([{"host": "a.test", "ports": [up.port], "tls": False}], limits={"connections": 2})
        url = f"http://a.test:{up.port}/"
        one, two, three = (stack.enter_context(proxy.stream()) for _ in range(3))
        for s in (one, two, one, three):
            ask(s)
        closed_by_proxy(up, 1)
        assert up.accepted == 3
        for s in (one, three):
            ask(s)
        assert up.accepted == 3
        # A tunnel counts as well, and is not what makes room.
        tunnels = [proxy.connect("a.test", up.port) for _ in range(2)]
        assert [t.status for t in tunnels] == [200, 200]
        for n in (0, 2):
            closed_by_proxy(up, n)
        assert get(one, url).denial["reason"] == "connections"
        for t in tunnels:
            assert get(t.socket, url).body == b"ok"


def test_no_descriptor_is_left(proxy: Proxy) -> None:
    """Of many connections to many names, with policies in between."""
    with Upstream() as up:
        fds = -1
        for n in range(6):
            proxy.policy([f"a.test:{up.port}", f"b.test:{up.port}"])
            with proxy.stream() as s, proxy.stream() as t:
                for i in range(10):
                    assert get(s, f"http://{'ab'[i % 2]}.test:{up.port}/").body == b"ok"
                    assert get(t, f"http://{'ab'[i // 5]}.test:{up.port}/").body == b"ok"
            with read(proxy) as seen:
                until(lambda: sum(m["type"] == "end" for m in seen) == 20 * (n + 1))
            if n == 0:
                until(lambda: all(s.fileno() < 0 for s in up.open))  # the proxy has ended them all
                fds = open_sockets(proxy)
        until(lambda: open_sockets(proxy) <= fds)


def open_sockets(proxy: Proxy) -> int:
    """Descriptors of the proxy. A jailed one is not shown to others, but to root."""
    return len(os.listdir(f"/proc/{proxy.pid}/fd"))
