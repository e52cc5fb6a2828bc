"""Contexts: Python sessions beside each other, kept by the agent."""

import json
import socket
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from conftest import Daemon, stdout_of, wait_for
from execs import last, listed, running

DEFAULT = {
    "context_id": "default",
    "language": "python",
    "state": "ready",
    "cwd": "/tmp",
    "user": "user",
}


def contexts(daemon: Daemon, sid: str) -> list[dict]:
    """All of a sandbox."""
    r = daemon.http.get(f"/v1/sandboxes/{sid}/contexts")
    assert r.status_code == 200
    return r.json()["contexts"]


def create(daemon: Daemon, sid: str, **body: object) -> httpx.Response:
    """Makes one."""
    return daemon.http.post(f"/v1/sandboxes/{sid}/contexts", json=body)


def test_create_list_restart_delete(daemon: Daemon) -> None:
    sid = daemon.create()
    assert contexts(daemon, sid) == [DEFAULT]
    r = create(daemon, sid, context_id="work", cwd="/usr", user="root", language="python")
    assert r.status_code == 200
    made = {**DEFAULT, "context_id": "work", "cwd": "/usr", "user": "root"}
    assert r.json() == {**made, "state": "starting"}
    assert contexts(daemon, sid) == [DEFAULT, made]
    assert stdout_of(daemon.exec(sid, "print(6*7)", "python", context_id="work")) == "42"
    r = daemon.http.post(f"/v1/sandboxes/{sid}/contexts/work/restart")
    assert (r.status_code, r.json()) == (200, {**made, "state": "starting"})
    r = daemon.http.post(f"/v1/sandboxes/{sid}/contexts/default/restart", json={})
    assert (r.status_code, r.json()["context_id"]) == (200, "default")
    r = daemon.http.delete(f"/v1/sandboxes/{sid}/contexts/work")
    assert (r.status_code, r.content) == (204, b"")
    assert contexts(daemon, sid) == [DEFAULT]
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1", "context_id": "work"})
    assert (r.status_code, r.json()["code"]) == (404, "context_not_found")


def test_a_name_is_made(daemon: Daemon) -> None:
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/contexts")
    other = create(daemon, sid).json()["context_id"]
    assert r.json()["context_id"].startswith("ctx_") and r.json()["context_id"] != other
    assert stdout_of(daemon.exec(sid, "print(1)", "python", context_id=other)) == "1"


def test_refusals(daemon: Daemon) -> None:
    sid = daemon.create()
    base = f"/v1/sandboxes/{sid}/contexts"

    def refused(r: httpx.Response) -> tuple:
        o = r.json()
        return r.status_code, o["code"], o.get("field"), o["error"]

    assert refused(create(daemon, sid, context_id="default")) == (
        409,
        "context_exists",
        "context_id",
        "there is a context of this name",
    )
    assert refused(create(daemon, sid, cwd="/nowhere")) == (
        400,
        "invalid_request",
        "cwd",
        "cwd: no such directory",
    )
    for body, field, words in (
        (
            {"context_id": "a b"},
            "context_id",
            "context_id must be 1 to 64 of A-Z, a-z, 0-9, _ and -",
        ),
        ({"language": "bash"}, "language", 'contexts are of python; "bash" has none'),
        ({"user": "x"}, "user", 'user must be "user" or "root"'),
        ({"cwd": ""}, "cwd", "cwd must be a path of 1 to 4095 bytes"),
        ({"id": "x"}, "id", '"id" is not known here; there are: context_id, language, cwd, user'),
    ):
        assert refused(create(daemon, sid, **body)) == (400, "invalid_request", field, words)
    for name in ("none", "x" * 64, "x" * 65, "%2e%2e", "a.b"):
        unknown = (404, "context_not_found", None, "no such context")
        assert refused(daemon.http.delete(f"{base}/{name}")) == unknown
        assert refused(daemon.http.post(f"{base}/{name}/restart")) == unknown
    assert refused(daemon.http.delete(f"{base}/default")) == (
        400,
        "invalid_request",
        "context_id",
        'the context "default" cannot be deleted',
    )
    r = daemon.http.post(f"{base}/default/restart", json={"now": True})
    assert refused(r)[:3] == (400, "invalid_request", "now")
    for i in range(7):
        assert create(daemon, sid, context_id=f"c{i}").status_code == 200
    assert refused(create(daemon, sid, context_id="c8")) == (
        429,
        "too_many_contexts",
        None,
        "there are 8 contexts already",
    )


GOOD = {"id": "a", "language": "python", "state": "ready", "cwd": "/", "user": "user"}


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "[]",
        "{",
        "{}",
        '{"contexts":{}}',
        '{"contexts":[1]}',
        json.dumps({"contexts": [GOOD] * 65}),
        *(
            json.dumps({"contexts": [GOOD | wrong], **GOOD, **wrong})
            for wrong in (
                {"id": "a b"},
                {"id": ""},
                {"id": None},
                {"id": "x" * 65},
                {"language": "lisp"},
                {"state": "gone"},
                {"cwd": 1},
                {"cwd": "/" + "x" * 13000},
                {"user": "nobody"},
            )
        ),
        '{"contexts":[],"contexts":[],"id":"a","id":"a"}',
    ],
)
def test_garbage(daemon: Daemon, raw: str) -> None:
    """What an agent says is checked; the sandbox goes on."""
    sid = daemon.create()
    daemon.exec(sid, "#fake:set " + json.dumps({"context_raw": raw}))
    broke = {"error": "the guest's agent broke the protocol", "code": "agent_error"}
    base = f"/v1/sandboxes/{sid}/contexts"
    for method, path in (("GET", ""), ("POST", ""), ("POST", "/a/restart")):
        r = daemon.http.request(method, base + path)
        if r.status_code == 200:  # the list is not looked at in the answer about one
            assert raw.startswith('{"contexts": [{') and len(raw) > 3000 and path
        else:
            assert (r.status_code, r.json()) == (502, broke)
    daemon.exec(sid, "#fake:set " + json.dumps({"context_raw": None}))
    assert contexts(daemon, sid) == [DEFAULT]


def test_an_agent_that_does_not_answer(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_PING_AFTER": "1", "PODFLARE_PONG_WITHIN": "1"})
    sid = d.create()
    d.exec(sid, "#fake:set " + json.dumps({"context_raw": "mute"}))
    r = d.http.get(f"/v1/sandboxes/{sid}/contexts")
    assert r.status_code == 502
    assert r.json() == {"error": "the guest's agent did not answer", "code": "agent_error"}
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"
    d.exec(sid, "#fake:set " + json.dumps({"context_raw": "close"}))
    r = d.http.get(f"/v1/sandboxes/{sid}/contexts")
    assert (r.status_code, r.json()["error"]) == (
        502,
        "the guest's agent closed the connection",
    )
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"


def test_errors_of_the_agent(daemon: Daemon) -> None:
    sid = daemon.create()
    for word, status, code in (
        ("busy", 409, "sandbox_busy"),
        ("io_error", 500, "io_error"),
        ("made_up", 502, "agent_error"),
        ("bad_request", 400, "invalid_request"),
    ):
        daemon.exec(sid, "#fake:set " + json.dumps({"context_error": [word, "because"]}))
        r = create(daemon, sid)
        assert (r.status_code, r.json()) == (status, {"error": "because", "code": code})


def test_leaving_and_the_end(daemon: Daemon) -> None:
    """A client that gives a question up, and a sandbox that ends under one."""
    sid = daemon.create()
    daemon.exec(sid, "#fake:set " + json.dumps({"context_raw": "mute"}))
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.sendall(f"GET /v1/sandboxes/{sid}/contexts HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    time.sleep(0.3)
    s.close()
    wait_for(lambda: "ended=early" in daemon.log_text())
    replies = []
    t = threading.Thread(
        target=lambda: replies.append(
            httpx.get(f"{daemon.url}/v1/sandboxes/{sid}/contexts", timeout=30)
        )
    )
    t.start()
    time.sleep(0.5)
    daemon.http.delete(f"/v1/sandboxes/{sid}")
    t.join()
    assert replies[0].status_code == 409
    assert replies[0].json() == {"error": "sandbox ended: deleted", "code": "sandbox_ended"}


def test_cells_of_two_contexts(daemon: Daemon) -> None:
    sid = daemon.create()
    create(daemon, sid, context_id="b")
    code = "import time\nwhile True: time.sleep(0.1)"
    with running(daemon, sid, code, language="python", exec_id="a") as a:
        ev = daemon.exec(sid, "print('beside')", "python", context_id="b")
        assert stdout_of(ev) == "beside"
        assert [e["exec_id"] for e in listed(daemon, sid)] == ["a"]
        daemon.http.post(f"/v1/sandboxes/{sid}/exec/a/interrupt")
        assert last(a)["termination_reason"] == "interrupted"
