# SPDX-License-Identifier: Apache-2.0
"""Output: live, complete, in order, on the right stream, and no cost when idle."""

from __future__ import annotations

import ctypes.util
import time
from pathlib import Path

import pytest
from repl_process import Repl

BURST = "for i in range(300): print('line', i)\n"
BURST_LINES = [f"line {i}" for i in range(300)]


def arrival(result: object, data: bytes) -> float:
    """When the first chunk with `data` came."""
    for when, _, chunk in result.chunks:  # type: ignore[attr-defined]
        if data in chunk:
            return float(when)
    raise AssertionError(f"{data!r} did not come")


def test_stdout_and_stderr_are_apart(repl: Repl) -> None:
    result = repl.run("import sys\nprint('o')\nprint('e', file=sys.stderr)\nprint('o2')")
    assert (result.text, result.errors) == ("o\no2\n", "e\n")


def test_all_kinds_of_writers(repl: Repl) -> None:
    libc = ctypes.util.find_library("c")
    code = f"""
import ctypes, os, subprocess, sys
libc = ctypes.CDLL({libc!r})
print("print")
sys.stdout.write("write\\n")
sys.stdout.buffer.write(b"buffer\\n")
os.write(1, b"os.write\\n")
os.system("echo system")
subprocess.run(["echo", "run"])
libc.printf(b"printf")
print()
with os.popen("cat", "w") as pipe:
    _ = pipe.write("popen\\n")
subprocess.run(["sh", "-c", "echo err >&2"])
os.posix_spawn("/bin/sh", ["sh", "-c", "echo spawn"], os.environ)
os.wait()
print("given", file=sys.__stdout__)
subprocess.run("echo fileno", shell=True, stdout=sys.stdout)
"""
    result = repl.run(code)
    expected = "print write buffer os.write system run printf popen spawn given fileno"
    assert result.text.split() == expected.split() and result.errors == "err\n"


def test_order_with_children_inside_a_burst(repl: Repl) -> None:
    code = "import os, subprocess\n" + BURST + "os.system('echo child')\n" + BURST
    result = repl.run(code + "subprocess.run(['echo', 'second'])\n" + BURST + "os.write(2, b'e')")
    expected = [*BURST_LINES, "child", *BURST_LINES, "second", *BURST_LINES]
    assert result.text.splitlines() == expected


def test_order_of_text_and_binary_inside_a_burst(repl: Repl) -> None:
    code = "import sys\n" + BURST + "sys.stdout.buffer.write(b'raw\\n')\nprint('end')"
    assert repl.run(code).text.splitlines() == [*BURST_LINES, "raw", "end"]


def test_partial_lines_are_live(repl: Repl) -> None:
    result = repl.run("import time\nprint('a', end='')\ntime.sleep(0.4)\nprint('b')")
    assert arrival(result, b"a") < 0.3 and result.text == "ab\n"


def test_output_is_live_after_a_burst(repl: Repl) -> None:
    code = "import time\n" + BURST + "print('tail', end='')\ntime.sleep(0.6)\nprint('end')"
    result = repl.run(code)
    assert arrival(result, b"tail") < 0.45, "collected text was not written while the cell slept"


def test_threads_and_children_are_live(repl: Repl) -> None:
    code = "import threading, time, subprocess\n"
    code += "t = threading.Thread(target=lambda: print('thread'))\nt.start()\n"
    code += "subprocess.Popen(['sh', '-c', 'echo child'])\ntime.sleep(0.5)"
    result = repl.run(code)
    assert arrival(result, b"thread") < 0.3 and arrival(result, b"child") < 0.4


def test_output_after_the_cell_is_not_lost(repl: Repl) -> None:
    code = "import threading, time\ndef late():\n    time.sleep(0.15)\n"
    code += "    for i in range(200): print('late', i)\n    print('partial', end='')\n"
    assert repl.run(code + "threading.Thread(target=late).start()").out == b""
    lines = repl.drain(20, until=b"partial").text.splitlines()
    assert lines == [*(f"late {i}" for i in range(200)), "partial"]


def test_a_million_prints(repl: Repl) -> None:
    result = repl.run("for i in range(1_000_000): print(i)", timeout=40)
    assert result.out == b"".join(b"%d\n" % i for i in range(1_000_000))


def test_batching_is_used(repl: Repl) -> None:
    writes = "int(open('/proc/self/io').read().split('syscw: ')[1].split()[0])"
    result = repl.run(f"b = {writes}\nfor i in range(20000): print(i)\n{writes} - b")
    assert 32 < int(result.value or 0) < 2000, "every print made its own system call"


def test_large_single_output(repl: Repl) -> None:
    result = repl.run("print('x' * 50_000_000)")
    assert len(result.out) == 50_000_001 and set(result.out) == {120, 10}


def test_output_of_a_child_in_bulk(repl: Repl) -> None:
    assert len(repl.run("import os\nos.system('head -c 20000000 /dev/zero')").out) == 20_000_000


def test_binary_output_is_exact(repl: Repl) -> None:
    repl.run("import sys, os")
    every = bytes(range(256))
    assert repl.run("_ = sys.stdout.buffer.write(bytes(range(256)))").out == every
    assert repl.run("print('\\udcff\\udc80', end='')").out == b"\xff\x80"
    assert repl.run("print('é\\u20ac')").out == "é\u20ac\n".encode()
    result = repl.run("print('\\ud800')")
    assert result.exit_code == 1 and result.error is not None
    assert result.error["name"] == "UnicodeEncodeError"
    assert repl.run("print('on')").text == "on\n"


def test_results_are_strict_json(repl: Repl) -> None:
    code = "class R:\n    def __repr__(self): return '\\udc80\\ud800 a\\0b \U0001f600 é'\nR()"
    assert repl.run(code).value == "\\udc80\\ud800 a\\x00b \U0001f600 é"


@pytest.mark.parametrize(
    "code",
    [
        "'x' * 50_000_000",
        "'\\n' * 3_000_000",
        "'\u20ac' * 1_000_000",
        "b'\\0' * 10_000_000",
        "list(range(5_000_000))",
        "tuple(range(1_000_000))",
        "dict.fromkeys(range(1_000_000))",
        "set(range(1_000_000))",
        "[['y' * 1_000_000] * 3]",
        "class R:\n    def __repr__(self): return '\\x01' * 200_000\nR()",
    ],
)
def test_huge_results_are_cut_and_say_so(repl: Repl, code: str) -> None:
    result = repl.run(code)
    assert result.value is not None and result.exit_code == 0
    assert result.value.splitlines()[-1].startswith("[cut: the first ")
    assert len(result.value.encode()) > 8000
    assert result.seconds < 8


def test_two_writing_threads_keep_their_own_order(repl: Repl) -> None:
    code = (
        "import threading\ndef work(n):\n    for i in range(20000): print(f'{n} {i}\\n', end='')\n"
    )
    code += "ts = [threading.Thread(target=work, args=(n,)) for n in range(4)]\n"
    code += "[t.start() for t in ts]; [t.join() for t in ts]; None"
    lines = repl.run(code, timeout=40).text.splitlines()
    assert len(lines) == 80000
    for n in range(4):
        numbers = [int(line.split()[1]) for line in lines if line.startswith(f"{n} ")]
        assert numbers == list(range(20000))


def test_slow_reader_blocks_the_cell_and_loses_nothing(repl: Repl) -> None:
    repl.start("for i in range(400_000): print('%06d' % i)\nprint('done')")
    time.sleep(0.8)
    status = open(f"/proc/{repl.process.pid}/statm").read().split()
    assert int(status[1]) * 4096 < 60 << 20, "output is piling up in memory"
    result = repl.finish(40)
    assert len(result.out) == 400_000 * 7 + 5


def test_non_blocking_stdout_loses_nothing(repl: Repl) -> None:
    repl.start("import os\nos.set_blocking(1, False)\nprint('z' * 5_000_000)\nos.get_blocking(1)")
    time.sleep(0.3)
    result = repl.finish()
    assert len(result.out) == 5_000_001 and result.value == "False"


def switches(repl: Repl) -> int:
    """How often the threads of the interpreter have gone to sleep. How often others took the
    processor from them says nothing of them."""
    total = 0
    for status in Path(f"/proc/{repl.process.pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    return total


def test_no_thread_and_no_wakeups_when_idle(repl: Repl) -> None:
    repl.run("import threading")
    repl.run("for i in range(20000): print(i)")
    time.sleep(0.1)
    assert repl.threads() == 1
    before = switches(repl)
    time.sleep(0.7)
    assert switches(repl) == before


def test_quiet_running_cell_does_not_tick(repl: Repl) -> None:
    """After a burst, a cell that only sleeps is not woken again and again."""
    repl.start(BURST + "import time\ntime.sleep(1.2)\nprint('end')")
    repl.finish(until=b"line 299")
    time.sleep(0.3)
    assert repl.threads() == 1
    before = switches(repl)
    time.sleep(0.4)
    assert switches(repl) == before
    assert repl.finish().text.endswith("end\n")


def test_a_burst_has_one_thread(repl: Repl) -> None:
    repl.start("import time\nfor i in range(400):\n    print(i)\n    time.sleep(0.001)")
    repl.finish(until=b"\n200\n")
    assert repl.threads() == 2
    assert repl.finish().text.endswith("\n399\n")


def test_redirected_streams_end_with_the_cell(repl: Repl) -> None:
    repl.run("import sys, io\nsys.stdout = keep = io.StringIO()\nprint('hidden')")
    assert repl.run("print('seen')").text == "seen\n"
    assert repl.run("keep.getvalue()").value == "'hidden\\n'"
    code = "import contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as b: print('in')\n"
    assert repl.run(code + "print('out', b.getvalue())").text == "out in\n\n"


def test_own_wrapper_on_stdout_is_flushed(repl: Repl) -> None:
    repl.run("import sys, os\nsys.stdout = os.fdopen(os.dup(1), 'w')")
    assert repl.run("sys.stdout = os.fdopen(os.dup(1), 'w')\nprint('mine')").text == "mine\n"
    code = "import io\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='latin-1')\n"
    assert repl.run(code + "print('é')").out == b"\xe9\n"
    assert repl.run("import gc; gc.collect(); print('é')").out == "é\n".encode()
    code = "w = io.TextIOWrapper(sys.stdout.buffer)\nw.write('w'); w.close(); del w\nprint('end')"
    assert repl.run(code).text == "wend\n"


@pytest.mark.parametrize(
    "damage",
    [
        "os.close(1)",
        "os.close(0); os.close(1); os.close(2)",
        "sys.stdout.close()",
        "sys.stderr.close(); sys.stdin.close()",
        "sys.stdout.buffer.close()",
        "sys.stdout.detach()",
        "sys.stdout = None; sys.stderr = None",
        "del sys.stdout, sys.stderr, sys.stdin",
        "os.dup2(os.open('/dev/null', os.O_RDWR), 1)",
        "open(1, 'w').close()",
        "os.closerange(0, 21)",
        "os.closerange(3, 256)",
        "sys.stdout = open('/dev/null', 'w')",
        "os.close(1); f = open('steals-fd-1', 'w')",
    ],
)
def test_broken_streams_are_repaired(repl: Repl, damage: str) -> None:
    repl.run("import os, sys\nkeep = 1")
    steals = "dup2" in damage or "steals" in damage  # for these the text has to be out before
    result = repl.run(BURST + ("sys.stdout.flush()\n" if steals else "") + damage)
    assert result.exit_code == 0, result.errors
    assert result.text.splitlines() == BURST_LINES
    result = repl.run(BURST + "print(keep); print('e', file=sys.stderr); sys.stdin.read()")
    assert result.text.splitlines() == [*BURST_LINES, "1"]
    assert (result.errors, result.value, result.exit_code) == ("e\n", "''", 0)


def test_error_is_shown_although_stderr_is_gone(repl: Repl) -> None:
    for damage in ("sys.stderr.close()", "os.close(2)", "sys.stderr = None", "del sys.stderr"):
        result = repl.run(f"import os, sys\n{damage}\n1/0")
        assert "ZeroDivisionError" in result.errors, damage
        assert result.exit_code == 1


def test_print_to_a_closed_fd_is_an_error_in_that_cell(repl: Repl) -> None:
    result = repl.run("import os\nos.close(1)\nprint('x')")
    assert result.exit_code == 1 and "Bad file descriptor" in result.errors
