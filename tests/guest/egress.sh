#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Lets a guest open connections, in each of the ways below, and prints what vmegress saw of it.
# In the emulated host the guest's kernel is where box/build.sh put it; else set the variables.
cd "$(dirname "$0")" || exit 1
egress() {
	name=$1
	shift
	echo "== $name"
	timeout 300 ./vmegress "${VMM:-/usr/bin/podflare-vmm}" "${KERNEL:-/guest/vmlinux}" \
		egress.cpio filler "$@"
	echo "status $?"
}
egress one 1
egress two 2
egress narrow 1 narrow
