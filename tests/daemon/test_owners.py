"""With keys, a sandbox belongs to the key that made it: to any other key it is an id that never was."""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import Daemon, wait_for
from egress import grant, mode, policies
from operations import GENERAL, ON_ONE, REQUESTS, prepare, request_of
from spec import OPERATIONS

UNKNOWN = "sbx_" + "0" * 32
NOT_FOUND = {"error": "sandbox not found", "code": "sandbox_not_found"}
KEYS = ("pk_ann_1f0c", "pk_bob_77e2")


def as_key(d: Daemon, key: str) -> httpx.Client:
    """A client with this key."""
    return httpx.Client(base_url=d.url, timeout=60, headers={"authorization": f"Bearer {key}"})


def new(c: httpx.Client, **body: Any) -> str:
    """A new sandbox's id."""
    r = c.post("/v1/sandboxes", json=body)
    assert r.status_code == 200, r.text
    return r.json()["id"]


def run(c: httpx.Client, sid: str, code: str) -> str:
    """What a command has written."""
    r = c.post(f"/v1/sandboxes/{sid}/exec", json={"code": code, "language": "bash"})
    assert r.status_code == 200, r.text
    return "\n".join(json.loads(x)["data"] for x in r.text.splitlines()[:-1])


def fork(c: httpx.Client, sid: str) -> str:
    """A copy's id."""
    r = c.post(f"/v1/sandboxes/{sid}/fork")
    assert r.status_code == 200, r.text
    return r.json()["children"][0]


def ids(c: httpx.Client) -> list[str]:
    """Ids of the list."""
    return [o["id"] for o in c.get("/v1/sandboxes").json()["sandboxes"]]


class Two:
    """A daemon with two keys."""

    def __init__(
        self, start: Callable[..., Daemon], args: list[str] | None = None, **env: str
    ) -> None:
        self.d = start(env={"PODFLARE_API_KEYS": ",".join(KEYS), **env}, args=args)
        self.ann, self.bob = (as_key(self.d, k) for k in KEYS)


class Shared(Two):
    """With sandboxes of both, for all operations."""

    def __init__(self, start: Callable[..., Daemon]) -> None:
        super().__init__(start)
        canary = {"metadata": {"canary": "CANARY-ann"}, "egress": grant("canary-ann.test")}
        self.sid = new(self.ann, **canary)
        self.ended = new(self.ann)
        self.child = fork(self.ann, self.sid)
        self.deleted = fork(self.ann, self.child)
        run(self.ann, self.ended, "#fake:poweroff")
        leaf = fork(self.ann, self.deleted)
        self.ann.delete(f"/v1/sandboxes/{self.deleted}").raise_for_status()
        self.own = new(self.bob)
        self.mine = [self.sid, self.child, leaf]

    def tidy(self) -> None:
        """Those are left that were there at first."""
        for c, keep in ((self.ann, self.mine), (self.bob, [self.own])):
            for sid in ids(c):
                if sid not in keep:
                    c.delete(f"/v1/sandboxes/{sid}").raise_for_status()
            assert ids(c) == keep


@pytest.fixture(scope="module")
def once(start_once: Callable[..., Daemon]) -> Shared:
    """One for all operations."""
    return Shared(start_once)


@pytest.fixture
def two(once: Shared) -> Iterator[Shared]:
    """As it was at first."""
    yield once
    once.tidy()


def answer(c: httpx.Client, method: str, path: str, what: dict[str, Any]) -> tuple[Any, ...]:
    """All of an answer that a client can tell from another."""
    with c.stream(method.upper(), path, **what) as r:
        if r.status_code == 101:
            return (101,)
        r.read()
    headers = {k: v for k, v in r.headers.items() if k != "date"}
    return r.status_code, headers, r.content


def test_every_operation_has_a_request() -> None:
    known = {(m, ON_ONE + tail) for m, tail in REQUESTS} | set(GENERAL)
    assert known == set(OPERATIONS)
    assert all("{id}" not in path for _, path in GENERAL)


@pytest.mark.parametrize("method,path", [o for o in OPERATIONS if "{id}" in o[1]])
def test_on_a_sandbox_of_another_key(two: Shared, tmp_path: Path, method: str, path: str) -> None:
    """Whatever it is, alive, ended or deleted: as an id that never was, and nothing happens to it."""
    ann, bob, sid, child, own = two.ann, two.bob, two.sid, two.child, two.own
    for name in "fgh":
        (tmp_path / name).write_bytes(b"data")
    what = request_of(method, path, str(tmp_path))
    prepare(ann, sid, path)
    before = sorted(os.listdir(tmp_path)), ann.get(f"/v1/sandboxes/{sid}").content

    def url(target: str, other: str = "") -> str:
        full = path.replace("{id}", target).replace("{other}", other)
        for name in ("exec_id", "context_id", "command_id"):
            full = full.replace("{%s}" % name, "c")
        return full

    pairs = [(sid, child), (two.ended, sid), (two.deleted, sid)]
    if "{other}" in path:
        pairs += [(own, sid), (own, two.ended), (sid, own)]
    for target, other in pairs:
        got = answer(bob, method, url(target, other), what)
        nothing = (own, UNKNOWN) if target == own else (UNKNOWN, other)
        assert got == answer(bob, method, url(*nothing), what), (target, other)
        assert got[0] == 404
        field = {"merge_into": "winner", "diff": "other"}.get(path.split("/")[-2]) if target == own else None
        assert json.loads(got[2]) == (NOT_FOUND if field is None else {**NOT_FOUND, "field": field})
    # With a body or a query that would be refused, and as HEAD.
    for kind, more in ((method, {"content": b"{"}), (method, {"params": {"path": ""}}), ("head", {})):
        assert answer(bob, kind, url(sid, child), more) == answer(bob, kind, url(UNKNOWN, child), more)
    assert (sorted(os.listdir(tmp_path)), ann.get(f"/v1/sandboxes/{sid}").content) == before
    assert ids(bob) == [own] and ids(ann) == two.mine
    # To its owner it is there, and the request is one that works.
    if (method, path) == ("delete", ON_ONE):
        sid = fork(ann, sid)
    elif method == "post" and "{other}" in path:
        child = fork(ann, sid)
        sid = fork(ann, sid)
    assert answer(ann, method, url(sid, child), what)[0] in (101, 200, 204)


@pytest.mark.parametrize("method,path", list(GENERAL))
def test_what_is_general_names_none_of_another_key(two: Shared, method: str, path: str) -> None:
    words = ("canary", "CANARY", *two.mine, two.ended, two.deleted)
    assert all(w in two.ann.get("/v1/sandboxes").text for w in ("canary", *two.mine))
    assert two.deleted in two.ann.get("/v1/tree").text
    for body in (GENERAL[method, path], {"json": {"sandbox": two.sid, "host": "a.test"}}):
        r = two.bob.request(method.upper(), path, **body)
        assert not [w for w in words if w in r.text + str(r.headers)]


def test_a_policy_is_tested_for_ones_own_only(two: Shared) -> None:
    test = {"host": "a.test", "sandbox": two.sid}
    assert two.ann.post("/v1/policy/test", json=test).status_code == 200
    r = two.bob.post("/v1/policy/test", json=test)
    assert (r.status_code, r.json()) == (404, {**NOT_FOUND, "field": "sandbox"})
    assert r.content == two.bob.post("/v1/policy/test", json={**test, "sandbox": UNKNOWN}).content


def test_lists_and_trees_are_ones_own(two: Shared) -> None:
    a, b = new(two.ann), new(two.bob)
    middle = fork(two.ann, a)
    leaf = fork(two.ann, middle)
    two.ann.delete(f"/v1/sandboxes/{middle}")
    assert ids(two.ann) == [*two.mine, a, leaf] and ids(two.bob) == [two.own, b]
    tree = two.ann.get("/v1/tree").json()["roots"]
    assert [r["id"] for r in tree] == [two.sid, a]
    assert tree[1]["children"][0]["id"] == middle, "an ancestor that has ended"
    assert [r["id"] for r in two.bob.get("/v1/tree").json()["roots"]] == [two.own, b]
    assert two.ann.post(f"/v1/sandboxes/{a}/merge_into/{leaf}").status_code == 204
    assert ids(two.ann) == [*two.mine, a]
    assert two.bob.get(f"/v1/sandboxes/{a}").status_code == 404


def test_the_key_counts_and_not_the_connection(two: Shared) -> None:
    """Requests of both keys over one connection, one after the other."""
    with httpx.Client(base_url=two.d.url, limits=httpx.Limits(max_connections=1)) as c:
        for _ in range(2):
            for key, have in zip(KEYS, (two.mine, [two.own])):
                c.headers["authorization"] = f"Bearer {key}"
                assert ids(c) == have


def test_one_of_the_pool_is_whose_it_becomes(start: Callable[..., Daemon]) -> None:
    two = Two(start, args=["--pool", "1"])
    first = new(two.ann)

    def pool() -> bool:
        return two.ann.get("/v1/templates").json()["templates"][0]["vms"][0]["pool"] == 1

    wait_for(pool)
    assert ids(two.ann) == [first] and ids(two.bob) == []
    r = two.bob.post("/v1/sandboxes").json()
    assert r["source"] == "pool"
    assert ids(two.bob) == [r["id"]] and ids(two.ann) == [first]
    assert two.ann.get(f"/v1/sandboxes/{r['id']}").status_code == 404
    assert ids(two.bob) == [r["id"]] and fork(two.bob, r["id"]) in ids(two.bob)


def restart(d: Daemon, keys: str) -> None:
    """The same state, other keys."""
    assert d.stop() == 0
    d.env["PODFLARE_API_KEYS"] = keys
    d.start()


def test_after_a_restart(start: Callable[..., Daemon]) -> None:
    """What became of a sandbox is its owner's to know, whatever the place of the key in the list."""
    two = Two(start)
    d = two.d
    a, b = new(two.ann), new(two.bob)

    def seen(key: str) -> list[int]:
        with as_key(d, key) as c:
            return [c.get(f"/v1/sandboxes/{sid}").status_code for sid in (a, b)]

    assert [seen(k) for k in KEYS] == [[200, 404], [404, 200]]
    restart(d, "pk_other,%s , %s,%s" % (KEYS[1], KEYS[0], KEYS[0]))
    assert [seen(k) for k in KEYS] == [[200, 404], [404, 200]]
    assert seen("pk_other") == [404, 404], "another key in the place of the first"
    restart(d, KEYS[1])
    assert seen(KEYS[1]) == [404, 200]
    with as_key(d, KEYS[1]) as c:
        assert c.delete(f"/v1/sandboxes/{a}").status_code == 404
        assert c.delete(f"/v1/sandboxes/{b}").status_code == 204
        assert c.get(f"/v1/sandboxes/{b}").status_code == 404
    restart(d, KEYS[0])
    with as_key(d, KEYS[0]) as c:
        assert c.get(f"/v1/sandboxes/{a}").json()["ended_reason"] == "podflared is stopping"
        assert c.delete(f"/v1/sandboxes/{b}").status_code == 404
    # Without keys there is one caller. What he makes is no key's.
    restart(d, "")
    assert seen("any") == [200, 404], "the other was deleted"
    mine = d.create()
    assert d.http.delete(f"/v1/sandboxes/{a}").status_code == 204
    restart(d, ",".join(KEYS))
    for key in KEYS:
        with as_key(d, key) as c:
            assert c.get(f"/v1/sandboxes/{mine}").status_code == 404


def in_vain(pool: ThreadPoolExecutor, ask: Callable[[], httpx.Response]) -> list[Future]:
    """Six questions, of which two wait for an answer that never comes: the others are refused at once."""
    asked = [pool.submit(ask) for _ in range(6)]
    wait_for(lambda: sum(f.done() for f in asked) == 4)
    assert {f.result().status_code for f in asked if f.done()} == {429}
    return [f for f in asked if not f.done()]


def test_comparisons_of_one_key_leave_room(start: Callable[..., Daemon]) -> None:
    """A guest of one key that never answers takes half of the places, and not for long."""
    two = Two(start, PODFLARE_PING_AFTER="3")
    a, b = new(two.ann), new(two.bob)
    of_ann, of_bob = (f"/v1/sandboxes/{x}/diff/{fork(c, x)}" for c, x in ((two.ann, a), (two.bob, b)))
    run(two.ann, a, '#fake:set {"changes_mute": true}')
    with ThreadPoolExecutor(6) as pool:
        began = time.monotonic()
        waiting = in_vain(pool, lambda: two.ann.get(of_ann))
        for _ in range(5):
            assert two.bob.get(of_bob).status_code == 200
        assert {f.result().status_code for f in waiting} == {502}
        assert 3 <= time.monotonic() - began < 20
        assert waiting[0].result().json() == {
            "error": "the guest's agent did not answer",
            "code": "agent_error",
        }
    run(two.ann, a, '#fake:set {"changes_mute": false}')
    assert two.ann.get(of_ann).status_code == 200


def test_tests_of_one_key_leave_room(start: Callable[..., Daemon]) -> None:
    """Likewise of policies."""
    two = Two(start)
    body = {"host": "a.test", "allow": ["a.test"]}
    mode(two.d, "mute")
    with ThreadPoolExecutor(6) as pool:
        waiting = in_vain(pool, lambda: two.ann.post("/v1/policy/test", json=body))
        wait_for(lambda: len(policies(two.d)) == 2)
        mode(two.d, "")
        assert two.bob.post("/v1/policy/test", json=body).json()["verdict"] == "allow"
        assert {f.result().status_code for f in waiting} == {502}
    assert two.ann.post("/v1/policy/test", json=body).json()["verdict"] == "allow"


def test_keys_are_nowhere(start: Callable[..., Daemon]) -> None:
    """The database and the log have a name that is made of a key and a salt."""
    two = Two(start)
    sid = new(two.ann)
    child = fork(two.ann, sid)
    other = new(two.bob)
    again = Two(start)
    elsewhere = new(again.ann)
    db = sqlite3.connect(two.d.state / "podflare.db")
    owner = dict(db.execute("SELECT id, owner FROM sandboxes"))
    salt = db.execute("SELECT value FROM salt").fetchall()
    db.close()
    assert len(salt) == 1 and len(salt[0][0]) == 32 and len(set(salt[0][0])) > 8
    assert owner[sid] == owner[child] != owner[other]
    assert all(len(o) == 32 and set(o) <= set("0123456789abcdef") for o in owner.values())
    db = sqlite3.connect(again.d.state / "podflare.db")
    assert dict(db.execute("SELECT id, owner FROM sandboxes"))[elsewhere] != owner[sid]
    db.close()
    assert f"sandbox_id={sid} template=default owner={owner[sid]} " in two.d.log_text()
    assert two.d.stop() == 0
    for path in two.d.state.rglob("*"):
        if path.is_file():
            assert not any(k.encode() in path.read_bytes() for k in KEYS), path
    assert not any(k in two.d.log_text() for k in KEYS)
