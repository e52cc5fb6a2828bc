# SPDX-License-Identifier: Apache-2.0
"""What the documents say of the tree: tests that the threat model names are there, and it names every
fuzz target, each of which has seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLAIMS = [
    (line.split("|")[1].strip(), re.findall(r"`(tests/[^`]+)`", line))
    for line in (ROOT / "docs/threat-model.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and "`tests/" in line
]


def test_there_are_claims() -> None:
    assert len(CLAIMS) > 20


@pytest.mark.parametrize("claim,tests", CLAIMS, ids=[claim for claim, _ in CLAIMS])
def test_a_claim_has_its_tests(claim: str, tests: list[str]) -> None:
    assert tests, claim
    for test in tests:
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(static void |def ){name}\(", text, re.M), test


@pytest.mark.parametrize("document", sorted((ROOT / "docs").glob("*.md")) + [ROOT / "README.md"])
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("target", sorted((ROOT / "tests/fuzz").glob("fuzz_*.c")), ids=lambda p: p.stem)
def test_a_fuzz_target_is_told_of_and_has_seeds(target: Path) -> None:
    name = target.stem.removeprefix("fuzz_")
    seeds = list((ROOT / "tests/fuzz/corpus" / name).glob("*"))
    text = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
    assert f"`tests/fuzz/{target.name}`" in text
    assert f"\n  '{name}': [" in (ROOT / "tests/fuzz/meson.build").read_text(encoding="utf-8")
    assert 0 < len(seeds) <= 120
    assert sum(seed.stat().st_size for seed in seeds) < 100_000, "seeds are to be small"
