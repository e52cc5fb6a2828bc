/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-1 over one or two blocks, which is all that the handshake needs: the
 * input is padded in one buffer and hashed at once. No state.
 */
#include "lib/sha1.h"

#include <assert.h>
#include <string.h>

#define SHA1_BLOCK 64u

static uint32_t rotate(uint32_t v, unsigned n)
{
	return v << n | v >> (32 - n);
}

static uint32_t load(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void store(uint8_t *p, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* RFC 3174, section 6.1: one block. */
static void sha1_block(uint32_t h[5], const uint8_t *p)
{
	uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];

	for (unsigned t = 0; t < 16; t++)
		w[t] = load(p + 4 * t);
	for (unsigned t = 16; t < 80; t++)
		w[t] = rotate(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
	for (unsigned t = 0; t < 80; t++) {
		uint32_t f, k, next;

		if (t < 20) {
			f = (b & c) | (~b & d);
			k = 0x5a827999;
		} else if (t < 40) {
			f = b ^ c ^ d;
			k = 0x6ed9eba1;
		} else if (t < 60) {
			f = (b & c) | (b & d) | (c & d);
			k = 0x8f1bbcdc;
		} else {
			f = b ^ c ^ d;
			k = 0xca62c1d6;
		}
		next = rotate(a, 5) + f + e + w[t] + k;
		e = d;
		d = c;
		c = rotate(b, 30);
		b = a;
		a = next;
	}
	h[0] += a;
	h[1] += b;
	h[2] += c;
	h[3] += d;
	h[4] += e;
}

void sha1(uint8_t out[SHA1_LEN], const void *p, size_t len)
{
	uint32_t h[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
	uint8_t in[2 * SHA1_BLOCK] = {0};
	size_t size;

	assert(len <= SHA1_INPUT_MAX);
	if (len)
		memcpy(in, p, len);
	/* Padding (section 4): a one, zeros, the length in bits. */
	in[len] = 0x80;
	size = len + 9 <= SHA1_BLOCK ? SHA1_BLOCK : 2 * SHA1_BLOCK;
	store(in + size - 4, (uint32_t)len * 8);
	for (size_t at = 0; at < size; at += SHA1_BLOCK)
		sha1_block(h, in + at);
	for (unsigned i = 0; i < 5; i++)
		store(out + 4 * i, h[i]);
}
