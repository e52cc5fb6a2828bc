/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of VMMs. Invariant: `copies` counts the groups in memory whose `from`
 * this is, and keeps it there.
 */
#include "daemon/vm_group.h"
#include "lib/cgroup2.h"
#include "lib/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOWER_STEP (64ull << 20)  /* less is not worth it */
#define LOWER_ROOM (128ull << 20) /* beyond what is in use */

struct vm_group {
	struct group group;
	struct vm_group *from;
	void *owner; /* NULL: vm_group_end() was called */
	struct vm_size size;
	unsigned int copies, guests;
	bool paused;         /* a template: as of its latest copy */
	uint64_t memory_max; /* that was written */
	bool removed;
	vm_group_fn *moved;
};

static struct vm_limits_in group_limits(const struct vm_group *v)
{
	const struct cgroups *g = v->group.g;

	return (struct vm_limits_in){.size = v->size,
				     .controllers = g->controllers,
				     .disks_in_memory = g->disks_in_memory,
				     .io = g->io};
}

static bool group_has_memory(const struct vm_group *v)
{
	return v->group.g->controllers & CGROUP2_MEMORY;
}

static int group_memory_now(const struct vm_group *v, uint64_t *out)
{
	char text[32];
	int rc = group_read(&v->group, "memory.current", text, sizeof(text));

	if (rc == 0)
		*out = strtoull(text, NULL, 10);
	return rc;
}

static void on_moved(struct group *c, int rc, const char *text)
{
	struct vm_group *v = list_entry(c, struct vm_group, group);

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
	rc = group_write(&v->group, "memory.max", text);
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

	if (!v->owner || !group_has_memory(v) || max + LOWER_STEP > v->memory_max ||
	    group_memory_now(v, &now) < 0)
		return;
	if (max < now + LOWER_ROOM)
		max = now + LOWER_ROOM;
	if (max < v->memory_max && group_set_memory(v, max) < 0)
		log_warn("the limit of memory of the control group %s cannot be lowered",
			 v->group.name);
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

static void on_removed(struct group *c)
{
	struct vm_group *v = list_entry(c, struct vm_group, group);

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
	if (!group_has_memory(v) || max <= v->memory_max)
		return;
	rc = group_set_memory(v, max);
	if (rc < 0)
		log_warn("the limit of memory of the control group %s cannot be raised: %s",
			 v->group.name, strerror(-rc));
}

struct vm_group *vm_group_new(struct cgroups *g, void *owner, const struct vm_size *size,
			      struct vm_group *from, bool paused)
{
	struct vm_group *v = calloc(1, sizeof(*v));
	struct vm_limits_in in;

	if (!v)
		return NULL;
	v->group = (struct group){.g = g, .moved = on_moved, .removed = on_removed};
	v->owner = owner;
	v->size = *size;
	v->from = from;
	in = group_limits(v);
	v->memory_max = vm_memory_max(&in);
	vm_limits(&in, &v->group.limits);
	if (from) {
		from->copies++;
		group_make_room(from, paused);
	}
	group_make(&v->group, g, "vm");
	return v;
}

void vm_group_move(struct vm_group *v, pid_t pid, vm_group_fn *fn)
{
	v->moved = fn;
	group_move(&v->group, pid);
}

void vm_group_end(struct vm_group *v)
{
	v->owner = NULL;
	group_end(&v->group);
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
	*allowed_mib = v->memory_max >> 20;
	return group_oom(&v->group);
}
