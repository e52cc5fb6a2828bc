# SPDX-License-Identifier: Apache-2.0
"""Processes that root has taken out of the agent's groups stand still with all others.

The agent's group is one below a group of the test's own, which plays the one at the top."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from agent_client import ERROR, FREEZE, THAW
from conftest import ROOT, Agent, cgroup_base, wait_for
from copies import freeze, renew, stands_still, ticks

pytestmark = pytest.mark.skipif(not (ROOT and cgroup_base()), reason="needs root and cgroups")


def remove(group: Path) -> bool:
    """Removes a group with all that are inside; False when one has processes."""
    try:
        for path in [*sorted(group.rglob("*/"), reverse=True), group]:
            path.rmdir()
    except OSError:
        return False
    return True


class Below(Agent):
    """Its group is not at the top."""

    def make_cgroup(self) -> None:
        base = cgroup_base()
        assert base
        self.top = base / f"podflare-test-{os.getpid()}-{self.dir.name[-8:]}"
        self.top.mkdir()
        self.cgroup = self.top / "podflare"
        self.strangers: list[subprocess.Popen[bytes]] = []

    def run_in(self, group: Path, name: str) -> Path:
        """A process that ticks, in that group."""
        file = self.dir / name
        child = subprocess.Popen(
            ["/bin/sh", "-c", f"while :; do echo x >>{file}; sleep 0.01; done"], start_new_session=True
        )
        self.strangers.append(child)
        (group / "cgroup.procs").write_text(str(child.pid))
        wait_for(lambda: ticks(file), name)
        return file

    def group(self, path: str) -> Path:
        """A new group below the top."""
        (self.top / path).mkdir()
        return self.top / path

    def where(self, n: int) -> str:
        """The group of a stranger, below the top."""
        text = Path(f"/proc/{self.strangers[n].pid}/cgroup").read_text()
        own = [line for line in text.splitlines() if line.startswith("0::")][0]
        return own.partition(self.top.name)[2]

    def stop(self) -> None:
        for path in sorted(self.top.rglob("cgroup.freeze")):
            path.write_text("0")
        for child in self.strangers:
            child.kill()
            child.wait()
        try:
            super().stop()
        finally:
            (self.top / "cgroup.kill").write_text("1")
            wait_for(lambda: remove(self.top), "the groups to become empty")

    def _remove_cgroup(self) -> bool:
        assert self.cgroup
        return remove(self.cgroup)


@pytest.fixture
def below(monkeypatch: pytest.MonkeyPatch) -> Iterator[Below]:
    """Such an agent, whose session is ready."""
    make = Below.make_cgroup

    def made(self: Below) -> None:
        make(self)
        monkeypatch.setenv("HARNESS_CGROUP_TOP", str(self.top))

    monkeypatch.setattr(Below, "make_cgroup", made)
    a = Below()
    with a.stream() as s:
        assert s.python("import podflare, random, time, subprocess, os").code == 0
    yield a
    a.stop()


def thaw(agent: Agent) -> None:
    with agent.stream() as s:
        assert s.ask(THAW) == {}


def session_of(agent: Agent) -> int:
    with agent.stream() as s:
        return int(s.python("print(__import__('os').getpid())").stdout)


def test_in_the_top_group(below: Below) -> None:
    file = below.run_in(below.top, "t")
    for _ in range(3):
        freeze(below)
        assert stands_still(file)
        thaw(below)
        assert not stands_still(file)
    assert below.where(0) == ""
    assert not [g for g in below.groups() if "strays" in g.name]


def test_in_a_group_beside(below: Below) -> None:
    """And in one below that; the latter's processes must not run while the session is renewed."""
    other = below.group("docker")
    files = [below.run_in(other, "a"), below.run_in(below.group("docker/c1"), "b")]
    freeze(below)
    assert all(map(stands_still, files))
    thaw(below)
    assert not any(map(stands_still, files))
    assert (other / "cgroup.freeze").read_text() == "0\n"
    assert (below.where(0), below.where(1)) == ("/docker", "/docker/c1")


def test_groups_that_were_frozen_stay_so(below: Below) -> None:
    other = below.group("paused")
    file = below.run_in(other, "t")
    (other / "cgroup.freeze").write_text("1")
    wait_for(lambda: stands_still(file), "the group")
    freeze(below)
    assert renew(below) == {}
    assert stands_still(file) and (other / "cgroup.freeze").read_text() == "1\n"


def test_empty_groups_are_in_nobodys_way(below: Below) -> None:
    below.group("a")
    below.group("a/b")
    freeze(below)
    assert renew(below) == {}


def test_until_the_renewal_is_done(below: Below) -> None:
    """Also in a group inside of the session's, which is thawed for its handler."""
    pid = session_of(below)
    path = Path(f"/proc/{pid}/cgroup").read_text().split("0::")[1].split()[0]
    inner = below.group(path.partition(below.top.name)[2].lstrip("/") + "/inner")
    files = [below.run_in(g, n) for g, n in ((below.top, "a"), (below.group("x"), "b"), (inner, "c"))]
    log = below.home / "log"
    with below.stream() as s:
        r = s.python(
            "def renew(g):\n"
            f"    def count(): return [len(open(f).readlines()) for f in {[str(f) for f in files]!r}]\n"
            "    before = count(); time.sleep(0.3)\n"
            f"    open({str(log)!r}, 'a').write(f'{{count() == before}}\\n')\n"
            "podflare.on_fork(renew);"
        )
        assert r.code == 0, r.stderr
    for n in (1, 2):
        freeze(below)
        assert all(map(stands_still, files))
        assert renew(below, generation=n) == {}
        assert not any(map(stands_still, files))
    assert log.read_text() == "True\nTrue\n"
    assert (below.where(0), below.where(1)) == ("", "/x") and below.where(2).endswith("/inner")
    assert (inner / "cgroup.freeze").read_text() == "0\n"


def test_a_renewal_that_fails(below: Below) -> None:
    """They stay frozen, and go on with the one that succeeds."""
    files = [below.run_in(below.top, "a"), below.run_in(below.group("x"), "b")]
    below.hook("10-bad", "exit 1")
    freeze(below)
    assert "10-bad" in str(renew(below)["message"])
    assert all(map(stands_still, files))
    below.hook("10-bad", "true")
    assert renew(below) == {}
    assert not any(map(stands_still, files))


@pytest.mark.parametrize("where", ["top", "beside"])
def test_the_session_itself(below: Below, where: str) -> None:
    """It is renewed wherever root has moved it."""
    pid = session_of(below)
    group = below.top if where == "top" else below.group("x")
    (group / "cgroup.procs").write_text(str(pid))
    with below.stream() as s:
        s.python("state = random.getstate()\npodflare.on_fork(lambda g: None);")
    freeze(below)
    assert renew(below) == {}
    with below.stream() as s:
        assert s.python("print(random.getstate() == state)").stdout == b"False\n"
    assert session_of(below) == pid


def test_who_makes_others_all_the_time(below: Below) -> None:
    """Processes that start others, in the top group and in groups beside, are all caught."""
    file = below.dir / "bomb"
    text = (
        f"while :; do (echo x >>{file}) & (mkdir -p {below.top}/g$((i % 5)); "
        f"sh -c 'echo $$ >{below.top}/g'$((i % 5))'/cgroup.procs; echo x >>{file}; sleep 0.02') & "
        "i=$((i + 1)); sleep 0.003; done"
    )
    child = subprocess.Popen(["/bin/sh", "-c", text], start_new_session=True, stderr=subprocess.DEVNULL)
    below.strangers.append(child)
    (below.top / "cgroup.procs").write_text(str(child.pid))
    wait_for(lambda: ticks(file) > 20, "the processes")
    for _ in range(3):
        freeze(below)
        assert stands_still(file)
        thaw(below)
        assert not stands_still(file)
    child.kill()


def test_one_that_cannot_be_stopped(below: Below) -> None:
    """FREEZE is refused then, and everything goes on. (Here no group can be made for it.)"""
    file = below.run_in(below.top, "t")
    assert below.cgroup
    (below.cgroup / "cgroup.max.descendants").write_text(str(len(below.groups())))
    with below.stream() as s:
        s.send(FREEZE, {})
        error = s.recv_json(ERROR)
        assert error["code"] == "io_error" and "outside" in str(error["message"])
        assert s.status()["frozen"] is False
    assert not stands_still(file)
    (below.cgroup / "cgroup.max.descendants").write_text("max")
    freeze(below)
    assert stands_still(file)
    thaw(below)


def test_nothing_is_left(below: Below) -> None:
    below.run_in(below.top, "a")
    below.run_in(below.group("x"), "b")
    freeze(below)
    assert renew(below) == {}
    fds, groups = below.fds(), len(below.groups())
    for n in range(20):
        freeze(below)
        assert renew(below, generation=n) == {}
    wait_for(lambda: len(below.groups()) == groups, "empty groups to go")
    # A stream of ours may be closed there a moment later.
    wait_for(lambda: below.fds() <= fds, "descriptors to go")


def test_of_signals_in_between(below: Below) -> None:
    """One that is killed while it is frozen is in nobody's way."""
    below.run_in(below.top, "t")
    freeze(below)
    os.kill(below.strangers[0].pid, signal.SIGKILL)
    below.strangers[0].wait()
    assert renew(below) == {}
