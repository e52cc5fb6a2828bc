/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Moving bytes until nothing moves, then waiting for exactly what would make
 * something move.
 *
 * A front is freed in its own callbacks only at their end (front_turn()), and
 * from others through http_front_free(); the memory goes after the loop's batch.
 */
#define _GNU_SOURCE
#include "egress/http/front.h"

#include "egress/http/front_tls.h"
#include "egress/http/request.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define SECOND_NS 1000000000ull

/* How long a connection may stay without a byte: by what it waits for. */
#define IDLE_NS   (60 * SECOND_NS)  /* a request, or the rest of its head */
#define STALL_NS  (300 * SECOND_NS) /* the guest takes no bytes of an answer */
#define LINGER_NS (3 * SECOND_NS)   /* the guest's end after ours */

#define TURNS 16 /* of moving, before others are served */

/*
 * By edges: each turn tries everything, and the library's close would be told again and again
 * while the guest takes its time to read what came before it.
 */
#define INNER_EVENTS (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET)

void http_front_free(struct http_front *f)
{
	int guest = f->guest.fd, inner = f->inner.fd;

	if (f->freed)
		return;
	f->freed = true;
	loop_del(&f->guest);
	loop_del(&f->inner);
	loop_timer_cancel(&f->timer);
	close_fd(&inner);
	close_fd(&guest);
	egress_stream_end(f->plane->e, f->stream);
	if (f->conn)
		http_conn_front_gone(f->conn);
	f->conn = NULL;
	SSL_free(f->ssl);
	buf_free(&f->up);
	buf_free(&f->down);
	buf_free(&f->wire);
	list_del(&f->link);
	loop_defer_free(f->plane->loop, f);
}

/* --- the library's end ------------------------------------------------------------------- */

static int front_open_inner(struct http_front *f)
{
	_cleanup_fd int mine = -1;
	int fds[2], rc;

	if (f->inner.loop)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
		return -errno;
	mine = fds[0];
	f->lib_fd = fds[1];
	rc = http_plane_add(f->plane, fds[1]); /* closes it when it fails */
	if (rc < 0)
		return rc;
	rc = loop_add(f->plane->loop, &f->inner, mine, INNER_EVENTS);
	if (rc < 0)
		return rc;
	take_fd(&mine);
	return 0;
}

static void front_close_inner(struct http_front *f)
{
	int fd = f->inner.fd;

	if (!f->inner.loop)
		return;
	loop_del(&f->inner);
	close(fd);
}

/* Another turn soon: the end is told anew how it stands. */
static void front_again(struct http_front *f)
{
	if (f->inner.loop)
		loop_mod(&f->inner, INNER_EVENTS);
}

/* --- the guest's end --------------------------------------------------------------------- */

/* 1: bytes came, or the end; 0: none; -errno. */
static int plain_fill(struct http_front *f)
{
	uint8_t *p = buf_reserve(&f->up, buf_room(&f->up));
	ssize_t n;

	if (!p)
		return -ENOMEM;
	n = io_read_some(f->guest.fd, p, buf_room(&f->up));
	if (n == -EAGAIN)
		return 0;
	if (n < 0)
		return (int)n;
	if (n == 0)
		f->guest_eof = true;
	buf_commit(&f->up, (size_t)n);
	return 1;
}

static int front_fill(struct http_front *f)
{
	if (f->guest_eof || buf_room(&f->up) == 0)
		return 0;
	return f->ssl ? front_tls_fill(f) : plain_fill(f);
}

/* As much of `down` as the guest takes: 1 when something went, 0, -errno. */
static int front_drain(struct http_front *f)
{
	size_t before = buf_len(&f->down) + buf_len(&f->wire);
	int rc = f->ssl ? front_tls_drain(f) : buf_flush(&f->down, f->guest.fd);

	if (rc < 0)
		return rc;
	return buf_len(&f->down) + buf_len(&f->wire) < before || rc > 1;
}

/* --- between them ------------------------------------------------------------------------ */

/* Nothing more goes up; what is in `down` goes out. */
static void front_close(struct http_front *f)
{
	if (f->phase == FRONT_CLOSING)
		return;
	f->phase = FRONT_CLOSING;
	f->active_ns = io_now_ns();
	front_close_inner(f);
	buf_free(&f->up);
	loop_timer_set(f->plane->loop, &f->timer, STALL_NS);
}

static int front_down(struct http_front *f)
{
	size_t room = buf_room(&f->down);
	uint8_t *p;
	ssize_t n;

	if (!f->inner.loop || room == 0)
		return 0;
	p = buf_reserve(&f->down, room);
	if (!p)
		return -ENOMEM;
	n = io_read_some(f->inner.fd, p, room);
	if (n == -EAGAIN)
		return 0;
	if (n <= 0) {
		/* A reset: it closed with bytes of the guest unread; what it wrote has come. */
		front_close(f);
		return 1;
	}
	buf_commit(&f->down, (size_t)n);
	return 1;
}

/* What the library had to say before this has been read. */
static void front_say(struct http_front *f, const char *text)
{
	if (!text || buf_append(&f->down, text, strlen(text)) < 0)
		log_warn("no memory for the refusal of a request");
	front_close(f);
}

/* Answers a head that the library must not see. */
static void front_refuse(struct http_front *f, const char *why)
{
	_cleanup_free char *text = http_refuse_text(f, why);

	front_say(f, text);
}

/*
 * The library makes a piece of each argument of a URL, as many as there are, and closes without a
 * word when they are too much for it. No head that passed has a "#" in its target (head.h): as one,
 * each "?" is nothing to the library, and http_request_new() makes it what it was.
 */
static void front_hide_query(struct http_front *f)
{
	char *target = (char *)f->up.data + f->up.start + f->head.target;

	for (size_t i = 0; i < f->head.target_len; i++)
		if (target[i] == '?')
			target[i] = '#';
}

/* A head that is whole begins its request. */
static int front_look(struct http_front *f)
{
	int rc;

	if (f->phase != FRONT_HEAD || buf_len(&f->up) == 0)
		return 0;
	/* The answer before it has come whole when nothing more comes. */
	rc = front_down(f);
	if (rc || buf_room(&f->down) == 0)
		return rc;
	rc = http_head_look(&f->head, (const char *)buf_data(&f->up), buf_len(&f->up));
	if (rc < 0) {
		front_refuse(f, f->head.why);
		return 1;
	}
	if (rc == 0)
		return 0;
	rc = front_open_inner(f);
	if (rc < 0)
		return rc;
	http_head_tidy(&f->head, (char *)f->up.data + f->up.start);
	front_hide_query(f);
	f->left = f->head.len + (f->head.framing == HTTP_LENGTH ? f->head.length : 0);
	f->phase = f->head.framing == HTTP_CHUNKED ? FRONT_STREAM : FRONT_BODY;
	f->looked = f->head.len;
	http_chunks_init(&f->chunks);
	return 1;
}

/* What frames its body must not be seen by the library. */
static void front_bad_body(struct http_front *f)
{
	struct http_request *r = f->conn ? f->conn->req : NULL;
	_cleanup_free char *text = NULL;

	if (!r || !r->checked)
		front_refuse(f, f->chunks.why);
	else if (http_request_bad_body(r, f->chunks.why, &text))
		front_say(f, text);
}

/* Looks at what came of a chunked body. False: nothing of it goes up. */
static bool front_look_at_chunks(struct http_front *f, size_t n)
{
	const char *p = (const char *)buf_data(&f->up);
	bool was_bad = f->chunks.why;

	if (!was_bad && http_chunks_look(&f->chunks, p + f->looked, n - f->looked) == 0) {
		f->looked = n;
		return true;
	}
	if (!was_bad)
		front_bad_body(f);
	/* If that said nothing an answer is on its way, behind which the library closes. */
	buf_consume(&f->up, buf_len(&f->up));
	f->looked = 0;
	return false;
}

static int front_up(struct http_front *f)
{
	size_t n = buf_len(&f->up);
	ssize_t sent;

	if (f->phase == FRONT_BODY && n > f->left)
		n = (size_t)f->left;
	if ((f->phase != FRONT_BODY && f->phase != FRONT_STREAM) || n == 0)
		return 0;
	if (f->phase == FRONT_STREAM && !front_look_at_chunks(f, n))
		return 1;
	sent = io_send_some(f->inner.fd, buf_data(&f->up), n);
	if (sent == -EAGAIN)
		return 0;
	if (sent < 0)
		return sent == -EPIPE || sent == -ECONNRESET ? 0
							     : (int)sent; /* seen in front_down() */
	buf_consume(&f->up, (size_t)sent);
	f->looked -= f->phase == FRONT_STREAM ? (size_t)sent : 0;
	f->left -= f->phase == FRONT_BODY ? (uint64_t)sent : 0;
	if (f->phase == FRONT_BODY && f->left == 0)
		f->phase = FRONT_WAIT;
	return 1;
}

/* Drops what the guest still sends: it may read only when it is through with that. */
static int front_waste(struct http_front *f)
{
	uint8_t waste[4096];
	ssize_t n;

	if (f->guest_eof)
		return 0;
	n = io_read_some(f->guest.fd, waste, sizeof(waste));
	if (n == 0)
		f->guest_eof = true;
	return n == -EAGAIN ? 0 : n < 0 ? (int)n : 1;
}

/* Closing: tells the guest the end once all is out, and waits for its own. */
static int front_linger(struct http_front *f)
{
	int rc;

	if (f->phase != FRONT_CLOSING)
		return 0;
	rc = front_waste(f);
	if (rc < 0 || buf_len(&f->down) || buf_len(&f->wire))
		return rc;
	if (f->ssl && !f->said_tls_end) {
		f->said_tls_end = true;
		front_tls_end(f);
		return 1; /* there may be one more record */
	}
	if (!f->said_end) {
		f->said_end = true;
		shutdown(f->guest.fd, SHUT_WR);
		loop_timer_set(f->plane->loop, &f->timer, LINGER_NS);
	}
	return f->guest_eof ? -ECONNRESET : rc;
}

/* The guest will send no more. Whether it has a request under way that nobody waits for now. */
static bool front_left(const struct http_front *f)
{
	if (!f->guest_eof || f->phase == FRONT_CLOSING)
		return false;
	return f->phase != FRONT_HEAD || (buf_len(&f->down) == 0 && buf_len(&f->wire) == 0);
}

/* 1: something moved; 0; -errno: it is over. */
static int front_move(struct http_front *f)
{
	int (*const steps[])(struct http_front *) = {front_look, front_up, front_down, front_drain,
						     front_linger};
	int moved = 0, rc = 0;

	if (f->phase != FRONT_CLOSING)
		rc = front_fill(f);
	for (size_t i = 0; rc >= 0 && i < ARRAY_SIZE(steps); i++) {
		moved |= rc > 0;
		rc = steps[i](f);
	}
	if (rc < 0)
		return rc;
	return front_left(f) ? -ECONNRESET : moved || rc > 0;
}

static void front_wait(struct http_front *f)
{
	bool full = buf_room(&f->up) == 0 || (f->ssl && front_tls_full(f));
	bool reads = f->phase == FRONT_CLOSING || !full;
	uint32_t guest = 0;

	if (reads && !f->guest_eof)
		guest |= EPOLLIN | EPOLLRDHUP;
	if (buf_len(&f->wire) || (!f->ssl && buf_len(&f->down)))
		guest |= EPOLLOUT;
	if (guest != f->guest.events)
		loop_mod(&f->guest, guest);
}

static void front_turn(struct http_front *f)
{
	int rc = 1;

	for (int i = 0; i < TURNS && rc > 0; i++) {
		rc = front_move(f);
		if (rc > 0) /* not by what is only TLS's own */
			f->active_ns = io_now_ns();
	}
	if (rc < 0) {
		http_front_free(f);
		return;
	}
	front_wait(f);
	if (rc > 0)
		front_again(f);
}

static void front_on_guest(struct loop_src *src, uint32_t events)
{
	struct http_front *f = src->arg;

	/* Gone in both directions: nobody reads, whatever there still is to send. */
	if (events & (EPOLLHUP | EPOLLERR))
		http_front_free(f);
	else
		front_turn(f);
}

static void front_on_inner(struct loop_src *src, uint32_t events)
{
	(void)events;
	front_turn(src->arg);
}

static void front_on_timer(struct loop_timer *t)
{
	struct http_front *f = t->arg;
	uint64_t idle = io_now_ns() - f->active_ns, limit = UINT64_MAX;

	if (f->phase == FRONT_CLOSING)
		limit = f->said_end ? 0 : STALL_NS;
	else if (buf_len(&f->down) || buf_len(&f->wire))
		limit = STALL_NS;
	else if (f->phase == FRONT_HEAD)
		limit = IDLE_NS;
	if (idle >= limit)
		http_front_free(f);
	else
		loop_timer_set(f->plane->loop, t, limit == UINT64_MAX ? IDLE_NS : limit - idle);
}

void http_front_answer(struct http_front *f, const char *text)
{
	while (front_down(f) > 0)
		; /* "100 Continue" at most */
	if (f->phase != FRONT_CLOSING)
		front_say(f, text);
	front_turn(f); /* nothing else need happen any more: what it says goes out now */
}

void http_front_request_done(struct http_front *f)
{
	if (f->phase == FRONT_BODY || f->phase == FRONT_STREAM)
		f->phase = FRONT_WAIT; /* its body was not taken to its end: the library closes */
	else if (f->phase == FRONT_WAIT)
		f->phase = FRONT_HEAD;
	http_head_init(&f->head);
	f->active_ns = io_now_ns();
	loop_timer_set(f->plane->loop, &f->timer, IDLE_NS);
	front_again(f); /* a next head may be there already */
}

int http_front_new(struct http_plane *p, int fd, uint64_t stream, const struct http_origin *origin,
		   SSL *ssl)
{
	struct http_front *f = calloc(1, sizeof(*f));
	int rc;

	if (!f)
		return -ENOMEM;
	f->plane = p;
	f->stream = stream;
	f->lib_fd = -1;
	if (origin) {
		f->inside = true;
		snprintf(f->host, sizeof(f->host), "%s", origin->host);
		f->origin = (struct http_origin){"https", f->host, origin->port};
	}
	f->guest = (struct loop_src){.fd = -1, .fn = front_on_guest, .arg = f};
	f->inner = (struct loop_src){.fd = -1, .fn = front_on_inner, .arg = f};
	f->timer = (struct loop_timer){.fn = front_on_timer, .arg = f};
	buf_init(&f->up, FRONT_BUF);
	buf_init(&f->down, FRONT_BUF);
	buf_init(&f->wire, 2 * FRONT_BUF);
	http_head_init(&f->head);
	rc = loop_add(p->loop, &f->guest, fd, EPOLLIN | EPOLLRDHUP);
	if (rc == 0 && ssl && front_tls_init(f, ssl) < 0) {
		loop_del(&f->guest);
		rc = -ENOMEM;
	}
	if (rc < 0) {
		free(f);
		return rc;
	}
	f->active_ns = io_now_ns();
	loop_timer_set(p->loop, &f->timer, IDLE_NS);
	list_add_tail(&p->fronts, &f->link);
	return 0;
}
