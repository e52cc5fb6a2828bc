# SPDX-License-Identifier: Apache-2.0
"""Taking the kernel out of its package: every compression, damaged files, the cache, and a registry
that does not answer; and another release's kernel, kept apart. apt is faked, packages are real but tiny."""

from __future__ import annotations

import gzip
import lzma
import os
import pwd
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from conftest import Machine

KERNEL = b"\x7fELF" + bytes(range(256)) * 40
RELEASE = "9.9.0-1-cloud-amd64"
RELEASE13 = "9.9.9+deb13-cloud-amd64"
OTHER = ("--release", "trixie")

# As `apt-get indextargets` prints them; names that are not known stay as they were asked for.
SOURCES = r"""http://mirror.invalid/debian/ bookworm $(CODENAME) main
http://mirror.invalid/debian/ bookworm $(CODENAME) contrib
http://mirror.invalid/debian/ oldstable-updates bookworm-updates main
http://mirror.invalid/debian/ stable trixie main
https://other.invalid/security/ bookworm-security bookworm-security main
https://other.invalid/apt/ bookworm-pgdg bookworm-pgdg main
https://other.invalid/apt/ llvm-toolchain-bookworm $(CODENAME) main
https://other.invalid/node/ nodistro nodistro main
"""

# Hands out $FAKE_DEB, and $FAKE_DEB13 of the other release; FAKE_APT says what goes wrong. Package
# lists of our own always work. FAKE_SOURCES is what indextargets prints.
FAKE_APT = r"""#!/bin/bash
echo "${0##*/} $*" >>"$FAKE_LOG"
sources=
while read -r word value; do
	[ "$word" != Dir::Etc::sourcelist ] || sources=${value//[\";]/}
done < <([ "$2" != -c ] || cat "$3")
if [ -n "$sources" ]; then
	FAKE_DEB=$FAKE_DEB13
	sed 's/^/source: /' "$sources" >>"$FAKE_LOG"
fi
case "${FAKE_APT:-} $*" in
"lists "*Dir::State=*) ;;
"lists "*) echo "E: No packages found" >&2; exit 100 ;;
"registry "*download*)
	echo "E: Failed to fetch http://mirror.invalid/x  Temporary failure resolving 'mirror.invalid'" >&2
	exit 100
	;;
"unsigned "*update*)
	echo "E: The repository 'http://mirror.invalid trixie InRelease' is not signed." >&2
	exit 100
	;;
"norelease "*update*)
	echo "E: The repository 'http://mirror.invalid trixie Release' does not have a Release file." >&2
	exit 100
	;;
"norelease "*depends* | "unsigned "*depends* | "nothing "*depends* | "hang "*depends*)
	echo "E: No packages found" >&2
	exit 100
	;;
"hang "*update*)
	exec sleep 60
	exit 100
	;;
esac
for word; do
	case $word in
	indextargets) printf '%b' "$FAKE_SOURCES" ;;
	depends)
		name=${FAKE_DEB##*/}
		printf 'linux-image-cloud-amd64\n  Depends: %s\n' "${name%%_*}"
		;;
	show) printf 'Size: %s\nSHA256: %s\n\n' $(sha256sum <"$FAKE_DEB" | sed "s/ .*//;s/^/35400000 /") ;;
	download)
		cp "$FAKE_DEB" .
		[ "${FAKE_APT:-}" != tampered ] || echo x >>"${FAKE_DEB##*/}"
		;;
	esac
done
"""


def bzimage(payload: bytes, size: int = len(KERNEL), sectors: int = 3) -> bytes:
    """A kernel image with what the boot protocol says about the payload."""
    image = bytearray((sectors + 1) * 512 + 100)
    image[0x1F1] = sectors
    image[0x202:0x206] = b"HdrS"
    whole = payload + struct.pack("<I", size)
    struct.pack_into("<II", image, 0x248, 100, len(whole))
    return bytes(image) + whole + b"after"


def compressed(kind: str) -> bytes:
    if kind == "gzip":
        return gzip.compress(KERNEL)
    if kind == "xz":
        return lzma.compress(KERNEL, check=lzma.CHECK_CRC32)
    command = {"lz4": ["lz4", "-lc"], "zstd": ["zstd", "-qc"]}[kind]
    return subprocess.run(command, input=KERNEL, capture_output=True, check=True).stdout


@pytest.mark.parametrize("kind", ["lz4", "xz", "zstd", "gzip"])
def test_payload(machine: Machine, kind: str) -> None:
    (machine.base / "vmlinuz").write_bytes(bzimage(compressed(kind)))
    result = machine.run(
        machine.guest / "vmlinux.py", machine.base / "vmlinuz", machine.base / "vmlinux"
    )
    assert result.returncode == 0, result.stderr
    assert (machine.base / "vmlinux").read_bytes() == KERNEL


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "not a bzImage"),
        (b"MZ" * 1000, "not a bzImage"),
        (bzimage(compressed("xz"))[:2200], "shorter than its header says"),
        (bzimage(b"BZh9" + b"x" * 50), "compression is unknown"),
        (bzimage(compressed("xz"), size=len(KERNEL) + 1), "unpacked"),
        (bzimage(compressed("xz")[:-40]), "unpacked"),
        (bzimage(gzip.compress(b"no ELF file"), size=11), "unpacked"),
    ],
    ids=["empty", "not Linux", "cut", "unknown", "size differs", "payload cut", "no ELF"],
)
def test_damaged_image(machine: Machine, image: bytes, message: str) -> None:
    (machine.base / "vmlinuz").write_bytes(image)
    result = machine.run(
        machine.guest / "vmlinux.py", machine.base / "vmlinuz", machine.base / "vmlinux"
    )
    assert result.returncode == 1
    assert message in result.stderr and "Traceback" not in result.stderr
    assert [path.name for path in machine.base.glob("vmlin*")] == ["vmlinuz"]


def package(machine: Machine, release: str, modules: str) -> str:
    """Make a tiny kernel package with its modules in a folder; its path."""
    tree = machine.base / f"package-{release}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: linux-image-{release}\nVersion: 9.9-1\nArchitecture: amd64\n"
        "Maintainer: x <x@x.invalid>\nDescription: x\n"
    )
    (tree / "boot").mkdir()
    (tree / f"boot/vmlinuz-{release}").write_bytes(bzimage(compressed("lz4")))
    (tree / f"boot/config-{release}").write_text("CONFIG_X=y\n")
    (tree / modules / release / "kernel").mkdir(parents=True)
    (tree / modules / release / "kernel/x.ko").write_text("x")
    (tree / modules / release / "kernel/y z.ko").write_text("two words")
    (tree / modules / release / "modules.dep").write_text("kernel/x.ko:\n")
    deb = machine.base / f"linux-image-{release}_9.9-1_amd64.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True
    )
    return str(deb)


def prepared(machine: Machine) -> Machine:
    """A machine whose apt hands out a tiny kernel package, and another one of another release."""
    machine.env["FAKE_DEB"] = package(machine, RELEASE, "lib/modules")
    machine.env["FAKE_DEB13"] = package(machine, RELEASE13, "usr/lib/modules")
    machine.env["FAKE_SOURCES"] = SOURCES
    for tool in ("apt-get", "apt-cache"):
        machine.fake(tool, FAKE_APT)
    return machine


@pytest.fixture
def registry(machine: Machine) -> Machine:
    """As most tests need it."""
    return prepared(machine)


def build(machine: Machine, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return machine.run(machine.guest / "build-kernel.sh", *args, machine.out, **env)


def check(machine: Machine, release: str = RELEASE) -> None:
    assert (machine.out / "vmlinux").read_bytes() == KERNEL
    assert (machine.out / "vmlinuz").read_bytes() == bzimage(compressed("lz4"))
    assert (machine.out / "modules/kernel/x.ko").read_text() == "x"
    assert f"release {release}" in (machine.out / "kernel.manifest").read_text().splitlines()
    assert machine.leftovers() == []


def test_fetched_once(registry: Machine) -> None:
    result = build(registry)
    assert result.returncode == 0, result.stderr
    check(registry)
    calls = len(registry.calls())
    assert build(registry).returncode == 0
    assert len(registry.calls()) == calls, "the second run asked apt"
    assert build(registry, "--update").returncode == 0
    assert len(registry.calls()) > calls
    check(registry)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, who can have apt be somebody else")
@pytest.mark.parametrize("way", ["system", "private", "release", "user"])
def test_root_has_apt_download_as_somebody_else(place: Path, way: str) -> None:
    """Into a folder that apt's account gets to, though the cache is root's alone. Who is not root needs neither."""
    machine = prepared(Machine(place))
    machine.cache.mkdir(mode=0o700)
    machine.tmp.chmod(0o1777)
    uid = pwd.getpwnam("_apt").pw_uid
    if way == "user":
        machine.fake("id", "#!/bin/sh\necho 1234\n")
    probe = f'echo "folder $(stat -c "%u %a" .) $PWD" >>"$FAKE_LOG"\n\tcp "$FAKE_DEB" .'
    for tool in ("apt-get", "apt-cache"):
        machine.fake(tool, FAKE_APT.replace('cp "$FAKE_DEB" .', probe))
    result = build(
        machine,
        *(OTHER if way == "release" else ()),
        **({"FAKE_APT": "lists"} if way == "private" else {}),
    )
    assert result.returncode == 0, result.stderr
    check(machine, RELEASE13 if way == "release" else RELEASE)
    (folder,) = machine.calls("folder")
    owner, mode, path = folder.split()[1:]
    assert (int(owner) == uid, path.startswith(str(machine.tmp))) == (way != "user", way != "user")
    if way == "user":
        assert path.startswith(str(machine.cache))
    sandbox = {word for call in machine.calls() for word in call.split() if "Sandbox::User" in word}
    assert sandbox == (set() if way == "release" else {f"APT::Sandbox::User={'_apt' if way != 'user' else 'root'}"})


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, who has such a folder")
@pytest.mark.parametrize("kind", ["ours", "somebody else's", "a link"])
def test_a_download_that_was_killed(registry: Machine, kind: str) -> None:
    """What it has left goes with the next one, unless the name is somebody else's by now."""
    left, real = registry.tmp / "podflare-kernel.AbCdEfGh", registry.base / "real"
    real.mkdir()
    left.symlink_to(real) if kind == "a link" else left.mkdir()
    (left / "file").touch()
    if kind == "somebody else's":
        os.chown(left, 65534, 65534)
    registry.cache.mkdir()
    (registry.cache / "kernel.work").write_text(f"{left}\n")
    result = build(registry)
    assert result.returncode == 0, result.stderr
    assert (left / "file").exists() == (kind != "ours")
    assert not (registry.cache / "kernel.work").exists()
    assert registry.leftovers() == ([] if kind == "ours" else [str(left)])


def test_damaged_extraction_needs_no_download(registry: Machine) -> None:
    assert build(registry).returncode == 0
    calls = len(registry.calls())
    kernel = (registry.out / "vmlinux").resolve()
    kernel.chmod(0o644)
    os.truncate(kernel, 100)
    result = build(registry)
    assert result.returncode == 0 and "damaged" in result.stdout
    check(registry)
    assert len(registry.calls()) == calls


def change(path: Path) -> None:
    path.chmod(0o644)
    path.write_text("y" * path.stat().st_size)


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 0)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a module is gone": ("modules/kernel/x.ko", Path.unlink, "x.ko is missing"),
    "a module is empty": ("modules/kernel/x.ko", cut, "x.ko has 0 bytes instead of 1"),
    "a module has changed": ("modules/kernel/x.ko", change, "x.ko have changed"),
    "all modules are gone": ("modules", shutil.rmtree, "is missing"),
    "their list is empty": ("modules/modules.dep", cut, "modules.dep has 0 bytes"),
    "config": ("config", cut, "config has 0 bytes"),
    "two of them": ("modules/kernel", lambda path: [change(p) for p in path.iterdir()], "x.ko have"),
    "no sums": ("sums", Path.unlink, "no list of sums"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_file_of_an_entry_counts(registry: Machine, damage: str) -> None:
    assert build(registry).returncode == 0
    calls = len(registry.calls())
    name, do, message = DAMAGE[damage]
    do((registry.out / "vmlinux").resolve().parent / name)
    result = build(registry)
    assert result.returncode == 0, result.stderr
    assert "damaged: " in result.stdout and message in result.stdout
    check(registry)
    assert len(registry.calls()) == calls
    assert build(registry).stdout.count("damaged") == 0


def test_a_copied_cache_is_read_and_believed(registry: Machine) -> None:
    """Its times and inodes are others."""
    assert build(registry).returncode == 0
    calls = len(registry.calls())
    shutil.copytree(registry.cache, registry.base / "copy")
    shutil.rmtree(registry.cache)
    (registry.base / "copy").rename(registry.cache)
    result = build(registry)
    assert result.returncode == 0 and "extracting" not in result.stdout
    assert len(registry.calls()) == calls


def test_an_entry_of_an_older_program(registry: Machine) -> None:
    """It is no longer used, as it may lack anything; what takes its place needs no network."""
    assert build(registry).returncode == 0
    calls = len(registry.calls())
    script = registry.guest / "build-kernel.sh"
    script.write_text(script.read_text() + "# newer\n")
    result = build(registry)
    assert result.returncode == 0 and "extracting" in result.stdout
    check(registry)
    assert len(registry.calls()) == calls


def test_damaged_package_is_fetched_again(registry: Machine) -> None:
    assert build(registry).returncode == 0
    package = next((registry.cache / "kernel-packages").glob("*.deb"))
    package.write_bytes(b"broken")
    (registry.out / "vmlinux").resolve().unlink()
    result = build(registry)
    assert result.returncode == 0 and "fetching it again" in result.stdout, result.stderr
    check(registry)


def test_no_package_lists(registry: Machine) -> None:
    result = build(registry, FAKE_APT="lists")
    assert result.returncode == 0, result.stderr
    assert any("Dir::State=" in call and "update" in call for call in registry.calls("apt-get"))
    check(registry)


@pytest.mark.parametrize(
    ("failure", "message"),
    [("registry", "registry cannot be reached"), ("tampered", "package lists are old")],
)
def test_failed_download(registry: Machine, failure: str, message: str) -> None:
    result = build(registry, FAKE_APT=failure)
    assert result.returncode == 1
    assert "cannot download" in result.stderr and message in result.stderr
    assert not (registry.out / "vmlinux").exists()
    assert list((registry.cache / "kernel-packages").iterdir()) == []
    assert registry.leftovers() == []


def test_failed_update_keeps_the_old_kernel(registry: Machine) -> None:
    assert build(registry).returncode == 0
    assert build(registry, "--update", FAKE_APT="registry").returncode == 1
    check(registry)
    assert build(registry).returncode == 0


def test_missing_tool_and_space(registry: Machine) -> None:
    registry.remove("lz4")
    result = build(registry)
    assert result.returncode == 1 and "missing Debian packages: lz4" in result.stderr
    registry.fake("lz4", '#!/bin/sh\nexec /usr/bin/lz4 "$@"\n')
    registry.fake("df", "#!/bin/sh\necho Avail; echo 12M\n")
    result = build(registry)
    assert result.returncode == 1 and "12 MiB free" in result.stderr


def test_package_without_a_kernel(registry: Machine) -> None:
    Path(registry.env["FAKE_DEB"]).write_bytes(b"!<arch>\nnot a package")
    result = build(registry)
    assert result.returncode == 1 and "cannot unpack" in result.stderr
    assert not (registry.out / "vmlinux").exists()
    assert registry.leftovers() == []


def test_sources_of_another_release(registry: Machine) -> None:
    """Those of this Debian and no others, with the name replaced, and Debian's keys alone for them."""
    result = build(registry, *OTHER)
    assert result.returncode == 0, result.stderr
    check(registry, RELEASE13)
    assert f"downloading linux-image-{RELEASE13} (35 MB)" in result.stdout
    sources = {line.partition(": ")[2] for line in registry.calls("source: ")}
    how = (
        "deb [arch=amd64 target=Packages signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
    )
    assert sources == {
        f"{how} http://mirror.invalid/debian/ trixie main",
        f"{how} http://mirror.invalid/debian/ trixie-updates main",
        f"{how} https://other.invalid/security/ trixie-security main",
    }
    for tool in ("apt-get", "apt-cache"):
        calls = [call for call in registry.calls(tool) if "indextargets" not in call]
        assert calls and all(" -c " in call for call in calls), calls


def test_releases_are_kept_apart(registry: Machine) -> None:
    """Neither is taken for the other, whichever is there first and whichever is newer."""
    theirs = registry.base / "theirs"
    for out, release, args in (
        (registry.out, RELEASE, ()),
        (theirs, RELEASE13, OTHER),
        (registry.out, RELEASE, ()),
        (theirs, RELEASE13, ("--update", *OTHER)),
        (registry.out, RELEASE, ("--update",)),
    ):
        result = registry.run(registry.guest / "build-kernel.sh", *args, out)
        assert result.returncode == 0, result.stderr
        assert (out / "kernel.manifest").read_text().startswith(f"release {release}\n")
    calls = len(registry.calls())
    for args in ((), OTHER):
        assert build(registry, *args).returncode == 0
    assert len(registry.calls()) == calls, "apt was asked for what is in the cache"
    found = {path.name for path in registry.cache.glob("*/*.deb")}
    assert found == {Path(registry.env[name]).name for name in ("FAKE_DEB", "FAKE_DEB13")}
    (registry.out / "vmlinux").resolve().unlink()  # of the other release: made of its own package
    result = build(registry, *OTHER)
    assert result.returncode == 0 and "damaged" in result.stdout
    check(registry, RELEASE13)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("registry", "registry cannot be reached"),
        ("tampered", "registry is being updated"),
        ("unsigned", "signature of the registry could not be checked"),
        ("norelease", "the mirror of this machine does not have that release"),
        ("nothing", "cannot download linux-image-cloud-amd64 of Debian trixie"),
        ("hang", "registry cannot be reached"),
    ],
)
def test_another_release_that_cannot_be_had(registry: Machine, failure: str, message: str) -> None:
    limit = {"PODFLARE_FETCH_SECONDS": "3"} if failure == "hang" else {}
    result = build(registry, *OTHER, FAKE_APT=failure, **limit)
    assert result.returncode == 1
    assert "cannot download" in result.stderr and message in result.stderr
    assert not (registry.out / "vmlinux").exists()
    assert list(registry.cache.glob("*/*.deb*")) == []
    assert registry.leftovers() == []


def test_no_sources_of_this_debian(registry: Machine) -> None:
    result = build(registry, *OTHER, FAKE_SOURCES="http://x.invalid/ nodistro nodistro main\n")
    assert result.returncode == 1 and "no source of Debian bookworm" in result.stderr
    assert registry.leftovers() == []


@pytest.mark.parametrize("args", [("--release",), ("--release", "../x"), ("--other",)])
def test_wrong_arguments(registry: Machine, args: tuple[str, ...]) -> None:
    result = build(registry, *args)
    assert result.returncode == 1 and "usage: build-kernel.sh" in result.stderr
    assert not registry.cache.exists() and registry.calls() == []
