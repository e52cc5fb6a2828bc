# SPDX-License-Identifier: Apache-2.0
"""Recipes of templates: what is refused and how that is told, and how a recipe is merged with its
bases. Nothing is built."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Callable

import pytest

from conftest import ROOT

sys.path.insert(0, str(ROOT / "guest"))

import recipe as recipes  # noqa: E402

GOOD = """
name = "mine"
description = "one of mine"
packages = ["python3-yaml", "g++", "jq=1.6-2.1"]
excludes = ["/usr/share/x/*", "!/usr/share/x/y"]
memory_mib = 512
vcpus = 1
disk_mib = 64
warmup = "import json"
"""


def write(folder: Path, settings: str = GOOD, **files: str) -> Path:
    """A recipe. Names of files have __ for / and _dot_ for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.toml").write_text(settings)
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def load(folder: Path) -> tuple[recipes.Template, list[str]]:
    """What is read and the faults; other recipes are looked for beside it."""

    def find(name: str, beside: Path) -> Path | None:
        place = beside.parent / name
        return place if place.is_dir() else None

    faults: list[str] = []
    return recipes.load(folder, find, faults), faults


def with_line(line: str) -> str:
    """GOOD with a key set otherwise."""
    key = line.partition("=")[0].strip()
    kept = [old for old in GOOD.splitlines() if old.partition("=")[0].strip() != key]
    return "\n".join([line, *kept])


def test_good_recipe(tmp_path: Path) -> None:
    template, faults = load(write(tmp_path / "r", README_dot_md="x", files__etc__a="b"))
    assert faults == []
    assert template.packages == ["python3-yaml", "g++", "jq=1.6-2.1"]
    assert template.sizes == {"memory_mib": 512, "vcpus": 1, "disk_mib": 64}
    assert template.warmup == "import json\n"
    assert {path: item.kind for path, item in template.items.items()} == {"etc/a": "file"}
    assert list(recipes.dpkg_options(template.excludes)) == [
        "path-exclude=/usr/share/x/*",
        "path-include=/usr/share/x/y",
    ]


# Settings, and a part of the sentence that must come.
SETTINGS: dict[str, tuple[str, str]] = {
    "no TOML": ("name = ", "is not valid TOML: Invalid value (at"),
    "key twice": ('name = "a"\nname = "b"', "is not valid TOML"),
    "unknown key": (with_line("pakages = []"), "unknown key 'pakages'; did you mean packages?"),
    "unknown key, like nothing": (with_line("zzz = 1"), "unknown key 'zzz'"),
    "a table": (GOOD + "[more]\nx = 1", "unknown key 'more'"),
    "no name": (with_line("name =").removeprefix("name ="), "'name' is missing"),
    "name of a wrong type": (with_line("name = 5"), "'name' must be a text, not 5"),
    "empty name": (with_line('name = ""'), "1 to 32 characters of a-z"),
    "capital letters": (with_line('name = "Mine"'), "1 to 32 characters of a-z"),
    "name with a slash": (with_line('name = "a/b"'), "1 to 32 characters of a-z"),
    "name with a dash in front": (with_line('name = "-a"'), "not '-' at the beginning"),
    "long name": (with_line(f'name = "{"a" * 33}"'), "1 to 32 characters of a-z"),
    "name with a newline": (with_line('name = "a\\n"'), "1 to 32 characters of a-z"),
    "description": (with_line("description = []"), "'description' must be a text, not []"),
    "two lines": (with_line('description = "a\\nb"'), "'description' must be one line"),
    "base of a wrong type": (with_line("base = 1"), "'base' must be a text, not 1"),
    "base with a bad name": (with_line('base = "../x"'), "'base' is '../x': 1 to 32"),
    "unknown base": (with_line('base = "gone"'), "'base': there is no template gone"),
    "own base": (with_line('base = "mine"'), "'base' goes in a circle: mine -> mine"),
    "packages": (with_line('packages = "jq"'), "'packages' must be a list of texts, not 'jq'"),
    "a number in packages": (with_line('packages = ["jq", 1]'), "has something else in it"),
    "package option": (with_line('packages = ["--yes"]'), "'--yes' is not a Debian package's name"),
    "package removal": (with_line('packages = ["jq-"]'), "'jq-' is not a Debian package's name"),
    "package file": (with_line('packages = ["./x.deb"]'), "is not a Debian package's name"),
    "two in one": (with_line('packages = ["jq git"]'), "'jq git' is not a Debian package's name"),
    "package pattern": (with_line('packages = ["?essential"]'), "is not a Debian package's name"),
    "package twice": (with_line('packages = ["jq", "jq=1"]'), "packages: jq is there twice"),
    "excludes": (with_line("excludes = true"), "'excludes' must be a list of texts, not True"),
    "relative": (with_line('excludes = ["usr/x"]'), "must be an absolute path or pattern"),
    "all": (with_line('excludes = ["/*"]'), "must be an absolute path or pattern"),
    "exclude with a newline": (with_line('excludes = ["/a\\nb"]'), "must be an absolute path"),
    "memory as text": (with_line('memory_mib = "1G"'), "'memory_mib' must be a whole number"),
    "memory as truth": (with_line("memory_mib = true"), "'memory_mib' must be a whole number"),
    "memory as fraction": (with_line("memory_mib = 1.5"), "'memory_mib' must be a whole number"),
    "little memory": (with_line("memory_mib = 127"), "'memory_mib' is 127, not from 128 to 65536"),
    "much memory": (with_line("memory_mib = 65537"), "not from 128 to 65536"),
    "no processor": (with_line("vcpus = 0"), "'vcpus' is 0, not from 1 to 32"),
    "many processors": (with_line("vcpus = 33"), "'vcpus' is 33, not from 1 to 32"),
    "small disk": (with_line("disk_mib = 63"), "'disk_mib' is 63, not from 64 to 65536"),
    "large disk": (with_line("disk_mib = 65537"), "'disk_mib' is 65537, not from 64 to 65536"),
    "warm-up of a wrong type": (with_line("warmup = ['x']"), "'warmup' must be a text"),
    "no Python": (
        with_line("warmup = '''\nx = 1\nif x\n'''"),
        "template.toml: the warm-up is not valid Python: line 2: expected ':'",
    ),
    "magic": (with_line("warmup = '%cd /'"), "is not valid Python: line 1"),
    "return": (with_line("warmup = 'return'"), "line 1: 'return' outside function"),
    "NUL in the warm-up": (with_line('warmup = "a\\u0000"'), "is not valid Python"),
    "no file": (with_line("warmup = 'warm.py'"), "warm.py: is missing"),
    "file elsewhere": (with_line("warmup = '../warm.py'"), "must be inside the recipe's folder"),
    "absolute file": (with_line("warmup = '/etc/warm.py'"), "must be inside the recipe's folder"),
    "long warm-up": (with_line(f"warmup = '{'#' * 262145}'"), "is longer than 256 KiB"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_faults_of_settings(tmp_path: Path, case: str) -> None:
    text, message = SETTINGS[case]
    _, faults = load(write(tmp_path / "r", text))
    assert len(faults) == 1, faults
    assert message in faults[0]
    assert faults[0].startswith(str(tmp_path / "r"))


def fifo(folder: Path) -> None:
    (folder / "files").mkdir()
    os.mkfifo(folder / "files/pipe")


def unix_socket(folder: Path) -> None:
    (folder / "files").mkdir()
    here = os.getcwd()
    os.chdir(folder / "files")  # the whole path is too long for an address
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("socket")
    finally:
        os.chdir(here)


def put(name: str, data: bytes = b"x") -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return do


def warm(data: bytes) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / "template.toml").write_text(with_line("warmup = 'warm.py'"))
        (folder / "warm.py").write_bytes(data)

    return do


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "named pipe": (fifo, "files/pipe: is a named pipe: only files, folders and symbolic links"),
    "socket": (unix_socket, "files/socket: is a socket"),
    "files is a file": (put("files"), "files: is a file, not a folder"),
    "files is a link": (
        lambda f: (f / "files").symlink_to("/etc"),
        "files: is a symbolic link, not a folder",
    ),
    "files under /proc": (put("files/proc/x"), "files/proc: would never be seen"),
    "files under /run": (put("files/run/x"), "files/run: would never be seen"),
    "a slip": (put("file/etc/x"), "file: is no part of a recipe; did you mean files?"),
    "another slip": (put("customise.sh"), "did you mean customize.sh?"),
    "left-overs of old recipes": (put("packages"), "packages: is no part of a recipe"),
    "customize.sh is a folder": (lambda f: (f / "customize.sh").mkdir(), "is a folder, not a file"),
    "customize.sh does not parse": (
        put("customize.sh", b"#!/bin/sh\nif true; then\n"),
        "customize.sh: is not a valid shell script: ",
    ),
    "customize.sh is not a shell's": (
        put("customize.sh", b"#!/usr/bin/python3\n"),
        "must be for sh or bash; its first line is #!/usr/bin/python3",
    ),
    "customize.sh is binary": (put("customize.sh", b"\xff\xfe"), "is not UTF-8 (byte 0)"),
    "settings are a folder": (
        lambda f: ((f / "template.toml").unlink(), (f / "template.toml").mkdir()),
        "template.toml: is a folder, not a file",
    ),
    "no settings": (lambda f: (f / "template.toml").unlink(), "template.toml: is missing"),
    "settings are not UTF-8": (put("template.toml", b"name = '\xff'"), "is not UTF-8 (byte 8)"),
    "settings are large": (put("template.toml", b"#" * 1048577), "too large: at most 1024 KiB"),
    "warm-up does not parse": (
        warm(b"x = 1\n(\n"),
        "warm.py: the warm-up is not valid Python: line 2: '(' was never closed",
    ),
    "warm-up is not UTF-8": (warm(b"x = '\xff'"), "warm.py: is not UTF-8"),
    "warm-up has a NUL": (warm(b"x\0"), "warm.py: has a NUL character"),
    "warm-up is large": (warm(b"#" * 262145), "warm.py: is too large: at most 256 KiB"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_faults_of_folders(tmp_path: Path, case: str) -> None:
    change, message = FOLDERS[case]
    folder = write(tmp_path / "r")
    change(folder)
    _, faults = load(folder)
    assert len(faults) == 1, faults
    assert message in faults[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", files__secret="x")
    (folder / "files/secret").chmod(0)
    assert "files/secret: cannot be read" in load(folder)[1][0]


def test_every_fault_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", 'nam = "x"\nvcpus = 99\nmemory_mib = "1"\nwarmup = "("', fils="")
    _, faults = load(folder)
    found = "\n".join(faults)
    for text in ("unknown key 'nam'", "'name' is", "'vcpus'", "'memory_mib'", "warm-up", "fils"):
        assert text in found
    assert len(faults) == 6


# Bases.


def chain(tmp_path: Path) -> tuple[Path, Path, Path]:
    """three, based on two, based on one."""
    one = write(
        tmp_path / "one",
        'name = "one"\npackages = ["a1", "shared=1"]\nexcludes = ["/x/*"]\nmemory_mib = 256\n'
        'vcpus = 4\nwarmup = "one = 1"',
        files__etc__conf="one",
        files__etc__only="one",
        customize_dot_sh="echo one",
    )
    two = write(tmp_path / "two", 'name = "two"\nbase = "one"\npackages = ["b2", "a1"]')
    three = write(
        tmp_path / "three",
        'name = "three"\nbase = "two"\npackages = ["shared=3"]\nexcludes = ["!/x/y"]\n'
        'memory_mib = 512\nwarmup = "three = one"',
        files__etc__conf="three",
        customize_dot_sh="echo three",
    )
    return one, two, three


def test_merge_with_bases(tmp_path: Path) -> None:
    one, _, three = chain(tmp_path)
    template, faults = load(three)
    assert faults == []
    assert template.recipe.name == "three"
    assert [layer.name for layer in template.layers] == ["one", "two", "three"]
    assert template.packages == ["a1", "shared=3", "b2"]
    assert template.excludes == ["/x/*", "!/x/y"]
    assert template.sizes == {"memory_mib": 512, "vcpus": 4}
    assert template.warmup == "one = 1\nthree = one\n"
    assert template.customize == [("one", one / "customize.sh"), ("three", three / "customize.sh")]
    assert template.items["etc/conf"].source == three / "files/etc/conf"
    assert template.items["etc/only"].source == one / "files/etc/only"


def test_circle_of_bases(tmp_path: Path) -> None:
    one, two, three = chain(tmp_path)
    (one / "template.toml").write_text('name = "one"\nbase = "three"')
    for folder, order in ((three, "three -> two -> one -> three"), (two, "two -> one -> three -> two")):
        _, faults = load(folder)
        assert len(faults) == 1 and f"goes in a circle: {order}" in faults[0]


def test_faults_of_a_base_are_told(tmp_path: Path) -> None:
    one, _, three = chain(tmp_path)
    (one / "template.toml").write_text('name = "one"\nvcpus = 0')
    _, faults = load(three)
    assert faults == [f"{one}/template.toml: 'vcpus' is 0, not from 1 to 32"]


def test_base_with_another_name(tmp_path: Path) -> None:
    one, _, three = chain(tmp_path)
    (one / "template.toml").write_text('name = "uno"')
    assert load(three)[1] == [f"{one}/template.toml: 'name' is uno, not one"]


def test_warmups_that_do_not_go_together(tmp_path: Path) -> None:
    _, _, three = chain(tmp_path)
    (three / "template.toml").write_text(
        'name = "three"\nbase = "two"\nwarmup = "from __future__ import annotations"'
    )
    _, faults = load(three)
    assert len(faults) == 1 and "together with those of its bases: line 2: from __future__" in faults[0]


@pytest.mark.parametrize(
    ("below", "above"), [("etc/x", "etc/x/y"), ("etc/x/y", "etc/x"), ("etc/x/y/z", "etc/x")]
)
def test_a_file_in_the_place_of_a_folder(tmp_path: Path, below: str, above: str) -> None:
    one, _, three = chain(tmp_path)
    for folder, path in ((one, below), (three, above)):
        (folder / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "files" / path).write_text("x")
    _, faults = load(three)
    assert len(faults) == 1
    assert "files/etc/x: is a folder in one and no folder in the other of the templates one and" in (
        faults[0]
    )


def test_empty_folders_links_and_programs(tmp_path: Path) -> None:
    one, _, three = chain(tmp_path)
    (one / "files/srv/data").mkdir(parents=True)
    (one / "files/srv/full").mkdir()
    (three / "files/srv/full").mkdir(parents=True)
    (three / "files/srv/full/file").write_text("x")
    (three / "files/srv/run").write_text("x")
    (three / "files/srv/run").chmod(0o755)
    (three / "files/srv/link").symlink_to("/nowhere")
    (three / "files/srv/__pycache__").mkdir()
    (three / "files/srv/__pycache__/x.pyc").write_text("x")
    template, faults = load(three)
    assert faults == []
    kinds = {p: i.kind for p, i in template.items.items() if p.startswith("srv")}
    assert kinds == {
        "srv/data": "folder",
        "srv/full/file": "file",
        "srv/run": "program",
        "srv/link": "link",
    }
    assert template.items["srv/link"].target == "/nowhere"


@pytest.mark.parametrize("path", sorted((ROOT / "guest/images").glob("*/template.toml")))
def test_recipes_of_the_project(path: Path) -> None:
    template, faults = load(path.parent)
    assert faults == []
    assert template.recipe.name == path.parent.name
