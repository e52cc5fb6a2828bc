/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking of records. Texts may be long and odd: they can be what a guest has
 * asked for. Everything else is one of few words, or a number.
 */
#include "daemon/egress/record.h"
#include "daemon/ids.h"
#include "lib/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Of one process. Sums of it over restarts stay numbers that every reader of JSON keeps exact. */
#define RECORD_ID_MAX (1LL << 40)
/* Bytes, or milliseconds, of one connection: more than a lifetime of one has. */
#define RECORD_AMOUNT_MAX (1LL << 50)

json_t *record_text(const json_t *v, size_t max)
{
	const char *text = json_string_value(v);
	size_t n = json_string_length(v);
	bool bad;

	if (n > max)
		n = utf8_prefix((const uint8_t *)text, max, &bad);
	return text ? json_stringn(text, n) : NULL;
}

/* "2026-11-24T03:04:05.678Z" */
static bool is_time(const char *text)
{
	static const char form[] = "dddd-dd-ddTdd:dd:dd.dddZ";

	if (!text || strlen(text) != sizeof(form) - 1)
		return false;
	for (size_t i = 0; form[i]; i++)
		if (form[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != form[i])
			return false;
	return true;
}

static bool get_number(const json_t *o, const char *name, json_int_t min, json_int_t max,
		       json_int_t *out)
{
	const json_t *v = json_object_get(o, name);

	*out = json_integer_value(v);
	return json_is_integer(v) && *out >= min && *out <= max;
}

/* A text that may be null or left out, into the record. */
static bool put_text(struct record *r, const json_t *o, const char *name, size_t max)
{
	const json_t *v = json_object_get(o, name);

	if (v && !json_is_null(v) && !json_is_string(v))
		return false;
	return json_object_set_new(r->json, name,
				   json_is_string(v) ? record_text(v, max) : json_null()) == 0;
}

/* A reason: one of the words, or null. */
static bool put_reason(struct record *r, const json_t *o, const char *name)
{
	const json_t *v = json_object_get(o, name);
	enum egress_reason why =
		json_is_string(v) ? egress_reason_parse(json_string_value(v)) : EGRESS_R_NONE;

	if ((v && !json_is_null(v) && !json_is_string(v)) || why == EGRESS_REASONS)
		return false;
	if (why != EGRESS_R_NONE)
		r->reason = why;
	return json_object_set_new(r->json, name,
				   why == EGRESS_R_NONE
					   ? json_null()
					   : json_string(egress_reason_text(why))) == 0;
}

static bool put_number(struct record *r, const json_t *o, const char *name, json_int_t min,
		       json_int_t max, json_int_t *out)
{
	return get_number(o, name, min, max, out) &&
	       json_object_set_new(r->json, name, json_integer(*out)) == 0;
}

static bool one_of(const json_t *v, const char *const *words)
{
	const char *s = json_string_value(v);

	while (s && *words && strcmp(*words, s) != 0)
		words++;
	return s && *words;
}

static bool put_exec(struct record *r, const json_t *o)
{
	json_t *v = json_object_get(o, "exec");

	if (!v || json_is_null(v))
		return json_object_set_new(r->json, "exec", json_null()) == 0;
	r->exec = json_string_value(v);
	return r->exec && ids_name_valid(r->exec) && json_object_set(r->json, "exec", v) == 0;
}

static bool put_end(struct record *r, const json_t *o)
{
	json_int_t up, down, took;

	if (!put_number(r, o, "bytes_up", 0, RECORD_AMOUNT_MAX, &up) ||
	    !put_number(r, o, "bytes_down", 0, RECORD_AMOUNT_MAX, &down) ||
	    !put_number(r, o, "duration_ms", 0, RECORD_AMOUNT_MAX, &took))
		return false;
	r->up = (uint64_t)up;
	r->down = (uint64_t)down;
	return put_reason(r, o, "why");
}

static bool put_id(struct record *r, const json_t *o, uint64_t base)
{
	json_int_t id;

	if (!get_number(o, "id", 1, RECORD_ID_MAX, &id))
		return false;
	r->id = (uint64_t)id + base;
	return json_object_set_new(r->json, "id", json_integer((json_int_t)r->id)) == 0;
}

static bool put_members(struct record *r, const json_t *o, uint64_t base)
{
	static const char *const protos[] = {"connect", "socks",     "http",
					     "gateway", "intercept", NULL};
	static const char *const verdicts[] = {"allow", "deny", NULL};
	json_t *time = json_object_get(o, "time"), *proto = json_object_get(o, "proto");
	json_t *verdict = json_object_get(o, "verdict");
	json_int_t stream;

	if (!is_time(json_string_value(time)) || !one_of(proto, protos) ||
	    !one_of(verdict, verdicts) || json_object_set(r->json, "time", time) < 0 ||
	    !put_id(r, o, base) || !put_number(r, o, "stream", 0, INT64_MAX, &stream) ||
	    !put_exec(r, o) || json_object_set(r->json, "proto", proto) < 0 ||
	    !put_text(r, o, "host", RECORD_HOST_MAX) ||
	    !put_number(r, o, "port", 0, 65535, &r->port) || !put_text(r, o, "method", 32) ||
	    !put_text(r, o, "address", 64) || !put_text(r, o, "rule", RECORD_TEXT_MAX) ||
	    json_object_set(r->json, "verdict", verdict) < 0 || !put_reason(r, o, "reason") ||
	    !put_text(r, o, "detail", RECORD_TEXT_MAX))
		return false;
	r->stream = (uint64_t)stream;
	r->allow = strcmp(json_string_value(verdict), "allow") == 0;
	r->host = json_object_get(r->json, "host");
	return !r->end || (r->allow && put_end(r, o));
}

/* What a denial advises; the sentence about it where there is no advice. */
static bool take_hint(struct record *r, const json_t *o)
{
	const json_t *hint = json_object_get(o, "hint");
	json_t *text = record_text(hint, RECORD_TEXT_MAX - 1);

	if (hint && !json_is_null(hint) && !text)
		return false;
	snprintf(r->hint, sizeof(r->hint), "%s",
		 text ? json_string_value(text)
		 : json_string_value(json_object_get(r->json, "detail"))
			 ? json_string_value(json_object_get(r->json, "detail"))
			 : "");
	json_decref(text);
	return true;
}

int record_parse(struct record *r, const json_t *o, const char *sandbox, uint64_t base)
{
	const char *type = json_string_value(json_object_get(o, "type"));

	*r = (struct record){.end = type && strcmp(type, "end") == 0};
	r->json = json_pack("{s:s, s:s}", "sandbox", sandbox, "type", r->end ? "end" : "decision");
	if (!r->json)
		return -ENOMEM;
	if (put_members(r, o, base) && take_hint(r, o) && (r->end || r->allow || r->reason))
		return 0;
	record_free(r);
	return -EPROTO;
}

void record_free(struct record *r)
{
	json_decref(r->json);
	*r = (struct record){0};
}
