"""Kept commands and what is written to them: stdin in pieces, in order, by one writer at a time."""

import hashlib
import os
import socket
from collections.abc import Iterator

import pytest

from conftest import SANITIZED, Daemon, wait_for
from kept import base, begin, ended, events, output, refused, write


def test_much_stdin_in_order(daemon: Daemon) -> None:
    """Far more than any window, in many writes, to a reader that is late."""
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 0.5; md5sum; sleep 0.1", stdin=True)
    data = os.urandom(3_000_000)
    for i in range(0, 20_000, 1000):
        assert write(daemon, sid, cid, data[i : i + 1000]).status_code == 204

    def pieces() -> Iterator[bytes]:
        for i in range(20_000, len(data), 70_001):
            yield data[i : i + 70_001]

    r = daemon.http.post(base(sid, cid, "stdin") + "?close=1", content=pieces())
    assert r.status_code == 204
    assert output(events(daemon, sid, cid)).split()[0] == hashlib.md5(data).hexdigest().encode()


def test_stdin_that_is_closed(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "cat; sleep 600", stdin=True)
    assert write(daemon, sid, cid, b"x", "?close=0").status_code == 204
    assert write(daemon, sid, cid, b"", "?close=1").status_code == 204
    assert refused(write(daemon, sid, cid, b"y")) == (409, "stdin_closed", None)
    without = begin(daemon, sid, "sleep 600")
    assert refused(write(daemon, sid, without, b"y")) == (409, "stdin_closed", None)
    over = begin(daemon, sid, "true", stdin=True)
    ended(daemon, sid, over)
    assert refused(write(daemon, sid, over, b"y")) == (409, "command_ended", None)
    for bad in ("2", "", "true", "1&close=1"):
        r = write(daemon, sid, cid, b"", f"?close={bad}")
        assert refused(r) == (400, "invalid_request", "close")


def test_one_writer(daemon: Daemon) -> None:
    """A write that waits for its reader keeps others out until it is given up."""
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600", stdin=True)
    with socket.create_connection(("127.0.0.1", daemon.port)) as s:
        head = f"POST {base(sid, cid, 'stdin')} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n"
        s.sendall(head.encode() + bytes(1000))
        wait_for(lambda: write(daemon, sid, cid, b"x").status_code == 409)
        assert refused(write(daemon, sid, cid, b"x")) == (409, "sandbox_busy", None)
    wait_for(lambda: write(daemon, sid, cid, b"x").status_code == 204)


def test_it_ends_while_it_is_written_to(daemon: Daemon) -> None:
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 0.7; exit 4", stdin=True)
    r = write(daemon, sid, cid, bytes(4_000_000))
    # What nobody reads is thrown away at its end, or the end is told.
    assert r.status_code == 204 or refused(r) == (409, "command_ended", None)
    assert ended(daemon, sid, cid)["exit_code"] == 4


@pytest.mark.bounds
def test_a_client_that_sends_for_ever(daemon: Daemon) -> None:
    """To a command that does not read: what waits in the daemon is bounded."""
    sid = daemon.create()
    cid = begin(daemon, sid, "sleep 600", stdin=True)
    before = daemon.rss_kib()
    with socket.create_connection(("127.0.0.1", daemon.port)) as s:
        head = f"POST {base(sid, cid, 'stdin')} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n"
        s.sendall(head.encode())
        s.settimeout(1)
        sent = 0
        try:
            while sent < 64 << 20:
                sent += s.send(bytes(1 << 20))
        except TimeoutError:
            pass
        assert sent < 48 << 20
        assert daemon.rss_kib() - before < (40_000 if SANITIZED else 2_000)
        assert daemon.exec(sid, "echo x")[0]["data"] == "x"


@pytest.mark.bounds
def test_a_client_that_does_not_read(daemon: Daemon) -> None:
    """The command goes on; what waits in the daemon is bounded."""
    sid = daemon.create()
    cid = begin(daemon, sid, "head -c 60000000 /dev/zero; exit 6")
    before = daemon.rss_kib()
    with socket.create_connection(("127.0.0.1", daemon.port)) as s:
        s.sendall(f"GET {base(sid, cid, 'stream')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert ended(daemon, sid, cid)["exit_code"] == 6
        assert daemon.rss_kib() - before < (40_000 if SANITIZED else 4_000)
    ev = events(daemon, sid, cid, "?stdout=59999990")
    assert output(ev) == bytes(10) and ev[-1]["data"] == 6
