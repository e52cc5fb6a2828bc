#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Big files and many cells through one sandbox: rates, and what memory they take. Prints one table, in
Markdown.

    bench/transfer.py [--build DIR] [--mib N] [--cells N] [--json FILE]

Upload and download of a file of N MiB (1024) on the sandbox's own disk, streamed by the SDK from a file object
that makes its bytes and into one that hashes them, so that no local disk is measured; what arrives is
compared. Then N cells (10000) one after the other, in ten parts: the time of a cell and the memory of the
interpreter by the end of each part. Memory that grows would show.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "sdk" / "python"), str(ROOT / "bench")]

from run import Serve, machine, number, percentile, progress, run_ok  # noqa: E402

from podflare import Client, Sandbox  # noqa: E402

MIB = 1 << 20
PARTS = 10


class Made(io.RawIOBase):
    """A file of `size` bytes that nobody keeps: each MiB is another, and cannot be told beforehand."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._block = b""
        self._hash = hashlib.sha256()
        self._n = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._block:
            seed = hashlib.sha256(self._n.to_bytes(8, "big")).digest()
            self._block = (seed * (MIB // len(seed)))[: self._left]
            self._n += 1
        n = min(len(buffer), len(self._block))
        buffer[:n] = self._block[:n]
        self._hash.update(self._block[:n])
        self._block = self._block[n:]
        self._left -= n
        return n

    def digest(self) -> str:
        return self._hash.hexdigest()


class Seen(io.RawIOBase):
    """Takes bytes, and keeps their hash."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._hash.update(data)
        return len(data)

    def digest(self) -> str:
        return self._hash.hexdigest()


def peak_mib() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def transfers(sandbox: Sandbox, mib: int) -> dict[str, float]:
    """Rates in MiB/s, and by how many MiB this process has grown."""
    path = "/home/user/big"
    sandbox.upload(b"x" * MIB, path)  # whatever is made once
    sandbox.download(path)
    before = peak_mib()
    progress(f"upload of {mib} MiB")
    source, start = Made(mib * MIB), time.perf_counter()
    info = sandbox.upload(io.BufferedReader(source, MIB), path)
    up = time.perf_counter() - start
    progress(f"download of {mib} MiB")
    sink, start = Seen(), time.perf_counter()
    size = sandbox.download_to(path, sink)  # type: ignore[arg-type]
    down = time.perf_counter() - start
    if not info.size == size == mib * MIB or source.digest() != sink.digest():
        raise SystemExit("what was downloaded is not what was uploaded")
    sandbox.files.remove(path)
    return {
        f"upload of {mib} MiB, MiB/s": mib / up,
        f"download of {mib} MiB, MiB/s": mib / down,
        "memory of the program meanwhile, MiB more": peak_mib() - before,
    }


def interpreter_kib(sandbox: Sandbox) -> int:
    code = "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')][0])"
    return int(sandbox.run_code(code).stdout)


def cells(sandbox: Sandbox, n: int) -> list[tuple[int, list[float], int]]:
    """Of each part: cells so far, the times of its own in ms, and the interpreter's memory in KiB."""
    parts, done = [], 0
    while done < n:
        times = []
        for _ in range(min(max(1, n // PARTS), n - done)):
            start = time.perf_counter()
            run_ok(sandbox, f"x = {done}\nx")
            times.append((time.perf_counter() - start) * 1000)
            done += 1
        parts.append((done, times, interpreter_kib(sandbox)))
        progress(f"{done} of {n} cells")
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write every single value here, too")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as state,
        Serve(args.build.resolve(), state, 0) as serve,
        Client(host=serve.url) as client,
        Sandbox(client=client) as sandbox,
    ):
        mode = "emulated" if serve.emulated else "hardware"
        run_ok(sandbox)
        rates = transfers(sandbox, args.mib) if args.mib else {}
        parts = cells(sandbox, args.cells) if args.cells else []
    print(f"{machine()}; {mode}; {time.strftime('%Y-%m-%d')}\n")
    print("| figure | value |\n|---|--:|")
    for name, value in rates.items():
        print(f"| {name} | {number(value)} |")
    if parts:
        print("\n| cells so far | p50, ms | p95 | p99 | interpreter, MiB |\n|--:|--:|--:|--:|--:|")
        for done, times, kib in parts:
            figures = (number(percentile(times, p)) for p in (50, 95, 99))
            print(f"| {done} | {' | '.join(figures)} | {kib / 1024:.2f} |")
    if args.json:
        args.json.write_text(json.dumps({"mode": mode, "rates": rates, "cells": parts}, indent=1))


if __name__ == "__main__":
    main()
