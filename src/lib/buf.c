/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bounded byte queue: one allocation, content between start and end. Content
 * moves to the front only when room is needed behind it, so that steady
 * append/consume costs no copying of more than the content.
 */
#define _GNU_SOURCE
#include "lib/buf.h"
#include "lib/io.h"
#include "lib/wipe.h"

#include <errno.h>
#include <string.h>

#define BUF_MIN 512

void buf_free(struct buf *b)
{
	if (b->secret)
		wipe_free(b->data);
	else
		free(b->data);
	*b = (struct buf){.max = b->max, .secret = b->secret};
}

/* A larger place for what starts at 0, or NULL: it stays where it is. */
static uint8_t *buf_grow(struct buf *b, size_t cap)
{
	uint8_t *p;

	if (!b->secret)
		return realloc(b->data, cap);
	p = malloc(cap);
	if (!p)
		return NULL;
	if (b->end)
		memcpy(p, b->data, b->end);
	wipe_free(b->data);
	return p;
}

uint8_t *buf_reserve(struct buf *b, size_t len)
{
	size_t have = buf_len(b), cap = b->cap ? b->cap : BUF_MIN;
	uint8_t *p;

	if (len > b->max - have)
		return NULL;
	if (b->cap - b->end >= len && b->data)
		return b->data + b->end;
	if (b->data && b->start) {
		memmove(b->data, b->data + b->start, have);
		if (b->secret)
			explicit_bzero(b->data + have, b->start);
		b->start = 0;
		b->end = have;
		if (b->cap - b->end >= len)
			return b->data + b->end;
	}
	while (cap < have + len)
		cap *= 2;
	if (cap > b->max)
		cap = b->max;
	p = buf_grow(b, cap);
	if (!p)
		return NULL;
	b->data = p;
	b->cap = cap;
	return b->data + b->end;
}

void buf_commit(struct buf *b, size_t len)
{
	b->end += len;
}

int buf_append(struct buf *b, const void *data, size_t len)
{
	uint8_t *p;

	if (len == 0)
		return 0;
	if (len > buf_room(b))
		return -ENOBUFS;
	p = buf_reserve(b, len);
	if (!p)
		return -ENOMEM;
	memcpy(p, data, len);
	buf_commit(b, len);
	return 0;
}

void buf_consume(struct buf *b, size_t len)
{
	if (b->secret && len)
		explicit_bzero(b->data + b->start, len);
	b->start += len;
	if (b->start == b->end)
		b->start = b->end = 0;
}

int buf_flush(struct buf *b, int fd)
{
	while (buf_len(b)) {
		ssize_t n = io_send_some(fd, buf_data(b), buf_len(b));

		if (n == -EAGAIN)
			return 1;
		if (n < 0)
			return (int)n;
		buf_consume(b, (size_t)n);
	}
	return 0;
}
