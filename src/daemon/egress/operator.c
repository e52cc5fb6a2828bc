/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading of the operator's configuration. Everything in it is checked before it is
 * used, so that a slip is told at the start and not by the first sandbox.
 */
#define _GNU_SOURCE
#include "daemon/egress/operator.h"
#include "egress/addr.h"
#include "lib/io.h"
#include "lib/json_safe.h"
#include "lib/log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* A file with an object in it, or, if list is set, a list. */
static json_t *load_json(const char *path, const char *what, bool list, struct err *err)
{
	_cleanup_free char *text = NULL;
	json_error_t e;
	json_t *o;
	size_t len;
	int rc = io_read_file(path, OPERATOR_FILE_MAX, &text, &len);

	if (rc < 0) {
		err_set(err, -rc, "%s %s cannot be read", what, path);
		return NULL;
	}
	o = json_safe_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
	if (!o)
		err_text(err, EINVAL, "%s %s is not valid JSON: line %d, column %d: %s", what, path,
			 e.line, e.column, e.text);
	else if (list ? !json_is_array(o) : !json_is_object(o))
		err_text(err, EINVAL, "%s %s is not a JSON %s", what, path,
			 list ? "list" : "object");
	else
		return o;
	json_decref(o);
	return NULL;
}

#define YEAR_S (86400LL * 365)

/* --- single members ---------------------------------------------------------------------- */

static bool is_address(const char *text)
{
	struct in6_addr a;

	return inet_pton(AF_INET, text, &a) == 1 || inet_pton(AF_INET6, text, &a) == 1;
}

/* Digits only, from 0 to max. */
static bool is_number(const char *text, unsigned long max)
{
	size_t n = strspn(text, "0123456789");

	return n >= 1 && n <= 6 && !text[n] && strtoul(text, NULL, 10) <= max;
}

/* "192.0.2.53:53", "[2001:db8::1]:53" */
static bool is_endpoint(const json_t *v)
{
	const char *text = json_string_value(v), *colon = text ? strrchr(text, ':') : NULL;
	char address[INET6_ADDRSTRLEN + 2];
	size_t n = colon ? (size_t)(colon - text) : 0;
	bool six = n > 2 && text[0] == '[' && text[n - 1] == ']';

	if (n == 0 || n >= sizeof(address) || !is_number(colon + 1, 65535))
		return false;
	snprintf(address, sizeof(address), "%.*s", (int)(six ? n - 2 : n), text + six);
	return is_address(address) && six == (strchr(address, ':') != NULL);
}

static bool is_address_value(const json_t *v)
{
	return json_is_string(v) && is_address(json_string_value(v));
}

static bool all_of(const json_t *list, size_t max, bool (*check)(const json_t *v))
{
	size_t i;
	json_t *v;

	json_array_foreach((json_t *)(uintptr_t)list, i, v) if (!check(v)) return false;
	return json_is_array(list) && json_array_size(list) <= max;
}

static bool check_resolve(const json_t *o)
{
	const char *name;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)o, name, v)
	{
		char normal[EGRESS_HOST_MAX + 1];

		if (egress_host_normal(name, strlen(name), normal, NULL) < 0 ||
		    strcmp(name, normal) != 0 || !all_of(v, 16, is_address_value))
			return false;
	}
	return json_is_object(o) && json_object_size(o) <= 1024;
}

static bool check_limits(const json_t *o)
{
	static const char *const names[] = {"connections", "bytes", "bytes_per_s", "idle_s",
					    "total_s"};
	static const json_int_t max[] = {1024, 1LL << 53, 1LL << 53, YEAR_S, YEAR_S};
	size_t known = 0;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		const json_t *v = json_object_get(o, names[i]);

		known += v != NULL;
		if (v && (!json_is_integer(v) || json_integer_value(v) < 1 ||
			  json_integer_value(v) > max[i]))
			return false;
	}
	return json_is_object(o) && json_object_size(o) == known;
}

static bool check_ca(const json_t *v)
{
	return json_is_string(v) && strstr(json_string_value(v), "-----BEGIN CERTIFICATE-----") &&
	       !strstr(json_string_value(v), "PRIVATE KEY");
}

/* --- the whole --------------------------------------------------------------------------- */

/* A list of rules as it is configured: normal form into *out. */
static int load_rules(struct egress_operator *o, const char *name, const json_t *list, json_t **out,
		      struct egress_rules **rules, struct err *err)
{
	struct egress_rules *r = NULL;
	int rc;

	if (!json_is_array(list))
		return err_text(err, EINVAL, "\"%s\" is not a list", name);
	rc = egress_rules_parse(&r, list, o->groups, err);
	if (rc < 0)
		return err_prefix(err, "\"%s\"", name);
	json_decref(*out);
	*out = egress_rules_json(r);
	if (rules)
		*rules = r;
	else
		egress_rules_free(r);
	return *out ? 0 : err_set(err, ENOMEM, "\"%s\"", name);
}

static int load_groups(struct egress_operator *o, const char *path, const json_t *more,
		       struct err *err)
{
	o->groups = load_json(path, "the file of groups", false, err);
	if (!o->groups)
		return -EINVAL;
	if (more && !json_is_object(more))
		return err_text(err, EINVAL, "\"groups\" is not an object");
	if (more && json_object_update(o->groups, (json_t *)(uintptr_t)more) < 0)
		return err_set(err, ENOMEM, "groups");
	return egress_groups_check(o->groups, err);
}

/* The member, when it passes its check; absent and null leave what is there. */
static int load_member(const json_t *c, const char *name, bool (*check)(const json_t *v),
		       const char *must, json_t **out, struct err *err)
{
	json_t *v = json_object_get(c, name);

	if (!v || json_is_null(v))
		return 0;
	if (!check(v))
		return err_text(err, EINVAL, "\"%s\" must be %s", name, must);
	json_decref(*out);
	*out = json_incref(v);
	return 0;
}

/* Into *out, in the place of what is there. */
static int load_ranges(const char *name, json_t *v, json_t **out, struct err *err)
{
	struct egress_ranges *r = NULL;
	int rc;

	if (!v || json_is_null(v))
		return 0;
	rc = egress_ranges_parse(&r, v, err);
	egress_ranges_free(r);
	if (rc < 0)
		return err_prefix(err, "\"%s\"", name);
	json_decref(*out);
	*out = json_incref(v);
	return 0;
}

/* What the file has comes to what the operator has said. */
static int load_own(struct egress_operator *o, const char *path, struct err *err)
{
	json_t *all, *more;
	int rc = 0;

	if (!path)
		return 0;
	more = load_json(path, "the list of this machine's own addresses", true, err);
	if (!more)
		return -EINVAL;
	all = json_copy(o->own_ranges);
	if (!all || json_array_extend(all, more) < 0)
		rc = err_set(err, ENOMEM, "own_ranges");
	else
		rc = load_ranges("own_ranges", all, &o->own_ranges, err);
	json_decref(all);
	json_decref(more);
	return rc;
}

static bool check_resolvers(const json_t *v)
{
	return all_of(v, 8, is_endpoint) && json_array_size(v) > 0;
}

static int check_known(const json_t *c, struct err *err)
{
	/* As the sentence below names them. */
	static const char *const known[] = {"enabled",   "default",      "ceiling",    "groups",
					    "resolve",   "allow_ranges", "own_ranges", "limits",
					    "resolvers", "upstream_ca"};
	const char *name;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)c, name, v)
	{
		size_t i = 0;

		while (i < ARRAY_SIZE(known) && strcmp(known[i], name) != 0)
			i++;
		if (i == ARRAY_SIZE(known))
			return err_text(err, EINVAL,
					"\"%.64s\" is not known; there are enabled, default, "
					"ceiling, groups, "
					"resolve, allow_ranges, own_ranges, limits, resolvers and "
					"upstream_ca",
					name);
	}
	return 0;
}

static int load_members(struct egress_operator *o, const json_t *c, struct err *err)
{
	const json_t *enabled = json_object_get(c, "enabled");
	const json_t *allow = json_object_get(c, "default"), *top = json_object_get(c, "ceiling");
	int rc = check_known(c, err);

	if (rc == 0 && enabled && !json_is_boolean(enabled))
		rc = err_text(err, EINVAL, "\"enabled\" is neither true nor false");
	o->disabled = json_is_false(enabled);
	if (rc == 0 && allow && !json_is_null(allow))
		rc = load_rules(o, "default", allow, &o->allow, NULL, err);
	if (rc == 0 && top && !json_is_null(top))
		rc = load_rules(o, "ceiling", top, &o->ceiling, &o->ceiling_rules, err);
	if (rc == 0)
		rc = load_ranges("allow_ranges", json_object_get(c, "allow_ranges"),
				 &o->allow_ranges, err);
	if (rc == 0)
		rc = load_ranges("own_ranges", json_object_get(c, "own_ranges"), &o->own_ranges,
				 err);
	if (rc == 0)
		rc = load_member(c, "resolve", check_resolve,
				 "an object of names in normal form, each with a list of addresses",
				 &o->resolve, err);
	if (rc == 0)
		rc = load_member(c, "resolvers", check_resolvers,
				 "a list of one to eight addresses with ports, such as "
				 "\"192.0.2.53:53\"",
				 &o->resolvers, err);
	if (rc == 0)
		rc = load_member(c, "upstream_ca", check_ca,
				 "the text of certificates in PEM, and nothing else",
				 &o->upstream_ca, err);
	if (rc == 0)
		rc = load_member(c, "limits", check_limits,
				 "an object of connections (at most 1024), bytes, bytes_per_s, "
				 "idle_s, total_s, each a whole number from 1",
				 &o->limits, err);
	return rc;
}

static int load(struct egress_operator *o, const struct operator_files *f, struct err *err)
{
	const char *config = f->config && *f->config ? f->config : NULL;
	json_t *c = config ? load_json(config, "the configuration of egress", false, err)
			   : json_object();
	int rc = c ? 0 : -EINVAL;

	if (rc == 0)
		rc = load_groups(o, f->groups, json_object_get(c, "groups"), err);
	if (rc == 0) {
		rc = load_members(o, c, err);
		if (rc < 0)
			err_prefix(err, "the configuration of egress %s", config ? config : "");
	}
	if (rc == 0)
		rc = load_own(o, f->own, err);
	if (rc == 0 && !o->disabled && access(f->program, X_OK) < 0)
		rc = err_set(err, errno, "the egress proxy %s cannot be run", f->program);
	json_decref(c);
	return rc;
}

void operator_load(struct egress_operator *o, const struct operator_files *files)
{
	struct err err = {0};

	*o = (struct egress_operator){
		.allow = json_array(),
		.ceiling = json_null(),
		.allow_ranges = json_array(),
		.own_ranges = json_array(),
		.resolve = json_object(),
		.resolvers = json_null(),
		.upstream_ca = json_null(),
		.limits = json_object(),
	};
	o->usable = load(o, files, &err) == 0;
	if (!o->usable) {
		o->disabled = false;
		snprintf(o->why, sizeof(o->why), "%s", err.msg);
		log_error("egress is off: %s", o->why);
	} else if (o->disabled) {
		log_info("egress is off: the operator has disabled it");
	} else if (operator_check_ceiling(o, o->allow, &err) < 0) {
		log_warn("the \"default\" of egress cannot be used as it is: %s", err.msg);
	}
}

void operator_free(struct egress_operator *o)
{
	json_decref(o->allow);
	json_decref(o->ceiling);
	json_decref(o->groups);
	json_decref(o->allow_ranges);
	json_decref(o->own_ranges);
	json_decref(o->resolve);
	json_decref(o->resolvers);
	json_decref(o->upstream_ca);
	json_decref(o->limits);
	egress_rules_free(o->ceiling_rules);
	*o = (struct egress_operator){0};
}
