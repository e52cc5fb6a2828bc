# SPDX-License-Identifier: Apache-2.0
"""Tells what changes in a directory: `files.watch` of the SDK, as a program of its own.

    python3 -I -S -X utf8 watch.py [--recursive] DIRECTORY

It prints a line of JSON for each event:

    {"type": "ready"}                     the watch is in place; nothing after this is missed
    {"type": "created", "path", "dir"}    also for what was moved in, and what is in it
    {"type": "modified", "path", "dir"}   closed after writing; mode, owner or times were changed
    {"type": "deleted", "path", "dir"}    also what was moved out; all that was in it is gone as well
    {"type": "moved", "from", "path", "dir"}   also in the place of what was there
    {"type": "overflow"}                  events were lost; what a comparison finds follows
    {"type": "error", "code", "message"}  last line: it cannot go on
    {"type": "again"}                     last line: its output is long enough, start another one
    {"type": "end"}                       last line: the directory is gone, or this is a copy (fork)

How it stays right. The kernel tells of names in directories that are watched (inotify), and of nothing
that happens in a new one before it is. So each directory is watched first and listed then, and what is
known of its names (`Node.entries`) decides: what the list has shown is not told again when its event comes
from the queue. For this a list notes how far the queue had come (`Node.mark`). An event of what is not known
or known already is older than the list, and harmless. What is found may also be newer than an event that
means another of that name (`Watch.sure`): then that is told as deleted and looked for anew. Events of a
name come in order, whatever was seen early; so what was told adds up to what is there.

Directories are known by their inodes: a path is opened only if the directory above it still is the one
that is meant. One that cannot be opened has been moved or deleted, which the queue will tell; it waits
(`pending`). Symbolic links and other file systems are not entered.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from typing import Any, Dict, List, Optional, Set

# As a program it has no package, and is started without its own directory among those of modules.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from inotify import (  # noqa: E402
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_EXCL_UNLINK,
    IN_IGNORED,
    IN_ISDIR,
    IN_MASK_ADD,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    Event,
    Failure,
    Notify,
    limit_text,
)

del sys.path[0]

MASK = (
    IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    | IN_DELETE_SELF | IN_ONLYDIR | IN_EXCL_UNLINK
)  # fmt: skip

PARTNER_MS = 20  # the two halves of a move are queued by one system call
NEAR = 16  # events that may have come between them
BATCH_MAX = 20_000  # events after which the other half is not waited for
# Of a call's output the first half of its limit is passed on as it comes: 128 MiB of what the SDK asks for.
LIMIT = 120 << 20
FLUSH = 1000  # lines

FORK_FILE = "fork-generation"  # written anew in each copy of a sandbox


class Over(Exception):
    """The last line."""


class Gone(Exception):
    """A directory is not where it was."""


class Node:
    """A directory below the root, or the root. `wd` is None while it is not watched. `mark` and `bound`:
    how far the queue had come when it was listed, and when it was found at its path."""

    __slots__ = ("parent", "name", "wd", "ino", "entries", "mark", "bound")

    def __init__(self, parent: Optional[Node], name: str) -> None:
        self.parent, self.name = parent, name
        self.wd: Optional[int] = None
        self.ino: Optional[int] = None
        self.entries: Dict[str, Optional[Node]] = {}  # None: not a directory
        self.mark = self.bound = 0

    def path(self, name: str = "") -> str:
        """Its path, or that of a name in it."""
        parts = [name] if name else []
        node: Optional[Node] = self
        while node is not None:
            parts.append(node.name)
            node = node.parent
        if parts[-1] == "/" and len(parts) > 1:
            parts[-1] = ""
        return "/".join(reversed(parts))

    def below(self, other: Node) -> bool:
        """Whether it is the other one, or lies in it."""
        node: Optional[Node] = self
        while node is not None:
            if node is other:
                return True
            node = node.parent
        return False


class Output:
    """Lines to a descriptor, which may block: then the kernel's queue takes what happens meanwhile."""

    def __init__(self, fd: int, limit: int = LIMIT) -> None:
        self._fd, self._left = fd, limit
        self._lines: List[str] = []

    def put(self, line: Dict[str, Any]) -> None:
        """A line, sent soon."""
        self._lines.append(json.dumps(line) + "\n")
        if len(self._lines) >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """All that is there."""
        data = memoryview("".join(self._lines).encode("ascii"))
        self._lines.clear()
        self._left -= len(data)
        over = self._left < 0
        if over:
            data = memoryview(b'{"type": "again"}\n')
        while data:
            data = data[os.write(self._fd, data) :]
        if over:
            raise Over


class Watch:
    """Everything about one directory."""

    def __init__(self, root: str, recursive: bool, output: Output) -> None:
        self.root = Node(None, root.rstrip("/") or "/")
        self.recursive, self.output = recursive, output
        self.notify = Notify()
        self.nodes: Dict[int, Node] = {}
        self.pending: Set[Node] = set()
        self.dev = 0
        self.above = self.copies = -1  # watches of the directory above, and of FORK_FILE
        self.above_name = ""
        self.ready = False

    # What is told.

    def tell(self, kind: str, path: str, is_dir: bool, **more: str) -> None:
        """An event; before the watch is in place there is nobody to be told."""
        if self.ready:
            self.output.put({"type": kind, "path": path, "dir": is_dir, **more})

    def end(self) -> None:
        """The directory itself is gone from its path."""
        self.tell("deleted", self.root.path(), True)
        self.output.put({"type": "end"})
        self.output.flush()
        raise Over

    # Watching directories.

    def open(self, node: Node) -> int:
        """The directory, if it is where it is thought to be; Gone if not."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        above = -1
        try:
            if node.parent is None:
                fd = os.open(node.name, flags)
            else:
                above = os.open(node.parent.path(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                if os.fstat(above).st_ino != node.parent.ino:
                    raise Gone
                fd = os.open(node.name, flags | os.O_NOFOLLOW, dir_fd=above)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                raise Gone from exc
            raise
        finally:
            if above >= 0:
                os.close(above)
        if node.ino not in (None, os.fstat(fd).st_ino):
            os.close(fd)
            raise Gone
        return fd

    def add(self, node: Node, fd: int) -> bool:
        """Watches a directory that is open; False if it is not to be entered."""
        status = os.fstat(fd)
        if node.parent is not None and status.st_dev != self.dev:
            return False
        try:
            mask = MASK if node.parent is not None else MASK | IN_MOVE_SELF
            wd = self.notify.add(f"/proc/self/fd/{fd}", mask)
            other = self.nodes.get(wd)
            if other is not None and other is not node:
                if self.is_at(other):
                    return False  # it is mounted at two places
                self.leave(other)  # it is here now; the queue will say so
                wd = self.notify.add(f"/proc/self/fd/{fd}", mask)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                raise Failure(
                    "too_many_watches", limit_text("watches", "watched directories")
                ) from exc
            raise
        if node.wd is not None and node.wd != wd:
            self.nodes.pop(node.wd, None)
        node.wd, node.ino, node.bound = wd, status.st_ino, self.notify.position()
        self.nodes[wd] = node
        return True

    def is_at(self, node: Node) -> bool:
        """Whether a directory still is where it was."""
        try:
            os.close(self.open(node))
        except (Gone, OSError):
            return False
        return True

    def enter(self, first: Node) -> None:
        """Watches a new directory and all below it, and tells what is in there."""
        todo = [first]
        while todo:
            node = todo.pop()
            try:
                fd = self.open(node)
            except Gone:
                self.pending.add(node)
                continue
            except PermissionError:
                continue  # as with list: what the user may not read is left out
            try:
                if self.add(node, fd):
                    todo += self.list(node, fd)
            except PermissionError:
                pass
            finally:
                os.close(fd)

    def retry(self, nodes: List[Node]) -> None:
        """Enters directories that could not be opened before."""
        for node in nodes:
            self.pending.discard(node)
        for node in nodes:
            self.enter(node)

    def list(self, node: Node, fd: int, since: Optional[int] = None) -> List[Node]:
        """Compares a directory with what is known of it and tells the difference: its directories, to be
        entered. since: what was changed after that time is told as well."""
        found: Dict[str, bool] = {}
        # A directory that was deleted cannot be listed.
        with contextlib.suppress(FileNotFoundError), os.scandir(fd) as entries:
            for entry in entries:
                found[entry.name] = is_dir = entry.is_dir(follow_symlinks=False)
                if since is not None and not is_dir and node.entries.get(entry.name, self) is None:
                    if changed(entry) >= since:
                        self.tell("modified", node.path(entry.name), False)
        for name in [one for one in node.entries if one not in found]:
            self.left(node, name)
        for name, is_dir in found.items():
            if name in node.entries and is_dir != (node.entries[name] is not None):
                self.left(node, name)
            if name not in node.entries:
                node.entries[name] = Node(node, name) if is_dir else None
                self.tell("created", node.path(name), is_dir)
        node.mark = self.notify.position()
        return [one for one in node.entries.values() if one is not None] if self.recursive else []

    def forget(self, top: Node) -> None:
        """Does not watch a directory and what is below it any more."""
        todo = [top]
        while todo:
            node = todo.pop()
            self.pending.discard(node)
            if node.wd is not None:
                self.nodes.pop(node.wd, None)
                self.notify.remove(node.wd)
                node.wd = None
            todo += [one for one in node.entries.values() if one is not None]

    def leave(self, node: Node) -> None:
        """A directory is not where it was."""
        if node.parent is None:
            self.end()
        elif node.parent.entries.get(node.name) is node:
            self.left(node.parent, node.name)
        else:
            self.forget(node)

    # Events.

    def arrived(self, node: Node, name: str, is_dir: bool, pos: int) -> None:
        """There is something of that name."""
        kind = "created"
        if name in node.entries:
            if pos < node.mark:
                return  # the list has shown it
            old = node.entries[name]
            if old is not None:
                self.forget(old)
            elif not is_dir:
                kind = "modified"  # replaced, by what came from elsewhere
        new = Node(node, name) if is_dir else None
        node.entries[name] = new
        self.tell(kind, node.path(name), is_dir)
        if new is not None and self.recursive:
            self.enter(new)

    def left(self, node: Node, name: str) -> None:
        """There is nothing of that name."""
        if name not in node.entries:
            return
        old = node.entries.pop(name)
        if old is not None:
            self.forget(old)
        self.tell("deleted", node.path(name), old is not None)

    def modified(self, node: Node, name: str, is_dir: bool, pos: int) -> None:
        """Content or attributes."""
        if name in node.entries:
            self.tell("modified", node.path(name), is_dir)
            inner = node.entries[name]
            if inner is not None and inner.wd is None and self.recursive:
                self.pending.add(inner)  # it may be readable now
        elif os.path.lexists(node.path(name)):
            self.arrived(node, name, is_dir, pos)

    def sure(self, node: Node, name: str, is_dir: bool, pos: int) -> bool:
        """Whether what is known by that name is what an event means, and not something that came later."""
        if name not in node.entries or pos < node.mark:
            return False
        entry = node.entries[name]
        return is_dir == (entry is not None) and (entry is None or pos >= entry.bound)

    def moved(self, node: Node, name: str, to: Node, new: str, is_dir: bool, pos: int) -> None:
        """From one directory to another, or to another name."""
        if not self.sure(node, name, is_dir, pos):
            self.left(node, name)
            self.arrived(to, new, is_dir, pos)
            return
        if new in to.entries and (to, new) != (node, name):
            if pos < to.mark:
                self.left(node, name)  # the list has shown it in its new place
                return
            replaced = to.entries[new]
            if replaced is not None:
                self.forget(replaced)
        entry = node.entries[name]
        if entry is not None and to.below(entry):
            self.overflow()  # such a thing cannot be: compare
            return
        before = node.path(name)
        del node.entries[name]
        to.entries[new] = entry
        if entry is not None:
            entry.parent, entry.name = to, new
        self.tell("moved", to.path(new), is_dir, **{"from": before})
        if entry is not None:
            self.retry([one for one in self.pending if one.below(entry)])

    def swapped(self, node: Node, name: str, to: Node, new: str) -> bool:
        """Both names have each other's (RENAME_EXCHANGE), and this was told; False if it is not so."""
        one, two = node.entries[name], to.entries[new]
        for entry, path in ((one, to.path(new)), (two, node.path(name))):
            try:
                status = os.lstat(path)
            except OSError:
                return False
            if stat.S_ISDIR(status.st_mode) != (entry is not None):
                return False
            if entry is not None and entry.ino not in (None, status.st_ino):
                return False
        if (one is not None and to.below(one)) or (two is not None and node.below(two)):
            return False
        here, there = node.path(name), to.path(new)
        node.entries[name], to.entries[new] = two, one
        for entry, parent, called in ((one, to, new), (two, node, name)):
            if entry is not None:
                entry.parent, entry.name = parent, called
        self.tell("moved", there, one is not None, **{"from": here})
        self.tell("moved", here, two is not None, **{"from": there})
        return True

    def overflow(self) -> None:
        """Events were lost: compare everything."""
        self.output.put({"type": "overflow"})
        since, self.notify.lost_since = self.notify.lost_since, None
        todo = [self.root]
        while todo:
            node = todo.pop()
            if node.wd is None:
                self.enter(node)
                continue
            fd = -1
            try:
                fd = self.open(node)
                if self.add(node, fd):
                    todo += self.list(node, fd, since)
            except (Gone, PermissionError):
                self.replaced(node)
            finally:
                if fd >= 0:
                    os.close(fd)

    def replaced(self, node: Node) -> None:
        """Another directory, or none, is where this one was."""
        parent, name = node.parent, node.name
        self.leave(node)
        if parent is not None and os.path.isdir(parent.path(name)):
            self.arrived(parent, name, True, self.notify.position())

    def handle(self, event: Event) -> None:
        """One event that is no half of a move."""
        if event.mask & IN_Q_OVERFLOW:
            self.overflow()
            return
        if event.wd == self.copies and event.name == FORK_FILE:
            self.output.put({"type": "end"})
            self.output.flush()
            raise Over
        if event.wd == self.above and event.name == self.above_name:
            self.end()
        node = self.nodes.get(event.wd)
        if node is None:
            return
        if event.mask & (IN_IGNORED | IN_UNMOUNT | IN_DELETE_SELF | IN_MOVE_SELF):
            if node is self.root:
                self.end()
            if event.mask & IN_IGNORED:
                del self.nodes[event.wd]
                node.wd = None
        elif not event.name:
            if node is self.root:
                self.tell("modified", node.path(), True)
        elif event.mask & (IN_CREATE | IN_MOVED_TO):
            self.arrived(node, event.name, bool(event.mask & IN_ISDIR), event.pos)
        elif event.mask & (IN_DELETE | IN_MOVED_FROM):
            self.left(node, event.name)
        else:
            self.modified(node, event.name, bool(event.mask & IN_ISDIR), event.pos)

    def batch(self, events: List[Event]) -> None:
        """Some events in their order, but that the two halves of a move are handled together."""
        done: Set[int] = set()
        at = 0
        while at < len(events):
            event = events[at]
            if at not in done:
                partner = self.partner(events, at) if event.mask & IN_MOVED_FROM else None
                if partner is None:
                    self.handle(event)
                else:
                    done.add(partner)
                    if self.both(event, events[partner], events, partner + 1):
                        done.update((partner + 1, partner + 2))
            at += 1

    def partner(self, events: List[Event], at: int) -> Optional[int]:
        """Where the other half of a move is. Its end may not have been read yet."""
        for again in (True, False):
            for index in range(at + 1, min(at + 1 + NEAR, len(events))):
                if events[index].mask & IN_MOVED_TO and events[index].cookie == events[at].cookie:
                    return index
            if again and at + NEAR >= len(events) and len(events) < BATCH_MAX:
                self.output.flush()
                events += self.notify.read(PARTNER_MS)
            else:
                break
        return None

    def both(self, event: Event, other: Event, events: List[Event], after: int) -> bool:
        """A move; True if the two events behind it are the other half of an exchange."""
        node, to = self.nodes.get(event.wd), self.nodes.get(other.wd)
        if node is None or to is None:
            self.handle(event)
            self.handle(other)
            return False
        name, new = event.name, other.name
        both = name in node.entries and new in to.entries
        if both and event.pos >= max(node.mark, to.mark) and os.path.lexists(node.path(name)):
            if after + 2 > len(events):
                events += self.notify.read(PARTNER_MS)
            back = [(e.wd, e.name) for e in events[after : after + 2]]
            if back == [(other.wd, new), (event.wd, name)] and self.swapped(node, name, to, new):
                return True
        self.moved(node, name, to, new, bool(event.mask & IN_ISDIR), other.pos)
        return False

    # The whole.

    def begin(self) -> None:
        """Puts the watch in place."""
        try:
            fd = self.open(self.root)
        except Gone as exc:
            raise Failure("file_not_found", f"{self.root.name} is not a directory") from exc
        except OSError as exc:
            raise Failure(
                "permission_denied", f"cannot watch {self.root.name}: {exc.strerror}"
            ) from exc
        try:
            self.dev = os.fstat(fd).st_dev
            # Who holds a directory (a shell that stands in it) keeps it from telling that it is deleted.
            above, self.above_name = os.path.split(os.readlink(f"/proc/self/fd/{fd}"))
            mask = IN_DELETE | IN_MOVED_FROM | IN_ONLYDIR
            self.above = self.optional(above, mask) if self.above_name else -1
            run = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            self.copies = self.optional(run, IN_CLOSE_WRITE | IN_MOVED_TO | IN_ONLYDIR)
            self.add(self.root, fd)
            inner = self.list(self.root, fd)
        except OSError as exc:
            raise Failure(
                "permission_denied", f"cannot watch {self.root.name}: {exc.strerror}"
            ) from exc
        finally:
            os.close(fd)
        for node in inner:
            self.enter(node)
        if not self.is_at(self.root):
            raise Failure("file_not_found", f"{self.root.name} was moved or deleted")
        self.ready = True
        self.output.put({"type": "ready"})
        self.output.flush()

    def optional(self, path: str, mask: int) -> int:
        """A watch that may be missing; its directory may be watched as part of the tree as well."""
        try:
            return self.notify.add(path, mask | IN_MASK_ADD)
        except OSError:
            return -1

    def run(self) -> None:
        """Until Over, or Failure."""
        self.begin()
        while True:
            self.batch(self.notify.read(None))
            self.retry(list(self.pending))
            self.output.flush()


def changed(entry: os.DirEntry[str]) -> int:
    """When it was last changed; 0 for what is gone."""
    try:
        return entry.stat(follow_symlinks=False).st_ctime_ns
    except OSError:
        return 0


def main(arguments: List[str]) -> int:
    """The program."""
    recursive = arguments[:1] == ["--recursive"]
    (root,) = arguments[1:] if recursive else arguments
    output = Output(sys.stdout.fileno())
    try:
        Watch(root, recursive, output).run()
    except Over:
        return 0
    except BrokenPipeError:
        return 1
    except Failure as exc:
        failure = exc
    except OSError as exc:
        failure = Failure("io_error", f"cannot watch {root} any further: {exc}")
    try:
        output.put({"type": "error", "code": failure.code, "message": str(failure)})
        output.flush()
    except (BrokenPipeError, Over):
        pass
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
