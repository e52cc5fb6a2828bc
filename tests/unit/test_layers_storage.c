/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a layered disk takes up on the host, however its guest writes and however
 * often it is forked: never more than layers.h says.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "disk_model.h"
#include "vmm/disk/layer_file.h"

#include <errno.h>

#define C ((uint64_t)LAYERS_CLUSTER)

static uint64_t random_state = 88172645463325252ull;

static uint32_t rnd(uint32_t below)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32_t)(random_state >> 16) % below;
}

/* What all files of a disk take up. */
static uint64_t storage_of(const struct layers *l)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < LAYERS_MAX; i++)
		if (l->layer[i].fd >= 0)
			sum += (uint64_t)layer_file_bytes(l->layer[i].fd);
	return sum;
}

#define MANY    1024u             /* clusters of the smallest disk that a machine may have */
#define STORAGE (3 * MANY * C)    /* layers.h */
#define BESIDE  (32 * 256 * 1024) /* what a file system notes about so many sparse files */

/* How a guest rewrites its disk between two forks: whether this cluster is written to. */
typedef bool rewrite_fn(uint32_t cluster, uint32_t round);

static bool all_but_one_more(uint32_t cluster, uint32_t round)
{
	return cluster >= round;
}

static bool every_other(uint32_t cluster, uint32_t round)
{
	return cluster % (1u << round % 6) == 0;
}

static bool at_random(uint32_t cluster, uint32_t round)
{
	(void)cluster;
	return rnd(100) < 35 + round;
}

/* Forks that are made as the VMM does: room, or again when there is some. */
static void push_when_there_is_room(struct layers *l)
{
	int rc;

	while ((rc = layers_make_room(l, true)) == -EAGAIN)
		assert_int_equal(layers_flatten(l, 4), 1);
	assert_int_equal(rc, 0);
	assert_int_equal(layers_push(l, disk_model_layer()), 0);
}

/* However a guest writes, and however its disk is forked: its storage has a bound. */
static void rewrite_and_fork(rewrite_fn *fn, unsigned int flatten)
{
	static uint8_t data[LAYERS_CLUSTER];
	struct layers l;

	assert_int_equal(layers_init(&l, MANY * C, disk_model_layer()), 0);
	for (uint32_t round = 0; round < 40; round++) {
		for (uint32_t c = 0; c < MANY; c++) {
			struct iovec v = {data, sizeof(data)};

			if (round && !fn(c, round))
				continue;
			data[0] = (uint8_t)(1 + round);
			assert_int_equal(layers_write(&l, c * C, &v, 1), 0);
			if (c % 64 == 63)
				assert_in_range(storage_of(&l), 0, STORAGE + BESIDE);
		}
		assert_int_equal(l.used, MANY);
		assert_in_range(storage_of(&l), 0, STORAGE + BESIDE);
		push_when_there_is_room(&l);
		for (unsigned int k = 0; k < flatten && layers_wants_flatten(&l); k++)
			assert_true(layers_flatten(&l, 16) >= 0);
		assert_in_range(storage_of(&l), 0, STORAGE + BESIDE);
	}
	layers_free(&l);
}

static void test_storage_has_a_bound(void **state)
{
	rewrite_fn *const fn[] = {all_but_one_more, every_other, at_random};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(fn); i++) {
		rewrite_and_fork(fn[i], 0);     /* nothing is done in the background */
		rewrite_and_fork(fn[i], 10);    /* a little */
		rewrite_and_fork(fn[i], 10000); /* all that is to be done */
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_storage_has_a_bound),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
