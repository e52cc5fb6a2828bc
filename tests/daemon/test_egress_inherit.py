"""Grants in forks, merges, the pool and templates: who inherits what, and what goes on."""

import json
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Daemon, wait_for
from egress import OFF, ask, get, grant, guest, inject, policies, put, started


def fork(d: Daemon, sid: str, **body: Any) -> list[dict]:
    """The children of a fork that works."""
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json=body)
    assert r.status_code == 200, r.text
    return r.json()["results"]


def test_a_fork_inherits_the_list_and_never_the_secrets(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("a.test", inject=inject("a.test", True, A="x")))
    for child in fork(daemon, sid, n=2):
        assert child["egress"] == {**OFF, "allow": ["a.test"], "state": "on"}
        state = guest(daemon, child["id"], "state")
        assert state["seen"][:2] == ["egress 1", "connect"] and state["told"] == [{"on": True, "ca": None}]
        ask(daemon, child["id"], "a.test")
        assert policies(daemon)[-1]["inject"] == {} and policies(daemon)[-1]["sandbox"] == child["id"]
        assert policies(daemon)[-1]["ca"] is None
    assert get(daemon, sid)["inject"] == {"a.test": ["A"]}, "the parent keeps them"


def test_a_fork_takes_the_secrets_when_asked(daemon: Daemon) -> None:
    """With a CA of its own."""
    sid = daemon.create(egress=grant("a.test", inject=inject("a.test", True, A="x")))
    (child,) = fork(daemon, sid, inherit_inject=True)
    assert child["egress"]["inject"] == {"a.test": ["A"]}
    assert policies(daemon)[-1]["inject"]["a.test"]["headers"] == {"A": "x"}
    assert policies(daemon)[-1]["ca"] is None and started(daemon) == 2
    assert guest(daemon, child["id"], "state")["told"][0]["ca"]
    (grandchild,) = fork(daemon, child["id"])
    assert grandchild["egress"]["inject"] == {}


@pytest.mark.parametrize(
    "value,allow", [(False, []), (True, []), (grant(), []), (grant("b.test"), ["b.test"])]
)
def test_a_fork_with_its_own(daemon: Daemon, value: Any, allow: list) -> None:
    """Same for every child."""
    sid = daemon.create(egress=grant("a.test", inject=inject("a.test", A="x")))
    for child in fork(daemon, sid, n=2, egress=value):
        assert child["egress"] == {**OFF, "allow": allow, "state": "on" if allow else "off"}
        state = guest(daemon, child["id"], "state")
        assert state["on"] == bool(allow) and state["told"] == [{"on": True, "ca": None} if allow else None]
    assert get(daemon, sid)["allow"] == ["a.test"]


def test_a_fork_of_one_without(daemon: Daemon) -> None:
    sid = daemon.create()
    (child,) = fork(daemon, sid)
    assert child["egress"] == OFF
    (child,) = fork(daemon, sid, egress=grant("a.test", inject=inject("a.test", A="x")))
    assert child["egress"]["inject"] == {"a.test": ["A"]}
    (child,) = fork(daemon, sid, inherit_inject=True)
    assert child["egress"] == OFF


def test_bad_forks(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("a.test"))
    for body, field in (
        ({"inherit_inject": 1}, "inherit_inject"),
        ({"egress": grant("a.test"), "inherit_inject": True}, "inherit_inject"),
        ({"egress": False, "inherit_inject": True}, "inherit_inject"),
        ({"egress": "x"}, "egress"),
    ):
        r = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json=body)
        assert r.status_code == 400 and r.json()["field"] == field


def test_what_is_taken_while_a_fork_waits_is_not_inherited(daemon: Daemon) -> None:
    """Its children have what the parent has when it is forked."""
    sid = daemon.create(egress=grant("a.test"))
    daemon.exec(sid, "#fake:once fork late 2")
    results: list[list[dict]] = []
    threads = [threading.Thread(target=lambda: results.append(fork(daemon, sid))) for _ in range(2)]
    for t in threads:
        t.start()
    # One is under way, with the grant of then; the other waits behind it.
    wait_for(lambda: len(daemon.children()) > 2)
    t = threading.Thread(target=lambda: put(daemon, sid, False))
    t.start()
    wait_for(lambda: get(daemon, sid) == OFF)
    for x in [*threads, t]:
        x.join()
    assert sorted(r[0]["egress"]["state"] for r in results) == ["off", "on"]


def test_connections_of_the_parent_go_on(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("a.test"))
    assert ask(daemon, sid, "a.test", name="a") == "allow"
    (child,) = fork(daemon, sid)
    assert guest(daemon, sid, "line", name="a", line='{"host": "a.test"}') == "allow"
    assert guest(daemon, child["id"], "state")["open"] == []
    first = json.loads(guest(daemon, sid, "line", name="a", line='{"stream": true}'))
    second = json.loads(guest(daemon, child["id"], "open", name="x", line='{"stream": true}'))
    assert first["pid"] != second["pid"], "one proxy a sandbox"


def test_a_merge_keeps_the_winners(daemon: Daemon) -> None:
    """Under the new id, in the database too; the loser's proxy ends."""
    sid = daemon.create(egress=grant("a.test"))
    (child,) = fork(daemon, sid, egress=grant("b.test", inject=inject("b.test", A="x")))
    winner = child["id"]
    ask(daemon, sid, "a.test")
    assert ask(daemon, winner, "b.test", name="b") == "allow"
    r = daemon.http.post(f"/v1/sandboxes/{sid}/merge_into/{winner}")
    assert r.status_code == 204, r.text
    assert get(daemon, sid) == {"allow": ["b.test"], "inject": {"b.test": ["A"]}, "state": "on", "reason": None}
    assert ask(daemon, sid, "a.test", name="c") == "deny not_allowed"
    assert guest(daemon, sid, "line", name="b", line='{"host": "b.test"}') == "allow"
    log = daemon.http.get(f"/v1/sandboxes/{sid}/egress/log").text.splitlines()
    assert json.loads(log[-1])["sandbox"] == sid
    daemon.exec(sid, "#fake:poweroff")
    assert daemon.http.get(f"/v1/sandboxes/{sid}").json()["egress"] == {**OFF, "allow": ["b.test"]}


def test_pool_and_template_have_none(start: Callable[..., Daemon]) -> None:
    """What comes from the pool was renewed without; who wants a grant gets a fork with it."""
    d = start(args=["--pool", "2"])
    d.create()
    ready = "sandbox ready"
    wait_for(lambda: len(d.children()) == 4)  # template, one sandbox, two of the pool
    r = d.http.post("/v1/sandboxes", json={}).json()
    assert r["source"] == "pool" and r["egress"] == OFF
    assert guest(d, r["id"], "state")["told"] == [None]
    r = d.http.post("/v1/sandboxes", json={"egress": grant("a.test")}).json()
    assert r["source"] == "fork" and guest(d, r["id"], "state")["seen"][0] == "egress 1"
    assert ready in d.log_text() and started(d) == 0
    # One of the pool can get a grant later.
    sid = d.create()
    assert put(d, sid, grant("a.test")).json()["state"] == "on" and ask(d, sid, "a.test") == "allow"


def test_the_database_has_the_list(daemon: Daemon) -> None:
    """What an ended sandbox might reach is remembered, over a restart as well."""
    sid = daemon.create(egress=grant("a.test", inject=inject("a.test", A="x")))
    other = daemon.create()
    put(daemon, other, grant("b.test"))
    third = daemon.create(egress=grant("c.test"))
    put(daemon, third, False)
    daemon.stop()
    daemon.start()
    for x, allow in ((sid, ["a.test"]), (other, ["b.test"]), (third, [])):
        assert daemon.http.get(f"/v1/sandboxes/{x}").json()["egress"] == {**OFF, "allow": allow}
    db = sqlite3.connect(daemon.state / "podflare.db")
    assert not [t for (t,) in db.execute("SELECT allow FROM grants") if "c.test" in t]
    db.close()
