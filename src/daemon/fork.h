/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forking a sandbox: its user processes are frozen, its VM is forked n times,
 * they go on, and the children are renewed side by side. Answered when every
 * child is ready or has failed. Forks of one sandbox queue behind each other.
 *
 * What has failed does not harm the rest: a child without the others' luck is an
 * error in its place; the parent goes on in any case, or is ended with a reason
 * when it cannot. When the client leaves, the children it would have got end.
 *
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/http.h"
#include "daemon/sandbox.h"

struct grant;

/* What the children may reach. */
enum fork_egress {
	FORK_EGRESS_OWN,     /* the grant of the order, or nothing */
	FORK_EGRESS_INHERIT, /* the allowlist that the parent has when it is forked */
	FORK_EGRESS_INJECT,  /* its injections as well */
};

struct fork_order {
	unsigned int n;
	bool reseed;
	bool forkable; /* the children */
	enum fork_egress egress;
	struct grant *grant; /* borrowed; NULL: none */
};

/*
 * Takes over the request, and order->n places of the registry; answers it, at once or later. sb is
 * one that can be forked.
 */
void fork_submit(struct sandbox *sb, struct request *r, const struct fork_order *order);
