#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs all tests and ends with one line: how many passed, failed and were skipped.

A stage is one command. What it counted is read from its own report (JUnit for pytest, the closing
lines of cmocka, the last line of tests/fuzz/run.py); a stage without a report counts as one test.
A stage that ends badly without a failed test in its report counts as one failure, so that nothing
is lost between the two.

A few failed tests of a stage of pytest or cmocka are run once more, by themselves. What passes then
counts as passed, and is named at the end as unsteady: a defect, of the test or of what it tests, to be
found. What fails twice has failed. Both are named at the end with what they said: often the end is all
that is kept of a run. So are fuzz targets that got too little of the processors for more than what is kept
of them: slow, and passed; and claims of docs/threat-model.md of which a test was skipped wherever it came.

Three lanes run beside each other, since all mostly wait: stages with real guests, which on many
machines share one emulated processor, those of the daemon and then more with real guests, and all
others. A fourth one, the fuzz targets, gets what the others leave of the processors (nice 19). What
they need, the builds, comes first. FUZZ_SECONDS (60) is the time of each fuzz target.

    tests/run.py --build build [--only STAGE ...] [--list]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"
AGAIN_MAX = 5  # failed tests of a stage that are run once more
SAID_MAX = 300  # characters of what a failed test said, in its line at the end
# What the fuzz targets of a run may take in all beside FUZZ_SECONDS of each: the extra time of
# tests/fuzz/run.py, and the rest for starts, which take their time beside busy lanes. With 60 seconds of
# each that is about an hour: a run of all tests has to fit into one and a half.
FUZZ_SLACK_S = 1800
SANITIZER_ENV = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}
# All races of a run are told; one is enough for its daemon to end badly.
TSAN_ENV = {"TSAN_OPTIONS": "halt_on_error=0:exitcode=66"}
# Clients that meet in one sandbox; and what has a thread of its own: the loading of images, and
# control groups (skipped where none are delegated).
TSAN_TESTS = [
    "tests/daemon/test_stress.py",
    "tests/daemon/test_template.py",
    "tests/daemon/test_cgroups.py",
    "tests/daemon/test_store.py::test_the_loop_waits_for_no_disk",
]


@dataclass
class Counts:
    """Tests that passed, failed and were skipped; names of those that failed, as far as they have
    one, of those that passed the second time, and of fuzz targets that did too little; what they said,
    by name. And what ran, and what was skipped: the file, the function and its parameters."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    names: list[str] = field(default_factory=list)
    unsteady: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    def add(self, other: "Counts") -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.names += other.names
        self.unsteady += other.unsteady
        self.slow += other.slow
        self.said |= other.said
        self.ran |= other.ran
        self.left |= other.left

    def after(self, again: "Counts") -> "Counts":
        """Of a run, and of a second one of what failed in it (or more): what has failed twice."""
        if again.skipped > self.skipped:
            return self  # a test that failed and is skipped then has not passed
        unsteady = [name for name in self.names if name not in again.names]
        passed = self.passed + self.failed - again.failed
        said = self.said | again.said
        ran, left = self.ran | again.ran, self.left | again.left
        return Counts(passed, again.failed, self.skipped, again.names, unsteady, [], said, ran, left)


@dataclass
class Stage:
    """One command, how to read its counts ('check', 'cmocka', 'fuzz' or 'pytest'), and its lane."""

    name: str
    kind: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    timeout: int = 900
    lane: str = "native"  # or "first", before all lanes, "daemon", "guests", "fuzz"


def c_files() -> list[str]:
    """All C files of the project, as git knows them (a tree without git: as they lie there)."""
    out = subprocess.run(
        ["git", "ls-files", "*.c", "*.h"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if out.returncode == 0 and out.stdout:
        return out.stdout.split()
    found = [p for top in ("src", "tests", "bench") for p in (ROOT / top).rglob("*.[ch]")]
    return [str(p.relative_to(ROOT)) for p in found]


def setup_build(directory: Path, options: list[str], *targets: str) -> list[str]:
    """Shell command that makes or refreshes a build directory and compiles targets, or all of it."""
    setup = f"meson setup {directory} . {' '.join(options)} >{directory}.log 2>&1"
    return [
        "sh",
        "-c",
        f"[ -e {directory}/build.ninja ] || {setup} || {{ cat {directory}.log; exit 1; }};"
        f" exec ninja -C {directory} {' '.join(targets)}",
    ]


def fuzz_stages(clang: Path) -> list[Stage]:
    """Every input that is kept, once, and how much of devices and parsers that reaches; and every target
    for a while, one at a time."""
    command = [PYTHON, "tests/fuzz/run.py", "--build", str(clang)]
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    count = len(list((ROOT / "tests/fuzz").glob("fuzz_*.c")))
    # Where sessions are scheduled as groups (autogroup of sched(7)) it is the group that must be
    # nice: run_fuzz() gives it a session of its own.
    humbly = 'echo 19 2>/dev/null >/proc/self/autogroup; exec nice -n 19 "$@"'
    nice = ["sh", "-c", humbly, "sh", *command, "--jobs", "1", "--seconds", str(seconds)]
    return [
        Stage("fuzz-replay", "fuzz", [*command, "--replay"], timeout=1800),
        # A build of its own: some minutes of a processor, the first time.
        Stage(
            "coverage",
            "check",
            [PYTHON, "tests/fuzz/coverage.py", "--build", str(clang.parent / "coverage"), "--committed"],
            timeout=3600,
        ),
        Stage("fuzz", "fuzz", nice, timeout=count * seconds + FUZZ_SLACK_S, lane="fuzz"),
    ]


def stages(build: Path) -> list[Stage]:
    """All stages, cheap ones first."""
    asan, clang, tsan = build / "asan", build / "clang", build / "tsan"
    listed = [
        Stage(
            "format",
            "check",
            ["clang-format", "--dry-run", "--Werror", *c_files()],
            lane="first",
        ),
        Stage(
            "build-asan",
            "check",
            setup_build(
                asan, ["-Db_sanitize=address,undefined", "-Db_lundef=false", "-Doptimization=1"]
            ),
            lane="first",
        ),
        Stage(
            "build-clang",
            "check",
            setup_build(clang, ["-Dfuzz=true"]),
            env={"CC": "clang"},
            lane="first",
        ),
        # With the builds, as two compilations beside each other gain nothing; one program of it only.
        Stage(
            "build-tsan",
            "check",
            setup_build(tsan, ["-Db_sanitize=thread", "-Db_lundef=false"], "podflared"),
            lane="first",
        ),
        Stage("types", "check", [PYTHON, "-m", "mypy", "--strict", f"--cache-dir={build}/mypy", "sdk/python/podflare"]),
        Stage("unit", "cmocka", [str(asan / "tests/unit")], env=SANITIZER_ENV),
        # A minute and a half of a processor.
        Stage("proof", "check", [PYTHON, "tests/proof/run.py"], timeout=3600),
        *fuzz_stages(clang),
    ]
    for name, directory in (
        ("docs", "tests/docs"),
        ("binaries", "tests/binaries"),
        ("image", "tests/image"),
        ("repl", "tests/repl"),
        ("agent", "tests/agent"),
        ("vmm", "tests/vmm"),
        ("egress", "tests/egress"),
        ("daemon", "tests/daemon"),
        ("sdk", "sdk/python/tests"),
        ("box", "tests/box"),
        ("guest", "tests/guest"),
    ):
        if name == "daemon":  # with the sanitizers in it; what measures, without them
            env = {**SANITIZER_ENV, "PODFLARED": str(asan / "podflared")}
            listed.append(
                Stage("daemon", "pytest", [directory], env=env, timeout=3000, lane="daemon")
            )
            command = [directory, "-m", "bounds"]
            listed.append(Stage("daemon-bounds", "pytest", command, lane="daemon"))
            env = {**TSAN_ENV, "PODFLARED": str(tsan / "podflared")}
            listed.append(Stage("daemon-tsan", "pytest", TSAN_TESTS, env=env, lane="daemon"))
        elif name == "egress":  # the same; and in its jail, which sanitizers do not allow
            env = {**SANITIZER_ENV, "PODFLARE_EGRESS": str(asan / "podflare-egress")}
            command = [directory, "-m", "not plain"]
            listed.append(Stage("egress", "pytest", command, env=env, timeout=1800))
            listed.append(Stage("egress-jail", "pytest", [directory, "-m", "jail or plain"]))
        elif name == "vmm":  # in its jail; and with the sanitizers, which the jail does not allow
            env = {**SANITIZER_ENV, "PODFLARE_BUILD": str(asan), "VMM_STILL_UNJAILED": "1"}
            listed.append(Stage("vmm", "pytest", [directory]))
            listed.append(Stage("vmm-asan", "pytest", [directory], env=env))
        else:
            lane = "guests" if name in ("box", "guest") else "native"
            listed.append(Stage(name, "pytest", [directory], timeout=1800, lane=lane))
    return listed + e2e_stages()


def e2e_stages() -> list[Stage]:
    """The end-to-end tests in two halves, each with a daemon of its own: the second one is run when
    the daemon's lane is done with its own tests."""
    directory = ROOT / "tests/e2e"
    alone = [directory / name for name in ("test_host.py", "test_emulator_end.py")]
    second = [*alone, *sorted(directory.glob("test_egress_*.py"))]
    files = [str(p.relative_to(ROOT)) for p in second]
    first = ["tests/e2e", *(f"--ignore={file}" for file in files)]
    return [
        Stage("e2e", "pytest", first, timeout=4200, lane="guests"),
        Stage("e2e-egress", "pytest", files, timeout=4200, lane="daemon"),
    ]


def run_cmocka(stage: Stage, log) -> Counts:
    """Runs every test program of a directory, and those with a failed test once more."""
    counts = Counts()
    programs = sorted(
        p for p in Path(stage.command[0]).glob("test_*") if p.is_file() and os.access(p, os.X_OK)
    )
    if not programs:
        log.write(f"no test programs in {stage.command[0]}\n")
        return Counts(failed=1)
    for program in programs:
        one = cmocka_once(stage, program, log)
        if 0 < one.failed <= AGAIN_MAX:
            log.write(f"\n{program.name} once more\n")
            one = one.after(cmocka_once(stage, program, log))
        counts.add(one)
    return counts


def cmocka_once(stage: Stage, program: Path, log) -> Counts:
    """One test program. When it ends badly without a failed test it has failed as a whole."""
    try:
        done = subprocess.run(
            [str(program)],
            cwd=ROOT,
            env={**os.environ, **stage.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=stage.timeout,
            check=False,
        )
        text, ended = done.stdout.decode(errors="replace"), f"ended with status {done.returncode}"
    except subprocess.TimeoutExpired as e:
        text, ended = (e.stdout or b"").decode(errors="replace"), f"took over {stage.timeout} s"
    log.write(text)
    found = {
        label: re.findall(rf"^\[  {label} +\] (?!\d+ test)(\w+)$", text, re.M)
        for label in ("FAILED", "SKIPPED", " *OK")
    }
    passed = sum(int(n) for n in re.findall(r"\[  PASSED +\] (\d+) test", text))
    failed = list(dict.fromkeys(found["FAILED"]))  # a failed one is told twice
    one = Counts(passed, len(failed), len(set(found["SKIPPED"])))
    one.ran, one.left = (
        {f"tests/unit/{program.name}.c::{name}" for name in found[label]}
        for label in (" *OK", "SKIPPED")
    )
    one.names = [f"{stage.name}::{program.name}::{name}" for name in failed]
    for name, full in zip(failed, one.names):
        test = re.search(rf"^\[ RUN +\] {name}$(.*?)^\[  FAILED +\] {name}$", text, re.M | re.S)
        lines = re.findall(r"^\[ +(?:ERROR|LINE) +\] --- (.+)$", test.group(1), re.M) if test else []
        one.said[full] = "; ".join(lines)
    if ended != "ended with status 0" and not failed or passed + len(failed) == 0:
        full = f"{stage.name}::{program.name}"
        log.write(f"{program.name} {ended}\n")
        one.failed += 1
        one.names.append(full)
        one.said[full] = " ".join([ended, *re.findall(r"^SUMMARY: .+$|.*runtime error: .+$", text, re.M)])
    return one


def run_fuzz(stage: Stage, log) -> Counts:
    """Runs tests/fuzz/run.py: a test is a target."""
    status = stream(stage.command, {**os.environ, **stage.env}, log, stage.timeout, session=True)
    text = Path(log.name).read_text(encoding="utf-8", errors="replace")
    total = re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", text, re.M)
    counts = Counts(*(int(n) for n in total.groups())) if total else Counts()
    lists = {"FAILED": counts.names, "UNSTEADY": counts.unsteady, "SLOW": counts.slow}
    for name, how, told in re.findall(r"^(\w+) +(FAILED|UNSTEADY|SLOW).*\n((?:    .*\n)*)", text, re.M):
        full = f"{stage.name}::{name}"
        lists[how].append(full)
        counts.said[full] = told
    if status != 0 and counts.failed == 0 or counts.passed + counts.failed == 0:
        counts.failed += 1
    return counts


def run_pytest(stage: Stage, log, build: Path) -> Counts:
    """Runs pytest on a directory, and what failed there once more."""
    cache = build / "test-logs" / f"{stage.name}.cache"
    shutil.rmtree(cache, ignore_errors=True)
    counts = pytest_once(stage, log, build, cache, [])
    failed = counts.names
    if not 0 < len(failed) <= AGAIN_MAX or len(failed) != counts.failed:
        return counts  # many failures, or one that is no test's, are no accident
    log.write("\nthe failed ones once more\n")
    log.flush()
    again = pytest_once(stage, log, build, cache, ["--last-failed", "--lfnf=none"])
    if again.passed + again.failed != len(failed):
        return counts  # something else than these was run, or one was skipped
    return counts.after(again)


def pytest_once(
    stage: Stage, log, build: Path, cache: Path, options: list[str]
) -> Counts:
    """One run of pytest: what its JUnit report counts."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        env = {
            **os.environ,
            "PODFLARE_BUILD": str(build),
            "PYTHONPATH": str(ROOT / "sdk/python"),
            **stage.env,
        }
        status = stream(
            [PYTHON, "-m", "pytest", "-q", "-ra", "--durations=10", "-o", f"cache_dir={cache}"]
            + [f"--junitxml={report.name}", *options, *stage.command],
            env,
            log,
            stage.timeout,
        )
        counts = Counts()
        try:
            for suite in ElementTree.parse(report.name).getroot().iter("testsuite"):
                total, failed = int(suite.get("tests", 0)), int(suite.get("failures", 0))
                errors, skipped = int(suite.get("errors", 0)), int(suite.get("skipped", 0))
                counts.add(Counts(total - failed - errors - skipped, failed + errors, skipped))
                for case in suite.iter("testcase"):
                    (counts.left if case.find("skipped") is not None else counts.ran).add(
                        f"{where_of(stage)}/{case.get('classname', '').split('.')[-1]}.py::{case.get('name')}"
                    )
                    bad = [e for e in case if e.tag in ("failure", "error")]
                    if bad:
                        counts.names.append(f"{case.get('classname')}::{case.get('name')}")
                        counts.said[counts.names[-1]] = bad[0].get("message", "")
        except ElementTree.ParseError:
            log.write("pytest left no report\n")
        if status != 0 and counts.failed == 0 or counts.passed + counts.failed == 0:
            counts.failed += 1
        return counts


def where_of(stage: Stage) -> str:
    """The directory of the tests of a stage of pytest: it has one only."""
    path = next((ROOT / word for word in stage.command if not word.startswith("-")), ROOT)
    path = path.parent if ".py" in path.name else path
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def stream(
    command: list[str], env: dict[str, str], log, timeout: int, session: bool = False
) -> int:
    """Runs a command with its output in the log; its exit status, or 124 when it took too long.
    session: in one of its own.

    One that takes too long is interrupted first, so that it can end what it started.
    """
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=session,
    ) as process:
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            log.write(f"\ninterrupted after {timeout} s\n")
            log.flush()
            process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        return 124


def run_stage(stage: Stage, build: Path, log) -> Counts:
    """Runs one stage."""
    if stage.kind == "cmocka":
        return run_cmocka(stage, log)
    if stage.kind == "fuzz":
        return run_fuzz(stage, log)
    if stage.kind == "pytest":
        return run_pytest(stage, log, build)
    status = stream(stage.command, {**os.environ, **stage.env}, log, stage.timeout)
    return Counts(passed=1) if status == 0 else Counts(failed=1)


class Run:
    """A run of stages: where their logs go, what they counted, and their lines on stdout."""

    def __init__(self, build: Path) -> None:
        self.build = build
        self.logs = build / "test-logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.total = Counts()
        self.lock = threading.Lock()

    def lane(self, chosen: list[Stage]) -> None:
        """Runs stages one after the other."""
        for stage in chosen:
            with self.lock:
                print(f"{stage.name:12} ...", flush=True)
            path = self.logs / f"{stage.name}.log"
            started = time.monotonic()
            try:
                with path.open("w", encoding="utf-8", errors="replace") as log:
                    counts = run_stage(stage, self.build, log)
            except Exception as e:  # pylint: disable=broad-except  # it must count, whatever it is
                counts = Counts(failed=1, names=[stage.name], said={stage.name: repr(e)})
                path.write_text(f"{stage.name}: {e!r}\n", encoding="utf-8")
            with self.lock:
                self.tell(stage, path, counts, time.monotonic() - started)

    def tell(self, stage: Stage, path: Path, counts: Counts, took: float) -> None:
        """The line of a stage, and the end of its log when something was wrong."""
        print(
            f"{stage.name:12} {counts.passed} passed, {counts.failed} failed,"
            f" {counts.skipped} skipped  ({took:.0f} s)"
        )
        if counts.failed or counts.unsteady:
            print(f"--- end of {path}")
            text = path.read_text(encoding="utf-8", errors="replace")
            print("\n".join(text.splitlines()[-80:]))
            print("---")
        sys.stdout.flush()
        self.total.add(counts)
        if counts.failed > len(counts.names):
            self.total.names.append(f"{counts.failed - len(counts.names)} in {stage.name}")


def less(counts: Counts, document: Path) -> list[str]:
    """Of each claim with tests that were skipped wherever they came, or some parameters of theirs, a line
    with their names."""
    left = {name.partition("[")[0] for name in counts.left - counts.ran}
    lines = []
    for row in document.read_text(encoding="utf-8").partition("## Claims and their tests")[2].splitlines():
        names = [name for name in re.findall(r"`([^`]+::[^`]+)`", row) if name in left]
        if row.startswith("|") and names:
            lines.append(f"{' '.join(row[1:].partition('|')[0].split())[:SAID_MAX]}: {', '.join(names)}")
    return lines


def said(counts: Counts, name: str) -> str:
    """What a failed test said, as the end of its line."""
    text = " ".join(counts.said.get(name, "").split())
    return f": {text[:SAID_MAX]}" if text else ""


def main() -> int:
    # In the background of a script SIGINT is ignored, and would be in everything that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description="runs all tests")
    parser.add_argument("--build", default="build", help="build directory")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="only these stages")
    parser.add_argument("--list", action="store_true", help="names of the stages")
    args = parser.parse_args()
    build = Path(args.build).resolve()
    chosen = [s for s in stages(build) if not args.only or s.name in args.only]
    if args.list:
        print("\n".join(s.name for s in chosen))
        return 0
    run = Run(build)
    run.lane([s for s in chosen if s.lane == "first"])
    lanes = [
        threading.Thread(target=run.lane, args=([s for s in chosen if s.lane == lane],), daemon=True)
        for lane in ("native", "daemon", "guests", "fuzz")
    ]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    total = run.total
    for line in less(total, ROOT / "docs/threat-model.md"):
        print(f"skipped, of a claim: {line}")
    for name in total.slow:
        print(f"slow: {name}{said(total, name)}")
    for name in total.unsteady:
        print(f"unsteady: {name} failed, and passed when it was run once more{said(total, name)}")
    for name in total.names:
        print(f"failed: {name}{said(total, name)}")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main())
