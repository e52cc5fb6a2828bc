# SPDX-License-Identifier: Apache-2.0
"""Watching a directory: guest/repl/watch.py, run as it is in a sandbox."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from watching import PROGRAM, Watching, replay, tree

from _podflare_repl import watch as program


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty directory, with another beside it."""
    (tmp_path / "out").mkdir()
    path = tmp_path / "root"
    path.mkdir()
    return path


@pytest.fixture
def large(root: Path) -> Iterator[Path]:
    """The same for very many files: in memory, where there is such a place."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield root
        return
    with tempfile.TemporaryDirectory(dir=memory) as path:
        (Path(path) / "out").mkdir()
        (Path(path) / "root").mkdir()
        yield Path(path) / "root"


def exchange(one: Path, two: Path) -> None:
    """Both get the other's name at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(two), 2):
        pytest.skip(f"this file system cannot exchange: {os.strerror(ctypes.get_errno())}")


def test_files(root: Path) -> None:
    (root / "old").write_text("x")
    with Watching(root) as w:
        assert w.first == {"type": "ready"}
        assert w.short() == []
        (root / "new").write_text("x")
        assert w.short() == ["created new", "modified new"]
        (root / "old").write_text("y")
        assert w.short() == ["modified old"]
        (root / "old").chmod(0o600)
        assert w.short() == ["modified old"]
        os.utime(root / "old", (1, 1))
        assert w.short() == ["modified old"]
        with (root / "new").open("a") as file:
            file.write("z")
            file.flush()
            assert w.short() == []  # it is not closed yet
        assert w.short() == ["modified new"]
        os.rename(root / "old", root / "older")
        assert w.short() == ["moved old older"]
        os.rename(root / "older", root / "new")  # in its place
        (root / "new").unlink()
        assert w.short() == ["moved older new", "deleted new"]
        (root / "again").write_text("")
        (root / "again").unlink()
        (root / "again").write_text("")
        assert w.short() == ["created again", "modified again", "deleted again"] + [
            "created again",
            "modified again",
        ]
        root.chmod(0o700)
        assert w.short() == ["modified ./"]


def test_the_lines(root: Path) -> None:
    with Watching(root) as w:
        (root / "d").mkdir()
        os.rename(root / "d", root / "e")
        a, b = str(root / "d"), str(root / "e")
        assert w.marked() == [
            {"type": "created", "path": a, "dir": True},
            {"type": "moved", "path": b, "dir": True, "from": a},
        ]


def test_what_is_no_file(root: Path) -> None:
    with Watching(root) as w:
        os.mkfifo(root / "fifo")
        os.symlink("nowhere", root / "link")
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(root / "socket"))
        os.link(root / "fifo", root / "second")
        assert sorted(w.short()) == [
            *("created fifo", "created link", "created second", "created socket")
        ]


def test_directories_that_are_full_before_they_are_watched(root: Path) -> None:
    with Watching(root) as w:
        w.stop()
        for top in ("a", "b"):
            (root / top / "sub" / "deep").mkdir(parents=True)
            for at in range(3):
                (root / top / "sub" / f"f{at}").write_text("x")
        (root / "a" / "sub" / "f0").unlink()
        w.go()
        told = w.short()
        created = [one for one in told if one.startswith("created")]
        assert len(created) == len(set(created))  # nothing twice
        assert {one.split()[1] for one in created} == {
            *("a/", "a/sub/", "a/sub/deep/", "a/sub/f1", "a/sub/f2"),
            *("b/", "b/sub/", "b/sub/deep/", "b/sub/f0", "b/sub/f1", "b/sub/f2"),
        }
        # It is watched from now on.
        (root / "a" / "sub" / "deep" / "new").write_text("x")
        assert w.short() == ["created a/sub/deep/new", "modified a/sub/deep/new"]


def test_directories_that_are_moved(root: Path) -> None:
    out = root.parent / "out"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f").write_text("x")
    (out / "in" / "deep").mkdir(parents=True)
    (out / "in" / "deep" / "g").write_text("x")
    with Watching(root) as w:
        os.rename(root / "a", root / "c")
        (root / "c" / "b" / "f").write_text("y")  # told by its new name
        assert w.short() == ["moved a/ c/", "modified c/b/f"]
        os.rename(root / "c" / "b", root / "d")
        (root / "d" / "h").write_text("")
        assert w.short() == ["moved c/b/ d/", "created d/h", "modified d/h"]
        os.rename(root / "d", out / "d")
        (out / "d" / "h").write_text("not seen")
        assert w.short() == ["deleted d/"]
        os.rename(out / "in", root / "in")
        assert w.short() == ["created in/", "created in/deep/", "created in/deep/g"]
        (root / "in" / "deep" / "g").write_text("y")
        assert w.short() == ["modified in/deep/g"]
        os.rename(out / "d", root / "d")  # it comes back
        assert w.short()[0] == "created d/"
        (root / "d" / "f").unlink()
        assert w.short() == ["deleted d/f"]


def test_a_directory_that_moves_before_it_is_watched(root: Path) -> None:
    with Watching(root) as w:
        w.stop()
        (root / "a" / "sub").mkdir(parents=True)
        (root / "a" / "sub" / "f").write_text("x")
        os.rename(root / "a", root / "b")
        os.rename(root / "b", root / "c")
        w.go()
        known: dict[str, bool] = {}
        replay(known, w.marked())
        assert known == tree(root)
        (root / "c" / "sub" / "f").write_text("y")
        assert w.short() == ["modified c/sub/f"]


def test_moved_into_what_is_new_itself(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "f").write_text("x")
    with Watching(root) as w:
        w.stop()
        (root / "new").mkdir()
        os.rename(root / "a", root / "new" / "a")
        w.go()
        known = {str(root / "a"): True, str(root / "a" / "f"): False}
        replay(known, w.marked())
        assert known == tree(root)
        (root / "new" / "a" / "f").write_text("y")
        assert w.short() == ["modified new/a/f"]


def test_deleted_and_made_again(root: Path) -> None:
    (root / "d" / "sub").mkdir(parents=True)
    with Watching(root) as w:
        w.stop()
        for _ in range(5):
            shutil.rmtree(root / "d")
            (root / "d" / "sub").mkdir(parents=True)
        w.go()
        known = {str(root / "d"): True, str(root / "d" / "sub"): True}
        replay(known, w.marked())
        assert known == tree(root)
        (root / "d" / "sub" / "f").write_text("y")
        assert w.short() == ["created d/sub/f", "modified d/sub/f"]


def test_names_that_are_exchanged(root: Path) -> None:
    (root / "a").mkdir()
    (root / "a" / "f").write_text("x")
    (root / "b").write_text("x")
    with Watching(root) as w:
        exchange(root / "a", root / "b")
        assert w.short() == ["moved a/ b/", "moved b a"]
        (root / "b" / "f").write_text("y")
        (root / "a").write_text("y")
        assert w.short() == ["modified b/f", "modified a"]


def test_there_and_back_is_no_exchange(root: Path) -> None:
    (root / "a").write_text("x")
    (root / "b").write_text("x")
    with Watching(root) as w:
        w.stop()
        os.rename(root / "a", root / "b")
        os.rename(root / "b", root / "a")
        w.go()
        assert w.short() == ["moved a b", "moved b a"]


def test_replaced_from_elsewhere(root: Path) -> None:
    out = root.parent / "out"
    (out / "f").write_text("new")
    (out / "d").mkdir()
    (out / "d" / "g").write_text("new")
    (root / "f").write_text("old")
    (root / "d").mkdir()
    with Watching(root) as w:
        os.rename(out / "f", root / "f")
        os.rename(out / "d", root / "d")
        assert w.short() == ["modified f", "created d/", "created d/g"]


def test_not_recursive(root: Path) -> None:
    (root / "old").mkdir()
    with Watching(root, recursive=False) as w:
        (root / "old" / "f").write_text("x")
        (root / "new").mkdir()
        (root / "new" / "f").write_text("x")
        os.rename(root / "new", root / "newer")
        shutil.rmtree(root / "newer")
        assert w.short() == ["created new/", "moved new/ newer/", "deleted newer/"]


def test_symbolic_links_are_not_followed(root: Path) -> None:
    out = root.parent / "out"
    os.symlink(out, root / "old")
    with Watching(root) as w:
        os.symlink(out, root / "new")
        (out / "f").write_text("x")
        assert w.short() == ["created new"]
    os.symlink(root, root.parent / "link")
    with Watching(root.parent / "link") as w:  # but the directory itself may be named by one
        (root / "f").write_text("x")
        assert w.short() == ["created f", "modified f"]


@pytest.mark.parametrize("held", [False, True])
def test_the_directory_itself_is_deleted(root: Path, held: bool) -> None:
    (root / "f").write_text("x")
    fd = os.open(root, os.O_RDONLY)
    if not held:
        os.close(fd)
    with Watching(root) as w:
        shutil.rmtree(root)
        assert [w.word(line) for line in w.rest_of_it()] == ["deleted f", "deleted ./", "end"]
        assert w.process.wait() == 0
    if held:
        os.close(fd)


def test_the_directory_itself_is_moved(root: Path) -> None:
    with Watching(root) as w:
        os.rename(root, root.parent / "other")
        root.mkdir()  # another one
        assert [w.word(line) for line in w.rest_of_it()] == ["deleted ./", "end"]


def test_names_that_are_not_utf8(root: Path) -> None:
    name = b"\xff\xe4 \n\"\\\xc3\xbc"
    with Watching(root) as w:
        raw = os.fsencode(root) + b"/" + name
        os.mkdir(raw)
        os.close(os.open(raw + b"/\x80", os.O_CREAT | os.O_WRONLY))
        told = [os.fsencode(line["path"]) for line in w.marked()]
        assert told[:2] == [raw, raw + b"/\x80"]


def test_no_such_directory(root: Path) -> None:
    (root / "file").write_text("x")
    for path in (root / "missing", root / "file"):
        with Watching(path) as w:
            assert w.first["type"] == "error" and w.first["code"] == "file_not_found"
            assert w.first["message"] == f"{path} is not a directory"
            assert w.rest_of_it() == [] and w.process.wait() == 1


def test_directories_that_may_not_be_read(root: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (root / "closed").mkdir(mode=0)
    with Watching(root) as w:
        (root / "closed").chmod(0o755)
        assert w.short() == ["modified closed/"]
        (root / "closed" / "f").write_text("x")
        assert w.short() == ["created closed/f", "modified closed/f"]


def test_the_limit_of_watches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a user namespace with a limit of its own, or with a kernel that says so."""
    for at in range(20):
        (root / f"d{at}").mkdir()
    shell = 'echo 10 >/proc/sys/user/max_inotify_watches && exec "$@"'
    argv = ["unshare", "-Ur", "sh", "-c", shell, "sh", "python3", "-I", "-S", str(PROGRAM)]
    done = subprocess.run([*argv, "--recursive", str(root)], capture_output=True, text=True)
    if '"type": "error"' not in done.stdout:
        calls = []

        def add(self: program.Notify, path: str, mask: int) -> int:
            calls.append(path)
            if len(calls) > 10:
                raise OSError(28, "No space left on device")
            return len(calls)

        monkeypatch.setattr(program.Notify, "add", add)
        with pytest.raises(program.Failure) as e:
            program.Watch(str(root), True, program.Output(-1)).begin()
        assert e.value.code == "too_many_watches" and "max_user_watches" in str(e.value)
        return
    assert '"code": "too_many_watches"' in done.stdout and "max_user_watches" in done.stdout
    assert done.returncode == 1


def queue_length() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


def test_overflow(large: Path) -> None:
    root = large
    if queue_length() > 100_000:
        pytest.skip("the queue of this kernel is very long")
    (root / "kept").mkdir()
    (root / "gone").mkdir()
    (root / "moved").mkdir()
    for at in range(5):
        (root / "kept" / f"f{at}").write_text("x")
        os.utime(root / "kept" / f"f{at}", (1, 1))
        (root / "gone" / f"f{at}").write_text("x")
    known = tree(root)
    with Watching(root) as w:
        w.stop()
        for at in range(queue_length() // 2 + 10):
            (root / "noise").mkdir()
            (root / "noise").rmdir()
        # All of this is lost.
        (root / "kept" / "f0").write_text("y")
        (root / "kept" / "new").mkdir()
        (root / "kept" / "new" / "f").write_text("x")
        (root / "kept" / "f1").unlink()
        shutil.rmtree(root / "gone")
        os.rename(root / "moved", root / "elsewhere")
        (root / "kept" / "f2").unlink()
        (root / "kept" / "f2").mkdir()
        w.go()
        told = w.marked()
        at = next(i for i, line in enumerate(told) if line["type"] == "overflow")
        words = {w.word(line) for line in told[at:]}
        assert "modified kept/f0" in words
        replay(known, told)
        assert known == tree(root)
        (root / "kept" / "new" / "f").write_text("y")
        (root / "elsewhere" / "f").write_text("y")
        assert [one for one in w.short() if one.endswith("/f")] == [
            *("modified kept/new/f", "created elsewhere/f", "modified elsewhere/f")
        ]


def test_a_slow_reader_loses_nothing_but_detail(large: Path) -> None:
    """What is not read fills the pipe, then the kernel's queue; memory does not grow."""
    root, known = large, {str(large / "last"): True}
    with Watching(root) as w:
        for at in range(min(queue_length(), 20_000)):
            (root / f"f{at % 7}").mkdir()
            (root / f"f{at % 7}").rmdir()
        (root / "last").mkdir()
        status = Path(f"/proc/{w.process.pid}/status").read_text()
        (peak,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
        assert int(peak.split()[1]) < 60_000
        seen: dict[str, bool] = {}
        replay(seen, w.marked())
        assert seen == known


def test_a_hundred_thousand_files(large: Path) -> None:
    root = large
    for at in range(100):
        folder = root / f"d{at}"
        folder.mkdir()
        for name in range(1000):
            os.close(os.open(folder / f"f{name}", os.O_CREAT | os.O_WRONLY))
    with Watching(root) as w:
        assert w.first == {"type": "ready"}
        os.rename(root / "d7", root.parent / "out" / "d7")
        assert w.short() == ["deleted d7/"]
        os.rename(root.parent / "out" / "d7", root / "d7")
        assert len(w.short()) == 1001
        (root / "d99" / "f999").write_text("x")
        assert w.short() == ["modified d99/f999"]
        known = tree(root)
        shutil.rmtree(root / "d3")
        replay(known, w.marked())
        assert known == tree(root)


def test_it_ends_in_a_copy_of_the_sandbox(root: Path) -> None:
    """Its reader is in the original."""
    program = root.parent / "run" / "repl" / "watch.py"
    program.parent.mkdir(parents=True)
    shutil.copy(PROGRAM, program)
    shutil.copy(PROGRAM.parent / "inotify.py", program.parent)
    with Watching(root, program=program) as w:
        (root.parent / "run" / "sandbox-id").write_text("x")
        assert w.short() == []
        (root.parent / "run" / "fork-generation").write_text("1\n")
        assert w.rest_of_it() == [{"type": "end"}] and w.process.wait() == 0


def test_it_ends_when_its_reader_leaves(root: Path) -> None:
    with Watching(root) as w:
        os.close(os.dup(w.fd))
        assert w.process.stdout is not None
        w.process.stdout.close()
        (root / "f").write_text("x")
        assert w.process.wait() == 1


def test_long_output_asks_for_another_one(root: Path) -> None:
    readable, writable = os.pipe()
    output = program.Output(writable, 100)
    output.put({"type": "created", "path": "x" * 50})
    output.flush()
    output.put({"type": "created", "path": "x" * 50})
    with pytest.raises(program.Over):
        output.flush()
    os.close(writable)
    with os.fdopen(readable) as lines:
        assert [line for line in lines][1:] == ['{"type": "again"}\n']


def act(r: random.Random, root: Path, out: Path) -> None:
    """Something happens to some of the files; others may act as well."""
    folders = [root, *(Path(p) for p, is_dir in tree(root).items() if is_dir)]
    folder, other = r.choice(folders), r.choice([*folders, out])
    one, two = folder / r.choice("abcd"), other / r.choice("abcd")
    try:
        what = r.randrange(8)
        if what == 0:
            one.write_text("x")
        elif what == 1:
            one.mkdir()
        elif what == 2:
            (one / r.choice("abcd") / r.choice("abcd")).mkdir(parents=True)
        elif what == 3:
            one.unlink()
        elif what == 4:
            shutil.rmtree(one)
        elif what in (5, 6):
            os.rename(one, two)
        elif list(out.iterdir()):
            os.rename(r.choice(list(out.iterdir())), one)
    except OSError:
        pass


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("actors", [1, 3])
def test_what_is_told_adds_up(root: Path, seed: int, actors: int) -> None:
    """Whatever happens, beside each other: the events, put together, are what is there."""
    out = root.parent / "out"
    prepare = random.Random(seed)
    for _ in range(40):
        act(prepare, root, out)
    known = tree(root)
    with Watching(root) as w:
        if seed % 2:
            w.stop()

        def many(number: int) -> None:
            r = random.Random(f"{seed} {number}")
            for _ in range(120):
                act(r, root, out)

        threads = [threading.Thread(target=many, args=(number,)) for number in range(actors)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        w.go()
        replay(known, w.marked())
        assert known == tree(root)
        # And all of it is watched, once.
        folders = [Path(path) for path, is_dir in known.items() if is_dir]
        for folder in folders:
            (folder / "probe").mkdir()
        assert sorted(w.short()) == sorted(f"created {f.relative_to(root)}/probe/" for f in folders)
