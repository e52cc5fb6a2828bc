/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ruleset without rules: what it handles is denied. The headers of the build
 * may be older than the kernel, so the numbers are here (linux/landlock.h).
 */
#define _GNU_SOURCE
#include "lib/landlock.h"

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* struct landlock_ruleset_attr; older kernels take the beginning of it. */
struct ruleset {
	uint64_t fs, net, scoped;
};

#define CREATE_RULESET_VERSION 1u

#define FS_1       0x1fffull    /* execute, write, read, remove, make: 13 rights */
#define FS_2       (1ull << 13) /* refer: links and renames between directories */
#define FS_3       (1ull << 14) /* truncate */
#define FS_5       (1ull << 15) /* ioctl of devices */
#define NET_BIND   1ull
#define NET_DIAL   2ull
#define SCOPE_BOTH 3ull /* abstract UNIX sockets, signals */

int landlock_abi(void)
{
	long v = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);

	return v < 0 ? 0 : (int)v;
}

int landlock_deny(bool dials)
{
	int abi = landlock_abi();
	struct ruleset r = {.fs = FS_1};
	size_t size = offsetof(struct ruleset, net);
	_cleanup_fd int fd = -1;

	if (abi == 0)
		return 0;
	r.fs |= (abi >= 2 ? FS_2 : 0) | (abi >= 3 ? FS_3 : 0) | (abi >= 5 ? FS_5 : 0);
	if (abi >= 4) {
		r.net = NET_BIND | (dials ? 0 : NET_DIAL);
		size = offsetof(struct ruleset, scoped);
	}
	if (abi >= 6) {
		r.scoped = SCOPE_BOTH;
		size = sizeof(r);
	}
	fd = (int)syscall(SYS_landlock_create_ruleset, &r, size, 0);
	if (fd < 0 || syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		return -errno;
	return abi;
}
