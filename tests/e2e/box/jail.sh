#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Seen from the host: the jail of the VMMs that are there, of a template, a sandbox, a copy and one that
# cannot be forked. Of each thread: filters, privileges, namespaces, root and limits. Needs root, as a
# VMM's /proc is nobody else's.
set -u
. ./common

# $1 of VMM $vmm is $2 and must be $3.
is() {
	[ "$2" = "$3" ] || fail "$kind, VMM $vmm: $1 is '$2', not '$3'"
}

# The member $2 of the status file in $1.
status() {
	awk -v key="$2:" '$1 == key {print $2}' "$1/status"
}

# The thread of which $1 is the directory must have $2 filters beside those that the daemon was started
# with, as by a container. What it has, it has for itself.
check_thread() {
	name=$(status "$1" Name)
	is "the mode of seccomp of $name" "$(status "$1" Seccomp)" 2
	is "the number of filters of $name" \
		$(($(status "$1" Seccomp_filters) - $(status "/proc/$daemon" Seccomp_filters))) "$2"
	is "NoNewPrivs of $name" "$(status "$1" NoNewPrivs)" 1
	for set in CapInh CapPrm CapEff CapAmb; do
		is "$set of $name" "$(status "$1" $set)" 0000000000000000
	done
	for space in user mnt net ipc uts; do
		mine=$(readlink "$1/ns/$space") && theirs=$(readlink "/proc/$daemon/ns/$space") ||
			fail "$kind, VMM $vmm: no namespace to be read: $space"
		[ "$mine" != "$theirs" ] || fail "$kind, VMM $vmm: $name is in the daemon's namespace $mine"
	done
	is "what is in the root of $name" "$(ls -A "$1/root/" || echo unreadable)" ""
	is "the current directory of $name" "$(readlink "$1/cwd") $(ls -A "$1/cwd/" || echo unreadable)" "/ "
	is "what $name has mounted" "$(awk '{print $5, $(NF - 2)}' "$1/mountinfo")" "/ tmpfs"
	awk '{split($6, o, ","); for (i in o) has[o[i]] = 1}
		END {exit !(has["ro"] && has["nosuid"] && has["nodev"] && has["noexec"])}' "$1/mountinfo" ||
		fail "$kind, VMM $vmm: the root of $name is mounted $(cat "$1/mountinfo")"
}

words() {
	printf '%s\n' "$@" | sort | tr '\n' ' '
}

# The limit of VMM $vmm that is called $1: soft and hard.
limit() {
	sed -n "s/^$1  *\([0-9a-z]*\)  *\([0-9a-z]*\) .*/\1 \2/p" "/proc/$vmm/limits"
}

# VMM $1 is a $2: its loop has $3 filters, it has $4 vCPUs with two each, and a disk of $5 MiB.
inspect() {
	vmm=$1 kind=$2 loops=0 vcpus=
	for task in /proc/"$vmm"/task/*; do
		case $(status "$task" Name) in
		podflare-vmm)
			check_thread "$task" "$3"
			loops=$((loops + 1))
			;;
		vcpu*)
			check_thread "$task" 2
			vcpus="$vcpus$(status "$task" Name) "
			;;
		kvm-*) ;; # KVM's own, which runs no code of ours
		*) fail "$kind, VMM $vmm has a thread $(status "$task" Name)" ;;
		esac
	done
	is "the number of loops" $loops 1
	is "the list of vCPUs" "$(words $vcpus)" "$(words $(seq 0 $(($4 - 1)) | sed 's/^/vcpu/'))"
	is "the limit of core files" "$(limit 'Max core file size')" "0 0"
	is "the limit of open files" "$(limit 'Max open files' | cut -d ' ' -f 2)" 1024
	is "the limit of a file's size" "$(limit 'Max file size')" "$(($5 << 20)) $(($5 << 20))"
	ok "$kind: $3 filters of the loop, 2 of each of $4 vCPUs, files of at most $5 MiB"
}

youngest() {
	vmms | tail -n 1
}

# The number $2 of sandbox $1, as the API has it.
number_of() {
	wget -q -O - "$URL/v1/sandboxes/$1" | sed -n 's/.*"'"$2"'": *\([0-9]*\).*/\1/p'
}

start
id=$(create)
[ -n "$id" ] && alive "$id" || fail "no sandbox was created"
# The template is one of the same, the default size.
n=$(number_of "$id" vcpus)
[ "${n:-0}" -gt 0 ] || fail "the sandbox has '$n' vCPUs"
disk=$(number_of "$id" disk_mib)
[ "${disk:-0}" -gt 0 ] || fail "the sandbox has a disk of '$disk' MiB"
count_is 2 || fail "there should be a template and a sandbox: $(vmms)"
inspect "$(vmms | head -n 1)" "a template" 1 "$n" "$disk"
inspect "$(youngest)" "a sandbox" 1 "$n" "$disk"

child=$(fork "$id" 1)
[ -n "$child" ] && alive "$child" || fail "the sandbox was not forked"
count_is 3 || fail "there should be a copy: $(vmms)"
inspect "$(youngest)" "a copy" 1 "$n" "$disk"

leaf=$(create '{"forkable": false}')
[ -n "$leaf" ] || fail "no sandbox that cannot be forked was created"
count_is 4 || fail "there should be one more: $(vmms)"
inspect "$(youngest)" "one that cannot be forked" 2 "$n" "$disk"
alive "$leaf" || fail "it does not run code"

stop
rm -rf "$LOG" "$WORK"
