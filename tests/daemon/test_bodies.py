"""Bodies of requests: what one of them may cost before it is refused."""

import json
import re
from pathlib import Path

import pytest

from conftest import SANITIZED, Daemon

MIB = 1 << 20


def peak_kib(d: Daemon) -> int:
    """Most memory that was ever resident."""
    text = Path(f"/proc/{d.proc.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1])


def many(n: int, around: str = '{"code": [%s]}', one: str = "{}") -> bytes:
    """A body with so many values in a list."""
    return (around % ",".join([one] * n)).encode()


@pytest.mark.bounds
@pytest.mark.parametrize("one", ["{}", "[]", "1", '""', '{"a":{}}'])
def test_many_values_are_not_built(daemon: Daemon, one: str) -> None:
    """A body of 4 MiB that would take 100 MiB and more as values: said before one is made."""
    sid = daemon.create()
    body = many(4 * MIB // (len(one) + 1) - 20, one=one)
    assert 4 * MIB - 1000 < len(body) < 4 * MIB
    before, ticks = peak_kib(daemon), daemon.cpu_ticks()
    for method, path in (("POST", "/exec"), ("PUT", "/egress"), ("POST", "/fork"), ("POST", "/commands")):
        r = daemon.http.request(method, f"/v1/sandboxes/{sid}{path}", content=body)
        assert r.status_code == 400 and r.json()["field"] == "body", (path, r.text)
        assert r.json()["error"] == "the body has more than 65536 values"
    r = daemon.http.post("/v1/sandboxes", content=body)
    assert r.status_code == 400 and r.json()["field"] == "body"
    if not SANITIZED:
        assert peak_kib(daemon) - before < 20 * 1024
        assert daemon.cpu_ticks() - ticks < 100


def test_few_values_are_told_apart(daemon: Daemon) -> None:
    sid = daemon.create()
    url = f"/v1/sandboxes/{sid}/exec"
    # The object, its list, and what is in that.
    for one in ("{}", "1", '"]"'):
        for n, field in ((65534, "code"), (65535, "body")):
            r = daemon.http.post(url, content=many(n, one=one))
            assert r.status_code == 400 and r.json()["field"] == field, (one, n)


@pytest.mark.parametrize("piece", ["[{,", "x", '\\"{[,', "\\\\"])
def test_long_strings_are_as_good_as_ever(daemon: Daemon, piece: str) -> None:
    """Whatever is in them: brackets of a string are no values."""
    sid = daemon.create()
    code = "#" + json.loads('"' + piece * 900_000 + '"')[: 4 * MIB // 2 - 100]
    events = daemon.exec(sid, code)
    assert events[-1]["type"] == "exit" and events[-1]["data"] == 0
