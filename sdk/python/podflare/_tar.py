# SPDX-License-Identifier: Apache-2.0
"""Directories as tar archives: packing a local one as a stream, and unpacking what a sandbox sent, which
is not trusted: it cannot write outside of the directory that it is unpacked into, nor fill the memory."""

from __future__ import annotations

import os
import posixpath
import secrets
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Dict, Iterator, List, Set, Tuple

from ._errors import PodflareError, UnsafeArchiveError
from ._plain import flat
from ._results import ExecResult
from ._transfer import CHUNK, Local
from ._types import TreeInfo

# How tar is run in the sandbox: in a queue of its own, so that it does not wait for what runs there; it
# may take an hour.
HOW: Any = {"timeout": 3600, "context": "podflare_tar"}

MAX_ENTRIES = 1_000_000
# Of what tarfile reads at once: names and extended headers.
MAX_HEADER = 1024 * 1024


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
    """A file from which nothing large is read at once: a header that claims to have gigabytes is
    refused before they are in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > MAX_HEADER:
            raise UnsafeArchiveError("the archive from the sandbox has a header of absurd size")
        return self._file.read(size)


def unpack(file: IO[bytes], target: Local) -> TreeInfo:
    """Unpack an archive, whole and seekable, into a local directory that exists. What is there under
    the same names is replaced, but a directory is never replaced by something else, and nothing is
    written through a symbolic link.

    Raises UnsafeArchiveError, before anything is written, if a name leads out of the directory.
    Symbolic links that lead out of it are left out, as are devices and pipes: see TreeInfo.skipped.
    """
    root = os.path.realpath(target)
    guarded: Any = _Guarded(file)
    try:
        with tarfile.open(
            fileobj=guarded, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            members = _checked(archive)
            return _Unpacking(archive, root).run(members).info(os.fspath(target))
    except tarfile.TarError as exc:
        why = flat(str(exc))
        raise PodflareError(f"the archive from the sandbox cannot be read: {why}") from exc


def _checked(archive: tarfile.TarFile) -> Dict[str, tarfile.TarInfo]:
    """The members by their names, which all stay inside. Of two of one name the last one counts."""
    members: Dict[str, tarfile.TarInfo] = {}
    for count, member in enumerate(archive):
        if count >= MAX_ENTRIES:
            raise UnsafeArchiveError(f"the archive from the sandbox has over {MAX_ENTRIES} entries")
        if member.issparse() or member.size < 0:
            raise UnsafeArchiveError(
                f"the archive from the sandbox claims an odd size of {member.name!r}"
            )
        name = _inside(member.name)
        if member.islnk():
            _inside(member.linkname)
        if name != ".":
            members.pop(name, None)
            members[name] = member
    return members


def _inside(name: str) -> str:
    """A name of the archive in its shortest form."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or os.sep != "/" and os.sep in name:
        raise UnsafeArchiveError(f"the archive from the sandbox has the name {name!r} in it")
    return posixpath.normpath(name)


class _Unpacking:
    """Files first, then links between them, then what directories are like: no link is there yet while
    files are written."""

    def __init__(self, archive: tarfile.TarFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._written: Set[str] = set()
        self.counts = Counts()

    def run(self, members: Dict[str, tarfile.TarInfo]) -> Counts:
        links, directories = [], []
        for name, member in members.items():
            if member.isdir():
                self._directory(name)
                directories.append((name, member))
            elif member.isreg():
                self._file(name, member)
            elif member.islnk():
                self._hard_link(name, _inside(member.linkname))
            elif member.issym():
                links.append((name, member.linkname))
            else:
                self.counts.skipped.append(name)
        self._symlinks(links)
        for name, member in reversed(directories):
            _dress(os.path.join(self._root, name), member, 0o700)
        return self.counts

    def _directory(self, name: str) -> str:
        """Make a directory and those above it, without going through links. Its local path."""
        path = self._root
        for part in name.split("/") if name else ():
            path = os.path.join(path, part)
            try:
                os.mkdir(path)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    raise FileExistsError(
                        f"{path!r} is not a directory, but the sandbox has one in its place"
                    ) from None
            else:
                self.counts.directories += 1
        return path

    def _place(self, name: str) -> str:
        """The local path of something that is to be made, free and in a real directory."""
        folder, _, last = name.rpartition("/")
        path = os.path.join(self._directory(folder), last)
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                raise IsADirectoryError(
                    f"{path!r} is a directory, but the sandbox has a file there"
                )
            os.unlink(path)
        except FileNotFoundError:
            pass
        return path

    def _file(self, name: str, member: tarfile.TarInfo) -> None:
        path = self._place(name)
        source = self._archive.extractfile(member)
        assert source is not None  # it is a regular file
        with source, open(path, "xb") as local:
            left = member.size
            while left > 0:
                piece = source.read(min(CHUNK, left))
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
        os.link(os.path.join(self._root, to), self._place(name))
        self._written.add(name)
        self.counts.files += 1

    def _symlinks(self, links: List[Tuple[str, str]]) -> None:
        made = []
        for name, to in links:
            if to.startswith("/") or "\0" in to:
                self.counts.skipped.append(name)
                continue
            path = self._place(name)
            os.symlink(to, path)
            made.append((name, path))
        # Only now that all are there it is known where each one leads in the end.
        for name, path in made:
            if self._leads_out(path):
                os.unlink(path)
                self.counts.skipped.append(name)
            else:
                self.counts.links += 1

    def _leads_out(self, path: str) -> bool:
        end = os.path.realpath(path)
        return os.path.commonpath([self._root, end]) != self._root


def _dress(path: str, member: tarfile.TarInfo, at_least: int) -> None:
    """Mode and time as in the archive; never set-id, and always usable by its owner."""
    os.chmod(path, member.mode & 0o777 | at_least)
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
