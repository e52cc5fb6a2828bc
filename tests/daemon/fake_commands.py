"""Kept commands behind the stand-in VMM: processes of this host that go on without a stream.

Their output is kept in memory; past state["kept_limit"] bytes the oldest half goes. They
end with the process of the VMM. A fork's child has none of them: it is another process
of this host (with a real guest it has them all).
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import termios
import threading
import time
from typing import Any

from fake_files import Gone

PING, STDIN, STDIN_END, RESIZE = 3, 0x10, 0x11, 0x16
STDOUT, STDERR, EXIT, PONG, OK, EVENT, STDIN_ACK = 0x81, 0x82, 0x83, 0x85, 0x86, 0x89, 0x8C
NAMES = {STDOUT: "stdout", STDERR: "stderr"}
CHUNK = 65536
WINDOW = 65536
COMMANDS_MAX = 32
libc = ctypes.CDLL(None)


class Log:
    """What is kept of one output."""

    def __init__(self) -> None:
        self.start = 0
        self.data = bytearray()

    @property
    def end(self) -> int:
        """Position behind the last byte."""
        return self.start + len(self.data)

    def add(self, data: bytes, limit: int) -> None:
        """Bytes of the command."""
        self.data += data
        if len(self.data) > limit:
            over = len(self.data) - limit // 2
            del self.data[:over]
            self.start += over


class Kept:
    """One command."""

    def __init__(self, vmm: Any, req: dict, code: bytes) -> None:
        self.vmm = vmm
        self.req = req
        self.code = code
        self.lock = threading.Lock()
        self.logs = {STDOUT: Log(), STDERR: Log()}
        self.begin = time.monotonic()
        self.exit: dict | None = None
        self.writer: Any = None
        self.stdin = -1
        self.master = -1
        self.ready = threading.Event()
        threading.Thread(target=self.run, daemon=True).start()
        self.ready.wait()

    @property
    def pty(self) -> bool:
        """Whether it has a terminal."""
        return bool(self.req.get("pty"))

    def resize(self, size: dict) -> None:
        """Sets the terminal's size."""
        wire = struct.pack("<4H", size["rows"], size["cols"], 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, wire)

    def run(self) -> None:
        """Its whole life; the process ends with this thread at the latest."""
        script = os.memfd_create("code", 0)
        os.write(script, self.code)
        argv = self.req.get("argv") or ["/bin/bash", f"/proc/self/fd/{script}"]
        slave = -1
        if self.pty:
            self.master, slave = pty.openpty()
            self.resize(self.req["pty"])

        def child() -> None:
            libc.prctl(1, signal.SIGKILL)
            if slave >= 0:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        out = slave if self.pty else subprocess.PIPE
        no_stdin = subprocess.PIPE if self.req.get("stdin") else subprocess.DEVNULL
        self.proc = subprocess.Popen(
            argv,
            pass_fds=[script],
            stdin=slave if self.pty else no_stdin,
            stdout=out,
            stderr=out,
            cwd=self.req.get("cwd") or "/tmp",
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                **({"TERM": "xterm-256color"} if self.pty else {}),
                **self.req.get("env", {}),
            },
            start_new_session=True,
            preexec_fn=child,
        )
        os.close(script)
        if self.pty:
            os.close(slave)
            self.stdin = os.dup(self.master)
        elif self.proc.stdin:
            self.stdin = os.dup(self.proc.stdin.fileno())
            self.proc.stdin.close()
        if self.stdin >= 0:
            os.set_blocking(self.stdin, False)
        self.vmm.commands.add(self.proc.pid)
        self.ready.set()
        self.read()

    def read(self) -> None:
        """Output, until there is no more; then the end."""
        fds = {self.master: STDOUT}
        if not self.pty:
            fds = {self.proc.stdout.fileno(): STDOUT, self.proc.stderr.fileno(): STDERR}
        ms = self.req.get("timeout_ms", 0)
        if "DEAF" in self.req.get("env", {}):  # the agent forgets its deadline
            ms = 0
        deadline = self.begin + ms / 1000 if ms else None
        reason = ""
        while fds:
            wait = 1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            if deadline is not None and not wait:
                deadline, reason = None, "timeout"
                self.signal(signal.SIGKILL, True)
                continue
            for fd in select.select(list(fds), [], [], wait)[0]:
                try:
                    data = os.read(fd, CHUNK)
                except OSError:  # a terminal without a process
                    data = b""
                if not data:
                    del fds[fd]
                    continue
                with self.lock:
                    self.logs[fds[fd]].add(data, self.vmm.state["kept_limit"])
        code = self.proc.wait()
        self.vmm.commands.discard(self.proc.pid)
        told = {"reason": reason or ("signaled" if code < 0 else "exited"), "state": "preserved"}
        told["exit_code"] = 124 if reason else 128 - code if code < 0 else code
        told |= {"truncated": False, "bytes_dropped": 0}
        told["duration_ms"] = int((time.monotonic() - self.begin) * 1000)
        if code < 0:
            told["signal"] = -code
        with self.lock:
            self.exit = told

    def signal(self, num: int, group: bool) -> None:
        """To its process, or its group."""
        try:
            (os.killpg if group else os.kill)(self.proc.pid, num)
        except ProcessLookupError:
            pass

    def close_stdin(self) -> None:
        """For good."""
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def told(self) -> dict:
        """As in the answer to list."""
        out = {"id": self.req["keep"], "pid": self.proc.pid, "pty": self.pty}
        out |= {"state": "ended" if self.exit else "running", "cwd": self.req.get("cwd", "/tmp")}
        out["language"] = self.req["language"]
        if "argv" in self.req:
            out["argv"] = self.req["argv"]
        else:
            out["code"] = self.code[:200].decode("utf-8", "ignore")
        out["started_ms"] = int((time.monotonic() - self.begin) * 1000)
        for name in ("exit_code", "reason", "signal"):
            if self.exit and name in self.exit:
                out[name] = self.exit[name]
        for kind, name in NAMES.items():
            out[name] = {"start": self.logs[kind].start, "end": self.logs[kind].end}
        return out


class Commands:
    """The part of a stream that is about kept commands."""

    vmm: Any
    sock: Any
    buf: bytes
    flood: Any

    def keep(self, req: dict, code: bytes) -> None:
        """EXEC with keep."""
        kept = self.vmm.kept
        pty_size = req.get("pty")
        assert req["language"] != "python"
        assert pty_size is None or 1 <= min(pty_size.values()) <= max(pty_size.values()) <= 1000
        if req["keep"] in kept:
            self.error("exists", "there is a command with this id")
            return
        if req["language"] == "javascript":
            self.error("not_found", "this template has no node")
            return
        if req["language"] == "argv" and not shutil.which(req["argv"][0]):
            self.error("not_found", f"{req['argv'][0]}: no such program")
            return
        if req.get("cwd") and not os.path.isdir(req["cwd"]):
            self.error("not_found", f"cannot use {req['cwd']} as working directory: none")
            return
        if len(kept) >= COMMANDS_MAX:
            ended = next((k for k, v in kept.items() if v.exit), None)
            if ended is None:
                self.error("too_many", f"{COMMANDS_MAX} commands run already")
                return
            del kept[ended]
        command = Kept(self.vmm, req, code)
        kept[req["keep"]] = command
        if command.stdin >= 0:
            command.writer = self
        self.follow(command, {STDOUT: 0, STDERR: 0})

    def on_command(self, req: dict) -> None:
        """COMMAND."""
        kept = self.vmm.kept
        raw = self.vmm.state["command_raw"]
        if raw is not None:
            if raw == "mute":
                time.sleep(3600)
            if raw == "close":
                raise Gone
            if raw.startswith("flood ") and req["op"] == "attach":
                _, kind, text = raw.split(" ")
                self.send(EVENT, {"type": "position", "pid": 1, "stdout": 0, "stderr": 0})
                self.flood(int(kind), bytes.fromhex(text))
            for kind, payload in json.loads(raw):
                self.send(kind, payload.encode())
            if req["op"] == "attach":
                time.sleep(3600)
            return
        if req["op"] == "list":
            word = self.vmm.once("list")
            if word == "mute":
                time.sleep(3600)
            if word == "error":
                self.error("io_error", "out of order")
                return
            self.send(OK, {"commands": [c.told() for c in kept.values()]})
            return
        command = kept.get(req["id"])
        if command is None:
            self.error("not_found", "no such command")
        elif req["op"] == "signal":
            assert 1 <= req["signal"] <= 64
            if command.exit:
                self.send(OK, {"ended": True})
            else:
                command.signal(req["signal"], req["group"])
                self.send(OK, {})
        elif req["op"] == "forget":
            command.signal(signal.SIGKILL, True)
            del kept[req["id"]]
            self.send(OK, {})
        else:
            assert req["op"] == "attach"
            self.attach(command, req)

    def attach(self, command: Kept, req: dict) -> None:
        """From given positions on."""
        if req.get("stdin"):
            if command.exit:
                self.error("ended", "the command has ended")
                return
            if not command.pty and not command.req.get("stdin"):
                self.error("bad_request", "the command has no stdin")
                return
            if command.stdin < 0:
                self.error("closed", "the command's stdin is closed")
                return
            if command.writer is not None:
                self.error("busy", "another client writes to this command")
                return
            command.writer = self
        at = {}
        for kind, name in NAMES.items():
            log = command.logs[kind]
            asked = log.end if req[name] < 0 else req[name]
            at[kind] = max(log.start, min(asked, log.end))
        self.follow(command, at)

    def follow(self, command: Kept, at: dict[int, int]) -> None:
        """Tells the position, and what comes, until EXIT or until the host leaves."""
        try:
            self.position(command, at)
            self.relay(command, at)
        finally:
            if command.writer is self:
                command.writer = None

    def position(self, command: Kept, at: dict[int, int]) -> None:
        """Where the next bytes stand."""
        told = {name: at[kind] for kind, name in NAMES.items()}
        self.send(EVENT, {"type": "position", "pid": command.proc.pid, **told})

    def relay(self, command: Kept, at: dict[int, int]) -> None:
        """Output and stdin, until EXIT."""
        pending = bytearray()
        unacked, closing = 0, False
        while True:
            self.vmm.rest()
            with command.lock:
                over = command.exit
                news = {}
                skipped = False
                for kind, log in command.logs.items():
                    skipped |= at[kind] < log.start
                    at[kind] = max(at[kind], log.start)
                    begin = at[kind] - log.start
                    news[kind] = bytes(log.data[begin : begin + CHUNK])
            if skipped:
                self.position(command, at)
            for kind, data in news.items():
                if data:
                    self.send(kind, data)
                    at[kind] += len(data)
            if over and not any(news.values()):
                self.send(EXIT, over)
                return
            if pending and command.stdin >= 0:
                try:
                    n = os.write(command.stdin, pending[:CHUNK])
                except BlockingIOError:
                    n = 0
                except OSError:
                    n = len(pending)
                if n:
                    del pending[:n]
                    unacked -= n
                    self.send(STDIN_ACK, struct.pack("<I", n))
            if closing and not pending:
                command.close_stdin()
                closing = False
            wait = 0 if any(news.values()) else 0.01
            if select.select([self.sock], [], [], wait)[0]:
                got = self.sock.recv(262144)
                if not got:
                    raise Gone
                self.buf += got
            while frame := self.parse():
                kind, payload = frame
                if kind == PING:
                    self.send(PONG, payload)
                elif kind == STDIN and command.writer is self:
                    unacked += len(payload)
                    assert unacked <= WINDOW, "more stdin than was acknowledged"
                    pending += payload
                elif kind == STDIN_END and command.writer is self:
                    closing = bool(pending)
                    if not pending:  # now: the host may leave as soon as it has its PONG
                        command.close_stdin()
                elif kind == RESIZE and not command.pty:
                    self.error("bad_request", "RESIZE that is not expected, or not valid")
                    raise Gone
                elif kind == RESIZE:
                    command.resize(json.loads(payload))
                else:
                    raise AssertionError(f"frame {kind} while attached")
