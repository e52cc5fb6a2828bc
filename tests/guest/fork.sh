#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Forks real guests without a daemon, in each of the ways below, and prints what vmfork saw.
# In the emulated host the guest's parts are where box/build.sh put them; else set the variables.
cd "$(dirname "$0")" || exit 1
fork() {
	name=$1
	shift
	echo "== $name"
	timeout 120 ./vmfork "${VMM:-/usr/bin/podflare-vmm}" "${KERNEL:-/guest/vmlinux}" \
		"${INITRAMFS:-/guest/initramfs.cpio}" "${ROOT:-/dev/podflare/root}" "$@"
	echo "status $?"
}
fork live 256 1 6
fork live-2cpu 256 2 4
fork live-4cpu 256 4 2
fork pause 256 1 6 pause
fork pause-2cpu 256 2 4 pause
fork chain 256 1 12 chain
fork chain-2cpu 256 2 4 chain
# A VMM ends when it sees that its supervisor is gone, which takes a moment.
echo "== end"
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do
	left=$(ps | grep -c '[p]odflare-vmm')
	[ "$left" != 0 ] || break
	sleep 1
done
echo "left $left"
