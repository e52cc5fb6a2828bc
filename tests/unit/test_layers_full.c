/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layered disk on a host that has no space left: a limit on file sizes anywhere,
 * and, for root, a file system that is really full.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "disk_model.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#define C    ((uint64_t)LAYERS_CLUSTER)
#define SIZE (64 * C)

static struct rlimit unlimited;

static void limit_files(uint64_t bytes)
{
	const struct rlimit l = {bytes, unlimited.rlim_max};

	assert_int_equal(setrlimit(RLIMIT_FSIZE, bytes ? &l : &unlimited), 0);
}

/* What a failed write may have left in the range: old bytes or new ones. */
static void settle(struct disk_model *d, uint64_t off, uint32_t len)
{
	struct iovec v = {d->want + off, len};

	assert_int_equal(layers_read(&d->l, off, &v, 1), 0);
}

/* Writes that fail in the middle of a run, of a cluster, and while copying up. */
static void test_partial_failures(void **state)
{
	struct disk_model d, child;

	(void)state;
	disk_model_init(&d, SIZE);
	assert_int_equal(disk_model_write(&d, 0, (uint32_t)(24 * C), 1), 0);
	assert_int_equal(layers_push(&d.l, disk_model_layer()), 0);
	limit_files(20 * C + C / 2);
	/* A cluster of the layer below: its end does not go up. */
	assert_int_equal(disk_model_write(&d, 20 * C + 100, 100, 2), -EFBIG);
	disk_model_check_all(&d);
	/* New clusters: the file takes half of the first. */
	disk_model_zero(&d, 20 * C, 2 * C);
	assert_int_equal(disk_model_write(&d, 20 * C, (uint32_t)(2 * C), 3), -EFBIG);
	disk_model_check_all(&d); /* nothing of it shows */
	assert_int_equal(disk_model_write(&d, 20 * C + 1000, 100, 4), 0);
	disk_model_check_all(&d); /* zeros around, not what the failed write had left */
	/* In place: old and new bytes. */
	assert_int_equal(disk_model_write(&d, 20 * C, (uint32_t)C, 5), -EFBIG);
	settle(&d, 20 * C, (uint32_t)C);
	disk_model_check_all(&d);
	/* What is below goes on, forks as well. */
	assert_int_equal(disk_model_write(&d, C, (uint32_t)(3 * C), 6), 0);
	disk_model_fork(&d, &child);
	limit_files(0);
	assert_int_equal(disk_model_write(&child, 20 * C + 100, 100, 7), 0);
	assert_int_equal(disk_model_write(&d, 23 * C, (uint32_t)(9 * C), 8), 0);
	disk_model_check_all(&child);
	disk_model_check_all(&d);
	disk_model_free(&child);
	disk_model_free(&d);
}

/* Flattening that fails stays as far as it came, and goes on later. */
static void test_flatten_failure(void **state)
{
	struct disk_model d;

	(void)state;
	disk_model_init(&d, SIZE);
	for (uint32_t i = 0; i < LAYERS_MAX; i++) {
		assert_int_equal(disk_model_write(&d, (i + 4) * C, 512, i), 0);
		if (i + 1 < LAYERS_MAX)
			assert_int_equal(layers_push(&d.l, disk_model_layer()), 0);
	}
	limit_files(3 * C); /* every copy fails */
	assert_int_equal(layers_make_room(&d.l, false), -EFBIG);
	assert_int_equal(d.l.count, LAYERS_MAX);
	disk_model_check_all(&d);
	assert_int_equal(layers_flatten(&d.l, 1000), -EFBIG);
	disk_model_check_all(&d);
	limit_files(0);
	assert_int_equal(layers_make_room(&d.l, false), 0);
	while (layers_flatten(&d.l, 3) == 1)
		;
	assert_true(d.l.count <= LAYERS_FLATTEN_TO);
	disk_model_check_all(&d);
	disk_model_free(&d);
}

/* Two disks on one full file system of 4 MiB. */
static void test_full_file_system(void **state)
{
	char dir[] = "/tmp/podflare-full.XXXXXX";
	struct disk_model d, child;
	uint64_t failed = 0, random = 12345;

	(void)state;
	if (geteuid() != 0 || unshare(CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		skip();
	assert_non_null(mkdtemp(dir));
	assert_int_equal(mount("none", dir, "tmpfs", 0, "size=4m"), 0);
	disk_model_dir = dir;
	disk_model_init(&d, SIZE);
	assert_int_equal(disk_model_write(&d, 0, (uint32_t)(10 * C), 1), 0);
	disk_model_fork(&d, &child);
	for (uint32_t i = 0; i < 3000; i++) {
		struct disk_model *m = i % 2 ? &child : &d;
		uint64_t off, len;

		random = random * 6364136223846793005ull + 1442695040888963407ull;
		off = (random >> 33) % (SIZE / 512 - 400) * 512;
		len = ((random >> 20) % 300 + 1) * 512;
		if (i % 16 == 0) {
			disk_model_discard(m, off, len * 4 < SIZE - off ? len * 4 : SIZE - off);
		} else {
			int rc = disk_model_write(m, off, (uint32_t)len, i);

			if (rc) {
				assert_int_equal(rc, -ENOSPC);
				failed++;
				settle(m, off, (uint32_t)len);
			}
		}
		if (i % 100 == 0) {
			disk_model_check_all(&d);
			disk_model_check_all(&child);
		}
	}
	assert_in_range(failed, 100, 2900);
	disk_model_check_all(&d);
	disk_model_check_all(&child);
	disk_model_free(&child);
	/* What the child had is free again. */
	disk_model_zero(&d, 0, SIZE);
	assert_int_equal(disk_model_write(&d, 0, (uint32_t)(60 * C), 1), 0);
	disk_model_check_all(&d);
	disk_model_free(&d);
	disk_model_dir = "/tmp";
	assert_int_equal(umount(dir), 0);
	assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_partial_failures),
		cmocka_unit_test(test_flatten_failure),
		cmocka_unit_test(test_full_file_system),
	};

	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &unlimited);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
