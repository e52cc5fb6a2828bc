# SPDX-License-Identifier: Apache-2.0
"""A hostile guest for real: hostile/hostile.c drives registers, queues, ports, memory that is not there and
hypercalls at random, on two processors at once, each seed for a while, and must find both devices working when
it then uses them as a driver would, every hypercall refused that can be, and the root image as it was. What it
and its VMM counted must show that it got somewhere: devices that ran, chains that were used. Beside it a peaceful
guest is booted over and over, and one never leaves its two processors; after it, one floods its VMM with packets.

HOSTILE_OPS and HOSTILE_SEEDS make it longer, HOSTILE_SECONDS goes on with further seeds that long: `make soak`.
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
OPS = int(os.environ.get("HOSTILE_OPS", "3000"))
SEEDS = int(os.environ.get("HOSTILE_SEEDS", "4"))
SECONDS = int(os.environ.get("HOSTILE_SECONDS", "0"))
TIMEOUT = 900 + (SEEDS + 2) * OPS // 20 + 2 * SECONDS
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
    sources = [HERE / "hostile" / name for name in ("start.S", "hostile.c", "queues.c", "driver.c")]
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
    arguments = [str(OPS), str(SECONDS), *(str(seed) for seed in range(1, SEEDS + 1))]
    if hardware():
        command = ["sh", work / "run.sh", *arguments]
    else:
        command = [BUILD / "podflare", "box", "run", "--timeout", str(TIMEOUT)]
        for name in ("hostile.elf", "ready.tiny", "filler", "vmboot"):
            command += ["--add", work / name]
        command += [work / "run.sh", *arguments]
    done = subprocess.run(
        command,
        env={**os.environ, "VMM": str(BUILD / "podflare-vmm")} if hardware() else None,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT + 60,
        check=False,
    )
    assert "== left:" in done.stdout, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def section(output: str, title: str) -> str:
    """What follows the line "== title"."""
    found = re.search(rf"^== {title}\n(.*?)^== ", output, flags=re.MULTILINE | re.DOTALL)
    assert found, output
    return found.group(1)


def numbers(text: str, line: str) -> dict[str, int]:
    """Of the last line that begins so: its words NAME=NUMBER."""
    lines = re.findall(rf"^{line} (.*)$", text, flags=re.MULTILINE)
    assert lines, text
    return {name: int(n) for name, n in re.findall(r"([a-z-]+)=(\d+)", lines[-1])}


# What one processor alone does in OPS steps, at least; what comes of it; and what the VMM saw of both.
DONE = {
    "drivers": OPS // 32,
    "notifies": OPS // 4,
    "registers": OPS // 8,
    "ports": OPS // 16,
    "memory": OPS // 25,
    "ioapic": OPS // 32,
    "hypercalls": OPS // 64,
    "blk-runs": OPS // 100,
    "vsock-runs": OPS // 200,
    "blk-chains": OPS // 100,
    "vsock-chains": OPS // 200,
}
SEEN = {
    "exits": OPS,
    "notifies": OPS // 4,
    "irqs": 1,  # they need a device that runs and a line that is routed at the same moment
    "guest-faults": OPS // 50,
    "rom-writes": OPS // 400,
    "disk-bytes": OPS * 64,
}


# The fixture is part of the first one's set-up.
@pytest.mark.limit(TIMEOUT + 100)
@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_devices_survive(output: str, seed: int) -> None:
    text = section(output, f"seed {seed}")
    assert re.search(r"message 0x82 code 0x1\b", text), output
    assert numbers(text, "stats")["disk-errors"] == 0, output


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_it_got_somewhere(output: str, seed: int) -> None:
    text = section(output, f"seed {seed}")
    for found, least in ((numbers(text, "counts"), DONE), (numbers(text, "stats"), SEEN)):
        assert {name: found[name] for name in least if found[name] < least[name]} == {}, text


def test_all_seeds_there_were(output: str) -> None:
    """The further ones, too."""
    seeds = [int(seed) for seed in re.findall(r"^== seed (\d+)$", output, flags=re.MULTILINE)]
    assert seeds == list(range(1, len(seeds) + 1)) and len(seeds) >= SEEDS
    well = [seed for seed in seeds if re.search(r"message 0x82 code 0x1\b", section(output, f"seed {seed}"))]
    assert well == seeds, output


def test_siblings_do_not_notice(output: str) -> None:
    found = re.search(r"^== sibling beside: (\d+) of (\d+)$", output, flags=re.MULTILINE)
    assert found and found.group(1) == found.group(2) and int(found.group(1)) >= 3, output
    assert "== still spinning: 2\n" in output


def test_a_flood_of_packets(output: str) -> None:
    """Its own VMM goes on answering, and the siblings go on being served."""
    found = re.search(r"^== still flooding: (\d+) answers$", output, flags=re.MULTILINE)
    assert found and int(found.group(1)) >= 5, output
    text = section(output, found.group(0)[3:])
    assert int(re.findall(r"^flooded (\d+)", text, flags=re.MULTILINE)[-1]) >= 10000, text
    assert numbers(text, "stats")["guest-faults"] == 0, text
    found = re.search(r"^== sibling flooded: (\d+) of (\d+)$", output, flags=re.MULTILINE)
    assert found and found.group(1) == found.group(2) and int(found.group(1)) >= 3, output


def test_the_hosts_kernel_does_not_complain(output: str) -> None:
    if "== complaints: cannot be read\n" in output:
        assert hardware()
        pytest.skip("this host's kernel shows its log to root alone")
    assert "== complaints are not seen\n" not in output, output
    assert "== complaints: 0\n" in output, output


def test_nothing_is_left(output: str) -> None:
    assert "== left: 0\n" in output
