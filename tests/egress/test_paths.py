# SPDX-License-Identifier: Apache-2.0
"""Every character there is, in a path that a rule with paths is asked for (src/egress/rules_paths.c)."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
BOUNDARIES = set("./\\;?#%")
# Which are none by NFKC: they look so, or are "\" in a code page.
LOOKALIKES = {chr(c) for c in (0xA5, 0x20A9, 0x2044, 0x2215, 0x2216, 0x29F5, 0x29F8, 0x29F9)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory):
    """rules_path_plain() of the source."""
    library = tmp_path_factory.mktemp("paths") / "paths.so"
    command = ["gcc", "-std=gnu17", "-O1", "-shared", "-fPIC", f"-I{SOURCE}", "-o", str(library)]
    subprocess.run([*command, str(SOURCE / "egress/rules_paths.c")], check=True)
    function = ctypes.CDLL(str(library)).rules_path_plain
    function.restype = ctypes.c_bool
    return lambda path: function(path.encode())


def test_characters_that_are_boundaries_to_somebody(plain) -> None:
    wrong = []
    for n in range(0x80, sys.maxunicode + 1):
        c = chr(n)
        if 0xD800 <= n < 0xE000:
            continue
        refused = c in LOOKALIKES or bool(BOUNDARIES & set(unicodedata.normalize("NFKC", c)))
        if plain(f"/v1/a{quote(c)}b") == refused:
            wrong.append(f"U+{n:04X}")
    assert wrong == []


def test_names_of_every_day(plain) -> None:
    for name in ("報告（最終）.txt", "你好，世界！", "价格：１００", "見積り〜２。", "Übersicht „neu“.pdf", "#room:example.org"):
        assert plain(f"/files/{quote(name)}"), name
