# SPDX-License-Identifier: Apache-2.0
"""A machine made of fakes for the scripts of guest/ and tools/: small scripts in the place of what
would need the network, rights or minutes, and a cache and temporary folder of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Iterator

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
tar -C "$root" -xf "$TMPDIR/../files.tar"
mkdir "$root/scripts" && tar -C "$root/scripts" -xf "$TMPDIR/../scripts.tar"
find "$root" -exec touch -h -d @1000000000 {} +
tar -C "$root" --sort=name -c .
rm -rf "$root"
[ "${FAKE_MMDEBSTRAP:-}" != late ] || exit 1
"""


# For root: an account with subordinate ids, of which only what is run here knows.
ORDINARY_UID, ORDINARY_IDS = 0x6FFF0000, 0x6F000000
ORDINARY = f"""set -e
mount -t tmpfs none /mnt
sed '$a podflare-test:x:{ORDINARY_UID}:{ORDINARY_UID}::/nonexistent:/bin/sh' /etc/passwd >/mnt/passwd
echo podflare-test:{ORDINARY_IDS}:65536 >/mnt/subid
mount --bind /mnt/passwd /etc/passwd
mount --bind /mnt/subid /etc/subuid
mount --bind /mnt/subid /etc/subgid
umount -l /mnt
exec setpriv --reuid {ORDINARY_UID} --regid {ORDINARY_UID} --clear-groups "$@"
"""


class Who:
    """Somebody who builds: we, or for root an ordinary user who has been given ids."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.uid, self.prefix = os.geteuid(), list[str]()
        if kind == "user" and self.uid == 0:
            self.uid = ORDINARY_UID
            self.prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ORDINARY, "-"]

    def possible(self) -> bool:
        """Whether that is who we can be, and may make namespaces."""
        if (self.uid == 0) != (self.kind == "root"):
            return False
        command = [*self.prefix, ROOT / "guest/contained.py", "--check"]
        return subprocess.run(command, check=False, capture_output=True, cwd="/").returncode == 0

    def owns(self, *paths: Path) -> None:
        """Gives folders with all that is in them to him."""
        if self.prefix:
            for path in paths:
                for item in (path, *path.rglob("*")):
                    os.chown(item, self.uid, self.uid, follow_symlinks=False)


class Machine:
    """A PATH with fakes in front, a cache, and a way to run scripts there."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.prefix: list[str] = []  # of each command
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
        # Root in name only, who can make no namespaces: nothing below asks for real rights.
        (self.guest / "contained.py").write_text(
            f'#!/bin/sh\n[ "$1" = --uncontained ] && exec {ROOT}/guest/contained.py "$@"\nexit 1\n'
        )
        self.fake("id", '#!/bin/sh\n[ "$1" = -u ] && echo 0 || echo root\n')

    def fake(self, name: str, text: str) -> None:
        """Put a script in the place of a tool. It knows our FAKE_ variables also where a build hides them."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text.replace("\n", f"\n. '{self.base}/fakes'\n", 1))
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
        fakes = {k: v for k, v in {**self.env, **env}.items() if k.startswith("FAKE_")}
        (self.base / "fakes").write_text("".join(f"{k}={shlex.quote(v)}\n" for k, v in fakes.items()))
        return subprocess.Popen(
            [*self.prefix, *map(str, command)],
            cwd="/",
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
def place() -> Iterator[Path]:
    """As a temporary folder that everybody may enter, for fakes that somebody else runs."""
    path = Path(tempfile.mkdtemp(prefix="podflare-test."))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A fresh machine with a fake mmdebstrap."""
    made = Machine(tmp_path)
    made.fake("mmdebstrap", FAKE_MMDEBSTRAP)
    return made
