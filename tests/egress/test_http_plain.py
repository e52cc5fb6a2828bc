# SPDX-License-Identifier: Apache-2.0
"""Plain HTTP through the proxy: what reaches the destination, what comes back, and that each
request is decided by itself."""

from __future__ import annotations

import contextlib
import gzip
import socket

import pytest
from conftest import Proxy, recv_all, until
from http_parts import OK, Reply, Request, Upstream, closed, ends, get, head, once, read
from servers import Dns

pytestmark = pytest.mark.jail


def test_request_and_answer_pass(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(
            b"HTTP/1.1 201 Whatever\r\nContent-Length: 5\r\nX-Two: 1\r\nX-Two: 2\r\n"
            b"Set-Cookie: a=b; Path=/\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\nhello"
        )

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        url = f"http://a.test:{up.port}/p%20q/../x?y=%00&z"
        r = once(proxy, url, "Accept: text/x", "X-Mine: one", "X-Mine: two", "Cookie: c=d",
                 "Authorization: Basic Zm9v", "X-Empty:")  # fmt: skip
        assert (r.status, r.body) == (201, b"hello")
        assert r.all("x-two") == ["1", "2"] and r.one("set-cookie") == "a=b; Path=/"
        assert r.one("date") == "Thu, 01 Jan 1970 00:00:00 GMT"
        (got,) = up.requests
    assert (got.method, got.target, got.version) == ("GET", "/p%20q/../x?y=%00&z", "HTTP/1.1")
    assert got.fields == [
        ("Host", f"a.test:{up.port}"),
        ("Accept", "text/x"),
        ("X-Mine", "one"),
        ("X-Mine", "two"),
        ("Cookie", "c=d"),
        ("Authorization", "Basic Zm9v"),
        ("X-Empty", ""),
    ]


def test_record(proxy: Proxy) -> None:
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream("exec_7") as s:
            r = get(s, f"http://A.test:{up.port}/secret?path", method="POST", body=b"12345")
            assert r.body == b"ok"
            d = proxy.decision(verdict="allow")
            assert (d["proto"], d["host"], d["port"]) == ("http", "a.test", up.port)
            assert (d["method"], d["address"], d["exec"]) == ("POST", "127.0.0.1", "exec_7")
            e = proxy.end(id=d["id"])
            assert e["why"] == "none" and e["bytes_down"] == len(OK)
            assert e["bytes_up"] == up.requests[0].size + 5
    assert "secret" not in str(proxy.seen)


@pytest.mark.parametrize("unit", ["a&", "&", "?", "a=b&"])
def test_arguments_of_any_number(proxy: Proxy, unit: str) -> None:
    """A URL has as many as its length has room for, and goes on as it is. A library that looks at
    each would have no room for them."""
    with Upstream() as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        target = "/?" + unit * (32000 // len(unit))
        for _ in range(3):
            assert get(s, f"http://a.test:{up.port}{target}").body == b"ok"
        assert [r.target for r in up.requests] == [target] * 3


def test_cookies(proxy: Proxy) -> None:
    """Many pass as they are, in several headers too. Those that the library would not take are
    refused in our words, with a record."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        url = f"http://a.test:{up.port}/"
        many = "; ".join(f"name{i}=value" for i in range(128))
        assert once(proxy, url, f"Cookie: {many}", f"Cookie: {many}").body == b"ok"
        assert up.requests[0].all("cookie") == [many, many]
        for unit in ("a=b;", ";", "a,"):
            proxy.seen.clear()
            r = once(proxy, url, "Cookie: " + unit * (32000 // len(unit)))
            assert r.status == 400 and "cookies" in r.denial["detail"]
            assert proxy.decision(verdict="deny")["reason"] == "bad_request"
        assert len(up.requests) == 1


def test_nothing_is_added(proxy: Proxy) -> None:
    """No User-Agent, Accept, Accept-Encoding, Expect, Via..."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        once(proxy, f"http://a.test:{up.port}/")
        once(proxy, f"http://a.test:{up.port}/", method="POST", body=bytes(2 << 20))
        assert up.requests[0].fields == [("Host", f"a.test:{up.port}")]
        names = [k for k, _ in up.requests[1].fields]
        assert sorted(names) == ["Content-Length", "Host"]


def test_hop_by_hop_ends(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: X-Theirs, keep-alive\r\n"
            b"X-Theirs: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nTrailer: X\r\n"
            b"Upgrade: h2c\r\n\r\n"
        )

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        r = once(proxy, f"http://a.test:{up.port}/", "Connection: X-Mine, keep-alive", "X-Mine: 1",
                 "Keep-Alive: 5", "Proxy-Connection: keep-alive", "Proxy-Authorization: Basic Zm9v",
                 "TE: trailers", "Trailer: X-T", "X-Stays: 1")  # fmt: skip
        assert up.requests[0].fields == [("Host", f"a.test:{up.port}"), ("X-Stays", "1")]
        assert {k.lower() for k, _ in r.fields} <= {"content-length", "connection", "date"}
        assert "theirs" not in str(r.fields)


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE", "PROPFIND", "get", "OPTIONS"])
def test_methods(proxy: Proxy, method: str) -> None:
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            assert get(s, f"http://a.test:{up.port}/1", method=method).body == b"ok"
            assert get(s, f"http://a.test:{up.port}/2", method=method, body=b"xyz").body == b"ok"
        assert [r.method for r in up.requests] == [method, method]
        assert [r.body for r in up.requests] == [b"", b"xyz"]
        empty = "0" if method in ("PUT", "POST", "PATCH") else None
        assert up.requests[0].one("content-length") == empty


def test_head(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        length = b"Content-Length: 12345\r\n" if r.target == "/length" else b""
        r.socket.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"X: y\r\n\r\n")

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            for _ in range(2):
                r = get(s, f"http://a.test:{up.port}/length", method="HEAD")
                assert r.one("content-length") == "12345" and r.one("x") == "y"
            r = get(s, f"http://a.test:{up.port}/", method="HEAD")
            assert r.status == 200 and r.one("transfer-encoding") is None
            assert closed(s)


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_body(proxy: Proxy, status: int) -> None:
    def answer(r: Request) -> None:
        none = f'HTTP/1.1 {status} X\r\nETag: "e"\r\n\r\n'.encode()
        r.socket.sendall(none if r.target == "/" else OK)

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            r = get(s, f"http://a.test:{up.port}/")
            assert r.status == status and r.one("etag") == '"e"'
            if r.one("connection") != "close":
                assert get(s, f"http://a.test:{up.port}/next").body == b"ok"
            else:
                assert closed(s)


def test_304_with_length(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 304 X\r\nContent-Length: 99\r\n\r\n" if r.target == "/" else OK)

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            r = get(s, f"http://a.test:{up.port}/")
            assert r.one("content-length") == "99"
            assert get(s, f"http://a.test:{up.port}/next").body == b"ok"


def test_http10_client(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        r.socket.sendall(b"3\r\nabc\r\n0\r\n\r\n")

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        with proxy.stream() as s:
            s.sendall(f"GET http://a.test:{up.port}/ HTTP/1.0\r\n\r\n".encode())
            r = Reply(s)
            assert r.body == b"abc" and r.one("transfer-encoding") is None
            assert closed(s)
        assert up.requests[0].version == "HTTP/1.1"


def test_answer_until_close(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        r.socket.close()

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        assert once(proxy, f"http://a.test:{up.port}/").body == b"all of it"


def test_1xx_are_dropped(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 C\r\n\r\n" + OK)

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        r = once(proxy, f"http://a.test:{up.port}/")
        assert (r.status, r.body, r.one("link")) == (200, b"ok", None)


def test_bytes_pass_as_they_are(proxy: Proxy) -> None:
    packed = gzip.compress(b"hello" * 100)

    def answer(r: Request) -> None:
        assert r.one("accept-encoding") == "gzip, br"
        fields = f"Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        r.socket.sendall(b"HTTP/1.1 200 OK\r\n" + fields.encode() + packed)

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        r = once(proxy, f"http://a.test:{up.port}/", "Accept-Encoding: gzip, br")
        assert r.body == packed and r.one("content-encoding") == "gzip"


def test_redirects_are_not_followed_and_cookies_not_kept(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.socket.sendall(
            b"HTTP/1.1 302 Found\r\nLocation: http://b.test/\r\nSet-Cookie: a=b\r\n"
            b"Content-Length: 0\r\n\r\n"
        )

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}", "b.test:80"])
        with proxy.stream() as s:
            for _ in range(2):
                r = get(s, f"http://a.test:{up.port}/")
                assert (r.status, r.one("location")) == (302, "http://b.test/")
        assert [r.one("cookie") for r in up.requests] == [None, None]
        assert [proxy.decision()["host"] for _ in range(2)] == ["a.test", "a.test"]


@pytest.mark.parametrize("blank", [" ", "\t", " \t  "])
def test_white_space_behind_values(proxy: Proxy, blank: str) -> None:
    """It belongs to none of them (RFC 9112, 5.1), for nobody that reads them."""
    with Upstream() as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        url, host = f"http://a.test:{up.port}/", f"a.test:{up.port}{blank}"

        def ask(*fields: str, body: bytes = b"") -> Reply:
            named = [f"{f}{blank}" for f in fields]
            s.sendall(head("POST", url, *named, host=host) + body)
            return Reply(s)

        assert ask("Content-Length: 5", "X: a:b ", body=b"hello").body == b"ok"
        assert ask("Content-Length:5", "Expect: 100-continue").status == 100
        s.sendall(b"again")
        assert Reply(s).body == b"ok"
        assert ask("Upgrade: x", "Connection: Upgrade").denial["reason"] == "upgrade"
        assert ask("Transfer-Encoding: chunked", body=b"5\r\nthird\r\n0\r\n\r\n").body == b"ok"
        assert closed(s)
    assert [r.body for r in up.requests] == [b"hello", b"again", b"third"]
    assert up.requests[0].one("x") == "a:b"
    with Upstream() as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        url, host = f"http://a.test:{up.port}/", f"a.test:{up.port}{blank}"
        assert ask("Connection: close", "X:").body == b"ok" and closed(s)


def test_each_request_is_decided(proxy: Proxy) -> None:
    """On one kept-alive connection: two hosts, a denial between them."""
    with Upstream() as a, Upstream() as b:
        proxy.policy([f"a.test:{a.port}", f"b.test:{b.port}"])
        with proxy.stream() as s:
            assert get(s, f"http://a.test:{a.port}/").body == b"ok"
            assert get(s, f"http://b.test:{b.port}/").body == b"ok"
            r = get(s, f"http://c.test:{b.port}/")
            assert r.status == 403
            assert (r.denial["host"], r.denial["port"]) == ("c.test", b.port)
            assert r.denial["reason"] == "not_allowed"
            assert get(s, f"http://b.test:{a.port}/").denial["reason"] == "port"
            assert get(s, f"http://a.test:{a.port}/").body == b"ok"
        seen = [proxy.decision() for _ in range(5)]
        assert [d["verdict"] for d in seen] == ["allow", "allow", "deny", "deny", "allow"]
        assert [d["host"] for d in seen] == ["a.test", "b.test", "c.test", "b.test", "a.test"]
        assert len({d["id"] for d in seen}) == 5 and len({d["stream"] for d in seen}) == 1
        assert len(a.requests) == 2 and len(b.requests) == 1


def test_pipelined_requests(proxy: Proxy) -> None:
    def answer(r: Request) -> None:
        r.read_body()
        text = (r.target + r.body.decode()).encode()
        r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)

    with Upstream(answer) as up:
        proxy.policy([f"a.test:{up.port}"])
        url = f"http://a.test:{up.port}"
        with proxy.stream() as s:
            s.sendall(
                head("GET", url + "/1")
                + head("POST", url + "/2", "Content-Length: 3") + b"abc"
                + head("GET", "http://c.test/3")
                + head("GET", url + "/4")
            )  # fmt: skip
            assert [Reply(s).body for _ in range(2)] == [b"/1", b"/2abc"]
            assert Reply(s).denial["host"] == "c.test"
            assert Reply(s).body == b"/4"


def test_pipelined_head_is_looked_at(proxy: Proxy) -> None:
    """Behind a good request, and behind a chunked body, where nothing may follow."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        url = f"http://a.test:{up.port}/"
        with proxy.stream() as s:
            s.sendall(head("GET", url) + head("GET", url, "X: a\0b"))
            assert Reply(s).body == b"ok"
            assert Reply(s).status == 400 and closed(s)
        with proxy.stream() as s:
            s.sendall(
                head("POST", url, "Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n\r\n"
                + head("GET", url, "X: a\0b")
            )  # fmt: skip
            r = Reply(s)
            assert r.body == b"ok" and r.one("connection") == "close" and closed(s)
        assert len(up.requests) == 2


def test_ipv6(proxy: Proxy) -> None:
    with Upstream(address="::1") as up:
        proxy.policy([f"a.test:{up.port}"], resolve={"a.test": ["::1"]}, allow_ranges=["::1/128"])
        with proxy.stream() as s:
            for _ in range(2):
                assert get(s, f"http://a.test:{up.port}/").body == b"ok"
        assert up.accepted == 1 and proxy.decision()["address"] == "::1"


def test_names_in_other_scripts(proxy: Proxy) -> None:
    with Upstream() as up:
        proxy.policy([f"b\u00fccher.test:{up.port}"], resolve={"xn--bcher-kva.test": ["127.0.0.1"]})
        for name in ("b\u00fccher.test", "B\u00dcCHER.test", "xn--bcher-kva.test"):
            host = f"{name}:{up.port}".encode().decode("latin-1")
            with proxy.stream() as s:
                assert get(s, f"http://{host}/").body == b"ok"
            assert up.requests[-1].one("host") == f"xn--bcher-kva.test:{up.port}"


def test_many_at_once(proxy: Proxy) -> None:
    """As many connections as the library's event loop was once seen to stall with."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"], limits={"connections": 200})
        with read(proxy):
            streams = [proxy.stream() for _ in range(128)]
            for s in streams:
                s.sendall(head("GET", f"http://a.test:{up.port}/"))
            assert all(Reply(s).body == b"ok" for s in streams)
            for s in streams:
                s.close()
            ends(proxy, 128)


def test_rules_with_methods_and_paths(proxy: Proxy) -> None:
    with Upstream() as up:
        rule = {"host": "a.test", "ports": [up.port], "methods": ["GET"], "paths": ["/v1/"]}
        proxy.policy([rule])
        url = f"http://a.test:{up.port}"
        with proxy.stream() as s:
            assert get(s, url + "/v1/x?q=/v2/").body == b"ok"
            assert get(s, url + "/v1/x", method="POST").denial["reason"] == "method"
            for path in ("/v2/", "/v1/../v2/", "/v1/%2e%2e/v2", "/v1/..;/v2", "//v1/", "/v1"):
                r = get(s, url + path)
                assert r.status == 403 and r.denial["reason"] == "path", path
        assert [r.target for r in up.requests] == ["/v1/x?q=/v2/"]


def test_address_that_is_not_public(proxy: Proxy) -> None:
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"], allow_ranges=[])
        r = once(proxy, f"http://a.test:{up.port}/")
        assert r.status == 403 and r.denial["reason"] == "address"
        assert up.accepted == 0


def test_no_policy(proxy: Proxy) -> None:
    r = once(proxy, "http://a.test/")
    assert r.status == 403 and r.denial["reason"] == "policy"


def test_client_leaves(proxy: Proxy) -> None:
    """Whether it waits or reads: the request to the destination ends."""

    def answer(r: Request) -> None:
        if r.target == "/streams":
            r.socket.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        r.socket.settimeout(30)
        assert r.socket.recv(1) == b""
        raise EOFError

    for target in ("/waits", "/streams"):
        for leave in ("close", "end"):
            with Upstream(answer) as up:
                proxy.policy([f"a.test:{up.port}"])
                s = proxy.stream()
                s.sendall(head("GET", f"http://a.test:{up.port}{target}"))
                if target == "/streams":
                    Reply(s, head_only=True)
                until(lambda: len(up.requests) == 1)
                if leave == "close":
                    s.close()
                else:
                    s.shutdown(socket.SHUT_WR)
                assert up.ended.wait(30)
                s.close()
                proxy.end(verdict="allow", why="none")


def test_client_leaves_in_its_upload(proxy: Proxy) -> None:
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        s = proxy.stream()
        s.sendall(head("POST", f"http://a.test:{up.port}/", "Content-Length: 100") + b"some")
        until(lambda: len(up.requests) == 1)
        s.close()
        assert up.ended.wait(30)
        proxy.end()


def test_streams_end_with_their_connections(proxy: Proxy) -> None:
    """More connections one after the other than there may be at once."""
    with Upstream() as up, contextlib.ExitStack() as stack:
        proxy.policy([f"a.test:{up.port}"])
        stack.enter_context(read(proxy))
        for i in range(600):
            with proxy.stream() as s:
                if i % 3 == 0:
                    assert get(s, f"http://a.test:{up.port}/").body == b"ok"
                elif i % 3 == 1:
                    s.sendall(b"GET")
                else:
                    s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert recv_all(s).startswith(b"HTTP/1.1 400 ")
        ends(proxy, 200)
