# SPDX-License-Identifier: Apache-2.0
"""Whether a session is quiet, as it tells with every EXIT, and the renewal that it does when asked."""

from __future__ import annotations

import json

import pytest
from repl_process import ERROR, OK, Died
from test_renew import Copied, repl  # noqa: F401  (repl is a fixture)

RENEW = 0x08

# Code, and whether nothing of the user's runs after it.
CASES = [
    ("pass", True),
    ("print(1); 1 + 1", True),
    ("1 / 0", True),
    ("raise SystemExit(3)", True),
    ("!true", True),
    ("import asyncio; await asyncio.sleep(0)", True),
    ("import random, threading, multiprocessing, signal, gc, sys, weakref", True),
    ("import subprocess; p = subprocess.Popen(['sleep', '60'])", True),
    ("import threading; t = threading.Thread(target=print); t.start(); t.join()", True),
    ("import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN);", True),
    ("import threading; e = threading.Event(); threading.Thread(target=e.wait).start()", False),
    ("import threading; threading.Timer(60, print).start()", False),
    ("import signal; signal.signal(signal.SIGUSR2, print);", False),
    ("import gc; gc.callbacks.append(print)", False),
    ("import sys; sys.addaudithook(lambda *a: None)", False),
    ("import podflare; podflare.on_fork(print);", False),
]


@pytest.mark.parametrize(("code", "quiet"), CASES)
def test_quiet(repl: Copied, code: str, quiet: bool) -> None:  # noqa: F811
    assert repl.ready["quiet"] is True
    assert repl.run(code).quiet is quiet
    assert repl.run("None").quiet is quiet


# A thread that Python has not started, in code of the user's, up to a word of it.
FOREIGN = """
import ctypes, time
over = []
def draw(_):
    while not over: time.sleep(0.005)
    return None
call = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(draw)
libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
libc.pthread_create(ctypes.byref(thread), None, call, None)
time.sleep(0.1)
"""


def test_a_thread_that_python_has_not_started(repl: Copied) -> None:  # noqa: F811
    assert repl.run(FOREIGN).quiet is False
    assert repl.run("None").quiet is False
    assert repl.run("over.append(1); libc.pthread_join(thread, None);").quiet is True


def test_whatever_the_user_has_made_of_it(repl: Copied) -> None:  # noqa: F811
    """An audit hook is not asked, and what is put in the place of functions is not called."""
    assert repl.run("import builtins, sys\nsys._current_frames = builtins.len = None").quiet is True
    hook = "import sys\ndef hook(event, _):\n    if event == 'sys._current_frames': raise KeyError(event)\n"
    assert repl.run(hook + "sys.addaudithook(hook)").quiet is False
    assert repl.run("1 + 1").value == "2"


def test_again_quiet(repl: Copied) -> None:  # noqa: F811
    repl.run("import threading; e = threading.Event(); t = threading.Thread(target=e.wait); t.start()")
    assert repl.run("e.set(); t.join()").quiet is True
    assert repl.run("import sys; sys.settrace(lambda *a: None); sys.setprofile(lambda *a: None)").quiet is True


def test_warm(repl: Copied) -> None:  # noqa: F811
    kind, payload = repl.warm()
    assert (kind, json.loads(payload)) == (OK, {"quiet": True})
    repl.run("import podflare; podflare.on_fork(print);")
    assert json.loads(repl.warm()[1]) == {"quiet": False}


def test_collections_wait(repl: Copied) -> None:  # noqa: F811
    """Finalizers of the user's would run between cells, in a copy before it is renewed."""
    repl.run("import gc; gc.enable()")
    assert repl.run("gc.isenabled()").value == "True"
    repl.run("gc.disable()")
    assert repl.run("gc.isenabled()").value == "False"
    repl.run("gc.enable()")
    repl.run("ran = []\nclass C:\n    def __del__(self): ran.append(1)\nc = C(); c.me = c; del c")
    repl.run("import threading; e = threading.Event(); threading.Thread(target=e.wait).start()")
    assert repl.run("gc.collect(); gc.isenabled(), ran").value == "(True, [1])"


def paid(repl: Copied) -> tuple[int, dict[str, object]]:  # noqa: F811
    repl.send(RENEW)
    kind, payload = repl.answer()
    return kind, json.loads(payload)


def test_pays(repl: Copied) -> None:  # noqa: F811
    repl.run("import random; state = random.getstate()")
    repl.serial = 4
    repl.state(generation=9)
    assert paid(repl) == (OK, {"renewed": 9, "serial": 4})
    assert repl.run("random.getstate() == state").value == "False"
    repl.run("state = random.getstate()")
    assert paid(repl) == (OK, {"renewed": 9, "serial": 4})  # answered, and not done again
    repl.serial = 5
    repl.state(generation=10, reseed=False)
    assert paid(repl) == (OK, {"renewed": 10, "serial": 5})
    assert repl.run("random.getstate() == state").value == "True"
    # The signal of the same renewal finds it done.
    repl.signal()
    assert repl.silent()


def test_hooks_are_called(repl: Copied) -> None:  # noqa: F811
    """(The agent asks quiet sessions only, which have none.)"""
    repl.run("import podflare; calls = []; podflare.on_fork(calls.append);")
    repl.serial = 1
    repl.state(generation=2)
    assert paid(repl)[0] == OK
    assert repl.run("calls").value == "[2]"


BROKEN = {
    "broken": "[]",
    "word": '{"serial":one,"generation":1,"reseed":true,"hold":false,"done":false}',
    "less": '{"serial":2,"generation":1,"reseed":true,"hold":false}',
    "empty": "",
}


@pytest.mark.parametrize("how", ["hook", "missing", *BROKEN])
def test_fails(repl: Copied, how: str) -> None:  # noqa: F811
    """The process ends: whatever was to run after it does not."""
    repl.serial = 1
    repl.state()
    if how == "hook":
        repl.run("import podflare; podflare.on_fork(lambda g: 1 / 0);")
    elif how in BROKEN:
        (repl.run_dir / "fork.json").write_text(BROKEN[how])
    else:
        (repl.run_dir / "fork.json").unlink()
    repl.send(RENEW)
    try:
        repl.start("open('ran', 'w')")
    except BrokenPipeError:
        pass  # it has ended already
    # What it had not read resets the connection, if that is noticed before its end.
    with pytest.raises((Died, ConnectionResetError)):
        if how == "hook":
            kind, payload = repl.answer()
            assert kind == ERROR and "ZeroDivisionError" in json.loads(payload)["message"]
        repl.finish()
    assert repl.process.wait(10) == 70
    assert not (repl.run_dir / "ran").exists()
