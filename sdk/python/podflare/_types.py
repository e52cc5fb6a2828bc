# SPDX-License-Identifier: Apache-2.0
"""Descriptions that the SDK hands out: of sandboxes, files, contexts, differences. What code did is in
_results.py."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple, Union

from ._egress import Egress


@dataclass(frozen=True)
class FileInfo:
    """A file in the sandbox: its absolute path there and its size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class FileStat:
    """What lies at a path in the sandbox. A symbolic link is described itself, not what it points to.

    type         "file", "dir", "link" or "other".
    size         bytes.
    mode         permission bits, such as 0o644.
    mtime_ms     milliseconds since 1970, by the clock of the sandbox.
    path         absolute. In it and in `link`, bytes that are not UTF-8 are written as Python writes
                 such names (`os.fsencode` gives them back); daemons take UTF-8 only.
    link         where a link points to, as it is written there.
    target_type  the type of what a link leads to in the end; None if that does not exist.
    """

    path: str
    type: str
    size: int
    mode: int
    mtime_ms: int
    uid: int
    gid: int
    link: Optional[str] = None
    target_type: Optional[str] = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2] or "/"

    @property
    def is_dir(self) -> bool:
        """True for a directory, and for a link that leads to one."""
        return "dir" in (self.type, self.target_type)

    @property
    def is_file(self) -> bool:
        """True for a regular file, and for a link that leads to one."""
        return "file" in (self.type, self.target_type)

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "FileStat":
        """Read the daemon's JSON object."""
        is_link = reply["type"] == "link"
        return cls(
            path=_bytes(reply, "path").decode("utf-8", "surrogateescape"),
            type=reply["type"],
            size=reply.get("size", 0),
            mode=reply.get("mode", 0),
            mtime_ms=reply.get("mtime_ms", 0),
            uid=reply.get("uid", 0),
            gid=reply.get("gid", 0),
            link=_bytes(reply, "link").decode("utf-8", "surrogateescape") if is_link else None,
            target_type=reply.get("target_type"),
        )


@dataclass(frozen=True)
class TreeInfo:
    """What `upload_dir` or `download_dir` has copied.

    path      where to.
    files, directories, links   how many of each; the directory itself does not count.
    size      bytes in the files.
    skipped   paths, relative to the directory, that were left out: devices, sockets and pipes; on
              the way out of a sandbox also symbolic links that lead out of the directory, or go by
              way of another link or of a directory that is not there.
    """

    path: str
    files: int
    directories: int
    links: int
    size: int
    skipped: Tuple[str, ...] = ()


@dataclass(frozen=True)
class ContextInfo:
    """A Python interpreter of the sandbox.

    state   "starting", "ready", "busy", or "absent" (it starts when it is needed).
    cwd     the directory in which it was started.
    user    "user" or "root".
    """

    id: str
    language: str = "python"
    state: str = "ready"
    cwd: Optional[str] = None
    user: str = "user"

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "ContextInfo":
        """Read the daemon's JSON object."""
        return cls(
            id=reply["context_id"],
            language=reply.get("language", "python"),
            state=reply.get("state", "ready"),
            cwd=reply.get("cwd"),
            user=reply.get("user", "user"),
        )


@dataclass(frozen=True)
class ExecInfo:
    """A call that runs or waits for its turn in the sandbox, whoever made it.

    state                    "queued" or "running".
    queued_at, started_at    milliseconds since 1970; started_at is None while it waits.
    timeout                  seconds; 0: none.
    """

    exec_id: str
    state: str
    language: str
    context_id: str
    queued_at: int
    started_at: Optional[int]
    timeout: float

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "ExecInfo":
        """Read one member of the daemon's list."""
        return cls(
            exec_id=reply["exec_id"],
            state=reply["state"],
            language=reply.get("language", "python"),
            context_id=reply.get("context_id", "default"),
            queued_at=reply.get("queued_at", 0),
            started_at=reply.get("started_at"),
            timeout=reply.get("timeout", 0),
        )


@dataclass(frozen=True)
class CommandInfo:
    """A command in the background.

    state             "running" or "ended".
    command           the beginning of its code, or of its arguments.
    started_at        milliseconds since 1970.
    exit_code, termination_reason, signal   None while it runs.
    stdout, stderr    positions of what is kept of its output: the first byte, and behind the last.
    """

    id: str
    pid: int
    state: str
    command: Union[str, List[str]]
    cwd: Optional[str]
    started_at: int
    pty: bool
    stdout: Tuple[int, int]
    stderr: Tuple[int, int]
    exit_code: Optional[int] = None
    termination_reason: Optional[str] = None
    signal: Optional[int] = None

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "CommandInfo":
        """Read the daemon's object."""
        return cls(
            id=reply["command_id"],
            pid=reply["pid"],
            state=reply["state"],
            command=reply["argv"] if "argv" in reply else reply.get("code", ""),
            cwd=reply.get("cwd"),
            started_at=reply["started_at"],
            pty=reply["pty"],
            stdout=(reply["stdout"]["start"], reply["stdout"]["end"]),
            stderr=(reply["stderr"]["start"], reply["stderr"]["end"]),
            exit_code=reply.get("exit_code"),
            termination_reason=reply.get("termination_reason"),
            signal=reply.get("signal"),
        )


@dataclass(frozen=True)
class SandboxInfo:
    """What the daemon knows of a sandbox.

    parent, children   ids: the sandbox that it was forked from (None: from a template), and those
                       of its forks that live.
    generation         how many forks lie between it and the template's.
    egress             what it may reach.
    disk_mib           size of its disk.
    disk_errors        how often the host could not do what its disk was asked (its own disk was
                       full, mostly).
    source, ready_us   how it was made ("fork" or "pool"), and microseconds from the request until
                       it was ready.
    forkable           whether it can be forked; None when it has ended, or the daemon is older.
    raw                the daemon's whole answer, also what is newer than this SDK.
    """

    id: str
    state: str
    template: str
    memory_mib: int
    vcpus: int
    created_at: int
    egress: Egress
    metadata: Mapping[str, str]
    exec_count: Optional[int]
    ended_reason: Optional[str]
    raw: Mapping[str, Any] = field(repr=False)
    disk_mib: int = 0
    parent: Optional[str] = None
    children: Tuple[str, ...] = ()
    generation: int = 0
    disk_errors: Optional[int] = None
    source: Optional[str] = None
    ready_us: Optional[int] = None
    forkable: Optional[bool] = None

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "SandboxInfo":
        """Read the daemon's JSON object."""
        return cls(
            id=reply["id"],
            state=reply["state"],
            template=reply.get("template", "default"),
            memory_mib=reply.get("memory_mib", 0),
            vcpus=reply.get("vcpus", 0),
            created_at=reply.get("created_at", 0),
            egress=Egress.from_reply(reply.get("egress") or {"allow": ()}),
            metadata=reply.get("metadata") or {},
            exec_count=reply.get("exec_count"),
            ended_reason=reply.get("ended_reason"),
            raw=reply,
            disk_mib=reply.get("disk_mib", 0),
            parent=reply.get("parent"),
            children=tuple(reply.get("children") or ()),
            generation=reply.get("generation", 0),
            disk_errors=reply.get("disk_errors"),
            source=reply.get("source"),
            ready_us=reply.get("ready_us"),
            forkable=reply.get("forkable"),
        )


@dataclass(frozen=True)
class DiffEntry:
    """One path that differs between two sandboxes.

    path       bytes that are not UTF-8 appear as U+FFFD; `raw_path` has them exactly.
    change     "added", "removed" or "modified".
    type       "file", "dir", "link" or "other"; of the side where it exists, or of the other
               sandbox's where both have it. So are `size` (bytes) and `mode` (permission bits);
               `old_size` and `old_mode` are those of the first sandbox, for "modified" only.
    """

    path: str
    change: str
    type: str
    size: int
    mode: int
    old_size: Optional[int] = None
    old_mode: Optional[int] = None
    raw_path: bytes = field(default=b"", repr=False)

    @classmethod
    def from_reply(cls, change: str, reply: Mapping[str, Any]) -> "DiffEntry":
        """Read one member of the daemon's lists."""
        raw = _bytes(reply, "path")
        return cls(
            path=raw.decode("utf-8", "replace"),
            change=change,
            type=reply.get("type", "other"),
            size=reply.get("size", 0),
            mode=reply.get("mode", 0),
            old_size=reply.get("old_size"),
            old_mode=reply.get("old_mode"),
            raw_path=raw,
        )


class Diff(Dict[str, List[str]]):
    """What differs between the files of two sandboxes: a dict of three sorted lists of paths,
    "added" (only the other sandbox has it), "removed" (only the first one has it) and "modified".

    entries   the same with types, sizes and modes, one DiffEntry a path.
    paths     the directories that were compared.
    empty     True if nothing differs.
    """

    def __init__(self, entries: Tuple[DiffEntry, ...], paths: Tuple[str, ...]) -> None:
        super().__init__(
            (change, [e.path for e in entries if e.change == change])
            for change in ("added", "removed", "modified")
        )
        self.entries = entries
        self.paths = paths

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "Diff":
        """Read the daemon's JSON object."""
        entries = [
            DiffEntry.from_reply(change, one)
            for change in ("added", "removed", "modified")
            for one in reply.get(change) or ()
        ]
        entries.sort(key=lambda entry: entry.raw_path)
        return cls(tuple(entries), tuple(reply.get("paths") or ()))

    @property
    def empty(self) -> bool:
        """True if nothing differs."""
        return not self.entries


@dataclass(frozen=True)
class TreeNode:
    """A sandbox and everything that was forked from it. `print(node)` draws the tree.

    state   "ready", or "ended" for one that is there only because something descends from it.
    """

    id: str
    state: str
    template: str
    generation: int
    created_at: int
    children: Tuple["TreeNode", ...] = ()

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "TreeNode":
        """Read one node of the daemon's answer with all below it."""
        return cls(
            id=reply["id"],
            state=reply.get("state", "ready"),
            template=reply.get("template", ""),
            generation=reply.get("generation", 0),
            created_at=reply.get("created_at", 0),
            children=tuple(cls.from_reply(child) for child in reply.get("children") or ()),
        )

    def walk(self) -> Iterator["TreeNode"]:
        """This node and all below it, parents before their children."""
        return (node for _, node in self._levels())

    def find(self, id: str) -> Optional["TreeNode"]:
        """The node of this id, if it is here."""
        return next((node for node in self.walk() if node.id == id), None)

    def _levels(self) -> Iterator[Tuple[int, "TreeNode"]]:
        todo = [(0, self)]
        while todo:
            level, node = todo.pop()
            yield level, node
            todo.extend((level + 1, child) for child in reversed(node.children))

    def __str__(self) -> str:
        return "\n".join(
            f"{'  ' * level}{node.id}{'' if node.state == 'ready' else f' ({node.state})'}"
            for level, node in self._levels()
        )


@dataclass(frozen=True)
class TemplateVM:
    """A machine that sandboxes of one size are forked from.

    state     "booting", "warming", "ready" or "failed".
    pool      how many forks of it wait to be used.
    boot_ms   how long it took to make; None while it is made.
    """

    memory_mib: int
    vcpus: int
    disk_mib: int
    state: str
    pool: int = 0
    boot_ms: Optional[int] = None


@dataclass(frozen=True)
class TemplateInfo:
    """A template: its name, the sizes of a sandbox that asks for none, the size of its image, and
    its machines (one for each size that was asked for). `raw` is the daemon's whole answer."""

    name: str
    default_memory_mib: int
    default_vcpus: int
    default_disk_mib: int
    image_bytes: int
    vms: Tuple[TemplateVM, ...]
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def from_reply(cls, reply: Mapping[str, Any]) -> "TemplateInfo":
        """Read the daemon's JSON object."""
        return cls(
            name=reply["name"],
            default_memory_mib=reply.get("default_memory_mib", 0),
            default_vcpus=reply.get("default_vcpus", 0),
            default_disk_mib=reply.get("default_disk_mib", 0),
            image_bytes=reply.get("image_bytes", 0),
            vms=tuple(
                TemplateVM(
                    memory_mib=vm.get("memory_mib", 0),
                    vcpus=vm.get("vcpus", 0),
                    disk_mib=vm.get("disk_mib", 0),
                    state=vm.get("state", ""),
                    pool=vm.get("pool", 0),
                    boot_ms=vm.get("boot_ms"),
                )
                for vm in reply.get("vms") or ()
            ),
            raw=reply,
        )


def _bytes(reply: Mapping[str, Any], name: str) -> bytes:
    """A path, which the daemon sends in base64 when it is not UTF-8."""
    encoded = reply.get(f"{name}_base64")
    if isinstance(encoded, str):
        return base64.b64decode(encoded)
    return str(reply[name]).encode("utf-8", "surrogatepass")
