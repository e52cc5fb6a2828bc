# SPDX-License-Identifier: Apache-2.0
"""Who is root already makes images in namespaces of their own: what packages and recipes run at a build is
nobody's root on the machine that builds. These take real rights, and no network: mmdebstrap is faked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Iterator

import pytest

from conftest import FAKE_MMDEBSTRAP, ROOT, Machine

CONTAINED = ROOT / "guest/contained.py"
FIRST = 0x70000000


def possible() -> bool:
    """Whether we are root, and may make namespaces."""
    return os.geteuid() == 0 and subprocess.run([CONTAINED, "--check"], check=False).returncode == 0


pytestmark = pytest.mark.skipif(not possible(), reason="takes root who may make user namespaces")


def run(folder: Path, script: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """A script of bash in the namespaces."""
    return subprocess.run(
        [CONTAINED, *options, folder, "bash", "-c", script],
        env={**os.environ, "PODFLARE_API_KEYS": "secret", "PODFLARE_DEBIAN_SOURCES": "deb x"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that nobody but root may get to."""
    tmp_path.chmod(0o700)
    (tmp_path / "private").write_text("private")
    (tmp_path / "private").chmod(0o600)
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def test_who_it_is(folder: Path) -> None:
    done = run(folder, 'pwd; id -u; cat /proc/self/uid_map; touch mine; echo $$ "$(id -G)"')
    assert done.returncode == 0, done.stderr
    pwd, uid, ids, last = done.stdout.splitlines()
    assert (pwd, uid, last) == ("/mnt", "0", "1 0")
    inner, outer, count = map(int, ids.split())
    assert inner == 0 and count == 65536 and FIRST <= outer < 2**31 - 2**17
    assert (folder / "mine").stat().st_uid == outer == folder.stat().st_uid
    again = run(folder, "cat /proc/self/uid_map")
    assert again.stdout.split()[1] == str(outer), "a later command does not own the folder"


# Each harmless where it is not refused.
REFUSED = {
    "a private file": "cat {private}",
    "root's files": "cat /etc/shadow",
    "writing": "echo x >/etc/podflare-was-here",
    "a setting of the kernel": "cat /proc/sys/kernel/printk >/proc/sys/kernel/printk",
    "our processes": "kill -0 {pid}",
    "a device": "mknod x c 1 3",
    "a terminal": "true </dev/tty",
    "a descriptor of ours": "true <&8",
    "the clock": 'date -s "$(date)"',
    "mounts of the machine": "mount -o remount,relatime /",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot(folder: Path, what: str) -> None:
    command = REFUSED[what].format(private=folder.parent / "private", pid=os.getpid())
    done = run(folder, f"{command} || exit 9; exit 0")
    assert done.returncode == 9, done.stdout


def test_what_it_gets(folder: Path) -> None:
    out, log = folder.parent / "out", folder.parent / "log"
    log.write_text("before\n")
    done = run(
        folder,
        "echo image >/proc/self/fd/200; echo more >>/proc/self/fd/201; env | grep PODFLARE_; exit 3",
        *("--out", out, "--log", log),
    )
    assert done.returncode == 3 and done.stdout == "PODFLARE_DEBIAN_SOURCES=deb x\n"
    assert out.read_text() == "image\n" and log.read_text() == "before\nmore\n"
    for path in (out, log):
        assert path.stat().st_uid == 0 and path.stat().st_mode & 0o7777 == 0o644


def test_a_link_in_the_place_of_a_file_is_not_followed(folder: Path) -> None:
    (folder.parent / "out").symlink_to(folder.parent / "private")
    done = run(folder, "true", "--out", folder.parent / "out")
    assert done.returncode == 125
    assert (folder.parent / "private").stat().st_uid == 0


def test_what_it_prints_is_cleaned(folder: Path) -> None:
    done = run(folder, r"printf 'a\tä\033]0;x\007\r\n\xff\xc2\x9b\n'; printf b >&2")
    assert done.stdout == "a\tä?]0;x??\n\ufffd?\nb"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_its_processes_end_with_us(folder: Path, how: signal.Signals) -> None:
    mark = f"9{os.getpid()}"
    script = f"trap '' TERM INT HUP; (sleep {mark}) & setsid sleep {mark} & echo up; sleep {mark}"
    process = subprocess.Popen(
        [CONTAINED, folder, "bash", "-c", script], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "up\n"
    process.send_signal(how)
    assert process.wait(30) == (-9 if how == signal.SIGKILL else 128 + how)
    for _ in range(100 if how == signal.SIGKILL else 1):
        if subprocess.run(["pgrep", "-f", f"sleep {mark}"], check=False).returncode == 1:
            return
        time.sleep(0.1)
    raise AssertionError("something of it lives on")


# As a recipe's customize.sh would: who am I, and what is process 1?
PROBE = 'cp /proc/self/uid_map "$root/uid_map"; readlink /proc/1/exe >"$root/first"\nfind "$root" -exec touch'


@pytest.fixture
def place() -> Iterator[Path]:
    """As a temporary folder that everybody may enter, for fakes that somebody else runs."""
    path = Path(tempfile.mkdtemp(prefix="podflare-test."))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("who", ["root", "sudo"])
def test_an_image(place: Path, who: str) -> None:
    """By template.py, as root and as one who has only sudo; what is in there is root's, as always."""
    machine = Machine(place)
    shutil.copy(CONTAINED, machine.guest / "contained.py")
    machine.fake("mmdebstrap", FAKE_MMDEBSTRAP.replace('find "$root" -exec touch', PROBE))
    machine.log.touch()
    machine.log.chmod(0o666)
    machine.tmp.chmod(0o700)
    if who == "sudo":
        machine.fake("id", '#!/bin/sh\n[ "$1" = -u ] && echo 1234 || echo somebody\n')
        machine.fake("sudo", '#!/bin/sh\necho "sudo $*" >>"$FAKE_LOG"\n[ "$1" = -n ] && shift\nexec "$@"\n')
    done = machine.run(machine.guest / "template.py", "--build", machine.out, "build", "default")
    assert done.returncode == 0, done.stderr
    assert (machine.calls("sudo") != []) == (who == "sudo")
    made = machine.out / "guest/templates/default"
    inside = place / "inside"
    subprocess.run(
        ["fsck.erofs", f"--extract={inside}", made / "rootfs.erofs"], check=True, capture_output=True
    )
    base = int((inside / "uid_map").read_text().split()[1])
    assert FIRST <= base < 2**31
    assert (inside / "first").read_text() == "/usr/bin/bash\n"
    assert (inside / "etc/pip.conf").stat().st_uid == 0
    assert "package tiny 1.2 all" in (made / "manifest").read_text()
    for path in (made / "rootfs.erofs").resolve().parent.iterdir():
        assert path.stat().st_uid == 0, path
    assert machine.leftovers() == []


def test_where_it_is_not_possible(place: Path) -> None:
    """As in a container without rights: that is said, and the image made as before."""
    machine = Machine(place)
    machine.fake("mmdebstrap", FAKE_MMDEBSTRAP.replace('find "$root" -exec touch', PROBE))
    done = machine.run(machine.guest / "template.py", "--build", machine.out, "build", "default")
    assert done.returncode == 0, done.stderr
    assert "root cannot make a user namespace here" in done.stdout
