/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One chunk in flight: read up to 4 KiB, write it when poll() says that the
 * destination takes it, wait for that when it does not. The destination is
 * not made non-blocking, since it is shared with whoever gave it to us.
 */
#include "cli/relay.h"

#include "lib/io.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

static void relay_finish(struct relay *r)
{
	relay_stop(r);
	if (r->done)
		r->done(r);
}

static bool relay_writable(const struct relay *r)
{
	struct pollfd p = {.fd = r->dst, .events = POLLOUT};

	return poll(&p, 1, 0) != 0;
}

/* A disk that is full may have room later; one that fails may not, but that costs nothing. */
static bool relay_may_mend(ssize_t error)
{
	return error == -ENOSPC || error == -EDQUOT || error == -EIO;
}

static void relay_drop(struct relay *r)
{
	r->dropped = true;
	r->skip = r->data[r->start + r->len - 1] != '\n';
	r->len = 0;
}

/* A chunk has come. Behind what was dropped it begins with its first whole line. */
static void relay_take(struct relay *r, size_t n)
{
	const char *end;

	r->start = 1;
	r->len = n;
	if (r->skip) {
		end = memchr(r->data + r->start, '\n', n);
		if (!end) {
			r->len = 0;
			return;
		}
		r->skip = false;
		r->start = (size_t)(end - r->data) + 1;
		r->len = n - r->start + 1;
	}
	if (r->dropped && r->open) {
		r->data[--r->start] = '\n';
		r->len++;
	}
}

/* Writes the chunk as far as that goes without blocking; afterwards waits for one side. */
static void relay_push(struct relay *r)
{
	while (r->len && !r->discard && relay_writable(r)) {
		ssize_t n = io_write_some(r->dst, r->data + r->start, r->len);

		if (n == -EAGAIN)
			break;
		if (relay_may_mend(n)) {
			relay_drop(r);
			break;
		}
		if (n < 0) {
			r->discard = true;
			break;
		}
		r->open = r->data[r->start + (size_t)n - 1] != '\n';
		r->dropped = false;
		r->start += (size_t)n;
		r->len -= (size_t)n;
	}
	/* A regular file cannot be waited for (EPERM), and never has to be. */
	if (r->len && !r->discard && !r->out.loop &&
	    loop_add(r->loop, &r->out, r->dst, EPOLLOUT) < 0)
		r->discard = true;
	if (r->discard)
		r->len = 0;
	if (r->len) {
		loop_del(&r->in);
		return;
	}
	loop_del(&r->out);
	if (!r->in.loop && loop_add(r->loop, &r->in, r->src, EPOLLIN) < 0)
		relay_finish(r);
}

static void relay_on_in(struct loop_src *src, uint32_t events)
{
	struct relay *r = src->arg;
	ssize_t n = io_read_some(r->src, r->data + 1, RELAY_CHUNK);

	(void)events;
	if (n == -EAGAIN)
		return;
	if (n <= 0) {
		relay_finish(r);
		return;
	}
	relay_take(r, (size_t)n);
	relay_push(r);
}

static void relay_on_out(struct loop_src *src, uint32_t events)
{
	struct relay *r = src->arg;

	/* Nobody reads any more: keep draining, so that the other side does not stall. */
	if (events & (EPOLLERR | EPOLLHUP))
		r->discard = true;
	relay_push(r);
}

int relay_start(struct relay *r, struct loop *l, int src, int dst)
{
	r->loop = l;
	r->src = src;
	r->dst = dst;
	r->in = (struct loop_src){.fd = -1, .fn = relay_on_in, .arg = r};
	r->out = (struct loop_src){.fd = -1, .fn = relay_on_out, .arg = r};
	return loop_add(l, &r->in, src, EPOLLIN);
}

void relay_stop(struct relay *r)
{
	loop_del(&r->in);
	loop_del(&r->out);
}
