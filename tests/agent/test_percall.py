# SPDX-License-Identifier: Apache-2.0
"""What holds for one call: directory, environment, user; and the languages argv and javascript."""

from __future__ import annotations

import json
import os

import pytest
from agent_client import EXEC, Result, Stream, begun
from conftest import ROOT, Agent

needs_node = pytest.mark.skipif(not os.path.exists("/usr/bin/node"), reason="no /usr/bin/node")
needs_root = pytest.mark.skipif(not ROOT, reason="the agent is not root")


def argv(stream: Stream, *words: str, **extra: object) -> Result:
    """Runs a program without a shell."""
    stream.send(EXEC, {"language": "argv", "argv": list(words), **extra})
    stream.body(b"")
    return stream.finish()


def node(stream: Stream, code: str, **extra: object) -> Result:
    """Runs JavaScript."""
    stream.start(code, "javascript", **extra)
    return stream.finish()


# --- python


def test_python_cwd(agent: Agent, stream: Stream) -> None:
    """Holds for one cell, also when that moves on; relative to the session's directory."""
    stream.python("import os\nos.makedirs('one/two', exist_ok=True)")
    r = stream.python("print(os.getcwd()); os.chdir('/')", cwd="/usr")
    assert r.stdout == b"/usr\n"
    assert stream.python("print(os.getcwd())").stdout.decode() == f"{agent.home}\n"
    assert stream.python("print(os.getcwd())", cwd="one/two").stdout.decode() == f"{agent.home}/one/two\n"
    stream.python("os.chdir('one')")
    assert stream.python("print(os.getcwd())", cwd="two").stdout.decode() == f"{agent.home}/one/two\n"
    assert stream.python("1/0", cwd="/usr").code == 1
    assert stream.python("print(os.getcwd())").stdout.decode() == f"{agent.home}/one\n"
    stream.python("os.chdir('..')")


@pytest.mark.parametrize("cwd, code", [("/nowhere/such", "not_found"), ("/etc/passwd", "not_a_directory")])
def test_python_bad_cwd(stream: Stream, cwd: str, code: str) -> None:
    r = stream.python("print('never')", cwd=cwd)
    assert r.error is not None and r.error["code"] == code and cwd in r.error["message"]
    assert stream.python("print('still')").stdout == b"still\n"


def test_python_cwd_is_put_back_whatever_happens(agent: Agent, stream: Stream) -> None:
    stream.python("import os, time")
    r = stream.python("os.closerange(0, 21); os.chdir = None", cwd="/usr")
    assert r.exit is not None and r.exit["state"] == "preserved"
    assert stream.python("print(os.getcwd())").stdout.decode() == f"{agent.home}\n"
    r = stream.python("print('on'); time.sleep(100)", cwd="/usr", env={"X_1": "x"}, timeout_ms=300)
    assert r.exit is not None and r.exit["reason"] == "timeout"
    r = stream.python("print(os.getcwd(), os.environ.get('X_1'))")
    assert r.stdout.decode() == f"{agent.home} None\n"
    stream.python("import importlib; importlib.reload(os);")


def test_python_env(stream: Stream) -> None:
    """Names that are given get their old values back; others that the cell sets stay."""
    stream.python("import os, subprocess\nos.environ['A_KEPT'] = 'old'")
    env = {"A_KEPT": "new", "A_FRESH": "ä = \"x\" \n\u0001", "A_EMPTY": ""}
    r = stream.python(
        "print(repr([os.environ[n] for n in ('A_KEPT', 'A_FRESH', 'A_EMPTY')]))\n"
        "print(subprocess.run('echo $A_KEPT', shell=True, capture_output=True).stdout)\n"
        "os.environ['A_KEPT'] = 'mine'; os.environ['A_OWN'] = 'stays'; del os.environ['A_EMPTY']",
        env=env,
    )
    assert r.stdout.decode() == repr(["new", env["A_FRESH"], ""]) + "\nb'new\\n'\n", r
    r = stream.python("print([os.environ.get(n) for n in ('A_KEPT', 'A_FRESH', 'A_EMPTY', 'A_OWN')])")
    assert r.stdout == b"['old', None, None, 'stays']\n"


def test_python_env_of_any_size(stream: Stream) -> None:
    """What fits a request is passed on, or refused with a sentence."""
    big = "x" * 65000
    r = stream.python("import os; print(len(os.environ['BIG']))", env={"BIG": big})
    assert r.stdout == b"65000\n"
    room = 65536 - len(json.dumps({"language": "python", "env": {"B": ""}}))
    r = stream.python("print(1)", env={"B": "x" * room})
    assert r.stdout == b"1\n" or (r.error is not None and r.error["code"] == "bad_request")
    assert stream.python("print(2)").stdout == b"2\n"


def test_python_user(stream: Stream) -> None:
    assert stream.python("print(1)", user="user").stdout == b"1\n"
    r = stream.python("print(1)", user="root")
    assert r.error is not None and r.error["code"] == "bad_request" and "user" in r.error["message"]


# --- users


@needs_root
def test_root(agent: Agent, stream: Stream) -> None:
    r = stream.bash('id -u; id -G; echo "$HOME $USER"; pwd; touch made; head -c 99999 /dev/zero >&2', user="root")
    assert r.stdout.decode() == f"0\n0\n/root root\n{agent.home}\n", r.stderr[:300]
    assert (agent.home / "made").stat().st_uid == 0
    closed = agent.dir / "root-only"
    closed.mkdir(mode=0o700, exist_ok=True)
    assert argv(stream, "pwd", cwd=str(closed), user="root").stdout.decode() == f"{closed}\n"
    assert argv(stream, "pwd", cwd=str(closed), user="user").code == 126
    assert stream.bash("id -u").stdout == b"1000\n"


@needs_root
@needs_node
def test_root_javascript(stream: Stream) -> None:
    assert node(stream, "console.log(process.getuid())", user="root").stdout == b"0\n"


@pytest.mark.parametrize("user", ["", "nobody", 0, None, ["root"]])
def test_bad_user(stream: Stream, user: object) -> None:
    r = stream.bash("true", user=user)
    assert r.error is not None and r.error["code"] == "bad_request" and "user" in r.error["message"]


# --- argv


def test_argv(agent: Agent, stream: Stream) -> None:
    r = argv(stream, "printf", "%s|", "a b", "$HOME", "*", "", "ä")
    assert r.stdout == "a b|$HOME|*||ä|".encode() and r.code == 0
    assert argv(stream, "sh", "-c", "exit 7").code == 7
    assert argv(stream, "/bin/pwd", cwd="/usr").stdout == b"/usr\n"
    assert argv(stream, "env", env={"A": "b=c"}).stdout.count(b"\nA=b=c\n") == 1
    r = argv(stream, "sh", "-c", "kill -9 $$")
    assert r.exit is not None and (r.code, r.exit["reason"]) == (137, "signaled")


def test_argv_search(agent: Agent, stream: Stream) -> None:
    """In the PATH of the base environment, whatever `env` says; with a slash, as it is."""
    own = agent.home / ".local" / "bin" / "own-tool"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("#!/bin/sh\necho found $0\n")
    own.chmod(0o755)
    assert argv(stream, "own-tool", env={"PATH": "/nowhere"}).stdout.decode() == f"found {own}\n"
    stream.bash("cp .local/bin/own-tool here-tool")
    assert argv(stream, "./here-tool").stdout == b"found ./here-tool\n"
    assert argv(stream, "here-tool").code == 127


@pytest.mark.parametrize(
    "name, code, text",
    [
        ("no-such-program", 127, b"podflare: cannot run no-such-program: No such file or directory\n"),
        ("/nowhere/such", 127, b"No such file"),
        ("/etc/passwd/x", 127, b"Not a directory"),
        ("/etc/passwd", 126, b"Permission denied"),
        ("/", 126, b"Permission denied"),
        ("x" * 5000, 127, b""),
    ],
)
def test_argv_that_cannot_be_run(stream: Stream, name: str, code: int, text: bytes) -> None:
    r = argv(stream, name)
    assert r.code in (code, 126) and text in r.stderr and r.stdout == b""


def test_argv_no_shell(agent: Agent, stream: Stream) -> None:
    """A file that is no program is not given to a shell."""
    path = agent.home / "script"
    path.write_text("echo never\n")
    path.chmod(0o755)
    r = argv(stream, "./script")
    assert r.code == 126 and b"Exec format error" in r.stderr and r.stdout == b""


BAD_ARGV = [
    {"language": "argv"},
    {"language": "argv", "argv": []},
    {"language": "argv", "argv": "ls"},
    {"language": "argv", "argv": [""]},
    {"language": "argv", "argv": ["ls", 1]},
    {"language": "argv", "argv": ["a\0b"]},
    {"language": "bash", "argv": ["ls"]},
    {"language": "python", "argv": ["ls"]},
]


@pytest.mark.parametrize("request_", BAD_ARGV)
def test_bad_argv(stream: Stream, request_: dict[str, object]) -> None:
    stream.send(EXEC, request_)
    stream.body(b"")
    r = stream.finish()
    assert r.error is not None and r.error["code"] == "bad_request"


def test_argv_takes_no_code(stream: Stream) -> None:
    stream.send(EXEC, {"language": "argv", "argv": ["ls"]})
    stream.body(b"x")
    r = stream.finish()
    assert r.error is not None and "takes no code" in r.error["message"]
    assert argv(stream, "echo", "fine").stdout == b"fine\n"


def test_many_arguments(stream: Stream) -> None:
    r = argv(stream, "sh", "-c", "echo $#", "sh", *["x"] * 8000)
    assert r.stdout == b"8000\n"


# --- javascript


@needs_node
def test_javascript(agent: Agent, stream: Stream) -> None:
    r = node(stream, "console.log(6 * 7); console.error('e'); process.exit(3)")
    assert (r.stdout, r.stderr, r.code) == (b"42\n", b"e\n", 3)
    r = node(stream, "console.log(process.cwd(), process.env.A)", cwd="/usr", env={"A": "b"})
    assert r.stdout == b"/usr b\n"
    r = node(stream, "-1; null.x")
    assert r.code == 1 and b"TypeError" in r.stderr


@needs_node
@pytest.mark.parametrize("size", [100, 131000, 131100, 300_000])
def test_javascript_of_any_size(agent: Agent, stream: Stream, size: int) -> None:
    """It looks for modules where it runs, and can import, whatever its length."""
    modules = agent.home / "node_modules"
    modules.mkdir(exist_ok=True)
    (modules / "own.js").write_text("module.exports = 'own';")
    code = "const own = require('own'); import('fs').then((f) => console.log(own, typeof f.statSync));"
    r = node(stream, code + "//" + "x" * max(0, size - len(code) - 2))
    assert r.stdout == b"own function\n", r.stderr[-500:]


@needs_node
def test_javascript_deadline_and_interrupt(stream: Stream) -> None:
    r = node(stream, "setInterval(() => 0, 1000)", timeout_ms=500)
    assert r.exit is not None and (r.code, r.exit["reason"]) == (124, "timeout")
    stream.start("console.log('on'); setInterval(() => 0, 1000)", "javascript")
    begun(stream)
    stream.send(0x12)
    r = stream.finish()
    assert r.exit is not None and (r.code, r.exit["reason"]) == (130, "interrupted")


def test_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_NODE", "/usr/bin/no-such-node")
    agent = Agent()
    try:
        with agent.stream() as s:
            r = node(s, "console.log(1)")
            assert r.error is not None and r.error["code"] == "not_found"
            assert "JavaScript" in r.error["message"]
            assert s.bash("echo fine").stdout == b"fine\n"
    finally:
        agent.stop()


