"""What goes into a command and comes out of it in pieces: programs, stdin, large events."""

import base64
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SANITIZED, Daemon, stdout_of, wait_for
from execs import last, running
from test_exec import alive, events_without_time, rich_exit

BROKEN = "podflare: the guest's agent broke the protocol while the command ran"


# --- programs -------------------------------------------------------------------------------


def test_argv(daemon: Daemon) -> None:
    sid = daemon.create()
    body = {"argv": ["printf", "%s|", "a b", "$HOME", "ü", ""], "env": {"X": "y"}}
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
    assert [json.loads(x)["data"] for x in r.text.splitlines()] == ["a b|$HOME|ü||", 0]
    body = {"argv": ["no-such-program"]}
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
    assert r.status_code == 400
    assert r.json() == {
        "error": "no-such-program: no such program",
        "code": "invalid_request",
        "field": "argv",
    }
    body = {"argv": ["ls"], "cwd": "/nowhere"}
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
    assert (r.status_code, r.json()["field"]) == (400, "cwd")


def test_javascript_without_node(daemon: Daemon) -> None:
    sid = daemon.create()
    body = {"code": "console.log(1)", "language": "javascript"}
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
    assert r.status_code == 400
    assert r.json() == {
        "error": "this template has no node",
        "code": "invalid_request",
        "field": "language",
    }


# --- stdin ----------------------------------------------------------------------------------


def test_stdin(daemon: Daemon) -> None:
    sid = daemon.create()
    assert stdout_of(daemon.exec(sid, "cat", stdin="a\nü\n")) == "a\nü"
    assert stdout_of(daemon.exec(sid, "wc -c", stdin="")) == "0"
    raw = bytes(range(256))
    ev = daemon.exec(
        sid, "od -An -v -tx1 | tr -d ' \\n'", stdin_base64=base64.b64encode(raw).decode()
    )
    assert stdout_of(ev) == raw.hex()
    # Without it there is an end at once.
    assert stdout_of(daemon.exec(sid, "wc -c")) == "0"
    code = "print(input() + input())"
    assert stdout_of(daemon.exec(sid, code, "python", stdin="4\n2\n")) == "42"


def test_much_stdin(daemon: Daemon) -> None:
    """More than the window, to one that reads all, one that reads late, one that reads nothing."""
    sid = daemon.create()
    data = base64.b64encode(os.urandom(2_500_000)).decode()
    total = len(base64.b64decode(data))
    assert stdout_of(daemon.exec(sid, "wc -c", stdin_base64=data)) == str(total)
    assert stdout_of(daemon.exec(sid, "sleep 1; wc -c", stdin_base64=data)) == str(total)
    assert (
        stdout_of(daemon.exec(sid, "head -c 3; echo; sleep 0.5; echo x", stdin="abc" * 500_000))
        == "abc\nx"
    )
    assert stdout_of(daemon.exec(sid, "sleep 0.5; echo done", stdin="y" * 3_000_000)) == "done"
    assert (
        stdout_of(daemon.exec(sid, "exec <&-; sleep 0.5; echo done", stdin="y" * 3_000_000))
        == "done"
    )
    assert stdout_of(daemon.exec(sid, "echo still one stream")) == "still one stream"


@pytest.mark.parametrize(
    "ack,stdin",
    [
        ("04000000", "abc"),  # more than was sent
        ("01000000", None),  # nothing was to be sent
        ("ffffffff", "abc"),
        ("010000", "abc"),
        ("0100000000", "abc"),
        ("", "abc"),
    ],
)
def test_a_wrong_acknowledgement(daemon: Daemon, ack: str, stdin: str | None) -> None:
    sid = daemon.create()
    body = {"code": f"#fake:ack {ack}", "stdin": stdin}
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
    assert r.status_code == 502 and r.json()["code"] == "agent_error"
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


def test_leaving_with_stdin_on_its_way(daemon: Daemon) -> None:
    sid = daemon.create()
    with running(daemon, sid, "sleep 4242.41", stdin="x" * 3_000_000):
        wait_for(lambda: alive("sleep 4242[.]41"))
    wait_for(lambda: not alive("sleep 4242[.]41"))
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


# --- large events ---------------------------------------------------------------------------


def test_an_event_in_parts(daemon: Daemon) -> None:
    sid = daemon.create()
    size = 3_000_000
    ev = events_without_time(daemon.exec(sid, f"#fake:parts {size}", rich=True))
    assert [e["type"] for e in ev[:-2]] == ["stdout"] * (len(ev) - 2)
    assert ev[-2] == {"type": "result", "data": {"text/plain": "x" * size}}
    assert ev[-1] == rich_exit()
    # Plain: its text, in lines of at most 64 KiB.
    ev = daemon.exec(sid, f"#fake:parts {size}")
    text = [e["data"] for e in ev if e["type"] == "stdout" and e["data"] != "between"]
    assert "".join(text) == "x" * size and max(map(len, text)) == 65536
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


def test_the_largest_event(daemon: Daemon) -> None:
    sid = daemon.create()
    around = len(json.dumps({"type": "result", "data": {"text/plain": ""}}))
    ev = daemon.exec(sid, f"#fake:parts {(8 << 20) - around}", rich=True)
    assert len(ev[-2]["data"]["text/plain"]) == (8 << 20) - around
    ev = daemon.exec(sid, f"#fake:parts {(8 << 20) - around + 1}", rich=True)
    assert ev[-2]["data"] == BROKEN + "\n"
    end = {k: v for k, v in ev[-1].items() if k not in ("seq", "ts", "duration_ms")}
    assert end == rich_exit(-1, "agent_error", state=None)


SPLIT = {
    "type": "result",
    "data": {"text/plain": 'ü\n"\\\u0001\U0001f600' * 9, "x": [1, -2.5e3, {"text/plain": [True, None]}, {}, []]},
}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
def test_an_event_in_small_parts(daemon: Daemon, step: int) -> None:
    """Wherever it is cut, it is what it is as a whole."""
    sid = daemon.create()
    for text in (json.dumps(SPLIT), json.dumps(SPLIT, ensure_ascii=False), json.dumps(SPLIT, indent=1)):
        ask = f"#fake:split {step} {text}"
        assert events_without_time(daemon.exec(sid, ask, rich=True)) == [SPLIT, rich_exit()]
        assert stdout_of(daemon.exec(sid, ask)) == SPLIT["data"]["text/plain"]
    error = {"type": "error", "name": "E", "value": "ü", "traceback": ["a", "b"]}
    notice = {"type": "notice", "text": "word"}
    for event, told in ((error, error), (notice, {"type": "notice", "data": "word", "from": "guest"})):
        ask = f"#fake:split {step} {json.dumps(event)}"
        assert events_without_time(daemon.exec(sid, ask, rich=True)) == [told, rich_exit()]


@pytest.mark.parametrize("text", ['{"type":"result","data":{}', '{"type":"result","data":{}}}', '{"type":"what"}', "x" * 9])
@pytest.mark.parametrize("rich", [False, True])
def test_an_event_in_parts_that_is_none(daemon: Daemon, text: str, rich: bool) -> None:
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": f"#fake:split 2 {text}", "rich": rich})
    assert (r.status_code, r.json()["code"]) == (502, "agent_error")
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


def test_an_end_in_the_middle_of_an_event(daemon: Daemon) -> None:
    """Its client has not taken it yet: all of it comes, and the end behind it."""
    sid = daemon.create()
    with running(daemon, sid, "#fake:parts 7000000", timeout=0) as r:
        lines = r.iter_lines()
        while "result" not in next(lines):
            # The event is there, and its end is on its way or not.
            if daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204:
                break
        rest = [json.loads(x) for x in lines]
    assert rest[-1]["type"] == "exit" and [e["seq"] for e in rest] == sorted(e["seq"] for e in rest)
    for e in rest:
        assert e["type"] != "result" or e["data"]["text/plain"] == "x" * 7_000_000


def test_an_event_that_is_taken_back(daemon: Daemon) -> None:
    """By a part without bytes: the session died in the middle of it."""
    sid = daemon.create()
    event = '{"type":"result","data":{"b":1}}'
    ev = events_without_time(daemon.exec(sid, f"#fake:drop {event}", rich=True))
    assert ev == [{"type": "result", "data": {"b": 1}}, rich_exit()]
    assert events_without_time(daemon.exec(sid, "#fake:drop", rich=True)) == [rich_exit()]


@pytest.mark.parametrize(
    "ask",
    [
        "#fake:endless 139",  # parts of an event that never ends
        "#fake:raw 139 {",  # an EXIT in the middle of an event
        "#fake:endless 129",  # more output than it was asked to keep
        "#fake:endless 130",
    ],
)
def test_too_much_of_a_guest(daemon: Daemon, ask: str) -> None:
    sid = daemon.create()
    r = daemon.http.post(
        f"/v1/sandboxes/{sid}/exec", json={"code": ask, "output_limit": 65536}, timeout=60
    )
    if r.status_code == 502:
        assert r.json()["code"] == "agent_error"
    else:
        ev = [json.loads(x) for x in r.text.splitlines()]
        assert ev[-2]["data"] == BROKEN and ev[-1]["data"] == -1
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


@pytest.mark.bounds
def test_events_that_nobody_reads(daemon: Daemon) -> None:
    """They wait in the guest, like output."""
    sid = daemon.create()
    daemon.exec(sid, "#fake:parts 100000", rich=True)
    before = daemon.rss_kib()
    with running(daemon, sid, "#fake:endless-event"):
        daemon.comes_to_rest()
        assert daemon.rss_kib() - before < (20_000 if SANITIZED else 3_000)
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


@pytest.mark.bounds
def test_the_memory_of_a_large_event_comes_back(daemon: Daemon) -> None:
    sid = daemon.create()
    daemon.exec(sid, "#fake:parts 8000000", rich=True)
    before = daemon.rss_kib()
    for _ in range(5):
        daemon.exec(sid, "#fake:parts 8000000", rich=True)
    # The sanitizer keeps what was freed.
    assert SANITIZED or daemon.rss_kib() - before < 3_000


@pytest.mark.parametrize("read", [0, 1, 100_000, 3_000_000])
def test_leaving_in_the_middle_of_an_event(daemon: Daemon, read: int) -> None:
    sid = daemon.create()
    body = json.dumps({"code": "#fake:parts 6000000", "rich": True}).encode()
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.sendall(
        b"POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
        % (sid.encode(), len(body), body)
    )
    got = 0
    while got < read:
        got += len(s.recv(min(65536, read - got)))
    s.close()
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


@pytest.mark.parametrize(
    "event",
    [
        '{"type":"result","data":{"n":123456789012345678901234567890,"x":1e999,"t":[{}, [ ],-0.5E+3]}}',
        '{"type":"result","data":{"text/plain":"\\ud800 \\u0000 \\"\\/ \\ud83d\\ude00"}}',
        '{ "type" :\t"result", "data":{\r\n"a":\n[ 1 ,\n2 ]\n}\n}',
        '{"type":"result","data":{"é":"€😀"},"more":{"type":5}}',
    ],
)
def test_results_are_passed_on_as_they_came(daemon: Daemon, event: str, tmp_path: Path) -> None:
    sid = daemon.create()
    ev = events_without_time(daemon.exec(sid, f"#fake:event {event}", rich=True))
    assert ev == [{"type": "result", "data": json.loads(event)["data"]}, rich_exit()]
    assert daemon.exec(sid, f"#fake:event {event}")[-1]["data"] == 0


def test_text_of_a_result_in_plain_mode(daemon: Daemon) -> None:
    sid = daemon.create()
    text = "\\ud800|\\u00e9|\\ud83d\\ude00|\\ud83d\\u0041|\\t\\b\\f\\r\\\\\\/|\\u20ac"
    ev = daemon.exec(sid, '#fake:event {"type":"result","data":{"text/plain":"%s"}}' % text)
    assert ev[0]["data"] == "\ufffd|é|😀|\ufffdA|\t\b\f\r\\/|€"


@pytest.mark.parametrize(
    "event",
    [
        '{"type":"result","data":{"a":01}}',
        '{"type":"result","data":{"a":NaN}}',
        '{"type":"result","data":{"a":"\\x"}}',
        '{"type":"result","data":{"a":"\\u12g4"}}',
        '{"type":"result","data":{"a":"\t"}}',
        '{"type":"result","data":{"a":1,}}',
        '{"type":"result","data":{"a":[1,]}}',
        '{"type":"result","data":{"a":[1}]}',
        '{"type":"result","data":{},"data":{}}',
        '{"type":"result","data":{}} x',
        '{"type":"result","data":null}',
        '{"type":"result"}',
        '{"type":"error","name":"a","value":1}',
        '{"type":"error","name":"a","value":"b","traceback":{}}',
        '{"type":"notice","text":["x"]}',
        '{"type":"result","data":{"a":' + "[" * 600 + "]" * 600 + "}}",
        "",
        "{",
    ],
)
def test_wrong_events(daemon: Daemon, event: str) -> None:
    sid = daemon.create()
    for rich in (False, True):
        body = {"code": f"#fake:raw 137 {event}", "rich": rich}
        r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
        assert r.status_code == 502 and r.json()["code"] == "agent_error"


# --- leaving --------------------------------------------------------------------------------


def test_leaving_at_the_deadline(start: Callable[..., Daemon]) -> None:
    """A command whose client has left and whose agent forgets it holds up nobody for ever."""
    d = start(
        env={"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1", "PODFLARE_EXEC_SLACK": "1"}
    )
    sid = d.create()
    with running(d, sid, "#fake:deaf"):
        pass
    r = d.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1"})
    ev = [json.loads(x) for x in r.text.splitlines()]
    assert ev[0]["data"] == "podflare: sandbox ended: guest does not answer"


def test_leaving_a_flood(daemon: Daemon) -> None:
    sid = daemon.create()
    for ask in ("#fake:endless-event", "#fake:parts 7000000"):
        with running(daemon, sid, ask, timeout=5) as r:
            next(r.iter_bytes())
    with running(daemon, sid, "echo alive") as r:
        assert last(r)["termination_reason"] == "exited"
