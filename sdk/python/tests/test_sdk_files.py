# SPDX-License-Identifier: Apache-2.0
"""upload and download."""

from __future__ import annotations

import io
import os
import pathlib

import pytest

import podflare
from fake_daemon import FakeDaemon
from podflare import Sandbox

NAME = "/tmp/a b/ü&?#.bin"


def store(daemon: FakeDaemon) -> dict[str, bytes]:
    """Let the daemon keep files in a dict."""
    files: dict[str, bytes] = {}

    def put(r):
        files[r.query["path"]] = r.body
        r.reply(200, {"path": r.query["path"], "size": len(r.body)})

    def get(r):
        if r.query["path"] in files:
            r.reply(200, files[r.query["path"]])
        else:
            r.reply(404, {"error": "no such file", "code": "file_not_found"})

    daemon.on_files("PUT", put)
    daemon.on_files("GET", get)
    return files


@pytest.mark.parametrize("data", [b"", b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bytes_both_ways_in_both_orders(daemon: FakeDaemon, data):
    files = store(daemon)
    with Sandbox() as s:
        assert s.upload(data, NAME) == podflare.FileInfo(NAME, len(data))
        assert s.upload("data.csv", data) == podflare.FileInfo("data.csv", len(data))
        assert s.upload(path="k", data=data).path == "k"
        assert files == {NAME: data, "data.csv": data, "k": data}
        assert s.download(NAME) == data
    assert daemon.requests[1].headers["content-length"] == str(len(data))


def test_files_are_streamed(daemon: FakeDaemon, tmp_path):
    files = store(daemon)
    content = os.urandom(300_000)
    local = tmp_path / "local"
    local.write_bytes(content)
    s = Sandbox()
    with open(local, "rb") as file:
        s.upload(file, "/whole")
        file.seek(100_000)
        s.upload(file, "/from where it stands")
        assert not file.closed
    s.upload(local, "/path")
    s.upload("/swapped", local)
    s.upload(io.BytesIO(content), pathlib.PurePosixPath("/bytesio"))
    assert files.pop("/from where it stands") == content[100_000:]
    assert set(files.values()) == {content} and len(files) == 4
    assert daemon.requests[1].headers["content-length"] == "300000"

    class Pipe(io.RawIOBase):
        """Cannot seek, so nobody knows its length."""

        left = [b"ab", b"c", b""]

        def read(self, size=-1):
            return self.left.pop(0)

    s.upload(Pipe(), "/pipe")
    assert files["/pipe"] == b"abc"
    assert daemon.requests[-1].headers["transfer-encoding"] == "chunked"


def test_upload_of_what_cannot_be_understood(daemon: FakeDaemon, tmp_path):
    store(daemon)
    s = Sandbox()
    with pytest.raises(TypeError, match="both are str"):
        s.upload("text", "/tmp/x")
    with pytest.raises(TypeError, match="not int and str"):
        s.upload(5, "/tmp/x")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        s.upload(tmp_path / "missing", "/tmp/x")
    with pytest.raises(TypeError, match="binary mode"):
        s.upload(io.StringIO("text"), "/tmp/x")  # type: ignore[arg-type]


def test_a_file_that_changes_while_it_is_sent(daemon: FakeDaemon):
    files = store(daemon)

    class Shrinking(io.BytesIO):
        def read(self, size=-1):
            self.truncate(2)
            return super().read(size)

    with pytest.raises(podflare.PodflareError, match="1 bytes shorter"):
        Sandbox().upload(Shrinking(b"abc"), "/x")
    assert files == {}

    class Growing(io.BytesIO):
        def read(self, size=-1):
            here = self.tell()
            self.seek(0, os.SEEK_END)
            self.write(b"more")
            self.seek(here)
            return super().read(size)

    Sandbox().upload(Growing(b"abc"), "/x")
    assert files == {"/x": b"abc"}


def test_upload_errors(daemon: FakeDaemon):
    s = Sandbox()
    daemon.on_files("PUT", lambda r: r.reply(413, {"error": "full", "code": "disk_full"}))
    with pytest.raises(podflare.DiskFullError, match="full"):
        s.upload(b"x", "/x")
    daemon.on_files(
        "PUT", lambda r: r.reply(400, {"error": "is a directory", "code": "is_directory"})
    )
    with pytest.raises(podflare.InvalidRequestError) as e:
        s.upload(b"x", "/tmp")
    assert e.value.code == "is_directory"


def test_download_to(daemon: FakeDaemon, tmp_path):
    files = store(daemon)
    files["/x"] = os.urandom(200_000)
    s = Sandbox()
    target = tmp_path / "x"
    assert s.download_to("/x", target) == 200_000
    assert target.read_bytes() == files["/x"]
    assert os.listdir(tmp_path) == ["x"]
    buffer = io.BytesIO()
    assert s.download_to("/x", buffer) == 200_000
    assert buffer.getvalue() == files["/x"]


def test_download_that_fails_leaves_the_local_file_alone(daemon: FakeDaemon, tmp_path):
    store(daemon)
    s = Sandbox()
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        s.download_to("/missing", target)
    assert isinstance(pytest.raises(podflare.NotFoundError, s.download, "/missing").value, OSError)

    def half(r):
        r.start_stream()
        r.send(b"half of it")
        r.cut()

    daemon.on_files("GET", half)
    with pytest.raises(podflare.StreamBrokenError):
        s.download_to("/x", target)
    with pytest.raises(podflare.StreamBrokenError):
        s.download("/x")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]
