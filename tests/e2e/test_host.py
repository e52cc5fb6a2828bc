# SPDX-License-Identifier: Apache-2.0
"""What must be looked at from the host of the VMMs: the scripts in box/. Where the VMMs live in the
emulated host, so do the scripts (`podflare box run`); on hardware they run here."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from served import Process, free_port

BOX = Path(__file__).parent / "box"
SCRIPTS = sorted(BOX.glob("*.sh"))


@pytest.mark.limit(1500)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script(build: Path, tmp_path: Path, daemon, script: Path):
    if daemon.log() is None:
        pytest.skip("these start daemons of their own")
    operator = script.with_suffix(".json")  # the configuration of egress, for those that have one
    if daemon.emulated:
        files = [f"--add={path}" for path in (BOX / "common", operator) if path.exists()]
        if script.stem == "io":  # it wants the state directory on a disk
            disk = tmp_path / "disk"
            with disk.open("wb") as file:
                file.truncate(1 << 30)
            subprocess.run(["mkfs.ext4", "-q", str(disk)], env={"PATH": "/sbin:/usr/sbin"}, check=True)
            files.append(f"--disk={disk}")
        process = Process([str(build / "podflare"), "box", "run", *files, str(script)])
    else:
        port = free_port()
        command = [
            str(build / "podflared"),
            f"--addr=127.0.0.1:{port}",
            f"--state={tmp_path / 'state'}",
            f"--guest={build / 'guest'}",
            f"--vmm={build / 'podflare-vmm'}",
        ]
        if operator.exists():
            command.append(f"--egress-config={operator}")
            if os.geteuid() != 0:
                pytest.skip("it looks into processes that are not the user's")
        if script.stem == "faults" and os.geteuid() != 0:
            pytest.skip("it asks KVM for its counts, for which it must be root")
        if script.stem == "jail" and os.geteuid() != 0:
            pytest.skip("it looks into processes that are not dumpable, for which it must be root")
        if script.stem in ("cgroups", "io") and os.geteuid() != 0:
            pytest.skip("it delegates a control group, for which it must be root")
        if script.stem == "io" and os.major(tmp_path.stat().st_dev) == 0:
            pytest.skip("its state directory is on no disk here")
        # The scripts' words are busybox's: wget, nc and ps differ elsewhere.
        applets = tmp_path / "applets"
        applets.mkdir()
        for name in ("wget", "nc"):
            (applets / name).symlink_to("/bin/busybox")
        command_line = ["sh", str(script)]
        if script.stem == "disk":  # it fills the file system of the state directory
            if os.geteuid() != 0:
                pytest.skip("it mounts a file system, for which it must be root")
            state = tmp_path / "state"
            state.mkdir()
            mount = 'mount -t tmpfs -o size=2g,mode=700 state "$0" && exec "$@"'
            command_line = ["unshare", "-m", "sh", "-c", mount, str(state), *command_line]
        process = Process(
            command_line,
            {
                "DAEMON": shlex.join(command),
                "URL": f"http://127.0.0.1:{port}",
                "STATE": str(tmp_path / "state"),
                "PATH": f"{applets}:{os.environ['PATH']}",
            },
            cwd=BOX,
        )
    try:
        status = process.wait(1480)
        assert status == 0, process.output()
        assert process.output().count("ok - ") >= 3, process.output()
        assert not process.descendants()
    finally:
        process.kill()
