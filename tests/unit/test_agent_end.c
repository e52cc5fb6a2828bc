/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the agent tells the end of a call: the words of EXIT, and what it reads in
 * the kernel's accounting of a cgroup. The cgroups here are plain directories
 * with files of the same form.
 */
#include "unit.h"

#include "agent/cgroup.h"
#include "agent/exec.h"
#include "agent/output.h"
#include "lib/io.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where a real output would tell of what it has dropped. */
void output_report(struct output *o, json_t *exit, uint64_t more)
{
	(void)o;
	(void)more;
	json_object_set_new(exit, "reported", json_true());
}

static void check_end(const struct exec_end *e, const char *reason, int code)
{
	json_t *obj = exec_exit_object(e, NULL);

	assert_string_equal(json_string_value(json_object_get(obj, "reason")), reason);
	assert_int_equal(json_integer_value(json_object_get(obj, "exit_code")), code);
	assert_string_equal(json_string_value(json_object_get(obj, "state")),
			    e->lost ? "lost" : "preserved");
	assert_int_equal(json_integer_value(json_object_get(obj, "signal")), e->signal);
	assert_true(json_is_false(json_object_get(obj, "truncated")));
	assert_int_equal(json_integer_value(json_object_get(obj, "bytes_dropped")), 0);
	json_decref(obj);
}

static void test_reasons(void **state)
{
	static const struct {
		struct exec_end end;
		const char *reason;
		int code;
	} cases[] = {
		{{.exit_code = 0}, "exited", 0},
		{{.exit_code = 3}, "exited", 3},
		{{.exit_code = 130}, "exited", 130},
		{{.exit_code = 137, .signal = SIGKILL}, "signaled", 137},
		{{.exit_code = 9, .lost = true}, "exited", 9},
		{{.exit_code = 139, .signal = SIGSEGV, .lost = true}, "signaled", 139},
		/* Out of memory is what the accounting says, not what 137 may mean. */
		{{.exit_code = 137, .signal = SIGKILL, .oom = true}, "oom", 137},
		{{.exit_code = 1, .oom = true}, "oom", 1},
		{{.exit_code = 137, .signal = SIGKILL, .oom = true, .lost = true}, "oom", 137},
		{{.exit_code = 0, .oom = true}, "exited", 0},
		{{.stop = EXEC_OVER_LIMIT, .exit_code = 0}, "output_limit", 153},
		{{.stop = EXEC_OVER_LIMIT, .exit_code = 137, .signal = SIGKILL},
		 "output_limit",
		 153},
		/* An interrupt is the reason when it ended the call. */
		{{.stop = EXEC_INTERRUPTED, .exit_code = 130}, "interrupted", 130},
		{{.stop = EXEC_INTERRUPTED, .exit_code = 130, .signal = SIGINT},
		 "interrupted",
		 130},
		{{.stop = EXEC_INTERRUPTED, .exit_code = 0}, "exited", 0},
		{{.stop = EXEC_INTERRUPTED, .exit_code = 1}, "exited", 1},
		{{.stop = EXEC_INTERRUPTED, .exit_code = 143, .signal = SIGTERM}, "signaled", 143},
		{{.stop = EXEC_INTERRUPTED, .exit_code = 1, .oom = true}, "oom", 1},
		/* Who is made to end, ends for that reason, whatever he says. */
		{{.stop = EXEC_CANCELLED, .exit_code = 0}, "cancelled", 0},
		{{.stop = EXEC_CANCELLED, .exit_code = 137, .signal = SIGKILL, .oom = true},
		 "cancelled",
		 137},
		{{.stop = EXEC_TIMED_OUT, .exit_code = 0}, "timeout", 124},
		{{.stop = EXEC_TIMED_OUT, .exit_code = 137, .signal = SIGKILL, .lost = true},
		 "timeout",
		 124},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		check_end(&cases[i].end, cases[i].reason, cases[i].code);
}

static void test_wait_status(void **state)
{
	struct exec_end e = {0};

	(void)state;
	exec_end_from_wait(&e, 7 << 8);
	assert_int_equal(e.exit_code, 7);
	assert_int_equal(e.signal, 0);
	exec_end_from_wait(&e, SIGSEGV);
	assert_int_equal(e.exit_code, 128 + SIGSEGV);
	assert_int_equal(e.signal, SIGSEGV);
}

static void test_report_and_duration(void **state)
{
	struct exec_end e = {.start_ns = io_now_ns() - 5000000};
	struct output o;
	json_t *obj;

	(void)state;
	obj = exec_exit_object(&e, &o);
	assert_true(json_is_true(json_object_get(obj, "reported")));
	assert_true(json_integer_value(json_object_get(obj, "duration_ms")) >= 5);
	json_decref(obj);
	e.start_ns = 0;
	obj = exec_exit_object(&e, &o);
	assert_int_equal(json_integer_value(json_object_get(obj, "duration_ms")), 0);
	json_decref(obj);
}

/* A group that is a plain directory. */
struct rig {
	char dir[64];
	struct loop loop;
	struct cgroups cgroups;
	struct cgroup *group;
	int calls;
};

static void rig_write(struct rig *r, const char *file, const char *text)
{
	int fd = openat(r->group->dirfd, file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
	close(fd);
}

static int rig_setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct err err;

	assert_non_null(r);
	snprintf(r->dir, sizeof(r->dir), "/tmp/podflare-test-XXXXXX");
	assert_non_null(mkdtemp(r->dir));
	assert_int_equal(loop_init(&r->loop), 0);
	assert_int_equal(cgroups_init(&r->cgroups, &r->loop, r->dir, &err), 0);
	r->group = cgroup_new(&r->cgroups, "exec");
	assert_non_null(r->group);
	*state = r;
	return 0;
}

static int rig_teardown(void **state)
{
	struct rig *r = *state;
	char name[64];

	snprintf(name, sizeof(name), "%s", r->group->name);
	for (const char *const *f =
		     (const char *const[]){"memory.events", "cgroup.events", "cgroup.procs", NULL};
	     *f; f++)
		unlinkat(r->group->dirfd, *f, 0);
	cgroup_release(&r->cgroups, r->group);
	loop_del(&r->cgroups.notify);
	close(r->cgroups.dirfd);
	loop_free(&r->loop);
	rmdir(r->dir);
	free(r);
	return 0;
}

static void test_oom_kills(void **state)
{
	static const struct {
		const char *text;
		uint64_t kills;
	} cases[] = {
		{"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n", 2},
		{"low 0\nhigh 0\nmax 12\noom 3\noom_kill 0\noom_group_kill 7\n", 0},
		{"oom_kill 18446744073709551615\n", UINT64_MAX},
		{"", 0},
		{"oom 5\n", 0},
	};
	struct rig *r = *state;

	assert_int_equal(cgroup_oom_kills(r->group), 0); /* no accounting */
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		rig_write(r, "memory.events", cases[i].text);
		assert_true(cgroup_oom_kills(r->group) == cases[i].kills);
	}
}

static void test_others(void **state)
{
	struct rig *r = *state;

	rig_write(r, "cgroup.procs", "7\n");
	assert_int_equal(cgroup_has_others(r->group, 7), 0);
	assert_int_equal(cgroup_has_others(r->group, 77), 1);
	rig_write(r, "cgroup.procs", "7\n8\n");
	assert_int_equal(cgroup_has_others(r->group, 7), 1);
	assert_int_equal(cgroup_has_others(r->group, 8), 1);
}

static void on_empty(void *arg)
{
	struct rig *r = arg;

	r->calls++;
}

static void test_waiting_for_the_last_process(void **state)
{
	struct rig *r = *state;

	rig_write(r, "cgroup.events", "populated 1\nfrozen 0\n");
	cgroup_when_empty(&r->cgroups, r->group, on_empty, r);
	assert_int_equal(r->calls, 0);
	rig_write(r, "cgroup.events", "populated 1\nfrozen 1\n");
	loop_run_once(&r->loop, 1000);
	assert_int_equal(r->calls, 0);
	rig_write(r, "cgroup.events", "populated 0\nfrozen 0\n");
	loop_run_once(&r->loop, 1000);
	assert_int_equal(r->calls, 1);
	/* Once; and at once when nothing is in it. */
	rig_write(r, "cgroup.events", "populated 0\nfrozen 0\n");
	loop_run_once(&r->loop, 100);
	assert_int_equal(r->calls, 1);
	cgroup_when_empty(&r->cgroups, r->group, on_empty, r);
	assert_int_equal(r->calls, 2);
	/* Nobody is called who has stopped waiting. */
	rig_write(r, "cgroup.events", "populated 1\n");
	cgroup_when_empty(&r->cgroups, r->group, on_empty, r);
	cgroup_stop_waiting(r->group);
	rig_write(r, "cgroup.events", "populated 0\n");
	loop_run_once(&r->loop, 100);
	assert_int_equal(r->calls, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reasons),
		cmocka_unit_test(test_wait_status),
		cmocka_unit_test(test_report_and_duration),
		cmocka_unit_test_setup_teardown(test_oom_kills, rig_setup, rig_teardown),
		cmocka_unit_test_setup_teardown(test_others, rig_setup, rig_teardown),
		cmocka_unit_test_setup_teardown(test_waiting_for_the_last_process, rig_setup,
						rig_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
