"""Start and stop of the daemon, creates that fail, crashes, restarts."""

import os
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from conftest import DAEMON, Daemon, make_guest, stdout_of, wait_for
from readable import assert_others_are_readable, readable

CONSOLE = "end of the guest's console:\n"


RENEW = "setting the guest's clock and names failed: "


@pytest.mark.parametrize(
    "mode,reason,hint",
    [
        ("exit-boot", "KVM_CREATE_VM: Operation not supported", None),
        ("die", "the virtual machine's process was killed by signal 9 (Killed)", None),
        ("exit-early", "the virtual machine's process exited with status 3", None),
        (
            "fail-step",
            "the guest failed to start at step 3",
            "[    0.1] Linux version\nagent: starting\nagent: mount /dev/pmem0: No such device",
        ),
        ("no-ready", "it was not ready after 1 s", "agent: starting\nstill booting"),
        ("silent", "it was not ready after 1 s", "agent: starting"),
        ("refuse", RENEW + "the guest's agent does not accept connections", "agent: starting"),
        ("renew-error", RENEW + "cannot set the clock", "agent: starting"),
        ("renew-close", RENEW + "the guest's agent closed the connection", "agent: starting"),
        ("renew-garbage", RENEW + "the guest's agent broke the protocol", "agent: starting"),
        ("warm-error", "starting the Python session failed: the session is dead", None),
        ("pause-error", "it cannot be paused: a vCPU does not stop", None),
        ("garbage", "the virtual machine's process was killed by signal 9 (Killed)", None),
        ("flood", "the virtual machine's process was killed by signal 9 (Killed)", None),
    ],
)
def test_a_template_fails(
    start: Callable[..., Daemon], mode: str, reason: str, hint: str | None
) -> None:
    """The create says why; the next one tries again."""
    d = start(mode=mode, env={"PODFLARE_TEMPLATE_TIMEOUT": "1"})
    for _ in range(2):
        r = d.http.post("/v1/sandboxes")
        assert r.status_code == 503, r.text
        o = r.json()
        assert o["code"] == "template_failed"
        assert o["error"] == f"template default cannot be made ready: {reason}", o
        if hint:
            assert o["hint"].startswith(CONSOLE) and o["hint"].endswith(hint), o
        else:
            assert "hint" not in o or "agent" in o["hint"]
        vms = d.http.get("/v1/templates").json()["templates"][0]["vms"]
        assert [(v["state"], v["reason"]) for v in vms] == [("failed", reason)]
    assert d.http.get("/v1/sandboxes").json() == {"sandboxes": []}
    wait_for(lambda: not d.children())
    fds = d.fds()
    assert d.http.post("/v1/sandboxes").status_code == 503
    wait_for(lambda: d.fds() <= fds)


def test_create_without_a_vmm_program(start: Callable[..., Daemon], tmp_path: Path) -> None:
    d = start(args=["--vmm", str(tmp_path / "missing")])
    o = d.http.post("/v1/sandboxes").json()
    assert o["error"] == (
        f"template default cannot be made ready: cannot start the VMM {tmp_path}/missing: "
        "No such file or directory"
    )


def test_create_without_kvm(start: Callable[..., Daemon]) -> None:
    d = start(args=["--kvm", "/dev/podflare-no-such"])
    o = d.http.post("/v1/sandboxes").json()
    assert o["error"].endswith("cannot open /dev/podflare-no-such: No such file or directory")


@pytest.mark.bounds
def test_creates_side_by_side(start: Callable[..., Daemon]) -> None:
    d = start(mode="fork:slow-renew 1")
    ids: list[str] = []
    begin = time.monotonic()
    threads = [
        threading.Thread(
            target=lambda: ids.append(httpx.post(f"{d.url}/v1/sandboxes", timeout=30).json()["id"])
        )
        for _ in range(6)
    ]
    for t in threads:
        t.start()
    assert httpx.get(f"{d.url}/v1/healthz").text == "ok", "nobody waits for the boots"
    for t in threads:
        t.join()
    assert len(set(ids)) == 6
    assert time.monotonic() - begin < 4, "one second each, not one after the other"


def leave_a_create(d: Daemon) -> socket.socket:
    """A create whose client can leave."""
    s = socket.create_connection(("127.0.0.1", d.port))
    s.sendall(b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    return s


def test_a_client_that_leaves_a_create(start: Callable[..., Daemon]) -> None:
    """Nobody knows the id: the VM ends. The template stays."""
    d = start(mode="fork:slow-renew 2")
    d.templates_ready()
    s = leave_a_create(d)
    wait_for(lambda: len(d.children()) == 2)
    s.close()
    wait_for(lambda: len(d.children()) == 1)
    assert "the client left before it was ready" in d.log_text()


def test_a_client_that_leaves_while_the_template_is_made(start: Callable[..., Daemon]) -> None:
    d = start(mode="slow", args=["--max-sandboxes", "1"])
    leave_a_create(d).close()
    d.templates_ready()
    assert len(d.children()) == 1
    d.create()  # its place is free


def test_the_limit_of_sandboxes(start: Callable[..., Daemon]) -> None:
    d = start(args=["--max-sandboxes", "2"])
    first = d.create()
    d.create()
    r = d.http.post("/v1/sandboxes")
    assert r.status_code == 429 and r.headers["retry-after"] == "1"
    assert r.json()["code"] == "too_many_sandboxes"
    d.http.delete(f"/v1/sandboxes/{first}")
    d.create()


@pytest.mark.bounds
def test_stop(start: Callable[..., Daemon]) -> None:
    """SIGTERM: streams end with a word, VMs are gone, status 0, quickly."""
    d = start()
    sid = d.create()
    body = {"code": "echo on; sleep 60", "language": "bash"}
    with httpx.stream("POST", f"{d.url}/v1/sandboxes/{sid}/exec", json=body) as r:
        lines = r.iter_lines()
        next(lines)
        pids = d.children()
        begin = time.monotonic()
        d.proc.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert "podflare: sandbox ended: podflared is stopping" in rest[0]
    assert '"type":"exit","data":-1' in rest[1]
    assert d.proc.wait(10) == 0
    assert time.monotonic() - begin < 2
    assert pids and not any(Path(f"/proc/{p}").exists() for p in pids)


def test_stop_under_policy_tests(start: Callable[..., Daemon]) -> None:
    """They need no sandbox, and come again and again on connections that are kept."""
    d = start()
    over = threading.Event()

    def ask() -> None:
        body = {"host": "a.test", "allow": ["a.test"]}
        with httpx.Client(base_url=d.url, timeout=20) as http, suppress(httpx.HTTPError):
            while not over.is_set():
                r = http.post("/v1/policy/test", json=body)
                assert r.status_code in (200, 429, 503), r.text

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    d.proc.send_signal(signal.SIGTERM)
    status = d.proc.wait(20)
    over.set()
    for thread in threads:
        thread.join()
    assert status == 0, d.log_text()[-2000:]
    assert "is not gone yet" not in d.log_text()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGHUP])
def test_stop_by_other_signals(start: Callable[..., Daemon], sig: int) -> None:
    d = start()
    d.create()
    assert d.stop(sig) == 0


def test_stop_while_booting_and_uploading(start: Callable[..., Daemon]) -> None:
    d = start(mode="fork:slow-renew 2")
    sid = d.create()
    up = socket.create_connection(("127.0.0.1", d.port))
    up.sendall(
        f"PUT /v1/sandboxes/{sid}/files?path=/fake/stall HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Length: 1000000000\r\n\r\n".encode() + b"x" * 100_000
    )
    results: list[httpx.Response] = []
    t = threading.Thread(
        target=lambda: results.append(httpx.post(f"{d.url}/v1/sandboxes", timeout=30))
    )
    t.start()
    wait_for(lambda: len(d.children()) == 3)
    begin = time.monotonic()
    assert d.stop() == 0
    assert time.monotonic() - begin < 4
    t.join()
    assert results[0].status_code == 503
    assert results[0].json()["error"] == ("the sandbox did not start: podflared is stopping")
    up.close()


@pytest.mark.bounds
def test_kill_9_leaves_nothing(start: Callable[..., Daemon]) -> None:
    d = start()
    ids = [d.create() for _ in range(3)]
    pids = [d.info(i)["pid"] for i in ids]
    d.exec(ids[0], "sleep 4242.28 >/dev/null 2>&1 &")
    assert d.stop(signal.SIGKILL) == -9
    wait_for(lambda: not any(Path(f"/proc/{p}").exists() for p in pids))
    subprocess.run(["pkill", "-f", "sleep 4242[.]28"], check=False)
    # The same state directory serves again, and remembers.
    d.start()
    assert "3 sandboxes of an earlier podflared had not been closed" in d.log_text()
    for i in ids:
        o = d.http.get(f"/v1/sandboxes/{i}").json()
        assert (o["state"], o["ended_reason"]) == ("ended", "podflared was restarted")
        r = d.http.post(f"/v1/sandboxes/{i}/exec", json={"code": "1"})
        assert r.status_code == 409
        assert r.json()["error"] == "sandbox ended: podflared was restarted"
        assert d.http.delete(f"/v1/sandboxes/{i}").status_code == 204
        assert d.http.delete(f"/v1/sandboxes/{i}").status_code == 204
        assert d.http.get(f"/v1/sandboxes/{i}").status_code == 404
    assert d.http.get("/v1/sandboxes").json() == {"sandboxes": []}


def test_ids_after_a_restart(start: Callable[..., Daemon]) -> None:
    d = start()
    deleted, ended, alive = d.create(metadata={"a": "b"}), d.create(), d.create()
    d.http.delete(f"/v1/sandboxes/{deleted}")
    d.exec(ended, "#fake:poweroff")
    assert d.stop() == 0
    d.start()
    assert d.http.get(f"/v1/sandboxes/{deleted}").status_code == 404
    assert d.http.delete(f"/v1/sandboxes/{deleted}").status_code == 204
    assert d.http.get(f"/v1/sandboxes/{ended}").json()["ended_reason"] == "the guest powered off"
    assert d.http.get(f"/v1/sandboxes/{alive}").json()["ended_reason"] == "podflared is stopping"
    assert d.http.delete(f"/v1/sandboxes/sbx_{'1' * 32}").status_code == 404


def test_old_rows_are_dropped(start: Callable[..., Daemon]) -> None:
    d = start()
    sid = d.create()
    d.http.delete(f"/v1/sandboxes/{sid}")
    d.stop()
    db = sqlite3.connect(d.state / "podflare.db")
    db.execute("UPDATE sandboxes SET ended_ms = ended_ms - 91 * 86400000")
    db.commit()
    db.close()
    d.start()
    wait_for(lambda: d.http.delete(f"/v1/sandboxes/{sid}").status_code == 404, 60)


def run(args: list[str], **env: str) -> tuple[int, str]:
    """Runs the daemon where it must not start: exit status and stderr."""
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS"):
        if name in os.environ:
            env[name] = os.environ[name]
    out = subprocess.run(
        [DAEMON, *args], env=env, capture_output=True, text=True, timeout=10, check=False
    )
    return out.returncode, out.stderr


def base_args(tmp: Path) -> list[str]:
    """Options that would do."""
    guest = tmp / "guest"
    if not guest.exists():
        make_guest(guest)
    return [
        "--addr",
        "127.0.0.1:0",
        "--state",
        f"{tmp}/s",
        "--guest",
        str(guest),
        "--vmm",
        "/bin/true",
    ]


def test_refuses_to_start(daemon: Daemon, tmp_path: Path) -> None:
    args = base_args(tmp_path)
    for addr in ("0.0.0.0:0", "[::]:0", "192.0.2.1:7070"):
        code, text = run([*args, "--addr", addr])
        assert code == 2 and "without keys" in text and "PODFLARE_API_KEYS" in text
        code, text = run(args[2:], PODFLARE_HOSTD_ADDR=addr)
        assert code == 2 and "without keys" in text
    for bad, words in (
        (["--addr", "nonsense"], "not HOST:PORT"),
        (["--addr", "example.com:80"], "not an IPv4 address"),
        (["--addr", "127.0.0.1:99999"], "not a number from 0 to 65535"),
        (["--max-sandboxes", "0"], "not a number from 1"),
        (["--frobnicate"], "unknown option --frobnicate"),
        (["extra"], 'unexpected argument "extra"'),
        (["--state"], "--state needs a value"),
    ):
        code, text = run([*args, *bad])
        assert code == 2 and words in text, text
    code, text = run([*args, "--addr", f"127.0.0.1:{daemon.port}"])
    assert code == 1 and "Address already in use" in text
    code, text = run([*args, "--state", str(daemon.state)])
    assert code == 1 and "another podflared uses the state directory" in text
    code, text = run([*args, "--state", "/proc/x"])
    assert code == 1 and "cannot make the state directory /proc/x" in text
    state = tmp_path / "of others"
    state.mkdir()
    state.chmod(0o770)
    code, text = run([*args, "--state", str(state)])
    assert code == 1 and f"others may write to the state directory {state}" in text
    if os.geteuid() == 0:
        state.chmod(0o700)
        os.chown(state, 12345, 12345)
        code, text = run([*args, "--state", str(state)])
        assert code == 1 and "belongs to another user (12345, and this is 0)" in text
    assert list(state.iterdir()) == []
    for name, value in (
        ("PODFLARE_LOG_FORMAT", "xml"),
        ("PODFLARE_AUTH_DISABLED", "yes"),
        ("PODFLARE_CREATE_TIMEOUT", "soon"),
        ("PODFLARE_API_KEYS", "good,b ad"),
    ):
        code, text = run(args, **{name: value})
        assert code == 2 and name in text


def test_open_addresses_that_are_allowed(start: Callable[..., Daemon]) -> None:
    keyed = start(args=["--addr", "127.0.0.1:0"], env={"PODFLARE_API_KEYS": "k"})
    assert keyed.http.get("/v1/sandboxes").status_code == 401
    for args, env in (
        (["--addr", "0.0.0.0:0", "--trust-forward"], {}),
        (["--addr", "0.0.0.0:0"], {"PODFLARE_AUTH_DISABLED": "1"}),
        (["--addr", "[::1]:0"], {}),
        (["--addr", "localhost:0"], {}),
    ):
        proc = subprocess.Popen(
            [*keyed.argv, "--state", f"{keyed.tmp}/other", *args],
            env={**env, **{k: v for k, v in os.environ.items() if "SAN_" in k}},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert proc.stdout.readline().startswith("podflared: ready on http://")
        proc.terminate()
        assert proc.wait(10) == 0
        proc.stdout.close()


def test_bad_guest_files(tmp_path: Path) -> None:
    args = base_args(tmp_path)
    guest = tmp_path / "guest"
    good = {p.name: p.read_bytes() for p in guest.iterdir()}

    def expect(words: str) -> None:
        code, text = run(args)
        assert code == 1 and words in text, text
        for name, data in good.items():
            (guest / name).write_bytes(data)

    (guest / "vmlinux").unlink()
    expect("cannot open the kernel")
    (guest / "vmlinux").write_bytes(b"bzImage?" * 10)
    expect("is not an uncompressed 64-bit vmlinux")
    (guest / "vmlinux").write_bytes(b"\x7fE")
    expect("is not an uncompressed 64-bit vmlinux")
    (guest / "initramfs.cpio").write_bytes(b"")
    expect("is empty")
    (guest / "rootfs.erofs").write_bytes(b"x" * 100_000)
    expect("is not an erofs image")
    (guest / "rootfs.erofs").write_bytes(b"x" * 100)
    expect("is not an erofs image")
    (guest / "rootfs.erofs").write_bytes(good["rootfs.erofs"][:-4096])
    expect("is cut off")
    code, text = run([*args, "--image", str(tmp_path)])
    assert code == 1 and "is not a file or block device" in text


def test_image_elsewhere_and_longer(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """As on a block device: only what belongs to the image is given to guests."""
    guest = make_guest(tmp_path / "g")
    image = bytearray((guest / "rootfs.erofs").read_bytes())
    image[5000:5006] = b"marker"
    struct.pack_into("<I", image, 1024 + 36, 2 << 20 >> 12)
    (tmp_path / "disk").write_bytes(bytes(image) + b"z" * (5 << 20))
    (guest / "rootfs.erofs").unlink()
    d = start(guest=guest, args=["--image", str(tmp_path / "disk")])
    info = d.info(d.create())
    assert info["root"]["size"] == 2 << 20


def test_help_and_version() -> None:
    for arg, words in (("--help", "usage: podflared"), ("--version", "podflared 0.")):
        out = subprocess.run([DAEMON, arg], capture_output=True, text=True, check=True)
        assert out.stdout.startswith(words)


@pytest.mark.bounds
def test_many_lives(daemon: Daemon) -> None:
    """Nothing is left behind by sandboxes that come and go."""
    daemon.http.delete(f"/v1/sandboxes/{daemon.create()}")
    fds, rss = daemon.fds(), daemon.rss_kib()
    for i in range(25):
        sid = daemon.create()
        assert stdout_of(daemon.exec(sid, f"echo {i}")) == str(i)
        assert daemon.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    wait_for(lambda: daemon.fds() <= fds)
    assert daemon.rss_kib() - rss < 10_000
    assert len(daemon.children()) == 1, "the template"


def test_a_guest_that_halts(start: Callable[..., Daemon]) -> None:
    """Its streams close and nobody is there any more: known soon, not with the next command."""
    d = start(env={"PODFLARE_PONG_WITHIN": "1"})
    sid = d.create()
    ev = d.exec(sid, "#fake:halt")
    assert ev[-1]["data"] == -1
    begin = time.monotonic()
    wait_for(lambda: d.http.get(f"/v1/sandboxes/{sid}").json()["state"] == "ended", 5)
    assert time.monotonic() - begin < 4
    o = d.http.get(f"/v1/sandboxes/{sid}").json()
    assert o["ended_reason"] == "a connection broke, and the guest does not answer any more"
    r = d.http.post(f"/v1/sandboxes/{sid}/exec", json={"code": "1"})
    assert r.status_code == 409


def test_the_disk_of_the_host_fails(daemon: Daemon) -> None:
    sid = daemon.create()
    text = "the host could not read or write the sandbox's disk: No space left on device"
    ev = daemon.exec(sid, "#fake:disk 28")
    assert [e["data"] for e in ev] == [f"podflare: {text}", 0]
    ev = daemon.exec(sid, "#fake:disk 28", rich=True)[1:]
    assert (ev[0]["type"], ev[0]["data"]) == ("notice", text)
    assert daemon.http.get(f"/v1/sandboxes/{sid}").json()["disk_errors"] == 2


@pytest.mark.parametrize("own,theirs", [(0, 300), (250, 550), (900, 1000), (1000, 1000)])
def test_virtual_machines_go_first(start: Callable[..., Daemon], own: int, theirs: int) -> None:
    """When the host is short of memory the kernel ends VMs and their copies, not the daemon."""

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    if score(os.getpid()) > own:
        pytest.skip("these tests run with a higher one")
    d = start(prefix=["sh", "-c", f'echo {own} >/proc/self/oom_score_adj && exec "$@"', "sh"])
    sid = d.create()
    d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 2}).raise_for_status()
    assert score(d.proc.pid) == own
    pids = d.children()
    assert len(pids) == 4 and {score(pid) for pid in pids} == {theirs}


@pytest.mark.parametrize("name", ["lock", "podflare.db", "podflare.db-wal"])
def test_links_in_the_state_directory_lead_nowhere(tmp_path: Path, name: str) -> None:
    """Whoever has put them there: nothing is made or opened where they lead."""
    state = tmp_path / "links"
    state.mkdir(mode=0o700)
    (state / name).symlink_to(tmp_path / "victim")
    code, text = run([*base_args(tmp_path), "--state", str(state)])
    assert code == 1, text
    assert not (tmp_path / "victim").exists()


def test_a_link_to_the_state_directory(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Is its user's own business."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    d = start(args=["--state", str(tmp_path / "link")])
    assert d.exec(d.create(), "echo x")[0]["data"] == "x"
    assert (tmp_path / "elsewhere/podflare.db").exists()


def test_its_own_user_cannot_look_into_it(start: Callable[..., Daemon]) -> None:
    """Not dumpable: keys and secrets are in its memory. Root is here without what makes it more than a
    user; another process shows what that can read."""
    as_user = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []

    assert_others_are_readable(as_user)
    d = start(prefix=as_user)
    assert d.exec(d.create(), "echo x")[0]["data"] == "x"
    assert readable(as_user, d.proc.pid) == []


def test_its_descriptors_are_told(daemon: Daemon) -> None:
    """What /proc tells root only."""
    daemon.templates_ready()
    wait_for(lambda: len(daemon.children()) == 1)  # its rehearsal has gone
    text = daemon.http.get("/v1/metrics").text
    told = {name: int(n) for name, n in re.findall(r"^process_(open|max)_fds (\d+)$", text, re.M)}
    assert told["open"] == daemon.fds()
    limits = Path(f"/proc/{daemon.proc.pid}/limits").read_text()
    assert told["max"] == int(re.search(r"^Max open files +(\d+)", limits, re.M)[1])


def test_a_log_that_nobody_reads(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """Its pipe is full after some hundred requests: the next ones are answered all the same."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        d = start(prefix=["sh", "-c", f'exec 2>"{fifo}"; exec "$@"', "sh"])
        for _ in range(1500):
            assert d.http.get("/v1/healthz").status_code == 200
        text = os.read(reader, 1 << 20)
        assert 0 < text.count(b"http_request") < 1500
        d.http.get("/v1/healthz")

        def said() -> bool:
            try:
                return b"lines of the log were lost" in os.read(reader, 1 << 20)
            except BlockingIOError:  # it comes behind the answer
                return False

        wait_for(said)
    finally:
        os.close(reader)
