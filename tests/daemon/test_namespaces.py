# SPDX-License-Identifier: Apache-2.0
"""A host that allows no namespaces, or nothing to be mounted in them: the daemon refuses to start,
unless told otherwise, and says so; `podflare doctor` says what to do; a VMM that is not told that it
may do without refuses as well."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import BUILD, Daemon, start_in_vain

# A user namespace in which no further one, and no network namespace, can be made.
LIMITED = [
    *("unshare", "-Ur", "sh", "-c"),
    "for kind in user net; do echo 0 >/proc/sys/user/max_${kind}_namespaces; done && exec \"$@\"",
    "sh",
]
# Here all of them can be made, and the empty root cannot (no_mounts.c).
NO_MOUNTS = [str(BUILD / "tests/daemon/no-mounts")]
HOSTS = pytest.mark.parametrize(
    "host,error",
    [(LIMITED, "No space left on device"), (NO_MOUNTS, "Operation not permitted")],
    ids=["limited", "no-mounts"],
)
SETTING = "PODFLARE_WITHOUT_NAMESPACES"
VMM = str(BUILD / "podflare-vmm")
# Not the daemon's: where that has them, VMMs mostly do not.
VMM_SANITIZED = os.path.exists(VMM) and b"__asan_init" in Path(VMM).read_bytes()

pytestmark = pytest.mark.skipif(
    subprocess.run(["unshare", "-Ur", "true"], capture_output=True, check=False).returncode != 0,
    reason="this user may not make user namespaces at all",
)


def start(tmp_path: Path, prefix: list[str], **env: str) -> tuple[int, str]:
    return start_in_vain(tmp_path, prefix, VMM, **env)


def test_where_nothing_can_be_mounted_namespaces_can_be_made() -> None:
    """So it is the mounts that fail below."""
    made = ["unshare", "-Urniu", "--mount", "--propagation=unchanged"]
    subprocess.run([*NO_MOUNTS, *made, "true"], check=True)
    mount = ["mount", "-t", "tmpfs", "x", "/tmp"]
    subprocess.run([*made, *mount], check=True)
    done = subprocess.run([*NO_MOUNTS, *made, *mount], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "permi" in done.stderr


@HOSTS
def test_the_daemon_refuses(tmp_path: Path, host: list[str], error: str) -> None:
    code, text = start(tmp_path, host)
    assert code == 1
    assert f"allows a VMM no namespaces of its own ({error})" in text
    assert "user.max_user_namespaces" in text and f"{SETTING}=1" in text
    assert "ready" not in text


@pytest.mark.parametrize("value", ["yes", "2", "true"])
def test_a_setting_that_is_none(tmp_path: Path, value: str) -> None:
    code, text = start(tmp_path, [], **{SETTING: value})
    assert code == 2 and f'{SETTING} is "{value}"' in text


def arguments(daemon: Daemon) -> list[str]:
    daemon.templates_ready()
    (pid,) = daemon.children()
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


@HOSTS
def test_the_daemon_is_told_otherwise(tmp_path: Path, host: list[str], error: str) -> None:
    daemon = Daemon(tmp_path, prefix=host, env={SETTING: "1"})
    try:
        told = f"{SETTING}=1: VMMs are without namespaces of their own ({error})"
        assert told in daemon.log_text()
        assert "--without-namespaces" in arguments(daemon)
        assert daemon.exec(daemon.create(), "echo x")[0]["data"] == "x"
    finally:
        daemon.stop()


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_where_they_are_allowed_they_are_there(tmp_path: Path, value: str) -> None:
    daemon = Daemon(tmp_path, env={SETTING: value} if value else {})
    try:
        assert "namespaces" not in daemon.log_text()
        assert "--without-namespaces" not in arguments(daemon)
    finally:
        daemon.stop()


def vmm(prefix: list[str], *args: str) -> tuple[int, str]:
    """A VMM whose daemon goes at once: 0 is that it was in its jail, and served, till then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [*prefix, VMM, "an-id", *args],
            preexec_fn=lambda: os.dup2(theirs.fileno(), 3),
            pass_fds=(3,),
            stderr=subprocess.PIPE,
            text=True,
        )
    ours.close()
    _, text = process.communicate(timeout=60)
    return process.returncode, text


@pytest.mark.skipif(VMM_SANITIZED, reason="sanitizers make calls that the jail does not know")
@HOSTS
def test_a_vmm_refuses_by_itself(host: list[str], error: str) -> None:
    code, text = vmm(host)
    assert code == 1 and "no namespaces of its own" in text and error in text
    assert vmm(host, "--without-namespace")[0] == 1
    assert vmm(host, "--without-namespaces") == (0, "")
    assert vmm([]) == (0, "")


def doctor(prefix: list[str], **env: str) -> dict[str, dict[str, str]]:
    done = subprocess.run(
        [*prefix, str(BUILD / "podflare"), "doctor", "--json"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    return {"": report, **{f["name"]: f for f in report["findings"]}}


@HOSTS
def test_doctor_says_it(host: list[str], error: str) -> None:
    here = doctor([])
    assert here["namespaces"]["level"] == "ok"
    assert here["landlock"]["level"] in ("ok", "note")
    limited = doctor(host)
    hardware = here[""]["mode"] == "hardware"  # type: ignore[call-overload]
    assert limited["namespaces"]["level"] == ("fail" if hardware else "note")
    assert error in limited["namespaces"]["found"]
    advice = limited["namespaces"]["advice"]
    assert f"{SETTING}=1" in advice if hardware else "emulated mode" in advice
    told = doctor(host, **{SETTING: "1"})
    assert told["namespaces"]["level"] == "note"
