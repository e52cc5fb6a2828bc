/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An HTTP/1.1 reply, read from bytes in pieces of any size: its head, then its
 * body by Content-Length, in chunks or up to the end of the connection. The
 * body is decoded into a bounded buffer; who reads a long one consumes it
 * between calls and feeds no more at once than it has room.
 *
 * Not synchronised; no input or output. fork: plain memory.
 */
#pragma once

#include "lib/buf.h"

#include <stdbool.h>
#include <stdint.h>

#define HTTP_REPLY_HEAD_MAX 16384u

struct http_reply {
	enum {
		HTTP_REPLY_HEAD,
		HTTP_REPLY_SIZE,    /* a chunk's first line */
		HTTP_REPLY_DATA,    /* left bytes of body, of a chunk or all */
		HTTP_REPLY_CRLF,    /* behind a chunk's data */
		HTTP_REPLY_TRAILER, /* lines behind the last chunk */
		HTTP_REPLY_TO_END,  /* all that comes is body */
		HTTP_REPLY_DONE,
	} state;
	int status;
	bool chunked;
	uint64_t left;
	char line[80]; /* of the framing; the first part of a longer one */
	size_t line_len;
	struct buf head; /* NUL-terminated lines once state is beyond HTTP_REPLY_HEAD */
	struct buf body;
};

/* body_max: bytes of body that may be held at once. Allocates nothing. */
void http_reply_init(struct http_reply *r, size_t body_max);
void http_reply_free(struct http_reply *r);

/*
 * Takes bytes; their number, fewer than len only when the reply is whole. For
 * 101 (switching protocols) that is the end of the head: what follows is not
 * HTTP. -EPROTO: no HTTP reply; -EMSGSIZE: larger than the bounds; -ENOMEM.
 */
__must_check ssize_t http_reply_feed(struct http_reply *r, const void *data, size_t len);

/* The connection has ended: 0 when that is the reply's end, else -ECONNRESET. */
__must_check int http_reply_end(struct http_reply *r);

static inline bool http_reply_has_head(const struct http_reply *r)
{
	return r->state != HTTP_REPLY_HEAD;
}

static inline bool http_reply_done(const struct http_reply *r)
{
	return r->state == HTTP_REPLY_DONE;
}

/* The value of a header (the first of that name), or NULL. */
const char *http_reply_header(const struct http_reply *r, const char *name);
