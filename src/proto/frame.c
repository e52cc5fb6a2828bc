/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frame codec, reader and writer. Invariant of the reader: its buffer holds at
 * most one maximal frame plus what came behind it within the same bound, so a
 * peer cannot make it grow; a header is checked before its payload is awaited.
 */
#include "proto/frame.h"
#include "lib/io.h"

#include <errno.h>
#include <string.h>

#define FRAME_MAX (FRAME_HEADER_SIZE + FRAME_PAYLOAD_MAX)

void frame_pack_header(uint8_t out[FRAME_HEADER_SIZE], uint8_t type, uint32_t len)
{
	out[0] = (uint8_t)len;
	out[1] = (uint8_t)(len >> 8);
	out[2] = (uint8_t)(len >> 16);
	out[3] = (uint8_t)(len >> 24);
	out[4] = type;
	out[5] = out[6] = out[7] = 0;
}

int frame_unpack_header(const uint8_t in[FRAME_HEADER_SIZE], uint8_t *type, uint32_t *len)
{
	uint32_t n = (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 |
		     (uint32_t)in[3] << 24;

	if (n > FRAME_PAYLOAD_MAX)
		return -EMSGSIZE;
	if (in[5] || in[6] || in[7])
		return -EPROTO;
	*type = in[4];
	*len = n;
	return 0;
}

void frame_reader_init(struct frame_reader *r)
{
	*r = (struct frame_reader){0};
	buf_init(&r->in, FRAME_MAX);
}

void frame_reader_free(struct frame_reader *r)
{
	buf_free(&r->in);
	r->consumed = 0;
}

static void frame_reader_release(struct frame_reader *r)
{
	buf_consume(&r->in, r->consumed);
	r->consumed = 0;
}

ssize_t frame_reader_fill(struct frame_reader *r, int fd)
{
	size_t room;
	uint8_t *p;
	ssize_t n;

	frame_reader_release(r);
	room = buf_room(&r->in);
	if (room == 0)
		return -ENOBUFS;
	/* Small reads first: most streams carry a few short frames and never need the full bound.
	 */
	if (buf_len(&r->in) == 0 && r->in.cap < 4096)
		room = 4096;
	p = buf_reserve(&r->in, room);
	if (!p)
		return -ENOMEM;
	n = io_read_some(fd, p, room);
	if (n > 0)
		buf_commit(&r->in, (size_t)n);
	return n;
}

ssize_t frame_reader_look(struct frame_reader *r, int fd)
{
	size_t room;
	uint8_t *p;
	ssize_t n;

	frame_reader_release(r);
	room = buf_room(&r->in);
	if (room == 0)
		return -ENOBUFS;
	if (room > FRAME_LOOK)
		room = FRAME_LOOK;
	p = buf_reserve(&r->in, room);
	if (!p)
		return -ENOMEM;
	n = io_peek_some(fd, p, room);
	if (n > 0)
		buf_commit(&r->in, (size_t)n);
	return n;
}

size_t frame_reader_feed(struct frame_reader *r, const void *data, size_t len)
{
	frame_reader_release(r);
	if (len > buf_room(&r->in))
		len = buf_room(&r->in);
	return buf_append(&r->in, data, len) == 0 ? len : 0;
}

int frame_reader_next(struct frame_reader *r, struct frame *out)
{
	const uint8_t *p;
	uint32_t len;
	uint8_t type;
	int rc;

	frame_reader_release(r);
	if (buf_len(&r->in) < FRAME_HEADER_SIZE)
		return 0;
	p = buf_data(&r->in);
	rc = frame_unpack_header(p, &type, &len);
	if (rc < 0)
		return rc;
	if (buf_len(&r->in) < FRAME_HEADER_SIZE + len)
		return 0;
	*out = (struct frame){.type = type, .len = len, .payload = p + FRAME_HEADER_SIZE};
	r->consumed = FRAME_HEADER_SIZE + len;
	return 1;
}

void frame_writer_init(struct frame_writer *w, size_t max)
{
	buf_init(&w->out, max);
}

void frame_writer_free(struct frame_writer *w)
{
	buf_free(&w->out);
}

size_t frame_writer_room(const struct frame_writer *w)
{
	size_t room = buf_room(&w->out);

	if (room <= FRAME_HEADER_SIZE)
		return 0;
	room -= FRAME_HEADER_SIZE;
	return room < FRAME_PAYLOAD_MAX ? room : FRAME_PAYLOAD_MAX;
}

int frame_put(struct frame_writer *w, uint8_t type, const void *payload, size_t len)
{
	uint8_t *p;

	if (len > FRAME_PAYLOAD_MAX)
		return -EMSGSIZE;
	if (len + FRAME_HEADER_SIZE > buf_room(&w->out))
		return -ENOBUFS;
	p = buf_reserve(&w->out, len + FRAME_HEADER_SIZE);
	if (!p)
		return -ENOMEM;
	frame_pack_header(p, type, (uint32_t)len);
	if (len)
		memcpy(p + FRAME_HEADER_SIZE, payload, len);
	buf_commit(&w->out, len + FRAME_HEADER_SIZE);
	return 0;
}

int frame_writer_flush(struct frame_writer *w, int fd)
{
	return buf_flush(&w->out, fd);
}
