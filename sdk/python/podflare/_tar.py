# SPDX-License-Identifier: Apache-2.0
"""Directories as tar archives: packing a local one as a stream, and unpacking what a sandbox sent, which
is not trusted: it cannot write outside of the directory that it is unpacked into, nor fill the memory."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import secrets
import stat
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Dict, Iterator, List, NamedTuple, Sequence, Set, Tuple

from ._errors import PodflareError, UnsafeArchiveError
from ._plain import flat
from ._results import ExecResult
from ._transfer import CHUNK, Local
from ._types import TreeInfo

# How tar is run in the sandbox: in a queue of its own, so that it does not wait for what runs there; it
# may take an hour.
HOW: Any = {"timeout": 3600, "context": "podflare_tar"}

MAX_ENTRIES = 1_000_000
# Of what tarfile reads at once, and for one entry: names and extended headers. Linux knows no path,
# and no end of a link, of more than 4096 bytes.
MAX_HEADER = 16 * 1024
MAX_HEADERS = 2 * MAX_HEADER
# Of one name, in bytes and in parts.
MAX_NAME = 4096
MAX_PARTS = 256
# Of digits in a row in extended headers, each row's number squared: some seconds. tarfile without the
# mending of CVE-2024-6232 takes as long for them.
MAX_DIGITS = 1_000_000_000
# Of names, and of what links lead to, in memory.
MAX_NAMES = 256 << 20


@dataclass
class Counts:
    """What was packed or unpacked."""

    files: int = 0
    directories: int = 0
    links: int = 0
    size: int = 0
    skipped: List[str] = field(default_factory=list)

    def info(self, path: str) -> TreeInfo:
        return TreeInfo(
            path=path,
            files=self.files,
            directories=self.directories,
            links=self.links,
            size=self.size,
            skipped=tuple(self.skipped),
        )


class Packing:
    """A local directory as a tar archive. `counts` is known from the start; iterating gives the
    archive, piece by piece. Links are kept as links; owners are not kept."""

    def __init__(self, directory: Local) -> None:
        self._root = os.fspath(directory)
        if not os.path.isdir(self._root):
            raise NotADirectoryError(f"{self._root} is not a directory")
        self.counts = Counts()
        self._entries: List[Tuple[str, str]] = list(self._scan())

    def _scan(self) -> Iterator[Tuple[str, str]]:
        """Local path and name in the archive of everything, parents before their children."""
        todo = [("", self._root)]
        counts = self.counts
        while todo:
            prefix, folder = todo.pop()
            below = []
            for entry in sorted(os.scandir(folder), key=lambda one: one.name):
                name = f"{prefix}{entry.name}"
                if entry.is_symlink():
                    counts.links += 1
                elif entry.is_dir(follow_symlinks=False):
                    counts.directories += 1
                    below.append((f"{name}/", entry.path))
                elif entry.is_file(follow_symlinks=False):
                    counts.files += 1
                    counts.size += entry.stat(follow_symlinks=False).st_size
                else:
                    counts.skipped.append(name)
                    continue
                yield entry.path, name
            todo.extend(reversed(below))

    def __iter__(self) -> Iterator[bytes]:
        for path, name in self._entries:
            yield from self._one(path, name)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _one(self, path: str, name: str) -> Iterator[bytes]:
        status = os.lstat(path)
        info = tarfile.TarInfo(name)
        info.mode = stat.S_IMODE(status.st_mode)
        info.mtime = int(status.st_mtime)
        if stat.S_ISLNK(status.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        elif stat.S_ISDIR(status.st_mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                yield _header(info)
                yield from _contents(file, info.size, path)
            return
        else:
            raise PodflareError(f"{path} is not what it was a moment ago")
        yield _header(info)


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _contents(file: BinaryIO, size: int, path: str) -> Iterator[bytes]:
    left = size
    while left > 0:
        piece = file.read(min(CHUNK, left))
        if not piece:
            raise PodflareError(f"{path} became {left} bytes shorter while it was uploaded")
        left -= len(piece)
        yield piece
    if size % tarfile.BLOCKSIZE:
        yield bytes(tarfile.BLOCKSIZE - size % tarfile.BLOCKSIZE)


class _Guarded:
    """A file from which nothing large is read at once, nor much until the next entry: a header that
    claims to have gigabytes, or headers before headers, are refused before they are in memory. Nor is
    there anything behind its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell
        self._size = file.seek(0, os.SEEK_END)
        file.seek(0)
        self._digits = MAX_DIGITS
        self._extended = False  # what was read last is the header of an extended one
        self.next_entry()

    def next_entry(self) -> None:
        """An entry begins."""
        self._left = MAX_HEADERS

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > min(MAX_HEADER, self._left):
            raise UnsafeArchiveError("the archive from the sandbox has a header of absurd size")
        self._left -= size
        data = self._file.read(size)
        if self._extended:
            self._digits -= sum(len(row) ** 2 for row in _DIGITS.findall(data))
            if self._digits < 0:
                raise UnsafeArchiveError("the archive from the sandbox has headers full of digits")
        self._extended = size == tarfile.BLOCKSIZE and data[156:157] in (b"x", b"g", b"X")
        return data

    def seek(self, position: int) -> None:
        """To where an entry that is as large as it claims would end: perhaps there is none."""
        if position > self._size:
            raise tarfile.ReadError("unexpected end of data")
        self._file.seek(position)


_DIGITS = re.compile(rb"[0-9]{32,}")


class _Member(NamedTuple):
    """What is kept of an entry: tarfile would keep all headers of each."""

    type: str  # "file", "dir", "link", "hard", "other"
    to: str
    size: int
    mode: int
    mtime: float
    data: int  # where it begins in the archive


def unpack(file: IO[bytes], target: Local) -> TreeInfo:
    """Unpack an archive, whole and seekable, into a local directory that exists. What is there under
    the same names is replaced, but a directory is never replaced by something else, and nothing is
    written through a symbolic link.

    Raises UnsafeArchiveError, before anything is written, if a name leads out of the directory.
    Symbolic links that lead out of it, or may at some time (`_Unpacking._stays`), are left out, as are
    devices and pipes: see TreeInfo.skipped.
    """
    root = os.path.realpath(target)
    return _Unpacking(file, root).run(_members(file)).info(os.fspath(target))


def _members(file: IO[bytes]) -> Dict[str, _Member]:
    """The entries by their names, which all stay inside. Of two of one name the last one counts."""
    guarded: Any = _Guarded(file)
    try:
        with tarfile.open(
            fileobj=guarded, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            return _checked(archive, guarded)
    except (tarfile.TarError, RecursionError, ArithmeticError, LookupError, ValueError) as exc:
        # What an odd header makes of tarfile is not always an error of its own.
        why = flat(str(exc))
        raise PodflareError(f"the archive from the sandbox cannot be read: {why}") from exc


def _checked(archive: Any, guarded: _Guarded) -> Dict[str, _Member]:
    members: Dict[str, _Member] = {}
    folders: Set[str] = set()  # those above something, also without an entry
    count, room = 0, MAX_NAMES
    while True:
        guarded.next_entry()
        entry = archive.next()
        if archive.pax_headers:
            # tar writes none, and each entry would have a copy.
            raise UnsafeArchiveError(
                "the archive from the sandbox has headers that hold for all of it"
            )
        if entry is None:
            return members
        archive.members.clear()
        if entry.issparse() or entry.size < 0:
            raise UnsafeArchiveError(
                f"the archive from the sandbox claims an odd size of {entry.name!r}"
            )
        name, member = _inside(entry.name), _member(entry)
        room -= sys.getsizeof(name) + sys.getsizeof(member.to)
        for folder in _above(name, folders):
            folders.add(folder)
            room -= sys.getsizeof(folder)
        count += 1
        if max(count, len(folders)) > MAX_ENTRIES:
            raise UnsafeArchiveError(f"the archive from the sandbox has over {MAX_ENTRIES} entries")
        if room < 0:
            raise UnsafeArchiveError(
                f"the archive from the sandbox has names of over {MAX_NAMES} bytes"
            )
        if name != ".":
            members.pop(name, None)
            members[name] = member


def _member(entry: tarfile.TarInfo) -> _Member:
    kind, to = "other", ""
    if entry.isdir():
        kind = "dir"
    elif entry.isreg():
        kind = "file"
    elif entry.islnk():
        kind, to = "hard", _inside(entry.linkname)
    elif entry.issym():
        kind, to = "link", entry.linkname
    return _Member(kind, to, entry.size, entry.mode, entry.mtime, entry.offset_data)


def _too_long(name: str) -> bool:
    return len(name.encode("utf-8", "surrogateescape")) > MAX_NAME


def _inside(name: str) -> str:
    """A name of the archive in its shortest form."""
    parts = name.split("/")
    if len(parts) > MAX_PARTS or _too_long(name):
        raise UnsafeArchiveError(
            f"the archive from the sandbox has a name of over {MAX_PARTS} parts, or {MAX_NAME} bytes"
        )
    if name.startswith("/") or ".." in parts or "\0" in name or _is_another(parts):
        raise UnsafeArchiveError(f"the archive from the sandbox has the name {name!r} in it")
    return posixpath.normpath(name)


def _above(name: str, known: Set[str]) -> List[str]:
    """The directories above a name that are not known, the lowest first. Those above known ones are."""
    new = []
    folder = name.rpartition("/")[0]
    while folder and folder not in known:
        new.append(folder)
        folder = folder.rpartition("/")[0]
    return new


# Names of devices, in each directory and with each ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\xb9\xb2\xb3])", re.I)


def _is_another(parts: Sequence[str]) -> bool:
    """Whether some part of a name means something else on Windows: a drive or a stream of a file (:),
    two parts, a device, or the name without the dots and blanks at its end."""
    return os.name == "nt" and any(
        ":" in part
        or "\\" in part
        or part not in ("", ".", "..")
        and part[-1] in ". "
        or _DEVICES.fullmatch(part.partition(".")[0].rstrip(" "))
        for part in parts
    )


def _is_directory(path: str) -> bool:
    """A real one, no link, nor what Windows has of that kind."""
    status = os.lstat(path)
    reparse = getattr(stat, "FILE_ATTRIBUTE_REPARSE_POINT", 0)
    odd = getattr(status, "st_file_attributes", 0) & reparse
    return stat.S_ISDIR(status.st_mode) and not odd


class _Unpacking:
    """Files first, then links between them, then what directories are like: no link is there yet while
    files are written."""

    def __init__(self, file: IO[bytes], root: str) -> None:
        self._source = file
        self._root = root
        self._written: Set[str] = set()
        self._directories: Set[str] = set()  # made or looked at: they stay what they are
        self.counts = Counts()

    def run(self, members: Dict[str, _Member]) -> Counts:
        for name, member in members.items():
            if member.type == "dir":
                self._directory(name)
            elif member.type == "file":
                self._file(name, member)
            elif member.type == "hard":
                self._hard_link(name, member.to)
            elif member.type == "other":
                self.counts.skipped.append(name)
        for name, member in members.items():
            if member.type == "link":
                self._link(name, member.to)
        for name, member in reversed(members.items()):
            if member.type == "dir":
                _dress(os.path.join(self._root, name), member, 0o700)
        return self.counts

    def _directory(self, name: str) -> str:
        """Make a directory and those above it, without going through links. Its local path."""
        for folder in reversed(_above(f"{name}/", self._directories)):
            path = os.path.join(self._root, *folder.split("/"))
            try:
                os.mkdir(path)
            except FileExistsError:
                if not _is_directory(path):
                    raise FileExistsError(
                        f"{path!r} is not a directory, but the sandbox has one in its place"
                    ) from None
            else:
                self.counts.directories += 1
            self._directories.add(folder)
        return os.path.join(self._root, *name.split("/"))

    def _place(self, name: str) -> str:
        """The local path of something that is to be made, in a real directory, and none itself."""
        folder, _, last = name.rpartition("/")
        path = os.path.join(self._directory(folder), last)
        if os.path.lexists(path) and stat.S_ISDIR(os.lstat(path).st_mode):
            raise IsADirectoryError(f"{path!r} is a directory, but the sandbox has a file there")
        return path

    def _free(self, name: str) -> str:
        """The same, with nothing there."""
        path = self._place(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return path

    def _file(self, name: str, member: _Member) -> None:
        path = self._free(name)
        self._source.seek(member.data)
        with open(path, "xb") as local:
            left = member.size
            while left > 0:
                piece = self._source.read(min(CHUNK, left))
                if not piece:
                    raise PodflareError(f"the archive from the sandbox ends within {name!r}")
                local.write(piece)
                left -= len(piece)
        _dress(path, member, 0o600)
        self._written.add(name)
        self.counts.files += 1
        self.counts.size += member.size

    def _hard_link(self, name: str, to: str) -> None:
        if to not in self._written or to == name:
            self.counts.skipped.append(name)
            return
        os.link(os.path.join(self._root, to), self._free(name))
        self._written.add(name)
        self.counts.files += 1

    def _link(self, name: str, to: str) -> None:
        if not to.startswith("/"):
            self._place(name)  # a directory there is told of, also for one that is left out
        if not self._stays(name, to):
            self.counts.skipped.append(name)
            return
        os.symlink(to, self._free(name))
        self.counts.links += 1

    def _stays(self, name: str, to: str) -> bool:
        """Whether a symbolic link stays inside, for good.

        It may go up from its own directory, not beyond the root, and then down through directories
        that are there, to whatever is there, or is not; only a link there has to end inside now. That is
        enough: directories that are there stay (`_place`), and a link that is made there later is looked
        at then. By way of another link, or of what is not there, it may not go, wherever that leads
        now: this archive or the next one could put something else in its place.
        """
        parts = [part for part in to.split("/") if part not in ("", ".")]
        if not to or to.startswith("/") or "\0" in to or _too_long(to) or _is_another(parts):
            return False
        above = name.split("/")[:-1]
        up = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
        down = parts[up:]
        if up > len(above) or ".." in down:
            return False
        path = os.path.join(self._root, *above[: len(above) - up])
        try:
            for part in down[:-1]:
                path = os.path.join(path, part)
                if not _is_directory(path):
                    return False
            end = os.path.join(path, *down[-1:])
            if os.path.lexists(end) and not _is_directory(end):
                with contextlib.suppress(FileNotFoundError):
                    os.stat(end)  # fails for a longer way than the system goes: nor do we
                end = os.path.normcase(os.path.realpath(end))
                root = os.path.normcase(self._root)
                return end == root or end.startswith(os.path.join(root, ""))
        except (OSError, ValueError):
            return False
        return True


def _dress(path: str, member: _Member, at_least: int) -> None:
    """Mode and time as in the archive; never set-id, always usable by its owner, and written by nobody
    else, whatever the sandbox would have."""
    os.chmod(path, member.mode & 0o755 | at_least)
    try:
        os.utime(path, (member.mtime, member.mtime))
    except (OverflowError, ValueError, OSError):
        pass  # no time that this system knows


def check_packed(result: ExecResult) -> None:
    """tar's exit code 1 says that files changed while they were read: so they do."""
    if result.exit_code != 1:
        check_unpacked(result)


def check_unpacked(result: ExecResult) -> None:
    """Raises if tar failed in the sandbox."""
    if not result.ok:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        why = flat(lines[0]) if lines else f"tar ended with {result.termination_reason}"
        raise PodflareError(f"the directory could not be copied in the sandbox: {why}")


def temporary_name() -> str:
    """Where an archive lies in the sandbox while it moves."""
    return f"/tmp/.podflare-{secrets.token_hex(8)}.tar"


def local_directory(path: Local) -> Path:
    """Make a local directory, if it is not there."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def pack_command(archive: str, directory: str) -> List[str]:
    return ["tar", "--create", f"--file={archive}", f"--directory={directory}", "."]


def unpack_command(archive: str, directory: str) -> List[str]:
    return [
        "tar",
        "--extract",
        "--preserve-permissions",
        "--no-same-owner",
        f"--file={archive}",
        f"--directory={directory}",
    ]
