#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes the initramfs of the guest: the agent as /init, the kernel modules that lead to the root
# image and to vsock, and the sources of the REPL.
#
#   build-initramfs.sh AGENT_BINARY OUT [MODULES_DIR]
#
# MODULES_DIR (default: "modules" beside OUT, made by build-kernel.sh) is lib/modules/VERSION.
# Needs no rights, gives the same bytes for the same input and leaves OUT alone if nothing changed.

SCRIPT=initramfs
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# What the guest needs; modules.py adds what these need. Kept short: loading is boot time.
MODULES=(
	virtio_mmio                # the bus of the devices
	vmw_vsock_virtio_transport # talking to the daemon
	'?crc32c-intel'            # speed for erofs; the kernel has a plain one built in
	erofs                      # the root image ...
	nd_pmem nd_e820            # ... which appears as persistent memory
	virtio_blk                 # the sandbox's disk, with ext4, which is built in
	overlay                    # disk over image
)

main() {
	local agent out modules spec quoted
	[ $# -eq 2 ] || [ $# -eq 3 ] ||
		die "usage: build-initramfs.sh AGENT_BINARY OUT [MODULES_DIR]"
	agent=$1 out=$2 modules=${3:-$(dirname "$2")/modules}
	need_tools python3:"$PYTHON" binutils:strip
	[ -f "$agent" ] || die "there is no agent at $agent" "build the programs first: make"
	[ -d "$modules/" ] || die "there are no kernel modules at $modules" \
		"make them first: guest/build-kernel.sh $(dirname "$out")"
	[ -f "$GUEST_DIR/repl/repl.py" ] || die "the REPL is missing: $GUEST_DIR/repl/repl.py"

	WORK=$(mktemp -d "${TMPDIR:-/tmp}/podflare-initramfs.XXXXXX")
	trap 'rm -rf "$WORK"' EXIT
	spec=$WORK/spec
	quoted=$(printf %q "$WORK")
	"$PYTHON" "$GUEST_DIR/modules.py" --copy "$WORK/modules" "$modules/" "${MODULES[@]}" ||
		die "cannot collect the kernel modules" \
			"if the cache was touched, take them out again: guest/build-kernel.sh --update DIR"
	strip --strip-all -o "$WORK/init" "$agent" || die "$agent is not a program"
	# Compiled too, for the Python of this Debian, which is the guest's: its start is boot time.
	mkdir "$WORK/repl"
	cp "$GUEST_DIR"/repl/*.py "$GUEST_DIR"/repl/*.cjs "$WORK/repl/"
	PYTHONHASHSEED=0 "$PYTHON" -m compileall -q --invalidation-mode unchecked-hash \
		-s "$WORK/repl" -p /run/podflare/repl "$WORK/repl" || die "the REPL does not compile"
	{
		echo "file /init $quoted/init 755"
		echo "tree /modules $quoted/modules"
		echo "tree /repl $quoted/repl"
		# Until the agent mounts a devtmpfs: stdin, stdout and stderr of process 1.
		echo "nod /dev/console c 5 1"
	} >"$spec"
	"$PYTHON" "$GUEST_DIR/mkcpio.py" "$out" "$spec" || die "cannot write $out"
	say "ready: $out ($(($(stat -c %s "$out") / 1024)) KiB)"
}

main "$@"
