# SPDX-License-Identifier: Apache-2.0
"""How the programs were built, read from the files themselves.

Each mitigation is looked for where a forgotten flag would show: in program headers, the dynamic
section, symbols and instructions. The list of programs is what meson installs, so that a new one
is looked at without being named here.
"""

from __future__ import annotations

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


def imported(program: str) -> set[str]:
    return {name.lstrip("_") for name in re.findall(r"(\w+)(?:@|$)", read(program, "--symbols"), re.M)}


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


@each_program
def test_stack_protector_and_fortify(program: str) -> None:
    names = imported(program)
    assert "stack_chk_fail" in names
    assert {n for n in names if n.endswith("_chk") and "printf" in n}


@each_program
def test_branch_targets_are_marked(program: str) -> None:
    """-fcf-protection: main and whatever is called through a pointer begin with endbr64."""
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
