"""The state database: other versions of it, and a disk that is full."""

import os
import sqlite3
import subprocess
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
    assert "the state database is of another version (1, not 4): moved to" in d.log_text()
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
