# SPDX-License-Identifier: Apache-2.0
"""How much a download may bring: the sandbox does not decide that."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any, Callable

import pytest

import podflare
from fake_daemon import DESCRIPTION, SANDBOX_ID, Request
from fake_guest import FakeGuest
from podflare import Sandbox, _http, _transfer

LIMIT = 300_000
# What may lie in buffers of sockets between the two.
BUFFERS = 24 << 20


class Endless:
    """A file without an end. announce: a length that is not the truth."""

    def __init__(self, guest: FakeGuest, announce: int = 0) -> None:
        self.sent, self._announce, self.ended = 0, announce, False
        guest.on_files("GET", self.answer)

    def answer(self, r: Request) -> None:
        piece = b"x" * 65536
        status = 206 if "range" in r.headers else 200
        self.ended = False
        try:
            if self._announce:
                r.reply(status, piece, announce=self._announce)
                r.cut()
                return
            handler = r._handler
            handler.send_response(status)
            handler.send_header("transfer-encoding", "chunked")
            handler.end_headers()
            while self.sent < 1 << 30:
                r.send(piece)
                self.sent += len(piece)
        finally:
            self.ended = True


def calls(s: Any, folder: Path, sink: io.BytesIO, **kw: Any) -> dict[str, Callable[[], Any]]:
    return {
        "read": lambda: s.files.read("/tmp/x", **kw),
        "download": lambda: s.download("/tmp/x", **kw),
        "to a path": lambda: s.download_to("/tmp/x", folder / "x", **kw),
        "to a file": lambda: s.download_to("/tmp/x", sink, **kw),
        "files": lambda: s.files.download_to("/tmp/x", folder / "x", **kw),
        "directory": lambda: s.files.download_dir("/tmp", folder, **kw),
    }


NAMES = ["read", "download", "to a path", "to a file", "files", "directory"]


@pytest.mark.parametrize("announce", [0, LIMIT + 1, 1 << 50])
@pytest.mark.parametrize("name", NAMES)
def test_no_more_than_was_allowed(guest: FakeGuest, tmp_path, name, announce):
    source, folder, sink = Endless(guest, announce), tmp_path / "out", io.BytesIO()
    folder.mkdir()
    s = Sandbox()
    with pytest.raises(podflare.TooLargeError, match=f"more than {LIMIT} bytes.*max_bytes") as e:
        calls(s, folder, sink, max_bytes=LIMIT)[name]()
    assert e.value.status is None
    deadline = time.monotonic() + 20
    while not source.ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert source.sent <= LIMIT + BUFFERS
    assert os.listdir(folder) == [] and len(sink.getvalue()) <= LIMIT
    assert sink.getvalue() == b"" or not announce


@pytest.mark.parametrize("name", NAMES)
def test_without_being_told(guest: FakeGuest, tmp_path, name, monkeypatch):
    """Bounded by what memory takes, or the disk of the sandbox."""
    monkeypatch.setattr(_transfer, "IN_MEMORY", LIMIT)
    monkeypatch.setattr(_transfer, "DISK_UNKNOWN", LIMIT)
    monkeypatch.setattr(_transfer, "DISK_AT_LEAST", 1 << 20)
    folder = tmp_path / "out"
    folder.mkdir()
    Endless(guest)
    memory = name in ("read", "download")
    with pytest.raises(podflare.TooLargeError, match=f"more than {LIMIT} bytes"):
        calls(Sandbox(), folder, io.BytesIO())[name]()
    told = {**DESCRIPTION, "disk_mib": 2}
    guest.on("POST", "/v1/sandboxes", lambda r: r.reply(200, told))
    guest.on("GET", f"/v1/sandboxes/{SANDBOX_ID}", lambda r: r.reply(200, told))
    for s in (Sandbox(), Sandbox.connect(SANDBOX_ID)):
        with pytest.raises(podflare.TooLargeError, match=f"than {LIMIT if memory else 2 << 20} b"):
            calls(s, folder, io.BytesIO())[name]()
    monkeypatch.setattr(_transfer, "DISK_AT_LEAST", 3 << 20)
    with pytest.raises(podflare.TooLargeError, match=f"than {LIMIT if memory else 3 << 20} b"):
        calls(Sandbox(), folder, io.BytesIO())[name]()
    assert os.listdir(folder) == []


def test_an_answer_without_an_end(guest: FakeGuest, monkeypatch):
    """Also of what is read as a whole: a list of files is written by the sandbox."""
    monkeypatch.setattr(_http, "REPLY_MAX", LIMIT)
    monkeypatch.setattr(_http, "REFUSAL_MAX", LIMIT)
    source = Endless(guest)
    guest.on("GET", f"/v1/sandboxes/{SANDBOX_ID}/files/list", source.answer)
    s = Sandbox()
    with pytest.raises(podflare.PodflareError, match=f"answer of .*list has over {LIMIT} bytes"):
        s.files.list("/tmp")
    assert source.sent <= LIMIT + BUFFERS
    sent = []

    def refuse(r: Request) -> None:
        r._handler.send_response(503)
        r._handler.send_header("transfer-encoding", "chunked")
        r._handler.end_headers()
        while len(sent) < 10_000:
            r.send(b"x" * 65536)
            sent.append(1)

    guest.on("GET", f"/v1/sandboxes/{SANDBOX_ID}/files/list", refuse)
    with pytest.raises(podflare.ServerError, match="HTTP 503: xxx") as e:
        s.files.list("/tmp")
    assert len(str(e.value)) < 300 and len(sent) * 65536 <= LIMIT + BUFFERS
    # What comes whole comes as ever.
    entry = {"path": "/tmp/x", "type": "file"}
    fits = {"entries": [entry] * (LIMIT // 50)}
    url = f"/v1/sandboxes/{SANDBOX_ID}/files/list"
    guest.on("GET", url, lambda r: r.reply(200, fits))
    assert len(s.files.list("/tmp")) == LIMIT // 50
    guest.on("GET", url, lambda r: r.reply(200, b'{"entries":' + b"[" * 200_000 + b"]" * 200_000))
    monkeypatch.setattr(_http, "REPLY_MAX", 1 << 20)
    with pytest.raises(podflare.PodflareError, match="not answer as a podflare daemon"):
        s.files.list("/tmp")


def test_what_is_just_allowed(guest: FakeGuest, tmp_path):
    data = os.urandom(LIMIT)
    (guest.root / "tmp/x").write_bytes(data)
    s = Sandbox()
    assert s.download("/tmp/x", max_bytes=LIMIT) == data
    assert s.files.read("/tmp/x", offset=9, length=1 << 40) == data[9:]
    assert s.files.read("/tmp/x", length=5, max_bytes=5) == data[:5]
    assert s.files.read("/tmp/x", offset=LIMIT - 5, max_bytes=5) == data[-5:]
    assert s.download_to("/tmp/x", tmp_path / "x", max_bytes=LIMIT) == LIMIT
    assert s.download_to("/tmp/x", tmp_path / "x", resume=True, max_bytes=LIMIT) == LIMIT
    with pytest.raises(podflare.TooLargeError):
        s.files.read("/tmp/x", length=6, max_bytes=5)
    for wrong, error in ((-1, ValueError), ("5", TypeError), (True, TypeError), (1.5, TypeError)):
        for name, call in calls(s, tmp_path / "y", io.BytesIO(), max_bytes=wrong).items():
            with pytest.raises(error, match="max_bytes"):
                call()
    assert not (tmp_path / "y").exists()


def test_a_part_that_is_more_than_was_asked_for(guest: FakeGuest, tmp_path):
    (guest.root / "tmp/x").write_bytes(b"x" * 1000)
    source, folder = Endless(guest), tmp_path / "out"
    folder.mkdir()
    s = Sandbox()
    with pytest.raises(podflare.TooLargeError):
        s.files.read("/tmp/x", length=1000)
    assert source.sent <= BUFFERS
    source.sent = 0
    with pytest.raises(podflare.TooLargeError):
        s.download_to("/tmp/x", folder / "x", resume=True)
    assert source.sent <= BUFFERS and sum(f.stat().st_size for f in folder.iterdir()) <= 1000
    # Nothing is begun that would be too much in the end.
    (guest.root / "tmp/x").write_bytes(b"x" * 2000)
    del guest.requests[:]
    with pytest.raises(podflare.TooLargeError, match="more than 1999 bytes"):
        s.download_to("/tmp/x", folder / "y", resume=True, max_bytes=1999)
    assert [r.path.rpartition("/")[2] for r in guest.requests] == ["stat"]
    assert not (folder / "y").exists()
