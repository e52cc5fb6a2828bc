# SPDX-License-Identifier: Apache-2.0
"""A fake daemon that remembers: sandboxes that can be forked, merged and compared, with the replies
that api/openapi.yaml describes. What runs in them is a language of six words (`FakeFleet.run`)."""

from __future__ import annotations

import json
import re
import threading
from typing import Any, Callable, Optional

import fake_egress
from fake_daemon import DESCRIPTION, FakeDaemon, Request
from fake_egress import Grant

SIZES = ("memory_mib", "vcpus", "disk_mib")
DEFAULT_PATHS = ["/home/user", "/root", "/tmp"]


class Box:
    """One sandbox. `over` is set when it ends."""

    def __init__(self, id: str, root: str, parent: Optional[str], generation: int) -> None:
        self.id, self.root, self.parent, self.generation = id, root, parent, generation
        self.template = "default"
        self.sizes = {"memory_mib": 1024, "vcpus": 2, "disk_mib": 4096}
        self.metadata: dict[str, str] = {}
        self.source = "pool"
        self.forkable = True
        self.files: dict[str, bytes] = {}
        self.exec_count = 0
        self.grant = Grant([], {})
        self.records: list[dict[str, Any]] = []
        self.exec_id = ""
        self.over = threading.Event()
        self.reason = "vm_ended"


class FakeFleet(FakeDaemon):
    """fail_forks: indexes of the copies that do not come to be, by the next fork. no_egress: what asks for
    some is answered with this status and body."""

    max_fork = 32

    def __init__(self) -> None:
        super().__init__()
        self._answers.clear()
        self._lock = threading.RLock()
        self._made = 0
        self.boxes: dict[str, Box] = {}
        self.dead: dict[str, Box] = {}
        self.fail_forks: set[int] = set()
        self.no_egress: Optional[tuple[int, dict[str, Any]]] = None

    @property
    def living(self) -> set[str]:
        return set(self.boxes)

    def answer_for(self, request: Request) -> Optional[Callable[[Request], None]]:
        own = super().answer_for(request)
        if own is not None:
            return own
        for method, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, request.path)
            if match and method == request.method:
                return lambda r: self.refusable(handler, r, *match.groups())
        return None

    def refusable(self, handler: Callable[..., None], request: Request, *words: str) -> None:
        try:
            handler(self, request, *words)
        except fake_egress.Refused as exc:
            request.reply(exc.status, exc.body)

    def granted(self, wish: Any) -> Grant:
        """What a body's "egress" gives."""
        if wish and self.no_egress is not None:
            raise fake_egress.Refused(*self.no_egress)
        return Grant.of(wish)

    def make(self, parent: Optional[Box]) -> Box:
        with self._lock:
            self._made += 1
            id = f"sbx_{self._made:032x}"
            if parent is None:
                box = Box(id, id, None, 0)
            else:
                box = Box(id, parent.root, parent.id, parent.generation + 1)
                box.files = dict(parent.files)
                box.template, box.sizes = parent.template, dict(parent.sizes)
                box.metadata, box.source = dict(parent.metadata), "fork"
            self.boxes[id] = box
            return box

    def describe(self, box: Box, details: bool = False) -> dict[str, Any]:
        children = [one.id for one in self.boxes.values() if one.parent == box.id]
        reply = {
            **DESCRIPTION,
            **box.sizes,
            "id": box.id,
            "template": box.template,
            "metadata": box.metadata,
            "parent": box.parent,
            "children": children,
            "generation": box.generation,
            "egress": box.grant.describe(),
        }
        if details:
            reply |= {
                "exec_count": box.exec_count,
                "disk_errors": 0,
                "source": box.source,
                "ready_us": 1234,
                "forkable": box.forkable,
            }
        return reply

    def find(self, request: Request, id: str, field: Optional[str] = None) -> Optional[Box]:
        box = self.boxes.get(id)
        if box is None:
            error = {"error": "sandbox not found", "code": "sandbox_not_found"}
            request.reply(404, error if field is None else {**error, "field": field})
        return box

    def create(self, request: Request) -> None:
        wish = request.json if request.body else {}
        if wish.get("template", "default") not in ("default", "python-datasci"):
            request.reply(
                400,
                {
                    "error": f"there is no template {wish['template']!r}",
                    "code": "invalid_request",
                    "field": "template",
                    "hint": "there are: default, python-datasci",
                },
            )
            return
        grant = self.granted(wish.get("egress"))
        box = self.make(None)
        box.grant = grant
        box.template = wish.get("template", "default")
        box.forkable = wish.get("forkable", True)
        box.sizes |= {key: wish[key] for key in SIZES if key in wish}
        box.metadata = wish.get("metadata", {})
        request.reply(200, self.describe(box))

    def list(self, request: Request) -> None:
        request.reply(200, {"sandboxes": [self.describe(box, True) for box in self.boxes.values()]})

    def get(self, request: Request, id: str) -> None:
        box = self.find(request, id)
        if box is not None:
            request.reply(200, self.describe(box, True))

    def delete(self, request: Request, id: str) -> None:
        with self._lock:
            box = self.boxes.pop(id, None)
            if box is not None:
                self.dead[id] = box
                box.over.set()
        if box is None and id not in self.dead:
            request.reply(404, {"error": "sandbox not found", "code": "sandbox_not_found"})
        else:
            request.reply(204)

    def fork(self, request: Request, id: str) -> None:
        box = self.find(request, id)
        if box is None:
            return
        if not box.forkable:
            self.not_forkable(request)
            return
        wish = request.json if request.body else {}
        n = wish.get("n", 1)
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= self.max_fork:
            request.reply(
                400,
                {
                    "error": f"n must be from 1 to {self.max_fork}",
                    "code": "invalid_request",
                    "field": "n",
                },
            )
            return
        failing, self.fail_forks = self.fail_forks, set()
        if failing >= set(range(n)):
            request.reply(503, {"error": "no copy came to be: no memory", "code": "fork_failed"})
            return
        results: list[dict[str, Any]] = []
        for index in range(n):
            if index in failing:
                results.append({"error": f"copy {index}: no memory", "code": "fork_failed"})
            else:
                child = self.make(box)
                child.grant = box.grant.inherited(wish)
                child.forkable = wish.get("forkable", True)
                results.append(self.describe(child))
        request.reply(
            200,
            {
                "children": [one.get("id") for one in results],
                "results": results,
                "pause_us": 800,
                "ready_us": 5000,
            },
        )

    def not_forkable(self, request: Request) -> None:
        request.reply(
            409, {"error": "made not to be forked", "code": "not_forkable", "hint": "make it so"}
        )

    def merge(self, request: Request, id: str, winner_id: str) -> None:
        if id == winner_id:
            request.reply(
                400,
                {"error": "a sandbox cannot be merged into itself", "code": "invalid_request"},
            )
            return
        with self._lock:
            loser = self.find(request, id)
            winner = loser and self.find(request, winner_id, "winner")
            if loser is None or winner is None:
                return
            if loser.root != winner.root:
                request.reply(409, {"error": "not of one lineage", "code": "other_lineage"})
                return
            if not loser.forkable:
                self.not_forkable(request)
                return
            del self.boxes[winner_id]
            self.dead[winner_id] = loser
            for one in self.boxes.values():
                if one.parent == winner_id:
                    one.parent = id
            winner.id, winner.parent = id, loser.parent
            self.boxes[id] = winner
        loser.reason = "closed"
        loser.over.set()
        request.reply(204)

    def diff(self, request: Request, id: str, other_id: str) -> None:
        old = self.find(request, id)
        new = old and self.find(request, other_id, "other")
        if old is None or new is None:
            return
        if old.root != new.root:
            request.reply(409, {"error": "not of one lineage", "code": "other_lineage"})
            return
        paths = request.queries.get("path") or DEFAULT_PATHS

        def below(box: Box) -> dict[str, bytes]:
            return {
                name: data
                for name, data in sorted(box.files.items())
                if any(f"{name}/".startswith(f"{path.rstrip('/')}/") for path in paths)
            }

        before, after = below(old), below(new)

        def entry(name: str, data: bytes) -> dict[str, Any]:
            return {"path": name, "type": "file", "size": len(data), "mode": 0o644}

        request.reply(
            200,
            {
                "added": [entry(n, d) for n, d in after.items() if n not in before],
                "removed": [entry(n, d) for n, d in before.items() if n not in after],
                "modified": [
                    {**entry(n, d), "old_size": len(before[n]), "old_mode": 0o600}
                    for n, d in after.items()
                    if n in before and before[n] != d
                ],
                "paths": paths,
            },
        )

    def tree(self, request: Request) -> None:
        with self._lock:
            shown = dict(self.boxes)
            # Ended ancestors of living ones stay.
            todo = list(shown.values())
            while todo:
                parent = todo.pop().parent
                if parent is not None and parent not in shown:
                    shown[parent] = self.dead[parent]
                    todo.append(shown[parent])

            def node(id: str) -> dict[str, Any]:
                box = shown[id]
                return {
                    "id": id,
                    "state": "ready" if id in self.boxes else "ended",
                    "template": box.template,
                    "generation": box.generation,
                    "created_at": DESCRIPTION["created_at"],
                    "children": [node(one) for one in sorted(shown) if shown[one].parent == id],
                }

            request.reply(
                200, {"roots": [node(id) for id in sorted(shown) if shown[id].parent is None]}
            )

    def templates(self, request: Request) -> None:
        vm = {"memory_mib": 1024, "vcpus": 2, "disk_mib": 4096}
        request.reply(
            200,
            {
                "templates": [
                    {
                        "name": "default",
                        "default_memory_mib": 1024,
                        "default_vcpus": 2,
                        "default_disk_mib": 4096,
                        "image_bytes": 277_000_000,
                        "vms": [
                            {**vm, "state": "ready", "pool": 2, "boot_ms": 900},
                            {**vm, "disk_mib": 64, "state": "booting", "pool": 0, "boot_ms": None},
                        ],
                    },
                    {"name": "python-datasci", "vms": []},
                ]
            },
        )

    def get_egress(self, request: Request, id: str) -> None:
        box = self.find(request, id)
        if box is not None:
            request.reply(200, box.grant.describe())

    def put_egress(self, request: Request, id: str) -> None:
        box = self.find(request, id)
        if box is not None:
            box.grant = self.granted(request.json)
            request.reply(200, box.grant.describe())

    def log(self, request: Request, id: str) -> None:
        box = self.find(request, id)
        if box is not None:
            request.start_stream()
            for line in box.records[-int(request.query["limit"]) :]:
                request.send(_json(line))
            request.end_stream()

    def execute(self, request: Request, id: str) -> None:
        box = self.find(request, id)
        if box is None:
            return
        known = len(box.records)
        box.exec_id = request.json.get("exec_id", "")
        box.exec_count += 1
        request.start_stream()
        code, out = self.run(box, request.json["code"])
        seq = 0
        if out:
            line = {"seq": 0, "ts": 1, "type": "stdout", "data": out}
            request.send(_json(line))
            seq = 1
        reason = "exited" if code >= 0 else box.reason
        end = {"seq": seq, "ts": 2, "type": "exit", "data": code, "termination_reason": reason}
        denied = fake_egress.denials(box.records[known:])
        request.send(_json({**end, "denied": denied} if denied else end))
        request.end_stream()

    def run(self, box: Box, code: str) -> tuple[int, str]:
        """sleep SECONDS, wait (for ever), print TEXT, write PATH TEXT, fetch HOST PORT, exit CODE: one a
        line."""
        out = ""
        for line in code.splitlines():
            word, _, rest = line.strip().partition(" ")
            if word == "sleep" or word == "wait":
                if box.over.wait(float(rest) if rest else None):
                    return -1, out
            elif word == "print":
                out += f"{rest}\n"
            elif word == "write":
                name, _, text = rest.partition(" ")
                box.files[name] = text.encode()
            elif word == "fetch":
                host, port = rest.split()
                number = len(box.records) + 1
                box.records += box.grant.decide(box.id, box.exec_id, host, int(port), number)
            elif word == "exit":
                return int(rest), out
        return 0, out

    def stop(self) -> None:
        for box in self.boxes.values():
            box.over.set()
        super().stop()


def _json(line: dict[str, Any]) -> bytes:
    return json.dumps(line).encode() + b"\n"


_ID = r"/v1/sandboxes/([A-Za-z0-9_-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", "/v1/sandboxes", FakeFleet.create),
    ("GET", "/v1/sandboxes", FakeFleet.list),
    ("GET", _ID, FakeFleet.get),
    ("DELETE", _ID, FakeFleet.delete),
    ("POST", f"{_ID}/exec", FakeFleet.execute),
    ("POST", f"{_ID}/fork", FakeFleet.fork),
    ("POST", f"{_ID}/merge_into/([A-Za-z0-9_-]+)", FakeFleet.merge),
    ("GET", f"{_ID}/diff/([A-Za-z0-9_-]+)", FakeFleet.diff),
    ("GET", f"{_ID}/egress", FakeFleet.get_egress),
    ("PUT", f"{_ID}/egress", FakeFleet.put_egress),
    ("GET", f"{_ID}/egress/log", FakeFleet.log),
    ("GET", "/v1/tree", FakeFleet.tree),
    ("GET", "/v1/templates", FakeFleet.templates),
]
