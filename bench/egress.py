#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the way through podflare-egress costs, against a direct connection on loopback. Prints one table, in
Markdown.

    bench/egress.py [--build DIR] [--only native|guest] [--seconds S] [--download MIB] [--json FILE]

Both ends are bench/egressload.c: a client that asks a small HTTP server over and over, on 1 or 64 connections, for 100
bytes; on a new connection each time; and once for a lot. Ways: "direct"; "tunnel", a CONNECT for each
connection and requests within it (without TLS, so that no cipher is measured); "plain HTTP", where the proxy
reads and judges each request.

native   The proxy alone, started here as the daemon starts it. A connection of the client is a unix socket
         that this script hands over to the proxy: that and its reading of the proxy's records is in the
         figures of new connections.
guest    The whole way: a program in a sandbox, the relay, vsock, the VMM, the proxy. "Direct" is a server in
         the same sandbox, on its own loopback; the others are one on this host's.

Each figure is the middle one of three runs by its rate.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "sdk" / "python"), str(ROOT / "bench")]

NAME = "bench.test"
SMALL = 100  # bytes of an answer
RUNS = 3


@dataclass
class Figure:
    """One run of the client. Latencies in microseconds."""

    requests: int
    seconds: float
    bytes: int
    p50: float
    p95: float
    p99: float
    largest: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def mib_per_s(self) -> float:
        return self.bytes / self.seconds / (1 << 20)

    @classmethod
    def read(cls, line: str) -> "Figure":
        words = line.split()
        return cls(int(words[0]), float(words[1]), int(words[2]), *map(float, words[3:7]))


# Runs the client: where, way, target, connections, bytes, seconds, fresh.
Load = Callable[[str, str, str, int, int, float, bool], Figure]


def progress(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def server(program: Path) -> Iterator[int]:
    """The server on this host's loopback; its port."""
    process = subprocess.Popen([str(program), "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


class Proxy:
    """podflare-egress with a policy, and a unix socket at `path` whose connections are handed to it."""

    def __init__(self, program: Path, tmp: Path, port: int) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = subprocess.Popen(
            [str(program)],
            preexec_fn=lambda: os.dup2(theirs.fileno(), 3),
            pass_fds=(3,),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._policy(port)
        threading.Thread(target=self._read_records, daemon=True).start()
        self.path = str(tmp / "guest")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(256)
        threading.Thread(target=self._hand_over, daemon=True).start()

    def _policy(self, port: int) -> None:
        policy = {
            "sandbox": "sbx_bench",
            "allow": [{"host": NAME, "ports": [port], "tls": False}],
            "groups": {},
            "ceiling": None,
            "inject": {},
            "ca": None,
            "allow_ranges": ["127.0.0.1/32"],
            "resolve": {NAME: ["127.0.0.1"]},
            "resolvers": None,
            "upstream_ca_pem": None,
            "limits": {"connections": 256},
        }
        fd = os.memfd_create("policy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, json.dumps(policy).encode())
        fcntl.fcntl(fd, 1033, 2 | 4 | 8)  # F_ADD_SEALS: shrink, grow, write
        message = json.dumps({"type": "policy", "serial": 1}).encode()
        socket.send_fds(self._control, [message], [fd])
        os.close(fd)
        reply = json.loads(self._control.recv(70000))
        if reply.get("error") is not None:
            raise SystemExit(f"the proxy refuses the policy: {reply}")

    def _read_records(self) -> None:
        with contextlib.suppress(OSError):
            while self._control.recv(70000):
                pass

    def _hand_over(self) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                number += 1
                message = json.dumps({"type": "stream", "id": number, "exec": None}).encode()
                socket.send_fds(self._control, [message], [sock.fileno()])
                sock.close()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()
        self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        if self._process.wait(30) != 0:
            raise SystemExit(f"the proxy ended with status {self._process.returncode}")


def measure(load: Load, ways: dict[str, tuple[str, str, str]], args: Any) -> dict[str, Figure]:
    """All figures of one place; ways: the name of each to where, way and target."""

    def middle(*run: Any) -> Figure:
        figures = sorted((load(*run) for _ in range(RUNS)), key=lambda f: f.rate)
        return figures[RUNS // 2]

    found: dict[str, Figure] = {}
    for connections in (1, 64):
        for name, way in ways.items():
            progress(f"{name}, {connections} connections")
            found[f"{connections} {name}"] = middle(*way, connections, SMALL, args.seconds, False)
    for name, way in ways.items():
        progress(f"{name}, a new connection each time")
        found[f"fresh {name}"] = middle(*way, 1, SMALL, args.seconds, True)
    for name, way in ways.items():
        progress(f"{name}, {args.download} MiB")
        found[f"download {name}"] = middle(*way, 1, args.download << 20, 0, False)
    return found


def natively(build: Path, args: Any) -> dict[str, Figure]:
    """The proxy alone."""
    program = build / "bench" / "egressload"

    def load(
        where: str, way: str, target: str, connections: int, size: int, seconds: float, fresh: bool
    ) -> Figure:
        words = [where, way, target, str(connections), str(size), str(seconds)]
        done = subprocess.run(
            [str(program), "load", *words, *(["fresh"] if fresh else [])],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"egressload {words}: {done.stderr}")
        return Figure.read(done.stdout)

    with tempfile.TemporaryDirectory() as tmp, server(program) as port:
        with Proxy(build / "podflare-egress", Path(tmp), port) as proxy:
            target = f"{NAME}:{port}"
            ways = {
                "direct": (f"tcp:{port}", "direct", target),
                "tunnel": (f"unix:{proxy.path}", "tunnel", target),
                "plain HTTP": (f"unix:{proxy.path}", "http", target),
            }
            return measure(load, ways, args)


@contextlib.contextmanager
def serve(build: Path, tmp: Path) -> Iterator[tuple[str, bool]]:
    """`podflare serve` that lets sandboxes reach this host's loopback: its URL, whether it is emulated."""
    told = subprocess.run([str(build / "podflare"), "doctor", "--json"], capture_output=True)
    emulated = json.loads(told.stdout)["mode"] == "emulated"
    address = "10.0.2.2" if emulated else "127.0.0.1"
    config = {"allow_ranges": [f"{address}/32"], "resolve": {NAME: [address]}}
    (tmp / "egress.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        [
            *(
                str(build / "podflare"),
                "serve",
                "--addr",
                "127.0.0.1:0",
                "--state",
                str(tmp / "state"),
            ),
            *("--egress-config", str(tmp / "egress.json")),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "ready on " not in line:
            raise SystemExit("podflare serve did not get ready")
        yield line.split("ready on ")[1].split()[0], emulated
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def from_a_guest(build: Path, args: Any) -> tuple[dict[str, Figure], bool]:
    """The whole way, and whether it was emulated."""
    from podflare import Client, Sandbox

    program = build / "bench" / "egressload"
    with contextlib.ExitStack() as stack:
        tmp = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(server(program))
        url, emulated = stack.enter_context(serve(build, tmp))
        client = stack.enter_context(Client(host=url))
        target = f"{NAME}:{port}"
        allow = [{"host": NAME, "ports": [port], "tls": False}]
        sandbox = stack.enter_context(Sandbox(client=client, egress_allow=allow))
        sandbox.upload(program, "/tmp/egressload")
        sandbox.files.chmod("/tmp/egressload", 0o755)
        inside = sandbox.commands.run(["/tmp/egressload", "serve", "8000"], background=True)

        def load(
            where: str,
            way: str,
            target: str,
            connections: int,
            size: int,
            seconds: float,
            fresh: bool,
        ) -> Figure:
            words = [where, way, target, str(connections), str(size), str(seconds)]
            r = sandbox.exec(["/tmp/egressload", "load", *words, *(["fresh"] if fresh else [])])
            if not r.ok or r.denied:
                raise SystemExit(f"egressload {shlex.join(words)} in the sandbox: {r}")
            return Figure.read(r.stdout)

        ways = {
            "direct": ("tcp:8000", "direct", "localhost:8000"),
            "tunnel": ("tcp:3128", "tunnel", target),
            "plain HTTP": ("tcp:3128", "http", target),
        }
        found = measure(load, ways, args)
        inside.kill()
        return found, emulated


def table(found: dict[str, Figure]) -> str:
    """Rows of one place."""
    lines = [
        "| | way | requests/s | of direct | p50, µs | added | p99, µs |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    what = {"1": "1 connection", "64": "64 connections", "fresh": "a new connection each time"}
    for key, text in what.items():
        direct = found[f"{key} direct"]
        for name in ("direct", "tunnel", "plain HTTP"):
            f = found[f"{key} {name}"]
            added = "" if name == "direct" else f"{f.p50 - direct.p50:+.0f}"
            lines.append(
                f"| {text} | {name} | {f.rate:.0f} | {f.rate / direct.rate:.2f} | {f.p50:.0f} "
                f"| {added} | {f.p99:.0f} |"
            )
    lines += ["", "| one download | MiB/s | of direct |", "|---|--:|--:|"]
    direct = found["download direct"]
    for name in ("direct", "tunnel", "plain HTTP"):
        f = found[f"download {name}"]
        lines.append(f"| {name} | {f.mib_per_s:.0f} | {f.mib_per_s / direct.mib_per_s:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="figures of egress")
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--only", choices=("native", "guest"))
    parser.add_argument("--seconds", type=float, default=3, help="of each run (default: 3)")
    parser.add_argument(
        "--download", type=int, default=512, help="MiB, a tenth in an emulated guest"
    )
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    args = parser.parse_args()
    build = args.build.resolve()
    places: dict[str, dict[str, Figure]] = {}
    if args.only != "guest":
        places["Natively, the proxy alone"] = natively(build, args)
    if args.only != "native":
        told = subprocess.run([str(build / "podflare"), "doctor", "--json"], capture_output=True)
        if json.loads(told.stdout)["mode"] == "emulated":
            args.download = max(1, args.download // 10)
        found, emulated = from_a_guest(build, args)
        mode = "emulated" if emulated else "hardware"
        places[f"From inside of a guest ({mode})"] = found
    print(f"{platform.machine()}, {os.cpu_count()} processors, Linux {platform.release()}\n")
    for place, found in places.items():
        print(
            f"**{place}** (download: {found['download direct'].bytes >> 20} MiB)\n\n{table(found)}\n"
        )
    if args.json:
        args.json.write_text(
            json.dumps({p: {k: asdict(f) for k, f in found.items()} for p, found in places.items()})
        )


if __name__ == "__main__":
    main()
