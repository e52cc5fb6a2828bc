# SPDX-License-Identifier: Apache-2.0
"""FREEZE, THAW and RENEW of a copy. A copy is played by the frozen agent itself: what it inherits
from its original are its own streams and processes, and the host that made it connects anew."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest
from agent_client import (
    CANCEL,
    ERROR,
    EXEC,
    EXIT,
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
    Closed,
    Stream,
    renew_request,
)
from conftest import ROOT, Agent, switches, wait_for
from test_bash import alive, needs_cgroups

COUNT = "for n in range({0}):\n    print(n, flush=True)\n    time.sleep(0.01)\n"


@pytest.fixture
def host(agent: Agent) -> Iterator[Stream]:
    """The stream on which the host freezes and thaws."""
    with agent.stream() as s:
        yield s
        if s.status()["frozen"]:
            s.ask(THAW)


@pytest.fixture
def own(own_agent: Agent) -> Agent:
    """An agent whose session is ready, to be made a copy of."""
    with own_agent.stream() as s:
        assert s.python("import podflare, random, time, subprocess, os").code == 0
    return own_agent


def begun(stream: Stream) -> None:
    """Waits until the cell has printed "on"."""
    got = b""
    while b"on\n" not in got:
        kind, payload = stream.recv()
        assert kind == STDOUT, payload
        got += payload


def freeze(agent: Agent) -> None:
    """Freezes, as the original did."""
    with agent.stream() as s:
        assert "groups" in s.ask(FREEZE)


def renew(agent: Agent, **change: object) -> dict[str, object]:
    """The answer to RENEW on a new stream."""
    request = renew_request(**{"kind": "fork", "generation": 1, **change})
    with agent.stream() as s:
        return s.ask(RENEW, request)


def ticks(path: Path) -> int:
    """Lines of a file that some process goes on writing."""
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def stands_still(path: Path) -> bool:
    before = ticks(path)
    time.sleep(0.15)
    return ticks(path) == before


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    out = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in out.stdout.split()]


def state(pid: int) -> str:
    """What a process does: the letter of proc(5), or nothing when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return ""


# --- FREEZE and THAW


def test_answers(host: Stream) -> None:
    assert host.ask(THAW)["code"] == "bad_request"
    assert isinstance(host.ask(FREEZE)["groups"], int)
    assert host.status()["frozen"] is True
    assert host.ask(FREEZE)["code"] == "busy"
    assert host.ask(THAW) == {}
    assert host.ask(THAW)["code"] == "bad_request"
    assert host.status()["frozen"] is False


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


# --- RENEW


def test_boot(own_agent: Agent) -> None:
    (own_agent.etc / "hosts").write_text("127.0.0.1 localhost\n127.0.1.1 old\n")
    own_agent.hook("10-no", "exit 1")  # not for a boot
    assert renew(own_agent, kind="boot", generation=0) == {}
    assert (own_agent.etc / "hostname").read_text() == "sbx-0123456789abcdef\n"
    hosts = (own_agent.etc / "hosts").read_text()
    assert hosts == "127.0.0.1 localhost\n127.0.1.1\tsbx-0123456789abcdef\n"
    assert (own_agent.etc / "machine-id").read_text() == "0123456789abcdef" * 2 + "\n"
    assert (own_agent.dir / "sandbox-id").read_text() == "sbx_0123456789abcdef\n"
    assert (own_agent.dir / "fork-generation").read_text() == "0\n"
    for name in ("sandbox-id", "fork-generation"):
        assert (own_agent.dir / name).stat().st_mode & 0o777 == 0o644
    kept = (own_agent.etc / "machine-id").stat().st_ino
    assert renew(own_agent, kind="boot", machine_id="f" * 32) == {}
    assert (own_agent.etc / "machine-id").read_text() == "f" * 32 + "\n"
    assert (own_agent.etc / "machine-id").stat().st_ino == kept  # written in place
    freeze(own_agent)
    assert renew(own_agent, kind="boot")["code"] == "bad_request"


def test_idle_session(own: Agent) -> None:
    with own.stream() as s:
        s.python("calls = []\npodflare.on_fork(calls.append)\nstate = random.getstate();")
    for n in (1, 2, 3):
        freeze(own)
        began = time.monotonic()
        assert renew(own, generation=n, id=f"sbx_{n}", hostname=f"h{n}") == {}
        assert time.monotonic() - began < 2
        assert (own.dir / "fork-generation").read_text() == f"{n}\n"
    with own.stream() as s:
        assert s.python("print(calls, random.getstate() == state)").stdout == b"[1, 2, 3] False\n"
        state = s.python("state = random.getstate();")
        assert state.code == 0 and s.status()["frozen"] is False
    freeze(own)
    assert renew(own, reseed=False) == {}
    with own.stream() as s:
        assert s.python("print(random.getstate() == state)").stdout == b"True\n"


def test_inherited_streams_are_dropped_and_what_ran_goes_on(own: Agent) -> None:
    bash, python, put, get, idle, waits = (own.stream() for _ in range(6))
    python.start(
        "print('on', flush=True)\nfor n in range(300):\n"
        "    open('cell', 'a').write('x\\n'); print(n, flush=True); time.sleep(0.01)\n"
        "open('over', 'w').write('1');",
        "python",
    )
    begun(python)
    bash.start("for i in $(seq 100); do echo x >>bash; echo $i; sleep 0.01; done; echo 1 >bash-over")
    put.send(PUT, {"path": "upload"})
    put.send(0x06, b"half")
    (own.home / "big").write_bytes(bytes(5_000_000))
    get.send(GET, {"path": "big"})
    assert get.recv()[0] == OK
    waits.start("open('never', 'w')", "python")
    wait_for(lambda: ticks(own.home / "bash") > 3 and ticks(own.home / "cell") > 3, "both")
    assert list(own.home.glob(".podflare-put-*"))
    freeze(own)
    assert renew(own) == {}
    for s in (bash, python, put, get, idle, waits):
        with pytest.raises((Closed, ConnectionResetError)):
            while True:
                s.recv()
        s.close()
    assert not list(own.home.glob(".podflare-put-*")) and not (own.home / "upload").exists()
    with own.stream() as s:
        s.start("print('mine')", "python")
        assert s.recv_json(0x89)["text"] == (
            "This sandbox was forked while a call was running; waiting for that call to end."
        )
        with own.stream() as third:  # only one may wait
            r = third.python("1")
            assert r.error is not None and r.error["code"] == "busy"
        r = s.finish()
        assert (r.stdout, r.code, r.events) == (b"mine\n", 0, [])
        assert s.python("print('mine')").stdout == b"mine\n"
    assert ticks(own.home / "cell") == 300 and (own.home / "over").exists()
    assert not (own.home / "never").exists()
    wait_for((own.home / "bash-over").exists, "the end of the command")
    assert ticks(own.home / "bash") == 100


def test_inherited_cell_that_writes_a_lot(own: Agent) -> None:
    """Nobody reads it any more: it neither blocks nor is it in the way of the renewal."""
    python = own.stream()
    python.start(
        "import sys\nprint('on', flush=True); time.sleep(0.2)\n"
        "for n in range(3000): sys.stdout.write('x' * 10000); display(n) if n % 300 == 0 else None\n"
        "open('over', 'w').write('1');",
        "python",
    )
    begun(python)
    time.sleep(0.5)  # blocked by now
    freeze(own)
    assert renew(own) == {}
    python.close()
    wait_for((own.home / "over").exists, "the end of the cell")
    with own.stream() as s:
        assert s.python("print(1)").stdout == b"1\n"


def test_inherited_cell_can_be_ended(own: Agent) -> None:
    """CANCEL of a call that only waits ends the wait, not the cell before it."""
    python = own.stream()
    python.start("print('on', flush=True)\ntime.sleep(1)\nopen('over', 'w').write('1');", "python")
    begun(python)
    freeze(own)
    assert renew(own) == {}
    with own.stream() as s:
        s.start("print(2)", "python")
        s.send(CANCEL)
        r = s.finish()
        assert r.exit is not None and r.exit["reason"] == "cancelled"
    wait_for((own.home / "over").exists, "the end of the cell")


@needs_cgroups
def test_other_processes_stay_frozen_until_it_is_done(own: Agent) -> None:
    """Children of the session and commands do not run beside the session's renewal."""
    loop = "while :; do echo x >>{0}; sleep 0.01; done"
    child, left, log = own.home / "child", own.home / "left", own.home / "log"
    with own.stream() as s:
        s.bash(f"({loop.format(left)}) >/dev/null 2>&1 &")
        s.python(
            f"p = subprocess.Popen({loop.format(child)!r}, shell=True)\n"
            f"def renew(g):\n"
            f"    def count(): return [len(open(f).readlines()) for f in ({str(child)!r}, {str(left)!r})]\n"
            f"    before = count(); time.sleep(0.3)\n"
            f"    open({str(log)!r}, 'a').write(f'{{count() == before}}\\n')\n"
            f"podflare.on_fork(renew);"
        )
    wait_for(lambda: ticks(child) and ticks(left), "both")
    for n in range(2):
        freeze(own)
        assert renew(own, generation=n) == {}
        assert not stands_still(child) and not stands_still(left)
    assert log.read_text() == "True\nTrue\n"
    assert not [g for g in own.groups() if "held" in g.name]


@needs_cgroups
def test_children_of_a_running_cell_stay_frozen_until_it_is_done(own: Agent) -> None:
    """They are set apart for the renewal, and belong to the cell again afterwards."""
    child, log = own.home / "child", own.home / "log"
    with own.stream() as s:
        s.python(
            f"def renew(g):\n"
            f"    def count(): return len(open({str(child)!r}).readlines())\n"
            f"    before = count(); time.sleep(0.3)\n"
            f"    open({str(log)!r}, 'a').write(f'{{count() == before}}\\n')\n"
            f"podflare.on_fork(renew);"
        )
    python = own.stream()
    python.start(
        f"p = subprocess.Popen('while :; do echo x >>{child}; sleep 0.01; done', shell=True)\n"
        "print(p.pid, flush=True); print('on', flush=True); time.sleep(1.5); os._exit(0)",
        "python",
    )
    pid = int(python.recv()[1].split()[0])
    wait_for(lambda: ticks(child), "the child")
    freeze(own)
    assert renew(own) == {}
    assert not stands_still(child) and "/repl-" in Path(f"/proc/{pid}/cgroup").read_text()
    assert log.read_text() == "True\n"
    assert not [g for g in own.groups() if "held" in g.name]
    wait_for(lambda: not alive(pid), "the end of the child with its session")
    python.close()


def test_a_session_between_vfork_and_exec(own: Agent) -> None:
    """Its child waits with it, and could not go on before it has renewed itself: so the freezing
    waits until the child has become another program."""
    python = own.stream()
    python.start(
        "os.mkfifo('exec')\nprint('on', flush=True)\n"
        "os.posix_spawn('/bin/sleep', ['sleep', '1000'], {}, file_actions=[\n"
        "    (os.POSIX_SPAWN_OPEN, 0, 'exec', os.O_RDONLY, 0)])\ntime.sleep(1000)",
        "python",
    )
    begun(python)
    # vfork(2) sleeps uninterruptibly; the child, which open(2) holds, does not.
    wait_for(
        lambda: any(
            state(pid) == "D" and [state(child) for child in children(pid)] == ["S"]
            for pid in children(own.proc.pid)
        ),
        "the session to be held by its child",
    )

    def write() -> None:
        time.sleep(0.4)
        os.close(os.open(own.home / "exec", os.O_RDWR | os.O_NONBLOCK))

    writer = threading.Thread(target=write)
    writer.start()
    freeze(own)
    writer.join()
    began = time.monotonic()
    assert renew(own) == {}
    assert time.monotonic() - began < 5
    python.close()


def test_python_hook_that_raises(own: Agent) -> None:
    with own.stream() as s:
        s.python("def bad(g): raise ValueError('no key')\npodflare.on_fork(bad);")
    ticking = own.stream()
    ticking.start("print('on', flush=True)\nwhile True: open('t', 'a').write('x\\n'); time.sleep(0.01)",
                  "python")
    begun(ticking)
    freeze(own)
    error = renew(own)
    assert error["code"] == "io_error"
    assert "in bad" in str(error["message"]) and "ValueError: no key" in str(error["message"])
    with own.stream() as s:
        assert s.status()["frozen"] is True
        assert s.ask(THAW)["code"] == "bad_request"
        r = s.bash("true")
        assert r.error is not None and r.error["code"] == "busy"
    assert stands_still(own.home / "t")
    assert "ValueError" in str(renew(own, generation=2)["message"])


def test_hooks(own: Agent) -> None:
    log = own.dir / "hooks.log"
    text = f'echo "{{0}} $PODFLARE_FORK_GENERATION $PODFLARE_FORK_KIND $PODFLARE_SANDBOX_ID $(id -u)" >>{log}\n'
    own.hook("20-second", text.format("second"))
    own.hook("10-first", text.format("first") + "sleep 0.2\n")
    own.hook(".hidden", "exit 1")
    own.hook("30-off", "exit 1")
    (own.hooks / "30-off").chmod(0o644)
    with own.stream() as s:
        s.python(f"podflare.on_fork(lambda g: open('hook.log', 'a').write('python\\n'));")
    freeze(own)
    assert renew(own, generation=5, kind="create") == {}
    uid = os.geteuid()
    assert log.read_text().splitlines() == [
        f"first 5 create sbx_0123456789abcdef {uid}",
        f"second 5 create sbx_0123456789abcdef {uid}",
    ]
    assert (own.home / "hook.log").read_text() == "python\n"


def test_session_waits_for_the_hooks(own: Agent) -> None:
    """Not one line of the user's code runs before the hooks have ended."""
    own.hook("10-slow", f"wc -l <{own.home}/t >{own.dir}/a; sleep 0.5; wc -l <{own.home}/t >{own.dir}/b")
    ticking = own.stream()
    ticking.start("print('on', flush=True)\nfor n in range(400):\n"
                  "    open('t', 'a').write('x\\n'); time.sleep(0.005)", "python")
    begun(ticking)
    time.sleep(0.2)
    freeze(own)
    before = ticks(own.home / "t")
    assert renew(own) == {}
    ticking.close()
    assert int((own.dir / "a").read_text()) == int((own.dir / "b").read_text()) == before
    with own.stream() as s:
        assert s.python("print('on')").stdout == b"on\n"
    assert ticks(own.home / "t") == 400


def test_hook_that_fails(own: Agent) -> None:
    own.hook("10-good", f"echo x >>{own.dir}/good")
    own.hook("20-bad", "echo 'the reason' >&2; exit 3")
    own.hook("30-never", f"echo x >>{own.dir}/never")
    freeze(own)
    error = renew(own)
    assert error["code"] == "io_error"
    assert error["message"] == "the hook 20-bad failed with exit status 3: the reason"
    assert not (own.dir / "never").exists()
    with own.stream() as s:
        assert s.status()["frozen"] is True and s.ask(THAW)["code"] == "bad_request"
    own.hook("20-bad", "true")
    assert renew(own) == {}
    assert ticks(own.dir / "good") == 2
    with own.stream() as s:
        assert s.bash("echo on").stdout == b"on\n"
        assert s.python("print(1)").stdout == b"1\n"


def test_hook_that_does_not_end(own: Agent) -> None:
    own.hook("10-slow", "echo waiting >&2; sleep 60")
    freeze(own)
    began = time.monotonic()
    error = renew(own)
    assert 9 < time.monotonic() - began < 14
    assert "10-slow did not end within 10 s: waiting" in str(error["message"])


def test_hook_that_leaves_something_behind(own: Agent) -> None:
    own.hook("10-server", f"(while :; do echo x >>{own.dir}/t; sleep 0.05; done) &")
    freeze(own)
    assert renew(own) == {}
    assert not stands_still(own.dir / "t")
    if not own.cgroup:
        os.system(f"pkill -f {own.dir}/t")


def test_native_code_that_does_not_return(own: Agent) -> None:
    python = own.stream()
    python.start("print('on', flush=True)\nsum(range(10**11))", "python")
    begun(python)
    time.sleep(0.2)
    freeze(own)
    began = time.monotonic()
    error = renew(own)
    assert 9 < time.monotonic() - began < 14 and "native code" in str(error["message"])
    with own.stream() as s:
        assert s.status()["frozen"] is True


def test_session_that_dies_of_it(own: Agent) -> None:
    with own.stream() as s:
        s.python("podflare.on_fork(lambda g: os._exit(4));")
    freeze(own)
    error = renew(own)
    assert "ended while it was renewed" in str(error["message"])
    with own.stream() as s:
        assert s.status()["frozen"] is True


def test_session_that_was_not_ready(stub_agent: Callable[[str], Agent]) -> None:
    """It is started anew: nothing is lost, and it shares no state with its original."""
    agent = stub_agent(
        """
import pathlib
pathlib.Path("started").open("a").write("x\\n")
if len(pathlib.Path("started").read_text()) < 4: time.sleep(100)
send(READY, {})
while True:
    cell(); os.write(1, b"ran"); send(EXIT, {"exit_code": 0})
"""
    )
    wait_for(lambda: ticks(agent.home / "started") == 1, "the start")
    freeze(agent)
    assert renew(agent) == {}
    with agent.stream() as s:
        r = s.python("x")
        assert (r.stdout, r.code, r.events) == (b"ran", 0, [])
    assert ticks(agent.home / "started") == 2


def test_answers_out_of_turn(stub_agent: Callable[[str], Agent]) -> None:
    """Forged and repeated answers: ignored when they name a serial number, else a fault."""
    agent = stub_agent(
        """
send(READY, {})
while True:
    code = cell()
    if code == "forge": send(OK, {"serial": 7, "renewed": 1}); send(0x84, {"serial": 1})
    if code == "fault": send(OK, {})
    send(EXIT, {"exit_code": 0})
"""
    )
    with agent.stream() as s:
        assert s.python("forge").code == 0
        r = s.python("fault")
        assert r.exit is not None and r.exit["state"] == "lost"


def test_host_that_goes_away(own: Agent) -> None:
    """Nobody knows that this copy is ready: it stays frozen."""
    with own.stream() as s:
        s.python("podflare.on_fork(lambda g: time.sleep(0.5));")
    freeze(own)
    with own.stream() as s:
        s.send(RENEW, renew_request(kind="fork", generation=1))
        time.sleep(0.2)
        with own.stream() as other:
            assert other.ask(RENEW, renew_request(kind="fork"))["code"] == "busy"
            assert other.ask(THAW)["code"] == "busy"
    with own.stream() as s:
        time.sleep(1)
        assert s.status()["frozen"] is True and s.ask(THAW)["code"] == "bad_request"
    assert renew(own) == {}


def test_kernel_part_that_fails(own: Agent) -> None:
    freeze(own)
    assert renew(own, hostname="refuse")["code"] == "permission_denied"
    assert renew(own) == {}


def test_many_renewals_leave_nothing_behind(own: Agent) -> None:
    own.hook("10-true", "true")
    with own.stream() as s:
        s.python("p = subprocess.Popen(['sleep', '1000'])")
    freeze(own)
    renew(own)
    fds, groups, rss = own.fds(), len(own.groups()), own.rss_kib()
    for n in range(30):
        freeze(own)
        assert renew(own, generation=n) == {}
    wait_for(lambda: len(own.groups()) == groups, "empty groups to go")
    wait_for(lambda: own.fds() <= fds, "descriptors to be closed")
    assert not own.grown(rss + 512)
    with own.stream() as s:
        assert s.python("p.kill(); print(p.wait())").stdout == b"-9\n"


def test_idle_after_a_renewal(own: Agent) -> None:
    """Neither the agent nor the session wakes up for anything."""
    with own.stream() as s:
        pid = int(s.python("print(os.getpid())").stdout)
    freeze(own)
    assert renew(own) == {}
    time.sleep(1.5)
    before = own.switches(), switches(pid)
    time.sleep(1.5)
    assert (own.switches(), switches(pid)) == before
