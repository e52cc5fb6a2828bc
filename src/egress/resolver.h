/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names to addresses: c-ares on the loop. It reads the host's configuration
 * (servers) once, in resolver_new(), before the jail; the host's file of hosts
 * and its search list are not used. Nothing is cached: an answer is for the one
 * who asked, who checks it and dials it.
 *
 * Thread: the loop's. fork: does not.
 */
#pragma once

#include "lib/err.h"
#include "lib/loop.h"

#include <sys/socket.h>

#define RESOLVER_ADDRESSES_MAX 32u
#define RESOLVER_DEADLINE_S    8u /* of a question, whatever servers do */
#define RESOLVER_PER_S         200u /* questions, and as many at once: those beyond wait for their time */

struct resolver;
struct resolver_query;

union resolver_address {
	struct sockaddr sa;
	struct sockaddr_storage storage;
};

struct resolver_answer {
	/* 0; -ENOENT: no such name; -ENODATA: the name has no address; -EIO, -ETIMEDOUT: no answer
	 */
	int rc;
	const char *why;                                        /* of the last two: a phrase */
	union resolver_address address[RESOLVER_ADDRESSES_MAX]; /* ports are 0; IPv4 ones first */
	size_t n;
};

typedef void resolver_fn(void *arg, const struct resolver_answer *a);

__must_check int resolver_new(struct resolver **out, struct loop *loop, struct err *err);
/* Questions under way are not answered any more. */
void resolver_free(struct resolver *r);

/*
 * Servers to ask from now on, "ADDRESS[:PORT],..."; NULL: those of the host. Questions under way
 * are not answered any more. 0, -EINVAL.
 */
__must_check int resolver_set_servers(struct resolver *r, const char *csv);

/* The answer comes once, perhaps within the call; NULL then, and without memory (-ENOMEM answer).
 */
struct resolver_query *resolver_ask(struct resolver *r, const char *name, resolver_fn *fn,
				    void *arg);
/* No answer is wanted any more. NULL: harmless. */
void resolver_give_up(struct resolver_query *q);
/* Questions that nobody waits for, and that are asked all the same. */
size_t resolver_abandoned(const struct resolver *r);
