# SPDX-License-Identifier: Apache-2.0
"""What a wrong host can send: refused with a sentence, the others do not notice."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import random
import signal
import socket
import struct
import termios
import time
from typing import Any

import pytest
from agent_client import (
    CANCEL,
    DATA,
    END,
    ERROR,
    EXEC,
    GET,
    OK,
    PING,
    PONG,
    PUT,
    RENEW,
    STATUS,
    Closed,
    Stream,
)
from agent_client import renew_request as renew
from conftest import Agent, wait_for
from test_bash import alive


def frame(
    kind: int, payload: bytes = b"", length: int | None = None, zero: bytes = b"\0\0\0"
) -> bytes:
    """A frame as bytes, right or wrong."""
    return struct.pack("<IB3s", len(payload) if length is None else length, kind, zero) + payload


VIOLATIONS = {
    "oversize": frame(DATA, length=65537),
    "very oversize": frame(EXEC, length=0xFFFFFFFF),
    "reserved bytes": frame(PING, b"", zero=b"\0\0\1"),
    "unknown type": frame(0x0A, b"{}"),
    "type zero": frame(0),
    "a type of the other direction": frame(0x81, b"x"),
    "data without request": frame(DATA, b"x"),
    "end without request": frame(END),
    "end with bytes": frame(PUT, b'{"path":"v"}') + frame(END, b"x"),
    "long ping": frame(PING, b"x" * 65),
    "request in a body": frame(EXEC, b'{"language":"bash"}') + frame(STATUS, b"{}"),
    "request while one runs": frame(EXEC, b'{"language":"bash"}')
    + frame(DATA, b"sleep 50")
    + frame(END)
    + frame(STATUS, b"{}"),
    "request in a refused body": frame(PUT, b"{") + frame(STATUS, b"{}"),
}


@pytest.mark.parametrize("what", VIOLATIONS)
def test_violation(agent: Agent, what: str) -> None:
    """Answered by ERROR bad_request, then the stream is closed."""
    with agent.stream() as s, agent.stream() as other:
        s.raw(VIOLATIONS[what])
        while True:
            kind, payload = s.recv()
            assert kind == ERROR
            error = json.loads(payload)
            assert error["code"] == "bad_request" and error["message"]
            if what == "request in a refused body":
                what = ""
                continue
            break
        with pytest.raises(Closed):
            s.recv()
        assert other.bash("echo fine").stdout == b"fine\n"


def test_violation_ends_what_runs(agent: Agent, stream: Stream) -> None:
    with agent.stream() as s:
        s.start("echo $$; sleep 77")
        pid = int(s.recv()[1])
        s.raw(frame(DATA, b"x"))
        s.recv_json(ERROR)
    wait_for(lambda: not alive(pid), "the end of the command")


BAD_JSON: list[tuple[int, bytes]] = [
    (EXEC, b""),
    (EXEC, b"{"),
    (EXEC, b"[]"),
    (EXEC, b"null"),
    (EXEC, b'"bash"'),
    (EXEC, b"{}"),
    (EXEC, b'{"language":1}'),
    (EXEC, b'{"language":"ruby"}'),
    (EXEC, b'{"language":"bash\\u0000"}'),
    (EXEC, b'{"language":"bash","language":"python"}'),
    (EXEC, b'{"language":"bash","cwd":1}'),
    (EXEC, b'{"language":"bash","cwd":""}'),
    (EXEC, b'{"language":"bash","cwd":"a\\u0000b"}'),
    (EXEC, json.dumps({"language": "bash", "cwd": "x" * 5000}).encode()),
    (EXEC, b'{"language":"bash","env":[]}'),
    (EXEC, b'{"language":"bash","env":{"A":1}}'),
    (EXEC, b'{"language":"bash","env":{"":"x"}}'),
    (EXEC, b'{"language":"bash","env":{"A=B":"x"}}'),
    (EXEC, json.dumps({"language": "bash", "env": {f"N{i}": "" for i in range(1025)}}).encode()),
    (EXEC, b"[" * 60000),
    (EXEC, b'{"language":"\xff\xfe"}'),
    (PUT, b"{}"),
    (PUT, b'{"path":null}'),
    (PUT, b'{"path":["x"]}'),
    (PUT, b'{"path":"x","mode":"644"}'),
    (PUT, b'{"path":"x","mode":-1}'),
    (PUT, b'{"path":"x","mode":512}'),
    (PUT, b'{"path":"x","mode":1e3}'),
    (PUT, b'{"path":"x","mode":99999999999999999999}'),
    (GET, b"{}"),
    (GET, b'{"path":7}'),
    (GET, json.dumps({"path": "/" + "x" * 4096}).encode()),
    (RENEW, b"{}"),
    (STATUS, None),  # type: ignore[list-item]
]


@pytest.mark.parametrize("kind, payload", [b for b in BAD_JSON if b[1] is not None])
def test_bad_request_keeps_the_stream(stream: Stream, kind: int, payload: bytes) -> None:
    """Refused, its body discarded; the next request works."""
    stream.send(kind, payload)
    error = stream.recv_json(ERROR)
    assert error["code"] == "bad_request" and error["message"]
    if kind in (EXEC, PUT):
        stream.body(b"x" * 70000)
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_unknown_members_are_ignored(stream: Stream) -> None:
    assert stream.bash("echo fine", later=True).stdout == b"fine\n"


def test_truncated_frame(agent: Agent, stream: Stream) -> None:
    for cut in (1, 7, 8, 12):
        with agent.stream() as s:
            s.raw(frame(EXEC, b'{"language":"bash"}')[:cut])
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_byte_by_byte(stream: Stream) -> None:
    data = (
        frame(EXEC, b'{"language":"bash"}')
        + frame(DATA, b"echo ")
        + frame(DATA, b"slow")
        + frame(END)
    )
    for at in range(len(data)):
        stream.raw(data[at : at + 1])
    assert stream.finish().stdout == b"slow\n"


def unread(stream: Stream) -> int:
    """What the agent has not taken out of its socket yet (with what the kernel keeps beside it)."""
    size = fcntl.ioctl(stream.sock, termios.TIOCOUTQ, struct.pack("i", 0))
    return int(struct.unpack("i", size)[0])


def test_short_requests_stay_in_the_socket(stream: Stream) -> None:
    """Until the next one has come behind them; a long one, and what comes while one runs, do not."""
    begin = frame(EXEC, b'{"language":"bash"}')
    for n in range(3):
        stream.raw(begin + frame(DATA, b"echo %d" % n) + frame(END))
        assert stream.finish().stdout == b"%d\n" % n
        assert unread(stream) > 0
    text = b"echo " + b"x" * 3000
    stream.raw(begin + frame(DATA, text) + frame(END))
    assert stream.finish().stdout == text[5:] + b"\n"
    assert unread(stream) == 0
    stream.raw(begin + frame(DATA, b"exec sleep 50") + frame(END))
    for n in range(2000):
        stream.send(PING, b"%d" % n)
        assert stream.recv() == (PONG, b"%d" % n)
    stream.send(CANCEL)
    assert stream.finish().exit["reason"] == "cancelled"
    # Pieces, of which no one is a request.
    request = begin + frame(DATA, b"echo end") + frame(END)
    for at in range(0, len(request), 5):
        stream.raw(request[at : at + 5])
        time.sleep(0.01)
    assert stream.finish().stdout == b"end\n"


def test_longest_request_at_once(agent: Agent, stream: Stream) -> None:
    """Of the frames behind a frame that fills the agent's buffer nothing tells any more."""
    head = '{"language":"bash","env":{"BIG":"'
    text = (head + "x" * (65536 - len(head) - 3) + '"}}').encode()
    assert len(text) == 65536
    agent.proc.send_signal(signal.SIGSTOP)
    stream.raw(frame(EXEC, text) + frame(DATA, b"echo ${#BIG}") + frame(END))
    agent.proc.send_signal(signal.SIGCONT)
    assert stream.finish().stdout == b"%d\n" % (65536 - len(head) - 3)


def test_request_and_end_at_once(agent: Agent) -> None:
    """The end is noticed although there is something to read, which is left where it is."""
    with agent.stream() as s:
        agent.proc.send_signal(signal.SIGSTOP)
        s.raw(frame(EXEC, b'{"language":"bash"}') + frame(DATA, b"exec sleep 50") + frame(END))
        s.sock.shutdown(socket.SHUT_WR)
        agent.proc.send_signal(signal.SIGCONT)
        assert s.sock.recv(1) == b""


def test_ping_flood_without_reading(agent: Agent, stream: Stream) -> None:
    """Answers that nobody reads stop the input, not the agent."""
    with agent.stream(timeout=5) as s:
        sent = 0
        s.sock.setblocking(False)
        flood = frame(PING, b"x" * 64) * 500
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline and sent < 100_000_000:
            try:
                sent += s.sock.send(flood)
            except BlockingIOError:
                time.sleep(0.05)
                try:
                    sent += s.sock.send(flood)
                except BlockingIOError:
                    break
        assert sent < 20_000_000
        assert agent.rss_kib() < 30_000
        assert stream.bash("echo fine").stdout == b"fine\n"
        s.sock.settimeout(10)
        for _ in range(sent // 72):
            assert s.recv() == (PONG, b"x" * 64)


def test_cancel_flood(stream: Stream) -> None:
    stream.start("sleep 100")
    for _ in range(1000):
        stream.send(CANCEL)
    r = stream.finish()
    assert r.exit is not None and r.exit["reason"] == "cancelled"
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_too_many_streams(own_agent: Agent) -> None:
    streams = [own_agent.stream() for _ in range(64)]
    streams[0].bash("true")
    with own_agent.stream() as extra:
        assert extra.recv_json(ERROR)["code"] == "too_many"
        with pytest.raises(Closed):
            extra.recv()
    assert streams[63].bash("echo fine").stdout == b"fine\n"
    for s in streams:
        s.close()

    def works() -> bool:
        with own_agent.stream() as s:
            try:
                return s.bash("echo again").stdout == b"again\n"
            except (Closed, BrokenPipeError, ConnectionResetError, AssertionError):
                return False

    wait_for(works, "room for new streams")


def test_random_bytes(agent: Agent, stream: Stream) -> None:
    rng = random.Random(7)
    for _ in range(100):
        with agent.stream() as s:
            try:
                s.raw(rng.randbytes(rng.randrange(1, 3000)))
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_random_frames(agent: Agent, stream: Stream) -> None:
    """Right headers, any order of types that can do no harm to this machine."""
    rng = random.Random(11)
    payloads = [
        b"",
        b"{}",
        b"{",
        b'{"language":"bash"}',
        b'{"path":"/dev/null"}',
        b"true",
        b"\0",
        b"x" * 64,
    ]
    for _ in range(200):
        with agent.stream() as s:
            data = b"".join(
                frame(
                    rng.choice([0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x09]),
                    rng.choice(payloads),
                )
                for _ in range(rng.randrange(1, 12))
            )
            try:
                s.raw(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_renew(agent: Agent, stream: Stream) -> None:
    stream.send(RENEW, renew())
    assert stream.recv_json(OK) == {}
    want = f"hostname=sbx-0123456789abcdef entropy={bytes(range(32)).hex()}"
    assert f"renew realtime_ns=1800000000123456789 {want}" in agent.log.read_text()
    raw = os.urandom(32)
    stream.send(RENEW, renew(entropy=base64.b64encode(raw).decode()))
    assert stream.recv_json(OK) == {}
    assert raw.hex() in agent.log.read_text()


def test_renew_that_fails(stream: Stream) -> None:
    stream.send(RENEW, renew(hostname="refuse"))
    assert stream.recv_json(ERROR)["code"] == "permission_denied"


@pytest.mark.parametrize(
    "change",
    [
        {"realtime_ns": None},
        {"realtime_ns": 0},
        {"realtime_ns": -5},
        {"realtime_ns": "1"},
        {"realtime_ns": 1.5},
        {"realtime_ns": True},
        {"hostname": None},
        {"hostname": ""},
        {"hostname": "a" * 64},
        {"hostname": "a b"},
        {"hostname": "-a"},
        {"hostname": "a\nb"},
        {"hostname": 1},
        {"entropy": None},
        {"entropy": ""},
        {"entropy": base64.b64encode(b"x" * 31).decode()},
        {"entropy": base64.b64encode(b"x" * 33).decode()},
        {"entropy": base64.b64encode(b"x" * 32).decode().replace("=", "A")},
        {"entropy": "=" * 44},
        {"entropy": "*" * 44},
        {"entropy": [1] * 32},
        {"id": None},
        {"id": ""},
        {"id": "x" * 65},
        {"id": "a/b"},
        {"id": 'a"b'},
        {"machine_id": None},
        {"machine_id": "0" * 31},
        {"machine_id": "0" * 33},
        {"machine_id": "X" * 32},
        {"boot_id": None},
        {"boot_id": "0" * 36},
        {"boot_id": "-" * 36},
        {"generation": None},
        {"generation": -1},
        {"generation": 1.0},
        {"generation": "1"},
        {"kind": None},
        {"kind": "other"},
        {"kind": 1},
        {"reseed": 1},
        {"reseed": False},
        {"kind": "create", "reseed": False},
        {"kind": "fork"},  # it is not frozen
        {"kind": "create"},
    ],
)
def test_bad_renew(stream: Stream, change: dict[str, Any]) -> None:
    stream.send(RENEW, renew(**change))
    assert stream.recv_json(ERROR)["code"] == "bad_request"


def test_status(stream: Stream) -> None:
    r = stream.status()
    assert set(r) == {"repl", "frozen", "uptime_ms", "mem_total_kib", "mem_available_kib"}
    assert r["mem_total_kib"] >= r["mem_available_kib"] > 0 and r["uptime_ms"] > 0
