# SPDX-License-Identifier: Apache-2.0
"""Short ways to run things in a sandbox when the test is about something else."""

from __future__ import annotations

import json
import threading
from typing import Any, Callable, Iterable, TypeVar

from podflare import Sandbox

T = TypeVar("T")

# The size of sandboxes that are to be broken or filled. All of them have the same one: each size
# that is asked for boots its template once more.
SMALL = {"memory_mib": 256, "disk_mib": 64}


def sh(sandbox: Sandbox, script: str) -> str:
    """Run bash, insist on success, return its standard output."""
    r = sandbox.run_code(script, language="bash")
    assert r.ok, f"{script!r}: {r!r}"
    return r.stdout


def py(sandbox: Sandbox, code: str) -> str:
    """Run Python in the REPL, insist on success, return its standard output."""
    r = sandbox.run_code(code)
    assert r.ok, f"{code!r}: {r!r}"
    return r.stdout


def probe(sandbox: Sandbox, code: str, root: bool = False) -> Any:
    """Run a Python script in a process of its own, as the user or as root, and return the JSON
    that it prints."""
    sandbox.upload(code.encode(), "/tmp/probe.py")
    return json.loads(sh(sandbox, f"{'sudo ' if root else ''}python3 /tmp/probe.py"))


def given_back(sandbox: Sandbox) -> int:
    """Bytes of its disk that it has discarded. Its file system does so with what is deleted; that it
    lies below an overlay keeps fstrim(8) from finding it."""
    sectors = sh(sandbox, "cat /sys/block/vda/stat").split()[13]  # Documentation/block/stat.rst
    return int(sectors) * 512


def together(what: Callable[[Sandbox], T], sandboxes: Iterable[Sandbox]) -> list[T]:
    """Call `what` for each sandbox, all at once; the results in order, or the first exception."""
    outcomes: dict[int, T] = {}
    failures: list[BaseException] = []

    def call(index: int, sandbox: Sandbox) -> None:
        try:
            outcomes[index] = what(sandbox)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(daemon=True, target=call, args=one) for one in enumerate(sandboxes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [outcomes[index] for index in sorted(outcomes)]


def values(sandbox: Sandbox, code: str) -> Any:
    """Run Python in the REPL that prints one line of JSON, and return it."""
    return json.loads(py(sandbox, code))
