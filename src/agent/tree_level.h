/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One directory of a walk (tree.c): up to three directories that belong
 * together, and the sorted names in them. Part of tree.c.
 * Thread: the loop's. fork: see tree.h.
 */
#pragma once

#include "agent/tree.h"

#include <fcntl.h>
#include <stdint.h>

#define OPEN_DIR      (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define SAME_AS_IMAGE (-2) /* as source */

struct tree_name {
	char *text;
	bool below;        /* the event of what is below it */
	bool owner;        /* frees the text */
	uint32_t from, to; /* way down: the paths that go on here; else from == to */
};

struct tree_level {
	int upper, source, image;
	size_t path_len;
	struct tree_name *names;
	size_t count, next, cap;
	bool way; /* to paths that were asked for: nothing of it is yielded */
};

void level_free(struct tree_level *l);
/* All names that may differ from the image. 0, -EOVERFLOW (too many), -errno. */
__must_check int level_fill(struct tree *t, struct tree_level *l);
/* The names with which the paths from..to go on behind the first `off` bytes. */
__must_check int level_fill_way(struct tree *t, struct tree_level *l, uint32_t from, uint32_t to,
				size_t off);
/* The same event as the one before it: this and all that follow are not to be looked at. */
bool level_name_dropped(const struct tree_name *n);
