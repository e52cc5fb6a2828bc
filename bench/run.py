#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The figures of a whole system: prints one table, in Markdown.

    bench/run.py [--build DIR] [--starts N] [--creates N] [--forks N] [--execs N] [--burst N]
                 [--idle N] [--json FILE]

Times are what a program with the Python SDK on this machine sees, so they include the SDK, HTTP
and, in the emulated host, the way into it; where a row says "daemon", the daemon measured. Rows that
say "SDK" have another one that says "beside the daemon": the same calls, asked for by a small client
(bench/beside.c) in the place where the sandboxes are.

The ratio column sets a time in relation to starting a program and waiting for its end
(bench/forkexec.c) in that place: a figure that can be compared between a fast machine and an emulated
one. As what is measured from elsewhere has more in it than that place, the goals are those of the rows
"beside the daemon". Sandboxes are made without a pool, but where a row says so.

What the figures are to reach, and what others publish, is in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Mapping, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "sdk" / "python"))

from podflare import Client, Language, Sandbox  # noqa: E402

READY = re.compile(r"ready on (http://\S+)")

Figures = dict[str, list[float]]

# Forks into as many copies as the figure to reach speaks of.
FAN = 5

# What bench/beside.c measures, and the rows of it.
BESIDE = {
    "beside_create_used_us": "create to first exec answered, beside the daemon, ms",
    "beside_fork1_used_us": "fork n=1 to first exec answered, beside the daemon, ms",
    f"beside_fork{FAN}_used_us": f"fork n={FAN} to all {FAN} used, beside the daemon, ms",
    "beside_exec_python_us": "exec python `pass`, beside the daemon, ms",
    "beside_exec_bash_us": "exec bash `true`, beside the daemon, ms",
}

# p50 as a multiple of a program's start; the burst as a multiple of its own p50.
GOALS = {
    BESIDE["beside_create_used_us"]: 20.0,
    BESIDE[f"beside_fork{FAN}_used_us"]: 60.0,
    BESIDE["beside_exec_python_us"]: 1.0,
}
BURST_GOAL = 3.0


def percentile(values: Sequence[float], p: float) -> float:
    """Nearest rank: a value that was really measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)]


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Serve:
    """`podflare serve` for a while. `seconds` is the time from its start to its ready line."""

    def __init__(self, build: Path, state: str, pool: int) -> None:
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [str(build / "podflare"), "serve", "--addr", "127.0.0.1:0", "--state", state],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PODFLARE_POOL_SIZE": str(pool)},
        )
        self.said = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said += line
            match = READY.search(line)
            if match:
                self.seconds = time.perf_counter() - start
                self.url = match.group(1)
                break
        else:
            raise SystemExit(f"podflare serve did not get ready:\n{self.said}")
        # Its log must not fill the pipe.
        self._drain = subprocess.Popen(
            ["cat"], stdin=self._process.stdout, stdout=subprocess.DEVNULL
        )

    @property
    def emulated(self) -> bool:
        return "emulated" in self.said

    def __enter__(self) -> "Serve":
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._drain.wait()


def milliseconds(what: Callable[[], object]) -> float:
    start = time.perf_counter()
    what()
    return (time.perf_counter() - start) * 1000


def run_ok(sandbox: Sandbox, code: str = "pass", language: Language = "python") -> None:
    result = sandbox.run_code(code, language)
    if not result.ok:
        raise SystemExit(f"{language} {code!r} failed: {result!r}")


def measure_creates(client: Client, n: int, figures: Figures, name: str) -> None:
    """One after the other, each used once and closed."""
    for _ in range(n):
        start = time.perf_counter()
        sandbox = Sandbox(client=client)
        created = time.perf_counter()
        run_ok(sandbox)
        used = (time.perf_counter() - start) * 1000
        figures[f"{name} to first exec answered, SDK, ms"].append(used)
        figures[f"{name}, ms"].append((created - start) * 1000)
        ready_us = sandbox.info().ready_us
        if ready_us is not None:
            figures[f"{name}, daemon, ms"].append(ready_us / 1000)
        figures["close, ms"].append(milliseconds(sandbox.close))


def measure_forks(client: Client, n: int, figures: Figures) -> None:
    """Of a sandbox that has been used, each copy used once; every time from the same parent."""
    with Sandbox(client=client) as parent, ThreadPoolExecutor(FAN) as pool:
        run_ok(parent, "data = list(range(100_000))")
        for count in (1, FAN):
            copies_used = f"fork n={count} to " + (
                "first exec answered, SDK, ms" if count == 1 else f"all {count} used, SDK, ms"
            )
            for _ in range(n):
                start = time.perf_counter()
                with parent.fork(count) as copies:
                    forked = time.perf_counter()
                    list(pool.map(run_ok, copies))
                    figures[copies_used].append((time.perf_counter() - start) * 1000)
                    figures[f"fork n={count}, ms"].append((forked - start) * 1000)
                    if copies.pause_us is not None:
                        figures[f"fork n={count}: pause of the parent, daemon, ms"].append(
                            copies.pause_us / 1000
                        )
                # What the parent itself feels afterwards: its memory is shared now.
                figures["exec in the parent after a fork, ms"].append(
                    milliseconds(lambda: run_ok(parent))
                )


def measure_execs(client: Client, n: int, figures: Figures) -> None:
    commands: list[tuple[Language, str]] = [("python", "pass"), ("bash", "true")]
    with Sandbox(client=client) as sandbox:
        for language, code in commands:
            for index in range(n + 5):
                took = milliseconds(lambda: run_ok(sandbox, code, language))
                if index >= 5:
                    figures[f"exec {language} `{code}`, SDK, ms"].append(took)


def measure_burst(client: Client, n: int, figures: Figures) -> None:
    """All asked for at the same moment."""
    made: list[Sandbox] = []
    try:
        with ThreadPoolExecutor(n) as pool:
            # Connections first: they are not what is measured.
            list(pool.map(lambda _: client.health(), range(n)))
            figures[f"create, burst of {n}, ms"] += pool.map(
                lambda _: milliseconds(lambda: made.append(Sandbox(client=client))), range(n)
            )
    finally:
        for sandbox in made:
            sandbox.close()


def measure_client(url: str, args: argparse.Namespace) -> Figures:
    """What a user of the API sees, without a pool."""
    figures: Figures = defaultdict(list)
    with Client(host=url) as client:
        client.health()
        progress("the first sandbox")
        start = time.perf_counter()
        with Sandbox(client=client) as first:
            run_ok(first)
        figures["first create (boots the template), ms"].append(
            (time.perf_counter() - start) * 1000
        )
        progress(f"{args.creates} creates")
        measure_creates(client, args.creates, figures, "create")
        progress(f"{args.forks} forks of 1 and of {FAN}")
        measure_forks(client, args.forks, figures)
        progress(f"{args.execs} commands of each language")
        measure_execs(client, args.execs, figures)
        progress(f"{args.burst} creates at once")
        measure_burst(client, args.burst, figures)
    return figures


def measure_pool(url: str, creates: int, size: int) -> Figures:
    """The same with a pool that has had time to fill."""
    figures: Figures = defaultdict(list)
    progress(f"{creates} creates with a pool of {size}")
    with Client(host=url) as client:
        with Sandbox(client=client) as first:
            run_ok(first)
        for _ in range(creates):
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline and not any(
                vm.pool >= size for one in client.templates() for vm in one.vms
            ):
                time.sleep(0.1)
            measure_creates(client, 1, figures, f"create, pool of {size},")
    # Without "SDK", as nothing is measured of a pool beside the daemon.
    return {
        name.replace(",,", ",").replace(", to", " to").replace(", SDK", ""): values
        for name, values in figures.items()
        if name.startswith("create")
    }


def beside_figures(host: Mapping[str, list[float]]) -> Figures:
    """The rows of bench/beside.c."""
    return {row: [us / 1000 for us in host.get(name, [])] for name, row in BESIDE.items()}


def measure_host(
    build: Path, emulated: bool, sandboxes: int, starts: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """What must be measured where the VMMs are."""
    programs = [build / "bench" / name for name in ("forkexec", "beside")]
    for program in programs:
        if not program.exists():
            raise SystemExit(f"{program} does not exist: run make first")
    script = Path(__file__).with_name("host.sh")
    rounds = (sandboxes, args.idle, starts, args.creates, args.execs, args.forks)
    arguments = [str(n) for n in rounds]
    progress(
        f"in their place: {starts} starts of a program, the same creates, commands and forks"
        f" beside the daemon, {sandboxes} and {args.idle} idle sandboxes"
    )
    with tempfile.TemporaryDirectory() as scratch:
        if emulated:
            run = [str(build / "podflare"), "box", "run", *(f"--add={one}" for one in programs)]
            argv = [*run, str(script), *arguments]
            env = dict(os.environ)
        else:
            applets = Path(scratch, "bin")
            applets.mkdir()
            (applets / "wget").symlink_to("/bin/busybox")
            argv = ["sh", str(script), *arguments]
            address = "127.0.0.1:7099"
            daemon = [
                str(build / "podflared"),
                f"--addr={address}",
                f"--state={scratch}/state",
                f"--guest={build / 'guest'}",
                f"--vmm={build / 'podflare-vmm'}",
            ]
            env = {
                **os.environ,
                "DAEMON": shlex.join(daemon),
                "URL": f"http://{address}",
                "FORKEXEC": str(programs[0]),
                "BESIDE": str(programs[1]),
                "PATH": f"{applets}:{os.environ['PATH']}",
            }
        done = subprocess.run(argv, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(argv)} failed:\n{done.stdout}{done.stderr}")
    figures = defaultdict(list)
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        figures[name].append(float(value))
    return dict(figures)


def machine() -> str:
    """One line on what this was measured on."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = " ".join(line.partition(":")[2].split())
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / (1 << 20)
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, Linux {platform.release()}"


def table(figures: Mapping[str, Sequence[float]], unit_ms: Optional[float]) -> str:
    """The Markdown table; times in ms get their ratio to `unit_ms`."""
    rows = [
        "| figure | n | p50 | p95 | p99 | p50 / program start | goal |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, values in figures.items():
        if not values:
            continue
        p50, p95, p99 = (percentile(values, p) for p in (50, 95, 99))
        ratio = p50 / unit_ms if name.endswith(", ms") and unit_ms is not None else None
        goal = ""
        if name in GOALS:
            goal = f"≤ {GOALS[name]:g}"
            if ratio is not None:
                goal += " met" if ratio <= GOALS[name] else " missed"
        elif "burst" in name:
            met = "met" if p99 <= BURST_GOAL * p50 else "missed"
            goal = f"p99 ≤ {BURST_GOAL:g} p50 {met}"
        cells = [name, str(len(values)), *map(number, (p50, p95, p99))]
        rows.append(f"| {' | '.join([*cells, '' if ratio is None else number(ratio), goal])} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--starts", type=int, help="starts of the daemon (emulated: 2, else 10)")
    # These three: so many through the SDK, and so many beside the daemon.
    parser.add_argument("--creates", type=int, default=40, help="sandboxes, one after the other")
    parser.add_argument("--forks", type=int, default=30, help="forks of one and of five copies")
    parser.add_argument("--execs", type=int, default=100, help="commands of each language")
    parser.add_argument("--burst", type=int, default=50, help="sandboxes at once")
    parser.add_argument("--idle", type=int, default=200, help="idle copies at once")
    parser.add_argument("--pool", type=int, default=2, help="size of the pool where there is one")
    parser.add_argument("--json", type=Path, help="write every single value here, too")
    args = parser.parse_args()
    build = args.build.resolve()

    figures: Figures = {}
    unit: Optional[float] = None
    url = os.environ.get("PODFLARE_HOSTD_URL")
    if url:
        mode = "unknown (daemon at PODFLARE_HOSTD_URL, its pool as it is)"
        figures.update(measure_client(url, args))
    else:
        started: list[float] = []
        with tempfile.TemporaryDirectory() as state:
            wanted, emulated = 1, False
            while len(started) < wanted:
                progress(f"start {len(started) + 1}")
                with Serve(build, state, 0) as serve:
                    started.append(serve.seconds * 1000)
                    emulated = serve.emulated
                    wanted = args.starts or (2 if emulated else 10)
                    if len(started) == wanted:
                        figures.update(measure_client(serve.url, args))
            if args.pool:
                with Serve(build, state, args.pool) as serve:
                    figures.update(measure_pool(serve.url, max(10, args.creates // 2), args.pool))
        mode = "emulated" if emulated else "hardware"
        host = measure_host(build, emulated, 4, 500, args)
        unit = percentile(host["forkexec_us"], 50) / 1000
        name = f"{args.idle} idle copies at once"
        crowd = (
            {
                f"{name}: private, MiB": host["crowd_private_mib"],
                f"{name}: memory of the host for each, MiB": host["crowd_host_mib"],
            }
            if args.idle
            else {}
        )
        figures = {
            "program start (vfork, exec, wait), ms": [us / 1000 for us in host["forkexec_us"]],
            "start to ready, ms": started,
            **beside_figures(host),
            **figures,
            "idle sandbox: private, MiB": host["idle_private_mib"],
            "idle sandbox: PSS, MiB": host["idle_pss_mib"],
            "idle sandbox that was used once: private, MiB": host["used_private_mib"],
            "idle sandbox: wake-ups of its VMM per second": host["idle_sleeps_per_s"],
            **crowd,
            "template: private, MiB": host["template_private_mib"],
            "daemon: RSS, MiB": host["daemon_rss_mib"],
        }

    print(f"machine: {machine()}\n\nmode: {mode}\n")
    print(table(figures, unit))
    if args.json:
        record = {"machine": machine(), "mode": mode, "figures": figures}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
