/* SPDX-License-Identifier: Apache-2.0 */
/* Groups of proxies. Invariant: the object lives until its directory is gone. */
#include "daemon/egress/proxy_group.h"
#include "daemon/group.h"
#include "lib/cgroup2.h"

#include <stdio.h>
#include <stdlib.h>

#define PROXY_MEMORY_MIB    768u
#define PROXY_CPU_PERIOD_US 100000u
#define PROXY_PIDS          8u

struct proxy_group {
	struct group group;
	void *owner;
	proxy_group_fn *fn; /* NULL: was called */
};

static void on_moved(struct group *c, int rc, const char *text)
{
	struct proxy_group *pg = list_entry(c, struct proxy_group, group);
	proxy_group_fn *fn = pg->fn;

	pg->fn = NULL;
	fn(pg->owner, rc, text);
}

static void on_removed(struct group *c)
{
	free(list_entry(c, struct proxy_group, group));
}

struct proxy_group *proxy_group_new(struct cgroups *g, void *owner, pid_t pid, proxy_group_fn *fn)
{
	struct proxy_group *pg = calloc(1, sizeof(*pg));
	struct group_limits *l;

	if (!pg)
		return NULL;
	pg->owner = owner;
	pg->fn = fn;
	pg->group = (struct group){.moved = on_moved, .removed = on_removed};
	l = &pg->group.limits;
	if (g->controllers & CGROUP2_MEMORY) {
		group_limits_add(l, "memory.max", "%llu", PROXY_MEMORY_MIB * 1ull << 20);
		group_limits_add(l, "memory.swap.max", "0");
	}
	if (g->controllers & CGROUP2_CPU)
		group_limits_add(l, "cpu.max", "%u %u", PROXY_CPU_PERIOD_US, PROXY_CPU_PERIOD_US);
	if (g->controllers & CGROUP2_PIDS)
		group_limits_add(l, "pids.max", "%u", PROXY_PIDS);
	group_make(&pg->group, g, "proxy");
	group_move(&pg->group, pid);
	return pg;
}

bool proxy_group_moving(const struct proxy_group *pg)
{
	return pg->fn != NULL;
}

bool proxy_group_oom_text(const struct proxy_group *pg, char *out, size_t len)
{
	if (!group_oom(&pg->group))
		return false;
	snprintf(out, len,
		 "the host has ended the egress proxy: it came to the limit of memory of its "
		 "control group, %u MiB",
		 PROXY_MEMORY_MIB);
	return true;
}

void proxy_group_end(struct proxy_group *pg)
{
	group_end(&pg->group);
}
