/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RFC 6455 over memory. The parser is two steps: collect a header, which is
 * checked before a byte of its payload is looked at, then move the payload to
 * where it belongs: a control frame into its own small array, all else behind
 * the message that has begun. What is held never exceeds the announced limit,
 * because the header of each part is checked against the room that is left.
 */
#include "lib/websocket.h"

#include "lib/base64.h"
#include "lib/sha1.h"
#include "lib/utf8.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

/* Section 5.2. */
#define FRAME_FIN      0x80u
#define FRAME_RSV      0x70u
#define FRAME_OPCODE   0x0fu
#define FRAME_MASKED   0x80u
#define FRAME_LEN      0x7fu
#define FRAME_LEN16    126u
#define FRAME_LEN64    127u
#define OPCODE_MORE    0u /* continuation */
#define OPCODE_CONTROL 0x08u

/* --- handshake --- */

int websocket_accept(char out[WEBSOCKET_ACCEPT_LEN + 1], const char *key)
{
	static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"; /* section 1.3 */
	char text[WEBSOCKET_KEY_LEN + sizeof(guid)];
	uint8_t bytes[WEBSOCKET_KEY_LEN], digest[SHA1_LEN];

	if (strnlen(key, WEBSOCKET_KEY_LEN + 1) != WEBSOCKET_KEY_LEN ||
	    base64_decode(bytes, key, WEBSOCKET_KEY_LEN) != WEBSOCKET_KEY_BYTES)
		return -EINVAL;
	memcpy(text, key, WEBSOCKET_KEY_LEN);
	memcpy(text + WEBSOCKET_KEY_LEN, guid, sizeof(guid) - 1);
	sha1(digest, text, sizeof(text) - 1);
	out[base64_encode(out, digest, sizeof(digest))] = '\0';
	return 0;
}

void websocket_key(char out[WEBSOCKET_KEY_LEN + 1], const uint8_t random[WEBSOCKET_KEY_BYTES])
{
	out[base64_encode(out, random, WEBSOCKET_KEY_BYTES)] = '\0';
}

bool websocket_has_token(const char *value, const char *token)
{
	static const char blank[] = " \t";
	size_t want = strlen(token);

	for (;;) {
		const char *entry = value + strspn(value, blank);
		size_t n = strcspn(entry, ",");

		value = entry + n;
		while (n && strchr(blank, entry[n - 1]))
			n--;
		if (n == want && strncasecmp(entry, token, n) == 0)
			return true;
		if (!*value++)
			return false;
	}
}

/* --- reading --- */

void websocket_parser_init(struct websocket_parser *p, enum websocket_role role, size_t max)
{
	*p = (struct websocket_parser){.role = role};
	buf_init(&p->message, max);
}

void websocket_parser_free(struct websocket_parser *p)
{
	buf_free(&p->message);
}

uint16_t websocket_error_code(int rc)
{
	switch (rc) {
	case -EPROTO:
		return WEBSOCKET_PROTOCOL_ERROR;
	case -EILSEQ:
		return WEBSOCKET_BAD_DATA;
	case -EMSGSIZE:
		return WEBSOCKET_TOO_BIG;
	default:
		return WEBSOCKET_INTERNAL;
	}
}

/* The length of the header that begins with these n bytes, as far as they tell. */
static size_t header_want(const uint8_t *h, size_t n)
{
	size_t want = 2;

	if (n < 2)
		return want;
	if ((h[1] & FRAME_LEN) == FRAME_LEN16)
		want += 2;
	else if ((h[1] & FRAME_LEN) == FRAME_LEN64)
		want += 8;
	return h[1] & FRAME_MASKED ? want + WEBSOCKET_MASK_LEN : want;
}

static bool is_control(const struct websocket_parser *p)
{
	return p->opcode & OPCODE_CONTROL;
}

/* What the first two bytes may say, here and now. */
static int check_start(struct websocket_parser *p)
{
	uint8_t len = p->header[1] & FRAME_LEN;
	bool masked = p->header[1] & FRAME_MASKED;

	p->fin = p->header[0] & FRAME_FIN;
	p->opcode = p->header[0] & FRAME_OPCODE;
	if (p->header[0] & FRAME_RSV || masked != (p->role == WEBSOCKET_SERVER))
		return -EPROTO;
	switch (p->opcode) {
	case OPCODE_MORE:
		return p->started ? 0 : -EPROTO;
	case WEBSOCKET_TEXT:
	case WEBSOCKET_BINARY:
		if (p->started)
			return -EPROTO;
		p->type = (enum websocket_type)p->opcode;
		return 0;
	case WEBSOCKET_CLOSE:
	case WEBSOCKET_PING:
	case WEBSOCKET_PONG:
		return p->fin && len <= WEBSOCKET_CONTROL_MAX ? 0 : -EPROTO;
	default:
		return -EPROTO;
	}
}

/* The header is whole: length and mask. A length must have its shortest form. */
static int check_length(struct websocket_parser *p)
{
	const uint8_t *h = p->header + 2;
	uint64_t len = p->header[1] & FRAME_LEN;
	unsigned bytes = len == FRAME_LEN16 ? 2 : len == FRAME_LEN64 ? 8 : 0;

	if (bytes) {
		len = 0;
		for (unsigned i = 0; i < bytes; i++)
			len = len << 8 | *h++;
		if (len < (bytes == 2 ? FRAME_LEN16 : UINT64_C(65536)) || len >> 63)
			return -EPROTO;
	}
	if (p->header[1] & FRAME_MASKED)
		memcpy(p->mask, h, WEBSOCKET_MASK_LEN);
	if (!is_control(p) && len > buf_room(&p->message))
		return -EMSGSIZE;
	p->left = len;
	p->at = 0;
	p->in_payload = true;
	if (is_control(p))
		p->control_len = 0;
	else
		p->started = true;
	return 0;
}

/* Takes bytes for the header; the number taken or -errno. */
static ssize_t parse_header(struct websocket_parser *p, const uint8_t *data, size_t len)
{
	size_t n = 0;

	while (n < len) {
		int rc;

		p->header[p->header_len++] = data[n++];
		if (p->header_len == 2) {
			rc = check_start(p);
			if (rc < 0)
				return rc;
		}
		if (p->header_len < 2 || p->header_len < header_want(p->header, p->header_len))
			continue;
		rc = check_length(p);
		return rc < 0 ? rc : (ssize_t)n;
	}
	return (ssize_t)n;
}

/* Takes payload of the frame; the number of bytes or -errno. */
static ssize_t parse_payload(struct websocket_parser *p, const uint8_t *data, size_t len)
{
	size_t n = len < p->left ? len : (size_t)p->left;
	uint8_t *to;

	if (n == 0)
		return 0;
	to = is_control(p) ? p->control + p->control_len : buf_reserve(&p->message, n);
	if (!to)
		return -ENOMEM; /* there is room: the header was checked */
	memcpy(to, data, n);
	if (p->role == WEBSOCKET_SERVER)
		websocket_mask(to, n, p->mask, p->at);
	if (is_control(p))
		p->control_len += n;
	else
		buf_commit(&p->message, n);
	p->at += n;
	p->left -= n;
	return (ssize_t)n;
}

/* Codes that may stand in a close frame (sections 7.4.1 and 7.4.2, and IANA's list). */
static bool code_valid(uint16_t code)
{
	return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) ||
	       (code >= 3000 && code <= 4999);
}

static int finish_close(struct websocket_parser *p, struct websocket_message *m)
{
	p->closed = true;
	m->code = WEBSOCKET_NO_CODE;
	if (m->len == 0)
		return 0;
	if (m->len == 1)
		return -EPROTO;
	m->code = (uint16_t)(m->data[0] << 8 | m->data[1]);
	m->data += 2;
	m->len -= 2;
	if (!code_valid(m->code))
		return -EPROTO;
	return utf8_valid(m->data, m->len) ? 0 : -EILSEQ;
}

/* The frame is whole. Fills m when a message is, too. */
static int finish_frame(struct websocket_parser *p, struct websocket_message *m)
{
	static const uint8_t nothing[1];

	p->in_payload = false;
	p->header_len = 0;
	if (is_control(p)) {
		*m = (struct websocket_message){.type = (enum websocket_type)p->opcode,
						.data = p->control,
						.len = p->control_len};
		return m->type == WEBSOCKET_CLOSE ? finish_close(p, m) : 0;
	}
	if (!p->fin)
		return 0;
	p->started = false;
	p->given = true;
	*m = (struct websocket_message){.type = p->type,
					.data = buf_len(&p->message) ? buf_data(&p->message)
								     : nothing,
					.len = buf_len(&p->message)};
	return m->type != WEBSOCKET_TEXT || utf8_valid(m->data, m->len) ? 0 : -EILSEQ;
}

static ssize_t parse_some(struct websocket_parser *p, const uint8_t *data, size_t len,
			  struct websocket_message *m)
{
	size_t at = 0;

	while (at < len && !m->type && !p->closed) {
		ssize_t n = p->in_payload ? parse_payload(p, data + at, len - at)
					  : parse_header(p, data + at, len - at);
		int rc;

		if (n < 0)
			return n;
		at += (size_t)n;
		if (!p->in_payload || p->left)
			continue;
		rc = finish_frame(p, m);
		if (rc < 0)
			return rc;
	}
	return (ssize_t)at;
}

ssize_t websocket_parse(struct websocket_parser *p, const uint8_t *data, size_t len,
			struct websocket_message *m)
{
	ssize_t n;

	*m = (struct websocket_message){.type = WEBSOCKET_NONE};
	if (p->error)
		return p->error;
	if (p->closed)
		return (ssize_t)len;
	if (p->given) {
		buf_consume(&p->message, buf_len(&p->message));
		p->given = false;
	}
	n = parse_some(p, data, len, m);
	if (n < 0) {
		p->error = (int)n;
		*m = (struct websocket_message){.type = WEBSOCKET_NONE};
		buf_free(&p->message);
	}
	return n;
}

/* --- writing --- */

void websocket_mask(uint8_t *data, size_t len, const uint8_t mask[WEBSOCKET_MASK_LEN], size_t at)
{
	for (size_t i = 0; i < len; i++)
		data[i] ^= mask[(at + i) % WEBSOCKET_MASK_LEN];
}

/* Bytes of the extended length. */
static unsigned length_bytes(size_t len)
{
	return len < FRAME_LEN16 ? 0 : len < 65536 ? 2 : 8;
}

size_t websocket_frame_len(size_t len, bool masked)
{
	return 2 + length_bytes(len) + (masked ? WEBSOCKET_MASK_LEN : 0) + len;
}

int websocket_append(struct buf *out, enum websocket_type type, const void *data, size_t len,
		     const uint8_t *mask)
{
	unsigned bytes = length_bytes(len);
	size_t all = websocket_frame_len(len, mask != NULL);
	uint8_t *o;

	if (type & OPCODE_CONTROL && len > WEBSOCKET_CONTROL_MAX)
		return -EINVAL;
	if (len > buf_room(out) || all > buf_room(out))
		return -ENOBUFS;
	o = buf_reserve(out, all);
	if (!o)
		return -ENOMEM;
	*o++ = (uint8_t)(FRAME_FIN | type);
	*o++ = (uint8_t)((bytes == 0   ? len
			  : bytes == 2 ? FRAME_LEN16
				       : FRAME_LEN64) |
			 (mask ? FRAME_MASKED : 0));
	for (unsigned i = bytes; i > 0; i--)
		*o++ = (uint8_t)((uint64_t)len >> (8 * (i - 1)));
	if (mask) {
		memcpy(o, mask, WEBSOCKET_MASK_LEN);
		o += WEBSOCKET_MASK_LEN;
	}
	if (len)
		memcpy(o, data, len);
	if (mask)
		websocket_mask(o, len, mask, 0);
	buf_commit(out, all);
	return 0;
}

int websocket_append_close(struct buf *out, uint16_t code, const char *reason, const uint8_t *mask)
{
	size_t len = reason ? strlen(reason) : 0;
	uint8_t data[WEBSOCKET_CONTROL_MAX];

	if (code == WEBSOCKET_NO_CODE && len == 0)
		return websocket_append(out, WEBSOCKET_CLOSE, NULL, 0, mask);
	if (!code_valid(code) || len > WEBSOCKET_REASON_MAX)
		return -EINVAL;
	data[0] = (uint8_t)(code >> 8);
	data[1] = (uint8_t)code;
	if (len)
		memcpy(data + 2, reason, len);
	return websocket_append(out, WEBSOCKET_CLOSE, data, len + 2, mask);
}
