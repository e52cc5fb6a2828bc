/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole text is one that comes in one piece (json_feed.h). What was checked is
 * copied and unescaped in pieces, too: a value may be as long as memory allows.
 */
#include "daemon/json_feed.h"
#include "lib/hex.h"
#include "lib/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Four hex digits, or -1. */
static int32_t hex4(const uint8_t *p, const uint8_t *end)
{
	int32_t v = 0;

	if (end - p < 4)
		return -1;
	for (int i = 0; i < 4; i++) {
		int h = hex_value(p[i]);

		if (h < 0)
			return -1;
		v = v << 4 | h;
	}
	return v;
}

int json_span_members(struct json_span text, const char *const *names, struct json_span *out,
		      size_t n)
{
	struct json_feed f;

	json_feed_init(&f, names, n, 0, NULL);
	for (size_t i = 0; i < n; i++)
		out[i] = (struct json_span){0};
	if (!text.p || json_feed_more(&f, text.p, text.len) < 0)
		return -EPROTO;
	return json_feed_end(&f, text.p, out, NULL, NULL);
}

bool json_span_equals(struct json_span s, const char *text)
{
	size_t n = strlen(text);

	return json_span_is(s, '"') && s.len == n + 2 && memcmp(s.p + 1, text, n) == 0;
}

bool json_span_count(struct json_span s, int64_t *out)
{
	*out = 0;
	if (!s.p || s.len == 0 || s.len > 18) /* so many digits always fit */
		return false;
	for (size_t i = 0; i < s.len; i++) {
		if (s.p[i] < '0' || s.p[i] > '9')
			return false;
		*out = *out * 10 + (s.p[i] - '0');
	}
	return true;
}

static size_t put_utf8(uint8_t *o, uint32_t c)
{
	if (c < 0x80) {
		o[0] = (uint8_t)c;
		return 1;
	}
	if (c < 0x800) {
		o[0] = (uint8_t)(0xc0 | c >> 6);
		o[1] = (uint8_t)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		o[0] = (uint8_t)(0xe0 | c >> 12);
		o[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
		o[2] = (uint8_t)(0x80 | (c & 0x3f));
		return 3;
	}
	o[0] = (uint8_t)(0xf0 | c >> 18);
	o[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
	o[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
	o[3] = (uint8_t)(0x80 | (c & 0x3f));
	return 4;
}

/* The character of an escape behind its backslash; *p ends behind it. */
static uint32_t unescape(const uint8_t **p, const uint8_t *end)
{
	static const char from[] = "bfnrt", to[] = "\b\f\n\r\t";
	uint8_t c = *(*p)++;
	const char *at;
	int32_t high, low;

	if (c != 'u') {
		at = memchr(from, c, sizeof(from) - 1);
		return at ? (uint8_t)to[at - from] : c;
	}
	high = hex4(*p, end);
	*p += 4;
	if (high < 0xd800 || high > 0xdfff)
		return (uint32_t)high;
	if (high > 0xdbff || end - *p < 6 || (*p)[0] != '\\' || (*p)[1] != 'u')
		return 0xfffd;
	low = hex4(*p + 2, end);
	if (low < 0xdc00 || low > 0xdfff)
		return 0xfffd;
	*p += 6;
	return 0x10000 + ((uint32_t)(high - 0xd800) << 10) + (uint32_t)(low - 0xdc00);
}

static bool begins_number(uint8_t c)
{
	return c == '-' || (c >= '0' && c <= '9');
}

/* Whether a number may go on with it; within one, or at its beginning. */
static bool is_number(uint8_t c)
{
	return begins_number(c) || c == '+' || c == '.' || c == 'e' || c == 'E';
}

size_t json_span_unescape(struct json_span *left, uint8_t *out, size_t max)
{
	const uint8_t *p = left->p, *end = left->p + left->len;
	uint8_t *o = out;

	/* Room for the longest character. */
	while (p < end && (size_t)(o - out) + 4 <= max) {
		if (*p != '\\') {
			*o++ = *p++;
			continue;
		}
		p++;
		o += put_utf8(o, unescape(&p, end));
	}
	*left = (struct json_span){p, (size_t)(end - p)};
	return (size_t)(o - out);
}

struct json_span json_span_inside(struct json_span s)
{
	return (struct json_span){s.p + 1, s.len - 2};
}

/* Whether the number that begins here is longer than all readers take one for. */
static bool is_long_number(const uint8_t *p, const uint8_t *end)
{
	size_t n = 0;

	while (p + n < end && n <= JSON_SPAN_NUMBER && is_number(p[n]))
		n++;
	return n > JSON_SPAN_NUMBER;
}

void json_copy_init(struct json_copy *c, struct json_span s)
{
	*c = (struct json_copy){.left = s};
}

/* The rest of a string, as far as max goes. */
static size_t copy_string(struct json_copy *c, const uint8_t *p, size_t max, uint8_t *o)
{
	size_t n = 0;

	while (n < max && c->string) {
		if (c->escape)
			c->escape = false;
		else if (p[n] == '\\')
			c->escape = true;
		else if (p[n] == '"')
			c->string = false;
		n++;
	}
	memcpy(o, p, n);
	return n;
}

/* The rest of a number, as far as max goes. */
static size_t copy_number(struct json_copy *c, const uint8_t *p, size_t max, uint8_t *o)
{
	size_t n = 0;

	while (n < max && is_number(p[n])) {
		o[n] = p[n];
		n++;
	}
	c->number = n == max;
	return n;
}

/* What is between strings and numbers; a word is there, too. */
static size_t copy_between(const uint8_t *p, size_t max, uint8_t *o)
{
	size_t n = 0;

	while (n < max && p[n] != '"' && !begins_number(p[n])) {
		o[n] = p[n] == '\n' || p[n] == '\r' ? ' ' : p[n];
		n++;
	}
	return n;
}

size_t json_copy_some(struct json_copy *c, uint8_t *out, size_t max)
{
	const uint8_t *p = c->left.p, *end = c->left.p + c->left.len;
	uint8_t *o = out, *stop = out + max;

	/* Room for a byte, and for quotation marks around a number that ends with it. */
	while (p < end && stop - o >= 3) {
		size_t room = (size_t)(stop - o) - 2, left = (size_t)(end - p), n;

		if (room > left)
			room = left;
		if (c->string) {
			n = copy_string(c, p, room, o);
		} else if (c->number) {
			n = copy_number(c, p, room, o);
			if (c->quoted && (!c->number || n == left)) {
				o[n] = '"';
				o++;
				c->quoted = false;
			}
		} else if (begins_number(*p)) {
			c->number = true;
			c->quoted = is_long_number(p, end);
			if (c->quoted)
				*o++ = '"';
			continue;
		} else if (*p == '"') {
			c->string = true;
			*o = '"';
			n = 1;
		} else {
			n = copy_between(p, room, o);
		}
		p += n;
		o += n;
	}
	c->left = (struct json_span){p, (size_t)(end - p)};
	return (size_t)(o - out);
}

int json_span_append(struct buf *out, struct json_span s)
{
	/* Two quotation marks for each number that is too long, and room to go on. */
	size_t max = s.len + 2 * (s.len / JSON_SPAN_NUMBER);
	uint8_t *start = buf_reserve(out, max + 3);
	struct json_copy c;

	if (!start)
		return -ENOMEM;
	json_copy_init(&c, s);
	buf_commit(out, json_copy_some(&c, start, max + 3));
	return 0;
}
