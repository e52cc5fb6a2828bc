/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The steps of a renewal. Those of kernel and files are done at once; the REPL
 * and the hooks take time, and renewal_begin() returns before they are over.
 *
 * Freezing meanwhile: FREEZE has frozen the parent of all groups and each
 * group. Here the parent is thawed, then the group of each REPL, so that it
 * gets its signal; a hook's group is new and not frozen.
 *
 * A session that is between cells, and in which nothing of the user's runs until the next one, is
 * not even woken up: it owes the renewal, and does it first thing with that cell. A copy that is
 * never used then has the pages of its template's session, and not its own.
 */
#define _GNU_SOURCE
#include "agent/renewal.h"
#include "agent/agent.h"
#include "agent/hold.h"
#include "agent/renew.h"
#include "agent/stream.h"
#include "lib/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define RENEWAL_REPL_LIMIT_NS 10000000000ull
/* A handler that could not run (the session was out of stack, say) gets another chance. */
#define RENEWAL_AGAIN_NS 1000000000ull

static void renewal_on_limit(struct loop_timer *t);
static void renewal_on_again(struct loop_timer *t);

void renewal_init(struct renewal *n, struct agent *a, const char *etc_dir, const char *run_dir)
{
	char dir[256];

	*n = (struct renewal){.agent = a,
			      .etc_dir = etc_dir,
			      .run_dir = run_dir,
			      .kept = {.random_fd = -1, .mounts_fd = -1}};
	n->limit = (struct loop_timer){.fn = renewal_on_limit, .arg = n};
	n->again = (struct loop_timer){.fn = renewal_on_again, .arg = n};
	snprintf(dir, sizeof(dir), "%s/podflare/on-fork.d", etc_dir);
	hooks_init(&n->hooks, a, dir);
}

static void renewal_on_gone(void *job)
{
	struct renewal *n = job;

	n->stream = NULL;
}

static const struct stream_ops renewal_ops = {
	.gone = renewal_on_gone,
};

/* What the sessions had started goes back to them. */
static int renewal_return_apart(struct renewal *n)
{
	struct agent *a = n->agent;
	int rc = 0;

	list_for_each (r, &a->contexts, struct repl, link) {
		int one = r->apart && r->cgroup ? cgroup_move(r->apart, r->cgroup, 0) : 0;

		cgroup_release(&a->cgroups, r->apart);
		r->apart = NULL;
		if (one < 0)
			rc = one;
	}
	return rc;
}

static void renewal_stop_timers(struct renewal *n)
{
	loop_timer_cancel(&n->limit);
	loop_timer_cancel(&n->again);
}

/* Everything stays, or becomes again, frozen. */
static void renewal_fail(struct renewal *n, const struct err *err)
{
	struct agent *a = n->agent;
	struct stream *s = n->stream;

	renewal_stop_timers(n);
	list_for_each (r, &a->contexts, struct repl, link)
		r->renewing = false;
	n->step = RENEWAL_NONE;
	n->stream = NULL;
	if (n->req.kind != RENEW_BOOT) {
		a->freezer.must_renew = true;
		if (cgroups_freeze(&a->cgroups, true) < 0 ||
		    cgroups_freeze_each(&a->cgroups, true, NULL) < 0 || renewal_return_apart(n) < 0)
			log_error("a renewal failed, and not everything could be frozen again");
	}
	explicit_bzero(n->req.entropy, sizeof(n->req.entropy));
	if (s)
		stream_fail(s, err);
}

static int renewal_thaw(struct renewal *n, struct err *err)
{
	struct agent *a = n->agent;
	int rc;

	if (!n->stream)
		return err_text(err, ECANCELED, "the host has gone");
	if (n->hold) {
		rc = renew_state(n->run_dir, &n->req, n->serial, true, true);
		if (rc < 0)
			return err_set(err, -rc, "cannot write fork.json");
	}
	rc = renewal_return_apart(n);
	if (rc < 0)
		return err_set(err, -rc, "cannot put processes back into their cgroup");
	list_for_each (r, &a->contexts, struct repl, link)
		repl_replace_unready(r);
	return freezer_thaw(&a->freezer, err);
}

static void renewal_finish(struct renewal *n)
{
	struct stream *s = n->stream;
	struct err err;

	if (n->req.kind != RENEW_BOOT && renewal_thaw(n, &err) < 0) {
		renewal_fail(n, &err);
		return;
	}
	n->step = RENEWAL_NONE;
	n->stream = NULL;
	explicit_bzero(n->req.entropy, sizeof(n->req.entropy));
	stream_final(s, FRAME_OK,
		     json_pack("{s:s*}", "egress_error", *n->no_egress ? n->no_egress : NULL));
}

static void renewal_on_hooks_done(struct hooks *h, const struct err *err)
{
	struct renewal *n = h->arg;

	if (err)
		renewal_fail(n, err);
	else
		renewal_finish(n);
}

static void renewal_hooks(struct renewal *n)
{
	n->step = RENEWAL_HOOKS;
	hooks_run(&n->hooks, n->env, RENEWAL_ENV, renewal_on_hooks_done, n);
}

static void renewal_on_again(struct loop_timer *t)
{
	struct renewal *n = t->arg;
	bool any = false;

	if (n->step != RENEWAL_REPL)
		return;
	/* The end of one is reported on its own. */
	list_for_each (r, &n->agent->contexts, struct repl, link)
		if (r->renewing && hold_signal(r) == 0)
			any = true;
	if (any)
		loop_timer_set(&n->agent->loop, t, RENEWAL_AGAIN_NS);
}

/*
 * Sessions in native code, which are to keep their generators: what is left to be done is to call
 * their hooks, and their handlers do that before any other line, when they come to it.
 */
static void renewal_leave_late(struct renewal *n)
{
	struct err err;
	int rc = 0;

	list_for_each (r, &n->agent->contexts, struct repl, link) {
		if (rc == 0 && r->renewing && n->hold)
			rc = cgroup_freeze(r->cgroup, true);
		r->renewing = false;
	}
	loop_timer_cancel(&n->again);
	if (rc == 0) {
		renewal_hooks(n);
		return;
	}
	err_set(&err, -rc, "cannot freeze the Python session");
	renewal_fail(n, &err);
}

static void renewal_on_limit(struct loop_timer *t)
{
	struct renewal *n = t->arg;
	struct err err;

	if (!n->req.reseed) {
		renewal_leave_late(n);
		return;
	}
	err_text(&err, ETIMEDOUT,
		 "the Python session did not renew itself within %llu s: does it run a long call "
		 "of native code?",
		 RENEWAL_REPL_LIMIT_NS / 1000000000ull);
	renewal_fail(n, &err);
}

/* Sets a session's children apart, so that it alone can be thawed. */
static int renewal_hold_children(struct agent *a, struct repl *r)
{
	int rc = sweep_inside(&a->freezer.sweep, r->cgroup);

	if (rc == 0)
		rc = cgroup_has_others(r->cgroup, r->pid);
	if (rc <= 0)
		return rc;
	/* Root may have moved the session itself. */
	rc = cgroup_enter(r->cgroup, r->pid);
	if (rc < 0)
		return rc;
	r->apart = cgroup_new(&a->cgroups, "held");
	rc = r->apart ? cgroup_freeze(r->apart, true) : -errno;
	return rc == 0 ? cgroup_move(r->cgroup, r->apart, r->pid) : rc;
}

/* Whether this session has to be woken up now. */
static bool renewal_now(const struct repl *r)
{
	return repl_can_renew(r) && !r->owes;
}

/* Everything is set apart and told before any of them is thawed. */
static int renewal_repls(struct renewal *n, struct err *err)
{
	struct agent *a = n->agent;
	int rc = 0;

	list_for_each (r, &a->contexts, struct repl, link) {
		if (!renewal_now(r))
			continue;
		rc = renewal_hold_children(a, r);
		if (rc < 0)
			return err_set(err, -rc,
				       "cannot set the processes of the Python session apart");
		/* While it is frozen: its main thread runs no code of the user's before the
		 * handler. */
		rc = hold_renew(r, n->req.reseed);
		if (rc < 0)
			break;
		r->renewing = true;
	}
	n->step = RENEWAL_REPL;
	list_for_each (r, &a->contexts, struct repl, link)
		if (rc == 0 && r->renewing)
			rc = cgroup_freeze(r->cgroup, false);
	if (rc < 0)
		return err_set(err, -rc, "cannot reach the Python session");
	loop_timer_set(&a->loop, &n->limit, RENEWAL_REPL_LIMIT_NS);
	loop_timer_set(&a->loop, &n->again, RENEWAL_AGAIN_NS);
	return 0;
}

static unsigned renewal_count(const struct renewal *n, bool renewing)
{
	unsigned count = 0;

	list_for_each (r, &n->agent->contexts, struct repl, link)
		count += renewing ? r->renewing : renewal_now(r);
	return count;
}

static void renewal_repl_done(struct renewal *n, struct repl *r)
{
	struct err err;
	int rc = 0;

	r->renewing = false;
	if (n->hold)
		rc = cgroup_freeze(r->cgroup, true);
	if (rc < 0) {
		err_set(&err, -rc, "cannot freeze the Python session");
		renewal_fail(n, &err);
	} else if (renewal_count(n, true) == 0) {
		renewal_stop_timers(n);
		renewal_hooks(n);
	}
}

bool renewal_take_frame(struct renewal *n, struct repl *r, const struct frame *f)
{
	const char *text;
	struct err err;
	json_t *obj, *serial;

	if (f->type != FRAME_OK && f->type != FRAME_ERROR)
		return false;
	obj = json_loadb((const char *)f->payload, f->len, 0, NULL);
	serial = json_object_get(obj, "serial");
	if (!json_is_integer(serial)) {
		json_decref(obj);
		return false;
	}
	if (n->step == RENEWAL_NONE && json_integer_value(serial) == n->serial)
		freeze_paid(&n->agent->freezer, r, f->type == FRAME_OK);
	if (n->step != RENEWAL_REPL || !r->renewing || json_integer_value(serial) != n->serial) {
		json_decref(obj); /* one that came too late, or twice */
		return true;
	}
	text = json_string_value(json_object_get(obj, "message"));
	err_text(&err, EIO, "the Python session could not renew itself: %.400s",
		 text ? text : "it gave no reason");
	json_decref(obj);
	if (f->type == FRAME_OK)
		renewal_repl_done(n, r);
	else
		renewal_fail(n, &err);
	return true;
}

void renewal_repl_ended(struct renewal *n, struct repl *r)
{
	struct err err;

	/* The next one has nothing of its template's. */
	freeze_paid(&n->agent->freezer, r, true);
	if (n->step != RENEWAL_REPL || !r->renewing)
		return;
	err_text(&err, EIO, "the Python session ended while it was renewed");
	renewal_fail(n, &err);
}

/* Without egress a sandbox is of use, and none is what it gets when it cannot be had. */
static void renewal_egress(struct renewal *n)
{
	struct err err;

	*n->no_egress = '\0';
	if (egress_renew(&n->agent->egress, &n->req.egress, &err) < 0)
		snprintf(n->no_egress, sizeof(n->no_egress), "%.255s", err.msg);
}

/* The machine's own part. Random numbers first: if anything fails, it at least repeats nobody's. */
static int renewal_machine(struct renewal *n, struct err *err)
{
	const struct request_renew *r = &n->req;
	int rc = renew_kernel(&n->kept, r, err);

	if (rc == 0)
		rc = renew_etc(n->etc_dir, r, err);
	if (rc == 0)
		rc = renew_boot_id(&n->kept, n->run_dir, r, err);
	if (rc == 0)
		rc = renew_run(n->run_dir, r, err);
	if (rc == 0)
		renewal_egress(n);
	if (rc < 0 || r->kind == RENEW_BOOT)
		return rc;
	rc = hooks_load(&n->hooks, err);
	if (rc < 0)
		return rc;
	/* None goes on before the last of them is renewed. */
	n->hold = n->hooks.count > 0 || renewal_count(n, false) > 1;
	rc = renew_state(n->run_dir, r, n->serial, n->hold, false);
	return rc < 0 ? err_set(err, -rc, "cannot write fork.json") : 0;
}

static void renewal_make_env(struct renewal *n)
{
	const struct request_renew *r = &n->req;

	snprintf(n->env_text[0], sizeof(n->env_text[0]), "PODFLARE_FORK_GENERATION=%" PRId64,
		 r->generation);
	snprintf(n->env_text[1], sizeof(n->env_text[1]), "PODFLARE_FORK_KIND=%s",
		 request_kind_name(r->kind));
	snprintf(n->env_text[2], sizeof(n->env_text[2]), "PODFLARE_SANDBOX_ID=%s", r->id);
	for (int i = 0; i < RENEWAL_ENV; i++)
		n->env[i] = n->env_text[i];
}

static int renewal_start(struct renewal *n, struct err *err)
{
	struct agent *a = n->agent;
	int rc;

	if (n->req.kind != RENEW_BOOT)
		list_for_each (r, &a->contexts, struct repl, link)
			r->owes = repl_can_defer(r) && !r->stands && !r->to_stand;
	rc = renewal_machine(n, err);
	if (rc < 0)
		return rc;
	if (n->req.kind == RENEW_BOOT) {
		renewal_finish(n);
		return 0;
	}
	renewal_make_env(n);
	/* Each group is frozen by itself as well. */
	rc = cgroups_freeze(&a->cgroups, false);
	if (rc < 0)
		return err_set(err, -rc, "cannot thaw the cgroup of all processes");
	if (renewal_count(n, false) > 0)
		return renewal_repls(n, err);
	renewal_hooks(n);
	return 0;
}

/* Whether this kind of renewal fits the state of the machine. */
static int renewal_check(const struct renewal *n, enum request_kind kind, struct err *err)
{
	enum freeze_state state = n->agent->freezer.state;

	if (n->step != RENEWAL_NONE || (state != FREEZE_NONE && state != FREEZE_FROZEN))
		return err_text(err, EBUSY, "freezing or renewing is not finished yet");
	if ((kind == RENEW_BOOT) == (state == FREEZE_FROZEN))
		return err_text(err, EINVAL,
				kind == RENEW_BOOT ? "a frozen machine has not just booted"
						   : "only a frozen machine is a copy");
	return 0;
}

void renewal_begin(struct stream *s, const struct request_renew *r)
{
	struct renewal *n = &s->agent->renewal;
	struct err err;

	if (renewal_check(n, r->kind, &err) < 0) {
		stream_fail(s, &err);
		return;
	}
	if (r->kind != RENEW_BOOT) {
		/* Their peers talk to the machine of which this is a copy. */
		list_for_each (c, &n->agent->contexts, struct repl, link)
			repl_abandon_waiting(c);
		server_abandon_streams(&n->agent->server, s);
	}
	n->req = *r;
	n->stream = s;
	n->serial++;
	n->hold = false;
	stream_set_job(s, &renewal_ops, n);
	if (renewal_start(n, &err) < 0)
		renewal_fail(n, &err);
	n->req.egress.ca = NULL; /* the caller's */
}
