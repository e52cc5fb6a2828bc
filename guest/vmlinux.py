#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Take the uncompressed kernel (an ELF file) out of an x86 bzImage.

    vmlinux.py VMLINUZ OUT

The boot header says where the compressed kernel lies; its last four bytes are the size of the
unpacked file, which is compared with what came out.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys

HEADER_MAGIC = 0x202  # "HdrS" of the Linux/x86 boot protocol, and the fields used below
SETUP_SECTS = 0x1F1
PAYLOAD_OFFSET = 0x248
PAYLOAD_LENGTH = 0x24C

DECOMPRESSORS = {
    b"\x02\x21\x4c\x18": ["lz4", "-dc"],  # legacy frames, as the kernel build writes them
    b"\xfd7zXZ\x00": ["xz", "-dc", "--single-stream"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dcq"],
    b"\x1f\x8b": ["gzip", "-dc"],
}


class ImageError(Exception):
    """The file is not a kernel image that we can unpack."""


def unpack(image: bytes) -> bytes:
    """The ELF file inside a bzImage."""
    if len(image) < 0x260 or image[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS":
        raise ImageError("it is not a bzImage (no boot header)")
    start = (image[SETUP_SECTS] + 1) * 512 + struct.unpack_from("<I", image, PAYLOAD_OFFSET)[0]
    length = struct.unpack_from("<I", image, PAYLOAD_LENGTH)[0]
    payload = image[start : start + length]
    if length < 8 or len(payload) != length:
        raise ImageError("it is shorter than its header says")
    for magic, command in DECOMPRESSORS.items():
        if payload.startswith(magic):
            break
    else:
        raise ImageError(f"its compression is unknown (starts with {payload[:6].hex()})")
    size = struct.unpack("<I", payload[-4:])[0]
    try:
        result = subprocess.run(command, input=payload[:-4], capture_output=True, check=False)
    except FileNotFoundError as e:
        raise ImageError(f"the program {command[0]} is not installed") from e
    # Not the exit status: what counts is that everything came out.
    if len(result.stdout) != size or result.stdout[:4] != b"\x7fELF":
        detail = result.stderr.decode("utf-8", "replace").strip()
        raise ImageError(f"{command[0]} unpacked {len(result.stdout)} of {size} bytes {detail}")
    return result.stdout


def main() -> int:
    """Command line; see the top of the file."""
    if len(sys.argv) != 3:
        print(__doc__.strip(), file=sys.stderr)
        return 2
    source, out = sys.argv[1:]
    temp = f"{out}.tmp.{os.getpid()}"
    try:
        with open(source, "rb") as f:
            elf = unpack(f.read())
        with open(temp, "wb") as f:
            f.write(elf)
        os.rename(temp, out)
    except (ImageError, OSError) as e:
        print(f"vmlinux.py: {source}: {e}", file=sys.stderr)
        if os.path.exists(temp):
            os.unlink(temp)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
