# SPDX-License-Identifier: Apache-2.0
"""What the image has for sandboxes with egress: variables that sudo keeps, login shells, and the
sentences about the missing network, which are for sandboxes without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2]
FILES = SOURCE / "guest" / "images" / "default" / "files"
MARK = "/run/podflare/egress-env.sh"


def names() -> set[str]:
    """All variables that the agent gives."""
    text = (SOURCE / "src" / "agent" / "egress_files.c").read_text()
    found = set(re.findall(r'\{"(\w+)", EGRESS_', text))
    lists = re.findall(r"\*const (?:proxies|none)\[\] = \{(.*?)\};", text, re.S)
    for part in lists:
        found |= set(re.findall(r'"(\w+)"', part))
    found |= set(re.findall(r'egress_env_add\(e, "(\w+)"', text))
    assert len(lists) == 2 and len(found) > 15
    return found


def test_sudo_keeps_them() -> None:
    text = (FILES / "etc/sudoers.d/user").read_text()
    kept = re.findall(r'^Defaults:user env_keep \+= "([^"]*)"$', text, re.M)
    assert set(" ".join(kept).split()) == names()


def moved(path: str, tmp_path: Path) -> Path:
    """A copy of a file that looks at another place for the agent's."""
    text = (FILES / path).read_text()
    assert MARK in text
    copy = tmp_path / Path(path).name
    copy.write_text(text.replace(MARK, str(tmp_path / "egress-env.sh")))
    return copy


@pytest.mark.parametrize("on", [False, True])
def test_login_shell(tmp_path: Path, on: bool) -> None:
    script = moved("etc/profile.d/podflare-egress.sh", tmp_path)
    if on:
        (tmp_path / "egress-env.sh").write_text("export X=on\n")
    r = subprocess.run(
        ["sh", "-eu", "-c", f". {script}; echo ${{X-off}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (r.stdout, r.stderr) == ("on\n" if on else "off\n", "")


@pytest.mark.parametrize("on", [False, True])
def test_sentence_of_apt(tmp_path: Path, on: bool) -> None:
    script = moved("usr/lib/podflare/network-notice", tmp_path)
    script.write_text(script.read_text().replace("/sys/class/net/", f"{tmp_path}/net/"))
    (tmp_path / "net" / "lo").mkdir(parents=True)
    if on:
        (tmp_path / "egress-env.sh").touch()
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    r = subprocess.run(["sh", script, "apt"], capture_output=True, text=True, env=env, check=True)
    assert ("this sandbox has no network" in r.stderr) is not on


@pytest.mark.parametrize("on", [False, True])
def test_sentence_of_pip(tmp_path: Path, on: bool) -> None:
    module = moved("etc/python3.11/sitecustomize.py", tmp_path)
    module.write_text(module.read_text().replace("/sys/class/net", f"{tmp_path}/net"))
    (tmp_path / "net" / "lo").mkdir(parents=True)
    if on:
        (tmp_path / "egress-env.sh").touch()
    pip = tmp_path / "pip.py"
    pip.write_text("import sys\nsys.exit(1)\n")
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    r = subprocess.run(
        [sys.executable, pip, "install", "x"],
        capture_output=True,
        text=True,
        env={**env, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert r.returncode == 1
    assert ("this sandbox has no network" in r.stderr) is not on
