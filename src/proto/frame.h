/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frames between daemon and agent, and between agent and REPL: an 8-byte
 * header (u32le payload length, u8 type, three zero bytes) and at most
 * FRAME_PAYLOAD_MAX bytes. What each type carries is written down in
 * api/agent-protocol.md. Both ends treat the other as hostile.
 *
 * Reader and writer are for non-blocking stream sockets and hold bounded
 * memory. Not synchronised. fork: plain memory.
 */
#pragma once

#include "lib/buf.h"

#include <stdint.h>

#define FRAME_HEADER_SIZE 8u
#define FRAME_PAYLOAD_MAX 65536u
#define FRAME_LOOK        1024u

enum frame_type {
	/* host -> agent */
	FRAME_EXEC = 0x01,
	FRAME_CANCEL = 0x02,
	FRAME_PING = 0x03,
	FRAME_PUT = 0x04,
	FRAME_GET = 0x05,
	FRAME_DATA_IN = 0x06,
	FRAME_END_IN = 0x07,
	FRAME_RENEW = 0x08,
	FRAME_STATUS = 0x09,
	FRAME_WARM = 0x0b,
	FRAME_FREEZE = 0x0c,
	FRAME_THAW = 0x0d,
	FRAME_CHANGES = 0x0e,
	FRAME_HASHES = 0x0f,
	FRAME_STDIN = 0x10,
	FRAME_STDIN_END = 0x11,
	FRAME_INTERRUPT = 0x12,
	FRAME_CONTEXT = 0x13,
	FRAME_FILE = 0x14,
	FRAME_COMMAND = 0x15,
	FRAME_RESIZE = 0x16,
	FRAME_EGRESS = 0x17,
	/* agent -> host */
	FRAME_STDOUT = 0x81,
	FRAME_STDERR = 0x82,
	FRAME_EXIT = 0x83,
	FRAME_ERROR = 0x84,
	FRAME_PONG = 0x85,
	FRAME_OK = 0x86,
	FRAME_DATA_OUT = 0x87,
	FRAME_END_OUT = 0x88,
	FRAME_EVENT = 0x89,
	/* REPL -> agent, beside EVENT, EVENT_PART, EXIT and OK */
	FRAME_READY = 0x8a,
	/* agent -> host again; EVENT_PART from the REPL, too */
	FRAME_EVENT_PART = 0x8b,
	FRAME_STDIN_ACK = 0x8c,
};

struct frame {
	uint8_t type;
	uint32_t len;
	const uint8_t *payload; /* inside the reader, valid until its next call */
};

/* Header to and from its wire form. Unpack: 0, -EMSGSIZE (too long), -EPROTO (bad reserved byte).
 */
void frame_pack_header(uint8_t out[FRAME_HEADER_SIZE], uint8_t type, uint32_t len);
__must_check int frame_unpack_header(const uint8_t in[FRAME_HEADER_SIZE], uint8_t *type,
				     uint32_t *len);

/* Collects bytes of a stream and yields whole frames. Holds at most one maximal frame. */
struct frame_reader {
	struct buf in;
	size_t consumed; /* of the frame handed out last */
};

void frame_reader_init(struct frame_reader *r);
void frame_reader_free(struct frame_reader *r);
/* One recv of what is there: bytes read (> 0), 0 at EOF, -EAGAIN, -ENOBUFS (take frames first),
 * -errno. */
ssize_t frame_reader_fill(struct frame_reader *r, int fd);
/* The same of a few bytes at most, FRAME_LOOK, which stay in the socket. */
ssize_t frame_reader_look(struct frame_reader *r, int fd);
/* Feeds bytes that came another way: count taken (may be less than len). */
size_t frame_reader_feed(struct frame_reader *r, const void *data, size_t len);
/* 1 and a frame, 0 when more bytes are needed, -EMSGSIZE/-EPROTO for a broken stream (stays
 * broken). */
__must_check int frame_reader_next(struct frame_reader *r, struct frame *out);

/*
 * Queue of outgoing frames, bounded: `max` bytes of frames may wait. Whoever
 * produces asks frame_writer_room() first and stops its source when there is
 * none; frame_put() then cannot fail but for memory.
 */
struct frame_writer {
	struct buf out;
};

void frame_writer_init(struct frame_writer *w, size_t max);
void frame_writer_free(struct frame_writer *w);
/* Largest payload that can be queued now; 0 = stop producing. */
size_t frame_writer_room(const struct frame_writer *w);
/* 0, -ENOBUFS, -EMSGSIZE, -ENOMEM. */
__must_check int frame_put(struct frame_writer *w, uint8_t type, const void *payload, size_t len);
/* 0 = all sent, 1 = bytes remain (wait for EPOLLOUT), -errno. */
__must_check int frame_writer_flush(struct frame_writer *w, int fd);
static inline int frame_writer_pending(const struct frame_writer *w)
{
	return buf_len(&w->out) > 0;
}
