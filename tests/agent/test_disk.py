# SPDX-License-Identifier: Apache-2.0
"""The sandbox's disk on a loop device: formatted when empty, mounted when ours, else left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from conftest import HARNESS

TOOL = Path(HARNESS).parent / "disk-tool"
MIB = 1 << 20


def loop_devices() -> bool:
    """Whether this process may use loop devices and mount."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists() and bool(
        shutil.which("losetup") and os.path.exists("/sbin/mke2fs")
    )


pytestmark = pytest.mark.skipif(not loop_devices(), reason="needs root, loop devices, e2fsprogs")


class Disk:
    """A sparse file behind a loop device."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(size)
        command = ["losetup", "--find", "--show", str(path)]
        self.device = subprocess.check_output(command, text=True).strip()
        self.target = path.parent / "mounted"

    def mount(self, after: str = "true") -> subprocess.CompletedProcess[str]:
        """Mounts it with the root of this machine as image, in a mount namespace of its own, and
        runs shell code there."""
        image = self.path.parent / "image"
        image.mkdir(exist_ok=True)
        script = (
            f"mount --bind / {image}\n"
            f'"$0" {self.device} {image} {self.target} && cd {self.target} && {{ {after}; }}'
        )
        command = ["unshare", "--mount", "sh", "-ec", script, str(TOOL)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    def used(self) -> int:
        """Bytes of the file that take space."""
        os.sync()
        return self.path.stat().st_blocks * 512


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """An empty disk of 4 GiB."""
    one = Disk(tmp_path / "disk", 4096 * MIB)
    yield one
    subprocess.run(["losetup", "--detach", one.device], check=True)


def features(disk: Disk) -> set[str]:
    text = subprocess.check_output(["dumpe2fs", "-h", disk.device], text=True, stderr=-1)
    line = next(x for x in text.splitlines() if x.startswith("Filesystem features:"))
    return set(line.split(":")[1].split())


def test_empty_disk(disk: Disk) -> None:
    done = disk.mount("cat /proc/mounts; stat -f -c '%b %f %S' .; echo kept >file")
    assert done.returncode == 0, done.stderr
    options = next(x.split()[3] for x in done.stdout.splitlines() if str(disk.target) in x)
    assert {"rw", "noatime", "discard", "nobarrier", "noinit_itable"} <= set(options.split(","))
    blocks, free, size = map(int, done.stdout.splitlines()[-1].split())
    assert free * size > 0.98 * 4096 * MIB and free > 0.99 * blocks
    assert disk.used() < MIB
    assert "has_journal" not in features(disk) and "metadata_csum" in features(disk)
    again = disk.mount("cat file")
    assert (again.returncode, again.stdout) == (0, "kept\n"), again.stderr
    subprocess.run(["e2fsck", "-f", "-n", disk.device], check=True, capture_output=True)


def test_no_thread_of_the_kernel_works_on_it(disk: Disk) -> None:
    done = disk.mount("cat /proc/[0-9]*/comm 2>/dev/null || true")
    assert done.returncode == 0, done.stderr
    name = os.path.basename(disk.device)
    threads = [x for x in done.stdout.split() if "ext4lazyinit" in x or f"jbd2/{name}" in x]
    assert threads == []


def test_deleted_files_give_their_space_back(disk: Disk) -> None:
    done = disk.mount("head -c 64M /dev/urandom >big; sync")
    assert done.returncode == 0, done.stderr
    assert disk.used() > 60 * MIB
    assert disk.mount("rm big; sync").returncode == 0
    assert disk.used() < 4 * MIB


def test_other_contents_are_left_alone(disk: Disk) -> None:
    with disk.path.open("r+b") as file:
        file.seek(5000)
        file.write(b"precious")
    done = disk.mount()
    assert done.returncode == 1 and "left alone" in done.stderr
    with disk.path.open("rb") as file:
        file.seek(5000)
        assert file.read(8) == b"precious"


def test_the_reason_of_mke2fs_is_told(disk: Disk, tmp_path: Path) -> None:
    image = tmp_path / "image"
    (image / "dev").mkdir(parents=True)
    command = ["unshare", "--mount", str(TOOL), disk.device, str(image), str(disk.target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "exit status 127" in done.stderr and "cannot run /sbin/mke2fs" in done.stderr


def test_no_device(tmp_path: Path) -> None:
    command = [str(TOOL), str(tmp_path / "none"), "/", str(tmp_path / "target")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "did not find the sandbox's disk" in done.stderr


@pytest.mark.parametrize("mib", [64, 65536])
def test_sizes(tmp_path: Path, mib: int) -> None:
    one = Disk(tmp_path / "disk", mib * MIB)
    try:
        done = one.mount("stat -f -c '%f %S' .; mkdir upper; echo x >upper/file")
        assert done.returncode == 0, done.stderr
        free, size = map(int, done.stdout.split())
        assert free * size > 0.96 * mib * MIB
        assert one.used() < 4 * MIB
    finally:
        subprocess.run(["losetup", "--detach", one.device], check=True)
