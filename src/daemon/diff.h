/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What differs between the file systems of two sandboxes of one line: both
 * guests are asked what has changed since the image (CHANGES), the two lists are
 * compared (compare.h), and where only the content can tell both are asked for
 * hashes. It costs what changed, not what exists, and does not go through the
 * queue of execs.
 *
 * Bounded: LIMIT_DIFFS at a time, of each side LIMIT_CHANGES entries and
 * LIMIT_CHANGES_BYTES, DIFF_LIMIT_NS in all.
 * Thread: the loop's. fork: no state of its own.
 */
#pragma once

#include "daemon/compare.h"
#include "daemon/http.h"
#include "daemon/sandbox.h"

/* Answers the request, at once or later. paths: array of strings; takes the reference. */
void diff_submit(struct sandbox *a, struct sandbox *b, struct request *r, json_t *paths);

/* The answer's text, a new buffer; COMPARE_CONTENT are left out. NULL: no memory. (diff_reply.c) */
char *diff_reply_text(const struct comparison *c, const json_t *paths, size_t *len);
