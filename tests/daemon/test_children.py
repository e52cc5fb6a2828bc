"""What a VMM or a proxy that was taken over could do to its daemon beside the control socket: write
into its log, send the one signal that a VMM may send."""

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

from conftest import Daemon, stdout_of, wait_for


def writes(d: Daemon, sid: str, data: bytes, times: int = 1) -> None:
    assert d.exec(sid, f"#fake:stderr {times} {data.hex()}", rich=True)[-1]["exit_code"] == 0


def said(d: Daemon) -> list[str]:
    return [line for line in d.log_text().splitlines() if "a VMM or proxy says" in line]


def test_lines_are_cleaned_and_cannot_be_forged(start: Callable[..., Daemon]) -> None:
    daemon = start()
    sid = daemon.create()
    forged = b"2026-01-01T00:00:00.000Z INFO sandbox ended sandbox_id=sbx_0 reason=\"none\""
    writes(daemon, sid, b"one\x1b[31m\x00\xc2\x9b\xff two\n" + forged + b"\n\n")
    wait_for(lambda: len(said(daemon)) >= 2)
    first, second = said(daemon)
    assert " WARN a VMM or proxy says text=" in first and "one" in first and " two" in first
    assert not set(first.encode()) & {0, 0x1B, 0x9B, 0xFF} and b"\xc2\x9b" not in first.encode()
    assert "INFO sandbox ended" in second
    assert not any(line.startswith("2026-01-01T00:00:00") for line in daemon.log_text().splitlines())


def test_a_line_without_an_end(start: Callable[..., Daemon]) -> None:
    """In pieces, none of them longer than others; what comes last waits for its end."""
    daemon = start()
    sid = daemon.create()
    writes(daemon, sid, b"x" * 1000)
    wait_for(lambda: len(said(daemon)) == 2)
    assert all("x" * 400 in line and "x" * 401 not in line for line in said(daemon))


def test_a_flood(start: Callable[..., Daemon]) -> None:
    """A hundred lines, and then one a second; the daemon is not kept from its work, nor the VMM."""
    d = start()
    sid = d.create()
    began = time.monotonic()
    writes(d, sid, b"line\n" * 200, 1000)
    assert stdout_of(d.exec(sid, "echo alive")) == "alive"
    wait_for(lambda: len(said(d)) >= 102)
    assert len(said(d)) <= 100 + time.monotonic() - began + 1
    assert d.stop() == 0


def test_it_is_not_the_daemons(daemon: Daemon) -> None:
    """A pipe: nothing can be cut out of a log that is a file."""
    vmm = daemon.info(daemon.create())["pid"]
    there = os.stat(f"/proc/{vmm}/fd/2")
    assert stat.S_ISFIFO(there.st_mode)
    ours = os.fstat(daemon.log.fileno())
    assert (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


def ignored(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(next(line for line in text.splitlines() if line.startswith("SigIgn:")).split()[1], 16)


def test_the_kick_of_a_vcpu_ends_nobody(daemon: Daemon) -> None:
    """SIGUSR1 is what a VMM's filter lets it send, to whom it likes where Landlock cannot tell."""
    sid = daemon.create()
    vmm = daemon.info(sid)["pid"]
    assert ignored(vmm) & 1 << signal.SIGUSR1 - 1
    for pid in (daemon.proc.pid, vmm):
        os.kill(pid, signal.SIGUSR1)
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"
    assert daemon.proc.poll() is None
