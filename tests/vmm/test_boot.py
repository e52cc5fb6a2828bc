# SPDX-License-Identifier: Apache-2.0
"""Boots with a disk that is wrong in some way: the VMM says what, and ends."""

from __future__ import annotations

import os

import pytest

from conftest import BOOT, EXIT_BOOT, EXITED, STAT_DISK_LAYERS, Host, Message, memfd


def boot_fails(host: Host, text: str, **arguments: object) -> None:
    vmm = host.boot(**arguments)  # type: ignore[arg-type]
    said = vmm.expect(EXITED)
    assert said.code == EXIT_BOOT
    assert text in said.text
    assert vmm.receive() is None
    vmm.end()


def test_boots(host: Host) -> None:
    vmm = host.booted(vcpus=2)
    assert vmm.stats()[STAT_DISK_LAYERS] == 1
    vmm.end()


@pytest.mark.parametrize("mib", [0, 63, 65537, 0xFFFFFFFF])
def test_size_out_of_range(host: Host, mib: int) -> None:
    boot_fails(host, "disk", disk_mib=mib)


@pytest.mark.parametrize(
    "case", ["not empty", "two files", "read-only twice", "writable twice", "append", "socket"]
)
def test_bad_layer(host: Host, case: str) -> None:
    rw, ro = host.layer()
    other_rw, other_ro = host.layer()
    append = os.open(f"/proc/self/fd/{rw}", os.O_RDWR | os.O_APPEND)
    pipe = os.pipe()
    if case == "not empty":
        os.write(rw, b"x")
    wrong = {
        "not empty": (rw, ro),
        "two files": (rw, other_ro),
        "read-only twice": (ro, ro),
        "writable twice": (rw, rw),
        "append": (append, ro),
        "socket": pipe,
    }[case]
    boot_fails(host, "layer of the disk", fds={"disk_rw": wrong[0], "disk_ro": wrong[1]})
    for fd in (rw, ro, other_rw, other_ro, append, *pipe):
        os.close(fd)


def test_boot_without_room_for_descriptors(host: Host) -> None:
    import resource

    vmm = host.start()
    fds = [memfd("any", b"") for _ in range(7)]
    resource.prlimit(vmm.pid, resource.RLIMIT_NOFILE, (8, 8))
    vmm.send(Message(BOOT, mem_mib=128, vcpus=1, disk_mib=64), tuple(fds))
    said = vmm.expect(EXITED)
    assert said.code == EXIT_BOOT and "descriptors" in said.text
    for fd in fds:
        os.close(fd)
