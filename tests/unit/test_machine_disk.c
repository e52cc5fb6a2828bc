/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk in the machine, without KVM: what the loop thread does for it (the
 * rest of many requests, reports of failures), and that it does nothing when there
 * is nothing to do. Thinning out of layers: test_machine_thin.c.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "disk_model.h"
#include "disk_world.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#define OUT VIRTIO_BLK_T_OUT

static void test_rest_of_the_queue(void **state)
{
	struct disk_world *w = *state;
	uint32_t id, len, done = 0;

	/* 12 requests of 256 KiB: three budgets. */
	for (unsigned n = 0; n < 12; n++)
		rig_submit(&w->r, n, OUT, n * 512, RIG_DATA, 256 << 10);
	fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
	while (fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len))
		done++;
	assert_true(done >= 3 && done < 12);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(loop_run_once(&w->loop, 0), 0);
		while (fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len))
			done++;
	}
	assert_int_equal(done, 12);
	disk_world_idle(w);
}

static void test_drain(void **state)
{
	struct disk_world *w = *state;
	uint32_t id, len, done = 0;

	for (unsigned n = 0; n < 12; n++)
		rig_submit(&w->r, n, OUT, n * 512, RIG_DATA, 256 << 10);
	fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
	machine_disk_drain(&w->m);
	while (fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len))
		done++;
	assert_int_equal(done, 12);
	disk_world_run(w, 10); /* the wake-up that was on its way finds nothing */
	disk_world_idle(w);
}

static void test_nothing_begins_while_held(void **state)
{
	struct disk_world *w = *state;
	uint32_t id, len;

	machine_disk_hold(&w->m);
	rig_submit(&w->r, 0, OUT, 0, RIG_DATA, 4096);
	fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
	assert_false(fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len));
	machine_disk_release(&w->m);
	assert_int_equal(loop_run_once(&w->loop, 0), 0);
	assert_true(fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len));
	assert_int_equal(rig_status(&w->r, 0), VIRTIO_BLK_S_OK);
	disk_world_idle(w);
}

static void fail_writes(struct disk_world *w, unsigned n)
{
	struct rlimit small = {65536, RLIM_INFINITY}, before;

	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &before);
	small.rlim_max = before.rlim_max;
	setrlimit(RLIMIT_FSIZE, &small);
	while (n--) {
		rig_submit(&w->r, 0, OUT, 2 * LAYERS_CLUSTER / 512, RIG_DATA, 4096);
		fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
		assert_int_equal(rig_status(&w->r, 0), VIRTIO_BLK_S_IOERR);
	}
	setrlimit(RLIMIT_FSIZE, &before);
}

static void test_failures_are_reported_once_a_second(void **state)
{
	uint64_t value[CTL_STAT_COUNT];
	struct disk_world *w = *state;

	fail_writes(w, 3);
	disk_world_run(w, 50);
	assert_int_equal(w->reports, 1);
	assert_int_equal(w->errnum, EFBIG);
	assert_int_equal(w->failures, 3);
	fail_writes(w, 100);
	assert_true(disk_world_run(w, 400) < 10);
	assert_int_equal(w->reports, 1);
	disk_world_run(w, 800);
	assert_int_equal(w->reports, 2);
	assert_int_equal(w->failures, 103);
	disk_world_run(w, 1200);
	assert_int_equal(w->reports, 2);
	disk_world_idle(w);
	fail_writes(w, 1); /* long after the last: at once */
	disk_world_run(w, 20);
	assert_int_equal(w->reports, 3);
	w->m.devices[MACHINE_DEV_VSOCK] = &w->r.f.v.dev; /* stats look at all devices */
	machine_stats(&w->m, value);
	assert_int_equal(value[CTL_STAT_DISK_ERRORS], 104);
	assert_int_equal(value[CTL_STAT_DISK_LAYERS], 1);
}

static void test_paused_disk_stays(void **state)
{
	struct disk_world *w = *state;
	struct layer_fds top = disk_model_layer(), keep = top;
	struct err err = {0};

	disk_world_grow(w, LAYERS_FLATTEN_AT + 2);
	w->m.paused = true;
	disk_world_run(w, 400);
	assert_int_equal(w->m.disk.layers.count, LAYERS_FLATTEN_AT + 3);
	/* Its top is unused: it stays, and the new one is the caller's. */
	assert_int_equal(machine_disk_split(&w->m, &top, &err), 0);
	assert_int_equal(top.rw, keep.rw);
	assert_int_equal(top.ro, keep.ro);
	close(top.rw);
	close(top.ro);
	assert_int_equal(w->m.disk.layers.count, LAYERS_FLATTEN_AT + 3);
}

static void test_split_with_bad_layer(void **state)
{
	struct disk_world *w = *state;
	struct layer_fds good = disk_model_layer(), bad = {good.ro, good.ro};
	struct err err = {0};

	disk_world_grow(w, 1);
	rig_submit(&w->r, 0, OUT, w->next * LAYERS_CLUSTER / 512, RIG_DATA, 4096);
	fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
	assert_int_equal(machine_disk_split(&w->m, &bad, &err), -EINVAL);
	assert_int_equal(bad.rw, good.ro); /* still the caller's */
	assert_non_null(strstr(err.msg, "layer of the disk"));
	assert_int_equal(w->m.disk.layers.count, 2);
	assert_int_equal(machine_disk_split(&w->m, &good, &err), 0);
	assert_int_equal(w->m.disk.layers.count, 3);
}

static void test_child_counts_anew(void **state)
{
	struct disk_world *w = *state;
	struct err err = {0};

	fail_writes(w, 2);
	disk_world_run(w, 20);
	assert_int_equal(w->reports, 1);
	/* As after fork(2): another loop, another hand-over. */
	assert_int_equal(loop_fork_child(&w->loop), 0);
	assert_int_equal(machine_disk_fork_child(&w->m, disk_model_layer(), &err), 0);
	close_fd(&w->m.handover_fd);
	assert_int_equal(machine_init_handover(&w->m, &err), 0);
	disk_world_idle(w);
	fail_writes(w, 1);
	disk_world_run(w, 20);
	assert_int_equal(w->reports, 2);
	assert_int_equal(w->failures, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_rest_of_the_queue, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_drain, disk_world_setup, disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_nothing_begins_while_held, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_failures_are_reported_once_a_second,
						disk_world_setup, disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_paused_disk_stays, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_split_with_bad_layer, disk_world_setup,
						disk_world_teardown),
		cmocka_unit_test_setup_teardown(test_child_counts_anew, disk_world_setup,
						disk_world_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
