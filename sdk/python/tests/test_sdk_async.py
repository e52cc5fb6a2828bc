# SPDX-License-Identifier: Apache-2.0
"""What only asyncio has: blocks and creation, cancellation, callbacks that are awaited, many at once.
Everything else is tested with both kinds of classes by the other files (conftest.py)."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from typing import Any, Callable, Coroutine

import pytest

import podflare
from fake_daemon import SANDBOX_ID, FakeDaemon
from fake_fleet import FakeFleet
from fake_guest import FakeGuest
from podflare import AsyncClient, AsyncSandbox

DELETED = ("DELETE", f"/v1/sandboxes/{SANDBOX_ID}")


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(asyncio.wait_for(main(), 60))


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def calls(daemon: FakeDaemon) -> list[tuple[str, str]]:
    return [(r.method, r.path) for r in daemon.requests]


def test_created_by_the_block_or_by_create(daemon: FakeDaemon):
    async def main() -> None:
        s = AsyncSandbox(memory_mib=256)
        assert daemon.requests == [] and "not created" in repr(s)
        for use in (lambda: s.id, lambda: s.run_code_stream(""), lambda: s.exec_stream(["x"])):
            with pytest.raises(podflare.PodflareError, match="has not been created"):
                use()
        with pytest.raises(podflare.PodflareError, match="has not been created"):
            await s.run_code("")
        async with s:
            assert daemon.requests[-1].json == {"memory_mib": 256}
            assert s.id == SANDBOX_ID and "open" in repr(s)
        assert calls(daemon)[-1] == DELETED and "closed" in repr(s)
        t = await AsyncSandbox.create(metadata={"a": "b"})
        async with t:  # not created once more
            pass
        assert [method for method, _ in calls(daemon)] == ["POST", "DELETE"] * 2
        await t.close()
        # Never created, never destroyed.
        await AsyncSandbox().close()
        assert len(daemon.requests) == 4

    run(main)


def test_a_block_that_is_left_by_an_exception_or_a_cancellation(daemon: FakeDaemon):
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            async with AsyncSandbox():
                1 / 0
        assert calls(daemon)[-1] == DELETED

        async def work() -> None:
            async with AsyncSandbox():
                await asyncio.sleep(60)

        task = asyncio.ensure_future(work())
        await until(lambda: len(daemon.requests) == 3)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert calls(daemon)[-1] == DELETED and len(daemon.requests) == 4

    run(main)


@pytest.mark.parametrize("how", ["cancel", "wait_for"])
def test_cancelling_who_waits_ends_the_command(daemon: FakeDaemon, how):
    ended = threading.Event()

    def answer(r):
        r.start_stream()
        try:
            while True:
                r.send(b'{"type":"stdout","data":"y","seq":0,"ts":0}\n')
                time.sleep(0.01)
        except OSError:
            ended.set()
            raise

    daemon.on_exec(answer)

    async def main() -> None:
        async with AsyncSandbox() as s:
            if how == "wait_for":
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(s.run_code("yes", "bash"), 0.3)
            else:
                seen = asyncio.Event()
                task = asyncio.ensure_future(s.run_code("yes", on_stdout=lambda piece: seen.set()))
                await seen.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until(ended.is_set)
            assert not s._underway.targets()
            daemon.on_exec(lambda r: r.events({"type": "exit", "data": 0}))
            assert (await s.run_code("")).ok

    run(main)


def test_cancelling_before_the_daemon_has_answered(daemon: FakeDaemon):
    gone = threading.Event()

    def answer(r):
        # Nothing comes; the client's end of the connection is seen by reading.
        r._handler.connection.settimeout(20)
        assert r._handler.rfile.read(1) == b""
        gone.set()
        r.cut()

    daemon.on_exec(answer)
    daemon.on("POST", "/v1/sandboxes", daemon._answers[("POST", "/v1/sandboxes")])

    async def main() -> None:
        async with AsyncSandbox() as s:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(s.run_code(""), 0.2)
            await until(gone.is_set)
            gone.clear()
            daemon.on("POST", "/v1/sandboxes", answer)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(AsyncSandbox.create(), 0.2)
            await until(gone.is_set)
            assert (await s.info()).state == "ready"

    run(main)


def test_leaving_a_loop_early_ends_the_command(guest: FakeGuest):
    async def main() -> None:
        async with AsyncSandbox() as s:
            async for event in s.run_code_stream("print 1\nsleep 0.2\nprint 2\nprint 3\nsleep 60"):
                break
            gc.collect()
            await until(lambda: not s._underway.targets())
            stream = s.run_code_stream("print 1\nsleep 60")
            async with stream:
                assert (await stream.__anext__()).data == "1\n"
            with pytest.raises(StopAsyncIteration):
                await stream.__anext__()
            for id in list(guest.runs):
                guest.runs[id].interrupt(True)

    run(main)


def test_callbacks_may_be_coroutine_functions(guest: FakeGuest):
    async def main() -> None:
        order: list[Any] = []

        async def slowly(piece: str) -> None:
            await asyncio.sleep(0.05)
            order.append(piece)

        async with AsyncSandbox() as s:
            r = await s.run_code(
                'print 1\nwarn 2\nshow {"text/plain": "3"}\nraise E',
                on_stdout=slowly,
                on_stderr=lambda piece: order.append(piece),
                on_result=lambda result: slowly(result.text),
                on_error=lambda error: order.append(error.name),
            )
            assert order == ["1\n", "2\n", "3", "E"] and r.exit_code == 1

    run(main)


def test_interrupt_by_another_task(guest: FakeGuest):
    async def main() -> None:
        async with AsyncSandbox() as s:
            guest.late = 0.2
            task = asyncio.ensure_future(s.run_code("sleep 60"))
            await until(lambda: s._underway.targets())
            assert await s.interrupt() is True
            assert (await task).termination_reason == "interrupted"

    run(main)


def test_many_at_once(fleet: FakeFleet):
    async def main() -> None:
        async with AsyncClient() as client:
            boxes = await asyncio.gather(*(AsyncSandbox.create(client=client) for _ in range(10)))
            start = time.monotonic()
            results = await asyncio.gather(
                *(box.run_code(f"sleep 0.3\nprint {n}") for n, box in enumerate(boxes))
            )
            assert time.monotonic() - start < 2.5  # not 3 s, one after the other
            assert [r.stdout for r in results] == [f"{n}\n" for n in range(10)]
            assert len(await AsyncSandbox.list(client=client)) == 10
            assert await client.templates() and len(await client.tree()) == 10
            await asyncio.gather(*(box.close() for box in boxes))
        assert fleet.living == set()

    run(main)


def test_race_with_a_condition_that_is_awaited(fleet: FakeFleet):
    async def main() -> None:
        async def two(result: podflare.ExecResult) -> bool:
            await asyncio.sleep(0.01)
            return result.stdout == "2\n"

        async with AsyncSandbox() as s:
            r = await s.race(["print 1", "sleep 0.1\nprint 2", "wait"], until=two)
            assert r.winner == 1 and fleet.living == {s.id}

            async def work() -> None:
                await s.map(["wait", "wait"])

            task = asyncio.ensure_future(work())
            await until(lambda: sum(box.exec_count for box in fleet.boxes.values()) >= 3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert fleet.living == {s.id}

    run(main)


def test_files_do_not_hold_up_the_event_loop(guest: FakeGuest, tmp_path):
    """A slow file object is read in a thread, while other tasks run."""

    class Slow:
        left = 4

        def read(self, size: int = -1) -> bytes:
            time.sleep(0.1)
            self.left -= 1
            return b"x" * 100 if self.left else b""

    async def main() -> None:
        async with AsyncSandbox() as s:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.01)
                    ticks += 1

            ticker = asyncio.ensure_future(tick())
            info = await s.upload(Slow(), "/tmp/x")  # type: ignore[arg-type]
            ticker.cancel()
            assert info.size == 300 and ticks > 8
            assert await s.download("/tmp/x") == b"x" * 300

    run(main)


@pytest.mark.parametrize(
    "kinds",
    [
        (podflare.Sandbox, podflare.AsyncSandbox),
        (podflare.Client, podflare.AsyncClient),
        (podflare.Files, podflare.AsyncFiles),
        (podflare.Context, podflare.AsyncContext),
        (podflare.ExecStream, podflare.AsyncExecStream),
        (podflare.Children, podflare.AsyncChildren),
    ],
)
def test_both_kinds_have_the_same_methods(kinds):
    def surface(kind: type) -> dict[str, Any]:
        found = {}
        for name, value in inspect.getmembers(kind):
            if not name.startswith("_") and (inspect.isfunction(value) or inspect.ismethod(value)):
                parameters = inspect.signature(value).parameters.values()
                found[name] = [(p.name, p.kind, p.default) for p in parameters]
                assert inspect.getdoc(value), f"{kind.__name__}.{name}"
        return found

    sync, other = map(surface, kinds)
    other.pop("create", None)
    assert sync == other
