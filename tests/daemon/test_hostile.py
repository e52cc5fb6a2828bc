"""Clients that mean ill, on raw sockets: others are served, nothing is lost, and nothing is left over."""

import collections
import json
import random
import re
import selectors
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import SANITIZED, Daemon, wait_for
from operations import ON_ONE, prepare, request_of
from spec import OPERATIONS
from wire import Wire

HEALTH = b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
UNKNOWN = "sbx_" + "0" * 32
# What may be answered to a request that is wrong in some way, or happens to be right.
DEFINED = {101, 200, 204, 206, 400, 403, 404, 405, 409, 413, 414, 416, 426, 429, 431, 501, 505}
TOKENS = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b" ",
    b"\t",
    b":",
    b"%",
    b"%00",
    b"%2e%2e/",
    b"//",
    b"?",
    b"#",
    b"\xff\xfe",
    "ü\u202e".encode(),
    b"{",
    b'"',
    b"\\u0000",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"HTTP/1.1",
    b"HTTP/0.9",
    b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 18446744073709551616\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"Upgrade: websocket\r\n",
    b"Range: bytes=5-1\r\n",
    b"X: " + b"y" * 3000 + b"\r\n",
    b"x" * 2000,
]


class Fleet:
    """A daemon with two sandboxes in which nothing is run that was sent, and all that must stay."""

    def __init__(self, start: Callable[..., Daemon], files: Path) -> None:
        self.files = files
        self.d = start(inert=files)
        self.ids = [self.d.create(), self.d.create()]
        prepare(self.d.http, self.ids[0], "/contexts/{context_id}")
        self.d.http.get("/v1/healthz")
        self.children = self.d.children()
        self.fds = self.d.fds()

    def check(self) -> None:
        """Alive, with the same sandboxes and no descriptor more than what idle streams may hold."""
        assert self.d.http.get("/v1/healthz").text == "ok"
        listed = [o["id"] for o in self.d.http.get("/v1/sandboxes").json()["sandboxes"]]
        for sid in listed:
            if sid not in self.ids:
                self.d.http.delete(f"/v1/sandboxes/{sid}").raise_for_status()
        assert [sid for sid in listed if sid in self.ids] == self.ids
        wait_for(lambda: set(self.d.children()) == set(self.children), 30)
        wait_for(lambda: self.d.fds() <= self.fds + 4 * len(self.ids), 30)
        for sid in self.ids:
            assert self.d.exec(sid, "")[-1]["data"] == 0


@pytest.fixture(scope="module")
def fleet(start_once: Callable[..., Daemon], tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """One for all."""
    return Fleet(start_once, tmp_path_factory.mktemp("files"))


def raw(method: str, target: str, what: dict, chunked: bool = False) -> bytes:
    """A request as bytes."""
    body = json.dumps(what["json"]).encode() if "json" in what else what.get("content")
    if "params" in what:
        target += "?" + urllib.parse.urlencode(what["params"])
    lines = [f"{method.upper()} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{k}: {v}" for k, v in what.get("headers", {}).items()]
    if body is not None and chunked:
        lines.append("Transfer-Encoding: chunked")
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    elif body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def seeds(fleet: Fleet) -> list[bytes]:
    """A valid request of each operation; those that would end a sandbox, or make one, are for none."""
    out = []
    for method, path in OPERATIONS:
        what = request_of(method, path, str(fleet.files))
        sid, other = fleet.ids
        if method == "delete" and path == ON_ONE or "merge" in path:
            sid = other = UNKNOWN
        if (method, path) == ("post", "/v1/sandboxes"):
            what = {"json": {"vcpus": 0, "template": "none"}}
        elif path.endswith("/fork"):
            what = {"json": {"n": 0}}
        target = path.replace("{id}", sid).replace("{other}", other)
        target = re.sub(r"\{\w+\}", "c", target)
        out.append(raw(method, target, what))
        if "json" in what:
            out.append(raw(method, target, what, chunked=True))
    return out


def mutated(rng: random.Random, all_seeds: list[bytes]) -> bytes:
    """A request with one to four things wrong."""
    data = bytearray(rng.choice(all_seeds))
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(8)
        end = min(len(data), at + rng.randint(1, 40))
        if kind == 0:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:end] = rng.choice(TOKENS)
        elif kind == 3:
            data[at:end] = rng.randbytes(end - at)
        elif kind == 4:
            data[at:at] = data[at:end] * rng.randint(1, 60)
        elif kind == 5:
            data = data[:at]
        elif kind == 6:
            data = data[:at] + rng.choice(all_seeds)[rng.randrange(40) :]
        elif at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        if not data:
            data = bytearray(b" ")
    return bytes(data)


def send_all(d: Daemon, requests: list[bytes]) -> Iterator[bytes]:
    """Each over a connection of its own, all at once; what came back until the daemon closed."""
    sel = selectors.DefaultSelector()
    answers: dict[socket.socket, bytes] = {}
    for data in requests:
        s = socket.create_connection(("127.0.0.1", d.port))
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was refused before it had come
        answers[s] = b""
        sel.register(s, selectors.EVENT_READ)
    end = time.monotonic() + 60
    while sel.get_map():
        assert time.monotonic() < end, [requests[list(answers).index(s.fileobj)] for s in sel.get_map().values()]
        for key, _ in sel.select(1):
            s = key.fileobj
            try:
                got = s.recv(65536)
            except ConnectionError:
                got = b""
            answers[s] += got[: 65536 - len(answers[s])]
            if not got:
                sel.unregister(s)
                s.close()
    yield from answers.values()


COUNT = 10_000


@pytest.mark.bounds
def test_malformed_requests(fleet: Fleet) -> None:
    """Ten thousand: each is answered as described, or with the end of its connection."""
    d = fleet.d
    rng = random.Random(20261127)
    all_seeds = seeds(fleet)
    for data in all_seeds:
        assert not data.startswith(b"DELETE /v1/sandboxes/" + fleet.ids[0].encode() + b" ")
    seen: collections.Counter[int] = collections.Counter()
    rss = 0
    for batch in range(COUNT // 50):
        requests = [mutated(rng, all_seeds) for _ in range(50)]
        for request, answer in zip(requests, send_all(d, requests)):
            statuses = [int(x) for x in re.findall(rb"(?:^|\n)HTTP/1\.1 (\d{3}) ", answer)]
            assert set(statuses) <= DEFINED | {100}, (request, answer)
            seen.update(statuses or [0])
        if batch == 40:
            rss = d.rss_kib()
    print(f"{COUNT} requests, first answers by status (0: closed without one): {dict(sorted(seen.items()))}")
    assert sum(seen[x] for x in (400, 404, 405)) > COUNT / 4
    fleet.check()
    # What the sanitizers hold back of freed memory is theirs: measured without them.
    grown = d.rss_kib() - rss
    print(f"{grown} KiB more")
    assert SANITIZED or grown < 1536


def read_all(s: socket.socket) -> bytes:
    """Until the daemon closes."""
    s.settimeout(60)
    out = b""
    try:
        while got := s.recv(65536):
            out += got
    except ConnectionError:
        pass
    s.close()
    return out


@pytest.mark.parametrize(
    "head,body",
    [
        (b"Transfer-Encoding : chunked\r\nContent-Length: %d\r\n", b"0\r\n\r\n"),
        (b"Content-Length: %d\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n"),
        (b"Content-Length: %d\r\nTransfer-Encoding:\tchunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: %d\r\nTransfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: %d\r\nTransfer-Encoding\r\n : chunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: %d\r\nX: y\rTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: %d\r\nX: y\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
        (b"Content-Length: %d\r\nContent-Length: 0\r\n", b""),
        (b"Content-Length: 0\r\nContent-Length: %d\r\n", b""),
        (b"Content-Length: %d\r\n 0\r\n", b""),
        (b"Content-Length: %d\r\n\tx\r\n", b""),
        (b"CONTENT-LENGTH: %d\r\n : x\r\n", b""),
        (b"X: %d\r\nTransfer-Encoding: chu\r\n nked\r\n", b""),
        (b"X: %d\r\nTransfer-Encoding:\r\n chunked\r\n", b"ffff\r\n"),
        (b"Content-Length: 0, %d\r\n", b""),
        (b"Content-Length: +%d\r\n", b""),
        (b"Content-Length: 0x0%d\r\n", b""),
        (b"Content-Length: %d \x00\r\n", b""),
        (b"X: %d\r\nTransfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
        (b"X: %d\r\nTransfer-Encoding: chunked\r\n", b"0x\r\n\r\n"),
        (b"X: %d\r\nTransfer-Encoding: chunked\r\n", b"-0\r\n\r\n"),
        (b"X: %d\r\nTransfer-Encoding: chunked\r\n", b"+0\r\n\r\n"),
        (b"X: %d\r\nTransfer-Encoding: chunked\r\n", b"0x0\r\n\r\n"),
        (b"X: %d\r\nTransfer-Encoding: chunked\r\n", b"\r\n0\r\n\r\n"),
        (b"X: %d\r\nTransfer-Encoding: chunked\r\n", b"10000000000000000\r\n"),
        (b"X: %d\r\nTransfer-Encoding: chunked\r\n", b"8000000000000000\r\n"),
        (b"X: %d\r\nTransfer-Encoding: chunked\r\n", b"2\r\n{}0\r\n\r\n"),
    ],
)
def test_no_request_hides_in_another(fleet: Fleet, head: bytes, body: bytes) -> None:
    """Where two readers could disagree about the end of a body, what follows it is not a request."""
    hidden = b"DELETE /v1/sandboxes/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % fleet.ids[1].encode()
    url = f"/v1/sandboxes/{fleet.ids[0]}/contexts/nope/restart".encode()
    length = len(body + hidden)
    with socket.create_connection(("127.0.0.1", fleet.d.port)) as s:
        s.sendall(b"POST " + url + b" HTTP/1.1\r\nHost: localhost\r\n")
        s.sendall((head % length if b"%d" in head else head) + b"\r\n" + body + hidden)
        s.shutdown(socket.SHUT_WR)
        answers = re.findall(rb"HTTP/1\.1 (\d{3}) ", read_all(s))
    # The library writes the head of its own answer to a bad length twice, and closes.
    assert len(answers) <= 1 or set(answers) == {b"400"}
    assert set(answers) <= {b"400", b"404", b"413", b"501"}
    assert fleet.d.http.get(f"/v1/sandboxes/{fleet.ids[1]}").json()["state"] == "ready"


def test_pipelines(fleet: Fleet) -> None:
    """Three hundred requests at once, good and bad: answered in their order."""
    one = f"/v1/sandboxes/{fleet.ids[0]}".encode()
    bad = b"POST %s/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{]" % one
    get = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % one
    with socket.create_connection(("127.0.0.1", fleet.d.port)) as s:
        s.sendall((HEALTH + bad + get) * 100)
        s.shutdown(socket.SHUT_WR)
        assert re.findall(rb"HTTP/1\.1 (\d{3}) ", read_all(s)) == [b"200", b"400", b"200"] * 100


@pytest.mark.bounds
def test_bombs_of_headers(fleet: Fleet) -> None:
    """A hundred heads of a MiB, in one header, in many, in a chunk's extension, in trailers."""
    post = b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    bombs = [  # those whose size of a chunk never ends are in the test after this one
        b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * (1 << 20),
        b"GET /v1/healthz HTTP/1.1\r\n" + b"X: y\r\n" * (1 << 18),
        b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"a=b; " * 200_000,
        b"GET /" + b"a/" * (1 << 19),
        b"G" * (1 << 20),
        post + b"0\r\n" + b"T: x\r\n" * (1 << 18),
    ]
    rss = []
    for _ in range(3):  # the first time makes what is kept for the next ones
        for answer in send_all(fleet.d, bombs * 12):
            assert not answer or re.match(rb"HTTP/1\.1 (400|413|414|431) ", answer), answer[:80]
        fleet.check()
        rss.append(fleet.d.rss_kib())
    print(f"KiB: {rss}")
    assert SANITIZED or rss[-1] - rss[0] < 1 << 10


@pytest.mark.bounds
@pytest.mark.parametrize("key", ["known", "stranger"])
def test_a_chunks_size_that_never_ends(start: Callable[..., Daemon], key: str) -> None:
    """The library spins on it. It gets little of the processor, and its time is limited."""
    d = start(env={"PODFLARE_HTTP_TIMEOUT": "5", "PODFLARE_API_KEYS": "known"})
    fds = d.fds()
    head = b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n"
    post = head % key.encode() + b"Transfer-Encoding: chunked\r\n\r\n"
    socks = []
    for tail in (b"2;" + b"x" * (1 << 20), b"0" * (1 << 20) + b"2\r\n{]\r\n", b"2;" + b"x" * 15_000) * 4:
        socks.append(socket.create_connection(("127.0.0.1", d.port)))
        socks[-1].sendall(post + tail)
    time.sleep(0.5)
    ticks = d.cpu_ticks()
    for _ in range(10):
        assert d.http.get("/v1/healthz").text == "ok"
        time.sleep(0.1)
    assert d.cpu_ticks() - ticks < (60 if SANITIZED else 30)
    for s in socks:
        answers = re.findall(rb"HTTP/1\.1 (\d{3}) ", read_all(s))
        assert answers in ([], [b"400"], [b"401"], [b"413"], [b"431"])
    wait_for(lambda: d.fds() <= fds + 1)


def test_slow_clients(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """
    A byte now and then: the head, and a body that is only dropped, must come within a time. A body
    that is wanted may take longer, and the content of a file any time.
    """
    d = start(inert=tmp_path, env={"PODFLARE_HTTP_TIMEOUT": "2", "PODFLARE_API_KEYS": "k"})
    d.http.headers["authorization"] = "Bearer k"
    sid = d.create()
    fds = d.fds()
    key = b"Host: localhost\r\nAuthorization: Bearer k\r\n"
    one = f"/v1/sandboxes/{sid}".encode()
    slow = [HEALTH.replace(b"\r\n\r\n", b"\r\nX: " + b"y" * 9000)] * 40
    slow += [b"POST %s/exec HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" % one + b"z" * 9000] * 20
    slow += [HEALTH + b"\r\n" * 9000, HEALTH * 3 + b"G" * 9000]
    wanted = [
        b"POST %s/exec HTTP/1.1\r\n%sContent-Length: 2000\r\n\r\n" % (one, key) + b"{" * 2000,
        b"PUT %s/files?path=%s/f HTTP/1.1\r\n%sContent-Length: 2000\r\n\r\n" % (one, str(tmp_path).encode(), key)
        + b"x" * 2000,
    ]
    socks = {socket.create_connection(("127.0.0.1", d.port)): [data, 0] for data in slow + wanted}
    patient = list(socks)[-len(wanted) :]
    for s, state in socks.items():
        # All but the last bytes of what is read at once, so that what follows comes slowly.
        state[1] = max(state[0].find(b"\r\n\r\n"), 20)
        s.sendall(state[0][: state[1]])
    served = 0

    def closed() -> bool:
        nonlocal served
        for s in list(socks):
            try:
                s.sendall(socks[s][0][socks[s][1] : socks[s][1] + 1])
                socks[s][1] += 1
                s.setblocking(False)
                gone = s.recv(65536) == b""
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                assert s not in patient, "it was cut although what it sends is wanted"
                del socks[s]
                s.close()
                continue
            s.setblocking(True)
        assert d.http.get("/v1/healthz").text == "ok"
        served += 1
        time.sleep(0.02)
        return list(socks) == patient

    wait_for(closed, 60)
    assert served > 10, "others were served meanwhile"
    for s in patient:
        s.sendall(socks[s][0][socks[s][1] :])
        s.settimeout(60)
    assert [s.recv(12) for s in patient] == [b"HTTP/1.1 400", b"HTTP/1.1 200"]
    for s in patient:
        s.close()
    assert (tmp_path / "f").read_bytes() == b"x" * 2000
    wait_for(lambda: d.fds() <= fds + 4)


def test_half_closed_before_anything(fleet: Fleet) -> None:
    """Connections whose clients never say anything, and have said that they will not."""
    for how in (socket.SHUT_WR, socket.SHUT_RDWR):
        socks = [socket.create_connection(("127.0.0.1", fleet.d.port)) for _ in range(100)]
        for i, s in enumerate(socks):
            s.sendall(HEALTH[: i % len(HEALTH)])
            s.shutdown(how)
        for s in socks:
            read_all(s)
    fleet.check()


def test_reset_in_the_middle(fleet: Fleet) -> None:
    """Clients that are gone with a reset while they are answered."""
    one = f"/v1/sandboxes/{fleet.ids[0]}".encode()
    data = [HEALTH * 50, b"GET %s/console HTTP/1.1\r\nHost: x\r\n\r\n" % one * 20]
    data += [b"POST %s/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: 12\r\n\r\n" % one + b'{"code": ""}']
    for i in range(90):
        s = socket.create_connection(("127.0.0.1", fleet.d.port))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        s.sendall(data[i % 3])
        s.close()
    fleet.check()


def test_strangers_take_no_place_for_long(start: Callable[..., Daemon]) -> None:
    """
    More silent connections than there are places: who has a key comes in all the same and keeps the
    connections that he has; of the silent ones those go that were there first.
    """
    d = start(
        prefix=["prlimit", "--nofile=1024"],
        args=["--max-sandboxes", "2"],
        env={"PODFLARE_API_KEYS": "k"},
    )
    places = 1024 // 8
    key = {"Authorization": "Bearer k"}
    known = [Wire(d.port) for _ in range(places // 4)]
    for w in known:
        assert w.ask("GET", "/v1/sandboxes", headers=key).status_code == 200
    silent = []
    for _ in range(3 * places):
        silent.append(socket.create_connection(("127.0.0.1", d.port)))
        if len(silent) % 3 == 0:  # some have said something, and are nobody's all the same
            silent[-1].sendall(HEALTH)
        if len(silent) % 8 == 0:
            w = Wire(d.port)
            assert w.ask("GET", "/v1/sandboxes", headers=key).status_code == 200
            w.close()
    for w in known:
        assert w.ask("GET", "/v1/sandboxes", headers=key).status_code == 200
        assert w.opened == 1, "it was cut, although it was let in"
        w.close()

    def ended(s: socket.socket) -> bool:
        s.setblocking(False)
        try:
            while s.recv(65536):
                pass
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    left = places // 2
    wait_for(lambda: all(ended(s) for s in silent[:-left]), 30)
    assert not any(ended(s) for s in silent[1 - left :])
    for s in silent:
        s.close()
    wait_for(lambda: d.fds() < 60, 30)


def test_room_for_who_is_let_in(start: Callable[..., Daemon]) -> None:
    """Who was let in may have all places, and then there is none: that is said, and nobody is cut."""
    d = start(prefix=["prlimit", "--nofile=1024"], args=["--max-sandboxes", "2"])
    d.http.close()
    wires = [Wire(d.port) for _ in range(1024 // 8)]
    for w in wires:
        assert w.ask("GET", "/v1/sandboxes").status_code == 200
    with socket.create_connection(("127.0.0.1", d.port)) as one_more:
        assert one_more.recv(65536).startswith(b"HTTP/1.1 503 ")
    for w in wires:
        assert w.ask("GET", "/v1/sandboxes").status_code == 200 and w.opened == 1
    for w in wires:
        w.close()
    wait_for(lambda: d.fds() < 60)
    assert Wire(d.port).ask("GET", "/v1/sandboxes").status_code == 200


def ask_as(w: Wire, key: str, path: str = "/v1/sandboxes") -> int:
    """The status of a request with this key."""
    return w.ask("GET", path, headers={"Authorization": f"Bearer {key}"}).status_code


def begin_as(port: int, key: str) -> socket.socket:
    """A connection on which a create has begun: two bytes of its body are to come."""
    s = socket.create_connection(("127.0.0.1", port), timeout=60)
    s.sendall(
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        + f"Authorization: Bearer {key}\r\n\r\n".encode()
    )
    return s


def test_one_key_leaves_others_connections(start: Callable[..., Daemon]) -> None:
    """
    However many a key opens, and keeps by asking what anybody may ask: others come in. It loses those
    of its own that have had nothing to do for the longest, and none that has.
    """
    d = start(
        prefix=["prlimit", "--nofile=1024"],
        args=["--max-sandboxes", "2"],
        env={"PODFLARE_API_KEYS": "a,b,c"},
    )
    d.http.close()
    half = 1024 // 8 // 2
    busy = begin_as(d.port, "a")
    wires = [Wire(d.port) for _ in range(3 * half)]
    for w in wires:
        assert ask_as(w, "a") == 200
    for w in wires[1 - half :]:
        assert w.ask("GET", "/v1/healthz").status_code == 200 and w.opened == 1
    other = [Wire(d.port) for _ in range(2 * half)]
    for w in other:
        assert ask_as(w, "b") == 200
    # Both have what they may, and there is no place: the third key finds one all the same.
    third = Wire(d.port)
    assert ask_as(third, "c") == 200
    busy.sendall(b"{}")
    assert busy.recv(65536).startswith(b"HTTP/1.1 200 ")
    busy.close()
    for w in (third, *wires, *other):
        w.close()
    wait_for(lambda: d.fds() < 60, 30)


def test_a_key_that_is_busy_on_all_its_connections(start: Callable[..., Daemon]) -> None:
    """Another request of it is refused, in words; those of others are not, on whatever connection."""
    d = start(
        prefix=["prlimit", "--nofile=1024"],
        args=["--max-sandboxes", "2"],
        env={"PODFLARE_API_KEYS": "a,b"},
    )
    d.http.close()
    both, more = Wire(d.port), Wire(d.port)
    assert ask_as(both, "b") == 200
    busy = [begin_as(d.port, "a") for _ in range(1024 // 8 // 2)]
    wait_for(lambda: ask_as(more, "a") == 503)
    r = more.ask("GET", "/v1/sandboxes", headers={"Authorization": "Bearer a"})
    assert r.json()["code"] == "overloaded" and "half of all connections" in r.json()["error"]
    assert ask_as(more, "b") == 200 and ask_as(both, "a") == 503 and ask_as(both, "b") == 200
    busy.pop().close()
    wait_for(lambda: ask_as(both, "a") == 200)
    for w in (both, more, *busy):
        w.close()
    wait_for(lambda: d.fds() < 60, 30)


def flood(d: Daemon, request: bytes, status: bytes, n: int) -> None:
    """So many requests, some in one packet; all are answered with that."""
    for at in range(0, n, 50):
        with socket.create_connection(("127.0.0.1", d.port), timeout=60) as s:
            s.sendall(request * 49 + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            got = b""
            while part := s.recv(1 << 20):
                got += part
        assert got.count(b"HTTP/1.1 " + status) == 50, at


def log_lines(d: Daemon) -> tuple[int, list[tuple[int, str]]]:
    """Lines of requests, and who made how many more."""
    text = d.log_text()
    more = re.findall(r"http_requests beyond what is logged one by one count=(\d+) of=(\w+)", text)
    return text.count("INFO http_request "), [(int(n), of) for n, of in more]


def test_the_log_of_who_is_not_let_in(start: Callable[..., Daemon]) -> None:
    """Some lines, and the number of the others; who has a key still has his, each of them."""
    d = start(env={"PODFLARE_API_KEYS": "k"})
    began = time.monotonic()
    flood(d, HEALTH, b"200", 2000)
    d.http.headers["Authorization"] = "Bearer k"
    for _ in range(200):
        assert d.http.get("/v1/sandboxes").status_code == 200
    assert d.log_text().count("path=/v1/sandboxes status=200") == 200
    wait_for(lambda: log_lines(d)[1])
    wait_for(lambda: log_lines(d)[0] - 200 + sum(n for n, _ in log_lines(d)[1]) == 2000)
    seconds = time.monotonic() - began
    lines, more = log_lines(d)
    assert lines - 200 <= 100 + 10 * (seconds + 1) and {of for _, of in more} == {"strangers"}


def test_the_log_of_one_key(start: Callable[..., Daemon]) -> None:
    """Much more, but not without a bound; those of another key are all there."""
    d = start(env={"PODFLARE_API_KEYS": "a,b"})
    began = time.monotonic()
    flood(d, b"GET /v1/tree HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\r\n\r\n", b"200", 9000)
    d.http.headers["Authorization"] = "Bearer b"
    for _ in range(100):
        assert d.http.get("/v1/sandboxes").status_code == 200
    seconds = time.monotonic() - began
    assert d.log_text().count("path=/v1/sandboxes status=200") == 100
    assert d.stop() == 0, "what was not told yet is told at the end"
    lines, more = log_lines(d)
    assert lines + sum(n for n, _ in more) == 9100
    assert lines - 100 <= 5000 + 200 * (seconds + 1)
    assert more and {len(of) for _, of in more} == {32}
