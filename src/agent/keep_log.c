/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Logs of kept commands. The offset of a byte is its place in the file. Invariant:
 * end - start <= KEEP_LOG_MAX, and what is before start is a hole.
 */
#define _GNU_SOURCE
#include "agent/keep_log.h"
#include "agent/agent.h"
#include "agent/log_file.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static int keep_log_create(struct keep_log *l)
{
	int fd;

	if (l->fd >= 0)
		return 0;
	if (l->deleted)
		return -ENOENT;
	fd = log_file_create(l->agent, l->path);
	if (fd < 0)
		return fd;
	l->fd = fd;
	return 0;
}

void keep_log_begin(struct keep_log *l, struct agent *a, const char *id, const char *name)
{
	*l = (struct keep_log){.agent = a, .fd = -1};
	snprintf(l->path, sizeof(l->path), "%s/cmd-%s.%s", a->log_dir, id, name);
	/* On a full disk it is tried again with the first output. */
	if (keep_log_create(l) < 0)
		return;
}

/* Makes room for n more bytes. */
static int keep_log_cut(struct keep_log *l, size_t n)
{
	uint64_t half = KEEP_LOG_MAX / 2;

	if (l->end + n - l->start <= KEEP_LOG_MAX)
		return 0;
	if (fallocate(l->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)l->start,
		      (off_t)half) < 0)
		return -errno;
	l->start += half;
	return 0;
}

void keep_log_append(struct keep_log *l, const uint8_t *p, size_t n)
{
	int rc = keep_log_create(l);

	if (rc == 0)
		rc = keep_log_cut(l, n);
	while (rc == 0 && n) {
		ssize_t done = pwrite(l->fd, p, n, (off_t)l->end);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			break;
		l->end += (uint64_t)done;
		p += done;
		n -= (size_t)done;
	}
	l->dropped += n;
}

size_t keep_log_read(const struct keep_log *l, uint64_t at, uint8_t *p, size_t max)
{
	ssize_t n;

	if (max > l->end - at)
		max = (size_t)(l->end - at);
	n = l->fd >= 0 ? pread(l->fd, p, max, (off_t)at) : 0;
	return n > 0 ? (size_t)n : 0;
}

void keep_log_delete(struct keep_log *l)
{
	if (l->agent && !l->deleted)
		log_file_unlink(l->agent, l->path);
	l->deleted = true;
}

void keep_log_end(struct keep_log *l)
{
	if (!l->agent)
		return;
	close_fd(&l->fd);
	l->agent = NULL;
}
