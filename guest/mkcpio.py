#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Write an initramfs: an uncompressed cpio archive of the "newc" kind.

    mkcpio.py OUT SPEC...

No rights are needed: device nodes and ownership exist in the archive only. Everything belongs to
root, all times are 0, the order is sorted, so the same input gives the same bytes. OUT appears by
rename, and is left alone when its contents would not change.

SPEC is a file ("-" is standard input) of lines like these; '#' starts a comment, names with blanks
are quoted as in the shell, modes are octal:

    dir   PATH [MODE]                       a folder (755)
    file  PATH SOURCE [MODE]                a file of the host (755 if executable, else 644)
    slink PATH TARGET                       a symbolic link
    nod   PATH c|b MAJOR MINOR [MODE]       a device node (600)
    tree  PATH SOURCE_DIR                   a folder of the host with all its files and links

Folders on the way to a path are made as needed. A path may be named again only as a folder.
Example: mkcpio.py out.cpio - <<< 'file /init build/podflare-agent
nod /dev/console c 5 1'
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import stat
import sys
import tempfile
from typing import BinaryIO, Iterable

MAX_FILE = 0xFFFFFFFF  # sizes are eight hex digits


class SpecError(Exception):
    """The specification is wrong; the text says where and why."""


@dataclasses.dataclass
class Entry:
    """One member of the archive. At most one of source and data is set."""

    mode: int
    source: str | None = None
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def clean_path(path: str) -> str:
    """The name in the archive: relative, without empty or dot parts."""
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise SpecError(f"bad path {path!r}")
    return "/".join(parts)


class Archive:
    """The members of an archive by name."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def add(self, path: str, entry: Entry) -> None:
        """Add a member and the folders above it."""
        name = clean_path(path)
        is_dir = stat.S_ISDIR(entry.mode)
        if not name:
            if not is_dir:
                raise SpecError("the root of the archive can only be a folder")
            return
        old = self.entries.get(name)
        if old is not None and not (is_dir and stat.S_ISDIR(old.mode)):
            raise SpecError(f"/{name} is named twice")
        parent = os.path.dirname(name)
        if parent and parent not in self.entries:
            self.add(parent, Entry(stat.S_IFDIR | 0o755))
        if parent and not stat.S_ISDIR(self.entries[parent].mode):
            raise SpecError(f"/{parent} is not a folder, but /{name} is to be in it")
        self.entries[name] = entry

    def add_file(self, path: str, source: str, mode: int | None = None) -> None:
        """Add a file of the host."""
        st = os.stat(source)
        if not stat.S_ISREG(st.st_mode):
            raise SpecError(f"{source} is not a file")
        if mode is None:
            mode = 0o755 if st.st_mode & 0o111 else 0o644
        self.add(path, Entry(stat.S_IFREG | mode, source=source))

    def add_tree(self, path: str, source: str) -> None:
        """Add a folder of the host with all its files and links."""
        if not os.path.isdir(source):
            raise SpecError(f"{source} is not a folder")
        self.add(path, Entry(stat.S_IFDIR | 0o755))
        for item in os.scandir(source):
            target = f"{path}/{item.name}"
            if item.is_symlink():
                self.add(target, Entry(stat.S_IFLNK | 0o777, data=os.readlink(item.path).encode()))
            elif item.is_dir():
                self.add_tree(target, item.path)
            elif item.is_file():
                self.add_file(target, item.path)
            else:
                raise SpecError(f"{item.path} is neither a file, a folder nor a link")

    def add_line(self, line: str) -> None:
        """Add what one line of a specification says."""
        words = shlex.split(line, comments=True)
        if not words:
            return
        kind, args = words[0], words[1:]
        if kind == "dir" and len(args) in (1, 2):
            self.add(args[0], Entry(stat.S_IFDIR | octal(args[1:], 0o755)))
        elif kind == "file" and len(args) in (2, 3):
            self.add_file(args[0], args[1], octal(args[2:], 0) if args[2:] else None)
        elif kind == "slink" and len(args) == 2:
            self.add(args[0], Entry(stat.S_IFLNK | 0o777, data=args[1].encode()))
        elif kind == "nod" and len(args) in (4, 5) and args[1] in ("c", "b"):
            kind_bits = stat.S_IFCHR if args[1] == "c" else stat.S_IFBLK
            device = (int(args[2]), int(args[3]))
            self.add(args[0], Entry(kind_bits | octal(args[4:], 0o600), device=device))
        elif kind == "tree" and len(args) == 2:
            self.add_tree(args[0], args[1])
        else:
            raise SpecError("not understood; see mkcpio.py --help")

    def write(self, out: BinaryIO) -> None:
        """Write all members, sorted, so that a folder comes before what is in it."""
        for number, name in enumerate(sorted(self.entries), start=1):
            write_entry(out, number, name, self.entries[name])
        write_entry(out, 0, "TRAILER!!!", Entry(0))
        out.write(b"\0" * (-out.tell() % 512))


def octal(words: list[str], default: int) -> int:
    """The mode in words[0], or the default."""
    mode = int(words[0], 8) if words else default
    if not 0 <= mode <= 0o7777:
        raise SpecError(f"bad mode {words[0]}")
    return mode


def write_entry(out: BinaryIO, number: int, name: str, entry: Entry) -> None:
    """Write header, name and contents of one member."""
    data = entry.data
    if entry.source is not None:
        with open(entry.source, "rb") as f:
            data = f.read()
    if len(data) > MAX_FILE:
        raise SpecError(f"{entry.source} is too large for a cpio archive")
    raw_name = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        *(number, entry.mode, 0, 0, links, 0, len(data), 0, 0),
        *(entry.device[0], entry.device[1], len(raw_name), 0),
    )
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    out.write(header + raw_name + b"\0" * (-(len(header) + len(raw_name)) % 4))
    out.write(data + b"\0" * (-len(data) % 4))


def read_spec(archive: Archive, name: str, lines: Iterable[str]) -> None:
    """Add all lines of one specification."""
    for number, line in enumerate(lines, start=1):
        try:
            archive.add_line(line)
        except (SpecError, OSError, ValueError) as e:
            raise SpecError(f"{name}:{number}: {e}: {line.strip()}") from e


def same_contents(a: str, b: str) -> bool:
    """Whether two files hold the same bytes; False if one is missing."""
    try:
        with open(a, "rb") as f, open(b, "rb") as g:
            return f.read() == g.read()
    except OSError:
        return False


def write_archive(archive: Archive, path: str) -> None:
    """Write the archive to a path at once, or leave the path alone when nothing would change."""
    fd, temp = tempfile.mkstemp(prefix=".cpio.", dir=os.path.dirname(path) or ".")
    try:
        with os.fdopen(fd, "wb") as out:
            archive.write(out)
        if same_contents(temp, path):
            os.unlink(temp)
        else:
            os.chmod(temp, 0o644)
            os.rename(temp, path)
    except BaseException:
        os.unlink(temp)
        raise


def main() -> int:
    """Command line; see the top of the file."""
    parser = argparse.ArgumentParser(
        usage="mkcpio.py OUT SPEC...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out")
    parser.add_argument("spec", nargs="+")
    args = parser.parse_args()
    archive = Archive()
    try:
        for spec in args.spec:
            if spec == "-":
                read_spec(archive, "standard input", sys.stdin)
            else:
                with open(spec, encoding="utf-8") as f:
                    read_spec(archive, spec, f)
        write_archive(archive, args.out)
    except (SpecError, OSError) as e:
        print(f"mkcpio.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
