# SPDX-License-Identifier: Apache-2.0
"""Egress on and off, and what that does to ports, connections and files. The environment that follows
from it: test_egress_environment.py; copies: test_egress_renew.py."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from agent_client import EGRESS, ERROR, RENEW, renew_request
from conftest import switches, wait_for
from egress_environment import PEM, added
from egress_host import (  # noqa: F401  (some are fixtures)
    EgressAgent,
    egress,
    is_refused,
    is_reset,
    occupied,
    on,
    own,
    shared,
)


def test_off_at_first(own: EgressAgent) -> None:
    assert is_refused(own.ports[0]) and is_refused(own.ports[1])
    assert own.relays() == [] and own.files() == []
    for language in ("bash", "python"):
        assert added(own, language) == {}
    assert own.egress(False) == {}


def test_off_again(own: EgressAgent) -> None:
    added(own, "python")
    added(own, "bash")
    fds = own.fds()
    assert own.egress(True) == {}
    client, host = own.pair()
    other, _ = own.pair(1)
    for ca in (PEM, None):
        assert own.egress(True, ca=ca) == {}
    client.sendall(b"goes on")
    assert host.recv(10) == b"goes on"
    assert own.egress(False) == {}
    assert is_refused(own.ports[0]) and is_refused(own.ports[1])
    assert is_reset(client) and is_reset(other)
    assert host.recv(1) == b""
    wait_for(lambda: own.relays() == [], "its end")
    assert own.files() == []
    assert added(own, "bash") == {}
    for _ in range(20):
        assert own.egress(True, ca=PEM) == {}
        assert own.egress(False) == {}
    assert own.egress(True) == {}
    assert own.pair() and own.pair(1)
    assert own.egress(False) == {}
    wait_for(lambda: own.fds() <= fds, "no descriptor to be left")
    wait_for(lambda: not [g for g in own.groups() if "relay" in g.name], "nor a group")


def test_off_while_much_is_carried(own: EgressAgent) -> None:
    """The client does not take the cut for the end."""
    assert own.egress(True) == {}
    client, host = own.pair()
    ends: list[bool] = []
    reader = threading.Thread(target=lambda: ends.append(is_reset(client)))
    reader.start()

    def send() -> None:
        try:
            while True:
                host.sendall(b"x" * 100_000)
        except OSError:
            pass

    sender = threading.Thread(target=send)
    sender.start()
    assert own.egress(False) == {}
    reader.join(20)
    sender.join(20)
    assert ends == [True]


def test_a_connection_at_once(egress: EgressAgent) -> None:
    """When the answer is there, so are the ports."""
    for _ in range(10):
        assert egress.egress(True) == {}
        client, host = egress.pair()
        client.sendall(b"x")
        assert host.recv(1) == b"x"
        assert egress.egress(False) == {}


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"on": 1},
        {"on": None},
        {"on": True, "ca": 1},
        {"on": True, "ca": ""},
        {"on": True, "ca": "TUlJ"},
        {"on": True, "ca": "x" + PEM},
        {"on": True, "ca": PEM.replace("TUlJ", "TU\0lJ")},
        {"on": True, "ca": PEM.replace("TUlJ", "TU\x1blJ")},
        {"on": True, "ca": PEM.replace("TUlJ", "TU\u00e9lJ")},
        {"on": True, "ca": "-----BEGIN CERTIFICATE-----\nTUlJ\n"},
        {"on": True, "ca": PEM + "x" * 32768},
    ],
)
def test_wrong_requests(egress: EgressAgent, request_: dict[str, Any]) -> None:
    """They change nothing, whether it is off or on; RENEW takes them no better."""
    for _ in range(2):
        files = egress.files()
        with egress.stream() as s:
            assert s.ask(EGRESS, request_)["code"] == "bad_request"
            assert s.ask(RENEW, renew_request(egress=request_))["code"] == "bad_request"
        assert egress.files() == files
        assert is_refused(egress.ports[0]) == (not files)
        assert egress.egress(True, ca=PEM) == {}
        egress.accept().close() if files else None


def test_renew_with_something_else(egress: EgressAgent) -> None:
    for wrong in ([], "on", True, None):
        request = renew_request()
        request["egress"] = wrong
        with egress.stream() as s:
            assert s.ask(RENEW, request)["code"] == "bad_request"


def test_not_json(egress: EgressAgent) -> None:
    with egress.stream() as s:
        for payload in (b"", b"[]", b'{"on": true, "on": true}', b"\xff", b'{"on": tru'):
            s.send(EGRESS, payload)
            assert s.recv_json(ERROR)["code"] == "bad_request"
        assert s.ask(EGRESS, {"on": True, "unknown": 1}) == {}


def test_a_port_in_use(egress: EgressAgent) -> None:
    for port in egress.ports:
        with occupied(port):
            answer = egress.egress(True, ca=PEM)
            assert answer["code"] == "io_error" and str(port) in answer["message"]
            assert egress.files() == [] and added(egress, "bash") == {}
            wait_for(lambda: egress.relays() == [], "no relay")
            assert sum(is_refused(p) for p in egress.ports) == 1
        assert is_refused(port)
    assert egress.egress(True) == {}
    assert egress.pair()


def test_files_that_cannot_be_written(egress: EgressAgent) -> None:
    """Something of root's is in the way: off, and all else works."""
    blocked = egress.dir / "egress-bundle.pem"
    blocked.mkdir()
    (blocked / "x").touch()
    assert egress.egress(True, ca=PEM)["code"] in ("io_error", "is_directory", "exists")
    assert is_refused(egress.ports[0]) and added(egress, "bash") == {}
    assert egress.files() == ["egress-bundle.pem"]
    shutil.rmtree(blocked)


def test_ends_with_the_agent() -> None:
    a = EgressAgent()
    assert a.egress(True) == {}
    pid = a.relay()
    a.stop()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "its end")


def test_stream_may_close(egress: EgressAgent) -> None:
    """What EGRESS says stays so."""
    with egress.stream() as s:
        assert s.ask(EGRESS, {"on": True}) == {}
    assert egress.pair()


def test_idle(on: EgressAgent) -> None:
    """Neither agent nor relay wakes up for connections that do nothing."""
    pairs = [on.pair() for _ in range(5)]
    pid = on.relay()
    time.sleep(0.3)
    before = switches(pid), on.switches()
    time.sleep(1)
    assert (switches(pid), on.switches()) == before and pairs
