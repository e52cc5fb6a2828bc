/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a cell: by itself, by an interrupt, a CANCEL, its deadline, or
 * because the session dies under it.
 *
 * A cell that must end gets SIGINT at once and again after one step, and after
 * two the REPL is killed whole, with its state (exec.h). What such a cell has started
 * is killed and dead before its EXIT, unless it does not die within another step: then EXIT is sent
 * without it, and the REPL goes on dying without a cell. What another cell leaves behind lives on.
 *
 * Steps: EXIT or the death of the session (over), the death of what has to die,
 * the rest of the output (delivers), EXIT to the host.
 */
#define _GNU_SOURCE
#include "agent/agent.h"
#include "agent/cell.h"
#include "agent/output.h"
#include "agent/stream.h"
#include "lib/log.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static void cell_on_last_output(struct output *o);

/* Takes the running cell out of the REPL and answers its stream. */
static void cell_finish(struct repl *r)
{
	struct repl_cell *c = r->cell;

	r->cell = NULL;
	if (c->stream && c->undead)
		cell_notice(c, "%s", EXEC_UNDEAD);
	if (c->stream)
		stream_final(c->stream, FRAME_EXIT, exec_exit_object(&c->end, r->output));
	output_discard(r->output);
	cell_free(c);
}

/* SIGINT to the session and to what the cell has started. */
void cell_interrupt(struct repl *r)
{
	r->cell->interrupts++;
	if (r->pid && cgroup_signal(r->cgroup, SIGINT) < 0)
		kill(-r->pid, SIGINT);
}

/* The next harder means against a cell that must end. */
static void cell_press(struct repl *r)
{
	struct repl_cell *c = r->cell;

	if (c->presses++ == 2) {
		repl_kill(r, NULL);
		return;
	}
	cell_interrupt(r);
	alarm_set(&c->alarm, exec_step_ns(&c->req));
	/* These may end the cell, when only a reader was missing. */
	output_set_lossy(r->output);
	if (r->held == HELD_ROOM)
		repl_resume(r);
}

void cell_must_end(struct repl *r, enum exec_stop stop)
{
	if (exec_must_end(r->cell->end.stop) || r->cell->over)
		return;
	r->cell->end.stop = stop;
	alarm_set(&r->cell->last, EXEC_TELL_STEPS * exec_step_ns(&r->cell->req));
	cell_press(r);
}

/* All is dead that has to be. */
static void cell_deliver_rest(struct repl *r)
{
	struct repl_cell *c = r->cell;

	c->delivers = true;
	if (r->buried)
		repl_last_output(r);
	else
		output_end(r->output, cell_on_last_output, r);
}

static void cell_on_dead(void *arg)
{
	struct repl *r = arg;

	alarm_cancel(&r->cell->death);
	if (r->dying)
		cgroup_stop_waiting(r->dying);
	if (r->cgroup)
		cgroup_stop_waiting(r->cgroup);
	cell_deliver_rest(r);
}

void cell_on_alarm(void *arg)
{
	struct repl_cell *c = arg;
	struct repl *r = c->repl;

	if (c != r->cell) {
		cell_notice(c, "The time limit was over before the Python session was ready: this "
			       "code was not run.");
		cell_end_waiting(c, EXEC_TIMED_OUT);
	} else if (c->over) {
		/* It has ended by itself: this is now the deadline of its output. */
		alarm_set(&c->last, EXEC_TELL_STEPS * exec_step_ns(&c->req));
	} else if (exec_must_end(c->end.stop)) {
		cell_press(r);
	} else {
		cell_must_end(r, c->too_much ? EXEC_OVER_LIMIT : EXEC_TIMED_OUT);
	}
}

/* Its output is read just now: what follows from it comes next. */
void cell_on_limit(void *arg)
{
	struct repl_cell *c = arg;

	c->too_much = true;
	if (!c->over && !exec_must_end(c->end.stop))
		alarm_set(&c->alarm, 1);
}

void cell_on_death(void *arg)
{
	struct repl_cell *c = arg;

	cell_on_dead(c->repl);
}

static void cell_on_given_up(struct output *o)
{
	cell_finish(o->arg);
}

/* The session has been killed, and has not died. It goes on with that without its cell. */
static void cell_give_up(struct repl *r)
{
	struct repl_cell *c = r->cell;

	repl_kill(r, NULL);
	alarm_cancel(&c->alarm);
	c->over = true;
	c->end.lost = true;
	c->end.exit_code = 128 + SIGKILL;
	r->lost = !r->replace;
	snprintf(r->lost_why, sizeof(r->lost_why), "the code could not be stopped");
	output_end(r->output, cell_on_given_up, r);
}

void cell_on_last(void *arg)
{
	struct repl_cell *c = arg;
	struct repl *r = c->repl;

	/* Its reader may be all that it waited for. */
	output_hurry(r->output);
	if (r->cell != c)
		return;
	c->undead = true;
	if (c->over)
		cell_on_dead(r);
	else
		cell_give_up(r);
}

/* Waits until everything in the group is dead. */
static void cell_await_death(struct repl *r, struct cgroup *group)
{
	if (!exec_must_end(r->cell->end.stop))
		alarm_set(&r->cell->death, EXEC_DEATH_NS);
	cgroup_when_empty(&r->agent->cgroups, group, cell_on_dead, r);
}

/*
 * The session moves on into a new group; *left is the old one, with what the
 * cell has started, or NULL when there is nothing of that kind.
 */
static int cell_leave_group(struct repl *r, struct cgroup **left)
{
	struct agent *a = r->agent;
	struct cgroup *new;
	int rc;

	*left = NULL;
	if (!r->pid || cgroup_has_others(r->cgroup, r->pid) <= 0)
		return 0;
	new = cgroup_new(&a->cgroups, "repl");
	if (!new)
		return -errno;
	/* Each group of a frozen machine is frozen by itself as well (renewal.c); not before the
	 * session has stood still, or paid, for which it has to run. */
	rc = a->freezer.state >= FREEZE_WAITING ? cgroup_freeze(new, true) : 0;
	if (rc == 0)
		rc = cgroup_enter(new, r->pid);
	if (rc < 0) {
		cgroup_release(&a->cgroups, new);
		return rc;
	}
	*left = r->cgroup;
	r->cgroup = new;
	return 0;
}

static void cell_on_last_output(struct output *o)
{
	struct repl *r = o->arg;
	bool interrupted = r->cell->interrupts > 0;

	cgroup_release(&r->agent->cgroups, r->dying);
	r->dying = NULL;
	cell_finish(r);
	/* A SIGINT that crossed the EXIT must not hit the next cell. */
	if (interrupted)
		repl_settle(r);
	else
		repl_begin_next(r);
	repl_go_on(r);
}

/* The cell is over: whether it has to be, and what it has started with it. */
static bool cell_is_to_end(struct repl *r)
{
	struct repl_cell *c = r->cell;

	if (!exec_must_end(c->end.stop) && output_is_over(r->output)) {
		c->end.stop = EXEC_OVER_LIMIT;
		alarm_set(&c->last, EXEC_TELL_STEPS * exec_step_ns(&c->req));
	}
	return exec_must_end(c->end.stop);
}

/* EXIT has come. The REPL is held until the cell is finished. */
enum cell_took cell_ends(struct repl *r, int exit_code)
{
	struct repl_cell *c = r->cell;
	bool must_end = cell_is_to_end(r);
	bool oom = cgroup_oom_kills(r->cgroup) > c->oom_before;
	struct cgroup *left;
	int rc = cell_leave_group(r, &left);

	if (rc < 0 && must_end) {
		repl_kill(r, "it could not be parted from what the code had started");
		return CELL_TOOK;
	}
	if (rc < 0)
		log_error("a Python session keeps the group of a cell: %s", strerror(-rc));
	r->held = HELD_END;
	c->over = true;
	c->end.exit_code = exit_code;
	c->end.oom = oom;
	if (must_end)
		alarm_cancel(&c->alarm);
	if (c->stream && oom)
		cell_notice(c, "The sandbox ran out of memory: the kernel ended a process that "
			       "this code had started.");
	if (left && must_end) {
		r->dying = left;
		cgroup_kill(left);
		cell_await_death(r, left);
	} else {
		cgroup_release(&r->agent->cgroups, left);
		cell_deliver_rest(r);
	}
	return CELL_ENDS;
}

void cell_dies(struct repl *r)
{
	r->cell->over = true;
	if (cell_is_to_end(r))
		alarm_cancel(&r->cell->alarm);
	cell_await_death(r, r->cgroup);
}

void cell_died(struct repl *r, const char *why)
{
	struct repl_cell *c = r->cell;

	exec_end_from_wait(&c->end, r->wstatus);
	c->end.lost = true;
	c->end.oom = cgroup_oom_kills(r->cgroup) > c->oom_before;
	if (c->end.stop == EXEC_CANCELLED)
		why = "the code did not stop when it was cancelled";
	else if (c->end.stop == EXEC_TIMED_OUT)
		why = "the code did not stop at its time limit";
	else if (c->end.stop == EXEC_OVER_LIMIT)
		why = "it ended when it had written more than it may";
	else if (r->replace || r->doomed)
		why = "it was ended on request";
	r->lost = !r->replace;
	snprintf(r->lost_why, sizeof(r->lost_why), "%s", why);
	if (c->stream)
		cell_notice(c,
			    "The Python session ended (%s)%s: variables, functions and imports are "
			    "lost.",
			    why, r->doomed ? "" : ". A new one is being started");
	cell_finish(r);
}
