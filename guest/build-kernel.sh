#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Gets Debian's cloud kernel and takes out of the package what the guest needs, without installing
# it and without special rights.
#
#   build-kernel.sh [--update] OUT_DIR
#
# Makes in OUT_DIR links into the cache: vmlinuz, vmlinux (the ELF file inside it), modules
# (lib/modules/VERSION of the package) and kernel.manifest. The package is kept in the cache
# with its sha256, because registries delete old kernels; a newer one is fetched with --update only.

SCRIPT=kernel
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

META=linux-image-cloud-amd64 # names the kernel of today

# Runs apt for downloads with package lists of our own, fresh from the registry: for when those of
# the system are missing or old and we may not change them.
private_apt() {
	local tool=$1 dir=$STAGE/apt
	shift
	mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
	"$tool" -q -o Dir::State="$dir/state" -o Dir::State::status=/var/lib/dpkg/status \
		-o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root "$@"
}

system_apt() {
	local tool=$1
	shift
	"$tool" -q -o APT::Sandbox::User=root "$@"
}

# fetch_with RUNNER: downloads the newest kernel package into the stage and sets DEB to it.
fetch_with() {
	local package expected
	package=$("$1" apt-cache depends "$META" 2>>"$LOG" | awk '/Depends: linux-image-/ { print $2 }')
	[ -n "$package" ] || return 1
	say "downloading $package (27 MB)"
	expected=$("$1" apt-cache show --no-all-versions "$package" 2>>"$LOG" |
		awk '/^SHA256:/ { print $2; exit }')
	(cd "$STAGE" && "$1" apt-get download "$package") >>"$LOG" 2>&1 || return 1
	DEB=$(echo "$STAGE/$package"_*.deb)
	[ "$(sha256sum <"$DEB" | cut -d' ' -f1)" = "$expected" ] || {
		echo "Hash Sum mismatch: $DEB" >>"$LOG"
		return 1
	}
}

fetch_failed() {
	echo "--- end of the log:" >&2
	tail -n 5 "$LOG" >&2
	die "cannot download $META" "$(failure_hint "$LOG")"
}

fetch_package() {
	need_space "$PODFLARE_CACHE" 400 "the guest kernel"
	need_tools apt:apt-get apt:apt-cache
	if ! fetch_with system_apt; then
		registry_answers "$LOG" || fetch_failed
		say "the system's package lists do not help; fetching the lists from the registry"
		private_apt apt-get update >>"$LOG" 2>&1 && fetch_with private_apt || fetch_failed
	fi
	sha256sum <"$DEB" | cut -d' ' -f1 >"$DEB.sha256"
	mv "$DEB.sha256" "$DEB_DIR/"
	mv "$DEB" "$DEB_DIR/"
	DEB=$DEB_DIR/${DEB##*/}
}

# The newest package in the cache, or nothing.
cached_package() {
	find "$DEB_DIR" -maxdepth 1 -name 'linux-image-*_amd64.deb' | sort -V | tail -n 1
}

package_is_whole() {
	[ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$(cat "$1.sha256" 2>/dev/null)" ]
}

extract() {
	local tree=$STAGE/tree entry=$STAGE/entry release
	need_tools dpkg:dpkg-deb python3:"$PYTHON" lz4:lz4 xz-utils:xz zstd:zstd
	need_space "$PODFLARE_CACHE" 300 "the guest kernel"
	say "extracting ${DEB##*/}"
	mkdir -p "$tree" "$entry"
	dpkg-deb -x "$DEB" "$tree" >>"$LOG" 2>&1 || {
		tail -n 5 "$LOG" >&2
		die "cannot unpack $DEB" "$(failure_hint "$LOG")"
	}
	release=$(ls "$tree/lib/modules")
	mv "$tree/boot/vmlinuz-$release" "$entry/vmlinuz"
	mv "$tree/boot/config-$release" "$entry/config"
	mv "$tree/lib/modules/$release" "$entry/modules"
	"$PYTHON" "$GUEST_DIR/vmlinux.py" "$entry/vmlinuz" "$entry/vmlinux" ||
		die "cannot take the kernel out of vmlinuz of ${DEB##*/}"
	{
		echo "release $release"
		echo "package ${DEB##*/}"
		echo "package-sha256 $(cat "$DEB.sha256")"
		(cd "$entry" && sha256sum vmlinuz vmlinux | awk '{ print $2 "-sha256 " $1 }')
	} >"$entry/manifest"
	sums_write "$entry" vmlinuz vmlinux manifest
	entry_publish "$entry" "$1"
}

main() {
	local update=no out state entry
	[ "${1:-}" != --update ] || { update=yes; shift; }
	[ $# -eq 1 ] || die "usage: build-kernel.sh [--update] OUT_DIR"
	out=$1
	cache_init
	DEB_DIR=$PODFLARE_CACHE/kernel-packages
	mkdir -p "$out" "$DEB_DIR"
	STAGE=$PODFLARE_CACHE/tmp/kernel.$$
	LOG=$STAGE/log
	trap 'rm -rf "$STAGE"' EXIT

	DEB=$(cached_package)
	[ $update = no ] || DEB=
	entry=$(entry_of "${DEB:-none}")
	state=$(entry_state "$entry")
	if [ "$state" != good ]; then
		cache_lock kernel
		mkdir -p "$STAGE"
		: >"$LOG"
		[ -n "$DEB" ] || [ $update = yes ] || DEB=$(cached_package)
		if [ -n "$DEB" ] && ! package_is_whole "$DEB"; then
			say "${DEB##*/} in the cache is damaged; fetching it again"
			rm -f "$DEB" "$DEB.sha256"
			DEB=
		fi
		[ -n "$DEB" ] || fetch_package
		entry=$(entry_of "$DEB")
		state=$(entry_state "$entry") # another build may have made it while we waited
		case $state in
		damaged*) say "the extracted kernel in the cache is ${state}; extracting it again" ;;
		esac
		[ "$state" = good ] || extract "$entry"
		cache_prune kernel 3
	fi
	touch "$entry"
	link_to "$entry/vmlinux" "$out/vmlinux"
	link_to "$entry/vmlinuz" "$out/vmlinuz"
	link_to "$entry/modules" "$out/modules"
	link_to "$entry/manifest" "$out/kernel.manifest"
	say "ready: $(sed -n 's/^release //p' "$entry/manifest") ($out/vmlinux)"
}

# The entry of a package: its name, and the scripts that decide what is taken out of it.
entry_of() {
	local name=${1##*/}
	echo "$PODFLARE_CACHE/kernel/${name%.deb}-$(cat "$GUEST_DIR/build-kernel.sh" \
		"$GUEST_DIR/vmlinux.py" | sha256sum | cut -c1-12)"
}

main "$@"
