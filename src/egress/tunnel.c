/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tunnels. One chunk of memory serves all of them: it is read into and sent from
 * at once; only what the other side does not take is copied. Invariants: a
 * tunnel in the list owns both descriptors and its grant; a side is read only
 * while nothing is kept for the other one, so kept bytes are bounded; while the
 * state is TUNNEL_HELLO, to_up holds everything the guest has sent.
 */
#define _GNU_SOURCE
#include "egress/tunnel.h"

#include "egress/hello.h"
#include "egress/linger.h"
#include "egress/socks.h"
#include "lib/io.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define TURNS 8 /* chunks of one event, then others have their turn */

enum tunnel_state { TUNNEL_DIAL, TUNNEL_HELLO, TUNNEL_RELAY };

/* One end. */
struct side {
	struct loop_src src;
	int fd;
	struct buf out; /* kept for it */
	bool eof;       /* it sends no more */
	bool shut;      /* and was told that no more comes */
};

struct tunnel {
	struct list link; /* first: loop_defer_free() */
	struct tunnels *ts;
	struct egress_question q;
	char host[EGRESS_HOST_MAX + 1];
	struct egress_grant *grant;
	struct side guest, up;
	struct loop_timer timer; /* dial, ClientHello */
	enum tunnel_state state;
	bool tls, dry; /* dry: the rate allows nothing now */
	struct hello hello;
};

const void *tunnel_success(enum egress_proto proto, size_t *len)
{
	static const char connect[] = "HTTP/1.1 200 Connection established\r\n\r\n";
	static const uint8_t socks[SOCKS_REPLY_BYTES] = {SOCKS_VERSION, SOCKS_OK, 0, SOCKS_IPV4};

	*len = proto == EGRESS_SOCKS ? sizeof(socks) : sizeof(connect) - 1;
	return proto == EGRESS_SOCKS ? (const void *)socks : connect;
}

/* --- end ------------------------------------------------------------------------------------ */

/* Ends everything but the guest's descriptor, which is returned. */
static int tunnel_release(struct tunnel *t, enum egress_reason why)
{
	int fd = t->guest.fd;

	loop_del(&t->guest.src);
	loop_del(&t->up.src);
	loop_timer_cancel(&t->timer);
	list_del(&t->link);
	close_fd(&t->up.fd);
	buf_free(&t->guest.out);
	buf_free(&t->up.out);
	hello_free(&t->hello);
	egress_done(t->grant, why);
	loop_defer_free(t->ts->loop, t);
	return fd;
}

static void tunnel_end(struct tunnel *t, enum egress_reason why)
{
	struct egress *e = t->ts->e;
	uint64_t stream = t->q.stream;

	close(tunnel_release(t, why));
	egress_stream_end(e, stream);
}

/* Before the guest was told success. */
static void tunnel_deny(struct tunnel *t, enum egress_reason why, const char *detail)
{
	struct lingers *l = t->ts->lingers;
	struct egress_question q = t->q;
	struct egress_verdict v;
	char host[EGRESS_HOST_MAX + 1];

	memcpy(host, t->host, sizeof(host));
	q.host = host;
	egress_denied(t->ts->e, &q, why, detail, NULL, &v);
	linger_deny(l, tunnel_release(t, why), &q, &v);
}

/* After it: only TLS can tell. */
static void tunnel_alert(struct tunnel *t, enum egress_reason why, const char *detail)
{
	struct lingers *l = t->ts->lingers;
	uint64_t stream = t->q.stream;
	struct egress_verdict v;

	egress_denied(t->ts->e, &t->q, why, detail, NULL, &v);
	linger_close(l, tunnel_release(t, why), stream, hello_alert, sizeof(hello_alert));
}

static void tunnel_on_cut(void *arg, enum egress_reason why)
{
	tunnel_end(arg, why);
}

static void tunnel_on_timer(struct loop_timer *timer)
{
	struct tunnel *t = timer->arg;

	if (t->state == TUNNEL_DIAL)
		tunnel_deny(t, EGRESS_R_UPSTREAM, "the destination did not answer in time");
	else
		tunnel_alert(t, EGRESS_R_NOT_TLS, "no ClientHello came in time");
}

/* --- events that are waited for ------------------------------------------------------------- */

/* A side for which nothing is to do is not watched: its hang-up would be told without end. */
static int side_watch(struct loop *l, struct side *s, uint32_t events)
{
	if (!events) {
		loop_del(&s->src);
		return 0;
	}
	if (s->src.loop)
		return loop_mod(&s->src, events);
	return loop_add(l, &s->src, s->fd, events);
}

static uint32_t side_events(const struct tunnel *t, const struct side *s, const struct side *other)
{
	uint32_t events = buf_len(&s->out) ? EPOLLOUT : 0u;

	if (!s->eof && !buf_len(&other->out) && !t->dry)
		events |= EPOLLIN;
	return events;
}

/* False: t is gone. */
static bool tunnel_watch(struct tunnel *t)
{
	uint32_t guest = 0, up = 0;

	switch (t->state) {
	case TUNNEL_DIAL:
		guest = EPOLLRDHUP | EPOLLET; /* to see it go away */
		up = EPOLLOUT;
		break;
	case TUNNEL_HELLO:
		guest = EPOLLIN;
		break;
	case TUNNEL_RELAY:
		guest = side_events(t, &t->guest, &t->up);
		up = side_events(t, &t->up, &t->guest);
		break;
	}
	if (side_watch(t->ts->loop, &t->guest, guest) == 0 &&
	    side_watch(t->ts->loop, &t->up, up) == 0)
		return true;
	tunnel_end(t, EGRESS_R_NONE);
	return false;
}

/* --- relay ---------------------------------------------------------------------------------- */

/* Sends, and keeps what is not taken: 0, or -errno of a side that is gone. */
static int side_send(struct side *s, const uint8_t *p, size_t len)
{
	ssize_t n = buf_len(&s->out) ? 0 : io_send_some(s->fd, p, len);

	if (n == -EAGAIN)
		n = 0;
	if (n < 0)
		return (int)n;
	return buf_append(&s->out, p + n, len - (size_t)n);
}

/* Passes the end of the other side on, when everything before it is out. */
static void side_end(struct side *s, const struct side *other)
{
	if (!other->eof || s->shut || buf_len(&s->out))
		return;
	shutdown(s->fd, SHUT_WR);
	s->shut = true;
}

/* What passes is looked at while there is something to look for. False: t is gone. */
static bool tunnel_look(struct tunnel *t, bool from_guest, const uint8_t *p, size_t len)
{
	if (!t->tls || t->hello.done)
		return true;
	if (!from_guest) {
		hello_server(&t->hello, p, len);
		return true;
	}
	if (hello_feed(&t->hello, p, len) == HELLO_NAME)
		return true;
	tunnel_alert(t, EGRESS_R_SNI_MISMATCH, t->hello.why);
	return false;
}

/* Moves what there is from one side to the other. False: t is gone. */
static bool tunnel_move(struct tunnel *t, struct side *from, struct side *to)
{
	bool up = from == &t->guest;
	uint8_t *chunk = t->ts->chunk;

	for (int i = 0; i < TURNS && !from->eof && !buf_len(&to->out); i++) {
		size_t room = egress_count(t->grant, 0, 0);
		ssize_t n;

		if (room == 0) {
			t->dry = true;
			return true;
		}
		if (room > TUNNEL_CHUNK)
			room = TUNNEL_CHUNK;
		n = io_read_some(from->fd, chunk, room);
		if (n == -EAGAIN)
			return true;
		if (n == 0) {
			from->eof = true;
			return true;
		}
		if (n > 0 && !tunnel_look(t, up, chunk, (size_t)n))
			return false;
		if (n < 0 || side_send(to, chunk, (size_t)n) < 0) {
			/* Whichever side it is, nothing can be carried any more. */
			tunnel_end(t, n < 0 && !up ? EGRESS_R_UPSTREAM : EGRESS_R_NONE);
			return false;
		}
		egress_count(t->grant, up ? (size_t)n : 0, up ? 0 : (size_t)n);
		if ((size_t)n < room)
			return true; /* that was all; more wakes us again */
	}
	return true;
}

/* Sends what is kept; memory is given back with the last byte of it. */
static int side_flush(struct side *s)
{
	int rc;

	if (!buf_len(&s->out))
		return 0;
	rc = buf_flush(&s->out, s->fd);
	if (rc == 0)
		buf_free(&s->out);
	return rc < 0 ? rc : 0;
}

/* guest, up: which of them may have something. */
static void tunnel_relay(struct tunnel *t, bool guest, bool up)
{
	if (side_flush(&t->up) < 0 || side_flush(&t->guest) < 0) {
		tunnel_end(t, EGRESS_R_NONE);
		return;
	}
	if ((guest && !tunnel_move(t, &t->guest, &t->up)) ||
	    (up && !tunnel_move(t, &t->up, &t->guest)))
		return;
	side_end(&t->up, &t->guest);
	side_end(&t->guest, &t->up);
	if (t->up.shut && t->guest.shut)
		tunnel_end(t, EGRESS_R_NONE);
	else
		tunnel_watch(t);
}

static void tunnel_on_room(void *arg)
{
	struct tunnel *t = arg;

	t->dry = false;
	if (t->state == TUNNEL_RELAY)
		tunnel_relay(t, true, true);
}

/* --- ClientHello ---------------------------------------------------------------------------- */

static void tunnel_start_relay(struct tunnel *t)
{
	loop_timer_cancel(&t->timer);
	t->state = TUNNEL_RELAY;
	t->up.out.max = (size_t)2 * TUNNEL_CHUNK; /* the ClientHello may be in it */
	tunnel_relay(t, true, true);
}

static void tunnel_judge_hello(struct tunnel *t)
{
	char detail[400];

	switch (t->hello.verdict) {
	case HELLO_MORE:
		tunnel_watch(t);
		return;
	case HELLO_NAME:
		if (strcmp(t->hello.name, t->host) == 0) {
			tunnel_start_relay(t);
			return;
		}
		snprintf(detail, sizeof(detail), "TLS asks for %.160s in a tunnel to %.160s",
			 t->hello.name, t->host);
		tunnel_alert(t, EGRESS_R_SNI_MISMATCH, detail);
		return;
	case HELLO_NO_NAME:
		tunnel_alert(t, EGRESS_R_SNI_MISSING, "the ClientHello does not say a name");
		return;
	case HELLO_ECH:
		tunnel_alert(t, EGRESS_R_ECH, "the ClientHello may hide another name (ECH)");
		return;
	case HELLO_NOT_TLS:
		tunnel_alert(t, EGRESS_R_NOT_TLS, t->hello.why);
		return;
	case HELLO_SECOND:
		tunnel_alert(t, EGRESS_R_SNI_MISMATCH, t->hello.why);
		return;
	}
}

static void tunnel_read_hello(struct tunnel *t)
{
	/* One more than it may be: then the verdict is there. */
	size_t room = HELLO_MAX + 1 - buf_len(&t->up.out);
	ssize_t n =
		io_read_some(t->guest.fd, t->ts->chunk, room < TUNNEL_CHUNK ? room : TUNNEL_CHUNK);

	if (n == -EAGAIN)
		return;
	if (n <= 0 || buf_append(&t->up.out, t->ts->chunk, (size_t)n) < 0) {
		tunnel_end(t, EGRESS_R_NONE);
		return;
	}
	egress_count(t->grant, (size_t)n, 0);
	hello_feed(&t->hello, t->ts->chunk, (size_t)n);
	tunnel_judge_hello(t);
}

/* --- beginning ------------------------------------------------------------------------------ */

static void tunnel_connected(struct tunnel *t)
{
	int error = 0;
	socklen_t size = sizeof(error);
	size_t len;
	const void *ok = tunnel_success(t->q.proto, &len);

	if (getsockopt(t->up.fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
		error = errno;
	if (error) {
		char detail[128];

		snprintf(detail, sizeof(detail), "the destination cannot be reached: %s",
			 strerror(error));
		tunnel_deny(t, EGRESS_R_UPSTREAM, detail);
		return;
	}
	if (io_send_some(t->guest.fd, ok, len) < (ssize_t)len) {
		tunnel_end(t, EGRESS_R_NONE);
		return;
	}
	if (!t->tls) {
		tunnel_start_relay(t);
		return;
	}
	t->state = TUNNEL_HELLO;
	loop_timer_set(t->ts->loop, &t->timer, egress_patience_s(t->ts->e) * 1000000000ull);
	tunnel_watch(t);
}

static void tunnel_on_event(struct loop_src *src, uint32_t events)
{
	struct tunnel *t = src->arg;
	bool up = src == &t->up.src;

	switch (t->state) {
	case TUNNEL_DIAL:
		if (up)
			tunnel_connected(t);
		else if (events & (EPOLLHUP | EPOLLERR))
			tunnel_end(t, EGRESS_R_NONE);
		return;
	case TUNNEL_HELLO:
		tunnel_read_hello(t);
		return;
	case TUNNEL_RELAY:
		tunnel_relay(t, !up && (events & ~(uint32_t)EPOLLOUT),
			     up && (events & ~(uint32_t)EPOLLOUT));
		return;
	}
}

void tunnel_start(struct tunnels *ts, int fd, const struct egress_question *q,
		  const struct egress_verdict *v)
{
	struct tunnel *t = calloc(1, sizeof(*t));
	char detail[128];
	int up;

	if (!t) {
		egress_done(v->grant, EGRESS_R_NONE);
		close(fd);
		egress_stream_end(ts->e, q->stream);
		return;
	}
	*t = (struct tunnel){.ts = ts, .q = *q, .grant = v->grant, .tls = v->tls};
	snprintf(t->host, sizeof(t->host), "%s", v->host);
	t->q.host = t->host;
	t->q.host_len = strlen(t->host);
	hello_init(&t->hello);
	t->guest.fd = fd;
	t->up.fd = -1;
	buf_init(&t->guest.out, TUNNEL_CHUNK);
	buf_init(&t->up.out, HELLO_MAX + 1);
	t->guest.src = (struct loop_src){.fd = -1, .fn = tunnel_on_event, .arg = t};
	t->up.src = (struct loop_src){.fd = -1, .fn = tunnel_on_event, .arg = t};
	t->timer = (struct loop_timer){.fn = tunnel_on_timer, .arg = t};
	list_add_tail(&ts->list, &t->link);
	egress_on_cut(v->grant, tunnel_on_cut, t);
	egress_on_room(v->grant, tunnel_on_room, t);
	up = egress_dial(ts->e, v);
	if (up < 0) {
		snprintf(detail, sizeof(detail), "the destination cannot be reached: %s",
			 strerror(-up));
		tunnel_deny(t, EGRESS_R_UPSTREAM, detail);
		return;
	}
	t->up.fd = up;
	loop_timer_set(ts->loop, &t->timer, TUNNEL_DIAL_S * 1000000000ull);
	tunnel_watch(t);
}

void tunnels_init(struct tunnels *t, struct loop *loop, struct egress *e, struct lingers *lingers)
{
	t->loop = loop;
	t->e = e;
	t->lingers = lingers;
	list_init(&t->list);
}

void tunnels_free(struct tunnels *ts)
{
	list_for_each_safe (t, &ts->list, struct tunnel, link)
		tunnel_end(t, EGRESS_R_NONE);
}
