/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the fork to the end of a sandbox. What the guest says is a hint at most:
 * only a correct answer to RENEW makes a sandbox READY, and only of a process
 * that is known to be ours.
 */
#define _GNU_SOURCE
#include "daemon/sandbox.h"
#include "daemon/agent_failure.h"
#include "daemon/daemon.h"
#include "daemon/egress/egress.h"
#include "daemon/egress/grant.h"
#include "daemon/exec.h"
#include "daemon/limits.h"
#include "daemon/renew.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int64_t now_ms(void)
{
	return (int64_t)(io_realtime_ns() / 1000000);
}

static void sandbox_log(const struct sandbox *sb, const char *msg, const char *reason)
{
	struct log_field f[10];
	size_t n = 0;

	f[n++] = LOG_STR("sandbox_id", sb->id);
	f[n++] = LOG_STR("template", sb->template);
	if (sb->parent[0])
		f[n++] = LOG_STR("parent", sb->parent);
	if (sb->owner[0])
		f[n++] = LOG_STR("owner", sb->owner);
	f[n++] = LOG_NUM("memory_mib", sb->memory_mib);
	f[n++] = LOG_NUM("vcpus", sb->vcpus);
	f[n++] = LOG_NUM("vmm_pid", sb->vmm.pid);
	f[n++] = LOG_NUM("age_ms", (io_now_ns() - sb->start_ns) / 1000000);
	if (reason)
		f[n++] = LOG_STR("reason", reason);
	log_event(LOG_INFO, msg, f, n);
}

/* --- getting ready ----------------------------------------------------------------------- */

static void sandbox_check_ready(struct sandbox *sb)
{
	if (sb->state != SANDBOX_FORKING || !sb->forked || !sb->renewed)
		return;
	loop_timer_cancel(&sb->deadline);
	sb->state = SANDBOX_READY;
	sb->ready_us = (io_now_ns() - sb->start_ns) / 1000;
	egress_ready(sb);
	sb->on_ready(sb, sb->ready_arg);
}

static void sandbox_on_renew(struct agent_stream *s)
{
	struct sandbox *sb = s->user;
	struct agent_failure why;
	struct frame f = {0};
	int rc = agent_next(s, &f);

	if (rc == 0)
		return;
	if (rc == 1 && f.type == FRAME_OK) {
		egress_renewed(sb, &f);
		agent_release(s);
		sb->renew = NULL;
		sb->renewed = true;
		sandbox_check_ready(sb);
		turn_done(&sb->turn, true);
		return;
	}
	if (rc < 0 && sandbox_is_ending(sb))
		return; /* the end brings the better reason */
	if (rc == 1 && f.type == FRAME_ERROR) {
		agent_failure_parse(&f, &why);
		sandbox_end(sb, false, "the guest could not be renewed: %s", why.message);
		return;
	}
	sandbox_end(sb, false, "%s while the sandbox started",
		    agent_error_text(rc < 0 ? rc : -EPROTO));
}

/* --- events of the VMM ------------------------------------------------------------------- */

static struct sandbox *sandbox_of(struct vmm *v)
{
	return list_entry(v, struct sandbox, vmm);
}

/*
 * The child is there. Not before: RENEW has the time of day, which would be older by as much as the
 * fork takes, and those that were asked for ahead of it.
 */
static void sandbox_renew(struct turn *turn)
{
	struct sandbox *sb = list_entry(turn, struct sandbox, turn);
	/* Its VMM is told first: user code may connect as soon as RENEW lets it run. */
	_cleanup_free char *egress = egress_begin(sb);
	struct err err = {0};
	int rc;

	sb->renew = agent_open(&sb->agent, sandbox_on_renew, sb, &err);
	if (!sb->renew) {
		/* When the parent has failed already, its answer has the reason. */
		if (err.num != EPIPE && err.num != ECONNRESET && err.num != ENOTCONN)
			sandbox_end(sb, false, "%s", err.msg);
		return;
	}
	rc = renew_send(sb->renew, &(struct renew){.id = sb->id,
						   .kind = sb->parent[0] ? "fork" : "create",
						   .generation = sb->generation,
						   .reseed = sb->reseed,
						   .egress = egress});
	if (rc < 0)
		sandbox_end(sb, false, "%s",
			    rc == -ENOMEM ? "out of memory" : "no randomness for the guest");
}

/* The child is there, or all that RENEW has to tell is known: with the second of the two, once. */
static void sandbox_try_renew(struct sandbox *sb)
{
	if (sb->state == SANDBOX_FORKING && sb->forked && sb->prepared)
		turn_wait(&sb->turn);
}

static void sandbox_prepared(struct sandbox *sb)
{
	sb->prepared = true;
	sandbox_try_renew(sb);
}

/* It was asked for, and nobody holds it (any more): once. */
static void sandbox_prepare(struct sandbox *sb)
{
	if (sb->state == SANDBOX_FORKING && !sb->hold && egress_prepare(sb, sandbox_prepared))
		sandbox_prepared(sb);
}

static void sandbox_on_asked(struct vmm *v)
{
	sandbox_prepare(sandbox_of(v));
}

void sandbox_go(struct sandbox *sb)
{
	if (!sb->hold)
		return;
	sb->hold = false;
	sandbox_prepare(sb);
}

static void sandbox_on_forked(struct vmm *v)
{
	struct sandbox *sb = sandbox_of(v);

	if (sb->state != SANDBOX_FORKING)
		return;
	sb->forked = true;
	sandbox_try_renew(sb);
	if (sb->state == SANDBOX_FORKING && sb->on_forked)
		sb->on_forked(sb, sb->ready_arg);
	sandbox_check_ready(sb);
}

static void sandbox_on_refused(struct vmm *v, uint32_t id, int errnum)
{
	agent_refused(&sandbox_of(v)->agent, id, errnum);
}

static void sandbox_on_disk(struct vmm *v, int errnum, uint64_t failures)
{
	struct sandbox *sb = sandbox_of(v);

	if (sb->state == SANDBOX_ENDED)
		return;
	if (failures > sb->disk_errors)
		sb->disk_errors = failures;
	exec_disk_failed(sb, errnum);
}

static void sandbox_on_guest_connect(struct vmm *v, uint32_t id)
{
	egress_on_connect(sandbox_of(v), id);
}

static void sandbox_on_recorded(struct vmm *v, int errnum, const char *text)
{
	struct sandbox *sb = sandbox_of(v);

	if (sb->state != SANDBOX_ENDED && sb->on_recorded)
		sb->on_recorded(sb, sb->ready_arg, errnum, text);
}

static void sandbox_on_ended(struct vmm *v, const char *reason)
{
	sandbox_end(sandbox_of(v), false, "%s", reason);
}

static void sandbox_tell(struct list *users, const char *reason)
{
	while (!list_empty(users)) {
		struct sandbox_user *u = list_entry(users->next, struct sandbox_user, link);

		list_del(&u->link);
		u->fn(u, reason);
	}
}

static void sandbox_on_reaped(struct vmm *v)
{
	struct sandbox *sb = sandbox_of(v);

	sandbox_tell(&sb->waiting, sb->reason);
	registry_gone(&sb->d->registry, sb);
	exec_forget_all(sb);
	egress_free(sb);
	turn_free(&sb->turn);
	json_decref(sb->metadata);
	loop_defer_free(&sb->d->loop, sb);
}

static const struct vmm_ops sandbox_vmm_ops = {
	.asked = sandbox_on_asked,
	.forked = sandbox_on_forked,
	.refused = sandbox_on_refused,
	.disk = sandbox_on_disk,
	.guest_connect = sandbox_on_guest_connect,
	.recorded = sandbox_on_recorded,
	.ended = sandbox_on_ended,
	.reaped = sandbox_on_reaped,
};

/* --- life -------------------------------------------------------------------------------- */

static void sandbox_on_deadline(struct loop_timer *t)
{
	struct sandbox *sb = t->arg;

	sandbox_end(sb, false, "it was not ready after %u s", sb->d->config.create_timeout_s);
}

struct sandbox_params sandbox_params_of_template(struct template_vm *vm)
{
	return (struct sandbox_params){
		.from = &vm->vmm,
		.template = vm->t->spec.name,
		.memory_mib = vm->size.memory_mib,
		.vcpus = vm->size.vcpus,
		.disk_mib = vm->size.disk_mib,
		.reseed = true,
		.forkable = true,
	};
}

static void sandbox_set_line(struct sandbox *sb, const struct sandbox *parent)
{
	const char *root = parent ? parent->root : sb->id;

	snprintf(sb->root, sizeof(sb->root), "%s", root);
	if (!parent)
		return;
	snprintf(sb->parent, sizeof(sb->parent), "%s", parent->id);
	sb->generation = parent->generation + 1;
}

struct sandbox *sandbox_new(struct daemon *d, const struct sandbox_params *p,
			    sandbox_ready_fn *on_ready, void *arg)
{
	struct sandbox *sb = calloc(1, sizeof(*sb));

	if (!sb)
		return NULL;
	ids_make(sb->id);
	sandbox_set_line(sb, p->parent);
	sb->d = d;
	snprintf(sb->template, sizeof(sb->template), "%s", p->template);
	snprintf(sb->owner, sizeof(sb->owner), "%s", p->owner ? p->owner : "");
	sb->memory_mib = p->memory_mib;
	sb->vcpus = p->vcpus;
	sb->disk_mib = p->disk_mib;
	sb->held = (struct held){.max = LIMIT_HELD,
				 .all = owners_held(&d->owners, sb->owner, &d->held)};
	sb->reseed = p->reseed;
	sb->hold = p->hold;
	sb->rehearsal = p->rehearsal;
	sb->forkable = p->forkable;
	sb->from = p->from;
	sb->from_pool = p->pool;
	sb->counted = !p->pool;
	sb->start_ns = io_now_ns();
	sb->on_ready = on_ready;
	sb->ready_arg = arg;
	sb->deadline = (struct loop_timer){.fn = sandbox_on_deadline, .arg = sb};
	list_init(&sb->users);
	list_init(&sb->waiting);
	list_init(&sb->execs);
	list_init(&sb->past);
	list_init(&sb->forks);
	agent_init(&sb->agent, &d->loop, &sb->vmm);
	sb->vmm.ops = &sandbox_vmm_ops;
	sb->vmm.owner = sb->owner;
	if (turn_init(&sb->turn, &d->renewals, sandbox_renew, sb->owner, sb->root) < 0 ||
	    egress_set(sb, p->grant) < 0) {
		turn_free(&sb->turn);
		free(sb);
		return NULL;
	}
	sb->metadata = json_incref(p->metadata);
	registry_add(&d->registry, sb);
	return sb;
}

static enum ctl_fork_kind sandbox_kind(const struct sandbox *sb)
{
	if (sb->rehearsal)
		return CTL_FORK_REHEARSAL;
	return sb->forkable ? CTL_FORK_PLAIN : CTL_FORK_LEAF;
}

void sandbox_start(struct sandbox *sb)
{
	struct vmm *from = sb->from;
	struct err err = {0};

	sb->from = NULL;
	loop_timer_set(&sb->d->loop, &sb->deadline, sb->d->config.create_timeout_s * SECOND_NS);
	if (vmm_fork(&sb->vmm, from, sandbox_kind(sb), &err) < 0)
		sandbox_end(sb, false, "%s", err.msg);
}

void sandbox_begin_call(struct sandbox *sb)
{
	/* Only once, and not in the rehearsal, from which it is learned. */
	if (!sb->called && !sb->rehearsal)
		vmm_warm(&sb->vmm, CTL_HOTSET_CALL);
	sb->called = true;
}

void sandbox_was_forked(struct sandbox *sb)
{
	vmm_warm(&sb->vmm, CTL_HOTSET_READY);
	sb->called = false;
}

void sandbox_count(struct sandbox *sb, const char *owner)
{
	sb->counted = true;
	snprintf(sb->owner, sizeof(sb->owner), "%s", owner);
	turn_give(&sb->turn, owner);
	sb->held.all = owners_held(&sb->d->owners, owner, &sb->d->held); /* it has none yet */
}

int sandbox_announce(struct sandbox *sb)
{
	struct store_row row = {
		.memory_mib = sb->memory_mib,
		.vcpus = sb->vcpus,
		.disk_mib = sb->disk_mib,
		.generation = sb->generation,
	};

	sb->created_ms = row.created_ms = now_ms();
	row.metadata = sb->metadata;
	row.grant = egress_grant(sb);
	snprintf(row.id, sizeof(row.id), "%s", sb->id);
	snprintf(row.parent, sizeof(row.parent), "%s", sb->parent);
	snprintf(row.template, sizeof(row.template), "%s", sb->template);
	snprintf(row.owner, sizeof(row.owner), "%s", sb->owner);
	/* An id that the database does not know would be unknown after a restart. */
	if (store_insert(&sb->d->store, &row) < 0) {
		sandbox_end(sb, false, "the state database cannot be written");
		return -EIO;
	}
	sb->stored = sb->announced = true;
	sandbox_log(sb, "sandbox ready", NULL);
	return 0;
}

void sandbox_end(struct sandbox *sb, bool deleted, const char *fmt, ...)
{
	va_list ap;

	if (sb->state == SANDBOX_ENDED)
		return;
	va_start(ap, fmt);
	vsnprintf(sb->reason, sizeof(sb->reason), fmt, ap);
	va_end(ap);
	/* Parts of it may be the guest's words; it becomes JSON and log text. */
	for (char *c = sb->reason; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	sb->state = SANDBOX_ENDED;
	sb->closed = deleted;
	loop_timer_cancel(&sb->deadline);
	if (sb->stored)
		store_end(&sb->d->store, sb->id, now_ms(), sb->exec_count, sb->reason, deleted);
	registry_ended(&sb->d->registry, sb);
	sandbox_log(sb, "sandbox ended", sb->reason);
	agent_last_turn(&sb->agent);
	sandbox_tell(&sb->users, sb->reason);
	egress_end(sb);
	sb->renew = NULL;
	agent_free(&sb->agent);
	vmm_kill(&sb->vmm, true);
	/* Whatever its guest has answered: each copy of a hostile one may end just before its time.
	 */
	if (deleted)
		turn_drop(&sb->turn);
	else
		turn_done(&sb->turn, false);
}

void sandbox_add_user(struct sandbox *sb, struct sandbox_user *u, sandbox_user_fn *fn, void *arg)
{
	u->fn = fn;
	u->arg = arg;
	list_add_tail(&sb->users, &u->link);
}

void sandbox_add_waiting(struct sandbox *sb, struct sandbox_user *u, sandbox_user_fn *fn, void *arg)
{
	u->fn = fn;
	u->arg = arg;
	list_add_tail(&sb->waiting, &u->link);
}

void sandbox_drop_user(struct sandbox_user *u)
{
	if (u->link.next)
		list_del(&u->link);
}

bool sandbox_is_ending(struct sandbox *sb)
{
	vmm_poll(&sb->vmm);
	return sb->state == SANDBOX_ENDED || sb->vmm.ctl.fd < 0;
}

/* Ids of those that live and were forked from it. */
static json_t *sandbox_children(const struct sandbox *sb)
{
	json_t *ids = json_array();

	list_for_each (it, &sb->d->registry.live, struct sandbox, link) {
		if (!it->announced || strcmp(it->parent, sb->id) != 0)
			continue;
		if (json_array_append_new(ids, json_string(it->id)) < 0) {
			json_decref(ids);
			return NULL;
		}
	}
	return ids;
}

json_t *sandbox_json(const struct sandbox *sb, bool details)
{
	json_t *children = sandbox_children(sb), *more;
	json_t *o =
		children ? json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:s?, s:o, s:I, "
				     "s:o, s:O?, s:I, s:s, s:b}",
				     "id", sb->id, "state", "ready", "template", sb->template,
				     "memory_mib", (json_int_t)sb->memory_mib, "vcpus",
				     (json_int_t)sb->vcpus, "disk_mib", (json_int_t)sb->disk_mib,
				     "generation", (json_int_t)sb->generation, "parent",
				     sb->parent[0] ? sb->parent : NULL, "children", children,
				     "created_at", (json_int_t)sb->created_ms, "egress",
				     egress_json(sb), "metadata", sb->metadata, "ready_us",
				     (json_int_t)sb->ready_us, "source",
				     sb->from_pool ? "pool" : "fork", "forkable", (int)sb->forkable)
			 : NULL;

	if (!o || !details)
		return o;
	more = json_pack("{s:I, s:I}", "exec_count", (json_int_t)sb->exec_count, "disk_errors",
			 (json_int_t)sb->disk_errors);
	if (!more || json_object_update(o, more) < 0) {
		json_decref(o);
		o = NULL;
	}
	json_decref(more);
	return o;
}
