/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths of requests against prefixes of rules. A prefix is only a boundary when the proxy and the
 * server agree on what the path is, and servers differ: some decode twice, some take "\" for "/",
 * some drop ";parameters" before they resolve "..". So nothing is resolved here; a path with
 * anything of the kind is not plain, and under no prefix.
 *
 * Stateless; any thread. fork: no state.
 */
#include "egress/rules_impl.h"

#include <string.h>

static int hex_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* One byte of the path at *p, decoded, and past it; 0 for what is not plain. "/" means a slash. */
static unsigned char next_byte(const char **p)
{
	unsigned char c = (unsigned char)*(*p)++;
	int high, low;

	if (c != '%')
		return c > 0x20 && c < 0x7f && !strchr("\\?#", c) ? c : 0;
	high = hex_value((*p)[0]);
	low = high < 0 ? -1 : hex_value((*p)[1]);
	if (low < 0)
		return 0;
	*p += 2;
	c = (unsigned char)(high << 4 | low);
	/* 0xc0 and 0xc1 are in no UTF-8, but begin the overlong "/" and "." of lax decoders. */
	return c >= 0x20 && c != 0x7f && c != 0xc0 && c != 0xc1 && !strchr("/\\%", c) ? c : 0;
}

bool rules_path_plain(const char *path)
{
	size_t dots = 0, others = 0; /* of the segment, parameters left out */
	bool parameters = false;

	if (*path++ != '/')
		return false;
	while (*path) {
		unsigned char c = next_byte(&path);

		if (c == 0)
			return false;
		if (c != '/') {
			parameters |= c == ';';
			dots += !parameters && c == '.';
			others += !parameters && c != '.';
			continue;
		}
		if (others == 0 && dots <= 2) /* "//", "/./", "/../" */
			return false;
		dots = others = 0;
		parameters = false;
	}
	return others > 0 || dots > 2 || (dots == 0 && !parameters);
}

bool rules_path_under(const char *path, const char *prefix)
{
	size_t n = strlen(prefix);

	if (strncmp(path, prefix, n) != 0)
		return false;
	return prefix[n - 1] == '/' || path[n] == '/' || path[n] == 0;
}
