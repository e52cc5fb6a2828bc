#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the hostile guest once for each seed, two at a time, while a peaceful one (ready.tiny) is booted over
# and over beside them, and one that never leaves the processor runs. Prints what vmboot saw of each.
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

before=$(vmms | wc -l)
./vmboot "$vmm" hostile.elf filler filler 128 1 spin=1 >"$work/spin" 2>&1 &
spinner=$!
(
	while [ ! -e "$work/halt" ]; do
		timeout 60 ./vmboot "$vmm" ready.tiny filler filler 128 1
	done >"$work/sibling" 2>&1
) &
sibling=$!
for seed in "$@"; do
	timeout 600 ./vmboot "$vmm" hostile.elf filler filler 128 1 "seed=$seed ops=$ops" \
		>"$work/seed$seed" 2>&1 &
	if [ -n "${last:-}" ]; then
		wait "$last"
	fi
	last=$!
done
wait "$last"
touch "$work/halt"
wait $sibling
kill -0 $spinner 2>/dev/null && echo "== still spinning"
kill $spinner
wait $spinner 2>/dev/null
for seed in "$@"; do
	echo "== seed $seed"
	# What it wrote to its console is any bytes.
	tr -cd '\n -~' <"$work/seed$seed" | tail -n 5
done
echo "== sibling: $(grep -c 'message 0x82 code 0x1' "$work/sibling") of $(grep -c 'message 0x8[26]' "$work/sibling")"
sleep 1
echo "== left: $(($(vmms | wc -l) - before))"
rm -rf "$work"
