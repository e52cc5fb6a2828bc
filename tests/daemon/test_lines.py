"""Long lines of forks: what the tree and a merge cost, whatever ended sandboxes had."""

import json
import sqlite3
from collections.abc import Callable

import pytest

from conftest import SANITIZED, Daemon
from test_fork import fork

# Ancestors that have ended, and what each of them had.
LINE = 3000
META = json.dumps({f"key{i:02}": "x" * 500 for i in range(64)})


def ended(i: int) -> str:
    """The id of one of them."""
    return f"sbx_{i:032x}"


def put_line(d: Daemon, sid: str, n: int, metadata: str) -> None:
    """Gives an ended sandbox so many ancestors, which have ended as well."""
    db = sqlite3.connect(d.state / "podflare.db", timeout=30)
    row = (
        "INSERT INTO sandboxes(id, owner, template, parent, generation, memory_mib, vcpus, disk_mib,"
        " created_ms, ended_ms, metadata) VALUES(?, '', 'default', ?, ?, 1024, 2, 4096, ?, ?, ?)"
    )
    with db:
        for i in range(1, n + 1):
            parent = ended(i - 1) if i > 1 else None
            # They have ended in far future: nothing of them is forgotten.
            db.execute(row, (ended(i), parent, i, i, 1 << 52, metadata))
        db.execute("UPDATE sandboxes SET parent=? WHERE id=?", (ended(n), sid))
    db.close()


def line(d: Daemon, n: int, metadata: str = "{}") -> tuple[str, str]:
    """Two that live, children of one that does not and has that many ancestors."""
    sid = d.create()
    a, b = fork(d, sid, n=2)["children"]
    assert d.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    put_line(d, sid, n, metadata)
    return a, b


def parents(d: Daemon) -> dict:
    """Of those that live, by id."""
    return {o["id"]: o["parent"] for o in d.http.get("/v1/sandboxes").json()["sandboxes"]}


@pytest.mark.bounds
def test_what_ancestors_had_is_not_read(start: Callable[..., Daemon]) -> None:
    """100 MB of metadata in a line of the database: reading it would take seconds."""
    d = start(env={"PODFLARE_KEEP_MIB": "1000"})
    a, b = line(d, LINE, META)
    before = d.cpu_ticks()
    d.http.get("/v1/tree").raise_for_status()
    assert d.http.post(f"/v1/sandboxes/{a}/merge_into/{b}").status_code == 204
    assert d.cpu_ticks() - before < (400 if SANITIZED else 50)


def test_merge_in_a_line_that_is_too_long(daemon: Daemon) -> None:
    """Whether the winner is an ancestor is not known: the place is below nothing, never below itself."""
    a, b = line(daemon, LINE)
    assert daemon.http.post(f"/v1/sandboxes/{a}/merge_into/{b}").status_code == 204
    assert parents(daemon) == {a: None}
    (child,) = fork(daemon, a)["children"]
    assert parents(daemon) == {a: None, child: a}


def test_merge_in_a_long_line(daemon: Daemon) -> None:
    a, b = line(daemon, 1000)
    above = parents(daemon)[a]
    assert above and daemon.http.post(f"/v1/sandboxes/{a}/merge_into/{b}").status_code == 204
    assert parents(daemon) == {a: above}
