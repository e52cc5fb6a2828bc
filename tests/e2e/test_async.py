# SPDX-License-Identifier: Apache-2.0
"""AsyncSandbox against real sandboxes."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Coroutine

import pytest
from served import Daemon

import podflare
from podflare import AsyncClient, AsyncSandbox

Main = Callable[[AsyncClient, AsyncSandbox], Coroutine[Any, Any, None]]


@pytest.fixture
def run(daemon: Daemon) -> Callable[[Main], None]:
    """Runs a coroutine with a client and a sandbox of its own."""

    def start(main: Main) -> None:
        async def all_of_it() -> None:
            async with AsyncClient(host=daemon.url) as client:
                async with AsyncSandbox(client=client) as s:
                    await main(client, s)
                with pytest.raises(podflare.SandboxNotFoundError):
                    await AsyncSandbox.connect(s.id, client=client)

        asyncio.run(all_of_it())

    return start


def test_calls_streams_and_files(run):
    async def main(client: AsyncClient, s: AsyncSandbox) -> None:
        await s.run_code("x = 6")
        assert (await s.run_code("x * 7")).text == "42"
        pieces = []
        async for event in s.run_code_stream("for i in range(3): print(i, flush=True)"):
            if event.type == "stdout":
                pieces.append(event.data)
        assert "".join(pieces) == "0\n1\n2\n"
        await s.upload(b"abc", "/tmp/x")
        assert await s.download("/tmp/x") == b"abc"
        assert "x" in [one.name for one in await s.files.list("/tmp")]
        assert (await s.exec(["cat", "/tmp/x"])).stdout == "abc"
        async with await s.create_context("other") as other:
            assert (await other.run_code("'x' in globals()")).text == "False"

    run(main)


def test_cancellation_ends_the_command(run):
    async def main(client: AsyncClient, s: AsyncSandbox) -> None:
        await s.run_code("x = 1")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(s.run_code("import time; x = 2; time.sleep(1000)"), 5)
        # The next one does not wait a thousand seconds.
        assert (await s.run_code("print(x)", timeout=120)).stdout == "2\n"

    run(main)


def test_interrupt_by_another_task(run):
    async def main(client: AsyncClient, s: AsyncSandbox) -> None:
        task = asyncio.ensure_future(s.run_code("import time; time.sleep(1000)"))
        while not any(one.state == "running" for one in await s.list_execs()):
            await asyncio.sleep(0.05)
        assert await s.interrupt() is True
        r = await task
        assert (r.termination_reason, r.state) == ("interrupted", "preserved"), r

    run(main)


def test_copies_at_once(run):
    async def main(client: AsyncClient, s: AsyncSandbox) -> None:
        await s.run_code("base = 40")
        results = await s.map([f"base + {n}" for n in range(3)])
        assert [r.text for r in results] == ["40", "41", "42"]
        async with await s.fork(2) as copies:
            await asyncio.gather(*(c.run_code(f"own = {n}") for n, c in enumerate(copies)))
            await s.merge_into(copies[1])
        assert (await s.run_code("own")).text == "1"
        race = await s.race(["import time; time.sleep(1000)", "'quick'"])
        assert race.winner == 1 and race.result is not None and race.result.text == "'quick'"

    run(main)
