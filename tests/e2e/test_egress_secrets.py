# SPDX-License-Identifier: Apache-2.0
"""Secrets that a sandbox uses and never has: they arrive at the destination, by the gateway and by
interception, and are nowhere in the guest: not in what it can read of its own memory as root, nor in what
the API, the log or the daemon say. (The memory of the VMM, from outside: box/egress.sh.)"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any, Iterator

import httpx
import pytest
from egress_guest import ask, reason
from egress_world import World
from guest import py, sh
from served import Daemon

import podflare
from podflare import Client, Sandbox

CANARY = f"canary-{secrets.token_hex(16)}"  # 39 characters, like a marker
INJECT = {"api.test": {"Authorization": f"Bearer {CANARY}", "X-Second": CANARY}}


@pytest.fixture(scope="module")
def holder(client: Client, outside: World) -> Iterator[Sandbox]:
    """A sandbox with an injection for the gateway."""
    allow = [f"api.test:{outside.https.port}", f"api.test:{outside.http.port}"]
    with Sandbox(client=client, egress_allow=allow, egress_inject=INJECT) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def opener(client: Client, outside: World) -> Iterator[Sandbox]:
    """A sandbox with the same injection by interception."""
    with Sandbox(
        client=client,
        egress_allow=[f"api.test:{outside.https.port}", f"other.test:{outside.https.port}"],
        egress_inject=INJECT,
        egress_intercept=["api.test"],
    ) as sandbox:
        sandbox.upload(outside.ca.encode(), "/tmp/ca.pem")
        yield sandbox


def arrived(world: World, path: str) -> list[Any]:
    """The Authorization of each request to that path."""
    return [one.headers.get("authorization") for one in world.https.requests(path)]


def test_by_the_gateway(holder: Sandbox, outside: World):
    """Plain HTTP to the proxy, TLS from there on; what the guest says of that header does not count."""
    url = f"http://api.test.egress:{outside.https.port}"
    out = sh(
        holder, f"curl -sSf {url}/json?gateway -H 'Authorization: Bearer mine' -H 'X-Other: 1'"
    )
    assert json.loads(out)["host"] == f"api.test:{outside.https.port}"
    seen = outside.https.requests("/json")[-1]
    assert (
        seen.headers["authorization"] == f"Bearer {CANARY}" and seen.headers["x-second"] == CANARY
    )
    assert seen.headers["x-other"] == "1" and seen.sni == "api.test"
    assert CANARY not in out


def test_not_over_plain_http(holder: Sandbox, outside: World):
    """A host with an injection has none: the request is refused, with a hint at the gateway."""
    untouched = outside.untouched()
    told = ask(holder, f'say(get("http://api.test:{outside.http.port}/json?plain"))')
    assert told["status"] == 403 and ".egress" in told["denial"]["hint"], told
    assert untouched()


def test_not_in_a_tunnel(holder: Sandbox, outside: World):
    holder.upload(outside.ca.encode(), "/tmp/ca.pem")
    sh(holder, f"curl -sSf --cacert /tmp/ca.pem https://api.test:{outside.https.port}/json?tunnel")
    assert "authorization" not in outside.https.requests("/json")[-1].headers


def test_by_interception(opener: Sandbox, outside: World):
    """Tools find the sandbox's CA by themselves; a host that is not intercepted keeps its own."""
    url = f"https://api.test:{outside.https.port}/json"
    for tool in (
        f"curl -sSf {url}",
        f"python3 -c 'import urllib.request as u; print(u.urlopen(\"{url}\").read().decode())'",
        f"python3 -c 'from pip._vendor import requests as r; print(r.get(\"{url}\").text)'",
    ):
        out = sh(opener, tool)
        assert json.loads(out)["path"] == "/json" and CANARY not in out
        seen = outside.https.requests("/json")[-1]
        assert seen.headers["authorization"] == f"Bearer {CANARY}" and seen.sni == "api.test", tool
    assert json.loads(
        py(opener, f"import urllib.request as u; print(u.urlopen('{url}').read().decode())")
    )
    assert arrived(outside, "/json")[-1] == f"Bearer {CANARY}"
    sh(opener, f"curl -sSf --cacert /tmp/ca.pem https://other.test:{outside.https.port}/json?other")
    assert "authorization" not in outside.https.requests("/json")[-1].headers


def test_git_and_pip_by_interception(client: Client, outside: World):
    port = outside.https.port
    hosts = [f"git.test:{port}", f"pypi.test:{port}"]
    with Sandbox(
        client=client, egress_allow=hosts, egress_intercept=["git.test", "pypi.test"]
    ) as s:
        sh(s, f"git clone -q https://git.test:{port}/sample.git /tmp/c")
        assert sh(s, "git -C /tmp/c rev-parse HEAD").strip() == outside.commit
        out = sh(
            s,
            f"pip install --no-cache-dir --index-url https://pypi.test:{port}/simple/ podflare-sample",
        )
        assert "Successfully installed" in out


def test_no_answer_of_the_api_has_the_value(holder: Sandbox, http: httpx.Client, daemon: Daemon):
    base = f"/v1/sandboxes/{holder.id}"
    for path in (
        base,
        "/v1/sandboxes",
        f"{base}/egress",
        f"{base}/egress/log",
        "/v1/metrics",
        "/v1/tree",
    ):
        reply = http.get(path)
        assert reply.status_code == 200 and CANARY not in reply.text, path
    assert holder.egress.inject == {"api.test": ("Authorization", "X-Second")}
    assert CANARY not in (daemon.log() or "")


def test_a_bad_header_is_refused_without_its_value(client: Client):
    for name, value in (
        ("Host", CANARY),
        ("Connection", CANARY),
        ("Content-Length", CANARY),
        ("Transfer-Encoding", CANARY),
        ("X Y", CANARY),
        ("X", f"{CANARY}\r\nEvil: 1"),
        ("X", f"{CANARY}\0"),
    ):
        with pytest.raises(podflare.InvalidRequestError) as e:
            Sandbox(
                client=client, egress_allow=["api.test"], egress_inject={"api.test": {name: value}}
            )
        assert CANARY not in str(e.value)


# Reads whatever root can read of the machine's memory. It knows of the words only how they begin and
# what their hashes are, so that neither it nor what it has read is a place where they are found. Each
# chunk overlaps the last one.
SCAN = r"""
import hashlib
found = {name: [] for name in NEEDLES.values()}
read = {}
def scan(name, f, start, end):
    at = start
    while at < end:
        try:
            f.seek(at)
            chunk = f.read(min(1 << 20, end - at) + 64)
        except (OSError, ValueError, OverflowError):
            at += 1 << 20
            continue
        if not chunk:
            break
        read[name] = read.get(name, 0) + len(chunk)
        for start in (b"canary-", b"marker-"):
            i = chunk.find(start)
            while i >= 0:
                what = NEEDLES.get(hashlib.sha256(chunk[i : i + 39]).hexdigest())
                if what:
                    found[what].append(name)
                i = chunk.find(start, i + 1)
        del chunk
        at += 1 << 20
def processes():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) in (os.getpid(), os.getppid()):
            continue
        try:
            with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
                for line in maps:
                    span, mode = line.split()[:2]
                    if mode[0] == "r" and not line.rstrip().endswith(("[vvar]", "[vsyscall]")):
                        scan("processes", mem, *(int(x, 16) for x in span.split("-")))
        except OSError:
            continue
def physical():
    # All of it by /proc/kcore, where the kernel has that; /dev/mem is mostly closed.
    try:
        with open("/proc/kcore", "rb", buffering=0) as core:
            head = core.read(64)
            (offset,), (size, count) = struct.unpack_from("<Q", head, 32), struct.unpack_from("<HH", head, 54)
            core.seek(offset)
            table = core.read(size * count)
            ram = 0
            for i in range(count):
                kind, _, at, address, _, length = struct.unpack_from("<IIQQQQ", table, i * size)
                # The direct map: PT_LOADs that are as large as memory, not the vmalloc area of terabytes.
                if kind == 1 and length < 1 << 36:
                    scan("kcore", core, at, at + length)
    except OSError as exc:
        read["kcore"] = outcome(exc)
    try:
        with open("/dev/mem", "rb", buffering=0) as mem:
            scan("mem", mem, 0, 1 << 30)
    except OSError as exc:
        read["mem"] = outcome(exc)
processes()
physical()
say({"found": found, "read": read})
"""


def scan(sandbox: Sandbox, **needles: str) -> Any:
    """Where root finds each of them."""
    hashes = {hashlib.sha256(text.encode()).hexdigest(): name for name, text in needles.items()}
    return ask(sandbox, f"NEEDLES = {hashes!r}\n{SCAN}")


@pytest.mark.limit(600)
@pytest.mark.parametrize("which", ["holder", "opener"])
def test_the_canary_is_not_in_the_guests_memory(which, request, outside: World):
    """With a marker beside it that is there, so that a search that finds nothing is none."""
    sandbox: Sandbox = request.getfixturevalue(which)
    marker = f"marker-{secrets.token_hex(16)}"
    py(sandbox, f"marker = {marker!r}")
    if which == "holder":
        url = f"http://api.test.egress:{outside.https.port}/json?memory"
    else:
        url = f"https://api.test:{outside.https.port}/json?memory"
    for _ in range(3):  # it is used while the guest could look
        sh(sandbox, f"curl -sSf {url}")
    assert arrived(outside, "/json")[-3:] == [f"Bearer {CANARY}"] * 3
    told = scan(sandbox, canary=CANARY, marker=marker)
    assert "processes" in told["found"]["marker"], told
    assert told["found"]["canary"] == [], told
    assert told["read"]["processes"] > 10 << 20
    # Where all of memory could be read, the marker was found there as well.
    if isinstance(told["read"].get("kcore"), int) and told["read"]["kcore"] > 200 << 20:
        assert "kcore" in told["found"]["marker"], told
    # Files and environment, its own history included.
    assert not sandbox.run_code(
        f"grep -rlF {CANARY[:20]}'{CANARY[20:]}' /tmp /run /etc /home /root /var /proc/*/environ 2>/dev/null",
        "bash",
        user="root",
    ).stdout


def test_forks_inherit_no_injection_unless_asked(holder: Sandbox, outside: World):
    url = f"http://api.test.egress:{outside.https.port}/json"
    (plain,) = holder.fork()
    (asked,) = holder.fork(inherit_inject=True)
    (own,) = holder.fork(
        egress=[f"api.test:{outside.https.port}"],
        egress_inject={"api.test": {"Authorization": "own"}},
    )
    with plain, asked, own:
        assert plain.egress.inject == {} and plain.egress.allow == holder.egress.allow
        sh(plain, f"curl -sSf {url}?fork=plain")
        assert arrived(outside, "/json")[-1] is None
        assert asked.egress.inject == holder.egress.inject
        sh(asked, f"curl -sSf {url}?fork=asked")
        assert arrived(outside, "/json")[-1] == f"Bearer {CANARY}"
        sh(own, f"curl -sSf {url}?fork=own")
        assert arrived(outside, "/json")[-1] == "own"
        # One without them is not given them by a fork of its own either.
        (grandchild,) = plain.fork(inherit_inject=True)
        with grandchild:
            sh(grandchild, f"curl -sSf {url}?fork=grandchild")
            assert arrived(outside, "/json")[-1] is None


@pytest.mark.limit(600)
def test_a_fork_of_an_intercepted_sandbox(opener: Sandbox, outside: World):
    """Nothing of the secret is in a copy's memory, and what was trusted for it is gone as well."""
    (copy,) = opener.fork()
    with copy:
        told = scan(copy, canary=CANARY)
        assert told["found"]["canary"] == [], told
        told = ask(
            copy,
            f"""
say([os.environ.get("SSL_CERT_FILE"), os.path.exists("/run/podflare/egress-ca.pem"),
     https("api.test", {outside.https.port})])
""",
        )
        assert told[:2] == [None, False] and told[2]["status"] == 200
        assert arrived(outside, "/json")[-1] is None


def test_an_update_takes_the_secrets_anew(fresh, outside: World):
    port = outside.https.port
    url = f"http://api.test.egress:{port}/json"
    with fresh(egress_allow=[f"api.test:{port}"], egress_inject=INJECT) as s:
        sh(s, f"curl -sSf {url}")
        assert arrived(outside, "/json")[-1] == f"Bearer {CANARY}"
        s.update_egress([f"api.test:{port}"], inject={"api.test": {"Authorization": "second"}})
        sh(s, f"curl -sSf {url}")
        assert arrived(outside, "/json")[-1] == "second"
        s.update_egress([f"api.test:{port}"])
        sh(s, f"curl -sSf {url}")
        assert arrived(outside, "/json")[-1] is None and s.egress.inject == {}
        told = ask(s, f'say(get("http://other.test.egress:{port}/json"))')
        assert reason(told) == "not_allowed"
