# SPDX-License-Identifier: Apache-2.0
"""Names, and what rules say of them: spellings, what they resolve to, wildcards, ports. As in
test_egress_probes.py, from inside."""

from __future__ import annotations

import pytest
from egress_guest import ask, by_all_ways, denied, reason
from egress_world import PUNYCODE, World

from podflare import Client, Sandbox


def test_names_are_not_looked_up_before_they_are_allowed(granted: Sandbox, nothing_arrives):
    """A question to a resolver is a way out by itself."""
    for host in ("secret-data.evil.test", "x.dns.test", "a.b.c.rebind.test"):
        assert by_all_ways(granted, host, 443) == denied("not_allowed")


def test_trailing_dot(granted: Sandbox, outside: World, nothing_arrives):
    for host in ("api.test.", "api.test..", ".api.test", "api..test"):
        assert by_all_ways(granted, host, outside.http.port) == denied("bad_host", "bad_request")


def test_mixed_case_is_the_same_name(granted: Sandbox, outside: World):
    port = outside.http.port
    told = ask(granted, f'say([get("http://API.Test:{port}/json"), socks(b"aPi.tEsT", {port})])')
    assert told[0]["status"] == 200
    assert told[1] == 0  # a tunnel that must be TLS begins in any case
    assert by_all_ways(granted, "eViL.TEST", port) == denied("not_allowed")


def test_punycode(fresh, outside: World):
    """A rule in letters is the same as one in ASCII, and holds for no name that only looks like it."""
    port = outside.http.port
    sandbox = fresh(egress_allow=[f"bücher.test:{port}"])
    assert sandbox.egress.allow == (f"{PUNYCODE}:{port}",)
    told = ask(
        sandbox,
        f'say([get(f"http://{{h}}:{port}/json") for h in ("{PUNYCODE}", "XN--BCHER-KVA.test")])',
    )
    assert [one["status"] for one in told] == [200, 200]
    untouched = outside.untouched()
    # Without the umlaut; with a Cyrillic letter; a label that decodes to nothing.
    for host in ("bucher.test", "xn--bcher-kva.evil.test", "xn--bcher-9pe.test", "xn--.test"):
        assert by_all_ways(sandbox, host, port) == denied("not_allowed", "bad_host")
    assert untouched()


def test_letters_beyond_ascii_in_a_request(granted: Sandbox, outside: World, nothing_arrives):
    """A full stop that only looks like one, letters of full width, a Cyrillic a."""
    for host in ("api。test", "ａｐｉ.test", "аpi.test"):
        ways = by_all_ways(granted, host, outside.http.port)
        # Those that are the same name in normal form may be taken for it, and none for another.
        assert ways["http"] in ("bad_host", "bad_request", "not_allowed"), (host, ways)
        assert ways["connect"] in ("bad_host", "bad_request", "not_allowed"), (host, ways)
        assert ways["socks"] == "denied", (host, ways)


@pytest.mark.parametrize(
    "host", ["evil.test\0.api.test", "api.test\0", "api.test\0.evil.test", "\0api.test"]
)
def test_null_byte(granted: Sandbox, outside: World, nothing_arrives, host):
    port = outside.http.port
    ways = by_all_ways(granted, host, port)
    assert ways["http"] in ("bad_request", "bad_host"), ways
    assert ways["connect"] in ("bad_request", "bad_host"), ways
    assert ways["socks"] in ("denied", "SOCKS 1", "SOCKS 8"), ways


def test_line_breaks_in_names(granted: Sandbox, outside: World, nothing_arrives):
    port = outside.http.port
    told = ask(
        granted,
        f"""
names = [b"api.test\\r\\nHost: evil.test", b"api.test\\nX: y", b"api.test\\r", b"api.test evil.test", b"api.test\\t"]
say([[socks(n, {port}) for n in names],
     [connect(n.decode(), {port}) for n in names],
     [raw(b"GET http://" + n + b":{port}/json HTTP/1.1\\r\\nHost: api.test:{port}\\r\\n\\r\\n") for n in names]])
""",
    )
    assert all(code in (1, 2, 8) for code in told[0]), told[0]
    for reply in told[1] + told[2]:
        assert reason(reply) in ("bad_request", "bad_host", "host_mismatch"), reply


def test_rebinding(granted: Sandbox, outside: World):
    """A name that is something else the second time: each answer is checked, and the one that was
    checked is the one that is dialled."""
    outside.turn = 0
    told = ask(
        granted,
        f"""
say([get("http://rebind.test:{outside.http.port}/json") for _ in range(4)])
""",
    )
    assert [one["status"] for one in told[0::2]] == [200, 200]
    assert [reason(one) for one in told[1::2]] == ["address", "address"]
    assert outside.turn == 4  # one question for each connection, and none between check and dial


@pytest.mark.parametrize("host", ["private.test", "metadata.test", "mapped.test"])
def test_allowed_names_of_private_addresses(granted: Sandbox, outside: World, host):
    untouched = outside.untouched()
    assert by_all_ways(granted, host, outside.http.port) == denied("address")
    assert untouched()


def test_of_several_addresses_the_one_that_is_allowed_is_taken(granted: Sandbox, outside: World):
    told = ask(granted, f'say(get("http://mixed.test:{outside.http.port}/json"))')
    assert told["status"] == 200


def test_a_name_that_does_not_exist(granted: Sandbox, outside: World):
    assert by_all_ways(granted, "nowhere.test", outside.http.port) == denied("no_name")


def test_other_ports_of_an_allowed_host(granted: Sandbox, outside: World, nothing_arrives):
    for port in (80, 443, 22, 25, outside.dns.port):
        assert by_all_ways(granted, "api.test", port) == denied("port")


def test_a_wildcard_is_what_is_below_it(fresh, outside: World):
    port = outside.http.port
    sandbox = fresh(egress_allow=[f"*.wild.test:{port}"])
    for host in ("a.wild.test", "b.a.wild.test"):
        told = ask(sandbox, f'say(get("http://{host}:{port}/json"))')
        assert told["status"] == 200, host
    untouched = outside.untouched()
    for host in ("wild.test", "awild.test", "a.wild.test.evil.test", "wild.test.evil.test"):
        assert by_all_ways(sandbox, host, port) == denied("not_allowed"), host
    assert untouched()


def test_the_empty_list_is_nothing(client: Client, outside: World, nothing_arrives):
    with Sandbox(client=client, egress_allow=[]) as sandbox:
        assert not sandbox.egress.on
        told = ask(sandbox, f'say(get("http://api.test:{outside.http.port}/json"))')
        assert reason(told) in ("ECONNREFUSED", "not_allowed")
