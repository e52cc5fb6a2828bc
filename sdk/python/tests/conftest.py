# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the SDK's own tests, which need no daemon and no VM."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Iterator

import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import flavours  # noqa: E402
from fake_daemon import FakeDaemon  # noqa: E402
from fake_fleet import FakeFleet  # noqa: E402
from fake_guest import FakeGuest  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sync_only: not about the async classes as well")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that uses Sandbox or Client is run with both kinds of them."""
    module = metafunc.module
    if hasattr(module, "Sandbox") or hasattr(module, "Client"):
        both = (
            ["sync"] if metafunc.definition.get_closest_marker("sync_only") else ["sync", "async"]
        )
        metafunc.parametrize("flavour", both, indirect=True)


# Of every test: what only pytest_generate_tests names, pytest 7 does not set up.
@pytest.fixture(autouse=True)
def flavour(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which kind of classes the module's names stand for in this test."""
    kind: str = getattr(request, "param", "sync")
    if kind == "async":
        monkeypatch.setattr(request.module, "Sandbox", flavours.SandboxByLoop, raising=False)
        monkeypatch.setattr(request.module, "Client", flavours.client_by_loop, raising=False)
    return kind


def _at(fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes it the daemon that the SDK finds."""
    for name in ("PODFLARE_HOST", "PODFLARE_API_KEY", "PODFLARE_TRACEPARENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PODFLARE_HOSTD_URL", fake.url)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    fake = FakeDaemon()
    _at(fake, monkeypatch)
    yield fake
    fake.stop()


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    fake = FakeFleet()
    _at(fake, monkeypatch)
    yield fake
    fake.stop()


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeGuest]:
    fake = FakeGuest(tmp_path / "guest")
    _at(fake, monkeypatch)
    yield fake
    for run in fake.runs.values():
        run.interrupt(True)
    fake.stop()
