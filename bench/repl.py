#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Cost of the Python interpreter of a sandbox, natively, without VM and agent.

    /usr/bin/python3 bench/repl.py [--quick]

"cell" is the time inside the interpreter from a received cell to its EXIT sent, "bare" that of
exec(compile(...)) of the same text in the same process, measured in turns; "over" is the difference.
"Leaks" is what a process has more after 10 000 cells than before. The last lines are the goals; the
exit status is 1 when one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "repl"))

PRINTS = 1_000_000
PLAIN = ("pass", "x = 1", "1 + 1", "print(1)")
MAGIC = "%cd -q ."
MANY = f"for i in range({PRINTS}): print(i)"
MANY_NAME = "1e6 print(i)"
TABLE = "pandas.DataFrame({'a': range(20), 'b': 1.5})"
FIGURE = "pyplot.plot([1, 2, 3], label='a'); pyplot.title('t'); pyplot.legend();"
MS = 1e-3
GOALS = (  # what, of which rows, over the bare exec?, seconds
    (
        "a plain cell over a bare exec",
        (*PLAIN, *(f"{x}  (IPython loaded)" for x in PLAIN)),
        True,
        0.15 * MS,
    ),
    ("a cell with a magic", (MAGIC + "  (magic)",), False, 1.5 * MS),
    ("1e6 prints", (MANY_NAME,), False, 0.7),
)
LEAK_CELLS = 10_000
LEAK_KIB = 1024  # that 10 000 cells may leave: what the allocator has not given back


def percentile(times: list[float], share: float) -> float:
    """The value below which `share` of the sorted `times` lie."""
    return times[min(len(times) - 1, int(len(times) * share))]


def timed(action: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def inside(count: int, many: int) -> None:
    """Runs in a process of its own, whose standard output the parent reads and drops; the answer
    goes to standard error as JSON: {name: [cell times, bare times]}."""
    package = types.ModuleType("_podflare_repl")
    package.__path__ = [str(ROOT / "guest" / "repl")]  # type: ignore[attr-defined]
    sys.modules[package.__name__] = package
    from _podflare_repl import frames, runner  # type: ignore[import]

    peer, own = socket.socketpair()
    peer.setblocking(False)
    report = os.dup(2)
    interpreter = runner.Runner(types.ModuleType("__main__"), frames.Channel(own.detach()))
    names: dict[str, Any] = {"__name__": "__main__"}
    answer: dict[str, list[list[float]]] = {}

    def cell(source: bytes) -> None:
        code = interpreter.run_cell(source)
        interpreter.channel.send(frames.EXIT, b'{"exit_code":%d,"state":"preserved"}' % code)
        if code != 0:
            raise RuntimeError(f"{source!r} ended with {code}")

    def measure(name: str, text: str, number: int, bare: bool = True) -> None:
        source = text.encode()
        cells, bares = [], []
        for turn in range(number + number // 20):
            spent = timed(lambda: cell(source))
            peer.recv(1 << 20)
            other = timed(lambda: exec(compile(text, "<bare>", "exec"), names)) if bare else 0.0
            if turn >= number // 20:
                cells.append(spent)
                bares.append(other)
        answer[name] = [sorted(cells), sorted(bares) if bare else []]

    for text in PLAIN:
        measure(text, text, count)
    measure(MANY_NAME, MANY, many, bare=False)
    count_write = interpreter.streams.count_write
    interpreter.streams.count_write = lambda: None
    measure("1e6 print(i), unbuffered", MANY, max(1, many // 3), bare=False)
    interpreter.streams.count_write = count_write
    interpreter.get_shell()
    for text in PLAIN:
        measure(text + "  (IPython loaded)", text, count)
    measure(MAGIC + "  (magic)", MAGIC, count // 4, bare=False)
    cell(b"import pandas\nfrom matplotlib import pyplot")
    measure("table of pandas, 20 rows", TABLE, max(20, count // 20), bare=False)
    measure("figure: line, title, legend", FIGURE, max(20, count // 50), bare=False)
    with os.fdopen(report, "w") as file:
        json.dump(answer, file)


def measure_inside(count: int, many: int) -> dict[str, list[list[float]]]:
    """Starts `inside` with a drained pipe as its standard output."""
    command = [sys.executable, "-u", __file__, "--inside", str(count), str(many)]
    with tempfile.TemporaryFile() as report:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=report
        ) as process:
            assert process.stdout is not None
            while os.read(process.stdout.fileno(), 1 << 20):
                pass
        report.seek(0)
        text = report.read().decode()
    if process.returncode != 0:
        raise SystemExit(f"the measuring process failed:\n{text}")
    result: dict[str, list[list[float]]] = json.loads(text)
    return result


def measure_processes(starts: int, warms: int) -> tuple[dict[str, list[list[float]]], dict]:
    """Start to READY, a WARM request (import of IPython), and memory, of real processes."""
    from repl_process import OK, Repl

    ready, warm = [], []
    versions: dict[str, Any] = {}
    for turn in range(starts):
        with Repl() as repl:
            ready.append(repl.start_seconds)
            versions = repl.ready
            if turn < warms:
                began = time.perf_counter()
                kind, payload = repl.warm()
                warm.append(time.perf_counter() - began)
                if kind != OK:
                    raise SystemExit(f"IPython did not load: {payload.decode()}")
    rows: dict[str, list[list[float]]] = {
        "start to ready": [sorted(ready), []],
        "load IPython (WARM)": [sorted(warm), []],
    }
    return rows, versions


LEFT = """
import gc, os, sys, threading, linecache
gc.collect()
(int(open('/proc/self/statm').read().split()[1]) * 4, len(gc.get_objects()), len(os.listdir('/proc/self/fd')),
 threading.active_count(), len(sys.modules))
"""


def measure_leaks(cells: int) -> dict[str, int]:
    """What a process has more after `cells` different cells than before: cells with and without
    results, output, errors, magics, awaits."""
    from repl_process import OK, Repl

    names = ("RSS, KiB", "objects", "descriptors", "threads", "modules")
    with Repl() as repl:
        if repl.warm()[0] != OK:
            raise SystemExit("IPython did not load")

        def run(first: int, number: int) -> None:
            for i in range(first, first + number):
                kinds = (f"x = {i}", f"{i} + 1", f"print({i})", f"def f(): return {i}\nf()")
                code = kinds[i % 4]
                if i % 20 == 7:
                    code = f"{i} / 0"
                elif i % 20 == 11:
                    code = f"%cd -q .\nx = {i}"
                elif i % 20 == 15:
                    code = f"import asyncio\nawait asyncio.sleep(0)\n{i}"
                elif i % 20 == 19:
                    code = f"display({i}, [{i}])"
                repl.run(code)

        def left() -> list[int]:
            return [int(x) for x in str(repl.run(LEFT).value).strip("()").split(",")]

        run(0, max(1000, cells // 5))  # the text of the last 500 cells is kept
        before = left()
        run(1_000_000, cells)
        after = left()
    return dict(zip(names, (b - a for a, b in zip(before, after))))


RENEWALS = {
    "nothing": "",
    "random, tempfile": "import random, tempfile; random.random()",
    "and OpenSSL, uuid": "import random, tempfile, ssl, uuid; random.random(); ssl.RAND_bytes(1)",
    "and numpy": "import random, tempfile, ssl, uuid, numpy; random.random(); ssl.RAND_bytes(1)",
}


def dirty_pages(pid: int) -> int | None:
    """Pages that the process has written to since clear_refs; None where the kernel does not tell."""
    count = 0
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(
        f"/proc/{pid}/pagemap", "rb", buffering=0
    ) as pagemap:
        for line in maps:
            start, end = (int(x, 16) >> 12 for x in line.split()[0].split("-"))
            if start >= 1 << 40:
                continue
            pagemap.seek(start * 8)
            data = pagemap.read((end - start) * 8)
            count += sum(entry >> 55 & 1 for entry in struct.unpack(f"<{len(data) // 8}Q", data))
    return count


def renew(repl: Any) -> tuple[int, bytes]:
    """Sends the signal until it is answered, as the agent does: one that comes just before the
    interpreter sleeps is noticed when it wakes up."""
    from repl_process import Stuck

    while True:
        os.kill(repl.process.pid, signal.SIGRTMIN + 1)
        try:
            answer: tuple[int, bytes] = repl.answer(1.0)
            return answer
        except Stuck:
            continue


def measure_renewals(number: int) -> tuple[dict[str, list[list[float]]], dict[str, int | None]]:
    """From the signal of a renewal to its answer, of real processes that are idle; and the pages
    that one of them dirties."""
    from repl_process import OK, Repl

    rows: dict[str, list[list[float]]] = {}
    pages: dict[str, int | None] = {}
    for name, code in RENEWALS.items():
        with tempfile.TemporaryDirectory() as run:
            shutil.copytree(ROOT / "guest" / "repl", Path(run) / "repl")
            with Repl(cwd=run, script=Path(run) / "repl" / "repl.py") as repl:
                if repl.run(code).exit_code != 0:
                    continue
                pid, times = repl.process.pid, []
                for serial in range(1, number + 2):
                    state = {"serial": serial, "generation": 1, "reseed": True}
                    text = json.dumps({**state, "hold": False, "done": False})
                    Path(run, "fork.json").write_text(text)
                    if serial > number:
                        time.sleep(0.1)
                        Path(f"/proc/{pid}/clear_refs").write_text("4")
                    began = time.perf_counter()
                    kind, payload = renew(repl)
                    times.append(time.perf_counter() - began)
                    if kind != OK:
                        raise SystemExit(f"the renewal failed: {payload.decode()}")
                pages[name] = dirty_pages(pid)
                rows[f"renewal: {name}"] = [sorted(times[1:number]), []]
    return rows, pages


def show(time_value: float) -> str:
    """Seconds as text with a fitting unit."""
    if time_value < 1e-3:
        return f"{time_value * 1e6:.1f} us"
    return f"{time_value * 1e3:.1f} ms" if time_value < 1 else f"{time_value:.2f} s"


def table(rows: dict[str, list[list[float]]]) -> None:
    """Prints the rows: n, percentiles of the cell, of the bare exec, and the difference."""
    print(f"{'what':34}{'n':>6}{'p50':>11}{'p95':>11}{'p99':>11}{'bare p50':>11}{'over p50':>11}")
    for name, (cells, bares) in rows.items():
        line = f"{name:34}{len(cells):6}"
        line += "".join(f"{show(percentile(cells, share)):>11}" for share in (0.5, 0.95, 0.99))
        if bares:
            bare = percentile(bares, 0.5)
            line += f"{show(bare):>11}{show(percentile(cells, 0.5) - bare):>11}"
        print(line)


def judge(rows: dict[str, list[list[float]]], leaks: dict[str, int]) -> bool:
    """Prints the goals and whether they are met; by the medians."""
    met = True
    for name, keys, over, goal in GOALS:
        times = [
            percentile(rows[key][0], 0.5) - (percentile(rows[key][1], 0.5) if over else 0.0)
            for key in keys
        ]
        good = max(times) <= goal
        met = met and good
        print(f"goal: {name} <= {show(goal)}: {show(max(times))}, {'met' if good else 'MISSED'}")
    good = leaks["RSS, KiB"] <= LEAK_KIB and not any(
        leaks[name] > 0 for name in ("descriptors", "threads", "modules")
    )
    good = good and leaks["objects"] < 1000
    told = ", ".join(f"{name}: {count:+}" for name, count in leaks.items())
    print(f"goal: cells leak nothing: {told}, {'met' if good else 'MISSED'}")
    return met and good


def machine(versions: dict[str, Any]) -> str:
    """One line that says where the figures come from."""
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} cpus, load {load:.1f}, Linux {platform.release()}, "
        f"Python {versions.get('python')}, IPython {versions.get('ipython')}, native"
    )


def main() -> int:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--inside", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(*options.inside)
        return 0
    processes, versions = measure_processes(*((5, 2) if options.quick else (30, 10)))
    print(machine(versions))
    renewals, pages = measure_renewals(100 if options.quick else 1000)
    inside_rows = measure_inside(*((500, 1) if options.quick else (5000, 9)))
    table({**processes, **renewals, **inside_rows})
    if any(pages.values()):
        print("pages that a renewal dirties:", ", ".join(f"{n}: {c}" for n, c in pages.items()))
    return 0 if judge(inside_rows, measure_leaks(LEAK_CELLS // (10 if options.quick else 1))) else 1


if __name__ == "__main__":
    sys.exit(main())
