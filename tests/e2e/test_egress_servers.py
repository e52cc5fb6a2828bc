# SPDX-License-Identifier: Apache-2.0
"""The servers of the egress tests, tried without a sandbox: a denial proves something only if the
destination would have answered."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Iterator

import egress_content
import pytest
from egress_world import METADATA, NAMES, PUNYCODE, World


@pytest.fixture(scope="module")
def near(tmp_path_factory: Any) -> Iterator[World]:
    """One whose addresses are those of this machine."""
    world = World(tmp_path_factory.mktemp("near"), emulated=False)
    yield world
    world.close()


def fetch(world: World, url: str, data: Any = None) -> tuple[int, bytes]:
    """As a sandbox would by its names, but from here."""

    class Resolved(urllib.request.HTTPSHandler):
        pass

    context = ssl.create_default_context(cadata=world.ca)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), Resolved(context=context))
    try:
        with opener.open(urllib.request.Request(url, data=data), timeout=30) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name of .test is this machine."""
    lookup = socket.getaddrinfo

    def local(host: Any, *args: Any, **kw: Any) -> Any:
        return lookup("127.0.0.1" if str(host).endswith(".test") else host, *args, **kw)

    monkeypatch.setattr(socket, "getaddrinfo", local)


def test_http(near: World, names: None):
    base = f"http://api.test:{near.http.port}"
    assert json.loads(fetch(near, f"{base}/json?x=1")[1]) == {
        "path": "/json?x=1",
        "host": f"api.test:{near.http.port}",
    }
    assert fetch(near, f"{base}/bytes?n=100000")[1] == b"x" * 100000
    assert json.loads(fetch(near, f"{base}/sink", b"12345")[1]) == {"length": 5}
    assert near.http.requests("/sink")[-1].body == b"12345"
    assert fetch(near, f"{base}/nothing")[0] == 404
    assert fetch(near, f"{base}/redirect?to={base}/json")[0] == 200
    assert near.http.requests("/json")[-1].sni is None


def test_https(near: World, names: None):
    for name in (*NAMES, PUNYCODE):
        status, body = fetch(near, f"https://{name}:{near.https.port}/json")
        assert status == 200 and json.loads(body)["host"] == f"{name}:{near.https.port}"
        assert near.https.requests("/json")[-1].sni == name
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(near, f"https://api.test:{near.stranger.port}/json")


def test_upgrade_and_stream(near: World):
    with socket.create_connection(("127.0.0.1", near.http.port), timeout=30) as s:
        s.sendall(b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += s.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        s.sendall(b"hello")
        assert s.recv(5) == b"hello"
    with socket.create_connection(("127.0.0.1", near.http.port), timeout=30) as s:
        s.sendall(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while got.count(b"line\n") < 3:
            got += s.recv(100)
        assert near.http.streaming == 1


def test_tcp_and_what_was_touched(near: World):
    untouched = near.untouched()
    assert untouched()
    with socket.create_connection(("127.0.0.1", near.tcp.port), timeout=30) as s:
        s.sendall(b"ping")
        assert s.recv(4) == b"ping"
    assert not untouched() and near.tcp.received == [b"ping"]


def ask(world: World, name: str, kind: int = 1) -> tuple[int, list[str]]:
    """Response code and addresses."""
    question = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\0"
    query = struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + question + struct.pack(">HH", kind, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(30)
        s.sendto(query, ("127.0.0.1", world.dns.port))
        reply = s.recv(4096)
    assert reply[:2] == query[:2]
    flags, _, count = struct.unpack_from(">HHH", reply, 2)
    records = reply[len(query) :]
    return flags & 15, [socket.inet_ntoa(records[i * 16 + 12 : i * 16 + 16]) for i in range(count)]


def test_dns(near: World):
    assert ask(near, "dns.test") == (0, ["127.0.0.1"])
    assert ask(near, "dns.test", 28) == (0, [])
    assert ask(near, "Mixed.Test") == (0, ["10.1.2.3", METADATA, "127.0.0.1"])
    assert ask(near, "gone.test") == (3, [])
    assert [ask(near, "rebind.test")[1][0] for _ in range(3)] == [
        "127.0.0.1",
        "127.0.0.2",
        "127.0.0.1",
    ]
    assert near.dns.asked[-4:] == ["gone.test", *["rebind.test"] * 3]


def test_configuration(near: World, tmp_path: Path):
    text = json.dumps(near.config())
    assert json.loads(text)["allow_ranges"] == ["127.0.0.1/32"]
    assert "BEGIN CERTIFICATE" in json.loads(text)["upstream_ca"] and "PRIVATE" not in text
    far = World(tmp_path, emulated=True)
    try:
        assert far.config()["resolve"]["api.test"] == ["10.0.2.2"]
        assert far.config()["resolvers"] == [f"10.0.2.2:{far.dns.port}"]
        assert far.elsewhere == "127.0.0.1" != far.address
    finally:
        far.close()


def test_pip_installs_from_the_index(near: World, tmp_path: Path):
    """The real pip, directly: with its dependency, and checked by its hash."""
    egress_content.serve_index(near.http)
    subprocess.run(
        [
            *(
                "/usr/bin/python3",
                "-m",
                "pip",
                "--isolated",
                "install",
                "--target",
                str(tmp_path / "t"),
            ),
            *("--index-url", f"http://127.0.0.1:{near.http.port}/simple/", egress_content.PACKAGE),
            *("--no-cache-dir", "--disable-pip-version-check", "--retries", "0"),
        ],
        check=True,
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    done = subprocess.run(
        [sys.executable, "-c", "import podflare_sample as p; print(p.SAYING, p.NEEDS)"],
        env={"PYTHONPATH": str(tmp_path / "t"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{egress_content.SAYING} 42\n"
    assert any(one.path.startswith("/packages/podflare_sample-1.0") for one in near.http.seen)


def test_git_clones_the_repository(near: World, tmp_path: Path):
    commit = egress_content.serve_repository(near.https, tmp_path)
    subprocess.run(
        [
            *("git", "-c", f"http.sslCAInfo={near.tmp / 'ca.pem'}", "-c", "http.proxy="),
            *("-c", f"http.curloptResolve=git.test:{near.https.port}:127.0.0.1"),
            *(
                "clone",
                "-q",
                f"https://git.test:{near.https.port}/sample.git",
                str(tmp_path / "clone"),
            ),
        ],
        check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )
    head = subprocess.run(
        ["git", "-C", str(tmp_path / "clone"), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert head.stdout.strip() == commit


def test_the_registry_is_consistent(near: World, names: None):
    base = f"http://npm.test:{near.http.port}"
    egress_content.serve_registry(near.http, base)
    document = json.loads(fetch(near, f"{base}/npm/{egress_content.PACKAGE}")[1])
    dist = document["versions"]["1.0.0"]["dist"]
    assert fetch(near, dist["tarball"])[1][:2] == b"\x1f\x8b"
    assert dist["integrity"].startswith("sha512-")
