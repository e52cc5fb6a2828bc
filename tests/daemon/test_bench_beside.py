"""bench/beside, the client that measures beside the daemon: what it prints, what it asks for, and
that no wrong answer becomes a figure."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import DAEMON, ROOT, Daemon

BESIDE = Path(DAEMON).with_name("bench") / "beside"
FAN = 5
IDS = [f"sbx_{i:032x}" for i in range(1, 1 + FAN)]
DONE = '{"type":"exit","data":0,"seq":0,"ts":1790000000000}\n'


def beside(port: int, creates: int = 1, execs: int = 1, forks: int = 1) -> subprocess.CompletedProcess[str]:
    """A run of it."""
    assert BESIDE.exists(), f"{BESIDE} is not built"
    argv = [str(BESIDE), *map(str, (port, creates, execs, forks))]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def bench_run() -> Any:
    """bench/run.py as a module."""
    spec = importlib.util.spec_from_file_location("bench_run", ROOT / "bench" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_it_prints(daemon: Daemon) -> None:
    """As many lines of each name as were asked for, and nothing is left behind."""
    done = beside(daemon.port, creates=2, execs=3, forks=2)
    assert done.returncode == 0 and done.stderr == "", done
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    assert Counter(name for name, _ in lines) == {
        "beside_create_used_us": 2,
        "beside_exec_python_us": 3,
        "beside_exec_bash_us": 3,
        "beside_fork1_used_us": 2,
        "beside_fork5_used_us": 2,
    }
    assert all(re.fullmatch(r"\d+\.\d", value) and float(value) > 0 for _, value in lines), lines
    assert daemon.http.get("/v1/sandboxes").json()["sandboxes"] == []


def test_the_table_has_a_row_for_each(daemon: Daemon) -> None:
    """What it prints is what bench/run.py has rows for, and these are the rows with goals."""
    run = bench_run()
    done = beside(daemon.port)
    assert done.returncode == 0, done
    assert {line.split(" ")[0] for line in done.stdout.splitlines()} == set(run.BESIDE)
    figures = run.beside_figures({name: [1500.0] for name in run.BESIDE})
    assert list(figures) == list(run.BESIDE.values())
    assert run.GOALS.keys() <= figures.keys()
    rows = run.table(figures, 1.5).splitlines()[2:]
    assert len(rows) == len(figures) and all("| 1.50 | 1.50 | 1.50 | 1.00 |" in row for row in rows)
    assert sum("met" in row for row in rows) == len(run.GOALS)


def test_nothing_of_a_kind(daemon: Daemon) -> None:
    """No rounds are no lines."""
    done = beside(daemon.port, 0, 0, 0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [[], ["7070"], ["0", "1", "1", "1"], ["65536", "1", "1", "1"], ["7070", "-1", "1", "1"]]
    + [["7070", "1", "x", "1"], ["7070", "1", "1", ""], ["7070", "1", "1", "1", "1"]],
)
def test_usage(arguments: list[str]) -> None:
    """Arguments that it does not take."""
    done = subprocess.run([str(BESIDE), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: beside PORT CREATES EXECS FORKS\n"


def failed(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It has ended with status 1 and one sentence with these words."""
    assert done.returncode == 1, done
    assert done.stderr.startswith("beside: ") and all(word in done.stderr for word in words), done


def test_no_daemon() -> None:
    """Nobody listens on this port, which is bound."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        failed(beside(s.getsockname()[1]), "cannot connect", "Connection refused")


def test_a_sandbox_that_fails(start: Callable[..., Daemon]) -> None:
    """Its agent refuses the first call."""
    d = start(mode="fork:exec-error")
    done = beside(d.port)
    failed(done, "/exec: status 409 instead of 200", "the session is dead")
    assert done.stdout == ""


def test_a_sandbox_that_is_not_made(start: Callable[..., Daemon]) -> None:
    """The VMM cannot fork."""
    failed(beside(start(mode="fork:error").port), "POST /v1/sandboxes: status 503", "cannot fork the VMM")


class Script:
    """A server that answers as the daemon does, but where it is told otherwise: that is the end of
    the connection. Each has a thread; `asked` are the requests in the order in which they came."""

    def __init__(self, wrong: dict[str, bytes], chop: int = 1 << 20) -> None:
        self.wrong = wrong
        self.chop = chop  # bytes that are sent at once
        self.asked: list[tuple[int, str, str]] = []  # connection, method and path, body
        self.copies: list[str] = []  # that have not been used
        self.together = threading.Barrier(FAN, timeout=60)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self) -> None:
        """Connections, until the listener is closed."""
        while True:
            try:
                sock = self.listener.accept()[0]
            except OSError:
                return
            number = len(self.threads)
            self.threads.append(threading.Thread(target=self.serve, args=(number, sock), daemon=True))
            self.threads[-1].start()

    def serve(self, number: int, sock: socket.socket) -> None:
        """Requests of one connection."""
        with sock, sock.makefile("rb") as stream:
            while line := stream.readline():
                what, length = line.decode().rsplit(" ", 1)[0], 0
                while (header := stream.readline()) != b"\r\n":
                    name, _, value = header.decode().partition(":")
                    length = int(value) if name == "Content-Length" else length
                body = stream.read(length).decode()
                self.asked.append((number, what, body))
                kind = self.kind(what, body)
                answer = self.wrong[kind] if kind in self.wrong else self.right(kind, body)
                for at in range(0, len(answer), self.chop):
                    sock.sendall(answer[at : at + self.chop])
                if kind in self.wrong:
                    return

    def kind(self, what: str, body: str) -> str:
        """What is asked for, as `wrong` names it."""
        kind = what.split(" ")[0] if what.startswith("DELETE") else what.rsplit("/", 1)[1]
        told = json.loads(body) if body else {}
        if kind == "fork":
            self.copies = IDS[: told["n"]]
            kind = f"fork{told['n']}"
        elif kind == "exec" and told["code"] == "pass" and what.split("/")[3] in self.copies:
            kind = f"exec in {len(self.copies)}"
            if len(self.copies) == FAN:
                self.together.wait()  # all are asked before the first is answered
        elif kind == "DELETE" and what.split("/")[3] in self.copies:
            kind = "delete copy"
        return kind

    def right(self, kind: str, body: str) -> bytes:
        """The right answer."""
        if kind == "healthz":
            return plain("ok")
        if kind == "sandboxes":
            return plain(json.dumps({"id": "sbx_" + "f" * 32, "state": "ready"}, separators=(",", ":")))
        if kind.startswith("fork"):
            return forked(self.copies)
        if kind.startswith("exec"):
            return chunks(DONE) if json.loads(body)["language"] == "bash" else plain(DONE)
        return b"HTTP/1.1 204 No Content\r\n\r\n"

    def close(self) -> None:
        """Ends all threads; clients have gone."""
        self.together.abort()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()


def plain(body: str, status: str = "200 OK") -> bytes:
    """An answer in one piece."""
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def chunks(*parts: str) -> bytes:
    """An answer in chunks."""
    text = "".join(f"{len(part):x}\r\n{part}\r\n" for part in (*parts, ""))
    return f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{text}".encode()


def forked(ids: list[str | None]) -> bytes:
    """The answer to a fork."""
    return plain(json.dumps({"children": ids, "results": [], "pause_us": 1}, separators=(",", ":")))


@pytest.fixture
def script() -> Iterator[Callable[..., Script]]:
    """Starts such servers."""
    servers: list[Script] = []

    def start_one(wrong: dict[str, bytes] | None = None, **kw: Any) -> Script:
        servers.append(Script(wrong or {}, **kw))
        return servers[-1]

    yield start_one
    for server in servers:
        server.close()


def test_what_it_asks_for(script: Callable[..., Script]) -> None:
    """The order of its requests, and five connections that are all kept. (That the five copies are
    asked before an answer is read, the server waits for.)"""
    server = script()
    done = beside(server.port, creates=1, execs=2, forks=1)
    assert done.returncode == 0, done
    assert len({number for number, _, _ in server.asked}) == FAN
    names = {"sbx_" + "f" * 32: "S"} | {one: f"C{i}" for i, one in enumerate(IDS)}

    def short(what: str, body: str) -> str:
        method, path = what.split(" ")
        for one, name in names.items():
            path = path.replace(one, name)
        told = json.loads(body) if body else {}
        path = path.removeprefix("/v1/").removeprefix("sandboxes/")
        return " ".join([method, path, *map(str, told.values())])

    seen = [short(what, body) for _, what, body in server.asked]
    assert seen[0] == "GET healthz"
    del seen[0]
    for _ in range(2):  # one ahead
        assert seen[:3] == ["POST sandboxes", "POST S/exec pass python", "DELETE S"]
        del seen[:3]
    for call in ("pass python", "true bash"):
        assert seen[:9] == ["POST sandboxes", *[f"POST S/exec {call}"] * 7, "DELETE S"]
        del seen[:9]
    begin = ["POST sandboxes", "POST S/exec data = list(range(100000)) python"]
    end = ["POST S/exec pass python", "DELETE S"]
    assert seen[:3] == [*begin, "POST S/fork 1"]
    assert seen[3:7] == ["POST C0/exec pass python", "DELETE C0", *end]
    del seen[:7]
    assert seen[:7] == [*["GET healthz"] * (FAN - 1), *begin, f"POST S/fork {FAN}"]
    assert sorted(seen[7:12]) == [f"POST C{i}/exec pass python" for i in range(FAN)]
    assert seen[12:] == [*[f"DELETE C{i}" for i in range(FAN)], *end]


def test_answers_in_pieces(script: Callable[..., Script]) -> None:
    """Byte by byte they are what they are in one piece."""
    done = beside(script(chop=1).port)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 5, "")


STDERR = '{"type":"stderr","data":"oh","seq":0,"ts":1790000000000}\n'
EXIT_1 = DONE.replace('"data":0', '"data":1')


@pytest.mark.parametrize(
    "kind,answer,words",
    [
        ("healthz", plain("no", "401 Unauthorized"), "GET /v1/healthz: status 401 instead of 200: no"),
        ("sandboxes", plain('{"error":"full"}', "429 Too Many Requests"), 'status 429 instead of 200: {"err'),
        ("sandboxes", plain("{}"), "POST /v1/sandboxes: no sandbox: {}"),
        ("sandboxes", plain('{"id":"sbx_1"}'), 'no sandbox: {"id":"sbx_1"}'),
        ("sandboxes", b"", "POST /v1/sandboxes: the connection ended before the answer did"),
        ("sandboxes", b"SSH-2.0-x\r\n\r\n", "POST /v1/sandboxes: the answer cannot be used: Protocol error"),
        ("sandboxes", plain("x" * 70000), "the answer cannot be used: Message too long"),
        ("exec", plain(EXIT_1), "/exec: not the end of a call that went well: " + EXIT_1),
        ("exec", chunks(STDERR, DONE), "not the end of a call that went well: " + STDERR),
        ("exec", chunks(DONE, DONE), "not the end of a call that went well"),
        ("exec", plain(DONE[:-1]), "not the end of a call that went well"),
        ("exec", plain(""), "not the end of a call that went well"),
        ("exec", plain(DONE) + b"x", "/exec: bytes behind the answer"),
        ("exec", plain(DONE)[:-1], "/exec: the connection ended before the answer did"),
        ("exec", chunks(DONE)[:-5], "/exec: the connection ended before the answer did"),
        ("DELETE", plain(""), f"DELETE /v1/sandboxes/sbx_{'f' * 32}: status 200 instead of 204"),
        ("fork1", plain("{}"), "/fork: not 1 copies: {}"),
        ("fork1", forked([None]), "/fork: not 1 copies"),
        ("fork1", forked(IDS[:2]), "/fork: not 1 copies"),
        ("fork5", forked([*IDS[:4], None]), "/fork: not 5 copies"),
        ("fork5", forked(IDS[:4]), "/fork: not 5 copies"),
        ("exec in 1", plain(EXIT_1), f"POST /v1/sandboxes/{IDS[0]}/exec: not the end"),
        ("exec in 5", plain(EXIT_1), f"POST /v1/sandboxes/{IDS[0]}/exec: not the end"),
        ("exec in 5", b"", "/exec: the connection ended before the answer did"),
        ("delete copy", plain("", "404 Not Found"), f"DELETE /v1/sandboxes/{IDS[0]}: status 404"),
    ],
)
def test_a_wrong_answer(script: Callable[..., Script], kind: str, answer: bytes, words: str) -> None:
    """It says which, and what the answer was."""
    failed(beside(script({kind: answer}).port), words)
