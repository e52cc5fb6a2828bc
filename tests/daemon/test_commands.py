"""Kept commands: they go on without a client, and the daemon keeps nothing of them."""

import base64
import hashlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from conftest import SANITIZED, Daemon, wait_for


def base(sid: str, *more: str) -> str:
    """Path of the commands of a sandbox, or of something behind it."""
    return "/".join([f"/v1/sandboxes/{sid}/commands", *more])


def begin(daemon: Daemon, sid: str, code: str | None = None, **body: Any) -> str:
    """Starts one: its id."""
    body = body if code is None else {"code": code, **body}
    r = daemon.http.post(base(sid), json=body)
    assert r.status_code == 200, r.text
    assert set(r.json()) == {"command_id", "pid"} and r.json()["pid"] > 1
    return r.json()["command_id"]


def info(daemon: Daemon, sid: str, cid: str) -> dict:
    """What is told of one."""
    r = daemon.http.get(base(sid, cid))
    assert r.status_code == 200, r.text
    return r.json()


def events(daemon: Daemon, sid: str, cid: str, query: str = "") -> list[dict]:
    """All events of one, until its exit."""
    r = daemon.http.get(base(sid, cid, "stream") + query)
    assert r.status_code == 200, r.text
    assert r.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in r.text.split("\n")[:-1]]


def raw_of(event: dict) -> bytes:
    """The bytes of an output event."""
    if event.get("encoding") == "base64":
        return base64.b64decode(event["data"])
    return event["data"].encode()


def output(all_events: list[dict], stream: str = "stdout") -> bytes:
    """What was written, with the offsets checked."""
    at = all_events[0][stream]
    out = b""
    for e in all_events:
        if e["type"] == stream:
            out += raw_of(e)
            assert e["offset"] == at + len(out)
    return out


def write(daemon: Daemon, sid: str, cid: str, data: bytes, query: str = "") -> httpx.Response:
    """To its stdin."""
    return daemon.http.post(base(sid, cid, "stdin") + query, content=data)


@contextmanager
def watched(daemon: Daemon, sid: str, cid: str, query: str = "") -> Iterator[Iterator[dict]]:
    """Its events as they come; left at the end."""
    with httpx.Client(base_url=daemon.url, timeout=60) as c:
        with c.stream("GET", base(sid, cid, "stream") + query) as r:
            assert r.status_code == 200
            yield (json.loads(line) for line in r.iter_lines())


def refused(r: httpx.Response) -> tuple:
    """Status, code and field of an error."""
    return r.status_code, r.json()["code"], r.json().get("field")


def ended(daemon: Daemon, sid: str, cid: str) -> dict:
    """Waits for its end: what is told of it."""
    wait_for(lambda: info(daemon, sid, cid)["state"] == "ended", 30)
    return info(daemon, sid, cid)


# --- life -----------------------------------------------------------------------------------


def test_it_goes_on_without_a_client(daemon: Daemon) -> None:
    sid = daemon.create()
    before = time.time() * 1000
    cid = begin(daemon, sid, "echo a; echo b >&2; read x < /dev/zero || sleep 600", user="user")
    assert cid.startswith("cmd_")
    wait_for(lambda: info(daemon, sid, cid)["stderr"]["end"] == 2)
    one = info(daemon, sid, cid)
    assert abs(one.pop("started_at") - before) < 60_000
    assert one.pop("pid") > 1
    assert one == {
        "command_id": cid,
        "state": "running",
        "language": "bash",
        "code": "echo a; echo b >&2; read x < /dev/zero || sleep 600",
        "cwd": "/tmp",
        "pty": False,
        "stdout": {"start": 0, "end": 2},
        "stderr": {"start": 0, "end": 2},
    }
    r = daemon.http.post(base(sid, cid, "signal"), json={"signal": "SIGKILL"})
    assert (r.status_code, r.json()) == (200, {"ended": False})
    one = ended(daemon, sid, cid)
    assert one["exit_code"] == 137 and one["signal"] == 9
    assert one["termination_reason"] == "signaled"
    r = daemon.http.post(base(sid, cid, "signal"), json={"signal": 15, "group": False})
    assert (r.status_code, r.json()) == (200, {"ended": True})


def test_argv_env_cwd_and_a_chosen_id(daemon: Daemon) -> None:
    sid = daemon.create()
    argv = ["bash", "-c", 'echo "$X $PWD $1"', "-", "a b"]
    cid = begin(daemon, sid, argv=argv, env={"X": "ü"}, cwd="/usr", command_id="My-cmd_1")
    assert cid == "My-cmd_1"
    ev = events(daemon, sid, cid)
    assert output(ev) == "ü /usr a b\n".encode()
    assert info(daemon, sid, cid)["argv"] == argv
    r = daemon.http.post(base(sid), json={"argv": ["true"], "command_id": cid})
    assert refused(r) == (409, "command_exists", "command_id")


def test_the_events(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "echo out; echo err >&2; exit 3")
    ev = events(daemon, sid, cid)
    first = {k: ev[0][k] for k in ("type", "command_id", "stdout", "stderr", "seq")}
    assert first == {"type": "started", "command_id": cid, "stdout": 0, "stderr": 0, "seq": 0}
    assert ev[0]["pid"] == info(daemon, sid, cid)["pid"]
    assert (output(ev), output(ev, "stderr")) == (b"out\n", b"err\n")
    assert ev[-1]["type"] == "exit" and ev[-1]["exit_code"] == ev[-1]["data"] == 3
    assert ev[-1]["termination_reason"] == "exited"
    assert [e["seq"] for e in ev] == list(range(len(ev)))
    # Again, as often as one likes.
    again = events(daemon, sid, cid)
    assert output(again) == b"out\n" and again[-1]["data"] == 3


def test_positions(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "printf 0123456789; printf abcdef >&2")
    ended(daemon, sid, cid)
    ev = events(daemon, sid, cid, "?stdout=4&stderr=2")
    assert (ev[0]["stdout"], ev[0]["stderr"]) == (4, 2)
    assert (output(ev), output(ev, "stderr")) == (b"456789", b"cdef")
    for query in ("?stdout=-1&stderr=-1", "?stdout=999&stderr=999999999999999999"):
        ev = events(daemon, sid, cid, query)
        assert (ev[0]["stdout"], ev[0]["stderr"]) == (10, 6)
        assert [e["type"] for e in ev] == ["started", "exit"]
    for bad in ("x", "", "-2", "1.5", "0x1", "9" * 19, "1&stdout=2", "%00", "+1"):
        r = daemon.http.get(base(sid, cid, "stream") + f"?stdout={bad}")
        assert refused(r) == (400, "invalid_request", "stdout")


def test_characters_that_come_in_two(daemon: Daemon) -> None:
    """Positions count bytes; half a character waits for the other half, or comes as base64."""
    sid = daemon.create()
    cid = begin(daemon, sid, "printf 'a\\xc3'; sleep 0.3; printf '\\xbcb\\xc3'")
    ev = events(daemon, sid, cid)
    assert output(ev) == "aüb".encode() + b"\xc3"
    half = events(daemon, sid, cid, "?stdout=2")
    assert output(half) == b"\xbcb\xc3"


def test_what_the_guest_has_thrown_away(daemon: Daemon) -> None:
    sid = daemon.create()
    daemon.exec(sid, '#fake:set {"kept_limit": 100000}')
    cid = begin(daemon, sid, "seq 100000")
    one = ended(daemon, sid, cid)
    assert one["stdout"]["start"] > 0
    ev = events(daemon, sid, cid)
    assert ev[0]["stdout"] == one["stdout"]["start"]
    assert output(ev).endswith(b"\n100000\n")


def test_clients_come_and_go(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "for i in 1 2 3; do read x; echo $x; done; exit 5", stdin=True)
    with watched(daemon, sid, cid) as one, watched(daemon, sid, cid) as two:
        assert next(one)["type"] == next(two)["type"] == "started"
        assert write(daemon, sid, cid, b"first\n").status_code == 204
        assert next(one)["data"] == next(two)["data"] == "first\n"
    assert info(daemon, sid, cid)["state"] == "running"
    assert write(daemon, sid, cid, b"second\n").status_code == 204
    with watched(daemon, sid, cid, "?stdout=6") as three:
        assert (next(three)["stdout"], next(three)["data"]) == (6, "second\n")
        assert write(daemon, sid, cid, b"third\n").status_code == 204
        rest = list(three)
    assert rest[-1]["data"] == 5 and raw_of(rest[0]) == b"third\n"


def test_timeout(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600", timeout=0.3)
    ev = events(daemon, sid, cid)
    assert (ev[-1]["termination_reason"], ev[-1]["data"]) == ("timeout", 124)


SLACK = {"PODFLARE_EXEC_SLACK": "1"}
DEAF = {"timeout": 0.3, "env": {"DEAF": "1"}}


def gone(d: Daemon, sid: str) -> str | None:
    """Why the sandbox has ended; None while it lives."""
    return d.http.get(f"/v1/sandboxes/{sid}").json().get("ended_reason")


def test_an_agent_that_forgets_the_deadline(start: Callable[..., Daemon]) -> None:
    """Nobody watches the command; the host does."""
    d = start(env=SLACK)
    sid = d.create()
    begin(d, sid, "sleep 600", **DEAF)
    wait_for(lambda: gone(d, sid))
    assert gone(d, sid) == "a command did not end at its time limit"


def test_an_agent_that_is_silent_at_the_deadline(start: Callable[..., Daemon]) -> None:
    d = start(env=SLACK)
    sid = d.create()
    d.exec(sid, "#fake:once list mute")
    begin(d, sid, "sleep 600", timeout=0.3)
    wait_for(lambda: gone(d, sid))
    assert gone(d, sid) == "guest does not answer"


def test_an_agent_that_is_asked_again(start: Callable[..., Daemon]) -> None:
    d = start(env=SLACK)
    sid = d.create()
    d.exec(sid, "#fake:once list error")
    cid = begin(d, sid, "sleep 600", **DEAF)
    wait_for(lambda: gone(d, sid))
    assert gone(d, sid) == "a command did not end at its time limit" and cid


def test_a_deadline_that_the_agent_kept(start: Callable[..., Daemon]) -> None:
    """Neither one that ended before nor another one of the same name is to blame."""
    d = start(env=SLACK)
    sid = d.create()
    begin(d, sid, "sleep 600", timeout=0.3)
    begin(d, sid, "true", timeout=0.5, command_id="a")
    wait_for(lambda: info(d, sid, "a")["state"] == "ended")
    assert d.http.delete(base(sid, "a")).status_code == 204
    begin(d, sid, "sleep 600", command_id="a")
    for n in range(70):  # more than are looked at in vain before the agent is asked
        begin(d, sid, "true", timeout=600, command_id=f"b{n}")
        wait_for(lambda: info(d, sid, f"b{n}")["state"] == "ended")
        d.http.delete(base(sid, f"b{n}"))
    time.sleep(3)
    assert gone(d, sid) is None and info(d, sid, "a")["state"] == "running"


def test_deadlines_of_a_copy(start: Callable[..., Daemon]) -> None:
    """It has the command, with the time that was left, and an agent of its own."""
    d = start(env=SLACK)
    sid = d.create()
    cid = begin(d, sid, "sleep 600", timeout=4)
    child = d.http.post(f"/v1/sandboxes/{sid}/fork", json={}).json()["children"][0]
    d.exec(child, "#fake:once list mute")
    wait_for(lambda: gone(d, child))
    assert gone(d, child) == "guest does not answer"
    assert gone(d, sid) is None and info(d, sid, cid)["state"] == "ended"


def test_list_and_delete(daemon: Daemon) -> None:
    sid = daemon.create()
    ids = [begin(daemon, sid, "sleep 4343.1"), begin(daemon, sid, "true", command_id="b")]
    told = daemon.http.get(base(sid)).json()["commands"]
    assert [c["command_id"] for c in told] == ids
    pid = told[0]["pid"]
    r = daemon.http.delete(base(sid, ids[0]))
    assert (r.status_code, r.content) == (204, b"")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/cwd"))
    assert [c["command_id"] for c in daemon.http.get(base(sid)).json()["commands"]] == ["b"]
    assert refused(daemon.http.delete(base(sid, ids[0]))) == (404, "command_not_found", None)
    assert begin(daemon, sid, "true", command_id=ids[0]) == ids[0]


def test_so_many_and_no_more(daemon: Daemon) -> None:
    sid = daemon.create()
    for i in range(32):
        begin(daemon, sid, argv=["sleep", "600"], command_id=f"c{i}")
    r = daemon.http.post(base(sid), json={"argv": ["true"]})
    assert refused(r) == (429, "too_many_commands", None)
    daemon.http.post(base(sid, "c3", "signal"), json={"signal": "KILL"})
    ended(daemon, sid, "c3")
    begin(daemon, sid, argv=["true"])
    assert refused(daemon.http.get(base(sid, "c3"))) == (404, "command_not_found", None)


def test_beside_execs_and_a_fork(daemon: Daemon) -> None:
    """A command holds up no exec; it and those who watch it go on after a fork."""
    sid = daemon.create()
    cid = begin(daemon, sid, "while read x; do echo $x; done", stdin=True)
    with watched(daemon, sid, cid) as seen:
        assert next(seen)["type"] == "started"
        assert daemon.exec(sid, "echo x")[0]["data"] == "x"
        r = daemon.http.post(f"/v1/sandboxes/{sid}/fork")
        assert r.status_code == 200, r.text
        assert write(daemon, sid, cid, b"after\n", "?close=1").status_code == 204
        assert next(seen)["data"] == "after\n"
        assert next(seen)["type"] == "exit"
    child = r.json()["children"][0]
    assert daemon.http.get(base(child)).status_code == 200


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body,field",
    [
        ({}, "code"),
        ({"code": 7}, "code"),
        ({"code": "x", "argv": ["x"]}, "argv"),
        ({"argv": []}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"argv": ["x"], "language": "bash"}, "argv"),
        ({"code": "x", "language": "python"}, "language"),
        ({"code": "x", "language": "ruby"}, "language"),
        ({"code": "x", "language": "javascript"}, "language"),
        ({"code": "x", "command_id": "a b"}, "command_id"),
        ({"code": "x", "command_id": ""}, "command_id"),
        ({"code": "x", "command_id": "x" * 65}, "command_id"),
        ({"code": "x", "stdin": "text"}, "stdin"),
        ({"code": "x", "timeout": -1}, "timeout"),
        ({"code": "x", "pty": True}, "pty"),
        ({"code": "x", "pty": {}}, "cols"),
        ({"code": "x", "pty": {"cols": 80}}, "rows"),
        ({"code": "x", "pty": {"cols": 80, "rows": 0}}, "rows"),
        ({"code": "x", "pty": {"cols": 1001, "rows": 1}}, "cols"),
        ({"code": "x", "pty": {"cols": 80, "rows": 24, "x": 1}}, "x"),
        ({"code": "x", "env": {"A=B": ""}}, "env"),
        ({"code": "x", "user": "x"}, "user"),
        ({"code": "x", "cwd": "/nowhere"}, "cwd"),
        ({"argv": ["no-such-program"]}, "argv"),
        ({"code": "x", "rich": True}, "rich"),
    ],
)
def test_bodies_are_checked(daemon: Daemon, body: dict, field: str) -> None:
    sid = daemon.create()
    assert refused(daemon.http.post(base(sid), json=body)) == (400, "invalid_request", field)
    assert daemon.http.get(base(sid)).json() == {"commands": []}


def test_there_is_no_such_command(daemon: Daemon) -> None:
    sid = daemon.create()
    size, sig = {"cols": 80, "rows": 24}, {"signal": 9}
    for cid in ("none", "x" * 64, "x" * 65, "a.b", "%2e%2e"):
        for r in (
            daemon.http.get(base(sid, cid)),
            daemon.http.delete(base(sid, cid)),
            daemon.http.get(base(sid, cid, "stream")),
            daemon.http.post(base(sid, cid, "stdin"), content=b"x"),
            daemon.http.post(base(sid, cid, "signal"), json=sig),
            daemon.http.post(base(sid, cid, "resize"), json=size),
        ):
            assert refused(r) == (404, "command_not_found", None)


def test_signals_are_checked(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, argv=["sleep", "600"])
    for bad in ({}, {"signal": 0}, {"signal": 65}, {"signal": "NONE"}, {"signal": ""}):
        r = daemon.http.post(base(sid, cid, "signal"), json=bad)
        assert refused(r) == (400, "invalid_request", "signal")
    r = daemon.http.post(base(sid, cid, "signal"), json={"signal": 9, "group": 1})
    assert refused(r) == (400, "invalid_request", "group")
    assert info(daemon, sid, cid)["state"] == "running"
    assert daemon.http.post(base(sid, cid, "signal"), json={"signal": "TERM"}).status_code == 200
    assert ended(daemon, sid, cid)["signal"] == signal.SIGTERM


# --- terminals ------------------------------------------------------------------------------


def test_a_terminal_and_its_size(daemon: Daemon) -> None:
    sid = daemon.create()
    code = "stty size; echo $TERM; read x; stty size"
    cid = begin(daemon, sid, code, pty={"cols": 77, "rows": 11})
    assert info(daemon, sid, cid)["pty"] is True
    wait_for(lambda: info(daemon, sid, cid)["stdout"]["end"] > 10)
    size = {"cols": 120, "rows": 40}
    r = daemon.http.post(base(sid, cid, "resize"), json=size)
    assert (r.status_code, r.content) == (204, b"")
    assert write(daemon, sid, cid, b"\n").status_code == 204
    ev = events(daemon, sid, cid)
    assert output(ev) == b"11 77\r\nxterm-256color\r\n\r\n40 120\r\n"
    for bad in ({}, {"cols": 1}, {"cols": 0, "rows": 1}, {"cols": 1, "rows": 1001}):
        r = daemon.http.post(base(sid, cid, "resize"), json=bad)
        assert (r.status_code, r.json()["code"]) == (400, "invalid_request")
    plain = begin(daemon, sid, "sleep 600")
    r = daemon.http.post(base(sid, plain, "resize"), json=size)
    assert (r.status_code, r.json()["code"]) == (400, "invalid_request")


# --- stdin ----------------------------------------------------------------------------------


def test_much_stdin_in_order(daemon: Daemon) -> None:
    """Far more than any window, in many writes, to a reader that is late."""
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 0.5; md5sum; sleep 0.1", stdin=True)
    data = os.urandom(3_000_000)
    for i in range(0, 20_000, 1000):
        assert write(daemon, sid, cid, data[i : i + 1000]).status_code == 204

    def pieces() -> Iterator[bytes]:
        for i in range(20_000, len(data), 70_001):
            yield data[i : i + 70_001]

    r = daemon.http.post(base(sid, cid, "stdin") + "?close=1", content=pieces())
    assert r.status_code == 204
    assert output(events(daemon, sid, cid)).split()[0] == hashlib.md5(data).hexdigest().encode()


def test_stdin_that_is_closed(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "cat; sleep 600", stdin=True)
    assert write(daemon, sid, cid, b"x", "?close=0").status_code == 204
    assert write(daemon, sid, cid, b"", "?close=1").status_code == 204
    assert refused(write(daemon, sid, cid, b"y")) == (409, "stdin_closed", None)
    without = begin(daemon, sid, "sleep 600")
    assert refused(write(daemon, sid, without, b"y")) == (409, "stdin_closed", None)
    over = begin(daemon, sid, "true", stdin=True)
    ended(daemon, sid, over)
    assert refused(write(daemon, sid, over, b"y")) == (409, "command_ended", None)
    for bad in ("2", "", "true", "1&close=1"):
        r = write(daemon, sid, cid, b"", f"?close={bad}")
        assert refused(r) == (400, "invalid_request", "close")


def test_one_writer(daemon: Daemon) -> None:
    """A write that waits for its reader keeps others out until it is given up."""
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600", stdin=True)
    with socket.create_connection(("127.0.0.1", daemon.port)) as s:
        head = f"POST {base(sid, cid, 'stdin')} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
        s.sendall(head.encode() + bytes(1000))
        wait_for(lambda: write(daemon, sid, cid, b"x").status_code == 409)
        assert refused(write(daemon, sid, cid, b"x")) == (409, "sandbox_busy", None)
    wait_for(lambda: write(daemon, sid, cid, b"x").status_code == 204)


def test_it_ends_while_it_is_written_to(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 0.7; exit 4", stdin=True)
    r = write(daemon, sid, cid, bytes(4_000_000))
    # What nobody reads is thrown away at its end, or the end is told.
    assert r.status_code == 204 or refused(r) == (409, "command_ended", None)
    assert ended(daemon, sid, cid)["exit_code"] == 4


@pytest.mark.bounds
def test_a_client_that_sends_for_ever(daemon: Daemon) -> None:
    """To a command that does not read: what waits in the daemon is bounded."""
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600", stdin=True)
    before = daemon.rss_kib()
    with socket.create_connection(("127.0.0.1", daemon.port)) as s:
        head = f"POST {base(sid, cid, 'stdin')} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n"
        s.sendall(head.encode())
        s.settimeout(1)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += s.send(bytes(1 << 20))
        except TimeoutError:
            pass
        assert sent < 48 << 20
        assert daemon.rss_kib() - before < (40_000 if SANITIZED else 2_000)
        assert daemon.exec(sid, "echo x")[0]["data"] == "x"


@pytest.mark.bounds
def test_a_client_that_does_not_read(daemon: Daemon) -> None:
    """The command goes on; what waits in the daemon is bounded."""
    sid = daemon.create()
    cid = begin(daemon, sid, "head -c 60000000 /dev/zero; exit 6")
    before = daemon.rss_kib()
    with socket.create_connection(("127.0.0.1", daemon.port)) as s:
        s.sendall(f"GET {base(sid, cid, 'stream')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert ended(daemon, sid, cid)["exit_code"] == 6
        assert daemon.rss_kib() - before < (40_000 if SANITIZED else 4_000)
    ev = events(daemon, sid, cid, "?stdout=59999990")
    assert output(ev) == bytes(10) and ev[-1]["data"] == 6


# --- ends from elsewhere --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["delete", "poweroff"])
def test_the_sandbox_ends(daemon: Daemon, how: str) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "echo x; sleep 600", stdin=True)
    answers: list[httpx.Response] = []
    with watched(daemon, sid, cid) as seen:
        assert next(seen)["type"] == "started" and next(seen)["data"] == "x\n"
        writer = threading.Thread(
            target=lambda: answers.append(
                httpx.post(daemon.url + base(sid, cid, "stdin"), content=bytes(9 << 20))
            )
        )
        writer.start()
        time.sleep(0.3)
        if how == "delete":
            daemon.http.delete(f"/v1/sandboxes/{sid}")
        else:
            daemon.exec(sid, "#fake:poweroff")
        rest = list(seen)
        writer.join()
    assert rest[0]["type"] == "stderr" and "sandbox ended" in rest[0]["data"]
    assert rest[-1]["data"] == -1 and rest[-1]["state"] == "lost"
    assert rest[-1]["termination_reason"] == ("closed" if how == "delete" else "vm_ended")
    assert answers[0].status_code == 409
    assert answers[0].json()["code"] == "sandbox_ended"
    r = daemon.http.get(base(sid))
    assert r.status_code == (404 if how == "delete" else 409)


def test_the_daemon_stops(start: Callable[..., Daemon]) -> None:
    """With watchers and writers open: the fixture looks at how it ends."""
    d = start()
    sid = d.create()
    cid = begin(d, sid, "sleep 600", stdin=True)
    with socket.create_connection(("127.0.0.1", d.port)) as s:
        s.sendall(f"GET {base(sid, cid, 'stream')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        came = b""
        while b"started" not in came:
            came += s.recv(65536)
        with socket.create_connection(("127.0.0.1", d.port)) as w:
            head = f"POST {base(sid, cid, 'stdin')} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
            w.sendall(head.encode() + bytes(1 << 20))
            assert d.stop() == 0


def test_it_is_deleted_under_its_watcher(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600")
    with watched(daemon, sid, cid) as seen:
        next(seen)
        assert daemon.http.delete(base(sid, cid)).status_code == 204
        assert next(seen)["type"] == "exit"


# --- a hostile agent ------------------------------------------------------------------------

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


def lie(daemon: Daemon, sid: str, *frames: tuple[int, object]) -> None:
    """What the agent answers to COMMAND from now on."""
    told = [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in frames]
    daemon.exec(sid, "#fake:set " + json.dumps({"command_raw": json.dumps(told)}))


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


HERE = {"type": "position", "pid": 5, "stdout": 0, "stderr": 0}
OK = (0x89, HERE)


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
