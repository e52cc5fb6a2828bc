/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clone3() into the cgroup, then the steps of a child in an order that matters:
 * what needs root first (identity last of those), what is checked with the
 * user's rights (the directory, execve) after it. In the child libc is avoided
 * where it keeps state of its own (raw set*id calls), as after vfork.
 */
#define _GNU_SOURCE
#include "agent/spawn.h"
#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPAWN_NOFILE_SOFT 1024u
#define SPAWN_NOFILE_HARD 1048576u

static void child_say(const char *what, const char *name, int num)
{
	const char *parts[] = {"podflare: ", what, " ", name, ": ", strerror(num), "\n"};

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++)
		if (io_write_full(2, parts[i], strlen(parts[i])) < 0)
			return;
}

static void child_signals(void)
{
	struct sigaction dfl = {.sa_handler = SIG_DFL};
	sigset_t none;

	/* Ignored signals survive execve: SIGPIPE would stay ignored in every shell pipeline. */
	for (int sig = 1; sig < NSIG; sig++)
		sigaction(sig, &dfl, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void child_limits(const struct spawn *s)
{
	struct rlimit none = {0, 0};
	struct rlimit files = {SPAWN_NOFILE_SOFT, SPAWN_NOFILE_HARD};
	const char *adj = s->sooner ? SPAWN_SOONER : "0";
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	/* The agent cannot be chosen by the OOM killer; this must not be inherited. */
	if (fd >= 0) {
		if (io_write_full(fd, adj, strlen(adj)) < 0)
			child_say("cannot reset", "oom_score_adj", errno);
		close(fd);
	}
	setrlimit(RLIMIT_CORE, &none);
	/* Without privilege (tests) the hard limit cannot be raised, and stays as it is. */
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		return;
}

/* Puts the descriptors at 0..3 and closes all others. */
static int child_fds(const struct spawn *s)
{
	int last = s->extra_fd >= 0 ? 3 : 2;
	int null, in, out, err, extra = -1;

	/* Above the targets first: a source may sit on a number that is about to be replaced. */
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0)
		return -errno;
	in = fcntl(s->in_fd >= 0 ? s->in_fd : null, F_DUPFD_CLOEXEC, 10);
	out = fcntl(s->out_fd, F_DUPFD_CLOEXEC, 10);
	err = fcntl(s->err_fd, F_DUPFD_CLOEXEC, 10);
	if (s->extra_fd >= 0)
		extra = fcntl(s->extra_fd, F_DUPFD_CLOEXEC, 10);
	if (in < 0 || out < 0 || err < 0 || (s->extra_fd >= 0 && extra < 0))
		return -errno;
	if (dup2(err, 2) < 0 || dup2(out, 1) < 0 || dup2(in, 0) < 0)
		return -errno;
	if (extra >= 0 && dup2(extra, 3) < 0)
		return -errno;
	return close_range((unsigned)last + 1, ~0u, 0) < 0 ? -errno : 0;
}

static int child_identity(const struct user *u)
{
	if (!u->change)
		return 0;
	if (syscall(SYS_setgroups, u->ngroups, u->groups) < 0 ||
	    syscall(SYS_setresgid, u->gid, u->gid, u->gid) < 0 ||
	    syscall(SYS_setresuid, u->uid, u->uid, u->uid) < 0)
		return -errno;
	return 0;
}

/* execve(), or the search of execvp() without its shell: only returns when it fails. */
static int child_exec(const struct spawn *s)
{
	size_t name = strlen(s->path);
	bool denied = false;
	char path[PATH_MAX];

	if (!s->search || strchr(s->path, '/')) {
		execve(s->path, s->argv, s->envp);
		return -errno;
	}
	for (const char *dir = s->search; *dir;) {
		size_t n = strcspn(dir, ":");

		if (n > 0 && n + name + 2 <= sizeof(path)) {
			memcpy(path, dir, n);
			path[n] = '/';
			memcpy(path + n + 1, s->path, name + 1);
			execve(path, s->argv, s->envp);
			if (errno == EACCES)
				denied = true;
			else if (errno != ENOENT && errno != ENOTDIR)
				return -errno;
		}
		dir += n + (dir[n] == ':');
	}
	return denied ? -EACCES : -ENOENT;
}

static void __attribute__((noreturn)) child_main(const struct spawn *s, int cwd)
{
	int rc;

	setsid();
	if (s->terminal)
		ioctl(s->in_fd, TIOCSCTTY, 0);
	child_signals();
	child_limits(s);
	umask(022);
	rc = child_identity(s->user);
	if (rc == 0 && cwd >= 0 && fchdir(cwd) < 0)
		rc = -errno;
	if (rc < 0) {
		/* fd 2 is still the agent's: the pipe is what the reader sees. */
		if (dup2(s->err_fd, 2) >= 0)
			child_say("cannot enter", "the working directory", -rc);
		_exit(126);
	}
	rc = child_fds(s);
	if (rc < 0)
		_exit(126);
	rc = child_exec(s);
	child_say("cannot run", s->path, -rc);
	_exit(rc == -ENOENT || rc == -ENOTDIR ? 127 : 126);
}

pid_t spawn_process(const struct spawn *s)
{
	struct clone_args args = {.exit_signal = SIGCHLD};
	_cleanup_fd int home = -1;
	int cwd = s->cwd_fd;
	long pid;

	if (cwd < 0) {
		home = open(s->user->home, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (home < 0)
			home = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
		cwd = home;
	}
	if (s->cgroup_fd >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = (uint64_t)s->cgroup_fd;
	}
	pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return -errno;
	if (pid == 0)
		child_main(s, cwd);
	return (pid_t)pid;
}

int spawn_signal(pid_t pid, int sig)
{
	if (kill(-pid, sig) == 0)
		return 0;
	if (errno == ESRCH && kill(pid, sig) == 0)
		return 0;
	return -errno;
}
