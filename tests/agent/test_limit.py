# SPDX-License-Identifier: Apache-2.0
"""output_limit: the first half as it comes, the last half at the end, everything in a log."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from agent_client import CANCEL, EXIT, STDERR, STDOUT, Result, Stream
from conftest import ROOT, Agent

MIB = 1 << 20


def numbers(count: int) -> bytes:
    """Output whose every part can be told from every other."""
    return b"".join(b"%07d\n" % n for n in range(count))


def printer(language: str, count: int) -> str:
    """Code that writes numbers(count)."""
    if language == "bash":
        return f"seq -f %07.0f 0 {count - 1}"
    return f"import sys\nsys.stdout.write(''.join('%07d\\n' % n for n in range({count})));"


def logs(agent: Agent) -> list[str]:
    """The log files that are there."""
    return sorted(os.listdir(agent.home / ".podflare")) if (agent.home / ".podflare").exists() else []


def cut(r: Result, data: bytes, limit: int) -> Path:
    """Checks head, tail, counts and log of a call that wrote too much on stdout; the log's path."""
    head = limit // 2
    assert r.stdout == data[:head] + data[len(data) - (limit - head) :]
    assert r.exit is not None
    assert (r.exit["truncated"], r.exit["bytes_dropped"]) == (True, len(data) - limit)
    path = Path(r.exit["log"]["stdout"])
    assert list(r.exit["log"]) == ["stdout"] and path.read_bytes() == data
    assert "log_truncated" not in r.exit
    return path


def test_nothing_dropped(agent: Agent, stream: Stream) -> None:
    for language in ("bash", "python"):
        for count in (0, 10, 8192, 8193, 500_000):
            r = stream.bash(printer("bash", count)) if language == "bash" else stream.python(printer("python", count))
            assert r.stdout == numbers(count) and r.exit is not None
            assert (r.exit["truncated"], r.exit["bytes_dropped"]) == (False, 0)
            assert "log" not in r.exit
    assert logs(agent) == []


@pytest.mark.parametrize("language", ["bash", "python"])
@pytest.mark.parametrize("limit", [2, 1000, 65536, 70_001, 200_000, 2 * MIB])
def test_head_tail_and_log(agent: Agent, stream: Stream, language: str, limit: int) -> None:
    """From memory and from a file, around the size where one becomes the other."""
    for count in (limit // 8 + 1, 8192, 8193, 10_000, 400_000):
        data = numbers(count)
        stream.start(printer(language, count), language, output_limit=limit)
        r = stream.finish()
        if len(data) <= limit:
            assert r.stdout == data and r.exit is not None and not r.exit["truncated"]
            continue
        path = cut(r, data, limit)
        status = path.stat()
        assert status.st_uid == (1000 if ROOT else os.geteuid()) and path.parent == agent.home / ".podflare"
        path.unlink()
    assert logs(agent) == []


def test_exactly_the_limit(agent: Agent, stream: Stream) -> None:
    for size in (999, 1000, 1001):
        r = stream.bash(f"head -c {size} /dev/zero", output_limit=1000)
        assert len(r.stdout) == min(size, 1000) and r.exit is not None
        assert r.exit["bytes_dropped"] == max(0, size - 1000)
        for log in logs(agent):
            (agent.home / ".podflare" / log).unlink()


def test_no_output_at_all(stream: Stream) -> None:
    r = stream.bash("echo x; echo y >&2", output_limit=0)
    assert (r.stdout, r.stderr, r.code) == (b"", b"", 0) and r.exit is not None
    assert r.exit["bytes_dropped"] == 4
    assert {k: Path(v).read_bytes() for k, v in r.exit["log"].items()} == {
        "stdout": b"x\n",
        "stderr": b"y\n",
    }


def test_each_stream_has_its_own(stream: Stream) -> None:
    r = stream.bash("seq 1000; seq 2000 >&2; echo short", output_limit=8000)
    whole = b"".join(b"%d\n" % n for n in range(1, 2001))
    assert r.stdout == whole[: whole.index(b"1001\n")] + b"short\n"
    assert r.stderr == whole[:4000] + whole[-4000:]
    assert r.exit is not None and list(r.exit["log"]) == ["stderr"]
    assert r.exit["bytes_dropped"] == len(whole) - 8000


def test_the_default(stream: Stream) -> None:
    data = numbers(3 * MIB)
    cut(stream.bash(printer("bash", 3 * MIB)), data, 16 * MIB).unlink()


def test_the_head_comes_as_it_is_written(stream: Stream) -> None:
    stream.start("echo first; sleep 1; echo second; sleep 1; echo third", output_limit=20)
    start = time.monotonic()
    assert stream.recv() == (STDOUT, b"first\n")
    assert time.monotonic() - start < 0.9
    assert stream.finish().stdout == b"second\nthird\n"


def test_events_stay_in_order(stream: Stream) -> None:
    """What is not passed on does not hold up events."""
    r = stream.python("for n in range(5):\n    print('x' * 1000)\n    display(n)", output_limit=2000)
    assert len(r.events) == 5 and len(r.stdout) == 2000


def test_a_reader_that_stops(own_agent: Agent) -> None:
    """Holds up the head; what is behind it goes to the log and waits for nobody."""
    with own_agent.stream() as s, own_agent.stream() as other:
        s.start("head -c 30000000 /dev/zero; touch written", output_limit=100_000)
        time.sleep(0.2)
        for _ in range(200):
            if other.get("written")[1] is not None:
                break
            time.sleep(0.1)
        else:
            raise AssertionError("the command waits for the reader")
        assert not own_agent.grown(30_000)
        r = s.finish()
        assert len(r.stdout) == 100_000 and r.exit is not None
        assert r.exit["bytes_dropped"] == 29_900_000


def test_bounded_memory(own_agent: Agent) -> None:
    with own_agent.stream() as s:
        s.bash("true")
        before = own_agent.rss_kib()
        r = s.bash("head -c 300000000 /dev/zero; head -c 100000 /dev/zero >&2")
        assert len(r.stdout) == 16 * MIB and len(r.stderr) == 100_000
        assert not own_agent.grown(before + 4096, "VmHWM")
        assert r.exit is not None
        assert os.path.getsize(r.exit["log"]["stdout"]) == 300_000_000


@pytest.mark.parametrize("language", ["bash", "python"])
def test_at_a_deadline(stream: Stream, language: str) -> None:
    """A runaway loop: its head, its tail, and the counts are there."""
    code = "yes | head -c 5000000; sleep 100" if language == "bash" else (
        "print('x' * 5000000)\nwhile True: pass"
    )
    stream.start(code, language, timeout_ms=2000, output_limit=2 * MIB)
    r = stream.finish()
    assert r.exit is not None and r.exit["reason"] == "timeout" and r.exit["truncated"]
    assert len(r.stdout) == 2 * MIB
    Path(r.exit["log"]["stdout"]).unlink()


def test_cancel_though_nobody_reads(stream: Stream) -> None:
    """The tail is not waited for without end; the log has it."""
    stream.start("seq 1000000; sleep 100", output_limit=4 * MIB)
    time.sleep(1)
    stream.send(CANCEL)
    time.sleep(4)
    r = stream.finish()
    assert r.exit is not None and r.exit["reason"] == "cancelled" and r.exit["truncated"]
    path = Path(r.exit["log"]["stdout"])
    size = path.stat().st_size
    assert r.exit["bytes_dropped"] == size - len(r.stdout) > 0
    path.unlink()


def test_host_that_goes_away(agent: Agent, stream: Stream) -> None:
    """Nobody is told of the log: it is deleted."""
    before = logs(agent)
    with agent.stream() as s:
        s.start("seq 100000; sleep 100", output_limit=1000)
        for _ in range(100):
            if logs(agent) != before:
                break
            time.sleep(0.05)
        assert logs(agent) != before
    for _ in range(100):
        if logs(agent) == before:
            break
        time.sleep(0.05)
    assert logs(agent) == before
    assert stream.bash("echo fine").stdout == b"fine\n"


def test_session_that_dies(stream: Stream) -> None:
    """What it wrote is cut and logged like that of any other."""
    r = stream.python("import os\nos.write(1, b'y' * 150000)\nos._exit(3)", output_limit=1000)
    assert r.exit is not None and (r.code, r.exit["state"]) == (3, "lost")
    assert len(r.stdout) == 1000 and r.exit["bytes_dropped"] == 149_000
    path = Path(r.exit["log"]["stdout"])
    assert path.read_bytes() == b"y" * 150_000
    path.unlink()


def test_log_that_cannot_be_made(own_agent: Agent) -> None:
    """The last 64 KiB are kept in memory."""
    (own_agent.home / ".podflare").write_text("in the way")
    with own_agent.stream() as s:
        data = numbers(100_000)
        r = s.bash(printer("bash", 100_000), output_limit=400_000)
        assert r.stdout == data[:200_000] + data[-65536:]
        assert r.exit is not None and "log" not in r.exit and r.exit["log_truncated"] is True
        assert r.exit["bytes_dropped"] == len(data) - 200_000 - 65536
        r = s.bash(printer("bash", 8000), output_limit=2000)  # it fits into memory
        data = numbers(8000)
        assert r.stdout == data[:1000] + data[-1000:]
        assert r.exit is not None and "log" not in r.exit and r.exit["truncated"]


@pytest.mark.skipif(not ROOT, reason="mounts a file system")
def test_full_disk(own_agent: Agent) -> None:
    """The log stops there; the tail comes from memory."""
    log_dir = own_agent.home / ".podflare"
    log_dir.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=1777", "none", str(log_dir)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with own_agent.stream() as s:
            for count in (100_000, 131_100, 132_000, 400_000):
                data = numbers(count)
                r = s.bash(printer("bash", count), output_limit=200_000)
                if len(data) <= MIB:
                    cut(r, data, 200_000).unlink()
                    continue
                assert r.exit is not None
                assert r.stdout == data[:100_000] + data[-65536:]
                path = Path(r.exit["log"]["stdout"])
                kept = path.read_bytes()
                assert 900_000 < len(kept) <= MIB and data.startswith(kept)
                assert r.exit["log_truncated"] is True
                assert r.exit["bytes_dropped"] == len(data) - len(r.stdout)
                path.unlink()
    finally:
        subprocess.run(["umount", str(log_dir)], check=True)


def test_log_that_the_user_spoils(agent: Agent, stream: Stream) -> None:
    """It is his: what is gone is not sent, and counted."""
    r = stream.bash("seq 100000; : >$(ls -t .podflare/*.stdout | head -1)", output_limit=200_000)
    assert r.exit is not None and len(r.stdout) == 100_000
    assert r.exit["bytes_dropped"] == 588_895 - 100_000 and r.exit["log_truncated"] is True
    Path(r.exit["log"]["stdout"]).unlink()


@pytest.mark.skipif(not ROOT, reason="root could write anywhere")
def test_logs_are_written_with_the_rights_of_the_user(own_agent: Agent) -> None:
    secret = own_agent.dir / "secret"
    secret.mkdir(mode=0o700)
    (own_agent.home / ".podflare").symlink_to(secret)
    with own_agent.stream() as s:
        r = s.bash("seq 100000", output_limit=1000)
        assert r.exit is not None and r.exit["truncated"] and "log" not in r.exit
    assert not list(secret.iterdir())


def test_old_logs_go(own_agent: Agent) -> None:
    """64 are kept; one that the user has deleted or replaced does no harm."""
    with own_agent.stream() as s:
        paths = []
        for n in range(70):
            r = s.bash(f"echo out {n}", output_limit=2)
            assert r.exit is not None
            paths.append(Path(r.exit["log"]["stdout"]))
            if n in (2, 3):
                paths[n].unlink()
            if n == 3:
                paths[n].mkdir()
        left = [n for n in range(70) if paths[n].exists()]
        assert left == [3, *range(6, 70)]
        assert paths[69].read_text() == "out 69\n"


@pytest.mark.parametrize("value", [-1, "1", 1.5, (1 << 30) + 1, True])
def test_bad_values(stream: Stream, value: object) -> None:
    r = stream.bash("true", output_limit=value)
    assert r.error is not None and r.error["code"] == "bad_request"
    assert "output_limit" in r.error["message"]


def test_the_tail_is_not_mixed_up(stream: Stream) -> None:
    """Both tails come after everything else, that of stdout first, just before EXIT."""
    stream.start("seq 2000; seq 2000 >&2; sleep 0.2; echo o; echo e >&2", output_limit=2000)
    kinds = [kind for kind, _ in stream.frames()]
    assert kinds[-3:] == [STDOUT, STDERR, EXIT]


# --- to be ended there ----------------------------------------------------------------------


def ended_there(r: Result, limit: int, state: str = "preserved") -> Path:
    """Checks the end of a call at its limit; the path of its log of stdout."""
    assert r.exit is not None, r.error
    assert (r.code, r.exit["reason"], r.exit["state"]) == (153, "output_limit", state), r.exit
    path = Path(r.exit["log"]["stdout"])
    whole = path.read_bytes()
    assert r.stdout == whole[:limit] and len(whole) > limit
    dropped = len(whole) - limit
    if "stderr" in r.exit["log"]:  # the traceback of its interrupt
        other = Path(r.exit["log"]["stderr"])
        dropped += other.stat().st_size - len(r.stderr)
        other.unlink()
    assert r.exit["bytes_dropped"] == dropped
    assert r.exit["truncated"] and "log_truncated" not in r.exit
    return path


@pytest.mark.parametrize("language", ["bash", "python"])
@pytest.mark.parametrize("limit", [1, 1000, 70_000, 3 * MIB])
def test_ended_at_the_limit(stream: Stream, language: str, limit: int) -> None:
    """The first bytes, and then it does not go on."""
    stream.python("kept = 1")
    code = "yes" if language == "bash" else "while True: print('y')"
    stream.start(code, language, output_limit=limit, output_limit_action="end", timeout_ms=60_000)
    r = stream.finish()
    ended_there(r, limit).unlink()
    assert r.stdout == (b"y\n" * limit)[:limit]
    assert stream.python("print(kept)").stdout == b"1\n"


@pytest.mark.parametrize("language", ["bash", "python"])
def test_ended_at_the_limit_though_it_has_ended(agent: Agent, stream: Stream, language: str) -> None:
    """The reason is no question of who was faster; nor is what it has left."""
    for size in (999, 1000, 1001, 5000):
        code = f"head -c {size} /dev/zero; sleep 5435 >/dev/null &"
        if language == "python":
            code = (
                "import os, subprocess\nsubprocess.Popen(['sleep', '5435'])\n"
                f"os.write(1, bytes({size}))"
            )
        stream.start(code, language, output_limit=1000, output_limit_action="end")
        r = stream.finish()
        assert r.exit is not None and len(r.stdout) == min(size, 1000)
        left = stream.bash("pgrep -fx 'sleep 5435'").code == 0
        if size > 1000:
            ended_there(r, 1000).unlink()
            assert not left or not agent.cgroup
        else:
            assert (r.code, r.exit["reason"], r.exit["truncated"]) == (0, "exited", False)
            assert left
        stream.bash("pkill -fx 'sleep 5435'")


def test_ended_at_the_limit_of_stderr(stream: Stream) -> None:
    r = stream.bash("echo out; yes >&2", output_limit=1000, output_limit_action="end")
    assert r.exit is not None and (r.stdout, len(r.stderr)) == (b"out\n", 1000)
    assert (r.exit["reason"], list(r.exit["log"])) == ("output_limit", ["stderr"])
    Path(r.exit["log"]["stderr"]).unlink()


def test_who_does_not_heed_it_is_killed(stream: Stream) -> None:
    code = "trap '' INT TERM; while :; do echo xxxxxxxxx; done"
    r = stream.bash(code, output_limit=1000, output_limit_action="end", grace_ms=800)
    ended_there(r, 1000).unlink()
    stream.python("kept = 1")
    r = stream.python(
        "import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile True: print('y')",
        output_limit=1000,
        output_limit_action="end",
        grace_ms=800,
    )
    ended_there(r, 1000, "lost").unlink()
    assert "more than it may" in r.events[-1]["text"]
    assert stream.python("print('kept' in globals())").stdout == b"False\n"


def test_a_time_limit_that_comes_first(stream: Stream) -> None:
    """And what is written on the way out does not change the reason."""
    code = "trap 'seq 1000; exit' INT; echo on; while :; do sleep 0.1; done"
    r = stream.bash(code, output_limit=100, output_limit_action="end", timeout_ms=500)
    assert r.exit is not None and (r.code, r.exit["reason"]) == (124, "timeout")
    assert len(r.stdout) == 100 and r.exit["truncated"]
    Path(r.exit["log"]["stdout"]).unlink()


def test_a_reader_that_does_not_read_is_waited_for(stream: Stream) -> None:
    """The limit counts what was read of it: before, it is held up."""
    stream.start("yes", output_limit=20 * MIB, output_limit_action="end")
    time.sleep(1)
    r = stream.finish()
    ended_there(r, 20 * MIB).unlink()


@pytest.mark.parametrize("value", ["", "kill", 1, None])
def test_bad_actions(stream: Stream, value: object) -> None:
    r = stream.bash("true", output_limit_action=value)
    assert r.error is not None and "output_limit_action" in r.error["message"]
