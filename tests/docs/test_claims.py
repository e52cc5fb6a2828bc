# SPDX-License-Identifier: Apache-2.0
"""What the documents say of the tree: tests that the threat model names are there, and `make test` runs
them with all that they ask for; and it names every fuzz target, each of which has seeds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from selections import FLAGS, Selection, Case, selections, cases_of

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


STAGES = selections()
OF_PYTEST = sorted({test for _, tests in CLAIMS for test in tests if ".py::" in test})


@pytest.mark.parametrize("name", OF_PYTEST)
def test_a_claimed_test_is_run_as_a_whole(name: str) -> None:
    """In some stage where it is neither skipped nor asks for less, as sanitizers or the lack of a jail
    would have it."""
    path, _, function = name.partition("::")
    test = cases_of(path)[function]
    assert any(stage.has(test) for stage in STAGES), f"no stage for {test}"


@pytest.mark.parametrize("directory", ["daemon", "egress", "vmm"])
def test_whatever_asks_for_less_is_run_as_a_whole_too(directory: str) -> None:
    """Claimed or not."""
    paths = sorted((ROOT / "tests" / directory).glob("test_*.py"))
    tests = [t for p in paths for t in cases_of(str(p.relative_to(ROOT))).values()]
    assert any(test.flags for test in tests)
    assert [f"{t.path}::{t.name}" for t in tests if not any(s.has(t) for s in STAGES)] == []


def test_selections_are_understood() -> None:
    by_name = {stage.name: stage for stage in STAGES}
    assert {name: s.flags for name, s in by_name.items() if s.flags} == {
        "daemon": {"SANITIZED"},
        "daemon-tsan": {"TSAN"},
        "egress": {"SANITIZED"},
        "vmm-asan": {"UNJAILED"},
    }
    a = "tests/daemon/test_x.py"
    assert by_name["daemon"].has(Case(a, "test_x"))
    assert not by_name["daemon-bounds"].has(Case(a, "test_x"))
    assert by_name["daemon-bounds"].has(Case(a, "test_x", {"bounds"}, FLAGS))
    assert not by_name["daemon"].has(Case(a, "test_x", {"bounds"}, {"SANITIZED"}))
    assert not by_name["egress"].has(Case("tests/egress/test_x.py", "test_x", {"plain"}))
    one = Selection("", [f"{a}::test_x"], [], "", set())
    assert one.has(Case(a, "test_x")) and not one.has(Case(a, "test_y"))
    assert not Selection("", ["tests/daemon"], [a], "", set()).has(Case(a, "test_x"))
    jail = cases_of("tests/vmm/test_jail.py")["test_what_is_next_to_each_rule_kills"]
    assert jail.flags == {"UNJAILED"} and jail.marks == {"parametrize"}
    probes = cases_of("tests/egress/test_jail.py")["test_what_is_forbidden_kills"]
    assert probes.flags == {"SANITIZED"} and {"plain", "skipif"} <= probes.marks
    assert "bounds" in cases_of("tests/daemon/test_load.py")["test_all_ready_at_once"].marks


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
