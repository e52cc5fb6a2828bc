/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One walk over both lists side by side. Each side keeps the entries above the
 * current path on a stack: a path without an entry is hidden there when one of
 * them hides the image.
 */
#include "daemon/compare.h"
#include "daemon/limits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct side {
	const struct change *next, *end;
	const struct change *above[LIMIT_PATH / 2 + 2]; /* each below the one before */
	unsigned int depth, hiding;                     /* of these, how many hide the image */
};

/* What a side has at a path. */
struct view {
	struct change_stat st;
	const struct change *own; /* NULL: the image's */
};

static bool hides(const struct change *e)
{
	return e->opaque || e->now.type != CHANGE_DIR;
}

/* Leaves the directories that path is not below. */
static void side_leave(struct side *s, const char *path)
{
	while (s->depth && !changes_path_below(path, s->above[s->depth - 1]->path)) {
		s->hiding -= hides(s->above[s->depth - 1]);
		s->depth--;
	}
}

static struct view side_look(struct side *s, const char *path, const struct change_stat *below)
{
	const struct change *e = s->next;

	side_leave(s, path);
	if (!e || e == s->end || strcmp(e->path, path) != 0) {
		struct view v = {0};

		if (!s->hiding)
			v.st = *below;
		return v;
	}
	s->next++;
	s->above[s->depth++] = e;
	s->hiding += hides(e);
	return (struct view){.st = e->now, .own = e};
}

static int add(struct comparison *c, const char *path, enum compare_kind kind,
	       const struct change_stat *a, const struct change_stat *b)
{
	if (c->n == c->cap) {
		size_t cap = c->cap ? c->cap * 2 : 64;
		struct compare_item *all = realloc(c->all, cap * sizeof(*all));

		if (!all)
			return -ENOMEM;
		c->all = all;
		c->cap = cap;
	}
	c->all[c->n++] = (struct compare_item){.path = path, .kind = kind, .a = *a, .b = *b};
	return 0;
}

/* Untouched on both sides since they were one. */
static bool same_entry(const struct change *a, const struct change *b)
{
	return a && b && a->ino == b->ino && a->ctime_ns == b->ctime_ns &&
	       a->mtime_ns == b->mtime_ns && a->now.size == b->now.size &&
	       a->now.mode == b->now.mode && a->now.type == b->now.type && a->opaque == b->opaque;
}

static bool same_link(const struct view *a, const struct view *b)
{
	/* Where the image's goes is not told; one that was made anew is taken for another. */
	return a->own && b->own && a->own->link && b->own->link &&
	       strcmp(a->own->link, b->own->link) == 0;
}

static bool image_has_dir(const struct view *v)
{
	return v->own && v->own->below.type == CHANGE_DIR;
}

/* One side has removed the directory and made it again, and the image has something in it. */
static bool replaced(const struct view *a, const struct view *b)
{
	bool oa = a->own && a->own->opaque, ob = b->own && b->own->opaque;

	return oa != ob && (image_has_dir(a) || image_has_dir(b));
}

static int differ(struct comparison *out, const char *path, const struct view *a,
		  const struct view *b)
{
	bool same = a->st.mode == b->st.mode;

	switch (a->st.type) {
	case CHANGE_FILE:
		same = same && a->st.size == b->st.size;
		if (same)
			return add(out, path, COMPARE_CONTENT, &a->st, &b->st);
		break;
	case CHANGE_DIR:
		same = same && !replaced(a, b);
		break;
	case CHANGE_LINK:
		same = same && same_link(a, b);
		break;
	case CHANGE_NONE:
	case CHANGE_OTHER:
		same = same && a->st.size == b->st.size;
		break;
	}
	return same ? 0 : add(out, path, COMPARE_MODIFIED, &a->st, &b->st);
}

static int look(struct comparison *out, struct side *sa, struct side *sb)
{
	const struct change *ea = sa->next == sa->end ? NULL : sa->next;
	const struct change *eb = sb->next == sb->end ? NULL : sb->next;
	int order = !ea ? 1 : !eb ? -1 : changes_path_compare(ea->path, eb->path);
	const struct change *first = order <= 0 ? ea : eb;
	struct change_stat below;
	struct view a, b;

	if (!first)
		return 0; /* both have come to their end */
	below = first->below;
	a = side_look(sa, first->path, &below);
	b = side_look(sb, first->path, &below);
	if (same_entry(a.own, b.own) || (!a.st.type && !b.st.type))
		return 0;
	if (!a.st.type)
		return add(out, first->path, COMPARE_ADDED, &a.st, &b.st);
	if (!b.st.type)
		return add(out, first->path, COMPARE_REMOVED, &a.st, &b.st);
	if (a.st.type != b.st.type)
		return add(out, first->path, COMPARE_MODIFIED, &a.st, &b.st);
	return differ(out, first->path, &a, &b);
}

int compare_run(struct comparison *out, const struct changes *a, const struct changes *b)
{
	struct side *sides = calloc(2, sizeof(*sides));
	int rc = sides ? 0 : -ENOMEM;

	*out = (struct comparison){0};
	if (rc == 0) {
		sides[0].next = a->all;
		sides[0].end = a->n ? a->all + a->n : a->all;
		sides[1].next = b->all;
		sides[1].end = b->n ? b->all + b->n : b->all;
	}
	while (rc == 0 && (sides[0].next != sides[0].end || sides[1].next != sides[1].end))
		rc = look(out, &sides[0], &sides[1]);
	free(sides);
	return rc;
}

void compare_free(struct comparison *c)
{
	free(c->all);
	*c = (struct comparison){0};
}
