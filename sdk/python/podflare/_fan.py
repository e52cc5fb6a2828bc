# SPDX-License-Identifier: Apache-2.0
"""Running several codes at once, each in a copy of one sandbox: what `map` and `race` do. Nothing they
start outlives them, whatever is raised."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
from typing import (
    TYPE_CHECKING,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Tuple,
)

from ._base import Closing
from ._children import AsyncChildren, Children
from ._errors import ForkError, InvalidRequestError, PodflareError
from ._results import ExecResult, Language, RaceResult

if TYPE_CHECKING:
    from ._async_sandbox import AsyncSandbox
    from ._sandbox import Sandbox

Outcome = Tuple[int, Optional[ExecResult], Optional[Exception]]
Until = Optional[Callable[[ExecResult], object]]


class _Tally:
    """What became of each code so far."""

    def __init__(self, count: int) -> None:
        self.results: List[Optional[ExecResult]] = [None] * count
        self.errors: List[Optional[Exception]] = [None] * count

    def take(self, outcome: Outcome) -> Optional[ExecResult]:
        index, result, error = outcome
        self.results[index], self.errors[index] = result, error
        return result

    def all(self) -> List[ExecResult]:
        return [result for result in self.results if result is not None]

    def race(self, winner: Optional[int]) -> RaceResult:
        """The result; raises if all broke off."""
        if all(error is not None for error in self.errors):
            raise next(error for error in self.errors if error is not None)
        return RaceResult(
            winner=winner,
            result=None if winner is None else self.results[winner],
            results=tuple(self.results),
            errors=tuple(self.errors),
        )


def map(
    sandbox: "Sandbox",
    codes: Iterable[str],
    language: Language,
    timeout: Optional[float],
    reseed: bool,
) -> List[ExecResult]:
    """See Sandbox.map."""
    codes = _checked(codes)
    if not codes:
        return []
    tally = _Tally(len(codes))
    with _Runners(sandbox, codes, language, timeout, reseed) as runners:
        for outcome in runners.outcomes():
            if tally.take(outcome) is None and outcome[2] is not None:
                raise outcome[2]
    return tally.all()


def race(
    sandbox: "Sandbox",
    codes: Iterable[str],
    until: Until,
    language: Language,
    timeout: Optional[float],
    reseed: bool,
) -> RaceResult:
    """See Sandbox.race."""
    codes = _checked(codes, at_least_one=True)
    tally = _Tally(len(codes))
    winner: Optional[int] = None
    with _Runners(sandbox, codes, language, timeout, reseed) as runners:
        for outcome in runners.outcomes():
            result = tally.take(outcome)
            if result is not None and (result.ok if until is None else until(result)):
                winner = outcome[0]
                sandbox.merge_into(runners.copies[winner])
                break
    return tally.race(winner)


def _checked(codes: Iterable[str], at_least_one: bool = False) -> Sequence[str]:
    """The codes as a list; refused before anything is forked if they are not that."""
    if isinstance(codes, str):
        raise TypeError("a list of codes is wanted, not one code")
    codes = list(codes)
    for code in codes:
        if not isinstance(code, str):
            raise TypeError(f"each code must be str, not {type(code).__name__}")
    if at_least_one and not codes:
        raise ValueError("a race needs at least one code")
    return codes


@contextlib.contextmanager
def _enough_copies(codes: Sequence[str]) -> Iterator[None]:
    """The daemon's limit for one fork in the words of who calls `map` or `race`."""
    try:
        yield
    except InvalidRequestError as exc:
        if exc.field != "n":
            raise
        raise ValueError(
            f"{len(codes)} codes need as many copies at once, which this daemon does not make: {exc}"
        ) from exc


class _Runners(Closing):
    """Copies of a sandbox, each with a thread that runs one code in it. Leaving the block closes
    the copies, which ends what still runs, and waits for the threads."""

    def __init__(
        self,
        sandbox: "Sandbox",
        codes: Sequence[str],
        language: Language,
        timeout: Optional[float],
        reseed: bool,
    ) -> None:
        self._outcomes: "queue.Queue[Outcome]" = queue.Queue()
        self._threads: List[threading.Thread] = []
        try:
            with _enough_copies(codes):
                self.copies = sandbox.fork(len(codes), reseed=reseed)
        except ForkError as exc:
            # The fork's own error is the one worth reading.
            with contextlib.suppress(PodflareError):
                Children(exc.sandboxes).close()
            raise
        try:
            for index, code in enumerate(codes):
                # Daemon threads: a program that is told to end does not wait for a long code.
                thread = threading.Thread(
                    target=self._run, args=(index, code, language, timeout), daemon=True
                )
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self.close()
            raise

    def _run(self, index: int, code: str, language: Language, timeout: Optional[float]) -> None:
        try:
            result = self.copies[index].run_code(code, language, timeout=timeout)
            self._outcomes.put((index, result, None))
        except Exception as exc:
            self._outcomes.put((index, None, exc))

    def outcomes(self) -> Iterator[Outcome]:
        """What each did, as they end."""
        for _ in self.copies:
            yield self._outcomes.get()

    def close(self) -> None:
        self.copies.close()
        # All are closed: what ran in them has ended.
        for thread in self._threads:
            thread.join()


async def async_map(
    sandbox: "AsyncSandbox",
    codes: Iterable[str],
    language: Language,
    timeout: Optional[float],
    reseed: bool,
) -> List[ExecResult]:
    """See AsyncSandbox.map."""
    codes = _checked(codes)
    if not codes:
        return []
    tally = _Tally(len(codes))
    async with _async_runners(sandbox, codes, language, timeout, reseed) as (_, outcomes):
        async for outcome in outcomes:
            if tally.take(outcome) is None and outcome[2] is not None:
                raise outcome[2]
    return tally.all()


async def async_race(
    sandbox: "AsyncSandbox",
    codes: Iterable[str],
    until: Until,
    language: Language,
    timeout: Optional[float],
    reseed: bool,
) -> RaceResult:
    """See AsyncSandbox.race."""
    codes = _checked(codes, at_least_one=True)
    tally = _Tally(len(codes))
    winner: Optional[int] = None
    async with _async_runners(sandbox, codes, language, timeout, reseed) as (copies, outcomes):
        async for outcome in outcomes:
            result = tally.take(outcome)
            if result is None:
                continue
            verdict = result.ok if until is None else until(result)
            if inspect.isawaitable(verdict):
                verdict = await verdict
            if verdict:
                winner = outcome[0]
                await sandbox.merge_into(copies[winner])
                break
    return tally.race(winner)


@contextlib.asynccontextmanager
async def _async_runners(
    sandbox: "AsyncSandbox",
    codes: Sequence[str],
    language: Language,
    timeout: Optional[float],
    reseed: bool,
) -> AsyncIterator[Tuple[AsyncChildren, AsyncIterator[Outcome]]]:
    """Copies of a sandbox, each with a task that runs one code in it. Leaving the block cancels the
    tasks and closes the copies."""
    try:
        with _enough_copies(codes):
            copies = await sandbox.fork(len(codes), reseed=reseed)
    except ForkError as exc:
        with contextlib.suppress(PodflareError):
            await AsyncChildren(exc.sandboxes).close()
        raise

    async def run(index: int, code: str) -> Outcome:
        try:
            return index, await copies[index].run_code(code, language, timeout=timeout), None
        except Exception as exc:
            return index, None, exc

    async def outcomes() -> AsyncIterator[Outcome]:
        for done in asyncio.as_completed(tasks):
            yield await done

    async with copies:
        tasks = [asyncio.ensure_future(run(*one)) for one in enumerate(codes)]
        try:
            yield copies, outcomes()
        finally:
            # More than once: anyio 3 swallows one that comes in the moment in which it has connected.
            while not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=0.1)
