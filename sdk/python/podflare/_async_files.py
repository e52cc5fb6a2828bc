# SPDX-License-Identifier: Apache-2.0
"""Files of a sandbox, for asyncio. Local files are read and written in threads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncGenerator,
    AsyncIterator,
    BinaryIO,
    Callable,
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
from ._watch import AsyncFileWatch

if TYPE_CHECKING:
    from ._async_sandbox import AsyncSandbox

T = TypeVar("T")


class AsyncFiles:
    """The files of a sandbox: `sandbox.files`. `Files` for asyncio, with the same arguments and
    errors; the callbacks named `progress` are plain functions."""

    def __init__(self, sandbox: "AsyncSandbox") -> None:
        self._sandbox = sandbox

    async def _call(self, call: Call[T], **kw: Any) -> T:
        self._sandbox._check_open()
        return await self._sandbox._call(call, **kw)

    async def read(
        self,
        path: Remote,
        *,
        offset: int = 0,
        length: Optional[int] = None,
        max_bytes: Optional[int] = None,
    ) -> bytes:
        """See Files.read."""
        wanted, limit = span(offset, length), memory_limit(max_bytes, length)
        if length == 0:
            return b""
        pieces: List[bytes] = []
        await self._copy(path, wanted, pieces.append, Meter(None), limit)
        return b"".join(pieces)

    async def write(self, path: Remote, data: Union[str, Data]) -> FileInfo:
        """See Files.write."""
        return await self.upload(data_of_write(path, data), path)

    async def list(self, path: Remote = ".", *, depth: int = 1) -> List[FileStat]:
        """See Files.list."""
        return await self._call(_calls.list_files(self._sandbox.id, path, depth))

    async def stat(self, path: Remote) -> FileStat:
        """See Files.stat."""
        return await self._call(_calls.stat(self._sandbox.id, path))

    async def exists(self, path: Remote) -> bool:
        """See Files.exists."""
        with is_absent() as absent:
            await self.stat(path)
        return not absent

    async def mkdir(
        self, path: Remote, *, mode: Optional[int] = None, parents: bool = True
    ) -> bool:
        """See Files.mkdir."""
        return await self._call(_calls.mkdir(self._sandbox.id, path, mode, parents))

    async def remove(self, path: Remote, *, recursive: bool = False) -> None:
        """See Files.remove."""
        await self._call(_calls.remove(self._sandbox.id, path, recursive))

    async def rename(self, path: Remote, to: Remote, *, overwrite: bool = True) -> None:
        """See Files.rename."""
        await self._call(_calls.rename(self._sandbox.id, path, to, overwrite))

    async def chmod(self, path: Remote, mode: int) -> None:
        """See Files.chmod."""
        await self._call(_calls.chmod(self._sandbox.id, path, mode))

    def watch(
        self, path: Remote, *, recursive: bool = True, timeout: Optional[float] = None
    ) -> AsyncFileWatch:
        """See Files.watch: `changes = await files.watch(path)`, or `async with`."""
        self._sandbox._check_open()
        return AsyncFileWatch(self._sandbox, path, recursive, timeout)

    async def upload(
        self,
        data: Union[Data, Remote],
        path: Union[Remote, Data],
        *,
        resume: bool = False,
        progress: Optional[Progress] = None,
    ) -> FileInfo:
        """See Sandbox.upload."""
        data, path = data_and_path(data, path)
        if resume:
            return await self._send_resuming(path, data, progress)
        with body_of(data) as body:
            return await self._send(path, body.pieces, Meter(progress, body.size), body.headers)

    async def _send_resuming(
        self, path: str, data: object, progress: Optional[Progress]
    ) -> FileInfo:
        patience = Patience()
        info: FileInfo
        with Outgoing(data) as out:
            while out.size:
                try:
                    call = _calls.upload_part(self._sandbox.id, path, out.id, out.size)
                    info, complete = await self._call(call, content=b"")
                    patience.arrived(out.checked(info.size))
                    if not complete:
                        body, meter = out.body(info.size), Meter(progress, out.size, info.size)
                        call = _calls.upload_part(
                            self._sandbox.id, path, out.id, out.size, info.size
                        )
                        info, complete = await self._send_as(call, body.pieces, meter, body.headers)
                    if complete:
                        return info
                    raise not_whole()
                except PodflareError as exc:
                    await asyncio.sleep(patience.pause(exc))
            return await self._send(path, iter(()), Meter(progress, 0), {"content-length": "0"})

    async def _send(
        self, path: str, pieces: Iterator[bytes], meter: Meter, headers: Mapping[str, str] = {}
    ) -> FileInfo:
        call = _calls.upload(self._sandbox.id, path)
        return await self._send_as(call, pieces, meter, headers)

    async def _send_as(
        self, call: Call[T], pieces: Iterator[bytes], meter: Meter, headers: Mapping[str, str]
    ) -> T:
        async def metered() -> AsyncIterator[bytes]:
            while (piece := await asyncio.to_thread(_next, pieces)) is not None:
                yield piece
                meter.add(len(piece))

        return await self._call(call, content=metered(), headers=headers)

    async def download_to(
        self,
        path: Remote,
        file: Union[Local, BinaryIO],
        *,
        resume: bool = False,
        progress: Optional[Progress] = None,
        max_bytes: Optional[int] = None,
    ) -> int:
        """See Sandbox.download_to."""
        limit = disk_limit(max_bytes, self._sandbox._disk_mib)
        if resume:
            return await self._resume(path, check_resumable(file), progress, limit)
        meter = Meter(progress)
        if not isinstance(file, (str, os.PathLike)):
            return await self._copy(path, None, file.write, meter, limit)
        with Incoming(file) as incoming:
            return await self._copy(path, None, incoming.write, meter, limit)

    async def _resume(
        self, path: Remote, file: Local, progress: Optional[Progress], limit: int
    ) -> int:
        before = await self.stat(path)
        for _ in range(MAX_LINKS):
            step = link_target(before)
            if step is None:
                break
            before = await self.stat(step)
        check_size(path, before.size, limit)
        with Incoming(file, before, self._sandbox.id) as incoming:
            if incoming.left:
                meter = Meter(progress, before.size, incoming.have)
                wanted = span(incoming.have, incoming.left)
                await self._copy(before.path, wanted, incoming.write, meter, incoming.left)
            check_unchanged(incoming, before, await self.stat(before.path))
        return incoming.have

    async def _copy(
        self,
        path: Remote,
        wanted: Optional[str],
        write: Callable[[bytes], object],
        meter: Meter,
        limit: int,
    ) -> int:
        size = 0
        async with contextlib.aclosing(self._chunks(path, wanted, limit, meter)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(write, chunk)
                size += len(chunk)
        return size

    async def _chunks(
        self, path: Remote, wanted: Optional[str], limit: int, meter: Optional[Meter] = None
    ) -> AsyncGenerator[bytes, None]:
        self._sandbox._check_open()
        size = 0
        client, call = self._sandbox._client, _calls.download(self._sandbox.id, path, wanted)
        async with client.stream(call, traceparent=self._sandbox._traceparent) as response:
            check_span(response, wanted)
            check_size(path, length_of(response), limit)
            if meter is not None:
                meter.expect(length_of(response))
            with reading(client.host, call.path):
                async for chunk in response.aiter_raw(CHUNK):
                    size += len(chunk)
                    check_size(path, size, limit)
                    yield chunk
                    if meter is not None:
                        meter.add(len(chunk))

    async def upload_dir(
        self, local: Local, path: Remote, *, progress: Optional[Progress] = None
    ) -> TreeInfo:
        """See Files.upload_dir."""
        packing = await asyncio.to_thread(_tar.Packing, local)
        await self.mkdir(path)
        target = (await self.stat(path)).path
        async with self._archive() as archive:
            await self._send(archive, iter(packing), Meter(progress))
            command = _tar.unpack_command(archive, target)
            _tar.check_unpacked(await self._sandbox.exec(command, **_tar.HOW))
        return packing.counts.info(target)

    async def download_dir(
        self,
        path: Remote,
        local: Local,
        *,
        progress: Optional[Progress] = None,
        max_bytes: Optional[int] = None,
    ) -> TreeInfo:
        """See Files.download_dir."""
        limit = disk_limit(max_bytes, self._sandbox._disk_mib)
        target = (await self.stat(path)).path
        root = _tar.local_directory(local)
        async with self._archive() as archive:
            with tempfile.TemporaryFile(dir=root) as file:
                command = _tar.pack_command(archive, target)
                _tar.check_packed(await self._sandbox.exec(command, **_tar.HOW))
                await self._copy(archive, None, file.write, Meter(progress), limit)
                file.seek(0)
                return await asyncio.to_thread(_tar.unpack, file, root)

    @contextlib.asynccontextmanager
    async def _archive(self) -> AsyncIterator[str]:
        """A path for an archive in the sandbox, which is gone after the block."""
        name = _tar.temporary_name()
        try:
            yield name
        except BaseException:
            with contextlib.suppress(Exception):
                await self.remove(name)
            raise
        with contextlib.suppress(RemoteFileNotFoundError):
            await self.remove(name)


def _next(pieces: Iterator[bytes]) -> Optional[bytes]:
    return next(pieces, None)
