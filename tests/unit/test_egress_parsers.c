/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parsers of what a guest sends first, at their bounds: every cut of a message,
 * and lengths that are just small enough and just too large. What they refuse in
 * form is tried on the whole program (tests/egress).
 */
#define _GNU_SOURCE
#include "unit.h"

#include "egress/connect_head.h"
#include "egress/hello.h"
#include "egress/socks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* --- ClientHello ---------------------------------------------------------------------------- */

static uint8_t message[80000], wire[90000];

static size_t put(uint8_t *to, uint64_t v, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		to[i] = (uint8_t)(v >> (8 * (bytes - 1 - i)));
	return bytes;
}

/* A ClientHello for a.test with so many bytes of padding: its length in message. */
static size_t make_hello(size_t padding)
{
	size_t exts = 15 + 4 + padding, body = 2 + 32 + 1 + 4 + 2 + 2 + exts, n = 0;

	n += put(message + n, 1, 1);
	n += put(message + n, body, 3);
	n += put(message + n, 0x0303, 2);
	memset(message + n, 7, 32);
	n += 32;
	n += put(message + n, 0, 1);
	n += put(message + n, 0x00021301, 4);
	n += put(message + n, 0x0100, 2);
	n += put(message + n, exts, 2);
	n += put(message + n, 0, 2); /* server_name */
	n += put(message + n, 11, 2);
	n += put(message + n, 9, 2);
	n += put(message + n, 0, 1);
	n += put(message + n, 6, 2);
	memcpy(message + n, "A.test", 6);
	n += 6;
	n += put(message + n, 21, 2); /* padding */
	n += put(message + n, padding, 2);
	memset(message + n, 0, padding);
	return n + padding;
}

/* In records of at most size bytes: their length in wire. */
static size_t make_records(size_t len, size_t size)
{
	size_t n = 0;

	for (size_t at = 0; at < len;) {
		size_t part = len - at < size ? len - at : size;

		n += put(wire + n, 0x160301, 3);
		n += put(wire + n, part, 2);
		memcpy(wire + n, message + at, part);
		n += part;
		at += part;
	}
	return n;
}

static enum hello_verdict feed(struct hello *h, size_t len, size_t piece)
{
	hello_init(h);
	for (size_t at = 0; at < len; at += piece) {
		size_t n = len - at < piece ? len - at : piece;
		uint8_t *copy = test_malloc(n); /* so that a read beyond the piece is seen */

		assert_int_equal(h->verdict, HELLO_MORE);
		memcpy(copy, wire + at, n);
		hello_feed(h, copy, n);
		test_free(copy);
	}
	return h->verdict;
}

static void test_hello_in_all_pieces(void **state)
{
	size_t len = make_records(make_hello(20), 50);
	struct hello h;

	(void)state;
	for (size_t piece = 1; piece <= len; piece++) {
		assert_int_equal(feed(&h, len, piece), HELLO_NAME);
		assert_string_equal(h.name, "a.test");
		assert_false(h.done);
		hello_free(&h);
	}
	/* A part of it is never enough. */
	for (size_t part = 1; part < len; part++) {
		assert_int_equal(feed(&h, part, part), HELLO_MORE);
		hello_free(&h);
	}
}

static void test_hello_in_all_records(void **state)
{
	size_t len = make_hello(20);
	struct hello h;

	(void)state;
	for (size_t size = 1; size <= len; size++) {
		size_t n = make_records(len, size);

		assert_int_equal(feed(&h, n, n), HELLO_NAME);
		hello_free(&h);
	}
}

/* All that it comes in counts, headers of records too. */
static void test_hello_of_the_largest_size(void **state)
{
	const size_t overhead = make_hello(0), headers = 4 * 5;
	struct hello h;
	size_t n;

	(void)state;
	n = make_records(make_hello(HELLO_MAX - overhead - headers), 16384);
	assert_int_equal(n, HELLO_MAX);
	for (size_t piece = 1000; piece < 70000; piece += 9000) {
		assert_int_equal(feed(&h, n, piece), HELLO_NAME);
		hello_free(&h);
	}
	n = make_records(make_hello(HELLO_MAX - overhead - headers + 1), 16384);
	assert_int_equal(n, HELLO_MAX + 1);
	hello_init(&h);
	assert_int_equal(hello_feed(&h, wire, HELLO_MAX), HELLO_MORE);
	assert_int_equal(hello_feed(&h, wire + HELLO_MAX, 1), HELLO_NOT_TLS);
	hello_free(&h);
	/* In small pieces the bytes are counted, in large ones the length that it says. */
	n = make_records(make_hello(HELLO_MAX - overhead + 1), 16384);
	assert_int_equal(feed(&h, 4000, 4000), HELLO_NOT_TLS);
	assert_string_equal(h.why, "the ClientHello is too long");
	hello_free(&h);
	/* Tiny records of a small message are too many bytes as well. */
	n = make_records(make_hello(12000), 1);
	assert_true(n > HELLO_MAX);
	hello_init(&h);
	for (size_t at = 0; at <= HELLO_MAX; at++)
		hello_feed(&h, wire + at, 1);
	assert_int_equal(h.verdict, HELLO_NOT_TLS);
	hello_free(&h);
}

static void test_hello_verdict_stays(void **state)
{
	struct hello h;

	(void)state;
	hello_init(&h);
	assert_int_equal(hello_feed(&h, (const uint8_t *)"GET", 3), HELLO_NOT_TLS);
	assert_true(h.done);
	assert_int_equal(hello_feed(&h, wire, make_records(make_hello(0), 999)), HELLO_NOT_TLS);
	hello_free(&h);
}

/* The server's answer ends the watch, whatever pieces it comes in; a part of it does not. */
static void test_hello_and_the_server(void **state)
{
	uint8_t answer[HELLO_SERVER_BYTES + 10] = {22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3};
	size_t len = make_records(make_hello(0), 999);
	struct hello h;

	(void)state;
	for (size_t piece = 1; piece <= sizeof(answer); piece++) {
		assert_int_equal(feed(&h, len, len), HELLO_NAME);
		for (size_t at = 0; at < sizeof(answer); at += piece) {
			size_t n = sizeof(answer) - at < piece ? sizeof(answer) - at : piece;

			assert_int_equal(h.done, at >= HELLO_SERVER_BYTES);
			hello_server(&h, answer + at, n);
		}
		assert_true(h.done);
		hello_free(&h);
	}
	/* A fatal alert says that nothing comes of it, and so does what is not TLS. */
	assert_int_equal(feed(&h, len, len), HELLO_NAME);
	hello_server(&h, hello_alert, sizeof(hello_alert) - 1);
	assert_false(h.done);
	hello_server(&h, hello_alert + sizeof(hello_alert) - 1, 1);
	assert_true(h.done);
	hello_free(&h);
	assert_int_equal(feed(&h, len, len), HELLO_NAME);
	hello_server(&h, (const uint8_t *)"H", 1);
	assert_true(h.done);
	hello_free(&h);
}

/* One that warns does not: the answer is behind it. */
static void test_hello_and_a_warning(void **state)
{
	static const uint8_t warning[] = {21, 3, 3, 0, 2, 1, 112};
	uint8_t all[2 * sizeof(warning) + HELLO_SERVER_BYTES] = {0};
	size_t at = 2 * sizeof(warning), len = make_records(make_hello(0), 999);
	struct hello h;

	(void)state;
	memcpy(all, warning, sizeof(warning));
	memcpy(all + sizeof(warning), warning, sizeof(warning));
	memcpy(all + at, (const uint8_t[]){22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3}, 11);
	for (size_t piece = 1; piece <= sizeof(all); piece++) {
		assert_int_equal(feed(&h, len, len), HELLO_NAME);
		for (size_t i = 0; i < sizeof(all); i += piece) {
			assert_false(h.done);
			hello_server(&h, all + i,
				     sizeof(all) - i < piece ? sizeof(all) - i : piece);
		}
		assert_true(h.done);
		hello_free(&h);
	}
}

/* --- SOCKS ---------------------------------------------------------------------------------- */

static void test_socks_bounds(void **state)
{
	uint8_t m[SOCKS_REQUEST_MAX] = {5, 255};
	struct socks_request r;

	(void)state;
	assert_int_equal(socks_greeting(m, SOCKS_GREETING_MAX - 1), 0);
	assert_int_equal(socks_greeting(m, SOCKS_GREETING_MAX), SOCKS_GREETING_MAX);
	memset(m + 2, 2, 255);
	assert_int_equal(socks_greeting(m, SOCKS_GREETING_MAX), -EACCES);
	m[SOCKS_GREETING_MAX - 1] = 0;
	assert_int_equal(socks_greeting(m, SOCKS_GREETING_MAX), SOCKS_GREETING_MAX);
	memcpy(m, "\5\1\0\3\xff", 5);
	memset(m + 5, 'x', 255);
	memcpy(m + 260, "\x12\x34", 2);
	assert_int_equal(socks_request(m, SOCKS_REQUEST_MAX - 1, &r), 0);
	assert_int_equal(socks_request(m, SOCKS_REQUEST_MAX, &r), SOCKS_REQUEST_MAX);
	assert_int_equal(r.host_len, 255);
	assert_int_equal(r.port, 0x1234);
}

/* --- CONNECT -------------------------------------------------------------------------------- */

static void test_head_bounds(void **state)
{
	static const char start[] = "CONNECT a.test:443 HTTP/1.1\r\nX: ";
	static char head[CONNECT_HEAD_MAX + 10];
	struct connect_head h;

	(void)state;
	for (size_t len = CONNECT_HEAD_MAX - 3; len <= CONNECT_HEAD_MAX + 3; len++) {
		memset(head, 'y', sizeof(head));
		memcpy(head, start, sizeof(start) - 1);
		memcpy(head + len - 4, "\r\n\r\n", 4);
		assert_int_equal(connect_head_parse(head, len, &h),
				 len <= CONNECT_HEAD_MAX ? (ssize_t)len : -EBADMSG);
		if (len <= CONNECT_HEAD_MAX)
			assert_int_equal(connect_head_parse(head, len - 1, &h), 0);
	}
	/* Without an end it is refused as soon as there is no room for one. */
	memset(head, 'y', sizeof(head));
	assert_int_equal(connect_head_parse(head, CONNECT_HEAD_MAX - 1, &h), 0);
	assert_int_equal(connect_head_parse(head, CONNECT_HEAD_MAX, &h), -EBADMSG);
}

static void test_head_of_many_fields(void **state)
{
	static char head[CONNECT_HEAD_MAX];
	struct connect_head h;

	(void)state;
	for (unsigned fields = CONNECT_FIELDS_MAX - 1; fields <= CONNECT_FIELDS_MAX + 1; fields++) {
		size_t n = (size_t)sprintf(head, "CONNECT a.test:65535 HTTP/1.0\r\n");

		for (unsigned i = 0; i < fields; i++)
			n += (size_t)sprintf(head + n, "X:\r\n");
		n += (size_t)sprintf(head + n, "\r\n");
		assert_int_equal(connect_head_parse(head, n, &h),
				 fields <= CONNECT_FIELDS_MAX ? (ssize_t)n : -EBADMSG);
		assert_int_equal(h.port, 65535);
	}
}

/* In a port, too: the neighbours of the digits are none. */
static void test_head_port(void **state)
{
	static const char *const bad[] = {"44:", "44<", "44/", "4<3",   "/43",   ":",     "44a",
					  "44A", "4 4", "044", "65536", "99999", "443443"};
	struct connect_head h;
	char head[80];
	int n;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		n = sprintf(head, "CONNECT a.test:%s HTTP/1.1\r\n\r\n", bad[i]);
		assert_int_equal(connect_head_parse(head, (size_t)n, &h), -EBADMSG);
	}
	for (char c = '0'; c <= '9'; c++) {
		n = sprintf(head, "CONNECT a.test:1%c HTTP/1.1\r\n\r\n", c);
		assert_int_equal(connect_head_parse(head, (size_t)n, &h), n);
		assert_int_equal(h.port, 10 + c - '0');
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_hello_in_all_pieces),
		cmocka_unit_test(test_hello_in_all_records),
		cmocka_unit_test(test_hello_of_the_largest_size),
		cmocka_unit_test(test_hello_verdict_stays),
		cmocka_unit_test(test_hello_and_the_server),
		cmocka_unit_test(test_hello_and_a_warning),
		cmocka_unit_test(test_socks_bounds),
		cmocka_unit_test(test_head_bounds),
		cmocka_unit_test(test_head_of_many_fields),
		cmocka_unit_test(test_head_port),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
