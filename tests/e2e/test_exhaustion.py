# SPDX-License-Identifier: Apache-2.0
"""Code that takes everything there is of something: memory, disk, threads, processes, output. Its call
ends in a defined way, and the next ones work."""

from __future__ import annotations

import json
import resource
import time
from typing import Any

import pytest
from guest import py, sh
from hostile import SLACK, Case, left, run
from served import wait_until

import podflare
from podflare import Sandbox

pytestmark = pytest.mark.limit(300)

EAT = "blocks = []\nwhile True: blocks.append(b'x' * (1 << 20))"

MEMORY = {
    "python": Case(EAT, "python", ("oom",), 137, "lost", 9, notice="memory"),
    "child of python": Case(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {EAT!r}], check=True)",
        "python",
        ("oom",),
        1,
        error="CalledProcessError",
        notice="memory",
    ),
    "bash": Case("tail /dev/zero", "bash", ("oom",), 137, notice="memory"),
    "refused at once": Case("b'x' * (1 << 40)", exit_code=1, error="MemoryError"),
    "unpickled": Case(
        "import pickle\npickle.loads(b'\\x80\\x04K\\x01r\\xff\\xff\\xff\\x7f.')",
        "python",
        ("exited", "oom"),
        state=None,
        error="MemoryError",
    ),
}


@pytest.mark.parametrize("name", MEMORY)
def test_all_memory(small: Sandbox, name: str):
    run(small, MEMORY[name])


def test_a_value_whose_repr_is_endless(box: Sandbox):
    """2^40 words to be shown, of a value that takes no memory (as an unpickling bomb makes)."""
    r = run(
        box,
        Case(
            "import pickle\nx = 'lol'\nfor _ in range(40): x = [x, x]\npickle.loads(pickle.dumps(x))",
            "python",
            ("timeout", "oom", "exited"),
            state=None,
            timeout=3,
        ),
    )
    assert not r.ok


@pytest.mark.parametrize(
    "code", ["'x' * 50_000_000", "list(range(3_000_000))", "display('é' * 9**8)"]
)
def test_huge_values_are_shown_in_part(box: Sandbox, code: str):
    r = box.run_code(code)
    assert r.ok and r.text is not None and 1000 < len(r.text) < 2 << 20, r
    assert py(box, "print(1)") == "1\n"


def test_a_full_disk(small: Sandbox):
    small.run_code("kept = 41")
    r = small.run_code(
        "with open('/home/user/big', 'wb', 0) as f:\n    while True: f.write(bytes(1 << 20))"
    )
    assert r.error is not None and r.error.name == "OSError" and "No space" in r.error.value, r
    r = small.run_code("cat /dev/zero > /home/user/more", "bash")
    assert r.exit_code == 1 and "No space left" in r.stderr, r
    with pytest.raises(podflare.DiskFullError):
        small.upload(b"x" * (4 << 20), "/home/user/upload")
    assert py(small, "print(kept)") == "41\n" and sh(small, "echo alive") == "alive\n"
    # More output than is kept, and no room for the log: the ends are told all the same.
    r = small.run_code("seq 200000", "bash", output_limit=1 << 16)
    assert r.ok and r.truncated and r.log_truncated, r
    assert r.stdout.startswith("1\n2\n") and r.stdout.endswith("\n199999\n200000\n")
    assert r.bytes_dropped == sum(len(str(i)) + 1 for i in range(1, 200001)) - len(r.stdout_bytes)
    sh(small, "rm /home/user/big /home/user/more")
    assert small.upload(b"x" * (4 << 20), "/home/user/upload").size == 4 << 20


def test_ten_thousand_threads(small: Sandbox):
    small.run_code("kept = 41")
    r = small.run_code(
        """
        import threading
        go = threading.Event()
        for i in range(10_000):
            threading.Thread(target=go.wait, daemon=True).start()
        """,
        timeout=120,
    )
    assert r.termination_reason in ("exited", "oom") and not r.ok, r
    if r.state == "preserved":
        assert r.error is not None and r.error.name in ("RuntimeError", "MemoryError"), r
        # They live on, and are not in the way of others.
        assert py(small, "print(kept, threading.active_count() > 100)") == "41 True\n"
        assert sh(small, "echo alive") == "alive\n"
        py(small, "go.set()")
    assert sh(small, "echo alive") == "alive\n"
    assert py(small, "print(1)") == "1\n"


@pytest.mark.parametrize(
    "language, code",
    [
        ("bash", "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1000"),
        ("python", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"),
    ],
    ids=["bash", "python"],
)
def test_a_fork_bomb_ends_with_its_call(small: Sandbox, language: Any, code: str):
    start = time.monotonic()
    r = small.run_code(code, language, timeout=4)
    assert time.monotonic() - start < 4 + 2 * SLACK
    assert r.termination_reason in ("timeout", "oom"), r
    assert r.termination_reason == "oom" or r.exit_code == 124
    assert sh(small, "echo alive") == "alive\n"
    assert py(small, "print(1)") == "1\n"
    assert int(sh(small, "ps -u user --no-headers | wc -l")) < 20


# What a call leaves behind, and how many processes of it are too few to be called that.
LEAVES = {
    "bash": ("bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1; exit 3", "bash", 3),
    "python": (
        """
        import os, time
        if os.fork() == 0:
            while True:
                try: os.fork()
                except OSError: pass
        time.sleep(1)
        """,
        "python",
        0,
    ),
    "fed": (
        "for i in 1 2 3 4 5 6 7 8; do (while :; do python3 -c 'x = []\nwhile True: x.append(bytes(1 << 20))';"
        " done) & done; sleep 1; exit 3",
        "bash",
        3,
    ),
}


@pytest.mark.parametrize("name", LEAVES)
def test_a_bomb_that_its_call_leaves_behind(small: Sandbox, name: str):
    """It takes neither all processes, nor all of the processor, nor the session's memory: there is
    room for the next calls, which can end it."""
    code, language, status = LEAVES[name]
    small.run_code("kept = 41")
    r = small.run_code(code, language)  # type: ignore[arg-type]
    assert r.termination_reason in ("exited", "oom") and r.exit_code == status, r
    for _ in range(5):
        time.sleep(1)
        assert py(small, "print(kept)") == "41\n"
        assert sh(small, "echo alive") == "alive\n"
    # At once: one that still lives would make another for each that is killed.
    sh(small, "kill -9 -1; echo done")
    wait_until("they are gone", lambda: int(sh(small, "ps -u user --no-headers | wc -l")) < 20, 60)
    assert py(small, "print(1)") == "1\n"


def test_what_was_left_behind_goes_first_and_as_one(small: Sandbox):
    """When memory runs out, a session that has less than half of it is not what is ended."""
    small.run_code("kept = bytearray(40 << 20)")
    sh(small, "sleep 31337 & (sleep 3; exec tail /dev/zero) & echo on")
    assert left(small) == 1
    # One of the group takes all memory, and the other goes with it.
    wait_until("both are gone", lambda: left(small) == 0, 60)
    assert py(small, "print(len(kept)); del kept") == f"{40 << 20}\n"


def test_gigabytes_of_output_without_newline(box: Sandbox):
    """With the default limit: head and tail, the counts, and the log, which stops at 1 GiB. This
    process takes little more than is kept; the daemon is looked at in tests/daemon."""
    mib = 1100
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    r = box.run_code(
        f"""
        import os, sys
        block = b'x' * (1 << 20)
        _ = os.write(1, b'begin')
        for i in range({mib}): _ = sys.stdout.buffer.write(block)
        sys.stdout.flush()
        _ = os.write(1, b'end')
        """,
        timeout=0,
    )
    assert r.ok and r.truncated, r
    out = r.stdout_bytes
    assert out[:6] == b"beginx" and out[-4:] == b"xend" and (8 << 20) < len(out) <= (16 << 20)
    assert len(out) + r.bytes_dropped == (mib << 20) + 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 << 10
    log = box.files.stat(r.log["stdout"])
    assert (1 << 30) - (1 << 20) < log.size <= 1 << 30
    assert py(box, "print(1)") == "1\n"
    box.files.remove(r.log["stdout"])


def test_undecodable_bytes_everywhere(box: Sandbox):
    every = bytes(range(256))
    r = box.run_code(
        """
        import os, sys
        _ = sys.stdout.buffer.write(bytes(range(256)))
        _ = sys.stderr.buffer.write(bytes(range(255, -1, -1)))
        open(b'/tmp/\\xff\\xfe', 'w').close()
        '\\udcff\\ud800\\0'
        """
    )
    assert r.ok and (r.stdout_bytes, r.stderr_bytes) == (every, every[::-1])
    assert r.text is not None and json.dumps(r.text)
    names = [one.name for one in box.files.list("/tmp")]
    assert b"\xff\xfe".decode("utf-8", "surrogateescape") in names
    r = box.run_code("raise ValueError('\\udcff\\ud800\\0')")
    assert r.error is not None and r.error.name == "ValueError" and r.error.value != ""
    r = box.run_code("ls /tmp/\xff*; printf '\\377\\n' >&2; rm -f /tmp/$'\\377\\376'", "bash")
    assert r.stderr_bytes.endswith(b"\xff\n")
    assert py(box, "print(1)") == "1\n"
