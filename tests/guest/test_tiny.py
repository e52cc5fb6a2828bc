# SPDX-License-Identifier: Apache-2.0
"""Hand-made guests of a few instructions against a real VMM: every way out of a VM, the device
windows, the read-only root image. What a guest must lead to stands in its first lines:

    Expect: status 0x1                  the value it writes to the status port
    Expect: exit 0x2 TEXT               how the VM ends: enum ctl_exit and a part of the sentence
    Expect: console TEXT                what it prints

All run in one go in the emulated host, or on the host itself where that can run guests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guestrun import BUILD, ROOT, hardware, tiny

SOURCES = sorted((ROOT / "tests/guest/tiny").glob("*.S"))


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What vmboot printed for each guest."""
    work = tmp_path_factory.mktemp("tiny")
    for source in SOURCES:
        tiny(source, work)
    shutil.copy(BUILD / "vmboot", work)
    shutil.copy(BUILD / "vmdisk", work)
    shutil.copy(ROOT / "tests/guest/tiny/run.sh", work)
    if hardware():
        command = ["sh", work / "run.sh"]
    else:
        command = [BUILD / "podflare", "box", "run", "--timeout", "900"]
        for file in sorted(work.iterdir()):
            if file.name != "run.sh":
                command += ["--add", file]
        command.append(work / "run.sh")
    done = subprocess.run(
        command,
        env={**os.environ, "VMM": str(BUILD / "podflare-vmm")} if hardware() else None,
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    parts = re.split(r"^== (\w+)\.tiny$", done.stdout, flags=re.MULTILINE)
    assert len(parts) > 1, f"nothing ran: {done.stdout}\n{done.stderr}"
    return dict(zip(parts[1::2], parts[2::2]))


def expectations(source: Path) -> list[str]:
    """The Expect: notes of a guest."""
    found = re.findall(r"Expect: (.+)$", source.read_text(), flags=re.MULTILINE)
    assert found, f"{source.name} expects nothing"
    return found


# The fixture is part of the first one's set-up.
@pytest.mark.limit(1100)
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.stem)
def test_tiny_guest(source: Path, outputs: dict[str, str]) -> None:
    text = outputs[source.stem]
    for expected in expectations(source):
        kind, rest = expected.split(" ", 1)
        if kind == "console":
            assert rest in text
        elif kind == "status":
            assert re.search(rf"message 0x82 code {rest}\b", text), text
        else:
            code, sentence = rest.split(" ", 1)
            assert re.search(rf"message 0x86 code {code} .*{re.escape(sentence)}", text), text


@pytest.mark.parametrize("mode", ["live", "pause", "chain"])
def test_forks_of_a_disk_in_use(mode: str, outputs: dict[str, str]) -> None:
    text = outputs[f"forks_{mode}"]
    assert "all of one mind" in text, text
    found = re.findall(r"^VM (\d+) layers (\d+) bytes (\d+) errors 0$", text, flags=re.MULTILINE)
    assert len(found) == 21
    layers = [int(n) for _, n, _ in found]
    if mode == "pause":
        # A copy that has rewritten all of it holds the disk alone.
        assert layers[0] == 2 and set(layers[1:]) <= {1, 2}
    else:
        assert all(n <= 22 for n in layers)
