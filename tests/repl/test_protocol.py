# SPDX-License-Identifier: Apache-2.0
"""The control channel: format, bounds, and what happens when the peer breaks them."""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import tempfile
import threading

import pytest
from repl_process import DATA, END, EVENT, EVENT_PART, EXEC, PYTHON, REPL, WARM, Died, Repl


def test_ready(repl: Repl) -> None:
    assert repl.ready["pid"] == repl.process.pid
    version = subprocess.check_output(
        [PYTHON, "-c", "import platform as p; print(p.python_version())"]
    )
    assert repl.ready["python"] == version.decode().strip()
    code = "try:\n    import IPython\n    v = IPython.__version__\nexcept ImportError: v = None\nv"
    assert repl.run(code).value == repr(repl.ready["ipython"])


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<IB3x", 65537, EXEC),
        struct.pack("<IB3s", 2, EXEC, b"\1\0\0") + b"{}",
        struct.pack("<IB3x", 0, 0x7F),
        struct.pack("<IB3x", 2, DATA) + b"xx",
        struct.pack("<IB3x", 4, EXEC) + b"{bad" + struct.pack("<IB3x", 0, END),
        struct.pack("<IB3x", 2, EXEC) + b"{}" + struct.pack("<IB3x", 2, WARM) + b"{}",
        b"\xff" * 64,
    ],
)
def test_broken_frames_end_the_interpreter_with_a_message(repl: Repl, data: bytes) -> None:
    repl.control.sendall(data)
    with pytest.raises(Died) as died:
        repl.finish(5)
    assert died.value.status == 70 and b"control channel" in died.value.last.err


def test_frames_in_any_pieces(repl: Repl) -> None:
    source = b"print('pieces')"
    data = struct.pack("<IB3x", 8, EXEC) + b'{"id":1}'
    for i in range(0, len(source), 2):
        part = source[i : i + 2]
        data += struct.pack("<IB3x", len(part), DATA) + part
    data += struct.pack("<IB3x", 0, DATA) + struct.pack("<IB3x", 0, END)
    for i in range(len(data)):
        repl.control.sendall(data[i : i + 1])
    assert repl.finish().text == "pieces\n"


def test_two_cells_in_one_piece(repl: Repl) -> None:
    repl.start("print(1)")
    repl.start("print(2)")
    results = [repl.finish(), repl.finish()]
    assert b"".join(r.out for r in results) == b"1\n2\n"


def test_source_that_is_not_utf8(repl: Repl) -> None:
    result = repl.run(b"print('\xff')")
    assert result.exit_code == 1 and result.error is not None
    assert result.error["name"] == "UnicodeDecodeError"
    assert repl.run("1").value == "1"


def test_without_a_control_socket() -> None:
    values: list[dict[str, str]] = [{}, {"REPL_CTL": "x"}, {"REPL_CTL": "99"}]
    for value in values:
        done = subprocess.run([PYTHON, "-u", str(REPL)], env=value, capture_output=True, timeout=10)
        assert done.returncode == 1 and b"REPL_CTL" in done.stderr


def test_descriptor_is_high_and_stays_out_of_programs(repl: Repl) -> None:
    code = """
import os
def is_socket(fd):
    try:
        return 'socket' in os.readlink(f'/proc/self/fd/{fd}')
    except OSError:
        return False
found = [f for f in map(int, os.listdir('/proc/self/fd')) if is_socket(f)]
len(found), min(found) > 100, any(map(os.get_inheritable, found))
"""
    assert repl.run(code).value == "(1, True, False)"


def test_fuzz_of_the_frame_parser() -> None:
    """Random streams, cut anywhere: every outcome is a frame, FrameError or EOFError."""
    from _podflare_repl import frames  # type: ignore[import]

    rng = random.Random(5)
    for _ in range(300):
        ours, theirs = socket.socketpair()
        channel = frames.Channel(theirs.detach())
        expected = []
        data = b""
        for _ in range(rng.randrange(4)):
            payload = rng.randbytes(rng.choice((0, 1, 100, 3000)))
            kind = rng.randrange(256)
            expected.append((kind, payload))
            data += struct.pack("<IB3x", len(payload), kind) + payload
        garbage = rng.randbytes(rng.randrange(20)) if rng.random() < 0.7 else b""
        ours.sendall(data + garbage)
        ours.close()
        got = []
        with pytest.raises((frames.FrameError, EOFError)):
            while True:
                got.append(channel.receive())
                assert len(got[-1][1]) <= frames.MAX_PAYLOAD
        assert got[: len(expected)] == expected
        channel.close()


@pytest.mark.parametrize("size", [0, 65_536, 65_537, 131_072, 131_073, 8 << 20])
def test_events_in_parts(size: int) -> None:
    from _podflare_repl import frames

    ours, theirs = socket.socketpair()
    channel = frames.Channel(theirs.detach())
    payload = random.Random(1).randbytes(size)
    sender = threading.Thread(target=channel.send_event, args=(payload,))
    sender.start()
    got, kinds = b"", []
    while not kinds or kinds[-1] != EVENT:
        length, kind = struct.unpack("<IB3x", ours.recv(8, socket.MSG_WAITALL))
        got += ours.recv(length, socket.MSG_WAITALL)
        kinds.append(kind)
        assert length == 65536 or kind == EVENT
    sender.join()
    assert got == payload and kinds == [EVENT_PART] * max(0, -(-size // 65536) - 1) + [EVENT]
    with pytest.raises(ValueError):
        channel.send_event(bytes((8 << 20) + 1))
    channel.close()
    ours.close()


def test_channel_whose_descriptor_was_replaced() -> None:
    from _podflare_repl import frames

    ours, theirs = socket.socketpair()
    channel = frames.Channel(theirs.detach())
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), channel.fd)
        with pytest.raises(frames.FrameError):
            channel.send(frames.EXIT, b"{}")
        assert os.fstat(file.fileno()).st_size == 0
    channel.close()
    ours.close()


def test_channel_refuses_to_send_too_much_and_after_a_fork() -> None:
    from _podflare_repl import frames

    ours, theirs = socket.socketpair()
    channel = frames.Channel(theirs.detach())
    with pytest.raises(ValueError):
        channel.send(frames.EVENT, b"x" * 65537)
    if os.fork() == 0:
        channel.send(frames.EVENT, b"from the child")
        os._exit(0)
    os.wait()
    channel.send(frames.EXIT, b"parent")
    assert ours.recv(100) == struct.pack("<IB3x", 6, frames.EXIT) + b"parent"
    channel.close()
    ours.close()
