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

void exec_pending_free(struct exec_pending *in)
{
	free(in->owned);
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

int exec_pending_take(struct exec_pending *in, struct ndjson *w, int64_t ts)
{
	ssize_t n = ndjson_output(w, in->stream, in->data, in->len, ts);
	bool text = in->owned != NULL;

	if (n < 0)
		return (int)n;
	in->data += n;
	in->len -= (size_t)n;
	if (in->len)
		return 0;
	exec_pending_free(in);
	/* A result stands on lines of its own. */
	return text ? ndjson_break(w, NDJSON_STDOUT, ts) : 0;
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

/* A result in plain mode: the lines of its text/plain. */
static int plain_result(struct ndjson *w, struct exec_pending *in, struct json_span data,
			int64_t ts)
{
	static const char *const names[] = {"text/plain"};
	struct json_span text;
	size_t len;

	if (json_span_members(data, names, &text, 1) < 0)
		return -EPROTO;
	if (!json_span_is(text, '"') || text.len <= 2)
		return 0;
	in->owned = json_span_text(text, &len);
	if (!in->owned)
		return -ENOMEM;
	in->data = in->owned;
	in->len = len;
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

/* A sentence of the guest's agent. */
static int guest_notice(struct ndjson *w, struct json_span text, int64_t ts)
{
	static const char *const names[] = {"data"};
	_cleanup_free uint8_t *words = NULL;
	char line[512];
	size_t len;

	if (w->rich)
		return ndjson_event_spans(w, "notice", names, &text, 1, ts);
	words = json_span_text(text, &len);
	if (!words)
		return -ENOMEM;
	snprintf(line, sizeof(line), "podflare: %.*s",
		 (int)(len < sizeof(line) ? len : sizeof(line)), (const char *)words);
	return ndjson_note(w, NDJSON_STDERR, line, ts);
}

/* v: name, value, traceback. */
static int error_event(struct ndjson *w, const struct json_span *v, int64_t ts)
{
	static const char *const names[] = {"name", "value", "traceback"};

	if (!json_span_is(v[0], '"') || !json_span_is(v[1], '"') ||
	    (v[2].p && !json_span_is(v[2], '"') && !json_span_is(v[2], '[')))
		return -EPROTO;
	/* In plain mode it is only on stderr, where the traceback is in any case. */
	return w->rich ? ndjson_event_spans(w, "error", names, v, 3, ts) : 0;
}

int exec_events_event(struct ndjson *w, struct exec_pending *in, const uint8_t *p, size_t len,
		      int64_t ts)
{
	static const char *const names[] = {"type", "data", "text", "name", "value", "traceback"};
	struct json_span text = {p, len}, v[6];

	if (json_span_members(text, names, v, 6) < 0)
		return -EPROTO;
	if (json_span_equals(v[0], "result") && json_span_is(v[1], '{'))
		return w->rich ? ndjson_event_spans(w, "result", names + 1, v + 1, 1, ts)
			       : plain_result(w, in, v[1], ts);
	if (json_span_equals(v[0], "error"))
		return error_event(w, v + 3, ts);
	if (json_span_equals(v[0], "notice") && json_span_is(v[2], '"'))
		return guest_notice(w, v[2], ts);
	return -EPROTO;
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
	json_t *o = json_safe_loadb((const char *)f->payload, f->len, JSON_REJECT_DUPLICATES, NULL);
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
