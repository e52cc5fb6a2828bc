# SPDX-License-Identifier: Apache-2.0
"""FREEZE and THAW: what stands still, what is refused meanwhile, and that all goes on as before."""

from __future__ import annotations

import base64
import os
import signal
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest
from agent_client import (
    CANCEL,
    ERROR,
    EXEC,
    FREEZE,
    GET,
    OK,
    PING,
    PONG,
    PUT,
    RENEW,
    STDOUT,
    THAW,
    WARM,
    Stream,
    begun,
    renew_request,
)
from conftest import Agent, wait_for
from copies import freeze, stands_still, ticks
from test_bash import alive, needs_cgroups


@pytest.fixture
def host(agent: Agent) -> Iterator[Stream]:
    """The stream on which the host freezes and thaws."""
    with agent.stream() as s:
        yield s
        if s.status()["frozen"]:
            s.ask(THAW)


def test_answers(host: Stream) -> None:
    assert host.ask(THAW)["code"] == "bad_request"
    assert isinstance(host.ask(FREEZE)["groups"], int)
    assert host.status()["frozen"] is True
    assert host.ask(FREEZE)["code"] == "busy"
    assert host.ask(THAW) == {}
    assert host.ask(THAW)["code"] == "bad_request"
    assert host.status()["frozen"] is False


def entropies(agent: Agent) -> list[str]:
    """What the kernel was given by THAW (and only that: see the harness), in hex."""
    lines = agent.log.read_text(errors="replace").splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith("random entropy=")]


def test_randomness_of_the_original(agent: Agent, host: Stream) -> None:
    """Its copies have what its kernel's generator was: THAW brings new bytes."""
    before = len(entropies(agent))
    for n in range(3):
        assert "groups" in host.ask(FREEZE)
        entropy = bytes([n]) * 32
        assert host.ask(THAW, {"entropy": base64.b64encode(entropy).decode()} if n else {}) == {}
    assert entropies(agent)[before:] == ["01" * 32, "02" * 32]
    # Not of a machine that is not frozen.
    assert host.ask(THAW, {"entropy": base64.b64encode(bytes(32)).decode()})["code"] == "bad_request"
    assert len(entropies(agent)) == before + 2


def test_randomness_that_is_refused(agent: Agent, host: Stream) -> None:
    """It goes on, and the host is told."""
    assert "groups" in host.ask(FREEZE)
    entropy = base64.b64encode(b"refuse".ljust(32)).decode()
    assert host.ask(THAW, {"entropy": entropy}) == {"entropy_error": "refused for the test"}
    assert host.status()["frozen"] is False
    assert host.bash("echo on").stdout == b"on\n"


@pytest.mark.parametrize("entropy", [None, 1, "", "AA==", "A" * 43 + "=" * 2, "!" * 44, ["A" * 44]])
def test_bad_entropy(host: Stream, entropy: object) -> None:
    assert "groups" in host.ask(FREEZE)
    assert host.ask(THAW, {"entropy": entropy})["code"] == "bad_request"
    assert host.status()["frozen"] is True
    for payload in (b"", b"[]", b'{"entropy":'):
        host.send(THAW, payload)
        assert host.recv_json(ERROR)["code"] == "bad_request"
    assert host.ask(THAW) == {}


@pytest.mark.parametrize("kind", [EXEC, PUT, GET, WARM, FREEZE])
def test_what_is_refused_meanwhile(agent: Agent, host: Stream, kind: int) -> None:
    assert "groups" in host.ask(FREEZE)
    with agent.stream() as s:
        s.send(kind, {"language": "bash", "path": "/etc/hostname"})
        assert s.recv_json(ERROR)["code"] == "busy"
        if kind in (EXEC, PUT):
            s.body(b"echo x" * 20000)
        s.send(PING, b"x")
        assert s.recv() == (PONG, b"x")
        assert s.ask(THAW) == {}
        assert s.bash("echo on").stdout == b"on\n"


@needs_cgroups
def test_everything_stands_still(agent: Agent, stream: Stream, host: Stream) -> None:
    """Commands, what they left behind, the session and its children."""
    loop = "while :; do echo x >>{0}; sleep 0.01; done"
    files = [agent.home / name for name in ("left", "running", "session", "child")]
    assert stream.bash(f"({loop.format(files[0])}) >/dev/null 2>&1 &").code == 0
    with agent.stream() as bash, agent.stream() as python:
        bash.start(loop.format(files[1]))
        python.start(
            f"import subprocess, time\n"
            f"child = subprocess.Popen({loop.format(files[3])!r}, shell=True)\n"
            f"print('on', flush=True)\n"
            f"while True:\n    open({str(files[2])!r}, 'a').write('x\\n'); time.sleep(0.01)\n",
            "python",
        )
        begun(python)
        for file in files:
            wait_for(lambda file=file: ticks(file), str(file))
        began = time.monotonic()
        groups = host.ask(FREEZE)["groups"]
        assert time.monotonic() - began < 1
        assert groups == 3 == len(agent.groups())
        time.sleep(0.1)
        before = agent.switches()
        assert all(stands_still(file) for file in files)
        assert agent.switches() == before
        assert host.ask(THAW) == {}
        assert not any(stands_still(file) for file in files)
        python.send(CANCEL)
        assert python.finish().exit is not None
        bash.send(CANCEL)
        bash.finish()
    stream.python("child.kill(); child.wait()")


@needs_cgroups
def test_streams_go_on_byte_by_byte(agent: Agent, stream: Stream, host: Stream, tmp_path: Path) -> None:
    """Output, uploads and downloads across many freezes: nothing lost, nothing twice."""
    size = 3_000_000
    data = os.urandom(size)
    (agent.home / "big").write_bytes(data)
    with agent.stream() as bash, agent.stream() as get, agent.stream() as put, agent.stream() as py:
        bash.start("seq 1000000; echo end >&2; exit 3")
        py.start("import sys\nfor n in range(100000): print(n)\nprint('end', file=sys.stderr)", "python")
        get.send(GET, {"path": "big"})
        put.send(PUT, {"path": "copy"})
        sender = threading.Thread(target=put.body, args=[data])  # blocks while its stream rests
        sender.start()
        out = b""
        for n in range(10):
            assert "groups" in host.ask(FREEZE)
            time.sleep(0.005 * n)
            assert host.ask(THAW) == {}
            for _ in range(5):
                kind, payload = bash.recv()
                assert kind == STDOUT
                out += payload
        sender.join()
        assert put.recv_json(OK)["size"] == size
        rest = bash.finish()
        out += rest.stdout
        assert out == b"".join(b"%d\n" % n for n in range(1, 1000001))
        assert (rest.stderr, rest.code) == (b"end\n", 3)
        r = py.finish()
        assert r.stdout == b"".join(b"%d\n" % n for n in range(100000))
        assert (r.stderr, r.code) == (b"end\n", 0)
        assert get.recv_json(OK)["size"] == size
        assert get.download() == data
    assert stream.get("copy")[1] == data


def test_a_resting_stream_is_not_polled(agent: Agent, stream: Stream, host: Stream) -> None:
    """Neither what it says nor its end is noticed before the thaw; then both are."""
    other = agent.stream()
    other.start("echo $$; sleep 100")
    pid = int(other.recv()[1])
    idle = agent.stream()
    assert "groups" in host.ask(FREEZE)
    idle.send(PING, b"?")
    other.close()
    time.sleep(0.2)
    assert alive(pid)
    idle.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        idle.recv()
    before = agent.switches()
    time.sleep(0.5)
    assert agent.switches() == before
    assert host.ask(THAW) == {}
    idle.sock.settimeout(10)
    assert idle.recv() == (PONG, b"?")
    wait_for(lambda: not alive(pid), "the end of a command whose stream was closed")
    idle.close()


def test_streams_that_were_opened_before_it(agent: Agent, host: Stream) -> None:
    """Also if the agent has not looked at them yet: their requests rest, they are not refused."""
    os.kill(agent.proc.pid, signal.SIGSTOP)
    streams = [agent.stream() for _ in range(5)]
    for n, s in enumerate(streams):
        s.start(f"echo {n}")
    host.send(FREEZE, {})
    os.kill(agent.proc.pid, signal.SIGCONT)
    host.recv_json(OK)
    assert host.ask(THAW) == {}
    for n, s in enumerate(streams):
        r = s.finish()
        assert (r.stdout, r.error) == (b"%d\n" % n, None)
        s.close()


def test_the_end_of_the_stream_does_not_thaw(agent: Agent) -> None:
    freeze(agent)
    time.sleep(0.1)
    with agent.stream() as host:
        assert host.status()["frozen"] is True
        assert host.ask(THAW) == {}


def test_grace_times_stand_still(agent: Agent, stream: Stream, host: Stream) -> None:
    """A cell that was cancelled just before is not killed because it could not react."""
    stream.python("import time\nkept = 1")
    stream.start(
        "try:\n    print('on', flush=True); time.sleep(100)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.8)\nprint('over')",
        "python",
    )
    begun(stream)
    stream.send(CANCEL)
    time.sleep(0.3)
    assert "groups" in host.ask(FREEZE)
    time.sleep(2.5)
    assert host.ask(THAW) == {}
    r = stream.finish()
    assert r.exit is not None and r.exit["state"] == "preserved"
    assert stream.python("print(kept)").stdout == b"1\n"


def test_resting_streams_do_not_count(own_agent: Agent) -> None:
    """64 streams are open, and the host of the copy gets through."""
    streams = [own_agent.stream() for _ in range(64)]
    assert "groups" in streams[0].ask(FREEZE)
    with own_agent.stream() as new:
        assert new.ask(THAW) == {}
    assert streams[63].bash("echo fine").stdout == b"fine\n"
    for s in streams:
        s.close()


class Stubborn(Agent):
    """Its cgroup is a plain directory that never says that all is frozen. (No process can be started
    in it, and none is needed.)"""

    def make_cgroup(self) -> None:
        self.cgroup = self.dir / "group"
        self.cgroup.mkdir()
        (self.cgroup / "cgroup.freeze").write_text("-")
        (self.cgroup / "cgroup.events").write_text("populated 1\nfrozen 0\n")

    def frozen(self) -> str:
        assert self.cgroup is not None
        return (self.cgroup / "cgroup.freeze").read_text()


@pytest.fixture
def stubborn() -> Iterator[Stubborn]:
    """Such an agent."""
    a = Stubborn()
    yield a
    a.stop()


def test_freeze_that_does_not_succeed(stubborn: Stubborn) -> None:
    """After five seconds everything goes on."""
    with stubborn.stream() as s, stubborn.stream() as other:
        began = time.monotonic()
        s.send(FREEZE, {})
        wait_for(lambda: stubborn.frozen() == "1", "the freezing")
        with stubborn.stream() as third:
            for kind in (FREEZE, THAW, RENEW):
                assert third.ask(kind, renew_request(kind="fork"))["code"] == "busy"
        error = s.recv_json(ERROR)
        assert error["code"] == "io_error" and "5 seconds" in error["message"]
        assert 4.5 < time.monotonic() - began < 7
        assert stubborn.frozen() == "0"
        assert other.status()["frozen"] is False


def test_freeze_that_is_given_up(stubborn: Stubborn) -> None:
    """The host goes while it waits."""
    with stubborn.stream() as s:
        s.send(FREEZE, {})
        wait_for(lambda: stubborn.frozen() == "1", "the freezing")
    wait_for(lambda: stubborn.frozen() == "0", "the thawing", 2)
    with stubborn.stream() as s:
        assert s.status()["frozen"] is False
