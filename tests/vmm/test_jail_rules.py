# SPDX-License-Identifier: Apache-2.0
"""Each rule of the jail is needed: a whole life of a VMM (boot, a guest's work on the disk and on
streams, forks, a rehearsal, parking, the end) passes with all of them, and something dies of the lack
of any one. Those that this life does not use are named here, each with who does."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from signal import SIGSYS

import pytest

from conftest import CONNECT, CONNECTED, LEARN, LEARNED, RECORD, RECORDED, REHEARSAL, STOP, WARM
from conftest import EXITED, STAT_STREAMS, Host, Message, Vmm
from test_jail import NAMES, PROBE, pytestmark  # noqa: F401

PROCESS_RULES = NAMES.get("process-rule", [])
VCPU_RULES = NAMES.get("vcpu-rule", [])

# Who needs a rule that this life does without.
ELSEWHERE = {
    "process clock_gettime": "hosts whose clock the vDSO cannot read",
    "process restart_syscall": "a wait with a deadline that SIGSTOP has interrupted",
    "process madvise-17": "a rehearsal whose guest has run: KVM logs what that writes",
    "process madvise-66": "glibc from 2.42 on; vmm-jail-probe says what it gets",
}
# What only the end of a thread does, while the process goes on: a probe on such a thread.
ENDS = {"process exit", "vcpu exit", "vcpu rt_sigprocmask"}


def stream(vmm: Vmm, number: int) -> socket.socket:
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    vmm.send(Message(CONNECT, id=number, port=5555), (theirs.fileno(),))
    theirs.close()
    ours.settimeout(20)
    try:
        assert vmm.expect(CONNECTED).id == number
    except BaseException:
        ours.close()
        raise
    return ours


def exactly(s: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n:
        piece = s.recv(n - len(data))
        assert piece, "the stream has ended"
        data += piece
    return data


def use_streams(vmm: Vmm) -> None:
    with stream(vmm, 1) as s:
        text = b"x" * 20000  # more than the guest has room for at a time
        s.sendall(text)
        assert exactly(s, len(text)) == text
    with stream(vmm, 2) as s:
        s.sendall(b"S")
        with pytest.raises(BrokenPipeError):
            for _ in range(2000):
                s.sendall(b"x")
                time.sleep(0.005)
    with stream(vmm, 3) as s:
        s.sendall(b"B")  # more than the socket takes
        assert exactly(s, 32 << 10) == b"B" * (32 << 10)
        s.sendall(b"R")
        assert s.recv(1) == b""
    while vmm.stats()[STAT_STREAMS]:
        time.sleep(0.005)


def ask(vmm: Vmm, kind: int, answer: int, code: int = 0) -> None:
    vmm.send(Message(kind, id=9, code=code))
    assert vmm.expect(answer).code == 0


def life(host: Host) -> None:
    host.plan.guest = 1
    template = host.booted(vcpus=2)
    host.plan.write = 1
    use_streams(template)
    child = template.fork()  # live: both go on
    use_streams(template)
    child.stats()
    template.pause()
    rehearsal = template.fork(REHEARSAL)
    ask(rehearsal, RECORD, RECORDED, 0)
    ask(rehearsal, RECORD, RECORDED, 1)
    rehearsal.ctl.close()
    ask(template, LEARN, LEARNED)
    copy = template.fork()
    copy.send(Message(WARM, code=1))
    copy.stats()
    copy.send(Message(STOP))
    assert copy.expect(EXITED).code == 5
    assert host.plan.wrong == 0


def ends(host: Host) -> list[int]:
    """Everything that has been started ends: with these statuses."""
    for vmm in host.vmms:
        vmm.ctl.close()
    found = []
    while True:
        try:
            found.append(os.waitpid(-1, 0)[1])
        except ChildProcessError:
            return found


def test_a_whole_life(host: Host) -> None:
    life(host)
    assert ends(host) == [0] * 4


def test_those_elsewhere_are_rules() -> None:
    names = {f"process {n.split('-', 1)[1]}" for n in PROCESS_RULES}
    names |= {f"vcpu {n.split('-', 1)[1]}" for n in VCPU_RULES}
    assert ELSEWHERE.keys() | ENDS <= names
    assert len(PROCESS_RULES) > 80 and len(VCPU_RULES) > 15


@pytest.mark.parametrize(
    "rule", [f"process {n}" for n in PROCESS_RULES] + [f"vcpu {n}" for n in VCPU_RULES]
)
def test_it_dies_without(host: Host, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _, rest = rule.partition(" ")
    number, _, name = rest.partition("-")
    if f"{table} {name}" in ELSEWHERE:
        pytest.skip(ELSEWHERE[f"{table} {name}"])
    monkeypatch.setenv("VMM_STILL_WITHOUT", f"{table} {number}")
    if f"{table} {name}" in ENDS:
        done = subprocess.run([PROBE, "vcpu", "nothing"], timeout=60, check=False)
        assert done.returncode == -SIGSYS
        return
    try:
        life(host)
    except (AssertionError, OSError, TimeoutError):
        pass  # of what died: which is seen below
    assert SIGSYS in [os.WTERMSIG(s) for s in ends(host) if os.WIFSIGNALED(s)]
