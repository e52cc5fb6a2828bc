/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Byte queue with a bound: bytes are appended at the end and consumed at the
 * start. Grows by doubling up to `max`; never beyond, so that a peer that does
 * not read cannot make it grow. Not synchronised. fork: plain memory.
 */
#pragma once

#include "lib/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct buf {
	uint8_t *data;
	size_t start, end, cap;
	size_t max;  /* most bytes it may hold */
	bool secret; /* its memory is overwritten before it is given back */
};

static inline void buf_init(struct buf *b, size_t max)
{
	*b = (struct buf){.max = max};
}

/* For what may be a secret: no copy of it is left behind, whether it grows, is consumed or freed.
 */
static inline void buf_init_secret(struct buf *b, size_t max)
{
	*b = (struct buf){.max = max, .secret = true};
}

/* Releases the memory; the buffer stays usable and empty. */
void buf_free(struct buf *b);

static inline size_t buf_len(const struct buf *b)
{
	return b->end - b->start;
}

/* Bytes that may still be appended. */
static inline size_t buf_room(const struct buf *b)
{
	return b->max - buf_len(b);
}

static inline const uint8_t *buf_data(const struct buf *b)
{
	return b->data ? b->data + b->start : NULL;
}

/* Makes len contiguous bytes of room at the end: pointer, or NULL (-ENOBUFS/-ENOMEM case). */
uint8_t *buf_reserve(struct buf *b, size_t len);
/* Bytes written behind buf_reserve()'s pointer become content. */
void buf_commit(struct buf *b, size_t len);
/* Appends a copy: 0, -ENOBUFS when the bound would be passed, -ENOMEM. */
__must_check int buf_append(struct buf *b, const void *data, size_t len);
/* Drops len bytes from the start. */
void buf_consume(struct buf *b, size_t len);

/*
 * Sends what it holds to a non-blocking socket (no SIGPIPE): 0 when empty
 * afterwards, 1 when bytes remain, or -errno.
 */
__must_check int buf_flush(struct buf *b, int fd);
