/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The listening socket and the sockets of clients, beside what the library does
 * with them. Invariant: a struct http_conn lives from the library's notification
 * of its start to that of its end.
 */
#define _GNU_SOURCE
#include "daemon/http_conn.h"
#include "daemon/daemon.h"
#include "daemon/limits.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

/* A closed connection that gets this many turns without getting on is cut. */
#define KICKS_MAX    64
#define CONN_REST_NS (SECOND_NS / 50)

static int conn_fd(struct MHD_Connection *mhd)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);

	return info ? info->connect_fd : -1;
}

struct http_conn *http_conn_of(struct MHD_Connection *mhd)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

	return info ? info->socket_context : NULL;
}

void http_conn_cut(struct http_conn *c)
{
	int fd = conn_fd(c->mhd);

	if (fd >= 0)
		shutdown(fd, SHUT_RDWR);
}

static void conn_on_hup(struct loop_src *src, uint32_t events)
{
	struct http_conn *c = src->arg;

	(void)events;
	loop_del(src);
	c->hup = true;
	list_add_tail(&c->http->hups, &c->link);
	if (c->req)
		http_hup(c->req);
	loop_timer_set(c->http->loop, &c->http->timer, 0);
}

/* A byte now and then keeps the library content, and a place taken. */
static void conn_on_limit(struct loop_timer *t)
{
	http_conn_cut(t->arg);
}

void http_conn_limit(struct http_conn *c, unsigned int times)
{
	if (times)
		loop_timer_set(c->http->loop, &c->limit,
			       times * (uint64_t)c->http->d->config.http_timeout_s * SECOND_NS);
	else
		loop_timer_cancel(&c->limit);
}

/* --- whose it is ------------------------------------------------------------------------- */

/* It is none of the strangers any more, and none of its key's. */
static void conn_nobodys(struct http_conn *c)
{
	if (c->share)
		c->share->n--;
	else if (!list_empty(&c->idle))
		c->http->nstrangers--;
	c->share = NULL;
	list_del(&c->idle);
}

static void conn_cut_for_room(struct http_conn *c)
{
	conn_nobodys(c);
	c->cut = true;
	c->http->ncut++;
	http_conn_cut(c);
}

/* Of a list, the one that has been there longest goes. False: there is none. */
static bool conn_cut_first(struct list *idle)
{
	if (list_empty(idle))
		return false;
	conn_cut_for_room(list_entry(idle->next, struct http_conn, idle));
	return true;
}

/* An idle one of the key that has the most, of those that have one. */
static bool conn_cut_known(struct http *h)
{
	struct http_share *most = NULL;

	/* One key alone keeps what it has: newcomers would only take it from each other. */
	for (unsigned int i = 0; h->nkeys > 1 && i < h->nkeys; i++)
		if (!list_empty(&h->shares[i].idle) && (!most || h->shares[i].n > most->n))
			most = &h->shares[i];
	return most && conn_cut_first(&most->idle);
}

/* Makes room for one that has come. False: there is none. */
static bool conn_make_room(struct http *h)
{
	if (h->connections - h->ncut >= h->max_connections)
		return conn_cut_first(&h->strangers) || conn_cut_known(h);
	if (h->nstrangers >= h->max_connections / 2)
		conn_cut_first(&h->strangers);
	return true;
}

bool http_conn_known(struct http_conn *c, unsigned int key)
{
	struct http_share *share;
	struct http *h;

	if (!c || c->cut)
		return true;
	h = c->http;
	share = &h->shares[key];
	if (c->share != share && h->nkeys > 1 && share->n >= h->max_connections / 2 &&
	    !conn_cut_first(&share->idle))
		return false;
	conn_nobodys(c);
	c->share = share;
	share->n++;
	return true;
}

void http_conn_idle(struct http_conn *c)
{
	/* A request that was not let in has changed nothing. */
	if (c->share && list_empty(&c->idle))
		list_add_tail(&c->share->idle, &c->idle);
}

/* --- life -------------------------------------------------------------------------------- */

static void conn_start(struct http *h, struct MHD_Connection *mhd, void **ctx)
{
	struct http_conn *c = calloc(1, sizeof(*c));

	h->connections++;
	*ctx = c;
	if (!c)
		return;
	c->http = h;
	c->mhd = mhd;
	list_init(&c->link);
	list_init(&c->idle);
	list_add_tail(&h->strangers, &c->idle);
	h->nstrangers++;
	c->watch = (struct loop_src){.fd = -1, .fn = conn_on_hup, .arg = c};
	c->limit = (struct loop_timer){.fn = conn_on_limit, .arg = c};
	http_conn_limit(c, 1);
	/* Without the watch the client's leaving is seen only at the next byte. */
	if (loop_add(h->loop, &c->watch, conn_fd(mhd), EPOLLRDHUP | EPOLLET) < 0)
		log_warn("a client's socket cannot be watched");
}

void http_conn_notify(void *cls, struct MHD_Connection *mhd, void **ctx,
		      enum MHD_ConnectionNotificationCode code)
{
	struct http *h = cls;
	struct http_conn *c = *ctx;

	if (code == MHD_CONNECTION_NOTIFY_STARTED) {
		conn_start(h, mhd, ctx);
		return;
	}
	h->connections--;
	*ctx = NULL;
	if (!c)
		return;
	conn_nobodys(c);
	h->ncut -= c->cut;
	loop_del(&c->watch);
	loop_timer_cancel(&c->limit);
	list_del(&c->link);
	/* Our loop may still hold an event of the watch in its batch. */
	loop_defer_free(h->loop, c);
}

void http_conn_kick(struct http *h)
{
	list_for_each_safe (c, &h->hups, struct http_conn, link) {
		if (c->req && (c->req->suspended || c->req->phase == REQUEST_REPLY))
			continue; /* http_hup() has seen to it, or the reply is being sent */
		if (++c->kicks > KICKS_MAX)
			http_conn_cut(c);
		/* A resumed connection is read from, whatever its edges were. */
		MHD_suspend_connection(c->mhd);
		MHD_resume_connection(c->mhd);
		h->resumed = true;
	}
}

/* No descriptor is left: take one connection on the spare one and close it, so that it does not
 * wait. 0 or -errno. */
static int conn_refuse_one(struct http *h)
{
	int fd, rc;

	close_fd(&h->spare_fd);
	fd = accept4(h->listener.fd, NULL, NULL, SOCK_CLOEXEC);
	rc = fd < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	h->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return rc;
}

static void conn_on_rest(struct loop_timer *t)
{
	struct http *h = t->arg;

	if (loop_mod(&h->listener, EPOLLIN) < 0)
		log_warn("the listening socket cannot be watched");
}

/* Whoever waits cannot be taken, and makes the loop turn all the time: not now. */
static void conn_rest(struct http *h)
{
	if (loop_mod(&h->listener, 0) == 0)
		loop_timer_set(h->loop, &h->rest, CONN_REST_NS);
}

/* accept4() has failed. */
static void conn_not_taken(struct http *h, int rc)
{
	if (rc == -EMFILE || rc == -ENFILE)
		rc = conn_refuse_one(h);
	/* The others are a connection's own, or that there is none. */
	if (rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM || rc == -ENOBUFS)
		conn_rest(h);
}

static void conn_on_listener(struct loop_src *src, uint32_t events)
{
	static const char busy[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n"
				   "Connection: close\r\n\r\n";
	struct http *h = src->arg;

	(void)events;
	/* A bounded batch: the rest comes with the next turn of the loop. */
	for (int i = 0; i < 64; i++) {
		struct sockaddr_storage addr;
		socklen_t len = sizeof(addr);
		int one = 1, fd;

		/* Those that were cut leave when the library has run; who waits is taken then. */
		if (h->connections >= h->max_connections + HTTP_CONN_SPARE)
			break;

		fd = accept4(src->fd, (struct sockaddr *)&addr, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd < 0) {
			conn_not_taken(h, -errno);
			break;
		}
		if (!conn_make_room(h)) {
			/* Best effort: the socket is new, its buffer is empty. */
			if (io_send_some(fd, busy, sizeof(busy) - 1) < 0)
				log_warn("too many connections");
			close(fd);
			continue;
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
		/* Closes fd itself when it fails. */
		if (MHD_add_connection(h->mhd, fd, (struct sockaddr *)&addr, len) != MHD_YES)
			log_warn("a connection could not be taken: %s", strerror(errno));
	}
	/* The library plans its timeouts anew when it runs. */
	loop_timer_set(h->loop, &h->timer, 0);
}

void http_conn_init(struct http *h, unsigned int max)
{
	h->max_connections = max;
	h->nkeys = h->d->config.auth ? h->d->config.nkeys : 1;
	list_init(&h->hups);
	list_init(&h->strangers);
	for (unsigned int i = 0; i < ARRAY_SIZE(h->shares); i++)
		list_init(&h->shares[i].idle);
}

int http_conn_listen(struct http *h, struct err *err)
{
	struct config *c = &h->d->config;
	int one = 1, rc;
	_cleanup_fd int fd =
		socket(c->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return err_set(err, errno, "cannot make a socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&c->addr, c->addr_len) < 0 || listen(fd, 1024) < 0)
		return err_set(err, errno, "cannot listen on %s", c->addr_text);
	if (getsockname(fd, (struct sockaddr *)&c->addr, &c->addr_len) == 0)
		config_format_addr(&c->addr, c->addr_text, sizeof(c->addr_text));
	h->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	h->listener = (struct loop_src){.fd = -1, .fn = conn_on_listener, .arg = h};
	h->rest = (struct loop_timer){.fn = conn_on_rest, .arg = h};
	rc = loop_add(h->loop, &h->listener, fd, 0);
	if (rc < 0)
		return err_set(err, -rc, "cannot watch the listening socket");
	take_fd(&fd);
	return 0;
}

int http_conn_accept(struct http *h, struct err *err)
{
	int rc = loop_mod(&h->listener, EPOLLIN);

	return rc < 0 ? err_set(err, -rc, "cannot watch the listening socket") : 0;
}

void http_conn_stop(struct http *h)
{
	int fd = h->listener.fd;

	loop_timer_cancel(&h->rest);
	if (!h->listener.loop)
		return;
	loop_del(&h->listener);
	close(fd);
}
