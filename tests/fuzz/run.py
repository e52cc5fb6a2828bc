#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the fuzz targets: for a time, or once over all inputs that are kept.

    tests/fuzz/run.py --build build/clang [--seconds 1800] [--cpu] [--jobs N] [TARGET ...]
    tests/fuzz/run.py --build build/clang --replay [TARGET ...]
    tests/fuzz/run.py --build build/clang --seeds 40 [TARGET ...]

The build directory is one of `CC=clang meson setup DIR -Dfuzz=true`. What is committed of a target
is in tests/fuzz/corpus/TARGET (seeds) and tests/fuzz/found/TARGET (inputs that once broke something,
each fixed since); what a run learns goes to DIR/fuzz/TARGET/corpus, from which the next run goes on.
--seeds takes from there, into the committed corpus, the few inputs that together cover the most, until
it has N of the target.

On a busy machine a target gets a part of the processors only: with --cpu the seconds are those that it
ran, however long that takes. What it got is in its line.

A target that was given too little of the processors for more than its corpus goes on until it has
tried as many new inputs as it has old ones, for EXTRA_EACH_S more seconds at most, and for EXTRA_S in all
targets of a run together, by the clock. One that could not do it even so is told of as SLOW: it has run all
that is kept once, and has passed. One that has not even done that has failed.

A find is tried again by itself. One that does not come again is told of as UNSTEADY, with what was said and
where the input is, and the target has passed, only if it was about time: a hang, or MUST_SOON() of
input.h. Everything else has failed, whether it comes again or not: no machine is so busy that memory
errors come of it.

One line for each target, then one of counts. The exit status is 0 when no target has failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# A target that hangs is a find. Of a machine that is busy it gets a small part: the bound is wide.
HANG_S = 120
MAX_LEN = 4096
TRIES = 3  # of a find by itself
# For targets that have not done their least in their time: of a run in all, and of one of them.
EXTRA_S = 600
EXTRA_EACH_S = 120
RUNNING: set[subprocess.Popen] = set()
# Of the leaks that libFuzzer finds by itself, the sanitizer tells the place.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


@dataclass
class Result:
    """What one target did."""

    name: str
    ok: bool = True
    text: str = ""  # the rest of its line
    told: list[str] = field(default_factory=list)  # lines below it


class Extra:
    """Seconds that the targets of a run may still take beyond their own."""

    def __init__(self, seconds: float = EXTRA_S) -> None:
        self.left = seconds
        self.lock = threading.Lock()

    def take(self) -> int:
        """A share; what is not used of it comes back."""
        with self.lock:
            share = int(max(0, min(self.left, EXTRA_EACH_S)))
            self.left -= share
            return share

    def give_back(self, seconds: float) -> None:
        """Below zero: it took longer than its share."""
        with self.lock:
            self.left += seconds


def about_time(output: str) -> bool:
    """A find that a busy machine may have made: nothing was said but that something took too long."""
    late = re.search(r"ERROR: libFuzzer: timeout|^\S+\.[ch]:\d+: not yet: ", output, re.MULTILINE)
    return bool(late) and not re.search(r"ERROR: \w+Sanitizer|runtime error: ", output)


class Target:
    """One target: its program and its directories."""

    def __init__(self, build: Path, program: Path, what: str = "fuzz") -> None:
        self.program = program
        self.name = program.name.removeprefix("fuzz_")
        self.work = build / "fuzz" / self.name
        self.corpus = self.work / "corpus"
        self.finds = self.work / "finds"
        # A replay may run beside it.
        self.log = self.work / f"{what}.log"
        self.seeds = HERE / "corpus" / self.name
        self.found = HERE / "found" / self.name
        self.cpu_s = 0.0

    def kept(self) -> list[Path]:
        """The committed inputs."""
        dirs = [d for d in (self.seeds, self.found) if d.is_dir()]
        return sorted(p for d in dirs for p in d.iterdir() if p.is_file())

    def call(self, arguments: list[str], limit_s: int | None) -> tuple[int, str]:
        """Runs the program: its exit status and what it wrote, which stays in the log. What it used
        of the processors is added to cpu_s."""
        self.work.mkdir(parents=True, exist_ok=True)
        self.finds.mkdir(exist_ok=True)
        command = [str(self.program), f"-artifact_prefix={self.finds}/", f"-timeout={HANG_S}"]
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command + arguments,
                cwd=self.work,
                env={**os.environ, **OPTIONS},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            RUNNING.add(process)
            late = threading.Timer(limit_s or threading.TIMEOUT_MAX, process.kill)
            late.daemon = True
            late.start()
            # Unlike Popen's own this wait tells what the program has used.
            _, wait_status, used = os.wait4(process.pid, 0)
            process.returncode = status = os.waitstatus_to_exitcode(wait_status)
            late.cancel()
            RUNNING.discard(process)
        self.cpu_s += used.ru_utime + used.ru_stime
        return status, self.log.read_text(encoding="utf-8", errors="replace")

    def failed(self, status: int, output: str) -> Result:
        """A result with what somebody needs who is to look into it."""
        result = Result(self.name, False, f"FAILED (status {status})")
        for line in output.splitlines():
            # A broken invariant of the target, or what a sanitizer says.
            if re.search(r"^\S+\.[ch]:\d+: |ERROR: |runtime error: |^SUMMARY: ", line):
                result.told.append(line.strip())
        del result.told[6:]
        for saved in re.findall(r"Test unit written to (\S+)", output):
            result.told += [
                f"reproduce: {shown(self.program)} {shown(Path(saved))}",
                f"keep: mkdir -p {shown(self.found)} &&"
                f" cp {shown(Path(saved))} {shown(self.found)}/NAME"
                "  (replayed by every test run)",
            ]
        result.told.append(f"log: {shown(self.log)}")
        return result

    def judged(self, result: Result, output: str) -> Result:
        """A failed run, with whether its find comes again; unsteady, if it does not and may have been
        an accident."""
        finds = re.findall(r"Test unit written to (\S+)", output)
        log = self.log.read_bytes()
        again = any(self.call([find], 10 * HANG_S)[0] != 0 for find in finds for _ in range(TRIES))
        self.log.write_bytes(log)
        if finds and not again:
            result.ok = about_time(output)
            result.text += f", and not again in {TRIES} tries"
            if result.ok:
                result.text = f"UNSTEADY: {result.text}"
        return result

    def replay(self) -> Result:
        """Every committed input once."""
        kept = self.kept()
        if not kept:
            return Result(self.name, False, f"FAILED: there is no seed in {shown(self.seeds)}")
        dirs = [str(d) for d in (self.seeds, self.found) if d.is_dir()]
        status, output = self.call(["-runs=0", *dirs], 600)
        if status != 0:
            return self.failed(status, output)
        return Result(self.name, True, f"{len(kept)} inputs, ok")

    def fuzz(self, seconds: int, by_cpu: bool, extra: Extra) -> Result:
        """Runs it for so long, beginning with all that is there. By the processor's time: libFuzzer
        knows the clock only, so it is run again for what is missing. The inputs that are there do not
        count; of new ones there should be as many, for which it may take of the extra time."""
        self.corpus.mkdir(parents=True, exist_ok=True)
        dirs = [str(d) for d in (self.corpus, self.seeds, self.found) if d.is_dir()]
        old = new = executions = 0
        before, left, limit, share = None, float(seconds), [f"-max_total_time={seconds}"], 0
        while limit:
            options = [*limit, f"-max_len={MAX_LEN}", "-print_final_stats=1"]
            began = time.monotonic()
            status, output = self.call([*options, *dirs], int(left) + 10 * HANG_S)
            if share:
                extra.give_back(share - (time.monotonic() - began))
            if status != 0:
                return self.judged(self.failed(status, output), output)
            runs = re.search(r"stat::number_of_executed_units: (\d+)", output)
            edges = [int(n) for n in re.findall(r" cov: (\d+) ", output)]
            first = re.search(r"^#(\d+)\s+INITED\s+cov: (\d+)", output, re.MULTILINE)
            if not runs or not edges or not first:
                return self.failed(status, output)
            executions += int(runs.group(1))
            new += int(runs.group(1)) - int(first.group(1))
            old = old or int(first.group(1))
            before = int(first.group(2)) if before is None else before
            left = seconds - self.cpu_s if by_cpu and not share else 0
            if left >= 1:
                limit = [f"-max_total_time={int(left)}"]
            elif new < old and not share and (share := extra.take()):
                # All that is there by now is run first, after an empty one.
                there = 1 + sum(len(os.listdir(d)) for d in dirs)
                left = share
                limit = [f"-runs={there + old - new}", f"-max_total_time={share}"]
            else:
                limit = []
        text = f"{executions} executions, {edges[-1] - before} new edges of {edges[-1]}"
        speed = executions / max(self.cpu_s, 1)
        text = f"{text}, {self.cpu_s:.0f} s of the processor, {speed:.0f} a second"
        if new >= old:
            return Result(self.name, True, f"{text}, ok")
        told = f"only {new} new inputs for {old} old ones, with {share} seconds more"
        return Result(self.name, True, f"SLOW: {text}", [told, f"log: {shown(self.log)}"])

    def take_seeds(self, most: int) -> Result:
        """Adds to the committed corpus the inputs that cover the most."""
        chosen = self.work / "seeds"
        shutil.rmtree(chosen, ignore_errors=True)
        chosen.mkdir(parents=True)
        dirs = [str(d) for d in (self.seeds, self.corpus) if d.is_dir()]
        options = ["-set_cover_merge=1", f"-max_len={MAX_LEN}"]
        status, output = self.call([*options, str(chosen), *dirs], None)
        if status != 0:
            return self.failed(status, output)
        known = {p.read_bytes() for p in self.kept()}
        names = {p.name for p in self.seeds.glob("*")} if self.seeds.is_dir() else set()
        room = max(0, most - len(names))
        # They are written in the order in which they were chosen: the one that adds most first.
        new = sorted(chosen.iterdir(), key=lambda p: p.stat().st_mtime_ns)
        new = [p for p in new if p.read_bytes() not in known][:room]
        self.seeds.mkdir(parents=True, exist_ok=True)
        for path in new:
            shutil.copy(path, self.seeds / path.name)
        return Result(self.name, True, f"{len(new)} seeds more, {len(self.kept())} in all")


def shown(path: Path) -> str:
    """A path as one types it at the top of the tree."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def targets(build: Path, names: list[str], what: str = "fuzz") -> list[Target]:
    """The targets that the build directory has, or some of them, for one of the jobs that main()
    knows: each has logs of its own."""
    programs = sorted(p for p in (build / "tests/fuzz").glob("fuzz_*") if p.is_file())
    found = [Target(build, p, what) for p in programs]
    unknown = set(names) - {t.name for t in found}
    if unknown or not found:
        what = ", ".join(sorted(unknown)) or "targets"
        sys.exit(f"{shown(build)} has no {what}: CC=clang meson setup DIR -Dfuzz=true, ninja fuzz")
    sources = {p.stem.removeprefix("fuzz_") for p in HERE.glob("fuzz_*.c")}
    missing = sources - {t.name for t in found}
    if missing and not names:
        sys.exit(f"{shown(build)} lacks {', '.join(sorted(missing))}: ninja -C {shown(build)} fuzz")
    return [t for t in found if (t.name in names or not names) and t.name in sources]


def run(target: Target, args: argparse.Namespace, extra: Extra) -> bool:
    """One target, and its line."""
    if args.replay:
        result = target.replay()
    elif args.seeds:
        result = target.take_seeds(args.seeds)
    else:
        result = target.fuzz(args.seconds, args.cpu, extra)
    lines = [f"{result.name:14} {result.text}"] + [f"    {t}" for t in result.told]
    print("\n".join(lines), flush=True)
    return result.ok


def main() -> int:
    # In the background of a script SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description="runs the fuzz targets")
    parser.add_argument("--build", default="build/clang", help="build directory")
    parser.add_argument("--seconds", type=int, default=1800, help="time of each target")
    parser.add_argument("--cpu", action="store_true", help="the time that a target ran counts")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--replay", action="store_true", help="committed inputs, each once")
    parser.add_argument("--seeds", type=int, metavar="N", help="add to the committed corpus")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="only these")
    args = parser.parse_args()
    what = "replay" if args.replay else "seeds" if args.seeds else "fuzz"
    chosen = targets(Path(args.build).resolve(), args.targets, what)
    extra = Extra()
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run, t, args, extra) for t in chosen]
        try:
            passed = sum(r.result() for r in runs)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(RUNNING):
                process.kill()
            return 130
    print(f"{passed} passed, {len(chosen) - passed} failed, 0 skipped")
    return 0 if passed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
