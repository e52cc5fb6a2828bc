# SPDX-License-Identifier: Apache-2.0
"""Exceptions, and the one function that turns an error reply of the daemon into the right one."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any, Mapping, Optional, Sequence

from ._plain import flat, plain


class PodflareError(Exception):
    """Base of everything that this package raises on purpose.

    `status` is the HTTP status (None when no reply came), `code` the daemon's stable word for the
    error, `hint` its advice and `field` the request field that it complained about. What of message
    and hint could be more than text to a terminal is spelled out, whoever wrote it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: Optional[int] = None,
        code: Optional[str] = None,
        hint: Optional[str] = None,
        field: Optional[str] = None,
    ) -> None:
        self.message = plain(message)
        super().__init__(self.message)
        self.status = status
        self.code = code
        self.hint = None if hint is None else plain(hint)
        self.field = field

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class DaemonUnreachableError(PodflareError, ConnectionError):
    """No daemon answered at the address, or the connection broke before it answered."""


class RequestTimeoutError(PodflareError, TimeoutError):
    """The daemon accepted the connection and then did not answer in time.

    A command that reached its own `timeout` is no exception but a result (`termination_reason`
    "timeout"). This is raised for one only when the daemon has not ended it long after that;
    `stdout` and `stderr` then hold the bytes that had arrived.
    """

    stdout: bytes = b""
    stderr: bytes = b""


class StreamBrokenError(PodflareError):
    """The connection ended before the command did: its outcome is unknown.

    `stdout` and `stderr` hold the bytes that had arrived.
    """

    stdout: bytes = b""
    stderr: bytes = b""


class AuthenticationError(PodflareError):
    """401: the API key is missing or unknown."""


class PermissionDeniedError(PodflareError, PermissionError):
    """403: the guest's user or the API key may not do this."""


class NotFoundError(PodflareError):
    """404: base of the four below."""


class SandboxNotFoundError(NotFoundError):
    """There has never been a sandbox of this id."""


class RemoteFileNotFoundError(NotFoundError, FileNotFoundError):
    """The file does not exist in the sandbox."""


class ExecNotFoundError(NotFoundError):
    """The sandbox has had no call of this id (or more than 256 others since)."""


class ContextNotFoundError(NotFoundError):
    """The sandbox has no context of this id."""


class CommandNotFoundError(NotFoundError):
    """The sandbox keeps no command of this id."""


class CommandEndedError(PodflareError):
    """409: the command has ended, or its standard input has, so that it cannot be written to."""


class AlreadyExistsError(PodflareError, FileExistsError):
    """409: something of this name is there: a file, a context, a call that has not ended."""


class DirectoryNotEmptyError(PodflareError, OSError):
    """409: the directory has something in it; `recursive=True` removes that as well."""


class InvalidRequestError(PodflareError, ValueError):
    """400: the daemon cannot do what was asked; `field` names the part that it did not like."""


class SandboxEndedError(PodflareError):
    """409: the sandbox has ended (closed, powered off, crashed); the message says why."""


class OtherLineageError(InvalidRequestError):
    """409: the two sandboxes do not descend from the same one, so that they can neither be merged
    nor compared."""


class NotForkableError(InvalidRequestError):
    """409: the sandbox was made with `forkable=False`, so that it can neither be forked nor go on as
    another one. Nothing was done to it."""


class TooLargeError(PodflareError):
    """413: the request is larger than the daemon takes. Without a status: a download brings more than
    its `max_bytes`."""


class DiskFullError(PodflareError):
    """413: the file does not fit on the sandbox's disk; nothing of it was kept."""


class RateLimitedError(PodflareError):
    """429: too much at once; `retry_after` is the daemon's wish in seconds, if it gave one."""

    retry_after: Optional[float] = None


class UnsafeArchiveError(PodflareError):
    """The sandbox sent an archive that would have written elsewhere than into the directory that it
    was for, or filled the memory. Nothing of it was unpacked."""


class ServerError(PodflareError):
    """5xx: something failed on the daemon's side."""


class CreateFailedError(ServerError):
    """503: no sandbox could be started; the message says why."""


class EgressDisabledError(PermissionDeniedError):
    """403: the operator has switched egress off; no sandbox may reach anything."""


class EgressUnavailableError(ServerError):
    """503: the operator's configuration of egress cannot be used, so that nothing is granted; the
    message says why. Sandboxes without a grant work as ever."""


class TemplateFailedError(CreateFailedError):
    """503: the template could not be made; the message says why, the hint has the end of its
    console."""


class ForkError(ServerError):
    """Not every copy that `fork` was asked for came to be. The sandbox itself runs on.

    sandboxes   the copies that did, open and in order: use them or close them. (AsyncSandbox
                objects when an AsyncSandbox was forked.)
    errors      one entry for each copy that was asked for, in order: None where it is there, else
                why it is not.
    """

    def __init__(
        self,
        message: str,
        *,
        status: Optional[int] = None,
        code: Optional[str] = None,
        hint: Optional[str] = None,
        field: Optional[str] = None,
        sandboxes: Sequence[Any] = (),
        errors: Sequence[Optional[PodflareError]] = (),
    ) -> None:
        super().__init__(message, status=status, code=code, hint=hint, field=field)
        self.sandboxes = list(sandboxes)
        self.errors = list(errors)


_BY_CODE: dict[str, type[PodflareError]] = {
    "sandbox_not_found": SandboxNotFoundError,
    "file_not_found": RemoteFileNotFoundError,
    "exec_not_found": ExecNotFoundError,
    "context_not_found": ContextNotFoundError,
    "command_not_found": CommandNotFoundError,
    "command_ended": CommandEndedError,
    "stdin_closed": CommandEndedError,
    "exists": AlreadyExistsError,
    "command_exists": AlreadyExistsError,
    "exec_exists": AlreadyExistsError,
    "context_exists": AlreadyExistsError,
    "not_empty": DirectoryNotEmptyError,
    "wrong_offset": InvalidRequestError,
    "upload_busy": PodflareError,
    "permission_denied": PermissionDeniedError,
    "sandbox_ended": SandboxEndedError,
    "disk_full": DiskFullError,
    "create_failed": CreateFailedError,
    "egress_disabled": EgressDisabledError,
    "egress_unavailable": EgressUnavailableError,
    "template_failed": TemplateFailedError,
    "fork_failed": ForkError,
    "other_lineage": OtherLineageError,
    "not_forkable": NotForkableError,
}

_BY_STATUS: dict[int, type[PodflareError]] = {
    400: InvalidRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    405: InvalidRequestError,
    409: SandboxEndedError,
    413: TooLargeError,
    416: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitedError,
}


def error_from_result(result: Mapping[str, object]) -> PodflareError:
    """The exception for one failed part of a reply: `{"error", "code"}` beside parts that are
    well."""
    message, code = result.get("error"), result.get("code")
    kind: type[PodflareError] = (
        _BY_CODE.get(code, PodflareError) if isinstance(code, str) else PodflareError
    )
    return kind(
        message if isinstance(message, str) else "it failed, and the daemon does not say why",
        code=code if isinstance(code, str) else None,
    )


# What of a path a code says that it is not there.
_MISSING: dict[str, str] = {
    "sandbox_not_found": "sandboxes",
    "exec_not_found": "exec",
    "context_not_found": "contexts",
    "command_not_found": "commands",
}


# Names of a second sandbox in a path, which is its last part.
_OTHERS = ("winner", "other")


def _missing(code: Optional[str], path: str, field: Optional[str]) -> str:
    """The name in the path of what is missing, or nothing."""
    parts = path.partition("?")[0].split("/")
    collection = _MISSING.get(code or "")
    if collection == "sandboxes" and field in _OTHERS:
        return urllib.parse.unquote(parts[-1])
    if collection not in parts[:-1]:
        return ""
    return urllib.parse.unquote(parts[parts.index(collection) + 1])


def error_from_reply(
    status: int, body: bytes, headers: Mapping[str, str], path: str = ""
) -> PodflareError:
    """The exception for a non-2xx reply to a request of `path`. A body that is not the daemon's JSON
    is quoted."""
    reply: Mapping[str, object] = {}
    try:
        parsed = json.loads(body)
        if isinstance(parsed, dict):
            reply = parsed
    except ValueError:
        pass

    def text(key: str) -> Optional[str]:
        value = reply.get(key)
        return value if isinstance(value, str) else None

    message = text("error")
    if message is None:
        start = flat(body[:200].decode("utf-8", "replace").strip())
        message = f"the server answered HTTP {status}" + (f": {start}" if start else "")
    code = text("code")
    missing = _missing(code, path, text("field"))
    if missing and missing not in message:
        message = f"{message}: {missing}"
    kind: Optional[type[PodflareError]] = _BY_CODE.get(code or "") or _BY_STATUS.get(status)
    if kind is None:
        kind = ServerError if status >= 500 else PodflareError
    error: PodflareError = kind(
        message, status=status, code=code, hint=text("hint"), field=text("field")
    )
    if isinstance(error, RateLimitedError):
        try:
            error.retry_after = float(headers.get("retry-after", ""))
        except ValueError:
            pass
    return error
