# SPDX-License-Identifier: Apache-2.0
"""What code did: events, the values that it showed, and the result of a call."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Literal, Mapping, Optional, Tuple, Union

from . import _html
from ._egress import Denied
from ._plain import flat

Language = Literal["python", "bash", "javascript"]

CHART = "application/vnd.podflare.chart+json"

_BY_SUFFIX = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".htm": "text/html",
    ".md": "text/markdown",
    ".tex": "text/latex",
    ".json": "application/json",
    ".pdf": "application/pdf",
    ".txt": "text/plain",
}

_BINARY = ("image/png", "image/jpeg", "application/pdf")


@dataclass(frozen=True)
class Event:
    """One event of a running command, as `Sandbox.run_code_stream` yields it.

    type   "stdout" or "stderr": a piece of output, exactly as it came (it may be part of a line
           or many lines; newlines are in it).
           "exit": the command has ended; always the last event.
           "result": a value that the code showed; "error": an uncaught Python exception;
           "notice": something that the system wants to say: the sandbox, which code in it may have
           say anything, where extra["from"] is "guest"; else the daemon. All three may be ignored.
    data   str for stdout, stderr and notice; int (the exit code) for exit; `Result` for result;
           `ExecError` for error; whatever the daemon sent for types of tomorrow.
           Bytes that are not UTF-8 appear as U+FFFD; `raw` has them exactly.
    seq    number of the event within its command; it grows.
    ts     milliseconds since 1970 by the clock of the host.
    code   the exit code, for exit events; None otherwise.
    extra  everything else that the daemon said, for exit events: "termination_reason", "state",
           "duration_ms" and so on, as in ExecResult; for notices "from".
    """

    type: str
    data: Any
    seq: int
    ts: int
    code: Optional[int] = None
    raw: bytes = field(default=b"", repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ExecError:
    """An uncaught Python exception: its class name, its text and the traceback as printed."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True)
class Result:
    """A value that the code showed: that of its last expression, an argument of `display()`, or a
    figure of matplotlib. It may come in several forms; those that it has not are None.

    data   the forms by MIME type, as the sandbox sent them (images in base64).

    In a notebook it shows itself: pictures, tables and text. HTML of the sandbox is shown without
    scripts, styles, links and images: it is not trusted. `html` has it as it came.
    """

    data: Mapping[str, Any]

    def _str(self, mime: str) -> Optional[str]:
        value = self.data.get(mime)
        if isinstance(value, list):  # notebooks hold text as a list of lines
            value = "".join(map(str, value))
        return value if isinstance(value, str) else None

    def _bytes(self, mime: str) -> Optional[bytes]:
        value = self._str(mime)
        if value is None:
            return None
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except ValueError:
            return None

    @property
    def text(self) -> Optional[str]:
        """Plain text: what `repr` gives."""
        return self._str("text/plain")

    @property
    def html(self) -> Optional[str]:
        """HTML, for example of a pandas table. Not trusted: it may have scripts in it."""
        return self._str("text/html")

    @property
    def markdown(self) -> Optional[str]:
        """Markdown."""
        return self._str("text/markdown")

    @property
    def latex(self) -> Optional[str]:
        """LaTeX, for example of a formula of sympy."""
        return self._str("text/latex")

    @property
    def svg(self) -> Optional[str]:
        """An SVG image, as text. Not trusted: it may have scripts in it."""
        return self._str("image/svg+xml")

    @property
    def png(self) -> Optional[bytes]:
        """A PNG image."""
        return self._bytes("image/png")

    @property
    def jpeg(self) -> Optional[bytes]:
        """A JPEG image."""
        return self._bytes("image/jpeg")

    @property
    def pdf(self) -> Optional[bytes]:
        """A PDF document. Not trusted: it may have scripts in it."""
        return self._bytes("application/pdf")

    @property
    def json(self) -> Any:
        """A JSON value."""
        return self.data.get("application/json")

    @property
    def chart(self) -> Optional[Mapping[str, Any]]:
        """The data behind a figure of lines, points, bars, pies or boxes, beside its picture: a dict
        with "type" and "elements", or {"charts": [...]} for several; see docs/results.md."""
        value = self.data.get(CHART)
        return value if isinstance(value, Mapping) else None

    @property
    def size(self) -> int:
        """How many characters all its forms have together, with their names, about."""
        return sum(
            len(mime) + (len(value) if isinstance(value, str) else len(json.dumps(value)))
            for mime, value in self.data.items()
        )

    def save(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Write one form to a local file. The file's name says which: .png, .jpg, .svg, .html, .md,
        .tex, .json, .pdf or .txt. Raises ValueError for another name, and for a form that there is not.
        """
        suffix = os.path.splitext(os.fspath(path))[1].lower()
        mime = _BY_SUFFIX.get(suffix)
        if mime is None:
            raise ValueError(
                f"a name that ends in one of {', '.join(_BY_SUFFIX)} is wanted, not {path!r}"
            )
        content = self._content(mime)
        if content is None:
            has = flat(", ".join(self.data)) or "nothing"
            chart = mime == "application/json" and self.chart is not None
            raise ValueError(
                f"there is no {mime} to be saved; there is: {has}"
                + ("; the data behind the figure is in .chart" if chart else "")
            )
        with open(path, "wb") as file:
            file.write(content)

    def _content(self, mime: str) -> Optional[bytes]:
        """One form as the bytes of a file."""
        if mime in _BINARY:
            return self._bytes(mime)
        if mime == "application/json":
            if mime not in self.data:
                return None
            return json.dumps(self.data[mime], ensure_ascii=False, indent=1).encode() + b"\n"
        text = self._str(mime)
        return None if text is None else text.encode("utf-8", "replace")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> Dict[str, Any]:
        """What a notebook shows: only what cannot do harm there."""
        # Also a terminal shows it, by IPython.
        text = repr(self) if self.text is None else _html.printable(self.text)
        shown: Dict[str, Any] = {"text/plain": text}
        for mime in ("image/png", "image/jpeg"):
            data = self._bytes(mime)
            if data is not None:
                shown[mime] = base64.b64encode(data).decode()
        markup = self._repr_html_()
        if markup is not None:
            shown["text/html"] = markup
        return shown

    def _repr_html_(self) -> Optional[str]:
        if self.html is not None:
            return _html.clean(self.html)
        if self.svg is not None:
            encoded = base64.b64encode(self.svg.encode("utf-8", "replace")).decode()
            return _html.image("image/svg+xml", encoded)
        return None

    def _repr_png_(self) -> Optional[bytes]:
        return self.png

    def _as_html(self) -> str:
        """Something to be shown in any case."""
        for mime in ("image/png", "image/jpeg"):
            data = self._bytes(mime)
            if data is not None:
                return _html.image(mime, base64.b64encode(data).decode())
        return self._repr_html_() or _html.preformatted(str(self))

    def __repr__(self) -> str:
        parts = []
        for mime, value in self.data.items():
            mime = _html.printable(mime)
            if mime in (*_BINARY, "image/svg+xml") and isinstance(value, str):
                parts.append(f"{mime}: {len(self._content(mime) or b'')} bytes")
            elif isinstance(value, str):
                parts.append(f"{mime}: {shorten(value)}")
            else:
                parts.append(mime)
        return f"<Result {', '.join(parts)}>"

    def __str__(self) -> str:
        pictures = [mime for mime in self.data if mime.startswith("image/")]
        if self.text is None or pictures:
            return repr(self)
        return _html.printable(self.text)


@dataclass(frozen=True)
class ExecResult:
    """What a command did. `print(result)` shows it as a terminal would, a notebook with its pictures
    and tables.

    stdout, stderr   the output; bytes that are not UTF-8 appear as U+FFFD here and are exact in
                     `stdout_bytes` and `stderr_bytes`. See `truncated`.
    exit_code        0 for success; 1 for an uncaught Python exception; SystemExit's code;
                     128 + signal for a command killed by a signal; 124 for one that reached its
                     time-out; 130 for one that was interrupted; 153 for one that was ended for
                     writing too much; -1 if there is none.
    termination_reason   how it ended: "exited", "signaled", "timeout", "interrupted", "oom" (the
                     sandbox was out of memory), "output_limit" (it wrote more than that, and was to
                     be ended then: `output_limit_action`); with exit code -1 "vm_ended" (the sandbox has
                     ended), "closed" (it was closed, or another one took its place), "agent_error" (its
                     agent failed) or "refused" (the command never ran; stderr says why).
    state            "preserved", or "lost" if the Python interpreter had to be started anew
                     and has forgotten its variables; "unknown" if nobody could tell.
    truncated        True if something is missing: there was more output than `output_limit`, of each
                     stream the head and the tail are here, the whole is in the sandbox (`log`); or it
                     was not read in time when the call had to end; or, of a command in the
                     background, more than the last 256 MiB of a stream.
    bytes_dropped    how many bytes are missing, of both streams together (and of results that were
                     not read in time); 0 with `truncated`: not known, the sandbox did not answer.
    log              paths in the sandbox of the whole output, by "stdout" and "stderr", for those
                     that were truncated: `sandbox.download(result.log["stdout"])`.
    log_truncated    True if there is no such file, or it does not have all: it stops at 1 GiB, or
                     where the sandbox's disk was full. What is missing there as well is lost.
    duration_ms      milliseconds that the command ran, measured in the sandbox; None if unknown.
    signal           number of the signal that killed it, if one did.
    results          values that it showed, in order: see `Result`, and `text`, `png`, `save` here.
    error            the uncaught Python exception, if there was one.
    notices          what the system has to say, such as that variables were lost. Most are the word of
                     the sandbox, and code in it may have it say anything.
    host_notices     of these, what the daemon and this library say themselves.
    exec_id          name of this call, as in `Sandbox.list_execs`.
    denied           what anything in the sandbox tried to reach while this call ran, and was not let
                     to; at most 32, each with how often.
    """

    stdout: str
    stderr: str
    exit_code: int
    termination_reason: str = "exited"
    state: str = "preserved"
    truncated: bool = False
    bytes_dropped: int = 0
    log: Mapping[str, str] = field(default_factory=dict)
    log_truncated: bool = False
    duration_ms: Optional[int] = None
    signal: Optional[int] = None
    results: Tuple[Result, ...] = ()
    error: Optional[ExecError] = None
    notices: Tuple[str, ...] = ()
    host_notices: Tuple[str, ...] = ()
    exec_id: str = ""
    denied: Tuple[Denied, ...] = ()
    stdout_bytes: bytes = field(default=b"", repr=False)
    stderr_bytes: bytes = field(default=b"", repr=False)

    @property
    def ok(self) -> bool:
        """True if the command succeeded (exit code 0)."""
        return self.exit_code == 0

    @property
    def text(self) -> Optional[str]:
        """The last shown value as text, or None if there was none. Pictures count only if there is
        nothing else: their text is but a placeholder."""
        texts = [result for result in self.results if result.text is not None]
        values = [r for r in texts if not any(mime.startswith("image/") for mime in r.data)]
        last = (values or texts)[-1:]
        return last[0].text if last else None

    @property
    def png(self) -> Optional[bytes]:
        """The last PNG image, or None if there was none."""
        return next((one.png for one in reversed(self.results) if one.png is not None), None)

    def save(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Write the last value that has the form which the file's name asks for (.png, .jpg, .svg,
        .html, .md, .tex, .json, .pdf, .txt) to a local file. Raises ValueError if there is none."""
        mime = _BY_SUFFIX.get(os.path.splitext(os.fspath(path))[1].lower(), "")
        fitting = [one for one in self.results if one._content(mime) is not None]
        together = {mime: value for one in self.results for mime, value in one.data.items()}
        (fitting[-1] if fitting else Result(together)).save(path)

    def _ending(self) -> Optional[str]:
        """A line about what was not as usual."""
        parts = []
        if self.termination_reason != "exited" or self.exit_code != 0:
            parts.append(f"exit code {self.exit_code}")
        if self.termination_reason != "exited":
            took = f" after {self.duration_ms / 1000:g} s" if self.duration_ms else ""
            parts.append(f"{self.termination_reason}{took}")
        if self.state == "lost":
            parts.append("variables lost")
        if self.truncated:
            whole = "the first of it" if self.log_truncated else "all of it"
            where = f", {whole} in {', '.join(self.log.values())}" if self.log else ""
            parts.append(f"{self.bytes_dropped} bytes of output left out{where}")
        return f"[{'; '.join(parts)}]" if parts else None

    def __str__(self) -> str:
        parts = [_html.printable(text) for text in (self.stdout, self.stderr) if text]
        parts += [str(result) for result in self.results]
        parts += [f"[{_html.printable(notice)}]" for notice in self.notices]
        parts += [f"[{_html.printable(str(one))}]" for one in self.denied]
        parts += [_html.printable(self._ending() or "")]
        return "\n".join(part.rstrip("\n") for part in parts if part)

    def _repr_html_(self) -> str:
        parts: List[str] = []
        if self.stdout:
            parts.append(_html.preformatted(self.stdout))
        if self.stderr:
            parts.append(_html.preformatted(self.stderr, "#b00020"))
        parts += [result._as_html() for result in self.results]
        parts += [_html.preformatted(f"[{notice}]") for notice in self.notices]
        parts += [_html.preformatted(f"[{one}]") for one in self.denied]
        ending = self._ending()
        if ending:
            parts.append(_html.preformatted(ending))
        return "\n".join(parts)

    def _repr_png_(self) -> Optional[bytes]:
        return self.png

    def __repr__(self) -> str:
        parts = [f"exit_code={self.exit_code}"]
        if self.termination_reason != "exited":
            parts.append(f"termination_reason={self.termination_reason!r}")
        if self.state != "preserved":
            parts.append(f"state={self.state!r}")
        parts.append(f"stdout={shorten(self.stdout)}")
        if self.stderr:
            parts.append(f"stderr={shorten(self.stderr)}")
        if self.truncated:
            parts.append(f"truncated=True, bytes_dropped={self.bytes_dropped}")
        if self.results:
            parts.append(f"results={list(self.results)}")
        if self.notices:
            parts.append(f"notices={list(self.notices)}")
        if self.denied:
            parts.append(f"denied={list(self.denied)}")
        if self.duration_ms is not None:
            parts.append(f"duration_ms={self.duration_ms}")
        return f"ExecResult({', '.join(parts)})"


@dataclass(frozen=True)
class RaceResult:
    """How a race ended.

    winner    index of the code that won; None if none satisfied the condition, in which case the
              sandbox is as it was before the race.
    result    what the winner did; None without a winner.
    results   one entry for each code, in order: what it did, or None if it was ended because
              another one had won, or broke off (see `errors`).
    errors    one entry for each code: the exception that running it raised, else None.
    """

    winner: Optional[int]
    result: Optional[ExecResult]
    results: Tuple[Optional[ExecResult], ...]
    errors: Tuple[Optional[Exception], ...] = ()

    @property
    def won(self) -> bool:
        """True if there is a winner."""
        return self.winner is not None


def shorten(text: str, limit: int = 200) -> str:
    """The text as Python would write it, cut if it is long."""
    if len(text) <= limit:
        return repr(text)
    return f"{text[:limit]!r}... ({len(text)} characters)"
