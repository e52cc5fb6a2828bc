/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks of a VMM: requests in order, a bounded number of them in flight, and
 * the check of what the parent says it has made. Descriptors for a child (new
 * layers of both disks) are made when its request is sent, so that a long queue
 * holds few.
 *
 * Invariants: a struct vmm in parent->forks has no process; parent->asks are the
 * requests without an answer, those of children that have been given up meanwhile
 * included.
 *
 * The kernel counts descriptors that lie in sockets for all of a user's together, and
 * refuses more beyond a number. So a VMM must answer what it was asked, once each, and
 * after it has read it: otherwise it could let requests pile up in its socket by
 * answering them, and nobody else would get any.
 *
 * One that answers nothing for long, with as many requests as it may have, is asked for no more. A
 * template is of no use then, and ends; a sandbox may only wait for its storage, and what runs in
 * it goes on with that.
 */
#define _GNU_SOURCE
#include "daemon/limits.h"
#include "daemon/vmm_impl.h"
#include "lib/layerfile.h"
#include "lib/log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void vmm_leave_parent(struct vmm *v)
{
	list_del(&v->fork_link);
	v->parent = NULL;
}

void vmm_fork_failed(struct vmm *v, const char *reason)
{
	vmm_leave_parent(v);
	vmm_end(v, reason);
	vmm_no_process(v);
}

void vmm_end_forks(struct vmm *v, const char *reason)
{
	char text[CTL_TEXT_MAX + 80];

	snprintf(text, sizeof(text), "the virtual machine that it was forked from has ended%s%s",
		 reason ? ": " : "", reason ? reason : "");
	while (!list_empty(&v->forks))
		vmm_fork_failed(list_entry(v->forks.next, struct vmm, fork_link), text);
}

static int fork_send(struct vmm *parent, struct vmm *v, struct err *err)
{
	struct ctl_msg m = {.type = CTL_FORK, .id = ++parent->next_id, .code = v->kind};
	_cleanup_fd int prw = -1, pro = -1, crw = -1, cro = -1, gate = -1;
	int rc = layerfile_make(parent->host->disk_dir, &prw, &pro);

	if (rc == 0)
		rc = layerfile_make(parent->host->disk_dir, &crw, &cro);
	if (rc < 0)
		return err_set(err, -rc, "cannot make a layer of the disk in %s",
			       parent->host->disk_dir);
	rc = vmm_gate(v, &gate);
	if (rc < 0)
		return err_set(err, -rc, "cannot make a gate for the new virtual machine");
	strays_asked(v);
	rc = vmm_send(parent, &m,
		      (int[CTL_FORK_FDS]){
			      [CTL_FORK_CONTROL] = v->peer_fd,
			      [CTL_FORK_CONSOLE] = v->console_fd,
			      [CTL_FORK_PARENT_RW] = prw,
			      [CTL_FORK_PARENT_RO] = pro,
			      [CTL_FORK_CHILD_RW] = crw,
			      [CTL_FORK_CHILD_RO] = cro,
			      [CTL_FORK_GATE] = gate,
		      });
	if (rc < 0)
		return err_set(err, -rc, "cannot ask the virtual machine to fork");
	v->fork_id = m.id;
	close_fd(&v->peer_fd);
	parent->asks[parent->in_flight++] = (struct vmm_ask){m.id, parent->sent};
	if (parent->in_flight == LIMIT_FORKS_IN_FLIGHT)
		loop_timer_set(parent->host->loop, &parent->deaf, FORK_LIMIT_NS);
	return 0;
}

/* The first that was not asked for. */
static struct vmm *fork_waiting(struct vmm *parent)
{
	list_for_each (v, &parent->forks, struct vmm, fork_link)
		if (!v->fork_id)
			return v;
	return NULL;
}

/* Children that are not in their own groups yet count in their parent's (pids.max). */
static unsigned int fork_under_way(const struct vmm *parent)
{
	return parent->in_flight + (parent->group ? vm_group_guests(parent->group) : 0);
}

static const char deaf_text[] =
	"the virtual machine has answered none of its forks, and is asked for no more until it "
	"does";

/* Those who asked have been given up, and nobody can ask any more. */
void vmm_on_deaf(struct loop_timer *t)
{
	struct vmm *v = t->arg, *w;

	if (v->paused) { /* a template: another one is made */
		vmm_breach(v, "does not answer what it was asked");
		vmm_end(v, "the virtual machine does not answer its forks");
		return;
	}
	log_warn("VMM %d has answered none of %u forks: it is asked for no more until it does",
		 (int)v->pid, v->in_flight);
	v->mute = true;
	while ((w = fork_waiting(v)))
		vmm_fork_failed(w, deaf_text);
}

void vmm_pump_forks(struct vmm *parent)
{
	struct vmm *v;

	while (fork_under_way(parent) < LIMIT_FORKS_IN_FLIGHT && (v = fork_waiting(parent))) {
		struct err err = {0};

		if (fork_send(parent, v, &err) < 0)
			vmm_fork_failed(v, err.msg);
		else if (v->ops->asked)
			v->ops->asked(v);
	}
}

int vmm_fork(struct vmm *v, struct vmm *parent, enum ctl_fork_kind kind, struct err *err)
{
	_cleanup_fd int ctl = -1, peer = -1;
	int rc;

	vmm_init(v, parent->host);
	if (parent->ended || parent->ctl.fd < 0)
		return err_text(err, ENOTCONN,
				"the virtual machine that it was to be forked from has ended");
	if (parent->mute)
		return err_text(err, EBUSY, "%s", deaf_text);
	v->size = parent->size;
	rc = vmm_group_make(v, &v->size, parent, err);
	if (rc < 0)
		return rc;
	rc = vmm_make_ends(v, &ctl, &peer, err);
	if (rc < 0) {
		vmm_group_leave(v);
		return rc;
	}
	rc = loop_add(v->host->loop, &v->ctl, ctl, EPOLLIN);
	if (rc < 0) {
		vmm_group_leave(v);
		close_fd(&v->console_fd);
		return err_set(err, -rc, "cannot watch a control socket");
	}
	take_fd(&ctl);
	vmm_claim_listen(v);
	v->peer_fd = take_fd(&peer);
	v->parent = parent;
	v->kind = kind;
	list_add_tail(&parent->forks, &v->fork_link);
	vmm_pump_forks(parent);
	return 0;
}

/* The parent has told of it: the process is taken over, if it is one of ours, and says so itself.
 */
static void fork_adopt(struct vmm *parent, struct vmm *v, uint64_t pid)
{
	int fd = vmm_prove_child(parent->host, parent->pid, pid);

	vmm_leave_parent(v);
	if (fd >= 0) {
		vmm_claim(v, parent->pid, (pid_t)pid, fd);
		return;
	}
	/* Its own word counts more, if it had time for one. */
	vmm_poll(v);
	if (fd == -EPERM)
		log_warn("VMM %d told of a child that is none (pid %llu)", (int)parent->pid,
			 (unsigned long long)pid);
	vmm_fork_failed(v, fd == -EPERM ? "the virtual machine told of a child that is none"
					: "the new virtual machine's process ended at once");
}

/* Takes the request off the list: what is wrong with the answer, or NULL. */
static const char *fork_answered(struct vmm *parent, uint32_t id)
{
	for (unsigned int i = 0; i < parent->in_flight; i++) {
		struct vmm_ask ask = parent->asks[i];

		if (ask.id != id)
			continue;
		parent->asks[i] = parent->asks[--parent->in_flight];
		loop_timer_cancel(&parent->deaf);
		parent->mute = false;
		return vmm_has_read(parent, ask.sent) ? NULL : "told of a fork before it was asked";
	}
	return "told of a fork that nobody asked for";
}

void vmm_on_forked(struct vmm *parent, struct ctl_msg *m)
{
	char text[CTL_TEXT_MAX + 64];
	const char *wrong = fork_answered(parent, m->id);
	struct vmm *v = NULL;

	if (wrong) {
		vmm_breach(parent, wrong);
		return;
	}
	list_for_each (it, &parent->forks, struct vmm, fork_link)
		if (it->fork_id == m->id)
			v = it;
	if (v && m->code == 0) {
		fork_adopt(parent, v, m->value[CTL_FORKED_PID]);
	} else if (v) {
		vmm_clean_line(m->text);
		snprintf(text, sizeof(text), "%s",
			 m->text[0] ? m->text : "the virtual machine could not be forked");
		vmm_fork_failed(v, text);
	}
	/* One that was given up meanwhile ends by itself: its control socket has ended. */
	vmm_pump_forks(parent);
}
