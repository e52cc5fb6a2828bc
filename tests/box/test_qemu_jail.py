# SPDX-License-Identifier: Apache-2.0
"""What QEMU may do of the host: the code of a sandbox is executed by its emulation, so whoever gets out of that
has what is tried here by a program in QEMU's place. That the real one works is for the tests of the machine."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import wait_until
from stand_in import FAKE, put_in_place, report_of

SERVE = ("serve", "--mode", "emulated", "--box-memory", "1024", "--addr")

# Tries all that it is given, and says what became of it: 0, or an errno.
PROBE = """
import ctypes, os, resource, socket

libc = ctypes.CDLL(None, use_errno=True)

def call(*args):
    return 0 if libc.syscall(*args) >= 0 else ctypes.get_errno()

def attempt(fn):
    try:
        fn()
        return 0
    except OSError as e:
        return e.errno

def dial(port):
    with socket.socket() as s:
        s.connect(("127.0.0.1", port))

def bind(port):
    with socket.socket() as s:
        s.bind(("127.0.0.1", port))

def family(number):
    socket.socket(number, socket.SOCK_DGRAM).close()

def of_kind(family, kind, protocol):
    socket.socket(family, kind, protocol).close()

def told_by_an_end(kind):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    with one, other:
        if kind == socket.SOCK_STREAM:
            one.sendall(b"x")
            assert other.recv(1) == b"x"
        else:
            one.sendto(b"from the jail", TOLD)

def fast(send):
    with socket.socket() as s:
        send(s, 0x20000000, ("127.0.0.1", OPEN))

def end_other():
    resource.prlimit(VICTIM, resource.RLIMIT_CPU, (1, 1))

def sendmmsg(s, flag):
    if libc.syscall(307, s.fileno(), None, 0, flag) < 0:
        raise OSError(ctypes.get_errno(), "")

def spaces():
    made = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
    if made == 0:
        os._exit(0)
    return 0 if made > 0 else ctypes.get_errno()

images = [a.partition(",file=")[2] for a in argv if "readonly=on" in a]
disk = state_disk()[1]
TRIED = {
    "read": {path: attempt(lambda: open(path, "rb").read(1)) for path in [*READ, *images, disk]},
    "list": {path: attempt(lambda: os.listdir(path)) for path in LIST},
    "write": {path: attempt(lambda: open(path, "r+b")) for path in [*READ, *images, disk]},
    "make": {path: attempt(lambda: open(path, "wb")) for path in MAKE},
    "remove": attempt(lambda: os.unlink(disk)),
    "run": attempt(lambda: os.execv(READ[0], ["x"])),
    "dial": attempt(lambda: dial(OPEN)),
    "resolver": attempt(lambda: open("/etc/resolv.conf").read(1)),
    "bind": attempt(lambda: bind(0)),
    "own": attempt(lambda: bind(OWN)),
    "families": {n: attempt(lambda: family(n)) for n in (1, 2, 10, 16, 17, 40)},
    "signal": attempt(lambda: os.kill(os.getppid(), 0)),
    "clone of spaces": spaces(),
    "kinds": {" ".join(map(str, kind)): attempt(lambda: of_kind(*kind)) for kind in KINDS},
    "pairs": {kind: attempt(lambda: told_by_an_end(kind)) for kind in (1, 2, 3, 5)},
    "fast": {
        "sendto": attempt(lambda: fast(lambda s, flag, to: s.sendto(b"x", flag, to))),
        "sendmsg": attempt(lambda: fast(lambda s, flag, to: s.sendmsg([b"x"], [], flag, to))),
        "sendmmsg": attempt(lambda: fast(lambda s, flag, to: sendmmsg(s, flag))),
    },
    "changes": {
        "mode": attempt(lambda: os.chmod(READ[0], 0o4777)),
        "owner": attempt(lambda: os.chown(READ[0], os.getuid(), os.getgid())),
        "times": attempt(lambda: os.utime(READ[0], (1, 1))),
        "attribute": attempt(lambda: os.setxattr(READ[0], "user.x", b"1")),
        "size": attempt(lambda: os.truncate(READ[0], 0)),
        "mode of its own": attempt(lambda: os.chmod(disk, 0o666)),
    },
    "limits of others": attempt(end_other),
    "limits of its own": attempt(lambda: resource.prlimit(0, resource.RLIMIT_CPU)),
    "calls": {name: call(number, 16, 0, 0, 0, 0) for name, number in CALLS.items()},
}
"""

# By number, because Python has no names for them.
CALLS = {
    "shmget": 29,
    "shmat": 30,
    "shmctl": 31,
    "semget": 64,
    "semop": 65,
    "semctl": 66,
    "shmdt": 67,
    "msgget": 68,
    "msgsnd": 69,
    "msgrcv": 70,
    "msgctl": 71,
    "truncate": 76,
    "chmod": 90,
    "fchmod": 91,
    "chown": 92,
    "fchown": 93,
    "lchown": 94,
    "ptrace": 101,
    "utime": 132,
    "setxattr": 188,
    "lsetxattr": 189,
    "fsetxattr": 190,
    "removexattr": 197,
    "lremovexattr": 198,
    "fremovexattr": 199,
    "semtimedop": 220,
    "utimes": 235,
    "mq_open": 240,
    "mq_unlink": 241,
    "mq_timedsend": 242,
    "mq_timedreceive": 243,
    "mq_notify": 244,
    "mq_getsetattr": 245,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "ioprio_set": 251,
    "inotify_add_watch": 254,
    "fchownat": 260,
    "futimesat": 261,
    "fchmodat": 268,
    "unshare": 272,
    "utimensat": 280,
    "perf_event_open": 298,
    "fanotify_init": 300,
    "fanotify_mark": 301,
    "prlimit64": 302,
    "open_by_handle_at": 304,
    "setns": 308,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "bpf": 321,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "fchmodat2": 452,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "file_setattr": 469,
}

# Family, type and protocol of sockets, and whether QEMU gets one: only where egress is on, if at all.
STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
TCP = [(socket.AF_INET, STREAM, 0), (socket.AF_INET, STREAM, 6), (socket.AF_INET6, STREAM, 0)]
OUTWARD = [(socket.AF_INET, DATAGRAM, 0), (socket.AF_INET6, DATAGRAM, 17)]
NEVER = [
    (socket.AF_INET, STREAM, 262),  # MPTCP
    (socket.AF_INET6, STREAM, 262),
    (socket.AF_INET, STREAM, 132),  # SCTP
    (socket.AF_INET, socket.SOCK_SEQPACKET, 0),  # the same, as what is usual
    (socket.AF_INET, 6, 0),  # DCCP
    (socket.AF_INET, DATAGRAM, 136),  # UDP-Lite
    (socket.AF_INET, socket.SOCK_RAW, 6),
]
KINDS = [tuple(int(n) for n in kind) for kind in (*TCP, *OUTWARD, *NEVER)]

# Of Landlock, as the prefix of a command line: a kernel without it.
WITHOUT_LANDLOCK = """
import ctypes, os, struct, sys

code = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000)]
text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *c) for c in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


# The same for capabilities: root's programs have none for being root's (SECBIT_NOROOT), but these two are
# given to them, to bind low ports and to kill.
GIVEN = """
import ctypes, os, sys

libc = ctypes.CDLL(None, use_errno=True)
head = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)()
assert libc.prctl(28, 3, 0, 0, 0) == 0
assert libc.capget(head, sets) == 0
sets[2] = 1 << 10 | 1 << 5
assert libc.capset(head, sets) == 0
assert libc.prctl(47, 2, 10, 0, 0) == 0 and libc.prctl(47, 2, 5, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def landlock_version() -> int:
    """Of this kernel; 0 for none."""
    return max(int(ctypes.CDLL(None).syscall(444, None, 0, 1)), 0)


@pytest.fixture
def tried(call, build, tmp_path):
    """Starts serve with the probe in QEMU's place: what it got to."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh/id_ed25519").write_text("secret")
    (home / ".ssh/id_ed25519").chmod(0o700)
    victim = subprocess.Popen(["sleep", "1000"])

    def of_others() -> dict[str, object]:
        """What is not QEMU's to change."""
        st = (home / ".ssh/id_ed25519").stat()
        names = ("st_mode", "st_uid", "st_size", "st_mtime_ns", "st_ctime_ns")
        limits = resource.prlimit(victim.pid, resource.RLIMIT_CPU)
        return {name: getattr(st, name) for name in names} | {"limits": limits}

    def start(*args: str) -> tuple[dict, dict[str, str]]:
        before = of_others()
        with (
            socket.socket() as server,
            socket.socket() as free,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told_by_file,
        ):
            server.bind(("127.0.0.1", 0))
            server.listen()
            told_by_file.bind(str(home / "d"))
            free.bind(("127.0.0.1", 0))
            own = free.getsockname()[1]
            free.close()
            given = {
                "READ": [str(home / ".ssh/id_ed25519"), "/etc/shadow", "/etc/passwd", "/proc/1/cmdline"],
                "LIST": [str(home), "/", "/proc", "/tmp", str(tmp_path / "state"), "/run"],
                "MAKE": [str(home / "new"), str(tmp_path / "new"), str(tmp_path / "state/new")],
                "CALLS": CALLS,
                "OPEN": server.getsockname()[1],
                "OWN": own,
                "KINDS": KINDS,
                "TOLD": str(home / "d"),
                "VICTIM": victim.pid,
            }
            head, _, tail = FAKE.read_text().partition("report = {\n")
            lines = "".join(f"{name} = {value!r}\n" for name, value in given.items())
            text = f'{head}{lines}{PROBE}\nreport = {{\n    "tried": TRIED,\n{tail}'
            done = call(
                *(*SERVE, f"127.0.0.1:{own}", "--state", str(tmp_path / "state"), *args),
                PATH=put_in_place(tmp_path, text),
                HOME=str(home),
                SECRET="secret",
            )
            arrived = bool(select.select([told_by_file], [], [], 0)[0])
        assert done.returncode == 1 and "ended unexpectedly" in done.stderr, done.stderr
        assert "Landlock" not in done.stderr
        told = report_of(tmp_path / "state")
        changed = [name for name, value in of_others().items() if value != before[name]]
        return told["tried"] | {"changed": changed, "arrived": arrived}, told["environ"]

    yield start
    victim.kill()
    victim.wait()


needs_landlock = pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")


@needs_landlock
def test_what_it_reaches(tried, build, tmp_path):
    """Of files what it was told to use, for writing the state disk; and no other process."""
    got, environ = tried()
    disk = str(tmp_path / "state/box-state.ext4")
    refused = errno.EACCES
    assert got["read"].pop(disk) == 0 and got["write"].pop(disk) == 0
    for path in list(got["read"]):
        if path.startswith(str(build)) or "templates" in path:
            assert got["read"].pop(path) == 0 and got["write"].pop(path) == refused, path
    assert len(got["read"]) == 4 and set(got["read"].values()) == {refused}, got["read"]
    assert set(got["write"].values()) == {refused}
    assert set(got["list"].values()) == {refused}, got["list"]
    assert set(got["make"].values()) == {refused}, got["make"]
    assert got["remove"] == refused and got["run"] == refused
    assert environ == {"PATH": "/usr/bin:/bin", "LANG": "C"} | (
        {"LC_CTYPE": environ["LC_CTYPE"]} if "LC_CTYPE" in environ else {}  # Python's own
    )
    if landlock_version() >= 4:
        # With port 0 the kernel would choose one: that is a bind as well.
        assert got["bind"] == refused and got["own"] == errno.EADDRINUSE
    if landlock_version() >= 6:
        assert got["signal"] == errno.EPERM


def test_what_it_calls(tried):
    got, _ = tried()
    assert {n: e for n, e in got["families"].items() if e != errno.EACCES} == {"2": 0, "10": 0}
    assert got["clone of spaces"] == errno.EPERM
    assert not got["changed"] and not got["arrived"], (got["changed"], got["arrived"])
    assert got["pairs"].pop("1") == 0 and set(got["pairs"].values()) == {errno.EACCES}, got["pairs"]
    assert set(got["changes"].values()) == {errno.EPERM}, got["changes"]
    assert got["limits of others"] == errno.EPERM and got["limits of its own"] == 0
    assert got["calls"].pop("clone3") == errno.ENOSYS
    assert got["calls"].pop("io_uring_setup") == errno.ENOSYS
    assert set(got["calls"].values()) == {errno.EPERM}, got["calls"]


@pytest.mark.parametrize("enabled", [True, False])
def test_whether_it_dials(tried, tmp_path, enabled):
    """It is QEMU that does so for the proxy in it, and that reads who is to be asked for names."""
    (tmp_path / "operator.json").write_text(json.dumps({"enabled": enabled}))
    got, _ = tried("--egress-config", str(tmp_path / "operator.json"))
    if landlock_version() >= 1:
        assert got["resolver"] == (0 if enabled else errno.EACCES)
    assert got["dial"] == (0 if enabled else errno.EACCES)
    kinds = {tuple(map(int, k.split())): e for k, e in got["kinds"].items()}
    assert {kinds[k] for k in TCP} == {0}, kinds
    assert {kinds[k] for k in OUTWARD} == {0 if enabled else errno.EACCES}, kinds
    assert {kinds[k] for k in NEVER} == {errno.EACCES}, kinds
    if not enabled:
        assert set(got["fast"].values()) == {errno.EACCES}, got["fast"]


def status_of(pid: int, field: str) -> str:
    found = re.search(rf"^{field}:\s+(\S+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return found.group(1)


def free_low_port() -> int:
    """Of those below 1024, which root alone may bind."""
    for port in range(1023, 512, -1):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.skip("no low port is free")


def machine_of(run) -> int:
    """The program in QEMU's place, once it is there."""

    def found() -> list[int]:
        return [pid for pid, command in run.descendants().items() if command.startswith("sleep")]

    wait_until("QEMU is there", found, 60)
    return found()[0]


def test_what_it_has_of_root(spawn, tmp_path):
    """To open files by way of directories that are another's, and a port below 1024: no more."""
    path = put_in_place(tmp_path, "#!/bin/sh\nexec sleep 1000\n")
    run = spawn(*SERVE, "127.0.0.1:0", "--state", str(tmp_path / "state"), PATH=path)
    pid = machine_of(run)
    own = int(status_of(os.getpid(), "CapPrm"), 16)
    for kind in ("CapPrm", "CapEff"):
        assert int(status_of(pid, kind), 16) == own & (1 << 1 | 1 << 2 | 1 << 10)
    assert status_of(pid, "NoNewPrivs") == "1" and status_of(pid, "Seccomp") == "2"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give capabilities")
def test_a_low_port_of_who_is_not_root(spawn, tmp_path):
    """What a service was given for it (AmbientCapabilities=) QEMU has too, which opens it; and no more."""
    path = put_in_place(tmp_path, "#!/bin/sh\nexec sleep 1000\n")
    prefix = [sys.executable, "-c", GIVEN]
    for port, kept in ((free_low_port(), 1 << 10), (0, 0)):
        state = tmp_path / f"state{port}"
        run = spawn(*SERVE, f"127.0.0.1:{port}", "--state", str(state), prefix=prefix, PATH=path)
        pid = machine_of(run)
        for kind in ("CapPrm", "CapEff", "CapAmb"):
            assert int(status_of(pid, kind), 16) == kept, (port, kind)


def test_without_landlock_it_is_told(spawn, tmp_path):
    """Once; and the rest of the jail is there."""
    path = put_in_place(tmp_path, "#!/bin/sh\nexec sleep 1000\n")
    prefix = [sys.executable, "-c", WITHOUT_LANDLOCK]
    state = str(tmp_path / "state")
    run = spawn(
        *(*SERVE, "127.0.0.1:0", "--state", state),
        prefix=prefix,
        PATH=path,
        PODFLARE_BOX_BOOT_TIMEOUT="1",
    )
    machine_of(run)
    run.wait_for("starting it again")
    assert status_of(machine_of(run), "Seccomp") == "2"
    assert run.stderr.count("this kernel has no Landlock, or it is not turned on") == 1, run.stderr
