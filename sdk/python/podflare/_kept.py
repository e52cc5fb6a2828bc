# SPDX-License-Identifier: Apache-2.0
"""What is kept of what a sandbox sends, which has no end of its own: bounded, and counted in the bytes
that it takes here."""

from __future__ import annotations

import sys
from typing import Any


class Tail:
    """The end of a stream, of at most so many bytes.

    dropped   how many were there before.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # One piece of memory: pieces of a byte each would take forty times as much.
        self._kept = bytearray()
        self.dropped = 0

    def add(self, piece: bytes) -> None:
        """Append."""
        self._kept += piece
        over = len(self._kept) - self._limit
        if over > 0:
            del self._kept[:over]  # moves nothing
            self.dropped += over

    def __bytes__(self) -> bytes:
        return bytes(self._kept)


def weight(value: Any, enough: int) -> int:
    """How many bytes a JSON value takes here, with all that is in it: an empty list is two characters
    there, and sixty bytes here. Not counted further than to `enough`."""
    total, todo = 0, [value]
    while todo and total <= enough:
        one = todo.pop()
        total += sys.getsizeof(one)
        if isinstance(one, dict):
            todo.extend(one)
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
    return total
