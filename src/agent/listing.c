/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FILE list. First the names are collected, a directory at a time, level by
 * level; then they are sorted; then each is looked at and told. What vanishes
 * in between is left out, as is what no path of PATH_MAX can name, and what is
 * in directories that the user may not read.
 *
 * Bounds: LISTING_MAX names, LISTING_BYTES of them; one batch in one turn of
 * the loop, but for a single directory, which is read at once.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/entry.h"
#include "agent/files.h"
#include "agent/stream.h"
#include "lib/dir.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define LISTING_MAX   100000u
#define LISTING_BYTES ((size_t)32 << 20)
#define LISTING_BATCH 512u

struct listing_name {
	char *path;
	uint8_t depth; /* below the directory that is listed: 1 for what is in it */
	bool dir;
};

struct listing {
	struct agent *agent;
	struct listing_name *names;
	size_t count, cap, bytes;
	size_t next;  /* to be read as a directory, then to be told */
	bool telling; /* all are there and sorted; the OK is out */
	unsigned depth;
	struct buf lines;
	char path[PATH_MAX];
};

static void listing_free(void *job)
{
	struct listing *l = job;

	for (size_t i = 0; i < l->count; i++)
		free(l->names[i].path);
	free(l->names);
	buf_free(&l->lines);
	free(l);
}

static int listing_add(struct listing *l, const char *dir, const char *name, unsigned depth,
		       bool is_dir)
{
	size_t n = strlen(dir), need = n + strlen(name) + 2;
	char *path;

	if (need > PATH_MAX)
		return 0;
	if (l->count >= LISTING_MAX || l->bytes + need > LISTING_BYTES)
		return -EOVERFLOW;
	if (l->count == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 64;
		void *p = reallocarray(l->names, cap, sizeof(*l->names));

		if (!p)
			return -ENOMEM;
		l->names = p;
		l->cap = cap;
	}
	path = malloc(need);
	if (!path)
		return -ENOMEM;
	snprintf(path, need, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
	l->names[l->count++] = (struct listing_name){path, (uint8_t)depth, is_dir};
	l->bytes += need;
	return 0;
}

/* DT_UNKNOWN is taken for a directory: opening it tells. */
static int listing_read(struct listing *l, const char *path, unsigned depth, int flags)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC | flags);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;
	int rc = 0;

	if (!d) {
		rc = -errno;
		close_fd(&fd);
		return rc;
	}
	while (rc == 0 && (e = dir_next(d, &rc)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			rc = listing_add(l, path, e->d_name, depth,
					 e->d_type == DT_DIR || e->d_type == DT_UNKNOWN);
	closedir(d);
	return rc;
}

/*
 * Not the state of one directory, which may be the user's doing: the disk is broken, or the agent
 * has too little of something.
 */
static bool listing_fails(int rc)
{
	return rc == -EIO || rc == -EUCLEAN || rc == -EBADMSG || rc == -EMFILE || rc == -ENFILE ||
	       rc == -ENOMEM || rc == -EOVERFLOW;
}

/* One turn of collecting: 1 when there is more to do, 0 when all names are there, -errno. */
static int listing_collect(struct listing *l)
{
	size_t stop = l->count + LISTING_BATCH;
	int rc = 0;

	user_fs_enter(&l->agent->user);
	for (size_t n = 0; l->next < l->count && n < LISTING_BATCH && l->count < stop; n++) {
		const struct listing_name *e = &l->names[l->next++];

		if (!e->dir || e->depth >= l->depth)
			continue;
		rc = listing_read(l, e->path, e->depth + 1u, O_NOFOLLOW);
		if (listing_fails(rc))
			break;
		rc = 0;
	}
	user_fs_leave(&l->agent->user);
	return rc < 0 ? rc : l->next < l->count;
}

static int listing_compare(const void *a, const void *b)
{
	const struct listing_name *x = a, *y = b;

	return strcmp(x->path, y->path);
}

/* Appends the lines of one batch. */
static int listing_tell(struct listing *l)
{
	int rc = 0;

	user_fs_enter(&l->agent->user);
	for (unsigned n = 0; rc == 0 && l->next < l->count && n < LISTING_BATCH; n++) {
		json_t *obj = NULL;
		char *text;

		rc = entry_object(l->names[l->next++].path, &obj);
		if (rc < 0) {
			rc = rc == -ENOMEM ? rc : 0; /* it has vanished */
			continue;
		}
		text = json_text(obj);
		json_decref(obj);
		rc = text ? buf_append(&l->lines, text, strlen(text)) : -ENOMEM;
		if (rc == 0)
			rc = buf_append(&l->lines, "\n", 1);
		free(text);
	}
	user_fs_leave(&l->agent->user);
	return rc;
}

/* Sends what was collected, as far as there is room: false when some is left. */
static bool listing_flush(struct stream *s, struct listing *l)
{
	while (buf_len(&l->lines)) {
		size_t max = stream_room(s), n = buf_len(&l->lines);

		if (max == 0)
			return false;
		if (n > max)
			n = max;
		stream_put(s, FRAME_DATA_OUT, buf_data(&l->lines), n);
		buf_consume(&l->lines, n);
	}
	return true;
}

static void listing_fail(struct stream *s, struct listing *l, int rc)
{
	if (rc == -EOVERFLOW)
		stream_error(s, EMFILE, "%.300s holds more than %u entries", l->path, LISTING_MAX);
	else
		fileop_fail(s, FILEOP_LIST, l->path, rc);
	listing_free(l);
}

/* All names are there: nothing but the host can stop it any more. */
static void listing_begin_telling(struct stream *s, struct listing *l)
{
	json_t *head = json_object();

	if (l->count)
		qsort(l->names, l->count, sizeof(*l->names), listing_compare);
	l->telling = true;
	l->next = 0;
	if (head && entry_put_name(head, "path", l->path) < 0) {
		json_decref(head);
		head = NULL;
	}
	stream_put_json(s, FRAME_OK, head);
}

/* One turn. The job is gone afterwards if it has ended. */
static void listing_go_on(struct stream *s, struct listing *l)
{
	int rc = 0;

	if (!l->telling) {
		rc = listing_collect(l);
		if (rc == 0)
			listing_begin_telling(s, l);
	} else if (!listing_flush(s, l)) {
		return; /* until there is room */
	} else if (l->next < l->count) {
		rc = listing_tell(l);
	} else {
		stream_put(s, FRAME_END_OUT, NULL, 0);
		stream_done(s);
		listing_free(l);
		return;
	}
	if (rc < 0)
		listing_fail(s, l, rc);
	else
		stream_yield(s);
}

static void listing_on_room(struct stream *s, void *job)
{
	listing_go_on(s, job);
}

static const struct stream_ops listing_ops = {
	.room = listing_on_room,
	.gone = listing_free,
};

void listing_begin(struct stream *s, const char *path, unsigned depth)
{
	struct listing *l = calloc(1, sizeof(*l));
	int rc;

	if (!l) {
		stream_error(s, ENOMEM, "out of memory");
		return;
	}
	l->agent = s->agent;
	l->depth = depth;
	/* Lines of one batch, each of which has two paths at most, escaped. */
	buf_init(&l->lines, (size_t)LISTING_BATCH * 16 * PATH_MAX);
	memcpy(l->path, path, strlen(path) + 1);
	user_fs_enter(&s->agent->user);
	rc = listing_read(l, path, 1, 0);
	user_fs_leave(&s->agent->user);
	if (rc < 0) {
		listing_fail(s, l, rc);
		return;
	}
	stream_set_job(s, &listing_ops, l);
	listing_go_on(s, l);
}
