/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether the way through auth_check() depends on how much of a key is right: its
 * instructions are counted, one step at a time, which says more than a clock does.
 */
#include "unit.h"

#include "daemon/auth.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARG(s) (char *)(uintptr_t)(s)

static const struct config keys = {
	.auth = true,
	.nkeys = 3,
	.keys = {ARG("pk_0123456789abcdef"), ARG("pk_fedcba9876543210"), ARG("pk_short")},
};

/* The same memory in all children, so that what a string function does with it is the same. */
static char header[64] __attribute__((aligned(64)));

static void child(void)
{
	enum auth_result rc;
	unsigned int key;

	/* Once without being counted: symbols are bound, pages are there. */
	rc = auth_check(&keys, header, NULL, NULL, &key);
	if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
		_exit(77);
	raise(SIGSTOP);
	rc = auth_check(&keys, header, NULL, NULL, &key);
	raise(SIGSTOP);
	_exit(rc == AUTH_OK ? (int)key : 10 + (int)rc);
}

/* Instructions between the two stops; *status: how it was answered. */
static unsigned int steps(const char *given, int *status)
{
	unsigned int n = 0;
	int st;
	pid_t pid;

	memset(header, 0, sizeof(header));
	strcat(strcpy(header, "Bearer "), given);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		child();
	assert_int_equal(waitpid(pid, &st, 0), pid);
	if (WIFEXITED(st)) {
		assert_int_equal(WEXITSTATUS(st), 77);
		skip(); /* no tracing here */
	}
	assert_true(WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP);
	do {
		assert_int_equal(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
		assert_int_equal(waitpid(pid, &st, 0), pid);
		assert_true(WIFSTOPPED(st));
	} while (WSTOPSIG(st) == SIGTRAP && ++n < 10000000);
	assert_int_equal(WSTOPSIG(st), SIGSTOP);
	assert_int_equal(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
	assert_int_equal(waitpid(pid, &st, 0), pid);
	assert_true(WIFEXITED(st));
	*status = WEXITSTATUS(st);
	return n;
}

static void test_steps(void **state)
{
	static const char *const wrong[] = {
		"xk_0123456789abcdef", "pk_0123456789abcdeX", "pk_0123456X89abcdef",
		"pk_fedcba987654321X", "pk_shortXXXXXXXXXXX", "pk_shortpk_shortpk_",
		"XXXXXXXXXXXXXXXXXXX",
	};
	unsigned int first, n;
	int status;

	(void)state;
	first = steps(wrong[0], &status);
	assert_int_equal(status, 10 + AUTH_INVALID);
	assert_true(first > 3 * strlen(wrong[0])); /* something was counted */
	for (size_t i = 1; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		n = steps(wrong[i], &status);
		assert_int_equal(status, 10 + AUTH_INVALID);
		assert_int_equal(n, first);
	}
	/* Nor does it tell which of the keys is right. */
	first = steps("pk_0123456789abcdef", &status);
	assert_int_equal(status, 0);
	n = steps("pk_fedcba9876543210", &status);
	assert_int_equal(status, 1);
	assert_int_equal(n, first);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
