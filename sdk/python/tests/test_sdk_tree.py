# SPDX-License-Identifier: Apache-2.0
"""The files namespace, directories as archives, progress, and downloads that are resumed."""

from __future__ import annotations

import io
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

import podflare
from fake_guest import FakeGuest
from podflare import Sandbox


def test_the_namespace(guest: FakeGuest, tmp_path):
    with Sandbox() as s:
        f = s.files
        assert f.mkdir("/tmp/a/b") is True and f.mkdir("/tmp/a/b") is False
        with pytest.raises(podflare.RemoteFileNotFoundError):
            f.mkdir("/tmp/x/y", parents=False)
        assert f.write("/tmp/a/text", "häll\n") == podflare.FileInfo("/tmp/a/text", 6)
        assert f.read("/tmp/a/text").decode() == "häll\n"
        f.write("rel", b"\x00\xff")
        assert (guest.root / "home/user/rel").read_bytes() == b"\x00\xff"
        (tmp_path / "local").write_bytes(b"l")
        f.write("/tmp/a/b/deep", tmp_path / "local")
        f.write("/tmp/a/file object", io.BytesIO(b"o"))
        os.symlink("text", guest.root / "tmp/a/link")
        os.symlink("nowhere", guest.root / "tmp/a/broken")
        names = [one.name for one in f.list("/tmp/a")]
        assert names == ["b", "broken", "file object", "link", "text"]
        assert [one.path for one in f.list("/tmp/a", depth=2)][:2] == ["/tmp/a/b", "/tmp/a/b/deep"]
        with pytest.raises(podflare.InvalidRequestError) as e:
            f.list("/tmp", depth=17)
        assert e.value.field == "depth"
        text, link, broken = f.stat("/tmp/a/text"), f.stat("/tmp/a/link"), f.stat("/tmp/a/broken")
        assert (text.type, text.size, text.is_file, text.is_dir, text.link) == (
            "file",
            6,
            True,
            False,
            None,
        )
        assert (link.type, link.link, link.target_type, link.is_file) == (
            "link",
            "text",
            "file",
            True,
        )
        assert (broken.link, broken.target_type, broken.is_file) == ("nowhere", None, False)
        assert f.stat("/tmp/a").is_dir and f.stat("/").name == "/"
        assert f.exists("/tmp/a/broken") and f.exists("/tmp") and not f.exists("/tmp/no")
        assert not f.exists("/tmp/a/text/below a file")
        f.chmod("/tmp/a/text", 0o600)
        assert f.stat("/tmp/a/text").mode == 0o600
        f.rename("/tmp/a/text", "/tmp/a/renamed")
        with pytest.raises(FileExistsError):
            f.rename("/tmp/a/renamed", "/tmp/a/link", overwrite=False)
        f.rename("/tmp/a/renamed", "/tmp/a/link")
        with pytest.raises(podflare.DirectoryNotEmptyError):
            f.remove("/tmp/a")
        f.remove("/tmp/a/link")
        f.remove("/tmp/a", recursive=True)
        assert not f.exists("/tmp/a")
        with pytest.raises(FileNotFoundError):
            f.remove("/tmp/a")
    for call in (lambda: f.stat("/"), lambda: f.read("/x"), lambda: f.write("/x", "")):
        with pytest.raises(podflare.SandboxEndedError):
            call()


def test_parts_of_a_file(guest: FakeGuest):
    (guest.root / "tmp/x").write_bytes(b"0123456789")
    with Sandbox() as s:
        read = s.files.read
        assert read("/tmp/x", offset=3, length=4) == b"3456"
        assert read("/tmp/x", offset=8) == b"89" == read("/tmp/x", offset=8, length=100)
        assert read("/tmp/x", length=2) == b"01"
        assert read("/tmp/x", length=0) == b""
        with pytest.raises(podflare.InvalidRequestError) as e:
            read("/tmp/x", offset=10)
        assert e.value.status == 416
        for wrong in ({"offset": -1}, {"length": -1}):
            with pytest.raises(ValueError):
                read("/tmp/x", **wrong)
        guest.on_files("GET", lambda r: r.reply(200, b"0123456789"))
        with pytest.raises(podflare.PodflareError, match="whole file"):
            read("/tmp/x", offset=3)


def test_progress(guest: FakeGuest, tmp_path):
    data = os.urandom(200_000)
    calls: list[Any] = []

    def progress(done: int, total: Any) -> None:
        calls.append((done, total))

    def check(total: Any) -> None:
        assert [d for d, _ in calls] == sorted({d for d, _ in calls}) and len(calls) > 1
        assert calls[-1][0] == 200_000 and {t for _, t in calls} == {total}
        calls.clear()

    class Pipe(io.RawIOBase):
        left = io.BytesIO(data)

        def read(self, size=-1):
            return self.left.read(size)

    with Sandbox() as s:
        s.upload(data, "/tmp/x", progress=progress)
        check(200_000)
        s.upload(Pipe(), "/tmp/x", progress=progress)  # type: ignore[arg-type]
        check(None)
        s.download_to("/tmp/x", tmp_path / "x", progress=progress)
        check(200_000)
        s.download_to("/tmp/x", io.BytesIO(), progress=progress)
        check(200_000)
        s.download_to("/tmp/x", tmp_path / "x", resume=True, progress=progress)
        check(200_000)

        def fail(done: int, total: Any) -> None:
            raise ZeroDivisionError

        for transfer in (
            lambda: s.upload(data, "/tmp/y", progress=fail),
            lambda: s.download_to("/tmp/x", tmp_path / "y", progress=fail),
        ):
            with pytest.raises(ZeroDivisionError):
                transfer()
        assert not (guest.root / "tmp/y").exists() and sorted(os.listdir(tmp_path)) == [
            "guest",
            "x",
        ]


def ranges(guest: FakeGuest) -> list[Any]:
    return [
        r.headers.get("range")
        for r in guest.requests
        if r.method == "GET" and r.path.endswith("files")
    ]


def test_a_broken_download_goes_on_where_it_broke(guest: FakeGuest, tmp_path):
    data = os.urandom(300_000)
    (guest.root / "tmp/x").write_bytes(data)
    os.symlink("x", guest.root / "tmp/link")
    target = tmp_path / "out" / "x"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with Sandbox() as s:
        guest.cut_after = 100_000
        with pytest.raises(podflare.StreamBrokenError):
            s.download_to("/tmp/link", target, resume=True)
        assert target.read_bytes() == b"old"
        (part,) = [n for n in os.listdir(target.parent) if n.startswith(".x.")]
        here = (target.parent / part).stat().st_size
        assert 0 < here <= 100_000
        calls: list[int] = []
        size = s.download_to(
            "/tmp/link", target, resume=True, progress=lambda done, total: calls.append(done)
        )
        assert size == 300_000 and target.read_bytes() == data and calls[0] > here
        assert ranges(guest)[-1] == f"bytes={here}-299999"
        assert os.listdir(target.parent) == ["x"]
        with pytest.raises(ValueError, match="local path"):
            s.download_to("/tmp/x", io.BytesIO(), resume=True)
        (guest.root / "tmp/empty").touch()
        assert s.download_to("/tmp/empty", target, resume=True) == 0
        assert target.read_bytes() == b""
        os.symlink("loop", guest.root / "tmp/loop")
        with pytest.raises(podflare.PodflareError):
            s.download_to("/tmp/loop", target, resume=True)


def test_what_changed_meanwhile_is_not_put_together(guest: FakeGuest, tmp_path):
    remote, target = guest.root / "tmp/x", tmp_path / "out" / "x"
    target.parent.mkdir()
    remote.write_bytes(b"a" * 300_000)
    with Sandbox() as s:
        guest.cut_after = 100_000
        with pytest.raises(podflare.StreamBrokenError):
            s.download_to("/tmp/x", target, resume=True)
        # Another version before the next try: from the start, and the old beginning goes.
        remote.write_bytes(b"b" * 300_000)
        os.utime(remote, (5, 5))
        s.download_to("/tmp/x", target, resume=True)
        assert target.read_bytes() == b"b" * 300_000 and os.listdir(target.parent) == ["x"]
        # One that changes during a transfer.
        url = f"{guest.requests[-1].path[: guest.requests[-1].path.index('/files')]}/files"
        shown = [300_000, 300_001]

        def describe(r):
            r.reply(
                200, {"path": "/tmp/x", "type": "file", "size": 300_000, "mtime_ms": shown.pop()}
            )

        guest.on("GET", f"{url}/stat", describe)
        with pytest.raises(podflare.PodflareError, match="was changed"):
            s.download_to("/tmp/x", target, resume=True)
        assert os.listdir(target.parent) == ["x"]


def make_tree(root: Path) -> None:
    (root / "sub/empty").mkdir(parents=True)
    (root / "sub/ü\udcff").write_bytes(b"1" * 70_000)
    (root / ("long" * 50)).write_bytes(b"2" * 512)
    (root / "zero").touch()
    (root / "run").write_bytes(b"#!/bin/sh\n")
    os.chmod(root / "run", 0o755)
    os.chmod(root / "zero", 0o600)
    os.utime(root / "run", (1_000_000_000, 1_000_000_000))
    os.symlink("sub/empty", root / "link")
    os.symlink("../run", root / "sub/up")


def content(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if path.is_symlink():
            what: Any = os.readlink(path)
        else:
            what = path.read_bytes() if path.is_file() else "dir"
            what = (what, stat.S_IMODE(status.st_mode))
        found[str(path.relative_to(root))] = what
    return found


def test_directories_both_ways(guest: FakeGuest, tmp_path):
    make_tree(tmp_path / "here")
    expected = content(tmp_path / "here")
    with Sandbox() as s:
        seen: list[Any] = []
        info = s.files.upload_dir(
            tmp_path / "here", "/tmp/new/there", progress=lambda *a: seen.append(a)
        )
        assert (info.files, info.directories, info.links, info.skipped) == (4, 2, 2, ())
        assert info.size == 70_522 and info.path == "/tmp/new/there" and seen[-1][0] > 70_522
        assert content(guest.root / "tmp/new/there") == expected
        assert (guest.root / "tmp/new/there/run").stat().st_mtime == 1_000_000_000
        assert os.listdir(guest.root / "tmp") == ["new"]  # no archive is left
        back = s.files.download_dir("/tmp/new/there", str(tmp_path / "back" / "again"))
        assert content(tmp_path / "back" / "again") == expected
        assert (back.files, back.directories, back.links, back.size) == (4, 2, 2, 70_522)
        assert (tmp_path / "back/again/run").stat().st_mtime == 1_000_000_000
        assert os.listdir(guest.root / "tmp") == ["new"]
        # Over what is there: replaced, the rest stays.
        (tmp_path / "back/again/zero").write_bytes(b"other")
        (tmp_path / "back/again/mine").write_bytes(b"mine")
        s.files.download_dir("/tmp/new/there", tmp_path / "back" / "again")
        both = content(tmp_path / "back" / "again")
        assert both.pop("mine")[0] == b"mine" and both == expected
        s.files.upload_dir(tmp_path / "back" / "again", "/tmp/new/there")
        assert (guest.root / "tmp/new/there/mine").read_bytes() == b"mine"


def test_directories_do_not_wait_for_what_runs(guest: FakeGuest, tmp_path):
    make_tree(tmp_path / "here")
    with Sandbox() as s:
        with s.run_code_stream("print x\nsleep 60") as stream:
            next(stream)
            s.files.upload_dir(tmp_path / "here", "/tmp/there")
            assert s.files.download_dir("/tmp/there", tmp_path / "back").files == 4
            assert stream.interrupt()


def test_directories_that_cannot_be_copied(guest: FakeGuest, tmp_path):
    with Sandbox() as s:
        with pytest.raises(NotADirectoryError):
            s.files.upload_dir(tmp_path / "missing", "/tmp/x")
        with pytest.raises(FileNotFoundError):
            s.files.download_dir("/tmp/missing", tmp_path / "x")
        assert not (tmp_path / "x").exists()
        (guest.root / "tmp/file").touch()
        with pytest.raises(podflare.AlreadyExistsError):
            s.files.upload_dir(guest.root / "tmp", "/tmp/file")
        with pytest.raises(podflare.PodflareError, match="could not be copied.*tar"):
            s.files.download_dir("/tmp/file", tmp_path / "y")
        os.mkdir(tmp_path / "odd")
        os.mkfifo(tmp_path / "odd/fifo")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / "odd/socket"))
            info = s.files.upload_dir(tmp_path / "odd", "/tmp/odd")
        assert info.skipped == ("fifo", "socket") and info.files == 0
        assert sorted(os.listdir(guest.root / "tmp")) == ["file", "odd"]


def test_names_that_are_not_utf8(guest: FakeGuest):
    def answer(r):
        entry = {"path_base64": "L3RtcC//", "link_base64": "/w==", "type": "link", "mtime_ms": 1}
        r.reply(200, {"entries": [entry, {"path": "/tmp/ü", "link": "x", "type": "link"}]})

    with Sandbox() as s:
        guest.on("GET", f"/v1/sandboxes/{s.id}/files/list", answer)
        odd, usual = s.files.list("/tmp")
        assert (os.fsencode(odd.path), os.fsencode(odd.link or "")) == (b"/tmp/\xff", b"\xff")
        assert (usual.path, usual.link) == ("/tmp/ü", "x")
