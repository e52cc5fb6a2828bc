/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is decided from a request's text before any endpoint runs: routes, query
 * parameters, trace context, ids.
 */
#include "unit.h"

#include "daemon/ids.h"
#include "daemon/query.h"
#include "daemon/range.h"
#include "daemon/route.h"
#include "daemon/trace.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct route table[] = {
	{"GET", "/v1/healthz"},    {"POST", "/v1/things"},       {"GET", "/v1/things"},
	{"GET", "/v1/things/:id"}, {"DELETE", "/v1/things/:id"}, {"PUT", "/v1/things/:id/files"},
};

static enum route_result find(const char *method, const char *path, struct route_match *m)
{
	return route_find(table, sizeof(table) / sizeof(table[0]), method, path, m);
}

static void test_found(void **state)
{
	struct route_match m;

	(void)state;
	assert_int_equal(find("GET", "/v1/healthz", &m), ROUTE_OK);
	assert_ptr_equal(m.route, &table[0]);
	assert_string_equal(m.id, "");
	assert_int_equal(find("HEAD", "/v1/healthz", &m), ROUTE_OK);
	assert_int_equal(find("GET", "/v1/things", &m), ROUTE_OK);
	assert_ptr_equal(m.route, &table[2]);
	assert_int_equal(find("DELETE", "/v1/things/a-1", &m), ROUTE_OK);
	assert_ptr_equal(m.route, &table[4]);
	assert_string_equal(m.id, "a-1");
	assert_int_equal(find("PUT", "/v1/things/x/files", &m), ROUTE_OK);
	assert_string_equal(m.id, "x");
}

static void test_not_found(void **state)
{
	static const char *const paths[] = {
		"",
		"/",
		"/v1",
		"/v1/healthz/",
		"/v1/healthzz",
		"/v1/health",
		"//v1/healthz",
		"/v1/things/",
		"/v1/things//",
		"/v1/things/x/",
		"/V1/healthz",
		"/v1/things//files",
		"/v1/things/x/files/",
		"/v1/things/x/y",
		"v1/healthz",
		"/v1/%68ealthz",
		"/v1/things/x/file",
	};
	struct route_match m;

	(void)state;
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		assert_int_equal(find("GET", paths[i], &m), ROUTE_NOT_FOUND);
}

static void test_methods(void **state)
{
	struct route_match m;

	(void)state;
	assert_int_equal(find("PUT", "/v1/things/x", &m), ROUTE_BAD_METHOD);
	assert_string_equal(m.allow, "GET, HEAD, DELETE");
	assert_int_equal(find("GET", "/v1/things/x/files", &m), ROUTE_BAD_METHOD);
	assert_string_equal(m.allow, "PUT");
	assert_int_equal(find("get", "/v1/healthz", &m), ROUTE_BAD_METHOD);
	assert_int_equal(find("", "/v1/things", &m), ROUTE_BAD_METHOD);
	assert_string_equal(m.allow, "POST, GET, HEAD");
}

/* A segment that is longer than any id is a match without an id: the endpoint answers 404. */
static void test_long_segment(void **state)
{
	char path[400] = "/v1/things/";
	struct route_match m;

	(void)state;
	memset(path + 11, 'a', ROUTE_ID_MAX - 1);
	assert_int_equal(find("GET", path, &m), ROUTE_OK);
	assert_int_equal(strlen(m.id), ROUTE_ID_MAX - 1);
	memset(path + 11, 'a', 300);
	assert_int_equal(find("GET", path, &m), ROUTE_OK);
	assert_string_equal(m.id, "");
}

static void query_is(const char *query, const char *value)
{
	char *out = NULL;

	assert_int_equal(query_get(query, "path", &out), 0);
	assert_string_equal(out, value);
	free(out);
}

static void query_fails(const char *query, int rc)
{
	char *out = NULL;

	assert_int_equal(query_get(query, "path", &out), rc);
	assert_null(out);
}

static void test_query(void **state)
{
	(void)state;
	query_is("path=/a/b", "/a/b");
	query_is("path=", "");
	query_is("path", "");
	query_is("x=1&&path=/a&y", "/a");
	query_is("p%61th=/a", "/a");
	query_is("path=a=b", "a=b");
	query_is("path=%2Fa%2fb+c%2B%26", "/a/b c+&");
	query_is("path=%C3%BC", "\xc3\xbc");
	query_is("bad%zz=1&path=x", "x");
	query_fails(NULL, -ENOENT);
	query_fails("", -ENOENT);
	query_fails("&&&", -ENOENT);
	query_fails("Path=/a&path2=/b&apath=c", -ENOENT);
	query_fails("path=/a&path=/a", -EEXIST);
	query_fails("path=%", -EINVAL);
	query_fails("path=%4", -EINVAL);
	query_fails("path=%4&x=1", -EINVAL);
	query_fails("path=%g0", -EINVAL);
	query_fails("path=%0g", -EINVAL);
	query_fails("path=a%00b", -EINVAL);
	query_fails("path=%ff", -EINVAL);
	query_fails("path=\xc3", -EINVAL);
}

static void test_trace(void **state)
{
	static const char good[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
	static const char *const bad[] = {
		NULL,
		"",
		"00",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
		"00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01",
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	};
	char trace[33], span[17], other[33];

	(void)state;
	trace_parse(good, trace, span);
	assert_string_equal(trace, "4bf92f3577b34da6a3ce929d0e0e4736");
	assert_string_equal(span, "00f067aa0ba902b7");
	trace_parse(NULL, other, span);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		trace_parse(bad[i], trace, span);
		assert_int_equal(strlen(trace), 32);
		assert_string_not_equal(trace, other);
		assert_string_equal(span, "");
		memcpy(other, trace, sizeof(other));
	}
}

static void test_ids(void **state)
{
	char a[SANDBOX_ID_LEN + 1], b[SANDBOX_ID_LEN + 1];

	(void)state;
	ids_make(a);
	ids_make(b);
	assert_true(ids_valid(a));
	assert_true(ids_valid(b));
	assert_string_not_equal(a, b);
	assert_false(ids_valid(""));
	assert_false(ids_valid("sbx_"));
	a[5] = 'G';
	assert_false(ids_valid(a));
	b[SANDBOX_ID_LEN - 1] = '\0';
	assert_false(ids_valid(b));
	assert_false(ids_valid("sbx_0123456789abcdef0123456789abcdef0"));
	assert_false(ids_valid("SBX_0123456789abcdef0123456789abcdef"));
}

static void test_range(void **state)
{
	static const char *const none[] = {"",          "bytes",    "bytes=",     "bytes=-",
					   "bytes=-1",  "bytes=5",  "bytes=5-4",  "bytes=1-2,",
					   "bytes=a-",  "byte=1-2", "bytes=1-2 ", "bytes= 1-2",
					   "bytes=+1-2"};
	struct range r;

	(void)state;
	assert_false(range_parse(NULL).given);
	for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++)
		assert_false(range_parse(none[i]).given);
	r = range_parse("bytes=0-0");
	assert_true(r.given && r.first == 0 && r.last == 0);
	r = range_parse("Bytes=007-");
	assert_true(r.given && r.first == 7 && r.last == INT64_MAX);
	r = range_parse("bytes=9223372036854775807-99999999999999999999999");
	assert_true(r.given && r.first == INT64_MAX && r.last == INT64_MAX);
	r = range_parse("bytes=1-9223372036854775808");
	assert_true(r.given && r.first == 1 && r.last == INT64_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_found),   cmocka_unit_test(test_not_found),
		cmocka_unit_test(test_methods), cmocka_unit_test(test_long_segment),
		cmocka_unit_test(test_query),   cmocka_unit_test(test_trace),
		cmocka_unit_test(test_ids),     cmocka_unit_test(test_range),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
