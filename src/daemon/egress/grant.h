/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a sandbox may reach: an allowlist, and headers that are added outside. Made
 * of a request or of another grant, constant afterwards, shared by reference
 * (the children of one fork have the same). An empty list is no grant.
 *
 * The values of injected headers are secrets: they are in memory of the daemon and
 * of the proxy, nowhere else, and are overwritten when the last reference goes (as
 * all JSON is, main.c).
 *
 * Thread: the loop's. fork: VMM processes are started by posix_spawn and have
 * nothing of it.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct egress_operator;
struct held;

#define GRANT_HASH_LEN    32u
#define GRANT_ALLOW_MAX   (1u << 20)   /* bytes of an allowlist as text */
#define GRANT_HOSTS_MAX   64u          /* with injections */
#define GRANT_HEADERS_MAX 32u          /* of one host */
#define GRANT_VALUE_MAX   8192u        /* bytes of one value */
#define GRANT_INJECT_MAX  (256u << 10) /* bytes of all names and values */

struct grant {
	unsigned int refs;
	json_t *allow;                /* normal form, not empty */
	uint8_t hash[GRANT_HASH_LEN]; /* SHA-256 of its text: what has the same list has the same */
	json_t *inject; /* host in normal form -> {"headers", "intercept"}; an object. Secret */
	bool intercept; /* at least one host */
	bool common;    /* allow is the operator's own, of which there is one */
	size_t text;    /* bytes of both as JSON */
	struct held *held;
	size_t cost; /* taken of held; 0: nothing is */
};

/* A sentence that names what is wrong, and the member of the request: "egress.allow"... */
struct grant_fault {
	const char *field;
	struct err err;
};

/*
 * Of the value of "egress": false, true (the operator's default) or an object. *out is NULL when
 * it grants nothing. 0; -EINVAL with the fault, also for an entry of which the operator's ceiling
 * allows nothing; -ENOMEM. Values of headers are in no sentence.
 */
int grant_parse(struct grant **out, const struct egress_operator *o, const json_t *value,
		struct grant_fault *fault);
/* Of an allowlist alone, which may be empty or beyond the ceiling: *out is always a grant. As
 * above. */
int grant_parse_list(struct grant **out, const struct egress_operator *o, const json_t *allow,
		     struct grant_fault *fault);

/* What a child has of its parent's (which may be NULL): a reference, *out NULL when it is nothing.
 * 0 or -ENOMEM. */
int grant_inherit(struct grant **out, struct grant *parent, bool inject);

/*
 * What it takes of memory is h's matter until the last reference goes. Once: the second time, and
 * for NULL, it is nothing; so it is for what is small (LIMIT_HELD_SMALL), and for the operator's
 * list. As held_take().
 */
__must_check int grant_hold(struct grant *g, struct held *h);

struct grant *grant_ref(struct grant *g); /* NULL: NULL */
void grant_unref(struct grant *g);        /* NULL: harmless */

/* {"host": ["Name", ...]}. New reference, NULL without memory. g may be NULL. */
json_t *grant_inject_names(const struct grant *g);
