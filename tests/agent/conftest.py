# SPDX-License-Identifier: Apache-2.0
"""Fixtures: the agent as an ordinary process (harness.c) in a directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agent_client import Stream  # noqa: E402

SOURCE = Path(__file__).resolve().parents[2]
REPL = SOURCE / "guest" / "repl" / "repl.py"
PODFLARE_MODULE = (
    SOURCE / "guest" / "images" / "default" / "files" / "usr" / "lib" / "python3.11" / "podflare.py"
)
HARNESS = os.environ.get(
    "AGENT_HARNESS", str(SOURCE / "build" / "tests" / "agent" / "agent-harness")
)
ROOT = os.geteuid() == 0


def cgroup_base() -> Path | None:
    """A place where a cgroup v2 directory can be made."""
    for base in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        probe = base / f"podflare-probe-{os.getpid()}"
        if not (base / "cgroup.procs").exists():
            continue
        try:
            probe.mkdir()
            usable = (probe / "cgroup.kill").exists() and (probe / "cgroup.freeze").exists()
            probe.rmdir()
        except OSError:
            continue
        if usable:
            return base
    return None


class Agent:
    """A running harness."""

    def __init__(self, script: Path = REPL, layers: tuple[Path, Path, Path] | None = None) -> None:
        """Starts it; ready when the constructor returns. layers: image, upper, both together."""
        self.dir = Path(tempfile.mkdtemp(prefix="podflare-agent-"))
        self.dir.chmod(0o755)
        self.home = self.dir / "home"
        self.home.mkdir()
        if ROOT:
            os.chown(self.home, 1000, 1000)
        shutil.copy(PODFLARE_MODULE, self.home)
        # The interpreter's sources must be readable for uid 1000 wherever the tree lies.
        self.repl = self.dir / "repl"
        if script == REPL:
            shutil.copytree(REPL.parent, self.repl, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            self.repl.mkdir()
            shutil.copy(script, self.repl / script.name)
        self.socket = str(self.dir / "socket")
        self.make_cgroup()
        self.etc = self.dir / "etc"
        self.hooks = self.etc / "podflare" / "on-fork.d"
        self.hooks.mkdir(parents=True)
        self.log = self.dir / "log"
        with self.log.open("wb") as log:
            self.proc = subprocess.Popen(
                [HARNESS, self.socket, str(self.cgroup or "-"), str(self.repl / script.name)]
                + [str(self.home), str(self.etc), str(self.dir)]
                + [str(layer) for layer in layers or ()],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        wait_for(self._answers, "the agent to listen")

    def make_cgroup(self) -> None:
        """Chooses its cgroup, which it makes itself."""
        base = cgroup_base()
        self.cgroup: Path | None = None
        if base:
            self.cgroup = base / f"podflare-test-{os.getpid()}-{self.dir.name[-8:]}"

    def _answers(self) -> bool:
        assert self.proc.poll() is None, self.log.read_text()
        try:
            Stream(self.socket).close()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def stream(self, timeout: float = 30.0) -> Stream:
        """A new stream."""
        return Stream(self.socket, timeout)

    def hook(self, name: str, text: str) -> None:
        """Installs a hook, run by the shell."""
        path = self.hooks / name
        path.write_text("#!/bin/sh\n" + text)
        path.chmod(0o755)

    def groups(self) -> list[Path]:
        """The cgroups of user processes."""
        return sorted(self.cgroup.glob("*/")) if self.cgroup else []

    def switches(self) -> int:
        """How often the agent has gone to sleep so far."""
        return switches(self.proc.pid)

    def rss_kib(self, field: str = "VmRSS") -> int:
        """Resident memory of the agent (VmHWM: the most it has been)."""
        for line in Path(f"/proc/{self.proc.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        raise AssertionError(field)

    def grown(self, kib: int, field: str = "VmRSS") -> bool:
        """Whether it has more memory than that; a sanitizer keeps what was freed, and is not asked."""
        sanitized = b"libasan" in Path(f"/proc/{self.proc.pid}/maps").read_bytes()
        return not sanitized and self.rss_kib(field) > kib

    def fds(self) -> int:
        """Open descriptors of the agent."""
        return len(os.listdir(f"/proc/{self.proc.pid}/fd"))

    def stop(self) -> None:
        """Ends it with all its processes; fails if it had died or a sanitizer complained."""
        status = self.proc.poll()
        self.proc.terminate()  # first: it would start another session for one that is killed
        self.proc.wait()
        if self.cgroup and (self.cgroup / "cgroup.kill").exists():
            (self.cgroup / "cgroup.kill").write_text("1")  # also what is frozen
            wait_for(self._remove_cgroup, "the cgroup to become empty")
        log = self.log.read_text(errors="replace")
        shutil.rmtree(self.dir, ignore_errors=True)
        assert status is None, f"the agent ended with {status}: {log}"
        assert "Sanitizer" not in log and "runtime error" not in log, log

    def _remove_cgroup(self) -> bool:
        assert self.cgroup is not None
        for path in [*self.cgroup.glob("*/"), self.cgroup]:
            try:
                path.rmdir()
            except OSError:
                return False
        return True


def switches(pid: int) -> int:
    """How often all threads of a process have gone to sleep so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


def wait_for(check: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """Waits until check() is true."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def agent() -> Iterator[Agent]:
    """One agent for the tests of a module."""
    a = Agent()
    yield a
    a.stop()


@pytest.fixture
def own_agent() -> Iterator[Agent]:
    """An agent of the test's own."""
    a = Agent()
    yield a
    a.stop()


@pytest.fixture
def own(own_agent: Agent) -> Agent:
    """One whose session is ready, to be made a copy of (copies.py)."""
    with own_agent.stream() as s:
        assert s.python("import podflare, random, time, subprocess, os").code == 0
    return own_agent


@pytest.fixture
def stream(agent: Agent) -> Iterator[Stream]:
    """A stream to the module's agent."""
    with agent.stream() as s:
        yield s


@pytest.fixture
def stub_agent(tmp_path: Path) -> Iterator[Callable[[str], Agent]]:
    """Makes agents whose REPL is the given Python source."""
    agents: list[Agent] = []

    def make(source: str) -> Agent:
        script = tmp_path / "stub.py"
        script.write_text(STUB_HEAD + source)
        agents.append(Agent(script))
        return agents[-1]

    yield make
    for a in agents:
        a.stop()


# What the stubs share: frames over the control socket.
STUB_HEAD = """
import json, os, signal, socket, struct, sys, time
ctl = socket.socket(fileno=int(os.environ["REPL_CTL"]))
def send(kind, payload=b""):
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    ctl.sendall(struct.pack("<IB3x", len(data), kind) + data)
def recv():
    head = ctl.recv(8, socket.MSG_WAITALL)
    if len(head) < 8: sys.exit(0)
    n, kind = struct.unpack("<IB3x", head)
    return kind, ctl.recv(n, socket.MSG_WAITALL) if n else b""
def cell():
    code = b""
    while True:
        kind, payload = recv()
        if kind == 6: code += payload
        if kind == 7: return code.decode()
EXIT, OK, EVENT, READY = 0x83, 0x86, 0x89, 0x8a
"""
