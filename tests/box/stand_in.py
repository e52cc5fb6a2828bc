# SPDX-License-Identifier: Apache-2.0
"""Programs that are found in QEMU's place. They are in its jail: they may read themselves and the system's
programs, and have neither our environment nor files that they could write to, but the state disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Sequence

FAKE = Path(__file__).with_name("fake_qemu.py")


def put_in_place(where: Path, text: str) -> str:
    """Has this program in a directory of its own: the PATH with which it is found."""
    program = where / "bin/qemu-system-x86_64"
    program.parent.mkdir(exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"


def put_fake(where: Path, events: Sequence[Sequence[str]] = ()) -> str:
    """The same with fake_qemu.py, whose monitor says this."""
    before, line, after = FAKE.read_text().partition("EVENTS: list[list[str]] = []\n")
    assert line
    return put_in_place(where, f"{before}EVENTS = {[list(e) for e in events]!r}\n{after}")


def report_of(state: Path) -> Any:
    """What a fake has written to the state disk."""
    with (state / "box-state.ext4").open("rb") as disk:
        return json.loads(disk.readline())
