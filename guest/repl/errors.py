# SPDX-License-Identifier: Apache-2.0
"""Uncaught exceptions: the traceback that the user sees, and the exit code.

Frames of the interpreter around the user's code never appear. A traceback always reaches the real
standard error, also when the cell replaced or closed sys.stderr; a sys.excepthook of the user's is
honoured. Exceptions whose text raises, and builtins that the cell destroyed, must not keep an error
from being reported.
"""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType
from typing import Callable

from . import guard
from .display import error_payload
from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

INTERRUPTED = 130
_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_ASYNCIO = os.path.dirname(os.path.abspath(os.__file__)) + os.sep + "asyncio" + os.sep

Complain = Callable[[str], None]
Emit = Callable[[bytes], None]


def exit_code(error: SystemExit, complain: Complain) -> int:
    """The code of a SystemExit as Python itself would exit with it."""
    try:
        code = error.code
    except Exception as problem:
        complain(f"{type(error).__name__} without a readable code: {type(problem).__name__}\n")
        return 1
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    try:
        text = str(code)
    except Exception as problem:
        text = f"<exit message failed: {type(problem).__name__}>"
    complain(text + "\n")
    return 1


def report(error: BaseException, complain: Complain, emit: Emit) -> int:
    """Shows an uncaught exception on standard error and as an EVENT; returns the exit code."""
    if isinstance(error, SystemExit):
        return exit_code(error, complain)
    try:
        name, value, text = _render(error)
    except Exception:
        guard.restore(everything=True)
        try:
            name, value, text = _render(error)
        except Exception as problem:
            name, value = type(error).__name__, ""
            text = f"{name} (its traceback could not be made: {type(problem).__name__})\n"
    sys.last_type, sys.last_value = type(error), error
    sys.last_traceback = _user_part(error.__traceback__)
    if not _call_excepthook(error, complain):
        complain(text)
    emit(error_payload(name, value, text))
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _call_excepthook(error: BaseException, complain: Complain) -> bool:
    hook = getattr(sys, "excepthook", None)
    if hook is None or hook is sys.__excepthook__:
        return False
    try:
        hook(type(error), error, _user_part(error.__traceback__))
        return True
    except Exception as problem:
        complain(f"sys.excepthook failed with {type(problem).__name__}; the error was:\n")
        return False


def _render(error: BaseException) -> tuple[str, str, str]:
    if _is_usage_error(error):
        value = str(error)
        return "UsageError", value, f"UsageError: {value}\n"
    shown = traceback.TracebackException(
        type(error), error, _user_part(error.__traceback__), compact=True
    )
    _hide_own_frames(shown)
    if shown.stack or shown.__cause__ or shown.__context__:
        text = "".join(shown.format())
    else:
        text = "".join(shown.format_exception_only())
    name = getattr(type(error), "__qualname__", "exception")
    value = getattr(shown, "_str", "")  # str(error), which may be slow or raise, was called once
    return str(name), str(value), text


def _is_usage_error(error: BaseException) -> bool:
    module = sys.modules.get("IPython.core.error")
    return module is not None and isinstance(error, module.UsageError)


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without the leading frames of ours and of the event loop we started."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((_OWN, _ASYNCIO)):
        trace = trace.tb_next
    return trace


def _hide_own_frames(shown: traceback.TracebackException) -> None:
    """Takes out our own frames anywhere, and IPython's where they only lead to other code."""
    waiting = [shown]
    seen = set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        frames = one.stack
        last = max((i for i, f in enumerate(frames) if not _is_ipython(f.filename)), default=-1)
        frames[:] = [
            f
            for i, f in enumerate(frames)
            if not f.filename.startswith(_OWN) and not (i < last and _is_ipython(f.filename))
        ]
        for other in (one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())):
            if other is not None:
                waiting.append(other)


def _is_ipython(filename: str) -> bool:
    return "/IPython/core/" in filename or filename.startswith("<decorator-gen-")
