# SPDX-License-Identifier: Apache-2.0
"""A daemon's part for VMMs whose processors stand still (vmm_still.c). Needs /dev/kvm, but not a
host that can run guests. What was started is watched for leaks: processes, descriptors, layers."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

import pytest

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("PODFLARE_BUILD", ROOT / "build"))
STILL = BUILD / "tests/vmm/vmm-still"
# Sanitizers make calls that the jail does not know.
UNJAILED = "VMM_STILL_UNJAILED" in os.environ
collect_ignore = ["test_jail.py", "test_jail_rules.py"] if UNJAILED else []

# src/proto/control.h
MAGIC = 0x31434650
BOOT, CONNECT, STAT, STOP, PAUSE, FORK, RECORD, LEARN, WARM, EGRESS, ACCEPT, REJECT = range(1, 13)
BOOTED, STATUS, CONNECTED, REFUSED, STATS, EXITED = 0x81, 0x82, 0x83, 0x84, 0x85, 0x86
HERE = 0x8D
PAUSED, FORKED, DISK, RECORDED, LEARNED = 0x87, 0x88, 0x89, 0x8A, 0x8B
REHEARSAL, LEAF = 1, 2
EXIT_RESET, EXIT_ERROR, EXIT_BOOT, EXIT_STOPPED = 1, 3, 4, 5
VALUES = 9
WIRE = struct.Struct(f"<8I{VALUES}Q1024s")
STAT_STREAMS, STAT_DISK_BYTES, STAT_DISK_LAYERS, STAT_DISK_ERRORS = 4, 6, 7, 8
CONSOLE_BYTES = 65536
LAYERS_MAX = 32

NOBODY, PARENT, CHILD, VCPUS = 0, 1, 2, 3
SERVES, BUSY, ENDS = 1, 2, 3

_SIGKILL = 9
_PR_SET_CHILD_SUBREAPER = 36


class Plan(ctypes.Structure):
    """struct plan of vmm_still.c."""

    _fields_ = [
        ("side", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("nth", ctypes.c_uint32),
        ("error", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("fired", ctypes.c_uint32),
        ("write", ctypes.c_uint32),
        ("wrong", ctypes.c_uint32),
        ("guest", ctypes.c_uint32),
        ("maps", ctypes.c_uint32),
        ("moments", ctypes.c_uint32),
        ("mapped", ctypes.c_uint32),
        ("rings", ctypes.c_uint32),
        ("looks", ctypes.c_uint32),
        ("entered", ctypes.c_uint32),
        ("name", ctypes.c_char * 64),
    ]


@dataclass
class Message:
    """struct ctl_msg."""

    type: int
    id: int = 0
    code: int = 0
    port: int = 0
    mem_mib: int = 0
    vcpus: int = 0
    disk_mib: int = 0
    value: tuple[int, ...] = (0,) * VALUES
    text: str = ""

    def pack(self) -> bytes:
        return WIRE.pack(
            MAGIC,
            self.type,
            self.id,
            self.code,
            self.port,
            self.mem_mib,
            self.vcpus,
            self.disk_mib,
            *self.value,
            self.text.encode(),
        )

    @classmethod
    def unpack(cls, wire: bytes) -> "Message":
        magic, *fields = WIRE.unpack(wire)
        assert magic == MAGIC
        return cls(*fields[:7], tuple(fields[7:-1]), fields[-1].split(b"\0")[0].decode())


def memfd(name: str, content: bytes) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, content)
    return fd


def sealed(content: bytes) -> int:
    import fcntl

    fd = memfd("root", content)
    fcntl.fcntl(fd, 1033, 2 | 4 | 8)  # F_ADD_SEALS: shrink, grow, write
    return fd


def console() -> int:
    fd = memfd("console", b"")
    os.ftruncate(fd, CONSOLE_BYTES)
    return fd


def kernel() -> bytes:
    """The smallest file that the loader takes: one page at 1 MiB."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, 0x100000, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 4096, 0x100000, 0x100000, 4096, 4096, 4096)
    return (header + segment).ljust(4096, b"\0") + b"\xf4" * 4096


class Vmm:
    """One VMM, as the daemon sees it."""

    def __init__(self, host: "Host", ctl: socket.socket, pid: int = 0) -> None:
        self.host, self.ctl, self.pid = host, ctl, pid

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self.ctl, [message.pack()], list(fds))

    def receive(self, timeout: float = 20) -> Optional[Message]:
        """The next message, but for HERE; None at the end."""
        message = self.receive_any(timeout)
        return self.receive_any(timeout) if message and message.type == HERE else message

    def receive_any(self, timeout: float = 20) -> Optional[Message]:
        """The next message; None at the end."""
        if not select.select([self.ctl], [], [], timeout)[0]:
            raise TimeoutError("the VMM says nothing")
        try:
            wire = self.ctl.recv(WIRE.size)
        except ConnectionResetError:
            return None
        return Message.unpack(wire) if wire else None

    def expect(self, kind: int, timeout: float = 20) -> Message:
        message = self.receive(timeout)
        assert message is not None, f"the VMM ended instead of sending {kind:#x}"
        assert message.type == kind, message
        return message

    def stats(self) -> tuple[int, ...]:
        """Also the proof that it lives and listens."""
        self.send(Message(STAT, id=77))
        reply = self.expect(STATS)
        assert reply.id == 77
        return reply.value

    def pause(self) -> None:
        self.send(Message(PAUSE))
        reply = self.expect(PAUSED)
        assert reply.code == 0, reply.text

    def start_fork(self, fds: Optional[dict[str, int]] = None, code: int = 0) -> "Vmm":
        """Sends CTL_FORK. fds replaces some of its descriptors by name."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own = {"control": theirs.fileno(), "console": console()}
        own["parent_rw"], own["parent_ro"] = self.host.layer()
        own["child_rw"], own["child_ro"] = self.host.layer()
        own["gate"] = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.send(Message(FORK, id=5, code=code), tuple({**own, **(fds or {})}.values()))
        finally:  # it may have died
            for name, fd in own.items():
                if name != "control":
                    os.close(fd)
            theirs.close()
        child = Vmm(self.host, ours)
        self.host.vmms.append(child)
        return child

    def fork(self, code: int = 0) -> "Vmm":
        """A fork that must work."""
        child = self.start_fork(code=code)
        done = self.expect(FORKED)
        assert done.code == 0 and done.id == 5, done
        child.pid = done.value[0]
        child.expect(BOOTED)
        return child

    def fds(self) -> list[str]:
        """What its descriptors are, sorted; after it has dealt with all that it was sent."""
        found = []
        self.stats()
        for entry in os.scandir(f"/proc/{self.pid}/fd"):
            try:
                link = os.readlink(entry.path).split(":")[0]
                found.append("layer" if link.startswith(f"{self.host.directory}/") else link)
            except FileNotFoundError:
                pass
        return sorted(found)

    def end(self) -> None:
        """Closes its socket, which is to end it."""
        if self.ctl.fileno() >= 0:
            self.ctl.close()
        if self.pid:
            self.host.reap(self.pid)
            self.pid = 0

    def kill(self) -> None:
        os.kill(self.pid, _SIGKILL)


class Host:
    """What a test starts, and its plan of faults."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.vmms: list[Vmm] = []
        self._page_fd = os.memfd_create("plan", os.MFD_CLOEXEC)
        os.ftruncate(self._page_fd, 4096)
        self._page = mmap.mmap(self._page_fd, 4096)
        self.plan = Plan.from_buffer(self._page)

    def layer(self) -> tuple[int, int]:
        rw = os.open(self.directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC | os.O_EXCL, 0o600)
        return rw, os.open(f"/proc/self/fd/{rw}", os.O_RDONLY | os.O_CLOEXEC)

    def start(self, before: tuple[str, ...] = ()) -> Vmm:
        """A VMM that has not booted; before: what starts it, and becomes it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        high = os.dup(theirs.fileno()), os.dup(self._page_fd)
        theirs.close()
        pid = os.posix_spawnp(
            before[0] if before else STILL,
            [*before, str(STILL)],
            dict(os.environ),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, high[0], 3),
                (os.POSIX_SPAWN_DUP2, high[1], 4),
            ],
        )
        for fd in high:
            os.close(fd)
        vmm = Vmm(self, ours, pid)
        self.vmms.append(vmm)
        return vmm

    def boot(
        self,
        mem_mib: int = 128,
        vcpus: int = 1,
        disk_mib: int = 64,
        fds: Optional[dict[str, int]] = None,
        before: tuple[str, ...] = (),
    ) -> Vmm:
        """Starts one and sends CTL_BOOT; fds replaces some of its descriptors by name."""
        vmm = self.start(before)
        own = {
            "kvm": os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC),
            "kernel": memfd("kernel", kernel()),
            "initrd": memfd("initrd", b"initrd"),
            "root": sealed(b"\0" * 4096),
            "console": console(),
        }
        own["disk_rw"], own["disk_ro"] = self.layer()
        message = Message(BOOT, mem_mib=mem_mib, vcpus=vcpus, disk_mib=disk_mib)
        try:
            vmm.send(message, tuple({**own, **(fds or {})}.values()))
        finally:  # it may have died
            for fd in own.values():
                os.close(fd)
        return vmm

    def booted(self, vcpus: int = 1, disk_mib: int = 64, before: tuple[str, ...] = ()) -> Vmm:
        vmm = self.boot(vcpus=vcpus, disk_mib=disk_mib, before=before)
        vmm.expect(BOOTED)
        self.plan.pid = vmm.pid
        return vmm

    def fail(self, side: int, nth: int, error: int) -> None:
        """From now on, the nth call of that side fails."""
        self.plan.side = NOBODY
        self.plan.nth, self.plan.error, self.plan.count, self.plan.fired = nth, error, 0, 0
        self.plan.side = side

    def reap(self, pid: int, seconds: float = 20) -> int:
        """Waits for the end of a child of ours."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            time.sleep(0.002)
        raise TimeoutError(f"process {pid} does not end")

    def children(self) -> list[int]:
        """VMMs that live (or wait to be reaped) as children of ours."""
        found = []
        for task in os.listdir("/proc/self/task"):
            try:
                text = Path(f"/proc/self/task/{task}/children").read_text()
            except FileNotFoundError:
                continue
            found += [int(p) for p in text.split()]
        return found

    def reap_ended(self, seconds: float = 20) -> None:
        """Waits until no child of ours is left: what has no socket to us must end by itself."""
        deadline = time.monotonic() + seconds
        while self.children():
            assert time.monotonic() < deadline, f"left over: {self.children()}"
            for pid in self.children():
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)

    def holders(self) -> list[str]:
        """Descriptors in this process and in any VMM that keep layers of this test on the disk. Of
        other processes no descriptor is looked at: to look is to hold it, and it is not closed
        meanwhile. Into a VMM only root can look: it is not dumpable."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                name = (process / "comm").read_text(errors="replace").strip()
                if int(process.name) != os.getpid() and name != STILL.name:
                    continue
                for fd in os.scandir(process / "fd"):
                    link = os.readlink(fd.path)
                    if link.startswith(f"{self.directory}/"):
                        found.append(f"{process.name}: {link}")
            except (FileNotFoundError, PermissionError, ProcessLookupError):
                continue
        return found

    def close(self) -> None:
        for vmm in self.vmms:
            if vmm.ctl.fileno() >= 0:
                vmm.ctl.close()
        try:
            self.reap_ended()
        finally:
            for pid in self.children():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        assert not self.holders()
        os.close(self._page_fd)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm cannot be opened here")
    before = len(os.listdir("/proc/self/fd"))
    made = Host(tmp_path)
    yield made
    made.close()
    made.plan = None  # type: ignore[assignment]
    made._page.close()
    assert len(os.listdir("/proc/self/fd")) == before
