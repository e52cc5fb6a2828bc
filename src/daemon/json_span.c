/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checking scanner over one JSON text. It never reads beyond end; nesting is
 * kept in a bit set, not on the stack.
 */
#include "daemon/json_span.h"
#include "lib/utf8.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct scan {
	const uint8_t *p, *end;
};

static void skip_blanks(struct scan *s)
{
	while (s->p < s->end && (*s->p == ' ' || *s->p == '\t' || *s->p == '\n' || *s->p == '\r'))
		s->p++;
}

static bool take(struct scan *s, char c)
{
	if (s->p == s->end || *s->p != (uint8_t)c)
		return false;
	s->p++;
	return true;
}

static int hex_value(uint8_t c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

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

static bool take_string(struct scan *s)
{
	if (!take(s, '"'))
		return false;
	while (s->p < s->end) {
		uint8_t c = *s->p++;

		if (c == '"')
			return true;
		if (c < 0x20)
			return false;
		if (c != '\\')
			continue;
		if (s->p == s->end)
			return false;
		c = *s->p++;
		if (c == 'u') {
			if (hex4(s->p, s->end) < 0)
				return false;
			s->p += 4;
		} else if (!memchr("\"\\/bfnrt", c, 8)) {
			return false;
		}
	}
	return false;
}

/* At least one digit. */
static bool take_digits(struct scan *s)
{
	const uint8_t *start = s->p;

	while (s->p < s->end && *s->p >= '0' && *s->p <= '9')
		s->p++;
	return s->p > start;
}

static bool take_number(struct scan *s)
{
	take(s, '-');
	if (!take(s, '0') && !take_digits(s))
		return false;
	if (take(s, '.') && !take_digits(s))
		return false;
	if (take(s, 'e') || take(s, 'E')) {
		if (!take(s, '+'))
			take(s, '-');
		return take_digits(s);
	}
	return true;
}

static bool take_word(struct scan *s, const char *word)
{
	size_t n = strlen(word);

	if ((size_t)(s->end - s->p) < n || memcmp(s->p, word, n) != 0)
		return false;
	s->p += n;
	return true;
}

/* A value that holds no others. */
static bool take_leaf(struct scan *s)
{
	if (s->p == s->end)
		return false;
	switch (*s->p) {
	case '"':
		return take_string(s);
	case 't':
		return take_word(s, "true");
	case 'f':
		return take_word(s, "false");
	case 'n':
		return take_word(s, "null");
	default:
		return take_number(s);
	}
}

/* Name and colon of a member. */
static bool take_name(struct scan *s)
{
	skip_blanks(s);
	if (!take_string(s))
		return false;
	skip_blanks(s);
	if (!take(s, ':'))
		return false;
	skip_blanks(s);
	return true;
}

/* What is open: one bit a level, set for an object. */
struct nesting {
	uint8_t bits[JSON_SPAN_DEPTH / 8];
	unsigned int depth;
};

static bool nesting_is_object(const struct nesting *n)
{
	return n->bits[(n->depth - 1) / 8] >> ((n->depth - 1) % 8) & 1;
}

static bool nesting_open(struct nesting *n, bool object)
{
	uint8_t bit = (uint8_t)(1u << n->depth % 8);

	if (n->depth == JSON_SPAN_DEPTH)
		return false;
	if (object)
		n->bits[n->depth / 8] |= bit;
	else
		n->bits[n->depth / 8] &= (uint8_t)~bit;
	n->depth++;
	return true;
}

/* Behind a value: closes what ends here, and goes on to the next value of what does not. */
static bool take_ends(struct scan *s, struct nesting *n)
{
	while (n->depth) {
		bool object = nesting_is_object(n);

		skip_blanks(s);
		if (take(s, ',')) {
			skip_blanks(s);
			return object ? take_name(s) : true;
		}
		if (!take(s, object ? '}' : ']'))
			return false;
		n->depth--;
	}
	return true;
}

static bool take_value(struct scan *s)
{
	struct nesting n = {.depth = 0};

	do {
		bool object = s->p < s->end && *s->p == '{';

		if (!object && !(s->p < s->end && *s->p == '[')) {
			if (!take_leaf(s))
				return false;
		} else {
			s->p++;
			skip_blanks(s);
			if (!take(s, object ? '}' : ']')) {
				if (!nesting_open(&n, object) || (object && !take_name(s)))
					return false;
				continue; /* to its first value */
			}
		}
		if (!take_ends(s, &n))
			return false;
	} while (n.depth);
	return true;
}

/* Notes a member that was asked for. False: it is there twice. */
static bool note(struct json_span name, struct json_span value, const char *const *names,
		 struct json_span *out, bool *seen, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (!json_span_equals(name, names[i]))
			continue;
		if (seen[i])
			return false;
		seen[i] = true;
		if (*value.p != 'n')
			out[i] = value;
	}
	return true;
}

int json_span_members(struct json_span text, const char *const *names, struct json_span *out,
		      size_t n)
{
	struct scan s = {text.p, text.p + text.len};
	bool seen[8] = {false};
	bool more;

	for (size_t i = 0; i < n; i++)
		out[i] = (struct json_span){0};
	if (n > sizeof(seen) || !text.p || !utf8_valid(text.p, text.len))
		return -EPROTO;
	skip_blanks(&s);
	if (!take(&s, '{'))
		return -EPROTO;
	skip_blanks(&s);
	more = !take(&s, '}');
	while (more) {
		struct json_span name, value;

		skip_blanks(&s);
		name.p = s.p;
		if (!take_string(&s))
			return -EPROTO;
		name.len = (size_t)(s.p - name.p);
		skip_blanks(&s);
		if (!take(&s, ':'))
			return -EPROTO;
		skip_blanks(&s);
		value.p = s.p;
		if (!take_value(&s))
			return -EPROTO;
		value.len = (size_t)(s.p - value.p);
		if (!note(name, value, names, out, seen, n))
			return -EPROTO;
		skip_blanks(&s);
		more = take(&s, ',');
		if (!more && !take(&s, '}'))
			return -EPROTO;
	}
	skip_blanks(&s);
	return s.p == s.end ? 0 : -EPROTO;
}

bool json_span_equals(struct json_span s, const char *text)
{
	size_t n = strlen(text);

	return json_span_is(s, '"') && s.len == n + 2 && memcmp(s.p + 1, text, n) == 0;
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

uint8_t *json_span_text(struct json_span s, size_t *len)
{
	const uint8_t *p = s.p + 1, *end = s.p + s.len - 1;
	uint8_t *out = malloc(s.len), *o = out;

	if (!out)
		return NULL;
	while (p < end) {
		if (*p != '\\') {
			*o++ = *p++;
			continue;
		}
		p++;
		o += put_utf8(o, unescape(&p, end));
	}
	*len = (size_t)(o - out);
	return out;
}

/* Of a string in a text that was checked, its marks included. */
static size_t string_length(const uint8_t *p)
{
	size_t n = 1;

	while (p[n] != '"')
		n += p[n] == '\\' ? 2 : 1;
	return n + 1;
}

/* Of a number that begins here; 0: none does. */
static size_t number_length(const uint8_t *p, const uint8_t *end)
{
	size_t n = 0;

	if (*p != '-' && (*p < '0' || *p > '9'))
		return 0;
	while (p + n < end && ((p[n] >= '0' && p[n] <= '9') || memchr("+-.eE", p[n], 5)))
		n++;
	return n;
}

int json_span_append(struct buf *out, struct json_span s)
{
	/* Two quotation marks for each number that is too long. */
	uint8_t *start = buf_reserve(out, s.len + 2 * (s.len / JSON_SPAN_NUMBER)), *o = start;
	const uint8_t *p = s.p, *end = s.p + s.len;

	if (!start)
		return -ENOMEM;
	while (p < end) {
		size_t n = *p == '"' ? string_length(p) : number_length(p, end);
		bool quote = *p != '"' && n > JSON_SPAN_NUMBER;

		if (n == 0) { /* between values, or of a word */
			*o++ = *p == '\n' || *p == '\r' ? ' ' : *p;
			p++;
			continue;
		}
		if (quote)
			*o++ = '"';
		memcpy(o, p, n);
		o += n;
		p += n;
		if (quote)
			*o++ = '"';
	}
	buf_commit(out, (size_t)(o - start));
	return 0;
}
