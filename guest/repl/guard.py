# SPDX-License-Identifier: Apache-2.0
"""What stands between the user's code and the interpreter around it: builtins.

BUILTINS is a private copy of the builtins, made before any user code ran. The modules that must work
after every cell bind their functions to it (`from .guard import BUILTINS as __builtins__`), so that
`del builtins.len` or `builtins.isinstance = None` break the user's own cell and nothing else.
The standard library cannot be protected that way; `restore()` puts back what is missing after each
cell, and everything when reporting an error failed.
"""

from __future__ import annotations

import builtins
import getpass
import sys
from typing import Any, NoReturn

BUILTINS: dict[str, Any] = dict(vars(builtins))
__builtins__ = BUILTINS  # type: ignore[assignment]

_names: frozenset[str] = frozenset()
_count = -1  # see _number(), when all of _names were there
_given = False  # see set_input()
_real_input = builtins.input


class InputUnavailable(EOFError):
    """Raised by input() and the like: nobody is there to type."""


InputUnavailable.__module__ = "builtins"


class Quit:
    """`exit` and `quit`: called or named as a whole cell, they end the cell, not the interpreter."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"Use {self._name}() to end this piece of code; the interpreter stays."

    def __call__(self, code: object = None) -> NoReturn:
        raise SystemExit(code)


def set_input(given: bool) -> None:
    """Whether the cell that runs has been given a standard input."""
    global _given
    _given = given


def _input(prompt: object = "", /) -> str:
    """Stands for input(): there is no terminal here, and a standard input only if it was given."""
    if _given:
        return _real_input(prompt)
    raise InputUnavailable(
        "input() is not available: this code runs without a terminal or standard input. "
        "Give the call a standard input (stdin), put the value into the code, "
        "or pass it in a file or an environment variable."
    )


def _no_getpass(prompt: str = "Password: ", stream: object = None) -> NoReturn:
    """Stands for getpass.getpass()."""
    raise InputUnavailable(
        "getpass() is not available: this code runs without a terminal. "
        "Pass the secret in a file or an environment variable."
    )


def _no_debugger(*args: object, **kwargs: object) -> NoReturn:
    """Stands for breakpoint(), unless the user sets sys.breakpointhook or PYTHONBREAKPOINT."""
    raise InputUnavailable(
        "breakpoint() is not available: this code runs without a terminal. "
        "Print what you want to see instead."
    )


def install(extra: dict[str, Any]) -> None:
    """Puts our stand-ins and `extra` into the builtins and remembers what must be there."""
    global _names
    _input.__name__ = _input.__qualname__ = "input"
    _no_getpass.__name__ = _no_getpass.__qualname__ = "getpass"
    getpass.getpass = _no_getpass
    sys.breakpointhook = _no_debugger
    own = {"input": _input, "exit": Quit("exit"), "quit": Quit("quit"), **extra}
    vars(builtins).update(own)
    BUILTINS.update(own)
    _names = frozenset(BUILTINS)


def _number(current: dict[str, Any]) -> int:
    """Of the builtins; but for the last value that was shown, which comes with the first such cell."""
    return len(current) - ("_" in current)


def restore(everything: bool = False, doubt: bool = True) -> None:
    """Puts deleted builtins back; with `everything`, replaced ones as well. Without a doubt their
    number will do: to look at every name is to write to all of their reference counts, in thirty
    pages that a copy of the machine would have to make its own. Who deletes one and adds another has
    it back after the first cell that fails."""
    global _count
    current = vars(builtins)
    if everything:
        current.update(BUILTINS)
    elif doubt or _number(current) != _count:
        for name in _names - current.keys():
            current[name] = BUILTINS[name]
    _count = _number(current)
