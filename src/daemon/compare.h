/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two lists of changes of VMs that see the same image, compared: what is in one
 * and not in the other, what differs, and what only the content can tell.
 *
 * A path that a list does not name is as the image has it, unless a directory
 * above it was removed or replaced there. What the image has below a directory
 * that only one side has replaced is known to neither list; the directory itself
 * is then reported as modified.
 * Not synchronised. fork: plain memory.
 */
#pragma once

#include "daemon/changes.h"

enum compare_kind { COMPARE_ADDED, COMPARE_REMOVED, COMPARE_MODIFIED, COMPARE_CONTENT };

struct compare_item {
	const char *path; /* of one of the lists */
	enum compare_kind kind;
	struct change_stat a, b;
};

struct compare_side;

struct comparison {
	struct compare_item *all; /* in the order of paths */
	size_t n, cap;
	struct compare_side *sides; /* while there is more to compare */
};

/* The lists must stay as they are until the end of c, which names paths of them. 0 or -ENOMEM. */
__must_check int compare_begin(struct comparison *c, const struct changes *a,
			       const struct changes *b);
/*
 * Compares what takes a few milliseconds at most, however long the paths are: 1 when there is more,
 * 0 when all is compared, or -ENOMEM.
 */
__must_check int compare_step(struct comparison *c);
void compare_free(struct comparison *c);
