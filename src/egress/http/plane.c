/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's side: running it from the loop, its connections, and the calls
 * of the rest of the proxy. It has no thread and no listening socket; its epoll
 * descriptor is a source in our loop, and it has no timeouts of its own (fronts
 * have them).
 *
 * It misses the end of a connection when that came together with the last bytes, or while the
 * connection is suspended: connections whose front is gone are made to read until they notice.
 */
#include "egress/http/plane_impl.h"

#include "egress/http/intercept.h"
#include "egress/http/request.h"
#include "lib/log.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define KICKS_MAX 64u

/* So many runs of the library that came to nothing, and it waits so long for the next. */
#define VAIN_MAX 64u
#define VAIN_NS  20000000ull

void http_plane_soon(struct http_plane *p)
{
	loop_timer_set(p->loop, &p->timer, 0);
}

/* Connections without a front must read once more, until they have seen the end themselves. */
static void plane_kick(struct http_plane *p)
{
	list_for_each_safe (c, &p->left, struct http_conn, link) {
		if (c->req && c->req->suspended)
			continue; /* it was resumed, or will be */
		if (++c->kicks > KICKS_MAX) {
			log_warn("the HTTP library does not let go of a connection");
			list_del(&c->link);
			continue;
		}
		MHD_suspend_connection(c->mhd);
		MHD_resume_connection(c->mhd);
		p->resumed = true;
	}
}

/*
 * When the library wants to be run again. Where what it reads does not fit into its memory for the
 * connection it may do so at once, for ever, and not get on. What is known to bring it there is
 * refused before (chunks.h); this is for what is not. Whatever else happens runs it without this
 * timer.
 */
static uint64_t plane_delay(struct http_plane *p, uint64_t ms)
{
	if (ms || p->got_on)
		p->vain = 0;
	else if (p->vain < VAIN_MAX)
		p->vain++;
	else
		return VAIN_NS;
	return ms * 1000000ull;
}

static void plane_run(struct http_plane *p)
{
	MHD_UNSIGNED_LONG_LONG ms;

	p->resumed = p->got_on = false;
	MHD_run(p->mhd);
	plane_kick(p);
	if (p->resumed) /* from a callback, behind the library's look at resumed connections */
		http_plane_soon(p);
	else if (MHD_get_timeout(p->mhd, &ms) == MHD_YES)
		loop_timer_set(p->loop, &p->timer, plane_delay(p, ms));
	else
		loop_timer_cancel(&p->timer);
}

static void plane_on_mhd(struct loop_src *src, uint32_t events)
{
	(void)events;
	plane_run(src->arg);
}

static void plane_on_timer(struct loop_timer *t)
{
	plane_run(t->arg);
}

/* --- connections ------------------------------------------------------------------------- */

int http_plane_add(struct http_plane *p, int fd)
{
	/* It keeps an address for its user, who is us. */
	struct sockaddr_in none = {.sin_family = AF_INET};

	if (MHD_add_connection(p->mhd, fd, (struct sockaddr *)&none, sizeof(none)) != MHD_YES)
		return errno ? -errno : -ENOMEM;
	http_plane_soon(p);
	return 0;
}

static int conn_fd(struct MHD_Connection *mhd)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);

	return info ? info->connect_fd : -1;
}

/* The one whose end of the library that is, or NULL. */
static struct http_front *front_of(struct http_plane *p, int fd)
{
	list_for_each (f, &p->fronts, struct http_front, link)
		if (fd >= 0 && f->lib_fd == fd)
			return f;
	return NULL;
}

static void conn_start(struct http_plane *p, struct MHD_Connection *mhd, void **ctx)
{
	struct http_conn *c = calloc(1, sizeof(*c));
	struct http_front *f = front_of(p, conn_fd(mhd));

	/* From now on the number may come to be another's, who is not to be taken for this one. */
	if (f)
		f->lib_fd = -1;
	*ctx = c; /* NULL: its first request is given up */
	if (!c)
		return;
	c->plane = p;
	c->mhd = mhd;
	upstream_kept_init(&p->up, &c->kept);
	list_init(&c->link);
	c->front = f;
	if (f)
		f->conn = c;
	else
		list_add_tail(&p->left, &c->link); /* it has gone already */
}

static void conn_notify(void *cls, struct MHD_Connection *mhd, void **ctx,
			enum MHD_ConnectionNotificationCode code)
{
	struct http_plane *p = cls;
	struct http_conn *c = *ctx;

	p->got_on = true;
	if (code == MHD_CONNECTION_NOTIFY_STARTED) {
		conn_start(p, mhd, ctx);
		return;
	}
	*ctx = NULL;
	if (!c)
		return;
	/* Of a request that it breaks off while it parses, the library tells the beginning only. */
	http_request_free(c->req);
	if (c->front)
		c->front->conn = NULL;
	list_del(&c->link);
	upstream_kept_free(&c->kept);
	free(c);
}

void http_conn_front_gone(struct http_conn *c)
{
	c->front = NULL;
	list_add_tail(&c->plane->left, &c->link);
	if (c->req)
		http_request_gone(c->req);
	http_plane_soon(c->plane);
}

/* --- the calls of the proxy -------------------------------------------------------------- */

void http_plane_take(struct http_plane *p, int fd, uint64_t stream, const char *exec,
		     const struct http_origin *origin)
{
	(void)exec; /* egress_stream_begin() knows it */
	if (http_front_new(p, fd, stream, origin, NULL) == 0)
		return;
	log_warn("a connection could not be taken");
	close(fd);
	egress_stream_end(p->e, stream);
}

void intercept_take(struct http_plane *p, int fd, uint64_t stream, const char *host, uint16_t port)
{
	struct http_origin origin = {"https", host, port};
	SSL *ssl = p->intercept ? intercept_session(p->intercept) : NULL;

	if (ssl && http_front_new(p, fd, stream, &origin, ssl) == 0)
		return;
	SSL_free(ssl);
	log_warn("a tunnel could not be opened");
	close(fd);
	egress_stream_end(p->e, stream);
}

int http_plane_use_ca(struct http_plane *p, const json_t *ca, json_t **out, struct err *err)
{
	if (!p->intercept) {
		p->intercept = intercept_new(p->e, err);
		if (!p->intercept)
			return -err->num;
	}
	return intercept_use(p->intercept, ca, out, err);
}

void http_plane_spare(struct http_plane *p, size_t most)
{
	upstream_spare(&p->up, most);
}

void http_plane_new_policy(struct http_plane *p)
{
	upstream_forget(&p->up);
}

/* --- start and end ----------------------------------------------------------------------- */

static void plane_panic(void *cls, const char *file, unsigned int line, const char *reason)
{
	(void)cls;
	log_error("libmicrohttpd cannot go on (%s:%u): %s", file, line, reason ? reason : "?");
	abort();
}

/* Its messages quote what the guest sent; what matters of them is told by us. */
static void plane_no_log(void *cls, const char *fmt, va_list args)
{
	(void)cls;
	(void)fmt;
	(void)args;
}

/* Targets are looked at by us; the library must leave them alone. */
static size_t plane_keep_escapes(void *cls, struct MHD_Connection *conn, char *s)
{
	(void)cls;
	(void)conn;
	return strlen(s);
}

struct http_plane *http_plane_new(struct loop *loop, struct egress *e, struct err *err)
{
	struct http_plane *p = calloc(1, sizeof(*p));
	const union MHD_DaemonInfo *info;

	if (!p) {
		err_text(err, ENOMEM, "no memory for the HTTP plane");
		return NULL;
	}
	p->loop = loop;
	p->e = e;
	list_init(&p->fronts);
	list_init(&p->left);
	list_init(&p->requests);
	p->timer = (struct loop_timer){.fn = plane_on_timer, .arg = p};
	p->mhd_src = (struct loop_src){.fd = -1, .fn = plane_on_mhd, .arg = p};
	if (upstream_init(&p->up, loop, e, err) < 0) {
		free(p);
		return NULL;
	}
	MHD_set_panic_func(plane_panic, NULL);
	/* The logger first: the options behind it may want it. */
	p->mhd = MHD_start_daemon(
		MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME, 0, NULL, NULL,
		http_request_call, p, MHD_OPTION_EXTERNAL_LOGGER, plane_no_log, NULL,
		MHD_OPTION_URI_LOG_CALLBACK, http_request_new, p, MHD_OPTION_NOTIFY_COMPLETED,
		http_request_completed, p, MHD_OPTION_NOTIFY_CONNECTION, conn_notify, p,
		MHD_OPTION_UNESCAPE_CALLBACK, plane_keep_escapes, NULL,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HTTP_MEMORY,
		MHD_OPTION_CONNECTION_LIMIT, HTTP_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT, 0u,
		MHD_OPTION_END);
	info = p->mhd ? MHD_get_daemon_info(p->mhd, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
	if (!info || loop_add(loop, &p->mhd_src, info->epoll_fd, EPOLLIN) < 0) {
		err_text(err, ENOMEM, "the HTTP plane cannot be started");
		http_plane_free(p);
		return NULL;
	}
	return p;
}

void http_plane_free(struct http_plane *p)
{
	if (!p)
		return;
	list_for_each_safe (f, &p->fronts, struct http_front, link)
		http_front_free(f);
	if (p->mhd) {
		/* The library must have no suspended connection when it is stopped. */
		list_for_each (r, &p->requests, struct http_request, link)
			http_request_gone(r);
		MHD_run(p->mhd);
		loop_del(&p->mhd_src);
		MHD_stop_daemon(p->mhd);
	}
	loop_timer_cancel(&p->timer);
	upstream_free(&p->up);
	intercept_free(p->intercept);
	free(p);
}
