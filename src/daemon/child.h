/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Starting the programs that the daemon speaks to over a control socket: VMMs and
 * egress proxies. What they are given is this and nothing else: the socket, /dev/null
 * as descriptors 0 and 1, a stderr that the daemon reads (child_log.h), an empty environment,
 * default signals, and a process group of their own: Ctrl-C is for the daemon, which then ends
 * them. When the host is short of memory the kernel ends them, and what they fork, before the
 * daemon (oom_score_adj). SIGUSR1 alone stays ignored, as it is by the daemon: a VMM may send it,
 * as it kicks its vCPUs with it, and where the kernel's Landlock does not confine signals it may
 * send it to any process of its user.
 *
 * Thread: any. fork: posix_spawn.
 */
#pragma once

#include "lib/cleanup.h"

#include <sys/types.h>

#define CHILD_CTL_FD  3   /* where it finds its end of the control socket */
#define CHILD_OOM_ADJ 300 /* above the daemon's, in thousandths of the host's memory */
#define CHILD_OOM_MAX 1000

/* What all of them have in common; the descriptors are somebody else's. */
struct child_env {
	int oom_fd;    /* of child_oom_open(); -1: none */
	int stderr_fd; /* child_log.write_fd; -1: /dev/null */
};

/*
 * name: its argv[0]; arg, option: what follows, as far as the first that is NULL. peer stays the
 * caller's. 0 and *pid, or -errno.
 */
__must_check int child_spawn(pid_t *pid, const char *program, const char *name, const char *arg,
			     const char *option, int peer, const struct child_env *env);

/*
 * Our own oom_score_adj, to be opened while it is ours: /proc/self is root's once we are not
 * dumpable. The caller's to close. -1: there is none, and children go when we do.
 */
int child_oom_open(void);

/* Of one that was just started and that nobody watches yet: killed and waited for. */
void child_abandon(pid_t pid);
