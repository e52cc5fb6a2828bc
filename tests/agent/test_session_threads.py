# SPDX-License-Identifier: Apache-2.0
"""Threads of a Python session across a fork: none of them draws from the states of the original.

They read the generation through a mapping of its file, which is written before anything goes on, and
note it before each draw: what was drawn under the new one must not be a number of the old state."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import pytest
from agent_client import CONTEXT, FREEZE, OK, THAW, begun
from conftest import Agent, wait_for
from copies import freeze, renew
from processes import state
from test_bash import needs_cgroups

DRAW = """
import mmap, threading
with open({file!r}, 'rb') as f: now = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
drawn, over = [], []
def draw():
    while not over:
        for _ in range(2000): pass
        drawn.append((now[0], random.random()))
random.seed(5)
threads = [threading.Thread(target=draw, daemon=True) for _ in range({count})]
for t in threads: t.start()
"""
END = """
import json
over.append(1)
for t in threads: t.join()
print(json.dumps([(g - 48, v) for g, v in drawn]))
"""
OLD = 1_000_000  # numbers of the old state: more than the threads can have drawn


def start(agent: Agent, count: int = 3) -> None:
    """A session in which threads draw numbers, in generation 1."""
    freeze(agent)
    assert renew(agent, generation=1) == {}
    with agent.stream() as s:
        r = s.python(DRAW.format(file=str(agent.dir / "fork-generation"), count=count))
        assert r.code == 0, r.stderr
    time.sleep(0.2)


def numbers(agent: Agent, generation: int) -> list[float]:
    """What the threads drew in that generation; they end."""
    with agent.stream() as s:
        r = s.python(END)
    assert r.code == 0, r.stderr
    return [v for g, v in json.loads(r.stdout) if g == generation]


def old() -> set[float]:
    generator = random.Random(5)
    return {generator.random() for _ in range(OLD)}


def session_of(agent: Agent) -> int:
    """Its process."""
    with agent.stream() as s:
        return int(s.python("print(__import__('os').getpid())").stdout)


@pytest.mark.parametrize("busy", [False, True])
def test_none_draws_an_old_number(own: Agent, busy: bool) -> None:
    start(own)
    cell = own.stream()
    if busy:
        cell.start("print('on', flush=True)\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end: pass", "python")
        begun(cell)
    freeze(own)
    assert renew(own, generation=2) == {}
    time.sleep(0.3)
    cell.close()
    drawn = numbers(own, 2)
    assert drawn and not old().intersection(drawn)


def test_of_numpy(own: Agent) -> None:
    """Its global generator as well."""
    with own.stream() as s:
        if s.python("import numpy").code:
            pytest.skip("no numpy")
    freeze(own)
    assert renew(own, generation=1) == {}
    text = DRAW.format(file=str(own.dir / "fork-generation"), count=2)
    text = text.replace("random.random()", "float(numpy.random.rand())").replace("random.seed", "numpy.random.seed")
    with own.stream() as s:
        assert s.python(text).code == 0
    time.sleep(0.2)
    freeze(own)
    assert renew(own, generation=2) == {}
    time.sleep(0.3)
    drawn = numbers(own, 2)
    with own.stream() as s:
        s.python(f"numpy.random.seed(5); old = set(map(float, numpy.random.rand({OLD})));")
        assert s.python(f"print(len(old.intersection({drawn})))").stdout == b"0\n"


def test_the_original_goes_on(own: Agent) -> None:
    """It repeats nothing and is not seeded anew: its numbers are those of its own state."""
    start(own)
    for _ in range(3):
        freeze(own)
        with own.stream() as s:
            assert s.ask(THAW) == {}
        time.sleep(0.05)
    drawn = numbers(own, 1)
    assert drawn and set(drawn) <= old()
    assert not (own.dir / "hold").exists()


@pytest.mark.parametrize("how", ["restart", "create", "replaced"])
@pytest.mark.parametrize("raising", [False, True])
def test_the_original_goes_on_with_a_session_that_is_younger_than_it(own: Agent, how: str, raising: bool) -> None:
    """The machine is itself a copy, and the session began in it: its renewal is nothing to that session."""
    freeze(own)
    assert renew(own, generation=1) == {}
    name = "other" if how == "create" else "default"
    with own.stream() as s:
        if how == "replaced":
            assert s.python("os.kill(os.getpid(), 9)").exit is not None
        else:
            assert "id" in s.ask(CONTEXT, {"op": how, "id": name})
        hook = "lambda g: 1 / 0" if raising else "calls.append"
        code = f"import podflare, random, threading\ncalls = []\npodflare.on_fork({hook})\n"
        code += "threading.Thread(target=threading.Event().wait, daemon=True).start()\nrandom.seed(7)"
        assert s.python(code, context=name).code == 0
    freeze(own)
    with own.stream() as s:
        assert s.ask(THAW) == {}
    with own.stream(10) as s:
        r = s.python("print(random.random(), calls)", context=name)
    assert r.stdout.decode() == f"{random.Random(7).random()} []\n"
    # In a copy the same session is renewed, and its hook is called.
    freeze(own)
    answer = renew(own, generation=2)
    if raising:
        assert "ZeroDivisionError" in answer["message"]
        return
    with own.stream() as s:
        r = s.python("print(random.random(), calls)", context=name)
    assert r.stdout.endswith(b" [2]\n") and float(r.stdout.split()[0]) not in old()


def test_without_reseed_it_goes_on_as_well(own: Agent) -> None:
    start(own)
    freeze(own)
    assert renew(own, generation=2, reseed=False) == {}
    time.sleep(0.3)
    drawn = numbers(own, 2)
    assert drawn and set(drawn) <= old()


def test_hooks_run_in_a_session_with_threads(own: Agent) -> None:
    with own.stream() as s:
        s.python("calls = []\npodflare.on_fork(calls.append);")
    start(own)
    for n in (2, 3):
        freeze(own)
        assert renew(own, generation=n, reseed=n == 2) == {}
    with own.stream() as s:
        assert s.python("print(calls)").stdout == b"[1, 2, 3]\n"


def test_a_freeze_that_is_given_up(own: Agent) -> None:
    """The session, which stood still already, goes on."""
    start(own)
    pid = session_of(own)
    for n in range(20):
        with own.stream() as s:
            s.send(FREEZE, {})
            time.sleep(n / 2000)
        time.sleep(0.05)
        with own.stream() as s:  # it may have been done before its host went
            if s.status()["frozen"]:
                assert s.ask(THAW) == {}
        wait_for(lambda: state(pid) in "SR", "the session to go on")
    assert session_of(own) == pid
    drawn = numbers(own, 1)
    assert set(drawn) <= old()


def computes(pid: int) -> None:
    """Waits until the process has used the processor for a while."""

    def ticks() -> int:
        with open(f"/proc/{pid}/stat", encoding="ascii") as f:
            return int(f.read().rsplit(")", 1)[1].split()[11])

    first = ticks()
    wait_for(lambda: ticks() > first + 20, "the call to be in native code", 60)


NATIVE = "print('on', flush=True)\nsum(range({0}))\nprint('over')"


@needs_cgroups
def test_a_cell_that_ends_while_it_is_frozen(own: Agent) -> None:
    """It leaves a process behind, and so gets a group of its own: not a frozen one, before it stands still."""
    start(own)
    cell = own.stream()
    text = "import pathlib\nchild = subprocess.Popen(['sleep', '60'])\nprint('on', flush=True)\n"
    text += "while not pathlib.Path('end').exists(): time.sleep(0.01)\n"
    cell.start(text, "python")
    begun(cell)
    with own.stream() as s:
        s.status()
        os.kill(own.proc.pid, signal.SIGSTOP)
        s.send(FREEZE, {})
        (own.home / "end").touch()
        time.sleep(0.5)  # its EXIT waits now, behind the FREEZE
        began = time.monotonic()
        os.kill(own.proc.pid, signal.SIGCONT)
        assert "groups" in s.recv_json(OK)
        assert time.monotonic() - began < 0.8, "the session could not stop itself"
    assert renew(own, generation=2) == {}
    time.sleep(0.3)
    cell.close()
    drawn = numbers(own, 2)
    assert drawn and not old().intersection(drawn)
    with own.stream() as s:
        s.python("child.kill(); child.wait()")


def test_main_in_native_code(own: Agent) -> None:
    """It cannot be made to stand still then: the freezing does not wait for ever, nor does the
    session stay stopped when it comes to it later."""
    start(own)
    with own.stream() as cell:
        cell.start(NATIVE.format(2 * 10**8), "python")  # some seconds
        begun(cell)
        time.sleep(0.1)
        freeze(own)
        with own.stream() as s:
            assert s.ask(THAW) == {}
        r = cell.finish()
        assert (r.stdout, r.code) == (b"over\n", 0)
    assert state(session_of(own)) in "SR"
    drawn = numbers(own, 1)
    assert set(drawn) <= old()


def test_native_code_is_not_waited_for_without_reseed(own: Agent) -> None:
    """Nothing has to be done there but to call its hooks, which is done when it comes back."""
    with own.stream() as s:
        s.python("podflare.on_fork(lambda g: open('hook', 'w').write(str(g)));")
    pid = session_of(own)
    cell = own.stream()
    cell.start(NATIVE.format(10**11), "python")
    begun(cell)
    computes(pid)
    freeze(own)
    assert renew(own, generation=2, reseed=False) == {}
    with own.stream() as s:
        assert s.status()["frozen"] is False
        assert s.bash("echo on").stdout == b"on\n"
    assert not (own.home / "hook").exists()
    cell.close()


def test_a_session_that_its_user_has_stopped(own: Agent) -> None:
    """SIGSTOP of somebody else's is not ours to end."""
    pid = session_of(own)
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state(pid) == "T", "the stop")
    freeze(own)
    with own.stream() as s:
        assert s.ask(THAW) == {}
    time.sleep(0.2)
    assert state(pid) == "T"
    os.kill(pid, signal.SIGCONT)
    assert session_of(own) == pid


def test_a_session_that_dies_while_it_stands_still(own: Agent) -> None:
    start(own)
    pid = session_of(own)
    freeze(own)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "its end")
    assert renew(own, generation=2) == {}
    assert session_of(own) != pid


