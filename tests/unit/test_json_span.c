/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scanner over a guest's JSON: what it takes, what it refuses, what it finds.
 */
#include "unit.h"

#include "daemon/json_span.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {"a", "b"};
static struct json_span v[2];

static int scan(const char *text)
{
	return json_span_members((struct json_span){(const uint8_t *)text, strlen(text)}, names, v,
				 2);
}

static void span_is(struct json_span s, const char *text)
{
	assert_non_null(s.p);
	assert_int_equal(s.len, strlen(text));
	assert_memory_equal(s.p, text, s.len);
}

static void test_members(void **state)
{
	(void)state;
	assert_int_equal(scan("{}"), 0);
	assert_null(v[0].p);
	assert_null(v[1].p);
	assert_int_equal(scan(" { \"b\" : [1, {\"a\": 2}] ,\"x\":0,\"a\":-1.5e+3 } "), 0);
	span_is(v[0], "-1.5e+3");
	span_is(v[1], "[1, {\"a\": 2}]");
	assert_int_equal(scan("{\"a\":null,\"b\":\"\\\"\"}"), 0);
	assert_null(v[0].p);
	span_is(v[1], "\"\\\"\"");
	/* Names are compared as they are written. */
	assert_int_equal(scan("{\"\\u0061\":1,\"b\":{}}"), 0);
	assert_null(v[0].p);
	span_is(v[1], "{}");
	assert_int_equal(scan("{\"a\":[],\"b\":[[],[[]],{\"c\":{}},true,false,null,0,\"\"]}"), 0);
}

static void test_refused(void **state)
{
	static const char *const bad[] = {
		"",
		" ",
		"{",
		"}",
		"[]",
		"1",
		"\"a\"",
		"{}}",
		"{} {}",
		"{\"a\"}",
		"{\"a\":}",
		"{\"a\":1,}",
		"{,}",
		"{a:1}",
		"{\"a\":1 \"b\":2}",
		"{\"a\":1,\"a\":1}",
		"{\"a\":null,\"a\":1}",
		"{\"a\":01}",
		"{\"a\":+1}",
		"{\"a\":.5}",
		"{\"a\":1.}",
		"{\"a\":1e}",
		"{\"a\":-}",
		"{\"a\":tru}",
		"{\"a\":nulll}",
		"{\"a\":NaN}",
		"{\"a\":[}",
		"{\"a\":[1,]}",
		"{\"a\":[1}]",
		"{\"a\":{\"b\":1]}",
		"{\"a\":{1:1}}",
		"{\"a\":\"}",
		"{\"a\":\"\\\"}",
		"{\"a\":\"\\x\"}",
		"{\"a\":\"\\u12\"}",
		"{\"a\":\"\\u12x4\"}",
		"{\"a\":\"\n\"}",
		"{\"a\":\"\x80\"}",
		"{\"a\":\"\xed\xa0\x80\"}",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(scan(bad[i]), -EPROTO);
	assert_int_equal(json_span_members((struct json_span){0}, names, v, 2), -EPROTO);
}

/* The deepest that is taken, and one more. */
static void test_depth(void **state)
{
	char text[2 * JSON_SPAN_DEPTH + 16];

	(void)state;
	for (size_t depth = JSON_SPAN_DEPTH; depth <= JSON_SPAN_DEPTH + 1; depth++) {
		size_t n = (size_t)sprintf(text, "{\"a\":");

		/* The innermost is empty: it opens nothing. */
		memset(text + n, '[', depth + 1);
		memset(text + n + depth + 1, ']', depth + 1);
		strcpy(text + n + 2 * (depth + 1), "}");
		assert_int_equal(scan(text), depth == JSON_SPAN_DEPTH ? 0 : -EPROTO);
	}
}

static void text_is(const char *json, const char *text, size_t len)
{
	size_t n = 0;
	uint8_t *got;

	assert_int_equal(scan(json), 0);
	got = json_span_text(v[0], &n);
	assert_non_null(got);
	assert_int_equal(n, len);
	assert_memory_equal(got, text, len);
	free(got);
}

static void test_text(void **state)
{
	(void)state;
	text_is("{\"a\":\"\"}", "", 0);
	text_is("{\"a\":\"x\\n\\t\\r\\b\\f\\/\\\\\\\"\"}", "x\n\t\r\b\f/\\\"", 9);
	text_is("{\"a\":\"\\u0041\\u00e9\\u20AC\\ud83d\\ude00\"}",
		"A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 10);
	text_is("{\"a\":\"\\u0000\"}", "\0", 1);
	text_is("{\"a\":\"\\ud800\"}", "\xef\xbf\xbd", 3);
	text_is("{\"a\":\"\\ud800\\n\"}", "\xef\xbf\xbd\n", 4);
	text_is("{\"a\":\"\\ud800\\u0041\"}",
		"\xef\xbf\xbd"
		"A",
		4);
	text_is("{\"a\":\"\\udc00\\ud800\"}", "\xef\xbf\xbd\xef\xbf\xbd", 6);
}

static void test_one_line(void **state)
{
	struct buf out;

	(void)state;
	buf_init(&out, 100);
	assert_int_equal(scan("{\"a\":[1,\r\n2,\"\\n\"]}"), 0);
	assert_int_equal(json_span_append(&out, v[0]), 0);
	assert_int_equal(buf_len(&out), 12);
	assert_memory_equal(buf_data(&out), "[1,  2,\"\\n\"]", 12);
	buf_free(&out);
	buf_init(&out, 3);
	assert_int_equal(json_span_append(&out, v[0]), -ENOMEM);
	buf_free(&out);
}

/* Python reads no integer of 4300 digits; a text of them is read by everybody. */
static void test_long_numbers(void **state)
{
	static char text[3 * JSON_SPAN_NUMBER + 200], wanted[sizeof(text)];
	struct buf out;

	(void)state;
	for (unsigned int n = JSON_SPAN_NUMBER - 1; n <= JSON_SPAN_NUMBER + 1; n++) {
		const char *mark = n > JSON_SPAN_NUMBER ? "\"" : "";
		char number[JSON_SPAN_NUMBER + 2];

		memset(number, '7', n);
		number[n] = '\0';
		number[0] = '-';
		number[1] = '1';
		number[2] = n % 2 ? '.' : '7';
		snprintf(text, sizeof(text), "{\"a\":[%s,\"\\\"%s\",{\"b\":%s}, 1e9 ,true]}",
			 number, number, number);
		snprintf(wanted, sizeof(wanted), "[%s%s%s,\"\\\"%s\",{\"b\":%s%s%s}, 1e9 ,true]",
			 mark, number, mark, number, mark, number, mark);
		assert_int_equal(scan(text), 0);
		buf_init(&out, sizeof(text));
		assert_int_equal(json_span_append(&out, v[0]), 0);
		assert_int_equal(buf_len(&out), strlen(wanted));
		assert_memory_equal(buf_data(&out), wanted, buf_len(&out));
		buf_free(&out);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_members),  cmocka_unit_test(test_refused),
		cmocka_unit_test(test_depth),    cmocka_unit_test(test_text),
		cmocka_unit_test(test_one_line), cmocka_unit_test(test_long_numbers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
