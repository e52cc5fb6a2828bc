"""Transfers of files with a guest that is silent: they end; with one that is slow, or kept from it: not."""

import json
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from conftest import Daemon, stdout_of, wait_for

# A second until it is asked, and another one that it has to answer; and room for a busy host.
ENV = {"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1"}
LATE = 12


def url(d: Daemon, sid: str, path: str, op: str = "") -> str:
    """Of a file, or of what is done with it."""
    return f"{d.url}/v1/sandboxes/{sid}/files{op}?path={path}"


def tell(d: Daemon, sid: str, **state: object) -> None:
    """What the guest does from now on."""
    d.exec(sid, "#fake:set " + json.dumps(state))


@pytest.mark.parametrize("what", ["get", "list", "put", "put-all"])
def test_before_its_answer(start: Callable[..., Daemon], what: str) -> None:
    """An error, and the guest, which answers others, lives on."""
    d = start(env=ENV)
    sid = d.create()
    tell(d, sid, file_raw="mute")
    began = time.monotonic()
    if what == "get":
        r = d.http.get(url(d, sid, "/fake/mute"), timeout=LATE)
    elif what == "list":
        r = d.http.get(url(d, sid, "/tmp", "/list"), timeout=LATE)
    elif what == "put":
        # More than all buffers on the way hold: it is not read.
        r = d.http.put(url(d, sid, "/fake/stall"), content=b"x" * 4_000_000, timeout=LATE)
    else:
        r = d.http.put(url(d, sid, "/fake/never-ok"), content=b"x" * 4_000_000, timeout=LATE)
    assert time.monotonic() - began > 1.9
    assert r.status_code == 502, r.text
    assert r.json() == {"error": "the guest's agent did not answer", "code": "agent_error"}
    tell(d, sid, file_raw=None)
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


@pytest.mark.parametrize("op", ["", "/list"])
def test_after_its_answer_has_begun(start: Callable[..., Daemon], op: str) -> None:
    """What the client has is not taken for all."""
    d = start(env=ENV)
    sid = d.create()
    tell(d, sid, file_raw="stops")
    with pytest.raises(httpx.RemoteProtocolError):
        d.http.get(url(d, sid, "/fake/stops", op), timeout=LATE)
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


def test_a_guest_that_does_nothing_any_more(start: Callable[..., Daemon]) -> None:
    """It answers nobody: the sandbox ends."""
    d = start(env=ENV)
    sid = d.create()
    tell(d, sid, file_raw="mute", halted=True)
    assert d.http.get(url(d, sid, "/tmp", "/list"), timeout=LATE).status_code in (409, 502)
    wait_for(lambda: d.http.get(url(d, sid, "/x")).json()["code"] == "sandbox_ended", LATE)


@pytest.mark.parametrize("what", ["get", "list", "put"])
def test_a_slow_guest(start: Callable[..., Daemon], what: str) -> None:
    """For longer than both limits it says only that it lives, in each part of its answer."""
    d = start(env=ENV)
    sid = d.create()
    tell(d, sid, file_raw="slow 3")
    if what == "get":
        r = d.http.get(url(d, sid, "/fake/slow/3"))
        assert (r.status_code, r.content) == (200, b"x" * 100_000)
    elif what == "list":
        r = d.http.get(url(d, sid, "/tmp", "/list"))
        assert [e["path"] for e in r.json()["entries"]] == ["/tmp", "/usr"]
    else:
        r = d.http.put(url(d, sid, "/fake/slow/3"), content=b"x" * 4_000_000)
        assert (r.status_code, r.json()["size"]) == (200, 4_000_000)
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


def test_a_slow_client(start: Callable[..., Daemon]) -> None:
    """A client that does not take, or send, what it may is not the guest's silence."""
    d = start(env=ENV)
    sid = d.create()
    with d.http.stream("GET", url(d, sid, "/fake/endless")) as r:
        chunks = r.iter_raw(100_000)
        next(chunks)
        s = socket.create_connection(("127.0.0.1", d.port))
        s.sendall(
            f"PUT /v1/sandboxes/{sid}/files?path=/fake/slow/0 HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Length: 200000\r\n\r\n".encode() + b"x" * 100_000
        )
        time.sleep(5)
        s.sendall(b"x" * 100_000)
        assert s.recv(100).startswith(b"HTTP/1.1 200 ")
        s.close()
        for _ in range(50):
            assert len(next(chunks)) == 100_000
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


def test_a_frozen_guest(start: Callable[..., Daemon]) -> None:
    """What rests for a fork is not silent, and its time begins anew behind it."""
    d = start(env={**ENV, "PODFLARE_FREEZE_TIMEOUT": "5"})
    sid = d.create()
    answers: list[httpx.Response] = []
    tell(d, sid, file_raw="slow 2")

    def go(what: str) -> None:
        if what == "put":
            answers.append(httpx.put(url(d, sid, "/fake/slow/2"), content=b"x" * 4_000_000, timeout=60))
        else:
            answers.append(httpx.get(url(d, sid, "/fake/slow/2", what), timeout=60))

    d.exec(sid, "#fake:once freeze mute")
    fork = threading.Thread(target=lambda: httpx.post(f"{d.url}/v1/sandboxes/{sid}/fork", json={}, timeout=60))
    fork.start()
    time.sleep(0.5)
    # They begin in the frozen guest, and stay there for longer than both limits.
    threads = [threading.Thread(target=go, args=(w,)) for w in ("", "/list", "put")]
    for t in threads:
        t.start()
    time.sleep(3.5)
    assert not answers
    for t in (fork, *threads):
        t.join()
    assert [r.status_code for r in answers] == [200] * 3
