# SPDX-License-Identifier: Apache-2.0
"""The copies that a fork made, as a list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterable, List, Optional

from ._base import AsyncClosing, Closing
from ._errors import PodflareError

if TYPE_CHECKING:
    from ._async_sandbox import AsyncSandbox
    from ._sandbox import Sandbox


class Children(List["Sandbox"], Closing):
    """What `Sandbox.fork` returns: a list of the copies, in order. In a `with` block they are all
    closed at its end, whatever became of them.

    pause_us   microseconds for which the programs of the forked sandbox stood still.
    ready_us   microseconds from the request until the last copy was ready.
    """

    def __init__(
        self,
        sandboxes: Iterable["Sandbox"] = (),
        *,
        pause_us: Optional[int] = None,
        ready_us: Optional[int] = None,
    ) -> None:
        super().__init__(sandboxes)
        self.pause_us = pause_us
        self.ready_us = ready_us

    def close(self) -> None:
        """Close them all. If closing one fails the others are closed first."""
        failure: Optional[PodflareError] = None
        for sandbox in self:
            try:
                sandbox.close()
            except PodflareError as exc:
                failure = failure or exc
        if failure is not None:
            raise failure


class AsyncChildren(List["AsyncSandbox"], AsyncClosing):
    """What `AsyncSandbox.fork` returns; see Children. As a block:
    `async with await s.fork(3) as copies:`."""

    def __init__(
        self,
        sandboxes: Iterable["AsyncSandbox"] = (),
        *,
        pause_us: Optional[int] = None,
        ready_us: Optional[int] = None,
    ) -> None:
        super().__init__(sandboxes)
        self.pause_us = pause_us
        self.ready_us = ready_us

    async def close(self) -> None:
        """Close them all. If closing one fails the others are closed first."""
        failure: Optional[PodflareError] = None
        for sandbox in self:
            try:
                await sandbox.close()
            except PodflareError as exc:
                failure = failure or exc
        if failure is not None:
            raise failure
