/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One entry of a list: from JSON, and back in normal form.
 *
 * Any thread. fork: plain memory.
 */
#include "egress/rules_impl.h"

#include <errno.h>
#include <string.h>

static const uint16_t default_ports[] = {80, 443};

static void words_free(struct rules_words *w)
{
	for (size_t i = 0; i < w->n; i++)
		free(w->v[i]);
	free(w->v);
}

void rules_entry_free(struct rules_entry *e)
{
	free(e->host);
	words_free(&e->methods);
	words_free(&e->paths);
}

/* 1..65535 as people write it: no sign, no zero before it. 0 for anything else. */
static uint16_t parse_port(const char *s, size_t len)
{
	unsigned v = 0;

	if (len == 0 || len > 5 || s[0] == '0')
		return 0;
	for (size_t i = 0; i < len; i++) {
		if (s[i] < '0' || s[i] > '9')
			return 0;
		v = v * 10 + (unsigned)(s[i] - '0');
	}
	return v <= UINT16_MAX ? (uint16_t)v : 0;
}

static void add_port(struct rules_entry *e, uint16_t port)
{
	size_t at = 0;

	while (at < e->n_ports && e->ports[at] < port)
		at++;
	if (at < e->n_ports && e->ports[at] == port)
		return;
	memmove(e->ports + at + 1, e->ports + at, (e->n_ports - at) * sizeof(e->ports[0]));
	e->ports[at] = port;
	e->n_ports++;
}

static bool ports_are_default(const struct rules_entry *e)
{
	return e->n_ports == ARRAY_SIZE(default_ports) &&
	       memcmp(e->ports, default_ports, sizeof(default_ports)) == 0;
}

/* "name" or "*.name". */
static int read_host(struct rules_reader *rd, struct rules_entry *e, const char *s, size_t len)
{
	char name[EGRESS_HOST_MAX + 1];
	const char *fault;
	int rc;

	e->wildcard = len >= 2 && s[0] == '*' && s[1] == '.';
	if (e->wildcard) {
		s += 2;
		len -= 2;
	}
	if (len == 1 && s[0] == '*' && !e->wildcard)
		return rules_refuse(rd,
				    "would allow everything, which no entry can: name the domains, "
				    "as in \"*.example.com\"");
	if (memchr(s, '*', len))
		return rules_refuse(rd, "has a \"*\" that is not its whole first label");
	/* One label would be a whole top-level domain. */
	if (e->wildcard && len > 0 && !memchr(s, '.', len))
		return rules_refuse(rd, "is a wildcard with fewer than two labels behind it");
	rc = egress_name_normal(s, len, name, &fault);
	if (rc == -ENOMEM)
		return rules_no_memory(rd);
	if (rc < 0)
		return rules_refuse(rd, "%s", fault);
	if (e->wildcard && strlen(name) + 2 > EGRESS_HOST_MAX)
		return rules_refuse(rd, "is longer than 253 bytes");
	e->host = strdup(name);
	e->host_len = strlen(name);
	return e->host ? 0 : rules_no_memory(rd);
}

/* "name", "name:port". */
static int read_string(struct rules_reader *rd, struct rules_entry *e, const char *s, size_t len)
{
	const char *colon = memchr(s, ':', len);

	e->tls = true;
	if (memchr(s, '/', len))
		return rules_refuse(rd, "has a \"/\": an entry is a name, without scheme and path");
	if (colon && (s[0] == '[' || memchr(colon + 1, ':', len - (size_t)(colon + 1 - s))))
		return rules_refuse(rd, "is an address, and only names can be allowed");
	if (!colon)
		return read_host(rd, e, s, len);
	add_port(e, parse_port(colon + 1, len - (size_t)(colon + 1 - s)));
	if (e->ports[0] == 0)
		return rules_refuse(rd, "has a port that is not a number from 1 to 65535");
	return read_host(rd, e, s, (size_t)(colon - s));
}

static int read_ports(struct rules_reader *rd, struct rules_entry *e, const json_t *list)
{
	size_t i;
	json_t *item;

	if (!json_is_array(list) || json_array_size(list) == 0 ||
	    json_array_size(list) > RULES_PORTS_MAX)
		return rules_refuse(rd, "has \"ports\" that are not an array of 1 to %u numbers",
				    RULES_PORTS_MAX);
	json_array_foreach(list, i, item)
	{
		json_int_t port = json_integer_value(item);

		if (!json_is_integer(item) || port < 1 || port > UINT16_MAX)
			return rules_refuse(rd, "has a port that is not a number from 1 to 65535");
		add_port(e, (uint16_t)port);
	}
	return 0;
}

/* Capitals alone: methods are compared with case, and all that are in use have none but these. */
static bool is_method(const char *s)
{
	size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-");

	return n > 0 && s[n] == 0 && n <= RULES_METHOD_LEN && strcmp(s, "CONNECT") != 0;
}

static bool is_path(const char *s)
{
	return strlen(s) <= RULES_PATH_LEN && rules_path_plain(s);
}

static int refuse_word(struct rules_reader *rd, const json_t *item, const char *name,
		       const char *what)
{
	char quoted[EGRESS_QUOTE_MAX] = "what is not a string";

	if (json_is_string(item))
		egress_quote(quoted, json_string_value(item), json_string_length(item));
	return rules_refuse(rd, "has %s in \"%s\", which is not %s", quoted, name, what);
}

static int read_words(struct rules_reader *rd, struct rules_words *w, const json_t *list,
		      const char *name, size_t max, bool (*good)(const char *s), const char *what)
{
	size_t i;
	json_t *item;

	if (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > max)
		return rules_refuse(rd, "has \"%s\" that are not an array of 1 to %zu strings",
				    name, max);
	w->v = calloc(json_array_size(list), sizeof(w->v[0]));
	if (!w->v)
		return rules_no_memory(rd);
	json_array_foreach(list, i, item)
	{
		if (!json_is_string(item) ||
		    strlen(json_string_value(item)) != json_string_length(item) ||
		    !good(json_string_value(item)))
			return refuse_word(rd, item, name, what);
		w->v[w->n] = strdup(json_string_value(item));
		if (!w->v[w->n])
			return rules_no_memory(rd);
		w->n++;
	}
	return 0;
}

static int read_member(struct rules_reader *rd, struct rules_entry *e, const char *key,
		       const json_t *value)
{
	char quoted[EGRESS_QUOTE_MAX];

	if (strcmp(key, "host") == 0)
		return 0; /* the caller has it */
	if (strcmp(key, "ports") == 0)
		return read_ports(rd, e, value);
	if (strcmp(key, "methods") == 0)
		return read_words(rd, &e->methods, value, key, RULES_METHODS_MAX, is_method,
				  "a method in capitals");
	if (strcmp(key, "paths") == 0)
		return read_words(rd, &e->paths, value, key, RULES_PATHS_MAX, is_path,
				  "a plain path that begins with \"/\"");
	if (strcmp(key, "tls") == 0) {
		e->tls = json_is_true(value);
		return json_is_boolean(value)
			       ? 0
			       : rules_refuse(rd, "has \"tls\" that is not true or false");
	}
	egress_quote(quoted, key, strlen(key));
	return rules_refuse(rd, "has a member %s; it can have host, ports, methods, paths and tls",
			    quoted);
}

static int read_object(struct rules_reader *rd, struct rules_entry *e, const json_t *obj)
{
	const json_t *host = json_object_get(obj, "host");
	const char *key;
	json_t *value;
	int rc;

	e->tls = true;
	if (!json_is_string(host))
		return rules_refuse(rd, "has no \"host\" that is a string");
	if (memchr(json_string_value(host), ':', json_string_length(host)))
		return rules_refuse(rd, "has a \":\" in its host; ports are in \"ports\"");
	rc = read_host(rd, e, json_string_value(host), json_string_length(host));
	/* The cast: iterators of jansson are not for constant objects. */
	json_object_foreach((json_t *)(uintptr_t)obj, key, value)
	{
		if (rc == 0)
			rc = read_member(rd, e, key, value);
	}
	return rc;
}

int rules_entry_read(struct rules_reader *rd, struct rules_entry *e, const json_t *item)
{
	int rc = json_is_object(item)
			 ? read_object(rd, e, item)
			 : read_string(rd, e, json_string_value(item), json_string_length(item));

	if (rc == 0 && e->n_ports == 0) {
		memcpy(e->ports, default_ports, sizeof(default_ports));
		e->n_ports = ARRAY_SIZE(default_ports);
	}
	return rc;
}

static json_t *words_json(const struct rules_words *w)
{
	json_t *list = json_array();

	for (size_t i = 0; i < w->n; i++) {
		if (json_array_append_new(list, json_string(w->v[i])) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

static json_t *ports_json(const struct rules_entry *e)
{
	json_t *list = json_array();

	for (size_t i = 0; i < e->n_ports; i++) {
		if (json_array_append_new(list, json_integer(e->ports[i])) < 0) {
			json_decref(list);
			return NULL;
		}
	}
	return list;
}

json_t *rules_entry_json(const struct rules_entry *e)
{
	bool any = e->methods.n == 0 && e->paths.n == 0 && e->tls;
	const char *star = e->wildcard ? "*." : "";
	json_t *obj;
	int bad = 0;

	if (any && ports_are_default(e))
		return json_sprintf("%s%s", star, e->host);
	if (any && e->n_ports == 1)
		return json_sprintf("%s%s:%u", star, e->host, (unsigned)e->ports[0]);
	obj = json_object();
	bad |= json_object_set_new(obj, "host", json_sprintf("%s%s", star, e->host));
	if (!ports_are_default(e))
		bad |= json_object_set_new(obj, "ports", ports_json(e));
	if (e->methods.n > 0)
		bad |= json_object_set_new(obj, "methods", words_json(&e->methods));
	if (e->paths.n > 0)
		bad |= json_object_set_new(obj, "paths", words_json(&e->paths));
	if (!e->tls)
		bad |= json_object_set_new(obj, "tls", json_false());
	if (!bad)
		return obj;
	json_decref(obj);
	return NULL;
}
