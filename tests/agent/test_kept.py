# SPDX-License-Identifier: Apache-2.0
"""Kept commands: their life, their logs, and who reads them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Iterator

import pytest
from agent_client import (
    CANCEL,
    COMMAND,
    ERROR,
    EXEC,
    FREEZE,
    INTERRUPT,
    OK,
    RENEW,
    STDERR,
    STDOUT,
    THAW,
    Closed,
    Stream,
    renew_request,
)
from conftest import ROOT, Agent, wait_for
from kept_client import ask, attach, entries, forget, new_id, refused, rests, run, start
from test_bash import alive

MIB = 1 << 20
EXIT_MEMBERS = {"exit_code", "reason", "state", "duration_ms", "truncated", "bytes_dropped"}


@pytest.fixture(autouse=True)
def forget_all(agent: Agent) -> Iterator[None]:
    """Leaves none behind in the agent that the tests share."""
    yield
    forget(agent, *entries(agent))


def test_a_call_like_any(agent: Agent) -> None:
    keep, a = start(agent, "echo one; echo two >&2; exit 3")
    end = a.finish()
    assert (a.stdout, a.stderr, end["exit_code"], end["reason"]) == (b"one\n", b"two\n", 3, "exited")
    assert set(end) == EXIT_MEMBERS and (end["truncated"], end["bytes_dropped"]) == (False, 0)
    assert a.began == {STDOUT: 0, STDERR: 0} and a.pid > 0
    # The stream is idle, and takes the next request.
    assert a.stream.bash("echo x").stdout == b"x\n"
    log = agent.home / ".podflare" / f"cmd-{keep}.stdout"
    assert log.read_bytes() == b"one\n" and log.stat().st_uid == (1000 if ROOT else os.geteuid())


def test_languages(agent: Agent) -> None:
    keep = new_id()
    with agent.stream() as s:
        s.send(EXEC, {"language": "argv", "argv": ["echo", "a b", ""], "keep": keep})
        s.body(b"")
        assert s.finish().stdout == b"a b \n"
    entry = entries(agent)[keep]
    assert entry["argv"] == ["echo", "a b", ""] and "code" not in entry
    assert refused(agent, {"language": "python", "keep": new_id()}, EXEC) == "bad_request"


def test_outlives_its_stream(agent: Agent) -> None:
    keep, a = start(agent, "echo on; while [ ! -e go ]; do sleep 0.02; done; echo off; exit 4")
    a.until(b"on\n")
    a.close()
    time.sleep(0.1)
    entry = entries(agent)[keep]
    assert entry["state"] == "running" and entry["stdout"] == {"start": 0, "end": 3}
    assert alive(entry["pid"]) and entry["pid"] == a.pid and "exit_code" not in entry
    (agent.home / "go").touch()
    wait_for(lambda: entries(agent)[keep]["state"] == "ended", "its end")
    (agent.home / "go").unlink()
    b = attach(agent, keep)
    end = b.finish()
    assert b.stdout == b"on\noff\n" and end["exit_code"] == 4
    # The time stands still once it has ended.
    time.sleep(0.1)
    assert attach(agent, keep).finish() == end


def test_entry(agent: Agent) -> None:
    code = "exit 3 # " + "\u20ac" * 200
    keep = run(agent, code, cwd="/usr/../usr/bin")
    other, a = start(agent, "kill -9 $$")
    a.finish()
    entry = entries(agent)[keep]
    assert entry["cwd"] == "/usr/bin" and entry["language"] == "bash" and entry["pty"] is False
    assert code.startswith(entry["code"]) and 197 < len(entry["code"].encode()) <= 200
    assert (entry["state"], entry["exit_code"], entry["reason"]) == ("ended", 3, "exited")
    assert "signal" not in entry and 0 <= entry["ended_ms"] <= entry["started_ms"] < 60_000
    assert (entry["truncated"], entry["bytes_dropped"]) == (False, 0)
    entry = entries(agent)[other]
    assert (entry["exit_code"], entry["reason"], entry["signal"]) == (137, "signaled", 9)
    assert list(entries(agent)) == [keep, other]


def test_offsets(agent: Agent) -> None:
    keep = run(agent, "seq -f %07.0f 0 49999; seq -f %07.0f 50000 59999 >&2")
    out = b"".join(b"%07d\n" % n for n in range(50000))
    err = b"".join(b"%07d\n" % n for n in range(50000, 60000))
    for at in (0, 1, 65535, 65536, len(out) - 1, len(out), len(out) + 1, 2**63 - 1, -1):
        a = attach(agent, keep, stdout=at, stderr=at)
        a.finish()
        for kind, whole in ((STDOUT, out), (STDERR, err)):
            begin = len(whole) if at < 0 else min(at, len(whole))
            assert a.began[kind] == begin and a.out[kind] == whole[begin:]
    a = attach(agent, keep, stdout=-1)
    a.finish()
    assert (a.stdout, a.stderr) == (b"", err)


def test_detach_and_attach_again(agent: Agent) -> None:
    """Many streams one after the other, each going on where the one before was."""
    keep, a = start(agent, "for i in $(seq 0 2999); do printf '%07d\\n' $i; done")
    got, at, rounds = b"", 0, 0
    while a.exit is None:
        a.step()
        if len(a.stdout) > 1000 and a.exit is None:
            got, at, rounds = got + a.stdout, a.at[STDOUT], rounds + 1
            a.close()
            a = attach(agent, keep, stdout=at)
            assert a.began[STDOUT] == at == len(got)
    assert got + a.stdout == b"".join(b"%07d\n" % n for n in range(3000)) and rounds > 1


def test_two_at_once(agent: Agent) -> None:
    keep, a = start(agent, "read x; seq 1 200000; echo e >&2", stdin=True)
    b = attach(agent, keep)
    late = attach(agent, keep, stdout=-1)
    a.stream.send(0x10, b"go\n")
    whole = b"".join(b"%d\n" % n for n in range(1, 200001))
    for c in (b, a, late):
        c.finish()
        assert (c.stdout, c.stderr) == (whole, b"e\n")


def test_slow_reader_holds_nobody_up(agent: Agent) -> None:
    """The command ends, and the other reader gets all, though one does not read at all."""
    keep, slow = start(agent, "head -c 30000000 /dev/zero; echo end >&2")
    fast = attach(agent, keep)
    fast.finish()
    assert len(fast.stdout) == 30_000_000
    assert not agent.grown(80_000, "VmHWM")
    assert entries(agent)[keep]["state"] == "ended"
    # It has lost nothing.
    slow.finish()
    assert len(slow.stdout) == 30_000_000 and slow.stderr == b"end\n"


def test_attach_while_nothing_comes(agent: Agent) -> None:
    """No busy loop, neither with a reader at the end nor with one that does not read."""
    keep, a = start(agent, "head -c 3000000 /dev/zero; sleep 1000")
    b = attach(agent, keep)
    while len(b.stdout) < 3_000_000:
        b.step()
    time.sleep(0.1)
    assert rests(agent)


def test_children_left_behind(agent: Agent) -> None:
    """Their output after the end is nobody's."""
    _, a = start(agent, "(sleep 0.3; echo late; echo on >left) & echo early")
    assert a.finish()["exit_code"] == 0 and a.stdout == b"early\n"
    wait_for((agent.home / "left").exists, "the child to go on")
    (agent.home / "left").unlink()


def test_deadline(agent: Agent) -> None:
    _, a = start(agent, "trap '' INT TERM; echo on; while :; do sleep 0.1; done", timeout_ms=300)
    end = a.finish()
    assert (end["exit_code"], end["reason"], a.stdout) == (124, "timeout", b"on\n")


def test_cancel_and_interrupt(agent: Agent) -> None:
    _, a = start(agent, "echo on; sleep 1000")
    a.until(b"on\n")
    a.stream.send(INTERRUPT)
    assert a.finish()["reason"] == "interrupted"
    keep, a = start(agent, "trap '' INT; echo on; sleep 1000")
    a.until(b"on\n")
    b = attach(agent, keep)
    b.stream.send(INTERRUPT)
    b.stream.send(CANCEL)
    assert b.finish()["reason"] == a.finish()["reason"] == "cancelled"
    assert not alive(a.pid)


def test_signal(agent: Agent) -> None:
    keep, a = start(agent, "trap 'echo usr' USR1; echo on; while :; do sleep 0.02; done")
    a.until(b"on\n")
    assert ask(agent, "signal", keep, signal=int(signal.SIGUSR1), group=False) == {}
    a.until(b"usr\n")
    assert ask(agent, "signal", keep, signal=15) == {}
    end = a.finish()
    assert (end["reason"], end["signal"], end["exit_code"]) == ("signaled", 15, 143)
    assert ask(agent, "signal", keep, signal=15) == {"ended": True}


def test_signal_group(agent: Agent) -> None:
    """To the whole process group, or to the first process alone."""
    code = "trap 'echo term' TERM; sleep 1000 & echo $!; while :; do wait; done"
    keep, a = start(agent, code)
    a.until(b"\n")
    child = int(a.stdout)
    assert ask(agent, "signal", keep, signal=15, group=False) == {}
    a.until(b"term\n")
    assert alive(child)
    assert ask(agent, "signal", keep, signal=15) == {}
    wait_for(lambda: not alive(child), "the child to end")


def test_forget(agent: Agent) -> None:
    keep = run(agent, "echo x")
    assert len(list((agent.home / ".podflare").glob(f"cmd-{keep}.*"))) == 2
    assert ask(agent, "forget", keep) == {}
    assert list((agent.home / ".podflare").glob(f"cmd-{keep}.*")) == []
    for op in ("attach", "forget"):
        assert ask(agent, op, keep) == {"code": "not_found", "message": "no such command"}
    assert ask(agent, "signal", keep, signal=9)["code"] == "not_found"
    assert run(agent, "echo y", keep=keep) == keep


def test_forget_while_it_runs(agent: Agent) -> None:
    """Those who are attached get all of it and EXIT; then it is gone."""
    fds = agent.fds()
    keep, a = start(agent, "trap '' TERM INT; head -c 5000000 /dev/zero; echo on >&2; sleep 1000")
    b = attach(agent, keep)
    b.until(b"on\n", STDERR)
    assert ask(agent, "forget", keep) == {}
    assert not alive(a.pid) and keep not in entries(agent)
    # The name is free, while one still reads what was.
    again = run(agent, "echo new", keep=keep)
    for c in (a, b):
        assert c.finish()["reason"] == "cancelled" and len(c.stdout) == 5_000_000
        c.close()
    c = attach(agent, again)
    c.finish()
    assert c.stdout == b"new\n"
    c.close()
    forget(agent, keep)
    wait_for(lambda: agent.fds() <= fds, "all descriptors to be closed")


def test_forget_and_go_away(agent: Agent) -> None:
    keep, a = start(agent, "trap '' TERM INT; echo on; sleep 1000")
    a.until(b"on\n")
    with agent.stream() as s:
        s.send(COMMAND, {"op": "forget", "id": keep})
    assert a.finish()["reason"] == "cancelled"
    assert entries(agent) == {}


def test_exists(agent: Agent) -> None:
    keep, a = start(agent, "sleep 1000")
    assert refused(agent, {"language": "bash", "keep": keep}, EXEC) == "exists"
    ask(agent, "signal", keep, signal=9)
    a.finish()
    assert refused(agent, {"language": "bash", "keep": keep}, EXEC) == "exists"


def test_a_signal_at_once(agent: Agent) -> None:
    """It may come before the command has a process group of its own."""
    for _ in range(20):
        keep, a = start(agent, "sleep 1000")
        assert ask(agent, "signal", keep, signal=9) == {}
        assert a.finish()["signal"] == 9
        a.close()
        forget(agent, keep)


def test_too_many(own_agent: Agent) -> None:
    """The oldest that has ended makes room; when all run there is none."""
    agent = own_agent
    running = [start(agent, "sleep 1000")[0] for _ in range(30)]
    ended = [run(agent, "true") for _ in range(2)]
    assert list(entries(agent)) == running + ended
    more, _ = start(agent, "sleep 1000")
    assert list(entries(agent)) == running + ended[1:] + [more]
    # One that cannot be started costs nobody his place.
    assert refused(agent, {"language": "bash", "keep": "x", "cwd": "/nowhere"}, EXEC) == "not_found"
    assert list(entries(agent)) == running + ended[1:] + [more]
    last, _ = start(agent, "sleep 1000")
    assert refused(agent, {"language": "bash", "keep": "x"}, EXEC) == "too_many"
    assert list(entries(agent)) == [*running, more, last]
    assert len(list((agent.home / ".podflare").glob("cmd-*"))) == 64
    forget(agent, running[0])
    assert run(agent, "true", keep="x") == "x"
    forget(agent, *entries(agent))


def test_the_longest_list(own_agent: Agent) -> None:
    """It fits a frame, whatever the commands are called and do."""
    deep = own_agent.home / "/".join(["\u0001" * 200] * 15)
    deep.mkdir(parents=True)
    if ROOT:
        for path in [deep, *deep.parents]:
            if path.is_relative_to(own_agent.home):
                os.chown(path, 1000, 1000)
    for n in range(32):
        with own_agent.stream() as s:
            request = {"language": "argv", "argv": ["\u0001" * 150] + ["\u0002"] * 50, "keep": f"{n:064}"}
            s.send(EXEC, {**request, "cwd": str(deep)})
            s.body(b"")
            assert s.finish().code == 127
    got = entries(own_agent)
    assert len(got) == 32 and all("cwd" not in e and e["argv"][0] == "\u0001" * 150 for e in got.values())


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"op": "x"},
        {"op": 1},
        {"op": "attach"},
        {"op": "attach", "id": ""},
        {"op": "attach", "id": "a/b"},
        {"op": "attach", "id": "a" * 65},
        {"op": "attach", "id": "a", "stdout": -2},
        {"op": "attach", "id": "a", "stdout": 1.5},
        {"op": "attach", "id": "a", "stderr": 2**63},
        {"op": "attach", "id": "a", "stdin": 1},
        {"op": "signal", "id": "a"},
        {"op": "signal", "id": "a", "signal": 0},
        {"op": "signal", "id": "a", "signal": 65},
        {"op": "signal", "id": "a", "signal": "TERM"},
        {"op": "signal", "id": "a", "signal": 9, "group": 1},
        {"op": "forget", "id": 5},
    ],
)
def test_bad_requests(agent: Agent, request_: dict[str, object]) -> None:
    assert refused(agent, request_) == "bad_request"


@pytest.mark.parametrize("keep", ["", "../x", "a b", "a" * 65, 5, None])
def test_bad_ids(agent: Agent, keep: object) -> None:
    assert refused(agent, {"language": "bash", "keep": keep}, EXEC) == "bad_request"


def test_a_command_that_does_not_start(agent: Agent) -> None:
    fds = agent.fds()
    for extra in ({"cwd": "/nowhere"}, {"user": "root"} if not ROOT else {"cwd": "/etc/hostname"}):
        refused(agent, {"language": "bash", "keep": "never", "stdin": True, **extra}, EXEC)
    assert entries(agent) == {}
    wait_for(lambda: agent.fds() <= fds, "all descriptors to be closed")


def test_destroyed_log(agent: Agent) -> None:
    """The user's own loss, and nobody else's."""
    keep, a = start(agent, "read x; head -c 100000 /dev/zero; read x; echo end", stdin=True)
    a.stream.send(0x10, b"1\n")
    while len(a.stdout) < 100_000:
        a.step()
    os.truncate(agent.home / ".podflare" / f"cmd-{keep}.stdout", 50_000)
    b = attach(agent, keep)
    while len(b.places) < 2 and len(b.stdout) < 50_000:
        b.step()
    a.stream.send(0x10, b"2\n")
    assert a.finish()["bytes_dropped"] == 0 and a.stdout.endswith(b"\0end\n")
    end = b.finish()
    assert (end["truncated"], end["bytes_dropped"]) == (True, 50_000)
    assert b.stdout == b"\0" * 50_000 + b"end\n" and b.places == [(0, 0), (100_000, 0)]


@pytest.mark.skipif(not ROOT, reason="mounts a file system")
def test_full_disk(own_agent: Agent) -> None:
    """Output that has no place is dropped and counted; the command goes on, and so does its log."""
    log_dir = own_agent.home / ".podflare"
    log_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "none", str(log_dir)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        code = "head -c 3000000 /dev/zero | tr '\\0' x; read x; echo end"
        keep, a = start(own_agent, code, stdin=True)
        wait_for(lambda: entries(own_agent)[keep]["bytes_dropped"], "the disk to be full")
        wait_for(
            lambda: (e := entries(own_agent)[keep])["stdout"]["end"] + e["bytes_dropped"] == 3_000_000,
            "all to be written",
        )
        entry = entries(own_agent)[keep]
        assert entry["truncated"] is True and 500_000 < entry["stdout"]["end"] <= MIB
        other, b = start(own_agent, "echo nothing; exit 5")
        assert b.finish()["bytes_dropped"] == 8 and b.stdout == b""
        forget(own_agent, other)
        subprocess.run(["mount", "-o", "remount,size=2m", str(log_dir)], check=True)
        a.stream.send(0x10, b"go\n")
        end = a.finish()
        kept = entry["stdout"]["end"]
        assert a.stdout == b"x" * kept + b"end\n"
        assert (end["truncated"], end["bytes_dropped"]) == (True, 3_000_000 - kept)
        a.close()
        b.close()
        forget(own_agent, keep)
    finally:
        subprocess.run(["umount", "-l", str(log_dir)], check=True)


def test_long_log(own_agent: Agent) -> None:
    """Past 256 MiB the oldest half goes; offsets go on; a reader who missed it is told."""
    agent = own_agent
    line = b"0123456789abcde\n"
    keep, slow = start(agent, "yes 0123456789abcde | head -c 300000000; echo end")
    wait_for(lambda: entries(agent)[keep]["state"] == "ended", "its end", 120)
    entry = entries(agent)[keep]
    assert entry["stdout"] == {"start": 128 * MIB, "end": 300_000_004}
    assert (entry["truncated"], entry["bytes_dropped"]) == (False, 0)
    log = agent.home / ".podflare" / f"cmd-{keep}.stdout"
    assert log.stat().st_size == 300_000_004
    assert log.stat().st_blocks * 512 <= 300_000_004 - 128 * MIB + MIB
    assert not agent.grown(80_000, "VmHWM")
    a = attach(agent, keep, stdout=128 * MIB - 3)
    assert a.began[STDOUT] == 128 * MIB
    a.close()
    a = attach(agent, keep, stdout=300_000_004 - 20)
    assert a.finish()["bytes_dropped"] == 0 and a.stdout == (line + b"end\n")[-20:]
    # One that began in time and read nothing.
    parts = []
    while slow.exit is None:
        slow.step()
        parts.append(slow.stdout)
        slow.out[STDOUT] = b""
    assert len(slow.places) == 2 and slow.places[1] == (128 * MIB, 0)
    got = sum(map(len, parts))
    assert slow.exit["bytes_dropped"] == 300_000_004 - got > 0 and slow.exit["truncated"] is True
    assert parts[-2].endswith(b"end\n") or parts[-1].endswith(b"end\n")
    forget(agent, keep)


# --- copies


COUNT = "echo on; n=0; while [ ! -e stop ]; do echo $((n++)); sleep 0.01; done; read x; echo $x"


def test_freeze_and_thaw(own_agent: Agent) -> None:
    keep, a = start(own_agent, COUNT, stdin=True)
    a.until(b"on\n")
    with own_agent.stream() as host:
        assert "groups" in host.ask(FREEZE)
        assert host.ask(COMMAND, {"op": "list"})["code"] == "busy"
        assert refused(own_agent, {"op": "attach", "id": keep}) == "busy"
        assert host.ask(THAW) == {}
    (own_agent.home / "stop").touch()
    a.stream.send(0x10, b"word\n")
    assert a.finish()["exit_code"] == 0
    lines = a.stdout.split()
    assert lines[0] == b"on" and lines[-1] == b"word"
    assert lines[1:-1] == [b"%d" % n for n in range(len(lines) - 2)]


def test_copies_keep_them(own_agent: Agent) -> None:
    """A copy has the command, its logs and its open input; the attachments are the original's."""
    keep, a = start(own_agent, COUNT, stdin=True)
    done = run(own_agent, "echo done")
    a.until(b"on\n")
    with own_agent.stream() as host:
        assert "groups" in host.ask(FREEZE)
    with own_agent.stream() as host:
        assert host.ask(RENEW, renew_request(kind="fork", generation=1)) == {}
    with pytest.raises((Closed, ConnectionResetError)):
        while True:
            a.step()
    assert {k: e["state"] for k, e in entries(own_agent).items()} == {keep: "running", done: "ended"}
    b = attach(own_agent, done)
    b.finish()
    assert b.stdout == b"done\n"
    b = attach(own_agent, keep, stdin=True)
    (own_agent.home / "stop").touch()
    b.stream.send(0x10, b"word\n")
    assert b.finish()["exit_code"] == 0
    assert b.stdout.startswith(a.stdout) and b.stdout.endswith(b"\nword\n")


def test_streams_are_their_own(agent: Agent, stream: Stream) -> None:
    """What is not expected on an attached stream ends that stream, and nothing else."""
    keep, a = start(agent, "echo on; sleep 1000")
    a.until(b"on\n")
    for kind in (EXEC, COMMAND, 0x06, 0x07, 0x10, 0x11):
        b = attach(agent, keep)
        b.stream.send(kind, {} if kind in (EXEC, COMMAND) else b"")
        while True:
            got, payload = b.stream.recv()
            if got == ERROR:
                break
            assert got == STDOUT
        assert b"bad_request" in payload
        with pytest.raises(Closed):
            b.stream.recv()
    assert entries(agent)[keep]["state"] == "running"
    stream.send(COMMAND, {"op": "signal", "id": keep, "signal": 9})
    assert stream.recv_json(OK) == {}
    assert a.finish()["signal"] == 9


def test_many_attachments(own_agent: Agent) -> None:
    """Bounded memory, though none of them reads."""
    keep, a = start(own_agent, "head -c 60000000 /dev/zero; echo end >&2")
    others = [attach(own_agent, keep) for _ in range(60)]
    a.finish()
    assert len(a.stdout) == 60_000_000
    assert not own_agent.grown(80_000, "VmHWM")
    for other in others[:30]:
        other.close()
    forget(own_agent, keep)
    assert others[-1].finish()["exit_code"] == 0
