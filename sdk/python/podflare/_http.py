# SPDX-License-Identifier: Apache-2.0
"""What both clients share of HTTP: addresses, credentials, time-outs, one request as a value, and
errors of the transport turned into ours. Nothing in here reads or writes a socket by itself."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import socket
import threading
import time
import warnings
from dataclasses import dataclass, field
from typing import (
    Any,
    Callable,
    Dict,
    Generic,
    Iterator,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
)

import httpx

from ._errors import (
    DaemonUnreachableError,
    PodflareError,
    RequestTimeoutError,
    StreamBrokenError,
)
from ._version import __version__

T = TypeVar("T")
Params = Mapping[str, Union[str, Sequence[str]]]

DEFAULT_HOST = "http://127.0.0.1:7070"

# A connection is made at once or not at all; an answer to a small question comes soon.
QUICK = httpx.Timeout(connect=2.5, read=60.0, write=60.0, pool=None)
# Nobody knows how long a boot or a transfer takes; a command has a `Deadline` of its own.
PATIENT = httpx.Timeout(connect=2.5, read=None, write=None, pool=None)

# Of an answer that is read as a whole: a list of files, which a sandbox has written, is the longest. And
# of one that refuses something.
REPLY_MAX = 256 << 20
REFUSAL_MAX = 1 << 20

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its reply is read.

    key       a member that the reply, a JSON object, must have: anything else comes from some
              other server at that address. None: any reply will do.
    parse     makes the result from that object ({} if there is none).
    patient   no limit to how long the answer takes.
    lines     the reply is NDJSON; `parse` gets {"lines": [...]}.
    """

    method: str
    path: str
    parse: Callable[[Mapping[str, Any]], T]
    key: Optional[str] = None
    json: Union[Mapping[str, Any], bool, None] = None
    params: Optional[Params] = None
    headers: Mapping[str, str] = field(default_factory=dict)
    patient: bool = False
    lines: bool = False

    def read(self, response: httpx.Response, body: bytes, host: str) -> T:
        """The result; `body` is all that the response has."""
        try:
            reply = _lines(response, body) if self.lines else json.loads(body)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            reply = {}
        if self.key is not None and self.key not in reply:
            raise _stranger(host, response)
        try:
            return self.parse(reply)
        except (KeyError, TypeError, AttributeError) as exc:
            raise _stranger(host, response) from exc


@dataclass(frozen=True)
class Settings:
    """Where the daemon is and what is sent with every request, the key included."""

    host: str
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def gather(
        cls, host: Optional[str], api_key: Optional[str], traceparent: Optional[str]
    ) -> "Settings":
        """From arguments, then the environment, then the defaults; see `Client`."""
        env = os.environ
        headers = {
            "user-agent": f"podflare-python/{__version__}",
            # Output is compressed by nobody, and must arrive as it is produced.
            "accept-encoding": "identity",
        }
        key = (api_key or env.get("PODFLARE_API_KEY") or "").strip()
        if key:
            if not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("the API key has characters that no key has")
            headers["authorization"] = f"Bearer {key}"
        if traceparent is not None:
            headers["traceparent"] = check_traceparent(traceparent)
        elif env.get("PODFLARE_TRACEPARENT"):
            try:
                headers["traceparent"] = check_traceparent(env["PODFLARE_TRACEPARENT"])
            except ValueError as exc:
                warnings.warn(f"PODFLARE_TRACEPARENT is ignored: {exc}", stacklevel=4)
        return cls(
            _base_url(
                host or env.get("PODFLARE_HOSTD_URL") or env.get("PODFLARE_HOST") or DEFAULT_HOST
            ),
            headers,
        )

    def options(self) -> Dict[str, Any]:
        """Arguments for httpx.Client and httpx.AsyncClient."""
        return {
            "base_url": self.host,
            "headers": self.headers,
            "timeout": QUICK,
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=20),
            "trust_env": not _is_loopback(self.host),
            # Reading the host's certificates takes longer than creating a sandbox; only for TLS. What
            # is read is what httpx itself goes by.
            "verify": httpx.URL(self.host).scheme != "http",
        }


@contextlib.contextmanager
def sending(host: str, path: str) -> Iterator[None]:
    """Turns transport errors before the reply's head into ours."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        raise DaemonUnreachableError(
            f"no podflare daemon answers at {host} ({_reason(exc)}): "
            "is `podflare serve` running?",
            hint="another address can be given by host= or PODFLARE_HOSTD_URL",
        ) from exc
    except httpx.TimeoutException as exc:
        raise RequestTimeoutError(f"no answer from {host}{path} in time") from exc
    except httpx.LocalProtocolError as exc:
        raise PodflareError(f"the request to {path} could not be sent: {exc}") from exc
    except httpx.TransportError as exc:
        raise DaemonUnreachableError(
            f"the connection to {host} broke before it answered ({_reason(exc)})",
            hint="its log says why, if it stopped",
        ) from exc


@contextlib.contextmanager
def reading(host: str, path: str) -> Iterator[None]:
    """Turns transport errors while a reply's body is read into ours."""
    try:
        yield
    except httpx.TimeoutException as exc:
        raise RequestTimeoutError(f"the answer of {host}{path} stopped halfway") from exc
    except httpx.TransportError as exc:
        raise StreamBrokenError(
            f"the connection to {host} broke in the middle of the answer ({_reason(exc)})"
        ) from exc


class Whole:
    """The body of an answer, as it comes: not more than what is sensible."""

    def __init__(self, response: httpx.Response, path: str) -> None:
        self._path = path
        self._refused = not response.is_success
        self._body = bytearray()

    def add(self, piece: bytes) -> bool:
        """Append; False: that is enough."""
        self._body += piece
        if self._refused:
            return len(self._body) < REFUSAL_MAX
        if len(self._body) > REPLY_MAX:
            raise PodflareError(f"the answer of {self._path} has over {REPLY_MAX} bytes")
        return True

    def __bytes__(self) -> bytes:
        return bytes(self._body)


def tune(event: str, info: Mapping[str, Any]) -> None:
    """For every new connection (httpcore's trace). Small writes are sent at once: before httpcore
    0.17.1 the head and the body of a request are two writes with Nagle's algorithm on, and wait 40 ms
    for each other. And a peer whose machine is gone is noticed within two minutes, also by a call
    that waits for its turn."""
    if event != "connection.connect_tcp.complete":
        return
    with _socket_of(info["return_value"]) as sock:
        if sock is None:
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 6)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def hang_up(response: httpx.Response) -> None:
    """Shut the connection of an unfinished reply down at once, from any thread: whoever reads from
    it sees its end, and the daemon ends what it did for it."""
    if response.is_closed:
        return  # its connection may serve another request by now
    with contextlib.suppress(OSError), _socket_of(response.extensions["network_stream"]) as sock:
        if sock is not None:
            sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def _socket_of(stream: Any) -> Iterator[Optional[socket.socket]]:
    """The socket below a stream of httpcore, by a descriptor of its own: what event loops hand out
    does not always have a socket's methods."""
    sock = stream.get_extra_info("socket")
    if sock is None:
        yield None
        return
    with socket.socket(fileno=os.dup(sock.fileno())) as twin:
        yield twin


class Alarms:
    """Calls functions at their times, from one thread that exists while there is something to wait
    for. The functions must be quick. Thread-safe."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Be as new."""
        self._changed = threading.Condition()
        self._due: Dict[object, Tuple[float, Callable[[], None]]] = {}
        self._wakes_at = 0.0
        self._running = False

    def set(self, seconds: float, action: Callable[[], None]) -> Callable[[], None]:
        """Call `action` in so many seconds, unless the function that is returned is called before.
        When that has returned, the action is not under way either."""
        key = object()
        at = time.monotonic() + seconds
        with self._changed:
            self._due[key] = (at, action)
            if not self._running:
                self._running = True
                # A daemon thread: a program that ends does not wait for it.
                threading.Thread(target=self._run, name="podflare-alarms", daemon=True).start()
            elif at < self._wakes_at:
                self._changed.notify()

        def cancel() -> None:
            with self._changed:
                self._due.pop(key, None)

        return cancel

    def _run(self) -> None:
        with self._changed:
            while self._due:
                now = time.monotonic()
                for key, (at, action) in list(self._due.items()):
                    if at <= now:
                        del self._due[key]
                        action()
                if self._due:
                    self._wakes_at = min(at for at, _ in self._due.values())
                    self._changed.wait(self._wakes_at - now)
            self._running = False


ALARMS = Alarms()
if hasattr(os, "register_at_fork"):
    # The thread stays behind in the parent.
    os.register_at_fork(after_in_child=ALARMS.forget)


class Deadline:
    """Hangs up when a command has not ended long after its own time-out: the daemon itself must be
    stuck then. Only while somebody waits for the daemon: a program that takes its time between two
    events finds what has come meanwhile.

    seconds   None: never.
    grace     seconds that the daemon has in any case, when the program waits again.
    timer     calls a function in so many seconds, and returns one that cancels this.
    """

    def __init__(
        self,
        seconds: Optional[float],
        grace: float,
        timer: Callable[[float, Callable[[], None]], Callable[[], object]] = ALARMS.set,
    ) -> None:
        self._seconds, self._grace = seconds, grace
        self._timer = timer
        self._cancel: Optional[Callable[[], object]] = None
        self._response: Optional[httpx.Response] = None
        self._busy = self._late = False
        self.passed = False

    @property
    def seconds(self) -> float:
        """From the start until it hangs up."""
        return self._seconds or 0.0

    def start(self, response: httpx.Response, grace: Optional[float] = None) -> None:
        """Begin to count; the second time does nothing. grace: what the daemon has in truth, where
        it says so."""
        if self._seconds is not None and self._response is None:
            if grace is not None:
                self._seconds += grace - self._grace
                self._grace = grace
            self._response = response
            self._cancel = self._timer(self._seconds, self._over)

    def busy(self) -> None:
        """The program has got something to do."""
        self._busy = True

    def waiting(self) -> None:
        """The program waits again."""
        self._busy = False
        if self._late:
            self._late = False
            self._cancel = self._timer(self._grace, self._over)

    def stop(self) -> None:
        """The command has ended. Called before its connection may serve another request."""
        if self._cancel is not None:
            self._cancel()

    def _over(self) -> None:
        # In this order, as `waiting` has its own: one of the two sees the other.
        self._late = True
        if not self._busy and self._response is not None:
            self.passed = True
            hang_up(self._response)


def check_traceparent(value: str) -> str:
    """The value if it is a W3C traceparent, else ValueError."""
    value = value.strip()
    if not _TRACEPARENT.fullmatch(value) or not value.isascii() or not value.isprintable():
        raise ValueError(f"not a W3C traceparent (00-<32 hex>-<16 hex>-<2 hex>): {value!r}")
    return value


def _lines(response: httpx.Response, body: bytes) -> Dict[str, Any]:
    if not response.headers.get("content-type", "").startswith("application/x-ndjson"):
        raise ValueError("not NDJSON")
    return {"lines": [json.loads(line) for line in body.split(b"\n") if line]}


def _stranger(host: str, response: httpx.Response) -> PodflareError:
    return PodflareError(
        f"{host} did not answer as a podflare daemon does", status=response.status_code
    )


def _base_url(host: str) -> str:
    host = host.strip()
    if "@" in host:
        # Not quoted: every message and repr that names the address would have it.
        raise ValueError(
            "the address of a daemon has no user or password in it: a key is given by api_key= or "
            "PODFLARE_API_KEY"
        )
    scheme, separator, rest = host.partition("://")
    host = f"{scheme.lower()}://{rest}" if separator else f"http://{host}"
    try:
        url = httpx.URL(host)
    except httpx.InvalidURL as exc:
        raise ValueError(f"not an address of a daemon: {host!r} ({exc})") from exc
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise ValueError(f"not an address of a daemon: {host!r} (want http://HOST:PORT)")
    return host.rstrip("/")


def _is_loopback(base_url: str) -> bool:
    name = httpx.URL(base_url).host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
