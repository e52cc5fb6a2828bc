# SPDX-License-Identifier: Apache-2.0
"""Which stages of tests/run.py run a test of pytest, and what is missing there, without running or
importing any: from the stages' commands and variables, and from the source of the tests.

A stage whose programs were built with sanitizers, or have no jail, sets a flag that tests look at:
they are skipped then, not collected, or ask for less.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FLAGS = {"SANITIZED", "TSAN", "UNJAILED"}
# As conftest.py of tests/vmm spells it.
SPELLED = {"VMM_STILL_UNJAILED": "UNJAILED"}


@dataclass
class Case:
    """A test: its marks, and the flags that skip it or make it ask for less."""

    path: str
    name: str
    marks: set[str] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)


@dataclass
class Selection:
    """What a stage runs, and the flags that are set in it."""

    name: str
    paths: list[str]
    without: list[str]
    marks: str
    flags: set[str]

    def has(self, test: Case) -> bool:
        """Whether the stage runs a test, and with all that it asks for."""
        here = any(
            test.path == path.split("::")[0] or test.path.startswith(f"{path}/") for path in self.paths
        )
        ids = [path for path in self.paths if path.startswith(f"{test.path}::")]
        here = here and (not ids or f"{test.path}::{test.name}" in ids)
        chosen = defaultdict(bool, {mark: True for mark in test.marks})
        return (
            here
            and test.path not in self.without
            and (not self.marks or eval(self.marks, {"__builtins__": {}}, chosen))  # "a and not b"
            and not test.flags & self.flags
        )


def selections() -> list[Selection]:
    """Of all stages of pytest, as `make test` has them."""
    spec = importlib.util.spec_from_file_location("runner_of_stages", ROOT / "tests/run.py")
    assert spec and spec.loader
    run: Any = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = run
    spec.loader.exec_module(run)
    found = []
    for stage in run.stages(ROOT / "build"):
        if stage.kind == "pytest":
            words = [str(word).removeprefix(f"{ROOT}/") for word in stage.command]
            at = words.index("-m") if "-m" in words else len(words)
            paths = [w for i, w in enumerate(words) if not w.startswith("-") and i != at + 1]
            without = [w.removeprefix("--ignore=") for w in words if w.startswith("--ignore=")]
            marks = words[at + 1] if at < len(words) else ""
            found.append(Selection(stage.name, paths, without, marks, flags_of(stage.env)))
    return found


def flags_of(env: dict[str, str]) -> set[str]:
    """Those that the tests of a stage see set."""
    own = {"PODFLARED", "PODFLARE_EGRESS"} & env.keys()
    return {
        *({"SANITIZED"} if own and "ASAN_OPTIONS" in env else ()),
        *({"TSAN"} if own and "TSAN_OPTIONS" in env else ()),
        *({"UNJAILED"} if "VMM_STILL_UNJAILED" in env else ()),
    }


def named(node: ast.AST) -> set[str]:
    """The flags that some code looks at."""
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    words = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
    return names & FLAGS | {SPELLED[str(word)] for word in words if word in SPELLED}


@cache
def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def assigned(path: str) -> dict[str, ast.expr]:
    """Names of a module, and of its directory's conftest.py, with what they stand for."""
    files = [str(Path(path).parent / "conftest.py"), path]
    return {
        target.id: node.value
        for file in files
        if (ROOT / file).exists()
        for node in tree(file).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def take_mark(test: Case, mark: ast.expr, names: dict[str, ast.expr]) -> None:
    """One decorator, or entry of pytestmark, by its name or as it is."""
    if isinstance(mark, ast.Name):
        if mark.id in names:
            take_mark(test, names[mark.id], names)
        return
    call = mark.func if isinstance(mark, ast.Call) else mark
    if isinstance(call, ast.Attribute) and ast.unparse(call.value) == "pytest.mark":
        test.marks.add(call.attr)
        if call.attr == "skipif":
            test.flags |= named(mark)


@cache
def cases_of(path: str) -> dict[str, Case]:
    """The tests of a file by name."""
    names, tests = assigned(path), {}
    of_all = names.get("pytestmark", ast.List([]))
    ignored = names.get("collect_ignore", ast.List([]))
    for node in tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test"):
            test = tests[node.name] = Case(path, node.name)
            for mark in of_all.elts if isinstance(of_all, ast.List) else [of_all]:
                take_mark(test, mark, names)
            for mark in node.decorator_list:
                take_mark(test, mark, names)
            for statement in node.body:
                test.flags |= named(statement)
            if f"'{Path(path).name}'" in ast.unparse(ignored):
                test.flags |= named(ignored)
    return tests
