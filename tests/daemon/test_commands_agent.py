"""Kept commands of an agent that means ill: lists, answers and conversations that are none."""

from collections.abc import Callable

import pytest

from conftest import Daemon
from kept import HERE, OK, base, begin, events, lie, raw_of, refused, watched, write

LIST = {
    "id": "a",
    "pid": 7,
    "state": "running",
    "code": "x",
    "cwd": "/",
    "started_ms": 5,
    "pty": False,
    "stdout": {"start": 0, "end": 0},
    "stderr": {"start": 0, "end": 0},
}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "a b"},
        {"id": 7},
        {"pid": -1},
        {"pid": "7"},
        {"state": "odd"},
        {"code": None},
        {"code": "x" * 5000},
        {"argv": "x"},
        {"argv": ["x" * 600, "y" * 600]},
        {"argv": [7]},
        {"cwd": 7},
        {"cwd": "x" * 20000},
        {"started_ms": -1},
        {"started_ms": 1.5},
        {"pty": 0},
        {"stdout": {"start": 5, "end": 4}},
        {"stderr": {"start": -1, "end": 4}},
        {"stderr": None},
        {"state": "ended"},
        {"state": "ended", "exit_code": 256, "reason": "exited"},
        {"state": "ended", "exit_code": 0, "reason": "odd"},
        {"state": "ended", "exit_code": 0, "reason": "exited", "signal": 65},
    ],
)
def test_lists_that_are_none(daemon: Daemon, change: dict) -> None:
    sid = daemon.create()
    lie(daemon, sid, (0x86, {"commands": [{**LIST, "more": 1}]}))
    assert daemon.http.get(base(sid)).status_code == 200
    assert daemon.http.get(base(sid, "a")).status_code == 200
    assert "more" not in daemon.http.get(base(sid)).text
    lie(daemon, sid, (0x86, {"commands": [LIST, {**LIST, **change}]}))
    for path in (base(sid), base(sid, "a")):
        assert refused(daemon.http.get(path)) == (502, "agent_error", None)


@pytest.mark.parametrize(
    "answer", [[], {}, {"commands": {}}, {"commands": [1]}, {"commands": [LIST] * 300}, "{", "7"]
)
def test_answers_that_are_none(daemon: Daemon, answer: object) -> None:
    sid = daemon.create()
    lie(daemon, sid, (0x86, answer))
    assert refused(daemon.http.get(base(sid))) == (502, "agent_error", None)
    r = daemon.http.get(base(sid, "a", "stream"))
    assert refused(r) == (502, "agent_error", None)
    assert refused(write(daemon, sid, "a", b"x")) == (502, "agent_error", None)
    assert daemon.exec(sid, "echo x")[0]["data"] == "x"


@pytest.mark.parametrize(
    "frames",
    [
        [(0x81, "early")],
        [(0x83, "{}")],
        [(0x89, {**HERE, "stdout": -1})],
        [(0x89, {**HERE, "pid": "x"})],
        [(0x89, {"type": "notice", "text": "early"})],
        [(0x86, HERE)],
        [(0x88, "")],
        [(0x8C, "abcd")],
        [(0x85, "")],
    ],
)
def test_conversations_that_begin_badly(daemon: Daemon, frames: list) -> None:
    sid = daemon.create()
    lie(daemon, sid, *frames)
    r = daemon.http.get(base(sid, "a", "stream"))
    assert refused(r) == (502, "agent_error", None)
    assert refused(write(daemon, sid, "a", b"x")) == (502, "agent_error", None)


@pytest.mark.parametrize(
    "frame",
    [
        (0x86, HERE),
        (0x89, {**HERE, "stdout": 3}),
        (0x89, {**HERE, "stdout": 4, "stderr": None}),
        (0x83, "{}"),
        (0x84, '{"code": "busy"}'),
        (0x87, "x"),
        (0x88, ""),
        (0x89, "{}"),
        (0x8B, "x"),
        (0x8C, "abcd"),
        (0x8C, "x"),
        (0x01, "x"),
    ],
)
def test_conversations_that_go_wrong(daemon: Daemon, frame: tuple) -> None:
    sid = daemon.create()
    lie(daemon, sid, OK, (0x81, "some"), frame)
    ev = events(daemon, sid, "a")
    assert raw_of(ev[1]) == b"some"
    assert ev[-1]["termination_reason"] == "agent_error" and ev[-1]["data"] == -1
    assert "broke the protocol" in ev[-2]["data"]
    assert daemon.exec(sid, "echo x")[0]["data"] == "x"


def test_output_that_is_thrown_away_meanwhile(daemon: Daemon) -> None:
    """Positions go on from where the agent says, never back."""
    sid = daemon.create()
    end = {"exit_code": 0, "reason": "exited", "state": "preserved", "duration_ms": 1}
    end |= {"truncated": True, "bytes_dropped": 6}
    behind = (0x89, {**HERE, "stdout": 10})
    lie(daemon, sid, OK, (0x81, "some"), behind, (0x81, "more"), (0x82, "x"), (0x83, end))
    ev = events(daemon, sid, "a")
    assert [(e["type"], e.get("offset")) for e in ev] == [
        ("started", None),
        ("stdout", 4),
        ("notice", None),
        ("stdout", 14),
        ("stderr", 1),
        ("exit", None),
    ]


def test_an_agent_that_says_nothing(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1"})
    sid = d.create()
    d.exec(sid, '#fake:set {"command_raw": "mute"}')
    for r in (
        d.http.get(base(sid)),
        d.http.get(base(sid, "a", "stream")),
        d.http.post(base(sid, "a", "stdin"), content=b"x"),
        d.http.post(base(sid, "a", "resize"), json={"cols": 1, "rows": 1}),
    ):
        assert refused(r) == (502, "agent_error", None)
        assert "did not answer" in r.json()["error"]
    d.exec(sid, '#fake:set {"command_raw": "close"}')
    assert refused(d.http.get(base(sid, "a", "stream"))) == (502, "agent_error", None)


def test_silence_is_allowed_but_not_death(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1"})
    sid = d.create()
    cid = begin(d, sid, "sleep 3.5; echo x; sleep 600")
    with watched(d, sid, cid) as seen:
        next(seen)
        assert next(seen)["data"] == "x\n"
        d.exec(sid, '#fake:set {"halted": true}')
        rest = list(seen)
    assert rest[-1]["termination_reason"] == "vm_ended"
