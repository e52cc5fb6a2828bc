#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What a VM may read from and write to the disk of the state directory, where that is limited: the kernel
# has the limit, for the whole disk, and a sandbox that reads more is slowed down to it. (What it writes is
# another matter: docs/hardening.md.) Needs root, which delegates and drops caches, and a state directory on
# a disk: in the emulated host disk0, which has a file system.
set -u
. ./common

MIB=1048576
SIZE=12 # MiB

if [ -e /dev/podflare/disk0 ]; then
	mount -t ext4 -o noatime /dev/podflare/disk0 "$STATE" || fail "the disk cannot be mounted"
	chown podflare "$STATE"
	chmod 700 "$STATE"
fi
# On hardware the daemon would make it, but its disk is asked for before that.
[ -d "$STATE" ] || mkdir -m 700 "$STATE" || fail "the state directory cannot be made"
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

# Bytes that the group of process $1 has read (rbytes) or written (wbytes).
bytes() {
	awk -v disk="$disk" -v what="$2=" '$1 == disk {for (i = 2; i <= NF; i++) if (sub(what, "", $i)) n = $i}
		END {print n + 0}' "$(group_of "$1")/io.stat"
}

now() {
	cut -d. -f1 /proc/uptime
}

start
id=$(create '{"memory_mib": 256, "vcpus": 1, "disk_mib": 64}')
[ -n "$id" ] && alive "$id" || fail "no sandbox was created"
vmm=$(vmms | tail -n 1)
found=$(cat "$(group_of "$vmm")/io.max")
[ "$found" = "$disk rbps=$MIB wbps=$MIB riops=max wiops=max" ] || fail "its io.max is \"$found\", disk $disk"
[ -z "$(cat "$(group_of "$daemon")/io.max")" ] || fail "the daemon has a limit as well"
ok "a sandbox has the limit: $found"

# A file that is in nobody's memory any more. No machine is too slow for this: only more can be read than
# is allowed.
run "$id" bash "yes 0123456789 | head -c ${SIZE}M >/home/user/big && sync" | grep -q '"exited"' ||
	fail "the sandbox cannot write"
sync
echo "# of $SIZE MiB written, bytes counted to its group: $(bytes "$vmm" wbytes), to the daemon's: $(bytes "$daemon" wbytes)"
run "$id" bash 'sync; echo 3 | sudo tee /proc/sys/vm/drop_caches' | grep -q '"exited"' ||
	fail "the sandbox cannot drop its caches"
echo 3 >/proc/sys/vm/drop_caches
before=$(bytes "$vmm" rbytes)
began=$(now)
run "$id" bash 'cat /home/user/big | wc -c' | grep -q $((SIZE * MIB)) || fail "the sandbox cannot read"
took=$(($(now) - began))
read=$(($(bytes "$vmm" rbytes) - before))
[ $read -ge $((SIZE * MIB * 3 / 4)) ] || fail "of $SIZE MiB only $read bytes were read from $disk"
[ $took -ge $((read / MIB - 2)) ] || fail "$read bytes were read within $took s, with 1 MiB/s allowed"
ok "a sandbox that reads $read bytes at once needs $took s for them"
alive "$id" || fail "it does not run code any more"

stop
ok "a clean stop"
undelegate
rm -rf "$LOG" "$WORK"
[ ! -e /dev/podflare/disk0 ] || umount "$STATE"
