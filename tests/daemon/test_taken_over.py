"""VMMs that their guests have taken over: what they can say and leave behind is bounded."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from conftest import Daemon, stdout_of, wait_for

KEYS = ("pk_ann_1f0c", "pk_bob_77e2")


@pytest.mark.parametrize(
    "how,why",
    [
        # Id 0 is that of all children that it was not asked for yet.
        ("nobody", "told of a fork that nobody asked for"),
        # Requests that pile up in its socket hold descriptors, and all VMMs share the kernel's limit.
        ("deaf", "told of a fork before it was asked"),
    ],
)
def test_what_it_was_not_asked(start: Callable[..., Daemon], how: str, why: str) -> None:
    """More forks than are in flight: it ends for what it says, alone, and nothing stays open."""
    d = start()
    other = d.create()
    fds = children = 0
    for i in range(2):
        sid = d.create()
        d.exec(sid, f"#fake:once fork {how}")
        if i == 0:
            fds, children = d.fds(), len(d.children())
        r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 20})
        assert r.status_code >= 400, r.text
        wait_for(lambda: d.http.get(f"/v1/sandboxes/{sid}").json().get("state") != "ready")
    assert d.log_text().count(why) == 2
    assert stdout_of(d.exec(other, "echo alive")) == "alive"
    wait_for(lambda: len(d.children()) < children)
    wait_for(lambda: d.fds() < fds)


def test_one_process_for_two_children(start: Callable[..., Daemon]) -> None:
    """The second is refused at once, not when somebody has waited for its word long enough."""
    d = start(env={"PODFLARE_CREATE_TIMEOUT": "5"})
    sid = d.create()
    for _ in range(2):
        d.exec(sid, "#fake:once fork twice")
    r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 2})
    assert r.status_code == 503, r.text
    ends = [x for x in d.log_text().splitlines() if "sandbox ended" in x and sid in x]
    assert sum("told of a child that is none" in x for x in ends) == 1, ends
    assert sum("it was not ready after 5 s" in x for x in ends) == 1, ends
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"
    wait_for(lambda: len(d.children()) == 2)


def test_one_that_hangs_up_and_lives_keeps_no_places(start: Callable[..., Daemon]) -> None:
    """Commands that are sent to it meanwhile wait for its end, and each time that one is tried, no place of those
    that all commands have is lost."""
    d = start(prefix=["prlimit", "--nofile=1024"])
    other = d.create()

    def post(sid: str, context: str, code: str) -> int:
        body = {"code": code, "language": "bash", "context_id": context}
        return httpx.post(f"{d.url}/v1/sandboxes/{sid}/exec", json=body, timeout=60).status_code

    with ThreadPoolExecutor(62) as pool:
        for _ in range(3):
            sid = d.create()
            first = pool.submit(post, sid, "a", "#fake:hang-up")
            time.sleep(0.2)
            rest = [pool.submit(post, sid, "b", "echo") for _ in range(60)]
            assert first.result() == 200 and {x.result() for x in rest} <= {200, 404, 409}
        after = [pool.submit(post, other, f"c{i}", "sleep 0.5") for i in range(20)]
        assert [x.result() for x in after] == [200] * 20


def test_silent_copies_hold_up_nobody_else(start: Callable[..., Daemon]) -> None:
    """More of them than can have had their turns when they are given up, all before another's."""
    limit, slots = 20, 2 * (os.cpu_count() or 1)
    d = start(
        env={"PODFLARE_API_KEYS": f"{KEYS[0]},{KEYS[1]}", "PODFLARE_CREATE_TIMEOUT": str(limit)},
        args=["--max-fork", "24"],
    )
    http = [
        httpx.Client(base_url=d.url, timeout=120, headers={"Authorization": f"Bearer {k}"})
        for k in KEYS
    ]
    d.http.headers["Authorization"] = f"Bearer {KEYS[0]}"
    sids = []
    for _ in range(-(-6 * slots // 24)):
        sids.append(d.create())
        for _ in range(24):
            d.exec(sids[-1], "#fake:once fork silent")
    with ThreadPoolExecutor() as pool:
        forks = [pool.submit(http[0].post, f"/v1/sandboxes/{s}/fork", json={"n": 24}) for s in sids]
        # All have their turns or wait for them.
        wait_for(lambda: len(d.children()) >= 1 + 25 * len(sids), limit / 2)
        r = http[1].post("/v1/sandboxes")
        assert r.status_code == 200, r.text
        assert not any(f.done() for f in forks)
        # Neither those of the same key.
        r = http[0].post("/v1/sandboxes")
        assert r.status_code == 200, r.text
        assert not any(f.done() for f in forks)
        for s in sids:
            http[0].delete(f"/v1/sandboxes/{s}")


def make_helper(d: Daemon, sid: str) -> int:
    """Its VMM makes a process that it does not tell of. (The daemon looks every ten seconds, too: one may
    be gone before it is seen here.)"""
    for _ in range(3):
        known = set(d.children())
        d.exec(sid, "#fake:once fork helper")
        assert d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 1}).status_code == 503
        if new := set(d.children()) - known:
            (pid,) = new
            return pid
    raise AssertionError("no helper was made")


def test_what_it_leaves_behind_ends(start: Callable[..., Daemon]) -> None:
    """With the VMM that has made it, soon."""
    d = start()
    sid = d.create()
    for _ in range(3):
        make_helper(d, sid)
    d.http.delete(f"/v1/sandboxes/{sid}")
    wait_for(lambda: len(d.children()) == 1)
    lines = [x for x in d.log_text().splitlines() if "nobody told of has ended" in x]
    assert 1 <= len(lines) <= 3


def test_what_it_makes_ends_while_it_lives(start: Callable[..., Daemon]) -> None:
    """Nothing else has to happen for it."""
    d = start()
    sid = d.create()
    for _ in range(2):
        make_helper(d, sid)
        wait_for(lambda: len(d.children()) == 2, 20)
        assert d.http.get(f"/v1/sandboxes/{sid}").json()["state"] == "ready"


def test_it_does_not_outlive_the_daemon(start: Callable[..., Daemon]) -> None:
    d = start()
    sid = d.create()
    pids = [make_helper(d, sid) for _ in range(3)]
    assert d.stop() == 0
    assert not [p for p in pids if os.path.exists(f"/proc/{p}")]


def test_a_child_that_is_yet_to_be_told_of_stays(start: Callable[..., Daemon]) -> None:
    """What is older than the forks that are open goes, and what may be their child does not."""
    d = start()
    a, b = d.create(), d.create()
    helper = make_helper(d, a)
    known = set(d.children())
    time.sleep(0.05)  # the kernel tells the start of a process in hundredths of a second
    d.exec(b, "#fake:once fork late 4")
    with ThreadPoolExecutor() as pool:
        honest = pool.submit(d.http.post, f"/v1/sandboxes/{b}/fork", json={"n": 1})
        (pid,) = wait_for(lambda: set(d.children()) - known)
        httpx.delete(f"{d.url}/v1/sandboxes/{a}", timeout=60)
        wait_for(lambda: helper not in d.children())
        assert pid in d.children() and not honest.done()
        r = honest.result()
    assert r.status_code == 200, r.text
    assert d.info(r.json()["children"][0])["pid"] == pid


def test_what_was_there_before_the_daemon_stays(start: Callable[..., Daemon]) -> None:
    """Children of the program in whose place it was started."""
    d = start(prefix=["sh", "-c", 'sleep 60 & exec "$@"', "sh"])
    (before,) = [p for p in d.children() if "sleep" in Path(f"/proc/{p}/comm").read_text()]
    sid = d.create()
    helper = make_helper(d, sid)
    d.http.delete(f"/v1/sandboxes/{sid}")
    wait_for(lambda: helper not in d.children())
    assert before in d.children()
    d.stop()
    assert "sleep" in Path(f"/proc/{before}/comm").read_text()
    os.kill(before, signal.SIGKILL)
