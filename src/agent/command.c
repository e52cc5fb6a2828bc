/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One command. Life: start, then the end of its first process (reap), then, if
 * it was made to end, that of all others, then the drain of what it wrote, then
 * EXIT. The job outlives its stream when the peer goes away: then it only waits
 * for the end of what it has killed; and when its end had to be told before it had died.
 *
 * Deadline: SIGINT, SIGTERM and SIGKILL, a step apart; after another one EXIT (exec.h).
 */
#define _GNU_SOURCE
#include "agent/command.h"
#include "agent/agent.h"
#include "agent/contexts.h"
#include "agent/feed.h"
#include "agent/output.h"
#include "agent/path.h"
#include "agent/program.h"
#include "agent/spawn.h"
#include "agent/stream.h"
#include "agent/terminal.h"
#include "lib/io.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct command {
	struct agent *agent;
	struct stream
		*stream; /* NULL when the peer is gone, or talks to the original of this copy */
	struct command_owner owner; /* of a kept command; it has no stream */
	struct output *output;
	struct feed own_feed;
	struct feed *feed; /* that one, or the owner's; NULL: no input */
	char *cwd;         /* for the owner */
	struct cgroup *cgroup;
	struct reap_child child;
	struct alarm alarm; /* deadline, next step against what must end */
	struct alarm last;  /* the end is told */
	uint64_t step_ns;
	unsigned step; /* of the deadline */
	bool over;     /* all is dead that has to be; the last of the output is delivered */
	bool undead;   /* or not, but it is not awaited any longer */
	bool told;     /* its end: only the death of its process is awaited */
	bool too_much; /* it wrote more than it may */
	struct exec_end end;
};

static void command_free(struct command *c)
{
	alarm_cancel(&c->alarm);
	alarm_cancel(&c->last);
	feed_close(&c->own_feed);
	output_abandon(c->output);
	cgroup_release(&c->agent->cgroups, c->cgroup);
	free(c->cwd);
	free(c);
}

/* It has been killed and does not die: all of it goes but what waits for that. */
static void command_linger(struct command *c)
{
	c->told = true;
	c->stream = NULL;
	c->owner = (struct command_owner){0};
	c->feed = NULL;
	alarm_cancel(&c->alarm);
	alarm_cancel(&c->last);
	feed_close(&c->own_feed);
	output_abandon(c->output);
	c->output = NULL;
}

static void command_notice(const struct command *c, const char *text)
{
	stream_put_json(c->stream, FRAME_EVENT,
			json_pack("{s:s, s:s}", "type", "notice", "text", text));
}

static void command_end(struct command *c)
{
	struct command_owner owner = c->owner;
	struct exec_end end = c->end;

	if (c->child.pid)
		command_linger(c);
	else
		command_free(c);
	if (owner.ended)
		owner.ended(owner.arg, &end);
}

static void command_on_drained(struct output *o)
{
	struct command *c = o->arg;
	struct stream *s = c->stream;

	c->end.oom = cgroup_oom_kills(c->cgroup) > 0;
	if (s) {
		if (c->end.oom)
			command_notice(c, "The sandbox ran out of memory: the kernel ended a "
					  "process of this command.");
		if (c->undead)
			command_notice(c, EXEC_UNDEAD);
		stream_final(s, FRAME_EXIT, exec_exit_object(&c->end, c->output));
	}
	command_end(c);
}

/* Everything is dead that has to be, or has been waited for long enough. */
static void command_on_dead(void *arg)
{
	struct command *c = arg;

	c->over = true;
	cgroup_stop_waiting(c->cgroup);
	/* The deadline of one that has ended by itself is now that of its output. */
	if (exec_must_end(c->end.stop))
		alarm_cancel(&c->alarm);
	output_end(c->output, command_on_drained, c);
}

static void command_must_end(struct command *c, enum exec_stop stop)
{
	if (exec_must_end(c->end.stop))
		return;
	c->end.stop = stop;
	alarm_set(&c->last, EXEC_TELL_STEPS * c->step_ns);
}

static void command_on_reaped(struct reap_child *child, int wstatus)
{
	struct command *c = child->arg;

	child->pid = 0;
	if (c->told) {
		command_free(c);
		return;
	}
	if (output_is_over(c->output))
		command_must_end(c, EXEC_OVER_LIMIT);
	exec_end_from_wait(&c->end, wstatus);
	if (!exec_must_end(c->end.stop)) {
		command_on_dead(c);
		return;
	}
	cgroup_kill(c->cgroup);
	alarm_cancel(&c->alarm);
	cgroup_when_empty(&c->agent->cgroups, c->cgroup, command_on_dead, c);
}

static void command_kill(struct command *c)
{
	alarm_cancel(&c->alarm);
	cgroup_kill(c->cgroup);
	/* Also the session, for the case without cgroups; its id cannot be reused before the reap.
	 */
	if (c->child.pid)
		spawn_signal(c->child.pid, SIGKILL);
}

/* Nothing is awaited any longer. */
static void command_on_last(void *arg)
{
	struct command *c = arg;
	bool over = c->over;

	output_hurry(c->output); /* this ends the job when its reader was all that it waited for */
	if (over)
		return;
	c->undead = true;
	if (c->child.pid)
		c->end.exit_code = 128 + SIGKILL;
	command_on_dead(c);
}

/* The deadline, and the steps after it. */
static void command_on_alarm(void *arg)
{
	struct command *c = arg;

	if (c->over) {
		alarm_set(&c->last, EXEC_TELL_STEPS * c->step_ns);
		return;
	}
	command_must_end(c, c->too_much ? EXEC_OVER_LIMIT : EXEC_TIMED_OUT);
	switch (c->step++) {
	case 0:
		spawn_signal(c->child.pid, SIGINT);
		break;
	case 1:
		spawn_signal(c->child.pid, SIGTERM);
		spawn_signal(c->child.pid, SIGCONT); /* one that is stopped would not see it */
		break;
	default:
		command_kill(c);
		return;
	}
	alarm_set(&c->alarm, c->step_ns);
	/* It may hang in a write that nobody reads. */
	output_set_lossy(c->output);
}

/* It is read just now: what follows from it comes next. */
static void command_on_limit(void *arg)
{
	struct command *c = arg;

	c->too_much = true;
	if (!c->over && !exec_must_end(c->end.stop))
		alarm_set(&c->alarm, 1);
}

void command_interrupt(struct command *c)
{
	if (exec_must_end(c->end.stop) || !c->child.pid)
		return;
	c->end.stop = EXEC_INTERRUPTED;
	spawn_signal(c->child.pid, SIGINT);
}

static void command_on_interrupt(struct stream *s, void *job)
{
	(void)s;
	command_interrupt(job);
}

/* Ends it by force; the end is told if anybody is there to hear it. */
void command_cancel(struct command *c)
{
	if (exec_must_end(c->end.stop) && !c->child.pid)
		return; /* it is over, and what it left is being waited for */
	command_must_end(c, EXEC_CANCELLED);
	command_kill(c);
}

static void command_on_cancel(struct stream *s, void *job)
{
	struct command *c = job;

	(void)s;
	command_cancel(c);
	/* Last: when the drain was only waiting for room, this ends the job. */
	if (c->over)
		output_hurry(c->output);
	else
		output_set_lossy(c->output);
}

static void command_on_room(struct stream *s, void *job)
{
	struct command *c = job;

	(void)s;
	feed_on_room(&c->own_feed);
	output_resume(c->output); /* last: it may end the job */
}

static int command_on_input(struct stream *s, void *job, const uint8_t *p, size_t len)
{
	struct command *c = job;

	(void)s;
	return feed_put(&c->own_feed, p, len);
}

static int command_on_input_end(struct stream *s, void *job)
{
	struct command *c = job;

	(void)s;
	return feed_end(&c->own_feed);
}

static void command_on_gone(void *job)
{
	struct command *c = job;

	c->stream = NULL;
	feed_close(&c->own_feed);
	command_cancel(c);
	output_discard(c->output);
}

static void command_on_detach(void *job)
{
	struct command *c = job;

	c->stream = NULL;
	feed_close(&c->own_feed);
	output_discard(c->output);
}

static const struct stream_ops command_ops = {
	.input = command_on_input,
	.input_end = command_on_input_end,
	.cancel = command_on_cancel,
	.interrupt = command_on_interrupt,
	.room = command_on_room,
	.gone = command_on_gone,
	.detach = command_on_detach,
};

/* A terminal is told in front of the variables of the request, which may name another kind. */
static char **command_env(const struct command *c, const struct user *user,
			  const struct request_exec *r)
{
	const struct egress *egress = &c->agent->egress;
	static char term[] = "TERM=xterm-256color";
	char **extra, **env;

	if (r->terminal.cols == 0)
		return egress_env_build(egress, user, r->env, r->nenv);
	extra = calloc(r->nenv + 1, sizeof(*extra));
	if (!extra)
		return NULL;
	extra[0] = term;
	for (size_t i = 0; i < r->nenv; i++)
		extra[i + 1] = r->env[i];
	env = egress_env_build(egress, user, extra, r->nenv + 1);
	free(extra);
	return env;
}

static pid_t command_spawn(struct command *c, const struct request_exec *r, const struct program *p,
			   int cwd, const int fds[3])
{
	const struct user *user = r->root ? &c->agent->root : &c->agent->user;
	char **base = env_build(user, NULL, 0), **env = command_env(c, user, r);
	struct spawn sp = {
		.path = p->path,
		.search = base && p->search ? env_get(base, "PATH") : NULL,
		.argv = p->argv,
		.envp = env,
		.user = user,
		.cgroup_fd = c->cgroup->dirfd,
		.cwd_fd = cwd,
		.in_fd = fds[0],
		.out_fd = fds[1],
		.err_fd = fds[2],
		.extra_fd = p->extra_fd,
		.terminal = r->terminal.cols > 0,
		.sooner = true,
	};
	pid_t pid = base && env ? spawn_process(&sp) : -ENOMEM;

	env_free(base);
	env_free(env);
	return pid;
}

static int command_pipes(struct command *c, int *in, int *out, int *errfd, struct err *err)
{
	int rc;

	c->output = output_open(c->agent, out, errfd);
	if (!c->output)
		return err_set(err, errno, "cannot make pipes for the command");
	rc = c->feed ? feed_connect(c->feed, in) : 0;
	if (rc < 0)
		return err_set(err, -rc, "cannot make a pipe for the input of the command");
	return 0;
}

/* The same with a terminal; *slave is the caller's. */
static int command_terminal(struct command *c, const struct request_exec *r, int *slave,
			    struct err *err)
{
	const struct user *user = r->root ? &c->agent->root : &c->agent->user;
	int master, rc;

	rc = terminal_open(user, &r->terminal, &master, slave);
	if (rc < 0)
		return err_set(err, -rc, "cannot make a terminal for the command");
	c->output = output_open_terminal(c->agent, master);
	if (!c->output)
		return err_set(err, errno, "cannot read from the terminal of the command");
	rc = feed_connect_terminal(c->feed, master);
	if (rc < 0)
		return err_set(err, -rc, "cannot write to the terminal of the command");
	return 0;
}

/* The pipes, the first process, and the deadline. */
static int command_run(struct command *c, const struct request_exec *r, const struct program *p,
		       int cwd, struct err *err)
{
	_cleanup_fd int in = -1, out = -1, errfd = -1;
	pid_t pid;
	int rc;

	c->cgroup = cgroup_new(&c->agent->cgroups, "exec");
	if (!c->cgroup)
		return err_set(err, errno, "cannot make a cgroup for the command");
	rc = r->terminal.cols ? command_terminal(c, r, &out, err)
			      : command_pipes(c, &in, &out, &errfd, err);
	if (rc < 0)
		return rc;
	c->end.start_ns = io_now_ns();
	if (r->terminal.cols)
		pid = command_spawn(c, r, p, cwd, (int[]){out, out, out});
	else
		pid = command_spawn(c, r, p, cwd, (int[]){in, out, errfd});
	if (pid == -EAGAIN)
		return err_text(err, EAGAIN,
				"cannot start a process: the limit of processes in "
				"this sandbox is reached");
	if (pid < 0)
		return err_set(err, -pid, "cannot start a process");
	c->step_ns = exec_step_ns(r);
	if (r->left_ns)
		alarm_set(&c->alarm, r->left_ns);
	c->child = (struct reap_child){.pid = pid, .fn = command_on_reaped, .arg = c};
	reaper_watch(&c->agent->reaper, &c->child);
	return 0;
}

static char *command_path_of(int fd)
{
	char link[32], path[PATH_MAX];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof(path) - 1);
	return n > 0 ? strndup(path, (size_t)n) : NULL;
}

static int command_launch(struct command *c, const struct request_exec *r, const struct code *code,
			  struct err *err)
{
	struct agent *a = c->agent;
	const struct user *user = r->root ? &a->root : &a->user;
	const struct repl *named = contexts_find(a, r->context);
	const struct repl *session = named ? named : &a->repl;
	_cleanup_fd int cwd = -1;
	struct program program;
	int rc;

	if (r->root && !a->root.change)
		return err_text(err, EPERM, "this agent cannot become root");
	rc = path_open_dir(a, session, user, r->cwd, &cwd, err);
	if (rc < 0)
		return rc;
	rc = program_init(&program, r, code, a->node, err);
	if (rc < 0)
		return rc;
	rc = command_run(c, r, &program, cwd, err);
	program_free(&program);
	if (rc == 0 && c->owner.ended)
		c->cwd = command_path_of(cwd);
	return rc;
}

void command_start(struct stream *s, const struct request_exec *r, struct code *code)
{
	_cleanup_fd int code_fd = code->fd;
	struct command *c = calloc(1, sizeof(*c));
	struct err err;

	if (!c) {
		stream_error(s, ENOMEM, "cannot start a command: out of memory");
		return;
	}
	c->agent = s->agent;
	alarm_init(&c->alarm, c->agent, command_on_alarm, c);
	alarm_init(&c->last, c->agent, command_on_last, c);
	if (r->input) {
		c->feed = &c->own_feed;
		feed_init(c->feed, c->agent, s);
	}
	if (command_launch(c, r, &(struct code){.fd = code_fd, .size = code->size}, &err) < 0) {
		stream_fail(s, &err);
		command_free(c);
		return;
	}
	c->stream = s;
	stream_set_job(s, &command_ops, c);
	output_begin(c->output, s,
		     &(struct output_limit){.bytes = (uint64_t)r->output_limit,
					    .over = r->end_at_limit ? command_on_limit : NULL,
					    .arg = c});
}

struct command *command_start_kept(struct agent *a, const struct request_exec *r,
				   const struct code *code, const struct command_owner *owner,
				   struct err *err)
{
	struct command *c = calloc(1, sizeof(*c));

	if (!c) {
		err_set(err, ENOMEM, "cannot start a command");
		return NULL;
	}
	c->agent = a;
	c->owner = *owner;
	c->feed = owner->feed;
	alarm_init(&c->alarm, a, command_on_alarm, c);
	alarm_init(&c->last, a, command_on_last, c);
	if (command_launch(c, r, code, err) < 0) {
		command_free(c);
		return NULL;
	}
	output_keep(c->output, owner->logs, owner->logged, owner->arg);
	return c;
}

pid_t command_pid(const struct command *c)
{
	return c->child.pid;
}

char *command_take_cwd(struct command *c)
{
	return take_ptr(c->cwd);
}

int command_signal(const struct command *c, int sig, bool group)
{
	/* A process that waits to be reaped has its number still. */
	if (!c->child.pid)
		return -ESRCH;
	if (group)
		return spawn_signal(c->child.pid, sig);
	return kill(c->child.pid, sig) < 0 ? -errno : 0;
}

void command_resize(const struct command *c, const struct terminal_size *size)
{
	int master = output_terminal(c->output);

	if (master >= 0)
		terminal_resize(master, size);
}
