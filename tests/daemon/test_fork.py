"""Forks of sandboxes, and what can go wrong in each step."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from conftest import SANITIZED, Daemon, stdout_of, wait_for


def fork(d: Daemon, sid: str, **body: Any) -> dict:
    """The answer of a fork that works."""
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json=body)
    assert r.status_code == 200, r.text
    return r.json()


def get(d: Daemon, sid: str) -> dict:
    """A sandbox as the API shows it."""
    return d.http.get(f"/v1/sandboxes/{sid}").json()


def order(d: Daemon, sid: str, step: str, *words: str) -> None:
    """Misbehaviour of the next times."""
    for word in words:
        d.exec(sid, f"#fake:once {step} {word}")


def alive(d: Daemon, sid: str) -> bool:
    """Whether commands run in it."""
    return stdout_of(d.exec(sid, "echo alive")) == "alive"


def test_fork(daemon: Daemon) -> None:
    sid = daemon.create(metadata={"k": "v"}, memory_mib=256, vcpus=1, disk_mib=100)
    daemon.exec(sid, '#fake:set {"vars": {"x": "42"}}')
    o = fork(daemon, sid, n=3)
    assert len(o["children"]) == 3 and len(set(o["children"])) == 3
    assert [r["id"] for r in o["results"]] == o["children"]
    assert 0 < o["pause_us"] < o["ready_us"]
    for r in o["results"]:
        assert r["parent"] == sid and r["generation"] == 1 and r["state"] == "ready"
        assert r["metadata"] == {"k": "v"} and r["template"] == "default"
        assert (r["memory_mib"], r["vcpus"], r["disk_mib"]) == (256, 1, 100)
        assert 0 < r["ready_us"] <= o["ready_us"] and r["source"] == "fork"
        info = daemon.info(r["id"])
        assert info["state"]["vars"] == {"x": "42"}
        assert info["renew"]["kind"] == "fork" and info["renew"]["generation"] == 1
        assert info["renew"]["reseed"] is True and info["renew"]["id"] == r["id"]
    assert get(daemon, sid)["children"] == o["children"]
    assert get(daemon, sid)["parent"] is None and get(daemon, sid)["generation"] == 0
    assert alive(daemon, sid) and all(alive(daemon, c) for c in o["children"])
    # A child is like any other.
    grandchild = fork(daemon, o["children"][0])["results"][0]
    assert grandchild["generation"] == 2 and grandchild["parent"] == o["children"][0]
    assert get(daemon, o["children"][0])["children"] == [grandchild["id"]]


def test_reseed(daemon: Daemon) -> None:
    sid = daemon.create()
    (child,) = fork(daemon, sid, reseed=False)["children"]
    assert daemon.info(child)["renew"]["reseed"] is False


@pytest.mark.parametrize(
    "body,field",
    [
        ({"n": 0}, "n"),
        ({"n": 33}, "n"),
        ({"n": -1}, "n"),
        ({"n": "2"}, "n"),
        ({"n": 1.5}, "n"),
        ({"reseed": 1}, "reseed"),
    ],
)
def test_bad_body(daemon: Daemon, body: dict, field: str) -> None:
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json=body)
    assert r.status_code == 400 and r.json()["field"] == field
    assert len(daemon.http.get("/v1/sandboxes").json()["sandboxes"]) == 1


def test_no_such_parent(daemon: Daemon) -> None:
    r = daemon.http.post(f"/v1/sandboxes/sbx_{'0' * 32}/fork")
    assert r.status_code == 404
    sid = daemon.create()
    daemon.exec(sid, "#fake:poweroff")
    r = daemon.http.post(f"/v1/sandboxes/{sid}/fork")
    assert r.status_code == 409 and r.json()["code"] == "sandbox_ended"


def test_max_fork(start: Callable[..., Daemon]) -> None:
    d = start(args=["--max-fork", "2"])
    sid = d.create()
    fork(d, sid, n=2)
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 3})
    assert r.status_code == 400 and "the 2 copies that one fork may make" in r.json()["error"]
    assert "PODFLARE_MAX_FORK" in r.json()["hint"]


def test_the_limit_of_sandboxes(start: Callable[..., Daemon]) -> None:
    """All or nothing."""
    d = start(args=["--max-sandboxes", "4"])
    sid = d.create()
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 4})
    assert r.status_code == 429 and r.json()["code"] == "too_many_sandboxes"
    (child, *_) = fork(d, sid, n=3)["children"]
    assert d.http.post(f"/v1/sandboxes/{sid}/fork").status_code == 429
    d.http.delete(f"/v1/sandboxes/{child}")
    fork(d, sid)


def test_thirty_two(daemon: Daemon) -> None:
    sid = daemon.create()
    o = fork(daemon, sid, n=32)
    assert len(set(o["children"])) == 32
    assert len({daemon.info(c)["renew"]["machine_id"] for c in o["children"]}) == 32


def test_a_command_goes_on_in_the_parent(daemon: Daemon) -> None:
    """Every line of it arrives, whatever stood still in between."""
    sid = daemon.create()
    body = {"code": "for i in $(seq 200); do echo $i; sleep 0.01; done", "language": "bash"}
    lines: list[str] = []

    def run() -> None:
        r = httpx.post(f"{daemon.url}/v1/sandboxes/{sid}/exec", json=body, timeout=60)
        lines.extend(r.text.splitlines())

    t = threading.Thread(target=run)
    t.start()
    for _ in range(4):
        time.sleep(0.3)
        fork(daemon, sid, n=2)
    t.join()
    events = [json.loads(x) for x in lines]
    assert stdout_of(events) == "\n".join(str(i + 1) for i in range(200))
    assert events[-1]["data"] == 0


def test_requests_that_come_while_it_is_frozen(start: Callable[..., Daemon], tmp_path: Any) -> None:
    """They wait in the daemon: the agent would refuse them."""
    d = start()
    sid = d.create()
    order(d, sid, "fork", "late 1")
    with ThreadPoolExecutor(8) as pool:
        f = pool.submit(fork, d, sid)
        time.sleep(0.4)
        begin = time.monotonic()
        execs = [pool.submit(d.exec, sid, f"echo {i}") for i in range(3)]
        put = pool.submit(
            httpx.put,
            f"{d.url}/v1/sandboxes/{sid}/files?path={tmp_path}/f",
            content=b"x" * 1_000_000,
        )
        (tmp_path / "g").write_bytes(b"data")
        got = pool.submit(httpx.get, f"{d.url}/v1/sandboxes/{sid}/files?path={tmp_path}/g")
        assert [stdout_of(e.result()) for e in execs] == ["0", "1", "2"]
        assert put.result().status_code == 200 and got.result().content == b"data"
        assert time.monotonic() - begin > 0.4
        assert f.result()["pause_us"] > 900_000
    assert (tmp_path / "f").stat().st_size == 1_000_000


def test_forks_of_one_parent_queue(daemon: Daemon) -> None:
    sid = daemon.create()
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(fork, daemon, sid, n=2) for _ in range(6)]
        ids = [c for a in answers for c in a.result()["children"]]
    assert len(set(ids)) == 12
    assert sorted(get(daemon, sid)["children"]) == sorted(ids)


def test_some_children_fail(daemon: Daemon) -> None:
    """They are errors in their places; the others are there, and the parent goes on."""
    sid = daemon.create()
    order(daemon, sid, "fork", "", "error", "child-dies", "renew-error", "lie init", "")
    o = fork(daemon, sid, n=6)
    assert [c is not None for c in o["children"]] == [True, False, False, False, False, True]
    errors = [r.get("error") for r in o["results"]]
    assert errors[1] == "cannot fork the VMM: Cannot allocate memory"
    assert "process exited with status 7" in errors[2]
    assert errors[3] == "the guest could not be renewed: cannot set the clock"
    assert errors[4] == "the virtual machine told of a child that is none"
    assert {r["code"] for r in o["results"] if "error" in r} == {"fork_failed"}
    assert all(alive(daemon, s) for s in (sid, o["children"][0], o["children"][5]))
    assert get(daemon, sid)["children"] == [o["children"][0], o["children"][5]]
    wait_for(lambda: len(daemon.children()) == 4)


@pytest.mark.parametrize(
    "step,word,reason",
    [
        ("fork", "error", "cannot fork the VMM: Cannot allocate memory"),
        ("fork", "child-exits", "KVM_CREATE_VM: Cannot allocate memory"),
        ("fork", "silent", "it was not ready after 1 s"),
        ("fork", "hang", "it was not ready after 1 s"),
        ("freeze", "error", "the sandbox cannot be frozen: a process does not stop"),
        (
            "freeze",
            "close",
            "the guest's agent closed the connection while the sandbox was being frozen",
        ),
    ],
)
def test_all_children_fail(
    start: Callable[..., Daemon], step: str, word: str, reason: str
) -> None:
    d = start(env={"PODFLARE_CREATE_TIMEOUT": "1"})
    sid = d.create()
    fds = d.fds()
    order(d, sid, step, word, word)
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 2 if step == "fork" else 1})
    assert r.status_code == 503, r.text
    assert r.json() == {"error": reason, "code": "fork_failed"}
    assert alive(d, sid), "the parent goes on"
    wait_for(lambda: len(d.children()) == 2)
    wait_for(lambda: d.fds() <= fds + 1)
    if step == "fork":
        fork(d, sid)


def test_an_original_that_answers_no_fork(start: Callable[..., Daemon]) -> None:
    """It may wait for its storage, and what runs in it goes on with that: it is asked no more."""
    d = start(env={"PODFLARE_CREATE_TIMEOUT": "1"})
    sid = d.create()
    order(d, sid, "fork", *["hang"] * 15, "error-late 75")
    first = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 16}, timeout=120)
    assert first.status_code == 503 and "was not ready after 1 s" in first.text
    wait_for(lambda: "has answered none of 16 forks" in d.log_text(), 90)
    assert alive(d, sid)
    for _ in range(2):
        r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 1})
        assert (r.status_code, r.json()["code"]) == (503, "fork_failed")
        assert "has answered none of its forks" in r.json()["error"]
    # One answer, late as it is, and there are forks again.
    wait_for(lambda: d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 1}).is_success, 30)
    assert alive(d, sid)


@pytest.mark.parametrize("how", ["mute", "close"])
def test_a_thaw_that_is_lost(start: Callable[..., Daemon], how: str) -> None:
    """Once it is tried again; then the sandbox is ended, and its children live."""
    d = start(env={"PODFLARE_FREEZE_TIMEOUT": "1"})
    sid = d.create()
    order(d, sid, "thaw", how)
    (child,) = fork(d, sid)["children"]
    assert alive(d, sid) and alive(d, child)
    order(d, sid, "thaw", how, how)
    (second,) = fork(d, sid)["children"]
    assert alive(d, second)
    o = get(d, sid)
    assert o["state"] == "ended"
    assert "it could not be set going again after it was frozen" in o["ended_reason"]


def test_a_thaw_brings_new_randomness(daemon: Daemon) -> None:
    """For the original; nothing that was given to anybody else."""
    sid = daemon.create()
    given = [daemon.info(sid)["renew"]["entropy"]]
    for _ in range(2):
        for child in fork(daemon, sid, n=2)["children"]:
            given.append(daemon.info(child)["renew"]["entropy"])
            assert daemon.info(child)["thaws"] == []
    thaws = daemon.info(sid)["thaws"]
    assert [set(thaw) for thaw in thaws] == [{"entropy"}] * 2
    given += [thaw["entropy"] for thaw in thaws]
    assert all(len(base64.b64decode(text, validate=True)) == 32 for text in given)
    assert len(set(given)) == 7


def test_a_freeze_that_is_undone_brings_it_as_well(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_FREEZE_TIMEOUT": "1"})
    sid = d.create()
    order(d, sid, "freeze", "mute")
    assert d.http.post(f"/v1/sandboxes/{sid}/fork").status_code == 503
    (thaw,) = d.info(sid)["thaws"]
    assert len(base64.b64decode(thaw["entropy"])) == 32


def test_randomness_that_the_guest_cannot_take(daemon: Daemon) -> None:
    sid = daemon.create()
    order(daemon, sid, "thaw", "unseeded")
    (child,) = fork(daemon, sid)["children"]
    assert alive(daemon, sid) and alive(daemon, child)
    said = f"sandbox {sid} goes on with random numbers that its copies may know: no device"
    assert said in daemon.log_text()


def test_a_freeze_without_an_answer(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_FREEZE_TIMEOUT": "1"})
    sid = d.create()
    order(d, sid, "freeze", "mute")
    r = d.http.post(f"/v1/sandboxes/{sid}/fork")
    assert r.status_code == 503
    assert r.json()["error"] == "the guest does not answer while the sandbox was being frozen"
    assert alive(d, sid), "it was thawed on another stream"
    fork(d, sid)


def test_the_parent_dies_in_a_fork(daemon: Daemon) -> None:
    """Children that it had told of live on, the others are errors."""
    sid = daemon.create()
    order(daemon, sid, "fork", "", "", "die")
    o = fork(daemon, sid, n=4)
    assert [c is not None for c in o["children"]] == [True, True, False, False]
    assert "killed by signal 9" in o["results"][2]["error"]
    assert all(alive(daemon, c) for c in o["children"][:2])
    assert get(daemon, sid)["state"] == "ended"
    assert get(daemon, o["children"][0])["parent"] == sid


def test_the_parent_forks_and_dies(daemon: Daemon) -> None:
    sid = daemon.create()
    order(daemon, sid, "fork", "stray")
    r = daemon.http.post(f"/v1/sandboxes/{sid}/fork")
    assert r.status_code == 503 and "killed by signal 9" in r.json()["error"]
    wait_for(lambda: len(daemon.children()) == 1)


def later(d: Daemon, sid: str, n: int, seconds: float = 0.5) -> socket.socket:
    """A fork whose answer is not awaited."""
    s = socket.create_connection(("127.0.0.1", d.port))
    body = json.dumps({"n": n})
    s.sendall(
        f"POST /v1/sandboxes/{sid}/fork HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    time.sleep(seconds)
    return s


def test_the_parent_is_deleted_in_a_fork(daemon: Daemon) -> None:
    sid = daemon.create()
    order(daemon, sid, "fork", "", "late 1")
    s = later(daemon, sid, 3)
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    head, _, body = s.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    o = json.loads(body)
    assert [c is not None for c in o["children"]] == [True, False, False]
    assert alive(daemon, o["children"][0])
    s.close()
    wait_for(lambda: len(daemon.children()) == 2)


def test_the_parent_is_deleted_before_its_fork(daemon: Daemon) -> None:
    sid = daemon.create()
    order(daemon, sid, "fork", "late 1")
    first, second = later(daemon, sid, 1), later(daemon, sid, 1, 0.1)
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    assert first.recv(4096).startswith(b"HTTP/1.1 503 ")
    assert second.recv(4096).startswith(b"HTTP/1.1 409 ")
    first.close()
    second.close()


@pytest.mark.parametrize("how", ["late 1", "slow-renew 2", "slow 1"])
def test_the_client_leaves(daemon: Daemon, how: str) -> None:
    """What it would have got ends; the parent goes on."""
    sid = daemon.create()
    order(daemon, sid, "fork", how)
    s = later(daemon, sid, 3)
    if how != "slow-renew 2":  # there the parent goes on: another fork would be answered
        later(daemon, sid, 2, 0.1).close()
    s.close()
    wait_for(lambda: len(daemon.children()) == 2, 15)
    assert alive(daemon, sid)
    assert len(daemon.http.get("/v1/sandboxes").json()["sandboxes"]) == 1
    fork(daemon, sid)


@pytest.mark.parametrize("first", ["client", "parent"])
@pytest.mark.parametrize("child", ["quiet 1", "mute"])
def test_the_client_leaves_and_the_parent_ends(
    start: Callable[..., Daemon], first: str, child: str
) -> None:
    """A child that was told of and has not said a word of its own is all that is left of the fork."""
    daemon = start(env={"PODFLARE_CREATE_TIMEOUT": "5"})
    sid, other = daemon.create(), daemon.create()
    order(daemon, sid, "fork", child)
    s = later(daemon, sid, 3)
    if first == "client":
        s.close()
        time.sleep(0.1)
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    s.close()
    # One that stays silent is not waited for longer than any start.
    wait_for(lambda: len(daemon.children()) == 2, 20)
    assert alive(daemon, other)
    assert len(daemon.http.get("/v1/sandboxes").json()["sandboxes"]) == 1


def test_closing_the_parent_leaves_its_children(daemon: Daemon) -> None:
    sid = daemon.create()
    ids = fork(daemon, sid, n=2)["children"]
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    assert all(alive(daemon, c) for c in ids)
    assert get(daemon, ids[0])["parent"] == sid
    fork(daemon, ids[0])


@pytest.mark.bounds
def test_many_forks_leave_nothing(daemon: Daemon) -> None:
    sid = daemon.create()
    for c in fork(daemon, sid, n=3)["children"]:
        daemon.http.delete(f"/v1/sandboxes/{c}")
    alive(daemon, sid)
    fds, rss = daemon.fds(), daemon.rss_kib()
    for _ in range(40):
        for c in fork(daemon, sid, n=3)["children"]:
            assert daemon.http.delete(f"/v1/sandboxes/{c}").status_code == 204
    assert alive(daemon, sid)
    wait_for(lambda: daemon.fds() <= fds + 3)  # streams to the parent that are kept
    assert len(daemon.children()) == 2
    assert daemon.rss_kib() - rss < (30_000 if SANITIZED else 3_000)


def test_stop_in_a_fork(start: Callable[..., Daemon]) -> None:
    d = start()
    sid = d.create()
    order(d, sid, "fork", "late 5")
    s = later(d, sid, 2)
    begin = time.monotonic()
    assert d.stop() == 0
    assert time.monotonic() - begin < 4
    s.close()
