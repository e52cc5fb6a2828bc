/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finds and runs helper programs (mkfs.ext4, and --version for the doctor).
 * No state.
 */
#define _GNU_SOURCE
#include "cli/tools.h"

#include "lib/io.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

static int is_program(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

int tools_find(const char *name, char out[PATH_MAX])
{
	const char *path = getenv("PATH");
	char places[8192];
	char *save = NULL;

	if (strchr(name, '/')) {
		if (snprintf(out, PATH_MAX, "%s", name) >= PATH_MAX || !is_program(out))
			return -ENOENT;
		return 0;
	}
	snprintf(places, sizeof(places), "%s:/usr/local/sbin:/usr/sbin:/sbin",
		 path ? path : "/usr/bin:/bin");
	for (char *dir = strtok_r(places, ":", &save); dir; dir = strtok_r(NULL, ":", &save))
		if (snprintf(out, PATH_MAX, "%s/%s", dir, name) < PATH_MAX && is_program(out))
			return 0;
	return -ENOENT;
}

static void tools_child(char *const argv[], int out) __attribute__((noreturn));
static void tools_child(char *const argv[], int out)
{
	int null = open("/dev/null", O_RDONLY);
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(126);
	execv(argv[0], argv);
	_exit(127);
}

/* Reads until the end or the time limit: 0 or -ETIMEDOUT. Keeps the first size - 1 bytes. */
static int collect(int fd, int limit_ms, char *out, size_t size)
{
	uint64_t end = io_now_ns() + (uint64_t)limit_ms * 1000000;
	size_t have = 0;
	char chunk[512];

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		int64_t left = (int64_t)(end - io_now_ns()) / 1000000;
		ssize_t n;

		if (left <= 0 || poll(&p, 1, (int)left) == 0)
			return -ETIMEDOUT;
		n = io_read_some(fd, chunk, sizeof(chunk));
		if (n <= 0)
			break;
		for (ssize_t i = 0; i < n && have + 1 < size; i++)
			out[have++] = chunk[i];
		out[have] = '\0';
	}
	return 0;
}

int tools_run(char *const argv[], int limit_ms, char *out, size_t size)
{
	int pipefd[2], status, rc;
	pid_t pid;

	out[0] = '\0';
	if (pipe2(pipefd, O_CLOEXEC) < 0)
		return -errno;
	pid = fork();
	if (pid < 0) {
		rc = -errno;
		close(pipefd[0]);
		close(pipefd[1]);
		return rc;
	}
	if (pid == 0)
		tools_child(argv, pipefd[1]);
	close(pipefd[1]);
	rc = collect(pipefd[0], limit_ms, out, size);
	close(pipefd[0]);
	if (rc < 0)
		kill(pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	if (rc < 0)
		return rc;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
