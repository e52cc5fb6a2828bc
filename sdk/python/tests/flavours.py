# SPDX-License-Identifier: Apache-2.0
"""The async classes behind the interface of the sync ones, so that one test tests both: whatever is
awaitable is awaited, in an event loop that runs in a thread of its own."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any

import podflare


class Loop:
    """The event loop. `run` may be called from any thread but its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="event-loop", daemon=True).start()

    def run(self, awaitable: Any) -> Any:
        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result()


LOOP = Loop()

WRAPPED = (
    podflare.AsyncSandbox,
    podflare.AsyncClient,
    podflare.AsyncCommand,
    podflare.AsyncCommands,
    podflare.AsyncContext,
    podflare.AsyncFiles,
    podflare.AsyncExecStream,
)


class Proxy:
    """An async object as a sync one."""

    def __init__(self, target: Any) -> None:
        self.__dict__["target"] = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        if inspect.iscoroutine(value):  # a property that asks the daemon
            return finish(value)
        if not inspect.ismethod(value):
            return wrap(value)

        def call(*args: Any, **kw: Any) -> Any:
            try:
                return finish(value(*map(unwrap, args), **{k: unwrap(v) for k, v in kw.items()}))
            except podflare.ForkError as exc:
                exc.sandboxes = [wrap(one) for one in exc.sandboxes]
                raise

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.target, name, value)

    def __repr__(self) -> str:
        return repr(self.target)

    def __enter__(self) -> Any:
        LOOP.run(self.target.__aenter__())
        return self

    def __exit__(self, *exc: Any) -> Any:
        return LOOP.run(self.target.__aexit__(*exc))

    def __iter__(self) -> Any:
        if isinstance(self.target, podflare.AsyncCommand):
            return Proxy(self.target.__aiter__())
        return self

    def __next__(self) -> Any:
        async def one() -> Any:
            return await self.target.__anext__()

        try:
            return LOOP.run(one())
        except StopAsyncIteration:
            raise StopIteration from None


class Copies(list):
    """AsyncChildren as a sync list."""

    def __init__(self, target: Any) -> None:
        super().__init__(map(wrap, target))
        self.target = target
        self.pause_us, self.ready_us = target.pause_us, target.ready_us

    def close(self) -> None:
        LOOP.run(self.target.close())

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: Any) -> Any:
        return LOOP.run(self.target.__aexit__(*exc))


def wrap(value: Any) -> Any:
    if isinstance(value, podflare.AsyncChildren):
        return Copies(value)
    if inspect.isasyncgen(value):
        return Proxy(value)
    return Proxy(value) if isinstance(value, WRAPPED) else value


def unwrap(value: Any) -> Any:
    return value.target if isinstance(value, Proxy) else value


def finish(value: Any) -> Any:
    return wrap(LOOP.run(value) if inspect.isawaitable(value) else value)


class _Static:
    """AsyncSandbox.connect and .list."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        method = getattr(podflare.AsyncSandbox, self.name)
        return lambda *args, **kw: finish(method(*args, **{k: unwrap(v) for k, v in kw.items()}))


class SandboxByLoop:
    """Stands for podflare.Sandbox."""

    connect, list = _Static("connect"), _Static("list")

    def __new__(cls, **kw: Any) -> Any:
        return finish(podflare.AsyncSandbox.create(**{k: unwrap(v) for k, v in kw.items()}))


def client_by_loop(**kw: Any) -> Any:
    """Stands for podflare.Client."""
    return Proxy(podflare.AsyncClient(**kw))
