/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes the calls that lie next to what the rules of the proxy's jail allow (jail_neighbours.h).
 *
 *   egress-jail-neighbours
 *
 * Prints how many calls were made, and how many of them for the rules; before that the ones that
 * did not kill. Exit status: 0: all did.
 */
#define _GNU_SOURCE
#include "../jail_neighbours.h"
#include "egress/jail_filter.h"
#include "egress/jail_rules.h"

#include <sys/prctl.h>

static bool is_allowed(const struct call *call)
{
	struct jail_rule r;

	for (size_t i = 0; jail_rule_get(i, &r); i++)
		if (r.nr == call->nr && all_equal(r.args, r.nargs, call))
			return true;
	return false;
}

static void end(void)
{
	syscall(SYS_exit_group, 0);
}

int main(void)
{
	struct neighbourhood n = {is_allowed, enter_process_filter, end, 0, 0};
	struct err err = {0};
	struct jail_rule r;
	size_t for_rules;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || jail_filter(&err) < 0)
		return 255;
	if (!can_live(&n))
		return 1;
	for (size_t i = 0; jail_rule_get(i, &r); i++)
		try_rule(&n, r.nr, r.args, r.nargs);
	for_rules = n.made;
	try_numbers(&n);
	printf("%zu calls, %zu for rules\n", n.made, for_rules);
	return n.survived ? 1 : 0;
}
