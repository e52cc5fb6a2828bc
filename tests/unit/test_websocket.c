/* SPDX-License-Identifier: Apache-2.0 */
/*
 * WebSocket: the examples of RFC 6455, messages in pieces of every size, and
 * each way in which a peer can break the rules; the SHA-1 beneath.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "lib/sha1.h"
#include "lib/websocket.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MAX 70000u

static const uint8_t mask[] = {0x37, 0xfa, 0x21, 0x3d}; /* of the examples in section 5.7 */

/* What a parser gave, as text: one word a message. */
static struct {
	struct websocket_parser p;
	char log[512];
	int rc;
} r;

static void begin(enum websocket_role role, size_t max)
{
	websocket_parser_init(&r.p, role, max);
	r.log[0] = '\0';
	r.rc = 0;
}

static void note(const struct websocket_message *m)
{
	size_t n = strlen(r.log);
	const char *kind = m->type == WEBSOCKET_TEXT     ? "text"
			   : m->type == WEBSOCKET_BINARY ? "bin"
			   : m->type == WEBSOCKET_CLOSE  ? "close"
			   : m->type == WEBSOCKET_PING   ? "ping"
							 : "pong";

	if (m->type == WEBSOCKET_CLOSE)
		snprintf(r.log + n, sizeof(r.log) - n, "%s%u:%.*s ", kind, m->code, (int)m->len,
			 (const char *)m->data);
	else if (m->len > 100)
		snprintf(r.log + n, sizeof(r.log) - n, "%s(%zu) ", kind, m->len);
	else
		snprintf(r.log + n, sizeof(r.log) - n, "%s:%.*s ", kind, (int)m->len,
			 (const char *)m->data);
}

static void feed(const void *data, size_t len, size_t piece)
{
	const uint8_t *at = data;

	while (len && r.rc == 0) {
		size_t n = len < piece ? len : piece;
		/* In memory of its own, so that a read beyond the piece is seen. */
		uint8_t *copy = test_malloc(n);
		struct websocket_message m;
		ssize_t took;

		memcpy(copy, at, n);
		took = websocket_parse(&r.p, copy, n, &m);
		if (took < 0) {
			assert_int_equal(m.type, WEBSOCKET_NONE);
			r.rc = (int)took;
		} else {
			assert_true((size_t)took <= n && (took > 0 || m.type));
			assert_true((size_t)took == n || m.type);
			if (m.type)
				note(&m);
			at += took;
			len -= (size_t)took;
		}
		test_free(copy);
	}
}

static void end(int rc, const char *log)
{
	struct websocket_message m;

	assert_string_equal(r.log, log);
	assert_int_equal(r.rc, rc);
	if (rc)
		assert_int_equal(websocket_parse(&r.p, (const uint8_t *)"x", 1, &m), rc);
	websocket_parser_free(&r.p);
}

/* A stream in pieces of each size. */
static void check(enum websocket_role role, const void *data, size_t len, int rc, const char *log)
{
	for (size_t piece = 1; piece <= len; piece++) {
		begin(role, MAX);
		feed(data, len, piece);
		end(rc, log);
	}
}

#define TO_CLIENT(bytes, rc, log) check(WEBSOCKET_CLIENT, bytes, sizeof(bytes) - 1, rc, log)
#define TO_SERVER(bytes, rc, log) check(WEBSOCKET_SERVER, bytes, sizeof(bytes) - 1, rc, log)

static void test_sha1(void **state)
{
	static const struct {
		const char *in, *hex;
	} pairs[] = {
		{"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"},
		{"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"},
		{"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
		 "84983e441c3bd26ebaae4aa1f95129e5e54670f1"},
		/* One byte below and at the length that needs a second block. */
		{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
		 "c1c8bbdc22796e28c0e15163d20899b65621d65a"},
		{"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
		 "c2db330f6083854c99d4b5bfb6e8f29f201be699"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(pairs); i++) {
		uint8_t digest[SHA1_LEN];
		char hex[2 * SHA1_LEN + 1];

		sha1(digest, pairs[i].in, strlen(pairs[i].in));
		for (size_t j = 0; j < SHA1_LEN; j++)
			snprintf(hex + 2 * j, 3, "%02x", digest[j]);
		assert_string_equal(hex, pairs[i].hex);
	}
}

static void test_handshake(void **state)
{
	static const char *const bad[] = {"",
					  "dGhlIHNhbXBsZSBub25jZQ=",
					  "dGhlIHNhbXBsZSBub25jZQ==x",
					  "dGhlIHNhbXBsZSBub25jZTEx",
					  "dGhlIHNhbXBsZSBub25jZTE=",
					  "dGhlIHNhbXBsZSBub25 ZQ=="};
	char out[WEBSOCKET_ACCEPT_LEN + 1], key[WEBSOCKET_KEY_LEN + 1];

	(void)state;
	assert_int_equal(websocket_accept(out, "dGhlIHNhbXBsZSBub25jZQ=="), 0);
	assert_string_equal(out, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
	websocket_key(key, (const uint8_t *)"the sample nonce");
	assert_string_equal(key, "dGhlIHNhbXBsZSBub25jZQ==");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(websocket_accept(out, bad[i]), -EINVAL);
}

static void test_tokens(void **state)
{
	(void)state;
	assert_true(websocket_has_token("Upgrade", "upgrade"));
	assert_true(websocket_has_token("keep-alive, \tUpgrade ,x", "upgrade"));
	assert_true(websocket_has_token(",,upgrade", "upgrade"));
	assert_false(websocket_has_token("", "upgrade"));
	assert_false(websocket_has_token(" , ", "upgrade"));
	assert_false(websocket_has_token("upgrade x, upgrades, up grade, upgrad", "upgrade"));
}

static void test_examples(void **state)
{
	(void)state;
	TO_CLIENT("\x81\x05Hello", 0, "text:Hello ");
	TO_SERVER("\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", 0, "text:Hello ");
	TO_CLIENT("\x01\x03Hel\x80\x02lo", 0, "text:Hello ");
	TO_CLIENT("\x89\x05Hello", 0, "ping:Hello ");
	TO_SERVER("\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", 0, "pong:Hello ");
	TO_CLIENT("\x82\x00\x81\x00\x89\x00\x8a\x00", 0, "bin: text: ping: pong: ");
}

static void test_parts(void **state)
{
	(void)state;
	/* Control frames between parts; empty parts; a character in two parts; the next message. */
	TO_CLIENT("\x01\x02"
		  "a\xc3\x89\x01p\x00\x00\x8a\x00\x80\x02\xbc!\x82\x01z",
		  0, "ping:p pong: text:a\xc3\xbc! bin:z ");
	TO_CLIENT("\x02\x00\x80\x00\x82\x01x", 0, "bin: bin:x ");
	TO_CLIENT("\x80\x01x", -EPROTO, "");
	TO_CLIENT("\x00\x01x", -EPROTO, "");
	TO_CLIENT("\x82\x01x\x80\x01y", -EPROTO, "bin:x ");
	TO_CLIENT("\x02\x01x\x82\x01y", -EPROTO, "");
	TO_CLIENT("\x02\x01x\x01\x01y", -EPROTO, "");
}

static void test_broken_frames(void **state)
{
	char start[3] = "";

	(void)state;
	/* Reserved bits and opcodes. */
	for (unsigned b = 0; b < 256; b++) {
		unsigned opcode = b & 15, known = 1u << 1 | 1u << 2 | 1u << 8 | 1u << 9 | 1u << 10;
		bool good = !(b & 0x70) && known >> opcode & 1 && (opcode < 8 || b & 0x80);

		start[0] = (char)b;
		begin(WEBSOCKET_CLIENT, MAX);
		feed(start, 2, 2);
		assert_int_equal(r.rc, good ? 0 : -EPROTO);
		websocket_parser_free(&r.p);
	}
	/* Masked when it must not be, and not when it must. */
	TO_CLIENT("\x81\x85", -EPROTO, "");
	TO_SERVER("\x81\x05", -EPROTO, "");
	/* A control frame in parts, or too long. */
	TO_CLIENT("\x09\x01x", -EPROTO, "");
	TO_CLIENT("\x89\x7e\x00\x7e", -EPROTO, "");
	/* A length that is not in its shortest form, or negative. */
	TO_CLIENT("\x82\x7e\x00\x7d", -EPROTO, "");
	TO_CLIENT("\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff", -EPROTO, "");
	TO_CLIENT("\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00", -EPROTO, "");
	TO_CLIENT("\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", -EPROTO, "");
	assert_int_equal(websocket_error_code(-EPROTO), WEBSOCKET_PROTOCOL_ERROR);
}

static void test_limit(void **state)
{
	(void)state;
	/* Refused with the header; nothing was allocated for it. */
	TO_CLIENT("\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", -EMSGSIZE, "");
	assert_int_equal(websocket_error_code(-EMSGSIZE), WEBSOCKET_TOO_BIG);
	begin(WEBSOCKET_CLIENT, 4);
	feed("\x82\x04wxyz\x82\x04WXYZ\x89\x06longer", 20, 20);
	feed("\x02\x03"
	     "abc\x80\x01"
	     "d",
	     8, 8);
	feed("\x82\x05", 2, 2);
	end(-EMSGSIZE, "bin:wxyz bin:WXYZ ping:longer bin:abcd ");
	/* The parts count together. */
	begin(WEBSOCKET_CLIENT, 4);
	feed("\x02\x03"
	     "abc\x80\x02",
	     7, 1);
	end(-EMSGSIZE, "");
	/* What is announced is not allocated before it comes. */
	begin(WEBSOCKET_CLIENT, MAX);
	feed("\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00x", 11, 11);
	assert_true(r.p.message.cap < 4096);
	end(0, "");
	/* None at all: only empty ones. */
	begin(WEBSOCKET_CLIENT, 0);
	feed("\x82\x00\x82\x01", 4, 4);
	end(-EMSGSIZE, "bin: ");
}

static void test_text_must_be_utf8(void **state)
{
	(void)state;
	TO_CLIENT("\x81\x04\xf0\x9f\x98\x80", 0, "text:\xf0\x9f\x98\x80 ");
	TO_CLIENT("\x81\x02\xc3\x28", -EILSEQ, "");
	TO_CLIENT("\x81\x01\xc3", -EILSEQ, "");
	TO_CLIENT("\x82\x02\xc3\x28", 0, "bin:\xc3\x28 ");
	assert_int_equal(websocket_error_code(-EILSEQ), WEBSOCKET_BAD_DATA);
	assert_int_equal(websocket_error_code(-ENOMEM), WEBSOCKET_INTERNAL);
}

static void test_close(void **state)
{
	static const uint16_t good[] = {1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999};
	static const uint16_t bad[] = {0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535};

	(void)state;
	TO_CLIENT("\x88\x00", 0, "close1005: ");
	TO_CLIENT("\x88\x05\x03\xe8"
		  "bye",
		  0, "close1000:bye ");
	/* In the middle of a message; all behind it is dropped, even nonsense. */
	TO_CLIENT("\x02\x01x\x88\x02\x03\xe9\xff\xff\xff\x82\x01y", 0, "close1001: ");
	TO_CLIENT("\x88\x01\x03", -EPROTO, "");
	TO_CLIENT("\x88\x03\x03\xe8\xff", -EILSEQ, "");
	for (size_t i = 0; i < ARRAY_SIZE(good) + ARRAY_SIZE(bad); i++) {
		bool ok = i < ARRAY_SIZE(good);
		uint16_t code = ok ? good[i] : bad[i - ARRAY_SIZE(good)];
		uint8_t frame[] = {0x88, 2, (uint8_t)(code >> 8), (uint8_t)code};
		struct buf out;

		begin(WEBSOCKET_CLIENT, MAX);
		feed(frame, sizeof(frame), sizeof(frame));
		assert_int_equal(r.rc, ok ? 0 : -EPROTO);
		websocket_parser_free(&r.p);
		if (code == WEBSOCKET_NO_CODE)
			continue;
		buf_init(&out, 100);
		assert_int_equal(websocket_append_close(&out, code, NULL, NULL), ok ? 0 : -EINVAL);
		assert_int_equal(buf_len(&out), ok ? 4 : 0);
		buf_free(&out);
	}
}

static void test_append(void **state)
{
	struct buf out;

	(void)state;
	buf_init(&out, 1000);
	assert_int_equal(websocket_append(&out, WEBSOCKET_TEXT, "Hello", 5, NULL), 0);
	assert_int_equal(websocket_append(&out, WEBSOCKET_TEXT, "Hello", 5, mask), 0);
	assert_int_equal(websocket_append(&out, WEBSOCKET_PONG, NULL, 0, mask), 0);
	assert_int_equal(websocket_append_close(&out, WEBSOCKET_NO_CODE, NULL, NULL), 0);
	assert_int_equal(websocket_append_close(&out, WEBSOCKET_NORMAL, "bye", NULL), 0);
	assert_int_equal(buf_len(&out), 7 + 11 + 6 + 2 + 7);
	assert_memory_equal(buf_data(&out),
			    "\x81\x05Hello"
			    "\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"
			    "\x8a\x80\x37\xfa\x21\x3d"
			    "\x88\x00"
			    "\x88\x05\x03\xe8"
			    "bye",
			    33);
	buf_free(&out);
}

/* All or nothing: at each bound, and what may not be sent. */
static void test_append_refuses(void **state)
{
	char reason[WEBSOCKET_REASON_MAX + 2];
	struct buf out;

	(void)state;
	for (size_t max = 0; max < 12; max++) {
		buf_init(&out, max);
		assert_int_equal(websocket_append(&out, WEBSOCKET_TEXT, "Hello", 5, mask),
				 max < 11 ? -ENOBUFS : 0);
		assert_int_equal(buf_len(&out), max < 11 ? 0 : 11);
		buf_free(&out);
	}
	buf_init(&out, 1000);
	memset(reason, 'x', sizeof(reason));
	reason[sizeof(reason) - 1] = '\0';
	assert_int_equal(websocket_append_close(&out, WEBSOCKET_NORMAL, reason, NULL), -EINVAL);
	assert_int_equal(websocket_append_close(&out, WEBSOCKET_NORMAL, reason + 1, NULL), 0);
	assert_int_equal(buf_len(&out), 2 + WEBSOCKET_CONTROL_MAX);
	assert_int_equal(websocket_append_close(&out, WEBSOCKET_NO_CODE, "why", NULL), -EINVAL);
	assert_int_equal(websocket_append(&out, WEBSOCKET_PING, reason, 126, NULL), -EINVAL);
	assert_int_equal(websocket_append(&out, WEBSOCKET_TEXT, reason, SIZE_MAX, NULL), -ENOBUFS);
	assert_int_equal(buf_len(&out), 2 + WEBSOCKET_CONTROL_MAX);
	buf_free(&out);
}

/* What is built is read again, around each change of the form of the length. */
static void test_round_trip(void **state)
{
	static const size_t lens[] = {0, 1, 125, 126, 127, 4097, 65535, 65536, MAX};
	uint8_t *data = test_malloc(MAX);

	(void)state;
	for (size_t i = 0; i < MAX; i++)
		data[i] = (uint8_t)(i * 7 ^ i >> 8);
	for (size_t i = 0; i < ARRAY_SIZE(lens); i++) {
		for (int masked = 0; masked <= 1; masked++) {
			struct websocket_message m;
			size_t at = 0, piece = 1;
			struct buf out;

			buf_init(&out, MAX + WEBSOCKET_HEADER_MAX);
			assert_int_equal(websocket_append(&out, WEBSOCKET_BINARY, data, lens[i],
							  masked ? mask : NULL),
					 0);
			assert_int_equal(buf_len(&out), websocket_frame_len(lens[i], masked));
			begin(masked ? WEBSOCKET_SERVER : WEBSOCKET_CLIENT, MAX);
			do {
				size_t left = buf_len(&out) - at;
				ssize_t n = websocket_parse(&r.p, buf_data(&out) + at,
							    piece < left ? piece : left, &m);

				assert_true(n > 0);
				at += (size_t)n;
				piece = piece * 3 % 1021; /* one after the other, all sizes */
			} while (!m.type);
			assert_int_equal(at, buf_len(&out));
			assert_int_equal(m.type, WEBSOCKET_BINARY);
			assert_int_equal(m.len, lens[i]);
			assert_memory_equal(m.data, data, m.len);
			websocket_parser_free(&r.p);
			buf_free(&out);
		}
	}
	test_free(data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sha1),           cmocka_unit_test(test_handshake),
		cmocka_unit_test(test_tokens),         cmocka_unit_test(test_examples),
		cmocka_unit_test(test_parts),          cmocka_unit_test(test_broken_frames),
		cmocka_unit_test(test_limit),          cmocka_unit_test(test_text_must_be_utf8),
		cmocka_unit_test(test_close),          cmocka_unit_test(test_append),
		cmocka_unit_test(test_append_refuses), cmocka_unit_test(test_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
