/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control group of one proxy (daemon/group.h), where the daemon has any: what
 * its sandbox makes it do is taken from neither the daemon nor other sandboxes. It
 * holds itself to less than these limits (egress/jail.h); they are for one that was
 * taken over, and for what the kernel takes for it.
 *
 * memory.max: RLIMIT_DATA of its jail, and half of that for buffers of sockets, page
 *   tables, its text. memory.swap.max: 0, as it may know secrets.
 * cpu.max: one processor, as it has one thread. pids.max: 8; its jail allows 1.
 *
 * It is not waited for: what a proxy does in the milliseconds until it is moved is
 * its own start. One that cannot be moved is ended.
 *
 * Thread: the loop's. fork: no descriptors.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct cgroups;
struct proxy_group;

/* rc: 0, or -errno with a sentence. */
typedef void proxy_group_fn(void *owner, int rc, const char *text);

/* Makes it and moves the process there, which must not be reaped before fn was called: always, and
 * once. NULL: no memory. */
struct proxy_group *proxy_group_new(struct cgroups *g, void *owner, pid_t pid, proxy_group_fn *fn);
/* fn has not been called yet. */
bool proxy_group_moving(const struct proxy_group *pg);
/* The reason of its end, if it was its limit of memory. */
bool proxy_group_oom_text(const struct proxy_group *pg, char *out, size_t len);
/* Its process is gone. */
void proxy_group_end(struct proxy_group *pg);
