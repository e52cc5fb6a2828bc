"""A command behind the stand-in VMM: a process of this host, with the agent's frames around it."""

from __future__ import annotations

import os
import selectors
import signal
import struct
import subprocess
import time
from collections import deque
from typing import Any

from fake_files import Gone

CANCEL, PING, STDIN, STDIN_END, INTERRUPT = 2, 3, 0x10, 0x11, 0x12
STDOUT, STDERR, PONG, STDIN_ACK = 0x81, 0x82, 0x85, 0x8C

CHUNK = 65536
WINDOW = 65536


class Output:
    """One stream of a command: the head is passed on, of the rest the tail is kept."""

    def __init__(self, run: Run, kind: int, limit: int) -> None:
        self.run = run
        self.kind = kind
        self.head = limit // 2
        self.tail_max = limit - self.head
        self.tail: deque[bytes] = deque()
        self.tail_len = self.dropped = 0

    def take(self, data: bytes) -> None:
        """Bytes of the command."""
        now, later = data[: self.head], data[self.head :]
        self.head -= len(now)
        if now:
            self.run.stream.send(self.kind, now)
        if not later:
            return
        self.tail.append(later)
        self.tail_len += len(later)
        while self.tail_len - len(self.tail[0]) >= self.tail_max:
            gone = self.tail.popleft()
            self.tail_len -= len(gone)
            self.dropped += len(gone)

    def end(self) -> None:
        """The command has ended: the tail."""
        over = max(0, self.tail_len - self.tail_max)
        self.dropped += over
        rest = b"".join(self.tail)[over:]
        for i in range(0, len(rest), CHUNK):
            self.run.stream.send(self.kind, rest[i : i + CHUNK])


class Run:
    """A running command, until its EXIT."""

    def __init__(self, stream: Any, req: dict, argv: list[str], keep: list[int]) -> None:
        self.stream = stream
        self.start = time.monotonic()
        self.reason = ""
        self.stdin: bytearray | None = bytearray() if req.get("stdin") else None
        self.stdin_ended = False
        self.unacked = 0
        limit = req.get("output_limit", 16 << 20)
        self.out = {kind: Output(self, kind, limit) for kind in (STDOUT, STDERR)}
        ms = req.get("timeout_ms", 0)
        self.deadlines = [self.start + ms / 1000 + s for s in (0, 0.5, 1)] if ms else []
        self.proc = subprocess.Popen(
            argv,
            pass_fds=keep,
            stdin=subprocess.DEVNULL if self.stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=req.get("cwd") or "/tmp",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **req.get("env", {})},
            start_new_session=True,
        )
        self.sel = selectors.DefaultSelector()
        self.sel.register(stream.sock, selectors.EVENT_READ, 0)
        self.sel.register(self.proc.stdout, selectors.EVENT_READ, STDOUT)
        self.sel.register(self.proc.stderr, selectors.EVENT_READ, STDERR)
        if self.proc.stdin:
            os.set_blocking(self.proc.stdin.fileno(), False)

    def signal(self, signum: int) -> None:
        """To the command's process group."""
        try:
            os.killpg(self.proc.pid, signum)
        except ProcessLookupError:
            pass

    def orders(self) -> None:
        """Frames that have come: also those that came together with the request."""
        while frame := self.stream.parse():
            kind, payload = frame
            if kind == PING:
                self.stream.send(PONG, payload)
            elif kind == CANCEL:
                self.reason = self.reason or "cancelled"
                self.signal(signal.SIGKILL)
            elif kind == INTERRUPT:
                self.reason = self.reason or "interrupted"
                self.signal(signal.SIGINT)
            elif kind == STDIN and self.stdin is not None and not self.stdin_ended:
                self.unacked += len(payload)
                assert self.unacked <= WINDOW, "more stdin than was acknowledged"
                self.stdin += payload
            elif kind == STDIN_END and self.stdin is not None and not self.stdin_ended:
                self.stdin_ended = True
            else:
                raise AssertionError(f"frame {kind} while a command runs")
        self.feed()

    def feed(self) -> None:
        """What the command takes of its stdin is acknowledged."""
        pipe = self.proc.stdin
        if not pipe or pipe.closed:
            return
        try:
            n = os.write(pipe.fileno(), self.stdin[:CHUNK]) if self.stdin else 0
        except BlockingIOError:
            n = 0
        except BrokenPipeError:
            n = len(self.stdin)  # nobody reads: thrown away, and so taken
        if n:
            del self.stdin[:n]
            self.unacked -= n
            self.stream.send(STDIN_ACK, struct.pack("<I", n))
        if self.stdin_ended and not self.stdin:
            if pipe in self.sel.get_map():
                self.sel.unregister(pipe)
            pipe.close()
        elif self.stdin and pipe not in self.sel.get_map():
            self.sel.register(pipe, selectors.EVENT_WRITE, -1)
        elif not self.stdin and pipe in self.sel.get_map():
            self.sel.unregister(pipe)

    def deadline(self) -> float | None:
        """Does what is due: seconds until the next, None when there is none."""
        while self.deadlines and time.monotonic() >= self.deadlines[0]:
            self.deadlines.pop(0)
            self.reason = self.reason or "timeout"
            if len(self.deadlines) == 2:
                self.signal(signal.SIGINT)
            elif self.deadlines:
                self.signal(signal.SIGTERM)
                self.signal(signal.SIGCONT)
            else:
                self.signal(signal.SIGKILL)
        return max(0, self.deadlines[0] - time.monotonic()) if self.deadlines else None

    def outputs(self) -> int:
        """How many of the two pipes are open."""
        return sum(key.data > 0 for key in self.sel.get_map().values())

    def relay(self) -> None:
        """Output to frames, until the command has ended."""
        self.orders()
        while self.outputs():
            for key, _ in self.sel.select(self.deadline()):
                self.stream.vmm.rest()
                if key.data > 0:
                    data = os.read(key.fd, CHUNK)
                    if data:
                        self.out[key.data].take(data)
                    else:
                        self.sel.unregister(key.fileobj)
                elif key.data < 0:
                    self.feed()
                else:
                    got = self.stream.sock.recv(262144)
                    if not got:
                        raise Gone
                    self.stream.buf += got
                    self.orders()
        self.exit()

    def exit(self) -> None:
        """The final frame."""
        code = self.proc.wait()
        dropped = 0
        log = {}
        for kind, name in ((STDOUT, "stdout"), (STDERR, "stderr")):
            self.out[kind].end()
            if self.out[kind].dropped:
                log[name] = f"/tmp/.podflare/{self.proc.pid}.{name}"
            dropped += self.out[kind].dropped
        more: dict[str, object] = {"truncated": dropped > 0, "bytes_dropped": dropped}
        if log:
            more["log"] = log
        if code < 0:
            more["signal"] = -code
        reason = self.reason or ("signaled" if code < 0 else "exited")
        if self.reason == "interrupted" and code >= 0 and code != 130:
            reason = "exited"  # it has handled the interrupt
        code = 128 - code if code < 0 else code
        code = {"timeout": 124, "interrupted": 130, "cancelled": 130}.get(reason, code)
        self.stream.exit(code, reason, self.start, **more)

    def close(self) -> None:
        """Nothing of it is left."""
        if self.proc.poll() is None:
            self.signal(signal.SIGKILL)
            self.proc.wait()
        for pipe in (self.proc.stdin, self.proc.stdout, self.proc.stderr):
            if pipe:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
        self.sel.close()
