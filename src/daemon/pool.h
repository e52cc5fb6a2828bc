/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ready forks of templates that have been used: --pool of them for each, in the
 * template's own size. A create takes one and is answered at once; without one
 * it costs a fork. They are refilled one at a time, behind creates that wait.
 *
 * Sandboxes that can be forked and those that cannot are two kinds, each kept
 * ready where it is asked for: one of the second kind has given up what forks
 * take before its guest ran, which cannot be made up for at hand-out.
 *
 * A sandbox in the pool is complete and renewed, but was not announced: nobody
 * sees it, and it does not count against the limit of sandboxes.
 *
 * Its clock was set when it was renewed, and follows neither what is done to the host's
 * since nor its sleep: one that is off is replaced, at hand-out at the latest.
 *
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/sandbox.h"
#include "lib/loop.h"

struct daemon;
struct template;

struct pool {
	struct daemon *d;
	struct loop_timer timer;
	struct loop_timer check;   /* of the clocks, while there are entries */
	struct pool_entry *making; /* the one that is not ready yet */
	size_t next;               /* of what is kept ready: where the next look begins */
	uint64_t retry_ns;         /* 0 = the last one went well */
};

void pool_init(struct pool *p, struct daemon *d);
/* Lets go of all entries: their sandboxes are ended by whoever stops. */
void pool_stop(struct pool *p);
/* A ready one of that kind, which is the caller's now, or NULL. */
struct sandbox *pool_take(struct template *t, bool forkable);
/* Something has changed: looks soon whether one is to be made. */
void pool_kick(struct daemon *d);
