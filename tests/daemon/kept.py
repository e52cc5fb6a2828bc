"""Kept commands as tests use them: requests, what they answer, and an agent that lies about them."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from conftest import Daemon, wait_for

# How the agent begins what it tells of a command.
HERE = {"type": "position", "pid": 5, "stdout": 0, "stderr": 0}
OK = (0x89, HERE)


def base(sid: str, *more: str) -> str:
    """Path of the commands of a sandbox, or of something behind it."""
    return "/".join([f"/v1/sandboxes/{sid}/commands", *more])


def begin(daemon: Daemon, sid: str, code: str | None = None, **body: Any) -> str:
    """Starts one: its id."""
    body = body if code is None else {"code": code, **body}
    r = daemon.http.post(base(sid), json=body)
    assert r.status_code == 200, r.text
    assert set(r.json()) == {"command_id", "pid"} and r.json()["pid"] > 1
    return r.json()["command_id"]


def info(daemon: Daemon, sid: str, cid: str) -> dict:
    """What is told of one."""
    r = daemon.http.get(base(sid, cid))
    assert r.status_code == 200, r.text
    return r.json()


def events(daemon: Daemon, sid: str, cid: str, query: str = "") -> list[dict]:
    """All events of one, until its exit."""
    r = daemon.http.get(base(sid, cid, "stream") + query)
    assert r.status_code == 200, r.text
    assert r.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in r.text.split("\n")[:-1]]


def raw_of(event: dict) -> bytes:
    """The bytes of an output event."""
    if event.get("encoding") == "base64":
        return base64.b64decode(event["data"])
    return event["data"].encode()


def output(all_events: list[dict], stream: str = "stdout") -> bytes:
    """What was written, with the offsets checked."""
    at = all_events[0][stream]
    out = b""
    for e in all_events:
        if e["type"] == stream:
            out += raw_of(e)
            assert e["offset"] == at + len(out)
    return out


def write(daemon: Daemon, sid: str, cid: str, data: bytes, query: str = "") -> httpx.Response:
    """To its stdin."""
    return daemon.http.post(base(sid, cid, "stdin") + query, content=data)


@contextmanager
def watched(daemon: Daemon, sid: str, cid: str, query: str = "") -> Iterator[Iterator[dict]]:
    """Its events as they come; left at the end."""
    with httpx.Client(base_url=daemon.url, timeout=60) as c:
        with c.stream("GET", base(sid, cid, "stream") + query) as r:
            assert r.status_code == 200
            yield (json.loads(line) for line in r.iter_lines())


def refused(r: httpx.Response) -> tuple:
    """Status, code and field of an error."""
    return r.status_code, r.json()["code"], r.json().get("field")


def ended(daemon: Daemon, sid: str, cid: str) -> dict:
    """Waits for its end: what is told of it."""
    wait_for(lambda: info(daemon, sid, cid)["state"] == "ended", 30)
    return info(daemon, sid, cid)


def lie(daemon: Daemon, sid: str, *frames: tuple[int, object]) -> None:
    """What the agent answers to COMMAND from now on."""
    told = [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in frames]
    daemon.exec(sid, "#fake:set " + json.dumps({"command_raw": json.dumps(told)}))
