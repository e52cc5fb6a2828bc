# SPDX-License-Identifier: Apache-2.0
"""Rich results: what display() and the value of a cell's last expression are shown as.

An object tells its forms by IPython's protocol (_repr_html_() and so on, _repr_mimebundle_(),
_ipython_display_()), which is looked up here without IPython: on the class, as the methods of the
language are. Its repr() is always one of them. A form that fails is named in a notice, and the others
are shown; a repr() that fails is an error of the cell.

What another thread than the cell's displays while the cell runs waits for the next event or the end
of the cell: only the main thread writes to the control channel.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Callable, Iterable

from . import plots
from .display import bounded_repr, bundle_payload, describe, notice_payload
from .display import result_payload, text_field
from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

PLAIN = frozenset(  # types whose objects have no form but their repr()
    (
        *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset),
        *(range, slice, type, type(None), FunctionType, BuiltinFunctionType, ModuleType),
    )
)
UPDATE_SECONDS = 1.0  # between two updates of one display that are shown as they come
MAX_HANDLES = 256
MAX_LATE = 256
MAX_NOTICES = 20

_FORMS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
    "_repr_pdf_": "application/pdf",
}
_BUNDLE, _DISPLAY = "_repr_mimebundle_", "_ipython_display_"
_NAMES = (_BUNDLE, _DISPLAY, *_FORMS)
_monotonic, _urandom = time.monotonic, os.urandom
_names_of = type.__dict__["__dict__"].__get__  # of a class, whatever its metaclass says

Say = Callable[[str], None]


def forms(value: Any, say: Say) -> dict[str, Any] | None:
    """The MIME bundle of any object; None when it has shown itself. `say` takes sentences about
    what went wrong."""
    kind = type(value)
    if kind in PLAIN:
        return {"text/plain": _text(value)}
    names = _protocol(kind)
    if _DISPLAY in names and _call(value, _DISPLAY, (), say) is not _FAILED:
        return None
    if plots.is_figure(value):
        return plots.forms(value)
    data = {"text/plain": _text(value)}
    if not names:
        return data
    if _BUNDLE in names:
        found = _call(value, _BUNDLE, (("include", None), ("exclude", None)), say)
        if isinstance(found, tuple):  # with metadata
            found = found[0] if found else None
        if isinstance(found, dict):
            data.update(found)
    for name, mime in _FORMS.items():
        if name not in names or mime in data or (mime == "image/jpeg" and "image/png" in data):
            continue
        content = _call(value, name, (), say)
        if isinstance(content, tuple) and len(content) == 2:
            content = content[0]
        if content is not None and content is not _FAILED:
            data[mime] = content
    return data


def _text(value: Any) -> str:
    text, cut = bounded_repr(value)
    return text + "..." if cut else text


def _protocol(kind: type) -> frozenset[str] | tuple[()]:
    """The names of the protocol that a class has; None as a value takes away what a base has."""
    found: dict[str, bool] = {}
    for base in plots.bases_of(kind):
        names = _names_of(base)
        for name in _NAMES:
            if name in names and name not in found:
                found[name] = names[name] is not None
    return frozenset(name for name, has in found.items() if has) if found else ()


_FAILED = object()


def _call(value: Any, name: str, options: Iterable[tuple[str, Any]], say: Say) -> Any:
    """What a method of the protocol returns, or _FAILED."""
    try:
        return getattr(value, name)(**dict(options))
    except NotImplementedError:
        return _FAILED
    except Exception as error:
        what = _FORMS.get(name, name)
        say(f"{what} of {type(value).__name__} failed: {describe(error)}")
        return _FAILED


class Handle:
    """What display(..., display_id=...) returns: shows a newer state of the same thing."""

    def __init__(self, results: Results, display_id: str) -> None:
        self.display_id = display_id
        self._results = results

    def __repr__(self) -> str:
        return f"<{type(self).__name__} display_id={self.display_id}>"

    def display(self, obj: Any, **options: Any) -> None:
        """Shows an object."""
        self._results.display(obj, display_id=self.display_id, **options)

    def update(self, obj: Any, **options: Any) -> None:
        """Shows an object as the newer state of what was shown before."""
        self._results.display(obj, display_id=self.display_id, update=True, **options)


class Results:
    """Shows objects as events of the running cell. One per process."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._late: deque[bytes] = deque(maxlen=MAX_LATE)  # of other threads
        self._shown: dict[str, float] = {}  # by display_id: when
        self._newer: dict[str, dict[str, Any]] = {}  # by display_id: the state not shown yet
        self._notices = 0

    def show_value(self, value: Any) -> None:
        """Shows the value of a last expression, but not the handle that display() returns."""
        if type(value) is Handle:
            return
        shell = self._runner.shell
        custom = shell is not None and shell.has_own_formatters()
        if type(value) in PLAIN and not custom and self._runner.is_running_here():
            self._runner.emit(result_payload(text_field(*bounded_repr(value))))
        else:
            self.show(value)

    def show(self, value: Any) -> None:
        """Shows one object."""
        data = self.forms(value)
        if data:
            self.publish(data)

    def forms(self, value: Any) -> dict[str, Any] | None:
        """forms(), with what the user has registered in IPython."""
        data = forms(value, self.notice)
        shell = self._runner.shell
        if plots.is_figure(value):
            self._runner.plots.note(value)
        elif data and shell is not None and shell.has_own_formatters():
            data.update(shell.own_forms(value, self.notice))
        return data

    def display(
        self,
        *objects: Any,
        include: Iterable[str] | None = None,
        exclude: Iterable[str] | None = None,
        display_id: Any = None,
        raw: bool = False,
        update: bool = False,
        **options: Any,
    ) -> Handle | None:
        """display(): shows objects, each by the richest forms that it has. With raw=True they are
        MIME bundles. With a display_id (True: a new one) what was shown can be updated: the
        returned handle does it. Updates that come fast show as the latest of each second."""
        if display_id is True:
            display_id = _urandom(16).hex()
        elif display_id is not None:
            display_id = str(display_id)
        elif update:
            raise TypeError("display_id required for update")
        for value in objects:
            data = value if raw else self.forms(value)
            if not data:
                continue
            if not isinstance(data, dict):
                raise TypeError("display(raw=True) takes MIME bundles: dictionaries")
            if include is not None:
                wanted = {"text/plain", *include}
                data = {mime: content for mime, content in data.items() if mime in wanted}
            if exclude is not None:
                unwanted = set(exclude)
                data = {mime: content for mime, content in data.items() if mime not in unwanted}
            self.publish(data, display_id, update)
        return Handle(self, display_id) if display_id is not None else None

    def publish(
        self, data: dict[str, Any], display_id: str | None = None, update: bool = False
    ) -> None:
        """Shows a MIME bundle: as an event, or as text where no event can be sent."""
        if display_id is not None:
            now = _monotonic()
            last = self._shown.get(display_id)
            if update and last is not None and now - last < UPDATE_SECONDS:
                self._newer[display_id] = data
                return
            self._newer.pop(display_id, None)
            if len(self._shown) < MAX_HANDLES:
                self._shown[display_id] = now
        runner = self._runner
        if not runner.is_running():
            if "text/plain" in data:
                sys.stdout.write(str(data["text/plain"]) + "\n")
            return
        payload, problems = bundle_payload(data)
        if payload is not None:
            self._send(payload)
        for problem in problems:
            self.notice(problem)

    def notice(self, text: str) -> None:
        """Says a sentence to the reader of the results; so many in a cell."""
        self._notices += 1
        if self._notices > MAX_NOTICES or not self._runner.is_running():
            return
        if self._notices == MAX_NOTICES:
            text = "(and more of this kind)"
        self._send(notice_payload(text))

    def drop_newer(self) -> None:
        """clear_output(): what has been shown stays, what waits is dropped."""
        self._newer.clear()

    def before_cell(self) -> None:
        """Forgets the last cell."""
        if self._notices or self._shown or self._newer or self._late:
            self._notices = 0
            self._shown.clear()
            self._newer.clear()
            self._late.clear()

    def after_cell(self) -> None:
        """Sends what waits."""
        while self._newer:
            display_id = next(iter(self._newer))
            self.publish(self._newer.pop(display_id))
        self._send_late()

    def _send(self, payload: bytes) -> None:
        if self._runner.is_running_here():
            self._send_late()
            self._runner.emit(payload)
        else:
            self._late.append(payload)

    def _send_late(self) -> None:
        late = self._late
        while late:
            self._runner.emit(late.popleft())
