# SPDX-License-Identifier: Apache-2.0
"""Files in and out: exact, streamed, completely or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import random
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest
from guest import py, sh
from served import wait_until

import podflare
from podflare import Sandbox


def listing(sandbox: Sandbox, directory: str) -> list[str]:
    return sh(sandbox, f"ls -A {directory}").split("\n")[:-1]


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1_000_003])
def test_both_ways_at_the_edges_of_frames(shared: Sandbox, size):
    data = random.Random(size).randbytes(size)
    info = shared.upload(data, "/tmp/edge")
    assert (info.path, info.size) == ("/tmp/edge", size)
    assert sh(shared, "sha256sum < /tmp/edge").split()[0] == hashlib.sha256(data).hexdigest()
    assert shared.download("/tmp/edge") == data


@pytest.mark.limit(600)
def test_a_large_file_streamed_both_ways(shared: Sandbox, tmp_path):
    local = tmp_path / "large"
    local.write_bytes(random.Random(1).randbytes(48 << 20))
    try:
        shared.upload(local, "/tmp/large")
        assert shared.download_to("/tmp/large", tmp_path / "back") == 48 << 20
    finally:
        sh(shared, "rm -f /tmp/large")
    assert (tmp_path / "back").read_bytes() == local.read_bytes()


def test_length_unknown_beforehand(shared: Sandbox):
    read, write = os.pipe()
    os.write(write, b"from a pipe")
    os.close(write)
    with open(read, "rb") as pipe:
        shared.upload(pipe, "/tmp/pipe")
    assert shared.download("/tmp/pipe") == b"from a pipe"


@pytest.mark.parametrize(
    "path",
    [
        "/tmp/with space & ampersand?#%41+.bin",
        "/tmp/ünïcödé/日本/🎈",
        "/tmp/a/b/c/d/e/made on the way",
        "/tmp/-dash",
        "/tmp/new\nline",
        "/tmp//double/../slash",
    ],
)
def test_names(shared: Sandbox, path):
    shared.upload(path.encode(), path)
    assert shared.download(path) == path.encode()
    assert py(shared, f"print(open({path!r}, newline='').read() == {path!r})") == "True\n"


def test_relative_paths_follow_the_interpreter(shared: Sandbox):
    py(shared, "import os; os.makedirs('/tmp/there', exist_ok=True); os.chdir('/tmp/there')")
    try:
        assert shared.upload(b"1", "here.txt").path == "/tmp/there/here.txt"
        assert shared.upload(b"2", "sub/here.txt").path == "/tmp/there/sub/here.txt"
        assert shared.download("sub/here.txt") == b"2"
        assert sh(shared, "cat /tmp/there/here.txt") == "1"
    finally:
        py(shared, "os.chdir('/home/user')")


def test_an_upload_belongs_to_the_user_and_replaces(shared: Sandbox):
    shared.upload(b"longer than the next", "/tmp/replaced")
    shared.upload(b"short", "/tmp/replaced")
    assert sh(shared, "cat /tmp/replaced; stat -c ' %U' /tmp/replaced") == "short user\n"


def test_special_files_are_refused_or_streamed(shared: Sandbox):
    sh(shared, "mkfifo /tmp/fifo 2>/dev/null || test -p /tmp/fifo")
    with pytest.raises(podflare.InvalidRequestError):
        shared.download("/tmp/fifo")
    # No size beforehand, yet a file.
    assert shared.download("/proc/self/limits").startswith(b"Limit")


@pytest.mark.parametrize("path", ["/tmp", "/tmp/", "/", "/home/user", "."])
def test_upload_to_a_directory(shared: Sandbox, path):
    before = listing(shared, "/tmp") + listing(shared, "/home/user")
    with pytest.raises(podflare.InvalidRequestError, match="directory") as e:
        shared.upload(b"x" * 200_000, path)
    assert e.value.code == "is_directory"
    assert listing(shared, "/tmp") + listing(shared, "/home/user") == before


def test_upload_through_a_file(shared: Sandbox):
    shared.upload(b"x", "/tmp/plain")
    with pytest.raises(podflare.PodflareError) as e:
        shared.upload(b"y", "/tmp/plain/below")
    assert e.value.status is not None and 400 <= e.value.status < 500
    assert shared.download("/tmp/plain") == b"x"


def test_download_of_a_directory(shared: Sandbox):
    with pytest.raises(podflare.InvalidRequestError, match="directory") as e:
        shared.download("/tmp")
    assert e.value.code == "is_directory"


def test_download_of_a_missing_file(shared: Sandbox, http: httpx.Client):
    for path in ("/tmp/missing", "missing", "/no/such/dir/x", "/tmp/missing/x"):
        with pytest.raises(podflare.RemoteFileNotFoundError) as e:
            shared.download(path)
        assert e.value.code == "file_not_found"
    reply = http.get(f"/v1/sandboxes/{shared.id}/files", params={"path": "/tmp/missing"})
    assert reply.status_code == 404
    assert reply.json()["code"] == "file_not_found" and "missing" in reply.json()["error"]


def test_the_users_rights_hold(shared: Sandbox):
    for path in ("/root/x", "/etc/x", "/sys/x"):
        with pytest.raises(podflare.PodflareError) as e:
            shared.upload(b"x", path)
        assert e.value.status == 403, path
    sh(shared, "sudo sh -c 'umask 077; echo secret > /tmp/of_root'")
    with pytest.raises(podflare.PermissionDeniedError) as e:
        shared.download("/tmp/of_root")
    assert e.value.code == "permission_denied"
    assert sh(shared, "sudo cat /tmp/of_root") == "secret\n"


@pytest.mark.parametrize("size", [3 << 20, 24 << 20])
def test_upload_to_a_full_disk(shared: Sandbox, size):
    # The image has no mount(8), and needs none.
    call = "sudo python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).{})'"
    mount = 'mount(b"none", b"/tmp/small", b"tmpfs", 0, b"size=1m,mode=1777")'
    sh(shared, f"mkdir -p /tmp/small && {call.format(mount)}")
    try:
        shared.upload(b"kept", "/tmp/small/kept")
        for path in ("/tmp/small/new", "/tmp/small/deep/er/new", "/tmp/small/kept"):
            with pytest.raises(podflare.DiskFullError) as e:
                shared.upload(b"x" * size, path)
            assert (e.value.status, e.value.code) == (413, "disk_full")
        # Nothing half-written is left, and what was there is as it was.
        assert sh(shared, "find /tmp/small -type f") == "/tmp/small/kept\n"
        assert shared.download("/tmp/small/kept") == b"kept"
        assert shared.run_code("print('alive')").stdout == "alive\n"
    finally:
        sh(shared, call.format('umount(b"/tmp/small")'))


@pytest.mark.parametrize("sent", [0, 1000, 1_000_000])
def test_a_client_that_leaves_in_the_middle_of_an_upload(shared: Sandbox, daemon, sent):
    sh(shared, "rm -rf /tmp/leave; mkdir /tmp/leave; echo old > /tmp/leave/target")
    url = urlsplit(daemon.url)
    with socket.create_connection((url.hostname, url.port), timeout=30) as raw:
        raw.sendall(
            f"PUT /v1/sandboxes/{shared.id}/files?path=/tmp/leave/target HTTP/1.1\r\n"
            f"Host: {url.netloc}\r\nContent-Length: 10000000\r\n\r\n".encode() + b"x" * sent
        )

    def only_the_target() -> bool:
        """Twice, some time apart: the first look may come before the half-written file."""
        if listing(shared, "/tmp/leave") != ["target"]:
            return False
        time.sleep(2)
        return listing(shared, "/tmp/leave") == ["target"]

    wait_until("the half-written file is gone", only_the_target, 30)
    assert shared.download("/tmp/leave/target") == b"old\n"


def test_a_client_that_leaves_in_the_middle_of_a_download(shared: Sandbox, daemon):
    sh(shared, "truncate -s 30M /tmp/sparse")
    url = urlsplit(daemon.url)
    for _ in range(3):
        with socket.create_connection((url.hostname, url.port), timeout=60) as raw:
            raw.sendall(
                f"GET /v1/sandboxes/{shared.id}/files?path=/tmp/sparse HTTP/1.1\r\n"
                f"Host: {url.netloc}\r\n\r\n".encode()
            )
            assert raw.recv(1000).startswith(b"HTTP/1.1 200")
    sh(shared, "rm /tmp/sparse")
    assert shared.run_code("print('alive')").stdout == "alive\n"


def test_several_transfers_beside_a_running_command(shared: Sandbox):
    """Streams of one sandbox do not wait for each other."""
    sh(shared, "rm -f /tmp/go")
    said, code = "", None
    for event in shared.run_code_stream(
        "import os, time\nprint('begun', flush=True)\n"
        "while not os.path.exists('/tmp/go'): time.sleep(0.05)\nprint('ended')"
    ):
        if event.type == "exit":
            code = event.code
            continue
        # Where output is cut into events says nothing: print() writes its newline by itself.
        said += event.data
        if said == "begun\n":
            shared.upload(b"a" * 100_000, "/tmp/beside")
            assert shared.download("/tmp/beside") == b"a" * 100_000
            shared.upload(b"", "/tmp/go")
    assert (said, code) == ("begun\nended\n", 0)


def test_path_is_required_and_checked(shared: Sandbox, http: httpx.Client):
    url = f"/v1/sandboxes/{shared.id}/files"
    for query in ("", "?path=", "?path=%00", "?path=/tmp/a%00b", "?path=" + "x" * 5000):
        for method in ("GET", "PUT"):
            reply = http.request(method, url + query, content=b"x" if method == "PUT" else None)
            assert reply.status_code == 400, (method, query[:20])
            assert reply.json()["code"] == "invalid_request"
            assert reply.json()["field"] == "path"


def test_upload_of_a_file_object_from_where_it_stands(shared: Sandbox):
    file = io.BytesIO(b"skipped, kept")
    file.seek(9)
    assert shared.upload(file, "/tmp/rest").size == 4
    assert shared.download("/tmp/rest") == b"kept"
