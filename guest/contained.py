#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs a command as root of namespaces of its own, who is nobody to this machine: scripts of packages and
recipes run as root while an image is made.

    contained.py --check
    contained.py [--uncontained] [--out FILE] [--log FILE] FOLDER COMMAND...

The command runs in FOLDER, which is /mnt to it and belongs to its root; only we need to be able to get there.
Its ids from 0 to 65535 are ids here that nobody has or, for an ordinary user, the first 65536 together that he
was given (/etc/subuid, /etc/subgid). It sees no other processes, has no terminal, no key of our keyrings, of our
variables those in KEPT, and the network. It can read what everybody may. FILEs are made when they are
missing, may be anywhere, and are /proc/self/fd/200 and /proc/self/fd/201 to it. What it prints is passed on without a
terminal's commands. When this process ends, by whatever signal, so do all of its processes.

--uncontained is for root who can make no namespaces: only the variables, descriptors and keys are as above. The
command is root of this machine, in FOLDER where that is; a signal to us goes to it.

Exit status: the command's, 125 when it could not be started. --check: 0 when it could be, 3 when
it would see the processes of this machine, as in a container that hides parts of /proc.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import ctypes
import errno
import fcntl
import os
import pwd
import random
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

COUNT = 65536
# From here to 2^31 - 2^17 no distribution and no service manager gives an id to anybody.
FIRST, RANGES = 0x70000000, 4000
INSIDE = "/mnt"
OUT_FD, LOG_FD = 200, 201  # a shell has names of one digit for its own, mmdebstrap needs some of these

# What the scripts of a build read, and how apt gets to the network.
PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "ftp", "all", "no")]
KEPT = {"PATH", "LANG", "LC_ALL", "TERM", "SOURCE_DATE_EPOCH", "PODFLARE_DEBIAN_SOURCES"}
KEPT |= {*PROXIES, *(name.upper() for name in PROXIES)}

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING = 250, 1

libc = ctypes.CDLL(None, use_errno=True)


class Ids(NamedTuple):
    """What root of the namespaces is outside; the ids after it are the others'."""

    uid: int
    gid: int


def checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    checked(libc.unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    words = [w.encode() if w else None for w in (source, target, kind)]
    checked(libc.mount(*words, ctypes.c_ulong(flags), None), f"mount {target}")


def die_with_parent(parent: int) -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(125)


def leave_keys() -> None:
    """A session keyring of its own: who has one of root's may read what is in it, whatever his ids are."""
    if libc.syscall(SYS_KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None) < 0:
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EPERM):  # no keys here, or a container's filter that hides all
            raise OSError(code, f"a session keyring: {os.strerror(code)}")


def execute(argv: list[str], home: Path) -> None:
    """Becomes the command, with what it may have of our variables; does not return."""
    os.chdir(home)
    env = {name: value for name, value in os.environ.items() if name in KEPT}
    os.execvpe(argv[0], argv, {**env, "HOME": str(home), "TMPDIR": str(home)})


def arrange_descriptors(files: dict[int, int], out: int) -> None:
    """Those that the command has, and no others."""
    null = os.open(os.devnull, os.O_RDONLY)
    wanted = {0: null, 1: out, 2: out, **{target: fd for fd, target in files.items()}}
    copies = {to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOG_FD + 1) for to, fd in wanted.items()}
    os.closerange(3, LOG_FD + 1)
    for target, fd in copies.items():
        os.dup2(fd, target, inheritable=True)
    os.closerange(LOG_FD + 1, os.sysconf("SC_OPEN_MAX"))


def run_inside(argv: list[str], files: dict[int, int], out: int) -> None:
    """The first process of the namespaces; does not return."""
    die_with_parent(0)  # it is in another namespace
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:
        pass  # a container hides parts of it: then what it shows is what there is, and check() says so
    arrange_descriptors(files, out)
    execute(argv, Path(INSIDE))


def middle(
    folder: Path, argv: list[str], files: dict[int, int], out: int, ready: int, go: int, parent: int
) -> int:
    """Makes the namespaces, has their ids written from outside, and waits for their first process."""
    die_with_parent(parent)
    leave_keys()
    spaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
    # Where the folder is may be out of reach for who we are going to be. Root can get there as root only, and
    # nobody else can mount anything before he has namespaces.
    unshare(CLONE_NEWNS if os.geteuid() == 0 else spaces)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount(str(folder), INSIDE, None, MS_BIND)
    if os.geteuid() == 0:
        unshare(spaces)
    os.write(ready, b"x")
    if os.read(go, 1) != b"x":
        return 125
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    die_with_parent(parent)  # the change of ids has undone it
    child = os.fork()
    if child == 0:
        try:
            run_inside(argv, files, out)
        except OSError as e:
            os.write(2, f"contained.py: cannot run {argv[0]}: {e.strerror}\n".encode())
        finally:
            os._exit(125)
    os.close(out)
    return exit_code(os.waitpid(child, 0)[1])


def write_maps(pid: int, uids: list[tuple[int, int, int]], gids: list[tuple[int, int, int]]) -> None:
    """Says what ids of a process's new namespace are outside: rows of inside, outside, how many."""
    for kind, rows in (("gid", gids), ("uid", uids)):
        if os.geteuid() == 0:
            Path(f"/proc/{pid}/{kind}_map").write_text("".join("%d %d %d\n" % row for row in rows))
            continue
        words = [str(number) for row in rows for number in row]
        done = subprocess.run([f"new{kind}map", str(pid), *words], capture_output=True, check=False)
        if done.returncode != 0:
            raise OSError(0, done.stderr.decode(errors="replace").strip() or f"new{kind}map failed")


def pass_on(fd: int) -> None:
    """Copies what the command prints."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := os.read(fd, 65536):
        text = decoder.decode(data)
        sys.stdout.write("".join(c if c.isprintable() or c in "\n\t" else "?" for c in text))
        sys.stdout.flush()


def exit_code(wait_status: int) -> int:
    """As a shell has it."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


def end_with_signals(child: int) -> None:
    """A signal to us ends the command, and then us."""

    def end(number: int, _frame: object) -> None:
        os.kill(child, signal.SIGKILL)
        try:
            while True:
                os.wait()  # for the namespaces' first process, too, which has all others end
        except ChildProcessError:
            os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def run(folder: Path, argv: list[str], files: dict[int, int], ids: Ids) -> int:
    """The command to its end, in namespaces."""
    ready_read, ready = os.pipe()
    go_read, go = os.pipe()
    out_read, out = os.pipe()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    me = os.getpid()
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for fd in (ready_read, go, out_read):
            os.close(fd)
        status = 125
        try:
            status = middle(folder, argv, files, out, ready, go_read, me)
        except OSError as e:
            os.write(2, f"contained.py: {e.strerror}\n".encode())
        finally:
            os._exit(status)
    end_with_signals(child)
    for fd in (ready, go_read, out):
        os.close(fd)
    if os.read(ready_read, 1) == b"x":
        write_maps(child, [(0, ids.uid, COUNT)], [(0, ids.gid, COUNT)])
        os.write(go, b"x")
    os.close(go)
    pass_on(out_read)
    return exit_code(os.waitpid(child, 0)[1])


def run_uncontained(folder: Path, argv: list[str], files: dict[int, int]) -> int:
    """The command to its end, as we are. It has a process group of its own, so that a signal to us can be
    passed on to all of it: mmdebstrap ends what it has mounted."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            leave_keys()
            arrange_descriptors(files, 1)
            execute(argv, folder)
        except OSError as e:
            os.write(2, f"contained.py: cannot run {argv[0]}: {e.strerror}\n".encode())
        finally:
            os._exit(125)
    with contextlib.suppress(OSError):  # it has done so, and is the command already
        os.setpgid(child, child)

    def pass_signal(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, number)

    for number in SIGNALS:
        signal.signal(number, pass_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return exit_code(os.waitpid(child, 0)[1])


def subordinate(kind: str) -> int:
    """The first of enough ids that an ordinary user was given."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = str(number)
    for line in Path(f"/etc/sub{kind}").read_text().splitlines():
        who, _, row = line.partition(":")
        first, _, count = row.partition(":")
        if who in (name, str(number)) and count.isdecimal() and int(count) >= COUNT:
            return int(first)
    raise OSError(0, f"{name} has no {COUNT} ids together in /etc/sub{kind}")


def ids_for(folder: Path) -> Ids:
    """For root those that a folder has from an earlier command, or new ones, so that two builds at a time are
    strangers to each other."""
    if os.geteuid() != 0:
        return Ids(subordinate("uid"), subordinate("gid"))
    owner = os.stat(folder).st_uid
    if FIRST <= owner < FIRST + RANGES * COUNT:
        return Ids(owner, owner)
    base = FIRST + COUNT * random.SystemRandom().randrange(RANGES)
    return Ids(base, base)


def change_owner(fd: int, ids: Ids, mine: bool) -> None:
    """Gives a file to the namespaces' root or, if it is to be ours, takes it back. Who is not root does that as
    root of a namespace that has him and that root."""
    if os.geteuid() == 0:
        os.fchown(fd, *((0, 0) if mine else ids))
        return
    if os.fstat(fd).st_uid == os.getuid():
        os.fchown(fd, -1, os.getgid())  # a folder may give its files another group
    ready_read, ready = os.pipe()
    go_read, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(go)
            unshare(CLONE_NEWUSER)
            os.write(ready, b"x")
            if os.read(go_read, 1) == b"x":
                os.fchown(fd, *((0, 0) if mine else (1, 1)))
                os._exit(0)
        except OSError as e:
            os.write(2, f"contained.py: {e.strerror}\n".encode())
        finally:
            os._exit(1)
    os.close(ready)
    os.close(go_read)
    try:
        if os.read(ready_read, 1) == b"x":
            maps = ([(0, own, 1), (1, their, 1)] for own, their in zip((os.getuid(), os.getgid()), ids))
            write_maps(child, *maps)
            os.write(go, b"x")
    finally:
        os.close(go)
        os.close(ready_read)
        done = os.waitpid(child, 0)[1]
    if done != 0:
        raise OSError(0, "the owner of a file cannot be changed")


def open_file(path: Path, flags: int) -> int:
    """A file for the command, made if it is missing."""
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(0, f"{path} is not a file")
    return fd


def take_back(path: Path, fd: int, ids: Ids | None) -> None:
    """It belongs to whom its folder belongs to; nothing writes to it any more."""
    if os.geteuid() == 0:
        owner = os.stat(path.parent)
        os.fchown(fd, owner.st_uid, owner.st_gid)
    elif ids:
        change_owner(fd, ids, mine=True)
    os.fchmod(fd, 0o644)


def give_folder(folder: Path, ids: Ids) -> None:
    """Makes a folder that of the namespaces' root."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid != ids.uid:
            change_owner(fd, ids, mine=False)
    finally:
        os.close(fd)


def start(
    folder: Path, argv: list[str], out: Path | None, log: Path | None, uncontained: bool = False
) -> int:
    """The command to its end, with its files."""
    ids = None if uncontained else ids_for(folder)
    opened: list[tuple[Path, int]] = []
    files: dict[int, int] = {}
    if ids:
        give_folder(folder, ids)
    try:
        for path, flags, target in (
            (out, os.O_RDWR, OUT_FD),
            (log, os.O_WRONLY | os.O_APPEND, LOG_FD),
        ):
            if path:
                fd = open_file(path, flags)
                opened.append((path, fd))
                files[fd] = target
                if ids:
                    change_owner(fd, ids, mine=False)
        return run(folder, argv, files, ids) if ids else run_uncontained(folder, argv, files)
    finally:
        for path, fd in opened:
            take_back(path, fd, ids)


def check() -> int:
    """Whether all of this is possible here, and mounting inside, too."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "folder")  # in one of ours, where we may remove it
        folder.mkdir()
        script = f"mount -t tmpfs none {INSIDE} || exit 1; [ /proc/1 -ef /proc/self ] || exit 3"
        return start(folder, ["sh", "-c", script], None, None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="contained.py", allow_abbrev=False)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--uncontained", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    try:
        if args.check:
            return check()
        if not args.command:
            parser.error("which command?")
        return start(args.folder.resolve(), args.command, args.out, args.log, args.uncontained)
    except OSError as e:
        print(f"contained.py: {e.strerror or e}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
