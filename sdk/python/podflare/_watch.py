# SPDX-License-Identifier: Apache-2.0
"""Watching a directory of a sandbox: `files.watch`.

A program in the sandbox (guest/repl/watch.py) watches, and prints a line for each event; it runs as a
command of its own, which ends with its connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncGenerator,
    Deque,
    Generator,
    Iterator,
    List,
    Optional,
    Union,
)

import httpx

from ._client import AsyncClient, Client
from ._errors import (
    InvalidRequestError,
    PodflareError,
    RequestTimeoutError,
    error_from_result,
)
from ._exec import Decoder, Request, request
from ._http import hang_up, reading
from ._plain import flat
from ._results import Event
from ._types import FileStat

if TYPE_CHECKING:
    from typing import Literal

    from ._async_sandbox import AsyncSandbox
    from ._sandbox import Sandbox

PROGRAM = ["/usr/bin/python3", "-I", "-S", "-X", "utf8", "/run/podflare/repl/watch.py"]
# Half of it is passed on as it comes; the program ends before, and is started again.
OUTPUT_LIMIT = 256 << 20
# Of what the program says at once, in bytes: two paths, of 4096 bytes at most, each of which may take
# six. And of each, in characters.
LINE_MAX = 64 << 10
PATH_MAX = 16 << 10
# Seconds in which a watch is in place, unless who asks waits longer for each event.
READY = 60.0
# Events that wait here for a program that does not ask for them, and bytes of memory that they may
# take; what is more waits in the sandbox.
WAITING_MAX = 10_000
WAITING_BYTES = 64 << 20


@dataclass(frozen=True)
class FileEvent:
    """Something has changed in a directory that is watched.

    type        "created", also of what was moved in from elsewhere, and all that is in it;
                "modified": closed after it was open for writing, or its mode, owner or times were
                changed; also replaced by what was moved in from elsewhere;
                "deleted", also of what was moved out; what was in a directory goes with it untold;
                "moved" within what is watched, perhaps in the place of something;
                "overflow": too much happened at once, and events were lost; what a comparison then
                finds created, deleted and modified follows.
    path        absolute; the new one of what was moved; of an overflow, the directory watched. Bytes that
                are not UTF-8 are written as Python writes such names (`os.fsencode` gives them
                back).
    is_dir      True for a directory (not for a link to one).
    moved_from  the old path of what was moved.
    """

    type: Literal["created", "modified", "deleted", "moved", "overflow"]
    path: str
    is_dir: bool = False
    moved_from: Optional[str] = None


def check_directory(stat: FileStat) -> str:
    """The absolute path of what is to be watched."""
    if not stat.is_dir:
        raise InvalidRequestError(
            f"{flat(stat.path)} is not a directory", code="not_a_directory", field="path"
        )
    return stat.path


class _Session:
    """What is known of a watch: the part of both kinds that does no I/O. What it hands out is an event,
    or None for the moment when the watch is in place."""

    def __init__(self, sandbox_id: str, path: str, recursive: bool) -> None:
        self.path = path
        self._sandbox_id = sandbox_id
        self._argv = [*PROGRAM, *(["--recursive"] if recursive else []), path]
        self._last: Optional[str] = None
        self._again = self._ready = False

    def request(self) -> Request:
        """The next command, for which it is not in the way of any other."""
        self._rest, self._errors = bytearray(), b""
        self._ready = False
        self._again, self._last = self._last == "again", None
        return request(
            self._sandbox_id,
            argv=self._argv,
            timeout=0,
            cwd="/",
            context=f"podflare_watch_{secrets.token_hex(6)}",
            output_limit=OUTPUT_LIMIT,
        )

    @property
    def over(self) -> bool:
        """The directory is gone: there is no next command."""
        return self._last == "end"

    def take(self, event: Event) -> Iterator[Optional[FileEvent]]:
        """What an event of the command means."""
        if event.type == "stderr":
            self._errors = (self._errors + event.raw)[-2000:]
        elif event.type == "stdout":
            self._rest += event.raw
            if b"\n" in event.raw:
                *lines, rest = bytes(self._rest).split(b"\n")
                self._rest = bytearray(rest)
                for line in lines:
                    yield from self._line(line)
            if len(self._rest) > LINE_MAX:
                raise self._no_event(self._rest)
        elif event.type == "exit" and self._last not in ("again", "end"):
            reason = event.extra.get("termination_reason", "exited")
            said = flat(self._errors.decode("utf-8", "replace").strip())
            why = said or f"{reason}, code {event.code}"
            raise PodflareError(f"the watch of {flat(self.path)} has ended by itself: {why}")

    def _line(self, line: bytes) -> Iterator[Optional[FileEvent]]:
        if len(line) > LINE_MAX:
            raise self._no_event(line)
        try:
            told = json.loads(line)
            kind = told["type"]
            # Of one that was started again the directory may be gone by then.
            early = ("ready", "error", "end") if self._again else ("ready", "error")
            if not self._ready and kind not in early:
                raise PodflareError(
                    f"the watch of {flat(self.path)} says something else before it began"
                )
            if kind in ("created", "modified", "deleted", "moved"):
                old = told.get("from")
                path, is_dir = _path(told["path"]), bool(told["dir"])
                yield FileEvent(kind, path, is_dir, None if old is None else _path(old))
                return
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise self._no_event(line) from exc
        if kind == "overflow":
            yield FileEvent("overflow", self.path)
        elif kind == "ready":
            if self._ready:
                raise self._no_event(line)
            self._ready = True
            # Between the two commands nobody watched.
            yield FileEvent("overflow", self.path) if self._again else None
        elif kind == "error":
            code, message = told.get("code"), told.get("message")
            if isinstance(message, str):
                message = flat(message)
            raise error_from_result({"error": message, "code": code})
        else:
            self._last = kind

    def _no_event(self, line: Union[bytes, bytearray]) -> PodflareError:
        start = flat(line[:120].decode("utf-8", "replace"))
        return PodflareError(f"the watch of {flat(self.path)} says what is no event: {start}")


def _path(said: Any) -> str:
    """A path in an event: what is there is kept, until the program asks for it."""
    if not isinstance(said, str) or len(said) > PATH_MAX:
        raise ValueError("no path")
    return said


def _seconds_to_begin(timeout: Optional[float]) -> float:
    return max(READY, timeout or 0.0)


def _never_began(path: str, seconds: float) -> RequestTimeoutError:
    return RequestTimeoutError(f"the watch of {flat(path)} has not begun within {seconds:g} s")


def _ended_early(path: str) -> PodflareError:
    return PodflareError(f"the watch of {flat(path)} has ended before it began")


def _too_late(path: str, seconds: Optional[float]) -> RequestTimeoutError:
    return RequestTimeoutError(f"nothing has changed in {flat(path)} for {seconds:g} s")


# Sync: a thread reads, so that waiting for an event can have an end.


def _weight(item: Union[FileEvent, None, BaseException]) -> int:
    """What it takes of the memory, about."""
    if not isinstance(item, FileEvent):
        return 0
    return 400 + sys.getsizeof(item.path) + sys.getsizeof(item.moved_from)


class _Mailbox:
    """Between the thread that reads and the program."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: Deque[Union[FileEvent, None, BaseException]] = deque()
        self._bytes = 0  # that they take
        self._response: Optional[httpx.Response] = None
        self.closed = False

    def put(self, item: Union[FileEvent, None, BaseException]) -> None:
        """Waits for room, unless it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._has_room())
            if self.closed:
                return
            self._waiting.append(item)
            self._bytes += _weight(item)
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._waiting) < WAITING_MAX and self._bytes < WAITING_BYTES

    def get(self, seconds: Optional[float]) -> Union[FileEvent, None, BaseException]:
        """The next; TimeoutError after so many seconds. What closed it stays in it."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.closed or self._waiting, seconds):
                raise TimeoutError
            if self.closed:
                return StopIteration()
            last = isinstance(self._waiting[0], BaseException)
            item = self._waiting[0] if last else self._waiting.popleft()
            self._bytes -= 0 if last else _weight(item)
            self._changed.notify_all()
            return item

    def reads(self, response: Optional[httpx.Response]) -> None:
        """The reply that is being read."""
        with self._changed:
            self._response = response
            self._hang_up()

    def close(self) -> None:
        """The reader ends soon, and who waits for an event is told that there is none."""
        with self._changed:
            self.closed = True
            self._waiting.clear()
            self._changed.notify_all()
            self._hang_up()

    def _hang_up(self) -> None:
        if self.closed and self._response is not None:
            hang_up(self._response)


def _read(client: Client, traceparent: Optional[str], session: _Session, box: _Mailbox) -> None:
    try:
        while not session.over and not box.closed:
            call, decoder = session.request().call, Decoder()
            with client.stream(call, traceparent=traceparent) as response:
                try:
                    box.reads(response)
                    with reading(client.host, call.path):
                        for chunk in response.iter_raw():
                            for event in decoder.feed(chunk):
                                for item in session.take(event):
                                    box.put(item)
                    decoder.finish()
                finally:
                    box.reads(None)
        box.put(StopIteration())
    except BaseException as exc:  # whatever it is, the program is to see it
        box.put(exc)


class FileWatch:
    """A directory that is watched, from `files.watch`: iterate over it for its events (`FileEvent`).

        with s.files.watch("/home/user/project") as changes:
            for event in changes:
                print(event.type, event.path)

    The loop ends when the directory itself is deleted or moved (which is told as "deleted"), or by
    `close()`, also from another thread.

    path     the directory.
    timeout  seconds to wait for each event, None without end; may be changed. When they are over,
             RequestTimeoutError (a TimeoutError) is raised. The watch goes on: ask again.
    """

    def __init__(
        self, sandbox: "Sandbox", path: str, recursive: bool, timeout: Optional[float]
    ) -> None:
        self.path, self.timeout = path, timeout
        self._box = box = _Mailbox()
        session = _Session(sandbox.id, path, recursive)
        threading.Thread(
            target=_read,
            args=(sandbox._client, sandbox._traceparent, session, box),
            name="podflare-watch",
            daemon=True,
        ).start()
        try:
            self._begin(_seconds_to_begin(timeout))
        except BaseException:  # Ctrl-C, too
            box.close()
            raise

    def _begin(self, seconds: float) -> None:
        try:
            first = self._box.get(seconds)
        except TimeoutError:
            raise _never_began(self.path, seconds) from None
        if isinstance(first, BaseException) and not isinstance(first, StopIteration):
            raise first
        if first is not None:
            raise _ended_early(self.path)

    def close(self) -> None:
        """End the watch."""
        self._box.close()

    def __iter__(self) -> "FileWatch":
        return self

    def __next__(self) -> FileEvent:
        try:
            item = self._box.get(self.timeout)
        except TimeoutError:
            raise _too_late(self.path, self.timeout) from None
        if isinstance(item, BaseException):
            raise item
        assert item is not None
        return item

    def __enter__(self) -> "FileWatch":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._box.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.path!r}>"


# For asyncio.


async def _events(
    client: AsyncClient, traceparent: Optional[str], session: _Session
) -> AsyncGenerator[Optional[FileEvent], None]:
    while not session.over:
        call, decoder = session.request().call, Decoder()
        async with client.stream(call, traceparent=traceparent) as response:
            with reading(client.host, call.path):
                async for chunk in response.aiter_raw():
                    for event in decoder.feed(chunk):
                        for item in session.take(event):
                            yield item
            decoder.finish()


class AsyncFileWatch:
    """`FileWatch` for asyncio: `await files.watch(path)`, or `async with files.watch(path) as changes`,
    then `async for event in changes`. Cancelling the task that waits for an event ends the watch.
    """

    def __init__(
        self, sandbox: "AsyncSandbox", path: Any, recursive: bool, timeout: Optional[float]
    ) -> None:
        self.path, self.timeout = str(path), timeout
        self._sandbox, self._recursive = sandbox, recursive
        self._events: Optional[AsyncGenerator[Optional[FileEvent], None]] = None
        self._next: Optional[asyncio.Future[List[Optional[FileEvent]]]] = None
        self._closed = False
        self._closing: Optional[asyncio.Future[None]] = None

    async def _begin(self) -> "AsyncFileWatch":
        if self._events is None:
            s = self._sandbox
            self.path = check_directory(await s.files.stat(self.path))
            session = _Session(s.id, self.path, self._recursive)
            self._events = _events(s._client, s._traceparent, session)
            try:
                await self._first(_seconds_to_begin(self.timeout))
            except BaseException:
                await self.close()
                raise
        return self

    async def _first(self, seconds: float) -> None:
        try:
            first = await self._item(seconds)
        except TimeoutError:
            if self._next is None:  # that of its connection
                raise
            raise _never_began(self.path, seconds) from None
        except StopAsyncIteration:
            raise _ended_early(self.path) from None
        if first is not None:
            raise _ended_early(self.path)

    async def _item(self, seconds: Optional[float]) -> Optional[FileEvent]:
        events = self._events
        if events is None or self._closed:
            raise StopAsyncIteration

        if self._next is None:
            self._next = asyncio.ensure_future(_one(events))
            # That of a connection that was closed is of no interest.
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            task = self._next
            done, _ = await asyncio.wait((task,), timeout=seconds)
        except asyncio.CancelledError:
            await self.close()
            raise
        if not done:
            raise _too_late(self.path, seconds)
        if self._closed:
            raise StopAsyncIteration
        self._next = None
        items = task.result()
        if not items:
            self._closed = True
            raise StopAsyncIteration
        return items[0]

    async def close(self) -> None:
        """End the watch; also from another task."""
        self._closed = True
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._end())
        # Others may wait for it, too: one that is cancelled does not end it.
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait((self._next,))
        if self._events is not None:
            await self._events.aclose()

    def __await__(self) -> Generator[Any, None, "AsyncFileWatch"]:
        return self._begin().__await__()

    def __aiter__(self) -> "AsyncFileWatch":
        return self

    async def __anext__(self) -> FileEvent:
        await self._begin()
        item = await self._item(self.timeout)
        assert item is not None
        return item

    async def __aenter__(self) -> "AsyncFileWatch":
        return await self._begin()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.path!r}>"


async def _one(events: AsyncGenerator[Optional[FileEvent], None]) -> List[Optional[FileEvent]]:
    """The next, or nothing at the end: a task cannot raise StopAsyncIteration."""
    try:
        return [await events.__anext__()]
    except StopAsyncIteration:
        return []
