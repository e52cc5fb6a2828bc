/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PUT. Steps: find the target (following a symbolic link in the last place,
 * as open() would), make missing parents, write a temporary file there, set
 * its mode, rename. All by the user's rights, so the kernel decides what is
 * allowed; undoing runs with the agent's, so that it cannot be denied.
 *
 * With an upload's id the temporary file is a part (put_part.h) that outlives the
 * stream, and is renamed when it has all that was promised.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/files.h"
#include "agent/path.h"
#include "agent/put_part.h"
#include "agent/stream.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#define PUT_LINKS_MAX 40

struct put {
	struct agent *agent;
	int dirfd, fd;
	int mode;
	uint64_t size;
	size_t made;              /* length of the first parent that was made, 0 = none */
	char target[PATH_MAX];    /* what is replaced */
	char temp[PUT_PART_NAME]; /* in dirfd; empty = not there */

	/* an upload that may be resumed */
	bool resumable;
	bool ask;        /* nothing follows: how far is it? */
	uint64_t offset; /* where what follows belongs */
	uint64_t total;
};

/* Name of the last component of an absolute path. */
static const char *put_base(const char *path)
{
	return strrchr(path, '/') + 1;
}

static void put_remove_made(struct put *p)
{
	char *slash = strrchr(p->target, '/');

	/* From the deepest up to the first one made; stops where somebody has put something. */
	while (p->made && slash && (size_t)(slash - p->target) >= p->made) {
		*slash = '\0';
		if (rmdir(p->target) < 0)
			return;
		slash = strrchr(p->target, '/');
	}
}

/* Undoes what is there and frees. */
static void put_abort(void *job)
{
	struct put *p = job;

	close_fd(&p->fd);
	if (p->temp[0])
		unlinkat(p->dirfd, p->temp, 0);
	close_fd(&p->dirfd);
	user_fs_enter(&p->agent->user);
	put_remove_made(p);
	user_fs_leave(&p->agent->user);
	free(p);
}

/* The stream is closed: what came of an upload that may be resumed is kept. */
static void put_gone(void *job)
{
	struct put *p = job;

	if (!p->resumable || p->size == 0) {
		put_abort(p);
		return;
	}
	close_fd(&p->fd);
	close_fd(&p->dirfd);
	free(p);
}

/* Replaces p->target by what the link there points to. */
static int put_follow(struct put *p)
{
	char to[PATH_MAX];
	ssize_t n = readlink(p->target, to, sizeof(to) - 1);
	size_t dir;

	if (n < 0)
		return -errno;
	to[n] = '\0';
	dir = to[0] == '/' ? 0 : (size_t)(put_base(p->target) - p->target);
	if (n == 0 || dir + (size_t)n >= PATH_MAX)
		return n == 0 ? -ENOENT : -ENAMETOOLONG;
	memcpy(p->target + dir, to, (size_t)n + 1);
	return 0;
}

static int put_find_target(struct put *p)
{
	for (int i = 0; i < PUT_LINKS_MAX; i++) {
		const char *base = put_base(p->target);
		struct stat st;
		int rc;

		if (*base == '\0' || strcmp(base, ".") == 0 || strcmp(base, "..") == 0)
			return -EISDIR;
		if (lstat(p->target, &st) < 0)
			return errno == ENOENT ? 0 : -errno;
		if (S_ISDIR(st.st_mode))
			return -EISDIR;
		if (S_ISREG(st.st_mode)) {
			/* Like a write: the mode stays, but not its set-id bits. */
			if (p->mode < 0)
				p->mode = st.st_mode & 0777;
			return 0;
		}
		if (!S_ISLNK(st.st_mode))
			return -ENXIO;
		rc = put_follow(p);
		if (rc < 0)
			return rc;
	}
	return -ELOOP;
}

/* Makes the missing directories above the target and opens the last one. */
static int put_open_parent(struct put *p)
{
	size_t end = (size_t)(put_base(p->target) - p->target);
	char dir[PATH_MAX];

	memcpy(dir, p->target, end);
	dir[end] = '\0';
	p->dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (p->dirfd >= 0 || errno != ENOENT)
		return p->dirfd >= 0 ? 0 : -errno;
	for (size_t i = 1; i < end; i++) {
		if (dir[i] != '/' || dir[i - 1] == '/')
			continue;
		dir[i] = '\0';
		if (mkdir(dir, 0755) == 0) {
			if (!p->made)
				p->made = i;
		} else if (errno != EEXIST) {
			return -errno;
		}
		dir[i] = '/';
	}
	p->dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return p->dirfd >= 0 ? 0 : -errno;
}

static int put_open_temp(struct put *p)
{
	uint64_t r;

	if (getrandom(&r, sizeof(r), 0) != (ssize_t)sizeof(r))
		return -EIO;
	snprintf(p->temp, sizeof(p->temp), ".podflare-put-%016" PRIx64, r);
	p->fd = openat(p->dirfd, p->temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (p->fd >= 0)
		return 0;
	p->temp[0] = '\0';
	return -errno;
}

/* Opens the part, of which there must be as much as comes before the offset. */
static int put_open_part(struct put *p)
{
	char name[PUT_PART_NAME];
	int fd;

	put_part_sweep(p->dirfd);
	memcpy(name, p->temp, sizeof(name));
	p->temp[0] = '\0';
	fd = put_part_open(p->dirfd, name, !p->ask && p->offset == 0, &p->size);
	if (fd == -ENOENT)
		return p->ask ? 0 : -ERANGE;
	if (fd < 0)
		return fd;
	p->fd = fd;
	if (!p->ask && p->offset == 0 && p->size && ftruncate(p->fd, 0) == 0)
		p->size = 0; /* it begins anew */
	if ((!p->ask && p->size != p->offset) || p->size > p->total)
		return -ERANGE;
	memcpy(p->temp, name, sizeof(name));
	return 0;
}

static int put_open(struct put *p, struct err *err)
{
	int rc;

	user_fs_enter(&p->agent->user);
	rc = put_find_target(p);
	if (rc == 0)
		rc = put_open_parent(p);
	if (rc == 0)
		rc = p->resumable ? put_open_part(p) : put_open_temp(p);
	user_fs_leave(&p->agent->user);
	if (rc == -EISDIR)
		return err_text(err, EISDIR, "%.300s is a directory", p->target);
	if (rc == -ERANGE)
		return err_text(err, ERANGE,
				"this upload has %" PRIu64 " bytes of %" PRIu64 " so far", p->size,
				p->total);
	if (rc == -EALREADY)
		return err_text(err, EALREADY, "another stream writes this upload");
	if (rc == -ENXIO)
		return err_text(err, ENXIO, "%.300s is not a regular file", p->target);
	return rc < 0 ? err_set(err, -rc, "cannot write %.300s", p->target) : 0;
}

static int put_commit(struct put *p)
{
	struct stat st;
	int rc = 0;

	user_fs_enter(&p->agent->user);
	/* A directory may have appeared meanwhile: say so in the same words as at the start. */
	if (fstatat(p->dirfd, put_base(p->target), &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	    S_ISDIR(st.st_mode))
		rc = -EISDIR;
	else if (fchmod(p->fd, p->mode < 0 ? 0644 : (mode_t)p->mode) < 0 ||
		 renameat(p->dirfd, p->temp, p->dirfd, put_base(p->target)) < 0)
		rc = -errno;
	user_fs_leave(&p->agent->user);
	return rc;
}

static void put_on_data(struct stream *s, void *job, const uint8_t *data, size_t len)
{
	struct put *p = job;
	int rc;

	if (p->resumable && (p->ask || len > p->total - p->size)) {
		stream_error(s, EINVAL, "the upload is longer than was said");
		put_abort(p);
		return;
	}
	rc = io_write_full(p->fd, data, len);
	p->size += len;
	if (rc == 0)
		return;
	stream_error(s, -rc, "cannot write %.300s: %s", p->target, strerror(-rc));
	put_abort(p);
}

/* The answer: where it is, and how much of it. */
static json_t *put_answer(const struct put *p, bool complete)
{
	json_t *o = json_pack("{s:o, s:I}", "path", stream_text(p->target), "size",
			      (json_int_t)p->size);

	if (o && p->resumable)
		json_object_set_new(o, "complete", json_boolean(complete));
	return o;
}

static void put_on_end(struct stream *s, void *job)
{
	struct put *p = job;
	int rc;

	if (p->resumable && p->size < p->total) {
		json_t *answer = put_answer(p, false);

		put_gone(p); /* before the host knows: it may look at once */
		stream_final(s, FRAME_OK, answer);
		return;
	}
	rc = put_commit(p);
	if (rc < 0) {
		stream_error(s, -rc, "cannot write %.300s: %s", p->target, strerror(-rc));
		put_abort(p);
		return;
	}
	stream_final(s, FRAME_OK, put_answer(p, true));
	close_fd(&p->fd);
	close_fd(&p->dirfd);
	free(p);
}

static const struct stream_ops put_ops = {
	.data = put_on_data,
	.end = put_on_end,
	.gone = put_gone,
	/* Who would resume it talks to the original. */
	.detach = put_abort,
};

void put_begin(struct stream *s, struct request_file *r)
{
	struct put *p = calloc(1, sizeof(*p));
	struct err err;
	int rc;

	if (!p) {
		stream_error(s, ENOMEM, "out of memory");
		request_file_free(r);
		return;
	}
	p->agent = s->agent;
	p->fd = p->dirfd = -1;
	p->mode = r->mode;
	p->resumable = r->upload;
	p->ask = !r->range;
	p->offset = (uint64_t)r->offset;
	p->total = (uint64_t)r->size;
	if (r->upload)
		put_part_name(p->temp, r->upload, r->size);
	rc = path_absolute(s->agent, &s->agent->repl, r->path, p->target, &err);
	request_file_free(r);
	if (rc == 0)
		rc = put_open(p, &err);
	if (rc < 0) {
		stream_fail(s, &err);
		put_abort(p);
		return;
	}
	stream_set_job(s, &put_ops, p);
}
