/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The check of json_span.h for a text that comes in pieces: each byte is looked at
 * once, when it comes, so that a long text costs no long look at its end.
 *
 * The text is the caller's, and grows; it may move. Not synchronised. fork: plain
 * memory.
 */
#pragma once

#include "daemon/json_span.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_FEED_NAMES 8u

/* A place in the text, as it may move. */
struct json_place {
	size_t at, len;
};

struct json_feed {
	const char *const *names; /* of members of the object that are looked for */
	size_t n;
	size_t in;         /* the one whose members are looked at, too: for this name */
	const char *inner; /* NULL: none */

	struct json_place found[JSON_FEED_NAMES], found_inner; /* len 0: absent */
	bool seen[JSON_FEED_NAMES], seen_inner, twice_inner;

	size_t at, valid; /* bytes that were looked at; of these, that are UTF-8 */
	int state;
	const char *word;        /* rest of true, false, null */
	unsigned int digits;     /* of an escape, that are still to come */
	bool in_name, in_wanted; /* the string is a name; within the member `in` */
	/* What is open: one bit a level, set for an object. */
	uint8_t open[JSON_SPAN_DEPTH / 8 + 1];
	unsigned int depth;
	/* The member under way of the object, and of one below it. */
	struct json_place name[2];
	size_t value[2];
};

/*
 * names: n of them, JSON_FEED_NAMES at most. inner: a name to be looked for among the members of
 * names[in], or NULL. Both stay the caller's.
 */
void json_feed_init(struct json_feed *f, const char *const *names, size_t n, size_t in,
		    const char *inner);
/* The text has len bytes by now, those that were there before among them. 0, or -EPROTO, which
 * stays. */
int json_feed_more(struct json_feed *f, const uint8_t *text, size_t len);
/*
 * The text is complete, and out[i] what json_span_members() would find; *inner: absent as well when
 * it is there twice, which *twice tells. inner and twice may be NULL. 0 or -EPROTO.
 */
__must_check int json_feed_end(const struct json_feed *f, const uint8_t *text,
			       struct json_span *out, struct json_span *inner, bool *twice);
