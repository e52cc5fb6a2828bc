/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranges. Stateless.
 */
#include "daemon/range.h"

#include <stddef.h>
#include <strings.h>

/* Digits at *p, and moves behind them; what is too large is the largest. False: none. */
static bool number(const char **p, int64_t *out)
{
	const char *start = *p;

	for (*out = 0; **p >= '0' && **p <= '9'; (*p)++)
		if (__builtin_mul_overflow(*out, 10, out) ||
		    __builtin_add_overflow(*out, **p - '0', out))
			*out = INT64_MAX;
	return *p > start;
}

struct range range_parse(const char *value)
{
	struct range r = {.last = INT64_MAX};
	const char *p = value;

	if (!p || strncasecmp(p, "bytes=", 6) != 0)
		return (struct range){0};
	p += 6;
	if (!number(&p, &r.first) || *p++ != '-')
		return (struct range){0};
	if (*p && (!number(&p, &r.last) || *p || r.last < r.first))
		return (struct range){0};
	r.given = true;
	return r;
}
