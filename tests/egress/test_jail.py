# SPDX-License-Identifier: Apache-2.0
"""The jail: what the kernel says of the process, and what happens to one that tries to leave it."""

from __future__ import annotations

import errno
import os
import pwd
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BUILD, PROXY, Proxy, plain_only, recv_exactly, until
from servers import Tcp

pytestmark = [plain_only, pytest.mark.plain]

PROBE = str(BUILD / "tests/egress/egress-jail-probe")
NEIGHBOURS = str(BUILD / "tests/egress/egress-jail-neighbours")
NOBODY = pwd.getpwnam("nobody").pw_uid
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {k: v.strip() for k, v in (line.split(":", 1) for line in lines)}


def ready(proxy: Proxy) -> dict[str, str]:
    """Its status when it is in its jail: it has taken a policy."""
    proxy.policy([])
    assert proxy.silent()  # what it had to close is closed
    return status(proxy.pid)


def test_status(proxy: Proxy) -> None:
    s = ready(proxy)
    assert s["NoNewPrivs"] == "1"
    assert s["Seccomp"] == "2"
    assert s["Threads"] == "1"
    for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(s[capabilities], 16) == 0


def lower(name: str, value: int) -> str:
    """A limit, or ours that is lower already and stays."""
    _, ours = resource.getrlimit(getattr(resource, f"RLIMIT_{name}"))
    return str(value if ours == resource.RLIM_INFINITY else min(value, ours))


def test_limits(proxy: Proxy) -> None:
    """What it may have is limited, control groups or not: memory, descriptors, no other process."""
    ready(proxy)
    lines = Path(f"/proc/{proxy.pid}/limits").read_text().splitlines()
    limits = {line[:25].strip(): line[25:].split()[:2] for line in lines}
    assert limits["Max data size"] == [lower("DATA", 512 << 20)] * 2
    assert limits["Max processes"] == ["0", "0"]
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"] == [lower("NOFILE", 2048)] * 2


@root_only
def test_it_is_nobody(proxy: Proxy) -> None:
    s = ready(proxy)
    assert s["Uid"].split() == [str(NOBODY)] * 4
    assert set(s["Gid"].split()) == {str(pwd.getpwnam("nobody").pw_gid)}
    assert s["Groups"] == ""


@root_only
def test_it_is_who_it_is_told_to_be(tmp_path: Path) -> None:
    for user, uid in (("12345", 12345), ("daemon", pwd.getpwnam("daemon").pw_uid)):
        p = Proxy(tmp_path, ("--user", user))
        assert ready(p)["Uid"].split() == [str(uid)] * 4
        p.close()


@pytest.mark.parametrize("user", ["root", "0", "no such user", ""])
def test_it_is_nobody_that_it_must_not_be(tmp_path: Path, user: str) -> None:
    p = Proxy(tmp_path, ("--user", user))
    with pytest.raises(EOFError):
        p.receive()
    assert p.process.wait(30) == 1
    assert "user" in p.log.read_text()


@root_only
def test_its_root_is_empty(proxy: Proxy) -> None:
    ready(proxy)
    if os.readlink(f"/proc/{proxy.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"):
        pytest.skip("this host does not allow mount namespaces")
    assert os.listdir(f"/proc/{proxy.pid}/root/") == []
    assert os.readlink(f"/proc/{proxy.pid}/cwd") == "/"
    assert "root directory" not in proxy.log.read_text()
    with pytest.raises(OSError):
        Path(f"/proc/{proxy.pid}/root/file").write_text("x")
    for space in ("ipc", "uts"):
        assert os.readlink(f"/proc/{proxy.pid}/ns/{space}") != os.readlink(f"/proc/self/ns/{space}")


AS_USER = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")


@root_only
def test_its_root_is_empty_as_an_ordinary_user_too(tmp_path: Path) -> None:
    p = Proxy(tmp_path, before=AS_USER)
    ready(p)
    assert os.listdir(f"/proc/{p.pid}/root/") == []
    assert os.readlink(f"/proc/{p.pid}/ns/user") != os.readlink("/proc/self/ns/user")
    p.close()


# Of all that come of it nobody gets a mount namespace.
NO_MOUNTS = """
echo 0 >/proc/sys/user/max_mnt_namespaces
exec unshare -U --map-user=1000 --map-group=1000 "$@"
"""


def test_a_host_that_allows_no_root_of_its_own(tmp_path: Path) -> None:
    """The rest of the jail has to do, and the log says so; elsewhere it says nothing."""
    before = ("unshare", "-r", "sh", "-ec", NO_MOUNTS, "sh")
    if subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("this host does not allow user namespaces")
    p = Proxy(tmp_path, before=before)
    assert ready(p)["Seccomp"] == "2"
    assert os.readlink(f"/proc/{p.pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    assert p.log.read_text().count("no root directory of its own for this proxy: ") == 1
    p.close()


# What of /proc/PID an ordinary user may read of his own processes, unless they are not dumpable. (To
# open mem takes Yama's leave as well.)
PRIVATE = ["environ", "maps", "mem"]
READER = """
import sys
for name in sys.argv[2:]:
    try:
        open(f"/proc/{sys.argv[1]}/{name}", "rb").close()
        print(name)
    except PermissionError:
        pass
"""


def readable(pid: int) -> list[str]:
    """What its own user can read of a process."""
    before = AS_USER if os.geteuid() == 0 else ()
    return subprocess.run(
        [*before, sys.executable, "-c", READER, str(pid), *PRIVATE],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split()


def test_its_own_user_cannot_look_into_it(tmp_path: Path) -> None:
    """Secrets are in its memory. A process of the same user shows that he could."""
    before = AS_USER if os.geteuid() == 0 else ()
    with subprocess.Popen([*before, "sleep", "1000"]) as other:
        until(lambda: Path(f"/proc/{other.pid}/comm").read_text() == "sleep\n")
        assert set(readable(other.pid)) >= {"environ", "maps"}
        other.kill()
    p = Proxy(tmp_path, before=before)
    assert int(ready(p)["Uid"].split()[0]) == (os.geteuid() or 12345)
    assert readable(p.pid) == []
    p.close()


def test_descriptors(proxy: Proxy) -> None:
    """Nothing of whoever started it, and nothing of the host."""
    ready(proxy)
    held = sorted(os.readlink(e.path).split(":")[0] for e in os.scandir(f"/proc/{proxy.pid}/fd"))
    log = str(proxy.log)
    held.sort(key=lambda h: h not in ("/dev/null", log))
    assert held[:3] == sorted(["/dev/null", "/dev/null", log])
    # control, the two of the loop, the HTTP library's epoll
    assert sorted(held[3:]) == ["anon_inode", "anon_inode", "anon_inode", "socket"]


def socket_inodes(pid: int) -> set[str]:
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            name = os.readlink(entry.path)
        except FileNotFoundError:
            continue
        if name.startswith("socket:["):
            inodes.add(name[8:-1])
    return inodes


def sockets(pid: int) -> list[tuple[str, str, str]]:
    """Sockets of a process: kind, local and remote end, from the tables of the kernel. What it has
    open and the tables are read one after the other: they tell of one moment when it has the same
    ones open afterwards."""
    for _ in range(100):
        inodes = socket_inodes(pid)
        ends = {}
        for kind in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
            for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]:
                fields = line.split()
                ends[fields[9]] = (kind, fields[1], fields[2])
        if socket_inodes(pid) == inodes:
            return [ends.get(inode, ("other", "", "")) for inode in inodes]
    raise AssertionError("its sockets are others at each look")


def test_sockets(proxy: Proxy, echo: Tcp) -> None:
    """It has the control socket, and one to the destination and one of the guest a tunnel."""
    ready(proxy)
    assert sockets(proxy.pid) == [("other", "", "")]
    proxy.policy([{"host": "a.test", "ports": [echo.port], "tls": False}])
    s = proxy.connect("a.test", echo.port).socket
    s.sendall(b"ping")
    assert recv_exactly(s, 4) == b"ping"
    tcp, *others = sorted(sockets(proxy.pid), reverse=True)
    assert tcp[0] == "tcp" and tcp[2] == f"0100007F:{echo.port:04X}"
    assert others == [("other", "", "")] * 2
    proxy.connect("other.test", 443)
    assert not [k for k, _, _ in sockets(proxy.pid) if k not in ("tcp", "other")]


def probe(name: str, *how: str) -> int:
    done = subprocess.run([PROBE, name, *how], capture_output=True, timeout=60, check=False)
    assert done.returncode != 3, done.stderr
    return done.returncode


LISTED = subprocess.run([PROBE], capture_output=True, text=True, check=False).stdout.splitlines() if (
    os.path.exists(PROBE)
) else []  # fmt: skip
PROBES = [line for line in LISTED if " " not in line]
LANDLOCK = int(LISTED[-1].removeprefix("landlock ")) if LISTED else 0
ALLOWED = {"nothing": 0, "fcntl-flags": 0, "tcp": 0, "udp6": 0, "memory": 0, "too-much-memory": 1}
KILLED = [p for p in PROBES if p not in ALLOWED and p != "abort"]


def test_there_are_probes() -> None:
    assert len(KILLED) > 30
    assert "x32" in KILLED


@pytest.mark.parametrize("name", KILLED)
def test_what_is_forbidden_kills(name: str) -> None:
    assert probe(name) == -signal.SIGSYS


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_needed_works(name: str) -> None:
    """So that a probe that is killed was killed for what it did."""
    assert probe(name) == ALLOWED[name]


def test_what_is_next_to_each_rule_kills() -> None:
    """With any bit changed that a rule compares; and each system call that no rule is about."""
    done = subprocess.run([NEIGHBOURS], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    ((made, for_rules),) = re.findall(r"(\d+) calls, (\d+) for rules", done.stdout)
    assert int(for_rules) > 1200
    assert int(made) - int(for_rules) > 500


# What Landlock refuses, from which version of it on. (A proxy connects to wherever it may.)
WALLS = {
    "read-file": (1, errno.EACCES),
    "make-file": (1, errno.EACCES),
    "bind": (4, errno.EACCES),
    "signal": (6, errno.EPERM),
    "tcp": (99, 0),
}


@pytest.mark.parametrize("name", WALLS)
def test_landlock_holds_without_the_filter(name: str) -> None:
    """In a root that is not empty; and nothing else refuses it there, the user's rights neither."""
    version, refusal = WALLS[name]
    assert probe(name, "unfiltered") == (refusal if LANDLOCK >= version else 0)
    assert probe(name, "bare") == 0


def test_abort_is_an_abort() -> None:
    assert probe("abort") == -signal.SIGABRT


@root_only
@pytest.mark.parametrize("name", ["nothing", "tcp", "open"])
def test_jail_of_an_ordinary_user(name: str) -> None:
    done = subprocess.run(
        [PROBE, name],
        user=12345,
        group=12345,
        extra_groups=[],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (-signal.SIGSYS if name == "open" else 0), done.stderr


def test_the_kick_of_a_vcpu_does_not_end_it(proxy: Proxy) -> None:
    """SIGUSR1 is what a VMM's filter lets it send, to whom it likes where Landlock cannot tell."""
    ready(proxy)
    for _ in range(10):
        os.kill(proxy.pid, signal.SIGUSR1)
    assert proxy.silent() and proxy.process.poll() is None


def test_by_hand_it_does_not_start() -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with a, b:
        done = subprocess.run(
            [PROXY],
            preexec_fn=lambda: os.dup2(b.fileno(), 3),
            pass_fds=(3,),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2 and "by hand" in done.stderr
    assert subprocess.run([PROXY, "--what"], capture_output=True, check=False).returncode == 2
    assert subprocess.run([PROXY, "x"], capture_output=True, check=False).returncode == 2
    done = subprocess.run([PROXY, "--version"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("podflare-egress ")


def gone(pid: int) -> bool:
    try:
        return status(pid)["State"].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


STARTER = """
import os, subprocess, sys, time
p = subprocess.Popen([sys.argv[1]], preexec_fn=lambda: os.dup2(int(sys.argv[2]), 3), pass_fds=(3,))
print(p.pid, flush=True)
time.sleep(1000)
"""


def test_it_ends_with_whoever_started_it() -> None:
    """Also when the control socket is held open by somebody else."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.settimeout(30)
        starter = subprocess.Popen(
            [sys.executable, "-c", STARTER, PROXY, str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdout=subprocess.PIPE,
        )
        assert starter.stdout
        pid = int(starter.stdout.readline())
        ours.send(b'{"type":"test","serial":1,"host":"a.test","port":443}')
        assert b'"policy"' in ours.recv(70000)  # it is in its jail
        assert not gone(pid)
        starter.kill()
        starter.wait()
        starter.stdout.close()
        until(lambda: gone(pid))
