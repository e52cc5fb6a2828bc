# SPDX-License-Identifier: Apache-2.0
"""Egress: EGRESS and RENEW, the environment and the files that follow from them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from agent_client import CONTEXT, EGRESS, ERROR, FREEZE, OK, RENEW, THAW, renew_request
from conftest import ROOT, switches, wait_for
from egress_host import EgressAgent, is_refused, is_reset
from test_bash import needs_cgroups
from test_freeze import begun
from test_percall import argv, needs_node, needs_root, node

PEM = "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n"
OTHER = PEM.replace("TUlJ", "TUlK")
PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"]
BUNDLE = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
]
BUNDLE += ["PIP_CERT", "CARGO_HTTP_CAINFO", "npm_config_cafile"]
CA_ONLY = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"]
CA_FILES = ["egress-apt.conf", "egress-bundle.pem", "egress-ca.pem", "egress-wgetrc"]
DUMP = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture
def own() -> Iterator[EgressAgent]:
    """An agent of the test's own; egress is off."""
    a = EgressAgent()
    yield a
    a.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[EgressAgent]:
    """One for tests that leave it off."""
    a = EgressAgent()
    yield a
    a.stop()


@pytest.fixture
def egress(shared: EgressAgent) -> Iterator[EgressAgent]:
    """That one, off before and after."""
    yield shared
    assert shared.egress(False) == {}


@pytest.fixture
def on(egress: EgressAgent) -> EgressAgent:
    """And on."""
    assert egress.egress(True) == {}
    return egress


def wanted(agent: EgressAgent, ca: bool = False) -> dict[str, str]:
    """The variables that egress adds."""
    env = {name: f"http://127.0.0.1:{agent.ports[0]}" for name in PROXIES}
    env.update({name: "localhost,127.0.0.1,::1" for name in ("NO_PROXY", "no_proxy")})
    env["NODE_USE_ENV_PROXY"] = "1"
    env["NODE_OPTIONS"] = f"--require={agent.dir}/repl/egress-node.cjs"
    if ca:
        env.update({name: f"{agent.dir}/egress-bundle.pem" for name in BUNDLE})
        env.update({name: f"{agent.dir}/egress-ca.pem" for name in CA_ONLY})
        env["APT_CONFIG"] = f"{agent.dir}/egress-apt.conf"
        env["WGETRC"] = f"{agent.dir}/egress-wgetrc"
    return env


def environment(agent: EgressAgent, language: str, **extra: Any) -> dict[str, str]:
    """That of a call."""
    with agent.stream() as s:
        if language == "python":
            r = s.python(DUMP, **extra)
        elif language == "bash":
            r = s.bash(f"exec /usr/bin/python3 -c '{DUMP}'", **extra)
        elif language == "argv":
            r = argv(s, "/usr/bin/python3", "-c", DUMP, **extra)
        else:
            r = node(s, "console.log(JSON.stringify(process.env))", **extra)
        assert r.code == 0, r.stderr
        return dict(json.loads(r.stdout))


def added(agent: EgressAgent, language: str, **extra: Any) -> dict[str, str]:
    """What of it is egress's, whatever its value."""
    names = wanted(agent, True)
    return {k: v for k, v in environment(agent, language, **extra).items() if k in names}


def occupied(port: int) -> socket.socket:
    """A program of the user's that listens there."""
    return socket.create_server(("127.0.0.1", port))


def freeze(agent: EgressAgent) -> None:
    """As the original did."""
    with agent.stream() as s:
        assert "groups" in s.ask(FREEZE)


def renew(agent: EgressAgent, egress: dict[str, Any] | None, **change: Any) -> dict[str, Any]:
    """The answer to RENEW."""
    request = renew_request(**{"kind": "fork", "generation": 1, "egress": egress, **change})
    with agent.stream() as s:
        return s.ask(RENEW, request)


# --- on and off


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


# --- environment


@pytest.mark.parametrize("ca", [None, PEM])
@pytest.mark.parametrize(
    "language", ["bash", "argv", "python", pytest.param("javascript", marks=needs_node)]
)
def test_environment(egress: EgressAgent, language: str, ca: str | None) -> None:
    assert added(egress, language) == {}
    assert egress.egress(True, ca=ca) == {}
    assert added(egress, language) == wanted(egress, bool(ca))
    assert egress.egress(True, ca=None if ca else PEM) == {}
    assert added(egress, language) == wanted(egress, not ca)
    assert egress.egress(False) == {}
    assert added(egress, language) == {}


@needs_root
def test_without_what_node_loads(egress: EgressAgent) -> None:
    """A Node.js that is to load a file that is missing would not start: it is told of none."""
    path = Path(egress.dir) / "repl"
    path.rename(path.with_name("aside"))
    try:
        assert egress.egress(True) == {}
        assert "NODE_OPTIONS" not in environment(egress, "argv")
        assert egress.egress(False) == {}
    finally:
        path.with_name("aside").rename(path)


def test_environment_of_root(on: EgressAgent) -> None:
    assert added(on, "bash", user="root") == wanted(on)


def test_environment_of_kept_and_terminals(on: EgressAgent) -> None:
    with on.stream() as s:
        r = s.bash("echo $HTTPS_PROXY-$https_proxy", keep="one")
        assert r.stdout.decode().strip() == "-".join([f"http://127.0.0.1:{on.ports[0]}"] * 2)
        r = s.bash("echo $HTTPS_PROXY-$TERM", keep="two", pty={"cols": 80, "rows": 24})
        assert r.stdout.decode().strip() == f"http://127.0.0.1:{on.ports[0]}-xterm-256color"


@pytest.mark.parametrize("language", ["bash", "argv", "python"])
def test_values_of_the_call_win(on: EgressAgent, language: str) -> None:
    """In both cases of letters."""
    mine = {"https_proxy": "http://mine", "NO_PROXY": "", "SSL_CERT_FILE": "/mine", "X": "y"}
    found = environment(on, language, env=mine)
    assert {k: found.get(k) for k in mine} == mine
    assert "HTTPS_PROXY" not in found and "no_proxy" not in found
    assert found["HTTP_PROXY"] == found["http_proxy"] == wanted(on)["HTTP_PROXY"]
    both = {"https_proxy": "http://small", "HTTPS_PROXY": "http://large"}
    found = environment(on, language, env=both)
    assert {k: found.get(k) for k in both} == both
    assert added(on, language) == wanted(on)


def test_session_that_runs(own: EgressAgent) -> None:
    """Told before its next cell, and not in the middle of one; what it starts has it as well."""
    with own.stream() as s, own.stream() as host:
        s.python("import os, time, subprocess; pid = os.getpid(); os.environ.get('HTTPS_PROXY')")
        s.start(
            "print('on', flush=True); time.sleep(0.5); print('HTTPS_PROXY' in os.environ)", "python"
        )
        begun(s)
        assert host.ask(EGRESS, {"on": True}) == {}
        assert s.finish().stdout == b"False\n"
        r = s.python(
            "print(os.environ['HTTPS_PROXY'], os.getpid() == pid,"
            " subprocess.run('echo $https_proxy', shell=True, capture_output=True, text=True).stdout)"
        )
        url = wanted(own)["HTTPS_PROXY"]
        assert r.stdout.decode().split() == [url, "True", url]


def test_new_sessions(on: EgressAgent) -> None:
    """Also one that has died, and those of other contexts."""
    with on.stream() as s:
        assert s.python("import os; os._exit(1)").exit is not None
    assert added(on, "python") == wanted(on)
    with on.stream() as s:
        s.send(CONTEXT, {"op": "create", "id": "other"})
        s.recv_json(OK)
    assert added(on, "python", context="other") == wanted(on)
    assert on.egress(False) == {}
    assert added(on, "python", context="other") == {}


def test_what_the_user_has_set_stays(own: EgressAgent) -> None:
    with own.stream() as s:
        s.python("import os; os.environ['http_proxy'] = 'http://before'")
        assert own.egress(True) == {}
        s.python("os.environ['ALL_PROXY'] = 'http://during'; del os.environ['NO_PROXY']")
        assert own.egress(True, ca=PEM) == {}
        found = added(own, "python")
        expected = wanted(own, True)
        expected.update(http_proxy="http://before", ALL_PROXY="http://during")
        del expected["NO_PROXY"], expected["HTTP_PROXY"]
        assert found == expected
        assert own.egress(False) == {}
        assert added(own, "python") == {
            "http_proxy": "http://before",
            "ALL_PROXY": "http://during",
        }


def test_hooks(own: EgressAgent) -> None:
    own.hook("10-env", f"env >{own.dir}/hook-env\n")
    freeze(own)
    assert renew(own, {"on": True}) == {}
    lines = (own.dir / "hook-env").read_text().splitlines()
    assert f"https_proxy=http://127.0.0.1:{own.ports[0]}" in lines
    assert "PODFLARE_FORK_KIND=fork" in lines


# --- files


def test_files(egress: EgressAgent) -> None:
    assert egress.egress(True) == {}
    assert egress.files() == ["egress-env.sh"]
    assert egress.egress(True, ca=PEM) == {}
    assert egress.files() == sorted([*CA_FILES, "egress-env.sh"])
    for name in egress.files():
        assert (egress.dir / name).stat().st_mode & 0o777 == 0o644
        assert (egress.dir / name).stat().st_uid == os.geteuid()
    assert (egress.dir / "egress-ca.pem").read_text() == PEM
    bundle = f"{egress.dir}/egress-bundle.pem"
    assert (egress.dir / "egress-apt.conf").read_text() == f'Acquire::https::CaInfo "{bundle}";\n'
    assert (egress.dir / "egress-wgetrc").read_text() == f"ca_certificate = {bundle}\n"
    assert egress.egress(True, ca=OTHER) == {}
    assert (egress.dir / "egress-ca.pem").read_text() == OTHER
    assert egress.egress(True, ca=None) == {}
    assert egress.files() == ["egress-env.sh"]


def test_bundle(egress: EgressAgent) -> None:
    """With the CAs of the system, when it has any that can be read."""
    system = egress.etc / "ssl" / "certs" / "ca-certificates.crt"
    system.parent.mkdir(parents=True, exist_ok=True)
    bundle = egress.dir / "egress-bundle.pem"
    assert egress.egress(True, ca=PEM) == {}
    assert bundle.read_text().split() == PEM.split()
    system.write_text(OTHER * 5000)
    assert egress.egress(True, ca=PEM) == {}
    assert bundle.read_text().split() == (OTHER * 5000 + PEM).split()
    system.unlink()
    os.mkfifo(system)  # nothing hangs
    assert egress.egress(True, ca=PEM) == {}
    assert bundle.read_text().split() == PEM.split()
    system.unlink()
    system.write_bytes(b"")
    os.truncate(system, 5 << 20)
    assert egress.egress(True, ca=PEM) == {}
    assert bundle.read_text().split() == PEM.split()
    system.unlink()


def test_files_that_root_has_replaced(egress: EgressAgent) -> None:
    """By links, fifos, nothing: they are made again, and what the links point at is left alone."""
    precious = egress.home / "precious"
    precious.write_text("precious")
    assert egress.egress(True, ca=PEM) == {}
    for name in egress.files():
        (egress.dir / name).unlink()
    (egress.dir / "egress-ca.pem").symlink_to(precious)
    (egress.dir / "egress-env.sh").symlink_to(precious)
    os.mkfifo(egress.dir / "egress-bundle.pem")
    assert egress.egress(True, ca=PEM) == {}
    assert egress.files() == sorted([*CA_FILES, "egress-env.sh"])
    assert (egress.dir / "egress-ca.pem").read_text() == PEM
    assert not any((egress.dir / name).is_symlink() for name in egress.files())
    (egress.dir / "egress-ca.pem").unlink()
    (egress.dir / "egress-ca.pem").symlink_to(precious)
    assert egress.egress(False) == {}
    assert egress.files() == [] and precious.read_text() == "precious"


def test_environment_of_shells(on: EgressAgent) -> None:
    """The file sets what is not set."""
    code = (
        f"unset HTTPS_PROXY; http_proxy= ; . {on.dir}/egress-env.sh; /usr/bin/python3 -c '{DUMP}'"
    )
    with on.stream() as s:
        found = json.loads(s.bash(code).stdout)
    expected = {**wanted(on), "http_proxy": ""}
    assert {k: found.get(k) for k in expected} == expected


# --- RENEW


def test_boot(own: EgressAgent) -> None:
    assert renew(own, {"on": True}, kind="boot", generation=0) == {}
    assert own.pair() and added(own, "bash") == wanted(own)
    assert renew(own, None, kind="boot", generation=0) == {}
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
    assert renew(own, {"on": True, "ca": ca}, kind=kind) == {}
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
    assert renew(own, egress) == {}
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
    assert renew(own, {"on": True, "ca": PEM}, kind="create") == {}
    assert added(own, "python") == wanted(own, True)
    assert own.pair()


@needs_cgroups
def test_copy_that_cannot_have_it(own: EgressAgent) -> None:
    """The sandbox works, and the answer says why it has none."""
    with occupied(own.ports[1]):
        freeze(own)
        answer = renew(own, {"on": True})
        assert list(answer) == ["egress_error"] and str(own.ports[1]) in answer["egress_error"]
        assert is_refused(own.ports[0]) and added(own, "python") == {}
    freeze(own)
    assert renew(own, {"on": True}) == {}
    assert own.pair()


@needs_cgroups
def test_renewal_that_fails(own: EgressAgent) -> None:
    """The copy stays frozen, its relay with it; the next renewal decides."""
    assert own.egress(True) == {}
    own.hook("10-fail", "exit 1\n")
    freeze(own)
    assert renew(own, {"on": True})["code"] == "io_error"
    late = own.connect()
    assert own.listener is not None
    own.listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        own.accept()
    own.listener.settimeout(20)
    own.hook("10-fail", "exit 0\n")
    assert renew(own, {"on": True}) == {}
    assert is_reset(late) and own.pair()


@needs_cgroups
def test_nothing_is_looked_for_when_it_is_off(own: EgressAgent) -> None:
    """Not even to be removed."""
    left = own.dir / "egress-env.sh"
    left.write_text("not the agent's")
    for _ in range(2):
        freeze(own)
        assert renew(own, None) == {}
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
                assert renew(own, egress) == {}
        wait_for(lambda: not is_refused(own.ports[0]), "another one")
        own.accept().close()
        assert own.pair()


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
