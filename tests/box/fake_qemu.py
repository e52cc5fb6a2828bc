#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""In the place of qemu-system-x86_64: boots at once, takes its orders, writes down what it got to the
state disk, the only file that it may write to, and ends. Before that its monitor says what is in EVENTS: lists
of lines, each but the first when it is told to go on, with the state disk's name for STATE; and after a last
RESUME it waits for one more order. Nothing of the environment reaches it: stand_in.py makes copies with EVENTS
of their own."""

import base64
import json
import os
import re
import sys
from typing import BinaryIO

EVENTS: list[list[str]] = []

argv = sys.argv[1:]
files = {}


def stream(name: str) -> int:
    """Its descriptor."""
    found = (re.match(rf"socket,id={name},fd=(\d+)", a) for a in argv)
    return next(int(m.group(1)) for m in found if m)


def state_disk() -> tuple[str, str]:
    """As QEMU calls it, and its file."""
    found = (re.search(r"id=(disk\d+),.*,file=(.*/box-state\.ext4)$", a) for a in argv)
    return next((m.group(1), m.group(2)) for m in found if m)


def play(monitor: BinaryIO, batches: list[list[str]]) -> None:
    """Says them all."""
    commands = os.fdopen(os.dup(monitor.fileno()), "rb")
    for number, batch in enumerate(batches):
        while number and b'"cont"' not in commands.readline():
            pass
        text = "".join(f"{line}\n" for line in batch)
        monitor.write(text.replace("STATE", state_disk()[0]).encode())


order = ""
with os.fdopen(stream("orders"), "r+b", buffering=0) as port:
    port.write(b"booted\n")
    orders = os.fdopen(os.dup(port.fileno()), "rb")
    for line in orders:
        words = line.decode().split()
        if words[0] == "go":
            break
        assert words[0] == "file", line
        files[words[1]] = orders.read(int(words[3]))
    if EVENTS:
        port.write(b"started\n")
        with os.fdopen(stream("monitor"), "r+b", buffering=0) as qmp:
            play(qmp, EVENTS)
            if '"RESUME"' in EVENTS[-1][-1]:
                order = orders.readline().decode()
report = {
    "argv": argv,
    "environ": dict(os.environ),
    "order": order,
    "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
}
with open(state_disk()[1], "r+b") as out:
    out.write(json.dumps(report).encode() + b"\n")
