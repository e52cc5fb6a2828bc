/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the operator's ceiling has of an allowlist, entry by entry. The ceiling is constant while
 * the daemon runs, so that what it never lets through can be said when it is asked for.
 */
#define _GNU_SOURCE
#include "daemon/egress/operator.h"
#include "lib/json_safe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

/* An entry as its author knows it. */
static void entry_text(const json_t *entry, char *out, size_t len)
{
	char *text;

	if (json_is_string(entry)) {
		snprintf(out, len, "\"%s\"", json_string_value(entry));
		return;
	}
	text = json_text(entry);
	snprintf(out, len, "%s", text ? text : "an entry");
	free(text);
}

static int check_entry(const struct egress_operator *o, json_t *entry, struct err *err)
{
	json_t *alone = json_pack("[O]", entry);
	struct egress_rules *rules = NULL;
	int rc = alone ? egress_rules_parse(&rules, alone, o->groups, err) : -ENOMEM;
	bool name = false;
	char text[300];

	if (rc == 0 && !egress_rules_meet(rules, o->ceiling_rules, &name)) {
		entry_text(entry, text, sizeof(text));
		rc = err_text(err, EINVAL,
			      "%s is beyond what the operator of this host allows anybody (its "
			      "ceiling%s)",
			      text, name ? ", which has other ports, methods or paths of it" : "");
	}
	egress_rules_free(rules);
	json_decref(alone);
	return rc;
}

int operator_check_ceiling(const struct egress_operator *o, const json_t *allow, struct err *err)
{
	size_t i;
	json_t *v;

	if (!o->ceiling_rules)
		return 0;
	json_array_foreach((json_t *)(uintptr_t)allow, i, v)
	{
		int rc = check_entry(o, v, err);

		if (rc < 0)
			return rc;
	}
	return 0;
}
