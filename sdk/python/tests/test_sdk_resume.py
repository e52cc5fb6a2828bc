# SPDX-License-Identifier: Apache-2.0
"""Uploads that go on after the connection broke."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

import podflare
from fake_daemon import Request
from fake_guest import FakeGuest
from podflare import Sandbox, _transfer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same patience, without the waiting."""
    pause = _transfer.Patience.pause
    monkeypatch.setattr(_transfer.Patience, "pause", lambda self, exc: pause(self, exc) * 0)


def offsets(guest: FakeGuest) -> list[int]:
    """Where the bodies of uploads began."""
    return [int(r.query["offset"]) for r in guest.requests if "offset" in r.query]


def test_goes_on_where_it_was(guest: FakeGuest, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    local = tmp_path / "local"
    local.write_bytes(b"head" + data)
    with local.open("rb") as file:
        file.seek(4)
        for source in (data, io.BytesIO(data), file):
            guest.cuts = [1_000_000, 0, 500_000]
            del guest.requests[:]
            told: list[tuple[int, object]] = []
            info = Sandbox().upload(source, "big", resume=True, progress=lambda *a: told.append(a))
            assert info == podflare.FileInfo("/home/user/big", len(data))
            assert (guest.root / "home/user/big").read_bytes() == data
            assert offsets(guest) == [0, 1_000_000, 1_000_000, 1_500_000]
            assert told[-1] == (len(data), len(data))
    assert guest.parts == {}


def test_another_call_goes_on(guest: FakeGuest, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(os.urandom(2_000_000))
    for source in (local, local.read_bytes()):
        guest.cuts = [700_000] + [0] * 9
        del guest.requests[:]
        s = Sandbox()
        with pytest.raises(podflare.DaemonUnreachableError):
            s.upload(source, "big", resume=True)
        # Once, and eight times more.
        assert offsets(guest) == [0] + [700_000] * 9
        guest.cuts = []
        assert s.upload(source, "big", resume=True).size == 2_000_000
        assert offsets(guest)[-1] == 700_000
        assert (guest.root / "home/user/big").read_bytes() == local.read_bytes()


def test_another_version_begins_anew(guest: FakeGuest, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"a" * 2_000_000)
    guest.cuts = [700_000] + [0] * 9
    s = Sandbox()
    with pytest.raises(podflare.DaemonUnreachableError):
        s.upload(local, "big", resume=True)
    guest.cuts = []
    local.write_bytes(b"b" * 2_000_000)
    os.utime(local, (1, 1))
    s.upload(local, "big", resume=True)
    assert offsets(guest)[-1] == 0
    assert (guest.root / "home/user/big").read_bytes() == b"b" * 2_000_000


def test_a_file_that_changes_between_two_connections(guest: FakeGuest, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.write_bytes(b"a" * 2_000_000)
    guest.cuts = [700_000]

    def change(done: int, total: object) -> None:
        os.utime(local, (done, done))

    with pytest.raises(podflare.PodflareError, match="was changed while it was uploaded"):
        Sandbox().upload(local, "big", resume=True, progress=change)


def test_what_is_tried_again(guest: FakeGuest) -> None:
    s = Sandbox()
    guest.refuse_parts = ["upload_busy", "upload_busy", "wrong_offset"]
    assert s.upload(b"abc", "f", resume=True).size == 3
    assert (guest.root / "home/user/f").read_bytes() == b"abc"
    guest.refuse_parts = ["upload_busy"] * 9
    with pytest.raises(podflare.PodflareError, match="not now") as e:
        s.upload(b"abc", "f", resume=True)
    assert e.value.code == "upload_busy" and guest.refuse_parts == []
    guest.refuse_parts = ["disk_full"]
    with pytest.raises(podflare.DiskFullError):
        s.upload(b"abc", "f", resume=True)
    assert s.files.upload(b"", "empty", resume=True).size == 0


def answers(guest: FakeGuest, *sizes: object, whole: object = False) -> None:
    """Whatever is sent, so much is there, and not whole."""
    told = list(sizes)

    def answer(r: Request) -> None:
        if len(guest.requests) > 200:
            r.cut()  # it would go on for ever
        size = told.pop(0) if len(told) > 1 else told[0]
        r.reply(200, {"path": "/f", "size": size, "complete": whole})

    guest.on_files("PUT", answer)


def test_an_upload_that_never_is_whole(guest: FakeGuest) -> None:
    s = Sandbox()
    for have in (0, 2, 3):
        answers(guest, have)
        del guest.requests[:]
        with pytest.raises(podflare.StreamBrokenError, match="all of it.*not whole"):
            s.upload(b"abc", "f", resume=True)
        # Asked and sent, once and eight times more.
        assert len([r for r in guest.requests if r.method == "PUT"]) == 2 * 9
    # A byte more each time: as many times as there are bytes.
    answers(guest, *[n // 18 for n in range(18 * 4)])
    del guest.requests[:]
    with pytest.raises(podflare.StreamBrokenError, match="not whole"):
        s.upload(b"abc", "f", resume=True)
    assert len(guest.requests) <= 2 * 9 * 4


@pytest.mark.parametrize("size", [-1, 4, 1 << 60, "2", 1.5, None, True])
def test_so_much_that_cannot_have_arrived(guest: FakeGuest, tmp_path: Path, size: object) -> None:
    """What is sent then would not be what was given: of a file what is before it, for one."""
    local = tmp_path / "local"
    local.write_bytes(b"secretabc")
    answers(guest, size)
    with local.open("rb") as file:
        file.seek(6)
        with pytest.raises(podflare.PodflareError, match="3 bytes"):
            Sandbox().upload(file, "f", resume=True)
    assert all(r.body == b"" for r in guest.requests if r.method == "PUT")


@pytest.mark.sync_only
def test_the_pauses_are_bounded() -> None:
    patience = _transfer.Patience()
    broken = podflare.StreamBrokenError("x")
    for _ in range(_transfer.Patience.TRIES):
        patience.pause(broken)
    patience.arrived(1)
    patience.pause(broken)


def test_what_cannot_be_read_again(guest: FakeGuest) -> None:
    class Pipe(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return b""

    with pytest.raises(ValueError, match="a file that can seek"):
        Sandbox().upload(Pipe(), "f", resume=True)
