/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which characters are plain. No state.
 */
#include "lib/plain.h"
#include "lib/utf8.h"

#include <string.h>

static uint32_t code_of(const uint8_t *p, int n)
{
	uint32_t c = n == 1 ? p[0] : p[0] & (0xffu >> (n + 1));

	for (int i = 1; i < n; i++)
		c = c << 6 | (p[i] & 0x3f);
	return c;
}

static bool is_plain(uint32_t c)
{
	if (c < 0x20 || (c >= 0x7f && c <= 0x9f))
		return false;
	return c != 0x61c && c != 0x200e && c != 0x200f && !(c >= 0x2028 && c <= 0x202e) &&
	       !(c >= 0x2066 && c <= 0x2069);
}

size_t plain_step(const uint8_t *p, size_t len, bool *plain)
{
	int n = utf8_step(p, len);

	*plain = n > 0 && is_plain(code_of(p, n));
	if (n > 0)
		return (size_t)n;
	return n < 0 ? (size_t)-n : len;
}

void plain_text(char *s, char instead, const char *keep)
{
	size_t len = strlen(s);
	char *out = s;

	for (const char *p = s; len;) {
		bool plain;
		size_t n = plain_step((const uint8_t *)p, len, &plain);

		if (plain || (n == 1 && strchr(keep, *p))) {
			memmove(out, p, n);
			out += n;
		} else {
			*out++ = instead;
		}
		p += n;
		len -= n;
	}
	*out = '\0';
}
