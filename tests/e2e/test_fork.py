# SPDX-License-Identifier: Apache-2.0
"""Forks: what a copy has, that nobody's copy is anybody else's, and what becomes of calls in flight.
The numbers in the names are those of the list in the project's description of the published API."""

from __future__ import annotations

import hashlib
import random
import select
import socket
import threading
import time
from urllib.parse import urlsplit

import httpx
import pytest
from guest import py, sh, together
from served import run_example, wait_until

import podflare
from podflare import Client, ExecResult, Sandbox

pytestmark = pytest.mark.limit(300)


class Running:
    """A call that runs in a thread of its own; `result()` waits for it."""

    def __init__(self, sandbox: Sandbox, code: str, language: podflare.Language = "python") -> None:
        self._outcome: list[ExecResult] = []
        self._thread = threading.Thread(
            daemon=True, target=lambda: self._outcome.append(sandbox.run_code(code, language))
        )
        self._thread.start()

    def result(self) -> ExecResult:
        self._thread.join()
        assert self._outcome, "run_code raised"
        return self._outcome[0]


def exists(sandbox: Sandbox, path: str) -> bool:
    """Whether a file is there; answered also while a call runs."""
    try:
        sandbox.download(path)
        return True
    except FileNotFoundError:
        return False


def test_03_children_have_what_the_parent_loaded(parent: Sandbox):
    py(parent, "import json\nconfig = {'threshold': 0.5, 'name': 'base'}")
    children = parent.fork(3)
    try:
        outs = together(lambda c: py(c, "print(json.dumps(config, sort_keys=True))"), children)
        assert outs == ['{"name": "base", "threshold": 0.5}\n'] * 3
    finally:
        for child in children:
            child.close()


def test_04_the_example_runs(daemon):
    """Load once, fork(5), five plans, merge the best: examples/fork.py."""
    out = run_example(daemon, "fork.py")
    assert "5 copies of the sandbox in" in out
    assert "plus the growth of a quarter  <- best" in out
    assert "['/home/user/forecast.csv']" in out
    assert "26 values" in out


def test_08_large_data_is_loaded_once(parent: Sandbox):
    py(parent, "import array\nlarge = array.array('q', range(1_000_000))")
    with parent.fork(5) as children:
        outs = together(lambda c: py(c, "print(len(large), large[-1], sum(large))"), children)
        assert outs == [f"1000000 999999 {sum(range(1_000_000))}\n"] * 5
    py(parent, "del large")


def test_18_plain_http(http: httpx.Client, parent: Sandbox):
    reply = http.post(f"/v1/sandboxes/{parent.id}/fork", json={"n": 5})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    try:
        assert len(set(body["children"])) == len(body["children"]) == 5
        assert parent.id not in body["children"]
        assert [one["id"] for one in body["results"]] == body["children"]
        generation = parent.info().generation + 1
        for one in body["results"]:
            assert (one["state"], one["parent"], one["generation"]) == (
                "ready",
                parent.id,
                generation,
            )
        assert 0 < body["pause_us"] <= body["ready_us"]
        assert set(parent.info().children) == set(body["children"])
    finally:
        for id in body["children"]:
            assert http.delete(f"/v1/sandboxes/{id}").status_code == 204
    assert parent.info().children == ()
    # Nothing asked for is one.
    reply = http.post(f"/v1/sandboxes/{parent.id}/fork", json={})
    assert reply.status_code == 200 and len(reply.json()["children"]) == 1
    http.delete(f"/v1/sandboxes/{reply.json()['children'][0]}")


@pytest.mark.parametrize("n", [33, 0, -1, 10**9, 1.5, "5", True, []])
def test_19_n_out_of_range(http: httpx.Client, parent: Sandbox, n):
    reply = http.post(f"/v1/sandboxes/{parent.id}/fork", json={"n": n})
    assert reply.status_code == 400, reply.text
    assert (reply.json()["code"], reply.json()["field"]) == ("invalid_request", "n")


def test_fork_of_what_is_not_there(http: httpx.Client, client: Client, fresh):
    reply = http.post("/v1/sandboxes/sbx_" + "0" * 32 + "/fork", json={"n": 1})
    assert (reply.status_code, reply.json()["code"]) == (404, "sandbox_not_found")
    reply = http.post("/v1/sandboxes/sbx_" + "0" * 32 + "/fork", json={"reseed": "no"})
    assert reply.status_code in (400, 404)
    victim = fresh()
    victim.run_code("sudo python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'", "bash")
    wait_until("the sandbox has ended", lambda: victim.info().state == "ended", 60)
    with pytest.raises(podflare.SandboxEndedError):
        victim.fork(2)


def test_20_21_nobody_sees_what_another_does(parent: Sandbox):
    py(parent, "x = 42\nnames = ['base']")
    with parent.fork(3) as children:
        py(children[0], "x = 100; names.append('first'); only_here = 1")
        sh(children[0], "echo first > /tmp/who")
        assert py(parent, "print(x, names, 'only_here' in globals())") == "42 ['base'] False\n"
        py(parent, "x = 7; later = 1")
        sh(parent, "echo parent > /tmp/who")
        assert py(children[0], "print(x, names)") == "100 ['base', 'first']\n"
        for child in children[1:]:
            assert py(child, "print(x, names, 'later' in globals())") == "42 ['base'] False\n"
            assert sh(child, "cat /tmp/who 2>/dev/null || echo nobody") == "nobody\n"
        assert sh(children[0], "cat /tmp/who") == "first\n"


def test_25_a_lineage_of_eight(parent: Sandbox):
    """Each level adds a variable and a file; ancestors end before their descendants."""
    py(parent, "levels = [0]")
    sh(parent, "mkdir -p /home/user/levels && echo 0 > /home/user/levels/0")
    base = parent.info().generation
    lineage = [parent]
    try:
        for level in range(1, 9):
            child = lineage[-1].fork()[0]
            if lineage[-1] is not parent and level % 2:
                lineage[-1].close()
            lineage.append(child)
            py(child, f"levels.append({level})")
            sh(child, f"echo {level} > /home/user/levels/{level}")
        last = lineage[-1]
        assert py(last, "print(levels)") == f"{list(range(9))}\n"
        assert sh(last, "cat /home/user/levels/*").split() == [str(n) for n in range(9)]
        assert last.info().generation == base + 8
        assert py(parent, "print(levels)") == "[0]\n"
        root = last.tree()
        found = root.find(last.id)
        assert found is not None and found.children == ()
        states = [root.find(one.id) for one in lineage]
        assert [one and one.state for one in states] == ["ready"] + [
            "ended" if level % 2 == 0 and level < 8 else "ready" for level in range(1, 9)
        ]
    finally:
        for one in lineage[1:]:
            one.close()
    assert all(node.id not in {one.id for one in lineage[1:]} for node in parent.tree().walk())


def test_ten_at_once_and_their_first_connections(parent: Sandbox):
    """The first thing that each child is asked succeeds, whatever it is."""
    py(parent, "base = 'here'")
    parent.upload(b"x" * 100_000, "/tmp/before")
    first = {
        0: lambda c: py(c, "print(base)"),
        1: lambda c: sh(c, "echo here"),
        2: lambda c: c.upload(b"here", "/tmp/first") and "here\n",
        3: lambda c: "here\n" if c.download("/tmp/before") == b"x" * 100_000 else "",
    }
    with parent.fork(10) as children:
        number = {child.id: index for index, child in enumerate(children)}
        outs = together(lambda c: first[number[c.id] % len(first)](c), children)
        assert outs == ["here\n"] * 10
        # And the second.
        assert together(lambda c: py(c, "print(base)"), children) == ["here\n"] * 10


def test_closing_a_parent_leaves_its_children(parent: Sandbox):
    py(parent, "kept = 'still here'")
    middle = parent.fork()[0]
    leaves = middle.fork(2)
    try:
        middle.close()
        outs = together(lambda c: py(c, "print(kept)"), leaves)
        assert outs == ["still here\n"] * 2
        assert leaves[0].info().parent == middle.id
        leaves[0].close()
        assert py(leaves[1], "print(kept)") == "still here\n"
        # One whose parent is gone can be forked as well.
        with leaves[1].fork() as (last,):
            assert py(last, "print(kept)") == "still here\n"
    finally:
        leaves.close()
    assert py(parent, "print(kept)") == "still here\n"


def test_26_a_copy_has_no_network_either(parent: Sandbox):
    with parent.fork() as (child,):
        assert sh(child, "ls /sys/class/net") == "lo\n"
        r = child.run_code("import socket; socket.create_connection(('192.0.2.1', 80), timeout=60)")
        assert r.error is not None and "unreachable" in r.error.value


def test_a_copy_has_the_sizes_of_its_parent(parent: Sandbox):
    with parent.fork() as (child,):
        ours, its = parent.info(), child.info()
        for name in ("template", "memory_mib", "vcpus", "disk_mib", "egress", "metadata"):
            assert getattr(ours, name) == getattr(its, name), name
        assert sh(child, "nproc") == f"{ours.vcpus}\n"
        assert its.source == "fork" and (its.ready_us or 0) > 0


def test_forks_of_one_sandbox_at_the_same_time(parent: Sandbox):
    """They come one after the other; none is lost."""
    py(parent, "base = 'here'")
    made: list[podflare.Children] = []
    threads = [
        threading.Thread(daemon=True, target=lambda: made.append(parent.fork(2))) for _ in range(3)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        children = [child for group in made for child in group]
        assert len({child.id for child in children}) == 6
        assert together(lambda c: py(c, "print(base)"), children) == ["here\n"] * 6
    finally:
        for group in made:
            group.close()


NUMBERS = 12_500
SEQUENCE = "".join(f"{n}\n" for n in range(1, NUMBERS + 1))


@pytest.mark.parametrize(
    "language, code",
    [
        ("bash", "for i in $(seq 0 24); do seq $((i*500+1)) $((i*500+500)); sleep 0.05; done"),
        (
            "python",
            "import time\nfor i in range(25):\n    for n in range(500): print(i*500+n+1)\n"
            "    time.sleep(0.05)",
        ),
    ],
)
def test_output_of_the_parent_survives_its_forks(parent: Sandbox, language, code):
    stream = parent.run_code_stream(code, language)
    pieces = [next(stream).raw]
    rest: list[podflare.Event] = []
    reader = threading.Thread(daemon=True, target=lambda: rest.extend(stream))
    reader.start()
    children: list[Sandbox] = []
    try:
        for _ in range(3):
            children += parent.fork()
        # In the copies the same call runs on, with nobody listening, and disturbs nothing.
        uploads = together(lambda c: c.upload(b"x", "/tmp/x").size, children)
        assert uploads == [1] * 3
    finally:
        reader.join()
        for child in children:
            child.close()
    pieces += [event.raw for event in rest if event.type == "stdout"]
    assert not [event for event in rest if event.type == "stderr"]
    assert b"".join(pieces).decode() == SEQUENCE
    assert (rest[-1].type, rest[-1].code) == ("exit", 0)


def test_files_on_their_way_survive_the_forks_of_the_parent(parent: Sandbox):
    data = random.Random(3).randbytes(12 << 20)
    done: list[object] = []

    def move() -> None:
        parent.upload(data, "/tmp/large")
        done.append(hashlib.sha256(parent.download("/tmp/large")).digest())

    mover = threading.Thread(daemon=True, target=move)
    mover.start()
    children: list[Sandbox] = []
    try:
        while mover.is_alive() and len(children) < 4:
            children += parent.fork()
        mover.join()
        assert done == [hashlib.sha256(data).digest()]
        # What had not arrived when a copy was made does not lie around in it.
        for child in children:
            names = set(sh(child, "ls -A /tmp").split("\n"))
            assert names <= set(sh(parent, "ls -A /tmp").split("\n"))
    finally:
        mover.join()
        for child in children:
            child.close()
    sh(parent, "rm /tmp/large")


def test_a_call_that_runs_is_waited_for_in_the_copy(parent: Sandbox):
    sh(parent, "rm -f /tmp/running")
    running = Running(
        parent,
        "import time\nopen('/tmp/running', 'w').close()\ntime.sleep(4)\nprint('parent')\nfound = 'yes'",
    )
    wait_until("the call runs", lambda: exists(parent, "/tmp/running"), 60)
    with parent.fork() as (child,):
        r = child.run_code("print(found)")
        assert (r.stdout, r.exit_code) == ("yes\n", 0), r
        assert any("forked while a call was running" in notice for notice in r.notices), r.notices
        # Only the first one waits, and only it says so.
        r = child.run_code("print(found)")
        assert (r.stdout, r.notices) == ("yes\n", ())
        ours = running.result()
        assert (ours.stdout, ours.exit_code) == ("parent\n", 0)
        assert py(parent, "print(found)") == "yes\n"


def test_a_bash_command_that_runs_goes_on_in_the_copy(parent: Sandbox):
    sh(parent, "rm -f /tmp/running /tmp/finished")
    running = Running(parent, "touch /tmp/running; sleep 3; echo done | tee /tmp/finished", "bash")
    wait_until("the command runs", lambda: exists(parent, "/tmp/running"), 60)
    with parent.fork() as (child,):
        wait_until("the copy's ends, too", lambda: exists(child, "/tmp/finished"), 60)
        assert sh(child, "cat /tmp/finished") == "done\n"
    assert running.result().stdout == "done\n"


SURVIVORS = """
import asyncio, multiprocessing, subprocess, threading, time

ticks = 0
def tick():
    global ticks
    while True:
        time.sleep(0.05)
        ticks += 1
threading.Thread(target=tick, daemon=True).start()

file = open("/tmp/open_file", "w+")
file.write("before\\n")
file.flush()

process = subprocess.Popen(
    ["sh", "-c", 'read line; echo "got $line"'],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
async def add(a, b):
    await asyncio.sleep(0.01)
    return a + b

pool = multiprocessing.get_context("fork").Pool(2)
lock = threading.Lock()
lock.acquire()
print(pool.map(abs, [-1, -2]), asyncio.run_coroutine_threadsafe(add(1, 2), loop).result(60))
"""

USE = """
before = ticks
deadline = time.monotonic() + 60
while ticks < before + 3 and time.monotonic() < deadline:
    time.sleep(0.05)
file.write(who + "\\n")
file.flush()
file.seek(0)
print(
    ticks >= before + 3,
    file.read().split(),
    process.poll(),
    process.communicate(who + "\\n", timeout=60)[0].strip(),
    process.returncode,
    asyncio.run_coroutine_threadsafe(add(len(who), 100), loop).result(60),
    pool.map(abs, [-len(who), -2], chunksize=1),
    lock.locked(),
)
"""


def test_threads_files_processes_loops_and_pools_survive(parent: Sandbox):
    with parent.fork() as (base,):
        assert py(base, SURVIVORS) == "[1, 2] 3\n"
        with base.fork(2) as children:
            everyone = dict(zip(("parent", "first", "second"), [base, *children]))

            def use(sandbox: Sandbox) -> str:
                who = next(name for name, one in everyone.items() if one is sandbox)
                return py(sandbox, f"who = {who!r}\n{USE}")

            outs = together(use, everyone.values())
            for who, out in zip(everyone, outs):
                n = len(who)
                assert out == (
                    f"True ['before', '{who}'] None got {who} 0 {100 + n} [{n}, 2] True\n"
                )
            # A pool and a thread made in a copy are as good.
            assert py(
                children[0], "pool.terminate(); print(multiprocessing.Pool(1).map(abs, [-3]))"
            ) == ("[3]\n")


PATTERN = """
import struct
PAGE, PAGES = 4096, (64 << 20) // 4096
def stamp(block, salt):
    for page in range(PAGES):
        struct.pack_into("<QQ", block, page * PAGE, page, salt)
        struct.pack_into("<QQ", block, page * PAGE + PAGE - 16, salt, page)
def wrong(block, salt):
    return [page for page in range(PAGES)
            if struct.unpack_from("<QQ", block, page * PAGE) != (page, salt)
            or struct.unpack_from("<QQ", block, page * PAGE + PAGE - 16) != (salt, page)][:5]
"""


def test_memory_is_nobody_elses(parent: Sandbox):
    """64 MiB, rewritten on both sides at once and looked at page by page."""
    py(parent, f"{PATTERN}\nblock = bytearray(PAGE * PAGES)\nstamp(block, 1)")
    with parent.fork(2) as (writer, reader):
        py(reader, "pass")

        def rewrite(sandbox: Sandbox) -> str:
            salt = 2 if sandbox is parent else 3
            return py(sandbox, f"stamp(block, {salt}); print(wrong(block, {salt}))")

        assert together(rewrite, [parent, writer]) == ["[]\n"] * 2
        # The one that wrote nothing sees what was there before the fork.
        assert py(reader, "print(wrong(block, 1))") == "[]\n"
        assert py(parent, "print(wrong(block, 2))") == "[]\n"
        assert py(writer, "print(wrong(block, 3))") == "[]\n"
    py(parent, "del block")


def leaving(daemon, parent: Sandbox, after: float) -> None:
    """Ask for five copies and hang up after a while; an answer that came first is tidied up."""
    url = urlsplit(daemon.url)
    body = b'{"n": 5}'
    with socket.create_connection((url.hostname, url.port), timeout=30) as raw:
        raw.sendall(
            f"POST /v1/sandboxes/{parent.id}/fork HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        answered, _, _ = select.select([raw], [], [], after)
    if answered:
        for id in parent.info().children:
            Sandbox.connect(id, host=daemon.url).close()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_a_client_that_leaves_during_a_fork_leaves_nothing(
    daemon, parent: Sandbox, client: Client, share
):
    """It leaves after this share of the time that such a fork takes. (Later the answer may be on its way
    when it does, and then the copies are its own.)"""
    begin = time.monotonic()
    copies = parent.fork(5)
    took = time.monotonic() - begin
    copies.close()
    before = {one.id for one in Sandbox.list(client=client)}
    leaving(daemon, parent, share * took)

    def nothing_left() -> bool:
        """Twice, some time apart: the first look may come before the copies."""
        for _ in range(2):
            if {one.id for one in Sandbox.list(client=client)} != before:
                return False
            time.sleep(1)
        return parent.info().children == ()

    wait_until("the copies of a client that left are gone", nothing_left, 60)
    assert py(parent, "print('alive')") == "alive\n"
    with parent.fork() as (child,):
        assert py(child, "print('alive')") == "alive\n"


def test_a_parent_that_is_closed_while_it_is_forked(client: Client):
    """Either the copies come to be or the fork says why not; nothing stays behind."""
    before = {one.id for one in Sandbox.list(client=client)}
    victim = Sandbox(client=client)
    made: list[Sandbox] = []
    errors: list[podflare.PodflareError] = []

    def fork() -> None:
        try:
            made.extend(victim.fork(4))
        except podflare.ForkError as exc:
            made.extend(exc.sandboxes)
            errors.append(exc)
        except podflare.PodflareError as exc:
            errors.append(exc)

    thread = threading.Thread(daemon=True, target=fork)
    thread.start()
    time.sleep(0.05)
    Sandbox.connect(victim.id, client=client).close()
    thread.join()
    assert made or errors
    assert together(lambda c: py(c, "print(1)"), made) == ["1\n"] * len(made)
    for child in made:
        child.close()
    wait_until(
        "nothing is left",
        lambda: {one.id for one in Sandbox.list(client=client) if one.state == "ready"} <= before,
        60,
    )


def test_map(parent: Sandbox):
    py(parent, "base = 40")
    results = parent.map([f"base += {n}; print(base)" for n in range(3)] + ["1 / 0"])
    assert [r.stdout for r in results[:3]] == ["40\n", "41\n", "42\n"]
    assert results[3].error is not None and results[3].error.name == "ZeroDivisionError"
    assert py(parent, "print(base)") == "40\n"
    assert parent.info().children == ()


def test_race(parent: Sandbox):
    with parent.fork() as (runner,):
        py(runner, "base = 'before'")
        r = runner.race(
            ["import time; time.sleep(1000)", "base = 'won'; print(7)", "raise ValueError('no')"]
        )
        assert r.winner == 1 and r.result is not None and r.result.stdout == "7\n"
        assert r.results[0] is None
        assert py(runner, "print(base)") == "won\n"
        assert runner.info().children == ()
        # A long one that lost is gone with its copy; nobody waits for it.
        r = runner.race(["print(1)", "print(2)"], until=lambda r: "3" in r.stdout)
        assert not r.won and [one and one.stdout for one in r.results] == ["1\n", "2\n"]
        assert py(runner, "print(base)") == "won\n"
