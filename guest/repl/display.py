# SPDX-License-Identifier: Apache-2.0
"""Results and errors as EVENT payloads: one JSON object each, of at most MAX_EVENT bytes.

JSON texts are made strict: no lone surrogates and no NUL, which strict parsers refuse; both appear
as the escapes that repr() would show.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
from typing import Any, Callable

from .frames import MAX_EVENT
from .guard import BUILTINS as __builtins__  # type: ignore[no-redef]  # noqa: F401

TEXT_BYTES = 1 << 20
_NAME_BYTES = 300
_VALUE_BYTES = 8000
_TRACEBACK_HEAD = 12000
_TRACEBACK_TAIL = 28000

_CHUNK = 2000  # items whose repr() is made at once
_BRACKETS = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    dict: ("{", "}"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUL_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")

_islice = itertools.islice
_encode: Callable[[str], str] = getattr(json.encoder, "encode_basestring")


def clean(text: str) -> str:
    """The same text, fit for strict JSON in UTF-8."""
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text


def json_text(text: str, limit: int, tail: bool = False) -> tuple[bytes, int]:
    """JSON string of as much of the head (or tail) of `text` as `limit` bytes hold, and how many
    characters that is; -1 when it is all of them."""
    whole = len(text) <= limit
    shown = clean(text if whole else text[-limit:] if tail else text[:limit])
    count = len(shown)
    encoded = _encode(shown).encode()
    while len(encoded) > limit:
        whole = False
        count = min(count - 1, count * limit // len(encoded))
        encoded = _encode(shown[-count:] if tail else shown[:count]).encode()
    return encoded, -1 if whole else count


def bounded_repr(value: Any) -> tuple[str, bool]:
    """repr(value), of built-in containers only as much as a result shows. True when it was cut."""
    kind = type(value)
    if kind is str or kind is bytes:
        if len(value) > TEXT_BYTES:
            return repr(value[:TEXT_BYTES]), True
    elif kind in _BRACKETS and len(value) > _CHUNK:
        return _repr_in_chunks(value, *_BRACKETS[kind])
    return repr(value), False


def _repr_in_chunks(value: Any, opening: str, closing: str) -> tuple[str, bool]:
    """repr() of a long container, made piece by piece until it is long enough."""
    make = dict if type(value) is dict else list
    items = iter(value.items() if make is dict else value)
    parts: list[str] = []
    size = 0
    while size <= TEXT_BYTES:
        chunk = make(_islice(items, _CHUNK))
        if not chunk:
            return opening + ", ".join(parts) + closing, False
        parts.append(repr(chunk)[1:-1])
        size += len(parts[-1])
    return opening + ", ".join(parts) + closing, next(items, None) is not None


def text_field(text: str, cut: bool = False) -> bytes:
    """JSON string for text/plain, with a last line that says so when it is not all."""
    encoded, count = json_text(text, TEXT_BYTES)
    if count < 0 and not cut:
        return encoded
    shown = len(text) if count < 0 else count
    total = "" if cut else f" of {len(text)}"
    note = f"\n[cut: the first {shown}{total} characters; print it or save it to see all]"
    return encoded[:-1] + _encode(note)[1:].encode()


def result_payload(text: bytes, others: bytes = b"") -> bytes:
    """EVENT payload of a result; `text` and `others` come from text_field() and bundle_fields()."""
    return b'{"type":"result","data":{"text/plain":' + text + others + b"}}"


def bundle_payload(data: dict[str, Any]) -> tuple[bytes | None, list[str]]:
    """EVENT payload of a MIME bundle (None: nothing to show), and sentences about what is not in it.
    Bytes become base64. What is too large is left out, and there is a text in any case then."""
    text = data.get("text/plain")
    fields = {} if text is None else {"text/plain": text_field(_text(text))}
    size = len(fields.get("text/plain", b"")) + 2 * _NAME_BYTES
    problems = []
    for mime, content in data.items():
        if mime == "text/plain" or content is None:
            continue
        name = _text(mime)[:_NAME_BYTES]
        if type(content) is str and content[-1:] == "\n" and name.startswith("image/"):
            content = content.rstrip()  # IPython's base64 has it
        try:
            encoded = _encode_content(content, MAX_EVENT - size - 6 * len(name))
        except _TooLarge as error:
            problems.append(f"{name} is too large to be shown ({error} bytes): save it to a file")
        except Exception as error:  # not JSON: the user's objects are in it
            problems.append(f"{name} cannot be shown: {describe(error)}")
        else:
            size += len(encoded) + 6 * len(name) + 4
            fields[name] = encoded
    if not fields and problems:
        fields["text/plain"] = text_field("<not shown>")
    if not fields:
        return None, problems
    inner = b",".join(_encode(clean(n)).encode() + b":" + c for n, c in fields.items())
    return b'{"type":"result","data":{' + inner + b"}}", problems


def describe(error: BaseException) -> str:
    """`Name: text` of an exception, whose text may fail."""
    try:
        return f"{type(error).__name__}: {error}"[:_VALUE_BYTES]
    except Exception:
        return type(error).__name__


def _text(value: Any) -> str:
    return value if type(value) is str else str(value)


class _TooLarge(Exception):
    """With the number of bytes that would have been needed, or at least so many."""


def _encode_content(content: Any, limit: int) -> bytes:
    """One form of a bundle as strict JSON. _TooLarge; ValueError and others when it has none."""
    if isinstance(content, (bytes, bytearray)):
        if len(content) * 4 // 3 > limit:
            raise _TooLarge(len(content))
        encoded = b'"' + base64.b64encode(content) + b'"'
    elif isinstance(content, str):
        if len(content) > limit:
            raise _TooLarge(len(content))
        encoded = _encode(clean(content)).encode()
    else:
        text = json.dumps(content, allow_nan=False, ensure_ascii=False)
        text = _NUL_ESCAPE.sub(r"\1\\\\x00", text)
        text = _SURROGATE.sub(lambda found: f"\\\\u{ord(found[0]):04x}", text)
        encoded = text.encode()
    if len(encoded) > limit:
        raise _TooLarge(len(encoded))
    return encoded


def notice_payload(text: str) -> bytes:
    """EVENT payload of a notice."""
    return b'{"type":"notice","text":' + json_text(text, _VALUE_BYTES)[0] + b"}"


def error_payload(name: str, value: str, trace: str) -> bytes:
    """EVENT payload of an uncaught exception; long texts keep what matters most."""
    encoded, count = json_text(trace, _TRACEBACK_HEAD + _TRACEBACK_TAIL)
    if count >= 0:
        head = json_text(trace, _TRACEBACK_HEAD)[0]
        tail = json_text(trace, _TRACEBACK_TAIL, tail=True)[0]
        encoded = head[:-1] + b"\\n[...]\\n" + tail[1:]
    return b'{"type":"error","name":%b,"value":%b,"traceback":%b}' % (
        json_text(name, _NAME_BYTES)[0],
        json_text(value, _VALUE_BYTES)[0],
        encoded,
    )
