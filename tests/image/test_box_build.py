# SPDX-License-Identifier: Apache-2.0
"""box/build.sh and the kernel of the emulated host: a newer one than the guests', which may not be there
to be had. The fetching is test_kernel.py's; here it succeeds or fails as it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from conftest import ROOT, Machine

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "erofs", "kvm-amd")

# Links to what is in $FAKE_KERNEL, or a failure with a cause when that is empty.
FAKE_BUILD_KERNEL = r"""#!/bin/bash
echo "build-kernel $*" >>"$FAKE_LOG"
out=${!#}
mkdir -p "$out"
if [ -z "$FAKE_KERNEL" ]; then
	echo "--- end of the log:" >&2
	echo "kernel: error: cannot download x" >&2
	echo "kernel:   ${FAKE_CAUSE-the registry is asleep}" >&2
	exit 1
fi
for name in vmlinux modules kernel.manifest; do
	ln -sfn "$FAKE_KERNEL/$name" "$out/$name"
done
"""


def kernel(folder: Path, name: str) -> Path:
    """A kernel as build-kernel.sh leaves it, with all modules built in."""
    (folder / "modules").mkdir(parents=True)
    (folder / "vmlinux").write_text(name)
    (folder / "modules/x.ko").write_text("x")
    (folder / "modules/modules.builtin").write_text("".join(f"{m}.ko\n" for m in MODULES))
    (folder / "kernel.manifest").write_text(f"release {name}\n")
    return folder


@pytest.fixture
def box(machine: Machine) -> Machine:
    """A build directory, in `out`, that lacks nothing but the emulated host."""
    shutil.copytree(ROOT / "box", machine.base / "box")
    (machine.guest / "build-kernel.sh").write_text(FAKE_BUILD_KERNEL)
    machine.out.mkdir()
    for program in ("podflared", "podflare-vmm", "podflare-egress"):
        shutil.copy("/bin/true", machine.out / program)
    (machine.out / "groups.json").write_text("{}")
    kernel(machine.out / "guest", "theirs")
    (machine.out / "guest/initramfs.cpio").write_text("x")
    machine.env["FAKE_KERNEL"] = str(kernel(machine.base / "newer", "newer"))
    return machine


def build(box: Machine, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    result = box.run(box.base / "box/build.sh", *args, box.out, **env)
    assert result.returncode == 0, result.stderr
    return result


def kernel_of(box: Machine) -> str:
    """Which kernel the emulated host has; its parts must agree."""
    name = (box.out / "box/vmlinux").read_text()
    assert (box.out / "box/kernel.manifest").read_text() == f"release {name}\n"
    assert (box.out / "box/initramfs.cpio").exists()
    return name


def made(box: Machine) -> int:
    """Changes when the emulated host is made again."""
    return (box.out / "box/programs.erofs").stat().st_ino


def test_a_kernel_of_its_own(box: Machine) -> None:
    assert build(box).stdout == ""
    assert kernel_of(box) == "newer"
    assert box.calls() == [f"build-kernel --release trixie {box.out}/box/kernel"]
    first = made(box)
    build(box)
    assert made(box) == first, "it was made again though nothing had changed"
    newest = str(kernel(box.base / "newest", "newest"))
    build(box, "--update", FAKE_KERNEL=newest)
    assert box.calls()[-1] == f"build-kernel --update --release trixie {box.out}/box/kernel"
    assert kernel_of(box) == "newest" and made(box) != first


def test_without_one_the_guests_is_used(box: Machine) -> None:
    """That is said in a line, with the cause, each time; the registry is asked once a day."""
    for _ in range(2):
        result = build(box, FAKE_KERNEL="")
        assert result.stderr == "" and result.stdout.count("\n") == 1
        assert "uses the guests' kernel" in result.stdout
        assert "cannot be had: the registry is asleep (tried again" in result.stdout
        assert kernel_of(box) == "theirs"
    assert len(box.calls()) == 1
    build(box)
    assert kernel_of(box) == "theirs", "asked again within a day"
    yesterday = time.time() - 49 * 3600
    os.utime(box.out / "box/kernel.failed", (yesterday, yesterday))
    first = made(box)
    assert build(box).stdout == ""
    assert kernel_of(box) == "newer" and made(box) != first


def test_a_cause_that_takes_more_than_a_line(box: Machine) -> None:
    result = build(box, FAKE_KERNEL="", FAKE_CAUSE="the cause is in the lines above")
    assert f"cannot be had: see {box.out}/box/kernel.failed (tried" in result.stdout
    assert "cannot download x" in (box.out / "box/kernel.failed").read_text()


def test_an_update_asks_at_once(box: Machine) -> None:
    build(box, FAKE_KERNEL="")
    build(box, "--update")
    assert kernel_of(box) == "newer"
    assert not (box.out / "box/kernel.failed").exists()


def test_an_update_that_fails_changes_nothing(box: Machine) -> None:
    build(box)
    first = made(box)
    result = build(box, "--update", FAKE_KERNEL="")
    assert "keeps its kernel" in result.stdout and "the registry is asleep" in result.stdout
    assert kernel_of(box) == "newer" and made(box) == first
    assert build(box).stdout == ""


def test_one_that_has_gone_from_the_cache(box: Machine) -> None:
    """The links lead nowhere then, and it cannot be fetched again."""
    build(box)
    shutil.rmtree(box.env["FAKE_KERNEL"])
    assert "uses the guests' kernel" in build(box, FAKE_KERNEL="").stdout
    assert kernel_of(box) == "theirs"


@pytest.mark.parametrize("name", ["programs.erofs", "initramfs.cpio", "kernel.manifest", "vmlinux"])
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_what_was_made_and_is_not_whole(box: Machine, name: str, how: str) -> None:
    """As after an end without power, or a hand that slipped: it is made again."""
    build(box)
    made_file = box.out / "box" / name
    before = made_file.read_bytes()
    made_file.unlink()
    if how == "empty":
        made_file.touch()
    build(box)
    assert made_file.read_bytes() == before
    first = made(box)
    build(box)
    assert made(box) == first


def test_all_is_on_the_disk_before_it_counts(box: Machine) -> None:
    """The stamp is the last, and what it stands for is synced before."""
    box.fake(
        "sync",
        '#!/bin/sh\nfor f; do [ -s "$f" ] && echo "sync ${f##*/} $(ls $OUT/box/stamp 2>&1)"; done >>$FAKE_LOG\n',
    )
    build(box, OUT=str(box.out))
    synced = box.calls("sync ")
    assert {line.split()[1] for line in synced} >= {"programs.erofs", "initramfs.cpio"}
    assert all("No such file" in line for line in synced), synced
