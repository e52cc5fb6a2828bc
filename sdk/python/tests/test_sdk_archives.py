# SPDX-License-Identifier: Apache-2.0
"""Archives that no honest tar makes: what of them comes to be on this side, and what it takes."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import podflare
from podflare import _tar


def archive(*members: Any) -> io.BytesIO:
    """members: (name, type, link or content, changes)"""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, what, *changes in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o6644
            data = None
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                info.linkname = what
            elif kind == tarfile.REGTYPE:
                info.size, data = len(what), io.BytesIO(what)
            for key, value in changes[0].items() if changes else ():
                setattr(info, key, value)
            tar.addfile(info, data)
    file.seek(0)
    return file


REG, SYM, LNK, DIR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


@pytest.mark.parametrize(
    "bad",
    [
        ("../evil", REG, b"x"),
        ("/evil", REG, b"x"),
        ("a/../../evil", REG, b"x"),
        ("a/..", DIR, None),
        ("ok", LNK, "../outside"),
        ("ok", LNK, "/etc/passwd"),
    ],
)
def test_names_that_lead_out(tmp_path, bad):
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").write_bytes(b"secret")
    with pytest.raises(podflare.UnsafeArchiveError):
        _tar.unpack(archive(("first", REG, b"1"), bad), tmp_path / "in")
    # Nothing at all was written.
    assert os.listdir(tmp_path / "in") == [] and sorted(os.listdir(tmp_path)) == ["in", "outside"]


def test_links_that_lead_out_are_left_out(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    os.symlink("/", root / "mine")
    info = _tar.unpack(
        archive(
            ("abs", SYM, "/etc/passwd"),
            ("up", SYM, ".."),
            ("sub/fine", SYM, "../target"),
            ("target", REG, b"t"),
            # a leads to sub, from where .. .. is outside, though it does not look like that
            ("x/a", SYM, "../sub"),
            ("x/tricky", SYM, "a/../.."),
            ("through", SYM, "mine/etc"),
            ("loop", SYM, "loop"),
            ("hard", LNK, "target"),
            ("hard2", LNK, "not there"),
            ("fifo", tarfile.FIFOTYPE, None),
            ("device", tarfile.CHRTYPE, None),
        ),
        root,
    )
    assert sorted(info.skipped) == ["abs", "device", "fifo", "hard2", "through", "up", "x/tricky"]
    assert (root / "sub/fine").read_bytes() == b"t" == (root / "hard").read_bytes()
    assert sorted(os.listdir(root)) == ["hard", "loop", "mine", "sub", "target", "x"]
    assert stat.S_IMODE((root / "target").stat().st_mode) == 0o644  # no set-id bits


def test_nothing_is_written_through_a_link(tmp_path):
    root, outside = tmp_path / "in", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    os.symlink("../outside", root / "mine")
    for member in (("mine/evil", REG, b"x"), ("mine/evil", DIR, None), ("mine/evil", SYM, "y")):
        with pytest.raises(FileExistsError):
            _tar.unpack(archive(member), root)
    # A link of the archive itself is not there yet when its files are written.
    with pytest.raises(OSError):
        _tar.unpack(archive(("l", SYM, "../outside"), ("l/evil", REG, b"x")), root)
    assert os.listdir(outside) == []
    # A link in the place of a file is replaced, not followed.
    os.symlink("../outside/evil", root / "file")
    _tar.unpack(archive(("file", REG, b"x")), root)
    assert os.listdir(outside) == [] and not (root / "file").is_symlink()


def test_headers_that_lie(tmp_path):
    whole = archive(("a", REG, b"x" * 5000)).getvalue()
    with pytest.raises(podflare.PodflareError):
        _tar.unpack(io.BytesIO(whole[:2000]), tmp_path)
    # A name that claims to have four gigabytes.
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4 << 30
    with pytest.raises(podflare.UnsafeArchiveError, match="absurd"):
        _tar.unpack(io.BytesIO(info.tobuf() + bytes(10240)), tmp_path)
    # Sizes below zero, in base 256.
    info = tarfile.TarInfo("b")
    info.size = 1
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = b"\xff" * 10 + b"\xf0\x00"
    raw[148:156] = b"        "
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    with pytest.raises(podflare.PodflareError):
        _tar.unpack(io.BytesIO(bytes(raw) + bytes(10240)), tmp_path)
    with pytest.raises(podflare.PodflareError):
        _tar.unpack(io.BytesIO(os.urandom(2048)), tmp_path)
    sparse = archive(
        ("s", REG, b"x", {"pax_headers": {"GNU.sparse.size": "9" * 15, "GNU.sparse.map": "0,1"}})
    )
    with pytest.raises(podflare.UnsafeArchiveError):
        _tar.unpack(sparse, tmp_path)
    odd = archive(("t", REG, b"x", {"mtime": 1e18}), ("u", REG, b"x", {"mtime": -1e18}))
    assert _tar.unpack(odd, tmp_path).files == 2
    assert sorted(p for p in os.listdir(tmp_path) if p != "a") == ["t", "u"]


def test_too_many_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(_tar, "MAX_ENTRIES", 3)
    with pytest.raises(podflare.UnsafeArchiveError, match="over 3 entries"):
        _tar.unpack(archive(*((str(i), REG, b"") for i in range(4))), tmp_path)
    assert os.listdir(tmp_path) == []
    assert _tar.unpack(archive(("a", REG, b"1"), ("./a", REG, b"22")), tmp_path).size == 2


def check_links(root: Path, out: Path) -> None:
    """Below root, everything that a link leads to is below root."""
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            if os.path.islink(path) and name not in ("mine", "door"):
                end = os.path.realpath(path)
                assert end == str(root) or end.startswith(f"{root}/"), (path, end)
                assert not os.path.exists(path) or not os.path.samefile(path, out)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory to unpack into, beside one that is nobody's business."""
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    return Path(os.path.realpath(tmp_path / "in"))


def unpack(root: Path, *members: Any) -> podflare.TreeInfo:
    try:
        return _tar.unpack(archive(*members), root)
    finally:
        check_links(root, root.parent / "secret")


@pytest.mark.parametrize(
    "second",
    [
        [("a/b/c/d", SYM, "../../..")],
        [("a", SYM, "x/y/z"), ("x/y/z/d", DIR, None)],
        [("a/b/c/d/e", DIR, None)],
        [("a/b/c", SYM, ".."), ("a/b/x", REG, b"x")],
    ],
)
def test_a_link_that_a_later_archive_would_turn_out(root, second):
    up = "a/b/c/d/../../../../secret"
    first = unpack(root, ("report.json", SYM, up), ("s/r", SYM, f"../{up}"), ("f", REG, b"f"))
    assert first.skipped == ("report.json", "s/r")
    for _ in range(2):
        unpack(root, *second, ("a2", DIR, None))
    assert not os.path.lexists(root / "report.json")


@pytest.mark.parametrize("to", ["../secret", "up/secret", "..", "x/../../secret"])
@pytest.mark.parametrize(
    "then, error",
    [
        (("leak/x", SYM, "y"), FileExistsError),
        (("mine/x", SYM, "y"), FileExistsError),
        (("folder", SYM, "y"), IsADirectoryError),
        (("n" * 300, SYM, "y"), OSError),
        (("long", SYM, "n" * 5000), OSError),
    ],
)
def test_what_fails_between_links_leaves_none_that_leads_out(root, to, then, error):
    os.symlink("..", root / "mine")
    (root / "folder").mkdir()
    early = [("up", SYM, "mine"), ("leak", SYM, to), ("fine", SYM, "f"), ("leak2", SYM, to)]
    try:
        unpack(root, ("f", REG, b"f"), *early, then, ("leak3", SYM, to))
    except error:
        pass
    assert sorted(n for n in os.listdir(root) if "leak" in n) in ([], ["leak"])
    assert not (root / "leak").is_symlink()


def test_ways_of_links_over_links(root):
    """Through others, made before, after or later, and in whatever order."""
    for depth in range(3):
        unpack(
            root,
            ("1/2/3/f", REG, b"f"),
            ("deep", SYM, "1/2/3"),
            ("by", SYM, "deep/../../.."),
            ("by2", SYM, "deep/f"),
            ("1/up", SYM, ".."),
            ("1/2/over", SYM, "../up/.."),
            ("1/2/over2", SYM, "../up/../secret"),
            ("1/2/3/far", SYM, "../../../../secret"),
            ("chain", SYM, "chain2"),
            ("chain2", SYM, "chain3"),
            ("chain3", SYM, "../secret" if depth == 1 else "1/2/3/f"),
            ("dots", SYM, "./1//./2/3/f"),
            ("self", SYM, "."),
            ("self/..", SYM, "x") if depth == 7 else ("tail", SYM, "1/2/"),
            ("empty", SYM, ""),
        )
        # A link never becomes a directory.
        with pytest.raises(FileExistsError):
            unpack(root, ("deep/4/x", REG, b"x"))
        with pytest.raises(IsADirectoryError):
            unpack(root, ("1/2", SYM, "../.."))
    assert (root / "chain").read_bytes() == b"f" == (root / "dots").read_bytes()
    assert (root / "1/up/self/1/2/3/f").read_bytes() == b"f"
    assert os.path.samefile(root / "tail", root / "1/2")
    assert not any(os.path.lexists(root / n) for n in ("by", "by2", "1/2/over", "1/2/over2"))


def test_links_by_way_of_ones_own(root):
    """Somebody has links in the directory that lead out, on purpose: the archive's do not lead
    there, also not as soon as a second archive has put its own in between."""
    (root / "sub").mkdir()
    os.symlink("../..", root / "sub/door")
    first = [("through", SYM, "a/door/secret"), ("a2", SYM, "sub/door"), ("a3", SYM, "a2")]
    unpack(root, *first, ("a", SYM, "gone"))
    unpack(root, ("a", SYM, "sub"))
    unpack(root, ("a", SYM, "sub"), *first)
    assert not os.path.exists(root / "through") and os.path.samefile(root / "a", root / "sub")
    assert os.readlink(root / "sub/door") == "../.."


def test_no_write_bits_for_others(root):
    unpack(root, ("d", DIR, None, {"mode": 0o7777}), ("d/f", REG, b"x", {"mode": 0o6777}))
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o755
    unpack(root, ("d/f", REG, b"x", {"mode": 0o062}))
    assert stat.S_IMODE((root / "d/f").stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "name",
    [
        "C:evil",
        "C:/evil",
        "a/C:",
        "file.txt:stream",
        "a/nul",
        "NUL.txt",
        "Com1",
        "lpt9.tar.gz",
        "com\u00b9",
        "CONIN$",
        "aux .c",
        "..\\evil",
        "a\\b",
        ".. /evil",
        "dots./x",
        "blank ",
    ],
)
def test_names_that_mean_something_else_on_windows(root, name, monkeypatch):
    ok = [("ok", REG, b"x"), ("a/console", REG, b"x"), ("nullo/.x", REG, b"x"), ("l", SYM, "./ok")]
    with monkeypatch.context() as patch:
        patch.setattr(_tar.os, "name", "nt")
        for bad in ((name, REG, b"x"), (name, DIR, None), (name, SYM, "ok"), ("h", LNK, name)):
            with pytest.raises(podflare.UnsafeArchiveError):
                _tar.unpack(archive(*ok, bad), str(root))
        nothing = os.listdir(root)
        info = _tar.unpack(archive(*ok, ("odd", SYM, name)), str(root))
    assert nothing == [] and info.skipped == ("odd",) and info.links == 1
    if os.name != "nt" and ".." not in name:
        assert unpack(root, (f"x{name}", REG, b"x")).files == 1  # names as all others here


def header(kind: bytes, records: bytes) -> bytes:
    """An extended header."""
    info = tarfile.TarInfo("pax")
    info.type, info.size = kind, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def records(count: int) -> bytes:
    return b"".join(b"10 %05x=\n" % i for i in range(count))


def peak(call: Any) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_headers_for_the_whole_archive(tmp_path):
    """A copy of them for each of the entries: a small archive took gigabytes."""
    entries = archive(*((str(i), REG, b"") for i in range(300))).getvalue()
    for kind in (b"g", b"g" * 2):
        bomb = b"".join(header(b"g", records(1_500)) for _ in kind) + entries

        def refused() -> None:
            with pytest.raises(podflare.UnsafeArchiveError, match="for all of it"):
                _tar.unpack(io.BytesIO(bomb), tmp_path)

        assert peak(refused) < 16 << 20
    assert os.listdir(tmp_path) == []


def test_headers_are_not_kept(tmp_path):
    one = archive(("a", REG, b"x")).getvalue()[:1024]
    bomb = b"".join(header(b"x", records(1500)) + one for _ in range(50)) + bytes(1024)
    assert peak(lambda: _tar.unpack(io.BytesIO(bomb), tmp_path)) < 8 << 20
    assert os.listdir(tmp_path) == ["a"]


def test_headers_without_end(tmp_path, monkeypatch):
    one = archive(("a", REG, b"x")).getvalue()
    for kind, body in ((b"x", b""), (b"x", b"6 a=b\n"), (b"L", b"name\0"), (b"K", b"name\0")):
        for count in (800, 3000):
            with pytest.raises(podflare.PodflareError):
                _tar.unpack(io.BytesIO(header(kind, body) * count + one), tmp_path)
    many = b"".join(header(b"x", records(20_000)) for _ in range(20))

    def refused() -> None:
        with pytest.raises(podflare.UnsafeArchiveError, match="absurd"):
            _tar.unpack(io.BytesIO(many + one), tmp_path)

    assert peak(refused) < 64 << 20
    large = b"5013 size=" + b"9" * 5002 + b"\n"
    for odd in (b"9 size=x\n", large, b"13 mtime=nan\n", b"\xff=\n", b"12 mtime=1e9\n"):
        try:
            _tar.unpack(io.BytesIO(header(b"x", odd) + one), tmp_path)
        except podflare.PodflareError:
            pass
    monkeypatch.setattr(_tar, "MAX_NAMES", 100_000)
    with pytest.raises(podflare.UnsafeArchiveError, match="names"):
        _tar.unpack(archive(*(("n" * 900 + str(i), REG, b"") for i in range(200))), tmp_path)
    with pytest.raises(podflare.UnsafeArchiveError, match="names"):
        _tar.unpack(archive(*((str(i), SYM, "n" * 900) for i in range(200))), tmp_path)
    assert os.listdir(tmp_path) in ([], ["a"])


def test_names_that_are_too_deep(tmp_path, monkeypatch):
    """Each part of each name was made, or looked at: hours for some hundred megabytes."""
    deep = "a/" * 1900
    for bad in (deep + "f", "a/" * 256 + "f", "n" * 4097, "\xe9" * 2049):
        begin = time.monotonic()
        with pytest.raises(podflare.UnsafeArchiveError, match="256 parts, or 4096 bytes"):
            _tar.unpack(archive(*((f"{bad}{i}", REG, b"") for i in range(200))), tmp_path)
        with pytest.raises(podflare.UnsafeArchiveError, match="256 parts"):
            _tar.unpack(archive(("f", REG, b""), ("h", LNK, bad)), tmp_path)
        assert _tar.unpack(archive(("l", SYM, bad)), tmp_path / "..").skipped == ("l",)
        assert time.monotonic() - begin < 20
    assert os.listdir(tmp_path) == []
    # What is deep is walked once.
    calls = []
    mkdir = os.mkdir
    monkeypatch.setattr(_tar.os, "mkdir", lambda path: calls.append(path) or mkdir(path))
    deep = "a/" * 255
    info = _tar.unpack(archive(*((f"{deep}{i}", REG, b"") for i in range(200))), tmp_path)
    assert (info.files, info.directories, len(calls)) == (200, 255, 255)


def test_directories_without_an_entry_count(tmp_path, monkeypatch):
    monkeypatch.setattr(_tar, "MAX_ENTRIES", 100)
    with pytest.raises(podflare.UnsafeArchiveError, match="over 100 entries"):
        _tar.unpack(archive(("a/" * 60 + "f", REG, b""), ("b/" * 60 + "f", REG, b"")), tmp_path)
    monkeypatch.setattr(_tar, "MAX_NAMES", 10_000)
    with pytest.raises(podflare.UnsafeArchiveError, match="names of over 10000"):
        _tar.unpack(archive(("abcdef/" * 90 + "f", REG, b"")), tmp_path)
    assert os.listdir(tmp_path) == []


def test_long_ways_of_links(tmp_path):
    """Each was followed to its end, as far as Python goes."""
    links = [(f"l{i}", SYM, f"l{i - 1}" if i else "nothing") for i in range(3000)]
    begin = time.monotonic()
    info = _tar.unpack(archive(*links), tmp_path)
    assert info.links + len(info.skipped) == 3000 and len(info.skipped) > 60
    assert time.monotonic() - begin < 20


def test_headers_full_of_digits(tmp_path, monkeypatch):
    """tarfile without the mending of CVE-2024-6232 took hours for the digits of a megabyte."""
    read = _tar._Guarded.read

    def read_and_search(self: Any, size: int = -1) -> bytes:
        data = read(self, size)
        re.search(rb"\d+ hdrcharset=([^\n]+)\n", data)  # as it does
        return data

    monkeypatch.setattr(_tar._Guarded, "read", read_and_search)
    begin = time.monotonic()
    for kind, digits in ((b"x", b"1" * 16_000), (b"X", b"1" * 16_000), (b"x", b"1" * 199 + b" ")):
        value = (digits * (16_000 // len(digits)))[:15_990]
        record = b"%d a=%s\n" % (len(value) + 9, value)
        assert len(record) == len(value) + 9
        one = header(kind, record) + archive(("a", REG, b"x")).getvalue()[:1024]
        with pytest.raises(podflare.UnsafeArchiveError, match="full of digits"):
            _tar.unpack(io.BytesIO(one * 1000 + bytes(1024)), tmp_path)
        # Not so some of them.
        assert _tar.unpack(io.BytesIO(one * 2 + bytes(1024)), tmp_path).files == 1
        (tmp_path / "a").unlink()
    assert time.monotonic() - begin < 120
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_long_names_of_a_real_tar(tmp_path, form):
    """Names as long as they get, of digits and of what is not ASCII, are none of that."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    deep = "/".join(["\u00e9" * 120] * 5 + ["7" * 240] * 5 + ["\udcff" * 250] * 3)
    os.makedirs(tmp_path / "in" / os.path.dirname(deep))
    (tmp_path / "in" / deep).write_bytes(b"x")
    os.symlink(deep, tmp_path / "in" / "link")
    made = tmp_path / "t.tar"
    subprocess.run(
        ["tar", f"--format={form}", *_tar.pack_command(str(made), str(tmp_path / "in"))[1:]],
        check=True,
    )
    with open(made, "rb") as file:
        info = _tar.unpack(file, tmp_path / "out")
    assert (info.files, info.directories, info.links) == (1, 12, 1)
    assert (tmp_path / "out" / "link").read_bytes() == b"x"


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 1024, 2**63 + 5, 2**70])
def test_sizes_beyond_all(tmp_path, size):
    info = tarfile.TarInfo("x")
    info.size = size
    raw = info.tobuf(tarfile.GNU_FORMAT)
    with open(tmp_path / "t", "w+b") as file:
        file.write(raw + bytes(2048))
        file.seek(0)
        with pytest.raises(podflare.PodflareError, match="the archive from the sandbox cannot"):
            _tar.unpack(file, tmp_path)
