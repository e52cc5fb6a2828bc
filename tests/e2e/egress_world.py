# SPDX-License-Identifier: Apache-2.0
"""The outside world of the egress tests: servers on this machine's loopback, under names of .test that
only the operator's configuration and a DNS server of our own know. Every one of them remembers what came,
because a denial is proven by what did not.

Seen from the emulated host, this machine's loopback is 10.0.2.2; on hardware it is 127.0.0.1 there as here.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional
from urllib.parse import parse_qs, unquote, urlsplit

# Whatever a guest could mean by these, no test of ours has a server there.
METADATA = "169.254.169.254"

# Names that the configuration's "resolve" has, all with a certificate of the tests' CA.
NAMES = (
    "pypi.test",
    "git.test",
    "api.test",
    "other.test",
    "npm.test",
    "a.wild.test",
    "b.a.wild.test",
)
# "bücher.test" as it is on the wire.
PUNYCODE = "xn--bcher-kva.test"
# Names that only our DNS server has: what it says of each is in World.
DNS_NAMES = (
    "dns.test",
    "rebind.test",
    "private.test",
    "mapped.test",
    "metadata.test",
    "mixed.test",
)


def make_certificates(tmp: Path) -> None:
    """ca.pem, server.pem (certificate and key, for all names), stranger.pem (of a CA that nobody knows)."""

    def openssl(*args: str, stdin: str = "") -> None:
        subprocess.run(
            ["openssl", *args], cwd=tmp, input=stdin, text=True, check=True, capture_output=True
        )

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    names = ",".join(f"DNS:{name}" for name in (*NAMES, *DNS_NAMES, PUNYCODE))
    for ca, leaf in (("ca", "server"), ("stranger-ca", "stranger")):
        openssl(
            *("req", "-x509", *curve, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-days", "30"),
            *("-subj", f"/CN=Podflare tests {ca}"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
        openssl(
            "req", *curve, "-keyout", f"{leaf}.key", "-out", f"{leaf}.csr", "-subj", f"/CN={leaf}"
        )
        (tmp / "extensions").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
        openssl(
            *("x509", "-req", "-in", f"{leaf}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key"),
            *("-CAcreateserial", "-out", f"{leaf}.crt", "-days", "30", "-extfile", "extensions"),
        )
        (tmp / f"{leaf}.pem").write_text(
            (tmp / f"{leaf}.crt").read_text() + (tmp / f"{leaf}.key").read_text()
        )


@dataclass
class Seen:
    """A request that arrived. `sni` is None for plain HTTP."""

    method: str
    path: str
    host: str
    headers: Mapping[str, str]
    body: bytes = b""
    sni: Optional[str] = None


class HttpServer:
    """HTTP/1.1, or HTTPS with a certificate. GET of
      /json              {"path", "host"}; never the headers, which may be secrets
      /bytes?n=N         N bytes
      /redirect?to=URL   302
      /stream            a line ten times a second, until the client is gone
      /upgrade           101 if it is asked for, then what comes comes back
      whatever is in `files`, or `pages` answers (a function: query string to type and bytes)
    POST takes its body and says how long it was."""

    def __init__(self, certificate: Optional[Path] = None) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self.pages: dict[str, Callable[[Seen], tuple[str, bytes]]] = {}
        self.seen: list[Seen] = []
        self.hellos: list[Optional[str]] = []  # SNI of every TLS handshake that was begun
        self.connections = 0
        self.streaming = 0  # /stream, at this moment
        server = self

        class Handler(_Handler):
            world = server

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def get_request(self) -> Any:
                sock, address = super().get_request()
                server.connections += 1
                return sock, address

            def finish_request(self, request: Any, client_address: Any) -> None:
                # The handshake belongs into the connection's thread.
                if server.tls is not None:
                    request.settimeout(30)
                    request = server.tls.wrap_socket(request, server_side=True)
                    request.settimeout(None)
                super().finish_request(request, client_address)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that leave are part of the tests

        self.tls: Optional[ssl.SSLContext] = None
        if certificate is not None:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(certificate)
            self.tls.sni_callback = self._hello
        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def _hello(self, sock: ssl.SSLObject, name: Optional[str], context: ssl.SSLContext) -> None:
        self.hellos.append(name)
        sock.sni = name  # type: ignore[attr-defined]

    def requests(self, path: str) -> list[Seen]:
        """Those to this path, whatever their query."""
        return [one for one in self.seen if urlsplit(one.path).path == path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    world: HttpServer

    def log_message(self, *_: object) -> None:
        pass

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def note(self) -> Seen:
        sni = getattr(self.connection, "sni", None)
        sni = sni or getattr(getattr(self.connection, "_sslobj", None), "sni", None)
        if self.world.tls is not None and sni is None:
            sni = self.world.hellos[-1] if self.world.hellos else ""
        headers = {key.lower(): value for key, value in self.headers.items()}
        seen = Seen(
            self.command, self.path, headers.get("host", ""), headers, self.read_body(), sni
        )
        self.world.seen.append(seen)
        return seen

    def answer(self, status: int, kind: str, data: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", kind), *headers):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:  # noqa: N802
        seen = self.note()
        path = urlsplit(self.path).path
        if path in self.world.pages:
            self.answer(200, *self.world.pages[path](seen))
            return
        self.answer(200, "application/json", json.dumps({"length": len(seen.body)}).encode())

    do_PUT = do_POST

    def do_GET(self) -> None:  # noqa: N802
        seen = self.note()
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        if path in self.world.pages:
            self.answer(200, *self.world.pages[path](seen))
        elif path in self.world.files:
            self.answer(200, *self.world.files[path])
        elif path == "/json":
            reply = {"path": self.path, "host": seen.host}
            self.answer(200, "application/json", json.dumps(reply).encode())
        elif path == "/bytes":
            self.answer(200, "application/octet-stream", b"x" * int(query["n"]))
        elif path == "/redirect":
            self.answer(302, "text/plain", b"elsewhere", ("Location", query["to"]))
        elif path == "/stream":
            self.stream()
        elif path == "/upgrade" and self.headers.get("Upgrade"):
            self.upgrade()
        else:
            self.answer(404, "text/plain", b"no such page")

    do_HEAD = do_GET

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.world.streaming += 1
        try:
            while True:
                self.wfile.write(b"5\r\nline\n\r\n")
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:
            self.close_connection = True
        finally:
            self.world.streaming -= 1

    def upgrade(self) -> None:
        self.send_response(101)
        self.send_header("Upgrade", self.headers["Upgrade"])
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        self.close_connection = True
        while data := self.connection.recv(4096):
            self.connection.sendall(data)


class TcpServer:
    """Sends back what comes. `accepted` counts, `received` has the first bytes of each."""

    def __init__(self) -> None:
        self.accepted = 0
        self.received: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    def _echo(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    self.received.append(data[:200])
                    sock.sendall(data)
            except OSError:
                pass

    def close(self) -> None:
        self._socket.close()


class DnsServer:
    """Answers A from `table`: name -> a list of addresses, or a function that gives one. Names that are
    not there do not exist. `asked` has every name, as it was asked for."""

    def __init__(self) -> None:
        self.table: dict[str, Any] = {}
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                query, client = self._socket.recvfrom(4096)
            except OSError:
                return
            try:
                self._socket.sendto(self.reply(query), client)
            except (IndexError, struct.error, UnicodeDecodeError, OSError):
                continue

    def reply(self, query: bytes) -> bytes:
        """The answer to a query with one question."""
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode("ascii"))
            at += 1 + length
        (kind,) = struct.unpack_from(">H", query, at + 1)
        question = query[12 : at + 5]
        name = ".".join(labels)
        self.asked.append(name)
        known = self.table.get(name.lower())
        addresses = [] if known and kind != 1 else known() if callable(known) else known
        records = b""
        if addresses:
            for address in addresses:
                # A pointer to the question's name, A, IN, TTL 0, 4 bytes.
                records += struct.pack(">HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(address)
        count = len(addresses) if records else 0
        flags = 0x8180 if addresses is not None else 0x8183
        return query[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 0) + question + records

    def close(self) -> None:
        self._socket.close()


@dataclass
class World:
    """All of it. `emulated`: from where the proxy dials."""

    tmp: Path
    emulated: bool
    http: HttpServer = field(init=False)
    https: HttpServer = field(init=False)
    stranger: HttpServer = field(init=False)
    tcp: TcpServer = field(init=False)
    dns: DnsServer = field(init=False)
    commit: str = ""  # of the repository that git.test has

    def __post_init__(self) -> None:
        make_certificates(self.tmp)
        self.http = HttpServer()
        self.https = HttpServer(self.tmp / "server.pem")
        self.stranger = HttpServer(self.tmp / "stranger.pem")
        self.tcp = TcpServer()
        self.dns = DnsServer()
        self.turn = 0
        self.dns.table = {
            "dns.test": [self.address],
            # First what it may be, then the sandbox host's own loopback, in turns.
            "rebind.test": self._rebind,
            "private.test": ["192.168.7.7"],
            "metadata.test": [METADATA],
            # The first that is allowed is taken.
            "mixed.test": ["10.1.2.3", METADATA, self.address],
        }

    def _rebind(self) -> list[str]:
        self.turn += 1
        return [self.address] if self.turn % 2 else [self.elsewhere]

    @property
    def address(self) -> str:
        """This machine's loopback, as the proxy sees it."""
        return "10.0.2.2" if self.emulated else "127.0.0.1"

    @property
    def elsewhere(self) -> str:
        """An address that answers where the proxy is, and that is not allowed."""
        return "127.0.0.1" if self.emulated else "127.0.0.2"

    @property
    def ca(self) -> str:
        return (self.tmp / "ca.pem").read_text()

    def config(self, **members: Any) -> dict[str, Any]:
        """The operator's configuration."""
        resolve = {name: [self.address] for name in (*NAMES, PUNYCODE)}
        resolve["mapped.test"] = [f"::ffff:{METADATA}"]
        return {
            "enabled": True,
            "default": [f"api.test:{self.http.port}"],
            "groups": {"tests": [f"pypi.test:{self.http.port}", f"pypi.test:{self.https.port}"]},
            "allow_ranges": [f"{self.address}/32"],
            "resolve": resolve,
            "resolvers": [f"{self.address}:{self.dns.port}"],
            "upstream_ca": self.ca,
            **members,
        }

    def everything(self) -> list[Any]:
        """Entries for all that answers, and for what resolves to where nobody may go."""
        ports = [self.http.port, self.https.port, self.stranger.port]
        hosts = (*NAMES, "dns.test", "rebind.test", "private.test", "mapped.test", "mixed.test")
        hosts += ("metadata.test", "nowhere.test", PUNYCODE)
        return [{"host": host, "ports": ports} for host in hosts] + [
            {"host": "api.test", "ports": [self.tcp.port], "tls": False}
        ]

    def untouched(self) -> Callable[[], bool]:
        """Call it now; what it returns says later whether nothing arrived anywhere since."""

        def state() -> tuple[int, ...]:
            servers = (self.http, self.https, self.stranger)
            return (*(one.connections for one in servers), self.tcp.accepted)

        before = state()
        return lambda: state() == before

    def close(self) -> None:
        for one in (self.http, self.https, self.stranger, self.tcp, self.dns):
            one.close()


def opened(tmp: Path, emulated: bool) -> Iterator[World]:
    """For a fixture."""
    world = World(tmp, emulated)
    try:
        yield world
    finally:
        world.close()
