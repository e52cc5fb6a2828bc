# SPDX-License-Identifier: Apache-2.0
"""Public addresses of the machine that `podflare serve` runs on, in a network namespace that has some: no name leads
there, wherever the proxy is."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from served import READY, Process, free_port, wait_until

ADDRESSES = {"one.test": "9.9.9.9", "net.test": "8.8.4.77", "six.test": "2a00:1450::9", "other.test": "9.9.9.10"}
PREPARE = """
ip link set lo up
ip addr add 9.9.9.9/32 dev lo
ip addr add 8.8.4.1/24 dev lo
ip addr add 2a00:1450::9/128 dev lo
exec "$@"
"""


def test_names_of_public_addresses(build: Path, tmp_path: Path) -> None:
    config = tmp_path / "egress.json"
    names = {**ADDRESSES, "lan.test": "10.0.2.2"}
    config.write_text(
        json.dumps({"resolve": {name: [a] for name, a in names.items()}, "allow_ranges": ["10.0.0.0/8"]})
    )
    told = subprocess.run([str(build / "podflare"), "doctor", "--json"], capture_output=True, check=False)
    hardware = json.loads(told.stdout)["mode"] == "hardware"
    user = [] if os.geteuid() == 0 else ["-r"]
    addr = f"127.0.0.1:{free_port()}"
    serve = [str(build / "podflare"), "serve", "--addr", addr, "--state", str(tmp_path / "state")]
    inside = ["unshare", "-n", *user, "sh", "-ec", PREPARE, "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    daemon = Process([*inside, *serve, "--egress-config", str(config)])
    try:
        wait_until("podflare serve is ready", lambda: READY.search(daemon.output()), 240)
        enter = ["nsenter", f"--target={daemon.process.pid}", "--net"]
        enter += [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        for name in names:
            done = subprocess.run(
                [*enter, str(build / "podflare"), "policy", "test", "--allow", name, f"{name}:443"],
                env={**os.environ, "PODFLARE_HOSTD_URL": f"http://{addr}"},
                capture_output=True,
                text=True,
                check=False,
            )
            said = done.stdout + done.stderr
            # That address is QEMU's, where there is one, and then it is this machine's loopback.
            if name == "other.test" or (name == "lan.test" and hardware):
                assert done.returncode == 0, said
            else:
                assert done.returncode == 3 and "an address of this host itself" in said, said
    finally:
        daemon.process.terminate()
        daemon.wait(60)
        daemon.kill()

