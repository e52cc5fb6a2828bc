# SPDX-License-Identifier: Apache-2.0
"""sys.stdout and sys.stderr on the agent's pipes, and the repair of fd 0, 1 and 2.

Output is written straight through (`direct`), so that it appears at once and in program order with
what subprocesses, os.write and C code write. Only a burst (BURST writes within BURST_SECONDS) turns
stdout to batched: text then collects in a list, and a short-lived thread writes it out every TICK
seconds. The thread ends, and stdout is direct again, at the first tick without output and at the
end of every cell: an idle interpreter has no thread and no timer. (The buffer of TextIOWrapper is
not used for this: in Python 3.11 it loses text when another thread writes while it overflows.)

`lock` is held around every write and every flush by the thread, and through every fork: a child never
starts with a half-written stream or a lock that nobody will release. Before a fork, and before any
other program is started (audit events), collected text is written out, so it is neither duplicated
nor overtaken.
"""

from __future__ import annotations

import _signal
import _thread
import errno
import fcntl
import functools
import io
import os
import select
import sys
import time
from typing import Any, Callable, NoReturn

from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

BURST = 32
BURST_SECONDS = 0.05
TICK = 0.02
MAX_PARTS = 8192
MAX_PART = 4096
_write, _fstat, _dup2 = os.write, os.fstat, os.dup2  # ours, whatever user code does to os
_exit_process = os._exit
_sigmask = _signal.pthread_sigmask
_sleep, _monotonic = time.sleep, time.monotonic
_partial, _poll, _POLLOUT = functools.partial, select.poll, select.POLLOUT
_SIGNALS = tuple(_signal.valid_signals())
_SAVED_FROM = 910
_ADD_HOOK = "sys.addaudithook"
_WATCHED = frozenset(  # _ADD_HOOK, and events before which others may write or this process may end
    (
        _ADD_HOOK,
        "subprocess.Popen",
        "os.system",
        "os.posix_spawn",
        "os.exec",
        "os.kill",
        "os.killpg",
        "signal.pthread_kill",
        "ctypes.dlopen",
        "ctypes.dlsym",
        "ctypes.string_at",
    )
)


def _write_all(fd: int, data: Any) -> int:
    """Writes everything, also to a pipe that some child made non-blocking."""
    view = memoryview(data).cast("B")
    total = len(view)
    while view:
        try:
            view = view[_write(fd, view) :]
        except BlockingIOError:
            waiter = _poll()
            waiter.register(fd, _POLLOUT)
            waiter.poll()
    return total


class _Out(io.BufferedIOBase):
    """The binary side of a standard stream: unbuffered, complete writes to one descriptor, after
    whatever text was collected before. Closing it (a wrapper that the user put around it does so
    when it is collected) only flushes, so nobody loses output by it."""

    mode = "wb"

    def __init__(self, streams: Streams, fd: int, name: str) -> None:
        self._streams = streams
        self._fd = fd
        self.name = name

    def write(self, data: Any) -> int:
        streams = self._streams
        with streams.lock:
            if not streams.direct and not streams.draining:
                streams.flush()
            if self._fd != 1:
                return _write_all(self._fd, data)
            if streams.direct:
                count = _write_all(1, data)
                streams.count_write()
                return count
            streams.wrote = True
            try:
                return _write_all(1, data)
            except OSError as error:
                # The text was printed before the user closed the descriptor.
                if error.errno != errno.EBADF:
                    raise
                return _write_all(streams.saved_out, data)

    def flush(self) -> None:
        self._streams.flush()

    def close(self) -> None:
        self._streams.flush()

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True


class _Text(io.TextIOWrapper):
    """A standard text stream. Batched, the instance has a `write` of its own (see Streams)."""

    mode = "w"

    def __init__(self, streams: Streams, raw: _Out, errors: str) -> None:
        binary: Any = raw
        super().__init__(binary, encoding="utf-8", errors=errors, newline="\n", write_through=True)
        self._streams = streams

    def flush(self) -> None:
        self._streams.drain()
        super().flush()

    def usable(self) -> bool:
        """False once the user has detached it."""
        try:
            return not self.closed
        except ValueError:
            return False


class Streams:
    """Owner of the standard streams of this process. One instance, made before user code runs."""

    def __init__(self) -> None:
        self.lock = _thread.RLock()  # type: ignore[attr-defined]
        self.direct = True
        self.draining = False
        self.audited = False  # the user has an audit hook, which runs when anybody does anything
        self.wrote = False
        self._parts: list[str] = []
        self._writes = 0
        self._forked = False  # children write directly: they may end without a flush
        self._since = 0.0
        self._generation = 0
        self._saved: list[tuple[int, int, int, int]] = []
        for fd in (0, 1, 2):
            self._save(fd)
        self.saved_out = self._saved[1][1]
        self._make_out()
        self._make_err()
        self._make_in()
        sys.addaudithook(self._audit)
        os._exit = self._make_exit()  # type: ignore[assignment]
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    def repair(self) -> None:
        """Makes fd 0-2 and sys.std* what they were at the start, whatever a cell did to them."""
        for fd, saved, device, inode in self._saved:
            try:
                status = _fstat(fd)
                if status.st_ino == inode and status.st_dev == device:
                    continue
            except OSError:
                pass
            try:
                _dup2(saved, fd)
            except OSError:
                pass
        for name in ("write", "flush"):  # set on the stream itself by the user
            if self.direct:
                vars(self.out).pop(name, None)
            vars(self.err).pop(name, None)
        if getattr(sys, "stdout", None) is not self.out or not self.out.usable():
            if not self.out.usable():
                self._make_out()
            sys.stdout = self.out
        if getattr(sys, "stderr", None) is not self.err or not self.err.usable():
            if not self.err.usable():
                self._make_err()
            sys.stderr = self.err
        if getattr(sys, "stdin", None) is not self.stdin or self.stdin.closed:
            self._make_in()

    def new_input(self) -> None:
        """Forgets what was read ahead: descriptor 0 is another one now."""
        self._make_in()

    def drain(self) -> None:
        """Writes out collected text, in the order in which it was written."""
        parts = self._parts
        with self.lock:  # also when there is nothing: another thread may be writing it just now
            if self.draining or not parts:  # draining: a signal handler or finalizer prints
                return
            self.draining = True
            try:
                count = len(parts)
                text = "".join(parts[:count])
                del parts[:count]  # in place: other threads append at any moment
                io.TextIOWrapper.write(self.out, text)
            except UnicodeEncodeError:  # too late to tell the one who printed it
                text = text.encode("utf-8", "backslashreplace").decode()
                io.TextIOWrapper.write(self.out, text)
            finally:
                self.draining = False

    def flush(self) -> None:
        """drain(), but output that has nowhere to go any more is dropped."""
        try:
            self.drain()
        except (OSError, ValueError):
            pass

    def settle(self) -> None:
        """End of a cell: everything written out, and direct again."""
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name, None)
            if stream is not self.out and stream is not self.err:
                try:
                    stream.flush()  # type: ignore[union-attr]
                except BaseException:  # by the user's code; no interrupt comes here any more
                    pass
        with self.lock:
            self.flush()
            if not self.direct:
                self._go_direct()

    def complain(self, text: str) -> None:
        """Writes text to the real standard error, whatever became of sys.stderr and fd 2."""
        try:
            self.flush()
            self.err.write(text)
            return
        except (OSError, ValueError):
            self.repair()
        try:
            self.err.write(text)
        except (OSError, ValueError):
            pass

    def count_write(self) -> None:
        """Notes a direct write to stdout (lock held) and turns to batched in a burst."""
        self._writes += 1
        if self._writes < BURST or self._forked:
            return
        self._writes = 0
        now = _monotonic()
        since, self._since = self._since, now
        if now - since > BURST_SECONDS:
            return
        if not self.out.usable() or self.out.line_buffering:
            return
        self.direct = False
        self.wrote = True
        self._generation += 1
        self.out.write = self._collector()  # type: ignore[assignment]
        # The thread inherits the mask: every signal has to come to the main thread at once.
        before = _sigmask(_signal.SIG_BLOCK, _SIGNALS)
        try:
            _thread.start_new_thread(self._tick, (self._generation,))
        except RuntimeError:  # no more threads: slower, but right
            self._go_direct()
        finally:
            _sigmask(_signal.SIG_SETMASK, before)

    def _collector(self) -> Callable[[str], int]:
        """write() of a batched stdout; called a million times, hence a closure."""
        parts = self._parts
        plain = _partial(io.TextIOWrapper.write, self.out)

        def write(text: str, /) -> int:
            if text.__class__ is not str:
                self.drain()
                return plain(text)
            parts.append(text)
            if len(parts) > MAX_PARTS or len(text) > MAX_PART or self.direct:
                self.drain()
            return len(text)

        return write

    def _tick(self, generation: int) -> None:
        """The thread of one burst."""
        while True:
            _sleep(TICK)
            with self.lock:
                if generation != self._generation:
                    return
                self.flush()
                if not self.wrote:
                    self._go_direct()
                    return
                self.wrote = False

    def _go_direct(self) -> None:
        """Lock held. Ends the burst; its thread notices by the generation."""
        self.flush()
        self.direct = True
        self._generation += 1
        self._writes = 0
        vars(self.out).pop("write", None)
        self.flush()  # what came between the first flush and the switch

    def _save(self, fd: int) -> None:
        try:
            saved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SAVED_FROM)
        except OSError:  # a low limit of open files
            saved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 101)
        status = os.fstat(saved)
        self._saved.append((fd, saved, status.st_dev, status.st_ino))

    def _make_out(self) -> None:
        with self.lock:
            self._generation += 1
            self.direct = True
            self.out = _Text(self, _Out(self, 1, "<stdout>"), "surrogateescape")
        sys.stdout = sys.__stdout__ = self.out

    def _make_err(self) -> None:
        self.err = _Text(self, _Out(self, 2, "<stderr>"), "backslashreplace")
        sys.stderr = sys.__stderr__ = self.err

    def _make_in(self) -> None:
        self.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
        sys.stdin = sys.__stdin__ = self.stdin

    def _audit(self, event: str, args: object) -> None:
        if event in _WATCHED:
            if event == _ADD_HOOK:
                self.audited = True
            elif not self.direct:
                self.flush()

    def _make_exit(self) -> Callable[[int], NoReturn]:
        """os._exit() that loses no output, as it would not with unbuffered streams."""

        @functools.wraps(_exit_process)
        def leave(status: int) -> NoReturn:
            self.flush()
            _exit_process(status)

        return leave

    def _before_fork(self) -> None:
        self.lock.acquire()
        self.flush()

    def _after_fork_in_parent(self) -> None:
        self.lock.release()

    def _after_fork_in_child(self) -> None:
        self.lock = _thread.RLock()  # type: ignore[attr-defined]
        self.draining = False
        self._forked = True
        self._parts.clear()  # the parent's
        if not self.direct:
            self._go_direct()
