/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FILE: what is done with one call or a few, at once. Listing and removing a
 * tree take longer: listing.c, removal.c.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/entry.h"
#include "agent/files.h"
#include "agent/path.h"
#include "agent/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static int fileop_stat(const char *path, json_t **out)
{
	return entry_object(path, out);
}

static json_t *fileop_answer(const char *path)
{
	json_t *obj = json_object();

	if (obj && entry_put_name(obj, "path", path) == 0)
		return obj;
	json_decref(obj);
	return NULL;
}

/* The directories above the last part of the path. */
static int fileop_make_parents(const char *path)
{
	char dir[PATH_MAX];
	size_t end = (size_t)(strrchr(path, '/') - path);

	memcpy(dir, path, end);
	dir[end] = '\0';
	for (size_t i = 1; i <= end; i++) {
		if (dir[i] != '/' && i < end)
			continue;
		dir[i] = '\0';
		if (mkdir(dir, 0755) < 0 && errno != EEXIST)
			return -errno;
		if (i < end)
			dir[i] = '/';
	}
	return 0;
}

static int fileop_mkdir(const char *path, const struct request_fileop *q, json_t **out)
{
	bool created = true;
	struct stat st;
	int rc = 0;

	if (mkdir(path, 0755) < 0)
		rc = -errno;
	if (rc == -ENOENT && q->parents) {
		rc = fileop_make_parents(path);
		if (rc == 0 && mkdir(path, 0755) < 0)
			rc = -errno;
	}
	if (rc == -EEXIST && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
		created = false;
		rc = 0;
	}
	/* Afterwards, for mkdir() takes away what the umask has. */
	if (rc == 0 && created && q->mode >= 0 && chmod(path, (mode_t)q->mode) < 0)
		rc = -errno;
	if (rc < 0)
		return rc;
	*out = fileop_answer(path);
	json_object_set_new(*out, "created", json_boolean(created));
	return 0;
}

static int fileop_rename(struct agent *a, const char *path, const struct request_fileop *q,
			 json_t **out)
{
	unsigned flags = q->overwrite ? 0 : RENAME_NOREPLACE;
	char to[PATH_MAX];
	struct err err;
	int rc = path_absolute(a, &a->repl, q->to, to, &err);

	if (rc < 0)
		return rc;
	if (renameat2(AT_FDCWD, path, AT_FDCWD, to, flags) < 0)
		return -errno;
	*out = fileop_answer(to);
	return 0;
}

static int fileop_chmod(const char *path, const struct request_fileop *q, json_t **out)
{
	if (chmod(path, (mode_t)q->mode) < 0)
		return -errno;
	*out = fileop_answer(path);
	json_object_set_new(*out, "mode", json_integer(q->mode));
	return 0;
}

static const char *fileop_verb(enum request_fileop_op op)
{
	static const char *const verbs[] = {"look at", "list",   "make",
					    "remove",  "rename", "change"};

	return verbs[op];
}

void fileop_fail(struct stream *s, enum request_fileop_op op, const char *path, int rc)
{
	stream_error(s, -rc, "cannot %s %.300s: %s", fileop_verb(op), path, strerror(-rc));
}

/* Takes the parts "." out of an absolute path; ".." stays, for it may go through a link. */
static void fileop_drop_dots(char *path)
{
	char *out = path;

	for (char *in = path; *in;) {
		size_t n = 1 + strcspn(in + 1, "/");

		if (n > 1 && !(n == 2 && in[1] == '.')) {
			memmove(out, in, n);
			out += n;
		}
		in += n;
	}
	if (out == path)
		*out++ = '/';
	*out = '\0';
}

void fileop_begin(struct stream *s, const struct request_fileop *q)
{
	struct agent *a = s->agent;
	char path[PATH_MAX];
	json_t *out = NULL;
	struct err err;
	int rc = 0;

	/* Where the session is, the agent finds out with its own rights. */
	if (path_absolute(a, &a->repl, q->path, path, &err) < 0) {
		stream_fail(s, &err);
		return;
	}
	for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
		path[n - 1] = '\0';
	if (q->op == FILEOP_LIST) {
		/* Paths of a list can be compared with those of other answers. */
		fileop_drop_dots(path);
		listing_begin(s, path, q->depth);
		return;
	}
	if (q->op == FILEOP_REMOVE) {
		removal_begin(s, path, q->recursive);
		return;
	}
	user_fs_enter(&a->user);
	switch (q->op) {
	case FILEOP_STAT:
		rc = fileop_stat(path, &out);
		break;
	case FILEOP_MKDIR:
		rc = fileop_mkdir(path, q, &out);
		break;
	case FILEOP_RENAME:
		rc = fileop_rename(a, path, q, &out);
		break;
	case FILEOP_CHMOD:
		rc = fileop_chmod(path, q, &out);
		break;
	case FILEOP_LIST:
	case FILEOP_REMOVE:
		break;
	}
	user_fs_leave(&a->user);
	if (rc < 0)
		fileop_fail(s, q->op, path, rc);
	else
		stream_final(s, FRAME_OK, out);
}
