/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whose process a new VMM is. Its parent tells a number, and a parent that was
 * taken over could tell that of another VMM's child, which would then be moved,
 * and killed, as its own. So a child speaks itself, on the control socket that was
 * made for it: only its parent and itself have the other end, and the kernel says
 * who has sent its first message. What a parent says holds when both agree.
 *
 * A child that ended before it spoke is taken at its parent's word: a dead process
 * is nothing that could be moved or killed.
 *
 * Two VMMs may tell of the same process, and who was first says nothing: the one whose
 * child speaks has it, and the other is refused then. One VMM that tells of a process for
 * two children lies at once.
 *
 * Invariant: a struct vmm with claim_fd >= 0 is in host->claims and has no process.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/vmm_impl.h"
#include "lib/fdpass.h"
#include "lib/log.h"

#include <errno.h>
#include <sys/socket.h>
#include <sys/wait.h>

/* From the end of a child's socket to that of its process. */
#define SILENT_NS (2 * SECOND_NS)

static void pass_credentials(struct vmm *v, int on)
{
	if (setsockopt(v->ctl.fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0)
		log_warn("the control socket of a new virtual machine tells no credentials");
}

void vmm_claim_listen(struct vmm *v)
{
	v->listening = true;
	pass_credentials(v, 1);
}

/* It waits no more: the descriptor of the process. */
static int claim_end(struct vmm *v)
{
	list_del(&v->link);
	loop_timer_cancel(&v->exit_timer);
	return take_fd(&v->claim_fd);
}

void vmm_claim_drop(struct vmm *v)
{
	int fd = v->claim_fd < 0 ? -1 : claim_end(v);

	close_fd(&fd);
}

/* It is not what its parent has told. */
static void claim_refused(struct vmm *v)
{
	log_warn("a VMM told of a child that is none (pid %d)", (int)v->claim);
	vmm_claim_drop(v);
	vmm_fork_failed(v, "the virtual machine told of a child that is none");
}

/* Somebody has it: whoever else waits for a word of it has been lied to. */
static void claim_settled(struct vmm_host *h, pid_t pid)
{
	struct vmm *v;

	while ((v = vmm_claim_by_pid(h, pid)))
		claim_refused(v);
}

bool vmm_claim_twice(struct vmm_host *h, pid_t by, pid_t pid)
{
	list_for_each (v, &h->claims, struct vmm, link)
		if (v->claim == pid && v->claim_by == by)
			return true;
	return false;
}

void vmm_claim_take(struct vmm *v)
{
	struct vmm_host *h = v->host;
	pid_t pid = v->claim;
	struct err err = {0};

	if (vmm_by_pid(h, pid)) {
		claim_refused(v); /* another one has it */
		return;
	}
	v->pid = pid;
	if (vmm_watch(v, claim_end(v), &err) < 0) {
		vmm_abandon(v);
		vmm_fork_failed(v, err.msg);
	} else if (v->group) {
		vmm_group_join(v);
	} else if (v->ops->forked) {
		v->ops->forked(v);
	}
	claim_settled(h, pid);
}

static bool claim_has_ended(const struct vmm *v)
{
	siginfo_t si = {0};

	return waitid(P_PIDFD, (id_t)v->claim_fd, &si, WEXITED | WNOHANG | WNOWAIT) == 0 &&
	       si.si_pid != 0;
}

static void on_silent(struct loop_timer *t)
{
	claim_refused(t->arg);
}

/* Its socket has ended without a word: so must have its process. */
static void claim_silent(struct vmm *v)
{
	if (loop_timer_armed(&v->exit_timer))
		return;
	v->exit_timer = (struct loop_timer){.fn = on_silent, .arg = v};
	loop_timer_set(v->host->loop, &v->exit_timer, SILENT_NS);
}

void vmm_claim(struct vmm *v, pid_t by, pid_t pid, int pidfd)
{
	v->claim = pid;
	v->claim_by = by;
	v->claim_fd = pidfd;
	list_add_tail(&v->host->claims, &v->link);
	vmm_poll(v); /* it may have spoken */
	if (v->claim_fd < 0)
		return; /* settled by that */
	if (claim_has_ended(v) || v->speaker == pid)
		vmm_claim_take(v);
	else if (v->speaker)
		claim_refused(v);
	else if (v->ctl.fd < 0)
		claim_silent(v);
}

bool vmm_claim_hear(struct vmm *v)
{
	int rc = fdpass_peek_pid(v->ctl.fd, &v->speaker);

	if (rc == -ECONNRESET) /* told once, ahead of what it had to say */
		rc = fdpass_peek_pid(v->ctl.fd, &v->speaker);
	if (rc == -EAGAIN)
		return false;
	v->listening = false;
	if (rc == 0) {
		if (v->claim_fd >= 0)
			claim_silent(v);
		return true;
	}
	if (rc < 0)
		v->speaker = -1; /* nobody's */
	pass_credentials(v, 0);
	if (v->claim_fd < 0)
		return true; /* its parent has not told yet */
	if (v->speaker == v->claim)
		vmm_claim_take(v);
	else
		claim_refused(v);
	return true;
}

struct vmm *vmm_claim_by_pid(struct vmm_host *h, pid_t pid)
{
	list_for_each (v, &h->claims, struct vmm, link)
		if (v->claim == pid)
			return v;
	return NULL;
}
