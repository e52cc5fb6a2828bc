# SPDX-License-Identifier: Apache-2.0
"""What holds for one cell only: its directory, variables of its environment, its standard input.

`enter()` runs inside of the cell, so that what fails there is the cell's error; `leave()` runs after
it, whatever happened, and puts back what `enter()` got done. What else the cell does to directory and
environment stays, as in any other cell.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any

from . import guard
from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401
from .streams import Streams

_chdir, _fchdir, _open, _close, _dup2 = os.chdir, os.fchdir, os.open, os.close, os.dup2
_fcntl, _DUP = fcntl.fcntl, fcntl.F_DUPFD_CLOEXEC
_HERE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_environ = os.environ  # ours, whatever user code does to os


class PerCall:
    """The wishes of one EXEC request."""

    def __init__(
        self, request: dict[str, Any], fds: list[int], streams: Streams, given: dict[str, str]
    ) -> None:
        """`fds`: what came with the request: the read end of the input, if it has one. `given`: see
        environment.py."""
        self._cwd: str | None = request.get("cwd")
        self._env: dict[str, str] = request.get("env") or {}
        self._wants_input = bool(request.get("stdin"))
        self._fds = fds
        self._streams = streams
        self._given = given
        self._back = -1
        self._old: list[tuple[str, str | None]] = []
        self._redirected = False

    def enter(self) -> None:
        """Makes it so."""
        if self._wants_input:
            if not self._fds:
                raise OSError("standard input could not be passed: too many open files")
            self._redirected = True
            fd = self._fds.pop()
            _dup2(fd, 0)
            _close(fd)
            self._streams.new_input()
            guard.set_input(True)
        if self._cwd is not None:
            here = _open(".", _HERE)
            try:  # out of the range that user code likes to close
                self._back = _fcntl(here, _DUP, 101)
            finally:
                _close(here)
            _chdir(self._cwd)
        for name, value in self._env.items():
            other = name.swapcase()  # one of HTTPS_PROXY and https_proxy would stay ours
            if other in self._given and other not in self._env and other in _environ:
                self._old.append((other, _environ.pop(other)))
            self._old.append((name, _environ.get(name)))
            _environ[name] = value

    def leave(self) -> None:
        """Puts everything back."""
        for name, value in reversed(self._old):
            if value is None:
                _environ.pop(name, None)
            else:
                _environ[name] = value
        if self._back >= 0:
            try:
                _fchdir(self._back)
                _close(self._back)
            except OSError:  # the cell has closed it
                pass
        guard.set_input(False)
        if self._redirected:
            self._streams.repair()
            self._streams.new_input()
        for fd in self._fds:
            try:
                _close(fd)
            except OSError:
                pass
