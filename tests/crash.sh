#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# kill -9 at random moments while clients create, run, reach out, fork and delete: of the daemon, of
# a template, of a sandbox, of an egress proxy. No process, file or descriptor is left, the next start
# is clean, and no client waits for ever. tests/soak.py starts it as it does soak.sh; egress.json of
# tests/e2e/box is the operator's configuration.
#
#   crash.sh KILLS [cgroups]
#
# cgroups: a group with controllers is delegated to the daemon, each VM has one of its own below it, and
# no group is left either. Needs root.
set -u
. ./common
kills=$1 cgroups=${2:-}

HTTP=18081
mkdir "$WORK/www"
echo "hello from outside" >"$WORK/www/hello"
busybox httpd -f -p 127.0.0.1:$HTTP -h "$WORK/www" &
httpd=$!
trap 'touch "$WORK/halt" 2>/dev/null; kill $httpd 2>/dev/null' EXIT
others=$(all_vmms)

# No request may take longer: the first create behind a kill boots a template.
PATIENCE=120

progress() {
	echo "# $*"
}

proxies() {
	for comm in /proc/[0-9]*/comm; do
		[ "$(cat "$comm" 2>/dev/null)" != podflare-egress ] || echo "${comm#/proc/}" | cut -d/ -f1
	done
}

no_proxies() {
	[ -z "$(proxies)" ]
}

no_vmms() {
	[ -z "$(all_vmms | grep -vxF "$others")" ]
}

# One of the lines of standard input, or nothing; $1 as above.
one_of() {
	cat >"$WORK/choice"
	n=$(wc -l <"$WORK/choice")
	[ "$n" = 0 ] || sed -n "$((1 + $(random "$n" "$1")))p" "$WORK/choice"
}

# What a request is part of, and since when it is under way.
asks() {
	echo "$(cut -d. -f1 /proc/uptime) $*" >"$WORK/asks"
}

# One client. Any of its requests may fail, for what it speaks to may have been killed.
client() {
	mkdir "$WORK/client$1"
	WORK=$WORK/client$1
	mkfifo "$WORK/request"
	exec 9<>"$WORK/request"
	while [ ! -e "$WORK/../halt" ]; do
		asks create
		id=$(create "{\"egress\": {\"allow\": [\"up.test:$HTTP\"]}}" 2>/dev/null)
		if [ -z "$id" ]; then
			sleep 0.3
			continue
		fi
		echo create >>"$WORK/done"
		asks run python
		run "$id" python 'print(6 * 7)' 2>/dev/null | grep -q 42 && echo python >>"$WORK/done"
		asks run curl
		run "$id" bash "curl -s -m 20 http://up.test:$HTTP/hello" 2>/dev/null | grep -q hello &&
			echo egress >>"$WORK/done"
		asks fork
		fork "$id" 2 >"$WORK/children" 2>/dev/null && echo fork >>"$WORK/done"
		for one in $(cat "$WORK/children") "$id"; do
			asks delete
			delete "/v1/sandboxes/$one" && echo delete >>"$WORK/done"
		done
	done
	rm "$WORK/asks"
}

# Fails when a client waits for an answer for too long.
nobody_hangs() {
	for asks in "$WORK"/client*/asks; do
		read -r since what 2>/dev/null <"$asks" || continue
		[ $(($(cut -d. -f1 /proc/uptime) - since)) -le $PATIENCE ] ||
			fail "kill $i: a client waits for an answer to $what since ${PATIENCE} s"
	done
}

clients_gone() {
	[ -z "$(ls "$WORK"/client*/asks 2>/dev/null)" ]
}

# How many sandboxes clients have made; and whether there are more than $1.
made() {
	cat "$WORK"/client*/done 2>/dev/null | grep -c create
}

made_more_than() {
	[ "$(made)" -gt "$1" ]
}

# Each VM has a group, and nobody else, however the ones before it ended.
no_stray_groups() {
	[ -z "$cgroups" ] || within 30 settled || fail "$1: $(groups) groups for $(count) VMMs"
}

[ -z "$cgroups" ] || delegate
start
id=$(create)
alive "$id" || fail "a sandbox does not run code"
[ -z "$cgroups" ] || within 10 groups_are 2 || fail "there are $(groups) groups for a template and a sandbox"
delete "/v1/sandboxes/$id" || fail "a sandbox cannot be deleted"
fds0=$(descriptors)
client 1 &
client 2 &

i=0 daemons=0 oldest=0 sandboxes=0 egresses=0
while [ $i -lt "$kills" ]; do
	i=$((i + 1))
	sleep "$(random 3 $((i + 31))).$(printf %03d "$(random 1000 "$i")")"
	pid='' pause=0
	case $(random 8 $((i + 104729))) in
	0)
		pause=1
		daemons=$((daemons + 1))
		kill -9 "$daemon"
		wait "$daemon" 2>/dev/null
		daemon=
		within 10 no_vmms || fail "kill $i: VMMs survive their daemon: $(all_vmms)"
		within 10 no_proxies || fail "kill $i: proxies survive their daemon: $(proxies)"
		[ -z "$(litter)" ] || fail "kill $i: files are left: $(litter)"
		[ -z "$cgroups" ] || take_back
		start
		;;
	1)
		pid=$(vmms | head -n 1)
		oldest=$((oldest + ${pid:+1}+0)) pause=1
		;;
	2 | 3 | 4)
		pid=$(vmms | tail -n +2 | one_of "$i")
		sandboxes=$((sandboxes + ${pid:+1}+0))
		;;
	*)
		pid=$(proxies | one_of "$i")
		egresses=$((egresses + ${pid:+1}+0))
		;;
	esac
	[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null
	[ -e "/proc/$daemon" ] || fail "the daemon is gone after kill $i"
	nobody_hangs
	no_stray_groups "kill $i"
	# Without template nothing works, and it takes its time to boot: mostly it is given that, so that
	# later kills meet work, sometimes it is killed meanwhile.
	if [ $pause = 1 ] && [ "$(random 4 $((i + 15485863)))" != 0 ]; then
		within $((PATIENCE * 2)) made_more_than "$(made)" || fail "kill $i: no sandbox can be made again"
		nobody_hangs
	fi
	[ $((i % 20)) != 0 ] || progress "$i of $kills kills"
done
touch "$WORK/halt"
within $((PATIENCE * 5)) clients_gone || fail "clients still wait: $(cat "$WORK"/client*/asks)"
cat "$WORK"/client*/done | sort | uniq -c | tr -s ' \n' ' ' >"$WORK/figures"
for what in create python egress fork delete; do
	grep -q $what "$WORK/figures" || fail "between $kills kills not one $what succeeded: $(cat "$WORK/figures")"
done
ok "$kills kills${cgroups:+ with control groups} ($daemons of the daemon, $oldest of the oldest VMM, $sandboxes of another, $egresses of a proxy): nobody hangs; what succeeded between them:$(cat "$WORK/figures")"

for one in $(wget -q -O - "$URL/v1/sandboxes" | grep -o '"id": *"[^"]*"' | ids_of); do
	delete "/v1/sandboxes/$one"
done
id=$(create)
alive "$id" || fail "a new sandbox does not run code"
delete "/v1/sandboxes/$id" || fail "the new sandbox cannot be deleted"
within 10 no_proxies || fail "proxies are left: $(proxies)"
within 10 count_is 1 || fail "VMMs are left beside the template: $(vmms)"
sleep 3
fds=$(descriptors)
[ "$fds" -le $((fds0 + 4)) ] || fail "descriptors of the daemon: $fds0 -> $fds"
no_stray_groups "at rest"
ok "nothing is left: one template, no proxy, descriptors $fds0 -> $fds"
stop
within 10 no_vmms || fail "VMMs survive a clean stop"
[ -z "$(litter)" ] || fail "files are left: $(litter)"
if [ -n "$cgroups" ]; then
	groups_are 0 || fail "$(groups) groups survive a clean stop"
	undelegate
	[ ! -e "$GROUP" ] || fail "groups are left: $(find "$GROUP" -type d)"
fi
ok "a clean stop leaves nothing"
rm -rf "$LOG" "$WORK"
