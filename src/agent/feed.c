/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Feeds. Invariants: buf holds at most FEED_WINDOW bytes, and together with
 * `taken` not more than that; the pipe is in the loop exactly while it is full
 * and something waits for it.
 */
#define _GNU_SOURCE
#include "agent/feed.h"
#include "agent/agent.h"
#include "agent/stream.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define FEED_EOT '\4'

static void feed_flush(struct feed *f);

static void feed_on_pipe(struct loop_src *src, uint32_t events)
{
	struct feed *f = src->arg;

	(void)events;
	feed_flush(f);
	if (f->stream)
		stream_flush(f->stream);
}

void feed_init(struct feed *f, struct agent *a, struct stream *s)
{
	*f = (struct feed){.agent = a, .stream = s, .fd = -1};
	f->src = (struct loop_src){.fd = -1, .fn = feed_on_pipe, .arg = f};
	buf_init(&f->buf, FEED_WINDOW);
}

static void feed_drop_pipe(struct feed *f)
{
	loop_del(&f->src);
	close_fd(&f->fd);
}

/* Tells the host, if there is room; else it is told when there is. */
static void feed_ack(struct feed *f)
{
	uint32_t n = f->taken;
	uint8_t p[4] = {(uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24)};

	if (n == 0 || !f->stream || stream_room(f->stream) == 0)
		return;
	f->taken = 0;
	stream_put(f->stream, FRAME_STDIN_ACK, p, sizeof(p));
}

static void feed_take(struct feed *f, size_t n)
{
	buf_consume(&f->buf, n);
	if (f->stream)
		f->taken += (uint32_t)n;
}

/* Waits until the pipe takes more: false when that is not possible. */
static bool feed_wait(struct feed *f)
{
	return f->src.loop || loop_add(&f->agent->loop, &f->src, f->fd, EPOLLOUT) == 0;
}

/* All has been taken, and that was the end. */
static void feed_finish(struct feed *f)
{
	static const char eot = FEED_EOT;

	/* A terminal has no end; this is what the key of that name sends. */
	if (f->terminal && f->fd >= 0 && io_write_some(f->fd, &eot, 1) == -EAGAIN && feed_wait(f))
		return;
	feed_drop_pipe(f);
}

/* Writes what the pipe takes. */
static void feed_flush(struct feed *f)
{
	while (f->connected && buf_len(&f->buf)) {
		ssize_t n = f->fd < 0 ? -EPIPE
				      : io_write_some(f->fd, buf_data(&f->buf), buf_len(&f->buf));

		if (n == -EAGAIN) {
			/* Without a place in the loop it would wait for ever. */
			if (feed_wait(f))
				break;
			n = -EPIPE;
		}
		if (n < 0) {
			feed_drop_pipe(f);
			n = (ssize_t)buf_len(&f->buf);
		}
		feed_take(f, (size_t)n);
	}
	if (buf_len(&f->buf) == 0) {
		buf_free(&f->buf);
		if (f->ended && f->connected)
			feed_finish(f);
		else
			loop_del(&f->src);
	}
	feed_ack(f);
}

int feed_connect(struct feed *f, int *read_end)
{
	const struct user *u = &f->agent->user;
	int fds[2], rc;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	f->fd = fds[1];
	*read_end = fds[0];
	rc = io_set_nonblock(f->fd, 1);
	/* The user may open /dev/stdin, which is a check on the inode. */
	if (rc == 0 && u->change && fchown(fds[0], u->uid, u->gid) < 0)
		rc = -errno;
	if (rc < 0) {
		close_fd(read_end);
		close_fd(&f->fd);
		return rc;
	}
	f->connected = true;
	feed_flush(f);
	if (f->stream)
		stream_flush(f->stream);
	return 0;
}

int feed_connect_terminal(struct feed *f, int master)
{
	f->fd = fcntl(master, F_DUPFD_CLOEXEC, 3);
	if (f->fd < 0)
		return -errno;
	f->terminal = f->connected = true;
	return 0;
}

int feed_put(struct feed *f, const uint8_t *p, size_t len)
{
	if (!f->agent || f->ended || len > FEED_WINDOW - f->taken - buf_len(&f->buf))
		return -EPROTO;
	if (buf_append(&f->buf, p, len) < 0)
		return -ENOMEM;
	feed_flush(f);
	return 0;
}

int feed_end(struct feed *f)
{
	if (!f->agent || f->ended)
		return -EPROTO;
	f->ended = true;
	feed_flush(f);
	return 0;
}

void feed_set_stream(struct feed *f, struct stream *s)
{
	f->stream = s;
	f->taken = 0;
}

bool feed_waits(const struct feed *f)
{
	return buf_len(&f->buf) > 0;
}

void feed_hang_up(struct feed *f)
{
	if (!f->agent)
		return;
	feed_drop_pipe(f);
	f->connected = true;
	feed_flush(f);
	if (f->stream)
		stream_flush(f->stream);
}

void feed_on_room(struct feed *f)
{
	if (f->agent)
		feed_ack(f);
}

void feed_close(struct feed *f)
{
	if (!f->agent)
		return;
	feed_drop_pipe(f);
	buf_free(&f->buf);
	f->agent = NULL;
	f->stream = NULL;
}
