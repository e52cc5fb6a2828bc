/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FILE remove. A tree is removed from the inside, with one open directory for
 * each level on the way to where the work is. Trees may be deeper than that:
 * what lies at the last level is moved up into the tree's own directory, where
 * it is found later. So neither descriptors nor paths limit the depth.
 *
 * With the user's rights, a batch in one turn of the loop. The first thing that
 * cannot be removed ends it; what is gone by then stays so.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/entry.h"
#include "agent/files.h"
#include "agent/stream.h"
#include "lib/dir.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REMOVAL_LEVELS 64
#define REMOVAL_BATCH  512
/* A directory into which others put things while it is removed is tried again so often. */
#define REMOVAL_TRIES 8

struct removal {
	struct agent *agent;
	DIR *dir[REMOVAL_LEVELS];                /* dir[0] is the tree's own */
	char name[REMOVAL_LEVELS][NAME_MAX + 1]; /* of dir[i] in dir[i - 1] */
	unsigned tries[REMOVAL_LEVELS];
	unsigned levels;
	unsigned moved; /* numbers the names of what was moved up */
	unsigned seen;  /* the number when the tree's own directory was last read to its end */
	char path[PATH_MAX];
};

static void removal_free(void *job)
{
	struct removal *r = job;

	while (r->levels)
		closedir(r->dir[--r->levels]);
	free(r);
}

static int removal_enter(struct removal *r, int at, const char *name)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	int rc = -errno;

	if (!d) {
		close_fd(&fd);
		return rc;
	}
	snprintf(r->name[r->levels], sizeof(r->name[0]), "%s", r->levels ? name : "");
	r->tries[r->levels] = 0;
	r->dir[r->levels++] = d;
	return 0;
}

/* A directory below the last level goes where there is room. */
static int removal_move_up(struct removal *r, const char *name)
{
	char to[48];

	snprintf(to, sizeof(to), ".podflare-remove-%u", r->moved++);
	return renameat2(dirfd(r->dir[r->levels - 1]), name, dirfd(r->dir[0]), to,
			 RENAME_NOREPLACE) < 0
		       ? -errno
		       : 0;
}

/* One name: removed, or entered if it is a directory. */
static int removal_take(struct removal *r, const char *name)
{
	int at = dirfd(r->dir[r->levels - 1]), rc;

	if (unlinkat(at, name, 0) == 0 || errno == ENOENT)
		return 0;
	/* Of directories Linux says EISDIR; and EPERM is what POSIX would have it say. */
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	rc = -errno;
	if (unlinkat(at, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
		return 0;
	if (errno == ENOTDIR)
		return rc;
	if (errno != ENOTEMPTY && errno != EEXIST)
		return -errno;
	if (r->levels == REMOVAL_LEVELS)
		return removal_move_up(r, name);
	return removal_enter(r, at, name);
}

/* The innermost directory has been read to its end: 1 when that was the last one. */
static int removal_leave(struct removal *r)
{
	unsigned i = r->levels - 1;
	int rc = i ? unlinkat(dirfd(r->dir[i - 1]), r->name[i], AT_REMOVEDIR) : rmdir(r->path);

	rc = rc < 0 && errno != ENOENT ? -errno : 0;
	if (rc == -ENOTEMPTY || rc == -EEXIST) {
		/* Something was moved up, or put there by somebody. What was moved up counts as
		 * progress. */
		if (i == 0 && r->moved > r->seen) {
			r->seen = r->moved;
			r->tries[0] = 0;
		}
		if (r->tries[i]++ >= REMOVAL_TRIES)
			return rc;
		rewinddir(r->dir[i]);
		return 0;
	}
	if (rc < 0)
		return rc;
	closedir(r->dir[i]);
	r->levels = i;
	return i == 0;
}

/* One turn: 1 when it is done, 0 when there is more to do, -errno. */
static int removal_step(struct removal *r)
{
	int rc = 0;

	user_fs_enter(&r->agent->user);
	for (int n = 0; rc == 0 && n < REMOVAL_BATCH; n++) {
		struct dirent *e = dir_next(r->dir[r->levels - 1], &rc);

		if (!e)
			rc = rc == 0 ? removal_leave(r) : rc;
		else if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			rc = removal_take(r, e->d_name);
	}
	user_fs_leave(&r->agent->user);
	return rc;
}

static void removal_answer(struct stream *s, const char *path)
{
	json_t *obj = json_object();

	if (obj && entry_put_name(obj, "path", path) < 0) {
		json_decref(obj);
		obj = NULL;
	}
	stream_final(s, FRAME_OK, obj);
}

/* The job is gone afterwards if it has ended. */
static void removal_go_on(struct stream *s, struct removal *r)
{
	int rc = removal_step(r);

	if (rc == 0) {
		stream_yield(s);
		return;
	}
	if (rc < 0)
		fileop_fail(s, FILEOP_REMOVE, r->path, rc);
	else
		removal_answer(s, r->path);
	removal_free(r);
}

static void removal_on_room(struct stream *s, void *job)
{
	removal_go_on(s, job);
}

static const struct stream_ops removal_ops = {
	.room = removal_on_room,
	.gone = removal_free,
};

/* Removes what takes one call: 0, 1 when it is a directory that is not empty, -errno. */
static int removal_simple(struct agent *a, const char *path)
{
	int rc = 0;

	user_fs_enter(&a->user);
	if (unlink(path) < 0)
		rc = -errno;
	if (rc == -EISDIR || rc == -EPERM) {
		if (rmdir(path) == 0)
			rc = 0;
		else if (errno != ENOTDIR)
			rc = -errno;
	}
	user_fs_leave(&a->user);
	return rc == -ENOTEMPTY || rc == -EEXIST ? 1 : rc;
}

static bool removal_is_odd(const char *path)
{
	const char *base = strrchr(path, '/') + 1;

	return *base == '\0' || strcmp(base, ".") == 0 || strcmp(base, "..") == 0;
}

void removal_begin(struct stream *s, const char *path, bool recursive)
{
	struct removal *r;
	int rc;

	if (removal_is_odd(path)) {
		stream_error(s, EINVAL, "cannot remove %.300s: it does not end with a name", path);
		return;
	}
	rc = removal_simple(s->agent, path);
	if (rc == 0) {
		removal_answer(s, path);
		return;
	}
	if (rc < 0 || !recursive) {
		fileop_fail(s, FILEOP_REMOVE, path, rc < 0 ? rc : -ENOTEMPTY);
		return;
	}
	r = calloc(1, sizeof(*r));
	if (!r) {
		stream_error(s, ENOMEM, "out of memory");
		return;
	}
	r->agent = s->agent;
	memcpy(r->path, path, strlen(path) + 1);
	user_fs_enter(&s->agent->user);
	rc = removal_enter(r, AT_FDCWD, path);
	user_fs_leave(&s->agent->user);
	if (rc < 0) {
		fileop_fail(s, FILEOP_REMOVE, path, rc);
		removal_free(r);
		return;
	}
	stream_set_job(s, &removal_ops, r);
	removal_go_on(s, r);
}
