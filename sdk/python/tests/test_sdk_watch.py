# SPDX-License-Identifier: Apache-2.0
"""files.watch: the real program of the guest behind a fake daemon. What the program can do is tested in
tests/repl."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import podflare
from fake_guest import FakeGuest
from podflare import AsyncSandbox, FileEvent, Sandbox, _watch


@pytest.fixture
def home(guest: FakeGuest) -> Path:
    return guest.root / "home" / "user"


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def some(changes: Any, count: int) -> list[FileEvent]:
    return [next(changes) for _ in range(count)]


def begin(s: Any, path: str, **options: Any) -> Any:
    """A watch that is in place, with both kinds of classes."""
    changes = s.files.watch(path, **options)
    return changes.__enter__()


def test_events(guest: FakeGuest, home: Path) -> None:
    (home / "old").mkdir()
    s = Sandbox()
    with begin(s, ".") as changes:
        assert changes.path == "/home/user"
        (home / "a").write_text("x")
        at = "/home/user"
        assert some(changes, 2) == [
            FileEvent("created", f"{at}/a"),
            FileEvent("modified", f"{at}/a"),
        ]
        os.rename(home / "a", home / "old" / "b")
        (home / "old" / "b").unlink()
        (home / "old").rmdir()
        assert some(changes, 3) == [
            FileEvent("moved", f"{at}/old/b", False, f"{at}/a"),
            FileEvent("deleted", f"{at}/old/b"),
            FileEvent("deleted", f"{at}/old", is_dir=True),
        ]
        os.mkdir(os.fsencode(home) + b"/\xff")
        (event,) = some(changes, 1)
        assert os.fsencode(event.path) == b"/home/user/\xff"
    until(lambda: guest.watches == 0)


def test_what_the_command_is(guest: FakeGuest, home: Path) -> None:
    (home / "d").mkdir()
    s = Sandbox()
    with begin(s, "d", recursive=False), begin(s, "/home/user"):
        one, two = [r.json for r in guest.requests if r.path.endswith("/exec")]
        program = ["/usr/bin/python3", "-I", "-S", "-X", "utf8", "/run/podflare/repl/watch.py"]
        assert one["argv"] == [*program, "/home/user/d"]
        assert two["argv"] == [*program, "--recursive", "/home/user"]
        assert one["timeout"] == 0 and one["context_id"] != two["context_id"]
        # It is in nobody's way, and not what `interrupt` is for.
        assert s.run_code("print 1").stdout == "1\n"
        assert s.interrupt() is False
        assert guest.watches == 2


def test_time_out_for_each_event(guest: FakeGuest, home: Path) -> None:
    s = Sandbox()
    with begin(s, ".", timeout=0.05) as changes:
        for _ in range(2):
            with pytest.raises(podflare.RequestTimeoutError, match="nothing has changed in /home"):
                next(changes)
        changes.timeout = None
        (home / "a").mkdir()
        assert next(changes).path == "/home/user/a"  # it has gone on
        assert isinstance(podflare.RequestTimeoutError("x"), TimeoutError)


def test_the_end(guest: FakeGuest, home: Path) -> None:
    (home / "d").mkdir()
    s = Sandbox()
    changes = begin(s, "d")
    shutil.rmtree(home / "d")
    assert [event for event in changes] == [FileEvent("deleted", "/home/user/d", is_dir=True)]
    assert list(changes) == []
    changes.close()
    changes = begin(s, ".")
    changes.close()
    assert list(changes) == []
    until(lambda: guest.watches == 0)


def test_close_from_elsewhere(guest: FakeGuest, home: Path) -> None:
    s = Sandbox()
    changes = begin(s, ".")
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.extend(changes))
    waiting.start()
    (home / "a").mkdir()
    until(lambda: got)
    changes.close()
    waiting.join(60)
    assert not waiting.is_alive() and len(got) == 1
    until(lambda: guest.watches == 0)


@pytest.mark.sync_only
def test_one_that_is_dropped_ends(guest: FakeGuest, home: Path) -> None:
    changes = Sandbox().files.watch(".")
    assert guest.watches == 1
    del changes
    gc.collect()
    until(lambda: guest.watches == 0)


def test_what_cannot_be_watched(guest: FakeGuest, home: Path) -> None:
    (home / "file").write_text("x")
    s = Sandbox()
    with pytest.raises(podflare.RemoteFileNotFoundError):
        begin(s, "missing")
    with pytest.raises(podflare.InvalidRequestError) as e:
        begin(s, "file")
    assert e.value.code == "not_a_directory" and "/home/user/file is not a dir" in str(e.value)

    limit = {
        "type": "error",
        "code": "too_many_watches",
        "message": "the sandbox's kernel allows 5",
    }
    guest.watch_edit = lambda line: json.dumps(limit).encode() + b"\n"
    with pytest.raises(podflare.PodflareError, match="allows 5") as e2:
        begin(s, ".")
    assert e2.value.code == "too_many_watches"

    guest.watch_edit = lambda line: b"nonsense\n"
    with pytest.raises(podflare.PodflareError, match="says what is no event: nonsense"):
        begin(s, ".")


def test_a_watch_that_never_begins(guest: FakeGuest, home: Path, monkeypatch: Any) -> None:
    """The program in the sandbox may be another one by now."""
    monkeypatch.setattr(_watch, "READY", 0.3)
    s = Sandbox()
    for said in (b"", b'{"type": "created"'):
        guest.watch_edit = lambda line: said
        for options in ({}, {"timeout": 0.05}):
            start = time.monotonic()
            with pytest.raises(podflare.RequestTimeoutError, match="/home/user has not begun"):
                begin(s, ".", **options)
            assert 0.25 < time.monotonic() - start < 20
            until(lambda: guest.watches == 0)
    # Who would wait longer for an event waits as long for this.
    monkeypatch.setattr(_watch, "READY", 0.01)
    guest.watch_edit = lambda line: time.sleep(0.2) or line
    begin(s, ".", timeout=20).close()


@pytest.mark.parametrize("first", ["created", "overflow", "again", "end", "strange"])
def test_a_watch_that_begins_with_something_else(
    guest: FakeGuest, home: Path, monkeypatch: Any, first: str
) -> None:
    monkeypatch.setattr(_watch, "READY", 20.0)
    told = {"type": first, "path": "/x", "dir": False}
    guest.watch_edit = lambda line: json.dumps(told).encode() + b"\n"
    with pytest.raises(podflare.PodflareError, match="before it began"):
        begin(Sandbox(), ".")
    until(lambda: guest.watches == 0)


def test_a_watch_that_begins_twice(guest: FakeGuest, home: Path) -> None:
    s = Sandbox()
    with begin(s, ".") as changes:
        guest.watch_edit = lambda line: b'{"type": "ready"}\n'
        (home / "a").mkdir()
        with pytest.raises(podflare.PodflareError, match="says what is no event"):
            next(changes)


def test_a_watch_that_says_a_line_without_an_end(guest: FakeGuest, home: Path) -> None:
    s = Sandbox()
    for said in (b"x" * 3_000_000, b"[" * 200_000 + b"\n"):
        guest.watch_edit = lambda line: said
        with pytest.raises(podflare.PodflareError, match="says what is no event: [x[]{100}"):
            begin(s, ".")
        until(lambda: guest.watches == 0)


@pytest.mark.parametrize(
    "odd",
    [
        {"path": "/" + "a" * 70_000},
        {"path": "/" + "a" * 20_000},
        {"path": ["/x"]},
        {"path": None},
        {"from": {"x": [[]] * 10}},
        {"from": 7},
        {"from": "/" + "b" * 20_000},
        {"more": "c" * 70_000},
    ],
)
def test_an_event_that_is_none(guest: FakeGuest, home: Path, odd: Any) -> None:
    """What it has in it is kept until the program asks: short names, and nothing else."""
    told = {"type": "moved", "path": "/x", "dir": False, "from": "/y", **odd}
    s = Sandbox()
    with begin(s, ".") as changes:
        guest.watch_edit = lambda line: json.dumps(told).encode() + b"\n"
        (home / "a").mkdir()
        with pytest.raises(podflare.PodflareError, match="says what is no event: {") as e:
            next(changes)
        assert len(str(e.value)) < 1000


def test_the_longest_names(guest: FakeGuest, home: Path) -> None:
    """Of bytes that are not UTF-8, each of which takes six in JSON."""
    path, old = ("/" + "\udcff" * 4095, "/" + "\udcfe" * 4095)
    told = {"type": "moved", "path": path, "dir": False, "from": old}
    s = Sandbox()
    with begin(s, ".") as changes:
        guest.watch_edit = lambda line: json.dumps(told).encode() + b"\n"
        (home / "a").mkdir()
        assert next(changes) == FileEvent("moved", path, False, old)


@pytest.mark.sync_only
def test_what_waits_is_counted() -> None:
    """By what it takes, not by its number; close() ends who waits for room."""
    event = FileEvent("created", "/" + "\U0001f600" * 10_000)  # 40 kB
    box = _watch._Mailbox()
    done: list[int] = []

    def fill() -> None:
        for i in range(5_000):
            box.put(event)
            done.append(i)

    for _ in range(2):
        thread = threading.Thread(target=fill, daemon=True)
        thread.start()
        last = -1
        while last != len(done):
            last = len(done)
            time.sleep(0.3)
        assert thread.is_alive() and 1500 < len(done) < 1800
        # What is taken makes room.
        assert [box.get(1) for _ in range(100)] == [event] * 100
        until(lambda: len(done) == last + 100)
        box.close()
        thread.join(60)
        assert not thread.is_alive() and not box._waiting
        box = _watch._Mailbox()
        done.clear()


@pytest.mark.sync_only
def test_closed_by_two_tasks_at_once(guest: FakeGuest, home: Path) -> None:
    async def main() -> None:
        async with AsyncSandbox() as s:
            for _ in range(5):
                changes = await s.files.watch(".")
                waiting = asyncio.ensure_future(changes.__anext__())
                await asyncio.sleep(0.01)
                first = asyncio.ensure_future(changes.close())
                await asyncio.sleep(0)
                # One that is cancelled leaves it to the others.
                first.cancel()
                await asyncio.gather(changes.close(), changes.close(), changes.close())
                with pytest.raises(StopAsyncIteration):
                    await waiting
                assert [event async for event in changes] == []
                await changes.close()
            # Without an event that is awaited, too.
            changes = await s.files.watch(".")
            await asyncio.gather(changes.close(), changes.close())

    asyncio.run(asyncio.wait_for(main(), 60))
    until(lambda: guest.watches == 0)


def test_one_that_is_killed(guest: FakeGuest, home: Path) -> None:
    s = Sandbox()
    changes = begin(s, ".")
    (exec_info,) = s.list_execs()
    s.interrupt(exec_info.exec_id, escalate=True)
    with pytest.raises(podflare.PodflareError, match="/home/user has ended by itself: interrupted"):
        next(changes)


def test_after_much_output_it_is_started_again(guest: FakeGuest, home: Path) -> None:
    """Between the two nobody watches, and this is told."""
    s = Sandbox()
    changes = begin(s, ".")
    guest.watch_edit = lambda line: b'{"type": "again"}\n' if b"/last" in line else line
    (home / "last").mkdir()
    assert next(changes) == FileEvent("overflow", "/home/user")
    (home / "new").mkdir()
    assert next(changes) == FileEvent("created", "/home/user/new", is_dir=True)
    changes.close()


def test_cancelled_in_asyncio(guest: FakeGuest, home: Path) -> None:
    async def main() -> None:
        async with AsyncSandbox() as s:
            async with s.files.watch(".") as changes:
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(changes.__anext__(), 0.05)
                assert [event async for event in changes] == []
            changes = await s.files.watch(".")
            (home / "a").mkdir()
            async for event in changes:
                assert event == FileEvent("created", "/home/user/a", is_dir=True)
                break
            await changes.close()
            async for event in s.files.watch(".", timeout=0.01):
                raise AssertionError(event)

    with pytest.raises(podflare.RequestTimeoutError):
        asyncio.run(asyncio.wait_for(main(), 60))
    until(lambda: guest.watches == 0)
