# SPDX-License-Identifier: Apache-2.0
"""Tunnels that the policy opens: the CA of the sandbox, the certificates that it shows, and
requests within, which are decided one by one. Clients are those that people use."""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Optional

import pytest
from conftest import WAIT, Proxy, policy, recv_exactly, until
from http_parts import BIG, BOUND, OK, Reply, Request, Upstream, closed, head, memory
from key_updates import Client
from test_http_gateway import CANARY, cert, pem

pytestmark = pytest.mark.jail


@pytest.fixture
def up(ca: Path) -> Iterator[Upstream]:
    with Upstream(cert=cert(ca)) as server:
        yield server


def opened(proxy: Proxy, root: Path, allow: list[Any], **members: Any) -> dict[str, str]:
    """A policy that opens tunnels to a.test; the sandbox's CA."""
    inject = {"a.test": {"headers": {"Authorization": f"Bearer {CANARY}"}, "intercept": True}}
    members = {"inject": inject, "upstream_ca_pem": pem(root), **members}
    reply = proxy.put(policy(allow, **members))
    assert reply["error"] is None, reply
    assert set(reply["ca"]) == {"cert_pem", "key_pem"}
    return reply["ca"]


def trusting(theirs: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=theirs["cert_pem"])
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def tunnel(proxy: Proxy, port: int, how: str = "connect", host: str = "a.test") -> socket.socket:
    if how == "socks":
        code, s = proxy.socks_name(host.encode(), port)
        assert code == 0
        return s
    r = proxy.connect(host, port)
    assert r.status == 200
    return r.socket


def tls(proxy: Proxy, port: int, theirs: dict[str, str], how: str = "connect",
        name: Optional[str] = "a.test", host: str = "a.test") -> ssl.SSLSocket:  # fmt: skip
    return trusting(theirs).wrap_socket(tunnel(proxy, port, how, host), server_hostname=name)


def ask(s: ssl.SSLSocket, port: int, path: str = "/", *fields: str, method: str = "GET",
        body: bytes = b"", host: Optional[str] = None) -> Reply:  # fmt: skip
    if body:
        fields += (f"Content-Length: {len(body)}",)
    s.sendall(head(method, path, *fields, host=host or f"a.test:{port}") + body)
    return Reply(s, head_only=method == "HEAD")


@pytest.mark.parametrize("how", ["connect", "socks"])
def test_requests_within(proxy: Proxy, ca: Path, up: Upstream, how: str) -> None:
    theirs = opened(proxy, ca, [f"a.test:{up.port}"])
    with tls(proxy, up.port, theirs, how) as s:
        assert s.version() == "TLSv1.3"
        assert ask(s, up.port, "/1?x", "Authorization: mine", "X: y").body == b"ok"
        assert ask(s, up.port, "/2", method="POST", body=b"abc").body == b"ok"
        assert ask(s, up.port, "/3", method="HEAD").status == 200
    first, second, third = up.requests
    assert first.fields == [("Host", f"a.test:{up.port}"), ("X", "y"),
                            ("Authorization", f"Bearer {CANARY}")]  # fmt: skip
    assert (second.target, second.body, third.method) == ("/2", b"abc", "HEAD")
    assert set(up.names) == {"a.test"}
    records = [proxy.decision() for _ in range(4)]
    assert [d["proto"] for d in records] == [how] + ["intercept"] * 3
    assert [d["method"] for d in records] == [None, "GET", "POST", "HEAD"]
    assert CANARY not in str(proxy.seen)


def test_tls_1_2(proxy: Proxy, ca: Path, up: Upstream) -> None:
    theirs = opened(proxy, ca, [f"a.test:{up.port}"])
    context = trusting(theirs)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with context.wrap_socket(tunnel(proxy, up.port), server_hostname="a.test") as s:
        assert s.version() == "TLSv1.2"
        assert ask(s, up.port).body == b"ok"


def test_ca_stays(proxy: Proxy, ca: Path, up: Upstream) -> None:
    """Given back by the daemon it is used; forgotten by it, the proxy's own stays."""
    theirs = opened(proxy, ca, [f"a.test:{up.port}"])
    assert opened(proxy, ca, [f"a.test:{up.port}"], ca=theirs) == theirs
    assert opened(proxy, ca, [f"a.test:{up.port}"]) == theirs
    with tls(proxy, up.port, theirs) as s:
        assert ask(s, up.port).body == b"ok"


def test_ca_of_another_process(proxy: Proxy, ca: Path, up: Upstream, tmp_path: Path) -> None:
    theirs = opened(proxy, ca, [f"a.test:{up.port}"])
    again = Proxy(tmp_path)
    try:
        assert opened(again, ca, [f"a.test:{up.port}"], ca=theirs) == theirs
        with tls(again, up.port, theirs) as s:
            assert ask(s, up.port).body == b"ok"
        again.end(proto="intercept")
    finally:
        again.close()


def test_each_sandbox_has_its_own_ca(proxy: Proxy, ca: Path, up: Upstream, tmp_path: Path) -> None:
    theirs = opened(proxy, ca, [f"a.test:{up.port}"])
    other = Proxy(tmp_path)
    try:
        assert opened(other, ca, [f"a.test:{up.port}"])["cert_pem"] != theirs["cert_pem"]
        with pytest.raises(ssl.SSLCertVerificationError):
            tls(other, up.port, theirs)
        other.decision()
    finally:
        other.close()


def test_ca_that_is_none(proxy: Proxy, ca: Path) -> None:
    inject = {"a.test": {"headers": {}, "intercept": True}}
    for wrong in ({"cert_pem": "x", "key_pem": "y"},
                  {"cert_pem": pem(ca), "key_pem": (ca / "server.key").read_text()}):  # fmt: skip
        reply = proxy.put(policy(["a.test"], inject=inject, ca=wrong))
        assert reply["error"] and reply["ca"] is None
        assert proxy.connect("a.test", 443).denial["reason"] == "policy"


def test_no_ca_without_interception(proxy: Proxy) -> None:
    reply = proxy.put(policy(["a.test"], inject={"a.test": {"headers": {"X": "y"}}}))
    assert reply["error"] is None and reply["ca"] is None


def test_other_tunnels_stay_closed(proxy: Proxy, ca: Path, up: Upstream) -> None:
    """b.test is not opened: the client sees the server's own certificate."""
    theirs = opened(proxy, ca, [f"a.test:{up.port}", f"b.test:{up.port}"])
    with pytest.raises(ssl.SSLCertVerificationError):
        tls(proxy, up.port, theirs, name="b.test", host="b.test")
    context = ssl.create_default_context(cadata=pem(ca))
    s = context.wrap_socket(tunnel(proxy, up.port, host="b.test"), server_hostname="b.test")
    with s:
        assert ask(s, up.port, "/", "Authorization: mine", host=f"b.test:{up.port}").body == b"ok"
        assert up.requests[0].one("authorization") == "mine"


@pytest.mark.parametrize("name, reason", [("b.test", "sni_mismatch"), (None, "sni_missing")])
def test_sni(proxy: Proxy, ca: Path, up: Upstream, name: Optional[str], reason: str) -> None:
    theirs = opened(proxy, ca, [f"a.test:{up.port}", f"b.test:{up.port}"])
    context = trusting(theirs)
    context.check_hostname = False
    with pytest.raises(ssl.SSLError) as e:
        context.wrap_socket(tunnel(proxy, up.port), server_hostname=name)
    assert "UNRECOGNIZED_NAME" in str(e.value)
    d = proxy.decision(verdict="deny")
    assert (d["reason"], d["host"], d["proto"]) == (reason, "a.test", "intercept")
    assert up.accepted == 0


def test_not_tls(proxy: Proxy, ca: Path, up: Upstream) -> None:
    """Plain HTTP within is no request."""
    opened(proxy, ca, [f"a.test:{up.port}"])
    s = tunnel(proxy, up.port)
    s.sendall(head("GET", "/", host=f"a.test:{up.port}"))
    assert b"HTTP/1" not in s.recv(1000)
    assert closed(s) and up.accepted == 0


def test_alpn(proxy: Proxy, ca: Path, up: Upstream) -> None:
    theirs = opened(proxy, ca, [f"a.test:{up.port}"])
    context = trusting(theirs)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with context.wrap_socket(tunnel(proxy, up.port), server_hostname="a.test") as s:
        assert s.selected_alpn_protocol() == "http/1.1"
        assert ask(s, up.port).body == b"ok"
    context.set_alpn_protocols(["h2"])
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(tunnel(proxy, up.port), server_hostname="a.test")


def test_denials_within(proxy: Proxy, ca: Path, up: Upstream) -> None:
    """Legible like all others, and the connection goes on where it may."""
    rule = {"host": "a.test", "ports": [up.port], "methods": ["GET"], "paths": ["/v1/"]}
    theirs = opened(proxy, ca, [rule, f"b.test:{up.port}"])
    with tls(proxy, up.port, theirs) as s:
        assert ask(s, up.port, "/v1/").body == b"ok"
        r = ask(s, up.port, "/v2/")
        assert r.status == 403 and r.denial["reason"] == "path"
        assert ask(s, up.port, "/v1/", method="POST").denial["reason"] == "method"
        r = ask(s, up.port, "/v1/", host=f"b.test:{up.port}")
        assert r.status == 403
        assert (r.denial["reason"], r.denial["host"]) == ("host_mismatch", "a.test")
        assert ask(s, up.port, "/v1/", host="a.test").denial["reason"] == "host_mismatch"
        assert ask(s, up.port, "/v1/", "Upgrade: websocket").denial["reason"] == "upgrade"
        url = f"https://a.test:{up.port}/v1/"
        r = ask(s, up.port, url)
        assert r.status == 400 and r.denial["reason"] == "bad_request"
        assert ask(s, up.port, "http://b.test/").denial["host"] == "a.test"
        assert ask(s, up.port, "/v1/2").body == b"ok"
        r = ask(s, up.port, "/v1/", "X: a\0b")
        assert r.status == 400 and r.denial["host"] == "a.test" and closed(s)
    assert [r.target for r in up.requests] == ["/v1/", "/v1/2"]


def test_new_policy_holds_within(proxy: Proxy, ca: Path, up: Upstream) -> None:
    """Also in a tunnel that was opened before it."""
    theirs = opened(proxy, ca, [f"a.test:{up.port}"])
    with tls(proxy, up.port, theirs) as s:
        assert ask(s, up.port).body == b"ok"
        proxy.policy([f"b.test:{up.port}"])
        assert ask(s, up.port).denial["reason"] == "not_allowed"


def test_upstream_certificate_counts(proxy: Proxy, ca: Path, up: Upstream) -> None:
    theirs = opened(proxy, ca, [f"a.test:{up.port}"], upstream_ca_pem=None)
    with tls(proxy, up.port, theirs) as s:
        r = ask(s, up.port)
        assert r.status == 502 and r.denial["reason"] == "upstream_tls"
    assert up.requests == []


def test_big_bodies_within(proxy: Proxy, ca: Path) -> None:
    def answer(r: Request) -> None:
        left = int(r.one("content-length") or 0)
        while left:
            left -= len(r.socket.recv(min(left, 1 << 18)))
        r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n".encode())
        for _ in range(BIG >> 20):
            r.socket.sendall(bytes(1 << 20))

    with Upstream(answer, cert=cert(ca)) as up:
        theirs = opened(proxy, ca, [f"a.test:{up.port}"])
        with tls(proxy, up.port, theirs) as s:
            s.sendall(head("POST", "/", "Content-Length: 1", host=f"a.test:{up.port}") + b"x")
            first = Reply(s, head_only=True)
            assert first.status == 200
            for _ in range(BIG >> 20):
                recv_exactly(s, 1 << 20)
            before = memory(proxy)
            s.sendall(head("POST", "/", f"Content-Length: {BIG}", host=f"a.test:{up.port}"))
            for _ in range(BIG >> 20):
                s.sendall(bytes(1 << 20))
            assert Reply(s, head_only=True).status == 200
            for _ in range(BIG >> 20):
                assert len(recv_exactly(s, 1 << 20)) == 1 << 20
            assert memory(proxy) - before < BOUND


def test_slow_reader_within(proxy: Proxy, ca: Path) -> None:
    sent, stuck = [0], threading.Event()

    def answer(r: Request) -> None:
        r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n".encode())
        data = memoryview(bytes(1 << 20))
        r.socket.settimeout(1)
        while sent[0] < BIG:
            try:
                sent[0] += r.socket.send(data[: min(len(data), BIG - sent[0])])
            except (TimeoutError, ssl.SSLWantWriteError):
                stuck.set()

    with Upstream(answer, cert=cert(ca)) as up:
        theirs = opened(proxy, ca, [f"a.test:{up.port}"])
        with tls(proxy, up.port, theirs) as s:
            before = memory(proxy)
            s.sendall(head("GET", "/", host=f"a.test:{up.port}"))
            assert stuck.wait(WAIT)
            assert sent[0] < BIG // 2
            assert Reply(s, head_only=True).status == 200
            for _ in range(BIG >> 20):
                recv_exactly(s, 1 << 20)
            assert memory(proxy) - before < BOUND


@contextmanager
def updating(s: socket.socket) -> Iterator[Client]:
    client = Client(s, "a.test")
    yield client
    client.close()


def test_new_keys_now_and_then(proxy: Proxy, ca: Path, up: Upstream) -> None:
    opened(proxy, ca, [f"a.test:{up.port}"])
    with updating(tunnel(proxy, up.port)) as client:
        for _ in range(20):
            assert client.update()
            assert client.write(head("GET", "/", host=f"a.test:{up.port}"))
            assert client.read_until(b"\r\n\r\nok").startswith(b"HTTP/1.1 200 ")


def test_new_keys_all_the_time(proxy: Proxy, ca: Path, up: Upstream) -> None:
    """Each asks the proxy for an answer, which the client does not read."""
    opened(proxy, ca, [f"a.test:{up.port}"])
    with updating(tunnel(proxy, up.port)) as client:
        for _ in range(200000):
            if not (client.update() and client.flush()):
                break
        else:
            raise AssertionError("it takes any number of them")
    with tls(proxy, up.port, opened(proxy, ca, [f"a.test:{up.port}"])) as s:
        assert ask(s, up.port).body == b"ok"


def carry(source: socket.socket, to: socket.socket, flows: threading.Event) -> None:
    """Bytes from one to the other, which are taken while it flows. What waits is held here."""
    waiting: queue.Queue[bytes] = queue.Queue()

    def out() -> None:
        with suppress(OSError):
            while data := waiting.get():
                to.sendall(data)

    threading.Thread(target=out, daemon=True).start()
    with suppress(OSError):
        while flows.wait() and (data := source.recv(65536)):
            waiting.put(data)
    waiting.put(b"")


def carry_on(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)


def test_new_keys_within_an_upload(proxy: Proxy, ca: Path) -> None:
    """While the client does not take what the proxy answers to them, the proxy reads no more; then
    it goes on, and nothing is lost."""
    size, piece = 96 << 20, 8192
    flows, blocked = threading.Event(), False

    def answer(r: Request) -> None:
        left = size
        while left:
            left -= len(r.socket.recv(min(left, 1 << 18)))
        r.socket.sendall(OK)

    with Upstream(answer, cert=cert(ca)) as up:
        opened(proxy, ca, [f"a.test:{up.port}"])
        outer = tunnel(proxy, up.port)
        outer.settimeout(None)
        inner, theirs = socket.socketpair()
        flows.set()
        for fn, args in ((carry_on, (theirs, outer)), (carry, (outer, theirs, flows))):
            threading.Thread(target=fn, args=args, daemon=True).start()
        with updating(inner) as client:
            flows.clear()
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 2, 0))
            field = f"Content-Length: {size}"
            assert client.write(head("POST", "/", field, host=f"a.test:{up.port}"))
            for _ in range(size // piece):
                assert client.update()
                while not client.write(bytes(piece)):
                    blocked = True
                    flows.set()
            assert blocked
            assert client.read_until(b"\r\n\r\nok").startswith(b"HTTP/1.1 200 ")
        outer.close()
        theirs.close()


def test_events_within(proxy: Proxy, ca: Path) -> None:
    arrived = threading.Semaphore(0)

    def answer(r: Request) -> None:
        r.socket.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(10):
            assert arrived.acquire(timeout=WAIT)
            r.socket.sendall(f"2\r\n{i:02}\r\n".encode())
        r.socket.sendall(b"0\r\n\r\n")

    with Upstream(answer, cert=cert(ca)) as up:
        theirs = opened(proxy, ca, [f"a.test:{up.port}"])
        with tls(proxy, up.port, theirs) as s:
            s.sendall(head("GET", "/", host=f"a.test:{up.port}"))
            r = Reply(s, head_only=True)
            for i in range(10):
                arrived.release()
                assert r.read_chunk() == f"{i:02}".encode()


def test_client_leaves_within(proxy: Proxy, ca: Path) -> None:
    def answer(r: Request) -> None:
        assert r.socket.recv(1) == b""
        raise EOFError

    with Upstream(answer, cert=cert(ca)) as up:
        theirs = opened(proxy, ca, [f"a.test:{up.port}"])
        s = tls(proxy, up.port, theirs)
        s.sendall(head("GET", "/", host=f"a.test:{up.port}"))
        until(lambda: len(up.requests) == 1)
        s.close()
        assert up.ended.wait(WAIT)
        proxy.end(proto="intercept")


@contextmanager
def uploading(proxy: Proxy, up: Upstream, theirs: dict[str, str]) -> Iterator[ssl.SSLSocket]:
    """A client that is in the middle of its upload, and says nothing more."""
    with tls(proxy, up.port, theirs) as s:
        s.sendall(head("POST", "/", "Content-Length: 1000", host=f"a.test:{up.port}") + b"abc")
        until(lambda: len(up.requests) == 1)
        yield s


def test_new_policy_cuts_an_upload_within(proxy: Proxy, ca: Path) -> None:
    def answer(r: Request) -> None:
        while r.socket.recv(1 << 16):
            pass
        raise EOFError

    with Upstream(answer, cert=cert(ca)) as up:
        theirs = opened(proxy, ca, [f"a.test:{up.port}"])
        with uploading(proxy, up, theirs) as s:
            proxy.policy([f"b.test:{up.port}"])
            r = Reply(s)
            assert r.status == 403 and r.denial["reason"] == "policy_changed"
            assert closed(s)
        told = [m["why"] for m in proxy.seen if m["type"] == "end" and m["proto"] == "intercept"]
        assert told == ["policy_changed"]  # ahead of the reply to the policy


def test_destination_closes_during_an_upload_within(proxy: Proxy, ca: Path) -> None:
    def answer(r: Request) -> None:
        r.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise EOFError  # by a reset

    with Upstream(answer, cert=cert(ca)) as up:
        theirs = opened(proxy, ca, [f"a.test:{up.port}"])
        with uploading(proxy, up, theirs) as s:
            r = Reply(s)
            assert r.status == 502 and r.denial["reason"] == "upstream"
            assert closed(s)
        assert proxy.end(proto="intercept")["why"] == "upstream"


def test_client_that_sends_no_more_gets_the_rest(proxy: Proxy, ca: Path) -> None:
    """An answer is over for the proxy when all of it is encrypted, not yet for the client."""
    size = 230000
    written = threading.Event()

    def answer(r: Request) -> None:
        r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        r.socket.sendall(bytes(size))
        written.set()

    with Upstream(answer, cert=cert(ca)) as up:
        theirs = opened(proxy, ca, [f"a.test:{up.port}"])
        with tls(proxy, up.port, theirs) as s:
            s.sendall(head("GET", "/", host=f"a.test:{up.port}"))
            assert written.wait(WAIT)
            time.sleep(0.5)  # until the proxy has it, and the client's socket no room any more
            socket.socket.shutdown(s, socket.SHUT_WR)
            time.sleep(0.5)  # it does not read at once
            assert Reply(s).body == bytes(size)


# --- programs --------------------------------------------------------------------------------


@contextmanager
def port_of(proxy: Proxy) -> Iterator[int]:
    """A port on loopback whose connections go to the proxy, as the relay in a guest has it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(a: socket.socket, b: socket.socket) -> None:
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass
        for s, how in ((b, socket.SHUT_WR), (a, socket.SHUT_RD)):
            try:
                s.shutdown(how)
            except OSError:
                pass

    def run() -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            stream = proxy.stream()
            stream.settimeout(None)
            for pair in ((client, stream), (stream, client)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(WAIT)


def run_program(proxy: Proxy, theirs: dict[str, str], tmp: Path, *argv: str) -> str:
    bundle = tmp / "sandbox-ca.pem"
    bundle.write_text(theirs["cert_pem"])
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp)}
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        env[name] = str(bundle)
    with port_of(proxy) as port:
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            env[name] = f"http://127.0.0.1:{port}"
        done = subprocess.run(
            argv, env=env, capture_output=True, text=True, timeout=WAIT, check=False
        )
    assert done.returncode == 0, done
    return done.stdout


CURL = ("curl", "-sS", "-m", "20")
HTTPX = "import httpx; r = httpx.post('URL', content=b'abc'); print(r.status_code, r.text)"
URLLIB = (
    "import urllib.request as u; r = u.urlopen(u.Request('URL', b'abc')); print(r.status, r.read())"
)
# pip has it in it, which the tests need anyway.
REQUESTS = (
    "from pip._vendor import requests as r; r = r.post('URL', b'abc'); print(r.status_code, r.text)"
)


@pytest.mark.parametrize("program", ["curl", "curl chunked", "urllib", "httpx", "requests"])
@pytest.mark.parametrize("scheme", ["intercept", "gateway"])
def test_programs(
    proxy: Proxy, ca: Path, up: Upstream, tmp_path: Path, program: str, scheme: str
) -> None:
    theirs = opened(proxy, ca, [f"a.test:{up.port}"])
    origin = "https://a.test" if scheme == "intercept" else "http://a.test.egress"
    url = f"{origin}:{up.port}/p"
    if program.startswith("curl"):
        if not shutil.which("curl"):
            pytest.skip("there is no curl")
        more = ("-H", "Transfer-Encoding: chunked") if "chunked" in program else ()
        out = run_program(proxy, theirs, tmp_path, *CURL, *more, "-d", "abc", url)
        assert out == "ok"
    else:
        code = {"urllib": URLLIB, "httpx": HTTPX, "requests": REQUESTS}[program]
        python = "/usr/bin/python3"
        out = run_program(proxy, theirs, tmp_path, python, "-c", code.replace("URL", url))
        assert "200" in out and "ok" in out
    (r,) = up.requests
    assert (r.method, r.target, r.body) == ("POST", "/p", b"abc")
    assert r.one("authorization") == f"Bearer {CANARY}"


def test_curl_shows_the_denial(proxy: Proxy, ca: Path, up: Upstream, tmp_path: Path) -> None:
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    theirs = opened(proxy, ca, [{"host": "a.test", "ports": [up.port], "paths": ["/v1/"]}])
    out = run_program(proxy, theirs, tmp_path, *CURL, f"https://a.test:{up.port}/v2/")
    told = json.loads(out)
    assert told["code"] == "egress_denied" and told["reason"] == "path" and told["hint"]
