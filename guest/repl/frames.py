# SPDX-License-Identifier: Apache-2.0
"""The control channel to the agent: frames on a stream socket.

A frame is an 8-byte header (u32le payload length <= 65536, u8 type, 3 zero bytes) and its payload.
Only the main thread reads or writes. After a fork the child must not touch the channel: `close()` is
called there, and sending refuses when the process is not the one that opened it (a fork made by C
code runs no Python hook). A peer that breaks the format is an error of the whole conversation:
FrameError, after which nothing on the channel can be trusted.
"""

from __future__ import annotations

import _signal
import _socket
import fcntl
import os
import select
import struct
from collections import deque

from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

EXEC = 0x01
PING = 0x03
DATA = 0x06
END = 0x07
RENEW = 0x08
WARM = 0x0B
EGRESS = 0x17
EXIT = 0x83
ERROR = 0x84
PONG = 0x85
OK = 0x86
EVENT = 0x89
READY = 0x8A
EVENT_PART = 0x8B

MAX_PAYLOAD = 65536
MAX_EVENT = 8 << 20
_HEADER = struct.Struct("<IB3s")
_INT = struct.Struct("=i")
_READ_SIZE = 2 * MAX_PAYLOAD
_ATOMIC = 2048  # a blocking local socket takes so little in one piece, or not at all
_SIGNALS = tuple(_signal.valid_signals())
_ANCILLARY = _socket.CMSG_SPACE(4)
_CLOEXEC = _socket.MSG_CMSG_CLOEXEC
_write, _getpid = os.write, os.getpid  # ours, whatever user code does to os
_fstat, _close = os.fstat, os.close
_sigmask = _signal.pthread_sigmask


class FrameError(Exception):
    """The peer sent what is not a frame."""


class Channel:
    """One end of the control socket; owns its descriptor."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`: moves it out of the range that user code likes to close, off exec."""
        self.fd = -1
        for lowest in (900, 101):
            try:
                self.fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
                break
            except OSError:
                continue
        if self.fd < 0:
            raise OSError(f"cannot move the control descriptor {fd}")
        os.close(fd)
        self._owner = _getpid()
        # Descriptors come beside the bytes: read() would lose them.
        self._socket = _socket.socket(fileno=self.fd)
        self._recvmsg = self._socket.recvmsg
        self.fds: list[int] = []
        self._inode = os.fstat(self.fd).st_ino
        self._in_parts = False
        self._later: deque[bytes] = deque()  # events that came while parts were being sent
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def wait(self) -> None:
        """Sleeps until the peer has sent something. A signal handler may raise from here."""
        if not self._buffer:
            self._poll.poll()

    def pending(self) -> bool:
        """Whether the peer has sent something that was not yet read."""
        return bool(self._buffer) or bool(self._poll.poll(0))

    def receive(self) -> tuple[int, bytes]:
        """The next frame as (type, payload). EOFError when the peer has closed."""
        buffer = self._buffer
        while len(buffer) < 8:
            self._fill()
        length, kind, zero = _HEADER.unpack_from(buffer)
        if length > MAX_PAYLOAD or zero != b"\0\0\0":
            raise FrameError(f"bad frame header {bytes(buffer[:8]).hex()}")
        end = 8 + length
        while len(buffer) < end:
            self._fill()
        payload = bytes(buffer[8:end])
        del buffer[:end]
        return kind, payload

    def send(self, kind: int, payload: bytes) -> None:
        """Writes one whole frame, or nothing when a signal handler raises. Does nothing in a
        process that does not own the channel. Blocks while the peer does not read."""
        if self.fd < 0 or _getpid() != self._owner:
            return
        if len(payload) > MAX_PAYLOAD:
            raise ValueError(f"frame payload of {len(payload)} bytes")
        if _fstat(self.fd).st_ino != self._inode:  # the user has put another file there
            raise FrameError("it was broken off, or its descriptor was replaced")
        frame = _HEADER.pack(len(payload), kind, b"\0\0\0") + payload
        if len(frame) <= _ATOMIC:
            _write(self.fd, frame)
            return
        # A signal handler that raises (KeyboardInterrupt) must not leave half a frame behind.
        before = _sigmask(_signal.SIG_BLOCK, _SIGNALS)
        try:
            _write(self.fd, frame)
        finally:
            _sigmask(_signal.SIG_SETMASK, before)

    def take_fds(self) -> list[int]:
        """The descriptors that came beside what was received so far; they are the caller's now."""
        fds, self.fds = self.fds, []
        return fds

    def send_event(self, payload: bytes) -> None:
        """Sends an EVENT of at most MAX_EVENT bytes: what does not fit a frame goes ahead as
        EVENT_PARTs, and no other frame comes in between: an event from a finalizer waits. Otherwise
        like send()."""
        if self._in_parts:
            self._later.append(payload)
            return
        if len(payload) <= MAX_PAYLOAD:
            self.send(EVENT, payload)
            return
        if len(payload) > MAX_EVENT:
            raise ValueError(f"event of {len(payload)} bytes")
        before = _sigmask(_signal.SIG_BLOCK, _SIGNALS)
        self._in_parts = True
        try:
            for at in range(0, len(payload), MAX_PAYLOAD):
                last = at + MAX_PAYLOAD >= len(payload)
                self.send(EVENT if last else EVENT_PART, payload[at : at + MAX_PAYLOAD])
            self._in_parts = False
        finally:
            if self._in_parts:  # no memory: half an event has gone, and nothing may follow it
                self._inode = -1
            _sigmask(_signal.SIG_SETMASK, before)
        while self._later:
            self.send_event(self._later.popleft())

    def mine(self) -> bool:
        """Whether this process owns the channel (false in forked children)."""
        return self.fd >= 0 and _getpid() == self._owner

    def close(self) -> None:
        """Gives the descriptor up; for forked children."""
        fd, self.fd = self.fd, -1
        self._socket.detach()
        if fd >= 0:
            try:
                _close(fd)
            except OSError:
                pass

    def _fill(self) -> None:
        data, beside, _, _ = self._recvmsg(_READ_SIZE, _ANCILLARY, _CLOEXEC)
        for _, _, numbers in beside:
            self.fds += [n for (n,) in _INT.iter_unpack(numbers)]
        if not data:
            raise EOFError("the agent has closed the control channel")
        self._buffer += data
