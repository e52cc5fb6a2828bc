/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GET. The path is looked up first without opening the file (O_PATH), its
 * type is checked, and only a regular file is then opened, through that same
 * descriptor, so that nobody can put a fifo in its place in between.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/files.h"
#include "agent/path.h"
#include "agent/stream.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/* Frames per turn of the loop: others want to be served, too. */
#define GET_BATCH 16

struct get {
	int fd;
	int64_t left; /* bytes still to send; -1 = unknown, until EOF */
	int64_t most; /* of an unknown number; -1 = no limit */
	char path[PATH_MAX];
};

static void get_free(void *job)
{
	struct get *g = job;

	close_fd(&g->fd);
	free(g);
}

/* Files whose st_size says nothing about what read() gives. */
static bool get_is_virtual(int fd)
{
	static const unsigned long magics[] = {PROC_SUPER_MAGIC, SYSFS_MAGIC,   CGROUP2_SUPER_MAGIC,
					       DEBUGFS_MAGIC,    TRACEFS_MAGIC, SECURITYFS_MAGIC};
	struct statfs sf;

	if (fstatfs(fd, &sf) < 0)
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(magics); i++)
		if ((unsigned long)sf.f_type == magics[i])
			return true;
	return false;
}

static int get_open(struct agent *a, const char *path, struct stat *st, struct err *err)
{
	_cleanup_fd int ref = -1;
	char link[64];
	int fd, num;

	user_fs_enter(&a->user);
	ref = open(path, O_PATH | O_CLOEXEC);
	num = errno;
	user_fs_leave(&a->user);
	if (ref < 0)
		return err_set(err, num, "cannot open %.300s", path);
	if (fstat(ref, st) < 0)
		return err_set(err, errno, "cannot look at %.300s", path);
	if (S_ISDIR(st->st_mode))
		return err_text(err, EISDIR, "%.300s is a directory", path);
	if (!S_ISREG(st->st_mode))
		return err_text(err, ENXIO, "%.300s is not a regular file", path);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", ref);
	user_fs_enter(&a->user);
	fd = open(link, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	num = errno;
	user_fs_leave(&a->user);
	return fd >= 0 ? fd : err_set(err, num, "cannot open %.300s", path);
}

/* Sends as much as there is room for. The job is gone afterwards if the file has ended. */
static void get_send(struct stream *s, struct get *g)
{
	for (int i = 0; i < GET_BATCH; i++) {
		size_t max = stream_room(s);
		ssize_t n;

		if (max == 0)
			return;
		if (g->left >= 0 && (int64_t)max > g->left)
			max = (size_t)g->left;
		if (g->most >= 0 && (int64_t)max > g->most)
			max = (size_t)g->most;
		n = max ? io_read_some(g->fd, s->agent->scratch, max) : 0;
		if (n > 0) {
			stream_put(s, FRAME_DATA_OUT, s->agent->scratch, (size_t)n);
			if (g->left > 0)
				g->left -= n;
			if (g->most > 0)
				g->most -= n;
			continue;
		}
		if (n < 0) {
			stream_error(s, (int)-n == EAGAIN ? EIO : (int)-n, "cannot read %.300s: %s",
				     g->path, strerror((int)-n));
		} else if (g->left > 0) {
			stream_error(s, EIO, "%.300s became shorter while it was read", g->path);
		} else {
			stream_put(s, FRAME_END_OUT, NULL, 0);
			stream_done(s);
		}
		get_free(g);
		return;
	}
	stream_yield(s);
}

static void get_on_room(struct stream *s, void *job)
{
	get_send(s, job);
}

static const struct stream_ops get_ops = {
	.room = get_on_room,
	.gone = get_free,
};

/* What is to be sent of a file of that size (-1: unknown), and the place of its first byte. */
static int get_seek(struct get *g, const struct request_file *r, int64_t size)
{
	g->left = size;
	g->most = -1;
	if (size >= 0) {
		g->left = r->offset < size ? size - r->offset : 0;
		if (r->length >= 0 && r->length < g->left)
			g->left = r->length;
	} else {
		g->most = r->length;
	}
	/* Behind the end there is nothing to go to, nor may there be such a place. */
	return r->offset > 0 && g->left != 0 && lseek(g->fd, r->offset, SEEK_SET) < 0 ? -errno : 0;
}

static json_t *get_head(const struct get *g, const struct request_file *r, const struct stat *st,
			int64_t size)
{
	json_t *head = json_pack("{s:o, s:I, s:i}", "path", stream_text(g->path), "size",
				 (json_int_t)size, "mode", (int)(st->st_mode & 07777));

	if (head && r->range)
		json_object_update_new(head,
				       json_pack("{s:I, s:I}", "offset", (json_int_t)r->offset,
						 "length", (json_int_t)g->left));
	return head;
}

static int get_prepare(struct agent *a, struct get *g, const struct request_file *r,
		       struct stat *st, struct err *err)
{
	int rc = path_absolute(a, &a->repl, r->path, g->path, err);

	if (rc < 0)
		return rc;
	g->fd = get_open(a, g->path, st, err);
	if (g->fd < 0)
		return g->fd;
	rc = get_seek(g, r, get_is_virtual(g->fd) ? -1 : st->st_size);
	return rc < 0 ? err_set(err, -rc, "cannot go to that offset of %.300s", g->path) : 0;
}

void get_begin(struct stream *s, struct request_file *r)
{
	struct get *g = calloc(1, sizeof(*g));
	struct stat st = {0};
	struct err err;

	if (!g) {
		stream_error(s, ENOMEM, "out of memory");
		request_file_free(r);
		return;
	}
	g->fd = -1;
	if (get_prepare(s->agent, g, r, &st, &err) < 0) {
		stream_fail(s, &err);
		request_file_free(r);
		get_free(g);
		return;
	}
	stream_set_job(s, &get_ops, g);
	stream_put_json(s, FRAME_OK, get_head(g, r, &st, g->left < 0 ? -1 : st.st_size));
	request_file_free(r);
	get_send(s, g);
	stream_flush(s);
}
