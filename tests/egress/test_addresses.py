# SPDX-License-Identifier: Apache-2.0
"""What a name leads to: only addresses that may be reached, as they were checked, and what happens
when the resolver is of no help."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Proxy, recv_exactly, until
from http_parts import read
from servers import Dns, Tcp


def reach(port: int) -> dict[str, Any]:
    return {"host": "a.test", "ports": [port], "tls": False}


NOT_PUBLIC = {
    "loopback": "127.0.0.1",
    "loopback-other": "127.8.8.8",
    "this-network": "0.0.0.0",
    "private-10": "10.0.0.1",
    "private-172": "172.31.255.255",
    "private-192": "192.168.1.1",
    "shared": "100.64.0.1",
    "link-local": "169.254.1.1",
    "metadata": "169.254.169.254",
    "metadata-other": "100.100.100.200",
    "multicast": "224.0.0.1",
    "broadcast": "255.255.255.255",
    "reserved": "240.0.0.1",
    "documentation": "192.0.2.1",
    "benchmark": "198.18.0.1",
    "loopback-6": "::1",
    "unspecified-6": "::",
    "mapped": "::ffff:127.0.0.1",
    "mapped-public": "::ffff:93.184.216.34",
    "compatible": "::7f00:1",
    "link-local-6": "fe80::1",
    "unique-local": "fd00::1",
    "metadata-6": "fd00:ec2::254",
    "multicast-6": "ff02::1",
    "6to4": "2002:7f00:1::",
    "teredo": "2001::1",
    "nat64": "64:ff9b::7f00:1",
    "documentation-6": "2001:db8::1",
}


@pytest.mark.parametrize("case", NOT_PUBLIC)
def test_address_that_is_not_public(proxy: Proxy, dns: Dns, case: str) -> None:
    dns.answers["a.test"] = [NOT_PUBLIC[case]]
    proxy.policy(["a.test"], resolve={}, resolvers=[dns.address], allow_ranges=[])
    told = proxy.connect("a.test", 443).denial
    assert told["reason"] == "address"
    record = proxy.decision()
    # The operator sees which address it was, the guest only what kind.
    assert ipaddress.ip_address(record["address"]) == ipaddress.ip_address(NOT_PUBLIC[case])
    assert NOT_PUBLIC[case] not in str(told)


def test_the_same_from_the_policys_own_answers(proxy: Proxy) -> None:
    proxy.policy(["a.test"], resolve={"a.test": ["10.0.0.1"]}, allow_ranges=[])
    assert proxy.connect("a.test", 443).denial["reason"] == "address"


@pytest.mark.jail
def test_a_range_allows_it(proxy: Proxy, dns: Dns, echo: Tcp) -> None:
    dns.answers["a.test"] = ["127.0.0.1"]
    members = {"resolve": {}, "resolvers": [dns.address]}
    proxy.policy([reach(echo.port)], allow_ranges=["127.0.0.1/32"], **members)
    assert proxy.connect("a.test", echo.port).status == 200
    assert proxy.decision()["address"] == "127.0.0.1"
    dns.answers["a.test"] = ["127.0.0.2"]
    assert proxy.connect("a.test", echo.port).denial["reason"] == "address"


OWN = ["9.9.9.9/32", "8.8.4.1/24", "8.8.4.2/24", "2606:4700::1111/128"]


# Prefixes that end here without being an interface's, what is in them and what is not; d0 is an
# interface that has the first address of a net as an anycast one.
LOCAL_ROUTES = """
ip link set lo up
ip addr add 192.0.2.1/32 dev lo
ip -6 addr add 2606:4700::1111/128 dev lo
ip link add d0 type veth peer name d1
ip link set d0 up
ip link set d1 up
ip -6 addr add 2a00:1460::1/64 dev d0 nodad
echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
ip -6 route add default dev d0
ip route add default dev d0
ip route add local 9.9.0.0/20 dev lo
ip -6 route add local 2a00:1450::/61 dev lo
ip -6 route add local 2a00:1470::/64 dev d0
ip -6 route add local 2a00:1480::/64 dev lo table 7
ip -6 rule add to 2a00:1480::/32 lookup 7
ip -6 route add local ::/0 dev lo table 8
ip -6 rule add fwmark 1 lookup 8
ip route add local 0.0.0.0/0 dev lo table 8
"""
ENDS_HERE = ["9.9.15.255", "2a00:1450:0:7:ffff::", "2a00:1470::5", "2a00:1480::5", "2a00:1460::"]
ENDS_ELSEWHERE = ["9.9.16.0", "1.1.1.1", "2a00:1450:0:8::", "2a00:1460::2", "2a00:1470:0:1::5",
                  "2a00:1490::1"]  # fmt: skip


@pytest.mark.jail
def test_prefixes_of_this_host(tmp_path: Path) -> None:
    """Local routes of every kind, and what is local only for packets with a mark is not."""
    unshare = ("unshare", "-n" if os.geteuid() == 0 else "-rn")
    if subprocess.run([*unshare, "ip", "link", "add", "type", "veth"], check=False).returncode:
        pytest.skip("this kernel has no veth")
    script = f'{LOCAL_ROUTES}\nexec "$@"'
    proxy = Proxy(tmp_path, before=(*unshare, "sh", "-ec", script, "sh"))

    def why(address: str) -> str:
        proxy.policy(["a.test"], resolve={"a.test": [address]}, allow_ranges=[])
        (one,) = proxy.test("a.test")["addresses"]
        assert one["allowed"] == (one["why"] == "a public address")
        return str(one["why"])

    try:
        for address in ENDS_HERE:
            assert why(address) == "an address of this host itself", address
            assert proxy.connect("a.test", 443).denial["reason"] == "address"
        for address in ENDS_ELSEWHERE:
            assert why(address) == "a public address", address
        if os.geteuid() == 0:
            ns = ["nsenter", f"--net=/proc/{proxy.pid}/ns/net", "ip", "-6", "route", "add", "local"]
            subprocess.run([*ns, "2a00:1490::/64", "dev", "lo"], check=True)
            assert why("2a00:1490::1") == "an address of this host itself"
    finally:
        proxy.close()


@pytest.mark.jail
def test_addresses_of_this_host(tmp_path: Path) -> None:
    """Public ones that are its own: the first of a net and one more, one that came later; unless the
    operator allows them."""
    add = "".join(f" && ip addr add {address} dev lo" for address in OWN)
    proxy = Proxy(
        tmp_path,
        before=(
            *("unshare", "-n" if os.geteuid() == 0 else "-rn"),
            *("sh", "-ec", f'ip link set lo up{add}; exec "$@"', "sh"),
        ),
    )

    def why(address: str, **members: Any) -> tuple[bool, str]:
        proxy.policy(["a.test"], resolve={"a.test": [address]}, **{"allow_ranges": [], **members})
        (one,) = proxy.test("a.test")["addresses"]
        return one["allowed"], one["why"]

    try:
        for address in (own.partition("/")[0] for own in OWN):
            assert why(address) == (False, "an address of this host itself"), address
            assert proxy.connect("a.test", 443).denial["reason"] == "address"
        assert why("9.9.9.10") == (True, "a public address")
        # The kernel makes all of the net of lo's address local.
        assert why("8.8.4.3") == (False, "an address of this host itself")
        assert why("8.8.5.3") == (True, "a public address")
        enter = ["nsenter", f"--net=/proc/{proxy.pid}/ns/net", "ip", "addr", "add"]
        if os.geteuid() == 0:
            subprocess.run([*enter, "9.9.9.10/32", "dev", "lo"], check=True)
            assert why("9.9.9.10") == (False, "an address of this host itself")
        assert why("9.9.9.9", allow_ranges=["9.9.9.0/24"]) == (True, "a public address")
        proxy.policy(["a.test"], resolve={"a.test": ["9.9.9.9", "1.1.1.1"]}, allow_ranges=[])
        assert proxy.connect("a.test", 443).denial["reason"] == "upstream"
        assert proxy.decision(verdict="allow")["address"] == "1.1.1.1"
    finally:
        proxy.close()


def test_own_ranges(proxy: Proxy) -> None:
    """What only leads back to this host is refused like its own addresses, and allowed like them."""

    def why(address: str, **members: Any) -> tuple[bool, str]:
        own = {"own_ranges": ["9.9.9.8/31", "2a00::/16"], "allow_ranges": []}
        proxy.policy(["a.test"], resolve={"a.test": [address]}, **{**own, **members})
        (one,) = proxy.test("a.test")["addresses"]
        return one["allowed"], one["why"]

    for address in ("9.9.9.8", "9.9.9.9", "2a00:1::5"):
        assert why(address) == (False, "an address of this host itself"), address
        assert proxy.connect("a.test", 443).denial["reason"] == "address"
    for address in ("9.9.9.10", "2a01::1"):
        assert why(address) == (True, "a public address"), address
    assert why("9.9.9.9", allow_ranges=["9.9.9.9/32"]) == (True, "a public address")
    assert why("10.0.0.1", own_ranges=["10.0.0.0/8"]) == (False, "a private address")
    # A range that was meant for others does not open them: only one of that address alone does.
    for address, wide in (("9.9.9.9", "9.9.9.0/24"), ("2a00:1::5", "2a00::/16")):
        assert why(address, allow_ranges=[wide]) == (False, "an address of this host itself")
    assert why("2a00:1::5", allow_ranges=["2a00:1::5/128"]) == (True, "a public address")
    private = {"own_ranges": ["10.0.2.0/24"], "allow_ranges": ["10.0.0.0/8", "10.0.2.4/32"]}
    for address in ("10.0.2.2", "10.0.2.3", "10.0.2.15"):
        assert why(address, **private) == (False, "an address of this host itself"), address
    assert why("10.0.3.2", **private) == (True, "a private address, allowed by the range 10.0.0.0/8")
    # A translator on the way would make them of these.
    for address, more in (
        ("64:ff9b::9.9.9.9", {}),
        ("64:ff9b::9.9.9.9", {"allow_ranges": ["9.9.9.0/24"]}),
        ("64:ff9b::10.0.2.2", private),
        ("64:ff9b:1::10.0.2.2", {**private, "allow_ranges": ["64:ff9b:1::/96", "10.0.0.0/8"]}),
    ):
        assert why(address, **more) == (False, "an address of this host itself"), address
    carried = why("64:ff9b::9.9.9.9", allow_ranges=["9.9.9.9/32"])
    assert carried == (True, "a NAT64 address that carries a public address")
    assert why("64:ff9b::9.9.9.10")[0]
    assert why("10.0.2.4", **private) == (True, "a private address, allowed by the range 10.0.2.4/32")


def test_the_first_that_is_allowed_is_dialled(proxy: Proxy, dns: Dns) -> None:
    with Tcp(address="127.0.0.3") as server, Tcp(address="127.0.0.1", port=server.port) as other:
        dns.answers["a.test"] = ["10.1.1.1", "127.0.0.1", "169.254.169.254", "127.0.0.3"]
        proxy.policy(
            [reach(server.port)], resolve={}, resolvers=[dns.address],
            allow_ranges=["127.0.0.3/32"],
        )  # fmt: skip
        s = proxy.connect("a.test", server.port).socket
        s.sendall(b"here")
        assert recv_exactly(s, 4) == b"here"
        assert (server.accepted, other.accepted) == (1, 0)
    assert proxy.decision()["address"] == "127.0.0.3"


@pytest.mark.jail
def test_rebinding(proxy: Proxy, dns: Dns) -> None:
    """The first answer may be reached, those after it may not: whoever is dialled was in the answer
    that was checked."""
    with Tcp(address="127.0.0.3") as good, Tcp(address="127.0.0.1", port=good.port) as bad:
        turns = iter([["127.0.0.3"]] + [["127.0.0.1"]] * 20)
        dns.answers["a.test"] = lambda kind: next(turns) if kind == Dns.A else []
        proxy.policy(
            [reach(good.port)], resolve={}, resolvers=[dns.address], allow_ranges=["127.0.0.3/32"]
        )
        s = proxy.connect("a.test", good.port).socket
        s.sendall(b"good")
        assert recv_exactly(s, 4) == b"good"
        assert [k for _, k in dns.asked].count(Dns.A) == 1  # nobody asked again to dial
        assert proxy.connect("a.test", good.port).denial["reason"] == "address"
        assert bad.accepted == 0


def test_exactly_the_name_is_asked(proxy: Proxy, dns: Dns, echo: Tcp) -> None:
    proxy.policy([reach(echo.port)], resolve={}, resolvers=[dns.address])
    assert proxy.connect("a.test", echo.port).denial["reason"] == "no_name"
    assert set(dns.asked) == {("a.test", Dns.A), ("a.test", Dns.AAAA)}


@pytest.mark.jail
def test_answer_by_tcp(proxy: Proxy, dns: Dns, echo: Tcp) -> None:
    dns.truncated = True
    dns.answers["a.test"] = [f"10.0.0.{i}" for i in range(1, 30)] + ["127.0.0.1"]
    proxy.policy([reach(echo.port)], resolve={}, resolvers=[dns.address])
    assert proxy.connect("a.test", echo.port).status == 200
    assert dns.stream.accepted > 0


def test_ipv4_when_there_is_both(proxy: Proxy, dns: Dns, echo: Tcp) -> None:
    dns.answers["a.test"] = ["::1", "127.0.0.1"]
    proxy.policy(
        [reach(echo.port)], resolve={}, resolvers=[dns.address],
        allow_ranges=["127.0.0.1/32", "::1/128"],
    )  # fmt: skip
    assert proxy.connect("a.test", echo.port).status == 200
    assert proxy.decision()["address"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Dns.NXDOMAIN, "no_name"),
        ([], "no_name"),
        (Dns.SERVFAIL, "resolver"),
        (Dns.REFUSED, "resolver"),
        (None, "resolver"),
    ],
)
def test_resolver_of_no_help(proxy: Proxy, dns: Dns, answer: Any, reason: str) -> None:
    dns.answers["a.test"] = answer
    proxy.policy(["a.test"], resolve={}, resolvers=[dns.address])
    told = proxy.connect("a.test", 443).denial
    assert told["reason"] == reason and "a.test" in told["detail"]
    assert proxy.decision()["reason"] == reason


@pytest.mark.parametrize("answered", [Dns.A, Dns.AAAA])
@pytest.mark.parametrize("silent", [1, 3])
def test_resolver_silent_about_a_kind(
    proxy: Proxy, dns: Dns, answered: int, silent: int
) -> None:
    """What it answers is enough, however many there are to be asked."""
    address = "127.0.0.1" if answered == Dns.A else "::1"
    ranges = {"allow_ranges": ["127.0.0.0/8", "::1/128"]}
    with contextlib.ExitStack() as stack:
        echo = stack.enter_context(Tcp(address=address))
        more = [stack.enter_context(Dns()) for _ in range(silent - 1)]
        for one in [dns, *more]:
            one.answers["a.test"] = lambda kind: [address] if kind == answered else None
        addresses = [one.address for one in [dns, *more]]
        rule = {"host": "a.test", "ports": [echo.port], "tls": False}
        proxy.policy([rule], resolve={}, resolvers=addresses, **ranges)
        r = proxy.connect("a.test", echo.port)
        assert r.status == 200
        r.socket.close()


@pytest.mark.jail
def test_resolver_is_dead(proxy: Proxy) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    proxy.policy(["a.test"], resolve={}, resolvers=[address])
    assert proxy.connect("a.test", 443).denial["reason"] == "resolver"
    code, _ = proxy.socks_name(b"a.test", 443)
    assert code == 2


def test_answers_that_are_none(proxy: Proxy, dns: Dns) -> None:
    """Packets that nobody asked for, too short or of another question, are no answers."""
    reply = dns.reply

    def lie(packet: bytes) -> bytes:
        honest = reply(packet)
        assert honest
        for wrong in (b"", honest[:5], bytes([honest[0] ^ 1]) + honest[1:], bytes(600)):
            dns.socket.sendto(wrong, dns.peer)
        return honest.replace(b"\1a\4test", b"\1b\4test")

    dns.answers["a.test"] = ["127.0.0.1"]
    dns.reply = lie  # type: ignore[method-assign]
    proxy.policy(["a.test"], resolve={}, resolvers=[dns.address])
    assert proxy.connect("a.test", 443).denial["reason"] == "resolver"


def test_guest_goes_away_while_the_name_is_resolved(proxy: Proxy, dns: Dns) -> None:
    dns.answers["a.test"] = None
    proxy.policy(["a.test"], resolve={}, resolvers=[dns.address], limits={"connections": 1})
    s = proxy.stream()
    s.sendall(b"CONNECT a.test:443 HTTP/1.1\r\n\r\n")
    while not dns.asked:
        assert proxy.silent()
    assert proxy.connect("a.test", 443).denial["reason"] == "connections"
    s.close()
    # It is forgotten: the next one is asked about.
    proxy.policy(["a.test"], limits={"connections": 1})
    assert proxy.connect("a.test", 443).denial["reason"] == "upstream"


@pytest.mark.jail
def test_questions_that_were_given_up_count(proxy: Proxy, dns: Dns) -> None:
    """A guest that asks and leaves has as many names looked up at once as one that stays."""
    for i in range(5):
        dns.answers[f"h{i}.wild.test"] = None
    proxy.policy(["*.wild.test"], resolvers=[dns.address], limits={"connections": 3})
    for i in range(3):
        with proxy.stream() as s:
            to = f"h{i}.wild.test:443"
            s.sendall(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n".encode())
            until(lambda n=i: f"h{n}.wild.test" in {name for name, _ in dns.asked})
    assert proxy.connect("h3.wild.test", 443).denial["reason"] == "connections"
    assert "h3.wild.test" not in {n for n, _ in dns.asked}
    # The resolver gives up by itself.
    dns.answers["h4.wild.test"] = dns.NXDOMAIN
    with read(proxy):
        until(lambda: proxy.connect("h4.wild.test", 443).denial["reason"] == "no_name")


def test_questions_a_second(proxy: Proxy, dns: Dns) -> None:
    """200 at once and as many each second; those beyond wait, and are answered in their order."""
    proxy.policy(["*.wild.test"], resolvers=[dns.address])
    began, n = time.monotonic(), 500
    for i in range(n):
        dns.answers[f"h{i}.wild.test"] = ["127.0.0.1"]
    with read(proxy) as seen:
        for i in range(n):
            proxy.send({"type": "test", "serial": 1000 + i, "host": f"h{i}.wild.test", "port": 443})
        until(lambda: sum(m["type"] == "test" for m in seen) == n)
    assert time.monotonic() - began > 1.4
    told = {m["serial"]: m["verdict"] for m in seen if m["type"] == "test"}
    assert told == {1000 + i: "allow" for i in range(n)}


def test_destination_that_refuses(proxy: Proxy) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
        proxy.policy([f"a.test:{port}"])
        reply = proxy.connect("a.test", port)
        assert reply.status == 502
        told = reply.denial
        assert told["reason"] == "upstream" and "refused" in told["detail"]
        assert proxy.decision()["verdict"] == "allow"
        assert proxy.decision()["reason"] == "upstream"
        assert proxy.end()["why"] == "upstream"
        code, _ = proxy.socks_name(b"a.test", port)
        assert code == 5


# What a test of the policy says.


def test_policy_test_allows(proxy: Proxy, dns: Dns) -> None:
    dns.answers["a.test"] = ["10.0.0.1", "127.0.0.1", "8.8.8.8"]
    proxy.policy(
        ["a.test"], resolve={}, resolvers=[dns.address], allow_ranges=["127.0.0.1/32"]
    )
    told = proxy.test("A.test")
    assert (told["verdict"], told["reason"], told["rule"]) == ("allow", None, "a.test")
    addresses = {a["address"]: (a["allowed"], a["why"]) for a in told["addresses"]}
    assert addresses["10.0.0.1"][0] is False and "private" in addresses["10.0.0.1"][1]
    assert addresses["127.0.0.1"][0] is True and "127.0.0.1/32" in addresses["127.0.0.1"][1]
    assert addresses["8.8.8.8"][0] is True


def test_policy_test_denies(proxy: Proxy, dns: Dns) -> None:
    dns.answers["a.test"] = ["10.0.0.1"]
    dns.answers["b.test"] = None
    members = {"resolve": {}, "resolvers": [dns.address], "allow_ranges": []}
    proxy.policy([{"host": "a.test", "methods": ["GET"]}, "b.test", "c.test"], **members)
    assert proxy.test("a.test")["reason"] == "tunnel"
    assert proxy.test("a.test", method="POST", path="/")["reason"] == "method"
    told = proxy.test("a.test", method="GET", path="/")
    assert told["reason"] == "address" and told["addresses"][0]["allowed"] is False
    told = proxy.test("other.test")
    assert told["reason"] == "not_allowed" and told["hint"] and told["addresses"] == []
    assert proxy.test("127.0.0.1")["reason"] == "bad_host"
    assert proxy.test("a.test\0")["reason"] == "bad_host"
    assert proxy.test("c.test")["reason"] == "no_name"
    assert proxy.test("b.test")["reason"] == "resolver"
    # It leaves no trace: neither records nor numbers.
    assert {m["type"] for m in proxy.seen} == {"policy", "test"}
    proxy.connect("other.test", 443)
    assert proxy.decision()["id"] == 1
