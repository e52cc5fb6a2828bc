#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the hostile guest once for each seed, two at a time, while a peaceful one (ready.tiny) is booted over
# and over beside them, and one that leaves neither of its processors runs. Prints what vmboot saw of each, how
# many of the peaceful ones were tried and came up, and how many processors of the last one were busy.
# Where podflare-vmm is: $VMM, else as in the emulated host.
#
#   run.sh OPS SEED...
cd "$(dirname "$0")" || exit 1
vmm=${VMM:-/usr/bin/podflare-vmm}
ops=$1
shift
work=$(mktemp -d)

vmms() {
	for comm in /proc/[0-9]*/comm; do
		[ "$(cat "$comm" 2>/dev/null)" != podflare-vmm ] || echo "${comm#/proc/}" | cut -d/ -f1
	done
}

# Threads of vCPUs of the VMM that a process has started which have had the processor: half a second of it.
busy() {
	for stat in /proc/[0-9]*/task/[0-9]*/stat; do
		# pid (comm) state ppid ..., utime is the 14th; no name here has a blank.
		read -r _ name _ parent _ _ _ _ _ _ _ _ _ user system _ <"$stat" 2>/dev/null || continue
		case $parent$name in
		"$1(vcpu"*) [ $((user + system)) -lt 50 ] || echo "$name" ;;
		esac
	done
}

before=$(vmms | wc -l)
./vmboot "$vmm" hostile.elf filler filler 128 2 spin=1 >"$work/spin" 2>&1 &
spinner=$!
(
	tried=0 up=0
	while [ ! -e "$work/halt" ]; do
		tried=$((tried + 1))
		# Its status is 0 when the guest has said that it is up, and only then.
		timeout 120 ./vmboot "$vmm" ready.tiny filler filler 128 1 >"$work/last" 2>&1 &&
			up=$((up + 1)) || cat "$work/last"
	done >"$work/sibling" 2>&1
	echo "$up of $tried" >"$work/siblings"
) &
sibling=$!
for seed in "$@"; do
	timeout 600 ./vmboot "$vmm" hostile.elf filler filler 128 2 "seed=$seed ops=$ops" \
		>"$work/seed$seed" 2>&1 &
	if [ -n "${last:-}" ]; then
		wait "$last"
	fi
	last=$!
done
wait "$last"
touch "$work/halt"
wait $sibling
kill -0 $spinner 2>/dev/null && echo "== still spinning: $(busy $spinner | wc -l)"
kill $spinner
wait $spinner 2>/dev/null
for seed in "$@"; do
	echo "== seed $seed"
	# What it wrote to its console is any bytes.
	tr -cd '\n -~' <"$work/seed$seed" | tail -n 5
done
echo "== sibling: $(cat "$work/siblings")"
tail -n 20 "$work/sibling"
sleep 1
echo "== left: $(($(vmms | wc -l) - before))"
rm -rf "$work"
