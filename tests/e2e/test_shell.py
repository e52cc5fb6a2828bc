# SPDX-License-Identifier: Apache-2.0
"""`podflare shell` into a real guest, on a terminal and in a pipe. (tests/box has it against a stub.)"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from guest import sh
from served import Daemon

from podflare import Sandbox

PATIENCE = 120


@pytest.fixture
def shell(build: Path, daemon: Daemon) -> tuple[list[str], dict[str, str]]:
    return [str(build / "podflare"), "shell"], {**os.environ, "PODFLARE_HOSTD_URL": daemon.url}


def test_a_script_in_a_pipe(shared: Sandbox, shell: tuple[list[str], dict[str, str]]):
    argv, env = shell
    done = subprocess.run(
        [*argv, shared.id],
        input=b"whoami; cd /tmp; pwd\nexit 5\n",
        env=env,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, b"user\n/tmp\n"), done
    assert sh(shared, "echo alive") == "alive\n", "it stays"


class Screen:
    """What a program shows on a terminal."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.master, slave = os.openpty()
        self.size(91, 31)
        self.process = subprocess.Popen(
            argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**env, "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        os.set_blocking(self.master, False)
        self.seen = b""

    def size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, pattern: bytes) -> None:
        """Until the screen has it; what comes before is forgotten then."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"{pattern!r} in {self.seen[-2000:]!r}"
            try:
                self.seen += os.read(self.master, 65536)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                raise AssertionError(f"it ended: {self.seen[-2000:]!r}") from None
        self.seen = self.seen[found.end() :]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_a_terminal(shared: Sandbox, shell: tuple[list[str], dict[str, str]]):
    """Its size and a change of it, Ctrl-C that reaches the program and not the shell, its end."""
    argv, env = shell
    screen = Screen([*argv, shared.id], env)
    try:
        screen.type(b"stty size; echo $((6 * 7))\n")
        screen.wait_for(rb"31 91\s+42\r\n")
        screen.size(70, 20)
        screen.type(b"until stty size | grep 20.70; do sleep 0.2; done\n")
        screen.wait_for(rb"[\r\n]20 70\r\n")
        screen.type(b"echo begun; sleep 1000\n")
        screen.wait_for(rb"begun\r\n")
        time.sleep(1)
        screen.type(b"\x03")
        screen.type(b"echo status $?\n")
        screen.wait_for(rb"status 130\r\n")
        screen.type(b"exit 7\n")
        assert screen.process.wait(PATIENCE) == 7
    finally:
        screen.close()
    assert sh(shared, "echo alive") == "alive\n"
