# SPDX-License-Identifier: Apache-2.0
"""The two clients: one connection pool and one set of credentials each."""

from __future__ import annotations

import contextlib
from typing import Any, AsyncIterator, Dict, Iterator, List, Mapping, Optional, TypeVar

import httpx

from . import _calls
from ._errors import error_from_reply
from ._http import PATIENT, QUICK, Call, Settings, Whole, hang_up, reading, sending, tune
from ._types import TemplateInfo, TreeNode

T = TypeVar("T")


class _ClientBase:
    """Settings, and requests as httpx wants them."""

    _http: Any

    def __init__(
        self,
        *,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        traceparent: Optional[str] = None,
    ) -> None:
        self._settings = Settings.gather(host, api_key, traceparent)
        self.host = self._settings.host

    def __repr__(self) -> str:
        return f"{type(self).__name__}(host={self.host!r})"

    def _request(
        self,
        call: Call[Any],
        traceparent: Optional[str],
        content: Any,
        headers: Mapping[str, str],
        trace: Any,
    ) -> Dict[str, Any]:
        """Arguments for `build_request`."""
        all_headers = {**call.headers, **headers}
        if traceparent is not None:
            all_headers["traceparent"] = traceparent
        return {
            "method": call.method,
            "url": call.path,
            "json": call.json,
            "content": content,
            "params": call.params,
            "headers": all_headers,
            "timeout": PATIENT if call.patient else QUICK,
            "extensions": {"trace": trace},
        }


class Client(_ClientBase):
    """A connection to one daemon, shared by any number of sandboxes and threads.

        client = Client(host="http://127.0.0.1:7070")
        a, b = Sandbox(client=client), Sandbox(client=client)

    host         base URL; else PODFLARE_HOSTD_URL, else PODFLARE_HOST, else
                 http://127.0.0.1:7070. Without a scheme, http:// is assumed; https:// verifies the
                 certificate, always. ValueError for one with a user or password in it.
    api_key      bearer token; else PODFLARE_API_KEY, else none is sent.
    traceparent  W3C trace context sent with every request; else PODFLARE_TRACEPARENT.

    A daemon on this machine's loopback is spoken to directly, whatever proxy the environment
    names; for any other host the usual proxy variables hold.

    Time-outs: 2.5 s to connect (tried twice); 60 s for small questions; none while a sandbox is
    created or a file moves; commands have their own (`Sandbox.run_code`). `close()` it, or use it
    in a `with` block.
    """

    def __init__(
        self,
        *,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        traceparent: Optional[str] = None,
    ) -> None:
        super().__init__(host=host, api_key=api_key, traceparent=traceparent)
        self._http: httpx.Client = httpx.Client(**self._settings.options())

    def health(self) -> bool:
        """True if the daemon answers that it is well; raises DaemonUnreachableError if it does not
        answer at all."""
        call = _calls.health()
        with self.stream(call) as response:
            return self._body(response, call.path).strip() == b"ok"

    def templates(self) -> List[TemplateInfo]:
        """What a sandbox can be made from, and the machines that stand ready for it."""
        return self.call(_calls.templates())

    def tree(self) -> List[TreeNode]:
        """Which sandbox was forked from which: the roots, each with what descends from it. One that
        has ended is there as long as something descends from it."""
        return self.call(_calls.tree())

    def close(self) -> None:
        """Close the connections. Sandboxes live on."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # What follows is for Sandbox; it may change between versions.

    def call(
        self,
        call: Call[T],
        *,
        traceparent: Optional[str] = None,
        content: Any = None,
        headers: Mapping[str, str] = {},
    ) -> T:
        """One request with its whole reply; raises for everything that is not 2xx."""
        with self.stream(
            call, traceparent=traceparent, content=content, headers=headers
        ) as response:
            return call.read(response, self._body(response, call.path), self.host)

    def _body(self, response: httpx.Response, path: str) -> bytes:
        whole = Whole(response, path)
        with reading(self.host, path):
            for piece in response.iter_bytes():
                if not whole.add(piece):
                    break
        return bytes(whole)

    @contextlib.contextmanager
    def stream(
        self,
        call: Call[Any],
        *,
        traceparent: Optional[str] = None,
        content: Any = None,
        headers: Mapping[str, str] = {},
    ) -> Iterator[httpx.Response]:
        """One request, its reply body left to the caller. Leaving the block early closes the
        connection, which ends the command that runs at the other end."""
        wish = self._request(call, traceparent, content, headers, tune)
        with sending(self.host, call.path):
            try:
                response = self._http.send(self._http.build_request(**wish), stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                # Tried again, as nothing of the request had left; nothing else ever is.
                response = self._http.send(self._http.build_request(**wish), stream=True)
        try:
            if not response.is_success:
                body = self._body(response, call.path)
                raise error_from_reply(
                    response.status_code, body, response.headers, response.request.url.path
                )
            yield response
        finally:
            response.close()


class AsyncClient(_ClientBase):
    """`Client` for asyncio: the same arguments and time-outs; its methods are awaited. It belongs to
    the event loop in which it is first used. `await client.close()`, or use it in an `async with`
    block."""

    def __init__(
        self,
        *,
        host: Optional[str] = None,
        api_key: Optional[str] = None,
        traceparent: Optional[str] = None,
    ) -> None:
        super().__init__(host=host, api_key=api_key, traceparent=traceparent)
        self._http: httpx.AsyncClient = httpx.AsyncClient(**self._settings.options())

    async def health(self) -> bool:
        """See Client.health."""
        call = _calls.health()
        async with self.stream(call) as response:
            return (await self._body(response, call.path)).strip() == b"ok"

    async def templates(self) -> List[TemplateInfo]:
        """See Client.templates."""
        return await self.call(_calls.templates())

    async def tree(self) -> List[TreeNode]:
        """See Client.tree."""
        return await self.call(_calls.tree())

    async def close(self) -> None:
        """Close the connections. Sandboxes live on."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # What follows is for AsyncSandbox; it may change between versions.

    async def call(
        self,
        call: Call[T],
        *,
        traceparent: Optional[str] = None,
        content: Any = None,
        headers: Mapping[str, str] = {},
    ) -> T:
        """One request with its whole reply; raises for everything that is not 2xx."""
        async with self.stream(
            call, traceparent=traceparent, content=content, headers=headers
        ) as response:
            return call.read(response, await self._body(response, call.path), self.host)

    async def _body(self, response: httpx.Response, path: str) -> bytes:
        whole = Whole(response, path)
        with reading(self.host, path):
            async with contextlib.aclosing(response.aiter_bytes()) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    if not whole.add(piece):
                        break
        return bytes(whole)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        call: Call[Any],
        *,
        traceparent: Optional[str] = None,
        content: Any = None,
        headers: Mapping[str, str] = {},
    ) -> AsyncIterator[httpx.Response]:
        """One request, its reply body left to the caller. Leaving the block early, also because the
        task was cancelled, closes the connection, which ends the command at the other end."""

        async def trace(event: str, info: Mapping[str, Any]) -> None:
            tune(event, info)

        wish = self._request(call, traceparent, content, headers, trace)
        with sending(self.host, call.path):
            try:
                response = await self._http.send(self._http.build_request(**wish), stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                response = await self._http.send(self._http.build_request(**wish), stream=True)
        try:
            if not response.is_success:
                body = await self._body(response, call.path)
                raise error_from_reply(
                    response.status_code, body, response.headers, response.request.url.path
                )
            yield response
        except BaseException:
            # Not left to aclose(): it awaits, and a task may be cancelled there once more.
            hang_up(response)
            raise
        finally:
            await response.aclose()
