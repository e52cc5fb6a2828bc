#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How much of the sources the kept inputs of the fuzz targets reach.

    tests/fuzz/coverage.py [--build build/coverage] --committed
    tests/fuzz/coverage.py [--build build/coverage] [--corpus build/clang] [--all] [PREFIX ...]

Builds the targets with clang's source-based coverage (DIR is made when it is not there), runs each
once over tests/fuzz/corpus and tests/fuzz/found (and, with --corpus, over what the runs of that
build directory have learned), and prints the lines of every file whose path begins with one of the
prefixes: what of the VMM a guest reaches unless told otherwise (JUDGED). --all: every file.

--committed: what make test does. Only the committed inputs, and only of the targets that have the
VMM's sources in them.

The exit status is 0 when each of the files of JUDGED reaches GOAL percent; one that no target has
reaches none.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
JUDGED = [f"src/vmm/{part}" for part in ("virtio/", "irq/", "dev/", "disk/", "boot/", "core/exit.c")]
TARGETS = "blk ctl exit ioapic kernel layers virtio virtqueue vsock_packet".split()
GOAL = 85
FLAGS = "-fprofile-instr-generate -fcoverage-mapping"


def build(directory: Path, names: list[str]) -> list[Path]:
    """Makes or refreshes the build directory, with these targets or all: their programs."""
    if not (directory / "build.ninja").exists():
        subprocess.run(
            ["meson", "setup", str(directory), str(ROOT), "-Dfuzz=true", "-Dtests=false"]
            + [f"-Dc_args={FLAGS}", "-Dc_link_args=-fprofile-instr-generate"],
            # What Meson tries out leaves a profile, too.
            env={**os.environ, "CC": "clang", "LLVM_PROFILE_FILE": "/dev/null"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
    wanted = [f"tests/fuzz/fuzz_{name}" for name in names]
    subprocess.run(["ninja", "--quiet", "-C", str(directory), *(wanted or ["fuzz"])], check=True)
    found = sorted(p for p in (directory / "tests/fuzz").glob("fuzz_*") if p.is_file())
    return [directory / path for path in wanted] or found


def replay(directory: Path, program: Path, learned: Path | None) -> Path | None:
    """Runs a target over its inputs; the raw profile, or None when there are none."""
    name = program.name.removeprefix("fuzz_")
    dirs = [HERE / "corpus" / name, HERE / "found" / name]
    if learned:
        dirs.append(learned / "fuzz" / name / "corpus")
    dirs = [d for d in dirs if d.is_dir()]
    if not dirs:
        print(f"{name}: no inputs", file=sys.stderr)
        return None
    profile = directory / "profiles" / f"{name}.profraw"
    done = subprocess.run(
        [str(program), "-runs=0", *map(str, dirs)],
        cwd=directory,
        env={**os.environ, "LLVM_PROFILE_FILE": str(profile), "ASAN_OPTIONS": "detect_leaks=0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    return profile


def lines_of(directory: Path, programs: list[Path], profiles: list[Path]) -> dict[str, tuple]:
    """Path below the root -> (lines reached, lines)."""
    merged = directory / "profiles/all.profdata"
    subprocess.run(
        ["llvm-profdata", "merge", "-sparse", "-o", str(merged), *map(str, profiles)], check=True
    )
    objects = [a for p in programs[1:] for a in ("-object", str(p))]
    out = subprocess.run(
        ["llvm-cov", "export", "-summary-only", f"-instr-profile={merged}", str(programs[0])]
        + objects,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    ).stdout
    found = {}
    for entry in json.loads(out)["data"][0]["files"]:
        path = Path(os.path.normpath(directory / entry["filename"]))
        lines = entry["summary"]["lines"]
        if path.is_relative_to(ROOT):
            found[str(path.relative_to(ROOT))] = (lines["covered"], lines["count"])
    return found


def judged() -> dict[str, tuple]:
    """The files that are to reach the goal: nothing of them is reached so far."""
    paths = (str(p.relative_to(ROOT)) for p in (ROOT / "src/vmm").rglob("*.c"))
    return {path: (0, 0) for path in paths if path.startswith(tuple(JUDGED))}


def main() -> int:
    parser = argparse.ArgumentParser(description="coverage of the fuzz targets")
    parser.add_argument("--build", default="build/coverage", help="build directory")
    parser.add_argument("--committed", action="store_true", help="committed inputs, of the VMM's targets")
    parser.add_argument("--corpus", help="build directory whose runs have learned something")
    parser.add_argument("--all", action="store_true", help="every file")
    parser.add_argument("prefixes", nargs="*", metavar="PREFIX", default=JUDGED)
    args = parser.parse_args()
    if args.committed and args.corpus:
        parser.error("--committed is without what runs have learned")
    directory = Path(args.build).resolve()
    learned = Path(args.corpus).resolve() if args.corpus else None
    programs = build(directory, TARGETS if args.committed else [])
    (directory / "profiles").mkdir(exist_ok=True)
    profiles = [p for p in (replay(directory, t, learned) for t in programs) if p]
    sources = judged()
    found = sources | lines_of(directory, programs, profiles)
    prefixes = ("",) if args.all else tuple(args.prefixes or JUDGED)
    reached = missed = 0
    for path, (covered, count) in sorted(found.items()):
        goal = path.startswith(tuple(JUDGED))
        if not path.startswith(prefixes) or not count and path not in sources:
            continue
        share = 100 * covered / count if count else 0.0
        low = goal and share < GOAL
        missed += low
        reached += goal and not low
        why = "below the goal" if count else "no target has it"
        print(f"{share:5.1f} %  {covered:5}/{count:<5}  {path}{f'  <- {why}' if low else ''}")
    print(f"{reached} of {reached + missed} files reach {GOAL} % of their lines")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
