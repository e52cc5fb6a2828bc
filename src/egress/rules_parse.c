/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From JSON to rules. Whatever is not understood is refused, never skipped: an entry that would be
 * left out, or a restriction that would not be seen, is a hole.
 *
 * Any thread. fork: plain memory.
 */
#include "egress/rules_impl.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void egress_rules_free(struct egress_rules *r)
{
	if (!r)
		return;
	for (size_t i = 0; i < r->n; i++)
		rules_entry_free(&r->v[i]);
	free(r->v);
	json_decref(r->normal);
	free(r);
}

int rules_refuse(struct rules_reader *rd, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return err_text(rd->err, EINVAL, "%s %s", rd->where, text);
}

int rules_no_memory(struct rules_reader *rd)
{
	return err_set(rd->err, ENOMEM, "rules of egress");
}

static bool is_word(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (!(s[i] >= 'a' && s[i] <= 'z') && !(s[i] >= '0' && s[i] <= '9') && s[i] != '-' &&
		    s[i] != '_')
			return false;
	}
	return len > 0 && len <= EGRESS_GROUP_MAX && s[0] >= 'a' && s[0] <= 'z';
}

/* What can only be meant as a group's name, though it may be none. */
static bool is_like_word(const char *s, size_t len)
{
	bool letter = len > 0 && ((s[0] | 32) >= 'a' && (s[0] | 32) <= 'z');

	for (size_t i = 0; i < len && letter; i++)
		letter = s[i] > 0x20 && s[i] < 0x7f && !strchr(".:/*", s[i]);
	return letter && !(len == 9 && strncasecmp(s, "localhost", len) == 0);
}

/*
 * Into the normal form; *fresh: it was not there. item is taken. Looked for by its text: entries
 * may be long and alike, and each would be compared with all before it.
 */
static int note(struct rules_reader *rd, json_t *item, bool *fresh)
{
	_cleanup_free char *text = json_text_with(item, JSON_COMPACT | JSON_ENCODE_ANY);
	int rc = text ? 0 : -1;

	*fresh = !text || !json_object_get(rd->seen, text);
	if (rc == 0 && *fresh)
		rc = json_object_set_new(rd->seen, text, json_true());
	if (rc == 0 && *fresh)
		rc = json_array_append(rd->rules->normal, item);
	json_decref(item);
	return rc < 0 ? rules_no_memory(rd) : 0;
}

/* Takes what e holds, in any case. */
static int keep(struct rules_reader *rd, struct rules_entry *e)
{
	struct egress_rules *r = rd->rules;
	bool fresh = true;
	int rc = 0;

	if (!rd->group)
		rc = note(rd, rules_entry_json(e), &fresh);
	if (rc == 0 && fresh && r->n >= EGRESS_RULES_MAX)
		rc = rules_refuse(rd, "is one too many: groups expanded, there may be %u entries",
				  EGRESS_RULES_MAX);
	if (rc == 0 && fresh && r->n == r->cap) {
		size_t cap = r->cap ? 2 * r->cap : 16;
		struct rules_entry *v = realloc(r->v, cap * sizeof(v[0]));

		if (!v)
			rc = rules_no_memory(rd);
		else
			r->v = v;
		r->cap = v ? cap : r->cap;
	}
	if (rc < 0 || !fresh)
		rules_entry_free(e);
	else
		r->v[r->n++] = *e;
	return rc;
}

static int read_rule(struct rules_reader *rd, const json_t *item)
{
	struct rules_entry e = {0};
	int rc = rules_entry_read(rd, &e, item);

	if (rc < 0) {
		rules_entry_free(&e);
		return rc;
	}
	if (rd->group)
		snprintf(e.group, sizeof(e.group), "%s", rd->group);
	return keep(rd, &e);
}

/* "entry 2 ("*.com")", "group "pypi": entry 1". */
static void set_where(struct rules_reader *rd, const json_t *item, size_t i)
{
	const json_t *shown = json_is_object(item) ? json_object_get(item, "host") : item;
	char quoted[EGRESS_QUOTE_MAX] = "", group[EGRESS_GROUP_MAX + 16] = "";

	if (json_is_string(shown))
		egress_quote(quoted, json_string_value(shown), json_string_length(shown));
	if (rd->group)
		snprintf(group, sizeof(group), "group \"%.32s\": ", rd->group);
	snprintf(rd->where, sizeof(rd->where), *quoted ? "%sentry %zu (%s)" : "%sentry %zu%s",
		 group, i + 1, quoted);
}

/* The entries of a list that name no groups. */
static int read_group(struct rules_reader *rd, const char *name, const json_t *list)
{
	size_t i;
	json_t *item;
	int rc = 0;

	snprintf(rd->where, sizeof(rd->where), "group \"%.32s\"", name);
	if (!json_is_array(list))
		return rules_refuse(rd, "is not an array");
	if (json_array_size(list) > EGRESS_ENTRIES_MAX)
		return rules_refuse(rd, "has more than %u entries", EGRESS_ENTRIES_MAX);
	rd->group = name;
	json_array_foreach(list, i, item)
	{
		set_where(rd, item, i);
		if (!json_is_string(item) && !json_is_object(item))
			rc = rules_refuse(rd, "is neither a string nor an object");
		else if (json_is_string(item) &&
			 is_like_word(json_string_value(item), json_string_length(item)))
			rc = rules_refuse(
				rd, "is a word without a dot, and a group can hold no groups");
		else
			rc = read_rule(rd, item);
		if (rc < 0)
			break;
	}
	rd->group = NULL;
	return rc;
}

/* "crates, debian, pypi" */
static void list_groups(const json_t *groups, char *out, size_t size)
{
	const char *key;
	json_t *value;
	size_t used = 0;

	out[0] = 0;
	json_object_foreach((json_t *)(uintptr_t)groups, key, value)
	{
		if (is_word(key, strlen(key)) && used + strlen(key) + 3 < size)
			used += (size_t)snprintf(out + used, size - used, "%s%s", used ? ", " : "",
						 key);
	}
}

static int read_named_group(struct rules_reader *rd, const json_t *item)
{
	const char *name = json_string_value(item);
	const json_t *list = is_word(name, strlen(name)) ? json_object_get(rd->groups, name) : NULL;
	char known[200];
	bool fresh;
	int rc;

	if (!list) {
		list_groups(rd->groups, known, sizeof(known));
		return rules_refuse(rd, "is no group; groups are: %s", *known ? known : "none");
	}
	rc = note(rd, json_string(name), &fresh);
	return rc < 0 || !fresh ? rc : read_group(rd, name, list);
}

static int read_list(struct rules_reader *rd, const json_t *list)
{
	size_t i;
	json_t *item;
	int rc = 0;

	json_array_foreach(list, i, item)
	{
		const char *s = json_string_value(item);

		set_where(rd, item, i);
		if (!json_is_string(item) && !json_is_object(item))
			rc = rules_refuse(rd, "is neither a string nor an object");
		else if (s && is_like_word(s, json_string_length(item)))
			rc = read_named_group(rd, item);
		else
			rc = read_rule(rd, item);
		if (rc < 0)
			break;
	}
	return rc;
}

int egress_rules_parse(struct egress_rules **out, const json_t *list, const json_t *groups,
		       struct err *err)
{
	struct rules_reader rd = {.groups = groups, .err = err};
	int rc;

	if (!json_is_array(list))
		return err_text(err, EINVAL, "the list of entries is not an array");
	if (json_array_size(list) > EGRESS_ENTRIES_MAX)
		return err_text(err, EINVAL, "the list has more than %u entries",
				EGRESS_ENTRIES_MAX);
	rd.rules = calloc(1, sizeof(*rd.rules));
	if (rd.rules)
		rd.rules->normal = json_array();
	rd.seen = json_object();
	rc = rd.rules && rd.rules->normal && rd.seen ? read_list(&rd, list) : rules_no_memory(&rd);
	json_decref(rd.seen);
	if (rc < 0) {
		egress_rules_free(rd.rules);
		return rc;
	}
	*out = rd.rules;
	return 0;
}

json_t *egress_rules_json(const struct egress_rules *r)
{
	return json_incref(r->normal);
}

int egress_groups_check(const json_t *groups, struct err *err)
{
	const char *key;
	json_t *value;
	char quoted[EGRESS_QUOTE_MAX];

	if (!json_is_object(groups))
		return err_text(err, EINVAL, "the groups are not an object");
	json_object_foreach((json_t *)(uintptr_t)groups, key, value)
	{
		struct egress_rules rules = {0};
		struct rules_reader rd = {.rules = &rules, .err = err};
		int rc;

		egress_quote(quoted, key, strlen(key));
		if (!is_word(key, strlen(key)) || strcmp(key, "localhost") == 0)
			return err_text(err, EINVAL,
					"group %s: a name has 1 to %u small letters, digits, "
					"\"-\" and \"_\", and begins with a letter",
					quoted, EGRESS_GROUP_MAX);
		rc = read_group(&rd, key, value);
		for (size_t i = 0; i < rules.n; i++)
			rules_entry_free(&rules.v[i]);
		free(rules.v);
		if (rc < 0)
			return rc;
	}
	return 0;
}
