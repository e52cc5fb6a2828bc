/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parser of policies. A table has every member with its own function; what is
 * not in the table is refused. Whatever fails, nothing is left behind, and the
 * texts of secrets are wiped by the allocator (main.c).
 */
#define _GNU_SOURCE
#include "egress/policy.h"

#include "egress/policy_inject.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "proto/egress.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define SANDBOX_ID_MAX    128u
#define RESOLVE_MAX       1024u
#define RESOLVERS_MAX     8u
#define UPSTREAM_CA_MAX   (1u << 20)
#define CONNECTIONS_LIMIT 1024u
#define NUMBER_MAX        (1ull << 53)

static const struct policy_limits limits_default = {
	.connections = 64,
	.idle_s = 300,
	.total_s = 86400,
};

static int bad(struct err *err, const char *member, const char *what)
{
	return err_text(err, EINVAL, "\"%s\" %s", member, what);
}

static int copy_text(char **out, const json_t *v, size_t max, const char *member, struct err *err)
{
	if (!json_is_string(v) || json_string_length(v) == 0 || json_string_length(v) > max ||
	    strlen(json_string_value(v)) != json_string_length(v))
		return bad(err, member, "is not a text, or too long");
	*out = strdup(json_string_value(v));
	return *out ? 0 : err_text(err, ENOMEM, "no memory");
}

static int set_sandbox(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	(void)all;
	return copy_text(&p->sandbox, v, SANDBOX_ID_MAX, "sandbox", err);
}

static int set_allow(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	int rc = egress_rules_parse(&p->allow, v, json_object_get(all, "groups"), err);

	return rc < 0 ? err_prefix(err, "allow") : 0;
}

/* Used by the two lists of rules, which check it. */
static int set_groups(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	(void)p;
	(void)all;
	return json_is_object(v) ? 0 : bad(err, "groups", "is not an object");
}

static int set_ceiling(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	int rc;

	if (json_is_null(v))
		return 0;
	rc = egress_rules_parse(&p->ceiling, v, json_object_get(all, "groups"), err);
	return rc < 0 ? err_prefix(err, "ceiling") : 0;
}

static int set_inject(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	(void)all;
	return policy_inject_parse(&p->inject, &p->intercepts, v, err);
}

static int set_ca(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	(void)all;
	if (json_is_null(v))
		return 0;
	if (json_object_size(v) != 2 || !json_is_string(json_object_get(v, "cert_pem")) ||
	    !json_is_string(json_object_get(v, "key_pem")))
		return bad(err, "ca", "is not an object of cert_pem and key_pem");
	p->ca = json_clone(v);
	return p->ca ? 0 : err_text(err, ENOMEM, "no memory");
}

static int set_ranges(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	int rc = egress_ranges_parse(&p->ranges, v, err);

	(void)all;
	return rc < 0 ? err_prefix(err, "allow_ranges") : 0;
}

static int set_own(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	int rc = egress_ranges_parse(&p->own, v, err);

	(void)all;
	return rc < 0 ? err_prefix(err, "own_ranges") : 0;
}

static bool is_address(const json_t *v)
{
	struct in6_addr a;
	const char *s = json_string_value(v);

	return s && strlen(s) == json_string_length(v) &&
	       (inet_pton(AF_INET, s, &a) == 1 || inet_pton(AF_INET6, s, &a) == 1);
}

static int set_resolve(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	const char *name;
	json_t *list, *one;
	size_t i;

	(void)all;
	if (!json_is_object(v) || json_object_size(v) > RESOLVE_MAX)
		return bad(err, "resolve", "is not an object, or too large");
	p->resolve = json_object();
	json_object_foreach((json_t *)(uintptr_t)v, name, list)
	{
		char host[EGRESS_HOST_MAX + 1];
		int rc = egress_host_normal(name, strlen(name), host, err);

		if (rc < 0)
			return err_prefix(err, "resolve");
		if (!json_is_array(list) || json_array_size(list) > POLICY_ADDRESSES_MAX)
			return bad(err, "resolve", "has something else than a list of addresses");
		json_array_foreach(list, i, one) if (!is_address(one)) return bad(
			err, "resolve", "has something else than a list of addresses");
		if (json_object_get(p->resolve, host))
			return bad(err, "resolve", "has a name twice");
		if (json_object_set_new(p->resolve, host, json_clone(list)) < 0)
			return err_text(err, ENOMEM, "no memory");
	}
	return 0;
}

/* IPV4, IPV4:PORT, IPV6 or [IPV6]:PORT. (c-ares leaves out what it does not understand.) */
static bool is_resolver(const json_t *v)
{
	const char *s = json_string_value(v);
	char text[INET6_ADDRSTRLEN], *end;
	struct in6_addr a;
	const char *port;
	char *rest;

	if (!s || strlen(s) != json_string_length(v))
		return false;
	if (is_address(v))
		return true;
	port = strrchr(s, ':');
	if (!port || (size_t)(port - s) >= sizeof(text) || port[1] < '1' || port[1] > '9' ||
	    strlen(port + 1) > 5 || strtoul(port + 1, &rest, 10) > 65535 || *rest)
		return false;
	end = mempcpy(text, s, (size_t)(port - s));
	*end = '\0';
	if (text[0] != '[')
		return inet_pton(AF_INET, text, &a) == 1;
	if (end[-1] != ']')
		return false;
	end[-1] = '\0';
	return inet_pton(AF_INET6, text + 1, &a) == 1;
}

static int set_resolvers(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	char text[RESOLVERS_MAX * 66] = "", *end = text;
	json_t *one;
	size_t i;

	(void)all;
	if (json_is_null(v))
		return 0;
	if (!json_is_array(v) || json_array_size(v) == 0 || json_array_size(v) > RESOLVERS_MAX)
		return bad(err, "resolvers", "is not a list of one to eight addresses");
	json_array_foreach(v, i, one)
	{
		if (!is_resolver(one))
			return bad(err, "resolvers",
				   "has something else than ADDRESS or ADDRESS:PORT");
		/* Each is at most an address in brackets and a port. */
		end += snprintf(end, (size_t)(text + sizeof(text) - end), "%s%s", i ? "," : "",
				json_string_value(one));
	}
	p->resolvers = strdup(text);
	return p->resolvers ? 0 : err_text(err, ENOMEM, "no memory");
}

static int set_upstream_ca(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	(void)all;
	if (json_is_null(v))
		return 0;
	return copy_text(&p->upstream_ca, v, UPSTREAM_CA_MAX, "upstream_ca_pem", err);
}

static int set_limits(struct policy *p, const json_t *v, const json_t *all, struct err *err)
{
	const struct {
		const char *name;
		uint64_t *to, max;
	} known[] = {
		{"connections", &p->limits.connections, CONNECTIONS_LIMIT},
		{"bytes", &p->limits.bytes, NUMBER_MAX},
		{"bytes_per_s", &p->limits.bytes_per_s, NUMBER_MAX},
		{"idle_s", &p->limits.idle_s, 86400ull * 365},
		{"total_s", &p->limits.total_s, 86400ull * 365},
	};
	const char *name;
	json_t *n;

	(void)all;
	if (!json_is_object(v))
		return bad(err, "limits", "is not an object");
	json_object_foreach((json_t *)(uintptr_t)v, name, n)
	{
		size_t i = 0;

		while (i < ARRAY_SIZE(known) && strcmp(known[i].name, name) != 0)
			i++;
		if (i == ARRAY_SIZE(known))
			return bad(err, "limits", "has an unknown member");
		if (json_is_null(n))
			continue;
		if (!json_is_integer(n) || json_integer_value(n) < 1 ||
		    (uint64_t)json_integer_value(n) > known[i].max)
			return err_text(err, EINVAL,
					"\"limits\": \"%s\" is not a number from 1 to %llu", name,
					(unsigned long long)known[i].max);
		*known[i].to = (uint64_t)json_integer_value(n);
	}
	return 0;
}

static const struct {
	const char *name;
	int (*set)(struct policy *p, const json_t *v, const json_t *all, struct err *err);
	bool required;
} members[] = {
	{"sandbox", set_sandbox, true},
	{"allow", set_allow, true},
	{"groups", set_groups, false},
	{"ceiling", set_ceiling, true}, /* left out by mistake, it would be no ceiling */
	{"inject", set_inject, false},
	{"ca", set_ca, false},
	{"allow_ranges", set_ranges, false},
	{"own_ranges", set_own, false},
	{"resolve", set_resolve, false},
	{"resolvers", set_resolvers, false},
	{"upstream_ca_pem", set_upstream_ca, false},
	{"limits", set_limits, false},
};

static int set_members(struct policy *p, const json_t *doc, struct err *err)
{
	size_t known = 0;

	for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
		const json_t *v = json_object_get(doc, members[i].name);
		int rc;

		if (!v && members[i].required)
			return bad(err, members[i].name, "is missing");
		if (!v)
			continue;
		known++;
		rc = members[i].set(p, v, doc, err);
		if (rc < 0)
			return rc;
	}
	if (known != json_object_size(doc))
		return err_text(err, EINVAL, "it has an unknown member");
	return 0;
}

int policy_parse(struct policy **out, const char *text, size_t len, struct err *err)
{
	json_error_t where;
	json_t *doc = json_safe_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
	struct policy *p = calloc(1, sizeof(*p));
	int rc;

	if (!p) {
		rc = err_text(err, ENOMEM, "no memory");
	} else if (!json_is_object(doc)) {
		/* The parser's own text could quote a secret. */
		rc = err_text(err, EINVAL, "it is not a JSON object (line %d)",
			      doc ? 1 : where.line);
	} else {
		p->limits = limits_default;
		rc = set_members(p, doc, err);
	}
	json_decref(doc);
	if (rc < 0) {
		policy_free(p);
		return rc;
	}
	*out = p;
	return 0;
}

int policy_read(struct policy **out, int fd, struct err *err)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
	int have = fcntl(fd, F_GET_SEALS);
	_cleanup_free char *text = NULL;
	int64_t size = io_size(fd);
	int rc;

	if (have < 0 || (have & seals) != seals || size < 0)
		return err_text(err, EINVAL, "it did not come in a sealed memfd");
	if (size == 0 || size > EGRESS_POLICY_MAX)
		return err_text(err, EINVAL, "it is empty or larger than %u bytes",
				EGRESS_POLICY_MAX);
	text = malloc((size_t)size);
	if (!text)
		return err_text(err, ENOMEM, "no memory");
	rc = io_pread_full(fd, text, (size_t)size, 0);
	if (rc < 0)
		rc = err_set(err, -rc, "it cannot be read");
	else
		rc = policy_parse(out, text, (size_t)size, err);
	explicit_bzero(text, (size_t)size);
	return rc;
}

void policy_free(struct policy *p)
{
	if (!p)
		return;
	free(p->sandbox);
	egress_rules_free(p->allow);
	egress_rules_free(p->ceiling);
	egress_ranges_free(p->ranges);
	egress_ranges_free(p->own);
	json_decref(p->inject);
	json_decref(p->ca);
	json_decref(p->resolve);
	free(p->resolvers);
	free(p->upstream_ca);
	free(p);
}

const json_t *policy_headers(const struct policy *p, const char *host)
{
	const json_t *headers = json_object_get(json_object_get(p->inject, host), "headers");

	return json_object_size(headers) ? headers : NULL;
}

bool policy_intercepts(const struct policy *p, const char *host)
{
	return json_is_true(json_object_get(json_object_get(p->inject, host), "intercept"));
}
