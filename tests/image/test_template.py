# SPDX-License-Identifier: Apache-2.0
"""guest/template.py as a program: build, ls, rm and check, with mmdebstrap faked; and what apt is
asked before a build."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from conftest import Machine

APT_LISTS = r"""#!/bin/bash
echo "apt-get $*" >>"$FAKE_LOG"
case $1 in
indextargets)
	[ "${FAKE_LISTS:-}" = none ] || echo "${FAKE_LISTS:-bookworm} $FAKE_LOG"
	;;
*) printf '%b' "${FAKE_APT:-}" ;;
esac
"""


def run(machine: Machine, *args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    template = machine.guest / "template.py"
    return machine.run(template, "--build", machine.out, *args, **env)


def recipe(machine: Machine, name: str = "mine", more: str = "", **files: str) -> Path:
    """A recipe of a user, outside the project, based on default."""
    folder = machine.base / "recipes" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "template.toml").write_text(f'name = "{name}"\nbase = "default"\n{more}')
    for path, text in files.items():
        (folder / path.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.replace("__", "/")).write_text(text)
    return folder


def states(machine: Machine, **env: str) -> dict[str, str]:
    done = run(machine, "ls", "--plain", **env)
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t") for line in done.stdout.splitlines())


def made(machine: Machine, name: str = "mine") -> Path:
    return machine.out / "guest/templates" / name


def test_build_of_a_folder(machine: Machine) -> None:
    folder = recipe(
        machine,
        more='description = "a °"\npackages = ["jq"]\nvcpus = 1\nwarmup = "warm.py"\n',
        **{"warm.py": "x = 'ä'\n", "files__etc__mine": "data"},
    )
    done = run(machine, "build", folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((made(machine) / "template.json").read_text(encoding="utf-8")) == {
        "name": "mine",
        "description": "a °",
        "vcpus": 1,
        "warmup": "x = 'ä'\n",
    }
    assert os.readlink(made(machine) / "recipe") == str(folder)
    called = machine.calls("mmdebstrap")[0]
    assert "--include=python3,python3-pip," in called and ",jq " in called
    assert "--dpkgopt=path-exclude=/usr/share/man/*" in called
    inside = machine.base / "inside"
    subprocess.run(
        ["fsck.erofs", f"--extract={inside}", made(machine) / "rootfs.erofs"],
        check=True,
        capture_output=True,
    )
    assert (inside / "etc/mine").read_text() == "data"
    assert (inside / "etc/pip.conf").exists()  # of default
    assert sorted(p.name for p in (inside / "scripts").iterdir()) == ["00-default", "finish"]
    assert os.access(inside / "scripts/00-default", os.X_OK)


def test_built_once_and_by_name(machine: Machine) -> None:
    folder = recipe(machine)
    first = run(machine, "--hint", "build", folder)
    assert "sees this after a restart" in first.stdout
    again = run(machine, "--hint", "build", "mine")
    assert again.returncode == 0, again.stderr
    assert "restart" not in again.stdout
    assert len(machine.calls("mmdebstrap")) == 1


def test_sizes_and_warmup_need_no_new_image(machine: Machine) -> None:
    """Only template.json is new; two templates that differ in nothing else share an image."""
    recipe(machine)
    assert run(machine, "build", machine.base / "recipes/mine").returncode == 0
    before = os.readlink(made(machine) / "rootfs.erofs")
    recipe(machine, more='memory_mib = 512\nwarmup = "x = 1"\n')
    assert states(machine)["mine"] == "stale"
    done = run(machine, "--hint", "build", "mine")
    assert done.returncode == 0 and "restart" in done.stdout
    assert json.loads((made(machine) / "template.json").read_text())["memory_mib"] == 512
    other = recipe(machine, "other")
    assert run(machine, "build", other, "default").returncode == 0
    for name in ("mine", "other", "default"):
        assert os.readlink(made(machine, name) / "rootfs.erofs") == before
    assert len(machine.calls("mmdebstrap")) == 1


def edit(path: str, text: str) -> Callable[[Machine], object]:
    def do(machine: Machine) -> None:
        target = machine.base / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    return do


JSON = "out/guest/templates/mine/template.json"

STATES: dict[str, tuple[Callable[[Machine], object], str]] = {
    "nothing changed": (lambda m: None, "ready"),
    "settings": (lambda m: recipe(m, more='packages = ["jq"]\n'), "stale"),
    "a file": (edit("recipes/mine/files/etc/x", "x"), "stale"),
    "a file of the base": (edit("guest/images/default/files/etc/x", "x"), "stale"),
    "how images are made": (edit("guest/finish-root.sh", "#!/bin/sh\n"), "stale"),
    "description": (lambda m: recipe(m, more='description = "x"\n'), "stale"),
    "a fault": (lambda m: recipe(m, more="vcpus = 0\n"), "recipe has faults"),
    "no folder": (lambda m: shutil.rmtree(m.base / "recipes/mine"), "recipe gone"),
    "another name": (
        edit("recipes/mine/template.toml", 'name = "x"\nbase = "default"\n'),
        "recipe gone",
    ),
    "no image": (lambda m: shutil.rmtree(m.cache), "damaged"),
    "no settings": (lambda m: (made(m) / "template.json").unlink(), "damaged"),
    "settings in a list": (edit(JSON, "[]"), "damaged"),
    "settings without end": (edit(JSON, "[" * 100_000), "damaged"),
    "a size that is text": (edit(JSON, '{"memory_mib": "\\u001b]0;x"}'), "damaged"),
    "a size that is none": (edit(JSON, '{"vcpus": true}'), "damaged"),
    "a warm-up that is none": (edit(JSON, '{"warmup": {}}'), "damaged"),
    "a recipe without end": (edit("recipes/mine/template.toml", "x = " + "[" * 10_000), "recipe has faults"),
}


@pytest.mark.parametrize("case", STATES)
def test_states(machine: Machine, case: str) -> None:
    change, state = STATES[case]
    assert run(machine, "build", recipe(machine)).returncode == 0
    change(machine)
    found = states(machine)
    assert found["mine"] == state
    assert found["default"] == "not built"
    table = run(machine, "ls").stdout
    assert state in next(line for line in table.splitlines() if line.startswith("mine"))
    assert table.replace("\n", "").isprintable()


def test_names_of_files_reach_no_terminal(machine: Machine) -> None:
    """Nor what else a recipe of somebody else has in it."""
    folder = recipe(machine, **{"\x1b]0;x\x07\u202e": "x"})
    done = run(machine, "check", folder)
    assert done.returncode == 1 and "/?]0;x??: is no part of a recipe" in done.stderr
    assert done.stderr.replace("\n", "").isprintable()


def test_table(machine: Machine) -> None:
    more = 'memory_mib = 512\nvcpus = 1\ndisk_mib = 100\nwarmup = "x = 1"\n'
    assert run(machine, "build", recipe(machine, more=more), "default").returncode == 0
    lines = run(machine, "ls").stdout.splitlines()
    assert lines[0].split() == [
        *("NAME", "SIZE", "PACKAGES", "MEMORY", "VCPUS", "DISK", "WARM-UP", "BUILT", "STATE")
    ]
    assert lines[1].startswith("default ")
    words = lines[2].split()
    assert words[:2] == ["mine", "0"] and words[3:11] == "1 512 MiB 1 100 MiB yes".split() + words[10:11]
    assert words[-1] == "ready"
    assert "podflare template build python-datasci" in lines[-1]


def test_rm(machine: Machine) -> None:
    """The template goes, with its image when nobody else uses it; the recipe stays."""
    folder = recipe(machine)
    other = recipe(machine, "other", 'packages = ["jq"]\n')
    assert run(machine, "build", "default", folder, other).returncode == 0
    images = machine.cache / "image"
    assert len(list(images.iterdir())) == 2
    done = run(machine, "--hint", "rm", "mine", "other")
    assert done.returncode == 0, done.stderr
    assert "removed mine" in done.stdout and "after a restart" in done.stdout
    assert set(states(machine)) == {"default", "python-datasci"}
    assert [p.name for p in images.iterdir()] == [
        Path(os.readlink(made(machine, "default") / "rootfs.erofs")).parent.name
    ]
    assert folder.is_dir() and other.is_dir()


def test_rm_refused(machine: Machine) -> None:
    assert run(machine, "build", "default", recipe(machine)).returncode == 0
    for words, message in (
        (["default"], "default cannot be removed"),
        (["mine", "gone"], "no built template gone (there are: default, mine)"),
        (["../templates/mine"], "no built template ../templates/mine"),
    ):
        done = run(machine, "rm", *words)
        assert done.returncode == 1 and message in done.stderr
    assert made(machine).is_dir() and made(machine, "default").is_dir()


def test_another_recipe_with_the_name(machine: Machine) -> None:
    assert run(machine, "build", recipe(machine)).returncode == 0
    other = machine.base / "elsewhere"
    shutil.copytree(machine.base / "recipes/mine", other)
    done = run(machine, "build", other)
    assert f"made from {machine.base}/recipes/mine until now" in done.stdout
    assert os.readlink(made(machine) / "recipe") == str(other)


def test_faults_end_a_build_before_it_begins(machine: Machine) -> None:
    done = run(machine, "build", recipe(machine, more="vcpus = 0\nwarmup = '('\n"))
    assert done.returncode == 1
    assert "the recipe has faults:" in done.stderr
    assert "'vcpus' is 0" in done.stderr and "not valid Python: line 1" in done.stderr
    assert machine.calls() == [] and not made(machine).exists()
    assert run(machine, "check", recipe(machine, more="vcpus = 0\n")).returncode == 1
    good = run(machine, "check", recipe(machine), "default")
    assert good.returncode == 0 and good.stdout.count("the recipe is right") == 2


def test_unknown_word(machine: Machine) -> None:
    done = run(machine, "build", "nowhere")
    assert done.returncode == 1
    assert "nowhere is neither a recipe's folder nor a template" in done.stderr
    assert "default, python-datasci" in done.stderr


APT: dict[str, tuple[str, str]] = {
    "unknown": (
        "E: Unable to locate package jqq\\n",
        "packages: Debian has no package jqq; did you mean jq?",
    ),
    "unknown, like nothing": (
        "E: Unable to locate package zzzzzz\\n",
        "packages: Debian has no package zzzzzz\n",
    ),
    "virtual": (
        "E: Package 'awk' has no installation candidate\\n",
        "awk is not a package but a name for several",
    ),
    "version": (
        "E: Version '9' for 'jq' was not found\\n",
        "packages: jq is not there in version 9",
    ),
    "conflict": (
        "The following packages have unmet dependencies:\\n a : Conflicts: b\\n",
        "cannot be installed together: a : Conflicts: b",
    ),
}


@pytest.mark.parametrize("case", APT)
def test_apt_is_asked_first(machine: Machine, case: str) -> None:
    output, message = APT[case]
    machine.fake("apt-get", APT_LISTS)
    machine.fake("apt-cache", "#!/bin/sh\nprintf 'jq\\ngit\\n'\n")
    done = run(machine, "build", recipe(machine), FAKE_APT=output)
    assert done.returncode == 1
    assert "template mine cannot be built:" in done.stderr and message in done.stderr
    assert machine.calls("mmdebstrap") == []
    asked = machine.calls("apt-get -q")[0]
    assert "Dir::State::status=/dev/null" in asked and "--assume-no" in asked


def test_what_apt_says_about_sizes(machine: Machine) -> None:
    machine.fake("apt-get", APT_LISTS)
    sizes = (
        "Need to get 1,250 MB/2 GB of archives.\\n"
        "After this operation, 2.5 GB of additional disk space will be used.\\n"
    )
    done = run(machine, "build", recipe(machine), FAKE_APT=sizes)
    assert "2000 MB to download, 2500 MB unpacked" in done.stdout
    machine.fake("df", "#!/bin/sh\necho Avail; echo 6000M\n")
    done = run(machine, "build", "--update", "mine", FAKE_APT=sizes)
    assert done.returncode == 1 and "6000 MiB free, 6250 MiB are needed" in done.stderr


@pytest.mark.parametrize(
    "env", [{"FAKE_LISTS": "none"}, {"FAKE_LISTS": "sid"}, {"PODFLARE_DEBIAN_SOURCES": "deb x y z"}]
)
def test_apt_that_cannot_know_is_not_believed(machine: Machine, env: dict[str, str]) -> None:
    machine.fake("apt-get", APT_LISTS)
    done = run(machine, "build", recipe(machine), FAKE_APT="E: Unable to locate package jq\\n", **env)
    assert done.returncode == 0, done.stderr
    assert machine.calls("apt-get -q") == []
