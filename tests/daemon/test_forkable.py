"""Sandboxes that cannot be forked: what their VMM is asked for, what is refused, and the pool."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from conftest import Daemon, stdout_of, wait_for
from egress import grant
from test_create import pool_of
from test_fork import alive, fork, get
from test_merge import merge


def is_leaf(d: Daemon, sid: str) -> bool:
    """What the VMM was told when it was forked; and the API says the same everywhere."""
    leaf = d.info(sid)["state"]["leaf"]
    listed = {o["id"]: o for o in d.http.get("/v1/sandboxes").json()["sandboxes"]}
    assert get(d, sid)["forkable"] is listed[sid]["forkable"] is (not leaf)
    return leaf


def check_refused(r: httpx.Response, words: str) -> None:
    """It says what cannot be done, why, and what to do instead."""
    assert r.status_code == 409
    o = r.json()
    assert o["code"] == "not_forkable"
    assert o["error"] == f"this sandbox has forkable false: {words}"
    assert "forkable is true unless it is asked for otherwise" in o["hint"]


@pytest.mark.parametrize(
    "body,leaf",
    [({}, False), ({"forkable": None}, False), ({"forkable": True}, False), ({"forkable": False}, True)],
)
def test_create(daemon: Daemon, body: dict, leaf: bool) -> None:
    r = daemon.http.post("/v1/sandboxes", json=body)
    assert r.status_code == 200 and r.json()["forkable"] is not leaf
    assert is_leaf(daemon, r.json()["id"]) is leaf
    assert daemon.http.post(f"/v1/sandboxes/{r.json()['id']}/fork").status_code == (409 if leaf else 200)


@pytest.mark.parametrize("value", [0, 1, "false", [], {}])
def test_no_boolean(daemon: Daemon, value: Any) -> None:
    sid = daemon.create()
    for path in ("", f"/{sid}/fork"):
        r = daemon.http.post(f"/v1/sandboxes{path}", json={"forkable": value})
        assert r.status_code == 400 and r.json()["field"] == "forkable"
    assert len(daemon.http.get("/v1/sandboxes").json()["sandboxes"]) == 1


def test_it_is_like_any_other(daemon: Daemon, tmp_path: Any) -> None:
    sid = daemon.create(forkable=False, egress=grant("a.test"), metadata={"a": "b"})
    assert stdout_of(daemon.exec(sid, "echo $((6 * 7))")) == "42"
    url = f"/v1/sandboxes/{sid}/files?path={tmp_path}/f"
    assert daemon.http.put(url, content=b"data").status_code == 200
    assert daemon.http.get(url).content == b"data"
    o = get(daemon, sid)
    assert o["egress"]["allow"] == ["a.test"] and o["metadata"] == {"a": "b"}
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204


def test_forks_are_refused(start: Callable[..., Daemon]) -> None:
    """Before anything is done: it is not frozen (its VMM would die of it), and no place is taken."""
    d = start(args=["--max-sandboxes", "3"])
    sid = d.create(forkable=False)
    pid = d.info(sid)["pid"]
    command = {"argv": ["cat"], "command_id": "c", "stdin": True}
    assert d.http.post(f"/v1/sandboxes/{sid}/commands", json=command).status_code == 200
    bodies = ({}, {"n": 2}, {"n": 3, "forkable": False}, {"reseed": False}, {"egress": grant("a.test")})
    for body in bodies:
        check_refused(d.http.post(f"/v1/sandboxes/{sid}/fork", json=body), "it cannot be forked")
    assert d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 0}).json()["field"] == "n"
    commands = d.http.get(f"/v1/sandboxes/{sid}/commands").json()["commands"]
    assert [c["state"] for c in commands] == ["running"]
    assert alive(d, sid) and d.info(sid)["pid"] == pid and get(d, sid)["children"] == []
    d.create()
    d.create()
    assert d.http.post("/v1/sandboxes").status_code == 429


def test_an_end_comes_first(daemon: Daemon) -> None:
    sid = daemon.create(forkable=False)
    daemon.exec(sid, "#fake:poweroff")
    assert daemon.http.post(f"/v1/sandboxes/{sid}/fork").json()["code"] == "sandbox_ended"
    assert "forkable" not in get(daemon, sid)


def test_children(daemon: Daemon) -> None:
    """What they are is said by their fork, not by their parent."""
    sid = daemon.create()
    leaves = fork(daemon, sid, n=2, forkable=False)
    assert [r["forkable"] for r in leaves["results"]] == [False, False]
    (other,) = fork(daemon, sid)["children"]
    assert [is_leaf(daemon, s) for s in (sid, *leaves["children"], other)] == [False, True, True, False]
    for child in leaves["children"]:
        check_refused(daemon.http.post(f"/v1/sandboxes/{child}/fork"), "it cannot be forked")
    (below,) = fork(daemon, other)["children"]
    assert not is_leaf(daemon, below)
    assert all(alive(daemon, s) for s in (sid, *leaves["children"], other, below))


def test_merges(daemon: Daemon) -> None:
    """Nothing takes the place of one that cannot be forked; it may take another's."""
    sid = daemon.create()
    daemon.exec(sid, '#fake:set {"vars": {"x": "parent"}}')
    a, b = fork(daemon, sid, n=2, forkable=False)["children"]
    for loser, winner in ((a, b), (a, sid)):
        check_refused(merge(daemon, loser, winner), "no other can take its place")
    assert all(alive(daemon, s) for s in (sid, a, b))
    stranger = daemon.create()
    assert merge(daemon, a, stranger).json()["code"] == "other_lineage"
    daemon.exec(a, '#fake:set {"vars": {"x": "a"}}')
    pid = daemon.info(a)["pid"]
    assert merge(daemon, sid, a).status_code == 204
    assert daemon.info(sid)["pid"] == pid and daemon.info(sid)["state"]["vars"] == {"x": "a"}
    assert is_leaf(daemon, sid)
    check_refused(daemon.http.post(f"/v1/sandboxes/{sid}/fork"), "it cannot be forked")
    check_refused(merge(daemon, sid, b), "no other can take its place")


def test_what_another_key_hears(start: Callable[..., Daemon]) -> None:
    """Nothing: neither that it is there nor what it is."""
    d = start(env={"PODFLARE_API_KEYS": "one,two"})
    d.http.headers["authorization"] = "Bearer one"
    sid = d.create(forkable=False)
    d.http.headers["authorization"] = "Bearer two"
    mine = d.create()
    nobody = "sbx_" + "0" * 32

    def answers(other: str) -> list[tuple[int, str]]:
        replies = d.http.post(f"/v1/sandboxes/{other}/fork"), merge(d, other, mine), merge(d, mine, other)
        return [(r.status_code, r.text) for r in replies]

    assert answers(sid) == answers(nobody)
    assert [status for status, _ in answers(sid)] == [404] * 3


# --- pool -----------------------------------------------------------------------------------


def made(d: Daemon, **body: Any) -> tuple[str, bool]:
    """How a create was served, and whether its VM can be forked no more."""
    o = d.http.post("/v1/sandboxes", json=body).json()
    assert o["source"] == get(d, o["id"])["source"]
    return o["source"], is_leaf(d, o["id"])


def test_the_pool_keeps_both_kinds_apart(start: Callable[..., Daemon]) -> None:
    d = start(args=["--pool", "2"])
    assert made(d) == ("fork", False)
    wait_for(lambda: pool_of(d) == 2)
    assert made(d, forkable=False) == ("fork", True), "those of the pool could be forked"
    wait_for(lambda: pool_of(d) == 4)
    assert made(d, forkable=False) == ("pool", True)
    assert made(d, forkable=True) == ("pool", False)
    wait_for(lambda: pool_of(d) == 4)
    assert [made(d, forkable=False) for _ in range(2)] == [("pool", True)] * 2
    assert [made(d) for _ in range(2)] == [("pool", False)] * 2
    o = d.http.post("/v1/sandboxes", json={"forkable": False}).json()
    check_refused(d.http.post(f"/v1/sandboxes/{o['id']}/fork"), "it cannot be forked")


def test_the_pool_has_only_what_is_asked_for(start: Callable[..., Daemon]) -> None:
    d = start(args=["--pool", "2"])
    assert made(d, forkable=False) == ("fork", True)
    wait_for(lambda: pool_of(d) == 2)
    time.sleep(0.3)
    assert pool_of(d) == 2
    assert made(d) == ("fork", False), "those of the pool cannot be forked"
    wait_for(lambda: pool_of(d) == 4)
    assert d.stop() == 0
