#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes a root image from a plan of template.py: the part of build-image.sh that decides the bytes, and so a part
# of the cache key. No cache, no checks, no explanations here.
#
#   make-root.sh PLAN_DIR WORK_DIR OUT LOG
#
# It is started by contained.py, which leaves of the environment what is needed, and is root: of a namespace or,
# where there can be none, of the machine. The root is made by mmdebstrap, unpacked to WORK_DIR/pack/tree and
# packed as OUT. Prints how far it is; what the tools print goes to LOG. The same package versions give the
# same bytes, whose root it may be.

set -Eeuo pipefail
export LC_ALL=C
umask 022

# The root has programs that are setuid, and what a recipe brings may be private: other users of the machine get to
# nothing in WORK_DIR, wherever that is.
closed() {
	(umask 077 && "$@")
}

SUITE=bookworm
export UUID=706f6466-6c61-7265-8000-000000000001 # of the file system
export SOURCE_DATE_EPOCH=1795000000              # no file is newer than this

PLAN=$1 WORK=$2 OUT=$3 LOG=$4

# The apt lines to build from: those of this machine if it runs the same Debian, so that its mirror
# is used; else nothing, then mmdebstrap knows.
debian_sources() {
	if [ -n "${PODFLARE_DEBIAN_SOURCES:-}" ]; then
		echo "$PODFLARE_DEBIAN_SOURCES"
		return
	fi
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN) $(CODENAME)' \
		'Created-By: Packages' 2>/dev/null | awk -v suite="$SUITE" '
		$3 == "main" && $4 == "Debian" && index($5, suite) == 1 {
			sub("/+$", "", $1)
			lines = lines "deb " $1 " " $2 " " $3 "\n"
			if ($5 == suite)
				whole = 1
		}
		END { if (whole) printf "%s", lines }' | sort -u
}

# Reads the output of mmdebstrap into the log and prints the lines that tell how far it is.
show_progress() {
	local line
	while IFS= read -r line; do
		echo "$line" >>"$LOG"
		case $line in
		"I: running apt-get update"* | "I: downloading packages"* | "I: extracting archives"* | \
			"I: installing essential"* | "I: installing remaining"*)
			echo "image:   ${line#I: }"
			;;
		"I: creating tarball"*) echo "image:   packing..." ;;
		"podflare: "*) echo "image:   ${line#podflare: }" ;;
		esac
	done
}

# Device nodes need rights, and the guest has a devtmpfs. No inline data and no compression: only
# such files can be mapped straight from the image (DAX). Extended attributes would be those that
# this machine gives to files.
unpack_and_pack() {
	tar -x -p --numeric-owner --exclude="./dev/*" -C "$WORK/pack/tree"
	mkfs.erofs --quiet -Enoinline_data -x-1 -T"$SOURCE_DATE_EPOCH" -U "$UUID" "$OUT" "$WORK/pack/tree"
}

# carry NAME DIR: the files of a folder as $WORK/NAME.tar, owned by root, without folders that are not
# empty: in the root they may be links. mmdebstrap carries this in.
carry() {
	closed touch "$WORK/$1.tar"
	(cd "$2" && find . \( ! -type d -o -empty \) ! -path . -print0 | sort -z |
		tar --null --no-recursion -T - -c -f "$WORK/$1.tar" --owner=0 --group=0 --numeric-owner \
			--mtime="@$SOURCE_DATE_EPOCH" --mode='u=rwX,go=rX')
}

packages=$(paste -sd, "$PLAN/packages")
mapfile -t excludes < <(sed 's/^/--dpkgopt=/' "$PLAN/excludes")
mapfile -t sources < <(debian_sources)
carry files "$PLAN/files"
closed mkdir "$WORK/scripts"
cp "$PLAN/customize/"* "$WORK/scripts/" 2>/dev/null || true
cp "$(dirname "$0")/finish-root.sh" "$WORK/scripts/finish"
carry scripts "$WORK/scripts"

# $1 is the root. Digits come before "finish". What of the environment mmdebstrap needs, a proxy's password for
# one, is not for a recipe.
RUN_SCRIPTS='for script in "$1"/root/.podflare/*; do
	case $script in
	*/finish) echo "podflare: byte code and settings..." >&2 ;;
	*) echo "podflare: running customize.sh of ${script##*/[0-9][0-9]-}..." >&2 ;;
	esac
	chroot "$1" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
		LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true \
		SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" "/root/.podflare/${script##*/}" || {
		echo "podflare: the script ${script##*/} failed" >&2
		exit 1
	}
done
rm -r "$1/root/.podflare"'

# The unpacked root sets the mode of its own folder, so that above it is what is closed. apt's downloads are not
# root's: their account may pass to mmdebstrap's. (If it cannot be given that, mmdebstrap has apt do without.)
closed mkdir "$WORK/root" "$WORK/pack"
chown _apt "$WORK/root" 2>>"$LOG" || true
mkdir "$WORK/pack/tree"

exec 3>&1
TMPDIR="$WORK/root" mmdebstrap --mode=root --variant=apt --format=tar --include="$packages" \
	"${excludes[@]}" \
	--customize-hook="tar-in $WORK/files.tar /" \
	--customize-hook='mkdir "$1/root/.podflare"' \
	--customize-hook="tar-in $WORK/scripts.tar /root/.podflare" \
	--customize-hook="$RUN_SCRIPTS" \
	"$SUITE" - "${sources[@]}" 2> >(show_progress >&3) |
	unpack_and_pack >>"$LOG" 2>&1
