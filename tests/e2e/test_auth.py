# SPDX-License-Identifier: Apache-2.0
"""Keys: who must show one, what is said to those who do not, and when the daemon refuses to start.

`podflared` itself is asked here, on this machine: none of this needs a virtual machine. That
`podflare serve` passes it all on is the last test's business.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Mapping

import httpx
import pytest
from served import READY, Process, Served, wait_until

import podflare
from podflare import Client, Sandbox

KEYS = "pf_live_first,pk_second"
MISSING = {"error": "missing Authorization: Bearer <key>"}
INVALID = {"error": "invalid api key"}

# Everything but health needs a key, known or not.
PATHS = [
    ("GET", "/v1/sandboxes"),
    ("POST", "/v1/sandboxes"),
    ("GET", "/v1/sandboxes/sbx_" + "0" * 32),
    ("DELETE", "/v1/sandboxes/sbx_" + "0" * 32),
    ("POST", "/v1/sandboxes/sbx_" + "0" * 32 + "/exec"),
    ("PUT", "/v1/sandboxes/sbx_" + "0" * 32 + "/files?path=/x"),
    ("GET", "/v1/sandboxes/sbx_" + "0" * 32 + "/files?path=/x"),
    ("GET", "/v1/nothing"),
]


def podflared(build: Path, state: Path, addr: str, env: Mapping[str, str]) -> Process:
    return Process(
        [
            str(build / "podflared"),
            f"--addr={addr}",
            f"--state={state}",
            f"--guest={build / 'guest'}",
            f"--vmm={build / 'podflare-vmm'}",
        ],
        env,
    )


@pytest.fixture(scope="module")
def keyed(build: Path, tmp_path_factory) -> Iterator[str]:
    """A daemon with two keys: its URL."""
    process = podflared(
        build,
        tmp_path_factory.mktemp("keyed"),
        "127.0.0.1:0",
        {"PODFLARE_API_KEYS": KEYS},
    )
    try:
        wait_until("podflared is ready", lambda: READY.search(process.output()), 30)
        match = READY.search(process.output())
        assert match is not None
        yield match.group(1)
        process.process.terminate()
        assert process.wait(20) == 0
        for key in KEYS.split(","):
            assert key not in process.output(), "a key is in the log"
    finally:
        process.kill()


@pytest.mark.parametrize("method, path", PATHS)
@pytest.mark.parametrize(
    "header, body",
    [
        (None, MISSING),
        ("", MISSING),
        ("Basic cGY6eA==", MISSING),
        ("Bearer", MISSING),
        ("Bearer wrong", INVALID),
        ("Bearer pf_live_firs", INVALID),
        ("Bearer pf_live_first,pk_second", INVALID),
        ("Bearer pf_live_first ,", INVALID),
        ("Bearer PF_LIVE_FIRST", INVALID),
    ],
)
def test_36_without_a_known_key(keyed: str, method, path, header, body):
    headers = {} if header is None else {"authorization": header}
    reply = httpx.request(method, keyed + path, headers=headers)
    assert reply.status_code == 401
    assert reply.json()["error"] == body["error"]


def test_36_with_a_known_key(keyed: str):
    for key in KEYS.split(","):
        for scheme in ("Bearer", "bearer"):
            reply = httpx.get(f"{keyed}/v1/sandboxes", headers={"authorization": f"{scheme} {key}"})
            assert (reply.status_code, reply.json()) == (200, {"sandboxes": []})


def test_36_health_needs_no_key(keyed: str):
    assert httpx.get(f"{keyed}/v1/healthz").text.strip() == "ok"
    assert Client(host=keyed, api_key="").health()


def test_34_key_by_argument_and_by_environment(keyed: str, monkeypatch):
    with pytest.raises(podflare.AuthenticationError, match="missing Authorization"):
        Sandbox(host=keyed)
    with pytest.raises(podflare.AuthenticationError, match="invalid api key"):
        Sandbox(host=keyed, api_key="wrong")
    assert Sandbox.list(host=keyed, api_key="pk_second") == []
    monkeypatch.setenv("PODFLARE_API_KEY", "pf_live_first")
    assert Sandbox.list(host=keyed) == []
    with pytest.raises(podflare.AuthenticationError):
        Sandbox.list(host=keyed, api_key="wrong")


@pytest.mark.parametrize("program", ["podflared", "podflare serve"])
@pytest.mark.parametrize("addr", ["0.0.0.0", "[::]"])
def test_37_refuses_a_public_address_without_keys(build: Path, tmp_path, program, addr):
    where = f"{addr}:0"
    process = (
        podflared(build, tmp_path, where, {})
        if program == "podflared"
        else Served(build, tmp_path, addr=where).process
    )
    try:
        assert process.wait(30) != 0
        assert re.search(r"PODFLARE_API_KEYS", process.output()), process.output()
        assert not READY.search(process.output())
    finally:
        process.kill()


@pytest.mark.parametrize("addr", ["0.0.0.0", "[::]"])
def test_37_public_address_with_auth_disabled_warns(build: Path, tmp_path, addr):
    process = podflared(build, tmp_path, f"{addr}:0", {"PODFLARE_AUTH_DISABLED": "1"})
    try:
        wait_until("podflared is ready", lambda: READY.search(process.output()), 30)
        assert re.search("warn", process.output(), re.I), process.output()
    finally:
        process.kill()


@pytest.mark.limit(400)
def test_36_37_serve_passes_keys_on(build: Path, tmp_path):
    served = Served(build, tmp_path, {"PODFLARE_API_KEYS": KEYS}, addr="0.0.0.0:0")
    try:
        served.wait_ready()
        url = served.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/v1/healthz").text.strip() == "ok"
        for key, body in ((None, MISSING), ("wrong", INVALID)):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            reply = httpx.get(f"{url}/v1/sandboxes", headers=headers)
            assert (reply.status_code, reply.json()["error"]) == (401, body["error"])
        assert Sandbox.list(host=url, api_key="pk_second") == []
    finally:
        served.stop()
