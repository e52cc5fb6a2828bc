# SPDX-License-Identifier: Apache-2.0
"""Files of a sandbox."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Callable,
    Generator,
    Iterator,
    List,
    Mapping,
    Optional,
    TypeVar,
    Union,
)

from . import _calls, _tar
from ._calls import Remote
from ._errors import PodflareError, RemoteFileNotFoundError
from ._http import Call, reading
from ._transfer import (
    CHUNK,
    MAX_LINKS,
    Data,
    Incoming,
    Local,
    Meter,
    Outgoing,
    Patience,
    Progress,
    body_of,
    check_resumable,
    check_size,
    check_span,
    check_unchanged,
    data_and_path,
    data_of_write,
    disk_limit,
    is_absent,
    length_of,
    link_target,
    memory_limit,
    not_whole,
    span,
)
from ._types import FileInfo, FileStat, TreeInfo
from ._watch import FileWatch, check_directory

if TYPE_CHECKING:
    from ._sandbox import Sandbox

T = TypeVar("T")


class Files:
    """The files of a sandbox: `sandbox.files`.

    Paths are the sandbox's. Relative ones start in the working directory of its Python interpreter;
    symbolic links lead nowhere but within the sandbox. All is done with the rights of its ordinary
    user. Missing files raise RemoteFileNotFoundError (a FileNotFoundError), missing rights
    PermissionDeniedError, a full disk DiskFullError.
    """

    def __init__(self, sandbox: "Sandbox") -> None:
        self._sandbox = sandbox

    def _call(self, call: Call[T], **kw: Any) -> T:
        self._sandbox._check_open()
        return self._sandbox._call(call, **kw)

    def read(
        self,
        path: Remote,
        *,
        offset: int = 0,
        length: Optional[int] = None,
        max_bytes: Optional[int] = None,
    ) -> bytes:
        """The contents of a file, or a part of them: `length` bytes (or what there is) from byte
        `offset`, which must lie within the file. TooLargeError for more than `max_bytes`: 2 GiB, or
        `length`, if that is not given."""
        wanted, limit = span(offset, length), memory_limit(max_bytes, length)
        return b"" if length == 0 else b"".join(self._chunks(path, wanted, limit))

    def write(self, path: Remote, data: Union[str, Data]) -> FileInfo:
        """Write a file, completely or not at all: text (as UTF-8), bytes, a binary file object, or a
        pathlib.Path of a local file. Missing directories are made."""
        return self.upload(data_of_write(path, data), path)

    def list(self, path: Remote = ".", *, depth: int = 1) -> List[FileStat]:
        """What is in a directory, sorted by path. `depth` 1 to 16: how many levels are looked at."""
        return self._call(_calls.list_files(self._sandbox.id, path, depth))

    def stat(self, path: Remote) -> FileStat:
        """What lies at a path; of a symbolic link, the link itself."""
        return self._call(_calls.stat(self._sandbox.id, path))

    def exists(self, path: Remote) -> bool:
        """Whether there is anything at a path, be it a link that leads nowhere."""
        with is_absent() as absent:
            self.stat(path)
        return not absent

    def mkdir(self, path: Remote, *, mode: Optional[int] = None, parents: bool = True) -> bool:
        """Make a directory, with those above it unless `parents` is False. Returns False if it is
        there already; AlreadyExistsError if something else is. `mode`: permission bits, else
        0o755."""
        return self._call(_calls.mkdir(self._sandbox.id, path, mode, parents))

    def remove(self, path: Remote, *, recursive: bool = False) -> None:
        """Remove a file, a link or an empty directory; with `recursive`, a directory and all below it
        (DirectoryNotEmptyError otherwise)."""
        self._call(_calls.remove(self._sandbox.id, path, recursive))

    def rename(self, path: Remote, to: Remote, *, overwrite: bool = True) -> None:
        """Give a file or directory another name, or move it. With `overwrite=False`,
        AlreadyExistsError if there is something of that name."""
        self._call(_calls.rename(self._sandbox.id, path, to, overwrite))

    def chmod(self, path: Remote, mode: int) -> None:
        """Set permission bits, such as 0o600."""
        self._call(_calls.chmod(self._sandbox.id, path, mode))

    def watch(
        self, path: Remote, *, recursive: bool = True, timeout: Optional[float] = None
    ) -> FileWatch:
        """Watch a directory: an iterator over what changes in it (`FileEvent`), and a context manager.
        Nothing that happens after this has returned is missed.

        With `recursive`, all directories below it as well, those that are made later too; but not
        what symbolic links lead to, other file systems, and what its user may not read. `timeout`:
        seconds to wait for each event, see `FileWatch`; RequestTimeoutError, too, if the watch is
        not in place within 60 seconds, or `timeout` if that is more. Not told are writes through
        mappings, and os.truncate of a file that nobody closes.

        The code of an error is "too_many_watches" when the sandbox's kernel does not allow to watch
        so many directories.
        """
        self._sandbox._check_open()
        return FileWatch(self._sandbox, check_directory(self.stat(path)), recursive, timeout)

    def upload(
        self,
        data: Union[Data, Remote],
        path: Union[Remote, Data],
        *,
        resume: bool = False,
        progress: Optional[Progress] = None,
    ) -> FileInfo:
        """See `Sandbox.upload`."""
        data, path = data_and_path(data, path)
        if resume:
            return self._send_resuming(path, data, progress)
        with body_of(data) as body:
            return self._send(path, body.pieces, Meter(progress, body.size), body.headers)

    def _send_resuming(self, path: str, data: object, progress: Optional[Progress]) -> FileInfo:
        patience = Patience()
        info: FileInfo
        with Outgoing(data) as out:
            while out.size:
                try:
                    call = _calls.upload_part(self._sandbox.id, path, out.id, out.size)
                    info, complete = self._call(call, content=b"")
                    patience.arrived(out.checked(info.size))
                    if not complete:
                        body, meter = out.body(info.size), Meter(progress, out.size, info.size)
                        call = _calls.upload_part(
                            self._sandbox.id, path, out.id, out.size, info.size
                        )
                        info, complete = self._send_as(call, body.pieces, meter, body.headers)
                    if complete:
                        return info
                    raise not_whole()
                except PodflareError as exc:
                    time.sleep(patience.pause(exc))
            return self._send(path, iter(()), Meter(progress, 0), {"content-length": "0"})

    def _send(
        self, path: str, pieces: Iterator[bytes], meter: Meter, headers: Mapping[str, str] = {}
    ) -> FileInfo:
        call = _calls.upload(self._sandbox.id, path)
        return self._send_as(call, pieces, meter, headers)

    def _send_as(
        self, call: Call[T], pieces: Iterator[bytes], meter: Meter, headers: Mapping[str, str]
    ) -> T:
        def metered() -> Iterator[bytes]:
            for piece in pieces:
                yield piece
                meter.add(len(piece))

        return self._call(call, content=metered(), headers=headers)

    def download_to(
        self,
        path: Remote,
        file: Union[Local, BinaryIO],
        *,
        resume: bool = False,
        progress: Optional[Progress] = None,
        max_bytes: Optional[int] = None,
    ) -> int:
        """See `Sandbox.download_to`."""
        limit = disk_limit(max_bytes, self._sandbox._disk_mib)
        if resume:
            return self._resume(path, check_resumable(file), progress, limit)
        meter = Meter(progress)
        if not isinstance(file, (str, os.PathLike)):
            return self._copy(path, None, file.write, meter, limit)
        with Incoming(file) as incoming:
            return self._copy(path, None, incoming.write, meter, limit)

    def _resume(
        self, path: Remote, file: Local, progress: Optional[Progress], limit: int
    ) -> int:
        before = self.stat(path)
        for _ in range(MAX_LINKS):
            step = link_target(before)
            if step is None:
                break
            before = self.stat(step)
        check_size(path, before.size, limit)
        with Incoming(file, before, self._sandbox.id) as incoming:
            if incoming.left:
                meter = Meter(progress, before.size, incoming.have)
                wanted = span(incoming.have, incoming.left)
                self._copy(before.path, wanted, incoming.write, meter, incoming.left)
            check_unchanged(incoming, before, self.stat(before.path))
        return incoming.have

    def _copy(
        self,
        path: Remote,
        wanted: Optional[str],
        write: Callable[[bytes], object],
        meter: Meter,
        limit: int,
    ) -> int:
        size = 0
        with contextlib.closing(self._chunks(path, wanted, limit, meter)) as chunks:
            for chunk in chunks:
                write(chunk)
                size += len(chunk)
        return size

    def _chunks(
        self, path: Remote, wanted: Optional[str], limit: int, meter: Optional[Meter] = None
    ) -> Generator[bytes, None, None]:
        self._sandbox._check_open()
        size = 0
        client, call = self._sandbox._client, _calls.download(self._sandbox.id, path, wanted)
        with client.stream(call, traceparent=self._sandbox._traceparent) as response:
            check_span(response, wanted)
            check_size(path, length_of(response), limit)
            if meter is not None:
                meter.expect(length_of(response))
            with reading(client.host, call.path):
                for chunk in response.iter_raw(CHUNK):
                    size += len(chunk)
                    check_size(path, size, limit)
                    yield chunk
                    if meter is not None:
                        meter.add(len(chunk))

    def upload_dir(
        self, local: Local, path: Remote, *, progress: Optional[Progress] = None
    ) -> TreeInfo:
        """Copy what is in a local directory, with all below it, into a directory of the sandbox, which
        is made if it is not there. Other files that are there stay. It travels as one tar archive,
        which needs as much room again on the sandbox's disk while it is unpacked.

        Modes, times and symbolic links are kept; owners are not. `progress` is called with the bytes
        sent so far; how many there will be in all is not known (None).
        """
        packing = _tar.Packing(local)
        self.mkdir(path)
        target = self.stat(path).path
        with self._archive() as archive:
            self._send(archive, iter(packing), Meter(progress))
            command = _tar.unpack_command(archive, target)
            _tar.check_unpacked(self._sandbox.exec(command, **_tar.HOW))
        return packing.counts.info(target)

    def download_dir(
        self,
        path: Remote,
        local: Local,
        *,
        progress: Optional[Progress] = None,
        max_bytes: Optional[int] = None,
    ) -> TreeInfo:
        """Copy what is in a directory of the sandbox, with all below it, into a local directory, which
        is made if it is not there. Files of the same names are replaced, others stay.

        The sandbox is not trusted: nothing is written outside of the local directory or through
        symbolic links in it, symbolic links that lead out of it, or could with what a later archive
        brings, are left out (see `TreeInfo.skipped`), modes lose their set-id bits and what lets
        others write. Raises UnsafeArchiveError, with nothing written, if it tries. Needs room for
        an archive on the sandbox's disk, and on the local one.

        max_bytes   TooLargeError, with nothing written, for a larger archive (half a KiB or more for
                    each entry beside what is in the files). If it is not given, what the disk of the
                    sandbox holds.
        """
        limit = disk_limit(max_bytes, self._sandbox._disk_mib)
        target = self.stat(path).path
        root = _tar.local_directory(local)
        with self._archive() as archive, tempfile.TemporaryFile(dir=root) as file:
            command = _tar.pack_command(archive, target)
            _tar.check_packed(self._sandbox.exec(command, **_tar.HOW))
            self._copy(archive, None, file.write, Meter(progress), limit)
            file.seek(0)
            return _tar.unpack(file, root)

    @contextlib.contextmanager
    def _archive(self) -> Iterator[str]:
        """A path for an archive in the sandbox, which is gone after the block."""
        name = _tar.temporary_name()
        try:
            yield name
        except BaseException:
            with contextlib.suppress(Exception):
                self.remove(name)
            raise
        with contextlib.suppress(RemoteFileNotFoundError):
            self.remove(name)
