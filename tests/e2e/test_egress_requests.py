# SPDX-License-Identifier: Apache-2.0
"""Requests: those that say two things, those that hide another, and what comes after the allow. As in
test_egress_probes.py, from inside."""

from __future__ import annotations

import json

import pytest
from egress_guest import ask, reason
from egress_world import METADATA, World

from podflare import ExecResult, Sandbox


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
