/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scanner of JSON that can stop behind any byte. It never reads beyond what is
 * there; nesting is kept in a bit set, not on the stack.
 *
 * Invariant: between two steps all before f->at was looked at, and state says what
 * may follow. A bracket is on the stack when what it opens is not empty.
 */
#include "daemon/json_feed.h"
#include "lib/hex.h"
#include "lib/utf8.h"

#include <errno.h>
#include <string.h>

enum {
	FEED_TEXT, /* the object begins */
	FEED_VALUE,
	FEED_FIRST_VALUE, /* of an array, or its end */
	FEED_FIRST_NAME,  /* of an object, or its end */
	FEED_NAME,
	FEED_COLON,
	FEED_BEHIND, /* a value: a comma, or the end of what it is in */
	FEED_STRING,
	FEED_ESCAPE,
	FEED_HEX,
	FEED_MINUS,
	FEED_ZERO,
	FEED_INTEGER,
	FEED_POINT,
	FEED_FRACTION,
	FEED_E,
	FEED_SIGN,
	FEED_EXPONENT,
	FEED_WORD,
	FEED_END, /* of the object: only blanks follow */
	FEED_BAD,
};

void json_feed_init(struct json_feed *f, const char *const *names, size_t n, size_t in,
		    const char *inner)
{
	*f = (struct json_feed){.names = names, .n = n, .in = in, .inner = inner};
	f->state = n <= JSON_FEED_NAMES ? FEED_TEXT : FEED_BAD;
}

static bool is_blank(uint8_t c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_digit(uint8_t c)
{
	return c >= '0' && c <= '9';
}

/* Whether the innermost that is open is an object. */
static bool in_object(const struct json_feed *f)
{
	return f->open[(f->depth - 1) / 8] >> ((f->depth - 1) % 8) & 1;
}

/* One level more: the object itself, and JSON_SPAN_DEPTH in it. */
static bool push(struct json_feed *f, bool object)
{
	uint8_t bit = (uint8_t)(1u << f->depth % 8);

	if (f->depth == JSON_SPAN_DEPTH + 1)
		return false;
	if (object)
		f->open[f->depth / 8] |= bit;
	else
		f->open[f->depth / 8] &= (uint8_t)~bit;
	f->depth++;
	return true;
}

static bool name_is(const struct json_feed *f, const uint8_t *text, unsigned int level,
		    const char *name)
{
	const struct json_place *p = &f->name[level];

	return json_span_equals((struct json_span){text + p->at, p->len}, name);
}

/* A member that ends here. False: it was asked for, and is there twice. */
static bool note(struct json_feed *f, const uint8_t *text, unsigned int level, size_t end)
{
	struct json_place here = {f->value[level], end - f->value[level]};

	if (text[here.at] == 'n') /* null */
		here.len = 0;
	if (level == 1) {
		if (!f->in_wanted || !name_is(f, text, 1, f->inner))
			return true;
		f->twice_inner |= f->seen_inner;
		f->seen_inner = true;
		f->found_inner = here;
		return true;
	}
	for (size_t i = 0; i < f->n; i++) {
		if (!name_is(f, text, 0, f->names[i]))
			continue;
		if (f->seen[i])
			return false;
		f->seen[i] = true;
		f->found[i] = here;
	}
	return true;
}

/* Whether what is in the innermost is a member that may have been asked for. */
static bool is_member(const struct json_feed *f)
{
	return (f->depth == 1 || (f->depth == 2 && f->in_wanted)) && in_object(f);
}

/* What follows a value that ends here. */
static int value_ends(struct json_feed *f, const uint8_t *text, size_t end)
{
	if (f->depth == 0)
		return FEED_END;
	if (is_member(f) && !note(f, text, f->depth - 1, end))
		return FEED_BAD;
	return FEED_BEHIND;
}

/* A value begins with c. */
static int value_begins(struct json_feed *f, size_t at, uint8_t c)
{
	if (is_member(f))
		f->value[f->depth - 1] = at;
	switch (c) {
	case '"':
		f->in_name = false;
		return FEED_STRING;
	case '{':
		return FEED_FIRST_NAME;
	case '[':
		return FEED_FIRST_VALUE;
	case 't':
		f->word = "rue";
		return FEED_WORD;
	case 'f':
		f->word = "alse";
		return FEED_WORD;
	case 'n':
		f->word = "ull";
		return FEED_WORD;
	case '-':
		return FEED_MINUS;
	case '0':
		return FEED_ZERO;
	default:
		return is_digit(c) ? FEED_INTEGER : FEED_BAD;
	}
}

static int name_begins(struct json_feed *f, size_t at, uint8_t c)
{
	if (c != '"')
		return FEED_BAD;
	if (is_member(f))
		f->name[f->depth - 1].at = at;
	f->in_name = true;
	return FEED_STRING;
}

static int string_ends(struct json_feed *f, const uint8_t *text, size_t end)
{
	if (!f->in_name)
		return value_ends(f, text, end);
	if (is_member(f)) {
		f->name[f->depth - 1].len = end - f->name[f->depth - 1].at;
		if (f->depth == 1)
			f->in_wanted = f->inner && name_is(f, text, 0, f->names[f->in]);
	}
	return FEED_COLON;
}

/* Between the parts of something that is open. */
static int between(struct json_feed *f, const uint8_t *text, size_t at, uint8_t c)
{
	switch (f->state) {
	case FEED_TEXT:
		return c == '{' ? FEED_FIRST_NAME : FEED_BAD;
	case FEED_FIRST_VALUE:
		if (c == ']')
			return value_ends(f, text, at + 1);
		return push(f, false) ? value_begins(f, at, c) : FEED_BAD;
	case FEED_FIRST_NAME:
		if (c == '}')
			return value_ends(f, text, at + 1);
		return push(f, true) ? name_begins(f, at, c) : FEED_BAD;
	case FEED_VALUE:
		return value_begins(f, at, c);
	case FEED_NAME:
		return name_begins(f, at, c);
	case FEED_COLON:
		return c == ':' ? FEED_VALUE : FEED_BAD;
	case FEED_BEHIND:
		if (c == ',')
			return in_object(f) ? FEED_NAME : FEED_VALUE;
		if (c != (in_object(f) ? '}' : ']'))
			return FEED_BAD;
		f->depth--;
		return value_ends(f, text, at + 1);
	default: /* FEED_END */
		return FEED_BAD;
	}
}

/* Within a number, which may end before c: then -1. */
static int number_goes_on(int state, uint8_t c)
{
	bool digit = is_digit(c), e = c == 'e' || c == 'E';

	switch (state) {
	case FEED_MINUS:
		return c == '0' ? FEED_ZERO : digit ? FEED_INTEGER : FEED_BAD;
	case FEED_ZERO:
		return c == '.' ? FEED_POINT : e ? FEED_E : -1;
	case FEED_INTEGER:
		return digit ? state : c == '.' ? FEED_POINT : e ? FEED_E : -1;
	case FEED_POINT:
		return digit ? FEED_FRACTION : FEED_BAD;
	case FEED_FRACTION:
		return digit ? state : e ? FEED_E : -1;
	case FEED_E:
		return digit ? FEED_EXPONENT : c == '+' || c == '-' ? FEED_SIGN : FEED_BAD;
	case FEED_SIGN:
		return digit ? FEED_EXPONENT : FEED_BAD;
	default: /* FEED_EXPONENT */
		return digit ? state : -1;
	}
}

/* Within a string: up to its end, an escape, or as far as there is some. */
static size_t string_goes_on(struct json_feed *f, const uint8_t *text, size_t at, size_t len)
{
	while (at < len && text[at] != '"' && text[at] != '\\' && text[at] >= 0x20)
		at++;
	if (at == len)
		return at;
	if (text[at] == '"')
		f->state = string_ends(f, text, at + 1);
	else
		f->state = text[at] == '\\' ? FEED_ESCAPE : FEED_BAD;
	return at + 1;
}

static int escape_goes_on(struct json_feed *f, uint8_t c)
{
	if (f->state == FEED_HEX)
		return hex_value(c) < 0 ? FEED_BAD : --f->digits ? FEED_HEX : FEED_STRING;
	if (c != 'u')
		return memchr("\"\\/bfnrt", c, 8) ? FEED_STRING : FEED_BAD;
	f->digits = 4;
	return FEED_HEX;
}

static int word_goes_on(struct json_feed *f, const uint8_t *text, size_t at)
{
	if (text[at] != (uint8_t)*f->word)
		return FEED_BAD;
	return *++f->word ? FEED_WORD : value_ends(f, text, at + 1);
}

/* The byte at `at`, and maybe more: where the next one is. */
static size_t step(struct json_feed *f, const uint8_t *text, size_t at, size_t len)
{
	uint8_t c = text[at];
	int next;

	switch (f->state) {
	case FEED_STRING:
		return string_goes_on(f, text, at, len);
	case FEED_ESCAPE:
	case FEED_HEX:
		f->state = escape_goes_on(f, c);
		return at + 1;
	case FEED_WORD:
		f->state = word_goes_on(f, text, at);
		return at + 1;
	case FEED_MINUS:
	case FEED_ZERO:
	case FEED_INTEGER:
	case FEED_POINT:
	case FEED_FRACTION:
	case FEED_E:
	case FEED_SIGN:
	case FEED_EXPONENT:
		next = number_goes_on(f->state, c);
		f->state = next < 0 ? value_ends(f, text, at) : next;
		return next < 0 ? at : at + 1; /* c is not the number's */
	default:
		if (!is_blank(c))
			f->state = between(f, text, at, c);
		return at + 1;
	}
}

int json_feed_more(struct json_feed *f, const uint8_t *text, size_t len)
{
	bool bad = false;

	if (f->state != FEED_BAD && len > f->valid)
		f->valid += utf8_prefix(text + f->valid, len - f->valid, &bad);
	if (bad)
		f->state = FEED_BAD;
	while (f->at < len && f->state != FEED_BAD)
		f->at = step(f, text, f->at, len);
	return f->state == FEED_BAD ? -EPROTO : 0;
}

static struct json_span span_of(const uint8_t *text, struct json_place p)
{
	return p.len ? (struct json_span){text + p.at, p.len} : (struct json_span){0};
}

int json_feed_end(const struct json_feed *f, const uint8_t *text, struct json_span *out,
		  struct json_span *inner, bool *twice)
{
	/* A sequence that is not finished is within a string, and so is no end. */
	if (f->state != FEED_END)
		return -EPROTO;
	for (size_t i = 0; i < f->n; i++)
		out[i] = span_of(text, f->found[i]);
	if (inner)
		*inner = f->twice_inner ? (struct json_span){0} : span_of(text, f->found_inner);
	if (twice)
		*twice = f->twice_inner;
	return 0;
}
