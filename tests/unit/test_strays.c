/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which children of the daemon are killed as a VMM's: none that was there before it, however short
 * before; none where orphans of others become its children.
 */
#define _GNU_SOURCE
#include "daemon/vmm_impl.h"
#include "unit.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

pid_t __real_getpid(void);
pid_t __wrap_getpid(void);

static bool is_first; /* process 1 */

pid_t __wrap_getpid(void)
{
	return is_first ? 1 : __real_getpid();
}

static pid_t child_make(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM); /* a test that fails leaves nothing */
		pause();
		_exit(0);
	}
	assert_true(pid > 0);
	return pid;
}

/* It was not killed: SIGTERM is what ends it. */
static void assert_lives(pid_t pid)
{
	int status;

	kill(pid, SIGTERM);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGTERM);
}

static void assert_killed(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

static void host_init(struct vmm_host *h, struct loop *loop)
{
	*h = (struct vmm_host){.loop = loop};
	list_init(&h->vmms);
	list_init(&h->claims);
	strays_init(h);
}

/* A tick of the clock that processes' starts are told by has just begun. */
static void tick_begins(void)
{
	struct timespec t;
	long tick = -1;

	for (;;) {
		clock_gettime(CLOCK_BOOTTIME, &t);
		if (tick >= 0 && t.tv_nsec / 10000000 != tick)
			return;
		tick = t.tv_nsec / 10000000;
	}
}

static void test_before_in_the_same_tick(void **state)
{
	struct vmm_host h;
	struct loop loop;

	(void)state;
	assert_int_equal(loop_init(&loop), 0);
	for (int i = 0; i < 8; i++) {
		pid_t before, behind;

		tick_begins();
		before = child_make();
		host_init(&h, &loop);
		behind = child_make();
		assert_int_equal(vmm_host_sweep(&h), 1);
		vmm_host_stop(&h);
		assert_killed(behind);
		assert_lives(before);
	}
	loop_free(&loop);
}

/* A number that was another's when the daemon began. */
static void test_a_number_that_is_used_again(void **state)
{
	struct vmm_host h;
	struct loop loop;
	pid_t pid;

	(void)state;
	assert_int_equal(loop_init(&loop), 0);
	pid = child_make();
	host_init(&h, &loop);
	assert_int_equal(h.before.n, 1);
	assert_true(h.before.c[0].began != 0);
	h.before.c[0].began--;
	h.began_ticks = 0;
	assert_int_equal(vmm_host_sweep(&h), 1);
	vmm_host_stop(&h);
	assert_killed(pid);
	loop_free(&loop);
}

/* /proc does not tell of others' processes (hidepid): the number has to do. */
static void test_a_start_that_is_hidden(void **state)
{
	struct vmm_host h;
	struct loop loop;
	pid_t pid;

	(void)state;
	assert_int_equal(loop_init(&loop), 0);
	pid = child_make();
	host_init(&h, &loop);
	h.before.c[0].began = 0;
	h.began_ticks = 0;
	assert_int_equal(vmm_host_sweep(&h), 0);
	vmm_host_stop(&h);
	assert_lives(pid);
	loop_free(&loop);
}

static void none_where_orphans_come(void)
{
	struct vmm_host h;
	struct loop loop;
	pid_t pid;

	assert_int_equal(loop_init(&loop), 0);
	host_init(&h, &loop);
	pid = child_make();
	strays_soon(&h);
	assert_false(loop_timer_armed(&h.sweep));
	assert_int_equal(vmm_host_sweep(&h), 0);
	vmm_host_stop(&h);
	assert_lives(pid);
	loop_free(&loop);
}

static void test_a_subreaper(void **state)
{
	(void)state;
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	none_where_orphans_come();
	assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 0), 0);
}

static void test_process_1(void **state)
{
	(void)state;
	is_first = true;
	none_where_orphans_come();
	is_first = false;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_before_in_the_same_tick),
		cmocka_unit_test(test_a_number_that_is_used_again),
		cmocka_unit_test(test_a_start_that_is_hidden),
		cmocka_unit_test(test_a_subreaper),
		cmocka_unit_test(test_process_1),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
