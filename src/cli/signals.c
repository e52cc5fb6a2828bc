/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stop signals through a signalfd. They stay blocked afterwards: the process
 * ends by itself once the loop has ended.
 */
#include "cli/signals.h"

#include "lib/io.h"

#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>

static void on_signal(struct loop_src *src, uint32_t events)
{
	struct signals *s = src->arg;
	struct signalfd_siginfo info;

	(void)events;
	if (io_read_some(s->fd, &info, sizeof(info)) != sizeof(info))
		return;
	s->count++;
	s->last = (int)info.ssi_signo;
	s->fn(s);
}

int signals_start(struct signals *s, struct loop *l, struct err *err)
{
	sigset_t set;
	int rc;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0 || signal(SIGPIPE, SIG_IGN) == SIG_ERR)
		return err_set(err, errno, "cannot set up signals");
	s->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->fd < 0)
		return err_set(err, errno, "cannot set up signals");
	s->src = (struct loop_src){.fd = -1, .fn = on_signal, .arg = s};
	rc = loop_add(l, &s->src, s->fd, EPOLLIN);
	if (rc < 0) {
		close_fd(&s->fd);
		return err_set(err, -rc, "cannot set up signals");
	}
	return 0;
}

void signals_stop(struct signals *s)
{
	loop_del(&s->src);
	close_fd(&s->fd);
}
