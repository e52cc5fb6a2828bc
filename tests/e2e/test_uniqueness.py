# SPDX-License-Identifier: Apache-2.0
"""A copy is nobody's twin: random numbers, names and clocks differ before its first instruction, and
what the user hooked in has run. A fork that cannot promise it fails."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from guest import py, sh, together, values
from served import wait_until

import podflare
from podflare import Client, Sandbox

pytestmark = pytest.mark.limit(300)

COPIES = 10

# Everything is used before the fork, so that there is a state to inherit.
PREPARE = """
import json, os, random, secrets, socket, ssl, tempfile, uuid

def draw():
    with open("/dev/urandom", "rb") as device:
        urandom = device.read(16).hex()
    fd, name = tempfile.mkstemp()
    os.close(fd)
    os.unlink(name)
    return {
        "getrandom": os.getrandom(16).hex(),
        "/dev/urandom": urandom,
        "random.random": random.random(),
        "random.SystemRandom": random.SystemRandom().random(),
        "random.Random()": random.Random().random(),
        "uuid1": str(uuid.uuid1()),
        "uuid4": str(uuid.uuid4()),
        "secrets": secrets.token_hex(16),
        "ssl.RAND_bytes": ssl.RAND_bytes(16).hex(),
        "tempfile.mkstemp": name,
        "tempfile.mktemp": tempfile.mktemp(),
        "TemporaryDirectory": tempfile.TemporaryDirectory().name,
        "uuid of the kernel": open("/proc/sys/kernel/random/uuid").read(),
    }

for _ in range(3):
    draw()
"""


def assert_distinct(draws: list[dict[str, Any]]) -> None:
    """Every source gave everyone something else."""
    twins = {
        name: [draw[name] for draw in draws]
        for name in draws[0]
        if len({json.dumps(draw[name]) for draw in draws}) != len(draws)
    }
    assert not twins, twins


def test_every_source_of_random_numbers(parent: Sandbox):
    py(parent, PREPARE)
    with parent.fork(COPIES) as children:
        everyone = [*children, parent]
        assert_distinct(together(lambda s: values(s, "print(json.dumps(draw()))"), everyone))
        # And what comes after the first draw.
        assert_distinct(together(lambda s: values(s, "print(json.dumps(draw()))"), everyone))


def test_a_process_started_in_the_copy(parent: Sandbox):
    """What does not go through the interpreter of the sandbox."""
    script = "python3 -c 'import random; print(random.random())'; od -An -tx1 -N16 /dev/urandom"
    with parent.fork(3) as children:
        outs = together(lambda s: sh(s, script), [*children, parent])
        lines = [line for out in outs for line in out.splitlines()]
        assert len(lines) == len(set(lines)) == 8


def test_two_sandboxes_of_one_template(client: Client, parent: Sandbox):
    """Created ones are forks as well."""
    py(parent, PREPARE)
    with Sandbox(client=client) as other:
        py(other, PREPARE)
        assert_distinct([values(s, "print(json.dumps(draw()))") for s in (parent, other)])
        names = [values(s, IDENTITY) for s in (parent, other)]
        for name in ("hostname", "machine-id", "boot_id", "sandbox-id"):
            assert names[0][name] != names[1][name], name


IDENTITY = """
import json, os, socket
def read(path):
    with open(path) as file:
        return file.read().strip()
print(json.dumps({
    "hostname": socket.gethostname(),
    "/etc/hostname": read("/etc/hostname"),
    "resolves": bool(socket.gethostbyname(socket.gethostname())),
    "machine-id": read("/etc/machine-id"),
    "boot_id": read("/proc/sys/kernel/random/boot_id"),
    "sandbox-id": read("/run/podflare/sandbox-id"),
    "generation": int(read("/run/podflare/fork-generation")),
}))
"""


def test_names(parent: Sandbox):
    before = values(parent, IDENTITY)
    with parent.fork(3) as children:
        seen = together(lambda s: values(s, IDENTITY), children)
        for child, its in zip(children, seen):
            info = child.info()
            assert its["sandbox-id"] == child.id
            assert its["generation"] == info.generation == before["generation"] + 1
            assert its["hostname"] == its["/etc/hostname"] and its["resolves"]
            assert len(its["machine-id"]) == 32 and int(its["machine-id"], 16)
            assert len(its["boot_id"]) == 36
        for name in ("hostname", "machine-id", "boot_id", "sandbox-id"):
            assert len({one[name] for one in [*seen, before]}) == 4, name
        with children[0].fork() as (grandchild,):
            its = values(grandchild, IDENTITY)
            assert its["generation"] == before["generation"] + 2
            assert its["machine-id"] not in {one["machine-id"] for one in [*seen, before]}
    # The parent is who it was.
    assert values(parent, IDENTITY) == before
    assert before["sandbox-id"] == parent.id and before["generation"] == parent.info().generation


def test_the_same_numbers_if_wished(parent: Sandbox):
    """reseed=False is for exact replay: programs' generators go on alike, the kernel's never does."""
    py(parent, PREPARE)
    with parent.fork() as (base,):
        py(base, "random.seed(5); random.random()")
        with base.fork(3, reseed=False) as children:
            everyone = [*children, base]
            draws = together(
                lambda s: values(s, "print(json.dumps([random.random() for _ in range(4)]))"),
                everyone,
            )
            assert draws[1:] == draws[:-1], draws
            draws = together(lambda s: values(s, "print(json.dumps(draw()))"), everyone)
            assert len({draw["random.random"] for draw in draws}) == 1
            for draw in draws:
                # OpenSSL's generator lives in the process as well.
                del draw["random.random"], draw["ssl.RAND_bytes"]
                # Names of temporary files come from a generator of Python's own: either is right.
                for name in ("tempfile.mkstemp", "tempfile.mktemp", "TemporaryDirectory"):
                    del draw[name]
            assert_distinct(draws)
        # A seed of one's own is no promise across a fork that renews.
        with base.fork(2) as children:
            py(base, "pass")
            draws = together(lambda s: values(s, "print(json.dumps(random.random()))"), children)
            assert draws[0] != draws[1]


# Draws from the kernel all the time, and says under which generation.
WITNESS = r"""
import os, time
with open("/tmp/drawn", "w") as out:
    while True:
        with open("/run/podflare/fork-generation") as file:
            generation = file.read().strip()
        out.write(f"{generation} {os.getrandom(12).hex()}\n")
        out.flush()
        time.sleep(0.001)
"""


def test_no_process_runs_before_the_copy_is_itself(parent: Sandbox):
    """A process that never rests draws nothing between the fork and the renewal: all copies have
    the same number of lines from before, and no line from after twice."""
    with parent.fork() as (base,):
        base.upload(WITNESS.encode(), "/tmp/witness.py")
        py(base, "import subprocess; w = subprocess.Popen(['python3', '/tmp/witness.py'])")
        wait_until("it draws", lambda: int(sh(base, "cat /tmp/drawn | wc -l")) > 20, 60)
        generation = base.info().generation
        with base.fork(5) as children:

            def lines(sandbox: Sandbox) -> list[list[str]]:
                new = f"grep -q '^{generation + 1} ' /tmp/drawn"
                sh(sandbox, f"until {new}; do sleep 0.1; done; pkill -f '[w]itness.py'; sleep 0.1")
                text = sandbox.download("/tmp/drawn").decode()
                return [line.split() for line in text.splitlines() if len(line.split()) == 2]

            drawn = together(lines, children)
        old = [[one for one in its if int(one[0]) == generation] for its in drawn]
        new = [[one[1] for one in its if int(one[0]) == generation + 1] for its in drawn]
        assert all(old) and all(new), [len(one) for one in drawn]
        assert len({len(one) for one in old}) == 1, [len(one) for one in old]
        everything = [number for its in new for number in its]
        assert len(everything) == len(set(everything))


def test_on_fork_hook_in_the_interpreter(parent: Sandbox):
    with parent.fork() as (base,):
        py(
            base,
            """
            import podflare, random
            told = []
            def renew(*info, **more):
                told.append(random.random())
            podflare.on_fork(renew)
            """,
        )
        with base.fork(2) as children:
            seen = together(lambda s: values(s, "import json; print(json.dumps(told))"), children)
            # Once each, and after the generators had been renewed.
            assert [len(one) for one in seen] == [1, 1] and seen[0] != seen[1]
            with children[0].fork() as (grandchild,):
                assert py(grandchild, "print(len(told))") == "2\n"
        assert py(base, "print(told)") == "[]\n"


def test_a_failing_hook_in_the_interpreter_fails_the_fork(parent: Sandbox, client: Client):
    with parent.fork() as (base,):
        py(
            base,
            """
            import podflare
            kept = 1
            def bad(*info, **more):
                raise RuntimeError("the licence server is not here")
            podflare.on_fork(bad)
            """,
        )
        with pytest.raises(podflare.ForkError, match="the licence server is not here") as e:
            base.fork(2)
        assert e.value.sandboxes == [] and len(e.value.errors) == 2
        # The parent runs on and has no children.
        assert py(base, "print(kept)") == "1\n"
        assert base.info().children == ()


HOOK = r"""#!/bin/sh
echo "$PODFLARE_FORK_GENERATION $PODFLARE_FORK_KIND $PODFLARE_SANDBOX_ID $(id -u)" >> /var/tmp/hooked
"""


def install(sandbox: Sandbox, name: str, text: str) -> None:
    """Puts a script into the directory of hooks."""
    sandbox.upload(text.encode(), "/tmp/hook")
    sh(
        sandbox,
        "sudo mkdir -p /etc/podflare/on-fork.d && "
        f"sudo install -m 755 /tmp/hook /etc/podflare/on-fork.d/{name}",
    )


def test_hooks_in_a_directory(parent: Sandbox):
    with parent.fork() as (base,):
        install(base, "50-note", HOOK)
        install(base, "60-order", "#!/bin/sh\necho last >> /var/tmp/hooked\n")
        with base.fork(2) as children:
            for child in children:
                generation = child.info().generation
                assert sh(child, "cat /var/tmp/hooked") == (
                    f"{generation} fork {child.id} 0\nlast\n"
                )
            # No hook, no copy: its reason is what it said last.
            install(children[0], "70-bad", "#!/bin/sh\necho no database to be found >&2\nexit 3\n")
            with pytest.raises(podflare.ForkError, match="no database to be found") as e:
                children[0].fork()
            assert "70-bad" in str(e.value)
            assert sh(children[0], "grep -c fork /var/tmp/hooked") == "1\n"
            assert children[0].info().children == ()
        assert sh(base, "cat /var/tmp/hooked 2>/dev/null || echo none") == "none\n"


def clock_off(sandbox: Sandbox) -> float:
    """By how many seconds at most the guest's clock is behind the host's or ahead of it. The ways there
    and back count against us: it is no more behind than the answer was late, and no more ahead than the
    question was early; the smallest of a few of each is the best estimate."""
    behind, ahead = [], []
    for _ in range(5):
        asked = time.time()
        for event in sandbox.run_code_stream("import time, os; os.write(1, b'%.6f' % time.time())"):
            if event.type == "stdout":
                behind.append(event.ts / 1000 - float(event.data))
                ahead.append(float(event.data) - asked)
    return max(min(behind), min(ahead))


def test_realtime_is_the_hosts(client: Client, parent: Sandbox, emulated: bool):
    bound = 0.5 if emulated else 0.05
    assert clock_off(parent) < bound
    with parent.fork(2) as children:
        for child in children:
            assert clock_off(child) < bound
    # The template has waited for a while by now.
    time.sleep(3)
    for _ in range(4):  # one of the pool, and forks
        with Sandbox(client=client) as created:
            assert clock_off(created) < bound
    # Many at once: those that are forked last were asked for long before.
    with ThreadPoolExecutor(12) as pool:
        burst = list(pool.map(lambda _: Sandbox(client=client), range(12)))
    try:
        # Two are renewed at a time for each processor, of which the emulated host has one, and not
        # always a whole one: 1.0 s were seen beside other work.
        assert max(map(clock_off, burst)) < (5.0 if emulated else bound)
    finally:
        for one in burst:
            one.close()


CLOCK = """
import threading, time
backwards = 0
def watch():
    global backwards
    last = time.monotonic()
    while True:
        now = time.monotonic()
        if now < last:
            backwards += 1
        last = now
        time.sleep(0.001)
threading.Thread(target=watch, daemon=True).start()

slept = []
def sleeper(seconds):
    start, real = time.monotonic(), time.time()
    time.sleep(seconds)
    slept.append((time.monotonic() - start, time.time() - real))
sleepers = [threading.Thread(target=sleeper, args=(n,)) for n in (2, 4)]
for one in sleepers:
    one.start()
mark = time.monotonic()
"""

CLOCK_READ = """
import json
for one in sleepers:
    one.join()
print(json.dumps([backwards, time.monotonic() - mark, slept]))
"""


def test_monotonic_never_goes_back_and_sleeps_end_on_time(parent: Sandbox, emulated: bool):
    slack = 3.0 if emulated else 0.3
    with parent.fork() as (base,):
        start = time.monotonic()
        py(base, CLOCK)
        with base.fork(2) as children:
            seen = together(lambda s: values(s, CLOCK_READ), [base, *children])
            took = time.monotonic() - start
    for backwards, since, slept in seen:
        assert backwards == 0
        assert 4 <= since <= took + slack
        for seconds, (monotonic, real) in zip((2, 4), slept):
            assert seconds <= monotonic < seconds + slack
            assert seconds - 0.1 <= real < seconds + slack
