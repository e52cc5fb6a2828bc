"""The operator's configuration, and POST /v1/policy/test."""

import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import Daemon, stdout_of, wait_for
from egress import OFF, ask, get, grant, guest, inject, metrics, mode, notes, policies, put, started
from egress import wait_no_proxy

PEM = "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n"


@pytest.fixture
def configured(start: Callable[..., Daemon], tmp_path: Path) -> Callable[..., Daemon]:
    """Starts a daemon with this configuration."""

    def go(config: Any, by_environment: bool = False) -> Daemon:
        path = tmp_path / "egress.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        if by_environment:
            return start(env={"PODFLARE_EGRESS_CONFIG": str(path)})
        return start(args=["--egress-config", str(path)])

    return go


def test_the_example_of_the_guide(configured: Callable[..., Daemon]) -> None:
    """What docs/egress.md shows is taken as it is, but for its certificate, which is cut short there."""
    guide = (Path(__file__).resolve().parents[2] / "docs/egress.md").read_text()
    (example,) = [
        block for block in re.findall(r"```json\n(.*?)```", guide, re.S) if '"resolvers"' in block
    ]
    config = json.loads(example)
    assert config["upstream_ca"].startswith("-----BEGIN CERTIFICATE-----")
    d = configured({**config, "upstream_ca": PEM})
    sid = d.create(egress=True)
    assert get(d, sid) == {**OFF, "allow": config["default"], "state": "on"}
    ask(d, sid)
    (policy,) = policies(d)
    assert policy["resolvers"] == config["resolvers"] and policy["limits"] == config["limits"]


@pytest.mark.parametrize("by_environment", [False, True])
def test_all_of_it_is_in_the_policy(configured: Callable[..., Daemon], by_environment: bool) -> None:
    config = {
        "enabled": True,
        "default": ["pypi", "*.default.test"],
        "ceiling": ["*.test", "pypi", "npm", "internal", "*.fine.example"],
        "groups": {"internal": ["wheels.test:8443"], "npm": ["npm.test"]},
        "allow_ranges": ["192.0.2.0/24"],
        "own_ranges": ["198.51.100.7/32"],
        "resolve": {"wheels.test": ["192.0.2.7", "2001:db8::1"]},
        "resolvers": ["192.0.2.53:53", "[2001:db8::53]:53"],
        "upstream_ca": PEM,
        "limits": {"connections": 7, "bytes": 1, "bytes_per_s": 2, "idle_s": 3, "total_s": 4},
    }
    config["ceiling"] = ["*.default.test", "pypi", "npm", "internal", "a.fine.example"]
    d = configured(config, by_environment)
    sid = d.create(egress=True)
    assert get(d, sid) == {**OFF, "allow": ["pypi", "*.default.test"], "state": "on"}
    ask(d, sid)
    (policy,) = policies(d)
    groups = policy.pop("groups")
    assert groups["internal"] == ["wheels.test:8443"] and groups["npm"] == ["npm.test"] and groups["pypi"]
    assert policy == {
        "sandbox": sid,
        "allow": ["pypi", "*.default.test"],
        "ceiling": config["ceiling"],
        "inject": {},
        "ca": None,
        "allow_ranges": config["allow_ranges"],
        "own_ranges": config["own_ranges"],
        "resolve": config["resolve"],
        "resolvers": config["resolvers"],
        "upstream_ca_pem": PEM,
        "limits": config["limits"],
    }
    assert d.create(egress=grant("internal")), "groups of the operator are known"


CEILING = [
    "*.fine.example",
    "api.example.com:8443",
    {"host": "get.example.com", "methods": ["GET"], "paths": ["/v1/"]},
    "npm",
]
# Entries that the ceiling allows at least in part.
WITHIN = [
    "a.fine.example",
    "*.fine.example",
    "*.deep.fine.example",
    "*.example.com",
    "api.example.com:8443",
    {"host": "api.example.com", "ports": [443, 8443]},
    "get.example.com",
    {"host": "get.example.com", "methods": ["POST", "GET"]},
    {"host": "get.example.com", "paths": ["/", "/v2"]},
    {"host": "get.example.com", "paths": ["/v1/users"]},
    "npm",
    "registry.npmjs.org",
]
# Those of which it allows nothing, and what is said of the reason.
BEYOND = [
    ("evil.example", ""),
    ("fine.example", ""),
    ("*.x.example", ""),
    ("*.notfine.example", ""),
    ("pypi", ""),
    ("api.example.com", "other ports"),
    ({"host": "a.fine.example", "ports": [22]}, "other ports"),
    ({"host": "get.example.com", "methods": ["POST"]}, "other ports, methods"),
    ({"host": "get.example.com", "paths": ["/v10/"]}, "methods or paths"),
]


def refused(r: httpx.Response, entry: Any, words: str) -> None:
    """With the entry as it was given, and the reason."""
    assert r.status_code == 400, r.text
    assert r.json()["code"] == "invalid_request" and r.json()["field"] == "egress.allow"
    name = entry if isinstance(entry, str) else entry["host"]
    assert f'"{name}' in r.json()["error"] and "(its ceiling" in r.json()["error"]
    assert words in r.json()["error"] and ("other ports" in r.json()["error"]) == bool(words)


def test_beyond_the_ceiling(configured: Callable[..., Daemon]) -> None:
    """What can never be used is refused at once, by everything that takes a list; the grant there is stays."""
    d = configured({"ceiling": CEILING})
    sid = d.create(egress=grant("a.fine.example"))
    for entry, words in BEYOND:
        value = grant("b.fine.example", entry)
        refused(d.http.post("/v1/sandboxes", json={"egress": value}), entry, words)
        refused(put(d, sid, value), entry, words)
        refused(d.http.post(f"/v1/sandboxes/{sid}/fork", json={"egress": value}), entry, words)
    assert get(d, sid)["allow"] == ["a.fine.example"]
    (only,) = d.http.get("/v1/sandboxes").json()["sandboxes"]
    assert only["id"] == sid
    # Who only asks what would be gets an answer.
    r = d.http.post("/v1/policy/test", json={"host": "evil.example", "allow": ["evil.example"]})
    assert r.status_code == 200 and r.json()["ceiling"] == {"allowed": False, "rule": None}


def test_within_the_ceiling(configured: Callable[..., Daemon]) -> None:
    """Each entry alone and all together; the ceiling is in every policy."""
    d = configured({"ceiling": CEILING})
    sid = d.create()
    for entry in WITHIN:
        r = put(d, sid, grant(entry))
        assert r.status_code == 200, (entry, r.text)
    assert put(d, sid, grant(*WITHIN)).status_code == 200
    ask(d, sid)
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"egress": grant("*.example")})
    assert r.status_code == 400 and '"*.example"' in r.json()["error"]  # no ceiling is needed for that
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"egress": grant("*.example.com")})
    ask(d, r.json()["children"][0])
    assert [p["ceiling"] for p in policies(d)] == [CEILING] * 2


def test_an_empty_ceiling_allows_nothing(configured: Callable[..., Daemon]) -> None:
    d = configured({"ceiling": [], "default": ["pypi"]})
    for entry in ("a.test", "*.a.test", "pypi"):
        refused(d.http.post("/v1/sandboxes", json={"egress": grant(entry)}), entry, "")
    # The operator's own default is not the client's fault: it is told in the log.
    assert "of egress cannot be used as it is" in d.log_text()
    sid = d.create(egress=True)
    ask(d, sid)
    assert policies(d)[0]["ceiling"] == []


def test_a_default_within_the_ceiling_is_no_warning(configured: Callable[..., Daemon]) -> None:
    d = configured({"ceiling": ["*.b.test"], "default": ["a.b.test"]})
    assert d.create(egress=True) and "of egress cannot be used" not in d.log_text()


def test_no_ceiling_is_null(configured: Callable[..., Daemon]) -> None:
    d = configured({"ceiling": None, "default": None, "resolvers": None, "upstream_ca": None})
    assert d.create(egress=True) and d.http.get("/v1/healthz").text == "ok"
    ask(d, d.create(egress=grant("a.test")))
    assert policies(d)[0]["ceiling"] is None


def test_disabled(configured: Callable[..., Daemon]) -> None:
    d = configured({"enabled": False, "default": ["pypi"]})
    for value in (True, grant("a.test"), grant()):
        r = d.http.post("/v1/sandboxes", json={"egress": value})
        assert r.status_code == 403 and r.json()["code"] == "egress_disabled"
    sid = d.create(egress=False)
    assert put(d, sid, grant("a.test")).status_code == 403 and put(d, sid, False).status_code == 200
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"egress": grant("a.test")})
    assert r.status_code == 403
    assert d.http.post(f"/v1/sandboxes/{sid}/fork").status_code == 200
    assert d.http.post("/v1/policy/test", json={"host": "a.test"}).status_code == 403
    assert d.http.get("/v1/healthz").text == "ok"
    assert "the operator has disabled it" in d.log_text()


BAD = [
    ("", "not valid JSON"),
    ("[]", "not a JSON object"),
    ('{"enabled": 1}', '"enabled"'),
    ('{"surprise": 1}', "surprise"),
    ('{"default": "pypi"}', '"default"'),
    ('{"default": ["127.0.0.1"]}', "127.0.0.1"),
    ('{"default": ["nosuch"]}', "nosuch"),
    ('{"ceiling": {}}', '"ceiling"'),
    ('{"ceiling": ["*.com"]}', "*.com"),
    ('{"groups": []}', '"groups"'),
    ('{"groups": {"mine": ["127.0.0.1"]}}', "mine"),
    ('{"groups": {"mine": "a.test"}}', "mine"),
    ('{"allow_ranges": ["10.0.0.0"]}', "allow_ranges"),
    ('{"allow_ranges": ["10.0.0.0/33"]}', "allow_ranges"),
    ('{"allow_ranges": "10.0.0.0/8"}', "allow_ranges"),
    ('{"own_ranges": ["10.0.0.1"]}', "own_ranges"),
    ('{"resolve": []}', '"resolve"'),
    ('{"resolve": {"A.test": []}}', '"resolve"'),
    ('{"resolve": {"a.test": "192.0.2.1"}}', '"resolve"'),
    ('{"resolve": {"a.test": ["a.test"]}}', '"resolve"'),
    ('{"resolvers": []}', '"resolvers"'),
    ('{"resolvers": ["192.0.2.53"]}', '"resolvers"'),
    ('{"resolvers": ["ns.test:53"]}', '"resolvers"'),
    ('{"resolvers": ["192.0.2.53:99999"]}', '"resolvers"'),
    ('{"upstream_ca": "x"}', '"upstream_ca"'),
    (json.dumps({"upstream_ca": PEM + "-----BEGIN PRIVATE KEY-----\n"}), '"upstream_ca"'),
    ('{"limits": []}', '"limits"'),
    ('{"limits": {"connections": 0}}', '"limits"'),
    ('{"limits": {"connections": 1025}}', '"limits"'),
    ('{"limits": {"speed": 1}}', '"limits"'),
    ('{"enabled": true, "enabled": false}', "not valid JSON"),
    (" " * (2 << 20), "cannot be read"),
]


@pytest.mark.parametrize("text,words", BAD, ids=[x[0][:40] for x in BAD])
def test_what_cannot_be_used_grants_nothing(configured: Callable[..., Daemon], text: str, words: str) -> None:
    """503 and log with the sentence, healthz says where it is, and the rest works."""
    d = configured(text)
    for value in (True, grant("a.test")):
        r = d.http.post("/v1/sandboxes", json={"egress": value})
        assert r.status_code == 503 and r.json()["code"] == "egress_unavailable"
        assert words in r.json()["error"]
    health = d.http.get("/v1/healthz")
    assert health.status_code == 200
    assert health.text == "ok\negress is off: the daemon's log says why", "whoever asks has no key"
    assert "egress is off: " in d.log_text() and words in d.log_text().replace('\\"', '"')
    sid = d.create()
    assert stdout_of(d.exec(sid, "echo works")) == "works" and get(d, sid) == OFF
    assert put(d, sid, grant("a.test")).status_code == 503
    assert d.http.post(f"/v1/sandboxes/{sid}/fork", json={"egress": grant("a.test")}).status_code == 503
    assert d.http.post(f"/v1/sandboxes/{sid}/fork", json={}).status_code == 200
    assert d.http.post("/v1/policy/test", json={"host": "a.test"}).status_code == 503
    assert guest(d, sid, "many", n=1) == ["rejected"] and started(d) == 0


def test_files_that_are_not_there(start: Callable[..., Daemon], tmp_path: Path) -> None:
    for args, words in (
        (["--egress-config", str(tmp_path / "none.json")], "none.json"),
        (["--egress-config", str(tmp_path)], str(tmp_path)),
        (["--groups", str(tmp_path / "groups.json")], "groups.json"),
        (["--own-ranges", str(tmp_path / "own.json")], "own.json"),
        (["--egress", str(tmp_path / "no-egress")], "no-egress"),
    ):
        d = start(args=args)
        r = d.http.post("/v1/sandboxes", json={"egress": grant("a.test")})
        assert r.status_code == 503 and words in r.json()["error"]
        assert d.create()


def test_more_addresses_of_this_machine(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Those of the file come to those of the operator; without all of them nothing is granted."""
    config, own = tmp_path / "egress.json", tmp_path / "own.json"
    config.write_text('{"own_ranges": ["198.51.100.7/32"]}')
    own.write_text('["203.0.113.9/32", "2001:db8::/64"]')
    args = ["--egress-config", str(config), "--own-ranges", str(own)]
    d = start(args=args)
    sid = d.create(egress=grant("a.test"))
    ask(d, sid)
    (policy,) = policies(d)
    assert policy["own_ranges"] == ["198.51.100.7/32", "203.0.113.9/32", "2001:db8::/64"]
    many = json.dumps([f"203.0.113.{n}/32" for n in range(256)])
    for text, words in (("{}", "not a JSON list"), ('["203.0.113.9"]', "own_ranges"), (many, "own_ranges")):
        own.write_text(text)
        d = start(args=args)
        r = d.http.post("/v1/sandboxes", json={"egress": grant("a.test")})
        assert r.status_code == 503 and words in r.json()["error"], r.text


def test_a_broken_file_of_groups(start: Callable[..., Daemon], tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text('{"pypi": ["10.0.0.1"]}')
    d = start(args=["--groups", str(path)])
    r = d.http.post("/v1/sandboxes", json={"egress": grant("a.test")})
    assert r.status_code == 503 and "pypi" in r.json()["error"]


# --- policy test ----------------------------------------------------------------------------


def test_a_list_is_tested(daemon: Daemon) -> None:
    r = daemon.http.post("/v1/policy/test", json={"host": "a.test", "allow": ["a.test"]})
    assert r.status_code == 200, r.text
    assert r.json() == {
        "verdict": "allow",
        "reason": None,
        "rule": "a.test",
        "hint": None,
        "addresses": [{"address": "192.0.2.1", "allowed": True, "why": "public"}],
        "ceiling": None,
    }
    body = {"host": "b.test", "port": 8443, "method": "GET", "path": "/x", "allow": ["a.test"]}
    r = daemon.http.post("/v1/policy/test", json=body)
    assert r.json()["verdict"] == "deny" and r.json()["reason"] == "not_allowed" and r.json()["addresses"] == []
    asked = notes(daemon, "test")[-1]["test"]
    assert asked == {"type": "test", "serial": 1, "host": "b.test", "port": 8443, "method": "GET", "path": "/x"}
    assert notes(daemon, "test")[0]["test"]["port"] == 443
    wait_no_proxy(daemon)
    assert not (daemon.state / "egress.jsonl").read_text(), "a test is no decision"


def test_a_sandbox_is_tested(daemon: Daemon) -> None:
    """With the policy that it has; it does not notice."""
    sid = daemon.create(egress=grant("a.test", inject=inject("a.test", A="x")))
    r = daemon.http.post("/v1/policy/test", json={"host": "a.test", "sandbox": sid})
    assert r.json()["verdict"] == "allow"
    assert policies(daemon)[-1]["inject"]["a.test"]["headers"] == {"A": "x"}
    assert daemon.http.post("/v1/policy/test", json={"host": "b.test", "sandbox": sid}).json()["verdict"] == "deny"
    without = daemon.create()
    r = daemon.http.post("/v1/policy/test", json={"host": "a.test", "sandbox": without})
    assert r.json()["verdict"] == "deny" and policies(daemon)[-1]["allow"] == []
    wait_no_proxy(daemon)
    assert get(daemon, sid)["state"] == "on" and get(daemon, without) == OFF
    r = daemon.http.post("/v1/policy/test", json={"host": "a.test", "sandbox": "sbx_" + "0" * 32})
    assert r.status_code == 404


def test_the_default_is_tested(configured: Callable[..., Daemon]) -> None:
    d = configured({"default": ["a.test"], "ceiling": ["a.test:443", "c.test"]})
    r = d.http.post("/v1/policy/test", json={"host": "a.test"}).json()
    assert r["verdict"] == "allow" and r["ceiling"] == {"allowed": True, "rule": "a.test:443"}
    r = d.http.post("/v1/policy/test", json={"host": "b.test"}).json()
    assert r["ceiling"] == {"allowed": False, "rule": None}
    r = d.http.post("/v1/policy/test", json={"host": "127.0.0.1"}).json()
    assert r["ceiling"] == {"allowed": False, "rule": None}


@pytest.mark.parametrize(
    "body,field",
    [({}, "host"), ({"host": ""}, "host"), ({"host": 1}, "host"), ({"host": "a\x00b"}, "host")]
    + [({"host": "x" * 1025}, "host"), ({"host": "a.test", "port": 0}, "port")]
    + [({"host": "a.test", "port": "443"}, "port"), ({"host": "a.test", "method": ""}, "method")]
    + [({"host": "a.test", "path": "x"}, "path"), ({"host": "a.test", "more": 1}, "more")]
    + [({"host": "a.test", "allow": ["127.0.0.1"]}, "allow"), ({"host": "a.test", "allow": "x"}, "allow")]
    + [({"host": "a.test", "allow": [], "sandbox": "x"}, "allow")],
)
def test_bad_questions(daemon: Daemon, body: dict, field: str) -> None:
    r = daemon.http.post("/v1/policy/test", json=body)
    assert r.status_code == 400 and r.json()["field"] == field, r.text
    assert started(daemon) == 0


ANSWER = {"type": "test", "serial": 1, "verdict": "allow", "reason": None, "rule": None, "hint": None, "addresses": []}


@pytest.mark.parametrize(
    "how",
    ["exit 2", "refuse it is odd", "answer x", "early"]
    + [
        "test " + json.dumps({**ANSWER, **change})
        for change in (
            {"serial": 2},
            {"verdict": "perhaps"},
            {"reason": "because"},
            {"rule": 1},
            {"addresses": {}},
            {"addresses": [{"address": "192.0.2.1", "allowed": "yes", "why": ""}]},
            {"addresses": [{"address": 1, "allowed": True, "why": ""}]},
            {"addresses": [{"address": "x", "allowed": True, "why": ""}] * 65},
        )
    ],
)
def test_a_proxy_that_fails_at_it(daemon: Daemon, how: str) -> None:
    mode(daemon, how)
    r = daemon.http.post("/v1/policy/test", json={"host": "a.test", "allow": ["a.test"]})
    assert r.status_code == 502 and r.json()["code"] == "egress_failed", r.text
    wait_no_proxy(daemon)


def test_few_at_a_time(daemon: Daemon) -> None:
    """And none is left when the client leaves."""
    mode(daemon, "slow 3")
    body = {"host": "a.test", "allow": ["a.test"]}
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(daemon.http.post("/v1/policy/test", json=body).status_code))
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    wait_for(lambda: metrics(daemon)["podflare_egress_proxies"] == 4)
    assert daemon.http.post("/v1/policy/test", json=body).status_code == 429
    for t in threads:
        t.join()
    assert answers == [200] * 4
    wait_no_proxy(daemon)
    assert os.listdir(daemon.proxies)
