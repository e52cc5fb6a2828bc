/* SPDX-License-Identifier: Apache-2.0 */
/* What is written to a VM's control group, to the byte; and what the kernel says of it. */
#include "unit.h"

#include "daemon/vm_limits.h"
#include "lib/cgroup2.h"

#include <stdio.h>
#include <string.h>

#define ALL (CGROUP2_CPU | CGROUP2_MEMORY | CGROUP2_PIDS | CGROUP2_IO)

static const struct vm_limits_in usual = {.size = {1024, 2, 4096}, .controllers = ALL, .io = ""};

static void is(const struct vm_limit *l, const char *file, const char *value)
{
	assert_string_equal(l->file, file);
	assert_string_equal(l->value, value);
}

static void test_values(void **state)
{
	struct vm_limit out[VM_LIMITS_MAX];
	struct vm_limits_in in = usual;

	(void)state;
	assert_int_equal(vm_limits(&in, out), 4);
	is(&out[0], "memory.max", "1224736768"); /* 1024 + 16 + 128 MiB */
	is(&out[1], "memory.swap.max", "0");
	is(&out[2], "cpu.max", "250000 100000");
	is(&out[3], "pids.max", "35");
	in.io = "8:0 rbps=1048576 wbps=1048576";
	assert_int_equal(vm_limits(&in, out), 5);
	is(&out[4], "io.max", in.io);
	in.size = (struct vm_size){65536, 32, 65536};
	assert_int_equal(vm_limits(&in, out), 5);
	is(&out[0], "memory.max", "69927436288");
	is(&out[2], "cpu.max", "3250000 100000");
	is(&out[3], "pids.max", "65");
}

static void test_only_what_there_is(void **state)
{
	struct vm_limit out[VM_LIMITS_MAX];
	struct vm_limits_in in = usual;

	(void)state;
	in.io = "8:0 rbps=1 wbps=1";
	in.controllers = 0;
	assert_int_equal(vm_limits(&in, out), 0);
	in.controllers = CGROUP2_PIDS;
	assert_int_equal(vm_limits(&in, out), 1);
	is(&out[0], "pids.max", "35");
	in.controllers = CGROUP2_IO;
	assert_int_equal(vm_limits(&in, out), 1);
	is(&out[0], "io.max", in.io);
}

static void test_disks_in_memory(void **state)
{
	struct vm_limits_in in = usual;
	uint64_t without = vm_memory_max(&in), copy = vm_memory_for_copy(&in, 0);

	(void)state;
	in.disks_in_memory = 1;
	assert_int_equal(vm_memory_max(&in) - without, 2ull * 4096 << 20);
	assert_int_equal(vm_memory_for_copy(&in, 0) - copy, 4096ull << 20);
}

/* What it holds twice after a fork fits; a template's copies cost it their page tables. */
static void test_copies(void **state)
{
	(void)state;
	assert_int_equal(vm_memory_for_copy(&usual, 0), (1024ull + 2 + 1) << 20);
	assert_int_equal(vm_memory_for_copy(&usual, 1), (2ull + 1) << 20);
}

static void test_events(void **state)
{
	(void)state;
	assert_int_equal(vm_oom_kills("low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\n"
				      "oom_group_kill 9\n"),
			 3);
	assert_int_equal(vm_oom_kills("low 0\nmax 7\noom 1\noom_kill 0\n"), 0);
	assert_int_equal(vm_oom_kills("oom_kill 12"), 12);
	assert_int_equal(vm_oom_kills("oom_group_kill 1\nxoom_kill 2\n"), 0);
	assert_int_equal(vm_oom_kills(""), 0);
}

static void test_names(void **state)
{
	char names[32];

	(void)state;
	cgroup2_names(ALL, names, sizeof(names));
	assert_string_equal(names, "cpu memory pids io");
	cgroup2_names(0, names, sizeof(names));
	assert_string_equal(names, "");
	assert_int_equal(cgroup2_parse("cpuset cpu io memory hugetlb pids rdma misc\n"), ALL);
	assert_int_equal(cgroup2_parse("cpuset pid memory.max\n"), 0);
	assert_int_equal(cgroup2_parse(""), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values),          cmocka_unit_test(test_only_what_there_is),
		cmocka_unit_test(test_disks_in_memory), cmocka_unit_test(test_copies),
		cmocka_unit_test(test_events),          cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
