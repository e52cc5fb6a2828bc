# SPDX-License-Identifier: Apache-2.0
"""Pools of multiprocessing whose workers are not forks: they cannot have what the session defines.

A worker of the methods spawn and forkserver is a new Python, which imports a function by the name of its
module. The session's `__main__` is no file that it could import, so it ends when it gets the function,
and the pool starts another one, for ever. The task is refused instead, in the session, where it is
pickled. (A Process by itself, and concurrent.futures, end with an error of their own; what a fork gets
it has.) multiprocessing is never imported from here.
"""

from __future__ import annotations

import pickletools
from typing import Any

from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

POOL = "multiprocessing.pool"
SENTENCE = (
    "{what} is defined in this session, whose workers cannot import it: with the start method {method!r} "
    "they are new interpreters. Use multiprocessing.get_context('fork'), or put it into a file and "
    "import it from there."
)


class SessionNameError(RuntimeError):
    """A worker that is no fork was to be given what the session defines."""


SessionNameError.__module__ = "builtins"


def names_of_main(pickle: bytes) -> list[str]:
    """What a pickle has from `__main__`."""
    found, last, text = [], "", ""
    if b"__main__" in pickle:
        for opcode, arg, _ in pickletools.genops(pickle):
            if opcode.name == "STACK_GLOBAL" and last == "__main__":
                found.append(text)
            elif isinstance(arg, str) and "UNICODE" in opcode.name:
                last, text = text, arg
    return found


def attach(module: Any) -> None:
    """Called with multiprocessing.pool when it has been imported."""
    cls, dumps = module.Pool, module.get_context().reducer.ForkingPickler.dumps
    set_up, repopulate = cls._setup_queues, cls._repopulate_pool

    def _setup_queues(self: Any) -> None:
        set_up(self)
        method = self._ctx.get_start_method()
        if method == "fork":
            return
        writer = self._inqueue._writer

        def put(task: Any) -> None:
            data = bytes(dumps(task))
            for name in names_of_main(data):
                raise SessionNameError(SENTENCE.format(what=name, method=method))
            writer.send_bytes(data)

        self._quick_put = put

    def _repopulate_pool(self: Any) -> None:
        method, first = self._ctx.get_start_method(), self._initializer
        if method != "fork" and getattr(first, "__module__", None) == "__main__":
            raise SessionNameError(SENTENCE.format(what=first.__qualname__, method=method))
        repopulate(self)

    cls._setup_queues, cls._repopulate_pool = _setup_queues, _repopulate_pool
