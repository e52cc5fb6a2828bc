# SPDX-License-Identifier: Apache-2.0
"""`podflare doctor`: what it says about this machine, and its exit status."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from processes import clean_env

SUBJECTS = {
    "processor",
    "kvm",
    "qemu",
    "mkfs",
    "build_tools",
    "parts",
    "templates",
    "kernel",
    "memory",
    "huge_pages",
    "shared_huge_pages",
    "namespaces",
    "landlock",
    "disk",
    "cache_disk",
    "port",
}


def findings(text: str) -> dict[str, dict[str, str]]:
    """The findings of --json by name."""
    return {f["name"]: f for f in json.loads(text)["findings"]}


def test_text_names_every_subject_and_the_mode(call):
    done = call("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for subject in SUBJECTS:
        assert f" {subject} " in done.stdout
    assert "Podflare can run here in " in done.stdout


def test_json_says_the_same_as_the_exit_status(call):
    done = call("doctor", "--json")
    report = json.loads(done.stdout)
    assert set(report) == {"can_run", "mode", "findings"}
    assert report["can_run"] is (done.returncode == 0)
    assert report["mode"] in ("hardware", "emulated")
    names = [f["name"] for f in report["findings"]]
    assert len(names) == len(set(names)) and SUBJECTS <= set(names)
    for finding in report["findings"]:
        assert finding["level"] in ("ok", "note", "fail") and finding["found"]
        assert finding["level"] != "fail"


def test_processor_flags_are_those_of_proc_cpuinfo(call):
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii").split("\nflags", 1)[1].splitlines()[0]
    virtual = bool({"vmx", "svm"} & set(flags.split()))
    done = call("doctor", "--json")
    assert findings(done.stdout)["processor"]["level"] == ("ok" if virtual else "note")
    if not virtual:
        assert json.loads(done.stdout)["mode"] == "emulated"
        assert "nested virtualization" in findings(done.stdout)["processor"]["advice"]


def test_missing_qemu_is_named_with_its_package(call, tmp_path):
    done = call("doctor", "--json", PATH=str(tmp_path))
    found = findings(done.stdout)["qemu"]
    assert "qemu-system-x86_64 is not installed" in found["found"]
    assert found["advice"] == "apt install qemu-system-x86"
    assert done.returncode == (0 if json.loads(done.stdout)["mode"] == "hardware" else 1)
    assert "gcc" in findings(done.stdout)["build_tools"]["found"]


@pytest.fixture
def installation(build, tmp_path):
    """A copy of podflare with templates of its own, and the recipes that they come from."""
    base = tmp_path / "installation"
    shutil.copytree(
        ROOT / "guest", tmp_path / "guest", ignore=shutil.ignore_patterns("__pycache__")
    )
    (base / "guest/templates").mkdir(parents=True)
    (base / "podflared").touch()
    shutil.copy(build / "podflare", base)

    def doctor() -> dict[str, str]:
        done = subprocess.run(
            [str(base / "podflare"), "doctor", "--json"],
            env=clean_env(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return findings(done.stdout)["templates"]

    return base, doctor


def test_templates_of_this_build(call, build):
    """What doctor says is what ls says."""
    found = findings(call("doctor", "--json").stdout)["templates"]
    lines = call("template", "ls").stdout.splitlines()[1:]
    rows = [re.split("  +", line) for line in itertools.takewhile(bool, lines)]
    states = {row[0]: row[-1] for row in rows}
    assert states["default"] == "ready"
    for name, state in states.items():
        assert name in found["found"]
        assert (name in found["advice"]) == (state in ("stale", "damaged", "not built"))


def test_templates_not_built_stale_or_damaged(build, installation):
    base, doctor = installation
    found = doctor()
    assert found["level"] == "note" and found["found"].startswith("ready: none; default is not built")
    assert found["advice"].startswith("podflare template build default")
    shutil.copytree(build / "guest/templates/default", base / "guest/templates/default", symlinks=True)
    recipe = base / "guest/templates/default/recipe"
    recipe.unlink()
    recipe.symlink_to(base.parent / "guest/images/default")
    found = doctor()
    assert found["level"] == "ok" and found["found"].startswith("ready: default")
    settings = recipe / "template.toml"
    settings.write_text(settings.read_text() + "vcpus = 1\n")
    found = doctor()
    assert found["level"] == "note" and "default is stale" in found["found"]
    assert found["advice"].startswith("podflare template build default")
    (base / "guest/templates/default/rootfs.erofs").unlink()
    assert "default is damaged" in doctor()["found"]


def test_templates_without_sources(build, installation):
    base, doctor = installation
    shutil.rmtree(base.parent / "guest")
    assert "guest/templates/default is missing: run make first" in doctor()["found"]
    shutil.copytree(build / "guest/templates/default", base / "guest/templates/default", symlinks=True)
    assert "built: default (whether" in doctor()["found"]


def test_port_in_use(call):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found = findings(call("doctor", "--json", "--addr", address).stdout)["port"]
    assert found["level"] == "note" and f"{address} is already in use" in found["found"]


def test_port_of_a_daemon_that_runs(call):
    """That is what one looks for most of the time: nothing to mend."""
    asked = []

    class Daemon(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"ok\n")

        def log_message(self, *_) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Daemon) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        for status, level, words in (
            (200, "ok", f"{address}: podflare serves there already"),
            (404, "note", f"{address} is already in use by another program"),
        ):
            found = findings(call("doctor", "--json", "--addr", address).stdout)["port"]
            assert found["level"] == level and words in found["found"]
        server.shutdown()
    assert asked == ["/v1/healthz"] * 2


def test_open_address_without_keys_is_pointed_out(call):
    found = findings(call("doctor", "--json", "--addr", "0.0.0.0:0").stdout)["port"]
    assert "PODFLARE_API_KEYS" in found["advice"]
    found = findings(call("doctor", "--json", "--addr", "0.0.0.0:0", PODFLARE_API_KEYS="k").stdout)
    assert found["port"]["advice"] == ""


def test_security_names_what_could_be_better(call):
    done = call("doctor", "--security", "--json")
    report = json.loads(done.stdout)
    assert set(report) == {"open", "findings"}
    assert report["open"] == sum(f["level"] != "ok" for f in report["findings"])
    assert done.returncode == (1 if report["open"] else 0)
    text = call("doctor", "--security")
    guide = (ROOT / "docs/hardening.md").read_text(encoding="utf-8")
    for finding in report["findings"]:
        assert finding["level"] != "fail" and bool(finding["advice"]) == (finding["level"] != "ok")
        assert f" {finding['name']} " in text.stdout
        assert f"**{finding['name']}**" in guide
    found = findings(call("doctor", "--security", "--json", "--addr", "0.0.0.0:7070").stdout)
    assert found["api"]["level"] == "note" and "TLS" in found["api"]["advice"]


def test_wrong_options(call):
    for args in (["--wrong"], ["extra"], ["--addr"]):
        done = call("doctor", *args)
        assert done.returncode == 2 and "podflare doctor --help" in done.stderr
    assert call("doctor", "--help").stdout.startswith("usage: podflare doctor")


def test_verbs(call):
    assert call("version").stdout.startswith("podflare 0.")
    assert call("--version").returncode == 0
    assert "serve" in call("help").stdout
    done = call("sevre")
    assert done.returncode == 2 and "no verb 'sevre'" in done.stderr
    assert call().returncode == 2
