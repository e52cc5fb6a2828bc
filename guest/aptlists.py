# SPDX-License-Identifier: Apache-2.0
"""What apt of this machine knows about packages before anything is built.

It knows something when it has package lists of the Debian that images are made from. Nothing is
installed, locked or fetched: apt is asked what it would do on an empty system.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from pathlib import Path

SUITE = "bookworm"
QUIET = ["-q", "-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=1"]
UNKNOWN = re.compile(
    r"E: (?:Unable to locate package (?P<missing>\S+)"
    r"|Package '(?P<virtual>\S+)' has no installation candidate"
    r"|Version '(?P<version>\S+)' for '(?P<pinned>\S+)' was not found)"
)
UNITS = {"B": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def _lists_are_there() -> bool:
    """True when there are package lists of the suite, and the builder will use their sources."""
    if os.environ.get("PODFLARE_DEBIAN_SOURCES"):
        return False
    try:
        listed = _run(
            "apt-get", "indextargets", "--format", "$(CODENAME) $(FILENAME)", "Created-By: Packages"
        )
    except OSError:
        return False
    files = [line.partition(" ") for line in listed.stdout.splitlines()]
    return any(name == SUITE and Path(path).exists() for name, _, path in files)


def _unknown(output: str) -> list[str]:
    """A sentence for every package that apt does not know."""
    faults = []
    names: list[str] = []
    for found in UNKNOWN.finditer(output):
        if found["version"]:
            faults.append(f"packages: {found['pinned']} is not there in version {found['version']}")
        elif found["virtual"]:
            faults.append(
                f"packages: {found['virtual']} is not a package but a name for several; choose one"
                " of those that provide it"
            )
        else:
            names = names or _run("apt-cache", "pkgnames").stdout.split()
            near = difflib.get_close_matches(found["missing"], names, n=1, cutoff=0.75)
            hint = f"; did you mean {near[0]}?" if near else ""
            faults.append(f"packages: Debian has no package {found['missing']}{hint}")
    return faults


def _megabytes(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    if not found:
        return 0
    return round(float(found[1].replace(",", "")) * UNITS.get(found[2], 1.0)) or 1


def ask_apt(packages: list[str]) -> tuple[list[str], str]:
    """Faults of a list of packages, and what an image with them needs: "DOWNLOAD DISK", both in
    MB, or "" when apt cannot tell."""
    if not _lists_are_there():
        return [], ""
    done = _run(
        "apt-get", *QUIET, "--no-install-recommends", "--assume-no", "install", "apt", "?essential",
        *packages,
    )  # fmt: skip
    output = done.stdout + done.stderr
    faults = _unknown(output)
    if faults:
        return faults, ""
    if "unmet dependencies" in output:
        reasons = [line.strip() for line in output.splitlines() if " : " in line]
        return [f"packages: cannot be installed together: {'; '.join(reasons):.500}"], ""
    download = _megabytes(r"Need to get (?:[\d.,]+ \w+/)?([\d.,]+) (\w+) of archives", output)
    disk = _megabytes(r"After this operation, ([\d.,]+) (\w+) of additional disk", output)
    return [], f"{download} {disk}" if download and disk else ""
