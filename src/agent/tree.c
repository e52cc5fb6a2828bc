/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stack of levels, one for each directory that is open. A level has up to
 * three directories: in the upper layer; `source`, what the overlay merges it
 * with; and `image`, what the image has at the same path. Where the last two
 * are the same (`plain`, the normal case) only names of the upper layer can be
 * different from the image. Otherwise all names of all three are looked at.
 *
 * For each name there are two events: the entry itself, and what is below it,
 * sorted as "name" and "name/". So all paths come in the order of their bytes.
 * The way down to a path that was asked for is a level with just that name.
 */
#define _GNU_SOURCE
#include "agent/tree.h"
#include "agent/tree_level.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define TREE_TURN    256 /* names looked at in one call */
#define XATTR_OPAQUE "trusted.overlay.opaque"
#define XATTR_MOVED  "trusted.overlay.redirect"

/* One name, looked up in the three directories of a level. */
struct tree_look {
	bool upper, source, image; /* is there */
	bool whiteout;
	struct stat st_upper, st_source, st_image;
};

static int tree_too_many(struct err *err)
{
	return err_text(err, EMFILE, "more than %u files were changed", TREE_ENTRIES_MAX);
}

static int tree_push(struct tree *t, struct tree_level *l)
{
	struct tree_level *grown;

	if (t->nlevels == t->cap) {
		size_t cap = t->cap ? t->cap * 2 : 16;

		grown = reallocarray(t->levels, cap, sizeof(*grown));
		if (!grown)
			return -ENOMEM;
		t->levels = grown;
		t->cap = cap;
	}
	t->levels[t->nlevels++] = *l;
	return 0;
}

static bool look_one(int dirfd, const char *name, struct stat *st)
{
	return dirfd >= 0 && fstatat(dirfd, name, st, AT_SYMLINK_NOFOLLOW) == 0;
}

static void tree_look(const struct tree_level *l, const char *name, struct tree_look *k)
{
	*k = (struct tree_look){0};
	k->upper = look_one(l->upper, name, &k->st_upper);
	k->whiteout = k->upper && S_ISCHR(k->st_upper.st_mode) && k->st_upper.st_rdev == 0;
	k->image = look_one(l->image, name, &k->st_image);
	if (l->source == SAME_AS_IMAGE) {
		k->source = k->image;
		k->st_source = k->st_image;
	} else {
		k->source = look_one(l->source, name, &k->st_source);
	}
}

/* -1 when there is no such directory (or not any more); any other failure is the tree's. */
static int open_dir(struct tree *t, int dirfd, const char *name)
{
	int fd = dirfd >= 0 ? openat(dirfd, name, OPEN_DIR) : -1;

	if (dirfd >= 0 && fd < 0 && errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
		t->failure = -errno;
	return fd;
}

/* A directory of the image by its path, without following links. */
static int open_below(struct tree *t, char *path)
{
	int fd = open_dir(t, t->image, ".");
	char *save = NULL;

	for (char *p = strtok_r(path, "/", &save); p && fd >= 0; p = strtok_r(NULL, "/", &save)) {
		int next = strcmp(p, "..") == 0 ? -1 : open_dir(t, fd, p);

		close(fd);
		fd = next;
	}
	return fd;
}

/*
 * What the overlay merges the directory `name` of a level with: SAME_AS_IMAGE,
 * a descriptor, or -1 for nothing. upper: the directory in the upper layer, -1
 * when it has none.
 */
static int tree_source(struct tree *t, const struct tree_level *l, const char *name, int upper,
		       const struct tree_look *k)
{
	char value[PATH_MAX];
	ssize_t n = upper < 0 ? -1 : fgetxattr(upper, XATTR_OPAQUE, value, sizeof(value));

	if (n == 1 && value[0] == 'y')
		return -1;
	n = upper < 0 ? -1 : fgetxattr(upper, XATTR_MOVED, value, sizeof(value) - 1);
	if (n > 0) {
		int dir = l->source == SAME_AS_IMAGE ? l->image : l->source;

		value[n] = '\0';
		if (value[0] == '/')
			return open_below(t, value);
		return strchr(value, '/') ? -1 : open_dir(t, dir, value);
	}
	if (!k->source || !S_ISDIR(k->st_source.st_mode))
		return -1;
	return l->source == SAME_AS_IMAGE ? SAME_AS_IMAGE : open_dir(t, l->source, name);
}

/* Whether the name is a directory for the user. */
static bool look_is_dir(const struct tree_look *k)
{
	if (k->upper)
		return S_ISDIR(k->st_upper.st_mode);
	return k->source && S_ISDIR(k->st_source.st_mode);
}

static int tree_enter(struct tree *t, const struct tree_name *name)
{
	struct tree_level *l = &t->levels[t->nlevels - 1];
	struct tree_level sub = {.upper = -1, .source = -1, .image = -1};
	bool way = name->from != name->to;
	struct tree_look k;
	int rc;

	tree_look(l, name->text, &k);
	/* On the way to a path, also through what is gone: then it is gone as well. */
	if (!look_is_dir(&k) && !(way && k.image))
		return 0;
	if (k.upper && !k.whiteout)
		sub.upper = open_dir(t, l->upper, name->text);
	if (look_is_dir(&k))
		sub.source = tree_source(t, l, name->text, sub.upper, &k);
	sub.image = k.image ? open_dir(t, l->image, name->text) : -1;
	if (sub.source == SAME_AS_IMAGE && sub.upper < 0) {
		level_free(&sub); /* nothing was changed */
		return 0;
	}
	sub.path_len = strlen(t->path);
	sub.way = way;
	rc = way ? level_fill_way(t, &sub, name->from, name->to, sub.path_len + 1)
		 : level_fill(t, &sub);
	if (rc == 0)
		rc = tree_push(t, &sub);
	if (rc < 0)
		level_free(&sub);
	return rc;
}

static enum tree_kind kind_of(const struct stat *st)
{
	if (S_ISREG(st->st_mode))
		return TREE_FILE;
	if (S_ISDIR(st->st_mode))
		return TREE_DIR;
	return S_ISLNK(st->st_mode) ? TREE_LINK : TREE_OTHER;
}

/* Whether the image's directory at this path is hidden by the one that is there. */
static bool tree_is_opaque(struct tree *t, const struct tree_level *l, const char *name,
			   const struct tree_look *k)
{
	_cleanup_fd int upper = k->upper ? open_dir(t, l->upper, name) : -1;
	int source;

	if (!k->image || !S_ISDIR(k->st_image.st_mode))
		return false;
	source = tree_source(t, l, name, upper, k);
	if (source >= 0)
		close(source);
	return source != SAME_AS_IMAGE;
}

static void tree_read_link(struct tree *t, int dirfd, const char *name, struct tree_entry *e)
{
	ssize_t n = readlinkat(dirfd, name, t->link, sizeof(t->link) - 1);

	t->link[n < 0 ? 0 : n] = '\0';
	e->link = t->link;
}

/* 1 when the name is an entry, 0 when it is not different from the image. */
static int tree_yield(struct tree *t, const struct tree_level *l, const char *name,
		      struct tree_entry *e)
{
	int dirfd = l->upper;
	struct tree_look k;

	tree_look(l, name, &k);
	*e = (struct tree_entry){.path = t->path, .below = k.image, .image = k.st_image};
	if (k.upper && !k.whiteout) {
		e->st = k.st_upper;
	} else if (!k.upper && k.source) {
		if (l->source == SAME_AS_IMAGE)
			return 0;
		e->st = k.st_source;
		dirfd = l->source;
	} else {
		e->kind = TREE_GONE;
		return k.image;
	}
	e->kind = kind_of(&e->st);
	if (e->kind == TREE_DIR && tree_is_opaque(t, l, name, &k))
		e->kind = TREE_OPAQUE_DIR;
	if (e->kind == TREE_LINK)
		tree_read_link(t, dirfd, name, e);
	return 1;
}

/* Puts the name behind the path of the level. */
static int tree_set_path(struct tree *t, const struct tree_level *l, const char *name)
{
	size_t n = strlen(name);

	if (l->path_len + 1 + n >= sizeof(t->path))
		return -ENAMETOOLONG;
	t->path[l->path_len] = '/';
	memcpy(t->path + l->path_len + 1, name, n + 1);
	return 0;
}

static int tree_fail(int rc, struct err *err)
{
	if (rc == -EOVERFLOW)
		return tree_too_many(err);
	if (rc == -ENAMETOOLONG)
		return err_text(err, EMFILE, "there are directories too deep to have a path");
	return err_set(err, -rc, "cannot look at what was changed");
}

int tree_next(struct tree *t, struct tree_entry *e, struct err *err)
{
	for (int i = 0; i < TREE_TURN; i++) {
		struct tree_level *l;
		struct tree_name *n;
		int rc;

		if (t->nlevels == 0)
			return 0;
		l = &t->levels[t->nlevels - 1];
		if (l->next == l->count || level_name_dropped(&l->names[l->next])) {
			level_free(l);
			t->nlevels--;
			continue;
		}
		n = &l->names[l->next++];
		rc = tree_set_path(t, l, n->text);
		if (rc == 0 && n->below)
			rc = tree_enter(t, n);
		else if (rc == 0 && tree_yield(t, l, n->text, e) > 0 && t->failure == 0)
			return t->entries++ < TREE_ENTRIES_MAX ? 1 : tree_too_many(err);
		if (rc == 0)
			rc = t->failure;
		if (rc < 0)
			return tree_fail(rc, err);
	}
	return 2;
}

/* Absolute and without "." and ".."; written anew with single slashes and none at the end. */
static int path_normalise(const char *path, char **out, struct err *err)
{
	char *copy = strdup(path), *to = copy;

	if (!copy)
		return err_set(err, ENOMEM, "cannot take a path");
	for (const char *p = path; *p;) {
		size_t n = strcspn(p + 1, "/");

		if (*p != '/' || (n == 1 && p[1] == '.') ||
		    (n == 2 && p[1] == '.' && p[2] == '.')) {
			free(copy);
			return err_text(err, EINVAL,
					"%.200s is not an absolute path without . and ..", path);
		}
		if (n) {
			memmove(to, p, n + 1);
			to += n + 1;
		}
		p += n + 1;
	}
	*to = '\0';
	*out = copy;
	return 0;
}

static int path_compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool path_inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

/* Drops paths that lie in others. */
static void tree_reduce(struct tree *t)
{
	size_t kept = 0;

	for (size_t i = 0; i < t->npaths; i++) {
		bool inside = false;

		for (size_t j = 0; j < kept && !inside; j++)
			inside = path_inside(t->paths[i], t->paths[j]);
		if (inside)
			free(t->paths[i]);
		else
			t->paths[kept++] = t->paths[i];
	}
	t->npaths = kept;
}

static int tree_start(struct tree *t)
{
	struct tree_level root = {.source = SAME_AS_IMAGE};
	bool all = t->npaths && t->paths[0][0] == '\0';
	int rc;

	root.upper = open_dir(t, t->upper, ".");
	root.image = open_dir(t, t->image, ".");
	root.way = !all;
	rc = root.upper < 0 || root.image < 0 ? -errno : 0;
	if (rc == 0)
		rc = all ? level_fill(t, &root)
			 : level_fill_way(t, &root, 0, (uint32_t)t->npaths, 1);
	if (rc == 0)
		rc = tree_push(t, &root);
	if (rc < 0)
		level_free(&root);
	return rc;
}

int tree_open(struct tree *t, int upper, int image, const char *const *paths, size_t npaths,
	      struct err *err)
{
	int rc = 0;

	*t = (struct tree){.upper = upper, .image = image};
	if (npaths > TREE_PATHS_MAX)
		return err_text(err, EINVAL, "more than %u paths", TREE_PATHS_MAX);
	t->paths = calloc(npaths + 1, sizeof(*t->paths));
	if (!t->paths)
		return err_set(err, ENOMEM, "cannot take the paths");
	for (size_t i = 0; i < npaths && rc == 0; i++) {
		rc = path_normalise(paths[i], &t->paths[i], err);
		if (rc == 0)
			t->npaths++;
	}
	if (rc == 0) {
		qsort(t->paths, t->npaths, sizeof(*t->paths), path_compare);
		tree_reduce(t);
		rc = tree_start(t);
		if (rc < 0)
			tree_fail(rc, err);
	}
	if (rc < 0)
		tree_close(t);
	return rc;
}

void tree_close(struct tree *t)
{
	while (t->nlevels)
		level_free(&t->levels[--t->nlevels]);
	free(t->levels);
	for (size_t i = 0; i < t->npaths; i++)
		free(t->paths[i]);
	free(t->paths);
	t->levels = NULL;
	t->paths = NULL;
	t->npaths = 0;
}
