# SPDX-License-Identifier: Apache-2.0
"""The jail of a VMM: what the kernel says of its processes and threads, and what happens to one
that tries what is not allowed (jail_probe.c), on the loop's thread and on a vCPU's; and the same of
a leaf, which is never forked and may do less."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from conftest import BUILD, BUSY, FORKED, LEAF, SERVES, Host, Vmm
from readable import PRIVATE, assert_others_are_readable, readable
from test_busy import works
from test_life import use_streams

PROBE = str(BUILD / "tests/vmm/vmm-jail-probe")
NEIGHBOURS = str(BUILD / "tests/vmm/vmm-jail-neighbours")
LISTING = (
    subprocess.run([PROBE], capture_output=True, text=True, check=False).stdout
    if os.path.exists(PROBE)
    else ""
)
LINES = [line.split() for line in LISTING.splitlines()]
NAMES: dict[str, list[str]] = {
    where: [n for w, n in LINES if w == where]
    for where in ("any", "vcpu", "unfiltered", "bare", "landlock")
}
WHERES = ["process", "vcpu", "leaf", "leaf-vcpu"]
# The rules in force, each as number-name-arguments.
RULES = {where: [n for w, n in LINES if w == f"{where}-rule"] for where in WHERES}
LANDLOCK = int(NAMES["landlock"][0]) if NAMES["landlock"] else 0

# Starts a program as an ordinary user, when we are root.
AS_USER = (
    ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
    if os.geteuid() == 0
    else ()
)

# What both may do, with the errno that it gives for descriptor 0, which is /dev/null.
ALLOWED = {
    "nothing": 0,
    "stream": 0,
    "ioctl-run": errno.ENOTTY,
    "ioctl-signal-msi": errno.ENOTTY,
    "send": errno.ENOTSOCK,
    "recv": errno.ENOTSOCK,
    "write": 0,
    "preadv": 0,
    "fdatasync": errno.EINVAL,
    "fallocate-punch": errno.ENODEV,
    "madvise-dontneed": 0,
    "futex-wake": 0,
}
# What only the process may do. The last two are refused in the way that libc expects.
PROCESS = {
    "ioctl-create-vm": errno.ENOTTY,
    "ioctl-create-vcpu": errno.ENOTTY,
    "ioctl-memory-region": errno.ENOTTY,
    "ioctl-set-msrs": errno.ENOTTY,
    "ioctl-set-cpuid2": errno.ENOTTY,
    "ioctl-msr-filter": errno.ENOTTY,
    "ioctl-enable-cap": errno.ENOTTY,
    "thread": 0,
    "prctl-name": 0,
    "prctl-death": 0,
    "recvmsg": errno.ENOTSOCK,
    "send-waiting": errno.ENOTSOCK,
    "eventfd": 0,
    "epoll_create": 0,
    "epoll_wait": errno.EINVAL,
    "read": 0,
    "pread": 0,
    "fcntl-getfl": 0,
    "fcntl-get-seals": errno.EINVAL,
    "fstat": 0,
    "close_range": 0,
    "mmap": 0,
    "mprotect": 0,
    "munmap": 0,
    "brk": 0,
    "madvise-dontfork": 0,
    "sigaction": 0,
    "gettid": 0,
    "getpid": 0,
    "tgkill": errno.EPERM if LANDLOCK >= 6 and os.geteuid() == 0 else None,
    "rseq": errno.EINVAL,
    "set_robust_list": 0,
    "exit_group": 0,
    "seccomp": errno.EINVAL,
    "clone3": errno.ENOSYS,
    "madvise-guard": errno.EINVAL,
}
# What would be done in the name of the test itself, or break the probe: see tests of forks.
NOT_IN_THE_PROCESS = {"clone-sibling", "clone-thread"}
# Of what only a process's first thread may do: what that of a leaf still may.
LEAF_TOO = {"recvmsg", "send-waiting", "epoll_wait", "read", "fstat", "exit_group"}
# What its vCPUs' threads do.
NOT_IN_A_LEAFS_LOOP = {"ioctl-run"}
# A kernel without the way of IA-32 into it lets nobody in there.
ABSENT = set() if ["foreign", "int80"] in LINES else {"int80"}
KILLED = [n for n in NAMES["any"] if n not in ALLOWED]


def probe(where: str, name: str) -> int:
    done = subprocess.run(
        [PROBE, where, name], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    assert done.returncode != 255, done.stderr
    return done.returncode


def test_the_lists_are_whole() -> None:
    assert len(KILLED) > 170
    assert set(NAMES["vcpu"]) == PROCESS.keys() | NOT_IN_THE_PROCESS
    assert ALLOWED.keys() <= set(NAMES["any"])
    assert {"int80", "x32"} <= set(KILLED)


@pytest.mark.parametrize("name", KILLED)
@pytest.mark.parametrize("where", WHERES)
def test_what_is_forbidden_kills(where: str, name: str) -> None:
    """The process, whose first thread goes on otherwise, or another one that it has."""
    assert probe(where, name) == -(signal.SIGSEGV if name in ABSENT else signal.SIGSYS)


@pytest.mark.parametrize("name", NAMES["vcpu"])
@pytest.mark.parametrize("where", ["vcpu", "leaf-vcpu"])
def test_what_is_forbidden_to_a_vcpu_kills(where: str, name: str) -> None:
    assert probe(where, name) == -signal.SIGSYS


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("where", WHERES)
def test_what_is_needed_works(where: str, name: str) -> None:
    """So that a probe that is killed was killed for what it did."""
    killed = where == "leaf" and name in NOT_IN_A_LEAFS_LOOP
    assert probe(where, name) == (-signal.SIGSYS if killed else ALLOWED[name])


@pytest.mark.parametrize("name", NAMES["vcpu"])
def test_what_a_leaf_may_no_more(name: str) -> None:
    """Of what the process may: test_what_the_process_needs_works."""
    assert probe("leaf", name) == (PROCESS[name] if name in LEAF_TOO else -signal.SIGSYS)


def number(rule: str) -> str:
    return rule.partition("-")[0]


def test_a_leaf_has_a_part_of_the_rules() -> None:
    for where, leaf, taken in (("process", "leaf", 60), ("vcpu", "leaf-vcpu", 2)):
        assert set(RULES[leaf]) < set(RULES[where])
        assert len(RULES[where]) - len(RULES[leaf]) >= taken


@pytest.mark.parametrize(
    "where,rule", [(w, r) for w in ("process", "vcpu") for r in RULES[w] if "-clone-" not in r]
)
def test_of_each_rule_what_becomes_of_it_in_a_leaf(where: str, rule: str) -> None:
    """The call that it allows is made: it kills a leaf from which the rule was taken, and nobody
    else. (Forks and threads, which cannot be made for nothing: below, and in tests of forks.)"""
    leaf = "leaf" if where == "process" else "leaf-vcpu"
    call = f"rule-{number(rule)}"
    assert probe(where, call) != -signal.SIGSYS
    assert (probe(leaf, call) == -signal.SIGSYS) == (rule not in RULES[leaf])


@pytest.mark.parametrize("rule", [r for r in RULES["process"] if "-clone-" in r])
def test_a_leaf_makes_no_process_and_no_thread(rule: str) -> None:
    assert rule not in RULES["leaf"]
    assert probe("leaf", f"rule-{number(rule)}") == -signal.SIGSYS


@pytest.mark.parametrize("where", WHERES)
def test_what_is_next_to_each_rule_kills(where: str) -> None:
    """With any bit changed that a rule compares; and each system call that no rule is about."""
    done = subprocess.run(
        [NEIGHBOURS, where],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    ((made, for_rules),) = re.findall(r"(\d+) calls, (\d+) for rules", done.stdout)
    # Of 64 bits some are not compared, or make another call that is allowed.
    assert int(for_rules) > 50 * sum(rule.count("-") > 1 for rule in RULES[where])
    assert int(made) - int(for_rules) > 500


@pytest.mark.parametrize("name", PROCESS)
def test_what_the_process_needs_works(name: str) -> None:
    expected = PROCESS[name]
    result = probe("process", name)
    assert result == expected or (expected is None and result >= 0)


# What Landlock refuses there: from which version of it on, and what comes of it without.
LANDLOCKED = {
    "read-file": (1, 0),
    "read-directory": (1, 0),
    "make-file": (1, 0),
    "run": (1, 0),
    "tcp-bind": (4, 0),
    "tcp-connect": (4, errno.ENETUNREACH),  # in a network of its own
    "signal-others": (6, 0),
}


@pytest.mark.parametrize("name", NAMES["unfiltered"])
def test_the_other_walls_hold_without_the_filter(name: str) -> None:
    """Landlock, no capabilities, limits: what a hole in the filter would still not give, in a root that
    is not empty either."""
    version, without = LANDLOCKED.get(name, (0, errno.EPERM))
    refusal = errno.EPERM if version in (0, 6) else errno.EACCES
    assert probe("unfiltered", name) == (refusal if LANDLOCK >= version else without)
    assert probe("neither", name) == without


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("name,result", [("nothing", 0), ("stream", 0), ("openat", -signal.SIGSYS)])
@pytest.mark.parametrize("where", WHERES)
def test_jail_of_an_ordinary_user(where: str, name: str, result: int) -> None:
    done = subprocess.run(
        [PROBE, where, name],
        user=12345,
        group=12345,
        extra_groups=[],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == result, done.stderr


@pytest.mark.parametrize("name", NAMES["bare"])
@pytest.mark.parametrize("before", [(), AS_USER] if AS_USER else [()], ids=len)
def test_no_path_is_left_without_filter_and_landlock(before: tuple[str, ...], name: str) -> None:
    """The empty root alone: as on a kernel without Landlock, and with a hole in the filter."""
    refusal = {
        "entries-of-root": 0,
        "make-in-root": errno.EROFS,
        "remount-root": errno.EPERM,
        "mount-proc": errno.EPERM,
        "change-root": errno.EPERM,
        "namespaces-again": 0,
    }
    done = subprocess.run(
        [*before, PROBE, "bare", name], stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert done.returncode == refusal.get(name, errno.ENOENT)


def test_the_list_of_paths_is_whole() -> None:
    assert len(NAMES["bare"]) >= 10


def status(path: Path) -> dict[str, str]:
    lines = (path / "status").read_text().splitlines()
    return {k: v.strip() for k, v in (line.split(":", 1) for line in lines)}


def filters(proc: Path) -> list[tuple[str, int]]:
    """Name and number of seccomp filters of each thread, but KVM's own, which run no code of ours."""
    tasks = [status(task) for task in (proc / "task").iterdir()]
    return sorted((t["Name"], int(t["Seccomp_filters"])) for t in tasks if t["Name"][:4] != "kvm-")


def check_process(vmm: Vmm, vcpus: int, leaf: bool = False) -> None:
    vmm.stats()
    proc = Path(f"/proc/{vmm.pid}")
    s = status(proc)
    assert s["NoNewPrivs"] == "1"
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(s[capabilities], 16) == 0
    for space in ("user", "net", "ipc", "uts", "mnt"):
        assert os.readlink(proc / "ns" / space) != os.readlink(f"/proc/self/ns/{space}")
    assert os.listdir(proc / "root/") == os.listdir(proc / "cwd/") == []
    assert os.readlink(proc / "cwd") == "/"
    (mount,) = (proc / "mountinfo").read_text().splitlines()
    assert mount.split()[4] == "/" and " - tmpfs " in mount
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(mount.split()[5].split(","))
    limits = {
        line[:25].strip(): line[25:].split()[:2]
        for line in (proc / "limits").read_text().splitlines()[1:]
    }
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"][1] == "1024"
    assert limits["Max file size"][1] == str(64 << 30)
    assert all(status(t)["NoNewPrivs"] == "1" for t in (proc / "task").iterdir())
    # One of the process, one more in each vCPU's thread once it has begun; and in a leaf's first.
    wanted = [("vmm-still", 1 + leaf), *((f"vcpu{i}", 2) for i in range(vcpus))]
    if leaf:  # from before its guest ran
        assert filters(proc) == sorted(wanted)
    deadline = time.monotonic() + 20
    while filters(proc) != sorted(wanted):
        assert time.monotonic() < deadline, filters(proc)
        time.sleep(0.005)


@pytest.mark.parametrize("before", [(), AS_USER] if AS_USER else [()], ids=len)
def test_of_a_machine_and_of_its_copies(host: Host, before: tuple[str, ...]) -> None:
    vmm = host.booted(vcpus=2, before=before)
    check_process(vmm, 2)
    child = vmm.fork()
    check_process(child, 2)
    vmm.pause()
    grandchild = child.fork()
    check_process(grandchild, 2)


# What of /proc/PID an ordinary user may read of his own processes, unless they are not dumpable. (To
# open mem takes Yama's leave as well.)


def test_its_own_user_cannot_look_into_it(host: Host) -> None:
    """Not dumpable: neither a VMM nor its copies, as an ordinary user's. One of his other processes
    shows that he could."""
    names = (*PRIVATE, "fd/")
    assert_others_are_readable(AS_USER, names)
    vmm = host.booted(before=AS_USER)
    child = vmm.fork()
    leaf = vmm.fork(LEAF)
    for one in (vmm, child, leaf):
        one.stats()
        assert int(status(Path(f"/proc/{one.pid}"))["Uid"].split()[0]) == (os.geteuid() or 12345)
        assert readable(AS_USER, one.pid, names) == []


@pytest.mark.parametrize("paused", [False, True], ids=["live", "paused"])
def test_of_leaves(host: Host, paused: bool) -> None:
    vmm = host.booted(vcpus=2)
    if paused:
        vmm.pause()
    check_process(vmm.fork(LEAF), 2, leaf=True)
    check_process(vmm.fork(), 2)
    check_process(vmm, 2)


@pytest.mark.parametrize("paused", [False, True], ids=["live", "paused"])
@pytest.mark.parametrize("guest", [SERVES, BUSY], ids=["serves", "busy"])
def test_a_leaf_looks_into_no_ring_before_it_is_in_its_jail(
    host: Host, guest: int, paused: bool
) -> None:
    """What the guest has left in the rings of its devices is read by the loop of a copy when it takes
    them over. That of a leaf dies there of a call that other loops may make, so it is in its jail."""
    host.plan.guest = guest
    vmm = host.booted(vcpus=2)
    if guest == BUSY:
        works(vmm)
    else:
        use_streams(vmm)
    if paused:
        vmm.pause()
    host.plan.rings = 1
    vmm.fork().end()
    assert host.plan.looks > 0
    host.plan.looks = 0
    leaf = vmm.start_fork(code=LEAF)
    pid = vmm.expect(FORKED).value[0]
    assert leaf.receive() is None
    assert os.WTERMSIG(host.reap(pid)) == signal.SIGSYS
    assert host.plan.looks == 1
    host.plan.rings = 0
    vmm.fork(LEAF).end()


def test_limits_that_are_lower_stay(host: Host) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        vmm = host.booted()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert resource.prlimit(vmm.pid, resource.RLIMIT_NOFILE) == (200, 1024)
