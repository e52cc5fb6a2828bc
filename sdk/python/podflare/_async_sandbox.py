# SPDX-License-Identifier: Apache-2.0
"""AsyncSandbox: Sandbox for asyncio. What is sent and what is made of it is shared with the sync side
(_calls.py, _exec.py); the documentation of most methods is there."""

from __future__ import annotations

from typing import (
    Any,
    BinaryIO,
    Callable,
    Coroutine,
    Iterable,
    List,
    Literal,
    Mapping,
    Optional,
    Union,
)

from . import _calls, _egress, _fan
from ._async_files import AsyncFiles
from ._base import AsyncClosing, client_from, forkable_wish, id_of, not_persistent, wish_from
from ._calls import Remote
from ._children import AsyncChildren
from ._client import AsyncClient
from ._commands import AsyncCommands
from ._egress import Egress, EgressEntry, EgressInject, EgressRecord
from ._errors import ForkError, SandboxEndedError
from ._exec import DEFAULT_TIMEOUT
from ._results import ExecResult, Language, RaceResult
from ._running import AsyncRunning
from ._transfer import Data, Local, Progress
from ._types import Diff, FileInfo, SandboxInfo, TreeNode


class AsyncSandbox(AsyncRunning, AsyncClosing):
    """`Sandbox` for asyncio: the same names, arguments, results and errors; what asks the daemon is
    awaited.

        async with AsyncSandbox() as s:
            await s.run_code("x = 42")
            async for event in s.run_code_stream("print(x * 2)"):
                ...

    The sandbox is created when the block is entered, or by `await AsyncSandbox.create(...)`; the
    constructor alone asks for nothing. Cancelling a task that waits for a command ends the command,
    and one that waits for a new sandbox gives that up.

    The arguments are those of Sandbox; `client` is an AsyncClient.
    """

    def __init__(
        self,
        *,
        template: Optional[str] = None,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        client: Optional[AsyncClient] = None,
        traceparent: Optional[str] = None,
        egress: Optional[bool] = None,
        egress_allow: Optional[Iterable[EgressEntry]] = None,
        egress_inject: Optional[EgressInject] = None,
        egress_intercept: Iterable[str] = (),
        persistent: Optional[bool] = None,
        memory_mib: Optional[int] = None,
        vcpus: Optional[int] = None,
        disk_mib: Optional[int] = None,
        forkable: bool = True,
        metadata: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._wish = wish_from(
            template,
            egress,
            egress_allow,
            egress_inject,
            egress_intercept,
            persistent,
            memory_mib,
            vcpus,
            disk_mib,
            forkable,
            metadata,
        )
        self._attach(client, host, api_key, traceparent, AsyncClient)

    @classmethod
    async def create(cls, **wish: Any) -> "AsyncSandbox":
        """A new sandbox, ready to use; the arguments are those of the class. `close()` it."""
        return await cls(**wish)._create()

    async def _create(self) -> "AsyncSandbox":
        try:
            reply = await self._call(_calls.create(self._wish))
            self._made(reply["id"], reply)
        except BaseException:
            await self._detach()
            raise
        persistent = self._wish["persistent"]
        self._wish = {}  # there may be secrets in it
        if persistent and not reply.get("persistent"):
            await self.close()
            raise not_persistent()
        return self

    async def __aenter__(self) -> "AsyncSandbox":
        return self if self._id else await self._create()

    @classmethod
    async def connect(
        cls,
        id: str,
        *,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        client: Optional[AsyncClient] = None,
        traceparent: Optional[str] = None,
    ) -> "AsyncSandbox":
        """See Sandbox.connect."""
        _calls.check_id(id)
        self = cls(host=host, api_key=api_key, client=client, traceparent=traceparent)
        self._id = id
        try:
            info = await self.info()
            if info.state == "ended":
                raise SandboxEndedError(f"sandbox {id} has ended: {info.ended_reason or 'closed'}")
            self._made(id, info.raw)
        except BaseException:
            await self._detach()
            raise
        return self

    @staticmethod
    async def list(
        *,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        client: Optional[AsyncClient] = None,
    ) -> List[SandboxInfo]:
        """See Sandbox.list."""
        shared = client_from(client, host, api_key, AsyncClient)
        try:
            return await shared.call(_calls.sandboxes())
        finally:
            if client is None:
                await shared.close()

    async def info(self) -> SandboxInfo:
        """See Sandbox.info."""
        return await self._call(_calls.info(self.id))

    # What it may reach.

    @property
    def egress(self) -> Coroutine[Any, Any, Egress]:
        """See Sandbox.egress; `await s.egress`."""
        return self._call(_calls.egress(self.id))

    async def update_egress(
        self,
        allow: Union[Literal[False], Iterable[EgressEntry]],
        inject: Optional[EgressInject] = None,
        intercept: Iterable[str] = (),
    ) -> Egress:
        """See Sandbox.update_egress."""
        self._check_open()
        return await self._call(
            _calls.update_egress(self._id, _egress.update(allow, inject, intercept))
        )

    async def egress_log(self, limit: int = 1000) -> List[EgressRecord]:
        """See Sandbox.egress_log."""
        return await self._call(_calls.egress_log(self.id, limit))

    @property
    def commands(self) -> AsyncCommands:
        """Commands, also in the background: run, list, connect."""
        return AsyncCommands(self)

    # Files.

    @property
    def files(self) -> AsyncFiles:
        """Files of the sandbox: read, write, list, stat, upload_dir and so on."""
        return AsyncFiles(self)

    async def upload(
        self,
        data: Union[Data, Remote],
        path: Union[Remote, Data],
        *,
        resume: bool = False,
        progress: Optional[Progress] = None,
    ) -> FileInfo:
        """See Sandbox.upload."""
        return await self.files.upload(data, path, resume=resume, progress=progress)

    async def download(self, path: Remote, *, max_bytes: Optional[int] = None) -> bytes:
        """See Sandbox.download."""
        return await self.files.read(path, max_bytes=max_bytes)

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
        return await self.files.download_to(
            path, file, resume=resume, progress=progress, max_bytes=max_bytes
        )

    # Forks.

    async def fork(
        self,
        n: int = 1,
        *,
        reseed: bool = True,
        forkable: bool = True,
        egress: Union[None, Literal[False], Iterable[EgressEntry]] = None,
        egress_inject: Optional[EgressInject] = None,
        egress_intercept: Iterable[str] = (),
        inherit_inject: bool = False,
    ) -> AsyncChildren:
        """See Sandbox.fork."""
        self._check_open()
        try:
            reply = await self._call(
                _calls.fork(
                    self._id,
                    n,
                    reseed,
                    forkable_wish(forkable),
                    _egress.inheritance(egress, egress_inject, egress_intercept, inherit_inject),
                )
            )
        except ForkError as exc:
            _calls.none_forked(exc, n)
            raise
        children = AsyncChildren(
            map(self._sibling, reply.ids), pause_us=reply.pause_us, ready_us=reply.ready_us
        )
        error = reply.error(self._id, children)
        if error is not None:
            raise error
        return children

    async def merge_into(self, winner: Union["AsyncSandbox", str]) -> None:
        """See Sandbox.merge_into."""
        self._check_open()
        await self._call(_calls.merge(self._id, id_of(winner)))
        if isinstance(winner, AsyncSandbox):
            await winner._detach()

    async def diff(
        self, other: Union["AsyncSandbox", str], paths: Optional[Iterable[Remote]] = None
    ) -> Diff:
        """See Sandbox.diff."""
        self._check_open()
        return await self._call(_calls.diff(self._id, id_of(other), paths))

    async def tree(self) -> TreeNode:
        """See Sandbox.tree."""
        return _calls.family(self.id, await self._client.tree())

    async def map(
        self,
        codes: Iterable[str],
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        reseed: bool = True,
    ) -> List[ExecResult]:
        """See Sandbox.map."""
        return await _fan.async_map(self, codes, language, timeout, reseed)

    async def race(
        self,
        codes: Iterable[str],
        until: Optional[Callable[[ExecResult], object]] = None,
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        reseed: bool = True,
    ) -> RaceResult:
        """See Sandbox.race."""
        return await _fan.async_race(self, codes, until, language, timeout, reseed)

    async def close(self) -> None:
        """See Sandbox.close."""
        if self._closed:
            return
        if self._id:
            with _calls.gone_is_fine():
                await self._call(_calls.delete(self._id))
        await self._detach()

    async def _detach(self) -> None:
        if self._let_go():
            await self._client.close()
