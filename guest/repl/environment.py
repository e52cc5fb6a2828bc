# SPDX-License-Identifier: Apache-2.0
"""The part of the environment that follows the sandbox's egress: proxies, and files with CAs.

The agent tells it ahead of a cell when it is another than this process has. What the user has set,
changed or deleted stays as he has it: only what was given here is changed or taken away again.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

_environ, _modules = os.environ, sys.modules  # ours, whatever user code does to os and sys
_parse = json.JSONDecoder().decode

# What urllib.request.urlopen() makes for itself where there is no proxy.
_PLAIN = frozenset(
    (
        "DataHandler",
        "FTPHandler",
        "FileHandler",
        "HTTPDefaultErrorHandler",
        "HTTPErrorProcessor",
        "HTTPHandler",
        "HTTPRedirectHandler",
        "HTTPSHandler",
        "UnknownHandler",
    )
)


class Environment:
    """What was given to this process."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}

    def take(self, payload: bytes) -> None:
        """A frame of the agent: {"env": {name: value}}, all of it; names that are missing go."""
        wanted: dict[str, str] = _parse(payload.decode())["env"]
        given = self.given
        for name, value in given.items():
            if name not in wanted and _environ.get(name) == value:
                del _environ[name]
        for name, value in wanted.items():
            if _environ.get(name) == given.get(name) and not self._differs(name.swapcase(), wanted):
                _environ[name] = value
        self.given = wanted
        _forget_opener(_modules.get("urllib.request"))

    def _differs(self, name: str, wanted: dict[str, str]) -> bool:
        """Whether the user has set a variable of ours, which he may have written in another case."""
        value = _environ.get(name)
        return value is not None and value != self.given.get(name) and value != wanted.get(name)


def _forget_opener(module: Any) -> None:
    """urlopen() keeps the proxies of its first call. An opener of the user's stays."""
    opener = getattr(module, "_opener", None)
    handlers = getattr(opener, "handlers", None)
    if handlers is None:
        return
    for handler in handlers:
        kind = type(handler)
        if kind.__module__ != "urllib.request" or kind.__name__ not in _PLAIN:
            return
        if getattr(handler, "_context", None) is not None:
            return
    module._opener = None
