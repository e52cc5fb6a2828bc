/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether two lists have anything in common. Entry by entry: two of them have when they do in
 * names, ports, methods and paths, each by itself. (That a path may have two meanings, and that a
 * tunnel has none, can only make less of what they share.)
 *
 * Any thread; rules are constant. fork: plain memory.
 */
#include "egress/rules_impl.h"

#include <string.h>

static bool names_meet(const struct rules_entry *a, const struct rules_entry *b)
{
	if (a->wildcard && b->wildcard)
		return strcmp(a->host, b->host) == 0 || rules_entry_has_name(a, b->host) ||
		       rules_entry_has_name(b, a->host);
	return a->wildcard ? rules_entry_has_name(a, b->host) : rules_entry_has_name(b, a->host);
}

static bool ports_meet(const struct rules_entry *a, const struct rules_entry *b)
{
	for (size_t i = 0; i < a->n_ports; i++)
		for (size_t k = 0; k < b->n_ports; k++)
			if (a->ports[i] == b->ports[k])
				return true;
	return false;
}

static bool methods_meet(const struct rules_words *a, const struct rules_words *b)
{
	for (size_t i = 0; i < a->n; i++)
		for (size_t k = 0; k < b->n; k++)
			if (strcmp(a->v[i], b->v[k]) == 0)
				return true;
	return a->n == 0 || b->n == 0;
}

/* Two prefixes of one path: the shorter one is a prefix of the longer one. */
static bool paths_meet(const struct rules_words *a, const struct rules_words *b)
{
	for (size_t i = 0; i < a->n; i++)
		for (size_t k = 0; k < b->n; k++)
			if (rules_path_under(a->v[i], b->v[k]) ||
			    rules_path_under(b->v[k], a->v[i]))
				return true;
	return a->n == 0 || b->n == 0;
}

bool egress_rules_meet(const struct egress_rules *a, const struct egress_rules *b, bool *name)
{
	*name = false;
	for (size_t i = 0; i < a->n; i++)
		for (size_t k = 0; k < b->n; k++) {
			const struct rules_entry *x = &a->v[i], *y = &b->v[k];

			if (!names_meet(x, y))
				continue;
			*name = true;
			if (ports_meet(x, y) && methods_meet(&x->methods, &y->methods) &&
			    paths_meet(&x->paths, &y->paths))
				return true;
		}
	return false;
}
