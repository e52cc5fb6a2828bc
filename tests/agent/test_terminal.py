# SPDX-License-Identifier: Apache-2.0
"""Kept commands on a terminal."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from typing import Any, Iterator

import pytest
from agent_client import EXEC, FREEZE, RENEW, RESIZE, STDIN, STDIN_END, THAW, Closed, renew_request
from conftest import ROOT, Agent, wait_for
from kept_client import Attached, ask, attach, entries, forget, new_id, refused, rests, start

PTY = {"cols": 91, "rows": 33}


@pytest.fixture(autouse=True)
def forget_all(agent: Agent) -> Iterator[None]:
    """Leaves none behind in the agent that the tests share."""
    yield
    forget(agent, *entries(agent))


def on_terminal(agent: Agent, code: str, **extra: Any) -> tuple[str, Attached]:
    """Bash code on a terminal, its input on this stream."""
    return start(agent, code, pty=PTY, **{"stdin": True, **extra})


def shell(agent: Agent) -> tuple[str, Attached]:
    """An interactive shell, at its prompt."""
    keep = new_id()
    s = agent.stream()
    s.send(EXEC, {"language": "argv", "argv": ["bash", "--norc", "--noprofile", "-i"], "keep": keep}
           | {"pty": PTY, "stdin": True, "env": {"PS1": "<> "}})
    s.body(b"")
    a = Attached(s)
    a.until(b"<> ")
    return keep, a


def test_what_it_is(agent: Agent) -> None:
    keep, a = on_terminal(agent, "tty; stty size; echo $TERM; [ -t 0 -a -t 1 -a -t 2 ]; echo $?; echo e >&2; exit 5")
    end = a.finish()
    lines = a.stdout.split(b"\r\n")
    assert lines[0].startswith(b"/dev/pts/") and lines[1:] == [b"33 91", b"xterm-256color", b"0", b"e", b""]
    assert a.stderr == b"" and (end["exit_code"], end["reason"]) == (5, "exited")
    entry = entries(agent)[keep]
    assert entry["pty"] is True and entry["stdout"]["end"] == len(a.stdout) and entry["stderr"]["end"] == 0


def test_its_owner_and_mode(agent: Agent) -> None:
    _, a = on_terminal(agent, "stat -c '%u %a' $(tty); stty -a | grep -o -- '-*iutf8'")
    a.finish()
    assert a.stdout == f"{1000 if ROOT else os.geteuid()} 620\r\niutf8\r\n".encode()


def test_env_of_the_request_wins(agent: Agent) -> None:
    _, a = on_terminal(agent, "echo $TERM $A", env={"TERM": "vt100", "A": "b"})
    a.finish()
    assert a.stdout == b"vt100 b\r\n"


def test_controlling_terminal(agent: Agent) -> None:
    """Ctrl-C and ctrl-Z go to who is in the foreground; the shell controls jobs."""
    _, a = shell(agent)
    a.stream.send(STDIN, b"sleep 1000\n")
    time.sleep(0.3)
    a.stream.send(STDIN, b"\x03")
    a.stream.send(STDIN, b"echo code=$?\n")
    a.until(b"code=130\r\n")
    a.stream.send(STDIN, b"sleep 1000\n")
    time.sleep(0.3)
    a.stream.send(STDIN, b"\x1a")
    a.until(b"Stopped")
    a.stream.send(STDIN, b"echo job=$(jobs -r | wc -l); bg >/dev/null; kill %1; exit 7\n")
    end = a.finish()
    assert b"job=0" in a.stdout and end["exit_code"] == 7


def test_resize(agent: Agent) -> None:
    keep, a = on_terminal(agent, "trap 'echo winch' WINCH; while :; do stty size; sleep 0.02; done")
    a.until(b"33 91\r\n")
    a.stream.send(RESIZE, {"cols": 100, "rows": 1})
    a.until(b"winch\r\n")
    a.until(b"\n1 100\r\n")
    b = attach(agent, keep)
    b.stream.send(RESIZE, {"cols": 1000, "rows": 1000})
    a.until(b"1000 1000\r\n")
    b.until(b"1000 1000\r\n")
    ask(agent, "signal", keep, signal=9)
    a.finish()
    # It has crossed the EXIT on its way.
    a.stream.send(RESIZE, {"cols": 5, "rows": 5})
    assert a.stream.bash("echo x").stdout == b"x\n"


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", b"{}", b"[]", b'{"cols":1}']
    + [b'{"cols":0,"rows":1}', b'{"cols":1,"rows":1001}', b'{"cols":1.5,"rows":1}'],
)
def test_bad_resize(agent: Agent, payload: bytes) -> None:
    """Ends the stream, not the command."""
    keep, a = on_terminal(agent, "sleep 1000")
    a.stream.send(RESIZE, payload)
    with pytest.raises((Closed, AssertionError)):
        a.finish()
    assert entries(agent)[keep]["state"] == "running"


def test_resize_of_what_has_no_terminal(agent: Agent) -> None:
    keep, a = start(agent, "sleep 1000")
    a.stream.send(RESIZE, {"cols": 5, "rows": 5})
    with pytest.raises((Closed, AssertionError)):
        a.finish()
    assert entries(agent)[keep]["state"] == "running"
    with agent.stream() as s:
        s.start("sleep 1000", "bash")
        s.send(RESIZE, {"cols": 5, "rows": 5})
        assert s.finish().error is not None


@pytest.mark.parametrize("pty", [True, [], {}, {"cols": 80}, {"cols": 80, "rows": 0}, {"cols": 1001, "rows": 5}])
def test_bad_requests(agent: Agent, pty: object) -> None:
    assert refused(agent, {"language": "bash", "keep": "x", "pty": pty}, EXEC) == "bad_request"


def test_only_for_kept_ones(agent: Agent) -> None:
    for language in ("bash", "python"):
        assert refused(agent, {"language": language, "pty": PTY}, EXEC) == "bad_request"


def test_all_of_the_last_output(agent: Agent) -> None:
    """What was written just before the end is still on its way through the kernel then."""
    for n in range(50):
        _, a = on_terminal(agent, f"seq {n * 40}; echo end")
        a.finish()
        assert a.stdout == b"".join(b"%d\r\n" % i for i in range(1, n * 40 + 1)) + b"end\r\n"
        a.close()


def test_much_output(agent: Agent) -> None:
    keep, a = on_terminal(agent, "seq -f %07.0f 0 499999")
    late = attach(agent, keep)
    whole = b"".join(b"%07d\r\n" % n for n in range(500_000))
    a.finish()
    late.finish()
    assert a.stdout == whole and late.stdout == whole


def test_many_keys(agent: Agent) -> None:
    """More than a terminal holds: they wait, and none is lost."""
    size = 300_000
    code = "stty raw -echo; echo on; sleep 0.3; head -c %d | sha256sum" % size
    _, a = on_terminal(agent, code)
    a.until(b"on")
    data = bytes(range(256)) * (size // 256 + 1)
    sent = 0
    while sent < size:
        part = data[sent : sent + min(20_000, 65536 - (sent - a.acked), size - sent)]
        if part:
            a.stream.send(STDIN, part)
            sent += len(part)
        else:
            a.step()
    a.finish()
    assert hashlib.sha256(data[:size]).hexdigest().encode() in a.stdout


def test_back_pressure(agent: Agent) -> None:
    """Nobody reads the keys: they wait, and nothing spins."""
    keep, a = on_terminal(agent, "stty raw -echo; echo on; sleep 1000")
    a.until(b"on")
    a.stream.send(STDIN, b"x" * 65536)
    while a.acked < 4096:
        a.step()
    time.sleep(0.2)
    assert rests(agent)
    a.close()
    assert entries(agent)[keep]["state"] == "running"


def test_end_of_input(agent: Agent) -> None:
    """STDIN_END is the key for it; after that nobody writes any more."""
    keep, a = on_terminal(agent, "stty -echo; echo on; cat; echo after; sleep 1000")
    a.until(b"on\r\n")
    a.stream.send(STDIN, b"word\n")
    a.stream.send(STDIN_END)
    a.until(b"after\r\n")
    assert a.acked == 5 and a.stdout == b"on\r\nword\r\nafter\r\n"
    a.close()
    wait_for(
        lambda: refused(agent, {"op": "attach", "id": keep, "stdin": True}) == "closed", "the stream to be gone"
    )


def test_input_needs_no_stdin(agent: Agent) -> None:
    """A terminal always takes keys, from a stream that asks for it."""
    keep, a = on_terminal(agent, "stty -echo; echo on; read x; echo got $x", stdin=False)
    a.until(b"on\r\n")
    b = attach(agent, keep, stdin=True, stdout=-1)
    assert refused(agent, {"op": "attach", "id": keep, "stdin": True}) == "busy"
    b.stream.send(STDIN, b"it\n")
    a.finish()
    b.finish()
    assert b.stdout == b"got it\r\n" and b.acked == 3


def test_detach_and_attach_again(agent: Agent) -> None:
    """A shell that one goes away from and comes back to."""
    keep, a = shell(agent)
    a.stream.send(STDIN, b"x=5\n")
    a.until(b"x=5\r\n")
    a.close()
    time.sleep(0.1)
    b = attach(agent, keep, stdin=True)
    b.stream.send(STDIN, b"echo x is $x\nexit\n")
    assert b.finish()["exit_code"] == 0
    assert b.stdout.startswith(a.stdout) and b"x is 5\r\n" in b.stdout


def test_hang_up(agent: Agent) -> None:
    """When the first process ends, who is in the foreground gets SIGHUP; who ignores it lives on."""
    out = agent.home / "hup"
    code = (
        f"bash -c \"trap 'echo hup >>{out}; exit' HUP; while :; do sleep 0.02; done\" & "
        f"(trap '' HUP; sleep 0.4; echo late; echo on >>{out}) & sleep 0.3"
    )
    _, a = on_terminal(agent, code)
    assert a.finish()["exit_code"] == 0
    wait_for(lambda: out.exists() and out.read_text() == "hup\non\n", "both")
    assert b"late" not in a.stdout


def test_descriptors(own_agent: Agent) -> None:
    """None is left behind."""
    fds = own_agent.fds()
    for _ in range(20):
        keep, a = on_terminal(own_agent, "read x")
        a.stream.send(STDIN, b"x\n")
        a.finish()
        a.close()
        forget(own_agent, keep)
    keep, a = on_terminal(own_agent, "exec </dev/null >/dev/null 2>&1; sleep 1000")
    forget(own_agent, keep)
    a.finish()
    a.close()
    wait_for(lambda: own_agent.fds() <= fds, "all descriptors to be closed")


def test_a_program_that_lets_go_of_it(agent: Agent) -> None:
    """No busy loop when the terminal is open nowhere any more; signals still reach it."""
    keep, a = on_terminal(agent, "echo on; exec setsid -w sleep 1000 </dev/null >/dev/null 2>&1")
    a.until(b"on\r\n")
    time.sleep(0.3)
    assert rests(agent)
    a.stream.send(STDIN, b"keys")
    a.stream.send(RESIZE, {"cols": 5, "rows": 5})
    while a.acked < 4:
        a.step()
    assert ask(agent, "signal", keep, signal=int(signal.SIGKILL)) == {}
    assert a.finish()["signal"] == 9


def test_copies_keep_them(own_agent: Agent) -> None:
    """The terminal of a copy is one of its own, with the same shell on it."""
    keep, a = shell(own_agent)
    a.stream.send(STDIN, b"x=7\n")
    a.until(b"x=7\r\n")
    with own_agent.stream() as host:
        assert "groups" in host.ask(FREEZE)
        assert host.ask(THAW) == {}
        assert "groups" in host.ask(FREEZE)
    with own_agent.stream() as host:
        assert host.ask(RENEW, renew_request(kind="fork", generation=1)) == {}
    with pytest.raises((Closed, ConnectionResetError)):
        while True:
            a.step()
    b = attach(own_agent, keep, stdin=True)
    b.stream.send(RESIZE, {"cols": 40, "rows": 20})
    b.stream.send(STDIN, b"stty size; echo x is $x; exit 3\n")
    assert b.finish()["exit_code"] == 3
    assert b"20 40\r\n" in b.stdout and b"x is 7\r\n" in b.stdout
