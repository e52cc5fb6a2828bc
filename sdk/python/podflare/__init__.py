# SPDX-License-Identifier: Apache-2.0
"""Podflare: run code that a language model wrote in a microVM of its own, without a network.

    from podflare import Sandbox

    with Sandbox() as s:
        s.run_code("x = 6 * 7")
        print(s.run_code("print(x)").stdout)

    with Sandbox(egress_allow=["pypi"]) as s:     # and nothing but that
        s.run_code("!pip install humanize")

    with Sandbox() as s:
        s.run_code("data = load()")
        with s.fork(3) as copies:     # each has `data`, and goes its own way
            ...

`Sandbox` is the whole of it for most programs, `AsyncSandbox` the same for asyncio; `Client` and
`AsyncClient` share one connection pool and one set of credentials between many sandboxes; the
exceptions all derive from `PodflareError`.
"""

from ._async_files import AsyncFiles
from ._async_sandbox import AsyncSandbox
from ._children import AsyncChildren, Children
from ._client import AsyncClient, Client
from ._commands import AsyncCommand, AsyncCommands, Command, Commands
from ._contexts import AsyncContext, Context
from ._egress import Denied, Egress, EgressEntry, EgressInject, EgressRecord
from ._errors import (
    AlreadyExistsError,
    AuthenticationError,
    CommandEndedError,
    CommandNotFoundError,
    ContextNotFoundError,
    CreateFailedError,
    DaemonUnreachableError,
    DirectoryNotEmptyError,
    DiskFullError,
    EgressDisabledError,
    EgressUnavailableError,
    ExecNotFoundError,
    ForkError,
    InvalidRequestError,
    NotForkableError,
    NotFoundError,
    OtherLineageError,
    PermissionDeniedError,
    PodflareError,
    RateLimitedError,
    RemoteFileNotFoundError,
    RequestTimeoutError,
    SandboxEndedError,
    SandboxNotFoundError,
    ServerError,
    StreamBrokenError,
    TemplateFailedError,
    TooLargeError,
    UnsafeArchiveError,
)
from ._files import Files
from ._results import Event, ExecError, ExecResult, Language, RaceResult, Result
from ._sandbox import Sandbox
from ._streams import AsyncExecStream, ExecStream
from ._types import (
    CommandInfo,
    ContextInfo,
    Diff,
    DiffEntry,
    ExecInfo,
    FileInfo,
    FileStat,
    SandboxInfo,
    TemplateInfo,
    TemplateVM,
    TreeInfo,
    TreeNode,
)
from ._version import __version__
from ._watch import AsyncFileWatch, FileEvent, FileWatch

__all__ = [
    "AlreadyExistsError",
    "AsyncChildren",
    "AsyncClient",
    "AsyncCommand",
    "AsyncCommands",
    "AsyncContext",
    "AsyncExecStream",
    "AsyncFileWatch",
    "AsyncFiles",
    "AsyncSandbox",
    "AuthenticationError",
    "Children",
    "Client",
    "Command",
    "CommandEndedError",
    "CommandInfo",
    "CommandNotFoundError",
    "Commands",
    "Context",
    "ContextInfo",
    "ContextNotFoundError",
    "CreateFailedError",
    "DaemonUnreachableError",
    "Denied",
    "Diff",
    "DiffEntry",
    "DirectoryNotEmptyError",
    "DiskFullError",
    "Egress",
    "EgressDisabledError",
    "EgressEntry",
    "EgressInject",
    "EgressRecord",
    "EgressUnavailableError",
    "Event",
    "ExecError",
    "ExecInfo",
    "ExecNotFoundError",
    "ExecResult",
    "ExecStream",
    "FileEvent",
    "FileInfo",
    "FileStat",
    "FileWatch",
    "Files",
    "ForkError",
    "InvalidRequestError",
    "Language",
    "NotForkableError",
    "NotFoundError",
    "OtherLineageError",
    "PermissionDeniedError",
    "PodflareError",
    "RaceResult",
    "RateLimitedError",
    "RemoteFileNotFoundError",
    "RequestTimeoutError",
    "Result",
    "Sandbox",
    "SandboxEndedError",
    "SandboxInfo",
    "SandboxNotFoundError",
    "ServerError",
    "StreamBrokenError",
    "TemplateFailedError",
    "TemplateInfo",
    "TemplateVM",
    "TooLargeError",
    "TreeInfo",
    "TreeNode",
    "UnsafeArchiveError",
    "__version__",
]
