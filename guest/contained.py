#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""For root: runs a command as root of namespaces of its own, who is nobody to this machine. Scripts of
packages and recipes run as root while an image is made; this is for whoever is root already.

    contained.py --check
    contained.py [--out FILE] [--log FILE] FOLDER COMMAND...

The command runs in FOLDER, which is /mnt to it and belongs to its root. Its ids from 0 to 65535 are ids here
that nobody has; it sees no other processes, has no terminal, none of our PODFLARE_* variables but
PODFLARE_DEBIAN_SOURCES, and the network. It can read what everybody may. FILEs are made when they are
missing, may be anywhere, and are /proc/self/fd/200 and /proc/self/fd/201 to it. What it prints is passed on without a
terminal's commands. When this process ends, by whatever signal, so do all of its processes.

Exit status: the command's, 125 when it could not be started. --check: 0 when it could be.
"""

from __future__ import annotations

import argparse
import codecs
import ctypes
import fcntl
import os
import random
import signal
import stat
import sys
import tempfile
from pathlib import Path

COUNT = 65536
# From here to 2^31 - 2^17 no distribution and no service manager gives an id to anybody.
FIRST, RANGES = 0x70000000, 4000
INSIDE = "/mnt"
OUT_FD, LOG_FD = 200, 201  # a shell has names of one digit for its own, mmdebstrap needs some of these

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

libc = ctypes.CDLL(None, use_errno=True)


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
        pass  # a container hides parts of it: then what it shows is what there is
    arrange_descriptors(files, out)
    os.chdir(INSIDE)
    keep = "PODFLARE_DEBIAN_SOURCES"
    env = {k: v for k, v in os.environ.items() if not k.startswith("PODFLARE_") or k == keep}
    os.execvpe(argv[0], argv, {**env, "HOME": INSIDE, "TMPDIR": INSIDE})


def middle(
    folder: Path, argv: list[str], files: dict[int, int], out: int, ready: int, go: int, parent: int
) -> int:
    """Makes the namespaces, has their ids written from outside, and waits for their first process."""
    die_with_parent(parent)
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    # Where it is may be out of reach for who we are going to be.
    mount(str(folder), INSIDE, None, MS_BIND)
    unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)
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


def run(folder: Path, argv: list[str], files: dict[int, int], base: int) -> int:
    """The command to its end."""
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
        for kind in ("gid", "uid"):
            Path(f"/proc/{child}/{kind}_map").write_text(f"0 {base} {COUNT}\n")
        os.write(go, b"x")
    os.close(go)
    pass_on(out_read)
    return exit_code(os.waitpid(child, 0)[1])


def base_of(folder: Path) -> int:
    """The ids that a folder has from an earlier command, or new ones, so that two builds at a time are
    strangers to each other."""
    owner = os.stat(folder).st_uid
    if FIRST <= owner < FIRST + RANGES * COUNT:
        return owner
    base = FIRST + COUNT * random.SystemRandom().randrange(RANGES)
    os.chown(folder, base, base)
    return base


def give(path: Path, flags: int, base: int) -> int:
    """A file, as the command's until take_back()."""
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(0, f"{path} is not a file")
    os.fchown(fd, base, base)
    return fd


def take_back(path: Path, fd: int) -> None:
    """It belongs to whom its folder belongs to; nothing writes to it any more."""
    owner = os.stat(path.parent)
    os.fchown(fd, owner.st_uid, owner.st_gid)
    os.fchmod(fd, 0o644)


def contained(folder: Path, argv: list[str], out: Path | None, log: Path | None) -> int:
    base = base_of(folder)
    opened: list[tuple[Path, int]] = []
    files: dict[int, int] = {}
    try:
        for path, flags, target in (
            (out, os.O_RDWR, OUT_FD),
            (log, os.O_WRONLY | os.O_APPEND, LOG_FD),
        ):
            if path:
                opened.append((path, give(path, flags, base)))
                files[opened[-1][1]] = target
        return run(folder, argv, files, base)
    finally:
        for path, fd in opened:
            take_back(path, fd)


def check() -> int:
    """Whether all of this is possible here, and mounting inside, too."""
    with tempfile.TemporaryDirectory() as folder:
        return contained(Path(folder), ["mount", "-t", "tmpfs", "none", INSIDE], None, None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="contained.py", allow_abbrev=False)
    parser.add_argument("--check", action="store_true")
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
        return contained(args.folder.resolve(), args.command, args.out, args.log)
    except OSError as e:
        print(f"contained.py: {e.strerror or e}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main())
