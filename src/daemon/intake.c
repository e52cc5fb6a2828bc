/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Common part of all requests. libmicrohttpd is lenient in what it accepts as
 * framing; whatever two readers could understand differently is refused here.
 */
#include "daemon/intake.h"
#include "daemon/api.h"
#include "daemon/auth.h"
#include "daemon/daemon.h"
#include "daemon/http_conn.h"
#include "daemon/limits.h"
#include "daemon/reply.h"
#include "daemon/trace.h"
#include "lib/io.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

void intake_init(struct http *h)
{
	const struct daemon *d = h->d;

	log_budget_init(&h->log_strangers, h->loop, "strangers", LOG_STRANGERS_BURST,
			LOG_STRANGERS_SECOND);
	for (unsigned int i = 0; i < CONFIG_KEYS_MAX; i++)
		log_budget_init(&h->log_known[i], h->loop,
				d->config.auth ? d->owners.name[i] : "all", LOG_KNOWN_BURST,
				LOG_KNOWN_SECOND);
}

void intake_stop(struct http *h)
{
	log_budget_stop(&h->log_strangers);
	for (unsigned int i = 0; i < CONFIG_KEYS_MAX; i++)
		log_budget_stop(&h->log_known[i]);
}

/* What the head says about the body. */
struct framing {
	unsigned int lengths, encodings, bad_names;
	bool chunked;
	uint64_t length;
};

/*
 * The library takes what a folded line continues (RFC 9112, section 5.2) for the end of the
 * header's name: it sees "Content-Lengthx" where others see a length. Nothing else is called like
 * that.
 */
static bool framing_folded(const char *key, const char *name)
{
	size_t n = strlen(name);

	return strncasecmp(key, name, n) == 0 && key[n];
}

static enum MHD_Result framing_header(void *cls, enum MHD_ValueKind kind, const char *key,
				      const char *value)
{
	struct framing *f = cls;
	size_t n = strlen(key);

	(void)kind;
	for (size_t i = 0; i < n; i++)
		if (key[i] <= ' ' || key[i] == 0x7f)
			f->bad_names++;
	f->bad_names +=
		framing_folded(key, "Content-Length") || framing_folded(key, "Transfer-Encoding");
	if (strcasecmp(key, "Content-Length") == 0) {
		f->lengths++;
		f->length = value ? strtoull(value, NULL, 10) : 0;
	} else if (strcasecmp(key, "Transfer-Encoding") == 0) {
		f->encodings++;
		f->chunked = value && strcasecmp(value, "chunked") == 0;
	}
	return MHD_YES;
}

/*
 * After an error in the head: a body that is small enough is read and dropped,
 * so that a client that only reads after sending gets the answer instead of a
 * reset connection.
 */
static void intake_discard(struct request *r, const struct framing *f, uint64_t budget)
{
	if (http_header(r, "Expect") || (!f->chunked && f->length == 0))
		return;
	if (!f->chunked && f->length > budget)
		return;
	r->discard = true;
	r->discard_left = budget;
}

static bool intake_framing(struct request *r, const struct framing *f)
{
	if (f->lengths > 1 || f->encodings > 1 || (f->lengths && f->encodings)) {
		reply_error(r, 400, "invalid_request",
			    "the length of the body is given more than once", NULL, NULL);
		return false;
	}
	if (f->encodings && !f->chunked) {
		reply_error(r, 501, "not_implemented",
			    "the only transfer encoding known is chunked", NULL, NULL);
		return false;
	}
	if (f->bad_names) {
		reply_error(r, 400, "invalid_request",
			    "a header has a blank in its name, or a folded line", NULL, NULL);
		return false;
	}
	return true;
}

static bool intake_auth(struct request *r)
{
	static const char *const challenge[] = {"WWW-Authenticate", "Bearer", NULL};

	const struct daemon *d = r->http->d;
	unsigned int key = 0;

	switch (auth_check(&d->config, http_header(r, "Authorization"), http_header(r, "Origin"),
			   http_header(r, "Host"), &key)) {
	case AUTH_OK:
		if (!http_conn_known(r->c, key)) {
			reply_error(r, 503, "overloaded",
				    "this key has half of all connections, and a request is under "
				    "way on each of them",
				    NULL, NULL);
			return false;
		}
		r->log = &r->http->log_known[key];
		r->owner = d->config.auth ? d->owners.name[key] : OWNER_ANY;
		return true;
	case AUTH_MISSING:
		reply_error_with(r, 401, "missing_api_key", "missing Authorization: Bearer <key>",
				 NULL, NULL, challenge);
		return false;
	case AUTH_INVALID:
		reply_error_with(r, 401, "invalid_api_key", "invalid api key", NULL, NULL,
				 challenge);
		return false;
	case AUTH_ORIGIN:
		break;
	}
	reply_error(
		r, 403, "foreign_origin", "requests from web pages of other origins are refused",
		d->config.auth_disabled
			? "name the address it is called by with --public-addr"
			: "set PODFLARE_API_KEYS and send a key to call this daemon from elsewhere",
		NULL);
	return false;
}

/* Finds the endpoint; the path of a route that needs no key is found before the key is asked for.
 */
static bool intake_route(struct request *r, const char *method, bool *stranger)
{
	enum route_result found =
		route_find(api_routes, api_route_count, method, r->uri, &r->match);
	char text[160];

	if (found != ROUTE_OK || !r->match.route->open) {
		if (!intake_auth(r)) {
			*stranger = true;
			return false;
		}
	}
	if (found == ROUTE_NOT_FOUND) {
		reply_error(r, 404, "not_found", "no such endpoint", NULL, NULL);
	} else if (found == ROUTE_BAD_METHOD) {
		const char *const allow[] = {"Allow", r->match.allow, NULL};

		snprintf(text, sizeof(text), "this endpoint takes %s", r->match.allow);
		reply_error_with(r, 405, "method_not_allowed", text, NULL, NULL, allow);
	}
	return found == ROUTE_OK;
}

void intake_head(struct request *r, const char *method)
{
	struct framing f = {0};
	bool stranger = false, ok;

	snprintf(r->method, sizeof(r->method), "%s", method);
	trace_parse(http_header(r, "traceparent"), r->trace_id, r->parent_span);
	MHD_get_connection_values(r->conn, MHD_HEADER_KIND, framing_header, &f);
	ok = intake_framing(r, &f);
	if (!ok)
		return; /* the body's end is not known: the connection closes */
	if (!intake_route(r, method, &stranger)) {
		intake_discard(r, &f, stranger ? LIMIT_DISCARD_STRANGER : LIMIT_DISCARD);
		return;
	}
	if (r->match.route->open) {
		/* Anybody may ask: nothing is held for who has shown no key. */
		r->discard = true;
		r->discard_left = LIMIT_DISCARD_STRANGER;
		return;
	}
	if (!r->match.route->begin && f.length > LIMIT_JSON_BODY)
		reply_too_large(r);
	else if (r->match.route->begin)
		r->match.route->begin(r);
	if (r->reply)
		intake_discard(r, &f, LIMIT_DISCARD);
}

struct held *intake_held(struct request *r)
{
	return owners_held(&r->http->d->owners, r->owner, &r->http->d->held);
}

void intake_body(struct request *r, const void *data, size_t len)
{
	size_t all = buf_len(&r->body) + len;
	size_t more = all > LIMIT_HELD_SMALL ? all - r->held_body : 0;
	int rc = held_take(intake_held(r), more);

	if (rc == 0) {
		r->held_body += more;
		rc = buf_append(&r->body, data, len);
	}
	if (rc == 0)
		return;
	intake_drop_body(r);
	if (rc == -ENOSPC || rc == -EDQUOT)
		reply_overloaded(r);
	else if (rc == -ENOMEM)
		reply_json(r, 500, NULL);
	else
		reply_too_large(r);
}

void intake_drop_body(struct request *r)
{
	held_give(intake_held(r), r->held_body);
	r->held_body = 0;
	buf_free(&r->body);
}

void intake_log(struct request *r, bool whole)
{
	uint64_t ms = (io_now_ns() - r->start_ns) / 1000000;
	struct log_field f[8];
	size_t n = 0;

	if (r->phase == REQUEST_HEAD)
		return; /* broken off before its head was there */
	if (!log_budget_take(r->log ? r->log : &r->http->log_strangers))
		return;
	f[n++] = LOG_STR("method", r->method);
	f[n++] = LOG_STR("path", r->match.route ? r->match.route->pattern : "(none)");
	f[n++] = LOG_NUM("status", r->status);
	f[n++] = LOG_NUM("duration_ms", ms);
	if (r->match.id[0])
		f[n++] = LOG_STR("sandbox_id", r->match.id);
	f[n++] = LOG_STR("trace_id", r->trace_id);
	f[n++] = LOG_STR("parent_span_id", r->parent_span);
	if (!whole)
		f[n++] = LOG_STR("ended", "early");
	log_event(LOG_INFO, "http_request", f, n);
}
