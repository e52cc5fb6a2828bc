# SPDX-License-Identifier: Apache-2.0
"""A small client of the agent protocol (api/agent-protocol.md) for tests: blocking, one stream each."""

from __future__ import annotations

import base64
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Iterator

EXEC, CANCEL, PING, PUT, GET, DATA, END, RENEW, STATUS = range(0x01, 0x0A)
WARM, FREEZE, THAW, CHANGES, HASHES, STDIN, STDIN_END, INTERRUPT, CONTEXT, FILE = range(0x0B, 0x15)
COMMAND, RESIZE, EGRESS = 0x15, 0x16, 0x17
STDOUT, STDERR, EXIT, ERROR, PONG, OK, DATA_OUT, END_OUT, EVENT = range(0x81, 0x8A)
EVENT_PART, STDIN_ACK = 0x8B, 0x8C

MAX_PAYLOAD = 65536


def renew_request(**change: Any) -> dict[str, Any]:
    """A RENEW request; members that are None are left out."""
    good = {
        "realtime_ns": 1_800_000_000_123_456_789,
        "hostname": "sbx-0123456789abcdef",
        "entropy": base64.b64encode(bytes(range(32))).decode(),
        "id": "sbx_0123456789abcdef",
        "machine_id": "0123456789abcdef" * 2,
        "boot_id": "01234567-89ab-cdef-0123-456789abcdef",
        "generation": 0,
        "kind": "boot",
    }
    return {k: v for k, v in {**good, **change}.items() if v is not None}


@dataclass
class Result:
    """What one EXEC gave."""

    stdout: bytes = b""
    stderr: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)
    exit: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def code(self) -> int:
        """The exit code; fails when there was none."""
        assert self.exit is not None, self.error
        return int(self.exit["exit_code"])


class Closed(Exception):
    """The agent closed the stream."""


class Stream:
    """One conversation with the agent."""

    def __init__(self, path: str, timeout: float = 30.0) -> None:
        """Connects to the harness's socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.sock.settimeout(timeout)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the stream, which ends what runs on it."""
        self.sock.close()

    def send(self, kind: int, payload: bytes | dict[str, Any] = b"") -> None:
        """Sends one frame; a dict goes as JSON."""
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.sock.sendall(struct.pack("<IB3x", len(data), kind) + data)

    def raw(self, data: bytes) -> None:
        """Sends bytes as they are."""
        self.sock.sendall(data)

    def body(self, data: bytes) -> None:
        """Sends DATA frames and END."""
        for at in range(0, len(data), MAX_PAYLOAD):
            self.send(DATA, data[at : at + MAX_PAYLOAD])
        self.send(END)

    def _read(self, n: int) -> bytes:
        parts = []
        while n:
            part = self.sock.recv(n)
            if not part:
                raise Closed
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def recv(self) -> tuple[int, bytes]:
        """The next frame."""
        length, kind, zero = struct.unpack("<IB3s", self._read(8))
        assert length <= MAX_PAYLOAD and zero == b"\0\0\0"
        return kind, self._read(length)

    def recv_json(self, want: int) -> dict[str, Any]:
        """The next frame, which must be of the type and hold a JSON object."""
        kind, payload = self.recv()
        assert kind == want, (hex(kind), payload[:300])
        value = json.loads(payload)
        assert isinstance(value, dict)
        return value

    def start(self, code: str | bytes, language: str = "bash", **extra: Any) -> None:
        """Sends an EXEC without waiting for its end."""
        self.send(EXEC, {"language": language, **extra})
        self.body(code.encode() if isinstance(code, str) else code)

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """All frames until a final one of an EXEC (EXIT or ERROR), that one included."""
        while True:
            kind, payload = self.recv()
            yield kind, payload
            if kind in (EXIT, ERROR):
                return

    def finish(self) -> Result:
        """Collects everything until the end of the EXEC that runs."""
        r = Result()
        out, err, pieces = [], [], b""
        for kind, payload in self.frames():
            if kind == STDOUT:
                out.append(payload)
            elif kind == STDERR:
                err.append(payload)
            elif kind == EVENT:
                r.events.append(json.loads(pieces + payload))
                pieces = b""
            elif kind == STDIN_ACK:
                pass
            elif kind == EVENT_PART:
                pieces = pieces + payload if payload else b""
            elif kind == EXIT:
                r.exit = json.loads(payload)
            elif kind == ERROR:
                r.error = json.loads(payload)
            else:
                raise AssertionError(hex(kind))
        r.stdout, r.stderr = b"".join(out), b"".join(err)
        return r

    def bash(self, code: str | bytes, **extra: Any) -> Result:
        """Runs bash code to its end."""
        self.start(code, "bash", **extra)
        return self.finish()

    def python(self, code: str | bytes, **extra: Any) -> Result:
        """Runs a Python cell to its end."""
        self.start(code, "python", **extra)
        return self.finish()

    def put(self, path: str, data: bytes, **extra: Any) -> dict[str, Any]:
        """Uploads; the OK or ERROR object."""
        self.send(PUT, {"path": path, **extra})
        self.body(data)
        kind, payload = self.recv()
        assert kind in (OK, ERROR), hex(kind)
        return dict(json.loads(payload))

    def get(self, path: str) -> tuple[dict[str, Any], bytes | None]:
        """Downloads: (OK object, bytes) or (ERROR object, None)."""
        self.send(GET, {"path": path})
        kind, payload = self.recv()
        head = json.loads(payload)
        if kind == ERROR:
            return head, None
        assert kind == OK, hex(kind)
        parts = []
        while True:
            kind, payload = self.recv()
            if kind == DATA_OUT:
                parts.append(payload)
            elif kind == END_OUT:
                return head, b"".join(parts)
            else:
                assert kind == ERROR, hex(kind)
                return json.loads(payload), None

    def ask(self, kind: int, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends a request without body; the OK or ERROR object."""
        self.send(kind, request or {})
        kind, payload = self.recv()
        assert kind in (OK, ERROR), hex(kind)
        return dict(json.loads(payload))

    def download(self) -> bytes:
        """What comes after an OK: DATA frames until END."""
        parts = []
        while True:
            kind, payload = self.recv()
            if kind == END_OUT:
                return b"".join(parts)
            assert kind == DATA_OUT, (hex(kind), payload[:300])
            parts.append(payload)

    def status(self) -> dict[str, Any]:
        """The answer to STATUS."""
        self.send(STATUS, {})
        return self.recv_json(OK)


def begun(stream: Stream) -> None:
    """Waits until what runs on it has printed "on"."""
    got = b""
    while b"on\n" not in got:
        kind, payload = stream.recv()
        assert kind == STDOUT, payload
        got += payload
