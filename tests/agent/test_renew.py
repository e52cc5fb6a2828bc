# SPDX-License-Identifier: Apache-2.0
"""RENEW of a copy (copies.py): what goes on, what is dropped, what waits, and renewals that fail.
What runs for it: test_hooks.py."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Callable

import pytest
from agent_client import CANCEL, DATA, GET, OK, PUT, RENEW, THAW, Closed, begun, renew_request
from conftest import Agent, switches, wait_for
from copies import freeze, renew, stands_still, ticks
from processes import children, state
from test_bash import alive, needs_cgroups


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


def test_what_root_has_made_of_a_file(own_agent: Agent) -> None:
    """Nobody is waited for, and a pipe is not a list of hosts."""
    os.mkfifo(own_agent.etc / "hosts")
    with own_agent.stream(5) as s:
        assert s.ask(RENEW, renew_request()) == {}
    hosts = (own_agent.etc / "hosts").read_text()
    assert hosts == "127.0.0.1\tlocalhost\n127.0.1.1\tsbx-0123456789abcdef\n"


@pytest.mark.parametrize("have", [0, 1000])
@pytest.mark.parametrize("copy", [True, False])
def test_an_upload_that_may_be_resumed(own: Agent, have: int, copy: bool) -> None:
    """Not even a part of it is in the copy; the original goes on with it."""
    data = os.urandom(5000)
    extra = {"path": str(own.home / "up" / "file"), "upload": "a1", "size": len(data)}
    part = own.home / "up" / f".podflare-part-a1-{len(data)}"
    put = own.stream()
    if have:
        assert put.put(**{**extra, "data": data[:have]}, offset=0)["size"] == have
    put.send(PUT, {**extra, "offset": have})
    put.send(DATA, data[have:3000])
    wait_for(lambda: part.exists() and part.stat().st_size == 3000, "the part")
    freeze(own)
    if copy:
        assert renew(own) == {}
        assert not part.exists() and not (own.home / "up" / "file").exists()
        # What was there before this upload stays.
        assert (own.home / "up").exists() is (have > 0)
    else:
        with own.stream() as s:
            assert s.ask(THAW) == {}
        put.body(data[3000:])
        assert put.recv_json(OK)["complete"] is True
        assert (own.home / "up" / "file").read_bytes() == data
    put.close()


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
