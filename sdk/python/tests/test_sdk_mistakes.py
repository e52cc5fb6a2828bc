# SPDX-License-Identifier: Apache-2.0
"""What a hurried user gets wrong is told in his words, before anything is sent where that can be known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import podflare
from fake_daemon import SANDBOX_ID, FakeDaemon
from fake_fleet import FakeFleet
from podflare import Result, Sandbox


def sent(daemon: FakeDaemon, part: str) -> list[Any]:
    """Requests whose path ends so."""
    return [r for r in daemon.requests if r.path.endswith(part)]


@pytest.mark.parametrize(
    "kw, error, words",
    [
        ({"on_stdout": "x"}, TypeError, "on_stdout must be a function, not str"),
        ({"on_error": 1}, TypeError, "on_error must be a function, not int"),
        ({"env": {"A": 1}}, TypeError, "env['A'] must be str, not int"),
        ({"env": {1: "A"}}, TypeError, "env has names that are str, not int"),
    ],
)
def test_arguments_of_run_code(daemon: FakeDaemon, kw: Any, error: type[Exception], words: str):
    with Sandbox() as s, pytest.raises(error) as e:
        s.run_code("1", **kw)
    assert words in str(e.value) and not sent(daemon, "/exec")


def test_half_of_a_surrogate_pair(daemon: FakeDaemon):
    with Sandbox() as s:
        with pytest.raises(ValueError, match="code has half of a surrogate pair at position 7"):
            s.run_code("print('\ud800')")
        with pytest.raises(ValueError, match="surrogate"):
            s.commands.run("echo \udfff", background=True)
    assert not sent(daemon, "/exec") and not sent(daemon, "/commands")


def test_metadata_that_is_no_text(daemon: FakeDaemon):
    with pytest.raises(TypeError, match=r"metadata\['a'\] must be str, not int"):
        Sandbox(metadata={"a": 1})  # type: ignore[dict-item]
    assert not sent(daemon, "/sandboxes")


def test_write_of_what_is_no_text(daemon: FakeDaemon):
    with Sandbox() as s:
        with pytest.raises(TypeError, match=r"write\(path, data\): data must be str, .* not int"):
            s.files.write("/tmp/x", 5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="path must be str, not bytes"):
            s.files.write(b"text", "/tmp/x")  # type: ignore[arg-type]


def test_download_to_a_directory_that_is_not_there(daemon: FakeDaemon, tmp_path: Path):
    with Sandbox() as s, pytest.raises(FileNotFoundError) as e:
        s.download_to("/tmp/x", tmp_path / "none" / "x.bin")
    assert e.value.filename == str(tmp_path / "none") and ".part" not in str(e.value)


def test_what_is_missing_is_named(daemon: FakeDaemon):
    other = "sbx_" + "0" * 32
    with pytest.raises(podflare.SandboxNotFoundError, match=f"^sandbox not found: {other}$"):
        Sandbox.connect(other)
    assert SANDBOX_ID != other


def test_the_other_sandbox_is_the_one_that_is_missing(fleet: FakeFleet):
    """Who reads that a sandbox is not there must not throw away the wrong one."""
    gone = "sbx_" + "0" * 32
    with Sandbox() as s:
        for call in (s.merge_into, s.diff, lambda id: s.diff(id, paths=["/a/b"])):
            with pytest.raises(podflare.SandboxNotFoundError, match=f"^sandbox not found: {gone}$"):
                call(gone)
        copy = s.fork()[0]
        copy.close()
        for call in (s.merge_into, s.diff):
            with pytest.raises(podflare.SandboxEndedError, match=f"{copy.id} has been closed"):
                call(copy)
        winner = s.fork()[0]
        s.merge_into(winner)
        with pytest.raises(podflare.SandboxEndedError, match=f"{winner.id} has been closed"):
            s.merge_into(winner)
        assert s.run_code("print on").ok


def test_more_codes_than_copies(fleet: FakeFleet):
    with Sandbox() as s:
        for many in (s.map, s.race):
            with pytest.raises(ValueError, match="^40 codes need as many copies at once") as e:
                many(["1"] * 40)
            assert isinstance(e.value.__cause__, podflare.InvalidRequestError)
    assert not fleet.living


def test_a_chart_that_is_saved_as_json(tmp_path: Path):
    result = Result({"image/png": "", "application/vnd.podflare.chart+json": {"type": "line"}})
    assert result.chart == {"type": "line"}
    with pytest.raises(ValueError, match="the data behind the figure is in .chart"):
        result.save(tmp_path / "x.json")
