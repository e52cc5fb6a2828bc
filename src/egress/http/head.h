/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The strict look at the head of a request before the HTTP library sees it.
 * The library is lenient where a proxy must not be (it cuts values at NUL, joins
 * folded lines, takes bare LF, and the first of two lengths), and it tells none
 * of this to its user. So each head is looked at here first, as bytes: what is not exactly
 * what RFC 9112 asks a sender to write is refused, but for white space behind values, which is
 * moved out of the way (http_head_tidy()). What passes has one meaning only, which the library then
 * finds as well; it stays the parser of record.
 *
 * Found on the way: how the request's body is framed, so that who feeds the library knows
 * where the next head begins.
 *
 * Thread: any; pure. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_HEAD_MAX    32768u /* bytes */
#define HTTP_FIELDS_MAX  128u   /* header lines */
#define HTTP_METHOD_MAX  24u
#define HTTP_COOKIES_MAX 256u /* in all Cookie headers: the library makes a piece of each */
#define HTTP_LENGTH_DIGS 18u  /* of a Content-Length: below 2^63 */

enum http_framing { HTTP_NO_BODY, HTTP_LENGTH, HTTP_CHUNKED };

struct http_head {
	/* Results. */
	size_t len; /* bytes of the head, its blank line included */
	enum http_framing framing;
	uint64_t length;
	bool http10;
	size_t target, target_len; /* where that of the first line is */
	const char *why;           /* a sentence, when it was refused */
	/* Where it is. */
	size_t scan, line;
	unsigned int blank, fields, cookies;
	bool begun, host, has_length, has_encoding;
};

static inline void http_head_init(struct http_head *h)
{
	*h = (struct http_head){0};
}

/*
 * p: all bytes of the request that there are, always from its first; n may grow from call to call.
 * 1 when the head is whole and good, 0 when bytes are missing, -EBADMSG with h->why.
 */
__must_check int http_head_look(struct http_head *h, const char *p, size_t n);
/*
 * p: a head that is good, whose white space behind values, which is none of theirs but which the
 * library leaves with them, this moves to where the library skips it: in front of them.
 */
void http_head_tidy(const struct http_head *h, char *p);
