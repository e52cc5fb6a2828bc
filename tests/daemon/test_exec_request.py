"""What a request for a command says: what of it the agent is told, and how a wrong one is answered."""

import json

import pytest

from conftest import Daemon, stdout_of
from execs import interrupt


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


def test_an_unknown_context(daemon: Daemon) -> None:
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1", "context_id": "none"})
    assert r.status_code == 404
    assert r.json() == {
        "error": "no such context",
        "code": "context_not_found",
        "field": "context_id",
    }
