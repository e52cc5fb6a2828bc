/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where this process is in the hierarchy of cgroup v2, and whether that part of
 * it is ours to use ("delegated", cgroup-v2.rst): directory, cgroup.procs and
 * cgroup.subtree_control of its group can be written. It is not changed.
 *
 * A group that gives controllers to those below it lets no process in: what a daemon that was
 * killed has left, nobody can be started in again. So one may be started in a group of the name
 * CGROUP2_START directly below the one that is meant, where there is always room.
 *
 * Thread: any. fork: no state.
 */
#pragma once

#include "lib/err.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>

enum cgroup2_controller {
	CGROUP2_CPU = 1,
	CGROUP2_MEMORY = 2,
	CGROUP2_PIDS = 4,
	CGROUP2_IO = 8,
};

/* "cpu memory": at least 32 bytes. */
void cgroup2_names(unsigned int controllers, char *out, size_t len);
/* Names, separated by blanks; unknown ones do not count. */
unsigned int cgroup2_parse(const char *names);

#define CGROUP2_START "podflare-start"

struct cgroup2_place {
	char dir[PATH_MAX]; /* of the group that this process is in, or the one above: */
	bool in_start;      /* it is in CGROUP2_START there */
	/* Moving a process does not wait for all processors of the host (mount option). */
	bool favordynmods;
	unsigned int controllers; /* that can be turned on below it */
};

/*
 * root stands before /proc and before where the hierarchy is mounted ("" but for tests).
 * -ENOENT: there is no cgroup v2, or the group is in no part of it that can be seen; -EACCES: it
 * was not delegated; -errno.
 */
int cgroup2_find(struct cgroup2_place *p, const char *root, struct err *err);
