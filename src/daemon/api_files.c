/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Content of files of a sandbox, written and read (transfer.h).
 */
#include "daemon/agent_failure.h"
#include "daemon/api.h"
#include "daemon/limits.h"
#include "daemon/query.h"
#include "daemon/range.h"
#include "daemon/reply.h"
#include "daemon/transfer.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- upload ------------------------------------------------------------------------------ */

static void put_done(struct transfer *t, const struct frame *f)
{
	json_t *o = json_safe_loadb((const char *)f->payload, f->len, 0, NULL);
	json_t *path = json_object_get(o, "path"), *size = json_object_get(o, "size");
	json_t *complete = json_object_get(o, "complete");

	if (t->r->phase != REQUEST_WAIT || !json_is_string(path) || !json_is_integer(size) ||
	    (complete && !json_is_boolean(complete))) {
		transfer_lost(t, json_safe_fault());
	} else {
		transfer_done(t);
		reply_json(t->r, 200,
			   json_pack("{s:O, s:O, s:O*}", "path", path, "size", size, "complete",
				     complete));
	}
	json_decref(o);
}

static void put_on_stream(struct agent_stream *s)
{
	struct transfer *t = s->user;
	struct agent_failure why;
	struct frame f;
	int rc;

	do {
		rc = agent_next(s, &f);
		if (rc == 1)
			transfer_heard(t);
	} while (rc == 1 && f.type == FRAME_PONG);
	if (rc == 1 && f.type == FRAME_OK) {
		put_done(t, &f);
	} else if (rc == 1 && f.type == FRAME_ERROR) {
		agent_failure_parse(&f, &why);
		transfer_fail(t, &why);
	} else if (rc != 0) {
		transfer_lost(t, rc < 0 ? rc : -EPROTO);
	} else {
		transfer_sends(t, t->r->phase == REQUEST_WAIT);
		if (agent_room(s))
			http_wake(t->r);
	}
}

static size_t put_body(struct request *r, const void *data, size_t len)
{
	struct transfer *t = r->state;
	size_t room;

	if (!t->s)
		return 0; /* it failed; the answer is under way */
	room = agent_room(t->s);
	if (len > room)
		len = room;
	if (len)
		agent_send(t->s, FRAME_DATA_IN, data, len);
	transfer_sends(t, false);
	return len;
}

static void files_end(struct request *r)
{
	transfer_end(r->state);
}

static const struct request_ops put_ops = {.body = put_body, .end = files_end};

/* A number of bytes, at least `least`, as a parameter: 1, 0 when it is not given, -1: answered. */
static int put_number(struct request *r, const char *name, int64_t least, int64_t *out)
{
	_cleanup_free char *text = NULL;
	int rc = query_get(r->query, name, &text);
	size_t n = text ? strlen(text) : 0;

	*out = 0;
	if (rc == -ENOENT)
		return 0;
	if (rc == -ENOMEM) {
		reply_json(r, 500, NULL);
		return -1;
	}
	/* 18 digits are more than any file has. */
	if (rc == 0 && n >= 1 && n <= 18 && strspn(text, "0123456789") == n)
		*out = strtoll(text, NULL, 10);
	else
		*out = -1;
	if (*out >= least)
		return 1;
	reply_invalid(r, name, "%s must be an integer from %d on, given once", name, (int)least);
	return -1;
}

/* The request to the agent, for an upload that may be resumed if it has an id. NULL: answered. */
static json_t *put_object(struct request *r, const char *path)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
	_cleanup_free char *id = NULL;
	int64_t size, offset;
	int rc = query_get(r->query, "upload_id", &id), given;
	size_t n = id ? strlen(id) : 0;
	json_t *o;

	if (rc == -ENOENT || rc == -ENOMEM) {
		o = rc == -ENOENT ? json_pack("{s:s}", "path", path) : NULL;
		if (!o)
			reply_json(r, 500, NULL);
		return o;
	}
	if (rc < 0 || n < 1 || n > LIMIT_UPLOAD_ID || strspn(id, letters) != n) {
		reply_invalid(r, "upload_id",
			      "upload_id must be 1 to %d of a-z and 0-9, given once",
			      LIMIT_UPLOAD_ID);
		return NULL;
	}
	rc = put_number(r, "size", 1, &size);
	if (rc == 0)
		reply_invalid(r, "size", "size is missing: of all of the upload");
	given = rc == 1 ? put_number(r, "offset", 0, &offset) : -1;
	if (given < 0)
		return NULL;
	o = json_pack("{s:s, s:s, s:I}", "path", path, "upload", id, "size", (json_int_t)size);
	if (o && given && json_object_set_new(o, "offset", json_integer(offset)) < 0) {
		json_decref(o);
		o = NULL;
	}
	if (!o)
		reply_json(r, 500, NULL);
	return o;
}

void api_put_begin(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	_cleanup_free char *path = sb ? transfer_path(r) : NULL;
	json_t *object = path ? put_object(r, path) : NULL;
	struct transfer *t;

	if (!object)
		return;
	t = transfer_begin(r, sb, FRAME_PUT, object, sizeof(struct transfer), put_on_stream,
			   &put_ops);
	if (t)
		transfer_sends(t, false);
}

void api_put_finish(struct request *r)
{
	struct transfer *t = r->state;

	if (t->s)
		agent_send(t->s, FRAME_END_IN, NULL, 0);
	transfer_sends(t, true);
}

/* --- download ---------------------------------------------------------------------------- */

/* A download of the whole file, or of a part. */
struct download {
	struct transfer t;
	struct range range;
	int64_t left; /* bytes that the answer has still to have; -1: not known */
};

/* The part that was asked for, of a file of this size. */
static void get_begin_part(struct download *d, int64_t size)
{
	const struct range *range = &d->range;
	struct transfer *t = &d->t;
	char text[96];
	const char *const headers[] = {"Content-Range", text, "Accept-Ranges", "bytes", NULL};
	int64_t last = range->last < size - 1 ? range->last : size - 1;

	if (range->first < size) {
		snprintf(text, sizeof(text), "bytes %" PRId64 "-%" PRId64 "/%" PRId64, range->first,
			 last, size);
		t->begun = true;
		d->left = last - range->first + 1;
		http_reply_stream(t->r, 206, "application/octet-stream", d->left, headers);
		return;
	}
	snprintf(text, sizeof(text), "bytes */%" PRId64, size);
	transfer_close(t);
	if (size < 0)
		reply_error(t->r, 416, "range_not_satisfiable",
			    "the size of this file is not known: it has no ranges",
			    "ask for all of it", NULL);
	else
		reply_error_with(t->r, 416, "range_not_satisfiable",
				 "the range begins behind the end of the file", NULL, NULL,
				 headers);
}

static void get_begin(struct transfer *t, const struct frame *f)
{
	static const char *const headers[] = {"Accept-Ranges", "bytes", NULL};
	struct download *d = (struct download *)t;
	json_t *o = json_safe_loadb((const char *)f->payload, f->len, 0, NULL);
	const json_t *size = json_object_get(o, "size");
	json_int_t n = json_integer_value(size);

	if (!json_is_integer(size)) {
		transfer_lost(t, json_safe_fault());
	} else if (d->range.given) {
		get_begin_part(d, n < 0 ? -1 : n);
	} else {
		t->begun = true;
		d->left = n < 0 ? -1 : n;
		http_reply_stream(t->r, 200, "application/octet-stream", d->left,
				  n < 0 ? NULL : headers);
	}
	json_decref(o);
}

/* Takes frames until there are bytes for the client, or none for now. */
static void get_fetch(struct transfer *t)
{
	const struct download *d = (struct download *)t;

	while (t->s && t->len == 0 && !t->complete) {
		struct agent_failure why;
		struct frame f;
		int rc = agent_next(t->s, &f);

		if (rc == 0) {
			transfer_await(t);
			return;
		}
		transfer_heard(t);
		if (rc == 1 && f.type == FRAME_PONG)
			continue;
		if (rc == 1 && f.type == FRAME_OK && !t->begun) {
			get_begin(t, &f);
		} else if (rc == 1 && f.type == FRAME_DATA_OUT && t->begun) {
			t->data = f.payload;
			t->len = f.len;
		} else if (rc == 1 && f.type == FRAME_END_OUT && t->begun && d->left <= 0) {
			t->complete = true;
			transfer_done(t);
		} else if (rc == 1 && f.type == FRAME_ERROR) {
			agent_failure_parse(&f, &why);
			transfer_fail(t, &why);
		} else {
			transfer_lost(t, rc < 0 ? rc : -EPROTO);
			return;
		}
	}
}

static void get_on_stream(struct agent_stream *s)
{
	struct transfer *t = s->user;

	get_fetch(t);
	if (t->len || t->complete || t->cut)
		http_wake(t->r);
}

static ssize_t get_pull(struct request *r, char *out, size_t max)
{
	struct transfer *t = r->state;
	struct download *d = r->state;
	size_t n;

	get_fetch(t);
	n = t->len;
	if (n == 0)
		return t->cut ? PULL_ABORT : t->complete ? PULL_END : PULL_WAIT;
	if (n > max)
		n = max;
	memcpy(out, t->data, n);
	t->data += n;
	t->len -= n;
	if (d->left > 0)
		d->left -= (int64_t)n;
	return (ssize_t)n;
}

static const struct request_ops get_ops = {.pull = get_pull, .end = files_end};

/* A range is for GET alone, and without a condition, as a file has no version that could match. */
static struct range get_range(struct request *r)
{
	if (strcmp(r->method, "GET") != 0 || http_header(r, "If-Range"))
		return (struct range){0};
	return range_parse(http_header(r, "Range"));
}

static json_t *get_object(const char *path, const struct range *range)
{
	if (!range->given)
		return json_pack("{s:s}", "path", path);
	if (range->last == INT64_MAX)
		return json_pack("{s:s, s:I}", "path", path, "offset", (json_int_t)range->first);
	return json_pack("{s:s, s:I, s:I}", "path", path, "offset", (json_int_t)range->first,
			 "length", (json_int_t)(range->last - range->first + 1));
}

void api_get(struct request *r)
{
	struct sandbox *sb = api_find_sandbox(r);
	_cleanup_free char *path = sb ? transfer_path(r) : NULL;
	struct range range = get_range(r);
	struct transfer *t;

	if (!path)
		return;
	t = transfer_begin(r, sb, FRAME_GET, get_object(path, &range), sizeof(struct download),
			   get_on_stream, &get_ops);
	if (!t)
		return;
	((struct download *)t)->range = range;
	transfer_await(t);
}
