# SPDX-License-Identifier: Apache-2.0
"""CHANGES and HASHES on a real overlay: compared with what a walk over image and overlay finds."""

from __future__ import annotations

import base64
import ctypes
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator

import broken_directories
import pytest
from agent_client import (
    CHANGES,
    DATA,
    DATA_OUT,
    ERROR,
    FREEZE,
    HASHES,
    OK,
    PING,
    PONG,
    THAW,
    Stream,
)
from conftest import ROOT, Agent, wait_for


IN_ACCESS, IN_OPEN = 0x1, 0x20


class Overlay:
    """Image, upper layer and mount point, on a tmpfs."""

    def __init__(self, base: Path) -> None:
        self.base = base
        subprocess.run(["mount", "-t", "tmpfs", "podflare-test", str(base)], check=True)
        self.image, self.upper = base / "image", base / "upper"
        self.work, self.root = base / "work", base / "root"
        for path in (self.image, self.upper, self.work, self.root):
            path.mkdir()
        self.mounted = False

    def mount(self) -> None:
        options = f"lowerdir={self.image},upperdir={self.upper},workdir={self.work},redirect_dir=on"
        command = ["mount", "-t", "overlay", "podflare-test", "-o", options, str(self.root)]
        subprocess.run(command, check=True)
        self.mounted = True

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.root)], check=True)
        subprocess.run(["umount", "-l", str(self.base)], check=True)


def can_mount() -> bool:
    return ROOT and "overlay" in Path("/proc/filesystems").read_text()


pytestmark = pytest.mark.skipif(not can_mount(), reason="needs root and overlayfs")


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    """An image with some files, not mounted yet."""
    one = Overlay(tmp_path)
    tree(one.image)
    yield one
    one.close()


def tree(top: Path) -> None:
    """What the image has."""
    for name in ("home/user/docs/deep", "home/user/src", "home/other", "root", "tmp", "usr/bin"):
        (top / name).mkdir(parents=True)
    for name in ("home/user/a", "home/user/docs/1", "home/user/docs/2", "home/user/docs/deep/3"):
        (top / name).write_text(f"image {name}")
    for name in ("home/user/src/x.py", "home/user/src/y.py", "home/other/z", "usr/bin/tool"):
        (top / name).write_text(f"image {name}")
    (top / "home/user/link").symlink_to("a")


@pytest.fixture
def served(overlay: Overlay) -> Iterator[tuple[Overlay, Agent]]:
    """The overlay mounted, and an agent that knows it."""
    overlay.mount()
    agent = Agent(layers=(overlay.image, overlay.upper, overlay.root))
    yield overlay, agent
    agent.stop()


def changes(stream: Stream, *paths: str) -> list[dict[str, Any]]:
    """The lines of CHANGES."""
    stream.send(CHANGES, {"paths": list(paths)})
    assert stream.recv_json(OK) == {}
    return [json.loads(line) for line in stream.download().splitlines()]


def name_of(entry: dict[str, Any], key: str = "path") -> bytes:
    if key in entry:
        return str(entry[key]).encode()
    return base64.b64decode(entry[key + "_base64"], validate=True)


def hashes(stream: Stream, *paths: bytes) -> list[str]:
    stream.send(HASHES, {})
    stream.body(b"".join(path + b"\0" for path in paths))
    assert stream.recv_json(OK) == {}
    return stream.download().decode().splitlines()


def described(path: Path) -> tuple[str, int, int] | None:
    """What a path is: type, size, mode; None when there is nothing."""
    try:
        st = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
    size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
    return kind.get(stat.S_IFMT(st.st_mode), "other"), size, st.st_mode & 0o7777


def difference(overlay: Overlay) -> dict[bytes, tuple[Any, Any]]:
    """{path: (there now, in the image)} of everything that is not the same, gone trees at their top."""
    found = {}
    now, image = os.fsencode(overlay.root), os.fsencode(overlay.image)

    def walk(path: bytes) -> None:
        names = set()
        for top in (now, image):
            if os.path.isdir(top + path) and not os.path.islink(top + path):
                names |= set(os.listdir(top + path))
        for name in names:
            child = path + b"/" + name
            here, there = (described(Path(os.fsdecode(t + child))) for t in (now, image))
            differs = here != there
            if here and there and here[0] == "file" and not differs:
                with open(now + child, "rb") as a, open(image + child, "rb") as b:
                    differs = a.read() != b.read()
            if here and there and here[0] == "link" and not differs:
                differs = os.readlink(now + child) != os.readlink(image + child)
            if differs:
                found[child] = (here, there)
            if here and here[0] == "dir":
                walk(child)

    walk(b"")
    return found


def check(overlay: Overlay, lines: list[dict[str, Any]]) -> None:
    """The lines are in order and tell every difference, and nothing false."""
    paths = [name_of(line) for line in lines]
    assert paths == sorted(set(paths))
    told = {}
    for line in lines:
        path = name_of(line)
        place = Path(os.fsdecode(os.fsencode(overlay.root) + path))
        below = line["below"] and (line["below"]["type"], line["below"]["size"], line["below"]["mode"])
        if line["type"] == "gone":
            here = None
        else:
            here = (line["type"].replace("opaque_", ""), line["size"], line["mode"])
            st = os.lstat(place)
            assert line["mtime_ns"] == st.st_mtime_ns and line["ctime_ns"] == st.st_ctime_ns
        assert here == described(place), line
        assert below == described(Path(os.fsdecode(os.fsencode(overlay.image) + path))), line
        if line["type"] == "link":
            assert name_of(line, "link") == os.fsencode(os.readlink(place))
        told[path] = (here, below)
    for path, pair in difference(overlay).items():
        assert told.get(path) == pair, (path, pair, told.get(path))


def test_nothing_changed(served: tuple[Overlay, Agent]) -> None:
    overlay, agent = served
    with agent.stream() as s:
        assert changes(s, "/") == []
        assert changes(s, "/home/user", "/nothing/there") == []


def test_costs_what_has_changed(overlay: Overlay) -> None:
    """Of an image with many directories only those above a change are looked into."""
    for i in range(300):
        (overlay.image / f"many/d{i}/below").mkdir(parents=True)
        (overlay.image / f"many/d{i}/file").write_text("image")
    overlay.mount()
    (overlay.root / "many/d7/below/new").write_text("1")
    (overlay.root / "home/user/a").write_text("changed")
    # Mounted over: what is done through it opens the same directories.
    subprocess.run(["umount", str(overlay.root)], check=True)
    libc, directories = ctypes.CDLL(None, use_errno=True), {}
    queue = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    for top, _, _ in list(os.walk(overlay.image)):
        wd = libc.inotify_add_watch(queue, top.encode(), IN_OPEN | IN_ACCESS)
        assert wd > 0
        directories[wd] = os.path.relpath(top, overlay.image)
    overlay.mount()
    agent = Agent(layers=(overlay.image, overlay.upper, overlay.root))
    try:
        with agent.stream() as s:
            found = {name_of(entry) for entry in changes(s, "/")}
        assert {b"/many/d7/below/new", b"/home/user/a"} <= found
        assert not any(b"/d8" in name for name in found)
    finally:
        agent.stop()
    seen, at = set(), 0
    try:
        events = os.read(queue, 1 << 20)
    except BlockingIOError:
        events = b""
    while at < len(events):
        wd, _, _, size = struct.unpack_from("iIII", events, at)
        seen.add(directories[wd])
        at += 16 + size
    os.close(queue)
    assert {"many/d7", "home/user"} <= seen, "nothing was watched"
    assert seen <= {".", "many", "many/d7", "many/d7/below", "home", "home/user"}


def test_each_kind(served: tuple[Overlay, Agent]) -> None:
    overlay, agent = served
    home = overlay.root / "home/user"
    (home / "new").write_text("new")
    (home / "a").write_text("other")
    (home / "docs/1").unlink()
    (home / "link").unlink()
    (home / "link").symlink_to("elsewhere")
    os.mkfifo(home / "fifo")
    (home / "docs/deep/3").chmod(0o4711)
    (home / "newdir/sub").mkdir(parents=True)
    with agent.stream() as s:
        lines = changes(s, "/home/user")
        check(overlay, lines)
        by = {line["path"]: line for line in lines}
        assert by["/home/user/new"]["below"] is None and by["/home/user/new"]["type"] == "file"
        assert by["/home/user/a"]["below"]["size"] == len("image home/user/a")
        assert by["/home/user/docs/1"]["type"] == "gone"
        assert by["/home/user/docs/1"]["below"]["type"] == "file"
        assert by["/home/user/link"]["link"] == "elsewhere"
        assert by["/home/user/fifo"]["type"] == "other"
        assert by["/home/user/docs/deep/3"]["mode"] == 0o4711
        assert by["/home/user"]["type"] == "dir"  # the path itself
        assert "/home/user/src" not in by and "/home" not in by
        assert [x["path"] for x in changes(s, "/home/user/new", "/home/user/a/")] == [
            "/home/user/a",
            "/home/user/new",
        ]


def test_directory_that_was_made_anew(served: tuple[Overlay, Agent]) -> None:
    """Opaque: what the image had in it is told as gone."""
    overlay, agent = served
    shutil.rmtree(overlay.root / "home/user/docs")
    (overlay.root / "home/user/docs/deep").mkdir(parents=True)
    (overlay.root / "home/user/docs/2").write_text("again")
    with agent.stream() as s:
        lines = changes(s, "/home/user")
        check(overlay, lines)
        by = {line["path"]: line["type"] for line in lines}
        assert by["/home/user/docs"] == "opaque_dir" and by["/home/user/docs/1"] == "gone"
        assert by["/home/user/docs/2"] == "file" and by["/home/user/docs/deep/3"] == "gone"
        assert changes(s, "/home/user/docs/deep/3")[0]["type"] == "gone"


def test_path_below_what_is_gone(served: tuple[Overlay, Agent]) -> None:
    overlay, agent = served
    shutil.rmtree(overlay.root / "home/user")
    with agent.stream() as s:
        assert [(x["path"], x["type"]) for x in changes(s, "/home/user")] == [("/home/user", "gone")]
        lines = changes(s, "/home/user/docs/deep", "/home/user/src/x.py", "/home/user/none")
        assert [(x["path"], x["type"], x["below"]["type"]) for x in lines] == [
            ("/home/user/docs/deep", "gone", "dir"),
            ("/home/user/src/x.py", "gone", "file"),
        ]
        (overlay.root / "home/user").write_text("a file now")
        lines = changes(s, "/home/user", "/home/other")
        assert [(x["path"], x["type"]) for x in lines] == [("/home/user", "file")]
        assert changes(s, "/home/user/docs")[0]["type"] == "gone"


def test_directory_that_was_renamed(served: tuple[Overlay, Agent]) -> None:
    """What the image has in it appears under the new name."""
    overlay, agent = served
    (overlay.root / "home/user/docs").rename(overlay.root / "home/user/papers")
    (overlay.root / "home/user/papers/deep").rename(overlay.root / "root/deep")
    (overlay.root / "home/user/papers/2").unlink()
    with agent.stream() as s:
        lines = changes(s, "/")
        check(overlay, lines)
        by = {line["path"]: line["type"] for line in lines}
        assert by["/home/user/papers/1"] == "file" and by["/root/deep/3"] == "file"
        assert by["/home/user/docs"] == "gone" and "/home/user/papers/2" not in by
    (overlay.root / "home/user/src").rename(overlay.root / "home/user/docs")
    with agent.stream() as s:
        lines = changes(s, "/")
        check(overlay, lines)
        assert {x["path"]: x["type"] for x in lines}["/home/user/docs"] == "opaque_dir"


def test_order_is_that_of_bytes(served: tuple[Overlay, Agent]) -> None:
    overlay, agent = served
    for name in ("a/x", "a-b/x", "a.b/x", "a/-", "a0/x", "A/x", "é/x"):
        path = overlay.root / "root" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    with agent.stream() as s:
        lines = changes(s, "/root/é", "/root/a", "/root/a-b", "/root/a/x", "/root/a0/x", "//root//A/")
        check_order = [x["path"] for x in lines]
        assert check_order == sorted(check_order, key=str.encode)
        assert set(check_order) == {
            "/root/A", "/root/A/x", "/root/a", "/root/a-b", "/root/a/-", "/root/a-b/x",
            "/root/a/x", "/root/a0/x", "/root/é", "/root/é/x",
        }  # fmt: skip
        check(overlay, changes(s, "/"))


def test_hostile_names(served: tuple[Overlay, Agent]) -> None:
    overlay, agent = served
    top = os.fsencode(overlay.root) + b"/tmp/"
    names = [b"new\nline", b"\xff\xfe", b'"quote\\', b"\x01\x7f", b" ", b"-", b"...", b"x" * 255]
    names += ["\u2028".encode(), b"\xed\xa0\x80", b"\xff" * 255, b"%s%n"]
    for name in names:
        with open(top + name, "wb") as file:
            file.write(name)
    os.symlink(b"\xff" * 4000, top + b"link")
    os.symlink(b"\x01" * 4000, top + b"control")
    with agent.stream() as s:
        lines = changes(s, "/tmp")
        check(overlay, lines)
        found = {name_of(line)[5:] for line in lines}
        assert found == {*names, b"link", b"control"} or found - {b""} == {*names, b"link", b"control"}
        got = hashes(s, *[b"/tmp/" + name for name in names])
        assert got == [hashlib.sha256(name).hexdigest() for name in names]


def test_random_changes(served: tuple[Overlay, Agent]) -> None:
    """What programs do to trees, at random; the answer is always what a walk finds."""
    overlay, agent = served
    rng = random.Random(3)
    top = overlay.root

    def pick(dirs: bool | None = None) -> Path | None:
        found = [p for p in top.rglob("*") if dirs is None or (p.is_dir() and not p.is_symlink()) == dirs]
        return rng.choice(found) if found else None

    for turn in range(250):
        what, to = pick(), (pick(True) or top) / rng.choice(["a", "b", "docs", "src", "x-1", "x"])
        try:
            match rng.randrange(7):
                case 0:
                    to.mkdir()
                case 1:
                    to.write_text(str(turn))
                case 2 if what:
                    what.rename(to)
                case 3 if what:
                    shutil.rmtree(what) if what.is_dir() and not what.is_symlink() else what.unlink()
                case 4 if what:
                    what.chmod(rng.choice([0o700, 0o755, 0o644]))
                case 5:
                    to.symlink_to(f"{turn}")
                case 6 if what and not what.is_symlink():
                    os.link(what, to)
        except OSError:
            pass
        if turn % 10 == 9:
            with agent.stream() as s:
                check(overlay, changes(s, "/"))


def test_while_frozen(served: tuple[Overlay, Agent]) -> None:
    overlay, agent = served
    (overlay.root / "tmp/x").write_text("x")
    with agent.stream() as s:
        assert "groups" in s.ask(FREEZE)
        assert [x["path"] for x in changes(s, "/tmp/x")] == ["/tmp/x"]
        assert hashes(s, b"/tmp/x") == [hashlib.sha256(b"x").hexdigest()]
        assert s.ask(THAW) == {}


@pytest.mark.parametrize(
    "paths",
    [None, "x", [], [1], [None], [""], ["x"], ["./x"], ["/x/../y"], ["/./x"], ["/" + "x" * 4096],
     ["/x"] * 257],
)  # fmt: skip
def test_bad_requests(served: tuple[Overlay, Agent], paths: Any) -> None:
    overlay, agent = served
    with agent.stream() as s:
        if paths == [""]:
            assert changes(s, "") == changes(s, "/")  # the root under another name
            return
        assert s.ask(CHANGES, {"paths": paths} if paths is not None else {})["code"] == "bad_request"
        assert changes(s, "/") == []


def test_deep_tree(served: tuple[Overlay, Agent]) -> None:
    overlay, agent = served
    here = os.open(overlay.root / "tmp", os.O_RDONLY)
    for depth in range(1900):
        os.mkdir("d", dir_fd=here)
        new = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = new
    os.close(here)
    with agent.stream() as s:
        wait_for(lambda: s.status()["repl"] == "ready", "the session, which takes some as well")
        before = agent.fds()
        lines = changes(s, "/tmp")
        assert len(lines) == 1901 and len(lines[-1]["path"]) == 4 + 2 * 1900
        here = os.open(os.fsencode(overlay.root) + lines[-1]["path"].encode(), os.O_RDONLY)
        for depth in range(300):
            os.mkdir("d", dir_fd=here)
            new = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = new
        os.close(here)
        s.send(CHANGES, {"paths": ["/tmp"]})
        assert s.recv_json(OK) == {}
        kind, payload = s.recv()
        while kind != ERROR:
            kind, payload = s.recv()
        assert json.loads(payload)["code"] == "too_many"
        wait_for(lambda: agent.fds() <= before, "descriptors to be closed")
        assert s.bash("echo on").stdout == b"on\n"
    subprocess.run(["rm", "-rf", str(overlay.root / "tmp/d")], check=True)


def test_too_many(served: tuple[Overlay, Agent]) -> None:
    """The limit is kept, memory stays bounded, and others are served meanwhile."""
    overlay, agent = served
    for n in range(100_000):
        os.close(os.open(f"{overlay.root}/tmp/{n:06}", os.O_CREAT | os.O_WRONLY))
    with agent.stream() as s, agent.stream() as other:
        began = time.monotonic()
        s.send(CHANGES, {"paths": ["/tmp"]})
        s.recv_json(OK)
        asked = time.monotonic()
        other.status()
        assert time.monotonic() - asked < 1
        kind, payload = s.recv()
        count = 0
        while kind == DATA + 0x81:
            count += payload.count(b"\n")
            kind, payload = s.recv()
        assert kind == ERROR and json.loads(payload)["code"] == "too_many"
        print(f"{count} in {time.monotonic() - began:.2f} s, {agent.rss_kib('VmHWM')} KiB")
        assert not agent.grown(40_000, "VmHWM")
        (overlay.root / "tmp/000000").unlink()  # with /tmp itself
        assert len(changes(s, "/tmp")) == 100_000


def test_does_not_read(served: tuple[Overlay, Agent]) -> None:
    """A host that does not read makes it wait; one that goes away ends it."""
    overlay, agent = served
    for n in range(20_000):
        (overlay.root / f"tmp/{n:06}").touch()
    with agent.stream() as s:
        s.send(CHANGES, {"paths": ["/tmp"]})
        time.sleep(0.5)
        before = agent.switches()
        time.sleep(0.5)
        assert agent.switches() == before
    with agent.stream() as s:
        assert len(changes(s, "/tmp")) == 20_001


def test_hashes(served: tuple[Overlay, Agent]) -> None:
    overlay, agent = served
    big = os.urandom(7_000_000)
    (overlay.root / "tmp/big").write_bytes(big)
    (overlay.root / "tmp/empty").write_bytes(b"")
    os.mkfifo(overlay.root / "tmp/fifo")
    (overlay.root / "tmp/secret").write_text("x")
    (overlay.root / "tmp/secret").chmod(0)
    (overlay.root / "tmp/link").symlink_to("big")
    (overlay.root / "tmp/linkdir").symlink_to("/tmp")
    (overlay.root / "tmp/mounted").mkdir()
    with agent.stream() as s:
        want = {
            b"/tmp/big": hashlib.sha256(big).hexdigest(),
            b"/tmp/empty": hashlib.sha256(b"").hexdigest(),
            b"/tmp/secret": hashlib.sha256(b"x").hexdigest(),
            b"/usr/bin/tool": hashlib.sha256(b"image usr/bin/tool").hexdigest(),
            b"/tmp/fifo": "-",
            b"/tmp/link": "-",
            b"/tmp/linkdir/big": "-",
            b"/tmp": "-",
            b"/": "-",
            b"": "-",
            b"tmp/big": "-",
            b"/tmp/none": "-",
            b"/../../../../etc/hostname": "-",
            b"/" + b"x/" * 3000: "-",
        }
        assert hashes(s, *want) == list(want.values())
        assert hashes(s) == []
        many = [b"/tmp/empty"] * 10_000
        assert hashes(s, *many) == [want[b"/tmp/empty"]] * 10_000
        s.send(HASHES, {})
        s.body(b"/tmp/big")
        assert s.recv_json(ERROR)["code"] == "bad_request"
        s.send(HASHES, {})
        s.body(b"x" * (4 << 20) + b"\0")
        assert s.recv_json(ERROR)["code"] == "bad_request"
        assert hashes(s, b"/tmp/empty") == [want[b"/tmp/empty"]]


F_SETLEASE = 1024


def test_a_lease_is_not_waited_for(served: tuple[Overlay, Agent]) -> None:
    """Whoever owns a file may ask to be told before others open it, and has 45 s to agree."""
    overlay, agent = served
    paths = [overlay.root / f"tmp/leased{n}" for n in range(5)]
    held = []
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        for path in paths:
            path.write_text("x")
            held.append(os.open(path, os.O_RDWR))
            fcntl.fcntl(held[-1], F_SETLEASE, fcntl.F_WRLCK)
        began = time.monotonic()
        with agent.stream() as s, agent.stream() as other:
            s.send(HASHES, {})
            s.body(b"".join(f"/tmp/{path.name}\0".encode() for path in paths))
            other.send(PING, b"?")
            assert other.recv() == (PONG, b"?")
            assert s.recv_json(OK) == {}
            assert s.download() == b"-\n" * 5
        assert time.monotonic() - began < 2
        for fd in held:
            fcntl.fcntl(fd, F_SETLEASE, fcntl.F_UNLCK)
        with agent.stream() as s:
            assert hashes(s, b"/tmp/leased0") == [hashlib.sha256(b"x").hexdigest()]
    finally:
        for fd in held:
            os.close(fd)
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("layer", ["image", "upper"])
def test_a_directory_that_cannot_be_read(
    overlay: Overlay, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is behind the error is not told as gone, or left out."""
    if layer == "image":
        place = broken_directories.make(overlay.image / "tmp")
        overlay.mount()
        again = overlay.root / place.relative_to(overlay.image)
        shutil.rmtree(again)
        again.mkdir()  # opaque: what the image has in it is told as gone
    else:
        overlay.mount()
        broken_directories.make(overlay.root / "tmp")
    (overlay.root / "tmp/a").write_text("x")
    broken_directories.load(overlay.base, monkeypatch)
    agent = Agent(layers=(overlay.image, overlay.upper, overlay.root))
    try:
        with agent.stream() as s:
            s.send(CHANGES, {"paths": ["/tmp"]})
            assert s.recv_json(OK) == {}
            kind, payload = s.recv()
            while kind == DATA_OUT:
                kind, payload = s.recv()
            assert kind == ERROR and json.loads(payload)["code"] == "io_error"
            assert changes(s, "/home") == []
    finally:
        agent.stop()


def test_without_layers() -> None:
    agent = Agent()
    try:
        with agent.stream() as s:
            assert s.ask(CHANGES, {"paths": ["/"]})["code"] == "io_error"
            s.send(HASHES, {})
            s.body(b"")
            assert s.recv_json(ERROR)["code"] == "io_error"
    finally:
        agent.stop()
