# SPDX-License-Identifier: Apache-2.0
"""Running code, without I/O: what is asked, from the bytes of the reply to events, from events to a
result, and which calls of a sandbox are under way."""

from __future__ import annotations

import base64
import json
import math
import os
import secrets
import threading
from dataclasses import dataclass
from pathlib import PurePath
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from ._calls import check_name, url
from ._errors import PodflareError, RequestTimeoutError, StreamBrokenError
from ._egress import Denied
from ._http import Call
from ._kept import Tail, weight
from ._plain import flat
from ._results import Event, ExecError, ExecResult, Result

DEFAULT_TIMEOUT = 300.0

# How long after a command's own time-out the client still waits for a daemon that does not say within
# which time after that it answers; and for one that does: twice that, and what follows for the way.
GRACE = 120.0
WAY = 10.0

# What a result keeps at most, whatever the code shows and writes: bytes that values and notices take
# here, with so many more for each; notices, of the sandbox and of the daemon; and bytes of each stream, the last ones, as the sandbox keeps
# them of a command in the background. (A call's own output_limit is never more.)
RESULTS = 256 << 20
EACH = 512
NOTICES = 1000
OUTPUT = 256 << 20
# Of one event, of which the daemon takes 8 MiB from a sandbox.
LINE_MAX = 64 << 20

Callback = Optional[Callable[[Any], object]]

# What happens to a call that writes more than its output_limit.
LimitAction = Literal["truncate", "end"]


@dataclass(frozen=True)
class Request:
    """A command that is to run.

    exec_id   chosen here, so that it can be interrupted before the daemon has said anything.
    limit     seconds after its start when the client gives up; None: never.
    """

    exec_id: str
    call: Call[None]
    limit: Optional[float]


def request(
    sandbox_id: str,
    *,
    code: Optional[str] = None,
    argv: Optional[Sequence[Union[str, PurePath]]] = None,
    language: Optional[str] = None,
    timeout: Optional[float] = DEFAULT_TIMEOUT,
    context: Any = None,
    cwd: Optional[Union[str, PurePath]] = None,
    env: Optional[Mapping[str, str]] = None,
    user: Optional[str] = None,
    stdin: Optional[Union[str, bytes]] = None,
    output_limit: Optional[int] = None,
    output_limit_action: Optional[LimitAction] = None,
    queue_timeout: Optional[float] = None,
) -> Request:
    """The request for some code or an argument list; TypeError and ValueError for what cannot be
    meant."""
    exec_id = f"py_{secrets.token_hex(12)}"
    body: Dict[str, Any] = {"rich": True, "exec_id": exec_id}
    if argv is not None:
        body["argv"] = _checked_argv(argv)
    elif isinstance(code, str):
        body["code"] = checked_text("code", dedent(code))
        body["language"] = language
    else:
        raise TypeError(f"code must be str, not {type(code).__name__}")
    seconds = checked_timeout(timeout)
    body["timeout"] = seconds
    if context is not None:
        body["context_id"] = check_name("context", getattr(context, "id", context))
    if cwd is not None:
        body["cwd"] = str(cwd)
    if env is not None:
        body["env"] = checked_strings("env", env)
    if user is not None:
        body["user"] = user
    if isinstance(stdin, str) and "\0" not in stdin:
        body["stdin"] = stdin
    elif isinstance(stdin, str):
        body["stdin_base64"] = base64.b64encode(stdin.encode()).decode()
    elif isinstance(stdin, (bytes, bytearray, memoryview)):
        body["stdin_base64"] = base64.b64encode(stdin).decode()
    elif stdin is not None:
        raise TypeError(f"stdin must be str or bytes, not {type(stdin).__name__}")
    if output_limit is not None:
        body["output_limit"] = output_limit
    if queue_timeout is not None:
        body["queue_timeout"] = checked_timeout(queue_timeout)
    if output_limit_action is not None:
        if output_limit_action not in ("truncate", "end"):
            raise ValueError(
                f'output_limit_action is "truncate" or "end", not {output_limit_action!r}'
            )
        body["output_limit_action"] = output_limit_action
    call: Call[None] = Call(
        "POST", url(sandbox_id, "/exec"), lambda reply: None, json=body, patient=True
    )
    return Request(exec_id, call, seconds + GRACE if seconds else None)


def checked_timeout(timeout: Optional[float]) -> float:
    """Seconds; 0 for none."""
    if timeout is None:
        return 0
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {type(timeout).__name__}")
    if not math.isfinite(timeout) or timeout < 0:
        raise ValueError(f"timeout must be 0 (none) or more seconds, not {timeout}")
    return timeout


def checked_strings(name: str, mapping: Mapping[str, str]) -> Dict[str, str]:
    """A mapping of str to str as a dict."""
    checked = dict(mapping)
    for key, value in checked.items():
        if not isinstance(key, str):
            raise TypeError(f"{name} has names that are str, not {type(key).__name__}")
        if not isinstance(value, str):
            raise TypeError(f"{name}[{key!r}] must be str, not {type(value).__name__}")
    return checked


def checked_text(name: str, text: str) -> str:
    """Text that can be sent: half of a surrogate pair is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"{name} has half of a surrogate pair at position {exc.start}, which is no character"
        ) from None
    return text


def _checked_argv(argv: Sequence[Union[str, PurePath]]) -> List[str]:
    if isinstance(argv, (str, bytes)):
        raise TypeError(
            "a list of arguments is wanted, not one string: exec(['ls', '-l']), or "
            "run_code('ls -l', 'bash') for a line of shell"
        )
    argv = list(argv)
    for one in argv:
        if not isinstance(one, (str, PurePath)):
            raise TypeError(f"each argument must be str, not {type(one).__name__}")
    if not argv:
        raise ValueError("an empty list names no program")
    return [str(one) for one in argv]


def dedent(code: str) -> str:
    """Take the common indentation off a block that is indented as a whole; any other text is
    returned untouched, also the blank lines in it that textwrap.dedent would change."""
    margin: Optional[str] = None
    lines = code.split("\n")
    for line in lines:
        content = line.lstrip(" \t")
        if not content.strip():
            continue
        indent = line[: len(line) - len(content)]
        margin = indent if margin is None else os.path.commonprefix([margin, indent])
        if not margin:
            return code
    if margin is None:
        return code
    width = len(margin)
    return "\n".join(line[width:] if line.startswith(margin) else line.lstrip() for line in lines)


class Decoder:
    """From the bytes of a reply to its events.

    Only b"\\n" ends a line. (str.splitlines and httpx's iter_lines also split at U+2028 and other
    characters that may stand unescaped in JSON strings.)
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self.ended = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that this piece completes. What comes after the exit event is left alone."""
        start = 0
        while not self.ended:
            end = chunk.find(b"\n", start)
            if end < 0:
                self._pending += chunk[start:]
                if len(self._pending) > LINE_MAX:
                    raise StreamBrokenError(
                        f"the server sent an event of over {LINE_MAX >> 20} MiB"
                    )
                return
            line = bytes(self._pending) + chunk[start:end]
            self._pending.clear()
            start = end + 1
            if line:
                event = parse_event(line)
                self.ended = event.type == "exit"
                yield event

    def finish(self) -> None:
        """The reply is over: StreamBrokenError if the exit event is missing."""
        if not self.ended:
            raise StreamBrokenError(
                "the output ended without an exit event: the daemon has stopped, and what "
                "became of the command is unknown"
            )


def _number(text: str) -> Any:
    """An integer; its digits, if they are more than Python takes."""
    try:
        return int(text)
    except ValueError:
        return text


def parse_event(line: bytes) -> Event:
    """Read one NDJSON line of the rich form."""
    try:
        # What code in the sandbox has displayed must not keep the events after it from coming.
        fields = json.loads(line, parse_int=_number)
        kind = fields.pop("type")
        seq, ts = int(fields.pop("seq", 0)), int(fields.pop("ts", 0))
        data: Any = fields.pop("data", None)
        raw = b""
        code = None
        if kind in ("stdout", "stderr"):
            if fields.pop("encoding", None) == "base64":
                raw = base64.b64decode(data, validate=True)
                data = raw.decode("utf-8", "replace")
            else:
                raw = data.encode("utf-8", "surrogatepass")
        elif kind == "exit":
            code = int(data)
        elif kind == "result":
            data = Result(dict(data))
        elif kind == "error":
            data = _error({**fields, **(data or {})})
        elif kind == "notice":
            data = str(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        start = flat(line[:120].decode("utf-8", "replace"))
        raise StreamBrokenError(f"the server sent a line that is not an event: {start}") from exc
    return Event(type=kind, data=data, seq=seq, ts=ts, code=code, raw=raw, extra=fields)


def grace(event: Event) -> Optional[float]:
    """Seconds beyond a command's time-out that its first event allows the daemon; None: it says nothing."""
    ms = event.extra.get("grace_ms") if event.type == "started" else None
    return None if not isinstance(ms, int) else 2 * ms / 1000 + WAY


def _error(fields: Mapping[str, Any]) -> ExecError:
    traceback = fields.get("traceback", "")
    if isinstance(traceback, list):  # text, or a list of lines
        traceback = "\n".join(str(line) for line in traceback)
    return ExecError(str(fields.get("name", "")), str(fields.get("value", "")), str(traceback))


class Collector:
    """Gathers the events of one command into an `ExecResult`."""

    def __init__(self, exec_id: str = "") -> None:
        self._exec_id = exec_id
        self._stdout, self._stderr = Tail(OUTPUT), Tail(OUTPUT)
        self._results: List[Result] = []
        self._notices: List[str] = []
        self._host_notices: List[str] = []
        self._room = RESULTS
        self._results_left_out = self._notices_left_out = 0
        self._error: Optional[ExecError] = None
        self._exit: Optional[Event] = None

    def add(self, event: Event) -> None:
        """Take one event. Types that this version does not know are left alone."""
        if event.type == "stdout":
            self._stdout.add(event.raw)
        elif event.type == "stderr":
            self._stderr.add(event.raw)
        elif event.type == "result":
            if self._has_room(event.data.data):
                self._results.append(event.data)
            else:
                self._results_left_out += 1
        elif event.type == "notice":
            if not self._take_notice(event.data, event.extra.get("from") == "guest"):
                self._notices_left_out += 1
        elif event.type == "error":
            self._error = event.data
        elif event.type == "exit":
            self._exit = event

    def _take_notice(self, text: str, of_guest: bool) -> bool:
        """Whether it is kept. What the sandbox says takes nothing from what the daemon says."""
        host = len(self._host_notices)
        if (len(self._notices) - host if of_guest else host) >= NOTICES:
            return False
        if of_guest and not self._has_room(text):
            return False
        self._notices.append(text)
        if not of_guest:
            self._host_notices.append(text)
        return True

    def _has_room(self, value: Any) -> bool:
        """Whether it fits, and then it is counted. Something smaller that comes later may."""
        takes = EACH + weight(value, self._room)
        if takes > self._room:
            return False
        self._room -= takes
        return True

    def explain(self, exc: PodflareError) -> None:
        """Gives an exception that cut the command short what had arrived."""
        if isinstance(exc, (StreamBrokenError, RequestTimeoutError)):
            exc.stdout, exc.stderr = bytes(self._stdout), bytes(self._stderr)

    def result(self) -> ExecResult:
        """The result; only legal after the exit event."""
        assert self._exit is not None and self._exit.code is not None
        extra = self._exit.extra
        stdout, stderr = bytes(self._stdout), bytes(self._stderr)
        dropped = self._stdout.dropped + self._stderr.dropped
        notices = list(self._notices)
        left_out = [
            f"{count} {what}"
            for count, what in (
                (self._results_left_out, "results"),
                (self._notices_left_out, "notices"),
            )
            if count
        ]
        if left_out:
            notices.append(
                f"{' and '.join(left_out)} are not here: a call keeps {RESULTS >> 20} MiB, and {NOTICES} notices. "
                "on_result and run_code_stream hand them over one by one"
            )
        if dropped:
            notices.append(
                f"{dropped} bytes of output are not here: of each stream the last {OUTPUT >> 20} MiB are. "
                "on_stdout and on_stderr hand over all of it"
            )
        if extra.get("truncated") and not extra.get("bytes_dropped"):
            notices.append("output may be missing at the end of what is here: nobody could tell")
        elif extra.get("truncated") and extra.get("termination_reason") == "output_limit":
            notices.append(
                f"output was cut: what was written is {extra.get('bytes_dropped', 0)} bytes longer than "
                "what is here, its beginning"
            )
        elif extra.get("truncated"):
            notices.append(
                f"output was cut: {extra.get('bytes_dropped', 0)} bytes are missing between the beginning "
                "and the end of what is here"
            )
        if extra.get("log_truncated"):
            notices.append(
                "nor is all of it in a file of the sandbox: that stops at 1 GiB, or where the disk was full"
            )
        return ExecResult(
            stdout=stdout.decode("utf-8", "replace"),
            stderr=stderr.decode("utf-8", "replace"),
            exit_code=self._exit.code,
            termination_reason=extra.get("termination_reason", "exited"),
            state=extra.get("state", "unknown"),
            truncated=extra.get("truncated", False) or dropped > 0,
            bytes_dropped=extra.get("bytes_dropped", 0) + dropped,
            log=extra.get("log") or {},
            log_truncated=extra.get("log_truncated", False),
            duration_ms=extra.get("duration_ms"),
            signal=extra.get("signal"),
            results=tuple(self._results),
            error=self._error,
            notices=tuple(notices),
            host_notices=(*self._host_notices, *notices[len(self._notices) :]),
            exec_id=self._exec_id,
            denied=tuple(Denied.from_reply(one) for one in extra.get("denied") or ()),
            stdout_bytes=stdout,
            stderr_bytes=stderr,
        )


class Callbacks:
    """Which function is called with what, for an event."""

    def __init__(
        self, on_stdout: Callback, on_stderr: Callback, on_result: Callback, on_error: Callback
    ) -> None:
        self._by_type = {
            "stdout": on_stdout,
            "stderr": on_stderr,
            "result": on_result,
            "error": on_error,
        }
        for name, callback in self._by_type.items():
            if callback is not None and not callable(callback):
                raise TypeError(f"on_{name} must be a function, not {type(callback).__name__}")

    def call(self, event: Event) -> object:
        """Call it; what it returned (an awaitable, perhaps)."""
        callback = self._by_type.get(event.type)
        return None if callback is None else callback(event.data)


class Underway:
    """The calls that one sandbox object has made and that have not ended. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: Dict[str, bool] = {}

    def enter(self, exec_id: str) -> None:
        """It is about to be sent."""
        with self._lock:
            self._started[exec_id] = False

    def start(self, exec_id: str) -> None:
        """It runs."""
        with self._lock:
            if exec_id in self._started:
                self._started[exec_id] = True

    def leave(self, exec_id: str) -> None:
        """It has ended, or nobody waits for it any more."""
        with self._lock:
            self._started.pop(exec_id, None)

    def __contains__(self, exec_id: str) -> bool:
        return exec_id in self._started

    def targets(self) -> Tuple[str, ...]:
        """Those that an interrupt is meant for: all that run (each in a context of its own). If none
        is known to, the one that was sent first; it is the next to run."""
        with self._lock:
            running = tuple(id for id, started in self._started.items() if started)
            return running or tuple(self._started)[:1]


# An interrupt may overtake the call that it is for: how often, and how many seconds apart, it is sent
# again while the daemon knows nothing of that call.
OVERTAKEN_TRIES = 200
OVERTAKEN_PAUSE = 0.05
