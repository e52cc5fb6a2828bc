/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A jail that lacks one rule, so that a test can see who misses it. With
 * VMM_STILL_WITHOUT="process 17", or "vcpu 3", that row of the table is passed over.
 */
#include "vmm/jail/jail_rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int __real_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n,
				  const struct scmp_arg_cmp *args);
int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n,
				  const struct scmp_arg_cmp *args);
int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int n,
				  const struct scmp_arg_cmp *args)
{
	const char *without = getenv("VMM_STILL_WITHOUT");
	char table[16];
	size_t i;

	if (without && sscanf(without, "%15s %zu", table, &i) == 2) {
		const struct jail_rules *r =
			strcmp(table, "vcpu") == 0 ? &jail_vcpu_rules : &jail_process_rules;

		if (i < r->n && args == r->rule[i].args)
			return 0;
	}
	return __real_seccomp_rule_add_array(ctx, action, nr, n, args);
}
