/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Namespaces by one unshare(2), so that there is never a part of them; then the
 * root, as a new mount namespace begins with the whole tree of the old one.
 */
#define _GNU_SOURCE
#include "lib/spaces.h"

#include "lib/emptyroot.h"

#include <errno.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

int spaces_enter(void)
{
	const int spaces = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS;
	int first;

	if (unshare(CLONE_NEWUSER | spaces) == 0)
		return emptyroot_enter("podflare-vmm");
	first = errno;
	if (geteuid() != 0)
		return -first;
	return unshare(spaces) < 0 ? -errno : emptyroot_enter("podflare-vmm");
}

int spaces_try(void)
{
	pid_t pid = fork();
	int status;

	if (pid < 0)
		return -errno;
	if (pid == 0)
		_exit(-spaces_enter()); /* the errnos of unshare() are below 256 */
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
}
