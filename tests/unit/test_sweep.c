/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When FREEZE looks at the processes of the top group, and when it need not. The group is a
 * directory of plain files: its cgroup.procs is replaced by one that names a process which could
 * only be moved if there were control groups, so that whoever looks at it fails.
 */
#define _GNU_SOURCE
#include "agent/sweep.h"
#include "lib/io.h"
#include "tree.h"
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

int __wrap_sysinfo(struct sysinfo *si);

static uint16_t threads; /* of the whole system */

int __wrap_sysinfo(struct sysinfo *si)
{
	*si = (struct sysinfo){.procs = threads};
	return 0;
}

/* The beginning of one in sweep.c. */
struct frozen {
	struct list link;
};

struct world {
	char top[64];
	int dir, entry, other_entry; /* the top; the files by which one enters it */
	struct cgroups cs;
	struct sweep s;
	pid_t stray;
};

static void write_file(const struct world *w, const char *name, const char *text)
{
	int fd = openat(w->dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(io_write_full(fd, text, strlen(text)), 0);
	close(fd);
}

/* The youngest process, as /proc/loadavg ends with. */
static void write_births(const struct world *w, long last)
{
	char text[64];

	snprintf(text, sizeof(text), "0.00 0.01 0.05 1/79 %ld\n", last);
	write_file(w, "births", text);
}

/* A file system whose directories count those below. */
static int begin(void **state)
{
	static struct world w;
	struct err err;

	w = (struct world){.top = "/dev/shm/podflare-sweep-XXXXXX"};
	assert_non_null(mkdtemp(w.top));
	w.dir = open(w.top, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(w.dir >= 0);
	assert_int_equal(mkdirat(w.dir, "podflare", 0700), 0);
	write_file(&w, "cgroup.procs", "");
	write_file(&w, "cgroup.threads", "");
	write_file(&w, "podflare/pids.current", "20\n");
	write_births(&w, 300);
	w.entry = openat(w.dir, "cgroup.procs", O_WRONLY | O_CLOEXEC);
	w.other_entry = openat(w.dir, "cgroup.threads", O_WRONLY | O_CLOEXEC);
	w.cs.dirfd = openat(w.dir, "podflare", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	threads = 80;
	sweep_init(&w.s, &w.cs);
	assert_int_equal(sweep_set_top(&w.s, w.top, &err), 0);
	close_fd(&w.s.births);
	w.s.births = openat(w.dir, "births", O_RDONLY | O_CLOEXEC);
	w.stray = fork();
	if (w.stray == 0) {
		pause();
		_exit(0);
	}
	*state = &w;
	return 0;
}

static int end(void **state)
{
	struct world *w = *state;

	/* What it could not make a group of, and what it could not freeze. */
	if (w->s.strays)
		close_fd(&w->s.strays->dirfd);
	free(w->s.strays);
	list_for_each_safe (g, &w->s.frozen, struct frozen, link)
		free(g);
	kill(w->stray, SIGKILL);
	waitpid(w->stray, NULL, 0);
	close_fd(&w->s.entries);
	close_fd(&w->s.inside);
	close_fd(&w->s.births);
	close_fd(&w->s.top);
	close_fd(&w->cs.dirfd);
	close_fd(&w->entry);
	close_fd(&w->other_entry);
	close_fd(&w->dir);
	return tree_remove(w->top);
}

/* A whole look that finds nothing; from now on there is something, which no event tells of. */
static void look_then_stray(struct world *w)
{
	char text[32];

	assert_int_equal(sweep_look(&w->s, false), 1);
	snprintf(text, sizeof(text), "%d\n", (int)w->stray);
	write_file(w, "new", text);
	assert_int_equal(renameat(w->dir, "new", w->dir, "cgroup.procs"), 0);
}

static void test_nothing_has_changed(void **state)
{
	struct world *w = *state;

	look_then_stray(w);
	for (int i = 0; i < 3; i++)
		assert_int_equal(sweep_look(&w->s, false), 1);
}

static void test_the_first_look_is_whole(void **state)
{
	struct world *w = *state;
	char text[32];

	snprintf(text, sizeof(text), "%d\n", (int)w->stray);
	write_file(w, "cgroup.procs", text);
	assert_true(sweep_look(&w->s, false) < 0);
}

static void test_somebody_enters(void **state)
{
	struct world *w = *state;

	look_then_stray(w);
	assert_int_equal(io_write_full(w->entry, "1", 1), 0);
	assert_true(sweep_look(&w->s, false) < 0);
	/* A failed one leaves nothing behind by which the next could be left out. */
	assert_true(sweep_look(&w->s, false) < 0);
}

static void test_a_thread_enters(void **state)
{
	struct world *w = *state;

	look_then_stray(w);
	assert_int_equal(io_write_full(w->other_entry, "1", 1), 0);
	assert_true(sweep_look(&w->s, false) < 0);
}

static void test_one_more_outside(void **state)
{
	struct world *w = *state;

	look_then_stray(w);
	threads++;
	assert_true(sweep_look(&w->s, false) < 0);
}

static void test_one_less_inside(void **state)
{
	struct world *w = *state;

	look_then_stray(w);
	write_file(w, "podflare/pids.current", "19\n");
	assert_true(sweep_look(&w->s, false) < 0);
}

/* One of the kernel's has gone, and somebody is there instead. */
static void test_as_many_but_another(void **state)
{
	struct world *w = *state;

	look_then_stray(w);
	write_births(w, 301);
	assert_true(sweep_look(&w->s, false) < 0);
}

/* What goes from outside to inside changes both numbers. */
static void test_one_goes_inside(void **state)
{
	struct world *w = *state;

	look_then_stray(w);
	threads++;
	write_file(w, "podflare/pids.current", "21\n");
	assert_int_equal(sweep_look(&w->s, false), 1);
}

static void test_numbers_that_wrap(void **state)
{
	struct world *w = *state;

	threads = 10; /* 65546, as the kernel tells it */
	look_then_stray(w);
	assert_int_equal(sweep_look(&w->s, false), 1);
	threads = 11;
	assert_true(sweep_look(&w->s, false) < 0);
}

static void test_another_group(void **state)
{
	struct world *w = *state;

	look_then_stray(w);
	assert_int_equal(mkdirat(w->dir, "mine", 0700), 0);
	assert_true(sweep_look(&w->s, false) != 1);
}

static void test_what_cannot_be_read(void **state)
{
	struct world *w = *state;

	close_fd(&w->s.inside);
	look_then_stray(w);
	assert_true(sweep_look(&w->s, false) < 0);
}

static void test_births_that_cannot_be_read(void **state)
{
	struct world *w = *state;

	close_fd(&w->s.births);
	look_then_stray(w);
	assert_true(sweep_look(&w->s, false) < 0);
}

static void test_without_events(void **state)
{
	struct world *w = *state;

	close_fd(&w->s.entries);
	look_then_stray(w);
	assert_true(sweep_look(&w->s, false) < 0);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, begin, end)
		TEST(test_nothing_has_changed), TEST(test_the_first_look_is_whole),
		TEST(test_somebody_enters),     TEST(test_a_thread_enters),
		TEST(test_one_more_outside),    TEST(test_one_less_inside),
		TEST(test_as_many_but_another), TEST(test_one_goes_inside),
		TEST(test_numbers_that_wrap),   TEST(test_another_group),
		TEST(test_what_cannot_be_read), TEST(test_births_that_cannot_be_read),
		TEST(test_without_events),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
