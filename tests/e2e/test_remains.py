# SPDX-License-Identifier: Apache-2.0
"""What a sandbox has written is in no other one of its template: not on the raw disk, and nowhere in what
its kernel calls memory, the free part of it included. Root looks, as an attacker would."""

from __future__ import annotations

import os

import pytest
from guest import SMALL, probe

from podflare import Client, Sandbox

# A canary is a word and its complement. Only who planted it has ever had the two side by side: who looks
# for it has the word alone, so that nobody finds himself.
PLANT = r"""
import ctypes, json, mmap, os
word = bytes.fromhex("%s")
canary = word + bytes(b ^ 255 for b in word)
page = canary * (4096 // len(canary))
libc = ctypes.CDLL(None)
with open("/home/user/canaries", "wb") as f:
    for _ in range(1024):
        f.write(page)
    os.fsync(f.fileno())
os.sync()
os.mkdir("/tmp/memory")
assert libc.mount(b"none", b"/tmp/memory", b"tmpfs", 0, None) == 0
with open("/tmp/memory/canaries", "wb") as f:  # stays; what is the process's own is freed again
    for _ in range(1024):
        f.write(page)
own = mmap.mmap(-1, 8 << 20)
own.write(page * 2048)
print(json.dumps(True))
"""

# The disk, and all memory in the direct map, by way of /proc/kcore (ELF: segments that lie in it).
LOOK = r"""
import json, os, struct
word = bytes.fromhex("%s")
rest = bytes(b ^ 255 for b in word)
def canaries(data):
    n = at = 0
    while (at := data.find(word, at)) >= 0:
        n += data[at + len(word) : at + 2 * len(word)] == rest
        at += len(word)
    return n
def all_of(fd, at, size):
    found = read = 0
    while read < size:
        data = os.pread(fd, min(1 << 20, size - read), at + read)
        if not data:
            break
        found += canaries(data)
        read += len(data)
    return [found, read]
disk = os.open("/dev/vda", os.O_RDONLY)
seen = {"disk": all_of(disk, 0, os.lseek(disk, 0, os.SEEK_END)), "memory": [0, 0]}
ranges = [[int(x, 16) for x in line.split(":")[0].strip().split("-")]
          for line in open("/proc/iomem") if line.rstrip().endswith(": System RAM")]
core = os.open("/proc/kcore", os.O_RDONLY)
head = os.pread(core, 64, 0)
phoff, = struct.unpack_from("<Q", head, 32)
size, number = struct.unpack_from("<HH", head, 54)
for i in range(number):
    kind, _, offset, vaddr, paddr, filesz, _, _ = struct.unpack("<IIQQQQQQ", os.pread(core, 56, phoff + i * size))
    if kind == 1 and any(low <= paddr <= high for low, high in ranges) and 0xffff888000000000 <= vaddr < 0xffffc88000000000:
        found, read = all_of(core, offset, filesz)
        seen["memory"][0] += found
        seen["memory"][1] += read
print(json.dumps(seen))
"""

MIB = 1 << 20


def look(sandbox: Sandbox, word: bytes) -> tuple[int, int]:
    """Canaries on its disk and in its memory; all of both was looked at."""
    seen = probe(sandbox, LOOK % word.hex(), root=True)
    (on_disk, disk), (in_memory, memory) = seen["disk"], seen["memory"]
    assert disk == SMALL["disk_mib"] * MIB
    # But for what the kernel kept for itself before it had memory to manage.
    assert memory >= (SMALL["memory_mib"] - 32) * MIB, seen
    return on_disk, in_memory


@pytest.mark.limit(900)
def test_nobody_finds_what_another_left(client: Client) -> None:
    word = os.urandom(16)
    with Sandbox(client=client, **SMALL) as sibling:
        with Sandbox(client=client, **SMALL) as gone:
            assert probe(gone, PLANT % word.hex(), root=True)
            on_disk, in_memory = look(gone, word)
            # There to be found: 4 MiB of each, 32 bytes each; in memory also what was freed, in part.
            assert on_disk > 100_000 and in_memory > 150_000
            assert look(sibling, word) == (0, 0)
        # One that the pool has made meanwhile or before, and one that is made now for its grant.
        with Sandbox(client=client, **SMALL) as new:
            assert look(new, word) == (0, 0)
        with Sandbox(client=client, egress_allow=["api.test:80"], **SMALL) as newer:
            assert look(newer, word) == (0, 0)
        assert look(sibling, word) == (0, 0)
