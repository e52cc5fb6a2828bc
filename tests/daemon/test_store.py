"""The state database: other versions of it, and a disk that is full, damaged or slow."""

import json
import os
import random
import signal
import sqlite3
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import Daemon, wait_for
from egress import ask, grant, log, metrics, order
from syncs import Syncs

SIZE_MIB = 12
RESERVE = 4 << 20
DENIED = 'podflare_egress_decisions_total{verdict="deny",reason="not_allowed"}'


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


def may_mount() -> bool:
    """Whether this user may have a small disk."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "x", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


class SmallDisk:
    """A state directory that is a file system of its own, in a mount namespace of its own."""

    def __init__(self, tmp: Path) -> None:
        state, disks = tmp / "state", tmp / "disks"
        state.mkdir()
        disks.mkdir()
        script = f'mount -t tmpfs -o size={SIZE_MIB}m,mode=700 state "{state}" && echo there && exec cat'
        self.holder = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.holder.stdout.readline() == b"there\n"
        self.prefix = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt"]
        self.args = ["--state", str(state), "--disk-dir", str(disks)]
        self.state = Path(f"/proc/{self.holder.pid}/root{state}")
        self.reserve = self.state / "reserve"

    def fill(self) -> None:
        """Not a byte is left."""
        fd = os.open(self.state / "fill", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        with pytest.raises(OSError, match="No space left"):
            while True:
                os.write(fd, bytes(4096))
        os.close(fd)

    def empty(self) -> None:
        """There is room again."""
        os.truncate(self.state / "fill", 0)

    def reserved(self) -> int:
        """Bytes that are kept for the daemon."""
        return self.reserve.stat().st_blocks * 512

    def end(self) -> None:
        """It is gone when the last daemon is."""
        self.holder.communicate(timeout=10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of a few MiB that stays while daemons come and go."""
    if not may_mount():
        pytest.skip("needs the right to mount a tmpfs")
    disk = SmallDisk(tmp_path)
    yield disk
    disk.end()


def test_the_disk_is_full(start: Callable[..., Daemon], small_disk: SmallDisk) -> None:
    """Sandboxes come and go, and what became of them is written, for a while; also from a start on."""
    d = start(args=small_disk.args, prefix=small_disk.prefix)
    assert small_disk.reserved() >= RESERVE
    before = d.create()
    small_disk.fill()
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
    assert small_disk.reserve.stat().st_size < RESERVE
    # One that starts has no room for the log of the database, but for what the reserve has.
    small_disk.empty()
    d.stop()
    assert not (small_disk.state / "podflare.db-wal").exists()
    small_disk.fill()
    d.start()
    assert d.http.get(f"/v1/sandboxes/{sid}").json()["ended_reason"] == "the guest powered off"
    d.create(metadata=meta)
    # Filled again when there is room.
    small_disk.empty()
    wait_for(lambda: small_disk.reserved() >= RESERVE, 20)


def test_a_reserve_without_blocks(start: Callable[..., Daemon], small_disk: SmallDisk) -> None:
    """Of one that was restored from a backup only its length may be there."""
    d = start(args=small_disk.args, prefix=small_disk.prefix)
    d.stop()
    os.truncate(small_disk.reserve, 0)
    os.truncate(small_disk.reserve, RESERVE)
    assert small_disk.reserved() == 0
    d.start()
    assert small_disk.reserved() >= RESERVE


def records(disk: SmallDisk) -> tuple[int, int]:
    """Of egress.jsonl: decisions that its lines stand for, and those that are lost."""
    there = lost = 0
    for line in (disk.state / "egress.jsonl").read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # one that was cut off: it is counted among the lost ones
        if record["type"] == "lost":
            lost += record["n"]
            assert record["sandbox"] is None and record["time"] <= record["until"]
        else:
            there += record.get("suppressed", 1)
    return there, lost


def test_records_on_a_full_disk(start: Callable[..., Daemon], small_disk: SmallDisk) -> None:
    """There is some room for them, and those that find none are counted; rows find theirs still."""
    d = start(args=small_disk.args, prefix=small_disk.prefix)
    sids = [d.create(egress=grant("allowed.test")) for _ in range(6)]
    small_disk.fill()
    order(d, sids[0], flood=1500)
    wait_for(lambda: log(d, sids[0], "?limit=1")[0]["id"] == 1500)
    assert records(small_disk) == (1500, 0)
    for sid in sids[1:]:
        order(d, sid, flood=2500)
    wait_for(lambda: metrics(d)[DENIED] == 14_000)
    assert metrics(d)["podflare_egress_lost_total"] > 0
    assert small_disk.reserved() >= RESERVE // 2
    for sid in sids:
        assert d.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    sid = d.create(egress=grant("allowed.test"), metadata={"k": "v" * 20_000})
    lost = metrics(d)["podflare_egress_lost_total"]
    assert "cannot write the state database" not in d.log_text()
    small_disk.empty()
    ask(d, sid, "denied.test")
    wait_for(lambda: sum(records(small_disk)) == 14_001)
    assert records(small_disk)[1] == lost == metrics(d)["podflare_egress_lost_total"] > 0


def test_the_last_records_on_a_full_disk(start: Callable[..., Daemon], small_disk: SmallDisk) -> None:
    """Nothing comes after them: how many were lost is said when the daemon ends."""
    d = start(args=small_disk.args, prefix=small_disk.prefix)
    sids = [d.create(egress=grant("allowed.test")) for _ in range(5)]
    small_disk.fill()
    for sid in sids:
        order(d, sid, flood=2000)
    wait_for(lambda: metrics(d)[DENIED] == 10_000)
    lost = metrics(d)["podflare_egress_lost_total"]
    assert lost > 0 and records(small_disk)[1] == 0
    small_disk.empty()
    d.stop()
    assert records(small_disk) == (10_000 - lost, lost)


def page(path: Path, n: int) -> tuple[int, int]:
    """Where a page of a database is, and how long it is."""
    with open(path, "rb") as f:
        size = struct.unpack(">H", f.read(18)[16:])[0]
    return (n - 1) * size, size


def zero_a_page(path: Path, n: int) -> None:
    """What a bad disk gives back for it."""
    at, size = page(path, n)
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(bytes(size))


def change_a_table(path: Path) -> None:
    """Tables of somebody else, in a file that says it is of our version."""
    db = sqlite3.connect(path)
    db.executescript("DROP TABLE sandboxes; CREATE TABLE sandboxes(a, b);")
    db.close()


def no_version(path: Path) -> None:
    """The number of its version is none that we ever had."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=-1")
    db.commit()
    db.close()


def aside(state: Path) -> list[Path]:
    """Databases that were moved aside as damaged."""
    return [
        p
        for p in state.glob("podflare.db.damaged-*")
        if not p.name.endswith(("-wal", "-shm"))
    ]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": lambda p: p.write_bytes(random.Random(1).randbytes(50_000)),
    "nothing in its first page": lambda p: zero_a_page(p, 1),
    "a table is gone": lambda p: zero_a_page(p, 2),
    "cut off": lambda p: os.truncate(p, p.stat().st_size // 2),
    "no version": no_version,
    "other tables": change_a_table,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_database_is_moved_aside(start: Callable[..., Daemon], how: str) -> None:
    """It is no reason not to start: what is in it are memories."""
    d = start()
    sid = d.create(metadata={"k": "v" * 20_000})
    d.stop()
    path = d.state / "podflare.db"
    DAMAGES[how](path)
    damaged = path.read_bytes()
    d.start()
    assert d.log_text().count("the state database is damaged (") == 1, d.log_text()
    assert d.http.get(f"/v1/sandboxes/{sid}").status_code == 404
    assert [p.read_bytes() for p in aside(d.state)] == [damaged]
    sid = d.create()
    # The new one is a good one.
    d.stop()
    d.start()
    assert d.http.get(f"/v1/sandboxes/{sid}").json()["state"] == "ended"
    assert len(aside(d.state)) == 1


def test_a_database_that_is_damaged_while_it_runs(start: Callable[..., Daemon]) -> None:
    """What needs it fails, with words; a restart moves it aside."""
    d = start()
    sid = d.create()
    path = d.state / "podflare.db"
    db = sqlite3.connect(path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    zero_a_page(path, 2)
    db.execute("CREATE TABLE other(a)")  # so that the daemon reads the file anew
    db.commit()
    db.close()
    for _ in range(2):
        r = d.http.post("/v1/sandboxes", json={})
        assert (r.status_code, r.json()["code"]) == (503, "create_failed"), r.text
        assert "the state database cannot be written" in r.json()["error"]
    assert d.exec(sid, "echo still here")[0]["data"] == "still here"
    assert d.log_text().count("the state database is damaged: the next start moves it aside") == 1
    d.stop(signal.SIGKILL)
    d.start()
    assert len(aside(d.state)) == 1
    d.create()


def test_the_loop_waits_for_no_disk(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """What is slow at a disk is done elsewhere; a daemon that is killed has forgotten nothing."""
    syncs = Syncs(tmp_path / "syncs", delay_ms=300)
    d = start(env=syncs.env)
    syncs.begin()
    meta = {"k": "v" * 32_000}
    sids = []
    for _ in range(100):
        sids.append(d.create(metadata=meta))
        if len(sids) > 10:
            assert d.http.delete(f"/v1/sandboxes/{sids.pop(0)}").status_code == 204
    wait_for(lambda: syncs.others > 1)
    assert syncs.loop == 0
    # What was written is in the database, and its log starts anew.
    wait_for(lambda: (d.state / "podflare.db").stat().st_size > 100_000)
    assert (d.state / "podflare.db-wal").stat().st_size < 16 << 20
    # Somebody else writes: that is not waited for.
    slept = syncs.slept_us
    db = sqlite3.connect(d.state / "podflare.db", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    r = d.http.post("/v1/sandboxes", json={})
    assert (r.status_code, r.json()["code"]) == (503, "create_failed"), r.text
    db.execute("ROLLBACK")
    db.close()
    assert 0 < syncs.slept_us - slept <= 500_000
    last = d.create()
    d.stop(signal.SIGKILL)
    d.start()
    for sid in (*sids, last):
        o = d.http.get(f"/v1/sandboxes/{sid}").json()
        assert (o["state"], o["ended_reason"]) == ("ended", "podflared was restarted")


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
