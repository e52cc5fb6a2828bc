#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Proves what tests can only try: that code which reads guest memory does nothing undefined, whatever is in
that memory. Frama-C's Eva follows all values at once through the real sources (tests/proof/*.c say what
is assumed and what is claimed); no alarm of it means that there is none to be had.

    tests/proof/run.py [NAME ...]

Each proof is run a second time with something broken (-DBROKEN), which has to be found.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(p.stem for p in (ROOT / "tests/proof").glob("*.c"))
EVA = (
    "-machdep gcc_x86_64 -no-unicode -eva -eva-slevel 20000 -eva-split-return full"
    " -eva-msg-key=-initial-state,-final-states"
).split()
# Of a copy of a value that was compared, that the value itself has the same bounds.
MORE = {"blk": ["-eva-domains", "equality"]}


def analysed(name: str, *defines: str) -> str:
    """What Eva says."""
    flags = " ".join(["-Isrc", "-Itests/proof", "-D_GNU_SOURCE", *defines])
    done = subprocess.run(
        ["frama-c", *EVA, *MORE.get(name, []), f"-cpp-extra-args={flags}", f"tests/proof/{name}.c"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0 or "ANALYSIS SUMMARY" not in done.stdout:
        raise SystemExit(f"{name}: frama-c failed\n{done.stdout}")
    return done.stdout


def clean(text: str) -> bool:
    """No alarm, and every assertion and precondition holds."""
    counts = re.findall(r"(?:Assertions|Preconditions) +(\d+) valid +(\d+) unknown +(\d+) invalid", text)
    return (
        bool(re.search(r"^ *0 alarms generated", text, re.MULTILINE))
        and bool(counts)
        and all(unknown == invalid == "0" for _, unknown, invalid in counts)
    )


def main() -> int:
    failed = 0
    for name in sys.argv[1:] or NAMES:
        start = time.monotonic()
        text = analysed(name)
        good, found = clean(text), not clean(analysed(name, "-DBROKEN"))
        reached = re.search(r"(\d+) statements reached \(out of (\d+)\)", text)
        assert reached
        print(
            f"{name}: {'proven' if good else 'NOT PROVEN'}, {reached[1]} of {reached[2]} statements reached;"
            f" the broken one is {'found' if found else 'NOT FOUND'} ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
        if not good or not found:
            failed += 1
            print("\n".join(line for line in text.splitlines() if "alarm" in line or "assert" in line))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
