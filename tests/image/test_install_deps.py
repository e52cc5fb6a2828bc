# SPDX-License-Identifier: Apache-2.0
"""tools/install-deps.sh: what it asks apt for, and what it says when that cannot work. dpkg-query,
apt-get, sudo and id are faked; nothing is installed."""

from __future__ import annotations

import platform
import subprocess

import pytest

from conftest import ROOT, Machine

pytestmark = pytest.mark.skipif(
    platform.freedesktop_os_release().get("ID") != "debian"
    or platform.freedesktop_os_release().get("VERSION_ID") != "12",
    reason="this is not Debian 12",
)

# Packages not installed are those in $TMPDIR/missing; apt-get installs by emptying it.
FAKE_DPKG_QUERY = r"""#!/bin/bash
shift 2
for package; do
	grep -qxF "$package" "$TMPDIR/missing" || echo "installed $package"
done
"""
FAKE_APT_GET = r"""#!/bin/bash
echo "apt-get $*" >>"$FAKE_LOG"
case "${FAKE_APT:-} $*" in
"registry "*)
	echo "E: Failed to fetch x  Temporary failure resolving 'mirror.invalid'"
	exit 100
	;;
"old "*install*)
	[ -e "$TMPDIR/updated" ] || { echo "E: Failed to fetch x  404  Not Found"; exit 100; }
	;;
"old "*update*) touch "$TMPDIR/updated"; exit 0 ;;
"full "*) echo "E: You don't have enough free space in /var/cache/apt/archives/."; exit 100 ;;
"useless "*) exit 0 ;;
esac
: >"$TMPDIR/missing"
"""


def install(
    machine: Machine, *args: str, missing: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    (machine.tmp / "missing").write_text("".join(f"{name}\n" for name in missing.split()))
    machine.fake("dpkg-query", FAKE_DPKG_QUERY)
    machine.fake("apt-get", FAKE_APT_GET)
    return machine.run(ROOT / "tools/install-deps.sh", *args, **env)


@pytest.mark.parametrize("group", ["build", "demo", "test"])
def test_nothing_missing_nothing_said(machine: Machine, group: str) -> None:
    result = install(machine, group)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert machine.calls() == []


def test_only_what_is_missing(machine: Machine) -> None:
    result = install(machine, "test", missing="meson qemu-system-x86")
    assert result.returncode == 0, result.stderr
    asked = machine.calls("apt-get")[-1].split()
    assert "--no-install-recommends" in asked
    assert asked[-2:] == ["meson", "qemu-system-x86"]
    assert "compiling the programs: meson" in result.stdout
    assert "emulated host, for machines whose KVM cannot run guests: qemu-system" in result.stdout


def test_groups(machine: Machine) -> None:
    lists = {
        group: set(install(machine, "--list", group).stdout.split())
        for group in ("build", "demo", "test")
    }
    assert {"gcc", "mmdebstrap"} < lists["build"] and "qemu-system-x86" not in lists["build"]
    assert lists["build"] < lists["demo"] < lists["test"]
    assert install(machine, "demo", missing="python3-pytest").stdout == ""
    assert install(machine, "everything").returncode == 2


def test_old_package_lists_are_refreshed(machine: Machine) -> None:
    result = install(machine, "build", missing="meson", FAKE_APT="old")
    assert result.returncode == 0, result.stderr
    assert "update" in " ".join(machine.calls())


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("registry", "registry cannot be reached"),
        ("full", "the disk is full"),
        ("useless", "still missing after apt-get: meson"),
    ],
)
def test_failures_are_explained(machine: Machine, failure: str, message: str) -> None:
    result = install(machine, "build", missing="meson", FAKE_APT=failure)
    assert result.returncode == 1
    assert message in result.stderr and "still missing" in result.stderr


def test_without_root(machine: Machine) -> None:
    machine.fake("id", '#!/bin/sh\n[ "$1" = -u ] && echo 1000 || echo someone\n')
    machine.fake("sudo", "#!/bin/sh\nexit 1\n")
    result = install(machine, "build", missing="meson")
    assert result.returncode == 1
    assert "someone may not use sudo" in result.stderr
    assert "apt-get install --no-install-recommends meson" in result.stderr
    assert machine.calls() == []

    machine.fake("sudo", '#!/bin/sh\necho "sudo $*" >>"$FAKE_LOG"\n[ "$1" = -n ] || exec "$@"\n')
    result = install(machine, "build", missing="meson")
    assert result.returncode == 0, result.stderr
    assert any("apt-get" in call for call in machine.calls("sudo"))

    machine.remove("sudo")
    result = install(machine, "build", missing="meson")
    assert result.returncode == 1 and "sudo is not there" in result.stderr
