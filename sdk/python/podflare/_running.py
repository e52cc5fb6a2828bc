# SPDX-License-Identifier: Apache-2.0
"""What runs in a sandbox and is waited for: calls, their interrupts, and contexts, sync and async. The
classes are bases of Sandbox and AsyncSandbox."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Callable, List, Mapping, Optional, Sequence, TypeVar, Union

from . import _calls
from ._base import SandboxBase
from ._calls import Remote
from ._client import AsyncClient, Client
from ._contexts import AsyncContext, Context
from ._errors import ExecNotFoundError
from ._exec import (
    DEFAULT_TIMEOUT,
    OVERTAKEN_PAUSE,
    OVERTAKEN_TRIES,
    Callbacks,
    LimitAction,
    request,
)
from ._http import Call
from ._results import ExecError, ExecResult, Language, Result
from ._streams import AsyncExecStream, ExecStream, async_collect, collect
from ._types import ContextInfo, ExecInfo

T = TypeVar("T")


class Running(SandboxBase[Client]):
    """Running code in a sandbox."""

    def run_code(
        self,
        code: str,
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, Context, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
        on_result: Optional[Callable[[Result], object]] = None,
        on_error: Optional[Callable[[ExecError], object]] = None,
    ) -> ExecResult:
        """Run code and wait for its end.

        Python runs in an interpreter where names, imports, open files and threads persist between
        calls; bash and javascript (for templates that have node) run in a fresh process each time.
        A block that is indented as a whole is dedented first.

        timeout   seconds that the command may run, from its start (waiting for its turn does not
                  count); 0 or None: as long as it likes. At the deadline it is interrupted, then it
                  and all that it started are killed: a result with `termination_reason` "timeout".
        context   which interpreter: a Context or its id; else "default". For other languages, any
                  name of a queue.
        cwd, env  working directory and additional environment variables, for this call only.
        user      "user" or "root"; for Python it must be that of the context. Default: "user".
        stdin     what the code may read from its standard input, as with `input()`; nothing if it
                  is not given.
        output_limit   bytes that are kept of stdout, and of stderr, 64 KiB to 256 MiB; 16 MiB if not
                  given. Of more the head and the tail are kept; see `ExecResult.truncated`.
        output_limit_action   "truncate" (if not given): it goes on all the same; "end": it is ended, as
                  at its time-out, with the first bytes and `termination_reason` "output_limit".
        queue_timeout   seconds that it may wait for other calls of its context; then it is not run, and
                  the result is "refused". 0: not at all. Any time if not given.
        on_stdout, on_stderr, on_result, on_error   called in this thread, as things happen, with a
                  piece of text, a Result, an ExecError. An exception that one of them raises ends
                  the command and is passed on.

        A command that fails is a result (see `ExecResult.exit_code`), also when it took the whole
        sandbox down (`termination_reason` "vm_ended"). If the connection breaks, StreamBrokenError
        is raised, and RequestTimeoutError if the daemon has not ended the command long after its
        time-out; both have what had arrived.
        """
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error)
        stream = self.run_code_stream(
            code,
            language,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return collect(stream, callbacks)

    def run_code_stream(
        self,
        code: str,
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, Context, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
    ) -> ExecStream:
        """Run code and iterate over its events as they happen; the last one is the exit event. The
        arguments are those of `run_code`; nothing is gathered, so that memory does not grow.

        The command starts when the first event is asked for. Leaving the loop early, or closing
        the stream, ends the command. Reading slowly slows the command down; nothing is lost up to
        half of `output_limit` (of more, the last half of it comes at the end).
        """
        self._check_open()
        wish = request(
            self._id,
            code=code,
            language=language,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return ExecStream(self, wish)

    def exec(
        self,
        argv: Sequence[Remote],
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, Context, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
    ) -> ExecResult:
        """Run a program with its arguments, without a shell: nothing needs to be quoted.

            s.exec(["grep", "-c", pattern, "/tmp/my file.txt"]).stdout

        The other arguments, and what is raised, as for `run_code`. `context` says only behind which
        commands it waits for its turn; with a name that nothing else uses it does not wait.
        """
        callbacks = Callbacks(on_stdout, on_stderr, None, None)
        stream = self.exec_stream(
            argv,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return collect(stream, callbacks)

    def exec_stream(
        self,
        argv: Sequence[Remote],
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, Context, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
    ) -> ExecStream:
        """`exec` as an iterator of events; see `run_code_stream`."""
        self._check_open()
        wish = request(
            self._id,
            argv=argv,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return ExecStream(self, wish)

    def interrupt(self, exec_id: Optional[str] = None, *, escalate: bool = False) -> bool:
        """Interrupt what runs, as Ctrl-C does; from another thread. Python code gets a
        KeyboardInterrupt and its variables stay; the call ends with `termination_reason`
        "interrupted" and exit code 130, unless the code goes on all the same.

        exec_id    which call, also one of another program (`list_execs`). Without it: those calls
                   of this object that run. One that waits behind them is not touched; it may be
                   named, and then never runs.
        escalate   if the code does not heed the interrupt, kill it.

        Returns whether there was anything to interrupt: True if a call ran or waited, False if it
        had ended by then. Raises ExecNotFoundError for an id that the daemon does not know.
        """
        self._check_open()
        targets = (exec_id,) if exec_id is not None else self._underway.targets()
        hit = False
        for target in targets:
            hit = self._interrupt(target, escalate) or hit
        return hit

    def _interrupt(self, exec_id: str, escalate: bool) -> bool:
        for _ in range(OVERTAKEN_TRIES):
            ours = exec_id in self._underway
            try:
                return self._call(_calls.interrupt(self._id, exec_id, escalate)) != "ended"
            except ExecNotFoundError:
                if not ours:
                    raise
                # It is on its way there.
                time.sleep(OVERTAKEN_PAUSE)
            if exec_id not in self._underway:
                return False
        raise ExecNotFoundError(f"the daemon knows of no call {exec_id}")

    def list_execs(self) -> List[ExecInfo]:
        """The calls that run or wait in this sandbox, whoever made them."""
        return self._call(_calls.execs(self.id))

    def create_context(
        self,
        context_id: Optional[str] = None,
        *,
        language: Optional[str] = None,
        cwd: Optional[Remote] = None,
        user: Optional[str] = None,
    ) -> Context:
        """Start another Python interpreter in this sandbox, with variables of its own.

            with s.create_context() as other:
                other.run_code("x = 1")         # not the x of s.run_code

        context_id   1 to 64 letters, digits, _ and -; chosen by the daemon if not given.
        language     "python".
        cwd          where it starts; the user's home directory if not given.
        user         "user" (default) or "root".

        Raises AlreadyExistsError for an id that is taken, RateLimitedError beyond 8 contexts.
        """
        self._check_open()
        return Context(
            self, self._call(_calls.create_context(self._id, context_id, language, cwd, user))
        )

    def list_contexts(self) -> List[ContextInfo]:
        """The contexts of this sandbox; "default" is always among them."""
        return self._call(_calls.contexts(self.id))

    def _call(self, call: Call[T], **kw: Any) -> T:
        """One request of this sandbox."""
        return self._client.call(call, traceparent=self._traceparent, **kw)


class AsyncRunning(SandboxBase[AsyncClient]):
    """`Running` for asyncio."""

    async def run_code(
        self,
        code: str,
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, AsyncContext, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
        on_result: Optional[Callable[[Result], object]] = None,
        on_error: Optional[Callable[[ExecError], object]] = None,
    ) -> ExecResult:
        """See Sandbox.run_code."""
        callbacks = Callbacks(on_stdout, on_stderr, on_result, on_error)
        stream = self.run_code_stream(
            code,
            language,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return await async_collect(stream, callbacks)

    def run_code_stream(
        self,
        code: str,
        language: Language = "python",
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, AsyncContext, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
    ) -> AsyncExecStream:
        """See Sandbox.run_code_stream."""
        self._check_open()
        wish = request(
            self._id,
            code=code,
            language=language,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return AsyncExecStream(self, wish)

    async def exec(
        self,
        argv: Sequence[Remote],
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, AsyncContext, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
        on_stdout: Optional[Callable[[str], object]] = None,
        on_stderr: Optional[Callable[[str], object]] = None,
    ) -> ExecResult:
        """See Sandbox.exec."""
        callbacks = Callbacks(on_stdout, on_stderr, None, None)
        stream = self.exec_stream(
            argv,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return await async_collect(stream, callbacks)

    def exec_stream(
        self,
        argv: Sequence[Remote],
        *,
        timeout: Optional[float] = DEFAULT_TIMEOUT,
        context: Union[str, AsyncContext, None] = None,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, None] = None,
        output_limit: Optional[int] = None,
        output_limit_action: Optional[LimitAction] = None,
        queue_timeout: Optional[float] = None,
    ) -> AsyncExecStream:
        """See Sandbox.exec_stream."""
        self._check_open()
        wish = request(
            self._id,
            argv=argv,
            timeout=timeout,
            context=context,
            cwd=cwd,
            env=env,
            user=user,
            stdin=stdin,
            output_limit=output_limit,
            output_limit_action=output_limit_action,
            queue_timeout=queue_timeout,
        )
        return AsyncExecStream(self, wish)

    async def interrupt(self, exec_id: Optional[str] = None, *, escalate: bool = False) -> bool:
        """See Sandbox.interrupt."""
        self._check_open()
        targets = (exec_id,) if exec_id is not None else self._underway.targets()
        hit = False
        for target in targets:
            hit = await self._interrupt(target, escalate) or hit
        return hit

    async def _interrupt(self, exec_id: str, escalate: bool) -> bool:
        for _ in range(OVERTAKEN_TRIES):
            ours = exec_id in self._underway
            try:
                return await self._call(_calls.interrupt(self._id, exec_id, escalate)) != "ended"
            except ExecNotFoundError:
                if not ours:
                    raise
                # It is on its way there.
                await asyncio.sleep(OVERTAKEN_PAUSE)
            if exec_id not in self._underway:
                return False
        raise ExecNotFoundError(f"the daemon knows of no call {exec_id}")

    async def list_execs(self) -> List[ExecInfo]:
        """See Sandbox.list_execs."""
        return await self._call(_calls.execs(self.id))

    async def create_context(
        self,
        context_id: Optional[str] = None,
        *,
        language: Optional[str] = None,
        cwd: Optional[Remote] = None,
        user: Optional[str] = None,
    ) -> AsyncContext:
        """See Sandbox.create_context."""
        self._check_open()
        return AsyncContext(
            self, await self._call(_calls.create_context(self._id, context_id, language, cwd, user))
        )

    async def list_contexts(self) -> List[ContextInfo]:
        """See Sandbox.list_contexts."""
        return await self._call(_calls.contexts(self.id))

    async def _call(self, call: Call[T], **kw: Any) -> T:
        """One request of this sandbox."""
        return await self._client.call(call, traceparent=self._traceparent, **kw)
