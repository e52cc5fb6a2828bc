"""The host is short of memory: each allocation of each request fails once, and each call for which the
kernel needs some; then many at random, and all. Errors that are described, or a connection that ends:
no crash, no hang, no wrong answer, nothing left behind, and all is well when there is memory again.

With SWEEP_ALL in the environment it is really each; without, of those behind the first some every third.
"""

import json
import os
import random
import re
import resource
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import DAEMON, SANITIZED, Daemon, make_guest, wait_for
from egress import get, grant, inject, policies
from failing import ALWAYS, KERNEL, MEMORY, Failing
from operations import ON_ONE, UPGRADE, prepare, request_of
from spec import OPERATIONS, check_answer

# No step of the daemon may wait for one of its own time limits because an allocation failed: the
# client's patience is shorter than any of them.
PATIENCE = 15
# Words of an error that may be the answer when memory, or what the kernel makes of it, is short.
EXCUSES = {
    "internal",
    "create_failed",
    "template_failed",
    "fork_failed",
    "sandbox_unreachable",
    "agent_error",
    "egress_failed",
}
MADE = ("/v1/sandboxes", ON_ONE + "/fork")  # a post makes some
# The same operation with more to it.
RICH = {
    "json": {
        "egress": grant("a.test", "pypi", inject=inject("a.test", True, A="x" * 50)),
        "metadata": {"name": "of a client", "text": "x" * 2000},
        "forkable": False,
    }
}
CASES = [(m, p, None) for m, p in OPERATIONS] + [("post", "/v1/sandboxes", RICH)]


# These end the sandbox.
ENDING = {("delete", ON_ONE), ("post", f"{ON_ONE}/merge_into/{{other}}")}
# Requests without an operation.
REFUSED = [("get", "/v1/nothing", 404), ("put", "/v1/sandboxes", 405), ("get", "/v1/sandboxes/x/y/z", 404)]


class Bench:
    """A daemon that can be made to fail, and a sandbox of it in which an operation is tried."""

    def __init__(
        self, start: Callable[..., Daemon], tmp: Path, path: str, more: dict[str, Any] | None = None
    ) -> None:
        self.failing = Failing(tmp / "failing")
        self.d = start(inert=tmp, env=self.failing.env)
        self.tmp, self.path, self.more = tmp, path, more
        self.sid = self.other = ""
        self.d.templates_ready()
        wait_for(lambda: len(self.d.children()) == 1)

    def ids(self) -> set[str]:
        """Sandboxes that live."""
        return {o["id"] for o in self.d.http.get("/v1/sandboxes").json()["sandboxes"]}

    def prepare(self) -> None:
        """The sandbox lives, alone but for the other one where the operation needs it."""
        d = self.d
        if ON_ONE in self.path:
            self.sid = self.sid if self.sid in self.ids() else d.create()
            if "{other}" in self.path and self.other not in self.ids():
                self.other = d.http.post(f"/v1/sandboxes/{self.sid}/fork", json={"n": 1}).json()["children"][0]
        for sid in self.ids() - {self.sid, self.other}:
            d.http.delete(f"/v1/sandboxes/{sid}").raise_for_status()
        for name in ("f", "g", "h"):
            (self.tmp / name).write_bytes(b"data")
        for name in ("i", "put", "ran"):
            (self.tmp / name).unlink(missing_ok=True)
        if (self.tmp / "d").exists():
            (self.tmp / "d").rmdir()
        if self.sid:
            prepare(d.http, self.sid, self.path)

    def ask(self, method: str) -> httpx.Response | None:
        """The operation, on a connection of its own. None: that ended without an answer."""
        url = self.path.replace("{id}", self.sid).replace("{other}", self.other)
        url = re.sub(r"\{(exec|context|command)_id\}", "c", url)
        more = self.more or request_of(method, self.path, str(self.tmp))
        try:
            with httpx.Client(base_url=self.d.url, timeout=PATIENCE) as c:
                if more.get("headers") is UPGRADE:
                    with c.stream(method.upper(), url, **more) as r:
                        if r.status_code != 101:
                            r.read()
                        return r
                return c.request(method.upper(), url, **more)
        except (httpx.RemoteProtocolError, httpx.NetworkError):
            return None

    def lives(self) -> None:
        """It is there, and answers."""
        assert self.d.proc.poll() is None, self.d.log_text()
        assert self.d.http.get("/v1/healthz").text == "ok"

    def nothing_left(self) -> None:
        """No process, descriptor or file of what was, when all sandboxes are closed."""
        for sid in self.ids():
            self.d.http.delete(f"/v1/sandboxes/{sid}").raise_for_status()
        wait_for(lambda: len(self.d.children()) == 1)  # the template
        assert os.listdir(self.d.state / "disks") == []
        assert self.d.http.get("/v1/tree").json() == {"roots": []}

    def at_rest(self) -> int:
        """Descriptors when all sandboxes are closed and no client is connected."""
        self.nothing_left()
        self.d.http.close()
        self.d.http = httpx.Client(base_url=self.d.url, timeout=60)
        seen: list[int] = []

        def settled() -> bool:
            seen.append(self.d.fds())
            return len(seen) > 5 and len(set(seen[-5:])) == 1

        wait_for(settled)
        return seen[-1]


def right(method: str, path: str, r: httpx.Response, bench: Bench) -> None:
    """An answer that says it went well, and what it says of it."""
    check_answer(method, path, r)
    tail = path.removeprefix(ON_ONE)
    if path.endswith("/exec") and method == "post":
        last = json.loads(r.text.splitlines()[-1])
        assert (last["type"], last["data"]) == ("exit", 0), r.text
    elif bench.more:
        body, asked = r.json(), bench.more["json"]
        assert (body["metadata"], body["forkable"]) == (asked["metadata"], False), body
        now = get(bench.d, body["id"])
        assert now["allow"] == asked["egress"]["allow"] and now["inject"]["a.test"] == ["A"], now
        # Without a proxy nothing is reached, and the next connection starts one.
        if now["state"] != "failed":
            assert policies(bench.d)[-1]["inject"]["a.test"]["headers"] == {"A": "x" * 50}
    elif path == "/v1/sandboxes" and method == "get":
        assert r.json()["sandboxes"] == []
    elif tail == "" and method == "get":
        assert r.json()["id"] == bench.sid
    elif tail == "/fork":
        body = r.json()
        assert body["children"] == [body["results"][0]["id"]], body
    elif tail == "/files" and method == "get":
        assert r.content == b"data"
    elif tail == "/files" and method == "put":
        assert (bench.tmp / "put").read_bytes() == b"data"
    elif tail == "/files/list":
        assert {"f", "g", "h"} <= {os.path.basename(e["path"]) for e in r.json()["entries"]}
    elif tail == "/egress" and method == "put":
        assert bench.d.http.get(f"/v1/sandboxes/{bench.sid}/egress").json()["allow"] == ["a.test"]
    elif tail.endswith("/commands") and method == "get":
        assert r.json()["commands"] == [] or r.json()["commands"][0]["command_id"]


def judge(method: str, path: str, r: httpx.Response | None, bench: Bench) -> None:
    """What may come while memory is short."""
    if r is None:
        return
    if r.status_code < 400:
        right(method, path, r, bench)
        return
    code = r.json()["code"]
    assert r.status_code >= 500 and code in EXCUSES, f"{r.status_code} {r.text}"
    # The guest's agent, which did nothing wrong, is not to be blamed for it.
    assert "broke the protocol" not in r.text and "without a reason" not in r.text, r.text
    if code != "internal":
        check_answer(method, path, r)


@pytest.mark.parametrize("kind", [MEMORY, KERNEL], ids=["memory", "kernel"])
@pytest.mark.parametrize("method,path,more", CASES, ids=[f"{m}-{p}{'-rich' * bool(x)}" for m, p, x in CASES])
def test_each_failure_of_a_request(
    start: Callable[..., Daemon], tmp_path: Path, method: str, path: str, more: dict | None, kind: int
) -> None:
    """The first call fails, then the second instead, and so on until a request comes to its end before."""
    bench = Bench(start, tmp_path, path, more)
    d, fds, tried = bench.d, 0, 0
    n = 0
    while True:
        n += 3 if n > 25 and "SWEEP_ALL" not in os.environ else 1
        bench.prepare()
        makes = method == "post" and path in MADE
        before = bench.ids() if makes else set()
        bench.failing.arm(kind, n)
        hangs = False
        try:
            r = bench.ask(method)
        except httpx.TimeoutException:
            r, hangs = None, True
        seen, count = bench.failing.disarm()
        try:
            assert not hangs, f"no answer within {PATIENCE} s"
            bench.lives()
            if count == 0:
                assert r is not None
                right(method, path, r, bench)
                break
            judge(method, path, r, bench)
            if ON_ONE in path and (method, path) not in ENDING:
                assert bench.sid in bench.ids(), "the host's want of memory has ended a sandbox"
            if makes and r is not None and r.status_code >= 400:
                assert bench.ids() <= before, "made, and not told of"
        except (AssertionError, httpx.HTTPError) as e:
            got = f"{r.status_code} {r.text}" if r is not None and r.status_code != 101 else repr(r)
            raise AssertionError(
                f"call {n} ({seen} seen): {bench.failing.where(d)}\n{got}\n{e!r}\n{d.log_text()[-2000:]}"
            ) from e
        tried += 1
        if tried == 3:
            fds = bench.at_rest()
    print(f"{tried} calls failed, one at a time")
    if fds:
        assert bench.at_rest() <= fds


OTHERS = [
    (m, p) for m, p in OPERATIONS if p.startswith(ON_ONE) and "{other}" not in p and (m, p) != ("delete", ON_ONE)
]


class Pressure:
    """Clients that do anything to sandboxes of their own while memory is short."""

    def __init__(self, d: Daemon, where: Path) -> None:
        self.d, self.where = d, where
        self.over = threading.Event()
        self.answers: dict[str, int] = {}
        self.wrong: list[str] = []
        self.threads = [threading.Thread(target=self.client, args=(seed,)) for seed in range(4)]
        for t in self.threads:
            t.start()

    def call(self, c: httpx.Client, method: str, path: str, sid: str) -> httpx.Response | None:
        """One request: its answer is counted, and must be an excuse if it is none."""
        url = re.sub(r"\{(exec|context|command)_id\}", "c", path.replace("{id}", sid))
        more = request_of(method, path, str(self.where))
        try:
            if more.get("headers") is UPGRADE:
                with c.stream(method.upper(), url, **more) as r:
                    if r.status_code != 101:
                        r.read()
            else:
                r = c.request(method.upper(), url, **more)
        except (httpx.RemoteProtocolError, httpx.NetworkError):
            self.count("the connection ended")
            return None
        self.count(str(r.status_code))
        if r.status_code >= 500:
            assert r.json()["code"] in EXCUSES, f"{method} {path}: {r.status_code} {r.text}"
        elif r.status_code >= 400:  # what is not there, as it could not be made
            assert r.status_code in (404, 409, 429), f"{method} {path}: {r.status_code} {r.text}"
        elif r.status_code != 101:
            check_answer(method, path, r)
        return r

    def count(self, what: str) -> None:
        """One more of these."""
        self.answers[what] = self.answers.get(what, 0) + 1

    def client(self, seed: int) -> None:
        """A sandbox, some requests in it, its end; again."""
        rng = random.Random(seed)
        try:
            while not self.over.is_set():
                with httpx.Client(base_url=self.d.url, timeout=PATIENCE) as c:
                    made = self.call(c, "post", "/v1/sandboxes", "")
                    if made is None or made.status_code != 200:
                        continue
                    sid = made.json()["id"]
                    for _ in range(rng.randrange(1, 12)):
                        self.call(c, *rng.choice(OTHERS), sid)
                    self.call(c, "delete", ON_ONE, sid)
        except Exception as e:  # noqa: BLE001 - told by the test's own thread
            self.wrong.append(f"client {seed}: {type(e).__name__}: {e}")

    def end(self) -> None:
        """All clients have come to an end, in good order."""
        self.over.set()
        for t in self.threads:
            t.join(4 * PATIENCE)
        assert not any(t.is_alive() for t in self.threads), "a client waits"
        assert not self.wrong, self.wrong


@pytest.mark.parametrize("kind", [MEMORY, KERNEL], ids=["memory", "kernel"])
def test_each_failure_of_a_refusal(start: Callable[..., Daemon], tmp_path: Path, kind: int) -> None:
    bench = Bench(start, tmp_path, "")
    for method, path, status in REFUSED:
        count = n = 1
        while count:
            bench.failing.arm(kind, n)
            try:
                with httpx.Client(base_url=bench.d.url, timeout=PATIENCE) as c:
                    assert c.request(method, path).status_code in (status, 500)
            except (httpx.RemoteProtocolError, httpx.NetworkError):
                pass
            _, count = bench.failing.disarm()
            bench.lives()
            n += 1


@pytest.mark.parametrize("kinds", [MEMORY, KERNEL, MEMORY | KERNEL], ids=["memory", "kernel", "both"])
def test_many_failures_under_load(start: Callable[..., Daemon], tmp_path: Path, kinds: int) -> None:
    """At random one allocation in so many, then all for a moment, while clients work; then it is well."""
    bench = Bench(start, tmp_path, "")
    bench.prepare()
    fds = bench.at_rest()
    load = Pressure(bench.d, tmp_path)
    failed = 0
    for one_in in (1000, 100, 30, 8):
        bench.failing.arm(kinds, one_in=one_in)
        time.sleep(2)
        failed += bench.failing.disarm()[1]
        bench.failing.arm(kinds, 1, ALWAYS)
        time.sleep(0.3)
        failed += bench.failing.disarm()[1]
        bench.lives()
    load.end()
    print(f"{failed} calls failed; answers: {dict(sorted(load.answers.items()))}")
    assert failed > 50 and load.answers.get("200")
    bench.lives()
    wait_for(lambda: bench.d.http.post("/v1/sandboxes", json={}).status_code == 200, PATIENCE)
    sid = bench.d.create()
    assert bench.d.exec(sid, "")[-1]["data"] == 0
    assert bench.at_rest() <= fds


def test_who_waits_to_be_let_in(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """A connection that the kernel has no memory for is tried again now and then, not all the time."""
    bench = Bench(start, tmp_path, "")
    bench.failing.arm(KERNEL, 1, ALWAYS)
    answers: list[str] = []
    waits = threading.Thread(
        target=lambda: answers.append(httpx.get(f"{bench.d.url}/v1/healthz", timeout=PATIENCE).text)
    )
    waits.start()
    wait_for(lambda: bench.failing.counts()[1])
    time.sleep(1)
    failed = bench.failing.disarm()[1]
    waits.join()
    assert answers == ["ok"] and 2 <= failed < 1000, (answers, failed)


@pytest.mark.parametrize("kind", [MEMORY, KERNEL], ids=["memory", "kernel"])
def test_a_start_without_memory(tmp_path: Path, kind: int) -> None:
    """It begins to serve, or says what is missing; of many moments each call that fails is another."""
    failing = Failing(tmp_path / "failing")
    guest, vmm = make_guest(tmp_path / "guest"), tmp_path / "vmm"
    vmm.write_text("#!/bin/sh\nexit 1\n")
    vmm.chmod(0o755)
    argv = [DAEMON, "--addr", "127.0.0.1:0", "--state", str(tmp_path / "state"), "--guest", str(guest)]
    argv += ["--vmm", str(vmm), "--kvm", "/dev/null", "--pool", "0"]
    env = {"PATH": os.environ["PATH"], **failing.env}
    ready = failed = 0
    at = 1
    while True:
        failing.arm(kind, at)
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
            line = p.stdout.readline()
            seen, count = failing.disarm()
            if line:
                p.terminate()
            out, err = p.communicate(timeout=60)
        if line:
            ready += 1
            assert "ready on http://" in line and p.returncode == 0, (at, line, err)
        else:
            failed += 1
            assert p.returncode in (1, 2) and err.strip(), (at, p.returncode, err)
        assert "AddressSanitizer" not in err and "runtime error" not in err, (at, err)
        if count == 0:
            assert line, err
            break
        at += 1 + at // 12  # each of the first, fewer later
    print(f"of {seen} calls {ready + failed} failed, each in a start of its own: {failed} ended it")
    assert failed


@pytest.mark.bounds
@pytest.mark.skipif(SANITIZED, reason="the sanitizer takes terabytes of addresses for itself")
def test_no_address_space(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """The kernel gives a daemon that runs no page more (RLIMIT_AS), and then as many as it wants."""
    bench = Bench(start, tmp_path, "")
    bench.prepare()
    fds = bench.at_rest()
    pid = bench.d.proc.pid
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    load = Pressure(bench.d, tmp_path)
    refused = 0
    for _ in range(5):
        size = int(re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[1]) << 10
        resource.prlimit(pid, resource.RLIMIT_AS, (size, before[1]))
        # More than what its heap has free: it has to hold this as a whole.
        with httpx.Client(base_url=bench.d.url, timeout=PATIENCE) as c:
            try:
                r = c.post("/v1/sandboxes", content=b'{"metadata": {"k": "' + b"x" * ((4 << 20) - 99) + b'"}}')
                assert r.status_code in (400, 500), r.text  # with enough of it: metadata is too large
                refused += r.status_code == 500
            except (httpx.RemoteProtocolError, httpx.NetworkError):
                refused += 1
        time.sleep(0.5)
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        bench.lives()
    load.end()
    print(f"{refused} requests had no memory; answers: {dict(sorted(load.answers.items()))}")
    assert refused and load.answers.get("200")
    assert bench.d.exec(bench.d.create(), "")[-1]["data"] == 0
    assert bench.at_rest() <= fds
