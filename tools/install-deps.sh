#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that Podflare needs and that are not there.
#
#   tools/install-deps.sh build   to compile and make the guest image: make
#   tools/install-deps.sh demo    also to run it: make demo
#   tools/install-deps.sh test    also to run all tests: make test (the default)
#   tools/install-deps.sh fuzz    also to measure what the fuzz targets reach: make fuzz-coverage
#   tools/install-deps.sh proof   for make proof
#   tools/install-deps.sh --list build|demo|test|fuzz|proof    only prints the packages
#
# Silent and without network when nothing is missing. Works as root, or with sudo.

set -euo pipefail
export LC_ALL=C

# Groups: what they are for, and the packages. Debian 12 names.
declare -A WHY PACKAGES
WHY[compile]="compiling the programs"
PACKAGES[compile]="make gcc libc6-dev binutils meson ninja-build pkg-config python3
	libmicrohttpd-dev libjansson-dev libmd-dev libsqlite3-dev libseccomp-dev libidn2-dev libc-ares-dev
	libcurl4-openssl-dev libssl-dev"
WHY[image]="making the images that run in virtual machines"
PACKAGES[image]="mmdebstrap debian-archive-keyring erofs-utils lz4 xz-utils zstd uidmap
	busybox-static ca-certificates"
WHY[host]="the emulated host, for machines whose KVM cannot run guests"
PACKAGES[host]="qemu-system-x86 e2fsprogs"
WHY[client]="the Python SDK and the examples"
PACKAGES[client]="python3 python3-httpx"
WHY[tests]="the tests, and the checks of style"
PACKAGES[tests]="libcmocka-dev python3-pytest python3-ipython python3-pip python3-numpy python3-pandas
	python3-matplotlib python3-yaml curl git openssl iproute2 mypy clang libclang-rt-14-dev clang-format
	clang-tidy"
WHY[coverage]="the coverage of the fuzz targets"
PACKAGES[coverage]="llvm"

WHY[proof]="the proofs about code that reads guest memory"
PACKAGES[proof]="make gcc libc6-dev python3 libseccomp-dev frama-c-base"

groups_for() {
	case $1 in
	build) echo compile image ;;
	demo) echo compile image host client ;;
	test) echo compile image host client tests coverage proof ;;
	fuzz) echo compile image host client tests coverage ;;
	proof) echo proof ;;
	*)
		echo "usage: tools/install-deps.sh [--list] [build|demo|test|fuzz|proof]" >&2
		exit 2
		;;
	esac
}

say() {
	echo "install-deps: $*"
}

die() {
	echo "install-deps: error: $1" >&2
	shift
	local hint
	for hint in "$@"; do
		echo "install-deps:   $hint" >&2
	done
	exit 1
}

# Prints those of the given packages that are not installed.
missing_of() {
	local have
	# Architecture and status of every package asked for; unknown ones are left out.
	have=$(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
	printf '%s\n' "$@" | grep -vxF -f <(sed -n 's/^installed //p' <<<"$have") || true
}

check_debian() {
	local id='' version=''
	[ -r /etc/os-release ] && id=$(. /etc/os-release && echo "${ID:-}") &&
		version=$(. /etc/os-release && echo "${VERSION_ID:-}")
	[ "$id" = debian ] && [ "$version" = 12 ] && command -v apt-get >/dev/null ||
		die "this is not Debian 12 (it says: ${id:-unknown} ${version:-})" \
			"Podflare is built on Debian 12; elsewhere, install what corresponds to: $*"
}

# Sets AS_ROOT to what lets us run apt-get.
find_root() {
	AS_ROOT=()
	[ "$(id -u)" != 0 ] || return 0
	local hint="as root: apt-get install --no-install-recommends $*"
	command -v sudo >/dev/null || die "installing packages needs root, and sudo is not there" "$hint"
	# With a terminal, sudo may ask for the password.
	sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; } ||
		die "installing packages needs root, and $(id -un) may not use sudo (without a password)" "$hint"
	AS_ROOT=(sudo)
}

run_apt() {
	"${AS_ROOT[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@"
}

# Reads the output of apt-get into the log and prints how far it is.
show_apt() {
	local line count=0
	while IFS= read -r line; do
		echo "$line" >>"$LOG"
		case $line in
		"Need to get"*) say "  $line" ;;
		"Setting up "*) [ $((++count % 25)) -ne 0 ] || say "  $count packages set up" ;;
		esac
	done
}

UNREACHABLE='Could not resolve|Temporary failure resolving|Could not connect|Unable to connect'
UNREACHABLE+='|Network is unreachable|Connection refused|timed out|Cannot initiate'

registry_answers() {
	! grep -qE "$UNREACHABLE" "$LOG"
}

explain() {
	if ! registry_answers; then
		echo "the Debian package registry cannot be reached:" \
			"check the network, /etc/apt and, if you use one, http_proxy"
	elif grep -q 'No space left on device\|You don.t have enough free space' "$LOG"; then
		echo "the disk is full"
	elif grep -q 'Could not get lock' "$LOG"; then
		echo "another program is installing packages: try again when it has finished"
	elif grep -q 'Unable to locate package\|has no installation candidate' "$LOG"; then
		echo "a package is unknown: does /etc/apt list the main section of Debian 12?"
	else
		echo "apt-get printed: $(grep -E '^(E|W):' "$LOG" | tail -n 1)"
	fi
}

install_failed() {
	die "apt-get could not install what is missing" "$(explain)" \
		"still missing: $(missing_of "$@" | xargs)"
}

install() {
	if ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
		run_apt install --no-install-recommends "$@" 2>&1 | show_apt && return
		registry_answers || install_failed "$@"
		say "that did not work with the package lists of this machine; refreshing them"
	fi
	: >"$LOG"
	run_apt update 2>&1 | show_apt &&
		run_apt install --no-install-recommends "$@" 2>&1 | show_apt || install_failed "$@"
}

main() {
	local list=no groups group missing all=()
	[ "${1:-}" != --list ] || { list=yes; shift; }
	groups=$(groups_for "${1:-test}")
	for group in $groups; do
		read -ra words -d '' <<<"${PACKAGES[$group]}" || true
		all+=("${words[@]}")
	done
	if [ $list = yes ]; then
		printf '%s\n' "${all[@]}" | sort -u
		return
	fi
	command -v dpkg-query >/dev/null || check_debian "${all[@]}"
	mapfile -t missing < <(missing_of "${all[@]}" | sort -u)
	[ ${#missing[@]} -gt 0 ] || return 0

	check_debian "${missing[@]}"
	find_root "${missing[@]}"
	for group in $groups; do
		read -ra words -d '' <<<"${PACKAGES[$group]}" || true
		words=$(missing_of "${words[@]}" | xargs)
		[ -z "$words" ] || say "needed for ${WHY[$group]}: $words"
	done
	say "installing ${#missing[@]} Debian packages and what they depend on"
	LOG=$(mktemp)
	trap 'rm -f "$LOG"' EXIT
	install "${missing[@]}"
	mapfile -t missing < <(missing_of "${all[@]}")
	[ ${#missing[@]} -eq 0 ] || die "still missing after apt-get: ${missing[*]}" "$(explain)"
	say "done"
}

main "$@"
