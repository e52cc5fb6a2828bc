/* SPDX-License-Identifier: Apache-2.0 */
/*
 *   no-mounts PROGRAM ARGUMENT...
 *
 * Runs a program on a host where all namespaces can be made and nothing can be mounted in them:
 * what AppArmor's restriction of user namespaces leaves of them.
 */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	scmp_filter_ctx ctx = seccomp_init(SCMP_ACT_ALLOW);

	if (argc < 2 || !ctx ||
	    seccomp_rule_add(ctx, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(mount), 0) < 0 ||
	    seccomp_load(ctx) < 0)
		return 125;
	execvp(argv[1], argv + 1);
	perror(argv[1]);
	return 126;
}
