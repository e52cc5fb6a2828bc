#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Makes the emulated host from what is in the build directory:
#
#   box/build.sh [--update] BUILD_DIR
#
#   BUILD_DIR/box/kernel/          Debian 13's cloud kernel: links of guest/build-kernel.sh
#   BUILD_DIR/box/vmlinux          its kernel (a link): that, or the guests' where it cannot be had
#   BUILD_DIR/box/kernel.manifest  which one that is
#   BUILD_DIR/box/initramfs.cpio   kernel modules, busybox, box/init
#   BUILD_DIR/box/programs.erofs   its root: podflared, podflare-vmm, podflare-egress with the groups of
#                                  allowlists, their libraries, busybox, this host's CA certificates,
#                                  and the kernel and initramfs of the guests
#
# The images of templates are not copied: each is a disk of its own. Nothing is done when neither
# the inputs nor what was made of them have changed. --update fetches the kernel of today. Where
# Debian 13's cannot be had, that is said and tried again after a day.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)

die() {
	echo "box/build.sh: $*" >&2
	exit 1
}

update=()
if [ "${1:-}" = --update ]; then
	update=(--update)
	shift
fi
[ $# -eq 1 ] || die "usage: box/build.sh [--update] BUILD_DIR"
[ -d "$1" ] || die "there is no directory $1"
build=$(cd "$1" && pwd)
guest=$build/guest
out=$build/box
modules=(virtio_pci virtio_blk virtio_net virtio_console erofs kvm-amd)

for file in podflared podflare-vmm podflare-egress groups.json guest/vmlinux guest/initramfs.cpio guest/modules; do
	[ -e "$build/$file" ] || die "$build/$file is missing: run make first"
done
for tool in mkfs.erofs strip ldd python3; do
	[ -n "$(PATH=$PATH:/usr/sbin:/sbin type -P $tool)" ] || die "$tool is missing: run tools/install-deps.sh"
done
PATH=$PATH:/usr/sbin:/sbin
busybox=$(type -P busybox) || die "busybox is missing: run tools/install-deps.sh"
! ldd "$busybox" >/dev/null 2>&1 || die "$busybox is not static: install busybox-static"

# Programs and their libraries, each at the path where the loader looks for it.
programs=("$build/podflared" "$build/podflare-vmm" "$build/podflare-egress")
mapfile -t libraries < <(ldd "${programs[@]}" | awk '$2 == "=>" && $3 ~ /^\// {print $3}
	$1 ~ /^\/.*ld-linux/ {print $1}
	/not found/ {print "missing:" $1}' | sort -u)
for library in "${libraries[@]}"; do
	[[ $library != missing:* ]] || die "a program needs ${library#missing:}, which is not installed"
done

# What podflare-egress trusts. A file that is made by update-ca-certificates.
certificates=/etc/ssl/certs/ca-certificates.crt
[ -s $certificates ] || die "$certificates is missing: run tools/install-deps.sh"

# A kernel of its own: KVM of 6.11 and later can map a fork's memory ahead of time
# (KVM_PRE_FAULT_MEMORY), which saves the more, the slower a page fault is. It is worth neither a failed
# build nor a silent registry at every make: after a failure the next try is a day later.
kernel_release=trixie
kernel=$out/kernel
failed=$out/kernel.failed
mkdir -p "$out"

# What build-kernel.sh gave as the cause, for the end of a line.
cause() {
	local text
	text=$(sed -nE 's/^kernel: *(error: )?//p' "$failed" | tail -n 1)
	case $text in
	'' | *"lines above") echo "see $failed" ;;
	*) echo "$text" ;;
	esac
}

if [ ${#update[@]} -gt 0 ] || [ -z "$(find "$failed" -mtime -1 2>/dev/null)" ]; then
	if "$here/../guest/build-kernel.sh" "${update[@]}" --release $kernel_release "$kernel" 2>"$failed.new"; then
		rm -f "$failed" "$failed.new"
	else
		mv "$failed.new" "$failed"
		[ ! -e "$kernel/vmlinux" ] ||
			echo "box: the emulated host keeps its kernel, there is no newer one to be had: $(cause)"
	fi
fi
if [ ! -e "$kernel/vmlinux" ]; then
	kernel=$guest
	echo "box: the emulated host uses the guests' kernel, which makes forks slower there, because Debian" \
		"$kernel_release's cannot be had: $(cause) (tried again after a day, or by box/build.sh --update $1)"
fi

# One line that changes when any input does. Large files by size and time, small ones by content.
stamp=$({
	stat -Lc '%n %s %Y' "${programs[@]}" "${libraries[@]}" "$busybox" \
		"$guest/vmlinux" "$guest/initramfs.cpio"
	readlink -f "$guest/modules" "$kernel/vmlinux" "$kernel/modules"
	cat "$kernel/kernel.manifest"
	cat $certificates "$build/groups.json"
	cat "$here"/{build.sh,init,rc,box-podflared} "$here"/../guest/{modules.py,mkcpio.py}
} | sha256sum)

# And one for each file that is made of them. Where one is gone, or not what was written, all are made again.
made=(programs.erofs initramfs.cpio kernel.manifest)
outputs() {
	(cd "$out" && stat -c '%n %s %.9Y' "${made[@]}" && readlink vmlinux) 2>/dev/null || echo missing
}
if [ -e "$out/stamp" ] && [ "$(cat "$out/stamp")" = "$stamp"$'\n'"$(outputs)" ]; then
	exit 0
fi

rm -f "$out/stamp"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

/usr/bin/python3 "$here/../guest/modules.py" --copy "$work/modules" "$kernel/modules" "${modules[@]}"
/usr/bin/python3 "$here/../guest/mkcpio.py" "$work/initramfs.cpio" - <<-SPEC
	dir /dev
	dir /proc
	dir /sys
	dir /root
	file /init "$here/init" 755
	file /bin/busybox "$busybox" 755
	tree /modules "$work/modules"
SPEC

tree=$work/programs
mkdir -p "$tree"/{bin,sbin,dev,etc/ssl/certs,guest,proc,root,run,state,sys,tmp,usr/bin}
install -m 755 "$busybox" "$tree/bin/busybox"
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -s busybox "$tree/bin/$applet"
done
install -m 755 "$here/rc" "$tree/sbin/init"
install -m 755 "$here/box-podflared" "$tree/usr/bin/"
for program in "${programs[@]}"; do
	strip -o "$tree/usr/bin/$(basename "$program")" "$program"
done
# Where podflared looks: beside itself.
install -m 644 "$build/groups.json" "$tree/usr/bin/"
install -m 644 $certificates "$tree$certificates"
for library in "${libraries[@]}"; do
	mkdir -p "$tree$(dirname "$library")"
	install -m 755 "$library" "$tree$library"
done
cp -L "$guest/vmlinux" "$guest/initramfs.cpio" "$tree/guest/"
printf '%s\n' root:x:0:0:root:/root:/bin/sh podflare:x:1000:1000::/state:/bin/sh >"$tree/etc/passwd"
printf '%s\n' root:x:0: tty:x:5: podflare:x:1000: >"$tree/etc/group"
printf '%s\n' '127.0.0.1 localhost podflare-box' >"$tree/etc/hosts"
# QEMU's user network has a resolver there, which asks those of this host.
printf '%s\n' 'nameserver 10.0.2.3' >"$tree/etc/resolv.conf"
log=$work/mkfs.log
mkfs.erofs --all-root -T0 -U 00000000-0000-0000-0000-000000000000 "$work/programs.erofs" "$tree" \
	>"$log" 2>&1 || die "mkfs.erofs failed: $(tail -n 3 "$log")"

cp "$kernel/kernel.manifest" "$work/"
(cd "$work" && sync "${made[@]}" && mv -f "${made[@]}" "$out/")
if [ "$kernel" = "$guest" ]; then
	ln -sfn ../guest/vmlinux "$out/vmlinux"
else
	ln -sfn kernel/vmlinux "$out/vmlinux"
fi
printf '%s\n' "$stamp" "$(outputs)" >"$out/stamp.new"
mv "$out/stamp.new" "$out/stamp"
