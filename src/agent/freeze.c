/* SPDX-License-Identifier: Apache-2.0 */
/*
 * FREEZE writes a file of the parent cgroup, which holds for all groups
 * below, then one of each group, and looks whether the kernel is done: soon at first, later less
 * often. (Its notification may come 10 ms late, for it is rate limited.) Then it is the turn
 * of what is outside of these groups (sweep.h).
 *
 * A session that stands still between its vfork() and the exec of the child,
 * as in subprocess.run(), could not renew itself in the copy: its child is held
 * until that is done. So all may go on for a moment, and are frozen again.
 */
#define _GNU_SOURCE
#include "agent/freeze.h"
#include "agent/agent.h"
#include "agent/hold.h"
#include "agent/request.h"
#include "agent/stream.h"
#include "lib/io.h"
#include "lib/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FREEZE_LIMIT_NS 5000000000ull
#define FREEZE_FIRST_NS 1000000ull
/* Nearly always it is done within these short waits, less than the loop's timers can measure. */
#define FREEZE_TRIES   16
#define FREEZE_TRY_US  20
#define FREEZE_LAST_NS 10000000ull
/*
 * How long a session may need for an exec, and the first of the moments that it gets for it: each
 * is twice as long as the one before, for nobody knows how slow or busy the machine is.
 */
#define FREEZE_EXEC_NS 2000000000ull
#define FREEZE_ON_NS   2000000ull

static void freeze_on_timer(struct loop_timer *t);

void freezer_init(struct freezer *f, struct agent *a)
{
	*f = (struct freezer){.agent = a};
	f->timer = (struct loop_timer){.fn = freeze_on_timer, .arg = f};
	sweep_init(&f->sweep, &a->cgroups);
}

bool freeze_allows(const struct agent *a, uint8_t type)
{
	if (a->freezer.state == FREEZE_NONE)
		return true;
	return type == FRAME_THAW || type == FRAME_RENEW || type == FRAME_STATUS ||
	       type == FRAME_CHANGES || type == FRAME_HASHES;
}

static void freeze_rest(struct freezer *f, const struct stream *except)
{
	server_rest_streams(&f->agent->server, except);
	alarms_rest(f->agent);
}

int freezer_thaw(struct freezer *f, struct err *err)
{
	struct agent *a = f->agent;
	int rc = sweep_undo(&f->sweep);

	if (rc == 0)
		rc = cgroups_freeze_each(&a->cgroups, false, NULL);
	if (rc == 0)
		rc = cgroups_freeze(&a->cgroups, false);
	if (rc < 0)
		return err_set(err, -rc, "cannot thaw the processes");
	loop_timer_cancel(&f->timer);
	hold_end(a);
	list_for_each (r, &a->contexts, struct repl, link)
		hold_release(r);
	f->state = FREEZE_NONE;
	f->must_renew = false;
	alarms_wake(a);
	server_wake_streams(&a->server);
	return 0;
}

/* The FREEZE that waits is over without success. */
static void freeze_give_up(struct freezer *f)
{
	struct err err;

	f->stream = NULL;
	list_for_each (r, &f->agent->contexts, struct repl, link)
		r->paying = false;
	if (freezer_thaw(f, &err) < 0)
		log_error("%s", err.msg);
}

static void freeze_on_gone(void *job)
{
	freeze_give_up(job);
}

static const struct stream_ops freeze_ops = {
	.gone = freeze_on_gone,
};

static void freeze_fail(struct freezer *f, int num, const char *what)
{
	struct stream *s = f->stream;

	freeze_give_up(f);
	stream_error(s, num, "the processes could not be frozen: %s", what);
}

/*
 * One thread, from its line in /proc. Of what is frozen only those of vfork() sleep so deeply (D),
 * and they are woken for a moment by the freezing: -EAGAIN when it has not gone back to sleep.
 */
static int freeze_thread_waits(int tasks, const char *tid)
{
	_cleanup_fd int fd = -1;
	char buf[256], *p;
	ssize_t n;

	snprintf(buf, sizeof(buf), "%.20s/stat", tid);
	fd = openat(tasks, buf, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : io_read_some(fd, buf, sizeof(buf) - 1);
	if (n <= 0)
		return 0;
	buf[n] = '\0';
	p = strrchr(buf, ')'); /* the name before it may have any character */
	if (p && strncmp(p, ") R", 3) == 0)
		return -EAGAIN;
	return p && strncmp(p, ") D", 3) == 0;
}

static int freeze_session_waits(const struct repl *r)
{
	struct dirent *e;
	int waits = 0;
	char path[48];
	DIR *d;

	/* Its child would be in the same group. */
	if (!r->pid || !r->cgroup || cgroup_has_others(r->cgroup, r->pid) <= 0)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)r->pid);
	d = opendir(path);
	while (d && waits == 0 && (e = readdir(d)))
		waits = e->d_name[0] == '.' ? 0 : freeze_thread_waits(dirfd(d), e->d_name);
	if (d)
		closedir(d);
	return waits;
}

/* Whether there is a session in such a moment, and time left for it; -EAGAIN: it cannot be told. */
static int freeze_came_amiss(const struct freezer *f)
{
	int rc = 0;

	if (io_now_ns() - f->since_ns > FREEZE_EXEC_NS)
		return 0;
	list_for_each (r, &f->agent->contexts, struct repl, link)
		if (rc == 0)
			rc = freeze_session_waits(r);
	return rc;
}

static void freeze_let_on(struct freezer *f)
{
	struct cgroups *cs = &f->agent->cgroups;
	int rc = cgroups_freeze_each(cs, false, NULL);

	if (rc == 0)
		rc = cgroups_freeze(cs, false);
	if (rc < 0) {
		freeze_fail(f, EIO, "the cgroup cannot be written");
		return;
	}
	f->lets_on = true;
	loop_timer_set(&f->agent->loop, &f->timer, f->on_ns);
	f->on_ns *= 2;
}

/* Whether everything stands still: 1, 0, -errno. */
static int freeze_look(struct freezer *f)
{
	const struct cgroups *cs = &f->agent->cgroups;
	int rc = cgroups_frozen(cs);

	if (rc <= 0)
		return rc;
	rc = sweep_look(&f->sweep, io_now_ns() - f->since_ns < FREEZE_EXEC_NS);
	/* What was still running elsewhere may have thawed it. */
	return rc > 0 && f->sweep.others ? cgroups_frozen(cs) : rc;
}

static void freeze_check(struct freezer *f, int tries)
{
	struct stream *s = f->stream;
	int rc = freeze_look(f), amiss;

	for (int i = 0; i < tries && rc == 0; i++) {
		usleep(FREEZE_TRY_US);
		rc = freeze_look(f);
	}

	amiss = rc > 0 ? freeze_came_amiss(f) : 0;
	if (rc < 0) {
		freeze_fail(f, EIO,
			    "their state cannot be read, or some that are outside of the "
			    "sandbox's own groups cannot be stopped");
	} else if (amiss > 0) {
		freeze_let_on(f);
	} else if (rc > 0 && amiss == 0) {
		f->state = FREEZE_FROZEN;
		f->stream = NULL;
		stream_final(s, FRAME_OK, json_pack("{s:i}", "groups", (int)f->groups));
	} else if (io_now_ns() - f->since_ns > FREEZE_LIMIT_NS) {
		freeze_fail(f, EIO, "some did not stop within 5 seconds");
	} else {
		loop_timer_set(&f->agent->loop, &f->timer, f->step_ns);
		if (f->step_ns < FREEZE_LAST_NS)
			f->step_ns += f->step_ns / 2;
	}
}

static void freeze_groups(struct freezer *f)
{
	struct agent *a = f->agent;
	int rc = cgroups_freeze(&a->cgroups, true);

	f->lets_on = false;
	f->step_ns = FREEZE_FIRST_NS;
	/* Each by itself as well: a renewal thaws the parent, and then some of them. */
	if (rc == 0)
		rc = cgroups_freeze_each(&a->cgroups, true, &f->groups);
	if (rc < 0)
		freeze_fail(f, EIO, "the cgroup cannot be written");
	else
		freeze_check(f, FREEZE_TRIES);
}

static void freeze_on_timer(struct loop_timer *t)
{
	struct freezer *f = t->arg;

	if (f->state == FREEZE_PAYING)
		freeze_fail(f, EIO, "the Python session does not answer");
	else if (f->state == FREEZE_HOLDING)
		freeze_held(f);
	else if (f->lets_on)
		freeze_groups(f);
	else
		freeze_check(f, 0);
}

static void freeze_all(struct freezer *f)
{
	f->state = FREEZE_WAITING;
	f->since_ns = io_now_ns();
	f->on_ns = FREEZE_ON_NS;
	freeze_rest(f, f->stream);
	freeze_groups(f);
}

void freeze_held(struct freezer *f)
{
	loop_timer_cancel(&f->timer);
	hold_end(f->agent);
	freeze_all(f);
}

static void freeze_hold(struct freezer *f)
{
	f->state = FREEZE_HOLDING;
	if (hold_begin(f->agent))
		loop_timer_set(&f->agent->loop, &f->timer, HOLD_LIMIT_NS);
	else
		freeze_all(f);
}

void freeze_paid(struct freezer *f, struct repl *r, bool ok)
{
	/* After a failure it is still owed. */
	r->owes = r->owes && !ok;
	r->asked = false;
	if (!r->paying)
		return;
	r->paying = false;
	if (!ok) {
		loop_timer_cancel(&f->timer);
		freeze_fail(f, EIO, "the Python session could not renew itself");
		return;
	}
	list_for_each (other, &f->agent->contexts, struct repl, link)
		if (other->paying)
			return;
	loop_timer_cancel(&f->timer);
	freeze_hold(f);
}

void freeze_begin(struct stream *s)
{
	struct agent *a = s->agent;
	struct freezer *f = &a->freezer;

	f->stream = s;
	stream_set_job(s, &freeze_ops, f);
	/* Or copies that are to repeat what a session does (reseed: false) would not. */
	list_for_each (r, &a->contexts, struct repl, link) {
		if (!r->owes)
			continue;
		r->paying = true;
		f->state = FREEZE_PAYING;
		repl_pay(r);
	}
	if (f->state == FREEZE_PAYING)
		loop_timer_set(&a->loop, &f->timer, FREEZE_LIMIT_NS);
	else
		freeze_hold(f);
}

/* What the copies know of the kernel's random numbers is of no use to them from here on. */
static int freeze_reseed(struct freezer *f, const struct request_thaw *r, struct err *err)
{
	int rc = r->reseed ? renew_random(&f->agent->renewal.kept, r->entropy, err) : 0;

	if (rc < 0)
		log_error("%s", err->msg);
	return rc;
}

static void freeze_end(struct freezer *f, struct stream *s, const struct request_thaw *r)
{
	struct err err, why;
	/* Nobody is helped by a machine that stays frozen: the host is told. */
	bool failed = freeze_reseed(f, r, &why) < 0;

	if (freezer_thaw(f, &err) < 0)
		stream_fail(s, &err);
	else
		stream_final(s, FRAME_OK,
			     json_pack("{s:s*}", "entropy_error", failed ? why.msg : NULL));
}

void freeze_thaw(struct stream *s, const struct request_thaw *r)
{
	struct freezer *f = &s->agent->freezer;

	if (f->state == FREEZE_NONE)
		stream_error(s, EINVAL, "nothing is frozen");
	else if (f->state != FREEZE_FROZEN || s->agent->renewal.step)
		stream_error(s, EBUSY, "freezing or renewing is not finished yet");
	else if (f->must_renew)
		stream_error(s, EINVAL,
			     "the renewal has failed: nothing may run before another one");
	else
		freeze_end(f, s, r);
}
