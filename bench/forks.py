#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Forks of several daemons in turn: what a change makes of them, on a machine that changes its speed.

    bench/forks.py ROUNDS URL [URL ...]

Each daemon is one that runs (podflare serve --addr 127.0.0.1:PORT --state DIR -- --pool=0), of another
build. A round is, for one after the other: a fork into one copy and one into five, each until all copies
have run `pass` (used), then `pass` in the original (after). Prints medians in milliseconds, as the SDK sees
them; pause is the daemon's own figure.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk" / "python"))

from podflare import Client, Sandbox  # noqa: E402

FANS = (1, 5)


def since(start: float) -> float:
    return (time.perf_counter() - start) * 1e3


def fork_once(sandbox: Sandbox, n: int, figures: dict[str, list[float]]) -> None:
    """One fork into n copies, and what comes after it."""
    start = time.perf_counter()
    with sandbox.fork(n) as copies, ThreadPoolExecutor(n) as pool:
        figures[f"fork {n}"].append(since(start))
        figures[f"pause {n}"].append((copies.pause_us or 0) / 1e3)
        list(pool.map(lambda one: one.run_code("pass"), copies))
        figures[f"used {n}"].append(since(start))
        start = time.perf_counter()
        sandbox.run_code("pass")
        figures[f"after {n}"].append(since(start))


def main() -> int:
    if len(sys.argv) < 3 or not sys.argv[1].isdigit() or int(sys.argv[1]) == 0:
        sys.exit(__doc__)
    rounds, urls = int(sys.argv[1]), sys.argv[2:]
    figures: list[dict[str, list[float]]] = [defaultdict(list) for _ in urls]
    with ExitStack() as stack:
        sandboxes = [stack.enter_context(Sandbox(client=Client(host=url))) for url in urls]
        for sandbox in sandboxes:
            sandbox.run_code("x = 1")
        for _ in range(rounds):
            for sandbox, its in zip(sandboxes, figures):
                for n in FANS:
                    fork_once(sandbox, n, its)
    for url, its in zip(urls, figures):
        print(url, ", ".join(f"{name} {statistics.median(v):.0f}" for name, v in its.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
