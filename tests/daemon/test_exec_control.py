"""Commands by their ids: how they end in time, are interrupted, listed, queued by context."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from conftest import Daemon, stdout_of, wait_for
from test_exec import alive, events_without_time, rich_exit

SLACK = {"PODFLARE_EXEC_SLACK": "1"}


@contextmanager
def running(daemon: Daemon, sid: str, code: str | None, **body: object) -> Iterator[httpx.Response]:
    """A command whose reply has begun; it is given up at the end if it has not been read."""
    body = {"code": code, "language": "bash", "rich": True, **body}
    with httpx.Client(base_url=daemon.url, timeout=60) as c:
        with c.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as r:
            assert r.status_code == 200
            yield r


def last(r: httpx.Response) -> dict:
    """The exit event of a reply that is read to its end."""
    return [json.loads(x) for x in r.iter_lines()][-1]


def interrupt(daemon: Daemon, sid: str, exec_id: str, **body: object) -> httpx.Response:
    """Interrupts a command."""
    return daemon.http.post(f"/v1/sandboxes/{sid}/exec/{exec_id}/interrupt", json=body)


def listed(daemon: Daemon, sid: str) -> list[dict]:
    """The commands that live."""
    return daemon.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"]


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


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "ü", "x" * 65, "a\n", 7])
def test_ids_are_checked(daemon: Daemon, bad: object) -> None:
    sid = daemon.create()
    for name in ("exec_id", "context_id"):
        r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1", name: bad})
        assert (r.status_code, r.json()["field"]) == (400, name)
    ev = daemon.exec(sid, "echo x", exec_id="x" * 64, context_id="y" * 64)
    assert stdout_of(ev) == "x"
    assert interrupt(daemon, sid, "x" * 64).json()["state"] == "ended"
    assert interrupt(daemon, sid, "x" * 65).status_code == 404


# --- ends in time ---------------------------------------------------------------------------


@pytest.mark.parametrize("rich", [False, True])
def test_timeout(daemon: Daemon, rich: bool) -> None:
    sid = daemon.create()
    ev = events_without_time(daemon.exec(sid, "echo before; sleep 600", timeout=0.7, rich=rich))
    assert ev[0]["data"] == ("before\n" if rich else "before")
    assert ev[1:] == [
        rich_exit(124, "timeout", signal=2) if rich else {"type": "exit", "data": 124}
    ]
    assert stdout_of(daemon.exec(sid, "echo next")) == "next"


def test_what_ignores_the_interrupt_is_killed(daemon: Daemon) -> None:
    sid = daemon.create()
    ev = daemon.exec(sid, "trap '' INT TERM; sleep 4242.31; sleep 600", timeout=0.5, rich=True)
    assert ev[-1]["termination_reason"] == "timeout" and ev[-1]["exit_code"] == 124
    assert ev[-1]["duration_ms"] >= 1400
    wait_for(lambda: not alive("sleep 4242[.]31"))


def test_the_agent_is_told_all(daemon: Daemon) -> None:
    sid = daemon.create()

    def told(**body: object) -> dict:
        return json.loads(stdout_of(daemon.exec(sid, "#fake:request", "python", **body)))

    assert told() == {
        "language": "python",
        "context": "default",
        "timeout_ms": 300_000,
        "grace_ms": 2000,
        "output_limit": 16 << 20,
        "stdin": False,
    }
    more = told(timeout=0.0001, user="root", cwd="/tmp", env={"A": "b"}, stdin="", context_id="c")
    assert more == {
        "language": "python",
        "context": "c",
        "timeout_ms": 1,
        "grace_ms": 2000,
        "output_limit": 16 << 20,
        "stdin": True,
        "user": "root",
        "cwd": "/tmp",
        "env": {"A": "b"},
    }
    assert told(timeout=0)["timeout_ms"] == 0
    for action in ("truncate", "end"):
        assert told(output_limit_action=action)["output_limit_action"] == action
    assert "output_limit_action" not in told(output_limit_action=None)
    assert told(timeout=86400, output_limit=256 << 20)["timeout_ms"] == 86_400_000
    assert told(timeout=None)["timeout_ms"] == 300_000


@pytest.mark.parametrize(
    "body,field,words",
    [
        ({"timeout": -1}, "timeout", "timeout must be a number from 0 to 86400"),
        ({"timeout": 86401}, "timeout", "timeout must be a number from 0 to 86400"),
        ({"queue_timeout": -1}, "queue_timeout", "queue_timeout must be a number from 0 to 86400"),
        ({"timeout": "1"}, "timeout", "timeout must be a number from 0 to 86400"),
        (
            {"output_limit": 65535},
            "output_limit",
            "output_limit must be an integer from 65536 to 268435456",
        ),
        (
            {"output_limit_action": "kill"},
            "output_limit_action",
            'output_limit_action must be "truncate" or "end"',
        ),
        ({"output_limit_action": 1}, "output_limit_action", "output_limit_action must be a string"),
        ({"user": "nobody"}, "user", 'user must be "user" or "root"'),
        (
            {"language": "lisp"},
            "language",
            'unknown language "lisp"; there are: python, bash, javascript',
        ),
        ({"stdin": 1}, "stdin", "stdin must be a string"),
        ({"stdin_base64": "?"}, "stdin_base64", "stdin_base64 is not base64"),
        ({"stdin": "", "stdin_base64": ""}, "stdin", "stdin and stdin_base64 exclude each other"),
        ({"argv": ["ls"]}, "argv", "argv is a program of its own: it goes without code"),
        ({"code": None}, "code", "code is missing"),
        ({"code": None, "argv": []}, "argv", "argv must begin with the name of a program"),
        ({"code": None, "argv": [""]}, "argv", "argv must begin with the name of a program"),
        (
            {"code": None, "argv": ["a", 1]},
            "argv",
            "argv: element 1 must be a string without NUL",
        ),
        (
            {"code": None, "argv": ["a", "\0"]},
            "argv",
            "argv: element 1 must be a string without NUL",
        ),
        ({"code": None, "argv": "ls"}, "argv", "argv must be an array of at most 1024 strings"),
        (
            {"code": None, "argv": ["x"] * 1025},
            "argv",
            "argv must be an array of at most 1024 strings",
        ),
        ({"code": None, "argv": ["x" * 32769]}, "argv", "argv is larger than 32768 bytes"),
        (
            {"code": None, "argv": ["\x01" * 32000]},
            "argv",
            "argv, env and cwd are too large together",
        ),
        (
            {"code": None, "argv": ["ls"], "language": "bash"},
            "argv",
            "argv is a program of its own: it goes without language",
        ),
    ],
)
def test_wrong_members(daemon: Daemon, body: dict, field: str, words: str) -> None:
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1", **body})
    assert r.status_code == 400
    assert r.json() == {"error": words, "code": "invalid_request", "field": field}


def test_unknown_members_are_named(daemon: Daemon) -> None:
    sid = daemon.create()
    for path, body, name, known in (
        (f"/{sid}/exec", {"code": "1", "lang": "bash"}, "lang", "code, argv, language"),
        ("", {"memory": 128}, "memory", "template, memory_mib"),
        (f"/{sid}/fork", {"count": 2}, "count", "n, reseed"),
        (f"/{sid}/exec/x/interrupt", {"force": True}, "force", "escalate"),
        (f"/{sid}/exec", {"x" * 500: 1}, "x" * 64, "code"),
        (f"/{sid}/exec", {"lang": None, "code": "1"}, "lang", "code"),
    ):
        r = daemon.http.post(f"/v1/sandboxes{path}", json=body)
        assert r.status_code == 400 and r.json()["field"] == name
        assert r.json()["error"].startswith(f'"{name}" is not known here; there are: {known}')


def test_an_agent_that_forgets_the_deadline(start: Callable[..., Daemon]) -> None:
    """The host cancels; the caller hears of its timeout, and the sandbox lives."""
    d = start(env=SLACK)
    sid = d.create()
    begin = time.monotonic()
    ev = events_without_time(d.exec(sid, "#fake:deaf cancel", timeout=0.5, rich=True))
    assert ev == [rich_exit(124, "timeout")]
    assert 0.9 < time.monotonic() - begin < 15
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


@pytest.mark.parametrize("what", ["deaf", "mute", "trickle"])
def test_an_agent_that_does_not_even_cancel(start: Callable[..., Daemon], what: str) -> None:
    """The caller hears of its timeout all the same; the sandbox ends."""
    d = start(env=SLACK)
    sid = d.create()
    begin = time.monotonic()
    with running(d, sid, f"#fake:{what}", timeout=0.5) as r:
        ev = [json.loads(x) for x in r.iter_lines()]
    assert 1.5 < time.monotonic() - begin < 15
    ev = events_without_time(ev)
    assert all(e["data"].strip(".") == "" for e in ev[:-2])
    assert ev[-2:] == [
        {"type": "stderr", "data": "podflare: sandbox ended: guest does not answer\n"},
        rich_exit(124, "timeout", state="lost", truncated=True),
    ]
    assert d.http.get(f"/v1/sandboxes/{sid}").json()["ended_reason"] == "guest does not answer"


def test_what_waits_behind_a_silent_agent(start: Callable[..., Daemon]) -> None:
    d = start(env=SLACK)
    sid = d.create()
    with running(d, sid, "#fake:mute", timeout=0.5) as r:
        with running(d, sid, "echo never") as other:
            assert last(r)["termination_reason"] == "timeout"
            assert last(other)["termination_reason"] == "vm_ended"


def test_an_end_that_comes_late(start: Callable[..., Daemon]) -> None:
    """Within the slack it is the agent's own word, and the sandbox lives."""
    d = start(env={"PODFLARE_EXEC_SLACK": "20"})
    sid = d.create()
    ev = events_without_time(d.exec(sid, "#fake:late 3", timeout=0.5, rich=True))
    assert ev == [rich_exit(124, "timeout")]
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


def test_a_slow_client_is_not_a_late_guest(start: Callable[..., Daemon]) -> None:
    """Its EXIT waits behind output that nobody takes: the sandbox must not be blamed."""
    d = start(env=SLACK)
    sid = d.create()
    with running(d, sid, "yes 0123456789 | head -c 6000000; sleep 60", timeout=1) as r:
        time.sleep(5)
        assert last(r)["termination_reason"] == "timeout"
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


def test_a_frozen_guest_is_not_late(start: Callable[..., Daemon]) -> None:
    """While a fork has it stand still, its deadlines are put off."""
    d = start(env={**SLACK, "PODFLARE_FREEZE_TIMEOUT": "4"})
    sid = d.create()
    d.exec(sid, "#fake:once freeze mute")
    with running(d, sid, "#fake:deaf cancel", timeout=0.5) as r:
        fork = threading.Thread(
            target=lambda: d.http.post(f"/v1/sandboxes/{sid}/fork", json={}, timeout=60)
        )
        fork.start()
        end = last(r)
        fork.join()
    assert end["termination_reason"] == "timeout" and end["duration_ms"] > 3000


def test_events_without_end(start: Callable[..., Daemon]) -> None:
    """A guest that goes on sending beyond the deadline is not waited for without an end."""
    d = start(env=SLACK)
    sid = d.create()
    with running(d, sid, "#fake:endless-event deaf", timeout=0.5, output_limit=65536) as r:
        tail = b""
        for chunk in r.iter_raw(1 << 20):
            tail = (tail + chunk)[-2000:]
    assert json.loads(tail.splitlines()[-1])["termination_reason"] == "timeout"
    assert b"guest does not answer" in tail


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


def test_no_timeout(start: Callable[..., Daemon]) -> None:
    d = start(env=SLACK)
    sid = d.create()
    assert stdout_of(d.exec(sid, "sleep 3; echo done", timeout=0)) == "done"


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


def test_an_unknown_context(daemon: Daemon) -> None:
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1", "context_id": "none"})
    assert r.status_code == 404
    assert r.json() == {
        "error": "no such context",
        "code": "context_not_found",
        "field": "context_id",
    }


# --- how it ended ---------------------------------------------------------------------------


def test_deleted_meanwhile(daemon: Daemon) -> None:
    sid = daemon.create()
    with running(daemon, sid, "echo on; sleep 60") as r, running(daemon, sid, "echo") as queued:
        daemon.http.delete(f"/v1/sandboxes/{sid}")
        ev = events_without_time([json.loads(x) for x in r.iter_lines()])
        assert ev[1:] == [
            {"type": "stderr", "data": "podflare: sandbox ended: deleted\n"},
            rich_exit(-1, "closed", state="lost"),
        ]
        # It had not started.
        ev = [json.loads(x) for x in queued.iter_lines()]
        assert [e["type"] for e in ev] == ["stderr", "exit"]
        assert ev[1]["termination_reason"] == "closed" and ev[1]["duration_ms"] == 0


def test_much_output_is_cut_in_the_guest(daemon: Daemon) -> None:
    sid = daemon.create()
    code = "seq 1 200000"
    ev = daemon.exec(sid, code, rich=True, output_limit=65536)
    text = "".join(e["data"] for e in ev if e["type"] == "stdout")
    whole = "".join(f"{i}\n" for i in range(1, 200001))
    assert text == whole[:32768] + whole[-32768:]
    end = ev[-1]
    assert end["truncated"] is True and end["bytes_dropped"] == len(whole) - 65536
    assert list(end["log"]) == ["stdout"] and end["log"]["stdout"].endswith(".stdout")
    # Plain mode has no more members than documented.
    end = daemon.exec(sid, code, output_limit=65536)[-1]
    assert sorted(end) == ["data", "seq", "ts", "type"]


GOOD = {"truncated": True, "bytes_dropped": 7, "signal": 9, "log": {"stdout": "/a", "x": 1}}


def test_the_members_of_the_exit(daemon: Daemon) -> None:
    sid = daemon.create()
    ev = events_without_time(daemon.exec(sid, f"#fake:exit {json.dumps(GOOD)}", rich=True))
    assert ev == [rich_exit(0, truncated=True, bytes_dropped=7, signal=9, log={"stdout": "/a"})]
    for short, told in ((True, {"log_truncated": True}), (False, {})):
        ask = json.dumps({"log_truncated": short})
        ev = events_without_time(daemon.exec(sid, f"#fake:exit {ask}", rich=True))
        assert ev == [rich_exit(0, **told)]
    for reason in ("exited", "signaled", "timeout", "interrupted", "oom", "output_limit"):
        ask = json.dumps({"reason": reason, "exit_code": 255, "state": "lost", "log": None})
        ev = events_without_time(daemon.exec(sid, f"#fake:exit {ask}", rich=True))
        assert ev == [rich_exit(255, reason, state="lost")]


@pytest.mark.parametrize(
    "wrong",
    [
        {"exit_code": 256},
        {"exit_code": -1},
        {"exit_code": 1.0},
        {"exit_code": None},
        {"reason": "repl_died"},
        {"reason": "vm_ended"},
        {"reason": "cancelled"},  # nobody has asked for it
        {"reason": ["exited"]},
        {"state": "gone"},
        {"state": None},
        {"duration_ms": -1},
        {"duration_ms": "1"},
        {"duration_ms": 2**63 - 1 + 1},
        {"truncated": 1},
        {"truncated": None},
        {"bytes_dropped": -1},
        {"bytes_dropped": 0.5},
        {"signal": 0},
        {"signal": 65},
        {"signal": "KILL"},
        {"log": "x"},
        {"log": {"stdout": 1}},
        {"log": {"stderr": "/" + "x" * 5000}},
        {"log": []},
        {"log_truncated": 1},
        {"log_truncated": None},
    ],
)
def test_a_wrong_exit(daemon: Daemon, wrong: dict) -> None:
    sid = daemon.create()
    ask = f"#fake:exit {json.dumps(wrong)}"
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": ask})
    assert r.status_code == 502
    assert r.json()["error"] == "the guest's agent broke the protocol while the command ran"
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"
