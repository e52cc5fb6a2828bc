#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""List kernel modules with everything they need, in the order in which to load them.

    modules.py MODULES_DIR NAME...            prints one path a line, relative to MODULES_DIR
    modules.py --copy OUT MODULES_DIR NAME... copies them (without debug data) to OUT and writes
                                              OUT/order, one file name a line

MODULES_DIR is lib/modules/VERSION of a kernel package. The dependencies are read from the modules
themselves (their .modinfo section), so neither kmod nor a modules.dep is needed. Those that are
compressed (.ko.xz) are unpacked, when they are copied, too. A module named
with a leading '?' may be absent or built in; so may soft dependencies. Names that the kernel has
built in (modules.builtin) are left out.
"""

from __future__ import annotations

import argparse
import lzma
import os
import struct
import subprocess
import sys
import tempfile

SUFFIXES = (".ko", ".ko.xz")


class ModuleError(Exception):
    """A module is missing or its file cannot be understood."""


def canonical(name: str) -> str:
    """The name as the kernel writes it: crc32c-intel and crc32c_intel are the same module."""
    return name.replace("-", "_")


def module_name(path: str) -> str:
    """File name without folder and suffix, or "" for what is no module."""
    for suffix in SUFFIXES:
        if path.endswith(suffix):
            return os.path.basename(path)[: -len(suffix)]
    return ""


def read_module(path: str) -> bytes:
    """A module's file, unpacked."""
    with open(path, "rb") as f:
        data = f.read()
    if not path.endswith(".xz"):
        return data
    try:
        return lzma.decompress(data)
    except lzma.LZMAError as e:
        raise ModuleError(f"{path} is damaged: {e}") from e


def read_modinfo(path: str) -> dict[str, list[str]]:
    """The key=value pairs of the .modinfo section of an ELF64 module."""
    data = read_module(path)
    try:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ModuleError(f"{path} is not a 64-bit kernel module")
        shoff = struct.unpack_from("<Q", data, 0x28)[0]
        shentsize, shnum, shstrndx = struct.unpack_from("<HHH", data, 0x3A)
        sections = [
            struct.unpack_from("<IIQQQQ", data, shoff + i * shentsize) for i in range(shnum)
        ]
        names_at = sections[shstrndx][4]
        info: dict[str, list[str]] = {}
        for name_at, _type, _flags, _addr, offset, size in sections:
            name_end = data.index(b"\0", names_at + name_at)
            if data[names_at + name_at : name_end] != b".modinfo":
                continue
            for item in data[offset : offset + size].split(b"\0"):
                key, _, value = item.decode("utf-8", "replace").partition("=")
                if key:
                    info.setdefault(key, []).append(value)
        return info
    except (struct.error, IndexError, ValueError) as e:
        raise ModuleError(f"{path} is damaged: {e}") from e


class ModuleTree:
    """All modules of one kernel package."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.paths: dict[str, str] = {}
        for folder, folders, files in os.walk(root):
            folders.sort()
            for file in sorted(files):
                name = module_name(file)
                if name:
                    self.paths[canonical(name)] = os.path.join(folder, file)
        if not self.paths:
            raise ModuleError(f"no kernel modules (*.ko, *.ko.xz) under {root}")
        self.builtin: set[str] = set()
        try:
            with open(os.path.join(root, "modules.builtin"), encoding="utf-8") as f:
                for line in f:
                    self.builtin.add(canonical(os.path.basename(line.strip())[:-3]))
        except FileNotFoundError:
            pass

    def closure(self, wanted: list[str]) -> list[str]:
        """Paths of the wanted modules and all they depend on, each after its dependencies."""
        order: list[str] = []
        state: dict[str, str] = {}

        def visit(name: str, optional: bool, chain: tuple[str, ...]) -> None:
            name = canonical(name)
            if name in self.builtin or state.get(name) == "done":
                return
            if state.get(name) == "open":
                raise ModuleError(f"modules depend on each other in a ring: {' -> '.join(chain)}")
            path = self.paths.get(name)
            if path is None:
                if optional:
                    return
                needed = f" (needed by {chain[-1]})" if chain else ""
                raise ModuleError(f"kernel module {name}{needed} is not under {self.root}")
            state[name] = "open"
            info = read_modinfo(path)
            for soft in info.get("softdep", []):
                before = soft.partition("post:")[0]
                for dep in before.replace("pre:", " ").split():
                    visit(dep, True, chain + (name,))
            for dep in ",".join(info.get("depends", [])).split(","):
                if dep:
                    visit(dep, False, chain + (name,))
            state[name] = "done"
            order.append(path)

        for name in wanted:
            visit(name.lstrip("?"), name.startswith("?"), ())
        return order


def copy_modules(paths: list[str], out: str) -> None:
    """Copy modules to one flat folder and write the load order.

    Debug data goes, and type data (BTF), which costs time at every load and which only tracing
    tools read.
    """
    os.makedirs(out, exist_ok=True)
    files = [module_name(path) + ".ko" for path in paths]
    for path, file in zip(paths, files):
        target = os.path.join(out, file)
        with tempfile.NamedTemporaryFile(suffix=".ko") as unpacked:
            unpacked.write(read_module(path))
            unpacked.flush()
            command = ["strip", "--strip-debug", "--remove-section=.BTF", "-o", target]
            subprocess.run([*command, unpacked.name], check=True)
        os.chmod(target, 0o644)
    with open(os.path.join(out, "order"), "w", encoding="utf-8") as f:
        f.writelines(file + "\n" for file in files)


def main() -> int:
    """Command line; see the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copy", metavar="OUT")
    parser.add_argument("modules_dir")
    parser.add_argument("names", nargs="+")
    args = parser.parse_args()
    try:
        paths = ModuleTree(args.modules_dir).closure(args.names)
        if args.copy:
            copy_modules(paths, args.copy)
        else:
            for path in paths:
                print(os.path.relpath(path, args.modules_dir))
    except (ModuleError, OSError, subprocess.CalledProcessError) as e:
        print(f"modules.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
