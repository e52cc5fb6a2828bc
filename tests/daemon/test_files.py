"""Upload and download: bytes, sizes, errors, back-pressure, broken-off transfers."""

import hashlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from conftest import SANITIZED, Daemon, stdout_of, wait_for


def files(d: Daemon, sid: str, path: str) -> str:
    """URL of a file."""
    return f"{d.url}/v1/sandboxes/{sid}/files?path={quote(path, safe='')}"


def test_there_and_back(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    for size in (0, 1, 7000, 8192, 65536, 65537, 1_000_000):
        data = os.urandom(size)
        target = tmp_path / f"f {size} ü&+%.bin"
        r = daemon.http.put(files(daemon, sid, str(target)), content=data)
        assert r.status_code == 200
        assert r.json() == {"path": str(target), "size": size}
        assert target.read_bytes() == data
        r = daemon.http.get(files(daemon, sid, str(target)))
        assert r.status_code == 200 and r.content == data
        assert r.headers["content-type"] == "application/octet-stream"
        assert r.headers["content-length"] == str(size)
    assert not list(tmp_path.glob("*.part"))


def test_a_chunked_body(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    pieces = [os.urandom(n) for n in (1, 100, 70_000, 3, 200_000)]

    def body() -> Iterator[bytes]:
        yield from pieces

    r = daemon.http.put(files(daemon, sid, f"{tmp_path}/f"), content=body())
    assert r.json()["size"] == sum(map(len, pieces))
    assert (tmp_path / "f").read_bytes() == b"".join(pieces)


def test_relative_paths_are_passed_on(daemon: Daemon) -> None:
    sid = daemon.create()
    r = daemon.http.put(files(daemon, sid, "podflare-test-relative"), content=b"x")
    assert r.json()["path"] == "/tmp/podflare-test-relative"
    os.unlink("/tmp/podflare-test-relative")


def test_plus_is_a_blank(daemon: Daemon, tmp_path: Path) -> None:
    """As forms and HTTP libraries encode it; a plus sign itself is %2B."""
    sid = daemon.create()
    url = f"{daemon.url}/v1/sandboxes/{sid}/files?x=1&path={tmp_path}/a+b%2Bc&y"
    assert daemon.http.put(url, content=b"1").json()["path"] == f"{tmp_path}/a b+c"


@pytest.mark.parametrize(
    "query,words",
    [
        ("", "path is missing"),
        ("?", "path is missing"),
        ("?path", "path is missing"),
        ("?path=", "path is missing"),
        ("?Path=/x", "path is missing"),
        ("?path=/a&path=/b", "more than once"),
        ("?path=/a%00b", "not valid"),
        ("?path=/a%", "not valid"),
        ("?path=/a%4", "not valid"),
        ("?path=/a%zz", "not valid"),
        ("?path=/a%ff", "not valid"),
        ("?path=/" + "x" * 4095, "longer than 4095 bytes"),
    ],
)
def test_bad_paths(daemon: Daemon, query: str, words: str) -> None:
    sid = daemon.create()
    for method, content in (("PUT", b"data"), ("GET", None)):
        url = httpx.URL(daemon.url).copy_with(raw_path=f"/v1/sandboxes/{sid}/files{query}".encode())
        r = daemon.http.request(method, url, content=content)
        assert r.status_code == 400
        assert r.json()["field"] == "path" and words in r.json()["error"]


def test_the_longest_path(daemon: Daemon, tmp_path: Path) -> None:
    """4095 bytes, each of them escaped: 12 KiB of request line, and a body behind it."""
    sid = daemon.create()
    path = str(tmp_path)
    while len(path.encode()) < 4000:
        path += "/" + "ü" * 60
        os.mkdir(path) if len(path.encode()) < 3500 else None
    path = os.path.join("/", *path.split("/")[:20])
    os.makedirs(path, exist_ok=True)
    path = (path + "/" + "ü" * 100)[:2000]
    escaped = "".join(f"%{b:02X}" for b in path.encode())
    url = httpx.URL(daemon.url).copy_with(
        raw_path=f"/v1/sandboxes/{sid}/files?path={escaped}".encode()
    )
    data = os.urandom(300_000)
    r = daemon.http.put(url, content=data)
    assert r.status_code == 200, r.text
    assert Path(path).read_bytes() == data
    assert daemon.http.get(url).content == data
    # At the very limit the guest says what it thinks of it.
    escaped = "%2F" + "%C3%BC" * 2047
    url = httpx.URL(daemon.url).copy_with(
        raw_path=f"/v1/sandboxes/{sid}/files?path={escaped}".encode()
    )
    assert daemon.http.get(url).status_code != 414


def test_errors_of_a_download(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    r = daemon.http.get(files(daemon, sid, f"{tmp_path}/missing"))
    assert r.status_code == 404
    assert r.json() == {
        "error": f"{tmp_path}/missing: no such file",
        "code": "file_not_found",
        "field": "path",
    }
    r = daemon.http.get(files(daemon, sid, str(tmp_path)))
    assert (r.status_code, r.json()["code"]) == (400, "is_directory")


def test_errors_of_an_upload(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    for size in (0, 10, 3_000_000):
        r = daemon.http.put(files(daemon, sid, str(tmp_path)), content=b"x" * size)
        assert (r.status_code, r.json()["code"]) == (400, "is_directory")
        assert r.json()["error"] == f"{tmp_path} is a directory"
    # In the middle of the body; the answer arrives although the client sends it all first.
    r = daemon.http.put(files(daemon, sid, f"{tmp_path}/full"), content=b"x" * 8_000_000)
    assert r.status_code == 413
    assert r.json() == {"error": "no space left in the sandbox", "code": "disk_full"}
    assert list(tmp_path.iterdir()) == []
    assert daemon.http.put(files(daemon, sid, f"{tmp_path}/ok"), content=b"1").status_code == 200


def test_an_upload_to_nowhere(daemon: Daemon) -> None:
    """An error before the body: small bodies are taken, large ones end the connection."""
    url = f"{daemon.url}/v1/sandboxes/sbx_{'0' * 32}/files?path=/x"
    r = daemon.http.put(url, content=b"x" * 5_000_000)
    assert r.status_code == 404
    out = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-T", "-", url],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.stdout == "404"
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.sendall(
        f"PUT /v1/sandboxes/sbx_{'0' * 32}/files?path=/x HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Length: 99999999999\r\n\r\n".encode()
    )
    assert s.recv(1000).startswith(b"HTTP/1.1 404")
    s.close()


def test_broken_downloads_are_not_whole(daemon: Daemon) -> None:
    sid = daemon.create()
    for path in ("/fake/broken", "/fake/short"):
        with pytest.raises(httpx.RemoteProtocolError):
            daemon.http.get(files(daemon, sid, path))
    # More than announced is cut off; the stream is not used again.
    assert daemon.http.get(files(daemon, sid, "/fake/long")).content == b"x" * 10
    r = daemon.http.get(files(daemon, sid, "/fake/unknown"))
    assert r.content == b"y" * 200_000 and "content-length" not in r.headers
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


def test_head_of_a_file(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    (tmp_path / "f").write_bytes(b"x" * 500_000)
    r = daemon.http.head(files(daemon, sid, f"{tmp_path}/f"))
    assert (r.status_code, r.headers["content-length"], r.content) == (200, "500000", b"")
    r = daemon.http.head(files(daemon, sid, f"{tmp_path}/g"))
    assert (r.status_code, r.content) == (404, b"")


@pytest.mark.bounds
def test_large_files(daemon: Daemon, tmp_path: Path) -> None:
    """Streamed both ways: no growth with the size."""
    sid = daemon.create()
    size = (50 if SANITIZED else 300) << 20
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    daemon.http.put(files(daemon, sid, f"{tmp_path}/warm"), content=block * 4)
    daemon.http.get(files(daemon, sid, f"{tmp_path}/warm"))
    before = daemon.rss_kib()
    peak = 0

    def body() -> Iterator[bytes]:
        nonlocal peak
        for i in range(size >> 20):
            data = i.to_bytes(4, "big") + block[4:]
            digest.update(data)
            peak = max(peak, daemon.rss_kib())
            yield data

    r = daemon.http.put(
        files(daemon, sid, f"{tmp_path}/big"),
        content=body(),
        headers={"content-length": str(size)},
    )
    assert r.json()["size"] == size
    back = hashlib.sha256()
    with daemon.http.stream("GET", files(daemon, sid, f"{tmp_path}/big")) as s:
        for chunk in s.iter_raw(1 << 20):
            back.update(chunk)
            peak = max(peak, daemon.rss_kib())
    assert back.digest() == digest.digest()
    assert peak - before < (20_000 if SANITIZED else 2_000), (before, peak)


@pytest.mark.bounds
def test_a_guest_that_does_not_take_the_upload(daemon: Daemon) -> None:
    """The client is held up; the daemon does not collect what the guest does not take."""
    sid = daemon.create()
    before = daemon.rss_kib()
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.sendall(
        f"PUT /v1/sandboxes/{sid}/files?path=/fake/stall HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Length: 1000000000\r\n\r\n".encode()
    )
    s.settimeout(1)
    sent = 0
    with pytest.raises(TimeoutError):
        while True:
            sent += s.send(b"x" * 1_000_000)
    assert sent < 50_000_000
    daemon.comes_to_rest()
    assert daemon.rss_kib() - before < (20_000 if SANITIZED else 3_000)
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"
    s.close()


@pytest.mark.bounds
def test_a_client_that_does_not_take_the_download(daemon: Daemon) -> None:
    sid = daemon.create()
    before = daemon.rss_kib()
    with daemon.http.stream("GET", files(daemon, sid, "/fake/endless")) as r:
        next(r.iter_raw(100))
        daemon.comes_to_rest()
        assert daemon.rss_kib() - before < (20_000 if SANITIZED else 3_000)
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"


def test_a_client_that_leaves_an_upload(daemon: Daemon, tmp_path: Path) -> None:
    """Nothing half written is left, nobody else is disturbed."""
    sid = daemon.create()
    fds = daemon.fds()
    s = socket.create_connection(("127.0.0.1", daemon.port))
    s.sendall(
        f"PUT /v1/sandboxes/{sid}/files?path={tmp_path}/f HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Length: 1000000\r\n\r\n".encode()
    )
    s.sendall(b"x" * 300_000)
    wait_for(lambda: list(tmp_path.iterdir()))
    s.close()
    wait_for(lambda: not list(tmp_path.iterdir()))
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive"
    wait_for(lambda: daemon.fds() <= fds + 1)


@pytest.mark.bounds
def test_clients_that_leave_at_once(daemon: Daemon, tmp_path: Path) -> None:
    """The last bytes and the end arrive together: the HTTP library alone would wait a minute."""
    sid = daemon.create()
    daemon.exec(sid, "true")
    fds = daemon.fds()
    for i in range(40):
        s = socket.create_connection(("127.0.0.1", daemon.port))
        s.sendall(
            f"PUT /v1/sandboxes/{sid}/files?path={tmp_path}/{i} HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Length: 1000000\r\n\r\n".encode() + b"x" * (1 + 997 * i)
        )
        s.close()
    for part in (b"GET /v1/heal", b"POST /v1/sandboxes HTTP/1.1\r\nHost: x", b"\r\n"):
        s = socket.create_connection(("127.0.0.1", daemon.port))
        s.sendall(part)
        s.close()
    wait_for(lambda: daemon.fds() <= fds, 5)
    wait_for(lambda: not list(tmp_path.iterdir()), 5)
    daemon.comes_to_rest()


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_the_vm_ends_in_a_transfer(daemon: Daemon, method: str) -> None:
    sid = daemon.create()
    if method == "PUT":
        r = daemon.http.put(files(daemon, sid, "/fake/kill"), content=b"x" * 3_000_000)
        assert r.status_code == 409
        assert r.json()["error"].startswith("sandbox ended: the virtual machine's process was")
    else:
        with pytest.raises(httpx.RemoteProtocolError):
            daemon.http.get(files(daemon, sid, "/fake/kill"))
    r = daemon.http.get(files(daemon, sid, "/x"))
    assert (r.status_code, r.json()["code"]) == (409, "sandbox_ended")


def test_delete_in_a_transfer(daemon: Daemon) -> None:
    sid = daemon.create()
    answers: list[httpx.Response] = []

    def put() -> None:
        answers.append(
            httpx.put(files(daemon, sid, "/fake/stall"), content=b"x" * 9_000_000, timeout=30)
        )

    t = threading.Thread(target=put)
    with daemon.http.stream("GET", files(daemon, sid, "/fake/endless")) as r:
        chunks = r.iter_raw(100_000)
        next(chunks)
        t.start()
        time.sleep(0.5)
        assert httpx.delete(f"{daemon.url}/v1/sandboxes/{sid}").status_code == 204
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in chunks:
                pass
    t.join()
    assert answers[0].status_code == 409
    assert answers[0].json() == {"error": "sandbox ended: deleted", "code": "sandbox_ended"}


def test_an_answer_before_the_end_of_the_upload(daemon: Daemon) -> None:
    """An agent that confirms what it cannot have is not believed."""
    sid = daemon.create()
    r = daemon.http.put(files(daemon, sid, "/fake/early-ok"), content=b"x" * 2_000_000)
    assert (r.status_code, r.json()["code"]) == (502, "agent_error")


def test_files_while_a_command_runs(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    body = {"code": f"while ! test -e {tmp_path}/go; do sleep 0.01; done; cat {tmp_path}/go"}
    body["language"] = "bash"
    with daemon.http.stream("POST", f"/v1/sandboxes/{sid}/exec", json=body) as r:
        httpx.put(files(daemon, sid, f"{tmp_path}/go"), content=b"went\n")
        assert json.loads(next(r.iter_lines()))["data"] == "went"


def test_expect_100_continue(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()

    def ask(path: str) -> tuple[socket.socket, bytes]:
        s = socket.create_connection(("127.0.0.1", daemon.port))
        s.sendall(
            f"PUT /v1/sandboxes/{sid}/files?path={path} HTTP/1.1\r\nHost: localhost\r\n"
            "Content-Length: 4\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        return s, s.recv(1000)

    s, got = ask(f"{tmp_path}/f")
    assert got == b"HTTP/1.1 100 Continue\r\n\r\n"
    s.sendall(b"data")
    assert s.recv(1000).startswith(b"HTTP/1.1 200")
    s.close()
    s, got = ask("")
    assert got.startswith(b"HTTP/1.1 400"), "refused before the body is sent"
    s.close()


def test_too_many_transfers(daemon: Daemon) -> None:
    """The number of streams into one guest is bounded; others are not affected."""
    sid, other = daemon.create(), daemon.create()
    socks = []
    for _ in range(70):
        s = socket.create_connection(("127.0.0.1", daemon.port))
        s.sendall(
            f"GET /v1/sandboxes/{sid}/files?path=/fake/endless HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        socks.append(s)
    heads = [s.recv(12) for s in socks]
    assert heads.count(b"HTTP/1.1 200") in (59, 60)
    assert heads.count(b"HTTP/1.1 429") == 70 - heads.count(b"HTTP/1.1 200")
    assert stdout_of(daemon.exec(other, "echo fine")) == "fine"
    for s in socks:
        s.close()
    wait_for(lambda: stdout_of(daemon.exec(sid, "echo free")) == "free")


def test_an_upload_is_resumed(daemon: Daemon, tmp_path: Path) -> None:
    sid = daemon.create()
    data = os.urandom(300_000)
    path = str(tmp_path / "f")
    url = files(daemon, sid, path) + f"&upload_id=a1&size={len(data)}"
    assert daemon.http.put(url).json() == {"path": path, "size": 0, "complete": False}
    # A connection that breaks in the middle of a body.
    host = httpx.URL(url)
    with socket.create_connection((host.host, host.port)) as s:
        target = f"{host.raw_path.decode()}&offset=0"
        s.sendall(
            f"PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        s.sendall(data[:100_000])
        wait_for(lambda: [one for one in tmp_path.iterdir() if one.stat().st_size > 50_000])
        r = daemon.http.put(url)
        assert r.status_code == 409 and r.json()["code"] == "upload_busy"
        assert r.json()["field"] == "upload_id"
    r = wait_for(lambda: r if (r := daemon.http.put(url)).status_code == 200 else None)
    have = r.json()["size"]
    assert 50_000 < have <= 100_000 and r.json()["complete"] is False
    r = daemon.http.put(f"{url}&offset={have}", content=data[have:200_000])
    assert r.json() == {"path": path, "size": 200_000, "complete": False}
    r = daemon.http.put(url + "&offset=150000", content=b"x")
    assert r.status_code == 409 and r.json()["code"] == "wrong_offset"
    assert r.json()["field"] == "offset" and "200000 bytes of 300000" in r.json()["error"]
    r = daemon.http.put(url + "&offset=200000", content=data[200_000:])
    assert r.json() == {"path": path, "size": len(data), "complete": True}
    assert (tmp_path / "f").read_bytes() == data


@pytest.mark.parametrize(
    "query,field,words",
    [
        ("upload_id=&size=1", "upload_id", "upload_id must be 1 to 32 of a-z and 0-9, given once"),
        ("upload_id=A&size=1", "upload_id", "must be"),
        ("upload_id=a%2f&size=1", "upload_id", "must be"),
        (f"upload_id={'a' * 33}&size=1", "upload_id", "must be"),
        ("upload_id=a&upload_id=b&size=1", "upload_id", "given once"),
        ("upload_id=a", "size", "size is missing"),
        ("upload_id=a&size=0", "size", "size must be an integer from 1 on, given once"),
        ("upload_id=a&size=-1", "size", "must be"),
        ("upload_id=a&size=1x", "size", "must be"),
        ("upload_id=a&size=1&size=1", "size", "given once"),
        ("upload_id=a&size=1000000000000000000", "size", "must be"),
        ("upload_id=a&size=5&offset=", "offset", "offset must be an integer from 0 on, given once"),
        ("upload_id=a&size=5&offset=-1", "offset", "must be"),
    ],
)
def test_uploads_that_make_no_sense(
    daemon: Daemon, tmp_path: Path, query: str, field: str, words: str
) -> None:
    sid = daemon.create()
    r = daemon.http.put(files(daemon, sid, f"{tmp_path}/f") + "&" + query, content=b"x")
    assert r.status_code == 400 and r.json()["field"] == field
    assert words in r.json()["error"], r.text
    assert not list(tmp_path.iterdir())
