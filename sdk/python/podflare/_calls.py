# SPDX-License-Identifier: Apache-2.0
"""Every request of the SDK but running code, as values: what is sent, and what is made of the reply.
Both the sync and the async classes send these. No I/O in here."""

from __future__ import annotations

import contextlib
import re
from pathlib import PurePath
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

from ._errors import (
    ForkError,
    NotFoundError,
    PodflareError,
    SandboxEndedError,
    SandboxNotFoundError,
    error_from_result,
)
from ._egress import Egress, EgressRecord
from ._http import Call
from ._types import (
    ContextInfo,
    Diff,
    ExecInfo,
    FileInfo,
    FileStat,
    SandboxInfo,
    TemplateInfo,
    TreeNode,
)

Remote = Union[str, PurePath]
Reply = Mapping[str, Any]

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_id(id: str) -> str:
    """The id of a sandbox; SandboxNotFoundError for what cannot be one (and might lead an URL
    elsewhere)."""
    if not isinstance(id, str):
        raise TypeError(f"a sandbox or its id is wanted, not {type(id).__name__}")
    if not _ID.fullmatch(id):
        raise SandboxNotFoundError("sandbox not found", hint=f"no id looks like {id!r}")
    return id


def check_name(what: str, name: str) -> str:
    """An id that the caller chose, of a context or a call."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{what} is 1 to 64 of A-Z a-z 0-9 _ and -, not {name!r}")
    return name


def _same(reply: Reply) -> Reply:
    return reply


def _nothing(reply: Reply) -> None:
    return None


@contextlib.contextmanager
def gone_is_fine() -> Iterator[None]:
    """For the end of something: that it is gone already is as good. (A sandbox that has ended took all
    that was in it along.)"""
    try:
        yield
    except (NotFoundError, SandboxEndedError):
        pass


def _given(**wish: Any) -> Dict[str, Any]:
    """What was asked for; the daemon's defaults hold for the rest."""
    return {key: value for key, value in wish.items() if value is not None}


# The daemon.


def health() -> Call[None]:
    return Call("GET", "/v1/healthz", _nothing)


def templates() -> Call[List[TemplateInfo]]:
    return Call(
        "GET",
        "/v1/templates",
        lambda reply: [TemplateInfo.from_reply(one) for one in reply["templates"]],
        "templates",
    )


def tree() -> Call[List[TreeNode]]:
    return Call(
        "GET",
        "/v1/tree",
        lambda reply: [TreeNode.from_reply(one) for one in reply["roots"]],
        "roots",
    )


def family(id: str, roots: Iterable[TreeNode]) -> TreeNode:
    """The tree that a sandbox is in."""
    for root in roots:
        if root.find(id) is not None:
            return root
    raise SandboxNotFoundError(f"sandbox {id} has been closed")


# Sandboxes.


def create(wish: Mapping[str, Any]) -> Call[Reply]:
    return Call("POST", "/v1/sandboxes", _same, "id", json=_given(**wish), patient=True)


def sandboxes() -> Call[List[SandboxInfo]]:
    return Call(
        "GET",
        "/v1/sandboxes",
        lambda reply: [SandboxInfo.from_reply(one) for one in reply["sandboxes"]],
        "sandboxes",
    )


def url(id: str, rest: str = "") -> str:
    return f"/v1/sandboxes/{id}{rest}"


def info(id: str) -> Call[SandboxInfo]:
    return Call("GET", url(id), SandboxInfo.from_reply, "state")


def delete(id: str) -> Call[None]:
    return Call("DELETE", url(id), _nothing)


class Forked(NamedTuple):
    """The reply to a fork: for each copy that was asked for, its id or why there is none."""

    ids: List[str]
    errors: List[Optional[PodflareError]]
    pause_us: Optional[int]
    ready_us: Optional[int]

    def error(self, id: str, children: List[Any]) -> Optional[ForkError]:
        """What to raise, if not all came to be."""
        failed = [error for error in self.errors if error is not None]
        if not failed:
            return None
        return ForkError(
            f"{len(failed)} of {len(self.errors)} copies of sandbox {id} did not come to be: "
            f"{failed[0].message}",
            code="fork_failed",
            hint=None if not children else "the others are open, in `sandboxes` of this error",
            sandboxes=children,
            errors=self.errors,
        )


def fork(
    id: str,
    n: int,
    reseed: bool,
    forkable: Optional[bool] = None,
    inheritance: Optional[Mapping[str, Any]] = None,
) -> Call[Forked]:
    def parse(reply: Reply) -> Forked:
        results = reply.get("results") or [{"id": one} if one else {} for one in reply["children"]]
        return Forked(
            [one["id"] for one in results if one.get("id")],
            [None if one.get("id") else error_from_result(one) for one in results],
            reply.get("pause_us"),
            reply.get("ready_us"),
        )

    wish = {"n": n, "reseed": reseed, **(inheritance or {})}
    if forkable is not None:
        wish["forkable"] = forkable
    return Call("POST", url(id, "/fork"), parse, "children", json=wish, patient=True)


def none_forked(error: ForkError, n: int) -> None:
    """Fills in the error of a fork in which none came to be, all for one reason."""
    error.errors = [PodflareError(error.message, status=error.status, code=error.code)] * n


def merge(id: str, winner: str) -> Call[None]:
    return Call("POST", url(id, f"/merge_into/{winner}"), _nothing, patient=True)


def diff(id: str, other: str, paths: Optional[Union[Remote, Iterable[Remote]]]) -> Call[Diff]:
    if isinstance(paths, (str, PurePath)):
        paths = [paths]
    return Call(
        "GET",
        url(id, f"/diff/{other}"),
        Diff.from_reply,
        "added",
        params=None if paths is None else {"path": [str(path) for path in paths]},
        patient=True,
    )


# What it may reach.


def egress(id: str) -> Call[Egress]:
    return Call("GET", url(id, "/egress"), Egress.from_reply, "allow")


def update_egress(id: str, wish: Union[Mapping[str, Any], bool]) -> Call[Egress]:
    return Call("PUT", url(id, "/egress"), Egress.from_reply, "allow", json=wish, patient=True)


def egress_log(id: str, limit: int) -> Call[List[EgressRecord]]:
    return Call(
        "GET",
        url(id, "/egress/log"),
        lambda reply: [EgressRecord.from_reply(one) for one in reply["lines"]],
        "lines",
        params={"limit": str(limit)},
        lines=True,
    )


# Running code.


def interrupt(id: str, exec_id: str, escalate: bool) -> Call[str]:
    """The state that the call was in: "running", "queued" or "ended"."""
    return Call(
        "POST",
        url(id, f"/exec/{check_name('exec_id', exec_id)}/interrupt"),
        lambda reply: str(reply["state"]),
        "state",
        json={"escalate": bool(escalate)},
    )


def execs(id: str) -> Call[List[ExecInfo]]:
    return Call(
        "GET",
        url(id, "/exec"),
        lambda reply: [ExecInfo.from_reply(one) for one in reply["execs"]],
        "execs",
    )


def create_context(
    id: str,
    context_id: Optional[str],
    language: Optional[str],
    cwd: Optional[Remote],
    user: Optional[str],
) -> Call[ContextInfo]:
    if context_id is not None:
        check_name("context_id", context_id)
    wish = _given(
        context_id=context_id,
        language=language,
        cwd=None if cwd is None else str(cwd),
        user=user,
    )
    # An interpreter starts: that takes a while where everything is slow.
    return Call(
        "POST", url(id, "/contexts"), ContextInfo.from_reply, "context_id", json=wish, patient=True
    )


def contexts(id: str) -> Call[List[ContextInfo]]:
    return Call(
        "GET",
        url(id, "/contexts"),
        lambda reply: [ContextInfo.from_reply(one) for one in reply["contexts"]],
        "contexts",
    )


def restart_context(id: str, context_id: str) -> Call[ContextInfo]:
    path = url(id, f"/contexts/{check_name('context_id', context_id)}/restart")
    return Call("POST", path, ContextInfo.from_reply, "context_id", json={}, patient=True)


def delete_context(id: str, context_id: str) -> Call[None]:
    path = url(id, f"/contexts/{check_name('context_id', context_id)}")
    return Call("DELETE", path, _nothing, patient=True)


# Files.


def _file(path: Remote) -> Dict[str, str]:
    return {"path": str(path)}


def upload(id: str, path: Remote) -> Call[FileInfo]:
    return Call(
        "PUT",
        url(id, "/files"),
        lambda reply: FileInfo(path=reply["path"], size=reply["size"]),
        "path",
        params=_file(path),
        headers={"content-type": "application/octet-stream"},
        patient=True,
    )


def upload_part(
    id: str, path: Remote, upload_id: str, size: int, offset: Optional[int] = None
) -> Call[Tuple[FileInfo, bool]]:
    """What follows `offset` of an upload that may be resumed; without it, how far that is. True: it is
    whole, and the file is there."""
    params = {**_file(path), "upload_id": upload_id, "size": str(size)}
    if offset is not None:
        params["offset"] = str(offset)
    return Call(
        "PUT",
        url(id, "/files"),
        lambda reply: (FileInfo(path=reply["path"], size=reply["size"]), reply["complete"] is True),
        "complete",
        params=params,
        headers={"content-type": "application/octet-stream"},
        patient=True,
    )


def download(id: str, path: Remote, span: Optional[str] = None) -> Call[None]:
    """span   value of the Range header."""
    headers = {} if span is None else {"range": span}
    return Call(
        "GET", url(id, "/files"), _nothing, params=_file(path), headers=headers, patient=True
    )


def stat(id: str, path: Remote) -> Call[FileStat]:
    return Call("GET", url(id, "/files/stat"), FileStat.from_reply, "type", params=_file(path))


def list_files(id: str, path: Remote, depth: int) -> Call[List[FileStat]]:
    return Call(
        "GET",
        url(id, "/files/list"),
        lambda reply: [FileStat.from_reply(one) for one in reply["entries"]],
        "entries",
        params={"path": str(path), "depth": str(depth)},
        patient=True,
    )


def mkdir(id: str, path: Remote, mode: Optional[int], parents: bool) -> Call[bool]:
    return Call(
        "POST",
        url(id, "/files/mkdir"),
        lambda reply: bool(reply.get("created", True)),
        json={**_given(mode=mode), "path": str(path), "parents": parents},
    )


def remove(id: str, path: Remote, recursive: bool) -> Call[None]:
    wish = {"path": str(path), "recursive": recursive}
    # Of a large tree that takes a while.
    return Call("POST", url(id, "/files/remove"), _nothing, json=wish, patient=recursive)


def rename(id: str, path: Remote, to: Remote, overwrite: bool) -> Call[None]:
    wish = {"path": str(path), "to": str(to), "overwrite": overwrite}
    return Call("POST", url(id, "/files/rename"), _nothing, json=wish)


def chmod(id: str, path: Remote, mode: int) -> Call[None]:
    return Call("POST", url(id, "/files/chmod"), _nothing, json={"path": str(path), "mode": mode})
