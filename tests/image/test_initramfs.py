# SPDX-License-Identifier: Apache-2.0
"""mkcpio.py, modules.py and build-initramfs.sh: what is in the archive, in which order, and that
wrong input is refused with a reason."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import struct
from pathlib import Path

import pytest

from conftest import Machine


class Member:
    """One member of a cpio archive."""

    def __init__(self, fields: list[int], data: bytes) -> None:
        self.ino, self.mode, self.uid, self.gid, self.nlink, self.mtime = fields[:6]
        self.device = (fields[9], fields[10])
        self.data = data


def read_cpio(path: Path) -> dict[str, Member]:
    """Read a newc archive as the kernel does, checking its form."""
    raw = path.read_bytes()
    assert len(raw) % 512 == 0
    members: dict[str, Member] = {}
    at = 0
    while True:
        assert raw[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(raw[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, name_size = fields[6], fields[11]
        name = raw[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        start = (at + 110 + name_size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert set(raw[start:]) <= {0}
            return members
        text = name[:-1].decode()
        assert text not in members and not text.startswith("/")
        parent = os.path.dirname(text)
        assert not parent or stat.S_ISDIR(members[parent].mode), f"{text} before its folder"
        members[text] = Member(fields, raw[start : start + size])
        at = (start + size + 3) & ~3


def mkcpio(machine: Machine, spec: str, ok: bool = True) -> str:
    (machine.base / "spec").write_text(spec)
    result = machine.run(
        machine.guest / "mkcpio.py", machine.base / "out.cpio", machine.base / "spec"
    )
    assert (result.returncode == 0) == ok, result.stderr
    return result.stderr


def test_archive(machine: Machine) -> None:
    tree = machine.base / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub/data").write_bytes(b"12345")
    (tree / "sub/link").symlink_to("data")
    (tree / "with blank").write_text("x")
    program = machine.base / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o700)
    spec = f"""
        file /init {program}      # a comment
        file /etc/secret {tree}/sub/data 0400
        dir  /proc 555
        slink /bin/sh ../init
        nod /dev/console c 5 1
        nod /dev/vda b 254 0 660
        tree /data {tree}
        file '/a b' '{tree}/with blank'
    """
    mkcpio(machine, spec)
    found = read_cpio(machine.base / "out.cpio")
    modes = {name: (stat.S_IFMT(m.mode), stat.S_IMODE(m.mode)) for name, m in found.items()}
    assert modes == {
        "a b": (stat.S_IFREG, 0o644),
        "bin": (stat.S_IFDIR, 0o755),
        "bin/sh": (stat.S_IFLNK, 0o777),
        "data": (stat.S_IFDIR, 0o755),
        "data/sub": (stat.S_IFDIR, 0o755),
        "data/sub/data": (stat.S_IFREG, 0o644),
        "data/sub/link": (stat.S_IFLNK, 0o777),
        "data/with blank": (stat.S_IFREG, 0o644),
        "dev": (stat.S_IFDIR, 0o755),
        "dev/console": (stat.S_IFCHR, 0o600),
        "dev/vda": (stat.S_IFBLK, 0o660),
        "etc": (stat.S_IFDIR, 0o755),
        "etc/secret": (stat.S_IFREG, 0o400),
        "init": (stat.S_IFREG, 0o755),
        "proc": (stat.S_IFDIR, 0o555),
    }
    assert found["init"].data == b"\x7fELF"
    assert found["data/sub/data"].data == b"12345"
    assert found["bin/sh"].data == b"../init"
    assert found["dev/vda"].device == (254, 0)
    assert {(m.uid, m.gid, m.mtime) for m in found.values()} == {(0, 0, 0)}
    assert len({m.ino for m in found.values()}) == len(found)


def test_same_bytes_and_left_alone_when_unchanged(machine: Machine) -> None:
    source = machine.base / "x"
    source.write_text("one")
    out = machine.base / "out.cpio"
    mkcpio(machine, f"file /x {source}\ndir /b\ndir /a")
    first, bytes_before = out.stat(), out.read_bytes()
    os.utime(source, (5, 5))
    mkcpio(machine, f"dir /a\ndir /b\nfile x {source}")
    assert out.read_bytes() == bytes_before
    assert out.stat().st_ino == first.st_ino and out.stat().st_mtime_ns == first.st_mtime_ns
    source.write_text("two")
    mkcpio(machine, f"file /x {source}\ndir /b\ndir /a")
    assert out.read_bytes() != bytes_before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("file /x /does/not/exist", "No such file"),
        ("file /x /proc", "not a file"),
        ("tree /x /etc/passwd", "not a folder"),
        ("file /x", "not understood"),
        ("fifo /x", "not understood"),
        ("nod /x p 1 2", "not understood"),
        ("nod /x c one 2", "invalid literal"),
        ("dir /x 99", "invalid literal"),
        ("dir /x 177777", "bad mode"),
        ("dir /a/../x", "bad path"),
        ("file / /etc/passwd", "can only be a folder"),
        ("file /x '/etc/passwd", "No closing quotation"),
        ("slink /d/sub there", "named twice"),
        ("dir /f/sub", "not a folder"),
    ],
)
def test_wrong_spec_is_refused(machine: Machine, line: str, message: str) -> None:
    error = mkcpio(machine, f"dir /d/sub\nfile /f /etc/passwd\n{line}\n", ok=False)
    assert message in error and ":3:" in error
    assert not (machine.base / "out.cpio").exists()
    assert list(machine.base.glob(".cpio.*")) == []


def module(path: Path, depends: str = "", softdep: str = "") -> None:
    """Write what modules.py reads of a kernel module: an ELF file with a .modinfo section."""
    info = b"license=GPL\0depends=" + depends.encode() + b"\0"
    if softdep:
        info += b"softdep=" + softdep.encode() + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    info_at, names_at = 64, 64 + len(info)
    table_at = (names_at + len(names) + 7) & ~7
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table_at, 0, 64, 0, 0, 64, 3, 2)
    sections = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 2, 0, info_at, len(info), 0, 0, 1, 0),
        struct.pack("<IIQQQQIIQQ", 10, 3, 0, 0, names_at, len(names), 0, 0, 1, 0),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    body = header + info + names
    path.write_bytes(body + bytes(table_at - len(body)) + b"".join(sections))


@pytest.fixture
def modules(machine: Machine) -> Path:
    """A kernel's modules: top -> mid -> base, with a soft and a built-in dependency."""
    root = machine.base / "modules"
    module(root / "kernel/drivers/top-one.ko", depends="mid,inside", softdep="pre: soft post: late")
    module(root / "kernel/lib/mid.ko", depends="base")
    module(root / "kernel/lib/base.ko")
    module(root / "kernel/lib/soft.ko")
    module(root / "kernel/lib/late.ko")
    module(root / "kernel/lib/ring-a.ko", depends="ring-b")
    module(root / "kernel/lib/ring-b.ko", depends="ring-a")
    module(root / "kernel/lib/broken.ko", depends="gone")
    (root / "modules.builtin").write_text("kernel/lib/inside.ko\n")
    return root


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["top_one"], ["soft", "base", "mid", "top-one"]),
        (["top-one", "base"], ["soft", "base", "mid", "top-one"]),
        (["mid", "soft"], ["base", "mid", "soft"]),
        (["?gone", "inside", "base"], ["base"]),
    ],
)
def test_load_order(machine: Machine, modules: Path, names: list[str], order: list[str]) -> None:
    result = machine.run(machine.guest / "modules.py", modules, *names)
    assert result.returncode == 0, result.stderr
    assert [Path(line).stem for line in result.stdout.split()] == order


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "kernel module gone is not under"),
        ("broken", "kernel module gone (needed by broken) is not under"),
        ("ring-a", "in a ring"),
    ],
)
def test_unusable_modules(machine: Machine, modules: Path, name: str, message: str) -> None:
    result = machine.run(machine.guest / "modules.py", modules, name)
    assert result.returncode == 1 and message in result.stderr


@pytest.mark.parametrize("cut", [0, 4, 50, 70, -64])
def test_damaged_module(machine: Machine, modules: Path, cut: int) -> None:
    path = modules / "kernel/lib/base.ko"
    path.write_bytes(path.read_bytes()[:cut])
    result = machine.run(machine.guest / "modules.py", modules, "base")
    assert result.returncode == 1
    assert "base.ko is" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("suffix", [".ko", ".ko.xz"])
def test_copies_are_unpacked(machine: Machine, modules: Path, suffix: str) -> None:
    """Compressed modules, as packages of newer kernels have them, come out as others do."""
    machine.fake("strip", '#!/bin/bash\nexec cp "${@: -1}" "${@: -2:1}"\n')
    wanted = {path.name: path.read_bytes() for path in modules.rglob("*.ko")}
    if suffix == ".ko.xz":
        for path in list(modules.rglob("*.ko")):
            packed = lzma.compress(path.read_bytes(), check=lzma.CHECK_CRC32)
            path.with_suffix(suffix).write_bytes(packed)
            path.unlink()
    result = machine.run(
        machine.guest / "modules.py", "--copy", machine.out, modules, "top-one", "inside"
    )
    assert result.returncode == 0, result.stderr
    order = (machine.out / "order").read_text().splitlines()
    assert order == ["soft.ko", "base.ko", "mid.ko", "top-one.ko"]
    assert sorted(os.listdir(machine.out)) == sorted([*order, "order"])
    for name in order:
        assert (machine.out / name).read_bytes() == wanted[name]
    assert machine.leftovers() == []


@pytest.mark.parametrize("content", [b"", b"no xz", lzma.compress(b"x" * 999)[:-20]])
def test_damaged_compressed_module(machine: Machine, modules: Path, content: bytes) -> None:
    (modules / "kernel/lib/packed.ko.xz").write_bytes(content)
    result = machine.run(machine.guest / "modules.py", modules, "packed")
    assert result.returncode == 1
    assert "packed.ko.xz is" in result.stderr and "Traceback" not in result.stderr


def test_no_modules(machine: Machine) -> None:
    result = machine.run(machine.guest / "modules.py", machine.tmp, "base")
    assert result.returncode == 1 and "no kernel modules" in result.stderr


WANTED = (
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "erofs",
    "nd_pmem",
    "nd_e820",
    "virtio_blk",
    "overlay",
)


@pytest.fixture
def initramfs(machine: Machine) -> tuple[Path, ...]:
    """The arguments of build-initramfs.sh: an agent, the output, modules."""
    root = machine.base / "kernel-modules"
    for name in WANTED:
        module(root / f"{name}.ko", depends="base" if name == "overlay" else "")
    module(root / "base.ko")
    # The modules are too small for strip: copy the last argument to the one before.
    machine.fake("strip", '#!/bin/bash\nexec cp "${@: -1}" "${@: -2:1}"\n')
    agent = machine.base / "agent"
    shutil.copy("/bin/true", agent)
    machine.out.mkdir()
    return agent, machine.out / "initramfs.cpio", root


def test_initramfs(machine: Machine, initramfs: tuple[Path, ...]) -> None:
    agent, out, _ = initramfs
    result = machine.run(machine.guest / "build-initramfs.sh", *initramfs)
    assert result.returncode == 0, result.stderr
    found = read_cpio(out)
    assert found["init"].data == agent.read_bytes() and found["init"].mode == 0o100755
    order = found["modules/order"].data.decode().split()
    assert order.index("base.ko") < order.index("overlay.ko")
    assert set(order) == {name for name in os.listdir(initramfs[2])}
    assert all(f"modules/{name}" in found for name in order)
    assert found["repl/repl.py"].data == (machine.guest / "repl/repl.py").read_bytes()
    compiled = found["repl/__pycache__/runner.cpython-311.pyc"].data
    assert compiled[4:8] == b"\1\0\0\0"  # not checked against the source
    assert (
        b"/run/podflare/repl/runner.py" in compiled and str(machine.base).encode() not in compiled
    )
    assert found["dev/console"].device == (5, 1)
    before = out.stat()
    assert machine.run(machine.guest / "build-initramfs.sh", *initramfs).returncode == 0
    assert out.stat().st_ino == before.st_ino
    assert list(machine.tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "message"),
    [("agent", "no agent at"), ("modules", "no kernel modules at"), ("repl", "REPL is missing")],
)
def test_initramfs_without_its_parts(
    machine: Machine, initramfs: tuple[Path, ...], missing: str, message: str
) -> None:
    agent, out, modules_dir = initramfs
    if missing == "agent":
        agent.unlink()
    elif missing == "modules":
        shutil.rmtree(modules_dir)
    else:
        (machine.guest / "repl/repl.py").unlink()
    result = machine.run(machine.guest / "build-initramfs.sh", *initramfs)
    assert result.returncode == 1 and message in result.stderr
    assert not out.exists()
