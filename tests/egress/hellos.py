# SPDX-License-Identifier: Apache-2.0
"""ClientHellos made by hand, good ones and others."""

from __future__ import annotations

import os
from typing import Optional

SERVER_NAME, ECH, ESNI = 0, 0xFE0D, 0xFFCE
ALERT_DENIED = bytes([21, 3, 3, 0, 2, 2, 49])


def vector(n: int, data: bytes) -> bytes:
    return len(data).to_bytes(n, "big") + data


def extension(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, data)


def server_name(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(bytes([kind]) + vector(2, n) for n in names)
    return extension(SERVER_NAME, vector(2, entries))


def message(extensions: Optional[bytes], kind: int = 1, version: bytes = b"\3\3") -> bytes:
    """A handshake message; extensions None: a hello without the vector of them."""
    body = version + os.urandom(32) + vector(1, os.urandom(32)) + vector(2, b"\x13\x01\x13\x02")
    body += vector(1, b"\0")
    if extensions is not None:
        body += vector(2, extensions)
    return bytes([kind]) + vector(3, body)


def records(data: bytes, size: int = 16384, kind: int = 22) -> bytes:
    """In records of at most size bytes."""
    out = b""
    for at in range(0, len(data), size):
        out += bytes([kind, 3, 1]) + vector(2, data[at : at + size])
    return out


def hello(name: bytes = b"a.test", more: bytes = b"") -> bytes:
    groups = extension(10, vector(2, b"\0\x1d"))
    return records(message(groups + server_name(name) + more))
