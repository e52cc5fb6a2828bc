# SPDX-License-Identifier: Apache-2.0
"""A fake daemon with one sandbox in it, whose files are a real directory, and in which commands run, wait,
reach their time-outs and are interrupted as api/openapi.yaml has it. Code is in a language of a few words
(`Run.code`), one a line; of programs there are tar and the one that watches files."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Optional

from fake_daemon import SANDBOX_ID, FakeDaemon, Request

WATCH = Path(__file__).resolve().parents[3] / "guest" / "repl" / "watch.py"
MEMBERS = set(
    "code argv language rich timeout context_id cwd env user stdin stdin_base64 output_limit exec_id "
    "output_limit_action queue_timeout".split()
)


class Interrupted(Exception):
    pass


class Refused(Exception):
    def __init__(self, status: int, code: str, text: str, field: Optional[str] = None) -> None:
        self.status = status
        self.body = {"error": text, "code": code, **({"field": field} if field else {})}


class Run:
    """One command."""

    def __init__(self, guest: "FakeGuest", request: Request, body: dict[str, Any]) -> None:
        self.guest, self.request, self.body = guest, request, body
        self.id = body.get("exec_id") or f"own_{len(guest.runs)}"
        self.context = body.get("context_id", "default")
        self.state = "queued"
        self.queued_at = int(time.time() * 1000)
        self.started_at: Optional[int] = None
        self.stop = threading.Event()
        self.why = "interrupted"
        self.stubborn = False
        self.seq = 0

    def send(self, **event: Any) -> None:
        line = {"seq": self.seq, "ts": 1776510028036, **event}
        self.seq += 1
        self.request.send(json.dumps(line).encode() + b"\n")

    def interrupt(self, escalate: bool) -> None:
        if escalate or not self.stubborn:
            self.stop.set()

    def wait(self, seconds: Optional[float]) -> None:
        if self.stop.wait(seconds):
            raise Interrupted

    def run(self) -> None:
        lock = self.guest.locks.setdefault(self.context, threading.Lock())
        mine = False
        while not mine and not self.stop.is_set():
            mine = lock.acquire(timeout=0.01)
        try:
            if self.stop.is_set():
                self.exit(130, "interrupted")
            else:
                self.start()
        finally:
            self.state = "ended"
            if mine:
                lock.release()

    def start(self) -> None:
        self.state, self.started_at = "running", int(time.time() * 1000)
        self.send(type="started", exec_id=self.id)
        timer = threading.Timer(self.body.get("timeout") or 3600, self.over_time)
        timer.daemon = True
        timer.start()
        try:
            if "argv" not in self.body:
                code = self.code()
            elif any(one.endswith("/watch.py") for one in self.body["argv"]):
                code = self.watch()
            else:
                code = self.tar()
            self.exit(code, "exited")
        except Interrupted:
            self.exit({"timeout": 124, "interrupted": 130}[self.why], self.why)
        finally:
            timer.cancel()

    def over_time(self) -> None:
        self.why = "timeout"
        self.stop.set()

    def exit(self, code: int, reason: str) -> None:
        # Before the event: who has read it finds that the call has ended.
        self.state = "ended"
        fields = {"state": "preserved", "duration_ms": 7, "truncated": False, "bytes_dropped": 0}
        self.send(type="exit", data=code, exit_code=code, termination_reason=reason, **fields)

    def code(self) -> int:
        for line in self.body["code"].splitlines():
            word, _, rest = line.strip().partition(" ")
            if word == "print":
                self.send(type="stdout", data=f"{rest}\n")
            elif word == "warn":
                self.send(type="stderr", data=f"{rest}\n")
            elif word == "sleep":
                self.wait(float(rest))
            elif word == "hang":
                self.stubborn = True
                self.wait(None)
            elif word == "show":
                self.send(type="result", data=json.loads(rest))
            elif word == "raise":
                self.send(type="error", name=rest, value="v", traceback="T")
                return 1
            elif word == "body":
                shown = {k: v for k, v in self.body.items() if k not in ("code", "exec_id")}
                self.send(type="stdout", data=json.dumps(shown, sort_keys=True))
            elif word == "set":
                name, _, value = rest.partition(" ")
                self.guest.variables.setdefault(self.context, {})[name] = value
            elif word == "get":
                value = self.guest.variables.get(self.context, {}).get(rest, "nothing")
                self.send(type="stdout", data=value)
            elif word:
                self.send(type="stderr", data=f"what is {word}?\n")
                return 1
        return 0

    def watch(self) -> int:
        """The real program, until it ends, the call is interrupted, or the client leaves."""
        *options, path = self.body["argv"]
        options = [str(WATCH) if one.endswith("/watch.py") else one for one in options]
        process = subprocess.Popen(
            [*options, f"{self.guest.root}{path}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert process.stdout is not None and process.stderr is not None
        root = json.dumps(str(self.guest.root))[1:-1].encode()
        self.guest.watches += 1
        try:
            while not self.stop.is_set() and not self.request.left():
                if not select.select([process.stdout], [], [], 0.02)[0]:
                    continue
                line = process.stdout.readline()
                if not line:
                    errors = process.stderr.read().decode()
                    if errors:
                        self.send(type="stderr", data=errors)
                    return process.wait()
                line = self.guest.watch_edit(line.replace(b'"' + root, b'"'))
                half = len(line) // 2  # events are no lines
                self.send(type="stdout", data=line[:half].decode())
                self.send(type="stdout", data=line[half:].decode())
                if b'"again"' in line:
                    return 0
            self.wait(0)
            return 137
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
            self.guest.watches -= 1

    def tar(self) -> int:
        argv = [re.sub(r"(?<==)/", f"{self.guest.root}/", one) for one in self.body["argv"]]
        if argv[0] != "tar":
            self.send(type="stdout", data=json.dumps(self.body["argv"]))
            return 0
        done = subprocess.run(argv, capture_output=True, check=False)
        if done.stderr:
            self.send(type="stderr", data=done.stderr.decode())
        return done.returncode


class FakeGuest(FakeDaemon):
    """root: the directory that is / to the sandbox."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        for name in ("tmp", "home/user"):
            (root / name).mkdir(parents=True)
        self.lock = threading.Lock()
        self.locks: dict[str, threading.Lock] = {}
        self.runs: dict[str, Run] = {}
        self.variables: dict[str, dict[str, str]] = {}
        self.contexts = {"default": self.context("default", "/home/user", "user")}
        self.late = 0.0  # seconds until an exec is known
        self.cut_after: Optional[int] = None  # bytes of the next download
        self.parts: dict[str, bytes] = {}  # of uploads that may be resumed
        self.refuse_parts: list[str] = []  # codes
        self.watches = 0  # programs that run
        self.watch_edit: Callable[[bytes], bytes] = lambda line: line

    def answer_for(self, request: Request) -> Optional[Callable[[Request], None]]:
        own = super().answer_for(request)
        if own is not None:
            return own
        for method, pattern, handler in ROUTES:
            match = re.fullmatch(f"/v1/sandboxes/{SANDBOX_ID}{pattern}", request.path)
            if match and method == request.method:

                def answer(r: Request) -> None:
                    try:
                        handler(self, r, *match.groups())
                    except Refused as exc:
                        r.reply(exc.status, exc.body)
                    except OSError as exc:
                        r.reply(*error_of(exc))

                return answer
        return None

    # Commands.

    def execute(self, request: Request) -> None:
        body = request.json
        unknown = set(body) - MEMBERS
        if unknown:
            raise Refused(400, "invalid_request", f"{sorted(unknown)[0]} is not known", "body")
        if ("argv" in body) == ("code" in body):
            raise Refused(400, "invalid_request", "either code or argv", "code")
        time.sleep(self.late)
        with self.lock:
            run = Run(self, request, body)
            # For others than Python a context is but the name of a queue.
            if "code" in body and body["language"] == "python" and run.context not in self.contexts:
                raise Refused(404, "context_not_found", f"no context {run.context}")
            if run.id in self.runs and self.runs[run.id].state != "ended":
                raise Refused(409, "exec_exists", f"{run.id} runs already")
            self.runs[run.id] = run
        request.start_stream({"podflare-exec-id": run.id})
        try:
            run.run()
            request.end_stream()
        finally:
            run.stop.set()

    def execs(self, request: Request) -> None:
        shown = [
            {
                "exec_id": run.id,
                "state": run.state,
                "language": run.body.get("language", "python"),
                "context_id": run.context,
                "queued_at": run.queued_at,
                "started_at": run.started_at,
                "timeout": run.body.get("timeout", 300),
            }
            for run in self.runs.values()
            if run.state != "ended"
        ]
        request.reply(200, {"execs": shown})

    def interrupt(self, request: Request, exec_id: str) -> None:
        run = self.runs.get(exec_id)
        if run is None:
            raise Refused(404, "exec_not_found", f"no call {exec_id}")
        state = run.state
        if state != "ended":
            run.interrupt(request.json["escalate"] or state == "queued")
        request.reply(200, {"exec_id": exec_id, "state": state})

    # Contexts.

    def context(self, id: str, cwd: str, user: str) -> dict[str, Any]:
        return {"context_id": id, "language": "python", "state": "ready", "cwd": cwd, "user": user}

    def list_contexts(self, request: Request) -> None:
        request.reply(200, {"contexts": list(self.contexts.values())})

    def create_context(self, request: Request) -> None:
        wish = request.json
        id = wish.get("context_id") or f"ctx_{len(self.contexts)}"
        if id in self.contexts:
            raise Refused(409, "context_exists", f"there is a context {id}")
        if len(self.contexts) == 8:
            raise Refused(429, "too_many_contexts", "8 contexts at most")
        self.contexts[id] = self.context(
            id, wish.get("cwd", "/home/user"), wish.get("user", "user")
        )
        request.reply(200, self.contexts[id])

    def restart_context(self, request: Request, id: str) -> None:
        if id not in self.contexts:
            raise Refused(404, "context_not_found", f"no context {id}")
        self.variables.pop(id, None)
        request.reply(200, self.contexts[id])

    def delete_context(self, request: Request, id: str) -> None:
        if id == "default":
            raise Refused(400, "invalid_request", "default stays", "context_id")
        if self.contexts.pop(id, None) is None:
            raise Refused(404, "context_not_found", f"no context {id}")
        request.reply(204)

    # Files.

    def local(self, path: str) -> Path:
        return Path(f"{self.root}{os.path.normpath(os.path.join('/home/user', path))}")

    def remote(self, path: Path) -> str:
        return "/" + str(path.relative_to(self.root)).removeprefix(".")

    def put(self, request: Request) -> None:
        path = self.local(request.query["path"])
        path.parent.mkdir(parents=True, exist_ok=True)
        if "upload_id" in request.query:
            self.put_part(request, path)
            return
        path.write_bytes(request.body)
        request.reply(200, {"path": self.remote(path), "size": len(request.body)})

    def put_part(self, request: Request, path: Path) -> None:
        size = int(request.query["size"])
        part = f"{request.query['path']} {request.query['upload_id']} {size}"
        have = self.parts.get(part, b"")
        if self.refuse_parts:
            raise Refused(409, self.refuse_parts.pop(0), "not now")
        if "offset" in request.query:
            if int(request.query["offset"]) not in (0, len(have)):
                raise Refused(409, "wrong_offset", f"this upload has {len(have)} bytes")
            have = self.parts[part] = have[: int(request.query["offset"])] + request.body
        if request.was_cut:
            request.cut()
            return
        if len(have) == size:
            path.write_bytes(self.parts.pop(part))
        reply = {"path": self.remote(path), "size": len(have), "complete": len(have) == size}
        request.reply(200, reply)

    def get(self, request: Request) -> None:
        data = self.local(request.query["path"]).read_bytes()
        status, headers = 200, {}
        if "range" in request.headers:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers["range"])
            assert match is not None
            first = int(match[1])
            if first >= len(data):
                raise Refused(416, "invalid_request", "beyond the end", "range")
            last = min(int(match[2] or len(data)), len(data) - 1)
            headers["content-range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[first : last + 1]
        if self.cut_after is not None and len(data) > self.cut_after:
            data, self.cut_after = data[: self.cut_after], None
            request.reply(status, data, headers, announce=len(data) + 1)
            request.cut()
        else:
            request.reply(status, data, headers)

    def describe(self, path: Path) -> dict[str, Any]:
        status = os.lstat(path)
        kind = type_of(status.st_mode)
        reply = {
            "path": self.remote(path),
            "type": kind,
            "size": status.st_size,
            "mode": stat.S_IMODE(status.st_mode),
            "mtime_ms": status.st_mtime_ns // 1_000_000,
            "uid": 1000,
            "gid": 1000,
        }
        if kind == "link":
            reply["link"] = os.readlink(path)
            if path.exists():
                reply["target_type"] = type_of(os.stat(path).st_mode)
        return reply

    def stat(self, request: Request) -> None:
        request.reply(200, self.describe(self.local(request.query["path"])))

    def list(self, request: Request) -> None:
        def below(folder: Path, depth: int) -> list[dict[str, Any]]:
            found = []
            for one in folder.iterdir():
                found.append(self.describe(one))
                if depth > 1 and one.is_dir() and not one.is_symlink():
                    found += below(one, depth - 1)
            return found

        depth = int(request.query["depth"])
        if not 1 <= depth <= 16:
            raise Refused(400, "invalid_request", "depth must be from 1 to 16", "depth")
        entries = below(self.local(request.query["path"]), depth)
        request.reply(200, {"entries": sorted(entries, key=lambda one: one["path"])})

    def mkdir(self, request: Request) -> None:
        wish = request.json
        path = self.local(wish["path"])
        if path.is_dir():
            request.reply(200, {"created": False})
            return
        path.mkdir(mode=wish.get("mode", 0o755), parents=wish["parents"])
        request.reply(200, {"created": True})

    def remove(self, request: Request) -> None:
        path = self.local(request.json["path"])
        if request.json["recursive"] and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
        request.reply(204)

    def rename(self, request: Request) -> None:
        wish = request.json
        if not wish["overwrite"] and os.path.lexists(self.local(wish["to"])):
            raise Refused(409, "exists", "there is one of that name")
        self.local(wish["path"]).rename(self.local(wish["to"]))
        request.reply(204)

    def chmod(self, request: Request) -> None:
        os.chmod(self.local(request.json["path"]), request.json["mode"])
        request.reply(204)


def type_of(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return "link"
    return "dir" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"


def error_of(exc: OSError) -> tuple[int, dict[str, Any]]:
    kinds: list[tuple[type[OSError], int, str]] = [
        (FileNotFoundError, 404, "file_not_found"),
        (FileExistsError, 409, "exists"),
        (NotADirectoryError, 400, "not_a_directory"),
        (IsADirectoryError, 400, "is_directory"),
    ]
    for kind, status, code in kinds:
        if isinstance(exc, kind):
            return status, {"error": exc.strerror, "code": code}
    return 409, {"error": exc.strerror, "code": "not_empty"}


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/exec", FakeGuest.execute),
    ("GET", "/exec", FakeGuest.execs),
    ("POST", r"/exec/([\w-]+)/interrupt", FakeGuest.interrupt),
    ("GET", "/contexts", FakeGuest.list_contexts),
    ("POST", "/contexts", FakeGuest.create_context),
    ("POST", r"/contexts/([\w-]+)/restart", FakeGuest.restart_context),
    ("DELETE", r"/contexts/([\w-]+)", FakeGuest.delete_context),
    ("PUT", "/files", FakeGuest.put),
    ("GET", "/files", FakeGuest.get),
    ("GET", "/files/stat", FakeGuest.stat),
    ("GET", "/files/list", FakeGuest.list),
    ("POST", "/files/mkdir", FakeGuest.mkdir),
    ("POST", "/files/remove", FakeGuest.remove),
    ("POST", "/files/rename", FakeGuest.rename),
    ("POST", "/files/chmod", FakeGuest.chmod),
]
