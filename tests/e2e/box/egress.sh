#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Seen from the host, as root: nothing but podflare-egress opens a socket of the network for a sandbox,
# and it is there only for sandboxes with a grant. A secret that is injected is in its memory, and not in
# that of any VMM. Killed, it comes back; the sandbox hardly notices. It goes with its sandbox, and with
# the daemon, however that ends. egress.json is the operator's configuration: up.test is this host's own
# loopback.
set -u
. ./common

HTTP=18081
ECHO=18082
mkdir "$WORK/www"
echo "hello from outside" >"$WORK/www/hello"
busybox httpd -f -p 127.0.0.1:$HTTP -h "$WORK/www" &
httpd=$!
busybox nc -ll -p $ECHO -e cat >/dev/null 2>&1 &
echo_server=$!
trap 'kill $httpd $echo_server 2>/dev/null' EXIT

# The canary is never on a command line whole: that would be found in memory, too.
half=$(head -c 12 /dev/urandom | hexdump -v -e '1/1 "%02x"')
other=$(head -c 12 /dev/urandom | hexdump -v -e '1/1 "%02x"')

# Process ids of programs of this name that the daemon started.
egresses() {
	for comm in /proc/[0-9]*/comm; do
		[ "$(cat "$comm" 2>/dev/null)" != podflare-egress ] || echo "${comm#/proc/}" | cut -d/ -f1
	done
}

no_egress() {
	[ -z "$(egresses)" ]
}

one_egress() {
	[ "$(egresses | wc -l)" = 1 ]
}

# "PID NAME PROTOCOL LOCAL REMOTE STATE" of every socket of IP on this host that a process has open,
# whatever namespace it is in.
sockets() {
	for table in tcp tcp6 udp udp6 udplite udplite6 raw raw6 icmp icmp6; do
		for net in /proc/net /proc/[0-9]*/net; do
			[ ! -r "$net/$table" ] || sed 1d "$net/$table" | awk -v t=$table '{print t, $2, $3, $4, $10}'
		done
	done 2>/dev/null | sort -u >"$WORK/tables"
	for fd in /proc/[0-9]*/fd/*; do
		target=$(readlink "$fd" 2>/dev/null) || continue
		case $target in
		socket:*)
			inode=${target#socket:[}
			pid=${fd#/proc/}
			pid=${pid%%/*}
			awk -v inode="${inode%]}" -v pid="$pid" -v name="$(cat /proc/"$pid"/comm 2>/dev/null)" \
				'$5 == inode {print pid, name, $1, $2, $3, $4}' "$WORK/tables"
			;;
		esac
	done
}

# No VMM and nobody else has one: only the proxies, the daemon's own port, and what this script runs.
check_sockets() {
	sockets >"$WORK/sockets"
	awk -v daemon="$daemon" -v ours=" $httpd $echo_server " -v port="$(printf '%04X' "${URL##*:}")" '
		{split($4, local, ":")}
		$2 == "podflare-egress" {proxy++; next}
		index(ours, " " $1 " ") || $2 == "cat" || $2 == "busybox" || $2 == "nc" || $2 == "wget" {next}
		# Its port, and the connections that came there.
		$1 == daemon && $3 ~ /^tcp/ && local[2] == port {next}
		$2 ~ /^podflare/ {print; bad = 1}
		END {print proxy + 0 > "/dev/stderr"; exit bad}' "$WORK/sockets" >"$WORK/bad" 2>"$WORK/proxies" ||
		fail "$1: sockets of the network: $(cat "$WORK/bad")"
	ok "$1: nobody but podflare-egress ($(cat "$WORK/proxies") sockets) and the daemon's own port"
}

# How often $2 stands in the memory of process $1, mapping by mapping: those that it can write, the
# guest's memory among them. (The rest is files, the shared root image among them.)
in_memory() {
	while read -r span mode offset device inode name; do
		case $mode in
		rw*) ;;
		*) continue ;;
		esac
		start=$((0x${span%-*}))
		dd if=/proc/"$1"/mem bs=1M iflag=skip_bytes,count_bytes skip=$start \
			count=$((0x${span#*-} - start)) conv=noerror status=none 2>/dev/null |
			tr -s '\000' '\n' | grep -c -F "$2"
	done <"/proc/$1/maps" | awk '{n += $1} END {print n + 0}'
}

# Replaces the grant of sandbox $1 by the JSON $2.
put_egress() {
	printf 'PUT /v1/sandboxes/%s/egress HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' \
		"$1" ${#2} "$2" >&9
	nc 127.0.0.1 "${URL##*:}" <&9 >"$WORK/reply"
	grep -q '^HTTP/1.1 200' "$WORK/reply"
}

state_is() {
	wget -q -O - "$URL/v1/sandboxes/$1/egress" | grep -q "\"state\": *\"$2\""
}

# Sandbox $1 fetches the page that there is outside.
fetches() {
	run "$1" bash "curl -s http://up.test:$HTTP/hello" | grep -q 'hello from outside'
}

start
plain=$(create)
[ -n "$plain" ] || fail "no sandbox was created"
run "$plain" bash 'curl -s http://up.test/; curl -s -x http://127.0.0.1:3128 http://up.test/' >/dev/null
no_egress || fail "a proxy runs and nobody has a grant"
check_sockets "without a grant"

# With one, from its first connection on.
id=$(create "{\"memory_mib\": 256, \"egress\": {\"allow\": [\"up.test:$HTTP\", \"sealed.test\",
	{\"host\": \"up.test\", \"ports\": [$ECHO], \"tls\": false}],
	\"inject\": {\"sealed.test\": {\"headers\": {\"Authorization\": \"$half-$other\"}, \"intercept\": false}}}}")
[ -n "$id" ] || fail "no sandbox was created with a grant"
vmm=$(vmms | tail -n 1)
fetches "$id" || fail "what is allowed does not work: $(run "$id" bash "curl -sv http://up.test:$HTTP/hello 2>&1")"
one_egress || fail "there should be one proxy: $(egresses)"
proxy=$(egresses)
ok "a proxy runs for the sandbox with a grant: $proxy"

# A tunnel that stays open, a denied name, an address, DNS and raw packets, all at once.
run "$id" python 'import socket\nt = socket.create_connection((\"127.0.0.1\", 3128))\nt.sendall(b\"CONNECT up.test:'$ECHO' HTTP/1.1\\r\\nHost: up.test:'$ECHO'\\r\\n\\r\\n\")\nprint(t.recv(4096))\nt.sendall(b\"ping\")\nprint(t.recv(4))' >"$WORK/tunnel"
grep -q ping "$WORK/tunnel" || fail "the tunnel does not work: $(cat "$WORK/tunnel")"
run "$id" bash 'curl -s http://evil.test/; curl -s https://10.0.2.2/; curl -s -x socks5h://127.0.0.1:1080 http://evil.test/; sudo ping -c 1 -W 1 8.8.8.8; getent hosts evil.test' >/dev/null
check_sockets "while a tunnel is open and others are denied"
grep -q "^$proxy podflare-egress tcp .*:$(printf '%04X' $ECHO) 01" "$WORK/sockets" ||
	fail "the tunnel is not a connection of the proxy: $(cat "$WORK/sockets")"
ok "the tunnel is a connection of the proxy"

# The secret. (Its destination speaks no TLS here; that it arrives is for test_egress_secrets.py.)
run "$id" bash 'curl -s http://sealed.test.egress/' >/dev/null
run "$id" python "marker = 'here:' + '$other'" >/dev/null
[ "$(in_memory "$proxy" "$half-$other")" != 0 ] || fail "the secret is not even in the proxy: the search is none"
[ "$(in_memory "$vmm" "here:$other")" != 0 ] || fail "what the guest holds is not found in its VMM: the search is none"
[ "$(in_memory "$vmm" "$half-$other")" = 0 ] || fail "the secret is in the memory of the VMM"
ok "the secret is in the proxy's memory, and not in that of the sandbox"
child=$(fork "$id" 1)
[ -n "$child" ] || fail "the sandbox was not forked"
fetches "$child" || fail "the fork does not reach what it inherited"
[ "$(in_memory "$(vmms | tail -n 1)" "$half-$other")" = 0 ] || fail "the secret is in the memory of a fork"
for one in $(egresses); do
	[ "$one" = "$proxy" ] || [ "$(in_memory "$one" "$half-$other")" = 0 ] || fail "the secret is in the fork's proxy"
done
ok "nor in a fork's memory, nor in that of its proxy"
delete "/v1/sandboxes/$child" || fail "the fork was not deleted"
within 10 one_egress || fail "the fork's proxy outlives it: $(egresses)"
grep -rl -F "$half-$other" "$STATE" "$LOG" 2>/dev/null | grep . && fail "the secret is in a file"
ok "nor in any file of the daemon's"

# Killed: the tunnel ends, the sandbox works, the next connection has a new one.
kill -9 "$proxy"
within 20 state_is "$id" failed || fail "nobody says that the proxy has ended: $(wget -q -O - "$URL/v1/sandboxes/$id/egress")"
alive "$id" || fail "the sandbox does not survive its proxy"
run "$id" python 'print(repr(t.recv(1)))' | grep -q "b''\|Reset" || fail "the tunnel outlives its proxy"
fetches "$id" || fail "no new proxy is started"
one_egress || fail "there should be one proxy again: $(egresses)"
[ "$(egresses)" != "$proxy" ] && state_is "$id" on || fail "the new proxy is not known"
ok "a proxy that was killed is started again, and its sandbox goes on"

# It ends with the grant, with the sandbox, with the daemon.
put_egress "$id" false || fail "the grant was not taken: $(cat "$WORK/reply")"
within 10 no_egress || fail "the proxy outlives the grant"
put_egress "$id" "{\"allow\": [\"up.test:$HTTP\"]}" || fail "the grant was not given: $(cat "$WORK/reply")"
fetches "$id" || fail "a grant that was given later does not work"
delete "/v1/sandboxes/$id" || fail "the sandbox was not deleted"
within 10 no_egress || fail "the proxy outlives its sandbox"
ok "it ends with the grant and with the sandbox"
id=$(create "{\"memory_mib\": 256, \"egress\": {\"allow\": [\"up.test:$HTTP\"]}}")
fetches "$id" || fail "what is allowed does not work"
kill -9 "$daemon"
wait "$daemon" 2>/dev/null
daemon=
within 10 no_egress || fail "the proxy outlives a daemon that was killed"
ok "and with the daemon, killed or not"

start
id=$(create "{\"memory_mib\": 256, \"egress\": {\"allow\": [\"up.test:$HTTP\"]}}")
fetches "$id" || fail "what is allowed does not work after a restart"
stop
within 10 no_egress || fail "the proxy outlives a clean stop"
ok "a clean stop leaves none"
rm -rf "$LOG" "$WORK"
