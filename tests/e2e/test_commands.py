# SPDX-License-Identifier: Apache-2.0
"""Commands in the background, through the SDK: they go on without a client, in copies as well."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Callable

import pytest
from guest import sh

import podflare
from podflare import Command, Sandbox

# What an answer may take beyond what was asked for, on a machine that is emulated and shared.
SLACK = 60


def until(what: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + SLACK
    while not what():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.1)


def test_it_runs_while_other_things_do(box: Sandbox):
    c = box.commands.run("echo begun; sleep 1000", background=True)
    until(lambda: c.info().stdout == (0, 6))
    assert sh(box, f"cat /proc/{c.pid}/comm") in ("bash\n", "sleep\n")  # bash becomes its last command
    assert c.info().state == "running"
    assert c.kill() is True
    r = c.wait(SLACK)
    assert (r.stdout, r.exit_code, r.signal) == ("begun\n", 137, 9)
    assert c.kill() is False and c.info().state == "ended"
    c.delete()
    with pytest.raises(podflare.CommandNotFoundError):
        c.info()


def test_output_and_exit_code(box: Sandbox):
    c = box.commands.run(
        ["bash", "-c", 'echo "$A in $PWD"; echo bad >&2; exit 5'],
        background=True,
        cwd="/usr",
        env={"A": "ü"},
    )
    r = c.wait(SLACK)
    assert (r.stdout, r.stderr, r.exit_code) == ("ü in /usr\n", "bad\n", 5)
    assert box.commands.connect(c.id).wait(SLACK).stdout == "ü in /usr\n"
    assert c.id in [one.id for one in box.commands.list()]


def test_one_reader_goes_on_where_another_left(box: Sandbox):
    c = box.commands.run("for i in 1 2 3; do read x; echo $x; done", background=True, stdin=True)
    c.write("one\n")
    for event in c:
        at = event.extra["offset"]
        break
    assert at == 4
    c.write("two\n")
    c.write("three\n")
    rest = list(c.events(stdout=at))
    assert "".join(e.data for e in rest if e.type == "stdout") == "two\nthree\n"
    assert rest[-1].code == 0


def test_much_goes_in_and_comes_out(box: Sandbox):
    data = os.urandom(5_000_000)
    # Bash does not wait for what it substitutes by itself, and its end is that of the command.
    c = box.commands.run("tee >(md5sum >&2); wait $!", background=True, stdin=True)
    c.write(data)
    c.close_stdin()
    r = c.wait(10 * SLACK)
    assert hashlib.md5(r.stdout_bytes).digest() == hashlib.md5(data).digest()
    assert r.stderr.split()[0] == hashlib.md5(data).hexdigest()
    with pytest.raises(podflare.CommandEndedError):
        c.write("more")


def test_a_time_out_of_its_own_and_one_of_the_wait(box: Sandbox):
    c = box.commands.run("echo x; sleep 1000", background=True, timeout=8)
    with pytest.raises(TimeoutError):
        c.wait(1)
    assert c.info().state == "running"
    assert c.wait(SLACK).termination_reason == "timeout"


def test_a_terminal(box: Sandbox):
    code = "stty size; echo $TERM; read x; stty size; tty; kill -TSTP $$ 2>/dev/null; true"
    c = box.commands.run(code, background=True, pty=(77, 11))
    until(lambda: c.info().stdout[1] >= len("11 77\r\nxterm-256color\r\n"))
    c.resize(120, 40)
    c.write("\r")
    until(lambda: b"/dev/pts/" in output(c))
    text = output(c).decode()
    assert "11 77\r\nxterm-256color\r\n" in text and "40 120\r\n" in text
    c.delete()
    again = box.commands.run("sleep 1000", background=True, pty=(80, 24))
    again.write(b"\x03")  # Ctrl-C
    assert again.wait(SLACK).signal == 2


def output(c: Command) -> bytes:
    """What is there of a command that may still run."""
    end = c.info().stdout[1]
    got = b""
    if end:
        for event in c:
            got += event.raw
            if len(got) >= end or event.type == "exit":
                break
    return got


def test_a_copy_has_them_too(parent: Sandbox):
    with parent.fork(1) as copies:
        s = copies[0]
        c = s.commands.run("n=0; while read x; do n=$((n+1)); echo $n $x; done", background=True, stdin=True)
        c.write("before\n")
        until(lambda: c.info().stdout[1] > 0)
        with s.fork(2) as more:
            for i, copy in enumerate(more):
                twin = copy.commands.connect(c.id)
                twin.write(f"copy{i}\n", close=True)
                assert twin.wait(SLACK).stdout == f"1 before\n2 copy{i}\n"
        c.write("original\n", close=True)
        assert c.wait(SLACK).stdout == "1 before\n2 original\n"


def test_the_sandbox_ends_under_one(parent: Sandbox):
    with parent.fork(1) as copies:
        c = copies[0].commands.run("sleep 1000", background=True)
        off = "import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)"
        copies[0].run_code(f"sudo python3 -c '{off}'; sleep 1000", "bash")
        with pytest.raises(podflare.SandboxEndedError):
            c.wait(SLACK)


def test_in_the_foreground(box: Sandbox):
    assert box.commands.run("echo a | tr a b").stdout == "b\n"
    assert box.commands.run(["cat"], stdin="text").stdout == "text"
