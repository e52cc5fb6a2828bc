/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control group of one VMM. Made before its process, left when the process
 * has been reaped.
 *
 * How a process gets into it. The VMM forks itself, so the kernel puts a copy
 * into the group of its original; it waits at its gate (CTL_FORK_GATE) until the
 * daemon, who has been told of it, has written its number to cgroup.procs. Not:
 *   - clone3(CLONE_INTO_CGROUP), which would wait for nothing: its arguments lie in
 *     memory, where the VMM's filter cannot see them, so the filter would have to
 *     allow every namespace with it; and a descriptor of a group in a VMM's hands;
 *   - letting the copy write itself: whoever holds a descriptor of cgroup.procs
 *     that the daemon has opened can move any process that the daemon may move.
 * What it costs is in docs/performance.md; `favordynmods` takes it away.
 * A VMM that was taken over can let its copies run before their time: they are in
 * its own group then, and share its limits.
 *
 * Limits: vm_limits.h. A VM that forks may have more memory, for as long as its
 * copies, or copies of these, live; afterwards it is told to have less again, but
 * never less than it has at the moment, as the kernel would kill for what is above.
 *
 * Thread: the loop's. fork: no descriptors.
 */
#pragma once

#include "daemon/group.h"
#include "daemon/vm_limits.h"

#include <sys/types.h>

struct vm_group;

/* rc: 0, or -errno with a sentence. */
typedef void vm_group_fn(void *owner, int rc, const char *text);

/*
 * owner: of the callbacks. from: the group of the VM that it is forked from, or NULL; paused: that
 * is a template. NULL: no memory. Whether it could be made is told when somebody is moved there.
 */
struct vm_group *vm_group_new(struct cgroups *g, void *owner, const struct vm_size *size,
			      struct vm_group *from, bool paused);
/* The process must not be reaped before fn was called, which is always, and once. */
void vm_group_move(struct vm_group *v, pid_t pid, vm_group_fn *fn);
/* Its process is gone, or never was. Whatever else is there is killed. */
void vm_group_end(struct vm_group *v);

/* Whose it was forked from, as long as that lives; and copies of it that are still in its group. */
void *vm_group_parent_owner(const struct vm_group *v);
unsigned int vm_group_guests(const struct vm_group *v);
/* One more, or one less. */
void vm_group_add_guest(struct vm_group *v, int n);

/* The kernel has killed a process of it for want of memory; what it was allowed. */
bool vm_group_oom(const struct vm_group *v, uint64_t *allowed_mib);
