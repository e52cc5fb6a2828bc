# SPDX-License-Identifier: Apache-2.0
"""The agent's EGRESS between two cells: variables that come, change and go, and the user's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from repl_process import Died, Repl

EGRESS = 0x17
URL = "http://127.0.0.1:3128"
ENV = {name: URL for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
ENV.update(NO_PROXY="localhost", no_proxy="localhost", NODE_USE_ENV_PROXY="1")
CA = {**ENV, "SSL_CERT_FILE": "/run/bundle.pem"}


def tell(repl: Repl, env: dict[str, str]) -> None:
    """The frame."""
    repl.send(EGRESS, json.dumps({"env": env}).encode())


def found(repl: Repl) -> dict[str, Any]:
    """What the session has of it; the same for what it starts."""
    code = "import os, json, subprocess, sys\n"
    code += "show = 'import os, json; print(json.dumps(dict(os.environ)))'\n"
    code += "a = dict(os.environ)\n"
    code += "b = json.loads(subprocess.check_output([sys.executable, '-c', show]))\n"
    code += f"for e in a, b: print(json.dumps({{k: e[k] for k in {sorted(CA)} if k in e}}))"
    r = repl.run(code)
    assert r.exit_code == 0, r.errors
    inside, outside = (json.loads(line) for line in r.text.splitlines())
    assert inside == outside
    return dict(inside)


@pytest.fixture
def repl(tmp_path: Any) -> Any:
    """One whose environment has none of it."""
    with Repl(cwd=tmp_path, prefix=("env", *(f"-u{name}" for name in CA))) as process:
        yield process


def test_comes_and_goes(repl: Repl) -> None:
    assert found(repl) == {}
    for env in (ENV, CA, ENV, {}, CA, CA, {}):
        tell(repl, env)
        assert found(repl) == env


def test_several_before_a_cell(repl: Repl) -> None:
    for env in (ENV, {}, CA):
        tell(repl, env)
    assert found(repl) == CA


def test_the_users_own(repl: Repl) -> None:
    """Set before, changed, deleted: it stays as the user has it, in either case of letters."""
    repl.run("import os; os.environ['https_proxy'] = 'http://mine'")
    tell(repl, ENV)
    mine = {k: v for k, v in ENV.items() if k != "HTTPS_PROXY"}
    mine["https_proxy"] = "http://mine"
    assert found(repl) == mine
    repl.run("os.environ['NO_PROXY'] = '*'; del os.environ['HTTP_PROXY']")
    mine["NO_PROXY"] = "*"
    del mine["HTTP_PROXY"]
    tell(repl, CA)
    assert found(repl) == {**mine, "SSL_CERT_FILE": CA["SSL_CERT_FILE"]}
    tell(repl, {})
    assert found(repl) == {"https_proxy": "http://mine", "NO_PROXY": "*"}


def test_given_to_one_call(repl: Repl) -> None:
    """Wins in both cases of letters while that runs, and afterwards all is as before."""
    tell(repl, ENV)
    code = "import os; print(os.environ.get('https_proxy'), os.environ.get('HTTPS_PROXY'))"
    repl.start(code, env={"HTTPS_PROXY": "http://mine"})
    assert repl.finish().text == "None http://mine\n"
    assert found(repl) == ENV
    repl.start(code, env={"HTTPS_PROXY": "http://mine", "https_proxy": ""})
    assert repl.finish().text == " http://mine\n"
    assert found(repl) == ENV


def test_a_broken_environment(repl: Repl) -> None:
    """The user's own trouble; the session goes on."""
    repl.run("import os; real = os.environ; os.environ = {}")
    tell(repl, ENV)
    assert repl.run("real['HTTP_PROXY']").value == repr(URL)
    repl.run("type(real).__setitem__ = None; os.environ = real")
    tell(repl, CA)
    assert repl.run("1 + 1").value == "2"


def test_a_broken_frame(repl: Repl) -> None:
    """Of the agent's: nothing changes."""
    tell(repl, ENV)
    for payload in (b"", b"[]", b'{"env": 1}', b"\xff"):
        repl.send(EGRESS, payload)
    assert found(repl) == ENV


def test_not_inside_of_a_cell(repl: Repl) -> None:
    repl.send(0x01, b"{}")
    with pytest.raises(Died):
        tell(repl, ENV)
        repl.answer()


def test_urlopen_forgets(repl: Repl) -> None:
    """It keeps the proxies of its first call, which may have been made without any."""
    code = "import urllib.request, urllib.error\n"
    code += "def proxies():\n"
    code += "    try: urllib.request.urlopen('http://name.invalid/', timeout=5)\n"
    code += "    except urllib.error.URLError as e: print(type(e.reason).__name__)\n"
    code += "proxies()"
    assert repl.run(code).text == "gaierror\n"
    env = {"http_proxy": "http://127.0.0.1:1"}  # nobody listens there
    tell(repl, env)
    assert repl.run("proxies()").text == "ConnectionRefusedError\n"


def test_an_opener_of_the_users_stays(repl: Repl) -> None:
    code = "import urllib.request as r\n"
    code += "class Mine(r.BaseHandler):\n    def http_request(self, q): return q\n"
    code += "opener = r.build_opener(Mine); r.install_opener(opener)"
    assert repl.run(code).exit_code == 0
    tell(repl, ENV)
    assert repl.run("r._opener is opener").value == "True"
    repl.run(
        "import ssl; opener = r.build_opener(r.HTTPSHandler(context=ssl.create_default_context()))"
    )
    repl.run("r.install_opener(opener)")
    tell(repl, {})
    assert repl.run("r._opener is opener").value == "True"


def test_quiet_stays_quiet(repl: Repl) -> None:
    assert repl.run("pass").quiet is True
    tell(repl, ENV)
    assert repl.run("pass").quiet is True
