# SPDX-License-Identifier: Apache-2.0
"""Interrupts: what runs ends, whatever it waits for; its variables stay; and no other call is hit."""

from __future__ import annotations

import threading
import time
from typing import Callable

import pytest
from guest import py
from hostile import SLEEP, left

from podflare import ExecResult, Sandbox

pytestmark = pytest.mark.limit(300)

NEVER_ANSWERS = """
import http.client, socket, urllib.request
server = socket.create_server(("127.0.0.1", 0))
urllib.request.urlopen(f"http://127.0.0.1:{server.getsockname()[1]}/").read()
"""

INTERRUPTED = {
    "time.sleep": "import time\ntime.sleep(1000)",
    "loop": "while True: pass",
    "socket": NEVER_ANSWERS,
    "subprocess.run": f"import subprocess\nsubprocess.run('{SLEEP}'.split())",
    "lock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "join": "import threading, time\nt = threading.Thread(target=time.sleep, args=(1e4,), daemon=True)\n"
    "t.start(); t.join()",
    "asyncio": "import asyncio\nawait asyncio.sleep(1000)",
    "regex": "import re\nwhile True: re.match('(a*)*b', 'a' * 20)",
    "input of a child": "!cat /tmp/nobody-writes || mkfifo /tmp/nobody-writes; cat /tmp/nobody-writes",
}


def interrupt(s: Sandbox, code: str) -> ExecResult:
    """Start it, and interrupt it when it has said that it is underway."""
    underway, results = threading.Event(), []
    thread = threading.Thread(
        target=lambda: results.append(
            s.run_code(
                "print('underway', flush=True)\n" + code,
                timeout=60,
                on_stdout=lambda text: underway.set(),
            )
        ),
        daemon=True,
    )
    thread.start()
    assert underway.wait(120)
    time.sleep(0.5)
    assert s.interrupt() is True
    thread.join()
    (result,) = results
    assert isinstance(result, ExecResult)
    return result


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupt_keeps_variables(box: Sandbox, name: str):
    box.run_code("kept = 41")
    r = interrupt(box, INTERRUPTED[name])
    assert (r.termination_reason, r.exit_code, r.state) == ("interrupted", 130, "preserved"), r
    assert r.error is not None and r.error.name == "KeyboardInterrupt"
    assert py(box, "print(kept)") == "41\n" and left(box) == 0


def test_an_interrupt_in_numpy_keeps_variables(fresh: Callable[..., Sandbox]):
    s = fresh(template="python-datasci")
    s.run_code("import numpy as np\na = np.random.default_rng(1).random((200, 200))\nkept = 41")
    for code in ("while True: b = a @ a", "while True: np.linalg.svd(a)", "while True: np.sort(a)"):
        r = interrupt(s, code)
        assert (r.termination_reason, r.exit_code, r.state) == ("interrupted", 130, "preserved"), r
        assert py(s, "print(kept, a.shape)") == "41 (200, 200)\n"


def test_an_interrupt_never_hits_the_next_call(box: Sandbox):
    """It is sent around the end of a call, sooner or later; the call after it is never ended."""
    hits = 0
    for i in range(12):
        stream = box.run_code_stream("import time\nprint('underway', flush=True)\ntime.sleep(0.1)")
        next(stream)
        racer = threading.Thread(
            target=lambda: (time.sleep(i * 0.02), stream.interrupt()), daemon=True
        )
        racer.start()
        last = list(stream)[-1]
        hits += last.extra["termination_reason"] == "interrupted"
        r = box.run_code("import time\ntime.sleep(0.2)\nprint('whole')")
        racer.join()
        assert (r.stdout, r.termination_reason, r.error) == ("whole\n", "exited", None), (i, r)
    assert hits < 12
