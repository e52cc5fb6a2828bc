/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks of a VMM: requests in order, a bounded number of them in flight, and
 * the check of what the parent says it has made. Descriptors for a child (new
 * layers of both disks) and its control group are made when its request is sent, so that a long
 * queue holds few, and who leaves it costs little.
 *
 * A template is forked for several owners: they are served in turn, and none has all requests in
 * flight. One that was sent cannot be taken back: a child that nobody wants any more counts until
 * its process has ended, and keeps its owner from the next one.
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
#include <unistd.h>

void vmm_leave_parent(struct vmm *v)
{
	struct vmm *parent = v->parent;

	for (unsigned int i = 0; parent && v->fork_id && i < parent->in_flight; i++)
		if (parent->asks[i].id == v->fork_id)
			parent->asks[i].given_up = true;
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

static const char *fork_owner(const struct vmm *v)
{
	return v->owner ? v->owner : OWNER_ANY;
}

/*
 * Takes down whose turn it was, in his place or that of whoever had his longest ago. What is in
 * flight does not tell: where children wait for their groups, that is nothing.
 */
static void fork_serve(struct vmm *parent, const char *owner)
{
	struct vmm_served *at = &parent->served[0];

	for (unsigned int i = 0; i < ARRAY_SIZE(parent->served); i++) {
		struct vmm_served *s = &parent->served[i];

		if (s->sent && strcmp(s->owner, owner) == 0) {
			at = s;
			break;
		}
		if (s->sent < at->sent)
			at = s;
	}
	snprintf(at->owner, sizeof(at->owner), "%s", owner);
	at->sent = parent->sent;
}

static int fork_send(struct vmm *parent, struct vmm *v, struct err *err)
{
	struct ctl_msg m = {.type = CTL_FORK, .id = ++parent->next_id, .code = v->kind};
	_cleanup_fd int prw = -1, pro = -1, crw = -1, cro = -1, gate = -1;
	struct vmm_ask *ask = &parent->asks[parent->in_flight];
	int rc = vmm_group_make(v, &v->size, parent, err);

	if (rc < 0)
		return rc;
	rc = layerfile_make(parent->host->disk_dir, &prw, &pro);
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
	*ask = (struct vmm_ask){.id = m.id, .sent = parent->sent};
	snprintf(ask->owner, sizeof(ask->owner), "%s", fork_owner(v));
	fork_serve(parent, ask->owner);
	parent->in_flight++;
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

/* What an owner has in flight. */
struct fork_count {
	unsigned int n, given_up;
	uint64_t latest; /* vmm->sent of the last one, answered or not */
};

static struct fork_count fork_count(const struct vmm *parent, const char *owner)
{
	struct fork_count c = {0};

	for (unsigned int i = 0; i < parent->in_flight; i++) {
		const struct vmm_ask *ask = &parent->asks[i];

		if (strcmp(ask->owner, owner) != 0)
			continue;
		c.n++;
		c.given_up += ask->given_up;
	}
	for (unsigned int i = 0; i < ARRAY_SIZE(parent->served); i++)
		if (parent->served[i].sent && strcmp(parent->served[i].owner, owner) == 0)
			c.latest = parent->served[i].sent;
	for (unsigned int i = 0; i < parent->nleavers; i++)
		c.given_up += strcmp(parent->leavers[i].owner, owner) == 0;
	return c;
}

/* Whether this owner is asked for no other one now. A sandbox has one owner: it is his matter. */
static bool fork_has_all(const struct vmm *parent, const struct fork_count *c)
{
	unsigned int most =
		parent->host->several_owners ? LIMIT_FORKS_IN_FLIGHT / 2 : LIMIT_FORKS_IN_FLIGHT;

	return parent->paused && (c->n >= most || c->given_up >= LIMIT_FORKS_GIVEN_UP);
}

/*
 * The one that is asked for next, or NULL: of the owner who has the fewest in flight, among those
 * whoever was served longest ago; of his, the first. Mostly one owner's are beside each other: he
 * is counted once.
 */
static struct vmm *fork_next(const struct vmm *parent)
{
	struct fork_count best_count = {0}, count;
	const char *counted = NULL;
	struct vmm *best = NULL;

	list_for_each (v, &parent->forks, struct vmm, fork_link) {
		if (v->fork_id || (counted && strcmp(counted, fork_owner(v)) == 0))
			continue;
		counted = fork_owner(v);
		count = fork_count(parent, counted);
		if (fork_has_all(parent, &count))
			continue;
		if (best && (count.n > best_count.n ||
			     (count.n == best_count.n && count.latest >= best_count.latest)))
			continue;
		best = v;
		best_count = count;
	}
	return best;
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

	while (fork_under_way(parent) < LIMIT_FORKS_IN_FLIGHT && (v = fork_next(parent))) {
		struct err err = {0};

		if (fork_send(parent, v, &err) < 0)
			vmm_fork_failed(v, err.msg);
		else if (v->ops->asked)
			v->ops->asked(v);
	}
	/* Whoever waits for what was given up could wait for ever. */
	if (parent->paused && parent->in_flight && fork_waiting(parent) &&
	    !loop_timer_armed(&parent->deaf))
		loop_timer_set(parent->host->loop, &parent->deaf, FORK_LIMIT_NS);
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
	rc = vmm_make_ends(v, &ctl, &peer, err);
	if (rc < 0)
		return rc;
	rc = loop_add(v->host->loop, &v->ctl, ctl, EPOLLIN);
	if (rc < 0) {
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

/* Nobody wants the child that this process is; if it is one. */
static void fork_leaves(struct vmm *parent, const char *owner, uint64_t pid)
{
	struct vmm_leaver *l = &parent->leavers[parent->nleavers];
	int fd = parent->nleavers < LIMIT_FORKS_IN_FLIGHT
			 ? vmm_prove_child(parent->host, parent->pid, pid)
			 : -1;

	if (fd < 0)
		return; /* it has ended */
	close(fd);
	l->pid = (pid_t)pid;
	snprintf(l->owner, sizeof(l->owner), "%s", owner);
	parent->nleavers++;
}

/* One of whom it was, who has not been told yet. */
static struct vmm *fork_left(struct vmm_host *h, pid_t pid)
{
	list_for_each (v, &h->vmms, struct vmm, link) {
		for (unsigned int i = 0; i < v->nleavers; i++) {
			if (v->leavers[i].pid != pid)
				continue;
			v->leavers[i] = v->leavers[--v->nleavers];
			return v;
		}
	}
	return NULL;
}

void vmm_fork_reaped(struct vmm_host *h, pid_t pid)
{
	struct vmm *parent;

	/* Those that were taken over may all have told of the same one. */
	while ((parent = fork_left(h, pid)))
		vmm_pump_forks(parent);
}

/* Takes the request off the list, into *out: what is wrong with the answer, or NULL. */
static const char *fork_answered(struct vmm *parent, uint32_t id, struct vmm_ask *out)
{
	for (unsigned int i = 0; i < parent->in_flight; i++) {
		struct vmm_ask ask = parent->asks[i];

		if (ask.id != id)
			continue;
		*out = ask;
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
	struct vmm_ask ask;
	const char *wrong = fork_answered(parent, m->id, &ask);
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
	} else if (m->code == 0) {
		/* It ends by itself: its control socket has ended. */
		fork_leaves(parent, ask.owner, m->value[CTL_FORKED_PID]);
	}
	vmm_pump_forks(parent);
}
