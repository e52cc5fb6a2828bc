# SPDX-License-Identifier: Apache-2.0
"""Children: forks, pools, background processes, and how the interpreter itself can end."""

from __future__ import annotations

import re
import signal
import time

import pytest
from repl_process import Died, Repl

BURST = "for i in range(300): print('line', i)\n"


def test_background_child_survives_and_run_child_does_not(repl: Repl) -> None:
    repl.run("import subprocess\np = subprocess.Popen(['sleep', '30'])")
    assert repl.run("p.poll() is None").value == "True"
    assert repl.run("q = subprocess.run(['true'])\nq.returncode").value == "0"
    assert repl.run("p.kill(); p.wait()").value == "-9"


def test_shell_variables_do_not_persist(repl: Repl) -> None:
    repl.run("import os\nos.system('V=1; export V')")
    assert repl.run("os.system('echo [$V]')").text == "[]\n"


def test_both_sides_of_a_fork_reach_the_end_of_the_cell(repl: Repl) -> None:
    repl.run("import os")
    code = "import sys\nprint('before')\npid = os.fork()\n"
    result = repl.run(code + "x = sys.stdout.write(f'side {pid == 0}\\n')\npid == 0")
    assert result.value == "False" and len(result.events) == 1
    status = repl.run("os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])")
    assert status.value == "0"
    lines = (result.text + status.text).splitlines()
    assert sorted(lines) == ["True", "before", "side False", "side True"]
    assert repl.run("print('one')").text == "one\n"


@pytest.mark.parametrize(
    "child, code",
    [
        ("sys.exit(7)", 7),
        ("raise ValueError('in the child')", 1),
        ("os._exit(9)", 9),
        ("exit()", 0),
        ("x = 1", 0),
        ("os.execvp('sh', ['sh', '-c', 'exit 5'])", 5),
    ],
)
def test_how_a_forked_child_ends(repl: Repl, child: str, code: int) -> None:
    text = f"import os, sys\npid = os.fork()\nif pid == 0:\n    {child}\n"
    text += (
        "else:\n    s = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n    print('status', s)"
    )
    result = repl.run(text)
    assert f"status {code}\n" in result.text and result.exit_code == 0
    assert ("ValueError: in the child" in result.errors) == (code == 1)
    assert result.error is None
    assert repl.run("2").value == "2"


def test_fork_by_c_code_does_not_become_a_second_interpreter(repl: Repl) -> None:
    code = "import ctypes, os\npid = ctypes.CDLL(None).fork()\npid > 0"
    result = repl.run(code)
    assert result.value == "True"
    assert repl.run("os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])").value == "0"
    assert repl.run("print('only me')").text.splitlines()[-1] == "only me"


def test_fork_in_a_burst_neither_duplicates_nor_hangs(repl: Repl) -> None:
    code = """
import os
for n in range(150):
    for i in range(5): print('parent', n, i)
    pid = os.fork()
    if pid == 0:
        for i in range(40): print('child', n, i)
        os._exit(0)
    os.waitpid(pid, 0)
"""
    result = repl.run(code, timeout=40)
    expected = []
    for n in range(150):
        expected += [f"parent {n} {i}" for i in range(5)]
        expected += [f"child {n} {i}" for i in range(40)]
    assert result.text.splitlines() == expected


def test_forks_while_other_threads_print(repl: Repl) -> None:
    code = """
import os, sys, threading
stop = False
def noise():
    i = 0
    while not stop: print('noise', (i := i + 1))
threads = [threading.Thread(target=noise) for _ in range(2)]
for t in threads: t.start()
codes = []
for n in range(100):
    pid = os.fork()
    if pid == 0:
        sys.stdout.write(f'child {n}\\n')
        os._exit(3)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
stop = True
for t in threads: t.join()
set(codes)
"""
    result = repl.run(code, timeout=40)
    assert result.value == "{3}"
    assert re.findall(r"child (\d+)\n", result.text) == [str(n) for n in range(100)]


def test_child_outliving_the_cell_does_not_hold_it_up(repl: Repl) -> None:
    began = time.monotonic()
    result = repl.run("import subprocess\nsubprocess.Popen('sleep 0.4; echo late', shell=True)")
    assert time.monotonic() - began < 0.35 and result.exit_code == 0
    assert repl.drain(20, until=b"late\n").text == "late\n"


def test_thread_goes_on_between_cells(repl: Repl) -> None:
    code = "import threading, time\nn = 0\ndef count():\n    global n\n    while n < 10**9:\n"
    repl.run(
        code + "        n += 1\n        time.sleep(0.001)\nthreading.Thread(target=count).start()"
    )
    first = int(repl.run("n").value or 0)
    time.sleep(0.1)
    assert int(repl.run("v = n; n = 10**9\nv").value or 0) > first


def test_pools(repl: Repl) -> None:
    repl.run("import multiprocessing, concurrent.futures as cf\ndef square(x): return x * x")
    code = "with multiprocessing.Pool(2) as p: print(p.map(square, range(5)))"
    assert repl.run(code).text == "[0, 1, 4, 9, 16]\n"
    code = "with cf.ProcessPoolExecutor(2) as p: print(list(p.map(square, range(5))))"
    assert repl.run(code).text == "[0, 1, 4, 9, 16]\n"
    code = "p = multiprocessing.Process(target=print, args=('from child',))\np.start(); p.join()"
    assert repl.run(code).text == "from child\n"
    assert repl.run("square(3)").value == "9"


@pytest.mark.parametrize(
    "code, status",
    [
        ("import os; os._exit(5)", 5),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
        (
            "import sys\nsys.setrecursionlimit(10**8)\nf = lambda x: max([1], key=f)\nf(1)",
            -signal.SIGSEGV,
        ),
    ],
)
def test_deaths_are_seen_as_what_they_are(repl: Repl, code: str, status: int) -> None:
    with pytest.raises(Died) as died:
        repl.run(code)
    assert died.value.status == status
    if status == -signal.SIGSEGV:
        assert b"Segmentation fault" in died.value.last.err


def test_output_before_a_sudden_end_is_complete(repl: Repl) -> None:
    for end in ("os._exit(3)", "os.kill(os.getpid(), 9)", "ctypes.string_at(0)"):
        with Repl() as other:
            other.run("import os, ctypes")
            other.start(BURST + end)
            with pytest.raises(Died) as died:
                other.finish(5)
            assert died.value.last.text.endswith("line 299\n"), end


def test_output_of_a_child_before_a_sudden_end_is_complete(repl: Repl) -> None:
    code = "import os, signal\nif os.fork() == 0:\n"
    code += "    for i in range(300): print('line', i)\n    signal.raise_signal(signal.SIGKILL)\n"
    result = repl.run(code + "os.wait()[1]")
    assert result.value == "9" and result.text == "".join(f"line {i}\n" for i in range(300))


def test_children_see_no_descriptors_and_no_variables_of_ours(repl: Repl) -> None:
    repl.run("import os, subprocess")
    listing = repl.run("os.system('ls /proc/self/fd')").text.split()
    assert len(listing) == 4 and set(listing) >= {"0", "1", "2"}  # and ls's own
    result = repl.run("os.posix_spawn('/bin/ls', ['ls', '/proc/self/fd'], {})\nos.wait()")
    assert len(result.text.split()) == 4
    assert "REPL" not in repl.run("os.system('env')").text
    assert (
        repl.run("[k for k in os.environ if 'REPL' in k or k.startswith('PYTHON')]").value == "[]"
    )
    highest = (
        "max(int(f) for f in os.listdir('/proc/self/fd')), sorted(os.listdir('/proc/self/fd'))"
    )
    assert "'3'" in (repl.run(highest).value or "")  # the lowest free one: listdir's own
    low = "[f for f in map(int, os.listdir('/proc/self/fd')) if 3 < f < 100]"
    assert repl.run(low).value == "[]"


def test_forked_child_does_not_hold_the_control_socket(repl: Repl) -> None:
    code = "import os\npid = os.fork()\nif pid == 0:\n    import time\n    time.sleep(30)\n"
    repl.run(code)
    link = "os.path.basename(os.readlink(f'/proc/{pid}/fd/' + f)) "
    held = "socket"
    deadline = time.monotonic() + 20  # a child may take its time to run at all
    while "socket" in held and time.monotonic() < deadline:
        held = repl.run(f"[{link} for f in os.listdir(f'/proc/{{pid}}/fd')]").value or ""
    assert "socket" not in held and "pipe" in held
    repl.run("os.kill(pid, 9); os.waitpid(pid, 0)")


def test_end_of_the_control_channel_ends_the_interpreter(repl: Repl) -> None:
    repl.run("import threading, time\nthreading.Thread(target=time.sleep, args=(30,)).start()")
    repl.control.shutdown(1)
    assert repl.process.wait(5) == 0


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_that_is_no_fork_refuses_what_the_session_defines(repl: Repl, method: str) -> None:
    """Its workers would end at once, and new ones be started, for ever."""
    repl.run(f"import math, multiprocessing as m\nctx = m.get_context({method!r})")
    repl.run("def f(x): return x\nclass C: pass\nword = '__main__'")
    for call in ("p.map(f, [1, 2])", "p.apply(len, ([C()],))", "list(p.imap(f, [1]))"):
        result = repl.run(f"with ctx.Pool(1) as p: {call}")
        name = "C" if "C()" in call else "f"
        assert result.error is not None and result.exit_code == 1
        assert f"SessionNameError: {name} is defined in this session" in result.errors
        assert f"'{method}'" in result.errors and "get_context('fork')" in result.errors
    result = repl.run("ctx.Pool(1, initializer=f)")
    assert "SessionNameError: f is defined in this session" in result.errors
    # What a module has, and a text of that name, reaches the workers.
    good = "with ctx.Pool(2) as p: print(p.map(math.sqrt, [4, 9]), p.map(len, [word]))"
    result = repl.run(good)
    assert result.text == "[2.0, 3.0] [8]\n", result.errors
    assert repl.run("with m.Pool(1) as p: print(p.map(f, [5]))").text == "[5]\n"


def test_a_process_that_is_spawned_says_why_it_ends(repl: Repl) -> None:
    result = repl.run(
        "import multiprocessing as m\ndef f(): pass\n"
        "p = m.get_context('spawn').Process(target=f)\np.start(); p.join(); p.exitcode"
    )
    assert result.value == "1" and "Can't get attribute 'f' on <module '__main__'" in result.errors
