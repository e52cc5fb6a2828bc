# SPDX-License-Identifier: Apache-2.0
"""What other processes of the host get to see of the emulated host, and of the program that holds its keys.
Programs in QEMU's place take no machine."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from conftest import ROOT
from processes import wait_until
from stand_in import put_in_place

sys.path.insert(0, str(ROOT / "tests"))

from readable import assert_others_are_readable, readable  # noqa: E402

SERVE = ("serve", "--mode", "emulated", "--box-memory", "1024", "--addr", "127.0.0.1:0", "--state")


SLEEP = "#!/bin/sh\nexec sleep 1000\n"


def machine_of(parent: int) -> int:
    """Its only child, once that is in QEMU's place."""
    found: list[int] = []

    def there() -> bool:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        comm = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in children]
        found[:] = [int(pid) for pid in children]
        return comm in (["sleep"], ["qemu-system-x86"])

    wait_until("QEMU runs", there, 60)
    return found[0]


def test_there_is_no_core_of_the_machine(spawn, tmp_path):
    """A limit of 1 is kept for programs, too, that the kernel gives cores to; 0 is where that cannot be set."""
    run = spawn(*SERVE, str(tmp_path / "state"), PATH=put_in_place(tmp_path, SLEEP))
    run.wait_for("starting the emulated host")
    pid = machine_of(run.process.pid)
    assert resource.prlimit(pid, resource.RLIMIT_CORE) == (1, 1)


def areas_of(pid: int) -> list[tuple[int, list[str]]]:
    """KiB and flags of each area of its memory."""
    areas: list[tuple[int, list[str]]] = []
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if words[0] == "Size:":
            areas.append((int(words[1]), []))
        if words[0] == "VmFlags:":
            areas[-1][1].extend(words[1:])
    return areas


def test_guests_memory_is_in_no_core_and_merged_with_nobodys(spawn, tmp_path):
    """As the kernel tells it of the area that is as large as the real machine's memory."""
    (tmp_path / "script").write_text("sleep 1000\n")
    run = spawn("box", "run", "--box-memory", "768", str(tmp_path / "script"))
    pid = machine_of(run.process.pid)
    found: list[list[str]] = []

    def there() -> bool:
        found[:] = [flags for kib, flags in areas_of(pid) if kib == 768 * 1024]
        return bool(found) and "dc" in found[0]  # the last that QEMU does to it: no copy for children

    wait_until("its memory is there", there, 60)
    assert len(found) == 1 and "mg" not in found[0] and "dd" in found[0]


def test_its_own_user_cannot_look_into_serve(spawn, tmp_path):
    """Keys are in its memory. Root is here without what makes it more than a user."""
    as_user = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    assert_others_are_readable(as_user)
    path = put_in_place(tmp_path, SLEEP)
    run = spawn(*SERVE, str(tmp_path / "state"), prefix=as_user, PATH=path, PODFLARE_API_KEYS="key")
    run.wait_for("starting the emulated host")
    machine_of(run.process.pid)
    assert readable(as_user, run.process.pid) == []
