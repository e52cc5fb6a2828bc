# SPDX-License-Identifier: Apache-2.0
"""The ways by which allowlists of others were left, one test each, tried from inside as root in a sandbox
that may reach a lot: what is not allowed answers at once, in words, and nothing arrives anywhere. Each has
beside it what is allowed and works, so that a denial is no accident. (What is only seen within TLS:
test_egress_tls.py; the same natively, in more forms: tests/egress.)"""

from __future__ import annotations

import json
from typing import Any

import pytest
from egress_guest import ask, reason
from egress_world import METADATA, PUNYCODE, World
from guest import sh

from podflare import Client, ExecResult, Sandbox

NOWHERE = ("ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT", "ECONNREFUSED", "EINVAL")


def by_all_ways(sandbox: Sandbox, host: str, port: int) -> dict[str, str]:
    """Why a host is denied by an HTTP request, a CONNECT, SOCKS with it as a name. (The code of SOCKS: 2
    is "not allowed by ruleset".)"""
    told = ask(
        sandbox,
        f"""
host, port = {host!r}, {port}
say([get(f"http://{{host}}:{{port}}/json"), connect(host, port), socks(host.encode(), port)])
""",
    )
    return {
        "http": reason(told[0]),
        "connect": reason(told[1]),
        "socks": "denied" if told[2] == 2 else f"SOCKS {told[2]}",
    }


def denied(*reasons: str) -> Any:
    """Equal to what by_all_ways says of a host that is denied for one of these reasons."""

    class Denied:
        def __eq__(self, ways: object) -> bool:
            assert isinstance(ways, dict)
            return (
                ways["socks"] == "denied" and ways["http"] in reasons and ways["connect"] in reasons
            )

        def __repr__(self) -> str:
            return f"denied for one of {reasons} in every way"

    return Denied()


@pytest.fixture
def nothing_arrives(outside: World):
    """Around a test: no server was touched, no name was asked for."""
    untouched, asked = outside.untouched(), len(outside.dns.asked)
    yield
    assert untouched(), "something arrived at a server"
    assert outside.dns.asked[asked:] == []


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


# Names.


def test_names_are_not_looked_up_before_they_are_allowed(granted: Sandbox, nothing_arrives):
    """A question to a resolver is a way out by itself."""
    for host in ("secret-data.evil.test", "x.dns.test", "a.b.c.rebind.test"):
        assert by_all_ways(granted, host, 443) == denied("not_allowed")


def test_trailing_dot(granted: Sandbox, outside: World, nothing_arrives):
    for host in ("api.test.", "api.test..", ".api.test", "api..test"):
        assert by_all_ways(granted, host, outside.http.port) == denied("bad_host", "bad_request")


def test_mixed_case_is_the_same_name(granted: Sandbox, outside: World):
    port = outside.http.port
    told = ask(granted, f'say([get("http://API.Test:{port}/json"), socks(b"aPi.tEsT", {port})])')
    assert told[0]["status"] == 200
    assert told[1] == 0  # a tunnel that must be TLS begins in any case
    assert by_all_ways(granted, "eViL.TEST", port) == denied("not_allowed")


def test_punycode(fresh, outside: World):
    """A rule in letters is the same as one in ASCII, and holds for no name that only looks like it."""
    port = outside.http.port
    sandbox = fresh(egress_allow=[f"bücher.test:{port}"])
    assert sandbox.egress.allow == (f"{PUNYCODE}:{port}",)
    told = ask(
        sandbox,
        f'say([get(f"http://{{h}}:{port}/json") for h in ("{PUNYCODE}", "XN--BCHER-KVA.test")])',
    )
    assert [one["status"] for one in told] == [200, 200]
    untouched = outside.untouched()
    # Without the umlaut; with a Cyrillic letter; a label that decodes to nothing.
    for host in ("bucher.test", "xn--bcher-kva.evil.test", "xn--bcher-9pe.test", "xn--.test"):
        assert by_all_ways(sandbox, host, port) == denied("not_allowed", "bad_host")
    assert untouched()


def test_letters_beyond_ascii_in_a_request(granted: Sandbox, outside: World, nothing_arrives):
    """A full stop that only looks like one, letters of full width, a Cyrillic a."""
    for host in ("api。test", "ａｐｉ.test", "аpi.test"):
        ways = by_all_ways(granted, host, outside.http.port)
        # Those that are the same name in normal form may be taken for it, and none for another.
        assert ways["http"] in ("bad_host", "bad_request", "not_allowed"), (host, ways)
        assert ways["connect"] in ("bad_host", "bad_request", "not_allowed"), (host, ways)
        assert ways["socks"] == "denied", (host, ways)


@pytest.mark.parametrize(
    "host", ["evil.test\0.api.test", "api.test\0", "api.test\0.evil.test", "\0api.test"]
)
def test_null_byte(granted: Sandbox, outside: World, nothing_arrives, host):
    port = outside.http.port
    ways = by_all_ways(granted, host, port)
    assert ways["http"] in ("bad_request", "bad_host"), ways
    assert ways["connect"] in ("bad_request", "bad_host"), ways
    assert ways["socks"] in ("denied", "SOCKS 1", "SOCKS 8"), ways


def test_line_breaks_in_names(granted: Sandbox, outside: World, nothing_arrives):
    port = outside.http.port
    told = ask(
        granted,
        f"""
names = [b"api.test\\r\\nHost: evil.test", b"api.test\\nX: y", b"api.test\\r", b"api.test evil.test", b"api.test\\t"]
say([[socks(n, {port}) for n in names],
     [connect(n.decode(), {port}) for n in names],
     [raw(b"GET http://" + n + b":{port}/json HTTP/1.1\\r\\nHost: api.test:{port}\\r\\n\\r\\n") for n in names]])
""",
    )
    assert all(code in (1, 2, 8) for code in told[0]), told[0]
    for reply in told[1] + told[2]:
        assert reason(reply) in ("bad_request", "bad_host", "host_mismatch"), reply


# Requests that say two things.


@pytest.mark.parametrize(
    "request_head, reasons",
    [
        # The allowed name where it does not count, the other where it does, and the other way round.
        (
            "GET http://evil.test:{port}/ HTTP/1.1|Host: api.test:{port}",
            ("host_mismatch", "not_allowed"),
        ),
        ("GET http://api.test:{port}/ HTTP/1.1|Host: evil.test", ("host_mismatch",)),
        (
            "GET http://api.test:{port}/ HTTP/1.1|Host: api.test:{port}|Host: evil.test",
            ("bad_request",),
        ),
        (
            "GET http://api.test:{port}/ HTTP/1.1|Host: evil.test|Host: api.test:{port}",
            ("bad_request",),
        ),
        ("GET http://api.test:{port}/ HTTP/1.1", ("bad_request",)),
        ("GET http://api.test:{port}/ HTTP/1.1|Host : api.test:{port}", ("bad_request",)),
        ("GET http://api.test:{port}/ HTTP/1.1|Host: api.test:{port}|X: a\r b", ("bad_request",)),
        ("GET http://api.test:{port}/ HTTP/1.1|Host: api.test:{port}| evil.test", ("bad_request",)),
        (
            "GET http://api.test:{port}@evil.test/ HTTP/1.1|Host: evil.test",
            ("bad_request", "not_allowed"),
        ),
        (
            "GET http://evil.test\\@api.test:{port}/ HTTP/1.1|Host: api.test:{port}",
            ("bad_request", "bad_host"),
        ),
        ("GET http://api.test:{port}#@evil.test/ HTTP/1.1|Host: api.test:{port}", ("bad_request",)),
        ("GET /json HTTP/1.1|Host: api.test:{port}", ("bad_request",)),
        (
            "POST http://api.test:{port}/ HTTP/1.1|Host: api.test:{port}|Content-Length: 5|"
            "Transfer-Encoding: chunked",
            ("bad_request",),
        ),
        (
            "POST http://api.test:{port}/ HTTP/1.1|Host: api.test:{port}|Content-Length: 5|"
            "Content-Length: 6",
            ("bad_request",),
        ),
        ("GET ftp://api.test:{port}/ HTTP/1.1|Host: api.test:{port}", ("bad_request",)),
        ("GET file:///etc/passwd HTTP/1.1|Host: api.test:{port}", ("bad_request", "host_mismatch")),
        ("CONNECT api.test:{port} HTTP/1.1|Host: evil.test", ("bad_request", "host_mismatch")),
    ],
)
def test_requests_of_two_meanings(
    granted: Sandbox, outside: World, nothing_arrives, request_head, reasons
):
    head = request_head.format(port=outside.http.port).replace("|", "\r\n") + "\r\n\r\n"
    told = ask(granted, f"say(raw({head.encode()!r}))")
    assert reason(told) in reasons


def test_the_second_request_of_a_connection_is_judged_as_the_first(
    granted: Sandbox, outside: World
):
    port = outside.http.port
    told = ask(
        granted,
        f"""
with dial() as s:
    s.sendall(b"GET http://api.test:{port}/json HTTP/1.1\\r\\nHost: api.test:{port}\\r\\n\\r\\n")
    first = read_reply(s)
    s.sendall(b"GET http://evil.test/ HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n")
    try:
        second = read_reply(s)
    except (OSError, EOFError) as exc:
        second = {{"outcome": outcome(exc)}}
say([first, second])
""",
    )
    assert told[0]["status"] == 200
    assert reason(told[1]) == "not_allowed"


def test_a_request_hidden_in_a_body(granted: Sandbox, outside: World):
    """What the destination must see as body, it sees as body: no second request comes out of it."""
    port = outside.http.port
    before = len(outside.http.seen)
    told = ask(
        granted,
        f"""
inner = b"GET /smuggled HTTP/1.1\\r\\nHost: api.test:{port}\\r\\n\\r\\n"
head = b"POST http://api.test:{port}/sink HTTP/1.1\\r\\nHost: api.test:{port}\\r\\n"
say([raw(head + b"Content-Length: %d\\r\\n\\r\\n" % len(inner) + inner),
     raw(head + b"Transfer-Encoding: chunked\\r\\n\\r\\n%x\\r\\n" % len(inner) + inner + b"\\r\\n0\\r\\n\\r\\n")])
""",
    )
    assert [one["status"] for one in told] == [200, 200]
    assert [one.path for one in outside.http.seen[before:]] == ["/sink", "/sink"]
    assert all(one.body.startswith(b"GET /smuggled") for one in outside.http.seen[before:])


# After the allow.


def test_redirects_lead_nowhere(granted: Sandbox, outside: World):
    """An allowed host may say where to go; whoever follows is judged again."""
    port = outside.http.port

    def follow(to: str) -> ExecResult:
        url = f"http://api.test:{port}/redirect?to={to}"
        return granted.run_code(f"curl -sS -L -w '\n%{{num_redirects}}\n' '{url}'", "bash")

    for to, why in (
        ("http://evil.test/", "not_allowed"),
        (f"http://{METADATA}/latest/", "bad_host"),
    ):
        r = follow(to)
        denial, redirects = filter(None, r.stdout.splitlines())
        assert json.loads(denial)["reason"] == why and redirects == "1", r
        assert [one.reason for one in r.denied] == [why]
    # What is not to be spoken to through a proxy is asked for directly, and is not there.
    r = follow(f"http://127.0.0.1:{port}/json")
    assert r.exit_code == 7 and "Failed to connect to 127.0.0.1" in r.stderr, r


def test_rebinding(granted: Sandbox, outside: World):
    """A name that is something else the second time: each answer is checked, and the one that was
    checked is the one that is dialled."""
    outside.turn = 0
    told = ask(
        granted,
        f"""
say([get("http://rebind.test:{outside.http.port}/json") for _ in range(4)])
""",
    )
    assert [one["status"] for one in told[0::2]] == [200, 200]
    assert [reason(one) for one in told[1::2]] == ["address", "address"]
    assert outside.turn == 4  # one question for each connection, and none between check and dial


@pytest.mark.parametrize("host", ["private.test", "metadata.test", "mapped.test"])
def test_allowed_names_of_private_addresses(granted: Sandbox, outside: World, host):
    untouched = outside.untouched()
    assert by_all_ways(granted, host, outside.http.port) == denied("address")
    assert untouched()


def test_of_several_addresses_the_one_that_is_allowed_is_taken(granted: Sandbox, outside: World):
    told = ask(granted, f'say(get("http://mixed.test:{outside.http.port}/json"))')
    assert told["status"] == 200


def test_a_name_that_does_not_exist(granted: Sandbox, outside: World):
    assert by_all_ways(granted, "nowhere.test", outside.http.port) == denied("no_name")


@pytest.mark.parametrize("what", ["websocket", "h2c", "TLS/1.2"])
def test_upgrade_after_allow(granted: Sandbox, outside: World, what):
    """A connection that was allowed for HTTP does not become another one."""
    port = outside.http.port
    upgrades = len(outside.http.requests("/upgrade"))
    told = ask(
        granted,
        f"""
say(get("http://api.test:{port}/upgrade", None, "Upgrade: {what}", "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"))
""",
    )
    assert reason(told) == "upgrade"
    assert len(outside.http.requests("/upgrade")) == upgrades


# What a rule says beside the name.


def test_other_ports_of_an_allowed_host(granted: Sandbox, outside: World, nothing_arrives):
    for port in (80, 443, 22, 25, outside.dns.port):
        assert by_all_ways(granted, "api.test", port) == denied("port")


def test_a_wildcard_is_what_is_below_it(fresh, outside: World):
    port = outside.http.port
    sandbox = fresh(egress_allow=[f"*.wild.test:{port}"])
    for host in ("a.wild.test", "b.a.wild.test"):
        told = ask(sandbox, f'say(get("http://{host}:{port}/json"))')
        assert told["status"] == 200, host
    untouched = outside.untouched()
    for host in ("wild.test", "awild.test", "a.wild.test.evil.test", "wild.test.evil.test"):
        assert by_all_ways(sandbox, host, port) == denied("not_allowed"), host
    assert untouched()


def test_methods_and_paths(fresh, outside: World):
    port = outside.http.port
    sandbox = fresh(
        egress_allow=[{"host": "api.test", "ports": [port], "methods": ["GET"], "paths": ["/json"]}]
    )
    told = ask(
        sandbox,
        f"""
base = b" http://api.test:{port}"
tail = b" HTTP/1.1\\r\\nHost: api.test:{port}\\r\\nContent-Length: 0\\r\\n\\r\\n"
say([raw(method + base + path + tail) for method, path in [
    (b"GET", b"/json"), (b"GET", b"/json?x=/bytes"), (b"POST", b"/json"), (b"GET", b"/bytes?n=1"),
    (b"GET", b"/json/../bytes?n=1"), (b"GET", b"/json/%2e%2e/bytes?n=1"), (b"GET", b"/jsonx"), (b"get", b"/json")]]
    + [connect("api.test", {port})])
""",
    )
    assert [one["status"] for one in told[:2]] == [200, 200]
    assert reason(told[2]) == "method"
    for reply in told[3:7]:
        assert reason(reply) in ("path", "bad_request"), reply
    assert reason(told[7]) in ("method", "bad_request")
    assert reason(told[8]) == "tunnel"


def test_the_empty_list_is_nothing(client: Client, outside: World, nothing_arrives):
    with Sandbox(client=client, egress_allow=[]) as sandbox:
        assert not sandbox.egress.on
        told = ask(sandbox, f'say(get("http://api.test:{outside.http.port}/json"))')
        assert reason(told) in ("ECONNREFUSED", "not_allowed")
