/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bounded log file with a ring of its tail. State is in the caller's struct.
 */
#include "cli/conlog.h"

#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* The present file becomes FILE.1, a new one is opened. */
static int conlog_rotate(struct conlog *c)
{
	char old[PATH_MAX];

	close_fd(&c->fd);
	snprintf(old, sizeof(old), "%s.1", c->path);
	if (rename(c->path, old) < 0 && errno != ENOENT)
		return -errno;
	c->fd = open(c->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	c->size = 0;
	return c->fd < 0 ? -errno : 0;
}

int conlog_open(struct conlog *c, const char *path, struct err *err)
{
	int rc;

	*c = (struct conlog){.fd = -1};
	if (!path)
		return 0;
	if (snprintf(c->path, sizeof(c->path), "%s", path) >= (int)sizeof(c->path))
		return err_text(err, ENAMETOOLONG, "the path of the console log is too long");
	rc = conlog_rotate(c);
	return rc < 0 ? err_set(err, -rc, "cannot write the console log %s", path) : 0;
}

void conlog_write(struct conlog *c, const char *data, size_t len)
{
	for (size_t i = 0; i < len; i++)
		c->tail[c->total++ % CONLOG_TAIL] = data[i];
	if (c->fd < 0)
		return;
	if (c->size + len > CONLOG_MAX && conlog_rotate(c) < 0)
		return;
	if (io_write_full(c->fd, data, len) < 0)
		close_fd(&c->fd);
	c->size += len;
}

void conlog_last_lines(const struct conlog *c, unsigned int max, char *text, size_t size)
{
	size_t first = c->total > CONLOG_TAIL ? c->total - CONLOG_TAIL : 0;
	size_t at = c->total, n = 0;

	for (unsigned int lines = 0; at > first && c->total - at < size - 1; at--) {
		if (c->tail[(at - 1) % CONLOG_TAIL] == '\n' && at != c->total && ++lines == max)
			break;
	}
	for (; at < c->total && n < size - 1; at++) {
		char ch = c->tail[at % CONLOG_TAIL];

		/* Escape sequences of a firmware or kernel do not belong on a terminal. */
		if (ch == '\n' || ch == '\t' || (ch >= ' ' && ch != 0x7f))
			text[n++] = ch;
	}
	text[n] = '\0';
}

void conlog_close(struct conlog *c)
{
	close_fd(&c->fd);
}
