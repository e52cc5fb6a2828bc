#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# kill -9 at random moments while clients create, run, reach out, fork and delete: of the daemon, of
# a template, of a sandbox, of an egress proxy. No process, file or descriptor is left, the next start
# is clean, no client waits for ever, and each hears the truth: what a request of its kind may answer,
# or the end of its connection where the daemon was killed. tests/soak.py starts it as it does soak.sh;
# egress.json of tests/e2e/box is the operator's configuration.
#
#   crash.sh KILLS SEED [cgroups|plan]
#
# SEED decides about all kills. cgroups: a group with controllers is delegated to the daemon, each VM and
# each proxy has one of its own below it, and no group is left either. Needs root. plan: only says what each kill is to
# be: milliseconds to wait, victim, which of them, whether work is waited for behind one that stops all.
set -u
. ./common
. ./client
kills=$1 cgroups=
[ "${3:-}" != cgroups ] || cgroups=yes
seed "$2"

# Each of the four is drawn for each kill, whether it matters or not, so that the plan is the seed's alone.
next_kill() {
	draw 4000
	delay=$drawn
	draw 8
	case $drawn in
	0) victim=daemon ;;
	1) victim=oldest ;;
	2 | 3 | 4) victim=sandbox ;;
	*) victim=proxy ;;
	esac
	draw 1000000
	which=$drawn
	draw 4
	pause=$((drawn != 0))
}

if [ "${3:-}" = plan ]; then
	i=0
	while [ $((i += 1)) -le "$kills" ]; do
		next_kill
		echo "$delay $victim $which $pause"
	done
	rm -rf "$LOG" "$WORK"
	exit
fi

FATE=$WORK # what clients and killer know of each other
HTTP=18081
mkdir "$WORK/www"
echo "hello from outside" >"$WORK/www/hello"
busybox httpd -f -p 127.0.0.1:$HTTP -h "$WORK/www" &
httpd=$!
trap 'touch "$FATE/halt" 2>/dev/null; kill $httpd 2>/dev/null' EXIT
others=$(all_vmms)

# After so many kills everything is brought to rest and counted.
REST=10
# No request may take longer. The first create behind a kill boots a template, which a busy emulated host
# has taken three minutes for; PODFLARE_TEMPLATE_TIMEOUT and PODFLARE_CREATE_TIMEOUT allow this much.
PATIENCE=750

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

# Neither those, nor more than the clients can have: each a sandbox and two copies, of which one has
# reached out; the template and its rehearsal.
in_order() {
	[ -z "$(strays)" ] && [ "$(proxies | wc -l)" -le $CLIENTS ] && [ "$(count)" -le $((CLIENTS * 3 + 2)) ]
}

# What a request is part of, and since when it is under way.
asks() {
	echo "$(cut -d. -f1 /proc/uptime) $*" >"$WORK/asks"
}

# Client $1. Any of its requests may fail, for what it speaks to may have been killed.
client() {
	mkdir "$FATE/client$1"
	WORK=$FATE/client$1
	mkfifo "$WORK/request"
	exec 9<>"$WORK/request"
	while [ ! -e "$FATE/halt" ]; do
		if [ -e "$FATE/hold" ]; then
			rm -f "$WORK/asks"
			touch "$WORK/rests"
			sleep 0.3
			continue
		fi
		rm -f "$WORK/rests"
		asks create
		if ! asked create POST /v1/sandboxes "{\"egress\": {\"allow\": [\"up.test:$HTTP\"]}}"; then
			sleep 0.3
			continue
		fi
		id=$(ids_of <"$WORK/said" | head -n 1)
		echo create >>"$WORK/done"
		asks run python
		asked run POST "/v1/sandboxes/$id/exec" \
			'{"language": "python", "rich": true, "code": "print(6 * 7)"}' 42 && echo python >>"$WORK/done"
		asks run curl
		asked run POST "/v1/sandboxes/$id/exec" "{\"language\": \"bash\", \"rich\": true,
			\"code\": \"curl -sS -m 20 http://up.test:$HTTP/hello\"}" hello && echo egress >>"$WORK/done"
		asks fork
		: >"$WORK/children"
		asked fork POST "/v1/sandboxes/$id/fork" '{"n": 2}' && echo fork >>"$WORK/done" &&
			sed 's/"results".*//' "$WORK/said" | ids_of | grep -v "^$id\$" >"$WORK/children"
		for one in $(cat "$WORK/children") "$id"; do
			asks delete
			asked delete DELETE "/v1/sandboxes/$one" "" && echo delete >>"$WORK/done"
		done
	done
	rm -f "$WORK/asks"
	touch "$WORK/rests"
}

# Fails when a client waits for an answer for too long.
nobody_hangs() {
	for asks in "$WORK"/client*/asks; do
		read -r since what 2>/dev/null <"$asks" || continue
		[ $(($(cut -d. -f1 /proc/uptime) - since)) -le $PATIENCE ] ||
			fail "kill $i: a client waits for an answer to $what since ${PATIENCE} s"
	done
}

nobody_lies() {
	[ ! -s "$FATE/lies" ] || fail "kill $i: a client was told what is not so: $(head -c 3000 "$FATE/lies")"
}

clients_rest() {
	[ "$(ls "$WORK"/client*/rests 2>/dev/null | wc -l)" = $CLIENTS ]
}

# How many sandboxes clients have made; and whether there are more than $1.
made() {
	cat "$WORK"/client*/done 2>/dev/null | grep -c create
}

made_more_than() {
	[ "$(made)" -gt "$1" ]
}

proxies_settled() {
	[ "$(find "$GROUP" -type d -name 'proxy-*' | wc -l)" = "$(proxies | wc -l)" ]
}

# Each VM has a group and so has each proxy, and nobody else, however the ones before them ended.
no_stray_groups() {
	[ -n "$cgroups" ] || return 0
	within 30 settled || fail "$1: $(groups) groups for $(count) VMMs"
	within 30 proxies_settled || fail "$1: groups of proxies, for $(proxies | wc -l): $(find "$GROUP" -name 'proxy-*')"
}

# A sandbox can be made, works and can be deleted. Of a template that was just killed the first create
# may fail.
works() {
	id=$(create) && [ -n "$id" ] || return 1
	alive "$id" || fail "kill $i: a new sandbox does not run code"
	delete "/v1/sandboxes/$id" || fail "kill $i: the new sandbox cannot be deleted"
}

descriptors_are_back() {
	fds=$(descriptors)
	[ "$fds" -le $((fds0 + 1)) ]
}

# Clients stand still, and everything is as it was before the first of them: no sandbox that they know of,
# one template, no proxy, no group and no descriptor too many. $1: hold, they go on afterwards, or halt.
rest() {
	rm -f "$WORK"/client*/rests
	touch "$FATE/$1"
	within $((PATIENCE * 2)) clients_rest || fail "kill $i: clients still wait: $(cat "$WORK"/client*/asks)"
	nobody_lies
	for one in $(wget -q -O - "$URL/v1/sandboxes" | grep -o '"id": *"[^"]*"' | ids_of); do
		delete "/v1/sandboxes/$one" || fail "kill $i: $one cannot be deleted"
	done
	within $PATIENCE works || fail "kill $i: no sandbox can be made"
	within 10 no_proxies || fail "kill $i: proxies are left: $(proxies)"
	within 10 count_is 1 || fail "kill $i: VMMs are left beside the template: $(vmms)"
	[ -z "$(strays)" ] || fail "kill $i: processes are left: $(strays)"
	within 10 descriptors_are_back || fail "kill $i: descriptors of the daemon: $fds0 -> $fds"
	no_stray_groups "kill $i, at rest"
	rm -f "$FATE/hold"
}

CLIENTS=2 i=0
echo 0 >"$FATE/killed"
[ -z "$cgroups" ] || delegate
start
id=$(create)
alive "$id" || fail "a sandbox does not run code"
[ -z "$cgroups" ] || within 10 groups_are 2 || fail "there are $(groups) groups for a template and a sandbox"
delete "/v1/sandboxes/$id" || fail "a sandbox cannot be deleted"
within 10 count_is 1 || fail "VMMs are left beside the template: $(vmms)"
fds0=$(descriptors)
while [ $((i += 1)) -le $CLIENTS ]; do
	client $i &
done

i=0 daemons=0 oldest=0 sandboxes=0 egresses=0
while [ $i -lt "$kills" ]; do
	i=$((i + 1))
	next_kill
	sleep "$((delay / 1000)).$(printf %03d $((delay % 1000)))"
	pid=''
	case $victim in
	daemon)
		daemons=$((daemons + 1))
		echo $daemons >"$FATE/killed"
		echo down >"$FATE/down"
		kill -9 "$daemon"
		wait "$daemon" 2>/dev/null
		daemon=
		within 10 no_vmms || fail "kill $i: VMMs survive their daemon: $(all_vmms)"
		within 10 no_proxies || fail "kill $i: proxies survive their daemon: $(proxies)"
		[ -z "$(litter)" ] || fail "kill $i: files are left: $(litter)"
		start
		rm "$FATE/down"
		;;
	oldest)
		pid=$(vmms | head -n 1)
		oldest=$((oldest + ${pid:+1}+0))
		;;
	sandbox)
		pid=$(vmms | tail -n +2 | line "$which")
		sandboxes=$((sandboxes + ${pid:+1}+0))
		;;
	proxy)
		pid=$(proxies | line "$which")
		egresses=$((egresses + ${pid:+1}+0))
		;;
	esac
	[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null
	[ -e "/proc/$daemon" ] || fail "the daemon is gone after kill $i"
	nobody_hangs
	nobody_lies
	within 20 in_order || fail "kill $i: strays: $(strays), VMMs: $(vmms), proxies: $(proxies)"
	no_stray_groups "kill $i"
	# Without a template nothing works, and it takes its time to boot: mostly it is given that, so that
	# later kills meet work, sometimes it is killed meanwhile.
	if [ $pause = 1 ] && { [ "$victim" = daemon ] || [ "$victim" = oldest ]; }; then
		within $((PATIENCE * 2)) made_more_than "$(made)" || fail "kill $i: no sandbox can be made again"
		nobody_hangs
	fi
	if [ $((i % REST)) = 0 ]; then
		rest hold
		progress "$i of $kills kills, at rest: descriptors $fds0 -> $fds"
	fi
done
rest halt
cat "$WORK"/client*/done | sort | uniq -c | tr -s ' \n' ' ' >"$WORK/figures"
for what in create python egress fork delete; do
	grep -q $what "$WORK/figures" || fail "between $kills kills not one $what succeeded: $(cat "$WORK/figures")"
done
progress "what requests were answered: $(cat "$WORK"/client*/verdicts | sort | uniq -c | tr -s ' ' | tr '\n' ',')"
ok "$kills kills${cgroups:+ with control groups} ($daemons of the daemon, $oldest of the oldest VMM, $sandboxes of another, $egresses of a proxy): nobody hangs, nobody is lied to; what succeeded between them:$(cat "$WORK/figures")"
ok "nothing is left: one template, no proxy, descriptors $fds0 -> $fds"
stop
within 10 no_vmms || fail "VMMs survive a clean stop"
[ -z "$(litter)" ] || fail "files are left: $(litter)"
if [ -n "$cgroups" ]; then
	groups_are 0 || fail "$(groups) groups survive a clean stop"
	proxies_settled || fail "groups of proxies survive a clean stop: $(find "$GROUP" -name 'proxy-*')"
	undelegate
	[ ! -e "$GROUP" ] || fail "groups are left: $(find "$GROUP" -type d)"
fi
ok "a clean stop leaves nothing"
rm -rf "$LOG" "$WORK"
