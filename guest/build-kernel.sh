#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Gets Debian's cloud kernel and takes out of the package what a virtual machine needs, without
# installing it and without special rights.
#
#   build-kernel.sh [--update] [--release NAME] OUT_DIR
#
# Makes in OUT_DIR links into the cache: vmlinuz, vmlinux (the ELF file inside it), modules
# (lib/modules/VERSION of the package) and kernel.manifest. The package is kept in the cache
# with its sha256, because registries delete old kernels; a newer one is fetched with --update only.
#
# The kernel is that of the Debian that apt of this machine knows. With --release it is that of another
# one (trixie), from the same mirrors, with Debian's signature checked; its packages and what is taken out
# of them have a cache of their own. As whoever asks for it can do without, a registry that hangs is
# given up after a while.

SCRIPT=kernel
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

META=linux-image-cloud-amd64 # names the kernel of today
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg # all of Debian's keys, of newer releases, too
RELEASE_SECONDS=${PODFLARE_FETCH_SECONDS:-300}         # for each step with another release

# Sets FETCH, a folder for apt to work in, and APT_USER, who downloads there. Root's apt has an account without
# rights read what a server sends, which may not get to our cache: its folder is elsewhere. Where that account
# cannot be had, as in some containers, root is it. An ordinary user's apt is he himself in any case.
make_fetch() {
	local list=$PODFLARE_CACHE/$KIND.work old
	FETCH=$STAGE/fetch APT_USER=root
	old=$(cat "$list" 2>/dev/null || true)
	# What a killed build left, unless the name is somebody else's by now.
	[[ $old != */podflare-kernel.* || ! -d $old || -L $old || ! -O $old ]] || rm -rf "$old" || true
	if [ "$(id -u)" != 0 ]; then
		mkdir -p "$FETCH/download"
		return
	fi
	FETCH=$(mktemp -d "${TMPDIR:-/var/tmp}/podflare-kernel.XXXXXXXX")
	echo "$FETCH" >"$list"
	need_space "$FETCH" 200 "the kernel's package"
	chmod 755 "$FETCH"
	mkdir "$FETCH/download"
	if chown _apt "$FETCH/download" 2>>"$LOG" &&
		/usr/lib/apt/apt-helper drop-privs -- test -w "$FETCH/download" 2>>"$LOG"; then
		APT_USER=_apt
	fi
}

end_fetch() {
	[ -n "$FETCH" ] || return 0
	rm -rf "$FETCH" "$PODFLARE_CACHE/$KIND.work"
	FETCH=
}

# Runs apt for downloads with package lists of our own, fresh from the registry: for when those of
# the system are missing or old and we may not change them.
private_apt() {
	local tool=$1 dir=$FETCH/apt
	shift
	mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
	"$tool" -q -o Dir::State="$dir/state" -o Dir::State::status=/var/lib/dpkg/status \
		-o Dir::Cache="$dir/cache" -o APT::Sandbox::User="$APT_USER" "$@"
}

system_apt() {
	local tool=$1
	shift
	"$tool" -q -o APT::Sandbox::User="$APT_USER" "$@"
}

# Runs apt as if this machine knew of nothing but the other release.
release_apt() {
	local tool=$1
	shift
	timeout --foreground -k 5 "$RELEASE_SECONDS" "$tool" -q -c "$FETCH/apt/apt.conf" "$@" || {
		local rc=$?
		[ $rc -ne 124 ] || echo "Connection timed out: $tool took $RELEASE_SECONDS s" >>"$LOG"
		return $rc
	}
}

# The sources of this machine for the main section of its own Debian (by its name, or "stable" where
# package lists tell the name), with the other release in the place of this one. Rows of others by the
# same name do no harm: only Debian's keys are good for what comes from these.
release_sources() {
	{ apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(CODENAME) $(COMPONENT)' \
		'Created-By: Packages' 2>>"$LOG" || true; } | awk -v here="$1" -v release="$RELEASE" -v keys="$KEYRING" '
		function base(name) { sub("-(updates|security)$", "", name); return name }
		$4 == "main" && (base($2) == here || base($3) == here) {
			part = substr($2, length(base($2)) + 1)
			print "deb [arch=amd64 target=Packages signed-by=" keys "]", $1, release part, "main"
		}' | sort -u
}

# Makes the configuration of release_apt, and lists the other release with it.
prepare_release() {
	local dir=$FETCH/apt here
	[ -r "$KEYRING" ] || die "missing Debian packages: debian-archive-keyring" \
		"install it with: tools/install-deps.sh build"
	here=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial" "$dir/none"
	: >"$dir/status"
	release_sources "$here" >"$dir/sources.list"
	[ -s "$dir/sources.list" ] || die "apt of this machine has no source of Debian $here, whose mirrors" \
		"could have $RELEASE"
	# Nothing that is to happen after other updates, no wish for a release that is not listed, and no
	# signature is optional, whatever the configuration of this machine says.
	cat >"$dir/apt.conf" <<-CONF
		#clear APT::Update;
		#clear APT::Default-Release;
		Dir::State "$dir/state";
		Dir::State::status "$dir/status";
		Dir::Cache "$dir/cache";
		Dir::Etc::sourcelist "$dir/sources.list";
		Dir::Etc::sourceparts "$dir/none";
		Dir::Etc::preferences "$dir/none/preferences";
		Dir::Etc::preferencesparts "$dir/none";
		APT::Sandbox::User "$APT_USER";
		Acquire::AllowInsecureRepositories "false";
		Acquire::AllowWeakRepositories "false";
		Acquire::AllowDowngradeToInsecureRepositories "false";
		APT::Get::AllowUnauthenticated "false";
		Acquire::Languages "none";
		Acquire::Retries "0";
		Acquire::http::Timeout "10";
		Acquire::https::Timeout "10";
	CONF
	say "fetching the package lists of Debian $RELEASE (10 MB), whose kernel the emulated host is to have"
	# One of several sources is enough: what there is to be had, the lists tell.
	release_apt apt-get update >>"$LOG" 2>&1 || true
}

# fetch_with RUNNER: downloads the newest kernel package into the stage and sets DEB to it.
fetch_with() {
	local package expected size
	package=$("$1" apt-cache depends "$META" 2>>"$LOG" | awk '/Depends: linux-image-/ { print $2 }')
	[ -n "$package" ] || return 1
	read -r expected size < <("$1" apt-cache show --no-all-versions "$package" 2>>"$LOG" |
		awk '/^SHA256:/ { sum = $2 } /^Size:/ { size = $2 } !NF { exit }
			END { print sum, int(size / 1000000 + 0.5) }') || return 1
	say "downloading $package ($size MB)"
	rm -rf "$FETCH/download/"*
	(cd "$FETCH/download" && "$1" apt-get download "$package") >>"$LOG" 2>&1 || return 1
	# A copy is looked at: nobody else has that open.
	cp --no-preserve=all "$FETCH/download/$package"_*.deb "$STAGE/"
	DEB=$(echo "$STAGE/$package"_*.deb)
	[ "$(sha256sum <"$DEB" | cut -d' ' -f1)" = "$expected" ] || {
		echo "Hash Sum mismatch: $DEB" >>"$LOG"
		return 1
	}
}

fetch_failed() {
	echo "--- end of the log:" >&2
	tail -n 5 "$LOG" >&2
	die "cannot download $META${RELEASE:+ of Debian $RELEASE}" "$(failure_hint "$LOG")"
}

fetch_package() {
	need_space "$PODFLARE_CACHE" 400 "the kernel"
	need_tools apt:apt-get apt:apt-cache
	make_fetch
	if [ -n "$RELEASE" ]; then
		prepare_release
		fetch_with release_apt || fetch_failed
	elif ! fetch_with system_apt; then
		registry_answers "$LOG" || fetch_failed
		say "the system's package lists do not help; fetching the lists from the registry"
		private_apt apt-get update >>"$LOG" 2>&1 && fetch_with private_apt || fetch_failed
	fi
	sha256sum <"$DEB" | cut -d' ' -f1 >"$DEB.sha256"
	mv "$DEB.sha256" "$DEB_DIR/"
	mv "$DEB" "$DEB_DIR/"
	end_fetch
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
	need_space "$PODFLARE_CACHE" 300 "the kernel"
	say "extracting ${DEB##*/}"
	mkdir -p "$tree" "$entry"
	dpkg-deb -x "$DEB" "$tree" >>"$LOG" 2>&1 || {
		tail -n 5 "$LOG" >&2
		die "cannot unpack $DEB" "$(failure_hint "$LOG")"
	}
	# From Debian 13 on modules are in /usr, and compressed: modules.py unpacks what is asked for.
	if [ -d "$tree/usr/lib/modules" ]; then
		mkdir -p "$tree/lib"
		mv "$tree/usr/lib/modules" "$tree/lib/"
	fi
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
	sums_write "$entry" vmlinuz vmlinux config manifest modules
	entry_publish "$entry" "$1"
}

main() {
	local update=no out state entry usage="usage: build-kernel.sh [--update] [--release NAME] OUT_DIR"
	local other='^[a-z]+$'
	RELEASE=
	while [ $# -gt 1 ]; do
		case $1 in
		--update) update=yes ;;
		--release)
			[[ $2 =~ $other ]] || die "$usage"
			RELEASE=$2
			shift
			;;
		*) die "$usage" ;;
		esac
		shift
	done
	[ $# -eq 1 ] && [[ $1 != -* ]] || die "$usage"
	out=$1
	cache_init
	KIND=kernel${RELEASE:+-$RELEASE}
	DEB_DIR=$PODFLARE_CACHE/${KIND/kernel/kernel-packages}
	mkdir -p "$out" "$DEB_DIR"
	STAGE=$PODFLARE_CACHE/tmp/$KIND.$$
	LOG=$STAGE/log
	FETCH=
	trap 'end_fetch; rm -rf "$STAGE"' EXIT

	DEB=$(cached_package)
	[ $update = no ] || DEB=
	entry=$(entry_of "${DEB:-none}")
	state=$(entry_state "$entry")
	if [ "$state" != good ]; then
		cache_lock $KIND
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
		cache_prune $KIND 3
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
	echo "$PODFLARE_CACHE/$KIND/${name%.deb}-$(cat "$GUEST_DIR/build-kernel.sh" \
		"$GUEST_DIR/vmlinux.py" | sha256sum | cut -c1-12)"
}

main "$@"
