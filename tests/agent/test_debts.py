# SPDX-License-Identifier: Apache-2.0
"""A renewal that is owed stays owed until the session has said that it is done."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from agent_client import ERROR, FREEZE, OK, THAW, WARM
from conftest import Agent, wait_for
from copies import freeze, renew
from processes import state
from test_deferred import STUB, session

WRITE = "open('state', 'w').write(str(hash(random.getstate())));"


@pytest.mark.parametrize("begun", ["cell", "warm"])
def test_a_fork_before_the_session_has_read_of_it(own: Agent, begun: str) -> None:
    """The first call of a fresh sandbox, and a fork with reseed=False right behind it."""
    pid, before = session(own)
    freeze(own)
    assert renew(own, kind="create") == {}
    os.kill(pid, signal.SIGSTOP)  # it has not come to read what it is sent
    wait_for(lambda: state(pid) in "Tt", "the stop")
    with own.stream() as call, own.stream() as host:
        if begun == "cell":
            call.start(WRITE, "python")
        else:
            call.send(WARM, {})
        with own.stream() as s:
            wait_for(lambda: s.status()["repl"] == "busy", "the call to be taken")
        host.send(FREEZE, {})
        host.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):  # it waits for the session
            host.recv()
        host.sock.settimeout(30)
        os.kill(pid, signal.SIGCONT)
        assert "groups" in host.recv_json(OK)
        assert renew(own, reseed=False) == {}
    if begun == "cell":
        wait_for(lambda: (own.home / "state").exists(), "the call")
        with own.stream() as s:
            s.python("pass")
        after = int((own.home / "state").read_text())
    else:
        after = session(own)[1]
    assert after != before


def test_a_debt_that_was_refused_stays(stub_agent: Any) -> None:
    agent = stub_agent(
        "def owed():\n"
        "    serial = json.load(open(os.path.dirname(sys.argv[0]) + '/../fork.json'))['serial']\n"
        "    open('asked', 'a').write('x'); n = len(open('asked').read())\n"
        "    if n < 2: send(0x84, {'serial': serial, 'message': 'no'})\n"
        "    else: send(OK, {'serial': serial, 'renewed': 1})\n" + STUB
    )
    with agent.stream() as s:
        s.python("x")
    freeze(agent)
    assert renew(agent) == {}
    with agent.stream() as s:
        s.send(FREEZE, {})
        assert s.recv_json(ERROR)["code"] == "io_error"
    with agent.stream() as s:
        for _ in range(2):
            assert "groups" in s.ask(FREEZE)
            assert s.ask(THAW) == {}
    assert (agent.home / "asked").read_text() == "xx"
