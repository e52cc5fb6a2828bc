# SPDX-License-Identifier: Apache-2.0
"""A copy, played by the frozen agent itself: what it inherits from its original are its own streams and
processes, and the host that made it connects anew. And files that tell whether a process runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from agent_client import FREEZE, RENEW, renew_request
from conftest import Agent


def freeze(agent: Agent) -> None:
    """Freezes, as the original did."""
    with agent.stream() as s:
        assert "groups" in s.ask(FREEZE)


def renew(agent: Agent, **change: Any) -> dict[str, Any]:
    """The answer to RENEW on a new stream; change: of its members."""
    request = renew_request(**{"kind": "fork", "generation": 1, **change})
    with agent.stream() as s:
        return s.ask(RENEW, request)


def ticks(path: Path) -> int:
    """Lines of a file that some process goes on writing."""
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def stands_still(path: Path) -> bool:
    before = ticks(path)
    time.sleep(0.15)
    return ticks(path) == before
