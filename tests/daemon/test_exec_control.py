"""Commands by their ids: how they are interrupted, listed, queued by context."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from conftest import Daemon, stdout_of, wait_for
from execs import interrupt, last, listed, running


# --- ids ------------------------------------------------------------------------------------


def test_the_id_is_in_the_header_and_the_first_event(daemon: Daemon) -> None:
    sid = daemon.create()
    body = {"code": "echo x", "language": "bash", "rich": True, "exec_id": "My-exec_1"}
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
    assert r.headers["podflare-exec-id"] == "My-exec_1"
    first = json.loads(r.text.splitlines()[0])
    assert {k: first[k] for k in ("type", "exec_id", "seq")} == {
        "type": "started",
        "exec_id": "My-exec_1",
        "seq": 0,
    }
    del body["exec_id"]
    ids = set()
    for _ in range(3):
        r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
        assert json.loads(r.text.splitlines()[0])["exec_id"] == r.headers["podflare-exec-id"]
        ids.add(r.headers["podflare-exec-id"])
    assert len(ids) == 3
    # Plain mode has the header alone.
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "echo", "language": "bash"})
    assert r.headers["podflare-exec-id"] and "started" not in r.text


def test_an_id_lives_once(daemon: Daemon) -> None:
    sid = daemon.create()
    for _ in range(2):  # free again when it has ended
        with running(daemon, sid, "echo on; sleep 60", exec_id="a") as r:
            assert r.headers["podflare-exec-id"] == "a"
            again = daemon.http.post(
                f"/v1/sandboxes/{sid}/exec", json={"code": "1", "exec_id": "a"}
            )
            assert again.status_code == 409
            assert again.json() == {
                "error": "a command with this exec_id is queued or runs",
                "code": "exec_exists",
                "field": "exec_id",
            }
            assert interrupt(daemon, sid, "a").json() == {"exec_id": "a", "state": "running"}
            assert last(r)["termination_reason"] == "interrupted"


# --- interrupt ------------------------------------------------------------------------------


def test_interrupt(daemon: Daemon) -> None:
    sid = daemon.create()
    code = (
        "import os, time\ntry:\n os.write(1, b'on\\n'); time.sleep(60)\n"
        "except KeyboardInterrupt:\n os.write(1, b'off\\n')"
    )
    with running(daemon, sid, code, language="python", exec_id="p") as r:
        lines = (json.loads(x) for x in r.iter_lines())
        assert next(lines)["type"] == "started" and next(lines)["data"] == "on\n"
        assert interrupt(daemon, sid, "p").json() == {"exec_id": "p", "state": "running"}
        rest = list(lines)
    assert rest[0]["data"] == "off\n"
    assert rest[-1]["exit_code"] == 0 and rest[-1]["termination_reason"] == "exited"
    assert interrupt(daemon, sid, "p").json() == {"exec_id": "p", "state": "ended"}
    assert interrupt(daemon, sid, "p", escalate=True).json() == {"exec_id": "p", "state": "ended"}
    assert stdout_of(daemon.exec(sid, "echo the next one is not hit")) == "the next one is not hit"


def test_interrupt_ends_it(daemon: Daemon) -> None:
    sid = daemon.create()
    with running(daemon, sid, "sleep 60", exec_id="s") as r:
        assert interrupt(daemon, sid, "s").status_code == 200
        end = last(r)
    assert (end["exit_code"], end["termination_reason"]) == (130, "interrupted")


def test_interrupt_is_repeated_and_escalated(daemon: Daemon) -> None:
    sid = daemon.create()
    with running(daemon, sid, "#fake:orders cancel", exec_id="o") as r:
        for _ in range(100):
            assert interrupt(daemon, sid, "o").json()["state"] == "running"
        assert interrupt(daemon, sid, "o", escalate=True).json()["state"] == "running"
        ev = [json.loads(x) for x in r.iter_lines()]
    text = "".join(e["data"] for e in ev if e["type"] == "stdout")
    assert text == "interrupt\n" * 100 + "cancel\n"
    assert (ev[-1]["exit_code"], ev[-1]["termination_reason"]) == (130, "interrupted")


def test_orders_to_a_guest_that_does_not_read(daemon: Daemon) -> None:
    """They do not pile up, and the command is not lost by them."""
    sid = daemon.create()
    with running(daemon, sid, "#fake:pong 2.5", exec_id="o") as r:
        for _ in range(2000):
            assert interrupt(daemon, sid, "o").status_code == 200
            if not listed(daemon, sid):
                break
        assert last(r)["termination_reason"] == "exited"


@pytest.mark.parametrize("rich", [False, True])
def test_interrupt_in_the_queue(daemon: Daemon, tmp_path: Path, rich: bool) -> None:
    sid = daemon.create()
    with running(daemon, sid, "echo on; sleep 60", exec_id="first") as first:
        with running(daemon, sid, f"touch {tmp_path}/ran", exec_id="second", rich=rich) as second:
            with running(daemon, sid, "echo third", exec_id="third") as third:
                r = interrupt(daemon, sid, "second")
                assert r.json() == {"exec_id": "second", "state": "queued"}
                ev = [json.loads(x) for x in second.iter_lines()]
                assert len(ev) == 1 and ev[0]["data"] == 130
                if rich:
                    assert ev[0]["termination_reason"] == "interrupted"
                    assert ev[0]["state"] == "preserved" and ev[0]["duration_ms"] == 0
                assert interrupt(daemon, sid, "first").json()["state"] == "running"
                assert last(first)["termination_reason"] == "interrupted"
                assert last(third)["termination_reason"] == "exited"
    assert not (tmp_path / "ran").exists()


def test_interrupt_of_nothing(daemon: Daemon) -> None:
    sid = daemon.create()
    r = interrupt(daemon, sid, "never")
    assert r.status_code == 404
    assert r.json() == {"error": "no such command in this sandbox", "code": "exec_not_found"}
    assert interrupt(daemon, "sbx_" + "0" * 32, "x").json()["code"] == "sandbox_not_found"
    r = interrupt(daemon, sid, "x", escalate=1)
    assert r.status_code == 400 and r.json()["field"] == "escalate"
    # The last 256 are remembered.
    daemon.exec(sid, "true", exec_id="old")
    for i in range(256):
        assert interrupt(daemon, sid, "old").status_code == 200
        daemon.exec(sid, "#fake:bytes", exec_id=f"e{i}")
    assert interrupt(daemon, sid, "old").status_code == 404
    assert interrupt(daemon, sid, "e0").json()["state"] == "ended"


def test_interrupt_before_the_code_is_there(start: Callable[..., Daemon]) -> None:
    """Much code in a frozen guest: the order follows the code."""
    daemon = start(env={"PODFLARE_FREEZE_TIMEOUT": "3"})
    sid = daemon.create()
    code = "#fake:orders interrupt" + " " * 1_000_000
    threads = []
    results: list[dict] = []
    daemon.exec(sid, "#fake:once freeze mute")
    with running(daemon, sid, "echo on; sleep 1", exec_id="first"):
        fork = threading.Thread(
            target=lambda: daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={})
        )
        fork.start()
        threads.append(fork)
        time.sleep(0.3)

        def run() -> None:
            with running(daemon, sid, code, exec_id="big", context_id="c") as r:
                results.append(last(r))

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        wait_for(lambda: [e for e in listed(daemon, sid) if e["exec_id"] == "big"])
        assert interrupt(daemon, sid, "big").json()["state"] == "running"
    for t in threads:
        t.join(60)
    assert results[0]["termination_reason"] == "interrupted"


# --- list and contexts ----------------------------------------------------------------------


def test_list(daemon: Daemon) -> None:
    sid = daemon.create()
    assert listed(daemon, sid) == []
    now = time.time() * 1000
    with running(daemon, sid, "sleep 60", exec_id="a", timeout=12.5):
        with running(daemon, sid, "1", exec_id="b", language="python"):
            with running(
                daemon,
                sid,
                None,
                exec_id="c",
                language=None,
                argv=["sleep", "9"],
                context_id="x",
                timeout=0,
            ):
                all_of_them = listed(daemon, sid)
    assert all(abs(e.pop("queued_at") - now) < 60_000 for e in all_of_them)
    started = [e.pop("started_at") for e in all_of_them]
    assert abs(started[0] - now) < 60_000 and started[1] is None and started[2] >= started[0]
    assert all_of_them == [
        {
            "exec_id": "a",
            "state": "running",
            "language": "bash",
            "context_id": "default",
            "timeout": 12.5,
        },
        {
            "exec_id": "b",
            "state": "queued",
            "language": "python",
            "context_id": "default",
            "timeout": 300,
        },
        {"exec_id": "c", "state": "running", "language": "argv", "context_id": "x", "timeout": 0},
    ]
    wait_for(lambda: listed(daemon, sid) == [])


def test_contexts_run_beside_each_other(daemon: Daemon, tmp_path: Path) -> None:
    """One queue each, whatever the others do."""
    sid = daemon.create()
    wait = f"echo on; while ! test -e {tmp_path}/go; do sleep 0.02; done; echo off"
    with running(daemon, sid, wait) as a:
        with running(daemon, sid, wait, context_id="b") as b:
            with running(daemon, sid, "echo second in b", context_id="b", exec_id="b2") as b2:
                assert stdout_of(daemon.exec(sid, "echo c", context_id="c")) == "c"
                states = {e["exec_id"]: e["state"] for e in listed(daemon, sid)}
                assert states["b2"] == "queued" and list(states.values()).count("running") == 2
                (tmp_path / "go").touch()
                for r in (a, b, b2):
                    assert last(r)["exit_code"] == 0


def test_sixty_at_a_time(daemon: Daemon) -> None:
    """Each has a stream of its own to the agent, and of these there are so many."""
    sid = daemon.create()
    replies: list[httpx.Response] = []

    def run(i: int) -> None:
        body = {"code": "sleep 30", "language": "bash", "context_id": f"c{i}"}
        replies.append(httpx.post(f"{daemon.url}/v1/sandboxes/{sid}/exec", json=body, timeout=60))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(60)]
    for t in threads:
        t.start()
    wait_for(lambda: len(listed(daemon, sid)) == 60, 30)
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1", "context_id": "late"})
    assert r.status_code == 429
    assert r.json() == {
        "error": "too many requests are under way in this sandbox",
        "code": "too_many_requests",
    }
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    for t in threads:
        t.join()
    assert all(json.loads(r.text.splitlines()[-1])["data"] == -1 for r in replies)


@pytest.mark.parametrize("seconds", [0, 0.1, 0.7])
def test_queue_timeout(daemon: Daemon, seconds: float) -> None:
    """One that does not get its turn is not run, and hurts no other."""
    sid = daemon.create()
    with running(daemon, sid, "echo on; sleep 60", exec_id="first") as r:
        with running(daemon, sid, "echo third", queue_timeout=60) as third:
            ev = daemon.exec(sid, "echo second", rich=True, queue_timeout=seconds)
            assert [e["type"] for e in ev] == ["stderr", "exit"]
            assert f"not its turn within {seconds:g} s" in ev[0]["data"]
            assert (ev[1]["exit_code"], ev[1]["termination_reason"]) == (-1, "refused")
            assert (ev[1]["state"], ev[1]["duration_ms"]) == ("preserved", 0)
            other = daemon.exec(sid, "echo x", context_id="other", queue_timeout=seconds)
            assert stdout_of(other) == "x"
            interrupt(daemon, sid, "first")
            assert last(r)["termination_reason"] == "interrupted"
            assert last(third)["termination_reason"] == "exited"
    # Its turn at once: the limit is for waiting, not for running.
    assert stdout_of(daemon.exec(sid, "sleep 1; echo fine", queue_timeout=seconds)) == "fine"
