/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Base64. Stateless.
 */
#include "lib/base64.h"

#include <errno.h>

size_t base64_encode(char *out, const uint8_t *p, size_t len)
{
	static const char abc[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char *o = out;

	for (size_t i = 0; i < len; i += 3) {
		size_t left = len - i;
		uint32_t v = (uint32_t)p[i] << 16;

		if (left > 1)
			v |= (uint32_t)p[i + 1] << 8;
		if (left > 2)
			v |= p[i + 2];
		*o++ = abc[v >> 18];
		*o++ = abc[(v >> 12) & 63];
		*o++ = left > 1 ? abc[(v >> 6) & 63] : '=';
		*o++ = left > 2 ? abc[v & 63] : '=';
	}
	return (size_t)(o - out);
}

static int base64_value(char c)
{
	if (c >= 'A' && c <= 'Z')
		return c - 'A';
	if (c >= 'a' && c <= 'z')
		return c - 'a' + 26;
	if (c >= '0' && c <= '9')
		return c - '0' + 52;
	return c == '+' ? 62 : c == '/' ? 63 : -1;
}

ssize_t base64_decode(uint8_t *out, const char *p, size_t len)
{
	size_t pad = 0, n = 0;

	if (len % 4)
		return -EINVAL;
	while (pad < 2 && pad < len && p[len - 1 - pad] == '=')
		pad++;
	for (size_t i = 0; i < len; i += 4) {
		size_t have = i + 4 == len ? 4 - pad : 4;
		uint32_t v = 0;

		for (size_t j = 0; j < 4; j++) {
			int d = j < have ? base64_value(p[i + j]) : 0;

			if (d < 0)
				return -EINVAL;
			v = v << 6 | (uint32_t)d;
		}
		for (size_t j = 0; j + 1 < have; j++)
			out[n++] = (uint8_t)(v >> (16 - 8 * j));
	}
	return (ssize_t)n;
}
