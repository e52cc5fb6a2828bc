/* SPDX-License-Identifier: Apache-2.0 */
/*
 * REPL process: its beginning, and its end.
 *
 * Its end: reaped first; then the frames that it still sent are taken, then
 * the output it still wrote is delivered, and only then it is buried and a
 * new one started.
 */
#define _GNU_SOURCE
#include "agent/repl.h"
#include "agent/agent.h"
#include "agent/cell.h"
#include "agent/hold.h"
#include "agent/output.h"
#include "agent/spawn.h"
#include "agent/stream.h"
#include "agent/warm.h"
#include "lib/io.h"
#include "lib/log.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>

static void repl_on_reaped(struct reap_child *c, int wstatus);

void repl_init(struct repl *r, struct agent *a, const char *script, const char *id)
{
	*r = (struct repl){.agent = a, .script = script, .ctl_fd = -1};
	list_init(&r->link);
	snprintf(r->id, sizeof(r->id), "%s", id);
	alarm_init(&r->busy_timer, a, cell_on_busy_timer, r);
	r->child = (struct reap_child){
		.fn = repl_on_reaped,
		.stopped = hold_on_stopped,
		.arg = r,
	};
	list_init(&r->waiting);
	repl_ctl_init(r);
}

const char *repl_state_name(const struct repl *r)
{
	if (r->replace)
		return "starting";
	switch (r->state) {
	case REPL_ABSENT:
		return "absent";
	case REPL_STARTING:
		return "starting";
	case REPL_READY:
	case REPL_SETTLING:
		return "ready";
	case REPL_BUSY:
	case REPL_WARMING:
		return "busy";
	}
	return "absent";
}

static int repl_spawn(struct repl *r, int ctl, int out, int errfd)
{
	char python[] = "python3", dash_u[] = "-u", ctl_env[] = "REPL_CTL=3";
	_cleanup_free char *script = strdup(r->script);
	char *argv[] = {python, dash_u, script, NULL};
	char *extra[] = {ctl_env};
	const struct user *user = r->root ? &r->agent->root : &r->agent->user;
	/* One that is not there any more: the home, as for commands. */
	_cleanup_fd int dir = r->dir ? open(r->dir, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
	char **env = env_build(user, extra, 1);
	struct spawn sp = {
		.path = "/usr/bin/python3",
		.argv = argv,
		.envp = env,
		.user = user,
		.cgroup_fd = r->cgroup->dirfd,
		.cwd_fd = dir,
		.in_fd = -1,
		.out_fd = out,
		.err_fd = errfd,
		.extra_fd = ctl,
	};
	pid_t pid = env && script ? spawn_process(&sp) : -ENOMEM;

	env_free(env);
	return pid;
}

static int repl_launch(struct repl *r, struct err *err)
{
	_cleanup_fd int out = -1, errfd = -1, theirs = -1;
	int pair[2], pid;

	r->cgroup = cgroup_new(&r->agent->cgroups, "repl");
	if (!r->cgroup)
		return err_set(err, errno, "cannot make a cgroup for the Python session");
	r->output = output_open(r->agent, &out, &errfd);
	if (!r->output)
		return err_set(err, errno, "cannot make pipes for the Python session");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return err_set(err, errno, "cannot make a socket for the Python session");
	r->ctl_fd = pair[0];
	theirs = pair[1];
	if (io_set_nonblock(r->ctl_fd, 1) < 0)
		return err_set(err, errno, "cannot set up the socket of the Python session");
	pid = repl_spawn(r, theirs, out, errfd);
	if (pid < 0)
		return err_set(err, -pid, "cannot start the Python session");
	r->pid = r->child.pid = pid;
	reaper_watch(&r->agent->reaper, &r->child);
	return 0;
}

/* Gives up all that belongs to one process; r is as after repl_init() but for its cells. */
static void repl_clear(struct repl *r)
{
	alarm_cancel(&r->timer);
	loop_del(&r->ctl);
	close_fd(&r->ctl_fd);
	frame_reader_free(&r->ctl_in);
	frame_writer_free(&r->ctl_out);
	output_abandon(r->output);
	cgroup_release(&r->agent->cgroups, r->cgroup);
	cgroup_release(&r->agent->cgroups, r->dying);
	cgroup_release(&r->agent->cgroups, r->apart);
	r->output = NULL;
	r->cgroup = r->dying = r->apart = NULL;
	r->renewing = false;
	r->pid = 0;
	r->fault = NULL;
	r->held = HELD_NOTHING;
	r->exited = r->buried = r->ctl_eof = r->replace = false;
	r->quiet = r->owes = r->asked = r->paying = false;
	r->late_reads = 0;
	r->event_bytes = 0;
	r->egress = EGRESS_OFF;
	r->state = REPL_ABSENT;
}

void repl_start(struct repl *r)
{
	struct err err;

	if (r->state != REPL_ABSENT)
		return;
	if (repl_launch(r, &err) < 0) {
		log_error("%s", err.msg);
		repl_clear(r);
		cell_refuse_waiting(r, &err);
		warm_refuse(r, &err);
		return;
	}
	r->state = REPL_STARTING;
	repl_update_ctl(r);
}

void repl_restart(struct repl *r)
{
	if (r->state == REPL_ABSENT) {
		repl_start(r);
		return;
	}
	r->replace = true;
	repl_kill(r, NULL);
}

static void repl_free(struct repl *r)
{
	alarm_cancel(&r->busy_timer);
	free(r->dir);
	loop_defer_free(&r->agent->loop, r);
}

void repl_end(struct repl *r)
{
	r->doomed = true;
	if (r->state == REPL_ABSENT)
		repl_free(r);
	else
		repl_kill(r, NULL);
}

/* One has been buried. */
static void repl_start_again(struct repl *r)
{
	repl_clear(r);
	if (r->doomed)
		repl_free(r);
	else
		repl_start(r);
}

void repl_abandon_waiting(struct repl *r)
{
	list_for_each_safe (c, &r->waiting, struct repl_cell, link)
		stream_abandon(c->stream);
}

bool repl_can_renew(const struct repl *r)
{
	return r->pid > 0 && r->state >= REPL_READY && repl_lives(r) && !r->ctl_eof;
}

bool repl_can_defer(const struct repl *r)
{
	return repl_can_renew(r) && r->state == REPL_READY && r->quiet;
}

void repl_pay(struct repl *r)
{
	if (!r->owes || r->asked)
		return;
	r->asked = true;
	if (frame_put(&r->ctl_out, FRAME_RENEW, NULL, 0) < 0)
		repl_kill(r, "its control channel has no room");
	repl_update_ctl(r);
}

void repl_note_quiet(struct repl *r, const struct frame *f)
{
	json_t *obj = json_loadb((const char *)f->payload, f->len, 0, NULL);

	r->quiet = json_is_true(json_object_get(obj, "quiet"));
	json_decref(obj);
}

void repl_replace_unready(struct repl *r)
{
	if (r->state != REPL_STARTING || r->exited)
		return;
	r->replace = true;
	repl_kill(r, NULL);
}

void repl_kill(struct repl *r, const char *fault)
{
	if (fault && !r->fault)
		r->fault = fault;
	cgroup_kill(r->cgroup);
	/* Not its process group, in which is what earlier cells have left, unless there is no other
	 * way. */
	if (r->pid)
		kill(r->cgroup && r->cgroup->dirfd >= 0 ? r->pid : -r->pid, SIGKILL);
}

static void repl_on_reaped(struct reap_child *c, int wstatus)
{
	struct repl *r = c->arg;

	r->pid = 0;
	r->wstatus = wstatus;
	r->exited = true;
	loop_del(&r->ctl);
	hold_forget(r);
	renewal_repl_ended(&r->agent->renewal, r);
	/* Its children lose their session with it; what they hold is free for the next one. */
	cgroup_kill(r->cgroup);
	repl_take_frames(r);
}

/* How it ended, as a part of a sentence. */
static void repl_describe_end(const struct repl *r, char *buf, size_t size)
{
	const char *abbrev = WIFSIGNALED(r->wstatus) ? sigabbrev_np(WTERMSIG(r->wstatus)) : NULL;

	if (r->fault)
		snprintf(buf, size, "ended by the agent: %s", r->fault);
	else if (WIFSIGNALED(r->wstatus) && cgroup_oom_kills(r->cgroup) > 0)
		snprintf(buf, size, "ended by the kernel: the sandbox is out of memory");
	else if (WIFSIGNALED(r->wstatus))
		snprintf(buf, size, "killed by signal %d%s%s", WTERMSIG(r->wstatus),
			 abbrev ? ", SIG" : "", abbrev ? abbrev : "");
	else
		snprintf(buf, size, "exit status %d", WEXITSTATUS(r->wstatus));
}

static void repl_on_last_output(struct output *o)
{
	struct repl *r = o->arg;
	char why[sizeof(r->lost_why)];

	repl_describe_end(r, why, sizeof(why));
	if (r->cell)
		cell_died(r, why);
	repl_start_again(r);
}

void repl_last_output(struct repl *r)
{
	output_end(r->output, repl_on_last_output, r);
}

static void repl_died_idle(struct repl *r)
{
	bool was_ready = r->state >= REPL_READY;
	bool wanted = r->replace || r->doomed;
	struct err err;
	char why[sizeof(r->lost_why)];

	repl_describe_end(r, why, sizeof(why));
	if (r->state == REPL_WARMING) {
		err_text(&err, EIO, "the Python session ended while it was warmed up (%s)", why);
		warm_refuse(r, &err);
	}
	/* Not when its last cell has told of it already. */
	if (was_ready && !wanted && !r->lost) {
		r->lost = true;
		memcpy(r->lost_why, why, sizeof(why));
	}
	if (was_ready || wanted) {
		repl_start_again(r);
		return;
	}
	/* Dead before it was ready: trying again at once would loop. The next cell does. */
	output_discard(r->output);
	err_text(&err, EIO, "the Python session does not start (%s)%s%.*s", why,
		 r->output->tail_len ? ": " : "", (int)r->output->tail_len, r->output->tail);
	log_error("%s", err.msg);
	repl_clear(r);
	cell_refuse_waiting(r, &err);
	warm_refuse(r, &err);
}

void repl_bury(struct repl *r)
{
	if (r->buried)
		return;
	r->buried = true;
	/* A frame that is still held after a fault is not passed on any more. */
	r->held = HELD_END;
	if (r->cell)
		cell_dies(r);
	else
		repl_died_idle(r);
}
