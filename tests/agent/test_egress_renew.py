# SPDX-License-Identifier: Apache-2.0
"""Egress in copies: what RENEW says of it, and what becomes of the original's connections."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from agent_client import FREEZE, THAW
from conftest import ROOT, wait_for
from copies import freeze, renew
from egress_environment import OTHER, PEM, added, wanted
from egress_host import EgressAgent, is_refused, is_reset, occupied, own  # noqa: F401  (a fixture)
from test_bash import needs_cgroups


def test_boot(own: EgressAgent) -> None:
    assert renew(own, egress={"on": True}, kind="boot", generation=0) == {}
    assert own.pair() and added(own, "bash") == wanted(own)
    assert renew(own, egress=None, kind="boot", generation=0) == {}
    assert is_refused(own.ports[0]) and own.files() == []


@needs_cgroups
@pytest.mark.parametrize("ca", [None, PEM, OTHER])
@pytest.mark.parametrize("kind", ["create", "fork"])
def test_copy_of_one_with_egress(own: EgressAgent, kind: str, ca: str | None) -> None:
    """No connection of the original's stays, not even one that nobody had accepted; new ones work."""
    assert own.egress(True, ca=PEM) == {}
    assert added(own, "python") == wanted(own, True)
    client, host = own.pair()
    relay = own.relay()
    freeze(own)
    queued = [own.connect(i) for i in (0, 1)]
    for sock in queued:
        sock.sendall(b"twice")
    assert renew(own, egress={"on": True, "ca": ca}, kind=kind) == {}
    assert is_reset(client) and all(is_reset(sock) for sock in queued)
    assert host.recv(1) == b""
    wait_for(lambda: own.relays() not in ([], [relay]) and relay not in own.relays(), "a new relay")
    client, host = own.pair(1)
    client.sendall(b"new")
    assert host.recv(10) == b"new"  # and nothing before it
    assert added(own, "python") == added(own, "bash") == wanted(own, bool(ca))
    assert (own.dir / "egress-ca.pem").exists() == bool(ca)
    if ca:
        assert (own.dir / "egress-ca.pem").read_text() == ca


@needs_cgroups
@pytest.mark.parametrize("egress", [None, {"on": False}, {"on": False, "ca": PEM}])
def test_copy_without(own: EgressAgent, egress: dict[str, Any] | None) -> None:
    assert own.egress(True, ca=PEM) == {}
    assert added(own, "python") == wanted(own, True)
    client, host = own.pair()
    freeze(own)
    queued = own.connect()
    assert renew(own, egress=egress) == {}
    assert is_reset(client) and is_reset(queued) and host.recv(1) == b""
    assert is_refused(own.ports[0]) and is_refused(own.ports[1])
    assert own.files() == [] and added(own, "python") == added(own, "bash") == {}
    wait_for(lambda: own.relays() == [], "its end")


@needs_cgroups
def test_copy_that_gets_it(own: EgressAgent) -> None:
    """A session that was never told of any, and owes its renewal."""
    with own.stream() as s:
        s.python("import random, os")
    freeze(own)
    assert renew(own, egress={"on": True, "ca": PEM}, kind="create") == {}
    assert added(own, "python") == wanted(own, True)
    assert own.pair()


@needs_cgroups
def test_copy_that_cannot_have_it(own: EgressAgent) -> None:
    """The sandbox works, and the answer says why it has none."""
    with occupied(own.ports[1]):
        freeze(own)
        answer = renew(own, egress={"on": True})
        assert list(answer) == ["egress_error"] and str(own.ports[1]) in answer["egress_error"]
        assert is_refused(own.ports[0]) and added(own, "python") == {}
    freeze(own)
    assert renew(own, egress={"on": True}) == {}
    assert own.pair()


@needs_cgroups
def test_renewal_that_fails(own: EgressAgent) -> None:
    """The copy stays frozen, its relay with it; the next renewal decides."""
    assert own.egress(True) == {}
    own.hook("10-fail", "exit 1\n")
    freeze(own)
    assert renew(own, egress={"on": True})["code"] == "io_error"
    late = own.connect()
    assert own.listener is not None
    own.listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        own.accept()
    own.listener.settimeout(20)
    own.hook("10-fail", "exit 0\n")
    assert renew(own, egress={"on": True}) == {}
    assert is_reset(late) and own.pair()


@needs_cgroups
def test_nothing_is_looked_for_when_it_is_off(own: EgressAgent) -> None:
    """Not even to be removed."""
    left = own.dir / "egress-env.sh"
    left.write_text("not the agent's")
    for _ in range(2):
        freeze(own)
        assert renew(own, egress=None) == {}
        assert own.egress(False) == {}
    assert left.read_text() == "not the agent's"
    assert own.relays() == [] and not [g for g in own.groups() if "relay" in g.name]


@needs_cgroups
@pytest.mark.skipif(not ROOT, reason="the agent is not root")
def test_relay_killed_while_frozen(own: EgressAgent) -> None:
    """A new one is there after the thaw, and in a copy."""
    assert own.egress(True) == {}
    for egress in (None, {"on": True}):
        pid = own.relay()
        with own.stream() as s:
            assert "groups" in s.ask(FREEZE)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: own.relays() == [], "its end")
            if egress is None:
                assert s.ask(THAW) == {}
            else:
                assert renew(own, egress=egress) == {}
        wait_for(lambda: not is_refused(own.ports[0]), "another one")
        own.accept().close()
        assert own.pair()
