/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte by byte in lines, and at once over data.
 * Thread: any. fork: no state.
 */
#include "egress/http/chunks.h"
#include "lib/hex.h"

#include <errno.h>

static int chunks_bad(struct http_chunks *c, const char *why)
{
	c->why = why;
	return -EBADMSG;
}

/* A line has ended. */
static void chunks_line(struct http_chunks *c)
{
	bool empty = c->line == 0;

	c->line = 0;
	if (c->at == HTTP_CHUNKS_MORE)
		c->at = c->left ? HTTP_CHUNKS_DATA : HTTP_CHUNKS_TRAILERS;
	else if (c->at == HTTP_CHUNKS_END)
		c->at = HTTP_CHUNKS_SIZE;
	else if (empty)
		c->at = HTTP_CHUNKS_OVER;
	c->digits = 0;
}

static int chunks_digit(struct http_chunks *c, char b)
{
	int digit = hex_value((uint8_t)b);

	if (digit < 0) {
		if (c->digits == 0 || (b != '\r' && b != ';' && b != ' ' && b != '\t'))
			return chunks_bad(c, "the size of a chunk is not a number");
		c->at = HTTP_CHUNKS_MORE;
		return 0;
	}
	if (++c->digits > HTTP_CHUNK_DIGS)
		return chunks_bad(c, "the size of a chunk has too many digits");
	c->left = (c->digits == 1 ? 0 : c->left << 4) | (unsigned int)digit;
	return 0;
}

/* A byte of what frames the data. */
static int chunks_byte(struct http_chunks *c, char b)
{
	int rc = c->at == HTTP_CHUNKS_SIZE ? chunks_digit(c, b) : 0;

	if (rc < 0)
		return rc;
	if (c->at == HTTP_CHUNKS_TRAILERS && ++c->trailers > HTTP_TRAILERS_MAX)
		return chunks_bad(c, "what follows the last chunk is too long");
	if (c->cr != (b == '\n'))
		return chunks_bad(c, "a line of a chunked body does not end with CR and LF");
	c->cr = b == '\r';
	if (b == '\n')
		chunks_line(c);
	else if (!c->cr && c->at == HTTP_CHUNKS_END)
		return chunks_bad(c, "a chunk is longer than was said");
	else if (!c->cr && ++c->line > HTTP_CHUNK_LINE && c->at != HTTP_CHUNKS_TRAILERS)
		return chunks_bad(c, "the line of a chunk's size is too long");
	return 0;
}

int http_chunks_look(struct http_chunks *c, const char *p, size_t n)
{
	for (size_t i = 0; i < n && c->at != HTTP_CHUNKS_OVER;) {
		size_t data = n - i < c->left ? n - i : (size_t)c->left;
		int rc;

		if (c->at != HTTP_CHUNKS_DATA) {
			rc = chunks_byte(c, p[i++]);
			if (rc < 0)
				return rc;
			continue;
		}
		i += data;
		c->left -= data;
		if (c->left == 0)
			c->at = HTTP_CHUNKS_END;
	}
	return 0;
}
