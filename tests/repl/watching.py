# SPDX-License-Identifier: Apache-2.0
"""guest/repl/watch.py as a process, and what its events add up to."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().parents[2] / "guest" / "repl" / "watch.py"
PYTHON = "/usr/bin/python3"
MARKER = ".marker-"
NUMBERS = itertools.count()
PATIENCE = 120.0  # seconds without a line, for machines that do much else


class Watching:
    """The program watches a directory."""

    def __init__(self, root: Path, *, recursive: bool = True, program: Path = PROGRAM) -> None:
        """The watch is in place when this returns; or it has said why not (`first`)."""
        self.root = root
        argv = [PYTHON, "-I", "-S", "-X", "utf8", str(program)]
        argv += ["--recursive"] * recursive + [str(root)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, bufsize=0)
        assert self.process.stdout is not None
        self.fd = self.process.stdout.fileno()
        self.rest = b""
        self.lines: list[dict[str, Any]] = []
        self.first = self.next()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def next(self) -> dict[str, Any]:
        """The next line; EOFError at the end."""
        while not self.lines:
            ready, _, _ = select.select([self.fd], [], [], PATIENCE)
            assert ready, "no line came"
            data = os.read(self.fd, 1 << 20)
            if not data:
                raise EOFError
            *whole, self.rest = (self.rest + data).split(b"\n")
            self.lines += [json.loads(line) for line in whole]
        return self.lines.pop(0)

    def marked(self) -> list[dict[str, Any]]:
        """What came until all that was done so far had been told: something last is done, and waited for.
        Twice, since a comparison after an overflow may come upon the first before it has told of others."""
        got: list[dict[str, Any]] = []
        for _ in range(2):
            marker = self.root / f"{MARKER}{next(NUMBERS)}"
            os.mkdir(marker)
            while (line := self.next()).get("path") != str(marker):
                got.append(line)
        return got

    def rest_of_it(self) -> list[dict[str, Any]]:
        """What comes until it ends by itself."""
        got = []
        try:
            while True:
                got.append(self.next())
        except EOFError:
            return got

    def short(self) -> list[str]:
        """`marked`, as words: "created a/b/" (a directory), "moved a b"."""
        return [self.word(line) for line in self.marked()]

    def word(self, line: dict[str, Any]) -> str:
        """One event in short."""
        if "path" not in line:
            return str(line["type"])

        def name(key: str) -> str:
            tail = "/" if line["dir"] else ""
            return os.path.relpath(line[key], self.root) + tail

        return " ".join([line["type"], *([name("from")] if "from" in line else []), name("path")])

    def stop(self) -> None:
        """It does nothing until `go`."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)

    def go(self) -> None:
        """It goes on."""
        self.process.send_signal(signal.SIGCONT)


def tree(root: Path) -> dict[str, bool]:
    """What is below a directory, but for markers: whether it is a directory, by path."""
    found: dict[str, bool] = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            if name.startswith(MARKER):
                continue
            found[path] = os.path.isdir(path) and not os.path.islink(path)
    return found


def replay(known: dict[str, bool], events: list[dict[str, Any]]) -> None:
    """Changes `known` as the events say. (Markers may be told after an overflow.)"""
    events = [event for event in events if MARKER not in event.get("path", "")]

    def below(path: str) -> list[str]:
        return [one for one in known if one == path or one.startswith(path + "/")]

    for event in events:
        kind = event["type"]
        if kind == "created":
            for one in below(event["path"]):
                del known[one]
            known[event["path"]] = event["dir"]
        elif kind == "deleted":
            assert event["path"] in known, event
            for one in below(event["path"]):
                del known[one]
        elif kind == "moved":
            assert event["from"] in known, event
            for one in below(event["path"]):
                del known[one]
            for one in below(event["from"]):
                known[event["path"] + one[len(event["from"]) :]] = known.pop(one)
        elif kind == "modified":
            assert event["path"] in known, event
