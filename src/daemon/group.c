/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs of group.h. Invariant: make runs before move, move before remove, as the
 * worker does them in order, and only remove is ever tried again.
 */
#define _GNU_SOURCE
#include "daemon/group.h"
#include "lib/cgroup2.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define REMOVE_TRIES 200u /* some ten milliseconds apart */

int group_write(const struct group *c, const char *file, const char *text)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/%s", c->name, file);
	return cgroups_write(c->g->dir_fd, path, text);
}

int group_read(const struct group *c, const char *file, char *text, size_t len)
{
	_cleanup_fd int fd = -1;
	char path[64];
	ssize_t n;

	snprintf(path, sizeof(path), "%s/%s", c->name, file);
	fd = openat(c->g->dir_fd, path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -errno : io_read_some(fd, text, len - 1);
	if (n <= 0)
		return n < 0 ? (int)n : -ENODATA;
	text[n] = '\0';
	return 0;
}

bool group_oom(const struct group *c)
{
	char text[1024];

	return (c->g->controllers & CGROUP2_MEMORY) &&
	       group_read(c, "memory.events", text, sizeof(text)) == 0 && group_oom_kills(text) > 0;
}

/* --- jobs -------------------------------------------------------------------------------- */

static int run_make(struct group_job *j)
{
	struct group *c = list_entry(j, struct group, make);

	c->what = "the directory";
	c->failed = mkdirat(c->g->dir_fd, c->name, 0700) < 0 ? -errno : 0;
	for (size_t i = 0; c->failed == 0 && i < c->limits.n; i++) {
		c->what = c->limits.of[i].file;
		c->failed = group_write(c, c->what, c->limits.of[i].value);
		/* A kernel without swap, or with it turned off for groups, has no such file. */
		if (c->failed == -ENOENT && strcmp(c->what, "memory.swap.max") == 0)
			c->failed = 0;
	}
	return c->failed;
}

static int run_move(struct group_job *j)
{
	struct group *c = list_entry(j, struct group, move);
	char text[16];

	if (c->failed)
		return c->failed;
	c->what = "cgroup.procs";
	snprintf(text, sizeof(text), "%d", (int)c->pid);
	return group_write(c, c->what, text);
}

static int run_remove(struct group_job *j)
{
	struct group *c = list_entry(j, struct group, remove);
	int rc = unlinkat(c->g->dir_fd, c->name, AT_REMOVEDIR) < 0 ? -errno : 0;

	if (rc == -ENOENT)
		return 0;
	if (rc != -EBUSY || ++c->tries > REMOVE_TRIES)
		return rc;
	/* Copies that were made without a word. Kernels before 5.14 have no such file. */
	(void)!group_write(c, "cgroup.kill", "1");
	return GROUP_JOB_AGAIN;
}

static void done_make(struct group_job *j, int rc)
{
	(void)j;
	(void)rc; /* told to who moves there */
}

static void done_move(struct group_job *j, int rc)
{
	struct group *c = list_entry(j, struct group, move);
	char text[160] = "";

	if (rc < 0)
		snprintf(text, sizeof(text), "its control group could not be used (%s: %s)",
			 c->what, strerror(-rc));
	c->moved(c, rc, text);
}

static void done_remove(struct group_job *j, int rc)
{
	struct group *c = list_entry(j, struct group, remove);

	if (rc < 0)
		log_warn("the control group %s cannot be removed: %s", c->name, strerror(-rc));
	c->removed(c);
}

void group_make(struct group *c, struct cgroups *g, const char *kind)
{
	c->g = g;
	snprintf(c->name, sizeof(c->name), "%s-%llu", kind, (unsigned long long)++g->last);
	c->make = (struct group_job){.run = run_make, .done = done_make};
	c->move = (struct group_job){.run = run_move, .done = done_move};
	c->remove = (struct group_job){.run = run_remove, .done = done_remove};
	group_worker_add(&g->worker, &c->make);
}

void group_move(struct group *c, pid_t pid)
{
	c->pid = pid;
	group_worker_add(&c->g->worker, &c->move);
}

void group_end(struct group *c)
{
	group_worker_add(&c->g->worker, &c->remove);
}
