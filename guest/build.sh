#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes everything the guests boot from, in BUILD_DIR/guest; skips what is there already.
#
#   guest/build.sh [--update] BUILD_DIR [kernel] [image] [initramfs] [templates]
#
# Without names: the first three. "image" is that of the template default, "templates" are all
# recipes in guest/images. The initramfs needs BUILD_DIR/podflare-agent. --update fetches the kernel
# and the packages of today instead of keeping what is in the cache.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
	echo "usage: guest/build.sh [--update] BUILD_DIR [kernel] [image] [initramfs] [templates]" >&2
	exit 2
}

update=()
if [ "${1:-}" = --update ]; then
	update=(--update)
	shift
fi
[ $# -ge 1 ] && [ -d "$1" ] || usage
build=$1
shift
[ $# -gt 0 ] || set -- kernel image initramfs

for step in "$@"; do
	case $step in
	kernel) "$here/build-kernel.sh" "${update[@]}" "$build/guest" ;;
	image) /usr/bin/python3 "$here/template.py" --build "$build" build "${update[@]}" default ;;
	templates)
		for recipe in "$here"/images/*/template.toml; do
			/usr/bin/python3 "$here/template.py" --build "$build" build "${update[@]}" \
				"$(dirname "$recipe")"
		done
		;;
	initramfs)
		"$here/build-initramfs.sh" "$build/podflare-agent" "$build/guest/initramfs.cpio"
		;;
	*) usage ;;
	esac
done
