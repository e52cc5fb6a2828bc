/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A jail that lacks one rule, so that a test can see who misses it: that of the number in
 * EGRESS_WITHOUT. With EGRESS_RULES it only prints the rules: number, system call, and
 * what its arguments are compared with.
 */
#include "egress/jail_rules.h"

#include <stdio.h>
#include <stdlib.h>

bool __real_jail_rule_get(size_t i, struct jail_rule *out);
bool __wrap_jail_rule_get(size_t i, struct jail_rule *out);
bool __wrap_jail_rule_get(size_t i, struct jail_rule *out)
{
	const char *without = getenv("EGRESS_WITHOUT");

	return __real_jail_rule_get(i + (without && i >= strtoul(without, NULL, 10)), out);
}

static void __attribute__((constructor)) list_rules(void)
{
	struct jail_rule r;

	if (!getenv("EGRESS_RULES"))
		return;
	for (size_t i = 0; __real_jail_rule_get(i, &r); i++) {
		char *name = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, r.nr);

		printf("%zu-%s", i, name);
		free(name);
		/* Not the number of this process, which is another one each time. */
		for (unsigned int k = r.nr == SCMP_SYS(tgkill); k < r.nargs; k++)
			printf("-%llx", (unsigned long long)(r.args[k].op == SCMP_CMP_EQ
								     ? r.args[k].datum_a
								     : r.args[k].datum_b));
		putchar('\n');
	}
	exit(0);
}
