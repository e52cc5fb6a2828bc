#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Seen from the host: no socket of a VMM leaves the machine. Its only sockets are its control socket
# and the stream pairs that the daemon gave it. While we are here: streaming 100 MB does not grow the
# daemon.
set -u
. ./common

# A member of a memory figure of a process, in KiB.
status_kib() {
	awk -v key="$2:" '$1 == key {print $2}' "/proc/$1/status"
}

# Looks at every socket of VMM $1; prints how many streams it has beside the control socket.
inspect() {
	control=0 streams=0
	for fd in /proc/"$1"/fd/*; do
		target=$(readlink "$fd") || continue
		case $target in
		/dev/net/* | /dev/vhost*) fail "VMM $1 has $target open" ;;
		socket:*) ;;
		*) continue ;;
		esac
		inode=${target#socket:[}
		inode=${inode%]}
		for table in tcp tcp6 udp udp6 udplite udplite6 raw raw6 icmp icmp6 packet netlink; do
			[ -r "/proc/$1/net/$table" ] || continue
			# The inode stands in a column of its own in each of these tables.
			if awk -v inode="$inode" 'NR > 1 {for (i = 1; i <= NF; i++) if ($i == inode) exit 1}' \
				"/proc/$1/net/$table" "/proc/net/$table"; then
				continue
			fi
			fail "VMM $1 has a socket of the table $table"
		done
		# Its descriptors come from the daemon, whose network namespace is not the VMM's.
		# Num RefCount Protocol Flags Type State Inode [Path]
		line=$(awk -v inode="$inode" '$7 == inode' "/proc/$1/net/unix" /proc/net/unix)
		set -- "$1" $line
		[ $# -ge 8 ] || fail "VMM $1 has a socket of an unknown family (inode $inode)"
		[ "$7" = 03 ] || fail "VMM $1 has a unix socket that is not connected: $line"
		[ $# = 8 ] || fail "VMM $1 has a unix socket with a name: $line"
		case $6 in
		0005) control=$((control + 1)) ;;
		0001) streams=$((streams + 1)) ;;
		*) fail "VMM $1 has a unix socket of an unexpected type: $line" ;;
		esac
	done
	[ $control = 1 ] || fail "VMM $1 has $control control sockets"
	ok "VMM $1: one control socket, $streams streams, no other socket"
}

start
id=$(create)
[ -n "$id" ] || fail "no sandbox was created"
count_is 2 || fail "there should be a template and a sandbox: $(vmms)"
template=$(vmms | head -n 1)
vmm=$(vmms | tail -n 1)
exec_url=$URL/v1/sandboxes/$id/exec

inspect "$template"
inspect "$vmm"
wget -q -O /dev/null --post-data '{"code": "import time; time.sleep(5)"}' "$exec_url" &
busy=$!
sleep 1
inspect "$vmm"
[ $streams -gt 0 ] || fail "a command runs and the VMM has no stream"
wait $busy

# A fork has descriptors of its own and none of its parent's.
child=$(fork "$id" 1)
[ -n "$child" ] || fail "the sandbox was not forked"
inspect "$(vmms | tail -n 1)"
delete "/v1/sandboxes/$child" || fail "the fork was not deleted"
inspect "$vmm"

# What the guest tries does not open anything either.
wget -q -O /dev/null --post-data '{"code": "import socket\nfor f, a in [(2, (\"192.0.2.1\", 80)), (40, (2, 1024)), (40, (2, 22))]:\n  s = socket.socket(f, 1)\n  s.settimeout(5)\n  try: s.connect(a)\n  except OSError as e: print(e)"}' "$exec_url"
inspect "$vmm"

# The daemon listens on its one address and has no other socket of the network.
inodes=$(ls -l /proc/"$daemon"/fd | sed -n 's/.*socket:\[\([0-9]*\)\]/\1/p')
for inode in $inodes; do
	for table in udp udp6 raw raw6 packet; do
		[ -r /proc/net/$table ] || continue
		awk -v inode="$inode" 'NR > 1 {for (i = 1; i <= NF; i++) if ($i == inode) exit 1}' \
			/proc/net/$table || fail "the daemon has a socket of the table $table"
	done
done
ok "the daemon has no socket but its HTTP connections and unix sockets"

# The peak starts anew: loading the root image had its own.
echo 5 >/proc/"$daemon"/clear_refs
before=$(status_kib "$daemon" VmRSS)
bytes=$(wget -q -O - --post-data \
	'{"rich": true, "output_limit": 268435456, "code": "import sys\nfor _ in range(1600): n = sys.stdout.write(\"x\" * 65536)"}' \
	"$exec_url" | wc -c)
[ "$bytes" -gt 104857600 ] || fail "only $bytes bytes came"
peak=$(status_kib "$daemon" VmHWM)
[ $((peak - before)) -lt 8192 ] || fail "the daemon grew from $before to $peak KiB"
ok "100 MB of output: $bytes bytes came, the daemon grew by $((peak - before)) KiB"

# A client that does not read: everything on the way waits, nothing piles up.
{
	body='{"code": "yes", "language": "bash"}'
	printf 'POST /v1/sandboxes/%s/exec HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s' \
		"$id" ${#body} "$body"
	sleep 8
} | nc 127.0.0.1 "${URL##*:}" | sleep 8 &
reader=$!
sleep 6
now=$(status_kib "$daemon" VmRSS)
[ $((now - before)) -lt 8192 ] || fail "a slow reader made the daemon grow from $before to $now KiB"
ok "a client that does not read: the daemon is $((now - before)) KiB larger than before"
wait $reader

stop
[ ! -e "/proc/$vmm" ] || fail "the VMM survives a clean stop"
rm -rf "$LOG" "$WORK"
