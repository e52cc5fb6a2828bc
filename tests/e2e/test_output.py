# SPDX-License-Identifier: Apache-2.0
"""Output: exact bytes, at once, as much as there is; and commands that lose their client."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time

import httpx
import pytest
from guest import py, sh

import podflare
from podflare import Event, Sandbox

MEGABYTE = 1_000_000


def plain(http: httpx.Client, sandbox: Sandbox, **body) -> list[dict]:
    """The events of the published (plain) form."""
    reply = http.post(f"/v1/sandboxes/{sandbox.id}/exec", json=body, timeout=None)
    assert reply.status_code == 200, reply.text
    return [json.loads(line) for line in reply.content.split(b"\n")[:-1]]


def test_plain_form_is_one_event_a_line(http: httpx.Client, shared: Sandbox):
    events = plain(
        http,
        shared,
        code="import sys\nprint('a\\n\\nb')\nprint('c', end='', flush=True)\nn = sys.stderr.write('e\\n')",
    )
    assert [e["seq"] for e in events] == list(range(len(events)))
    out = [e["data"] for e in events if e["type"] == "stdout"]
    err = [e["data"] for e in events if e["type"] == "stderr"]
    assert (out, err) == (["a", "", "b", "c"], ["e"])
    assert (events[-1]["type"], events[-1]["data"]) == ("exit", 0)
    assert all(set(e) == {"type", "data", "seq", "ts"} for e in events)


def test_plain_form_of_binary_output_and_of_long_lines(http: httpx.Client, shared: Sandbox):
    events = plain(
        http,
        shared,
        code="printf 'a\\xff\\xfeb\\n'; printf 'ä'; printf '\\xe2\\x82'",
        language="bash",
    )
    text = "\n".join(e["data"] for e in events if e["type"] == "stdout")
    assert text.startswith("a\ufffd") and "b\nä\ufffd" in text
    events = plain(http, shared, code="print('x' * 300_000)")
    out = [e["data"] for e in events if e["type"] == "stdout"]
    assert "".join(out) == "x" * 300_000 and all(len(piece) <= 65536 for piece in out)


def test_plain_form_shows_the_last_expression(http: httpx.Client, shared: Sandbox):
    events = plain(http, shared, code="6 * 7")
    assert [e["data"] for e in events] == ["42", 0]


def test_last_expression_of_the_rich_form(shared: Sandbox):
    r = shared.run_code("print('x')\n6 * 7")
    assert (r.stdout, r.text) == ("x\n", "42")
    assert shared.run_code("None").text is None


def test_exact_bytes(shared: Sandbox):
    r = shared.run_code("import os, sys; n = os.write(1, bytes(range(256)) * 300)")
    assert r.stdout_bytes == bytes(range(256)) * 300
    r = shared.run_code("printf 'no newline'; printf 'on stderr\\r\\n' >&2", language="bash")
    assert (r.stdout, r.stderr, r.exit_code) == ("no newline", "on stderr\r\n", 0)


def test_characters_are_not_torn(shared: Sandbox):
    """A character whose bytes are written one by one arrives as text."""
    events = list(
        shared.run_code_stream(
            "import os, time\nfor b in '€🎈'.encode():\n    n = os.write(1, bytes([b])); time.sleep(0.02)"
        )
    )
    pieces = [e.data for e in events if e.type == "stdout"]
    assert "".join(pieces) == "€🎈"
    assert all("\ufffd" not in piece for piece in pieces)


def test_line_separators_of_unicode_stay_in_their_line(shared: Sandbox):
    text = "a\u2028b\u2029c\x85d\x0be\x1cf"
    assert shared.run_code(f"print({text!r})").stdout == text + "\n"


def test_stdout_and_stderr_of_children_and_of_python(shared: Sandbox):
    r = shared.run_code(
        "import subprocess, sys\nprint('1')\nn = subprocess.run(['sh', '-c', 'echo 2; echo e >&2'])\n"
        "print('3')\nprint('f', file=sys.stderr)"
    )
    assert (r.stdout, r.stderr) == ("1\n2\n3\n", "e\nf\n")


def test_exit_codes_of_bash(shared: Sandbox):
    assert shared.run_code("exit 42", language="bash").exit_code == 42
    assert shared.run_code("false", language="bash").exit_code == 1
    r = shared.run_code("kill -9 $$", language="bash")
    assert (r.exit_code, r.termination_reason, r.signal) == (137, "signaled", 9)
    assert shared.run_code("no-such-program", language="bash").exit_code == 127


def test_cwd_and_environment_of_one_command(shared: Sandbox):
    code = 'echo "$PWD ${GREETING:-}"'
    r = shared.run_code(code, "bash", cwd="/tmp", env={"GREETING": "hällo"})
    assert r.stdout == "/tmp hällo\n"
    assert shared.run_code(code, "bash").stdout == "/home/user \n"
    # The interpreter gets its own back.
    code = "import os; print(os.getcwd(), os.environ.get('GREETING', ''))"
    r = shared.run_code(code, cwd="/tmp", env={"GREETING": "hällo"})
    assert r.stdout == "/tmp hällo\n"
    assert shared.run_code(code).stdout == "/home/user \n"


def test_cwd_that_does_not_exist(shared: Sandbox):
    """Refused: at once by an error, or, if the guest took its time, by the command's result."""
    try:
        r = shared.run_code("echo ran", "bash", cwd="/no/such/directory")
        assert (r.exit_code, r.termination_reason, r.stdout) == (-1, "refused", "")
        message = r.stderr
    except podflare.InvalidRequestError as e:
        assert e.field == "cwd"
        message = str(e)
    assert "/no/such/directory" in message


def test_a_block_that_is_indented_as_a_whole(shared: Sandbox, http: httpx.Client):
    code = """
        for word in ("one", "two"):
            print(word)
    """
    assert shared.run_code(code).stdout == "one\ntwo\n"
    # Also from clients that do not dedent.
    assert [e["data"] for e in plain(http, shared, code=code)] == ["one", "two", 0]
    r = shared.run_code(
        """
        if true; then
            cat <<END
        here
        END
        fi
        """,
        language="bash",
    )
    assert r.stdout == "here\n"


def test_output_arrives_while_the_command_runs(shared: Sandbox):
    sh(shared, "rm -f /tmp/go")
    stream = shared.run_code_stream(
        "printf begun; until [ -e /tmp/go ]; do sleep 0.05; done; echo ' ended'", language="bash"
    )
    first = next(stream)
    assert (first.type, first.data) == ("stdout", "begun")
    shared.upload(b"", "/tmp/go")
    assert [e.data for e in stream] == [" ended\n", 0]


@pytest.mark.limit(900)
@pytest.mark.parametrize("language", ["python", "bash"])
def test_100_megabytes(shared: Sandbox, language):
    block = hashlib.sha256(b"block").digest().hex().encode() * 15625  # 1 MB, no newline
    shared.upload(block, "/tmp/block")
    assert len(block) == MEGABYTE
    code = {
        "python": "import sys\nblock = open('/tmp/block').read()\n"
        "for _ in range(100): n = sys.stdout.write(block)",
        "bash": "for i in $(seq 100); do cat /tmp/block; done",
    }[language]
    wanted, got, size, last = hashlib.sha256(), hashlib.sha256(), 0, None
    for _ in range(100):
        wanted.update(block)
    for event in shared.run_code_stream(code, language, output_limit=256 << 20):
        if event.type == "stdout":
            size += len(event.raw)
            got.update(event.raw)
        last = event
    assert isinstance(last, Event) and (last.type, last.code) == ("exit", 0)
    assert size == 100 * MEGABYTE
    assert got.hexdigest() == wanted.hexdigest()


@pytest.mark.limit(600)
def test_binary_megabytes(shared: Sandbox):
    r = shared.run_code("head -c 8000000 /dev/urandom | tee /tmp/random", language="bash")
    assert r.ok and len(r.stdout_bytes) == 8_000_000
    digest = sh(shared, "sha256sum < /tmp/random; rm /tmp/random").split()[0]
    assert hashlib.sha256(r.stdout_bytes).hexdigest() == digest


def test_a_reader_that_waits_loses_nothing(shared: Sandbox):
    """Much more than all buffers on the way hold, with nobody reading for a while."""
    stream = shared.run_code_stream(
        "for i in $(seq 40); do cat /tmp/pressure; done", "bash", output_limit=256 << 20
    )
    shared.upload(b"y" * MEGABYTE, "/tmp/pressure")
    size = len(next(stream).raw)
    time.sleep(2)
    # Meanwhile the daemon serves others, and this sandbox's files.
    assert shared.download("/tmp/pressure") == b"y" * MEGABYTE
    size += sum(len(e.raw) for e in stream)
    assert size == 40 * MEGABYTE
    sh(shared, "rm /tmp/pressure")


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "talking"])
@pytest.mark.parametrize(
    "language, talking, quiet",
    [
        ("bash", "while :; do echo y; sleep 0.02; done", "sleep 86401"),
        (
            "python",
            "import time\nwhile True: print('y', flush=True); time.sleep(0.02)",
            "import subprocess; subprocess.run(['sleep', '86401'])",
        ),
    ],
)
def test_a_client_that_leaves_ends_its_command(
    http: httpx.Client, shared: Sandbox, language, talking, quiet, silent
):
    shared.run_code("kept = 'still here'")
    sh(shared, "rm -f /tmp/begun")
    begin = {
        "bash": "touch /tmp/begun; ",
        "python": "open('/tmp/begun', 'w').close()\n",
    }[language]
    code = begin + (quiet if silent else talking)
    if silent:
        left = threading.Event()

        def leave() -> None:
            """Hang up as soon as the command has begun; nothing has been received then."""
            with httpx.Client(base_url=http.base_url, timeout=None) as other:
                with other.stream(
                    "POST",
                    f"/v1/sandboxes/{shared.id}/exec",
                    json={"code": code, "language": language},
                ):
                    left.wait(60)

        thread = threading.Thread(target=leave)
        thread.start()
        while True:
            try:
                shared.download("/tmp/begun")
                break
            except FileNotFoundError:
                time.sleep(0.05)
        left.set()
        thread.join()
    else:
        stream = shared.run_code_stream(code, language)
        assert next(stream).type == "stdout"
        stream.close()
    # The next command of the sandbox runs only because the one before has ended.
    r = shared.run_code("pgrep -x sleep -a | grep 86401; echo looked", language="bash")
    assert r.stdout == "looked\n"
    assert shared.run_code("print(kept)").stdout == "still here\n"


def test_code_that_ignores_being_cancelled_is_ended_all_the_same(shared: Sandbox):
    stream = shared.run_code_stream(
        """
        import time
        print("begun", flush=True)
        while True:
            try:
                time.sleep(1000)
            except BaseException:
                pass
        """
    )
    next(stream)
    stream.close()
    # Its interpreter had to go; the next one is as new.
    r = shared.run_code("print('x' in globals(), 1 + 1)")
    assert r.ok and r.stdout.endswith(" 2\n")


def test_background_children_of_bash_do_not_hold_its_end(shared: Sandbox):
    """A command ends with its shell; what it leaves behind with its output open cannot delay that."""
    r = shared.run_code("sleep 5000 & echo done", language="bash")
    assert (r.stdout, r.exit_code) == ("done\n", 0)
    shared.run_code("pkill -f 'sleep 5000'", language="bash")


def test_base64_in_the_rich_form(http: httpx.Client, shared: Sandbox):
    events = plain(http, shared, code="printf '\\xff\\x00\\n'", language="bash", rich=True)
    pieces = [e for e in events if e["type"] == "stdout"]
    assert b"".join(base64.b64decode(p["data"]) for p in pieces) == b"\xff\x00\n"
    assert all(p["encoding"] == "base64" for p in pieces)
    assert events[-1]["type"] == "exit" and events[-1]["termination_reason"] == "exited"
    assert events[-1]["state"] == "preserved" and events[-1]["duration_ms"] >= 0


def test_standard_input_is_empty(shared: Sandbox):
    assert shared.run_code("cat; echo end", language="bash").stdout == "end\n"
    r = shared.run_code("input('name? ')")
    assert r.exit_code == 1 and r.error is not None


def test_many_short_commands(shared: Sandbox):
    py(shared, "count = 0")
    for _ in range(30):
        shared.run_code("count += 1")
    assert py(shared, "print(count)") == "30\n"
