# SPDX-License-Identifier: Apache-2.0
"""`podflare serve`: what it refuses, how it starts and stops, and what is left afterwards."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from processes import clean_env, wait_until

EMULATED = ("--mode", "emulated", "--box-memory", "1536")


@pytest.fixture
def state(tmp_path) -> str:
    """A state directory that does not exist yet."""
    return str(tmp_path / "deep" / "state")


def fetch(url: str, key: str = "") -> tuple[int, str]:
    """Status and body of a GET."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=30
        ) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def refused(url: str) -> bool:
    """True when nobody listens there."""
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == errno.ECONNREFUSED


def waiting_room(url: str, machine: int, wanted: int) -> int:
    """How many of `wanted` connections the kernel takes while the machine is too busy to do so."""
    host, port = url.removeprefix("http://").split(":")
    os.kill(machine, signal.SIGSTOP)
    try:
        sockets = [socket.socket() for _ in range(wanted)]
        for one in sockets:
            one.setblocking(False)
            one.connect_ex((host, int(port)))
        done = select.select([], sockets, [], 0.5)[1]
        for one in sockets:
            one.close()
        return len(done)
    finally:
        os.kill(machine, signal.SIGCONT)


def url_of(run) -> str:
    """The URL in the line that says that it is ready."""
    run.wait_for("podflare: ready on ", 120)
    found = re.search(r"podflare: ready on (http://[0-9.]+:\d+) \(\d+\.\d s\)\n", run.stdout)
    assert found, run.stdout
    return found.group(1)


# What it refuses, before anything is started.


@pytest.mark.parametrize(
    "keys", [{}, {"PODFLARE_API_KEYS": " , "}, {"PODFLARE_AUTH_DISABLED": "0"}]
)
def test_open_address_without_keys_is_refused(call, state, keys):
    done = call("serve", "--addr", "0.0.0.0:0", "--state", state, **keys)
    assert done.returncode == 2
    assert "refusing to listen on 0.0.0.0:0 without keys" in done.stderr
    assert "PODFLARE_API_KEYS" in done.stderr and not Path(state).exists()


def test_address_of_the_environment_is_refused_as_well(call, state):
    done = call("serve", "--state", state, PODFLARE_HOSTD_ADDR="[::]:7070")
    assert done.returncode == 2 and "refusing to listen on [::]:7070" in done.stderr


@pytest.mark.parametrize(
    "args, text",
    [
        (["--addr", "7070"], "HOST:PORT"),
        (["--addr", "127.0.0.1:70700"], "from 0 to 65535"),
        (["--addr", "somewhere:80"], "not an IPv4 address"),
        (["--mode", "fast"], "auto, hardware or emulated"),
        (["--box-memory", "1"], "from 1024 to"),
        (["--box-memory"], "needs a value"),
        (["--box-disk", "0"], "--box-disk needs a whole number from 1 to 16384"),
        (["--wrong"], "unknown option --wrong"),
        (["extra"], "unexpected argument 'extra'"),
    ],
)
def test_wrong_command_lines(call, args, text):
    done = call("serve", *args)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr and "podflare serve --help" in done.stderr


def test_port_in_use(call, state):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = call("serve", *EMULATED, "--addr", address, "--state", state)
    assert done.returncode == 1
    assert f"{address} is already in use" in done.stderr


@pytest.mark.parametrize(
    "part",
    [
        "podflare-vmm",
        "podflare-egress",
        "groups.json",
        "guest/vmlinux",
        "guest/templates/default/rootfs.erofs",
        "box/programs.erofs",
    ],
)
def test_missing_part_is_named(build, tmp_path, state, part):
    """An installation without one of its files: the error names it and says what to do."""
    base = tmp_path / "installation"
    for name in (
        "podflared",
        "podflare-vmm",
        "podflare-egress",
        "groups.json",
        "guest/vmlinux",
        "guest/initramfs.cpio",
        "guest/templates/default/template.json",
        "guest/templates/default/rootfs.erofs",
        "box/vmlinux",
        "box/initramfs.cpio",
        "box/programs.erofs",
    ):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        if name != part:
            (base / name).symlink_to(build / name)
    shutil.copy(build / "podflare", base / "podflare")
    done = subprocess.run(
        [str(base / "podflare"), "serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"{base}/{part} is missing: run make first" in done.stderr


def test_missing_qemu(call, state, tmp_path):
    done = call("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state, PATH=str(tmp_path))
    assert done.returncode == 1 and "apt install qemu-system-x86" in done.stderr


def test_too_much_memory(call, state):
    args = ("--mode", "emulated", "--box-memory", "1000000", "--addr", "127.0.0.1:0")
    done = call("serve", *args, "--state", state)
    assert done.returncode == 1 and "not enough memory" in done.stderr


def test_ipv6_in_emulated_mode(call, state):
    done = call("serve", *EMULATED, "--addr", "[::1]:7070", "--state", state)
    assert done.returncode == 1 and "only be reached over IPv4" in done.stderr


def test_hardware_mode_is_refused_where_there_is_none(call, state):
    if json.loads(call("doctor", "--json").stdout)["mode"] == "hardware":
        pytest.skip("this machine has hardware mode")
    done = call("serve", "--mode", "hardware", "--addr", "127.0.0.1:0", "--state", state)
    assert done.returncode == 1 and "--mode hardware is not possible because" in done.stderr


def test_state_that_is_no_directory(call, tmp_path):
    (tmp_path / "file").touch()
    done = call("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", str(tmp_path / "file"))
    assert done.returncode == 1 and str(tmp_path / "file") in done.stderr


@pytest.mark.parametrize("mode, said", [(0o777, "others may write to"), (0o770, "others may write to")])
def test_state_that_others_write_to(call, tmp_path, mode, said):
    """Or that is theirs: they could have files of this user changed by links in it."""
    place = tmp_path / "state"
    place.mkdir()
    place.chmod(mode)
    done = call("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", str(place))
    assert done.returncode == 1 and f"{said} the state directory {place}" in done.stderr
    assert list(place.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_state_of_another_user(call, tmp_path):
    place = tmp_path / "state"
    place.mkdir()
    os.chown(place, 12345, 12345)
    done = call("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", str(place))
    assert done.returncode == 1
    assert f"the state directory {place} belongs to another user (12345, and this is 0)" in done.stderr
    assert list(place.iterdir()) == []


# Life and end.


def test_start_serve_and_clean_stop(spawn, call, state):
    """One start: what it says, the forwarded port, the keys inside, the lock, the stop, the restart."""
    args = ("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state)
    run = spawn(*args, PODFLARE_API_KEYS="it's-a-key,second", PODFLARE_LOG_FORMAT="json")
    url = url_of(run)
    assert run.stderr.count("running in an emulated host, because ") == 1
    assert fetch(f"{url}/v1/healthz") == (200, "ok")
    assert fetch(f"{url}/v1/sandboxes")[0] == 401
    assert fetch(f"{url}/v1/sandboxes", "it's-a-key")[0] == 200
    run.wait_for('"path"')  # the daemon's log lines come through, in the format asked for
    other = call(*args)
    assert other.returncode == 1 and "another podflare serve uses" in other.stderr
    environ = Path(f"/proc/{run.machine()}/environ").read_bytes()
    command = Path(f"/proc/{run.machine()}/cmdline").read_bytes()
    assert b"it's-a-key" not in environ + command

    assert waiting_room(url, run.machine(), 40) == 40

    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(30) == 0, run.stderr
    assert time.monotonic() - began < 20
    assert run.descendants() == {}
    assert refused(url)
    assert {p.name for p in Path(state).iterdir()} == {
        "box-console.log",
        "box-state.ext4",
        "serve.lock",
    }
    assert Path(state).stat().st_mode & 0o777 == 0o700

    again = spawn(*args)
    assert fetch(f"{url_of(again)}/v1/sandboxes")[0] == 200  # no keys this time
    again.process.send_signal(signal.SIGINT)
    assert again.wait(30) == 0, again.stderr


def test_kill_9_leaves_nothing(spawn, state):
    run = spawn("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state)
    url = url_of(run)
    run.machine()
    run.process.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    wait_until("QEMU is gone", lambda: run.descendants() == {}, 10)
    wait_until("the port is closed", lambda: refused(url), 10)
    again = spawn("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state)
    assert fetch(f"{url_of(again)}/v1/healthz") == (200, "ok")


def test_stop_while_it_starts(spawn, state):
    run = spawn("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state)
    run.wait_for("starting the emulated host")
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(20) == 0, run.stderr
    assert run.descendants() == {} and "ready" not in run.stdout


def test_death_of_the_machine_is_told(spawn, state):
    run = spawn("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state)
    url_of(run)
    os.kill(run.machine(), signal.SIGKILL)
    assert run.wait(20) == 1
    assert "the emulated host ended unexpectedly (QEMU was killed by signal 9)" in run.stderr


def test_death_of_the_daemon_is_told(spawn, state):
    """An option that the daemon does not know ends it at once, inside; its own words come through."""
    run = spawn(
        "serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state, "--", "--no-such-option"
    )
    assert run.wait() == 1
    assert "--no-such-option" in run.stderr
    assert re.search(r"the daemon ended by itself with status [1-9]", run.stderr)
    assert run.descendants() == {}


def test_damaged_state_disk_is_told(spawn, state):
    Path(state).mkdir(parents=True)
    disk = Path(state, "box-state.ext4")
    disk.touch()
    os.truncate(disk, 64 << 30)
    run = spawn("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state)
    assert run.wait() == 1
    assert "cannot mount the state disk" in run.stderr


def test_damaged_state_disk_is_not_grown(call, state):
    Path(state).mkdir(parents=True)
    disk = Path(state, "box-state.ext4")
    disk.write_bytes(b"\0" * 1_048_576)
    done = call("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state)
    assert done.returncode == 1
    assert f"e2fsck on the state disk {disk}.grow failed" in done.stderr
    assert disk.stat().st_size == 1_048_576


def test_half_grown_state_disk_is_never_used(call, state, tmp_path):
    """A start was killed when the file was larger already, and e2fsck cannot mend what it left."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/e2fsck").write_text("#!/bin/sh\necho it is broken\nexit 4\n")
    (tmp_path / "bin/e2fsck").chmod(0o755)
    Path(state).mkdir(parents=True)
    disk = Path(state, "box-state.ext4.grow")
    disk.touch()
    os.truncate(disk, 64 << 30)
    for _ in range(2):
        done = call(
            *("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state),
            PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        )
        assert done.returncode == 1
        assert f"e2fsck on the state disk {disk} failed: it is broken" in done.stderr
        assert "repair that, or remove it" in done.stderr
        assert disk.stat().st_size == 64 << 30


def test_state_disk_grows(spawn, state):
    """A small one of before is made larger, with what is in it; it takes no more space for that."""
    args = ("serve", *EMULATED, "--addr", "127.0.0.1:0", "--state", state)
    disk = Path(state, "box-state.ext4")
    for options, gib in ((("--box-disk", "2"), 2), ((), 64)):
        run = spawn(*args, *options)
        assert fetch(f"{url_of(run)}/v1/healthz") == (200, "ok")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait(30) == 0, run.stderr
        assert disk.stat().st_size == gib << 30
        assert disk.stat().st_blocks * 512 < 32 << 20
