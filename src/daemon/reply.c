/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Error bodies and JSON answers.
 */
#include "daemon/reply.h"
#include "daemon/limits.h"
#include "lib/json_safe.h"
#include "lib/utf8.h"
#include "lib/cleanup.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char type_json[] = "application/json";

void reply_json(struct request *r, unsigned int status, json_t *value)
{
	_cleanup_free char *text = json_text(value);

	json_decref(value);
	if (!text) {
		static const char lost[] = "{\"error\":\"out of memory\",\"code\":\"internal\"}";

		http_reply(r, 500, type_json, lost, sizeof(lost) - 1, NULL);
		return;
	}
	http_reply(r, status, type_json, text, strlen(text), NULL);
}

void reply_empty(struct request *r)
{
	http_reply(r, 204, NULL, "", 0, NULL);
}

/* ,"name":"text" */
static size_t put_member(char *o, const char *name, const char *text)
{
	size_t n = (size_t)sprintf(o, ",\"%s\":\"", name);

	n += json_escape(o + n, (const uint8_t *)text, strlen(text));
	o[n++] = '"';
	return n;
}

void reply_error_with(struct request *r, unsigned int status, const char *code,
		      const char *sentence, const char *hint, const char *field,
		      const char *const *headers)
{
	size_t size = JSON_ESCAPE_MAX * (strlen(sentence) + strlen(code) +
					 (hint ? strlen(hint) : 0) + (field ? strlen(field) : 0));
	_cleanup_free char *text = malloc(size + 128);
	size_t n;

	if (!text) {
		reply_json(r, 500, NULL);
		return;
	}
	n = put_member(text, "error", sentence);
	text[0] = '{';
	n += put_member(text + n, "code", code);
	if (hint)
		n += put_member(text + n, "hint", hint);
	if (field)
		n += put_member(text + n, "field", field);
	text[n++] = '}';
	http_reply(r, status, type_json, text, n, headers);
}

void reply_error(struct request *r, unsigned int status, const char *code, const char *sentence,
		 const char *hint, const char *field)
{
	reply_error_with(r, status, code, sentence, hint, field, NULL);
}

void reply_invalid(struct request *r, const char *field, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	reply_error(r, 400, "invalid_request", text, NULL, field);
}

void reply_no_sandbox(struct request *r, const char *field)
{
	reply_error(r, 404, "sandbox_not_found", "sandbox not found", NULL, field);
}

void reply_other_ended(struct request *r, const char *reason, const char *field)
{
	char text[1500];

	snprintf(text, sizeof(text), "sandbox ended: %s", reason);
	reply_error(r, 409, "sandbox_ended", text, NULL, field);
}

void reply_ended(struct request *r, const char *reason)
{
	reply_other_ended(r, reason, NULL);
}

void reply_not_forkable(struct request *r, const char *what)
{
	char text[160];

	snprintf(text, sizeof(text), "this sandbox has forkable false: %s", what);
	reply_error(r, 409, "not_forkable", text,
		    "what forks take was given up for good when its machine was made; forkable is "
		    "true unless it is asked for otherwise",
		    NULL);
}

void reply_no_stream(struct request *r, const struct err *err)
{
	if (err->num == EBUSY)
		reply_error(r, 429, "too_many_requests", err->msg, NULL, NULL);
	else
		reply_error(r, 503, "sandbox_unreachable", err->msg, NULL, NULL);
}

void reply_overloaded(struct request *r)
{
	reply_error(
		r, 503, "overloaded",
		"podflared holds as much for its clients as it may: what they send, and what they "
		"have not fetched yet",
		"try again; the operator can set PODFLARE_REQUESTS_MIB", NULL);
}

void reply_too_large(struct request *r)
{
	char text[96];

	snprintf(text, sizeof(text), "the body is larger than %u MiB", LIMIT_JSON_BODY >> 20);
	reply_error(r, 413, "body_too_large", text, "put large data in a file of the sandbox",
		    NULL);
}

void reply_too_many_sandboxes(struct request *r)
{
	static const char *const retry[] = {"Retry-After", "1", NULL};

	reply_error_with(
		r, 429, "too_many_sandboxes", "the limit of sandboxes on this host is reached",
		"close one, or start podflared with a higher --max-sandboxes", NULL, retry);
}
