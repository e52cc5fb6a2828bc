# SPDX-License-Identifier: Apache-2.0
"""Snippets that take the interpreter apart, and what users of notebooks write, through the SDK in a real
guest: tests/repl has all of them, natively."""

from __future__ import annotations


import pytest
from guest import py, sh
from snippets import SNIPPETS, End

from podflare import Sandbox

# Of each kind some.
NAMES = (
    "sys.exit in threads",
    "os._exit in a thread",
    "closing fds 0 to 20",
    "exec of another program",
    "exec inside exec",
    "fork without exec",
    "sys.stdout is None",
    "sys.stdout is an object",
    "streams closed",
    "repr that raises",
    "repr that exits",
    "builtins deleted",
    "exceptions replaced",
    "modules deleted",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_next_call_works(box: Sandbox, name: str):
    code, outcome = SNIPPETS[name]
    # A session of its own: what a snippet takes apart stays so.
    with box.create_context() as session:
        r = session.run_code(code)
        if isinstance(outcome, End):  # and the session with it
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
