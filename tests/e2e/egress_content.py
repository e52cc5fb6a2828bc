# SPDX-License-Identifier: Apache-2.0
"""What the servers of the egress tests have to offer: a package index with two wheels, a git repository,
a registry of npm with one package. All of it is made here."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile
from pathlib import Path

from egress_world import HttpServer

PACKAGE, MODULE, NEEDS = "podflare-sample", "podflare_sample", "podflare-sample-needs"
SAYING = "a wheel of the tests"


def make_wheel(name: str, code: str, requires: tuple[str, ...] = ()) -> tuple[str, bytes]:
    """The file name and contents of a wheel with one module."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    metadata += "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        f"{module}.py": code,
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = (
            base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        )
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2026, 1, 1, 0, 0, 0)), text)
    return f"{module}-1.0-py3-none-any.whl", out.getvalue()


def serve_index(server: HttpServer) -> None:
    """PEP 503 below /simple/, the files below /packages/."""
    wheels = {
        PACKAGE: make_wheel(
            PACKAGE,
            f"import podflare_sample_needs\nSAYING = {SAYING!r}\nNEEDS = podflare_sample_needs.VALUE\n",
            (NEEDS,),
        ),
        NEEDS: make_wheel(NEEDS, "VALUE = 42\n"),
    }
    top = "".join(f'<a href="/simple/{name}/">{name}</a>\n' for name in wheels)
    server.files["/simple/"] = (
        "text/html",
        f"<!DOCTYPE html><html><body>\n{top}</body></html>".encode(),
    )
    for name, (file, data) in wheels.items():
        digest = hashlib.sha256(data).hexdigest()
        page = f'<!DOCTYPE html><html><body><a href="/packages/{file}#sha256={digest}">{file}</a></body></html>'
        server.files[f"/simple/{name}/"] = "text/html", page.encode()
        server.files[f"/packages/{file}"] = "application/octet-stream", data


def serve_repository(server: HttpServer, tmp: Path) -> str:
    """A bare repository below /sample.git/, by the dumb protocol. The hash of its only commit."""
    work, bare = tmp / "work", tmp / "sample.git"
    env = {
        **os.environ,
        **{f"GIT_{who}_NAME": "Tests" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "tests@example.com" for who in ("AUTHOR", "COMMITTER")},
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(tmp),
    }

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], env=env, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init", "-q", "-b", "main", str(work))
    (work / "README").write_text("a repository of the tests\n")
    (work / "data.bin").write_bytes(os.urandom(200_000))
    git("-C", str(work), "add", ".")
    git("-C", str(work), "commit", "-q", "-m", "first")
    git("clone", "-q", "--bare", str(work), str(bare))
    git("-C", str(bare), "update-server-info")
    for path in bare.rglob("*"):
        if path.is_file():
            name = f"/sample.git/{path.relative_to(bare)}"
            server.files[name] = "application/octet-stream", path.read_bytes()
    return git("-C", str(bare), "rev-parse", "HEAD")


def serve_registry(server: HttpServer, base: str) -> None:
    """A package of npm, "podflare-sample"; base: the registry's own address."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in {
            "package/package.json": json.dumps(
                {"name": PACKAGE, "version": "1.0.0", "main": "i.js"}
            ),
            "package/i.js": f"module.exports = {json.dumps(SAYING)};\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    data = gzip.compress(out.getvalue(), mtime=0)
    file = f"/npm/{PACKAGE}/-/{PACKAGE}-1.0.0.tgz"
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()
    version = {
        "name": PACKAGE,
        "version": "1.0.0",
        "main": "i.js",
        "dist": {"tarball": f"{base}{file}", "integrity": integrity},
    }
    document = {"name": PACKAGE, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    server.files[f"/npm/{PACKAGE}"] = "application/json", json.dumps(document).encode()
    server.files[file] = "application/octet-stream", data
