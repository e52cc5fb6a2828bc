/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A policy (proto/egress.h) as an object. The daemon has checked what is in it;
 * it is checked again here, since this is the process that enforces it, and
 * anything that is not understood refuses the whole: unknown members, wrong
 * types, a bad entry anywhere. There is no policy in part.
 *
 * Thread: any; constant once parsed.
 */
#pragma once

#include "egress/addr.h"
#include "egress/rules.h"

#include <stdbool.h>

#define POLICY_ADDRESSES_MAX 16u /* of a name in "resolve" */

struct policy_limits {
	uint64_t connections; /* at one time */
	uint64_t bytes;       /* of all connections of the sandbox, both ways; 0: no limit */
	uint64_t bytes_per_s; /* of all connections, both ways; 0: no limit */
	uint64_t idle_s;      /* of a connection without bytes */
	uint64_t total_s;     /* of a connection */
};

struct policy {
	char *sandbox;
	struct egress_rules *allow;
	struct egress_rules *ceiling; /* NULL: none */
	struct egress_ranges *ranges;
	struct egress_ranges *own; /* this host's beside those that it knows of; may be NULL */
	json_t *inject;            /* normal form -> {"headers": {...}, "intercept": bool} */
	bool intercepts;           /* some host is */
	json_t *ca;                /* or NULL */
	json_t *resolve;           /* normal form -> [address] */
	char *resolvers;           /* comma between them; NULL: the host's */
	char *upstream_ca;         /* PEM, or NULL */
	struct policy_limits limits;
};

/* New object from a document of len bytes. 0, or -errno with a sentence that names the member. */
__must_check int policy_parse(struct policy **out, const char *text, size_t len, struct err *err);
/* The same from a sealed memfd. */
__must_check int policy_read(struct policy **out, int fd, struct err *err);
void policy_free(struct policy *p);

/* Of inject: the headers of a host (normal form), NULL for none; and whether it is intercepted. */
const json_t *policy_headers(const struct policy *p, const char *host);
bool policy_intercepts(const struct policy *p, const char *host);
