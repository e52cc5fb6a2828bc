# SPDX-License-Identifier: Apache-2.0
"""A time limit for every test: what hangs fails, says where, and the others are run all the same."""

from __future__ import annotations

import signal
from typing import Any, Iterator

import pytest

# Seconds that one phase (set-up, call, tear-down) of a test may take; @pytest.mark.limit(n) changes
# it. Generous, since it is no measurement: the machine may have other work.
DEFAULT_LIMIT = 240


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit(seconds): how long a phase of the test may take")


class OverTime(Exception):
    """A test took longer than its limit."""


def _limited(item: pytest.Item, phase: str) -> Iterator[None]:
    marker = item.get_closest_marker("limit")
    seconds = marker.args[0] if marker else DEFAULT_LIMIT

    def over(signum: int, frame: Any) -> None:
        raise OverTime(f"{phase} of {item.name} took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    yield from _limited(item, "set-up")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    yield from _limited(item, "the call")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield from _limited(item, "tear-down")
