"""A daemon whose disk is slow: syncs.c is loaded into it, and the two share a file."""

import mmap
import os
import struct
from pathlib import Path

from conftest import BUILD, SANITIZED

LIBRARY = BUILD / "tests" / "daemon" / "syncs.so"
WORDS = 5  # struct syncs


class Syncs:
    """What its threads wait for, since begin()."""

    def __init__(self, path: Path, delay_ms: int) -> None:
        self.path = path
        path.write_bytes(struct.pack(f"<{WORDS}Q", 0, delay_ms, 0, 0, 0))
        with path.open("r+b") as f:
            self.map = mmap.mmap(f.fileno(), 0)

    @property
    def env(self) -> dict[str, str]:
        """What the daemon is to be started with."""
        env = {"LD_PRELOAD": str(LIBRARY), "SYNCS": str(self.path)}
        if SANITIZED:  # it wants to be the first library, and need not be
            given = os.environ.get("ASAN_OPTIONS", "")
            env["ASAN_OPTIONS"] = f"{given}:verify_asan_link_order=0"
        return env

    def begin(self) -> None:
        """From now on it is slow, and counts."""
        struct.pack_into("<Q", self.map, 0, 1)

    def _word(self, n: int) -> int:
        return struct.unpack_from("<Q", self.map, 8 * n)[0]

    @property
    def loop(self) -> int:
        """Syncs that the loop's thread has waited for."""
        return self._word(2)

    @property
    def others(self) -> int:
        """Those of other threads."""
        return self._word(3)

    @property
    def slept_us(self) -> int:
        """How long the loop's thread has slept, waiting for a lock."""
        return self._word(4)
