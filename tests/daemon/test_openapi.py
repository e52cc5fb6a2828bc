"""api/openapi.yaml against the daemon: the same paths, methods, answers and words."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conftest import DAEMON, ROOT, Daemon
from egress import ask, grant, guest, inject, put
from spec import OPERATIONS, SPEC, check, check_answer, resolve


def test_the_same_operations() -> None:
    out = subprocess.run([DAEMON, "--print-routes"], capture_output=True, text=True, check=True)
    routes = {tuple(line.split()) for line in out.stdout.splitlines()}
    spec = {(m.upper(), re.sub(r"\{(\w+)\}", r":\1", p)) for m, p in OPERATIONS}
    assert routes == spec


def test_every_reference_leads_somewhere() -> None:
    used: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                resolve(node)
                used.add(node["$ref"])
            for v in node.values():
                walk(v)
        elif isinstance(node, list):
            for v in node:
                walk(v)

    walk(SPEC)
    for group in ("schemas", "responses", "parameters"):
        for name in SPEC["components"][group]:
            assert f"#/components/{group}/{name}" in used, f"{group}/{name} is not used"


def file_bodies(where: Path) -> list[dict]:
    """Bodies of the operations on files, good and bad."""
    f = str(where / "f")
    paths = [{"path": p} for p in (f, f"{where}/d/e", f"{where}/d", f"{f}/x", f"{where}/no/such", "")]
    return [*paths, {"path": f, "to": f"{where}/g"}, {"path": f, "mode": 0o600}]


@pytest.mark.parametrize("method,path", OPERATIONS)
def test_answers(daemon: Daemon, tmp_path: Path, method: str, path: str) -> None:
    """Good, wrong and missing requests: every answer is one that the file describes."""
    sid = daemon.create(metadata={"k": "v"})
    dead = daemon.create()
    daemon.exec(dead, "#fake:poweroff")
    daemon.exec(sid, "true", exec_id="known")
    put(daemon, sid, grant("a.test", "pypi", inject=inject("a.test", A="x")))
    ask(daemon, sid, "a.test", name="a")
    ask(daemon, sid, "b.test", name="b")
    guest(daemon, sid, "close", name="a")
    (tmp_path / "f").write_bytes(b"data")
    targets = [sid, dead, "sbx_" + "0" * 32, "nonsense"]
    queries = [""]
    if "/files" in path and method != "post":
        queries = [f"?path={tmp_path}/f", f"?path={tmp_path}", f"?path={tmp_path}/no/such", "?path=%00", ""]
    elif path.endswith("/log"):
        queries = ["", "?limit=1", "?limit=0"]
    bodies: list[bytes | None] = [None]
    if method == "post":
        bodies = [b"{}", b"{", b"[]", b'{"code": "echo x", "language": "bash", "rich": true}']
        bodies += [b'{"code": "1", "language": 7}', b'{"vcpus": "x"}', b"x" * (5 << 20)]
        bodies += [b'{"n": 2}', b'{"n": 0}', b'{"n": 33}', b'{"n": 1, "reseed": false}']
        bodies += [b'{"forkable": false}', b'{"forkable": 0}']
        bodies += [b'{"code": "#fake:error busy no"}', b'{"code": "#fake:badframe"}']
        bodies += [b'{"argv": ["true"], "rich": true}', b'{"escalate": true}', b'{"known": 1}']
        bodies += [json.dumps(b).encode() for b in file_bodies(tmp_path)]
        bodies += [b'{"context_id": "c"}', b'{"context_id": "d"}', b'{"context_id": "d"}']
        bodies += [b'{"signal": "TERM"}', b'{"cols": 80, "rows": 24}', b'{"code": "x", "pty": {"cols": 1}}']
        bodies += [b'{"code": "x", "command_id": "same"}', b'{"code": "x", "command_id": "same"}']
        bodies += [b'{"host": "a.test"}', b'{"egress": {"allow": ["a.test"]}}', b'{"egress": {"allow": [1]}}']
    elif path.endswith("/egress"):
        bodies = [b"data", b"false", b'{"allow": ["a.test", {"host": "b.test", "methods": ["GET"]}]}']
    elif method == "put":
        bodies = [b"data"]
    seen = set()

    def other() -> str:
        """A second sandbox, where a path has one."""
        if "{other}" not in path:
            return ""
        return daemon.http.post(f"/v1/sandboxes/{sid}/fork").json()["children"][0]

    for target in targets if "{id}" in path else [""]:
        for query in queries:
            for body in bodies:
                url = path.replace("{id}", target).replace("{other}", other()) + query
                url = url.replace("{exec_id}", "known" if body else "unknown")
                if "{command_id}" in path:
                    name = "c" if body != b"[]" else "none"
                    command = {"argv": ["true"], "command_id": "c", "pty": {"cols": 9, "rows": 9}}
                    if path.endswith(("/stdin", "/resize")):
                        command["argv"] = ["cat"]
                    daemon.http.delete(f"/v1/sandboxes/{sid}/commands/c")
                    daemon.http.post(f"/v1/sandboxes/{sid}/commands", json=command)
                    url = url.replace("{command_id}", name)
                url = url.replace("{context_id}", "default" if path.endswith("restart") else "c")
                if path.endswith("{context_id}"):
                    daemon.http.post(f"/v1/sandboxes/{sid}/contexts", json={"context_id": "c"})
                r = daemon.http.request(method.upper(), url, content=body)
                check_answer(method, path, r)
                seen.add(r.status_code)
                if method == "delete":
                    daemon.http.delete(url)
    assert min(seen) < 300 or path.endswith("/terminal")  # it is upgraded in test_terminal.py
    r = daemon.http.request("PATCH", re.sub(r"\{\w+\}", sid, path))
    assert r.status_code == 405
    check_answer(method, path, r)


def test_answers_to_strangers(start: Any) -> None:
    d = start(env={"PODFLARE_API_KEYS": "k"})
    for method, path in OPERATIONS:
        r = d.http.request(method.upper(), re.sub(r"\{\w+\}", "sbx_" + "0" * 32, path))
        if SPEC["paths"][path][method].get("security") == []:
            assert r.status_code == 200
        else:
            assert r.status_code == 401
        check_answer(method, path, r)


def test_every_code_is_listed() -> None:
    """The words of the source are those of the file."""
    listed = set(resolve({"$ref": "#/components/schemas/Error"})["properties"]["code"]["enum"])
    source = "".join(p.read_text() for p in (ROOT / "src" / "daemon").rglob("*.c"))
    flat = re.sub(r"\s+", " ", source)
    used = set(re.findall(r'reply_error(?:_with)?\( ?(?:\w->)?r, \d+, "(\w+)"', flat))
    used |= set(re.findall(r'(?:\.|->)code = "(\w+)"', flat))
    used |= set(re.findall(r'\{"\w+", "(\w+)", (?:NULL|"\w+"), \d+\}', flat))
    used |= set(re.findall(r'"code\\":\\"(\w+)\\"', flat))
    assert used == listed


def test_the_answers_without_egress(start: Any, tmp_path: Path) -> None:
    """Where the operator has switched it off, and where the configuration is broken."""
    for text in ('{"enabled": false}', "{"):
        config = tmp_path / "egress.json"
        config.write_text(text)
        d = start(args=["--egress-config", str(config)])
        sid = d.create()
        check_answer("get", "/v1/healthz", d.http.get("/v1/healthz"))
        for method, path, body in (
            ("post", "/v1/sandboxes", {"egress": True}),
            ("post", "/v1/sandboxes/{id}/fork", {"egress": True}),
            ("put", "/v1/sandboxes/{id}/egress", True),
            ("post", "/v1/policy/test", {"host": "a.test"}),
        ):
            r = d.http.request(method.upper(), path.replace("{id}", sid), content=json.dumps(body))
            assert r.status_code in (403, 503)
            check_answer(method, path, r)


def test_denials_are_as_described(daemon: Daemon) -> None:
    sid = daemon.create(egress=grant("a.test"))
    code = "#fake:guest " + json.dumps({"op": "open", "name": "x", "line": '{"host": "b.test"}'})
    for event in daemon.exec(sid, code, rich=True):
        check({"$ref": "#/components/schemas/Event"}, event)
    assert event["denied"]
