/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UTF-8 by the table of well-formed sequences (Unicode, table 3-7): the range
 * of the second byte depends on the first, which keeps out overlong forms,
 * surrogates and values above U+10FFFF. No state, any thread.
 */
#include "lib/utf8.h"

#include <string.h>

/* Length by lead byte, and the range of the byte that follows it. */
static int utf8_lead(uint8_t c, uint8_t *lo, uint8_t *hi)
{
	*lo = 0x80;
	*hi = 0xbf;
	if (c < 0x80)
		return 1;
	if (c >= 0xc2 && c <= 0xdf)
		return 2;
	if (c >= 0xe0 && c <= 0xef) {
		if (c == 0xe0)
			*lo = 0xa0;
		else if (c == 0xed)
			*hi = 0x9f;
		return 3;
	}
	if (c >= 0xf0 && c <= 0xf4) {
		if (c == 0xf0)
			*lo = 0x90;
		else if (c == 0xf4)
			*hi = 0x8f;
		return 4;
	}
	return 0;
}

int utf8_step(const uint8_t *p, size_t len)
{
	uint8_t lo, hi;
	int n = utf8_lead(p[0], &lo, &hi);

	if (n == 0)
		return -1;
	for (int i = 1; i < n; i++) {
		if ((size_t)i == len)
			return 0;
		if (p[i] < lo || p[i] > hi)
			return -i;
		lo = 0x80;
		hi = 0xbf;
	}
	return n;
}

/* Bytes at the start that are plain ASCII, eight at a time. */
static size_t ascii_run(const uint8_t *p, size_t len)
{
	size_t i = 0;

	for (; len - i >= 8; i += 8) {
		uint64_t v;

		memcpy(&v, p + i, sizeof(v));
		if (v & 0x8080808080808080ull)
			break;
	}
	while (i < len && p[i] < 0x80)
		i++;
	return i;
}

size_t utf8_prefix(const uint8_t *p, size_t len, bool *bad)
{
	size_t i = 0;

	*bad = false;
	while (i < len) {
		int n;

		i += ascii_run(p + i, len - i);
		if (i == len)
			break;
		n = utf8_step(p + i, len - i);
		if (n <= 0) {
			*bad = n < 0;
			break;
		}
		i += (size_t)n;
	}
	return i;
}

bool utf8_valid(const uint8_t *p, size_t len)
{
	bool bad;

	return utf8_prefix(p, len, &bad) == len;
}

static char *escape_control(char *o, uint8_t c)
{
	static const char hex[] = "0123456789abcdef";
	static const char names[] = "btn\0fr"; /* \b \t \n . \f \r from 8 on */

	*o++ = '\\';
	if (c >= 8 && c <= 13 && names[c - 8]) {
		*o++ = names[c - 8];
		return o;
	}
	memcpy(o, "u00", 3);
	o[3] = hex[c >> 4];
	o[4] = hex[c & 15];
	return o + 5;
}

size_t json_escape(char *out, const uint8_t *p, size_t len)
{
	char *o = out;

	for (size_t i = 0; i < len;) {
		uint8_t c = p[i];
		int n;

		if (c == '"' || c == '\\') {
			*o++ = '\\';
			*o++ = (char)c;
			i++;
		} else if (c < 0x20) {
			o = escape_control(o, c);
			i++;
		} else if (c < 0x80) {
			*o++ = (char)c;
			i++;
		} else if ((n = utf8_step(p + i, len - i)) > 0) {
			memcpy(o, p + i, (size_t)n);
			o += n;
			i += (size_t)n;
		} else {
			memcpy(o, "\xef\xbf\xbd", 3);
			o += 3;
			i += n ? (size_t)-n : len - i;
		}
	}
	return (size_t)(o - out);
}
