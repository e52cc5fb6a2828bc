#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How much of the sources the kept inputs of the fuzz targets reach.

    tests/fuzz/coverage.py [--build build/coverage] [--corpus build/clang] [--all] [PREFIX ...]

Builds the targets with clang's source-based coverage (DIR is made when it is not there), runs each
once over tests/fuzz/corpus and tests/fuzz/found (and, with --corpus, over what the runs of that
build directory have learned), and prints the lines of every file whose path begins with one of the
prefixes: the device files of the VMM unless told otherwise. --all: every file.

The exit status is 0 when each of the device files reaches GOAL percent.
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
DEVICES = ["src/vmm/virtio/", "src/vmm/irq/", "src/vmm/dev/", "src/vmm/disk/"]
GOAL = 85
FLAGS = "-fprofile-instr-generate -fcoverage-mapping"


def build(directory: Path) -> None:
    """Makes or refreshes the build directory."""
    if not (directory / "build.ninja").exists():
        subprocess.run(
            ["meson", "setup", str(directory), str(ROOT), "-Dfuzz=true", "-Dtests=false"]
            + [f"-Dc_args={FLAGS}", "-Dc_link_args=-fprofile-instr-generate"],
            env={**os.environ, "CC": "clang"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
    subprocess.run(["ninja", "--quiet", "-C", str(directory), "fuzz"], check=True)


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


def main() -> int:
    parser = argparse.ArgumentParser(description="coverage of the fuzz targets")
    parser.add_argument("--build", default="build/coverage", help="build directory")
    parser.add_argument("--corpus", help="build directory whose runs have learned something")
    parser.add_argument("--all", action="store_true", help="every file")
    parser.add_argument("prefixes", nargs="*", metavar="PREFIX", default=DEVICES)
    args = parser.parse_args()
    directory = Path(args.build).resolve()
    learned = Path(args.corpus).resolve() if args.corpus else None
    build(directory)
    (directory / "profiles").mkdir(exist_ok=True)
    programs = sorted(p for p in (directory / "tests/fuzz").glob("fuzz_*") if p.is_file())
    profiles = [p for p in (replay(directory, t, learned) for t in programs) if p]
    missed = 0
    prefixes = ("",) if args.all else tuple(args.prefixes or DEVICES)
    for path, (covered, count) in sorted(lines_of(directory, programs, profiles).items()):
        if not path.startswith(prefixes) or not count:
            continue
        share = 100 * covered / count
        low = share < GOAL and path.startswith(tuple(DEVICES))
        missed += low
        print(f"{share:5.1f} %  {covered:5}/{count:<5}  {path}{'  <- below the goal' if low else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
