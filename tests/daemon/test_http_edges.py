"""HTTP by hand: what a strict or a hostile client may send."""

import json
import os
import re
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from conftest import Daemon, wait_for


def talk(d: Daemon, data: bytes, wait: float = 3.0) -> bytes:
    """Sends bytes, returns everything that comes until the daemon closes or is silent."""
    s = socket.create_connection(("127.0.0.1", d.port))
    s.settimeout(wait)
    out = b""
    try:
        s.sendall(data)
        while got := s.recv(65536):
            out += got
            if re.search(rb"Content-Length: (\d+)\r\n", out) and b"Connection: close" not in out:
                s.settimeout(0.2)
    except (TimeoutError, ConnectionResetError, BrokenPipeError):
        pass
    s.close()
    return out


def status(answer: bytes) -> int:
    """Status of the first answer; 0 when there is none."""
    m = re.match(rb"HTTP/1\.1 (\d+) ", answer)
    return int(m[1]) if m else 0


def get(path: bytes, more: bytes = b"") -> bytes:
    """A GET."""
    return b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n" + more + b"\r\n"


def test_two_requests_in_one_packet(daemon: Daemon) -> None:
    body = b'{"vcpus": 99}'
    post = b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    out = talk(daemon, get(b"/v1/healthz") + post + body + get(b"/v1/sandboxes"))
    assert re.findall(rb"HTTP/1\.1 (\d+) ", out) == [b"200", b"400", b"200"]
    assert out.endswith(b'{"sandboxes":[]}')


def test_byte_by_byte(daemon: Daemon) -> None:
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = (
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'7;ext=1\r\n{"vcpus\r\n5\r\n": 0}\r\n0\r\nTrailer: x\r\n\r\n'
    )
    for i in range(len(request)):
        s.sendall(request[i : i + 1])
    assert status(s.recv(1000)) == 400
    s.close()


def test_chunked_json(daemon: Daemon) -> None:
    head = b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert status(talk(daemon, head + b"2\r\n{}\r\n0\r\n\r\n")) == 200
    for bad in (
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}x\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"\r\n{}",
    ):
        assert status(talk(daemon, head + bad)) == 400, bad
    assert status(talk(daemon, head + b"ffffffffffffffffffff\r\n{}\r\n0\r\n\r\n")) == 413
    assert status(talk(daemon, head + b"2\r\n{}\r\n")) == 0, "no answer to half a request"


@pytest.mark.parametrize(
    "headers,expected",
    [
        (b"Content-Length: 2\r\nContent-Length: 2\r\n", 400),
        (b"Content-Length: 2\r\nContent-Length: 3\r\n", 400),
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 501),
        (b"Transfer-Encoding: gzip, chunked\r\n", 501),
        (b"Transfer-Encoding: xchunked\r\n", 501),
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 2x\r\n", 400),
        (b"Content-Length: 2, 2\r\n", 400),
        (b"Content-Length: 99999999999999999999999\r\n", 413),
        (b"Content-Length : 2\r\n", 400),
    ],
)
def test_framing(daemon: Daemon, headers: bytes, expected: int) -> None:
    """Two readers must not be able to disagree about where a request ends."""
    out = talk(daemon, b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n{}")
    assert status(out) == expected
    assert b"Connection: close" in out, "and the connection is not used again"
    assert daemon.http.get("/v1/sandboxes").json() == {"sandboxes": []}
    assert status(talk(daemon, get(b"/v1/healthz"))) == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v1/healthz\r\n\r\n",
        b"GET /v1/healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /v1/healthz HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
        b"GET /v1/heal thz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\nno colon here\r\n\r\n",
        b"GET /v1/healthz HTTP/1.1\r\n: novalue\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_not_http(daemon: Daemon, data: bytes) -> None:
    talk(daemon, data, wait=0.3)
    assert status(talk(daemon, get(b"/v1/healthz"))) == 200


def test_large_heads(daemon: Daemon) -> None:
    assert status(talk(daemon, get(b"/v1/healthz", b"X: " + b"y" * 8000 + b"\r\n"))) == 200
    assert status(talk(daemon, get(b"/v1/healthz", b"X: " + b"y" * 20000 + b"\r\n"))) == 431
    assert status(talk(daemon, get(b"/v1/healthz", b"X: y\r\n" * 4000))) == 431
    assert status(talk(daemon, get(b"/" + b"y" * 40000))) == 414
    assert status(talk(daemon, b"G" * 100000, wait=1)) in (0, 414)


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/healthz/..",
        b"/v1/../v1/healthz",
        b"/v1/%2e%2e/v1/healthz",
        b"/v1/healthz%00",
        b"/v1/healthz%2f",
        b"/v1/health%7a",
        b"/v1/./healthz",
        b"//v1/healthz",
        b"/v1/healthz/",
        b"/v1/healthz;a=b",
        b"http://localhost/v1/healthz",
        b"*",
    ],
)
def test_path_tricks(daemon: Daemon, path: bytes) -> None:
    """Paths are compared as they come: nothing is decoded or folded into something else."""
    out = talk(daemon, get(path))
    assert status(out) == 404 and b'"no such endpoint"' in out


def test_path_tricks_in_an_id(daemon: Daemon) -> None:
    sid = daemon.create().encode()
    for trick in (b"%73bx_" + sid[4:], sid + b"%00", sid + b"/", sid.upper(), sid + b"%2fexec"):
        assert status(talk(daemon, get(b"/v1/sandboxes/" + trick))) == 404, trick
    assert status(talk(daemon, get(b"/v1/sandboxes/" + sid + b"?x=%00%zz&&==&"))) == 200
    assert status(talk(daemon, get(b"/v1/sandboxes/" + sid + b"#frag"))) == 404


def test_head(daemon: Daemon) -> None:
    for path in (b"/v1/healthz", b"/v1/sandboxes", b"/v1/nowhere"):
        out = talk(daemon, get(path).replace(b"GET", b"HEAD"))
        head, _, body = out.partition(b"\r\n\r\n")
        assert body == b"" and re.search(rb"Content-Length: [1-9]", head)


def test_http_1_0(daemon: Daemon) -> None:
    sid = daemon.create()
    out = talk(daemon, b"GET /v1/healthz HTTP/1.0\r\n\r\n")
    assert status(out) == 200 and out.endswith(b"\r\n\r\nok")
    body = json.dumps({"code": "echo a; echo b", "language": "bash"}).encode()
    out = talk(
        daemon,
        b"POST /v1/sandboxes/%s/exec HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s"
        % (sid.encode(), len(body), body),
    )
    assert b"Transfer-Encoding" not in out, "ends with the connection"
    assert [json.loads(x)["data"] for x in out.split(b"\r\n\r\n")[1].splitlines()] == ["a", "b", 0]


def test_keep_alive_after_errors(daemon: Daemon) -> None:
    """An error of ours is an answer like any other; the connection serves on."""
    post = b"POST /v1/sandboxes/x/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc"
    out = talk(daemon, post + post + get(b"/v1/healthz"))
    assert re.findall(rb"HTTP/1\.1 (\d+) ", out) == [b"404", b"404", b"200"]


@pytest.mark.bounds
def test_a_head_that_never_ends(daemon: Daemon) -> None:
    """Costs nothing while it lasts, and nothing is left when its client goes."""
    fds = daemon.fds()
    socks = [socket.create_connection(("127.0.0.1", daemon.port)) for _ in range(50)]
    for s in socks:
        s.sendall(b"GET /v1/healthz HTTP/1.1\r\nHost: local")
    daemon.comes_to_rest()
    assert status(talk(daemon, get(b"/v1/healthz"))) == 200
    for s in socks:
        s.close()
    wait_for(lambda: daemon.fds() <= fds)


def test_a_client_that_only_closes_its_sending_side(daemon: Daemon) -> None:
    """What is answered at once is answered; what takes time is given up."""
    sid = daemon.create()

    def ask(data: bytes) -> bytes:
        s = socket.create_connection(("127.0.0.1", daemon.port))
        s.settimeout(5)
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        out = b""
        try:
            while got := s.recv(65536):
                out += got
        except ConnectionResetError:
            pass
        s.close()
        return out

    for _ in range(10):
        assert status(ask(get(b"/v1/healthz"))) == 200
        out = ask(get(b"/v1/healthz") * 3)
        assert out.count(b"HTTP/1.1 200") == 3
    body = json.dumps({"code": "sleep 30", "language": "bash"}).encode()
    begin = time.monotonic()
    ask(
        b"POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
        % (sid.encode(), len(body), body)
    )
    assert time.monotonic() - begin < 3
    assert daemon.exec(sid, "echo free")[0]["data"] == "free"


@pytest.mark.bounds
def test_idle_means_idle(daemon: Daemon) -> None:
    """Sandboxes and kept connections that do nothing cost no processor time and no wake-up."""
    for _ in range(3):
        daemon.exec(daemon.create(), "true")

    def switches() -> int:
        with open(f"/proc/{daemon.proc.pid}/status", encoding="ascii") as f:
            return int(re.search(r"\nvoluntary_ctxt_switches:\s+(\d+)", f.read())[1])

    time.sleep(0.2)
    before = switches()
    time.sleep(2)
    assert switches() - before <= 1


@pytest.mark.bounds
def test_out_of_descriptors(start: Callable[..., Daemon]) -> None:
    """More connections than it has room for: refused, not left hanging; then all is well."""
    d = start(args=["--max-sandboxes", "2"])
    hard = resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, (48, hard))
    socks = []
    for _ in range(60):
        s = socket.create_connection(("127.0.0.1", d.port))
        s.settimeout(5)
        socks.append(s)
    d.comes_to_rest()
    served = refused = 0
    for s in socks:
        try:
            s.sendall(get(b"/v1/healthz"))
            if s.recv(1000):
                served += 1
            else:
                refused += 1
        except OSError:
            refused += 1
    assert served + refused == 60 and served >= 10 and refused >= 10
    for s in socks:
        s.close()
    wait_for(lambda: d.fds() < 33)
    resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, (1000, hard))
    d.create()


def test_create_without_descriptors(start: Callable[..., Daemon]) -> None:
    d = start()
    d.templates_ready()
    wait_for(lambda: len(d.children()) == 1)  # its rehearsal has gone
    hard = resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, (d.fds() + 2, hard))
    r = d.http.post("/v1/sandboxes")
    assert r.status_code == 503 and "Too many open files" in r.json()["error"]
    resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, (4096, hard))
    fds = d.fds()
    d.http.delete(f"/v1/sandboxes/{d.create()}")
    wait_for(lambda: d.fds() == fds)


def short_of_descriptors(d: Daemon, sid: str, spare: int) -> Callable[[], None]:
    """No more than so many; the sandbox has no stream at hand. What it returns ends that."""
    held = [socket.create_connection(("127.0.0.1", d.port)) for _ in range(6)]
    for n, s in enumerate(held):  # more than the streams that are kept
        body = json.dumps({"code": "echo on; sleep 600", "language": "bash", "context_id": f"held{n}"}).encode()
        s.sendall(
            b"POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (sid.encode(), len(body))
            + body
        )
    for s in held:
        while b'"data":"on"' not in s.recv(65536):
            pass
    hard = resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE)[1]
    used = {int(x) for x in os.listdir(f"/proc/{d.proc.pid}/fd")}
    free = [n for n in range(4096) if n not in used]
    resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, (free[spare], hard))

    def enough() -> None:
        resource.prlimit(d.proc.pid, resource.RLIMIT_NOFILE, (4096, hard))
        for s in held:
            s.close()

    return enough


@pytest.mark.parametrize("spare", [0, 2, 5])
@pytest.mark.parametrize("what", ["exec", "fork", "upload", "download", "egress", "command"])
def test_work_without_descriptors(start: Callable[..., Daemon], tmp_path: Path, what: str, spare: int) -> None:
    """Each ends in a described error or in its result; sandbox and daemon go on, and nothing is lost."""
    d = start()
    sid = d.create()
    one = f"/v1/sandboxes/{sid}"
    (tmp_path / "f").write_bytes(b"x")
    ask: dict[str, Callable[[], httpx.Response]] = {
        "exec": lambda: d.http.post(f"{one}/exec", json={"code": "echo x", "language": "bash"}),
        "fork": lambda: d.http.post(f"{one}/fork", json={"n": 2}),
        "upload": lambda: d.http.put(f"{one}/files", params={"path": str(tmp_path / "g")}, content=b"y" * 100000),
        "download": lambda: d.http.get(f"{one}/files", params={"path": str(tmp_path / "f")}),
        "egress": lambda: d.http.put(f"{one}/egress", json={"allow": ["a.test"]}),
        "command": lambda: d.http.post(f"{one}/commands", json={"code": "echo x", "language": "bash"}),
    }
    d.http.get("/v1/healthz")  # a connection is there
    enough = short_of_descriptors(d, sid, spare)
    seen = [ask[what]() for _ in range(3)]
    enough()
    for r in seen:
        assert r.status_code in (200, 201, 204, 429, 502, 503), r.text
        assert r.status_code < 400 or set(r.json()) >= {"error", "code"}, r.text
    if spare == 0:
        assert seen[0].status_code in (502, 503) and "Too many open files" in seen[0].text, seen[0].text
    assert d.http.get(one).json()["state"] == "ready"
    assert ask[what]().status_code < 300
    assert d.exec(sid, "echo x")[0]["data"] == "x"
