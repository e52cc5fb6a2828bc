/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layered disk: what it contains against plain memory, what it takes up on the
 * host, what it closes, and that a frozen layer cannot be written any more.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "disk_model.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define C    ((uint64_t)LAYERS_CLUSTER)
#define SIZE (64 * C)

static uint64_t random_state = 88172645463325252ull;

static uint32_t rnd(uint32_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 16) % below;
}

static int count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static void test_init_refuses(void **state)
{
	struct layer_fds good = disk_model_layer(), other = disk_model_layer(), f;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), before = count_fds();
	struct layers l;

	(void)state;
	assert_int_equal(layers_init(&l, 0, good), -EINVAL);
	assert_int_equal(layers_init(&l, C + 512, good), -EINVAL);
	assert_int_equal(layers_init(&l, LAYERS_SIZE_MAX + C, good), -EINVAL);
	f = (struct layer_fds){good.rw, good.rw}; /* would stay writable after a fork */
	assert_int_equal(layers_init(&l, C, f), -EINVAL);
	f = (struct layer_fds){good.ro, good.ro};
	assert_int_equal(layers_init(&l, C, f), -EINVAL);
	f = (struct layer_fds){good.rw, other.ro}; /* two files */
	assert_int_equal(layers_init(&l, C, f), -EINVAL);
	f = (struct layer_fds){null, null};
	assert_int_equal(layers_init(&l, C, f), -EINVAL);
	f = (struct layer_fds){-1, -1};
	assert_int_equal(layers_init(&l, C, f), -EBADF);
	assert_int_equal(pwrite(other.rw, "x", 1, 0), 1); /* not empty */
	assert_int_equal(layers_init(&l, C, other), -EINVAL);
	assert_int_equal(count_fds(), before);
	assert_int_equal(layers_init(&l, LAYERS_SIZE_MAX, good), 0);
	layers_free(&l);
	assert_int_equal(count_fds(), before - 2);
	close(other.rw);
	close(other.ro);
	close(null);
}

static void test_edges(void **state)
{
	static const struct {
		uint64_t off;
		uint32_t len;
	} range[] = {{0, 1},        {C - 1, 2},          {C, C},
		     {SIZE - 1, 1}, {3 * C + 7, 3 * C},  {SIZE - C, C},
		     {0, 5 * C},    {10 * C - 512, 1024}};
	struct disk_model d, child;

	(void)state;
	disk_model_init(&d, SIZE);
	disk_model_check_all(&d); /* zeros */
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < sizeof(range) / sizeof(range[0]); i++) {
			assert_int_equal(disk_model_write(&d, range[i].off, range[i].len,
							  (uint32_t)i + 7 * (uint32_t)round),
					 0);
			disk_model_check_all(&d);
		}
		for (size_t i = 0; i < sizeof(range) / sizeof(range[0]); i += 2) {
			disk_model_zero(&d, range[i].off, range[i].len);
			disk_model_check_all(&d);
		}
		disk_model_fork(&d, &child);
		disk_model_check_all(&child);
		disk_model_free(&child);
		for (size_t i = 1; i < sizeof(range) / sizeof(range[0]); i += 2) {
			disk_model_discard(&d, range[i].off, range[i].len);
			disk_model_check_all(&d);
		}
	}
	disk_model_free(&d);
}

#define SIDES 6

/* Thousands of random steps on a family of disks; every member is checked byte by byte. */
static void test_random_family(void **state)
{
	struct disk_model d[SIDES];
	unsigned int live = 1;
	int before = count_fds();

	(void)state;
	disk_model_init(&d[0], SIZE);
	for (int step = 0; step < 6000; step++) {
		unsigned int who = rnd(live);
		struct disk_model *m = &d[who];
		uint64_t off = rnd(2) ? rnd(64) * C : rnd((uint32_t)(SIZE / 512)) * 512ull;
		uint64_t len = rnd(3) ? (1 + rnd(200)) * 512ull : (1 + rnd(5)) * C;

		if (len > SIZE - off)
			len = SIZE - off;
		switch (rnd(16)) {
		case 0:
			disk_model_zero(m, off, len);
			break;
		case 1:
			disk_model_discard(m, off, len);
			break;
		case 2:
			if (live < SIDES) {
				disk_model_fork(m, &d[live++]);
			} else {
				disk_model_free(m);
				*m = d[--live];
			}
			break;
		case 3:
			assert_true(layers_flatten(&m->l, rnd(20)) >= 0);
			break;
		case 4:
			assert_int_equal(layers_flush(&m->l), 0);
			break;
		case 5:
		case 6:
		case 7:
			disk_model_check(m, off, len);
			break;
		default:
			assert_int_equal(disk_model_write(m, off, (uint32_t)len, rnd(1u << 30)), 0);
		}
		if (step % 100 == 0)
			for (unsigned int i = 0; i < live; i++)
				disk_model_check_all(&d[i]);
	}
	for (unsigned int i = 0; i < live; i++) {
		disk_model_check_all(&d[i]);
		disk_model_free(&d[i]);
	}
	assert_int_equal(count_fds(), before);
}

/* 40 generations: the chain stays bounded, with and without the background's help. */
static void test_chain(void **state)
{
	const bool background = *state != NULL;
	struct disk_model d[41];
	int before = count_fds();

	disk_model_init(&d[0], SIZE);
	for (uint32_t i = 0; i < 40; i++) {
		unsigned int most = background ? LAYERS_FLATTEN_AT + 1 : LAYERS_MAX;

		for (uint32_t k = 0; k < 3; k++)
			assert_int_equal(disk_model_write(&d[i],
							  rnd((uint32_t)(SIZE / 512 - 8)) * 512ull,
							  4096, 1000 * i + k),
					 0);
		disk_model_fork(&d[i], &d[i + 1]);
		if (background && layers_wants_flatten(&d[i + 1].l)) {
			while (layers_flatten(&d[i + 1].l, 4) == 1)
				disk_model_check(&d[i + 1], 0, SIZE);
			assert_true(d[i + 1].l.count <= LAYERS_FLATTEN_TO);
		}
		assert_true(d[i + 1].l.count <= most);
		disk_model_check_all(&d[i + 1]);
	}
	/* Nobody has changed anybody else. */
	for (int i = 0; i <= 40; i++)
		disk_model_check_all(&d[i]);
	/* The last one outlives all others. */
	for (int i = 0; i < 40; i++)
		disk_model_free(&d[i]);
	assert_int_equal(count_fds(), before + (int)d[40].l.count + 1);
	disk_model_check_all(&d[40]);
	disk_model_free(&d[40]);
	assert_int_equal(count_fds(), before);
}

/* Forks of a disk that nobody writes to do not make the chain longer. */
static void test_idle_forks(void **state)
{
	struct disk_model d, child;

	(void)state;
	disk_model_init(&d, SIZE);
	assert_int_equal(disk_model_write(&d, 0, 1000, 1), 0);
	for (int i = 0; i < 200; i++) {
		disk_model_fork(&d, &child);
		assert_int_equal(d.l.count, 2);
		assert_int_equal(child.l.count, 2);
		disk_model_free(&child);
	}
	disk_model_check_all(&d);
	disk_model_free(&d);
}

static void test_push_failures_change_nothing(void **state)
{
	struct layer_fds f = disk_model_layer();
	struct disk_model d;
	int before;

	(void)state;
	disk_model_init(&d, SIZE);
	for (uint32_t i = 0; i < LAYERS_MAX; i++) {
		assert_int_equal(disk_model_write(&d, i * C, 512, i), 0);
		if (i + 1 < LAYERS_MAX)
			assert_int_equal(layers_push(&d.l, disk_model_layer()), 0);
	}
	assert_int_equal(d.l.count, LAYERS_MAX);
	before = count_fds();
	assert_int_equal(layers_push(&d.l, f), -EMLINK);
	assert_int_equal(layers_push(&d.l, (struct layer_fds){f.rw, f.rw}), -EINVAL);
	assert_int_equal(layers_replace_top(&d.l, f), -EBUSY);
	assert_int_equal(count_fds(), before);
	disk_model_check_all(&d);
	assert_int_equal(layers_make_room(&d.l, false), 0);
	assert_true(d.l.count < LAYERS_MAX);
	assert_int_equal(layers_push(&d.l, f), 0);
	disk_model_check_all(&d);
	disk_model_free(&d);
}

/* A process that was forked off, or its parent, cannot change what they share. */
static void test_frozen_is_read_only(void **state)
{
	struct disk_model d, child;

	(void)state;
	disk_model_init(&d, SIZE);
	assert_int_equal(disk_model_write(&d, 0, 1000, 1), 0);
	disk_model_fork(&d, &child);
	for (unsigned int i = 0; i < LAYERS_MAX; i++) {
		if (child.l.layer[i].fd < 0)
			continue;
		assert_int_equal(pwrite(child.l.layer[i].fd, "x", 1, 0), -1);
		assert_int_equal(errno, EBADF);
		assert_int_equal(ftruncate(child.l.layer[i].fd, 0), -1);
		assert_true(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
				 child.l.layer[i].fd, 0) == MAP_FAILED);
	}
	disk_model_free(&child);
	disk_model_free(&d);
}

static void test_space(void **state)
{
	struct disk_model d, child;
	int64_t full;
	int fds;

	(void)state;
	disk_model_init(&d, SIZE);
	assert_int_equal(layers_top_bytes(&d.l), 0);
	assert_int_equal(disk_model_write(&d, 0, 8 * C, 1), 0);
	full = layers_top_bytes(&d.l);
	assert_in_range(full, 8 * C, 9 * C);
	/* Half of it goes back to the host. */
	disk_model_discard(&d, 0, 4 * C);
	assert_in_range(layers_top_bytes(&d.l), 4 * C, 5 * C);
	disk_model_zero(&d, 4 * C, 2 * C);
	assert_in_range(layers_top_bytes(&d.l), 2 * C, 3 * C);
	/* Part of a cluster, too. */
	disk_model_discard(&d, 6 * C, C / 2);
	assert_in_range(layers_top_bytes(&d.l), C, 2 * C);
	assert_int_equal(d.l.used, 2);
	/* A fork costs nothing, whatever the disk holds; and a write what it touches. */
	disk_model_fork(&d, &child);
	assert_int_equal(layers_top_bytes(&child.l), 0);
	assert_int_equal(layers_top_bytes(&d.l), 0);
	assert_int_equal(disk_model_write(&child, 7 * C + 5, 10, 3), 0);
	assert_in_range(layers_top_bytes(&child.l), 1, C + 8192);
	disk_model_check_all(&child);
	disk_model_check_all(&d);
	/* The lower layer is closed when nothing of it is used any more. */
	fds = count_fds();
	assert_int_equal(child.l.count, 2);
	disk_model_discard(&child, 0, SIZE);
	assert_int_equal(child.l.count, 1);
	assert_int_equal(count_fds(), fds - 1);
	assert_int_equal(layers_top_bytes(&child.l), 0);
	disk_model_check_all(&child);
	disk_model_check_all(&d);
	disk_model_free(&child);
	disk_model_free(&d);
}

/* 64 GiB, with something at either end. */
static void test_large(void **state)
{
	struct layers l;
	char got[16];
	struct iovec v = {(char[]){"first"}, 5};

	(void)state;
	assert_int_equal(layers_init(&l, LAYERS_SIZE_MAX, disk_model_layer()), 0);
	assert_int_equal(layers_write(&l, 0, &v, 1), 0);
	v = (struct iovec){(char[]){"last!"}, 5};
	assert_int_equal(layers_write(&l, LAYERS_SIZE_MAX - 5, &v, 1), 0);
	assert_int_equal(layers_push(&l, disk_model_layer()), 0);
	v = (struct iovec){(char[]){"LA"}, 2};
	assert_int_equal(layers_write(&l, LAYERS_SIZE_MAX - 5, &v, 1), 0);
	v = (struct iovec){got, 10};
	assert_int_equal(layers_read(&l, LAYERS_SIZE_MAX - 10, &v, 1), 0);
	assert_memory_equal(got, "\0\0\0\0\0LAst!", 10);
	assert_int_equal(layers_zero(&l, 0, LAYERS_SIZE_MAX), 0);
	assert_int_equal(l.used, 0);
	assert_int_equal(l.count, 1);
	layers_free(&l);
}

/* A flush reaches layers that were written and have been frozen since. */
static void test_flush(void **state)
{
	struct disk_model d;

	(void)state;
	disk_model_init(&d, SIZE);
	assert_int_equal(disk_model_write(&d, 0, 10, 1), 0);
	assert_int_equal(layers_push(&d.l, disk_model_layer()), 0);
	assert_int_equal(disk_model_write(&d, C, 10, 1), 0);
	assert_true(d.l.layer[0].unsynced && d.l.layer[1].unsynced);
	assert_int_equal(layers_flush(&d.l), 0);
	assert_false(d.l.layer[0].unsynced || d.l.layer[1].unsynced);
	disk_model_free(&d);
}

/* A real fork(2): both processes write at the same time and see only their own. */
static void test_processes(void **state)
{
	struct disk_model d;
	int status;
	pid_t pid;

	(void)state;
	disk_model_init(&d, SIZE);
	assert_int_equal(disk_model_write(&d, 0, (uint32_t)SIZE / 2, 1), 0);
	assert_int_equal(layers_push(&d.l, disk_model_layer()), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		assert_int_equal(layers_replace_top(&d.l, disk_model_layer()), 0);
	for (uint32_t i = 0; i < 300; i++)
		assert_int_equal(disk_model_write(&d, (i * 37 % 120) * 32768ull + i, 4096,
						  i + (pid ? 1u << 20 : 0)),
				 0);
	disk_model_check_all(&d);
	if (pid == 0)
		_exit(0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	disk_model_check_all(&d);
	disk_model_free(&d);
}

int main(void)
{
	static int yes = 1;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_init_refuses),
		cmocka_unit_test(test_edges),
		cmocka_unit_test(test_random_family),
		cmocka_unit_test(test_chain),
		cmocka_unit_test_prestate(test_chain, &yes),
		cmocka_unit_test(test_idle_forks),
		cmocka_unit_test(test_push_failures_change_nothing),
		cmocka_unit_test(test_frozen_is_read_only),
		cmocka_unit_test(test_space),
		cmocka_unit_test(test_large),
		cmocka_unit_test(test_flush),
		cmocka_unit_test(test_processes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
