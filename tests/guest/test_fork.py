# SPDX-License-Identifier: Apache-2.0
"""Forks of a real guest (Debian kernel and agent) by the VMM alone: live, paused, as a chain, with
several processors. Every copy must answer through a new stream, the first VM through the stream it
had before, and nothing may be left running."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guestrun import BUILD, ROOT, hardware

# The emulated host may share its processors with others; it ends itself after 900 s.
pytestmark = pytest.mark.limit(1100)

CASES = {
    "live": 6,
    "live-2cpu": 4,
    "live-4cpu": 2,
    "pause": 6,
    "pause-2cpu": 4,
    "chain": 12,
    "chain-2cpu": 4,
}


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What vmfork printed in each case."""
    work = tmp_path_factory.mktemp("fork")
    shutil.copy(BUILD / "vmfork", work)
    shutil.copy(ROOT / "tests/guest/fork.sh", work)
    env = dict(os.environ)
    if hardware():
        command = ["sh", work / "fork.sh"]
        env |= {
            "VMM": str(BUILD / "podflare-vmm"),
            "KERNEL": str(BUILD / "guest/vmlinux"),
            "INITRAMFS": str(BUILD / "guest/initramfs.cpio"),
            "ROOT": str(BUILD / "guest/templates/default/rootfs.erofs"),
        }
    else:
        command = [BUILD / "podflare", "box", "run", "--timeout", "900", "--add", work / "vmfork"]
        command.append(work / "fork.sh")
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=1000, check=False
    )
    parts = re.split(r"^== ([\w-]+)$", done.stdout, flags=re.MULTILINE)
    assert len(parts) > 1, f"nothing ran: {done.stdout}\n{done.stderr}"
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.mark.parametrize("case", CASES)
def test_every_copy_answers(case: str, outputs: dict[str, str]) -> None:
    text = outputs[case]
    assert "status 0" in text, text
    assert "all answered" in text
    forks = re.findall(r"^fork (\d+) pid (\d+) ", text, flags=re.MULTILINE)
    assert [int(n) for n, _ in forks] == list(range(1, CASES[case] + 1))
    assert len({pid for _, pid in forks}) == CASES[case]


def test_no_vmm_outlives_its_supervisor(outputs: dict[str, str]) -> None:
    assert "left 0" in outputs["end"]
