# SPDX-License-Identifier: Apache-2.0
"""A tiny HTTP server in the test's own process: each test says what it answers."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Optional
from urllib.parse import parse_qs, urlsplit

SANDBOX_ID = "sbx_" + "0123456789abcdef" * 2

DESCRIPTION = {
    "id": SANDBOX_ID,
    "state": "ready",
    "template": "default",
    "memory_mib": 512,
    "vcpus": 1,
    "created_at": 1776510028036,
    "egress": {"allow": [], "inject": {}, "state": "off", "reason": None},
    "metadata": {},
}


class Request:
    """What arrived, and the ways to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        url = urlsplit(handler.path)
        self.method = handler.command
        self.path = url.path
        self.queries = parse_qs(url.query, keep_blank_values=True)
        self.query = {key: values[0] for key, values in self.queries.items()}
        self.headers = dict((key.lower(), value) for key, value in handler.headers.items())
        self.body = self._read_body()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def _read_body(self) -> bytes:
        stream = self._handler.rfile
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(stream.readline(), 16):
                body += stream.read(size)
                stream.readline()
            stream.readline()
            return body
        length = int(self.headers.get("content-length", 0))
        body = stream.read(length)
        if len(body) < length:
            raise ConnectionResetError("the client left in the middle of the body")
        return body

    def reply(
        self,
        status: int,
        body: Any = None,
        headers: Optional[dict[str, str]] = None,
        announce: Optional[int] = None,
    ) -> None:
        """A whole reply; a dict becomes JSON, bytes stay as they are. `announce`: another length than
        that of the body."""
        data = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        self._handler.send_response(status)
        for key, value in (headers or {}).items():
            self._handler.send_header(key, value)
        if status != 204:
            self._handler.send_header("content-length", str(announce or len(data)))
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def start_stream(self, headers: Optional[dict[str, str]] = None) -> None:
        self._handler.send_response(200)
        for key, value in (headers or {}).items():
            self._handler.send_header(key, value)
        self._handler.send_header("content-type", "application/x-ndjson")
        self._handler.send_header("transfer-encoding", "chunked")
        self._handler.end_headers()

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_stream(self) -> None:
        self._handler.wfile.write(b"0\r\n\r\n")

    def cut(self) -> None:
        """Drop the connection without ending the reply."""
        self._handler.close_connection = True

    def events(self, *events: dict[str, Any]) -> None:
        """A complete exec reply; seq and ts are filled in."""
        self.start_stream()
        for seq, event in enumerate(events):
            line = {"seq": seq, "ts": 1776510028036 + seq, **event}
            self.send(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self.end_stream()


class FakeDaemon:
    """Answers creates, deletes and descriptions by itself; the rest by `on`."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._answers: dict[tuple[str, str], Callable[[Request], None]] = {}
        self.on("POST", "/v1/sandboxes", lambda r: r.reply(200, DESCRIPTION))
        self.on("GET", f"/v1/sandboxes/{SANDBOX_ID}", lambda r: r.reply(200, DESCRIPTION))
        self.on("DELETE", f"/v1/sandboxes/{SANDBOX_ID}", lambda r: r.reply(204))
        daemon = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionResetError:
                    pass  # between two requests

            def handle_any(self) -> None:
                try:
                    request = Request(self)
                except ConnectionResetError:
                    self.close_connection = True
                    return
                daemon.requests.append(request)
                answer = daemon.answer_for(request)
                if answer is None:
                    request.reply(404, {"error": "sandbox not found", "code": "sandbox_not_found"})
                    return
                try:
                    answer(request)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()

    def answer_for(self, request: Request) -> Optional[Callable[[Request], None]]:
        """Who answers this request; None becomes a 404."""
        return self._answers.get((request.method, request.path))

    def on(self, method: str, path: str, answer: Callable[[Request], None]) -> None:
        self._answers[(method, path)] = answer

    def on_exec(self, answer: Callable[[Request], None]) -> None:
        self.on("POST", f"/v1/sandboxes/{SANDBOX_ID}/exec", answer)

    def on_files(self, method: str, answer: Callable[[Request], None]) -> None:
        self.on(method, f"/v1/sandboxes/{SANDBOX_ID}/files", answer)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
