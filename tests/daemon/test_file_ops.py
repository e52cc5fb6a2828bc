"""Files without their content, lists of them, and parts of them."""

import base64
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from conftest import SANITIZED, Daemon, stdout_of, wait_for
from test_files import files

BROKE = {"error": "the guest's agent broke the protocol", "code": "agent_error"}


def post(d: Daemon, sid: str, op: str, /, **body: object) -> httpx.Response:
    """One of the operations with a body."""
    return d.http.post(f"/v1/sandboxes/{sid}/files/{op}", json=body)


def get(d: Daemon, sid: str, op: str, **params: object) -> httpx.Response:
    """stat or list."""
    return d.http.get(f"/v1/sandboxes/{sid}/files/{op}", params=params)


def set_state(d: Daemon, sid: str, **state: object) -> None:
    """What the agent says from now on."""
    d.exec(sid, "#fake:set " + json.dumps(state))


def refused(r: httpx.Response) -> tuple:
    """What an error says, without its sentence."""
    o = r.json()
    return r.status_code, o["code"], o.get("field")


# --- one file -------------------------------------------------------------------------------


def test_stat(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    (tmp_path / "ü &").write_bytes(b"12345")
    os.chmod(tmp_path / "ü &", 0o4750)
    os.utime(tmp_path / "ü &", (1.5, 1.5))
    r = get(daemon, sid, "stat", path=f"{tmp_path}/ü &")
    assert r.status_code == 200
    assert r.json() == {
        "path": f"{tmp_path}/ü &",
        "type": "file",
        "size": 5,
        "mode": 0o4750,
        "mtime_ms": 1500,
        "uid": os.getuid(),
        "gid": os.getgid(),
    }
    (tmp_path / "l").symlink_to("ü &")
    (tmp_path / "dangling").symlink_to("nothing")
    o = get(daemon, sid, "stat", path=f"{tmp_path}/l").json()
    assert (o["type"], o["link"], o["target_type"]) == ("link", "ü &", "file")
    o = get(daemon, sid, "stat", path=f"{tmp_path}/dangling").json()
    assert (o["type"], o["link"]) == ("link", "nothing") and "target_type" not in o
    assert get(daemon, sid, "stat", path=str(tmp_path)).json()["type"] == "dir"
    assert get(daemon, sid, "stat", path="/dev/null").json()["type"] == "other"
    r = get(daemon, sid, "stat", path="/no/such")
    assert refused(r) == (404, "file_not_found", "path")
    assert refused(get(daemon, sid, "stat")) == (400, "invalid_request", "path")


def test_mkdir_rename_chmod_remove(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    d = tmp_path / "a" / "b"
    r = post(daemon, sid, "mkdir", path=str(d), mode=0o700)
    assert (r.status_code, r.json()) == (200, {"created": True})
    assert d.stat().st_mode & 0o7777 == 0o700
    assert post(daemon, sid, "mkdir", path=str(d), parents=None).json() == {"created": False}
    r = post(daemon, sid, "mkdir", path=f"{tmp_path}/x/y", parents=False)
    assert refused(r) == (404, "file_not_found", "path")
    (d / "f").write_bytes(b"x")
    r = post(daemon, sid, "chmod", path=f"{d}/f", mode=0o600)
    assert (r.status_code, r.content) == (204, b"")
    assert (d / "f").stat().st_mode & 0o7777 == 0o600
    (d / "g").write_bytes(b"y")
    r = post(daemon, sid, "rename", path=f"{d}/f", to=f"{d}/g", overwrite=False)
    assert refused(r) == (409, "exists", "path")
    assert post(daemon, sid, "rename", path=f"{d}/f", to=f"{d}/g").status_code == 204
    assert (d / "g").read_bytes() == b"x" and not (d / "f").exists()
    r = post(daemon, sid, "remove", path=str(d))
    assert refused(r) == (409, "not_empty", "path")
    assert post(daemon, sid, "remove", path=f"{d}/g").status_code == 204
    (d / "h").write_bytes(b"y")
    assert post(daemon, sid, "remove", path=str(d), recursive=True).status_code == 204
    assert not d.exists()
    assert refused(post(daemon, sid, "remove", path=str(d))) == (404, "file_not_found", "path")
    (tmp_path / "plain").write_bytes(b"")
    r = post(daemon, sid, "mkdir", path=f"{tmp_path}/plain/x", parents=False)
    assert refused(r) == (400, "not_a_directory", "path")


@pytest.mark.parametrize(
    "op,body,field,words",
    [
        ("mkdir", {}, "path", "path is missing"),
        ("mkdir", {"path": None}, "path", "path is missing"),
        ("mkdir", {"path": ""}, "path", "path must be a path of 1 to 4095 bytes"),
        ("mkdir", {"path": "x" * 4096}, "path", "path must be a path of 1 to 4095 bytes"),
        ("mkdir", {"path": 1}, "path", "path must be a string"),
        ("mkdir", {"path": "a\0b"}, "path", "path must not contain NUL characters"),
        ("mkdir", {"path": "a", "mode": 4096}, "mode", "mode must be an integer from 0 to 4095"),
        ("mkdir", {"path": "a", "parents": 1}, "parents", "parents must be true or false"),
        (
            "mkdir",
            {"path": "a", "recursive": True},
            "recursive",
            '"recursive" is not known here; there are: path, mode, parents',
        ),
        ("remove", {"path": "a", "recursive": "y"}, "recursive", "recursive must be true or false"),
        (
            "remove",
            {"path": "a", "force": True},
            "force",
            '"force" is not known here; there are: path, recursive',
        ),
        ("rename", {"path": "a"}, "to", "to is missing"),
        ("rename", {"to": "a"}, "path", "path is missing"),
        ("rename", {"path": "a", "to": ""}, "to", "to must be a path of 1 to 4095 bytes"),
        (
            "rename",
            {"path": "a", "to": "b", "overwrite": 0},
            "overwrite",
            "overwrite must be true or false",
        ),
        ("chmod", {"path": "a"}, "mode", "mode is missing"),
        ("chmod", {"path": "a", "mode": "0644"}, "mode", "mode must be an integer from 0 to 4095"),
        ("chmod", {"path": "a", "mode": -1}, "mode", "mode must be an integer from 0 to 4095"),
        (
            "chmod",
            {"path": "a", "mode": 1, "op": "remove"},
            "op",
            '"op" is not known here; there are: path, mode',
        ),
    ],
)
def test_wrong_bodies(daemon: Daemon, op: str, body: dict, field: str, words: str) -> None:
    sid = daemon.create()
    r = post(daemon, sid, op, **body)
    assert r.status_code == 400
    assert r.json() == {"error": words, "code": "invalid_request", "field": field}


ENTRY = {"path": "/a", "type": "file", "size": 1, "mode": 420, "mtime_ms": 0, "uid": 0, "gid": 0}
WRONG = [
    {"path": None},
    {"path": ""},
    {"path": 1},
    {"path": "/" + "x" * 6000},
    {"path_base64": "YQ=="},  # one of the two
    {"type": "door"},
    {"type": None},
    {"size": -1},
    {"size": 1.5},
    {"size": 2**63},
    {"mode": 0o10000},
    {"mtime_ms": "now"},
    {"uid": -1},
    {"gid": 2**32},
    {"link": 5},
    {"link": "a", "link_base64": "YQ=="},
    {"target_type": "door"},
]


@pytest.mark.parametrize("wrong", [*WRONG, []])
def test_garbage_of_an_agent(daemon: Daemon, wrong: object) -> None:
    sid = daemon.create()
    entry = json.dumps({**ENTRY, **wrong} if isinstance(wrong, dict) else wrong)
    set_state(daemon, sid, file_raw=f"ok {entry}")
    r = get(daemon, sid, "stat", path="/a")
    assert (r.status_code, r.json()) == (502, BROKE)
    r = post(daemon, sid, "mkdir", path="/a")
    assert (r.status_code, r.json()) == (502, BROKE)
    # In a list it comes too late for an error: the connection is cut.
    set_state(daemon, sid, file_raw=f"data {json.dumps(ENTRY)}\n{entry}\n")
    with pytest.raises(httpx.RemoteProtocolError):
        get(daemon, sid, "list", path="/a")
    set_state(daemon, sid, file_raw=None)
    assert get(daemon, sid, "stat", path="/tmp").status_code == 200


def test_members_that_nobody_knows_are_dropped(daemon: Daemon) -> None:
    sid = daemon.create()
    entry = {**ENTRY, "secret": 1, "target_type": None}
    set_state(daemon, sid, file_raw=f"ok {json.dumps(entry)}")
    assert get(daemon, sid, "stat", path="/a").json() == ENTRY
    set_state(daemon, sid, file_raw=f"data {json.dumps(entry)}\n")
    assert get(daemon, sid, "list", path="/a").json() == {"entries": [ENTRY]}


def test_errors_of_the_agent(daemon: Daemon) -> None:
    sid = daemon.create()
    for word, status, code, field in (
        ("permission_denied", 403, "permission_denied", "path"),
        ("no_space", 413, "disk_full", None),
        ("too_many", 429, "too_many_requests", None),
        ("not_a_directory", 400, "not_a_directory", "path"),
        ("io_error", 500, "io_error", None),
        ("busy", 409, "sandbox_busy", None),
        ("made_up", 502, "agent_error", None),
    ):
        set_state(daemon, sid, file_error=[word, "because"])
        for r in (
            get(daemon, sid, "stat", path="/a"),
            get(daemon, sid, "list", path="/a"),
            post(daemon, sid, "chmod", path="/a", mode=0),
        ):
            assert refused(r) == (status, code, field) and r.json()["error"] == "because"


# --- lists ----------------------------------------------------------------------------------


def test_list(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    assert get(daemon, sid, "list", path=str(tmp_path)).json() == {"entries": []}
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "f").write_bytes(b"123")
    (tmp_path / "l").symlink_to("d")
    (Path(os.fsdecode(bytes(tmp_path) + b"/\xff"))).write_bytes(b"")
    r = get(daemon, sid, "list", path=str(tmp_path))
    assert r.headers["content-type"] == "application/json"
    names = [e.get("path") for e in r.json()["entries"]]
    assert names == [None, f"{tmp_path}/d", f"{tmp_path}/l"]
    raw = base64.b64decode(r.json()["entries"][0]["path_base64"])
    assert raw == bytes(tmp_path) + b"/\xff"
    assert r.json()["entries"][2]["target_type"] == "dir"
    r = get(daemon, sid, "list", path=str(tmp_path), depth=2)
    names = [e.get("path") for e in r.json()["entries"]]
    assert names[1:] == [f"{tmp_path}/{n}" for n in ("d", "d/e", "d/f", "l")]
    assert refused(get(daemon, sid, "list", path="/no/such")) == (404, "file_not_found", "path")
    assert refused(get(daemon, sid, "list", path="/dev/null"))[1] == "not_a_directory"
    for _ in range(3):
        assert daemon.http.head(f"/v1/sandboxes/{sid}/files/list?path=/tmp").status_code == 200
        r = daemon.http.head(files(daemon, sid, "/fake/unknown"))
        assert r.status_code == 200 and "content-length" not in r.headers
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


@pytest.mark.parametrize(
    "depth", ["0", "17", "-1", "x", "", "1.0", "1&depth=2", "%31%00", "999999"]
)
def test_depth(daemon: Daemon, depth: str) -> None:
    sid = daemon.create()
    r = daemon.http.get(f"/v1/sandboxes/{sid}/files/list?path=/&depth={depth}")
    assert r.status_code == 400
    assert r.json() == {
        "error": "depth must be an integer from 1 to 16, given once",
        "code": "invalid_request",
        "field": "depth",
    }


def test_a_long_list(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    for i in range(3000):
        (tmp_path / f"{i:04} ü").touch()
    r = get(daemon, sid, "list", path=str(tmp_path))
    names = [os.path.basename(e["path"]) for e in r.json()["entries"]]
    assert names == [f"{i:04} ü" for i in range(3000)]


@pytest.mark.parametrize(
    "raw",
    [
        "data {",  # a line without its end
        "data \n",
        "data []\n",
        'data {"path":"/a","path":"/b"}\n',
        "endless x",  # a line that never ends
        "endless",
        "many 101000",  # more than an agent may list
        "error",
        "exit",
        "frame 129",
        "frame 134",
    ],
)
def test_a_broken_list_is_not_whole(daemon: Daemon, raw: str) -> None:
    sid = daemon.create()
    set_state(daemon, sid, file_raw=raw)
    with pytest.raises(httpx.RemoteProtocolError):
        get(daemon, sid, "list", path="/")
    set_state(daemon, sid, file_raw=None)
    assert get(daemon, sid, "list", path="/").status_code == 200


def test_lists_in_any_pieces(daemon: Daemon) -> None:
    sid = daemon.create()
    text = "".join(json.dumps({**ENTRY, "path": f"/{i}ü"}) + "\n" for i in range(20))
    set_state(daemon, sid, file_raw=f"bytes {text}")
    entries = get(daemon, sid, "list", path="/").json()["entries"]
    assert [e["path"] for e in entries] == [f"/{i}ü" for i in range(20)]
    set_state(daemon, sid, file_raw="many 90000")
    assert len(get(daemon, sid, "list", path="/").json()["entries"]) > 80000


def test_before_the_list_begins(daemon: Daemon) -> None:
    """An answer that is none at all can still be an error."""
    sid = daemon.create()
    set_state(daemon, sid, file_raw="close")
    r = get(daemon, sid, "list", path="/")
    assert (r.status_code, r.json()["code"]) == (502, "agent_error")
    r = get(daemon, sid, "stat", path="/")
    assert (r.status_code, r.json()["code"]) == (502, "agent_error")


@pytest.mark.bounds
def test_a_client_that_does_not_take_the_list(daemon: Daemon) -> None:
    sid = daemon.create()
    set_state(daemon, sid, file_raw="many 90000")
    get(daemon, sid, "list", path="/")
    before = daemon.rss_kib()
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.sendall(
        f"GET /v1/sandboxes/{sid}/files/list?path=/ HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    daemon.comes_to_rest()
    # The sanitizer keeps what was freed: every entry.
    assert SANITIZED or daemon.rss_kib() - before < 2_000
    s.close()
    wait_for(lambda: "ended=early" in daemon.log_text())
    set_state(daemon, sid, file_raw=None)
    assert get(daemon, sid, "stat", path="/").status_code == 200


def test_leaving_and_the_end(start: Callable[..., Daemon]) -> None:
    d = start()
    for op in ("list", "stat"):
        sid = d.create()
        set_state(d, sid, file_raw="mute")
        s = socket.create_connection(("127.0.0.1", d.port))
        s.sendall(f"GET /v1/sandboxes/{sid}/files/{op}?path=/ HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(0.3)
        d.http.delete(f"/v1/sandboxes/{sid}")
        head, _, body = s.recv(4096).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 409 ")
        assert json.loads(body) == {"error": "sandbox ended: deleted", "code": "sandbox_ended"}
        s.close()


# --- parts of a file ------------------------------------------------------------------------


def part(d: Daemon, sid: str, path: Path, span: str | None, **more: str) -> httpx.Response:
    """A part of a file."""
    headers = {**({"Range": span} if span is not None else {}), **more}
    return d.http.get(files(d, sid, str(path)), headers=headers)


def test_ranges(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    data = os.urandom(200_000)
    (tmp_path / "f").write_bytes(data)
    for span, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=0-99999", 0, 99_999),
        ("bytes=100000-", 100_000, 199_999),
        ("bytes=199999-", 199_999, 199_999),
        ("bytes=150000-999999999", 150_000, 199_999),
        ("bytes=5-9223372036854775806", 5, 199_999),
        ("bytes=6-99999999999999999999", 6, 199_999),
        ("BYTES=7-8", 7, 8),
    ):
        r = part(daemon, sid, tmp_path / "f", span)
        assert r.status_code == 206 and r.content == data[first : last + 1]
        assert r.headers["content-range"] == f"bytes {first}-{last}/200000"
        assert r.headers["content-length"] == str(last - first + 1)
    # Whatever else is asked for, the answer is all of it, and says so.
    for span in (
        None,
        "bytes=-5",
        "bytes=0-1,5-6",
        "bytes=9-5",
        "bytes=",
        "bytes=a-b",
        "bytes=1 - 2",
        "lines=0-1",
    ):
        r = part(daemon, sid, tmp_path / "f", span)
        assert r.status_code == 200 and r.content == data
        assert r.headers["accept-ranges"] == "bytes" and "content-range" not in r.headers
    # There is nothing that a condition could match; and it is a matter of GET alone.
    r = part(daemon, sid, tmp_path / "f", "bytes=0-1", **{"If-Range": '"x"'})
    assert r.status_code == 200 and r.content == data
    r = daemon.http.head(files(daemon, sid, f"{tmp_path}/f"), headers={"Range": "bytes=0-1"})
    assert r.status_code == 200 and r.headers["content-length"] == "200000"


def test_ranges_beyond_the_end(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "empty").write_bytes(b"")
    for name, span, size in (
        ("f", "bytes=5-", 5),
        ("f", "bytes=9-10", 5),
        ("f", "bytes=99999999999999999999-", 5),
        ("empty", "bytes=0-", 0),
    ):
        r = part(daemon, sid, tmp_path / name, span)
        assert r.status_code == 416
        assert r.headers["content-range"] == f"bytes */{size}"
        assert r.json() == {
            "error": "the range begins behind the end of the file",
            "code": "range_not_satisfiable",
        }
    r = part(daemon, sid, Path("/fake/unknown"), "bytes=0-")
    assert r.status_code == 416 and "content-range" not in r.headers
    assert r.json() == {
        "error": "the size of this file is not known: it has no ranges",
        "code": "range_not_satisfiable",
        "hint": "ask for all of it",
    }
    r = part(daemon, sid, tmp_path / "none", "bytes=0-")
    assert refused(r) == (404, "file_not_found", "path")


def test_a_broken_part_is_not_whole(daemon: Daemon) -> None:
    sid = daemon.create()
    for name in ("broken", "short", "kill"):
        with pytest.raises(httpx.RemoteProtocolError):
            part(daemon, sid, Path(f"/fake/{name}"), "bytes=0-")


def test_a_download_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    """What a client does whose connection broke."""
    sid = daemon.create()
    data = os.urandom(3_000_000)
    (tmp_path / "f").write_bytes(data)
    got = b""
    while len(got) < len(data):
        with daemon.http.stream(
            "GET", files(daemon, sid, f"{tmp_path}/f"), headers={"Range": f"bytes={len(got)}-"}
        ) as r:
            assert r.status_code == 206
            for piece in r.iter_raw(100_000):
                got += piece
                if len(got) % 7 == 0:
                    break
    assert got == data
