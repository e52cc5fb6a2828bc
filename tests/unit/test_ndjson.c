/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Event lines: splitting, UTF-8, escaping, bounds; and the UTF-8 and base64
 * functions beneath.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "daemon/limits.h"
#include "daemon/ndjson.h"
#include "lib/utf8.h"
#include "lib/base64.h"

#include <stdio.h>
#include <string.h>

static struct ndjson w;

static void begin(bool rich)
{
	ndjson_init(&w, rich);
}

static void out(enum ndjson_stream s, const char *text, size_t len)
{
	assert_int_equal(ndjson_output(&w, s, (const uint8_t *)text, len, 7), len);
}

static void out_str(const char *text)
{
	out(NDJSON_STDOUT, text, strlen(text));
}

/* What has been written so far is exactly this; then it is dropped. */
static void expect(const char *text)
{
	size_t n = buf_len(&w.out);
	char *have = test_malloc(n + 1);

	memcpy(have, n ? (const char *)buf_data(&w.out) : "", n);
	have[n] = '\0';
	assert_string_equal(have, text);
	buf_consume(&w.out, n);
	test_free(have);
}

static void end(const char *text)
{
	assert_int_equal(ndjson_exit(&w, 0, NULL, 7), 0);
	expect(text);
	ndjson_free(&w);
}

static void test_plain_lines(void **state)
{
	(void)state;
	begin(false);
	out_str("one\ntw");
	expect("{\"type\":\"stdout\",\"data\":\"one\",\"seq\":0,\"ts\":7}\n");
	out(NDJSON_STDERR, "err\n", 4);
	expect("{\"type\":\"stderr\",\"data\":\"err\",\"seq\":1,\"ts\":7}\n");
	out_str("o\n\n");
	expect("{\"type\":\"stdout\",\"data\":\"two\",\"seq\":2,\"ts\":7}\n"
	       "{\"type\":\"stdout\",\"data\":\"\",\"seq\":3,\"ts\":7}\n");
	out_str("rest");
	end("{\"type\":\"stdout\",\"data\":\"rest\",\"seq\":4,\"ts\":7}\n"
	    "{\"type\":\"exit\",\"data\":0,\"seq\":5,\"ts\":7}\n");
}

static void test_escapes(void **state)
{
	(void)state;
	begin(false);
	out(NDJSON_STDOUT, "\"\\/\b\f\r\t\x01\x1f\x7f\0\n", 12);
	expect("{\"type\":\"stdout\",\"data\":\"\\\"\\\\/\\b\\f\\r\\t\\u0001\\u001f\x7f\\u0000\","
	       "\"seq\":0,\"ts\":7}\n");
	end("{\"type\":\"exit\",\"data\":0,\"seq\":1,\"ts\":7}\n");
}

static void test_plain_bad_utf8(void **state)
{
	(void)state;
	begin(false);
	/* A character in two pieces; then bytes that are none; then one that is cut off. */
	out_str("\xe2\x82");
	out_str("\xac\n");
	out_str("a\xff\xc0\xaf\xed\xa0\x80z\n");
	out_str("\xf0\x9f\x98\n");
	end("{\"type\":\"stdout\",\"data\":\"\xe2\x82\xac\",\"seq\":0,\"ts\":7}\n"
	    "{\"type\":\"stdout\",\"data\":\"a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"
	    "\xef\xbf\xbd\xef\xbf\xbdz\",\"seq\":1,\"ts\":7}\n"
	    "{\"type\":\"stdout\",\"data\":\"\xef\xbf\xbd\",\"seq\":2,\"ts\":7}\n"
	    "{\"type\":\"exit\",\"data\":0,\"seq\":3,\"ts\":7}\n");
}

static void test_rich_pieces(void **state)
{
	(void)state;
	begin(true);
	out_str("one\ntw");
	out_str("\xe2");
	out_str("\x82");
	expect("{\"type\":\"stdout\",\"data\":\"one\\ntw\",\"seq\":0,\"ts\":7}\n");
	out_str("\xac!");
	expect("{\"type\":\"stdout\",\"data\":\"\xe2\x82\xac!\",\"seq\":1,\"ts\":7}\n");
	out_str("ok\xe2");
	expect("{\"type\":\"stdout\",\"data\":\"ok\",\"seq\":2,\"ts\":7}\n");
	/* What follows does not finish it: all of it is bytes. */
	out_str("x");
	expect("{\"type\":\"stdout\",\"data\":\"4ng=\",\"encoding\":\"base64\",\"seq\":3,\"ts\":7}"
	       "\n");
	out(NDJSON_STDERR, "\xff", 1);
	expect("{\"type\":\"stderr\",\"data\":\"/"
	       "w==\",\"encoding\":\"base64\",\"seq\":4,\"ts\":7}\n");
	out_str("\xf0\x9f");
	end("{\"type\":\"stdout\",\"data\":\"8J8=\",\"encoding\":\"base64\",\"seq\":5,\"ts\":7}\n"
	    "{\"type\":\"exit\",\"data\":0,\"seq\":6,\"ts\":7}\n");
}

/* The sum of the lengths of all data members (no escapes in them). */
static size_t data_bytes(size_t *events, size_t *longest)
{
	char *text = test_malloc(buf_len(&w.out) + 1), *p = text;
	size_t sum = 0;

	memcpy(text, buf_data(&w.out), buf_len(&w.out));
	text[buf_len(&w.out)] = '\0';
	*events = *longest = 0;
	while ((p = strstr(p, "\"data\":\""))) {
		size_t n = strcspn(p + 8, "\"");

		sum += n;
		*events += 1;
		if (n > *longest)
			*longest = n;
		p += 8 + n;
	}
	test_free(text);
	return sum;
}

static void test_long_line(void **state)
{
	size_t len = 3 * NDJSON_HELD + 5, events, longest, at = 0, sum = 0;
	char *line = test_malloc(len + 1);

	(void)state;
	/* Two-byte characters behind one byte: no piece may end inside one. */
	line[0] = 'x';
	for (size_t i = 1; i + 1 < len; i += 2)
		memcpy(line + i, "\xc3\xbc", 2);
	line[len] = '\n';
	begin(false);
	while (at < len + 1) {
		size_t n = len + 1 - at < 1000 ? len + 1 - at : 1000;
		ssize_t got;

		got = ndjson_output(&w, NDJSON_STDOUT, (uint8_t *)line + at, n, 7);
		assert_true(got >= 0);
		at += (size_t)got;
		if ((size_t)got < n || at == len + 1) { /* full, or the end: look and drop */
			sum += data_bytes(&events, &longest);
			assert_true(longest <= NDJSON_HELD);
			assert_true(utf8_valid(buf_data(&w.out), buf_len(&w.out)));
			assert_null(memmem(buf_data(&w.out), buf_len(&w.out), "\xef\xbf\xbd", 3));
			buf_consume(&w.out, buf_len(&w.out));
		}
	}
	assert_int_equal(sum, len);
	test_free(line);
	ndjson_free(&w);
}

static void test_line_of_exactly_the_limit(void **state)
{
	char *line = test_malloc(NDJSON_HELD);
	size_t events, longest;

	(void)state;
	memset(line, 'a', NDJSON_HELD);
	begin(false);
	out(NDJSON_STDOUT, line, NDJSON_HELD - 1);
	out(NDJSON_STDOUT, line, 1);
	assert_int_equal(buf_len(&w.out), 0);
	out(NDJSON_STDOUT, "\n", 1);
	assert_int_equal(data_bytes(&events, &longest), NDJSON_HELD);
	assert_int_equal(events, 1);
	ndjson_free(&w);
	/* One byte more is two events. */
	begin(false);
	out(NDJSON_STDOUT, line, NDJSON_HELD);
	assert_int_equal(ndjson_output(&w, NDJSON_STDOUT, (const uint8_t *)"b\n", 2, 7), 0);
	assert_int_equal(data_bytes(&events, &longest), NDJSON_HELD);
	assert_true(ndjson_full(&w));
	buf_consume(&w.out, buf_len(&w.out));
	out(NDJSON_STDOUT, "b\n", 2);
	expect("{\"type\":\"stdout\",\"data\":\"b\",\"seq\":1,\"ts\":7}\n");
	test_free(line);
	ndjson_free(&w);
}

/* Whatever comes in, what waits stays bounded, and is taken again when there is room. */
static void test_bound(void **state)
{
	static uint8_t piece[65536];

	(void)state;
	for (int rich = 0; rich <= 1; rich++) {
		for (int kind = 0; kind < 4; kind++) {
			static const char fill[] = "\nx\x01\xff";
			size_t total = 0;

			memset(piece, fill[kind], sizeof(piece));
			begin(rich);
			for (int i = 0; i < 200; i++) {
				ssize_t n =
					ndjson_output(&w, NDJSON_STDOUT, piece, sizeof(piece), 7);

				assert_true(n >= 0);
				total += (size_t)n;
				if ((size_t)n < sizeof(piece))
					assert_true(ndjson_full(&w));
				assert_true(buf_len(&w.out) <
					    NDJSON_HIGH + JSON_ESCAPE_MAX * NDJSON_HELD + 1024);
				if (i % 3 == 0)
					buf_consume(&w.out, buf_len(&w.out));
			}
			assert_true(total > sizeof(piece));
			/* However full it is, the end always finds room. */
			assert_int_equal(ndjson_note(&w, NDJSON_STDERR, "podflare: x", 7), 0);
			assert_int_equal(ndjson_exit(&w, -1, NULL, 7), 0);
			ndjson_free(&w);
		}
	}
}

static void test_events(void **state)
{
	json_t *f = json_pack("{s:{s:s}}", "data", "text/plain", "4\n2");
	json_t *x = json_pack("{s:s, s:i}", "reason", "exited", "duration_ms", 3);

	(void)state;
	begin(true);
	out_str("\xe2");
	assert_int_equal(ndjson_event(&w, "result", f, 7), 0);
	expect("{\"type\":\"stdout\",\"data\":\"4g==\",\"encoding\":\"base64\",\"seq\":0,\"ts\":7}"
	       "\n"
	       "{\"type\":\"result\",\"data\":{\"text/plain\":\"4\\n2\"},\"seq\":1,\"ts\":7}\n");
	assert_int_equal(ndjson_note(&w, NDJSON_STDERR, "podflare: gone", 7), 0);
	expect("{\"type\":\"stderr\",\"data\":\"podflare: gone\\n\",\"seq\":2,\"ts\":7}\n");
	assert_int_equal(ndjson_exit(&w, -1, x, 7), 0);
	expect("{\"type\":\"exit\",\"data\":-1,\"reason\":\"exited\",\"duration_ms\":3,\"seq\":3,"
	       "\"ts\":7}\n");
	ndjson_free(&w);
	/* Plain mode has no more members than documented. */
	begin(false);
	out_str("no newline");
	assert_int_equal(ndjson_exit(&w, 300, x, 7), 0);
	expect("{\"type\":\"stdout\",\"data\":\"no newline\",\"seq\":0,\"ts\":7}\n"
	       "{\"type\":\"exit\",\"data\":300,\"seq\":1,\"ts\":7}\n");
	ndjson_free(&w);
	json_decref(f);
	json_decref(x);
}

/* The largest event behind full lines and all that can be held; then the sentence of an end. */
static void test_largest_event(void **state)
{
	static const char *const names[] = {"data", "more"};
	struct json_span v[2] = {{.len = LIMIT_EVENT - 100}, {0}};
	uint8_t *big = test_malloc(v[0].len), odd[NDJSON_HELD];
	json_t *x = json_pack("{s:i}", "exit_code", -1);

	(void)state;
	memset(big, 'x', v[0].len);
	big[0] = big[v[0].len - 1] = '"';
	v[0].p = big;
	memset(odd, 1, sizeof(odd)); /* becomes six times as long */
	ndjson_init(&w, false);
	while (buf_len(&w.out) < NDJSON_HIGH - 100)
		out_str("y\n");
	assert_false(ndjson_full(&w));
	out(NDJSON_STDOUT, (const char *)odd, sizeof(odd));
	out(NDJSON_STDERR, (const char *)odd, sizeof(odd));
	assert_int_equal(ndjson_event_spans(&w, "result", names, v, 2, 7), 0);
	assert_true(ndjson_full(&w));
	memset(odd, 'z', 1000);
	odd[1000] = '\0';
	for (int i = 0; i < 2; i++)
		assert_int_equal(ndjson_note(&w, NDJSON_STDERR, (const char *)odd, 7), 0);
	assert_int_equal(ndjson_exit(&w, -1, x, 7), 0);
	/* The memory goes with the bytes. */
	ndjson_taken(&w);
	assert_true(w.out.cap > LIMIT_EVENT);
	buf_consume(&w.out, buf_len(&w.out));
	ndjson_taken(&w);
	assert_int_equal(w.out.cap, 0);
	ndjson_free(&w);
	test_free(big);
	json_decref(x);
}

/* A text as the guest's, in a buffer of its own; and its values. */
static void guest_text(struct buf *b, const char *head, size_t fill, const char *tail,
		       struct json_span *v)
{
	static const char *const names[] = {"data", "more"};
	uint8_t *p;

	buf_init(b, LIMIT_EVENT);
	assert_int_equal(buf_append(b, head, strlen(head)), 0);
	p = buf_reserve(b, fill);
	assert_non_null(p);
	memset(p, 'x', fill);
	buf_commit(b, fill);
	assert_int_equal(buf_append(b, tail, strlen(tail)), 0);
	assert_int_equal(
		json_span_members((struct json_span){buf_data(b), buf_len(b)}, names, v, 2), 0);
}

/* What is told while it is on its way comes behind it, numbered as it was told. */
static void test_long_event(void **state)
{
	static const char *const names[] = {"data", "more"};
	static char text[300000];
	struct json_span v[2];
	struct buf b;
	size_t n = 0;
	ssize_t k;

	(void)state;
	ndjson_init(&w, true);
	out_str("before\n");
	guest_text(&b, "{\"more\":[1,\n2],\"data\":\"", 200000, "\"}", v);
	assert_int_equal(ndjson_event_long(&w, "result", names, v, 2, &b, 7), 0);
	assert_int_equal(b.cap, 0);
	assert_true(ndjson_full(&w));
	assert_false(ndjson_low(&w));
	assert_false(ndjson_whole(&w));
	assert_int_equal(ndjson_note(&w, NDJSON_STDERR, "behind", 7), 0);
	assert_true(ndjson_size(&w) > 200000);
	do {
		/* It is not made faster than it is taken. */
		k = ndjson_take(&w, text + n, 1000);
		assert_in_range(k, 0, 1000);
		n += (size_t)k;
		assert_true(buf_len(&w.out) < 100000);
	} while (k > 0);
	text[n] = '\0';
	assert_true(ndjson_whole(&w) && ndjson_low(&w));
	assert_int_equal(ndjson_size(&w), 0);
	assert_non_null(strstr(
		text, "\"before\\n\",\"seq\":0,\"ts\":7}\n{\"type\":\"result\",\"data\":\"xxx"));
	assert_non_null(
		strstr(text, "xxx\",\"more\":[1, 2],\"seq\":1,\"ts\":7}\n{\"type\":\"stderr\""));
	assert_non_null(strstr(text, "\"data\":\"behind\\n\",\"seq\":2,\"ts\":7}\n"));
	assert_true(n > 200000 && n < 200300);
	ndjson_free(&w);
	/* One that is not taken leaves nothing behind. */
	ndjson_init(&w, true);
	guest_text(&b, "{\"data\":\"", 100, "\"}", v);
	assert_int_equal(ndjson_event_long(&w, "result", names, v, 2, &b, 7), 0);
	assert_int_equal(ndjson_exit(&w, 0, NULL, 7), 0);
	ndjson_free(&w);
	assert_int_equal(ndjson_size(&w), 0);
}

static int step(const char *s)
{
	return utf8_step((const uint8_t *)s, strlen(s));
}

static void test_utf8_steps(void **state)
{
	(void)state;
	assert_int_equal(step("a"), 1);
	assert_int_equal(step("\xc2\x80"), 2);
	assert_int_equal(step("\xe0\xa0\x80"), 3);
	assert_int_equal(step("\xf4\x8f\xbf\xbf"), 4);
	assert_int_equal(step("\xc2"), 0);
	assert_int_equal(step("\xf0\x9f\x98"), 0);
	assert_int_equal(step("\x80"), -1);
	assert_int_equal(step("\xc0\x80"), -1);
	assert_int_equal(step("\xc1\xbf"), -1);
	assert_int_equal(step("\xe0\x80\x80"), -1);
	assert_int_equal(step("\xed\xa0\x80"), -1);
	assert_int_equal(step("\xf4\x90\x80\x80"), -1);
	assert_int_equal(step("\xf5\x80\x80\x80"), -1);
	assert_int_equal(step("\xe2\x82x"), -2);
	assert_int_equal(step("\xf0\x9f\x98x"), -3);
	assert_true(utf8_valid((const uint8_t *)"0123456789\xc3\xbc", 12));
	assert_false(utf8_valid((const uint8_t *)"0123456789\xc3", 11));
}

/* Every code point is valid as itself, and every value with a bit wrong is not taken for it. */
static void test_utf8_all(void **state)
{
	(void)state;
	for (uint32_t c = 0; c < 0x120000; c++) {
		uint8_t b[4];
		int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;

		for (int i = n - 1; i > 0; i--)
			b[i] = (uint8_t)(0x80 | ((c >> (6 * (n - 1 - i))) & 0x3f));
		b[0] = (uint8_t)(n == 1 ? c : (0xf00u >> n) | (c >> (6 * (n - 1))));
		if (n > 1 && c < 0x110000 && (c < 0xd800 || c > 0xdfff))
			assert_int_equal(utf8_step(b, (size_t)n), n);
		else if (n > 1)
			assert_true(utf8_step(b, (size_t)n) < 0);
	}
}

static void test_base64(void **state)
{
	static const char *const pairs[][2] = {{"", ""},
					       {"f", "Zg=="},
					       {"fo", "Zm8="},
					       {"foo", "Zm9v"},
					       {"foob", "Zm9vYg=="},
					       {"fooba", "Zm9vYmE="},
					       {"foobar", "Zm9vYmFy"}};
	char o[16];

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
		size_t n = base64_encode(o, (const uint8_t *)pairs[i][0], strlen(pairs[i][0]));

		assert_int_equal(n, BASE64_SIZE(strlen(pairs[i][0])));
		assert_int_equal(n, strlen(pairs[i][1]));
		assert_memory_equal(o, pairs[i][1], n);
	}
	assert_int_equal(base64_encode(o, (const uint8_t *)"\xfb\xff\xfe", 3), 4);
	assert_memory_equal(o, "+//+", 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plain_lines),
		cmocka_unit_test(test_escapes),
		cmocka_unit_test(test_plain_bad_utf8),
		cmocka_unit_test(test_rich_pieces),
		cmocka_unit_test(test_long_line),
		cmocka_unit_test(test_line_of_exactly_the_limit),
		cmocka_unit_test(test_bound),
		cmocka_unit_test(test_events),
		cmocka_unit_test(test_largest_event),
		cmocka_unit_test(test_long_event),
		cmocka_unit_test(test_utf8_steps),
		cmocka_unit_test(test_utf8_all),
		cmocka_unit_test(test_base64),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
