"""Records: the log of a sandbox, the file, metrics, and denials in exit events."""

import json
import os
import stat
import threading
from collections.abc import Callable
from typing import Any

import pytest

from conftest import SANITIZED, Daemon, wait_for
from egress import ask, grant, guest, inject, log, metrics, order, put, wait_no_proxy

DENIED = 'podflare_egress_decisions_total{verdict="deny",reason="not_allowed"}'
ALLOWED = 'podflare_egress_decisions_total{verdict="allow",reason=""}'


def rich(d: Daemon, sid: str, code: str, **body: Any) -> dict:
    """The exit event of the rich form."""
    return d.exec(sid, code, rich=True, **body)[-1]


def open_code(*hosts: str) -> str:
    """Code of a guest that asks for these one after the other, on one connection."""
    return "#fake:guest " + json.dumps(
        {"op": "open", "name": "x", "line": "\n".join(json.dumps({"host": h}) for h in hosts)}
    )


def test_records(daemon: Daemon) -> None:
    """Decision and end, with the sandbox first; nothing that the proxy adds beside."""
    sid = daemon.create(egress=grant("allowed.test"))
    assert ask(daemon, sid, name="a") == "allow"
    assert ask(daemon, sid, "denied.test", name="b") == "deny not_allowed"
    guest(daemon, sid, "close", name="a")
    wait_for(lambda: len(log(daemon, sid)) == 3)
    first, second, third = log(daemon, sid)
    assert list(first)[:2] == ["sandbox", "type"] and first["exec"].startswith("exec_")
    first.pop("exec")
    assert first == {
        "sandbox": sid,
        "type": "decision",
        "time": "2026-11-24T03:04:05.678Z",
        "id": 1,
        "stream": 1,
        "proto": "connect",
        "host": "allowed.test",
        "port": 443,
        "method": None,
        "address": "192.0.2.1",
        "rule": "allowed.test",
        "verdict": "allow",
        "reason": None,
        "detail": "",
    }
    assert (second["verdict"], second["reason"], second["host"]) == ("deny", "not_allowed", "denied.test")
    assert third["type"] == "end" and third["id"] == 1
    assert (third["bytes_up"], third["bytes_down"], third["duration_ms"], third["why"]) == (10, 20, 5, None)
    # The file has the same lines.
    path = daemon.state / "egress.jsonl"
    assert [json.loads(x) for x in path.read_text().splitlines()] == log(daemon, sid)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_unknown_members_are_left_out(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    order(daemon, sid, record={"verdict": "deny", "reason": "port", "headers": "x", "sandbox": "sbx_other"})
    (record,) = log(daemon, sid)
    assert "headers" not in record and record["sandbox"] == sid and record["reason"] == "port"


def test_the_limit_of_the_log(daemon: Daemon) -> None:
    """A thousand records, the last ones; oldest first."""
    sid = daemon.create(egress=grant("allowed.test"))
    order(daemon, sid, flood=1100)
    wait_for(lambda: log(daemon, sid, "?limit=1")[0]["id"] == 1100)
    assert [r["id"] for r in log(daemon, sid)] == list(range(101, 1101))
    assert [r["id"] for r in log(daemon, sid, "?limit=3")] == [1098, 1099, 1100]
    assert len(log(daemon, sid, "?limit=1000")) == 1000
    assert len((daemon.state / "egress.jsonl").read_text().splitlines()) == 1100, "the file has all"
    assert log(daemon, daemon.create()) == []


@pytest.mark.parametrize("limit", ["0", "1001", "x", "", "-1", "1.5", "99999999999"])
def test_bad_limits(daemon: Daemon, limit: str) -> None:
    sid = daemon.create()
    r = daemon.http.get(f"/v1/sandboxes/{sid}/egress/log?limit={limit}")
    assert r.status_code == 400 and r.json()["field"] == "limit"


def test_the_log_outlives_the_grant(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    ask(daemon, sid, name="a")
    put(daemon, sid, False)
    wait_no_proxy(daemon)
    assert [r["type"] for r in log(daemon, sid)] == ["decision", "end"]


def test_the_file_is_rotated(start: Callable[..., Daemon], tmp_path: Any) -> None:
    d = start()
    sid = d.create(egress=grant("allowed.test"))
    ask(d, sid, "first.test", name="a")
    d.stop()
    path = d.state / "egress.jsonl"
    with open(path, "r+b") as f:
        f.truncate((64 << 20) - 100)
        f.seek(-1, os.SEEK_END)
        f.write(b"\n")
    d.start()
    sid = d.create(egress=grant("allowed.test"))
    ask(d, sid, "second.test", name="b")
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["host"] == "second.test"
    old = d.state / "egress.jsonl.1"
    assert old.stat().st_size == (64 << 20) - 100 and b"first.test" in old.read_bytes()[:1000]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_older_files_are_kept(start: Callable[..., Daemon]) -> None:
    """Four of them: what they hold can be told from their names."""
    d = start()
    path = d.state / "egress.jsonl"
    for i in range(6):
        sid = d.create(egress=grant("allowed.test"))
        ask(d, sid, f"host{i}.test", name="a")
        d.stop()
        with open(path, "r+b") as f:
            f.truncate((64 << 20) - 100)
            f.seek(-1, os.SEEK_END)
            f.write(b"\n")
        d.start()
    for i in range(4):
        assert f"host{4 - i}.test".encode() in (d.state / f"egress.jsonl.{i + 1}").open("rb").read(1000)
    assert not (d.state / "egress.jsonl.5").exists()


def lines_of(d: Daemon, sid: str) -> list[dict]:
    """What the file has of one sandbox."""
    all_lines = [json.loads(x) for x in (d.state / "egress.jsonl").read_text().splitlines()]
    return [x for x in all_lines if x["sandbox"] == sid]


def test_a_flood_takes_a_share_of_the_file(daemon: Daemon) -> None:
    """Equal denials become one line, which says for how many; all are counted."""
    other, sid = (daemon.create(egress=grant("allowed.test")) for _ in range(2))
    order(daemon, sid, flood=6000)
    ask(daemon, other, "quiet.test", name="q")
    assert [x["host"] for x in lines_of(daemon, other)] == ["quiet.test"]
    wait_for(lambda: metrics(daemon)[DENIED] == 6001)
    assert log(daemon, sid, "?limit=1")[0]["id"] == 6000, "its own log has the last ones"
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    wait_for(lambda: any("suppressed" in x for x in lines_of(daemon, sid)))
    every = lines_of(daemon, sid)
    held = [x for x in every if "suppressed" in x]
    # It may write one more a second, and what is held waits for a minute at most.
    own = len(every) - len(held)
    suppressed = sum(x["suppressed"] for x in held)
    assert 2000 <= own < 4000 and own + suppressed == 6000
    assert metrics(daemon)["podflare_egress_suppressed_total"] == suppressed
    for x in held:
        assert (x["host"], x["verdict"], x["reason"]) == ("flood.test", "deny", "not_allowed")
        assert x["id"] > 2000 and x["until"] == x["time"] == "2026-11-24T03:04:05.678Z"


def test_a_flood_of_many_kinds(start: Callable[..., Daemon]) -> None:
    """Sixteen are told apart, the rest is one line of each kind; bytes are those of all."""
    d = start()
    sid = d.create(egress=grant("flood1.test", "flood2.test"))
    order(d, sid, flood=6000, hosts=40)
    wait_for(lambda: log(d, sid, "?limit=1")[0]["id"] == 6000)
    put(d, sid, False)
    d.http.delete(f"/v1/sandboxes/{sid}")
    wait_for(lambda: any("suppressed" in x for x in lines_of(d, sid)))
    every = lines_of(d, sid)
    held = [x for x in every if "suppressed" in x]
    assert len(every) - len(held) < 4000 and len(held) > 16
    for kind, verdict, n in (("decision", "deny", 5700), ("decision", "allow", 300), ("end", "allow", 300)):
        of = [x for x in every if (x["type"], x["verdict"]) == (kind, verdict)]
        assert sum(x.get("suppressed", 1) for x in of) == n
        if kind == "end":
            assert sum(x["bytes_up"] for x in of) == 10 * n and sum(x["bytes_down"] for x in of) == 20 * n
    rest = [x for x in held if x["verdict"] == "deny" and x["host"] is None]
    assert rest and all(x["port"] == 0 and x["rule"] is None for x in rest)
    assert {x["reason"] for x in rest} == {"not_allowed"}


def test_copies_have_the_share_of_their_line(daemon: Daemon) -> None:
    """Not one each."""
    sid = daemon.create(egress=grant("allowed.test"))
    order(daemon, sid, flood=1500)
    copies = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 3}).json()["children"]
    for c in copies:
        order(daemon, c, flood=1500)
    own = [x for c in (sid, *copies) for x in lines_of(daemon, c) if "suppressed" not in x]
    # And one more a second, for all.
    assert 2000 <= len(own) < 3000
    for c in copies:
        daemon.http.delete(f"/v1/sandboxes/{c}")
    wait_for(lambda: any("suppressed" in x for x in lines_of(daemon, copies[-1])))
    assert sum(x.get("suppressed", 1) for x in lines_of(daemon, copies[-1])) == 1500


def test_a_key_takes_a_share_of_the_file(start: Callable[..., Daemon]) -> None:
    """However many sandboxes it makes; what another one's do is all there, and everything is counted."""
    d = start(env={"PODFLARE_API_KEYS": "pk_ann_1f0c,pk_bob_77e2"})
    d.http.headers["authorization"] = "Bearer pk_bob_77e2"
    other = d.create(egress=grant("allowed.test"))
    d.http.headers["authorization"] = "Bearer pk_ann_1f0c"
    n, each = 12, 2500
    for i in range(n):
        sid = d.create(egress=grant("allowed.test"))
        order(d, sid, flood=each, hosts=50)
        d.http.delete(f"/v1/sandboxes/{sid}")
    wait_no_proxy(d)
    suppressed = metrics(d)["podflare_egress_suppressed_total"]
    d.http.headers["authorization"] = "Bearer pk_bob_77e2"
    for i in range(5):
        ask(d, other, f"quiet{i}.test", name=f"q{i}")
    assert [x["host"] for x in lines_of(d, other)] == [f"quiet{i}.test" for i in range(5)]
    d.stop()
    every = [json.loads(x) for x in (d.state / "egress.jsonl").read_text().splitlines()]
    every = [x for x in every if x["sandbox"] != other]
    # And ten more a second.
    assert 20_000 <= len(every) < 22_000, len(every)
    assert sum(x.get("suppressed", 1) for x in every) == n * each
    assert sum(x.get("suppressed", 0) for x in every) == suppressed
    (last,) = (x for x in every if x["sandbox"] is None)
    assert last["suppressed"] > 1000 and (last["verdict"], last["reason"]) == ("deny", "not_allowed")
    assert (last["host"], last["exec"], last["id"], last["stream"]) == (None, None, 0, 0)
    assert f"owner={last['owner']} " in d.log_text()


def test_a_key_that_is_alone_shares_with_nobody(start: Callable[..., Daemon]) -> None:
    """Its sandboxes have each what a sandbox has."""
    d = start(env={"PODFLARE_API_KEYS": "pk_ann_1f0c"})
    d.http.headers["authorization"] = "Bearer pk_ann_1f0c"
    n, each = 11, 2100
    for _ in range(n):
        sid = d.create(egress=grant("allowed.test"))
        order(d, sid, flood=each, hosts=50)
        d.http.delete(f"/v1/sandboxes/{sid}")
    wait_no_proxy(d)
    d.stop()
    every = [json.loads(x) for x in (d.state / "egress.jsonl").read_text().splitlines()]
    assert len(every) >= n * 2000
    assert all(x["sandbox"] for x in every)
    assert sum(x.get("suppressed", 1) for x in every) == n * each


def test_the_file_is_plain_text(daemon: Daemon) -> None:
    """Nothing in it that a terminal, or a reader, could take for something else."""
    sid = daemon.create(egress=grant("allowed.test"))
    odd = "a\x7fb\u009b31mc\u202ed\u0085e\u2066"
    order(daemon, sid, record={"verdict": "deny", "reason": "port", "detail": odd})
    assert log(daemon, sid)[0]["detail"] == odd
    raw = (daemon.state / "egress.jsonl").read_bytes()
    assert all(0x20 <= c < 0x7F or c == 0x0A for c in raw)


def test_a_torn_line_is_ended(daemon: Daemon) -> None:
    """What a crash left begins no record of now."""
    daemon.stop()
    path = daemon.state / "egress.jsonl"
    path.write_text('{"half')
    daemon.start()
    sid = daemon.create(egress=grant("allowed.test"))
    ask(daemon, sid)
    half, whole = path.read_text().splitlines()
    assert half == '{"half' and json.loads(whole)["host"] == "allowed.test"


def test_metrics(daemon: Daemon) -> None:
    first = {name: n for name, n in metrics(daemon).items() if not name.startswith("process_")}
    assert first == {
        "podflare_sandboxes": 0,
        "podflare_egress_proxies": 0,
        ALLOWED: 0,
        'podflare_egress_bytes_total{direction="up"}': 0,
        'podflare_egress_bytes_total{direction="down"}': 0,
        "podflare_egress_connections": 0,
        "podflare_egress_suppressed_total": 0,
        "podflare_egress_lost_total": 0,
    }
    sid = daemon.create(egress=grant("allowed.test"))
    for i in range(3):
        ask(daemon, sid, name=f"a{i}")
    for i in range(2):
        ask(daemon, sid, "denied.test", name=f"d{i}")
    m = metrics(daemon)
    assert (m[ALLOWED], m[DENIED], m["podflare_egress_connections"]) == (3, 2, 3)
    assert (m["podflare_sandboxes"], m["podflare_egress_proxies"]) == (1, 1)
    guest(daemon, sid, "close", name="a0")
    wait_for(lambda: metrics(daemon)["podflare_egress_connections"] == 2)
    m = metrics(daemon)
    assert m['podflare_egress_bytes_total{direction="up"}'] == 10
    assert m['podflare_egress_bytes_total{direction="down"}'] == 20
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    wait_no_proxy(daemon)
    m = metrics(daemon)
    assert m["podflare_egress_connections"] == m["podflare_sandboxes"] == 0 and m[ALLOWED] == 3
    # Every sample belongs to a family that was declared, and nothing names a sandbox or a host.
    text = daemon.http.get("/v1/metrics").text
    declared = {x.split()[2] for x in text.splitlines() if x.startswith("# TYPE")}
    assert {name.partition("{")[0] for name in m} == declared
    assert sid not in text and "allowed.test" not in text


# --- denials of execs -----------------------------------------------------------------------


def test_denied_in_the_exit_event(daemon: Daemon) -> None:
    """One entry for each destination and reason, with how often."""
    sid = daemon.create(egress=grant("allowed.test"))
    assert "denied" not in rich(daemon, sid, "true")
    event = rich(daemon, sid, open_code("allowed.test"))
    assert "denied" not in event and event["data"] == 0
    event = rich(daemon, sid, open_code("one.test"))
    one = {"host": "one.test", "port": 443, "reason": "not_allowed", "hint": "ask for one.test", "count": 1}
    assert event["denied"] == [one]
    # On a connection of a command that has ended: it counts for the one that runs.
    event = rich(daemon, sid, "#fake:guest " + json.dumps({"op": "line", "name": "x", "line": '{"host": "three.test"}'}))
    assert event["denied"] == [one | {"host": "three.test", "hint": "ask for three.test"}]


def test_a_denial_is_never_late(daemon: Daemon) -> None:
    """The record was sent ahead of the verdict; the exit event waits for what waits there."""
    sid = daemon.create(egress=grant("allowed.test"))
    for i in range(40):
        event = rich(daemon, sid, "#fake:guest " + json.dumps({"op": "open", "name": "x", "line": f'{{"host": "h{i}.test"}}'}))
        assert [x["host"] for x in event["denied"]] == [f"h{i}.test"]


def test_counts_and_the_most_entries(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    many = [f"h{i}.test" for i in range(40)]
    line = "\n".join(json.dumps({"host": h}) for h in [*many, "h1.test", "h1.test"])
    code = "#fake:guest " + json.dumps({"op": "open", "name": "x", "line": line})
    # The guest reads one answer; the others it would not wait for, so it asks once more at the end.
    assert guest(daemon, sid, "open", name="y", line='{"stream": true}')
    events: list[dict] = []
    t = threading.Thread(target=lambda: events.append(rich(daemon, sid, "import time; time.sleep(3)", language="python")))
    t.start()
    wait_for(lambda: daemon.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"])
    daemon.http.post(f"/v1/sandboxes/{sid}/contexts", json={"context_id": "c"})
    daemon.http.post(
        f"/v1/sandboxes/{sid}/exec", json={"code": code, "language": "python", "context_id": "c"}
    )
    wait_for(lambda: len(log(daemon, sid)) == 42)
    t.join()
    denied = events[0]["denied"]
    assert [x["host"] for x in denied] == many[:32]
    assert [x["count"] for x in denied[:3]] == [1, 3, 1]


def test_not_in_the_plain_form(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    events = daemon.exec(sid, open_code("denied.test"))
    assert set(events[-1]) == {"type", "data", "seq", "ts"} or "denied" not in events[-1]


def test_several_at_once(daemon: Daemon) -> None:
    """All that ran are told, when it is not known whose it was; one that is named is told alone."""
    sid = daemon.create(egress=grant("allowed.test"))
    daemon.http.post(f"/v1/sandboxes/{sid}/contexts", json={"context_id": "c"})
    # A connection of the first alone, and used later: the proxy says whose it is.
    line = '{"stream": true}'
    results: dict[str, dict] = {}

    def run(name: str, code: str, **more: Any) -> threading.Thread:
        def go() -> None:
            results[name] = rich(daemon, sid, code, **more)

        t = threading.Thread(target=go)
        t.start()
        return t

    guest(daemon, sid, "open", name="before", line=line)
    t = run("one", "import time; time.sleep(4)", language="python")
    wait_for(lambda: len(daemon.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"]) == 1)
    code = "#fake:guest " + json.dumps({"op": "open", "name": "z", "line": '{"host": "both.test"}'})
    second = rich(daemon, sid, code, language="python", context_id="c")
    assert [x["host"] for x in second["denied"]] == ["both.test"]
    # A connection of a command that has ended counts for those that run now.
    old = "#fake:guest " + json.dumps({"op": "line", "name": "before", "line": '{"host": "old.test"}'})
    third = rich(daemon, sid, old, language="python", context_id="c")
    assert [x["host"] for x in third["denied"]] == ["old.test"]
    t.join()
    assert [x["host"] for x in results["one"]["denied"]] == ["both.test", "old.test"]


def test_what_was_before_is_not_told(daemon: Daemon) -> None:
    """A denial without a command is in the log only."""
    sid = daemon.create(egress=grant("allowed.test"))
    guest(daemon, sid, "open", name="a", line='{"stream": true}')
    command = {"argv": ["sleep", "60"]}
    assert daemon.http.post(f"/v1/sandboxes/{sid}/commands", json=command).status_code == 200
    order(daemon, sid, record={"verdict": "deny", "reason": "port"})
    wait_for(lambda: log(daemon, sid))
    assert "denied" not in rich(daemon, sid, "true")


def test_denials_of_one_that_ends_with_the_sandbox(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    guest(daemon, sid, "open", name="a", line='{"stream": true}')
    results: list[dict] = []
    t = threading.Thread(target=lambda: results.append(rich(daemon, sid, "import time; time.sleep(60)", language="python")))
    t.start()
    wait_for(lambda: daemon.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"])
    daemon.http.post(f"/v1/sandboxes/{sid}/contexts", json={"context_id": "c"})
    code = "#fake:guest " + json.dumps({"op": "open", "name": "z", "line": '{"host": "both.test"}'})
    daemon.exec(sid, code, "python", context_id="c")
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    t.join()
    assert results[0]["termination_reason"] == "closed"
    assert [x["host"] for x in results[0]["denied"]] == ["both.test"]


@pytest.mark.bounds
@pytest.mark.skipif(SANITIZED, reason="measures memory")
def test_a_flood_of_records_takes_bounded_memory(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test"))
    order(daemon, sid, flood=1000)
    wait_for(lambda: log(daemon, sid, "?limit=1")[0]["id"] == 1000)
    before = daemon.rss_kib()
    order(daemon, sid, name="more", flood=20000)
    wait_for(lambda: log(daemon, sid, "?limit=1")[0]["id"] == 21000, 60)
    assert daemon.rss_kib() < before + 2048


def test_inject_names_are_in_no_record(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("allowed.test", inject=inject("allowed.test", XSecret="v")))
    ask(daemon, sid)
    assert "XSecret" not in (daemon.state / "egress.jsonl").read_text()
