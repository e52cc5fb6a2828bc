/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists of entries: what is taken and in which normal form, what is refused and with which
 * sentence; and groups, among them those that are shipped.
 */
#include "unit.h"

#include "egress/rules.h"
#include "lib/cleanup.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char groups_json[] = "{\"pypi\": [\"pypi.org\", \"files.pythonhosted.org\"],"
				  " \"wide\": [\"*.example.com\", {\"host\": \"api.example.org\","
				  " \"ports\": [8443], \"methods\": [\"GET\"]}],"
				  " \"nothing\": [],"
				  " \"nested\": [\"pypi\"], \"bad\": [\"pypi.org\", \"*.com\"],"
				  " \"shape\": {}}";

static json_t *load(const char *text)
{
	json_error_t e;
	json_t *json = json_loads(text, JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);

	if (!json)
		fail_msg("%s: %s", text, e.text);
	return json;
}

static int parse(const char *text, struct egress_rules **r, struct err *err)
{
	json_t *list = load(text), *groups = load(groups_json);
	int rc;

	*r = NULL;
	rc = egress_rules_parse(r, list, groups, err);
	json_decref(list);
	json_decref(groups);
	return rc;
}

static void normal_is(const char *text, const char *normal)
{
	struct egress_rules *r, *again;
	struct err err = {0};
	json_t *json, *other;
	char *dump;

	if (parse(text, &r, &err) < 0)
		fail_msg("%s: %s", text, err.msg);
	assert_int_equal(err.num, 0);
	json = egress_rules_json(r);
	dump = json_dumps(json, JSON_COMPACT);
	assert_string_equal(dump, normal);
	/* The normal form means itself. */
	assert_int_equal(parse(dump, &again, &err), 0);
	other = egress_rules_json(again);
	assert_true(json_equal(json, other));
	free(dump);
	json_decref(json);
	json_decref(other);
	egress_rules_free(r);
	egress_rules_free(again);
}

static void test_normal(void **state)
{
	(void)state;
	normal_is("[]", "[]");
	normal_is("[\"API.example.com\"]", "[\"api.example.com\"]");
	normal_is("[\"api.example.com:8443\"]", "[\"api.example.com:8443\"]");
	normal_is("[\"api.example.com:443\"]", "[\"api.example.com:443\"]");
	normal_is("[\"api.example.com:65535\", \"api.example.com:1\"]",
		  "[\"api.example.com:65535\",\"api.example.com:1\"]");
	normal_is("[\"*.Example.com\", \"*.example.com:8443\"]",
		  "[\"*.example.com\",\"*.example.com:8443\"]");
	normal_is("[\"b\\u00fccher.example\", \"*.b\\u00fccher.example\"]",
		  "[\"xn--bcher-kva.example\",\"*.xn--bcher-kva.example\"]");
	normal_is("[\"pypi\", \"wide\", \"nothing\"]", "[\"pypi\",\"wide\",\"nothing\"]");
	normal_is("[{\"host\": \"Api.example.com\"}]", "[\"api.example.com\"]");
	normal_is("[{\"host\": \"*.example.com\", \"ports\": [443, 80, 443], \"tls\": true}]",
		  "[\"*.example.com\"]");
	normal_is("[{\"host\": \"api.example.com\", \"ports\": [443]}]",
		  "[\"api.example.com:443\"]");
	normal_is("[{\"host\": \"api.example.com\", \"ports\": [9000, 22]}]",
		  "[{\"host\":\"api.example.com\",\"ports\":[22,9000]}]");
	normal_is("[{\"host\": \"api.example.com\", \"tls\": false, \"paths\": [\"/v1/\", \"/x\"],"
		  " \"methods\": [\"GET\", \"HEAD\"], \"ports\": [8080]}]",
		  "[{\"host\":\"api.example.com\",\"ports\":[8080],\"methods\":[\"GET\",\"HEAD\"],"
		  "\"paths\":[\"/v1/\",\"/x\"],\"tls\":false}]");
	/* Once each, whichever way it is written. */
	normal_is("[\"pypi\", \"a.example\", \"A.example\", {\"host\": \"a.example\"}, \"pypi\","
		  " {\"host\": \"a.example\", \"ports\": [80, 443]}, \"a.example:80\"]",
		  "[\"pypi\",\"a.example\",\"a.example:80\"]");
}

static void refused(const char *text, const char *sentence)
{
	struct egress_rules *r;
	struct err err = {0};

	if (parse(text, &r, &err) != -EINVAL)
		fail_msg("%s: not refused", text);
	assert_null(r);
	assert_int_equal(err.num, EINVAL);
	assert_string_equal(err.msg, sentence);
}

/* Alone in a list; the sentence is: entry 1 ("entry") phrase. */
static void test_refused_strings(void **state)
{
	static const struct {
		const char *entry, *phrase;
	} rows[] = {
		{"", "is empty"},
		{"*", "would allow everything, which no entry can: name the domains, as in "
		      "\"*.example.com\""},
		{"https://x.example.com:8801",
		 "has a \"/\": an entry is a name, without scheme and path"},
		{"**", "has a \"*\" that is not its whole first label"},
		{"*.", "is empty"},
		{"*.*", "has a \"*\" that is not its whole first label"},
		{"*.com", "is a wildcard with fewer than two labels behind it"},
		{"*.com:443", "is a wildcard with fewer than two labels behind it"},
		{"*.pypi", "is a wildcard with fewer than two labels behind it"},
		{"*example.com", "has a \"*\" that is not its whole first label"},
		{"a*.example.com", "has a \"*\" that is not its whole first label"},
		{"a.*.example.com", "has a \"*\" that is not its whole first label"},
		{"*.*.example.com", "has a \"*\" that is not its whole first label"},
		{"example.*", "has a \"*\" that is not its whole first label"},
		{"*..example.com", "has an empty label"},
		{"*.example.com.", "ends in a dot"},
		{"*.com.", "ends in a dot"},
		{"*.127.0.0.1", "is an address, and only names can be allowed"},
		{"*.a.egress", "is below \"egress\", which is the proxy's own"},
		{"*.a.localhost", "is the machine itself"},
		{"?.example.com", "has a character that no name has"},
		{".example.com", "has an empty label"},
		{"example..com", "has an empty label"},
		{"example.com.", "ends in a dot"},
		{"example.com.:443", "ends in a dot"},
		{"localhost", "is the machine itself"},
		{"localhost:80", "is the machine itself"},
		{"a.localhost", "is the machine itself"},
		{"api.example.com.egress", "is below \"egress\", which is the proxy's own"},
		{"127.0.0.1", "is an address, and only names can be allowed"},
		{"127.0.0.1:80", "is an address, and only names can be allowed"},
		{"2130706433", "is an address, and only names can be allowed"},
		{"0x7f000001", "is an address, and only names can be allowed"},
		{"0x7f.1", "is an address, and only names can be allowed"},
		{"0177.0.0.1", "is an address, and only names can be allowed"},
		{"[::1]", "is an address, and only names can be allowed"},
		{"[::1]:443", "is an address, and only names can be allowed"},
		{"::1", "is an address, and only names can be allowed"},
		{"::ffff:10.0.0.1", "is an address, and only names can be allowed"},
		{"10.0.0.0/8", "has a \"/\": an entry is a name, without scheme and path"},
		{"https://example.com", "has a \"/\": an entry is a name, without scheme and path"},
		{"example.com/v1", "has a \"/\": an entry is a name, without scheme and path"},
		{"user@example.com", "has a character that no name has"},
		{" example.com", "has a character that no name has"},
		{"example.com ", "has a character that no name has"},
		{"a.com,b.com", "has a character that no name has"},
		{"!example.com", "has a character that no name has"},
		{"example.com:", "has a port that is not a number from 1 to 65535"},
		{"example.com:0", "has a port that is not a number from 1 to 65535"},
		{"example.com:65536", "has a port that is not a number from 1 to 65535"},
		{"example.com:99999999999", "has a port that is not a number from 1 to 65535"},
		{"example.com:080", "has a port that is not a number from 1 to 65535"},
		{"example.com:+80", "has a port that is not a number from 1 to 65535"},
		{"example.com:-1", "has a port that is not a number from 1 to 65535"},
		{"example.com: 80", "has a port that is not a number from 1 to 65535"},
		{"example.com:80 ", "has a port that is not a number from 1 to 65535"},
		{"example.com:0x50", "has a port that is not a number from 1 to 65535"},
		{"example.com:*", "has a port that is not a number from 1 to 65535"},
		{"example.com:https", "has a port that is not a number from 1 to 65535"},
		{":443", "is empty"},
		{"pypi:443", "is a single word; names have a dot"},
		{"PyPI", "is no group; groups are: pypi, wide, nothing, nested, bad, shape"},
		{"1a", "is a single word; names have a dot"},
		{"rubygems", "is no group; groups are: pypi, wide, nothing, nested, bad, shape"},
		{"-pypi", "has a label that begins or ends with a hyphen"},
		{"pypi.", "ends in a dot"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		char text[256], sentence[400];
		struct egress_rules *r;

		snprintf(text, sizeof(text), "[\"%s\"]", rows[i].entry);
		snprintf(sentence, sizeof(sentence), "entry 1 (\"%s\") %s", rows[i].entry,
			 rows[i].phrase);
		refused(text, sentence);
		/* The same as an object, where it can be: at least it is refused. */
		snprintf(text, sizeof(text), "[{\"host\": \"%s\"}]", rows[i].entry);
		assert_int_equal(parse(text, &r, NULL), -EINVAL);
	}
}

static void test_refused_bytes(void **state)
{
	(void)state;
	refused("[\"evil.com\\u0000.example.com\"]",
		"entry 1 (\"evil.com\\x{00}.example.com\") has a NUL byte");
	refused("[\"pypi\\u0000\"]", "entry 1 (\"pypi\\x{00}\") has a NUL byte");
	refused("[\"*.\\u0000example.com\"]", "entry 1 (\"*.\\x{00}example.com\") has a NUL byte");
	refused("[\"example.com:80\\u0000\"]",
		"entry 1 (\"example.com:80\\x{00}\") has a port that "
		"is not a number from 1 to 65535");
	refused("[\"a.com\\r\\nb.com\"]",
		"entry 1 (\"a.com\\x{0d}\\x{0a}b.com\") has a control character");
	refused("[\"ex\\u200bample.com\"]",
		"entry 1 (\"ex\\u{200b}ample.com\") has a label that only looks like ASCII");
	refused("[\"\\uff0a.example.com\"]",
		"entry 1 (\"\\u{ff0a}.example.com\") has a label that only looks like ASCII");
	refused("[\"pypi\\u3002org\"]",
		"entry 1 (\"pypi\\u{3002}org\") has a label that only looks like ASCII");
	refused("[\"xn--a.com\"]", "entry 1 (\"xn--a.com\") has a label with \"xn--\" that is not "
				   "the normal form of any");
	refused("[\"a.com\", \"b.com\", \"c..com\"]", "entry 3 (\"c..com\") has an empty label");
}

static void test_refused_shapes(void **state)
{
	static const struct {
		const char *list, *sentence;
	} rows[] = {
		{"null", "the list of entries is not an array"},
		{"{}", "the list of entries is not an array"},
		{"\"*\"", "the list of entries is not an array"},
		{"true", "the list of entries is not an array"},
		{"[null]", "entry 1 is neither a string nor an object"},
		{"[\"a.com\", 1]", "entry 2 is neither a string nor an object"},
		{"[[\"a.com\"]]", "entry 1 is neither a string nor an object"},
		{"[true]", "entry 1 is neither a string nor an object"},
		{"[{}]", "entry 1 has no \"host\" that is a string"},
		{"[{\"host\": null}]", "entry 1 has no \"host\" that is a string"},
		{"[{\"host\": [\"a.com\"]}]", "entry 1 has no \"host\" that is a string"},
		{"[{\"host\": \"pypi\"}]", "entry 1 (\"pypi\") is a single word; names have a dot"},
		{"[{\"host\": \"a.com:443\"}]",
		 "entry 1 (\"a.com:443\") has a \":\" in its host; ports are in \"ports\""},
		{"[{\"host\": \"a.com\", \"port\": 443}]",
		 "entry 1 (\"a.com\") has a member \"port\"; it can have host, ports, methods, "
		 "paths and tls"},
		{"[{\"host\": \"a.com\", \"Methods\": [\"GET\"]}]",
		 "entry 1 (\"a.com\") has a member \"Methods\"; it can have host, ports, methods, "
		 "paths and tls"},
		{"[{\"host\": \"a.com\", \"\": 1}]",
		 "entry 1 (\"a.com\") has a member \"\"; it can have host, ports, methods, "
		 "paths and tls"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		refused(rows[i].list, rows[i].sentence);
}

/* Each member alone with what it must not be; an empty list is not "all". */
static void test_refused_members(void **state)
{
	static const char *const values[] = {
		"\"ports\": 443",
		"\"ports\": null",
		"\"ports\": []",
		"\"ports\": \"443\"",
		"\"ports\": [\"443\"]",
		"\"ports\": [0]",
		"\"ports\": [-1]",
		"\"ports\": [65536]",
		"\"ports\": [4294967739]",
		"\"ports\": [443.0]",
		"\"ports\": [true]",
		"\"ports\": [443, null]",
		"\"ports\": {\"443\": true}",
		"\"ports\": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]",
		"\"methods\": \"GET\"",
		"\"methods\": null",
		"\"methods\": []",
		"\"methods\": [\"\"]",
		"\"methods\": [\"get\"]",
		"\"methods\": [\"GET \"]",
		"\"methods\": [\"*\"]",
		"\"methods\": [\"CONNECT\"]",
		"\"methods\": [\"GET\\u0000\"]",
		"\"methods\": [\"GET\\r\\n\"]",
		"\"methods\": [\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\"]",
		"\"methods\": [1]",
		("\"methods\": [\"A\",\"B\",\"C\",\"D\",\"E\",\"F\",\"G\",\"H\",\"I\",\"J\",\"K\","
		 "\"L\",\"M\",\"N\",\"O\",\"P\",\"Q\"]"),
		"\"paths\": \"/\"",
		"\"paths\": null",
		"\"paths\": []",
		"\"paths\": [\"\"]",
		"\"paths\": [\"v1\"]",
		"\"paths\": [\"*\"]",
		"\"paths\": [\"/v1/../\"]",
		"\"paths\": [\"/v1//x\"]",
		"\"paths\": [\"/./\"]",
		"\"paths\": [\"/v1?x\"]",
		"\"paths\": [\"/v1#x\"]",
		"\"paths\": [\"/v1%2fx\"]",
		"\"paths\": [\"/v1%2\"]",
		"\"paths\": [\"/v1 x\"]",
		"\"paths\": [\"/v1\\u0000x\"]",
		"\"paths\": [\"/\\u00fc\"]",
		"\"paths\": [\"/v1\", 1]",
		"\"tls\": null",
		"\"tls\": 0",
		"\"tls\": \"false\"",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		struct egress_rules *r;
		struct err err = {0};
		char text[400];

		snprintf(text, sizeof(text), "[{\"host\": \"a.com\", %s}]", values[i]);
		if (parse(text, &r, &err) != -EINVAL)
			fail_msg("%s: not refused", text);
		assert_memory_equal(err.msg, "entry 1 (\"a.com\") has ", 22);
	}
	refused("[{\"host\": \"a.com\", \"methods\": [\"get\"]}]",
		"entry 1 (\"a.com\") has \"get\" in \"methods\", which is not a method in "
		"capitals");
	refused("[{\"host\": \"a.com\", \"paths\": [\"/ok\", \"/a/../b\"]}]",
		"entry 1 (\"a.com\") has \"/a/../b\" in \"paths\", which is not a plain path that "
		"begins with \"/\"");
}

static void test_refused_groups(void **state)
{
	struct egress_rules *r = NULL;
	struct err err = {0};
	json_t *list = load("[\"pypi\"]"), *not_object = load("[]");

	(void)state;
	refused("[\"a.com\", \"nested\"]", "group \"nested\": entry 1 (\"pypi\") is a word without "
					   "a dot, and a group can hold no groups");
	refused("[\"bad\"]", "group \"bad\": entry 2 (\"*.com\") is a wildcard with fewer than two "
			     "labels behind it");
	refused("[\"shape\"]", "group \"shape\" is not an array");
	assert_int_equal(egress_rules_parse(&r, list, NULL, &err), -EINVAL);
	assert_string_equal(err.msg, "entry 1 (\"pypi\") is no group; groups are: none");
	assert_int_equal(egress_rules_parse(&r, list, not_object, &err), -EINVAL);
	json_decref(list);
	json_decref(not_object);
}

static void test_groups_check(void **state)
{
	static const struct {
		const char *groups, *sentence; /* NULL: good */
	} rows[] = {
		{"{}", NULL},
		{"{\"a\": [], \"b-2_c\": [\"x.com\", {\"host\": \"*.x.com\"}]}", NULL},
		{"[]", "the groups are not an object"},
		{"null", "the groups are not an object"},
		{"{\"a\": [\"x.com\"], \"b\": [\"10.0.0.1\"]}",
		 "group \"b\": entry 1 (\"10.0.0.1\") is an address, and only names can be "
		 "allowed"},
		{"{\"a\": [\"a\"]}", "group \"a\": entry 1 (\"a\") is a word without a dot, and a "
				     "group can hold no groups"},
		{"{\"a\": \"x.com\"}", "group \"a\" is not an array"},
		{"{\"a\": [1]}", "group \"a\": entry 1 is neither a string nor an object"},
		{"{\"A\": []}", "group \"A\": a name has 1 to 32 small letters, digits, \"-\" and "
				"\"_\", and begins with a letter"},
		{"{\"\": []}", "group \"\": a name has 1 to 32 small letters, digits, \"-\" and "
			       "\"_\", and begins with a letter"},
		{"{\"a.b\": []}", "group \"a.b\": a name has 1 to 32 small letters, digits, \"-\" "
				  "and \"_\", and begins with a letter"},
		{"{\"localhost\": []}",
		 "group \"localhost\": a name has 1 to 32 small letters, digits, \"-\" "
		 "and \"_\", and begins with a letter"},
		{"{\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\": []}",
		 "group \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\": a name has 1 to 32 small letters, "
		 "digits, \"-\" and \"_\", and begins with a letter"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_t *groups = load(rows[i].groups);
		struct err err = {0};
		int rc = egress_groups_check(groups, &err);

		assert_int_equal(rc, rows[i].sentence ? -EINVAL : 0);
		assert_string_equal(err.msg, rows[i].sentence ? rows[i].sentence : "");
		json_decref(groups);
	}
	assert_int_equal(egress_groups_check(NULL, NULL), -EINVAL);
}

/* A list of n names a1.com, a2.com... */
static json_t *names(size_t n, const char *prefix)
{
	json_t *list = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, json_sprintf("%s%zu.com", prefix, i));
	return list;
}

static void test_bounds(void **state)
{
	json_t *list = names(EGRESS_ENTRIES_MAX, "a"), *groups = json_object(), *words;
	struct egress_rules *r = NULL;
	struct err err = {0};

	(void)state;
	assert_int_equal(egress_rules_parse(&r, list, NULL, &err), 0);
	egress_rules_free(r);
	r = NULL;
	json_object_set_new(groups, "a", list);
	assert_int_equal(egress_groups_check(groups, &err), 0);
	json_array_append_new(list, json_string("b.com"));
	assert_int_equal(egress_rules_parse(&r, list, NULL, &err), -EINVAL);
	assert_string_equal(err.msg, "the list has more than 256 entries");
	assert_int_equal(egress_groups_check(groups, &err), -EINVAL);
	assert_string_equal(err.msg, "group \"a\" has more than 256 entries");

	/* 16 groups of 256 are 4096. */
	words = json_array();
	for (size_t i = 0; i < EGRESS_RULES_MAX / EGRESS_ENTRIES_MAX; i++) {
		char group[8];

		snprintf(group, sizeof(group), "g%zu", i);
		json_object_set_new(groups, group, names(EGRESS_ENTRIES_MAX, group));
		json_array_append_new(words, json_string(group));
		json_array_append_new(words, json_string(group)); /* twice is once */
	}
	assert_int_equal(egress_rules_parse(&r, words, groups, &err), 0);
	egress_rules_free(r);
	r = NULL;
	json_array_append_new(words, json_string("b.com"));
	assert_int_equal(egress_rules_parse(&r, words, groups, &err), -EINVAL);
	assert_string_equal(err.msg, "entry 33 (\"b.com\") is one too many: groups expanded, there "
				     "may be 4096 entries");
	assert_null(r);
	json_decref(words);
	json_decref(groups);
	egress_rules_free(NULL);
}

/* A wildcard as long as a name may be, and one more. */
static void test_long_wildcard(void **state)
{
	char label[64], entry[300], text[400];
	struct egress_rules *r;

	(void)state;
	memset(label, 'a', 63);
	label[63] = 0;
	/* 2 + 3 * 64 + 59 = 253 */
	snprintf(entry, sizeof(entry), "*.%s.%s.%s.%s", label, label, label, label + 4);
	assert_int_equal(strlen(entry), EGRESS_HOST_MAX);
	snprintf(text, sizeof(text), "[\"%s\"]", entry);
	normal_is(text, text);
	snprintf(text, sizeof(text), "[\"*.%s.%s.%s.%s\"]", label, label, label, label + 3);
	assert_int_equal(parse(text, &r, NULL), -EINVAL);
}

/* The shipped file: good, and with the groups that are promised. */
static void test_shipped(void **state)
{
	static const struct {
		const char *group, *host;
	} rows[] = {
		{"pypi", "files.pythonhosted.org"},
		{"npm", "registry.npmjs.org"},
		{"debian", "deb.debian.org"},
		{"crates", "static.crates.io"},
		{"github", "raw.githubusercontent.com"},
		{"huggingface", "cas-bridge.xethub.hf.co"},
	};
	json_error_t e;
	json_t *groups = json_load_file(GROUPS_FILE, JSON_REJECT_DUPLICATES, &e);
	struct err err = {0};

	(void)state;
	if (!groups)
		fail_msg("%s:%d: %s", GROUPS_FILE, e.line, e.text);
	if (egress_groups_check(groups, &err) < 0)
		fail_msg("%s", err.msg);
	assert_int_equal(json_object_size(groups), ARRAY_SIZE(rows));
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_t *list = json_pack("[s]", rows[i].group);
		struct egress_query q = {.host = rows[i].host, .port = 443};
		struct egress_rules *r = NULL;
		struct egress_answer a;

		assert_int_equal(egress_rules_parse(&r, list, groups, &err), 0);
		egress_rules_ask(r, &q, &a);
		assert_int_equal(a.match, EGRESS_MATCH);
		assert_true(a.tls);
		assert_memory_equal(a.rule, rows[i].group, strlen(rows[i].group));
		q.host = "example.com";
		egress_rules_ask(r, &q, &a);
		assert_int_equal(a.match, EGRESS_NO_RULE);
		egress_rules_free(r);
		json_decref(list);
	}
	json_decref(groups);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_normal),          cmocka_unit_test(test_refused_strings),
		cmocka_unit_test(test_refused_bytes),   cmocka_unit_test(test_refused_shapes),
		cmocka_unit_test(test_refused_members), cmocka_unit_test(test_refused_groups),
		cmocka_unit_test(test_groups_check),    cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_long_wildcard),   cmocka_unit_test(test_shipped),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
