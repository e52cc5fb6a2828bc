/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Forks of sandboxes. A fork_op belongs to its sandbox (list sb->forks, head =
 * under way) until that goes on or has ended, to its request until that ends, and
 * to each child that still tells it what becomes of it: it is freed when all have
 * let go. A child that the parent's VMM has told of and that is silent itself may
 * be the last of them.
 */
#include "daemon/fork.h"
#include "daemon/command_watch.h"
#include "daemon/daemon.h"
#include "daemon/egress/egress.h"
#include "daemon/egress/grant.h"
#include "daemon/fork_reply.h"
#include "daemon/freeze.h"
#include "daemon/reply.h"
#include "lib/io.h"
#include "lib/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum fork_state { FORK_QUEUED, FORK_FREEZING, FORK_FORKING, FORK_THAWING, FORK_OVER };

struct fork_child {
	struct fork_op *op;
	struct sandbox *sb; /* NULL: not made yet, failed, or given away */
	struct sandbox_user user;
	bool made, told; /* the object; its parent's VMM has answered, or it failed before */
	bool ready;
	char error[1500];
};

struct fork_op {
	struct list link; /* sb->forks; first: overwritten when freed */
	struct daemon *d;
	struct sandbox *sb; /* NULL: it goes on, or has ended */
	struct sandbox_user user;
	struct request *req; /* NULL: the client has left, or was answered */
	struct fork_reply *reply;
	enum fork_state state;
	struct freeze freeze;
	struct loop_timer limit; /* of the time that it is frozen */
	uint64_t start_ns, freeze_ns, pause_us;
	enum fork_egress egress;
	struct grant *grant; /* of the children */
	bool reseed, forkable, starting, freed;
	unsigned int n, places;
	char ended[1500]; /* why the parent has, before there were children */
	struct fork_child child[];
};

static void fork_next(struct sandbox *sb);
static void fork_check(struct fork_op *op);
static void child_unwanted(struct fork_child *c);
static void fork_end(struct request *r);

/* Somebody has let go. More than one in a row may find that he was the last. */
static void fork_unref(struct fork_op *op)
{
	if (op->req || op->sb || op->freed)
		return;
	for (unsigned int i = 0; i < op->n; i++)
		if (op->child[i].sb)
			return;
	op->freed = true;
	grant_unref(op->grant);
	loop_defer_free(&op->d->loop, op);
}

/* --- the answer -------------------------------------------------------------------------- */

/* Whether there is a sandbox, which is the client's from here on. */
static bool child_told(struct fork_child *c)
{
	struct sandbox *sb = c->sb;

	if (!c->ready)
		return false;
	sandbox_drop_user(&c->user);
	c->ready = sandbox_announce(sb) == 0;
	if (!c->ready)
		snprintf(c->error, sizeof(c->error), "%s", sb->reason);
	return c->ready;
}

static void fork_log(const struct fork_op *op, const char *id, unsigned int ok, uint64_t ready_us)
{
	struct log_field f[] = {
		LOG_STR("sandbox_id", id),     LOG_NUM("n", op->n),
		LOG_NUM("ready", ok),          LOG_NUM("pause_us", op->pause_us),
		LOG_NUM("ready_us", ready_us),
	};

	log_event(LOG_INFO, "sandbox forked", f, ARRAY_SIZE(f));
}

static ssize_t fork_pull(struct request *r, char *out, size_t max)
{
	struct fork_op *op = r->state;

	return fork_reply_pull(op->reply, out, max);
}

static const struct request_ops fork_reply_ops = {.pull = fork_pull, .end = fork_end};

static void fork_answer(struct fork_op *op)
{
	uint64_t ready_us = (io_now_ns() - op->start_ns) / 1000;
	struct request *r = op->req;
	unsigned int ok = 0;

	for (unsigned int i = 0; i < op->n; i++) {
		struct fork_child *c = &op->child[i];

		ok += child_told(c);
		fork_reply_child(op->reply, i, c->ready ? c->sb->id : NULL, c->error);
	}
	fork_log(op, r->match.id, ok, ready_us);
	if (ok == 0 && op->ended[0]) {
		reply_ended(r, op->ended);
	} else if (ok == 0) {
		reply_error(r, 503, "fork_failed", op->child[0].error, NULL, NULL);
	} else {
		fork_reply_send(op->reply, op->pause_us, ready_us, &fork_reply_ops);
		/* Without memory for the answer, or a client, nobody would learn of them. */
		for (unsigned int i = 0; i < op->n && (r->status != 200 || r->gone); i++)
			if (op->child[i].ready)
				sandbox_end(op->child[i].sb, true, "its fork could not be told of");
	}
	for (unsigned int i = 0; i < op->n; i++)
		op->child[i].sb = NULL; /* they live by themselves */
	/* Theirs by now: nothing is kept until the client has taken its answer. */
	grant_unref(op->grant);
	op->grant = NULL;
	op->state = FORK_OVER;
}

/* --- children ---------------------------------------------------------------------------- */

static void child_fail(struct fork_child *c, const char *reason)
{
	c->sb = NULL;
	c->made = c->told = true;
	snprintf(c->error, sizeof(c->error), "%s", reason);
}

static void child_ended(struct sandbox_user *u, const char *reason)
{
	struct fork_child *c = u->arg;

	c->ready = false;
	child_fail(c, reason);
	fork_check(c->op);
	fork_unref(c->op);
}

static void child_ready(struct sandbox *sb, void *arg)
{
	struct fork_child *c = arg;

	sb->ready_us = (io_now_ns() - c->op->start_ns) / 1000;
	command_watch_go(sb);
	c->ready = true;
	fork_check(c->op);
}

static void child_forked(struct sandbox *sb, void *arg)
{
	struct fork_child *c = arg;

	c->told = true;
	if (!c->op->req)
		child_unwanted(c);
	else if (!c->op->sb)
		sandbox_go(sb); /* its parent has ended meanwhile */
	fork_check(c->op);
	fork_unref(c->op);
}

static void child_start(struct fork_op *op, struct fork_child *c)
{
	struct sandbox *parent = op->sb;
	struct sandbox_params p = {
		.from = &parent->vmm,
		.template = parent->template,
		.owner = parent->owner,
		.memory_mib = parent->memory_mib,
		.vcpus = parent->vcpus,
		.disk_mib = parent->disk_mib,
		.parent = parent,
		.metadata = parent->metadata,
		.grant = op->grant,
		.reseed = op->reseed,
		.forkable = op->forkable,
		.hold = true,
	};

	c->sb = sandbox_new(op->d, &p, child_ready, c);
	if (!c->sb) {
		child_fail(c, "out of memory");
		return;
	}
	op->places--;
	c->made = true;
	c->sb->on_forked = child_forked;
	command_watch_copy(c->sb, parent);
	sandbox_add_user(c->sb, &c->user, child_ended, c);
	sandbox_start(c->sb);
}

static void child_unwanted(struct fork_child *c)
{
	struct sandbox *sb = c->sb;

	c->told = true;
	c->sb = NULL;
	sandbox_drop_user(&c->user);
	sandbox_end(sb, true, "the client left before it was ready");
}

/*
 * The client will not get them. One that the parent's VMM is being asked for is awaited: the
 * parent must not run again before that is done.
 */
static void fork_end_children(struct fork_op *op)
{
	for (unsigned int i = 0; i < op->n; i++) {
		struct fork_child *c = &op->child[i];

		if (!c->sb)
			c->told = true;
		else if (c->told || !c->sb->vmm.fork_id)
			child_unwanted(c);
	}
}

/* --- steps ------------------------------------------------------------------------------- */

/*
 * Only now: what the children have to do to become themselves would take processors from the VM
 * that is being forked, and its programs stand still meanwhile.
 */
static void fork_renew_children(struct fork_op *op)
{
	bool starting = op->starting;

	op->starting = true;
	for (unsigned int i = 0; i < op->n; i++)
		if (op->child[i].sb && op->child[i].told)
			sandbox_go(op->child[i].sb);
	op->starting = starting;
}

/* The parent goes on, or has ended: the next may freeze it. */
static void fork_let_go(struct fork_op *op)
{
	struct sandbox *sb = op->sb;

	fork_renew_children(op);
	op->sb = NULL;
	loop_timer_cancel(&op->limit);
	sandbox_drop_user(&op->user);
	list_del(&op->link);
	if (sb->state == SANDBOX_READY)
		fork_next(sb);
}

/* Looks whether a step is complete. */
static void fork_check(struct fork_op *op)
{
	bool told = true, settled = true;

	if (op->starting || op->state == FORK_OVER)
		return;
	for (unsigned int i = 0; i < op->n; i++) {
		const struct fork_child *c = &op->child[i];

		told &= c->told;
		settled &= c->ready || (c->made && !c->sb);
	}
	if (op->state == FORK_FORKING && told && op->sb) {
		op->state = FORK_THAWING;
		loop_timer_cancel(&op->limit);
		sandbox_was_forked(op->sb);
		freeze_end(&op->freeze);
		return;
	}
	if (!op->sb && settled && op->req)
		fork_answer(op);
}

/* Now, so that what was taken from the parent meanwhile is in no child. NULL, or why not. */
static const char *fork_inherit(struct fork_op *op)
{
	struct owners *o = &op->d->owners;

	if (op->egress == FORK_EGRESS_OWN)
		return NULL;
	if (grant_inherit(&op->grant, egress_grant(op->sb), op->egress == FORK_EGRESS_INJECT) < 0)
		return "out of memory";
	if (grant_hold(op->grant, owners_grants(o, op->sb->owner)) == 0)
		return NULL;
	return "the allowlists of your sandboxes take all that podflared has for them "
	       "(PODFLARE_REQUESTS_MIB)";
}

static void fork_on_frozen(struct freeze *f, const char *failure)
{
	struct fork_op *op = list_entry(f, struct fork_op, freeze);
	const char *why;

	if (failure) {
		for (unsigned int i = 0; i < op->n; i++)
			child_fail(&op->child[i], failure);
		fork_let_go(op);
		fork_check(op);
		fork_unref(op);
		return;
	}
	op->state = FORK_FORKING;
	loop_timer_set(&op->d->loop, &op->limit, FORK_LIMIT_NS);
	op->starting = true;
	why = fork_inherit(op);
	if (why)
		for (unsigned int i = 0; i < op->n; i++)
			child_fail(&op->child[i], why);
	else
		for (unsigned int i = 0; i < op->n && op->req; i++)
			child_start(op, &op->child[i]);
	op->starting = false;
	fork_check(op);
}

static void fork_on_thawed(struct freeze *f)
{
	struct fork_op *op = list_entry(f, struct fork_op, freeze);

	op->pause_us = (io_now_ns() - op->freeze_ns) / 1000;
	fork_let_go(op);
	fork_check(op);
	fork_unref(op);
}

static const struct freeze_ops fork_freeze_ops = {
	.frozen = fork_on_frozen,
	.thawed = fork_on_thawed,
};

/* The VMM takes too long: who was not told of by now is given up. */
static void fork_on_limit(struct loop_timer *t)
{
	struct fork_op *op = t->arg;

	op->starting = true;
	for (unsigned int i = 0; i < op->n; i++) {
		struct fork_child *c = &op->child[i];

		if (!c->told && c->sb)
			sandbox_end(c->sb, false, "its parent was not forked within %u s",
				    (unsigned int)(FORK_LIMIT_NS / SECOND_NS));
	}
	op->starting = false;
	fork_check(op);
}

static void fork_on_parent_end(struct sandbox_user *u, const char *reason)
{
	struct fork_op *op = u->arg;

	freeze_drop(&op->freeze);
	if (op->state < FORK_FORKING) {
		snprintf(op->ended, sizeof(op->ended), "%s", reason);
		for (unsigned int i = 0; i < op->n; i++)
			child_fail(&op->child[i], reason);
	}
	/* Children that were told of live on, also those that have yet to speak themselves; the
	 * others end with the VMM, right after this. */
	if (op->state == FORK_FORKING || op->state == FORK_THAWING)
		op->pause_us = (io_now_ns() - op->freeze_ns) / 1000;
	fork_let_go(op);
	fork_check(op);
	fork_unref(op);
}

static void fork_begin(struct fork_op *op)
{
	op->state = FORK_FREEZING;
	op->freeze_ns = io_now_ns();
	freeze_begin(&op->freeze, op->sb, &fork_freeze_ops);
}

static void fork_next(struct sandbox *sb)
{
	struct fork_op *op =
		list_empty(&sb->forks) ? NULL : list_entry(sb->forks.next, struct fork_op, link);

	if (op && op->state == FORK_QUEUED)
		fork_begin(op);
}

/* --- the client's side ------------------------------------------------------------------- */

static void fork_end(struct request *r)
{
	struct fork_op *op = r->state;
	bool answered = op->state == FORK_OVER;

	fork_reply_free(op->reply);
	op->reply = NULL;
	op->req = NULL;
	registry_unreserve(&op->d->registry, op->places);
	op->places = 0;
	if (!answered) {
		op->starting = true;
		fork_end_children(op);
		op->starting = false;
		if (op->state == FORK_QUEUED)
			fork_let_go(op);
		else
			fork_check(op);
	}
	fork_unref(op);
}

static const struct request_ops fork_ops = {.end = fork_end};

void fork_submit(struct sandbox *sb, struct request *r, const struct fork_order *order)
{
	unsigned int n = order->n;
	struct fork_reply *reply =
		fork_reply_new(r, sb, order->egress == FORK_EGRESS_OWN ? order->grant : NULL, n);
	struct fork_op *op = reply ? calloc(1, sizeof(*op) + n * sizeof(op->child[0])) : NULL;

	if (!op) {
		if (reply)
			reply_json(r, 500, NULL);
		fork_reply_free(reply);
		registry_unreserve(&sb->d->registry, n);
		return;
	}
	op->reply = reply;
	op->d = sb->d;
	op->sb = sb;
	op->req = r;
	op->n = op->places = n;
	op->reseed = order->reseed;
	op->forkable = order->forkable;
	op->egress = order->egress;
	op->grant = grant_ref(order->grant);
	op->start_ns = r->start_ns;
	op->limit = (struct loop_timer){.fn = fork_on_limit, .arg = op};
	for (unsigned int i = 0; i < n; i++)
		op->child[i].op = op;
	r->ops = &fork_ops;
	r->state = op;
	sandbox_add_user(sb, &op->user, fork_on_parent_end, op);
	list_add_tail(&sb->forks, &op->link);
	fork_next(sb);
}
