# SPDX-License-Identifier: Apache-2.0
"""How the programs were built, read from the files themselves.

Each mitigation is looked for where a forgotten flag would show: in program headers, the dynamic
section, symbols and instructions. The list of programs is what meson installs, so that a new one
is looked at without being named here.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("PODFLARE_BUILD", ROOT / "build"))


def installed() -> list[str]:
    """The programs that meson would install; a build that cannot tell has none, and fails below."""
    out = subprocess.run(
        ["meson", "introspect", "--targets", str(BUILD)], capture_output=True, text=True, check=False
    ).stdout
    return sorted(
        Path(target["filename"][0]).name
        for target in json.loads(out or "[]")
        if target["type"] == "executable" and target["installed"]
    )


PROGRAMS = installed()
each_program = pytest.mark.parametrize("program", PROGRAMS)


def read(program: str, *options: str) -> str:
    return subprocess.run(
        ["readelf", "--wide", *options, str(BUILD / program)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_there_are_programs() -> None:
    assert {"podflare", "podflared", "podflare-vmm", "podflare-agent"} <= set(PROGRAMS)


@each_program
def test_position_independent(program: str) -> None:
    assert re.search(r"Type:\s+DYN \(Position-Independent Executable", read(program, "--file-header"))
    assert "PIE" in read(program, "--dynamic")


@each_program
def test_relocations_are_read_only(program: str) -> None:
    assert "GNU_RELRO" in read(program, "--program-headers")
    assert "BIND_NOW" in read(program, "--dynamic")


@each_program
def test_nothing_is_writable_and_executable(program: str) -> None:
    headers = re.findall(
        r"^  (LOAD|GNU_STACK)\s+(?:0x\w+\s+){5}([RWE ]{3})", read(program, "--program-headers"), re.M
    )
    assert {kind for kind, _ in headers} == {"LOAD", "GNU_STACK"}
    assert not [h for h in headers if "W" in h[1] and "E" in h[1]]
    assert not [h for h in headers if h[0] == "GNU_STACK" and "E" in h[1]]
    # Code has pages of its own, without the constants beside it.
    assert [h for h in headers if h[0] == "LOAD" and h[1].strip() == "R"]
    assert "TEXTREL" not in read(program, "--dynamic")


@each_program
def test_libraries_come_from_the_system(program: str) -> None:
    assert not re.search(r"RPATH|RUNPATH", read(program, "--dynamic"))


@functools.cache
def objects(program: str) -> list[Path]:
    """The object files of the project that a program is linked of. What a static library of the
    system brings along, which the agent has, says nothing about how ours were compiled."""
    out = subprocess.run(
        ["ninja", "-C", str(BUILD), "-t", "inputs", program], capture_output=True, text=True, check=True
    ).stdout
    return sorted(BUILD / line for line in out.splitlines() if line.endswith(".o"))


@functools.cache
def undefined(program: str) -> dict[str, set[str]]:
    """What each of its objects calls of others, by the object's name."""
    out = subprocess.run(
        ["nm", "--undefined-only", "--print-file-name", *map(str, objects(program))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[str, set[str]] = {path.name: set() for path in objects(program)}
    for line in out.splitlines():
        where, _, name = line.rpartition(" U ")
        found[Path(where.split(":")[0]).name].add(name)
    return found


def directories(program: str) -> set[Path]:
    """Each target of the build that has a part in it."""
    return {path.parent for path in objects(program)}


@each_program
def test_objects_are_found(program: str) -> None:
    """Without this, what is said of all of them would be said of none."""
    names = undefined(program).keys()
    assert len(objects(program)) > 15 and len(directories(program)) >= 2
    assert any(name.endswith("main.c.o") for name in names) and "src_lib_io.c.o" in names


# Functions that write to memory by a format, or read into it, where the compiler knows its size.
CHECKED = {"printf", "fprintf", "vfprintf", "vprintf", "dprintf", "vdprintf", "vsnprintf", "sprintf"}


@each_program
def test_stack_protector_and_fortify(program: str) -> None:
    calls = undefined(program)
    for directory in directories(program):
        inside = [calls[path.name] for path in objects(program) if path.parent == directory]
        guarded = [names for names in inside if "__stack_chk_fail" in names]
        # One without an array on its stack has nothing to guard.
        assert guarded and (len(inside) < 5 or len(guarded) * 4 >= len(inside)), directory
    used = set().union(*calls.values())
    assert {n for n in used if n.endswith("_chk") and "printf" in n}
    assert not used & CHECKED


def features(path: Path | str) -> set[str]:
    """IBT and SHSTK, as far as the note of a file says that all code in it can do with them."""
    out = subprocess.run(
        ["readelf", "--wide", "--notes", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"x86 feature: (.*)$", out, re.M)
    return set(found.group(1).replace(",", " ").split()) if found else set()


@each_program
def test_branch_targets_and_return_addresses(program: str) -> None:
    """-fcf-protection: every object of ours can run with indirect branch tracking and a shadow
    stack. A program can when all of it can, the C library's part too: Debian's is built without,
    the code that a process begins with is not marked, and the linker leaves the note away. To force
    it (-z ibt, -z shstk) would be a lie to the kernel."""
    for path in objects(program):
        assert features(path) >= {"IBT", "SHSTK"}, path
    start = subprocess.run(
        ["cc", "-print-file-name=Scrt1.o"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not features(start):
        assert not features(BUILD / program)
    elif program != "podflare-agent":  # it has all of the C library in it
        assert features(BUILD / program) >= {"IBT", "SHSTK"}


@each_program
def test_branch_targets_are_marked(program: str) -> None:
    """-fcf-protection once more, in what was linked: main begins with endbr64."""
    code = subprocess.run(
        ["objdump", "--disassemble=main", "--no-show-raw-insn", str(BUILD / program)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"<main>:\n\s+[0-9a-f]+:\s+endbr64", code)


def test_the_agent_needs_nothing_of_its_guest() -> None:
    assert "INTERP" not in read("podflare-agent", "--program-headers")
    assert "NEEDED" not in read("podflare-agent", "--dynamic")


def test_the_vmm_links_libc_and_libseccomp_only() -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", read("podflare-vmm", "--dynamic"))
    assert sorted(needed) == ["libc.so.6", "libseccomp.so.2"]
