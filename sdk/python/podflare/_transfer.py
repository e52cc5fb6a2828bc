# SPDX-License-Identifier: Apache-2.0
"""Moving file contents, as far as it is the same for sync and async: which argument is the data, pieces of
a body, ranges, and where a broken download goes on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import posixpath
import re
import secrets
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Tuple, Union

import httpx

from ._errors import (
    DaemonUnreachableError,
    InvalidRequestError,
    PodflareError,
    RemoteFileNotFoundError,
    RequestTimeoutError,
    StreamBrokenError,
    TooLargeError,
)
from ._plain import flat
from ._types import FileStat

Data = Union[bytes, bytearray, memoryview, BinaryIO, Path]
Local = Union[str, "os.PathLike[str]"]
Progress = Callable[[int, Optional[int]], object]

CHUNK = 64 * 1024
MAX_LINKS = 20

# How many bytes a download may bring when nobody says: to memory; and to a disk of ours what the disk
# of the sandbox holds, as far as that is known. (Of the image, which is on no disk, a file may be larger
# than a small disk.)
IN_MEMORY = 2 << 30
DISK_UNKNOWN = 64 << 30
DISK_AT_LEAST = 1 << 30


def data_and_path(first: object, second: object) -> Tuple[Any, str]:
    """Tell the data from the path, whatever their order."""

    def is_data(value: object) -> bool:
        return isinstance(value, (bytes, bytearray, memoryview)) or hasattr(value, "read")

    def is_path(value: object) -> bool:
        return isinstance(value, (str, PurePath))

    if (is_data(first) or isinstance(first, Path)) and is_path(second):
        return first, str(second)
    if is_path(first) and (is_data(second) or isinstance(second, Path)):
        return second, str(first)
    if isinstance(first, str) and isinstance(second, str):
        raise TypeError(
            "upload(data, path): both are str, so it is unclear which is the file's name; "
            "pass the text as bytes, text.encode()"
        )
    raise TypeError(
        "upload(data, path) takes bytes, a binary file or a pathlib.Path, and a str; "
        f"not {type(first).__name__} and {type(second).__name__}"
    )


def data_of_write(path: object, data: Any) -> Any:
    """What write(path, data) uploads."""
    if not isinstance(path, (str, PurePath)):
        raise TypeError(f"write(path, data): path must be str, not {type(path).__name__}")
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytes, bytearray, memoryview, Path)) or hasattr(data, "read"):
        return data
    raise TypeError(
        "write(path, data): data must be str, bytes, a binary file or a pathlib.Path, not "
        f"{type(data).__name__}"
    )


@dataclass
class Body:
    """The body of an upload: its pieces, how many bytes they are (None: nobody knows), and the headers
    that say so."""

    pieces: Iterator[bytes]
    size: Optional[int]

    @property
    def headers(self) -> Dict[str, str]:
        # Without a known size httpx sends the body in chunks.
        return {} if self.size is None else {"content-length": str(self.size)}


@contextlib.contextmanager
def body_of(data: Any) -> Iterator[Body]:
    """Upload data as a body; a local file is open until the block ends."""
    if isinstance(data, Path):
        with data.open("rb") as file:
            yield _body_of_file(file)
    elif isinstance(data, (bytes, bytearray, memoryview)):
        whole = bytes(data)
        yield Body(_pieces(io.BytesIO(whole), len(whole)), len(whole))
    else:
        yield _body_of_file(data)


def _body_of_file(file: Any) -> Body:
    size = _remaining(file)
    return Body(_pieces(file, size), size)


def _remaining(file: BinaryIO) -> Optional[int]:
    """How many bytes a file object still has, if it can tell."""
    try:
        here = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(here)
    except (AttributeError, OSError, ValueError):
        return None
    return max(0, end - here)


def _pieces(file: BinaryIO, size: Optional[int]) -> Iterator[bytes]:
    """The file's contents piece by piece: `size` bytes if that was promised, else all."""
    while size is None or size > 0:
        piece = file.read(CHUNK if size is None else min(CHUNK, size))
        if isinstance(piece, str):
            raise TypeError("the file is open in text mode; open it in binary mode, 'rb'")
        if not piece:
            if size is not None:
                raise PodflareError(f"the file became {size} bytes shorter while it was uploaded")
            return
        if size is not None:
            size -= len(piece)
        yield piece


class Outgoing:
    """Data of an upload that may be resumed: it can be read again from any byte on.

    id   names the upload; the same for the same bytes, or the same version of a local file, so that
         another call goes on where one has failed.
    """

    def __init__(self, data: Any) -> None:
        if isinstance(data, (bytes, bytearray, memoryview)):
            self._file: Any = io.BytesIO(bytes(data))
            name = self._file.getvalue()
        elif isinstance(data, Path):
            self._file = data.open("rb")
            name = self._version().encode("utf-8", "surrogateescape") + os.fsencode(data.resolve())
        else:
            self._file, name = data, secrets.token_bytes(16)
        self._own = self._file is not data
        size = _remaining(self._file)
        if size is None:
            raise ValueError(
                "only what can be read again can be resumed: bytes, a path, a file that can seek"
            )
        self.size, self._start, self._before = size, self._file.tell(), self._version()
        self.id = hashlib.sha256(name).hexdigest()[:32]

    def _version(self) -> str:
        try:
            status = os.fstat(self._file.fileno())
        except (AttributeError, OSError):
            return ""
        return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:"

    def body(self, offset: int) -> Body:
        """What follows a byte. What two connections have brought must be one version of the file."""
        if offset and self._version() != self._before:
            raise PodflareError("the file was changed while it was uploaded")
        self._file.seek(self._start + offset)
        left = self.size - offset
        return Body(_pieces(self._file, left), left)

    def checked(self, have: object) -> int:
        """How many bytes have arrived, as the daemon says: what cannot be would send others."""
        if isinstance(have, bool) or not isinstance(have, int) or not 0 <= have <= self.size:
            raise PodflareError(
                f"the daemon says that {have!r:.40} of {self.size} bytes have arrived"
            )
        return have

    def __enter__(self) -> "Outgoing":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._own:
            self._file.close()


class Patience:
    """How often a transfer that breaks is begun again."""

    TRIES = 8  # without a byte more

    def __init__(self) -> None:
        self._have, self._tries = 0, 0

    def arrived(self, have: int) -> None:
        """So much is there."""
        if have > self._have:
            self._have, self._tries = have, 0

    def pause(self, exc: PodflareError) -> float:
        """Seconds to wait after this failure; raises it if waiting is of no use."""
        broken = (DaemonUnreachableError, StreamBrokenError, RequestTimeoutError)
        if not isinstance(exc, broken) and exc.code not in ("upload_busy", "wrong_offset"):
            raise exc
        self._tries += 1
        if self._tries > self.TRIES:
            raise exc
        return float(min(5.0, 0.05 * 2**self._tries))


def not_whole() -> StreamBrokenError:
    """An upload that came to its end, and is not there: one more try without a byte more."""
    return StreamBrokenError("the daemon took all of it, and says that the file is not whole")


class Meter:
    """Tells a progress callback how far it is."""

    def __init__(
        self, progress: Optional[Progress], total: Optional[int] = None, done: int = 0
    ) -> None:
        self._progress, self._total, self._done = progress, total, done

    def expect(self, total: Optional[int]) -> None:
        """So many bytes there are in all, if nobody has said yet."""
        if self._total is None:
            self._total = total

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def span(offset: int, length: Optional[int]) -> Optional[str]:
    """The Range header for a part of a file; None for all of it."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError("offset and length must be 0 or more bytes")
    if length is None:
        return None if offset == 0 else f"bytes={offset}-"
    return f"bytes={offset}-{offset + length - 1}"


def check_span(response: httpx.Response, wanted: Optional[str]) -> None:
    """The whole file instead of a part of it would be put together wrongly."""
    if wanted is not None and response.status_code != 206:
        raise PodflareError("the daemon sent the whole file where a part of it was asked for")


def length_of(response: httpx.Response) -> Optional[int]:
    """How many bytes the reply has, if it says so."""
    value = response.headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else None


def checked_limit(max_bytes: Optional[int]) -> Optional[int]:
    """What was allowed, if something was said of that."""
    if max_bytes is None:
        return None
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes must be a number of bytes, not {type(max_bytes).__name__}")
    if max_bytes < 0:
        raise ValueError(f"max_bytes must be 0 or more bytes, not {max_bytes}")
    return max_bytes


def memory_limit(max_bytes: Optional[int], length: Optional[int]) -> int:
    """How many bytes may come to memory: what was allowed, and no more than was asked for."""
    limit = checked_limit(max_bytes)
    if length is None:
        return IN_MEMORY if limit is None else limit
    return length if limit is None else min(limit, length)


def disk_limit(max_bytes: Optional[int], disk_mib: int) -> int:
    """How many bytes may come to a disk of ours, from a sandbox with such a disk (0: not known)."""
    limit = checked_limit(max_bytes)
    if limit is not None:
        return limit
    return max(disk_mib << 20, DISK_AT_LEAST) if disk_mib else DISK_UNKNOWN


def check_size(path: object, size: Optional[int], limit: int) -> None:
    """TooLargeError for more than is allowed."""
    if size is not None and size > limit:
        raise TooLargeError(
            f"{flat(str(path))} has more than {limit} bytes, which is as much as this call takes",
            hint="max_bytes= allows more",
        )


def link_target(stat: FileStat) -> Optional[str]:
    """Where a symbolic link leads, one step; None for what is no link."""
    if stat.type != "link":
        return None
    return posixpath.join(posixpath.dirname(stat.path), stat.link or "")


def check_resumable(file: Union[Local, BinaryIO]) -> Local:
    """The local path of a download that may be resumed."""
    if not isinstance(file, (str, os.PathLike)):
        raise ValueError("only a download to a local path can be resumed")
    return file


@contextlib.contextmanager
def is_absent() -> Iterator[List[Exception]]:
    """Gathers the error that says that a path leads to nothing."""
    caught: List[Exception] = []
    try:
        yield caught
    except RemoteFileNotFoundError as exc:
        caught.append(exc)
    except InvalidRequestError as exc:
        if exc.code != "not_a_directory":  # a part of the path is a file
            raise
        caught.append(exc)


class Incoming:
    """A local file that is written under a hidden name beside it, and gets its own when it is whole.

    Without `version` that name is random and a broken transfer leaves nothing. With it, the name says
    which version of which file of which sandbox this is the beginning of, and a broken transfer is
    kept.
    """

    def __init__(
        self, target: Local, version: Optional[FileStat] = None, sandbox_id: str = ""
    ) -> None:
        self._target = os.path.abspath(os.fspath(target))
        self._folder, self._name = os.path.split(self._target)
        if not os.path.isdir(self._folder):
            raise FileNotFoundError(errno.ENOENT, "there is no such directory", self._folder)
        self._kept = version is not None
        if version is None:
            token = secrets.token_hex(4)
        else:
            origin = f"{sandbox_id}:{version.path}".encode("utf-8", "surrogateescape")
            digest = hashlib.sha256(origin).hexdigest()[:8]
            token = f"{digest}-{version.size}-{version.mtime_ms}"
        self._path = os.path.join(self._folder, f".{self._name}.{token}.part")
        self._size = None if version is None else version.size
        if self._kept:
            self._remove_others()
        self._file: Any = open(self._path, "ab" if self._kept else "xb")
        self.have: int = self._file.tell()
        if self._size is not None and self.have > self._size:
            self._file.truncate(0)  # not ours, whatever it is
            self.have = 0

    def _remove_others(self) -> None:
        """The beginnings of other versions are of no use any more."""
        pattern = re.compile(rf"\.{re.escape(self._name)}\.[0-9a-f]{{8}}-\d+--?\d+\.part")
        for name in os.listdir(self._folder):
            path = os.path.join(self._folder, name)
            if path != self._path and pattern.fullmatch(name):
                os.unlink(path)

    @property
    def left(self) -> int:
        """How many bytes are missing, when a version is known."""
        return 0 if self._size is None else self._size - self.have

    def write(self, piece: bytes) -> None:
        """Append."""
        self._file.write(piece)
        self.have += len(piece)

    def discard(self) -> None:
        """What is here is of no use, and not to be kept."""
        self._kept = False

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(self, kind: object, exc: object, traceback: object) -> None:
        self._file.close()
        if exc is None and self.left == 0:
            os.replace(self._path, self._target)
            return
        if not self._kept or self.have == 0 or self.left < 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        if exc is None:
            raise PodflareError(f"{abs(self.left)} bytes too many or too few arrived")


def check_unchanged(incoming: Incoming, before: FileStat, after: FileStat) -> None:
    """What was put together from two transfers must be one version of the file."""
    if (before.size, before.mtime_ms, before.type) != (after.size, after.mtime_ms, after.type):
        incoming.discard()
        path = flat(before.path)
        raise PodflareError(f"{path} was changed in the sandbox while it was downloaded")
