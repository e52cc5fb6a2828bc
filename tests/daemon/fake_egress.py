#!/usr/bin/python3 -IS
"""A stand-in for podflare-egress, for tests of podflared: descriptor 3 and proto/egress.h.

--dir: what it was given goes there, one file a process (PID.jsonl); the state of the daemon must
not have secrets, this has them all. --mode chooses how it misbehaves; a mode with a number is for the
process of that number only ("1:exit 3": the first one).

A connection speaks lines of JSON: {"host": H, "port": P} is decided by the literal entries of the
policy, answered by "allow" or "deny REASON", and ends with the connection or the next line. Others
are orders: {"raw": TEXT} sends a message as it is, {"record": {...}} a decision with these members
changed, {"end": {...}} the same of an end, {"exit": N}, {"signal": N}, {"close": true} ends the control
socket only, {"fd": true} a message with a descriptor, {"deaf": true} reads no orders any more,
{"flood": N, "hosts": M} that many decisions about M hosts, {"stream": true} says what it knows of the connection.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

CTL_FD = 3
# Not a pair that would work: the daemon looks at their form only.
CA = {
    "cert_pem": "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n",
    "key_pem": "-----BEGIN PRIVATE KEY-----\nQ0FOQVJZLUNBLUtFWQ==\n-----END PRIVATE KEY-----\n",
}


class Proxy:
    """The process."""

    def __init__(self, where: str, mode: str) -> None:
        self.where = where
        self.ctl = socket.socket(fileno=CTL_FD)
        self.ctl.setblocking(True)
        self.policy: dict = {}
        self.lock = threading.Lock()
        self.next_id = 0
        self.open: dict[int, dict] = {}  # decisions that are not over
        self.mode = mode
        self.deaf = self.closed = False

    def note(self, **what: Any) -> None:
        """For the test."""
        with open(f"{self.where}/{os.getpid()}.jsonl", "a", encoding="utf-8") as f:
            f.write(json.dumps(what) + "\n")

    def send(self, message: dict) -> None:
        """A message to the daemon."""
        self.ctl.send(json.dumps(message).encode())

    def decide(
        self, stream: int, exec_id: str | None, ask: dict, more: dict | None = None
    ) -> tuple[int, str]:
        """A decision and its record: its id, and what the connection is told."""
        host, port = ask["host"], ask.get("port", 443)
        with self.lock:
            self.next_id += 1
            record = {
                "type": "decision",
                "time": "2026-11-24T03:04:05.678Z",
                "id": self.next_id,
                "stream": stream,
                "exec": exec_id,
                "proto": "connect",
                "host": host,
                "port": port,
                "method": None,
                "address": None,
                "rule": None,
                "verdict": "deny",
                "reason": "not_allowed",
                "detail": f"no rule has {host}",
                "hint": f"ask for {host}",
            }
            if host in self.policy["allow"]:
                record |= {"verdict": "allow", "reason": None, "rule": host}
                record |= {"detail": "", "address": "192.0.2.1"}
                del record["hint"]
            record |= more or {}
            if record["verdict"] == "allow":
                self.open[record["id"]] = record
            self.send(record)
        word = record["verdict"]
        return record["id"], word if word == "allow" else f"deny {record['reason']}"

    def end(self, ident: int, why: str | None = None) -> None:
        """What was allowed is over."""
        with self.lock:
            record = self.open.pop(ident, None)
            if record:
                tail = {"bytes_up": 10, "bytes_down": 20, "duration_ms": 5, "why": why}
                self.send({**record, "type": "end", **tail})

    def order(self, stream: int, o: dict) -> None:
        """Misbehaviour."""
        if "raw" in o:
            self.ctl.send(o["raw"].encode())
        if "record" in o:
            self.decide(stream, None, {"host": "allowed.test"}, o["record"])
        if "end" in o:
            self.send(o["end"])
        if "flood" in o:
            for i in range(o["flood"]):
                host = f"flood{i % o['hosts']}.test" if "hosts" in o else "flood.test"
                ident, _ = self.decide(stream, None, {"host": host})
                self.end(ident)
        if "exit" in o:
            os._exit(o["exit"])
        if "signal" in o:
            os.kill(os.getpid(), o["signal"])
        if "close" in o:
            self.closed = True
            self.ctl.shutdown(socket.SHUT_RDWR)
            time.sleep(3600)
        if "fd" in o:
            rights = array.array("i", [0])
            self.ctl.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        if "deaf" in o:
            self.deaf = True

    def serve(self, ident: int, exec_id: str | None, fd: int) -> None:
        """One connection of the guest."""
        s = socket.socket(fileno=fd)
        s.setblocking(True)
        current = 0
        for raw in s.makefile("rb"):
            o = json.loads(raw)
            if current:
                self.end(current)
                current = 0
            if "host" in o:
                current, answer = self.decide(ident, exec_id, o)
                if not answer.startswith("allow"):
                    current = 0
                threading.Thread(target=self.cut, args=(s, current), daemon=True).start()
            elif "stream" in o:
                answer = json.dumps({"stream": ident, "exec": exec_id, "pid": os.getpid()})
            else:
                self.order(ident, o)
                answer = "done"
            s.sendall(answer.encode() + b"\n")
        if current:
            self.end(current)
        s.close()

    def cut(self, s: socket.socket, ident: int) -> None:
        """Waits for a policy that does not allow it any more."""
        while ident in self.open:
            if self.open[ident]["host"] not in self.policy["allow"]:
                self.end(ident, "policy_changed")
                s.shutdown(socket.SHUT_RDWR)
            time.sleep(0.01)

    def on_policy(self, o: dict, fd: int) -> None:
        """A new policy."""
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        text = os.pread(fd, 4 << 20, 0).decode()
        os.close(fd)
        self.note(policy=json.loads(text), seals=seals, serial=o["serial"])
        word, _, rest = self.mode.partition(" ")
        if word == "exit":
            os._exit(int(rest or 1))
        if word == "stay":
            time.sleep(float(rest or 0))
        if word == "mute":
            return
        if word == "answer":
            self.ctl.send(rest.encode())
            return
        self.policy = json.loads(text)
        ca = None
        if any(host["intercept"] for host in self.policy["inject"].values()):
            ca = self.policy["ca"] or CA
        if word == "slow":
            time.sleep(float(rest))
        if word == "ca":
            ca = json.loads(rest)
        error = rest if word == "refuse" else None
        if error:
            ca, self.policy["allow"] = None, []
        self.send({"type": "policy", "serial": o["serial"], "error": error, "ca": ca})

    def on_test(self, o: dict) -> None:
        """A question."""
        self.note(test=o)
        word, _, rest = self.mode.partition(" ")
        if word == "test":
            self.ctl.send(rest.encode())
            return
        allow = o["host"] in self.policy["allow"]
        self.send(
            {
                "type": "test",
                "serial": o["serial"],
                "verdict": "allow" if allow else "deny",
                "reason": None if allow else "not_allowed",
                "rule": o["host"] if allow else None,
                "hint": None if allow else f"allow {o['host']}",
                "addresses": [{"address": "192.0.2.1", "allowed": True, "why": "public"}] if allow else [],
            }
        )

    def run(self) -> None:
        """Orders, until the daemon closes the socket."""
        open_fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1]
        self.note(argv=sys.argv, env=dict(os.environ), fds=open_fds, pid=os.getpid())
        if self.mode.startswith("early"):
            os._exit(5)
        while True:
            while self.deaf:
                time.sleep(0.05)
            data, anc, _, _ = self.ctl.recvmsg(65536, socket.CMSG_SPACE(8), socket.MSG_CMSG_CLOEXEC)
            if not data and self.closed:
                signal.pause()
            if not data:
                break
            fds = array.array("i")
            for _, _, raw in anc:
                fds.frombytes(raw)
            o = json.loads(data)
            if o["type"] == "policy":
                self.on_policy(o, fds[0])
            elif o["type"] == "stream":
                threading.Thread(
                    target=self.serve, args=(o["id"], o["exec"], fds[0]), daemon=True
                ).start()
            elif o["type"] == "used":
                self.note(used=o["bytes"], pid_used=os.getpid())
            else:
                self.on_test(o)
        for ident in list(self.open):
            self.end(ident)
        self.note(left=True)
        if self.mode.startswith("stay"):
            signal.pause()


def main() -> None:
    """Runs until the daemon closes the socket."""
    where, mode = "", ""
    while len(sys.argv) > 1 and sys.argv[1].startswith("--"):
        name, _, value = sys.argv.pop(1).partition("=")
        if name == "--dir":
            where = value
        elif name == "--mode":
            mode = value
    with open(f"{where}/count", "a+", encoding="ascii") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.write(".")
        f.flush()
        number = f.tell()
    if os.path.exists(f"{where}/mode"):
        with open(f"{where}/mode", encoding="utf-8") as f:
            mode = f.read()
    first, colon, rest = mode.partition(":")
    if colon and first.isdigit():
        mode = rest if int(first) == number else ""
    Proxy(where, mode).run()


main()
