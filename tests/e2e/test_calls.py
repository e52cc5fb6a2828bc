# SPDX-License-Identifier: Apache-2.0
"""How calls are made and end, through the SDK: time-outs, interrupts, callbacks, contexts, argument
lists, standard input, limits of output, rich results."""

from __future__ import annotations

import threading
import time
from typing import Any, Callable

import pytest
from guest import py, sh

import podflare
from podflare import ExecResult, Sandbox

# What an answer may take beyond what was asked for, on a machine that is emulated and shared.
SLACK = 60


class Later(threading.Thread):
    """Calls something in a thread; `result()` waits for what it returned or raised."""

    def __init__(self, what: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._what = what
        self._error: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._what()
        except BaseException as exc:
            self._error = exc

    def result(self) -> Any:
        self.join()
        if self._error is not None:
            raise self._error
        return self._outcome


def running(s: Sandbox, count: int = 1) -> None:
    """Wait until so many calls run."""
    while sum(one.state == "running" for one in s.list_execs()) < count:
        time.sleep(0.05)


@pytest.mark.parametrize(
    "language, code",
    [
        ("python", "import time\nprint('begun', flush=True)\ntime.sleep(1000)"),
        ("python", "print('begun', flush=True)\nwhile True: pass"),
        ("bash", "echo begun; sleep 1000"),
        ("bash", "echo begun; trap '' TERM INT; while true; do sleep 1; done"),
        ("bash", "echo begun; setsid sleep 1000 & sleep 1000"),
    ],
    ids=["sleep", "loop", "bash", "deaf", "session"],
)
def test_a_timeout_ends_the_call(box: Sandbox, language: Any, code: str):
    box.run_code("kept = 1")
    start = time.monotonic()
    r = box.run_code(code, language, timeout=3)
    assert time.monotonic() - start < 3 + SLACK
    assert (r.termination_reason, r.exit_code, r.ok) == ("timeout", 124, False), r
    assert r.stdout == "begun\n" and r.duration_ms is not None and r.duration_ms >= 2900
    if language == "bash" or r.state == "preserved":
        assert py(box, "print(kept)") == "1\n"
    assert sh(box, "pgrep -x sleep || true") == ""


def test_output_that_is_on_its_way_at_a_timeout(box: Sandbox):
    """What is not delivered is counted, and in the log."""
    r = box.run_code("seq 4000000; sleep 1000", "bash", timeout=8, output_limit=1 << 16)
    assert (r.termination_reason, r.exit_code) == ("timeout", 124), r.stderr
    assert r.truncated and r.bytes_dropped > 0
    size = int(sh(box, f"stat -c %s {r.log['stdout']}"))
    assert size == len(r.stdout_bytes) + r.bytes_dropped


@pytest.mark.parametrize("language, code", [("python", "while True: print('y')"), ("bash", "yes")])
def test_a_call_that_is_to_end_at_its_limit(box: Sandbox, language: Any, code: str):
    box.run_code("kept = 1")
    r = box.run_code(code, language, output_limit=1 << 16, output_limit_action="end")
    assert (r.termination_reason, r.exit_code, r.ok) == ("output_limit", 153, False), r
    assert r.stdout == "y\n" * (1 << 15) and r.truncated and r.state == "preserved"
    assert int(sh(box, f"stat -c %s {r.log['stdout']}")) == (1 << 16) + r.bytes_dropped
    assert py(box, "print(kept)") == "1\n"


def test_code_that_ignores_the_interrupt_of_a_timeout(box: Sandbox):
    box.run_code("kept = 1")
    r = box.run_code(
        """
        import time
        while True:
            try:
                time.sleep(1000)
            except BaseException:
                pass
        """,
        timeout=2,
    )
    assert (r.termination_reason, r.exit_code, r.state) == ("timeout", 124, "lost"), r
    after = box.run_code("print('kept' in globals())")
    assert after.stdout == "False\n" and any(
        "variable" in notice for notice in after.notices
    ), after


def test_interrupt_keeps_variables(box: Sandbox):
    box.run_code("x = 1")
    assigned = threading.Event()
    call = Later(
        lambda: box.run_code(
            "x = 2\nprint('assigned', flush=True)\nimport time\ntime.sleep(1000)",
            on_stdout=lambda _: assigned.set(),
        )
    )
    assert assigned.wait(60)
    assert box.interrupt() is True
    r: ExecResult = call.result()
    assert (r.termination_reason, r.exit_code, r.state) == ("interrupted", 130, "preserved"), r
    assert box.interrupt() is False
    assert py(box, "print(x)") == "2\n"


def test_interrupt_is_for_one_call(box: Sandbox):
    first = Later(lambda: box.run_code("import time; time.sleep(1000)"))
    running(box)
    # The client knows, too, that it runs: one that waits behind it is not meant.
    while not all(box._underway._started.values()):
        time.sleep(0.01)
    second = Later(lambda: box.run_code("print('second')"))
    third = Later(lambda: box.run_code("print('never')"))
    while len(box.list_execs()) < 3:
        time.sleep(0.05)
    waiting = [one for one in box.list_execs() if one.state == "queued"]
    assert box.interrupt(waiting[1].exec_id) is True
    assert box.interrupt() is True
    assert first.result().termination_reason == "interrupted"
    outcomes = sorted((r.termination_reason, r.stdout) for r in (second.result(), third.result()))
    assert [reason for reason, _ in outcomes] == ["exited", "interrupted"] and outcomes[1][1] == ""
    with pytest.raises(podflare.ExecNotFoundError):
        box.interrupt("no_such_call")


def test_interrupt_that_escalates(box: Sandbox):
    stream = box.run_code_stream(
        "trap '' INT TERM; echo deaf; while true; do sleep 1; done", "bash", timeout=0
    )
    assert next(stream).data == "deaf\n"
    assert stream.interrupt() is True
    time.sleep(1)
    assert [one.exec_id for one in box.list_execs()] == [stream.exec_id]
    assert stream.interrupt(escalate=True) is True
    last = list(stream)[-1]
    assert last.extra["termination_reason"] == "interrupted" and last.code != 0
    assert stream.interrupt() is False


def test_callbacks_as_things_happen(box: Sandbox):
    seen: list[Any] = []
    go = threading.Event()

    def first(piece: str) -> None:
        seen.append(piece)
        if piece.startswith("1"):
            # The cell waits for this file: so this is called before it has ended.
            box.upload(b"", "/tmp/go")
            go.set()

    r = box.run_code(
        """
        import os, sys, time
        print("1", flush=True)
        while not os.path.exists("/tmp/go"): time.sleep(0.05)
        print("2", file=sys.stderr, flush=True)
        display("three")
        1 / 0
        """,
        on_stdout=first,
        on_stderr=lambda piece: seen.append(("err", piece)),
        on_result=lambda result: seen.append(result.text),
        on_error=lambda error: seen.append(error.name),
    )
    assert go.is_set() and r.exit_code == 1
    # A line may come in two pieces.
    out = "".join(one for one in seen if isinstance(one, str) and one.strip("1\n") == "")
    err = "".join(one[1] for one in seen if isinstance(one, tuple))
    assert out == "1\n" and err.startswith("2\n") and seen[0].startswith("1")
    assert "ZeroDivisionError" in seen and "'three'" in seen


def test_options_of_one_call(box: Sandbox):
    code = "import os; print(os.getcwd(), os.environ.get('GREETING'))"
    assert py(box, code) == "/home/user None\n"
    r = box.run_code(code, cwd="/tmp", env={"GREETING": "hällo"})
    assert r.stdout == "/tmp hällo\n"
    assert py(box, code) == "/home/user None\n"
    assert box.run_code("id -un", "bash", user="root").stdout == "root\n"
    assert box.run_code("id -un", "bash").stdout == "user\n"


def test_standard_input(box: Sandbox):
    r = box.run_code("name = input('? ')\nprint('hello', name)", stdin="Ada\n")
    assert r.ok and r.stdout.endswith("hello Ada\n"), r
    r = box.run_code(
        "import sys; print(len(sys.stdin.buffer.read()))", stdin=bytes(range(256)) * 1000
    )
    assert r.stdout == "256000\n", r
    assert box.run_code("sort", "bash", stdin="b\na\n").stdout == "a\nb\n"
    assert box.exec(["wc", "-c"], stdin=b"\0" * 100_000).stdout.split() == ["100000"]
    r = box.run_code("input('? ')")
    assert r.exit_code == 1 and r.error is not None and "stdin" in r.error.value.lower(), r


def test_argument_lists(box: Sandbox):
    r = box.exec(["printf", "%s|", "a b", "$HOME", "*", "", "é"])
    assert (r.stdout, r.exit_code) == ("a b|$HOME|*||é|", 0)
    assert box.exec(["sh", "-c", "exit 7"]).exit_code == 7
    assert box.exec(["pwd"], cwd="/tmp").stdout == "/tmp\n"
    assert box.exec(["sleep", "1000"], timeout=1).termination_reason == "timeout"
    r = box.exec(["sh", "-c", "kill -9 $$"])
    assert (r.termination_reason, r.signal, r.exit_code) == ("signaled", 9, 137)
    try:
        r = box.exec(["no-such-program"])
        assert not r.ok and "no-such-program" in r.stderr
    except podflare.PodflareError as exc:
        assert "no-such-program" in str(exc)


def test_javascript_runs_or_says_why_not(box: Sandbox):
    try:
        r = box.run_code("console.log(6 * 7)", "javascript")
    except podflare.PodflareError as exc:
        assert "node" in str(exc)
        return
    if sh(box, "command -v node || true"):
        assert r.stdout == "42\n"
    else:
        assert not r.ok and "node" in r.stderr


def test_more_output_than_is_kept(box: Sandbox):
    """Head and tail are here, the whole is a file in the sandbox."""
    count, limit = 100_000, 65536
    r = box.run_code(f"for i in range({count}): print(i)", output_limit=limit, timeout=600)
    whole = "".join(f"{i}\n" for i in range(count))
    assert r.ok and r.truncated and len(r.stdout) <= limit
    assert r.bytes_dropped == len(whole) - len(r.stdout_bytes)
    head = len(r.stdout) // 2 - 4096
    assert whole.startswith(r.stdout[:head]) and whole.endswith(r.stdout[-head:])
    assert box.download(r.log["stdout"]).decode() == whole
    small = box.run_code("print('x')", output_limit=limit)
    assert (small.truncated, small.bytes_dropped, dict(small.log)) == (False, 0, {})


def test_contexts(box: Sandbox):
    box.run_code("x = 'default'")
    with box.create_context("other", cwd="/tmp") as other:
        assert (
            other.run_code("'x' in globals(), __import__('os').getcwd()").text == "(False, '/tmp')"
        )
        other.run_code("x = 'other'")
        assert py(box, "print(x)") == "default\n"
        assert box.run_code("print(x)", context="other").stdout == "other\n"
        # They do not wait for each other.
        call = Later(lambda: box.run_code("import time; time.sleep(1000)"))
        running(box)
        assert other.run_code("print(x)").stdout == "other\n"
        box.interrupt()
        assert call.result().termination_reason == "interrupted"
        assert {one.id for one in box.list_contexts()} == {"default", "other"}
        with pytest.raises(podflare.AlreadyExistsError):
            box.create_context("other")
        other.restart()
        assert other.run_code("'x' in globals()").text == "False"
    assert [one.id for one in box.list_contexts()] == ["default"]
    with pytest.raises(podflare.ContextNotFoundError):
        other.run_code("1")
    assert py(box, "print(x)") == "default\n"


def test_results_in_many_forms(box: Sandbox, tmp_path):
    r = box.run_code(
        """
        class Shape:
            def __repr__(self): return "a shape"
            def _repr_html_(self): return "<b>shape</b><script>evil()</script>"
            def _repr_svg_(self): return "<svg xmlns='http://www.w3.org/2000/svg'/>"
            def _repr_json_(self): return {"sides": 3}
            def _repr_latex_(self): return "$x$"
        display(Shape(), "text")
        6 * 7
        """
    )
    assert [one.text for one in r.results] == ["a shape", "'text'", "42"] and r.text == "42"
    shape = r.results[0]
    assert shape.html is not None and "<script>" in shape.html
    assert "<script>" not in r._repr_html_() and "<b>shape</b>" in r._repr_html_()
    assert (shape.json, shape.latex) == ({"sides": 3}, "$x$")
    assert shape.svg is not None and shape.svg.startswith("<svg")
    r.save(tmp_path / "shape.svg")
    assert (tmp_path / "shape.svg").read_text() == shape.svg
    with pytest.raises(ValueError, match="image/png"):
        r.save(tmp_path / "shape.png")


def test_what_ends_a_call_is_said(box: Sandbox):
    assert box.run_code("1").termination_reason == "exited"
    r = box.run_code("import os; os.kill(os.getpid(), 9)")
    assert (r.termination_reason, r.state, r.signal) == ("signaled", "lost", 9), r
    r = box.run_code("exit 3", "bash")
    assert (r.termination_reason, r.exit_code, r.state) == ("exited", 3, "preserved")
    assert (r.truncated, r.bytes_dropped) == (False, 0) and r.duration_ms is not None
