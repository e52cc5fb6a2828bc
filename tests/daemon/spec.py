"""api/openapi.yaml for tests: its operations, what a value must be, what an answer may be."""

import re
from typing import Any

import httpx
import yaml

from conftest import ROOT

SPEC = yaml.safe_load((ROOT / "api" / "openapi.yaml").read_text())
METHODS = ("get", "put", "post", "delete", "patch")
OPERATIONS = [
    (method, path) for path, item in SPEC["paths"].items() for method in METHODS if method in item
]


def resolve(node: Any) -> Any:
    """Follows a reference."""
    while "$ref" in node:
        at = SPEC
        for part in node["$ref"].removeprefix("#/").split("/"):
            at = at[part]
        node = at
    return node


def check(schema: Any, value: Any, where: str = "$") -> None:
    """Validates a value by the part of JSON Schema that the file uses."""
    schema = resolve(schema)
    for part in schema.get("allOf", []):
        check(part, value, where)
    if "oneOf" in schema:
        fits = 0
        for part in schema["oneOf"]:
            try:
                check(part, value, where)
                fits += 1
            except AssertionError:
                pass
        assert fits == 1, f"{where}: fits {fits} alternatives: {value}"
    if value is None and schema.get("nullable"):
        return
    kind = schema.get("type")
    types = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    types["number"] = (int, float)
    if kind:
        assert isinstance(value, types[kind]), f"{where}: {value!r} is not {kind}"
        assert kind != "integer" or not isinstance(value, bool)
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r} is not one of {schema['enum']}"
    if "pattern" in schema:
        assert re.search(schema["pattern"], value), f"{where}: {value!r}"
    if isinstance(value, dict):
        for name in schema.get("required", []):
            assert name in value, f"{where}.{name} is missing in {value}"
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, member in value.items():
            if name in known:
                check(known[name], member, f"{where}.{name}")
            elif isinstance(more, dict):
                check(more, member, f"{where}.{name}")
            else:
                assert more, f"{where}.{name} is not in the schema"
    if isinstance(value, list):
        for i, item in enumerate(value):
            check(schema["items"], item, f"{where}[{i}]")


def check_answer(method: str, path: str, r: httpx.Response) -> None:
    """An answer against what the file says of this operation."""
    answers = SPEC["paths"][path][method]["responses"]
    assert str(r.status_code) in answers, f"{method} {path}: {r.status_code} {r.text}"
    answer = resolve(answers[str(r.status_code)])
    content = answer.get("content", {})
    kind = r.headers.get("content-type", "").split(";")[0]
    if not content:
        assert r.content == b""
        return
    assert kind in content, f"{method} {path}: {r.status_code} as {kind}"
    for name in answer.get("headers", {}):
        assert name in r.headers
    if kind == "application/json":
        check(content[kind]["schema"], r.json())
    elif kind == "application/x-ndjson":
        for line in r.text.splitlines():
            check(content[kind]["schema"], httpx.Response(200, text=line).json())
