#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What a VM may read from and write to the disk of the state directory, where that is limited: the kernel
# has the limit, for the whole disk, and a sandbox that writes more is slowed down to it. Needs root, which
# delegates, and a state directory on a disk: in the emulated host disk0, which gets a file system.
set -u
. ./common

MIB=1048576
WRITTEN=24 # MiB
SEEN=12    # of which so many are waited for

if [ -e /dev/podflare/disk0 ]; then
	mount -t ext4 -o noatime /dev/podflare/disk0 "$STATE" || fail "the disk cannot be mounted"
	chown podflare "$STATE"
	chmod 700 "$STATE"
fi
delegate
grep -qw io "$GROUP/cgroup.controllers" || fail "this kernel has no limits for disks"
export PODFLARE_CGROUP_IO_MIB=1

# The whole disk, in the words of the kernel.
number=$(stat -c %d "$STATE")
where=/sys/dev/block/$((number >> 8 & 0xfff)):$((number & 0xff | number >> 12 & 0xfff00))
[ -e "$where" ] || fail "the state directory is on no disk"
[ ! -e "$where/partition" ] || where=$where/..
disk=$(cat "$where/dev")

group_of() {
	echo "$MOUNT$(sed -n 's/^0:://p' "/proc/$1/cgroup")"
}

# Bytes that the group has written to the disk.
written() {
	awk -v disk="$disk" '$1 == disk {for (i = 2; i <= NF; i++) if (sub(/^wbytes=/, "", $i)) n = $i}
		END {print n + 0}' "$group/io.stat"
}

written_enough() {
	[ "$(written)" -ge $((SEEN * MIB)) ]
}

now() {
	cut -d. -f1 /proc/uptime
}

start
id=$(create '{"memory_mib": 256, "vcpus": 1, "disk_mib": 64}')
[ -n "$id" ] && alive "$id" || fail "no sandbox was created"
group=$(group_of "$(vmms | tail -n 1)")
found=$(cat "$group/io.max")
[ "$found" = "$disk rbps=$MIB wbps=$MIB riops=max wiops=max" ] || fail "its io.max is \"$found\", disk $disk"
[ -z "$(cat "$(group_of "$daemon")/io.max")" ] || fail "the daemon has a limit as well"
ok "a sandbox has the limit: $found"

# What it writes is in the host's memory first, and on its way to the disk when that is asked for. No
# machine is too slow for this: only more can be written than is allowed.
before=$(written)
began=$(now)
run "$id" bash "yes 0123456789 | head -c ${WRITTEN}M >/home/user/big && sync" | grep -q '"exited"' ||
	fail "the sandbox cannot write"
sync &
within 600 written_enough || fail "of $WRITTEN MiB only $(written) bytes were ever written to $disk"
took=$(($(now) - began))
[ $took -ge $((SEEN - before / MIB - 2)) ] || fail "$SEEN MiB were written within $took s, with 1 MiB/s allowed"
ok "a sandbox that writes $WRITTEN MiB at once needs $took s for $SEEN of them"
alive "$id" || fail "it does not run code any more"
wait $! 2>/dev/null

stop
ok "a clean stop"
undelegate
rm -rf "$LOG" "$WORK"
[ ! -e /dev/podflare/disk0 ] || umount "$STATE"
