/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of header fields, and what becomes of them on their way through: what
 * belongs to one hop ends here, what the policy injects takes the place of what
 * the client said. Values may be secrets: they are wiped when a list is freed.
 *
 * Thread: any; no shared state. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct http_field {
	char *name, *value; /* both in one piece of memory */
	size_t size;        /* of it */
};

struct http_fields {
	struct http_field *v;
	size_t n, cap;
	size_t bytes; /* names and values */
};

void http_fields_free(struct http_fields *f);

/* Appends a copy, the value without space around it. 0; -EINVAL: not a header (its bytes, its
 * name); -ENOMEM. */
__must_check int http_fields_add(struct http_fields *f, const char *name, size_t name_len,
				 const char *value, size_t value_len);
/* The first value with this name, in any case of letters, or NULL. */
const char *http_fields_get(const struct http_fields *f, const char *name);

/* The client asks to leave HTTP (Upgrade, or Connection naming it). */
bool http_fields_upgrade(const struct http_fields *f);

/*
 * Removes what is for one hop only: Connection and what it names, Proxy-*, Keep-Alive, TE,
 * Trailer, Transfer-Encoding, Upgrade; and Host, Content-Length and Expect of a request, which are
 * made anew.
 */
void http_fields_end_hop(struct http_fields *f, bool request);

/* Each member of inject (name: value) replaces all fields of that name, "-" and "_" being the same.
 * 0, -EINVAL, -ENOMEM. */
__must_check int http_fields_inject(struct http_fields *f, const json_t *inject);
