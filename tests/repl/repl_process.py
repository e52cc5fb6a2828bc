# SPDX-License-Identifier: Apache-2.0
"""Plays the guest agent for one interpreter: starts it, sends frames, reads pipes and frames.

Same rules as the agent: fd 1 and 2 are pipes read here, the control socket's number is in REPL_CTL,
and on EXIT exactly what the pipes hold at that moment is read before the cell counts as ended.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPL = Path(__file__).resolve().parents[2] / "guest" / "repl" / "repl.py"
EXEC, PING, DATA, END, WARM = 0x01, 0x03, 0x06, 0x07, 0x0B
EXIT, ERROR, PONG, OK, EVENT, READY, EVENT_PART = 0x83, 0x84, 0x85, 0x86, 0x89, 0x8A, 0x8B
MAX_EVENT = 8 << 20
_HEADER = struct.Struct("<IB3s")
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable


class Died(Exception):
    """The interpreter ended; `status` is its wait status as subprocess gives it, `last` what it
    had written."""

    def __init__(self, status: int, last: Result) -> None:
        super().__init__(f"interpreter ended with {status}: {last.err[-2000:]!r}")
        self.status = status
        self.last = last


class Stuck(Exception):
    """No answer within the time limit of the test."""


@dataclass
class Result:
    """What one cell gave."""

    out: bytes = b""
    err: bytes = b""
    exit_code: int = -1
    state: str = ""
    quiet: bool = False  # no code of the user's runs before the next cell
    events: list[dict[str, Any]] = field(default_factory=list)
    before: list[int] = field(default_factory=list)  # length of `out` when each event came
    chunks: list[tuple[float, str, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    dropped: int = 0  # bytes of `out`

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.out.decode()

    @property
    def errors(self) -> str:
        """Standard error as text."""
        return self.err.decode()

    @property
    def value(self) -> str | None:
        """text/plain of the last result event, None when there was none."""
        results = [e["data"]["text/plain"] for e in self.events if e["type"] == "result"]
        return results[-1] if results else None

    @property
    def error(self) -> dict[str, Any] | None:
        """The last error event, None when there was none."""
        found = [e for e in self.events if e["type"] == "error"]
        return found[-1] if found else None


class Repl:
    """One interpreter process and the agent's end of its descriptors."""

    def __init__(
        self,
        cwd: str | Path = "/tmp",
        env: dict[str, str] | None = None,
        send_buffer: int | None = None,
        script: Path = REPL,
        prefix: tuple[str, ...] = (),
    ) -> None:
        ours, theirs = socket.socketpair()
        if send_buffer is not None:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        for fd in (out_write, err_write):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.control = ours
        self.out, self.err = out_read, err_read
        for fd in (out_read, err_read):
            os.set_blocking(fd, False)
        self._frames = bytearray()
        self._parts = b""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*prefix, PYTHON, "-u", str(script)],
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
            cwd=str(cwd),
            env={**inherited, **(env or {}), "REPL_CTL": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        for fd in (out_write, err_write):
            os.close(fd)
        theirs.close()
        kind, payload = self._frame(time.monotonic() + 20)
        assert kind == READY, hex(kind)
        self.ready = json.loads(payload)
        self.start_seconds = time.monotonic() - began

    def __enter__(self) -> Repl:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the interpreter and its process group."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.control.close()
        for fd in (self.out, self.err):
            os.close(fd)

    def send(self, kind: int, payload: bytes = b"") -> None:
        """Sends one frame."""
        self.control.sendall(_HEADER.pack(len(payload), kind, b"\0\0\0") + payload)

    def start(self, code: str | bytes, **more: Any) -> None:
        """Sends a cell, with more members of its request, without waiting for its end."""
        source = code.encode() if isinstance(code, str) else code
        message = b""
        head = json.dumps(more, separators=(",", ":")).encode()
        message += _HEADER.pack(len(head), EXEC, b"\0\0\0") + head
        for at in range(0, len(source), 65536):
            part = source[at : at + 65536]
            message += _HEADER.pack(len(part), DATA, b"\0\0\0") + part
        self.control.sendall(message + _HEADER.pack(0, END, b"\0\0\0"))

    def interrupt(self) -> None:
        """What the agent does to cancel."""
        os.killpg(self.process.pid, signal.SIGINT)

    def run(self, code: str | bytes, timeout: float = 20.0) -> Result:
        """Runs one cell to its end."""
        self.start(code)
        return self.finish(timeout)

    def finish(
        self, timeout: float = 20.0, until: bytes | None = None, keep: int | None = None
    ) -> Result:
        """Collects what the running cell gives until it ends (or, with `until`, until standard
        output holds that text; or, with `keep`, only about that many bytes of its end)."""
        result = Result()
        began = time.monotonic()
        deadline = began + timeout
        with selectors.DefaultSelector() as selector:
            for what in (self.control.fileno(), self.out, self.err):
                selector.register(what, selectors.EVENT_READ)
            while True:
                frame = self._buffered_frame()
                if frame is not None:
                    if self._take(frame, result):
                        result.seconds = time.monotonic() - began
                        return result
                    continue
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Stuck(f"no answer; so far {result.out[-500:]!r} {result.err[-500:]!r}")
                for key, _ in selector.select(left):
                    if key.fd == self.control.fileno():
                        self._fill(result)
                    else:
                        self._read_pipe(key.fd, result, began)
                if keep is not None and len(result.out) > keep:
                    result.dropped += len(result.out)
                    result.out = b""
                    result.chunks.clear()
                if until is not None and until in result.out:
                    return result

    def ping(self, timeout: float = 20.0) -> None:
        """What the agent does after an interrupt that crossed the end of its cell."""
        self.send(PING, b"ping")
        assert self._frame(time.monotonic() + timeout) == (PONG, b"ping")

    def warm(self, timeout: float = 20.0) -> tuple[int, bytes]:
        """Sends WARM and returns the answer."""
        self.send(WARM, b"{}")
        return self._frame(time.monotonic() + timeout)

    def answer(self, timeout: float = 20.0) -> tuple[int, bytes]:
        """The next frame, which is not one of a cell."""
        return self._frame(time.monotonic() + timeout)

    def drain(self, seconds: float, until: bytes = b"") -> Result:
        """Reads the pipes for some time without a cell running; or until standard output ends so, and
        somewhat longer."""
        result = Result()
        begun = time.monotonic()
        deadline = begun + seconds
        while time.monotonic() < deadline:
            if until and result.out.endswith(until):
                deadline, until = time.monotonic() + 0.2, b""
            for fd in (self.out, self.err):
                self._read_pipe(fd, result, begun)
            time.sleep(0.005)
        return result

    def threads(self) -> int:
        """Number of threads of the interpreter."""
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def _take(self, frame: tuple[int, bytes], result: Result) -> bool:
        kind, payload = frame
        for fd in (self.out, self.err):  # events and the end come after earlier output
            self._read_pipe(fd, result, time.monotonic(), exactly=True)
        if kind in (EVENT, EVENT_PART):
            self._parts += payload
            assert len(self._parts) <= MAX_EVENT
            if kind == EVENT:
                whole, self._parts = self._parts, b""
                result.events.append(json.loads(whole))
                result.before.append(len(result.out))
            return False
        assert kind == EXIT and not self._parts, hex(kind)
        answer = json.loads(payload)
        result.exit_code, result.state = answer["exit_code"], answer["state"]
        result.quiet = answer["quiet"]
        return True

    def _read_pipe(self, fd: int, result: Result, began: float, exactly: bool = False) -> None:
        count = 1 << 20
        if exactly:
            waiting = array.array("i", [0])
            fcntl.ioctl(fd, termios.FIONREAD, waiting)
            count = waiting[0]
            if not count:
                return
        try:
            data = os.read(fd, count)
        except BlockingIOError:
            return
        if fd == self.out:
            result.out += data
        else:
            result.err += data
        name = "out" if fd == self.out else "err"
        result.chunks.append((time.monotonic() - began, name, data))

    def _buffered_frame(self) -> tuple[int, bytes] | None:
        if len(self._frames) < 8:
            return None
        length, kind, zero = _HEADER.unpack_from(self._frames)
        assert length <= 65536 and zero == b"\0\0\0", bytes(self._frames[:8])
        if len(self._frames) < 8 + length:
            return None
        payload = bytes(self._frames[8 : 8 + length])
        del self._frames[: 8 + length]
        return kind, payload

    def _fill(self, result: Result | None = None) -> None:
        data = self.control.recv(1 << 20)
        if data:
            self._frames += data
            return
        status = self.process.wait(10)
        last = result or Result()
        for fd in (self.out, self.err):
            self._read_pipe(fd, last, 0.0)
        raise Died(status, last)

    def _frame(self, deadline: float) -> tuple[int, bytes]:
        while True:
            frame = self._buffered_frame()
            if frame is not None:
                return frame
            self.control.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                self._fill()
            except TimeoutError:
                raise Stuck("no frame from the interpreter") from None
            finally:
                self.control.settimeout(None)
