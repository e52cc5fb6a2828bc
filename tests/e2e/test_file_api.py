# SPDX-License-Identifier: Apache-2.0
"""The files namespace of the SDK against a real sandbox."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from guest import py, sh

import podflare
from podflare import Sandbox


def test_the_namespace(box: Sandbox):
    f = box.files
    assert f.mkdir("/tmp/ns/a/b") is True and f.mkdir("/tmp/ns/a/b") is False
    with pytest.raises(podflare.RemoteFileNotFoundError):
        f.mkdir("/tmp/ns/x/y", parents=False)
    info = f.write("/tmp/ns/text", "häll\n")
    assert (info.path, info.size) == ("/tmp/ns/text", 6)
    assert f.read("/tmp/ns/text").decode() == "häll\n"
    sh(box, "cd /tmp/ns; ln -s text link; ln -s nowhere broken; echo x > a/b/deep")
    assert [one.name for one in f.list("/tmp/ns")] == ["a", "broken", "link", "text"]
    assert [one.path for one in f.list("/tmp/ns/a", depth=3)] == ["/tmp/ns/a/b", "/tmp/ns/a/b/deep"]
    text, link, broken = (f.stat(f"/tmp/ns/{name}") for name in ("text", "link", "broken"))
    assert (text.type, text.size, text.is_file, text.uid) == ("file", 6, True, 1000)
    assert (link.type, link.link, link.target_type, link.is_file) == ("link", "text", "file", True)
    assert (broken.link, broken.target_type) == ("nowhere", None)
    assert f.exists("/tmp/ns/broken") and not f.exists("/tmp/ns/no")
    assert not f.exists("/tmp/ns/text/below")
    f.chmod("/tmp/ns/text", 0o600)
    assert sh(box, "stat -c %a /tmp/ns/text") == "600\n"
    f.rename("/tmp/ns/text", "/tmp/ns/renamed")
    with pytest.raises(FileExistsError):
        f.rename("/tmp/ns/renamed", "/tmp/ns/link", overwrite=False)
    with pytest.raises(podflare.DirectoryNotEmptyError):
        f.remove("/tmp/ns")
    f.remove("/tmp/ns/link")
    f.remove("/tmp/ns", recursive=True)
    assert not f.exists("/tmp/ns")
    with pytest.raises(FileNotFoundError):
        f.remove("/tmp/ns")
    with pytest.raises(podflare.PermissionDeniedError):
        f.write("/etc/passwd", "mine")
    # Relative paths go the way of the interpreter.
    py(box, "import os; os.makedirs('/tmp/there', exist_ok=True); os.chdir('/tmp/there')")
    assert f.write("rel", b"1").path == "/tmp/there/rel" == f.stat("rel").path
    py(box, "os.chdir('/home/user')")


def test_parts_of_a_file(box: Sandbox):
    box.upload(bytes(range(256)) * 1000, "/tmp/parts")
    read = box.files.read
    assert read("/tmp/parts", offset=255_990) == bytes(range(246, 256))
    assert read("/tmp/parts", offset=256, length=3) == b"\x00\x01\x02"
    assert read("/tmp/parts", offset=255_999, length=100) == b"\xff"
    with pytest.raises(podflare.InvalidRequestError) as e:
        read("/tmp/parts", offset=256_000)
    assert e.value.status == 416


def test_a_download_that_breaks_and_goes_on(box: Sandbox, tmp_path: Path):
    size = 4 << 20
    py(box, f"import os; n = open('/tmp/big', 'wb').write(os.urandom({size}))")
    target, calls = tmp_path / "big", []

    def stop(done: int, total: Any) -> None:
        calls.append((done, total))
        if done > size // 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        box.download_to("/tmp/big", target, resume=True, progress=stop)
    assert not target.exists() and calls[-1][1] == size
    again: list[int] = []
    done = box.download_to(
        "/tmp/big", target, resume=True, progress=lambda done, total: again.append(done)
    )
    assert done == size and again[0] > size // 2 and again[-1] == size
    assert os.listdir(tmp_path) == ["big"]
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    assert digest == sh(box, "sha256sum < /tmp/big").split()[0]


def content(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in root.rglob("*"):
        if path.is_symlink():
            found[str(path.relative_to(root))] = os.readlink(path)
        else:
            what = path.read_bytes() if path.is_file() else "dir"
            found[str(path.relative_to(root))] = (what, stat.S_IMODE(path.lstat().st_mode))
    return found


def test_directories_both_ways(box: Sandbox, tmp_path: Path):
    here = tmp_path / "here"
    (here / "sub/empty").mkdir(parents=True)
    (here / "sub/ü").write_bytes(os.urandom(300_000))
    (here / ("long" * 40)).write_bytes(b"2" * 512)
    (here / "run").write_bytes(b"#!/bin/sh\necho ran\n")
    os.chmod(here / "run", 0o755)
    os.symlink("../run", here / "sub/up")
    info = box.files.upload_dir(here, "/tmp/tree/there")
    assert (info.files, info.directories, info.links, info.path) == (3, 2, 1, "/tmp/tree/there")
    assert sh(box, "/tmp/tree/there/sub/up; stat -c %U /tmp/tree/there/run") == "ran\nuser\n"
    assert sh(box, "ls -A /tmp | grep '\\.tar$' || true") == ""
    sh(box, "cd /tmp/tree/there; ln -s /etc/passwd out; ln -s ../../.. up; mkfifo pipe")
    back = box.files.download_dir("/tmp/tree/there", tmp_path / "back")
    assert sorted(back.skipped) == ["out", "pipe", "up"]
    assert content(tmp_path / "back") == content(here)
    assert sh(box, "ls -A /tmp | grep '\\.tar$' || true") == ""


EVIL_TAR = """#!/bin/sh
for a in "$@"; do case $a in --file=*) file=${a#--file=};; esac; done
exec /usr/bin/tar -P --transform 's,^,../../outside/,' -C /tmp/evil -cf "$file" x
"""


def test_an_archive_that_would_break_out(box: Sandbox, tmp_path: Path):
    """The sandbox's own tar is not trusted either."""
    box.upload(EVIL_TAR.encode(), "/tmp/evil/tar")
    sh(box, "echo x > /tmp/evil/x; sudo install -m 755 /tmp/evil/tar /usr/local/bin/tar")
    try:
        with pytest.raises(podflare.UnsafeArchiveError):
            box.files.download_dir("/tmp/evil", tmp_path / "a/b")
        assert os.listdir(tmp_path) == ["a"] and os.listdir(tmp_path / "a/b") == []
    finally:
        sh(box, "sudo rm /usr/local/bin/tar")
