"""Files of the agent behind the stand-in VMM: PUT, GET and FILE, some of which fail in their own way."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import signal
import stat
import time

PING, DATA, END = 3, 6, 7
PONG, OK, DATA_OUT, END_OUT = 0x85, 0x86, 0x87, 0x88
CHUNK = 65536
CODES = {
    errno.ENOENT: "not_found",
    errno.EISDIR: "is_directory",
    errno.ENOTDIR: "not_a_directory",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EEXIST: "exists",
    errno.ENOTEMPTY: "not_empty",
    errno.ENAMETOOLONG: "bad_request",
    errno.EINVAL: "bad_request",
}
MEMBERS = {
    "stat": {"path"},
    "list": {"path", "depth"},
    "mkdir": {"path", "mode", "parents"},
    "remove": {"path", "recursive"},
    "rename": {"path", "to", "overwrite"},
    "chmod": {"path", "mode"},
}


WRITTEN: set[str] = set()  # parts of uploads that a stream writes


class Gone(Exception):
    """The daemon has closed the stream."""


class Files:
    """Part of a stream that has send(), recv() and error()."""

    def guard(self, path: str, change: bool) -> None:
        """
        The files are this host's: none is changed outside of the directory that the test has given,
        whatever a request says; an inert one does not read there either.
        """
        root = self.vmm.state["files"] or "/nowhere"
        parent = os.path.realpath(os.path.dirname(path))
        inside = all(f"{p}/".startswith(f"{root}/") for p in (parent, os.path.realpath(path)))
        if os.path.realpath(path) == root:
            inside = not change
        if inside or (change and path.startswith("/tmp/podflare-test-")):
            return
        if change or self.vmm.state["inert"]:
            raise PermissionError(errno.EPERM, "not a file of this test")

    def only_pongs(self, seconds: float) -> None:
        """Says nothing for so long but that it lives, when it is asked."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                kind, payload = self.recv()
            except TimeoutError:
                break
            assert kind == PING, kind
            self.sock.settimeout(None)
            self.send(PONG, payload)
        self.sock.settimeout(None)

    def slow_put(self, path: str, seconds: float) -> None:
        """Takes the beginning piece by piece, and has to think in the end."""
        size = pings = 0
        while True:
            kind, payload = self.recv()
            if kind == END:
                break
            if kind == PING:
                pings += 1
                self.send(PONG, payload)
                continue
            if size < 1 << 20:
                time.sleep(seconds / 64)
            size += len(payload)
        self.only_pongs(seconds)
        self.send(OK, {"path": path, "size": size})

    def on_put(self, req: dict) -> None:
        """Writes a file; some paths fail in their own way."""
        path = req["path"]
        if path == "/fake/stall":
            time.sleep(3600)
        if path.startswith("/fake/slow/"):
            self.slow_put(path, float(path.rpartition("/")[2]))
            return
        if path == "/fake/never-ok":
            while self.recv()[0] != END:
                pass
            time.sleep(3600)
        if path == "/fake/early-ok":
            self.send(OK, {"path": path, "size": 0})
            time.sleep(3600)
        if path == "/fake/kill":
            self.recv()
            os.kill(os.getpid(), signal.SIGKILL)
        path = os.path.join("/tmp", path)
        try:
            self.guard(path, True)
        except PermissionError as e:
            self.error("permission_denied", f"{path}: {e.strerror}")
            raise Gone from e
        if os.path.isdir(path):
            self.error("is_directory", f"{path} is a directory")
            raise Gone
        if "upload" in req:
            self.put_part(path, req)
            return
        size, tmp = 0, path + ".part"
        done = False
        try:
            with open(tmp, "wb") as f:
                while True:
                    kind, payload = self.recv()
                    if kind == END:
                        break
                    size += len(payload)
                    if "/full" in path and size > 1 << 20:
                        self.error("no_space", "no space left in the sandbox")
                        raise Gone
                    f.write(payload)
            os.rename(tmp, path)
            done = True
            self.send(OK, {"path": path, "size": size})
        finally:
            if not done and os.path.exists(tmp):
                os.unlink(tmp)

    def put_part(self, path: str, req: dict) -> None:
        """An upload that may be resumed; what came stays when the stream ends."""
        assert set(req) <= {"path", "upload", "size", "offset"}
        tmp = f"{path}.part-{req['upload']}-{req['size']}"
        have = os.path.getsize(tmp) if os.path.exists(tmp) else 0
        if "offset" in req and req["offset"] not in (0, have):
            self.error("wrong_offset", f"this upload has {have} bytes of {req['size']} so far")
            raise Gone
        if tmp in WRITTEN:
            self.error("upload_busy", "another stream writes this upload")
            raise Gone
        if "offset" in req:
            WRITTEN.add(tmp)
            try:
                with open(tmp, "ab" if req["offset"] else "wb", buffering=0) as f:
                    while True:
                        kind, payload = self.recv()
                        if kind == END:
                            break
                        f.write(payload)
                    have = f.tell()
            finally:
                WRITTEN.discard(tmp)
        else:
            assert self.recv()[0] == END
        if have == req["size"]:
            os.rename(tmp, path)
        self.send(OK, {"path": path, "size": have, "complete": have == req["size"]})

    def on_get(self, req: dict) -> None:
        """Reads a file; some paths fail in their own way."""
        path = req["path"]
        if path == "/fake/endless":
            self.send(OK, {"path": path, "size": -1, "mode": 0o644})
            while True:
                self.send(DATA_OUT, b"x" * CHUNK)
        if path == "/fake/mute":
            time.sleep(3600)
        if path == "/fake/stops":
            self.send(OK, {"path": path, "size": 100000, "mode": 0o644})
            self.send(DATA_OUT, b"x" * 50000)
            time.sleep(3600)
        if path.startswith("/fake/slow/"):
            seconds = float(path.rpartition("/")[2])
            self.only_pongs(seconds)
            self.send(OK, {"path": path, "size": 100000, "mode": 0o644})
            for _ in range(2):
                self.only_pongs(seconds)
                self.send(DATA_OUT, b"x" * 50000)
            self.send(END_OUT)
            return
        if path == "/fake/flood":
            self.send(OK, {"path": path, "size": -1, "mode": 0o644})
            self.send(DATA_OUT, b"x")
            self.flood(DATA_OUT)
        if path == "/fake/broken":
            self.send(OK, {"path": path, "size": 100000, "mode": 0o644})
            self.send(DATA_OUT, b"x" * 50000)
            self.error("io_error", "read failed")
            return
        if path == "/fake/short":
            self.send(OK, {"path": path, "size": 100000, "mode": 0o644})
            self.send(DATA_OUT, b"x" * 50000)
            self.send(END_OUT)
            return
        if path == "/fake/long":
            self.send(OK, {"path": path, "size": 10, "mode": 0o644})
            self.send(DATA_OUT, b"x" * 50000)
            self.send(END_OUT)
            return
        if path == "/fake/unknown":
            self.send(OK, {"path": path, "size": -1, "mode": 0o644})
            for _ in range(20):
                self.send(DATA_OUT, b"y" * 10000)
            self.send(END_OUT)
            return
        if path == "/fake/kill":
            self.send(OK, {"path": path, "size": 100000, "mode": 0o644})
            self.send(DATA_OUT, b"x" * 50000)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)
        path = os.path.join("/tmp", path)
        try:
            self.guard(path, False)
            if os.path.isdir(path):
                self.error("is_directory", f"{path} is a directory")
                return
            with open(path, "rb") as f:
                size = os.fstat(f.fileno()).st_size
                self.send(OK, {"path": path, "size": size, "mode": 0o644})
                f.seek(req.get("offset", 0))
                left = req.get("length", size)
                while left and (data := f.read(min(left, CHUNK))):
                    self.send(DATA_OUT, data)
                    left -= len(data)
            self.send(END_OUT)
        except FileNotFoundError:
            self.error("not_found", f"{path}: no such file")
        except PermissionError:
            self.error("permission_denied", f"{path}: permission denied")

    # --- FILE ---------------------------------------------------------------------------

    def on_file(self, req: dict) -> None:
        """What is done without the content."""
        op = req.pop("op")
        assert set(req) <= MEMBERS[op], req
        if raw := self.vmm.state["file_raw"]:
            self.raw_file(raw)
            return
        if self.vmm.state["file_error"]:
            self.error(*self.vmm.state["file_error"])
            return
        path = os.path.join("/tmp", req["path"])
        try:
            self.guard(path, op not in ("stat", "list"))
            getattr(self, "file_" + op)(path, req)
        except OSError as e:
            self.error(CODES.get(e.errno, "io_error"), f"{path}: {e.strerror}")

    def raw_file(self, raw: str) -> None:
        """Whatever a test wants to be said."""
        word, _, rest = raw.partition(" ")
        if word == "mute":
            time.sleep(3600)
        if word == "close":
            raise Gone
        if word == "ok":
            self.send(OK, rest.encode())
            return
        if word == "slow":
            self.only_pongs(float(rest))
        self.send(OK, {})
        if word == "stops":
            self.send(DATA_OUT, json.dumps(self.entry("/tmp")).encode() + b"\n")
            time.sleep(3600)
        if word == "slow":
            for path in ("/tmp", "/usr"):
                self.only_pongs(float(rest))
                self.send(DATA_OUT, json.dumps(self.entry(path)).encode() + b"\n")
            self.send(END_OUT)
            return
        if word == "endless":
            while True:
                self.send(DATA_OUT, rest.encode().ljust(60000, b"\n" if not rest else b" "))
        if word == "flood":
            self.flood(DATA_OUT)
        if word == "many":
            line = json.dumps(self.entry("/tmp")).encode() + b"\n"
            block = line * (60000 // len(line))
            for _ in range(int(rest) // (60000 // len(line))):
                self.send(DATA_OUT, block)
        elif word == "bytes":
            for byte in rest.encode():
                self.send(DATA_OUT, bytes([byte]))
        elif word == "error":
            self.send(DATA_OUT, json.dumps(self.entry("/tmp")).encode() + b"\n")
            self.error("io_error", "it broke")
            return
        elif word == "exit":
            self.send(DATA_OUT, json.dumps(self.entry("/tmp")).encode() + b"\n")
            raise Gone
        elif word == "frame":
            self.send(int(rest), b"{}")
            return
        else:
            self.send(DATA_OUT, rest.encode())
        self.send(END_OUT)

    @staticmethod
    def entry(path: str) -> dict:
        """One file."""
        st = os.lstat(path)

        def kind(mode: int) -> str:
            words = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}
            return words.get(stat.S_IFMT(mode), "other")

        def name(key: str, text: str) -> dict:
            try:
                text.encode()
            except UnicodeEncodeError:
                return {key + "_base64": base64.b64encode(os.fsencode(text)).decode()}
            return {key: text}

        out = {**name("path", path), "type": kind(st.st_mode), "size": st.st_size}
        out |= {"mode": stat.S_IMODE(st.st_mode), "mtime_ms": st.st_mtime_ns // 1_000_000}
        out |= {"uid": st.st_uid, "gid": st.st_gid}
        if out["type"] == "link":
            out |= name("link", os.readlink(path))
            try:
                out["target_type"] = kind(os.stat(path).st_mode)
            except OSError:
                pass
        return out

    def file_stat(self, path: str, req: dict) -> None:
        """One."""
        self.send(OK, self.entry(path))

    def file_list(self, path: str, req: dict) -> None:
        """All below a directory, sorted by path."""
        found = []

        def walk(at: str, depth: int) -> None:
            for name in os.listdir(at):
                full = os.path.join(at, name)
                found.append(self.entry(full))
                if depth > 1 and os.path.isdir(full) and not os.path.islink(full):
                    walk(full, depth - 1)

        walk(path, req["depth"])
        found.sort(key=lambda e: e.get("path", ""))
        self.send(OK, {})
        text = b"".join(json.dumps(e).encode() + b"\n" for e in found)
        for i in range(0, len(text), 50000):
            self.send(DATA_OUT, text[i : i + 50000])
        self.send(END_OUT)

    def file_mkdir(self, path: str, req: dict) -> None:
        """A directory, with those above it."""
        if os.path.isdir(path):
            self.send(OK, {"created": False})
            return
        if req.get("parents", True):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path)
        os.chmod(path, req.get("mode", 0o755))
        self.send(OK, {"created": True})

    def file_remove(self, path: str, req: dict) -> None:
        """A file, or a directory."""
        if not os.path.isdir(path) or os.path.islink(path):
            os.unlink(path)
        elif req.get("recursive", False):
            shutil.rmtree(path)
        else:
            os.rmdir(path)
        self.send(OK, {})

    def file_rename(self, path: str, req: dict) -> None:
        """Another name."""
        to = os.path.join("/tmp", req["to"])
        self.guard(to, True)
        if os.path.lexists(to) and not req.get("overwrite", True):
            raise FileExistsError(errno.EEXIST, "File exists")
        os.rename(path, to)
        self.send(OK, {})

    def file_chmod(self, path: str, req: dict) -> None:
        """Other permissions."""
        os.chmod(path, req["mode"])
        self.send(OK, {})
