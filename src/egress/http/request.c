/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Callbacks of decisions and transfers never answer by themselves: they leave
 * what they know, and wake the library, whose next call goes on from there.
 */
#include "egress/http/request.h"

#include "egress/http/reply.h"
#include "lib/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of an upload that the destination has answered before its end. */
#define DROP_MAX (256ull << 20)

static void request_suspend(struct http_request *r)
{
	if (r->suspended)
		return;
	r->suspended = true;
	MHD_suspend_connection(r->mhd);
}

static void request_wake(struct http_request *r)
{
	if (!r->suspended)
		return;
	r->suspended = false;
	MHD_resume_connection(r->mhd);
	/* Run by an external loop the library does not signal this to itself. */
	if (!r->plane->resumed)
		http_plane_soon(r->plane);
	r->plane->resumed = true;
}

void http_request_gone(struct http_request *r)
{
	r->gone = true;
	request_wake(r);
}

/* --- our own answers --------------------------------------------------------------------- */

static void request_set_reply(struct http_request *r, unsigned int status,
			      struct MHD_Response *reply)
{
	r->replied = true;
	r->status = status;
	if (reply && r->close && MHD_add_response_header(reply, "Connection", "close") != MHD_YES) {
		MHD_destroy_response(reply);
		reply = NULL;
	}
	r->reply = reply;
	if (!reply)
		r->gone = true; /* no memory for an answer: cut the connection */
	request_wake(r);
}

/* Refuses with a verdict that is there. */
static void request_deny(struct http_request *r, bool late)
{
	if (r->replied)
		return;
	request_set_reply(r, http_reply_status(r->v.reason, late), http_reply_denial(&r->q, &r->v));
}

/* Refuses with one that is found here. hint: NULL for the one of the reason. */
static void request_refuse(struct http_request *r, enum egress_reason why, const char *detail,
			   const char *hint, bool late)
{
	if (r->replied)
		return;
	r->v = (struct egress_verdict){0};
	egress_denied(r->plane->e, &r->q, why, detail, hint, &r->v);
	request_deny(r, late);
}

/* --- the way of the answer --------------------------------------------------------------- */

static ssize_t request_pull(void *cls, uint64_t pos, char *out, size_t max)
{
	struct http_request *r = cls;
	ssize_t n;

	(void)pos;
	r->plane->got_on = true;
	if (r->gone)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	n = transfer_pull(r->x, out, max);
	if (n == TRANSFER_END)
		return MHD_CONTENT_READER_END_OF_STREAM;
	if (n == TRANSFER_CUT)
		return MHD_CONTENT_READER_END_WITH_ERROR;
	if (n == TRANSFER_WAIT)
		request_suspend(r);
	return n;
}

/*
 * A failure in the middle of an upload, which may never end: the front tells it at once, in place
 * of what the destination has said already, if it has.
 */
static void request_break_off(struct http_request *r)
{
	_cleanup_free char *text = NULL;

	if (r->reply)
		MHD_destroy_response(r->reply);
	r->reply = NULL;
	r->replied = true;
	egress_denied(r->plane->e, &r->q, r->x->why, r->x->detail, NULL, &r->v);
	text = http_reply_text(&r->q, &r->v, r->x->late);
	http_front_answer(r->c->front, text);
	http_request_gone(r);
}

/* No byte of an answer has gone out. */
static bool request_is_mute(const struct http_request *r)
{
	return !r->replied || r->reply;
}

bool http_request_bad_body(struct http_request *r, const char *why, char **text)
{
	if (!request_is_mute(r))
		return false;
	if (r->reply)
		MHD_destroy_response(r->reply);
	r->reply = NULL;
	r->replied = true;
	egress_denied(r->plane->e, &r->q, EGRESS_R_BAD_REQUEST, why, NULL, &r->v);
	*text = http_reply_text(&r->q, &r->v, false);
	http_request_gone(r);
	return true;
}

/* It failed with the guest in the middle of its upload. */
static bool request_is_stuck(const struct http_request *r)
{
	return r->x->over && r->x->why != EGRESS_R_NONE && r->phase == REQUEST_BODY &&
	       request_is_mute(r) && r->c->front;
}

/* Something changed in the transfer. */
static void request_look(void *arg)
{
	struct http_request *r = arg;
	struct http_transfer *x = r->x;

	if (request_is_stuck(r))
		request_break_off(r);
	else if (!r->replied && x->head)
		request_set_reply(r, x->status, http_reply_passed(r, request_pull));
	else if (!r->replied && x->over)
		request_refuse(r, x->why, x->detail, NULL, x->late);
	else if (r->phase != REQUEST_WAIT)
		request_wake(r); /* room for the body, or bytes of the answer */
}

/* --- the head ---------------------------------------------------------------------------- */

struct take_fields {
	struct http_fields *fields;
	int rc;
};

static enum MHD_Result request_take_field(void *cls, enum MHD_ValueKind kind, const char *name,
					  size_t name_len, const char *value, size_t value_len)
{
	struct take_fields *t = cls;

	(void)kind;
	t->rc = http_fields_add(t->fields, name, name_len, value ? value : "",
				value ? value_len : 0);
	return t->rc < 0 ? MHD_NO : MHD_YES;
}

/* 0, or -EBADMSG with a refusal, or -ENOMEM. */
static int request_parse(struct http_request *r, const char *method, struct http_refusal *why)
{
	struct http_front *f = r->c->front;
	struct take_fields take = {&r->fields, 0};
	int rc;

	r->framing = f->head.framing;
	r->length = f->head.length;
	r->close = r->framing == HTTP_CHUNKED; /* front.h: it cannot see where that ends */
	r->method = strdup(method);
	if (!r->method)
		return -ENOMEM;
	r->q.method = r->method;
	MHD_get_connection_values_n(r->mhd, MHD_HEADER_KIND, request_take_field, &take);
	if (take.rc == -ENOMEM)
		return -ENOMEM;
	*why = (struct http_refusal){EGRESS_R_BAD_REQUEST, "a header is not well-formed", NULL};
	if (take.rc < 0)
		return -EBADMSG;
	rc = http_target_parse(&r->target, method, r->uri, http_fields_get(&r->fields, "Host"),
			       f->inside ? &f->origin : NULL, why);
	r->q.proto = r->target.proto;
	r->q.host_len = strlen(r->target.host);
	r->q.port = r->target.port;
	if (rc < 0)
		return rc;
	if (http_fields_upgrade(&r->fields)) {
		*why = (struct http_refusal){EGRESS_R_UPGRADE,
					     "the request asks to leave HTTP (Upgrade)",
					     "use a tunnel (CONNECT) for other protocols"};
		return -EBADMSG;
	}
	if (r->framing != HTTP_NO_BODY && strcmp(method, "HEAD") == 0) {
		*why = (struct http_refusal){EGRESS_R_BAD_REQUEST, "HEAD has a body", NULL};
		return -EBADMSG;
	}
	r->path = strndup(r->target.path, r->target.path_len);
	r->q.path = r->path;
	return r->path ? 0 : -ENOMEM;
}

static void request_pass_on(struct http_request *r)
{
	struct transfer_order o = {
		.method = r->method,
		.tls = r->target.tls,
		.host = r->v.host,
		.port = r->target.port,
		.target = r->target.path,
		.fields = &r->fields,
		.framing = r->framing,
		.length = r->length,
		.verdict = &r->v,
		.kept = &r->c->kept,
		.look = request_look,
		.arg = r,
	};
	int rc = 0;

	http_fields_end_hop(&r->fields, true);
	if (r->v.inject)
		rc = http_fields_inject(&r->fields, r->v.inject);
	if (rc < 0) {
		egress_done(r->v.grant, EGRESS_R_NONE);
		request_set_reply(r, 0, NULL);
		return;
	}
	if (transfer_start(&r->x, &r->plane->up, &o) < 0)
		request_set_reply(r, 0, NULL);
	http_fields_free(&r->fields);
}

static void request_decided(void *arg, const struct egress_verdict *v)
{
	struct http_request *r = arg;

	r->asking = NULL;
	r->decided = true;
	r->v = *v;
	if (v->allow)
		request_pass_on(r);
	else
		request_deny(r, false);
	request_wake(r);
}

static void request_check(struct http_request *r, const char *method)
{
	struct http_refusal why;
	struct egress_asking *asking;
	int rc;

	r->checked = true;
	r->q.host = r->target.host;
	r->q.stream = r->c->front->stream;
	rc = request_parse(r, method, &why);
	if (rc == -ENOMEM)
		request_set_reply(r, 0, NULL);
	else if (rc < 0)
		request_refuse(r, why.reason, why.detail, why.hint, false);
	if (rc < 0)
		return;
	/* A policy's first request loads its certificates: not in the time of the grant. */
	upstream_pool_put(upstream_pool_get(&r->plane->up));
	asking = egress_ask(r->plane->e, &r->q, request_decided, r);
	if (!r->decided)
		r->asking = asking;
}

/* --- the library's calls ----------------------------------------------------------------- */

void *http_request_new(void *cls, const char *uri, struct MHD_Connection *mhd)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct http_conn *c = info ? info->socket_context : NULL;
	struct http_request *r = c ? calloc(1, sizeof(*r)) : NULL;

	if (!r)
		return NULL;
	r->uri = strdup(uri ? uri : "");
	if (!r->uri) {
		free(r);
		return NULL;
	}
	for (char *p = r->uri; (p = strchr(p, '#'));)
		*p = '?'; /* front_hide_query() */
	r->plane = cls;
	r->c = c;
	r->mhd = mhd;
	c->req = r;
	c->kicks = 0;
	list_add_tail(&r->plane->requests, &r->link);
	return r;
}

static enum MHD_Result request_queue(struct http_request *r)
{
	enum MHD_Result ok = MHD_queue_response(r->mhd, r->status, r->reply);

	MHD_destroy_response(r->reply);
	r->reply = NULL;
	r->phase = REQUEST_REPLY;
	return ok;
}

static enum MHD_Result request_on_head(struct http_request *r, const char *method)
{
	if (!r->checked) {
		if (!r->c->front)
			return MHD_NO;
		request_check(r, method);
	}
	if (r->gone)
		return MHD_NO;
	/* Queued in this call it ends the connection, which is right only in front of a body. */
	if (r->reply && r->framing != HTTP_NO_BODY)
		return request_queue(r);
	if (!r->x && !r->reply) {
		request_suspend(r);
		return MHD_YES;
	}
	r->phase = REQUEST_BODY;
	return MHD_YES;
}

static enum MHD_Result request_on_body(struct http_request *r, const char *data, size_t *len)
{
	if (r->x->up_over) {
		r->dropped += *len;
		*len = 0;
		transfer_drop(r->x);
		return r->dropped > DROP_MAX ? MHD_NO : MHD_YES;
	}
	*len -= transfer_feed(r->x, data, *len);
	if (*len)
		request_suspend(r);
	return MHD_YES;
}

enum MHD_Result http_request_call(void *cls, struct MHD_Connection *mhd, const char *url,
				  const char *method, const char *version, const char *data,
				  size_t *len, void **ctx)
{
	struct http_request *r = *ctx;
	struct http_plane *p = cls;

	(void)mhd;
	(void)url;
	(void)version;
	p->got_on = true;
	if (!r || r->gone)
		return MHD_NO;
	if (r->phase == REQUEST_HEAD)
		return request_on_head(r, method);
	if (*len)
		return request_on_body(r, data, len);
	if (r->phase == REQUEST_BODY) {
		r->phase = REQUEST_WAIT;
		if (r->x)
			transfer_feed_end(r->x);
	}
	if (r->gone)
		return MHD_NO;
	if (r->reply)
		return request_queue(r);
	request_suspend(r);
	return MHD_YES;
}

void http_request_completed(void *cls, struct MHD_Connection *mhd, void **ctx,
			    enum MHD_RequestTerminationCode code)
{
	struct http_request *r = *ctx;

	(void)cls;
	(void)mhd;
	(void)code;
	*ctx = NULL;
	http_request_free(r);
}

void http_request_free(struct http_request *r)
{
	if (!r)
		return;
	egress_give_up(r->asking);
	transfer_free(r->x);
	if (r->reply)
		MHD_destroy_response(r->reply);
	r->c->req = NULL;
	if (r->c->front)
		http_front_request_done(r->c->front);
	list_del(&r->link);
	http_fields_free(&r->fields);
	free(r->uri);
	free(r->method);
	free(r->path);
	free(r);
}
