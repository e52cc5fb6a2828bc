/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VMM's way into its control group: a booted one gets CTL_BOOT, a copy a byte
 * through its gate, when it is there.
 *
 * Invariant: while v->moving, the process is not reaped, or its number could
 * be another's by the time that it is written.
 */
#define _GNU_SOURCE
#include "daemon/vm_group.h"
#include "daemon/vmm_impl.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int vmm_group_make(struct vmm *v, const struct vm_size *size, struct vmm *parent, struct err *err)
{
	struct cgroups *g = v->host->groups;

	if (!g)
		return 0;
	v->group =
		vm_group_new(g, v, size, parent ? parent->group : NULL, parent && parent->paused);
	return v->group ? 0 : err_set(err, ENOMEM, "a control group");
}

void vmm_group_leave(struct vmm *v)
{
	struct vm_group *group = v->group;

	close_fd(&v->gate_fd);
	v->group = NULL;
	if (group)
		vm_group_end(group);
}

int vmm_gate(struct vmm *v, int *theirs)
{
	int p[2];

	if (!v->group) {
		*theirs = open("/dev/zero", O_RDONLY | O_CLOEXEC);
		return *theirs < 0 ? -errno : 0;
	}
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	*theirs = p[0];
	v->gate_fd = p[1];
	cgroups_prime(v->host->groups);
	return 0;
}

/* It is there. -errno: it cannot be told. */
static int vmm_let_go(struct vmm *v, struct err *err)
{
	int rc;

	if (v->booting) {
		v->booting = false;
		rc = v->ctl.fd < 0 ? 0 : vmm_boot(v, &v->boot, v->ctl.fd, err);
		/* When it has ended already, its end brings the reason. */
		return rc == -EPIPE || rc == -ECONNRESET ? 0 : rc;
	}
	rc = io_write_full(v->gate_fd, "", 1);
	close_fd(&v->gate_fd);
	/* Without a reader it has ended, and its end brings the reason. */
	if (rc < 0 && rc != -EPIPE)
		return err_set(err, -rc, "the new virtual machine cannot be let go on");
	if (!v->ended && v->ops->forked)
		v->ops->forked(v);
	return 0;
}

static void vmm_on_moved(void *owner, int rc, const char *text)
{
	struct vmm *v = owner, *parent = vm_group_parent_owner(v->group);
	struct vmm_host *h = v->host;
	struct err err = {0};

	v->moving = false;
	loop_mod(&v->proc, EPOLLIN);
	vm_group_add_guest(v->group, -1);
	if (rc == -ESRCH)
		rc = 0; /* it has ended, which is told next */
	else if (rc < 0)
		err_text(&err, -rc, "%s", text);
	else if (!v->ended)
		rc = vmm_let_go(v, &err);
	if (rc < 0) {
		log_warn("VMM %d: %s", (int)v->pid, err.msg);
		vmm_end(v, err.msg);
		vmm_kill(v, true);
	}
	if (parent)
		vmm_pump_forks(parent);
	vmm_host_reap_again(h);
}

void vmm_group_join(struct vmm *v)
{
	v->moving = true;
	loop_mod(&v->proc, 0);
	vm_group_add_guest(v->group, 1);
	vm_group_move(v->group, v->pid, vmm_on_moved);
}

bool vmm_oom_text(const struct vmm *v, char *out, size_t len)
{
	uint64_t mib;

	if (!v->group || !vm_group_oom(v->group, &mib))
		return false;
	snprintf(out, len,
		 "the host has ended the virtual machine: it came to the limit of memory of its "
		 "control group, %llu MiB",
		 (unsigned long long)mib);
	return true;
}
