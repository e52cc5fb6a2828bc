#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the hostile guest once for each seed, two at a time, and on with further seeds until that many seconds
# are over, while a peaceful one (ready.tiny) is booted over and over beside them, and one that leaves neither of
# its processors runs. Then one that floods its VMM with packets, beside peaceful ones again, until it has been
# at it for a tenth of those seconds, has sent PACKETS, and has been looked at a few times. Prints what vmboot
# saw of each, how many of the peaceful ones were tried and came up, how many processors of the one that runs
# were busy, how often the flooded VMM answered and how many packets it had, and what the kernel complained of
# meanwhile.
# Where podflare-vmm is: $VMM, else as in the emulated host.
#
#   run.sh OPS SECONDS SEED...
PACKETS=10000
cd "$(dirname "$0")" || exit 1
vmm=${VMM:-/usr/bin/podflare-vmm}
ops=$1 seconds=$2
shift 2
work=$(mktemp -d)
began=$(cut -d. -f1 /proc/uptime)

# Whether that many seconds have gone by since `began`.
past() {
	[ $(($(cut -d. -f1 /proc/uptime) - began)) -ge "$1" ]
}

# What the kernel has complained of so far. That it is slow is not of a guest's doing.
complaints() {
	dmesg | grep -E 'BUG|WARNING|Oops|[Gg]eneral protection|KASAN|UBSAN|ODEBUG' | grep -v 'soft lockup'
}

# Of the lines on standard input those that are not in that file.
unknown() {
	grep -v -x -F -f "$1"
}

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

# How many packets the flooding VMM has had. Its last line may not be whole.
packets() {
	grep -a ^flooded "$work/flood" | tr -cd '0-9\n' | sort -n | tail -n 1
}

# Boots peaceful guests until $1.halt is there; $1 has what was seen of those that failed, $1.count a line
# "UP of TRIED".
siblings() {
	tried=0 up=0
	echo "0 of 0" >"$1.count"
	while [ ! -e "$1.halt" ]; do
		tried=$((tried + 1))
		# Its status is 0 when the guest has said that it is up, and only then.
		timeout 120 ./vmboot "$vmm" ready.tiny filler filler 128 1 >"$1.last" 2>&1 &&
			up=$((up + 1)) || cat "$1.last"
		echo "$up of $tried" >"$1.next" && mv "$1.next" "$1.count"
	done >"$1"
}

# Does it for the seed, beside the one before.
attack() {
	timeout $((300 + ops / 10)) ./vmboot "$vmm" hostile.elf filler filler 128 2 "seed=$1 ops=$ops" >"$work/seed$1" 2>&1 &
	if [ -n "${last:-}" ]; then
		wait "$last"
	fi
	last=$!
	echo "$1" >>"$work/seeds"
}

before=$(vmms | wc -l)
if dmesg >/dev/null 2>&1; then
	# One line more: where that file is empty, busybox's grep takes its first argument for the pattern.
	{ echo && complaints; } >"$work/complaints"
	# Without this the end would be the same whatever was found.
	echo "BUG: planted" | unknown "$work/complaints" | grep -q planted || echo "== complaints are not seen"
fi
./vmboot "$vmm" hostile.elf filler filler 128 2 spin=1 >"$work/spin" 2>&1 &
spinner=$!
siblings "$work/beside" &
sibling=$!
for seed in "$@"; do
	attack "$seed"
done
while ! past "$seconds"; do
	seed=$((seed + 1))
	attack $seed
done
wait "$last"
touch "$work/beside.halt"
wait $sibling
kill -0 $spinner 2>/dev/null && echo "== still spinning: $(busy $spinner | wc -l)"
kill $spinner
wait $spinner 2>/dev/null

./vmboot "$vmm" hostile.elf filler filler 128 2 flood=1 ask >"$work/flood" 2>&1 &
flooder=$!
siblings "$work/flooded" &
sibling=$!
began=$(cut -d. -f1 /proc/uptime) limit=$((300 + seconds))
while kill -0 $flooder 2>/dev/null && ! past $limit; do
	sleep 1
	answers=$(grep -c ^stats "$work/flood")
	packets=$(packets)
	read -r up _ <"$work/flooded.count"
	if past $((seconds / 10)) && [ "$answers" -ge 5 ] && [ "$up" -ge 3 ] && [ "${packets:-0}" -ge $PACKETS ]; then
		break
	fi
done
touch "$work/flooded.halt"
wait $sibling
kill -0 $flooder 2>/dev/null && echo "== still flooding: $answers answers"
kill $flooder 2>/dev/null
wait $flooder 2>/dev/null
echo "flooded $(packets)"
for what in ^stats message; do
	grep -a $what "$work/flood" | tail -n 1
done

while read -r seed; do
	echo "== seed $seed"
	# What it wrote to its console is any bytes.
	tr -cd '\n -~' <"$work/seed$seed" | tail -n 5
done <"$work/seeds"
for one in beside flooded; do
	echo "== sibling $one: $(cat "$work/$one.count")"
	tail -n 20 "$work/$one"
done
if [ -e "$work/complaints" ]; then
	complaints >"$work/complaints.now"
	# The kernel forgets what is old.
	unknown "$work/complaints" <"$work/complaints.now" >"$work/complaints.new"
	echo "== complaints: $(wc -l <"$work/complaints.new")"
	cat "$work/complaints.new"
else
	echo "== complaints: cannot be read"
fi
sleep 1
echo "== left: $(($(vmms | wc -l) - before))"
rm -rf "$work"
