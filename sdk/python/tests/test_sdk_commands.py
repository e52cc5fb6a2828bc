# SPDX-License-Identifier: Apache-2.0
"""sandbox.commands: what is asked, and what is made of the answers."""

from __future__ import annotations

import signal
import threading
import tracemalloc
from typing import Any

import pytest

import podflare
from fake_daemon import SANDBOX_ID, FakeDaemon, Request
from podflare import Sandbox, _exec
from podflare._kept import Tail

BASE = f"/v1/sandboxes/{SANDBOX_ID}/commands"
STARTED = {"type": "started", "command_id": "c", "pid": 7, "stdout": 0, "stderr": 0}
EXIT = {"type": "exit", "data": 3, "exit_code": 3, "termination_reason": "exited"}
TOLD = {
    "command_id": "c",
    "pid": 7,
    "state": "running",
    "language": "bash",
    "code": "sleep 9",
    "cwd": "/tmp",
    "started_at": 1776510028036,
    "pty": False,
    "stdout": {"start": 0, "end": 5},
    "stderr": {"start": 1, "end": 2},
}


def starts(daemon: FakeDaemon) -> None:
    """Lets commands be started."""
    daemon.on("POST", BASE, lambda r: r.reply(200, {"command_id": "c", "pid": 7}))


def streams(daemon: FakeDaemon, *events: dict[str, Any]) -> None:
    """What a command's stream has."""
    daemon.on("GET", f"{BASE}/c/stream", lambda r: r.events(*events))


def asked(daemon: FakeDaemon, path: str) -> list[Request]:
    """The requests for this path."""
    return [r for r in daemon.requests if r.path == path]


def test_in_the_foreground_it_is_an_exec(daemon: FakeDaemon):
    daemon.on_exec(lambda r: r.events({"type": "stdout", "data": "x"}, EXIT))
    pieces: list[str] = []
    with Sandbox() as s:
        r = s.commands.run(["ls", "-l"], cwd="/tmp", on_stdout=pieces.append)
        assert (r.stdout, r.exit_code, pieces) == ("x", 3, ["x"])
        s.commands.run("ls | wc", stdin="in", timeout=None)
    one, two = (r.json for r in daemon.requests if r.path.endswith("/exec"))
    assert one["argv"] == ["ls", "-l"] and one["cwd"] == "/tmp" and one["timeout"] == 300
    assert two["code"] == "ls | wc" and two["language"] == "bash"
    assert two["stdin"] == "in" and two["timeout"] == 0


def test_the_request(daemon: FakeDaemon):
    starts(daemon)
    with Sandbox() as s:
        c = s.commands.run("  ls\n  wc", background=True)
        assert (c.id, c.pid) == ("c", 7)
        s.commands.run(
            ["top"],
            background=True,
            cwd="/tmp",
            env={"A": "b"},
            user="root",
            stdin=True,
            timeout=5,
            pty=(80, 24),
            id="my-top",
        )
    assert [r.json for r in asked(daemon, BASE)] == [
        {"code": "ls\nwc", "language": "bash", "stdin": False, "timeout": 0},
        {
            "argv": ["top"],
            "cwd": "/tmp",
            "env": {"A": "b"},
            "user": "root",
            "stdin": True,
            "timeout": 5,
            "pty": {"cols": 80, "rows": 24},
            "command_id": "my-top",
        },
    ]


@pytest.mark.parametrize(
    "wish",
    [
        {"background": True, "stdin": "text"},
        {"background": True, "on_stdout": print},
        {"background": True, "id": "a/b"},
        {"background": True, "timeout": -1},
        {"stdin": True},
        {"pty": (80, 24)},
        {"id": "x"},
    ],
)
def test_what_cannot_be_meant(daemon: FakeDaemon, wish: dict[str, Any]):
    with Sandbox() as s:
        with pytest.raises((TypeError, ValueError)):
            s.commands.run("true", **wish)
        with pytest.raises((TypeError, ValueError)):
            s.commands.run([], background=True)
    assert not asked(daemon, BASE)


def test_wait(daemon: FakeDaemon):
    starts(daemon)
    out = {"type": "stdout", "data": "/w==", "encoding": "base64", "offset": 1}
    streams(daemon, STARTED, out, {"type": "stderr", "data": "e", "offset": 1}, EXIT)
    errors: list[str] = []
    with Sandbox() as s:
        c = s.commands.run("x", background=True)
        r = c.wait(on_stderr=errors.append)
        assert (r.stdout_bytes, r.stderr, r.exit_code, r.exec_id) == (b"\xff", "e", 3, "c")
        assert errors == ["e"] and r.termination_reason == "exited"
        assert c.wait(timeout=60).exit_code == 3  # again, as often as one likes
    assert asked(daemon, f"{BASE}/c/stream")[0].query == {"stdout": "0", "stderr": "0"}


def test_wait_keeps_a_bounded_amount(daemon: FakeDaemon, monkeypatch):
    """The end of each stream, as the sandbox does; what is missing is counted."""
    monkeypatch.setattr(_exec, "OUTPUT", 1000)
    starts(daemon)
    out = [{"type": "stdout", "data": f"{n:04}"} for n in range(1000)]
    err = {"type": "stderr", "data": "e" * 1001}
    streams(daemon, STARTED, *out, err, EXIT)
    with Sandbox() as s:
        c = s.commands.run("x", background=True)
        r = c.wait()
        assert r.stdout == "".join(f"{n:04}" for n in range(750, 1000)) and r.stderr == "e" * 1000
        assert r.truncated and r.bytes_dropped == 3001
        assert "3001 bytes" in r.notices[-1] and "the last" in r.notices[-1]
        assert "3001 bytes of output left out" in str(r)
        seen: list[str] = []
        c.wait(on_stdout=seen.append)
        assert len(seen) == 1000
        missed = {"truncated": True, "bytes_dropped": 9}
        streams(daemon, STARTED, err, {**EXIT, **missed})
        assert c.wait().bytes_dropped == 10
        streams(daemon, STARTED, err)
        with pytest.raises(podflare.StreamBrokenError) as e:
            c.wait()
        assert e.value.stderr == b"e" * 1000
        streams(daemon, STARTED, out[0], EXIT)
        assert not c.wait().truncated and not c.wait().notices


@pytest.mark.sync_only
def test_small_pieces_take_no_more_than_large_ones():
    tail = Tail(100_000)
    tracemalloc.start()
    try:
        for n in range(300_000):
            tail.add(b"%d" % (n % 10))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert bytes(tail) == b"0123456789" * 10_000 and tail.dropped == 200_000


def test_wait_no_longer_than(daemon: FakeDaemon):
    starts(daemon)
    gone = threading.Event()

    def slow(r: Request) -> None:
        r.start_stream()
        r.send(b'{"type":"stdout","data":"some","offset":4}\n')
        gone.wait(20)
        r.cut()

    daemon.on("GET", f"{BASE}/c/stream", slow)
    with Sandbox() as s:
        c = s.commands.run("x", background=True)
        with pytest.raises(podflare.RequestTimeoutError, match="it runs on") as caught:
            c.wait(timeout=0.5)
        assert isinstance(caught.value, TimeoutError) and caught.value.stdout == b"some"
        gone.set()


def test_iteration_and_positions(daemon: FakeDaemon):
    starts(daemon)
    streams(daemon, STARTED, {"type": "stdout", "data": "ab", "offset": 2}, EXIT)
    with Sandbox() as s:
        c = s.commands.run("x", background=True)
        events = list(c)
        assert [e.type for e in events] == ["stdout", "exit"]
        assert events[0].extra["offset"] == 2 and events[-1].code == 3
        assert [e.type for e in c.events(stdout=2, stderr=-1)] == ["stdout", "exit"]
    last = asked(daemon, f"{BASE}/c/stream")[-1]
    assert last.query == {"stdout": "2", "stderr": "-1"}


def test_a_stream_that_breaks(daemon: FakeDaemon):
    starts(daemon)

    def broken(r: Request) -> None:
        r.start_stream()
        r.send(b'{"type":"stdout","data":"some","offset":4}\n')
        r.cut()

    daemon.on("GET", f"{BASE}/c/stream", broken)
    with Sandbox() as s:
        c = s.commands.run("x", background=True)
        with pytest.raises(podflare.StreamBrokenError) as caught:
            c.wait()
        assert caught.value.stdout == b"some"


def test_signals_writes_and_the_rest(daemon: FakeDaemon):
    starts(daemon)
    daemon.on("POST", f"{BASE}/c/signal", lambda r: r.reply(200, {"ended": r.json["signal"] == 1}))
    daemon.on("POST", f"{BASE}/c/stdin", lambda r: r.reply(204))
    daemon.on("POST", f"{BASE}/c/resize", lambda r: r.reply(204))
    daemon.on("DELETE", f"{BASE}/c", lambda r: r.reply(204))
    with Sandbox() as s:
        c = s.commands.run("x", background=True, stdin=True)
        assert c.kill() is True
        assert c.signal("SIGTERM", group=False) is True
        assert c.signal(signal.SIGHUP) is False
        c.write("ü")
        c.write(b"\xff", close=True)
        c.close_stdin()
        c.resize(80, 24)
        c.delete()
        with pytest.raises(TypeError):
            c.signal(None)
        with pytest.raises(TypeError):
            c.write(7)
    assert [r.json for r in asked(daemon, f"{BASE}/c/signal")] == [
        {"signal": "KILL", "group": True},
        {"signal": "SIGTERM", "group": False},
        {"signal": 1, "group": True},
    ]
    writes = [(r.body, r.query) for r in asked(daemon, f"{BASE}/c/stdin")]
    assert writes == [("ü".encode(), {}), (b"\xff", {"close": "1"}), (b"", {"close": "1"})]
    assert asked(daemon, f"{BASE}/c/resize")[0].json == {"cols": 80, "rows": 24}


def test_list_info_connect(daemon: FakeDaemon):
    end = {"state": "ended", "exit_code": 137, "termination_reason": "signaled", "signal": 9}
    other = {k: v for k, v in TOLD.items() if k not in ("code", "cwd")}
    other |= {"command_id": "d", "argv": ["a", "b"], **end}
    daemon.on("GET", BASE, lambda r: r.reply(200, {"commands": [TOLD, other]}))
    daemon.on("GET", f"{BASE}/c", lambda r: r.reply(200, TOLD))
    with Sandbox() as s:
        one, two = s.commands.list()
        assert (one.id, one.state, one.command, one.cwd) == ("c", "running", "sleep 9", "/tmp")
        assert (one.stdout, one.stderr, one.exit_code) == ((0, 5), (1, 2), None)
        assert (two.command, two.cwd, two.exit_code, two.signal) == (["a", "b"], None, 137, 9)
        c = s.commands.connect("c")
        assert (c.id, c.pid) == ("c", 7) and c.info() == one


@pytest.mark.parametrize(
    "status,code,kind",
    [
        (404, "command_not_found", podflare.CommandNotFoundError),
        (409, "command_exists", podflare.AlreadyExistsError),
        (409, "command_ended", podflare.CommandEndedError),
        (409, "stdin_closed", podflare.CommandEndedError),
        (429, "too_many_commands", podflare.RateLimitedError),
        (409, "sandbox_ended", podflare.SandboxEndedError),
    ],
)
def test_errors(daemon: FakeDaemon, status: int, code: str, kind: type):
    answer = {"error": "no", "code": code}
    for method, path in (("POST", BASE), ("GET", f"{BASE}/c"), ("POST", f"{BASE}/c/stdin")):
        daemon.on(method, path, lambda r: r.reply(status, answer))
    with Sandbox() as s:
        with pytest.raises(kind):
            s.commands.run("x", background=True)
        with pytest.raises(kind):
            s.commands.connect("c")
        with pytest.raises(ValueError):
            s.commands.connect("../x")


def test_a_sandbox_that_was_closed(daemon: FakeDaemon):
    starts(daemon)
    with Sandbox() as s:
        c = s.commands.run("x", background=True)
        commands = s.commands
    with pytest.raises(podflare.SandboxEndedError):
        commands.run("x", background=True)
    with pytest.raises(podflare.SandboxEndedError):
        c.kill()
