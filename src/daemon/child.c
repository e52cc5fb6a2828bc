/* SPDX-License-Identifier: Apache-2.0 */
/*
 * posix_spawn() of a program with a control socket. Stateless.
 */
#define _GNU_SOURCE
#include "daemon/child.h"
#include "lib/cleanup.h"
#include "lib/log.h"
#include "proto/control.h"
#include "proto/egress.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static_assert(CTL_FD == CHILD_CTL_FD && EGRESS_FD == CHILD_CTL_FD, "one place for all programs");

/*
 * What is started ends before us when the host is short of memory: it inherits what we are for the
 * moment. That may be taken back without any right, but not lowered below what a process with the
 * right has set. fd: of child_oom_open(); -1, or one that cannot be used: nothing is done.
 */
int child_oom_open(void)
{
	return open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
}

static int oom_read(int fd)
{
	char text[16];
	ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof(text) - 1, 0);

	if (n <= 0)
		return INT_MIN;
	text[n] = '\0';
	return atoi(text);
}

static bool oom_write(int fd, int value)
{
	char text[16];
	int n = snprintf(text, sizeof(text), "%d", value);

	return pwrite(fd, text, (size_t)n, 0) == n;
}

static int child_spawn_first_to_go(int fd, pid_t *pid, const char *program,
				   const posix_spawn_file_actions_t *fa,
				   const posix_spawnattr_t *attr, char *const *argv,
				   char *const *envp)
{
	int old = oom_read(fd), rc;
	bool raised = old != INT_MIN && old < CHILD_OOM_MAX &&
		      oom_write(fd, old + CHILD_OOM_ADJ < CHILD_OOM_MAX ? old + CHILD_OOM_ADJ
									: CHILD_OOM_MAX);

	rc = posix_spawn(pid, program, fa, attr, argv, envp);
	if (raised && !oom_write(fd, old))
		log_warn("the daemon's oom_score_adj cannot be set back to %d", old);
	return rc;
}

int child_spawn(pid_t *pid, const char *program, const char *name, const char *arg,
		const char *option, int peer, const struct child_env *env)
{
	char *const argv[] = {(char *)(uintptr_t)name, (char *)(uintptr_t)arg,
			      (char *)(uintptr_t)option, NULL};
	char *const envp[] = {NULL};
	posix_spawn_file_actions_t fa;
	posix_spawnattr_t attr;
	sigset_t none, all;
	int rc;

	sigemptyset(&none);
	sigfillset(&all);
	sigdelset(&all, SIGUSR1);
	posix_spawn_file_actions_init(&fa);
	posix_spawnattr_init(&attr);
	rc = posix_spawn_file_actions_adddup2(&fa, peer, CHILD_CTL_FD);
	if (rc == 0)
		rc = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDWR, 0);
	if (rc == 0)
		rc = posix_spawn_file_actions_addopen(&fa, 1, "/dev/null", O_RDWR, 0);
	if (rc == 0)
		rc = posix_spawn_file_actions_adddup2(&fa, env->stderr_fd < 0 ? 1 : env->stderr_fd,
						      2);
	if (rc == 0)
		rc = posix_spawn_file_actions_addclosefrom_np(&fa, CHILD_CTL_FD + 1);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	posix_spawnattr_setpgroup(&attr, 0);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
						POSIX_SPAWN_SETPGROUP);
	if (rc == 0)
		rc = child_spawn_first_to_go(env->oom_fd, pid, program, &fa, &attr, argv, envp);
	posix_spawnattr_destroy(&attr);
	posix_spawn_file_actions_destroy(&fa);
	return -rc;
}

void child_abandon(pid_t pid)
{
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		continue;
}
