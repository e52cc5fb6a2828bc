# SPDX-License-Identifier: Apache-2.0
"""The host's end of egress for tests: a UNIX socket in the place of its vsock port, and an agent whose
relay connects there and listens on free ports."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any, Iterator

import pytest
from agent_client import EGRESS
from conftest import Agent, wait_for
from processes import children, name


def free_ports() -> tuple[int, int]:
    """Two ports of the loopback that nobody has at the moment."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


class EgressAgent(Agent):
    """An agent and its host."""

    def __init__(self, **options: Any) -> None:
        """Starts both; the host accepts."""
        self.host_dir = Path(tempfile.mkdtemp(prefix="podflare-egress-"))
        self.host_dir.chmod(0o755)
        self.host_path = self.host_dir / "host"
        self.ports = free_ports()
        self.clients: list[socket.socket] = []
        self.listener: socket.socket | None = None
        self.open_host()
        os.environ["HARNESS_EGRESS"] = f"{self.ports[0]},{self.ports[1]},{self.host_path}"
        try:
            super().__init__(**options)
        finally:
            del os.environ["HARNESS_EGRESS"]

    def open_host(self) -> None:
        """The host grants."""
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.host_path))
        self.host_path.chmod(0o777)
        self.listener.listen(256)
        self.listener.settimeout(20)

    def close_host(self) -> None:
        """The host refuses."""
        if self.listener is not None:
            self.listener.close()
            self.host_path.unlink()
        self.listener = None

    def accept(self) -> socket.socket:
        """The next connection that has come to the host."""
        assert self.listener is not None
        sock, _ = self.listener.accept()
        sock.settimeout(20)
        self.clients.append(sock)
        return sock

    def connect(self, port: int = 0) -> socket.socket:
        """A program of the sandbox connects to the proxy."""
        sock = socket.create_connection(("127.0.0.1", self.ports[port]), timeout=20)
        self.clients.append(sock)
        return sock

    def pair(self, port: int = 0) -> tuple[socket.socket, socket.socket]:
        """A connection that is carried: the program's end, and the host's."""
        client = self.connect(port)
        return client, self.accept()

    def egress(self, on: bool, **more: Any) -> dict[str, Any]:
        """The answer to EGRESS on a new stream."""
        with self.stream() as s:
            return s.ask(EGRESS, {"on": on, **more})

    def relays(self) -> list[int]:
        """Process ids of its relays."""
        return [pid for pid in children(self.proc.pid) if name(pid) == b"podflare-relay"]

    def relay(self) -> int:
        """That of the one that runs."""
        wait_for(lambda: len(self.relays()) == 1, "one relay")
        return self.relays()[0]

    def files(self) -> list[str]:
        """What there is for the user's programs."""
        return sorted(p.name for p in self.dir.glob("egress*"))

    def stop(self) -> None:
        """Ends both."""
        for sock in self.clients:
            sock.close()
        self.close_host()
        shutil.rmtree(self.host_dir, ignore_errors=True)
        super().stop()


@pytest.fixture
def own() -> Iterator[EgressAgent]:
    """An agent of the test's own; egress is off."""
    a = EgressAgent()
    yield a
    a.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[EgressAgent]:
    """One for tests that leave it off."""
    a = EgressAgent()
    yield a
    a.stop()


@pytest.fixture
def egress(shared: EgressAgent) -> Iterator[EgressAgent]:
    """That one, off before and after."""
    yield shared
    assert shared.egress(False) == {}


@pytest.fixture
def on(egress: EgressAgent) -> EgressAgent:
    """And on."""
    assert egress.egress(True) == {}
    return egress


def occupied(port: int) -> socket.socket:
    """A program of the user's that listens there."""
    return socket.create_server(("127.0.0.1", port))


def is_refused(port: int) -> bool:
    """Whether connecting fails at once."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # by the relay, which was fast
        pass
    return False


def is_cut(port: int) -> bool:
    """Whether a connection is reset as soon as it is there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            return is_reset(sock)
    except ConnectionResetError:
        return True


def is_reset(sock: socket.socket) -> bool:
    """Whether the connection ends with an error, and not with an end."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False
