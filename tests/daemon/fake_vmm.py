#!/usr/bin/python3 -IS
"""A stand-in for podflare-vmm and the guest behind it, for tests of podflared.

Speaks the control protocol on descriptor 3 and, on every stream that the daemon
asks for, the agent's frames (fake_agent.py). --mode chooses how booting goes;
"fork:WORD" how forks go (see Vmm.on_fork), "rehearsal:WORD" how the rehearsal does.

A fork is a real child of the daemon (CLONE_PARENT) that runs this program anew
with the state of its parent. Between clone() and execve() the child may do next
to nothing: the other threads do not exist there, and with them the owners of
locks. So the calls keep the interpreter's lock (PyDLL; with CDLL the child would
wait for ever for a thread that is not there) and make no objects worth speaking of.
"""

import array
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.dont_write_bytecode = True
from fake_agent import Stream  # noqa: E402
from fake_guest import ACCEPT, EGRESS, REJECT, Guest  # noqa: E402

CTL_FD = 3
MAGIC = 0x31434650
TEXT = 1024
WIRE_MAX = 4096
BOOT, CONNECT, STAT, STOP, PAUSE, FORK, RECORD, LEARN, WARM = range(1, 10)
BOOTED, STATUS, CONNECTED, REFUSED, STATS_REPLY, EXITED = 0x81, 0x82, 0x83, 0x84, 0x85, 0x86
PAUSED, FORKED, RECORDED, LEARNED, HERE = 0x87, 0x88, 0x8A, 0x8B, 0x8D
REHEARSAL, LEAF = 1, 2
BOOT_FDS = ("kvm", "kernel", "initrd", "root", "console", "disk_rw", "disk_ro")
FORK_FDS = ("control", "console", "parent_rw", "parent_ro", "child_rw", "child_ro", "gate")

CLONE_PARENT, SYS_CLONE = 0x8000, 56
libc = ctypes.PyDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def fresh_state() -> dict:
    """What children inherit."""
    return {
        "generation": 0,
        "leaf": False,
        "files": "",  # the one directory in which anything is changed
        "inert": False,  # whatever is to be run, something harmless runs instead
        "frozen": False,
        "halted": False,
        "vars": {},
        "contexts": {"default": {"cwd": "/tmp", "user": "user"}},
        "context_raw": None,
        "context_error": None,
        "command_raw": None,
        "kept_limit": 256 << 20,
        "file_raw": None,
        "file_error": None,
        "changes": [],
        "changes_raw": None,
        "changes_error": None,
        "changes_endless": False,
        "changes_mute": False,
        "hashes": {},
        "hashes_short": False,
        "hashed": 0,
        "recorded": 0,
        "warmed": [],
    }


class Vmm:
    """The process: control socket, boot, forks, and its end."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.ctl = socket.socket(fileno=CTL_FD)
        self.ctl.setblocking(True)
        self.lock = threading.Lock()
        self.fds: dict[str, int] = {}
        self.renew: dict | None = None
        self.thaws: list[dict] = []
        self.connects = 0
        self.disk_errors = 0
        self.hung_up = False
        self.wire = 0  # bytes of a message: as long as the daemon's first one
        self.boot: tuple[int, int, int] = (0, 0, 0)
        self.paused = False
        self.told = 0
        self.state = fresh_state()
        self.once_words: dict[str, list[str]] = {}
        self.streams: set = set()
        self.commands: set[int] = set()
        self.kept: dict = {}
        self.changes_paths: list[str] = []
        self.guest = Guest(self)
        self.thawed = threading.Event()
        self.thawed.set()

    def send(
        self, kind: int, ident: int = 0, code: int = 0, text: str = "", value: int = 0, port: int = 0
    ) -> None:
        """Sends one control message."""
        wire = struct.pack("<8IQ", MAGIC, kind, ident, code, port, 0, 0, 0, value)
        wire += bytes(self.wire - len(wire) - TEXT) + text.encode()[: TEXT - 1].ljust(TEXT, b"\0")
        with self.lock:
            self.ctl.send(wire)

    def exit(self, code: int, text: str) -> None:
        """Says why and ends, as a VMM does."""
        self.send(EXITED, code=code, text=text)
        os._exit(0)

    def hang_up(self) -> None:
        """Closes the control socket, and lives on for as long as it can."""
        self.hung_up = True
        self.ctl.shutdown(socket.SHUT_RDWR)

    def console(self, text: bytes) -> None:
        """Appends to the console ring."""
        ring = mmap.mmap(self.fds["console"], 65536)
        (total,) = struct.unpack_from("<Q", ring, 0)
        for i, b in enumerate(text):
            ring[8 + (total + i) % 65528] = b
        struct.pack_into("<Q", ring, 0, total + len(text))

    def once(self, key: str) -> str:
        """A misbehaviour that was ordered for the next time."""
        words = self.once_words.get(key, [])
        return words.pop(0) if words else ""

    # --- freezing -----------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether user code stands still."""
        return self.state["frozen"]

    def freeze(self, by: Stream) -> None:
        """Commands stop; streams other than this one rest."""
        assert not self.state["leaf"], "a leaf was frozen: it is never forked"
        self.state["frozen"] = True
        self.thawed.clear()
        by.fresh = True
        self.signal_commands(signal.SIGSTOP)

    def signal_commands(self, sig: int) -> None:
        """To all that run; one may end just now."""
        for pid in list(self.commands):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, sig)

    def thaw(self) -> None:
        """Everything goes on."""
        self.signal_commands(signal.SIGCONT)
        self.state["frozen"] = False
        for s in list(self.streams):
            s.fresh = False
        self.thawed.set()

    def rest(self) -> None:
        """A stream that was there before waits."""
        self.thawed.wait()

    # --- boot ---------------------------------------------------------------------------

    def on_boot(self, fds: list[int], mem: int, vcpus: int, disk: int) -> None:
        """Goes through a boot in the chosen mode."""
        self.fds = dict(zip(BOOT_FDS, fds))
        self.boot = (mem, vcpus, disk)
        if self.mode == "exit-boot":
            self.exit(4, "KVM_CREATE_VM: Operation not supported")
        if self.mode == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "garbage":
            self.ctl.send(b"not a control message")
            time.sleep(60)
        if self.mode == "flood":
            self.send(BOOT)
            time.sleep(60)
        self.send(BOOTED)
        self.console(b"[    0.1] Linux version\r\nagent: starting\r\n")
        if self.mode == "fail-step":
            self.console(b"agent: mount /dev/pmem0: No such device\r\n")
            self.send(STATUS, code=0x103)
            return
        if self.mode == "no-ready":
            self.console(b"still booting\r\n")
            return
        if self.mode == "slow":
            time.sleep(1.0)
        self.send(STATUS, code=1)
        self.send(STATUS, code=1)

    def on_connect(self, ident: int, port: int, fd: int) -> None:
        """Starts an agent's end of a stream."""
        self.connects += 1
        self.guest.seen.append("connect")
        if self.mode == "refuse" or port != 5555:
            self.send(REFUSED, ident, code=111)
            os.close(fd)
            return
        self.send(CONNECTED, ident)
        threading.Thread(target=Stream(self, fd).serve, daemon=True).start()

    def on_pause(self, ident: int) -> None:
        """A template may be forked from now on, and does nothing else."""
        assert self.frozen, "paused before it was frozen"
        if self.mode == "pause-error":
            self.send(PAUSED, ident, code=16, text="a vCPU does not stop")
            return
        self.paused = True
        self.send(PAUSED, ident)

    # --- fork ---------------------------------------------------------------------------

    def on_fork(self, ident: int, fds: dict[str, int], code: int) -> None:
        """Makes a child, or fails in the way that was ordered."""
        rehearsal = code == REHEARSAL
        kind = "rehearsal" if rehearsal else "fork"
        how = self.once(kind)
        if not how and self.mode.startswith(kind + ":"):
            how = self.mode.partition(":")[2]
        assert not rehearsal or self.paused
        assert not self.state["leaf"], "a leaf was asked to fork"
        word, _, rest = how.partition(" ")
        if not self.frozen:
            self.exit(3, "asked to fork while user code runs")
        for name in ("parent_rw", "parent_ro", "child_rw", "child_ro"):
            assert os.fstat(fds[name]).st_size == 0
        if word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "hang":
            return
        if word == "error-late":
            said = {"code": 12, "text": "no memory"}
            threading.Timer(float(rest), self.send, (FORKED, ident), said).start()
            return
        if word == "error":
            self.send(FORKED, ident, code=12, text="cannot fork the VMM: Cannot allocate memory")
        elif word == "lie":
            pid = {"self": os.getpid(), "init": 1, "zero": 0, "huge": 1 << 40}.get(rest)
            self.send(FORKED, ident, value=int(rest) if pid is None else pid)
        elif word == "unasked":
            self.send(FORKED, ident, code=1)
            self.send(FORKED, ident, code=1)
            self.send(FORKED, ident + 1000, code=1)
        elif word == "nobody":
            # Of the children that it was not asked for yet, with a process that there is.
            self.send(FORKED, 0, value=self.clone(fds, "child-dies", leaf=False))
            time.sleep(60)
        elif word == "deaf":
            # Answers what it has not read.
            for i in range(16):
                self.send(FORKED, ident + i, code=12, text="no memory")
            time.sleep(60)
        elif word == "helper":
            # A process that nobody is told of, which has nothing to do with us.
            self.helper()
            self.send(FORKED, ident, code=12, text="no memory")
        elif word == "twice":
            os.dup(fds["control"])  # it does not end
            self.told = self.told or self.clone(fds, "mute", leaf=False)
            self.send(FORKED, ident, value=self.told)
        else:
            if word == "slow":
                time.sleep(float(rest))
            pid = self.clone(fds, how, code == LEAF)
            if word == "stray":
                os.kill(os.getpid(), signal.SIGKILL)
            if word == "late":
                time.sleep(float(rest))
            self.send(FORKED, ident, value=pid)
        if not self.paused:
            for ours, theirs in (("disk_rw", "parent_rw"), ("disk_ro", "parent_ro")):
                os.dup2(fds[theirs], self.fds[ours], inheritable=False)

    def on_record(self, ident: int, code: int) -> None:
        """A rehearsal tells what it has written, in order of its moments."""
        assert self.mode in ("", "record-error", "record-twice", "record-dies", "learn"), self.mode
        assert code == self.state["recorded"]
        self.state["recorded"] += 1
        if self.mode == "record-dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mode == "record-error":
            self.send(RECORDED, ident, code=22, text="this machine does not log")
            return
        self.send(RECORDED, ident)
        if self.mode == "record-twice":
            self.send(RECORDED, ident)

    def on_learn(self, ident: int) -> None:
        """The rehearsal is over."""
        assert self.paused
        if self.mode == "learn-error":
            self.send(LEARNED, ident, code=12, text="hot pages: Cannot allocate memory")
        elif self.mode == "learn-dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.mode != "learn-hang":
            self.send(LEARNED, ident, value=600)

    def clone(self, fds: dict[str, int], mode: str, leaf: bool) -> int:
        """The child: this program again, with our state."""
        given = {n: self.fds[n] for n in ("kvm", "kernel", "initrd", "root")}
        given |= {
            "console": fds["console"],
            "disk_rw": fds["child_rw"],
            "disk_ro": fds["child_ro"],
            "gate": fds["gate"],
        }
        state = {
            "mode": mode,
            "fds": given,
            "boot": self.boot,
            "state": {**self.state, "leaf": leaf},
            "wire": self.wire,
        }
        mem = os.memfd_create("state")
        os.write(mem, json.dumps(state).encode())
        keep = [*given.values(), mem]
        here = os.path.abspath(__file__)
        words = [sys.executable, "-IS", here, f"--child={mem}", *sys.argv[1:]]
        argv = (ctypes.c_char_p * (len(words) + 1))(*[w.encode() for w in words], None)
        envp = (ctypes.c_char_p * 1)(None)
        path = sys.executable.encode()
        control = fds["control"]
        # Threads are awake now and then: those of kept commands, and on a busy machine that of the
        # stream that has just answered. One that waits for the interpreter's lock asks for it after
        # a while, and the child would give it to a thread that is not there.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(3600)
        time.sleep(0.05 if self.kept else 0.01)  # those that wait already
        pid = libc.syscall(SYS_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            for fd in keep:
                libc.fcntl(fd, fcntl.F_SETFD, 0)
            libc.dup2(control, CTL_FD)
            libc.execve(path, argv, envp)
            libc._exit(99)
        sys.setswitchinterval(interval)
        assert pid > 0, ctypes.get_errno()
        os.close(mem)
        return pid

    def helper(self) -> None:
        """A child of the daemon that holds none of our descriptors, and lives by itself."""
        argv = (ctypes.c_char_p * 3)(b"sleep", b"600", None)
        envp = (ctypes.c_char_p * 1)(None)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(3600)
        time.sleep(0.01)
        pid = libc.syscall(SYS_CLONE, CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            libc.close_range(CTL_FD, 0xFFFFFFFF, 0)
            libc.execve(b"/bin/sleep", argv, envp)
            libc._exit(99)
        sys.setswitchinterval(interval)

    def become_child(self, mem: int) -> None:
        """Takes over the parent's state; the child's misbehaviour, if one was ordered."""
        os.lseek(mem, 0, 0)
        told = json.loads(os.read(mem, 64 << 20))
        os.close(mem)
        self.mode, self.fds, self.boot = told["mode"], told["fds"], tuple(told["boot"])
        self.state, self.wire = told["state"], told["wire"]
        if self.mode == "mute":
            self.ctl.recv(1)
            os._exit(9)
        word, _, rest = self.mode.partition(" ")
        if word == "quiet":
            time.sleep(float(rest))
        self.send(HERE)
        if os.read(self.fds["gate"], 1) == b"":
            os._exit(8)
        os.close(self.fds.pop("gate"))
        for fd in self.fds.values():
            os.set_inheritable(fd, False)
        os.set_inheritable(CTL_FD, False)
        if self.frozen:
            self.thawed.clear()
        if self.mode == "child-dies":
            os._exit(7)
        if self.mode == "child-exits":
            self.exit(4, "KVM_CREATE_VM: Cannot allocate memory")
        self.send(BOOTED, value=1234)

    def run(self) -> None:
        """Serves the control socket until the daemon closes it."""
        if self.mode == "exit-early":
            sys.exit(3)
        while True:
            self.guest.listening.wait()
            data, anc, _, _ = self.ctl.recvmsg(
                WIRE_MAX, socket.CMSG_SPACE(8 * 4), socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                time.sleep(5 if self.hung_up else 0)
                os._exit(0)
            magic, kind, ident, code, port, mem, vcpus, disk = struct.unpack_from("<8I", data)
            self.wire = self.wire or len(data)
            assert magic == MAGIC and len(data) == self.wire
            fds = array.array("i")
            for _, _, raw in anc:
                fds.frombytes(raw[: len(raw) - len(raw) % 4])
            if kind == BOOT:
                self.on_boot(list(fds), mem, vcpus, disk)
            elif kind == CONNECT:
                self.on_connect(ident, port, fds[0])
            elif kind == STOP:
                self.exit(5, "stopped")
            elif kind == RECORD:
                self.on_record(ident, code)
            elif kind == LEARN:
                self.on_learn(ident)
            elif kind == WARM:
                self.state["warmed"].append(code)
            elif kind in (EGRESS, ACCEPT, REJECT):
                self.guest.control(kind, ident, code, list(fds))
            elif kind == PAUSE:
                self.on_pause(ident)
            elif kind == FORK:
                self.on_fork(ident, dict(zip(FORK_FDS, fds)), code)
                for fd in fds:
                    os.close(fd)


def main() -> None:
    """Runs until the daemon is gone."""
    mode, child, files, inert = "normal", -1, "", False
    while len(sys.argv) > 1 and sys.argv[1].startswith("--"):
        name, _, value = sys.argv.pop(1).partition("=")
        if name == "--mode":
            mode = value
        elif name == "--child":
            child = int(value)
        elif name == "--files":
            files = os.path.realpath(value)
        elif name == "--inert":
            inert = True
    vmm = Vmm(mode)
    vmm.state |= {"files": files, "inert": inert}
    if child >= 0:
        vmm.become_child(child)
    vmm.run()


main()
