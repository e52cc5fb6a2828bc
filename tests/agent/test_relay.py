# SPDX-License-Identifier: Apache-2.0
"""The relay: carries connections of the loopback to the host, whatever the two ends do."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest
from agent_client import FREEZE, THAW
from conftest import ROOT, switches, wait_for
from egress_host import EgressAgent, is_cut, is_refused, is_reset
from processes import state
from test_bash import needs_cgroups

CONNS, WAITING = 60, 256  # src/agent/relay.h
HELD = 65536


@pytest.fixture(scope="module")
def egress() -> Iterator[EgressAgent]:
    """An agent whose egress is on."""
    a = EgressAgent()
    assert a.egress(True) == {}
    yield a
    a.stop()


@pytest.fixture(autouse=True)
def idle(egress: EgressAgent) -> Iterator[None]:
    """Each test leaves no connection."""
    yield
    for sock in egress.clients:
        sock.close()
    egress.clients.clear()
    if egress.listener is None:
        egress.open_host()
    wait_for(lambda: sockets(egress.relay()) == 2, "the relay to be idle")


def sockets(pid: int) -> int:
    """Its open sockets: two that listen, two for each connection, one for one that waits."""
    count = 0
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            count += os.readlink(entry.path).startswith("socket:")
        except OSError:
            pass
    return count


def memory_kib(pid: int) -> int:
    """What it has for itself."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1])
    raise AssertionError(pid)


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fill(sock: socket.socket) -> int:
    """Sends until nothing goes any more: how much."""
    sent = 0
    sock.settimeout(0.5)
    try:
        while True:
            sent += sock.send(b"x" * 65536)
    except TimeoutError:
        return sent


# --- bytes


@pytest.mark.parametrize("port", [0, 1])
def test_both_ways(egress: EgressAgent, port: int) -> None:
    client, host = egress.pair(port)
    client.sendall(b"\x05\x01\x00")
    assert host.recv(10) == b"\x05\x01\x00"
    host.sendall(b"\x05\x00")
    assert client.recv(10) == b"\x05\x00"


def test_half_close_of_the_client(egress: EgressAgent) -> None:
    client, host = egress.pair()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)
    assert host.recv(100) == b"question" and host.recv(100) == b""
    host.sendall(b"answer")
    assert client.recv(100) == b"answer"
    host.close()
    assert client.recv(100) == b""


def test_half_close_of_the_host(egress: EgressAgent) -> None:
    client, host = egress.pair()
    host.sendall(b"first")
    host.shutdown(socket.SHUT_WR)
    assert client.recv(100) == b"first" and client.recv(100) == b""
    client.sendall(b"more")
    assert host.recv(100) == b"more"
    client.close()
    assert host.recv(100) == b""


def test_half_close_at_once(egress: EgressAgent) -> None:
    """Before the connection to the host is there."""
    client = egress.connect()
    client.sendall(b"all")
    client.shutdown(socket.SHUT_WR)
    host = egress.accept()
    assert host.recv(100) == b"all" and host.recv(100) == b""


@pytest.mark.parametrize("seed", range(4))
def test_large_and_exact(egress: EgressAgent, seed: int) -> None:
    """Both ways at the same time, in pieces of all sizes, with pauses at both ends."""
    client, host = egress.pair()
    sizes = {client: 12_000_000, host: 9_000_000}
    sums: dict[tuple[str, socket.socket], str] = {}

    def send(sock: socket.socket) -> None:
        rng, total, left = random.Random(seed), hashlib.sha256(), sizes[sock]
        while left:
            piece = rng.randbytes(min(left, rng.choice((1, 1000, 65536, 300_000))))
            sock.sendall(piece)
            total.update(piece)
            left -= len(piece)
        sock.shutdown(socket.SHUT_WR)
        sums["sent", sock] = total.hexdigest()

    def receive(sock: socket.socket) -> None:
        rng, total, got = random.Random(seed + 1), hashlib.sha256(), 0
        while piece := sock.recv(rng.choice((100, 4096, 200_000))):
            total.update(piece)
            got += len(piece)
            if got % 50 == 0:
                time.sleep(0.002)
        sums["got", sock] = total.hexdigest()

    threads = [threading.Thread(target=f, args=(s,)) for f in (send, receive) for s in sizes]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert sums["got", host] == sums["sent", client]
    assert sums["got", client] == sums["sent", host]


def test_one_way_waits_alone(egress: EgressAgent) -> None:
    """Nobody reads one way: it stops; the other goes on; nothing is lost."""
    client, host = egress.pair()
    sent = fill(client)
    for _ in range(50):
        host.sendall(b"y" * 10_000)
    client.settimeout(20)
    got = 0
    while got < 500_000:
        got += len(client.recv(65536))
    host.settimeout(20)
    while sent:
        sent -= len(host.recv(65536))
    assert sent == 0


def test_memory_is_bounded(egress: EgressAgent) -> None:
    """All connections full in both directions; idle again it has given it back."""
    pid = egress.relay()
    before = memory_kib(pid)
    pairs = [egress.pair() for _ in range(CONNS)]
    assert memory_kib(pid) - before < 200  # idle ones cost no buffer
    left = {sock for pair in pairs for sock in pair}
    for sock in left:
        sock.setblocking(False)
    for _ in range(5):  # each time until it is full, and again when the relay had its turn
        for sock in left:
            try:
                while True:
                    sock.send(b"x" * 65536)
            except BlockingIOError:
                pass
        time.sleep(0.1)
    assert memory_kib(pid) - before > 500
    assert memory_kib(pid) - before < 2 * CONNS * HELD // 1024 + 2048
    assert sockets(pid) == 2 + 2 * CONNS


# --- ends that are none


def test_client_resets(egress: EgressAgent) -> None:
    client, host = egress.pair()
    client.sendall(b"x")
    assert host.recv(1) == b"x"
    reset(client)
    assert host.recv(1) == b""
    wait_for(lambda: sockets(egress.relay()) == 2, "the end of it")


def test_host_resets(egress: EgressAgent) -> None:
    """(A UNIX socket with bytes that nobody has read resets.) The client is not told of an end."""
    client, host = egress.pair()
    client.sendall(b"unread")
    wait_for(lambda: host.recv(1, socket.MSG_PEEK) == b"u", "the bytes")
    host.sendall(b"some")
    assert client.recv(10) == b"some"
    host.close()
    assert is_reset(client)


def test_host_refuses(egress: EgressAgent) -> None:
    egress.close_host()
    assert is_cut(egress.ports[0]) and is_cut(egress.ports[1])
    egress.open_host()
    assert egress.pair()


def test_answer_of_a_host_that_does_not_listen(egress: EgressAgent) -> None:
    """It answers in the middle of a request, takes no more, and goes: the client gets the answer."""
    client, host = egress.pair()
    client.sendall(b"POST")
    assert host.recv(10) == b"POST"
    host.shutdown(socket.SHUT_RD)
    for _ in range(20):
        client.sendall(b"x" * 65536)
    host.sendall(b"403" * 100_000)
    host.close()
    got = b""
    while len(got) < 300_000:
        got += client.recv(65536)
    assert got == b"403" * 100_000


def test_idle_client_of_a_host_that_has_gone(egress: EgressAgent) -> None:
    """Programs keep connections for later, and do not look at them: they must take no place."""
    pairs = [egress.pair() for _ in range(CONNS)]
    for _, host in pairs[: CONNS // 2]:
        host.close()
    for _, host in pairs[CONNS // 2 :]:
        host.shutdown(socket.SHUT_WR)
        time.sleep(0.001)
        host.shutdown(socket.SHUT_RD)
    wait_for(lambda: sockets(egress.relay()) == 2, "free places")
    assert all(client.recv(1) == b"" for client, _ in pairs)


def test_no_spinning(egress: EgressAgent) -> None:
    """Half-closed, hung up and full in all ways: it sleeps."""
    pid = egress.relay()
    for client_ends in (False, True):
        for full in (False, True):
            client, host = egress.pair()
            if full:
                fill(host)
            if client_ends:
                client.shutdown(socket.SHUT_WR)
            else:
                host.shutdown(socket.SHUT_WR)
    client, host = egress.pair()
    fill(client)
    client.shutdown(socket.SHUT_WR)
    host.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    spent = cpu_ticks(pid)
    slept = switches(pid)
    time.sleep(1)
    assert cpu_ticks(pid) - spent <= 1 and switches(pid) - slept <= 1


def cpu_ticks(pid: int) -> int:
    """Time on a processor so far, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# --- too many


def test_more_than_it_carries(egress: EgressAgent) -> None:
    """They wait, and come in when there is room, in their order."""
    pairs = [egress.pair() for _ in range(CONNS)]
    waiting = [egress.connect(i % 2) for i in range(20)]
    for i, sock in enumerate(waiting):
        sock.sendall(b"%d" % i)
    assert egress.listener is not None
    egress.listener.settimeout(0.3)
    with pytest.raises(TimeoutError):
        egress.accept()
    egress.listener.settimeout(20)
    for sock in waiting[1::2]:  # those that leave do not come in
        reset(sock)
    for i, (client, host) in enumerate(pairs[:10]):
        host.close()
        client.close()
        assert egress.accept().recv(10) == b"%d" % (2 * i)


def test_far_too_many(egress: EgressAgent) -> None:
    """All are told at once, or after a while."""
    pairs = [egress.pair() for _ in range(CONNS)]
    waiting = [egress.connect(i % 2) for i in range(WAITING)]
    wait_for(lambda: sockets(egress.relay()) == 2 + 2 * CONNS + WAITING, "those that wait")
    assert all(is_cut(egress.ports[i % 2]) for i in range(100))
    assert all(is_reset(sock) for sock in waiting)
    for client, host in pairs:
        client.sendall(b"still")
        assert host.recv(10) == b"still"


def test_flood(egress: EgressAgent) -> None:
    """Connections that come and go as fast as they can; others are served meanwhile."""
    client, host = egress.pair()
    stop = threading.Event()
    refused = []

    def flood() -> None:
        while not stop.is_set():
            try:
                sock = socket.create_connection(("127.0.0.1", egress.ports[0]), timeout=20)
                reset(sock)
            except ConnectionResetError:
                pass  # the host could not take it
            except OSError as error:
                refused.append(error)

    def drain() -> None:
        assert egress.listener is not None
        while not stop.is_set():
            try:
                egress.listener.accept()[0].close()
            except TimeoutError:
                pass

    assert egress.listener is not None
    egress.listener.settimeout(0.1)
    threads = [threading.Thread(target=f) for f in (flood, flood, drain)]
    for t in threads:
        t.start()
    for i in range(200):
        client.sendall(b"%04d" % i)
        assert host.recv(4, socket.MSG_WAITALL) == b"%04d" % i
    stop.set()
    for t in threads:
        t.join(30)
    while True:
        try:
            egress.listener.accept()[0].close()
        except TimeoutError:
            break
    egress.listener.settimeout(20)
    assert not refused


# --- the process


@pytest.mark.skipif(not ROOT, reason="the agent is not root")
def test_who_it_is(egress: EgressAgent) -> None:
    status = Path(f"/proc/{egress.relay()}/status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert lines["Uid"].split() == lines["Gid"].split() == ["65432"] * 4
    assert lines["Groups"].split() == []
    assert int(lines["CapEff"], 16) == int(lines["CapPrm"], 16) == 0
    assert lines["NoNewPrivs"] == "1"


@needs_cgroups
def test_its_group(egress: EgressAgent) -> None:
    assert any(g.name.startswith("relay-") for g in egress.groups())
    group = Path(f"/proc/{egress.relay()}/cgroup").read_text().strip().rpartition("/")[2]
    assert group.startswith("relay-")


def test_it_has_nothing_of_the_agents(egress: EgressAgent) -> None:
    fds = {int(fd) for fd in os.listdir(f"/proc/{egress.relay()}/fd")}
    assert fds == {0, 1, 2, 3, 4, 5}  # epoll and its eventfd
    assert Path(f"/proc/{egress.relay()}/environ").read_bytes() == b""


@pytest.mark.skipif(not ROOT, reason="the agent is not root")
def test_the_user_cannot_end_it(egress: EgressAgent) -> None:
    pid = egress.relay()
    with egress.stream() as s:
        r = s.bash(f"kill -9 {pid}; kill -STOP {pid}; kill -9 -1; echo here")
        assert b"not permitted" in r.stderr or r.exit is not None
    with egress.stream() as s:
        assert s.python("import os; os.kill(-1, 9)").exit is not None
    assert egress.relay() == pid and egress.pair()


def test_killed(egress: EgressAgent) -> None:
    """By root: its connections are reset, another one is there soon."""
    client, host = egress.pair()
    os.kill(egress.relay(), signal.SIGKILL)
    assert is_reset(client)
    assert host.recv(1) == b""
    wait_for(lambda: not is_refused(egress.ports[0]), "another relay")
    egress.accept().close()
    assert egress.pair(1)


def test_killed_again_and_again(egress: EgressAgent) -> None:
    """The ports are closed while it does not live: nobody waits in front of them."""
    pid = egress.relay()
    time.sleep(1.1)
    for _ in range(3):
        pid = egress.relay()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: state(pid) in "ZX", "its end")
    wait_for(lambda: is_refused(egress.ports[0]) and is_refused(egress.ports[1]), "closed ports")
    wait_for(lambda: not is_refused(egress.ports[0]), "another relay", 30)
    egress.accept().close()


# --- FREEZE


@needs_cgroups
def test_frozen(egress: EgressAgent) -> None:
    """It stands still; then all goes on with the next byte, what waited in the queue included."""
    client, host = egress.pair()
    with egress.stream() as s:
        assert "groups" in s.ask(FREEZE)
        client.sendall(b"while frozen")
        host.sendall(b"back")
        late = egress.connect()
        late.sendall(b"late")
        host.settimeout(0.3)
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            host.recv(1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert egress.egress(True)["code"] == egress.egress(False)["code"] == "busy"
        assert s.ask(THAW) == {}
    host.settimeout(20)
    client.settimeout(20)
    assert host.recv(100) == b"while frozen" and client.recv(100) == b"back"
    assert egress.accept().recv(100) == b"late"


@needs_cgroups
def test_frozen_in_the_middle(egress: EgressAgent) -> None:
    """Again and again while much is carried."""
    client, host = egress.pair()
    data = random.Random(1).randbytes(40_000_000)
    got = hashlib.sha256()

    def send() -> None:
        host.sendall(data)
        host.shutdown(socket.SHUT_WR)

    def receive() -> None:
        while piece := client.recv(100_000):
            got.update(piece)

    threads = [threading.Thread(target=f) for f in (send, receive)]
    for t in threads:
        t.start()
    with egress.stream() as s:
        for _ in range(20):
            assert "groups" in s.ask(FREEZE)
            assert s.ask(THAW) == {}
            time.sleep(0.005)
    for t in threads:
        t.join(60)
    assert got.hexdigest() == hashlib.sha256(data).hexdigest()
