# SPDX-License-Identifier: Apache-2.0
"""How the guest's first program is started, and what is ready before anything of the user's is."""

from __future__ import annotations

import re

import pytest
from guest import probe

from podflare import Sandbox


UNMOUNT = (
    "import ctypes;"
    'assert ctypes.CDLL(None).umount2(b"/proc/sys/kernel/random/boot_id", 0) == 0'
)


def root(sandbox: Sandbox, script: str) -> str:
    r = sandbox.run_code(script, language="bash", user="root")
    assert r.ok, r
    return r.stdout


def test_the_agents_code_is_one_huge_page(shared: Sandbox) -> None:
    """Or each copy would have a page fault for every part of it; nothing is left of the first one."""
    said = root(
        shared,
        "readlink /proc/1/exe; cat /proc/1/cmdline | tr '\\0' '\\n'; grep -c /huge/ /proc/1/maps;"
        " awk '/^ShmemHugePages/ {print ($2 >= 2048)}' /proc/meminfo",
    ).split()
    assert said[:2] == ["/huge/podflare-agent", "podflare-agent"]
    assert int(said[2]) >= 4 and said[3] == "1"
    # Its file system is not among what programs in the sandbox can name.
    assert root(shared, "test ! -e /huge; grep -c huge /proc/1/mounts || true") == "0\n"


@pytest.mark.limit(300)
def test_a_boot_id_that_was_unmounted(parent: Sandbox) -> None:
    """Copies have one of their own all the same: it is mounted again."""
    read = "cat /proc/sys/kernel/random/boot_id /run/podflare/boot-id"
    with parent.fork() as (base,):
        root(base, f"python3 -c '{UNMOUNT}'")
        with base.fork(2) as children:
            ids = [root(one, read).split() for one in children]
            for shown, own in ids:
                assert shown == own
            assert ids[0] != ids[1]
            # And is not looked for when nothing was mounted since.
            with children[0].fork() as (child,):
                shown, own = root(child, read).split()
                assert shown == own and shown not in (ids[0][0], ids[1][0])


# Started as user or root; by the kernel's clock, which does not go on in a template that waits.
SEEDED = r"""
import errno, json, os
def getrandom(flags):
    try:
        return len(os.getrandom(256, flags))
    except OSError as e:
        return errno.errorcode[e.errno]
def stat(pid):
    with open(f"/proc/{pid}/stat") as f:
        return f.read().rpartition(")")[2].split()
seen = {"getrandom": [getrandom(os.GRND_NONBLOCK), getrandom(os.GRND_NONBLOCK | os.GRND_RANDOM)]}
with open("/proc/sys/kernel/random/entropy_avail") as f:
    seen["bits"] = int(f.read())
ticks = os.sysconf("SC_CLK_TCK")
seen["starts"] = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if os.stat(f"/proc/{pid}").st_uid == 1000 and stat(pid)[0] != "Z":
            seen["starts"].append(int(stat(pid)[19]) / ticks)
    except OSError:
        pass
print(json.dumps(seen))
"""


def test_random_numbers_are_seeded_before_anybody_asks(shared: Sandbox) -> None:
    """Neither root nor the user has to wait for them; the kernel says that it was ready before the
    first program of the user's, the session of the template, was started."""
    seeded = re.findall(r"^\[ *([0-9.]+)\] random: crng init done$", root(shared, "dmesg"), re.M)
    assert len(seeded) == 1
    for as_root in (False, True):
        seen = probe(shared, SEEDED, as_root)
        assert seen["getrandom"] == [256, 256] and seen["bits"] == 256
        assert seen["starts"] and min(seen["starts"]) >= float(seeded[0]), (seeded, seen)
