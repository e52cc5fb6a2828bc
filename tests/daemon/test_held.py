"""What the daemon holds for clients and guests has a bound in sum, of a sandbox and of all."""

import http.client
import json
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from conftest import SANITIZED, Daemon, all_read, wait_for
from execs import running

MIB = 1 << 20
KEYS = ("pk_ann_1f0c", "pk_bob_77e2")


@contextmanager
def busy(d: Daemon, sid: str, tmp: Path) -> Iterator[None]:
    """The sandbox's context runs something as long as this lasts."""
    body = {"code": f"while ! test -e {tmp}/go; do sleep 0.02; done", "language": "bash"}
    with httpx.Client(base_url=d.url, timeout=60) as c:
        with c.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body):
            try:
                yield
            finally:
                (tmp / "go").touch()


def waiting(d: Daemon, sid: str) -> int:
    """Commands that wait for their turn."""
    execs = d.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"]
    return len([e for e in execs if e["state"] == "queued"])


@pytest.mark.parametrize("member", ["code", "stdin", "stdin_base64"])
def test_code_that_waits(daemon: Daemon, tmp_path: Path, member: str) -> None:
    """64 MiB of it in one sandbox: 16 of nearly 4 MiB, and of another sandbox as much again."""
    sid, other = daemon.create(), daemon.create()
    text = "A" * (4 * MIB - 4096) if member != "code" else "#" + "x" * (4 * MIB - 4096)
    n = 20 if member != "stdin_base64" else 27
    body = {"code": "true", "language": "bash", member: text}

    def one(_: int) -> httpx.Response:
        return httpx.post(f"{daemon.url}/v1/sandboxes/{sid}/exec", json=body, timeout=120)

    with ThreadPoolExecutor(n) as pool:
        with busy(daemon, sid, tmp_path):
            calls = [pool.submit(one, i) for i in range(n)]
            wait_for(lambda: sum(c.done() for c in calls) + waiting(daemon, sid) == n, 120)
            refused = [c.result() for c in calls if c.done()]
            assert daemon.exec(other, "echo", **({member: text} if member != "code" else {}))
        answers = [c.result() for c in calls]
    assert {r.status_code for r in refused} == {429} and len(refused) == n - (16 if n == 20 else 21)
    assert refused[0].json()["code"] == "too_many_requests"
    assert "64 MiB" in refused[0].json()["error"]
    assert sorted(r.status_code for r in answers) == [200] * (n - len(refused)) + [429] * len(refused)
    # All of it was given back.
    (tmp_path / "go").unlink()
    with ThreadPoolExecutor(16) as pool, busy(daemon, sid, tmp_path):
        calls = [pool.submit(one, i) for i in range(16)]
        wait_for(lambda: waiting(daemon, sid) == 16, 120)


def test_code_of_kept_commands_that_waits(start: Callable[..., Daemon]) -> None:
    """As that of others: 16 of nearly 4 MiB in a sandbox, and an exec of it has no room either."""
    d = start(env={"PODFLARE_FREEZE_TIMEOUT": "600", "PODFLARE_REQUESTS_MIB": "176"})
    other = d.create()
    body = {"code": "#" + "x" * (4 * MIB - 4096) + "\necho x", "language": "bash"}

    def command(sid: str) -> httpx.Response:
        return httpx.post(f"{d.url}/v1/sandboxes/{sid}/commands", json=body, timeout=120)

    for _ in range(3):  # and all of it is given back
        sid = d.create()
        d.exec(sid, "#fake:once freeze mute")
        with ExitStack() as stack:
            frozen = stack.enter_context(socket.create_connection(("127.0.0.1", d.port)))
            head = f"POST /v1/sandboxes/{sid}/fork HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
            frozen.sendall(head.encode())
            all_read(d)
            pool = stack.enter_context(ThreadPoolExecutor(20))
            calls = [pool.submit(command, sid) for _ in range(20)]
            wait_for(lambda: sum(c.done() for c in calls) == 4, 120)  # noqa: B023
            refused = [c.result() for c in calls if c.done()]
            assert {r.status_code for r in refused} == {429} and "64 MiB" in refused[0].json()["error"]
            r = d.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
            assert r.status_code == 429 and r.json()["code"] == "too_many_requests"
            # What is small goes on, and another sandbox has its own.
            assert d.exec(other, body["code"])[0]["data"] == "x"
            assert d.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
            assert sorted(c.result().status_code for c in calls) == [409] * 16 + [429] * 4
    for _ in range(20):
        assert command(other).status_code == 200
    assert d.exec(other, body["code"])[0]["data"] == "x"


def half_a_body(d: Daemon, sid: str, n: int, key: str = "") -> socket.socket:
    """A connection that has sent so many bytes of a body of 4 MiB."""
    s = socket.create_connection(("127.0.0.1", d.port))
    more = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST /v1/sandboxes/{sid}/exec HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {4 * MIB}\r\n\r\n"
    s.sendall(head.encode() + b"x" * n)
    return s


def most_kib(d: Daemon) -> int:
    """Resident memory, at its most."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{d.proc.pid}/status").read_text())[1])


def overloaded(r: httpx.Response) -> bool:
    """That is what it says."""
    if r.status_code != 503:
        return False
    assert r.json()["code"] == "overloaded" and "PODFLARE_REQUESTS_MIB" in r.json()["hint"]
    return True


def test_bodies_that_do_not_end(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_REQUESTS_MIB": "16"})
    sid = d.create()
    large = {"code": "#" + "x" * (2 * MIB), "language": "bash"}
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(half_a_body(d, sid, 4 * MIB - 300_000))
        all_read(d)
        wait_for(lambda: overloaded(d.http.post(f"/v1/sandboxes/{sid}/exec", json=large)), 60)
        # What is small goes on.
        assert d.exec(sid, "echo x")[0]["data"] == "x"
        assert d.http.get("/v1/sandboxes").status_code == 200
    # They have left.
    wait_for(lambda: d.http.post(f"/v1/sandboxes/{sid}/exec", json=large).status_code == 200, 60)


def test_one_key_leaves_others_half(start: Callable[..., Daemon]) -> None:
    """It may have as many sandboxes as it likes."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "16", "PODFLARE_API_KEYS": ",".join(KEYS)})
    one, other = ({"Authorization": f"Bearer {k}"} for k in KEYS)
    ids = [d.http.post("/v1/sandboxes", headers=h).json()["id"] for h in (one, one, other)]
    large = {"code": "#" + "x" * (2 * MIB), "language": "bash"}
    small = {"code": "#" + "x" * 60_000 + "\necho x", "language": "bash"}

    def run(sid: str, body: dict, who: dict) -> httpx.Response:
        return d.http.post(f"/v1/sandboxes/{sid}/exec", json=body, headers=who)

    with ExitStack() as stack:
        for i in range(4):
            stack.enter_context(half_a_body(d, ids[i % 2], 4 * MIB - 300_000, KEYS[0]))
        all_read(d)
        for sid in ids[:2]:
            wait_for(lambda: overloaded(run(sid, large, one)), 60)  # noqa: B023
        # What is small goes on, and another's all the same.
        assert run(ids[0], small, one).status_code == 200
        for _ in range(3):
            assert run(ids[2], large, other).status_code == 200
    wait_for(lambda: run(ids[0], large, one).status_code == 200, 60)


def test_small_ones_go_on(start: Callable[..., Daemon]) -> None:
    """Also when there is no room at all."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "16"})
    sid = d.create()
    small = {"code": "#" + "x" * 60_000, "language": "bash"}
    with ExitStack() as stack:
        for n in [4 * MIB - 50_000] * 4 + [70_000, 66_000]:
            stack.enter_context(half_a_body(d, sid, n))
            all_read(d)
        large = {"code": "#" + "x" * (70 << 10), "language": "bash"}
        wait_for(lambda: overloaded(d.http.post(f"/v1/sandboxes/{sid}/exec", json=large)), 60)
        for _ in range(10):
            assert d.http.post(f"/v1/sandboxes/{sid}/exec", json=small).status_code == 200


def test_a_result_without_room(start: Callable[..., Daemon]) -> None:
    """It is not the sandbox's fault, nor its agent's."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "16"})
    sids, kept = [d.create() for _ in range(3)], []
    with ExitStack() as stack:
        for sid in sids[:2]:
            r = stack.enter_context(running(d, sid, f"#fake:partial {15 * MIB // 2}", timeout=0))
            kept.append(r.iter_lines())
            assert next(line for line in kept[-1] if "sent" in line)
        body = {"code": f"#fake:partial {15 * MIB // 2}", "language": "bash", "timeout": 0}
        r = d.http.post(f"/v1/sandboxes/{sids[2]}/exec", json=body)
        if r.status_code != 200:
            assert r.status_code == 503 and r.json()["code"] == "overloaded"
        assert "overloaded" in r.text and "agent_error" not in r.text


def test_bodies_of_strangers(start: Callable[..., Daemon]) -> None:
    """What needs no key takes them, and holds nothing of them; of a longer one not all is read."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "16", "PODFLARE_API_KEYS": KEYS[0]})
    large = b"x" * (4 * MIB)
    head = b"GET /v1/healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    assert httpx.request("GET", f"{d.url}/v1/healthz", content=b"x" * MIB).status_code == 200
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", d.port))) for _ in range(30)]
        for s in socks:
            s.settimeout(30)
            s.sendall(head + b"x" * 999_999)
        all_read(d)
        auth = {"Authorization": f"Bearer {KEYS[0]}"}
        assert d.http.post("/v1/sandboxes", content=large, headers=auth).status_code == 400
        for s in socks:
            s.sendall(b"x")
            assert s.recv(100).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(OSError):  # noqa: PT012
            s.sendall(head.replace(b"1000000", b"9000000"))
            for _ in range(90):
                s.sendall(large[:100_000])
            assert s.recv(100) == b"", "all of it was read"
            raise OSError


def test_answers_that_nobody_fetches(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_REQUESTS_MIB": "16"})
    hosts = [{"host": f"h{i}.example.com", "paths": [f"/{k}" + "a" * 60 for k in range(60)]} for i in range(200)]
    sid = d.create(egress={"allow": hosts})
    length = len(d.http.get(f"/v1/sandboxes/{sid}").content)
    assert 700_000 < length
    head = f"GET /v1/sandboxes/{sid} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(40):
            s = stack.enter_context(socket.socket())
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", d.port))
            s.sendall(head * 8)  # of which the kernel has room for some
        wait_for(lambda: overloaded(d.http.get(f"/v1/sandboxes/{sid}")), 60)
        assert d.http.get("/v1/tree").status_code == 200
    wait_for(lambda: d.http.get(f"/v1/sandboxes/{sid}").status_code == 200, 60)


@pytest.mark.bounds
def test_lists_of_long_allowlists(daemon: Daemon) -> None:
    """32 MiB each, asked for by many who do not read: one sandbox of it is in memory at a time."""
    hosts = [{"host": f"h{i}.example.com", "paths": [f"/{k}" + "a" * 60 for k in range(60)]} for i in range(200)]
    sid = daemon.create(egress={"allow": hosts})
    kids = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 31}).json()["children"]
    one = daemon.http.get(f"/v1/sandboxes/{sid}").json()
    head = b"GET /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\n\r\n"
    before = daemon.rss_kib()
    with ExitStack() as stack:
        for _ in range(20):
            s = stack.enter_context(socket.socket())
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", daemon.port))
            s.sendall(head)
            s.recv(1)
        if not SANITIZED:
            assert daemon.rss_kib() - before < 120 * 1024
    r = daemon.http.get("/v1/sandboxes")
    assert len(r.content) > 25_000_000
    all_of_them = r.json()["sandboxes"]
    assert [o["id"] for o in all_of_them] == [sid, *kids] and all_of_them[0] == one


def test_allowlists_of_living_sandboxes(start: Callable[..., Daemon]) -> None:
    """They may take half of what their key may, and leave the rest for what comes and goes."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "32", "PODFLARE_API_KEYS": ",".join(KEYS)})
    one, other = ({"Authorization": f"Bearer {k}"} for k in KEYS)
    long = {"allow": [{"host": f"a{i}.test", "paths": [f"/{k}" for k in range(64)]} for i in range(256)]}

    def create(who: dict, egress: object) -> httpx.Response:
        return d.http.post("/v1/sandboxes", json={"egress": egress}, headers=who)

    answers = [create(one, long) for _ in range(8)]
    assert [r.status_code for r in answers[:2]] == [200] * 2
    assert {r.status_code for r in answers} == {200, 503}
    said = answers[-1].json()
    assert said["code"] == "overloaded" and said["field"] == "egress"
    assert "allowlists of your sandboxes" in said["error"] and "8 MiB" in said["error"]
    assert "PODFLARE_REQUESTS_MIB" in said["hint"]
    sid = answers[0].json()["id"]
    put = {"json": long, "headers": one}
    # It has one, and would have two for a moment.
    assert d.http.put(f"/v1/sandboxes/{sid}/egress", **put).status_code == 503
    assert len(d.http.get(f"/v1/sandboxes/{sid}/egress", headers=one).json()["allow"]) == 256
    test = {"json": {"host": "a1.test", **long}, "headers": one}
    assert d.http.post("/v1/policy/test", **test).status_code == 503
    # Copies have the same one, and there is room for all else.
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 4}, headers=one)
    assert r.status_code == 200
    assert create(one, {"allow": ["example.com"]}).status_code == 200
    assert create(other, long).status_code == 200
    large = {"code": "#" + "x" * (2 * MIB), "language": "bash"}
    assert d.http.post(f"/v1/sandboxes/{sid}/exec", json=large, headers=one).status_code == 200
    # All of it is given back: when its last sandbox has ended, and when another one takes its place.
    for i in [sid, *r.json()["children"]]:
        d.http.delete(f"/v1/sandboxes/{i}", headers=one)
    for _ in range(8):
        r = create(one, long)
        assert r.status_code == 200, r.text
        url = f"/v1/sandboxes/{r.json()['id']}"
        assert d.http.put(f"{url}/egress", json=False, headers=one).status_code == 200
        r = create(one, long)
        assert r.status_code == 200, r.text
        assert d.http.delete(f"/v1/sandboxes/{r.json()['id']}", headers=one).status_code == 204
        assert d.http.post("/v1/policy/test", **test).status_code == 200
        assert d.http.delete(url, headers=one).status_code == 204


@pytest.mark.bounds
def test_answers_to_forks_with_long_allowlists(daemon: Daemon) -> None:
    """16 MiB, of which one sandbox's is in memory at a time."""
    hosts = [{"host": f"h{i}.example.com", "paths": [f"/{k}" + "a" * 900 for k in range(60)]} for i in range(18)]
    sid = daemon.create(egress={"allow": hosts})
    before = most_kib(daemon)
    r = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 16})
    o = r.json()
    assert len(r.content) > 15_000_000 and set(o) == {"pause_us", "ready_us", "results", "children"}
    assert [one["id"] for one in o["results"]] == o["children"] and len(set(o["children"])) == 16
    assert o["results"][15]["egress"]["allow"] == hosts and o["pause_us"] < o["ready_us"]
    if not SANITIZED:
        assert most_kib(daemon) - before < 16 * 1024
    # Who does not read them has no more than that either.
    head = f"POST /v1/sandboxes/{sid}/fork HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\n"
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(4)]
        for s in socks:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.settimeout(60)
            s.connect(("127.0.0.1", daemon.port))
            s.sendall(head.encode() + b'{"n":8}')
            s.recv(1)
        if not SANITIZED:
            assert most_kib(daemon) - before < 32 * 1024


def test_a_fork_whose_answer_has_no_room(start: Callable[..., Daemon]) -> None:
    """It is refused before it is made."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "16"})
    hosts = [{"host": f"h{i}.example.com", "paths": [f"/{k}" + "a" * 900 for k in range(60)]} for i in range(18)]
    sid = d.create(egress={"allow": hosts})
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(half_a_body(d, sid, 7 * MIB // 2))
        all_read(d)
        r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 4})
        assert overloaded(r)
        assert len(d.http.get("/v1/sandboxes").json()["sandboxes"]) == 1
        assert "sandbox forked" not in d.log_text()
    wait_for(lambda: not overloaded(d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 4})), 60)


def test_an_answer_to_a_fork_that_is_being_read(daemon: Daemon) -> None:
    """Whoever ends meanwhile is an error in its place, and it is whole JSON."""
    hosts = [{"host": f"h{i}.example.com", "paths": [f"/{k}" + "a" * 900 for k in range(60)]} for i in range(18)]
    sid = daemon.create(egress={"allow": hosts})
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(60)
        s.connect(("127.0.0.1", daemon.port))
        head = f"POST /v1/sandboxes/{sid}/fork HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\n"
        s.sendall(head.encode() + b'{"n":16}')
        r = http.client.HTTPResponse(s)
        r.begin()
        ids = [o["id"] for o in daemon.http.get("/v1/sandboxes").json()["sandboxes"]]
        for one in ids[1:]:
            assert daemon.http.delete(f"/v1/sandboxes/{one}").status_code == 204
        o = json.loads(r.read())
    assert len(o["results"]) == len(o["children"]) == 16 and None not in o["children"]
    gone = {"error": "it has ended since it was made", "code": "fork_failed"}
    assert gone in o["results"]
    for result, child in zip(o["results"], o["children"]):
        assert result.get("id") == child or result == gone


def test_a_list_that_is_being_read(daemon: Daemon) -> None:
    """Whoever ends meanwhile is not in it, and it is whole JSON."""
    hosts = [{"host": f"h{i}.example.com", "paths": [f"/{k}" + "a" * 60 for k in range(60)]} for i in range(200)]
    sid = daemon.create(egress={"allow": hosts})
    kids = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 15}).json()["children"]
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(60)
        s.connect(("127.0.0.1", daemon.port))
        s.sendall(b"GET /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\n\r\n")
        r = http.client.HTTPResponse(s)
        r.begin()
        for one in kids:
            assert daemon.http.delete(f"/v1/sandboxes/{one}").status_code == 204
        found = [o["id"] for o in json.loads(r.read())["sandboxes"]]
    assert found[0] == sid and len(found) < 16 and found[1:] == [k for k in kids if k in found]
    assert [o["id"] for o in daemon.http.get("/v1/sandboxes").json()["sandboxes"]] == [sid]


def test_events_in_parts(daemon: Daemon) -> None:
    """Nine of a sandbox at a time, each of nearly 8 MiB: the last has no room, and says so."""
    sid = daemon.create()
    n, kept = 15 * MIB // 2, []
    with ExitStack() as stack:
        for i in range(8):
            r = stack.enter_context(running(daemon, sid, f"#fake:partial {n}", context_id=f"c{i}", timeout=0))
            kept.append(r.iter_lines())
            assert next(line for line in kept[-1] if "sent" in line)
        body = {"code": f"#fake:partial {n}", "language": "bash", "context_id": "c8", "timeout": 0}
        r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
        assert r.status_code in (200, 502) and "64 MiB together" in r.text, r.text
        assert "agent_error" in r.text or r.status_code == 200
    # They have left: there is room again, also for a whole one.
    for _ in range(12):
        (event, *_, end) = [e for e in daemon.exec(sid, "#fake:parts 7000000", rich=True) if e["type"] in ("result", "exit")]
        assert len(event["data"]["text/plain"]) == 7_000_000 and end["data"] == 0


def test_what_is_held_is_given_back(start: Callable[..., Daemon]) -> None:
    """Results, code, bodies, lists, whoever leaves in the middle: a hundred times what may be held."""
    d = start(env={"PODFLARE_REQUESTS_MIB": "16"})
    sid = d.create()
    for i in range(8):
        assert len(d.exec(sid, "#fake:parts 7000000")) > 1
        with running(d, sid, "#fake:parts 7000000", rich=True) as r:
            next(r.iter_lines())
        half_a_body(d, sid, 3 * MIB).close()
        assert d.exec(sid, "cat > /dev/null", stdin="x" * (3 * MIB))[-1]["data"] == 0
        assert d.http.post(f"/v1/sandboxes/{sid}/exec", content=b"x" * (4 * MIB)).status_code == 400
    wait_for(lambda: not overloaded(d.http.post(f"/v1/sandboxes/{sid}/exec", content=b"x" * (4 * MIB))), 60)
    assert d.exec(sid, "#fake:parts 7000000")[-1]["data"] == 0
