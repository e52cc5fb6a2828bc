/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SIGCHLD by signalfd, then waitpid() for whoever has ended. Signals coalesce,
 * so the number of signals says nothing: the wait loop runs until nobody is
 * left, but not longer than REAP_BATCH at once, for a fork bomb makes orphans
 * faster than one loop turn should last.
 */
#define _GNU_SOURCE
#include "agent/reap.h"
#include "lib/io.h"

#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#define REAP_BATCH 256

static void reaper_report(struct reaper *r, pid_t pid, int wstatus)
{
	list_for_each (c, &r->children, struct reap_child, link) {
		if (c->pid != pid)
			continue;
		if (WIFSTOPPED(wstatus)) {
			if (c->stopped)
				c->stopped(c);
			return;
		}
		list_del(&c->link);
		c->fn(c, wstatus);
		return;
	}
}

static void reaper_on_signal(struct loop_src *src, uint32_t events)
{
	struct signalfd_siginfo si;
	struct reaper *r = src->arg;

	(void)events;
	if (io_read_some(src->fd, &si, sizeof(si)) < 0)
		return;
	for (int i = 0; i < REAP_BATCH; i++) {
		int wstatus;
		pid_t pid = waitpid(-1, &wstatus, WNOHANG | WUNTRACED);

		if (pid <= 0)
			return;
		reaper_report(r, pid, wstatus);
	}
	/* More may wait, and their signal has been consumed: come back after the others. */
	kill(getpid(), SIGCHLD);
}

int reaper_init(struct reaper *r, struct loop *loop, struct err *err)
{
	sigset_t set;
	int fd, rc;

	list_init(&r->children);
	r->src = (struct loop_src){.fd = -1, .fn = reaper_on_signal, .arg = r};
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return err_set(err, errno, "cannot block SIGCHLD");
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return err_set(err, errno, "cannot make a signalfd");
	rc = loop_add(loop, &r->src, fd, EPOLLIN);
	return rc < 0 ? err_set(err, -rc, "cannot watch the signalfd") : 0;
}

void reaper_watch(struct reaper *r, struct reap_child *c)
{
	list_add_tail(&r->children, &c->link);
}
