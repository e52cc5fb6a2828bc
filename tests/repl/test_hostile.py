# SPDX-License-Identifier: Apache-2.0
"""Cells that try to break the interpreter: each ends in a defined way, and the next cell works."""

from __future__ import annotations

import pytest
from repl_process import Repl

SURVIVED = [
    "import builtins\ndel builtins.print, builtins.len, builtins.isinstance, builtins.repr",
    "import builtins\nfor n in list(vars(builtins)): delattr(builtins, n)",
    "import builtins\nvars(builtins).clear()",
    "import builtins\nvars(builtins).clear()\n1/0",
    "import builtins\nvars(builtins).clear()\n(1, 2)",
    "del __builtins__",
    "__builtins__ = {}",
    "globals().clear()",
    "import sys\nsys.modules['__main__'] = None",
    "import sys\nfor m in list(sys.modules):\n    if not m.startswith('_'): del sys.modules[m]",
    "import os\nos.write = os.read = os.getpid = os.fstat = os.dup2 = None",
    "import time\ntime.sleep = time.monotonic = None",
    "import linecache, traceback\nlinecache.clearcache()\n1/0",
    "import traceback\ntraceback.TracebackException = None\n1/0",
    "import sys\nsys.setrecursionlimit(30)",
    "import sys\nfor n in range(5, 40):\n    try: sys.setrecursionlimit(n); break\n"
    "    except RecursionError: pass\n1/0",
    "import sys\nsys.excepthook = 5\n1/0",
    "import sys\ndel sys.excepthook\n1/0",
    "import sys\ndef t(*a): raise ValueError('trace')\nsys.settrace(t)\n(lambda: 0)()",
    "import sys\ndef t(*a): raise ValueError('profile')\nsys.setprofile(t)\n(lambda: 0)()",
    "import warnings\nwarnings.simplefilter('error')",
    "import gc\ngc.disable()\ngc.set_threshold(0)",
    "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass",
    "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
    "import threading\nthreading.Thread = None",
    "import sys, _thread\nfor i in range(50): _thread.start_new_thread(sys.exit, ())",
    "import threading, time\n"
    "for i in range(300): threading.Thread(target=time.sleep, args=(0.2,), daemon=True).start()",
    "class E(BaseException):\n    __qualname__ = 5\nE.__name__ = 'x' * 10**6\nraise E",
    "class M(type):\n    @property\n    def __qualname__(c): raise OSError('meta')\n"
    "class E(Exception, metaclass=M): pass\nraise E",
    "class E(SystemExit):\n    @property\n    def code(self): raise OSError\nraise E",
    "class E(Exception):\n    def __getattribute__(self, n): raise OSError('attr')\nraise E",
    "class D(dict):\n    def __repr__(self): raise SystemExit(4)\nD()",
    "def f():\n    yield\n    raise ValueError\nx = f(); next(x); del x",
    "class G:\n    def __del__(self): raise ValueError('finalizer')\nG()",
    "import atexit, os\natexit.register(os._exit, 9)",
    "import os\nos.environ.clear()",
    "import os, shutil\nos.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    "import sys\nsys.path.clear()\nsys.meta_path.clear()",
    "import sys\nsys.displayhook = None\n1",
    "import sys\nsys.stdout.write = None",
    "import sys\nsys.stdout.reconfigure(line_buffering=True)\nfor i in range(500): print(i)",
    "exec('raise ValueError')\n",
    "exec(compile('1/0', '<cell 1>', 'exec'))",
    "import asyncio\nasync def f(): raise KeyboardInterrupt\nawait f()",
    "import asyncio\nasyncio.get_event_loop_policy().get_event_loop().close()",
    "raise type('E', (Exception,), {'__traceback__': property(lambda s: 5)})()",
    "e = ValueError('loop'); e.__cause__ = e\nraise e",
    "e = None\nfor i in range(3000):\n    n = ValueError(i); n.__context__ = e; e = n\nraise e",
    "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (8, 4096))",
    "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\nfor i in range(500): print(i)",
    "import pickle\npickle.loads(b'\\x80\\x04c__builtin__\\nexit\\n(I3\\ntR.')",
    "[].__reduce_ex__(4).__class__.__base__.__subclasses__()",
    "import itertools\nnext(itertools.repeat(1, 0))",
    "x = []; x.append(x)\nx",
    "x = {}; x['self'] = x\nx",
    "open('/proc/self/fd/1', 'w').write('direct\\n')",
    "get_ipython = display = input = exit = None",
]


@pytest.mark.parametrize("code", SURVIVED)
def test_next_cell_works(repl: Repl, code: str) -> None:
    repl.run("keep = 41")
    result = repl.run(code)
    assert 0 <= result.exit_code <= 255 and result.state == "preserved"
    if code.rstrip().endswith(("1/0", "raise E", "raise e")):
        assert result.exit_code == 1 and result.err
    result = repl.run("for i in range(100): print(i)\nprint(len([1, 2]), repr('x'))\n40 + 2")
    assert result.exit_code in (0, 1)
    if "displayhook" not in code:
        assert result.value == "42", result.errors
    assert result.text.splitlines() == [*map(str, range(100)), "2 'x'"]
    if "globals().clear" not in code:
        repl.run("import sys; sys.displayhook = sys.__displayhook__")
        assert repl.run("keep").value == "41"


def test_a_builtin_that_is_deleted_by_the_first_cell_with_a_value(repl: Repl) -> None:
    """With that cell `_` comes into the builtins."""
    assert repl.run("import builtins\ndel builtins.hash\n42").value == "42"
    assert repl.run("hash(1)").value == "1"


def test_builtins_that_change_places(repl: Repl) -> None:
    """Their number is the same: the first error tells."""
    repl.run("import builtins")
    repl.run("del builtins.hash; builtins.more = 2")
    error = repl.run("hash(1)").error
    assert error and error["name"] == "NameError"
    assert repl.run("hash(1)").value == "1"


@pytest.mark.parametrize("name", ["len", "isinstance", "str", "getattr", "range", "Exception"])
def test_error_is_shown_although_builtins_were_replaced(repl: Repl, name: str) -> None:
    result = repl.run(f"import builtins\nbuiltins.{name} = None\n1/0")
    assert result.errors.startswith("Traceback (most recent call last):\n"), result.errors
    assert result.errors.endswith("ZeroDivisionError: division by zero\n")
    assert repl.run("1").value == "1"


def test_output_without_newline_is_not_collected(repl: Repl) -> None:
    result = repl.run("import sys\nfor i in range(3000): sys.stdout.write('x' * 20000)\nNone")
    assert len(result.out) == 60_000_000
    peak = repl.run("open('/proc/self/status').read().split('VmHWM:')[1].split()[0]").value
    assert int((peak or "").strip("'")) < 60_000


def test_infinite_and_exhausting_reprs(repl: Repl) -> None:
    code = "class R:\n    def __repr__(self):\n        return 'x' * (1 << 62)\nR()"
    result = repl.run(code)
    assert result.exit_code == 1 and result.error is not None
    assert result.error["name"] in ("MemoryError", "OverflowError")
    assert repl.run("1").value == "1"


def test_captured_write_methods_keep_working_in_order(repl: Repl) -> None:
    code = "import sys\nw = sys.stdout.write\nfor i in range(2000):\n    print(i)\n    _ = w(f'w{i}\\n')"
    lines = repl.run(code).text.splitlines()
    assert lines == [x for i in range(2000) for x in (str(i), f"w{i}")]
    repl.run("for i in range(200): print(i)\nheld = sys.stdout.write")
    assert repl.run("_ = held('still\\n')").text == "still\n"


def test_print_of_objects_whose_text_is_slow(repl: Repl) -> None:
    code = """
import threading, time
class Slow:
    def __str__(self):
        time.sleep(0.15)
        return 'slow'
t = threading.Thread(target=print, args=(Slow(),))
for i in range(100): print(i)
t.start()
for i in range(100): print(i)
"""
    assert "slow" not in repl.run(code).text
    assert repl.drain(20, until=b"slow\n").text == "slow\n"


def test_print_inside_finalizers_and_signal_handlers(repl: Repl) -> None:
    code = """
import signal
def handler(*a): print('handler')
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
class D:
    def __del__(self): print('del')
for i in range(30000): D(); print('x' * 50)
signal.setitimer(signal.ITIMER_REAL, 0)
"""
    text = repl.run(code).text
    assert text.count("del") == 30000 and text.count("x" * 50) == 30000
    assert set(text) == set("delhanrx\n")
