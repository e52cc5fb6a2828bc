/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the egress of all sandboxes has in common: the operator's configuration, the
 * audit, and the proxy processes there are. Made and taken down by main.c.
 * Thread: the loop's. fork: nothing of it reaches another process.
 */
#pragma once

#include "daemon/child.h"
#include "daemon/egress/audit_share.h"
#include "daemon/egress/operator.h"
#include "lib/list.h"
#include "lib/loop.h"

#include <stdbool.h>
#include <sys/types.h>

struct cgroups;
struct config;

struct egress_host {
	struct loop *loop;
	struct cgroups *groups; /* every proxy gets one; NULL: none does */
	/* What egress_host_reap() has put off may be done. */
	void (*reap_again)(void *arg);
	void *reap_arg;
	const char *program;
	struct child_env child;
	struct egress_operator op;
	struct audit audit;
	struct audit_shares shares; /* of it */
	struct list proxies;        /* that have a process */
	unsigned int nproxies;
};

int egress_host_init(struct egress_host *h, struct loop *loop, const struct config *c,
		     struct err *err);
void egress_host_free(struct egress_host *h);

/* A child process of the daemon that is a proxy of ours (vmm_client.h: vmm_others). */
bool egress_host_owns(void *host, pid_t pid);
/* It has ended: it is reaped. False: not yet, as it is being moved; host->reap_again() follows. */
bool egress_host_reap(void *host, pid_t pid);
