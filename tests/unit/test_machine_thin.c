/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers of a machine's disk that are too many, or take up too much: when the loop
 * thread thins them out, and what a fork does that comes before it.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "disk_model.h"
#include "disk_world.h"
#include "lib/io.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#define OUT VIRTIO_BLK_T_OUT

static void test_thinning_out(void **state)
{
	struct disk_world *w = *state;

	disk_world_grow(w, LAYERS_FLATTEN_AT - 1);
	disk_world_idle(w);
	assert_int_equal(w->m.disk.layers.count, LAYERS_FLATTEN_AT);
	disk_world_grow(w, 1);
	assert_int_equal(w->m.disk.layers.count, LAYERS_FLATTEN_AT + 1);
	assert_true(disk_world_run(w, 100) <= 1); /* not yet: the child may be gone soon */
	disk_world_run(w, 1000);
	assert_true(w->m.disk.layers.count <= LAYERS_FLATTEN_TO);
	disk_world_idle(w);
}

/* n forks, each after a write to more clusters than a fork may copy while its guest waits. */
static void grow_large(struct disk_world *w, unsigned n)
{
	const unsigned large = LAYERS_ROOM_CLUSTERS + 44;
	static uint8_t data[512];
	struct layers *l = &w->m.disk.layers;
	struct err err = {0};

	memset(data, 'x', sizeof(data));
	for (unsigned i = 0; i < n; i++) {
		struct layer_fds top = disk_model_layer();

		for (unsigned c = 0; c < large; c++) {
			struct iovec v = {data, sizeof(data)};

			assert_int_equal(
				layers_write(l, (uint64_t)w->next++ * LAYERS_CLUSTER, &v, 1), 0);
		}
		assert_int_equal(machine_disk_split(&w->m, &top, &err), 0);
	}
}

/* What a fork copies while its guest stands still has a bound, however large the layers are. */
static void test_room_costs_little(void **state)
{
	struct disk_world *w = *state;
	struct layers *l = &w->m.disk.layers;
	struct layer_fds top = disk_model_layer();
	struct err err = {0};
	uint64_t before;

	grow_large(w, LAYERS_MAX - 1);
	assert_int_equal(l->count, LAYERS_MAX);
	before = l->copied;
	assert_int_equal(machine_disk_make_room(&w->m, &err), -EAGAIN);
	assert_int_equal(l->copied, before);
	assert_non_null(strstr(err.msg, "again in a moment"));
	/* In steps of the loop, without a fork that would ask for it. */
	while (machine_disk_make_room(&w->m, &err) < 0) {
		assert_int_equal(l->copied, before);
		assert_int_equal(loop_run_once(&w->loop, 1000), 0);
		before = l->copied;
	}
	assert_in_range(l->copied - before, 0, LAYERS_ROOM_CLUSTERS);
	assert_int_equal(machine_disk_split(&w->m, &top, &err), 0);
	disk_world_until_layers(w, LAYERS_FLATTEN_TO);
	disk_world_idle(w);
}

/* One small layer among large ones: it is the one to go, whichever was being emptied. */
static void test_room_by_the_smallest(void **state)
{
	struct disk_world *w = *state;
	struct layers *l = &w->m.disk.layers;
	struct err err = {0};

	grow_large(w, LAYERS_FLATTEN_AT + 1);
	assert_int_equal(layers_flatten(l, 4), 1);
	disk_world_grow(w, 1);
	grow_large(w, LAYERS_MAX - l->count);
	assert_int_equal(l->count, LAYERS_MAX);
	assert_int_equal(machine_disk_make_room(&w->m, &err), 0);
	assert_int_equal(l->copied, 4 + (4 + 1)); /* it had the four as well */
}

/* Long before the limit is met, it is not put off any more. */
static void test_urgent_thinning_out(void **state)
{
	struct disk_world *w = *state;
	struct layers *l = &w->m.disk.layers;

	uint64_t before, after;

	grow_large(w, LAYERS_URGENT - 2);
	before = io_now_ns();
	disk_world_grow(w, 1);
	assert_int_equal(l->count, LAYERS_URGENT);
	assert_true(w->m.disk.flatten.at_ns >= before + 100000000);
	disk_world_grow(w, 1);
	after = io_now_ns();
	assert_true(w->m.disk.flatten.at_ns <= after + 1000000);
	while (l->copied == 0)
		assert_int_equal(loop_run_once(&w->loop, 1000), 0);
	assert_true(l->copied >= 8);
}

/* A guest that has its queue full at all times: each flush takes one stay, and the loop's next
 * turn.
 */
static void test_urgent_thinning_out_of_a_busy_disk(void **state)
{
	struct disk_world *w = *state;
	struct layers *l = &w->m.disk.layers;
	unsigned turns = 0;

	grow_large(w, LAYERS_URGENT);
	assert_true(layers_urgent(l));
	for (unsigned n = 0; n < 3; n++)
		rig_submit(&w->r, n, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
	fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
	machine_disk_settle(&w->m);
	while (layers_urgent(l)) {
		uint32_t id, len;

		assert_true(++turns < 100000);
		assert_int_equal(loop_run_once(&w->loop, 1000), 0);
		while (fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len))
			rig_submit(&w->r, id / 4, VIRTIO_BLK_T_FLUSH, 0, 0, 0);
	}
	assert_true(turns > l->copied / 16); /* it was busy all the time */
}

static void limit_files(rlim_t bytes)
{
	struct rlimit r;

	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &r);
	r.rlim_cur = bytes;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &r), 0);
}

/* The host's storage was full for a while: nobody has to fork for the chain to become short. */
static void test_thinning_out_goes_on_after_a_failure(void **state)
{
	struct disk_world *w = *state;
	struct layers *l = &w->m.disk.layers;

	disk_world_grow(w, LAYERS_FLATTEN_AT + 1);
	limit_files(1);
	assert_true(disk_world_run(w, 3500) <= 8); /* it is tried a few times, not all the time */
	assert_int_equal(l->count, LAYERS_FLATTEN_AT + 2);
	limit_files(RLIM_INFINITY);
	disk_world_until_layers(w, LAYERS_FLATTEN_TO);
	disk_world_idle(w);
}

/* At the limit, on full storage: a fork is refused with the host's reason, and the next one tries.
 */
static void test_no_room_on_full_storage(void **state)
{
	struct disk_world *w = *state;
	struct err err = {0};

	disk_world_grow(w, LAYERS_MAX - 1);
	limit_files(1);
	assert_int_equal(machine_disk_make_room(&w->m, &err), -EFBIG);
	assert_non_null(strstr(err.msg, "room for another layer"));
	disk_world_run(w, 400);
	assert_int_equal(w->m.disk.layers.count, LAYERS_MAX);
	limit_files(RLIM_INFINITY);
	assert_int_equal(machine_disk_make_room(&w->m, &err), 0);
	disk_world_until_layers(w, LAYERS_FLATTEN_TO);
}

#define SMALL (MACHINE_DISK_MIN_MIB * 16) /* clusters of the smallest disk */

static void rewrite(struct disk_world *w, unsigned from, unsigned end)
{
	static uint8_t data[LAYERS_CLUSTER];

	for (unsigned c = from; c < end; c++) {
		struct iovec v = {data, sizeof(data)};

		memset(data, (int)(1 + c % 200), 16);
		assert_int_equal(
			layers_write(&w->m.disk.layers, (uint64_t)c * LAYERS_CLUSTER, &v, 1), 0);
	}
}

static void split(struct disk_world *w)
{
	struct layer_fds top = disk_model_layer();
	struct err err = {0};

	assert_int_equal(machine_disk_split(&w->m, &top, &err), 0);
}

/*
 * Three layers of a small disk that is full, without the loop, and two clusters of storage less
 * than what may be below a top. To empty either of the lower two is more than a fork may do.
 */
static void pile_up(struct disk_world *w)
{
	struct layers *l = &w->m.disk.layers;

	layers_free(l);
	assert_int_equal(layers_init(l, SMALL * (uint64_t)LAYERS_CLUSTER, disk_model_layer()), 0);
	rewrite(w, 0, SMALL);
	split(w);
	rewrite(w, 0, SMALL - LAYERS_ROOM_CLUSTERS - 1);
	split(w);
	rewrite(w, 0, LAYERS_ROOM_CLUSTERS - 1);
	assert_int_equal(l->stored, LAYERS_BELOW * SMALL - 2);
}

/* Nobody forks any more: what the guest writes makes the old layers useless. */
static void test_tidying_begins_with_a_write(void **state)
{
	struct disk_world *w = *state;
	struct layers *l = &w->m.disk.layers;

	layers_free(l);
	assert_int_equal(layers_init(l, SMALL * (uint64_t)LAYERS_CLUSTER, disk_model_layer()), 0);
	rewrite(w, 0, SMALL);
	split(w);
	rewrite(w, 0, SMALL / 2);
	memset(fake_ptr(&w->r.f, RIG_DATA), 'x', LAYERS_CLUSTER);
	for (unsigned i = 0; i < 3; i++) {
		disk_world_idle(w);
		assert_int_equal(l->copied, 0);
		rig_submit(&w->r, 0, OUT, (SMALL / 2 - 1 + i) * LAYERS_CLUSTER / 512, RIG_DATA,
			   LAYERS_CLUSTER);
		fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
		assert_int_equal(rig_status(&w->r, 0), VIRTIO_BLK_S_OK);
		if (layers_wants_flatten(l))
			break;
	}
	disk_world_until_layers(w, 1);
	assert_int_equal(l->stored, SMALL);
	disk_world_idle(w);
}

static void test_no_room_below(void **state)
{
	struct disk_world *w = *state;
	struct layers *l = &w->m.disk.layers;
	struct err err = {0};

	pile_up(w);
	rewrite(w, 0, LAYERS_ROOM_CLUSTERS + 3);
	assert_int_equal(machine_disk_make_room(&w->m, &err), -EAGAIN);
	assert_int_equal(l->copied, 0);
	assert_non_null(strstr(err.msg, "again in a moment"));
	while (machine_disk_make_room(&w->m, &err) < 0)
		assert_int_equal(loop_run_once(&w->loop, 1000), 0);
	split(w);
	disk_world_run(w, 400);
	assert_true(l->stored <= SMALL + SMALL / 4);
	disk_world_idle(w);
}

/* Between the look and the fork the guest's kernel has written back what it had. */
static void test_written_before_the_split(void **state)
{
	struct layer_fds top = disk_model_layer(), keep = top;
	struct disk_world *w = *state;
	struct err err = {0};

	pile_up(w);
	assert_int_equal(machine_disk_make_room(&w->m, &err), 0);
	rewrite(w, 0, LAYERS_ROOM_CLUSTERS + 3);
	assert_int_equal(machine_disk_split(&w->m, &top, &err), -EAGAIN);
	assert_int_equal(top.rw, keep.rw); /* still the caller's */
	assert_non_null(strstr(err.msg, "again in a moment"));
	while (machine_disk_make_room(&w->m, &err) < 0)
		assert_int_equal(loop_run_once(&w->loop, 1000), 0);
	assert_int_equal(machine_disk_split(&w->m, &top, &err), 0);
}

static void test_room_for_a_running_disk(void **state)
{
	struct disk_world *w = *state;
	struct err err = {0};

	/* All entries in use and the top not: by the time of the split it may be. */
	disk_world_grow(w, LAYERS_MAX - 1);
	assert_int_equal(w->m.disk.layers.count, LAYERS_MAX);
	assert_true(layers_top_unused(&w->m.disk.layers));
	assert_int_equal(machine_disk_make_room(&w->m, &err), 0);
	assert_true(w->m.disk.layers.count < LAYERS_MAX);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_thinning_out, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_room_costs_little, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_room_by_the_smallest, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_urgent_thinning_out, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_urgent_thinning_out_of_a_busy_disk,
						disk_world_setup, disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_thinning_out_goes_on_after_a_failure,
						disk_world_setup, disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_no_room_on_full_storage, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_tidying_begins_with_a_write, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_no_room_below, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_written_before_the_split, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_room_for_a_running_disk, disk_world_setup,
						disk_world_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
