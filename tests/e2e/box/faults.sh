#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Where KVM can map what a guest has not touched yet (Linux 6.11), a new sandbox, its first call and one
# that was forked do without most of the faults that they have elsewhere. Counted by KVM itself, which
# only root may ask.
set -u
. ./common

DEBUG=/sys/kernel/debug
[ -d $DEBUG/kvm ] || mount -t debugfs debugfs $DEBUG || fail "there is no debugfs"

# Faults of VMM $1's guest by now.
faults() {
	cat $DEBUG/kvm/"$1"-*/pf_taken | awk '{n += $1} END {print n + 0}'
}

# What the rehearsal of the template has written: "ready" or "call".
learned() {
	sed -n "s/.* $1_pages=\([0-9]*\).*/\1/p" "$LOG" | tail -n 1
}

# Whether KVM can do it: the kernel is $1.$2 or newer, and the processor knows the guest's page tables.
can_since() {
	grep -qs '[Y1]' /sys/module/kvm_intel/parameters/ept /sys/module/kvm_amd/parameters/npt || return 1
	uname -r | awk -F '[.-]' -v major="$1" -v minor="$2" \
		'{exit !($1 > major || $1 == major && $2 >= minor)}'
}

# $1 faults happened where $2 pages were known to be written. Others are read, and devices fault, too:
# without it there are some 1.6 faults for each of these pages, with it 0.5 to 0.7.
check() {
	if can_since 6 11; then
		[ "$1" -lt "$2" ] || fail "$3: $1 faults, though $2 pages were mapped for it"
		ok "$3: $1 faults, $2 pages were mapped for it"
	else
		[ "$1" -ge "$2" ] || fail "$3: $1 faults only: what maps $2 pages in this kernel?"
		ok "$3: $1 faults, $2 pages known; this KVM cannot map them"
	fi
}

start
parent=$(create)
[ -n "$parent" ] || fail "no sandbox was created"
vmm=$(vmms | tail -n 1)
ready=$(learned ready) call=$(learned call)
[ "${ready:-0}" -gt 50 ] && [ "${call:-0}" -gt 50 ] || fail "nothing was learned: '$ready' '$call'"

before=$(faults "$vmm")
alive "$parent" || fail "the sandbox does not answer"
check $(($(faults "$vmm") - before)) "$call" "first call"

child=$(fork "$parent" 1)
copy=$(vmms | tail -n 1)
[ "$copy" != "$vmm" ] || fail "no sandbox was forked"
check "$(faults "$copy")" "$ready" "a copy until it is ready"
before=$(faults "$copy")
alive "$child" || fail "the copy does not answer"
check $(($(faults "$copy") - before)) "$call" "first call of a copy"

# What a fork has taken away from the one that was forked is mapped again for its next call.
before=$(faults "$vmm")
alive "$parent" || fail "the sandbox does not answer after its fork"
check $(($(faults "$vmm") - before)) "$call" "call after a fork"

# No signal reaches a sandbox that cannot be forked.
leaf=$(create '{"forkable": false}')
alive "$leaf" && alive "$leaf" || fail "a sandbox that cannot be forked does not answer"
ok "one that cannot be forked answers"
stop
