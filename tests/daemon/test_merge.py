"""Merges of sandboxes, and the tree of who was forked from whom."""

import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from conftest import Daemon, wait_for
from test_fork import alive, fork, get


def merge(d: Daemon, sid: str, winner: str) -> httpx.Response:
    """The answer of a merge."""
    return d.http.post(f"/v1/sandboxes/{sid}/merge_into/{winner}")


def tree(d: Daemon) -> Any:
    """The tree as nested pairs of id and children."""

    def node(o: dict) -> Any:
        return (o["id"], o["state"], [node(c) for c in o["children"]])

    return [node(o) for o in d.http.get("/v1/tree").json()["roots"]]


def test_merge(daemon: Daemon) -> None:
    sid = daemon.create(metadata={"a": "1"})
    daemon.exec(sid, '#fake:set {"vars": {"x": "parent"}}')
    winner, loser = fork(daemon, sid, n=2)["children"]
    daemon.exec(winner, '#fake:set {"vars": {"x": "winner"}}')
    pid, old = daemon.info(winner)["pid"], daemon.info(sid)["pid"]
    grandchild = fork(daemon, winner)["children"][0]
    assert merge(daemon, sid, winner).status_code == 204
    info = daemon.info(sid)
    assert info["pid"] == pid and info["state"]["vars"] == {"x": "winner"}
    assert old not in daemon.children()
    o = get(daemon, sid)
    assert o["parent"] is None and o["generation"] == 1 and o["metadata"] == {"a": "1"}
    assert sorted(o["children"]) == sorted([loser, grandchild])
    # The winner's id is dead, and closing it does nothing.
    assert daemon.http.get(f"/v1/sandboxes/{winner}").status_code == 404
    assert daemon.http.post(f"/v1/sandboxes/{winner}/exec", json={"code": "1"}).status_code == 404
    assert daemon.http.delete(f"/v1/sandboxes/{winner}").status_code == 204
    assert alive(daemon, sid) and alive(daemon, loser) and alive(daemon, grandchild)
    # Again with the other.
    assert merge(daemon, sid, winner).status_code == 404
    assert merge(daemon, sid, loser).status_code == 204
    assert daemon.info(sid)["state"]["vars"] == {"x": "parent"}
    assert tree(daemon) == [(sid, "ready", [(grandchild, "ready", [])])]
    assert fork(daemon, sid)["results"][0]["generation"] == 2


def test_merge_refused(daemon: Daemon) -> None:
    a, b = daemon.create(), daemon.create()
    assert merge(daemon, a, a).status_code == 400
    r = merge(daemon, a, "sbx_" + "0" * 32)
    assert r.status_code == 404 and r.json()["field"] == "winner"
    r = merge(daemon, "sbx_" + "0" * 32, a)
    assert r.status_code == 404 and "field" not in r.json()
    r = merge(daemon, a, b)
    assert r.status_code == 409 and r.json()["code"] == "other_lineage"
    (child,) = fork(daemon, a)["children"]
    daemon.exec(child, "#fake:poweroff")
    r = merge(daemon, a, child)
    assert r.status_code == 409 and r.json()["code"] == "sandbox_ended"
    assert r.json()["field"] == "winner"
    assert alive(daemon, a) and alive(daemon, b)


def is_dead(pid: int) -> bool:
    """Gone with all its threads and descriptors; a zombie, as nobody takes its status."""
    proc = Path(f"/proc/{pid}")
    return "\nState:\tZ" in (proc / "status").read_text() and len(list((proc / "task").iterdir())) == 1


def test_merge_of_one_that_has_just_died(daemon: Daemon) -> None:
    """The daemon hears of the death and of the merge at the same moment."""
    sid = daemon.create()
    for _ in range(5):
        (child,) = fork(daemon, sid)["children"]
        pid = daemon.info(child)["pid"]
        with ThreadPoolExecutor(1) as pool:
            os.kill(daemon.proc.pid, signal.SIGSTOP)
            answer = pool.submit(merge, daemon, sid, child)
            time.sleep(0.1)  # the request lies in the socket
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: is_dead(pid))
            os.kill(daemon.proc.pid, signal.SIGCONT)
            r = answer.result()
        assert r.status_code == 409 and r.json()["code"] == "sandbox_ended"
        assert alive(daemon, sid), "the one that lives goes on"


def test_merge_in_all_directions(daemon: Daemon) -> None:
    """Into a grandchild, a sibling, a parent and a grandparent: the tree stays a tree."""
    root = daemon.create()
    (a, b) = fork(daemon, root, n=2)["children"]
    (aa,) = fork(daemon, a)["children"]
    (aaa,) = fork(daemon, aa)["children"]
    # A descendant's place is taken by its ancestor: what was between stays below.
    assert merge(daemon, aa, root).status_code == 204
    assert sorted(tree(daemon)[0][2]) == sorted(
        [(a, "ready", []), (b, "ready", []), (aaa, "ready", [])]
    )
    assert tree(daemon)[0][:2] == (aa, "ready") and get(daemon, aa)["parent"] is None
    # Siblings.
    assert merge(daemon, a, b).status_code == 204
    assert sorted(tree(daemon)[0][2]) == sorted([(a, "ready", []), (aaa, "ready", [])])
    assert merge(daemon, aa, aaa).status_code == 204
    assert tree(daemon) == [(aa, "ready", [(a, "ready", [])])]


def test_merge_ends_running_commands(daemon: Daemon) -> None:
    sid = daemon.create()
    (child,) = fork(daemon, sid)["children"]
    body = {"code": "echo on; sleep 60", "language": "bash", "rich": True}
    with daemon.http.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as lost:
        lines = lost.iter_lines()
        assert json.loads(next(lines))["type"] == "started"
        assert json.loads(next(lines))["data"] == "on\n"
        body["code"] = "sleep 1; echo kept"
        with httpx.Client(base_url=daemon.url, timeout=30) as c:
            with c.stream("POST", f"/v1/sandboxes/{child}/exec", json=body) as kept:
                assert merge(daemon, sid, child).status_code == 204
                end = [json.loads(x) for x in lines]
                assert end[-1]["data"] == -1 and end[-1]["termination_reason"] == "closed"
                assert "sandbox ended: merged" in end[-2]["data"]
                assert [json.loads(x).get("data") for x in kept.iter_lines()] == [None, "kept\n", 0]


def test_merge_is_remembered(start: Callable[..., Daemon]) -> None:
    d = start()
    sid = d.create()
    (winner, other) = fork(d, sid, n=2)["children"]
    merge(d, sid, winner)
    d.exec(sid, "#fake:poweroff")
    d.stop()
    d.start()
    assert d.http.get(f"/v1/sandboxes/{winner}").status_code == 404
    assert d.http.delete(f"/v1/sandboxes/{winner}").status_code == 204
    o = get(d, sid)
    assert o["ended_reason"] == "the guest powered off" and o["generation"] == 1
    assert get(d, other)["parent"] == sid


def test_tree(daemon: Daemon) -> None:
    assert tree(daemon) == []
    root, lone = daemon.create(), daemon.create()
    (a, b) = sorted(fork(daemon, root, n=2)["children"])
    (aa,) = fork(daemon, a)["children"]
    (aaa,) = fork(daemon, aa)["children"]
    got = tree(daemon)
    assert got[1] == (lone, "ready", [])
    assert got[0][0] == root and sorted(got[0][2])[1] == (b, "ready", [])
    # Ended ancestors of living ones are there, others are not.
    for gone in (root, a, aa, b):
        daemon.http.delete(f"/v1/sandboxes/{gone}")
    path = (root, "ended", [(a, "ended", [(aa, "ended", [(aaa, "ready", [])])])])
    assert tree(daemon) == [path, (lone, "ready", [])]
    node = daemon.http.get("/v1/tree").json()["roots"][0]
    assert node["template"] == "default" and node["generation"] == 0 and node["created_at"] > 0
    daemon.http.delete(f"/v1/sandboxes/{aaa}")
    assert tree(daemon) == [(lone, "ready", [])]


def test_a_long_line(daemon: Daemon) -> None:
    """Each a child of the last, which is closed: depth costs nothing."""
    sid = daemon.create()
    for depth in range(1, 41):
        (child,) = fork(daemon, sid)["children"]
        daemon.http.delete(f"/v1/sandboxes/{sid}")
        sid = child
        assert get(daemon, sid)["generation"] == depth
    assert len(daemon.children()) == 2
    node, depth = daemon.http.get("/v1/tree").json()["roots"][0], 0
    while node["children"]:
        (node,), depth = node["children"], depth + 1
    assert depth == 40 and node["id"] == sid


def test_a_very_long_line(daemon: Daemon) -> None:
    """As many ancestors as are told; more are left out. Each is looked up once."""
    sid = daemon.create()
    (child,) = fork(daemon, sid)["children"]
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    db = sqlite3.connect(daemon.state / "podflare.db", timeout=30)
    ids = [sid, *(f"sbx_{i:032x}" for i in range(9000))]
    db.executemany(
        "INSERT INTO sandboxes(id, template, owner, parent, generation, memory_mib, vcpus, disk_mib,"
        " metadata, created_ms, ended_ms) VALUES(?, 'default', '', ?, 0, 1, 1, 1, '{}', ?, 1 << 52)",
        [(one, above, 9000 - i) for i, (one, above) in enumerate(zip(ids[1:], ids[2:] + [None]))],
    )
    db.execute("UPDATE sandboxes SET parent=? WHERE id=?", (ids[1], sid))
    db.commit()
    db.close()
    r = daemon.http.get("/v1/tree")
    assert r.status_code == 200
    found = re.findall(r'"id":"(\w+)"', r.text)
    assert found == [*reversed(ids[:1024]), child]
