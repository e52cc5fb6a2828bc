# SPDX-License-Identifier: Apache-2.0
"""What Sandbox and AsyncSandbox have in common that is not a request: whose client it is, whether it is
closed, and `with` blocks."""

from __future__ import annotations

import threading
from typing import Any, Callable, Dict, Generic, Iterable, Mapping, Optional, TypeVar, Union

from . import _egress
from ._calls import check_id
from ._egress import EgressEntry, EgressInject
from ._errors import InvalidRequestError, PodflareError, SandboxEndedError
from ._exec import Underway, checked_strings
from ._http import check_traceparent

C = TypeVar("C")
E = TypeVar("E")
S = TypeVar("S", bound="SandboxBase[Any]")


class Share:
    """A client that a sandbox made for itself and shares with its forks: the last of them that is
    closed closes it."""

    def __init__(self) -> None:
        self._users = 1
        self._lock = threading.Lock()

    def take(self) -> None:
        with self._lock:
            self._users += 1

    def drop(self) -> bool:
        """Whether this was the last one."""
        with self._lock:
            self._users -= 1
            return self._users == 0


class SandboxBase(Generic[C]):
    """State of one sandbox object."""

    _id: str
    _client: C
    _share: Optional[Share]
    _traceparent: Optional[str]
    _closed: bool
    _underway: Underway
    _disk_mib: int  # 0: the daemon does not say

    @property
    def id(self) -> str:
        """The sandbox's id, `sbx_` and 32 hexadecimal digits."""
        self._check_made()
        return self._id

    def __repr__(self) -> str:
        state = "not created" if not self._id else "closed" if self._closed else "open"
        host = getattr(self._client, "host", "")
        return f"<{type(self).__name__} {self._id or '-'} at {host}, {state}>"

    def _attach(
        self,
        client: Optional[C],
        host: Optional[str],
        api_key: Optional[str],
        traceparent: Optional[str],
        make: Callable[..., C],
    ) -> None:
        self._traceparent = None if traceparent is None else check_traceparent(traceparent)
        self._client = client_from(client, host, api_key, make)
        self._share = Share() if client is None else None
        self._closed = False
        self._underway = Underway()
        self._id, self._disk_mib = "", 0

    def _made(self, id: str, description: Mapping[str, Any]) -> None:
        """There is such a sandbox."""
        self._id = id
        size = description.get("disk_mib")
        self._disk_mib = size if isinstance(size, int) and size > 0 else 0

    def _sibling(self: S, id: str) -> S:
        """An object for another sandbox at the same daemon."""
        other = type(self).__new__(type(self))
        other._traceparent = self._traceparent
        other._client = self._client
        other._share = self._share
        if other._share is not None:
            other._share.take()
        other._closed = False
        other._underway = Underway()
        other._id, other._disk_mib = id, self._disk_mib
        return other

    def _let_go(self) -> bool:
        """The object counts as closed; whether its client is to be closed now."""
        if self._closed:
            return False
        self._closed = True
        return self._share is not None and self._share.drop()

    def _check_made(self) -> None:
        if not self._id:
            raise PodflareError(
                f"this sandbox has not been created: `async with {type(self).__name__}() as s`, or "
                f"`s = await {type(self).__name__}.create()`"
            )

    def _check_open(self) -> None:
        self._check_made()
        if self._closed:
            raise SandboxEndedError(f"sandbox {self._id} has been closed")


def client_from(
    client: Optional[C], host: Optional[str], api_key: Optional[str], make: Callable[..., C]
) -> C:
    """The client that was given, or a new one."""
    if client is None:
        return make(host=host, api_key=api_key)
    if host is not None or api_key is not None:
        raise ValueError("give either client= or host= and api_key=: the client has its own")
    return client


def wish_from(
    template: Optional[str],
    egress: Optional[bool],
    egress_allow: Optional[Iterable[EgressEntry]],
    egress_inject: Optional[EgressInject],
    egress_intercept: Iterable[str],
    persistent: Optional[bool],
    memory_mib: Optional[int],
    vcpus: Optional[int],
    disk_mib: Optional[int],
    forkable: bool,
    metadata: Optional[Mapping[str, str]],
) -> Dict[str, Any]:
    """What a create asks for."""
    return {
        "template": template,
        "egress": _egress.wish(egress, egress_allow, egress_inject, egress_intercept),
        # False is how every sandbox is; only the wish for more is worth a word.
        "persistent": persistent or None,
        "memory_mib": memory_mib,
        "vcpus": vcpus,
        "disk_mib": disk_mib,
        "forkable": forkable_wish(forkable),
        "metadata": checked_strings("metadata", metadata) if metadata is not None else None,
    }


def forkable_wish(forkable: bool) -> Optional[bool]:
    """What is asked for: None, as every sandbox can be forked unless it is made otherwise."""
    if not isinstance(forkable, bool):
        raise TypeError(f"forkable is True or False, not {type(forkable).__name__}")
    return None if forkable else False


def not_persistent() -> InvalidRequestError:
    """Better no sandbox than one whose state is lost against the program's belief."""
    return InvalidRequestError("this daemon has no persistent sandboxes", field="persistent")


def id_of(sandbox: Union[SandboxBase[Any], str]) -> str:
    """The id of a sandbox that was given as an object, which must be open, or by its id."""
    if not isinstance(sandbox, SandboxBase):
        return check_id(sandbox)
    sandbox._check_open()
    return sandbox.id


class Closing:
    """A `with` block that closes at its end, also when an exception leaves it. That exception is the
    one worth reading: it is not hidden by a close that fails."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: E) -> E:
        return self

    def __exit__(self, kind: object, exc: object, traceback: object) -> None:
        try:
            self.close()
        except PodflareError:
            if exc is None:
                raise


class AsyncClosing:
    """`Closing` for `async with`."""

    async def close(self) -> None:
        raise NotImplementedError

    async def __aenter__(self: E) -> E:
        return self

    async def __aexit__(self, kind: object, exc: object, traceback: object) -> None:
        try:
            await self.close()
        except PodflareError:
            if exc is None:
                raise
