/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rules against destinations: names, ports, methods, paths, tunnels, and the entry that is named to
 * whoever was refused.
 */
#include "unit.h"

#include "egress/rules.h"
#include "egress/rules_impl.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char groups_json[] = "{\"pypi\": [\"pypi.org\", \"files.pythonhosted.org\"],"
				  " \"wide\": [\"*.wide.example\"]}";

static struct egress_rules *rules_of(const char *text)
{
	json_t *list = json_loads(text, 0, NULL), *groups = json_loads(groups_json, 0, NULL);
	struct egress_rules *r = NULL;
	struct err err = {0};

	assert_non_null(list);
	if (egress_rules_parse(&r, list, groups, &err) < 0)
		fail_msg("%s: %s", text, err.msg);
	json_decref(list);
	json_decref(groups);
	return r;
}

/* One question to a list: the answer. */
static struct egress_answer ask(const char *text, const char *host, uint16_t port,
				const char *method, const char *path)
{
	struct egress_rules *r = rules_of(text);
	struct egress_query q = {.host = host, .port = port, .method = method, .path = path};
	struct egress_answer a;

	memset(&a, 0xee, sizeof(a));
	egress_rules_ask(r, &q, &a);
	egress_rules_free(r);
	/* What is filled when. */
	assert_int_equal(*a.rule != 0, a.match >= EGRESS_NEEDS_PLAIN);
	if (a.match == EGRESS_MATCH)
		assert_string_equal(a.nearest, "");
	return a;
}

static enum egress_match tunnel(const char *text, const char *host, uint16_t port)
{
	return ask(text, host, port, NULL, NULL).match;
}

static void test_nothing(void **state)
{
	struct egress_answer a = ask("[]", "example.com", 443, NULL, NULL);

	(void)state;
	assert_int_equal(a.match, EGRESS_NO_RULE);
	assert_string_equal(a.nearest, "");
	assert_int_equal(tunnel("[]", "example.com", 80), EGRESS_NO_RULE);
	assert_int_equal(ask("[]", "example.com", 80, "GET", "/").match, EGRESS_NO_RULE);
	assert_int_equal(ask("[]", "", 80, "GET", "/").match, EGRESS_NO_RULE);
}

static void test_names(void **state)
{
	static const char *const others[] = {
		"",
		"com",
		"xample.com",
		"xapi.example.com",
		"api.example.com.evil.com",
		"api.example.co",
		"api.example.comm",
		"example.com",
		"www.api.example.com",
		"api-example.com",
		"api.example.org",
		"API.example.com", /* not in normal form: nobody asks so, and nothing matches */
		"api.example.com.",
		"api.example.com:443",
	};
	static const char list[] = "[\"api.example.com\"]";

	(void)state;
	assert_int_equal(tunnel(list, "api.example.com", 443), EGRESS_MATCH);
	assert_int_equal(tunnel(list, "api.example.com", 80), EGRESS_MATCH);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		assert_int_equal(tunnel(list, others[i], 443), EGRESS_NO_RULE);
}

static void test_wildcards(void **state)
{
	static const char *const below[] = {
		"a.example.com",
		"a.b.c.example.com",
		"xn--bcher-kva.example.com",
		"example.com.example.com",
	};
	static const char *const others[] = {
		"example.com",
		".example.com", /* no such form, and still not below it */
		"notexample.com",
		"a.notexample.com",
		"a.example.com.evil.com",
		"a.example.org",
		"com",
		"",
		"a.Example.com",
	};
	static const char list[] = "[\"*.example.com\"]";

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(below); i++) {
		struct egress_answer a = ask(list, below[i], 443, NULL, NULL);

		assert_int_equal(a.match, EGRESS_MATCH);
		assert_string_equal(a.rule, "*.example.com");
	}
	for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
		assert_int_equal(tunnel(list, others[i], 443), EGRESS_NO_RULE);
		assert_int_equal(ask(list, others[i], 80, "GET", "/").match, EGRESS_NO_RULE);
	}
	assert_int_equal(tunnel("[\"*.example.com:8443\"]", "a.example.com", 8443), EGRESS_MATCH);
	assert_int_equal(tunnel("[\"*.example.com:8443\"]", "a.example.com", 443), EGRESS_NO_PORT);
}

static void test_ports(void **state)
{
	static const char list[] = "[\"a.example:8443\", \"b.example\","
				   " {\"host\": \"c.example\", \"ports\": [22, 65535]}]";
	struct egress_answer a;

	(void)state;
	assert_int_equal(tunnel(list, "a.example", 8443), EGRESS_MATCH);
	a = ask(list, "a.example", 443, NULL, NULL);
	assert_int_equal(a.match, EGRESS_NO_PORT);
	assert_string_equal(a.nearest, "a.example:8443");
	assert_int_equal(tunnel(list, "a.example", 80), EGRESS_NO_PORT);
	assert_int_equal(tunnel(list, "b.example", 443), EGRESS_MATCH);
	assert_int_equal(tunnel(list, "b.example", 80), EGRESS_MATCH);
	assert_int_equal(tunnel(list, "b.example", 8443), EGRESS_NO_PORT);
	assert_int_equal(tunnel(list, "b.example", 0), EGRESS_NO_PORT);
	assert_int_equal(tunnel(list, "c.example", 22), EGRESS_MATCH);
	assert_int_equal(tunnel(list, "c.example", 65535), EGRESS_MATCH);
	assert_int_equal(tunnel(list, "c.example", 443), EGRESS_NO_PORT);
	/* Entries add up. */
	assert_int_equal(tunnel("[\"a.example:1\", \"a.example:2\"]", "a.example", 2),
			 EGRESS_MATCH);
}

static void test_groups(void **state)
{
	struct egress_answer a = ask("[\"pypi\", \"wide\"]", "pypi.org", 443, NULL, NULL);

	(void)state;
	assert_int_equal(a.match, EGRESS_MATCH);
	assert_string_equal(a.rule, "pypi: pypi.org");
	a = ask("[\"pypi\", \"wide\"]", "a.wide.example", 80, "GET", "/");
	assert_string_equal(a.rule, "wide: *.wide.example");
	a = ask("[\"pypi\"]", "a.wide.example", 443, NULL, NULL);
	assert_int_equal(a.match, EGRESS_NO_RULE);
	a = ask("[\"pypi\"]", "test.pypi.org", 443, NULL, NULL);
	assert_int_equal(a.match, EGRESS_NO_RULE);
	assert_string_equal(a.nearest, "pypi: pypi.org");
	a = ask("[\"pypi\"]", "pypi.org", 8080, NULL, NULL);
	assert_int_equal(a.match, EGRESS_NO_PORT);
	assert_string_equal(a.nearest, "pypi: pypi.org");
}

static const char restricted[] =
	"[{\"host\": \"m.example\", \"methods\": [\"GET\", \"HEAD\"]},"
	" {\"host\": \"p.example\", \"paths\": [\"/v1/\", \"/status\"]},"
	" {\"host\": \"b.example\", \"methods\": [\"POST\"], \"paths\": [\"/v1/\"]}]";

static void test_methods(void **state)
{
	struct egress_answer a = ask(restricted, "m.example", 80, "POST", "/");

	(void)state;
	assert_int_equal(a.match, EGRESS_NO_METHOD);
	assert_string_equal(a.nearest, "m.example");
	assert_int_equal(ask(restricted, "m.example", 80, "GET", "/x").match, EGRESS_MATCH);
	assert_int_equal(ask(restricted, "m.example", 443, "HEAD", "/").match, EGRESS_MATCH);
	assert_int_equal(ask(restricted, "m.example", 80, "get", "/").match, EGRESS_NO_METHOD);
	assert_int_equal(ask(restricted, "m.example", 80, "", "/").match, EGRESS_NO_METHOD);
	assert_int_equal(ask(restricted, "m.example", 80, "GETX", "/").match, EGRESS_NO_METHOD);
	assert_int_equal(ask(restricted, "m.example", 81, "GET", "/").match, EGRESS_NO_PORT);
	/* A path that is not plain is nothing to a rule without paths. */
	assert_int_equal(ask(restricted, "m.example", 80, "GET", "/a/../b").match, EGRESS_MATCH);
	assert_int_equal(ask(restricted, "m.example", 80, "GET", NULL).match, EGRESS_MATCH);
}

static void test_paths(void **state)
{
	static const char *const good[] = {
		"/v1/",    "/v1/x",    "/v1/x/y/",  "/v1/%20",   "/v1/.hidden", "/v1/..x",
		"/status", "/status/", "/status/x", "/v1/a;b=c", "/v1/a.b..c",
	};
	static const char *const bad[] = {
		"/",       "",         "/v1",          "/v10/",
		"/V1/",    "/statusx", "/status.html", "/v2/v1/",
		"v1/",     "/%761/",   "/v1/../",      "/v1/..",
		"/v1/./x", "/v1//x",   "/v1/%2e%2e/x", "http://p.example/v1/",
		"*",       "/v1/...",
	};
	struct egress_answer a = ask(restricted, "p.example", 80, "GET", "/v2/");

	(void)state;
	assert_int_equal(a.match, EGRESS_NO_PATH);
	assert_string_equal(a.nearest, "p.example");
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		if (ask(restricted, "p.example", 80, "PUT", good[i]).match != EGRESS_MATCH)
			fail_msg("%s", good[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		if (ask(restricted, "p.example", 80, "PUT", bad[i]).match != EGRESS_NO_PATH)
			fail_msg("%s", bad[i]);
	}
	assert_int_equal(ask(restricted, "b.example", 80, "POST", "/v1/x").match, EGRESS_MATCH);
	assert_int_equal(ask(restricted, "b.example", 80, "POST", "/x").match, EGRESS_NO_PATH);
	assert_int_equal(ask(restricted, "b.example", 80, "GET", "/v1/x").match, EGRESS_NO_METHOD);
	assert_int_equal(ask("[{\"host\": \"a.example\", \"paths\": [\"/\"]}]", "a.example", 80,
			     "GET", "/any/thing")
				 .match,
			 EGRESS_MATCH);
}

/* Where two programs could see two paths. */
static void test_plain(void **state)
{
	static const char *const plain[] = {
		"/",
		"/a",
		"/a/",
		"/a.b",
		"/a..b",
		"/..a",
		"/a..",
		"/.a",
		"/a;x",
		"/a;..",
		"/a;x/b",
		"/%20",
		"/%41",
		"/%c3%bc",
		"/~a-b_c!$&'()*+,=:@",
		"/a%3bb",
		"/.%61",
		"/C%23/x",
		"/a%3fb/c",
		"/..9",
		"/.x.",
		"/%e6%97%a5%e6%9c%ac.txt",
		"/%d0%b0.%d0%b1",
		"/%f0%9f%98%80",
		"/%ed%9f%bf",
		"/-",
		"/_/-/",
		"/.-",
		"/.%20/",
		"/a..%20",
		"/%ef%bc%a1",
		"/%e0%a0%80",
		"/%f4%8f%bf%bf",
		/* wide "(", ")", ",", ":", "!" and a wide dot that nobody takes for one */
		"/%e6%97%a5%ef%bc%88%e6%9c%ac%ef%bc%89.txt",
		"/%ef%bc%8c/%ef%bc%9a/%ef%bc%81/%e3%80%82",
		/* names that begin with "#" or "?" */
		"/%23",
		"/rooms/%23room%3aexample.org",
		"/a/%3f",
		"/%23;..",
	};
	static const char *const not_plain[] = {
		"",
		"a",
		"*",
		"//",
		"//a",
		"/a//b",
		"/a//",
		"/.",
		"/..",
		"/./",
		"/../",
		"/a/.",
		"/a/..",
		"/a/./b",
		"/a/../b",
		"/%2e",
		"/%2E%2e/",
		"/.%2e/",
		"/%2e./a",
		"/a/%2e%2e/b",
		"/a%2fb",
		"/a%2Fb",
		"/a%5cb",
		"/a\\b",
		"/\\..\\b",
		"/a%25b",
		"/%252e%252e/",
		"/%25%32%65",
		"/%",
		"/%2",
		"/%2g",
		"/%g0",
		"/%u002e",
		"/a%00b",
		"/%0a",
		"/%0d%0a",
		"/%7f",
		"/a b",
		"/a\tb",
		"/a\r\nb",
		"/a?b",
		"/a#b",
		"/\xc3\xbc",
		"/\x7f",
		"/%c0%ae%c0%ae/",
		"/%c0%af",
		"/%C1%9c",
		"/..;/",
		"/..;./a",
		"/a/..;.",
		"/..;x/a",
		"/a/..;a=b/c",
		"/.;/",
		"/;x",
		"/;/a",
		"/a/;x/b",
		"/..%3b/a",
		"/%2e%2e;/",
		/* longer dots: of old they led to grandparents, and dots at an end are dropped */
		"/...",
		"/a/.../b",
		"/...;x",
		/* what a server drops behind dots, or around them */
		"/..%20",
		"/..%20/x",
		"/..,/",
		"/..%c2%a0/",
		"/..%e2%80%8b/",
		"/..:/",
		"/..-a/",
		"/%20../",
		"/%e2%80%8b../",
		"/..%c3%bc",
		/* a query or a fragment, once it is decoded */
		"/..%3f/a",
		"/..%3Fx",
		"/a/.%23/",
		"/%23/",
		"/a/%3f/b",
		"/a/%3f/",
		"/a/;%23",
		"/..%23",
		/* no letter or digit of ASCII beside ".." */
		"/%d0%b0..%d0%b1",
		/* not UTF-8, overlong forms of "." and "/" among it */
		"/%ff",
		"/%80",
		"/%c3",
		"/%c3/",
		"/%c3x",
		"/%c3%c3",
		"/%c3\xbc",
		"/%e0%80%ae%e0%80%ae/",
		"/%e0%80%af",
		"/%e0%9f%bf",
		"/%f0%80%80%ae",
		"/%f0%80%80%af",
		"/%f0%8f%bf%bf",
		"/%f4%90%80%80",
		"/%f5%80%80%80",
		"/%f8%80%80%80%ae",
		"/%ed%a0%80",
		"/%e2%80",
		/* what looks like a dot, a slash... */
		"/%ef%bc%8e%ef%bc%8e/",
		"/%ef%bc%8f",
		"/a%ef%bc%bcb",
		"/%e2%80%a4%e2%80%a4/",
		"/%e2%80%a5/",
		"/%e2%80%a6",
		"/%ef%b9%92%ef%b9%92/",
		"/%ef%b9%a8",
		"/a%e2%88%95b",
		"/a%e2%81%84b",
		"/a%e2%88%96b",
		"/a%e2%a7%b5b",
		"/a%e2%a7%b8b",
		"/%ef%bc%852e",
		"/%ef%b8%b0/",
		"/a%c2%a5b",
		"/%e2%84%80",
		"/%f0%9f%84%80",
		"/%cd%be",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(plain); i++) {
		if (!rules_path_plain(plain[i]))
			fail_msg("%s should be plain", plain[i]);
	}
	for (size_t i = 0; i < ARRAY_SIZE(not_plain); i++) {
		struct egress_answer a = ask("[{\"host\": \"a.example\", \"paths\": [\"/\"]}]",
					     "a.example", 80, "GET", not_plain[i]);

		if (rules_path_plain(not_plain[i]) || a.match != EGRESS_NO_PATH)
			fail_msg("%s should not be plain", not_plain[i]);
	}
}

static void test_tunnels(void **state)
{
	struct egress_answer a = ask(restricted, "b.example", 443, NULL, NULL);

	(void)state;
	assert_int_equal(a.match, EGRESS_NEEDS_PLAIN);
	assert_string_equal(a.rule, "b.example");
	assert_string_equal(a.nearest, "b.example");
	assert_int_equal(tunnel(restricted, "m.example", 443), EGRESS_NEEDS_PLAIN);
	assert_int_equal(tunnel(restricted, "p.example", 443), EGRESS_NEEDS_PLAIN);
	assert_int_equal(tunnel(restricted, "p.example", 444), EGRESS_NO_PORT);
	/* Half of it known is not enough. */
	assert_int_equal(ask(restricted, "b.example", 443, "POST", NULL).match, EGRESS_NEEDS_PLAIN);
	assert_int_equal(ask(restricted, "b.example", 443, NULL, "/v1/").match, EGRESS_NEEDS_PLAIN);
	/* Another entry that asks for neither lets the tunnel through. */
	assert_int_equal(tunnel("[{\"host\": \"a.example\", \"methods\": [\"GET\"]},"
				" \"*.b.example:1\", \"a.example:443\"]",
				"a.example", 443),
			 EGRESS_MATCH);
}

static void test_tls(void **state)
{
	static const char list[] = "[\"*.a.example\", {\"host\": \"x.a.example\", \"tls\": false,"
				   " \"ports\": [22]}, {\"host\": \"y.a.example\", \"tls\": false,"
				   " \"methods\": [\"GET\"]}, {\"host\": \"x.a.example\","
				   " \"ports\": [22, 23]}]";

	(void)state;
	assert_true(ask(list, "w.a.example", 443, NULL, NULL).tls);
	assert_true(ask(list, "x.a.example", 443, NULL, NULL).tls); /* another port */
	assert_true(ask(list, "x.a.example", 23, NULL, NULL).tls);
	assert_false(ask(list, "x.a.example", 22, NULL, NULL).tls);
	/* The entry that would not ask for TLS does not allow this tunnel. */
	assert_int_equal(tunnel(list, "y.a.example", 443), EGRESS_MATCH);
	assert_true(ask(list, "y.a.example", 443, NULL, NULL).tls);
	/* A denial never says that TLS may be left out. */
	assert_true(ask(list, "x.a.example", 24, NULL, NULL).tls);
	assert_true(ask(list, "z.example", 22, NULL, NULL).tls);
	/* In either order. */
	assert_false(ask("[{\"host\": \"a.example\", \"tls\": false}, \"*.b.example\"]",
			 "a.example", 443, NULL, NULL)
			     .tls);
	assert_false(ask("[{\"host\": \"x.b.example\", \"tls\": false}, \"*.b.example\"]",
			 "x.b.example", 443, NULL, NULL)
			     .tls);
}

/* The best of several, wherever in the list it is. */
static void test_order(void **state)
{
	static const char *const entries[] = {
		"\"*.z.example\"",
		"\"a.example:1\"",
		"{\"host\": \"a.example\", \"methods\": [\"PUT\"]}",
		"{\"host\": \"a.example\", \"paths\": [\"/x/\"]}",
		"\"a.example:80\"",
	};
	static const enum egress_match best[] = {EGRESS_NO_RULE, EGRESS_NO_PORT, EGRESS_NO_METHOD,
						 EGRESS_NO_PATH, EGRESS_MATCH};

	(void)state;
	for (size_t n = 1; n <= ARRAY_SIZE(entries); n++) {
		char up[512] = "[", down[512] = "[";

		for (size_t i = 0; i < n; i++) {
			snprintf(up + strlen(up), sizeof(up) - strlen(up), "%s%s", i ? "," : "",
				 entries[i]);
			snprintf(down + strlen(down), sizeof(down) - strlen(down), "%s%s",
				 i ? "," : "", entries[n - 1 - i]);
		}
		strcat(up, "]");
		strcat(down, "]");
		assert_int_equal(ask(up, "a.example", 80, "GET", "/").match, best[n - 1]);
		assert_int_equal(ask(down, "a.example", 80, "GET", "/").match, best[n - 1]);
	}
}

static void test_nearest(void **state)
{
	static const struct {
		const char *host, *nearest;
	} rows[] = {
		{"example.com", "*.example.com"},            /* itself, not below */
		{"www.example.org", "example.org"},          /* below, not itself */
		{"api.exmaple.net", "api.example.net:8443"}, /* two changed places */
		{"api.exampl.net", "api.example.net:8443"},
		{"api.examplee.net", "api.example.net:8443"},
		{"api.ezample.net", "api.example.net:8443"},
		{"www.example.net", "api.example.net:8443"}, /* the same owner */
		{"example.net", "api.example.net:8443"},
		{"api.exam.net", ""},
		{"api.xqample.net", ""},
		{"elsewhere.test", ""},
		{"pypi.or", "pypi: pypi.org"},
		{"net", ""},
		{"", ""},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct egress_answer a = ask("[\"*.example.com\", \"example.org\","
					     " \"api.example.net:8443\", \"pypi\"]",
					     rows[i].host, 443, NULL, NULL);

		assert_int_equal(a.match, EGRESS_NO_RULE);
		assert_string_equal(a.nearest, rows[i].nearest);
	}
	/* The nearer of two. */
	assert_string_equal(
		ask("[\"b.example.com\", \"a.example.com\"]", "x.a.example.com", 443, NULL, NULL)
			.nearest,
		"a.example.com");
}

/* The longest text: group, wildcard, name, port. */
static void test_long_texts(void **state)
{
	char label[64], name[EGRESS_HOST_MAX + 1], list[400], expect[500];
	json_t *groups = json_object(), *words;
	struct egress_query q = {.port = 65535};
	struct egress_rules *r = NULL;
	struct egress_answer a;

	(void)state;
	memset(label, 'a', 63);
	label[63] = 0;
	snprintf(name, sizeof(name), "%s.%s.%s.%s", label, label, label, label + 4);
	snprintf(list, sizeof(list), "*.%s:65535", name);
	json_object_set_new(groups, label + 63 - EGRESS_GROUP_MAX, json_pack("[s]", list));
	words = json_pack("[s]", label + 63 - EGRESS_GROUP_MAX);
	assert_int_equal(egress_rules_parse(&r, words, groups, NULL), 0);
	snprintf(expect, sizeof(expect), "%s: %s", label + 63 - EGRESS_GROUP_MAX, list);
	q.host = name;
	egress_rules_ask(r, &q, &a);
	assert_int_equal(a.match, EGRESS_NO_RULE);
	assert_string_equal(a.nearest, expect);
	egress_rules_free(r);
	json_decref(groups);
	json_decref(words);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing),    cmocka_unit_test(test_names),
		cmocka_unit_test(test_wildcards),  cmocka_unit_test(test_ports),
		cmocka_unit_test(test_groups),     cmocka_unit_test(test_methods),
		cmocka_unit_test(test_paths),      cmocka_unit_test(test_plain),
		cmocka_unit_test(test_tunnels),    cmocka_unit_test(test_tls),
		cmocka_unit_test(test_order),      cmocka_unit_test(test_nearest),
		cmocka_unit_test(test_long_texts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
