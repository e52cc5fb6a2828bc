#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Makes templates from recipes: checks a recipe, merges it with its bases, has the image built.

    template.py check RECIPE...
    template.py [--build DIR] build [--update] RECIPE|NAME...
    template.py [--build DIR] ls [--plain]
    template.py [--build DIR] rm NAME...

RECIPE is a folder with a template.toml (docs/templates.md), NAME one that is in guest/images or was
built before. A template lies in DIR/guest/templates/NAME (DIR: default build/ beside guest/):

    template.json   what the daemon is told: name, sizes, warm-up
    rootfs.erofs    a link to the image in the cache, made by build-image.sh
    manifest        a link to what is in the image
    recipe          a link to the folder that it was made from

The image is built only when something that decides its bytes has changed; sizes and the warm-up are
no part of it. Exit status 0, 1 (failed, said why), 2 (wrong command line).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Iterator

sys.dont_write_bytecode = True
GUEST = Path(__file__).resolve().parent
sys.path.insert(0, str(GUEST))

import recipe as recipes  # noqa: E402
from aptlists import ask_apt  # noqa: E402

RESTART = "a `podflare serve` that runs sees this after a restart"


class Failure(Exception):
    """Ends the program; the text is one sentence or several lines."""


def plain(text: str) -> str:
    """Without a terminal's commands and turns of direction: names of files and what is in them may be
    somebody else's."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def say(text: str) -> None:
    print(plain(f"template: {text}"), flush=True)


def cache_folder() -> Path:
    """The same as in lib.sh."""
    if os.environ.get("PODFLARE_CACHE"):
        return Path(os.environ["PODFLARE_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "podflare"


@contextlib.contextmanager
def plan_folder() -> Iterator[Path]:
    """A folder for a plan, in the cache; removes those of programs that were killed."""
    place = cache_folder() / "tmp"
    try:
        place.mkdir(parents=True, exist_ok=True)
        for old in place.glob("plan.*"):
            if not Path("/proc", old.suffix[1:]).is_dir():
                shutil.rmtree(old, ignore_errors=True)
        plan = place / f"plan.{os.getpid()}"
        plan.mkdir(mode=0o700)  # files of a recipe may be private
    except OSError as e:
        raise Failure(
            f"the cache folder {place.parent} cannot be written ({e.strerror}); choose another place"
            " with PODFLARE_CACHE=DIR"
        ) from e
    try:
        yield plan
    finally:
        shutil.rmtree(plan, ignore_errors=True)


class Templates:
    """The templates of a build directory."""

    def __init__(self, build: Path) -> None:
        self.folder = build / "guest" / "templates"

    def names(self) -> list[str]:
        """Those that were built, "default" first."""
        if not self.folder.is_dir():
            return []
        found = [e.name for e in self.folder.iterdir() if recipes.NAME.fullmatch(e.name)]
        return sorted(found, key=lambda name: (name != "default", name))

    def recipe_of(self, name: str) -> Path | None:
        """The folder that a built template was made from."""
        link = self.folder / name / "recipe"
        return Path(os.readlink(link)) if link.is_symlink() else None

    def find(self, name: str, beside: Path | None = None) -> Path | None:
        """The recipe with a name: beside another, of the project, or of what was built."""
        places = [beside.parent / name] if beside else []
        built = self.recipe_of(name)
        places += [GUEST / "images" / name] + ([built] if built else [])
        return next((p for p in places if (p / recipes.SETTINGS).is_file()), None)

    def load(self, folder: Path) -> recipes.Template:
        """A recipe without a fault."""
        faults: list[str] = []
        template = recipes.load(folder, self.find, faults)
        if faults:
            raise Failure("\n".join(["the recipe has faults:", *(f"  {f}" for f in faults)]))
        return template

    def resolve(self, word: str) -> Path:
        """The folder that a word of the command line means."""
        if recipes.NAME.fullmatch(word):
            found = self.find(word)
            if found:
                return found
        folder = Path(word)
        if folder.is_file() and folder.name == recipes.SETTINGS:
            folder = folder.parent
        if not folder.is_dir():
            known = sorted({*self.names(), *project_names()})
            raise Failure(
                f"{word} is neither a recipe's folder nor a template (there are: {', '.join(known)})"
            )
        return folder.resolve()


def project_names() -> list[str]:
    """Recipes that come with the project."""
    return sorted(p.parent.name for p in (GUEST / "images").glob(f"*/{recipes.SETTINGS}"))


def image_key(template: recipes.Template) -> str:
    """A hash of all that decides the image, except the packages of the day."""
    digest = hashlib.sha256()

    def add(*words: str | bytes) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else os.fsencode(word)
            digest.update(b"%d:" % len(data) + data)

    # build-image.sh is no part of it: it only decides when and as whom the image is made.
    for script in ("make-root.sh", "finish-root.sh"):
        add(script, (GUEST / script).read_bytes())
    tools = subprocess.run(
        ["dpkg-query", "-W", "-f=${Package} ${Version}\n", "mmdebstrap", "erofs-utils"],
        capture_output=True,
        check=False,
    )
    add("tools", tools.stdout, os.environ.get("PODFLARE_DEBIAN_SOURCES", ""))
    add("packages", *template.packages, "excludes", *template.excludes)
    for _, script_path in template.customize:
        add("customize", script_path.read_bytes())
    for path, item in sorted(template.items.items()):
        plain = item.source.read_bytes() if item.kind in ("file", "program") else b""
        add("item", item.kind, path, item.target, plain)
    return digest.hexdigest()[:32]


def settings_of(template: recipes.Template) -> str:
    """The text of template.json."""
    settings: dict[str, object] = {"name": template.recipe.name}
    if template.recipe.description:
        settings["description"] = template.recipe.description
    settings |= template.sizes
    if template.warmup:
        settings["warmup"] = template.warmup
    return json.dumps(settings, ensure_ascii=False, indent=1) + "\n"


def write_plan(template: recipes.Template, key: str, needs: str, plan: Path) -> None:
    """What build-image.sh is to build, as a folder of its own: sources may change meanwhile."""
    (plan / "name").write_text(f"{template.recipe.name}\n")
    (plan / "key").write_text(f"{key}\n")
    (plan / "needs").write_text(f"{needs}\n")
    (plan / "packages").write_text("".join(f"{p}\n" for p in template.packages))
    options = recipes.dpkg_options(template.excludes)
    (plan / "excludes").write_text("".join(f"{line}\n" for line in options))
    (plan / "customize").mkdir()
    for number, (name, script) in enumerate(template.customize):
        text = script.read_bytes()
        if not text.startswith(b"#!"):
            text = b"#!/bin/sh\n" + text
        target = plan / "customize" / f"{number:02}-{name}"
        target.write_bytes(text)
        target.chmod(0o755)
    (plan / "files").mkdir()
    for path, item in template.items.items():
        to = plan / "files" / path
        to.parent.mkdir(parents=True, exist_ok=True)
        if item.kind == "link":
            to.symlink_to(item.target)
        elif item.kind == "folder":
            to.mkdir(exist_ok=True)
        else:
            shutil.copyfile(item.source, to)
            to.chmod(0o755 if item.kind == "program" else 0o644)


def run_builder(arguments: list[str]) -> int:
    """build-image.sh to its end; a signal to us ends it, and it tidies up."""
    with subprocess.Popen([str(GUEST / "build-image.sh"), *arguments]) as process:

        def forward(number: int, _frame: object) -> None:
            process.send_signal(number)

        before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGHUP)}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, forward)
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def replace_text(path: Path, text: str) -> bool:
    """Writes a file at once; False when it was the same already."""
    if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == text:
        return False
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
    return True


def replace_link(path: Path, target: Path) -> None:
    """Points a link somewhere at once."""
    if path.is_symlink() and os.readlink(path) == str(target):
        return
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.symlink_to(target)
    new.replace(path)


def build_one(templates: Templates, folder: Path, update: bool) -> bool:
    """Builds a template; True when anything of it is new."""
    template = templates.load(folder)
    name = template.recipe.name
    key = image_key(template)
    needs = ""
    if update or not (cache_folder() / "image" / key / "sums").exists():
        faults, needs = ask_apt(template.packages)
        if faults:
            raise Failure(
                "\n".join([f"template {name} cannot be built:", *(f"  {f}" for f in faults)])
            )
    out = templates.folder / name
    before = templates.recipe_of(name)
    if before and before != folder and before.is_dir():
        say(f"{name} was made from {before} until now, and is made from {folder} from now on")
    old_image = os.readlink(out / "rootfs.erofs") if (out / "rootfs.erofs").is_symlink() else ""
    with plan_folder() as plan:
        write_plan(template, key, needs, plan)
        status = run_builder([*(["--update"] if update else []), str(plan), str(out)])
    if status != 0:
        raise Failure(f"template {name} was not built" if status > 0 else "interrupted")
    replace_link(out / "recipe", folder)
    new = replace_text(out / "template.json", settings_of(template))
    return new or update or os.readlink(out / "rootfs.erofs") != old_image


def command_build(templates: Templates, args: argparse.Namespace) -> None:
    # Where `podflare template` finds this program when the build folder is not beside guest/.
    templates.folder.parent.mkdir(parents=True, exist_ok=True)
    replace_link(templates.folder.parent / "source", GUEST)
    folders = [templates.resolve(word) for word in args.what]
    new = [build_one(templates, folder, args.update) for folder in folders]
    if args.hint and any(new):
        say(RESTART)


def command_check(templates: Templates, args: argparse.Namespace) -> None:
    failed = []
    for word in args.what:
        try:
            template = templates.load(templates.resolve(word))
            faults, _ = ask_apt(template.packages)
            if faults:
                raise Failure("\n".join(["the recipe has faults:", *(f"  {f}" for f in faults)]))
            say(f"{template.recipe.name}: the recipe is right")
        except Failure as e:
            failed.append(str(e))
    if failed:
        raise Failure("\n".join(failed))


def command_rm(templates: Templates, args: argparse.Namespace) -> None:
    for name in args.what:
        folder = templates.folder / name
        if not recipes.NAME.fullmatch(name) or not os.path.lexists(folder):
            known = ", ".join(templates.names()) or "none"
            raise Failure(f"there is no built template {name} (there are: {known})")
        if name == "default":
            raise Failure("the template default cannot be removed: podflare needs it")
    for name in args.what:
        folder = templates.folder / name
        image = folder / "rootfs.erofs"
        entry = Path(os.readlink(image)).parent if image.is_symlink() else None
        shutil.rmtree(folder)
        if entry and entry.is_dir() and run_builder(["--release", str(entry)]) != 0:
            raise Failure(f"the image of {name} is still in {entry}")
        say(f"removed {name}; its recipe stays")
    if args.hint:
        say(RESTART)


def read_manifest(folder: Path) -> tuple[str, int]:
    """Key of the image and number of packages in it."""
    key, packages = "", 0
    for line in (folder / "manifest").read_text(encoding="utf-8", errors="replace").splitlines():
        word, _, rest = line.partition(" ")
        if word == "key":
            key = rest
        packages += word == "package"
    return key, packages


def state_of(templates: Templates, name: str, key: str) -> str:
    """Whether what was built is what its recipe says."""
    folder = templates.recipe_of(name)
    if folder is None or not folder.is_dir():
        folder = templates.find(name)  # the project's folder may have moved
    if folder is None or not folder.is_dir():
        return "recipe gone"
    try:
        template = templates.load(folder)
        now, image = settings_of(template), image_key(template)
    except (Failure, OSError, RecursionError):
        return "recipe has faults"
    if template.recipe.name != name:
        return "recipe gone"
    if image != key:
        return "stale"
    text = (templates.folder / name / "template.json").read_text(encoding="utf-8")
    return "ready" if text == now else "stale"


def read_settings(folder: Path) -> dict[str, object]:
    """What the daemon is told of a template; a ValueError when that is nothing that we wrote."""
    try:
        settings = json.loads((folder / "template.json").read_text(encoding="utf-8"))
    except RecursionError as e:
        raise ValueError("nested too deeply") from e
    if not isinstance(settings, dict):
        raise ValueError("not an object")
    for key, value in settings.items():
        if type(value) is not (int if key in recipes.RANGES else str):
            raise ValueError(f"{key} is of the wrong type")
    return settings


def row_of(templates: Templates, name: str) -> list[str]:
    """One line of the table."""
    folder = templates.folder / name
    try:
        settings = read_settings(folder)
        size = (folder / "rootfs.erofs").stat().st_size
        key, packages = read_manifest(folder)
        built = (folder / "manifest").stat().st_mtime
    except (OSError, ValueError):
        return [name, "-", "-", "-", "-", "-", "-", "-", "damaged"]
    return [
        name,
        f"{size >> 20} MiB",
        str(packages),
        f"{settings.get('memory_mib', 1024)} MiB",
        str(settings.get("vcpus", "1-2")),
        f"{settings.get('disk_mib', 4096)} MiB",
        "yes" if settings.get("warmup") else "no",
        time.strftime("%Y-%m-%d %H:%M", time.localtime(built)),
        state_of(templates, name, key),
    ]


HEAD = ["NAME", "SIZE", "PACKAGES", "MEMORY", "VCPUS", "DISK", "WARM-UP", "BUILT", "STATE"]
RIGHT = (1, 2, 3, 4, 5)  # columns of numbers


def command_ls(templates: Templates, args: argparse.Namespace) -> None:
    built = templates.names()
    rows = [row_of(templates, name) for name in built]
    rows += [[n, *["-"] * 7, "not built"] for n in project_names() if n not in built]
    if args.plain:
        for row in rows:
            print(f"{row[0]}\t{row[-1]}")
        return
    table = [HEAD, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEAD))]
    for row in table:
        cells = (c.rjust(w) if i in RIGHT else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths)))
        print("  ".join(cells).rstrip())
    unready = [row[0] for row in rows if row[-1] in ("stale", "damaged", "not built")]
    if unready:
        print(f"\nTo build what is not ready: podflare template build {' '.join(unready)}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="template.py", allow_abbrev=False)
    parser.add_argument("--build", type=Path, default=GUEST.parent / "build")
    parser.add_argument("--hint", action="store_true", help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(required=True)
    for name, command in (
        ("check", command_check),
        ("build", command_build),
        ("rm", command_rm),
        ("ls", command_ls),
    ):
        verb = verbs.add_parser(name, allow_abbrev=False)
        verb.set_defaults(command=command)
        if name == "ls":
            verb.add_argument("--plain", action="store_true", help="NAME, tab, STATE")
        else:
            verb.add_argument("what", nargs="+")
        if name == "build":
            verb.add_argument("--update", action="store_true", help="with the packages of today")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of compile(): odd code in a warm-up is not our business
    try:
        args.command(Templates(args.build.resolve()), args)
    except Failure as e:
        print(plain(f"template: error: {e}"), file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except OSError as e:
        print(plain(f"template: error: {e.strerror}: {e.filename}"), file=sys.stderr)
        return 1
    except RecursionError:
        print("template: error: the folders of a recipe are nested too deeply", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
