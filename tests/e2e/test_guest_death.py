# SPDX-License-Identifier: Apache-2.0
"""A guest that destroys itself: the API says what happened, and no other sandbox notices."""

from __future__ import annotations

import re
import threading
from typing import Callable

import pytest
from guest import SMALL, py, sh

import podflare
from podflare import Client, Sandbox

pytestmark = pytest.mark.limit(400)

# Linux reboot(2) commands.
POWER_OFF, RESTART, HALT = 0x4321FEDC, 0x01234567, 0xCDEF0123

# Root overwrites the code of process 1, which is the agent.
KILL_AGENT = r"""
import re
for line in open("/proc/1/maps"):
    start, end, rights = re.match(r"(\w+)-(\w+) (\S+)", line).groups()
    if "x" in rights and "vsyscall" not in line and "vdso" not in line:
        with open("/proc/1/mem", "r+b", buffering=0) as memory:
            memory.seek(int(start, 16))
            memory.write(b"\x0f\x0b" * ((int(end, 16) - int(start, 16)) // 2))
"""


def reboot(command: int) -> str:
    return f"sudo python3 -c 'import ctypes; ctypes.CDLL(None).reboot({command:#x})'; sleep 1000"


def assert_ended(result: podflare.ExecResult, sandbox: Sandbox, client: Client, why: str) -> None:
    """The command's result and everything after it say that, and why, the sandbox ended."""
    assert (result.exit_code, result.termination_reason, result.ok) == (
        -1,
        "vm_ended",
        False,
    ), result
    assert re.search(f"podflare: sandbox ended: .*({why})", result.stderr, re.I), result.stderr
    info = sandbox.info()
    assert info.state == "ended" and info.ended_reason
    assert re.search(why, info.ended_reason, re.I), info.ended_reason
    for use in (
        lambda: sandbox.run_code("print(1)"),
        lambda: sandbox.upload(b"x", "/tmp/x"),
        lambda: sandbox.download("/etc/hostname"),
        lambda: Sandbox.connect(sandbox.id, client=client),
    ):
        with pytest.raises(podflare.SandboxEndedError) as e:
            use()
        assert re.search(why, str(e.value), re.I), str(e.value)
    sandbox.close()
    sandbox.close()


@pytest.mark.parametrize(
    "script, why",
    [
        ("echo c | sudo tee /proc/sysrq-trigger; sleep 1000", "panic|reset|reboot|crash"),
        (f"sudo python3 -c '{KILL_AGENT}'; sleep 1000", "panic|reset|reboot|crash|agent"),
        (reboot(POWER_OFF), "power"),
        (reboot(RESTART), "reset|reboot|restart"),
        (reboot(HALT), "answer|respon|halt"),
    ],
    ids=["panic", "agent", "poweroff", "reboot", "halt"],
)
def test_the_guest_ends_itself(
    fresh: Callable[..., Sandbox], shared: Sandbox, client: Client, script, why
):
    victim = fresh(**SMALL)
    shared.run_code("kept = 'still here'")
    results: list[podflare.ExecResult] = []
    thread = threading.Thread(target=lambda: results.append(victim.run_code(script, "bash")))
    thread.start()
    # Meanwhile another sandbox works as ever.
    for i in range(5):
        assert shared.run_code(f"print({i}, kept)").stdout == f"{i} still here\n"
    thread.join()
    assert results, "run_code of the victim raised"
    if results[0].termination_reason == "agent_error":
        # A kernel that halts closes the connection first and gives no other sign; that it does not
        # answer any more is found out by the next command.
        assert "closed the connection" in results[0].stderr
        results = [victim.run_code("echo alive?", "bash")]
    assert_ended(results[0], victim, client, why)
    assert shared.run_code("print(kept)").stdout == "still here\n"


def test_a_guest_that_fills_its_memory_loses_the_command_only(
    fresh: Callable[..., Sandbox], shared: Sandbox
):
    s = fresh(**SMALL)
    # bash: the kernel ends what is largest, and the result says so.
    r = s.run_code('echo begun; tail /dev/zero; echo "status $?"; kill -9 $$', language="bash")
    assert r.stdout.startswith("begun\n") and r.exit_code == 137
    assert r.termination_reason in ("oom", "signaled")
    # The REPL: it is ended and started anew, which the result says, too.
    s.run_code("x = 1")
    r = s.run_code("blocks = []\nwhile True: blocks.append(b'x' * (1 << 20))")
    assert not r.ok
    if r.error is not None and r.error.name == "MemoryError":
        assert r.state == "preserved"
    else:
        assert (r.termination_reason, r.state) == ("oom", "lost"), r
        assert s.run_code("print('x' in globals())").stdout == "False\n"
    r = s.run_code("print(1 + 1)")
    assert (r.stdout, r.exit_code) == ("2\n", 0)
    assert py(s, "print('alive')") == "alive\n"
    assert shared.run_code("print('alive')").stdout == "alive\n"


@pytest.mark.parametrize(
    "code, how",
    [
        ("import os; os._exit(5)", ("exited", 5)),
        ("import os; os.kill(os.getpid(), 11)", ("signaled", 139)),
    ],
    ids=["_exit", "segv"],
)
def test_code_that_ends_its_interpreter(shared: Sandbox, code, how):
    shared.run_code("lost = 1")
    r = shared.run_code(code)
    assert (r.termination_reason, r.exit_code) == how and r.state == "lost", r
    assert shared.run_code("print('lost' in globals())").stdout == "False\n"


def test_processes_without_number(shared: Sandbox):
    """A fork bomb is the guest's own trouble, and ends with the command."""
    shared.run_code(
        """
        bomb() { bomb | bomb & }
        (ulimit -u 200; bomb) 2>/dev/null
        sleep 2
        """,
        language="bash",
    )
    assert shared.run_code("echo alive", language="bash").stdout == "alive\n"
    assert shared.run_code("print('alive')").stdout == "alive\n"


def test_a_sandbox_that_is_closed_while_a_command_runs(
    fresh: Callable[..., Sandbox], client: Client
):
    victim = fresh(**SMALL)
    stream = victim.run_code_stream("echo begun; sleep 1000", language="bash")
    assert next(stream).data == "begun\n"
    Sandbox.connect(victim.id, client=client).close()
    rest = list(stream)
    assert (rest[-1].type, rest[-1].code) == ("exit", -1)
    assert rest[-1].extra["termination_reason"] in ("vm_ended", "closed")
    assert "podflare: sandbox ended" in "".join(e.data for e in rest if e.type == "stderr")
