# SPDX-License-Identifier: Apache-2.0
"""Snippets that take the interpreter apart, and what users of notebooks write, through the SDK in a real
guest: tests/repl has all of them, natively."""

from __future__ import annotations

from typing import Iterator, Union

import pytest
from guest import py, sh

from podflare import Sandbox

LOST = "the session ends"

# name: (code, its exit code)
SNIPPETS: dict[str, tuple[str, Union[int, str]]] = {
    "sys.exit in threads": (
        "import sys, threading\nts = [threading.Thread(target=sys.exit, args=(3,)) for i in range(50)]\n"
        "for t in ts: t.start()\nfor t in ts: t.join()",
        0,
    ),
    "os._exit in a thread": (
        "import os, threading\nthreading.Thread(target=os._exit, args=(6,)).start()\nwhile True: pass",
        LOST,
    ),
    "closing fds 0 to 20": ("import os\nos.closerange(0, 21)", 0),
    "exec of another program": ("import os\nos.execv('/bin/true', ['true'])", LOST),
    "exec inside exec": ("exec('exec(\"inner = 1\")')\nassert inner == 1", 0),
    "fork without exec": (
        "import os\npid = os.fork()\nif pid == 0: print('child')\nelse: os.waitpid(pid, 0)",
        0,
    ),
    "sys.stdout is None": ("import sys\nsys.stdout = None\nprint(1)\nsys.stderr = None\n1 / 0", 1),
    "sys.stdout is an object": ("import sys\nsys.stdout = object()\nprint(1)", 1),
    "streams closed": ("import sys\nfor f in (sys.stdin, sys.stdout, sys.stderr): f.close()", 0),
    "repr that raises": ("class R:\n    def __repr__(self): raise ValueError('no')\nR()", 1),
    "repr that exits": ("class R:\n    def __repr__(self): raise SystemExit(4)\nR()", 4),
    "builtins deleted": ("import builtins\nvars(builtins).clear()", 0),
    "exceptions replaced": (
        "import builtins\nbuiltins.BaseException = builtins.Exception = builtins.KeyboardInterrupt = int\n"
        "1 / 0",
        1,
    ),
    "modules deleted": ("import sys\nsys.modules.clear()", 0),
}


@pytest.fixture(scope="module")
def box(parent: Sandbox) -> Iterator[Sandbox]:
    """One whose session is made anew for each snippet: what it takes apart stays so."""
    with parent.fork(1) as copies:
        yield copies[0]


@pytest.mark.parametrize("name", SNIPPETS)
def test_the_next_call_works(box: Sandbox, name: str):
    code, outcome = SNIPPETS[name]
    with box.create_context() as session:
        r = session.run_code(code)
        if outcome == LOST:
            assert r.state == "lost" and any("variables" in one for one in r.notices), r
        else:
            assert (r.state, r.termination_reason) == ("preserved", "exited"), r
            assert r.exit_code == outcome, r
        after = session.run_code("6 * 7")
        assert (after.exit_code, after.text) == (0, "42"), after
    assert sh(box, "echo alive") == "alive\n" and py(box, "print(1)") == "1\n"


def test_magics(box: Sandbox):
    """Those that notebooks are full of."""
    assert py(box, "%cd /usr\nimport os; print(os.getcwd())").endswith("/usr\n")
    assert py(box, "%env MINE=1\n!echo $MINE in $(pwd)").endswith("1 in /usr\n")
    assert py(box, "%%bash\nfor i in 1 2; do echo $i; done") == "1\n2\n"
    assert "per loop" in py(box, "%timeit -n 10 -r 1 1 + 1")
    assert "IPython" in py(box, "%pip list 2>/dev/null").replace("ipython", "IPython")
    assert not box.run_code("!exit 3").ok
    py(box, "%cd /home/user")


def test_processes_of_multiprocessing(box: Sandbox):
    code = (
        "import multiprocessing, concurrent.futures as f\ndef square(x): return x * x\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(square, [1, 2, 3]))\n"
        "with f.ThreadPoolExecutor(4) as pool: print(list(pool.map(square, [4, 5])))"
    )
    assert py(box, code) == "[1, 4, 9]\n[16, 25]\n"


def test_forms_of_results(box: Sandbox):
    r = box.run_code(
        "from IPython.display import Markdown, Image, HTML\n"
        "display(Markdown('# A')); display(HTML('<b>b</b>'))\n"
        "display(Image(data=bytes.fromhex('ffd8ffe000104a46494600010100000100010000ffd9'), format='jpeg'))"
    )
    assert r.ok, r
    assert r.results[0].markdown == "# A" and r.results[1].html == "<b>b</b>"
    assert r.results[2].jpeg and r.results[2].jpeg[:2] == b"\xff\xd8"
