# SPDX-License-Identifier: Apache-2.0
"""Policies: what is not one allows nothing; a new one holds at once, for what is open too; limits."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
from pathlib import Path
from typing import Any

import hellos
import pytest
from conftest import Proxy, policy, recv_all, recv_exactly, until
from servers import Dns, Tcp


def plain(port: int, host: str = "a.test") -> dict[str, Any]:
    return {"host": host, "ports": [port], "tls": False}


# --- fail closed ---


def test_without_a_policy(proxy: Proxy) -> None:
    told = proxy.connect("a.test", 443).denial
    assert told["reason"] == "policy" and "no policy" in told["detail"]
    code, _ = proxy.socks_name(b"a.test", 443)
    assert code == 2
    assert proxy.decision()["reason"] == "policy"


GOOD = policy(["a.test"])

BAD_POLICIES: dict[str, tuple[Any, str]] = {
    "not-json": (b"{", "JSON"),
    "empty-list": (b"[]", "JSON"),
    "two-documents": (json.dumps(GOOD).encode() * 2, "JSON"),
    "member-twice": (json.dumps(GOOD)[:-1].encode() + b', "allow": []}', "JSON"),
    "not-utf8": (json.dumps(GOOD).encode().replace(b"sb_test", b"\xff"), "JSON"),
    "unknown-member": ({**GOOD, "alow": []}, "unknown"),
    "no-allow": ({k: v for k, v in GOOD.items() if k != "allow"}, "allow"),
    "no-ceiling": ({k: v for k, v in GOOD.items() if k != "ceiling"}, "ceiling"),
    "no-sandbox": ({k: v for k, v in GOOD.items() if k != "sandbox"}, "sandbox"),
    "allow-null": ({**GOOD, "allow": None}, "allow"),
    "allow-entry": ({**GOOD, "allow": ["a.test", "127.0.0.1"]}, "127.0.0.1"),
    "allow-group": ({**GOOD, "allow": ["nowhere"]}, "nowhere"),
    "ceiling-entry": ({**GOOD, "ceiling": ["*"]}, "ceiling"),
    "ceiling-text": ({**GOOD, "ceiling": "a.test"}, "ceiling"),
    "groups": ({**GOOD, "groups": []}, "groups"),
    "range": ({**GOOD, "allow_ranges": ["127.0.0.1"]}, "allow_ranges"),
    "ranges": ({**GOOD, "allow_ranges": None}, "allow_ranges"),
    "own": ({**GOOD, "own_ranges": ["127.0.0.1"]}, "own_ranges"),
    "resolve-name": ({**GOOD, "resolve": {"127.0.0.1": []}}, "resolve"),
    "resolve-address": ({**GOOD, "resolve": {"a.test": ["b.test"]}}, "resolve"),
    "resolve-text": ({**GOOD, "resolve": {"a.test": "127.0.0.1"}}, "resolve"),
    "resolve-twice": ({**GOOD, "resolve": {"a.test": [], "A.test": []}}, "twice"),
    "resolvers-empty": ({**GOOD, "resolvers": []}, "resolvers"),
    "resolvers-name": ({**GOOD, "resolvers": ["dns.test"]}, "resolvers"),
    "resolvers-form": ({**GOOD, "resolvers": ["1.2.3"]}, "resolvers"),
    "resolvers-port": ({**GOOD, "resolvers": ["127.0.0.1:70000"]}, "resolvers"),
    "resolvers-port-0": ({**GOOD, "resolvers": ["127.0.0.1:0"]}, "resolvers"),
    "resolvers-ipv6": ({**GOOD, "resolvers": ["[::1:53"]}, "resolvers"),
    "resolvers-comma": ({**GOOD, "resolvers": ["127.0.0.1,127.0.0.2"]}, "resolvers"),
    "limits": ({**GOOD, "limits": []}, "limits"),
    "limits-unknown": ({**GOOD, "limits": {"connection": 1}}, "limits"),
    "limits-zero": ({**GOOD, "limits": {"bytes": 0}}, "bytes"),
    "limits-negative": ({**GOOD, "limits": {"idle_s": -1}}, "idle_s"),
    "limits-text": ({**GOOD, "limits": {"total_s": "1"}}, "total_s"),
    "limits-large": ({**GOOD, "limits": {"connections": 100000}}, "connections"),
    "ca": ({**GOOD, "ca": {"cert_pem": "x"}}, "ca"),
    "upstream-ca": ({**GOOD, "upstream_ca_pem": 5}, "upstream_ca_pem"),
    "inject": ({**GOOD, "inject": []}, "inject"),
    "inject-host": ({**GOOD, "inject": {"*.a.test": {"headers": {}}}}, "inject"),
    "inject-member": ({**GOOD, "inject": {"a.test": {"headers": {}, "x": 1}}}, "inject"),
    "inject-no-headers": ({**GOOD, "inject": {"a.test": {"intercept": True}}}, "inject"),
    "inject-intercept": ({**GOOD, "inject": {"a.test": {"headers": {}, "intercept": 1}}}, "inject"),
    "inject-twice": (
        {**GOOD, "inject": {"a.test": {"headers": {}}, "A.test": {"headers": {}}}}, "inject"
    ),
    "inject-value": ({**GOOD, "inject": {"a.test": {"headers": {"X": "s3cret\r\nY: z"}}}}, "X"),
    "inject-name": ({**GOOD, "inject": {"a.test": {"headers": {"X Y": "s3cret"}}}}, "token"),
    "inject-not-text": ({**GOOD, "inject": {"a.test": {"headers": {"X": 1}}}}, "X"),
    "inject-framing": ({**GOOD, "inject": {"a.test": {"headers": {"content-length": "1"}}}}, "con"),
    "inject-hop": ({**GOOD, "inject": {"a.test": {"headers": {"Connection": "x"}}}}, "Connection"),
    "inject-same": ({**GOOD, "inject": {"a.test": {"headers": {"X-A": "1", "x_a": "2"}}}}, "twice"),
    "inject-itself": ({**GOOD, "inject": {"a.test": {"headers": {"Host": "b.test"}}}}, "Host"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_policy_that_cannot_be_used(proxy: Proxy, echo: Tcp, case: str) -> None:
    """It is refused with a sentence that says what is wrong, and nothing is allowed any more."""
    proxy.policy([plain(echo.port)])
    s = proxy.connect("a.test", echo.port).socket
    document, word = BAD_POLICIES[case]
    reply = proxy.put(document)
    assert word in reply["error"] and reply["ca"] is None
    assert "s3cret" not in reply["error"]
    # What was open is cut, before the reply.
    ends = [m for m in proxy.seen if m["type"] == "end"]
    assert [m["why"] for m in ends] == ["policy"]
    assert s.recv(1) == b""
    told = proxy.connect("a.test", echo.port).denial
    assert told["reason"] == "policy" and word in told["detail"]
    assert proxy.test("a.test")["reason"] == "policy"
    # And another policy makes it work again.
    proxy.policy([plain(echo.port)])
    assert proxy.connect("a.test", echo.port).status == 200


@pytest.mark.jail
def test_policy_that_is_not_sealed(proxy: Proxy) -> None:
    assert "sealed" in proxy.put(policy(["a.test"]), sealed=False)["error"]


def test_policy_in_something_else(proxy: Proxy) -> None:
    a, b = socket.socketpair()
    with a, b:
        proxy.send({"type": "policy", "serial": 5}, (a.fileno(),))
        assert "sealed" in proxy.wait("policy")["error"]


def test_policy_of_size(proxy: Proxy) -> None:
    assert "empty" in proxy.put(b"")["error"]
    assert "larger" in proxy.put(b" " * ((4 << 20) + 1))["error"]
    large = json.dumps(policy(["a.test"])).encode()
    assert proxy.put(large + b" " * ((4 << 20) - len(large)))["error"] is None


@pytest.mark.parametrize(
    "message",
    [
        b"not JSON",
        {"type": "other"},
        {"type": "stream", "id": 1},
        {"type": "policy", "serial": 1},
        {"type": "test", "serial": 1, "host": 5, "port": 443},
        {"type": "test", "serial": 1, "host": "a.test", "port": 65536},
    ],
)
def test_message_that_is_none_ends_the_proxy(tmp_path: Any, message: Any) -> None:
    """The daemon does not send such: one that does is not what we think it is."""
    p = Proxy(tmp_path)
    p.send(message)
    with pytest.raises(EOFError):
        p.receive()
    assert p.process.wait(30) == 1
    assert "daemon" in p.log.read_text()


@pytest.mark.jail
def test_ends_with_the_control_socket(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)])
    s = proxy.connect("a.test", echo.port).socket
    waiting = proxy.stream()
    proxy.ctl.close()
    assert s.recv(1) == b"" and waiting.recv(1) == b""
    assert proxy.process.wait(30) == 0


# --- new policies ---


@pytest.mark.jail
def test_new_policy_cuts_what_it_does_not_allow(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port), plain(echo.port, "b.test")])
    a = proxy.connect("a.test", echo.port).socket
    b = proxy.connect("b.test", echo.port).socket
    proxy.policy([plain(echo.port, "b.test")])
    ends = [m for m in proxy.seen if m["type"] == "end"]
    assert [(m["host"], m["why"]) for m in ends] == [("a.test", "policy_changed")]
    assert a.recv(1) == b""
    b.sendall(b"still here")
    assert recv_exactly(b, 10) == b"still here"
    assert proxy.connect("a.test", echo.port).denial["reason"] == "not_allowed"
    proxy.policy([plain(echo.port)])
    assert proxy.connect("a.test", echo.port).status == 200
    assert b.recv(1) == b""


@pytest.mark.parametrize(
    "change",
    [
        {"allow": ["a.test"]},  # another port
        {"ceiling": ["b.test"]},
        {"allow_ranges": []},
        {"tls": True},
    ],
)
def test_new_policy_looks_at_everything(proxy: Proxy, echo: Tcp, change: dict[str, Any]) -> None:
    proxy.policy([plain(echo.port)])
    s = proxy.connect("a.test", echo.port).socket
    allow = change.pop("allow", [{**plain(echo.port), "tls": change.pop("tls", False)}])
    proxy.policy(allow, **change)
    assert s.recv(1) == b""
    assert [m["why"] for m in proxy.seen if m["type"] == "end"] == ["policy_changed"]


def test_new_policy_while_a_name_is_resolved(proxy: Proxy, dns: Dns) -> None:
    """The question begins anew: what the old policy allows does not matter any more."""
    dns.answers["a.test"] = None
    proxy.policy(["a.test", "b.test"], resolve={}, resolvers=[dns.address])
    a, b = proxy.stream(), proxy.stream()
    a.sendall(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n")
    b.sendall(b"CONNECT a.test:80 HTTP/1.1\r\n\r\n")
    until(lambda: len(dns.asked) >= 4)
    dns.answers["a.test"] = ["127.0.0.1"]
    proxy.policy(["a.test:80"], resolve={}, resolvers=[dns.address], allow_ranges=[])
    assert b'"port"' in recv_all(a)
    assert b'"address"' in recv_all(b)
    reasons = {m["port"]: m["reason"] for m in proxy.seen if m["type"] == "decision"}
    assert reasons[443] == "port"


def test_resolvers_of_the_policy_before_are_forgotten(proxy: Proxy, dns: Dns) -> None:
    with Dns() as other:
        dns.answers["a.test"] = other.answers["a.test"] = ["127.0.0.1"]
        proxy.policy(["a.test"], resolve={}, resolvers=[dns.address])
        proxy.connect("a.test", 443)
        asked = len(dns.asked)
        proxy.policy(["a.test"], resolve={}, resolvers=[other.address])
        proxy.connect("a.test", 443)
        assert (len(dns.asked), len(other.asked)) == (asked, asked) and asked > 0


def test_resolvers_of_all_forms(proxy: Proxy) -> None:
    proxy.policy([], resolvers=["127.0.0.1", "127.0.0.1:53", "::1", "[::1]:5353"])


def test_exec_of_each_stream(proxy: Proxy) -> None:
    proxy.policy([])
    for exec_id in ("exec_1", None, "exec_2"):
        proxy.connect("a.test", 443, exec_id)
    assert [proxy.decision()["exec"] for _ in range(3)] == ["exec_1", None, "exec_2"]


def test_exec_of_a_stream_that_has_ended(proxy: Proxy, echo: Tcp) -> None:
    """The end of what was allowed is told behind that of its stream."""
    proxy.policy([plain(echo.port)])
    proxy.connect("a.test", echo.port, "exec_1").socket.close()
    assert proxy.end()["exec"] == "exec_1"
    with proxy.stream("exec_2") as s:
        s.sendall(f"GET http://a.test:{echo.port}/ HTTP/1.1\r\nHost: a.test:{echo.port}\r\n\r\n".encode())
        assert proxy.decision(proto="http")["verdict"] == "allow"
    assert proxy.end()["exec"] == "exec_2"


# --- limits ---


def test_limit_of_connections(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)], limits={"connections": 2})
    one, _two = (proxy.connect("a.test", echo.port) for _ in range(2))
    told = proxy.connect("a.test", echo.port).denial
    assert told["reason"] == "connections"
    one.socket.close()
    proxy.end()
    assert proxy.connect("a.test", echo.port).status == 200


def used_up(s: socket.socket) -> int:
    """Bytes that come back before the end."""
    got = 0
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            s.sendall(bytes(10000))
            got += len(recv_exactly(s, 10000))
    return got


def test_limit_of_bytes_is_the_sandboxs(proxy: Proxy, echo: Tcp) -> None:
    """What proxies before this one have let through counts; what this one does is told before it
    is over, so that the next one knows."""
    proxy.send({"type": "used", "bytes": 600000})
    proxy.policy([plain(echo.port)], limits={"bytes": 1000000})
    got = used_up(proxy.connect("a.test", echo.port).socket)
    assert 100000 <= got <= 250000
    assert proxy.end()["why"] == "bytes"
    told = [m["bytes"] for m in proxy.seen if m["type"] == "used"]
    assert told == sorted(set(told)) and 1000000 - 600000 - 2 * 62500 < told[-1] <= 450000
    assert proxy.connect("a.test", echo.port).denial["reason"] == "bytes"


def test_a_limit_of_bytes_that_others_have_used(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)], limits={"bytes": 1000000})
    s = proxy.connect("a.test", echo.port).socket
    s.sendall(b"a")
    assert recv_exactly(s, 1) == b"a"
    proxy.send({"type": "used", "bytes": 999000})
    s.sendall(b"b")
    assert recv_exactly(s, 1) == b"b"
    proxy.send({"type": "used", "bytes": 1000000})
    assert proxy.end()["why"] == "bytes"
    assert proxy.connect("a.test", echo.port).denial["reason"] == "bytes"
    proxy.send({"type": "used", "bytes": 0})
    assert proxy.connect("a.test", echo.port).status == 200


def test_limit_of_bytes(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)], limits={"bytes": 1000000})
    s = proxy.connect("a.test", echo.port).socket
    other = proxy.connect("a.test", echo.port).socket
    got = 0
    try:
        while True:
            s.sendall(bytes(10000))
            got += len(recv_exactly(s, 10000))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    assert 400000 <= got <= 600000
    assert other.recv(1) == b""
    ends = [proxy.end(), proxy.end()]
    assert [e["why"] for e in ends] == ["bytes", "bytes"]
    assert sum(e["bytes_up"] + e["bytes_down"] for e in ends) < 1200000
    assert proxy.connect("a.test", echo.port).denial["reason"] == "bytes"
    # It counts on: a limit that is raised leaves the rest.
    proxy.policy([plain(echo.port)], limits={"bytes": 2000000})
    assert proxy.connect("a.test", echo.port).status == 200
    proxy.policy([plain(echo.port)], limits={"bytes": 1000000})
    assert proxy.connect("a.test", echo.port).denial["reason"] == "bytes"


@pytest.mark.jail
def test_limit_of_rate(proxy: Proxy, echo: Tcp) -> None:
    """As many bytes as take a second at least, both directions and all connections together."""
    proxy.policy([plain(echo.port)], limits={"bytes_per_s": 1 << 20})
    streams = [proxy.connect("a.test", echo.port).socket for _ in range(4)]
    began = time.monotonic()
    for s in streams:
        s.sendall(bytes(200 << 10))
    for s in streams:
        assert len(recv_exactly(s, 200 << 10)) == 200 << 10
    # 1600 KiB at 1024 KiB/s, less what the bucket had; a slow machine only takes longer.
    assert time.monotonic() - began > 1.0
    proxy.policy([plain(echo.port)])
    streams[0].sendall(bytes(8 << 20)[: 1 << 17])
    assert len(recv_exactly(streams[0], 1 << 17)) == 1 << 17


def test_limit_of_rate_that_is_low(proxy: Proxy, echo: Tcp) -> None:
    """Less than a byte each time that somebody looks; and no more than that was left unused."""
    proxy.policy([plain(echo.port)], limits={"bytes_per_s": 40})
    s = proxy.connect("a.test", echo.port).socket
    began = time.monotonic()
    for _ in range(2):
        s.sendall(bytes(40))
        assert len(recv_exactly(s, 40)) == 40
    assert time.monotonic() - began > 2.0


def test_limit_of_idleness(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)], limits={"idle_s": 1})
    s = proxy.connect("a.test", echo.port).socket
    s.sendall(b"x")
    assert recv_all(s) == b"x"
    assert proxy.end()["why"] == "idle"


def test_limit_of_total_time(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)], limits={"total_s": 2, "idle_s": 60})
    s = proxy.connect("a.test", echo.port).socket
    sent = 0
    try:
        while sent < 1000:
            s.sendall(b"x")
            recv_exactly(s, 1)
            sent += 1
            time.sleep(0.05)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    assert 0 < sent < 1000
    assert proxy.end()["why"] == "total"


@pytest.mark.parametrize("begin", [b"CONNECT a.test", b"\5", b"\5\1\0\5"])
def test_request_that_does_not_come(proxy: Proxy, begin: bytes) -> None:
    proxy.policy([], limits={"idle_s": 1})
    s = proxy.stream()
    s.sendall(begin)
    assert recv_all(s)[-10:] != b""
    assert proxy.decision()["reason"] == "idle"


def test_guest_that_says_nothing(proxy: Proxy) -> None:
    proxy.policy([], limits={"idle_s": 1})
    assert proxy.stream().recv(1) == b""
    assert proxy.silent()


def test_client_hello_that_does_not_come(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([f"a.test:{echo.port}"], limits={"idle_s": 1})
    s = proxy.connect("a.test", echo.port).socket
    s.sendall(b"\x16\3\1")
    assert recv_all(s) in (b"", hellos.ALERT_DENIED)
    assert proxy.end()["why"] in ("idle", "not_tls")


def test_new_times_hold_for_what_is_open(proxy: Proxy, echo: Tcp) -> None:
    proxy.policy([plain(echo.port)], limits={"idle_s": 3600})
    s = proxy.connect("a.test", echo.port).socket
    proxy.policy([plain(echo.port)], limits={"idle_s": 1})
    assert s.recv(1) == b""
    assert proxy.end()["why"] == "idle"


def test_streams_are_bounded(proxy: Proxy) -> None:
    """Those that say nothing are no connections yet; they are bounded all the same."""
    proxy.policy([])
    streams = [proxy.stream() for _ in range(256)]
    assert proxy.stream().recv(1) == b""
    streams.pop().close()

    def answered() -> bool:
        try:
            return proxy.connect("a.test", 443).status == 403
        except (EOFError, ConnectionError):
            return False  # the end of the other one was not seen yet

    until(answered)


def full(proxy: Proxy) -> list[socket.socket]:
    """Guests that asked until the control socket was full; the last one has no answer."""
    guests = []
    while len(guests) < 200:
        s = proxy.stream()
        s.sendall(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n")
        guests.append(s)
        if not select.select([s], [], [], 1.0)[0]:
            return guests
    raise AssertionError("the socket does not get full")


def test_daemon_that_does_not_read_holds_verdicts_back(tmp_path: Path) -> None:
    """A verdict is not seen before it was told. When the socket is full, guests wait."""
    p = Proxy(tmp_path, room=4096)
    p.policy([])
    guests = full(p)
    told = [p.decision()["stream"] for _ in guests]
    assert told == list(range(1, len(guests) + 1))
    for s in guests:
        assert b"not_allowed" in recv_all(s)
    p.close()


def test_daemon_that_never_reads_ends_it(tmp_path: Path) -> None:
    p = Proxy(tmp_path, room=4096)
    p.policy([])
    guests = full(p)
    assert p.process.wait(60) == 1
    assert guests[-1].recv(1) == b""  # without a verdict
    assert "record" in p.log.read_text()


def test_memfd_is_closed(proxy: Proxy) -> None:
    """Policies leave no descriptor behind."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{proxy.pid}/fd"))

    proxy.policy([])
    until(lambda: proxy.silent() and descriptors() == 7)  # test_descriptors
    for _ in range(20):
        proxy.policy([])
        proxy.put(b"{")
    until(lambda: proxy.silent() and descriptors() == 7)
