/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One control group below the daemon's: made with its limits, a process moved to
 * it, and removed when that is gone. What belongs to VMs alone (copies, and what
 * they may have) is in vm_group.h; proxies' are in egress/proxy_group.h.
 *
 * Thread: the loop's. The worker's jobs (group_worker.h) run in order: what is asked
 * for after a call here happens after it. fork: no descriptors.
 */
#pragma once

#include "daemon/cgroups.h"
#include "daemon/group_limits.h"

#include <sys/types.h>

struct group {
	struct cgroups *g;
	char name[32]; /* below g->dir_fd */
	struct group_limits limits;
	/* The answer to group_move(). rc: 0, or -errno with a sentence. */
	void (*moved)(struct group *, int rc, const char *text);
	/* The answer to group_end(): nothing knows of it any more. */
	void (*removed)(struct group *);

	struct group_job make, move, remove;
	int failed;       /* of make; the worker's until done, as is what */
	const char *what; /* file that could not be written */
	pid_t pid;        /* to be moved */
	unsigned int tries;
};

/* kind: the beginning of its name. limits, moved and removed are the caller's to fill in before.
 * Whether it could be made is told when somebody is moved there. */
void group_make(struct group *c, struct cgroups *g, const char *kind);
/* The process must not be reaped before moved() was called, which is always, and once. */
void group_move(struct group *c, pid_t pid);
/* Its process is gone, or never was. Whatever else is there is killed. */
void group_end(struct group *c);

__must_check int group_write(const struct group *c, const char *file, const char *text);
/* A short file of it as text: 0, -errno or -ENODATA. */
__must_check int group_read(const struct group *c, const char *file, char *text, size_t len);
/* The kernel has killed a process of it for want of memory. */
bool group_oom(const struct group *c);
