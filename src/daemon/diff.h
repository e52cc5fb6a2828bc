/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What differs between the file systems of two sandboxes of one line: both
 * guests are asked what has changed since the image (CHANGES), the two lists are
 * compared (compare.h), and where only the content can tell both are asked for
 * hashes. It costs what changed, not what exists, and does not go through the
 * queue of execs.
 *
 * Bounded: LIMIT_DIFFS at a time, half of them of one owner where there are others; of each side
 * LIMIT_CHANGES entries and LIMIT_CHANGES_BYTES, DIFF_LIMIT_NS in all, and PODFLARE_PING_AFTER
 * until a guest begins to answer. Comparing is done in turns of the
 * loop; the answer is made while it is sent. A long one is none of these any more while
 * its client reads it: what it keeps is in that client's account (held.h).
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/compare.h"
#include "daemon/http.h"
#include "daemon/sandbox.h"

/* Answers the request, at once or later. paths: array of strings; takes the reference. */
void diff_submit(struct sandbox *a, struct sandbox *b, struct request *r, json_t *paths);

/* The answer's text, made while it is sent. COMPARE_CONTENT are left out. (diff_reply.c) */
struct diff_text {
	const struct comparison *c;
	const json_t *paths;
	unsigned int list; /* which of the three */
	size_t next;       /* item to look at for it */
	bool some, ended;  /* it has one; all is in out */
	struct buf out;
};

/* Makes the first piece; what it is of must stay as it is. 0 or -ENOMEM. */
__must_check int diff_text_begin(struct diff_text *t, const struct comparison *c,
				 const json_t *paths);
/* So many of the next bytes, 0 at the end, or -ENOMEM. */
__must_check ssize_t diff_text_take(struct diff_text *t, char *out, size_t max);
void diff_text_free(struct diff_text *t);
