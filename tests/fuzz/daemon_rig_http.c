/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The HTTP server, as http.c and its library are one: requests as they come, answers as they go.
 */
#define _GNU_SOURCE
#include "daemon_rig.h"

#include "daemon/api.h"
#include "daemon/intake.h"
#include "daemon/limits.h"
#include "lib/io.h"

#include <jansson.h>
#include <sys/socket.h>

#define PULL_BYTES 32768u

static struct rig_call *call_of(struct request *r)
{
	return (struct rig_call *)r;
}

/* An answer there is from here on. The daemon only looks whether there is one. */
static bool answer(struct request *r, unsigned status)
{
	static char reply;
	struct rig_call *c = call_of(r);

	MUST(status >= 100 && status < 600 && !c->ended);
	if (c->status)
		return false; /* the first one stands */
	c->status = status;
	r->status = status;
	r->reply = (struct MHD_Response *)(void *)&reply;
	return true;
}

static void check_json(unsigned status, const char *text, size_t len)
{
	json_t *o = json_loadb(text, len, 0, NULL);

	MUST(json_is_object(o) || json_is_array(o));
	if (status >= 400) {
		const char *code = json_string_value(json_object_get(o, "code"));

		MUST(json_string_length(json_object_get(o, "error")) > 0 && code && code[0]);
		MUST(strcmp(code, "internal") != 0);
	}
	json_decref(o);
}

static void check_headers(const char *const *h)
{
	for (; h && *h; h += 2)
		MUST(h[1] && !strpbrk(h[0], "\r\n: ") && !strpbrk(h[1], "\r\n"));
}

void http_reply(struct request *r, unsigned int status, const char *type, const void *data,
		size_t len, const char *const *headers)
{
	check_headers(headers);
	if (!answer(r, status))
		return;
	if (type && strcmp(type, "application/json") == 0)
		check_json(status, data, len);
	else
		MUST(status < 400);
}

void http_reply_whole(struct request *r, unsigned int status, const char *type, const void *data,
		      size_t len, const char *const *headers)
{
	http_reply(r, status, type, data, len, headers);
}

void http_reply_stream(struct request *r, unsigned int status, const char *type, int64_t size,
		       const char *const *headers)
{
	struct rig_call *c = call_of(r);

	check_headers(headers);
	if (!answer(r, status))
		return;
	MUST(status < 400 && r->ops && r->ops->pull);
	c->stream = true;
	c->lines = strcmp(type, "application/x-ndjson") == 0;
	c->size = size;
}

void http_reply_upgrade(struct request *r, const char *const *headers)
{
	check_headers(headers);
	if (answer(r, 101))
		call_of(r)->upgrade = true;
	MUST(r->ops && r->ops->upgraded);
}

void http_upgrade_close(struct request *r)
{
	struct rig_call *c = call_of(r);

	if (!r->upgraded)
		return;
	r->upgraded = NULL;
	close_fd(&c->socket);
}

bool http_conn_known(struct http_conn *c, unsigned int key)
{
	(void)key;
	MUST(!c); /* there are no connections here */
	return true;
}

void http_wake(struct request *r)
{
	MUST(!call_of(r)->ended); /* answers are looked for in every turn */
}

const char *http_header(struct request *r, const char *name)
{
	static const char *const all[][2] = {{"Upgrade", "websocket"},
					     {"Connection", "Upgrade"},
					     {"Sec-WebSocket-Version", "13"},
					     {"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}};

	if (strcmp(name, "Range") == 0)
		return call_of(r)->range;
	for (size_t i = 0; i < ARRAY_SIZE(all); i++)
		if (strcmp(all[i][0], name) == 0)
			return all[i][1];
	return NULL;
}

static struct rig_call *free_call(struct rig *g)
{
	for (unsigned i = 0; i < RIG_CALLS; i++)
		if (!g->call[i].there)
			return &g->call[i];
	return NULL;
}

/* As http_on_request() does it. */
static void feed(struct request *r, const uint8_t *p, size_t len)
{
	const struct route *route = r->match.route;

	if (route->begin)
		route->begin(r);
	while (len && !r->reply) {
		size_t n = len;

		if (r->ops && r->ops->body)
			n = r->ops->body(r, p, len);
		else
			intake_body(r, p, len);
		MUST(n <= len);
		if (!n)
			break; /* no room: of what is left nobody will hear */
		p += n;
		len -= n;
	}
	r->phase = REQUEST_WAIT;
	if (!r->reply && route->finish && !len)
		route->finish(r);
	intake_drop_body(r);
}

struct rig_call *rig_request(struct rig *g, const char *method, const char *path, const char *query,
			     const void *body, size_t len)
{
	struct rig_call *c = free_call(g);
	struct request *r;

	if (!c)
		return NULL;
	*c = (struct rig_call){.there = true, .socket = -1, .peer = -1, .size = -1};
	buf_init(&c->out, 1u << 27);
	r = &c->r;
	r->http = &g->d.http;
	r->owner = RIG_OWNER;
	r->uri = strdup(path);
	r->query = query ? strdup(query) : NULL;
	r->start_ns = io_now_ns();
	r->phase = REQUEST_BODY;
	snprintf(r->method, sizeof(r->method), "%s", method);
	buf_init_secret(&r->body, LIMIT_JSON_BODY);
	list_add_tail(&g->d.http.requests, &r->link);
	if (route_find(api_routes, api_route_count, method, path, &r->match) == ROUTE_OK)
		feed(r, body, len);
	else
		rig_leave(c);
	return c->there ? c : NULL;
}

void rig_leave(struct rig_call *c)
{
	struct request *r = &c->r;

	if (!c->there)
		return;
	if (r->ops && r->ops->end)
		r->ops->end(r);
	c->ended = true;
	close_fd(&c->socket);
	close_fd(&c->peer);
	list_del(&r->link);
	intake_drop_body(r);
	buf_free(&c->out);
	free(r->uri);
	free(r->query);
	c->there = false;
}

/* Of an exec, a command, a list: every line an object; those of events are numbered. */
static void check_lines(struct rig_call *c)
{
	const uint8_t *p = buf_data(&c->out), *end;
	size_t len = buf_len(&c->out), used = 0;

	while (used < len && (end = memchr(p + used, '\n', len - used))) {
		json_t *o = json_loadb((const char *)p + used, (size_t)(end - p) - used,
				       JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
		const char *type = json_string_value(json_object_get(o, "type"));
		json_t *seq = json_object_get(o, "seq");

		MUST(json_is_object(o) && !c->exited);
		if (type && seq)
			MUST(json_integer_value(seq) == (json_int_t)c->seq++);
		c->exited = type && strcmp(type, "exit") == 0;
		json_decref(o);
		used = (size_t)(end - p) + 1;
	}
	buf_consume(&c->out, used);
}

/* What there is of a streamed answer. True: it is over. */
static bool pull(struct rig_call *c)
{
	static char out[PULL_BYTES];
	ssize_t n = 0;

	for (int i = 0; i < 64; i++) {
		size_t max = sizeof(out);

		/* The library asks for no more than what the answer was said to have. */
		if (c->size >= 0 && (uint64_t)c->size - c->pulled < max)
			max = (size_t)((uint64_t)c->size - c->pulled);
		if (max == 0)
			return true;
		n = c->r.ops->pull(&c->r, out, max);
		if (n <= 0)
			break;
		MUST((size_t)n <= max);
		c->pulled += (uint64_t)n;
		if (c->lines) {
			MUST(buf_append(&c->out, out, (size_t)n) == 0);
			check_lines(c);
		}
	}
	MUST(n >= PULL_ABORT);
	if (n == PULL_END) {
		MUST(c->size < 0 || c->pulled == (uint64_t)c->size);
		MUST(buf_len(&c->out) == 0);
	}
	return n < 0;
}

static void upgrade(struct rig_call *c)
{
	static char handle;
	int sv[2];

	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sv) == 0);
	c->upgrade = false;
	c->socket = sv[0];
	c->peer = sv[1];
	c->r.upgraded = (struct MHD_UpgradeResponseHandle *)(void *)&handle;
	c->r.ops->upgraded(&c->r, sv[0], "", 0);
}

void rig_serve(struct rig_call *c)
{
	char drop[4096];

	if (!c->there || !c->status || c->stalled)
		return;
	if (c->upgrade)
		upgrade(c);
	else if (c->status == 101) {
		while (c->peer >= 0 && io_read_some(c->peer, drop, sizeof(drop)) > 0)
			;
		if (!c->r.upgraded)
			rig_leave(c);
	} else if (!c->stream || pull(c)) {
		rig_leave(c);
	}
}
