/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The last records of one sandbox, as text, oldest first. Bounded: EGRESS_LOG_MAX of
 * them, and EGRESS_LOG_BYTES in all; but the last one is always there (record.h says
 * how long it may be).
 * Thread: the loop's. fork: plain memory.
 */
#pragma once

#include <stddef.h>

#define EGRESS_LOG_MAX   1000u
#define EGRESS_LOG_BYTES 262144u

struct egress_log {
	char **text; /* a ring, made with the first record */
	size_t first, n;
	size_t bytes; /* of the texts */
};

/* Takes over the text, in any case. */
void egress_log_add(struct egress_log *l, char *text);
/* The last `limit` of them as lines: a new string and its length. NULL: no memory. */
char *egress_log_lines(const struct egress_log *l, size_t limit, size_t *len);
void egress_log_free(struct egress_log *l);
