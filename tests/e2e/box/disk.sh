#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the disks of sandboxes cost the host: as much as is written, once for all forks, and nothing
# when it is deleted. A host whose disk is full gives the guest that writes an error, says so, and
# disturbs nobody else.
set -u
. ./common

grep -q " $STATE " /proc/mounts || fail "others write to the file system of $STATE, too"

# KiB that the file system of the state directory has in use.
used() {
	df -k "$STATE" | awk 'END {print $3}'
}

used_below() {
	[ "$(used)" -lt "$1" ]
}

start
empty=$(used)
id=$(create)
other=$(create)
[ -n "$id" ] && [ -n "$other" ] || fail "no sandboxes were created"
alive "$id" || fail "the sandbox does not run code"
made=$(used)
[ $((made - empty)) -lt 65536 ] || fail "two sandboxes take $((made - empty)) KiB of disk"

# Space: what is written is taken, what is deleted is given back.
run "$id" bash 'head -c 100M /dev/urandom > /home/user/big && sync' | grep -q '"exited"' ||
	fail "100 MiB cannot be written"
written=$(used)
[ $((written - made)) -gt 92160 ] || fail "100 MiB were written, the host's disk has only $((written - made)) KiB more"
run "$id" bash 'rm /home/user/big && sync' >/dev/null
within 30 used_below $((made + 20480)) ||
	fail "100 MiB were deleted, $(($(used) - made)) KiB of the host's disk stay"
ok "100 MiB written: $((written - made)) KiB more; deleted: $(($(used) - made)) KiB"

# Forks share what was there before them.
run "$id" bash 'head -c 50M /dev/urandom > /home/user/shared && sync' >/dev/null
before=$(used)
children=$(fork "$id" 4)
[ "$(echo "$children" | wc -l)" = 4 ] || fail "no four forks: $children"
forked=$(used)
[ $((forked - before)) -lt 8192 ] || fail "four forks of 50 MiB took $((forked - before)) KiB"
first=$(echo "$children" | head -n 1)
run "$first" bash 'head -c 20M /dev/urandom > /home/user/own && sync' >/dev/null
[ $(($(used) - forked)) -gt 18432 ] || fail "what a fork writes takes no space?"
run "$id" bash 'sha256sum < /home/user/shared' | grep -o '[0-9a-f]\{64\}' >"$WORK/sum"
for child in $children; do
	run "$child" bash 'sha256sum < /home/user/shared' | grep -q "$(cat "$WORK/sum")" ||
		fail "a fork has another file"
done
for child in $children; do
	delete "/v1/sandboxes/$child" || fail "cannot delete a fork"
done
within 10 used_below $((forked + 4096)) || fail "deleted forks keep $(($(used) - forked)) KiB"
delete "/v1/sandboxes/$id" || fail "cannot delete the sandbox"
within 10 used_below $((made + 8192)) || fail "a deleted sandbox keeps $(($(used) - made)) KiB"
ok "four forks of a disk with 50 MiB: $((forked - before)) KiB; all deleted: $(($(used) - made)) KiB"

# A host whose disk is full: 16 MiB are left.
id=$(create)
alive "$id" && alive "$other" || fail "the sandboxes do not run code"
run "$other" bash 'echo kept > /home/user/kept; sync' >/dev/null
size=$(df -k "$STATE" | awk 'END {print $2}')
mount -t tmpfs -o "remount,size=$(($(used) + 16384))k" state "$STATE" || fail "cannot make the file system small"
run "$id" bash 'head -c 80M /dev/urandom > /home/user/big; sync /home/user/big; echo status $?' \
	>"$WORK/full" || fail "the sandbox did not answer on a full host: $(cat "$WORK/full")"
grep -q 'status 0' "$WORK/full" && fail "80 MiB fit into 16: $(cat "$WORK/full")"
grep '"notice"' "$WORK/full" | grep -qi disk || fail "no notice of the host's full disk: $(cat "$WORK/full")"
wget -q -O - "$URL/v1/sandboxes/$id" | grep -q '"disk_errors": *[1-9]' ||
	fail "the sandbox has no disk_errors: $(wget -q -O - "$URL/v1/sandboxes/$id")"
wget -q -O - "$URL/v1/sandboxes/$other" | grep -q '"disk_errors": *0' ||
	fail "another sandbox has disk_errors"
run "$other" bash 'cat /home/user/kept' | grep -q kept || fail "another sandbox cannot read its disk"
alive "$other" || fail "another sandbox does not run code on a full host"
ok "a full host is an error of the guest that writes, and a notice; others run on"

mount -t tmpfs -o "remount,size=${size}k" state "$STATE" || fail "cannot make the file system large again"
delete "/v1/sandboxes/$id" || fail "cannot delete the sandbox that found the disk full"
run "$other" bash 'head -c 20M /dev/zero > /home/user/more && sync && echo wrote' | grep -q wrote ||
	fail "another sandbox cannot write after the disk was full"
new=$(create)
alive "$new" || fail "no new sandbox after the disk was full"
stop
[ -z "$(litter)" ] || fail "files are left: $(litter)"
within 10 used_below $((empty + 4096)) || fail "$(($(used) - empty)) KiB are left"
ok "when there is space again all is well, and the end leaves nothing"
rm -rf "$LOG" "$WORK"
