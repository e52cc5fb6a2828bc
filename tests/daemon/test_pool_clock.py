# SPDX-License-Identifier: Apache-2.0
"""Sandboxes that lie ready while the host's clock is set: their own clocks do not follow.

The daemon's time of day is played: its clock_gettime() adds what a file says.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Daemon, wait_for
from test_create import pool_of

SHIM = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *ts)
{
	long long ms = 0;
	int rc = syscall(SYS_clock_gettime, id, ts);
	FILE *f = rc || id != CLOCK_REALTIME ? NULL : fopen(getenv("CLOCK_SHIFT"), "re");

	if (!f)
		return rc;
	if (fscanf(f, "%lld", &ms) == 1) {
		long long ns = ts->tv_sec * 1000000000ll + ts->tv_nsec + ms * 1000000;

		ts->tv_sec = ns / 1000000000;
		ts->tv_nsec = ns % 1000000000;
	}
	fclose(f);
	return rc;
}
"""


class Clock:
    """The daemon's time of day, some milliseconds off."""

    def __init__(self, directory: Path) -> None:
        source, self.library = directory / "shim.c", directory / "shim.so"
        source.write_text(SHIM)
        cc = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self.library), str(source)]
        subprocess.run(cc, check=True)
        self.file = directory / "shift"
        self.set(0)

    def set(self, ms: int) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(str(ms))
        os.replace(new, self.file)

    def prefix(self) -> list[str]:
        """What starts a program with this clock."""
        asan = f"ASAN_OPTIONS={os.environ.get('ASAN_OPTIONS', '')}:verify_asan_link_order=0"
        return ["env", f"LD_PRELOAD={self.library}", f"CLOCK_SHIFT={self.file}", asan]


@pytest.fixture(name="clock")
def make_clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def error_ms(d: Daemon, sid: str, clock: int) -> float:
    """How far the sandbox's clock, set when it was renewed, is from the daemon's: as its age."""
    return d.info(sid)["renew"]["realtime_ns"] / 1e6 - (time.time_ns() / 1e6 + clock)


@pytest.mark.parametrize("shift", [3_600_000, -3_600_000, 500])
def test_the_clock_was_set(start: Callable[..., Daemon], clock: Clock, shift: int) -> None:
    """A host that slept, one that was an hour ahead, one that is half a second behind."""
    d = start(args=["--pool", "2"], prefix=clock.prefix())
    d.templates_ready()
    template = set(d.children())
    d.create()
    wait_for(lambda: pool_of(d) == 2)
    old = set(d.children()) - template
    assert len(old) == 3
    clock.set(shift)
    o = d.http.post("/v1/sandboxes").json()
    assert o["source"] == "fork", "those that were ready are off by as much"
    # It was renewed now, by the clock that holds now.
    assert -60_000 < error_ms(d, o["id"], shift) <= 0
    wait_for(lambda: len(old & set(d.children())) == 1)  # what was created stays
    wait_for(lambda: pool_of(d) == 2)
    o = d.http.post("/v1/sandboxes").json()
    assert o["source"] == "pool"
    assert -60_000 < error_ms(d, o["id"], shift) <= 0


def test_the_clock_is_the_same(start: Callable[..., Daemon], clock: Clock) -> None:
    d = start(args=["--pool", "2"], prefix=clock.prefix())
    d.create()
    wait_for(lambda: pool_of(d) == 2)
    time.sleep(0.5)
    assert d.http.post("/v1/sandboxes").json()["source"] == "pool"
