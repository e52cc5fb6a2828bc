#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# kill -9 of the daemon, while commands run and forks are under way: no VMM survives, no file is left
# but the database, and the next start is clean.
set -u
. ./common

others=$(all_vmms)

# No VMM but those that were there before.
all_gone() {
	[ -z "$(all_vmms | grep -vxF "$others")" ]
}

start
id=$(create)
[ -n "$id" ] || fail "no sandbox was created"
alive "$id" || fail "the sandbox does not run code"
count_is 2 || fail "there should be a template and a sandbox: $(vmms)"
ok "a sandbox runs: $(vmms | tr '\n' ' ')"

# A long command is under way, so that every kind of stream is open, and so is a fork.
run "$id" bash 'sleep 1000' >/dev/null 2>&1 &
sleep 1
fork "$id" 8 >/dev/null 2>&1 &
tries=1000
while [ "$(count)" -lt 4 ] && [ $tries -gt 0 ]; do
	tries=$((tries - 1))
done

before=$(count)
[ "$before" -ge 4 ] || fail "no fork was under way: only $before VMMs"
kill -9 "$daemon"
wait "$daemon" 2>/dev/null
daemon=
within 10 all_gone || fail "VMMs survive their daemon: $(all_vmms)"
ok "none of $before VMMs survives, forks under way included"
[ -z "$(litter)" ] || fail "files are left: $(litter)"
ok "no file is left but the database: $(cd "$STATE" && echo ./*)"

start
wget -q -O - "$URL/v1/sandboxes" | grep -q '"ready"' && fail "a sandbox of the first daemon is called ready"
again=$(create)
[ -n "$again" ] && [ "$again" != "$id" ] || fail "no new sandbox was created"
alive "$again" || fail "the new sandbox does not run code"
children=$(fork "$again" 2) || fail "the new sandbox cannot be forked"
ok "the next start is clean"

count_is 4 || fail "a template, a sandbox and two forks should run: $(vmms)"
stop
all_gone || fail "VMMs survive a clean stop"
[ -z "$(litter)" ] || fail "files are left after a clean stop: $(litter)"
ok "a clean stop leaves nothing"
rm -rf "$LOG" "$WORK"
