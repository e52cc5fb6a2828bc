# SPDX-License-Identifier: Apache-2.0
"""Contexts: several Python sessions beside each other, made, listed, restarted, deleted, renewed."""

from __future__ import annotations

import threading
import time
from typing import Any, Iterator

import pytest
from agent_client import (
    CONTEXT,
    ERROR,
    FREEZE,
    INTERRUPT,
    RENEW,
    STDOUT,
    THAW,
    Closed,
    Stream,
    begun,
    renew_request,
)
from conftest import ROOT, Agent, wait_for
from test_bash import alive, needs_cgroups


def ask(stream: Stream, op: str, id: str | None = None, **extra: Any) -> dict[str, Any]:
    """A CONTEXT request; the OK or ERROR object."""
    return stream.ask(CONTEXT, {"op": op, **({"id": id} if id is not None else {}), **extra})


def ids(stream: Stream) -> list[str]:
    """The names of all contexts."""
    return [c["id"] for c in ask(stream, "list")["contexts"]]


@pytest.fixture(autouse=True)
def only_default(agent: Agent) -> Iterator[None]:
    """Deletes what a test has made."""
    yield
    with agent.stream() as s:
        for name in ids(s)[1:]:
            assert "id" in ask(s, "delete", name)


def test_default(agent: Agent, stream: Stream) -> None:
    stream.python("1")
    assert ask(stream, "list") == {
        "contexts": [
            {"id": "default", "language": "python", "state": "ready", "cwd": str(agent.home), "user": "user"}
        ]
    }
    assert stream.python("print(1)", context="default").stdout == b"1\n"
    assert ask(stream, "delete", "default")["code"] == "bad_request"
    assert ask(stream, "create", "default")["code"] == "exists"


def test_independent(stream: Stream) -> None:
    stream.python("x = 1")
    made = ask(stream, "create", "two", language="python")
    assert (made["id"], made["language"], made["state"], made["user"]) == ("two", "python", "starting", "user")
    r = stream.python("print('x' in globals()); x = 2; import os; os.chdir('/usr')", context="two")
    assert r.stdout == b"False\n" and r.events == []
    assert stream.python("print(x)").stdout == b"1\n"
    assert stream.python("print(x)", context="two").stdout == b"2\n"
    listed = {c["id"]: c for c in ask(stream, "list")["contexts"]}
    assert listed["two"]["cwd"] == "/usr" and listed["two"]["state"] == "ready"
    assert stream.bash("pwd", context="two").stdout == b"/usr\n"
    assert stream.bash("pwd").stdout != b"/usr\n"
    assert stream.python("import os; print(os.getcwd())", context="two", cwd="lib").stdout == b"/usr/lib\n"


def test_beside_each_other(agent: Agent, stream: Stream) -> None:
    for name in ("a", "b"):
        ask(stream, "create", name)
        stream.python("import time", context=name)
    with agent.stream() as other:
        start = time.monotonic()
        other.start("print('on', flush=True); time.sleep(3)", "python", context="a")
        begun(other)
        states = {c["id"]: c["state"] for c in ask(stream, "list")["contexts"]}
        assert states["a"] == "busy" and states["b"] == "ready"
        assert stream.python("print('b')", context="b").stdout == b"b\n"
        assert stream.python("print('d')").stdout == b"d\n"
        assert time.monotonic() - start < 2.5
        r = stream.python("1", context="a")
        assert r.error is not None and r.error["code"] == "busy"
        assert other.finish().code == 0


def test_interrupt_and_deadline_hit_their_own(agent: Agent, stream: Stream) -> None:
    ask(stream, "create", "a")
    stream.python("kept = 1", context="a")
    with agent.stream() as other:
        other.start("import time\nprint('on', flush=True); time.sleep(2); print('end')", "python")
        begun(other)
        stream.start("import time\nprint('on', flush=True); time.sleep(100)", "python", context="a")
        begun(stream)
        stream.send(INTERRUPT)
        r = stream.finish()
        assert r.exit is not None and r.exit["reason"] == "interrupted"
        r = stream.python("while True:\n  try: time.sleep(100)\n  except KeyboardInterrupt: pass",
                          context="a", timeout_ms=100)
        assert r.exit is not None and (r.exit["reason"], r.exit["state"]) == ("timeout", "lost")
        assert other.finish().stdout == b"end\n"
    r = stream.python("print('kept' in globals())", context="a")
    assert r.stdout == b"False\n" and len(r.events) == 1
    assert stream.python("1;").events == []


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"op": "make", "id": "x"},
        {"op": 1, "id": "x"},
        {"op": "create"},
        {"op": "create", "id": ""},
        {"op": "create", "id": "x" * 65},
        {"op": "create", "id": "a b"},
        {"op": "create", "id": "a/b"},
        {"op": "create", "id": 1},
        {"op": "create", "id": "x", "language": "bash"},
        {"op": "create", "id": "x", "language": None},
        {"op": "create", "id": "x", "user": "nobody"},
        {"op": "create", "id": "x", "cwd": ""},
        {"op": "restart"},
        {"op": "delete", "id": None},
    ],
)
def test_bad_requests(stream: Stream, request_: dict[str, Any]) -> None:
    assert stream.ask(CONTEXT, request_)["code"] == "bad_request"
    assert ids(stream) == ["default"]


def test_names(stream: Stream) -> None:
    for name in ("x" * 64, "A-Z_09"):
        assert ask(stream, "create", name)["id"] == name
    assert stream.python("print(1)", context="A-Z_09").stdout == b"1\n"


def test_unknown(agent: Agent, stream: Stream) -> None:
    for op in ("restart", "delete"):
        assert ask(stream, op, "nobody") == {"code": "not_found", "message": "no such context"}
    r = stream.python("print('never')", context="nobody")
    assert r.error == {"code": "not_found", "message": "no such context"}
    # Commands run in none: it only is where they start.
    assert stream.bash("pwd", context="nobody").stdout.decode() == f"{agent.home}\n"
    for language in ("python", "bash"):
        stream.start("echo never", language, context="no body")
        error = stream.finish().error
        assert error is not None and error["code"] == "bad_request"


def test_too_many(stream: Stream) -> None:
    for n in range(7):
        assert ask(stream, "create", f"c{n}")["id"] == f"c{n}"
    assert ask(stream, "create", "c7")["code"] == "too_many"
    assert ask(stream, "create", "c3")["code"] == "exists"
    assert len(ids(stream)) == 8
    assert "id" in ask(stream, "delete", "c3")
    assert ask(stream, "create", "c7")["id"] == "c7"
    assert ids(stream) == ["default", "c0", "c1", "c2", "c4", "c5", "c6", "c7"]


def test_directory(agent: Agent, stream: Stream) -> None:
    """Where it starts, and where it starts again; relative to that of the default one."""
    stream.bash("mkdir -p below/it")
    assert ask(stream, "create", "a", cwd="below/it")["cwd"] == f"{agent.home}/below/it"
    where = "import os; print(os.getcwd()); os.chdir('/')"
    assert stream.python(where, context="a").stdout.decode() == f"{agent.home}/below/it\n"
    assert ask(stream, "restart", "a")["cwd"]
    assert stream.python(where, context="a").stdout.decode() == f"{agent.home}/below/it\n"
    assert ask(stream, "create", "b", cwd="/nowhere/such")["code"] == "not_found"
    assert ask(stream, "create", "b", cwd="/etc/passwd")["code"] == "not_a_directory"
    stream.bash("rmdir below/it")
    ask(stream, "restart", "a")
    assert stream.python("import os; print(os.getcwd())", context="a").stdout.decode() == f"{agent.home}\n"


@pytest.mark.skipif(not ROOT, reason="the agent is not root")
def test_root(stream: Stream) -> None:
    made = ask(stream, "create", "r", user="root")
    assert (made["user"], made["cwd"]) == ("root", "/root")
    r = stream.python("import os; print(os.getuid(), os.getgroups())", context="r", user="root")
    assert r.stdout == b"0 [0]\n"
    r = stream.python("1", context="r", user="user")
    assert r.error is not None and r.error["code"] == "bad_request"
    assert stream.python("import os; print(os.getuid())", context="r").stdout == b"0\n"


def test_restart(stream: Stream) -> None:
    """State is gone, and nobody needs to be told."""
    for name in ("default", "a"):
        if name == "a":
            ask(stream, "create", "a")
        stream.python("x = 1", context=name)
        assert ask(stream, "restart", name)["state"] == "starting"
        r = stream.python("print('x' in globals())", context=name)
        assert (r.stdout, r.events, r.code) == (b"False\n", [], 0)


@pytest.mark.parametrize("op", ["restart", "delete"])
def test_under_a_cell(agent: Agent, stream: Stream, op: str) -> None:
    """The cell ends and is told; one that waits goes on in the new session, or has no context."""
    ask(stream, "create", "a")
    with agent.stream() as s, agent.stream() as waits:
        s.start("import time\nprint('on', flush=True); time.sleep(100)", "python", context="a")
        begun(s)
        waits.start("print('new')", "python", context="a")
        assert stream.bash("true").code == 0
        time.sleep(0.1)
        assert ask(stream, op, "a")["id"] == "a"
        r = s.finish()
        assert r.exit is not None
        assert (r.code, r.exit["reason"], r.exit["state"]) == (137, "signaled", "lost")
        assert "on request" in r.events[-1]["text"]
        r = waits.finish()
        if op == "restart":
            assert (r.stdout, r.events) == (b"new\n", [])
        else:
            assert r.error == {"code": "not_found", "message": "no such context"}
    assert ids(stream) == (["default", "a"] if op == "restart" else ["default"])


def test_delete_and_make_again(stream: Stream) -> None:
    """At once, and as often as one likes."""
    for n in range(5):
        ask(stream, "create", "a")
        if n % 2:
            stream.python("x = 1", context="a")
        assert ask(stream, "delete", "a") == {
            "id": "a", "language": "python", "state": "absent", "cwd": ask(stream, "list")["contexts"][0]["cwd"],
            "user": "user",
        }
        assert ids(stream) == ["default"]
    ask(stream, "create", "a")
    r = stream.python("print('x' in globals())", context="a")
    assert (r.stdout, r.events) == (b"False\n", [])


@needs_cgroups
def test_processes(stream: Stream) -> None:
    """A deleted context takes along its process and what its running cell has started."""
    ask(stream, "create", "a")
    pid = int(stream.python("import os; print(os.getpid())", context="a").stdout)
    ask(stream, "delete", "a")
    wait_for(lambda: not alive(pid), "the end of the session")


def test_death_in_one(stream: Stream) -> None:
    ask(stream, "create", "a")
    stream.python("x = 1", context="a")
    stream.python("x = 2")
    r = stream.python("import os; os._exit(4)", context="a")
    assert r.exit is not None and (r.code, r.exit["state"]) == (4, "lost")
    assert stream.python("print(x)").stdout == b"2\n"
    r = stream.python("print('x' in globals())", context="a")
    assert r.stdout == b"False\n" and "exit status 4" in r.events[0]["text"]


def test_nothing_is_left(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.python("1")
        ask(s, "create", "a")
        s.python("1", context="a")
        ask(s, "delete", "a")
        wait_for(lambda: len(own_agent.groups()) <= 1, "the group to go")
        fds = own_agent.fds()
        for _ in range(5):
            for name in ("a", "b", "c"):
                ask(s, "create", name)
            s.python("1", context="b")
            for name in ("a", "b", "c"):
                ask(s, "delete", name)
        wait_for(lambda: own_agent.fds() <= fds, "descriptors to be closed")
        wait_for(lambda: len(own_agent.groups()) <= 1, "the groups to go")


# --- copies


@needs_cgroups
def test_each_is_renewed(own_agent: Agent) -> None:
    """Before any of them goes on: seeds, hooks, in the middle of cells as between them."""
    log = own_agent.home / "log"
    with own_agent.stream() as s:
        for name in ("a", "b"):
            ask(s, "create", name)
        for name in ("default", "a", "b"):
            r = s.python(
                "import podflare, random, time\nstate = random.getstate()\n"
                f"podflare.on_fork(lambda g: (time.sleep(0.2), open({str(log)!r}, 'a').write(f'{name} {{g}}\\n')));",
                context=name,
            )
            assert r.code == 0, r
    busy = own_agent.stream()
    busy.start(
        "print('on', flush=True)\n"
        f"import os\nwhile not os.path.exists({str(log)!r}): time.sleep(0.01)\n"
        f"for n in range(20):\n    open('ticks', 'a').write('x\\n'); time.sleep(0.01)",
        "python",
        context="a",
    )
    assert busy.recv()[0] == STDOUT
    with own_agent.stream() as host:
        for n in (1, 2):
            assert "groups" in host.ask(FREEZE)
            assert host.ask(CONTEXT, {"op": "list"})["code"] == "busy"
            with own_agent.stream() as new:
                assert new.ask(RENEW, renew_request(kind="fork", generation=n)) == {}
                assert sorted(log.read_text().split("\n"))[-3 * n :] == sorted(
                    f"{name} {g}" for name in ("default", "a", "b") for g in range(1, n + 1)
                )
            host.close()
            host = own_agent.stream()
    busy.close()
    with own_agent.stream() as s:
        assert sorted(ids(s)) == ["a", "b", "default"]
        for name in ("default", "a", "b"):
            r = s.python("print(random.getstate() == state)", context=name)
            assert r.stdout == b"False\n"


@needs_cgroups
def test_one_that_fails(own_agent: Agent) -> None:
    """Nothing goes on in any of them; another renewal may succeed."""
    with own_agent.stream() as s:
        ask(s, "create", "a")
        s.python("import podflare, time\nbad = True", context="a")
        s.python("def hook(g):\n    if bad: raise ValueError('no key')\npodflare.on_fork(hook);", context="a")
        s.python("import time")
    ticking = own_agent.stream()
    ticking.start("print('on', flush=True)\nwhile True: open('t', 'a').write('x\\n'); time.sleep(0.01)", "python")
    wait_for((own_agent.home / "t").exists, "the first tick")
    with own_agent.stream() as host:
        assert "groups" in host.ask(FREEZE)
    with own_agent.stream() as s:
        error = s.ask(RENEW, renew_request(kind="fork", generation=1))
        assert error["code"] == "io_error" and "no key" in error["message"]
        assert s.ask(THAW)["code"] == "bad_request"
        before = (own_agent.home / "t").stat().st_size
        time.sleep(0.3)
        assert (own_agent.home / "t").stat().st_size == before
    ticking.close()


@needs_cgroups
def test_not_ready_ones_are_replaced(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.python("x = 1")
        ask(s, "create", "a")
        assert "groups" in s.ask(FREEZE)
        assert s.ask(RENEW, renew_request(kind="fork", generation=1)) == {}
        r = s.python("print('x' in globals())", context="a")
        assert (r.stdout, r.events) == (b"False\n", [])
        assert s.python("print(x)").stdout == b"1\n"


@needs_cgroups
def test_waiting_cells_of_a_copy_are_given_up(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        ask(s, "create", "a")
        s.python("import time", context="a")
    busy, waits = own_agent.stream(), own_agent.stream()
    busy.start("print('on', flush=True); time.sleep(1)", "python", context="a")
    assert busy.recv()[0] == STDOUT
    waits.start("open('never', 'w')", "python", context="a")
    time.sleep(0.2)
    with own_agent.stream() as host:
        assert "groups" in host.ask(FREEZE)
        assert host.ask(RENEW, renew_request(kind="fork", generation=1)) == {}
    with pytest.raises((Closed, ConnectionResetError)):
        waits.recv()
    with own_agent.stream() as s:
        assert s.python("print(1)", context="a").stdout == b"1\n"
    assert not (own_agent.home / "never").exists()
    busy.close()
    waits.close()


def test_many_at_once(agent: Agent, stream: Stream) -> None:
    """All contexts work at the same time."""
    for n in range(7):
        ask(stream, "create", f"c{n}")
    results: dict[str, bytes] = {}

    def work(name: str) -> None:
        with agent.stream() as s:
            for n in range(10):
                s.python(f"x = '{name}' * {n}", context=name)
            results[name] = s.python("print(x)", context=name).stdout

    threads = [threading.Thread(target=work, args=(f"c{n}",)) for n in range(7)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {f"c{n}": (f"c{n}" * 9 + "\n").encode() for n in range(7)}


def test_is_not_a_request_in_a_body(agent: Agent) -> None:
    with agent.stream() as s:
        s.send(1, {"language": "bash"})
        s.send(CONTEXT, {"op": "list"})
        assert s.recv_json(ERROR)["code"] == "bad_request"
