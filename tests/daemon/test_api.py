"""Endpoints of podflared: what they answer, word for word where it is documented."""

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import VCPUS, Daemon, wait_for

UNKNOWN = "sbx_" + "0" * 32
NOT_FOUND = {"error": "sandbox not found", "code": "sandbox_not_found"}


def test_healthz_needs_nothing(daemon: Daemon) -> None:
    r = daemon.http.get("/v1/healthz")
    assert (r.status_code, r.text) == (200, "ok")
    assert r.headers["content-type"].startswith("text/plain")


def test_create_with_defaults(daemon: Daemon) -> None:
    r = daemon.http.post("/v1/sandboxes", json={})
    o = r.json()
    assert r.status_code == 200
    assert re.fullmatch(r"sbx_[0-9a-f]{32}", o.pop("id"))
    assert o.pop("created_at") > 1_700_000_000_000
    assert o.pop("ready_us") > 0
    assert o == {
        "state": "ready",
        "template": "default",
        "memory_mib": 1024,
        "vcpus": VCPUS,
        "disk_mib": 4096,
        "generation": 0,
        "forkable": True,
        "parent": None,
        "children": [],
        "source": "fork",
        "egress": {"allow": [], "inject": {}, "state": "off", "reason": None},
        "metadata": {},
    }


def test_create_without_a_body(daemon: Daemon) -> None:
    assert daemon.http.post("/v1/sandboxes").json()["state"] == "ready"


def test_create_with_everything(daemon: Daemon) -> None:
    body = {
        "template": "default",
        "memory_mib": 256,
        "vcpus": 1,
        "disk_mib": 64,
        "egress": True,
        "metadata": {"who": "ünï", "run": "7"},
    }
    o = daemon.http.post("/v1/sandboxes", json=body).json()
    assert o["memory_mib"] == 256 and o["vcpus"] == 1
    assert o["metadata"] == {"who": "ünï", "run": "7"}
    assert o["egress"] == {"allow": [], "inject": {}, "state": "off", "reason": None}
    assert daemon.info(o["id"])["boot"] == [256, 1, 64]


def test_null_is_like_absent(daemon: Daemon) -> None:
    o = daemon.http.post("/v1/sandboxes", json={"template": None, "vcpus": None}).json()
    assert o["vcpus"] == VCPUS


@pytest.mark.parametrize(
    "body,field,words",
    [
        ('{"template": 5}', "template", "must be a string"),
        ('{"template": "node"}', "template", 'unknown template "node"'),
        ('{"memory_mib": "1024"}', "memory_mib", "must be an integer from 128 to 65536"),
        ('{"memory_mib": 127}', "memory_mib", "from 128 to 65536"),
        ('{"memory_mib": 65537}', "memory_mib", "from 128 to 65536"),
        ('{"memory_mib": 1024.5}', "memory_mib", "must be an integer"),
        ('{"memory_mib": true}', "memory_mib", "must be an integer"),
        ('{"vcpus": 0}', "vcpus", "from 1 to 32"),
        ('{"vcpus": 33}', "vcpus", "from 1 to 32"),
        ('{"disk_mib": 63}', "disk_mib", "from 64 to 65536"),
        ('{"disk_mib": "1"}', "disk_mib", "must be an integer from 64 to 65536"),
        ('{"egress": "no"}', "egress", "must be true or false"),
        ('{"metadata": []}', "metadata", "must be an object of strings"),
        ('{"metadata": {"a": 1}}', "metadata", '"a" must be a string'),
        ('{"metadata": {"a": "b\\u0000c"}}', "metadata", "without NUL"),
        ('{"metadata": {"a": "%s"}}' % ("x" * 40000), "metadata", "larger than 32768 bytes"),
        ("{", "body", "not valid JSON"),
        ("[]", "body", "must be a JSON object"),
        ('"x"', "body", "JSON"),
        ('{"vcpus": 1, "vcpus": 2}', "body", "duplicate"),
        ('{"a": 1} x', "body", "not valid JSON"),
        ('{"vcpus": 99999999999999999999}', "body", "not valid JSON"),
        (b'{"template": "\xff"}', "body", "not valid JSON"),
        ("[" * 5000 + "]" * 5000, "body", "not valid JSON"),
    ],
)
def test_create_bad_body(daemon: Daemon, body: Any, field: str, words: str) -> None:
    r = daemon.http.post("/v1/sandboxes", content=body)
    assert r.status_code == 400, r.text
    o = r.json()
    assert o["code"] == "invalid_request" and o["field"] == field
    assert words in o["error"]
    assert daemon.http.get("/v1/sandboxes").json() == {"sandboxes": []}


def test_list_and_get(daemon: Daemon) -> None:
    ids = [daemon.create(metadata={"n": str(i)}) for i in range(3)]
    listed = daemon.http.get("/v1/sandboxes").json()["sandboxes"]
    assert [o["id"] for o in listed] == ids
    daemon.exec(ids[1], "true")
    o = daemon.http.get(f"/v1/sandboxes/{ids[1]}").json()
    assert o["exec_count"] == 1 and o["metadata"] == {"n": "1"} and o["state"] == "ready"
    assert "ended_reason" not in o


def test_unknown_ids(daemon: Daemon) -> None:
    calls = [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/exec", b'{"code": "1"}'),
        ("PUT", "/files?path=/x", b"data"),
        ("GET", "/files?path=/x", None),
        ("GET", "/console", None),
    ]
    for sid in (UNKNOWN, "sbx_short", "x", "..", "%2e%2e", "sbx_" + "0" * 200, UNKNOWN.upper()):
        for method, tail, body in calls:
            url = httpx.URL(daemon.url).copy_with(raw_path=f"/v1/sandboxes/{sid}{tail}".encode())
            r = daemon.http.request(method, url, content=body)
            if sid == "..":  # the client may have resolved it
                assert r.status_code in (404, 405)
                continue
            assert (r.status_code, r.json()) == (404, NOT_FOUND), (sid, method, tail)


def test_delete_twice_and_after(daemon: Daemon) -> None:
    sid = daemon.create()
    pid = daemon.info(sid)["pid"]
    r = daemon.http.delete(f"/v1/sandboxes/{sid}")
    assert (r.status_code, r.content) == (204, b"")
    assert not Path(f"/proc/{pid}").exists(), "204 means that the VM is gone"
    assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    for r in (
        daemon.http.get(f"/v1/sandboxes/{sid}"),
        daemon.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1"}),
        daemon.http.get(f"/v1/sandboxes/{sid}/files?path=/x"),
    ):
        assert (r.status_code, r.json()) == (404, NOT_FOUND)
    assert daemon.http.get("/v1/sandboxes").json() == {"sandboxes": []}


@pytest.mark.parametrize(
    "body,field,words",
    [
        ("{}", "code", "code is missing"),
        ("", "body", "not valid JSON"),
        ('{"code": null}', "code", "code is missing"),
        ('{"code": 5}', "code", "code must be a string"),
        ('{"code": "a\\u0000b"}', "code", "must not contain NUL"),
        ('{"code": "1", "language": "ruby"}', "language", 'unknown language "ruby"'),
        ('{"code": "1", "language": 1}', "language", "language must be a string"),
        ('{"code": "1", "rich": 1}', "rich", "rich must be true or false"),
        ('{"code": "1", "cwd": 1}', "cwd", "cwd must be a string"),
        ('{"code": "1", "cwd": ""}', "cwd", "cwd must be a path"),
        ('{"code": "1", "env": "A=1"}', "env", "env must be an object of strings"),
        ('{"code": "1", "env": {"A": 1}}', "env", '"A" must be a string'),
        ('{"code": "1", "env": {"A=B": "1"}}', "env", "is not a name of a variable"),
        ('{"code": "1", "env": {"": "1"}}', "env", "is not a name of a variable"),
        ('{"code": "1", "env": {"A": "%s"}}' % ("x" * 40000), "env", "larger than"),
    ],
)
def test_exec_bad_body(daemon: Daemon, body: str, field: str, words: str) -> None:
    sid = daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", content=body)
    assert r.status_code == 400, r.text
    o = r.json()
    assert (o["code"], o["field"]) == ("invalid_request", field) and words in o["error"]


def test_large_env_that_escapes_badly(daemon: Daemon) -> None:
    """32 KiB of control characters become more JSON than a frame holds: refused, not cut."""
    sid = daemon.create()
    body = {"code": "1", "env": {"A": "\x01" * 30000}}
    r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
    assert r.status_code == 400 and r.json()["field"] == "env"


def test_body_too_large(daemon: Daemon) -> None:
    sid = daemon.create()
    big = json.dumps({"code": "x" * (5 << 20)}).encode()

    def chunks() -> Any:
        for i in range(0, len(big), 100_000):
            yield big[i : i + 100_000]

    for content in (big, chunks()):
        r = daemon.http.post(f"/v1/sandboxes/{sid}/exec", content=content)
        assert r.status_code == 413
        assert r.json()["code"] == "body_too_large"
    assert daemon.exec(sid, "echo fine")[0]["data"] == "fine"


def test_code_of_four_megabytes(daemon: Daemon) -> None:
    """Larger than every buffer on the way; reaches the command whole."""
    sid = daemon.create()
    code = "# " + "x" * (4 << 20)
    code = code[: (4 << 20) - 200] + "\necho $((40+2))"
    assert daemon.exec(sid, code)[0]["data"] == "42"


def test_content_type_does_not_matter(daemon: Daemon) -> None:
    r = daemon.http.post(
        "/v1/sandboxes", content="{}", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert r.status_code == 200


def test_no_such_endpoint(daemon: Daemon) -> None:
    for path in (
        "/",
        "/v1",
        "/v1/",
        "/v1/sandboxes/",
        "/v2/healthz",
        "//v1/healthz",
        "/v1/HEALTHZ",
    ):
        r = daemon.http.request("GET", httpx.URL(daemon.url).copy_with(raw_path=path.encode()))
        assert r.status_code == 404
        assert r.json() == {"error": "no such endpoint", "code": "not_found"}


def test_wrong_method(daemon: Daemon) -> None:
    r = daemon.http.put("/v1/sandboxes", content=b"")
    assert r.status_code == 405
    assert r.headers["allow"] == "POST, GET, HEAD"
    assert r.json() == {
        "error": "this endpoint takes POST, GET, HEAD",
        "code": "method_not_allowed",
    }
    assert daemon.http.request("BREW", "/v1/healthz").status_code == 405
    assert daemon.http.options("/v1/healthz").status_code == 405


def test_keys(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_API_KEYS": " pk_one ,pk_two,,"})
    assert d.http.get("/v1/healthz").text == "ok"

    def get(auth: str | None, path: str = "/v1/sandboxes") -> httpx.Response:
        return d.http.get(path, headers={"authorization": auth} if auth is not None else {})

    for auth in (None, "", "pk_one", "Basic pk_one", "Bearer", "Bearerpk_one"):
        r = get(auth)
        assert r.status_code == 401
        assert r.json() == {
            "error": "missing Authorization: Bearer <key>",
            "code": "missing_api_key",
        }
        assert r.headers["www-authenticate"] == "Bearer"
    for auth in (
        "Bearer pk_",
        "Bearer pk_onee",
        "Bearer pk_onepk_one",
        "Bearer PK_ONE",
        "Bearer x",
    ):
        r = get(auth)
        assert r.status_code == 401
        assert r.json() == {"error": "invalid api key", "code": "invalid_api_key"}
    for auth in ("Bearer pk_one", "bearer pk_two", "Bearer   pk_two"):
        assert get(auth).status_code == 200
    # What exists is not told to strangers.
    assert get(None, "/nowhere").status_code == 401
    r = d.http.post("/v1/sandboxes", content=b"x" * 300_000)
    assert r.status_code == 401, "an answer also for who sends first and reads then"
    assert "pk_" not in d.log_text()


def test_keys_ignored_when_disabled(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_API_KEYS": "k", "PODFLARE_AUTH_DISABLED": "1"})
    assert d.http.get("/v1/sandboxes").status_code == 200
    assert "WARN" in d.log_text() and "PODFLARE_AUTH_DISABLED" in d.log_text()


@pytest.mark.parametrize("env", [{}, {"PODFLARE_AUTH_DISABLED": "1"}])
def test_web_pages_of_other_origins(start: Callable[..., Daemon], env: dict[str, str]) -> None:
    """Without keys a page must not reach the API, directly or by DNS rebinding."""
    daemon = start(env=env)
    for headers in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"host": "evil.example"},
        {"host": "evil.example:7070", "origin": "http://evil.example:7070"},
    ):
        r = daemon.http.post("/v1/sandboxes", headers=headers, content=b"{}")
        assert r.status_code == 403 and r.json()["code"] == "foreign_origin", headers
        assert ("--public-addr" if env else "PODFLARE_API_KEYS") in r.json()["hint"]
    for headers in (
        {"host": "localhost:1"},
        {"host": "[::1]:7070"},
        {"host": "localhost:9", "origin": "http://localhost:9"},
    ):
        assert daemon.http.get("/v1/sandboxes", headers=headers).status_code == 200, headers


def test_traceparent_in_the_log(daemon: Daemon) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    sid = daemon.create()
    daemon.http.get(f"/v1/sandboxes/{sid}", headers={"traceparent": f"00-{trace}-{span}-01"})
    line = wait_for(lambda: [x for x in daemon.log_text().splitlines() if trace in x])[0]
    assert re.search(
        r"INFO http_request method=GET path=/v1/sandboxes/:id status=200 duration_ms=\d+ "
        rf"sandbox_id={sid} trace_id={trace} parent_span_id={span}$",
        line,
    ), line
    for bad in ("00-zz-1-01", f"00-{'0' * 32}-{span}-01", f"ff-{trace}-{span}-01", "x" * 300):
        daemon.http.get("/v1/healthz", headers={"traceparent": bad})
    wait_for(lambda: daemon.log_text().count("/v1/healthz") == 4)  # each is written after the answer
    lines = [x for x in daemon.log_text().splitlines() if "/v1/healthz" in x]
    assert all(re.search(r'trace_id=[0-9a-f]{32} parent_span_id=""$', x) for x in lines)


def test_log_as_json(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_LOG_FORMAT": "json"})
    d.http.get("/v1/sandboxes/x%22%0A", headers={"traceparent": "junk"})

    def requests() -> list[dict[str, object]]:
        lines = [json.loads(x) for x in d.log_text().splitlines()]
        return [x for x in lines if x["message"] == "http_request"]

    line = wait_for(requests)[0]  # it is written after the answer
    assert line["path"] == "/v1/sandboxes/:id" and line["status"] == 404
    assert line["sandbox_id"] == "x%22%0A" and line["level"] == "INFO"


def test_nobody_can_break_the_log(start: Callable[..., Daemon]) -> None:
    """Bytes that are no text, and controls, in what is logged of a request: still lines of JSON."""
    d = start(env={"PODFLARE_LOG_FORMAT": "json"})
    ids = {
        b"\xff\xfe": "\ufffd\ufffd",
        b"\xed\xa0\x80": "\ufffd\ufffd\ufffd",
        b"\xf0\x9f\x98": "\ufffd",
        b"\xc2\x9b31m": "\x9b31m",
        "ü😀".encode(): "ü😀",
        b"a\\": "a\\",
        b'"': '"',
    }
    for raw in ids:
        with socket.create_connection(("127.0.0.1", d.port)) as s:
            s.sendall(b"GET /v1/sandboxes/%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % raw)
            assert s.recv(12) == b"HTTP/1.1 404"
    wait_for(lambda: d.log_text().count("http_request") == len(ids))
    data = d.log_path.read_bytes()
    assert b"\xc2\x9b" not in data
    seen = [json.loads(x).get("sandbox_id") for x in data.decode().splitlines()]
    assert [x for x in seen if x] == list(ids.values())


def test_console(daemon: Daemon) -> None:
    sid = daemon.create()
    daemon.exec(sid, "#fake:console hello from the kernel")
    r = daemon.http.get(f"/v1/sandboxes/{sid}/console")
    assert r.status_code == 200
    assert r.content == b"hello from the kernel\n", "a ring of its own"
    daemon.exec(sid, "#fake:console " + "z" * 50000)
    daemon.exec(sid, "#fake:console " + "y" * 50000)
    data = daemon.http.get(f"/v1/sandboxes/{sid}/console").content
    assert len(data) == 65528 and data.endswith(b"zzz\n" + b"y" * 50000 + b"\n")


def test_what_a_vmm_is_given(daemon: Daemon) -> None:
    """Sealed images of the right size, an empty environment, no descriptor of the daemon."""
    sid = daemon.create()
    other = daemon.create()
    info = daemon.info(sid)
    kernel = (daemon.guest / "vmlinux").read_bytes()
    assert info["kernel"]["size"] == len(kernel)
    assert bytes.fromhex(info["kernel"]["head"]) == kernel[:1100]
    assert info["initrd"]["size"] == 506
    assert info["root"]["size"] == 4 << 20, "3 MiB, padded to 2 MiB pages"
    for name in ("kernel", "initrd", "root"):
        assert info[name]["seals"] == 0xF, "write, grow, shrink, seal"
    assert info["console"]["seals"] == 0x7, "the size is fixed, the content is not"
    assert set(info["env"]) <= {"PWD", "LC_CTYPE"}, "these two are the test's shell and python"
    names = [v for k, v in info["open"].items() if int(k) > 3]
    assert not any("podflare.db" in n or "lock" in n for n in names)
    disk = [n for n in names if "/state/disks/" in n]
    assert len(disk) == 2 and all(n.endswith("(deleted)") for n in disk), "read-write and read-only"
    assert os.listdir(daemon.state / "disks") == []
    assert (daemon.state / "disks").stat().st_mode & 0o777 == 0o700
    assert info["open"]["0"] == "/dev/null" and info["open"]["1"] == "/dev/null"
    # Its own sockets: control and one stream. Nothing of the other sandbox, no listener.
    sockets = [n for n in info["open"].values() if n.startswith("socket:")]
    assert len(sockets) == 2
    assert daemon.info(other)["pid"] != info["pid"]


def test_one_stream_serves_many_requests(daemon: Daemon) -> None:
    sid = daemon.create()
    for _ in range(5):
        daemon.exec(sid, "true")
    assert daemon.info(sid)["connects"] == 1
