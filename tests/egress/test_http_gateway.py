# SPDX-License-Identifier: Apache-2.0
"""The gateway: http://HOST.egress/ for which the proxy speaks TLS; certificates that it must not
accept; and headers that are put in on the way, whose values are nowhere else."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Optional

import pytest
from conftest import WAIT, Proxy, policy, until
from http_parts import Reply, Request, Upstream, get, head, once
from servers import Tcp

pytestmark = pytest.mark.jail

CANARY = "canary-3f9a7c51e0"  # of a secret: whoever shows it has leaked


def pem(ca: Path) -> str:
    return (ca / "ca.pem").read_text()


def cert(ca: Path) -> tuple[Path, Path]:
    return ca / "server.pem", ca / "server.key"


def make_cert(ca: Path, where: Path, names: str, *how: str) -> tuple[Path, Path]:
    """One for these names, made in its own way; without -signed it signs itself."""

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=where, check=True, capture_output=True)

    (where / "ext").write_text(f"subjectAltName={names}\n")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
            "own.key", "-out", "own.csr", "-subj", "/CN=own")  # fmt: skip
    if "-signed" in how:
        sign = ["-CA", str(ca / "ca.pem"), "-CAkey", str(ca / "ca.key"), "-CAcreateserial"]
    else:
        sign = ["-signkey", "own.key"]
    more = [x for x in how if x != "-signed"]
    openssl("x509", "-req", "-in", "own.csr", *sign, "-extfile", "ext", "-out", "own.pem",
            *(more or ["-days", "2"]))  # fmt: skip
    return where / "own.pem", where / "own.key"


def test_gateway(proxy: Proxy, ca: Path) -> None:
    with Upstream(cert=cert(ca)) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca))
        url = f"http://a.test.egress:{up.port}"
        assert get(s, url + "/v1?x=y", "X: z").body == b"ok"
        assert get(s, url + "/v2", method="POST", body=b"abc").body == b"ok"
        assert get(s, f"http://b.test.egress:{up.port}/").denial["host"] == "b.test"
        first = up.requests[0]
        assert first.fields == [("Host", f"a.test:{up.port}"), ("X", "z")]
        assert [(r.method, r.target, r.body) for r in up.requests] == [
            ("GET", "/v1?x=y", b""),
            ("POST", "/v2", b"abc"),
        ]
        assert set(up.names) == {"a.test"} and set(up.alpn) == {"http/1.1"}
        d = proxy.decision()
        assert (d["proto"], d["host"], d["port"]) == ("gateway", "a.test", up.port)


def test_default_port_is_443(proxy: Proxy) -> None:
    """Said in the question: no server of a test can listen there."""
    proxy.policy(["a.test:8443"])
    for host in ("a.test.egress", "a.test.egress:80", "A.TEST.EGRESS"):
        r = once(proxy, f"http://{host}/")
        assert (r.denial["host"], r.denial["port"], r.denial["reason"]) == ("a.test", 443, "port")


def test_connection_is_kept(proxy: Proxy, ca: Path) -> None:
    with Upstream(cert=cert(ca)) as up:
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca))
        with proxy.stream() as s:
            for _ in range(3):
                assert get(s, f"http://a.test.egress:{up.port}/").body == b"ok"
        assert up.accepted == 1
        assert once(proxy, f"http://a.test.egress:{up.port}/").body == b"ok"
        assert up.accepted == 2


def test_bodies_over_tls(proxy: Proxy, ca: Path) -> None:
    with Upstream(answer_big, cert=cert(ca)) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca))
        r = get(s, f"http://a.test.egress:{up.port}/", method="POST", body=bytes(3 << 20))
        assert len(r.body) == 5 << 20


def answer_big(r: Request) -> None:
    assert len(r.read_body()) == 3 << 20
    r.socket.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {5 << 20}\r\n\r\n".encode())
    r.socket.sendall(bytes(5 << 20))


@pytest.mark.parametrize(
    "names, how",
    [
        ("DNS:a.test", []),
        ("DNS:b.test", ["-signed"]),
        ("IP:127.0.0.1", ["-signed"]),
        ("DNS:*.test", ["-signed", "-days", "-1"]),
        ("DNS:a.test", ["-signed", "-days", "-1"]),
    ],
    ids=["own signature", "another name", "address", "expired wildcard", "expired"],
)
def test_wrong_certificates(
    proxy: Proxy, ca: Path, tmp_path: Path, names: str, how: list[str]
) -> None:
    with Upstream(cert=make_cert(ca, tmp_path, names, *how)) as up, proxy.stream() as s:
        inject = {"a.test": {"headers": {"Authorization": CANARY}}}
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca), inject=inject)
        r = get(s, f"http://a.test.egress:{up.port}/")
        assert r.status == 502 and r.denial["reason"] == "upstream_tls"
        assert up.requests == []
        assert proxy.end()["why"] == "upstream_tls"


def test_ca_of_nobody(proxy: Proxy, ca: Path) -> None:
    """The test's CA is trusted when the policy says so, and no longer."""
    with Upstream(cert=cert(ca)) as up:
        url = f"http://a.test.egress:{up.port}/"
        proxy.policy([f"a.test:{up.port}"])
        assert once(proxy, url).denial["reason"] == "upstream_tls"
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca))
        assert once(proxy, url).body == b"ok"
        proxy.policy([f"a.test:{up.port}"])
        assert once(proxy, url).denial["reason"] == "upstream_tls"


def test_no_tls_at_all(proxy: Proxy, ca: Path) -> None:
    def serve(s: socket.socket) -> None:
        s.recv(65536)
        s.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with Tcp(serve) as up:
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca))
        r = once(proxy, f"http://a.test.egress:{up.port}/")
        assert r.status == 502 and r.denial["reason"] == "upstream_tls"


def test_nobody_listens(proxy: Proxy, ca: Path) -> None:
    proxy.policy(["a.test:1"], upstream_ca_pem=pem(ca))
    r = once(proxy, "http://a.test.egress:1/")
    assert r.status == 502 and r.denial["reason"] == "upstream" and "refused" in r.denial["detail"]


# --- headers that are put in ------------------------------------------------------------


def injecting(**headers: str) -> dict[str, Any]:
    return {"a.test": {"headers": {k.replace("_", "-"): v for k, v in headers.items()}}}


def test_injection(proxy: Proxy, ca: Path) -> None:
    """What the client says under these names does not count, in any case of letters, also when it
    tries to have them removed."""
    with Upstream(cert=cert(ca)) as up, proxy.stream() as s:
        inject = injecting(Authorization=f"Bearer {CANARY}", X_Api_Key="k")
        proxy.policy([f"a.test:{up.port}", f"b.test:{up.port}"], upstream_ca_pem=pem(ca),
                     inject=inject)  # fmt: skip
        url = f"http://a.test.egress:{up.port}/"
        get(s, url)
        get(s, url, "Authorization: Bearer mine", "authorization: another", "X-API-KEY: mine")
        get(s, url, "Connection: Authorization, X-Api-Key")
        get(s, url, method="POST", body=b"x")
        # As servers see them that make variables of their names.
        get(s, url, "X_Api_Key: mine", "x-api_KEY: mine", "X_API-Key2: kept")
        assert len(up.requests) == 5
        assert up.requests[4].one("x_api-key2") == "kept"
        for r in up.requests:
            assert not r.all("x_api_key") and not r.all("x-api_key")
            assert r.one("authorization") == f"Bearer {CANARY}" and r.one("x-api-key") == "k"
        # Another host does not get it.
        get(s, f"http://b.test.egress:{up.port}/", "Authorization: mine")
        assert up.requests[5].one("authorization") == "mine"
        assert up.requests[5].one("x-api-key") is None


def test_injection_ends_with_its_policy(proxy: Proxy, ca: Path) -> None:
    with Upstream(cert=cert(ca)) as up, proxy.stream() as s:
        url = f"http://a.test.egress:{up.port}/"
        for value in ("one", "two", None):
            inject = injecting(X_Key=value) if value else {}
            proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca), inject=inject)
            get(s, url)
            assert up.requests[-1].one("x-key") == value


class Late(Upstream):
    """Does its part of TLS when it is told to."""

    def __init__(self, ca: Path) -> None:
        super().__init__(cert=cert(ca))
        self.go = threading.Event()

    def speak(self, s: socket.socket) -> None:
        assert self.go.wait(WAIT)
        super().speak(s)


@pytest.mark.parametrize("after", ["another", "none", "same"])
def test_injection_ends_for_what_was_not_sent(proxy: Proxy, ca: Path, after: str) -> None:
    """A request that was allowed, and waits for TLS. The policy that replaces its own is answered
    when no header of that is sent any more."""
    with Late(ca) as up, proxy.stream() as s:

        def put(value: Optional[str], other: str) -> None:
            proxy.policy([f"a.test:{up.port}", other], upstream_ca_pem=pem(ca),
                         inject=injecting(X_Key=value) if value else {})  # fmt: skip

        put("old", "b.test")
        s.sendall(head("POST", f"http://a.test.egress:{up.port}/", "Content-Length: 3"))
        proxy.decision()
        until(lambda: up.accepted == 1)
        put({"another": "new", "none": None, "same": "old"}[after], "c.test")
        up.go.set()
        if after == "same":
            s.sendall(b"abc")
            assert Reply(s).body == b"ok" and up.requests[0].one("x-key") == "old"
        else:
            assert Reply(s).denial["reason"] == "policy_changed"
            (told,) = [m for m in proxy.seen if m["type"] == "end"]  # ahead of the reply
            assert told["why"] == "policy_changed"
            assert up.ended.wait(WAIT) and up.requests == []


def test_injection_that_was_sent_stays(proxy: Proxy, ca: Path) -> None:
    """A request the head of which is out goes on."""
    with Upstream(cert=cert(ca)) as up, proxy.stream() as s:
        for value in ("old", "new"):
            proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca),
                         inject=injecting(X_Key=value))  # fmt: skip
            if value == "old":
                s.sendall(head("POST", f"http://a.test.egress:{up.port}/", "Content-Length: 3"))
                until(lambda: len(up.requests) == 1)
        s.sendall(b"abc")
        assert Reply(s).body == b"ok" and up.requests[0].one("x-key") == "old"


def test_injection_is_not_sent_once_more(proxy: Proxy, ca: Path) -> None:
    """A request on a connection that was kept, which ends without an answer: it would be sent again
    on another one. Not when the header was revoked meanwhile."""
    go = threading.Event()

    def answer(r: Request) -> None:
        if r.target == "/1":
            r.socket.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        assert go.wait(WAIT)
        raise EOFError

    with Upstream(answer, cert=cert(ca)) as up, proxy.stream() as s:
        url = f"http://a.test.egress:{up.port}"
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca), inject=injecting(X_Key="old"))
        assert get(s, url + "/1").body == b"ok"
        s.sendall(head("GET", url + "/2"))
        until(lambda: len(up.requests) == 2)
        assert up.accepted == 1
        proxy.policy([f"a.test:{up.port}"], upstream_ca_pem=pem(ca))
        go.set()
        assert Reply(s).denial["reason"] == "policy_changed"
        assert len(up.requests) == 2


def test_never_over_plain_http(proxy: Proxy) -> None:
    with Upstream() as up:
        proxy.policy([f"a.test:{up.port}"], inject=injecting(Authorization=CANARY))
        r = once(proxy, f"http://a.test:{up.port}/")
        assert r.status == 403 and r.denial["reason"] == "plain_http"
        assert ".egress" in r.denial["hint"]
        assert up.accepted == 0
        # A model reads the record's sentence, in `denied`: it must be the same.
        record = proxy.decision(verdict="deny")
        assert record["host"] == "a.test" and record["hint"] == r.denial["hint"]


def test_a_test_of_the_policy_knows_that(proxy: Proxy) -> None:
    """It says what the proxy does: at port 80 the request is plain HTTP, at others one for TLS."""
    inject = {**injecting(Authorization=CANARY), "b.test": {"headers": {}}}
    proxy.policy(["a.test", "a.test:8080", "b.test"], inject=inject)
    told = proxy.test("a.test", 80, method="GET", path="/")
    assert (told["verdict"], told["reason"], told["rule"]) == ("deny", "plain_http", "a.test")
    assert told["addresses"] == []
    r = once(proxy, "http://a.test/")
    assert r.status == 403
    assert [r.denial[k] for k in ("reason", "hint")] == [told[k] for k in ("reason", "hint")]
    assert proxy.decision()["verdict"] == "deny"  # the only record
    assert proxy.silent()
    for port in (443, 8080):
        told = proxy.test("a.test", port, method="GET", path="/")
        assert told["verdict"] == "allow" and "plain HTTP" in told["hint"]
    # Tunnels get no header, and where none is injected there is nothing to hide.
    for host, more in (("a.test", {}), ("b.test", {"method": "GET", "path": "/"})):
        told = proxy.test(host, 80, **more)
        assert (told["verdict"], told["hint"]) == ("allow", "")
    # What no rule allows is not allowed for that reason.
    told = proxy.test("a.test", 81, method="GET", path="/")
    assert (told["verdict"], told["reason"]) == ("deny", "port")


def test_injection_cuts_what_is_plain(proxy: Proxy) -> None:
    """A request under way, to a host that gets an injection meanwhile."""

    def answer(r: Request) -> None:
        assert r.socket.recv(1) == b""
        raise EOFError

    with Upstream(answer) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}"])
        s.sendall(head("GET", f"http://a.test:{up.port}/"))
        until(lambda: len(up.requests) == 1)
        proxy.policy([f"a.test:{up.port}"], inject=injecting(Authorization=CANARY))
        assert Reply(s).denial["reason"] == "policy_changed"
        assert up.ended.wait(WAIT)


def test_secrets_are_told_to_nobody(proxy: Proxy, ca: Path) -> None:
    """Not in records, replies or the log: allowed, denied, failed, cut."""
    shown: list[str] = []

    def show(r: Reply) -> None:
        shown.append(f"{r.status} {r.phrase} {r.fields} {r.body!r}")

    with Upstream(cert=cert(ca)) as up, proxy.stream() as s:
        proxy.policy([f"a.test:{up.port}", "a.test:1"], upstream_ca_pem=pem(ca),
                     inject=injecting(Authorization=f"Bearer {CANARY}"))  # fmt: skip
        show(get(s, f"http://a.test.egress:{up.port}/"))
        show(get(s, "http://a.test.egress:1/"))
        show(get(s, f"http://a.test:{up.port}/"))
        show(get(s, "http://a.test.egress:2/"))
        s.sendall(head("GET", f"http://a.test.egress:{up.port}/", "X: a\0"))
        show(Reply(s))
        assert up.requests[0].one("authorization") == f"Bearer {CANARY}"
    reply = proxy.put(policy([], inject={"a.test": {"headers": {"Host": CANARY}}}))
    assert reply["error"]
    assert proxy.silent()
    assert proxy.seen
    for text in (str(proxy.seen), proxy.log.read_text(), *shown):
        assert CANARY not in text
