/* SPDX-License-Identifier: Apache-2.0 */
/* What frames a chunked body, as bytes: what passes, what is refused and why, in whatever pieces.
 */
#include "unit.h"

#include "egress/http/chunks.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define S(literal) (literal), sizeof(literal) - 1

/* The same result whether the bytes come at once or one by one. */
static int look(struct http_chunks *c, const char *p, size_t n)
{
	struct http_chunks slow;
	int rc, step = 0;

	http_chunks_init(c);
	rc = http_chunks_look(c, p, n);
	http_chunks_init(&slow);
	for (size_t i = 0; i < n && step == 0; i++)
		step = http_chunks_look(&slow, p + i, 1);
	assert_int_equal(step, rc);
	assert_int_equal(slow.at, c->at);
	if (rc == 0)
		assert_int_equal(slow.left, c->left);
	else
		assert_string_equal(slow.why, c->why);
	return rc;
}

static void passes(const char *p, size_t n, enum http_chunks_at at)
{
	struct http_chunks c;

	if (look(&c, p, n) < 0)
		fail_msg("%s: %s", p, c.why);
	assert_int_equal(c.at, at);
}

static void refused(const char *p, size_t n, const char *why)
{
	struct http_chunks c;

	assert_int_equal(look(&c, p, n), -EBADMSG);
	if (!strstr(c.why, why))
		fail_msg("%s: %s", p, c.why);
}

static void test_passes(void **state)
{
	(void)state;
	passes(S("0\r\n\r\n"), HTTP_CHUNKS_OVER);
	passes(S("5\r\nhello\r\n0\r\n\r\n"), HTTP_CHUNKS_OVER);
	passes(S("5;x=y\r\nhel\r\n\r\n00a ; q\r\n0123\n\r\000789\r\n"), HTTP_CHUNKS_SIZE);
	passes(S("0\r\nX: y\r\nZ:\r\n\r\n"), HTTP_CHUNKS_OVER);
	passes(S("000\r\nX: y\r\n"), HTTP_CHUNKS_TRAILERS);
	passes(S("0\r\n\r\n\n\n\n"), HTTP_CHUNKS_OVER);
	passes(S("ffffffffffffFFFF\r\nabc"), HTTP_CHUNKS_DATA);
	passes(S("3\r\nabc"), HTTP_CHUNKS_END);
}

static void test_refused(void **state)
{
	(void)state;
	refused(S("\r\n"), "not a number");
	refused(S("zz\r\nabc\r\n"), "not a number");
	refused(S("-1\r\n"), "not a number");
	refused(S(";x\r\n"), "not a number");
	refused(S("0x5\r\n"), "not a number");
	refused(S("00000000000000001"), "too many digits");
	refused(S("5\nhello"), "not a number");
	refused(S("5;x\nhello"), "CR and LF");
	refused(S("5\rhello"), "CR and LF");
	refused(S("3\r\nabcXX"), "longer than was said");
	refused(S("3\r\nabc\n"), "CR and LF");
	refused(S("0\r\nX: y\n"), "CR and LF");
}

static void test_bounds(void **state)
{
	char text[HTTP_TRAILERS_MAX + 64];

	(void)state;
	memset(text, 'x', sizeof(text));
	memcpy(text, "1;", 2);
	memcpy(text + HTTP_CHUNK_LINE, "\r\na\r\n", 5);
	passes(text, HTTP_CHUNK_LINE + 5, HTTP_CHUNKS_SIZE);
	text[HTTP_CHUNK_LINE] = 'x';
	refused(text, HTTP_CHUNK_LINE + 5, "too long");
	memset(text, 'x', sizeof(text));
	memcpy(text, "0\r\n", 3);
	memcpy(text + 3 + HTTP_TRAILERS_MAX - 4, "\r\n\r\n", 4);
	passes(text, 3 + HTTP_TRAILERS_MAX, HTTP_CHUNKS_OVER);
	memcpy(text + 3 + HTTP_TRAILERS_MAX - 4, "xxxx\r\n", 6);
	refused(text, 3 + HTTP_TRAILERS_MAX + 4, "too long");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_passes),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
