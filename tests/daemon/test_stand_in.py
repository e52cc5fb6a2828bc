"""The stand-in VMM works on files and programs of this host: what it must not do, whatever it is asked."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Daemon
from operations import prepare


@pytest.fixture
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is not the one of the requests, with a file in it."""
    where = tmp_path_factory.mktemp("canary")
    (where / "file").write_text("untouched")
    return where


def test_files_elsewhere_are_left_alone(
    start: Callable[..., Daemon], tmp_path: Path, canary: Path
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "own").write_text("own")
    (files / "out").symlink_to(canary)
    (files / "link").symlink_to(canary / "file")
    d = start(inert=files)
    sid = d.create()
    at = f"/v1/sandboxes/{sid}/files"
    up = os.path.relpath(canary / "file", "/tmp")
    tricks = [f"{canary}/file", f"{files}/out/file", f"{files}/link", f"{files}/../{canary.name}/file", up]
    for path in [*tricks, str(canary), f"{files}/out", str(files.parent), "/", "..", "."]:
        mine = {"path": path}
        for op, more in (
            ("remove", {"recursive": True}),
            ("chmod", {"mode": 0}),
            ("rename", {"to": f"{files}/taken"}),
            ("mkdir", {"mode": 0}),
        ):
            assert d.http.post(f"{at}/{op}", json={**mine, **more}).status_code == 403, (op, path)
        r = d.http.post(f"{at}/rename", json={"path": f"{files}/own", "to": path})
        assert r.status_code == 403, path
        for method, tail in (("PUT", ""), ("GET", ""), ("GET", "/stat"), ("GET", "/list")):
            r = d.http.request(method, at + tail, params=mine, content=b"x")
            assert r.status_code == 403, (method, tail, path)
    assert (canary / "file").read_text() == "untouched" and os.listdir(canary) == ["file"]
    assert (canary / "file").stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(files)) == ["link", "out", "own"]


def test_an_inert_one_runs_nothing(start: Callable[..., Daemon], tmp_path: Path, canary: Path) -> None:
    d = start(inert=tmp_path)
    sid = d.create()
    code = f"rm {canary}/file"
    for body in ({"code": code, "language": "bash"}, {"argv": ["rm", f"{canary}/file"]}):
        assert d.exec(sid, **{"code": None, "language": None, **body})[-1]["data"] == 0
        d.http.post(f"/v1/sandboxes/{sid}/commands", json=body).raise_for_status()
    python = f"import os; os.unlink({str(canary / 'file')!r})"
    assert d.exec(sid, python, "python", env={"BASH_ENV": f"{canary}/file"})[-1]["data"] == 0
    d.exec(sid, "#fake:poweroff")
    assert [e["type"] for e in d.exec(sid, "echo still there")] == ["exit"]
    prepare(d.http, sid, "/commands/{command_id}/stream")
    assert d.http.get(f"/v1/sandboxes/{sid}/commands/c/stream").text.count('"exit"') == 1
    assert (canary / "file").read_text() == "untouched"
