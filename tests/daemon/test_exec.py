"""Running commands: event lines, streaming, order, cancelling, misbehaving guests."""

import base64
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from conftest import SANITIZED, Daemon, stdout_of, wait_for


def events_without_time(events: list[dict]) -> list[dict]:
    """Events without seq, ts, durations and the first one of rich mode, which are checked here."""
    assert [e["seq"] for e in events] == list(range(len(events)))
    assert all(abs(e["ts"] / 1000 - time.time()) < 60 for e in events)
    if "termination_reason" in events[-1]:
        assert events[0]["type"] == "started" and len(events[0]["exec_id"]) > 8
        assert events[-1]["duration_ms"] >= 0
        events = events[1:]
    drop = ("seq", "ts", "duration_ms")
    return [{k: v for k, v in e.items() if k not in drop} for e in events]


def rich_exit(code: int = 0, reason: str = "exited", **more: object) -> dict:
    """The exit event of rich mode, as events_without_time() leaves it."""
    rest = {"state": "preserved", "truncated": False, "bytes_dropped": 0, **more}
    rest = {k: v for k, v in rest.items() if v is not None}
    return {
        "type": "exit",
        "data": code,
        "exit_code": code,
        "termination_reason": reason,
        **rest,
    }


@pytest.mark.bounds
def test_the_documented_lines(daemon: Daemon) -> None:
    """Byte for byte, but for the time."""
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "print(6*7)"})
    lines = r.text.split("\n")
    assert len(lines) == 3 and lines[2] == ""
    ts = [json.loads(x)["ts"] for x in lines[:2]]
    assert lines[0] == '{"type":"stdout","data":"42","seq":0,"ts":%d}' % ts[0]
    assert lines[1] == '{"type":"exit","data":0,"seq":1,"ts":%d}' % ts[1]


def test_plain_lines(daemon: Daemon) -> None:
    sid = daemon.create()
    ev = events_without_time(daemon.exec(sid, r"printf 'a\n\nb\rc\nd'; exit 3"))
    assert ev == [
        {"type": "stdout", "data": "a"},
        {"type": "stdout", "data": ""},
        {"type": "stdout", "data": "b\rc"},
        {"type": "stdout", "data": "d"},
        {"type": "exit", "data": 3},
    ]
    ev = events_without_time(daemon.exec(sid, "kill -9 $$"))
    assert ev == [{"type": "exit", "data": 137}]


def test_a_short_request_is_one_piece(daemon: Daemon) -> None:
    """For the guest, whom each one would wake up."""
    sid = daemon.create()
    for _ in range(3):
        assert daemon.exec(sid, "#fake:pieces")[-1]["data"] == 1
    assert daemon.exec(sid, "#fake:pieces " + "x" * 300_000)[-1]["data"] > 1


def test_a_short_answer_is_one_piece(daemon: Daemon) -> None:
    """What is over before the reply has begun has a length; what is not comes in chunks."""
    sid = daemon.create()

    def post(code: str) -> httpx.Response:
        body = {"code": code, "language": "bash"}
        return daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)

    def whole() -> httpx.Response | None:
        r = post("#fake:pieces")
        return r if "content-length" in r.headers else None

    r = wait_for(whole)
    assert int(r.headers["content-length"]) == len(r.content)
    chunked = post("sleep 0.5; exit 1")
    assert chunked.headers["transfer-encoding"] == "chunked"
    for reply in (r, chunked):
        (event,) = [json.loads(line) for line in reply.text.splitlines()]
        assert (event["type"], event["data"]) == ("exit", 1)
        assert reply.headers["podflare-exec-id"].startswith("exec_")
        assert reply.headers["content-type"] == "application/x-ndjson"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_plain_replaces_what_is_not_utf8(daemon: Daemon) -> None:
    sid = daemon.create()
    raw = b"ok \xff\xfe \xe2\x82\xac \xf0\x9f\x98 x\x00y \xed\xa0\x80"
    code = f"#fake:bytes {raw.hex()} {b'tail'.hex()} {bytes([10]).hex()}"
    assert stdout_of(daemon.exec(sid, code)) == (raw + b"tail").decode(errors="replace")
    # A character in two pieces is one character.
    euro = "€".encode()
    ev = daemon.exec(sid, f"#fake:bytes {euro[:1].hex()} {euro[1:].hex()} 0a")
    assert ev[0]["data"] == "€"


def test_rich_keeps_bytes(daemon: Daemon) -> None:
    sid = daemon.create()
    euro = "€".encode()
    code = (
        f"#fake:bytes {b'no newline'.hex()} {euro[:2].hex()} {euro[2:].hex()} ff00 {euro[:1].hex()}"
    )
    ev = events_without_time(daemon.exec(sid, code, rich=True))
    joined = b"".join(
        base64.b64decode(e["data"]) if e.get("encoding") == "base64" else e["data"].encode()
        for e in ev
        if e["type"] == "stdout"
    )
    assert joined == b"no newline" + euro + b"\xff\x00" + euro[:1]
    assert ev[0] == {"type": "stdout", "data": "no newline"}
    assert {"type": "stdout", "data": "€"} in ev
    assert {"type": "stdout", "data": "/wA=", "encoding": "base64"} in ev
    assert ev[-1] == rich_exit()


def test_rich_all_bytes_of_a_random_file(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    data = os.urandom(300_000) + "äöü€😀".encode() * 20_000
    (tmp_path / "f").write_bytes(data)
    ev = daemon.exec(sid, f"cat {tmp_path}/f", rich=True)
    got = b"".join(
        base64.b64decode(e["data"]) if "encoding" in e else e["data"].encode() for e in ev[1:-1]
    )
    assert got == data


def test_rich_exit_of_a_signal(daemon: Daemon) -> None:
    sid = daemon.create()
    ev = events_without_time(daemon.exec(sid, "kill -TERM $$", rich=True))
    assert ev == [rich_exit(143, "signaled", signal=15)]


def test_result_events(daemon: Daemon) -> None:
    sid = daemon.create()
    ask = '#fake:event {"type":"result","data":{"text/plain":"[1,\\n 2]","text/html":"<b>"}}'
    assert events_without_time(daemon.exec(sid, ask)) == [
        {"type": "stdout", "data": "[1,"},
        {"type": "stdout", "data": " 2]"},
        {"type": "exit", "data": 0},
    ]
    assert events_without_time(daemon.exec(sid, ask, rich=True))[0] == {
        "type": "result",
        "data": {"text/plain": "[1,\n 2]", "text/html": "<b>"},
    }
    # One without text has no plain form; one with 50,000 lines must not break a bound.
    ask = '#fake:event {"type":"result","data":{"image/png":"AAAA"}}'
    assert events_without_time(daemon.exec(sid, ask)) == [{"type": "exit", "data": 0}]
    ask = '#fake:event {"type":"result","data":{"text/plain":"%s"}}' % ("\\n" * 30_000)
    assert len(daemon.exec(sid, ask)) == 30_001


def test_error_and_notice_events(daemon: Daemon) -> None:
    sid = daemon.create()
    ask = '#fake:event {"type":"error","name":"ValueError","value":"é","traceback":"Trace","x":1}'
    assert events_without_time(daemon.exec(sid, ask)) == [{"type": "exit", "data": 0}]
    assert events_without_time(daemon.exec(sid, ask, rich=True))[0] == {
        "type": "error",
        "name": "ValueError",
        "value": "é",
        "traceback": "Trace",
    }
    ask = '#fake:event {"type":"notice","text":"a new interpreter"}'
    assert events_without_time(daemon.exec(sid, ask))[0] == {
        "type": "stderr",
        "data": "podflare: a new interpreter",
    }
    assert events_without_time(daemon.exec(sid, ask, rich=True))[0] == {
        "type": "notice",
        "data": "a new interpreter",
        "from": "guest",
    }
    # Whatever it says of itself.
    ask = '#fake:event {"type":"notice","text":"the host says","from":"host","data":"x"}'
    assert events_without_time(daemon.exec(sid, ask, rich=True))[0] == {
        "type": "notice",
        "data": "the host says",
        "from": "guest",
    }


def test_long_lines(daemon: Daemon) -> None:
    """A line longer than 64 KiB comes in pieces that end on characters."""
    sid = daemon.create()
    line = "x" + "€" * 100_000
    ev = daemon.exec(sid, "print('x' + '€' * 100000)", language="python")
    parts = [e["data"] for e in ev if e["type"] == "stdout"]
    assert "".join(parts) == line
    assert all(len(p.encode()) <= 65536 for p in parts) and len(parts) == 5
    # Exactly the limit is one line.
    ev = daemon.exec(sid, "print('x' * 65536); print('y')", language="python")
    assert [len(e["data"]) for e in ev if e["type"] == "stdout"] == [65536, 1]


def test_cwd_and_env(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    ev = daemon.exec(sid, 'pwd; echo "$A|$B"', cwd=str(tmp_path), env={"A": "x y", "B": "ü"})
    assert stdout_of(ev) == f"{tmp_path}\nx y|ü"


def test_a_number_that_nobody_reads(daemon: Daemon) -> None:
    """Python refuses integers of 4300 digits: the guest cannot have a client lose the exit event."""
    sid = daemon.create()
    digits = "1" * 5000
    ask = '#fake:event {"type":"result","data":{"application/json":{"n":%s,"m":[-%s,2]}}}'
    *_, result, end = daemon.exec(sid, ask % (digits, digits), language="python", rich=True)
    assert result["data"]["application/json"] == {"n": digits, "m": ["-" + digits, 2]}
    assert (end["type"], end["data"]) == ("exit", 0)


def test_a_refusal_is_an_http_error(daemon: Daemon) -> None:
    sid = daemon.create()
    r = daemon.http.post(
        f"/v1/sandboxes/{sid}/exec", json={"code": "1", "language": "bash", "cwd": "/nowhere"}
    )
    assert r.status_code == 400
    assert r.json() == {
        "error": "cannot use /nowhere as working directory: none",
        "code": "invalid_request",
        "field": "cwd",
    }
    for word, status, code in (
        ("busy", 409, "sandbox_busy"),
        ("too_many", 429, "too_many_requests"),
        ("io_error", 500, "io_error"),
        ("made_up", 502, "agent_error"),
    ):
        r = daemon.http.post(
            f"/v1/sandboxes/{sid}/exec", json={"code": f"#fake:error {word} because\x1b[1m\x9b2J\x85\u202e"}
        )
        assert (r.status_code, r.json()["code"]) == (status, code)
        assert r.json()["error"] == "because [1m 2J  "
    assert stdout_of(daemon.exec(sid, "echo still here")) == "still here"


@pytest.mark.bounds
def test_lines_arrive_while_the_command_runs(daemon: Daemon) -> None:
    sid = daemon.create()
    body = {"code": "echo one; sleep 1; echo two", "language": "bash"}
    start = time.monotonic()
    with daemon.http.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as r:
        lines = r.iter_lines()
        assert json.loads(next(lines))["data"] == "one"
        first = time.monotonic() - start
        assert json.loads(next(lines))["data"] == "two"
        second = time.monotonic() - start
    assert first < 0.7 and second >= 1.0, (first, second)


@pytest.mark.bounds
def test_a_silent_command_has_its_headers_soon(daemon: Daemon) -> None:
    sid = daemon.create()
    start = time.monotonic()
    body = {"code": "sleep 2", "language": "bash"}
    with daemon.http.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as r:
        assert r.status_code == 200
        assert time.monotonic() - start < 1.5


def alive(marker: str) -> bool:
    """Whether a process with this word in its command line runs."""
    return subprocess.run(["pgrep", "-f", marker], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.bounds
def test_leaving_cancels(daemon: Daemon) -> None:
    """Also in a silent command, where the HTTP library would not notice."""
    sid = daemon.create()
    body = json.dumps({"code": "sleep 4242.25", "language": "bash"}).encode()
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.sendall(
        b"POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
        % (sid.encode(), len(body), body)
    )
    wait_for(lambda: alive("sleep 4242[.]25"))
    s.close()
    left = time.monotonic()
    wait_for(lambda: not alive("sleep 4242[.]25"))
    assert time.monotonic() - left < 1.5
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"
    log = wait_for(lambda: [x for x in daemon.log_text().splitlines() if "ended=early" in x])
    assert len(log) == 1


def test_leaving_in_the_middle_of_much_output(daemon: Daemon) -> None:
    sid = daemon.create()
    body = {"code": "yes 4242.26", "language": "bash"}
    with daemon.http.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as r:
        next(r.iter_bytes())
    wait_for(lambda: not alive("yes 4242[.]26"))
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


def test_first_come_first_served(daemon: Daemon, tmp_path: Path) -> None:
    """Execs of one sandbox run one after the other, in the order in which they came."""
    sid = daemon.create()
    out: list[list[dict]] = [[] for _ in range(6)]

    def run(i: int) -> None:
        code = f"echo start {i} >> {tmp_path}/log; sleep 0.3; echo end {i} >> {tmp_path}/log"
        with httpx.Client(base_url=daemon.url, timeout=30) as c:
            r = c.post(f"/v1/sandboxes/{sid}/exec", json={"code": code, "language": "bash"})
            out[i] = [json.loads(x) for x in r.text.splitlines()]

    threads = []
    for i in range(6):
        threads.append(threading.Thread(target=run, args=(i,)))
        threads[-1].start()
        if i == 0:
            wait_for((tmp_path / "log").exists)
        time.sleep(0.2)
    for t in threads:
        t.join()
    log = (tmp_path / "log").read_text().split("\n")[:-1]
    assert log == [f"{w} {i}" for i in range(6) for w in ("start", "end")]
    assert all(e[-1]["data"] == 0 for e in out)
    assert daemon.http.get(f"/v1/sandboxes/{sid}").json()["exec_count"] == 6


def test_other_sandboxes_do_not_wait(daemon: Daemon) -> None:
    a, b = daemon.create(), daemon.create()
    body = {"code": "sleep 30", "language": "bash"}
    with daemon.http.stream("POST", f"/v1/sandboxes/{a}/exec", json=body):
        start = time.monotonic()
        assert stdout_of(daemon.exec(b, "echo quick")) == "quick"
        assert time.monotonic() - start < 2


def test_leaving_the_queue(daemon: Daemon, tmp_path: Path) -> None:
    """One that waits and is given up never runs; those behind it do."""
    sid = daemon.create()
    first = {"code": f"while ! test -e {tmp_path}/go; do sleep 0.02; done", "language": "bash"}
    second = {"code": f"touch {tmp_path}/ran", "language": "bash"}
    with daemon.http.stream("POST", f"/v1/sandboxes/{sid}/exec", json=first):
        with httpx.Client(base_url=daemon.url) as c:
            with c.stream("POST", f"/v1/sandboxes/{sid}/exec", json=second):
                pass
        third = threading.Thread(target=daemon.exec, args=(sid, f"touch {tmp_path}/third"))
        third.start()
        time.sleep(0.3)
        (tmp_path / "go").touch()
        third.join()
    assert (tmp_path / "third").exists() and not (tmp_path / "ran").exists()


def test_the_next_waits_for_the_end_of_a_cancelled_one(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    code = f"trap '' INT TERM; echo up > {tmp_path}/up; sleep 4242.27; echo no > {tmp_path}/no"
    with daemon.http.stream(
        "POST", f"/v1/sandboxes/{sid}/exec", json={"code": code, "language": "bash"}
    ):
        wait_for((tmp_path / "up").exists)
    # When this one runs, nothing of the first one is left.
    ev = daemon.exec(sid, "pgrep -f 'sleep 4242[.]27' || echo none")
    assert stdout_of(ev) == "none"


@pytest.mark.parametrize("rich", [False, True])
def test_the_vm_ends(daemon: Daemon, rich: bool) -> None:
    sid = daemon.create()
    ev = events_without_time(daemon.exec(sid, "#fake:poweroff", rich=rich))
    text = "podflare: sandbox ended: the guest powered off"
    assert ev[0] == {"type": "stdout", "data": "going down"}
    assert ev[1] == {"type": "stderr", "data": text + ("\n" if rich else "")}
    plain = {"type": "exit", "data": -1}
    assert ev[2:] == [rich_exit(-1, "vm_ended", state="lost") if rich else plain]
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1"})
    assert r.status_code == 409
    assert r.json() == {"error": "sandbox ended: the guest powered off", "code": "sandbox_ended"}
    o = daemon.http.get(f"/v1/sandboxes/{sid}").json()
    assert o["state"] == "ended" and o["ended_reason"] == "the guest powered off"
    assert o["exec_count"] == 1 and o["ended_at"] >= o["created_at"]
    assert daemon.http.get("/v1/sandboxes").json() == {"sandboxes": []}
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    assert daemon.http.get(f"/v1/sandboxes/{sid}").status_code == 404


def test_the_vmm_is_killed(daemon: Daemon) -> None:
    sid, other = daemon.create(), daemon.create()
    ev = daemon.exec(sid, "#fake:kill")
    words = "the virtual machine's process was killed by signal 9 (Killed)"
    assert ev[0]["data"] == f"podflare: sandbox ended: {words}"
    assert ev[-1]["data"] == -1
    assert stdout_of(daemon.exec(other, "echo fine")) == "fine"


def test_the_end_reaches_everybody_in_the_queue(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    results: list[httpx.Response] = []

    def run(code: str) -> None:
        body = {"code": code, "language": "bash"}
        results.append(httpx.post(f"{daemon.url}/v1/sandboxes/{sid}/exec", json=body, timeout=30))

    threads = [threading.Thread(target=run, args=("sleep 60",)) for _ in range(3)]
    for t in threads:
        t.start()
    time.sleep(1.0)
    late = socket.create_connection(("127.0.0.1", daemon.port))
    late.sendall(
        f"POST /v1/sandboxes/{sid}/exec HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\n\r\n"
        '{"code": "1"}'.encode()
    )
    time.sleep(0.02)
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    for t in threads:
        t.join()
    for r in results:
        assert r.status_code == 200
        last = [json.loads(x) for x in r.text.splitlines()]
        assert last[-2]["data"] == "podflare: sandbox ended: deleted"
        assert last[-1]["data"] == -1
    # Whose reply had not begun gets an error instead.
    head, _, body = late.recv(4096).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 409 ")
    assert json.loads(body) == {"error": "sandbox ended: deleted", "code": "sandbox_ended"}
    late.close()


def test_the_agent_closes_the_stream(daemon: Daemon) -> None:
    """The stream is lost, not the sandbox."""
    sid = daemon.create()
    ev = events_without_time(daemon.exec(sid, "#fake:close"))
    assert ev == [
        {"type": "stdout", "data": "half a line"},
        {
            "type": "stderr",
            "data": "podflare: the guest's agent closed the connection while the command ran",
        },
        {"type": "exit", "data": -1},
    ]
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


@pytest.mark.parametrize(
    "ask",
    [
        "#fake:badframe",
        "#fake:badtype",
        "#fake:raw 137 {",
        '#fake:raw 137 {"type":"result","data":5}',
        '#fake:raw 137 {"type":"strange"}',
        "#fake:raw 137 []",
        "#fake:raw 131 {}",
        '#fake:raw 131 {"exit_code":"0","reason":"exited","state":"preserved"}',
        '#fake:raw 131 {"exit_code":99999999999,"reason":"exited","state":"preserved"}',
        '#fake:raw 131 {"exit_code":0,"reason":"made up","state":"preserved"}',
        "#fake:raw 99 x",
    ],
)
def test_the_agent_breaks_the_protocol(daemon: Daemon, ask: str) -> None:
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": ask})
    assert r.status_code == 502
    assert r.json() == {
        "error": "the guest's agent broke the protocol while the command ran",
        "code": "agent_error",
    }
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


def test_a_guest_that_does_not_answer(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1"})
    sid = d.create()
    begin = time.monotonic()
    ev = d.exec(sid, "#fake:mute")
    took = time.monotonic() - begin
    assert ev[0]["data"] == "podflare: sandbox ended: guest does not answer"
    assert ev[1]["data"] == -1 and 1.9 < took < 5


def test_a_guest_that_is_only_silent(start: Callable[..., Daemon]) -> None:
    """It is asked again and again, and lives."""
    d = start(env={"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1"})
    sid = d.create()
    ev = d.exec(sid, "#fake:pong 3.5")
    assert ev[0]["data"].startswith("pings ") and int(ev[0]["data"][6:]) >= 2
    ev = d.exec(sid, "sleep 3; echo done")
    assert stdout_of(ev) == "done"


def test_a_client_that_does_not_read_is_not_a_silent_guest(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1"})
    sid = d.create()
    body = {"code": "head -c 8000000 /dev/zero | tr '\\0' x | fold -w 1000; echo end"}
    body["language"] = "bash"
    with d.http.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as r:
        time.sleep(4)
        lines = [json.loads(x) for x in r.iter_lines()]
    assert lines[-2]["data"].endswith("end") and lines[-1]["data"] == 0


@pytest.mark.bounds
def test_a_hundred_megabytes(daemon: Daemon) -> None:
    """Streamed whole, and the daemon does not grow with it."""
    sid = daemon.create()
    line = "0123456789" * 10
    mb = 20 if SANITIZED else 100
    code = f"yes {line} | head -c {101 * 10_000 * mb}"
    daemon.exec(sid, "yes x | head -c 1000000")
    before = daemon.rss_kib()
    lines = total = peak = 0
    body = {"code": code, "language": "bash", "output_limit": 256 << 20}
    with daemon.http.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as r:
        for chunk in r.iter_raw(1 << 20):
            total += len(chunk)
            lines += chunk.count(b"\n")
            peak = max(peak, daemon.rss_kib())
            last = chunk[-200:]
    assert lines == 10_000 * mb + 1 and total > mb * 1_000_000
    assert b'"type":"exit","data":0' in last
    assert peak - before < (20_000 if SANITIZED else 2_000), (before, peak)


@pytest.mark.bounds
def test_a_slow_client(daemon: Daemon) -> None:
    """One that does not read stops its own command, and costs little memory."""
    sid, other = daemon.create(), daemon.create()
    before = daemon.rss_kib()
    body = {"code": "yes 0123456789012345678901234567890123456789", "language": "bash"}
    clients = []
    for _ in range(1):
        c = httpx.Client(base_url=daemon.url, timeout=30)
        req = c.build_request("POST", f"/v1/sandboxes/{sid}/exec", json=body)
        clients.append((c, c.send(req, stream=True)))
    daemon.comes_to_rest()
    assert daemon.rss_kib() - before < (20_000 if SANITIZED else 3_000)
    assert stdout_of(daemon.exec(other, "echo fine")) == "fine"
    for c, r in clients:
        r.close()
        c.close()
    assert stdout_of(daemon.exec(sid, "echo free again")) == "free again"
