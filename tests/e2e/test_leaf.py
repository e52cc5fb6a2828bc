# SPDX-License-Identifier: Apache-2.0
"""Sandboxes that are never forked: real guests whose VMM has given up what forks take do all that
others do, and are refused what they cannot."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from egress_world import World
from guest import given_back, py, sh

import podflare
from podflare import Client, Sandbox

pytestmark = pytest.mark.limit(300)


def check_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(podflare.NotForkableError) as e:
        call()
    assert (e.value.status, e.value.code) == (409, "not_forkable")
    assert "forkable false" in e.value.message and e.value.hint


def use(s: Sandbox) -> None:
    """Processors, disk, files, streams, and both kinds of ends of a command."""
    assert py(s, "x = 6 * 7; print(x)") == "42\n"
    assert py(s, "print(x)") == "42\n"
    # More than a budget of the disk, read back from it, given back to the host.
    sh(s, "head -c 50000000 /dev/urandom >~/big && sync && sha256sum ~/big >~/sum")
    sh(s, "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches >/dev/null; sha256sum -c --quiet ~/sum")
    before = given_back(s)
    sh(s, "rm ~/big && sync")
    assert given_back(s) - before >= 50000000
    data = bytes(range(256)) * 40000
    s.upload(data, "/home/user/data")
    assert s.download("/home/user/data") == data
    assert sh(s, "seq 200000 | tail -n 1") == "200000\n"
    assert s.run_code("sleep 100", "bash", timeout=2).termination_reason == "timeout"
    spin = "while :; do :; done & p=$!; while :; do :; done & sleep 1; kill $p $!; echo on"
    assert sh(s, spin) == "on\n"


def test_it_does_all_that_others_do(client: Client) -> None:
    with Sandbox(client=client, forkable=False) as s:
        assert s.info().forkable is False
        use(s)
        check_refused(lambda: s.fork())
        check_refused(lambda: s.map(["1"]))
        assert py(s, "print(x)") == "42\n", "it was not touched"
        with Sandbox(client=client, forkable=False) as other:  # perhaps of the pool
            assert py(other, "print('x' in globals())") == "False\n"
            check_refused(lambda: other.fork(2))


def test_copies_of_a_busy_sandbox(client: Client) -> None:
    """What runs when it is forked goes on in a copy that is locked before its first instruction."""
    with Sandbox(client=client) as s:
        py(s, "x = 6 * 7")
        sh(s, "nohup sh -c 'while :; do date +%N >>/tmp/beat; sleep 0.4; done' >/dev/null 2>&1 &")
        sh(s, "until [ -s /tmp/beat ]; do sleep 0.1; done")
        with s.fork(2, forkable=False) as copies:
            for copy in copies:
                before = copy.download("/tmp/beat")
                assert sh(copy, "sleep 1; echo on") == "on\n"
                assert len(copy.download("/tmp/beat")) > len(before)
            use(copies[0])
            check_refused(lambda: copies[0].fork())
            check_refused(lambda: copies[0].merge_into(copies[1]))
            s.merge_into(copies[0])
            assert s.info().forkable is False and py(s, "print(x)") == "42\n"
            check_refused(lambda: s.fork())
            assert py(copies[1], "print(x)") == "42\n"


def test_egress(client: Client, outside: World) -> None:
    """Connections that its guest opens, taken and refused by the loop of a leaf."""
    port = outside.http.port
    with Sandbox(client=client, forkable=False, egress_allow=[f"api.test:{port}"]) as s:
        asks = f"curl -sS --max-time 60 -o /dev/null -w '%{{http_code}}' http://api.test:{port}/json"
        assert sh(s, asks) == "200"
        assert s.run_code("curl -sS http://other.test/", language="bash").denied
        s.update_egress([])
        assert s.run_code(asks, language="bash").stdout != "200"
        assert sh(s, "echo on") == "on\n"
