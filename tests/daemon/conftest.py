"""podflared with fake VMMs, for tests that need no virtual machine.

The binary is $PODFLARED, by default podflared in $PODFLARE_BUILD or build/. One
that was built with AddressSanitizer is recognised: bounds on memory and time
are wider then, and what the sanitizers report fails the test. Every test gets a
daemon of its own; ports are chosen by the kernel.
"""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = Path(os.environ.get("PODFLARE_BUILD", ROOT / "build")).resolve()
# What a template without a size of its own gives its sandboxes.
VCPUS = min(2, len(os.sched_getaffinity(0)))
DAEMON = os.environ.get("PODFLARED", str(BUILD / "podflared"))
SANITIZED = os.path.exists(DAEMON) and b"__asan_init" in Path(DAEMON).read_bytes()
# The sanitizer for threads has threads of its own: then they are not counted.
TSAN = os.path.exists(DAEMON) and b"__tsan_init" in Path(DAEMON).read_bytes()


def make_guest(where: Path) -> Path:
    """A directory with files that pass the daemon's checks of a guest."""
    where.mkdir()
    (where / "vmlinux").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(1000))
    (where / "initramfs.cpio").write_bytes(b"070701" + bytes(500))
    erofs = bytearray(3 << 20)
    struct.pack_into("<I", erofs, 1024, 0xE0F5E1E2)
    erofs[1024 + 12] = 12
    struct.pack_into("<I", erofs, 1024 + 36, len(erofs) // 4096)
    (where / "rootfs.erofs").write_bytes(bytes(erofs))
    return where


class Daemon:
    """A running podflared."""

    def __init__(
        self,
        tmp: Path,
        mode: str = "normal",
        env: dict[str, str] | None = None,
        args: list[str] | None = None,
        guest: Path | None = None,
        prefix: list[str] | None = None,
        inert: Path | None = None,
    ) -> None:
        self.tmp = tmp
        self.state = tmp / "state"
        self.prefix = prefix or []
        self.log_path = tmp / "log"
        self.guest = guest or make_guest(tmp / "guest")
        vmm = tmp / "vmm"
        # Files are changed in pytest's own directory only; by requests that are made up (inert) in
        # one that they may have, and nothing is run.
        limits = f"--files='{inert}' --inert" if inert else f"--files='{tmp.parent}'"
        vmm.write_text(f"#!/bin/sh\nexec {HERE}/fake_vmm.py '--mode={mode}' {limits} \"$@\"\n")
        vmm.chmod(0o755)
        self.env = {"PATH": os.environ["PATH"], **(env or {})}
        for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "LSAN_OPTIONS", "TSAN_OPTIONS"):
            if name in os.environ:
                self.env.setdefault(name, os.environ[name])
        self.argv = [DAEMON, "--addr", "127.0.0.1:0", "--state", str(self.state)]
        self.argv += ["--guest", str(self.guest), "--vmm", str(vmm), "--kvm", "/dev/null"]
        self.proxies = tmp / "proxies"
        self.proxies.mkdir(exist_ok=True)
        proxy = tmp / "proxy"
        proxy.write_text(f"#!/bin/sh\nexec {HERE}/fake_egress.py '--dir={self.proxies}' \"$@\"\n")
        proxy.chmod(0o755)
        self.argv += ["--egress", str(proxy), "--groups", str(ROOT / "src" / "egress" / "groups.json")]
        # Without a pool what runs is only what was asked for.
        self.argv += ["--pool", "0", *(args or [])]
        self.start()

    def start(self) -> None:
        """Starts it and waits for its ready line."""
        self.log = open(self.log_path, "ab")
        self.proc = subprocess.Popen(
            [*self.prefix, *self.argv], env=self.env, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        line = self.proc.stdout.readline()
        m = re.fullmatch(
            r"podflared: ready on (http://127\.0\.0\.1:(\d+)) \(start to ready \d+ ms\)\n", line
        )
        assert m, f"{line!r}, log: {self.log_text()}"
        self.url, self.port = m[1], int(m[2])
        self.http = httpx.Client(base_url=self.url, timeout=60)

    def log_text(self) -> str:
        """What it has logged."""
        return self.log_path.read_text()

    def stop(self, sig: int = signal.SIGTERM, timeout: float = 20) -> int:
        """Ends it by a signal: its exit status."""
        self.http.close()
        if self.proc.poll() is None:
            self.proc.send_signal(sig)
        code = self.proc.wait(timeout)
        self.proc.stdout.close()
        self.log.close()
        return code

    def create(self, **body: Any) -> str:
        """A new sandbox's id."""
        r = self.http.post("/v1/sandboxes", json=body)
        assert r.status_code == 200, r.text
        return r.json()["id"]

    def templates_ready(self) -> None:
        """Waits for the template that is made at the start."""

        def ready() -> bool:
            vms = self.http.get("/v1/templates").json()["templates"][0]["vms"]
            return [v["state"] for v in vms] == ["ready"]

        wait_for(ready)

    def children(self) -> list[int]:
        """Child processes, zombies included."""
        args = ["ps", "-o", "pid=", "--ppid", str(self.proc.pid)]
        out = subprocess.run(args, capture_output=True, check=False)
        return [int(x) for x in out.stdout.split()]

    def exec(self, sid: str, code: str, language: str = "bash", **body: Any) -> list[dict]:
        """All events of a command."""
        body = {"code": code, "language": language, **body}
        r = self.http.post(f"/v1/sandboxes/{sid}/exec", json=body)
        assert r.status_code == 200, r.text
        assert r.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in r.text.split("\n")[:-1]]

    def info(self, sid: str) -> dict:
        """What the fake VMM says about itself."""
        lines = self.exec(sid, "#fake:info")[:-1]
        return json.loads("".join(e["data"] for e in lines))

    def rss_kib(self) -> int:
        """Resident memory."""
        text = Path(f"/proc/{self.proc.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1])

    def cpu_ticks(self) -> int:
        """Processor time used."""
        fields = Path(f"/proc/{self.proc.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def comes_to_rest(self, ticks: int = 5) -> None:
        """It sleeps, and does not spin: there is a second soon in which it uses no more than that."""
        end = time.monotonic() + 30
        while True:
            before = self.cpu_ticks()
            time.sleep(1)
            used = self.cpu_ticks() - before
            if used <= ticks:
                return
            assert time.monotonic() < end, f"it used {used} ticks of the processor in a second"

    def threads(self) -> int:
        """Its threads: one, and one more while the image of a template is being read."""
        return len(os.listdir(f"/proc/{self.proc.pid}/task"))

    def fds(self) -> int:
        """Open descriptors. It is not dumpable: to others than root it has to tell them itself."""
        try:
            return len(os.listdir(f"/proc/{self.proc.pid}/fd"))
        except PermissionError:
            keys = self.env.get("PODFLARE_API_KEYS", "").split(",")
            head = {"Authorization": f"Bearer {keys[0]}"} if keys[0] else {}
            text = self.http.get("/v1/metrics", headers=head).text
            return int(re.search(r"^process_open_fds (\d+)$", text, re.M)[1])


def stdout_of(events: list[dict]) -> str:
    """Standard output of plain events, lines joined."""
    return "\n".join(e["data"] for e in events if e["type"] == "stdout")


def at_once(d: Daemon, n: int, **body: Any) -> list[httpx.Response]:
    """Creates side by side."""
    with ThreadPoolExecutor(n) as pool:
        calls = [
            pool.submit(httpx.post, f"{d.url}/v1/sandboxes", json=body, timeout=60)
            for _ in range(n)
        ]
        return [c.result() for c in calls]


def wait_for(what: Callable[[], Any], seconds: float = 10) -> Any:
    """Waits until what() is true: its value."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)
    return value


def all_read(d: Daemon) -> None:
    """The daemon has read what was sent, so that none of it meets what is sent next."""

    def empty() -> bool:
        lines = [x.split() for x in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ours = [x for x in lines if f":{d.port:04X}" in (x[1][-5:], x[2][-5:]) and x[3] == "01"]
        return all(x[4] == "00000000:00000000" for x in ours)

    wait_for(empty, 60)


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker of tests that measure memory, processor time or delays."""
    config.addinivalue_line("markers", "bounds: measures; run it also without sanitizers")


def starting(factory: pytest.TempPathFactory) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons; they must all end well when the test, or the file of tests, is over."""
    daemons: list[Daemon] = []

    def start_one(**kw: Any) -> Daemon:
        daemons.append(Daemon(factory.mktemp("daemon"), **kw))
        return daemons[-1]

    yield start_one
    for d in daemons:
        killed = d.proc.poll() == -signal.SIGKILL
        code = d.stop()
        log = d.log_text()
        assert killed or code == 0, log
        assert "ERROR: AddressSanitizer" not in log and "runtime error:" not in log, log
        assert "LeakSanitizer" not in log and "ThreadSanitizer" not in log, log


def start_in_vain(tmp_path: Path, prefix: list[str], vmm: str, **env: str) -> tuple[int, str]:
    """A daemon that does not start, behind a command that starts it: status and what it said."""
    argv = [*prefix, DAEMON, "--addr", "127.0.0.1:0", "--state", str(tmp_path / "state")]
    done = subprocess.run(
        [*argv, "--guest", str(make_guest(tmp_path / "guest")), "--vmm", vmm],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons of one test."""
    yield from starting(tmp_path_factory)


@pytest.fixture(scope="module")
def start_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons that all tests of a file share."""
    yield from starting(tmp_path_factory)


@pytest.fixture
def daemon(start: Callable[..., Daemon]) -> Daemon:
    """One daemon with fake VMMs that behave."""
    return start()


@pytest.fixture(autouse=True)
def needs_daemon() -> None:
    """Without the binary there is nothing to test."""
    assert shutil.which(DAEMON), f"{DAEMON} is not built"
