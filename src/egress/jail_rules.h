/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which system calls a proxy may make, and with which arguments. A call that no rule allows kills
 * the process, so a guest that found a way into it has nothing to try. Constant data;
 * jail_filter.c makes the filter of it.
 *
 * A filter sees numbers, not what pointers lead to, nor which descriptor a number stands for.
 *
 * Each rule has a test that the proxy dies without it, or a reason why there is none
 * (tests/egress/test_jail_rules.py); so a rule that is needless fails there.
 */
#pragma once

#include <seccomp.h>
#include <stdbool.h>
#include <stddef.h>

#define JAIL_RULE_ARGS 3

struct jail_rule {
	int nr; /* of the system call */
	unsigned int nargs;
	struct scmp_arg_cmp args[JAIL_RULE_ARGS]; /* all of them hold */
};

/* Rule i, for the process that calls; false: there are no more. */
bool jail_rule_get(size_t i, struct jail_rule *out);
