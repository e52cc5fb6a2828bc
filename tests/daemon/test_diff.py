"""Comparing the files of two sandboxes: shapes, hashes, hostile guests, limits."""

import base64
import http.client
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from conftest import SANITIZED, Daemon, wait_for

HASHES = [c * 64 for c in "abcdef"]


def entry(
    path: str | bytes,
    kind: str = "file",
    size: int = 5,
    mode: int = 0o644,
    at: int = 1,
    **more: Any,
) -> dict:
    """A line of CHANGES."""
    if isinstance(path, str):
        name = {"path": path}
    else:
        name = {"path_base64": base64.b64encode(path).decode()}
    stamps = {"ino": at, "ctime_ns": at, "mtime_ns": at}
    return {**name, "type": kind, "size": size, "mode": mode, **stamps, "below": None, **more}


def tell(d: Daemon, sid: str, *changes: dict, **more: Any) -> None:
    """What the guest says from now on."""
    d.exec(sid, "#fake:set " + json.dumps({"changes": list(changes), **more}))


def pair(d: Daemon) -> tuple[str, str]:
    """Two of one line."""
    sid = d.create()
    return sid, d.http.post(f"/v1/sandboxes/{sid}/fork").json()["children"][0]


def diff(d: Daemon, a: str, b: str, **params: Any) -> httpx.Response:
    """The answer of a diff."""
    return d.http.get(f"/v1/sandboxes/{a}/diff/{b}", params=params)


def test_shapes(daemon: Daemon) -> None:
    a, b = pair(daemon)
    was = {"type": "file", "size": 9, "mode": 0o600}
    same = entry("/tmp/same", at=3)
    tell(
        daemon, a, same, entry("/tmp/only-a"), entry("/tmp/both"), entry("/tmp/touched", at=1),
        entry("/tmp/gone-a", "gone", below=was),
        hashes={"/tmp/touched": HASHES[0], "/tmp/content": HASHES[1]},
    )  # fmt: skip
    tell(
        daemon, b, same, entry(b"/tmp/\xff", size=3), entry("/tmp/both", size=6, mode=0o755, at=2),
        entry("/tmp/touched", at=2),
        entry("/tmp/content", at=2, below={**was, "size": 5, "mode": 0o644}),
        hashes={"/tmp/touched": HASHES[0], "/tmp/content": HASHES[2]},
    )  # fmt: skip
    r = diff(daemon, a, b)
    assert r.status_code == 200, r.text
    assert r.json() == {
        "added": [
            {"path": "/tmp/gone-a", "type": "file", "size": 9, "mode": 0o600},
            {"path_base64": "L3RtcC//", "type": "file", "size": 3, "mode": 0o644},
        ],
        "removed": [{"path": "/tmp/only-a", "type": "file", "size": 5, "mode": 0o644}],
        "modified": [
            {
                "path": "/tmp/both",
                "type": "file",
                "size": 6,
                "mode": 0o755,
                "old_type": "file",
                "old_size": 5,
                "old_mode": 0o644,
            },
            {
                "path": "/tmp/content",
                "type": "file",
                "size": 5,
                "mode": 0o644,
                "old_type": "file",
                "old_size": 5,
                "old_mode": 0o644,
            },
        ],
        "paths": ["/home/user", "/root", "/tmp"],
    }
    # The other way round.
    o = diff(daemon, b, a).json()
    assert [e["path"] for e in o["added"]] == ["/tmp/only-a"] and len(o["removed"]) == 2
    # Only what had to be was hashed, once for each diff.
    assert daemon.info(a)["state"]["hashed"] == 4


def test_paths(daemon: Daemon) -> None:
    a, b = pair(daemon)
    r = diff(daemon, a, b, path=["/a b", "/ü"])
    assert r.json() == {"added": [], "removed": [], "modified": [], "paths": ["/a b", "/ü"]}
    assert daemon.info(a)["paths"] == daemon.info(b)["paths"] == ["/a b", "/ü"]
    for bad in (["rel"], [""], ["/" + "x" * 4095], ["/x"] * 65, ["/ok", "rel"]):
        r = diff(daemon, a, b, path=bad)
        assert r.status_code == 400 and r.json()["field"] == "path", bad
    url = f"/v1/sandboxes/{a}/diff/{b}?path=%00"
    assert daemon.http.get(url).status_code == 400


def test_with_itself_and_strangers(daemon: Daemon) -> None:
    a, b = pair(daemon)
    assert diff(daemon, a, a).json()["added"] == []
    r = diff(daemon, a, daemon.create())
    assert r.status_code == 409 and r.json()["code"] == "other_lineage"
    assert diff(daemon, a, "sbx_" + "0" * 32).status_code == 404
    daemon.exec(b, "#fake:poweroff")
    assert diff(daemon, a, b).status_code == 409


@pytest.mark.parametrize(
    "raw",
    [
        "x\n",
        "{}\n",
        '{"path": "relative", "type": "gone"}\n',
        '{"path": "/a", "type": "gone"}',
        '{"path": "/a", "type": "gone"}\n{"path": "/a", "type": "gone"}\n',
    ],
)
def test_malformed_lines(daemon: Daemon, raw: str) -> None:
    a, b = pair(daemon)
    tell(daemon, b, changes_raw=raw)
    for x, y in ((a, b), (b, a)):
        r = diff(daemon, x, y)
        assert r.status_code == 502
        assert r.json() == {
            "error": "the guest's agent broke the protocol",
            "code": "agent_error",
        }
    tell(daemon, b, changes_raw=None)
    assert diff(daemon, a, b).status_code == 200


@pytest.mark.parametrize("asked,told", [("/tmp/d", "/tmp"), ("/tmp/d", "/tmp/dd"), ("/tmp/d", "/etc/passwd")])
def test_changes_that_nobody_asked_for(daemon: Daemon, asked: str, told: str) -> None:
    a, b = pair(daemon)
    tell(daemon, b, entry(told))
    r = diff(daemon, a, b, path=asked)
    assert r.status_code == 502 and r.json()["code"] == "agent_error"
    # At it, and below, however it is written.
    tell(daemon, b, entry(asked), entry(f"{asked}/x"))
    assert diff(daemon, a, b, path=f"/{asked}//").status_code == 200


@pytest.mark.parametrize(
    "hashes,short",
    [({"/tmp/f": "z" * 64}, False), ({"/tmp/f": "a" * 63}, False), ({"/tmp/f": "a" * 64}, True)],
)
def test_malformed_hashes(daemon: Daemon, hashes: dict, short: bool) -> None:
    a, b = pair(daemon)
    tell(daemon, a, entry("/tmp/f", at=1), hashes={"/tmp/f": HASHES[0]})
    tell(daemon, b, entry("/tmp/f", at=2), hashes=hashes, hashes_short=short)
    assert diff(daemon, a, b).status_code == 502


def test_what_cannot_be_hashed_is_modified(daemon: Daemon) -> None:
    a, b = pair(daemon)
    tell(daemon, a, entry("/tmp/f", at=1))
    tell(daemon, b, entry("/tmp/f", at=2))
    assert [e["path"] for e in diff(daemon, a, b).json()["modified"]] == ["/tmp/f"]


def test_errors_of_the_agent(daemon: Daemon) -> None:
    a, b = pair(daemon)
    tell(daemon, b, changes_error=["too_many", "more than 100000 entries"])
    r = diff(daemon, a, b)
    assert r.status_code == 413 and r.json()["code"] == "diff_too_large"
    tell(daemon, b, changes_error=["not_found", "/x: no such directory"])
    r = diff(daemon, a, b)
    assert r.status_code == 404 and r.json()["field"] == "path"


@pytest.mark.bounds
def test_a_guest_without_end(daemon: Daemon) -> None:
    """It is cut off, and the daemon has not grown by more than a line."""
    a, b = pair(daemon)
    tell(daemon, b, changes_endless=True)
    before = daemon.rss_kib()
    r = diff(daemon, a, b)
    assert r.status_code == 502
    assert daemon.rss_kib() - before < (30_000 if SANITIZED else 3_000)


@pytest.mark.bounds
def test_many_entries(daemon: Daemon) -> None:
    """Hashes in several batches, an answer of some megabytes, and the loop goes on meanwhile."""
    a, b = pair(daemon)
    n = 30_000 if SANITIZED else 60_000
    names = [f"/tmp/{'x' * 100}{i:06}" for i in range(n)]
    for sid, at in ((a, 1), (b, 2)):
        text = json.dumps(
            {
                "changes": [entry(p, at=at) for p in names],
                "hashes": {p: HASHES[0 if at == 1 or i % 2 else 1] for i, p in enumerate(names)},
            }
        )
        # The code of a command is bounded: the state comes through a file.
        (daemon.tmp / f"state{at}").write_text(text)
        daemon.exec(sid, f"#fake:load {daemon.tmp}/state{at}")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(diff, daemon, a, b)
        slowest = 0.0
        while not answer.done():
            begin = time.monotonic()
            httpx.get(f"{daemon.url}/v1/healthz")
            slowest = max(slowest, time.monotonic() - begin)
    o = answer.result().json()
    assert len(o["modified"]) == n // 2 and o["added"] == o["removed"] == []
    assert [e["path"] for e in o["modified"]] == names[::2]
    assert slowest < (3.0 if SANITIZED else 1.0)
    assert daemon.info(a)["state"]["hashed"] == n


def load(d: Daemon, sid: str, name: str, **state: Any) -> None:
    """The same as tell() of more than a command may have."""
    (d.tmp / name).write_text(json.dumps(state))
    d.exec(sid, f"#fake:load {d.tmp}/{name}")


@pytest.mark.parametrize("order", [["/tmp/b", "/tmp/a"], ["/tmp/a/c", "/tmp/a-b"], ["/tmp/a", "/tmp/a"]])
def test_lists_that_are_not_sorted(daemon: Daemon, order: list[str]) -> None:
    """The daemon does not sort for a guest."""
    a, b = pair(daemon)
    tell(daemon, b, changes_raw="".join(json.dumps(entry(p)) + "\n" for p in order))
    r = diff(daemon, a, b)
    assert r.status_code == 502 and r.json()["code"] == "agent_error"


@pytest.mark.bounds
def test_paths_that_differ_late(daemon: Daemon) -> None:
    """14 MB of them on each side, which differ in their last bytes: compared in several turns."""
    a, b = pair(daemon)
    n = 2000 if SANITIZED else 7000
    names = [f"/tmp/{'/'.join(['x' * 199] * 20)}{i:06}" for i in range(n)]
    assert 3900 < len(names[0]) < 4095
    for sid, at in ((a, 0), (b, 1)):
        load(daemon, sid, f"late{at}", changes=[entry(p, at=at) for p in names[at::2]])
    o = diff(daemon, a, b).json()
    assert [e["path"] for e in o["removed"]] == names[::2]
    assert [e["path"] for e in o["added"]] == names[1::2] and o["modified"] == []


@pytest.mark.bounds
def test_answers_that_nobody_reads(daemon: Daemon) -> None:
    """What is sent is made as it goes: 14 MB are not in memory beside the lists."""
    a, b = pair(daemon)
    names = [f"/tmp/{'x' * 150}{i:06}" for i in range(60_000)]
    load(daemon, b, "many", changes=[entry(p) for p in names])
    head = f"GET /v1/sandboxes/{a}/diff/{b} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(60)
        s.connect(("127.0.0.1", daemon.port))
        s.sendall(head)
        r = http.client.HTTPResponse(s)
        r.begin()
        held = daemon.rss_kib()
        o = json.loads(r.read())
    assert [e["path"] for e in o["added"]] == names and o["paths"]
    # The lists alone: 60000 paths, what is told of each, and the comparison.
    if not SANITIZED:
        assert held < 60_000


def unread(d: Daemon, a: str, b: str) -> tuple[socket.socket, int]:
    """A client that asks, reads the head of the answer and no more: its status."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.settimeout(60)
    s.connect(("127.0.0.1", d.port))
    s.sendall(f"GET /v1/sandboxes/{a}/diff/{b} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return s, int(s.recv(12).split()[1])


def test_who_does_not_read_keeps_nobody_from_it(start: Callable[..., Daemon]) -> None:
    """A comparison whose answer is being sent has no slot; what it keeps is its client's account."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "60"})
    a, b = pair(d)
    load(d, b, "many", changes=[entry(f"/tmp/{'x' * 150}{i:06}") for i in range(20_000)])
    socks = []
    try:
        for _ in range(5):
            s, status = unread(d, a, b)
            socks.append(s)
            assert status == 200
        for _ in range(8):
            s, status = unread(d, a, b)
            socks.append(s)
            if status != 200:
                break
        assert status == 503
        assert diff(d, a, a).status_code == 200
    finally:
        for s in socks:
            s.close()
    wait_for(lambda: diff(d, a, b).status_code == 200, 60)


def test_ends_in_between(start: Callable[..., Daemon]) -> None:
    """A guest that dies, more at a time than there may be."""
    d = start()
    a, b = pair(d)
    tell(d, b, changes_mute=True)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(diff, d, a, b) for _ in range(4)]
        time.sleep(1)
        assert diff(d, b, a).status_code == 429
        d.http.delete(f"/v1/sandboxes/{b}")
        for w in waiting:
            assert w.result().status_code == 409
    c = d.http.post(f"/v1/sandboxes/{a}/fork").json()["children"][0]
    assert diff(d, a, c).status_code == 200


def test_a_client_that_leaves(daemon: Daemon) -> None:
    a, b = pair(daemon)
    tell(daemon, b, changes_mute=True)
    for _ in range(6):
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(f"{daemon.url}/v1/sandboxes/{a}/diff/{b}", timeout=0.2)
    wait_for(lambda: daemon.log_text().count("ended=early") == 6)
    tell(daemon, b, changes_mute=False)
    assert diff(daemon, a, b).status_code == 200
