"""Connections that the guest behind the stand-in VMM opens, and what its agent was told of egress.

A test orders them by code that begins with "#fake:guest", JSON behind it:

  {"op": "open", "name": N, "line": TEXT, "wait": true}   opens a connection; sends a line, and says what came
  {"op": "line", "name": N, "line": TEXT}   on one that is open
  {"op": "read", "name": N}                 what comes up to the end of the connection
  {"op": "close", "name": N}
  {"op": "raw", "port": P, "id": I}         CTL_GUEST_CONNECT as it is told
  {"op": "many", "n": N}                    that many at once: how each was answered
  {"op": "many", "n": N, "deaf": S}         the VMM reads no answer before all have been asked for, and S seconds
  {"op": "state"}                           what the VMM and the agent know

What it says is a line of JSON. "reset": the VMM refused, as it does without a grant.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from typing import Any

EGRESS, ACCEPT, REJECT, GUEST_CONNECT = 10, 11, 12, 0x8C
PORT = 5556
STDOUT = 0x81


class Guest:
    """The VMM's side of connections that the guest opens."""

    def __init__(self, vmm: Any) -> None:
        self.vmm = vmm
        self.on = False
        self.listening = threading.Event()
        self.listening.set()
        self.next_id = 0
        self.waiting: dict[int, queue.SimpleQueue] = {}
        self.open: dict[str, socket.socket] = {}
        self.seen: list[str] = []  # what came on the control socket, in order
        self.told: list[dict] = []  # what the agent was told: RENEW's member, EGRESS

    def control(self, kind: int, ident: int, code: int, fds: list[int]) -> None:
        """A control message of the daemon's."""
        if kind == EGRESS:
            self.seen.append(f"egress {code}")
            self.on = bool(code)
            if not self.on:
                for s in self.open.values():
                    s.shutdown(socket.SHUT_RDWR)
                self.open.clear()
        elif ident in self.waiting:
            self.waiting.pop(ident).put(fds[0] if kind == ACCEPT else None)
        else:
            self.seen.append(f"stray answer {ident}")
            for fd in fds:
                os.close(fd)

    def ask(self) -> queue.SimpleQueue:
        """CTL_GUEST_CONNECT; the answer comes into the queue."""
        self.next_id += 1
        answer: queue.SimpleQueue = queue.SimpleQueue()
        self.waiting[self.next_id] = answer
        self.vmm.send(GUEST_CONNECT, self.next_id, port=PORT)
        return answer

    def connect(self, name: str) -> str:
        """Opens a connection: "" or why not."""
        if not self.on:
            return "reset"
        fd = self.ask().get(timeout=60)
        if fd is None:
            return "rejected"
        self.open[name] = socket.socket(fileno=fd)
        self.open[name].setblocking(True)
        return ""

    def line(self, name: str, text: str) -> str:
        """Sends a line: the line that comes back, "" at the end."""
        s = self.open[name]
        try:
            s.sendall(text.encode() + b"\n")
            got = b""
            while not got.endswith(b"\n"):
                more = s.recv(65536)
                if not more:
                    break
                got += more
            return got.decode().rstrip("\n")
        except (BrokenPipeError, ConnectionResetError):
            return ""

    def op(self, o: dict) -> Any:
        """An order of a test."""
        op, name = o["op"], o.get("name", "")
        if op == "open":
            why = self.connect(name)
            if why or "line" not in o:
                return why or "open"
            return self.line(name, o["line"])
        if op == "line":
            return self.line(name, o["line"])
        if op == "read":
            got = b""
            while more := self.open[name].recv(65536):
                got += more
            return got.decode()
        if op == "close":
            self.open.pop(name).close()
            return "closed"
        if op == "raw":
            self.vmm.send(GUEST_CONNECT, o["id"], port=o["port"])
            time.sleep(3600)
        if op == "many":
            if "deaf" in o:
                self.listening.clear()
            answers = [self.ask() for _ in range(o["n"])]
            time.sleep(o.get("deaf", 0))
            self.listening.set()
            got = [a.get(timeout=60) for a in answers]
            for i, fd in enumerate(got):
                if fd is not None:
                    self.open[f"many{i}"] = socket.socket(fileno=fd)
            return ["rejected" if fd is None else "open" for fd in got]
        assert op == "state"
        return {"on": self.on, "seen": self.seen, "told": self.told, "open": sorted(self.open)}

    def run(self, stream: Any, what: str, start: float) -> None:
        """#fake:guest"""
        answer = json.dumps(self.op(json.loads(what))).encode()
        stream.send(STDOUT, answer + b"\n")
        stream.exit(0, "exited", start)
