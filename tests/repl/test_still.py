# SPDX-License-Identifier: Apache-2.0
"""Standing still for a copy: the process stops in its handler, and what goes on first is the handler."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time

import pytest
from repl_process import OK
from test_renew import SIGNAL, Copied, begin, repl  # noqa: F401  (repl is a fixture)

SEED = SIGNAL + 1
TGKILL = 234

THREADS = """
import random, threading
drawn, over = [], []
def draw():
    while not over: drawn.append(random.random())
random.seed(5)
threads = [threading.Thread(target=draw, daemon=True) for _ in range(3)]
for t in threads: t.start()
"""
FIRST = "over.append(1)\nfor t in threads: t.join()\nrandom.seed(5)\nold = {random.random() for _ in drawn}\n"


def send(repl: Copied, number: int) -> None:  # noqa: F811
    """To the main thread, as the agent does."""
    pid = repl.process.pid
    assert ctypes.CDLL(None).syscall(TGKILL, pid, pid, number) == 0


def stop(repl: Copied) -> None:  # noqa: F811
    """As for FREEZE."""
    (repl.run_dir / "hold").touch()
    send(repl, SIGNAL)
    os.waitid(os.P_PID, repl.process.pid, os.WSTOPPED)
    (repl.run_dir / "hold").unlink()


def go_on(repl: Copied) -> None:  # noqa: F811
    os.kill(repl.process.pid, signal.SIGCONT)


def test_the_original(repl: Copied) -> None:  # noqa: F811
    """Nothing has changed for it, and nothing is answered."""
    repl.run(THREADS)
    for _ in range(5):
        stop(repl)
        time.sleep(0.02)
        go_on(repl)
        time.sleep(0.02)
    assert repl.silent(0.1)
    assert repl.run(FIRST + "set(drawn) <= old").value == "True"


def test_a_copy(repl: Copied) -> None:  # noqa: F811
    """No number of the old state once it goes on."""
    repl.run(THREADS)
    stop(repl)
    time.sleep(0.02)  # long enough for all threads to ask for the lock
    repl.serial += 1
    repl.state()
    send(repl, SEED)
    go_on(repl)
    repl.renewed()
    text = FIRST + "k = next(n for n, v in enumerate(drawn) if v not in old)\n"
    # Three threads note what they draw in about its order: those of the moment of the stop may be late.
    text += "[v in old for v in drawn[k + 3:]].count(True) <= 3"
    assert repl.run(text, 60).value == "True"


def test_a_copy_that_is_to_repeat_it(repl: Copied) -> None:  # noqa: F811
    repl.run(THREADS + "\nimport podflare\ncalls = []\npodflare.on_fork(calls.append);")
    stop(repl)
    repl.serial += 1
    repl.state(reseed=False)
    go_on(repl)
    repl.renewed()
    assert repl.run(FIRST + "(set(drawn) <= old, calls)", 60).value == "(True, [3])"


def test_in_a_cell(repl: Copied) -> None:  # noqa: F811
    begin(repl, THREADS + "end = time.monotonic() + 1\nwhile time.monotonic() < end: pass\n'done'")
    stop(repl)
    go_on(repl)
    assert repl.finish().value == "'done'"


def test_every_generator(repl: Copied) -> None:  # noqa: F811
    """All that a renewal knows, by the steps alone: fork.json says that there is nothing to do."""
    repl.run("import random, tempfile, uuid, ssl\n"
             "try: import numpy\nexcept ImportError: numpy = None\n"
             "def states():\n"
             "    return [hash(random.getstate()), random._inst.gauss_next, tempfile._name_sequence, uuid._node,\n"
             "            numpy and hash(numpy.random.get_state()[1].tobytes())]\n"
             "random.gauss(); next(tempfile._get_candidate_names()); uuid.uuid1(); before = states();")
    stop(repl)
    send(repl, SEED)
    go_on(repl)
    assert repl.silent(0.1)
    after = "now = states()\n[a != b or b is None for a, b in zip(before, now)]"
    assert repl.run(after).value == str([True] * 5)
    assert repl.run("now[1:3]").value == "[None, None]"


@pytest.mark.parametrize(
    "change",
    [
        "import random\nrandom._inst = random.SystemRandom()",
        "import random\nrandom._inst = None",
        "import random\ndel random._inst",
        "import uuid\nuuid._node = None\ndel uuid._last_timestamp",
        "import _ssl\n_ssl.RAND_add = lambda *a: 1 / 0",
        "import sys, types\nsys.modules['numpy.random.mtrand'] = types.ModuleType('x')",
        "import builtins\nfor n in ('map', 'all', 'next', 'hasattr', 'type'): setattr(builtins, n, None)",
        "import os, functools, operator\nos.getrandom = functools.partial = operator.eq = None",
    ],
)
def test_whatever_the_user_has_changed(repl: Copied, change: str) -> None:  # noqa: F811
    """It goes on, and what cannot be renewed in one step is seen to by the renewal, or fails it."""
    repl.run(change)
    stop(repl)
    repl.serial += 1
    repl.state()
    send(repl, SEED)
    go_on(repl)
    kind, payload = repl.answer()
    assert json.loads(payload)["serial"] == repl.serial
    if kind == OK:
        assert repl.run("1 + 1").value == "2"


def test_without_the_file_nothing_stops(repl: Copied) -> None:  # noqa: F811
    send(repl, SIGNAL)
    send(repl, SEED)
    assert repl.silent(0.2)
    assert repl.run("1 + 1").value == "2"
