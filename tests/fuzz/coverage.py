#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How much of the sources the kept inputs of the fuzz targets reach.

    tests/fuzz/coverage.py [--build build/coverage] --committed
    tests/fuzz/coverage.py [--build build/coverage] [--corpus build/clang] [--all] [PREFIX ...]

Builds the targets with clang's source-based coverage (DIR is made when it is not there), runs each
once over tests/fuzz/corpus and tests/fuzz/found (and, with --corpus, over what the runs of that
build directory have learned), and prints the lines of every file whose path begins with one of the
prefixes: what is judged unless told otherwise. --all: every file.

--committed: what make test does. Only the committed inputs.

Judged is what of the VMM a guest reaches (DEVICES), and what parses bytes of guests, VMMs, proxies, clients
and servers elsewhere (PARSERS). The exit status is 0 when each of these files reaches GOAL percent; one that
no target has reaches none.

Not among the parsers, since inputs reach less of them: daemon/vmm_client.c and daemon/vmm_guest.c, of which
much is the start of a template and a VMM that does not read, and what holds proxies in the daemon: the rig
(daemon_rig.h) plays neither. daemon/diff.c: much of it is for answers of many KiB. And the agent's
(src/agent), whose other side is the host.
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
DEVICES = [f"src/vmm/{part}" for part in ("virtio/", "irq/", "dev/", "disk/", "boot/", "core/exit.c")]
PARSERS = """
src/cli/http_reply.c
src/daemon/agent_client.c src/daemon/agent_failure.c src/daemon/changes.c src/daemon/compare.c
src/daemon/egress/grant.c src/daemon/egress/proxy_msg.c src/daemon/egress/record.c
src/daemon/exec_frames.c src/daemon/file_entry.c src/daemon/json_span.c src/daemon/query.c
src/daemon/route.c src/daemon/vmm_claim.c src/daemon/vmm_fork.c
src/egress/addr.c src/egress/addr_ranges.c src/egress/connect_head.c src/egress/hello.c
src/egress/http/chunks.c src/egress/http/fields.c src/egress/http/head.c src/egress/http/target.c
src/egress/names.c src/egress/rules.c src/egress/rules_entry.c src/egress/rules_parse.c
src/egress/rules_paths.c src/egress/socks.c
src/lib/fdpass.c src/lib/utf8.c src/lib/websocket.c src/proto/control.c src/proto/frame.c
""".split()
JUDGED = DEVICES + PARSERS
GOAL = 85
FLAGS = "-fprofile-instr-generate -fcoverage-mapping"


def build(directory: Path) -> list[Path]:
    """Makes or refreshes the build directory: the programs of all targets."""
    if not (directory / "build.ninja").exists():
        subprocess.run(
            ["meson", "setup", str(directory), str(ROOT), "-Dfuzz=true", "-Dtests=false"]
            + [f"-Dc_args={FLAGS}", "-Dc_link_args=-fprofile-instr-generate"],
            # What Meson tries out leaves a profile, too.
            env={**os.environ, "CC": "clang", "LLVM_PROFILE_FILE": "/dev/null"},
            stdout=subprocess.DEVNULL,
            check=True,
        )
    subprocess.run(["ninja", "--quiet", "-C", str(directory), "fuzz"], check=True)
    return sorted(p for p in (directory / "tests/fuzz").glob("fuzz_*") if p.is_file())


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
    return {path: (0, 0) for path in [*paths, *PARSERS] if path.startswith(tuple(JUDGED))}


def main() -> int:
    parser = argparse.ArgumentParser(description="coverage of the fuzz targets")
    parser.add_argument("--build", default="build/coverage", help="build directory")
    parser.add_argument("--committed", action="store_true", help="committed inputs alone")
    parser.add_argument("--corpus", help="build directory whose runs have learned something")
    parser.add_argument("--all", action="store_true", help="every file")
    parser.add_argument("prefixes", nargs="*", metavar="PREFIX", default=JUDGED)
    args = parser.parse_args()
    if args.committed and args.corpus:
        parser.error("--committed is without what runs have learned")
    directory = Path(args.build).resolve()
    learned = Path(args.corpus).resolve() if args.corpus else None
    programs = build(directory)
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
