/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames to events. Everything in a frame is the guest's word: types and ranges
 * are checked, unknown members dropped. Results may be long and are passed on as
 * they came (json_span.h).
 */
#include "daemon/exec_events.h"
#include "daemon/limits.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* So much of a result's text is made at once. */
#define TEXT_PIECE 16384u

void exec_pending_free(struct exec_pending *in)
{
	free(in->piece);
	buf_free(&in->text);
	*in = (struct exec_pending){0};
}

void exec_pending_bytes(struct exec_pending *in, const struct frame *f)
{
	*in = (struct exec_pending){
		.data = f->payload,
		.len = f->len,
		.stream = f->type == FRAME_STDOUT ? NDJSON_STDOUT : NDJSON_STDERR,
	};
}

/* The next piece of a result's text, when the one before is taken. */
static int exec_pending_more(struct exec_pending *in)
{
	if (in->len || !in->left.len)
		return 0;
	if (!in->piece)
		in->piece = malloc(TEXT_PIECE);
	if (!in->piece)
		return -ENOMEM;
	in->data = in->piece;
	in->len = json_span_unescape(&in->left, in->piece, TEXT_PIECE);
	return 0;
}

int exec_pending_take(struct exec_pending *in, struct ndjson *w, int64_t ts)
{
	bool result = in->result;

	while (exec_pending_any(in)) {
		int rc = exec_pending_more(in);
		ssize_t n = rc < 0 ? rc : ndjson_output(w, in->stream, in->data, in->len, ts);

		if (n < 0)
			return (int)n;
		in->data += n;
		in->len -= (size_t)n;
		if (in->len)
			return 0;
	}
	exec_pending_free(in);
	/* A result stands on lines of its own. */
	return result ? ndjson_break(w, NDJSON_STDOUT, ts) : 0;
}

/* --- events ------------------------------------------------------------------------------ */

int exec_events_started(struct ndjson *w, const char *exec_id, int64_t grace_ms, int64_t ts)
{
	json_t *fields;
	int rc;

	if (!w->rich)
		return 0;
	fields = json_pack("{s:s, s:I}", "exec_id", exec_id, "grace_ms", (json_int_t)grace_ms);
	rc = fields ? ndjson_event(w, "started", fields, ts) : -ENOMEM;
	json_decref(fields);
	return rc;
}

/* What an event has: its members by these names, and where they are. */
static const char *const event_names[] = {"type", "data", "text", "name", "value", "traceback"};
#define EVENT_NAMES 6u

struct event {
	struct json_span v[EVENT_NAMES];
	struct json_span plain; /* "text/plain" of the data */
	bool twice;             /* it is there twice */
	struct buf *text;       /* what all this is in, to be taken over; NULL: a frame */
};

/* A result in plain mode: the lines of its text/plain. */
static int plain_result(struct ndjson *w, struct exec_pending *in, struct event *ev, int64_t ts)
{
	if (ev->twice)
		return -EPROTO;
	if (!json_span_is(ev->plain, '"') || ev->plain.len <= 2)
		return 0;
	in->result = true;
	in->left = json_span_inside(ev->plain);
	if (ev->text) {
		in->text = *ev->text;
		*ev->text = (struct buf){.max = ev->text->max};
	}
	in->stream = NDJSON_STDOUT;
	return ndjson_break(w, NDJSON_STDOUT, ts);
}

int exec_events_notice(struct ndjson *w, const char *text, int64_t ts)
{
	json_t *fields;
	char line[512];
	int rc;

	if (!w->rich) {
		snprintf(line, sizeof(line), "podflare: %s", text);
		return ndjson_note(w, NDJSON_STDERR, line, ts);
	}
	fields = json_pack("{s:s}", "data", text);
	rc = fields ? ndjson_event(w, "notice", fields, ts) : -ENOMEM;
	json_decref(fields);
	return rc;
}

/* An event in rich mode, of members of what the guest has said. */
static int rich_event(struct ndjson *w, const char *type, const char *const *names,
		      const struct json_span *values, size_t n, struct event *ev, int64_t ts)
{
	return ev->text ? ndjson_event_long(w, type, names, values, n, ev->text, ts)
			: ndjson_event_spans(w, type, names, values, n, ts);
}

/* A sentence of the guest's agent, which may be anybody in the guest: not to be taken for ours. */
static int guest_notice(struct ndjson *w, struct event *ev, int64_t ts)
{
	static const char *const names[] = {"data", "from"};
	static const uint8_t guest[] = "\"guest\"";
	struct json_span v[] = {ev->v[2], {guest, sizeof(guest) - 1}};
	struct json_span inside = json_span_inside(ev->v[2]);
	uint8_t words[512];
	char line[600];

	if (w->rich)
		return rich_event(w, "notice", names, v, 2, ev, ts);
	snprintf(line, sizeof(line), "podflare: %.*s",
		 (int)json_span_unescape(&inside, words, sizeof(words)), (const char *)words);
	return ndjson_note(w, NDJSON_STDERR, line, ts);
}

/* Name, value, traceback. */
static int error_event(struct ndjson *w, struct event *ev, int64_t ts)
{
	const struct json_span *v = ev->v + 3;

	if (!json_span_is(v[0], '"') || !json_span_is(v[1], '"') ||
	    (v[2].p && !json_span_is(v[2], '"') && !json_span_is(v[2], '[')))
		return -EPROTO;
	/* In plain mode it is only on stderr, where the traceback is in any case. */
	return w->rich ? rich_event(w, "error", event_names + 3, v, 3, ev, ts) : 0;
}

static int any_event(struct ndjson *w, struct exec_pending *in, struct event *ev, int64_t ts)
{
	const struct json_span *v = ev->v;

	if (json_span_equals(v[0], "result") && json_span_is(v[1], '{'))
		return w->rich ? rich_event(w, "result", event_names + 1, v + 1, 1, ev, ts)
			       : plain_result(w, in, ev, ts);
	if (json_span_equals(v[0], "error"))
		return error_event(w, ev, ts);
	if (json_span_equals(v[0], "notice") && json_span_is(v[2], '"'))
		return guest_notice(w, ev, ts);
	return -EPROTO;
}

void exec_events_feed_init(struct json_feed *f)
{
	json_feed_init(f, event_names, EVENT_NAMES, 1, "text/plain");
}

int exec_events_event(struct ndjson *w, struct exec_pending *in, const uint8_t *p, size_t len,
		      int64_t ts)
{
	struct event ev = {.text = NULL};
	struct json_feed f;

	exec_events_feed_init(&f);
	if (len == 0 || json_feed_more(&f, p, len) < 0 ||
	    json_feed_end(&f, p, ev.v, &ev.plain, &ev.twice) < 0)
		return -EPROTO;
	return any_event(w, in, &ev, ts);
}

int exec_events_long(struct ndjson *w, struct exec_pending *in, const struct json_feed *f,
		     struct buf *text, int64_t ts)
{
	struct event ev = {.text = text};
	int rc = json_feed_end(f, buf_data(text), ev.v, &ev.plain, &ev.twice);

	if (rc == 0)
		rc = any_event(w, in, &ev, ts);
	buf_free(text);
	return rc;
}

/* --- the end ----------------------------------------------------------------------------- */

/* One of the words of the protocol, or NULL. */
static const char *word(const json_t *v, const char *const *words)
{
	const char *s = json_string_value(v);

	for (; s && *words; words++)
		if (strcmp(s, *words) == 0)
			return *words;
	return NULL;
}

static bool number(const json_t *v, json_int_t min, json_int_t max, int64_t *out)
{
	*out = json_integer_value(v);
	return json_is_integer(v) && *out >= min && *out <= max;
}

/* Paths of logs: of what the words of the protocol say, and nothing else. */
static bool parse_log(json_t *log, json_t **out)
{
	static const char *const streams[] = {"stdout", "stderr"};

	if (!log || json_is_null(log))
		return true;
	*out = json_is_object(log) ? json_object() : NULL;
	for (size_t i = 0; *out && i < ARRAY_SIZE(streams); i++) {
		json_t *path = json_object_get(log, streams[i]);

		if (!path)
			continue;
		if (!json_is_string(path) || json_string_length(path) > LIMIT_PATH ||
		    json_object_set(*out, streams[i], path) < 0)
			return false;
	}
	return *out != NULL;
}

static bool exit_members(const json_t *o, struct exec_exit *x)
{
	static const char *const reasons[] = {"exited",       "signaled",  "timeout",
					      "interrupted",  "cancelled", "oom",
					      "output_limit", NULL};
	static const char *const states[] = {"preserved", "lost", NULL};
	const json_t *sig = json_object_get(o, "signal");
	const json_t *truncated = json_object_get(o, "truncated");
	const json_t *log_truncated = json_object_get(o, "log_truncated");
	int64_t code, signum = 0;

	x->reason = word(json_object_get(o, "reason"), reasons);
	x->state = word(json_object_get(o, "state"), states);
	x->truncated = json_is_true(truncated);
	x->log_truncated = json_is_true(log_truncated);
	if (log_truncated && !json_is_boolean(log_truncated))
		return false;
	if (!x->reason || !x->state || !json_is_boolean(truncated) ||
	    !number(json_object_get(o, "exit_code"), 0, 255, &code) ||
	    !number(json_object_get(o, "duration_ms"), 0, INT64_MAX, &x->duration_ms) ||
	    !number(json_object_get(o, "bytes_dropped"), 0, INT64_MAX, &x->bytes_dropped) ||
	    (sig && !json_is_null(sig) && !number(sig, 1, 64, &signum)))
		return false;
	x->code = (int)code;
	x->signal = (int)signum;
	return parse_log(json_object_get(o, "log"), &x->log);
}

int exec_exit_parse(const struct frame *f, struct exec_exit *out, bool *cancelled)
{
	json_t *o = json_safe_load_few((const char *)f->payload, f->len, LIMIT_AGENT_VALUES,
				       JSON_REJECT_DUPLICATES);
	bool ok;

	*out = (struct exec_exit){0};
	ok = exit_members(o, out);
	json_decref(o);
	*cancelled = ok && strcmp(out->reason, "cancelled") == 0;
	return ok ? 0 : json_safe_fault();
}

int exec_events_exit(struct ndjson *w, const struct exec_exit *x, int64_t ts)
{
	json_t *extra =
		json_pack("{s:i, s:s, s:s*, s:I, s:b, s:I, s:O*, s:O*}", "exit_code", x->code,
			  "termination_reason", x->reason, "state", x->state, "duration_ms",
			  (json_int_t)x->duration_ms, "truncated", x->truncated, "bytes_dropped",
			  (json_int_t)x->bytes_dropped, "log", x->log, "denied", x->denied);
	int rc = -ENOMEM;

	if (extra && x->log_truncated &&
	    json_object_set_new(extra, "log_truncated", json_true()) < 0) {
		json_decref(extra);
		return -ENOMEM;
	}
	if (extra &&
	    (!x->signal || json_object_set_new(extra, "signal", json_integer(x->signal)) == 0))
		rc = ndjson_exit(w, x->code, extra, ts);
	json_decref(extra);
	return rc;
}

int exec_events_failed(struct ndjson *w, const char *text, const struct exec_exit *x, int64_t ts)
{
	char line[768];
	int rc;

	snprintf(line, sizeof(line), "podflare: %s", text);
	/* Its own line also in rich mode, where what came before may lack its newline. */
	rc = ndjson_break(w, NDJSON_STDOUT, ts);
	if (rc == 0)
		rc = ndjson_note(w, NDJSON_STDERR, line, ts);
	return rc == 0 ? exec_events_exit(w, x, ts) : rc;
}
