# SPDX-License-Identifier: Apache-2.0
"""Top-level await: one event loop for all cells, made with the first cell that awaits.

The loop runs only while such a cell runs; tasks that a cell left behind go on with the next one
that awaits. Used from the main thread only. A forked child starts with a loop of its own.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Coroutine

_loop: asyncio.AbstractEventLoop | None = None


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs the coroutine to its end; cancels it when the cell is interrupted."""
    global _loop
    if _loop is None or _loop.is_closed():
        _loop = asyncio.new_event_loop()
    asyncio.set_event_loop(_loop)
    task = _loop.create_task(coroutine)
    try:
        return _loop.run_until_complete(task)
    except BaseException:
        if not task.done() and not _loop.is_closed():
            task.cancel()
            try:
                _loop.run_until_complete(task)
            except asyncio.CancelledError:
                pass
        raise


def _forget() -> None:
    global _loop
    _loop = None


os.register_at_fork(after_in_child=_forget)
