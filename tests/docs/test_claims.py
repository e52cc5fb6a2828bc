# SPDX-License-Identifier: Apache-2.0
"""What the documents say of the tree: tests that the threat model names are there, and it names every
fuzz target, each of which has seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
THREATS = ROOT / "docs/threat-model.md"


def table(text: str, heading: str) -> list[list[str]]:
    """Cells of each row of the table below a heading; nothing else may look like a row of it."""
    section = re.split(rf"^## {re.escape(heading)}$", text, flags=re.M)[1].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.lstrip().startswith("|")]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    assert len(rows) > 2 and set("".join(rows[1])) == {"-"}, heading
    return rows[2:]


def claims(text: str) -> list[tuple[str, list[str]]]:
    """Each claim of the threat model, and the tests that it names; none is a fault to be found."""
    rows = table(text, "Claims and their tests")
    return [(row[0], re.findall(r"`((?:sdk/python/)?tests/[^`]+)`", "".join(row[1:]))) for row in rows]


CLAIMS = claims(THREATS.read_text(encoding="utf-8"))


def test_there_are_claims() -> None:
    assert len(CLAIMS) > 20


@pytest.mark.parametrize("claim,tests", CLAIMS, ids=[claim for claim, _ in CLAIMS])
def test_a_claim_has_its_tests(claim: str, tests: list[str]) -> None:
    assert claim and tests, f"no test for: {claim}"
    for test in tests:
        path, _, name = test.partition("::")
        text = (ROOT / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(static void |def ){name}\(", text, re.M), test


@pytest.mark.parametrize("cell", ["", " |", " none yet |", " `docs/fork.md` |"])
def test_a_claim_without_a_test_is_not_overlooked(cell: str) -> None:
    top = "| claim | tests |\n|---|---|\n"
    before, after = THREATS.read_text(encoding="utf-8").split(top)
    assert claims(f"{before}{top}| A new claim |{cell}\n{after}") == [("A new claim", []), *CLAIMS]
    with pytest.raises(AssertionError, match="A new claim"):
        test_a_claim_has_its_tests("A new claim", [])


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
