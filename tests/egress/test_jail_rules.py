# SPDX-License-Identifier: Apache-2.0
"""Each rule of the proxy's jail is needed: what a proxy does in a life passes with all of them, and it
dies of the lack of any one. Rules that this life does not use are named here, each with who does."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import BUILD, Proxy, plain_only, recv_exactly
from http_parts import Reply, Upstream, head, once
from servers import Dns, Tcp
from test_http_gateway import cert, pem
from test_http_intercept import opened, trusting, tunnel
from test_jail import PROBE
from test_policy import full, plain

pytestmark = [plain_only, pytest.mark.plain]

PROGRAM = str(BUILD / "tests/egress/egress-without-rule")
RULES = (
    subprocess.run(
        [PROGRAM], env={"EGRESS_RULES": "1"}, capture_output=True, text=True, check=True
    ).stdout.split()
    if os.path.exists(PROGRAM)
    else []
)

# Who needs a rule that this life does without.
ELSEWHERE = {
    "clock_gettime": "hosts whose clock the vDSO cannot read",
    "gettimeofday": "the same hosts",
    "newfstatat-1000": "fstat() of glibc 2.33 to 2.35",
    "madvise": "the heaps that glibc makes of mappings when brk() fails",
    "mprotect-0": "the same heaps, as they grow",
}
# What only the end of a proxy that finds a fault in itself does.
ABORT = ["rt_sigprocmask", "gettid", "tgkill-6"]


def plain_name(rule: str) -> str:
    """Without its number."""
    return rule.partition("-")[2]


def life(p: Proxy, ca: Path) -> None:
    """All that a proxy does; ends it."""
    with Tcp() as echo, Dns() as dns, Upstream(cert=cert(ca)) as up:
        # A policy that takes some memory; a name that is asked for by UDP, and by TCP.
        dns.answers["a.test"] = ["127.0.0.1"]
        dns.answers["b.test"] = [f"10.0.0.{i}" for i in range(1, 30)] + ["127.0.0.1"]
        many = [f"host{i}.test" for i in range(100)]
        p.policy(
            [*many, plain(echo.port), plain(echo.port, "b.test")], resolve={}, resolvers=[dns.address]
        )
        s = p.connect("a.test", echo.port).socket
        s.sendall(b"ping")
        assert recv_exactly(s, 4) == b"ping"
        s.shutdown(1)
        assert s.recv(1) == b""
        dns.truncated = True
        assert p.connect("b.test", echo.port).status == 200
        # HTTP, over TLS and within it.
        p.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca))
        assert once(p, f"http://a.test.egress:{up.port}/").body == b"ok"
        assert once(p, "http://b.test.egress/").denial["host"] == "b.test"
        ours = opened(p, ca, [f"a.test:{up.port}"])
        with trusting(ours).wrap_socket(tunnel(p, up.port), server_hostname="a.test") as t:
            t.sendall(head("GET", "/", host=f"a.test:{up.port}"))
            assert Reply(t).body == b"ok"
    # A resolver and a destination by IPv6, which are not there.
    p.policy([plain(1)], resolve={}, resolvers=["[::1]:1"])
    assert p.connect("a.test", 1).denial["reason"] == "resolver"
    p.policy([plain(1)], resolve={"a.test": ["::1"]}, allow_ranges=["::1/128"])
    assert p.connect("a.test", 1).denial["host"] == "a.test"
    # A daemon that does not read for a while, in which the proxy is stopped, too.
    p.policy([])
    while select.select([p.ctl], [], [], 0)[0]:
        p.receive()
    guests = full(p)
    p.process.send_signal(signal.SIGSTOP)
    time.sleep(0.05)
    p.process.send_signal(signal.SIGCONT)
    for _ in guests:
        p.decision()
    p.close()


def test_those_named_are_rules() -> None:
    assert ELSEWHERE.keys() | set(ABORT) <= {plain_name(rule) for rule in RULES}
    assert len(RULES) > 40


def test_a_whole_life(tmp_path: Path, ca: Path) -> None:
    life(Proxy(tmp_path, room=4096, program=PROGRAM), ca)


@pytest.mark.parametrize("rule", [rule for rule in RULES if plain_name(rule) not in ELSEWHERE])
def test_it_dies_without(tmp_path: Path, ca: Path, rule: str) -> None:
    without = {"EGRESS_WITHOUT": rule.partition("-")[0]}
    if plain_name(rule) in ABORT:
        done = subprocess.run([PROBE, "abort"], env=without, timeout=60, check=False)
        assert done.returncode == -signal.SIGSYS
        return
    p = Proxy(tmp_path, room=4096, program=PROGRAM, env=without)
    try:
        life(p, ca)
    except (AssertionError, OSError, EOFError):
        pass  # of what died: which is seen below
    p.process.kill()
    assert p.process.wait(30) == -signal.SIGSYS
