"""Guests that send frames as fast as they are taken: others are served meanwhile, and it ends."""

import json
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from conftest import SANITIZED, Daemon, wait_for
from execs import SLACK, last, running

STDOUT, STDERR, PONG, EVENT, EVENT_PART, STDIN_ACK = 0x81, 0x82, 0x85, 0x89, 0x8B, 0x8C


@pytest.mark.parametrize("frame", [f"{PONG}", f"{PONG} 6869", f"{STDOUT}", f"{STDERR}", f"{STDIN_ACK} 00000000"])
def test_frames_that_nobody_waits_for(daemon: Daemon, frame: str) -> None:
    """Answers to nothing, output without a byte: the stream is given up, the sandbox is not."""
    sid = daemon.create()
    body = {"code": f"#fake:flood {frame}", "language": "bash", "timeout": 0}
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
    assert (r.status_code, r.json()["code"]) == (502, "agent_error")
    assert daemon.exec(sid, "echo x")[0]["data"] == "x"


def flood(d: Daemon, sid: str, timeout: float) -> tuple[list[threading.Thread], list[dict]]:
    """Six at a time in one guest, of frames that may be sent; how they end."""
    ends: list[dict] = []

    def one(n: int) -> None:
        with running(d, sid, f"#fake:flood {EVENT_PART}", timeout=timeout, context_id=f"c{n}") as r:
            ends.append(last(r))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    wait_for(lambda: len(d.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"]) == 6, 60)
    return threads, ends


def test_others_are_served(daemon: Daemon) -> None:
    """A second guest does its work, while the first one has no deadline."""
    other, sid = daemon.create(), daemon.create()
    threads, ends = flood(daemon, sid, 0)
    for _ in range(10):
        assert daemon.http.get("/v1/healthz").text == "ok"
        assert daemon.exec(other, "echo x")[0]["data"] == "x"
    assert not ends
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    for t in threads:
        t.join()
    assert [e["termination_reason"] for e in ends] == ["closed"] * 6


def test_floods_end_at_their_deadline(start: Callable[..., Daemon]) -> None:
    d = start(env=SLACK)
    other, sid = d.create(), d.create()
    threads, ends = flood(d, sid, 1)
    for t in threads:
        t.join()
    assert [e["type"] for e in ends] == ["exit"] * 6
    assert {e["termination_reason"] for e in ends} <= {"vm_ended", "timeout"}
    assert [o["id"] for o in d.http.get("/v1/sandboxes").json()["sandboxes"]] == [other]


def attach(d: Daemon, sid: str, n: int) -> Iterator[None]:
    """So many clients of a command's output, who read what comes as fast as it does."""
    head = f"GET /v1/sandboxes/{sid}/commands/any/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    stop = threading.Event()

    def read() -> None:
        with ExitStack() as stack, selectors.DefaultSelector() as all_of:
            for _ in range(n):
                s = stack.enter_context(socket.create_connection(("127.0.0.1", d.port)))
                s.sendall(head)
                all_of.register(s, selectors.EVENT_READ)
            while not stop.is_set():
                for key, _ in all_of.select(0.1):
                    if not key.fileobj.recv(1 << 20):
                        all_of.unregister(key.fileobj)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()


@pytest.mark.bounds
@pytest.mark.parametrize("what", ["{}", '"x"'])
def test_heavy_frames_on_many_streams(daemon: Daemon, what: str) -> None:
    """Events of many values each, on all the streams that a guest has: whoever asks for something else is
    served within a second, where it was four."""
    sid, other = daemon.create(), daemon.create()
    head = '{"type":"notice","text":"x","y":['
    frame = head + ",".join([what] * ((65530 - len(head)) // (len(what) + 1))) + "]}"
    daemon.exec(sid, "#fake:set " + json.dumps({"command_raw": f"flood {EVENT} {frame.encode().hex()}"}))
    with contextmanager(attach)(daemon, sid, 57):
        wait_for(lambda: daemon.fds() > 57 * 2)
        with httpx.Client(base_url=daemon.url, timeout=5 if SANITIZED else 1) as c:
            assert all(c.get("/v1/healthz").text == "ok" for _ in range(20))
        assert daemon.exec(other, "echo x")[0]["data"] == "x"
        # Its end is one of many streams, and nobody waits for it either.
        with httpx.Client(base_url=daemon.url, timeout=5 if SANITIZED else 1) as c:
            assert c.delete(f"/v1/sandboxes/{sid}").status_code == 204


def test_output_while_a_client_writes(daemon: Daemon) -> None:
    """What a command writes is nothing to who writes to it, however much it is."""
    sid = daemon.create()
    daemon.exec(sid, "#fake:set " + json.dumps({"command_raw": f"flood {STDOUT} 78"}))
    fds = daemon.fds()
    with httpx.Client(base_url=daemon.url, timeout=1) as c:
        with pytest.raises(httpx.TimeoutException):
            c.post(f"/v1/sandboxes/{sid}/commands/any/stdin", content=b"y" * 100)
        served = sum(daemon.http.get("/v1/healthz").text == "ok" for _ in range(100))
    assert served == 100
    wait_for(lambda: daemon.fds() <= fds)


def test_a_client_that_left(daemon: Daemon) -> None:
    """Nobody reads the output any more, and the command is not to be stopped by that it is awaited."""
    sid = daemon.create()
    with running(daemon, sid, f"#fake:flood {EVENT_PART} 78", timeout=0):
        pass
    for _ in range(100):
        assert daemon.http.get("/v1/healthz").text == "ok"
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    wait_for(lambda: len(daemon.children()) == 1)


def test_a_file_of_empty_pieces(daemon: Daemon) -> None:
    sid = daemon.create()
    with pytest.raises(httpx.RemoteProtocolError):
        daemon.http.get(f"/v1/sandboxes/{sid}/files", params={"path": "/fake/flood"})
    assert daemon.exec(sid, "echo x")[0]["data"] == "x"


def test_a_list_of_empty_pieces(daemon: Daemon) -> None:
    sid = daemon.create()
    daemon.exec(sid, "#fake:set " + json.dumps({"file_raw": "flood"}))
    with pytest.raises(httpx.RemoteProtocolError):
        daemon.http.get(f"/v1/sandboxes/{sid}/files/list", params={"path": "/tmp"})
    assert daemon.exec(sid, "echo x")[0]["data"] == "x"
