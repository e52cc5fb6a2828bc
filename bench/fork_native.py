#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cost of a VM's fork on this machine, as a table in Markdown. No guest code runs, so it needs no
more of KVM than that it makes VMs (bench/forkstate.c says what each figure is).

    bench/fork_native.py [--build DIR] [--forks N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Sequence

ROOT = Path(__file__).resolve().parents[1]

# MiB, vCPUs, further arguments of forkstate
CASES: list[tuple[int, int, list[str]]] = [
    (256, 1, []),
    (256, 1, ["paused"]),
    (256, 1, ["4k"]),
    (1024, 2, []),
    (1024, 2, ["paused"]),
    (1024, 2, ["4k"]),
    (256, 1, ["chain"]),
]

CHAIN = 32  # generations


def percentile(values: Sequence[int], p: float) -> int:
    """Nearest rank: a value that was really measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]


def machine() -> str:
    """One line on what this was measured on, and what else it had to do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((n.partition(":")[2] for n in lines if n.startswith("model name")), " unknown")
    load = " ".join(f"{v:.1f}" for v in os.getloadavg())
    return f"{os.cpu_count()} x{model}, Linux {platform.release()}, load {load}"


def measure(build: Path, mib: int, vcpus: int, more: list[str], forks: int) -> dict[str, list[int]]:
    """All values of one case by name, in microseconds."""
    command = [build / "bench/forkstate", str(mib), str(vcpus), str(forks), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, list[int]] = defaultdict(list)
    for line in done.stdout.splitlines():
        name, value = line.split()
        figures[name].append(int(value))
    return dict(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description="measure forks of VMs that stand still")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--forks", type=int, default=200, help="forks in each case")
    parser.add_argument("--json", type=Path, help="write every single value here, too")
    args = parser.parse_args()
    record = {}
    print(f"machine: {machine()}\n\nmode: native, state only; {args.forks} forks a case ({CHAIN} of a chain); ms\n")
    print("| case | figure | min | p50 | p95 | p99 |\n|---|---|--:|--:|--:|--:|")
    for mib, vcpus, more in CASES:
        case = " ".join([f"{mib} MiB, {vcpus} vCPU", *more])
        forks = min(args.forks, CHAIN) if "chain" in more else args.forks
        record[case] = measure(args.build.resolve(), mib, vcpus, more, forks)
        for name, values in record[case].items():
            cells = [min(values), *(percentile(values, p) for p in (50, 95, 99))]
            print(f"| {case} | {name} | " + " | ".join(f"{v / 1000:.2f}" for v in cells) + " |")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "figures": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
