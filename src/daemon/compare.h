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

struct comparison {
	struct compare_item *all;
	size_t n, cap;
};

/* a and b are sorted. In the order of paths. 0 or -ENOMEM. */
__must_check int compare_run(struct comparison *out, const struct changes *a,
			     const struct changes *b);
void compare_free(struct comparison *c);
