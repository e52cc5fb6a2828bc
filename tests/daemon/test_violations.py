"""Every operation of api/openapi.yaml with values that its schema does not allow, made from the schema.

Each is refused with an answer that the file describes, by the name of what is wrong, and the
connection serves on. What the schema allows is never answered with a failure of ours.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Daemon, wait_for
from operations import ON_ONE, prepare, request_of
from spec import OPERATIONS, SPEC, check_answer, resolve
from violations import BROKEN, NUL, fits, merged, query_values, values
from wire import Wire

# What the schema allows and is not sent, because it makes templates or many virtual machines.
COSTLY = {("/v1/sandboxes", "memory_mib"), ("/v1/sandboxes", "vcpus"), ("/v1/sandboxes", "disk_mib")}
COSTLY |= {(ON_ONE + "/fork", "n")}
FEW = 2  # values that are allowed, of each member: many of them start a process
TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "a/b; c", "\x7f")
IDS = ["x", "..", ".", "%2e%2e", "%00", "%", "a%2Fb", "sbx_" + "0" * 31, "sbx_" + "0" * 33, "SBX_" + "0" * 32]
IDS += ["sbx_" + "g" * 32, "ü", "\udcff\udcfe", "-", "x" * 65, "x" * 4000, "sbx_%30" + "0" * 31, "*", ";", "x;y=1", "'\"<>"]


class Target:
    """A daemon with a sandbox and a copy of it, for all operations; nothing that is sent is run."""

    def __init__(self, start: Callable[..., Daemon], files: Path) -> None:
        self.files = files
        self.d = d = start(inert=files)
        self.sid = d.create()
        self.child = self.fork()

    def fork(self) -> str:
        """A copy's id."""
        return self.d.http.post(f"/v1/sandboxes/{self.sid}/fork").json()["children"][0]

    def url(self, path: str) -> str:
        """The path with everything that it names there."""
        full = path.replace("{id}", self.sid).replace("{other}", self.child)
        for name in ("exec_id", "context_id", "command_id"):
            full = full.replace("{%s}" % name, "c")
        return full

    def tidy(self) -> None:
        """No other sandbox is there any more, and both of these still are."""
        ids = [o["id"] for o in self.d.http.get("/v1/sandboxes").json()["sandboxes"]]
        assert {self.sid, self.child} <= set(ids)
        for sid in set(ids) - {self.sid, self.child}:
            self.d.http.delete(f"/v1/sandboxes/{sid}").raise_for_status()


@pytest.fixture(scope="module")
def target(start_once: Callable[..., Daemon], tmp_path_factory: pytest.TempPathFactory) -> Target:
    """One for all operations."""
    return Target(start_once, tmp_path_factory.mktemp("files"))


class Probe:
    """Requests of one operation over one connection."""

    def __init__(self, target: Target, method: str, path: str, where: str) -> None:
        self.target, self.method, self.path = target, method, path
        self.what = request_of(method, path, where)
        if path.endswith("/files") and method == "put":
            self.what["params"] |= {"upload_id": "u", "size": 4, "offset": 0}
        self.wire = Wire(target.d.port)
        self.sent = 0

    def answer(self, what: dict[str, Any], url: str = "", method: str = "", query: str = "") -> Any:
        """An answer that the file describes and that is none of our failures."""
        url = (url or self.target.url(self.path)) + query
        r = self.wire.send(method or self.method.upper(), url, what)
        self.sent += 1
        assert r.status_code < 500, (what, query, r.text)
        check_answer(self.method, self.path, r)
        return r

    def refused(self, field: str, what: dict[str, Any], inside: Any = (), **more: Any) -> None:
        """It is, for this member, or for one inside of it."""
        r = self.answer(what, **more)
        case = str(what)[:200], more, r.text
        assert r.status_code == 400, case
        if r.headers["content-type"] == "application/json":
            o = r.json()
            assert o["code"] in ("invalid_request", "is_directory"), case
            assert o["field"].split(".")[0] in (field, "body", *inside), case

    def json(self, **members: Any) -> dict[str, Any]:
        """The request that works with other members."""
        return {**self.what, "json": {**self.what.get("json", {}), **members}}

    def raw(self, body: bytes) -> dict[str, Any]:
        """The request that works with another body."""
        return {**{k: v for k, v in self.what.items() if k != "json"}, "content": body}


def body_of(method: str, path: str) -> Any:
    """The schema of an operation's JSON body, or None."""
    content = SPEC["paths"][path][method].get("requestBody", {}).get("content", {})
    return content.get("application/json", {}).get("schema")


def parameters(method: str, path: str, where: str) -> list[dict[str, Any]]:
    """The parameters of an operation that are in the path or the query."""
    both = SPEC["paths"][path].get("parameters", []) + SPEC["paths"][path][method].get("parameters", [])
    return [p for p in map(resolve, both) if p["in"] == where]


def try_members(p: Probe, schema: dict[str, Any]) -> None:
    """One member after the other."""
    for name, member in schema["properties"].items():
        allowed = 0
        for value, ok in values(member):
            if not ok:
                inside = [*merged(member).get("properties", ()), *(value if isinstance(value, dict) else ())]
                p.refused(name, p.json(**{name: value}), inside)
            elif (p.path, name) not in COSTLY and allowed < FEW:
                p.answer(p.json(**{name: value}))
                allowed += 1
    for name in schema.get("required", []):
        p.refused(name, {**p.what, "json": {k: v for k, v in p.what["json"].items() if k != name}})
    for name in ("unknown", "", "é" * 40, "__proto__", "ID"):
        p.refused(name if len(name) < 33 else name[:32], p.json(**{name: 1}))
    p.refused("body", p.json(**{"a" + NUL: 1}))


def try_body(p: Probe, schema: Any) -> None:
    """What is no JSON object; and the object itself, where it is one of several things."""
    wish = resolve(schema)
    optional = not SPEC["paths"][p.path][p.method]["requestBody"]["required"]
    for body in BROKEN:
        if body == b"" and optional or wish.get("oneOf") and body in (b"true", b"null"):
            continue
        p.refused("egress" if wish.get("oneOf") else "body", p.raw(body))
    large = p.answer(p.raw(b'{"a": "' + b"x" * (4 << 20) + b'"}'))
    assert large.status_code == 413
    if "oneOf" in wish:
        for value, ok in values(schema):
            if value is not None and not ok:
                p.refused("egress", {**p.what, "json": value})
    else:
        try_members(p, wish)


def try_queries(p: Probe) -> None:
    """Parameters of the query: of a wrong type, out of range, broken, twice, missing."""
    have = p.what.get("params", {})
    rest = {k: v for k, v in p.what.items() if k != "params"}
    for one in parameters(p.method, p.path, "query"):
        name = one["name"]
        others = "&".join(f"{k}={v}" for k, v in have.items() if k != name)
        for text, ok in query_values(one["schema"]):
            query = f"?{others}&{name}={text}" if others else f"?{name}={text}"
            if ok:
                p.answer(rest, query=query)
            else:
                p.refused(name, rest, query=query)
        if one.get("required"):
            p.refused(name, rest, query="?" + others)
    for query in ("?", "?&&=&", "?%00=%00", "?\udcff", "?a=b&a=b", "?" + "x" * 4000):
        p.answer(rest, query=query)


def try_paths(p: Probe) -> None:
    """Ids that are none, in each place where the path has one."""
    for one in parameters(p.method, p.path, "path"):
        for text in IDS:
            name = "{%s}" % one["name"]
            r = p.answer(p.what, url=p.target.url(p.path.replace(name, text)))
            assert 400 <= r.status_code < 500 or fits(one["schema"], text), (name, text)
    longer = p.wire.send(p.method.upper(), p.target.url(p.path) + "/", p.what)
    assert (longer.status_code, longer.json()["code"]) == (404, "not_found")


def try_methods(p: Probe) -> None:
    """Those that the path does not have."""
    url = p.target.url(p.path)
    known = [m.upper() for m in SPEC["paths"][p.path] if (m, p.path) in OPERATIONS]
    known += ["HEAD"] if "GET" in known else []
    for method in ("PATCH", "TRACE", "OPTIONS", "BREW", "get", "GETGETGETGETGETGET", "PUT", "POST", "DELETE"):
        if method not in known:
            r = p.answer({}, method=method)
            assert r.status_code == 405
            assert sorted(r.headers["allow"].split(", ")) == sorted(known), url


@pytest.mark.parametrize("method,path", OPERATIONS)
def test_violations(target: Target, method: str, path: str) -> None:
    where = target.files / f"{method}{path.replace('/', '_')}"
    where.mkdir()

    def files() -> None:
        for name in "fgh":
            (where / name).write_bytes(b"data")

    files()
    prepare(target.d.http, target.sid, path)
    fds = target.d.fds()
    p = Probe(target, method, path, str(where))
    schema = body_of(method, path)
    if schema:
        try_body(p, schema)
    ends = method == "delete" or "{other}" in path and method == "post"
    if not ends:
        try_queries(p)
    try_paths(p)
    try_methods(p)
    target.tidy()
    # The request itself, of every content type.
    if schema:
        for kind in TYPES[: 1 if any(path == at for at, _ in COSTLY) else None]:
            p.answer({**p.what, "headers": {"content-type": kind}})
    if ends and not path.endswith("_id}"):
        spare = target.fork()
        url = path.replace("{id}", spare).replace("{other}", target.fork())
        assert p.answer(p.what, url=url).status_code == 204
    else:
        files()
        prepare(target.d.http, target.sid, path)
        assert p.answer(p.what).status_code in (101, 200, 204)
    # The connection ends only where that is announced: not because something in a body is wrong.
    assert p.wire.opened <= len(p.wire.closes) + 1
    assert set(p.wire.closes) <= {101, 404, 405, 413}
    p.wire.close()
    target.tidy()
    wait_for(lambda: target.d.fds() <= fds + 8)
    print(f"{p.sent} requests")
