# SPDX-License-Identifier: Apache-2.0
"""A daemon's HTTP interface as far as `podflare shell` needs it, with bash on this machine in the
place of sandboxes. It keeps what it was asked, and can be told to answer badly."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, Optional

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
BASH = ["bash", "--norc", "--noprofile"]


def frame(kind: int, data: bytes) -> bytes:
    """One WebSocket frame of a server's."""
    head = bytes([0x80 | kind])
    if len(data) < 126:
        return head + bytes([len(data)]) + data
    if len(data) < 65536:
        return head + b"\x7e" + struct.pack(">H", len(data)) + data
    return head + b"\x7f" + struct.pack(">Q", len(data)) + data


def read_frame(stream: BinaryIO) -> tuple[int, bytes]:
    """One frame of a client's, which must be masked; (CLOSE, b"gone") at the end."""
    head = stream.read(2)
    if len(head) < 2:
        return CLOSE, b"gone"
    assert head[1] & 0x80, "a client's frame is masked"
    size = head[1] & 0x7F
    if size >= 126:
        size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
    mask = stream.read(4)
    data = stream.read(size)
    return head[0] & 15, bytes(b ^ mask[i % 4] for i, b in enumerate(data))


def exit_event(status: int) -> dict[str, Any]:
    """The last event of a command."""
    code = status if status >= 0 else 128 - status
    reason = "exited" if status >= 0 else "signaled"
    return {"type": "exit", "data": code, "exit_code": code, "termination_reason": reason}


class Command:
    """A bash of ours, on a pseudo-terminal or on pipes."""

    def __init__(self, size: Optional[dict[str, int]]) -> None:
        self.master = -1
        self.sizes = [size] if size else []
        env = {**os.environ, "PS1": "stub> ", "TERM": "dumb"}
        if size:
            self.master, slave = pty.openpty()
            self.resize(size)
            self.process = subprocess.Popen(
                BASH, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )
            os.close(slave)
        else:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                BASH, stdin=pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True
            )

    def resize(self, size: dict[str, int]) -> None:
        """As the kernel does it."""
        cells = struct.pack("HHHH", size["rows"], size["cols"], 0, 0)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, cells)

    def kill(self) -> None:
        """All of it."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class StubDaemon:
    """Listens on a port of its own while it is used as a context manager."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []  # method, path, JSON body
        self.headers: list[dict[str, str]] = []
        self.refusals: dict[str, tuple[int, dict[str, Any]]] = {}  # "POST regex" -> the answer
        self.commands: dict[str, Command] = {}
        self.resizes: list[dict[str, int]] = []
        self.pongs: list[bytes] = []
        self.closes: list[bytes] = []  # payloads of the client's close frames
        self.accept: Optional[str] = None  # instead of the right answer to the key
        self.greeting: list[bytes] = []  # raw bytes behind the head of the upgrade
        self.hang_create = threading.Event()  # set: creating waits until it is cleared
        self.sockets: list[socket.socket] = []
        handler = type("Handler", (_Handler,), {"stub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "StubDaemon":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        for command in self.commands.values():
            command.kill()

    def die(self) -> None:
        """Gone from one moment to the next."""
        self.server.shutdown()
        self.server.server_close()
        self.drop()

    def drop(self) -> None:
        """Ends all terminals' connections, the daemon stays."""
        for sock in self.sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def asked(self, method: str) -> list[str]:
        """Paths that were asked for with this method."""
        return [path for m, path, _ in self.requests if m == method]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: StubDaemon

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: Optional[dict[str, Any]] = None) -> None:
        """A whole reply."""
        data = json.dumps(body).encode() if body is not None else b""
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def refused(self, body: Any) -> bool:
        """Notes the request; answers it when the test wants it refused."""
        stub = self.stub
        stub.requests.append((self.command, self.path, body))
        stub.headers.append({k.lower(): v for k, v in self.headers.items()})
        for pattern, (status, answer) in stub.refusals.items():
            if re.fullmatch(pattern, f"{self.command} {self.path}"):
                self.answer(status, answer)
                return True
        return False

    def known(self) -> Optional[Command]:
        """The command of this path, or an answer that there is none."""
        command = self.stub.commands.get(self.path.split("/")[5].split("?")[0])
        if command is None:
            self.answer(404, {"error": "no such command", "code": "command_not_found"})
        return command

    def do_POST(self) -> None:  # noqa: N802
        if "/stdin" in self.path:
            if not self.refused(None):
                self.take_stdin()
            return
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"null")
        if self.refused(body):
            return
        if self.path == "/v1/sandboxes":
            while self.stub.hang_create.is_set():
                if select.select([self.connection], [], [], 0.02)[0]:
                    break  # the client gives it up, but it is there already
            self.answer(200, {"id": "sb_new", "state": "ready"})
        elif self.path.endswith("/commands"):
            name = f"c{len(self.stub.commands)}"
            self.stub.commands[name] = Command(body.get("pty"))
            self.answer(200, {"command_id": name, "pid": 1})
        else:
            self.answer(404, {"error": "no such endpoint", "code": "not_found"})

    def do_DELETE(self) -> None:  # noqa: N802
        if self.refused(None):
            return
        if "/commands/" in self.path:
            command = self.known()
            if command:
                command.kill()
                self.answer(204)
            return
        self.answer(204)

    def do_GET(self) -> None:  # noqa: N802
        if self.refused(None):
            return
        command = self.known()
        if command is None:
            return
        if "/terminal" in self.path:
            self.terminal(command)
        else:
            self.stream(command)

    def take_stdin(self) -> None:
        command = self.known()
        if command is None:
            return
        assert self.headers["Transfer-Encoding"] == "chunked"
        pipe = command.process.stdin
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data = self.rfile.read(size)
            assert self.rfile.readline() == b"\r\n"
            try:
                pipe.write(data)
                pipe.flush()
            except BrokenPipeError:
                self.answer(409, {"error": "it has ended", "code": "command_ended"})
                return
        pipe.close()
        self.answer(204)

    def chunk(self, event: dict[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def stream(self, command: Command) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.chunk({"type": "started", "command_id": "c0"})
        process = command.process
        open_ = {process.stdout.fileno(): "stdout", process.stderr.fileno(): "stderr"}
        while open_:
            for fd in select.select(list(open_), [], [])[0]:
                data = os.read(fd, 60000)
                if not data:
                    del open_[fd]
                    continue
                event: dict[str, Any] = {"type": open_[fd]}
                try:
                    event["data"] = data.decode()
                except UnicodeDecodeError:
                    event.update(data=base64.b64encode(data).decode(), encoding="base64")
                self.chunk(event)
        self.chunk(exit_event(process.wait()))
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def terminal(self, command: Command) -> None:
        stub = self.stub
        key = self.headers["Sec-WebSocket-Key"]
        digest = hashlib.sha1((key + GUID).encode()).digest()
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", stub.accept or base64.b64encode(digest).decode())
        self.end_headers()
        self.close_connection = True
        stub.sockets.append(self.connection)
        reader = threading.Thread(target=self.from_client, args=(command,), daemon=True)
        try:
            for data in stub.greeting:
                self.wfile.write(data)
            reader.start()
            while data := self.read_master(command):
                self.wfile.write(frame(BINARY, data))
            end = {"exit": exit_event(command.process.wait())}
            self.wfile.write(frame(TEXT, json.dumps(end).encode()))
            self.wfile.write(frame(CLOSE, struct.pack(">H", 1000)))
        except OSError:
            return  # the client, or all of us, went first
        reader.join(10)

    @staticmethod
    def read_master(command: Command) -> bytes:
        try:
            return os.read(command.master, 60000)
        except OSError:
            return b""

    def from_client(self, command: Command) -> None:
        while True:
            try:
                kind, data = read_frame(self.rfile)
            except (OSError, ValueError):
                return
            if kind == BINARY:
                os.write(command.master, data)
            elif kind == TEXT:
                size = json.loads(data)["resize"]
                self.stub.resizes.append(size)
                command.resize(size)
            elif kind == PONG:
                self.stub.pongs.append(data)
            elif kind == CLOSE:
                self.stub.closes.append(data)
                return
