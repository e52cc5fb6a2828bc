# SPDX-License-Identifier: Apache-2.0
"""The sample programs, as a user runs them. (fork.py: test_fork.py.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from served import Daemon, run_example


# Its template boots once, and takes a while where everything is slow.
@pytest.mark.limit(900)
def test_data_analysis(daemon: Daemon, tmp_path: Path):
    picture = tmp_path / "planets.png"
    out = run_example(daemon, "data_analysis.py", str(picture))
    assert "bytes of planets.csv are in the sandbox as /" in out
    # A table of pandas, what was printed, and the plot.
    assert re.search(r"^Neptune +102\.000 +49528 +4515\.0 +59800\.0$", out, re.MULTILINE), out
    assert "largest disagreement: 9.8%" in out and "period ~ distance ** 1.498" in out
    assert f"the plot is in {picture}" in out
    assert "the data behind it came along: " in out
    for kind in ("line", "scatter"):
        assert kind in out.rsplit("came along: ", 1)[1]
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 5000
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width > 300 and height > 200
