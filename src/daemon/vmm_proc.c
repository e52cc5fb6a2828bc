/* SPDX-License-Identifier: Apache-2.0 */
/*
 * VMM processes: starting, watching, killing, reaping. A process is known by
 * its pidfd, which cannot come to mean another one. Invariant: a struct vmm in
 * host->vmms has a pid that is a child of ours and not yet reaped, and no two
 * have the same.
 */
#define _GNU_SOURCE
#include "daemon/child.h"
#include "daemon/vmm_impl.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

/* Ended processes that one SIGCHLD reaps; what is left brings the next turn. */
#define REAP_BATCH 4096

void vmm_host_init(struct vmm_host *h, struct loop *loop, const char *vmm_path,
		   const char *kvm_path, const char *disk_dir)
{
	*h = (struct vmm_host){.loop = loop,
			       .vmm_path = vmm_path,
			       .kvm_path = kvm_path,
			       .disk_dir = disk_dir,
			       .child = {.oom_fd = -1, .stderr_fd = -1},
			       .message_cost = vmm_message_cost()};
	list_init(&h->vmms);
	list_init(&h->claims);
	strays_init(h);
}

/* The process is reaped (or was, by whoever): the last callback. */
static void vmm_gone(struct vmm *v, const char *how)
{
	int fd = v->proc.fd;

	v->gone = true;
	loop_del(&v->proc);
	close_fd(&fd);
	v->proc.fd = -1;
	list_del(&v->link);
	vmm_close_ctl(v);
	close_fd(&v->peer_fd);
	loop_timer_cancel(&v->exit_timer);
	loop_timer_cancel(&v->deaf);
	vmm_end(v, how);
	vmm_end_forks(v, how);
	vmm_group_leave(v);
	close_fd(&v->console_fd);
	strays_soon(v->host);
	v->ops->reaped(v);
}

static void vmm_reap(struct vmm *v)
{
	siginfo_t si = {0};
	char text[192];

	if (v->moving)
		return; /* its number must stay its own for now */
	vmm_poll(v);    /* a reason that was sent before the end counts more than the exit status */
	if (v->proc.fd < 0)
		return;
	if (waitid(P_PIDFD, (id_t)v->proc.fd, &si, WEXITED | WNOHANG) < 0) {
		snprintf(text, sizeof(text), "the virtual machine's process was lost: %s",
			 strerror(errno));
	} else if (si.si_pid == 0) {
		return; /* it lives */
	} else if (si.si_code == CLD_EXITED) {
		snprintf(text, sizeof(text), "the virtual machine's process exited with status %d",
			 si.si_status);
	} else if (si.si_status != SIGKILL || !vmm_oom_text(v, text, sizeof(text))) {
		snprintf(text, sizeof(text),
			 "the virtual machine's process was killed by signal %d (%s)", si.si_status,
			 strsignal(si.si_status));
	}
	vmm_gone(v, text);
}

static void vmm_on_proc(struct loop_src *src, uint32_t events)
{
	(void)events;
	vmm_reap(src->arg);
}

struct vmm *vmm_by_pid(struct vmm_host *h, pid_t pid)
{
	list_for_each (v, &h->vmms, struct vmm, link)
		if (v->pid == pid)
			return v;
	return NULL;
}

void vmm_host_reap(struct vmm_host *h)
{
	/* Who has forked should tell of it before its child is taken for a stray. */
	list_for_each_safe (v, &h->vmms, struct vmm, link)
		if (v->in_flight)
			vmm_poll(v);
	for (int i = 0; i < REAP_BATCH; i++) {
		siginfo_t si = {0};
		struct vmm *v;

		if (waitid(P_ALL, 0, &si, WEXITED | WNOHANG | WNOWAIT) < 0 || si.si_pid == 0)
			return;
		v = vmm_by_pid(h, si.si_pid);
		if (v && v->moving) {
			h->reap_again = true; /* what comes behind it waits for that */
			return;
		}
		if (v) {
			vmm_reap(v);
			continue;
		}
		v = vmm_claim_by_pid(h, si.si_pid);
		if (v) {
			vmm_claim_take(v); /* then it is reaped like all others */
			continue;
		}
		if (h->others_own && h->others_own(h->others, si.si_pid)) {
			if (h->others_reap(h->others, si.si_pid))
				continue;
			h->reap_again = true;
			return;
		}
		if (waitid(P_PID, (id_t)si.si_pid, &si, WEXITED | WNOHANG) < 0)
			return;
		vmm_fork_reaped(h, si.si_pid);
		strays_log(h, si.si_pid);
	}
}

void vmm_host_reap_again(struct vmm_host *h)
{
	if (!h->reap_again)
		return;
	h->reap_again = false;
	vmm_host_reap(h);
}

/* --- kill -------------------------------------------------------------------------------- */

static void vmm_on_exit_timer(struct loop_timer *t)
{
	struct vmm *v = t->arg;

	if (v->pid)
		vmm_kill(v, false);
	else
		v->ops->reaped(v);
}

void vmm_no_process(struct vmm *v)
{
	if (v->gone)
		return;
	v->gone = true;
	vmm_claim_drop(v);
	v->exit_timer.fn = vmm_on_exit_timer;
	v->exit_timer.arg = v;
	vmm_close_ctl(v);
	close_fd(&v->peer_fd);
	vmm_group_leave(v);
	close_fd(&v->console_fd);
	loop_timer_set(v->host->loop, &v->exit_timer, 0);
}

void vmm_kill(struct vmm *v, bool quiet)
{
	if (quiet)
		v->ended = true;
	vmm_end_forks(v, NULL);
	if (v->gone)
		return;
	if (v->proc.fd >= 0) {
		pidfd_send_signal(v->proc.fd, SIGKILL, NULL, 0);
		return;
	}
	/*
	 * A child that was not told of: without its control socket it ends by itself, and the
	 * process, if there is one, is reaped as a stray.
	 */
	vmm_leave_parent(v);
	vmm_end(v, "it was killed");
	vmm_no_process(v);
}

/* --- start ------------------------------------------------------------------------------- */

int vmm_spawn(struct vmm *v, const char *id, int ctl_peer)
{
	const char *option = v->host->without_namespaces ? "--without-namespaces" : NULL;
	int rc = child_spawn(&v->pid, v->host->vmm_path, "podflare-vmm", id, option, ctl_peer,
			     &v->host->child);

	if (rc < 0)
		v->pid = 0;
	return rc;
}

void vmm_abandon(struct vmm *v)
{
	child_abandon(v->pid);
	v->pid = 0;
}

int vmm_watch(struct vmm *v, int pidfd, struct err *err)
{
	_cleanup_fd int fd = pidfd < 0 ? pidfd_open(v->pid, 0) : pidfd;
	int rc;

	if (fd < 0)
		return err_set(err, errno, "cannot watch the VMM process");
	v->exit_timer = (struct loop_timer){.fn = vmm_on_exit_timer, .arg = v};
	v->proc = (struct loop_src){.fd = -1, .fn = vmm_on_proc, .arg = v};
	rc = loop_add(v->host->loop, &v->proc, fd, EPOLLIN);
	if (rc < 0)
		return err_set(err, -rc, "cannot watch the VMM process");
	take_fd(&fd);
	list_add_tail(&v->host->vmms, &v->link);
	strays_watch(v->host);
	return 0;
}

int vmm_prove_child(struct vmm_host *h, pid_t by, uint64_t pid)
{
	_cleanup_fd int fd = -1;
	siginfo_t si;

	if (pid <= 1 || pid > INT_MAX || vmm_by_pid(h, (pid_t)pid) ||
	    vmm_claim_twice(h, by, (pid_t)pid) ||
	    (h->others_own && h->others_own(h->others, (pid_t)pid)))
		return -EPERM;
	fd = pidfd_open((pid_t)pid, 0);
	if (fd < 0)
		return errno == ESRCH ? -ESRCH : -EPERM;
	/* Only for a child of ours; one that has ended already stays to be reaped. */
	if (waitid(P_PIDFD, (id_t)fd, &si, WEXITED | WNOHANG | WNOWAIT) < 0)
		return -EPERM;
	return take_fd(&fd);
}
