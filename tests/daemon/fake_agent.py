"""The agent behind the stand-in VMM: frames on one stream after the other.

Commands run with bash or python3 on this host; files are files of this host, changed
only in the test's own directory. With --inert neither what is run nor what is read is the
client's choice: for requests that nobody has written.
Code that begins with "#fake:" asks for a misbehaviour instead (see Stream.fake).
What is frozen, and what CHANGES and HASHES tell, is state of the VMM, which its
children inherit.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import time
from typing import Any

from fake_commands import Commands
from fake_files import Files, Gone
from fake_run import Run

EXEC, CANCEL, PING, PUT, GET, DATA, END, RENEW, STATUS_REQ = 1, 2, 3, 4, 5, 6, 7, 8, 9
WARM, FREEZE, THAW, CHANGES, HASHES = 0x0B, 0x0C, 0x0D, 0x0E, 0x0F
STDIN, STDIN_END, INTERRUPT, CONTEXT, FILE = 0x10, 0x11, 0x12, 0x13, 0x14
COMMAND, RESIZE, EGRESS = 0x15, 0x16, 0x17
STDOUT, STDERR, EXIT, ERROR, PONG, OK = 0x81, 0x82, 0x83, 0x84, 0x85, 0x86
DATA_OUT, END_OUT, EVENT, EVENT_PART, STDIN_ACK = 0x87, 0x88, 0x89, 0x8B, 0x8C
LATE = (CANCEL, STDIN, STDIN_END, INTERRUPT, RESIZE)  # may cross the EXIT of what they were meant for
LANGUAGES = ("python", "bash", "javascript", "argv")
WHILE_FROZEN = (THAW, RENEW, PING, STATUS_REQ, CHANGES, HASHES)

CHUNK = 65536


class Stream(Files, Commands):
    """One stream: an agent that serves one request after the other."""

    def __init__(self, vmm: Any, fd: int) -> None:
        self.vmm = vmm
        self.sock = socket.socket(fileno=fd)
        self.sock.setblocking(True)
        self.buf = b""
        self.pieces = 0  # in which this request has come
        self.fresh = vmm.frozen  # begun while everything rests
        vmm.streams.add(self)

    def send(self, kind: int, payload: bytes | dict = b"") -> None:
        """Sends one frame."""
        if isinstance(payload, dict):
            payload = json.dumps(payload).encode()
        self.sock.sendall(struct.pack("<IBxxx", len(payload), kind) + payload)

    def flood(self, kind: int, payload: bytes = b"") -> None:
        """The same frame without an end, as fast as it is taken, and what comes is not read."""
        frame = struct.pack("<IBxxx", len(payload), kind) + payload
        block = frame * (1 + (1 << 20) // len(frame))
        while True:
            self.sock.sendall(block)

    def parse(self) -> tuple[int, bytes] | None:
        """A whole frame from what has been received."""
        if len(self.buf) < 8:
            return None
        length, kind = struct.unpack_from("<IB", self.buf)
        if len(self.buf) < 8 + length:
            return None
        frame = (kind, self.buf[8 : 8 + length])
        self.buf = self.buf[8 + length :]
        return frame

    def recv(self) -> tuple[int, bytes]:
        """Waits for a frame."""
        while True:
            frame = self.parse()
            if frame:
                return frame
            got = self.sock.recv(262144)
            if not got:
                raise Gone
            self.pieces += 1
            self.buf += got

    def error(self, code: str, message: str) -> None:
        """Sends a final ERROR."""
        self.send(ERROR, {"code": code, "message": message})

    def serve(self) -> None:
        """Requests, until the daemon closes the stream."""
        calls = {
            RENEW: self.on_renew,
            EXEC: self.on_exec,
            PUT: self.on_put,
            GET: self.on_get,
            WARM: self.on_warm,
            FREEZE: self.on_freeze,
            THAW: self.on_thaw,
            CHANGES: self.on_changes,
            HASHES: self.on_hashes,
            CONTEXT: self.on_context,
            FILE: self.on_file,
            COMMAND: self.on_command,
            EGRESS: self.on_egress,
        }
        try:
            while True:
                self.pieces = 0
                kind, payload = self.recv()
                if not self.fresh:
                    self.vmm.rest()
                if kind in LATE:
                    continue
                if self.vmm.frozen and kind not in WHILE_FROZEN:
                    if kind in (EXEC, PUT):
                        self.body()
                    self.error("busy", "the guest is frozen")
                    continue
                if kind == PING:
                    if self.vmm.state["halted"]:
                        time.sleep(3600)
                    self.send(PONG, payload)
                else:
                    calls[kind](json.loads(payload))
        except (Gone, OSError):
            self.vmm.streams.discard(self)
            self.sock.close()

    # --- life of a guest ----------------------------------------------------------------

    def on_renew(self, req: dict) -> None:
        """RENEW, in the chosen mode."""
        vmm = self.vmm
        assert len(base64.b64decode(req["entropy"])) == 32
        assert len(req["machine_id"]) == 32 and len(req["boot_id"]) == 36
        assert req["id"].startswith("sbx_") and req["hostname"] == "sbx-" + req["id"][4:16]
        vmm.renew = req
        if "egress" in req:
            self.check_egress(req["egress"])
        vmm.guest.told.append(req.get("egress"))
        mode, _, rest = vmm.mode.partition(" ")
        if mode == "silent":
            time.sleep(3600)
        if mode == "slow-renew":
            time.sleep(float(rest or 1))
        if mode == "renew-error":
            self.error("io_error", "cannot set the clock")
            return
        if mode == "renew-close":
            raise Gone
        if mode == "renew-garbage":
            self.sock.sendall(b"\xff" * 64)
            time.sleep(3600)
        if req["kind"] == "boot":
            assert not vmm.frozen and req["generation"] == 0
        else:
            assert vmm.frozen, "user code would run in the child before it is renewed"
            assert req["generation"] == vmm.state["generation"] + (req["kind"] == "fork")
            vmm.thaw()
        vmm.state["generation"] = req["generation"]
        self.send(OK, {"egress_error": "port 1080\tis in use"} if mode == "renew-no-egress" else {})

    def check_egress(self, o: dict) -> None:
        """{"on", "ca"}"""
        assert set(o) == {"on", "ca"} and isinstance(o["on"], bool)
        assert o["ca"] is None or (o["on"] and o["ca"].startswith("-----BEGIN CERTIFICATE-----"))

    def on_egress(self, req: dict) -> None:
        """A later change of it."""
        self.check_egress(req)
        word = self.vmm.once("egress")
        if word == "error":
            self.error("io_error", "cannot write /etc/pip.conf")
            return
        if word == "mute":
            time.sleep(3600)
        if word == "close":
            raise Gone
        if word.startswith("slow"):
            time.sleep(float(word.split()[1]))
        self.vmm.guest.told.append(req)
        self.send(OK, {})

    def on_warm(self, req: dict) -> None:
        """The session is there, always."""
        if self.vmm.mode == "warm-error":
            self.error("busy", "the session is dead")
        else:
            self.send(OK, {})

    def on_freeze(self, req: dict) -> None:
        """Stops all commands, and other streams rest."""
        word = self.vmm.once("freeze")
        if word == "error":
            self.error("io_error", "a process does not stop")
            return
        if self.vmm.frozen:
            self.error("busy", "it is frozen already")
            return
        self.vmm.freeze(self)
        if word == "mute":
            time.sleep(3600)
        if word == "close":
            raise Gone
        self.send(OK, {"groups": 1})

    def on_thaw(self, req: dict) -> None:
        """Lets them go on."""
        word = self.vmm.once("thaw")
        if word == "mute":
            time.sleep(3600)
        if word == "close":
            raise Gone
        if not self.vmm.frozen:
            self.error("bad_request", "it is not frozen")
            return
        self.vmm.thaws.append(req)
        self.vmm.thaw()
        self.send(OK, {"entropy_error": "no\tdevice"} if word == "unseeded" else {})

    def on_changes(self, req: dict) -> None:
        """The lines that a test has given (see Stream.fake)."""
        state = self.vmm.state
        self.vmm.changes_paths = req["paths"]
        if state["changes_mute"]:
            time.sleep(3600)
        if state["changes_raw"] is not None:
            self.send(OK, {})
            self.send(DATA_OUT, state["changes_raw"].encode())
            self.send(END_OUT)
            return
        if state["changes_error"]:
            self.error(*state["changes_error"])
            return
        self.send(OK, {})

        def path_of(line: dict) -> bytes:
            if "path" in line:
                return line["path"].encode()
            return base64.b64decode(line["path_base64"])

        text = b"".join(
            json.dumps(line).encode() + b"\n" for line in sorted(state["changes"], key=path_of)
        )
        for i in range(0, len(text), 50000):
            self.send(DATA_OUT, text[i : i + 50000])
        if state["changes_endless"]:
            while True:
                self.send(DATA_OUT, b"x" * 60000)
        self.send(END_OUT)

    def on_hashes(self, req: dict) -> None:
        """Hashes of what a test says is in the files."""
        body = self.body()
        assert body.endswith(b"\0")
        names = body[:-1].split(b"\0")
        self.vmm.state["hashed"] += len(names)
        self.send(OK, {})
        hashes = self.vmm.state["hashes"]
        out = b"".join(hashes.get(os.fsdecode(n), "-").encode() + b"\n" for n in names)
        if self.vmm.state["hashes_short"]:
            out = out[:-1]
        for i in range(0, len(out), 50000):
            self.send(DATA_OUT, out[i : i + 50000])
        self.send(END_OUT)

    def on_context(self, req: dict) -> None:
        """Python sessions: here they are only names."""
        state = self.vmm.state
        assert set(req) <= {"op", "id", "language", "cwd", "user"}
        if state["context_raw"] is not None:
            if state["context_raw"] == "mute":
                time.sleep(3600)
            if state["context_raw"] == "close":
                raise Gone
            self.send(OK, state["context_raw"].encode())
            return
        if state["context_error"]:
            self.error(*state["context_error"])
            return
        contexts = state["contexts"]

        def told(name: str) -> dict:
            word = "starting" if req["op"] in ("create", "restart") else "ready"
            return {"id": name, "language": "python", "state": word, **contexts[name]}

        if req["op"] == "list":
            self.send(OK, {"contexts": [told(name) for name in contexts]})
            return
        name = req["id"]
        if req["op"] == "create":
            assert req["language"] == "python"
            if name in contexts:
                self.error("exists", "there is a context of this name")
            elif len(contexts) == 8:
                self.error("too_many", "there are 8 contexts already")
            elif not os.path.isdir(req.get("cwd", "/tmp")):
                self.error("not_found", "cwd: no such directory")
            else:
                contexts[name] = {"cwd": req.get("cwd", "/tmp"), "user": req.get("user", "user")}
                self.send(OK, told(name))
        elif name not in contexts:
            self.error("not_found", "no such context")
        elif req["op"] == "restart":
            self.send(OK, told(name))
        else:
            assert req["op"] == "delete" and name != "default"
            answer = told(name)
            del contexts[name]
            self.send(OK, answer)

    # --- exec ---------------------------------------------------------------------------

    def body(self) -> bytes:
        """DATA* END."""
        parts = []
        while True:
            kind, payload = self.recv()
            if kind == END:
                return b"".join(parts)
            if kind != DATA:
                raise Gone
            parts.append(payload)

    def exit(self, code: int, reason: str, start: float, **more: object) -> None:
        """Sends the final EXIT."""
        ms = int((time.monotonic() - start) * 1000)
        told = {"exit_code": code, "reason": reason, "state": "preserved", "duration_ms": ms}
        self.send(EXIT, {**told, "truncated": False, "bytes_dropped": 0, **more})

    def on_exec(self, req: dict) -> None:
        """Runs a command of this host."""
        start = time.monotonic()
        assert req["language"] in LANGUAGES and req.get("user") in (None, "user", "root")
        assert ("argv" in req) == (req["language"] == "argv")
        assert 65536 <= req.get("output_limit", 16 << 20) <= 256 << 20
        self.req = req
        code = self.body()
        if self.vmm.state["inert"] and not code.startswith(b"#warm:"):
            req = {k: v for k, v in req.items() if k not in ("argv", "cwd", "env")}
            req["language"], code = "bash", b"cat"
        if self.vmm.mode == "exec-error":
            self.error("busy", "the session is dead")
            return
        if code.startswith(b"#warm:"):
            self.warm_up(code[6:].decode(), start)
            return
        if code.startswith(b"#fake:"):
            self.fake(code[6:].decode().strip(), start)
            return
        if "keep" in req:
            self.keep(req, code)
            return
        if req.get("cwd") and not os.path.isdir(req["cwd"]):
            self.error("not_found", f"cannot use {req['cwd']} as working directory: none")
            return
        if (
            req["language"] == "python"
            and req.get("context", "default") not in self.vmm.state["contexts"]
        ):
            self.error("not_found", "no such context")
            return
        if req["language"] == "javascript":
            self.error("not_found", "this template has no node")
            return
        if req["language"] == "argv" and not shutil.which(req["argv"][0]):
            self.error("not_found", f"{req['argv'][0]}: no such program")
            return
        script = os.memfd_create("code", 0)
        os.write(script, code)
        python = ["/usr/bin/python3", "-u"] if req["language"] == "python" else ["/bin/bash"]
        argv = req.get("argv") or [*python, f"/proc/self/fd/{script}"]
        run = Run(self, req, argv, [script])
        os.close(script)
        self.vmm.commands.add(run.proc.pid)
        try:
            run.relay()
        finally:
            self.vmm.commands.discard(run.proc.pid)
            run.close()

    def warm_up(self, what: str, start: float) -> None:
        """A template's script."""
        word, _, rest = what.strip().partition(" ")
        if word == "hang":
            time.sleep(3600)
        if word == "fail":
            self.send(STDERR, b"x" * 3000 + b"\nTraceback:\n" + rest.encode() + b"\n")
            self.exit(1, "exited", start)
            return
        if word == "set":
            key, _, value = rest.partition(" ")
            self.vmm.state["vars"][key] = value
        self.send(STDOUT, b"warming up\n")
        self.exit(0, "exited", start)

    def fake(self, what: str, start: float) -> None:
        """Misbehaviour on request."""
        word, _, rest = what.partition(" ")
        if word == "poweroff":
            self.send(STDOUT, b"going down")
            self.vmm.exit(2, "the guest powered off")
        elif word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "hang-up":
            self.vmm.hang_up()
            time.sleep(3600)
        elif word == "close":
            self.send(STDOUT, b"half a line")
            raise Gone
        elif word == "pieces":
            self.exit(self.pieces, "exited", start)
        elif word == "badframe":
            self.sock.sendall(b"\xff" * 64)
            time.sleep(3600)
        elif word == "badtype":
            self.send(OK, {})
            time.sleep(3600)
        elif word == "raw":
            kind, _, payload = rest.partition(" ")
            self.send(int(kind), payload.encode())
            time.sleep(0.05)
            self.exit(0, "exited", start)
        elif word == "event":
            self.send(EVENT, rest.encode())
            self.exit(0, "exited", start)
        elif word == "parts":
            # An event of so many bytes in pieces, output between them.
            text = json.dumps({"type": "result", "data": {"text/plain": "x" * int(rest)}}).encode()
            pieces = [text[i : i + CHUNK] for i in range(0, len(text), CHUNK)]
            for piece in pieces[:-1]:
                self.send(EVENT_PART, piece)
                self.send(STDOUT, b"between\n")
            self.send(EVENT, pieces[-1])
            self.exit(0, "exited", start)
        elif word == "split":
            # An event in pieces of so many bytes.
            step, _, text = rest.partition(" ")
            whole, n = text.encode(), int(step)
            pieces = [whole[i : i + n] for i in range(0, len(whole), n)]
            for piece in pieces[:-1]:
                self.send(EVENT_PART, piece)
            self.send(EVENT, pieces[-1])
            self.exit(0, "exited", start)
        elif word == "partial":
            # The beginning of an event, so many bytes of it; and nothing more.
            for i in range(0, int(rest), CHUNK):
                self.send(EVENT_PART, b"x" * min(CHUNK, int(rest) - i))
            self.send(STDOUT, b"sent\n")
            assert self.recv()[0] == CANCEL
            self.exit(130, "cancelled", start)
        elif word == "drop":
            # The beginning of an event that is taken back, and a whole one.
            self.send(EVENT_PART, b'{"type":"result","data":{"a":"')
            self.send(EVENT_PART)
            if rest:
                self.send(EVENT, rest.encode())
            self.exit(0, "exited", start)
        elif word == "endless":
            # Frames of this kind without an end.
            while True:
                self.send(int(rest), b"x" * CHUNK)
        elif word == "flood":
            kind, _, payload = rest.partition(" ")
            self.flood(int(kind), bytes.fromhex(payload))
        elif word == "endless-event":
            text = json.dumps({"type": "result", "data": {"text/plain": "x" * 60000}}).encode()
            while not (rest != "deaf" and select.select([self.sock], [], [], 0)[0]):
                self.send(EVENT, text)
            assert self.recv()[0] == CANCEL
            self.exit(130, "cancelled", start)
        elif word == "ack":
            self.send(STDIN_ACK, bytes.fromhex(rest))
            time.sleep(3600)
        elif word == "deaf":
            # Neither deadline nor INTERRUPT nor CANCEL; but it answers to PING.
            while True:
                kind, payload = self.recv()
                if kind == PING:
                    self.send(PONG, payload)
                elif kind == CANCEL and rest == "cancel":
                    self.exit(137, "cancelled", start)
                    return
        elif word == "last":
            self.exit(0, "exited", start)
            self.sock.shutdown(socket.SHUT_WR)
            time.sleep(3600)
        elif word == "trickle":
            # Deaf, but never silent.
            while True:
                self.send(STDOUT, b".")
                time.sleep(0.05)
        elif word == "late":
            # The end comes so many seconds after the time limit.
            time.sleep(self.req["timeout_ms"] / 1000 + float(rest))
            self.exit(124, "timeout", start)
        elif word == "orders":
            # Says which orders came, until the one that ends it.
            names = {INTERRUPT: "interrupt", CANCEL: "cancel"}
            while True:
                kind, payload = self.recv()
                if kind in names:
                    self.send(STDOUT, names[kind].encode() + b"\n")
                if names.get(kind) == rest:
                    self.exit(130, "cancelled" if kind == CANCEL else "interrupted", start)
                    return
        elif word == "request":
            self.send(STDOUT, json.dumps(self.req, sort_keys=True).encode() + b"\n")
            self.exit(0, "exited", start)
        elif word == "exit":
            told = {"exit_code": 0, "reason": "exited", "state": "preserved", "duration_ms": 1}
            told |= {"truncated": False, "bytes_dropped": 0}
            self.send(EXIT, told | json.loads(rest))
        elif word == "bytes":
            for part in rest.split():
                self.send(STDOUT, bytes.fromhex(part))
            self.exit(0, "exited", start)
        elif word == "mute":
            time.sleep(3600)
        elif word == "pong":
            pings = 0
            try:
                while True:
                    self.sock.settimeout(max(start + float(rest) - time.monotonic(), 0.001))
                    kind, payload = self.recv()
                    if kind == PING:
                        pings += 1
                        self.send(PONG, payload)
            except TimeoutError:
                self.sock.settimeout(None)
            self.send(STDOUT, b"pings %d\n" % pings)
            self.exit(0, "exited", start)
        elif word == "error":
            code, _, message = rest.partition(" ")
            self.error(code, message)
        elif word == "stderr":
            # Bytes in hexadecimal, so many times over.
            times, _, data = rest.partition(" ")
            for _ in range(int(times)):
                with contextlib.suppress(BlockingIOError):
                    os.write(2, bytes.fromhex(data))
            self.exit(0, "exited", start)
        elif word == "console":
            self.vmm.console(rest.encode() + b"\n")
            self.exit(0, "exited", start)
        elif word == "info":
            self.info(start)
        elif word == "guest":
            self.vmm.guest.run(self, rest, start)
        elif word == "set":
            self.vmm.state.update(json.loads(rest))
            self.exit(0, "exited", start)
        elif word == "load":
            with open(rest, encoding="ascii") as f:
                self.vmm.state.update(json.load(f))
            self.exit(0, "exited", start)
        elif word == "get":
            self.send(STDOUT, json.dumps(self.vmm.state[rest]).encode() + b"\n")
            self.exit(0, "exited", start)
        elif word == "once":
            key, _, value = rest.partition(" ")
            self.vmm.once_words.setdefault(key, []).append(value)
            self.exit(0, "exited", start)
        elif word == "disk":
            self.vmm.send(0x89, code=int(rest), value=1 + self.vmm.disk_errors)
            self.vmm.disk_errors += 1
            time.sleep(0.2)
            self.exit(0, "exited", start)
        elif word == "halt":
            # The devices are reset: streams close, and nobody answers any more.
            self.vmm.state["halted"] = True
            raise Gone

    def info(self, start: float) -> None:
        """What this process was given, as JSON on stdout."""
        out: dict[str, object] = {}
        for name, fd in self.vmm.fds.items():
            st = os.fstat(fd)
            try:
                seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            except OSError:
                seals = -1
            head = os.pread(fd, 1100, 0).hex() if name != "kvm" else ""
            out[name] = {"size": st.st_size, "stored": st.st_blocks * 512, "seals": seals, "head": head}
        open_fds = {}
        for fd in os.listdir("/proc/self/fd"):
            try:
                open_fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                pass
        out["open"] = open_fds
        out["env"] = dict(os.environ)
        out["argv"] = sys.argv
        out["pid"] = os.getpid()
        out["boot"] = self.vmm.boot
        out["renew"] = self.vmm.renew
        out["thaws"] = self.vmm.thaws
        out["connects"] = self.vmm.connects
        small = ("generation", "vars", "hashed", "frozen", "leaf")
        out["state"] = {k: self.vmm.state[k] for k in small}
        out["paths"] = self.vmm.changes_paths
        text = json.dumps(out).encode() + b"\n"
        for i in range(0, len(text), CHUNK):
            self.send(STDOUT, text[i : i + CHUNK])
        self.exit(0, "exited", start)
