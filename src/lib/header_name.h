/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names of HTTP headers that a server takes for the same: in any case of letters, and those that
 * make variables of headers (CGI, WSGI and what came of them) with "_" for "-". Thread: any. fork:
 * no state.
 */
#pragma once

#include <ctype.h>
#include <stdbool.h>

static inline bool header_same_variable(const char *a, const char *b)
{
	for (;; a++, b++) {
		char x = *a == '_' ? '-' : *a, y = *b == '_' ? '-' : *b;

		if (tolower((unsigned char)x) != tolower((unsigned char)y))
			return false;
		if (!x)
			return true;
	}
}
