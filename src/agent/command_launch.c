/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a command is started with: its program, directory and environment, pipes or a
 * terminal, a cgroup.
 */
#define _GNU_SOURCE
#include "agent/command_impl.h"
#include "agent/contexts.h"
#include "agent/output.h"
#include "agent/path.h"
#include "agent/program.h"
#include "agent/spawn.h"
#include "agent/terminal.h"
#include "lib/io.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
	c->child.pid = pid;
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

int command_launch(struct command *c, const struct request_exec *r, const struct code *code,
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
