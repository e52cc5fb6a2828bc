"""Grants: what is asked for, what is refused, and what the VMM and the agent are told."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Daemon, stdout_of, wait_for
from egress import OFF, ask, get, grant, guest, inject, mode, notes, policies, put, started
from egress import wait_failed, wait_no_proxy


@pytest.mark.parametrize("body", [{}, {"egress": None}, {"egress": False}, {"egress": True}, {"egress": grant()}])
def test_nothing_is_granted_unless_it_is_asked_for(daemon: Daemon, body: dict) -> None:
    """An empty list is nothing, and so is the default of an operator who has none."""
    r = daemon.http.post("/v1/sandboxes", json=body)
    assert r.status_code == 200 and r.json()["egress"] == OFF
    sid = r.json()["id"]
    assert get(daemon, sid) == OFF
    assert guest(daemon, sid, "open", name="a") == "reset"
    state = guest(daemon, sid, "state")
    assert state["told"] == [None] and "egress 1" not in state["seen"]
    assert started(daemon) == 0


def test_the_agent_cannot(start: Callable[..., Daemon]) -> None:
    """The sandbox is there, and says why it has no egress; one without a grant has nothing to say."""
    d = start(mode="fork:renew-no-egress")
    d.templates_ready()
    for body, told in [
        ({}, OFF),
        ({"egress": grant("a.example")}, {"state": "failed", "reason": "port 1080 is in use"}),
    ]:
        r = d.http.post("/v1/sandboxes", json=body)
        assert r.status_code == 200, r.text
        assert told.items() <= r.json()["egress"].items()
        assert stdout_of(d.exec(r.json()["id"], "echo hi")) == "hi"


def test_the_object(daemon: Daemon) -> None:
    """Lists in normal form, and of injections the names only."""
    allow = ["API.Example.com", "*.example.org", "pypi", {"host": "bücher.example", "ports": [8443]}]
    more = inject("api.example.com", Authorization="Bearer x", Cookie="y")
    r = daemon.http.post("/v1/sandboxes", json={"egress": grant(*allow, inject=more)})
    assert r.status_code == 200, r.text
    egress = r.json()["egress"]
    assert egress == {
        "allow": ["api.example.com", "*.example.org", "pypi", "xn--bcher-kva.example:8443"],
        "inject": {"api.example.com": ["Authorization", "Cookie"]},
        "state": "on",
        "reason": None,
    }
    sid = r.json()["id"]
    assert get(daemon, sid) == egress
    assert daemon.http.get(f"/v1/sandboxes/{sid}").json()["egress"] == egress
    (listed,) = daemon.http.get("/v1/sandboxes").json()["sandboxes"]
    assert listed["egress"] == egress


BAD_ALLOW = [
    ("127.0.0.1", "127.0.0.1"),
    ("0x7f.1", "0x7f.1"),
    ("2130706433", "2130706433"),
    ("[::1]", "::1"),
    ("example.com.", "example.com."),
    ("localhost", "localhost"),
    ("nosuchgroup", "nosuchgroup"),
    ("*", "*"),
    ("*.com", "*.com"),
    ("a..example.com", "a..example.com"),
    ("example.com:0", "example.com:0"),
    ("example.com:65536", "example.com:65536"),
    ("api.foo.egress", "api.foo.egress"),
    ({"host": "example.com", "surprise": 1}, "surprise"),
    ({"host": "example.com", "ports": []}, "ports"),
    (7, ""),
]


@pytest.mark.parametrize("entry,words", BAD_ALLOW)
@pytest.mark.parametrize("where", ["create", "put", "fork"])
def test_a_bad_entry_is_named(daemon: Daemon, where: str, entry: Any, words: str) -> None:
    value = grant("fine.example.com", entry)
    if where == "create":
        r = daemon.http.post("/v1/sandboxes", json={"egress": value})
    else:
        sid = daemon.create(egress=grant("old.example.com"))
        if where == "put":
            r = put(daemon, sid, value)
        else:
            r = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={"egress": value})
        assert get(daemon, sid)["allow"] == ["old.example.com"], "the old one holds"
    assert r.status_code == 400, r.text
    assert r.json()["code"] == "invalid_request" and r.json()["field"] == "egress.allow"
    assert words in r.json()["error"]
    assert len(daemon.http.get("/v1/sandboxes").json()["sandboxes"]) == (where != "create")


@pytest.mark.parametrize(
    "value,field,words",
    [
        ("yes", "egress", "true or false"),
        (1, "egress", "true or false"),
        ([], "egress", "true or false"),
        ({}, "egress", "allow"),
        ({"allow": None}, "egress.allow", "list"),
        ({"allow": "example.com"}, "egress.allow", "list"),
        ({"allow": {}}, "egress.allow", "list"),
        ({"allow": [], "deny": []}, "egress", "deny"),
        ({"allow": ["x.example.com"] * 5000}, "egress.allow", ""),
        ({"allow": [{"host": "x.example.com", "paths": ["/" + "x" * 2000] * 600}]}, "egress.allow", ""),
        (grant("a.test", inject=[]), "egress.inject", "object"),
        (grant("a.test", inject={"a.test": []}), "egress.inject", "a.test"),
        (grant("a.test", inject={"a.test": {"headers": [], "intercept": False}}), "egress.inject", "a.test"),
        (grant("a.test", inject={"a.test": {"headers": {}, "intercept": 1}}), "egress.inject", "a.test"),
        (grant("a.test", inject={"a.test": {"headers": {}, "more": 1}}), "egress.inject", "a.test"),
        (grant("a.test", inject={"a.test": {"headers": {"A": 1}}}), "egress.inject", "A for a.test"),
        (grant("a.test", inject=inject("b.test", A="x")), "egress.inject", "b.test is not allowed"),
        (grant(inject=inject("b.test", A="x")), "egress.inject", "b.test is not allowed"),
        (grant("a.test", inject=inject("*.a.test", A="x")), "egress.inject", "*.a.test"),
        (grant("a.test", inject=inject("127.0.0.1", A="x")), "egress.inject", "127.0.0.1"),
        (grant("a.test", inject={**inject("a.test", A="x"), **inject("A.test", B="y")}), "egress.inject", "twice"),
        (grant("a.test", inject={f"h{i}.a.test": {} for i in range(65)}), "egress.inject", "64 hosts"),
        (grant("a.test", inject=inject("a.test", **{f"H{i}": "" for i in range(33)})), "egress.inject", "32 headers"),
    ],
)
def test_a_bad_object_is_named(daemon: Daemon, value: Any, field: str, words: str) -> None:
    r = daemon.http.post("/v1/sandboxes", json={"egress": value})
    assert r.status_code == 400, r.text
    assert r.json()["code"] == "invalid_request" and r.json()["field"] == field
    assert words in r.json()["error"]


def test_a_host_that_is_only_intercepted(daemon: Daemon) -> None:
    """Who wrote it into a parameter for interceptions has never heard of egress.inject."""
    only = {"headers": {}, "intercept": True}
    for hosts, words in (
        ({"b.test": only}, "interception: b.test is not allowed by egress.allow"),
        ({"b.test": {"intercept": True}}, "interception: b.test is not allowed by egress.allow"),
        ({"127.0.0.1": only}, "interception: "),
        ({"a.test": only, "A.test": only}, "interception: a.test is there twice"),
        ({"b.test": {"headers": {"A": "x"}, "intercept": True}}, "egress.inject: b.test is not allowed"),
    ):
        r = daemon.http.post("/v1/sandboxes", json={"egress": grant("a.test", inject=hosts)})
        assert r.status_code == 400 and r.json()["error"].startswith(words), r.text


@pytest.mark.parametrize(
    "name",
    ["Host", "content-length", "Transfer-Encoding", "Connection", "keep-alive", "TE", "Trailer"]
    + ["Upgrade", "Proxy-Authorization", "Proxy-Authenticate", "Proxy-Connection", "Expect"],
)
def test_headers_that_are_not_for_injection(daemon: Daemon, name: str) -> None:
    r = daemon.http.post("/v1/sandboxes", json={"egress": grant("a.test", inject=inject("a.test", **{name: "x"}))})
    assert r.status_code == 400 and r.json()["field"] == "egress.inject"
    assert name in r.json()["error"]


@pytest.mark.parametrize("name", ["", "A B", "A:", "A\r\nB", "Ä", "A" * 129, "Authorization: Bearer hidden"])
def test_names_of_headers_are_tokens(daemon: Daemon, name: str) -> None:
    """What is there in its place is not shown: it could be the secret."""
    r = daemon.http.post("/v1/sandboxes", json={"egress": grant("a.test", inject=inject("a.test", **{name: "x"}))})
    assert r.status_code == 400 and r.json()["field"] == "egress.inject"
    assert "hidden" not in r.text


@pytest.mark.parametrize("value", ["hidden\r\nEvil: 1", "hidden\n", "hidden\x00", "hidden\x1b", "hidden\x7f", "hidden" * 2000])
def test_values_of_headers_are_one_line(daemon: Daemon, value: str) -> None:
    r = daemon.http.post("/v1/sandboxes", json={"egress": grant("a.test", inject=inject("a.test", A=value))})
    assert r.status_code == 400 and r.json()["field"] == "egress.inject"
    assert "hidden" not in r.text


@pytest.mark.parametrize(
    "names,words",
    [
        (("Cookie", "cookie"), "for a.test is there twice"),
        (("X-Api-Key", "X_Api_Key"), "X-Api-Key and X_Api_Key for a.test are the same header"),
        (("x_api_key", "X-Api_Key"), "x_api_key and X-Api_Key for a.test are the same header"),
    ],
)
def test_two_spellings_of_a_header(daemon: Daemon, names: tuple[str, str], words: str) -> None:
    """The second would take the place of the first."""
    value = grant("a.test", inject=inject("a.test", **dict.fromkeys(names, "hidden")))
    r = daemon.http.post("/v1/sandboxes", json={"egress": value})
    assert r.status_code == 400 and r.json()["field"] == "egress.inject"
    assert words in r.json()["error"] and "hidden" not in r.text


def test_the_guest_can_connect_as_soon_as_it_runs(daemon: Daemon) -> None:
    """The VMM is told ahead of RENEW's stream; the agent is told by RENEW and not again."""
    sid = daemon.create(egress=grant("allowed.test"))
    state = guest(daemon, sid, "state")
    assert state["seen"][:2] == ["egress 1", "connect"]
    assert state["told"] == [{"on": True, "ca": None}]
    assert started(daemon) == 0, "nothing has connected so far"


# --- replacing it -------------------------------------------------------------------------


def test_put_turns_it_on_and_off(daemon: Daemon) -> None:
    sid = daemon.create()
    r = put(daemon, sid, grant("allowed.test"))
    assert r.status_code == 200 and r.json() == {**OFF, "allow": ["allowed.test"], "state": "on"}
    assert guest(daemon, sid, "state")["told"] == [None, {"on": True, "ca": None}]
    assert ask(daemon, sid, name="kept") == "allow"
    r = put(daemon, sid, False)
    assert r.status_code == 200 and r.json() == OFF
    state = guest(daemon, sid, "state")
    assert state["seen"][-2:] != ["egress 1", "connect"] and "egress 0" in state["seen"]
    assert state["on"] is False and state["open"] == []
    assert state["told"][-1] == {"on": False, "ca": None}
    assert guest(daemon, sid, "open", name="b") == "reset"
    wait_no_proxy(daemon)
    assert put(daemon, sid, grant("allowed.test")).json()["state"] == "on"
    assert ask(daemon, sid) == "allow"
    assert put(daemon, sid, grant()).json() == OFF


def test_put_replaces_it_whole(daemon: Daemon) -> None:
    """Injections that are not given again are gone."""
    sid = daemon.create(egress=grant("a.test", "b.test", inject=inject("a.test", A="x")))
    r = put(daemon, sid, grant("b.test", "c.test"))
    assert r.json() == {**OFF, "allow": ["b.test", "c.test"], "state": "on"}
    ask(daemon, sid, "c.test")
    assert policies(daemon)[-1]["inject"] == {}


def test_put_true_is_the_default(start: Callable[..., Daemon], tmp_path: Any) -> None:
    config = tmp_path / "egress.json"
    config.write_text('{"default": ["pypi"]}')
    d = start(args=["--egress-config", str(config)])
    sid = d.create()
    assert put(d, sid, True).json()["allow"] == ["pypi"]


def test_an_update_cuts(daemon: Daemon) -> None:
    """The policy reaches the proxy that runs, and the answer to PUT comes when it holds."""
    sid = daemon.create(egress=grant("a.test", "b.test"))
    assert ask(daemon, sid, "a.test", name="a") == ask(daemon, sid, "b.test", name="b") == "allow"
    assert put(daemon, sid, grant("b.test")).status_code == 200
    assert [p["allow"] for p in policies(daemon)] == [["a.test", "b.test"], ["b.test"]]
    assert [n["serial"] for n in notes(daemon, "policy")] == [1, 2] and started(daemon) == 1
    assert guest(daemon, sid, "read", name="a") == "", "cut"
    assert guest(daemon, sid, "line", name="b", line='{"host": "b.test"}') == "allow"
    assert ask(daemon, sid, "a.test", name="c") == "deny not_allowed"


def test_put_waits_for_the_proxy(daemon: Daemon) -> None:
    mode(daemon, "slow 0.5")
    sid = daemon.create(egress=grant("a.test"))
    ask(daemon, sid, "a.test")
    answers: list[dict] = []
    threads = []
    for host in ("b.test", "c.test"):
        t = threading.Thread(target=lambda h=host: answers.append(put(daemon, sid, grant(h)).json()))
        threads.append(t)
        t.start()
    for t in threads:
        t.join()
    # Both are answered, and what holds is what the proxy was told last.
    assert get(daemon, sid)["allow"] == policies(daemon)[-1]["allow"]
    assert len(policies(daemon)) == 3 and len(answers) == 2


@pytest.mark.parametrize(
    "body,words",
    [("{", "not valid JSON"), ("", "not valid JSON"), ("null", "object, true or false"), ('"x"', "true or false")]
    + [('{"allow": ["secret-in-broken-json', "not valid JSON")],
)
def test_bad_bodies(daemon: Daemon, body: str, words: str) -> None:
    sid = daemon.create()
    r = daemon.http.put(f"/v1/sandboxes/{sid}/egress", content=body)
    assert r.status_code == 400 and words in r.json()["error"]
    assert "secret" not in r.text


def test_of_no_sandbox(daemon: Daemon) -> None:
    sid = daemon.create()
    daemon.exec(sid, "#fake:poweroff")
    for method in ("GET", "PUT"):
        r = daemon.http.request(method, f"/v1/sandboxes/sbx_{'0' * 32}/egress", content="false")
        assert r.status_code == 404
        r = daemon.http.request(method, f"/v1/sandboxes/{sid}/egress", content="false")
        assert r.status_code == 409
    assert daemon.http.get(f"/v1/sandboxes/{sid}/egress/log").status_code == 409


# --- the agent ----------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["error", "close"])
def test_an_agent_that_cannot_be_told(daemon: Daemon, word: str) -> None:
    """The grant holds all the same; the same PUT again tells the agent again."""
    sid = daemon.create()
    daemon.exec(sid, f"#fake:once egress {word}")
    r = put(daemon, sid, grant("allowed.test"))
    assert r.status_code == 502 and r.json()["code"] == "agent_error"
    assert get(daemon, sid)["allow"] == ["allowed.test"]
    assert put(daemon, sid, grant("allowed.test")).status_code == 200
    assert guest(daemon, sid, "state")["told"][-1] == {"on": True, "ca": None}


def test_an_agent_that_does_not_answer(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1"})
    sid = d.create()
    d.exec(sid, "#fake:once egress mute")
    r = put(d, sid, grant("allowed.test"))
    assert r.status_code == 502 and "did not answer" in r.json()["error"]
    assert put(d, sid, grant("allowed.test")).status_code == 200


def test_an_agent_is_told_what_holds_last(daemon: Daemon) -> None:
    """Changes that come while it is being told are told behind."""
    sid = daemon.create()
    daemon.exec(sid, "#fake:once egress slow 0.4")
    t = threading.Thread(target=lambda: put(daemon, sid, grant("a.test")))
    t.start()
    wait_for(lambda: get(daemon, sid)["state"] == "on")
    assert put(daemon, sid, False).json() == OFF
    t.join()
    assert guest(daemon, sid, "state")["told"] == [None, {"on": True, "ca": None}, {"on": False, "ca": None}]


def test_a_sandbox_that_ends_meanwhile(daemon: Daemon) -> None:
    sid = daemon.create()
    daemon.exec(sid, "#fake:once egress mute")
    answers = []
    t = threading.Thread(target=lambda: answers.append(put(daemon, sid, grant("a.test"))))
    t.start()
    wait_for(lambda: get(daemon, sid)["state"] == "on")
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    t.join()
    assert answers[0].status_code == 409


# --- interception -------------------------------------------------------------------------


def test_an_intercepted_host(daemon: Daemon) -> None:
    """The proxy runs before the guest does, and the guest has its certificate, never the key."""
    sid = daemon.create(egress=grant("a.test", inject=inject("a.test", True, A="x")))
    (told,) = guest(daemon, sid, "state")["told"]
    assert told["on"] and told["ca"].startswith("-----BEGIN CERTIFICATE-----\n")
    assert "PRIVATE" not in told["ca"] and started(daemon) == 1
    (policy,) = policies(daemon)
    assert policy["inject"] == {"a.test": {"headers": {"A": "x"}, "intercept": True}} and policy["ca"] is None
    # The CA is the sandbox's: later policies have it, and it goes from the guest with the last
    # interception.
    put(daemon, sid, grant("a.test", "b.test", inject=inject("a.test", True, A="y")))
    assert policies(daemon)[-1]["ca"]["cert_pem"] == told["ca"]
    assert len(guest(daemon, sid, "state")["told"]) == 1, "nothing new for the agent"
    put(daemon, sid, grant("a.test"))
    assert guest(daemon, sid, "state")["told"][-1] == {"on": True, "ca": None}
    put(daemon, sid, grant("a.test", inject=inject("a.test", True)))
    assert guest(daemon, sid, "state")["told"][-1] == told


def test_interception_later(daemon: Daemon) -> None:
    """The first policy with one starts the proxy; the agent is told once, with the certificate."""
    sid = daemon.create()
    assert put(daemon, sid, grant("a.test", inject=inject("a.test", True))).json()["state"] == "on"
    told = guest(daemon, sid, "state")["told"]
    assert len(told) == 2 and told[1]["ca"] and started(daemon) == 1


@pytest.mark.parametrize(
    "how",
    ["exit 3", "refuse no room", "ca null", 'ca {"cert_pem": "x", "key_pem": "y"}', "early"]
    + ['ca {"cert_pem": "-----BEGIN PRIVATE KEY-----\\nx\\n-----END PRIVATE KEY-----\\n", "key_pem": ""}'],
)
@pytest.mark.parametrize("later", [False, True])
def test_without_a_ca_the_sandbox_works(daemon: Daemon, how: str, later: bool) -> None:
    """And the state says why. When the next proxy makes one, the agent is told of it."""
    mode(daemon, "1:" + how)
    value = grant("a.test", inject=inject("a.test", True))
    sid = daemon.create(**({} if later else {"egress": value}))
    if later:
        assert put(daemon, sid, value).json()["state"] == "failed"
    assert wait_failed(daemon, sid)
    assert stdout_of(daemon.exec(sid, "echo works")) == "works"
    told = guest(daemon, sid, "state")["told"]
    assert told[-1] == {"on": True, "ca": None}
    if how.startswith(("refuse", "ca null")):
        assert put(daemon, sid, False).status_code == 200
        wait_no_proxy(daemon)
        put(daemon, sid, value)
    else:
        ask(daemon, sid, "a.test")
    wait_for(lambda: guest(daemon, sid, "state")["told"][-1]["ca"])
    assert get(daemon, sid)["state"] == "on"
