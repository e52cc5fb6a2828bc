/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The yardstick of the bench: how long it takes to start a program and wait
 * for its end, in the same place where sandboxes are created. Linked
 * statically, so that it is the least a program can be.
 *
 *   forkexec N    starts itself N times, one after the other; prints the
 *                 time of each in microseconds, a line each
 *   forkexec -    is the program that is started: ends at once
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double microseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* Starts the program and waits for it; false when it did not run or did not succeed. */
static int start_once(char *const argv[])
{
	int status;
	pid_t pid = vfork();

	if (pid == 0) {
		execv("/proc/self/exe", argv);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

int main(int argc, char **argv)
{
	static char name[] = "forkexec", nothing[] = "-";
	char *const child[] = {name, nothing, NULL};
	int n;

	if (argc == 2 && strcmp(argv[1], "-") == 0)
		return 0;
	n = argc == 2 ? atoi(argv[1]) : 0;
	if (n <= 0) {
		fputs("usage: forkexec N\n", stderr);
		return 2;
	}
	for (int i = 0; i < n; i++) {
		double start = microseconds();

		if (!start_once(child)) {
			perror("forkexec");
			return 1;
		}
		printf("%.1f\n", microseconds() - start);
	}
	return 0;
}
