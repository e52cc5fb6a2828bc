# SPDX-License-Identifier: Apache-2.0
"""A machine made of fakes for the scripts of guest/ and tools/: small scripts in the place of what
would need the network, rights or minutes, and a cache and temporary folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Writes a small root as tar, or fails as FAKE_MMDEBSTRAP says. Counts its runs in $FAKE_LOG.
FAKE_MMDEBSTRAP = r"""#!/bin/bash
echo "mmdebstrap $*" >>"$FAKE_LOG"
echo "I: running apt-get update..." >&2
case ${FAKE_MMDEBSTRAP:-} in
registry)
	echo "Err:1 http://mirror.invalid Could not resolve 'mirror.invalid'" >&2
	exit 1
	;;
disk)
	echo "tar: ./usr/lib/x: Cannot write: No space left on device" >&2
	exit 1
	;;
hang)
	mkdir -p "$TMPDIR/mmdebstrap.x/root"
	sleep 60
	;;
slow) sleep 1 ;;
esac
root=$TMPDIR/mmdebstrap.fake
mkdir -p "$root/etc/apt" "$root/var/lib/dpkg/info" "$root/dev"
echo "deb http://mirror.invalid/debian bookworm main" >"$root/etc/apt/sources.list"
printf 'Package: tiny\nStatus: install ok installed\nVersion: 1.2\nArchitecture: all\n\n' \
	>"$root/var/lib/dpkg/status"
tar -C "$root" -xf "$TMPDIR/files.tar"
mkdir "$root/scripts" && tar -C "$root/scripts" -xf "$TMPDIR/scripts.tar"
find "$root" -exec touch -h -d @1000000000 {} +
tar -C "$root" --sort=name -c .
rm -rf "$root"
[ "${FAKE_MMDEBSTRAP:-}" != late ] || exit 1
"""


class Machine:
    """A PATH with fakes in front, a cache, and a way to run scripts there."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.bin = base / "bin"
        self.cache = base / "cache"
        self.tmp = base / "tmp"
        self.log = base / "log"
        self.guest = base / "guest"
        self.out = base / "out"
        for folder in (self.bin, self.tmp):
            folder.mkdir()
        shutil.copytree(
            ROOT / "guest", self.guest, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True
        )
        self.env = {
            "PATH": f"{self.bin}:/usr/sbin:/usr/bin",
            "HOME": str(base),
            "PODFLARE_CACHE": str(self.cache),
            "TMPDIR": str(self.tmp),
            "FAKE_LOG": str(self.log),
        }
        self.fake("apt-get", "#!/bin/sh\nexit 100\n")
        self.fake("sync", "#!/bin/sh\n")  # the disk of the real machine may be slow
        # Root in name only: nothing below asks for real rights, or has the fakes run as somebody else.
        (self.guest / "contained.py").write_text("#!/bin/sh\nexit 1\n")
        self.fake("id", '#!/bin/sh\n[ "$1" = -u ] && echo 0 || echo root\n')

    def fake(self, name: str, text: str) -> None:
        """Put a script in the place of a tool."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def remove(self, name: str) -> None:
        """Make a tool missing: the PATH becomes links to all others."""
        for folder in ("/usr/sbin", "/usr/bin"):
            for tool in os.scandir(folder):
                if not os.path.lexists(self.bin / tool.name):
                    (self.bin / tool.name).symlink_to(tool.path)
        (self.bin / name).unlink(missing_ok=True)
        self.env["PATH"] = str(self.bin)

    def start(self, *command: str | Path, **env: str) -> subprocess.Popen[str]:
        """Start a script in a process group of its own."""
        return subprocess.Popen(
            [str(word) for word in command],
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        process = self.start(*command, **env)
        try:
            out, err = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def calls(self, name: str = "") -> list[str]:
        """What the fakes were called with."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(name)]

    def leftovers(self) -> list[str]:
        """Files of unfinished work in the cache and in TMPDIR."""
        return [
            str(path)
            for folder in (self.cache / "tmp", self.tmp)
            if folder.exists()
            for path in folder.iterdir()
        ]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A fresh machine with a fake mmdebstrap."""
    made = Machine(tmp_path)
    made.fake("mmdebstrap", FAKE_MMDEBSTRAP)
    return made
