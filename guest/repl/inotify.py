# SPDX-License-Identifier: Apache-2.0
"""The kernel's queue of changes in directories (inotify), for watch.py."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import termios
import time
from typing import List, NamedTuple, Optional

IN_ATTRIB, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO = 0x4, 0x8, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x100, 0x200, 0x400, 0x800
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED = 0x2000, 0x4000, 0x8000
IN_ONLYDIR, IN_EXCL_UNLINK = 0x1000000, 0x4000000
IN_MASK_ADD, IN_ISDIR = 0x20000000, 0x40000000

HEAD = struct.Struct("iIII")
BUFFER = 256 * 1024
SLACK_NS = 2_000_000_000  # time stamps of files are somewhat behind the clock


class Failure(Exception):
    """It cannot go on: a code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Event(NamedTuple):
    """One of inotify; pos: how many bytes of the queue lie before it."""

    pos: int
    wd: int
    mask: int
    cookie: int
    name: str


class Notify:
    """The queue of the kernel."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            code = ctypes.get_errno()
            if code == errno.EMFILE:
                raise Failure(
                    "too_many_watches", limit_text("instances", "watches at the same time")
                )
            raise Failure("io_error", f"cannot watch anything: {os.strerror(code)}")
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)
        self.taken = 0
        self.empty_at = time.time_ns()  # when nothing was in it
        self.lost_since: Optional[int] = None  # when it had not overflowed yet

    def add(self, path: str, mask: int) -> int:
        """Watch a directory; its number, the same for the same inode."""
        wd = int(self._libc.inotify_add_watch(self.fd, os.fsencode(path), ctypes.c_uint32(mask)))
        if wd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
        return wd

    def remove(self, wd: int) -> None:
        """Not any more."""
        self._libc.inotify_rm_watch(self.fd, wd)

    def position(self) -> int:
        """How many bytes have been queued so far."""
        left = struct.unpack("i", fcntl.ioctl(self.fd, termios.FIONREAD, b"\0" * 4))[0]
        return self.taken + int(left)

    def read(self, wait_ms: Optional[int]) -> List[Event]:
        """What there is, after waiting for it: so long at most, None without end."""
        now = time.time_ns()
        if not self._poll.poll(0):
            self.empty_at = now
            if not self._poll.poll(wait_ms):
                return []
        data = os.read(self.fd, BUFFER)
        events: List[Event] = []
        at = 0
        while at < len(data):
            wd, mask, cookie, length = HEAD.unpack_from(data, at)
            start = at + HEAD.size
            if mask & IN_Q_OVERFLOW and self.lost_since is None:
                self.lost_since = self.empty_at - SLACK_NS
            name = os.fsdecode(data[start : start + length].rstrip(b"\0"))
            events.append(Event(self.taken + at, wd, mask, cookie, name))
            at = start + length
        self.taken += len(data)
        return events


def limit_text(what: str, words: str) -> str:
    """Which limit of the kernel it was, and how to raise it."""
    name = f"max_user_{what}"
    try:
        with open(f"/proc/sys/fs/inotify/{name}", encoding="ascii") as file:
            value = file.read().strip()
    except OSError:
        value = "?"
    return (
        f"the sandbox's kernel allows {value} {words} of one user (fs.inotify.{name}): watch less, "
        f"or raise it: sudo sysctl fs.inotify.{name}=..."
    )
