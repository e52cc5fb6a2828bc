# SPDX-License-Identifier: Apache-2.0
"""Standing still while the machine is copied, with the interpreter's lock in hand.

A handler in Python lets other threads run between two of its lines: in a copy they would draw from the
states of the original before the handler has renewed them. What stand() does after its preparations is
one call of built-in functions by built-in functions, in which the interpreter neither looks for threads
that want its lock nor gives it away: it stops this process, and when it goes on and `signal` is pending
(which only a copy is sent) it seeds what modules share. None of the functions below may be one that
releases the lock (os.urandom does, os.getrandom does not), runs code in Python, or raises audit events
(os.kill does). What cannot be renewed this way renew.reseed() renews right behind, with the lock coming
and going.
"""

from __future__ import annotations

import _random
import _signal
import _struct
import os
import sys
from functools import partial
from itertools import chain, repeat
from operator import contains, eq, or_
from typing import Any, Callable, Iterable, Iterator

from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

NODE_BYTES, MULTICAST = 6, 1 << 40

_call: Any = partial.__call__
_open, _close, _getpid, _fresh = os.pidfd_open, os.close, os.getpid, os.getrandom
_send, _pending, _STOP = _signal.pidfd_send_signal, _signal.sigpending, _signal.SIGSTOP
_seed, _unpack = _random.Random.seed, _struct.unpack

Step = Callable[[], Any]


def stand(signal: int) -> None:
    """Stops this process until it is sent SIGCONT. All signals are blocked."""
    itself = _open(_getpid())
    try:
        steps: Iterator[Step] = chain(
            (partial(_send, itself, _STOP), _step(contains, (_pending,), (signal,))),
            tuple(_seeds(sys.modules)),
        )
        all(map(eq, map(_call, steps), chain((None, True), repeat(None))))
    except Exception:  # of a generator that somebody has changed; see above
        pass
    finally:
        _close(itself)


def _step(function: Callable[..., Any], first: tuple[Callable[[], Any]], *more: Any) -> Step:
    """A call of function(first(), ...) that is made when the step is, all of it."""
    return partial(next, map(function, map(_call, map(partial, first)), *more))


def _seeds(modules: dict[str, Any]) -> Iterable[Step]:
    """The steps that renew the generators, each of which gives None."""
    module = modules.get("random")
    shared = getattr(module, "_inst", None)
    if shared is not None and type(shared) is getattr(module, "Random", None):
        number = map(int.from_bytes, map(_fresh, (64,)), ("big",))
        yield partial(next, map(partial(_seed, shared), number))
        yield partial(setattr, shared, "gauss_next", None)
    module = modules.get("numpy.random.mtrand")
    shared = getattr(module, "_rand", None)
    if shared is not None and type(shared) is module.RandomState:
        if type(shared._bit_generator).__name__ == "MT19937":
            words = map(partial(_unpack, "16I"), map(_fresh, (64,)))
            yield partial(next, map(shared.seed, words))
    module = modules.get("_ssl")
    if hasattr(module, "RAND_add"):
        yield partial(next, map(module.RAND_add, map(_fresh, (32,)), (32.0,)))
    module = modules.get("tempfile")
    if hasattr(module, "_name_sequence"):
        yield partial(setattr, module, "_name_sequence", None)
    module = modules.get("uuid")
    if hasattr(module, "_generate_time_safe") and hasattr(module, "_last_timestamp"):
        node = map(or_, map(int.from_bytes, map(_fresh, (NODE_BYTES,)), ("big",)), (MULTICAST,))
        yield partial(next, map(partial(setattr, module, "_node"), node))
        yield partial(setattr, module, "_generate_time_safe", None)
        yield partial(setattr, module, "_last_timestamp", None)
