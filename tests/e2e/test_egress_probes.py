# SPDX-License-Identifier: Apache-2.0
"""The ways by which allowlists of others were left, one test each, tried from inside as root in a sandbox
that may reach a lot: what is not allowed answers at once, in words, and nothing arrives anywhere. Each has
beside it what is allowed and works, so that a denial is no accident. Here: addresses, and ways past the
proxy. (Names: test_egress_names.py; requests: test_egress_requests.py; what is only seen within TLS:
test_egress_tls.py; the same natively, in more forms: tests/egress.)"""

from __future__ import annotations

import pytest
from egress_guest import ask, by_all_ways, denied
from egress_world import METADATA, World
from guest import sh

from podflare import Sandbox

NOWHERE = ("ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT", "ECONNREFUSED", "EINVAL")


def test_what_is_allowed_works(granted: Sandbox, outside: World):
    """Without this, denials would prove nothing."""
    told = ask(
        granted,
        f"""
say([get("http://api.test:{outside.http.port}/json"), https("api.test", {outside.https.port}),
     socks(b"api.test", {outside.tcp.port})])
""",
    )
    assert [told[0]["status"], told[1]["status"], told[2]] == [200, 200, 0], told
    assert outside.https.requests("/json")[-1].sni == "api.test"


def test_still_no_interface_no_route_no_resolver(granted: Sandbox):
    told = ask(
        granted,
        """
def lookup(name):
    try:
        return socket.getaddrinfo(name, 443)
    except socket.gaierror:
        return "gaierror"
say({"net": os.listdir("/sys/class/net"), "routes": open("/proc/net/route").readlines()[1:],
     "names": [lookup(n) for n in ("api.test", "example.com", "metadata.google.internal")]})
""",
    )
    assert told == {"net": ["lo"], "routes": [], "names": ["gaierror"] * 3}


# Addresses, in every spelling.


@pytest.mark.parametrize(
    "host", [METADATA, "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "2852039166", "0xa9fea9fe"]
)
def test_metadata_address(granted: Sandbox, nothing_arrives, host):
    assert by_all_ways(granted, host, 80) == denied("bad_host")


def test_metadata_name(granted: Sandbox, nothing_arrives):
    assert by_all_ways(granted, "metadata.google.internal", 80) == denied("not_allowed")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "10.0.2.2"]
)
def test_loopback_of_the_host(granted: Sandbox, outside: World, nothing_arrives, host):
    for port in (outside.http.port, 7070, 22):
        assert by_all_ways(granted, host, port) == denied("bad_host")


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1",
        "10.0.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "[fc00::1]",
        "[fd00::1]",
        "[fe80::1]",
        "[ff02::1]",
        "[::]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::]",
    ],
)
def test_private_ranges(granted: Sandbox, nothing_arrives, host):
    assert by_all_ways(granted, host, 80) == denied("bad_host")


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0177.0.0.1",
        "0x7f.0.0.1",
        "0x7f000001",
        "017700000001",
        "127.0.1",
        "3232235777",
    ],
)
def test_decimal_octal_and_hexadecimal_addresses(
    granted: Sandbox, outside: World, nothing_arrives, host
):
    assert by_all_ways(granted, host, outside.http.port) == denied("bad_host")


@pytest.mark.parametrize("host", ["[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:10.0.2.2]"])
def test_ipv4_mapped_addresses(granted: Sandbox, outside: World, nothing_arrives, host):
    assert by_all_ways(granted, host, outside.http.port) == denied("bad_host")


def test_addresses_in_socks(granted: Sandbox, outside: World, nothing_arrives):
    """Its own forms of them, which no name can be in: 8 is "address type not supported"."""
    port = outside.http.port
    told = ask(
        granted,
        f"""
say([socks(socket.inet_aton(a), {port}, 1) for a in ("127.0.0.1", "10.0.2.2", "{METADATA}", "93.184.216.34")] +
    [socks(socket.inet_pton(socket.AF_INET6, a), {port}, 4) for a in ("::1", "::ffff:127.0.0.1", "fd00::1")])
""",
    )
    assert len(told) == 7 and all(code in (2, 8) for code in told), told


def test_nothing_but_the_relay_is_there_to_connect_to(granted: Sandbox, nothing_arrives):
    """Straight, without the proxy."""
    told = ask(
        granted,
        """
seen = {}
for host, port in [("169.254.169.254", 80), ("10.0.2.2", 7070), ("10.0.2.15", 7070), ("10.0.0.1", 80),
                   ("172.16.0.1", 80), ("192.168.0.1", 80), ("93.184.216.34", 443), ("fd00:ec2::254", 80),
                   ("fe80::1", 80), ("2606:2800:220:1::1", 443), ("::ffff:10.0.2.2", 7070)]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(WAIT)
        try:
            s.connect((host, port))
            seen[host] = "connected"
        except OSError as exc:
            seen[host] = outcome(exc)
say(seen)
""",
    )
    assert len(told) == 11 and all(how in NOWHERE for how in told.values()), told


def test_sibling(granted: Sandbox, fresh, outside: World, nothing_arrives):
    """Another sandbox that listens: not by its name, not by an address, not by vsock."""
    sibling = fresh(egress_allow=outside.everything())
    sibling.commands.run("python3 -m http.server 8000", background=True)
    page = sh(sibling, "until curl -s http://127.0.0.1:8000/; do sleep 0.2; done")
    assert "Directory listing" in page
    name = sh(sibling, "hostname").strip()
    for host in (name, f"{name}.local", sibling.id.replace("_", "-")):
        ways = by_all_ways(granted, host, 8000)
        assert ways == denied("bad_host", "not_allowed"), (host, ways)
    told = ask(
        granted,
        """
seen = []
for cid in (0, 1, 3, 4, 5, 6, 7, 4294967295):
    for port in (8000, 5555, 5556):
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
            s.settimeout(WAIT)
            try:
                s.connect((cid, port))
                peer = s.getpeername()[0]
                # Its own agent is itself, not a sibling.
                seen.append("itself" if cid in (1, s.getsockname()[0]) else f"connected {cid}:{port}")
            except OSError as exc:
                seen.append(outcome(exc))
say(seen)
""",
    )
    assert len(told) == 24 and not [one for one in told if one.startswith("connected")], told
    assert "timeout" not in told


def test_raw_and_packet_sockets(granted: Sandbox, nothing_arrives):
    told = ask(
        granted,
        r"""
seen = {}
def attempt(name, what):
    try:
        seen[name] = what()
    except OSError as exc:
        seen[name] = outcome(exc)
def raw_ip():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        packet = bytes.fromhex("4500001c00000000401100000a00020f0a000202") + bytes(8)
        return s.sendto(packet, ("10.0.2.2", 0))
def packets():
    sent = []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as s:
        for _, name in socket.if_nameindex():
            if name != "lo":
                s.bind((name, 0))
                sent.append((name, s.send(b"\xff" * 60)))
    return sent
attempt("ip", raw_ip)
attempt("packet", packets)
say(seen)
""",
    )
    assert told["ip"] in NOWHERE and told["packet"] == [], told


def test_icmp(granted: Sandbox, nothing_arrives):
    told = ask(
        granted,
        r"""
seen = []
for family, proto, host in [(socket.AF_INET, 1, "10.0.2.2"), (socket.AF_INET, 1, "8.8.8.8"),
                            (socket.AF_INET6, 58, "2001:4860:4860::8888"), (socket.AF_INET6, 58, "fe80::2")]:
    for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind, proto) as s:
                s.sendto((b"\x08" if proto == 1 else b"\x80") + bytes(7), (host, 0))
                seen.append("sent")
        except OSError as exc:
            seen.append(outcome(exc))
say(seen)
""",
    )
    assert len(told) == 8 and all(how in (*NOWHERE, "EACCES", "EPERM") for how in told), told


def test_udp_53(granted: Sandbox, outside: World, nothing_arrives):
    told = ask(
        granted,
        f"""
query = bytes.fromhex("000701000001000000000000") + b"\\x04evil\\x04test\\0\\0\\x01\\0\\x01"
seen = []
for host, port in [("8.8.8.8", 53), ("10.0.2.3", 53), ("10.0.2.2", {outside.dns.port}),
                   ("2001:4860:4860::8888", 53)]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.sendto(query, (host, port))
            seen.append("sent")
        except OSError as exc:
            seen.append(outcome(exc))
say(seen)
""",
    )
    assert all(how in NOWHERE for how in told), told


def test_socks_carries_no_udp_and_takes_no_connections(granted: Sandbox, nothing_arrives):
    """UDP ASSOCIATE and BIND: 7 is "command not supported"."""
    told = ask(
        granted,
        r"""
def command(number):
    with dial(SOCKS) as s:
        s.sendall(b"\x05\x01\x00")
        assert exactly(s, 2) == b"\x05\x00"
        s.sendall(b"\x05" + bytes([number]) + b"\x00\x03\x08api.test\x00\x35")
        return exactly(s, 10)[1]
say([command(2), command(3)])
""",
    )
    assert told == [7, 7]


@pytest.mark.parametrize("host", ["dns.google", "cloudflare-dns.com", "mozilla.cloudflare-dns.com"])
def test_dns_over_https(granted: Sandbox, nothing_arrives, host):
    assert by_all_ways(granted, host, 443) == denied("not_allowed")


@pytest.mark.parametrize("host", ["1.1.1.1", "8.8.8.8", "[2606:4700:4700::1111]"])
def test_dns_over_https_by_address(granted: Sandbox, nothing_arrives, host):
    assert by_all_ways(granted, host, 443) == denied("bad_host")
