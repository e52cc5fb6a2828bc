#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds a root image from Debian packages, as root or as an ordinary user.
#
#   build-image.sh [--update] PLAN_DIR OUT_DIR
#   build-image.sh --release ENTRY_DIR
#
# PLAN_DIR is a recipe merged with its bases, written by template.py:
#   name         of the template, for messages
#   key          cache key: a hash of all that decides the image, except the packages of the day
#   needs        MB to download and MB on disk, as far as they are known
#   packages     Debian packages, one a line
#   excludes     dpkg path-exclude and path-include lines
#   files/       copied over the root, owned by root
#   customize/   scripts that run inside the root, in the order of their names
# Makes in OUT_DIR the links rootfs.erofs and manifest into the cache. An image is built once for a
# key; --update builds it anew, with the packages of today. The same package versions give the same
# bytes, whoever builds and wherever. --release removes an entry of the cache that nobody uses.
#
# An entry notes in its file "links" who uses it; what nobody uses goes when KEEP_UNUSED newer ones
# are there that nobody uses.
#
# Environment: PODFLARE_CACHE (see lib.sh), TMPDIR (default /var/tmp), PODFLARE_DEBIAN_SOURCES (apt
# source lines to build from, instead of those of this machine).

SCRIPT=image
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

KEEP_UNUSED=3

# Whether what RUN says is possible.
can_contain() {
	local status=0
	"${RUN[@]}" --check >>"$LOG" 2>&1 || status=$?
	[ "$status" != 3 ] || say "no /proc of its own can be mounted here: what packages and recipes run at a" \
		"build sees this machine's processes, though it can do nothing to them"
	[ "$status" = 0 ] || [ "$status" = 3 ]
}

# choose_runner: sets RUN, what is put before a command that has to do with what is in an image
# (contained.py, by sudo where we may make no namespaces ourselves), and CONTAINED, whether that makes it
# nobody's root here.
choose_runner() {
	local as_root=() contained=$GUEST_DIR/contained.py
	CONTAINED=yes
	RUN=("$contained")
	if [ "$(id -u)" != 0 ]; then
		need_tools uidmap:newuidmap
		! can_contain || return 0
		need_sudo
		as_root=(sudo -n env ${PODFLARE_DEBIAN_SOURCES:+"PODFLARE_DEBIAN_SOURCES=$PODFLARE_DEBIAN_SOURCES"})
		RUN=("${as_root[@]}" "$contained")
	fi
	if ! can_contain; then
		say "root cannot make a user namespace here: what packages and recipes run at a build is" \
			"root of this machine"
		CONTAINED=no
		RUN+=(--uncontained)
	fi
}

# Says why we cannot make namespaces, and sees to it that sudo asks for no password later.
need_sudo() {
	local user problem hint
	user=$(id -un)
	if ! unshare --user true 2>>"$LOG"; then
		problem="this machine does not let ordinary users make user namespaces"
		hint="sudo sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000"
	elif has_range "$user" /etc/subuid && has_range "$user" /etc/subgid; then
		problem="a user namespace with the subordinate ids of $user cannot be made here"
		problem+=" ($(sed -n 's/^contained.py: //p' "$LOG" | tail -n 1))"
		hint="sudo apt-get install --reinstall uidmap"
	else
		problem="$user has no range of 65536 subordinate user ids"
		hint="sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $user"
	fi
	if sudo -n true 2>/dev/null || { [ -t 0 ] && command -v sudo >/dev/null && sudo -v; }; then
		say "$problem; making the root with sudo"
	else
		die "the image cannot be built as $user: $problem" \
			"change that with: $hint" "or build as root"
	fi
}

# has_range USER FILE: whether there are enough subordinate ids for him.
has_range() {
	awk -F: -v user="$1" '$1 == user && $3 >= 65536 { found = 1 } END { exit !found }' "$2" 2>>"$LOG"
}

# Runs a long step in the background and a process group of its own, so that a signal ends this
# script at once and can take the whole step with it.
run_step() {
	set -m
	"$@" &
	STEP=$!
	set +m
	wait "$STEP" || { local status=$?; STEP=; return "$status"; }
	STEP=
}

# Ends the mounts below a folder, the last one first: an mmdebstrap that was killed as root leaves the
# machine's /proc, /sys and /dev/pts in it.
unmount_below() {
	local point points=()
	while read -r _ _ _ _ point _; do
		[[ $point == "$1"/* ]] && points=("$point" "${points[@]}")
	done </proc/self/mountinfo
	for point in "${points[@]}"; do
		umount "$point" 2>/dev/null || sudo -n umount "$point" 2>/dev/null ||
			umount -l "$point" || true
	done
}

# Removes a working folder, of this build or an earlier one, and nothing that is mounted in it; false when it
# is still there. By now another user may have one of that name, where everybody may make some: what is not
# ours is left alone. Files of a build in namespaces belong to ids of these.
clean_work() {
	local work=${1:-} rm=(rm -rf --one-file-system)
	[[ $work == */podflare-image.* && -d $work && ! -L $work && -O $work ]] || return 0
	unmount_below "$work"
	"${rm[@]}" "$work" 2>/dev/null ||
		"$GUEST_DIR/contained.py" "$work/inside" find . -xdev -mindepth 1 -delete >/dev/null 2>&1 ||
		sudo -n "${rm[@]}" "$work/inside" 2>/dev/null || true
	"${rm[@]}" "$work" 2>/dev/null
}

# Removes what earlier builds have left, as far as that is possible: no build fails because one has not tidied up.
clean_works() {
	local list=$PODFLARE_CACHE/image.work work works left=()
	[ -e "$list" ] || return 0
	mapfile -t works <"$list"
	for work in "${works[@]}"; do
		clean_work "$work" || {
			say "cannot remove $work, which a build has left"
			left+=("$work")
		}
	done
	rm -f "$list"
	[ ${#left[@]} -eq 0 ] || printf '%s\n' "${left[@]}" >"$list"
}

on_exit() {
	trap - EXIT ERR
	if [ -n "${STEP:-}" ]; then
		kill -TERM -- "-$STEP" 2>/dev/null || true
		wait "$STEP" 2>/dev/null || true
	fi
	clean_work "${WORK:-}" || true
	clean_works
	rm -rf "${STAGE:-}"
}

step_failed() {
	echo "--- end of the log:" >&2
	sed -E '/^I: |^tar: (This does not look|Exiting with)/d' "$LOG" | tail -n 10 >&2
	die "$1" "$(failure_hint "$LOG")"
}

# inside COMMAND...: runs a tool on what a recipe has made, at $TREE.
inside() {
	"${RUN[@]}" "$WORK/inside" "$@"
}

# make_root PLAN OUT: the image and its check. In namespaces that is in a folder that is /mnt in there, with
# copies of what it needs, as our own folders may be private.
make_root() {
	local plan=$1 work=$WORK/inside scripts=$GUEST_DIR
	local out=/proc/self/fd/200 log=/proc/self/fd/201 run=("${RUN[@]}" --out "$2" --log "$LOG" "$WORK/inside")
	mkdir "$work"
	if [ $CONTAINED = yes ]; then
		mkdir "$work/guest"
		cp -r "$plan" "$work/plan"
		cp "$GUEST_DIR"/{make-root,finish-root}.sh "$work/guest/"
		chmod -R a+rX "$work"
		plan=/mnt/plan work=/mnt scripts=/mnt/guest
	else
		chmod 711 "$WORK" # for apt's account, whom make-root.sh lets to its downloads and nowhere else
	fi
	TREE=$work/pack/tree
	run_step "${run[@]}" "$scripts/make-root.sh" "$plan" "$work" "$out" "$log" ||
		step_failed "the image could not be made"
	"${run[@]}" fsck.erofs "$out" >>"$LOG" 2>&1 || step_failed "the packed image is damaged"
}

write_manifest() {
	local entry=$1
	{
		echo "key $KEY"
		echo "sha256 $(sha256sum <"$entry/rootfs.erofs" | cut -d' ' -f1)"
		echo "size $(stat -c %s "$entry/rootfs.erofs")"
		dpkg-query -W -f='tool ${Package} ${Version}\n' mmdebstrap erofs-utils 2>/dev/null || true
		inside sed -n 's/^deb /source &/p' "$TREE/etc/apt/sources.list"
		inside dpkg-query --admindir="$TREE/var/lib/dpkg" -W \
			-f='package ${Package} ${Version} ${Architecture}\n'
	} >"$entry/manifest"
}

# entry_links ENTRY: the links that lead to an entry now.
entry_links() {
	local link
	[ -e "$1/links" ] || return 0
	sort -u "$1/links" | while IFS= read -r link; do
		[ "$(readlink "$link" 2>/dev/null)" != "$1/rootfs.erofs" ] || printf '%s\n' "$link"
	done
}

# entry_use ENTRY OUT_DIR: makes the links to an entry and notes that they are there.
entry_use() {
	local out
	out=$(cd "$2" && pwd)
	link_to "$1/rootfs.erofs" "$out/rootfs.erofs"
	link_to "$1/manifest" "$out/manifest"
	grep -sqxF "$out/rootfs.erofs" "$1/links" || printf '%s\n' "$out/rootfs.erofs" >>"$1/links"
	touch "$1"
}

# Removes images that nobody uses, except those used last. Call it with the lock held.
prune_images() {
	local entry kept=0
	while IFS= read -r entry; do
		[ -z "$(entry_links "$entry")" ] || continue
		[ $((++kept)) -gt $KEEP_UNUSED ] || continue
		say "removing $entry from the cache, nothing uses it"
		rm -rf "$entry"
	done < <(find "$PODFLARE_CACHE/image" -mindepth 1 -maxdepth 1 -type d -printf '%T@ %p\n' |
		sort -rn | cut -d' ' -f2-)
}

# build PLAN ENTRY: makes the entry in the cache.
build() {
	local plan=$1 place start=$SECONDS download='' disk=''
	need_tools mmdebstrap:mmdebstrap erofs-utils:mkfs.erofs erofs-utils:fsck.erofs tar:tar
	mkdir -p "$STAGE/entry"
	LOG=$STAGE/log
	: >"$LOG"
	choose_runner
	read -r download disk <"$plan/needs" || true
	place=${TMPDIR:-/var/tmp}
	# The root is there twice while it is packed, and the image is about as large.
	need_space "$place" $((${disk:-350} * 5 / 2)) "building the image"
	need_space "$PODFLARE_CACHE" $((${disk:-350} * 5 / 4)) "the image"
	# Not in the cache, which may be in a private home: where there are no namespaces apt's account has to pass.
	# Nobody else has: there are programs in it that are setuid to whomever the root belongs to.
	WORK=$(mktemp -d "$place/podflare-image.XXXXXXXX")
	echo "$WORK" >>"$PODFLARE_CACHE/image.work"
	say "building template $NAME: $(wc -l <"$plan/packages") Debian packages and what they need" \
		"(a few minutes${download:+; $download MB to download, $disk MB unpacked})"
	make_root "$plan" "$STAGE/entry/rootfs.erofs"
	write_manifest "$STAGE/entry"
	sums_write "$STAGE/entry" rootfs.erofs manifest
	[ ! -e "$2/links" ] || cp "$2/links" "$STAGE/entry/links"
	entry_publish "$STAGE/entry" "$2"
	say "built in $((SECONDS - start)) s"
}

release() {
	[ $# -eq 1 ] || die "usage: build-image.sh --release ENTRY_DIR"
	cache_init
	[ "$(dirname "$1")" = "$PODFLARE_CACHE/image" ] || return 0 # another cache's: leave it
	cache_lock image
	if [ -d "$1" ] && [ -z "$(entry_links "$1")" ]; then
		rm -rf "$1"
	fi
}

main() {
	local update=no out plan entry state size
	case ${1:-} in
	--release)
		shift
		release "$@"
		return
		;;
	--update)
		update=yes
		shift
		;;
	esac
	[ $# -eq 2 ] || die "usage: build-image.sh [--update] PLAN_DIR OUT_DIR"
	plan=$1 out=$2
	[ -s "$plan/packages" ] && [ -s "$plan/key" ] || die "$plan is not a plan of template.py"
	NAME=$(cat "$plan/name")
	KEY=$(cat "$plan/key")
	mkdir -p "$out"
	cache_init
	entry=$PODFLARE_CACHE/image/$KEY
	state=$(entry_state "$entry")
	if [ "$state" != good ] || [ $update = yes ]; then
		cache_lock image
		STAGE=$PODFLARE_CACHE/tmp/image.$$
		trap on_exit EXIT
		trap 'exit 130' INT
		trap 'exit 143' TERM HUP
		clean_works
		[ $update = yes ] || state=$(entry_state "$entry") # somebody may have built it by now
		case $state in
		damaged*) say "the image in the cache is $state; building it again" ;;
		esac
		if [ "$state" != good ] || [ $update = yes ]; then
			build "$plan" "$entry"
		fi
		entry_use "$entry" "$out"
		prune_images
	fi
	entry_use "$entry" "$out"
	size=$(stat -c %s "$entry/rootfs.erofs")
	say "ready: template $NAME, $((size / 1048576)) MiB ($out)"
}

main "$@"
