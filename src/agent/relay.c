/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The relay's loop. A connection has two ends, the client's (TCP) and the
 * host's (vsock), and two ways between them. Bytes go from one end straight to
 * the other; what that does not take at once is held, and then nothing more is
 * read from the first: this is the back-pressure. The end of a way is passed on
 * as a half-close when all before it is through.
 *
 * How it ends for the client: with FIN when the host has ended its way, with RST
 * when anything else happens, this process being killed included (SO_LINGER), so
 * that a cut is not taken for an end. (A single vsock that the host resets looks
 * to Linux like one that it has closed.) A host that takes nothing more may still
 * have an answer, which is delivered; what the client sends meanwhile is dropped.
 *
 * Invariant: an end is in the loop while it waits for something, or may still
 * report an error; never for a hang-up that nothing can be done about.
 */
#define _GNU_SOURCE
#include "agent/relay.h"
#include "lib/buf.h"
#include "lib/io.h"
#include "lib/loop.h"

#include <errno.h>
#include <limits.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>

/* Of one way before others get their turn. */
#define RELAY_READS 4
/* The daemon may have to start its proxy first. */
#define RELAY_CONNECT_S   20
#define RELAY_ACCEPTS     64
#define RELAY_ACCEPT_NS   100000000ull
#define RELAY_DESCRIPTORS (2 * RELAY_CONNS + RELAY_WAITING + 64)

enum relay_state {
	RELAY_WAITS,    /* for its turn; host.fd is -1 */
	RELAY_CONNECTS, /* to the host */
	RELAY_OPEN,
};

struct relay_conn;

struct relay_end {
	struct loop_src src;
	struct relay_conn *conn;
	int fd;
	bool hung; /* has reported a hang-up, which it would do without end */
};

struct relay_way {
	struct relay_end *from, *to;
	struct buf held;
	bool eof;  /* `from` has ended */
	bool done; /* and `to` knows */
	bool deaf; /* `to` takes nothing more: what comes is dropped */
};

struct relay_conn {
	struct list link; /* in relay->waiting or ->conns; first, see loop_defer_free() */
	struct relay *relay;
	enum relay_state state;
	uint64_t since_ns;
	struct relay_end client, host;
	struct relay_way up, down; /* to the host, to the client */
};

struct relay {
	struct loop loop;
	const struct sockaddr *to;
	socklen_t to_len;
	struct loop_src listener[2];
	struct loop_timer again; /* while accepting is impossible */
	struct loop_timer limit; /* of the first that waits */
	struct list conns, waiting;
	unsigned nconns, nwaiting;
	uint8_t scratch[RELAY_HELD];
};

static void relay_promote(struct relay *r);

static void relay_linger(int fd, bool reset)
{
	struct linger l = {.l_onoff = reset};

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
}

static void relay_drop(struct relay_conn *c, bool reset)
{
	struct relay *r = c->relay;

	loop_del(&c->client.src);
	loop_del(&c->host.src);
	if (!reset)
		relay_linger(c->client.fd, false);
	close_fd(&c->client.fd);
	close_fd(&c->host.fd);
	buf_free(&c->up.held);
	buf_free(&c->down.held);
	list_del(&c->link);
	if (c->state == RELAY_WAITS)
		r->nwaiting--;
	else
		r->nconns--;
	loop_defer_free(&r->loop, c);
}

/* Sends some of it: how much, also 0, or -errno. Of a host that is deaf: all, to nowhere. */
static ssize_t relay_send(struct relay_way *w, const uint8_t *p, size_t len)
{
	ssize_t n = w->deaf ? (ssize_t)len : io_send_some(w->to->fd, p, len);

	if (n == -EAGAIN)
		return 0;
	if ((n == -EPIPE || n == -ENOTCONN) && w->to == &w->to->conn->host) {
		w->deaf = true;
		return (ssize_t)len;
	}
	return n;
}

/* What was held goes first: 1 when some of it stays, 0, -errno. */
static int relay_flush(struct relay_way *w)
{
	while (buf_len(&w->held)) {
		ssize_t n = relay_send(w, buf_data(&w->held), buf_len(&w->held));

		if (n <= 0)
			return n < 0 ? (int)n : 1;
		buf_consume(&w->held, (size_t)n);
	}
	/* Connections that are idle cost no buffer. */
	buf_free(&w->held);
	return 0;
}

/* As much as goes now. 0, or -errno when the connection is broken. */
static int relay_pump(struct relay *r, struct relay_way *w)
{
	int rc = relay_flush(w);

	for (int i = 0; rc == 0 && i < RELAY_READS && !w->eof; i++) {
		ssize_t n = io_read_some(w->from->fd, r->scratch, sizeof(r->scratch)), sent;

		if (n == -EAGAIN)
			return 0;
		if (n < 0)
			return (int)n;
		w->eof = n == 0;
		sent = n ? relay_send(w, r->scratch, (size_t)n) : 0;
		if (sent < 0)
			return (int)sent;
		if (sent < n)
			return buf_append(&w->held, r->scratch + sent, (size_t)(n - sent));
	}
	if (rc < 0)
		return rc;
	if (rc == 0 && w->eof && !w->done) {
		w->done = true;
		/* One that is closed on both sides meanwhile says so: not an error. */
		if (shutdown(w->to->fd, SHUT_WR) < 0 && errno != ENOTCONN)
			return -errno;
	}
	return 0;
}

/*
 * Whether all is said. The host may have ended its way and still listen; or it has gone, and then
 * the client, which may keep an idle connection for ever, is not waited for.
 */
static bool relay_over(const struct relay_conn *c)
{
	if (!c->down.done || c->up.done)
		return c->down.done;
	return c->up.deaf || send(c->host.fd, "", 0, MSG_NOSIGNAL | MSG_DONTWAIT) < 0;
}

static uint32_t relay_wants(const struct relay_way *in, const struct relay_way *out)
{
	return (!in->eof && !buf_len(&in->held) ? EPOLLIN : 0) |
	       (buf_len(&out->held) ? EPOLLOUT : 0);
}

/* Of a host that has ended its way the next thing to hear is that it has gone, an edge. */
static uint32_t relay_wants_host(const struct relay_conn *c)
{
	return relay_wants(&c->down, &c->up) |
	       (c->down.eof ? (uint32_t)EPOLLOUT | (uint32_t)EPOLLET : 0);
}

static int relay_watch(struct relay_end *e, uint32_t want)
{
	if (!want && e->hung) {
		loop_del(&e->src);
		return 0;
	}
	if (!e->src.loop)
		return loop_add(&e->conn->relay->loop, &e->src, e->fd, want);
	/* Setting edges again would report the one that is known. */
	return e->src.events == want ? 0 : loop_mod(&e->src, want);
}

/* Moves what can be moved, and waits for the rest. May free c. */
static void relay_turn(struct relay_conn *c)
{
	struct relay *r = c->relay;
	bool broken = relay_pump(r, &c->up) < 0 || relay_pump(r, &c->down) < 0;
	bool over = !broken && relay_over(c);

	if (!broken && !over)
		broken = relay_watch(&c->client, relay_wants(&c->up, &c->down)) < 0 ||
			 relay_watch(&c->host, relay_wants_host(c)) < 0;
	if (!broken && !over)
		return;
	relay_drop(c, broken);
	relay_promote(r);
}

static void relay_on_event(struct loop_src *src, uint32_t events)
{
	struct relay_end *e = src->arg;
	struct relay_conn *c = e->conn;
	struct relay *r = c->relay;
	socklen_t len = sizeof(int);
	int num = 0;

	if (events & EPOLLHUP)
		e->hung = true;
	/* An error ends both ways at once. So does a client that leaves before it is let in. */
	if ((events & EPOLLERR) || (c->state != RELAY_OPEN && e == &c->client)) {
		relay_drop(c, true);
		relay_promote(r);
		return;
	}
	if (c->state == RELAY_CONNECTS) {
		if (getsockopt(e->fd, SOL_SOCKET, SO_ERROR, &num, &len) < 0 || num) {
			relay_drop(c, true);
			relay_promote(r);
			return;
		}
		c->state = RELAY_OPEN;
	}
	relay_turn(c);
}

static int relay_socket(const struct relay *r)
{
	struct timeval limit = {.tv_sec = RELAY_CONNECT_S};
	int fd = socket(r->to->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	/* Linux gives up after two seconds otherwise. */
	if (fd >= 0 && r->to->sa_family == AF_VSOCK)
		setsockopt(fd, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT_NEW, &limit, sizeof(limit));
	return fd;
}

/* One that waited, or has just come, gets its connection to the host. May free c. */
static void relay_begin(struct relay_conn *c)
{
	struct relay *r = c->relay;
	int rc;

	list_del(&c->link);
	r->nwaiting--;
	list_add_tail(&r->conns, &c->link);
	r->nconns++;
	c->state = RELAY_CONNECTS;
	c->host.fd = relay_socket(r);
	if (c->host.fd < 0) {
		relay_drop(c, true);
		return;
	}
	rc = connect(c->host.fd, r->to, r->to_len) < 0 ? -errno : 0;
	if (rc == 0 || rc == -EINPROGRESS)
		rc = loop_add(&r->loop, &c->host.src, c->host.fd, EPOLLOUT);
	if (rc < 0)
		relay_drop(c, true);
}

/* Those that wait take the places that have become free. */
static void relay_promote(struct relay *r)
{
	while (r->nconns < RELAY_CONNS && !list_empty(&r->waiting))
		relay_begin(list_entry(r->waiting.next, struct relay_conn, link));
	if (list_empty(&r->waiting))
		loop_timer_cancel(&r->limit);
}

static void relay_on_limit(struct loop_timer *t)
{
	struct relay *r = t->arg;
	uint64_t now = io_now_ns();

	list_for_each_safe (c, &r->waiting, struct relay_conn, link) {
		uint64_t end = c->since_ns + RELAY_WAIT_NS;

		if (end > now) {
			loop_timer_set(&r->loop, t, end - now);
			return;
		}
		relay_drop(c, true);
	}
}

static void relay_end_init(struct relay_end *e, struct relay_conn *c, int fd)
{
	*e = (struct relay_end){.conn = c, .fd = fd};
	e->src = (struct loop_src){.fd = -1, .fn = relay_on_event, .arg = e};
}

/* Takes fd over. */
static void relay_take(struct relay *r, int fd)
{
	struct relay_conn *c = r->nwaiting < RELAY_WAITING ? calloc(1, sizeof(*c)) : NULL;
	int one = 1;

	relay_linger(fd, true);
	if (!c) {
		close(fd);
		return;
	}
	/* What the host sends in pieces was cut there already. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	c->relay = r;
	c->since_ns = io_now_ns();
	relay_end_init(&c->client, c, fd);
	relay_end_init(&c->host, c, -1);
	c->up = (struct relay_way){.from = &c->client, .to = &c->host};
	c->down = (struct relay_way){.from = &c->host, .to = &c->client};
	buf_init(&c->up.held, RELAY_HELD);
	buf_init(&c->down.held, RELAY_HELD);
	list_init(&c->link);
	list_add_tail(&r->waiting, &c->link);
	r->nwaiting++;
	/* Only to hear when it leaves. */
	if (loop_add(&r->loop, &c->client.src, fd, 0) < 0) {
		relay_drop(c, true);
		return;
	}
	relay_promote(r);
	if (!list_empty(&r->waiting) && !loop_timer_armed(&r->limit))
		loop_timer_set(&r->loop, &r->limit, RELAY_WAIT_NS);
}

static int relay_listen(struct relay *r)
{
	int rc = 0;

	for (int i = 0; i < 2 && rc == 0; i++)
		if (!r->listener[i].loop)
			rc = loop_add(&r->loop, &r->listener[i], i ? RELAY_FD_SOCKS : RELAY_FD_HTTP,
				      EPOLLIN);
	return rc;
}

static void relay_on_again(struct loop_timer *t)
{
	struct relay *r = t->arg;

	if (relay_listen(r) < 0)
		loop_timer_set(&r->loop, t, RELAY_ACCEPT_NS);
}

static void relay_on_accept(struct loop_src *src, uint32_t events)
{
	struct relay *r = src->arg;

	(void)events;
	/* All that wait: those that are too many are to know it at once. */
	for (int i = 0; i < RELAY_ACCEPTS; i++) {
		int fd = accept4(src->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd >= 0) {
			relay_take(r, fd);
		} else if (errno == EAGAIN) {
			return;
		} else if (errno == EINVAL || errno == EBADF) {
			loop_quit(&r->loop); /* the agent has shut it */
			return;
		} else if (errno != ECONNABORTED && errno != EINTR) {
			/* Out of descriptors or memory: not again at once. */
			for (int k = 0; k < 2; k++)
				loop_del(&r->listener[k]);
			loop_timer_set(&r->loop, &r->again, RELAY_ACCEPT_NS);
			return;
		}
	}
}

int relay_main(const struct sockaddr *to, socklen_t len)
{
	struct rlimit files = {RELAY_DESCRIPTORS, RELAY_DESCRIPTORS};
	static struct relay r;

	/* The agent is process 1 in a guest; elsewhere nothing is to outlive it. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	prctl(PR_SET_NAME, RELAY_NAME);
	signal(SIGPIPE, SIG_IGN);
	setrlimit(RLIMIT_NOFILE, &files);
	r.to = to;
	r.to_len = len;
	list_init(&r.conns);
	list_init(&r.waiting);
	r.again = (struct loop_timer){.fn = relay_on_again, .arg = &r};
	r.limit = (struct loop_timer){.fn = relay_on_limit, .arg = &r};
	for (int i = 0; i < 2; i++)
		r.listener[i] = (struct loop_src){.fd = -1, .fn = relay_on_accept, .arg = &r};
	if (loop_init(&r.loop) < 0 || relay_listen(&r) < 0) {
		fprintf(stderr, RELAY_NAME ": cannot use the sockets that it should serve\n");
		return 1;
	}
	return loop_run(&r.loop) < 0;
}
