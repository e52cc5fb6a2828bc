/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of VMMs. Invariants: `copies` counts the groups in memory whose `from`
 * this is, and keeps it there; make runs before move, move before remove, as the
 * worker does them in order. `failed` and `what` are the worker's until done.
 */
#define _GNU_SOURCE
#include "daemon/vm_group.h"
#include "lib/cgroup2.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define REMOVE_TRIES 200u /* some ten milliseconds apart */

struct vm_group {
	struct cgroups *g;
	struct vm_group *from;
	void *owner; /* NULL: vm_group_end() was called */
	struct vm_size size;
	unsigned int copies, guests;
	uint64_t memory_max; /* that was written */
	char name[32];

	struct group_job make, move, remove;
	bool removed;
	int failed;       /* of make */
	const char *what; /* file that could not be written */
	pid_t pid;        /* to be moved */
	unsigned int tries;
	vm_group_fn *moved;
};

static struct vm_limits_in group_limits(const struct vm_group *v)
{
	return (struct vm_limits_in){.size = v->size,
				     .controllers = v->g->controllers,
				     .disks_in_memory = v->g->disks_in_memory,
				     .io = v->g->io};
}

static int group_write(const struct vm_group *v, const char *file, const char *text)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/%s", v->name, file);
	return cgroups_write(v->g->dir_fd, path, text);
}

/* --- jobs -------------------------------------------------------------------------------- */

static int run_make(struct group_job *j)
{
	struct vm_group *v = list_entry(j, struct vm_group, make);
	struct vm_limit limit[VM_LIMITS_MAX];
	struct vm_limits_in in = group_limits(v);
	size_t n = vm_limits(&in, limit);

	v->what = "the directory";
	v->failed = mkdirat(v->g->dir_fd, v->name, 0755) < 0 ? -errno : 0;
	for (size_t i = 0; v->failed == 0 && i < n; i++) {
		v->what = limit[i].file;
		v->failed = group_write(v, limit[i].file, limit[i].value);
		/* A kernel without swap, or with it turned off for groups, has no such file. */
		if (v->failed == -ENOENT && strcmp(limit[i].file, "memory.swap.max") == 0)
			v->failed = 0;
	}
	return v->failed;
}

static int run_move(struct group_job *j)
{
	struct vm_group *v = list_entry(j, struct vm_group, move);
	char text[16];

	if (v->failed)
		return v->failed;
	v->what = "cgroup.procs";
	snprintf(text, sizeof(text), "%d", (int)v->pid);
	return group_write(v, v->what, text);
}

static int run_remove(struct group_job *j)
{
	struct vm_group *v = list_entry(j, struct vm_group, remove);
	int rc = unlinkat(v->g->dir_fd, v->name, AT_REMOVEDIR) < 0 ? -errno : 0;

	if (rc == -ENOENT)
		return 0;
	if (rc != -EBUSY || ++v->tries > REMOVE_TRIES)
		return rc;
	/* Copies that were made without a word. Kernels before 5.14 have no such file. */
	(void)!group_write(v, "cgroup.kill", "1");
	return -EAGAIN;
}

static void done_make(struct group_job *j, int rc)
{
	(void)j;
	(void)rc; /* told to who moves there */
}

static void done_move(struct group_job *j, int rc)
{
	struct vm_group *v = list_entry(j, struct vm_group, move);
	char text[160] = "";

	if (rc < 0)
		snprintf(text, sizeof(text), "its control group could not be used (%s: %s)",
			 v->what, strerror(-rc));
	v->moved(v->owner, rc, text);
}

/* Groups whose last copy goes with this one go as well. */
static void group_free(struct vm_group *v)
{
	while (v && v->removed && !v->copies) {
		struct vm_group *from = v->from;

		free(v);
		if (from)
			from->copies--;
		v = from;
	}
}

static void done_remove(struct group_job *j, int rc)
{
	struct vm_group *v = list_entry(j, struct vm_group, remove);

	if (rc < 0)
		log_warn("the control group %s cannot be removed: %s", v->name, strerror(-rc));
	v->removed = true;
	group_free(v);
}

/* --- life -------------------------------------------------------------------------------- */

/* One copy more is made: what it shares may be held twice. */
static void group_make_room(struct vm_group *v, bool paused)
{
	struct vm_limits_in in = group_limits(v);
	uint64_t max = vm_memory_max(&in) + v->copies * vm_memory_for_copy(&in, paused);
	char text[32];
	int rc;

	if (!(v->g->controllers & CGROUP2_MEMORY) || max <= v->memory_max)
		return;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)max);
	/* Here and not by the worker: it must be before the fork, and waits for nothing. */
	rc = group_write(v, "memory.max", text);
	if (rc < 0)
		log_warn("the limit of memory of the control group %s cannot be raised: %s",
			 v->name, strerror(-rc));
	else
		v->memory_max = max;
}

struct vm_group *vm_group_new(struct cgroups *g, void *owner, const struct vm_size *size,
			      struct vm_group *from, bool paused)
{
	struct vm_group *v = calloc(1, sizeof(*v));
	struct vm_limits_in in;

	if (!v)
		return NULL;
	v->g = g;
	v->owner = owner;
	v->size = *size;
	v->from = from;
	in = group_limits(v);
	v->memory_max = vm_memory_max(&in);
	snprintf(v->name, sizeof(v->name), "vm-%llu", (unsigned long long)++g->last);
	v->make = (struct group_job){.run = run_make, .done = done_make};
	v->move = (struct group_job){.run = run_move, .done = done_move};
	v->remove = (struct group_job){.run = run_remove, .done = done_remove};
	if (from) {
		from->copies++;
		group_make_room(from, paused);
	}
	group_worker_add(&g->worker, &v->make);
	return v;
}

void vm_group_move(struct vm_group *v, pid_t pid, vm_group_fn *fn)
{
	v->pid = pid;
	v->moved = fn;
	group_worker_add(&v->g->worker, &v->move);
}

void vm_group_end(struct vm_group *v)
{
	v->owner = NULL;
	group_worker_add(&v->g->worker, &v->remove);
}

void *vm_group_parent_owner(const struct vm_group *v)
{
	return v->from ? v->from->owner : NULL;
}

unsigned int vm_group_guests(const struct vm_group *v)
{
	return v->guests;
}

void vm_group_add_guest(struct vm_group *v, int n)
{
	if (v->from)
		v->from->guests += (unsigned int)n;
}

bool vm_group_oom(const struct vm_group *v, uint64_t *allowed_mib)
{
	_cleanup_fd int fd = -1;
	char path[64], text[1024];
	ssize_t n;

	if (!(v->g->controllers & CGROUP2_MEMORY))
		return false;
	snprintf(path, sizeof(path), "%s/memory.events", v->name);
	fd = openat(v->g->dir_fd, path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -errno : io_read_some(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	*allowed_mib = v->memory_max >> 20;
	return vm_oom_kills(text) > 0;
}
