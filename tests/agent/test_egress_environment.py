# SPDX-License-Identifier: Apache-2.0
"""Egress: the environment of what runs, and the files that it names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from agent_client import CONTEXT, EGRESS, OK, begun
from copies import freeze, renew
from egress_environment import CA_FILES, DUMP, OTHER, PEM, added, environment, wanted
from egress_host import EgressAgent, egress, on, own, shared  # noqa: F401  (fixtures)
from test_percall import needs_node, needs_root


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
    assert renew(own, egress={"on": True}) == {}
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
