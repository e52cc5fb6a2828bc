"""Values that a schema of the OpenAPI file allows, and values that it does not, made from the schema."""

import math
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

from spec import resolve

NUL = "\0"
# Of every JSON type, at the edges of what programs use for them.
JUNK: list[Any] = [
    True,
    False,
    0,
    1,
    -1,
    1.5,
    1e308,
    2**31,
    2**53,
    2**63 - 1,
    -(2**63),
    "",
    "x",
    "1",
    "true",
    "null",
    "ü\u202e\U0001f600\x7f",
    NUL,
    "a" + NUL + "b",
    "%00%s%n",
    "../../etc/passwd",
    "x" * 65,
    "x" * 5000,
    "x" * 100_000,
    [],
    [1],
    ["x"],
    [None],
    [["x"]],
    ["a" + NUL],
    ["x"] * 2000,
    {},
    {"a": 1},
    {"a": "x"},
    {"a": None},
    {"a": {"b": []}},
    {"a": "b" + NUL},
    {"": "x"},
    {f"k{i}": "v" for i in range(300)},
]


def merged(schema: Any) -> dict[str, Any]:
    """Without references and allOf."""
    schema = dict(resolve(schema))
    for part in schema.pop("allOf", []):
        schema = {**merged(part), **schema}
    return schema


def _fits_object(s: dict[str, Any], value: dict[str, Any]) -> bool:
    known, more = s.get("properties", {}), s.get("additionalProperties", True)
    return (
        all(name in value and value[name] is not None for name in s.get("required", []))
        and len(value) <= s.get("maxProperties", math.inf)
        and not any(NUL in name for name in value)
        and all(
            fits(known[k], v) if k in known else fits(more, v) if isinstance(more, dict) else more
            for k, v in value.items()
        )
    )


def fits(schema: Any, value: Any) -> bool:
    """Whether a value is as the schema says; no text of the API may have a NUL."""
    s = merged(schema)
    if value is None:
        return bool(s.get("nullable"))
    if "oneOf" in s:
        return any(fits(part, value) for part in s["oneOf"])
    kind = s.get("type")
    if kind == "boolean":
        return isinstance(value, bool)
    if kind in ("integer", "number"):
        types = int if kind == "integer" else (int, float)
        ok = isinstance(value, types) and not isinstance(value, bool)
        return ok and s.get("minimum", -math.inf) <= value <= s.get("maximum", math.inf)
    if kind == "string":
        return (
            isinstance(value, str)
            and NUL not in value
            and value in s.get("enum", [value])
            and s.get("minLength", 0) <= len(value.encode()) <= s.get("maxLength", math.inf)
            and re.search(s.get("pattern", ""), value) is not None
        )
    if kind == "array":
        size = s.get("minItems", 0) <= len(value) <= s.get("maxItems", math.inf) if isinstance(value, list) else False
        return size and all(fits(s["items"], v) for v in value)
    assert kind == "object", s
    return isinstance(value, dict) and _fits_object(s, value)


def edges(schema: Any) -> Iterator[Any]:
    """What is just inside and just outside of what the schema says."""
    s = merged(schema)
    for name, step in (("minimum", -1), ("maximum", 1)):
        if name in s:
            yield from (s[name], s[name] + step, float(s[name]) + 0.5)
    yield from s.get("enum", [])
    if "enum" in s and s.get("type") == "string":
        yield from (s["enum"][0].upper() + "x", s["enum"][0] + " ")
    if "maxLength" in s:
        yield from ("/" + "x" * (s["maxLength"] - 1), "/" + "x" * s["maxLength"])
    if "maxItems" in s:
        yield ["x"] * (s["maxItems"] + 1)
    if "maxProperties" in s:
        yield {f"k{i}": "v" for i in range(s["maxProperties"] + 1)}
    for part in s.get("oneOf", []):
        yield from edges(part)
    if "properties" in s:
        one = {k: example(v) for k, v in s["properties"].items() if k in s.get("required", [])}
        yield one
        for name in one:
            yield {k: v for k, v in one.items() if k != name}
        yield {**one, "unknown": 1}
        for name, member in s["properties"].items():
            for v in (*JUNK[:8], *edges(member)):
                yield {**one, name: v}


def example(schema: Any) -> Any:
    """A value that fits."""
    s = merged(schema)
    if "enum" in s:
        return s["enum"][0]
    if "oneOf" in s:
        return example(s["oneOf"][0])
    made = {"boolean": True, "string": "x", "array": [], "integer": 1, "number": 1}
    if s["type"] in made:
        value = made[s["type"]]
        return max(value, s.get("minimum", value)) if s["type"] in ("integer", "number") else value
    return {k: example(v) for k, v in s.get("properties", {}).items() if k in s.get("required", [])}


def values(schema: Any) -> Iterator[tuple[Any, bool]]:
    """Values of all sorts, each with whether it fits."""
    seen = set()
    for value in (*JUNK, *edges(schema)):
        if repr(value) not in seen:
            seen.add(repr(value))
            yield value, fits(schema, value)


# Bodies that are no JSON object, whatever the operation.
BROKEN: list[bytes] = [
    b"",
    b"{",
    b"}",
    b"[]",
    b"[{}]",
    b"null",
    b"0",
    b'"x"',
    b"true",
    b"{}{}",
    b"{} x",
    b"{'a': 1}",
    b'{"a": 1,}',
    b'{"a" 1}',
    b'{"a": NaN}',
    b'{"a": Infinity}',
    b'{"a": 1e999}',
    b'{"a": 99999999999999999999}',
    b'{"a": 0x10}',
    b'{"a": 01}',
    b'{"a": "\xff"}',
    b'{"a": "\xc0\x80"}',
    b'{"a": "\xed\xa0\x80"}',
    b'{"a": "\\ud800"}',
    b'{"a": "\\u12"}',
    b'{"a": "\x01"}',
    b'{"a": "\x00"}',
    b'{"a\\u0000b": 1}',
    b'{"a": 1, "a": 1}',
    b"\xef\xbb\xbf{}",
    b"\x00",
    b"{\x00}",
    "{}".encode("utf-16"),
    b"\x1f\x8b\x08\x00",
    b"a=1&b=2",
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b" " * 100_000,
]


def query_values(schema: Any) -> Iterator[tuple[str, bool]]:
    """Texts of a parameter, as they stand in the target, each with whether it fits."""
    s = merged(schema)
    texts = ["", "x", "-2", "+1", "%2B1", "1.5", "1e3", "0x1", "1%20", "%201", "1" * 40, "-" * 3, "%00"]
    texts += ["%", "%z1", "%ff", "%c0%80", "%ed%a0%80", "a%00b", "%2e%2e%2f", "%F0%9F%98%80"]
    texts += [str(s[k] + d) for k in ("minimum", "maximum") if k in s for d in (-1, 0, 1)]
    texts += ["/" + "x" * s["maxLength"]] if "maxLength" in s else []
    for text in texts:
        raw = urllib.parse.unquote_to_bytes(text.replace("+", " "))
        ok = "%" not in re.sub("%[0-9A-Fa-f]{2}", "", text)
        try:
            value: Any = raw.decode()
        except UnicodeDecodeError:
            ok = False
            value = ""
        if s["type"] == "integer":
            ok = ok and re.fullmatch("-?[0-9]{1,18}", value) is not None
            value = int(value) if ok else 0
        yield text, ok and fits(s, value)
