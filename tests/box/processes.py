# SPDX-License-Identifier: Apache-2.0
"""A program under test as a process: its output as it comes, and what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Callable


def clean_env(**extra: str) -> dict[str, str]:
    """Our environment without PODFLARE_*, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PODFLARE_")}
    return {**kept, **extra}


def wait_until(what: str, condition: Callable[[], object], seconds: float) -> None:
    """Wait for a condition, or fail with `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not so within {seconds:.0f} s"
        time.sleep(0.02)


class Run:
    """A started program. Its descendants are of its session, so that they are found even when their
    parent is gone; QEMU has no environment that could tell."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.lines: list[tuple[float, str]] = []
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.decode("utf-8", "replace")))

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line.decode("utf-8", "replace"))

    @property
    def stdout(self) -> str:
        """What it has written to stdout so far."""
        return "".join(line for _, line in self.lines)

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return "".join(self.errors)

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until `text` is in its output; fails when it ends without that."""

        def seen() -> bool:
            if text in self.stdout or text in self.stderr:
                return True
            if self.process.poll() is None:
                return False
            self.wait(5)
            assert text in self.stdout + self.stderr, (
                f"ended with {self.process.returncode} before saying {text!r}:"
                f"\n{self.stdout}{self.stderr}"
            )
            return True

        wait_until(f"{text!r} in the output", seen, seconds)

    def wait(self, seconds: float = 60) -> int:
        """Its exit status; the output is complete afterwards."""
        status = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(10)
        return status

    def descendants(self) -> dict[int, str]:
        """Every living process that it started, directly or not: pid -> command line."""
        found = {}
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or int(entry.name) == self.process.pid:
                continue
            try:
                stat = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if stat[0] not in "ZX" and int(stat[3]) == self.process.pid:
                    command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(entry.name)] = command.decode("utf-8", "replace")
            except OSError:
                continue  # it ended while we looked
        return found

    def machine(self) -> int:
        """Process id of its QEMU."""
        found = [pid for pid, command in self.descendants().items() if "qemu-system" in command]
        assert len(found) == 1, f"one QEMU was expected: {self.descendants()}"
        return found[0]
