# SPDX-License-Identifier: Apache-2.0
"""What the README shows first is what happens when somebody pastes it."""

from __future__ import annotations

import re
from pathlib import Path

from served import run_example

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_first_blocks_run(daemon, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
    program = tmp_path / "pasted.py"
    program.write_text("\n".join(blocks[:2]), encoding="utf-8")
    lines = run_example(daemon, str(program)).splitlines()
    assert [line for line in lines if line] == [
        "Temperature: 61°F, Condition: fog",
        "42",
        next(line for line in lines if line.startswith("Linux ")),
        "lo",
        "['/home/user/answer.txt']",
        "332833500",
    ]
