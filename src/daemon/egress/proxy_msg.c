/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a proxy says. Nothing of it is passed on as it came: records are written anew
 * (record.c), sentences are made clean lines of bounded length, an answer belongs to
 * a question that is open.
 */
#include "daemon/egress/audit_share.h"
#include "daemon/egress/host.h"
#include "daemon/egress/proxy_impl.h"
#include "daemon/limits.h"
#include "lib/cleanup.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* A sentence of it: one line, printable. */
static void clean(char *s)
{
	for (; *s; s++)
		if (*s < ' ' || *s > '~')
			*s = '?';
}

/* Something was answered: what is still open has its full time again. */
static void answered(struct proxy *p)
{
	if (p->leaving)
		return; /* the time of its end goes on, whatever it still says */
	loop_timer_cancel(&p->limit);
	if (p->test || p->answered < p->serial)
		loop_timer_set(p->host->loop, &p->limit, PROXY_ANSWER_NS);
}

/* --- policy ------------------------------------------------------------------------------ */

/* Text of PEM blocks, and nothing else that could get into a file of the guest. */
static bool is_pem(const json_t *v, const char *begin, const char *end)
{
	const char *text = json_string_value(v);
	size_t len = json_string_length(v);

	if (!text || len > PROXY_PEM_MAX || strlen(text) != len)
		return false;
	for (size_t i = 0; i < len; i++)
		if ((text[i] < ' ' && text[i] != '\n') || text[i] > '~')
			return false;
	return strncmp(text, begin, strlen(begin)) == 0 && strstr(text, end);
}

/* The certificate goes into the guest: a key must not be able to get there in its place. */
static bool is_ca(const json_t *ca)
{
	const json_t *cert = json_object_get(ca, "cert_pem"), *key = json_object_get(ca, "key_pem");

	return json_object_size(ca) == 2 &&
	       is_pem(cert, "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----") &&
	       !strstr(json_string_value(cert), "PRIVATE") &&
	       is_pem(key, "-----BEGIN ", "PRIVATE KEY-----");
}

static const char *on_policy(struct proxy *p, const json_t *o)
{
	const json_t *serial = json_object_get(o, "serial"), *error = json_object_get(o, "error");
	json_t *ca = json_object_get(o, "ca");
	char text[400];

	if (p->answered == p->serial || json_integer_value(serial) != (json_int_t)p->answered + 1 ||
	    (error && !json_is_null(error) && !json_is_string(error)) ||
	    (ca && !json_is_null(ca) && !is_ca(ca)))
		return "an answer to a policy";
	snprintf(text, sizeof(text), "%s", json_is_string(error) ? json_string_value(error) : "");
	clean(text);
	p->answered++;
	answered(p);
	if (p->owner && p->ops->policy && !p->leaving)
		p->ops->policy(p, p->answered, json_is_string(error) ? text : NULL,
			       json_is_object(ca) ? ca : NULL);
	return NULL;
}

/* --- records ----------------------------------------------------------------------------- */

/* So many by now. */
static void count(struct proxy *p, uint64_t total)
{
	uint64_t more = total - p->used;

	if (total <= p->used)
		return;
	p->used = total;
	if (p->owner && p->ops->used)
		p->ops->used(p, more);
}

static const char *on_used(struct proxy *p, const json_t *o)
{
	const json_t *bytes = json_object_get(o, "bytes");

	if (!p->answered || !json_is_integer(bytes) || json_integer_value(bytes) < 0 ||
	    (uint64_t)json_integer_value(bytes) < p->used)
		return "a number of bytes";
	count(p, (uint64_t)json_integer_value(bytes));
	return NULL;
}

static const char *on_record(struct proxy *p, const json_t *o)
{
	_cleanup_free char *text = NULL;
	struct record r;
	int rc;

	if (!p->ops->record)
		return NULL; /* it is only asked */
	if (!p->answered)
		return "a record ahead of the first policy's answer";
	rc = record_parse(&r, o, p->sandbox, p->id_base);
	if (rc < 0)
		return rc == -ENOMEM ? "no memory for a record" : "a record";
	if (r.stream > p->streams || (r.end && !p->open)) {
		record_free(&r);
		return "a record of what there is not";
	}
	if (r.end) {
		p->open--;
		p->ends = record_sum(p->ends, r.up + r.down);
	} else {
		p->open += r.allow;
	}
	text = json_text_ascii(r.json);
	if (p->share)
		audit_share_record(p->share, &r, text ? text : "", text ? strlen(text) : 0);
	else
		audit_record(&p->host->audit, &r, text ? text : "", text ? strlen(text) : 0);
	if (text && p->owner && p->ops->record(p, &r, text))
		text = NULL;
	record_free(&r);
	count(p, p->ends);
	return NULL;
}

/* --- test -------------------------------------------------------------------------------- */

static bool put_text(json_t *out, const json_t *o, const char *name, size_t max)
{
	const json_t *v = json_object_get(o, name);

	if (v && !json_is_null(v) && !json_is_string(v))
		return false;
	return json_object_set_new(out, name,
				   json_is_string(v) ? record_text(v, max) : json_null()) == 0;
}

static bool put_addresses(json_t *out, const json_t *list)
{
	json_t *all = json_array(), *v;
	size_t i;

	if (!all || json_object_set_new(out, "addresses", all) < 0)
		return false;
	if (list && !json_is_null(list) &&
	    (!json_is_array(list) || json_array_size(list) > PROXY_ADDRESSES_MAX))
		return false;
	json_array_foreach((json_t *)(uintptr_t)list, i, v)
	{
		json_t *one = json_object(), *allowed = json_object_get(v, "allowed");

		if (!one || json_array_append_new(all, one) < 0 ||
		    !put_text(one, v, "address", 64) || !json_is_boolean(allowed) ||
		    json_object_set(one, "allowed", allowed) < 0 ||
		    !put_text(one, v, "why", RECORD_TEXT_MAX))
			return false;
	}
	return true;
}

static bool put_verdict(json_t *out, const json_t *o)
{
	json_t *verdict = json_object_get(o, "verdict");
	const json_t *reason = json_object_get(o, "reason");
	const char *word = json_string_value(verdict);

	if (!word || (strcmp(word, "allow") != 0 && strcmp(word, "deny") != 0) ||
	    (json_is_string(reason) &&
	     egress_reason_parse(json_string_value(reason)) == EGRESS_REASONS))
		return false;
	return json_object_set(out, "verdict", verdict) == 0 && put_text(out, o, "reason", 32);
}

static const char *on_test(struct proxy *p, const json_t *o)
{
	const json_t *serial = json_object_get(o, "serial");
	json_t *out;
	bool ok;

	if (!p->test || json_integer_value(serial) != (json_int_t)p->test)
		return "an answer to no question";
	out = json_object();
	ok = out && put_verdict(out, o) && put_text(out, o, "rule", RECORD_TEXT_MAX) &&
	     put_text(out, o, "hint", RECORD_TEXT_MAX) &&
	     put_addresses(out, json_object_get(o, "addresses"));
	if (ok) {
		p->test = 0;
		answered(p);
		if (p->owner && !p->leaving)
			p->ops->test(p, out);
	}
	json_decref(out);
	return ok ? NULL : "an answer to a question";
}

/* --- all of them ------------------------------------------------------------------------- */

static const char *const policy_names[] = {"type", "serial", "error", "ca", NULL};
static const char *const record_names[] = {
	"type", "time",     "id",         "stream",      "exec",    "proto",  "host",
	"port", "method",   "address",    "rule",        "verdict", "reason", "detail",
	"hint", "bytes_up", "bytes_down", "duration_ms", "why",     NULL};
static const char *const used_names[] = {"type", "bytes", NULL};
static const char *const test_names[] = {"type",   "serial", "verdict",   "reason", "rule",
					 "detail", "hint",   "addresses", NULL};

static const struct {
	const char *type;
	const char *(*fn)(struct proxy *p, const json_t *o);
	const char *const *names; /* of its members: there are no others */
} kinds[] = {
	{"policy", on_policy, policy_names}, {"decision", on_record, record_names},
	{"end", on_record, record_names},    {"used", on_used, used_names},
	{"test", on_test, test_names},
};

static bool known_members(const json_t *o, const char *const *names)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)o, key, v)
	{
		const char *const *name = names;

		while (*name && strcmp(*name, key) != 0)
			name++;
		if (!*name)
			return false;
	}
	return true;
}

const char *proxy_message(struct proxy *p, const char *text, size_t len)
{
	/* NUL may be in the name that a guest has asked for. What has more values than any message
	 * is not built: that would take long. */
	json_t *o = json_safe_load_few(text, len, PROXY_VALUES,
				       JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL);
	const char *type = json_string_value(json_object_get(o, "type"));
	const char *what = o || !json_safe_lacked() ? "a message of no known kind"
						    : "a message that there was no memory for";

	for (size_t i = 0; type && i < ARRAY_SIZE(kinds); i++)
		if (strcmp(type, kinds[i].type) == 0)
			what = known_members(o, kinds[i].names) ? kinds[i].fn(p, o)
								: "a member that is not known";
	json_decref(o);
	return what;
}
