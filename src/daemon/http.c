/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The library's side of HTTP: listening socket, running libmicrohttpd from the
 * loop, and the life of a request from its first header to its last byte.
 *
 * Order of calls of the access handler for one request: once with the headers
 * (phase HEAD; never suspended there, the library would repeat the call), then
 * for each piece of body, then once more when all is there, and again after
 * each resume until a reply is queued. The library lets a reply be queued only
 * in the first and in the last of these: an error in the middle of a body is
 * kept, the rest of the body is dropped, and then it is sent.
 */
#define _GNU_SOURCE
#include "daemon/http.h"
#include "daemon/daemon.h"
#include "daemon/intake.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* So many runs of the library that came to nothing, and it waits so long for the next. */
#define HTTP_VAIN_MAX 64u
#define HTTP_VAIN_NS  (SECOND_NS / 50)

/*
 * When the library wants to be run again. Where a chunk's size line is longer than its memory for
 * the connection it does so at once, for ever, and does not get on: such a client, known or not,
 * would have the whole processor until the connection's time is over. Whatever else happens runs it
 * without this timer.
 */
static uint64_t http_delay(struct http *h, uint64_t ms)
{
	if (ms || h->got_on)
		h->vain = 0;
	else if (h->vain < HTTP_VAIN_MAX)
		h->vain++;
	else
		return HTTP_VAIN_NS;
	return ms * 1000000;
}

/* Runs the library and plans its next turn. */
static void http_run(struct http *h)
{
	MHD_UNSIGNED_LONG_LONG ms;

	h->resumed = h->got_on = false;
	http_line_turn(h);
	MHD_run(h->mhd);
	http_conn_kick(h);
	if (h->resumed) /* from a callback, behind the library's look at resumed connections */
		loop_timer_set(h->loop, &h->timer, 0);
	else if (MHD_get_timeout(h->mhd, &ms) == MHD_YES)
		loop_timer_set(h->loop, &h->timer, http_delay(h, ms));
	else
		loop_timer_cancel(&h->timer);
}

static void http_on_mhd(struct loop_src *src, uint32_t events)
{
	(void)events;
	http_run(src->arg);
}

static void http_on_timer(struct loop_timer *t)
{
	http_run(t->arg);
}

void http_hup(struct request *r)
{
	bool streams = r->phase == REQUEST_REPLY && r->ops && r->ops->pull;

	if (r->gone || (!r->suspended && !streams))
		return; /* it reads its body, or sends an answer that is there */
	r->gone = true;
	http_conn_cut(r->c);
	http_wake(r);
}

static void http_suspend(struct request *r)
{
	if (r->suspended)
		return;
	r->suspended = true;
	MHD_suspend_connection(r->conn);
	if (r->c->hup)
		http_hup(r);
}

void http_wake(struct request *r)
{
	if (!r->suspended)
		return;
	r->suspended = false;
	MHD_resume_connection(r->conn);
	/* Run by an external loop the library does not signal this to itself. */
	if (!r->http->resumed)
		loop_timer_set(r->http->loop, &r->http->timer, 0);
	r->http->resumed = true;
}

/* No memory for an answer: what the client sees of it is the end of its connection. */
static void http_give_up(struct request *r)
{
	r->gone = true;
	http_conn_cut(r->c);
	http_wake(r);
}

/* --- the library's callbacks ------------------------------------------------------------- */

/* First sight of a request: the target as it came. What is returned becomes the context. */
static void *http_on_uri(void *cls, const char *uri, struct MHD_Connection *conn)
{
	struct http *h = cls;
	struct http_conn *c = http_conn_of(conn);
	struct request *r = c ? calloc(1, sizeof(*r)) : NULL;

	h->got_on = true;
	if (!r)
		return NULL;
	r->uri = strdup(uri ? uri : "");
	if (!r->uri) {
		free(r);
		return NULL;
	}
	r->c = c;
	c->req = r;
	r->query = strchr(r->uri, '?');
	if (r->query)
		*r->query++ = '\0';
	r->http = h;
	r->conn = conn;
	r->start_ns = io_now_ns();
	list_init(&r->waits);
	buf_init_secret(&r->body, LIMIT_JSON_BODY);
	list_add_tail(&h->requests, &r->link);
	return r;
}

static enum MHD_Result http_queue(struct request *r)
{
	enum MHD_Result ok = MHD_queue_response(r->conn, r->status, r->reply);

	MHD_destroy_response(r->reply);
	r->reply = NULL;
	r->phase = REQUEST_REPLY;
	return ok;
}

static enum MHD_Result http_on_body(struct request *r, const char *data, size_t *len)
{
	size_t n = *len;

	if (r->reply && !r->discard) {
		r->discard = true;
		r->discard_left = UINT64_MAX; /* an error in the middle of an upload */
	}
	if (r->discard) {
		if (n > r->discard_left)
			return MHD_NO;
		r->discard_left -= n;
		*len = 0;
		return MHD_YES;
	}
	if (r->ops && r->ops->body) {
		*len -= r->ops->body(r, data, n);
		if (r->reply)
			*len = 0; /* an error: this piece is dropped like those that follow */
		else if (*len)
			http_suspend(r);
		return MHD_YES;
	}
	intake_body(r, data, n);
	*len = 0;
	return MHD_YES;
}

/* The head is there: how long the body may take. */
static void http_plan_body(struct request *r)
{
	if (r->discard)
		http_conn_limit(r->c, 1);
	else if (r->reply || r->match.route->begin)
		http_conn_limit(r->c, 0);
	else
		http_conn_limit(r->c, LIMIT_HTTP_JSON);
}

static enum MHD_Result http_on_request(void *cls, struct MHD_Connection *conn, const char *url,
				       const char *method, const char *version, const char *data,
				       size_t *len, void **ctx)
{
	struct request *r = *ctx;
	enum MHD_Result ok;

	(void)cls;
	(void)conn;
	(void)url;
	(void)version;
	if (!r || r->gone || r->http->closing)
		return MHD_NO;
	r->http->got_on = true;
	r->c->kicks = 0;
	if (r->phase == REQUEST_HEAD) {
		r->phase = REQUEST_BODY;
		intake_head(r, method);
		if (r->gone) /* an answer for which there was no memory: no route need be known */
			return MHD_NO;
		http_plan_body(r);
		if (r->reply && !r->discard)
			return http_queue(r);
		return r->gone ? MHD_NO : MHD_YES;
	}
	if (*len) {
		ok = http_on_body(r, data, len);
		return r->gone ? MHD_NO : ok;
	}
	if (r->phase == REQUEST_BODY) {
		r->phase = REQUEST_WAIT;
		http_conn_limit(r->c, 0);
		http_line_enter(r);
	}
	if (r->reply)
		return http_queue(r);
	if (r->gone)
		return MHD_NO;
	http_suspend(r);
	return MHD_YES;
}

static void http_on_completed(void *cls, struct MHD_Connection *conn, void **ctx,
			      enum MHD_RequestTerminationCode code)
{
	struct request *r = *ctx;

	(void)cls;
	*ctx = NULL;
	if (!r)
		return;
	r->http->got_on = true;
	r->c->req = NULL;
	r->c->kicks = 0;
	http_conn_idle(r->c);
	http_conn_limit(r->c, 1); /* for the next head */
	if (r->ops && r->ops->pull && code == MHD_REQUEST_TERMINATED_COMPLETED_OK)
		MHD_set_connection_option(conn, MHD_CONNECTION_OPTION_TIMEOUT,
					  (unsigned int)r->http->d->config.http_timeout_s);
	if (r->ops && r->ops->end)
		r->ops->end(r);
	intake_log(r, code == MHD_REQUEST_TERMINATED_COMPLETED_OK);
	if (r->reply)
		MHD_destroy_response(r->reply);
	list_del(&r->link);
	http_line_leave(r);
	intake_drop_body(r);
	held_give(intake_held(r), r->held_reply);
	free(r->uri);
	free(r);
}

static ssize_t http_pull(void *cls, uint64_t pos, char *out, size_t max)
{
	struct request *r = cls;
	ssize_t n;

	(void)pos;
	r->http->got_on = true;
	if (r->gone)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	n = r->ops->pull(r, out, max);
	if (n == PULL_END)
		return MHD_CONTENT_READER_END_OF_STREAM;
	if (n == PULL_ABORT)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	if (n == PULL_WAIT)
		http_suspend(r);
	return n;
}

/* Targets and parameters are decoded by us; the library must leave them alone. */
static size_t http_keep_escapes(void *cls, struct MHD_Connection *conn, char *s)
{
	(void)cls;
	(void)conn;
	return strlen(s);
}

/* --- answers ----------------------------------------------------------------------------- */

/* False: no memory, and an answer without one of its headers is another one. */
static bool http_add_headers(struct MHD_Response *resp, const char *const *headers)
{
	for (; headers && headers[0]; headers += 2)
		if (MHD_add_response_header(resp, headers[0], headers[1]) != MHD_YES)
			return false;
	return true;
}

/* The reply with all its headers, or none. resp: ours from now on, or NULL. */
static void http_finish_reply(struct request *r, unsigned int status, struct MHD_Response *resp,
			      const char *type, const char *const *more, const char *const *headers)
{
	const char *const of_type[] = {"Content-Type", type, NULL};

	/* The first answer stands, and whether there is memory for another is no matter. */
	if (r->reply || r->phase == REQUEST_REPLY) {
		if (resp)
			MHD_destroy_response(resp);
		return;
	}
	if (resp && (!type || http_add_headers(resp, of_type)) && http_add_headers(resp, more) &&
	    http_add_headers(resp, headers)) {
		r->reply = resp;
		r->status = status;
		http_wake(r);
		return;
	}
	if (resp)
		MHD_destroy_response(resp);
	http_give_up(r);
}

/* What comes from a guest is for the client that asked, and is what we say that it is. */
static const char *const of_a_guest[] = {"Cache-Control", "no-store", "X-Content-Type-Options",
					 "nosniff", NULL};

/* An answer of this length is held until the client has it. False: too much is held already. */
static bool http_hold_reply(struct request *r, size_t len)
{
	if (len <= LIMIT_HELD_SMALL || r->reply || r->phase == REQUEST_REPLY)
		return true;
	if (held_take(intake_held(r), len) < 0)
		return false;
	r->held_reply += len;
	return true;
}

static void http_reply_bytes(struct request *r, unsigned int status, const char *type,
			     const void *data, size_t len, const char *const *more,
			     const char *const *headers)
{
	struct MHD_Response *resp;

	if (!http_hold_reply(r, len)) {
		reply_overloaded(r);
		return;
	}
	resp = MHD_create_response_from_buffer(len, (void *)(uintptr_t)data, MHD_RESPMEM_MUST_COPY);
	http_finish_reply(r, status, resp, type, more, headers);
}

void http_reply(struct request *r, unsigned int status, const char *type, const void *data,
		size_t len, const char *const *headers)
{
	http_reply_bytes(r, status, type, data, len, NULL, headers);
}

void http_reply_whole(struct request *r, unsigned int status, const char *type, const void *data,
		      size_t len, const char *const *headers)
{
	http_reply_bytes(r, status, type, data, len, of_a_guest, headers);
}

void http_reply_stream(struct request *r, unsigned int status, const char *type, int64_t size,
		       const char *const *headers)
{
	uint64_t total = size < 0 ? MHD_SIZE_UNKNOWN : (uint64_t)size;
	/* Chunks are made in the connection's own memory; the block is for HTTP/1.0 only. */
	size_t block = size < 0 ? 4096 : LIMIT_STREAM_BLOCK;
	struct MHD_Response *resp =
		MHD_create_response_from_callback(total, block, http_pull, r, NULL);

	/* The library ends even the body that HEAD does not have with an empty chunk. */
	if (resp && size < 0 && strcmp(r->method, "HEAD") == 0)
		MHD_set_response_options(resp, MHD_RF_HTTP_VERSION_1_0_ONLY, MHD_RO_END);
	MHD_set_connection_option(r->conn, MHD_CONNECTION_OPTION_TIMEOUT, LIMIT_HTTP_STALL_S);
	http_finish_reply(r, status, resp, type, of_a_guest, headers);
}

static void http_on_upgrade(void *cls, struct MHD_Connection *conn, void *ctx, const char *extra,
			    size_t len, MHD_socket fd, struct MHD_UpgradeResponseHandle *handle)
{
	struct request *r = cls;
	int flags = fcntl(fd, F_GETFL);

	(void)conn;
	(void)ctx;
	r->upgraded = handle;
	/* Its end is seen by who reads it. */
	loop_del(&r->c->watch);
	if (r->gone || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		http_upgrade_close(r);
	else
		r->ops->upgraded(r, fd, extra, len);
}

void http_reply_upgrade(struct request *r, const char *const *headers)
{
	struct MHD_Response *resp = MHD_create_response_for_upgrade(http_on_upgrade, r);

	http_finish_reply(r, 101, resp, NULL, NULL, headers);
}

void http_upgrade_close(struct request *r)
{
	struct MHD_UpgradeResponseHandle *handle = r->upgraded;

	if (!handle)
		return;
	r->upgraded = NULL;
	MHD_upgrade_action(handle, MHD_UPGRADE_ACTION_CLOSE);
	/* As after a resume. */
	if (!r->http->resumed)
		loop_timer_set(r->http->loop, &r->http->timer, 0);
	r->http->resumed = true;
}

const char *http_header(struct request *r, const char *name)
{
	return MHD_lookup_connection_value(r->conn, MHD_HEADER_KIND, name);
}

/* --- start and stop ---------------------------------------------------------------------- */

static void http_panic(void *cls, const char *file, unsigned int line, const char *reason)
{
	(void)cls;
	log_error("libmicrohttpd cannot go on (%s:%u): %s", file, line, reason ? reason : "?");
	abort();
}

int http_init(struct http *h, struct daemon *d, unsigned int max_connections, struct err *err)
{
	const union MHD_DaemonInfo *info;
	int rc;

	*h = (struct http){.d = d, .loop = &d->loop};
	list_init(&h->requests);
	http_conn_init(h, max_connections);
	intake_init(h);
	http_line_init(h);
	h->listener.fd = h->mhd_src.fd = -1;
	h->timer = (struct loop_timer){.fn = http_on_timer, .arg = h};
	h->spare_fd = -1;
	MHD_set_panic_func(http_panic, NULL);
	h->mhd = MHD_start_daemon(
		MHD_USE_EPOLL | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME |
			MHD_ALLOW_UPGRADE,
		0, NULL, NULL, http_on_request, h, MHD_OPTION_URI_LOG_CALLBACK, http_on_uri, h,
		MHD_OPTION_NOTIFY_COMPLETED, http_on_completed, h, MHD_OPTION_NOTIFY_CONNECTION,
		http_conn_notify, h, MHD_OPTION_UNESCAPE_CALLBACK, http_keep_escapes, h,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)LIMIT_HTTP_MEMORY,
		MHD_OPTION_CONNECTION_LIMIT, max_connections + HTTP_CONN_SPARE,
		MHD_OPTION_CONNECTION_TIMEOUT, (unsigned int)d->config.http_timeout_s,
		MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
	if (!h->mhd)
		return err_set(err, errno ? errno : ENOMEM, "cannot start the HTTP server");
	info = MHD_get_daemon_info(h->mhd, MHD_DAEMON_INFO_EPOLL_FD);
	h->mhd_src = (struct loop_src){.fd = -1, .fn = http_on_mhd, .arg = h};
	rc = info ? loop_add(h->loop, &h->mhd_src, info->epoll_fd, EPOLLIN) : -ENOTSUP;
	if (rc < 0)
		return err_set(err, -rc, "cannot watch the HTTP server");
	return http_conn_listen(h, err);
}

void http_free(struct http *h)
{
	http_conn_stop(h);
	h->closing = true;
	if (h->mhd) {
		/* The library must have no suspended or upgraded connection when it is stopped; and
		 * the next request of a kept connection may begin in this run. */
		list_for_each (r, &h->requests, struct request, link) {
			r->gone = true;
			http_upgrade_close(r);
			http_wake(r);
		}
		MHD_run(h->mhd);
		loop_del(&h->mhd_src);
		MHD_stop_daemon(h->mhd);
		h->mhd = NULL;
	}
	intake_stop(h);
	loop_timer_cancel(&h->timer);
	http_line_stop(h);
	close_fd(&h->spare_fd);
}
