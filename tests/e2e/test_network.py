# SPDX-License-Identifier: Apache-2.0
"""The network claims: a guest has no way out, not even as root, and learns so at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from guest import load_modules, probe, sh
from served import Daemon, ExternalDaemon

from podflare import Client, Sandbox

# Addresses of documentation and of well-known resolvers; with a network some would answer.
CONNECT = r"""
import errno, json, socket, time
seen = []
for family, kind, address in [
    (socket.AF_INET, socket.SOCK_STREAM, ("192.0.2.1", 80)),
    (socket.AF_INET, socket.SOCK_STREAM, ("8.8.8.8", 53)),
    (socket.AF_INET, socket.SOCK_STREAM, ("10.0.2.2", 22)),
    (socket.AF_INET, socket.SOCK_STREAM, ("169.254.169.254", 80)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("8.8.8.8", 53)),
    (socket.AF_INET, socket.SOCK_DGRAM, ("255.255.255.255", 67)),
    (socket.AF_INET6, socket.SOCK_STREAM, ("2001:db8::1", 80)),
    (socket.AF_INET6, socket.SOCK_DGRAM, ("2001:4860:4860::8888", 53)),
    (socket.AF_INET6, socket.SOCK_DGRAM, ("ff02::1", 5353)),
]:
    start = time.monotonic()
    try:
        s = socket.socket(family, kind)
        s.settimeout(60)
        if kind == socket.SOCK_DGRAM:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            s.sendto(b"x", address)
        else:
            s.connect(address)
        outcome = "sent"
    except OSError as e:
        outcome = errno.errorcode.get(e.errno, repr(e))
    seen.append([address[0], kind, outcome, time.monotonic() - start])
print(json.dumps(seen))
"""

INTERFACES = r"""
import json, os, socket
def read(path):
    with open(path) as f:
        return f.read()
print(json.dumps({
    "sys": sorted(os.listdir("/sys/class/net")),
    "index": [name for _, name in socket.if_nameindex()],
    "dev": [line.split(":")[0].strip() for line in read("/proc/net/dev").splitlines()[2:]],
    "routes": read("/proc/net/route").splitlines()[1:],
    "routes6": sorted({line.split()[9] for line in read("/proc/net/ipv6_route").splitlines()})
               if os.path.exists("/proc/net/ipv6_route") else None,
    "addresses6": sorted({line.split()[5] for line in read("/proc/net/if_inet6").splitlines()})
               if os.path.exists("/proc/net/if_inet6") else None,
    "virtio": [int(read(f"/sys/bus/virtio/devices/{d}/device"), 16)
               for d in os.listdir("/sys/bus/virtio/devices")],
    "pci": os.listdir("/sys/bus/pci/devices") if os.path.isdir("/sys/bus/pci/devices") else [],
    "usb": os.listdir("/sys/bus/usb/devices") if os.path.isdir("/sys/bus/usb/devices") else [],
}))
"""

PACKET = r"""
import errno, json, socket
seen = {}
for name, make in {
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)),
    "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
}.items():
    try:
        s = make()
        if name == "packet":
            sent = []
            for index, interface in socket.if_nameindex():
                if interface != "lo":
                    s.bind((interface, 0))
                    s.send(b"\xff" * 60)
                    sent.append(interface)
            outcome = sent
        else:
            s.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", ("192.0.2.1", 0))
            outcome = "sent"
    except OSError as e:
        outcome = errno.errorcode.get(e.errno, repr(e))
    seen[name] = outcome
print(json.dumps(seen))
"""

# struct sockaddr_vm by the socket module; the second number is the time.
VSOCK = r"""
import errno, fcntl, json, socket, struct, time
try:
    with open("/dev/vsock", "rb") as f:
        own = struct.unpack("I", fcntl.ioctl(f, 0x7B9, b"\0" * 4))[0]
except OSError:
    own = None
seen = []
stream = socket.SOCK_STREAM
targets = [(2, p, stream) for p in (1, 22, 80, 1024, 5555, 5556, 7070, 65535, 2**31, 2**32 - 2)]
targets += [(c, p, stream) for c in (0, 1, 3, own) if c is not None and c != 2 for p in (1024, 5555)]
targets += [(2, p, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET) for p in (1024, 5556)]
for cid, port, kind in targets:
    start = time.monotonic()
    try:
        s = socket.socket(socket.AF_VSOCK, kind)
        s.settimeout(60)
        s.connect((cid, port))
        outcome = "connected"
    except TimeoutError:
        outcome = "ETIMEDOUT"
    except OSError as e:
        outcome = errno.errorcode.get(e.errno, repr(e))
    seen.append([cid, port, int(kind), outcome, time.monotonic() - start])
print(json.dumps(seen))
"""

DNS = r"""
import json, socket, time
seen = []
for name in ("example.com", "www.example.org", "metadata.google.internal"):
    start = time.monotonic()
    try:
        outcome = str(socket.getaddrinfo(name, 443))
    except socket.gaierror as e:
        outcome = "gaierror"
    seen.append([name, outcome, time.monotonic() - start])
print(json.dumps(seen))
"""

as_user_and_root = pytest.mark.parametrize("root", [False, True], ids=["user", "root"])


def test_root_is_root(shared: Sandbox):
    """Without this, the tests as root would prove nothing."""
    assert sh(shared, "id -u; sudo id -u") == "1000\n0\n"


@as_user_and_root
def test_no_interface_but_lo_and_no_device_that_could_be_one(shared: Sandbox, root):
    seen = probe(shared, INTERFACES, root)
    assert seen["sys"] == seen["index"] == seen["dev"] == ["lo"]
    assert seen["routes"] == []
    # Of IPv6 what the kernel has for lo, where it is on.
    assert seen["routes6"] in (["lo"], None) and seen["addresses6"] in (["lo"], None)
    assert seen["pci"] == [] and seen["usb"] == []
    # Virtio device 2 is the disk, 19 is vsock, the streams of the host; 1 would be a network card.
    assert sorted(seen["virtio"]) == [2, 19]


@as_user_and_root
def test_nothing_can_be_sent_over_ip(shared: Sandbox, root):
    for address, kind, outcome, seconds in probe(shared, CONNECT, root):
        assert outcome in ("ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT", "EHOSTUNREACH"), address
        assert seconds < 10, (address, seconds)


def test_no_packet_and_raw_sockets_for_the_user(shared: Sandbox):
    assert probe(shared, PACKET) == {"packet": "EPERM", "raw": "EPERM"}


def test_packet_and_raw_sockets_of_root_reach_nothing(shared: Sandbox):
    seen = probe(shared, PACKET, root=True)
    # The socket may exist (or the kernel may not know the family); there is nothing to send on.
    assert seen["packet"] in ([], "EAFNOSUPPORT")
    assert seen["raw"] == "ENETUNREACH"


# Root gives its kernel interfaces and a default route over each, and looks who answers. What is sent goes
# nowhere but into these interfaces: their own counters, and what a program reads of the tunnel, say so.
WAYS = r"""
import errno, fcntl, json, os, socket, struct, subprocess, time
def ip(*words):
    subprocess.run(["ip", *words], check=True)
def counted(name, what):
    with open(f"/sys/class/net/{name}/statistics/{what}") as f:
        return int(f.read())
def attempt(address, family=socket.AF_INET):
    seen = []
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(family, kind) as s:
            s.settimeout(3)
            try:
                s.connect((address, 53))
                s.send(b"\0" * 12)
                seen.append("answered" if s.recv(100) else "closed")
            except OSError as e:
                seen.append(errno.errorcode.get(e.errno, type(e).__name__))
    return seen
def way(name, address, far):
    ip("addr", "add", f"{address}/24", "dev", name)
    ip("link", "set", name, "up")
    ip("route", "add", "default", "via", far, "dev", name)
    before = counted(name, "tx_packets")
    with open("/proc/net/route") as f:
        default = [line.split()[0] for line in f if line.split()[1] == "00000000"]
    seen = {"default": default, "outcomes": [attempt(to) for to in (far, "8.8.8.8", "10.0.2.2")]}
    seen["sent"] = counted(name, "tx_packets") - before
    seen["received"] = counted(name, "rx_packets")
    return seen
seen = {}
ip("link", "add", "d0", "type", "dummy")
seen["dummy"] = way("d0", "192.0.2.2", "192.0.2.1")
# The same over IPv6. Nobody can say whether an address is in use where nobody hears the question.
ip("-6", "addr", "add", "2001:db8::2/64", "dev", "d0", "nodad")
ip("-6", "route", "add", "default", "via", "2001:db8::1", "dev", "d0")
with open("/proc/net/ipv6_route") as f:
    seen["routes6"] = sorted({line.split()[9] for line in f})
before = counted("d0", "tx_packets")
seen["dummy6"] = [attempt(to, socket.AF_INET6) for to in ("2001:db8::1", "2001:4860:4860::8888")]
seen["sent6"] = counted("d0", "tx_packets") - before
seen["received6"] = counted("d0", "rx_packets")
ip("link", "del", "d0")

if not os.path.exists("/dev/net/tun"):
    os.makedirs("/dev/net", exist_ok=True)
    os.mknod("/dev/net/tun", 0o600 | 0o020000, os.makedev(10, 200))
tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"t0", 0x1001))  # TUNSETIFF: IFF_TUN, no header
seen["tun"] = way("t0", "198.51.100.2", "198.51.100.1")
packets = []
while True:
    try:
        packets.append(os.read(tun, 2000))
    except BlockingIOError:
        break
seen["tun"]["sent"] = len(packets)  # its counter counts what was read
seen["to"] = sorted({socket.inet_ntoa(p[16:20]) for p in packets if p[0] >> 4 == 4})
os.close(tun)

# Over lo, as far as its kernel lets it: to itself.
ip("route", "add", "203.0.113.0/24", "dev", "lo")
seen["lo"] = attempt("203.0.113.7")
ip("route", "del", "203.0.113.0/24", "dev", "lo")
seen["left"] = sorted(os.listdir("/sys/class/net"))
print(json.dumps(seen))
"""


@pytest.mark.limit(400)
def test_root_cannot_bring_up_a_way_out(daemon: Daemon, client: Client, build: Path):
    """What root makes in its own kernel leads nowhere, with all the drivers that it could bring along:
    there is no device for them."""
    if isinstance(daemon, ExternalDaemon):
        pytest.skip("the daemon under test may have another kernel than this build")
    with Sandbox(client=client) as own:
        load_modules(own, build, "virtio_net", "dummy", "tun")
        assert {"virtio_net", "dummy", "tun"} <= set(sh(own, "cut -d' ' -f1 /proc/modules").split())
        assert sorted(probe(own, INTERFACES)["virtio"]) == [2, 19]
        assert probe(own, INTERFACES)["sys"] in (["lo"], ["dummy0", "lo"])  # which it makes itself
        seen = probe(own, WAYS, root=True)
        for name, interface in (("dummy", "d0"), ("tun", "t0")):
            assert seen[name]["default"] == [interface] and seen[name]["sent"] >= 6, seen
            assert seen[name]["received"] == 0, seen
            for outcomes in seen[name]["outcomes"]:
                assert set(outcomes) <= {"TimeoutError", "ETIMEDOUT", "EHOSTUNREACH"}, seen
        # That routes over IPv6 are seen where there are any.
        assert seen["routes6"] == ["d0", "lo"]
        assert seen["sent6"] > 0 and seen["received6"] == 0, seen
        for outcomes in seen["dummy6"]:
            assert set(outcomes) <= {"TimeoutError", "ETIMEDOUT", "EHOSTUNREACH"}, seen
        # All of it came to the program that made the tunnel.
        assert {"198.51.100.1", "8.8.8.8", "10.0.2.2"} <= set(seen["to"])
        assert "answered" not in seen["lo"], seen
        assert set(seen["left"]) <= {"lo", "dummy0"}


def test_names_are_not_found_at_once(shared: Sandbox):
    for name, outcome, seconds in probe(shared, DNS):
        assert outcome == "gaierror", name
        assert seconds < 10, (name, seconds)


def test_localhost_works(shared: Sandbox):
    """lo is a real interface: servers and clients inside one sandbox find each other."""
    code = """
        import socket, threading
        server = socket.create_server(("localhost", 0))
        def answer():
            connection, _ = server.accept()
            connection.sendall(b"hello")
            connection.close()
        threading.Thread(target=answer).start()
        print(socket.create_connection(("localhost", server.getsockname()[1])).recv(9))
        server.close()
    """
    assert shared.run_code(code).stdout == "b'hello'\n"


@pytest.mark.limit(400)
@pytest.mark.parametrize(
    "language, code",
    [
        ("bash", "pip install requests"),
        ("python", "!pip install requests"),
    ],
)
def test_pip_says_why_it_cannot(shared: Sandbox, language, code):
    start = "import time; t0 = time.monotonic()" if language == "python" else None
    if start:
        shared.run_code(start)
    r = shared.run_code(code, language=language)
    assert "no network" in r.stdout + r.stderr
    assert r.exit_code != 0
    # pip alone takes a second or two to start natively, twenty times that when emulated.
    assert r.duration_ms is not None and r.duration_ms < 180_000


def test_pip_in_a_virtual_environment_says_so_too(shared: Sandbox):
    r = shared.run_code(
        "cd /tmp && python3 -m venv --system-site-packages --without-pip v && "
        "v/bin/python -m pip install requests",
        language="bash",
    )
    assert r.exit_code != 0 and "no network" in r.stdout + r.stderr


@as_user_and_root
def test_vsock_to_the_host_is_refused(shared: Sandbox, root):
    """The one virtio device beside the disk carries streams that the host opens, and none that the guest opens."""
    tried = probe(shared, VSOCK, root)
    assert {(2, 5555), (2, 5556)} <= {(cid, port) for cid, port, *_ in tried}
    for cid, port, kind, outcome, seconds in tried:
        assert outcome.startswith("E") and outcome != "ETIMEDOUT", (cid, port, kind, outcome)
        assert seconds < 10, (cid, port, kind, seconds)


def test_the_sandbox_still_talks_to_its_host(shared: Sandbox):
    """After all of the above."""
    assert shared.run_code("print('fine')").stdout == "fine\n"
