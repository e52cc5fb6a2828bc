# SPDX-License-Identifier: Apache-2.0
"""The network claims: a guest has no way out, not even as root, and learns so at once."""

from __future__ import annotations

import pytest
from guest import probe, sh

from podflare import Sandbox

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
targets = [(2, p) for p in (1, 22, 80, 1024, 5555, 7070, 65535, 2**31, 2**32 - 2)]
targets += [(c, p) for c in (0, 1, 3, own) if c is not None and c != 2 for p in (1024, 5555)]
for cid, port in targets:
    start = time.monotonic()
    try:
        s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        s.settimeout(60)
        s.connect((cid, port))
        outcome = "connected"
    except OSError as e:
        outcome = errno.errorcode.get(e.errno, repr(e))
    seen.append([cid, port, outcome, time.monotonic() - start])
for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    try:
        s = socket.socket(socket.AF_VSOCK, kind)
        s.settimeout(60)
        s.connect((2, 1024))
        outcome = "connected"
    except OSError as e:
        outcome = errno.errorcode.get(e.errno, repr(e))
    seen.append([2, int(kind), outcome, 0])
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


def test_root_cannot_bring_up_a_way_out(shared: Sandbox):
    """What root makes in its own kernel leads nowhere: a default route over a made-up interface
    changes nothing outside."""
    before = sh(shared, "ls /sys/bus/virtio/devices | wc -l")
    shared.run_code(
        "sudo modprobe virtio_net; sudo modprobe dummy; sudo ip link add d0 type dummy && "
        "sudo ip addr add 192.0.2.2/24 dev d0 && sudo ip link set d0 up && "
        "sudo ip route add default via 192.0.2.1",
        language="bash",
    )
    r = shared.run_code("curl -sS -m 3 http://192.0.2.1/", language="bash")
    shared.run_code("sudo ip link del d0", language="bash")
    assert r.exit_code != 0 and r.stdout == ""
    assert sh(shared, "ls /sys/bus/virtio/devices | wc -l") == before
    assert sh(shared, "ls /sys/class/net") == "lo\n"


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
    for cid, port, outcome, seconds in probe(shared, VSOCK, root):
        assert outcome not in ("connected", "ETIMEDOUT"), (cid, port, outcome)
        assert seconds < 10, (cid, port, seconds)


def test_the_sandbox_still_talks_to_its_host(shared: Sandbox):
    """After all of the above."""
    assert shared.run_code("print('fine')").stdout == "fine\n"
