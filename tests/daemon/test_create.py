"""Sandboxes as forks of a template: what can go wrong in between, the pool, bursts."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import SANITIZED, Daemon, at_once, make_guest, stdout_of, wait_for

CONSOLE = "end of the guest's console:\n"


def test_more_memory_than_there_is(daemon: Daemon) -> None:
    """All that the host has is a promise like any other; a MiB more is none that could be kept."""
    with open("/proc/meminfo", encoding="ascii") as f:
        total = int(next(line for line in f if line.startswith("MemTotal:")).split()[1]) >> 10
    if total < 65536:
        r = daemon.http.post("/v1/sandboxes", json={"memory_mib": total + 1})
        assert r.status_code == 400, r.text
        assert r.json()["code"] == "invalid_request" and r.json()["field"] == "memory_mib"
        assert f"this host has {total} MiB of memory in all" in r.json()["error"]
        assert f"{total + 1} MiB cannot" in r.json()["error"]
        assert daemon.http.get("/v1/sandboxes").json() == {"sandboxes": []}
    most = min(total, 65536)
    sid = daemon.create(memory_mib=most)
    assert daemon.http.get(f"/v1/sandboxes/{sid}").json()["memory_mib"] == most


def test_the_pool_is_filled_behind_a_create_that_was_left(start: Callable[..., Daemon]) -> None:
    """It waits for the template's fork under way, whatever becomes of that."""
    d = start(mode="fork:slow 0.5", args=["--pool", "1"])
    d.create()
    with socket.create_connection(("127.0.0.1", d.port)) as s:
        s.sendall(b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        time.sleep(0.2)
    wait_for(lambda: pool_of(d) == 1)


def test_a_template_that_answers_no_fork(start: Callable[..., Daemon]) -> None:
    """It is made again when nothing more can be asked of it."""
    d = start(mode="fork:hang", env={"PODFLARE_CREATE_TIMEOUT": "1"})
    d.templates_ready()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: d.http.post("/v1/sandboxes"), range(16)))
    assert [r.status_code for r in answers] == [503] * 16
    wait_for(lambda: "does not answer what it was asked" in d.log_text(), 90)
    wait_for(lambda: len(d.children()) <= 1)
    assert "template ended" in d.log_text() and "does not answer its forks" in d.log_text()
    assert "killed by signal" not in d.log_text()
    d.http.post("/v1/sandboxes")
    assert d.log_text().count("template booting") == 2


@pytest.mark.parametrize(
    "how,reason",
    [
        ("error", "cannot fork the VMM: Cannot allocate memory"),
        ("lie self", "the virtual machine told of a child that is none"),
        ("lie init", "the virtual machine told of a child that is none"),
        ("lie zero", "the virtual machine told of a child that is none"),
        ("lie huge", "the virtual machine told of a child that is none"),
        ("hang", "it was not ready after 1 s"),
        ("silent", "it was not ready after 1 s"),
        ("renew-error", "the guest could not be renewed: cannot set the clock"),
        ("renew-close", "the guest's agent closed the connection while the sandbox started"),
        ("renew-garbage", "the guest's agent broke the protocol while the sandbox started"),
        ("refuse", "the guest's agent does not accept connections while the sandbox started"),
        ("child-dies", "the virtual machine's process exited with status 7"),
        ("child-exits", "KVM_CREATE_VM: Cannot allocate memory"),
    ],
)
def test_a_fork_fails(start: Callable[..., Daemon], how: str, reason: str) -> None:
    """With the reason; the template is as good as before, and nothing is left."""
    # What fails by itself has time for it, however busy the machine is.
    limit = "1" if "not ready" in reason else "60"
    d = start(mode=f"fork:{how}", env={"PODFLARE_CREATE_TIMEOUT": limit})
    d.templates_ready()
    d.http.post("/v1/sandboxes")
    wait_for(lambda: len(d.children()) == 1)
    fds = d.fds()
    for _ in range(3):
        r = d.http.post("/v1/sandboxes")
        assert r.status_code == 503, r.text
        assert r.json()["code"] == "create_failed"
        assert r.json()["error"] == f"the sandbox did not start: {reason}"
    assert d.http.get("/v1/sandboxes").json() == {"sandboxes": []}
    wait_for(lambda: len(d.children()) == 1)
    wait_for(lambda: d.fds() <= fds)
    assert d.log_text().count("template booting") == 1


@pytest.mark.parametrize("how", ["die", "stray", "unasked"])
def test_the_template_dies_in_a_fork(start: Callable[..., Daemon], how: str) -> None:
    """Also when a child was made that nobody was told of; the next create makes it again."""
    d = start(mode=f"fork:{how}")
    d.templates_ready()
    fds = d.fds()
    for i in range(3):
        r = d.http.post("/v1/sandboxes")
        assert r.status_code == 503, r.text
        assert r.json()["code"] == "create_failed"
        assert "killed by signal 9" in r.json()["error"] or how == "unasked"
        assert wait_for(lambda: d.log_text().count("template ended") == i + 1)
    wait_for(lambda: not d.children())
    wait_for(lambda: d.fds() <= fds)
    assert d.log_text().count("template booting") == 3


def test_a_pid_of_another_sandbox_is_refused(start: Callable[..., Daemon]) -> None:
    """A VMM that claims somebody else's process does not get it."""
    d = start()
    a, b = d.create(), d.create()
    pid = d.info(b)["pid"]
    d.exec(a, f"#fake:once fork lie {pid}")
    r = d.http.post(f"/v1/sandboxes/{a}/fork", json={"n": 1})
    assert r.status_code in (404, 503)
    if r.status_code == 503:
        assert "told of a child that is none" in r.json()["error"]
    assert stdout_of(d.exec(b, "echo alive")) == "alive"


@pytest.mark.parametrize("dies", [False, True])
def test_a_fresh_copy_of_another_is_refused(start: Callable[..., Daemon], dies: bool) -> None:
    """One that claims a child which another VM has just made, ahead of who made it."""
    d = start()
    a, b = d.create(), d.create()
    known = set(d.children())
    d.exec(b, "#fake:once fork late 2")
    with ThreadPoolExecutor() as pool:
        honest = pool.submit(d.http.post, f"/v1/sandboxes/{b}/fork", json={"n": 1})
        (pid,) = wait_for(lambda: set(d.children()) - known)
        d.exec(a, f"#fake:once fork lie {pid}")
        lie = pool.submit(httpx.post, f"{d.url}/v1/sandboxes/{a}/fork", json={"n": 1}, timeout=60)
        if dies:
            assert d.http.delete(f"/v1/sandboxes/{a}").status_code == 204
        r = honest.result()
        assert r.status_code == 200, r.text
        (child,) = r.json()["children"]
        assert lie.result().status_code in (404, 503)
    assert d.info(child)["pid"] == pid
    assert stdout_of(d.exec(b, "echo alive")) == "alive"


def test_told_late(start: Callable[..., Daemon]) -> None:
    """The child answers RENEW before its parent has told of it: not ready before both."""
    d = start(mode="fork:late 0.5")
    d.templates_ready()
    begin = time.monotonic()
    sid = d.create()
    assert time.monotonic() - begin > 0.45
    assert stdout_of(d.exec(sid, "echo up")) == "up"


def test_strays_are_reaped(start: Callable[..., Daemon]) -> None:
    d = start(mode="fork:stray")
    d.templates_ready()
    d.http.post("/v1/sandboxes")
    wait_for(lambda: not d.children())
    wait_for(lambda: "a virtual machine's process that nobody told of has ended" in d.log_text())


def test_leaving_while_the_parent_is_slow(start: Callable[..., Daemon]) -> None:
    """The request to fork is out: the child that comes of it must go."""
    d = start(mode="fork:late 1")
    d.templates_ready()
    socks = []
    for _ in range(4):
        s = socket.create_connection(("127.0.0.1", d.port))
        s.sendall(b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        socks.append(s)
    wait_for(lambda: len(d.children()) == 2)
    for s in socks:
        s.close()
    wait_for(lambda: d.log_text().count("ended=early") == 4)
    time.sleep(1)
    wait_for(lambda: len(d.children()) == 1, 15)
    assert d.http.get("/v1/sandboxes").json() == {"sandboxes": []}


@pytest.mark.bounds
def test_fifty_at_once(start: Callable[..., Daemon]) -> None:
    """More than are in flight to a VMM at a time; each gets its own."""
    d = start()
    replies = at_once(d, 50)
    assert [r.status_code for r in replies] == [200] * 50
    ids = [r.json()["id"] for r in replies]
    assert len(set(ids)) == 50
    assert len({d.info(i)["pid"] for i in ids}) == 50
    assert len({d.info(i)["renew"]["boot_id"] for i in ids}) == 50
    for i in ids:
        assert d.http.delete(f"/v1/sandboxes/{i}").status_code == 204
    assert len(d.children()) == 1


@pytest.mark.bounds
def test_two_hundred_lives(start: Callable[..., Daemon]) -> None:
    """Descriptors, processes and memory are back where they were."""
    d = start()
    for _ in range(3):
        d.http.delete(f"/v1/sandboxes/{d.create()}")
    fds, rss = d.fds(), d.rss_kib()
    for i in range(200):
        sid = d.create()
        if i % 20 == 0:
            assert stdout_of(d.exec(sid, f"echo {i}")) == str(i)
        assert d.http.delete(f"/v1/sandboxes/{sid}").status_code == 204
    wait_for(lambda: d.fds() <= fds)
    assert len(d.children()) == 1
    # With a sanitizer what was freed stays for a while: 200 KiB of each life.
    assert d.rss_kib() - rss < (90_000 if SANITIZED else 3_000)
    assert os.listdir(d.state / "disks") == []


def test_what_renew_says(daemon: Daemon) -> None:
    """Everything that makes a sandbox itself is new in each."""
    a, b = (daemon.info(daemon.create())["renew"] for _ in range(2))
    for key in ("id", "hostname", "entropy", "machine_id", "boot_id"):
        assert a[key] != b[key]
    assert a["kind"] == "create" and a["generation"] == 0 and a["reseed"] is True
    assert a["boot_id"][14] == "4" and a["boot_id"][19] in "89ab"
    assert abs(a["realtime_ns"] / 1e9 - time.time()) < 30


def test_the_time_is_that_of_the_child(start: Callable[..., Daemon]) -> None:
    """Not the time at which its fork was asked for, which may have waited for others."""
    d = start(mode="fork:slow 0.5")
    d.templates_ready()
    before = time.time_ns()
    assert d.info(d.create())["renew"]["realtime_ns"] >= before + 500_000_000


# --- pool -----------------------------------------------------------------------------------


def pool_of(d: Daemon) -> int:
    """Ready sandboxes of the first template."""
    vms = d.http.get("/v1/templates").json()["templates"][0]["vms"]
    return vms[0]["pool"] if vms else 0


def source(d: Daemon, **body: Any) -> str:
    """How a create was served."""
    o = d.http.post("/v1/sandboxes", json=body).json()
    assert d.http.get(f"/v1/sandboxes/{o['id']}").json()["source"] == o["source"]
    return o["source"]


def test_pool(start: Callable[..., Daemon]) -> None:
    d = start(args=["--pool", "3"])
    d.templates_ready()
    time.sleep(0.3)
    assert pool_of(d) == 0 and len(d.children()) == 1, "nobody has used it"
    assert source(d) == "fork"
    wait_for(lambda: pool_of(d) == 3)
    assert len(d.http.get("/v1/sandboxes").json()["sandboxes"]) == 1, "they are not seen"
    o = d.http.post("/v1/sandboxes", json={"metadata": {"a": "b"}}).json()
    assert o["source"] == "pool" and o["metadata"] == {"a": "b"}
    assert d.info(o["id"])["renew"]["id"] == o["id"]
    assert source(d, memory_mib=256) == "fork", "another size"
    assert len(d.children()) >= 5
    boots = d.log_text().count("template booting")
    replies = at_once(d, 8)
    assert [r.status_code for r in replies] == [200] * 8, "a burst past it costs forks"
    assert "fork" in {r.json()["source"] for r in replies}
    wait_for(lambda: pool_of(d) == 3)
    assert d.log_text().count("template booting") == boots == 2, "and never a boot"


def test_the_pools_of_several_templates(start: Callable[..., Daemon], tmp_path: Path) -> None:
    """They are filled in turn: one that is never full keeps no other one empty."""
    guest = make_guest(tmp_path / "g")
    for name in ("default", "other"):
        where = guest / "templates" / name
        where.mkdir(parents=True)
        shutil.copy(guest / "rootfs.erofs", where)
        (where / "template.json").write_text(json.dumps({"name": name}))
    d = start(guest=guest, args=["--pool", "20"])
    d.create(template="other")
    d.create(template="default", forkable=False)
    d.create(template="default")

    def filled() -> dict[str, int]:
        all_of = d.http.get("/v1/templates").json()["templates"]
        return {t["name"]: t["vms"][0]["pool"] for t in all_of}

    wait_for(lambda: filled()["other"] >= 3, 30)
    assert filled()["default"] < 12


def test_pool_by_environment(start: Callable[..., Daemon]) -> None:
    d = start(env={"PODFLARE_POOL_SIZE": "1"}, args=[])
    d.argv.remove("--pool")
    d.argv.remove("0")
    d.stop()
    d.start()
    d.create()
    wait_for(lambda: pool_of(d) == 1)


def test_pool_and_the_limit(start: Callable[..., Daemon]) -> None:
    """What is in the pool does not count; what is handed out does."""
    d = start(args=["--pool", "2", "--max-sandboxes", "2"])
    first = d.create()
    wait_for(lambda: pool_of(d) == 2)
    d.create()
    assert d.http.post("/v1/sandboxes").status_code == 429
    d.http.delete(f"/v1/sandboxes/{first}")
    d.create()
    assert d.http.post("/v1/sandboxes").status_code == 429


def test_one_of_the_pool_dies(start: Callable[..., Daemon]) -> None:
    d = start(args=["--pool", "1"])
    d.create()
    before = set(d.children())
    wait_for(lambda: pool_of(d) == 1)
    (pid,) = set(d.children()) - before
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "a ready sandbox of template default has ended" in d.log_text())
    wait_for(lambda: pool_of(d) == 1)
    assert source(d) == "pool"


def test_a_pool_that_cannot_be_filled(start: Callable[..., Daemon]) -> None:
    """It is tried again with pauses, and creates say what is wrong."""
    d = start(args=["--pool", "2"])
    d.create()
    wait_for(lambda: pool_of(d) == 2)
    (d.tmp / "vmm").write_text("#!/bin/sh\nexit 1\n")
    os.chmod(d.state / "disks", 0o500)
    os.rename(d.state / "disks", d.state / "gone")
    assert source(d) == "pool"
    assert source(d) == "pool"
    r = d.http.post("/v1/sandboxes")
    assert r.status_code == 503
    assert f"cannot make a layer of the disk in {d.state}/disks" in r.json()["error"]
    time.sleep(1.5)
    assert 1 <= d.log_text().count("a ready sandbox of template default has ended") <= 3
    os.rename(d.state / "gone", d.state / "disks")
    wait_for(lambda: pool_of(d) == 2, 20)


def test_stop_with_a_pool(start: Callable[..., Daemon]) -> None:
    d = start(args=["--pool", "3"])
    d.create()
    wait_for(lambda: pool_of(d) >= 1)
    assert d.stop() == 0
    rows = d.log_text().count("podflared is stopping")
    assert rows >= 3


def test_files_are_as_large_as_the_disk(start: Callable[..., Daemon]) -> None:
    """The kernel's limit, of each template VM and all that comes of it."""
    d = start()
    for mib in (64, 100):
        sid = d.create(disk_mib=mib)
        r = d.http.post(f"/v1/sandboxes/{sid}/fork", json={"n": 1})
        for one in (sid, *r.json()["children"]):
            limits = Path(f"/proc/{d.info(one)['pid']}/limits").read_text()
            (line,) = [x for x in limits.splitlines() if x.startswith("Max file size")]
            assert line.split()[3:5] == [str(mib << 20)] * 2
