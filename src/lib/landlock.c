/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a ruleset handles is denied, but for what rules allow. The headers of the build
 * may be older than the kernel, so the numbers are here (linux/landlock.h).
 */
#define _GNU_SOURCE
#include "lib/landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* struct landlock_ruleset_attr; older kernels take the beginning of it. */
struct ruleset {
	uint64_t fs, net, scoped;
};

/* struct landlock_path_beneath_attr and landlock_net_port_attr. */
struct path_rule {
	uint64_t allowed;
	int32_t fd;
} __attribute__((packed));
struct port_rule {
	uint64_t allowed, port;
};

#define CREATE_RULESET_VERSION 1u
#define RULE_PATH              1
#define RULE_PORT              2

#define FS_1       0x1fffull    /* execute, write, read, remove, make: 13 rights */
#define FS_2       (1ull << 13) /* refer: links and renames between directories */
#define FS_3       (1ull << 14) /* truncate */
#define FS_5       (1ull << 15) /* ioctl of devices */
#define FS_EXECUTE (1ull << 0)
#define FS_WRITE   (1ull << 1) /* of files */
#define FS_READ    (1ull << 2) /* of files */
#define FS_LIST    (1ull << 3) /* of directories */
#define NET_BIND   1ull
#define NET_DIAL   2ull
#define SCOPE_BOTH 3ull /* abstract UNIX sockets, signals */

int landlock_abi(void)
{
	long v = syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_RULESET_VERSION);

	return v < 0 ? 0 : (int)v;
}

/* One that is not there, or cannot be looked at, is allowed by no rule. */
static int add_path(int ruleset, const struct landlock_path *p, uint64_t handled)
{
	_cleanup_fd int fd = open(p->path, O_PATH | O_CLOEXEC);
	struct path_rule rule = {.fd = fd};
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return 0;
	if (p->rights & LANDLOCK_READ)
		rule.allowed |= FS_READ | (S_ISDIR(st.st_mode) ? FS_LIST : 0);
	if (p->rights & LANDLOCK_EXECUTE)
		rule.allowed |= FS_EXECUTE;
	if (p->rights & LANDLOCK_WRITE)
		rule.allowed |= FS_WRITE;
	if (p->rights & LANDLOCK_IOCTL)
		rule.allowed |= FS_5 & handled;
	return syscall(SYS_landlock_add_rule, ruleset, RULE_PATH, &rule, 0) < 0 ? -errno : 0;
}

int landlock_allow(const struct landlock_rules *rules)
{
	int abi = landlock_abi(), rc = 0;
	struct ruleset r = {.fs = FS_1};
	size_t size = offsetof(struct ruleset, net);
	_cleanup_fd int fd = -1;

	if (abi == 0)
		return 0;
	r.fs |= (abi >= 2 ? FS_2 : 0) | (abi >= 3 ? FS_3 : 0) | (abi >= 5 ? FS_5 : 0);
	if (abi >= 4) {
		r.net = NET_BIND | (rules->dials ? 0 : NET_DIAL);
		size = offsetof(struct ruleset, scoped);
	}
	if (abi >= 6) {
		r.scoped = SCOPE_BOTH;
		size = sizeof(r);
	}
	fd = (int)syscall(SYS_landlock_create_ruleset, &r, size, 0);
	if (fd < 0)
		return -errno;
	for (size_t i = 0; rc == 0 && i < rules->n; i++)
		rc = add_path(fd, &rules->paths[i], r.fs);
	if (rc == 0 && rules->port && r.net) {
		const struct port_rule rule = {NET_BIND, rules->port};

		rc = syscall(SYS_landlock_add_rule, fd, RULE_PORT, &rule, 0) < 0 ? -errno : 0;
	}
	if (rc == 0 && syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		rc = -errno;
	return rc < 0 ? rc : abi;
}

int landlock_deny(bool dials)
{
	return landlock_allow(&(struct landlock_rules){.dials = dials});
}
