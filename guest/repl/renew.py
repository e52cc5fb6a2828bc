# SPDX-License-Identifier: Apache-2.0
"""Renewal: after the machine was copied, this process stops repeating what its copies do.

The agent writes fork.json, sends SIGNAL to the main thread and thaws this process: the handler below
runs before the next bytecode of the user's code, in the middle of a cell or between two. It seeds
anew what draws random numbers, calls the functions of podflare.on_fork(), and answers with OK or
ERROR on the control channel. When other things have to be done first ("hold") it then waits here, as
it does for ever after a failure: a copy that was not renewed must not go on.

A session with threads is told before the machine is copied, by the same signal and a file "hold": it
then stops itself in the handler, with the lock of the interpreter in hand, and goes on from there in
the copy and in the original (still.py): no thread of it runs in a copy before its generators are new.

When the session is quiet (nothing of the user's runs before the next cell) the agent leaves all this
until then, and asks for it with a RENEW frame ahead of the cell: see pay(). Copies that are never used
are spared the pages that it costs.

The answer carries the serial number from fork.json; a signal without a new serial number is nobody's
and does nothing, so it may be sent twice. What the file says when this process begins was before it: the
machine was renewed then, and this process has nothing of the time before.

Code of the user that catches or blocks every signal there is must not end this by accident: both signals
are taken out of what the _signal module offers, as glibc takes out its own two.
"""

from __future__ import annotations

import _signal
import _thread
import errno
import gc
import json
import os
import sys
import time
from typing import Any, Callable, Iterable

from . import frames, still
from .frames import Channel
from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

SIGNAL = int(_signal.SIGRTMIN) + 1
SEED = SIGNAL + 1  # in a copy, to a session that stands still: see still.py
_OURS = (SIGNAL, SEED)
PAUSE = 0.001  # between two looks whether the rest is done; this process is frozen meanwhile
LONGEST_PAUSE = 0.05
SPARE_STACK = 200
FATAL = 70
MESSAGE = 380

_sigmask, _set_handler, _valid = _signal.pthread_sigmask, _signal.signal, _signal.valid_signals
_open, _read, _close, _getpid, _urandom = os.open, os.read, os.close, os.getpid, os.urandom
_sleep, _leave = time.sleep, os._exit
_TRUTHS = {b"true": 1, b"false": 0}
_collects, _collect, _keep = gc.isenabled, gc.enable, gc.disable
_callbacks, _threads = gc.callbacks, _thread._count
_tracing, _profiling = sys.gettrace, sys.getprofile
_running = sys._current_frames
_SIGNALS = tuple(_valid())
_STATE = (b"serial", b"generation", b"reseed", b"hold", b"done")
_NODE_BITS, _MULTICAST = 48, 1 << 40

Hook = Callable[[int], Any]

current: Renewer | None = None  # of this process


class Renewer:
    """The handler of SIGNAL and what the user wants to have called. One per process."""

    def __init__(self, channel: Channel, directory: str) -> None:
        """Installs the handler; `directory` is where the agent puts fork.json."""
        global current
        self.hooks: list[Hook] = []
        self._channel = channel
        self._path = os.path.join(directory, "fork.json")
        self._hold = os.path.join(directory, "hold")
        self._serial = self._begun()
        self._failed = False
        self._busy = False
        self.handlers = False  # one of the user's for any signal
        for number in _OURS:
            _set_handler(number, self._on_signal)
        _reserve_signals(self)
        current = self

    def mine(self) -> bool:
        """Whether this is the process that is told (and not a child of it)."""
        return self._channel.mine()

    def quiet(self) -> bool:
        """Whether no code of the user's can run before the next cell: no thread, no handler, no hook.
        Threads that Python has not started count while they are in code of Python's. An audit hook of
        the user's would be called here: who has one need not ask."""
        return not (
            self.hooks
            or self.handlers
            or _callbacks
            or _threads()
            or _tracing()
            or _profiling()
            or len(_running()) > 1
        )

    def pay(self) -> None:
        """The agent's RENEW between two cells: what was left until now. Ends the process when it
        fails, so that no cell runs."""
        mask = _sigmask(_signal.SIG_BLOCK, _SIGNALS)
        collecting = _collects()
        _keep()
        try:
            state = self._state()
            if state is None:
                raise frames.FrameError("RENEW without fork.json")
            if state["serial"] != self._serial:
                self._serial = state["serial"]
                if not self._renew(state, mask):
                    _leave(FATAL)
            else:
                self._answer(state)
        finally:
            if collecting:
                _collect()
            _sigmask(_signal.SIG_SETMASK, mask)

    def rehearse(self) -> None:
        """Everything of a renewal that costs more the first time (OpenSSL reads its configuration then),
        so that copies of this process have it behind them."""
        for _ in range(2):
            _fields(b'{"serial":1,"generation":1,"reseed":true,"hold":false,"done":true}')
            try:
                self._state()
            except (OSError, ValueError, KeyError):
                pass
            reseed()

    def _begun(self) -> int:
        """The serial number of the last renewal before this process, 0 when there was none."""
        try:
            state = self._state()
        except (OSError, ValueError, KeyError):
            return 0
        return state["serial"] if state else 0

    def _on_signal(self, signum: int, frame: object) -> None:
        if self._busy or not self.mine():
            return
        self._busy = True
        limit = sys.getrecursionlimit()
        collecting = _collects()
        # No exception of the user's handlers may come in between. The hooks get the mask back.
        mask = _sigmask(_signal.SIG_BLOCK, _SIGNALS)
        try:
            sys.setrecursionlimit(limit + SPARE_STACK)
            _keep()  # a collection would write to memory that copies share
            if self._is_to_stand():
                still.stand(SEED)
            self._serve(mask)
        finally:
            if collecting:
                _collect()
            sys.setrecursionlimit(limit)
            self._busy = False
            _sigmask(_signal.SIG_SETMASK, mask)

    def _is_to_stand(self) -> bool:
        """Whether the machine is about to be copied, and threads are here."""
        try:
            _close(_open(self._hold, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def _serve(self, mask: Iterable[int]) -> None:
        pause = PAUSE
        while True:
            try:
                state = self._state()
            except (OSError, ValueError, KeyError):
                return  # not for us to judge here: without an answer the agent gives this copy up
            if state is None:
                return
            if state["serial"] != self._serial:
                self._serial = state["serial"]
                self._failed = not self._renew(state, mask)
            if not self._failed and (state["done"] or not state["hold"]):
                return
            _sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _state(self) -> dict[str, int] | None:
        """fork.json, None when the machine never was a copy."""
        try:
            fd = _open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            text = _read(fd, 4096)
        finally:
            _close(fd)
        return _fields(text)

    def _renew(self, state: dict[str, int], mask: Iterable[int]) -> bool:
        """Renews and answers: whether all went well."""
        try:
            if state["reseed"]:
                reseed()
            if self.hooks:
                self._call_hooks(state["generation"], mask)
        except BaseException as error:
            answer = {"serial": state["serial"], "message": _describe(error)}
            self._channel.send(frames.ERROR, json.dumps(answer).encode())
            return False
        self._answer(state)
        return True

    def _answer(self, state: dict[str, int]) -> None:
        answer = b'{"renewed":%d,"serial":%d}' % (state["generation"], state["serial"])
        self._channel.send(frames.OK, answer)

    def _call_hooks(self, generation: int, mask: Iterable[int]) -> None:
        _sigmask(_signal.SIG_SETMASK, mask)
        try:
            for hook in tuple(self.hooks):
                hook(generation)
        finally:
            _sigmask(_signal.SIG_BLOCK, _SIGNALS)


def _fields(text: bytes) -> dict[str, int]:
    """What a renewal needs of fork.json. It is the agent's, and no value in it has a comma: this needs
    not touch the thirty pages of JSON's parser, each of which a copy would have to make its own."""
    found = {}
    for part in text.strip(b"{} \n").split(b","):
        name, value = part.split(b":")
        found[name.strip(b'" ')] = value.strip()
    values = [found[name] for name in _STATE]
    return {
        name.decode(): _TRUTHS[value] if value in _TRUTHS else int(value)
        for name, value in zip(_STATE, values)
    }


def register(hook: Hook) -> bool:
    """podflare.on_fork(): False when this process is not told about forks."""
    if current is None or not current.mine():
        return False
    current.hooks.append(hook)
    return True


def reseed() -> None:
    """Seeds every generator of this process that is shared by modules and that we know. Modules that
    are not imported, or not completely, have nothing to renew."""
    modules = sys.modules
    for name, renew in _RENEWALS:
        module = modules.get(name)
        if module is not None:
            renew(module)


def _reseed_random(module: Any) -> None:
    """The generator behind random.random() and the like."""
    seed = getattr(getattr(module, "_inst", None), "seed", None)
    if seed is not None:
        seed()


def _reseed_numpy(module: Any) -> None:
    """The generator behind numpy.random.rand() and the like; default_rng() needs nothing."""
    state = getattr(module, "_rand", None)
    if state is None:
        return
    try:
        state.seed()
    except TypeError:  # the user has put another kind of generator behind it
        generator = state._bit_generator
        with generator.lock:
            generator.state = type(generator)().state


def _reseed_openssl(module: Any) -> None:
    """OpenSSL: seeds the generator at the root from the kernel; all others follow before they are
    used again. (By itself it only notices a fork of the process.)"""
    add = getattr(module, "RAND_add", None)
    if add is not None:
        add(_urandom(32), 32.0)


def _reset_tempfile(module: Any) -> None:
    """The sequence of names, which has a generator of its own."""
    if hasattr(module, "_name_sequence"):
        module._name_sequence = None


def _reset_uuid(module: Any) -> None:
    """uuid1(): without libuuid, which keeps node and clock sequence where nobody reaches them; with
    a node of our own, which has the bit that tells it from the address of a network card."""
    if hasattr(module, "_generate_time_safe") and hasattr(module, "_last_timestamp"):
        node = int.from_bytes(_urandom(_NODE_BITS // 8), "big")
        module._generate_time_safe = None
        module._last_timestamp = None
        module._node = node | _MULTICAST


_RENEWALS: tuple[tuple[str, Callable[[Any], None]], ...] = (
    ("random", _reseed_random),
    ("numpy.random.mtrand", _reseed_numpy),
    ("_ssl", _reseed_openssl),
    ("tempfile", _reset_tempfile),
    ("uuid", _reset_uuid),
)


def _describe(error: BaseException) -> str:
    """The end of the traceback, or what can be said of it."""
    try:
        import traceback

        text = "".join(traceback.format_exception(error)).strip()
        return text.encode("utf-8", "backslashreplace").decode()[-MESSAGE:]
    except BaseException:
        return type(error).__name__


def _reserve_signals(renewer: Renewer) -> None:
    """Takes both out of _signal, and so out of the signal module. Notes handlers of the user's."""

    def signal(signalnum: Any, handler: Any, /) -> Any:
        if signalnum in _OURS:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if callable(handler) and handler is not _signal.default_int_handler:
            renewer.handlers = True
        return _set_handler(signalnum, handler)

    def pthread_sigmask(how: int, mask: Iterable[int], /) -> Any:
        if how != _signal.SIG_UNBLOCK:
            mask = [number for number in mask if number not in _OURS]
        return _sigmask(how, mask)

    def valid_signals() -> set[Any]:
        return _valid() - {*_OURS}

    for own in (signal, pthread_sigmask, valid_signals):
        own.__doc__ = getattr(_signal, own.__name__).__doc__
        own.__qualname__ = own.__name__
        setattr(_signal, own.__name__, own)
