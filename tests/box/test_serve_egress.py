# SPDX-License-Identifier: Apache-2.0
"""What `podflare serve` makes of the operator's configuration of egress: whether the emulated host's
network lets anything out, and what the daemon in it is handed. A program in QEMU's place writes down what
it got, so that these take no machine; that what is handed over arrives is for the tests of tests/e2e."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest
from stand_in import put_fake, report_of

OPTION = "--egress-config"


@pytest.fixture
def started(call, tmp_path):
    """Starts serve in emulated mode: what "QEMU" got, and what serve said."""
    path = put_fake(tmp_path)

    def start(*args: str, **env: str) -> tuple[dict, str]:
        (tmp_path / "state/box-state.ext4").unlink(missing_ok=True)
        done = call(
            *("serve", "--mode", "emulated", "--box-memory", "1024", "--addr", "127.0.0.1:0"),
            *("--state", str(tmp_path / "state"), *args),
            **{"PATH": path, **env},
        )
        assert done.returncode == 1 and "ended unexpectedly" in done.stderr, done.stderr
        told = report_of(tmp_path / "state")
        told["files"] = {name: base64.b64decode(data) for name, data in told["files"].items()}
        return told, done.stderr

    return start


def restrict(told: dict) -> str:
    """The setting of the user network."""
    (network,) = [a for a in told["argv"] if a.startswith("user,")]
    (setting,) = [p for p in network.split(",") if p.startswith("restrict=")]
    assert "ipv6=off" in network and "hostfwd" not in network and "guestfwd" not in network
    return setting.removeprefix("restrict=")


def test_no_configuration(started):
    told, said = started()
    assert restrict(told) == "off"
    assert "egress.json" not in told["files"] and OPTION not in told["files"]["config"].decode()
    # Of QEMU's own network nothing is opened by a range that was meant for something else.
    assert "10.0.2.0/24" in json.loads(told["files"]["own.json"])
    assert "reached from sandboxes" not in said


@pytest.mark.parametrize(
    "text, setting",
    [
        ("{}", "off"),
        ('{"enabled": true, "default": ["pypi"]}', "off"),
        ('{"enabled": false}', "on"),
        ('{"enabled": false, "default": ["pypi"], "ceiling": null}', "on"),
    ],
)
@pytest.mark.parametrize("way", ["option", "environment"])
def test_on_exactly_when_it_is_switched_off(started, tmp_path, text, setting, way):
    file = tmp_path / "operator.json"
    file.write_text(text)
    if way == "option":
        told, said = started(OPTION, str(file))
    else:
        told, said = started(PODFLARE_EGRESS_CONFIG=str(file))
    assert restrict(told) == setting
    assert told["files"]["egress.json"] == text.encode()  # byte for byte
    # Its name out here means nothing inside.
    config = told["files"]["config"].decode()
    assert "PODFLARE_EGRESS_CONFIG" not in config and str(file) not in config
    assert "PODFLARE_EGRESS_CONFIG" not in told["environ"]
    assert str(file) not in " ".join(told["argv"])
    assert "reached from sandboxes" not in said


def test_the_option_goes_before_the_environment(started, tmp_path):
    for name, text in (("a", '{"enabled": true}'), ("b", '{"enabled": false}')):
        (tmp_path / name).write_text(text)
    told, _ = started(OPTION, str(tmp_path / "a"), PODFLARE_EGRESS_CONFIG=str(tmp_path / "b"))
    assert restrict(told) == "off" and told["files"]["egress.json"] == b'{"enabled": true}'


def test_a_file_that_is_not_there_lets_nothing_out(started, tmp_path):
    """The daemon is told of a file that it will not find either, and grants nothing."""
    missing = str(tmp_path / "missing.json")
    told, said = started(OPTION, missing)
    assert restrict(told) == "on" and "egress.json" not in told["files"]
    config = told["files"]["config"].decode()
    assert f"'{OPTION}' '{missing}'" in config
    assert f"nothing can be reached from sandboxes: cannot read {missing}: No such file" in said


@pytest.mark.parametrize("text", ["{", "[]", '{"enabled": "no"}', ""])
def test_a_file_that_is_broken_lets_nothing_out(started, tmp_path, text):
    file = tmp_path / "operator.json"
    file.write_text(text)
    told, said = started(OPTION, str(file))
    assert restrict(told) == "on"
    assert told["files"]["egress.json"] == text.encode()  # so that the daemon says so as well
    assert f"nothing can be reached from sandboxes: {file}" in said


def test_a_relative_name(started, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("operator.json").write_text('{"enabled": false}')
    told, _ = started(OPTION, "operator.json")
    assert restrict(told) == "on" and told["files"]["egress.json"] == b'{"enabled": false}'


def test_the_option_needs_a_value(call):
    done = call("serve", OPTION)
    assert done.returncode == 2 and "needs a value" in done.stderr


def test_what_the_image_has(build: Path, tmp_path):
    """The program with its libraries, the groups, certificates, and where names are asked for."""
    dump = subprocess.run(
        ["fsck.erofs", f"--extract={tmp_path / 'image'}", str(build / "box/programs.erofs")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )
    assert dump.returncode == 0, dump.stderr
    image = tmp_path / "image"
    assert os.access(image / "usr/bin/podflare-egress", os.X_OK)
    assert (image / "usr/bin/groups.json").read_bytes() == (build / "groups.json").read_bytes()
    assert "pypi" in json.loads((image / "usr/bin/groups.json").read_text())
    bundle = "etc/ssl/certs/ca-certificates.crt"
    assert (image / bundle).read_bytes() == Path("/", bundle).read_bytes()
    assert (image / "etc/resolv.conf").read_text() == "nameserver 10.0.2.3\n"
    needed = subprocess.run(
        ["ldd", str(build / "podflare-egress")], capture_output=True, text=True, check=True
    ).stdout
    libraries = [word for word in needed.split() if word.startswith("/")]
    assert libraries and all((image / path.lstrip("/")).is_file() for path in libraries)
