# SPDX-License-Identifier: Apache-2.0
"""A hostile guest for real: hostile/hostile.c drives registers, queues, ports, memory that is not there and
hypercalls at random, on two processors at once, each seed for a while, and must find both devices working when
it then uses them as a driver would, every hypercall refused, and the root image as it was. Beside it a peaceful
guest is booted over and over, and one never leaves its two processors.

HOSTILE_OPS and HOSTILE_SEEDS make it longer: `make soak` does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guestrun import BUILD, ROOT, hardware

HERE = ROOT / "tests/guest"
OPS = int(os.environ.get("HOSTILE_OPS", "10000"))
SEEDS = int(os.environ.get("HOSTILE_SEEDS", "4"))
LINK = ["-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x100000", "-Wl,--build-id=none"]
# No vector registers, no red zone, nothing of a C library: there is only this program.
FREESTANDING = (
    "-std=gnu17 -O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fcf-protection=none"
    " -mno-red-zone -mgeneral-regs-only -fno-pic -fno-pie"
).split()


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What run.sh printed."""
    work = tmp_path_factory.mktemp("hostile")
    sources = [HERE / "hostile" / name for name in ("start.S", "hostile.c", "driver.c")]
    subprocess.run(
        ["gcc", *FREESTANDING, *LINK, f"-I{ROOT / 'src'}", "-o", work / "hostile.elf", *sources],
        check=True,
    )
    tiny = HERE / "tiny/ready.S"
    subprocess.run(
        ["gcc", *LINK, "-Wa,-I.", "-o", work / "ready.tiny", tiny.name], cwd=tiny.parent, check=True
    )
    (work / "filler").write_bytes(b"\xe2\xe1\xf5\xe0" * 4096)
    shutil.copy(BUILD / "vmboot", work)
    shutil.copy(HERE / "hostile/run.sh", work)
    arguments = [str(OPS), *(str(seed) for seed in range(1, SEEDS + 1))]
    timeout = 300 + SEEDS * OPS // 50
    if hardware():
        command = ["sh", work / "run.sh", *arguments]
    else:
        command = [BUILD / "podflare", "box", "run", "--timeout", str(timeout)]
        for name in ("hostile.elf", "ready.tiny", "filler", "vmboot"):
            command += ["--add", work / name]
        command += [work / "run.sh", *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "VMM": str(BUILD / "podflare-vmm")} if hardware() else None,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout + 60,
        check=False,
    )
    assert "== left:" in done.stdout, f"{done.stdout}\n{done.stderr}"
    return done.stdout


# The fixture is part of the first one's set-up.
@pytest.mark.limit(400 + SEEDS * OPS // 50)
@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_devices_survive(output: str, seed: int) -> None:
    found = re.search(rf"^== seed {seed}\n(.*?)^== ", output, flags=re.MULTILINE | re.DOTALL)
    assert found and re.search(r"message 0x82 code 0x1\b", found.group(1)), output


def test_siblings_do_not_notice(output: str) -> None:
    found = re.search(r"^== sibling: (\d+) of (\d+)$", output, flags=re.MULTILINE)
    assert found and found.group(1) == found.group(2) and int(found.group(1)) >= 3, output
    assert "== still spinning: 2\n" in output


def test_nothing_is_left(output: str) -> None:
    assert "== left: 0\n" in output
