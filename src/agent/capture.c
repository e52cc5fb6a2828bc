/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Captures. Invariants: until the log has stopped, it is `total` bytes long,
 * and either all in mem or all in the file; afterwards mem is a window on the
 * last bytes of the output, and nothing is written to the file.
 */
#define _GNU_SOURCE
#include "agent/capture.h"
#include "agent/agent.h"
#include "agent/log_file.h"
#include "lib/io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct capture_log {
	struct list link;
	uint64_t size;
	char path[CAPTURE_PATH_MAX];
};

void capture_begin(struct capture *c, struct agent *a, unsigned number, const char *name,
		   uint64_t head, uint64_t tail)
{
	capture_end(c, false);
	*c = (struct capture){.agent = a, .head_left = head, .tail_max = tail, .fd = -1};
	buf_init(&c->mem, CAPTURE_MEMORY);
	snprintf(c->path, sizeof(c->path), "%s/%u.%s", a->log_dir, number, name);
}

/* The log moves from memory to its file. */
static int capture_spill(struct capture *c)
{
	int rc;

	/* The number is new, so no log has this name. */
	rc = log_file_create(c->agent, c->path);
	if (rc < 0)
		return rc;
	c->fd = rc;
	rc = io_write_full(c->fd, buf_data(&c->mem), buf_len(&c->mem));
	if (rc == 0)
		buf_free(&c->mem);
	return rc;
}

/* The last bytes stay in mem, as many as fit. */
static void capture_slide(struct capture *c, const uint8_t *p, size_t n)
{
	size_t have = buf_len(&c->mem);

	if (n > CAPTURE_MEMORY) {
		p += n - CAPTURE_MEMORY;
		n = CAPTURE_MEMORY;
	}
	if (have + n > CAPTURE_MEMORY)
		buf_consume(&c->mem, have + n - CAPTURE_MEMORY);
	/* Without memory there is no tail. */
	if (buf_append(&c->mem, p, n) < 0)
		buf_free(&c->mem);
}

/* The log is as long as it will be. What it ends with is the start of the window. */
static void capture_stop(struct capture *c)
{
	struct stat st;
	off_t at;
	uint8_t *p;

	c->stopped = true;
	if (c->fd < 0 || buf_len(&c->mem) || fstat(c->fd, &st) < 0 || st.st_size == 0)
		return;
	/* A write may have failed half-way: only what was whole before belongs to it. */
	if ((uint64_t)st.st_size > c->total)
		st.st_size = (off_t)c->total;
	at = st.st_size > (off_t)CAPTURE_MEMORY ? st.st_size - (off_t)CAPTURE_MEMORY : 0;
	p = buf_reserve(&c->mem, (size_t)(st.st_size - at));
	if (p && io_pread_full(c->fd, p, (size_t)(st.st_size - at), at) == 0)
		buf_commit(&c->mem, (size_t)(st.st_size - at));
}

static void capture_log_bytes(struct capture *c, const uint8_t *p, size_t n)
{
	int rc = 0;

	if (!c->stopped) {
		if (c->fd < 0 && buf_len(&c->mem) + n <= CAPTURE_MEMORY)
			rc = buf_append(&c->mem, p, n);
		else if (c->total + n > CAPTURE_LOG_MAX)
			rc = -EFBIG;
		else if (c->fd < 0)
			rc = capture_spill(c);
		if (rc == 0 && c->fd >= 0)
			rc = io_write_full(c->fd, p, n);
		if (rc < 0)
			capture_stop(c);
	}
	if (c->stopped)
		capture_slide(c, p, n);
}

void capture_add(struct capture *c, const uint8_t *p, size_t n, bool passed)
{
	capture_log_bytes(c, p, n);
	c->total += n;
	if (!passed) {
		c->head_left = 0;
		return;
	}
	c->sent += n;
	c->head_left -= n;
}

void capture_end_head(struct capture *c)
{
	c->head_left = 0;
}

void capture_finish(struct capture *c)
{
	uint64_t rest = c->total - c->sent;
	uint64_t tail = rest < c->tail_max ? rest : c->tail_max;

	if (c->stopped && tail > buf_len(&c->mem))
		tail = buf_len(&c->mem);
	/* It keeps its bytes in memory as well: they are the tail. */
	if (tail < rest && c->fd < 0 && !c->stopped) {
		struct buf mem = c->mem;

		buf_init(&c->mem, CAPTURE_MEMORY);
		if (buf_append(&c->mem, buf_data(&mem), buf_len(&mem)) < 0 || capture_spill(c) < 0)
			buf_free(&c->mem);
		buf_free(&c->mem);
		c->mem = mem;
	}
	c->head_left = 0;
	c->tail_at = c->total - tail;
}

size_t capture_tail(struct capture *c, uint8_t *p, size_t max)
{
	uint64_t left = c->total - c->tail_at;
	size_t have = buf_len(&c->mem);
	ssize_t n;

	if (left < max)
		max = (size_t)left;
	if (max == 0)
		return 0;
	if (have || c->fd < 0) {
		/* mem ends with the last byte of the output, in both of its meanings. */
		if (left > have)
			return 0;
		memcpy(p, buf_data(&c->mem) + (have - (size_t)left), max);
		n = (ssize_t)max;
	} else {
		n = pread(c->fd, p, max, (off_t)c->tail_at);
		if (n <= 0)
			return 0; /* the user has made it shorter */
	}
	c->tail_at += (uint64_t)n;
	c->sent += (uint64_t)n;
	return (size_t)n;
}

bool capture_log_whole(const struct capture *c)
{
	struct stat st;

	/* The user may have made it shorter. */
	return c->fd >= 0 && !c->stopped && fstat(c->fd, &st) == 0 &&
	       (uint64_t)st.st_size >= c->total;
}

const char *capture_log(const struct capture *c)
{
	return c->agent && c->fd >= 0 ? c->path : NULL;
}

static void capture_forget_oldest(struct agent *a)
{
	struct capture_log *log = list_entry(a->logs.list.next, struct capture_log, link);

	log_file_unlink(a, log->path);
	list_del(&log->link);
	a->logs.count--;
	a->logs.bytes -= log->size;
	free(log);
}

/* The log stays; older ones may have to go. Both of one call are among the last two. */
static void capture_keep(struct capture *c)
{
	struct agent *a = c->agent;
	struct capture_log *log = malloc(sizeof(*log));
	struct stat st;

	if (!log)
		return; /* then nobody deletes it but the user */
	log->size = fstat(c->fd, &st) == 0 ? (uint64_t)st.st_size : 0;
	snprintf(log->path, sizeof(log->path), "%s", c->path);
	list_add_tail(&a->logs.list, &log->link);
	a->logs.count++;
	a->logs.bytes += log->size;
	while (a->logs.count > CAPTURE_KEPT ||
	       (a->logs.bytes > CAPTURE_LOG_MAX && a->logs.count > 2))
		capture_forget_oldest(a);
}

void capture_end(struct capture *c, bool keep)
{
	if (!c->agent)
		return;
	if (c->fd >= 0 && keep)
		capture_keep(c);
	else if (c->fd >= 0)
		log_file_unlink(c->agent, c->path);
	close_fd(&c->fd);
	buf_free(&c->mem);
	c->agent = NULL;
}
