#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""In the place of qemu-system-x86_64: boots at once, takes its orders, writes down what it got to
$FAKE_QEMU_REPORT, and ends."""

import base64
import json
import os
import re
import sys

argv = sys.argv[1:]
fd = next(int(m.group(1)) for m in (re.match(r"socket,id=orders,fd=(\d+)", a) for a in argv) if m)
files = {}
with os.fdopen(fd, "r+b", buffering=0) as port:
    port.write(b"booted\n")
    orders = os.fdopen(os.dup(fd), "rb")
    for line in orders:
        words = line.decode().split()
        if words[0] == "go":
            break
        assert words[0] == "file", line
        files[words[1]] = orders.read(int(words[3]))
report = {
    "argv": argv,
    "environ": dict(os.environ),
    "files": {name: base64.b64encode(data).decode() for name, data in files.items()},
}
with open(os.environ["FAKE_QEMU_REPORT"], "w", encoding="utf-8") as out:
    json.dump(report, out)
