/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the calls that lie next to what the rules of the jail allow (jail_neighbours.h), behind the
 * filters of a kind of thread.
 *
 *   vmm-jail-neighbours WHERE       WHERE: process, vcpu, leaf, leaf-vcpu
 *
 * Prints how many calls were made, and how many of them for the rules; before that the ones that
 * did not kill. Exit status: 0: all did.
 */
#define _GNU_SOURCE
#include "../jail_neighbours.h"
#include "vmm/jail/jail.h"
#include "vmm/jail/jail_rules.h"

#include <string.h>

static struct jail jail;
static enum jail_kind kind;

static bool has_rule(enum jail_kind of, const struct call *call)
{
	const struct jail_rules *rules = jail_rules_of(of);

	for (size_t i = 0; i < rules->n; i++) {
		const struct jail_rule *r = &rules->rule[i];

		if (r->nr == call->nr && jail_rule_holds(of, r) &&
		    all_equal(r->args, r->nargs, call))
			return true;
	}
	return false;
}

/* Threads are in the process's, too. */
static bool is_allowed(const struct call *call)
{
	return has_rule(JAIL_PROCESS, call) && has_rule(kind, call);
}

static int enter(void)
{
	if (enter_process_filter() < 0)
		return -1;
	return kind != JAIL_PROCESS ? jail_enter_thread(&jail, kind) : 0;
}

/* Each kind may end in one of two ways. */
static void end(void)
{
	syscall(kind == JAIL_PROCESS || kind == JAIL_LEAF ? SYS_exit_group : SYS_exit, 0);
}

static int try_all(void)
{
	const struct jail_rules *rules = jail_rules_of(kind);
	struct neighbourhood n = {is_allowed, enter, end, 0, 0};
	size_t for_rules;

	if (!can_live(&n))
		return 1;
	for (size_t i = 0; i < rules->n; i++)
		if (jail_rule_holds(kind, &rules->rule[i]))
			try_rule(&n, rules->rule[i].nr, rules->rule[i].args, rules->rule[i].nargs);
	for_rules = n.made;
	try_numbers(&n);
	printf("%zu calls, %zu for rules\n", n.made, for_rules);
	return n.survived ? 1 : 0;
}

int main(int argc, char **argv)
{
	static const char *const kinds[JAIL_KINDS] = {"process", "vcpu", "leaf", "leaf-vcpu"};
	struct err err = {0};

	if (jail_enter(&jail, false, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg);
		return 255;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (kind = 0; argc == 2 && kind < JAIL_KINDS; kind++)
		if (strcmp(argv[1], kinds[kind]) == 0)
			return try_all();
	return 2;
}
