# SPDX-License-Identifier: Apache-2.0
"""`podflare policy test`: what it asks the daemon, what it makes of the answers. (Words and lines:
tests/unit/test_cli_egress.c; what the daemon answers: tests/daemon.)"""

from __future__ import annotations

from typing import Iterator

import pytest
from stub_daemon import StubDaemon

ALLOWED = {
    "verdict": "allow",
    "reason": None,
    "rule": "pypi: pypi.org",
    "hint": "",
    "ceiling": None,
    "addresses": [{"address": "192.0.2.7", "allowed": True, "why": "public"}],
}
DENIED = {
    "verdict": "deny",
    "reason": "not_allowed",
    "rule": None,
    "hint": "add it to egress_allow",
    "ceiling": {"allowed": False, "rule": None},
    "addresses": [],
}
REQUEST = "POST /v1/policy/test"


@pytest.fixture
def stub() -> Iterator[StubDaemon]:
    with StubDaemon() as stub:
        yield stub


@pytest.mark.parametrize(
    "args, body",
    [
        (["pypi.org"], {"host": "pypi.org"}),
        (["pypi.org:8443"], {"host": "pypi.org", "port": 8443}),
        (
            ["--allow", "pypi", "--allow", '{"host": "a.b", "tls": false}', "pypi.org"],
            {"host": "pypi.org", "allow": ["pypi", {"host": "a.b", "tls": False}]},
        ),
        (["--sandbox", "sbx_1", "x.y:80"], {"host": "x.y", "port": 80, "sandbox": "sbx_1"}),
        (
            ["x.y:80", "--method", "GET", "--path", "/v1/"],
            {"host": "x.y", "port": 80, "method": "GET", "path": "/v1/"},
        ),
    ],
)
def test_what_is_asked(call, stub, args, body):
    stub.refusals[REQUEST] = 200, ALLOWED
    done = call("policy", "test", *args, PODFLARE_HOSTD_URL=stub.url, PODFLARE_API_KEY="k")
    assert done.returncode == 0, done.stderr
    assert stub.requests == [("POST", "/v1/policy/test", body)]
    assert stub.headers[0]["authorization"] == "Bearer k"
    target = f"{body['host']}:{body.get('port', 443)}"
    assert done.stdout == (
        f"allow  {target}\n  rule       pypi: pypi.org\n  addresses  192.0.2.7\n"
    )


def test_denied(call, stub):
    stub.refusals[REQUEST] = 200, DENIED
    done = call("policy", "test", "x.y", PODFLARE_HOSTD_URL=stub.url)
    assert done.returncode == 3 and done.stderr == ""
    assert done.stdout.splitlines() == [
        "deny  x.y:443",
        "  reason     not_allowed",
        "  ceiling    the operator's ceiling does not have it",
        "  hint       add it to egress_allow",
    ]


@pytest.mark.parametrize(
    "status, answer, text",
    [
        (400, {"error": "egress.allow: 'a.*.b': a wildcard", "code": "invalid_request"}, "a.*.b"),
        (403, {"error": "egress is switched off here", "code": "egress_disabled"}, "switched off"),
        (503, {"error": "the file is broken", "code": "egress_unavailable"}, "is broken"),
        (200, {"verdict": "perhaps"}, "no verdict"),
        (200, None, "no verdict"),
    ],
)
def test_what_cannot_be_told_is_neither(call, stub, status, answer, text):
    stub.refusals[REQUEST] = status, answer
    done = call("policy", "test", "x.y", PODFLARE_HOSTD_URL=stub.url)
    assert done.returncode == 1 and done.stdout == ""
    assert text in done.stderr


def test_nobody_there(call):
    done = call("policy", "test", "x.y", PODFLARE_HOSTD_URL="http://127.0.0.1:1")
    assert done.returncode == 1 and "no podflare daemon answers" in done.stderr


@pytest.mark.parametrize(
    "args, text",
    [
        ([], "podflare policy test HOST"),
        (["check", "x.y"], "there is no 'policy check'"),
        (["test"], "which host?"),
        (["test", "x.y", "z"], "unexpected argument 'z'"),
        (["test", "x.y:0"], "from 1 to 65535"),
        (["test", "--allow"], "needs a value"),
        (["test", "--allow", "{", "x.y"], "--allow {"),
        (["test", "--allow", "a.b", "--sandbox", "s", "x.y"], "give one of them"),
        (["test", "--method", "GET", "x.y"], "go together"),
        (["test", "--wrong", "x.y"], "unknown option --wrong"),
    ],
)
def test_wrong_command_lines(call, args, text):
    done = call("policy", *args)
    assert done.returncode == 2 and text in done.stderr and "podflare policy --help" in done.stderr


def test_help(call):
    for args in (["--help"], ["test", "--help"], ["test", "-h"]):
        done = call("policy", *args)
        assert done.returncode == 0 and "--allow ENTRY" in done.stdout
    assert "policy" in call("help").stdout
