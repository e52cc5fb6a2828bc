/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start of one process of the user: own session, own cgroup from its first
 * instruction on, the user's identity, an environment of its own, no
 * descriptor but the ones named here, killable when memory runs out.
 *
 * fork: the child runs on a copy of the agent and makes only system calls
 * until execve().
 */
#pragma once

#include "agent/user.h"

#include <sys/types.h>

/*
 * oom_score_adj of commands, and of what calls leave behind. It counts as half of all memory, so
 * that a Python session, which cannot be had back, is ended for them only when it has more than
 * that by itself.
 */
#define SPAWN_SOONER "500"

struct spawn {
	const char *path;
	const char *search; /* PATH in which to look for a path without a slash; NULL = nowhere */
	char *const *argv;
	char *const *envp;
	const struct user *user;
	int cgroup_fd; /* -1: stays in the agent's */
	int cwd_fd;    /* directory to start in (may be O_PATH); -1: the user's home */
	int in_fd;     /* -1: /dev/null */
	int out_fd, err_fd;
	int extra_fd;  /* becomes descriptor 3; -1 = none */
	bool terminal; /* in_fd is one, and becomes the controlling terminal */
	bool sooner;   /* ended before others when memory runs out (SPAWN_SOONER) */
};

/*
 * The new process id, or -errno (-EAGAIN: process limit). What fails after the
 * start (directory, execve) is said on err_fd, with exit status 126, or 127 when
 * the program is not there.
 */
pid_t spawn_process(const struct spawn *s);

/*
 * A signal to the process group that such a process leads. One that has just been started leads
 * none before its setsid(); then to the process alone. 0 or -errno (-ESRCH: it has been reaped).
 */
int spawn_signal(pid_t pid, int sig);
