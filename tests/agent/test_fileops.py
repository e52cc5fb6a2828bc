# SPDX-License-Identifier: Apache-2.0
"""FILE: stat, list, mkdir, remove, rename, chmod; and parts of files by GET."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import broken_directories
import pytest
from agent_client import ERROR, FILE, FREEZE, GET, OK, THAW, Stream
from conftest import ROOT, Agent, wait_for

needs_root = pytest.mark.skipif(not ROOT, reason="the agent acts as another user only as root")


@pytest.fixture
def place(agent: Agent, stream: Stream) -> Path:
    """An empty directory of the user's."""
    assert stream.bash("chmod -R u+rwx place 2>/dev/null; rm -rf place; mkdir place").code == 0
    return agent.home / "place"


def ask(stream: Stream, op: str, path: str | Path, **extra: Any) -> dict[str, Any]:
    """A FILE request with one answer."""
    return stream.ask(FILE, {"op": op, "path": str(path), **extra})


def listing(stream: Stream, path: str | Path, **extra: Any) -> list[dict[str, Any]]:
    """The entries of a list."""
    assert "path" in ask(stream, "list", path, **extra)
    return [json.loads(line) for line in stream.download().splitlines()]


def paths(entries: list[dict[str, Any]], below: Path) -> list[str]:
    """Their names, relative to a directory."""
    return [os.path.relpath(e["path"], below) for e in entries]


# --- stat


def test_stat(agent: Agent, stream: Stream, place: Path) -> None:
    stream.put("place/file", b"12345", mode=0o640)
    st = ask(stream, "stat", "place/file")
    assert st == {
        "path": f"{place}/file",
        "type": "file",
        "size": 5,
        "mode": 0o640,
        "mtime_ms": (place / "file").stat().st_mtime_ns // 1_000_000,
        "uid": 1000 if ROOT else os.geteuid(),
        "gid": 1000 if ROOT else os.getegid(),
    }
    st = ask(stream, "stat", place)
    assert (st["type"], st["size"]) == ("dir", 0)
    assert ask(stream, "stat", "place/")["path"] == str(place)
    assert ask(stream, "stat", "/")["type"] == "dir"
    assert ask(stream, "stat", "/dev/null")["type"] == "other"


def test_stat_of_links(stream: Stream, place: Path) -> None:
    """Of the link itself; and what is behind it."""
    stream.bash("cd place; mkdir d; echo x >f; ln -s d to-d; ln -s f to-f; ln -s no to-no; ln -s /dev/null to-o; ln -s loop loop")
    for name, target, kind in (("to-d", "d", "dir"), ("to-f", "f", "file"), ("to-o", "/dev/null", "other")):
        st = ask(stream, "stat", place / name)
        assert (st["type"], st["link"], st["target_type"]) == ("link", target, kind)
        assert st["size"] == len(target)
    for name in ("to-no", "loop"):
        st = ask(stream, "stat", place / name)
        assert st["type"] == "link" and "target_type" not in st
    assert ask(stream, "stat", "place/to-f/x")["code"] == "not_a_directory"
    assert "link" not in ask(stream, "stat", place / "f")


def test_stat_errors(stream: Stream, place: Path) -> None:
    assert ask(stream, "stat", "place/no")["code"] == "not_found"
    stream.bash("echo >place/f")
    assert ask(stream, "stat", "place/f/x")["code"] == "not_a_directory"
    assert ask(stream, "stat", "place/" + "x" * 256)["code"] == "bad_request"


@needs_root
def test_rights(agent: Agent, stream: Stream) -> None:
    """Those of the user, for each operation."""
    closed = agent.dir / "closed"
    closed.mkdir(mode=0o700, exist_ok=True)
    (closed / "f").write_text("secret")
    for op, extra in (
        ("stat", {}),
        ("list", {}),
        ("mkdir", {}),
        ("remove", {}),
        ("remove", {"recursive": True}),
        ("rename", {"to": "/tmp/x"}),
        ("chmod", {"mode": 0o777}),
    ):
        error = ask(stream, op, closed / "f", **extra)
        assert error["code"] == "permission_denied", (op, error)
    assert ask(stream, "list", closed)["code"] == "permission_denied"
    (agent.dir / "theirs").write_text("x")
    assert ask(stream, "chmod", agent.dir / "theirs", mode=0o777)["code"] == "permission_denied"
    assert ask(stream, "remove", agent.dir / "theirs")["code"] == "permission_denied"
    assert ask(stream, "mkdir", agent.dir / "new")["code"] == "permission_denied"
    assert (closed / "f").read_text() == "secret"


# --- list


def test_list(stream: Stream, place: Path) -> None:
    stream.bash("cd place; mkdir -p a/b/c; touch a.txt a/f a/b/g a/b/c/h z 'sp ace' -- -dash; ln -s a link")
    assert paths(listing(stream, "place"), place) == ["-dash", "a", "a.txt", "link", "sp ace", "z"]
    assert paths(listing(stream, place, depth=2), place) == [
        "-dash", "a", "a.txt", "a/b", "a/f", "link", "sp ace", "z",
    ]
    everything = listing(stream, place, depth=16)
    assert paths(everything, place) == [
        "-dash", "a", "a.txt", "a/b", "a/b/c", "a/b/c/h", "a/b/g", "a/f", "link", "sp ace", "z",
    ]
    assert [e["path"] for e in everything] == sorted(e["path"] for e in everything)
    for entry in everything:
        assert entry == ask(stream, "stat", entry["path"])
    assert paths(listing(stream, "place/link"), place) == ["link/b", "link/f"]
    assert listing(stream, "place/a/b/c/") == [ask(stream, "stat", "place/a/b/c/h")]
    stream.bash("mkdir place/empty")
    assert listing(stream, "place/empty", depth=5) == []


def test_list_of_paths_with_dots(stream: Stream, place: Path) -> None:
    """Its paths are those of other answers."""
    stream.bash("cd place; mkdir d; echo x >d/f; ln -s d to-d")
    for path in ("place/./d", "./place/d/.", f"{place}/.//d//", f"/./{place}/d/./."):
        assert [e["path"] for e in listing(stream, path)] == [f"{place}/d/f"], path
    assert [e["path"] for e in listing(stream, place / "to-d/.")] == [f"{place}/to-d/f"]
    assert listing(stream, "/.") == listing(stream, "/")
    assert ask(stream, "list", "place/d/f/.")["code"] == "not_a_directory"


def test_list_of_the_root(stream: Stream) -> None:
    assert "/etc" in [e["path"] for e in listing(stream, "/")]


def test_list_errors(stream: Stream, place: Path) -> None:
    assert ask(stream, "list", "place/no")["code"] == "not_found"
    stream.bash("touch place/f; mkfifo place/fifo")
    assert ask(stream, "list", "place/f")["code"] == "not_a_directory"
    assert ask(stream, "list", "place/fifo")["code"] == "not_a_directory"


@needs_root
def test_list_leaves_out_what_may_not_be_read(stream: Stream, place: Path) -> None:
    stream.bash("cd place; mkdir -p open shut; touch open/x shut/y; chmod 000 shut")
    assert paths(listing(stream, place, depth=3), place) == ["open", "open/x", "shut"]


def test_names_of_any_bytes(stream: Stream, place: Path) -> None:
    name = bytes(range(1, 47)) + bytes(range(48, 256))
    (Path(os.fsdecode(bytes(place) + b"/" + name))).touch()
    (entry,) = listing(stream, place)
    assert base64.b64decode(entry["path_base64"]) == bytes(place) + b"/" + name and "path" not in entry
    stream.bash("cd place; rm -- *; ln -s $'\\xff\\n' l")
    (entry,) = listing(stream, place)
    assert base64.b64decode(entry["link_base64"]) == b"\xff\n" and entry["path"] == f"{place}/l"


def test_list_of_many(agent: Agent, stream: Stream, place: Path) -> None:
    """In order, in bounded memory; one too many is told."""
    stream.python(
        "import os\nfor d in range(100):\n"
        "    os.makedirs(f'place/{d:03}')\n"
        "    for f in range(100): os.close(os.open(f'place/{d:03}/{f:03}', os.O_CREAT))"
    )
    entries = listing(stream, place, depth=2)
    assert len(entries) == 10_100
    assert [e["path"] for e in entries] == sorted(e["path"] for e in entries)
    with agent.stream() as other:  # one that does not read does not hold up others
        other.send(FILE, {"op": "list", "path": str(place), "depth": 2})
        assert stream.bash("echo fine").stdout == b"fine\n"
    stream.python(
        "for f in range(100_001): os.close(os.open(f'place/000/x{f}', os.O_CREAT))", timeout_ms=60_000
    )
    for request in ({"path": "place/000"}, {"path": "place", "depth": 2}):
        assert ask(stream, "list", **request)["code"] == "too_many"  # in the place of OK
    assert "path" in ask(stream, "remove", place, recursive=True)


def test_list_is_dropped_with_its_stream(agent: Agent, stream: Stream, place: Path) -> None:
    stream.bash("cd place; seq 5000 | xargs touch")
    for n in range(5):
        with agent.stream() as s:
            s.send(FILE, {"op": "list", "path": str(place)})
            time.sleep(0.002 * n)
    assert stream.bash("echo fine").stdout == b"fine\n"


# --- mkdir


def test_mkdir(stream: Stream, place: Path) -> None:
    assert ask(stream, "mkdir", "place/a/b/c") == {"path": f"{place}/a/b/c", "created": True}
    assert (place / "a/b/c").stat().st_mode & 0o7777 == 0o755
    assert (place / "a/b/c").stat().st_uid == (1000 if ROOT else os.geteuid())
    assert ask(stream, "mkdir", "place/a/b/c/", mode=0o700)["created"] is False
    assert (place / "a/b/c").stat().st_mode & 0o7777 == 0o755
    assert ask(stream, "mkdir", "place/m", mode=0o1777)["created"] is True
    assert (place / "m").stat().st_mode & 0o7777 == 0o1777
    assert ask(stream, "mkdir", "/") == {"path": "/", "created": False}
    (place / "link").symlink_to("a")
    assert ask(stream, "mkdir", "place/link")["created"] is False


def test_mkdir_errors(stream: Stream, place: Path) -> None:
    stream.bash("touch place/f; ln -s no place/dangling")
    assert ask(stream, "mkdir", "place/f")["code"] == "exists"
    assert ask(stream, "mkdir", "place/dangling")["code"] == "exists"
    assert ask(stream, "mkdir", "place/f/x")["code"] == "not_a_directory"
    assert ask(stream, "mkdir", "place/no/x", parents=False)["code"] == "not_found"
    assert ask(stream, "mkdir", "place/one", parents=False)["created"] is True
    assert ask(stream, "mkdir", "place/one", parents=False)["created"] is False


# --- remove


def test_remove(stream: Stream, place: Path) -> None:
    stream.bash("cd place; echo x >f; ln -s f l; ln -s no d; mkdir e; mkfifo p")
    for name in ("l", "d", "e", "p", "f"):
        assert ask(stream, "remove", f"place/{name}") == {"path": f"{place}/{name}"}
    assert list(place.iterdir()) == []
    assert ask(stream, "remove", "place/f")["code"] == "not_found"
    assert ask(stream, "remove", "place/f", recursive=True)["code"] == "not_found"


def test_remove_of_a_directory(stream: Stream, place: Path) -> None:
    stream.bash("cd place; mkdir -p d/e; touch d/f d/e/g; echo kept >out; ln -s ../out d/link; ln -s / d/root")
    assert ask(stream, "remove", "place/d")["code"] == "not_empty"
    assert (place / "d/e/g").exists()
    assert ask(stream, "remove", "place/d/", recursive=True) == {"path": f"{place}/d"}
    assert not (place / "d").exists() and (place / "out").read_text() == "kept\n"
    (place / "link").symlink_to(".")
    assert "path" in ask(stream, "remove", "place/link", recursive=True)
    assert place.exists()


def test_remove_of_a_large_tree(agent: Agent, stream: Stream, place: Path) -> None:
    """Deeper than any path, and wider than one turn; others are served meanwhile."""
    stream.python(
        "import os\nos.chdir('place')\n"
        "for n in range(1500):\n    os.mkdir('d' * 20); os.close(os.open('f', os.O_CREAT)); os.chdir('d' * 20)\n"
        f"os.chdir({str(place)!r})\nos.mkdir('wide')\n"
        "for n in range(5000): os.close(os.open(f'wide/{n}', os.O_CREAT))\n"
        "for n in range(300): os.makedirs(f'many/{n}/x')\n"
        f"os.chdir({str(agent.home)!r})"
    )
    with agent.stream() as s:
        s.send(FILE, {"op": "remove", "path": str(place), "recursive": True})
        assert stream.bash("echo fine").stdout == b"fine\n"
        assert s.recv_json(OK) == {"path": str(place)}
    assert not place.exists()


@needs_root
def test_remove_that_stops(stream: Stream, place: Path, agent: Agent) -> None:
    """At the first thing that cannot be removed; what is gone stays so."""
    stream.bash("cd place; mkdir -p d/a d/z; touch d/a/x d/z/y; chmod 555 d/z")
    error = ask(stream, "remove", "place/d", recursive=True)
    assert error["code"] == "permission_denied" and (place / "d/z/y").exists()
    stream.bash("chmod 755 place/d/z")
    assert "path" in ask(stream, "remove", "place/d", recursive=True)


@pytest.mark.parametrize("path", ["/", ".", "..", "place/.", "place/..", "/tmp/../."])
def test_remove_of_no_name(stream: Stream, place: Path, path: str) -> None:
    for recursive in (False, True):
        assert ask(stream, "remove", path, recursive=recursive)["code"] == "bad_request"
    assert place.exists()


def test_remove_while_others_write(stream: Stream, place: Path) -> None:
    """It ends: with success or with a sentence."""
    stream.bash("mkdir place/busy; (for i in $(seq 3000); do : >place/busy/$i || exit; done) >/dev/null 2>&1 &")
    wait_for(lambda: any((place / "busy").iterdir()), "the writer")
    answer = ask(stream, "remove", "place/busy", recursive=True)
    assert "path" in answer or answer["code"] == "not_empty"


# --- rename


def test_rename(stream: Stream, place: Path) -> None:
    stream.bash("cd place; echo one >f; echo two >g; mkdir d e; touch e/x")
    assert ask(stream, "rename", "place/f", to="place/h") == {"path": f"{place}/h"}
    assert (place / "h").read_text() == "one\n" and not (place / "f").exists()
    assert ask(stream, "rename", "place/h", to="place/g", overwrite=False)["code"] == "exists"
    assert (place / "g").read_text() == "two\n"
    assert ask(stream, "rename", "place/h", to="place/g") == {"path": f"{place}/g"}
    assert (place / "g").read_text() == "one\n"
    assert ask(stream, "rename", "place/e", to="place/n", overwrite=False) == {"path": f"{place}/n"}
    assert ask(stream, "rename", "place/d", to="place/n")["code"] == "not_empty"
    assert ask(stream, "rename", "place/n/", to=f"{place}/d/")["path"].startswith(f"{place}/d")
    assert (place / "d/x").exists()


def test_rename_errors(stream: Stream, place: Path) -> None:
    stream.bash("cd place; mkdir d; touch f")
    assert ask(stream, "rename", "place/no", to="place/x")["code"] == "not_found"
    assert ask(stream, "rename", "place/f", to="place/no/x")["code"] == "not_found"
    assert ask(stream, "rename", "place/f", to="place/d")["code"] == "is_directory"
    assert ask(stream, "rename", "place/d", to="place/f")["code"] == "not_a_directory"
    assert ask(stream, "rename", "place/d", to="place/d/x")["code"] == "bad_request"
    assert ask(stream, "rename", "place/f", to="/dev/shm/across")["code"] in ("io_error", "bad_request")


# --- chmod


def test_chmod(stream: Stream, place: Path) -> None:
    stream.bash("cd place; touch f; ln -s f l; ln -s no d")
    assert ask(stream, "chmod", "place/f", mode=0o751) == {"path": f"{place}/f", "mode": 0o751}
    assert (place / "f").stat().st_mode & 0o7777 == 0o751
    ask(stream, "chmod", "place/l", mode=0o600)
    assert (place / "f").stat().st_mode & 0o7777 == 0o600
    assert ask(stream, "chmod", "place/d", mode=0o600)["code"] == "not_found"


BAD = [
    {},
    {"op": "stat"},
    {"path": "x"},
    {"op": "touch", "path": "x"},
    {"op": 1, "path": "x"},
    {"op": "stat", "path": ""},
    {"op": "stat", "path": "x" * 4096},
    {"op": "stat", "path": "a\0b"},
    {"op": "list", "path": "/", "depth": 0},
    {"op": "list", "path": "/", "depth": 17},
    {"op": "list", "path": "/", "depth": "1"},
    {"op": "mkdir", "path": "x", "mode": 4096},
    {"op": "mkdir", "path": "x", "parents": 1},
    {"op": "remove", "path": "x", "recursive": "yes"},
    {"op": "rename", "path": "x"},
    {"op": "rename", "path": "x", "to": ""},
    {"op": "rename", "path": "x", "to": "y", "overwrite": None},
    {"op": "chmod", "path": "x"},
    {"op": "chmod", "path": "x", "mode": -1},
    {"op": "chmod", "path": "x", "mode": "644"},
]


@pytest.mark.parametrize("request_", BAD)
def test_bad_requests(stream: Stream, request_: dict[str, Any]) -> None:
    error = stream.ask(FILE, request_)
    assert error["code"] == "bad_request" and error["message"]
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_relative_paths_are_too_long_together(agent: Agent, stream: Stream) -> None:
    path = "x/" * 2045
    assert ask(stream, "stat", path)["code"] == "bad_request"
    assert ask(stream, "rename", "x", to=path)["code"] == "bad_request"


def test_frozen(agent: Agent, stream: Stream) -> None:
    assert "groups" in stream.ask(FREEZE)
    assert ask(stream, "stat", "/")["code"] == "busy"
    assert stream.ask(THAW) == {}


# --- parts of files


def part(stream: Stream, path: str, **extra: Any) -> tuple[dict[str, Any], bytes]:
    """A GET with a range."""
    stream.send(GET, {"path": path, **extra})
    head = stream.recv_json(OK)
    return head, stream.download()


@pytest.mark.parametrize(
    "offset, length", [(0, 0), (0, 1), (5, 10), (99_990, 100), (100_000, 5), (10**12, 5), (2**63 - 1, 5), (2**63 - 1, None), (7, None), (None, 70_000), (0, 2**63 - 1)]
)
def test_part(stream: Stream, place: Path, offset: int | None, length: int | None) -> None:
    data = os.urandom(100_000)
    stream.put("place/f", data)
    extra = {k: v for k, v in (("offset", offset), ("length", length)) if v is not None}
    head, got = part(stream, "place/f", **extra)
    begin = offset or 0
    want = data[begin:] if length is None else data[begin : begin + length]
    assert got == want
    assert (head["size"], head["offset"], head["length"]) == (100_000, begin, len(want))


def test_part_that_becomes_shorter(agent: Agent, stream: Stream, place: Path) -> None:
    stream.put("place/f", bytes(20_000_000))
    with agent.stream() as s:
        s.send(GET, {"path": str(place / "f"), "offset": 10, "length": 19_000_000})
        assert s.recv_json(OK)["length"] == 19_000_000
        os.truncate(place / "f", 5_000_000)
        kinds = [s.recv()[0]]
        while kinds[-1] == 0x87:
            kinds.append(s.recv()[0])
        assert kinds[-1] == ERROR


def test_part_of_a_virtual_file(stream: Stream) -> None:
    whole = stream.get("/proc/version")[1]
    assert whole is not None
    head, got = part(stream, "/proc/version", offset=6, length=7)
    assert got == whole[6:13] and (head["size"], head["length"]) == (-1, -1)
    head, got = part(stream, "/proc/version", offset=100_000)
    assert got == b""


def test_without_a_range(stream: Stream) -> None:
    head, data = stream.get("/etc/hostname")
    assert data is not None and set(head) == {"path", "size", "mode"}


@pytest.mark.parametrize("extra", [{"offset": -1}, {"length": -1}, {"offset": 1.0}, {"length": "5"}, {"offset": None}])
def test_bad_ranges(stream: Stream, extra: dict[str, Any]) -> None:
    stream.send(GET, {"path": "/etc/hostname", **extra})
    assert stream.recv_json(ERROR)["code"] == "bad_request"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_directory_that_cannot_be_read_to_its_end(
    depth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_directories.load(tmp_path, monkeypatch)
    agent = Agent()
    try:
        place = broken_directories.make(agent.home)
        if ROOT:
            shutil.chown(place, 1000, 1000)
        with agent.stream() as s:
            top = place if depth == 1 else agent.home
            error = ask(s, "list", top, depth=depth)
            assert error["code"] == "io_error" and "Input/output error" in error["message"]
            assert s.ask(FILE, {"op": "remove", "path": str(place), "recursive": True})["code"] == "io_error"
            assert "path" in ask(s, "list", agent.home)
    finally:
        agent.stop()
