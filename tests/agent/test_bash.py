# SPDX-License-Identifier: Apache-2.0
"""Bash commands: output, exit, identity, cancel, background children, back-pressure."""

from __future__ import annotations

import os
import socket
import time

import pytest
from agent_client import CANCEL, ERROR, EXIT, PING, PONG, STDERR, STDOUT, Stream
from conftest import ROOT, Agent, cgroup_base, wait_for

needs_cgroups = pytest.mark.skipif(cgroup_base() is None, reason="no cgroup v2 to write to")


def alive(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before, or while we read
        return False


def test_output_and_exit_code(stream: Stream) -> None:
    r = stream.bash("echo out; echo err >&2; exit 3")
    assert (r.stdout, r.stderr, r.code) == (b"out\n", b"err\n", 3)
    assert r.exit is not None
    assert r.exit["reason"] == "exited" and r.exit["state"] == "preserved"
    assert isinstance(r.exit["duration_ms"], int) and "signal" not in r.exit


def test_one_stream_many_commands(stream: Stream) -> None:
    for n in range(20):
        r = stream.bash(f"echo {n}; exit {n}")
        assert (r.stdout, r.code) == (b"%d\n" % n, n)


def test_environment_and_identity(agent: Agent, stream: Stream) -> None:
    r = stream.bash('id -u; echo "$HOME"; pwd; echo "$TERM $LANG $USER"; tty; ulimit -c')
    lines = r.stdout.decode().splitlines()
    assert lines[0] == ("1000" if ROOT else str(os.geteuid()))
    assert lines[1] == lines[2] == str(agent.home)
    assert lines[3] == "dumb C.UTF-8 user"
    assert lines[4] == "not a tty" and lines[5] == "0"


def test_own_session_and_only_the_standard_descriptors(stream: Stream) -> None:
    r = stream.bash(
        'read -r _ _ _ _ pgrp sid _ </proc/$$/stat; echo "$$ $pgrp $sid"; ls /proc/$$/fd; true'
    )
    first, *fds = r.stdout.decode().splitlines()
    pid, pgrp, sid = first.split()
    assert pid == pgrp == sid
    assert fds == ["0", "1", "2"]
    assert stream.bash("cat").stdout == b""  # stdin is empty


def test_env_and_cwd(agent: Agent, stream: Stream) -> None:
    r = stream.bash('echo "$A|$HOME"; pwd', env={"A": "x y=z", "HOME": "/elsewhere"}, cwd="/usr")
    assert r.stdout == b"x y=z|/elsewhere\n/usr\n"
    stream.bash("mkdir -p below")
    assert stream.bash("pwd", cwd="below").stdout.decode() == f"{agent.home}/below\n"


@pytest.mark.parametrize(
    "cwd, code", [("/nowhere/such", "not_found"), ("/etc/passwd", "not_a_directory")]
)
def test_bad_cwd(stream: Stream, cwd: str, code: str) -> None:
    r = stream.bash("echo never", cwd=cwd)
    assert r.error is not None and r.error["code"] == code and cwd in r.error["message"]
    assert stream.bash("echo still").stdout == b"still\n"


@pytest.mark.skipif(not ROOT, reason="root may enter every directory only as itself")
def test_cwd_with_the_rights_of_the_user(agent: Agent, stream: Stream) -> None:
    closed = agent.dir / "closed"
    closed.mkdir(mode=0o700)
    r = stream.bash("pwd", cwd=str(closed))
    assert r.code == 126 and b"cannot enter the working directory: Permission denied" in r.stderr
    r = stream.bash("pwd", cwd=str(closed / "x"))
    assert r.error is not None and r.error["code"] == "permission_denied"


def test_killed_by_signal(stream: Stream) -> None:
    r = stream.bash("echo before; kill -TERM $$")
    assert r.stdout == b"before\n"
    assert r.exit is not None
    assert (r.code, r.exit["reason"], r.exit["signal"]) == (143, "signaled", 15)


def test_sigpipe_is_not_ignored(stream: Stream) -> None:
    r = stream.bash('yes | head -1; echo "${PIPESTATUS[0]}"')
    assert r.stdout == b"y\n141\n"


def test_syntax_error_names_the_line(stream: Stream) -> None:
    r = stream.bash("echo a\nif\n")
    assert r.code == 2 and b"bash: -c: line 3: syntax error" in r.stderr


def test_streams_as_it_runs(stream: Stream) -> None:
    start = time.monotonic()
    stream.start("echo first; sleep 1; echo second")
    kind, payload = stream.recv()
    assert (kind, payload) == (STDOUT, b"first\n") and time.monotonic() - start < 0.9
    assert stream.finish().stdout == b"second\n"


@pytest.mark.parametrize("size", [0, 1, 131070, 131071, 131072, 200_000, 1_000_000])
def test_code_of_any_size(stream: Stream, size: int) -> None:
    """Around 128 KiB the way to bash changes; nothing else may."""
    tail = "\necho done $0; exit 7"
    code = ":" + "#" * max(0, size - len(tail) - 1) + tail if size > 1 else ":"[:size]
    r = stream.bash(code)
    if size <= 1:
        assert (r.code, r.stdout) == (0, b"")
    else:
        assert len(code) == size
        assert r.code == 7 and r.stdout.startswith(b"done ")


def test_code_too_large(stream: Stream) -> None:
    r = stream.bash(b"#" * (4 * 1024 * 1024 + 1))
    assert r.error is not None and r.error["code"] == "bad_request"
    assert stream.bash("echo on").stdout == b"on\n"


def test_nul_in_code(stream: Stream) -> None:
    r = stream.bash(b"echo a\0b")
    assert r.error == {"code": "bad_request", "message": "the code contains a NUL byte"}
    assert stream.bash("echo on").stdout == b"on\n"


def test_binary_output(stream: Stream) -> None:
    every = bytes(range(256)) * 300
    stream.put("every", every)
    assert stream.bash("cat every").stdout == every


def test_standard_streams_can_be_opened(stream: Stream) -> None:
    """The user may open /dev/stdout: the pipe belongs to him."""
    r = stream.bash("echo a | tee /dev/stderr > /proc/self/fd/1")
    assert (r.stdout, r.stderr) == (b"a\n", b"a\n")


def test_a_hundred_megabytes_in_bounded_memory(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.bash("true")
        before = own_agent.rss_kib()
        s.start("head -c 100000000 /dev/zero", output_limit=200_000_000)
        total, peak = 0, 0
        for n, (kind, payload) in enumerate(s.frames()):
            if kind == STDOUT:
                total += len(payload)
            if n % 100 == 0:
                peak = max(peak, own_agent.rss_kib())
        assert total == 100_000_000
        assert peak - before < 4096


def test_reader_that_stops_stops_the_command(own_agent: Agent) -> None:
    """Back-pressure: the command blocks, the agent holds no more than its buffers, PING is answered."""
    with own_agent.stream() as s, own_agent.stream() as other:
        s.start("head -c 50000000 /dev/zero; echo end >&2; touch written", output_limit=100_000_000)
        time.sleep(1.0)
        assert own_agent.rss_kib() < 30_000
        assert other.get("written")[0]["code"] == "not_found"
        assert other.bash("echo beside").stdout == b"beside\n"
        s.send(PING, b"there?")
        kinds = {}
        for kind, payload in s.frames():
            kinds[kind] = kinds.get(kind, 0) + len(payload)
        assert kinds[STDOUT] == 50_000_000 and kinds[STDERR] == 4
        assert kinds[PONG] == 6


def test_ping_while_running(stream: Stream) -> None:
    stream.start("sleep 0.5")
    stream.send(PING, b"")
    stream.send(PING, b"x" * 64)
    assert stream.recv() == (PONG, b"")
    assert stream.recv() == (PONG, b"x" * 64)
    assert stream.finish().code == 0


def test_cancel(stream: Stream) -> None:
    stream.start("trap '' INT TERM; echo on; sleep 100 & sleep 100")
    assert stream.recv() == (STDOUT, b"on\n")
    start = time.monotonic()
    stream.send(CANCEL)
    r = stream.finish()
    assert time.monotonic() - start < 2
    assert r.exit is not None
    assert (r.code, r.exit["reason"], r.exit["signal"]) == (137, "cancelled", 9)
    assert stream.bash("echo next").stdout == b"next\n"


@needs_cgroups
def test_cancel_reaches_other_sessions(agent: Agent, stream: Stream) -> None:
    stream.start("setsid sleep 1234 & echo $!; setsid setsid sleep 1234 & wait")
    pid = int(stream.recv()[1])
    wait_for(lambda: alive(pid), "the child")
    stream.send(CANCEL)
    stream.finish()
    wait_for(lambda: not alive(pid), "the end of the child in another session")
    check = stream.bash("pgrep -fx 'sleep 1234'")
    assert check.code == 1, check.stdout


def test_cancel_though_nobody_reads(stream: Stream) -> None:
    stream.start("head -c 50000000 /dev/zero; sleep 100", output_limit=100_000_000)
    assert stream.sock.recv(1, socket.MSG_PEEK)  # it has begun; and goes on until there is no room
    time.sleep(0.3)
    stream.send(CANCEL)
    r = stream.finish()
    assert r.exit is not None and r.exit["reason"] == "cancelled"
    assert 0 < len(r.stdout) < 50_000_000


def test_cancel_before_the_code_is_complete(stream: Stream) -> None:
    stream.send(1, {"language": "bash"})
    stream.send(6, b"echo never")
    stream.send(CANCEL)
    stream.send(7)
    r = stream.finish()
    assert r.exit is not None and r.exit["reason"] == "cancelled" and r.stdout == b""


def test_cancel_with_nothing_to_cancel(stream: Stream) -> None:
    stream.send(CANCEL)
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_closing_the_stream_ends_the_command(agent: Agent, stream: Stream) -> None:
    other = agent.stream()
    other.start("echo $$; sleep 100")
    pid = int(other.recv()[1])
    assert alive(pid)
    other.close()
    wait_for(lambda: not alive(pid), "the end of the command")
    assert stream.bash("echo fine").code == 0


def test_closing_a_stream_nobody_read_ends_the_command(agent: Agent, stream: Stream) -> None:
    other = agent.stream()
    other.start("echo $$; yes")
    pid = int(other.recv()[1].split(b"\n")[0])
    time.sleep(0.2)
    other.close()
    wait_for(lambda: not alive(pid), "the end of the command")


def test_background_children_live_on(agent: Agent, stream: Stream) -> None:
    start = time.monotonic()
    r = stream.bash("(sleep 1; echo late; echo still >after; sleep 100) & echo $!")
    assert time.monotonic() - start < 0.9
    pid = int(r.stdout)
    wait_for(lambda: (agent.home / "after").exists(), "the child to go on after its late output")
    assert alive(pid)
    assert stream.bash("echo own").stdout == b"own\n"
    os.kill(pid, 9)


def test_noisy_background_child_blocks_nothing(stream: Stream) -> None:
    r = stream.bash("yes & echo $!")
    pid = int(r.stdout.split(b"\n")[0]) if r.stdout[:1].isdigit() else 0
    assert stream.bash("echo fine").stdout == b"fine\n"
    assert stream.bash("pkill -x yes").code == 0 or pid


def test_output_of_the_shell_is_complete_though_children_write_on(stream: Stream) -> None:
    for _ in range(10):
        r = stream.bash(
            "(while :; do echo x; done) 2>/dev/null & seq 20000; kill %1 2>/dev/null; echo END"
        )
        lines = [line for line in r.stdout.split(b"\n") if line != b"x"]
        assert b"END" in r.stdout
        numbers = [int(n) for n in lines if n.isdigit()]
        assert len(numbers) >= 19_990  # a few may share a line with the child's


def test_concurrent_streams(agent: Agent) -> None:
    streams = [agent.stream() for _ in range(20)]
    for n, s in enumerate(streams):
        s.start(
            f"for i in 1 2 3; do echo {n}.$i; sleep 0.05; done; head -c 300000 /dev/zero; exit {n}"
        )
    for n, s in enumerate(streams):
        r = s.finish()
        assert r.code == n
        assert r.stdout.startswith(f"{n}.1\n{n}.2\n{n}.3\n".encode())
        assert len(r.stdout) == 300_000 + 3 * len(f"{n}.1\n")
        s.close()


@needs_cgroups
def test_cgroups_come_and_go(own_agent: Agent) -> None:
    def groups() -> list[str]:
        assert own_agent.cgroup is not None
        return sorted(p.name for p in own_agent.cgroup.glob("exec-*"))

    with own_agent.stream() as s:
        r = s.bash("grep ^0: /proc/self/cgroup; sleep 0.7 &")
        name = r.stdout.decode().strip().rsplit("/", 1)[1]
        assert groups() == [name]
        s.bash("true")
        wait_for(lambda: groups() == [name], "the group of a command without children to go")
        wait_for(lambda: groups() == [], "the group to go with its last process")


def test_no_descriptor_is_left(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.bash("true")
        s.python("1")
        wait_for(lambda: s.status()["repl"] == "ready", "the REPL")
        before = own_agent.fds()
        for n in range(30):
            s.bash("sleep 0.2 & echo x" if n % 3 == 0 else "echo y")
            s.python("print(1)")
            s.bash("never", cwd="/nowhere")
            own_agent.stream().close()
        wait_for(lambda: own_agent.fds() <= before, "descriptors to be closed")


def test_orphans_are_reaped(agent: Agent, stream: Stream) -> None:
    r = stream.bash("for i in $(seq 50); do (setsid bash -c 'sleep 0.1' &) ; done")
    assert r.code == 0

    def zombies() -> int:
        n = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat") as f:
                    state, ppid = f.read().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            n += state == "Z" and int(ppid) == agent.proc.pid
        return n

    time.sleep(0.3)
    wait_for(lambda: zombies() == 0, "zombies to be reaped")


def test_idle_agent_sleeps(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.python("1")
        s.bash("sleep 100 & true")

        def switches() -> int:
            with open(f"/proc/{own_agent.proc.pid}/status") as f:
                return int(f.read().split("nonvoluntary_ctxt_switches:")[0].split()[-1])

        time.sleep(0.3)
        before = switches()
        time.sleep(1.5)
        assert switches() - before <= 1


def test_exit_and_error_are_final(stream: Stream) -> None:
    stream.start("echo 1")
    kinds = [kind for kind, _ in stream.frames()]
    assert kinds[-1] == EXIT and kinds.count(EXIT) == 1 and ERROR not in kinds
