/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replies of denial, and closing after them. Invariant: a linger in the list
 * has its timer armed, so that none stays whatever the guest does.
 */
#define _GNU_SOURCE
#include "egress/linger.h"

#include "egress/socks.h"
#include "lib/io.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define LINGER_S     2u
#define LINGER_BYTES (256u << 10)

struct linger_conn {
	struct list link; /* first: loop_defer_free() */
	struct lingers *l;
	struct loop_src src;
	struct loop_timer timer;
	uint64_t stream;
	int fd;
	size_t dropped;
};

void lingers_init(struct lingers *l, struct loop *loop, struct egress *e)
{
	*l = (struct lingers){.loop = loop, .e = e};
	list_init(&l->list);
}

static void linger_end(struct linger_conn *c)
{
	struct lingers *l = c->l;

	loop_del(&c->src);
	loop_timer_cancel(&c->timer);
	list_del(&c->link);
	close(c->fd);
	egress_stream_end(l->e, c->stream);
	loop_defer_free(l->loop, c);
}

void lingers_free(struct lingers *l)
{
	list_for_each_safe (c, &l->list, struct linger_conn, link)
		linger_end(c);
}

static void linger_on_timer(struct loop_timer *t)
{
	linger_end(t->arg);
}

static void linger_on_event(struct loop_src *src, uint32_t events)
{
	struct linger_conn *c = src->arg;
	char drop[4096];
	ssize_t n;

	(void)events;
	n = io_read_some(c->fd, drop, sizeof(drop));
	if (n == -EAGAIN)
		return;
	if (n > 0)
		c->dropped += (size_t)n;
	if (n <= 0 || c->dropped > LINGER_BYTES)
		linger_end(c);
}

void linger_close(struct lingers *l, int fd, uint64_t stream, const void *last, size_t len)
{
	struct linger_conn *c = calloc(1, sizeof(*c));
	/* Few bytes, and the first or the first behind a short reply: they have room. */
	bool sent = !len || io_send_some(fd, last, len) == (ssize_t)len;

	shutdown(fd, SHUT_WR);
	if (c && sent) {
		*c = (struct linger_conn){.l = l, .stream = stream, .fd = fd};
		c->src = (struct loop_src){.fd = -1, .fn = linger_on_event, .arg = c};
		c->timer = (struct loop_timer){.fn = linger_on_timer, .arg = c};
		if (loop_add(l->loop, &c->src, fd, EPOLLIN) == 0) {
			list_add_tail(&l->list, &c->link);
			loop_timer_set(l->loop, &c->timer, LINGER_S * 1000000000ull);
			return;
		}
	}
	free(c);
	close(fd);
	egress_stream_end(l->e, stream);
}

/* Clients mostly show the reason phrase alone: it says what it is. */
void linger_deny_http(struct lingers *l, int fd, const struct egress_question *q,
		      const struct egress_verdict *v, unsigned int status)
{
	json_t *denial = egress_denial_json(q, v);
	_cleanup_free char *body = json_text_with(denial, JSON_ENSURE_ASCII);
	_cleanup_free char *reply = NULL;
	const char *phrase = status == 403   ? "Forbidden"
			     : status == 502 ? "Bad Gateway"
					     : "Not Implemented";
	int n = asprintf(&reply,
			 "HTTP/1.1 %u %s (egress denied: %s)\r\n"
			 "Content-Type: application/json\r\n"
			 "Content-Length: %zu\r\n"
			 "Connection: close\r\n\r\n%s%s",
			 status, phrase, egress_reason_text(v->reason), body ? strlen(body) + 1 : 0,
			 body ? body : "", body ? "\n" : "");

	json_decref(denial);
	if (n < 0)
		reply = NULL;
	linger_close(l, fd, q->stream, reply, reply ? (size_t)n : 0);
}

void linger_deny(struct lingers *l, int fd, const struct egress_question *q,
		 const struct egress_verdict *v)
{
	uint8_t reply[SOCKS_REPLY_BYTES];

	if (q->proto != EGRESS_SOCKS) {
		linger_deny_http(l, fd, q, v, egress_denial_status(v->reason));
		return;
	}
	socks_reply(v->reason == EGRESS_R_UPSTREAM ? SOCKS_REFUSED : SOCKS_NOT_ALLOWED, reply);
	linger_close(l, fd, q->stream, reply, sizeof(reply));
}
