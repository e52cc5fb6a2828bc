# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the emulated host's QEMU, at whatever it does: what must become of `podflare serve`, of its
clients, and of the next start on the same state directory."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

from served import Served, wait_until

from podflare import Client, PodflareError, Sandbox, SandboxEndedError

TOLD = "the emulated host ended unexpectedly (QEMU was killed by signal 9)"
FILES = {"box-console.log", "box-console.log.1", "box-state.ext4", "serve.lock"}
# Nobody may take longer to notice that the machine is gone.
NOTICED_S = 20


class Load:
    """Clients that create, run, write, fork and close until nobody answers."""

    def __init__(self, url: str, clients: int) -> None:
        self.url = url
        self.over = threading.Event()
        self.ids: list[str] = []
        self.done: dict[str, int] = {}
        self.errors: list[str] = []
        self.unexpected: list[str] = []
        self.threads = [threading.Thread(target=self._client, daemon=True) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _round(self, client: Client) -> None:
        with Sandbox(client=client) as s:
            self.ids.append(s.id)
            self._count("create")
            assert s.run_code("print(6 * 7)").stdout == "42\n"
            self._count("run")
            s.upload(b"x" * 300_000, "/tmp/x")
            assert len(s.download("/tmp/x")) == 300_000
            self._count("file")
            with s.fork(2) as copies:
                self.ids += [copy.id for copy in copies]
                self._count("fork")
                s.run_code("import time; time.sleep(2)")

    def _count(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1

    def _client(self) -> None:
        with Client(host=self.url) as client:
            while not self.over.is_set():
                try:
                    self._round(client)
                except (PodflareError, OSError) as e:
                    self.errors.append(f"{type(e).__name__}: {e}")
                    if not self.over.is_set() and self._answers(client):
                        self.unexpected.append(self.errors[-1])
                    return
                except BaseException as e:
                    self.unexpected.append(f"{type(e).__name__}: {e}")
                    raise

    @staticmethod
    def _answers(client: Client) -> bool:
        """An error is no surprise from a machine that is gone, which only the next request may show."""
        try:
            client.templates()
        except (PodflareError, OSError):
            return False
        return True

    def ended(self) -> None:
        """All have noticed that the machine is gone, by an error."""
        self.over.set()
        until = time.monotonic() + NOTICED_S
        for thread in self.threads:
            thread.join(max(0, until - time.monotonic()))
        assert not any(t.is_alive() for t in self.threads), f"a client still waits after {NOTICED_S} s"
        assert not self.unexpected, self.unexpected


def machine_of(served: Served) -> int:
    """Process id of its QEMU, as soon as there is one."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [p for p, c in served.process.descendants().items() if "qemu-system" in c.split()[0]]
        return bool(found) or served.process.process.poll() is not None

    wait_until("QEMU runs", there, 60)
    assert len(found) == 1, f"no QEMU, or several:\n{served.log()}"
    return found[0]


def kill_machine(served: Served, load: Load | None) -> None:
    """The kill, and all that must be true behind it."""
    os.kill(machine_of(served), signal.SIGKILL)
    status = served.process.wait(NOTICED_S)
    assert status == 1, f"status {status}:\n{served.log()[-4000:]}"
    assert TOLD in served.log(), served.log()[-4000:]
    if load:
        load.ended()
    wait_until("no process is left", lambda: not served.process.descendants(), 10)
    if served.url:
        with socket.socket() as probe:
            port = int(served.url.rsplit(":", 1)[1])
            assert probe.connect_ex(("127.0.0.1", port)) != 0, "something still listens"
    left = {p.name for p in served.state.iterdir()}
    assert left <= FILES, f"files are left: {left - FILES}"


def as_after_a_crash(client: Client, ids: list[str]) -> None:
    """A new start: nothing of what was lives, and it works."""
    assert Sandbox.list(client=client) == []
    for one in ids:
        try:
            Sandbox.connect(one, client=client).info()
        except SandboxEndedError:
            pass
        except PodflareError as e:
            assert e.status == 404, e  # what was written last may be lost with the machine
        else:
            raise AssertionError(f"{one} is said to live")


def life(build: Path, state: Path, seed: int, before: list[str]) -> tuple[str, list[str]]:
    """A start on what the one before has left, work, and a kill at some moment of either. What was
    killed when, and the sandboxes that there were."""
    rng = random.Random(seed)
    served = Served(build, state)
    try:
        if rng.random() < 0.25:
            delay = rng.uniform(0, 8)
            machine_of(served)
            time.sleep(delay)
            kill_machine(served, None)
            return f"{delay:.1f} s after its start", before
        served.wait_ready()
        with Client(host=served.url) as client:
            as_after_a_crash(client, before)
        load = Load(served.url, 3)
        delay = rng.uniform(0, 60)
        time.sleep(delay)
        assert not load.unexpected, load.unexpected
        kill_machine(served, load)
        return f"{delay:.1f} s after it was ready, behind {load.done or 'nothing'}", load.ids
    finally:
        served.process.kill()


def last_life(build: Path, state: Path, before: list[str]) -> None:
    """A start behind the last kill: it works, and stops in good order."""
    served = Served(build, state)
    try:
        served.wait_ready()
        with Client(host=served.url) as client:
            as_after_a_crash(client, before)
            with Sandbox(client=client) as s:
                assert s.run_code("print(6 * 7)").stdout == "42\n"
        served.stop()
    finally:
        served.process.kill()
