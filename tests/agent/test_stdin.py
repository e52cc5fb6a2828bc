# SPDX-License-Identifier: Apache-2.0
"""Standard input of calls: bytes, end, acknowledgements, and what may not be sent when."""

from __future__ import annotations

import json
import struct
import time

import pytest
from agent_client import (
    CANCEL,
    ERROR,
    EVENT,
    EXEC,
    EXIT,
    STDERR,
    STDIN,
    STDIN_ACK,
    STDIN_END,
    STDOUT,
    Closed,
    Result,
    Stream,
)
from conftest import Agent, wait_for
from test_python import begun

WINDOW = 65536


def talk(stream: Stream, data: bytes, piece: int = 8192, end: bool = True) -> Result:
    """Sends data as the call that has begun takes it; its end. Fails when an ACK is not right."""
    r = Result()
    sent = acked = 0
    done = False

    def send() -> None:
        nonlocal sent, done
        while sent < len(data) and sent - acked + min(piece, len(data) - sent) <= WINDOW:
            part = data[sent : sent + piece]
            sent += len(part)
            stream.send(STDIN, part)
        if sent == len(data) and end and not done:
            done = True
            stream.send(STDIN_END)

    send()
    for kind, payload in stream.frames():
        if kind == STDIN_ACK:
            (n,) = struct.unpack("<I", payload)
            acked += n
            assert n > 0 and acked <= sent
            send()
        elif kind == STDOUT:
            r.stdout += payload
        elif kind == STDERR:
            r.stderr += payload
        elif kind == EVENT:
            r.events.append(json.loads(payload))
        elif kind == EXIT:
            r.exit = json.loads(payload)
        else:
            r.error = json.loads(payload)
    return r


READ_ALL = {
    "bash": "cat",
    "argv": None,
    "python": "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read());",
}


def begin(stream: Stream, language: str, code: str | None = None) -> None:
    """A call with an input."""
    if language == "argv":
        stream.send(EXEC, {"language": "argv", "argv": ["cat"], "stdin": True})
        stream.body(b"")
    else:
        stream.start(code or str(READ_ALL[language]), language, stdin=True)


@pytest.mark.parametrize("language", READ_ALL)
@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3_000_000])
def test_bytes(stream: Stream, language: str, size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    begin(stream, language)
    r = talk(stream, data)
    assert r.stdout == data and r.code == 0


@pytest.mark.parametrize("language", ["bash", "python"])
def test_none(stream: Stream, language: str) -> None:
    """Without `stdin` it is /dev/null."""
    code = "readlink /proc/self/fd/0; cat" if language == "bash" else (
        "import os, sys\nprint(os.readlink('/proc/self/fd/0')); print(repr(sys.stdin.read()))"
    )
    r = stream.bash(code) if language == "bash" else stream.python(code)
    assert r.stdout in (b"/dev/null\n", b"/dev/null\n''\n")


def test_as_it_comes(stream: Stream) -> None:
    stream.start("while read -r line; do echo got $line; done; echo end", stdin=True)
    for word in ("one", "two"):
        stream.send(STDIN, f"{word}\n".encode())
        got = {}
        while len(got) < 2:
            kind, payload = stream.recv()
            got[kind] = payload
        assert got == {STDIN_ACK: struct.pack("<I", 4), STDOUT: f"got {word}\n".encode()}
    stream.send(STDIN_END)
    assert stream.finish().stdout == b"end\n"


def test_in_one_segment(stream: Stream) -> None:
    """A host that knows the whole input sends all at once."""
    for language, code in (("bash", b"cat"), ("python", b"print(input() + input())")):
        request = json.dumps({"language": language, "stdin": True}).encode()
        parts = [(EXEC, request), (6, code), (7, b""), (STDIN, b"a\n"), (STDIN, b"b\n"), (STDIN_END, b"")]
        stream.raw(b"".join(struct.pack("<IB3x", len(p), k) + p for k, p in parts))
        out = b"".join(p for k, p in stream.frames() if k == STDOUT)
        assert out.replace(b"\n", b"") == b"ab"


def test_window(stream: Stream) -> None:
    """What the call does not read is not acknowledged: pipe and agent hold a fixed amount."""
    stream.start("sleep 1.5; wc -c", stdin=True)
    sent = acked = 0
    deadline = time.monotonic() + 1
    stream.sock.settimeout(0.3)
    while time.monotonic() < deadline:
        while sent - acked < WINDOW:
            stream.send(STDIN, b"x" * 4096)
            sent += 4096
        try:
            kind, payload = stream.recv()
        except TimeoutError:
            break
        assert kind == STDIN_ACK
        acked += struct.unpack("<I", payload)[0]
    assert sent - acked == WINDOW and sent <= 1 << 20
    stream.sock.settimeout(30)
    stream.send(STDIN_END)
    out = b"".join(p for k, p in stream.frames() if k == STDOUT)
    assert int(out) == sent


def test_reader_that_has_gone(stream: Stream) -> None:
    """Bytes that nobody reads are taken: the host does not get stuck."""
    stream.start("exec <&-; echo on; sleep 1; echo off", stdin=True)
    r = talk(stream, b"y" * 2_000_000)
    assert r.stdout == b"on\noff\n" and r.code == 0
    stream.start("head -c 5", stdin=True)
    r = talk(stream, b"y" * 200_000)
    assert r.stdout == b"yyyyy" and r.code == 0


def test_crosses_the_final_frame(stream: Stream) -> None:
    """On an idle stream it is ignored."""
    stream.start("true", stdin=True)
    while stream.recv()[0] != EXIT:
        pass
    stream.send(STDIN, b"late")
    stream.send(STDIN_END)
    assert stream.bash("echo fine").stdout == b"fine\n"
    r = stream.bash("true", cwd="/nowhere/such", stdin=True)
    assert r.error is not None
    stream.send(STDIN, b"late")
    assert stream.bash("echo fine").stdout == b"fine\n"


BREAKS = {
    "without stdin": ({}, [(7, b""), (STDIN, b"x")]),
    "end without stdin": ({}, [(7, b""), (STDIN_END, b"")]),
    "inside of the code": ({"stdin": True}, [(STDIN, b"x")]),
    "after its end": ({"stdin": True}, [(7, b""), (STDIN_END, b""), (STDIN, b"x")]),
    "two ends": ({"stdin": True}, [(7, b""), (STDIN_END, b""), (STDIN_END, b"")]),
    "end with bytes": ({"stdin": True}, [(7, b""), (STDIN_END, b"x")]),
}


@pytest.mark.parametrize("language", ["bash", "python"])
@pytest.mark.parametrize("what", BREAKS)
def test_violations(agent: Agent, stream: Stream, language: str, what: str) -> None:
    extra, frames = BREAKS[what]
    with agent.stream() as s:
        code = b"sleep 50" if language == "bash" else b"import time; time.sleep(50)"
        s.send(EXEC, {"language": language, **extra})
        s.send(6, code)
        for kind, payload in frames:
            s.send(kind, payload)
        error = s.recv_json(ERROR)
        assert error["code"] == "bad_request" and "STDIN" in error["message"]
        with pytest.raises(Closed):
            s.recv()
    assert stream.python("print('fine')").stdout == b"fine\n"


def test_too_much(agent: Agent) -> None:
    """More than the window on its way breaks the rules."""
    with agent.stream() as s:
        s.start("sleep 50", stdin=True)
        try:
            for _ in range(100):
                s.send(STDIN, b"x" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        while True:
            kind, payload = s.recv()
            if kind != STDIN_ACK:
                break
        assert kind == ERROR and json.loads(payload)["code"] == "bad_request"


def test_with_another_request(stream: Stream) -> None:
    stream.send(4, {"path": "x"})
    stream.send(STDIN, b"x")
    assert stream.recv_json(ERROR)["code"] == "bad_request"


def test_acknowledgements_are_bounded(own_agent: Agent) -> None:
    """A call that reads byte by byte and a host that does not read at all."""
    with own_agent.stream() as s, own_agent.stream() as other:
        s.start("while IFS= read -r -n1 c; do :; done", stdin=True)
        s.send(STDIN, b"x" * 65536)
        time.sleep(1)
        assert other.bash("echo fine").stdout == b"fine\n"
        assert not own_agent.grown(30_000)
        s.send(CANCEL)
        acked = 0
        for kind, payload in s.frames():
            if kind == STDIN_ACK:
                acked += struct.unpack("<I", payload)[0]
        assert acked <= 65536


# --- python


def test_input(stream: Stream) -> None:
    stream.start("name = input('Name? ')\nprint('Hello,', name)\nprint(input())", "python", stdin=True)
    r = talk(stream, "Zoë\nagain\n".encode())
    assert r.stdout == "Name? Hello, Zoë\nagain\n".encode() and r.code == 0


def test_input_at_the_end(stream: Stream) -> None:
    stream.start("input()", "python", stdin=True)
    r = talk(stream, b"")
    assert r.code == 1 and b"EOFError" in r.stderr and b"not available" not in r.stderr


def test_input_without(stream: Stream) -> None:
    r = stream.python("input('x')")
    assert r.code == 1 and b"input() is not available" in r.stderr and b"stdin" in r.stderr


def test_belongs_to_one_cell(stream: Stream) -> None:
    """What it does not read is gone, and the next has none."""
    stream.start("import sys\nfirst = input()", "python", stdin=True)
    r = talk(stream, b"one\ntwo\nthree\n")
    assert r.code == 0
    r = stream.python("import os\nprint(first, repr(sys.stdin.read()), os.readlink('/proc/self/fd/0'))")
    assert r.stdout == b"one '' /dev/null\n"
    assert b"not available" in stream.python("input()").stderr
    stream.start("print(input())", "python", stdin=True)
    assert talk(stream, b"four\n").stdout == b"four\n"


def test_children_inherit_it(stream: Stream) -> None:
    stream.start("import subprocess\nsubprocess.run(['cat']);", "python", stdin=True)
    assert talk(stream, b"through\n").stdout == b"through\n"


def test_child_that_is_left_sees_the_end(agent: Agent, stream: Stream) -> None:
    stream.start(
        "import subprocess\np = subprocess.Popen('cat >left; echo $? >over', shell=True)", "python", stdin=True
    )
    talk(stream, b"data\n", end=False)
    for _ in range(200):
        if (agent.home / "over").exists():
            break
        time.sleep(0.05)
    assert (agent.home / "left").read_text() in ("", "data\n") and (agent.home / "over").exists()
    stream.python("p.wait()")


def test_cell_that_breaks_its_descriptors(stream: Stream) -> None:
    stream.python("kept = 1")
    stream.start("import os, sys\nos.closerange(0, 21); sys.stdin = None", "python", stdin=True)
    r = talk(stream, b"x" * 300_000)
    assert r.exit is not None and r.exit["state"] == "preserved"
    r = stream.python("print(kept, repr(sys.stdin.read()))")
    assert r.stdout == b"1 ''\n"


def test_waiting_cell_keeps_its_input(agent: Agent, stream: Stream) -> None:
    """It can be sent while the cell waits for its turn."""
    stream.start("import time\nprint('on', flush=True)\ntime.sleep(0.7)", "python")
    begun(stream)
    with agent.stream() as other:
        begin(other, "python")
        r = talk(other, b"z" * 200_000)
        assert r.stdout == b"z" * 200_000 or (r.error is not None and r.error["code"] == "busy")
    assert stream.finish().code == 0


def test_interrupt_while_it_waits_for_input(stream: Stream) -> None:
    stream.python("kept = 2")
    stream.start("input()", "python", stdin=True, timeout_ms=500)
    r = stream.finish()
    assert r.exit is not None and (r.exit["reason"], r.exit["state"]) == ("timeout", "preserved")
    assert stream.python("print(kept)").stdout == b"2\n"


def test_no_descriptor_is_left(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.python("import os")
        s.bash("true")
        theirs = s.python("print(len(os.listdir('/proc/self/fd')))").stdout
        before = own_agent.fds()
        for _ in range(10):
            for language in ("bash", "python"):
                begin(s, language)
                assert talk(s, b"x" * 1000).code == 0
                begin(s, language, "1" if language == "python" else "true")
                talk(s, b"x" * 1000, end=False)
        assert s.python("print(len(os.listdir('/proc/self/fd')))").stdout == theirs
        # Those of a call are closed when its answer has been sent.
        wait_for(lambda: own_agent.fds() <= before, "the descriptors of the last call to be closed")


def test_bad_value(stream: Stream) -> None:
    r = stream.bash("true", stdin="yes")
    assert r.error is not None and r.error["code"] == "bad_request" and "stdin" in r.error["message"]
