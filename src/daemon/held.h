/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An account of memory that the daemon holds for others: request bodies that are
 * being read, code that waits for its turn, events that come in parts, answers that
 * nobody fetches. Each of these has a bound; so has their sum, of one sandbox, of one
 * owner (half of all, where there are others) and of all. What is small (LIMIT_HELD_SMALL)
 * is not counted, so that it goes on when there is room for nothing else.
 *
 * An account may also be of places, where each takes one.
 *
 * What is taken is given back by whoever took it, in the same amount.
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"

#include <errno.h>
#include <stddef.h>

struct held {
	size_t n, max;
	struct held *all; /* whose part it is, or NULL */
};

/* 0; -EDQUOT: more than h, a part, may have; -ENOSPC: more than whose part it is, or all, may.
 * Nothing is taken then. */
__must_check static inline int held_take(struct held *h, size_t n)
{
	if (n > h->max - h->n)
		return h->all ? -EDQUOT : -ENOSPC;
	if (h->all && held_take(h->all, n) < 0)
		return -ENOSPC;
	h->n += n;
	return 0;
}

static inline void held_give(struct held *h, size_t n)
{
	h->n -= n;
	if (h->all)
		held_give(h->all, n);
}

/* Gives back the one of a place, and forgets it. Harmless without one. */
static inline void held_give_place(struct held **h)
{
	if (*h)
		held_give(*h, 1);
	*h = NULL;
}

/* So much of it is no more h's matter: only the whole's, which is returned. */
static inline struct held *held_leave(struct held *h, size_t n)
{
	h->n -= n;
	return h->all;
}
