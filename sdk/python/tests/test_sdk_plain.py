# SPDX-License-Identifier: Apache-2.0
"""What a sandbox, or whoever answers, says in an error gives no orders to a terminal, ends no line of a
log, and turns nothing around."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from typing import Any

import pytest

import podflare
from fake_daemon import SANDBOX_ID, FakeDaemon
from fake_guest import FakeGuest
from podflare import Sandbox, _tar

EVIL = "a\x1b[2J\nERROR forged\u202eb\u2028c\x9bd\x00\r"
BAD = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
EXIT = {"type": "exit", "data": 0}


def check(exc: BaseException) -> str:
    """All of an exception that may be shown, on one line and plain."""
    said = "|".join([str(exc), *map(str, exc.args), str(getattr(exc, "message", ""))])
    assert not BAD.search(said), ascii(said)
    said.encode()
    return said


def raised(kind: type[BaseException], call: Any) -> str:
    with pytest.raises(kind) as e:
        call()
    return check(e.value)


@pytest.mark.sync_only
def test_every_error_of_ours():
    every = "".join(map(chr, range(0x3000))) + "\udcff\ue000\U0001f600"
    error = podflare.PodflareError(every, hint=every)
    for text in (error.message, error.hint or "", str(error), error.args[0]):
        assert not BAD.search(text.replace("\n", ""))
        assert "\n" in text and "\\x1b" in text and "\\u202e" in text and "\\udcff" in text
        assert "äé\U0001f600" in text or ("ä" in text and "\U0001f600" in text)
    assert podflare.PodflareError("a\r\nb\tc").message == "a\nb\\x09c"
    fork = podflare.ForkError("\x1b", hint="\x1b", code="x", errors=[error])
    assert (fork.message, fork.hint, fork.code, fork.errors) == ("\\x1b", "\\x1b", "x", [error])


def test_what_some_server_says(daemon: FakeDaemon):
    daemon.on("POST", "/v1/sandboxes", lambda r: r.reply(502, EVIL.encode()))
    said = raised(podflare.ServerError, Sandbox)
    assert "HTTP 502: a\\x1b[2J ERROR forged\\u202eb\\u2028c" in said


def test_a_line_that_is_no_event(daemon: FakeDaemon):
    def answer(r: Any) -> None:
        r.start_stream()
        r.send(b'{"type": "stdout", "data": "\x1b\xe2\x80\xae\xff\r", "x\n')
        r.end_stream()

    daemon.on_exec(answer)
    s = Sandbox()
    said = raised(podflare.StreamBrokenError, lambda: s.run_code(""))
    assert "\\x1b\\u202e\ufffd" in said


def test_what_tar_says(guest: FakeGuest, tmp_path):
    def answer(r: Any) -> None:
        r.events({"type": "stderr", "data": "\n" + EVIL}, {"type": "exit", "data": 2})

    guest.on_exec(answer)
    s = Sandbox()
    said = raised(podflare.PodflareError, lambda: s.files.download_dir("/tmp", tmp_path / "x"))
    assert "copied in the sandbox: a\\x1b[2J" in said


def of(name: str, kind: bytes = tarfile.REGTYPE) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.type = kind
        tar.addfile(info)
    file.seek(0)
    return file


@pytest.mark.sync_only
def test_names_in_an_archive(tmp_path):
    name = EVIL.replace("\0", "") + "\udcff"
    (tmp_path / name).mkdir()
    raised(IsADirectoryError, lambda: _tar.unpack(of(name), tmp_path))
    (tmp_path / name).rmdir()
    (tmp_path / name).touch()
    raised(FileExistsError, lambda: _tar.unpack(of(f"{name}/x"), tmp_path))
    raised(podflare.UnsafeArchiveError, lambda: _tar.unpack(of(f"../{name}"), tmp_path))
    # Within what tarfile says.
    evil = bytearray(of("x").getvalue())
    evil[148:156] = b"\x1b\n\x9b\xff\xff\xff\xff\xff"
    raised(podflare.PodflareError, lambda: _tar.unpack(io.BytesIO(bytes(evil)), tmp_path))


def test_what_a_watch_says(guest: FakeGuest):
    folder = guest.root / "home" / "user" / "a\x1b\nb\u202e"
    folder.mkdir()
    os.mkdir(folder / "x")
    s = Sandbox()

    def begin(path: str, **options: Any) -> Any:
        return s.files.watch(path, **options).__enter__()

    path = f"/home/user/{folder.name}"
    guest.watch_edit = lambda line: b"\x1b\xe2\x80\xae no event\n"
    said = raised(podflare.PodflareError, lambda: begin(path))
    assert "says what is no event" in said and "\\u202e no event" in said
    told = {"type": "error", "code": "x", "message": EVIL}
    guest.watch_edit = lambda line: json.dumps(told).encode() + b"\n"
    assert "ERROR forged" in raised(podflare.PodflareError, lambda: begin(path))
    guest.watch_edit = lambda line: line
    with begin(path, timeout=0.01) as changes:
        assert "nothing has changed" in raised(TimeoutError, lambda: next(changes))
        changes.timeout = None
        for one in s.list_execs():  # also those before, which may not have ended yet
            s.interrupt(one.exec_id, escalate=True)
        assert "ended by itself" in raised(podflare.PodflareError, lambda: next(changes))

    def fails(r: Any) -> None:
        r.events({"type": "stderr", "data": EVIL}, {"type": "exit", "data": 1})

    guest.on_exec(fails)
    assert "ERROR forged" in raised(podflare.PodflareError, lambda: begin(path))
    (folder / "file\x1b\n").touch()
    raised(podflare.InvalidRequestError, lambda: begin(f"{path}/file\x1b\n"))


def test_a_file_that_was_changed(guest: FakeGuest, tmp_path):
    shown = [3, 4]

    def describe(r: Any) -> None:
        size, at = 3, shown.pop()
        r.reply(200, {"path": f"/tmp/{EVIL}", "type": "file", "size": size, "mtime_ms": at})

    guest.on_files("GET", lambda r: r.reply(206, b"abc"))
    guest.on("GET", f"/v1/sandboxes/{SANDBOX_ID}/files/stat", describe)
    s = Sandbox()
    said = raised(
        podflare.PodflareError, lambda: s.download_to("/x", tmp_path / "x", resume=True)
    )
    assert "was changed in the sandbox" in said


def test_a_form_that_cannot_be_saved(daemon: FakeDaemon, tmp_path):
    daemon.on_exec(lambda r: r.events({"type": "result", "data": {EVIL: "x"}}, EXIT))
    r = Sandbox().run_code("")
    assert "there is: a\\x1b" in raised(ValueError, lambda: r.save(tmp_path / "x.png"))
