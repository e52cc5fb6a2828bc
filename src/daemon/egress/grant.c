/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Grants out of requests. What is wrong is told with the entry or the host; the
 * name of a header is told only when it is one, because somebody may have put
 * "Authorization: Bearer ..." in its place.
 */
#define _GNU_SOURCE
#include "daemon/egress/grant.h"
#include "daemon/egress/operator.h"
#include "daemon/held.h"
#include "daemon/limits.h"
#include "lib/header_name.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <sha256.h>
#include <string.h>
#include <strings.h>

/* --- life -------------------------------------------------------------------------------- */

struct grant *grant_ref(struct grant *g)
{
	if (g)
		g->refs++;
	return g;
}

void grant_unref(struct grant *g)
{
	if (!g || --g->refs)
		return;
	if (g->cost)
		held_give(g->held, g->cost);
	json_decref(g->inject);
	json_decref(g->allow);
	free(g);
}

/*
 * About what malloc() gives for a value: its head, its table (of an object also a line for each
 * member, and two buckets of it), and its text.
 */
static size_t cost_of(const json_t *v)
{
	size_t n = 48, i;
	const char *name;
	json_t *one;

	if (json_is_string(v))
		n += 32 + json_string_length(v);
	n += json_is_array(v) ? 80 + 16 * json_array_size(v) : 0;
	n += json_is_object(v) ? 192 : 0;
	json_array_foreach(v, i, one) n += cost_of(one);
	json_object_foreach((json_t *)(uintptr_t)v, name, one) n +=
		112 + strlen(name) + cost_of(one);
	return n;
}

int grant_hold(struct grant *g, struct held *h)
{
	size_t n = g && !g->cost && !g->common ? cost_of(g->allow) + cost_of(g->inject) : 0;
	int rc = n > LIMIT_HELD_SMALL ? held_take(h, n) : 0;

	if (rc == 0 && n > LIMIT_HELD_SMALL) {
		g->held = h;
		g->cost = n;
	}
	return rc;
}

struct hashing {
	SHA256_CTX sum;
	size_t n;
};

static int hash_piece(const char *text, size_t len, void *arg)
{
	struct hashing *h = arg;

	SHA256Update(&h->sum, (const uint8_t *)text, len);
	h->n += len;
	return 0;
}

static bool grant_hash(struct grant *g, const json_t *allow)
{
	struct hashing h = {.n = 0};

	_Static_assert(GRANT_HASH_LEN == SHA256_DIGEST_LENGTH, "it is one");
	SHA256Init(&h.sum);
	if (json_dump_callback(allow, hash_piece, &h, JSON_COMPACT) < 0)
		return false;
	SHA256Final(g->hash, &h.sum);
	g->text = h.n;
	return true;
}

/* Takes over the reference to allow, in any case. */
static struct grant *grant_new(json_t *allow)
{
	struct grant *g = allow ? calloc(1, sizeof(*g)) : NULL;

	if (!g || !grant_hash(g, allow)) {
		json_decref(allow);
		free(g);
		return NULL;
	}
	g->refs = 1;
	g->allow = allow;
	g->inject = json_object();
	if (g->inject)
		return g;
	grant_unref(g);
	return NULL;
}

int grant_inherit(struct grant **out, struct grant *parent, bool inject)
{
	*out = NULL;
	if (!parent)
		return 0;
	*out = inject || json_object_size(parent->inject) == 0
		       ? grant_ref(parent)
		       : grant_new(json_incref(parent->allow));
	return *out ? 0 : -ENOMEM;
}

static json_t *names_of(json_t *headers)
{
	json_t *names = json_array(), *value;
	const char *name;

	json_object_foreach(headers, name, value)
	{
		if (json_array_append_new(names, json_string(name)) < 0) {
			json_decref(names);
			return NULL;
		}
	}
	return names;
}

json_t *grant_inject_names(const struct grant *g)
{
	json_t *all = json_object(), *o;
	const char *host;

	json_object_foreach(g ? g->inject : NULL, host, o)
	{
		if (json_object_set_new(all, host, names_of(json_object_get(o, "headers"))) < 0) {
			json_decref(all);
			return NULL;
		}
	}
	return all;
}

/* --- the allowlist ----------------------------------------------------------------------- */

static int parse_allow(struct grant **out, struct egress_rules **rules,
		       const struct egress_operator *o, const json_t *allow,
		       struct grant_fault *fault)
{
	json_t *normal;
	int rc;

	fault->field = "egress.allow";
	if (!json_is_array(allow))
		return err_text(&fault->err, EINVAL, "egress.allow must be a list of entries");
	if (json_dumpb(allow, NULL, 0, JSON_COMPACT) > GRANT_ALLOW_MAX)
		return err_text(&fault->err, EINVAL, "egress.allow is larger than %u KiB",
				GRANT_ALLOW_MAX >> 10);
	rc = egress_rules_parse(rules, allow, o->groups, &fault->err);
	if (rc < 0)
		return rc;
	normal = egress_rules_json(*rules);
	if (!normal)
		return -ENOMEM;
	*out = grant_new(normal);
	return *out ? 0 : -ENOMEM;
}

/* --- injections -------------------------------------------------------------------------- */

static bool is_token(const char *name)
{
	static const char chars[] = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				    "abcdefghijklmnopqrstuvwxyz";
	size_t n = strlen(name);

	return n >= 1 && n <= 128 && strspn(name, chars) == n;
}

/* Those that speak of the connection, or say where a request goes and where it ends. */
static bool is_reserved(const char *name)
{
	static const char *const names[] = {"Connection",
					    "Keep-Alive",
					    "Proxy-Authenticate",
					    "Proxy-Authorization",
					    "Proxy-Connection",
					    "TE",
					    "Trailer",
					    "Transfer-Encoding",
					    "Upgrade",
					    "Host",
					    "Content-Length",
					    "Expect"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (strcasecmp(name, names[i]) == 0)
			return true;
	return false;
}

/* Without anything that ends a line, or that a reader may take for such. */
static bool is_value(const json_t *v)
{
	const unsigned char *text = (const unsigned char *)json_string_value(v);
	size_t n = json_string_length(v);

	if (!text || n > GRANT_VALUE_MAX)
		return false;
	for (size_t i = 0; i < n; i++)
		if ((text[i] < ' ' && text[i] != '\t') || text[i] == 0x7f)
			return false;
	return true;
}

/* Another one that a server would take for this, which is a name: so it is one, too. */
static const char *same_header(const json_t *headers, const char *name)
{
	const char *other;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)headers, other,
			    v) if (other != name && header_same_variable(other, name)) return other;
	return NULL;
}

static int check_header(const json_t *headers, const char *host, const char *name,
			const json_t *value, struct err *err)
{
	const char *other;

	if (!is_token(name))
		return err_text(err, EINVAL,
				"egress.inject: the name of a header for %s is not one", host);
	if (is_reserved(name))
		return err_text(err, EINVAL, "egress.inject: %s for %s cannot be injected", name,
				host);
	other = same_header(headers, name);
	if (other && strcasecmp(other, name) == 0)
		return err_text(err, EINVAL, "egress.inject: %s for %s is there twice", name, host);
	if (other)
		return err_text(err, EINVAL,
				"egress.inject: %s and %s for %s are the same header to many "
				"servers, so only one of them can be injected",
				name, other, host);
	if (!json_is_string(value))
		return err_text(err, EINVAL, "egress.inject: the value of %s for %s is no string",
				name, host);
	if (!is_value(value))
		return err_text(err, EINVAL,
				"egress.inject: the value of %s for %s has a character that no "
				"header may have, or more than %u bytes",
				name, host, GRANT_VALUE_MAX);
	return 0;
}

/* {"headers": {...}, "intercept": bool} of a host, as a new object of our own. */
static int parse_host(struct grant *g, const char *host, const json_t *o, size_t *bytes,
		      struct err *err)
{
	json_t *headers = json_object_get(o, "headers"), *v;
	const json_t *intercept = json_object_get(o, "intercept");
	const char *name;
	json_t *own;
	int rc = 0;

	if (!json_is_object(o) ||
	    json_object_size(o) != (size_t)(headers != NULL) + (intercept != NULL))
		return err_text(err, EINVAL,
				"egress.inject: %s must be an object with headers and intercept",
				host);
	if ((headers && !json_is_object(headers)) || (intercept && !json_is_boolean(intercept)))
		return err_text(err, EINVAL,
				"egress.inject: headers of %s must be an object, intercept true or "
				"false",
				host);
	if (json_object_size(headers) > GRANT_HEADERS_MAX)
		return err_text(err, EINVAL, "egress.inject: %s has more than %u headers", host,
				GRANT_HEADERS_MAX);
	json_object_foreach(headers, name, v)
	{
		rc = check_header(headers, host, name, v, err);
		if (rc < 0)
			return rc;
		*bytes += strlen(name) + json_string_length(v);
	}
	if (*bytes > GRANT_INJECT_MAX)
		return err_text(err, EINVAL, "egress.inject is larger than %u KiB",
				GRANT_INJECT_MAX >> 10);
	own = json_pack("{s:o, s:b}", "headers", headers ? json_clone(headers) : json_object(),
			"intercept", json_is_true(intercept));
	g->intercept |= json_is_true(intercept);
	return json_object_set_new(g->inject, host, own) == 0 ? 0 : -ENOMEM;
}

/*
 * What a host is here for. One without headers is for its interception alone: clients may have a
 * parameter of its own for that, and know nothing of "inject".
 */
static const char *inject_word(const json_t *o)
{
	return json_is_true(json_object_get(o, "intercept")) &&
			       json_object_size(json_object_get(o, "headers")) == 0
		       ? "interception"
		       : "egress.inject";
}

static int parse_inject(struct grant *g, const struct egress_rules *rules, const json_t *inject,
			struct grant_fault *fault)
{
	struct err *err = &fault->err;
	size_t bytes = 0;
	const char *name;
	json_t *o;
	int rc = 0;

	fault->field = "egress.inject";
	if (!inject || json_is_null(inject))
		return 0;
	if (!json_is_object(inject) || json_object_size(inject) > GRANT_HOSTS_MAX)
		return err_text(err, EINVAL, "egress.inject must be an object of at most %u hosts",
				GRANT_HOSTS_MAX);
	json_object_foreach((json_t *)(uintptr_t)inject, name, o)
	{
		char host[EGRESS_HOST_MAX + 1];
		struct egress_query q = {.host = host, .port = 443};
		struct egress_answer a = {0};

		rc = egress_host_normal(name, strlen(name), host, err);
		if (rc < 0)
			return err_prefix(err, "%s", inject_word(o));
		if (json_object_get(g->inject, host))
			return err_text(err, EINVAL, "%s: %s is there twice", inject_word(o), host);
		egress_rules_ask(rules, &q, &a);
		if (a.match == EGRESS_NO_RULE)
			return err_text(err, EINVAL, "%s: %s is not allowed by egress.allow",
					inject_word(o), host);
		rc = parse_host(g, host, o, &bytes, err);
		if (rc < 0)
			return rc;
	}
	return 0;
}

/* --- requests ---------------------------------------------------------------------------- */

static int parse_object(struct grant **out, const struct egress_operator *o, const json_t *value,
			struct grant_fault *fault)
{
	const json_t *allow = json_object_get(value, "allow");
	const json_t *inject = json_object_get(value, "inject");
	struct egress_rules *rules = NULL;
	struct grant *g = NULL;
	const char *name;
	json_t *v;
	int rc;

	json_object_foreach((json_t *)(uintptr_t)value, name,
			    v) if (v != allow &&
				   v != inject) return err_text(&fault->err, EINVAL,
								"egress: \"%.64s\" is not known; "
								"there are: allow, inject",
								name);
	if (!allow)
		return err_text(&fault->err, EINVAL, "egress has no list \"allow\"");
	rc = parse_allow(&g, &rules, o, allow, fault);
	if (rc == 0)
		rc = operator_check_ceiling(o, g->allow, &fault->err);
	if (rc == 0) {
		rc = parse_inject(g, rules, inject, fault);
		g->text += json_dumpb(g->inject, NULL, 0, JSON_COMPACT);
		if (rc == 0 && json_array_size(g->allow))
			*out = grant_ref(g);
	}
	egress_rules_free(rules);
	grant_unref(g);
	return rc;
}

int grant_parse(struct grant **out, const struct egress_operator *o, const json_t *value,
		struct grant_fault *fault)
{
	*out = NULL;
	fault->field = "egress";
	if (json_is_object(value))
		return parse_object(out, o, value, fault);
	if (json_is_true(value) && json_array_size(o->allow)) {
		*out = grant_new(json_incref(o->allow));
		if (*out)
			(*out)->common = true;
		return *out ? 0 : -ENOMEM;
	}
	return json_is_boolean(value) ? 0
				      : err_text(&fault->err, EINVAL,
						 "egress must be true or false, or an object with "
						 "allow and inject");
}

int grant_parse_list(struct grant **out, const struct egress_operator *o, const json_t *allow,
		     struct grant_fault *fault)
{
	struct egress_rules *rules = NULL;
	int rc;

	*out = NULL;
	rc = parse_allow(out, &rules, o, allow, fault);
	egress_rules_free(rules);
	return rc;
}
