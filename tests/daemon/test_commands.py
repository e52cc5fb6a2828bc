"""Kept commands: they go on without a client, and the daemon keeps nothing of them. What is written to
them: test_commands_stdin.py; an agent that lies: test_commands_agent.py."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from conftest import Daemon, wait_for
from execs import SLACK
from kept import base, begin, ended, events, info, output, raw_of, refused, watched, write


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
