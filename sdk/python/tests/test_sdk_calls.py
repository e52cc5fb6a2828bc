# SPDX-License-Identifier: Apache-2.0
"""How calls are made and end: options, callbacks, time-outs, interrupts, contexts, argument lists."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from pathlib import PurePosixPath
from typing import Any, Callable

import pytest

import podflare
from fake_daemon import FakeDaemon
from fake_guest import FakeGuest
from podflare import Sandbox, _exec


class Later(threading.Thread):
    """Calls something in a thread; `result()` waits for what it returned or raised."""

    def __init__(self, what: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._what = what
        self.start()

    def run(self) -> None:
        try:
            self._outcome, self._error = self._what(), None
        except BaseException as exc:
            self._outcome, self._error = None, exc

    def result(self) -> Any:
        self.join(20)
        assert not self.is_alive()
        if self._error is not None:
            raise self._error
        return self._outcome


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def last_body(daemon: FakeDaemon) -> dict[str, Any]:
    return [r.json for r in daemon.requests if r.path.endswith("/exec") and r.body][-1]


def test_options_are_sent_as_they_are_meant(guest: FakeGuest):
    with Sandbox() as s:
        c = s.create_context("other")
        s.run_code(
            "body",
            "javascript",
            timeout=2.5,
            context=c,
            cwd=PurePosixPath("/tmp"),
            env={"A": "b"},
            user="root",
            stdin="typed\n",
            output_limit=65536,
            output_limit_action="end",
            queue_timeout=0,
        )
        body = last_body(guest)
        body.pop("exec_id")
        assert body == {
            "code": "body",
            "language": "javascript",
            "rich": True,
            "timeout": 2.5,
            "context_id": "other",
            "cwd": "/tmp",
            "env": {"A": "b"},
            "user": "root",
            "stdin": "typed\n",
            "output_limit": 65536,
            "output_limit_action": "end",
            "queue_timeout": 0,
        }
        s.run_code("", stdin="a\0")
        assert last_body(guest)["stdin_base64"] == base64.b64encode(b"a\0").decode()
        s.run_code("", stdin=b"\xff")
        assert last_body(guest)["stdin_base64"] == base64.b64encode(b"\xff").decode()
        for none in (0, None):
            s.run_code("", timeout=none)
            assert last_body(guest)["timeout"] == 0


@pytest.mark.parametrize(
    "options, error",
    [
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": float("inf")}, ValueError),
        ({"timeout": "5"}, TypeError),
        ({"output_limit_action": "kill"}, ValueError),
        ({"queue_timeout": -1}, ValueError),
        ({"queue_timeout": "1"}, TypeError),
        ({"timeout": True}, TypeError),
        ({"context": "a/b"}, ValueError),
        ({"context": 5}, TypeError),
        ({"stdin": 5}, TypeError),
    ],
)
def test_options_that_cannot_be_meant(guest: FakeGuest, options, error):
    with Sandbox() as s:
        with pytest.raises(error):
            s.run_code("", **options)
        with pytest.raises(error):
            s.exec(["x"], **options)
    assert not guest.runs


def test_an_argument_list(guest: FakeGuest):
    with Sandbox() as s:
        r = s.exec(["cat", "a b", "", "$HOME", PurePosixPath("/x"), "é"], stdin="i", timeout=1)
        assert json.loads(r.stdout) == ["cat", "a b", "", "$HOME", "/x", "é"]
        body = last_body(guest)
        assert "code" not in body and "language" not in body and body["stdin"] == "i"
        assert [e.type for e in s.exec_stream(["x"])] == ["stdout", "exit"]
        for wrong in ("ls -l", b"ls", [b"ls"], [1]):
            with pytest.raises(TypeError):
                s.exec(wrong)
        with pytest.raises(ValueError):
            s.exec([])


def test_callbacks_are_called_in_order_as_things_happen(guest: FakeGuest):
    calls: list[Any] = []
    ran = threading.Event()

    def note(piece: str) -> None:
        calls.append(piece)
        ran.set()

    with Sandbox() as s:
        call = Later(
            lambda: s.run_code(
                'print 1\nshow {"text/plain": "7"}\nwarn 2\nsleep 0.3\nprint 3\nraise E',
                on_stdout=note,
                on_stderr=lambda piece: calls.append(("err", piece)),
                on_result=lambda result: calls.append(result.text),
                on_error=lambda error: calls.append(error.name),
            )
        )
        assert ran.wait(20) and "3\n" not in calls  # it runs still
        r = call.result()
        assert calls == ["1\n", "7", ("err", "2\n"), "3\n", "E"]
        assert (r.stdout, r.stderr, r.text, r.exit_code) == ("1\n3\n", "2\n", "7", 1)


def test_a_callback_that_raises_ends_the_command(guest: FakeGuest):
    def fail(piece: str) -> None:
        raise ZeroDivisionError

    with Sandbox() as s:
        with pytest.raises(ZeroDivisionError):
            s.run_code("print 1\nsleep 0.2\nprint 2\nprint 3\nsleep 60", on_stdout=fail)
        (run,) = guest.runs.values()
        until(lambda: run.state == "ended" or s.interrupt(run.id))


def test_a_command_that_reaches_its_timeout_is_a_result(guest: FakeGuest):
    with Sandbox() as s:
        r = s.run_code("print before\nsleep 60", timeout=0.2)
        assert (r.termination_reason, r.exit_code, r.ok, r.state) == (
            "timeout",
            124,
            False,
            "preserved",
        )
        assert r.stdout == "before\n"


def test_interrupt_from_another_thread(guest: FakeGuest):
    with Sandbox() as s:
        call = Later(lambda: s.run_code("print begun\nsleep 60"))
        until(lambda: s.list_execs())
        assert s.interrupt() is True
        r = call.result()
        assert (r.termination_reason, r.exit_code, r.stdout) == ("interrupted", 130, "begun\n")
        assert s.interrupt() is False  # nothing runs: nothing is asked, and the next one is safe
        assert s.run_code("print next").stdout == "next\n"


def test_an_interrupt_that_overtakes_its_call(guest: FakeGuest):
    """It is bound to that call by a name that the client chose, also before the daemon knows it."""
    guest.late = 0.3
    with Sandbox() as s:
        call = Later(lambda: s.run_code("sleep 60"))
        until(lambda: s._underway.targets())
        assert s.interrupt() is True
        assert call.result().termination_reason == "interrupted"
        assert any(
            r.path.endswith("/interrupt") and r.json == {"escalate": False} for r in guest.requests
        )


def test_interrupt_leaves_those_that_wait_alone(guest: FakeGuest):
    with Sandbox() as s:
        first = Later(lambda: s.run_code("sleep 60"))
        until(lambda: [e.state for e in s.list_execs()] == ["running"])
        # The client has seen that it runs.
        until(lambda: s._underway._started and all(s._underway._started.values()))
        second = Later(lambda: s.run_code("print second"))
        third = Later(lambda: s.run_code("print third"))
        until(lambda: len(s.list_execs()) == 3)
        waiting = [e for e in s.list_execs() if e.state == "queued"]
        assert len(waiting) == 2 and all(e.started_at is None for e in waiting)
        # By name one that waits is taken out.
        assert s.interrupt(waiting[0].exec_id) is True
        assert s.interrupt() is True
        assert first.result().termination_reason == "interrupted"
        reasons = sorted([second.result().termination_reason, third.result().termination_reason])
        assert reasons == ["exited", "interrupted"]


def test_escalate(guest: FakeGuest):
    with Sandbox() as s:
        stream = s.run_code_stream("print x\nhang")
        assert next(stream).data == "x\n" and stream.started
        assert stream.exec_id in guest.runs
        assert stream.interrupt() is True
        time.sleep(0.1)
        assert [e.exec_id for e in s.list_execs()] == [stream.exec_id]
        assert stream.interrupt(escalate=True) is True
        (last,) = list(stream)
        assert (last.code, last.extra["termination_reason"]) == (130, "interrupted")
        assert stream.interrupt() is False


def test_interrupt_of_what_nobody_knows(guest: FakeGuest):
    with Sandbox() as s:
        with pytest.raises(podflare.ExecNotFoundError):
            s.interrupt("unknown")
        with pytest.raises(ValueError):
            s.interrupt("a/b")


def test_all_contexts_of_this_object_are_interrupted(guest: FakeGuest):
    with Sandbox() as s, s.create_context() as c:
        calls = [Later(lambda: s.run_code("sleep 60")), Later(lambda: c.run_code("sleep 60"))]
        until(lambda: list(s._underway._started.values()) == [True, True])
        s.interrupt()
        assert [call.result().exit_code for call in calls] == [130, 130]


def test_the_started_event_is_not_passed_on(guest: FakeGuest):
    with Sandbox() as s:
        stream = s.run_code_stream("print x")
        assert not stream.started
        assert [e.type for e in stream] == ["stdout", "exit"]
        r = s.run_code("print x")
        assert r.exec_id in guest.runs and r.exec_id != stream.exec_id


def test_closing_a_stream_ends_the_command(guest: FakeGuest):
    with Sandbox() as s:
        with s.run_code_stream("print x\nsleep 0.2\nprint y\nprint z\nsleep 60") as stream:
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
        assert not s._underway.targets()


def test_a_daemon_that_never_ends_a_command(daemon: FakeDaemon, monkeypatch):
    """The client gives up some time after the command's own time-out, with what had arrived."""
    monkeypatch.setattr(_exec, "GRACE", 0.3)
    over = threading.Event()

    def answer(r):
        r.start_stream()
        r.send(
            b'{"type":"started","exec_id":"x"}\n{"type":"stdout","data":"half","seq":1,"ts":0}\n'
        )
        over.wait(20)

    daemon.on_exec(answer)
    with Sandbox() as s:
        start = time.monotonic()
        with pytest.raises(podflare.RequestTimeoutError, match="has not ended the command") as e:
            s.run_code("", timeout=0.2)
        assert 0.4 < time.monotonic() - start < 15 and e.value.stdout == b"half"
        # Waiting for its turn does not count, nor does a command without a time-out.
        monkeypatch.setattr(_exec, "GRACE", 0.1)

        def slow(r):
            if r.json["timeout"]:
                r.start_stream()
                time.sleep(0.6)
                r.send(b'{"type":"started","exec_id":"x"}\n')
            else:
                r.start_stream()
                r.send(b'{"type":"started","exec_id":"x"}\n')
                time.sleep(0.6)
            r.send(b'{"type":"exit","data":0}\n')
            r.end_stream()

        daemon.on_exec(slow)
        assert s.run_code("", timeout=0.1).ok
        assert s.run_code("", timeout=0).ok
    over.set()


def test_a_daemon_that_says_when_it_answers(daemon: FakeDaemon, monkeypatch):
    """Then that is what the client goes by: twice as long, and the time for the way."""
    monkeypatch.setattr(_exec, "WAY", 0.2)
    over = threading.Event()

    def answer(r):
        r.start_stream()
        r.send(b'{"type":"started","exec_id":"x","grace_ms":100}\n')
        over.wait(20)

    daemon.on_exec(answer)
    with Sandbox() as s:
        start = time.monotonic()
        with pytest.raises(podflare.RequestTimeoutError, match=r"not ended the command 0\.6 s"):
            s.run_code("", timeout=0.2)
        assert 0.6 <= time.monotonic() - start < 15
    over.set()


def test_output_of_which_nobody_knows(daemon: FakeDaemon):
    """A guest that did not answer: what is missing cannot be counted."""
    end = {"type": "exit", "data": 124, "truncated": True, "bytes_dropped": 0, "state": "lost"}
    daemon.on_exec(lambda r: r.events({"type": "started"}, end | {"termination_reason": "timeout"}))
    with Sandbox() as s:
        r = s.run_code("", timeout=1)
        assert r.truncated and r.termination_reason == "timeout"
        assert "may be missing" in r.notices[-1]


def test_a_deadline_that_was_kept_hurts_nobody(daemon: FakeDaemon, monkeypatch):
    """The connection is used again after the call; the deadline of that call must not cut it."""
    monkeypatch.setattr(_exec, "GRACE", 0.2)
    daemon.on_exec(lambda r: r.events({"type": "started"}, {"type": "exit", "data": 0}))
    with Sandbox() as s:
        s.run_code("", timeout=0.1)

        def slow(r):
            r.start_stream()
            r.send(b'{"type":"started"}\n')
            time.sleep(0.6)
            r.send(b'{"type":"exit","data":0}\n')
            r.end_stream()

        daemon.on_exec(slow)
        assert s.run_code("", timeout=0).ok


def test_a_program_that_takes_its_time_loses_nothing(daemon: FakeDaemon, monkeypatch):
    """The deadline is for the daemon, not for who reads slowly."""
    monkeypatch.setattr(_exec, "GRACE", 0.1)
    daemon.on_exec(
        lambda r: r.events(
            {"type": "started"},
            *[{"type": "stdout", "data": f"{n}"} for n in range(3)],
            {"type": "exit", "data": 0},
        )
    )
    with Sandbox() as s:
        seen = []
        for event in s.run_code_stream("", timeout=0.1):
            seen.append(event.data)
            time.sleep(0.4)
        assert seen == ["0", "1", "2", 0]


def test_contexts(guest: FakeGuest):
    with Sandbox() as s:
        s.run_code("set x 1")
        with s.create_context("mine", cwd="/tmp", user="root", language="python") as c:
            assert (c.id, c.info.cwd, c.info.user, c.info.state) == (
                "mine",
                "/tmp",
                "root",
                "ready",
            )
            assert c.run_code("get x").stdout == "nothing"
            c.run_code("set x 2")
            assert s.run_code("get x", context="mine").stdout == "2"
            assert s.run_code("get x").stdout == "1"
            assert [e.data for e in c.run_code_stream("get x")][0] == "2"
            assert [one.id for one in s.list_contexts()] == ["default", "mine"]
            with pytest.raises(podflare.AlreadyExistsError):
                s.create_context("mine")
            c.restart()
            assert c.run_code("get x", timeout=5).stdout == "nothing"
        assert [one.id for one in s.list_contexts()] == ["default"]
        with pytest.raises(podflare.ContextNotFoundError):
            c.run_code("")
        with pytest.raises(podflare.ContextNotFoundError):
            c.delete()
        c.close()  # it is gone, and that is what was wanted
        with pytest.raises(ValueError):
            s.create_context("a b")
        own = [s.create_context() for _ in range(7)]
        assert len({one.id for one in own}) == 7
        with pytest.raises(podflare.RateLimitedError):
            s.create_context()
    own[0].close()  # with the sandbox


def test_contexts_run_beside_each_other(guest: FakeGuest):
    with Sandbox() as s, s.create_context() as c:
        call = Later(lambda: s.run_code("sleep 60"))
        until(lambda: s.list_execs())
        assert c.run_code("print at once").stdout == "at once\n"
        s.interrupt()
        call.result()


def test_members_that_the_daemon_does_not_know_are_an_error(guest: FakeGuest):
    """The stub refuses what the contract does not have, so that these tests would notice."""
    with Sandbox() as s:
        s._check_open()
    import httpx

    reply = httpx.post(
        f"{guest.url}/v1/sandboxes/{s.id}/exec", json={"code": "", "lang": "x"}, trust_env=False
    )
    assert reply.status_code == 400 and "lang" in reply.json()["error"]


def test_connections_notice_that_the_other_machine_is_gone(guest: FakeGuest, monkeypatch):
    options = []
    real = socket.socket.setsockopt
    monkeypatch.setattr(
        socket.socket,
        "setsockopt",
        lambda self, *args: (options.append(args[:2]), real(self, *args))[1],
    )
    with Sandbox():
        pass
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE) in options
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY) in options
