"""Many connections at once: the measured faults of the HTTP library must not show."""

import json
import selectors
import socket
import time

import pytest

from conftest import SANITIZED, Daemon, wait_for

pytestmark = pytest.mark.bounds

REQUEST = b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(d: Daemon, n: int) -> list[socket.socket]:
    """Open connections."""
    socks = []
    for _ in range(n):
        socks.append(socket.create_connection(("127.0.0.1", d.port)))
    return socks


def collect(socks: list[socket.socket], until: float) -> int:
    """How many connections have got an answer when the time is over."""
    sel = selectors.DefaultSelector()
    for s in socks:
        sel.register(s, selectors.EVENT_READ)
    answered = 0
    while answered < len(socks) and time.monotonic() < until:
        for key, _ in sel.select(0.1):
            if b"ok" in key.fileobj.recv(4096):
                answered += 1
                sel.unregister(key.fileobj)
    return answered


@pytest.mark.parametrize("n", [96, 128, 256, 384, 512, 1024])
def test_all_ready_at_once(daemon: Daemon, n: int) -> None:
    """
    With 128, 256... connections ready together a single-threaded libmicrohttpd in its own epoll
    mode sleeps instead of serving them. Driven from our loop it must not.
    """
    socks = connect(daemon, n)
    for _ in range(5):
        daemon.proc.send_signal(19)  # SIGSTOP: all of them become ready while it cannot look
        for s in socks:
            s.sendall(REQUEST)
        time.sleep(0.05)
        begin = time.monotonic()
        daemon.proc.send_signal(18)  # SIGCONT
        assert collect(socks, begin + 10) == n
        assert time.monotonic() - begin < (5 if SANITIZED else 2)
    for s in socks:
        s.close()


def test_throughput_is_sane(daemon: Daemon) -> None:
    """Not a benchmark: catches a stall that costs time in every request."""
    socks = connect(daemon, 256)
    begin = time.monotonic()
    for _ in range(8):
        for s in socks:
            s.sendall(REQUEST)
        assert collect(socks, time.monotonic() + 10) == 256
    assert time.monotonic() - begin < 8
    for s in socks:
        s.close()


def test_many_streams(daemon: Daemon) -> None:
    """A hundred running commands whose clients all leave at once."""
    n = 20
    ids = [daemon.create() for _ in range(4)]
    body = json.dumps({"code": "while :; do echo x; sleep 0.05; done", "language": "bash"}).encode()
    socks = connect(daemon, n)
    for i, s in enumerate(socks):
        s.sendall(
            b"POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
            % (ids[i % 4].encode(), len(body), body)
        )
    for s in socks:
        assert s.recv(20).startswith(b"HTTP/1.1 200")
    for s in socks:
        s.close()
    for sid in ids:
        assert daemon.exec(sid, "echo free")[0]["data"] == "free"
    wait_for(lambda: daemon.log_text().count("ended=early") == n)


def test_more_connections_than_the_limit(daemon: Daemon) -> None:
    """Silent ones make room for those that come: who was there first is cut, the others are served."""
    limit = 4096
    with open(f"/proc/{daemon.proc.pid}/limits", encoding="ascii") as f:
        files = next(int(x.split()[3]) for x in f if x.startswith("Max open files"))
    limit = min(limit, files // 8)
    try:
        socks = connect(daemon, limit + 20)
    except OSError as e:
        pytest.skip(f"this machine does not let one process have {limit} sockets: {e}")
    for s in socks[-20:]:
        s.sendall(REQUEST)
    assert [s.recv(12) for s in socks[-20:]] == [b"HTTP/1.1 200"] * 20
    assert [s.recv(12) for s in socks[:20]] == [b""] * 20
    for s in socks:
        s.close()
    wait_for(lambda: daemon.fds() < 30)
    assert daemon.http.get("/v1/healthz").text == "ok"
