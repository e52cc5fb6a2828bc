# SPDX-License-Identifier: Apache-2.0
"""Generations do not add up: a copy of a copy, however deep, is made of as much as the first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import UNJAILED, Host, Vmm

GENERATIONS = 32


@dataclass
class Size:
    mappings: int
    virtual: int  # KiB
    private: int  # KiB


def size(vmm: Vmm) -> Size:
    """After it has dealt with all that it was sent."""
    vmm.stats()
    maps = Path(f"/proc/{vmm.pid}/maps").read_text().splitlines()
    rollup = Path(f"/proc/{vmm.pid}/smaps_rollup").read_text()
    private = [int(n) for n in re.findall(r"^Anonymous: +(\d+) kB$", rollup, re.MULTILINE)]
    virtual = 0
    for line in maps:
        start, end = line.split()[0].split("-")
        virtual += (int(end, 16) - int(start, 16)) >> 10
    return Size(len(maps), virtual, private[0])


@pytest.mark.skipif(UNJAILED, reason="the memory of sanitizers grows as they see fit")
@pytest.mark.parametrize("vcpus", [1, 4])
def test_nothing_of_ancestors_adds_up(host: Host, vcpus: int) -> None:
    vmm = host.booted(vcpus=vcpus)
    sizes = []
    for _ in range(GENERATIONS):
        child = vmm.fork()
        vmm.end()
        vmm = child
        sizes.append(size(vmm))
    print(sizes[0], sizes[-1])
    # Two descendants of one template are compared: what only the first fork of all does is over.
    first, last = sizes[1], sizes[-1]
    assert last.mappings == first.mappings
    assert last.virtual == first.virtual
    assert last.private <= first.private + 64
