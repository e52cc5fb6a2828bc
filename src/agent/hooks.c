/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One hook: start, its end (reap) or the kill after its time, the rest of its
 * output (for the message), then the next. The objects of a hook are given up
 * before the next one gets its own.
 */
#define _GNU_SOURCE
#include "agent/hooks.h"
#include "agent/agent.h"
#include "agent/output.h"
#include "agent/spawn.h"
#include "lib/dir.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define HOOKS_MAX      64
#define HOOKS_LIMIT_NS 10000000000ull

static void hooks_next(struct hooks *h);
static void hooks_on_reaped(struct reap_child *c, int wstatus);
static void hooks_on_limit(struct loop_timer *t);

void hooks_init(struct hooks *h, struct agent *a, const char *dir)
{
	*h = (struct hooks){.agent = a};
	snprintf(h->dir, sizeof(h->dir), "%s", dir);
	h->child = (struct reap_child){.fn = hooks_on_reaped, .arg = h};
	h->limit = (struct loop_timer){.fn = hooks_on_limit, .arg = h};
}

static void hooks_clear(struct hooks *h)
{
	for (size_t i = 0; i < h->count; i++)
		free(h->names[i]);
	free(h->names);
	h->names = NULL;
	h->count = h->next = 0;
}

static int hooks_compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool hooks_wants(int dirfd, const char *name)
{
	struct stat st;

	return name[0] != '.' && fstatat(dirfd, name, &st, 0) == 0 && S_ISREG(st.st_mode) &&
	       (st.st_mode & 0111);
}

static int hooks_add(struct hooks *h, const char *name)
{
	char **names = reallocarray(h->names, h->count + 1, sizeof(*names));

	if (!names)
		return -ENOMEM;
	h->names = names;
	names[h->count] = strdup(name);
	return names[h->count] ? (h->count++, 0) : -ENOMEM;
}

int hooks_load(struct hooks *h, struct err *err)
{
	DIR *d = opendir(h->dir);
	struct dirent *e;
	int rc = 0;

	hooks_clear(h);
	if (!d)
		return errno == ENOENT ? 0 : err_set(err, errno, "cannot open %s", h->dir);
	while (rc == 0 && (e = dir_next(d, &rc)))
		if (hooks_wants(dirfd(d), e->d_name))
			rc = h->count < HOOKS_MAX ? hooks_add(h, e->d_name) : -E2BIG;
	closedir(d);
	if (rc < 0) {
		hooks_clear(h);
		return err_set(err, -rc, "cannot take the hooks in %s", h->dir);
	}
	if (h->count)
		qsort(h->names, h->count, sizeof(*h->names), hooks_compare);
	return 0;
}

static void hooks_finish(struct hooks *h, const struct err *err)
{
	hooks_clear(h);
	h->done(h, err);
}

static void hooks_drop_process(struct hooks *h)
{
	loop_timer_cancel(&h->limit);
	output_abandon(h->output);
	cgroup_release(&h->agent->cgroups, h->cgroup);
	h->output = NULL;
	h->cgroup = NULL;
}

static void hooks_on_limit(struct loop_timer *t)
{
	struct hooks *h = t->arg;

	h->overtime = true;
	cgroup_kill(h->cgroup);
	if (h->child.pid)
		spawn_signal(h->child.pid, SIGKILL);
}

/* Fills err when the hook has failed. */
static int hooks_judge(const struct hooks *h, struct err *err)
{
	const char *name = h->names[h->next - 1];
	int len = (int)h->output->tail_len;
	const char *sep, *tail = h->output->tail;

	while (len && tail[len - 1] == '\n')
		len--;
	sep = len ? ": " : "";

	if (h->overtime)
		return err_text(err, ETIMEDOUT, "the hook %.100s did not end within %llu s%s%.*s",
				name, HOOKS_LIMIT_NS / 1000000000ull, sep, len, tail);
	if (WIFSIGNALED(h->wstatus))
		return err_text(err, EIO, "the hook %.100s was killed by signal %d%s%.*s", name,
				WTERMSIG(h->wstatus), sep, len, tail);
	if (WEXITSTATUS(h->wstatus))
		return err_text(err, EIO, "the hook %.100s failed with exit status %d%s%.*s", name,
				WEXITSTATUS(h->wstatus), sep, len, tail);
	return 0;
}

static void hooks_on_drained(struct output *o)
{
	struct hooks *h = o->arg;
	struct err err;
	int rc = hooks_judge(h, &err);

	hooks_drop_process(h);
	if (rc < 0)
		hooks_finish(h, &err);
	else
		hooks_next(h);
}

static void hooks_on_reaped(struct reap_child *c, int wstatus)
{
	struct hooks *h = c->arg;

	c->pid = 0;
	h->wstatus = wstatus;
	output_drain(h->output, hooks_on_drained, h);
}

static int hooks_spawn(struct hooks *h, const char *path, int out, int errfd)
{
	_cleanup_free char *name = strdup(path);
	char *argv[] = {name, NULL};
	char **env = egress_env_build(&h->agent->egress, &h->agent->root, h->env, h->nenv);
	struct spawn sp = {
		.path = path,
		.argv = argv,
		.envp = env,
		.user = &h->agent->root,
		.cgroup_fd = h->cgroup->dirfd,
		.cwd_fd = -1,
		.in_fd = -1,
		.out_fd = out,
		.err_fd = errfd,
		.extra_fd = -1,
	};
	int pid = name && env ? spawn_process(&sp) : -ENOMEM;

	env_free(env);
	return pid;
}

static int hooks_start(struct hooks *h, const char *name, struct err *err)
{
	_cleanup_fd int out = -1, errfd = -1;
	char path[sizeof(h->dir) + NAME_MAX + 2];
	int pid;

	snprintf(path, sizeof(path), "%s/%s", h->dir, name);
	h->overtime = false;
	h->cgroup = cgroup_new(&h->agent->cgroups, "hook");
	if (!h->cgroup)
		return err_set(err, errno, "cannot make a cgroup for the hook %.100s", name);
	h->output = output_open(h->agent, &out, &errfd);
	if (!h->output)
		return err_set(err, errno, "cannot make pipes for the hook %.100s", name);
	pid = hooks_spawn(h, path, out, errfd);
	if (pid < 0)
		return err_set(err, -pid, "cannot start the hook %.100s", name);
	h->child.pid = pid;
	reaper_watch(&h->agent->reaper, &h->child);
	loop_timer_set(&h->agent->loop, &h->limit, HOOKS_LIMIT_NS);
	return 0;
}

static void hooks_next(struct hooks *h)
{
	struct err err;

	if (h->next == h->count) {
		hooks_finish(h, NULL);
	} else if (hooks_start(h, h->names[h->next++], &err) < 0) {
		hooks_drop_process(h);
		hooks_finish(h, &err);
	}
}

void hooks_run(struct hooks *h, char *const *env, size_t nenv, hooks_done_fn *done, void *arg)
{
	h->env = env;
	h->nenv = nenv;
	h->done = done;
	h->arg = arg;
	hooks_next(h);
}
