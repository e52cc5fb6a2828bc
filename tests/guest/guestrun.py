# SPDX-License-Identifier: Apache-2.0
"""Where the programs under test are, and whether this host runs guests itself."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("PODFLARE_BUILD", ROOT / "build"))


def hardware() -> bool:
    """True when guests run on this host itself, false when they need the emulated one."""
    facts = subprocess.run(
        [BUILD / "podflare", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    return json.loads(facts.stdout)["mode"] == "hardware"


def tiny(source: Path, directory: Path) -> None:
    """Makes NAME.tiny of a hand-made guest, and beside it what stands in for the rest."""
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext-segment=0x100000"]
        + ["-Wl,--build-id=none", "-Wa,-I.", "-o", directory / f"{source.stem}.tiny", source.name],
        cwd=source.parent,
        check=True,
    )
    # Any bytes: a tiny guest mounts nothing.
    (directory / "filler").write_bytes(b"\xe2\xe1\xf5\xe0" * 4096)
