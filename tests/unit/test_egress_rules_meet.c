/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether two lists have a destination in common.
 */
#include "unit.h"

#include "egress/rules.h"
#include "lib/cleanup.h"

static const char groups_json[] = "{\"pypi\": [\"pypi.org\", \"files.pythonhosted.org\"],"
				  " \"wide\": [\"*.example.com\"], \"nothing\": []}";

static struct egress_rules *parse(const char *text)
{
	json_t *list = json_loads(text, 0, NULL), *groups = json_loads(groups_json, 0, NULL);
	struct egress_rules *r = NULL;
	struct err err = {0};

	if (egress_rules_parse(&r, list, groups, &err) < 0)
		fail_msg("%s: %s", text, err.msg);
	json_decref(list);
	json_decref(groups);
	return r;
}

/* Whether two lists have a destination in common, or at least a name, asked in both orders. */
static void test_meet(void **state)
{
	static const struct {
		const char *a, *b;
		bool meet, name;
	} rows[] = {
		{"[]", "[]", false, false},
		{"[]", "[\"*.example.com\"]", false, false},
		{"[\"a.example.com\"]", "[\"a.example.com\"]", true, true},
		{"[\"a.example.com\"]", "[\"b.example.com\"]", false, false},
		{"[\"a.example.com\"]", "[\"*.example.com\"]", true, true},
		{"[\"example.com\"]", "[\"*.example.com\"]", false, false},
		{"[\"notexample.com\"]", "[\"*.example.com\"]", false, false},
		{"[\"*.example.com\"]", "[\"*.example.com\"]", true, true},
		{"[\"*.a.example.com\"]", "[\"*.example.com\"]", true, true},
		{"[\"*.a.example.com\"]", "[\"*.b.example.com\"]", false, false},
		{"[\"*.a.example.com\"]", "[\"a.example.com\"]", false, false},
		{"[\"a.example.com\"]", "[\"a.example.com:8443\"]", false, true},
		{"[\"a.example.com:80\"]", "[\"*.example.com\"]", true, true},
		{"[\"pypi\"]", "[\"files.pythonhosted.org\"]", true, true},
		{"[\"pypi\"]", "[\"wide\"]", false, false},
		{"[\"nothing\"]", "[\"pypi\"]", false, false},
		{"[{\"host\":\"a.example.com\",\"methods\":[\"GET\"]}]", "[\"a.example.com\"]",
		 true, true},
		{"[{\"host\":\"a.example.com\",\"methods\":[\"GET\"]}]",
		 "[{\"host\":\"a.example.com\",\"methods\":[\"POST\",\"GET\"]}]", true, true},
		{"[{\"host\":\"a.example.com\",\"methods\":[\"GET\"]}]",
		 "[{\"host\":\"a.example.com\",\"methods\":[\"POST\"]}]", false, true},
		{"[{\"host\":\"a.example.com\",\"paths\":[\"/v1\"]}]",
		 "[{\"host\":\"a.example.com\",\"paths\":[\"/v1/x\",\"/y\"]}]", true, true},
		{"[{\"host\":\"a.example.com\",\"paths\":[\"/v1\"]}]",
		 "[{\"host\":\"a.example.com\",\"paths\":[\"/v10\"]}]", false, true},
		/* Each of two entries has something, together they have nothing. */
		{"[{\"host\":\"a.example.com\",\"methods\":[\"GET\"]}]",
		 "[{\"host\":\"b.example.com\",\"methods\":[\"GET\"]},"
		 "{\"host\":\"a.example.com\",\"methods\":[\"PUT\"]}]",
		 false, true},
	};

	(void)state;
	for (size_t i = 0; i < 2 * ARRAY_SIZE(rows); i++) {
		size_t row = i / 2;
		const char *first = i % 2 ? rows[row].a : rows[row].b;
		const char *second = i % 2 ? rows[row].b : rows[row].a;
		struct egress_rules *x = parse(first), *y = parse(second);
		bool name = true;

		if (egress_rules_meet(x, y, &name) != rows[row].meet || name != rows[row].name)
			fail_msg("%s and %s", first, second);
		egress_rules_free(x);
		egress_rules_free(y);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_meet)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
