/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A jail that lacks one rule, so that a test can see who misses it. With
 * VMM_STILL_WITHOUT="process 17", or "vcpu", "leaf", "leaf-vcpu", that row of its table is not in
 * the filter of that kind.
 */
#include "vmm/jail/jail_rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool __real_jail_rule_holds(enum jail_kind kind, const struct jail_rule *r);
bool __wrap_jail_rule_holds(enum jail_kind kind, const struct jail_rule *r);
bool __wrap_jail_rule_holds(enum jail_kind kind, const struct jail_rule *r)
{
	static const char *const names[JAIL_KINDS] = {"process", "vcpu", "leaf", "leaf-vcpu"};
	const char *without = getenv("VMM_STILL_WITHOUT");
	char word[16];
	size_t i;

	if (without && sscanf(without, "%15s %zu", word, &i) == 2 &&
	    strcmp(word, names[kind]) == 0 && r == &jail_rules_of(kind)->rule[i])
		return false;
	return __real_jail_rule_holds(kind, r);
}
