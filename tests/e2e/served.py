# SPDX-License-Identifier: Apache-2.0
"""Daemons under test: `podflare serve` as a child process, or one that runs already."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Callable, Mapping, Optional

ROOT = Path(__file__).resolve().parents[2]
READY = re.compile(r"^podflared?: ready on (http://\S+)", re.MULTILINE)


def free_port() -> int:
    """A TCP port of loopback that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, condition: Callable[[], object], seconds: float) -> None:
    """Wait for a condition, or fail with `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so within {seconds:.0f} s")
        time.sleep(0.05)


def stat_of(process: Path) -> tuple[str, str, int]:
    """Name, state and session of a process, whosever it is; /proc/PID as its argument."""
    name, _, rest = (process / "stat").read_text(errors="replace").partition("(")[2].rpartition(")")
    fields = rest.split()
    return name, fields[0], int(fields[3])


class Daemon:
    """A daemon at `url`. `log()` is what it has said so far, None if nobody can know."""

    url: str

    def log(self) -> Optional[str]:
        raise NotImplementedError


class ExternalDaemon(Daemon):
    """Somebody else's: never stopped, its log unknown."""

    def __init__(self, url: str) -> None:
        self.url = url

    def log(self) -> Optional[str]:
        return None


class Process:
    """A program whose output is gathered, and all of whose descendants can be found again: they are in
    its session, or inherit an environment variable that nobody else has. VMMs and proxies have no
    environment, and refuse to show what they have; their session everybody sees."""

    def __init__(
        self, argv: list[str], env: Mapping[str, str] = {}, cwd: Optional[Path] = None
    ) -> None:
        self._mark = uuid.uuid4().hex
        base = {k: v for k, v in os.environ.items() if not k.startswith("PODFLARE_")}
        self.argv = argv
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**base, **env, "E2E_MARK": self._mark},
            cwd=cwd,
            start_new_session=True,
        )
        self._output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._output.append(line.decode("utf-8", "replace"))

    def output(self) -> str:
        return "".join(self._output)

    def wait(self, seconds: float) -> int:
        """The exit status; the output is complete when this returns."""
        status = self.process.wait(seconds)
        self._reader.join(10)
        return status

    def descendants(self) -> dict[int, str]:
        """Every living process of the session or with the mark: pid -> command line."""
        found = {}
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                name, state, session = stat_of(Path(entry.path))
                if state in "ZX" or session != self.process.pid and not self._marked(Path(entry.path)):
                    continue
                command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode("utf-8", "replace") or name
            except OSError:
                continue  # it ended while we looked
        return found

    def _marked(self, process: Path) -> bool:
        try:
            return f"E2E_MARK={self._mark}".encode() in (process / "environ").read_bytes().split(b"\0")
        except PermissionError:
            return False

    def kill(self) -> None:
        """For the way out of a failed test."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.descendants():
            os.kill(pid, signal.SIGKILL)


class Served(Daemon):
    """`podflare serve` on a free port of loopback."""

    def __init__(
        self,
        build: Path,
        state: Path,
        env: Mapping[str, str] = {},
        addr: str = "127.0.0.1:0",
    ) -> None:
        self.url = ""  # known when it is ready
        self.state = state
        self.process = Process(
            [str(build / "podflare"), "serve", "--addr", addr, "--state", str(state)], env
        )

    def log(self) -> str:
        return self.process.output()

    @property
    def emulated(self) -> bool:
        """Whether it said that it runs in the emulated host."""
        return "emulated" in self.log()

    def wait_ready(self, seconds: float = 180) -> None:
        def ready_or_dead() -> bool:
            match = READY.search(self.log())
            if match:
                self.url = match.group(1)
                return True
            if self.process.process.poll() is not None:
                raise AssertionError(f"podflare serve ended before it was ready:\n{self.log()}")
            return False

        try:
            wait_until("podflare serve is ready", ready_or_dead, seconds)
        except AssertionError:
            self.process.kill()
            raise AssertionError(f"podflare serve did not get ready; its output:\n{self.log()}")

    def stop(self) -> None:
        """Stop it as a user would, and look that nothing is left."""
        try:
            if self.process.process.poll() is None:
                self.process.process.send_signal(signal.SIGTERM)
            status = self.process.wait(60)
            assert status == 0, f"podflare serve ended with status {status}:\n{self.log()[-4000:]}"
            wait_until(
                f"no process of podflare serve is left ({self.process.descendants()})",
                lambda: not self.process.descendants(),
                10,
            )
            if self.url:
                with socket.socket() as probe:
                    port = int(self.url.rsplit(":", 1)[1])
                    assert probe.connect_ex(("127.0.0.1", port)) != 0, "something still listens"
        finally:
            self.process.kill()


def run_example(daemon: Daemon, name: str, *args: str) -> str:
    """Runs a program (of examples/, or a path) as a user does, against this daemon; what it prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *args],
        env={
            **os.environ,
            "PODFLARE_HOSTD_URL": daemon.url,
            "PYTHONPATH": str(ROOT / "sdk/python"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
