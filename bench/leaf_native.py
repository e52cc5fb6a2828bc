#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What it costs to make a VM that gives up its forks (`forkable=False`), as a table in Markdown. No
guest code runs; the VMM is the tests' one, whose vCPUs stand still, in its whole jail.

    bench/leaf_native.py [--build DIR] [--forks N]
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Sequence

ROOT = Path(__file__).resolve().parents[1]


def row(name: str, values: Sequence[float]) -> None:
    ordered = sorted(values)
    cells = [ordered[0], *(ordered[max(0, math.ceil(p * len(ordered)) - 1)] for p in (0.5, 0.95))]
    print(f"| {name} | {len(values)} | " + " | ".join(f"{v:.0f}" for v in cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="measure the second jail of a VM that is never forked")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--forks", type=int, default=200)
    args = parser.parse_args()
    build = args.build.resolve()
    os.environ["PODFLARE_BUILD"] = str(build)
    sys.path.insert(0, str(ROOT / "tests/vmm"))
    import conftest

    load = " ".join(f"{v:.1f}" for v in os.getloadavg())
    print(f"load {load}; us\n\n| figure | n | min | p50 | p95 |\n|---|--:|--:|--:|--:|")
    for where in ("vcpu", "leaf-vcpu", "leaf"):
        probe = [build / "tests/vmm/vmm-jail-probe", where, "enter"]
        times = [int.from_bytes(subprocess.check_output(probe), sys.byteorder) / 1000 for _ in range(args.forks)]
        row(f"enter the jail {where}", times)
    kinds = {"plain": 0, "leaf": conftest.LEAF}
    for vcpus in (1, 2):
        with tempfile.TemporaryDirectory() as directory:
            host = conftest.Host(Path(directory))
            template = host.booted(vcpus=vcpus)
            template.pause()
            times_of: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(args.forks):  # by turns: other load is the same for both
                for kind, code in kinds.items():
                    child = template.start_fork(code=code)
                    child.pid = template.expect(conftest.FORKED).value[0]
                    times_of[kind].append(child.expect(conftest.BOOTED).value[0])
                    child.end()
            for kind, values in times_of.items():
                row(f"{vcpus} vCPU, fork to running, {kind}", values)
            host.close()


if __name__ == "__main__":
    main()
