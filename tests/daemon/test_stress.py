"""Many clients work on one sandbox at once, some of which end it: defined answers only, nothing left over."""

import collections
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import httpx

from conftest import TSAN, Daemon, wait_for
from operations import ON_ONE
from spec import check_answer

THREADS, ROUNDS = 8, 40


class Ring:
    """Clients with the id of the sandbox that all of them work on, and of its copies."""

    def __init__(self, d: Daemon) -> None:
        self.d = d
        self.lock = threading.Lock()
        self.main = d.create()
        self.copies: list[str] = []
        self.seen: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []

    def call(self, c: httpx.Client, method: str, tail: str, **more: object) -> httpx.Response:
        """A request on the sandbox of all, and an answer that the API describes."""
        sid = self.main
        path = ON_ONE + tail
        other = "sbx_" + "0" * 32
        if "{other}" in tail:
            with self.lock:
                other = self.copies.pop() if self.copies and method == "post" else (self.copies or [other])[0]
        url = path.replace("{id}", sid).replace("{other}", other)
        r = c.request(method.upper(), url, **more)
        check_answer(method, path, r)
        # It may be ended at any moment; that is no failure of the daemon's.
        assert r.status_code in (200, 204, 404, 409, 429, 503), r.text
        if r.status_code == 503:
            assert r.json()["code"] in ("fork_failed", "sandbox_unreachable"), r.text
        with self.lock:
            self.seen[f"{method} {tail} {r.status_code}"] += 1
            if r.status_code == 404 and r.json()["code"] == "sandbox_not_found" and self.main == sid:
                known = c.get(f"/v1/sandboxes/{sid}").status_code == 200
                if not known:
                    self.main, self.copies = self.d.create(), []
        return r

    def exec(self, c: httpx.Client) -> None:
        """A command, whose last event is its exit."""
        r = self.call(c, "post", "/exec", json={"code": "", "language": "bash", "rich": True})
        if r.status_code == 200:
            last = json.loads(r.text.splitlines()[-1])
            assert last["type"] == "exit"
            assert last["termination_reason"] in ("exited", "closed", "vm_ended", "agent_error"), last

    def fork(self, c: httpx.Client) -> None:
        """A copy, for merges and diffs."""
        r = self.call(c, "post", "/fork", json={"n": 1})
        if r.status_code == 200:
            with self.lock:
                self.copies += r.json()["children"]

    def work(self, seed: int) -> None:
        """One client."""
        rng = random.Random(seed)
        ops = [
            (self.exec, 18),
            (self.fork, 12),
            (lambda c: self.call(c, "post", "/merge_into/{other}"), 15),
            (lambda c: self.call(c, "get", "/diff/{other}"), 4),
            (lambda c: self.call(c, "delete", ""), 1),
            (lambda c: self.call(c, "put", "/egress", json={"allow": ["a.test"]}), 3),
            (lambda c: self.call(c, "post", "/commands", json={"code": "", "language": "bash"}), 3),
            (lambda c: self.call(c, "get", ""), 3),
        ]
        try:
            with httpx.Client(base_url=self.d.url, timeout=60) as c:
                for _ in range(ROUNDS):
                    rng.choices([f for f, _ in ops], [n for _, n in ops])[0](c)
                    c.get("/v1/tree").raise_for_status()
                    assert TSAN or self.d.threads() <= 2  # store_sync.c
        except Exception as e:  # noqa: BLE001 - told by the test's own thread
            self.failures.append(f"client {seed}: {type(e).__name__}: {e}")


def test_many_clients_of_one_sandbox(start: Callable[..., Daemon], tmp_path: Path) -> None:
    d = start(inert=tmp_path)
    d.templates_ready()
    wait_for(lambda: len(d.children()) == 1)  # its rehearsal has gone
    idle, fds = d.children(), d.fds()
    ring = Ring(d)
    threads = [threading.Thread(target=ring.work, args=(i,)) for i in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not ring.failures, ring.failures
    print(f"{sum(ring.seen.values())} requests of {THREADS} clients: {dict(sorted(ring.seen.items()))}")
    # Each of what it is about has happened, and some of it to a sandbox that was gone.
    assert set(ring.seen) >= {"delete  204", "post /fork 200", "post /exec 200", "post /merge_into/{other} 204"}
    assert {x.rsplit(" ", 1)[1] for x in ring.seen} >= {"404"}
    for o in d.http.get("/v1/sandboxes").json()["sandboxes"]:
        d.http.delete(f"/v1/sandboxes/{o['id']}").raise_for_status()
    assert d.http.get("/v1/tree").json() == {"roots": []}
    wait_for(lambda: d.children() == idle)
    wait_for(lambda: d.fds() <= fds + 1)
    assert os.listdir(d.state / "disks") == []
    assert d.http.get(f"/v1/sandboxes/{d.create()}").json()["children"] == []


def test_many_deletes_of_one_sandbox(start: Callable[..., Daemon]) -> None:
    """All are told that it is gone, and when they are, it is."""
    d, n = start(), 16
    sid = d.create()
    pid = d.info(sid)["pid"]
    gate = threading.Barrier(n)
    answers: list[int] = []

    def delete() -> None:
        with httpx.Client(base_url=d.url, timeout=60) as c:
            c.get("/v1/healthz")
            gate.wait()
            answers.append(c.delete(f"/v1/sandboxes/{sid}").status_code)

    threads = [threading.Thread(target=delete) for _ in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert answers == [204] * n and not os.path.exists(f"/proc/{pid}")
    assert d.http.get(f"/v1/sandboxes/{sid}").status_code == 404
