#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs as root inside the new root at the very end, after the customize.sh of every layer: byte code,
# traces of the build, and whether the agent will find what it needs. A part of the cache key.
set -eu

die() {
	echo "podflare: the image lacks $*" >&2
	exit 1
}

# Byte code that Python trusts without looking at the source. What the packages made compares
# times or contents at every import; times are lost in the image, contents cost reading.
# One process a folder, not -j: what a file compiles to depends, in its flags for shared objects,
# on what the same process compiled before.
export PYTHONHASHSEED=0
byte_code='python3 -m compileall -q -f --invalidation-mode unchecked-hash "$@" >/dev/null || true'
[ -x /usr/bin/python3 ] || die "python3"
find /usr/share/python3 -name __pycache__ -prune -exec rm -r {} +
for top in /usr/lib/python3.11 /usr/lib/python3/dist-packages \
	/usr/local/lib/python3.11/dist-packages /usr/share/python3; do
	[ -d "$top" ] || continue
	# A few test files of lib2to3 do not compile, on purpose; the check below sees the rest.
	sh -c "$byte_code" - -l "$top"
	find "$top" -mindepth 1 -maxdepth 1 -type d ! -name __pycache__ -print0 |
		xargs -0 -r -n 1 -P "$(getconf _NPROCESSORS_ONLN)" sh -c "$byte_code" -
done
python3 -B - <<'END'
import os, struct
# No symbolic link is followed: packages of Node.js have some that lead back up.
files = (os.path.join(where, name) for where, _, names in os.walk("/usr") for name in names)
found = [path for path in files if path.endswith(".pyc")]
wrong = [p for p in found if struct.unpack("<I", open(p, "rb").read(8)[4:])[0] != 1]
if len(found) < 500 or wrong:
    raise SystemExit(f"byte code is not as it should be: {len(found)} files, wrong: {wrong[:5]}")
END

# What the agent and the REPL start with.
[ -x /bin/bash ] || die "bash"
[ "$(id -u user 2>/dev/null)" = 1000 ] || die "the account 'user' with the number 1000"
[ -d "$(getent passwd user | cut -d: -f6)" ] || die "the home of 'user'"
python3 -B -c 'import IPython' || die "IPython for python3"
[ -x /sbin/mkfs.ext4 ] || die "mkfs.ext4 (package e2fsprogs), which makes the sandbox's disk"

# Traces of the build and of the machine that built.
: >/etc/machine-id
: >/etc/resolv.conf
echo podflare >/etc/hostname
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/ldconfig/* /var/lib/dbus/machine-id
find /var/log -type f -delete
rm -f /etc/*- /var/lib/dpkg/*-old /etc/.pwd.lock /root/.bash_history
