# SPDX-License-Identifier: Apache-2.0
"""Commands that go on without a client: what is asked, and the events that answer it, without the objects
around them (_commands.py)."""

from __future__ import annotations

import signal as signals
from pathlib import PurePath
from typing import (
    Any,
    AsyncGenerator,
    Callable,
    Dict,
    Generator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from ._calls import Remote, check_name, url
from ._client import AsyncClient, Client
from ._errors import RequestTimeoutError, StreamBrokenError
from ._exec import (
    DEFAULT_TIMEOUT,
    Decoder,
    _checked_argv,
    checked_strings,
    checked_text,
    checked_timeout,
    dedent,
)
from ._http import Call, Deadline, reading
from ._results import Event
from ._types import CommandInfo

Argv = Sequence[Union[str, PurePath]]
Signal = Union[str, int, signals.Signals]
OnText = Optional[Callable[[str], object]]


class _NotGiven:
    """For an argument that was not given, where None says something."""

    def __repr__(self) -> str:
        return "..."


NOT_GIVEN: Any = _NotGiven()


# What is asked.


def _path(sandbox_id: str, command_id: str, rest: str = "") -> str:
    return url(sandbox_id, f"/commands/{check_name('id', command_id)}{rest}")


def _nothing(reply: Mapping[str, Any]) -> None:
    return None


def start(
    sandbox_id: str,
    cmd: Union[str, Argv],
    *,
    cwd: Optional[Remote],
    env: Optional[Mapping[str, str]],
    user: Optional[str],
    stdin: object,
    timeout: Any,
    pty: Union[None, bool, Tuple[int, int]],
    id: Optional[str],
) -> Call[Tuple[str, int]]:
    """Starts one: its id and its process."""
    if stdin is not None and not isinstance(stdin, bool):
        raise TypeError("in the background stdin is True or False: write() to the Command")
    body: Dict[str, Any] = {"stdin": bool(stdin)}
    if isinstance(cmd, str):
        body["code"] = checked_text("the command", dedent(cmd))
        body["language"] = "bash"
    else:
        body["argv"] = _checked_argv(cmd)
    body["timeout"] = checked_timeout(None if timeout is NOT_GIVEN else timeout)
    if cwd is not None:
        body["cwd"] = str(cwd)
    if env is not None:
        body["env"] = checked_strings("env", env)
    if user is not None:
        body["user"] = user
    if pty:
        cols, rows = (80, 24) if pty is True else pty
        body["pty"] = {"cols": cols, "rows": rows}
    if id is not None:
        body["command_id"] = check_name("id", id)
    return Call(
        "POST",
        url(sandbox_id, "/commands"),
        lambda reply: (str(reply["command_id"]), int(reply["pid"])),
        "command_id",
        json=body,
        patient=True,
    )


def listing(sandbox_id: str) -> Call[List[CommandInfo]]:
    return Call(
        "GET",
        url(sandbox_id, "/commands"),
        lambda reply: [CommandInfo.from_reply(one) for one in reply["commands"]],
        "commands",
    )


def describe(sandbox_id: str, command_id: str) -> Call[CommandInfo]:
    return Call("GET", _path(sandbox_id, command_id), CommandInfo.from_reply, "command_id")


def follow(sandbox_id: str, command_id: str, stdout: int, stderr: int) -> Call[None]:
    return Call(
        "GET",
        _path(sandbox_id, command_id, "/stream"),
        _nothing,
        params={"stdout": str(int(stdout)), "stderr": str(int(stderr))},
        patient=True,
    )


def send_signal(sandbox_id: str, command_id: str, signal: Signal, group: bool) -> Call[bool]:
    """Whether it was still there."""
    if isinstance(signal, bool) or not isinstance(signal, (str, int)):
        raise TypeError(f"signal must be a name or a number, not {type(signal).__name__}")
    return Call(
        "POST",
        _path(sandbox_id, command_id, "/signal"),
        lambda reply: not reply["ended"],
        "ended",
        json={"signal": signal if isinstance(signal, str) else int(signal), "group": bool(group)},
    )


def write(sandbox_id: str, command_id: str, close: bool) -> Call[None]:
    return Call(
        "POST",
        _path(sandbox_id, command_id, "/stdin"),
        _nothing,
        params={"close": "1"} if close else {},
        headers={"content-type": "application/octet-stream"},
        patient=True,
    )


def resize(sandbox_id: str, command_id: str, cols: int, rows: int) -> Call[None]:
    path = _path(sandbox_id, command_id, "/resize")
    return Call("POST", path, _nothing, json={"cols": cols, "rows": rows})


def delete(sandbox_id: str, command_id: str) -> Call[None]:
    return Call("DELETE", _path(sandbox_id, command_id), _nothing, patient=True)


def as_bytes(data: Union[str, bytes]) -> bytes:
    """What is written."""
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"data must be str or bytes, not {type(data).__name__}")


def foreground(cmd: Union[str, Argv], timeout: Any, options: Dict[str, Any]) -> Dict[str, Any]:
    """The arguments of `run_code_stream` or `exec_stream` for the same command."""
    for name in ("pty", "id"):
        if options.pop(name):
            raise ValueError(f"{name} is for commands in the background")
    if isinstance(options["stdin"], bool):
        raise TypeError("stdin is what the command reads, str or bytes, unless background=True")
    options["timeout"] = DEFAULT_TIMEOUT if timeout is NOT_GIVEN else timeout
    return options


def gave_up(command_id: str, seconds: Optional[float]) -> RequestTimeoutError:
    return RequestTimeoutError(
        f"command {command_id} has not ended within {seconds:g} s; it runs on"
    )


# As in _streams.py: the generators know nothing of the objects around them.


def read_events(
    client: Client, traceparent: Optional[str], call: Call[None], deadline: Deadline
) -> Generator[Event, None, None]:
    decoder = Decoder()
    with client.stream(call, traceparent=traceparent) as response:
        deadline.start(response)
        try:
            with reading(client.host, call.path):
                for chunk in response.iter_raw():
                    for event in decoder.feed(chunk):
                        if event.type != "started":
                            yield event
            decoder.finish()
        except StreamBrokenError:
            if not decoder.ended:
                raise
        finally:
            deadline.stop()


async def async_read_events(
    client: AsyncClient, traceparent: Optional[str], call: Call[None], deadline: Deadline
) -> AsyncGenerator[Event, None]:
    decoder = Decoder()
    async with client.stream(call, traceparent=traceparent) as response:
        deadline.start(response)
        try:
            with reading(client.host, call.path):
                async for chunk in response.aiter_raw():
                    for event in decoder.feed(chunk):
                        if event.type != "started":
                            yield event
            decoder.finish()
        except StreamBrokenError:
            if not decoder.ended:
                raise
        finally:
            deadline.stop()
