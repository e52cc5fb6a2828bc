# SPDX-License-Identifier: Apache-2.0
"""How the guest's first program is started."""

from __future__ import annotations

import pytest

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
