# SPDX-License-Identifier: Apache-2.0
"""Tunnels: the name in the TLS of a guest is the name that was asked for, or nothing passes. From inside,
with hand-made first bytes where clients are too well-behaved."""

from __future__ import annotations

import json

import pytest
from egress_guest import ask, reason
from egress_world import World

from podflare import Sandbox


def test_a_tunnel_carries_tls_end_to_end(granted: Sandbox, outside: World):
    """The certificate is the destination's own: nobody is in between."""
    told = ask(
        granted,
        f"""
with tunnel("api.test", {outside.https.port}) as s:
    with context().wrap_socket(s, server_hostname="api.test") as t:
        say([t.version(), dict(x[0] for x in t.getpeercert()["issuer"])["commonName"]])
""",
    )
    assert told[0] in ("TLSv1.2", "TLSv1.3") and told[1] == "Podflare tests ca"


def test_by_socks_as_well(granted: Sandbox, outside: World):
    told = ask(
        granted,
        f"""
s = dial(SOCKS)
s.sendall(b"\\x05\\x01\\x00")
exactly(s, 2)
s.sendall(b"\\x05\\x01\\x00\\x03\\x08api.test" + struct.pack(">H", {outside.https.port}))
assert exactly(s, 10)[1] == 0
with context().wrap_socket(s, server_hostname="api.test") as t:
    t.sendall(b"GET /json HTTP/1.1\\r\\nHost: api.test\\r\\nConnection: close\\r\\n\\r\\n")
    say(read_reply(t))
""",
    )
    assert told["status"] == 200


def decided(sandbox: Sandbox, proto: str, known: int) -> list[str]:
    """Reasons of the denials since then, of one kind of tunnel."""
    records = sandbox.egress_log()[known:]
    return [str(one.reason) for one in records if not one.allowed and one.proto == proto]


@pytest.mark.parametrize(
    "first_bytes, why",
    [
        ('hello("evil.test")[0]', "sni_mismatch"),
        ('hello("other.test")[0]', "sni_mismatch"),  # allowed as well, but not what was asked for
        ('hello("x.api.test")[0]', "sni_mismatch"),
        ("hello(None)[0]", "sni_missing"),
        ('with_extension(hello("api.test")[0], 0xfe0d, bytes(40))', "ech"),
        (
            'with_extension(hello("api.test")[0], 0, bytes.fromhex("000c000009") + b"evil.test")',
            "not_tls",
        ),
        ('b"GET / HTTP/1.1\\r\\nHost: evil.test\\r\\n\\r\\n"', "not_tls"),
        ('b"SSH-2.0-OpenSSH_9.2\\r\\n"', "not_tls"),
        ('b"\\x16\\x03\\x01\\xff\\xff" + bytes(100)', "not_tls"),
        ('b"\\x80\\x2e\\x01\\x03\\x01" + bytes(60)', "not_tls"),  # SSL 2
        ("hello('api.test')[0][:5] + bytes(400)", "not_tls"),
    ],
)
def test_first_bytes_of_a_tunnel(granted: Sandbox, outside: World, first_bytes, why):
    """None of them gets an answer of the destination, which sees no byte of it."""
    hellos, seen = len(outside.https.hellos), len(outside.https.seen)
    known = len(granted.egress_log())
    told = ask(granted, f'say(after_tunnel("api.test", {outside.https.port}, {first_bytes}))')
    assert told in ("nothing", "ECONNRESET", "alert"), told
    assert len(outside.https.hellos) == hellos and len(outside.https.seen) == seen
    (recorded,) = decided(granted, "connect", known)
    assert recorded == why or (why == "not_tls" and recorded in ("bad_request", "sni_mismatch"))


def test_the_name_in_another_case_is_the_same(granted: Sandbox, outside: World):
    told = ask(
        granted, f'say(after_tunnel("API.test", {outside.https.port}, hello("api.TEST")[0]))'
    )
    assert told == "handshake"


def test_a_hello_in_pieces(granted: Sandbox, outside: World):
    """Byte by byte, and in two records: judged as a whole."""
    told = ask(
        granted,
        f"""
def pieces(name):
    record, *_ = hello(name)
    with tunnel("api.test", {outside.https.port}) as s:
        try:
            for i in range(len(record)):
                s.sendall(record[i:i + 1])
            return (s.recv(1) or b"?")[0]
        except OSError as exc:
            return 0
def records(name):
    record, *_ = hello(name)
    body = record[5:]
    split = b"".join(record[:3] + struct.pack(">H", len(p)) + p for p in (body[:60], body[60:]))
    with tunnel("api.test", {outside.https.port}) as s:
        try:
            s.sendall(split)
            return (s.recv(1) or b"?")[0]
        except OSError as exc:
            return 0
say([pieces("api.test"), pieces("evil.test"), records("api.test"), records("evil.test")])
""",
    )
    assert told[0] == 22
    # What comes in several records may be refused as a whole; never is it let through unread.
    assert told[1] in (0, 21, ord("?")) and told[3] in (0, 21, ord("?"))
    assert told[2] in (0, 21, 22, ord("?"))


def test_tunnels_that_need_no_tls_are_a_rule_of_their_own(granted: Sandbox, outside: World):
    told = ask(
        granted,
        f"""
with tunnel("api.test", {outside.tcp.port}) as s:
    s.sendall(b"not TLS")
    say(exactly(s, 7).decode())
""",
    )
    assert told == "not TLS" and outside.tcp.received[-1] == b"not TLS"


def test_a_certificate_of_a_stranger_is_the_clients_business(granted: Sandbox, outside: World):
    """In a tunnel the guest's own client looks at it, and refuses."""
    told = ask(granted, f'say(https("api.test", {outside.stranger.port}))')
    assert told == {"outcome": "ssl"}


def test_what_is_within_a_tunnel_cannot_be_seen(granted: Sandbox, outside: World):
    """The limit that docs/egress.md tells of, so that it is not forgotten there: the authority of a
    request in a tunnel may be another host of the same server."""
    told = ask(
        granted,
        f"""
with tunnel("api.test", {outside.https.port}) as s, context().wrap_socket(s, server_hostname="api.test") as t:
    t.sendall(b"GET /json HTTP/1.1\\r\\nHost: fronted.example\\r\\nConnection: close\\r\\n\\r\\n")
    say(read_reply(t))
""",
    )
    assert json.loads(told["body"])["host"] == "fronted.example"
    assert outside.https.requests("/json")[-1].sni == "api.test"


@pytest.fixture(scope="module")
def intercepted(client, outside: World):
    """A sandbox for which the proxy opens the TLS of api.test."""
    port = outside.https.port
    with Sandbox(
        client=client,
        egress_allow=[
            {"host": "api.test", "ports": [port], "methods": ["GET"], "paths": ["/json"]},
            f"other.test:{port}",
        ],
        egress_intercept=["api.test"],
    ) as sandbox:
        sandbox.upload(outside.ca.encode(), "/tmp/ca.pem")
        yield sandbox


BUNDLE = 'os.environ["SSL_CERT_FILE"]'


def test_interception_is_by_a_ca_of_the_sandbox(intercepted: Sandbox, outside: World):
    told = ask(
        intercepted,
        f"""
def issuer(host, ca):
    with tunnel(host, {outside.https.port}) as s, context(ca).wrap_socket(s, server_hostname=host) as t:
        return dict(x[0] for x in t.getpeercert()["issuer"])["commonName"]
say([issuer("api.test", {BUNDLE}), issuer("other.test", "/tmp/ca.pem")])
""",
    )
    assert told[0] != "Podflare tests ca" and told[1] == "Podflare tests ca"


def test_an_intercepted_host_is_held_to_methods_and_paths(intercepted: Sandbox, outside: World):
    told = ask(
        intercepted,
        f"""
def request(line, host):
    with tunnel("api.test", {outside.https.port}) as s:
        with context({BUNDLE}).wrap_socket(s, server_hostname="api.test") as t:
            head = f"{{line}} HTTP/1.1\\r\\nHost: {{host}}\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n"
            t.sendall(head.encode())
            return read_reply(t)
own = "api.test:{outside.https.port}"
say([request("GET /json", own), request("POST /json", own), request("GET /bytes?n=1", own),
     request("GET /json", "fronted.example")])
""",
    )
    assert told[0]["status"] == 200
    assert [reason(one) for one in told[1:]] == ["method", "path", "host_mismatch"]


def test_an_intercepted_host_has_no_http_2(intercepted: Sandbox, outside: World):
    """There streams of one connection could name different authorities."""
    told = ask(
        intercepted,
        f"""
c = context({BUNDLE})
c.set_alpn_protocols(["h2", "http/1.1"])
with tunnel("api.test", {outside.https.port}) as s, c.wrap_socket(s, server_hostname="api.test") as t:
    first = t.selected_alpn_protocol()
c.set_alpn_protocols(["h2"])
with tunnel("api.test", {outside.https.port}) as s:
    try:
        c.wrap_socket(s, server_hostname="api.test")
        say([first, "taken"])
    except OSError:  # of ssl as well
        say([first, "refused"])
""",
    )
    assert told == ["http/1.1", "refused"]


def test_an_intercepted_host_with_a_strangers_certificate(fresh, outside: World):
    """The proxy is the client now, and it is the one who refuses."""
    sandbox = fresh(
        egress_allow=[f"api.test:{outside.stranger.port}"], egress_intercept=["api.test"]
    )
    told = ask(
        sandbox,
        f"""
with tunnel("api.test", {outside.stranger.port}) as s:
    with context({BUNDLE}).wrap_socket(s, server_hostname="api.test") as t:
        t.sendall(b"GET /json HTTP/1.1\\r\\nHost: api.test:{outside.stranger.port}\\r\\nConnection: close\\r\\n\\r\\n")
        say(read_reply(t))
""",
    )
    assert reason(told) == "upstream_tls"
    assert outside.stranger.requests("/json") == []


def test_the_key_of_that_ca_is_not_in_the_sandbox(intercepted: Sandbox):
    told = ask(
        intercepted,
        r"""
import glob
found = []
for top in ("/run", "/etc", "/tmp", "/home", "/root"):
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                if os.path.isfile(path) and b"PRIVATE" + b" KEY" in open(path, "rb").read(1 << 20):
                    found.append(path)
            except OSError:
                pass
say([found, os.path.exists("/run/podflare/egress-ca.pem")])
""",
    )
    assert told == [[], True]
