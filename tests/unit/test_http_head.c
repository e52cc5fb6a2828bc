/* SPDX-License-Identifier: Apache-2.0 */
/* Heads of requests as bytes: which pass, which are refused and why, in whatever pieces they come.
 */
#include "unit.h"

#include "egress/http/head.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define S(literal) (literal), sizeof(literal) - 1

#define LINE "GET http://example.com/ HTTP/1.1\r\n"
#define HOST "Host: example.com\r\n"

/* The same result whether the bytes come at once or one by one. */
static int look(struct http_head *h, const char *p, size_t n)
{
	struct http_head slow;
	int rc, step = 0;

	http_head_init(h);
	rc = http_head_look(h, p, n);
	http_head_init(&slow);
	for (size_t i = 1; i <= n && step == 0; i++) {
		char *copy = malloc(i); /* so that a read beyond its end is seen */

		memcpy(copy, p, i);
		step = http_head_look(&slow, copy, i);
		free(copy);
	}
	assert_int_equal(step, rc);
	if (rc == 1) {
		assert_int_equal(slow.len, h->len);
		assert_int_equal(slow.framing, h->framing);
		assert_int_equal(slow.length, h->length);
	}
	if (rc < 0)
		assert_string_equal(slow.why, h->why);
	return rc;
}

static struct http_head good(const char *p, size_t n)
{
	struct http_head h;

	if (look(&h, p, n) != 1)
		fail_msg("%s: %s", p, h.why ? h.why : "not whole");
	return h;
}

static void refused(const char *p, size_t n, const char *why)
{
	struct http_head h;

	assert_int_equal(look(&h, p, n), -EBADMSG);
	if (!strstr(h.why, why))
		fail_msg("%s: %s", p, h.why);
}

static void test_passes(void **state)
{
	struct http_head h = good(S(LINE HOST "\r\nnext"));

	(void)state;
	assert_int_equal(h.len, sizeof(LINE HOST "\r\n") - 1);
	assert_int_equal(h.framing, HTTP_NO_BODY);
	assert_false(h.http10);
	h = good(S("\r\n\r\n" LINE HOST "\r\n"));
	assert_int_equal(h.len, sizeof("\r\n\r\n" LINE HOST "\r\n") - 1);
	h = good(S("GET http://h/ HTTP/1.0\r\n\r\n"));
	assert_true(h.http10);
	good(S(LINE HOST "X:\r\nY: \t a\tb \t\r\nZ: \xc3\xa9\r\n\r\n"));
	good(S("M-SEARCH http://h/a?b=%00&\xc3\xa9 HTTP/1.1\r\nhOSt:h\r\n\r\n"));
	good(S(LINE HOST "Expect: 100-Continue\r\n\r\n"));
}

static void test_framing(void **state)
{
	struct http_head h = good(S(LINE HOST "Content-Length: 12\r\n\r\n"));

	(void)state;
	assert_int_equal(h.framing, HTTP_LENGTH);
	assert_int_equal(h.length, 12);
	h = good(S(LINE HOST "content-length: 0\r\n\r\n"));
	assert_int_equal(h.framing, HTTP_NO_BODY);
	h = good(S(LINE HOST "Content-Length: 999999999999999999\r\n\r\n"));
	assert_true(h.length == 999999999999999999ull);
	h = good(S(LINE HOST "Transfer-Encoding: Chunked\r\n\r\n"));
	assert_int_equal(h.framing, HTTP_CHUNKED);
}

static void test_framing_refused(void **state)
{
	(void)state;
	refused(S(LINE HOST "Content-Length: 1\r\nContent-Length: 1\r\n"),
		"more than one Content-");
	refused(S(LINE HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), "both");
	refused(S(LINE HOST "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n"), "both");
	refused(S(LINE HOST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
		"more than one Transfer-");
	refused(S(LINE HOST "Transfer-Encoding: chunked, identity\r\n"), "not chunked");
	refused(S(LINE HOST "Transfer-Encoding: xchunked\r\n"), "not chunked");
	refused(S(LINE HOST "Transfer-Encoding: \x0b"
			    "chunked\r\n"),
		"control character");
	refused(S(LINE HOST "Transfer-Encoding : chunked\r\n"), "colon");
	refused(S("GET http://h/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), "HTTP/1.0");
	refused(S(LINE HOST "Content-Length: +1\r\n"), "not a length");
	refused(S(LINE HOST "Content-Length: -1\r\n"), "not a length");
	refused(S(LINE HOST "Content-Length: 0x1\r\n"), "not a length");
	refused(S(LINE HOST "Content-Length: 1, 1\r\n"), "not a length");
	refused(S(LINE HOST "Content-Length:\r\n"), "not a length");
	refused(S(LINE HOST "Content-Length: 9999999999999999999\r\n"), "not a length");
}

static void test_lines_refused(void **state)
{
	(void)state;
	refused(S(LINE "Host: a\r\nHost: a\r\n"), "more than one Host");
	refused(S(LINE "\r\n"), "no Host");
	refused(S(LINE HOST "X: a\r\n b\r\n"), "folded");
	refused(S(LINE " X: a\r\n"), "folded");
	refused(S(LINE HOST "X: a\r\n\tb\r\n"), "folded");
	refused(S(LINE HOST "X: a\nY: b\r\n"), "CR and LF");
	refused(S(LINE HOST "X: a\rY: b\r\n"), "CR and LF");
	refused(S("GET http://h/ HTTP/1.1\n"), "CR and LF");
	refused(S(LINE HOST "X: a\0b\r\n"), "NUL");
	refused(S("GET http://h/\0 HTTP/1.1\r\n"), "NUL");
	refused(S(LINE HOST "X: \x1b[0m\r\n"), "control character");
	refused(S(LINE HOST "X: \x7f\r\n"), "control character");
	refused(S(LINE HOST "X : a\r\n"), "colon");
	refused(S(LINE HOST ": a\r\n"), "colon");
	refused(S(LINE HOST "X\r\n"), "colon");
	refused(S(LINE HOST "X\xc3\xa9: a\r\n"), "colon");
	refused(S(LINE HOST "Expect: something\r\n"), "Expect");
	refused(S("\r\n\r\n\r\n"), "empty lines");
}

static void test_request_line_refused(void **state)
{
	(void)state;
	refused(S("GET\r\n"), "first line");
	refused(S("GET http://h/\r\n"), "first line");
	refused(S("GET  http://h/ HTTP/1.1\r\n"), "first line");
	refused(S("GET http://h/  HTTP/1.1\r\n"), "version");
	refused(S("GET http://h/ HTTP/1.1 \r\n"), "version");
	refused(S("GET http://h/\tHTTP/1.1\r\n"), "first line");
	refused(S(" GET http://h/ HTTP/1.1\r\n"), "first line");
	refused(S("G(T http://h/ HTTP/1.1\r\n"), "first line");
	refused(S("GET http://h/a b HTTP/1.1\r\n"), "version");
	refused(S("GET http://h/#x HTTP/1.1\r\n"), "fragment");
	refused(S("GET http://h/ HTTP/2.0\r\n"), "version");
	refused(S("GET http://h/ http/1.1\r\n"), "version");
	refused(S("GET http://h/ HTTP/1.2\r\n"), "version");
	refused(S("PRI * HTTP/2.0\r\n\r\n"), "version");
	refused(S("AVERYLONGMETHODTHATNOBODYKNOWS http://h/ HTTP/1.1\r\n"), "too long");
	refused(S("\x16\x03\x01\x02"), "control character");
}

static void test_bounds(void **state)
{
	char *big = malloc(HTTP_HEAD_MAX + 100), line[64];
	struct http_head h;
	size_t n;

	(void)state;
	memset(big, 'a', HTTP_HEAD_MAX + 100);
	http_head_init(&h);
	assert_int_equal(http_head_look(&h, big, HTTP_HEAD_MAX), 0);
	assert_int_equal(http_head_look(&h, big, HTTP_HEAD_MAX + 1), -EBADMSG);
	assert_string_equal(h.why, "the head of the request is too long");
	n = (size_t)sprintf(big, LINE HOST);
	for (unsigned int i = 0; i < HTTP_FIELDS_MAX - 1; i++) {
		int len = snprintf(line, sizeof(line), "X%u: 1\r\n", i);

		memcpy(big + n, line, (size_t)len);
		n += (size_t)len;
	}
	memcpy(big + n, "\r\n", 2);
	http_head_init(&h);
	assert_int_equal(http_head_look(&h, big, n + 2), 1);
	memcpy(big + n, "Y: 1\r\n", 6);
	http_head_init(&h);
	assert_int_equal(http_head_look(&h, big, n + 6), -EBADMSG);
	assert_string_equal(h.why, "there are too many headers");
	n = (size_t)sprintf(big, LINE HOST "Cookie: a\r\nCOOKIE: ");
	memset(big + n, ';', HTTP_COOKIES_MAX);
	memcpy(big + n + HTTP_COOKIES_MAX - 2, "\r\n\r\n", 4);
	http_head_init(&h);
	assert_int_equal(http_head_look(&h, big, n + HTTP_COOKIES_MAX + 2), 1);
	memcpy(big + n + HTTP_COOKIES_MAX - 2, ",\r\n", 3);
	http_head_init(&h);
	assert_int_equal(http_head_look(&h, big, n + HTTP_COOKIES_MAX + 1), -EBADMSG);
	assert_string_equal(h.why, "there are too many cookies");
	free(big);
}

static void test_where_the_target_is(void **state)
{
	struct http_head h = good(S("\r\nGET http://h/?a HTTP/1.1\r\n" HOST "\r\n"));

	(void)state;
	assert_int_equal(h.target, 6);
	assert_int_equal(h.target_len, sizeof("http://h/?a") - 1);
	h = good(S("OPTIONS * HTTP/1.1\r\n" HOST "\r\n"));
	assert_int_equal(h.target, 8);
	assert_int_equal(h.target_len, 1);
}

static void tidied(const char *p, size_t n, const char *expected)
{
	struct http_head h = good(p, n);
	char *copy = malloc(h.len); /* so that a byte beyond its end is seen */

	memcpy(copy, p, h.len);
	http_head_tidy(&h, copy);
	assert_int_equal(h.len, strlen(expected));
	assert_memory_equal(copy, expected, h.len);
	free(copy);
}

static void test_tidy(void **state)
{
	(void)state;
	tidied(S(LINE HOST "\r\n"), LINE HOST "\r\n");
	tidied(S(LINE "Host:example.com \t\r\nA: b \r\n\r\n"),
	       LINE "Host:  example.com\r\nA:  b\r\n\r\n");
	tidied(S(LINE HOST "A:\r\nB: \t\r\nC: d:e f \r\n\r\nG: h \r\n"),
	       LINE HOST "A:\r\nB: \t\r\nC:  d:e f\r\n\r\n");
	tidied(S("\r\nGET http://h:1/ HTTP/1.1\r\nHost: h:1\t\r\n\r\n"),
	       "\r\nGET http://h:1/ HTTP/1.1\r\nHost:  h:1\r\n\r\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_passes),
		cmocka_unit_test(test_framing),
		cmocka_unit_test(test_framing_refused),
		cmocka_unit_test(test_lines_refused),
		cmocka_unit_test(test_request_line_refused),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_where_the_target_is),
		cmocka_unit_test(test_tidy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
