# SPDX-License-Identifier: Apache-2.0
"""Contexts: Python interpreters of one sandbox beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _calls
from ._base import AsyncClosing, Closing
from ._results import ExecResult, Language
from ._streams import AsyncExecStream, ExecStream
from ._types import ContextInfo

if TYPE_CHECKING:
    from ._running import AsyncRunning, Running


class Context(Closing):
    """A Python interpreter of its own in a sandbox, with its own variables, from
    `Sandbox.create_context`. Code in different contexts runs at the same time; they share the files
    and the memory of the sandbox. As a `with` block it is deleted at the end.

    info   what the daemon said of it when this object was made or restarted.
    """

    def __init__(self, sandbox: "Running", info: ContextInfo) -> None:
        self._sandbox = sandbox
        self.info = info

    @property
    def id(self) -> str:
        """Its name within the sandbox."""
        return self.info.id

    def run_code(self, code: str, language: Language = "python", **options: Any) -> ExecResult:
        """`Sandbox.run_code` in this context, with the same options."""
        return self._sandbox.run_code(code, language, context=self, **options)

    def run_code_stream(
        self, code: str, language: Language = "python", **options: Any
    ) -> ExecStream:
        """`Sandbox.run_code_stream` in this context, with the same options."""
        return self._sandbox.run_code_stream(code, language, context=self, **options)

    def restart(self) -> None:
        """Start its interpreter anew: variables are gone, and what runs in it ends."""
        self.info = self._sandbox._call(_calls.restart_context(self._sandbox.id, self.id))

    def delete(self) -> None:
        """End it and what runs in it. ContextNotFoundError if it has been deleted already;
        InvalidRequestError for "default", which always exists."""
        self._sandbox._call(_calls.delete_context(self._sandbox.id, self.id))

    def close(self) -> None:
        """`delete`, if it is still there."""
        if not self._sandbox._closed:
            with _calls.gone_is_fine():
                self.delete()

    def __repr__(self) -> str:
        return f"<Context {self.id!r} of {self._sandbox.id}>"


class AsyncContext(AsyncClosing):
    """`Context` for asyncio, from `AsyncSandbox.create_context`."""

    def __init__(self, sandbox: "AsyncRunning", info: ContextInfo) -> None:
        self._sandbox = sandbox
        self.info = info

    @property
    def id(self) -> str:
        """Its name within the sandbox."""
        return self.info.id

    async def run_code(
        self, code: str, language: Language = "python", **options: Any
    ) -> ExecResult:
        """`AsyncSandbox.run_code` in this context, with the same options."""
        return await self._sandbox.run_code(code, language, context=self, **options)

    def run_code_stream(
        self, code: str, language: Language = "python", **options: Any
    ) -> AsyncExecStream:
        """`AsyncSandbox.run_code_stream` in this context, with the same options."""
        return self._sandbox.run_code_stream(code, language, context=self, **options)

    async def restart(self) -> None:
        """See Context.restart."""
        self.info = await self._sandbox._call(_calls.restart_context(self._sandbox.id, self.id))

    async def delete(self) -> None:
        """See Context.delete."""
        await self._sandbox._call(_calls.delete_context(self._sandbox.id, self.id))

    async def close(self) -> None:
        """`delete`, if it is still there."""
        if not self._sandbox._closed:
            with _calls.gone_is_fine():
                await self.delete()

    def __repr__(self) -> str:
        return f"<AsyncContext {self.id!r} of {self._sandbox.id}>"
