#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A group with controllers is delegated to the daemon: each VM has one of its own below it, with
# limits that the kernel has taken, and each egress proxy; a VM that comes to its limit of memory ends with that reason, and
# alone; nothing is left of them. Needs root, which delegates.
set -u
. ./common

MIB=1048576
delegate

# The directory of the group that process $1 is in.
group_of() {
	echo "$MOUNT$(sed -n 's/^0:://p' "/proc/$1/cgroup")"
}

# The processes in the group of process $1, but for threads of the kernel: KVM puts one of its own into
# the group of whoever makes a VM.
members() {
	for pid in $(cat "$(group_of "$1")/cgroup.procs"); do
		! grep -qs '^VmSize' "/proc/$pid/status" || echo "$pid"
	done
}

# Whether process $1 is alone in a group of a VM's.
alone() {
	case $(group_of "$1") in
	"$GROUP"/podflare-*/vm-*) [ "$(members "$1")" = "$1" ] ;;
	*) false ;;
	esac
}

# Whether all are: a copy that is being made is in the group of its original at first.
all_alone() {
	for pid in $(vmms); do
		alone "$pid" 2>/dev/null || return 1
	done
}

# What is in the file $2 of process $1's group must be $3.
limit_is() {
	found=$(cat "$(group_of "$1")/$2")
	[ "$found" = "$3" ] || fail "$2 of VMM $1 is $found, not $3"
}

youngest() {
	vmms | tail -n 1
}

ended_for_memory() {
	grep -q "came to the limit of memory of its control group" "$LOG"
}

# Until then they make copies that come and go: on a busy host later than the first sandbox is there.
templates_are_ready() {
	[ "$(grep -c "template booting" "$LOG")" = "$(grep -c "template ready" "$LOG")" ]
}

# Where another process is in the way none are used, if that is allowed, and the daemon goes back to where it
# was started.
sleep 1000 &
stray=$!
echo $stray >"$GROUP/cgroup.procs"
PODFLARE_CGROUP=auto
start
grep -q "no control groups.*other processes are in the same group" "$LOG" || fail "the daemon does not say why"
[ "$(group_of "$daemon")" = "$GROUP/podflare-start" ] || fail "the daemon is in $(group_of "$daemon")"
id=$(create)
[ -n "$id" ] && alive "$id" || fail "no sandbox was created"
stop
kill $stray
wait $stray 2>/dev/null
PODFLARE_CGROUP=require
ok "beside another process there are none, and nothing is moved"

start
grep -q "every virtual machine has a control group" "$LOG" || fail "the daemon does not say so"
case $(group_of "$daemon") in
"$GROUP"/podflare-*/daemon) ;;
*) fail "the daemon is in $(group_of "$daemon")" ;;
esac
id=$(create '{"memory_mib": 256, "vcpus": 1, "disk_mib": 64}')
[ -n "$id" ] && alive "$id" || fail "no sandbox was created"
within 300 templates_are_ready || fail "a template does not become ready"
within 10 settled || fail "there are $(groups) groups for $(count) VMMs"
parent=$(youngest)
within 10 all_alone || fail "a VMM is not alone in its group"
ok "daemon and VMMs are in groups of their own: $(groups)"

# Where disks are in memory, they count (src/daemon/vm_limits.h).
disk=0
where=$(df -P "$STATE" | awk 'END {print $6}')
awk -v at="$where" '$2 == at {type = $3} END {exit type != "tmpfs"}' /proc/mounts && disk=64
base=$(((256 + 4 + 128 + 3 * disk) * MIB))
copy=$(((256 + 2 * disk + 1) * MIB + MIB / 2))
limit_is "$parent" memory.max $base
limit_is "$parent" cpu.max "150000 100000"
limit_is "$parent" pids.max 34
[ ! -e "$(group_of "$parent")/memory.swap.max" ] || limit_is "$parent" memory.swap.max 0
ok "its limits are what its size says"

before=$(groups)
children=$(fork "$id" 3) || fail "it cannot be forked"
groups_are $((before + 3)) || fail "there are $(groups) groups, not $((before + 3))"
within 10 all_alone || fail "a VMM is not alone in its group"
limit_is "$parent" memory.max $((base + 3 * copy))
limit_is "$(youngest)" memory.max $base
for child in $children; do
	alive "$child" || fail "the copy $child does not run code"
done
alive "$id" || fail "it does not run code after its fork"
ok "its copies are in groups of their own, and it may have more memory"

proxies() {
	find "$GROUP" -type d -name 'proxy-*'
}

proxy_is_moved() {
	[ -n "$(proxies)" ] && [ -n "$(cat "$(proxies)/cgroup.procs")" ]
}

no_proxies() {
	[ -z "$(proxies)" ]
}

# The limit $1 of the proxy must be $2.
proxy_has() {
	found=$(cat "$(proxies)/$1")
	[ "$found" = "$2" ] || fail "$1 of the proxy is $found, not $2"
}

no_proxies || fail "a proxy has a group and nobody has a grant"
granted=$(create '{"memory_mib": 256, "vcpus": 1, "disk_mib": 64, "egress": {"allow": ["up.test"]}}')
run "$granted" bash 'curl -s http://evil.test/' >/dev/null
within 10 proxy_is_moved || fail "the proxy is in no group of its own: $(proxies)"
[ "$(cat "/proc/$(cat "$(proxies)/cgroup.procs")/comm")" = podflare-egress ] || fail "that is no proxy"
proxy_has memory.max $((768 * MIB))
proxy_has cpu.max "100000 100000"
proxy_has pids.max 8
echo $MIB >"$(proxies)/memory.max" &
ended_proxy() {
	wget -q -O - "$URL/v1/sandboxes/$granted/egress" | grep -q "limit of memory of its control group, 768 MiB"
}
within 30 ended_proxy || fail "a proxy beyond its limit does not end, or not with that reason"
within 10 no_proxies || fail "its group is left"
alive "$granted" || fail "its sandbox does not live"
delete "/v1/sandboxes/$granted" || fail "it cannot be deleted"
within 10 groups_are $((before + 3)) || fail "there are $(groups) groups, not $((before + 3))"
ok "a proxy is in a group of its own, and ends alone when it comes to its limit"

# Guests cannot get there by themselves, so the limit comes to them.
echo $MIB >"$(group_of "$(youngest)")/memory.max" &
within 30 ended_for_memory || fail "a VM beyond its limit does not end, or not with that reason"
within 10 groups_are $((before + 2)) || fail "its group is left"
alive "$id" || fail "its original does not live"
ok "what comes to its limit ends with the reason, alone"

kill -9 "$daemon"
wait "$daemon" 2>/dev/null
daemon=
for controller in cpu memory pids; do
	grep -qw $controller "$GROUP/cgroup.subtree_control" || fail "$controller is not left turned on"
done
! sh -c "echo \$\$ >$GROUP/cgroup.procs" 2>/dev/null || fail "a process gets into the group that was left"
left=$(groups)
[ "$left" -ge 2 ] || fail "no groups were left to be removed"
start
grep -q "that a daemon before this one has left were removed" "$LOG" || fail "left groups are not told of"
id=$(create)
[ -n "$id" ] && alive "$id" || fail "no new sandbox was created"
within 10 groups_are 2 || fail "there are $(groups) groups, not 2"
within 10 all_alone || fail "a VMM is not alone in its group"
limit_is "$(youngest)" pids.max 34
ok "after kill -9 the next start removes $left groups"

stop
groups_are 0 || fail "$(groups) groups are left after a clean stop"
ok "a clean stop leaves none"
undelegate
rm -rf "$LOG" "$WORK"
