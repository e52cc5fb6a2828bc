# SPDX-License-Identifier: Apache-2.0
"""run_code and run_code_stream: what is asked, and how the answer is put together."""

from __future__ import annotations

import base64
import re
import threading

import pytest

import podflare
from fake_daemon import SANDBOX_ID, FakeDaemon
from podflare import Sandbox, _exec
from podflare._exec import dedent
from podflare._exec import Decoder

EXIT = {
    "type": "exit",
    "data": 0,
    "termination_reason": "exited",
    "state": "preserved",
    "duration_ms": 3,
}


def test_the_request(daemon: FakeDaemon):
    daemon.on_exec(lambda r: r.events(EXIT))
    with Sandbox() as s:
        s.run_code("print(1)")
        s.run_code("true", "bash")
        s.run_code("true", language="bash", cwd="/tmp", env={"A": "b"})
    bodies = [r.json for r in daemon.requests if r.path.endswith("/exec")]
    ids = {body.pop("exec_id") for body in bodies}
    usual = {"rich": True, "timeout": 300}
    assert bodies == [
        {"code": "print(1)", "language": "python", **usual},
        {"code": "true", "language": "bash", **usual},
        {"code": "true", "language": "bash", **usual, "cwd": "/tmp", "env": {"A": "b"}},
    ]
    assert len(ids) == 3 and all(re.fullmatch("[A-Za-z0-9_-]{1,64}", id) for id in ids)


def test_output_is_put_together_exactly(daemon: FakeDaemon):
    daemon.on_exec(
        lambda r: r.events(
            {"type": "stdout", "data": "no newline"},
            {"type": "stderr", "data": "oops\n"},
            {"type": "stdout", "data": ", now one\r\nand \u2028 line \x85 separators\n"},
            {"type": "result", "data": {"text/plain": "42"}},
            {"type": "notice", "data": "hm", "from": "guest"},
            {"type": "notice", "data": "a disk", "seq": 5},
            {"type": "a-type-of-tomorrow", "data": 1},
            {
                "type": "exit",
                "data": 7,
                "termination_reason": "exited",
                "state": "lost",
                "duration_ms": 12,
            },
        )
    )
    r = Sandbox().run_code("")
    assert r.stdout == "no newline, now one\r\nand \u2028 line \x85 separators\n"
    assert r.stderr == "oops\n"
    assert (r.exit_code, r.termination_reason, r.state, r.duration_ms) == (7, "exited", "lost", 12)
    assert r.text == "42" and [one.data for one in r.results] == [{"text/plain": "42"}]
    assert r.notices == ("hm", "a disk") and r.host_notices == ("a disk",)
    assert not r.ok


def test_binary_output(daemon: FakeDaemon):
    every_byte = bytes(range(256))
    daemon.on_exec(
        lambda r: r.events(
            {"type": "stdout", "data": "a\u00e9"},
            {
                "type": "stdout",
                "data": base64.b64encode(every_byte).decode(),
                "encoding": "base64",
            },
            EXIT,
        )
    )
    r = Sandbox().run_code("")
    assert r.stdout_bytes == "aé".encode() + every_byte
    assert r.stdout == ("aé".encode() + every_byte).decode("utf-8", "replace")
    r.stdout.encode()  # whatever the guest prints can be printed again


def test_exception_in_the_code(daemon: FakeDaemon):
    daemon.on_exec(
        lambda r: r.events(
            {"type": "stderr", "data": "Traceback ...\nValueError: x\n"},
            {"type": "error", "name": "ValueError", "value": "x", "traceback": ["T", "V"]},
            {"type": "exit", "data": 1},
        )
    )
    r = Sandbox().run_code("")
    assert r.exit_code == 1
    assert r.error == podflare.ExecError("ValueError", "x", "T\nV")


def test_stream_yields_events_as_they_come(daemon: FakeDaemon):
    seen = threading.Event()

    def answer(r):
        r.start_stream()
        r.send(b'{"type":"stdout","data":"0\\n","seq":0,"ts":5}\n{"type":"std')
        assert seen.wait(10)
        r.send(b'err","data":"1\\n","seq":1,"ts":6}\n')
        r.send(b'{"type":"exit","data":3,"seq":2,"ts":7}\n')
        r.end_stream()

    daemon.on_exec(answer)
    events = []
    for event in Sandbox().run_code_stream("for i in range(3): print(i)"):
        events.append(event)
        seen.set()
    assert [(e.type, e.data, e.seq, e.ts, e.code) for e in events] == [
        ("stdout", "0\n", 0, 5, None),
        ("stderr", "1\n", 1, 6, None),
        ("exit", 3, 2, 7, 3),
    ]
    assert events[0].raw == b"0\n"


def test_leaving_a_stream_early_closes_the_connection(daemon: FakeDaemon):
    closed = threading.Event()

    def answer(r):
        r.start_stream()
        try:
            while True:
                r.send(b'{"type":"stdout","data":"y","seq":0,"ts":0}\n')
        except OSError:
            closed.set()
            raise

    daemon.on_exec(answer)
    for event in Sandbox().run_code_stream("yes", "bash"):
        break
    assert closed.wait(10)


@pytest.mark.parametrize("ending", ["cut", "end_stream"])
def test_a_stream_without_exit_event_is_an_error(daemon: FakeDaemon, ending):
    def answer(r):
        r.start_stream()
        r.send(b'{"type":"stdout","data":"half","seq":0,"ts":0}\n')
        r.send(b'{"type":"stderr","data":"of it","seq":1,"ts":0}\n{"type":"ex')
        getattr(r, ending)()

    daemon.on_exec(answer)
    s = Sandbox()
    with pytest.raises(podflare.StreamBrokenError) as e:
        s.run_code("")
    assert e.value.stdout == b"half" and e.value.stderr == b"of it"
    with pytest.raises(podflare.StreamBrokenError):
        list(s.run_code_stream(""))


def test_a_connection_that_breaks_after_the_exit_event_loses_nothing(daemon: FakeDaemon):
    def answer(r):
        r.start_stream()
        r.send(b'{"type":"exit","data":0,"seq":0,"ts":0}\n')
        r.cut()

    daemon.on_exec(answer)
    assert Sandbox().run_code("").ok


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[]\n",
        b'{"type":"stdout"}\n',
        b'{"type":"stdout","data":5,"seq":0,"ts":0}\n',
        b'{"type":"stdout","data":"*","encoding":"base64","seq":0,"ts":0}\n',
        b'{"type":"exit","data":null,"seq":0,"ts":0}\n',
    ],
)
def test_a_line_that_is_no_event_is_an_error(daemon: FakeDaemon, line):
    def answer(r):
        r.start_stream()
        r.send(line)
        r.end_stream()

    daemon.on_exec(answer)
    with pytest.raises(podflare.StreamBrokenError, match="not an event"):
        Sandbox().run_code("")


def test_a_number_that_python_does_not_take(daemon: FakeDaemon):
    """It is left as its digits, and the end of the command comes."""
    digits = "1" * 5000

    def answer(r):
        r.start_stream()
        line = '{"type":"result","data":{"application/json":{"n":%s,"m":-7}},"seq":0,"ts":0}\n'
        r.send((line % digits).encode())
        r.send(b'{"type":"exit","data":0,"seq":1,"ts":0}\n')
        r.end_stream()

    daemon.on_exec(answer)
    execution = Sandbox().run_code("")
    assert execution.ok
    assert execution.results[0].json == {"n": digits, "m": -7}


def test_a_sandbox_that_ends_during_a_command_is_a_result(daemon: FakeDaemon):
    daemon.on_exec(
        lambda r: r.events(
            {"type": "stderr", "data": "podflare: sandbox ended: powered off\n"},
            {"type": "exit", "data": -1, "termination_reason": "vm_ended", "state": "lost"},
        )
    )
    r = Sandbox().run_code("sudo poweroff", "bash")
    assert (r.exit_code, r.termination_reason, r.ok) == (-1, "vm_ended", False)


def test_an_error_reply_to_exec(daemon: FakeDaemon):
    daemon.on_exec(
        lambda r: r.reply(
            400, {"error": "unknown language", "code": "invalid_request", "field": "language"}
        )
    )
    with pytest.raises(podflare.InvalidRequestError) as e:
        Sandbox().run_code("", language="ruby")  # type: ignore[arg-type]
    assert e.value.field == "language"


def test_code_must_be_text(daemon: FakeDaemon):
    with pytest.raises(TypeError):
        Sandbox().run_code(b"print(1)")  # type: ignore[arg-type]


def test_a_closed_sandbox_refuses(daemon: FakeDaemon):
    s = Sandbox()
    s.close()
    for call in (
        lambda: s.run_code(""),
        lambda: s.run_code_stream(""),
        lambda: s.upload(b"", "x"),
        lambda: s.download("x"),
    ):
        with pytest.raises(podflare.SandboxEndedError, match="has been closed"):
            call()


def test_much_output_in_one_piece_and_in_many(daemon: FakeDaemon):
    piece = "x" * 65536
    daemon.on_exec(lambda r: r.events(*[{"type": "stdout", "data": piece}] * 64, EXIT))
    assert Sandbox().run_code("").stdout == piece * 64


def test_an_event_without_an_end(daemon: FakeDaemon, monkeypatch):
    monkeypatch.setattr(_exec, "LINE_MAX", 1 << 20)

    def answer(r):
        r.start_stream()
        r.send(b'{"type":"stdout","data":"' + b"x" * 900_000 + b'"}\n')
        for _ in range(10_000):
            r.send(b"x" * 65536)
        r.end_stream()

    daemon.on_exec(answer)
    with pytest.raises(podflare.StreamBrokenError, match="an event of over 1 MiB") as e:
        Sandbox().run_code("")
    assert e.value.stdout == b"x" * 900_000


def test_an_event_that_is_nested_too_deep(daemon: FakeDaemon):
    def answer(r):
        r.start_stream()
        deep = b"[" * 200_000 + b"]" * 200_000
        r.send(b'{"type":"result","data":{"application/json":' + deep + b"}}\n")
        r.send(b'{"type":"exit","data":0}\n')
        r.end_stream()

    daemon.on_exec(answer)
    with pytest.raises(podflare.StreamBrokenError, match="not an event"):
        Sandbox().run_code("")


@pytest.mark.sync_only
def test_lines_across_chunks():
    text = (
        '{"type":"stdout","data":"\u2028"}\n\n{"type":"notice","data":"n"}\n'
        '{"type":"exit","data":0}\n{"type":"stdout","data":"after the end"}\n'
    ).encode()
    for size in range(1, len(text) + 1):
        decoder = Decoder()
        chunks = [text[i : i + size] for i in range(0, len(text), size)]
        events = [event for chunk in chunks for event in decoder.feed(chunk)]
        assert [(e.type, e.data) for e in events] == [
            ("stdout", "\u2028"),
            ("notice", "n"),
            ("exit", 0),
        ]
        decoder.finish()


@pytest.mark.parametrize(
    "code, want",
    [
        ("x = 1", "x = 1"),
        ("", ""),
        ("   \n", "   \n"),
        ("\n    a\n      b\n    c\n", "\na\n  b\nc\n"),
        ("    a\n\n  \n    b\n    ", "a\n\n\nb\n"),
        ("\ta\n\tb", "a\nb"),
        ("\ta\n    b", "\ta\n    b"),  # no common indentation: left as it is
        ("a\n    b\n  \n", "a\n    b\n  \n"),  # not indented as a whole: not even the blanks
        ("    s = '''\nx\n'''", "    s = '''\nx\n'''"),
        ("    cat <<E\n    x\n    E\n", "cat <<E\nx\nE\n"),
        ("    a\r\n    b\r\n", "a\r\nb\r\n"),
    ],
)
def test_dedent(code, want):
    assert dedent(code) == want


def test_repr():
    r = podflare.ExecResult(stdout="hi\n", stderr="", exit_code=0, duration_ms=4)
    assert repr(r) == "ExecResult(exit_code=0, stdout='hi\\n', duration_ms=4)"
    long = podflare.ExecResult(
        stdout="x" * 1000, stderr="e", exit_code=137, termination_reason="oom"
    )
    assert "... (1000 characters)" in repr(long) and "termination_reason='oom'" in repr(long)
    assert len(repr(long)) < 400


def test_the_id_is_not_a_way_to_other_urls(daemon: FakeDaemon):
    for bad in ("../x", "..", "a/b", "", "x?y", "é"):
        with pytest.raises(podflare.SandboxNotFoundError):
            Sandbox.connect(bad)
    assert daemon.requests == []
    assert Sandbox.connect(SANDBOX_ID).id == SANDBOX_ID
