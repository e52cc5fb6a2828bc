/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sniffing, SOCKS5 and CONNECT. Bytes are peeked at and consumed when a message
 * is whole, so that what comes behind it stays in the socket for whoever is
 * next. Events are edges: a message that is not whole must not wake us before
 * there is more of it. Invariant: a conn in the list owns its descriptor; when
 * it is handed on, the conn ends.
 */
#define _GNU_SOURCE
#include "egress/conn.h"

#include "egress/connect_head.h"
#include "egress/plane.h"
#include "egress/socks.h"
#include "lib/io.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define CONN_WATCH (EPOLLIN | EPOLLRDHUP | EPOLLET)

enum conn_state { CONN_SNIFF, CONN_GREETING, CONN_REQUEST, CONN_HEAD, CONN_ASKING };

struct conn {
	struct list link; /* first: loop_defer_free() */
	struct conns *cs;
	struct loop_src src;
	struct loop_timer timer;
	uint64_t stream;
	char *exec;
	int fd;
	enum conn_state state;
	bool last; /* the guest sends no more */
	char host[CONNECT_TARGET_MAX];
	struct egress_question q; /* host points to the above */
	struct egress_asking *asking;
};

/* Ends the conn; the descriptor, which somebody gets, or -1 when it was closed. */
static int conn_release(struct conn *c)
{
	int fd = c->fd;

	egress_give_up(c->asking);
	loop_del(&c->src);
	loop_timer_cancel(&c->timer);
	list_del(&c->link);
	free(c->exec);
	c->exec = NULL;
	loop_defer_free(c->cs->loop, c);
	return fd;
}

static void conn_close(struct conn *c)
{
	struct egress *e = c->cs->e;
	uint64_t stream = c->stream;

	close(conn_release(c));
	egress_stream_end(e, stream);
}

/* --- denials -------------------------------------------------------------------------------- */

static void conn_deny(struct conn *c, enum egress_reason why, const char *detail)
{
	struct lingers *l = &c->cs->lingers;
	struct egress_verdict v;
	struct egress_question q = c->q;
	char host[CONNECT_TARGET_MAX];

	memcpy(host, c->host, sizeof(host));
	q.host = host;
	egress_denied(c->cs->e, &q, why, detail, NULL, &v);
	linger_deny(l, conn_release(c), &q, &v);
}

/* A reply of SOCKS that is no denial by policy. */
static void conn_refuse_socks(struct conn *c, enum socks_reply code, const char *detail)
{
	uint8_t reply[SOCKS_REPLY_BYTES];
	struct lingers *l = &c->cs->lingers;
	uint64_t stream = c->stream;
	struct egress_verdict v;

	egress_denied(c->cs->e, &c->q, EGRESS_R_BAD_REQUEST, detail, NULL, &v);
	socks_reply(code, reply);
	linger_close(l, conn_release(c), stream, reply, sizeof(reply));
}

/* --- verdicts ------------------------------------------------------------------------------- */

static void conn_intercept(struct conn *c, const struct egress_verdict *v)
{
	struct conns *cs = c->cs;
	uint64_t stream = c->stream;
	uint16_t port = c->q.port;
	size_t len;
	const void *ok = tunnel_success(c->q.proto, &len);
	int fd = conn_release(c);

	/* The requests within are asked for one by one. */
	egress_done(v->grant, EGRESS_R_NONE);
	if (io_send_some(fd, ok, len) < (ssize_t)len) {
		close(fd);
		egress_stream_end(cs->e, stream);
		return;
	}
	intercept_take(egress_plane(cs->e), fd, stream, v->host, port);
}

static void conn_on_verdict(void *arg, const struct egress_verdict *v)
{
	struct conn *c = arg;
	struct conns *cs = c->cs;
	struct egress_question q = c->q;
	char host[CONNECT_TARGET_MAX];

	c->asking = NULL;
	memcpy(host, c->host, sizeof(host));
	q.host = host;
	if (!v->allow)
		linger_deny(&cs->lingers, conn_release(c), &q, v);
	else if (v->intercept)
		conn_intercept(c, v);
	else
		tunnel_start(&cs->tunnels, conn_release(c), &q, v);
}

/* c may be gone afterwards. */
static void conn_ask(struct conn *c)
{
	struct egress_asking *a;

	loop_timer_cancel(&c->timer);
	c->state = CONN_ASKING;
	/* Now only the end of the guest matters. */
	if (loop_mod(&c->src, 0) < 0) {
		conn_close(c);
		return;
	}
	a = egress_ask(c->cs->e, &c->q, conn_on_verdict, c);
	if (a) /* else c has had its answer, and is gone */
		c->asking = a;
}

/* --- messages ------------------------------------------------------------------------------- */

/* Drops what was peeked at. */
static bool conn_consume(struct conn *c, size_t len)
{
	char drop[CONNECT_HEAD_MAX];

	return io_read_some(c->fd, drop, len) == (ssize_t)len;
}

static void conn_to_plane(struct conn *c)
{
	struct egress *e = c->cs->e;
	uint64_t stream = c->stream;
	char *exec = take_ptr(c->exec);

	http_plane_take(egress_plane(e), conn_release(c), stream, exec, NULL);
	free(exec);
}

/*
 * Each of these looks at what has come: true when there is more to do at once, false when more
 * bytes are needed or c is gone.
 */
static bool conn_sniff(struct conn *c, const char *p, size_t len)
{
	size_t n = len < CONNECT_METHOD_LEN ? len : CONNECT_METHOD_LEN;

	if ((uint8_t)p[0] == SOCKS_VERSION) {
		c->state = CONN_GREETING;
		c->q.proto = EGRESS_SOCKS;
		return true;
	}
	if (memcmp(p, CONNECT_METHOD, n) != 0) {
		conn_to_plane(c);
		return false;
	}
	if (n < CONNECT_METHOD_LEN)
		return false;
	c->state = CONN_HEAD;
	return true;
}

static bool conn_greeting(struct conn *c, const char *p, size_t len)
{
	static const uint8_t chosen[] = {SOCKS_VERSION, SOCKS_NO_AUTH};
	static const uint8_t none[] = {SOCKS_VERSION, SOCKS_NO_METHOD};
	ssize_t n = socks_greeting((const uint8_t *)p, len);
	struct lingers *l = &c->cs->lingers;
	uint64_t stream = c->stream;
	struct egress_verdict v;

	if (n == 0)
		return false;
	if (n < 0) {
		egress_denied(c->cs->e, &c->q, EGRESS_R_BAD_REQUEST,
			      "the SOCKS client does not offer to go without authentication", NULL,
			      &v);
		linger_close(l, conn_release(c), stream, none, sizeof(none));
		return false;
	}
	if (!conn_consume(c, (size_t)n) ||
	    io_send_some(c->fd, chosen, sizeof(chosen)) < (ssize_t)sizeof(chosen)) {
		conn_close(c);
		return false;
	}
	c->state = CONN_REQUEST;
	return true;
}

static void conn_request_failed(struct conn *c, ssize_t rc)
{
	if (rc == -EOPNOTSUPP)
		conn_refuse_socks(c, SOCKS_BAD_COMMAND, "SOCKS: only CONNECT is served");
	else if (rc == -EAFNOSUPPORT)
		conn_refuse_socks(c, SOCKS_BAD_ATYP, "SOCKS: an unknown type of address");
	else
		conn_refuse_socks(c, SOCKS_FAILURE, "SOCKS: the request is malformed");
}

static bool conn_request(struct conn *c, const char *p, size_t len)
{
	struct socks_request r;
	ssize_t n = socks_request((const uint8_t *)p, len, &r);

	if (n == 0)
		return false;
	if (n < 0) {
		conn_request_failed(c, n);
		return false;
	}
	if (!conn_consume(c, (size_t)n)) {
		conn_close(c);
		return false;
	}
	memcpy(c->host, r.host, r.host_len);
	c->q.host_len = r.host_len;
	c->q.port = r.port;
	/* Whatever the rules are, an address is none of their names. */
	if (r.atyp != SOCKS_DOMAIN)
		conn_deny(c, EGRESS_R_BAD_HOST, "SOCKS: an address was asked for, not a name");
	else
		conn_ask(c);
	return false;
}

static bool conn_head(struct conn *c, const char *p, size_t len)
{
	struct connect_head head;
	ssize_t n = connect_head_parse(p, len, &head);

	if (n == 0)
		return false;
	memcpy(c->host, head.host, sizeof(c->host));
	c->q.host_len = strlen(head.host);
	c->q.port = head.port;
	if (n < 0)
		conn_deny(c, head.reason, head.why);
	else if (!conn_consume(c, (size_t)n))
		conn_close(c);
	else
		conn_ask(c);
	return false;
}

static bool conn_step(struct conn *c, const char *p, size_t len)
{
	switch (c->state) {
	case CONN_SNIFF:
		return conn_sniff(c, p, len);
	case CONN_GREETING:
		return conn_greeting(c, p, len);
	case CONN_REQUEST:
		return conn_request(c, p, len);
	case CONN_HEAD:
		return conn_head(c, p, len);
	case CONN_ASKING:
		return false;
	}
	return false;
}

/* --- events --------------------------------------------------------------------------------- */

static bool conn_is(struct conns *cs, const struct conn *c)
{
	list_for_each (one, &cs->list, struct conn, link)
		if (one == c)
			return true;
	return false;
}

static void conn_run(struct conn *c)
{
	struct conns *cs = c->cs;
	char peeked[CONNECT_HEAD_MAX + 1];
	ssize_t n;

	do {
		do
			n = recv(c->fd, peeked, sizeof(peeked), MSG_PEEK | MSG_DONTWAIT);
		while (n < 0 && errno == EINTR);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			conn_close(c);
			return;
		}
	} while (conn_step(c, peeked, (size_t)n));
	/* A message that will never be whole. */
	if (conn_is(cs, c) && c->state != CONN_ASKING && c->last)
		conn_close(c);
}

static void conn_on_event(struct loop_src *src, uint32_t events)
{
	struct conn *c = src->arg;

	if (events & (EPOLLHUP | EPOLLERR)) {
		conn_close(c);
		return;
	}
	if (events & EPOLLRDHUP)
		c->last = true;
	if (c->state != CONN_ASKING)
		conn_run(c);
}

static void conn_on_timer(struct loop_timer *t)
{
	struct conn *c = t->arg;

	/* One that has sent nothing has asked for nothing. */
	if (c->state == CONN_SNIFF)
		conn_close(c);
	else
		conn_deny(c, EGRESS_R_IDLE, "the request did not come in time");
}

void conn_take(struct conns *cs, int fd, uint64_t stream, const char *exec)
{
	struct conn *c;

	if (egress_stream_begin(cs->e, stream, exec) < 0) {
		close(fd);
		return;
	}
	c = calloc(1, sizeof(*c));
	if (!c || io_set_nonblock(fd, 1) < 0)
		goto fail;
	*c = (struct conn){.cs = cs, .stream = stream, .fd = fd};
	c->exec = exec ? strdup(exec) : NULL;
	c->q = (struct egress_question){.proto = EGRESS_CONNECT, .stream = stream, .host = c->host};
	c->src = (struct loop_src){.fd = -1, .fn = conn_on_event, .arg = c};
	c->timer = (struct loop_timer){.fn = conn_on_timer, .arg = c};
	if (loop_add(cs->loop, &c->src, fd, CONN_WATCH) < 0)
		goto fail;
	list_add_tail(&cs->list, &c->link);
	loop_timer_set(cs->loop, &c->timer, egress_patience_s(cs->e) * 1000000000ull);
	return;
fail:
	if (c)
		free(c->exec);
	free(c);
	close(fd);
	egress_stream_end(cs->e, stream);
}

void conns_init(struct conns *c, struct loop *loop, struct egress *e)
{
	*c = (struct conns){.loop = loop, .e = e};
	list_init(&c->list);
	lingers_init(&c->lingers, loop, e);
	tunnels_init(&c->tunnels, loop, e, &c->lingers);
}

void conns_free(struct conns *cs)
{
	list_for_each_safe (c, &cs->list, struct conn, link)
		conn_close(c);
	tunnels_free(&cs->tunnels);
	lingers_free(&cs->lingers);
}
