# SPDX-License-Identifier: Apache-2.0
"""Commands that go on without a client: what is asked, without I/O, and the classes, sync and async."""

from __future__ import annotations

import asyncio
import inspect
import signal as signals
from pathlib import PurePath
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncGenerator,
    Callable,
    Dict,
    Generator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from ._calls import Remote, check_name, url
from ._client import AsyncClient, Client
from ._errors import PodflareError, RequestTimeoutError, StreamBrokenError
from ._exec import (
    DEFAULT_TIMEOUT,
    Callbacks,
    Collector,
    Decoder,
    _checked_argv,
    checked_strings,
    checked_text,
    checked_timeout,
    dedent,
)
from ._http import Call, Deadline, reading
from ._results import Event, ExecResult
from ._streams import async_collect, collect
from ._types import CommandInfo

if TYPE_CHECKING:
    from ._async_sandbox import AsyncSandbox
    from ._sandbox import Sandbox

Argv = Sequence[Union[str, PurePath]]
Signal = Union[str, int, signals.Signals]
OnText = Optional[Callable[[str], object]]


class _Default:
    """For an argument that was not given, where None says something."""

    def __repr__(self) -> str:
        return "..."


_DEFAULT: Any = _Default()


# What is asked.


def _path(sandbox_id: str, command_id: str, rest: str = "") -> str:
    return url(sandbox_id, f"/commands/{check_name('id', command_id)}{rest}")


def _nothing(reply: Mapping[str, Any]) -> None:
    return None


def start(
    sandbox_id: str,
    cmd: Union[str, Argv],
    *,
    cwd: Optional[Remote],
    env: Optional[Mapping[str, str]],
    user: Optional[str],
    stdin: object,
    timeout: Any,
    pty: Union[None, bool, Tuple[int, int]],
    id: Optional[str],
) -> Call[Tuple[str, int]]:
    """Starts one: its id and its process."""
    if stdin is not None and not isinstance(stdin, bool):
        raise TypeError("in the background stdin is True or False: write() to the Command")
    body: Dict[str, Any] = {"stdin": bool(stdin)}
    if isinstance(cmd, str):
        body["code"] = checked_text("the command", dedent(cmd))
        body["language"] = "bash"
    else:
        body["argv"] = _checked_argv(cmd)
    body["timeout"] = checked_timeout(None if timeout is _DEFAULT else timeout)
    if cwd is not None:
        body["cwd"] = str(cwd)
    if env is not None:
        body["env"] = checked_strings("env", env)
    if user is not None:
        body["user"] = user
    if pty:
        cols, rows = (80, 24) if pty is True else pty
        body["pty"] = {"cols": cols, "rows": rows}
    if id is not None:
        body["command_id"] = check_name("id", id)
    return Call(
        "POST",
        url(sandbox_id, "/commands"),
        lambda reply: (str(reply["command_id"]), int(reply["pid"])),
        "command_id",
        json=body,
        patient=True,
    )


def listing(sandbox_id: str) -> Call[List[CommandInfo]]:
    return Call(
        "GET",
        url(sandbox_id, "/commands"),
        lambda reply: [CommandInfo.from_reply(one) for one in reply["commands"]],
        "commands",
    )


def describe(sandbox_id: str, command_id: str) -> Call[CommandInfo]:
    return Call("GET", _path(sandbox_id, command_id), CommandInfo.from_reply, "command_id")


def follow(sandbox_id: str, command_id: str, stdout: int, stderr: int) -> Call[None]:
    return Call(
        "GET",
        _path(sandbox_id, command_id, "/stream"),
        _nothing,
        params={"stdout": str(int(stdout)), "stderr": str(int(stderr))},
        patient=True,
    )


def send_signal(sandbox_id: str, command_id: str, signal: Signal, group: bool) -> Call[bool]:
    """Whether it was still there."""
    if isinstance(signal, bool) or not isinstance(signal, (str, int)):
        raise TypeError(f"signal must be a name or a number, not {type(signal).__name__}")
    return Call(
        "POST",
        _path(sandbox_id, command_id, "/signal"),
        lambda reply: not reply["ended"],
        "ended",
        json={"signal": signal if isinstance(signal, str) else int(signal), "group": bool(group)},
    )


def write(sandbox_id: str, command_id: str, close: bool) -> Call[None]:
    return Call(
        "POST",
        _path(sandbox_id, command_id, "/stdin"),
        _nothing,
        params={"close": "1"} if close else {},
        headers={"content-type": "application/octet-stream"},
        patient=True,
    )


def resize(sandbox_id: str, command_id: str, cols: int, rows: int) -> Call[None]:
    path = _path(sandbox_id, command_id, "/resize")
    return Call("POST", path, _nothing, json={"cols": cols, "rows": rows})


def delete(sandbox_id: str, command_id: str) -> Call[None]:
    return Call("DELETE", _path(sandbox_id, command_id), _nothing, patient=True)


def as_bytes(data: Union[str, bytes]) -> bytes:
    """What is written."""
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"data must be str or bytes, not {type(data).__name__}")


def foreground(cmd: Union[str, Argv], timeout: Any, options: Dict[str, Any]) -> Dict[str, Any]:
    """The arguments of `run_code_stream` or `exec_stream` for the same command."""
    for name in ("pty", "id"):
        if options.pop(name):
            raise ValueError(f"{name} is for commands in the background")
    if isinstance(options["stdin"], bool):
        raise TypeError("stdin is what the command reads, str or bytes, unless background=True")
    options["timeout"] = DEFAULT_TIMEOUT if timeout is _DEFAULT else timeout
    return options


def _gave_up(command_id: str, seconds: Optional[float]) -> RequestTimeoutError:
    return RequestTimeoutError(f"command {command_id} has not ended within {seconds:g} s; it runs on")


# As in _streams.py: the generators know nothing of the objects around them.


def _events(
    client: Client, traceparent: Optional[str], call: Call[None], deadline: Deadline
) -> Generator[Event, None, None]:
    decoder = Decoder()
    with client.stream(call, traceparent=traceparent) as response:
        deadline.start(response)
        try:
            with reading(client.host, call.path):
                for chunk in response.iter_raw():
                    for event in decoder.feed(chunk):
                        if event.type != "started":
                            yield event
            decoder.finish()
        except StreamBrokenError:
            if not decoder.ended:
                raise
        finally:
            deadline.stop()


async def _async_events(
    client: AsyncClient, traceparent: Optional[str], call: Call[None], deadline: Deadline
) -> AsyncGenerator[Event, None]:
    decoder = Decoder()
    async with client.stream(call, traceparent=traceparent) as response:
        deadline.start(response)
        try:
            with reading(client.host, call.path):
                async for chunk in response.aiter_raw():
                    for event in decoder.feed(chunk):
                        if event.type != "started":
                            yield event
            decoder.finish()
        except StreamBrokenError:
            if not decoder.ended:
                raise
        finally:
            deadline.stop()


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

    def events(
        self, *, stdout: int = 0, stderr: int = 0
    ) -> Generator[Event, None, None]:
        """Its events from these positions on; -1: only what is new. Of much output (256 MiB of each
        stream) the oldest is thrown away."""
        return self._events(stdout, stderr, Deadline(None, 0))

    def _events(
        self, stdout: int, stderr: int, deadline: Deadline
    ) -> Generator[Event, None, None]:
        s = self._sandbox
        s._check_open()
        return _events(s._client, s._traceparent, follow(s.id, self.id, stdout, stderr), deadline)

    def __iter__(self) -> Generator[Event, None, None]:
        return self.events()

    def wait(
        self,
        timeout: Optional[float] = None,
        *,
        on_stdout: OnText = None,
        on_stderr: OnText = None,
    ) -> ExecResult:
        """Wait for its end: all its output, and how it ended. After `timeout` seconds
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
            failure = _gave_up(self.id, timeout) if deadline.passed else exc
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
        timeout: Optional[float] = _DEFAULT,
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

    def _events(
        self, stdout: int, stderr: int, deadline: Deadline
    ) -> AsyncGenerator[Event, None]:
        s = self._sandbox
        s._check_open()
        call = follow(s.id, self.id, stdout, stderr)
        return _async_events(s._client, s._traceparent, call, deadline)

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
            failure = _gave_up(self.id, timeout) if deadline.passed else exc
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
        timeout: Optional[float] = _DEFAULT,
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
