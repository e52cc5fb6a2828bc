# SPDX-License-Identifier: Apache-2.0
"""A running command as an iterator of its events, sync and async."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, AsyncGenerator, Generator, Optional

from ._client import AsyncClient, Client
from ._errors import PodflareError, RequestTimeoutError, StreamBrokenError
from ._exec import GRACE, Callbacks, Collector, Decoder, Request, Underway, grace
from ._http import Deadline, reading
from ._results import Event, ExecResult

if TYPE_CHECKING:
    from ._running import AsyncRunning, Running


class _Run:
    """What is known of one command while it runs: the part of both generators that does no I/O."""

    def __init__(self, request: Request, underway: Underway) -> None:
        self.request = request
        self.underway = underway
        self.decoder = Decoder()
        self.started = False

    def take(self, event: Event) -> bool:
        """Note an event; whether it is passed on."""
        if not self.started:
            self.started = True
            self.underway.start(self.request.exec_id)
        if event.type == "exit":
            self.underway.leave(self.request.exec_id)
        return event.type != "started"

    def broken(self, exc: StreamBrokenError, deadline: Deadline) -> Optional[Exception]:
        """What to raise for a connection that broke."""
        if self.decoder.ended:
            return None
        if deadline.passed:
            return RequestTimeoutError(
                f"the daemon has not ended the command {deadline.seconds:g} s after its start, long after its "
                "time-out; the connection was given up"
            )
        return exc


# The generators know nothing of the objects around them: a loop that is left early drops the last
# reference to its stream, and that closes the connection at once.


def _events(client: Client, traceparent: Optional[str], run: _Run) -> Generator[Event, None, None]:
    deadline = Deadline(run.request.limit, GRACE)
    run.underway.enter(run.request.exec_id)
    try:
        with client.stream(run.request.call, traceparent=traceparent) as response:
            try:
                with reading(client.host, run.request.call.path):
                    for chunk in response.iter_raw():
                        for event in run.decoder.feed(chunk):
                            deadline.start(response, grace(event))
                            if run.take(event):
                                deadline.busy()
                                yield event
                                deadline.waiting()
                run.decoder.finish()
            except StreamBrokenError as exc:
                failure = run.broken(exc, deadline)
                if failure is not None:
                    raise failure
            finally:
                deadline.stop()
    finally:
        run.underway.leave(run.request.exec_id)


async def _async_events(
    client: AsyncClient, traceparent: Optional[str], run: _Run
) -> AsyncGenerator[Event, None]:
    loop = asyncio.get_running_loop()
    deadline = Deadline(run.request.limit, GRACE, lambda *alarm: loop.call_later(*alarm).cancel)
    run.underway.enter(run.request.exec_id)
    try:
        async with client.stream(run.request.call, traceparent=traceparent) as response:
            try:
                with reading(client.host, run.request.call.path):
                    async for chunk in response.aiter_raw():
                        for event in run.decoder.feed(chunk):
                            deadline.start(response, grace(event))
                            if run.take(event):
                                deadline.busy()
                                yield event
                                deadline.waiting()
                run.decoder.finish()
            except StreamBrokenError as exc:
                failure = run.broken(exc, deadline)
                if failure is not None:
                    raise failure
            finally:
                deadline.stop()
    finally:
        run.underway.leave(run.request.exec_id)


class ExecStream:
    """A running command: iterate over it for its events, the last of which is the exit event.

    The command starts when the first event is asked for. Leaving a loop early, `close()`, or the end
    of a `with` block ends the command. Reading slowly slows the command down; nothing is lost up to half of
    `output_limit` (of more, the last half of it comes at the end).
    """

    def __init__(self, sandbox: "Running", request: Request) -> None:
        self._sandbox = sandbox
        self._run = _Run(request, sandbox._underway)
        self._events = _events(sandbox._client, sandbox._traceparent, self._run)

    @property
    def exec_id(self) -> str:
        """The name of this call, as in `Sandbox.list_execs`."""
        return self._run.request.exec_id

    @property
    def started(self) -> bool:
        """True once the command runs; before that it waits for others to end."""
        return self._run.started

    def interrupt(self, *, escalate: bool = False) -> bool:
        """Interrupt this command; see `Sandbox.interrupt`. May be called from any thread."""
        return self._sandbox.interrupt(self.exec_id, escalate=escalate)

    def close(self) -> None:
        """End the command, if it has not ended. Not while another thread waits for an event: use
        `interrupt` there."""
        self._events.close()

    def __iter__(self) -> "ExecStream":
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> "ExecStream":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncExecStream:
    """`ExecStream` for asyncio: `async for event in stream`. Cancelling the task that waits for an
    event ends the command; so does `await stream.close()`, or the end of an `async with` block."""

    def __init__(self, sandbox: "AsyncRunning", request: Request) -> None:
        self._sandbox = sandbox
        self._run = _Run(request, sandbox._underway)
        self._events = _async_events(sandbox._client, sandbox._traceparent, self._run)

    @property
    def exec_id(self) -> str:
        """The name of this call, as in `AsyncSandbox.list_execs`."""
        return self._run.request.exec_id

    @property
    def started(self) -> bool:
        """True once the command runs; before that it waits for others to end."""
        return self._run.started

    async def interrupt(self, *, escalate: bool = False) -> bool:
        """Interrupt this command; see `AsyncSandbox.interrupt`."""
        return await self._sandbox.interrupt(self.exec_id, escalate=escalate)

    async def close(self) -> None:
        """End the command, if it has not ended."""
        await self._events.aclose()

    def __aiter__(self) -> "AsyncExecStream":
        return self

    async def __anext__(self) -> Event:
        return await self._events.__anext__()

    async def __aenter__(self) -> "AsyncExecStream":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def collect(stream: ExecStream, callbacks: Callbacks) -> ExecResult:
    """Reads a command's events to the end."""
    collector = Collector(stream.exec_id)
    try:
        for event in stream:
            collector.add(event)
            callbacks.call(event)
    except PodflareError as exc:
        collector.explain(exc)
        raise
    finally:
        stream.close()
    return collector.result()


async def async_collect(stream: AsyncExecStream, callbacks: Callbacks) -> ExecResult:
    """Reads a command's events to the end."""
    collector = Collector(stream.exec_id)
    try:
        async for event in stream:
            collector.add(event)
            reply = callbacks.call(event)
            if inspect.isawaitable(reply):
                await reply
    except PodflareError as exc:
        collector.explain(exc)
        raise
    finally:
        await stream.close()
    return collector.result()
