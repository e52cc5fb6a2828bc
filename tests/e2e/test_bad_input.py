# SPDX-License-Identifier: Apache-2.0
"""What a client gets wrong is refused with a sentence, a stable word and the field's name."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from podflare import Sandbox

UNKNOWN = "sbx_" + "0" * 32


def refused(reply: httpx.Response, status: int, code: str, field: Any = None) -> dict[str, Any]:
    """The reply is an error as documented: JSON, a sentence, the word, the field."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"].startswith("application/json")
    body = reply.json()
    assert set(body) <= {"error", "code", "hint", "field"}
    assert isinstance(body["error"], str) and body["error"]
    assert body["code"] == code, body
    assert body.get("field") == field, body
    return body


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("GET", f"/v1/sandboxes/{UNKNOWN}", None),
        ("DELETE", f"/v1/sandboxes/{UNKNOWN}", None),
        ("POST", f"/v1/sandboxes/{UNKNOWN}/exec", b'{"code": "1"}'),
        ("GET", f"/v1/sandboxes/{UNKNOWN}/files?path=/tmp/x", None),
        ("PUT", f"/v1/sandboxes/{UNKNOWN}/files?path=/tmp/x", b"data"),
        ("GET", "/v1/sandboxes/sb_abc", None),
        ("POST", "/v1/sandboxes/x%20y/exec", b'{"code": "1"}'),
    ],
)
def test_unknown_sandbox(http: httpx.Client, method, path, body):
    reply = http.request(method, path, content=body)
    assert refused(reply, 404, "sandbox_not_found")["error"] == "sandbox not found"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nonsense", b'{"code": "1"', b'{"code": "\xff"}', b'{"code": "1"} x', b"\0"],
)
def test_broken_json(http: httpx.Client, shared: Sandbox, body):
    reply = http.post(f"/v1/sandboxes/{shared.id}/exec", content=body)
    refused(reply, 400, "invalid_request", "body")


@pytest.mark.parametrize("body", [[], "code", 1, None])
def test_json_that_is_no_object(http: httpx.Client, shared: Sandbox, body):
    for path in ("/v1/sandboxes", f"/v1/sandboxes/{shared.id}/exec"):
        refused(http.post(path, content=json.dumps(body)), 400, "invalid_request", "body")


@pytest.mark.parametrize(
    "body, field",
    [
        ({}, "code"),
        ({"language": "python"}, "code"),
        ({"code": 1}, "code"),
        ({"code": None}, "code"),
        ({"code": ["print(1)"]}, "code"),
        ({"code": "print(1)\0"}, "code"),
        ({"code": "1", "language": "ruby"}, "language"),
        ({"code": "1", "language": ""}, "language"),
        ({"code": "1", "language": "Python"}, "language"),
        ({"code": "1", "language": 3}, "language"),
        ({"code": "1", "rich": "yes"}, "rich"),
        ({"code": "1", "cwd": 1}, "cwd"),
        ({"code": "1", "cwd": "/tmp\0"}, "cwd"),
        ({"code": "1", "env": "A=b"}, "env"),
        ({"code": "1", "env": {"A": 1}}, "env"),
        ({"code": "1", "env": {"A=B": "c"}}, "env"),
        ({"code": "1", "env": {"": "c"}}, "env"),
        ({"code": "1", "env": {"A": "b\0"}}, "env"),
    ],
)
def test_exec_fields(http: httpx.Client, shared: Sandbox, body, field):
    reply = http.post(f"/v1/sandboxes/{shared.id}/exec", json=body)
    refused(reply, 400, "invalid_request", field)


@pytest.mark.parametrize(
    "body, field",
    [
        ({"template": "no-such-template"}, "template"),
        ({"template": 1}, "template"),
        ({"template": "../default"}, "template"),
        ({"memory_mib": "512"}, "memory_mib"),
        ({"memory_mib": 512.5}, "memory_mib"),
        ({"memory_mib": 1}, "memory_mib"),
        ({"memory_mib": -1}, "memory_mib"),
        ({"memory_mib": 10**6}, "memory_mib"),
        ({"vcpus": 0}, "vcpus"),
        ({"vcpus": 33}, "vcpus"),
        ({"vcpus": "1"}, "vcpus"),
        ({"vcpus": True}, "vcpus"),
        ({"egress": "no"}, "egress"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata"),
    ],
)
def test_create_fields(http: httpx.Client, body, field):
    refused(http.post("/v1/sandboxes", json=body), 400, "invalid_request", field)


def test_a_body_that_is_too_large(http: httpx.Client, shared: Sandbox):
    code = "#" * (5 << 20)
    reply = http.post(f"/v1/sandboxes/{shared.id}/exec", json={"code": code})
    refused(reply, 413, "body_too_large")
    assert shared.run_code("#" * (3 << 20) + "\nprint('fits')").stdout == "fits\n"


def test_method_and_path_that_do_not_exist(http: httpx.Client, shared: Sandbox):
    for method, path in (
        ("PATCH", "/v1/sandboxes"),
        ("DELETE", "/v1/sandboxes"),
        ("POST", f"/v1/sandboxes/{shared.id}"),
        ("PUT", f"/v1/sandboxes/{shared.id}/exec"),
        ("DELETE", f"/v1/sandboxes/{shared.id}/files"),
        ("POST", "/v1/healthz"),
    ):
        reply = http.request(method, path)
        assert reply.status_code == 405, (method, path)
        assert reply.json()["error"]
    for path in ("/", "/v1", "/v2/sandboxes", f"/v1/sandboxes/{shared.id}/nothing"):
        reply = http.get(path)
        assert reply.status_code == 404 and reply.json()["error"], path


def test_health_needs_nothing(http: httpx.Client):
    reply = http.get("/v1/healthz")
    assert (reply.status_code, reply.text.strip()) == (200, "ok")
    assert reply.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["zeros", "no-target", "negative", "huge", "chunk-size", "long-header", "tls"],
)
def test_bytes_that_are_not_http(daemon, http: httpx.Client, garbage):
    """Whatever comes, the daemon serves others; it may answer, hang up or wait for more."""
    url = urlsplit(daemon.url)
    with socket.create_connection((url.hostname, url.port), timeout=3) as raw:
        try:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(65536)
        except (ConnectionError, TimeoutError):
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer[:80]
    assert http.get("/v1/healthz").text.strip() == "ok"


def test_delete_twice(http: httpx.Client, client):
    """A sandbox that once lived can be deleted again and again; see also the unknown one above."""
    id = http.post("/v1/sandboxes", json={}).json()["id"]
    assert http.delete(f"/v1/sandboxes/{id}").status_code == 204
    assert http.delete(f"/v1/sandboxes/{id}").status_code == 204
    refused(http.get(f"/v1/sandboxes/{id}"), 404, "sandbox_not_found")
    reply = http.post(f"/v1/sandboxes/{id}/exec", json={"code": "1"})
    refused(reply, 404, "sandbox_not_found")
