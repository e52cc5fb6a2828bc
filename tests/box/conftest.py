# SPDX-License-Identifier: Apache-2.0
"""Tests of the `podflare` program and the emulated host, without a sandbox in them.

They need a build directory (PODFLARE_BUILD, by default build/) with box/ made. Everything that
starts a machine says --mode emulated, so that the tests mean the same on hardware.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, Sequence

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))

from processes import Run, clean_env  # noqa: E402


@pytest.fixture(scope="session")
def build() -> Path:
    """The build directory."""
    path = Path(os.environ.get("PODFLARE_BUILD", str(ROOT / "build"))).resolve()
    if not (path / "podflare").exists():
        pytest.fail(f"{path}/podflare is missing: run make first")
    return path


@pytest.fixture(scope="session")
def podflare(build: Path) -> str:
    """Path of the program under test."""
    return str(build / "podflare")


@pytest.fixture
def call(podflare: str) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs podflare to its end: call(*arguments, **environment); PODFLARE_* of ours do not count."""

    def run(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [podflare, *args],
            env=clean_env(**env),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def spawn(podflare: str) -> Iterator[Callable[..., Run]]:
    """Starts podflare: spawn(*arguments, **environment), behind the words of a prefix if there is one.
    What still runs at the end is killed."""
    started: list[Run] = []

    def start(*args: str, prefix: Sequence[str] = (), **env: str) -> Run:
        started.append(Run([*prefix, podflare, *args], clean_env(**env)))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGKILL)
        run.process.wait()
        for pid in run.descendants():
            os.kill(pid, signal.SIGKILL)
