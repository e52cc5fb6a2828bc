# SPDX-License-Identifier: Apache-2.0
"""Hostile snippets: each has a defined result. tests/repl runs all of them in an interpreter that it
plays the agent for, tests/e2e some of them in a guest.

The table says what a snippet does: its exit code (or those that are possible), End with the wait
status of the process, Stop for what has to be interrupted, KILL for what ignores interrupts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True)
class End:
    """The process ends with one of these statuses."""

    statuses: tuple[int, ...]


@dataclass(frozen=True)
class Stop:
    """Runs for ever; an interrupt ends it with this exit code."""

    code: int = 130


KILL = "only a kill ends it"

Outcome = Union[int, tuple[int, ...], End, Stop, str]

# name: (code, outcome)
SNIPPETS: dict[str, tuple[str, Outcome]] = {
    # Ends of threads and processes
    "sys.exit in threads": (
        "import sys, threading\nts = [threading.Thread(target=sys.exit, args=(3,)) for i in range(50)]\n"
        "for t in ts: t.start()\nfor t in ts: t.join()",
        0,
    ),
    "os._exit": ("import os\nprint('last words', end='')\nos._exit(5)", End((5,))),
    "os._exit in a thread": (
        "import os, threading\nthreading.Thread(target=os._exit, args=(6,)).start()\nwhile True: pass",
        End((6,)),
    ),
    "kill of itself": ("import os\nos.kill(os.getpid(), 9)", End((-9,))),
    "kill of its group": ("import os\nos.killpg(0, 15)", End((-15,))),
    "abort": ("import os\nos.abort()", End((-6,))),
    "alarm without a handler": (
        "import signal, time\nsignal.alarm(1)\ntime.sleep(30)",
        End((-14,)),
    ),
    "exec of another program": ("import os\nos.execv('/bin/true', ['true'])", End((0,))),
    "exec of no program": ("import os\nos.execv('/nonexistent', ['x'])", 1),
    "faulthandler that exits": (
        "import faulthandler, time\nfaulthandler.dump_traceback_later(0.1, exit=True)\ntime.sleep(30)",
        End((1,)),
    ),
    "null pointer": ("import ctypes\nctypes.string_at(0)", End((-11,))),
    "recursion to a crash": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return list(map(lambda _: f(), [0]))\nf()",
        End((-11,)),
    ),
    "SystemExit in a finalizer": (
        "class D:\n    def __del__(self): raise SystemExit(3)\nD(); None",
        0,
    ),
    "SystemExit with anything": ("raise SystemExit(object())", 1),
    "GeneratorExit": ("raise GeneratorExit", 1),
    # Descriptors and streams
    "closing fds 0 to 20": ("import os\nos.closerange(0, 21)", 0),
    "closing all fds": ("import os\nos.closerange(0, 1 << 16)", End((70,))),
    "all fds point to stdout": (
        "import os\nfor fd in range(3, 1024):\n    if fd not in (1, 2): os.dup2(1, fd)",
        End((70,)),
    ),
    "stdout to /dev/null": ("import os\nos.dup2(os.open('/dev/null', os.O_RDWR), 1)\nprint(1)", 0),
    "sys.stdout is None": ("import sys\nsys.stdout = None\nprint(1)\nsys.stderr = None\n1 / 0", 1),
    "sys.stdout is an object": ("import sys\nsys.stdout = object()\nprint(1)", 1),
    "sys.stdout is gone": (
        "import sys\ndel sys.stdout, sys.stderr, sys.stdin, sys.displayhook\n1",
        1,
    ),
    "streams closed": ("import sys\nfor f in (sys.stdin, sys.stdout, sys.stderr): f.close()", 0),
    "sys.stdout raises": (
        "import sys\nclass W:\n    def __getattr__(self, n): raise KeyboardInterrupt\nsys.stdout = W()",
        (0, 130),
    ),
    "undecodable bytes": (
        "import sys\n_ = sys.stdout.buffer.write(bytes(range(256)) * 999)\nprint('\\udcff\\ud800'[:1])\n"
        "'\\udcff\\ud800\\0'",
        0,
    ),
    "a gibibyte without newline": (
        "import os\nb = b'x' * (1 << 20)\nfor i in range(1024): _ = os.write(1, b)",
        0,
    ),
    "flood from a thread": (
        "import threading\ndef flood():\n    for i in range(300000): print('flood', i)\n"
        "threading.Thread(target=flood, daemon=True).start()",
        0,
    ),
    # The language taken apart
    "builtins deleted": ("import builtins\nvars(builtins).clear()", 0),
    "no import": ("import builtins\nbuiltins.__import__ = None\nimport json", 1),
    "exceptions replaced": (
        "import builtins\nbuiltins.BaseException = builtins.Exception = builtins.KeyboardInterrupt = int\n"
        "1 / 0",
        1,
    ),
    "modules deleted": ("import sys\nsys.modules.clear()", 0),
    "import system deleted": (
        "import sys\nfor l in (sys.meta_path, sys.path_hooks, sys.path): l.clear()\n"
        "sys.path_importer_cache.clear()",
        0,
    ),
    "modules emptied": (
        "import sys\nfor n, m in list(sys.modules.items()):\n"
        "    if n in ('json', 'json.encoder', 'json.decoder', 'linecache', 'traceback', 'textwrap',\n"
        "             're', 'select', 'struct', 'fcntl', 'gc', 'time', 'functools', 'itertools'):\n"
        "        for k in [k for k in vars(m) if k[:2] != '__']: setattr(m, k, None)",
        0,
    ),
    "os emptied": (
        "import os\nfor k in [k for k in vars(os) if k[:2] != '__']: setattr(os, k, None)",
        0,
    ),
    "sys emptied": (
        "import sys\nfor k in ('stdout', 'modules', 'path', 'displayhook', 'excepthook', 'gettrace',\n"
        "          'settrace', 'getrecursionlimit', 'getprofile', 'setprofile'): setattr(sys, k, None)",
        (0, 1),
    ),
    "everything emptied": (
        "import sys\nv, l = vars, list(sys.modules.items())\n"
        "for n, m in l:\n    if n not in ('sys', '__main__'): v(m).clear()",
        End((1, 70)),
    ),
    "the interpreter's modules emptied": (
        "import sys\nfor n, m in list(sys.modules.items()):\n"
        "    if n.startswith('_podflare'): vars(m).clear()",
        End((1, 70)),
    ),
    "trace that raises": (
        "import sys, threading\ndef t(*a): raise ValueError\nthreading.settrace(t)\nsys.setprofile(t)\n"
        "sys.settrace(t)\n(lambda: 0)()",
        (0, 1),
    ),
    "exec inside exec": (
        "x = '1 / 0'\nfor i in range(60): x = f'exec({x!r})' if i < 8 else x\nexec(x)",
        1,
    ),
    "exec that clears its globals": ("exec('globals().clear(); locals().clear()')", 0),
    "deep expression": ("eval('(' * 5000 + ')' * 5000)", 1),
    "long chain": ("eval('+'.join(['1'] * 200000))", 1),
    "many minus signs": ("eval('-' * 300000 + '1')", 1),
    # What is shown
    "infinite repr": ("class R:\n    def __repr__(self):\n        while True: pass\nR()", Stop()),
    "infinite html": (
        "class R:\n    def _repr_html_(self):\n        while True: pass\nR()",
        Stop(),
    ),
    "repr that raises": ("class R:\n    def __repr__(self): raise OSError('r')\nR()", 1),
    "repr that exits": ("class R:\n    def __repr__(self): raise SystemExit(9)\n[R()]", 9),
    "repr that is no text": ("class R:\n    def __repr__(self): return 5\nR()", 1),
    "repr of itself": ("class R:\n    def __repr__(self): return repr(self)\nR()", 1),
    "repr of 300 MB": ("class R:\n    def __repr__(self): return 'é' * 150_000_000\nR()", 0),
    "class that lies": (
        "class R:\n    __class__ = property(lambda s: 1 / 0)\n    def __repr__(s): return 'lie'\nR()",
        0,
    ),
    "metaclass that raises": (
        "class M(type):\n    def __getattribute__(c, n): raise OSError(n)\n"
        "class R(metaclass=M):\n    def __repr__(s): return 'meta'\nR()",
        0,
    ),
    "display of huge objects": (
        "display(range(10**12), list(range(3_000_000)), 'x' * 50_000_000, {i: i for i in range(10**6)})",
        0,
    ),
    "display of deep lists": ("x = []\nfor i in range(10**5): x = [x]\ndisplay(x)", 1),
    "html of 50 MB": (
        "class R:\n    def _repr_html_(self): return 'x' * 50_000_000\ndisplay(R())",
        0,
    ),
    "ten thousand displays": ("for i in range(10000): display(i)", 0),
    # Signals
    "ignores SIGINT": (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('ready', flush=True)\n"
        "while True: pass",
        KILL,
    ),
    "catches KeyboardInterrupt": (
        "print('ready', flush=True)\nwhile True:\n    try:\n        for i in iter(int, 1): i += 1\n"
        "    except BaseException: pass",
        KILL,
    ),
    "blocks all signals": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
        0,
    ),
    "ignores all signals": (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass",
        0,
    ),
    "await for ever": ("import asyncio\nawait asyncio.Event().wait()", Stop()),
    "lock for ever": ("import threading\nl = threading.Lock(); l.acquire(); l.acquire()", Stop()),
    # Resources
    "all memory": ("b = []\nwhile True: b.append(bytearray(1 << 26))", 1),
    "unpickling bomb": (
        "import pickle\nclass B:\n    def __reduce__(s): return bytes.__mul__, (b'x' * 2**20, 2**40)\n"
        "pickle.loads(pickle.dumps(B()))",
        1,
    ),
    "unpickling runs code": (
        "import pickle\nclass B:\n    def __reduce__(s): return exit, (7,)\npickle.loads(pickle.dumps(B()))",
        7,
    ),
    "ten thousand threads": (
        "import threading\nthreading.stack_size(65536)\ne = threading.Event()\nts = []\ntry:\n"
        "    for i in range(10000):\n        ts.append(threading.Thread(target=e.wait)); ts[-1].start()\n"
        "except RuntimeError as x: print(x)\ne.set()\nfor t in ts[:-1]: t.join()",
        0,
    ),
    "threads that stay": (
        "import threading, time\nfor i in range(100):\n"
        "    threading.Thread(target=time.sleep, args=(3,), daemon=False).start()",
        0,
    ),
    "full disk": ("f = open('/dev/full', 'w')\nf.write('x' * 10**6)\nf.flush()", 1),
    "file size limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "open('big', 'wb').write(bytes(10**6))",
        1,
    ),
    "no more files": (
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\nopen('x')",
        1,
    ),
    "gc callback that raises": (
        "import gc\ndef c(*a): raise ValueError\ngc.callbacks.append(c)\ngc.set_threshold(1)\n"
        "x = [[] for i in range(1000)]\ngc.callbacks.clear()",
        0,
    ),
    "working directory gone": ("import os\nos.mkdir('d'); os.chdir('d'); os.rmdir('../d')", 0),
    "environment gone": ("import os\nos.environ.clear()\nos.umask(0o777)", 0),
    # Children
    "fork without exec": (
        "import os\nif os.fork() == 0:\n    print('child'); display(1)\n_ = os.wait()",
        0,
    ),
    "forks that are not waited for": ("import os\nfor i in range(6): os.fork()", 0),
    "fork in a thread": (
        "import os, threading\ndef f():\n    if os.fork() == 0: print('c'); raise SystemExit\n    os.wait()\n"
        "t = threading.Thread(target=f); t.start(); t.join()",
        0,
    ),
    "child that stays": ("import os, time\nif os.fork() == 0: time.sleep(5)", 0),
    "daemon that keeps stdout": ("import os\nos.system('setsid sleep 5 &')", 0),
    "worker that dies": (
        "import os\nfrom concurrent.futures import ProcessPoolExecutor as P\n"
        "with P(2) as p: p.submit(os._exit, 3).result()",
        1,
    ),
    "child floods and is killed": (
        "import subprocess\np = subprocess.Popen(['yes'])\nimport time; time.sleep(0.2); p.kill(); p.wait()",
        0,
    ),
    "another session": ("import os\ntry: os.setsid()\nexcept OSError: pass\nos.nice(5)\nNone", 0),
    "no terminal": (
        "for f in (input, breakpoint):\n    try: f()\n    except EOFError: pass\ninput()",
        1,
    ),
}
assert len(SNIPPETS) >= 50
