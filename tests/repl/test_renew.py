# SPDX-License-Identifier: Apache-2.0
"""Renewal by signal: in the middle of cells, once per serial number, whatever the user does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import pytest
from repl_process import ERROR, EVENT, EXIT, OK, PYTHON, REPL, Repl
from test_streams import switches

SIGNAL = signal.SIGRTMIN + 1
GUEST_MODULES = REPL.parents[1] / "images/default/files/usr/lib/python3.11"


class Copied(Repl):
    """An interpreter whose run directory is its own, and which can be told that it was copied."""

    def __init__(self, run: Path) -> None:
        self.run_dir = run
        self.serial = 0
        shutil.copytree(REPL.parent, run / "repl", ignore=shutil.ignore_patterns("__pycache__"))
        super().__init__(cwd=run, script=run / "repl/repl.py", env={"PYTHONPATH": str(GUEST_MODULES)})

    def state(self, **change: Any) -> None:
        """Writes fork.json as the agent does."""
        state = {
            "id": "sbx_1",
            "kind": "fork",
            "generation": 3,
            "reseed": True,
            "serial": self.serial,
            "hold": False,
            "done": False,
        }
        (self.run_dir / "new").write_text(json.dumps({**state, **change}))
        (self.run_dir / "new").rename(self.run_dir / "fork.json")

    def signal(self) -> None:
        os.kill(self.process.pid, SIGNAL)

    def tell(self, **change: Any) -> None:
        """A new renewal."""
        self.serial += 1
        self.state(**change)
        self.signal()

    def renewed(self, timeout: float = 20.0) -> dict[str, Any]:
        kind, payload = self.answer(timeout)
        assert kind == OK, payload
        answer = json.loads(payload)
        assert answer == {"renewed": answer["renewed"], "serial": self.serial}
        return dict(answer)

    def silent(self, seconds: float = 0.3) -> bool:
        """Nothing comes on the control channel."""
        self.control.settimeout(seconds)
        try:
            return not self.control.recv(1)
        except TimeoutError:
            return True
        finally:
            self.control.settimeout(None)


@pytest.fixture
def repl(tmp_path: Path) -> Iterator[Copied]:
    run = tmp_path / "run"
    run.mkdir()
    with Copied(run) as process:
        yield process


def begin(repl: Copied, code: str) -> None:
    """Starts a cell and waits until it has said so."""
    repl.start("import time\nprint('on', flush=True)\n" + code)
    repl.finish(until=b"on\n")


def test_idle(repl: Copied) -> None:
    repl.tell(generation=7)
    assert repl.renewed()["renewed"] == 7
    assert repl.run("1 + 1").value == "2"


def test_once_per_serial(repl: Copied) -> None:
    repl.run("import podflare\ncalls = []\npodflare.on_fork(calls.append);")
    repl.tell()
    repl.renewed()
    repl.signal()
    repl.signal()
    assert repl.silent()
    repl.tell(generation=4)
    repl.renewed()
    assert repl.run("calls").value == "[3, 4]"


@pytest.mark.parametrize("hold", [False, True])
def test_one_that_was_before_it(tmp_path: Path, hold: bool) -> None:
    """A session that begins in a machine that was renewed has nothing of the machine before that."""
    run = tmp_path / "run"
    run.mkdir()
    state = {"id": "sbx_1", "kind": "create", "generation": 0, "reseed": True, "serial": 2, "hold": hold, "done": hold}
    (run / "fork.json").write_text(json.dumps(state))
    with Copied(run) as repl:
        repl.run("import podflare, random\ncalls = []\npodflare.on_fork(calls.append)\nrandom.seed(7);")
        repl.signal()
        assert repl.silent()
        assert repl.run("random.random(), calls").value == str((random.Random(7).random(), []))
        repl.serial = 2
        repl.tell(generation=4)
        repl.renewed()
        assert repl.run("calls").value == "[4]"


@pytest.mark.parametrize("text", ["", "{", "{broken", '{"serial":"x","generation":1,"reseed":true,"hold":false,"done":true}'])
def test_begins_whatever_the_file_is(tmp_path: Path, text: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "fork.json").write_text(text)
    with Copied(run) as repl:
        repl.tell()
        repl.renewed()


def test_a_signal_of_nobody(repl: Copied) -> None:
    repl.signal()
    assert repl.silent()
    (repl.run_dir / "fork.json").write_text("{broken")
    repl.signal()
    assert repl.silent()
    assert repl.run("import os\nos.kill(os.getpid(), %d)\n'alive'" % SIGNAL).value == "'alive'"


RUNNING = {
    "sleep": ("time.sleep(0.6)\n'done'", 0.6),
    "busy": ("end = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass\n'done'", 0.6),
    "lock": (
        "import threading\nl = threading.Lock(); l.acquire()\n"
        "threading.Timer(0.6, l.release).start()\nl.acquire()\n'done'",
        0.6,
    ),
    "event": ("import threading\nthreading.Event().wait(0.6)\n'done'", 0.6),
    "queue": (
        "import queue, threading\nq = queue.Queue()\nthreading.Timer(0.6, q.put, ['done']).start()\nq.get()",
        0.6,
    ),
    "socket": (
        "import socket, threading\na, b = socket.socketpair()\n"
        "threading.Timer(0.6, a.send, [b'done']).start()\nb.recv(9).decode()",
        0.6,
    ),
    "timeout": (
        "import socket\na, b = socket.socketpair()\nb.settimeout(0.6)\n"
        "try: b.recv(1)\nexcept TimeoutError: r = 'done'\nr",
        0.6,
    ),
    "select": ("import select\nselect.select([], [], [], 0.6)\n'done'", 0.6),
    "child": ("import subprocess\nsubprocess.run(['sleep', '0.6']).returncode or 'done'", 0.6),
    "pipe": (
        "import subprocess\n"
        "subprocess.run('sleep 0.6; echo -n done', shell=True, capture_output=True, text=True).stdout",
        0.6,
    ),
    "asyncio": ("import asyncio\nawait asyncio.sleep(0.6)\n'done'", 0.6),
    "asyncio.run": ("import asyncio\nasyncio.run(asyncio.sleep(0.6, 'done'))", 0.6),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor as P\n"
        "with P(8) as p: r = list(p.map(lambda n: (time.sleep(0.6), n)[1], range(8)))\n"
        "'done' if r == list(range(8)) else r",
        0.6,
    ),
    "generator": ("sum(1 for _ in range(300) if not time.sleep(0.002)) == 300 and 'done'", 0.6),
}


@pytest.mark.parametrize("what", RUNNING)
def test_in_the_middle_of_a_cell(repl: Copied, what: str) -> None:
    """The cell notices nothing: its result is right, and it takes as long as it should."""
    code, seconds = RUNNING[what]
    repl.run("import podflare\ncalls = []\npodflare.on_fork(calls.append);")
    began = time.monotonic()
    begin(repl, code)
    for _ in range(3):
        time.sleep(0.05)
        repl.tell()
        repl.renewed(5)
    result = repl.finish()
    assert (result.value, result.exit_code, result.errors) == ("'done'", 0, "")
    assert seconds - 0.05 < time.monotonic() - began < seconds + 3
    assert repl.run("calls").value == "[3, 3, 3]"


def test_runs_before_the_next_code_of_the_user(repl: Copied) -> None:
    """Stopped, signalled, and continued: what the cell draws afterwards is new."""
    repl.run("import random, podflare\nlog = []\npodflare.on_fork(lambda g: log.append('renewed'));")
    begin(repl, "for n in range(10**9):\n    log.append(n)\n    if log[-2:-1] == ['renewed']: break\n")
    os.kill(repl.process.pid, signal.SIGSTOP)
    repl.tell()
    os.kill(repl.process.pid, signal.SIGCONT)
    repl.renewed()
    assert repl.finish().exit_code == 0
    assert repl.run("log.count('renewed'), log[-2]").value == "(1, 'renewed')"


def test_while_it_reads_the_code(repl: Copied) -> None:
    repl.send(0x01, b"{}")
    repl.send(0x06, b"x = ")
    time.sleep(0.05)
    repl.tell()
    repl.renewed()
    repl.send(0x06, b"41\nx + 1")
    repl.send(0x07)
    assert repl.finish().value == "42"


def test_between_large_events(repl: Copied) -> None:
    """An answer never lands inside of another frame."""
    repl.start("for n in range(400): display('x' * 50000)" if repl.ready["ipython"] else "pass")
    time.sleep(0.2)
    repl.tell()
    frames = []
    while not frames or frames[-1][0] != EXIT:
        frames.append(repl.answer())
    assert [k for k, _ in frames if k != EVENT] in ([OK, EXIT], [EXIT, OK])


SAME = """
import random, tempfile, uuid, ssl
random.random(); uuid.uuid1(); uuid.getnode(); next(tempfile._get_candidate_names())
state = random.getstate()
names = tempfile._name_sequence
node = uuid._node
"""


def test_random(repl: Copied) -> None:
    repl.run(SAME)
    repl.tell()
    repl.renewed()
    code = "random.getstate() != state, tempfile._name_sequence is not names, uuid.getnode() != node"
    assert repl.run(code).value == "(True, True, True)"
    assert repl.run("len({uuid.uuid1() for _ in range(1000)}), uuid.uuid1().node == uuid.getnode()"
                    ).value == "(1000, True)"
    assert repl.run("bool(uuid.getnode() >> 40 & 1), tempfile.mkstemp()[0] > 0").value == "(True, True)"
    repl.run("random.seed(5)\nstate = random.getstate()\nnode = uuid._node")
    repl.tell(reseed=False)
    repl.renewed()
    assert repl.run("random.getstate() == state, uuid._node == node").value == "(True, True)"


def test_own_generators_are_left_alone(repl: Copied) -> None:
    repl.run("import random\nr = random.Random(5)\nstate = r.getstate()")
    repl.tell()
    repl.renewed()
    assert repl.run("r.getstate() == state").value == "True"


def has_numpy() -> bool:
    return subprocess.run([PYTHON, "-c", "import numpy"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_numpy(), reason="numpy is not installed (package python3-numpy)")
def test_numpy(repl: Copied) -> None:
    repl.run("import numpy as np\nnp.random.seed(1); np.random.standard_normal()\n"
             "state = np.random.get_state(legacy=False)")
    repl.tell()
    repl.renewed()
    code = ("new = np.random.get_state(legacy=False)\n"
            "(new['state']['key'] != state['state']['key']).any(), new['has_gauss']")
    assert repl.run(code).value == "(True, 0)"
    repl.run("np.random.seed(1); state = np.random.get_state()")
    repl.tell(reseed=False)
    repl.renewed()
    assert repl.run("bool((np.random.get_state()[1] == state[1]).all())").value == "True"
    repl.run("np.random.set_bit_generator(np.random.PCG64(5))\n"
             "state = np.random.get_state(legacy=False)")
    repl.tell()
    repl.renewed()
    assert repl.run("np.random.get_state(legacy=False) != state").value == "True"
    begin(repl, "a = np.ones((600, 600))\nfor _ in range(40): b = a @ a\nfloat(b[0, 0])")
    repl.tell()
    repl.renewed(10)
    assert repl.finish().value == "600.0"


@pytest.mark.parametrize("name", ["random", "tempfile", "uuid", "_ssl", "numpy.random.mtrand"])
def test_half_imported_modules(repl: Copied, name: str) -> None:
    repl.run(f"import sys, types\nsys.modules[{name!r}] = types.ModuleType({name!r})")
    repl.tell()
    repl.renewed()
    repl.run(f"sys.modules[{name!r}] = None")
    repl.tell()
    repl.renewed()


@pytest.mark.parametrize(
    "code",
    [
        "import signal\nfor s in signal.valid_signals() - {9, 19}: signal.signal(s, signal.SIG_DFL)",
        "import signal\nfor s in range(1, 65):\n"
        "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))",
        "import signal\nsignal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())",
        "from signal import pthread_sigmask, SIG_BLOCK\npthread_sigmask(SIG_BLOCK, [36, 35])",
        "import threading\nthreading.Thread(target=__import__('time').sleep, args=[30], daemon=True).start()",
        "import sys\nsys.setrecursionlimit(100)",
        "import builtins\ndel builtins.int, builtins.getattr, builtins.OSError",
        "import os, time, json\nos.open = os.read = os.close = os.getpid = time.sleep = None",
        "import sys\nsys.settrace(lambda *a: None)",
        "import random\nrandom.seed = random.random = None",
        "import gc\ngc.disable()",
    ],
)
def test_user_code_does_not_disturb_it_by_accident(repl: Copied, code: str) -> None:
    assert repl.run(code).exit_code == 0
    repl.tell()
    repl.renewed(5)
    begin(repl, code + "\nimport time as t\nend = t.monotonic() + 0.3\nwhile t.monotonic() < end: pass")
    repl.tell()
    repl.renewed(5)
    assert repl.finish().exit_code == 0


def test_signals_of_the_user_are_untouched(repl: Copied) -> None:
    repl.run("import signal, os\ngot = []\n"
             "signal.signal(signal.SIGUSR1, lambda s, f: got.append(s))\n"
             "signal.signal(signal.SIGRTMIN + 3, lambda s, f: got.append(s))")
    repl.tell()
    repl.renewed()
    code = ("os.kill(os.getpid(), signal.SIGUSR1); os.kill(os.getpid(), signal.SIGRTMIN + 3)\n"
            "got == [signal.SIGUSR1, signal.SIGRTMIN + 3]")
    assert repl.run(code).value == "True"
    assert repl.run("signal.pthread_sigmask(signal.SIG_BLOCK, [])").value == "set()"


def test_deep_recursion(repl: Copied) -> None:
    """Near the limit of the stack there is still room for it."""
    begin(repl, "import sys\ndef deep(n):\n    if n: return deep(n - 1)\n"
          "    end = time.monotonic() + 0.5\n    while time.monotonic() < end: pass\n    return 'done'\n"
          "deep(sys.getrecursionlimit() - 30)")
    time.sleep(0.1)
    repl.tell()
    repl.renewed(5)
    assert repl.finish().value == "'done'"


def test_interrupt_beside_it(repl: Copied) -> None:
    """A cancel that comes with it is neither lost nor in its way."""
    for _ in range(20):
        begin(repl, "time.sleep(30)")
        os.kill(repl.process.pid, signal.SIGSTOP)
        repl.tell()
        repl.interrupt()
        os.kill(repl.process.pid, signal.SIGCONT)
        kinds = []
        while EXIT not in kinds or OK not in kinds:
            kinds.append(repl.answer(10)[0])
        assert kinds.count(OK) == 1
        repl.drain(0.01)


def test_hooks(repl: Copied) -> None:
    repl.run("import podflare\nlog = []\n@podflare.on_fork\ndef first(g): log.append(('first', g))\n"
             "podflare.on_fork(lambda g: log.append(('second', g)));")
    repl.tell(generation=9, reseed=False)
    repl.renewed()
    assert repl.run("log").value == "[('first', 9), ('second', 9)]"
    assert repl.run("podflare.on_fork(5)").error["name"] == "TypeError"  # type: ignore[index]


def test_hook_that_starts_a_program(repl: Copied) -> None:
    """Its child can be signalled: the mask of the handler is not for hooks."""
    repl.run("import podflare, subprocess\nout = []\npodflare.on_fork(lambda g: out.append("
             "subprocess.check_output(['grep', 'SigBlk', '/proc/self/status'])));")
    repl.tell()
    repl.renewed()
    assert "0000000000000000" in (repl.run("out[0]").value or "")


@pytest.mark.parametrize("error", ["ValueError('no key')", "KeyboardInterrupt", "SystemExit(0)"])
def test_hook_that_raises(repl: Copied, error: str) -> None:
    """Fails with its traceback, and the user's code does not go on."""
    repl.run(f"import podflare\n@podflare.on_fork\ndef renew(g): raise {error}")
    begin(repl, "for n in range(200): print(n, flush=True); time.sleep(0.01)\n")
    repl.tell()
    kind, payload = repl.answer()
    answer = json.loads(payload)
    assert kind == ERROR and answer["serial"] == repl.serial
    assert "in renew" in answer["message"] and error.split("(")[0] in answer["message"]
    assert len(answer["message"]) <= 400
    repl.drain(0.1)
    assert repl.drain(0.3).out == b""
    before = switches(repl)
    time.sleep(0.5)
    assert switches(repl) - before < 15
    repl.tell(reseed=False)  # another one, which fails as well
    assert repl.answer()[0] == ERROR


def test_hold(repl: Copied) -> None:
    """It waits until the rest of the renewal is done."""
    begin(repl, "for n in range(10**9):\n    print(n, flush=True); time.sleep(0.01)\n    if n == 60: break")
    repl.tell(hold=True)
    repl.renewed()
    repl.drain(0.05)
    assert repl.drain(0.3).out == b""
    repl.state(hold=True, done=True)
    assert repl.finish().exit_code == 0


def test_forked_children_are_not_told(repl: Copied) -> None:
    repl.run("import podflare, os, time, signal")
    code = """
pid = os.fork()
if pid == 0:
    try: podflare.on_fork(print); code = 1
    except RuntimeError as e: code = 7 if 'on-fork.d' in str(e) else 2
    os.kill(os.getpid(), signal.SIGRTMIN + 1)
    os._exit(code)
os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
    assert repl.run(code).value == "7"
    assert repl.silent()


def test_module_outside_of_the_session(tmp_path: Path) -> None:
    code = "import podflare\nprint(podflare.generation())\npodflare.on_fork(print)"
    done = subprocess.run(
        [PYTHON, "-c", code], env={"PYTHONPATH": str(GUEST_MODULES)}, capture_output=True, text=True
    )
    assert done.stdout == "0\n" and done.returncode == 1
    assert "RuntimeError: podflare.on_fork() works in the sandbox's Python session only" in done.stderr
    file = tmp_path / "generation"
    file.write_text("12\n")
    code = f"import podflare\npodflare._GENERATION = {str(file)!r}\nprint(podflare.generation())"
    out = subprocess.check_output([PYTHON, "-c", code], env={"PYTHONPATH": str(GUEST_MODULES)})
    assert out == b"12\n"


COPIES = """
import ctypes, os, ssl, sys
sys.path.insert(0, sys.argv[1])
import types
package = types.ModuleType("_podflare_repl"); package.__path__ = [sys.argv[1]]
sys.modules[package.__name__] = package
from _podflare_repl import renew
libc = ctypes.CDLL(None, use_errno=True)
ssl.RAND_bytes(16)
def copies(reseed):
    # A copy with the same process id, made behind the back of libc: what a copied machine is like.
    found = []
    for _ in range(3):
        out, into = os.pipe()
        pid = libc.syscall(56, 0x20000000 | 17, 0, 0, 0, 0)
        if pid == 0:
            if reseed: renew.reseed()
            os.write(into, (str(os.getpid()) + ssl.RAND_bytes(16).hex()).encode())
            os._exit(0)
        if pid < 0: sys.exit(77)
        os.waitpid(pid, 0)
        found.append(os.read(out, 100))
    return len(set(found))
assert os.getpid() == 1
print(copies(False), copies(True))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for process namespaces")
def test_openssl_in_copies(tmp_path: Path) -> None:
    """Copies of one state repeat OpenSSL's numbers, and no longer when they were renewed."""
    command = ["unshare", "--pid", "--fork", PYTHON, "-c", COPIES, str(REPL.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode == 77:
        pytest.skip("no process namespaces")
    assert (done.stdout, done.stderr) == ("1 3\n", ""), (done.stdout, done.stderr)


def test_idle_afterwards(repl: Copied) -> None:
    """No timer, no thread, no wake-up."""
    repl.run(SAME)
    repl.tell()
    repl.renewed()
    assert repl.threads() == 1
    for _ in range(5):  # it may still be on its way back to sleep
        before = switches(repl)
        time.sleep(1)
        if switches(repl) == before:
            return
    raise AssertionError("it wakes up")


