/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tmpfs over /tmp, which every host has, is made the root, and read-only
 * before anybody else can have written to it.
 */
#define _GNU_SOURCE
#include "lib/emptyroot.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

int emptyroot_enter(const char *name)
{
	const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;

	/* What is mounted and unmounted here stays here. */
	if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount(name, "/tmp", "tmpfs", flags, "size=4k,mode=0555") < 0 || chdir("/tmp") < 0)
		return -errno;
	if (syscall(SYS_pivot_root, ".", ".") == 0) {
		if (umount2(".", MNT_DETACH) < 0)
			return -errno;
	} else if (errno != EINVAL || chroot(".") < 0) {
		/* The root of an initramfs cannot be pivoted away from; it stays mounted above. */
		return -errno;
	}
	if (chdir("/") < 0 ||
	    mount(name, "/", NULL, MS_REMOUNT | MS_RDONLY | flags, "mode=0555") < 0)
		return -errno;
	return 0;
}
