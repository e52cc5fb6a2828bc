#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Forks the guest beside this script that keeps all its processors busy, in each way, and prints
# what vmdisk saw. Where podflare-vmm is: $VMM, else as in the emulated host.
cd "$(dirname "$0")" || exit 1
for cpus in 2 4; do
	for mode in live pause chain; do
		echo "== $mode-$cpus"
		timeout 150 ./vmdisk "${VMM:-/usr/bin/podflare-vmm}" disk_loop.tiny filler 6 $mode $cpus
	done
done
