#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What moving a process to another control group takes, alone, with the wait begun before, and in a
row. Needs a cgroup v2 to which this user may write; its own group, or that of --group."""

from __future__ import annotations

import argparse
import os
import subprocess
import threading
import time
from pathlib import Path

N = 30


def mounted() -> Path:
    for line in Path("/proc/self/mountinfo").read_text(encoding="ascii").splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    raise SystemExit("no cgroup v2 is mounted")


def put(group: Path, pid: int) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
    return (time.perf_counter() - start) * 1000


def moves(base: Path, name: str, pause: float, before: float | None) -> list[float]:
    """Moves N processes, each to a group of its own; before: seconds that another move has begun
    earlier."""
    taken = []
    processes = [subprocess.Popen(["sleep", "600"]) for _ in range(N + 1)]
    other = base / f"{name}-other"
    other.mkdir()
    put(other, processes[N].pid)
    for i in range(N):
        group = base / f"{name}-{i}"
        group.mkdir()
        time.sleep(pause)
        thread = threading.Thread(target=put, args=(other, processes[N].pid))
        if before is not None:
            thread.start()
            time.sleep(before)
        taken.append(put(group, processes[i].pid))
        if before is not None:
            thread.join()
    for p in processes:
        p.kill()
        p.wait()
    return sorted(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", type=Path, default=mounted())
    base = parser.parse_args().group / f"bench-{os.getpid()}"
    base.mkdir()
    try:
        for name, pause, before in (
            ("alone", 0.1, None),
            ("begun 3 ms before", 0.1, 0.003),
            ("begun 10 ms before", 0.1, 0.010),
            ("in a row", 0, None),
        ):
            t = moves(base, name.replace(" ", "-"), pause, before)
            print(f"{name:20} p50 {t[N // 2]:6.2f}  p90 {t[N * 9 // 10]:6.2f}  max {t[-1]:6.2f} ms")
    finally:
        for group in base.iterdir():
            if group.is_dir():
                group.rmdir()
        base.rmdir()


if __name__ == "__main__":
    main()
