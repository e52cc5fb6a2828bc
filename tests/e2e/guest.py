# SPDX-License-Identifier: Apache-2.0
"""Short ways to run things in a sandbox when the test is about something else."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
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


# finit_module(2); one that is there already will do.
LOAD = r"""
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def load(path):
    fd = os.open(path, os.O_RDONLY)
    ok = libc.syscall(313, fd, b"", 0) == 0 or ctypes.get_errno() == errno.EEXIST
    os.close(fd)
    return "loaded" if ok else errno.errorcode[ctypes.get_errno()]
print(json.dumps([load(f"/tmp/{name}.ko") for name in %r]))
"""


def load_modules(sandbox: Sandbox, build: Path, *names: str, optional: bool = False) -> bool:
    """Bring modules of the guest's kernel along, with those that they need, and load them as root.
    optional: False, instead of a failure, when this kernel has none of that name."""
    files = {p.stem.replace("-", "_"): p for p in (build / "guest/modules").resolve().rglob("*.ko")}
    order: list[str] = []

    def add(name: str) -> None:
        needs = re.search(rb"\0depends=([^\0]*)\0", b"\0" + files[name].read_bytes())
        for one in filter(None, needs.group(1).decode().split(",") if needs else ()):
            add(one.replace("-", "_"))
        if name not in order:
            order.append(name)

    if optional and not set(names) <= files.keys():
        return False
    for name in names:
        add(name)
    for name in order:
        sandbox.upload(files[name].read_bytes(), f"/tmp/{name}.ko")
    assert probe(sandbox, LOAD % order, root=True) == ["loaded"] * len(order), order
    return True


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
