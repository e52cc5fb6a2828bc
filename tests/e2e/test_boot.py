# SPDX-License-Identifier: Apache-2.0
"""How the guest's first program is started."""

from __future__ import annotations

from podflare import Sandbox


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
