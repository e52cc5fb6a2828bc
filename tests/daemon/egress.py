"""What the tests of egress share: grants, connections of the guest, and the stand-in proxy's notes."""

from __future__ import annotations

import json
from typing import Any

import httpx

from conftest import Daemon, wait_for

OFF = {"allow": [], "inject": {}, "state": "off", "reason": None}
# In no reply, log, database or file.
CANARY = "CANARY-7c1e5d9b"


def grant(*allow: Any, **more: Any) -> dict:
    """The value of "egress"."""
    return {"allow": list(allow), **more}


def inject(host: str, intercept: bool = False, **headers: str) -> dict:
    """The value of "inject"."""
    return {host: {"headers": headers, "intercept": intercept}}


def put(d: Daemon, sid: str, body: Any) -> httpx.Response:
    """Replaces the grant."""
    return d.http.put(f"/v1/sandboxes/{sid}/egress", content=json.dumps(body))


def get(d: Daemon, sid: str) -> dict:
    """The grant of now."""
    r = d.http.get(f"/v1/sandboxes/{sid}/egress")
    assert r.status_code == 200, r.text
    return r.json()


def guest(d: Daemon, sid: str, op: str, **more: Any) -> Any:
    """An order to the guest (fake_guest.py): its answer."""
    events = d.exec(sid, "#fake:guest " + json.dumps({"op": op, **more}))
    assert events[0]["type"] == "stdout", events
    return json.loads("".join(e["data"] for e in events if e["type"] == "stdout"))


def ask(d: Daemon, sid: str, host: str = "allowed.test", name: str = "", **more: Any) -> str:
    """What the proxy says of a new connection to a host."""
    line = json.dumps({"host": host, **more})
    return guest(d, sid, "open", name=name or host, line=line)


def order(d: Daemon, sid: str, name: str = "order", **what: Any) -> str:
    """Has the proxy do something, over a new connection."""
    return guest(d, sid, "open", name=name, line=json.dumps(what))


def notes(d: Daemon, what: str = "") -> list[dict]:
    """What all proxies have noted, those with this member."""
    out: list[dict] = []
    for path in sorted(d.proxies.glob("*.jsonl"), key=lambda p: p.stat().st_mtime_ns):
        out += [json.loads(line) for line in path.read_text().splitlines()]
    return [n for n in out if what in n] if what else out


def policies(d: Daemon) -> list[dict]:
    """Every policy that a proxy was given."""
    return [n["policy"] for n in notes(d, "policy")]


def started(d: Daemon) -> int:
    """How many proxies there were."""
    return len(notes(d, "pid"))


def mode(d: Daemon, text: str) -> None:
    """How the next proxies behave."""
    (d.proxies / "mode").write_text(text)


def metrics(d: Daemon) -> dict[str, float]:
    """The samples of /v1/metrics."""
    r = d.http.get("/v1/metrics")
    assert r.status_code == 200
    assert r.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = [x for x in r.text.splitlines() if not x.startswith("#")]
    return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines)}


def log(d: Daemon, sid: str, query: str = "") -> list[dict]:
    """The log of a sandbox."""
    r = d.http.get(f"/v1/sandboxes/{sid}/egress/log{query}")
    assert r.status_code == 200, r.text
    assert r.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in r.text.splitlines()]


def wait_failed(d: Daemon, sid: str) -> str:
    """The reason, once it has failed."""
    wait_for(lambda: get(d, sid)["state"] == "failed")
    return get(d, sid)["reason"]


def wait_no_proxy(d: Daemon) -> None:
    """No proxy runs any more."""
    wait_for(lambda: metrics(d)["podflare_egress_proxies"] == 0)
