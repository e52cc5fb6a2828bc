/* SPDX-License-Identifier: Apache-2.0 */
/* What is written to a VM's control group, to the byte; and what the kernel says of it. */
#include "unit.h"

#include "daemon/disk_of.h"
#include "daemon/vm_limits.h"
#include "lib/cgroup2.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define ALL (CGROUP2_CPU | CGROUP2_MEMORY | CGROUP2_PIDS | CGROUP2_IO)

static const struct vm_limits_in usual = {.size = {1024, 2, 4096}, .controllers = ALL, .io = ""};

static void is(const struct group_limit *l, const char *file, const char *value)
{
	assert_string_equal(l->file, file);
	assert_string_equal(l->value, value);
}

static void limits_are(const struct vm_limits_in *in, struct group_limits *out, size_t n)
{
	out->n = 0;
	vm_limits(in, out);
	assert_int_equal(out->n, n);
}

static void test_values(void **state)
{
	struct group_limits out;
	struct vm_limits_in in = usual;

	(void)state;
	limits_are(&in, &out, 4);
	is(&out.of[0], "memory.max", "1224736768"); /* 1024 + 16 + 128 MiB */
	is(&out.of[1], "memory.swap.max", "0");
	is(&out.of[2], "cpu.max", "250000 100000");
	is(&out.of[3], "pids.max", "35");
	in.io = "8:0 rbps=1048576 wbps=1048576";
	limits_are(&in, &out, 5);
	is(&out.of[4], "io.max", in.io);
	in.size = (struct vm_size){65536, 32, 65536};
	limits_are(&in, &out, 5);
	is(&out.of[0], "memory.max", "69927436288");
	is(&out.of[2], "cpu.max", "3250000 100000");
	is(&out.of[3], "pids.max", "65");
}

static void test_only_what_there_is(void **state)
{
	struct group_limits out;
	struct vm_limits_in in = usual;

	(void)state;
	in.io = "8:0 rbps=1 wbps=1";
	in.controllers = 0;
	limits_are(&in, &out, 0);
	in.controllers = CGROUP2_PIDS;
	limits_are(&in, &out, 1);
	is(&out.of[0], "pids.max", "35");
	in.controllers = CGROUP2_IO;
	limits_are(&in, &out, 1);
	is(&out.of[0], "io.max", in.io);
}

static void test_disks_in_memory(void **state)
{
	struct vm_limits_in in = usual;
	uint64_t without = vm_memory_max(&in), copy = vm_memory_for_copy(&in, 0);

	(void)state;
	in.disks_in_memory = 1;
	assert_int_equal(vm_memory_max(&in) - without, 3ull * 4096 << 20);
	assert_int_equal(vm_memory_for_copy(&in, 0) - copy, 2ull * 4096 << 20);
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
	assert_int_equal(group_oom_kills("low 0\nhigh 0\nmax 7\noom 1\noom_kill 3\n"
					 "oom_group_kill 9\n"),
			 3);
	assert_int_equal(group_oom_kills("low 0\nmax 7\noom 1\noom_kill 0\n"), 0);
	assert_int_equal(group_oom_kills("oom_kill 12"), 12);
	assert_int_equal(group_oom_kills("oom_group_kill 1\nxoom_kill 2\n"), 0);
	assert_int_equal(group_oom_kills(""), 0);
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

/* --- whole disks -------------------------------------------------------------------------- */

/* Makes the path below root; a file if there is text for it, else a directory. */
static void put(const char *root, const char *name, const char *text)
{
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	for (char *p = path + strlen(root) + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = '\0';
		mkdir(path, 0700);
	}
	if (!text) {
		mkdir(path, 0700);
		return;
	}
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static void disk_is(const char *root, dev_t dev, const char *expected)
{
	struct err err = {0};
	unsigned int maj = 0, min = 0;
	char text[32] = "";
	int rc = disk_of(root, dev, &maj, &min, &err);

	if (rc == 0)
		snprintf(text, sizeof(text), "%u:%u", maj, min);
	assert_string_equal(text, expected);
	assert_int_equal(rc == 0, err.msg[0] == '\0');
}

static void test_disk_of(void **state)
{
	static const char *const links[][2] = {
		{"8:0", "../../devices/pci/sda"},        {"8:1", "../../devices/pci/sda/sda1"},
		{"259:3", "../../devices/nvme/n1/n1p2"}, {"254:16", "../../devices/virtio/vdb"},
		{"253:0", "../../devices/virtual/dm-0"}, {"8:17", "../../devices/pci/sdb/sdb1"},
		{"8:33", "../../devices/pci/sdc/sdc1"},
	};
	char root[] = "/tmp/disk_of.XXXXXX", path[256];

	(void)state;
	assert_non_null(mkdtemp(root));
	put(root, "sys/devices/pci/sda/dev", "8:0\n");
	put(root, "sys/devices/pci/sda/sda1/partition", "1\n");
	put(root, "sys/devices/pci/sda/sda1/dev", "8:1\n");
	put(root, "sys/devices/nvme/n1/dev", "259:0\n");
	put(root, "sys/devices/nvme/n1/n1p2/partition", "2\n");
	put(root, "sys/devices/virtio/vdb/dev", "254:16\n");
	put(root, "sys/devices/virtual/dm-0/dev", "253:0\n");
	put(root, "sys/devices/pci/sdb/sdb1/partition", "1\n");
	put(root, "sys/devices/pci/sdc/sdc1/partition", "1\n");
	put(root, "sys/devices/pci/sdc/dev", "none\n");
	put(root, "sys/dev/block", NULL);
	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++) {
		snprintf(path, sizeof(path), "%s/sys/dev/block/%s", root, links[i][0]);
		assert_int_equal(symlink(links[i][1], path), 0);
	}
	disk_is(root, makedev(8, 0), "8:0");
	disk_is(root, makedev(8, 1), "8:0");
	disk_is(root, makedev(259, 3), "259:0");
	disk_is(root, makedev(254, 16), "254:16");
	disk_is(root, makedev(253, 0), "253:0"); /* a mapped one is limited as what it is */
	disk_is(root, makedev(0, 42), "");       /* none: a tmpfs */
	disk_is(root, makedev(8, 17), "");       /* a partition of what does not say its number */
	disk_is(root, makedev(8, 33), "");
	snprintf(path, sizeof(path), "rm -r %s", root);
	assert_int_equal(system(path), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values),          cmocka_unit_test(test_only_what_there_is),
		cmocka_unit_test(test_disks_in_memory), cmocka_unit_test(test_copies),
		cmocka_unit_test(test_events),          cmocka_unit_test(test_names),
		cmocka_unit_test(test_disk_of),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
