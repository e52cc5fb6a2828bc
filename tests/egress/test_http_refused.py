# SPDX-License-Identifier: Apache-2.0
"""Requests that the proxy refuses whatever the rules are: each with its status, a reason, a
sentence and a record, at once, and without a byte to any destination."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Optional

import pytest
from conftest import Proxy
from http_parts import Reply, Upstream, closed, head

# What the request is, the status, the reason, the host that the record names. PORT is that of a
# server that the rules allow as a.test.
REFUSED: dict[str, tuple[bytes, int, str, str]] = {
    "two hosts": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nHost: a.test:PORT\r\n\r\n",
                  400, "bad_request", ""),
    "no host": (b"GET http://a.test:PORT/ HTTP/1.1\r\n\r\n", 400, "bad_request", ""),
    "another host": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: b.test:PORT\r\n\r\n",
                     403, "host_mismatch", "a.test"),
    "another port": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
                     403, "host_mismatch", "a.test"),
    "host with a trailing dot": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test.:PORT\r\n\r\n",
                                 403, "host_mismatch", "a.test"),
    "allowed host, other url": (b"GET http://evil.test/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                                403, "host_mismatch", "evil.test"),
    "length and encoding": (b"POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                            b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                            400, "bad_request", ""),
    "two lengths": (b"POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                    b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400, "bad_request", ""),
    "a list of lengths": (b"POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                          b"Content-Length: 3, 3\r\n\r\nabc", 400, "bad_request", ""),
    "two encodings": (b"POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                      b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
                      400, "bad_request", ""),
    "another encoding": (b"POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                         b"Transfer-Encoding: gzip, chunked\r\n\r\n", 400, "bad_request", ""),
    "hidden encoding": (b"POST http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                        b"Transfer-Encoding : chunked\r\n\r\n", 400, "bad_request", ""),
    "folded header": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nX: a\r\n b\r\n\r\n",
                      400, "bad_request", ""),
    "folded host": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: \r\n a.test:PORT\r\n\r\n",
                    400, "bad_request", ""),
    "nul in a value": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\0.evil.test\r\n\r\n",
                       400, "bad_request", ""),
    "nul in the url": (b"GET http://evil.test\0.a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                       400, "bad_request", ""),
    "cr in a value": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nX: a\rY: b\r\n\r\n",
                      400, "bad_request", ""),
    "lf in a value": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nX: a\nY: b\r\n\r\n",
                      400, "bad_request", ""),
    "bare lf": (b"GET http://a.test:PORT/ HTTP/1.1\nHost: a.test:PORT\n\n", 400, "bad_request", ""),
    "userinfo": (b"GET http://me:pw@a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                 400, "bad_request", ""),
    "userinfo that looks allowed": (b"GET http://a.test:PORT@evil.test/ HTTP/1.1\r\n"
                                    b"Host: evil.test\r\n\r\n", 400, "bad_request", ""),
    "fragment": (b"GET http://a.test:PORT/#@evil.test HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                 400, "bad_request", ""),
    "backslash": (b"GET http://a.test:PORT\\@evil.test/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                  400, "bad_request", ""),
    "escaped host": (b"GET http://%61.test:PORT/ HTTP/1.1\r\nHost: %61.test:PORT\r\n\r\n",
                     403, "bad_host", ""),
    "trailing dot": (b"GET http://a.test.:PORT/ HTTP/1.1\r\nHost: a.test.:PORT\r\n\r\n",
                     403, "bad_host", "a.test."),
    "address": (b"GET http://127.0.0.1:PORT/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
                403, "bad_host", "127.0.0.1"),
    "metadata address": (b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
                         403, "bad_host", "169.254.169.254"),
    "decimal address": (b"GET http://2130706433:PORT/ HTTP/1.1\r\nHost: 2130706433:PORT\r\n\r\n",
                        403, "bad_host", "2130706433"),
    "octal address": (b"GET http://0177.0.0.1:PORT/ HTTP/1.1\r\nHost: 0177.0.0.1:PORT\r\n\r\n",
                      403, "bad_host", "0177.0.0.1"),
    "hexadecimal address": (b"GET http://0x7f000001:PORT/ HTTP/1.1\r\nHost: 0x7f000001:PORT\r\n\r\n",
                            403, "bad_host", "0x7f000001"),
    "ipv6 address": (b"GET http://[::1]:PORT/ HTTP/1.1\r\nHost: [::1]:PORT\r\n\r\n",
                     403, "bad_host", ""),
    "mapped address": (b"GET http://[::ffff:127.0.0.1]:PORT/ HTTP/1.1\r\n"
                       b"Host: [::ffff:127.0.0.1]:PORT\r\n\r\n", 403, "bad_host", ""),
    "localhost": (b"GET http://localhost:PORT/ HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n",
                  403, "bad_host", "localhost"),
    "no port": (b"GET http://a.test:/ HTTP/1.1\r\nHost: a.test:\r\n\r\n", 400, "bad_request", ""),
    "port beyond 65535": (b"GET http://a.test:65616/ HTTP/1.1\r\nHost: a.test:65616\r\n\r\n",
                          400, "bad_request", ""),
    "upgrade": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 403, "upgrade", "a.test"),
    "upgrade of http/2": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                          b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
                          403, "upgrade", "a.test"),
    "path alone": (b"GET / HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n", 400, "bad_request", ""),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n", 400, "bad_request", ""),
    "https url": (b"GET https://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                  400, "bad_request", ""),
    "ftp url": (b"GET ftp://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                400, "bad_request", ""),
    "trace": (b"TRACE http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
              403, "method", ""),
    "track": (b"TRACK http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
              403, "method", ""),
    "connect in small letters": (b"connect a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                                 400, "bad_request", ""),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad_request", ""),
    "http/0.9": (b"GET http://a.test:PORT/\r\n", 400, "bad_request", ""),
    "two spaces": (b"GET  http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                   400, "bad_request", ""),
    "space in the url": (b"GET http://a.test:PORT/a b HTTP/1.1\r\nHost: a.test:PORT\r\n\r\n",
                         400, "bad_request", ""),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400, "bad_request", ""),
    "expectation": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\nExpect: x\r\n\r\n",
                    400, "bad_request", ""),
    "long head": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                  + b"X: " + b"a" * 40000, 400, "bad_request", ""),
    "many headers": (b"GET http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                     + b"X: 1\r\n" * 200, 400, "bad_request", ""),
    "head with a body": (b"HEAD http://a.test:PORT/ HTTP/1.1\r\nHost: a.test:PORT\r\n"
                         b"Content-Length: 3\r\n\r\nabc", 400, "bad_request", "a.test"),
    "gateway without a name": (b"GET http://egress/ HTTP/1.1\r\nHost: egress\r\n\r\n",
                               403, "bad_host", "egress"),
    "gateway to the gateway": (b"GET http://a.test.egress.egress/ HTTP/1.1\r\n"
                               b"Host: a.test.egress.egress\r\n\r\n", 403, "bad_host",
                               "a.test.egress"),
    "gateway to an address": (b"GET http://127.0.0.1.egress:PORT/ HTTP/1.1\r\n"
                              b"Host: 127.0.0.1.egress:PORT\r\n\r\n", 403, "bad_host",
                              "127.0.0.1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(proxy: Proxy, name: str) -> None:
    request, status, reason, host = REFUSED[name]
    with Upstream() as up, proxy.stream("exec_1") as s:
        proxy.policy([f"a.test:{up.port}", "b.test"])
        s.sendall(request.replace(b"PORT", str(up.port).encode()))
        r = Reply(s, head_only=request.startswith(b"HEAD"))
        assert r.status == status
        if not request.startswith(b"HEAD"):
            assert r.denial["reason"] == reason
            assert r.denial["host"] == host
        d = proxy.decision()
        assert (d["verdict"], d["reason"], d["exec"]) == ("deny", reason, "exec_1")
        assert d["host"] == host
        assert proxy.silent()
        assert up.accepted == 0


@pytest.mark.parametrize("name", [n for n, r in REFUSED.items() if r[1] == 400 and r[3] == ""])
def test_nothing_behind_it_is_read(proxy: Proxy, name: str) -> None:
    """Who sends what has no single meaning has no second request on that connection, unless only
    its URL is wrong."""
    request = REFUSED[name][0]
    with Upstream() as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}", "b.test"])
        s.sendall(request.replace(b"PORT", str(up.port).encode()))
        r = Reply(s)
        if r.one("connection") == "close":
            assert closed(s)
        else:
            s.sendall(head("GET", f"http://a.test:{up.port}/"))
            assert Reply(s).body == b"ok"


def test_hints(proxy: Proxy) -> None:
    def hint(request: bytes) -> str:
        with proxy.stream() as s:
            s.sendall(request)
            return Reply(s).denial["hint"]

    proxy.policy(["a.test"])
    assert "CONNECT" in hint(b"GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert ".egress" in hint(b"GET https://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert "proxy" in hint(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")


def test_upload_is_refused_before_it_is_sent(proxy: Proxy) -> None:
    """A client that waits for 100 Continue gets the denial instead; one that does not, at once."""
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        for expect in (["Expect: 100-continue"], []):
            with proxy.stream() as s:
                s.sendall(head("POST", "http://evil.test/", "Content-Length: 1000000000", *expect))
                r = Reply(s)
                assert r.status == 403 and r.denial["host"] == "evil.test"
                assert r.one("connection") == "close" and closed(s)


def test_body_of_a_refused_request_is_no_request(proxy: Proxy) -> None:
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"])
        for method in ("POST", "PATCH", "DELETE", "GET"):
            inner = head("GET", f"http://a.test:{up.port}/smuggled")
            with proxy.stream() as s:
                s.sendall(head(method, "http://evil.test/", f"Content-Length: {len(inner)}"))
                s.sendall(inner)
                assert Reply(s).status == 403 and closed(s)
        assert up.accepted == 0


@pytest.mark.parametrize("when", ["with the head", "later"])
def test_malformed_chunks(proxy: Proxy, when: str) -> None:
    """The head is good, the body is not: it is said, and the destination does not get a whole request."""
    got: list[Optional[bytes]] = []

    def answer(r: object) -> None:
        try:
            got.append(r.read_body())  # type: ignore[attr-defined]
        except (EOFError, OSError):
            got.append(None)
        raise EOFError

    for body in (b"zz\r\nabc\r\n", b"-1\r\n", b"3\r\nabcXX0\r\n\r\n", b"fffffffffffffffff1\r\nabc"):
        with Upstream(answer) as up:
            proxy.policy([f"a.test:{up.port}"])
            with proxy.stream() as s:
                start = head("POST", f"http://a.test:{up.port}/", "Transfer-Encoding: chunked")
                if when == "later":
                    s.sendall(start + b"2\r\nok\r\n")
                    assert proxy.decision()["verdict"] == "allow"
                    s.sendall(body)
                else:
                    s.sendall(start + body)
                r = Reply(s)
                assert r.status == 400 and r.denial["reason"] == "bad_request" and closed(s)
                assert "chunk" in r.denial["detail"]
            told = proxy.decision(verdict="deny")
            assert told["host"] == ("a.test" if when == "later" else "")
            if when == "later":
                _ = [m for m in proxy.seen if m["type"] == "end"] or [proxy.end()]
                proxy.seen.clear()
            assert not up.accepted or up.ended.wait(30)
    assert all(b is None for b in got)


def cpu_ticks(proxy: Proxy) -> int:
    """Processor time that it has used."""
    text = Path(f"/proc/{proxy.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(text[11]) + int(text[12])


@pytest.mark.parametrize("what", ["size", "extension", "trailer"])
def test_a_line_of_a_chunked_body_that_never_ends(proxy: Proxy, what: str) -> None:
    """The HTTP library would be at it for ever, as fast as it can."""
    line = {"size": b"0", "extension": b"1;" + b"x", "trailer": b"0\r\nX: "}[what]
    with Upstream() as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        s.sendall(head("POST", f"http://a.test:{up.port}/", "Transfer-Encoding: chunked"))
        assert proxy.decision()["verdict"] == "allow"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            s.sendall(line + line[:1] * 2_000_000)
        r = Reply(s)
        assert r.status == 400 and r.denial["reason"] == "bad_request" and closed(s)
        before = cpu_ticks(proxy)
        time.sleep(1)
        assert cpu_ticks(proxy) - before < 20
        assert not up.requests or up.ended.wait(30)


def test_malformed_chunks_behind_an_answer(proxy: Proxy) -> None:
    """What was refused for its head has its answer, and one only."""
    proxy.policy([])
    with proxy.stream() as s:
        s.sendall(head("POST", "http://a.test/", "Transfer-Encoding: chunked"))
        r = Reply(s)
        assert r.status == 403 and r.denial["reason"] == "not_allowed"
        s.sendall(b"zz\r\n")
        assert closed(s)
