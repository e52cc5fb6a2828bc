"""A daemon whose allocations, and calls of the kernel that need memory, fail when a test says so.

failing.c is loaded into it; the two share a file. Nothing fails but between arm() and disarm().
"""

import mmap
import os
import re
import struct
import subprocess
from pathlib import Path

from conftest import BUILD, SANITIZED, Daemon

LIBRARY = BUILD / "tests" / "daemon" / "failing.so"
MEMORY, KERNEL = 1, 2  # struct orders
ALWAYS = (1 << 64) - 1
WORDS, CALLERS = 6, 40


class Failing:
    """The orders of one daemon, and what became of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(8 * (WORDS + CALLERS)))
        with path.open("r+b") as f:
            self.map = mmap.mmap(f.fileno(), 0)

    @property
    def env(self) -> dict[str, str]:
        """What the daemon is to be started with."""
        env = {"LD_PRELOAD": str(LIBRARY), "FAILING": str(self.path)}
        if SANITIZED:  # it wants to be the first library, and need not be
            given = os.environ.get("ASAN_OPTIONS", "")
            env["ASAN_OPTIONS"] = f"{given}:verify_asan_link_order=0"
        return env

    def arm(self, kinds: int, first: int = 1, last: int = 0, one_in: int = 0) -> None:
        """From now on fail: the calls from the first to the last (0: that one alone), or some."""
        struct.pack_into("<6Q", self.map, 0, 0, first, last or first, one_in, 0, 0)
        struct.pack_into("<Q", self.map, 0, kinds)

    def disarm(self) -> tuple[int, int]:
        """Nothing fails any more. How many calls were seen, and how many of them have failed."""
        struct.pack_into("<Q", self.map, 0, 0)
        return self.counts()

    def counts(self) -> tuple[int, int]:
        """Calls that were seen, and those that failed."""
        return struct.unpack_from("<2Q", self.map, 32)

    def where(self, d: Daemon) -> str:
        """The callers of what failed first, inner ones first: for whoever reads of a failure."""
        callers = [a for a in struct.unpack_from(f"<{CALLERS}Q", self.map, 8 * WORDS) if a]
        try:
            maps = Path(f"/proc/{d.proc.pid}/maps").read_text()
        except OSError:
            return "the daemon is gone"
        found = []
        for line in maps.splitlines():
            m = re.match(r"(\w+)-(\w+) r\S+ (\w+) \S+ \d+ +(/\S+)", line)
            if m:
                found.append((int(m[1], 16), int(m[2], 16), int(m[3], 16), m[4]))
        lines = []
        for a in callers:
            for low, high, offset, path in found:
                if low <= a < high:
                    at = f"{a - low + offset - 1:#x}"
                    name = subprocess.run(
                        ["addr2line", "-sfpe", path, at], capture_output=True, text=True, check=False
                    ).stdout.strip()
                    lines.append(f"{name or at} in {os.path.basename(path)}")
        return " < ".join(lines[1:])
