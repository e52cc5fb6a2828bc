# SPDX-License-Identifier: Apache-2.0
"""A Linux guest that opens connections to its host (egress_guest.c), and a VMM that is told to
take them or not (vmegress.c): off at first and in a copy, on, off again, rejected, too many, without
an answer, with a control socket that is full."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from guestrun import BUILD, ROOT, hardware

# The emulated host may share its processors with others; it ends itself after 900 s.
pytestmark = pytest.mark.limit(1100)

LIMIT = 64  # VSOCK_GUEST_CONNS
ASKING = 16  # VSOCK_ASKING
RESET, SILENT = 1 << 8, 1 << 16  # what the guest's order for many connections adds up


def initramfs(work: Path) -> Path:
    """The agent's, for its kernel modules, with another process 1 behind it."""
    spec, added = work / "spec", work / "added.cpio"
    spec.write_text(f"file /egress-guest {BUILD}/egress-guest 755\n")
    subprocess.run([sys.executable, ROOT / "guest/mkcpio.py", added, spec], check=True)
    both = work / "egress.cpio"
    first = (BUILD / "guest/initramfs.cpio").read_bytes()
    both.write_bytes(first.ljust((len(first) + 511) & ~511, b"\0") + added.read_bytes())
    return both


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What vmegress printed in each case."""
    work = tmp_path_factory.mktemp("egress")
    initramfs(work)
    (work / "filler").write_bytes(b"\xe2\xe1\xf5\xe0" * 4096)
    shutil.copy(BUILD / "vmegress", work)
    shutil.copy(ROOT / "tests/guest/egress.sh", work)
    env = dict(os.environ)
    if hardware():
        command = ["sh", work / "egress.sh"]
        env |= {"VMM": str(BUILD / "podflare-vmm"), "KERNEL": str(BUILD / "guest/vmlinux")}
    else:
        command = [BUILD / "podflare", "box", "run", "--timeout", "900"]
        for name in ("vmegress", "egress.cpio", "filler"):
            command += ["--add", work / name]
        command.append(work / "egress.sh")
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=1000, check=False
    )
    parts = re.split(r"^== (\w+)$", done.stdout, flags=re.MULTILINE)
    assert len(parts) > 1, f"nothing ran: {done.stdout}\n{done.stderr}"
    print(done.stdout)
    return dict(zip(parts[1::2], parts[2::2]))


def line(text: str, name: str) -> tuple[int, ...]:
    """The numbers of one line."""
    found = re.findall(rf"^{name} (.*)$", text, flags=re.MULTILINE)
    assert len(found) == 1, text
    return tuple(int(n) for n in re.findall(r"\d+", found[0]))


# The guest's answer and how often the VMM asked.
CASES = {
    "off": (errno.ECONNRESET, 0),
    "other-port": (errno.ECONNRESET, 0),
    "rejected": (errno.ECONNRESET, 1),
    "on": (0, 1),
    "echo": (0, 0),
    "pingpong": (0, 0),
    "reset-by-off": (0, 0),  # what Linux makes of an RST: the end
    "off-again": (errno.ECONNRESET, 0),
    "many": (LIMIT + (100 - LIMIT) * RESET, LIMIT),
    "unanswered": (40 * SILENT, ASKING),
    "unanswered-left": (40 - ASKING,),
    "parent": (0, 1),
    "parent-echo": (0, 0),
    "child-inherited": (0, 0),
    "child-off": (errno.ECONNRESET, 0),
    "child-left": (0,),
    "parent-goes-on": (0, 0),
    "child-on": (0, 1),
    "child-echo": (0, 0),
    "parent-still": (0, 0),
    "parent-left": (1,),
}


@pytest.mark.parametrize("vcpus", ["one", "two"])
@pytest.mark.parametrize("case", CASES)
def test_guest(case: str, vcpus: str, outputs: dict[str, str]) -> None:
    assert line(outputs[vcpus], case) == CASES[case], outputs[vcpus]


@pytest.mark.parametrize("case", ["one", "two", "narrow"])
def test_to_the_end(case: str, outputs: dict[str, str]) -> None:
    assert "all tried\nstatus 0" in outputs[case]


@pytest.mark.parametrize("vcpus", ["one", "two"])
def test_nothing_is_left_when_off(vcpus: str, outputs: dict[str, str]) -> None:
    assert re.findall(r"^left (\d+)$", outputs[vcpus], flags=re.MULTILINE) == ["0", "0"]


def test_full_control_socket(outputs: dict[str, str]) -> None:
    """It holds some questions; the rest is refused at once, and nobody is worse off afterwards."""
    text = outputs["narrow"]
    reset, unanswered, asked = line(text, "unread")
    assert reset > 0 and asked > 0 and reset + asked == 16
    assert unanswered == asked
    assert line(text, "left") == (0,)
    assert line(text, "after") == (0, 1)
    assert line(text, "after-echo") == (0, 0)
