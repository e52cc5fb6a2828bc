#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The part of the bench that must run where the VMMs are: how long it takes to start a program there,
# how long calls take for a client that is there, too, and what an idle sandbox costs, alone and in a
# crowd. Prints "NAME VALUE" lines.
#
#   host.sh SANDBOXES CROWD STARTS CREATES EXECS FORKS
#
# SANDBOXES created ones, CROWD forks of one of them alive at once, STARTS (2 at least) of a
# program; CREATES, EXECS and FORKS as bench/beside.c has them. Runs in the emulated host (podflare box run --add=forkexec
# --add=beside), or on hardware with these set:
#   DAEMON  command that starts podflared    URL  its address    FORKEXEC, BESIDE  the programs
set -eu
DAEMON=${DAEMON:-box-podflared}
URL=${URL:-http://127.0.0.1:7070}
sandboxes=$1
crowd=$2
starts=$3
creates=$4
execs=$5
forks=$6
LOG=$(mktemp)
FORKEXEC=${FORKEXEC:-./forkexec}
BESIDE=${BESIDE:-./beside}

# $1 starts of a program.
program_starts() {
	"$FORKEXEC" "$1" | sed 's/^/forkexec_us /'
}

# Its pool is empty. Returns once it is ready.
start_daemon() {
	: >"$LOG" # here: what an earlier one has said must be gone before the first look
	$DAEMON --pool=0 >"$LOG" 2>&1 &
	daemon=$!
	trap 'kill $daemon 2>/dev/null' EXIT
	tries=600
	until grep -q "ready on http://" "$LOG"; do
		tries=$((tries - 1))
		if [ $tries = 0 ] || ! kill -0 $daemon; then
			tail -n 20 "$LOG" >&2
			exit 1
		fi
		sleep 0.1
	done
}

stop_daemon() {
	kill -TERM $daemon
	wait $daemon || true
	trap - EXIT
}

# Process ids of the daemon's VMMs, the oldest first: that is the template.
vmms() {
	cat /proc/[0-9]*/stat 2>/dev/null | awk -v daemon="$daemon" '
		$2 == "(podflare-vmm)" && $4 == daemon {print $22, $1}' | sort -n | cut -d " " -f 2
}

# Times that any thread of process $1 has gone to sleep of itself.
sleeps() {
	cat /proc/"$1"/task/*/status | awk '$1 == "voluntary_ctxt_switches:" {n += $2} END {print n}'
}

# $1_private_mib and $1_pss_mib of process $2: what only it has, and its share of all it uses.
memory() {
	awk -v name="$1" '{v[$1] += $2} END {
		print name "_private_mib", (v["Private_Dirty:"] + v["Private_Clean:"]) / 1024
		print name "_pss_mib", v["Pss:"] / 1024
	}' "/proc/$2/smaps_rollup"
}

available() {
	awk '$1 == "MemAvailable:" {print $2}' /proc/meminfo
}

# Calls are set in relation to starts of a program, and a machine may change its speed: half of these
# before, half after. The daemon of the calls is no other's: what idles is as it is without them.
"$FORKEXEC" 1 >/dev/null
program_starts $((starts - starts / 2))
start_daemon
"$BESIDE" "${URL##*:}" "$creates" "$execs" "$forks"
stop_daemon
program_starts $((starts / 2))

start_daemon
i=0
while [ $i -lt "$sandboxes" ]; do
	id=$(wget -q -O - --post-data '{}' "$URL/v1/sandboxes" |
		grep -o 'sbx_[0-9a-f]\{32\}' | head -n 1)
	i=$((i + 1))
done
sleep 10

template=$(vmms | head -n 1)
memory template "$template"
for pid in $(vmms | tail -n +2); do
	before=$(sleeps "$pid")
	sleep 10
	echo "idle_sleeps_per_s $(($(sleeps "$pid") - before))e-1"
	memory idle "$pid"
done

# The last one is used, and becomes the parent of the crowd.
wget -q -O /dev/null --post-data '{"code": "x = 6 * 7"}' "$URL/v1/sandboxes/$id/exec"
sleep 5
memory used "$(vmms | tail -n 1)"
if [ "$crowd" -gt 0 ]; then
	before=$(available)
	left=$crowd
	while [ $left -gt 0 ]; do
		n=$left
		[ $n -le 25 ] || n=25
		wget -q -O /dev/null --post-data "{\"n\": $n}" "$URL/v1/sandboxes/$id/fork"
		left=$((left - n))
	done
	sleep 10
	[ "$(vmms | wc -l)" = $((1 + sandboxes + crowd)) ] || {
		echo "$crowd forks should be alive: $(vmms | wc -l) VMMs in all" >&2
		exit 1
	}
	awk -v kib=$(($before - $(available))) -v n="$crowd" 'BEGIN {print "crowd_host_mib", kib / n / 1024}'
	for pid in $(vmms | tail -n "$crowd"); do
		memory crowd "$pid"
	done
	# The last one answers as the first one does.
	wget -q -O - --post-data '{"code": "print(x)"}' "$URL/v1/sandboxes/$id/exec" | grep -q 42
fi
awk '$1 == "VmRSS:" {print "daemon_rss_mib", $2 / 1024}' /proc/$daemon/status
stop_daemon
rm -f "$LOG"
