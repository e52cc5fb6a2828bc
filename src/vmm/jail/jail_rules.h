/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which system calls a VMM may make, and with which arguments: two tables, the
 * process's and, within it, that of a vCPU's thread. A call that no rule allows
 * kills the process. Constant data; jail.c makes filters of it.
 *
 * Each rule says when it is needed. A leaf, which is never forked, gives up for good all but
 * those that are needed as long as the guest runs: the same tables, read more strictly.
 *
 * A filter sees numbers, not what pointers lead to. So it cannot tell which
 * descriptor a number stands for: that a VMM was handed few and can make none
 * but eventfds and epoll sets is the other half of each rule.
 *
 * Each rule has a test that the VMM dies without it, or a reason why there is
 * none (tests/vmm/test_jail_rules.py); so a rule that has become needless fails there.
 */
#pragma once

#include "vmm/jail/jail.h"

#include <seccomp.h>
#include <stdbool.h>
#include <stddef.h>

#define JAIL_RULE_ARGS 3

enum jail_phase {
	/* until the guest runs, and again to pause, save and fork: with its threads as they start
	 */
	JAIL_MAKE,
	/* of the process's table, which vCPU threads are under as well: by these alone, once the
	 * guest runs */
	JAIL_THREAD,
	/* as long as the guest runs; of the process's table: by the loop's thread */
	JAIL_RUN,
};

struct jail_rule {
	enum jail_phase phase;
	int nr;          /* of the system call */
	uint32_t action; /* SCMP_ACT_ALLOW, or SCMP_ACT_ERRNO() where libc knows how to go on */
	unsigned int nargs;
	struct scmp_arg_cmp args[JAIL_RULE_ARGS]; /* all of them hold */
};

struct jail_rules {
	const struct jail_rule *rule;
	size_t n;
};

/* The table that a filter of this kind is made from. */
const struct jail_rules *jail_rules_of(enum jail_kind kind);

/* Whether a rule of that table is in it. */
bool jail_rule_holds(enum jail_kind kind, const struct jail_rule *r);
