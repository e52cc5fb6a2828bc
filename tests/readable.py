# SPDX-License-Identifier: Apache-2.0
"""What a user's other processes can read of one of his: nothing, where that is not dumpable."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Sequence

# What of /proc/PID a user may read of his own processes, unless they are not dumpable. (To open mem takes
# Yama's leave as well.)
PRIVATE = ("environ", "maps", "auxv", "mem", "root/", "cwd/", "ns/user")

# Prints the names below /proc/PID that can be read.
READER = """
import os, sys
for name in sys.argv[2:]:
    path = f"/proc/{sys.argv[1]}/{name}"
    try:
        os.listdir(path) if name[-1] == "/" else os.readlink(path) if "/" in name else open(path)
        print(name)
    except PermissionError:
        pass
"""


def readable(as_user: Sequence[str], pid: int, names: Sequence[str] = PRIVATE) -> list[str]:
    """Those of the names that a process which is started by this command line can read."""
    argv = [*as_user, sys.executable, "-c", READER, str(pid), *names]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


def assert_others_are_readable(as_user: Sequence[str], names: Sequence[str] = PRIVATE) -> None:
    """That one could: all but the memory of an ordinary process of the same user, once it is one."""
    other = subprocess.Popen([*as_user, "sleep", "1000"])
    try:
        deadline = time.monotonic() + 60
        while Path(f"/proc/{other.pid}/comm").read_text() != "sleep\n":
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert {*names} - {"mem"} <= {*readable(as_user, other.pid, names)}
    finally:
        other.kill()
        other.wait()
