#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The part of the soak test that must look at processes, descriptors, memory and disk beside the
# daemon. tests/soak.py starts it: in the emulated host (podflare box run --add=common), or on
# hardware as tests/e2e/box/common says.
#
#   soak.sh CYCLES FORKS IDLE KILLS SEED [plan]
#
# CYCLES times create and close; FORKS times fork and close; IDLE children alive at once; KILLS times
# kill -9 of some VMM at some moment of a fork, which SEED decides. 0 leaves a part out. plan: only
# says the moment and the victim's number of each kill, one a line. Prints "ok - ..." or "not ok -
# ..." for each part, and progress in lines that begin with "#".
set -u
. ./common
cycles=$1 forks=$2 idle=$3 kills=$4
seed "$5"

# What the next kill is to be: how many milliseconds after the request, and which of the processes.
next_kill() {
	draw 700
	delay=$drawn
	draw 1000000
	which=$drawn
}

if [ "${6:-}" = plan ]; then
	i=0
	while [ $((i += 1)) -le "$kills" ]; do
		next_kill
		echo "$delay $which"
	done
	rm -rf "$LOG" "$WORK"
	exit
fi

progress() {
	echo "# $*"
}

# What the machine and the daemon hold, in a state of rest.
measure() {
	sleep 3
	sync
	echo 3 2>/dev/null >/proc/sys/vm/drop_caches
	vms=$(count)
	fds=$(descriptors)
	rss=$(awk '$1 == "VmRSS:" {print $2}' /proc/"$daemon"/status)
	memory=$(awk '$1 == "MemAvailable:" {print $2}' /proc/meminfo)
	disk=$(df -k "$STATE" | awk 'END {print $3}')
}

remember() {
	measure
	vms0=$vms fds0=$fds rss0=$rss memory0=$memory disk0=$disk
}

# Everything is as `remember` found it; $1 says after what. Memory and disk of a machine that others
# use, too, are not ours to judge.
same() {
	measure
	figures="VMMs $vms0 -> $vms, descriptors $fds0 -> $fds, KiB: daemon $rss0 -> $rss, memory $memory0 -> $memory, disk $disk0 -> $disk"
	[ "$vms" = "$vms0" ] || fail "$1: $figures"
	[ "$fds" -le $((fds0 + 4)) ] || fail "$1: $figures"
	[ "$rss" -le $((rss0 + 8192)) ] || fail "$1: $figures"
	if grep -q " $STATE " /proc/mounts; then
		[ "$memory" -ge $((memory0 - 49152)) ] || fail "$1: $figures"
		[ "$disk" -le $((disk0 + 8192)) ] || fail "$1: $figures"
	fi
	ok "$1: $figures"
}

start
id=$(create)
alive "$id" || fail "a sandbox does not run code"
delete "/v1/sandboxes/$id" || fail "a sandbox cannot be deleted"

if [ "$cycles" -gt 0 ]; then
	remember
	i=0
	while [ $i -lt "$cycles" ]; do
		i=$((i + 1))
		id=$(create)
		[ -n "$id" ] || fail "create $i of $cycles"
		[ $((i % 10)) != 1 ] || alive "$id" || fail "sandbox $i of $cycles does not run code"
		delete "/v1/sandboxes/$id" || fail "close $i of $cycles"
		[ $((i % 100)) != 0 ] || progress "$i of $cycles created and closed"
	done
	same "$cycles times create and close"
fi

if [ "$forks" -gt 0 ]; then
	remember
	id=$(create)
	i=0
	while [ $i -lt "$forks" ]; do
		i=$((i + 1))
		# The disk changes each time, so that there is something to be layered.
		run "$id" bash "head -c 200K /dev/urandom > /home/user/$((i % 7)); sync" >/dev/null
		child=$(fork "$id" 1)
		[ -n "$child" ] || fail "fork $i of $forks"
		[ $((i % 5)) != 1 ] || alive "$child" || fail "fork $i of $forks does not run code"
		delete "/v1/sandboxes/$child" || fail "close of fork $i of $forks"
		[ $((i % 50)) != 0 ] || progress "$i of $forks forked and closed"
	done
	alive "$id" || fail "the sandbox that was forked $forks times does not run code"
	delete "/v1/sandboxes/$id" || fail "the sandbox that was forked cannot be deleted"
	same "$forks times fork and close"
fi

# KiB that belong to process $1 alone.
unique() {
	awk '/^Private_(Clean|Dirty):/ {n += $2} END {print n}' /proc/"$1"/smaps_rollup
}

if [ "$idle" -gt 0 ]; then
	remember
	id=$(create)
	alive "$id" || fail "the parent of the idle ones does not run code"
	: >"$WORK/children"
	while left=$((idle - $(wc -l <"$WORK/children"))) && [ $left -gt 0 ]; do
		[ $left -le 25 ] || left=25
		fork "$id" $left >>"$WORK/children" || fail "a fork of $left failed"
		progress "$(wc -l <"$WORK/children") of $idle idle children"
	done
	sleep 5
	vmms | tail -n "$idle" >"$WORK/pids"
	for pid in $(cat "$WORK/pids"); do
		unique "$pid"
	done | sort -n >"$WORK/unique"
	measure
	count_is $((vms0 + 1 + idle)) || fail "$idle children should be alive: $(count) VMMs"
	n=0
	for child in $(cat "$WORK/children"); do
		n=$((n + 1))
		[ $((n % 20)) != 1 ] || alive "$child" || fail "idle child $n does not answer"
	done
	ok "$idle idle children at once: $(awk '{v[NR] = $1}
		END {print "of its own, KiB: p50", v[int((NR + 1) / 2)], "p95", v[int(NR * .95 + .5)], "max", v[NR]}' \
		"$WORK/unique"), with all that the host needs for it $(((memory0 - memory) / idle)) KiB each"
	for child in $(cat "$WORK/children"); do
		delete "/v1/sandboxes/$child" || fail "an idle child cannot be deleted"
	done
	delete "/v1/sandboxes/$id" || fail "the parent of the idle ones cannot be deleted"
	same "$idle idle children, closed"
fi

# Ids of the sandboxes that are called ready.
listed() {
	wget -q -O - "$URL/v1/sandboxes" | tr '{' '\n' | grep '"ready"' | grep -o '"id": *"[^"]*"' |
		ids_of
}

if [ "$kills" -gt 0 ]; then
	remember
	survived=0 gone=0 hit=0 id=
	i=0
	while [ $i -lt "$kills" ]; do
		i=$((i + 1))
		if [ -z "$id" ]; then
			id=$(create)
			alive "$id" || fail "no new sandbox before kill $i"
		fi
		fork "$id" 3 >"$WORK/victims" 2>/dev/null &
		forker=$!
		next_kill
		sleep "0.$(printf %03d "$delay")"
		# Any of them but the template: the sandbox that is forked, or a child at whatever point.
		pid=$(vmms | tail -n +2 | line "$which")
		[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null
		wait $forker
		# Too late, or in a process that had no part in it: the fork is whole.
		[ "$(wc -l <"$WORK/victims")" -ge 3 ] || hit=$((hit + 1))
		[ -e "/proc/$daemon" ] || fail "the daemon is gone after kill $i"
		# Nothing that is called ready may be dead.
		sleep 0.3
		for one in $(listed); do
			if alive "$one"; then
				continue
			fi
			! listed | grep -q "$one" || fail "kill $i: $one is called ready and does not answer"
		done
		if listed | grep -q "$id"; then
			survived=$((survived + 1))
			keep=$id
		else
			gone=$((gone + 1))
			keep=
			delete "/v1/sandboxes/$id"
		fi
		for one in $(wget -q -O - "$URL/v1/sandboxes" | grep -o '"id": *"[^"]*"' | ids_of); do
			[ "$one" = "$keep" ] || delete "/v1/sandboxes/$one" || fail "kill $i: cannot delete $one"
		done
		id=$keep
		within 10 count_is $((vms0 + $(echo ${id:+1} | wc -w))) || fail "kill $i: VMMs are left: $(vmms)"
		[ $((i % 20)) != 0 ] || progress "$i of $kills kills, $hit hit a fork: the parent survived $survived"
	done
	[ "$kills" -lt 100 ] || [ "$hit" -gt 0 ] || fail "none of $kills kills hit a fork"
	[ -z "$id" ] || delete "/v1/sandboxes/$id"
	same "$kills times kill -9 during a fork, of which $hit hit it (the parent survived $survived)"
fi

stop
[ -z "$(litter)" ] || fail "files are left: $(litter)"
ok "a clean stop leaves nothing"
rm -rf "$LOG" "$WORK"
