# SPDX-License-Identifier: Apache-2.0
"""What a sandbox may reach: what is asked for, what comes back, what copies inherit, denials, records."""

from __future__ import annotations

import gc
import inspect

import pytest

import fake_egress
import podflare
from fake_daemon import SANDBOX_ID, FakeDaemon
from fake_fleet import FakeFleet
from podflare import Denied, Egress, Sandbox

API = "api.example.com"
CANARY = "Bearer sk-c4n4ry"
INJECT = {API: {"Authorization": CANARY}}


def wish(fleet: FakeFleet) -> object:
    """The "egress" of the last create."""
    creates = [r for r in fleet.requests if (r.method, r.path) == ("POST", "/v1/sandboxes")]
    return creates[-1].json.get("egress", "absent")


@pytest.mark.parametrize(
    "given, sent",
    [
        ({}, "absent"),
        ({"egress": True}, True),
        ({"egress": False}, False),
        ({"egress_allow": []}, {"allow": []}),
        ({"egress_allow": ("pypi", "*.example.org")}, {"allow": ["pypi", "*.example.org"]}),
        ({"egress_allow": {"pypi": 1}.keys(), "egress": True}, {"allow": ["pypi"]}),
        (
            {"egress_allow": [{"host": API, "ports": (443,), "methods": {"GET"}, "tls": True}]},
            {"allow": [{"host": API, "ports": [443], "methods": ["GET"], "tls": True}]},
        ),
        (
            {"egress_allow": [API], "egress_inject": INJECT},
            {
                "allow": [API],
                "inject": {API: {"headers": {"Authorization": CANARY}, "intercept": False}},
            },
        ),
        (
            {"egress_allow": [API, "x.org"], "egress_inject": INJECT, "egress_intercept": [API]},
            {
                "allow": [API, "x.org"],
                "inject": {API: {"headers": {"Authorization": CANARY}, "intercept": True}},
            },
        ),
        (
            {"egress_allow": [API], "egress_intercept": (API,)},
            {"allow": [API], "inject": {API: {"headers": {}, "intercept": True}}},
        ),
    ],
)
def test_what_a_create_asks_for(fleet: FakeFleet, given, sent):
    with Sandbox(**given):
        assert wish(fleet) == sent


@pytest.mark.parametrize(
    "given, kind, text",
    [
        ({"egress_allow": API}, TypeError, "a list of entries"),
        ({"egress_allow": {"host": API}}, TypeError, "a list of entries"),
        ({"egress_allow": [1]}, TypeError, "a str or a dict, not int"),
        ({"egress": [API]}, TypeError, "egress_allow"),
        ({"egress": False, "egress_allow": [API]}, ValueError, "contradict"),
        ({"egress_inject": INJECT}, ValueError, "need egress_allow"),
        ({"egress": True, "egress_inject": INJECT}, ValueError, "need egress_allow"),
        ({"egress_intercept": [API]}, ValueError, "need egress_allow"),
        ({"egress_allow": [API], "egress_intercept": API}, TypeError, "a list of hosts"),
        ({"egress_allow": [API], "egress_inject": [API]}, TypeError, "a dict of hosts"),
        ({"egress_allow": [API], "egress_inject": {API: CANARY}}, TypeError, "are a dict"),
        ({"egress_allow": [API], "egress_inject": {API: {"A": CANARY.encode()}}}, TypeError, "str"),
    ],
)
def test_what_cannot_be_meant_is_not_sent_and_secrets_are_not_shown(
    fleet: FakeFleet, given, kind, text
):
    with pytest.raises(kind, match=text) as e:
        Sandbox(**given)
    assert fleet.requests == [] and CANARY not in str(e.value)


def test_a_bad_entry_is_named(fleet: FakeFleet):
    with pytest.raises(podflare.InvalidRequestError, match=r"a\.\*\.com") as e:
        Sandbox(egress_allow=["ok.example.com", "a.*.com"])
    assert e.value.field == "egress.allow" and fleet.living == set()


def test_what_it_may_reach(fleet: FakeFleet):
    with Sandbox() as s:
        assert s.egress == Egress() and not s.egress.on
        assert (s.egress.allow, s.egress.inject, s.egress.state) == ((), {}, "off")
    with Sandbox(egress=True) as s:
        assert s.egress.allow == tuple(fake_egress.DEFAULT) and s.egress.on
    with Sandbox(egress_allow=[API], egress_inject=INJECT) as s:
        assert s.egress == Egress((API,), {API: ("Authorization",)}, "on", None)
        assert s.info().egress == s.egress
        fleet.boxes[s.id].grant.failure = "the proxy has ended"
        assert (s.egress.state, s.egress.reason, s.egress.on) == (
            "failed",
            "the proxy has ended",
            False,
        )
        (listed,) = Sandbox.list()
        assert listed.egress == s.egress


def test_update_replaces_all_of_it(fleet: FakeFleet):
    with Sandbox(egress_allow=[API], egress_inject=INJECT) as s:
        grant = s.update_egress(["pypi", {"host": "x.org", "ports": [8443]}])
        assert grant == s.egress
        assert grant.allow == ("pypi", {"host": "x.org", "ports": [8443]}) and grant.inject == {}
        put = fleet.requests[-2]
        assert (put.method, put.path) == ("PUT", f"/v1/sandboxes/{s.id}/egress")
        assert put.json == {"allow": ["pypi", {"host": "x.org", "ports": [8443]}]}
        grant = s.update_egress([API], inject=INJECT, intercept=[API])
        assert grant.inject == {API: ("Authorization",)}
        assert fleet.requests[-1].json["inject"][API]["intercept"] is True
        assert s.update_egress([]) == Egress()
        s.update_egress([API])
        assert s.update_egress(False) == Egress()
        assert fleet.requests[-1].json is False


def test_a_refused_update_leaves_the_grant(fleet: FakeFleet):
    with Sandbox(egress_allow=[API]) as s:
        with pytest.raises(podflare.InvalidRequestError, match=r"a\.\*\.com"):
            s.update_egress(["a.*.com"])
        sent = len(fleet.requests)
        for bad in (True, "x.org", [None]):
            with pytest.raises(TypeError):
                s.update_egress(bad)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="nothing to inject"):
            s.update_egress(False, inject=INJECT)
        assert len(fleet.requests) == sent and s.egress.allow == (API,)
    with pytest.raises(podflare.SandboxEndedError):
        s.update_egress([])


@pytest.mark.parametrize(
    "refusal, kind, status",
    [
        (fake_egress.DISABLED, podflare.EgressDisabledError, 403),
        (fake_egress.UNAVAILABLE, podflare.EgressUnavailableError, 503),
    ],
)
def test_a_daemon_that_grants_nothing(fleet: FakeFleet, refusal, kind, status):
    with Sandbox(egress_allow=[API]) as s:
        fleet.no_egress = (status, refusal)
        with pytest.raises(kind, match=refusal["error"]) as e:
            Sandbox(egress_allow=[API])
        assert e.value.status == status and e.value.code == refusal["code"]
        with pytest.raises(kind):
            s.update_egress([API, "x.org"])
        assert s.egress.allow == (API,) and fleet.living == {s.id}
        with Sandbox() as other, Sandbox(egress=False):  # what asks for nothing is not concerned
            assert not other.egress.on
    assert issubclass(podflare.EgressDisabledError, podflare.PermissionDeniedError)
    assert issubclass(podflare.EgressUnavailableError, podflare.ServerError)


def test_copies_inherit_what_is_allowed_but_not_what_is_injected(fleet: FakeFleet):
    with Sandbox(egress_allow=[API], egress_inject=INJECT) as s:

        def forked(**how: object) -> Egress:
            (child,) = s.fork(1, **how)
            with child:
                return child.egress

        def sent() -> dict:
            body = [r for r in fleet.requests if r.path.endswith("/fork")][-1].json
            assert (body.pop("n"), body.pop("reseed")) == (1, True)
            return body

        assert forked() == Egress((API,), {}, "on") and sent() == {}
        assert forked(inherit_inject=True).inject == {API: ("Authorization",)}
        assert sent() == {"inherit_inject": True}
        assert forked(egress=False) == Egress() and sent() == {"egress": False}
        assert forked(egress=[]) == Egress() and sent() == {"egress": {"allow": []}}
        assert forked(egress=["x.org"]).allow == ("x.org",)
        own = forked(egress=[API], egress_inject={API: {"X": "1"}}, egress_intercept=[API])
        assert own.inject == {API: ("X",)}
        assert sent()["egress"]["inject"][API] == {"headers": {"X": "1"}, "intercept": True}
        assert s.egress.inject == {API: ("Authorization",)}  # its own is as it was
        # What map and race make inherits as a fork does.
        s.map(["print 1"])
        assert sent() == {}


@pytest.mark.parametrize(
    "how, kind, text",
    [
        ({"egress": True}, TypeError, "inherit"),
        ({"egress": "x.org"}, TypeError, "a list of entries"),
        ({"egress": False, "inherit_inject": True}, ValueError, "copies that inherit"),
        ({"egress": [API], "inherit_inject": True}, ValueError, "copies that inherit"),
        ({"egress": False, "egress_inject": INJECT}, ValueError, "contradict"),
        ({"egress_inject": INJECT}, ValueError, "need egress"),
        ({"egress_intercept": [API]}, ValueError, "need egress"),
    ],
)
def test_a_fork_that_cannot_be_meant(fleet: FakeFleet, how, kind, text):
    with Sandbox(egress_allow=[API]) as s:
        with pytest.raises(kind, match=text):
            s.fork(2, **how)
        assert fleet.living == {s.id}


def test_the_winner_of_a_merge_keeps_its_own(fleet: FakeFleet):
    with Sandbox(egress_allow=[API]) as s:
        (copy,) = s.fork(egress=["x.org"])
        s.merge_into(copy)
        assert s.egress.allow == ("x.org",)


def test_denials_are_in_the_result(fleet: FakeFleet):
    with Sandbox(egress_allow=[API]) as s:
        r = s.run_code(f"fetch {API} 443\nfetch evil.example 443\nfetch evil.example 443\nprint x")
        assert r.ok and r.denied == (
            Denied("evil.example", 443, "not_allowed", "ask for evil.example to be allowed", 2),
        )
        line = (
            "[egress to evil.example:443 was denied (not_allowed, 2 times): "
            "ask for evil.example to be allowed]"
        )
        assert str(r) == f"x\n{line}" and line in r._repr_html_()
        assert "denied=[Denied(host='evil.example'" in repr(r)
        r = s.run_code(f"fetch {API} 443")
        assert r.denied == () and "denied" not in repr(r) and "denied" not in str(r)
    assert str(Denied("a.example", 80, "port")) == "egress to a.example:80 was denied (port)"


def test_denials_with_control_characters_are_harmless_to_print(daemon: FakeDaemon):
    bad = {"host": "a\x1b[31m", "port": 1, "reason": "bad_host", "hint": "<b>", "count": 1}
    daemon.on_exec(lambda r: r.events({"type": "exit", "data": 1, "denied": [bad, {}]}))
    with Sandbox() as s:
        r = s.run_code("x")
    assert [one.host for one in r.denied] == ["a\x1b[31m", ""] and r.denied[1].count == 1
    assert "\x1b" not in str(r) and "<b>" not in r._repr_html_()


def test_the_log(fleet: FakeFleet):
    with Sandbox(egress_allow=[API]) as s:
        assert s.egress_log() == []
        r = s.run_code(f"fetch {API} 443\nfetch evil.example 80")
        decision, end, denied = s.egress_log()
        assert fleet.requests[-1].query == {"limit": "1000"}
        assert (decision.type, decision.allowed, decision.rule) == ("decision", True, API)
        assert (decision.sandbox, decision.exec_id) == (s.id, r.exec_id)
        assert (decision.bytes_up, decision.duration_ms) == (None, None)
        assert (end.type, end.id, end.bytes_up, end.bytes_down) == ("end", decision.id, 10, 2000)
        assert (end.duration_ms, end.why, end.address) == (5, None, "192.0.2.1")
        assert (denied.allowed, denied.reason, denied.host) == (
            False,
            "not_allowed",
            "evil.example",
        )
        assert (denied.port, denied.address, denied.method, denied.rule) == (80, None, None, None)
        assert denied.time.endswith("Z") and denied.raw["stream"] == 102 + 1
        assert s.egress_log(limit=1) == [denied]


@pytest.mark.parametrize(
    "answer",
    [
        lambda r: r.reply(200, {"lines": []}),
        lambda r: r.reply(200, b"not json\n", {"content-type": "application/x-ndjson"}),
        lambda r: r.reply(200, b"[1]\n", {"content-type": "application/x-ndjson"}),
        lambda r: r.reply(200, b'{"type": "end"}\n', {"content-type": "application/x-ndjson"}),
    ],
    ids=["json", "text", "lists", "incomplete"],
)
def test_a_log_that_is_none(daemon: FakeDaemon, answer):
    daemon.on("GET", f"/v1/sandboxes/{SANDBOX_ID}/egress/log", answer)
    with Sandbox() as s:
        with pytest.raises(podflare.PodflareError, match="did not answer as a podflare daemon"):
            s.egress_log()


def test_secrets_are_not_kept_here(fleet: FakeFleet):
    """Nothing that the SDK holds on to after the create has the value."""
    with Sandbox(egress_allow=[API], egress_inject={API: {"K": "".join(["kept", "?"])}}) as s:
        target = getattr(s, "target", s)
        todo, seen = [vars(target)], set()
        while todo:
            one = todo.pop()
            if id(one) in seen or inspect.ismodule(one) or inspect.isframe(one):
                continue
            seen.add(id(one))
            assert one != "kept?"
            if isinstance(one, (dict, list, tuple, set)) or type(one).__module__.startswith(
                ("podflare", "httpx", "httpcore")
            ):
                todo += gc.get_referents(one)
        assert len(seen) > 10
        assert "kept?" not in repr(s) + repr(s.info()) + repr(s.egress)
