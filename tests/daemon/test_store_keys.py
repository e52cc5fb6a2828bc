"""The state database of several keys: none pushes out what is remembered of another one's sandboxes."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from conftest import Daemon, wait_for


def long_list(name: str) -> dict[str, Any]:
    """A grant of some 900 KiB, unlike that of any other name."""
    paths = ["/" + "x" * 1000 + str(j) for j in range(60)]
    return {"allow": [{"host": f"{name}{i}.test", "paths": paths} for i in range(15)]}


class Keys:
    """Clients of two keys, and a sandbox of each that has ended."""

    def __init__(self, d: Daemon) -> None:
        self.d = d
        self.of = {k: {"Authorization": f"Bearer {k}"} for k in ("a", "b")}
        d.http.headers.update(self.of["a"])
        self.ended = {k: self.create(k) for k in self.of}
        for k, sid in self.ended.items():
            self.power_off(k, sid)

        with self.database() as db:
            self.owner = {
                k: db.execute("SELECT owner FROM sandboxes WHERE id=?", [sid]).fetchone()[0]
                for k, sid in self.ended.items()
            }

    def database(self) -> "closing[sqlite3.Connection]":
        """As it is."""
        return closing(sqlite3.connect(self.d.state / "podflare.db", timeout=10))

    def put_ended(self, key: str, n: int, ended_ms: int) -> None:
        """So many with 30 KB each, which count from the next start on."""
        owner, data = self.owner[key], "x" * 30_000
        with self.database() as db:
            db.executemany(
                "INSERT INTO sandboxes(id, template, owner, generation, memory_mib, vcpus, disk_mib,"
                " metadata, created_ms, ended_ms, reason) VALUES(?, 'x', ?, 0, 1, 1, 1, ?, 1, ?, 'x')",
                [(f"sbx_{ended_ms + i:032x}", owner, data, ended_ms + i) for i in range(n)],
            )
            db.commit()

    def count(self, key: str) -> int:
        """Its rows."""
        with self.database() as db:
            rows = db.execute("SELECT count(*) FROM sandboxes WHERE owner=?", [self.owner[key]])
            return rows.fetchone()[0]

    def create(self, key: str, **body: Any) -> str:
        """A sandbox's id."""
        r = self.d.http.post("/v1/sandboxes", json=body, headers=self.of[key])
        assert r.status_code == 200, r.text
        return r.json()["id"]

    def power_off(self, key: str, sid: str) -> None:
        """Its end."""
        path = f"/v1/sandboxes/{sid}"
        self.d.http.post(f"{path}/exec", json={"code": "#fake:poweroff"}, headers=self.of[key])
        wait_for(lambda: self.state(key, sid) == "ended")

    def state(self, key: str, sid: str) -> str:
        """Or the code of the error."""
        o = self.d.http.get(f"/v1/sandboxes/{sid}", headers=self.of[key]).json()
        return o.get("state") or o["code"]


def test_what_lives_takes_no_memory_from_what_has_ended(start: Callable[..., Daemon]) -> None:
    """However much it is; when it has ended it is what is too much, and its owner's."""
    d = start(env={"PODFLARE_KEEP_MIB": "1", "PODFLARE_API_KEYS": "a,b"})
    keys = Keys(d)
    living = [keys.create("a", egress=long_list(n)) for n in "uvw"]
    time.sleep(2.5)
    assert [keys.state(k, sid) for k, sid in keys.ended.items()] == ["ended", "ended"]
    d.http.put(f"/v1/sandboxes/{living[0]}/egress", json=long_list("x")).raise_for_status()
    for sid in living:
        keys.power_off("a", sid)
    wait_for(lambda: keys.state("a", living[1]) == "sandbox_not_found", 20)
    assert keys.state("a", keys.ended["a"]) == "sandbox_not_found", "it was the first to end"
    assert keys.state("b", keys.ended["b"]) == "ended"


def test_it_is_forgotten_of_whom_there_is_most(start: Callable[..., Daemon]) -> None:
    """A key that makes much pushes out its own past; also what was there before a restart counts."""
    d = start(env={"PODFLARE_KEEP_MIB": "2", "PODFLARE_API_KEYS": "a,b"})
    keys = Keys(d)
    now = int(time.time() * 1000)
    keys.put_ended("b", 20, now - 90_000)
    keys.put_ended("a", 100, now - 80_000)
    assert d.stop() == 0
    d.start()
    d.http.headers.update(keys.of["a"])
    wait_for(lambda: keys.count("a") < 60, 30)
    assert keys.count("b") == 21
    for i in range(4):
        sid = keys.create("a", metadata={"k": "v" * 30_000})
        keys.power_off("a", sid)
    time.sleep(1.5)
    assert keys.count("b") == 21 and keys.count("a") > 20 and keys.state("a", sid) == "ended"
