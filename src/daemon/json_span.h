/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON that a guest wrote and that is passed on as it came: checked whole, its
 * members found, nothing built of it. A text of 8 MiB costs no memory beyond
 * itself, and numbers keep all their digits, as strings if there are many. One
 * that comes in pieces is checked in pieces (json_feed.h).
 *
 * Accepted is RFC 8259 in UTF-8, nested at most JSON_SPAN_DEPTH deep. An escape
 * of half a surrogate pair is let through: Python writes such.
 *
 * Pure functions over memory; any thread. fork: no state.
 */
#pragma once

#include "lib/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_SPAN_DEPTH 512u
/* Longest number that is passed on as one: Python's json refuses integers of 4300 digits. */
#define JSON_SPAN_NUMBER 4000u

/* One value inside a text that was checked, without blanks around it. p NULL: absent. */
struct json_span {
	const uint8_t *p;
	size_t len;
};

/*
 * Checks text, which must be one object, and finds the members of these names:
 * out[i] is the value of names[i], or absent; null counts as absent. Names are
 * compared as they are written. 0, or -EPROTO: no such text, or one of the
 * members is there twice.
 */
__must_check int json_span_members(struct json_span text, const char *const *names,
				   struct json_span *out, size_t n);

static inline bool json_span_is(struct json_span s, char first)
{
	return s.p && *s.p == (uint8_t)first;
}

/* Whether it is this string, written without escapes. */
bool json_span_equals(struct json_span s, const char *text);
/* Whether it is a whole number from 0 to 10^18 - 1, and which. */
bool json_span_count(struct json_span s, int64_t *out);

/*
 * Texts and values that may be long are made in pieces. What is inside of a string, between its
 * marks; then a piece of its text (a NUL may be in it; half a surrogate pair becomes U+FFFD): bytes
 * that were written to out, of max, which is 4 at least; left is what remains.
 */
struct json_span json_span_inside(struct json_span s);
size_t json_span_unescape(struct json_span *left, uint8_t *out, size_t max);

/*
 * A value on one line: line ends between tokens become blanks; and a number of more than
 * JSON_SPAN_NUMBER characters a string of them, as not all readers take it for a number.
 */
struct json_copy {
	struct json_span left; /* len 0: all was copied */
	bool string, escape;   /* within a string; behind its backslash */
	bool number, quoted;   /* within a number; it becomes a string */
};

void json_copy_init(struct json_copy *c, struct json_span s);
/* The next piece: bytes that were written to out, of max, which is 3 at least. */
size_t json_copy_some(struct json_copy *c, uint8_t *out, size_t max);
/* All of it. As buf_append(), but -ENOMEM in either case. */
__must_check int json_span_append(struct buf *out, struct json_span s);
