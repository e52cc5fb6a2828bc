"""Commands under /exec as tests run them: a reply that has begun, an interrupt, a list."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from conftest import Daemon

# A guest has a second beyond a deadline.
SLACK = {"PODFLARE_EXEC_SLACK": "1"}


@contextmanager
def running(daemon: Daemon, sid: str, code: str | None, **body: object) -> Iterator[httpx.Response]:
    """A command whose reply has begun; it is given up at the end if it has not been read."""
    body = {"code": code, "language": "bash", "rich": True, **body}
    with httpx.Client(base_url=daemon.url, timeout=60) as c:
        with c.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as r:
            assert r.status_code == 200
            yield r


def last(r: httpx.Response) -> dict:
    """The exit event of a reply that is read to its end."""
    return [json.loads(x) for x in r.iter_lines()][-1]


def interrupt(daemon: Daemon, sid: str, exec_id: str, **body: object) -> httpx.Response:
    """Interrupts a command."""
    return daemon.http.post(f"/v1/sandboxes/{sid}/exec/{exec_id}/interrupt", json=body)


def listed(daemon: Daemon, sid: str) -> list[dict]:
    """The commands that live."""
    return daemon.http.get(f"/v1/sandboxes/{sid}/exec").json()["execs"]
