# SPDX-License-Identifier: Apache-2.0
"""`podflare shell` against a stub of the daemon, on a terminal and in pipes."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Callable, Iterator

import pytest
from processes import clean_env, wait_until
from stub_daemon import BINARY, PING, StubDaemon, frame

PATIENCE = 60
Pipe = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def stub() -> Iterator[StubDaemon]:
    """A daemon."""
    with StubDaemon() as daemon:
        yield daemon


class Terminal:
    """A program on a terminal of its own. A shell holds the terminal before and after it, as a
    user's shell does, and says its exit status."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.master, slave = os.openpty()
        self.size(91, 31)
        self.before = termios.tcgetattr(self.master)
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", '"$@"; echo "status=$?"; read _', "sh", *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                self.seen += os.read(self.master, 65536)
            except OSError:
                return

    def size(self, cols: int, rows: int) -> None:
        """The window gets this size."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, keys: str) -> None:
        """As if typed."""
        os.write(self.master, keys.encode())

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until it is on the screen so often."""
        wait_until(
            f"{text!r} in {self.seen[-2000:]!r}",
            lambda: self.seen.count(text.encode()) >= times,
            PATIENCE,
        )

    def raw(self) -> bool:
        """Whether keys go through one by one and unseen."""
        cooked = termios.ICANON | termios.ECHO | termios.ISIG
        return not termios.tcgetattr(self.master)[3] & cooked

    def pid(self) -> int:
        """Of the program."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        wait_until("the program runs", lambda: path.read_text().split(), PATIENCE)
        return int(path.read_text().split()[0])

    def status(self) -> int:
        """Its exit status. The terminal must be as it was before."""
        self.wait_for("status=")
        wait_until("a number", lambda: re.search(rb"status=(\d+)\r\n", self.seen), PATIENCE)
        assert termios.tcgetattr(self.master) == self.before
        found = re.search(rb"status=(\d+)\r\n", self.seen)
        assert found
        return int(found[1])

    def close(self) -> None:
        """Whatever still runs ends."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(podflare: str, stub: StubDaemon) -> Iterator[Callable[..., Terminal]]:
    """Starts podflare shell on a terminal: terminal(*arguments, **environment)."""
    started: list[Terminal] = []

    def start(*args: str, **env: str) -> Terminal:
        env = {"PODFLARE_HOSTD_URL": stub.url, **env}
        started.append(Terminal([podflare, "shell", *args], clean_env(**env)))
        return started[-1]

    yield start
    for t in started:
        t.close()


@pytest.fixture
def pipe(podflare: str, stub: StubDaemon) -> Pipe:
    """Runs podflare shell with bytes as stdin: pipe(stdin, *arguments, **environment)."""

    def run(stdin: bytes, *args: str, **env: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [podflare, "shell", *args],
            input=stdin,
            env=clean_env(**{"PODFLARE_HOSTD_URL": stub.url, **env}),
            capture_output=True,
            timeout=2 * PATIENCE,
            check=False,
        )

    return run


# --- on a terminal ---


def test_shell_on_a_terminal(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal(PODFLARE_API_KEY=" key_1 ")
    t.wait_for("stub> ")
    assert t.raw()
    t.type("echo $((6*7)); stty size\r")
    t.wait_for("42\r\n31 91\r\n")
    t.type("exit 7\r")
    assert t.status() == 7
    assert stub.requests[:2] == [
        ("POST", "/v1/sandboxes", {}),
        (
            "POST",
            "/v1/sandboxes/sb_new/commands",
            {"argv": ["bash", "-l"], "pty": {"cols": 91, "rows": 31}},
        ),
    ]
    assert stub.asked("GET") == ["/v1/sandboxes/sb_new/commands/c0/terminal?stdout=0"]
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]
    assert {h["authorization"] for h in stub.headers} == {"Bearer key_1"}
    wait_until("a close frame", lambda: stub.closes == [b"\x03\xe8"], PATIENCE)


def test_ctrl_c_and_ctrl_d_are_the_shells(terminal: Callable[..., Terminal]) -> None:
    t = terminal()
    t.wait_for("stub> ")
    t.type("sleep 1000\r")
    t.wait_for("sleep 1000")
    t.type("\x03")
    t.wait_for("stub> ", 2)
    t.type("(exit 9)\r")
    t.wait_for("stub> ", 3)
    t.type("\x04")
    assert t.status() == 9


def test_window_size_follows(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal()
    t.wait_for("stub> ")
    t.size(120, 40)
    wait_until("120x40", lambda: {"cols": 120, "rows": 40} in stub.resizes, PATIENCE)
    t.type("stty size\r")
    t.wait_for("40 120\r\n")
    t.size(5000, 2)
    wait_until("1000x2", lambda: {"cols": 1000, "rows": 2} in stub.resizes, PATIENCE)
    t.type("exit\r")
    assert t.status() == 0


def test_many_bytes_to_the_screen(terminal: Callable[..., Terminal]) -> None:
    t = terminal()
    t.wait_for("stub> ")
    t.type("seq 200000; echo do''ne\r")
    t.wait_for("done\r\n")
    assert b"".join(b"%d\r\n" % i for i in range(1, 200001)) in t.seen
    t.type("exit\r")
    assert t.status() == 0


def test_pings_are_answered(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    # In one piece with the answer's head, in the middle of a message.
    stub.greeting = [b"\x02\x03one" + frame(PING, b"p1") + b"\x80\x05-two\n" + frame(BINARY, b"3")]
    t = terminal()
    t.wait_for("one-two\n3")
    wait_until("a pong", lambda: stub.pongs == [b"p1"], PATIENCE)
    t.wait_for("stub> ")
    t.type("exit\r")
    assert t.status() == 0


def test_existing_sandbox_stays(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal("sb_mine")
    t.wait_for("stub> ")
    t.type("exit 3\r")
    assert t.status() == 3
    assert stub.asked("POST") == ["/v1/sandboxes/sb_mine/commands"]
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_mine/commands/c0"]


def test_keep_and_template(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal("--keep", "--template", "python-datasci")
    t.wait_for("stub> ")
    t.type("exit\r")
    assert t.status() == 0
    t.wait_for("podflare shell sb_new goes back into it")
    assert stub.requests[0][2] == {"template": "python-datasci"}
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new/commands/c0"]


def test_leaving(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal()
    t.wait_for("stub> ")
    t.type("echo a~.b ~\r")
    t.wait_for("a~.b ~\r\n")
    t.type("~~.\r")  # one ~ and a dot: no such command
    t.wait_for("stub> ", 3)
    t.type("~.")
    assert t.status() == 255
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_signals(terminal: Callable[..., Terminal], stub: StubDaemon, sig: signal.Signals) -> None:
    t = terminal()
    t.wait_for("stub> ")
    wait_until("raw", t.raw, PATIENCE)
    os.kill(t.pid(), sig)
    assert t.status() == 128 + sig
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]


def test_own_fault_restores_the_terminal(terminal: Callable[..., Terminal]) -> None:
    t = terminal()
    t.wait_for("stub> ")
    assert t.raw()
    os.kill(t.pid(), signal.SIGSEGV)
    assert t.status() == 128 + signal.SIGSEGV


def test_stop_and_go_on(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal()
    t.wait_for("stub> ")
    pid = t.pid()

    def state() -> str:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    os.kill(pid, signal.SIGTSTP)
    wait_until("stopped", lambda: state() == "T", PATIENCE)
    assert termios.tcgetattr(t.master) == t.before
    t.size(70, 20)
    os.kill(pid, signal.SIGCONT)
    wait_until("raw again", t.raw, PATIENCE)
    wait_until("70x20", lambda: {"cols": 70, "rows": 20} in stub.resizes, PATIENCE)
    t.type("exit 4\r")
    assert t.status() == 4


def test_terminal_goes_away(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal()
    t.wait_for("stub> ")
    os.kill(t.process.pid, signal.SIGKILL)  # the session's leader: its terminal is hung up
    wait_until("deleted", lambda: stub.asked("DELETE") == ["/v1/sandboxes/sb_new"], PATIENCE)


def test_daemon_goes_away(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal()
    t.wait_for("stub> ")
    stub.die()
    assert t.status() == 255
    assert b"the connection to the shell broke" in t.seen
    assert b"sb_new could not be deleted" in t.seen


def test_connection_breaks(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    t = terminal()
    t.wait_for("stub> ")
    stub.drop()
    assert t.status() == 255
    assert b"the connection to the shell broke" in t.seen
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]


@pytest.mark.parametrize(
    "greeting, text",
    [
        (b"\x82\x85abcd", "broke: Protocol error"),  # masked
        (b"\x82\x7f" + (65537).to_bytes(8, "big"), "broke: Message too long"),
        (b"\x81\x02\xc3\x28", "broke"),
        (b"\x88\x02\x03\xe9", "the daemon ended the connection"),
        (frame(1, json.dumps({"exit": {}}).encode()), "broke: Protocol error"),
    ],
)
def test_daemon_breaks_the_protocol(
    terminal: Callable[..., Terminal], stub: StubDaemon, greeting: bytes, text: str
) -> None:
    stub.greeting = [greeting]
    t = terminal()
    assert t.status() == 255
    t.wait_for(text)
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]


def test_sandbox_ends_under_the_shell(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    end = {"type": "exit", "data": -1, "exit_code": -1, "termination_reason": "vm_ended"}
    stub.greeting = [frame(1, json.dumps({"exit": end}).encode()) + b"\x88\x02\x03\xe8"]
    t = terminal()
    assert t.status() == 255
    assert b"podflare: the shell is gone: vm_ended" in t.seen


def test_wrong_accept(terminal: Callable[..., Terminal], stub: StubDaemon) -> None:
    stub.accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    t = terminal()
    assert t.status() == 255
    assert b"does not speak WebSocket" in t.seen


# --- without a terminal ---


def test_script_from_a_pipe(pipe: Pipe, stub: StubDaemon) -> None:
    done = pipe(b"echo out; echo err >&2; printf '\\377\\0\\n'; cat; exit 5\nrest")
    assert (done.returncode, done.stdout) == (5, b"out\n\xff\0\nrest")
    assert done.stderr == b"err\n"
    assert stub.requests[1][2] == {"argv": ["bash", "-l"], "stdin": True}
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]


def test_megabytes_through_a_pipe(pipe: Pipe) -> None:
    data = os.urandom(1 << 16) * 64
    done = pipe(b"exec cat\n" + data)
    assert done.returncode == 0 and done.stdout == data and done.stderr == b""


def test_shell_ends_before_its_input(pipe: Pipe) -> None:
    assert pipe(b"exit 6\n" + b"#" * (4 << 20)).returncode == 6


def test_stdin_is_not_taken(pipe: Pipe, stub: StubDaemon) -> None:
    busy = {"error": "another writer is there", "code": "sandbox_busy"}
    stub.refusals["POST .*/stdin.*"] = (409, busy)
    done = pipe(b"exit 1\n")
    assert done.returncode == 255
    assert b"the daemon did not take all of stdin (status 409)" in done.stderr
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]


def test_stdin_is_not_wanted(podflare: str, stub: StubDaemon) -> None:
    # The shell goes on without: for longer than it takes to notice that stdin was lost.
    stub.refusals["POST .*/stdin.*"] = (409, {"error": "closed", "code": "stdin_closed"})
    env = clean_env(PODFLARE_HOSTD_URL=stub.url)
    with subprocess.Popen([podflare, "shell"], stdin=subprocess.PIPE, env=env) as process:
        wait_until("a command", lambda: stub.commands, PATIENCE)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(7)
        stub.commands["c0"].process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_signal_without_a_terminal(podflare: str, stub: StubDaemon) -> None:
    env = clean_env(PODFLARE_HOSTD_URL=stub.url)
    with subprocess.Popen(
        [podflare, "shell"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as process:
        process.stdin.write(b"echo here\n")  # and stdin stays open
        process.stdin.flush()
        assert process.stdout.readline() == b"here\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]


def test_reader_of_output_goes_away(podflare: str, stub: StubDaemon) -> None:
    env = clean_env(PODFLARE_HOSTD_URL=stub.url)
    with subprocess.Popen(
        [podflare, "shell"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
    ) as process:
        process.stdin.write(b"yes\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(PATIENCE) == 255
        assert b"cannot write what the shell says" in process.stderr.read()
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]


# --- what can go wrong before ---


def test_signal_while_the_sandbox_is_made(podflare: str, stub: StubDaemon) -> None:
    stub.hang_create.set()
    env = clean_env(PODFLARE_HOSTD_URL=stub.url)
    with subprocess.Popen(
        [podflare, "shell"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env
    ) as process:
        assert b"starting a sandbox" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 143
    # It was made in that moment all the same: it is not forgotten.
    assert stub.asked("DELETE") == ["/v1/sandboxes/sb_new"]
    assert len(stub.asked("POST")) == 1


@pytest.mark.parametrize(
    "where", ["POST /v1/sandboxes", "POST .*/commands", "GET .*/terminal.*", "GET .*/stream.*"]
)
def test_refusals_are_told(
    terminal: Callable[..., Terminal],
    pipe: Pipe,
    stub: StubDaemon,
    where: str,
) -> None:
    stub.refusals[where] = (429, {"error": "too many\x1b[2J\x9b1m\u202e", "code": "x", "hint": "close some"})
    if "stream" in where:
        done = pipe(b"")
        assert (done.returncode, done.stderr) == (255, b"podflare: too many?[2J?1m? (close some)\n")
    else:
        t = terminal()
        assert t.status() == 255
        assert b"podflare: too many?[2J?1m? (close some)\r\n" in t.seen
    deleted = [] if where == "POST /v1/sandboxes" else ["/v1/sandboxes/sb_new"]
    assert stub.asked("DELETE") == deleted


def test_no_daemon(pipe: Pipe) -> None:
    done = pipe(b"", PODFLARE_HOSTD_URL="http://127.0.0.1:1")
    assert done.returncode == 255
    assert b"no podflare daemon answers at http://127.0.0.1:1 (Connection refused)" in done.stderr


def test_something_else_answers(pipe: Pipe, stub: StubDaemon) -> None:
    stub.refusals["POST /v1/sandboxes"] = (200, {"hello": "world"})
    done = pipe(b"")
    assert done.returncode == 255 and b"the daemon's answer has no id" in done.stderr
    stub.refusals["POST /v1/sandboxes"] = (200, {"id": "../x"})
    assert pipe(b"").returncode == 255
    stub.refusals["POST /v1/sandboxes"] = (404, {"what": 1})
    assert b"with status 404: is that a podflare daemon?" in pipe(b"").stderr


@pytest.mark.parametrize(
    "args, env, text",
    [
        (["a", "b"], {}, "unexpected argument 'b'"),
        (["../x"], {}, "is not the id of a sandbox"),
        (["--frobnicate"], {}, "unknown option --frobnicate"),
        (["--template"], {}, "--template needs a value"),
        (["sb_1", "--keep"], {}, "--keep is for a new sandbox"),
        ([], {"PODFLARE_HOSTD_URL": "https://host:1"}, "plain http only"),
        ([], {"PODFLARE_HOSTD_URL": "ftp://host"}, "the scheme must be http"),
        ([], {"PODFLARE_HOSTD_URL": "http://host:99999"}, "port of the daemon"),
        ([], {"PODFLARE_HOSTD_URL": "http://host/path"}, "it has a path"),
        ([], {"PODFLARE_API_KEY": "a\nb"}, "characters that no key has"),
    ],
)
def test_usage(
    pipe: Pipe,
    stub: StubDaemon,
    args: list[str],
    env: dict[str, str],
    text: str,
) -> None:
    done = pipe(b"", *args, **env)
    assert done.returncode == 2 and text in done.stderr.decode()
    assert b"podflare shell --help" in done.stderr
    assert not stub.requests


def test_other_forms_of_the_address(
    pipe: Pipe, stub: StubDaemon
) -> None:
    bare = stub.url.removeprefix("http://")
    assert pipe(b"exit 1\n", PODFLARE_HOSTD_URL="", PODFLARE_HOST=bare).returncode == 1
    assert stub.headers[0]["host"] == bare
    named = f"HTTP://localhost:{bare.split(':')[1]}/"
    assert pipe(b"exit 2\n", PODFLARE_HOSTD_URL=named).returncode == 2


def test_help(call: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    done = call("shell", "--help")
    assert done.returncode == 0 and "usage: podflare shell" in done.stdout
    assert re.search(r"^  shell  ", call("help").stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "host, key, told",
    [
        ("127.0.0.1", "key_1", False),
        ("localhost", "key_1", False),
        ("0.0.0.0", "key_1", True),  # leads to this machine, and is no address of loopback
        ("0.0.0.0", "", False),
    ],
)
def test_a_key_that_others_can_read(
    pipe: Pipe, stub: StubDaemon, host: str, key: str, told: bool
) -> None:
    """It is told of, once; the shell is what it would be."""
    url = f"http://{host}:{stub.url.rsplit(':', 1)[1]}"
    done = pipe(b"echo here\n", PODFLARE_HOSTD_URL=url, PODFLARE_API_KEY=key)
    assert done.stdout == b"here\n" and done.returncode == 0, done.stderr
    warnings = [x for x in done.stderr.decode().splitlines() if "unencrypted" in x]
    assert len(warnings) == told, done.stderr
    assert not told or "ssh -L" in warnings[0] and url.removeprefix("http://") in warnings[0]
