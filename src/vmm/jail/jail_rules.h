/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which system calls a VMM may make, and with which arguments: two tables, the
 * process's and, within it, that of a vCPU's thread. A call that no rule allows
 * kills the process. Constant data; jail.c makes filters of it.
 *
 * A filter sees numbers, not what pointers lead to. So it cannot tell which
 * descriptor a number stands for: that a VMM was handed few and can make none
 * but eventfds and epoll sets is the other half of each rule.
 *
 * Each rule has a test that the VMM dies without it, or a reason why there is
 * none (tests/vmm/test_jail_rules.py); so a rule that has become needless fails there.
 */
#pragma once

#include <seccomp.h>
#include <stddef.h>

#define JAIL_RULE_ARGS 3

struct jail_rule {
	int nr;          /* of the system call */
	uint32_t action; /* SCMP_ACT_ALLOW, or SCMP_ACT_ERRNO() where libc knows how to go on */
	unsigned int nargs;
	struct scmp_arg_cmp args[JAIL_RULE_ARGS]; /* all of them hold */
};

struct jail_rules {
	const struct jail_rule *rule;
	size_t n;
};

extern const struct jail_rules jail_process_rules;
extern const struct jail_rules jail_vcpu_rules;
