/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What was changed since the image: a walk over the upper layer of an overlay
 * that yields one entry for each difference, as the user sees it. It knows
 * whiteouts, opaque directories (what the image has in them and the upper
 * layer has not is yielded as gone) and redirected ones (a directory of the
 * image that was renamed: what it still has of the image is yielded under the
 * new name, for at that path the image has nothing).
 *
 * Only below given paths. Order: by path, as strings of bytes. Names may be
 * anything, trees as deep as PATH_MAX lets them be; no recursion, at most
 * TREE_ENTRIES_MAX names and TREE_NAMES_MAX bytes of them are held. The tree may
 * change meanwhile: what vanishes is left out.
 *
 * Thread: the loop's. fork: plain descriptors, close-on-exec.
 */
#pragma once

#include "lib/cleanup.h"
#include "lib/err.h"

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#define TREE_ENTRIES_MAX 100000u
#define TREE_NAMES_MAX   ((size_t)16 << 20)
#define TREE_PATHS_MAX   256u

struct tree_level;

enum tree_kind { TREE_FILE, TREE_DIR, TREE_LINK, TREE_OTHER, TREE_GONE, TREE_OPAQUE_DIR };

/* Valid until the next call of tree_next(). */
struct tree_entry {
	const char *path;
	enum tree_kind kind;
	struct stat st;    /* all zeros when gone */
	const char *link;  /* target of a link, else NULL */
	bool below;        /* the image has something at that path */
	struct stat image; /* if so */
};

struct tree {
	int upper, image; /* the caller's */
	char **paths;     /* sorted, none inside of another */
	size_t npaths;
	struct tree_level *levels;
	size_t nlevels, cap;
	size_t entries, events, name_bytes;
	int failure; /* -errno of a directory that is there but cannot be opened */
	char path[PATH_MAX];
	char link[PATH_MAX];
};

/* paths: absolute, copied. On failure nothing is left to free. */
__must_check int tree_open(struct tree *t, int upper, int image, const char *const *paths,
			   size_t npaths, struct err *err);
/* 1 and an entry, 2 when there is more to do but this was enough for one turn, 0 at the end, or an
   error. */
__must_check int tree_next(struct tree *t, struct tree_entry *e, struct err *err);
void tree_close(struct tree *t);
