"""A client that sends what it is told, byte by byte, over one connection as long as that lives."""

import http.client
import json
import socket
import urllib.parse
from typing import Any

import httpx


class Wire:
    """A connection. `opened` counts how often it had to be made, `closes` how often it was announced."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sock: socket.socket | None = None
        self.opened = 0
        self.closes: list[int] = []

    def ask(
        self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """One request and its answer, whose connection must live on unless it says otherwise."""
        if not self.sock:
            self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=60)
            self.opened += 1
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
        lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + (body or b""))
        r = http.client.HTTPResponse(self.sock, method=method)
        r.begin()
        content = b"" if r.status == 101 else r.read()
        answer = httpx.Response(r.status, headers=r.getheaders(), content=content)
        if r.status == 101 or r.will_close:
            self.closes.append(r.status)
            self.close()
        return answer

    def close(self) -> None:
        """The next request gets another one."""
        if self.sock:
            self.sock.close()
        self.sock = None

    def send(self, method: str, target: str, what: dict[str, Any]) -> httpx.Response:
        """The same of what httpx would be told: json, content, params, headers."""
        body = what.get("content")
        if "json" in what:
            body = json.dumps(what["json"]).encode()
        if "params" in what:
            target += "?" + urllib.parse.urlencode(what["params"])
        return self.ask(method, target, body, what.get("headers"))
