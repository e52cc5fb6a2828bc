/* SPDX-License-Identifier: Apache-2.0 */
/*
 * WebSocket (RFC 6455) without any input or output: the caller moves bytes,
 * this reads and writes frames in memory. Both roles; no extensions, no
 * subprotocols.
 *
 * Handshake. The server answers the client's Sec-WebSocket-Key with
 * websocket_accept(); the client makes its key of 16 random bytes with
 * websocket_key() and compares the answer with websocket_accept() of it.
 *
 * Reading. Bytes in pieces of any size go into websocket_parse() until it has
 * taken all of them; each whole message comes out once:
 *
 *     while (len) {
 *             ssize_t n = websocket_parse(&p, data, len, &m);
 *
 *             if (n < 0)              // fatal: send websocket_error_code((int)n), hang up
 *                     ...
 *             data += n, len -= n;
 *             if (m.type)             // handle m before the next call
 *                     ...
 *     }
 *
 * The other side is hostile: a message has a limit, which is also the limit of
 * the memory (allocated as bytes come, not as they are announced); control
 * frames have memory of their own and may come between the parts of a message.
 * Text and close reasons are checked to be UTF-8 when they are whole.
 *
 * Writing. websocket_append() puts one message as one frame at the end of a
 * bounded buffer, all of it or nothing. A client must mask what it sends, with
 * four new random bytes for every frame (random numbers are the caller's); a
 * server must not.
 *
 * Closing. Who gets WEBSOCKET_CLOSE answers with a close frame if it has not
 * sent one (websocket_append_close() with m.code), then the server hangs up.
 *
 * Not synchronised; any thread. fork: plain memory.
 */
#pragma once

#include "lib/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define WEBSOCKET_VERSION     "13" /* Sec-WebSocket-Version (section 4.1) */
#define WEBSOCKET_KEY_BYTES   16u
#define WEBSOCKET_KEY_LEN     24u /* its base64 */
#define WEBSOCKET_ACCEPT_LEN  28u
#define WEBSOCKET_MASK_LEN    4u
#define WEBSOCKET_HEADER_MAX  14u
#define WEBSOCKET_CONTROL_MAX 125u /* payload of a control frame (section 5.5) */
/* Longest reason of a close frame, behind its code. */
#define WEBSOCKET_REASON_MAX (WEBSOCKET_CONTROL_MAX - 2)

/* Who we are. What comes from a client is masked, what comes from a server is not. */
enum websocket_role {
	WEBSOCKET_SERVER,
	WEBSOCKET_CLIENT,
};

/* Kinds of messages; the values are the opcodes (section 5.2). 0: none. */
enum websocket_type {
	WEBSOCKET_NONE = 0,
	WEBSOCKET_TEXT = 1,
	WEBSOCKET_BINARY = 2,
	WEBSOCKET_CLOSE = 8,
	WEBSOCKET_PING = 9,
	WEBSOCKET_PONG = 10,
};

/* Codes of a close frame (section 7.4.1). */
enum websocket_code {
	WEBSOCKET_NORMAL = 1000,
	WEBSOCKET_GOING_AWAY = 1001,
	WEBSOCKET_PROTOCOL_ERROR = 1002,
	WEBSOCKET_UNSUPPORTED = 1003,
	WEBSOCKET_NO_CODE = 1005, /* never sent: the close frame had none */
	WEBSOCKET_BAD_DATA = 1007,
	WEBSOCKET_POLICY = 1008,
	WEBSOCKET_TOO_BIG = 1009,
	WEBSOCKET_INTERNAL = 1011,
};

/* A whole message. The data is the parser's, and valid until its next call. */
struct websocket_message {
	enum websocket_type type; /* WEBSOCKET_NONE: no message is whole yet */
	const uint8_t *data;      /* not NUL-terminated; of a close: the reason */
	size_t len;
	uint16_t code; /* of a close: what came, or WEBSOCKET_NO_CODE */
};

struct websocket_parser {
	enum websocket_role role;
	bool in_payload;          /* the header is whole */
	bool fin, started;        /* of this frame; a message has begun whose end is missing */
	bool given;               /* the content of `message` was handed out: drop it first */
	bool closed;              /* a close frame came: the rest is dropped */
	int error;                /* what ended it, or 0 */
	uint8_t opcode;           /* of this frame */
	enum websocket_type type; /* of the message that has begun */
	uint8_t header[WEBSOCKET_HEADER_MAX];
	size_t header_len;
	uint8_t mask[WEBSOCKET_MASK_LEN];
	uint64_t left; /* payload that is missing, of this frame */
	size_t at;     /* and how much there was: the place in the mask */
	uint8_t control[WEBSOCKET_CONTROL_MAX];
	size_t control_len;
	struct buf message;
};

/* max: bytes of the largest text or binary message that is taken. Allocates nothing. */
void websocket_parser_init(struct websocket_parser *p, enum websocket_role role, size_t max);
void websocket_parser_free(struct websocket_parser *p);

/*
 * Reads from data; stops behind the first message that is whole. Returns the
 * bytes taken, which may be fewer than len only when m holds a message.
 * Behind a close frame everything is taken and dropped. Errors end the
 * connection, and come again in every further call:
 *   -EPROTO   the frames break the protocol (WEBSOCKET_PROTOCOL_ERROR)
 *   -EILSEQ   a text is not UTF-8 (WEBSOCKET_BAD_DATA)
 *   -EMSGSIZE a message is larger than the limit (WEBSOCKET_TOO_BIG)
 *   -ENOMEM   (WEBSOCKET_INTERNAL)
 */
__must_check ssize_t websocket_parse(struct websocket_parser *p, const uint8_t *data, size_t len,
				     struct websocket_message *m);

/* The code that tells the other side about an error of websocket_parse(). */
uint16_t websocket_error_code(int rc);

/*
 * Writes the value of Sec-WebSocket-Accept and a NUL. -EINVAL when the key is
 * not the base64 of 16 bytes.
 */
__must_check int websocket_accept(char out[WEBSOCKET_ACCEPT_LEN + 1], const char *key);

/* Writes the value of Sec-WebSocket-Key and a NUL. */
void websocket_key(char out[WEBSOCKET_KEY_LEN + 1], const uint8_t random[WEBSOCKET_KEY_BYTES]);

/* True when a header's value is a comma list that has this token, in either case: Connection. */
bool websocket_has_token(const char *value, const char *token);

/* Masks or unmasks in place; at: how many bytes of the frame's payload came before. */
void websocket_mask(uint8_t *data, size_t len, const uint8_t mask[WEBSOCKET_MASK_LEN], size_t at);

/* The length of a frame with len bytes of payload. */
size_t websocket_frame_len(size_t len, bool masked);

/*
 * Appends one frame that is a whole message. mask: NULL for a server. 0,
 * -ENOBUFS when there is no room for all of it, -ENOMEM, or -EINVAL for a
 * control frame with more than WEBSOCKET_CONTROL_MAX bytes.
 */
__must_check int websocket_append(struct buf *out, enum websocket_type type, const void *data,
				  size_t len, const uint8_t *mask);

/*
 * Appends a close frame. WEBSOCKET_NO_CODE: one without code and reason, as
 * the answer to such a one. reason: UTF-8, may be NULL. Errors as
 * websocket_append(), -EINVAL also for a code that must not be sent.
 */
__must_check int websocket_append_close(struct buf *out, uint16_t code, const char *reason,
					const uint8_t *mask);
