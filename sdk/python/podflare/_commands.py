# SPDX-License-Identifier: Apache-2.0
"""Commands that go on without a client: the classes, sync and async. What they ask: _command_calls.py."""

from __future__ import annotations

import asyncio
import inspect
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncGenerator,
    Dict,
    Generator,
    List,
    Mapping,
    Optional,
    Tuple,
    Union,
)

from ._calls import Remote
from ._command_calls import (
    NOT_GIVEN,
    Argv,
    OnText,
    Signal,
    as_bytes,
    async_read_events,
    delete,
    describe,
    follow,
    foreground,
    gave_up,
    listing,
    read_events,
    resize,
    send_signal,
    start,
    write,
)
from ._errors import PodflareError
from ._exec import Callbacks, Collector, checked_timeout
from ._http import Call, Deadline
from ._results import Event, ExecResult
from ._streams import async_collect, collect
from ._types import CommandInfo

if TYPE_CHECKING:
    from ._async_sandbox import AsyncSandbox
    from ._sandbox import Sandbox


# Sync.


class Command:
    """A command that runs in a sandbox, whoever watches it; from `commands.run(background=True)`
    or `commands.connect`.

    id    its name within the sandbox.
    pid   its process there.

    Iterate over it for its events from its first byte on, as often as you like; the last one is
    the exit event. Each "stdout" or "stderr" event has in `extra["offset"]` the position behind
    it, for `events`. Leaving the loop leaves the command running.
    """

    def __init__(self, sandbox: "Sandbox", id: str, pid: int) -> None:
        self._sandbox = sandbox
        self.id, self.pid = id, pid

    def _call(self, call: Call[Any], **kw: Any) -> Any:
        self._sandbox._check_open()
        return self._sandbox._call(call, **kw)

    def info(self) -> CommandInfo:
        """What the sandbox says of it now."""
        answer: CommandInfo = self._call(describe(self._sandbox.id, self.id))
        return answer

    def events(self, *, stdout: int = 0, stderr: int = 0) -> Generator[Event, None, None]:
        """Its events from these positions on; -1: only what is new. Of much output (256 MiB of each
        stream) the oldest is thrown away."""
        return self._events(stdout, stderr, Deadline(None, 0))

    def _events(self, stdout: int, stderr: int, deadline: Deadline) -> Generator[Event, None, None]:
        s = self._sandbox
        s._check_open()
        return read_events(
            s._client, s._traceparent, follow(s.id, self.id, stdout, stderr), deadline
        )

    def __iter__(self) -> Generator[Event, None, None]:
        return self.events()

    def wait(
        self,
        timeout: Optional[float] = None,
        *,
        on_stdout: OnText = None,
        on_stderr: OnText = None,
    ) -> ExecResult:
        """Wait for its end: its output, of each stream the last 256 MiB (`truncated`, `bytes_dropped`),
        and how it ended. After `timeout` seconds
        RequestTimeoutError, a TimeoutError, which has what came; the command runs on."""
        deadline = Deadline(None if timeout is None else checked_timeout(timeout), 0)
        collector = Collector(self.id)
        callbacks = Callbacks(on_stdout, on_stderr, None, None)
        events = self._events(0, 0, deadline)
        try:
            for event in events:
                collector.add(event)
                callbacks.call(event)
        except PodflareError as exc:
            failure = gave_up(self.id, timeout) if deadline.passed else exc
            collector.explain(failure)
            raise failure
        finally:
            events.close()
        return collector.result()

    def signal(self, signal: Signal, *, group: bool = True) -> bool:
        """Send a signal, by name ("TERM", "SIGTERM") or number, to its process group, or to its
        first process alone. False if it had ended."""
        answer: bool = self._call(send_signal(self._sandbox.id, self.id, signal, group))
        return answer

    def kill(self) -> bool:
        """SIGKILL to its process group. False if it had ended."""
        return self.signal("KILL")

    def write(self, data: Union[str, bytes], *, close: bool = False) -> None:
        """Write to its standard input (it was started with `stdin=True`) or its terminal. Returns
        when it has taken all: what does not read holds this up."""
        self._call(write(self._sandbox.id, self.id, close), content=as_bytes(data))

    def close_stdin(self) -> None:
        """The end of its standard input."""
        self._call(write(self._sandbox.id, self.id, True), content=b"")

    def resize(self, cols: int, rows: int) -> None:
        """Set the size of its terminal."""
        self._call(resize(self._sandbox.id, self.id, cols, rows))

    def delete(self) -> None:
        """Kill it and all that it started, and delete its output."""
        self._call(delete(self._sandbox.id, self.id))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} of {self._sandbox.id}>"


class Commands:
    """Commands of a sandbox; `sandbox.commands`."""

    def __init__(self, sandbox: "Sandbox") -> None:
        self._sandbox = sandbox

    def run(
        self,
        cmd: Union[str, Argv],
        *,
        background: bool = False,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, bool, None] = None,
        timeout: Optional[float] = NOT_GIVEN,
        pty: Union[None, bool, Tuple[int, int]] = None,
        id: Optional[str] = None,
        on_stdout: OnText = None,
        on_stderr: OnText = None,
    ) -> Any:
        """Run a command: a list is a program and its arguments, a str is a line (or more) of bash.

            s.commands.run(["ls", "-l"]).stdout                                   # an ExecResult
            server = s.commands.run("python3 -m http.server", background=True)    # a Command

        Without `background` it is `exec`, or `run_code` of bash: it waits for the end, 300 seconds
        at most unless `timeout` says otherwise, and leaving it ends it.

        background   it goes on until it ends, whoever watches; a `Command` comes back at once. A
                  sandbox keeps 32 of them, also when they have ended (of these the oldest
                  makes room for a new one).
        stdin     text or bytes to read; in the background True, to `write` to it.
        timeout   seconds; in the background none if not given.
        pty       (columns, rows) of a terminal for it, in the background; it can be written to. True
                  is (80, 24).
        id        its name, in the background; made if not given. AlreadyExistsError if it is taken.
        on_stdout, on_stderr   called with pieces of text as they come, not in the background.
        """
        s = self._sandbox
        options: Dict[str, Any] = dict(cwd=cwd, env=env, user=user, stdin=stdin, pty=pty, id=id)
        if background:
            if on_stdout is not None or on_stderr is not None:
                raise ValueError("in the background nobody calls back: give them to wait()")
            s._check_open()
            return Command(s, *s._call(start(s.id, cmd, timeout=timeout, **options)))
        options = foreground(cmd, timeout, options)
        callbacks = Callbacks(on_stdout, on_stderr, None, None)
        if isinstance(cmd, str):
            stream = s.run_code_stream(cmd, "bash", **options)
        else:
            stream = s.exec_stream(cmd, **options)
        return collect(stream, callbacks)

    def list(self) -> List[CommandInfo]:
        """Those in the background that run, or have ended and were not deleted."""
        self._sandbox._check_open()
        return self._sandbox._call(listing(self._sandbox.id))

    def connect(self, id: str) -> Command:
        """One that is there, by its id; CommandNotFoundError if there is none."""
        self._sandbox._check_open()
        return Command(self._sandbox, id, self._sandbox._call(describe(self._sandbox.id, id)).pid)


# For asyncio.


class AsyncCommand:
    """`Command` for asyncio: `async for event in command`; what asks the daemon is awaited."""

    def __init__(self, sandbox: "AsyncSandbox", id: str, pid: int) -> None:
        self._sandbox = sandbox
        self.id, self.pid = id, pid

    async def _call(self, call: Call[Any], **kw: Any) -> Any:
        self._sandbox._check_open()
        return await self._sandbox._call(call, **kw)

    async def info(self) -> CommandInfo:
        """See Command.info."""
        answer: CommandInfo = await self._call(describe(self._sandbox.id, self.id))
        return answer

    def events(self, *, stdout: int = 0, stderr: int = 0) -> AsyncGenerator[Event, None]:
        """See Command.events."""
        return self._events(stdout, stderr, Deadline(None, 0))

    def _events(self, stdout: int, stderr: int, deadline: Deadline) -> AsyncGenerator[Event, None]:
        s = self._sandbox
        s._check_open()
        call = follow(s.id, self.id, stdout, stderr)
        return async_read_events(s._client, s._traceparent, call, deadline)

    def __aiter__(self) -> AsyncGenerator[Event, None]:
        return self.events()

    async def wait(
        self,
        timeout: Optional[float] = None,
        *,
        on_stdout: OnText = None,
        on_stderr: OnText = None,
    ) -> ExecResult:
        """See Command.wait; the callbacks may be coroutine functions."""
        loop = asyncio.get_running_loop()
        seconds = None if timeout is None else checked_timeout(timeout)
        deadline = Deadline(seconds, 0, lambda *alarm: loop.call_later(*alarm).cancel)
        collector = Collector(self.id)
        callbacks = Callbacks(on_stdout, on_stderr, None, None)
        events = self._events(0, 0, deadline)
        try:
            async for event in events:
                collector.add(event)
                reply = callbacks.call(event)
                if inspect.isawaitable(reply):
                    await reply
        except PodflareError as exc:
            failure = gave_up(self.id, timeout) if deadline.passed else exc
            collector.explain(failure)
            raise failure
        finally:
            await events.aclose()
        return collector.result()

    async def signal(self, signal: Signal, *, group: bool = True) -> bool:
        """See Command.signal."""
        answer: bool = await self._call(send_signal(self._sandbox.id, self.id, signal, group))
        return answer

    async def kill(self) -> bool:
        """See Command.kill."""
        return await self.signal("KILL")

    async def write(self, data: Union[str, bytes], *, close: bool = False) -> None:
        """See Command.write."""
        await self._call(write(self._sandbox.id, self.id, close), content=as_bytes(data))

    async def close_stdin(self) -> None:
        """See Command.close_stdin."""
        await self._call(write(self._sandbox.id, self.id, True), content=b"")

    async def resize(self, cols: int, rows: int) -> None:
        """See Command.resize."""
        await self._call(resize(self._sandbox.id, self.id, cols, rows))

    async def delete(self) -> None:
        """See Command.delete."""
        await self._call(delete(self._sandbox.id, self.id))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} of {self._sandbox.id}>"


class AsyncCommands:
    """`Commands` for asyncio."""

    def __init__(self, sandbox: "AsyncSandbox") -> None:
        self._sandbox = sandbox

    async def run(
        self,
        cmd: Union[str, Argv],
        *,
        background: bool = False,
        cwd: Optional[Remote] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
        stdin: Union[str, bytes, bool, None] = None,
        timeout: Optional[float] = NOT_GIVEN,
        pty: Union[None, bool, Tuple[int, int]] = None,
        id: Optional[str] = None,
        on_stdout: OnText = None,
        on_stderr: OnText = None,
    ) -> Any:
        """See Commands.run; an ExecResult, or in the background an AsyncCommand."""
        s = self._sandbox
        options: Dict[str, Any] = dict(cwd=cwd, env=env, user=user, stdin=stdin, pty=pty, id=id)
        if background:
            if on_stdout is not None or on_stderr is not None:
                raise ValueError("in the background nobody calls back: give them to wait()")
            s._check_open()
            return AsyncCommand(s, *await s._call(start(s.id, cmd, timeout=timeout, **options)))
        options = foreground(cmd, timeout, options)
        callbacks = Callbacks(on_stdout, on_stderr, None, None)
        if isinstance(cmd, str):
            stream = s.run_code_stream(cmd, "bash", **options)
        else:
            stream = s.exec_stream(cmd, **options)
        return await async_collect(stream, callbacks)

    async def list(self) -> List[CommandInfo]:
        """See Commands.list."""
        self._sandbox._check_open()
        return await self._sandbox._call(listing(self._sandbox.id))

    async def connect(self, id: str) -> AsyncCommand:
        """See Commands.connect."""
        self._sandbox._check_open()
        told = await self._sandbox._call(describe(self._sandbox.id, id))
        return AsyncCommand(self._sandbox, id, told.pid)
