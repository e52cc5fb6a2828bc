/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The strict look at a chunked body before the HTTP library sees it, as head.h does it for heads.
 * The library waits for the end of a line in its memory for the connection, and where the line is
 * longer than that it asks to be run again at once, for ever. So the lines that frame a body have a
 * length here, and end with CR and LF; what passes has one meaning only, which the library finds as
 * well. It stays the parser of record: what the lines say beside the size is its matter.
 *
 * Thread: any; pure. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_CHUNK_DIGS   16u    /* of a size: below 2^64 */
#define HTTP_CHUNK_LINE   1024u  /* bytes of its line, with what is behind the size */
#define HTTP_TRAILERS_MAX 32768u /* bytes of all lines behind the last chunk */

enum http_chunks_at {
	HTTP_CHUNKS_SIZE, /* the digits of a size */
	HTTP_CHUNKS_MORE, /* the rest of their line */
	HTTP_CHUNKS_DATA,
	HTTP_CHUNKS_END, /* CR and LF behind the data */
	HTTP_CHUNKS_TRAILERS,
	HTTP_CHUNKS_OVER, /* what follows is no part of the body */
};

struct http_chunks {
	const char *why; /* a sentence, when it was refused */
	/* Where it is. */
	enum http_chunks_at at;
	uint64_t left; /* size of the chunk so far, then what is missing of its data */
	unsigned int digits, line;
	unsigned int trailers; /* bytes of them */
	bool cr;               /* the last byte was a CR */
};

static inline void http_chunks_init(struct http_chunks *c)
{
	*c = (struct http_chunks){0};
}

/* The next n bytes of a body. 0, or -EBADMSG with c->why. */
__must_check int http_chunks_look(struct http_chunks *c, const char *p, size_t n);
