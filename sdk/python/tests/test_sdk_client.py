# SPDX-License-Identifier: Apache-2.0
"""Addresses, credentials, headers, time-outs and errors."""

from __future__ import annotations

import socket
import ssl
import time

import pytest

import podflare
from fake_daemon import SANDBOX_ID, FakeDaemon
from podflare import Client, Sandbox, _http

TRACE = "00-4bf92f3564d486ad1122334455667788-00f067aa0ba902b7-01"


def test_address_comes_from_argument_then_environment_then_default(monkeypatch):
    monkeypatch.delenv("PODFLARE_HOSTD_URL", raising=False)
    monkeypatch.delenv("PODFLARE_HOST", raising=False)
    assert Client().host == "http://127.0.0.1:7070"
    monkeypatch.setenv("PODFLARE_HOST", "http://one:1")
    assert Client().host == "http://one:1"
    monkeypatch.setenv("PODFLARE_HOSTD_URL", "http://two:2/")
    assert Client().host == "http://two:2"
    assert Client(host="three:3").host == "http://three:3"


@pytest.mark.parametrize("host", ["ftp://x", "http://", "http://x?y=1", "http://[::1"])
def test_address_that_is_none_is_refused(host):
    with pytest.raises(ValueError, match="not an address of a daemon"):
        Client(host=host)


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "Https", " hTTps"])
def test_certificates_are_verified_however_the_scheme_is_written(scheme, monkeypatch):
    client = Client(host=f"{scheme}://pods.example:7070")
    context = client._http._transport._pool._ssl_context
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert client.host == "https://pods.example:7070"
    monkeypatch.setenv("PODFLARE_HOSTD_URL", f"{scheme}://pods.example")
    assert _http.Settings.gather(None, None, None).options()["verify"] is True
    assert Client(host="HTTP://Pods.example").host == "http://Pods.example"


@pytest.mark.parametrize(
    "host",
    [
        "http://me:hunter2@pods.example",
        "HTTPS://hunter2@pods.example:7070",
        "me:hunter2@pods.example",
        "//me:hunter2@pods.example",
        "ftp://me:hunter2@pods.example",
        "http://me:hunter2@[::1",
    ],
)
def test_an_address_holds_no_credentials(host, monkeypatch):
    """They would be in every message that names the address."""
    monkeypatch.setenv("PODFLARE_HOSTD_URL", host)
    for kw in ({"host": host}, {}):
        with pytest.raises(ValueError, match="user or password.*api_key=") as e:
            Client(**kw)
        assert "hunter2" not in str(e.value) and e.value.__cause__ is None


@pytest.mark.sync_only
def test_the_key_is_in_no_repr():
    client = Client(host="http://pods.example", api_key="pf_live_secret")
    settings = client._settings
    assert settings.headers["authorization"] == "Bearer pf_live_secret"
    assert "pf_live_secret" not in repr(settings) + repr(client) + repr(client.__dict__)


def test_headers_without_and_with_key_and_trace(daemon: FakeDaemon, monkeypatch):
    Sandbox().close()
    assert "authorization" not in daemon.requests[0].headers
    assert "traceparent" not in daemon.requests[0].headers

    daemon.requests.clear()
    monkeypatch.setenv("PODFLARE_API_KEY", "pf_live_env\n")
    monkeypatch.setenv("PODFLARE_TRACEPARENT", TRACE)
    Sandbox().close()
    for request in daemon.requests:
        assert request.headers["authorization"] == "Bearer pf_live_env"
        assert request.headers["traceparent"] == TRACE

    daemon.requests.clear()
    client = Client(api_key="pk_arg", traceparent=TRACE.replace("01", "00"))
    Sandbox(client=client).close()
    Sandbox(client=client, traceparent=TRACE).close()
    assert {r.headers["authorization"] for r in daemon.requests} == {"Bearer pk_arg"}
    traces = [r.headers["traceparent"] for r in daemon.requests]
    assert traces == [TRACE.replace("01", "00")] * 2 + [TRACE] * 2


def test_bad_key_and_trace_are_refused_before_anything_is_sent(daemon: FakeDaemon, monkeypatch):
    with pytest.raises(ValueError):
        Client(api_key="a\r\nx: y")
    with pytest.raises(ValueError, match="traceparent"):
        Sandbox(traceparent="mine")
    monkeypatch.setenv("PODFLARE_TRACEPARENT", "mine")
    with pytest.warns(UserWarning, match="PODFLARE_TRACEPARENT is ignored"):
        Sandbox().close()
    assert all("traceparent" not in r.headers for r in daemon.requests)


def test_proxy_variables_do_not_hold_for_loopback(daemon: FakeDaemon, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with Sandbox() as s:
        assert s.id == SANDBOX_ID


def test_nothing_listens():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(
            podflare.DaemonUnreachableError, match="is `podflare serve` running"
        ) as e:
            Sandbox(host=host)
    assert host in str(e.value)
    assert isinstance(e.value, ConnectionError)


def test_server_that_closes_without_answering():
    with socket.create_server(("127.0.0.1", 0)) as server:
        import threading

        def accept_and_close() -> None:
            connection, _ = server.accept()
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=accept_and_close)
        thread.start()
        with pytest.raises(podflare.DaemonUnreachableError, match="broke before it answered"):
            Sandbox(host=f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()


def test_a_request_is_sent_once_only(daemon: FakeDaemon):
    daemon.on("POST", "/v1/sandboxes", lambda r: r.cut())
    with pytest.raises(podflare.DaemonUnreachableError):
        Sandbox()
    assert len(daemon.requests) == 1


def test_some_other_server(daemon: FakeDaemon):
    daemon.on("POST", "/v1/sandboxes", lambda r: r.reply(200, b"<html>hello</html>"))
    with pytest.raises(podflare.PodflareError, match="did not answer as a podflare daemon"):
        Sandbox()
    daemon.on("POST", "/v1/sandboxes", lambda r: r.reply(502, b"<html>bad gateway</html>"))
    with pytest.raises(podflare.ServerError, match="HTTP 502: <html>bad gateway"):
        Sandbox()


@pytest.mark.parametrize(
    "status, body, kind",
    [
        (400, {"error": "e", "code": "invalid_request", "field": "vcpus"}, "InvalidRequestError"),
        (401, {"error": "invalid api key"}, "AuthenticationError"),
        (403, {"error": "e", "code": "permission_denied"}, "PermissionDeniedError"),
        (404, {"error": "sandbox not found"}, "NotFoundError"),
        (404, {"error": "e", "code": "sandbox_not_found"}, "SandboxNotFoundError"),
        (404, {"error": "e", "code": "file_not_found"}, "RemoteFileNotFoundError"),
        (409, {"error": "e", "code": "sandbox_ended"}, "SandboxEndedError"),
        (413, {"error": "e", "code": "body_too_large"}, "TooLargeError"),
        (413, {"error": "e", "code": "disk_full"}, "DiskFullError"),
        (429, {"error": "e", "code": "too_many"}, "RateLimitedError"),
        (500, {"error": "e"}, "ServerError"),
        (503, {"error": "e", "code": "create_failed", "hint": "do this"}, "CreateFailedError"),
        (418, {"error": "e", "code": "new_thing"}, "PodflareError"),
    ],
)
def test_error_replies(daemon: FakeDaemon, status, body, kind):
    daemon.on("POST", "/v1/sandboxes", lambda r: r.reply(status, body, {"retry-after": "2"}))
    with pytest.raises(podflare.PodflareError) as e:
        Sandbox()
    assert type(e.value) is getattr(podflare, kind)
    assert e.value.status == status
    assert e.value.message == body["error"]
    assert e.value.code == body.get("code")
    assert e.value.field == body.get("field")
    if status == 429:
        assert e.value.retry_after == 2.0
    if status == 503:
        assert str(e.value) == "e (do this)"


def test_no_read_timeout_while_a_sandbox_is_created_or_a_command_runs(
    daemon: FakeDaemon, monkeypatch
):
    """The patient time-outs are used there; proven with all of the quick ones at 50 ms."""
    import httpx

    from podflare import _client, _http

    monkeypatch.setattr(_client, "QUICK", httpx.Timeout(0.05))
    create = daemon._answers[("POST", "/v1/sandboxes")]

    def slowly(answer):
        def later(request):
            time.sleep(0.2)
            answer(request)

        return later

    daemon.on("POST", "/v1/sandboxes", slowly(create))
    daemon.on_exec(slowly(lambda r: r.events({"type": "exit", "data": 0})))
    daemon.on_files("PUT", slowly(lambda r: r.reply(200, {"path": "/x", "size": 0})))
    s = Sandbox()
    assert s.run_code("").ok
    s.upload(b"", "/x")
    daemon.on("GET", f"/v1/sandboxes/{s.id}", slowly(lambda r: r.reply(200, {})))
    with pytest.raises(podflare.RequestTimeoutError) as e:
        s.info()
    assert isinstance(e.value, TimeoutError)
    assert _http.PATIENT.read is None and _http.PATIENT.connect == 2.5


def test_small_requests_do_not_wait_for_each_other(daemon: FakeDaemon):
    """Without TCP_NODELAY each of these takes 40 ms (Nagle's algorithm and delayed ACKs)."""
    daemon.on_exec(lambda r: r.events({"type": "exit", "data": 0}))
    s = Sandbox()
    times = []
    for _ in range(30):
        start = time.perf_counter()
        s.run_code("pass")
        times.append(time.perf_counter() - start)
    assert sorted(times)[15] < 0.03


def test_health(daemon: FakeDaemon):
    daemon.on("GET", "/v1/healthz", lambda r: r.reply(200, b"ok"))
    with Client() as client:
        assert client.health() is True


def test_public_names_all_exist():
    for name in podflare.__all__:
        assert hasattr(podflare, name), name
