# SPDX-License-Identifier: Apache-2.0
"""The disk of a sandbox: its size, its end, and that a fork in the middle of anything leaves two
sound file systems. What the disk costs the host is looked at by box/disk.sh."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import httpx
import pytest
from guest import SMALL, given_back, probe, py, sh, together, values
from served import wait_until

import podflare
from podflare import Sandbox

pytestmark = pytest.mark.limit(400)

SIZES = """
import json, os
st = os.statvfs("/home/user")
with open("/sys/block/vda/size") as file:
    sectors = int(file.read())
print(json.dumps({
    "disk_mib": sectors * 512 / (1 << 20),
    "total_mib": st.f_blocks * st.f_frsize / (1 << 20),
    "free_mib": st.f_bavail * st.f_frsize / (1 << 20),
}))
"""


def test_sizes(parent: Sandbox, fresh: Callable[..., Sandbox]):
    for sandbox, mib in ((parent, 4096), (fresh(**SMALL), SMALL["disk_mib"])):
        assert sandbox.info().disk_mib == mib
        sizes = values(sandbox, SIZES)
        assert sizes["disk_mib"] == mib
        # The file system takes something for itself.
        assert 0.6 * mib < sizes["free_mib"] <= sizes["total_mib"] <= mib
        with sandbox.fork() as (child,):
            assert child.info().disk_mib == mib
            assert values(child, SIZES)["disk_mib"] == mib


FLUSHES = """
import json, os

def done():
    # Documentation/block/stat.rst: requests that wrote, and flushes.
    fields = open("/sys/block/vda/stat").read().split()
    return int(fields[4]), int(fields[15])

def during(work):
    before = done()
    work()
    return [b - a for a, b in zip(before, done())]

def save():
    with open("/home/user/saved", "wb") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    os.sync()

def device():
    fd = os.open("/dev/vda", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

print(json.dumps({"save": during(save), "device": during(device)}))
"""


def test_fsync_writes_and_sends_no_flush(parent: Sandbox):
    """docs/architecture.md, Flushes. That the kernel counts them is seen at the device's own."""
    with parent.fork() as (child,):
        did = probe(child, FLUSHES, root=True)
    writes, flushes = did["save"]
    assert writes > 0 and flushes == 0, did
    assert did["device"][1] > 0, did


DIRTY = """
with open("/proc/vmstat") as file:
    print(dict(line.split() for line in file)["nr_dirty"])
"""


def test_nothing_is_left_to_write(fresh: Callable[..., Sandbox]):
    """Of the template's, that is: each copy would write it anew, half a minute after it was made."""
    assert int(py(fresh(), DIRTY)) <= 3


@pytest.mark.parametrize("disk_mib", [63, 0, -1, 65537, 10**9, "64", 64.5, True])
def test_sizes_that_are_refused(http: httpx.Client, disk_mib):
    reply = http.post("/v1/sandboxes", json={"disk_mib": disk_mib})
    assert reply.status_code == 400, reply.text
    assert (reply.json()["code"], reply.json()["field"]) == ("invalid_request", "disk_mib")


def test_a_full_disk_is_an_error_of_the_program_that_filled_it(
    fresh: Callable[..., Sandbox], parent: Sandbox
):
    s = fresh(**SMALL)
    py(s, "kept = 'still here'")
    r = s.run_code("head -c 100M /dev/zero > /home/user/big; echo status $?", language="bash")
    assert r.stdout == "status 1\n" and "No space left" in r.stderr, r
    with pytest.raises(podflare.DiskFullError) as e:
        s.upload(b"x" * (4 << 20), "/home/user/more")
    assert (e.value.status, e.value.code) == (413, "disk_full")
    r = s.run_code("open('/home/user/x', 'wb').write(b'x' * (1 << 20))")
    assert r.error is not None and r.error.name == "OSError" and "No space" in r.error.value
    # Nobody else notices; a copy is as full as its parent, and lives.
    assert sh(parent, "head -c 1M /dev/zero > /tmp/fits && echo fits") == "fits\n"
    with s.fork() as (child,):
        assert py(child, "print(kept)") == "still here\n"
        sh(child, "rm /home/user/big; head -c 8M /dev/zero > /home/user/again; sync")
        assert "big" in sh(s, "ls /home/user") and "again" not in sh(s, "ls /home/user")
    sh(s, "rm /home/user/big")
    sh(s, "head -c 8M /dev/zero > /home/user/again; sync")
    assert py(s, "print(kept)") == "still here\n"
    # It was the guest's own disk that was full, not the host's.
    assert s.info().disk_errors == 0


def fill(sandbox: Sandbox, name: str, salt: int, mib: int) -> None:
    """A file each of whose pages says what it is."""
    py(
        sandbox,
        f"""
        import os, struct
        with open({name!r}, "wb") as out:
            for page in range({mib} * 256):
                out.write(struct.pack("<QQ", page, {salt}) * 256)
            out.flush()
            os.fsync(out.fileno())
        """,
    )


def wrong_pages(sandbox: Sandbox, name: str, salt: int) -> str:
    """Pages that are not as `fill` made them; read from the disk, not from memory."""
    sh(sandbox, "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches > /dev/null")
    return py(
        sandbox,
        f"""
        import struct
        wrong, page = [], 0
        with open({name!r}, "rb") as file:
            while piece := file.read(4096):
                if piece != struct.pack("<QQ", page, {salt}) * 256:
                    wrong.append(page)
                page += 1
        print(page, wrong[:5])
        """,
    )


def test_files_are_nobody_elses(parent: Sandbox):
    mib = 64
    fill(parent, "/home/user/pattern", 1, mib)
    with parent.fork(2) as (writer, reader):

        def rewrite(sandbox: Sandbox) -> str:
            salt = 2 if sandbox is parent else 3
            fill(sandbox, "/home/user/pattern", salt, mib)
            return wrong_pages(sandbox, "/home/user/pattern", salt)

        assert together(rewrite, [parent, writer]) == [f"{mib * 256} []\n"] * 2
        assert wrong_pages(reader, "/home/user/pattern", 1) == f"{mib * 256} []\n"
        assert wrong_pages(parent, "/home/user/pattern", 2) == f"{mib * 256} []\n"
        assert wrong_pages(writer, "/home/user/pattern", 3) == f"{mib * 256} []\n"
    sh(parent, "rm /home/user/pattern")


# The disk is under the root file system, which rests while it is looked at: nothing may be opened
# for writing between the two ioctls. Mounting the disk again gives the same file system.
FSCK = r"""
import ctypes, fcntl, json, os, subprocess
FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs("/run/fsck", exist_ok=True)
if libc.mount(b"/dev/vda", b"/run/fsck", b"ext4", 0, None):
    raise OSError(ctypes.get_errno(), "mount")
fd = os.open("/run/fsck", os.O_RDONLY)
# Once before, so that nothing is touched for the first time when it rests.
subprocess.run(["/sbin/e2fsck", "-V"], capture_output=True)
os.sync()
fcntl.ioctl(fd, FIFREEZE, 0)
try:
    done = subprocess.run(
        ["/sbin/e2fsck", "-fn", "/dev/vda"], capture_output=True, text=True, timeout=120
    )
finally:
    fcntl.ioctl(fd, FITHAW, 0)
    os.close(fd)
    libc.umount(b"/run/fsck")
print(json.dumps([done.returncode, done.stdout + done.stderr]))
"""


def assert_sound(sandbox: Sandbox) -> None:
    """e2fsck finds nothing to mend on the frozen disk."""
    status, said = probe(sandbox, FSCK, root=True)
    assert status == 0, said


WRITER = """
import os, struct, sys
path, mib = sys.argv[1], int(sys.argv[2])
with open(path, "wb") as out:
    for page in range(mib * 256):
        out.write(struct.pack("<QQ", page, 9) * 256)
        if page % 512 == 511:
            out.flush()
            os.fsync(out.fileno())
    out.flush()
    os.fsync(out.fileno())
for n in range(200):
    with open(f"{path}.{n}", "w") as small:
        small.write(str(n) * 100)
os.rename(path, path + ".done")
"""


def test_a_fork_in_the_middle_of_a_write(parent: Sandbox):
    """A program writes, syncs, makes files; copies are made meanwhile. In each of them it comes to
    its end with all it wrote, and the file systems are sound."""
    mib, path = 48, "/home/user/written"
    with parent.fork() as (base,):
        base.upload(WRITER.encode(), "/tmp/writer.py")
        py(
            base,
            f"import subprocess\n"
            f"writer = subprocess.Popen(['python3', '/tmp/writer.py', {path!r}, '{mib}'])",
        )

        def size() -> int:
            return int(sh(base, f"stat -c %s {path} 2>/dev/null || echo 0"))

        wait_until("the file grows", lambda: size() > 4 << 20, 120)
        with base.fork(2) as children:
            assert 4 << 20 < size()
            sandboxes = [base, *children]
            ends = together(lambda s: py(s, "print(writer.wait())"), sandboxes)
            assert ends == ["0\n"] * 3
            for sandbox in sandboxes:
                assert wrong_pages(sandbox, f"{path}.done", 9) == f"{mib * 256} []\n"
                assert sh(sandbox, f"cat {path}.* | wc -c; ls {path}.* | wc -l").split()[1] == "201"
                assert_sound(sandbox)


def test_a_copy_of_a_disk_that_is_being_written_is_sound_at_once(parent: Sandbox):
    """Not only when the writer has come to its end."""
    with parent.fork() as (base,):
        # Without a REPL variable: bash goes on, in the copy too.
        stop = threading.Event()
        rounds = [0]

        def churn() -> None:
            while not stop.is_set():
                rounds[0] += 1
                sh(
                    base,
                    "mkdir -p /home/user/churn; for i in $(seq 50); do "
                    "head -c 20000 /dev/urandom > /home/user/churn/$i; done; "
                    "rm -rf /home/user/churn; sync",
                )

        with ThreadPoolExecutor(1) as pool:
            churning = pool.submit(churn)
            try:
                for _ in range(2):
                    time.sleep(0.5)
                    before = rounds[0]
                    with base.fork() as (child,):
                        py(child, "pass")
                        assert_sound(child)
                    # In the parent it goes on; it has not failed.
                    wait_until("more writes", lambda: rounds[0] > before or churning.done(), 120)
            finally:
                stop.set()
                churning.result()
        assert_sound(base)


def test_sparse_and_large_files(parent: Sandbox):
    """A copy has what its parent had, holes and all, and discarding in one takes nothing away from
    the other."""
    with parent.fork() as (base,):
        sh(
            base,
            "truncate -s 1G /home/user/sparse; printf end | dd of=/home/user/sparse bs=1 "
            "seek=1073741821 conv=notrunc 2>/dev/null; head -c 8M /dev/urandom > /home/user/solid; sync",
        )
        digest = sh(base, "sha256sum < /home/user/solid")
        with base.fork() as (child,):
            before = given_back(base)
            sh(base, "rm /home/user/solid && sync")
            assert given_back(base) - before >= 8 << 20
            sh(child, "echo 3 | sudo tee /proc/sys/vm/drop_caches > /dev/null")
            assert sh(child, "sha256sum < /home/user/solid") == digest
            assert sh(child, "tail -c 3 /home/user/sparse; stat -c ' %s' /home/user/sparse") == (
                "end 1073741824\n"
            )
