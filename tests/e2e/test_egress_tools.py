# SPDX-License-Identifier: Apache-2.0
"""Real tools in a real guest, as a user would use them: configured by nothing but the sandbox itself."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Iterator

import pytest
from egress_content import MODULE, PACKAGE, SAYING
from egress_world import World
from guest import py, sh
from served import Daemon, run_example

from podflare import Client, Sandbox

# Variables that every command gets.
PROXY = "http://127.0.0.1:3128"


@pytest.fixture(scope="module")
def tools(client: Client, outside: World) -> Iterator[Sandbox]:
    """As `granted`, with what users bring along: the template of web-tools/, which `make test` builds."""
    with Sandbox(client=client, template="web-tools", egress_allow=outside.everything()) as sandbox:
        sandbox.upload(outside.ca.encode(), "/tmp/ca.pem")
        yield sandbox


def test_environment_of_commands_and_of_python(granted: Sandbox):
    wanted = {
        **{f"{name}_PROXY": PROXY for name in ("HTTP", "HTTPS", "ALL")},
        "NO_PROXY": "localhost,127.0.0.1,::1",
    }
    wanted |= {name.lower(): value for name, value in wanted.items()}
    script = "import json, os; print(json.dumps(dict(os.environ)))"
    for name, text in {
        "repl": py(granted, script),
        "bash": sh(granted, f"python3 -c {shlex.quote(script)}"),
        "sudo": sh(granted, f"sudo python3 -c {shlex.quote(script)}"),
        "login": sh(granted, f"env -i bash -lc {shlex.quote(f'python3 -c {shlex.quote(script)}')}"),
        "exec": granted.exec(["python3", "-c", script]).stdout,
    }.items():
        environ = json.loads(text)
        assert {key: environ.get(key) for key in wanted} == wanted, name
        assert environ["NODE_USE_ENV_PROXY"] == "1", name
    # The caller's own go before.
    r = granted.run_code("echo $HTTP_PROXY", "bash", env={"HTTP_PROXY": "http://mine:1"})
    assert r.stdout == "http://mine:1\n"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_pip(granted: Sandbox, outside: World, scheme: str):
    """A wheel with a dependency, from an index that speaks the simple API."""
    server = outside.http if scheme == "http" else outside.https
    before = len(server.seen)
    trust = "--trusted-host pypi.test" if scheme == "http" else "--cert /tmp/ca.pem"
    sh(granted, f"pip uninstall -y {PACKAGE} {PACKAGE}-needs 2>/dev/null; true")
    out = sh(
        granted,
        f"pip install --no-cache-dir --index-url {scheme}://pypi.test:{server.port}/simple/ {trust} {PACKAGE}",
    )
    assert f"Successfully installed {PACKAGE}-1.0 {PACKAGE}-needs-1.0" in out
    script = f"import {MODULE} as m; print(m.SAYING, m.NEEDS)"
    assert sh(granted, f"python3 -c '{script}'") == f"{SAYING} 42\n"
    paths = [one.path for one in server.seen[before:]]
    assert f"/simple/{PACKAGE}/" in paths and f"/packages/{MODULE}-1.0-py3-none-any.whl" in paths
    assert all(one.host == f"pypi.test:{server.port}" for one in server.seen[before:])


def test_pip_by_a_magic_of_the_repl(granted: Sandbox, outside: World):
    """`!pip install`, and the module in the interpreter that was running already."""
    port = outside.http.port
    sh(granted, f"pip uninstall -y {PACKAGE} {PACKAGE}-needs 2>/dev/null; true")
    r = granted.run_code(
        f"!pip install --no-cache-dir --index-url http://pypi.test:{port}/simple/ "
        f"--trusted-host pypi.test {PACKAGE}"
    )
    assert r.ok and "Successfully installed" in r.stdout, r
    assert r.denied == ()
    assert (
        py(
            granted,
            f"import importlib; importlib.invalidate_caches(); import {MODULE} as m; print(m.NEEDS)",
        )
        == "42\n"
    )


def test_pip_of_what_is_not_allowed(granted: Sandbox):
    """The real index, which this sandbox may not reach: it fails soon, and the result says why."""
    r = granted.run_code("pip install --retries 0 six-of-the-tests", language="bash")
    assert r.exit_code != 0
    assert any(
        (one.host, one.port, one.reason) == ("pypi.org", 443, "not_allowed") for one in r.denied
    ), r
    assert all("pypi.org" in one.hint or one.host != "pypi.org" for one in r.denied)


def test_curl(granted: Sandbox, outside: World):
    assert (
        json.loads(sh(granted, f"curl -sSf http://api.test:{outside.http.port}/json"))["path"]
        == "/json"
    )
    out = sh(granted, f"curl -sSf --cacert /tmp/ca.pem https://api.test:{outside.https.port}/json")
    assert json.loads(out)["host"] == f"api.test:{outside.https.port}"
    sent = sh(
        granted,
        f"head -c 3000000 /dev/zero | curl -sSf --data-binary @- http://api.test:{outside.http.port}/sink",
    )
    assert json.loads(sent) == {"length": 3_000_000}
    size = sh(granted, f"curl -sSf http://api.test:{outside.http.port}/bytes?n=5000000 | wc -c")
    assert int(size) == 5_000_000


def test_curl_over_socks(granted: Sandbox, outside: World):
    url = f"https://api.test:{outside.https.port}/json"
    out = sh(granted, f"curl -sSf --cacert /tmp/ca.pem -x socks5h://127.0.0.1:1080 {url}")
    assert json.loads(out)["path"] == "/json"


def test_curl_of_what_is_not_allowed(granted: Sandbox):
    """Both by its exit status and in words; the same in the result of the call."""
    r = granted.run_code("curl -sS http://evil.test/; echo; curl -sS https://evil.test/", "bash")
    denial = json.loads(r.stdout.splitlines()[0])
    assert (denial["code"], denial["host"], denial["port"]) == ("egress_denied", "evil.test", 80)
    assert denial["reason"] == "not_allowed" and "evil.test" in denial["hint"]
    assert r.exit_code == 56 and "403" in r.stderr
    assert [(one.host, one.port, one.count) for one in r.denied] == [
        ("evil.test", 80, 1),
        ("evil.test", 443, 1),
    ]
    assert "[egress to evil.test:443 was denied (not_allowed)" in str(r)


def test_git_clone_over_https(granted: Sandbox, outside: World):
    url = f"https://git.test:{outside.https.port}/sample.git"
    sh(granted, f"rm -rf /tmp/clone; git -c http.sslCAInfo=/tmp/ca.pem clone -q {url} /tmp/clone")
    assert sh(granted, "git -C /tmp/clone rev-parse HEAD").strip() == outside.commit
    assert sh(granted, "cat /tmp/clone/README") == "a repository of the tests\n"
    r = granted.run_code("git clone -q https://github.com/x/y /tmp/no", "bash")
    assert r.exit_code != 0 and "403" in r.stderr
    assert [one.host for one in r.denied] == ["github.com"]


FETCH = {
    "urllib": """
import json, ssl, urllib.request
context = ssl.create_default_context(cafile="/tmp/ca.pem")
for url in URLS:
    print(json.load(urllib.request.urlopen(url, context=context if url.startswith("https") else None))["path"])
""",
    "requests": """
import requests
for url in URLS:
    print(requests.get(url, verify="/tmp/ca.pem").json()["path"])
""",
    "httpx": """
import httpx
with httpx.Client(verify="/tmp/ca.pem") as client:
    for url in URLS:
        print(client.get(url).json()["path"])
""",
    "aiohttp": """
import aiohttp, asyncio, ssl
async def main():
    context = ssl.create_default_context(cafile="/tmp/ca.pem")
    async with aiohttp.ClientSession(trust_env=True) as session:
        for url in URLS:
            async with session.get(url, ssl=context if url.startswith("https") else None) as reply:
                print((await reply.json())["path"])
asyncio.run(main())
""",
    # What every Python has, since pip has it.
    "pip._vendor.requests": """
from pip._vendor import requests
for url in URLS:
    print(requests.get(url, verify="/tmp/ca.pem").json()["path"])
""",
}


@pytest.mark.parametrize("library", FETCH)
def test_http_libraries_of_python(tools: Sandbox, outside: World, library: str):
    urls = [
        f"http://api.test:{outside.http.port}/json?a",
        f"https://api.test:{outside.https.port}/json?b",
    ]
    tools.upload(f"URLS = {urls!r}\n{FETCH[library]}".encode(), "/tmp/fetch.py")
    assert sh(tools, "python3 /tmp/fetch.py").split() == ["/json?a", "/json?b"]
    # In the interpreter that was there before the sandbox was anybody's, too (which has a loop).
    if library != "aiohttp":
        assert py(tools, f"URLS = {urls!r}\n{FETCH[library]}").split() == ["/json?a", "/json?b"]


NODE = """
const http = require("http");
const https = require("https");
const get = (url) => new Promise((done, failed) => {
  const request = (url.startsWith("https") ? https : http).get(url, (reply) => {
    let text = "";
    reply.on("data", (data) => text += data);
    reply.on("end", () => done(text.trim()));
  });
  request.on("error", failed);
});
(async () => {
  for (const url of URLS) {
    console.log((await (await fetch(url)).json()).path, JSON.parse(await get(url)).path);
    console.log((await Promise.all([1, 2, 3].map(() => fetch(url).then((r) => r.status)))).join());
  }
  for (const url of ["http://evil.test/", "https://evil.test/"])
    console.log(await fetch(url).then((r) => r.status, (e) => e.cause.message),
                await get(url).catch((e) => e.message));
})();
"""


def test_node(tools: Sandbox, outside: World):
    """fetch(), http and https, of a Node.js that knows nothing of proxies by itself; what is denied, too."""
    urls = [
        f"http://api.test:{outside.http.port}/json?a",
        f"https://api.test:{outside.https.port}/json?b",
    ]
    tools.upload(f"const URLS = {urls!r};\n{NODE}".encode(), "/tmp/fetch.js")
    r = tools.run_code("NODE_EXTRA_CA_CERTS=/tmp/ca.pem node /tmp/fetch.js", "bash")
    assert r.ok, r
    lines = r.stdout.splitlines()
    assert lines[:4] == ["/json?a /json?a", "200,200,200", "/json?b /json?b", "200,200,200"], r
    assert lines[4].startswith("403 {") and "not_allowed" in lines[4], r
    assert lines[5].count("evil.test:443: 403") == 2 and "not_allowed" in lines[5], r
    assert {(one.host, one.port) for one in r.denied} == {("evil.test", 80), ("evil.test", 443)}
    # As a call of its own language, and with what is not for the proxy.
    code = f"fetch('{urls[0]}').then(r => r.json()).then(j => console.log(j.path))"
    assert tools.run_code(code, "javascript").stdout == "/json?a\n"
    local = (
        "const s = require('http').createServer((q, r) => r.end('mine')).listen(0, '127.0.0.1', async () => {"
        " console.log(await (await fetch(`http://127.0.0.1:${s.address().port}/`)).text()); process.exit() })"
    )
    assert sh(tools, f"node -e {shlex.quote(local)}") == "mine\n"


def test_npm(tools: Sandbox, outside: World):
    registry = f"http://npm.test:{outside.http.port}/npm/"
    sh(tools, f"mkdir -p /tmp/n && cd /tmp/n && npm install --registry {registry} {PACKAGE}")
    assert sh(tools, f"cd /tmp/n && node -p 'require(\"{PACKAGE}\")'") == f"{SAYING}\n"


def test_apt_says_what_is_denied(granted: Sandbox):
    """No mirror of Debian is among the servers of the tests: it is enough that apt asks the proxy, and
    does not wait."""
    r = granted.run_code("sudo apt-get update -o Acquire::Retries=0", "bash")
    assert "403" in r.stdout + r.stderr, r
    assert "deb.debian.org" in {one.host for one in r.denied}


def test_the_operators_default_and_groups(fresh, outside: World):
    port = outside.http.port
    with fresh(egress=True) as s:
        assert s.egress.allow == (f"api.test:{port}",)
        assert sh(s, f"curl -sSf http://api.test:{port}/json") != ""
    with fresh(egress_allow=["tests"]) as s:
        assert s.egress.allow == ("tests",)
        assert "simple" in sh(s, f"curl -sSf http://pypi.test:{port}/simple/")
        r = s.run_code(f"curl -sS http://api.test:{port}/json", "bash")
        assert [one.reason for one in r.denied] == ["not_allowed"]


def test_example(daemon: Daemon, outside: World, tmp_path: Path):
    """examples/pip_install.py, with an index of ours instead of the public one."""
    index = f"http://pypi.test:{outside.http.port}/simple/"
    out = run_example(daemon, "pip_install.py", PACKAGE, "--index", index)
    assert f"Successfully installed {PACKAGE}-1.0" in out
    assert "denied" in out and "example.com" in out
    assert f"pypi.test:{outside.http.port}" in out  # the record of where it went
