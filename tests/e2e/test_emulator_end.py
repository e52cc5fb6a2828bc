# SPDX-License-Identifier: Apache-2.0
"""The emulated host is killed under its clients; many kills are a part of tests/soak.py."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from emulator import Load, kill_machine, last_life
from served import Served, wait_until


@pytest.mark.limit(900)
def test_killed_under_load(build: Path, tmp_path: Path) -> None:
    """`podflare serve` says so and ends, clients get errors, nothing is left, the next start works."""
    if "PODFLARE_HOSTD_URL" in os.environ:
        pytest.skip("these start daemons of their own")
    told = subprocess.run([str(build / "podflare"), "doctor", "--json"], capture_output=True, check=False)
    if json.loads(told.stdout)["mode"] == "hardware":
        pytest.skip("there is no emulated host")
    served = Served(build, tmp_path / "state")
    try:
        served.wait_ready()
        load = Load(served.url, 3)
        wait_until("its clients have run something", lambda: load.done.get("run"), 300)
        assert not load.unexpected, load.unexpected
        kill_machine(served, load)
    finally:
        served.process.kill()
    assert load.errors
    last_life(build, tmp_path / "state", load.ids)
