/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Route matching over a small table, linear. No state, any thread.
 */
#include "daemon/route.h"

#include <stdio.h>
#include <string.h>

/* Compares one path with one pattern and copies the variable segments, of which there are two at
 * most. */
static bool route_path_matches(const char *pattern, const char *path, struct route_match *m)
{
	char *out = m->id;

	m->id[0] = m->other[0] = '\0';
	while (*pattern) {
		size_t seg;

		if (*pattern != ':') {
			if (*pattern++ != *path++)
				return false;
			continue;
		}
		seg = strcspn(path, "/");
		if (seg == 0)
			return false;
		if (seg < ROUTE_ID_MAX) {
			memcpy(out, path, seg);
			out[seg] = '\0';
		}
		out = m->other;
		path += seg;
		pattern += strcspn(pattern, "/");
	}
	return *path == '\0';
}

static bool route_method_matches(const char *have, const char *asked)
{
	return strcmp(have, asked) == 0 || (strcmp(have, "GET") == 0 && strcmp(asked, "HEAD") == 0);
}

static void route_allow(struct route_match *m, const char *method)
{
	size_t n = strlen(m->allow);

	if (n + strlen(method) + sizeof(", , HEAD") > sizeof(m->allow))
		return;
	snprintf(m->allow + n, sizeof(m->allow) - n, "%s%s%s", n ? ", " : "", method,
		 strcmp(method, "GET") == 0 ? ", HEAD" : "");
}

enum route_result route_find(const struct route *table, size_t n, const char *method,
			     const char *path, struct route_match *m)
{
	*m = (struct route_match){0};
	for (size_t i = 0; i < n; i++) {
		struct route_match try;

		if (!route_path_matches(table[i].pattern, path, &try))
			continue;
		m->route = &table[i];
		memcpy(m->id, try.id, sizeof(m->id));
		memcpy(m->other, try.other, sizeof(m->other));
		if (route_method_matches(table[i].method, method))
			return ROUTE_OK;
		route_allow(m, table[i].method);
	}
	return m->route ? ROUTE_BAD_METHOD : ROUTE_NOT_FOUND;
}
