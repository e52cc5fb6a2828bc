#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every tiny guest beside this script, one VM each, and prints what vmboot saw of it.
# Then forks the one that uses its disk all the time. Where podflare-vmm is: $VMM, else as in the emulated host.
cd "$(dirname "$0")" || exit 1
for guest in *.tiny; do
	echo "== $guest"
	timeout 60 ./vmboot "${VMM:-/usr/bin/podflare-vmm}" "$guest" filler filler 128 1
done
for mode in live pause chain; do
	echo "== forks_$mode.tiny"
	timeout 240 ./vmdisk "${VMM:-/usr/bin/podflare-vmm}" disk_loop.tiny filler 20 $mode
done
