# SPDX-License-Identifier: Apache-2.0
"""What the proxy reaches in tests: servers on loopback, with ports that the kernel chooses."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

NAMES = ("a.test", "b.test", "*.wild.test")


def make_ca(where: Path) -> Path:
    """ca.pem, and server.pem and server.key that it has signed for NAMES."""

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=where, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=Test CA")  # fmt: skip
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    names = ",".join(f"DNS:{n}" for n in NAMES)
    (where / "ext").write_text(f"subjectAltName={names}\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", "server.pem")  # fmt: skip
    return where


class Tcp:
    """Serves each connection by a function on a thread; without one, echoes."""

    def __init__(
        self,
        serve: Optional[Callable[[socket.socket], None]] = None,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.listener = socket.create_server((address, port), family=family, backlog=128)
        self.port: int = self.listener.getsockname()[1]
        self.serve = serve or self.echo
        self.accepted = 0
        self.peers: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.open: list[socket.socket] = []

    @staticmethod
    def echo(s: socket.socket) -> None:
        while data := s.recv(65536):
            s.sendall(data)
        s.shutdown(socket.SHUT_WR)

    def __enter__(self) -> "Tcp":
        self.start(self.run)
        return self

    def start(self, fn: Callable[..., None], *args: Any) -> None:
        t = threading.Thread(target=fn, args=args, daemon=True)
        t.start()
        self.threads.append(t)

    def run(self) -> None:
        while True:
            try:
                s, peer = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            self.peers.append(peer)
            self.open.append(s)
            self.start(self.one, s)

    def one(self, s: socket.socket) -> None:
        try:
            self.serve(s)
        except (OSError, ssl.SSLError):
            pass
        finally:
            s.close()

    def __exit__(self, *exc: Any) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for s in self.open:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for t in self.threads:
            t.join(30)


class TlsServer(Tcp):
    """Echoes over TLS, after a line with the name that the client said (SNI)."""

    def __init__(self, ca: Path, most: Optional[ssl.TLSVersion] = None) -> None:
        super().__init__(self.speak)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(ca / "server.pem", ca / "server.key")
        self.context.sni_callback = self.on_sni
        if most:
            self.context.maximum_version = most
        self.names: list[Optional[str]] = []

    def on_sni(self, s: ssl.SSLObject, name: Optional[str], context: ssl.SSLContext) -> None:
        self.names.append(name)

    def speak(self, s: socket.socket) -> None:
        with self.context.wrap_socket(s, server_side=True) as t:
            t.sendall(f"hello {self.names[-1]}\n".encode())
            while data := t.recv(65536):
                t.sendall(data)


def question_name(packet: bytes) -> tuple[str, int, bytes]:
    """Name, type and the question section of a query."""
    at, labels = 12, []
    while packet[at]:
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += packet[at] + 1
    kind = struct.unpack_from("!H", packet, at + 1)[0]
    return ".".join(labels), kind, packet[12 : at + 5]


class Dns:
    """A resolver on loopback, by UDP and TCP. truncated: by UDP, it only says that TCP would tell.
    answers: name -> list of addresses, or a function that gives one, or
    an rcode, or None (no answer at all). Names without an answer do not exist."""

    A, AAAA = 1, 28
    SERVFAIL, NXDOMAIN, REFUSED = 2, 3, 5

    def __init__(self) -> None:
        while True:  # a port that is free for both
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.socket.bind(("127.0.0.1", 0))
            try:
                self.stream = Tcp(self.serve_stream, port=self.socket.getsockname()[1])
                break
            except OSError:
                self.socket.close()
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, int]] = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.stopping = self.truncated = False

    def serve_stream(self, s: socket.socket) -> None:
        while size := s.recv(2, socket.MSG_WAITALL):
            reply = self.reply(s.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
            if reply:
                s.sendall(len(reply).to_bytes(2, "big") + reply)

    def __enter__(self) -> "Dns":
        self.stream.__enter__()
        self.thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stream.__exit__()
        self.stopping = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"", self.socket.getsockname())
        self.thread.join(30)
        self.socket.close()

    def run(self) -> None:
        while True:
            packet, peer = self.socket.recvfrom(4096)
            if self.stopping:
                return
            self.peer = peer
            reply = self.reply(packet)
            if reply and self.truncated:
                end = 12 + len(question_name(packet)[2])
                reply = reply[:2] + b"\x83\x80" + reply[4:6] + bytes(6) + reply[12:end]
            if reply:
                self.socket.sendto(reply, peer)

    def reply(self, packet: bytes) -> Optional[bytes]:
        name, kind, question = question_name(packet)
        self.asked.append((name, kind))
        answer = self.answers.get(name, self.NXDOMAIN)
        if callable(answer):
            answer = answer(kind)
        if answer is None:
            return None
        rcode = answer if isinstance(answer, int) else 0
        records = b""
        count = 0
        for text in [] if isinstance(answer, int) else answer:
            a = ipaddress.ip_address(text)
            if (a.version == 4) == (kind == self.A):
                records += b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 1, len(a.packed)) + a.packed
                count += 1
        header = packet[:2] + struct.pack("!HHHHH", 0x8180 | rcode, 1, count, 0, 0)
        return header + question + records
