/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scanner over a guest's JSON: what it takes, what it refuses, what it finds.
 */
#include "unit.h"

#include "daemon/json_feed.h"

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
	/* In the smallest pieces that there are, and in one. */
	for (size_t step = 4; step <= 100; step += 96) {
		uint8_t got[100];
		struct json_span left;
		size_t n = 0;

		assert_int_equal(scan(json), 0);
		left = json_span_inside(v[0]);
		while (left.len)
			n += json_span_unescape(&left, got + n, step);
		assert_int_equal(n, len);
		assert_memory_equal(got, text, len);
	}
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

/* Byte by byte, and in two pieces at every place: nothing else comes of it than of the whole. */
static void test_pieces(void **state)
{
	static const struct {
		const char *text;
		int rc;
	} cases[] = {
		{" { \"b\" : [1, {\"a\": 2}, []] ,\"x\":0,\"a\":-1.5e+3 } ", 0},
		{"{\"a\":null,\"b\":\"\\\"\\u00e9\xc3\xa9\xf0\x9f\x98\x80\"}", 0},
		{"{\"a\":[[],[[]],{\"c\":{}},true,false,null,0,-0.5E-1,\"\"]}", 0},
		{"{\"a\":1,\"a\":1}", -EPROTO},
		{"{\"a\":1e}", -EPROTO},
		{"{\"a\":\"\xc3\"}", -EPROTO},
		{"{\"a\":{}}}", -EPROTO},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const uint8_t *text = (const uint8_t *)cases[i].text;
		size_t len = strlen(cases[i].text);
		struct json_span got[2];

		assert_int_equal(scan(cases[i].text), cases[i].rc);
		for (size_t cut = 0; cut <= len; cut++) {
			struct json_feed f;

			json_feed_init(&f, names, 2, 0, NULL);
			if (cut == 0)
				for (size_t n = 1; n < len; n++)
					json_feed_more(&f, text, n);
			else
				json_feed_more(&f, text, cut);
			json_feed_more(&f, text, len);
			assert_int_equal(json_feed_end(&f, text, got, NULL, NULL), cases[i].rc);
			if (cases[i].rc == 0)
				assert_memory_equal(got, v, sizeof(v));
			/* The beginning of a text is none. */
			json_feed_init(&f, names, 2, 0, NULL);
			json_feed_more(&f, text, cut);
			if (cut < len - 1)
				assert_int_equal(json_feed_end(&f, text, got, NULL, NULL), -EPROTO);
		}
	}
}

/* A member of a member, as the only one that is looked at below. */
static void test_inner(void **state)
{
	static const struct {
		const char *text, *inner;
		bool twice;
	} cases[] = {
		{"{\"b\":{\"i\":1},\"a\":{\"x\":{\"i\":2},\"i\":[3]},\"c\":{\"i\":4}}", "[3]",
		 false},
		{"{\"a\":{\"i\":1,\"i\":2}}", NULL, true},
		{"{\"a\":[{\"i\":1}]}", NULL, false},
		{"{\"a\":{\"i\":null}}", NULL, false},
		{"{\"a\":{}}", NULL, false},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const uint8_t *text = (const uint8_t *)cases[i].text;
		struct json_span got[2], inner;
		struct json_feed f;
		bool twice;

		json_feed_init(&f, names, 2, 0, "i");
		assert_int_equal(json_feed_more(&f, text, strlen(cases[i].text)), 0);
		assert_int_equal(json_feed_end(&f, text, got, &inner, &twice), 0);
		assert_int_equal(twice, cases[i].twice);
		if (cases[i].inner)
			span_is(inner, cases[i].inner);
		else
			assert_null(inner.p);
	}
}

static void test_counts(void **state)
{
	int64_t n;

	(void)state;
	assert_int_equal(scan("{\"a\":0,\"b\":999999999999999999}"), 0);
	assert_true(json_span_count(v[0], &n));
	assert_int_equal(n, 0);
	assert_true(json_span_count(v[1], &n));
	assert_int_equal(n, 999999999999999999);
	assert_int_equal(scan("{\"a\":-1,\"b\":1000000000000000000}"), 0);
	assert_false(json_span_count(v[0], &n));
	assert_false(json_span_count(v[1], &n));
	assert_int_equal(scan("{\"a\":1.0,\"b\":\"1\"}"), 0);
	assert_false(json_span_count(v[0], &n));
	assert_false(json_span_count(v[1], &n));
	assert_false(json_span_count((struct json_span){0}, &n));
}

/* Copied in pieces of three bytes, it is what it is in one. */
static void copy_in_pieces(const struct buf *whole)
{
	struct json_copy c;
	size_t n = 0;

	json_copy_init(&c, v[0]);
	while (c.left.len) {
		uint8_t piece[3];
		size_t k = json_copy_some(&c, piece, sizeof(piece));

		assert_in_range(k, 1, sizeof(piece));
		assert_true(n + k <= buf_len(whole));
		assert_memory_equal(piece, buf_data(whole) + n, k);
		n += k;
	}
	assert_int_equal(n, buf_len(whole));
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
		copy_in_pieces(&out);
		buf_free(&out);
		/* One that is the whole value. */
		snprintf(text, sizeof(text), "{\"a\":%s}", number);
		snprintf(wanted, sizeof(wanted), "%s%s%s", mark, number, mark);
		assert_int_equal(scan(text), 0);
		assert_int_equal(json_span_append(&out, v[0]), 0);
		assert_int_equal(buf_len(&out), strlen(wanted));
		assert_memory_equal(buf_data(&out), wanted, buf_len(&out));
		copy_in_pieces(&out);
		buf_free(&out);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_members),  cmocka_unit_test(test_refused),
		cmocka_unit_test(test_depth),    cmocka_unit_test(test_text),
		cmocka_unit_test(test_one_line), cmocka_unit_test(test_long_numbers),
		cmocka_unit_test(test_pieces),   cmocka_unit_test(test_inner),
		cmocka_unit_test(test_counts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
