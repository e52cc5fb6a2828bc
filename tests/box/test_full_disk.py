# SPDX-License-Identifier: Apache-2.0
"""A file system that has no room for what is written in the emulated host: everything in there stands
still, which is said, and goes on when there is room. The file systems are small ones of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from pathlib import Path
from typing import Iterator

import pytest
from stand_in import put_fake, report_of

SERVE = ("serve", "--mode", "emulated", "--box-memory", "1536", "--addr", "127.0.0.1:0")
GOES_ON = "can be written again: the emulated host goes on"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "small", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    """Takes all room that is left."""
    ballast = place / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(65536))
    return ballast


def write_inside(url: str) -> threading.Thread:
    """Has the daemon write to its database; it answers when it can."""

    def send() -> None:
        request = urllib.request.Request(f"{url}/v1/sandboxes", data=b"{}", method="POST")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=200).close()

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def url_of(run) -> str:
    run.wait_for("podflare: ready on ", 240)
    found = re.search(r"ready on (http://[0-9.]+:\d+)", run.stdout)
    assert found, run.stdout
    return found.group(1)


WRITE = """
echo before
dd if=/dev/zero of=/dev/podflare/disk0 bs=1M count=120 conv=fsync 2>/dev/null
echo "after $?"
usleep 6000000
date +%s
"""


@needs_root
def test_it_goes_on_when_there_is_room(spawn, small, tmp_path):
    """Nothing is lost, and the clock inside is right afterwards."""
    disk = small / "disk"
    disk.touch()
    os.truncate(disk, 256 << 20)
    (tmp_path / "script").write_text(WRITE)
    run = spawn("box", "run", "--disk", str(disk), str(tmp_path / "script"))
    run.wait_for(f"no room is left for {disk}: the emulated host stands still", 240)
    time.sleep(8)
    assert "after" not in run.stdout and GOES_ON not in run.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
    run.wait_for(GOES_ON, 60)
    assert run.wait(240) == 0, run.stderr
    assert run.stdout.splitlines()[:2] == ["before", "after 0"]
    assert abs(int(run.stdout.splitlines()[2]) - time.time()) < 6
    assert run.stderr.count("no room is left") == 1 and run.stderr.count(GOES_ON) == 1
    assert disk.stat().st_blocks * 512 >= 120 << 20


@needs_root
def test_the_daemon_goes_on_and_ends_in_order(spawn, small):
    run = spawn(*SERVE, "--state", str(small))
    url = url_of(run)
    assert f"the state disk {small}/box-state.ext4 may take 64.0 GiB more, and" in run.stderr
    ballast = fill(small)
    write_inside(url)
    run.wait_for(f"no room is left for {small}/box-state.ext4: the emulated host stands still", 120)
    ballast.unlink()
    run.wait_for(GOES_ON, 60)
    with urllib.request.urlopen(f"{url}/v1/healthz", timeout=120) as reply:
        assert reply.read() == b"ok"
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) == 0, run.stderr


@needs_root
def test_a_stop_does_not_wait_for_room(spawn, small):
    """It is what it is without power; the next start finds all that was written before."""
    run = spawn(*SERVE, "--state", str(small))
    url = url_of(run)
    ballast = fill(small)
    write_inside(url)
    run.wait_for("no room is left for", 120)
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(60) == 1
    assert time.monotonic() - began < 10
    assert "cannot end in order while that stands still" in run.stderr, run.stderr
    assert run.descendants() == {}
    ballast.unlink()
    again = spawn(*SERVE, "--state", str(small))
    with urllib.request.urlopen(f"{url_of(again)}/v1/sandboxes", timeout=60) as reply:
        assert reply.status == 200
    again.process.send_signal(signal.SIGTERM)
    assert again.wait(60) == 0, again.stderr


def io_error(reason: str, action: str = "stop", disk: str = "STATE") -> str:
    """As QEMU prints it."""
    return (
        '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_IO_ERROR", "data": {'
        f'"device": "{disk}", "nospace": {json.dumps(reason == "No space left on device")}, '
        f'"node-name": "#block1", "reason": "{reason}", "operation": "write", "action": "{action}"}}}}'
    )


STOP = '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}'
RESUME = '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RESUME"}'
SHUTDOWN = '{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}'


@pytest.fixture
def play(call, tmp_path):
    """serve with a program in QEMU's place whose monitor says these lists of lines, each but the first
    when it has been told to go on: what serve said, and the order that came after the last."""

    def start(*batches: list[str]) -> tuple[str, str]:
        state = tmp_path / "state"
        done = call(*SERVE, "--state", str(state), PATH=put_fake(tmp_path, batches))
        told = report_of(state)
        (drive,) = [a for a in told["argv"] if "box-state.ext4" in a]
        assert "werror=stop" in drive
        return done.stderr, told["order"]

    return start


def test_other_errors_are_told_and_tried_again(play, tmp_path):
    """Once, however often it was in vain; free space tells nothing of a quota."""
    error = io_error("Disk quota exceeded")
    said, order = play([error, STOP], [RESUME, error, STOP], [RESUME, STOP, error], [RESUME])
    disk = tmp_path / "state/box-state.ext4"
    assert said.count(f"{disk} cannot be written (Disk quota exceeded): the emulated") == 1
    assert said.count(f"{disk} {GOES_ON}") == 1 and "no room" not in said
    assert abs(int(order.removeprefix("time ")) - time.time()) < 60


def test_what_stops_nothing(play):
    """An error that the machine was told of itself, and the STOP of its end."""
    said, _ = play([io_error("Input/output error", "report"), SHUTDOWN, STOP])
    assert "stands still" not in said and "goes on" not in said
    assert "ended unexpectedly" in said


def test_the_end_of_a_machine_that_stands(play):
    """It is not told to go on when QEMU ends by itself."""
    said, _ = play([io_error("No space left on device"), STOP, SHUTDOWN])
    assert said.count("no room is left for") == 1 and "goes on" not in said
