# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a fresh interpreter a test, and one with IPython loaded that tests of it share."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

if "_podflare_repl" not in sys.modules:  # the modules under test, as repl.py makes them a package
    package = types.ModuleType("_podflare_repl")
    package.__path__ = [str(HERE.parents[1] / "guest" / "repl")]
    sys.modules[package.__name__] = package

from repl_process import OK, Repl  # noqa: E402


@pytest.fixture
def repl(tmp_path: Path) -> Iterator[Repl]:
    """An interpreter of its own for one test, in an empty directory."""
    with Repl(cwd=tmp_path) as process:
        yield process


@pytest.fixture(scope="session")
def _ipython(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repl]:
    with Repl(cwd=tmp_path_factory.mktemp("ipython")) as process:
        if process.ready["ipython"] is None:
            pytest.skip("IPython is not installed for this Python (package python3-ipython)")
        kind, payload = process.warm()
        assert kind == OK, payload
        yield process


@pytest.fixture
def ipython(_ipython: Repl, tmp_path: Path) -> Repl:
    """The shared interpreter with IPython loaded, moved to an empty directory."""
    assert _ipython.run(f"import os; os.chdir({str(tmp_path)!r})").exit_code == 0
    return _ipython
