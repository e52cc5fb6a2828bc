# SPDX-License-Identifier: Apache-2.0
"""Renewals that a session owes: it is not woken up for them, and does them before it runs anything."""

from __future__ import annotations

import os
import signal
import time
from typing import Callable

import pytest
from agent_client import FREEZE, THAW, WARM
from conftest import Agent, wait_for
from copies import freeze, renew

SESSION = "print(os.getpid(), hash(random.getstate()))"


def session(agent: Agent) -> tuple[int, int]:
    """Process id, and a hash of the generator's state; the call leaves the session quiet."""
    with agent.stream() as s:
        r = s.python(SESSION)
        assert r.code == 0, r.stderr
        pid, state = r.stdout.split()
        return int(pid), int(state)


def reads(pid: int) -> int:
    """Calls of read() so far: a renewal has at least one. (Being frozen costs a process none.)"""
    with open(f"/proc/{pid}/io", encoding="ascii") as f:
        return int(f.read().split("syscr:")[1].split()[0])


def test_not_woken_up(own: Agent) -> None:
    pid, before = session(own)
    read = reads(pid)
    for n in (1, 2, 3):
        freeze(own)
        assert renew(own, generation=n, kind="fork" if n > 1 else "create") == {}
        # The first one is owed when the second freezes, and then done.
        assert (reads(pid) == read) == (n == 1)
        read = reads(pid)
    assert session(own)[1] != before


def test_before_the_cell_and_once(own: Agent) -> None:
    with own.stream() as s:
        s.python("random.seed(1); first = random.random(); random.seed(1);")
    freeze(own)
    assert renew(own, kind="create") == {}
    with own.stream() as s:
        assert s.python("print(random.random() == first)").stdout == b"False\n"
        s.python("random.seed(1);")
        assert s.python("print(random.random() == first)").stdout == b"True\n"


def test_generators_are_left_alone(own: Agent) -> None:
    _, before = session(own)
    freeze(own)
    assert renew(own, reseed=False) == {}
    assert session(own)[1] == before


def test_freeze_has_it_done(own: Agent) -> None:
    """So that a copy that is to repeat the original has the same state."""
    pid, before = session(own)
    freeze(own)
    assert renew(own, kind="create") == {}
    read = reads(pid)
    freeze(own)
    assert reads(pid) > read
    assert renew(own, reseed=False) == {}
    after = session(own)[1]
    assert after != before
    freeze(own)
    assert renew(own, reseed=False) == {}
    assert session(own)[1] == after


def test_thaw_and_freeze_again(own: Agent) -> None:
    """Nothing is owed twice."""
    pid, _ = session(own)
    freeze(own)
    assert renew(own, kind="create") == {}
    with own.stream() as s:
        s.ask(FREEZE)
        s.ask(THAW)
        read = reads(pid)
        s.ask(FREEZE)
        s.ask(THAW)
    assert reads(pid) == read


@pytest.mark.parametrize(
    "what",
    [
        "podflare.on_fork(lambda g: None);",
        "import threading; threading.Thread(target=time.sleep, args=(60,), daemon=True).start();",
        "import signal; signal.signal(signal.SIGUSR1, lambda s, f: None);",
        "import gc; gc.callbacks.append(lambda phase, info: None);",
        "import sys; sys.addaudithook(lambda event, args: None);",
    ],
)
def test_where_code_of_the_users_may_run(own: Agent, what: str) -> None:
    """Then the session is renewed at once."""
    with own.stream() as s:
        assert s.python(what).code == 0
    pid, before = session(own)
    read = reads(pid)
    freeze(own)
    assert renew(own) == {}
    assert reads(pid) > read
    assert session(own)[1] != before


def test_warm_does_it(own: Agent) -> None:
    _, before = session(own)
    freeze(own)
    assert renew(own, kind="create") == {}
    with own.stream() as s:
        assert s.ask(WARM) == {}
    freeze(own)
    assert renew(own, reseed=False) == {}
    assert session(own)[1] != before


def test_it_fails(own: Agent) -> None:
    """No cell runs in a session that could not renew itself."""
    pid, _ = session(own)
    freeze(own)
    assert renew(own, kind="create") == {}
    (own.dir / "fork.json").write_text("{broken")
    with own.stream() as s:
        r = s.python("open('ran', 'w')")
        assert r.exit is not None and (r.code, r.exit["state"]) == (70, "lost")
        assert not (own.home / "ran").exists()
        assert s.python("import os; print(os.getpid() != %d)" % pid).stdout == b"True\n"


def test_it_fails_when_frozen(own: Agent) -> None:
    session(own)
    freeze(own)
    assert renew(own, kind="create") == {}
    (own.dir / "fork.json").unlink()
    with own.stream() as s:
        # The session ends, the next one has nothing of its template's: FREEZE goes on.
        assert "groups" in s.ask(FREEZE)
        assert s.ask(THAW) == {}
        assert s.python("print(1)").stdout == b"1\n"


def test_session_that_ends_meanwhile(own: Agent) -> None:
    pid, _ = session(own)
    freeze(own)
    assert renew(own, kind="create") == {}
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "its end")
    freeze(own)
    assert renew(own) == {}
    with own.stream() as s:
        assert s.python("print(1)").stdout == b"1\n"


DONE = """
def done():
    serial = json.load(open(os.path.dirname(sys.argv[0]) + '/../fork.json'))['serial']
    send(OK, {'serial': serial, 'renewed': 1})
"""
STUB = """
send(READY, {"quiet": True})
while True:
    kind, payload = recv()
    if kind == 8: owed()
    if kind == 7: send(EXIT, {"exit_code": 0, "quiet": True})
"""


def test_stub_without_an_answer(stub_agent: Callable[[str], Agent]) -> None:
    agent = stub_agent("def owed(): pass\n" + STUB)
    with agent.stream() as s:
        s.python("x")
    freeze(agent)
    assert renew(agent) == {}
    with agent.stream() as s:
        with agent.stream() as other:
            begun = time.monotonic()
            other.send(FREEZE, b"{}")
            time.sleep(0.3)
            with agent.stream() as third:  # it is on its way
                assert third.ask(FREEZE)["code"] == "busy"
                assert third.ask(THAW)["code"] == "busy"
            answer = other.recv_json(0x84)
            assert answer["code"] == "io_error" and "does not answer" in str(answer["message"])
            assert time.monotonic() - begun > 4
        assert s.bash("echo on").stdout == b"on\n"
        assert s.ask(FREEZE)["code"] == "io_error"  # it is still owed


def test_stub_that_refuses(stub_agent: Callable[[str], Agent]) -> None:
    agent = stub_agent(
        "def owed():\n"
        "    serial = json.load(open(os.path.dirname(sys.argv[0]) + '/../fork.json'))['serial']\n"
        "    send(0x84, {'serial': serial, 'message': 'no'})\n" + STUB
    )
    with agent.stream() as s:
        s.python("x")
    freeze(agent)
    assert renew(agent) == {}
    with agent.stream() as s:
        answer = s.ask(FREEZE)
        assert answer["code"] == "io_error" and "could not renew" in str(answer["message"])
        assert s.bash("echo on").stdout == b"on\n"


def test_host_that_goes_while_it_is_paid(stub_agent: Callable[[str], Agent]) -> None:
    agent = stub_agent("def owed(): time.sleep(1); done()\n" + DONE + STUB)
    with agent.stream() as s:
        s.python("x")
    freeze(agent)
    assert renew(agent) == {}
    with agent.stream() as s:
        with agent.stream() as other:
            other.send(FREEZE, b"{}")
            time.sleep(0.2)
        wait_for(lambda: "groups" in s.ask(FREEZE), "the agent to have let go")
        assert s.ask(THAW) == {}
