/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event lines. Output goes straight from the frame into the escaped line, never
 * through a JSON tree. Invariant: out holds at most NDJSON_HIGH bytes plus what was
 * held and one event; held[] at most one line (plain) or one piece (rich); behind
 * is empty but while a long event is under way.
 */
#include "daemon/ndjson.h"
#include "daemon/limits.h"
#include "lib/json_safe.h"
#include "lib/utf8.h"
#include "lib/base64.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Longest piece that one event carries: a held line, or a frame behind an unfinished sequence. */
#define PIECE_MAX (NDJSON_HELD + 16u)
/* Names, braces and two numbers around the data. */
#define AROUND_MAX 192u
/* So much of a long event becomes lines at once. */
#define LONG_PIECE 32768u
/* Room for what is added although the lines are full: a sentence, and the exit with its denials. */
#define SPARE (32768u + LIMIT_DENIED * 4096u)

void ndjson_init(struct ndjson *w, bool rich)
{
	*w = (struct ndjson){.rich = rich};
	/* What is held, an event, and behind it a sentence of ours and the exit. */
	buf_init(&w->out, NDJSON_HIGH + 2 * JSON_ESCAPE_MAX * PIECE_MAX + LIMIT_EVENT + SPARE);
	buf_init(&w->behind, w->out.max);
	buf_init(&w->held[NDJSON_STDOUT], PIECE_MAX);
	buf_init(&w->held[NDJSON_STDERR], PIECE_MAX);
}

void ndjson_free(struct ndjson *w)
{
	buf_free(&w->out);
	buf_free(&w->big.text);
	w->big.active = false;
	buf_free(&w->behind);
	buf_free(&w->held[NDJSON_STDOUT]);
	buf_free(&w->held[NDJSON_STDERR]);
}

bool ndjson_full(const struct ndjson *w)
{
	return w->big.active || buf_len(&w->out) >= NDJSON_HIGH;
}

bool ndjson_low(const struct ndjson *w)
{
	return !w->big.active && buf_len(&w->out) < NDJSON_HIGH / 2;
}

size_t ndjson_size(const struct ndjson *w)
{
	return buf_len(&w->out) + buf_len(&w->big.text) + buf_len(&w->behind);
}

/* Where the next line goes. */
static struct buf *lines(struct ndjson *w)
{
	return w->big.active ? &w->behind : &w->out;
}

static size_t put_str(char *o, const char *s)
{
	size_t n = strlen(s);

	memcpy(o, s, n);
	return n;
}

static size_t put_tail(struct ndjson *w, char *o, int64_t ts)
{
	return (size_t)sprintf(o, ",\"seq\":%" PRIu64 ",\"ts\":%" PRId64 "}\n", w->seq++, ts);
}

/* One output event; as base64 when asked. counts: these are bytes of the command. */
static int emit_as(struct ndjson *w, enum ndjson_stream s, const uint8_t *p, size_t len,
		   bool base64, bool counts, int64_t ts)
{
	char *o = (char *)buf_reserve(lines(w), JSON_ESCAPE_MAX * len + AROUND_MAX);
	size_t n = 0;

	if (!o)
		return -ENOMEM;
	n += put_str(o + n, s == NDJSON_STDOUT ? "{\"type\":\"stdout\",\"data\":\""
					       : "{\"type\":\"stderr\",\"data\":\"");
	n += base64 ? base64_encode(o + n, p, len) : json_escape(o + n, p, len);
	n += put_str(o + n, base64 ? "\",\"encoding\":\"base64\"" : "\"");
	if (counts)
		w->offset[s] += len;
	if (w->offsets)
		n += (size_t)sprintf(o + n, ",\"offset\":%" PRIu64, w->offset[s]);
	n += put_tail(w, o + n, ts);
	buf_commit(lines(w), n);
	return 0;
}

static int emit(struct ndjson *w, enum ndjson_stream s, const uint8_t *p, size_t len, bool base64,
		int64_t ts)
{
	return emit_as(w, s, p, len, base64, true, ts);
}

/* Emits the held bytes as far as they end on a character; the rest stays. */
static int emit_long_line(struct ndjson *w, enum ndjson_stream s, int64_t ts)
{
	struct buf *h = &w->held[s];
	size_t len = buf_len(h), cut = len;
	const uint8_t *p = buf_data(h);
	int rc;

	/* An unfinished sequence is at most three bytes long. */
	for (size_t back = 1; back <= 3 && back < len; back++) {
		if (p[len - back] >= 0xc0) {
			if (utf8_step(p + len - back, back) == 0)
				cut = len - back;
			break;
		}
	}
	rc = emit(w, s, p, cut, false, ts);
	if (rc == 0)
		buf_consume(h, cut);
	return rc;
}

/* Plain mode, one step: up to and with the next newline, or what fits. Bytes taken or -errno. */
static ssize_t plain_step(struct ndjson *w, enum ndjson_stream s, const uint8_t *p, size_t len,
			  int64_t ts)
{
	struct buf *h = &w->held[s];
	const uint8_t *nl = memchr(p, '\n', len);
	size_t line = nl ? (size_t)(nl - p) : len, room = NDJSON_HELD - buf_len(h);
	int rc;

	if (line > room) {
		/* The line is too long: fill up, and emit before the next byte comes. */
		if (room == 0)
			return emit_long_line(w, s, ts);
		rc = buf_append(h, p, room);
		return rc < 0 ? -ENOMEM : (ssize_t)room;
	}
	if (nl && buf_len(h) == 0) {
		rc = emit(w, s, p, line, false, ts);
		return rc < 0 ? rc : (ssize_t)line + 1;
	}
	if (buf_append(h, p, line) < 0)
		return -ENOMEM;
	if (!nl)
		return (ssize_t)line;
	rc = emit(w, s, buf_data(h), buf_len(h), false, ts);
	buf_consume(h, buf_len(h));
	return rc < 0 ? rc : (ssize_t)line + 1;
}

static ssize_t rich_step(struct ndjson *w, enum ndjson_stream s, const uint8_t *p, size_t len,
			 int64_t ts)
{
	struct buf *h = &w->held[s];
	bool bad = false;
	size_t n;
	int rc = 0;

	if (len > NDJSON_HELD)
		len = NDJSON_HELD;
	if (buf_len(h) == 0) {
		n = utf8_prefix(p, len, &bad);
		if (bad)
			n = len;
		if (n)
			rc = emit(w, s, p, n, bad, ts);
		if (rc == 0 && n < len && buf_append(h, p + n, len - n) < 0)
			rc = -ENOMEM;
		return rc < 0 ? rc : (ssize_t)len;
	}
	if (buf_append(h, p, len) < 0)
		return -ENOMEM;
	n = utf8_prefix(buf_data(h), buf_len(h), &bad);
	if (bad)
		n = buf_len(h);
	if (n)
		rc = emit(w, s, buf_data(h), n, bad, ts);
	buf_consume(h, n);
	return rc < 0 ? rc : (ssize_t)len;
}

ssize_t ndjson_output(struct ndjson *w, enum ndjson_stream s, const uint8_t *p, size_t len,
		      int64_t ts)
{
	size_t taken = 0;

	while (taken < len && !ndjson_full(w)) {
		ssize_t n = w->rich ? rich_step(w, s, p + taken, len - taken, ts)
				    : plain_step(w, s, p + taken, len - taken, ts);

		if (n < 0)
			return n;
		taken += (size_t)n;
	}
	return (ssize_t)taken;
}

int ndjson_break(struct ndjson *w, enum ndjson_stream s, int64_t ts)
{
	struct buf *h = &w->held[s];
	int rc;

	if (buf_len(h) == 0)
		return 0;
	/* What rich mode holds is an unfinished sequence: not UTF-8. */
	rc = emit(w, s, buf_data(h), buf_len(h), w->rich, ts);
	buf_consume(h, buf_len(h));
	return rc;
}

int ndjson_note(struct ndjson *w, enum ndjson_stream s, const char *text, int64_t ts)
{
	char line[1024];
	int n = snprintf(line, sizeof(line), "%s%s", text, w->rich ? "\n" : "");
	int rc = ndjson_break(w, s, ts);

	if (n >= (int)sizeof(line))
		n = (int)sizeof(line) - 1;
	return rc < 0 ? rc : emit_as(w, s, (const uint8_t *)line, (size_t)n, false, false, ts);
}

/* Members of an object without the braces: ",\"k\":v". Empty for NULL. */
static int put_members(struct buf *out, const json_t *obj)
{
	_cleanup_free char *s = NULL;
	size_t n;
	int rc;

	if (!obj || json_object_size(obj) == 0)
		return 0;
	s = json_text(obj);
	if (!s)
		return -ENOMEM;
	n = strlen(s);
	rc = buf_append(out, ",", 1);
	return rc < 0 ? rc : buf_append(out, s + 1, n - 2);
}

/* What is held, and the beginning of an event. */
static int begin_event(struct ndjson *w, const char *type, int64_t ts)
{
	char text[AROUND_MAX];
	int rc = ndjson_break(w, NDJSON_STDOUT, ts);

	if (rc == 0)
		rc = ndjson_break(w, NDJSON_STDERR, ts);
	if (rc < 0)
		return rc;
	snprintf(text, sizeof(text), "{\"type\":\"%s\"", type);
	return buf_append(lines(w), text, strlen(text)) < 0 ? -ENOMEM : 0;
}

static int end_event(struct ndjson *w, int64_t ts)
{
	char text[AROUND_MAX];

	return buf_append(lines(w), text, put_tail(w, text, ts)) < 0 ? -ENOMEM : 0;
}

int ndjson_event(struct ndjson *w, const char *type, const json_t *fields, int64_t ts)
{
	int rc = begin_event(w, type, ts);

	if (rc == 0 && put_members(lines(w), fields) < 0)
		rc = -ENOMEM;
	return rc == 0 ? end_event(w, ts) : rc;
}

int ndjson_event_spans(struct ndjson *w, const char *type, const char *const *names,
		       const struct json_span *values, size_t n, int64_t ts)
{
	int rc = begin_event(w, type, ts);

	for (size_t i = 0; i < n && rc == 0; i++) {
		char text[AROUND_MAX];

		if (!values[i].p)
			continue;
		snprintf(text, sizeof(text), ",\"%s\":", names[i]);
		if (buf_append(lines(w), text, strlen(text)) < 0 ||
		    json_span_append(lines(w), values[i]) < 0)
			rc = -ENOMEM;
	}
	return rc == 0 ? end_event(w, ts) : rc;
}

/* --- an event in pieces ------------------------------------------------------------------ */

int ndjson_event_long(struct ndjson *w, const char *type, const char *const *names,
		      const struct json_span *values, size_t n, struct buf *text, int64_t ts)
{
	struct ndjson_long *b = &w->big;
	int rc = b->active || n > NDJSON_LONG_VALUES ? -ENOMEM : begin_event(w, type, ts);

	if (rc < 0) {
		buf_free(text);
		return rc;
	}
	*b = (struct ndjson_long){.active = true, .text = *text};
	*text = (struct buf){.max = text->max};
	for (size_t i = 0; i < n; i++) {
		if (!values[i].p)
			continue;
		b->name[b->n] = names[i];
		b->value[b->n++] = values[i];
	}
	b->tail[put_tail(w, b->tail, ts)] = '\0';
	return 0;
}

/* The next piece of it into out. */
static int long_goes_on(struct ndjson *w)
{
	struct ndjson_long *b = &w->big;
	char text[AROUND_MAX];
	uint8_t *o;
	int rc;

	if (b->copy.left.len) {
		o = buf_reserve(&w->out, LONG_PIECE);
		if (!o)
			return -ENOMEM;
		buf_commit(&w->out, json_copy_some(&b->copy, o, LONG_PIECE));
		return 0;
	}
	if (b->i < b->n) {
		snprintf(text, sizeof(text), ",\"%s\":", b->name[b->i]);
		json_copy_init(&b->copy, b->value[b->i++]);
		return buf_append(&w->out, text, strlen(text)) < 0 ? -ENOMEM : 0;
	}
	rc = buf_append(&w->out, b->tail, strlen(b->tail));
	if (rc == 0)
		rc = buf_append(&w->out, buf_data(&w->behind), buf_len(&w->behind));
	buf_free(&b->text);
	buf_free(&w->behind);
	b->active = false;
	return rc < 0 ? -ENOMEM : 0;
}

ssize_t ndjson_take(struct ndjson *w, void *out, size_t max)
{
	size_t n;

	while (w->big.active && buf_len(&w->out) < LONG_PIECE) {
		int rc = long_goes_on(w);

		if (rc < 0)
			return rc;
	}
	n = buf_len(&w->out);
	if (n > max)
		n = max;
	if (n)
		memcpy(out, buf_data(&w->out), n);
	buf_consume(&w->out, n);
	ndjson_taken(w);
	return (ssize_t)n;
}

void ndjson_taken(struct ndjson *w)
{
	if (buf_len(&w->out) == 0 && w->out.cap > (size_t)4 * NDJSON_HIGH)
		buf_free(&w->out);
}

int ndjson_exit(struct ndjson *w, int code, const json_t *extra, int64_t ts)
{
	char text[AROUND_MAX];
	int rc = begin_event(w, "exit", ts);

	if (rc < 0)
		return rc;
	snprintf(text, sizeof(text), ",\"data\":%d", code);
	if (buf_append(lines(w), text, strlen(text)) < 0 ||
	    (w->rich && put_members(lines(w), extra) < 0))
		return -ENOMEM;
	return end_event(w, ts);
}
