/* SPDX-License-Identifier: Apache-2.0 */
/* Text of group_limits.h. Stateless. */
#include "daemon/group_limits.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void group_limits_add(struct group_limits *l, const char *file, const char *value, ...)
{
	struct group_limit *one = &l->of[l->n++];
	va_list ap;

	one->file = file;
	va_start(ap, value);
	vsnprintf(one->value, sizeof(one->value), value, ap);
	va_end(ap);
}

uint64_t group_oom_kills(const char *events)
{
	static const char name[] = "oom_kill ";

	for (const char *line = events; line && *line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, name, sizeof(name) - 1) == 0)
			return strtoull(line + sizeof(name) - 1, NULL, 10);
	}
	return 0;
}
