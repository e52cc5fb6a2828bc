# SPDX-License-Identifier: Apache-2.0
"""Control groups of VMs and proxies: where they are made, who is in them, that nothing is left of them; hosts
that delegate none. Limits need controllers: tests/unit/test_cgroups.c has their values,
tests/e2e/box/cgroups.sh looks at a kernel that keeps them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

import pytest
from conftest import Daemon, start_in_vain, wait_for
from egress import ask, get, grant, mode, notes, wait_failed, wait_no_proxy

pytestmark = pytest.mark.usefixtures("needs_daemon")


def hierarchy() -> Path | None:
    """Where cgroup v2 is mounted, when this user may make groups there."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        where = Path(left.split()[4])
        if right.startswith("cgroup2 ") and os.access(where / "cgroup.procs", os.W_OK):
            return where
    return None


MOUNT = hierarchy()
START = "podflare-start"  # src/lib/cgroup2.h
needs_groups = pytest.mark.skipif(MOUNT is None, reason="no cgroup v2 that this user may write to")


@pytest.fixture
def place() -> Iterator[Path]:
    """A group that the daemon is started in; nothing may be left below it but what it says."""
    assert MOUNT
    path = MOUNT / f"podflare-test-{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir()
    yield path
    if (path / START).is_dir():
        (path / START).rmdir()
    (left,) = [d for d in path.iterdir() if d.is_dir()] or [None]
    if left:
        assert [d.name for d in left.iterdir() if d.is_dir()] == ["daemon"]
        wait_for(lambda: not (left / "daemon/cgroup.procs").read_text())
        (left / "daemon").rmdir()
        left.rmdir()
    path.rmdir()


def inside(place: Path) -> list[str]:
    """A prefix of a command: it is in this group from its start."""
    return ["sh", "-c", f'echo $$ >{place}/cgroup.procs && exec "$@"', "sh"]


def own(place: Path) -> Path:
    """The daemon's group."""
    (path,) = [d for d in place.iterdir() if d.is_dir() and d.name != START]
    return path


def groups(place: Path) -> dict[str, list[int]]:
    """Processes by group. One that is removed meanwhile is none."""
    found = {}
    for d in own(place).iterdir():
        with suppress(OSError):
            found[d.name] = [int(p) for p in (d / "cgroup.procs").read_text().split()]
    return found


def vms(place: Path) -> list[int]:
    """The process of each VM's group, of which there is one."""
    found = []
    for name, pids in groups(place).items():
        assert re.fullmatch(r"(vm|proxy)-\d+", name) or name == "daemon"
        if name.startswith("vm-"):
            (pid,) = pids
            found.append(pid)
    return sorted(found)


def alone(place: Path) -> list[int] | None:
    """The same; None while there are copies that are in the group of their original, and are to end."""
    with suppress(ValueError):
        return vms(place)
    return None


def of_sandbox(place: Path) -> Path:
    """The group of the youngest VM."""
    names = [name for name in groups(place) if name.startswith("vm-")]
    return own(place) / max(names, key=lambda name: int(name.removeprefix("vm-")))


@contextmanager
def stray_in(group: Path) -> Iterator[subprocess.Popen]:
    """A process that has no business there."""
    with subprocess.Popen(["sleep", "100"]) as stray:
        try:
            (group / "cgroup.procs").write_text(str(stray.pid))
            yield stray
        finally:
            stray.kill()


def vms_are(place: Path, n: int) -> None:
    """Groups come and go a moment after what they are for."""
    wait_for(lambda: sum(name.startswith("vm-") for name in groups(place)) == n)


def proxies(place: Path) -> list[list[int]]:
    """The processes of each proxy's group."""
    return sorted(pids for name, pids in groups(place).items() if name.startswith("proxy-"))


@needs_groups
def test_each_vm_has_one(place: Path, start: Callable[..., Daemon]) -> None:
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    daemon.templates_ready()
    vms_are(place, 1)
    assert groups(place)["daemon"] == [daemon.proc.pid]
    assert not (place / "cgroup.procs").read_text()
    assert "every virtual machine has a control group" in daemon.log_text()
    first = daemon.create()
    daemon.create()
    r = daemon.http.post(f"/v1/sandboxes/{first}/fork", json={"n": 5})
    assert r.status_code == 200, r.text
    assert vms(place) == sorted(daemon.children()) and len(vms(place)) == 8
    # What each takes of the processors is nobody else's to watch.
    made = [own(place), *(p for p in own(place).iterdir() if p.is_dir())]
    assert len(made) == 10 and {p.stat().st_mode & 0o777 for p in made} == {0o700}
    for sandbox in daemon.http.get("/v1/sandboxes").json()["sandboxes"]:
        assert daemon.http.delete(f"/v1/sandboxes/{sandbox['id']}").status_code == 204
    vms_are(place, 1)
    assert vms(place) == daemon.children()


@needs_groups
def test_many_at_once(place: Path, start: Callable[..., Daemon]) -> None:
    """More than are forked at a time, and they end while others are being moved."""
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    parent = daemon.create()
    for _ in range(2):
        r = daemon.http.post(f"/v1/sandboxes/{parent}/fork", json={"n": 20})
        ids = r.json()["children"]
        assert len(ids) == 20
        assert vms(place) == sorted(daemon.children())
        for sid in ids:
            daemon.http.delete(f"/v1/sandboxes/{sid}")
    vms_are(place, 2)
    assert daemon.exec(parent, "echo x")[0]["data"] == "x"


@needs_groups
@pytest.mark.parametrize("how", ["child-dies", "child-exits", "stray", "error"])
def test_forks_that_fail(place: Path, start: Callable[..., Daemon], how: str) -> None:
    daemon = start(
        mode=f"fork:{how}", prefix=inside(place), env={"PODFLARE_CGROUP": "groups"}
    )
    daemon.templates_ready()
    assert daemon.http.post("/v1/sandboxes", json={}).status_code >= 500
    # A template that died is made again at the next need.
    wait_for(lambda: sum(n != "daemon" for n in groups(place)) <= 1)


@needs_groups
def test_a_vmm_that_is_killed(place: Path, start: Callable[..., Daemon]) -> None:
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    daemon.create()
    vms_are(place, 2)
    os.kill(int((of_sandbox(place) / "cgroup.procs").read_text()), signal.SIGKILL)
    vms_are(place, 1)


@needs_groups
def test_after_kill_9(place: Path, start: Callable[..., Daemon]) -> None:
    """The next daemon of the same state removes them, and what may still be in there."""
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    daemon.create()
    left = own(place)
    group = of_sandbox(place)
    with stray_in(group) as stray:
        daemon.proc.kill()
        daemon.proc.wait()
        daemon.http.close()
        daemon.proc.stdout.close()
        daemon.log.close()
        assert (left / "vm-1").is_dir() and group.is_dir()
        daemon.start()
        assert stray.wait(10) == -signal.SIGKILL
    assert own(place) == left
    assert "control groups that a daemon before this one has left were removed" in daemon.log_text()
    daemon.create()
    vms_are(place, 2)
    assert vms(place) == sorted(daemon.children())


@needs_groups
def test_after_kill_9_with_controllers(place: Path, start: Callable[..., Daemon]) -> None:
    """Where a killed daemon has left controllers turned on nobody can be started in its group any more;
    below it there is a place for that, and what is found above is the same. (Where there are no
    controllers nothing is in the way, and the place is the same: tests/e2e/box/cgroups.sh has them.)"""
    (place / START).mkdir()
    daemon = start(prefix=inside(place / START), env={"PODFLARE_CGROUP": "groups"})
    daemon.create()
    left = own(place)
    assert groups(place)["daemon"] == [daemon.proc.pid] and len(vms(place)) == 2
    for _ in range(2):
        for group, name in product((place, left), sorted(controllers(place))):
            (group / "cgroup.subtree_control").write_text(f"+{name}")
        daemon.proc.kill()
        daemon.proc.wait()
        daemon.http.close()
        daemon.proc.stdout.close()
        daemon.log.close()
        refused = subprocess.run([*inside(place), "true"], capture_output=True, check=False).returncode
        assert bool(refused) == bool(controllers(place))
        daemon.start()
        assert own(place) == left and not (place / START / "cgroup.procs").read_text()
        assert "control groups that a daemon before this one has left were removed" in daemon.log_text()
        daemon.create()
        vms_are(place, 2)
        assert vms(place) == sorted(daemon.children())
    assert daemon.stop() == 0


@needs_groups
def test_no_room_for_a_group(place: Path, start: Callable[..., Daemon]) -> None:
    """Where no group can be made any more (EAGAIN, of all) a VM is refused, and nothing waits for it."""
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    sid = daemon.create()
    vms_are(place, 2)
    most = own(place) / "cgroup.max.descendants"
    most.write_text("3")  # those that there are, and the daemon's
    for _ in range(3):
        r = daemon.http.post("/v1/sandboxes", json={})
        assert r.status_code >= 500 and "control group could not be used" in r.text
        r = daemon.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 2})
        assert r.status_code >= 500 and "control group could not be used" in r.text
        assert daemon.exec(sid, "echo x")[0]["data"] == "x"
    wait_for(lambda: alone(place) == sorted(daemon.children()))
    most.write_text("max")
    daemon.create()
    assert len(vms(place)) == 3
    most.write_text("3")
    assert daemon.http.post("/v1/sandboxes", json={}).status_code >= 500
    assert daemon.stop() == 0


@needs_groups
def test_one_that_nobody_told_of(place: Path, start: Callable[..., Daemon]) -> None:
    """What a VM has left in its group goes with it."""
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    sid = daemon.create()
    vms_are(place, 2)
    with stray_in(of_sandbox(place)) as stray:
        assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
        assert stray.wait(10) == -signal.SIGKILL
    vms_are(place, 1)


@needs_groups
def test_each_proxy_has_one(place: Path, start: Callable[..., Daemon]) -> None:
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    sids = [daemon.create(egress=grant("allowed.test")) for _ in range(3)]
    assert not proxies(place)
    assert [ask(daemon, sid) for sid in sids] == ["allow"] * 3
    pids = [note["pid"] for note in notes(daemon, "pid")]
    wait_for(lambda: proxies(place) == sorted([pid] for pid in pids))
    assert groups(place)["daemon"] == [daemon.proc.pid] and len(vms(place)) == 4
    os.kill(pids[0], signal.SIGKILL)
    assert "signal 9" in wait_failed(daemon, sids[0])
    assert ask(daemon, sids[0]) == "allow", "the next one"
    wait_for(lambda: [[pids[0]] in proxies(place), len(proxies(place))] == [False, 3])
    daemon.http.delete(f"/v1/sandboxes/{sids[1]}")
    wait_for(lambda: len(proxies(place)) == 2)
    for sid in (sids[0], sids[2]):
        daemon.http.delete(f"/v1/sandboxes/{sid}")
    wait_no_proxy(daemon)
    wait_for(lambda: not proxies(place))


@needs_groups
@pytest.mark.parametrize("how", ["early", "exit"])
def test_a_proxy_that_ends_at_its_start(place: Path, start: Callable[..., Daemon], how: str) -> None:
    """Its end comes while it is moved, or before: it is reaped all the same, and what ends behind it, and
    its group goes."""
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    mode(daemon, how)
    sids = [daemon.create(egress=grant("allowed.test")) for _ in range(4)]
    known = len(daemon.children())
    for sid in sids:
        for _ in range(2):
            ask(daemon, sid)
        daemon.http.delete(f"/v1/sandboxes/{sid}")
    sid = daemon.create(egress=grant("allowed.test"))
    ask(daemon, sid)
    wait_failed(daemon, sid)
    wait_no_proxy(daemon)
    wait_for(lambda: len(daemon.children()) == known - 3)
    wait_for(lambda: not proxies(place))
    assert daemon.exec(sid, "echo x")[0]["data"] == "x"


@needs_groups
def test_no_room_for_a_proxy(place: Path, start: Callable[..., Daemon]) -> None:
    """One that gets no group lets nothing through, and its sandbox goes on."""
    daemon = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    sid = daemon.create(egress=grant("allowed.test"))
    vms_are(place, 2)
    most = own(place) / "cgroup.max.descendants"
    most.write_text("3")  # those that there are, and the daemon's
    ask(daemon, sid)
    assert "control group could not be used (the directory" in wait_failed(daemon, sid)
    wait_no_proxy(daemon)
    assert daemon.exec(sid, "echo x")[0]["data"] == "x"
    most.write_text("max")
    assert ask(daemon, sid) == "allow"
    assert get(daemon, sid)["state"] == "on" and len(proxies(place)) == 1


@needs_groups
def test_two_daemons_in_one_group(place: Path, start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Each keeps to its own: the second start kills nothing of the first."""
    a = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    sid = a.create()
    b = start(prefix=inside(place), env={"PODFLARE_CGROUP": "groups"})
    b.create()
    assert len([d for d in place.iterdir() if d.is_dir()]) == 2
    assert a.exec(sid, "echo x")[0]["data"] == "x"
    assert b.stop() == 0
    (gone,) = [d for d in place.iterdir() if d.is_dir() and not (d / "daemon/cgroup.procs").read_text()]
    (gone / "daemon").rmdir()
    gone.rmdir()


def refused(tmp_path: Path, prefix: list[str], **env: str) -> tuple[int, str]:
    return start_in_vain(tmp_path, prefix, "/bin/true", **env)


# Without a mount of the hierarchy there is none to be delegated.
UNMOUNTED = ["unshare", "-m", "sh", "-c", f'umount {MOUNT} && exec "$@"', "sh"]
needs_mounts = pytest.mark.skipif(
    MOUNT is None or subprocess.run([*UNMOUNTED, "true"], capture_output=True, check=False).returncode,
    reason="this user may not unmount the hierarchy",
)


@needs_mounts
def test_not_delegated(start: Callable[..., Daemon]) -> None:
    daemon = start(prefix=UNMOUNTED)
    daemon.create()
    lines = [line for line in daemon.log_text().splitlines() if "control group" in line]
    assert len(lines) == 1 and "no control groups, and no limits but their sizes" in lines[0]
    assert "no cgroup v2 that is mounted" in lines[0]


@needs_mounts
@pytest.mark.parametrize("word", ["require", "groups"])
def test_required_and_not_delegated(tmp_path: Path, word: str) -> None:
    code, text = refused(tmp_path, UNMOUNTED, PODFLARE_CGROUP=word)
    assert code == 1 and f"PODFLARE_CGROUP={word} asks for" in text and "ready" not in text
    assert "no cgroup v2 that is mounted" in text


def controllers(place: Path) -> set[str]:
    return set((place / "cgroup.controllers").read_text().split())


@needs_groups
def test_required_without_controllers(place: Path, tmp_path: Path) -> None:
    missing = [c for c in ("cpu", "memory", "pids") if c not in controllers(place)]
    if not missing:
        pytest.skip("all controllers are here")
    code, text = refused(tmp_path, inside(place), PODFLARE_CGROUP="require")
    assert code == 1 and f"these are not delegated: {' '.join(missing)}" in text
    assert not [d for d in place.iterdir() if d.is_dir()]


@needs_groups
def test_auto_without_controllers(place: Path, start: Callable[..., Daemon]) -> None:
    """Groups that limit nothing are not worth the time that a fork would wait for them."""
    if {"cpu", "memory", "pids"} & controllers(place):
        pytest.skip("there are controllers")
    daemon = start(prefix=inside(place))
    daemon.create()
    assert "these are not delegated: cpu memory pids" in daemon.log_text()
    assert not [d for d in place.iterdir() if d.is_dir()]
    assert str(daemon.proc.pid) in (place / "cgroup.procs").read_text().split()
    daemon.stop()


def test_off(start: Callable[..., Daemon]) -> None:
    daemon = start(env={"PODFLARE_CGROUP": "off"})
    daemon.create()
    assert "control group" not in daemon.log_text()


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PODFLARE_CGROUP": "yes"}, 'PODFLARE_CGROUP is "yes", not auto, require, groups or off'),
        ({"PODFLARE_CGROUP_IO_MIB": "0"}, "PODFLARE_CGROUP_IO_MIB"),
        ({"PODFLARE_CGROUP_IO_MIB": "fast"}, "PODFLARE_CGROUP_IO_MIB"),
    ],
)
def test_settings_that_are_none(tmp_path: Path, env: dict[str, str], says: str) -> None:
    code, text = refused(tmp_path, [], **env)
    assert code == 2 and says in text


def test_a_limit_that_cannot_be_kept(tmp_path: Path) -> None:
    env = {"PODFLARE_CGROUP": "off", "PODFLARE_CGROUP_IO_MIB": "10"}
    code, text = refused(tmp_path, [], **env)
    assert code == 1 and "needs control groups" in text
