/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups of VMs and proxies and their worker, over a plain directory: in what order
 * jobs are done whatever the kernel answers, and what a VM is allowed while it has
 * copies.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "daemon/egress/proxy_group.h"
#include "daemon/vm_group.h"
#include "lib/cgroup2.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MIB (1ull << 20)

/* The kernel: what it answers to a write, what was written to memory.max last, by group, and all
 * that was written of proxies. */
static struct {
	_Atomic int procs_rc, pids_rc;
	_Atomic unsigned int pids_writes;
	uint64_t memory_max[16];
	char proxy[256];
} kernel;

int cgroups_write(int dir_fd, const char *path, const char *text)
{
	unsigned int n;
	char file[32];

	(void)dir_fd;
	if (sscanf(path, "proxy-%u/%31s", &n, file) == 2) {
		size_t len = strlen(kernel.proxy);

		snprintf(kernel.proxy + len, sizeof(kernel.proxy) - len, "%s=%s;", file, text);
		return strcmp(file, "cgroup.procs") == 0 ? kernel.procs_rc : 0;
	}
	assert_int_equal(sscanf(path, "vm-%u/%31s", &n, file), 2);
	assert_true(n < ARRAY_SIZE(kernel.memory_max));
	if (strcmp(file, "memory.max") == 0)
		kernel.memory_max[n] = strtoull(text, NULL, 10);
	if (strcmp(file, "cgroup.procs") == 0)
		return kernel.procs_rc;
	if (strcmp(file, "pids.max") == 0) {
		kernel.pids_writes++;
		return kernel.pids_rc;
	}
	return 0;
}

struct rig {
	char dir[64];
	struct loop loop;
	struct cgroups g;
	int moved, rc;
	char text[160];
};

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof(*r));
	struct err err;

	assert_non_null(r);
	memset(&kernel, 0, sizeof(kernel));
	snprintf(r->dir, sizeof(r->dir), "/tmp/podflare-test-XXXXXX");
	assert_non_null(mkdtemp(r->dir));
	assert_int_equal(loop_init(&r->loop), 0);
	r->g.controllers = CGROUP2_MEMORY | CGROUP2_PIDS;
	r->g.dir_fd = open(r->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(r->g.dir_fd >= 0);
	assert_int_equal(group_worker_start(&r->g.worker, &r->loop, &err), 0);
	*state = r;
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	group_worker_stop(&r->g.worker);
	loop_free(&r->loop);
	close(r->g.dir_fd);
	assert_int_equal(rmdir(r->dir), 0); /* nothing is left in it */
	free(r);
	return 0;
}

static bool there(const struct rig *r, const char *name)
{
	return faccessat(r->g.dir_fd, name, F_OK, 0) == 0;
}

/* Until nothing is done any more: a job of its own, behind all others, has been. */
struct last {
	struct group_job job;
	bool done;
};

static int run_last(struct group_job *j)
{
	(void)j;
	return 0;
}

static void done_last(struct group_job *j, int rc)
{
	(void)rc;
	list_entry(j, struct last, job)->done = true;
}

static void settle(struct rig *r)
{
	struct last last = {.job = {.run = run_last, .done = done_last}};

	group_worker_add(&r->g.worker, &last.job);
	while (!last.done)
		assert_int_equal(loop_run_once(&r->loop, -1), 0);
}

static void on_moved(void *owner, int rc, const char *text)
{
	struct rig *r = owner;

	r->moved++;
	r->rc = rc;
	snprintf(r->text, sizeof(r->text), "%s", text);
}

static const struct vm_size size = {1024, 2, 4096};

static struct vm_group *new_group(struct rig *r, struct vm_group *from, bool paused)
{
	struct vm_group *v = vm_group_new(&r->g, r, &size, from, paused);

	assert_non_null(v);
	return v;
}

/* EAGAIN is what the kernel says at cgroup.max.descendants: a failure, which is told, once. */
static void test_make_is_not_tried_again(void **state)
{
	struct rig *r = *state;
	struct vm_group *v;

	kernel.pids_rc = -EAGAIN;
	/* The fork that it is for fails meanwhile: removed behind that, and nothing of it waits. */
	vm_group_end(new_group(r, NULL, false));
	settle(r);
	assert_int_equal(kernel.pids_writes, 1);
	assert_false(there(r, "vm-1"));
	v = new_group(r, NULL, false);
	vm_group_move(v, 1, on_moved);
	settle(r);
	assert_int_equal(r->moved, 1);
	assert_int_equal(r->rc, -EAGAIN);
	assert_non_null(strstr(r->text, "pids.max"));
	assert_int_equal(kernel.pids_writes, 2);
	vm_group_end(v);
	settle(r);
	assert_false(there(r, "vm-2"));
}

static void test_move_is_not_tried_again(void **state)
{
	struct rig *r = *state;
	struct vm_group *v = new_group(r, NULL, false);

	kernel.procs_rc = -EAGAIN;
	vm_group_move(v, 1, on_moved);
	settle(r);
	assert_int_equal(r->moved, 1);
	assert_int_equal(r->rc, -EAGAIN);
	assert_true(there(r, "vm-1"));
	vm_group_end(v);
	settle(r);
	assert_false(there(r, "vm-1"));
}

struct again {
	struct group_job job;
	int left, runs;
	bool done;
};

static int run_again(struct group_job *j)
{
	struct again *a = list_entry(j, struct again, job);

	a->runs++;
	return a->left-- ? GROUP_JOB_AGAIN : -EBUSY;
}

static void done_again(struct group_job *j, int rc)
{
	assert_int_equal(rc, -EBUSY);
	list_entry(j, struct again, job)->done = true;
}

static void test_what_asks_for_it_is(void **state)
{
	struct rig *r = *state;
	struct again a = {.job = {.run = run_again, .done = done_again}, .left = 3};

	group_worker_add(&r->g.worker, &a.job);
	while (!a.done)
		assert_int_equal(loop_run_once(&r->loop, -1), 0);
	assert_int_equal(a.runs, 4);
}

/* memory.current of vm-1, a file in a directory that must be empty at the end. */
static void uses(struct rig *r, uint64_t mib)
{
	FILE *f;
	char path[128];

	snprintf(path, sizeof(path), "%s/vm-1/memory.current", r->dir);
	f = fopen(path, "w");
	assert_non_null(f);
	fprintf(f, "%llu\n", (unsigned long long)(mib * MIB));
	fclose(f);
}

static uint64_t allowed_mib(void)
{
	return kernel.memory_max[1] / MIB;
}

#define ALONE 1168u /* 1024 + 16 + 128 */
#define COPY  1027u /* what it shares, and what fork(2) makes */

static void test_only_living_copies_count(void **state)
{
	struct rig *r = *state;
	struct vm_group *v = new_group(r, NULL, false), *copy[8], *grandchild;
	char path[128];

	settle(r);
	assert_int_equal(allowed_mib(), ALONE);
	uses(r, 700);
	for (size_t i = 0; i < ARRAY_SIZE(copy); i++)
		copy[i] = new_group(r, v, false);
	settle(r);
	assert_int_equal(allowed_mib(), ALONE + 8 * COPY);
	grandchild = new_group(r, copy[0], false);
	for (size_t i = 0; i < ARRAY_SIZE(copy); i++)
		vm_group_end(copy[i]);
	settle(r);
	assert_int_equal(allowed_mib(), ALONE + COPY); /* a copy of the first one shares as well */
	vm_group_end(grandchild);
	settle(r);
	assert_int_equal(allowed_mib(), ALONE);
	/* And it rises again. */
	copy[0] = new_group(r, v, false);
	assert_int_equal(allowed_mib(), ALONE + COPY);
	vm_group_end(copy[0]);
	settle(r);
	assert_int_equal(allowed_mib(), ALONE);
	snprintf(path, sizeof(path), "%s/vm-1/memory.current", r->dir);
	assert_int_equal(unlink(path), 0);
	vm_group_end(v);
	settle(r);
}

/* What it has it keeps: the kernel would end it otherwise. */
static void test_not_below_what_is_in_use(void **state)
{
	struct rig *r = *state;
	struct vm_group *v = new_group(r, NULL, false), *copy[3];
	char path[128];

	settle(r);
	for (size_t i = 0; i < ARRAY_SIZE(copy); i++)
		copy[i] = new_group(r, v, false);
	settle(r);
	uses(r, 3000);
	vm_group_end(copy[0]);
	settle(r);
	assert_int_equal(allowed_mib(), ALONE + 2 * COPY);
	vm_group_end(copy[1]);
	settle(r);
	assert_int_equal(allowed_mib(), 3000 + 128);
	uses(r, 500);
	vm_group_end(copy[2]);
	settle(r);
	assert_int_equal(allowed_mib(), ALONE);
	snprintf(path, sizeof(path), "%s/vm-1/memory.current", r->dir);
	assert_int_equal(unlink(path), 0);
	vm_group_end(v);
	settle(r);
}

/* An original that has ended is allowed nothing: its copies are not to be looked after any more. */
static void test_an_original_that_has_ended(void **state)
{
	struct rig *r = *state;
	struct vm_group *v = new_group(r, NULL, true), *copy;

	settle(r); /* it boots long before it is forked */
	copy = new_group(r, v, true);
	settle(r);
	assert_int_equal(allowed_mib(), ALONE + 3);
	vm_group_end(v);
	vm_group_end(copy);
	settle(r);
	assert_int_equal(allowed_mib(), ALONE + 3);
}

static void test_limits_of_a_proxy(void **state)
{
	struct rig *r = *state;
	struct proxy_group *pg;
	char text[160] = "";
	char path[128];
	FILE *f;

	r->g.controllers = CGROUP2_MEMORY | CGROUP2_PIDS | CGROUP2_CPU | CGROUP2_IO;
	pg = proxy_group_new(&r->g, r, 123, on_moved);
	assert_non_null(pg);
	assert_true(proxy_group_moving(pg));
	settle(r);
	assert_false(proxy_group_moving(pg));
	assert_int_equal(r->moved, 1);
	assert_int_equal(r->rc, 0);
	assert_string_equal(kernel.proxy, "memory.max=805306368;memory.swap.max=0;"
					  "cpu.max=100000 100000;pids.max=8;cgroup.procs=123;");
	assert_false(proxy_group_oom_text(pg, text, sizeof(text)));
	snprintf(path, sizeof(path), "%s/proxy-1/memory.events", r->dir);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs("low 0\noom 1\noom_kill 1\n", f);
	fclose(f);
	assert_true(proxy_group_oom_text(pg, text, sizeof(text)));
	assert_non_null(strstr(text, "limit of memory of its control group, 768 MiB"));
	assert_int_equal(unlink(path), 0);
	proxy_group_end(pg);
	settle(r);
	assert_false(there(r, "proxy-1"));
}

/* Only what there is is written, and one that cannot be moved is told of. */
static void test_a_proxy_that_cannot_be_moved(void **state)
{
	struct rig *r = *state;
	struct proxy_group *pg;

	r->g.controllers = 0;
	kernel.procs_rc = -EACCES;
	pg = proxy_group_new(&r->g, r, 123, on_moved);
	assert_non_null(pg);
	settle(r);
	assert_int_equal(r->rc, -EACCES);
	assert_non_null(strstr(r->text, "cgroup.procs"));
	assert_string_equal(kernel.proxy, "cgroup.procs=123;");
	proxy_group_end(pg);
	settle(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_make_is_not_tried_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_move_is_not_tried_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_what_asks_for_it_is, setup, teardown),
		cmocka_unit_test_setup_teardown(test_only_living_copies_count, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_below_what_is_in_use, setup, teardown),
		cmocka_unit_test_setup_teardown(test_an_original_that_has_ended, setup, teardown),
		cmocka_unit_test_setup_teardown(test_limits_of_a_proxy, setup, teardown),
		cmocka_unit_test_setup_teardown(test_a_proxy_that_cannot_be_moved, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
