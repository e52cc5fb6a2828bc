# SPDX-License-Identifier: Apache-2.0
"""What is refused, at once and in words: rules, names, forms of requests. One test a form."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from conftest import Proxy, recv_all, recv_exactly
from servers import Dns, Tcp


@pytest.fixture
def granted(proxy: Proxy, echo: Tcp) -> Proxy:
    """One that may reach a.test at echo's port, and would get there."""
    proxy.policy([{"host": "a.test", "ports": [echo.port], "tls": False}])
    proxy.port = echo.port
    proxy.echo = echo
    return proxy


def nobody_came(proxy: Any) -> None:
    assert proxy.echo.accepted == 0


# --- rules ---


@pytest.mark.jail
def test_denial_of_connect(granted: Any) -> None:
    denial = granted.connect("other.test", 443, "exec_7")
    assert denial.status == 403
    assert denial.phrase == "Forbidden (egress denied: not_allowed)"
    told = denial.denial
    assert (told["host"], told["port"], told["reason"]) == ("other.test", 443, "not_allowed")
    assert "other.test:443" in told["detail"]
    assert "a.test" in told["hint"] and '"other.test"' in told["hint"]
    record = granted.decision()
    assert record["verdict"] == "deny" and record["reason"] == "not_allowed"
    assert (record["exec"], record["host"], record["port"]) == ("exec_7", "other.test", 443)
    assert (record["detail"], record["hint"]) == (told["detail"], told["hint"])
    assert record["address"] is None and record["rule"] is None
    assert set(record) == {
        "type", "time", "id", "stream", "exec", "proto", "host", "port", "method", "address",
        "rule", "verdict", "reason", "detail", "hint",
    }  # fmt: skip
    assert granted.silent()  # a denial has no end of its own


@pytest.mark.jail
def test_denial_of_socks(granted: Any) -> None:
    code, s = granted.socks_name(b"other.test", 443)
    assert code == 2
    assert s.recv(1) == b""
    record = granted.decision()
    assert (record["proto"], record["reason"]) == ("socks", "not_allowed")


def test_record_comes_before_the_verdict(granted: Any) -> None:
    s = granted.stream()
    s.sendall(b"CONNECT other.test:443 HTTP/1.1\r\n\r\n")
    s.recv(1)
    granted.ctl.setblocking(False)
    assert json.loads(granted.ctl.recv(70000))["type"] == "decision"
    granted.ctl.settimeout(30)


def test_port_of_no_rule(granted: Any) -> None:
    told = granted.connect("a.test", 25).denial
    assert told["reason"] == "port" and '"a.test:25"' in told["hint"]


def test_empty_list_allows_nothing(proxy: Proxy) -> None:
    proxy.policy([])
    told = proxy.connect("a.test", 443).denial
    assert told["reason"] == "not_allowed" and "nothing" in told["hint"]


def test_ceiling(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([f"a.test:{echo.port}", f"b.test:{echo.port}"], ceiling=[f"b.test:{echo.port}"])
    told = proxy.connect("a.test", echo.port).denial
    assert told["reason"] == "ceiling"
    assert proxy.connect("b.test", echo.port).status == 200


def test_empty_ceiling_allows_nothing(proxy: Proxy) -> None:
    proxy.policy(["a.test"], ceiling=[])
    assert proxy.connect("a.test", 443).denial["reason"] == "ceiling"


@pytest.mark.parametrize("member", [{"methods": ["GET"]}, {"paths": ["/v1/"]}])
def test_rule_for_requests_is_not_for_tunnels(proxy: Proxy, member: dict[str, Any]) -> None:
    proxy.policy([{"host": "a.test", **member}])
    told = proxy.connect("a.test", 443).denial
    assert told["reason"] == "tunnel" and "a.test.egress" in told["hint"]


def test_wildcard_is_not_for_the_name_itself(proxy: Proxy) -> None:
    proxy.policy(["*.a.test"])
    assert proxy.connect("a.test", 443).denial["reason"] == "not_allowed"


# --- names ---

BAD_NAMES = {
    "ipv4": "127.0.0.1",
    "metadata": "169.254.169.254",
    "decimal": "2130706433",
    "octal": "0177.0.0.1",
    "hexadecimal": "0x7f.0.0.1",
    "hexadecimal-whole": "0x7f000001",
    "short": "127.1",
    "ipv6": "[::1]",
    "mapped": "[::ffff:127.0.0.1]",
    "trailing-dot": "a.test.",
    "two-dots": "a..test",
    "leading-dot": ".a.test",
    "localhost": "localhost",
    "single-label": "metadata",
    "underscores-alone": "_",
    "wildcard": "*.test",
    "percent": "a%2etest",
    "long-label": "x" * 64 + ".test",
    "long-name": "x." * 126 + "test",
    "gateway": "a.test.egress",
    "bad-punycode": "xn--a.test",
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_connect_to_what_is_no_name(granted: Any, case: str) -> None:
    told = granted.connect(BAD_NAMES[case], granted.port).denial
    assert told["reason"] == "bad_host"
    assert granted.decision()["reason"] == "bad_host"
    nobody_came(granted)


# A name of SOCKS has at most 255 bytes.
@pytest.mark.parametrize("case", [c for c in BAD_NAMES if len(BAD_NAMES[c]) <= 255])
def test_socks_to_what_is_no_name(granted: Any, case: str) -> None:
    code, s = granted.socks_name(BAD_NAMES[case].encode(), granted.port)
    assert code == 2 and s.recv(1) == b""
    assert granted.decision()["reason"] == "bad_host"
    nobody_came(granted)


@pytest.mark.parametrize(
    "name",
    [
        b"a.test\0", b"a.test\0.evil.test", b"evil.test\0a.test", b"a.test\r\n", b"a.test\n", b"\0",
        b"a.test\x7f", b"a test", b"a.test/", b"u@a.test", b"a.test:443", b"", b"\xff\xfe",
        b"\xe2\x80\x8ba.test", "a。test".encode(), "ａ.test".encode(),
    ],
)  # fmt: skip
def test_socks_name_with_odd_bytes(granted: Any, name: bytes) -> None:
    code, s = granted.socks_name(name, granted.port)
    assert code == 2 and s.recv(1) == b""
    told = granted.decision()
    assert told["reason"] == "bad_host"
    assert told["host"].isprintable() and told["host"].isascii()
    nobody_came(granted)


@pytest.mark.parametrize(
    ("kind", "address", "text"),
    [
        (1, bytes([127, 0, 0, 1]), "127.0.0.1"),
        (1, bytes([93, 184, 216, 34]), "93.184.216.34"),
        (4, bytes(15) + b"\1", "::1"),
    ],
)
def test_socks_address(granted: Any, kind: int, address: bytes, text: str) -> None:
    """Whatever the rules are: an address is not a name."""
    code, s = granted.socks(b"\5\1\0" + bytes([kind]) + address + granted.port.to_bytes(2, "big"))
    assert code == 2 and s.recv(1) == b""
    told = granted.decision()
    assert (told["reason"], told["host"]) == ("bad_host", text)
    nobody_came(granted)


def test_port_zero(granted: Any) -> None:
    code, _ = granted.socks_name(b"a.test", 0)
    assert code == 2
    assert granted.decision()["reason"] == "bad_host"


# --- SOCKS ---


@pytest.mark.parametrize(("command", "code"), [(2, 7), (3, 7), (0, 7), (255, 7)])
def test_socks_command(granted: Any, command: int, code: int) -> None:
    request = b"\5" + bytes([command]) + b"\0\3\6a.test\0\x50"
    assert granted.socks(request)[0] == code
    assert granted.decision()["reason"] == "bad_request"


def test_socks_kind_of_address(granted: Any) -> None:
    assert granted.socks(b"\5\1\0\2\6a.test\0\x50")[0] == 8


@pytest.mark.parametrize("request_", [b"\4\1\0\3\6a.test\0\x50", b"\5\1\1\3\6a.test\0\x50"])
def test_socks_malformed(granted: Any, request_: bytes) -> None:
    assert granted.socks(request_)[0] == 1
    assert granted.decision()["reason"] == "bad_request"


@pytest.mark.parametrize("methods", [b"\1\2", b"\0", b"\2\1\2"])
def test_socks_without_our_method(granted: Any, methods: bytes) -> None:
    s = granted.stream()
    s.sendall(b"\5" + methods)
    assert recv_all(s) == b"\5\xff"
    assert granted.decision()["reason"] == "bad_request"


# --- CONNECT ---

BAD_HEADS = {
    "bare-lf": "CONNECT a.test:PORT HTTP/1.1\nHost: a.test:PORT\n\n",
    "bare-lf-in-field": "CONNECT a.test:PORT HTTP/1.1\r\nX: a\nHost: b.test\r\n\r\n",
    "bare-cr": "CONNECT a.test:PORT HTTP/1.1\r\nX: a\rHost: b.test\r\n\r\n",
    "bare-cr-in-line": "CONNECT a.test:PORT HTTP/1.1\r\r\n\r\n",
    "nul": "CONNECT a.test\0.evil.test:PORT HTTP/1.1\r\n\r\n",
    "nul-in-field": "CONNECT a.test:PORT HTTP/1.1\r\nX: a\0b\r\n\r\n",
    "control": "CONNECT a.test:PORT HTTP/1.1\r\nX: a\x01b\r\n\r\n",
    "delete": "CONNECT a.test:PORT HTTP/1.1\r\nX: a\x7fb\r\n\r\n",
    "not-ascii": "CONNECT ä.test:PORT HTTP/1.1\r\n\r\n",
    "tab-in-line": "CONNECT a.test:PORT\tHTTP/1.1\r\n\r\n",
    "folded": "CONNECT a.test:PORT HTTP/1.1\r\nHost: a.test:PORT\r\n x: y\r\n\r\n",
    "folded-first": "CONNECT a.test:PORT HTTP/1.1\r\n Host: a.test:PORT\r\n\r\n",
    "space-before-colon": "CONNECT a.test:PORT HTTP/1.1\r\nHost : a.test:PORT\r\n\r\n",
    "no-colon": "CONNECT a.test:PORT HTTP/1.1\r\nHost\r\n\r\n",
    "no-name": "CONNECT a.test:PORT HTTP/1.1\r\n: a\r\n\r\n",
    "no-port": "CONNECT a.test HTTP/1.1\r\n\r\n",
    "empty-port": "CONNECT a.test: HTTP/1.1\r\n\r\n",
    "port-zero-first": "CONNECT a.test:0PORT HTTP/1.1\r\n\r\n",
    "port-0": "CONNECT a.test:0 HTTP/1.1\r\n\r\n",
    "port-65536": "CONNECT a.test:65536 HTTP/1.1\r\n\r\n",
    "port-long": "CONNECT a.test:000443 HTTP/1.1\r\n\r\n",
    "port-sign": "CONNECT a.test:+443 HTTP/1.1\r\n\r\n",
    "port-hexadecimal": "CONNECT a.test:0x50 HTTP/1.1\r\n\r\n",
    "port-name": "CONNECT a.test:https HTTP/1.1\r\n\r\n",
    "two-ports": "CONNECT a.test:PORT:PORT HTTP/1.1\r\n\r\n",
    "no-host": "CONNECT :PORT HTTP/1.1\r\n\r\n",
    "userinfo": "CONNECT user@a.test:PORT HTTP/1.1\r\n\r\n",
    "userinfo-password": "CONNECT a.test:PORT@evil.test:PORT HTTP/1.1\r\n\r\n",
    "url": "CONNECT http://a.test:PORT HTTP/1.1\r\n\r\n",
    "path": "CONNECT a.test:PORT/ HTTP/1.1\r\n\r\n",
    "query": "CONNECT a.test?x:PORT HTTP/1.1\r\n\r\n",
    "fragment": "CONNECT a.test#x:PORT HTTP/1.1\r\n\r\n",
    "backslash": "CONNECT a.test\\:PORT HTTP/1.1\r\n\r\n",
    "two-spaces": "CONNECT  a.test:PORT HTTP/1.1\r\n\r\n",
    "space-at-end": "CONNECT a.test:PORT HTTP/1.1 \r\n\r\n",
    "no-version": "CONNECT a.test:PORT\r\n\r\n",
    "http-0.9": "CONNECT a.test:PORT HTTP/0.9\r\n\r\n",
    "http-2": "CONNECT a.test:PORT HTTP/2.0\r\n\r\n",
    "http-1.2": "CONNECT a.test:PORT HTTP/1.2\r\n\r\n",
    "http-lower": "CONNECT a.test:PORT http/1.1\r\n\r\n",
    "chunked": "CONNECT a.test:PORT HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "length": "CONNECT a.test:PORT HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    "length-twice": "CONNECT a.test:PORT HTTP/1.1\r\nContent-Length: 0\r\n"
    "content-length: 0\r\n\r\n",
    "length-00": "CONNECT a.test:PORT HTTP/1.1\r\nContent-Length: 00\r\n\r\n",
    "expect": "CONNECT a.test:PORT HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
    "many-fields": "CONNECT a.test:PORT HTTP/1.1\r\n" + "X: y\r\n" * 65 + "\r\n",
    "long": "CONNECT a.test:PORT HTTP/1.1\r\nX: " + "y" * 8200 + "\r\n\r\n",
    "long-without-end": "CONNECT a.test:PORT HTTP/1.1\r\nX: " + "y" * 8200,
    "long-target": "CONNECT " + "a" * 600 + ":PORT HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD_HEADS)
def test_connect_in_a_form_that_is_refused(granted: Any, case: str) -> None:
    head = BAD_HEADS[case].replace("PORT", str(granted.port))
    reply = granted.raw(head.encode())
    assert reply.status == 403
    assert reply.denial["reason"] == "bad_request"
    assert granted.decision()["reason"] == "bad_request"
    nobody_came(granted)


@pytest.mark.parametrize(
    "fields",
    [
        "Host: b.test:PORT\r\n",
        "Host: a.test:PORT\r\nHost: a.test:PORT\r\n",
        "Host: a.test:PORT\r\nhost: b.test\r\n",
        "Host: a.test:1\r\n",
        "Host: a.test.:PORT\r\n",
        "Host:\r\n",
        "Host: a.test:PORT, b.test\r\n",
    ],
)
def test_connect_with_a_host_that_is_not_the_target(granted: Any, fields: str) -> None:
    head = f"CONNECT a.test:PORT HTTP/1.1\r\n{fields}\r\n".replace("PORT", str(granted.port))
    told = granted.raw(head.encode()).denial
    assert (told["reason"], told["host"]) == ("host_mismatch", "a.test")
    nobody_came(granted)


@pytest.mark.parametrize("field", ["Host: A.test:PORT", "Host: a.test", "hOST:a.test:PORT  "])
def test_connect_with_a_host_that_is(granted: Any, field: str) -> None:
    head = f"CONNECT a.test:PORT HTTP/1.1\r\n{field}\r\n\r\n".replace("PORT", str(granted.port))
    assert granted.raw(head.encode()).status == 200


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_connect_with_other_fields(granted: Any, version: str) -> None:
    """As curl, pip, npm, git and Go write it."""
    head = (
        f"CONNECT a.test:{granted.port} HTTP/{version}\r\nHost: a.test:{granted.port}\r\n"
        "User-Agent: curl/7.88.1\r\nProxy-Connection: Keep-Alive\r\nConnection: close\r\n"
        "Proxy-Authorization: Basic eDp5\r\nContent-Length: 0\r\nX-Empty:\r\n\r\n"
    )
    assert granted.raw(head.encode()).status == 200


def test_connect_with_upgrade(granted: Any) -> None:
    head = f"CONNECT a.test:{granted.port} HTTP/1.1\r\nUpgrade: websocket\r\n\r\n"
    assert granted.raw(head.encode()).denial["reason"] == "upgrade"
    nobody_came(granted)


def test_denial_is_not_lost_when_the_guest_goes_on_sending(granted: Any) -> None:
    s = granted.stream()
    s.sendall(b"CONNECT other.test:443 HTTP/1.1\r\n\r\n" + bytes(100000))
    assert b'"not_allowed"' in recv_all(s)


def test_guest_that_goes_away_in_the_middle(granted: Any) -> None:
    for piece in (b"", b"C", b"\5", b"\5\1", b"\5\1\0\5\1", b"CONNECT a.test:1"):
        s = granted.stream()
        s.sendall(piece)
        s.close()
    for piece in (b"CONN", b"\5\1\0\5\1"):
        s = granted.stream()
        s.sendall(piece)
        s.shutdown(socket.SHUT_WR)
        try:
            assert recv_all(s) in (b"", b"\5\0")
        except ConnectionResetError:
            pass  # what it has sent was not taken
    assert granted.silent()


def test_names_are_resolved_only_when_they_are_allowed(proxy: Proxy, dns: Dns) -> None:
    proxy.policy(["a.test"], resolve={}, resolvers=[dns.address], ceiling=["b.test"])
    for host, port in (("other.test", 443), ("a.test", 25), ("a.test", 443), ("127.0.0.1", 443)):
        assert proxy.connect(host, port).status == 403
    code, _ = proxy.socks_name(b"other.test", 443)
    assert code == 2
    assert dns.asked == []


def test_the_first_wrong_byte_of_a_second_request(granted: Any) -> None:
    """A SOCKS client that goes on with HTTP, and the other way round."""
    s = granted.stream()
    s.sendall(b"\5\1\0CONNECT a.test:443 HTTP/1.1\r\n\r\n")
    assert recv_exactly(s, 2) == b"\5\0"
    assert recv_exactly(s, 10)[1] == 1
    assert s.recv(1) == b""
