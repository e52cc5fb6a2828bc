/* SPDX-License-Identifier: Apache-2.0 */
/* The filter that allows what the rules say (jail_rules.h). */
#include "egress/jail_filter.h"

#include "egress/jail_rules.h"

#include <errno.h>

int jail_filter(struct err *err)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_KILL_PROCESS);
	struct jail_rule r;
	int rc = ctx ? 0 : -ENOMEM;

	/* Of IA-32's and x32's calls, too: libseccomp would have them end the thread alone. */
	if (rc == 0)
		rc = seccomp_attr_set(ctx, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	for (size_t i = 0; rc == 0 && jail_rule_get(i, &r); i++)
		rc = seccomp_rule_add_array(ctx, SCMP_ACT_ALLOW, r.nr, r.nargs, r.args);
	if (rc == 0)
		rc = seccomp_load(ctx);
	seccomp_release(ctx);
	return rc < 0 ? err_set(err, -rc, "cannot install the seccomp filter") : 0;
}
