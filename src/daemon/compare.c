/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One walk over both lists side by side, in steps. Each side keeps the entries that
 * the current path, or one that is still to come, may be below on a stack: a path
 * without an entry is hidden there when one that it is below hides the image. The
 * stack is never longer than the path, so all of this costs what reading the paths does.
 */
#include "daemon/compare.h"
#include "daemon/limits.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Paths in one step: of the longest, some megabytes are compared. */
#define COMPARE_STEP 512

/* A directory, or what may be one, in the way of the current path; len: of its path. */
struct above {
	const struct change *e;
	size_t len;
};

struct compare_side {
	const struct change *next, *end;
	struct above
		above[LIMIT_PATH + 1]; /* the path of each begins with that of the one before */
	unsigned int depth, hiding;    /* of these, how many hide the image */
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

/* "/" is the only one that ends with a slash. */
static bool is_below(const char *path, const struct above *a)
{
	return a->len == 1 || path[a->len] == '/';
}

/*
 * Leaves what nothing can be below any more. Behind "/a" come "/a-b" and the like before what is
 * below it: '-' is less than '/'.
 */
static void side_leave(struct compare_side *s, const char *path)
{
	while (s->depth) {
		const struct above *a = &s->above[s->depth - 1];

		if (strncmp(path, a->e->path, a->len) == 0 &&
		    (a->len == 1 || (unsigned char)path[a->len] <= '/'))
			break;
		s->hiding -= hides(a->e);
		s->depth--;
	}
}

/* Whether something above path hides what the image has there. */
static bool side_hides(const struct compare_side *s, const char *path)
{
	for (unsigned int i = 0; s->hiding && i < s->depth; i++)
		if (hides(s->above[i].e) && is_below(path, &s->above[i]))
			return true;
	return false;
}

static struct view side_look(struct compare_side *s, const char *path,
			     const struct change_stat *below)
{
	const struct change *e = s->next;

	side_leave(s, path);
	if (!e || e == s->end || strcmp(e->path, path) != 0) {
		struct view v = {0};

		if (!side_hides(s, path))
			v.st = *below;
		return v;
	}
	s->next++;
	s->above[s->depth++] = (struct above){.e = e, .len = strlen(path)};
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

static int look(struct comparison *out, struct compare_side *sa, struct compare_side *sb)
{
	const struct change *ea = sa->next == sa->end ? NULL : sa->next;
	const struct change *eb = sb->next == sb->end ? NULL : sb->next;
	int order = !ea ? 1 : !eb ? -1 : strcmp(ea->path, eb->path);
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

int compare_begin(struct comparison *c, const struct changes *a, const struct changes *b)
{
	*c = (struct comparison){.sides = calloc(2, sizeof(*c->sides))};
	if (!c->sides)
		return -ENOMEM;
	c->sides[0].next = a->all;
	c->sides[0].end = a->n ? a->all + a->n : a->all;
	c->sides[1].next = b->all;
	c->sides[1].end = b->n ? b->all + b->n : b->all;
	return 0;
}

int compare_step(struct comparison *c)
{
	struct compare_side *s = c->sides;

	for (int i = 0; s && i < COMPARE_STEP; i++) {
		int rc;

		if (s[0].next == s[0].end && s[1].next == s[1].end) {
			free(c->sides);
			c->sides = NULL;
			return 0;
		}
		rc = look(c, &s[0], &s[1]);
		if (rc < 0)
			return rc;
	}
	return s ? 1 : 0;
}

void compare_free(struct comparison *c)
{
	free(c->all);
	free(c->sides);
	*c = (struct comparison){0};
}
