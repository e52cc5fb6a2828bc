/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Namespaces by one unshare(2) each, so that there is never a part of them.
 */
#define _GNU_SOURCE
#include "lib/spaces.h"

#include <errno.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

int spaces_enter(void)
{
	const int spaces = CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNS;
	int first;

	if (unshare(CLONE_NEWUSER | spaces) == 0)
		return 0;
	first = errno;
	if (geteuid() != 0)
		return -first;
	return unshare(spaces) < 0 ? -errno : 0;
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
