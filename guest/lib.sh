# SPDX-License-Identifier: Apache-2.0
# Shared by the build scripts of guest/ (sourced by bash): messages, the cache, the lock.
#
# The cache is ${PODFLARE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/podflare}:
#   KIND/KEY/       one finished entry; it appears by rename, so it is whole or not there
#   KIND/KEY/sums   "sha256 size stamp name" of every file that must not change
#   KIND.lock       held while an entry of that kind is made
#   tmp/KIND.*      work in progress; what a killed build left is removed by the next one

set -Eeuo pipefail
trap 'echo "${SCRIPT:-guest}: error: ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND failed" >&2' ERR
umask 022
export LC_ALL=C

PYTHON=/usr/bin/python3
GUEST_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# say TEXT...: one line about what is being done.
say() {
	printf '%s: %s\n' "${SCRIPT:-guest}" "$*"
}

# die TEXT [HINT...]: ends the script; the first line says what failed, the others what to do.
die() {
	printf '%s: error: %s\n' "${SCRIPT:-guest}" "$1" >&2
	shift
	local hint
	for hint in "$@"; do
		printf '%s:   %s\n' "${SCRIPT:-guest}" "$hint" >&2
	done
	exit 1
}

# need_tools PACKAGE:COMMAND...: all commands must be there; names every missing package at once.
need_tools() {
	local item missing=()
	for item in "$@"; do
		command -v "${item#*:}" >/dev/null 2>&1 || missing+=("${item%%:*}")
	done
	[ ${#missing[@]} -eq 0 ] ||
		die "missing Debian packages: ${missing[*]}" "install them with: tools/install-deps.sh demo"
}

# free_mib DIR: free space of the file system that DIR is on.
free_mib() {
	df -BM --output=avail "$1" | awk 'NR == 2 { sub("M", ""); print $1 }'
}

# need_space DIR MIB WHAT: ends the script early when the disk is too full for what is planned.
need_space() {
	local free
	free=$(free_mib "$1") || die "cannot find out the free space of $1"
	[ "$free" -ge "$2" ] ||
		die "not enough disk space for $3: $1 has $free MiB free, $2 MiB are needed" \
			"free some space, or choose another place with PODFLARE_CACHE=DIR (and TMPDIR=DIR)"
}

cache_init() {
	if [ -z "${PODFLARE_CACHE:-}" ]; then
		[ -n "${XDG_CACHE_HOME:-}${HOME:-}" ] ||
			die "neither HOME nor PODFLARE_CACHE is set" "set PODFLARE_CACHE=DIR"
		PODFLARE_CACHE=${XDG_CACHE_HOME:-${HOME:-}/.cache}/podflare
	fi
	mkdir -p "$PODFLARE_CACHE/tmp" 2>/dev/null && [ -w "$PODFLARE_CACHE/tmp" ] ||
		die "the cache folder $PODFLARE_CACHE cannot be written" \
			"choose another place with PODFLARE_CACHE=DIR"
	PODFLARE_CACHE=$(cd "$PODFLARE_CACHE" && pwd)
}

# cache_lock KIND: waits until no other build of this kind runs, then removes what dead ones left.
# The lock lives as long as this process and its children.
cache_lock() {
	exec 9>"$PODFLARE_CACHE/$1.lock"
	if ! flock -n 9; then
		say "another build of the $1 is running; waiting for it"
		flock 9
	fi
	rm -rf "$PODFLARE_CACHE/tmp/$1".*
}

# sums_write DIR NAME...: records files of an unpublished entry, and all that are in folders. They become
# read-only, and are on the disk before anything says that they are whole.
sums_write() {
	local names sums stamps
	(
		cd "$1"
		shift
		mapfile -d '' -t names < <(find "$@" -type f -print0 | sort -z)
		chmod 444 "${names[@]}"
		sums=$(sha256sum "${names[@]}")
		stamps=$(stat -c '%s %i:%.9Y %n' "${names[@]}")
		paste -d' ' <(cut -d' ' -f1 <<<"$sums") <(echo "$stamps") >sums.new
		if [ ${#names[@]} -gt 16 ]; then
			sync -f sums.new # the whole file system: a thousand modules one by one take longer
		else
			sync sums.new "${names[@]}"
		fi
		mv sums.new sums
	)
}

# entry_state DIR: prints "good", "absent" or "damaged: REASON". A file whose size, inode and time
# are as recorded is believed; any other is read and compared with its sha256.
entry_state() {
	local sum size stamp name row doubtful=()
	local -A now=()
	[ -d "$1" ] || { echo absent; return; }
	[ -s "$1/sums" ] || { echo "damaged: it has no list of sums"; return; }
	while read -r size stamp name; do
		now[$name]="$size $stamp"
	done < <(cd "$1" && cut -d' ' -f4- sums | tr '\n' '\0' | xargs -0 stat -c '%s %i:%.9Y %n' 2>/dev/null)
	while read -r sum size stamp name; do
		[ -n "$name" ] || { echo "damaged: its list of sums is not whole"; return; }
		row=${now[$name]:-}
		[ -n "$row" ] || { echo "damaged: $name is missing"; return; }
		[ "${row%% *}" = "$size" ] ||
			{ echo "damaged: $name has ${row%% *} bytes instead of $size"; return; }
		[ "$row" = "$size $stamp" ] || doubtful+=("$sum  $name")
	done <"$1/sums"
	if [ ${#doubtful[@]} -gt 0 ] &&
		! name=$(cd "$1" && printf '%s\n' "${doubtful[@]}" | sha256sum --quiet -c 2>/dev/null); then
		echo "damaged: the contents of ${name%%: FAILED*} have changed"
		return
	fi
	echo good
}

# entry_publish STAGE DIR: makes a finished stage the entry DIR, in the place of an older one.
entry_publish() {
	mkdir -p "$(dirname "$2")"
	rm -rf "$1.old"
	[ ! -e "$2" ] || mv -T "$2" "$1.old"
	mv -T "$1" "$2"
	rm -rf "$1.old"
}

# cache_prune KIND KEEP: keeps the KEEP entries of KIND used last.
cache_prune() {
	local entry
	find "$PODFLARE_CACHE/$1" -mindepth 1 -maxdepth 1 -type d -printf '%T@ %p\n' | sort -rn |
		tail -n +$(($2 + 1)) | cut -d' ' -f2- | while read -r entry; do
		say "removing $entry from the cache, it was not used lately"
		rm -rf "$entry"
	done
}

# link_to TARGET LINK: points LINK to TARGET at once (no moment without it).
link_to() {
	[ "$(readlink "$2" 2>/dev/null)" != "$1" ] || return 0
	[ ! -d "$2" ] || [ -L "$2" ] || rm -rf "$2"
	ln -sfn "$1" "$2.new.$$"
	mv -fT "$2.new.$$" "$2"
}

# What apt and mmdebstrap print when a registry cannot be reached.
UNREACHABLE='Could not resolve|Temporary failure resolving|Could not connect|Unable to connect'
UNREACHABLE+='|Network is unreachable|Connection refused|Connection timed out|Connection failed|Cannot initiate'

# registry_answers LOG: false when a log tells that the package registry could not be reached.
registry_answers() {
	! grep -qE "$UNREACHABLE" "$1"
}

# failure_hint LOG: prints a sentence about the likely cause of a failed download or build.
failure_hint() {
	if ! registry_answers "$1"; then
		echo "the Debian package registry cannot be reached:" \
			"check the network and, if you use one, http_proxy"
	elif grep -qE 'No space left on device' "$1"; then
		echo "the disk is full: free some space," \
			"or choose another place with PODFLARE_CACHE=DIR and TMPDIR=DIR"
	elif grep -qE '404 +Not Found|Hash Sum mismatch|File has unexpected size' "$1"; then
		echo "the registry is being updated or your package lists are old:" \
			"run apt-get update and try again"
	elif grep -qE 'Unable to locate package|has no installation candidate' "$1"; then
		echo "Debian does not have one of the packages:" \
			"$(sed -nE "s/.*(Unable to locate package [^ ]+|Package .* has no installation.*)/\1/p" \
				"$1" | head -n 1)"
	elif grep -qE "does not have a Release file" "$1" && ! grep -qE 'BADSIG|NO_PUBKEY|not signed' "$1"; then
		echo "the mirror of this machine does not have that release of Debian"
	elif grep -qE 'NO_PUBKEY|not signed|EXPKEYSIG|expired' "$1"; then
		echo "the signature of the registry could not be checked:" \
			"is debian-archive-keyring up to date, is the clock right?"
	else
		echo "the cause is in the lines above"
	fi
}
