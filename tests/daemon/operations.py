"""For each operation of the API a request that works."""

import base64
from typing import Any

import httpx

# A request of each operation on a sandbox that does something to one's own: what httpx is told.
# One that is not here has no test, and fails.
UPGRADE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": base64.b64encode(bytes(16)).decode(),
}
REQUESTS: dict[tuple[str, str], dict[str, Any]] = {
    ("get", ""): {},
    ("delete", ""): {},
    ("get", "/console"): {},
    ("post", "/fork"): {"json": {"n": 1}},
    ("post", "/merge_into/{other}"): {},
    ("get", "/diff/{other}"): {"params": {"path": "/tmp"}},
    ("get", "/egress"): {},
    ("put", "/egress"): {"json": {"allow": ["a.test"]}},
    ("get", "/egress/log"): {},
    ("get", "/exec"): {},
    ("post", "/exec"): {"json": {"code": "touch {dir}/ran", "language": "bash"}},
    ("post", "/exec/{exec_id}/interrupt"): {},
    ("post", "/contexts"): {"json": {"context_id": "new"}},
    ("get", "/contexts"): {},
    ("post", "/contexts/{context_id}/restart"): {},
    ("delete", "/contexts/{context_id}"): {},
    ("post", "/commands"): {"json": {"code": "touch {dir}/ran", "language": "bash"}},
    ("get", "/commands"): {},
    ("get", "/commands/{command_id}"): {},
    ("delete", "/commands/{command_id}"): {},
    ("get", "/commands/{command_id}/stream"): {},
    ("get", "/commands/{command_id}/terminal"): {"headers": UPGRADE},
    ("post", "/commands/{command_id}/stdin"): {"content": b"x", "params": {"close": 1}},
    ("post", "/commands/{command_id}/signal"): {"json": {"signal": "TERM"}},
    ("post", "/commands/{command_id}/resize"): {"json": {"cols": 8, "rows": 9}},
    ("put", "/files"): {"params": {"path": "{dir}/put"}, "content": b"data"},
    ("get", "/files"): {"params": {"path": "{dir}/f"}},
    ("get", "/files/stat"): {"params": {"path": "{dir}/f"}},
    ("get", "/files/list"): {"params": {"path": "{dir}"}},
    ("post", "/files/mkdir"): {"json": {"path": "{dir}/d"}},
    ("post", "/files/remove"): {"json": {"path": "{dir}/g"}},
    ("post", "/files/rename"): {"json": {"path": "{dir}/h", "to": "{dir}/i"}},
    ("post", "/files/chmod"): {"json": {"path": "{dir}/f", "mode": 0o640}},
}
# The others: whatever they answer to one key, it names no sandbox of another.
GENERAL: dict[tuple[str, str], dict[str, Any]] = {
    ("get", "/v1/healthz"): {},
    ("get", "/v1/sandboxes"): {},
    ("post", "/v1/sandboxes"): {"json": {}},
    ("get", "/v1/metrics"): {},
    ("get", "/v1/tree"): {},
    ("get", "/v1/templates"): {},
    ("post", "/v1/policy/test"): {"json": {"host": "a.test"}},
}
ON_ONE = "/v1/sandboxes/{id}"


def request_of(method: str, path: str, where: str) -> dict[str, Any]:
    """The request of an operation, with a directory of the test's in it."""
    tail = path.removeprefix(ON_ONE)
    return filled(GENERAL[method, path] if (method, path) in GENERAL else REQUESTS[method, tail], where)


def filled(value: Any, where: str) -> Any:
    """The same with this for {dir}."""
    if isinstance(value, str):
        return value.replace("{dir}", where)
    if isinstance(value, dict):
        return {k: filled(v, where) for k, v in value.items()}
    if isinstance(value, list):
        return [filled(v, where) for v in value]
    return value


def prepare(c: httpx.Client, sid: str, path: str) -> None:
    """What the path names in a sandbox is there, and is called c."""
    one = f"/v1/sandboxes/{sid}"
    if path.endswith("/contexts"):
        for o in c.get(f"{one}/contexts").json()["contexts"]:
            c.delete(f"{one}/contexts/{o['context_id']}")  # all but the default
    if "{context_id}" in path:
        assert c.post(f"{one}/contexts", json={"context_id": "c"}).status_code in (200, 409)
    if "{exec_id}" in path:
        c.post(f"{one}/exec", json={"code": "1", "exec_id": "c"}).raise_for_status()
    if "{command_id}" in path:
        argv = ["true"] if path.endswith("/stream") else ["cat"]
        body = {"argv": argv, "command_id": "c", "stdin": argv == ["cat"]}
        if path.endswith(("/resize", "/terminal")):
            body["pty"] = {"cols": 9, "rows": 9}
        c.delete(f"{one}/commands/c")
        c.post(f"{one}/commands", json=body).raise_for_status()
