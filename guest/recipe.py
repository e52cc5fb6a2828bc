# SPDX-License-Identifier: Apache-2.0
"""Recipes of templates: reading, checking, and merging one with the recipes it is based on.

A recipe is a folder; docs/templates.md describes it. Everything in it is checked before anything is
built, and every fault is told, not only the first: load() collects them as sentences that begin
with the file they are about. What a recipe of another template brings along is checked as well.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Callable, Iterator

SETTINGS = "template.toml"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?")
# The same limits as those of the API.
RANGES = {"memory_mib": (128, 65536), "vcpus": (1, 32), "disk_mib": (64, 65536)}
TYPES: dict[str, type] = {
    "name": str,
    "description": str,
    "base": str,
    "packages": list,
    "excludes": list,
    "warmup": str,
    **{key: int for key in RANGES},
}
WARMUP_MAX = 256 << 10
SETTINGS_MAX = 1 << 20
# Mounted over in every guest: files there would never be seen.
HIDDEN = ("dev", "proc", "run", "sys")
WORDS = {str: "a text", list: "a list of texts", int: "a whole number"}


@dataclasses.dataclass
class Item:
    """A file, link or empty folder that goes into the image."""

    kind: str  # "file", "program", "link", "folder"
    source: Path
    target: str = ""  # of a link


@dataclasses.dataclass
class Recipe:
    """One folder, as it is written there."""

    folder: Path
    name: str = ""
    description: str = ""
    base: str | None = None
    packages: list[str] = dataclasses.field(default_factory=list)
    excludes: list[str] = dataclasses.field(default_factory=list)
    warmup: str = ""
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    items: dict[str, Item] = dataclasses.field(default_factory=dict)
    customize: Path | None = None


@dataclasses.dataclass
class Template:
    """A recipe together with its bases: what gets built."""

    layers: list[Recipe]  # the deepest base first
    packages: list[str]
    excludes: list[str]
    warmup: str
    sizes: dict[str, int]
    items: dict[str, Item]

    @property
    def recipe(self) -> Recipe:
        """The recipe itself, without its bases."""
        return self.layers[-1]

    @property
    def customize(self) -> list[tuple[str, Path]]:
        """Scripts to run, in order: name of the template and file."""
        return [(r.name, r.customize) for r in self.layers if r.customize]


def _similar(word: str, words: list[str]) -> str:
    found = difflib.get_close_matches(word, words, n=1, cutoff=0.7)
    return f"; did you mean {found[0]}?" if found else ""


class _Loader:
    """Reads one folder; faults go into a list."""

    def __init__(self, folder: Path, faults: list[str]) -> None:
        self.recipe = Recipe(folder)
        self.folder = folder
        self._faults = faults

    def fault(self, where: str, text: str) -> None:
        self._faults.append(f"{self.folder / where}: {text}")

    def read_text(self, name: str, limit: int) -> str | None:
        """A text file of the recipe, or None after a fault."""
        path = self.folder / name
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):
                self.fault(name, f"is {_kind(mode)}, not a file")
                return None
            if path.stat().st_size > limit:
                self.fault(name, f"is too large: at most {limit >> 10} KiB are allowed")
                return None
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            self.fault(name, f"is not UTF-8 (byte {e.start})")
            return None
        except OSError as e:
            self.fault(name, "is missing" if e.errno == 2 else f"cannot be read: {e.strerror}")
            return None
        if "\0" in text:
            self.fault(name, "has a NUL character")
            return None
        return text

    def settings(self) -> dict[str, object] | None:
        if not (self.folder / SETTINGS).exists() and (self.folder / "packages").exists():
            self.fault(SETTINGS, "is missing (a list 'packages' of its own is no recipe any more)")
            return None
        text = self.read_text(SETTINGS, SETTINGS_MAX)
        if text is None:
            return None
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            self.fault(SETTINGS, f"is not valid TOML: {e}")
            return None
        except RecursionError:
            self.fault(SETTINGS, "is nested too deeply")
            return None

    def check_types(self, settings: dict[str, object]) -> dict[str, object]:
        """Those settings that are known and of the right type."""
        good: dict[str, object] = {}
        for key, value in settings.items():
            if key not in TYPES:
                self.fault(SETTINGS, f"unknown key '{key}'{_similar(key, list(TYPES))}")
            elif not isinstance(value, TYPES[key]) or isinstance(value, bool):
                self.fault(SETTINGS, f"'{key}' must be {WORDS[TYPES[key]]}, not {value!r:.60}")
            elif isinstance(value, list) and not all(isinstance(v, str) for v in value):
                self.fault(SETTINGS, f"'{key}' must be {WORDS[list]}, and has something else in it")
            else:
                good[key] = value
        return good

    def check_name(self, key: str, value: str) -> bool:
        if NAME.fullmatch(value):
            return True
        self.fault(
            SETTINGS,
            f"'{key}' is {value!r:.60}: 1 to 32 characters of a-z, 0-9 and '-' are allowed"
            " (not '-' at the beginning)",
        )
        return False

    def check_packages(self, names: list[str]) -> None:
        seen = set()
        for name in names:
            plain = name.partition("=")[0]
            if not PACKAGE.fullmatch(name) or plain.endswith("-"):
                self.fault(SETTINGS, f"packages: {name!r:.60} is not a Debian package's name")
            elif plain in seen:
                self.fault(SETTINGS, f"packages: {plain} is there twice")
            seen.add(plain)

    def check_excludes(self, patterns: list[str]) -> None:
        for pattern in patterns:
            path = pattern.removeprefix("!")
            if not path.startswith("/") or len(path.strip("/*?")) == 0 or "\n" in path:
                self.fault(
                    SETTINGS,
                    f"excludes: {pattern!r:.60} must be an absolute path or pattern, like"
                    " /usr/share/man/* ('!' in front: keep it after all)",
                )

    def read_warmup(self, value: str) -> None:
        """The value is code, or the name of a file with it."""
        where, text = SETTINGS, value
        if re.fullmatch(r"\S+\.py", value):
            if value.startswith("/") or ".." in value.split("/"):
                self.fault(SETTINGS, f"warmup: {value!r:.60} must be inside the recipe's folder")
                return
            where = value
            code = self.read_text(value, WARMUP_MAX)
            if code is None:
                return
            text = code
        if len(text.encode("utf-8", "surrogatepass")) > WARMUP_MAX:
            self.fault(where, f"the warm-up is longer than {WARMUP_MAX >> 10} KiB")
            return
        problem = syntax_error(text, where)
        if problem:
            self.fault(where, f"the warm-up is not valid Python: {problem}")
            return
        self.recipe.warmup = text

    def read_customize(self) -> None:
        text = self.read_text("customize.sh", SETTINGS_MAX)
        if text is None:
            return
        first = text.partition("\n")[0]
        shell = "bash" if "bash" in first else "sh"
        if first.startswith("#!") and not re.search(r"/(env )?(ba)?sh\b", first):
            self.fault("customize.sh", f"must be for sh or bash; its first line is {first:.60}")
            return
        done = subprocess.run(
            [shell, "-n"], input=text, capture_output=True, text=True, check=False, errors="replace"
        )
        if done.returncode:
            problem = done.stderr.strip().splitlines()[-1:] or ["?"]
            self.fault("customize.sh", f"is not a valid shell script: {problem[0]:.200}")
            return
        self.recipe.customize = self.folder / "customize.sh"

    def read_files(self) -> None:
        top = self.folder / "files"
        mode = os.lstat(top).st_mode
        if not stat.S_ISDIR(mode):
            self.fault("files", f"is {_kind(mode)}, not a folder")
            return
        self._read_folder(top, "")

    def _read_folder(self, folder: Path, prefix: str) -> None:
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as e:
            self.fault(f"files/{prefix}", f"cannot be read: {e.strerror}")
            return
        kept = 0
        for entry in entries:
            if entry.name == "__pycache__":
                continue
            kept += 1
            path = prefix + entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if not prefix and entry.name in HIDDEN:
                self.fault(f"files/{path}", "would never be seen: the guest mounts something there")
            elif stat.S_ISDIR(mode):
                self._read_folder(Path(entry.path), path + "/")
            elif stat.S_ISLNK(mode):
                self.recipe.items[path] = Item("link", Path(entry.path), os.readlink(entry.path))
            elif not stat.S_ISREG(mode):
                self.fault(
                    f"files/{path}",
                    f"is {_kind(mode)}: only files, folders and symbolic links can be in an image",
                )
            elif not os.access(entry.path, os.R_OK):
                self.fault(f"files/{path}", "cannot be read")
            else:
                kind = "program" if mode & stat.S_IXUSR else "file"
                self.recipe.items[path] = Item(kind, Path(entry.path))
        if kept == 0 and prefix:
            self.recipe.items[prefix.rstrip("/")] = Item("folder", folder)

    def check_folder(self, warmup: object) -> None:
        """A name with a slip in it must not be left out silently."""
        known = {SETTINGS, "files", "customize.sh", "__pycache__"}
        if isinstance(warmup, str):
            known.add(warmup.partition("/")[0])
        for name in sorted(os.listdir(self.folder)):
            if name in known or name.startswith((".", "README", "LICENSE")) or name.endswith("~"):
                continue
            if name.endswith((".md", ".txt")):
                continue
            hint = _similar(name, ["files", "customize.sh", SETTINGS])
            self.fault(name, f"is no part of a recipe{hint}")

    def load(self) -> Recipe:
        recipe = self.recipe
        settings = self.settings()
        if settings is None:
            return recipe
        good = self.check_types(settings)
        if "name" in good and self.check_name("name", str(good["name"])):
            recipe.name = str(good["name"])
        elif "name" not in settings:
            self.fault(SETTINGS, "'name' is missing")
        recipe.description = str(good.get("description", ""))
        if not recipe.description.isprintable() or len(recipe.description) > 500:
            self.fault(SETTINGS, "'description' must be one line of at most 500 characters")
        if "base" in good and self.check_name("base", str(good["base"])):
            recipe.base = str(good["base"])
        recipe.packages = list(good.get("packages", []))  # type: ignore[call-overload]
        self.check_packages(recipe.packages)
        recipe.excludes = list(good.get("excludes", []))  # type: ignore[call-overload]
        self.check_excludes(recipe.excludes)
        for key, (low, high) in RANGES.items():
            value = good.get(key)
            if isinstance(value, int) and not low <= value <= high:
                self.fault(SETTINGS, f"'{key}' is {value}, not from {low} to {high}")
            elif isinstance(value, int):
                recipe.sizes[key] = value
        if "warmup" in good:
            self.read_warmup(str(good["warmup"]))
        if os.path.lexists(self.folder / "customize.sh"):
            self.read_customize()
        if os.path.lexists(self.folder / "files"):
            self.read_files()
        self.check_folder(settings.get("warmup"))
        return recipe


def _kind(mode: int) -> str:
    kinds: list[tuple[Callable[[int], bool], str]] = [
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISBLK, "a block device"),
        (stat.S_ISCHR, "a character device"),
    ]
    return next((word for test, word in kinds if test(mode)), "a file")


def syntax_error(code: str, name: str) -> str:
    """What is wrong with Python code, or ''. Cells may await at the top, so a warm-up may, too."""
    try:
        compile(code, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as e:
        return f"line {e.lineno}: {e.msg}"
    except (ValueError, RecursionError, MemoryError) as e:
        return str(e) or type(e).__name__
    return ""


def read(folder: Path, faults: list[str]) -> Recipe:
    """One recipe without its bases; appends to faults."""
    if not folder.is_dir():
        faults.append(f"{folder}: there is no such folder")
        return Recipe(folder)
    return _Loader(folder, faults).load()


def _items_of(layers: list[Recipe], faults: list[str]) -> dict[str, Item]:
    """Files of all layers; one that is a folder in another layer is a fault."""
    items: dict[str, Item] = {}
    folders: dict[str, str] = {}  # every folder on the way to a file, and who has it
    owner: dict[str, str] = {}
    for layer in layers:
        for path, item in layer.items.items():
            parts = path.split("/")
            above = ["/".join(parts[:n]) for n in range(1, len(parts))]
            clash = next((p for p in above if p in items and items[p].kind != "folder"), None)
            if clash is None and path in folders and item.kind != "folder":
                clash = path
            if clash is not None:
                other = owner.get(clash) or folders[clash]
                faults.append(
                    f"{layer.folder}/files/{clash}: is a folder in one and no folder in the other"
                    f" of the templates {other} and {layer.name}"
                )
                continue
            for p in above:
                folders.setdefault(p, layer.name)
                items.pop(p, None)  # an empty folder that is not empty any more
            if item.kind == "folder":
                if path in folders:
                    continue
                if path in items and items[path].kind != "folder":
                    faults.append(
                        f"{layer.folder}/files/{path}: is a folder in one and no folder in the"
                        f" other of the templates {owner[path]} and {layer.name}"
                    )
                    continue
            items[path] = item
            owner[path] = layer.name
    return items


def _packages_of(layers: list[Recipe]) -> list[str]:
    """All packages; a version that a recipe asks for replaces that of its base."""
    packages: dict[str, str] = {}
    for layer in layers:
        for name in layer.packages:
            packages[name.partition("=")[0]] = name
    return list(packages.values())


def load(folder: Path, find: Callable[[str, Path], Path | None], faults: list[str]) -> Template:
    """A recipe with its bases. find(name, beside) gives the folder of another template's recipe.

    With faults, what comes back is not to be built.
    """
    layers = [read(folder, faults)]
    seen = [layers[0].name]
    while (base := layers[0].base) is not None:
        if base in seen:
            chain = " -> ".join([*seen, base])
            faults.append(f"{layers[0].folder / SETTINGS}: 'base' goes in a circle: {chain}")
            break
        where = find(base, layers[0].folder)
        if where is None:
            faults.append(f"{layers[0].folder / SETTINGS}: 'base': there is no template {base}")
            break
        layers.insert(0, read(where, faults))
        seen.append(base)
        if layers[0].name and layers[0].name != base:
            faults.append(f"{where / SETTINGS}: 'name' is {layers[0].name}, not {base}")
    warmup = "".join(r.warmup.rstrip("\n") + "\n" for r in layers if r.warmup)
    problem = syntax_error(warmup, "warm-up") if not faults else ""
    if problem or len(warmup.encode()) > WARMUP_MAX:
        problem = problem or f"longer than {WARMUP_MAX >> 10} KiB"
        faults.append(f"{folder}: the warm-up together with those of its bases: {problem}")
    sizes: dict[str, int] = {}
    for layer in layers:
        sizes |= layer.sizes
    return Template(
        layers=layers,
        packages=_packages_of(layers),
        excludes=[e for r in layers for e in r.excludes],
        warmup=warmup,
        sizes=sizes,
        items=_items_of(layers, faults),
    )


def dpkg_options(excludes: list[str]) -> Iterator[str]:
    """Lines for dpkg.cfg."""
    for pattern in excludes:
        if pattern.startswith("!"):
            yield f"path-include={pattern[1:]}"
        else:
            yield f"path-exclude={pattern}"
