/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of entries. The input is cut at its first two 0xff: a list, the groups, a name that is
 * asked for. What is taken has a normal form that is taken and is its own; what is allowed is named
 * by an entry; and every refusal has a sentence of one line of ASCII.
 */
#include "egress/rules.h"

#include "input.h"

static json_t *load(const uint8_t *p, size_t len)
{
	return json_loadb((const char *)p, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
}

/* The piece up to the next 0xff, and past it. */
static const uint8_t *piece(const uint8_t **p, size_t *left, size_t *len)
{
	const uint8_t *start = *p, *cut = *left ? memchr(*p, 0xff, *left) : NULL;

	*len = cut ? (size_t)(cut - start) : *left;
	*left -= cut ? *len + 1 : *len;
	*p = cut ? cut + 1 : start + *len;
	return start;
}

static void check_sentence(const struct err *err)
{
	MUST(err->num > 0 && err->msg[0]);
	for (const char *c = err->msg; *c; c++)
		MUST(*c >= 0x20 && *c < 0x7f);
}

static void check_normal(const struct egress_rules *r, const json_t *groups)
{
	json_t *json = egress_rules_json(r), *other;
	struct egress_rules *again = NULL;

	MUST(json && egress_rules_parse(&again, json, groups, NULL) == 0);
	other = egress_rules_json(again);
	MUST(json_equal(json, other));
	json_decref(json);
	json_decref(other);
	egress_rules_free(again);
}

static void check_ask(const struct egress_rules *r, const char *host)
{
	static const char *const methods[] = {NULL, "GET", "POST"}, *const paths[] = {NULL, "/",
										      "/v1/x"};
	static const uint16_t ports[] = {0, 80, 443, 8443};

	for (size_t i = 0; i < 4 * 3 * 3; i++) {
		struct egress_query q = {.host = host,
					 .port = ports[i % 4],
					 .method = methods[i / 4 % 3],
					 .path = paths[i / 12]};
		struct egress_answer a;
		const char *named;

		egress_rules_ask(r, &q, &a);
		MUST(strlen(a.rule) < sizeof(a.rule) && strlen(a.nearest) < sizeof(a.nearest));
		MUST((a.match >= EGRESS_NEEDS_PLAIN) == (a.rule[0] != 0));
		MUST(a.match == EGRESS_MATCH || a.tls);
		if (a.match != EGRESS_MATCH)
			continue;
		MUST(q.port != 0);
		named = strstr(a.rule, ": ") ? strstr(a.rule, ": ") + 2 : a.rule;
		if (named[0] == '*')
			MUST(strlen(host) > strcspn(named + 1, ":") &&
			     strncmp(host + strlen(host) - strcspn(named + 1, ":"), named + 1,
				     strcspn(named + 1, ":")) == 0);
		else
			MUST(strcspn(named, ":") == strlen(host) &&
			     strncmp(named, host, strlen(host)) == 0);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t list_len, groups_len, host_len;
	const uint8_t *list_text = piece(&data, &size, &list_len);
	const uint8_t *groups_text = piece(&data, &size, &groups_len);
	const uint8_t *host_text = piece(&data, &size, &host_len);
	json_t *list = load(list_text, list_len), *groups = load(groups_text, groups_len);
	char host[EGRESS_HOST_MAX + 1];
	struct egress_rules *r = NULL;
	struct err err = {0};

	if (egress_groups_check(groups, &err) < 0)
		check_sentence(&err);
	err = (struct err){0};
	if (egress_rules_parse(&r, list, groups, &err) < 0) {
		check_sentence(&err);
		MUST(r == NULL);
	} else {
		MUST(err.num == 0);
		check_normal(r, groups);
		if (egress_host_normal((const char *)host_text, host_len, host, NULL) == 0)
			check_ask(r, host);
		egress_rules_free(r);
	}
	json_decref(list);
	json_decref(groups);
	return 0;
}
