# SPDX-License-Identifier: Apache-2.0
"""The image of a template: what its cache key covers, what of the cache is believed, and what is said and
left behind when a build fails. mmdebstrap is faked, packing is real."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest

from conftest import FAKE_MMDEBSTRAP, Machine, Who


def command(machine: Machine, *args: str) -> tuple[str | Path, ...]:
    template = machine.guest / "template.py"
    return (template, "--build", machine.out, "build", *args, "default")


def build(machine: Machine, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return machine.run(*command(machine, *args), **env)


KEY = """
import sys
sys.path.insert(0, sys.argv[1])
import template
print(template.image_key(template.Templates(template.GUEST).load(template.GUEST / "images/default")))
"""


def key(machine: Machine, **env: str) -> str:
    result = machine.run("/usr/bin/python3", "-c", KEY, machine.guest, **env)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip()) == 32
    return result.stdout.strip()


def made(machine: Machine) -> Path:
    """Folder of the built template."""
    return machine.out / "guest/templates/default"


def image_of(machine: Machine) -> Path:
    return made(machine) / "rootfs.erofs"


def entry_of(machine: Machine) -> Path:
    return image_of(machine).resolve().parent


def append(path: Path) -> None:
    path.write_text(path.read_text() + "\n# more\n")


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


RECIPE = Path("images/default")

CHANGES: dict[str, Callable[[Path], object]] = {
    "packages": lambda guest: replace(guest / RECIPE / "template.toml", '"curl"', '"wget"'),
    "excludes": lambda guest: replace(guest / RECIPE / "template.toml", "/man/*", "/woman/*"),
    "customize": lambda guest: append(guest / RECIPE / "customize.sh"),
    "a file": lambda guest: append(guest / RECIPE / "files/etc/pip.conf"),
    "a new file": lambda guest: (guest / RECIPE / "files/etc/new").write_text("x"),
    "a file less": lambda guest: (guest / RECIPE / "files/etc/pip.conf").unlink(),
    "a file renamed": lambda guest: (guest / RECIPE / "files/etc/pip.conf").rename(
        guest / RECIPE / "files/etc/pip2.conf"
    ),
    "a file made executable": lambda guest: (guest / RECIPE / "files/etc/pip.conf").chmod(0o755),
    "a link": lambda guest: (guest / RECIPE / "files/etc/link").symlink_to("pip.conf"),
    "make-root.sh": lambda guest: append(guest / "make-root.sh"),
    "finish-root.sh": lambda guest: append(guest / "finish-root.sh"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_key_changes_with_each_input(machine: Machine, change: str) -> None:
    before = key(machine)
    CHANGES[change](machine.guest)
    assert key(machine) != before


def test_key_changes_with_tools_and_sources(machine: Machine) -> None:
    before = key(machine)
    assert key(machine, PODFLARE_DEBIAN_SOURCES="deb http://mirror.invalid x main") != before
    machine.fake("dpkg-query", "#!/bin/sh\necho 'erofs-utils 99'\n")
    assert key(machine) != before


def test_key_ignores_what_does_not_matter(machine: Machine) -> None:
    before = key(machine)
    append(machine.guest / "build-image.sh")
    settings = machine.guest / RECIPE / "template.toml"
    settings.write_text(settings.read_text() + "warmup = 'pass'\nmemory_mib = 512\n")
    settings.chmod(0o600)
    os.utime(settings, (1, 1))
    pycache = machine.guest / RECIPE / "files/etc/python3.11/__pycache__"
    pycache.mkdir()
    (pycache / "x.pyc").write_bytes(b"x")
    assert key(machine, PODFLARE_CACHE="/elsewhere", TMPDIR="/elsewhere") == before


def test_built_once(machine: Machine) -> None:
    first = build(machine)
    assert first.returncode == 0, first.stderr
    assert "built in" in first.stdout
    image = image_of(machine)
    assert image.read_bytes()[1024:1028] == bytes.fromhex("e2e1f5e0")  # magic of erofs
    manifest = (made(machine) / "manifest").read_text().splitlines()
    assert f"sha256 {hashlib.sha256(image.read_bytes()).hexdigest()}" in manifest
    assert f"key {key(machine)}" in manifest
    assert "package tiny 1.2 all" in manifest
    second = build(machine)
    assert second.returncode == 0 and "built in" not in second.stdout
    assert len(machine.calls("mmdebstrap")) == 1
    assert machine.leftovers() == []


def test_same_inputs_same_bytes_and_update_builds_anew(machine: Machine) -> None:
    assert build(machine).returncode == 0
    before = image_of(machine).read_bytes()
    assert build(machine, "--update").returncode == 0
    assert len(machine.calls("mmdebstrap")) == 2
    assert image_of(machine).read_bytes() == before


def truncate(entry: Path) -> None:
    (entry / "rootfs.erofs").chmod(0o644)
    os.truncate(entry / "rootfs.erofs", 4096)


def flip(entry: Path) -> None:
    image = entry / "rootfs.erofs"
    image.chmod(0o644)
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "bytes instead of"),
    "changed": (flip, "have changed"),
    "missing": (lambda entry: (entry / "rootfs.erofs").unlink(), "is missing"),
    "manifest changed": (lambda entry: (entry / "manifest").unlink(), "is missing"),
    "no sums": (lambda entry: (entry / "sums").unlink(), "no list of sums"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_entry_is_built_again(machine: Machine, damage: str) -> None:
    assert build(machine).returncode == 0
    before = image_of(machine).read_bytes()
    do, message = DAMAGE[damage]
    do(entry_of(machine))
    result = build(machine)
    assert result.returncode == 0, result.stderr
    assert "damaged" in result.stdout and message in result.stdout
    assert len(machine.calls("mmdebstrap")) == 2
    assert image_of(machine).read_bytes() == before


def test_touched_entry_is_read_and_believed(machine: Machine) -> None:
    assert build(machine).returncode == 0
    os.utime(entry_of(machine) / "rootfs.erofs", (1, 1))
    result = build(machine)
    assert result.returncode == 0
    assert len(machine.calls("mmdebstrap")) == 1


@pytest.mark.parametrize(
    ("tool", "package"),
    [("mmdebstrap", "mmdebstrap"), ("mkfs.erofs", "erofs-utils"), ("fsck.erofs", "erofs-utils")],
)
def test_missing_tool_is_named(machine: Machine, tool: str, package: str) -> None:
    machine.remove(tool)
    result = build(machine)
    assert result.returncode == 1
    assert f"missing Debian packages: {package}" in result.stderr
    assert "tools/install-deps.sh" in result.stderr
    assert not image_of(machine).exists()
    assert machine.leftovers() == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("registry", "registry cannot be reached"),
        ("disk", "the disk is full"),
        ("late", "the image could not be made"),
    ],
)
def test_failed_build_explains_and_leaves_nothing(
    machine: Machine, failure: str, message: str
) -> None:
    result = build(machine, FAKE_MMDEBSTRAP=failure)
    assert result.returncode == 1
    assert message in result.stderr
    assert list((machine.cache).glob("image/*")) == []
    assert not image_of(machine).exists()
    assert machine.leftovers() == []
    assert build(machine).returncode == 0


def test_failed_update_keeps_the_old_image(machine: Machine) -> None:
    assert build(machine).returncode == 0
    before = image_of(machine).read_bytes()
    assert build(machine, "--update", FAKE_MMDEBSTRAP="registry").returncode == 1
    assert image_of(machine).read_bytes() == before
    assert build(machine).returncode == 0
    assert len(machine.calls("mmdebstrap")) == 2


def test_failed_packing(machine: Machine) -> None:
    machine.fake("mkfs.erofs", "#!/bin/sh\necho 'mkfs: No space left on device' >&2\nexit 1\n")
    result = build(machine)
    assert result.returncode == 1 and "the disk is full" in result.stderr
    assert machine.leftovers() == []


def test_too_little_space_is_seen_before(machine: Machine) -> None:
    machine.fake("df", "#!/bin/sh\necho Avail; echo 37M\n")
    result = build(machine)
    assert result.returncode == 1
    assert "37 MiB free" in result.stderr and "PODFLARE_CACHE" in result.stderr
    assert machine.calls() == []


def test_unusable_cache(machine: Machine) -> None:
    result = build(machine, PODFLARE_CACHE="/dev/null/x")
    assert result.returncode == 1
    assert "cache folder /dev/null/x cannot be written" in result.stderr


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 10 s")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_build_is_not_mistaken_for_an_image(machine: Machine, how: signal.Signals) -> None:
    process = machine.start(*command(machine), FAKE_MMDEBSTRAP="hang")
    wait_for(lambda: list(machine.tmp.glob("*/inside/root/mmdebstrap.x")))
    os.kill(process.pid, how)
    process.wait(timeout=10)
    if how == signal.SIGKILL:
        # Nobody could tidy up, and the step goes on: end it as the end of the machine would.
        work = next(machine.tmp.glob("podflare-image.*"))
        for pid in pids_with(str(work)):
            os.kill(pid, signal.SIGKILL)
    else:
        assert machine.leftovers() == []
        assert pids_with(str(machine.tmp)) == []
    assert not image_of(machine).exists()
    result = build(machine)
    assert result.returncode == 0, result.stderr
    assert machine.leftovers() == []


def not_ours(place: Path, kind: str) -> Path:
    """Something by the name of a working folder that an earlier build may have had."""
    found, real = place / "podflare-image.AbCdEfGh", place / "podflare-image.real"
    (real if kind == "a link" else found).mkdir()
    if kind == "a link":
        found.symlink_to(real)
    (found / "kept").touch()
    if kind == "somebody else's":
        os.chown(found, 65534, 65534)
    return found


@pytest.mark.parametrize("who", ["user", "root"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "somebody else's", marks=pytest.mark.skipif(os.geteuid() != 0, reason="takes root to be two")
        ),
        "a link",
    ],
)
def test_a_working_folder_that_is_not_ours(place: Path, kind: str, who: str) -> None:
    """Where everybody may make folders, the name of one that is gone is anybody's: such a one stops no build, and
    nothing is done in it, least of all as root."""
    machine = Machine(place)
    machine.fake("mmdebstrap", FAKE_MMDEBSTRAP)
    machine.fake("sudo", '#!/bin/sh\necho "sudo $*" >>"$FAKE_LOG"\nexit 1\n')
    machine.cache.mkdir()
    (machine.base / "shared").mkdir()
    found = not_ours(machine.base / "shared", kind)
    (machine.cache / "image.work").write_text(f"{found}\n")
    if who == "user":
        Who("user").owns(machine.base, machine.cache, machine.tmp)
        if kind == "somebody else's":
            os.chown(found, 65534, 65534)
        if os.geteuid() == 0:
            uid = Who("user").uid
            machine.prefix = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    result = build(machine)
    assert result.returncode == 0, result.stderr
    assert (found / "kept").exists() and machine.calls("sudo") == []
    assert not (machine.cache / "image.work").exists()


def test_a_working_folder_that_stays(machine: Machine) -> None:
    """One of ours that cannot be removed stops no build either, and is tried again by the next."""
    machine.cache.mkdir()
    left = machine.tmp / "podflare-image.AbCdEfGh"
    left.mkdir()
    (machine.cache / "image.work").write_text(f"{left}\n")
    rm = f'for word; do [ "$word" != {left} ] || exit 1; done\nexec /usr/bin/rm "$@"\n'
    machine.fake("rm", f"#!/bin/sh\n{rm}")
    result = build(machine)
    assert result.returncode == 0, result.stderr
    assert f"cannot remove {left}" in result.stdout and machine.leftovers() == [str(left)]
    (machine.bin / "rm").unlink()
    assert build(machine, "--update").returncode == 0
    assert machine.leftovers() == [] and not (machine.cache / "image.work").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's builds mount anything on the machine itself")
def test_mounts_of_a_killed_build(machine: Machine) -> None:
    """They end with its folder; what is mounted there loses nothing."""
    mine = machine.base / "mine"
    (mine / "below").mkdir(parents=True)
    (mine / "below/file").write_text("kept")
    process = machine.start(*command(machine), FAKE_MMDEBSTRAP="hang")
    wait_for(lambda: list(machine.tmp.glob("*/inside/root/mmdebstrap.x")))
    process.kill()
    process.wait(timeout=10)
    work = next(machine.tmp.glob("podflare-image.*"))
    for pid in pids_with(str(work)):
        os.kill(pid, signal.SIGKILL)
    inside = work / "inside/root/mmdebstrap.x/sys"
    inside.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", mine, inside], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", inside / "below"], check=True)
    try:
        result = build(machine)
        assert result.returncode == 0, result.stderr
        assert machine.leftovers() == []
        assert str(work) not in Path("/proc/self/mountinfo").read_text()
        assert (mine / "below/file").read_text() == "kept"
    finally:
        for path in (inside / "below", inside):
            subprocess.run(["umount", "-l", path], check=False, stderr=subprocess.DEVNULL)


def pids_with(text: str) -> list[int]:
    """Processes that have a text in their environment or command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            data = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in data and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def test_two_builds_at_once_build_once(machine: Machine) -> None:
    both = [machine.start(*command(machine), FAKE_MMDEBSTRAP="slow") for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len(machine.calls("mmdebstrap")) == 1
    assert any("waiting for it" in out for out, _ in outputs)
    assert machine.leftovers() == []


def test_images_that_nobody_uses_are_removed(machine: Machine) -> None:
    """Three are kept for a way back; what a template uses stays, in another build folder, too."""
    assert build(machine).returncode == 0
    first = entry_of(machine)
    other = machine.base / "other"
    template = machine.guest / "template.py"
    assert machine.run(template, "--build", other, "build", "default").returncode == 0
    for number in range(6):
        (machine.guest / RECIPE / "files/etc/number").write_text(str(number))
        assert build(machine).returncode == 0
    assert first.is_dir()
    assert len(list((machine.cache / "image").iterdir())) == 1 + 1 + 3
    assert image_of(machine).exists()


def test_not_a_plan(machine: Machine) -> None:
    result = machine.run(machine.guest / "build-image.sh", machine.tmp, machine.out)
    assert result.returncode == 1 and "is not a plan" in result.stderr
