/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of VMMs. Invariants: `copies` counts the groups in memory whose `from`
 * this is, and keeps it there; make runs before move, move before remove, as the
 * worker does them in order, and only remove is ever tried again. `failed` and `what` are the
 * worker's until done.
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

#define LOWER_STEP (64ull << 20)  /* less is not worth it */
#define LOWER_ROOM (128ull << 20) /* beyond what is in use */

struct vm_group {
	struct cgroups *g;
	struct vm_group *from;
	void *owner; /* NULL: vm_group_end() was called */
	struct vm_size size;
	unsigned int copies, guests;
	bool paused;         /* a template: as of its latest copy */
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

/* A short file of it as text: 0, -errno or -ENODATA. */
static int group_read(const struct vm_group *v, const char *file, char *text, size_t len)
{
	_cleanup_fd int fd = -1;
	char path[64];
	ssize_t n;

	snprintf(path, sizeof(path), "%s/%s", v->name, file);
	fd = openat(v->g->dir_fd, path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -errno : io_read_some(fd, text, len - 1);
	if (n <= 0)
		return n < 0 ? (int)n : -ENODATA;
	text[n] = '\0';
	return 0;
}

static int group_memory_now(const struct vm_group *v, uint64_t *out)
{
	char text[32];
	int rc = group_read(v, "memory.current", text, sizeof(text));

	if (rc == 0)
		*out = strtoull(text, NULL, 10);
	return rc;
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
	return GROUP_JOB_AGAIN;
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

/* What it is allowed with the copies that it has. */
static uint64_t group_memory_max(const struct vm_group *v)
{
	struct vm_limits_in in = group_limits(v);

	return vm_memory_max(&in) + v->copies * vm_memory_for_copy(&in, v->paused);
}

/* Here and not by the worker: a raise must be before the fork, and neither waits for anything. */
static int group_set_memory(struct vm_group *v, uint64_t max)
{
	char text[32];
	int rc;

	snprintf(text, sizeof(text), "%llu", (unsigned long long)max);
	rc = group_write(v, "memory.max", text);
	if (rc == 0)
		v->memory_max = max;
	return rc;
}

/*
 * Copies are gone, and with them what was allowed for them. Not below what it has at the moment and
 * some room: an honest one that has more (layers of its disk in memory) must not be killed for it,
 * and the kernel would look for memory to take back while we wait. The next copy that goes brings
 * the next try.
 */
static void group_lower(struct vm_group *v)
{
	uint64_t max = group_memory_max(v), now;

	if (!v->owner || !(v->g->controllers & CGROUP2_MEMORY) ||
	    max + LOWER_STEP > v->memory_max || group_memory_now(v, &now) < 0)
		return;
	if (max < now + LOWER_ROOM)
		max = now + LOWER_ROOM;
	if (max < v->memory_max && group_set_memory(v, max) < 0)
		log_warn("the limit of memory of the control group %s cannot be lowered", v->name);
}

/* Groups whose last copy goes with this one go as well. */
static void group_free(struct vm_group *v)
{
	while (v && v->removed && !v->copies) {
		struct vm_group *from = v->from;

		free(v);
		if (from) {
			from->copies--;
			group_lower(from);
		}
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
	uint64_t max;
	int rc;

	v->paused = paused;
	max = group_memory_max(v);
	if (!(v->g->controllers & CGROUP2_MEMORY) || max <= v->memory_max)
		return;
	rc = group_set_memory(v, max);
	if (rc < 0)
		log_warn("the limit of memory of the control group %s cannot be raised: %s",
			 v->name, strerror(-rc));
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
	char text[1024];

	if (!(v->g->controllers & CGROUP2_MEMORY) ||
	    group_read(v, "memory.events", text, sizeof(text)) < 0)
		return false;
	*allowed_mib = v->memory_max >> 20;
	return vm_oom_kills(text) > 0;
}
