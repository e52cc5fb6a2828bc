"""How a command ends: in time or when its agent does not answer, and what its last event says."""

import json
import threading
import time
from collections.abc import Callable

import pytest

from conftest import Daemon, stdout_of, wait_for
from execs import SLACK, last, running
from test_exec import alive, events_without_time, rich_exit


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


def test_an_agent_that_forgets_the_deadline(start: Callable[..., Daemon]) -> None:
    """The host cancels; the caller hears of its timeout, and the sandbox lives."""
    d = start(env=SLACK)
    sid = d.create()
    begin = time.monotonic()
    ev = events_without_time(d.exec(sid, "#fake:deaf cancel", timeout=0.5, rich=True))
    assert ev == [rich_exit(124, "timeout")]
    assert 0.9 < time.monotonic() - begin < 15
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


def test_an_agent_that_ends_the_stream_with_its_answer(daemon: Daemon) -> None:
    """Nobody is called for a stream that has no owner any more; and it is not used again."""
    sid = daemon.create()
    for _ in range(20):
        assert daemon.exec(sid, "#fake:last", rich=True)[-1]["exit_code"] == 0
        assert stdout_of(daemon.exec(sid, "echo next")) == "next"
    daemon.exec(sid, "#fake:last")
    time.sleep(0.6)  # more than the end of a stream waits for its owner
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


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


def test_no_timeout(start: Callable[..., Daemon]) -> None:
    d = start(env=SLACK)
    sid = d.create()
    assert stdout_of(d.exec(sid, "sleep 3; echo done", timeout=0)) == "done"


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
