# SPDX-License-Identifier: Apache-2.0
"""What QEMU may do of the host: the code of a sandbox is executed by its emulation, so whoever gets out of that
has what is tried here by a program in QEMU's place. That the real one works is for the tests of the machine."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import socket
import sys
from pathlib import Path

import pytest
from processes import wait_until
from stand_in import FAKE, put_in_place, report_of

SERVE = ("serve", "--mode", "emulated", "--box-memory", "1024", "--addr")

# Tries all that it is given, and says what became of it: 0, or an errno.
PROBE = """
import ctypes, os, socket

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
    "calls": {name: call(number, 16, 0, 0, 0, 0) for name, number in CALLS.items()},
}
"""

# By number, because Python has no names for them.
CALLS = {
    "ptrace": 101,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "unshare": 272,
    "perf_event_open": 298,
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
}

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

    def start(*args: str) -> tuple[dict, dict[str, str]]:
        with socket.socket() as server, socket.socket() as free:
            server.bind(("127.0.0.1", 0))
            server.listen()
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
        assert done.returncode == 1 and "ended unexpectedly" in done.stderr, done.stderr
        assert "Landlock" not in done.stderr
        told = report_of(tmp_path / "state")
        return told["tried"], told["environ"]

    return start


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
    if enabled or landlock_version() >= 4:
        assert got["dial"] == (0 if enabled else errno.EACCES)


def status_of(pid: int, field: str) -> str:
    found = re.search(rf"^{field}:\s+(\S+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return found.group(1)


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
