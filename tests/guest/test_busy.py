# SPDX-License-Identifier: Apache-2.0
"""Forks of a guest all of whose processors are busy (tiny/disk_loop.S): one uses the disk, with
requests in flight at any moment, the others compute. In every copy, and in the original to the end,
each of them goes on with registers, memory and disk of one state; the deepest of a chain too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guestrun import BUILD, ROOT, hardware, tiny

pytestmark = pytest.mark.limit(600)

FORKS = 6


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What vmdisk printed in each case."""
    work = tmp_path_factory.mktemp("busy")
    tiny(ROOT / "tests/guest/tiny/disk_loop.S", work)
    shutil.copy(BUILD / "vmdisk", work)
    script = shutil.copy(ROOT / "tests/guest/tiny/busy.sh", work)
    env = dict(os.environ)
    if hardware():
        command = ["sh", script]
        env["VMM"] = str(BUILD / "podflare-vmm")
    else:
        command = [BUILD / "podflare", "box", "run", "--timeout", "500"]
        for name in ("disk_loop.tiny", "filler", "vmdisk"):
            command += ["--add", work / name]
        command.append(script)
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=550, check=False
    )
    parts = re.split(r"^== (\w+-\d)$", done.stdout, flags=re.MULTILINE)
    assert len(parts) > 1, f"nothing ran: {done.stdout}\n{done.stderr}"
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.mark.parametrize("cpus", [2, 4])
@pytest.mark.parametrize("mode", ["live", "pause", "chain"])
def test_all_goes_on(mode: str, cpus: int, outputs: dict[str, str]) -> None:
    text = outputs[f"{mode}-{cpus}"]
    assert "all of one mind" in text, text
    found = re.findall(r"^VM (\d+) layers \d+ bytes \d+ errors 0$", text, flags=re.MULTILINE)
    assert sorted(int(n) for n in found) == list(range(FORKS + 1)), text
