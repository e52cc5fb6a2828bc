# SPDX-License-Identifier: Apache-2.0
"""Images are made in namespaces of their own, by root and by ordinary users: what packages and recipes run at
a build is nobody's root on the machine that builds. These take real rights, and no network: mmdebstrap is faked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest

from conftest import FAKE_MMDEBSTRAP, ORDINARY_IDS, ROOT, Machine, Who

CONTAINED = ROOT / "guest/contained.py"
FIRST = 0x70000000
POSSIBLE = {kind: Who(kind).possible() for kind in ("root", "user")}


def kinds(*names: str) -> list[object]:
    """Parameters of a test: those that we cannot be are skipped."""
    skip = pytest.mark.skip(reason="takes root, or a user with subordinate ids, who may make namespaces")
    return [pytest.param(name, marks=[] if POSSIBLE[name.split()[0]] else [skip]) for name in names]


class Place:
    """A folder for a command, in one that nobody but who builds may get to."""

    def __init__(self, base: Path, who: Who) -> None:
        self.who = who
        self.base = base
        base.chmod(0o700)
        self.private = base / "private"
        self.private.write_text("private")
        self.private.chmod(0o600)
        self.folder = base / "folder"
        self.folder.mkdir()
        who.owns(base)

    def run(self, script: str, *options: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """A script of bash in the namespaces."""
        return subprocess.run(
            [*self.who.prefix, CONTAINED, *options, self.folder, "bash", "-c", script],
            env={**os.environ, "PODFLARE_API_KEYS": "secret", "PODFLARE_DEBIAN_SOURCES": "deb x", **env},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
        )


@pytest.fixture(params=kinds("root", "user"))
def there(place: Path, request: pytest.FixtureRequest) -> Place:
    """For each of those who build."""
    return Place(place, Who(request.param))


def test_who_it_is(there: Place) -> None:
    done = there.run('pwd; id -u; cat /proc/self/uid_map; touch mine; echo $$ "$(id -G)"')
    assert done.returncode == 0, done.stderr
    pwd, uid, ids, last = done.stdout.splitlines()
    assert (pwd, uid, last) == ("/mnt", "0", "1 0")
    inner, outer, count = map(int, ids.split())
    assert inner == 0 and count == 65536
    if there.who.kind == "root":
        assert FIRST <= outer < 2**31 - 2**17
    elif there.who.prefix:
        assert outer == ORDINARY_IDS
    mine = (there.folder / "mine").stat()
    assert mine.st_uid == outer == there.folder.stat().st_uid
    again = there.run("cat /proc/self/uid_map; rm mine")
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
def test_what_it_cannot(there: Place, what: str) -> None:
    command = REFUSED[what].format(private=there.private, pid=os.getpid())
    done = there.run(f"{command} || exit 9; exit 0")
    assert done.returncode == 9, done.stdout


@pytest.mark.parametrize("how", ["contained", "uncontained"])
def test_what_it_gets(there: Place, how: str) -> None:
    out, log = there.base / "out", there.base / "log"
    log.write_text("before\n")
    there.who.owns(there.base)
    done = there.run(
        "echo image >/proc/self/fd/200; echo more >>/proc/self/fd/201; (<&9) 2>/dev/null && echo 9; exit 3",
        *(["--uncontained"] if how == "uncontained" else []),
        *("--out", out, "--log", log),
    )
    assert done.returncode == 3 and done.stdout == "", done.stderr
    assert out.read_text() == "image\n" and log.read_text() == "before\nmore\n"
    for path in (out, log):
        assert path.stat().st_uid == there.who.uid and path.stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("how", ["contained", "uncontained"])
def test_variables(there: Place, how: str) -> None:
    """What a build needs, and no secret that happens to be in the environment."""
    options = ["--uncontained"] if how == "uncontained" else []
    done = there.run("env", *options, AWS_SECRET_ACCESS_KEY="secret", http_proxy="http://proxy.invalid:3128")
    got = dict(line.split("=", 1) for line in done.stdout.splitlines())
    home = str(there.folder) if how == "uncontained" else "/mnt"
    for name, value in {
        "PODFLARE_DEBIAN_SOURCES": "deb x",
        "http_proxy": "http://proxy.invalid:3128",
        "HOME": home,
        "TMPDIR": home,
        "PATH": os.environ["PATH"],
    }.items():
        assert got.pop(name) == value
    assert set(got) <= {"LANG", "LC_ALL", "TERM", "PWD", "OLDPWD", "SHLVL", "_"}


# Puts a key into the session keyring, runs a command, and looks there for that key in it.
KEYS = """
import ctypes, os, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*words):
    result = libc.syscall(*words)
    return result if result >= 0 else -ctypes.get_errno()
session, text = ctypes.c_long(-3), ctypes.create_string_buffer(64)
if sys.argv[1] == "look":
    key = call(250, 10, session, b"user", b"podflare-test", 0)
    print("reads", call(250, 11, key, text, 64), text.value)
elif call(250, 1, None) < 0 or call(248, b"user", b"podflare-test", b"secret", 6, session) < 0:
    print("no keys here")
else:
    look = [sys.executable, "-c", sys.argv[1], "look"]
    subprocess.run(look)
    subprocess.run([*sys.argv[2:], *look])
"""


@pytest.mark.parametrize("how", ["contained", "uncontained"])
def test_keys(there: Place, how: str) -> None:
    """Who has a session keyring may read its keys, whatever his ids are."""
    options = ["--uncontained"] if how == "uncontained" else []
    done = subprocess.run(
        [*there.who.prefix, "/usr/bin/python3", "-c", KEYS, KEYS, CONTAINED, *options, there.folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    if "no keys here" in done.stdout:
        pytest.skip("this machine has no keyrings for us")
    first, second = sorted(done.stdout.splitlines(), key=lambda line: "secret" not in line)
    assert first == "reads 6 b'secret'", done.stderr
    assert second.startswith("reads -") and "secret" not in second


def test_a_link_in_the_place_of_a_file_is_not_followed(there: Place) -> None:
    (there.base / "out").symlink_to(there.private)
    done = there.run("true", "--out", there.base / "out")
    assert done.returncode == 125
    assert there.private.stat().st_uid == there.who.uid


def test_what_it_prints_is_cleaned(there: Place) -> None:
    done = there.run(r"printf 'a\tä\033]0;x\007\r\n\xff\xc2\x9b\n'; printf b >&2")
    assert done.stdout == "a\tä?]0;x??\n\ufffd?\nb"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_its_processes_end_with_us(there: Place, how: signal.Signals) -> None:
    mark = f"9{os.getpid()}"
    script = f"trap '' TERM INT HUP; (sleep {mark}) & setsid sleep {mark} & echo up; sleep {mark}"
    process = subprocess.Popen(
        [*there.who.prefix, CONTAINED, there.folder, "bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdout and process.stdout.readline() == "up\n"
    process.send_signal(how)
    assert process.wait(30) == (-9 if how == signal.SIGKILL else 128 + how)
    for _ in range(100 if how == signal.SIGKILL else 1):
        if subprocess.run(["pgrep", "-f", f"sleep {mark}"], check=False).returncode == 1:
            return
        time.sleep(0.1)
    raise AssertionError("something of it lives on")


def test_a_signal_to_what_is_not_contained(there: Place) -> None:
    """It goes to all of it, which can end what it has mounted; nobody waits for ever."""
    script = "trap 'echo ended; exit 5' TERM; echo up; sleep 99 & wait"
    process = subprocess.Popen(
        [*there.who.prefix, CONTAINED, "--uncontained", there.folder, "bash", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stdout and process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "ended\n"
    assert process.returncode == 5


# As a recipe's customize.sh would: who am I, and what is process 1?
PROBE = 'cp /proc/self/uid_map "$root/uid_map"; readlink /proc/1/exe >"$root/first"\nfind "$root" -exec touch'


def building(place: Path, kind: str) -> Machine:
    """A machine of fakes on which somebody builds: "root", "root sudo" (who is not root but by sudo), "root
    uncontained" (who can make no namespaces), "root sudo uncontained", "user"."""
    machine = Machine(place)
    who, *how = kind.split()
    machine.fake("mmdebstrap", FAKE_MMDEBSTRAP)
    machine.log.touch()
    machine.log.chmod(0o666)
    machine.tmp.chmod(0o711)
    contained = machine.guest / "contained.py"
    if how != ["uncontained"]:
        shutil.copy(CONTAINED, contained)
    if "sudo" in how:
        machine.fake("id", '#!/bin/sh\n[ "$1" = -u ] && echo 1234 || echo somebody\n')
        machine.fake(
            "sudo",
            '#!/bin/sh\necho "sudo $*" >>"$FAKE_LOG"\n[ "$1" = -n ] && shift\nexport FAKE_SUDO=1\nexec "$@"\n',
        )
        able = "" if "uncontained" in how else '[ -n "$FAKE_SUDO" ] || exit 1'
        if "uncontained" in how:
            able = '[ "$1" = --uncontained ] || exit 1'
        contained.write_text(f'#!/bin/sh\n{able}\nexec {CONTAINED} "$@"\n')
    if who == "user":
        (machine.bin / "id").unlink()
        machine.prefix = Who(who).prefix
        Who(who).owns(place)
    return machine


def build(machine: Machine, **env: str) -> subprocess.CompletedProcess[str]:
    template = machine.guest / "template.py"
    return machine.run(template, "--build", machine.out, "build", "default", **env)


def unpacked(machine: Machine) -> Path:
    """What is in the image."""
    image, inside = machine.out / "guest/templates/default/rootfs.erofs", machine.base / "unpacked"
    subprocess.run(["fsck.erofs", f"--extract={inside}", image], check=True, capture_output=True)
    return inside


WAYS = ("root", "root sudo", "root uncontained", "root sudo uncontained", "user")


@pytest.mark.parametrize("way", kinds("root", "root sudo", "user"))
def test_an_image(place: Path, way: str) -> None:
    """By template.py; what is in there is root's, as always."""
    machine = building(place, way)
    machine.fake("mmdebstrap", FAKE_MMDEBSTRAP.replace('find "$root" -exec touch', PROBE))
    done = build(machine)
    assert done.returncode == 0, done.stderr
    assert (machine.calls("sudo") != []) == (way == "root sudo")
    made = machine.out / "guest/templates/default"
    inside = unpacked(machine)
    base = int((inside / "uid_map").read_text().split()[1])
    assert FIRST <= base < 2**31 or way == "user"
    assert (inside / "first").read_text() == "/usr/bin/bash\n"
    if os.geteuid() == 0:
        assert (inside / "etc/pip.conf").stat().st_uid == 0
    assert "package tiny 1.2 all" in (made / "manifest").read_text()
    for path in (made / "rootfs.erofs").resolve().parent.iterdir():
        assert path.stat().st_uid == Who(way.split()[0]).uid, path
    assert machine.leftovers() == []
    assert not (machine.cache / "image.work").exists()


@pytest.mark.parametrize("way", kinds("root uncontained", "root sudo uncontained"))
def test_where_it_is_not_possible(place: Path, way: str) -> None:
    """As in a container without rights: that is said, and the image made as before."""
    machine = building(place, way)
    machine.fake("mmdebstrap", FAKE_MMDEBSTRAP.replace('find "$root" -exec touch', PROBE))
    done = build(machine)
    assert done.returncode == 0, done.stderr
    assert "root cannot make a user namespace here" in done.stdout
    assert (unpacked(machine) / "uid_map").read_text().split() == ["0", "0", "4294967295"]
    assert machine.leftovers() == []


@pytest.mark.skipif(not POSSIBLE["root"], reason="takes root, who may make namespaces")
def test_where_proc_is_hidden_in_part(place: Path) -> None:
    """As in most containers: the kernel refuses a new /proc then, which would show what the old one hides. That is
    said, and nothing else is different."""
    machine = building(place, "root")
    hiding = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc/tty && exec "$@"', "sh"]
    check = subprocess.run([*hiding, CONTAINED, "--check"], capture_output=True, text=True, check=False)
    assert check.returncode == 3, check.stderr
    done = machine.run(*hiding, machine.guest / "template.py", "--build", machine.out, "build", "default")
    assert done.returncode == 0, done.stderr
    assert "sees this machine's processes" in done.stdout
    assert "root cannot make a user namespace" not in done.stdout
    plain = subprocess.run([CONTAINED, "--check"], capture_output=True, text=True, check=False)
    assert plain.returncode == 0, plain.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, who can look into what is closed")
@pytest.mark.parametrize("way", kinds("root", "user"))
def test_a_build_in_namespaces_that_was_killed(place: Path, way: str) -> None:
    """What it has left belongs to others, and goes with the next build."""
    machine = building(place, way)
    template = machine.guest / "template.py"
    process = machine.start(
        template, "--build", machine.out, "build", "default", FAKE_MMDEBSTRAP="hang"
    )
    left = "podflare-image.*/inside/root/mmdebstrap.x"
    wait_for(lambda: list(machine.tmp.glob(left)))
    os.killpg(process.pid, signal.SIGKILL)  # but not the step, which has a group of its own
    process.wait(timeout=10)
    work = next(machine.tmp.glob("podflare-image.*"))
    for number in machine_processes(str(work)):
        os.kill(number, signal.SIGKILL)
    wait_for(lambda: not machine_processes(str(work)))
    assert next(machine.tmp.glob(left)).stat().st_uid != Who(way).uid
    done = build(machine)
    assert done.returncode == 0, done.stderr
    assert machine.leftovers() == []


def machine_processes(text: str) -> list[int]:
    """Those that are called with a text."""
    found = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen within 30 s")


# Between two steps of a build, until we have looked around.
PAUSE = """
touch "$here/paused"
for _ in $(seq 600); do [ -e "$here/goes on" ] && break; sleep 0.1; done
rm -f "$here/paused"
rm -f "$here/goes on"
"""

# As somebody else: which of these can he get to, and with what error does the last one not run?
STRANGER = r"""
import os, subprocess, sys
paths = sys.stdin.read().split("\0")
print(*(p for p in paths if os.access(p, os.R_OK) or os.access(p, os.X_OK)), sep="\0")
try:
    subprocess.run([paths[-1], "-p", "-c", "id -u"])
except OSError as e:
    print(e.errno)
"""


def look_around(machine: Machine, program: str) -> tuple[list[str], str]:
    """What a stranger can get to in a build's folder, and what becomes of him who starts a setuid program there."""
    work = next(machine.tmp.glob("podflare-image.*"))
    paths = [p for p in (work, *work.rglob("*")) if not p.is_symlink() and p.name != "paused"]
    target = next(path for path in paths if path.name == program)
    assert target.stat().st_mode & 0o7777 == 0o4755
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", STRANGER],
        input="\0".join(map(str, [*paths, target])),
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    reached, error = done.stdout.split("\n")[:2]
    return [str(Path(p).relative_to(work)) for p in reached.split("\0") if p], error


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, who can be somebody else")
@pytest.mark.parametrize("way", kinds(*WAYS))
def test_nobody_else_gets_to_what_is_built(place: Path, way: str) -> None:
    """Programs of the root that are setuid, and files of a recipe, while it is made and while it is packed."""
    machine = building(place, way)
    shell = "install -m 4755 /bin/bash"
    making = f'{shell} "$root/setuid"\nhere=$TMPDIR/..{PAUSE}find "$root"'
    machine.fake("mmdebstrap", FAKE_MMDEBSTRAP.replace('find "$root"', making))
    packing = 'here=${@: -1}; here=${here%/*}/..' + PAUSE
    machine.fake("mkfs.erofs", f'#!/bin/bash\n{packing}exec /usr/bin/mkfs.erofs "$@"\n')
    Who(way.split()[0]).owns(machine.bin)
    open_folders = [".", "inside"] if "uncontained" in way else []
    process = machine.start(machine.guest / "template.py", "--build", machine.out, "build", "default")
    try:
        for step in ("making", "packing"):
            wait_for(lambda: list(machine.tmp.glob("*/inside/paused")) or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            if step == "packing":  # mmdebstrap tidies up meanwhile
                wait_for(lambda: not list(machine.tmp.glob("*/inside/root/*")))
            reached, error = look_around(machine, "setuid")
            assert (reached, error) == (open_folders, "13")
            on = next(machine.tmp.glob("*/inside/paused")).with_name("goes on")
            on.touch()
            wait_for(lambda: not on.exists())
        output = process.communicate(timeout=60)
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert process.returncode == 0, output


# As mmdebstrap: its own environment, and the hook that runs a recipe's scripts, in the place of chroot. Never
# the last one: that tidies up, and here it is not in a root.
SHOW = r"""env >"$root/env of mmdebstrap"
mkdir -p "$root/root/.podflare" && tar -C "$root/root/.podflare" -xf "$TMPDIR/../scripts.tar"
for hook; do
	case $hook in
	--customize-hook=*chroot*) env --unset=TMPDIR sh -c "${hook#*=}" exec "$root" ;;
	esac
done
find "$root" -exec touch"""
FAKE_CHROOT = r"""#!/bin/bash
case ${@: -1} in
*/finish) exit 0 ;;
*/[0-9][0-9]-*) cd "$1" && exec "${@:2:$# - 2}" "$1${@: -1}" ;;
esac
exit 1
"""


@pytest.mark.parametrize("way", kinds(*WAYS))
def test_variables_of_an_image(place: Path, way: str) -> None:
    """Packages get those that apt needs, a recipe none of ours."""
    machine = building(place, way)
    machine.fake("mmdebstrap", FAKE_MMDEBSTRAP.replace('find "$root" -exec touch', SHOW))
    machine.fake("chroot", FAKE_CHROOT)
    (machine.guest / "images/default/customize.sh").write_text('env >"env of customize.sh"\n')
    Who(way.split()[0]).owns(place)
    done = build(
        machine,
        PODFLARE_API_KEYS="secret",
        AWS_SECRET_ACCESS_KEY="secret",
        http_proxy="http://me:secret@proxy.invalid:3128",
    )
    assert done.returncode == 0, done.stderr
    inside = unpacked(machine)
    packages = (inside / "env of mmdebstrap").read_text()
    assert packages.count("secret") == packages.count("http_proxy=http://me:secret@") == 1
    recipe = dict(line.split("=", 1) for line in (inside / "env of customize.sh").read_text().splitlines())
    assert recipe.pop("PATH") == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert recipe.pop("HOME") == "/root" and recipe.pop("SOURCE_DATE_EPOCH") == "1795000000"
    assert recipe.pop("LC_ALL") == "C.UTF-8" and recipe.pop("DEBIAN_FRONTEND") == "noninteractive"
    assert set(recipe) <= {"DEBCONF_NONINTERACTIVE_SEEN", "PWD", "OLDPWD", "SHLVL", "_"}
