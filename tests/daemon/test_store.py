"""The state database: other versions of it, and a disk that is full."""

import os
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Daemon, wait_for

SIZE_MIB = 6


def test_a_database_of_another_version_is_moved_aside(start: Callable[..., Daemon]) -> None:
    d = start()
    sid = d.create()
    d.stop()
    db = sqlite3.connect(d.state / "podflare.db")
    db.execute("PRAGMA user_version=1")
    db.commit()
    db.close()
    d.start()
    assert "the state database is of another version (1, not 5): moved to" in d.log_text()
    assert d.http.get(f"/v1/sandboxes/{sid}").status_code == 404
    old = [p for p in d.state.glob("podflare.db.v1-*") if not p.name.endswith(("-wal", "-shm"))]
    assert len(old) == 1
    rows = sqlite3.connect(old[0]).execute("SELECT id FROM sandboxes").fetchall()
    assert rows == [(sid,)]
    d.create()


def small_disk(where: str) -> list[str]:
    """A command prefix that gives the daemon a state directory of a few MiB."""
    script = f'mount -t tmpfs -o size={SIZE_MIB}m state "{where}" && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh"]


def may_mount() -> bool:
    """Whether this user may have a small disk."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "x", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs the right to mount a tmpfs")
def test_the_disk_is_full(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Sandboxes come and go, and what became of them is written, for a while."""
    state = tmp_path / "state"
    state.mkdir()
    disks = tmp_path / "disks"
    disks.mkdir()
    d = start(
        args=["--state", str(state), "--disk-dir", str(disks)], prefix=small_disk(str(state))
    )
    inside = Path(f"/proc/{d.proc.pid}/root{state}")
    assert (inside / "reserve").stat().st_blocks * 512 >= 2 << 20
    before = d.create()
    fill = os.open(inside / "fill", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        while True:
            os.write(fill, bytes(4096))
    meta = {"k": "v" * 20_000}
    for _ in range(40):
        sid = d.create(metadata=meta)
        d.exec(sid, "#fake:poweroff")
        o = d.http.get(f"/v1/sandboxes/{sid}").json()
        assert (o["state"], o["ended_reason"]) == ("ended", "the guest powered off")
    assert d.http.delete(f"/v1/sandboxes/{before}").status_code == 204
    log = d.log_text()
    assert "its reserve is being used" in log
    assert "cannot write the state database" not in log
    assert (inside / "reserve").stat().st_size < 2 << 20
    # Filled again when there is room.
    os.ftruncate(fill, 0)
    os.close(fill)
    wait_for(lambda: (inside / "reserve").stat().st_blocks * 512 >= 2 << 20, 20)


def rows(d: Daemon, what: str) -> list[tuple]:
    """What a query of the database gives, while the daemon runs."""
    db = sqlite3.connect(d.state / "podflare.db", timeout=30)
    try:
        return db.execute(what).fetchall()
    finally:
        db.close()


def test_one_allowlist_is_kept_once(daemon: Daemon) -> None:
    """As long as somebody has it who is not deleted; the answer of one that ended has it."""
    hosts = [{"host": f"h{i}.example.com", "paths": ["/" + "a" * 500]} for i in range(200)]
    sid = daemon.create(egress={"allow": hosts})
    kids = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 8}).json()["children"]
    other = daemon.create(egress={"allow": ["one.example.com"]})
    texts = rows(daemon, "SELECT length(allow) FROM grants ORDER BY 1")
    assert len(texts) == 2 and texts[0][0] < 1000 and texts[1][0] > 100_000
    assert rows(daemon, "SELECT count(*) FROM sandboxes WHERE grant_id IS NOT NULL") == [(10,)]
    # One that ends by itself keeps what it had, until it is deleted.
    allow = daemon.http.get(f"/v1/sandboxes/{kids[0]}").json()["egress"]["allow"]
    daemon.exec(kids[0], "#fake:poweroff")
    o = daemon.http.get(f"/v1/sandboxes/{kids[0]}").json()
    assert o["state"] == "ended" and o["egress"]["allow"] == allow and len(allow) == 200
    r = daemon.http.put(f"/v1/sandboxes/{other}/egress", json={"allow": []})
    assert r.status_code == 200, r.text
    assert len(rows(daemon, "SELECT id FROM grants")) == 1
    assert daemon.http.post(f"/v1/sandboxes/{sid}/merge_into/{kids[1]}").status_code == 204
    for one in (sid, *kids[2:]):
        assert daemon.http.delete(f"/v1/sandboxes/{one}").status_code == 204
    assert len(rows(daemon, "SELECT id FROM grants")) == 1
    assert daemon.http.delete(f"/v1/sandboxes/{kids[0]}").status_code == 204
    assert rows(daemon, "SELECT id FROM grants") == []


def test_an_allowlist_that_nobody_got(daemon: Daemon) -> None:
    """The row that was to have it cannot be written: neither is the list."""
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON sandboxes BEGIN SELECT RAISE(ABORT, 'no'); END"
    rows(daemon, refuse)
    r = daemon.http.post("/v1/sandboxes", json={"egress": {"allow": ["a.example.com"]}})
    assert r.status_code >= 500
    assert rows(daemon, "SELECT id FROM grants") == []
    rows(daemon, "DROP TRIGGER refuse")
    daemon.create(egress={"allow": ["a.example.com"]})
    assert len(rows(daemon, "SELECT id FROM grants")) == 1


def test_what_is_deleted_keeps_no_metadata(daemon: Daemon) -> None:
    meta = {"k": "v" * 1000}
    by_wish, ended = daemon.create(metadata=meta), daemon.create(metadata=meta)
    daemon.exec(ended, "#fake:poweroff")
    assert daemon.http.get(f"/v1/sandboxes/{ended}").json()["metadata"] == meta
    for one in (by_wish, ended):
        assert daemon.http.delete(f"/v1/sandboxes/{one}").status_code == 204
    assert rows(daemon, "SELECT DISTINCT metadata FROM sandboxes") == [("{}",)]


def put_ended(d: Daemon, n: int, ended_ms: int, metadata: str) -> None:
    """So many more that have ended, each 1 ms after the one before."""
    db = sqlite3.connect(d.state / "podflare.db", timeout=30)
    with db:
        db.executemany(
            "INSERT INTO sandboxes(id, template, owner, generation, memory_mib, vcpus, disk_mib,"
            " metadata, created_ms, ended_ms, reason) VALUES(?, 'x', '', 0, 1, 1, 1, ?, 1, ?, 'x')",
            [(f"sbx_{ended_ms + i:032x}", metadata, ended_ms + i) for i in range(n)],
        )
    db.close()


def test_what_is_too_old_is_forgotten_while_it_runs(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_KEEP_DAYS": "30"})
    now = int(time.time() * 1000)
    put_ended(d, 100, now - 31 * 86_400_000, "{}")
    put_ended(d, 10, now - 29 * 86_400_000, "{}")
    sid = d.create()
    wait_for(lambda: rows(d, "SELECT count(*) FROM sandboxes") == [(11,)], 60)
    assert d.http.get(f"/v1/sandboxes/{sid}").json()["state"] == "ready"
    young = f"sbx_{now - 29 * 86_400_000:032x}"
    assert d.http.get(f"/v1/sandboxes/{young}").json()["state"] == "ended"


def test_what_is_too_much_is_forgotten(start: Callable[..., Daemon]) -> None:
    """Those that ended first; what lives is kept, whatever it has."""
    d = start(env={"PODFLARE_KEEP_MIB": "2"})
    now = int(time.time() * 1000)
    put_ended(d, 200, now - 1000, "x" * 30_000)
    sid = d.create(metadata={"k": "v" * 20_000})
    wait_for(lambda: rows(d, "SELECT count(*) FROM sandboxes")[0][0] < 70, 60)
    wait_for(lambda: d.exec(sid, "echo still here"))
    left = [t for (t,) in rows(d, "SELECT ended_ms FROM sandboxes ORDER BY 1") if t]
    # What fits is still there, and it is the last of them.
    assert len(left) > 30 and left == list(range(now - 800 - len(left), now - 800))
    assert d.http.get(f"/v1/sandboxes/{sid}").json()["metadata"] == {"k": "v" * 20_000}
    # The file does not grow with what comes and goes.
    for _ in range(3):
        put_ended(d, 100, int(time.time() * 1000), "x" * 30_000)
        d.create()
        wait_for(lambda: rows(d, "SELECT count(*) FROM sandboxes")[0][0] < 70, 60)
    (pages,), (size,) = rows(d, "PRAGMA page_count")[0], rows(d, "PRAGMA page_size")[0]
    assert pages * size < 12 << 20
