/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parsing of traceparent. Stateless.
 */
#include "daemon/trace.h"
#include "daemon/ids.h"

#include <stdbool.h>
#include <string.h>

/* n lower-case hex digits, not all zero, followed by `end`. */
static bool hex_field(const char *s, size_t n, char end)
{
	return strspn(s, "0123456789abcdef") == n && strspn(s, "0") != n && s[n] == end;
}

void trace_parse(const char *header, char trace_id[33], char parent_span[17])
{
	parent_span[0] = '\0';
	/* Other versions have the same beginning and may go on after the flags. */
	if (header && strlen(header) >= 55 && strncmp(header, "ff", 2) != 0 && header[2] == '-' &&
	    hex_field(header + 3, 32, '-') && hex_field(header + 36, 16, '-')) {
		memcpy(trace_id, header + 3, 32);
		trace_id[32] = '\0';
		memcpy(parent_span, header + 36, 16);
		parent_span[16] = '\0';
		return;
	}
	ids_random_hex(trace_id, 16);
}
