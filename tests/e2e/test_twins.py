# SPDX-License-Identifier: Apache-2.0
"""Who might run in a copy before it is one of its own: threads of the session that draw numbers all
the time, and processes of root that are in none of the agent's groups. None of them repeats a sibling.

Each notes the generation, from a mapping of its file, ahead of every number that it draws. The file is
written before anything goes on, but long after a copy's processors have started: one that ran too early
has drawn more under the old generation than its siblings have."""

from __future__ import annotations

import time

import pytest
from guest import py, sh, together
from served import wait_until

from podflare import Sandbox

pytestmark = pytest.mark.limit(300)

COPIES = 4

THREADS = """
import mmap, random, threading
with open("/run/podflare/fork-generation", "rb") as file:
    now = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
drawn, over = [], []
def draw():
    while not over and len(drawn) < 200_000:
        for _ in range(500): pass
        drawn.append((bytes(now), random.random()))
threads = [threading.Thread(target=draw, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
"""
END = """
import time
while int(drawn[-1][0]) < GENERATION: time.sleep(0.05)
over.append(1)
for thread in threads: thread.join()
for generation, number in drawn: print(int(generation), number)
"""

ROOT = """
import mmap, os, sys, time
with open(sys.argv[1], "w") as file:
    file.write(str(os.getpid()))
with open("/run/podflare/fork-generation", "rb") as file:
    now = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
with open(sys.argv[2], "w") as out:
    while True:
        out.write(f"{int(bytes(now))} {os.getrandom(12).hex()}\\n")
        out.flush()
        time.sleep(0.02)
"""
# The one above all, one beside that of the agent, one below that.
GROUPS = {"top": "/sys/fs/cgroup", "beside": "/sys/fs/cgroup/mine", "inner": "/sys/fs/cgroup/mine/inner"}


def judge(drawn: list[list[list[str]]], generation: int, at_once: int) -> None:
    """Lines of each copy: generation and number. at_once: how many draw; each may have been stopped
    between the two, and has drawn a new number then for the old generation."""
    old = [[n for g, n in its if int(g) == generation] for its in drawn]
    new = [[n for g, n in its if int(g) == generation + 1] for its in drawn]
    assert all(new), [len(its) for its in drawn]
    assert len({len(its) for its in old}) == 1, [len(its) for its in old]
    between = [numbers for numbers in zip(*old) if len(set(numbers)) > 1]
    assert len(between) <= at_once, [len(its) for its in old]
    same = [numbers[0] for numbers in zip(*old) if len(set(numbers)) == 1]
    everything = [n for its in [*new, *between, same] for n in its]
    assert len(everything) == len(set(everything))


def test_threads_of_the_session(parent: Sandbox):
    with parent.fork() as (base,):
        generation = base.info().generation
        py(base, THREADS)
        time.sleep(1)
        with base.fork(COPIES) as children:
            end = END.replace("GENERATION", str(generation + 1))
            texts = together(lambda one: py(one, end), children)
        judge([[line.split() for line in text.splitlines()] for text in texts], generation, 3)
        assert int(py(base, "print(len(drawn))")) > 0  # the original has gone on


@pytest.mark.parametrize("names", [tuple(GROUPS), ("top",)], ids=["all", "top"])
def test_processes_of_root_in_groups_of_their_own(parent: Sandbox, names: tuple[str, ...]):
    with parent.fork() as (base,):
        with base.fork():  # when none was there
            pass
        generation = base.info().generation
        base.upload(ROOT.encode(), "/tmp/root.py")
        for name in names:
            group = GROUPS[name]
            sh(
                base,
                f"sudo sh -c 'mkdir -p {group}; echo $$ >{group}/cgroup.procs; "
                f"exec setsid python3 /tmp/root.py /tmp/{name}.pid /tmp/{name} >/dev/null 2>&1' & "
                f"until [ -s /tmp/{name} ]; do sleep 0.1; done",
            )
        wait_until("they draw", lambda: int(sh(base, f"cat /tmp/{names[-1]} | wc -l")) > 20, 60)
        with base.fork(COPIES) as children:

            def end(one: Sandbox) -> dict[str, list[list[str]]]:
                for name in names:
                    sh(one, f"until grep -q '^{generation + 1} ' /tmp/{name}; do sleep 0.1; done")
                sh(one, "sudo pkill -KILL -f '[r]oot.py'; while pgrep -f '[r]oot.py'; do sleep 0.1; done")
                text = {name: sh(one, f"cat /tmp/{name}") for name in names}
                return {
                    name: [line.split() for line in its.splitlines() if len(line.split()) == 2]
                    for name, its in text.items()
                }

            drawn = together(end, children)
        for name in names:
            judge([its[name] for its in drawn], generation, 1)
        # They go on in the original, where they were.
        for name in names:
            where = sh(base, f"cut -d: -f3 /proc/$(cat /tmp/{name}.pid)/cgroup").strip()
            assert where == (GROUPS[name].removeprefix("/sys/fs/cgroup") or "/")
        before = int(sh(base, "cat /tmp/top | wc -l"))
        wait_until("they go on", lambda: int(sh(base, "cat /tmp/top | wc -l")) > before, 60)
