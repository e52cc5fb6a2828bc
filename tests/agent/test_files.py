# SPDX-License-Identifier: Apache-2.0
"""PUT and GET: rights, atomicity, errors, sizes."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Iterator

import pytest
from agent_client import DATA, DATA_OUT, END, END_OUT, ERROR, GET, OK, PUT, Stream
from conftest import ROOT, Agent, wait_for

root_only = pytest.mark.skipif(not ROOT, reason="needs root")


@pytest.fixture
def small(agent: Agent) -> Iterator[Path]:
    """A file system of one megabyte."""
    path = agent.home / "small"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,uid=1000,gid=1000", "none", str(path)]
    if not ROOT or subprocess.run(mount, capture_output=True).returncode:
        path.rmdir()
        pytest.skip("cannot mount a small file system")
    yield path
    # The agent closes what it has refused just after it has said so.
    wait_for(lambda: subprocess.run(["umount", str(path)]).returncode == 0, "the file system to be idle")
    path.rmdir()


def names(path: Path) -> list[str]:
    """Everything in a directory."""
    return sorted(os.listdir(path))


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 5_000_000])
def test_round_trip(agent: Agent, stream: Stream, size: int) -> None:
    data = os.urandom(size)
    path = agent.home / f"file{size}"
    assert stream.put(str(path), data) == {"path": str(path), "size": size}
    st = path.stat()
    assert st.st_uid == (1000 if ROOT else os.geteuid())
    assert stat.S_IMODE(st.st_mode) == 0o644
    head, got = stream.get(str(path))
    assert got == data
    assert head == {"path": str(path), "size": size, "mode": 0o644}


def test_large_file_in_bounded_memory(own_agent: Agent) -> None:
    chunk = os.urandom(65536)
    count = 1600
    with own_agent.stream() as s:
        s.bash("true")
        before = own_agent.rss_kib()
        peak = 0
        s.send(PUT, {"path": "large"})
        for n in range(count):
            s.send(DATA, chunk)
            if n % 100 == 0:
                peak = max(peak, own_agent.rss_kib())
        s.send(END)
        assert s.recv_json(OK)["size"] == count * 65536
        s.send(GET, {"path": "large"})
        s.recv_json(OK)
        digest, n = hashlib.sha256(), 0
        while True:
            kind, payload = s.recv()
            if kind == END_OUT:
                break
            assert kind == DATA_OUT
            digest.update(payload)
            n += 1
            if n % 100 == 0:
                peak = max(peak, own_agent.rss_kib())
        want = hashlib.sha256()
        for _ in range(count):
            want.update(chunk)
        assert digest.digest() == want.digest()
        assert peak - before < 4096


def test_download_nobody_reads(own_agent: Agent) -> None:
    with own_agent.stream() as s, own_agent.stream() as other:
        other.bash("head -c 100000000 /dev/zero > zeros")
        s.send(GET, {"path": "zeros"})
        time.sleep(0.5)
        assert own_agent.rss_kib() < 30_000
        assert other.bash("echo beside").stdout == b"beside\n"
        s.recv_json(OK)
        total = 0
        while True:
            kind, payload = s.recv()
            if kind == END_OUT:
                break
            total += len(payload)
        assert total == 100_000_000


def test_mode(agent: Agent, stream: Stream) -> None:
    stream.put("script", b"#!/bin/sh\necho run\n", mode=0o755)
    assert stream.bash("./script").stdout == b"run\n"
    stream.put("script", b"#!/bin/sh\necho again\n")
    assert stream.bash("./script").stdout == b"again\n", "the mode of a file that exists stays"
    stream.put("script", b"", mode=0o600)
    assert stream.get("script")[0]["mode"] == 0o600


def test_missing_parents_are_made(agent: Agent, stream: Stream) -> None:
    r = stream.put("p1/p2//p3/./f", b"x")
    assert r["size"] == 1
    for d in ("p1", "p1/p2", "p1/p2/p3"):
        st = (agent.home / d).stat()
        assert stat.S_IMODE(st.st_mode) == 0o755
        assert st.st_uid == (1000 if ROOT else os.geteuid())
    assert stream.get("p1/p2/p3/f")[1] == b"x"


def test_through_a_symbolic_link(agent: Agent, stream: Stream) -> None:
    stream.bash(
        "mkdir -p t; echo old >t/target; ln -s t/target link; ln -s nowhere/new dangling;"
        ' ln -s loop loop; ln -s t dirlink; ln -s "$PWD/t/target" abslink'
    )
    assert stream.put("link", b"new")["path"] == str(agent.home / "t/target")
    assert (agent.home / "link").is_symlink() and (agent.home / "t/target").read_bytes() == b"new"
    assert stream.put("abslink", b"newer")["size"] == 5
    assert stream.get("link")[1] == b"newer"
    assert stream.put("dangling", b"made")["size"] == 4
    assert (agent.home / "nowhere/new").read_bytes() == b"made"
    assert stream.put("loop", b"x")["code"] == "bad_request"
    assert stream.get("loop")[0]["code"] == "bad_request"
    assert stream.put("dirlink", b"x")["code"] == "is_directory"


def test_readers_see_old_or_new(agent: Agent, stream: Stream) -> None:
    stream.put("atomic", b"old")
    stream.send(PUT, {"path": "atomic"})
    stream.send(DATA, b"half")
    with agent.stream() as other:
        assert other.get("atomic")[1] == b"old"
    stream.send(END)
    stream.recv_json(OK)
    assert stream.get("atomic")[1] == b"half"


@pytest.mark.parametrize(
    "path, code",
    [
        ("/tmp", "is_directory"),
        ("/tmp/", "is_directory"),
        (".", "is_directory"),
        ("..", "is_directory"),
        ("/", "is_directory"),
        ("new/", "is_directory"),
        ("/dev/null", "not_a_file"),
        ("/etc/passwd/x", "not_a_directory"),
        ("n" * 256, "bad_request"),
        ("/" + "n/" * 2100, "bad_request"),
        ("", "bad_request"),
        ("/proc/nothing", "not_found"),
    ],
)
def test_put_refused(agent: Agent, stream: Stream, path: str, code: str) -> None:
    before = names(agent.home)
    r = stream.put(path, b"data" * 50_000)
    assert r["code"] == code, r
    assert names(agent.home) == before
    assert stream.bash("echo fine").stdout == b"fine\n"


@root_only
@pytest.mark.parametrize("path", ["/etc/podflare-test", "/etc/passwd", "/sys/x", "/root/x/y"])
def test_put_without_the_right(stream: Stream, path: str) -> None:
    assert stream.put(path, b"x")["code"] == "permission_denied"


@root_only
def test_no_half_made_parents_without_the_right(agent: Agent, stream: Stream) -> None:
    inner = agent.home / "mine" / "theirs"
    inner.mkdir(parents=True)
    os.chown(agent.home / "mine", 1000, 1000)
    assert stream.put("mine/theirs/a/b", b"x")["code"] == "permission_denied"
    assert names(inner) == []


@pytest.mark.parametrize(
    "path, code",
    [
        ("missing", "not_found"),
        ("/nowhere/such/file", "not_found"),
        ("/etc/passwd/x", "not_a_directory"),
        ("/tmp", "is_directory"),
        (".", "is_directory"),
        ("/dev/null", "not_a_file"),
        ("/dev/zero", "not_a_file"),
        ("fifo", "not_a_file"),
        ("socket", "not_a_file"),
        ("fifolink", "not_a_file"),
        ("n" * 256, "bad_request"),
        ("", "bad_request"),
    ],
)
def test_get_refused(agent: Agent, stream: Stream, path: str, code: str) -> None:
    if not (agent.home / "fifo").exists():
        stream.bash("mkfifo fifo; ln -s fifo fifolink")
        socket.socket(socket.AF_UNIX).bind(str(agent.home / "socket"))
    start = time.monotonic()
    r, data = stream.get(path)
    assert data is None and r["code"] == code, r
    assert time.monotonic() - start < 2


@root_only
def test_get_without_the_right(agent: Agent, stream: Stream) -> None:
    (agent.home / "secret").write_text("x")
    (agent.home / "secret").chmod(0o600)
    for path in ("/etc/shadow", str(agent.home / "secret"), "/root/.bashrc"):
        assert stream.get(path)[0]["code"] == "permission_denied"


def test_virtual_files(stream: Stream) -> None:
    head, data = stream.get("/proc/meminfo")
    assert head["size"] == -1 and data is not None and b"MemTotal" in data
    head, data = stream.get("/sys/kernel/mm/transparent_hugepage/enabled")
    if data is not None:
        assert head["size"] == -1 and b"never" in data


def test_file_that_shrinks_while_it_is_read(agent: Agent, stream: Stream) -> None:
    stream.bash("head -c 20000000 /dev/zero > shrinks")
    stream.send(GET, {"path": "shrinks"})
    assert stream.recv_json(OK)["size"] == 20_000_000
    time.sleep(0.2)
    os.truncate(agent.home / "shrinks", 1_000_000)
    kind = DATA_OUT
    while kind == DATA_OUT:
        kind, payload = stream.recv()
    assert kind == ERROR and b"became shorter" in payload


def test_file_that_grows_while_it_is_read(agent: Agent, stream: Stream) -> None:
    stream.bash("head -c 10000000 /dev/zero > grows")
    stream.send(GET, {"path": "grows"})
    assert stream.recv_json(OK)["size"] == 10_000_000
    with open(agent.home / "grows", "ab") as f:
        f.write(b"more")
    total = 0
    while True:
        kind, payload = stream.recv()
        if kind == END_OUT:
            break
        total += len(payload)
    assert total == 10_000_000


def test_closing_the_stream_leaves_nothing(agent: Agent, stream: Stream) -> None:
    before = names(agent.home)
    other = agent.stream()
    other.send(PUT, {"path": "c1/c2/half"})
    other.send(DATA, b"x" * 1000)
    wait_for(lambda: list(agent.home.glob("c1/c2/.pod*")), "the upload to begin")
    assert names(agent.home / "c1/c2")[0].startswith(".podflare-put-")
    other.close()
    wait_for(lambda: names(agent.home) == before, "the traces to go")


def test_full_disk(agent: Agent, stream: Stream, small: Path) -> None:
    stream.put("small/keep", b"k" * 1000)
    r = stream.put("small/sub/too-large", b"x" * 3_000_000)
    assert r["code"] == "no_space" and "No space left" in r["message"]
    assert names(small) == ["keep"]
    r = stream.put("small/keep", b"y" * 3_000_000)
    assert r["code"] == "no_space"
    assert stream.get("small/keep")[1] == b"k" * 1000, "the old content stays"
    assert stream.put("small/fits", b"z" * 1000)["size"] == 1000


def test_refused_upload_discards_its_body(stream: Stream) -> None:
    stream.send(PUT, {"path": "/tmp"})
    assert stream.recv_json(ERROR)["code"] == "is_directory"
    for _ in range(20):
        stream.send(DATA, b"x" * 65536)
    stream.send(END)
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_target_becomes_a_directory(agent: Agent, stream: Stream) -> None:
    stream.send(PUT, {"path": "turns"})
    stream.send(DATA, b"x")
    wait_for(lambda: any(n.startswith(".podflare-put-") for n in names(agent.home)), "the start")
    (agent.home / "turns").mkdir()
    stream.send(END)
    assert stream.recv_json(ERROR)["code"] == "is_directory"
    assert names(agent.home / "turns") == []
    (agent.home / "turns").rmdir()


def test_names_that_are_not_utf8(agent: Agent, stream: Stream) -> None:
    os.symlink(b"\xff\xfe", os.fsencode(agent.home / "odd"))
    r = stream.put("odd", b"x")
    assert r["path"] == f"{agent.home}/??"
    assert os.path.exists(os.fsencode(agent.home) + b"/\xff\xfe")
    os.unlink(agent.home / "odd")
    assert stream.put("ünï/çødé", b"y")["path"] == f"{agent.home}/ünï/çødé"


def test_many_at_once(agent: Agent) -> None:
    streams = [agent.stream() for _ in range(10)]
    data = [os.urandom(500_000) for _ in streams]
    for n, s in enumerate(streams):
        s.send(PUT, {"path": f"m/{n}"})
    for at in range(0, 500_000, 50_000):
        for n, s in enumerate(streams):
            s.send(DATA, data[n][at : at + 50_000])
    for s in streams:
        s.send(END)
    for n, s in enumerate(streams):
        s.recv_json(OK)
        assert s.get(f"m/{n}")[1] == data[n]
        s.close()


# --- uploads that may be resumed ---


def parts(path: Path) -> list[str]:
    """Parts of uploads in a directory."""
    return [name for name in names(path) if name.startswith(".podflare-part-")]


def test_an_upload_is_resumed(agent: Agent, stream: Stream) -> None:
    data = os.urandom(300_000)
    kw = {"upload": "a1", "size": len(data)}
    path = str(agent.home / "r1" / "file")
    assert stream.put(path, b"", **kw) == {"path": path, "size": 0, "complete": False}
    assert not (agent.home / "r1").exists(), "who only asks leaves nothing"
    other = agent.stream()
    other.send(PUT, {"path": path, **kw, "offset": 0})
    other.send(DATA, data[:1000])
    wait_for(lambda: (agent.home / "r1").exists() and parts(agent.home / "r1"), "the part")
    # One at a time.
    refused = stream.put(path, b"x", **kw, offset=1000)
    assert refused["code"] == "upload_busy"
    assert stream.put(path, b"", **kw)["code"] == "upload_busy"
    other.close()
    wait_for(lambda: stream.put(path, b"", **kw).get("size") == 1000, "the close to be noticed")
    assert parts(agent.home / "r1") == [f".podflare-part-a1-{len(data)}"]
    # On from there, in pieces.
    half = stream.put(path, data[1000:200_000], **kw, offset=1000)
    assert half == {"path": path, "size": 200_000, "complete": False}
    assert not (agent.home / "r1" / "file").exists()
    whole = stream.put(path, data[200_000:], **kw, offset=200_000, mode=0o600)
    assert whole == {"path": path, "size": len(data), "complete": True}
    assert stream.get(path)[1] == data and names(agent.home / "r1") == ["file"]
    st = (agent.home / "r1" / "file").stat()
    assert stat.S_IMODE(st.st_mode) == 0o600 and st.st_uid == (1000 if ROOT else os.geteuid())


def test_offsets_that_are_wrong(agent: Agent, stream: Stream) -> None:
    kw = {"upload": "b", "size": 10}
    r = stream.put("r2", b"x", **kw, offset=5)
    assert r["code"] == "wrong_offset" and r["message"] == "this upload has 0 bytes of 10 so far"
    assert stream.put("r2", b"abc", **kw, offset=0)["size"] == 3
    for offset in (2, 4, 10, 11, 2**62):
        r = stream.put("r2", b"x", **kw, offset=offset)
        assert r["code"] == "wrong_offset" and "has 3 bytes of 10" in r["message"]
    # Another size is another upload.
    assert stream.put("r2", b"", upload="b", size=11)["size"] == 0
    assert stream.put("r2", b"x", upload="b", size=11, offset=3)["code"] == "wrong_offset"
    assert stream.put("r2", b"", **kw)["size"] == 3
    # More than was promised: all of it is forgotten.
    r = stream.put("r2", b"x" * 8, **kw, offset=3)
    assert r["code"] == "bad_request" and r["message"] == "the upload is longer than was said"
    assert stream.put("r2", b"", **kw)["size"] == 0 and not parts(agent.home)
    r = stream.put("r2", b"x", **kw)
    assert r["code"] == "bad_request", "without an offset nothing is taken"
    # Offset 0 begins anew.
    stream.put("r2", b"old", **kw, offset=0)
    assert stream.put("r2", b"0123456789", **kw, offset=0)["complete"] is True
    assert stream.get("r2")[1] == b"0123456789" and not parts(agent.home)


def test_two_uploads_of_one_file(agent: Agent, stream: Stream) -> None:
    with agent.stream() as other:
        stream.put("r3", b"aa", upload="one", size=4, offset=0)
        other.put("r3", b"bbb", upload="two", size=6, offset=0)
        assert stream.put("r3", b"AA", upload="one", size=4, offset=2)["complete"] is True
        assert stream.get("r3")[1] == b"aaAA"
        assert other.put("r3", b"BBB", upload="two", size=6, offset=3)["complete"] is True
        assert stream.get("r3")[1] == b"bbbBBB"
    # All has come, but not the answer: who asks gets it.
    with agent.stream() as gone:
        gone.send(PUT, {"path": "r3", "upload": "three", "size": 2, "offset": 0})
        gone.send(DATA, b"zz")
        wait_for(lambda: parts(agent.home), "the part")
    wait_for(lambda: stream.put("r3", b"", upload="three", size=2).get("complete"), "the end")
    assert stream.get("r3")[1] == b"zz" and not parts(agent.home)


def test_parts_that_are_left(agent: Agent, stream: Stream) -> None:
    stream.put("r4/x", b"a", upload="old", size=4, offset=0)
    stream.put("r4/x", b"a", upload="new", size=4, offset=0)
    folder = agent.home / "r4"
    for name in (".podflare-part-old-4", ".podflare-part-dir-1", ".podflare-partial", "mine"):
        if name == ".podflare-part-dir-1":
            (folder / name).mkdir()
        elif name != ".podflare-part-old-4":
            (folder / name).write_text("x")
        os.utime(folder / name, (1, 1))
    os.symlink("mine", folder / ".podflare-part-link-1")
    with agent.stream() as other:  # old as well, but somebody writes it
        other.send(PUT, {"path": "r4/y", "upload": "held", "size": 9, "offset": 0})
        other.send(DATA, b"x")
        wait_for(lambda: ".podflare-part-held-9" in names(folder), "the part")
        wait_for(lambda: (folder / ".podflare-part-held-9").stat().st_size == 1, "its byte")
        os.utime(folder / ".podflare-part-held-9", (1, 1))
        assert stream.put("r4/z", b"z", upload="z", size=1, offset=0)["complete"] is True
        assert names(folder) == [
            *(".podflare-part-dir-1", ".podflare-part-held-9", ".podflare-part-link-1"),
            *(".podflare-part-new-4", ".podflare-partial", "mine", "z"),
        ]


@pytest.mark.parametrize("what", ["link", "dir", "fifo", "hard"])
def test_what_is_no_part_but_has_its_name(agent: Agent, stream: Stream, what: str) -> None:
    folder = agent.home / f"r5{what}"
    folder.mkdir()
    if ROOT:
        os.chown(folder, 1000, 1000)
    (folder / "mine").write_text("keep")
    name = folder / ".podflare-part-p-8"
    if what == "link":
        os.symlink("mine", name)
    elif what == "dir":
        name.mkdir()
    elif what == "fifo":
        os.mkfifo(name)
    else:
        os.link(folder / "mine", name)
    before = names(folder)
    r = stream.put(str(folder / "f"), b"x", upload="p", size=8, offset=0)
    assert r["code"] in ("exists", "permission_denied"), r
    assert names(folder) == before and (folder / "mine").read_text() == "keep"


def test_resumable_on_a_full_disk(agent: Agent, stream: Stream, small: Path) -> None:
    r = stream.put("small/large", b"x" * 3_000_000, upload="f", size=4_000_000, offset=0)
    assert r["code"] == "no_space" and names(small) == []
    assert stream.put("small/large", b"", upload="f", size=4_000_000)["size"] == 0


@pytest.mark.parametrize(
    "members",
    [
        {"upload": "", "size": 1},
        {"upload": "A", "size": 1},
        {"upload": "../x", "size": 1},
        {"upload": "a" * 33, "size": 1},
        {"upload": 5, "size": 1},
        {"upload": "a"},
        {"upload": "a", "size": 0},
        {"upload": "a", "size": -1},
        {"upload": "a", "size": "1"},
        {"upload": "a", "size": 1, "offset": -1},
    ],
)
def test_uploads_that_make_no_sense(agent: Agent, stream: Stream, members: dict) -> None:
    assert stream.put("r6", b"x", **members)["code"] == "bad_request"
    assert not (agent.home / "r6").exists()
