# SPDX-License-Identifier: Apache-2.0
"""`podflare box run`: output, exit status, files, and that nothing stays behind."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess

import pytest
from conftest import ROOT
from processes import wait_until
from stand_in import put_in_place

MEMORY = ("--box-memory", "1536")


@pytest.fixture
def script(tmp_path):
    """Writes a script and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "script.sh"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_output_status_and_arguments(call, script):
    done = call(
        "box",
        "run",
        *MEMORY,
        script('for a in "$@"; do echo "[$a]"; done; echo problem >&2; cat; exit 42\n'),
        "two words",
        "it's",
        '"quoted" $HOME `id` \\n',
        "",
        "line\nbreak",
        "--help",
    )
    assert done.returncode == 42, done.stderr
    expected = ["two words", "it's", '"quoted" $HOME `id` \\n', "", "line\nbreak", "--help"]
    assert done.stdout == "".join(f"[{a}]\n" for a in expected)
    assert done.stderr == "problem\n"


def test_the_inside(call, script, build):
    """The kernel that was built in, with KVM for the daemon's user, its programs, and no network but lo."""
    done = call(
        "box",
        "run",
        *MEMORY,
        script(
            "uname -r; ls /sys/class/net\n"
            "ip route\n"
            "cat /sys/kernel/mm/transparent_hugepage/shmem_enabled\n"
            "cat /sys/module/kvm/parameters/halt_poll_ns\n"
            "su -s /bin/sh -c 'id -un; test -r /dev/kvm && test -w /dev/kvm && echo kvm;"
            " head -c 1028 /dev/podflare/root | tail -c 4 | od -An -tx1;"
            " touch /state/file && echo state; ( : >/dev/podflare/root ) 2>/dev/null || echo ro'"
            " -- podflare\n"
            "ls /usr/bin /guest | tr '\\n' ' '; echo\n"
            "grep -c ^processor /proc/cpuinfo; grep -cw svm /proc/cpuinfo\n"
            "grep -cw cx16 /proc/cpuinfo; exit 0\n"  # what QEMU does badly is not used
        ),
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    manifest = (build / "box/kernel.manifest").read_text("utf-8").splitlines()
    assert "cloud-amd64" in lines[0] and f"release {lines[0]}" in manifest
    assert lines[1:8] == [
        "lo",
        "always within_size [advise] never deny force",
        "0",
        "podflare",
        "kvm",
        " e2 e1 f5 e0",
        "state",
    ]
    assert lines[8] == "ro"
    assert {"podflared", "podflare-vmm", "box-podflared", "vmlinux", "initramfs.cpio"} <= set(
        lines[9].split()
    ) | {"vmlinux", "initramfs.cpio"} & set(" ".join(lines[9:]).split())
    assert lines[-3:] == ["1", "1", "0"]


def test_output_comes_as_it_is_made(spawn, script):
    run = spawn("box", "run", *MEMORY, script("echo first\nsleep 2\necho second\n"))
    assert run.wait() == 0, run.stderr
    assert run.stdout == "first\nsecond\n"
    assert run.lines[1][0] - run.lines[0][0] > 1.5


def test_files_go_in_and_a_disk_comes_back(call, script, tmp_path):
    """Every byte of a file arrives, and of a long output; a disk is written to."""
    data = os.urandom(5_000_003)
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "tool").write_text("#!/bin/sh\necho tool ran\n", encoding="utf-8")
    (tmp_path / "tool").chmod(0o755)
    disk, fixed = tmp_path / "a,b.img", tmp_path / "fixed.img"
    disk.write_bytes(b"\0" * 1_048_576)
    fixed.write_bytes(b"read me".ljust(4096, b"\0"))
    done = call(
        "box",
        "run",
        *MEMORY,
        *("--add", str(tmp_path / "data"), "--add", str(tmp_path / "tool")),
        *("--disk", str(disk), "--disk", str(fixed)),
        script(
            "set -e\nsha256sum <data\n./tool\n"
            "head -c 7 /dev/podflare/disk1; echo\n"
            "dd if=data of=/dev/podflare/disk0 bs=4096 count=1 conv=fsync 2>/dev/null\n"
            "od -v -An -tx1 -N 1000000 data | sha256sum; od -v -An -tx1 -N 1000000 data\n"
        ),
    )
    assert done.returncode == 0, done.stderr
    first, tool, disk1, dump_sum, dump = done.stdout.split("\n", 4)
    assert first.split()[0] == hashlib.sha256(data).hexdigest()
    assert tool == "tool ran"
    assert disk1 == "read me"
    assert dump_sum.split()[0] == hashlib.sha256(dump.encode()).hexdigest()
    assert len(dump) > 3_000_000
    assert disk.read_bytes()[:4096] == data[:4096]


def templates_of(build) -> list[str]:
    """Names of the built templates as podflare orders them."""
    names = [p.parent.name for p in (build / "guest/templates").glob("*/template.json")]
    return sorted(names, key=lambda name: (name != "default", name))


def test_templates_are_inside(call, script, build):
    """A disk and a file each, which the daemon's user can read and not write; and the options."""
    as_user = "su -s /bin/sh -c '{}' -- podflare"
    look = (
        'while read -r name disk; do echo "[$name $disk]"; cat /run/box/$disk.json;'
        " dd if=/dev/podflare/$disk bs=4 skip=256 count=1 2>/dev/null | od -An -tx1;"
        " ( : >/dev/podflare/$disk ) 2>/dev/null || echo ro; done </run/box/templates"
    )
    done = call(
        "box",
        "run",
        *MEMORY,
        script(
            f"{as_user.format(look)}\n"
            "cat >/tmp/show <<'END'\n#!/bin/sh\nid -un\n"
            'for a in "$@"; do echo "<$a>"; done\nEND\n'
            "chmod 755 /tmp/show; mount -o bind /tmp/show /usr/bin/podflared\n"
            "box-podflared --pool 0 'two words'\n"
        ),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = templates_of(build)
    want = ""
    for i, name in enumerate(names):
        text = (build / "guest/templates" / name / "template.json").read_text("utf-8")
        want += f"[{name} t{i}]\n{text} e2 e1 f5 e0\nro\n"
    assert done.stdout.startswith(want + "podflare\n")
    words = re.findall("<(.*)>", done.stdout.removeprefix(want))
    given = [f"{n}=/run/box/t{i}.json=/dev/podflare/t{i}" for i, n in enumerate(names)]
    at = words.index("--template")
    assert words[at : at + 2 * len(names)] == [w for g in given for w in ("--template", g)]
    assert words[-3:] == ["--pool", "0", "two words"]


def test_deleted_files_give_their_space_back(spawn, script, tmp_path):
    """A disk mounted as box/rc mounts the state: what is deleted inside leaves the file outside."""
    found = re.search(r"mount -t ext4 -o (\S+) ", (ROOT / "box/rc").read_text())
    assert found
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 8 << 30)
    mkfs = ["mkfs.ext4", "-q", "-F", "-m0", "-Elazy_itable_init=1,lazy_journal_init=1", str(disk)]
    env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(mkfs, check=True, env=env)

    def mib() -> int:
        return disk.stat().st_blocks >> 11

    empty = mib()
    run = spawn(
        "box",
        "run",
        *MEMORY,
        *("--disk", str(disk)),
        script(
            f"set -e; mkdir /tmp/m; mount -t ext4 -o {found[1]} /dev/podflare/disk0 /tmp/m\n"
            "dd if=/dev/urandom of=/tmp/m/a bs=1M count=100 2>/dev/null; sync\n"
            "echo written; sleep 3; rm /tmp/m/a; sync; echo deleted; sleep 8; umount /tmp/m\n"
        ),
    )
    run.wait_for("written")
    assert mib() >= empty + 100
    run.wait_for("deleted")
    wait_until("the space is back", lambda: mib() <= empty + 8, 10)
    assert run.wait() == 0, run.stderr
    assert mib() <= empty + 8


def test_script_killed_by_a_signal(call, script):
    assert call("box", "run", *MEMORY, script("kill -9 $$\n")).returncode == 128 + 9


def test_time_limit(spawn, script):
    run = spawn("box", "run", *MEMORY, "--timeout", "4", script("echo here; sleep 1000\n"))
    assert run.wait() == 125
    assert "ended after 4 seconds" in run.stderr
    assert run.descendants() == {}


def test_a_crash_of_the_machine_is_told(call, script):
    done = call("box", "run", *MEMORY, script("echo c >/proc/sysrq-trigger; sleep 1000\n"))
    assert done.returncode == 125
    assert "ended before the script did" in done.stderr
    assert "Kernel panic" in done.stderr


def test_signals_end_it(spawn, script):
    run = spawn("box", "run", *MEMORY, script("echo here; sleep 1000\n"))
    run.wait_for("here")
    run.machine()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(10) == 128 + signal.SIGTERM
    assert run.descendants() == {}


def test_bad_requests(call, script, tmp_path):
    missing = str(tmp_path / "missing")
    for args, text in (
        (["box"], "podflare box run"),
        (["box", "start"], "podflare box run"),
        (["box", "run"], "which script?"),
        (["box", "run", "--timeout", "soon", "x"], "--timeout needs a whole number"),
        (["box", "run", "--wrong"], "unknown option --wrong"),
        (["box", "run", "--disk", missing, "x"], f"cannot read the disk image {missing}"),
    ):
        done = call(*args)
        assert done.returncode == 2 and text in done.stderr, done.stderr
    for args in ([missing], ["--add", missing, script("true\n")]):
        done = call("box", "run", *args)
        assert (
            done.returncode == 125
            and f"cannot read {'the script ' * (len(args) == 1)}{missing}" in (done.stderr)
        )


def test_a_machine_that_hangs_is_started_again(call, script, tmp_path):
    """A stand-in for QEMU that says nothing the first time, and is the real one after that."""
    real = shutil.which("qemu-system-x86_64", path="/usr/bin:/bin:/usr/local/bin")
    been = tmp_path / "disk"
    been.write_bytes(bytes(512))
    path = put_in_place(
        tmp_path,
        f"#!/bin/sh\n[ \"$(head -c 1 {been})\" = x ] && exec {real} \"$@\"\n"
        f"printf x 1<>{been}\nexec sleep 300\n",
    )
    done = call(
        "box",
        "run",
        *MEMORY,
        *("--disk", str(been)),
        script("echo here\n"),
        PATH=path,
        PODFLARE_BOX_BOOT_TIMEOUT="20",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "here\n"
    assert "did not boot within 20 s, starting it again" in done.stderr


def test_a_machine_that_always_hangs_is_given_up(call, script, tmp_path):
    done = call(
        "box",
        "run",
        *MEMORY,
        script("echo here\n"),
        PATH=put_in_place(tmp_path, "#!/bin/sh\nexec sleep 300\n"),
        PODFLARE_BOX_BOOT_TIMEOUT="1",
    )
    assert done.returncode == 125
    assert done.stderr.count("starting it again") == 2
