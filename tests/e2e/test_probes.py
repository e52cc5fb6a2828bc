# SPDX-License-Identifier: Apache-2.0
"""What root in a guest looks for, and must not find: a host's file, virtualization of its own, performance
counters, answers of the hypervisor. With modules of its own kernel, which the image does not have: an
attacker brings them along. (The network: test_network.py. Without a kernel in between: tests/guest/tiny.)"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Iterator

import pytest
from guest import load_modules, probe, sh
from served import Daemon, ExternalDaemon

from podflare import Client, Sandbox

as_user_and_root = pytest.mark.parametrize("root", [False, True], ids=["user", "root"])

# Flags of /proc/cpuinfo that a guest has no use for, by what they would give.
VIRTUALIZATION = {"vmx", "svm", "ept", "npt", "vpid", "nrip_save"}
COUNTERS = {"arch_perfmon", "pdcm", "perfctr_core", "perfctr_nb", "perfctr_llc", "perfmon_v2", "ibs"}
# What x86-64-v2 is made of, for which wheels of numpy and others are built; in the emulated host, too,
# where the kernel itself does without cx16.
COMMON = {"lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"}
CX16 = 1 << 13  # of CPUID 1's ecx
TRACES = {"intel_pt", "arch_lbr", "amd_lbr_v2", "bts", "dtes64"}

# perf_event_open(2): a counter of the processor, and one that the kernel keeps itself.
PERF = r"""
import ctypes, errno, json, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def opened(kind, config):
    attr = ctypes.create_string_buffer(struct.pack("<IIQ", kind, 128, config), 128)
    fd = libc.syscall(298, attr, 0, -1, -1, 0)
    if fd < 0:
        return errno.errorcode[ctypes.get_errno()]
    os.close(fd)
    return "opened"
print(json.dumps({
    "flags": [line.split(":")[1].split() for line in open("/proc/cpuinfo") if line.startswith("flags")],
    "processors": os.cpu_count(),
    "sources": sorted(os.listdir("/sys/bus/event_source/devices")),
    "software": opened(1, 0),
    "hardware": [opened(0, n) for n in range(10)],
    "raw": [opened(4, n) for n in (0xc0, 0x3c, 0x76)],
}))
"""


@as_user_and_root
def test_no_virtualization_and_no_counters(shared: Sandbox, root: bool) -> None:
    seen = probe(shared, PERF, root)
    assert len(seen["flags"]) == seen["processors"] > 0
    for flags in map(set, seen["flags"]):
        assert "hypervisor" in flags  # they are what they are taken for
        assert not flags & (VIRTUALIZATION | COUNTERS | TRACES)
        assert flags >= COMMON
    assert not {s for s in seen["sources"] if s.startswith(("cpu", "amd_", "ibs_", "intel_", "uncore"))}
    assert "software" in seen["sources"]
    if root:  # Debian's kernel allows nobody else to count at all
        assert seen["software"] == "opened"
        assert not {"opened", "EPERM", "EACCES"} & {*seen["hardware"], *seen["raw"]}
    else:
        assert "opened" not in (*seen["hardware"], *seen["raw"])


# Machine code in a process of its own: the signal that ends it, or what it returns in rax.
CODE = r"""
import ctypes, json, mmap, os, sys
def run(code):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        import faulthandler
        faulthandler.disable()
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex(code))
        fn = ctypes.CFUNCTYPE(ctypes.c_int64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        os.write(writer, str(fn()).encode())
        os._exit(0)
    os.close(writer)
    text = os.read(reader, 32)
    _, status = os.waitpid(pid, 0)
    return {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "value": text.decode()}
print(json.dumps({name: run(code) for name, code in %s.items()}))
"""
# mov $N, %eax; xor %ecx, %ecx; the instruction; ret
RDPMC = {
    "nothing": "b82a000000" "c3",
    "rdpmc": "b82a000000" "31c9" "0f33" "c3",
    "rdpmc-fixed": "b82a000000" "b900000040" "0f33" "c3",
}
HYPERCALLS = {
    f"{name}-{number}": f"b8{number:02x}000000" "31db" "31c9" "31d2" "31f6" f"{code}" "c3"
    for name, code in (("vmcall", "0f01c1"), ("vmmcall", "0f01d9"))
    for number in (0, 1, 5, 9, 10, 11, 12, 77)
}
# rbx belongs to the caller: push %rbx, ..., pop %rbx.
HYPERCALLS = {name: f"53{code[:-2]}5bc3" for name, code in HYPERCALLS.items()}
# push %rbx; mov $1, %eax; xor %ecx, %ecx; cpuid; mov %ecx, %eax; pop %rbx; ret
CPUID = {"ecx": "53" "b801000000" "31c9" "0fa2" "89c8" "5b" "c3"}


@as_user_and_root
def test_programs_have_cmpxchg16b(shared: Sandbox, root: bool) -> None:
    seen = probe(shared, CODE % CPUID, root)["ecx"]
    assert seen["signal"] == 0 and int(seen["value"]) & CX16


@as_user_and_root
def test_counters_cannot_be_read(shared: Sandbox, root: bool) -> None:
    seen = probe(shared, CODE % RDPMC, root)
    assert seen["nothing"] == {"signal": 0, "value": "42"}
    for name in ("rdpmc", "rdpmc-fixed"):
        assert seen[name] == {"signal": signal.SIGSEGV, "value": ""}, name


@as_user_and_root
def test_the_hypervisor_answers_no_process(shared: Sandbox, root: bool) -> None:
    """Calls are a kernel's: a process is told that it may not (-EPERM), or, by the instruction of the
    other kind of processor, has made a mistake."""
    seen = probe(shared, CODE % HYPERCALLS, root)
    assert seen.keys() == HYPERCALLS.keys()
    for name, result in seen.items():
        mistake = result["signal"] in (signal.SIGILL, signal.SIGSEGV) and result["value"] == ""
        assert mistake or result == {"signal": 0, "value": "-1"}, (name, result)
    assert [r for r in seen.values() if r["value"] == "-1"]  # one of the two is this processor's


@pytest.fixture(scope="module")
def own(daemon: Daemon, client: Client) -> Iterator[Sandbox]:
    """A sandbox whose kernel gets modules."""
    if isinstance(daemon, ExternalDaemon):
        pytest.skip("the daemon under test may have another kernel than this build")
    with Sandbox(client=client) as sandbox:
        yield sandbox


# Registers of processor 0 by the kernel's own instructions: refused is EIO.
MSR = r"""
import json, os, struct
fd = os.open("/dev/cpu/0/msr", os.O_RDWR)
def read(msr):
    try:
        return struct.unpack("<Q", os.pread(fd, 8, msr))[0]
    except OSError as e:
        return os.strerror(e.errno)
def write(msr, value):
    try:
        return os.pwrite(fd, struct.pack("<Q", value), msr)
    except OSError as e:
        return os.strerror(e.errno)
EFER = 0xC0000080
efer = read(EFER)
counters = {}
for name, select, counter in (
    ("k7", 0xC0010000, 0xC0010004), ("core", 0xC0010200, 0xC0010201), ("intel", 0x186, 0xC1),
):
    switched = write(select, 0x4300C0)  # instructions retired, of all
    first = read(counter)
    sum(range(300000))
    counters[name] = [switched, first, read(counter)]
    write(select, 0)
print(json.dumps({
    "efer": efer,
    "as it is": write(EFER, efer),
    "SVME": write(EFER, efer | 1 << 12),
    "after": read(EFER),
    "vmx": [read(msr) for msr in (0x480, 0x481, 0x48B)],
    "traces": [read(msr) for msr in (0x570, 0x1C9, 0xC0011030)],
    "clock": read(0x4B564D01),
    "steal": read(0x4B564D03),
    "hidden": [write(msr, 0) for msr in (0x11, 0x12, 0x4B564D02, 0x4B564D05, 0x4B564D06, 0x4B564D08)],
    "counters": counters,
}))
"""


def test_registers_of_the_processor(own: Sandbox, build: Path) -> None:
    load_modules(own, build, "msr")
    seen = probe(own, MSR, root=True)
    refused = "Input/output error"
    assert seen["efer"] & 0x500 == 0x500  # long mode: it is read from the processor
    assert seen["as it is"] == 8 and seen["SVME"] == refused and seen["after"] == seen["efer"]
    assert seen["vmx"] == [refused] * 3
    # Of KVM's own, those of what it shows, and no others.
    assert seen["clock"] & 1 == seen["steal"] & 1 == 1  # in use
    assert seen["hidden"] == [refused] * 6
    assert seen["traces"] == [refused] * 3
    for name, values in seen["counters"].items():
        assert values == [refused] * 3, name


def test_its_kernel_misses_no_register(own: Sandbox) -> None:
    """One that it uses without asking, and is refused, it complains of."""
    log = sh(own, "sudo dmesg 2>/dev/null || dmesg")
    assert "Command line:" in log and "kvm-clock" in log
    assert [line for line in log.splitlines() if "unchecked MSR access" in line] == []


MOUNTS = r"""
import json, os
def lines(path):
    with open(path) as f:
        return [line.split() for line in f]
print(json.dumps({
    "mounts": sorted({(m[0], m[2]) for m in lines("/proc/mounts")}),
    "init": sorted({(m[0], m[2]) for m in lines("/proc/1/mounts")}),
    "block": sorted(os.listdir("/sys/block")),
    "types": sorted(line[-1] for line in lines("/proc/filesystems")),
    "virtio": sorted(int(open(f"/sys/bus/virtio/devices/{d}/device").read(), 16)
                     for d in os.listdir("/sys/bus/virtio/devices")),
    "firmware": [p for p in ("/sys/firmware/qemu_fw_cfg", "/dev/hvc0", "/dev/vport0p1", "/dev/kvm",
                             "/dev/vhost-vsock", "/dev/fuse") if os.path.exists(p)],
}))
"""
# File systems of a kernel that lie in its own memory, or are views of it.
KERNELS = {"proc", "sysfs", "devtmpfs", "devpts", "tmpfs", "cgroup2", "mqueue", "rootfs", "ramfs"}
# Ways in which hypervisors pass on a directory of the host, and their modules.
SHARED = {"9p": ["9pnet_virtio", "9p"], "virtiofs": ["virtiofs"], "fuse": ["fuse"]}


@as_user_and_root
def test_no_file_of_the_host(shared: Sandbox, root: bool) -> None:
    """All that is mounted is the image, the sandbox's own disk, and what the kernel makes up."""
    seen = probe(shared, MOUNTS, root)
    assert seen["block"] == ["pmem0", "vda"]
    assert seen["virtio"] == [2, 19]  # the disk; vsock
    for mounts in (seen["mounts"], seen["init"]):
        assert not {m[1] for m in mounts} - KERNELS - {"overlay", "ext4", "erofs"}
        assert {m[0] for m in mounts if m[1] == "ext4"} <= {"/dev/vda"}
        assert {m[0] for m in mounts if m[1] == "erofs"} <= {"/dev/pmem0"}
        assert [m for m in mounts if m[1] == "overlay"]
    assert not set(SHARED) & set(seen["types"])
    assert seen["firmware"] == []


SHARE = r"""
import ctypes, errno, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs("/tmp/share", exist_ok=True)
seen = {}
for kind, tag, options in (
    ("9p", "host", "trans=virtio"), ("9p", "/", "trans=virtio"), ("9p", "127.0.0.1", "trans=tcp"),
    ("virtiofs", "host", ""), ("virtiofs", "/dev/root", ""),
):
    made = libc.mount(tag.encode(), b"/tmp/share", kind.encode(), 0, options.encode())
    seen[f"{kind} {tag}"] = "mounted" if made == 0 else errno.errorcode[ctypes.get_errno()]
print(json.dumps(seen))
"""


def test_no_directory_of_the_host_can_be_mounted(own: Sandbox, build: Path) -> None:
    """Root loads what its kernel has for it, and finds nobody who shares one."""
    loaded = {kind: load_modules(own, build, *names, optional=True) for kind, names in SHARED.items()}
    known = sh(own, "cut -f2 /proc/filesystems").split()
    for kind, outcome in probe(own, SHARE, root=True).items():
        name = kind.split()[0]
        assert outcome in ("ENODEV", "EINVAL", "ENOENT", "ECONNREFUSED", "ENETUNREACH"), kind
        assert (name in known) == loaded[name] and (loaded[name] or outcome == "ENODEV"), kind
