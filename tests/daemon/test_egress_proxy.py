"""Proxy processes: when they are started and ended, what they are given, and those that misbehave."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Daemon, stdout_of, wait_for
from egress import OFF, ask, get, grant, guest, inject, log, metrics, mode, notes, order, policies
from egress import put, started, wait_failed, wait_no_proxy

F_SEALS = 1 | 2 | 4 | 8  # SEAL, SHRINK, GROW, WRITE


def proxy_pids(d: Daemon) -> list[int]:
    """Those that run."""
    pids = []
    for pid in d.children():
        try:
            if "fake_egress" in Path(f"/proc/{pid}/cmdline").read_text():
                pids.append(pid)
        except OSError:
            pass
    return pids


def works(d: Daemon, sid: str) -> bool:
    """Whether commands run in it."""
    return stdout_of(d.exec(sid, "echo works")) == "works"


def test_one_proxy_a_sandbox_from_the_first_connection_on(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    other = daemon.create(egress=grant("allowed.test"))
    assert started(daemon) == 0
    assert ask(daemon, sid, name="a") == ask(daemon, sid, name="b") == "allow"
    assert started(daemon) == 1
    assert ask(daemon, other) == "allow"
    assert started(daemon) == 2 and metrics(daemon)["podflare_egress_proxies"] == 2
    assert [p["sandbox"] for p in policies(daemon)] == [sid, other]


def test_what_it_is_given(daemon: Daemon) -> None:
    """The control socket, /dev/null twice, stderr; no environment; a sealed policy with all its members."""
    sid = daemon.create(egress=grant("allowed.test", "pypi"))
    ask(daemon, sid)
    (note,) = notes(daemon, "pid")
    assert note["fds"] == [0, 1, 2, 3] and len(note["argv"]) == 1, "no arguments"
    # What is there is of the shell between (conftest.py).
    assert set(note["env"]) <= {"PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"}
    (told,) = notes(daemon, "policy")
    assert told["seals"] == F_SEALS
    policy = told["policy"]
    assert set(policy.pop("groups")) >= {"pypi", "npm", "debian", "crates", "github", "huggingface"}
    assert policy == {
        "sandbox": sid,
        "allow": ["allowed.test", "pypi"],
        "ceiling": None,
        "inject": {},
        "ca": None,
        "allow_ranges": [],
        "own_ranges": [],
        "resolve": {},
        "resolvers": None,
        "upstream_ca_pem": None,
        "limits": {},
    }


@pytest.mark.parametrize("how", ["delete", "put", "poweroff", "kill", "stop"])
def test_it_ends_with_the_sandbox_or_the_grant(daemon: Daemon, how: str) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    ask(daemon, sid)
    if how == "delete":
        daemon.http.delete(f"/v1/sandboxes/{sid}")
    elif how == "put":
        put(daemon, sid, False)
    elif how == "stop":
        daemon.stop()
        assert notes(daemon, "left")
        return
    else:
        daemon.exec(sid, f"#fake:{how}")
    wait_no_proxy(daemon)
    assert proxy_pids(daemon) == [] and notes(daemon, "left"), "it was told, and not killed"
    # Its last words are in the audit.
    lines = [json.loads(x) for x in (daemon.state / "egress.jsonl").read_text().splitlines()]
    assert [x["type"] for x in lines] == ["decision", "end"]


def test_one_that_does_not_leave_is_killed(daemon: Daemon) -> None:
    mode(daemon, "stay")
    sid = daemon.create(egress=grant("allowed.test"))
    ask(daemon, sid)
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    wait_no_proxy(daemon)
    assert proxy_pids(daemon) == []


@pytest.mark.parametrize("how", ["delete", "put"])
def test_one_that_answers_on_its_way_out_is_killed(daemon: Daemon, how: str) -> None:
    """An answer that comes late gives it no more time."""
    mode(daemon, "stay 0.5")
    sid = daemon.create(egress=grant("allowed.test"))
    guest(daemon, sid, "many", n=1)
    if how == "delete":
        daemon.http.delete(f"/v1/sandboxes/{sid}")
    else:
        put(daemon, sid, False)
    wait_no_proxy(daemon)
    assert proxy_pids(daemon) == []


def test_the_command_that_runs_is_named(daemon: Daemon) -> None:
    """When it is one alone."""
    sid = daemon.create(egress=grant("allowed.test"))
    line = '{"stream": true}'
    code = "#fake:guest " + json.dumps({"op": "open", "name": "a", "line": line})
    (event,) = [e for e in daemon.exec(sid, code, exec_id="mine") if e["type"] == "stdout"]
    told = json.loads(json.loads(event["data"]))
    assert told["exec"] == "mine" and told["stream"] == 1
    daemon.http.post(f"/v1/sandboxes/{sid}/contexts", json={"context_id": "c"})
    t = threading.Thread(target=lambda: daemon.exec(sid, "import time; time.sleep(2)", "python", context_id="c"))
    t.start()
    wait_for(lambda: len(daemon.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"]) == 1)
    told = json.loads(guest(daemon, sid, "open", name="b", line=line))
    assert told["exec"] is None and told["stream"] == 2
    t.join()


# --- failures -----------------------------------------------------------------------------


def test_killed(daemon: Daemon) -> None:
    """State failed, sandbox works on, connections end; the next one starts it again."""
    sid = daemon.create(egress=grant("allowed.test"))
    ask(daemon, sid, name="a")
    (pid,) = proxy_pids(daemon)
    os.kill(pid, signal.SIGKILL)
    assert "killed by signal 9" in wait_failed(daemon, sid)
    assert get(daemon, sid)["allow"] == ["allowed.test"]
    assert guest(daemon, sid, "read", name="a") == "", "nothing hangs"
    assert works(daemon, sid) and metrics(daemon)["podflare_egress_connections"] == 0
    assert ask(daemon, sid, name="b") == "allow"
    assert get(daemon, sid) == {**OFF, "allow": ["allowed.test"], "state": "on"}
    assert started(daemon) == 2 and policies(daemon)[0] == policies(daemon)[1]
    records = log(daemon, sid)
    assert [(r["id"], r["stream"]) for r in records] == [(1, 1), (2, 2)], "numbers go on"


def test_bytes_are_the_sandboxs(daemon: Daemon) -> None:
    """A proxy is told what those before it have counted: one that was killed, one whose grant was
    taken away, which may tell of its last ones after the next has begun. A copy begins anew."""

    def last() -> int:
        return int(notes(daemon, "used")[-1]["used"])

    sid = daemon.create(egress=grant("allowed.test"))
    assert ask(daemon, sid, name="a") == "allow"
    order(daemon, sid, "told", raw='{"type":"used","bytes":1000}')
    assert not notes(daemon, "used")
    os.kill(proxy_pids(daemon)[0], signal.SIGKILL)
    wait_failed(daemon, sid)
    assert ask(daemon, sid, name="b") == "allow"
    wait_for(lambda: bool(notes(daemon, "used")))
    assert last() == 1000
    put(daemon, sid, False)
    put(daemon, sid, grant("allowed.test"))
    assert ask(daemon, sid, name="c") == "allow"
    wait_for(lambda: last() == 1030)
    # What an end has is in what was told ahead of it, or comes on top.
    order(daemon, sid, "more", raw='{"type":"used","bytes":20}')
    put(daemon, sid, False)
    put(daemon, sid, grant("allowed.test"))
    assert ask(daemon, sid, name="d") == "allow"
    wait_for(lambda: last() == 1060)
    told = len(notes(daemon, "used"))
    (copy,) = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 1}).json()["results"]
    assert ask(daemon, copy["id"], name="e") == "allow"
    assert len(notes(daemon, "used")) == told


def test_at_most_five_times_a_minute(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    for i in range(6):
        assert ask(daemon, sid, name=f"n{i}") == "allow"
        order(daemon, sid, name=f"x{i}", exit=i + 1)
        wait_failed(daemon, sid)
    assert guest(daemon, sid, "open", name="late") == "rejected"
    assert started(daemon) == 6 and works(daemon, sid)
    assert get(daemon, sid)["reason"] == "the egress proxy exited with status 6"
    # A new grant is no way around it.
    r = put(daemon, sid, grant("a.test", inject=inject("a.test", True)))
    assert r.json()["reason"] == "the egress proxy has ended too often within a minute"
    assert started(daemon) == 6


def test_a_program_that_cannot_be_started(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    (daemon.tmp / "proxy").rename(daemon.tmp / "away")
    assert guest(daemon, sid, "open", name="a") == "rejected"
    assert "cannot be started" in wait_failed(daemon, sid) and works(daemon, sid)
    for i in range(8):
        assert guest(daemon, sid, "open", name="a") == "rejected"
    assert daemon.log_text().count("has failed") == 6, "the log is not flooded"
    assert put(daemon, sid, grant("b.test")).status_code == 200


def test_a_policy_that_is_refused(daemon: Daemon) -> None:
    """It runs on, and denies legibly; a better policy helps."""
    mode(daemon, "1:refuse the list\nis odd")
    sid = daemon.create(egress=grant("allowed.test"))
    assert ask(daemon, sid) == "deny not_allowed"
    assert wait_failed(daemon, sid) == "the egress proxy refused the policy: the list?is odd"
    assert works(daemon, sid) and started(daemon) == 1
    put(daemon, sid, False)
    assert put(daemon, sid, grant("allowed.test")).json()["state"] == "on"
    assert ask(daemon, sid, name="b") == "allow"


RECORD_CASES: list[dict] = [
    {"time": "yesterday"},
    {"time": None},
    {"id": 0},
    {"id": (1 << 40) + 1},
    {"id": "1"},
    {"id": 1.5},
    {"stream": 99},
    {"stream": -1},
    {"exec": "no such id!"},
    {"exec": 5},
    {"proto": "ftp"},
    {"proto": None},
    {"host": 5},
    {"port": 65536},
    {"port": "443"},
    {"method": 1},
    {"address": []},
    {"rule": {}},
    {"verdict": "maybe"},
    {"verdict": None},
    {"verdict": "deny", "reason": None},
    {"verdict": "deny", "reason": "because"},
    {"detail": 1},
    {"hint": 1},
]
END = {"type": "end", "time": "2026-11-24T03:04:05.678Z", "id": 1, "stream": 1, "exec": None}
END |= {"proto": "connect", "host": "a", "port": 1, "verdict": "allow", "reason": None}
END |= {"bytes_up": 1, "bytes_down": 1, "duration_ms": 1, "why": None}
ALLOW = {"verdict": "allow", "reason": None}


@pytest.mark.parametrize(
    "orders",
    [[{"raw": text}] for text in ("", "x", "[]", "{}", '{"type": "surprise"}', '{"type": 1}', '{"type":"end"}')]
    + [[{"raw": json.dumps({"type": "policy", "serial": 1, "error": None})}]]
    + [[{"raw": json.dumps({"type": "policy", "serial": 2, "error": None})}]]
    + [[{"raw": json.dumps({"type": "test", "serial": 1, "verdict": "allow"})}]]
    + [[{"raw": '{"type":"decision","type":"decision"}'}], [{"fd": True}]]
    + [[{"record": change}] for change in RECORD_CASES]
    + [[{"end": END}], [{"record": ALLOW}, {"end": END}, {"end": END}]]
    + [[{"record": ALLOW}, {"end": {**END, **change}}] for change in ({"bytes_up": -1}, {"bytes_down": 1 << 62})]
    + [[{"record": ALLOW}, {"end": {**END, **change}}] for change in ({"duration_ms": "1"}, {"why": "bored"})]
    + [[{"record": ALLOW}, {"end": {**END, "verdict": "deny", "reason": "port"}}]]
    + [[{"raw": f'{{"type":"used","bytes":{n}}}'}] for n in ("-1", "1.5", '"1"', "null")]
    + [[{"raw": '{"type":"used","bytes":5}'}, {"raw": '{"type":"used","bytes":4}'}]]
    + [[{"raw": '{"type":"used","bytes":5,"more":1}'}], [{"record": {"path": "/"}}]]
    + [[{"record": ALLOW}, {"end": {**END, name: (1 << 50) + 1}}] for name in ("bytes_up", "duration_ms")]
    + [[{"raw": '{"type":"used","bytes":[%s]}' % ",".join(["{}"] * 20000)}]],
    ids=lambda o: json.dumps(o)[:60],
)
def test_a_broken_proxy_is_killed(daemon: Daemon, orders: list[dict]) -> None:
    """It may have been taken over: it is ended, and the state says so."""
    sid = daemon.create(egress=grant("allowed.test"))
    pid = json.loads(order(daemon, sid, "first", stream=True))["pid"]
    for i, what in enumerate(orders):
        order(daemon, sid, f"order{i}", **what)
    reason = wait_failed(daemon, sid)
    assert reason.startswith("the egress proxy broke its protocol (") or orders == [{"raw": ""}]
    wait_no_proxy(daemon)
    assert not Path(f"/proc/{pid}").exists()
    assert metrics(daemon)["podflare_egress_connections"] == 0
    assert works(daemon, sid) and ask(daemon, sid, name="again") == "allow"


def test_long_texts_are_cut(daemon: Daemon) -> None:
    """They may be what the guest has asked for: no reason to end anything."""
    sid = daemon.create(egress=grant("allowed.test"))
    odd = {"host": "ü" * 5000, "detail": "\x00\x1b" * 1000, "method": "M" * 900, "hint": "h" * 9000}
    assert order(daemon, sid, record={"verdict": "deny", "reason": "bad_host", **odd}) == "done"
    (record,) = log(daemon, sid)
    assert record["host"] == "ü" * 128 and len(record["detail"]) == 512 and record["method"] == "M" * 32
    assert get(daemon, sid)["state"] == "on"


def test_it_must_not_speak_ahead_of_the_policy(daemon: Daemon) -> None:
    mode(daemon, "1:answer " + json.dumps({**END, **ALLOW, "type": "decision", "stream": 0}))
    sid = daemon.create(egress=grant("allowed.test"))
    guest(daemon, sid, "open", name="a")
    assert "broke its protocol" in wait_failed(daemon, sid)


@pytest.mark.parametrize(
    "answer",
    ['{"type":"policy","serial":2,"error":null}', '{"type":"policy","serial":1,"error":5}']
    + ['{"type":"policy"}', '{"type":"policy","serial":1,"error":null,"ca":5}']
    + ['{"type":"policy","serial":1,"error":null,"ca":{"cert_pem":"x"}}'],
)
def test_bad_answers_to_a_policy(daemon: Daemon, answer: str) -> None:
    mode(daemon, "1:answer " + answer)
    sid = daemon.create(egress=grant("allowed.test"))
    guest(daemon, sid, "open", name="a")
    assert "an answer to a policy" in wait_failed(daemon, sid)


def test_one_that_closes_its_socket(daemon: Daemon) -> None:
    """Without exiting: it is no use to anybody."""
    sid = daemon.create(egress=grant("allowed.test"))
    assert ask(daemon, sid, name="a") == "allow"
    t = threading.Thread(target=lambda: order(daemon, sid, close=True))
    t.start()
    assert "closed its control socket" in wait_failed(daemon, sid)
    t.join()
    assert ask(daemon, sid, name="b") == "allow"


def test_one_that_never_answers(daemon: Daemon) -> None:
    """A policy has its time; nothing waits for it but its own PUT."""
    mode(daemon, "1:mute")
    sid = daemon.create(egress=grant("a.test", inject=inject("a.test", True)))
    assert "did not answer" in get(daemon, sid)["reason"]
    assert guest(daemon, sid, "state")["told"] == [{"on": True, "ca": None}] and works(daemon, sid)


# --- back-pressure ------------------------------------------------------------------------


def test_a_full_socket_rejects(daemon: Daemon) -> None:
    """Connections are not queued without a bound, and none hangs: each is open or rejected."""
    sid = daemon.create(egress=grant("allowed.test"))
    order(daemon, sid, deaf=True)
    order_after = guest(daemon, sid, "open", name="swallowed")  # the message that it is reading now
    assert order_after == "open"
    rejected = 0
    for _ in range(20):
        rejected += guest(daemon, sid, "many", n=64).count("rejected")
        if rejected:
            break
    assert rejected and works(daemon, sid)
    # A policy does not fit either: what it lets through may not be allowed any more.
    r = put(daemon, sid, grant("b.test"))
    assert r.status_code == 200 and r.json()["state"] == "failed"
    wait_no_proxy(daemon)
    assert ask(daemon, sid, "b.test", name="again") == "allow"


def test_a_vmm_that_asks_without_a_grant(daemon: Daemon) -> None:
    """It is answered: rejected. Nothing is started."""
    sid = daemon.create()
    assert guest(daemon, sid, "many", n=64) == ["rejected"] * 64
    assert started(daemon) == 0 and works(daemon, sid)


def test_a_vmm_that_is_slow_to_take_answers(daemon: Daemon) -> None:
    """What its socket has no room for is told later; nobody waits for ever."""
    sid = daemon.create()
    assert guest(daemon, sid, "many", n=120, deaf=1) == ["rejected"] * 120
    # What holds is told as well, behind: it was on and off meanwhile.
    assert works(daemon, sid)


def test_egress_is_told_when_there_is_room(daemon: Daemon) -> None:
    sid = daemon.create()
    t = threading.Thread(target=lambda: guest(daemon, sid, "many", n=120, deaf=2))
    t.start()
    wait_for(lambda: len(daemon.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"]) == 1)
    threading.Event().wait(1)  # the socket is full
    # The agent may not be reached either, and that is told.
    assert put(daemon, sid, grant("allowed.test")).status_code in (200, 502)
    t.join()
    wait_for(lambda: guest(daemon, sid, "state")["on"])
    assert ask(daemon, sid) == "allow"


def test_a_vmm_that_takes_no_answers(daemon: Daemon) -> None:
    """More of them than it may have open: it is killed."""
    sid = daemon.create()
    events = daemon.exec(sid, "#fake:guest " + json.dumps({"op": "many", "n": 400, "deaf": 60}))
    assert events[-1]["data"] == -1
    assert "asks for connections and takes no answers" in daemon.log_text()


@pytest.mark.parametrize("port,ident", [(5555, 1), (5556, 0), (0, 1)])
def test_a_vmm_that_asks_for_something_else(daemon: Daemon, port: int, ident: int) -> None:
    """It has been taken over: it is killed."""
    sid = daemon.create(egress=grant("allowed.test"))
    events = daemon.exec(sid, "#fake:guest " + json.dumps({"op": "raw", "port": port, "id": ident}))
    assert events[-1]["data"] == -1 and started(daemon) == 0
    assert "asked for a connection that there is not" in daemon.log_text()


def test_a_vmm_cannot_call_a_proxy_its_child(daemon: Daemon) -> None:
    """It would be taken for a VMM, and end with one."""
    sid = daemon.create(egress=grant("allowed.test"))
    ask(daemon, sid, name="a")
    (pid,) = proxy_pids(daemon)
    daemon.exec(sid, f"#fake:once fork lie {pid}")
    r = daemon.http.post(f"/v1/sandboxes/{sid}/fork")
    assert r.status_code == 503
    assert proxy_pids(daemon) == [pid] or Path(f"/proc/{pid}").exists()
    assert daemon.http.get("/v1/healthz").status_code == 200


def test_many_sandboxes(start: Callable[..., Daemon]) -> None:
    """Descriptors and processes are all given back."""
    d = start()
    d.create()
    before = d.fds()
    sids = [d.create(egress=grant("allowed.test")) for _ in range(6)]
    for sid in sids:
        assert ask(d, sid) == "allow"
    for sid in sids:
        d.http.delete(f"/v1/sandboxes/{sid}")
    wait_no_proxy(d)
    wait_for(lambda: d.fds() <= before)
    out = subprocess.run(["ps", "-o", "stat=", "--ppid", str(d.proc.pid)], capture_output=True, text=True, check=False)
    assert not re.search(r"Z", out.stdout)
