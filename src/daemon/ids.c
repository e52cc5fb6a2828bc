/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making and checking ids. Stateless.
 */
#define _GNU_SOURCE
#include "daemon/ids.h"

#include <assert.h>
#include <stdint.h>
#include <string.h>
#include <sys/random.h>

void ids_random_hex(char *out, size_t bytes)
{
	static const char hex[] = "0123456789abcdef";
	uint8_t raw[32];

	assert(bytes <= sizeof(raw));
	/* Requests of up to 256 bytes are never cut short once the kernel is seeded. */
	while (getrandom(raw, bytes, 0) != (ssize_t)bytes)
		continue;
	for (size_t i = 0; i < bytes; i++) {
		*out++ = hex[raw[i] >> 4];
		*out++ = hex[raw[i] & 15];
	}
	*out = '\0';
}

void ids_make(char out[SANDBOX_ID_LEN + 1])
{
	memcpy(out, "sbx_", 4);
	ids_random_hex(out + 4, 16);
}

bool ids_valid(const char *id)
{
	return strncmp(id, "sbx_", 4) == 0 && strlen(id) == SANDBOX_ID_LEN &&
	       strspn(id + 4, "0123456789abcdef") == 32;
}

bool ids_name_valid(const char *id)
{
	size_t n = strlen(id);

	return n >= 1 && n <= IDS_NAME_MAX &&
	       strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == n;
}
