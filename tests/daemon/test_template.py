"""Templates: made once, on demand, in sizes; what fails and is made again."""

import json
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import BUILD, SANITIZED, TSAN, VCPUS, Daemon, at_once, make_guest, stdout_of, wait_for


def add_template(guest: Path, name: str, **meta: Any) -> Path:
    """A template in a guest directory, with an image of its own."""
    where = guest / "templates" / name
    where.mkdir(parents=True)
    image = bytearray((guest / "rootfs.erofs").read_bytes())
    image[5000 : 5000 + len(name)] = name.encode()
    (where / "rootfs.erofs").write_bytes(bytes(image))
    (where / "template.json").write_text(json.dumps({"name": name, **meta}))
    return where


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """A guest directory with two templates."""
    g = make_guest(tmp_path / "g")
    add_template(g, "default")
    add_template(g, "big", description="more", memory_mib=2048, vcpus=4, disk_mib=8192)
    return g


def make_image(guest: Path, path: Path, size: int) -> None:
    """A root image of so many bytes, of which all but the first page is a hole."""
    head = bytearray((guest / "rootfs.erofs").read_bytes()[:4096])
    head[1024 + 36 : 1024 + 40] = (size // 4096).to_bytes(4, "little")
    with open(path, "wb") as f:
        f.write(head)
        f.truncate(size)


def host_memory(key: str) -> int:
    """Bytes, as /proc/meminfo says."""
    (line,) = (l for l in Path("/proc/meminfo").read_text().splitlines() if l.startswith(f"{key}:"))
    return int(line.split()[1]) << 10


def templates(d: Daemon) -> dict[str, Any]:
    """By name."""
    return {t["name"]: t for t in d.http.get("/v1/templates").json()["templates"]}


def boots(d: Daemon) -> int:
    """How often a template's VM was started."""
    return d.log_text().count("template booting")


def test_from_the_guest_directory(start: Callable[..., Daemon], guest: Path) -> None:
    d = start(guest=guest)
    d.templates_ready()
    (t, big) = d.http.get("/v1/templates").json()["templates"]
    assert (t["name"], big["name"]) == ("default", "big")
    assert "description" not in t and big["description"] == "more"
    assert t["image_bytes"] == 3 << 20 and big["image_bytes"] == 3 << 20
    assert (t["default_memory_mib"], t["default_vcpus"], t["default_disk_mib"]) == (1024, VCPUS, 4096)
    assert big["vms"] == [], "nobody has used it"
    vm = t["vms"][0]
    assert vm.pop("boot_ms") > 0 and vm.pop("hot_pages") > 0
    assert vm == {"memory_mib": 1024, "vcpus": VCPUS, "disk_mib": 4096, "state": "ready", "pool": 0}
    o = d.http.post("/v1/sandboxes", json={"template": "big"}).json()
    assert (o["memory_mib"], o["vcpus"], o["disk_mib"]) == (2048, 4, 8192)
    info = d.info(o["id"])
    assert info["boot"] == [2048, 4, 8192]
    assert templates(d)["big"]["vms"][0]["state"] == "ready"


def test_each_has_its_own_image(start: Callable[..., Daemon], guest: Path) -> None:
    """The rest of an image is behind what the stand-in tells, so its head is changed."""
    image = bytearray((guest / "templates" / "big" / "rootfs.erofs").read_bytes())
    image[100:103] = b"big"
    (guest / "templates" / "big" / "rootfs.erofs").write_bytes(bytes(image))
    d = start(guest=guest)
    for name in ("default", "big"):
        root = d.info(d.create(template=name))["root"]
        assert (bytes.fromhex(root["head"])[100:103] == b"big") == (name == "big")
        assert root["seals"] == 0xF


def test_options(start: Callable[..., Daemon], guest: Path, tmp_path: Path) -> None:
    """Named ones replace those of the directory; the first is the default."""
    big = guest / "templates" / "big"
    shutil.copy(big / "rootfs.erofs", tmp_path / "an=image")
    d = start(
        guest=guest,
        args=["--template", f"big={big}/template.json={tmp_path}/an=image"],
    )
    assert list(templates(d)) == ["big"]
    assert d.http.post("/v1/sandboxes").json()["template"] == "big"
    r = d.http.post("/v1/sandboxes", json={"template": "default"})
    assert r.status_code == 400 and r.json()["field"] == "template"
    assert r.json()["error"] == 'unknown template "default"; there is: big'


def test_unknown_template(start: Callable[..., Daemon], guest: Path) -> None:
    d = start(guest=guest)
    r = d.http.post("/v1/sandboxes", json={"template": "nope"})
    assert r.json()["error"] == 'unknown template "nope"; there are: default, big'


def test_wrong_ones_of_the_directory_are_left_out(
    start: Callable[..., Daemon], guest: Path
) -> None:
    bad = {
        "no-json": None,
        "not-json": "{",
        "an-array": "[]",
        "other-name": '{"name": "x"}',
        "too-big": '{"name": "too-big", "memory_mib": 1}',
        "BadName": '{"name": "BadName"}',
        "twice": '{"name": "twice", "name": "twice"}',
        "wrong-type": '{"name": "wrong-type", "warmup": 5}',
    }
    for name, text in bad.items():
        where = guest / "templates" / name
        where.mkdir()
        if text is not None:
            (where / "template.json").write_text(text)
    # Nobody writes to these: who waited for it would wait for ever.
    where = add_template(guest, "fifo-json")
    (where / "template.json").unlink()
    os.mkfifo(where / "template.json")
    bad["fifo-json"] = None
    for name, make in (("fifo-image", os.mkfifo), ("dir-image", os.mkdir), ("no-image", None)):
        where = add_template(guest, name)
        (where / "rootfs.erofs").unlink()
        if make:
            make(where / "rootfs.erofs")
        bad[name] = None
    d = start(guest=guest)
    assert list(templates(d)) == ["default", "big"]
    for name in bad:
        assert f"template {name} is left out: " in d.log_text()


def test_wrong_options(daemon: Daemon, guest: Path) -> None:
    big = guest / "templates" / "big"
    good = f"big={big}/template.json={big}/rootfs.erofs"
    fifo = guest / "fifo"
    os.mkfifo(fifo)
    for args, words in (
        (["--template", "x"], "not NAME=JSON=IMAGE"),
        (["--template", "x==y"], "not NAME=JSON=IMAGE"),
        (["--template", "x=y="], "not NAME=JSON=IMAGE"),
        (["--template", f"../x={big}/template.json=i"], "is not a name of a template"),
        (["--template", f"{'x' * 64}={big}/template.json=i"], "is not a name of a template"),
        (["--template", f"other={big}/template.json=i"], 'name is \\"big\\", not \\"other\\"'),
        (["--template", "x=/no/such=i"], "cannot read /no/such"),
        (["--template", good, "--template", good], "--template big is given twice"),
        (["--template", good, "--image", "x"], "exclude each other"),
        (["--template", f"big={big}/template.json=/no/image"], "cannot open the root image"),
        (["--template", f"big={big}/template.json={fifo}"], "is not a file or block device"),
        (["--template", f"big={fifo}={big}/rootfs.erofs"], "is not a file"),
        (["--template", good, "--template", f"big={big}/template.json=/no/image"], "cannot open"),
        (["--image", str(fifo)], "is not a file or block device"),
    ):
        out = subprocess.run(
            [*daemon.argv, "--state", f"{daemon.tmp}/other", *args],
            env={k: v for k, v in os.environ.items() if "SAN_" in k},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert out.returncode in (1, 2) and words in out.stderr, (args, out.stderr)


def test_many_creates_wait_for_one_boot(start: Callable[..., Daemon]) -> None:
    d = start(mode="slow")
    replies = at_once(d, 12)
    assert [r.status_code for r in replies] == [200] * 12
    assert boots(d) == 1
    pids = {d.info(r.json()["id"])["pid"] for r in replies}
    assert len(pids) == 12


def test_all_who_wait_are_told_of_a_failure(start: Callable[..., Daemon]) -> None:
    d = start(mode="no-ready", env={"PODFLARE_TEMPLATE_TIMEOUT": "1"})
    replies = at_once(d, 8)
    assert {r.status_code for r in replies} == {503}
    assert {r.json()["code"] for r in replies} == {"template_failed"}
    assert boots(d) <= 2


def test_sizes_are_made_once(start: Callable[..., Daemon], guest: Path) -> None:
    d = start(guest=guest)
    d.templates_ready()
    sizes = [{"memory_mib": 256}, {"vcpus": 3}, {"disk_mib": 64}]
    for size in sizes:
        for _ in range(2):
            o = d.http.post("/v1/sandboxes", json=size).json()
            assert {k: o[k] for k in size} == size
            d.http.delete(f"/v1/sandboxes/{o['id']}")
    assert boots(d) == 4
    assert len(templates(d)["default"]["vms"]) == 4
    # The defaults said aloud are no other size.
    d.create(memory_mib=1024, vcpus=VCPUS, disk_mib=4096)
    assert boots(d) == 4


def test_the_number_of_sizes_is_bounded(start: Callable[..., Daemon]) -> None:
    d = start()
    d.templates_ready()
    ids = [d.create(memory_mib=200 + i) for i in range(8)]
    d.create(memory_mib=200)  # used again: not the oldest any more
    d.create(memory_mib=300)
    vms = templates(d)["default"]["vms"]
    assert len(vms) == 9 and vms[0]["memory_mib"] == 1024
    have = {v["memory_mib"] for v in vms}
    assert 201 not in have and {200, 300} <= have
    # What was forked from the one that went lives on.
    assert stdout_of(d.exec(ids[1], "echo alive")) == "alive"
    d.create(memory_mib=201)
    assert boots(d) == 11


def test_more_sizes_at_once_than_there_may_be(start: Callable[..., Daemon]) -> None:
    d = start(mode="slow")
    with ThreadPoolExecutor(10) as pool:
        calls = [
            pool.submit(
                httpx.post, f"{d.url}/v1/sandboxes", json={"memory_mib": 200 + i}, timeout=60
            )
            for i in range(10)
        ]
        replies = [c.result() for c in calls]
    assert sorted(r.status_code for r in replies) == [200] * 8 + [503] * 2
    late = [r.json() for r in replies if r.status_code == 503]
    assert "too many templates of other sizes are being made" in late[0]["error"]


def begin_sizes(d: Daemon, sizes: range, key: str = "") -> list[socket.socket]:
    """Creates of these sizes, each with a connection of its own; they are under way."""
    head = f"Authorization: Bearer {key}\r\n" if key else ""
    socks = []
    for mib in sizes:
        body = json.dumps({"memory_mib": mib}).encode()
        s = socket.create_connection(("127.0.0.1", d.port), timeout=60)
        s.sendall(
            f"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        socks.append(s)
        wait_for(lambda n=f" memory_mib={mib} ": n in d.log_text() or select.select(socks[-1:], [], [], 0)[0])
    return socks


class Hanging:
    """Template VMs of other sizes hang at their start, for as long as one is in it."""

    def __init__(self, d: Daemon) -> None:
        self.path, self.d = d.tmp / "vmm", d

    def __enter__(self) -> None:
        self.path.write_text(self.path.read_text().replace("--mode=normal", "--mode=no-ready"))

    def __exit__(self, *_: object) -> None:
        # Those that were started have read what it says.
        lines = [Path(f"/proc/{pid}/cmdline") for pid in self.d.children()]
        wait_for(lambda: all(b"fake_vmm" in line.read_bytes() for line in lines))
        self.path.write_text(self.path.read_text().replace("--mode=no-ready", "--mode=normal"))


def test_boots_that_nobody_waits_for_make_room(start: Callable[..., Daemon]) -> None:
    """Those of clients that have left go first, and their processes with them."""
    d = start()
    d.templates_ready()
    with Hanging(d):
        for s in begin_sizes(d, range(200, 208)):
            s.close()
    wait_for(lambda: d.log_text().count("ended=early") == 8)
    ids = [d.create(memory_mib=m) for m in range(500, 512)]
    assert stdout_of(d.exec(ids[0], "echo alive")) == "alive"
    have = sorted(v["memory_mib"] for v in templates(d)["default"]["vms"])
    assert have == [*range(504, 512), 1024]
    for sid in ids:
        d.http.delete(f"/v1/sandboxes/{sid}").raise_for_status()
    wait_for(lambda: len(d.children()) == 9)


def test_one_key_leaves_others_sizes(start: Callable[..., Daemon]) -> None:
    """It has half of them in the making at most, takes none from a key that has fewer, and sees its own."""
    d = start(env={"PODFLARE_API_KEYS": "a,b"})
    d.http.headers["Authorization"] = "Bearer b"
    d.templates_ready()
    with Hanging(d):
        waiting = begin_sizes(d, range(200, 208), "a")
        for s in waiting[4:]:
            assert b"are being made for this key" in s.recv(65536)
    d.create(memory_mib=500)
    for s in waiting:
        s.close()
    wait_for(lambda: d.log_text().count("ended=early") == 4)
    d.http.headers["Authorization"] = "Bearer a"
    for mib in range(300, 312):
        d.create(memory_mib=mib)
    assert {v["memory_mib"] for v in templates(d)["default"]["vms"]} == {*range(305, 312), 1024}
    d.http.headers["Authorization"] = "Bearer b"
    before = boots(d)
    vms = {v["memory_mib"]: v["state"] for v in templates(d)["default"]["vms"]}
    assert vms == {1024: "ready", 500: "ready"}
    d.create(memory_mib=500)
    d.create(memory_mib=311)
    assert boots(d) == before
    assert {v["memory_mib"] for v in templates(d)["default"]["vms"]} == {1024, 500, 311}


def test_a_template_that_dies_is_made_again(daemon: Daemon) -> None:
    daemon.templates_ready()
    (pid,) = daemon.children()
    sid = daemon.create()
    os.kill(pid, 9)
    wait_for(lambda: "template ended" in daemon.log_text())
    assert templates(daemon)["default"]["vms"][0]["state"] == "failed"
    assert stdout_of(daemon.exec(sid, "echo alive")) == "alive", "its children live on"
    assert daemon.create() != sid
    assert boots(daemon) == 2


def test_warm_up(start: Callable[..., Daemon], guest: Path) -> None:
    """The script runs before the fork, whatever its size; its children have what it made."""
    add_template(guest, "warm", warmup="#warm: set colour blue\n" + "# " + "x" * 400_000)
    d = start(guest=guest)
    sid = d.create(template="warm")
    assert d.info(sid)["state"]["vars"] == {"colour": "blue\n# " + "x" * 400_000}


def test_warm_up_that_fails(start: Callable[..., Daemon], guest: Path) -> None:
    add_template(guest, "broken", warmup="#warm: fail ImportError: no module named numpy")
    add_template(guest, "stuck", warmup="#warm: hang")
    d = start(guest=guest, env={"PODFLARE_TEMPLATE_TIMEOUT": "6"})
    o = d.http.post("/v1/sandboxes", json={"template": "broken"}).json()
    assert o["code"] == "template_failed"
    assert o["error"].startswith(
        "template broken cannot be made ready: its warm-up script ended with status 1: xxx"
    )
    assert o["error"].endswith("Traceback:\nImportError: no module named numpy")
    assert len(o["error"]) < 1200, "its end is enough"
    o = d.http.post("/v1/sandboxes", json={"template": "stuck"}).json()
    assert o["error"].endswith("it was not ready after 6 s")
    assert d.http.post("/v1/sandboxes").status_code == 200, "others are not affected"
    wait_for(lambda: len(d.children()) == 2)


def test_an_image_that_cannot_be_loaded(start: Callable[..., Daemon], guest: Path) -> None:
    """Known when it is needed, and tried again."""
    image = guest / "templates" / "big" / "rootfs.erofs"
    good = image.read_bytes()
    image.write_bytes(good[:-4096])
    d = start(guest=guest)
    d.templates_ready()
    replies = at_once(d, 5, template="big")
    for r in replies:
        assert r.status_code == 503 and r.json()["code"] == "template_failed"
        assert f"the root image {image} is cut off" in r.json()["error"]
    image.write_bytes(good)
    d.create(template="big")
    image.unlink()
    d.create(template="big", memory_mib=300)  # it is in memory already


def test_the_image_is_that_of_the_start(start: Callable[..., Daemon], guest: Path) -> None:
    """As its warm-up is: what is built meanwhile is seen after a restart, all of it or nothing."""
    image = guest / "templates" / "big" / "rootfs.erofs"
    old, new = guest / "old.erofs", guest / "new.erofs"
    for path, word in ((old, b"old"), (new, b"new")):
        data = bytearray(image.read_bytes())
        data[100:103] = word
        path.write_bytes(bytes(data))
    image.unlink()
    image.symlink_to(old)
    d = start(guest=guest)
    d.templates_ready()
    link = image.with_name("link")
    link.symlink_to(new)
    link.rename(image)
    old.unlink()
    root = d.info(d.create(template="big"))["root"]
    assert bytes.fromhex(root["head"])[100:103] == b"old"
    if os.geteuid() == 0:  # it is not dumpable
        held = [os.readlink(fd) for fd in Path(f"/proc/{d.proc.pid}/fd").iterdir()]
        assert not [path for path in held if ".erofs" in path], "it is in memory now"
    d.stop()
    d.start()
    root = d.info(d.create(template="big"))["root"]
    assert bytes.fromhex(root["head"])[100:103] == b"new"


def test_holes_of_an_image_take_no_memory(start: Callable[..., Daemon], guest: Path) -> None:
    size = 4 << 30
    if host_memory("MemAvailable") < size + (1 << 30):
        pytest.skip("the host has less than 5 GiB to spare")
    make_image(guest, guest / "templates" / "big" / "rootfs.erofs", size)
    d = start(guest=guest)
    d.templates_ready()
    root = d.info(d.create(template="big"))["root"]
    assert bytes.fromhex(root["head"])[:4] == bytes(4) and root["seals"] == 0xF
    assert templates(d)["big"]["image_bytes"] == size
    assert root["size"] == size and root["stored"] < 16 << 20


def test_an_image_that_is_more_than_the_host_has(start: Callable[..., Daemon], guest: Path) -> None:
    """Its holes take none at first, but guests may read them."""
    size = 64 << 30
    if host_memory("MemAvailable") >= size:
        pytest.skip("the host has memory for the largest image")
    image = guest / "templates" / "big" / "rootfs.erofs"
    make_image(guest, image, size)
    d = start(guest=guest)
    r = d.http.post("/v1/sandboxes", json={"template": "big"})
    assert r.status_code == 503 and r.json()["code"] == "template_failed"
    assert f"the root image {image} needs 65536 MiB of memory, and the host has" in r.json()["error"]
    d.create()


def test_a_size_of_a_template_is_not_asked_for(start: Callable[..., Daemon], guest: Path) -> None:
    """More memory than most hosts have, which a request could not have."""
    add_template(guest, "huge", memory_mib=65536)
    d = start(guest=guest)
    sid = d.create(template="huge")
    assert d.http.get(f"/v1/sandboxes/{sid}").json()["memory_mib"] == 65536


@pytest.mark.bounds
def test_the_loop_does_not_wait_for_an_image(start: Callable[..., Daemon], guest: Path) -> None:
    """A large image on slow storage takes its time; the daemon answers, and can be stopped."""
    image, size = guest / "templates" / "big" / "rootfs.erofs", 128 << 20
    make_image(guest, image, size)
    with open(image, "r+b") as f:
        f.seek(4096)
        f.write(b"\xff" * (size - 4096))
    env = {"LD_PRELOAD": str(BUILD / "tests" / "daemon" / "slow-reads.so")}
    if SANITIZED:  # it wants to be the first library, and need not be
        given = os.environ.get("ASAN_OPTIONS", "")
        env["ASAN_OPTIONS"] = f"{given}:verify_asan_link_order=0"
    d = start(guest=guest, env=env)
    d.templates_ready()
    assert TSAN or d.threads() == 1
    t = threading.Thread(target=at_once, args=(d, 1), kwargs={"template": "big"})
    t.start()
    wait_for(lambda: templates(d)["big"]["vms"])
    assert TSAN or d.threads() == 2, "it is read beside the loop, by one thread"
    slowest = 0.0
    for _ in range(20):
        begin = time.monotonic()
        assert d.http.get("/v1/healthz").text == "ok"
        slowest = max(slowest, time.monotonic() - begin)
    assert slowest < 0.5
    begin = time.monotonic()
    assert d.stop() == 0
    assert time.monotonic() - begin < 4
    t.join()


def test_stop_while_a_template_is_made(start: Callable[..., Daemon]) -> None:
    d = start(mode="no-ready")
    s = socket.create_connection(("127.0.0.1", d.port))
    s.sendall(b"POST /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    time.sleep(0.2)
    begin = time.monotonic()
    assert d.stop() == 0
    assert time.monotonic() - begin < 3
    assert b"podflared is stopping" in s.recv(4096)
    s.close()
