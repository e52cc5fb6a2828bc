/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of the directories of a level, listed, sorted in the order of the
 * paths that come of them, and each once.
 */
#define _GNU_SOURCE
#include "agent/tree_level.h"
#include "lib/dir.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Names that are looked at: two events each, and in some directories many are like the image's. */
#define TREE_EVENTS_MAX ((size_t)4 * TREE_ENTRIES_MAX)

void level_free(struct tree_level *l)
{
	close_fd(&l->upper);
	if (l->source != SAME_AS_IMAGE)
		close_fd(&l->source);
	close_fd(&l->image);
	for (size_t i = 0; i < l->count; i++)
		if (l->names[i].owner)
			free(l->names[i].text);
	free(l->names);
}

static int level_add(struct tree *t, struct tree_level *l, const struct tree_name *n)
{
	struct tree_name *grown;

	if (t->events++ >= TREE_EVENTS_MAX)
		return -EOVERFLOW;
	if (l->count == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 16;

		grown = reallocarray(l->names, cap, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		l->names = grown;
		l->cap = cap;
	}
	l->names[l->count++] = *n;
	return 0;
}

/* A name and, if it may be a directory, the second event of it. */
static int level_add_name(struct tree *t, struct tree_level *l, const char *name, bool dir)
{
	struct tree_name n = {.owner = true};
	int rc;

	t->name_bytes += strlen(name) + 1;
	if (t->name_bytes > TREE_NAMES_MAX)
		return -EOVERFLOW;
	n.text = strdup(name);
	if (!n.text)
		return -ENOMEM;
	rc = level_add(t, l, &n);
	if (rc < 0) {
		free(n.text);
		return rc;
	}
	n.owner = false;
	n.below = true;
	return dir ? level_add(t, l, &n) : 0;
}

static int name_compare(const void *a, const void *b)
{
	const struct tree_name *x = a, *y = b;
	size_t n = strlen(x->text), m = strlen(y->text);
	int c = memcmp(x->text, y->text, n < m ? n : m);
	unsigned char p, q;

	if (c)
		return c;
	/* The next byte decides: of the longer name, or the '/' of what is below the shorter. */
	p = n > m ? (unsigned char)x->text[m] : x->below ? '/' : 0;
	q = m > n ? (unsigned char)y->text[n] : y->below ? '/' : 0;
	if (p != q)
		return p < q ? -1 : 1;
	return (int)y->owner - (int)x->owner;
}

/* Sorts, and leaves one of each event (a name may come from several directories). */
static void level_sort(struct tree_level *l)
{
	size_t kept = 0;

	if (l->count)
		qsort(l->names, l->count, sizeof(*l->names), name_compare);
	/* The text of a dropped event may be that of another one: only the marks change. */
	for (size_t i = 0; i < l->count; i++) {
		struct tree_name *n = &l->names[i];

		if (kept && n->below == l->names[kept - 1].below &&
		    strcmp(n->text, l->names[kept - 1].text) == 0)
			continue;
		if (kept != i) {
			struct tree_name swap = l->names[kept];

			l->names[kept] = *n;
			*n = swap;
		}
		kept++;
	}
	l->next = 0;
	/* Behind `kept` lie the dropped ones; they are freed with the level. */
	l->cap = l->count;
	for (size_t i = kept; i < l->count; i++)
		l->names[i].to = UINT32_MAX;
}

bool level_name_dropped(const struct tree_name *n)
{
	return n->to == UINT32_MAX;
}

/* Adds the names of one directory. */
static int level_list(struct tree *t, struct tree_level *l, int dirfd)
{
	int fd = openat(dirfd, ".", OPEN_DIR), rc = 0;
	struct dirent *e;
	DIR *d;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	d = fdopendir(fd);
	if (!d) {
		close(fd);
		return -ENOMEM;
	}
	while (rc == 0 && (e = dir_next(d, &rc))) {
		if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
			continue;
		rc = level_add_name(t, l, e->d_name,
				    e->d_type == DT_DIR || e->d_type == DT_UNKNOWN);
	}
	closedir(d);
	return rc;
}

int level_fill(struct tree *t, struct tree_level *l)
{
	int rc = l->upper >= 0 ? level_list(t, l, l->upper) : 0;

	if (rc == 0 && l->source != SAME_AS_IMAGE) {
		if (l->source >= 0)
			rc = level_list(t, l, l->source);
		if (rc == 0 && l->image >= 0)
			rc = level_list(t, l, l->image);
	}
	if (rc == 0)
		level_sort(l);
	return rc;
}

int level_fill_way(struct tree *t, struct tree_level *l, uint32_t from, uint32_t to, size_t off)
{
	int rc = 0;

	for (uint32_t i = from, end; i < to && rc == 0; i = end) {
		const char *rest = t->paths[i] + off;
		size_t len = strcspn(rest, "/");
		bool exact = rest[len] == '\0';
		struct tree_name n = {.below = true, .owner = true, .from = i};

		for (end = i + 1; !exact && end < to; end++)
			if (strncmp(t->paths[end] + off, rest, len + 1) != 0)
				break;
		n.to = exact ? i : end;
		n.text = strndup(rest, len);
		if (!n.text)
			return -ENOMEM;
		rc = level_add(t, l, &n);
		if (rc < 0) {
			free(n.text);
			return rc;
		}
		n.owner = n.below = false;
		if (exact)
			rc = level_add(t, l, &n);
	}
	level_sort(l);
	return rc;
}
