/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The disk in the machine, without KVM: what the loop thread does for it (the
 * rest of many requests, reports of failures, thinning out of layers), and that
 * it does nothing when there is nothing to do.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "blk_rig.h"
#include "disk_model.h"
#include "lib/io.h"
#include "vmm/core/machine.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>

#define OUT VIRTIO_BLK_T_OUT
#define MIB 1024u

struct world {
	struct rig r; /* a driver; its own disk is not used */
	struct machine m;
	struct loop loop;
	unsigned reports;
	int errnum;
	uint64_t failures;
	unsigned next; /* cluster that nobody has written */
};

static void on_disk_failed(void *arg, int errnum, uint64_t failures)
{
	struct world *w = arg;

	w->reports++;
	w->errnum = errnum;
	w->failures = failures;
}

static void no_interrupt(void *arg, uint32_t address, uint32_t data)
{
	(void)arg;
	(void)address;
	(void)data;
}

static int setup(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	const struct machine_events events = {.disk_failed = on_disk_failed, .arg = w};
	struct err err = {0};

	rig_init(&w->r);
	assert_int_equal(loop_init(&w->loop), 0);
	machine_init(&w->m, &w->loop, &events);
	w->m.ram = w->r.f.mem;
	ioapic_init(&w->m.ioapic, no_interrupt, NULL);
	w->m.irqs[MACHINE_DEV_BLK] = (struct machine_irq){.machine = &w->m, .gsi = VM_MMIO_GSI};
	assert_int_equal(machine_init_handover(&w->m, &err), 0);
	assert_int_equal(machine_disk_init(&w->m, MIB, disk_model_layer(), &err), 0);
	w->r.f.dev = w->m.devices[MACHINE_DEV_BLK];
	rig_start(&w->r, RIG_FEATURES);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;

	layers_free(&w->m.disk.layers);
	close_fd(&w->m.handover_fd);
	loop_free(&w->loop);
	rig_free(&w->r);
	free(w);
	return 0;
}

/* Runs the loop for so long: how often it woke up. */
static unsigned run_for(struct world *w, unsigned ms)
{
	uint64_t end = io_now_ns() + ms * 1000000ull;
	unsigned turns = 0;

	while (io_now_ns() < end) {
		assert_int_equal(loop_run_once(&w->loop, (int)((end - io_now_ns()) / 1000000) + 1),
				 0);
		turns++;
	}
	return turns;
}

static void assert_idle(struct world *w)
{
	/* One turn: the end of the wait itself. */
	assert_true(run_for(w, 300) <= 1);
}

static void test_rest_of_the_queue(void **state)
{
	struct world *w = *state;
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
	assert_idle(w);
}

static void test_drain(void **state)
{
	struct world *w = *state;
	uint32_t id, len, done = 0;

	for (unsigned n = 0; n < 12; n++)
		rig_submit(&w->r, n, OUT, n * 512, RIG_DATA, 256 << 10);
	fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
	machine_disk_drain(&w->m);
	while (fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len))
		done++;
	assert_int_equal(done, 12);
	run_for(w, 10); /* the wake-up that was on its way finds nothing */
	assert_idle(w);
}

static void test_nothing_begins_while_held(void **state)
{
	struct world *w = *state;
	uint32_t id, len;

	machine_disk_hold(&w->m);
	rig_submit(&w->r, 0, OUT, 0, RIG_DATA, 4096);
	fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
	assert_false(fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len));
	machine_disk_release(&w->m);
	assert_int_equal(loop_run_once(&w->loop, 0), 0);
	assert_true(fake_used(&w->r.f, VIRTIO_BLK_QUEUE, &id, &len));
	assert_int_equal(rig_status(&w->r, 0), VIRTIO_BLK_S_OK);
	assert_idle(w);
}

static void fail_writes(struct world *w, unsigned n)
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
	struct world *w = *state;

	fail_writes(w, 3);
	run_for(w, 50);
	assert_int_equal(w->reports, 1);
	assert_int_equal(w->errnum, EFBIG);
	assert_int_equal(w->failures, 3);
	fail_writes(w, 100);
	assert_true(run_for(w, 400) < 10);
	assert_int_equal(w->reports, 1);
	run_for(w, 800);
	assert_int_equal(w->reports, 2);
	assert_int_equal(w->failures, 103);
	run_for(w, 1200);
	assert_int_equal(w->reports, 2);
	assert_idle(w);
	fail_writes(w, 1); /* long after the last: at once */
	run_for(w, 20);
	assert_int_equal(w->reports, 3);
	w->m.devices[MACHINE_DEV_VSOCK] = &w->r.f.v.dev; /* stats look at all devices */
	machine_stats(&w->m, value);
	assert_int_equal(value[CTL_STAT_DISK_ERRORS], 104);
	assert_int_equal(value[CTL_STAT_DISK_LAYERS], 1);
}

/* n forks, each after a write; the children are nobody's. */
static void grow(struct world *w, unsigned n)
{
	struct err err = {0};

	memset(fake_ptr(&w->r.f, RIG_DATA), 'x', LAYERS_CLUSTER);
	for (unsigned i = 0; i < n; i++) {
		struct layer_fds top = disk_model_layer();

		rig_submit(&w->r, 0, OUT, w->next++ * LAYERS_CLUSTER / 512, RIG_DATA,
			   LAYERS_CLUSTER);
		fake_kick(&w->r.f, VIRTIO_BLK_QUEUE);
		assert_int_equal(rig_status(&w->r, 0), VIRTIO_BLK_S_OK);
		assert_int_equal(machine_disk_make_room(&w->m, &err), 0);
		assert_int_equal(machine_disk_split(&w->m, &top, &err), 0);
		assert_int_equal(top.rw, -1);
		assert_int_equal(top.ro, -1);
		machine_disk_settle(&w->m);
	}
}

static void test_thinning_out(void **state)
{
	struct world *w = *state;

	grow(w, LAYERS_FLATTEN_AT - 1);
	assert_idle(w);
	assert_int_equal(w->m.disk.layers.count, LAYERS_FLATTEN_AT);
	grow(w, 1);
	assert_int_equal(w->m.disk.layers.count, LAYERS_FLATTEN_AT + 1);
	assert_true(run_for(w, 100) <= 1); /* not yet: the child may be gone soon */
	run_for(w, 1000);
	assert_true(w->m.disk.layers.count <= LAYERS_FLATTEN_TO);
	assert_idle(w);
}

/* n forks, each after a write to more clusters than a fork may copy while its guest waits. */
static void grow_large(struct world *w, unsigned n)
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

/* Runs the loop until so many layers are left; it must come to that. */
static void run_until_layers(struct world *w, unsigned n)
{
	uint64_t end = io_now_ns() + 60000000000ull;

	while (w->m.disk.layers.count > n) {
		assert_true(io_now_ns() < end);
		assert_int_equal(loop_run_once(&w->loop, 1000), 0);
	}
}

/* What a fork copies while its guest stands still has a bound, however large the layers are. */
static void test_room_costs_little(void **state)
{
	struct world *w = *state;
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
	run_until_layers(w, LAYERS_FLATTEN_TO);
	assert_idle(w);
}

/* One small layer among large ones: it is the one to go, whichever was being emptied. */
static void test_room_by_the_smallest(void **state)
{
	struct world *w = *state;
	struct layers *l = &w->m.disk.layers;
	struct err err = {0};

	grow_large(w, LAYERS_FLATTEN_AT + 1);
	assert_int_equal(layers_flatten(l, 4), 1);
	grow(w, 1);
	grow_large(w, LAYERS_MAX - l->count);
	assert_int_equal(l->count, LAYERS_MAX);
	assert_int_equal(machine_disk_make_room(&w->m, &err), 0);
	assert_int_equal(l->copied, 4 + (4 + 1)); /* it had the four as well */
}

/* Long before the limit is met, it is not put off any more. */
static void test_urgent_thinning_out(void **state)
{
	struct world *w = *state;
	struct layers *l = &w->m.disk.layers;

	uint64_t before, after;

	grow_large(w, LAYERS_URGENT - 2);
	before = io_now_ns();
	grow(w, 1);
	assert_int_equal(l->count, LAYERS_URGENT);
	assert_true(w->m.disk.flatten.at_ns >= before + 100000000);
	grow(w, 1);
	after = io_now_ns();
	assert_true(w->m.disk.flatten.at_ns <= after + 1000000);
	while (l->copied == 0)
		assert_int_equal(loop_run_once(&w->loop, 1000), 0);
	assert_true(l->copied >= 8);
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
	struct world *w = *state;
	struct layers *l = &w->m.disk.layers;

	grow(w, LAYERS_FLATTEN_AT + 1);
	limit_files(1);
	assert_true(run_for(w, 3500) <= 8); /* it is tried a few times, not all the time */
	assert_int_equal(l->count, LAYERS_FLATTEN_AT + 2);
	limit_files(RLIM_INFINITY);
	run_until_layers(w, LAYERS_FLATTEN_TO);
	assert_idle(w);
}

/* At the limit, on full storage: a fork is refused with the host's reason, and the next one tries.
 */
static void test_no_room_on_full_storage(void **state)
{
	struct world *w = *state;
	struct err err = {0};

	grow(w, LAYERS_MAX - 1);
	limit_files(1);
	assert_int_equal(machine_disk_make_room(&w->m, &err), -EFBIG);
	assert_non_null(strstr(err.msg, "room for another layer"));
	run_for(w, 400);
	assert_int_equal(w->m.disk.layers.count, LAYERS_MAX);
	limit_files(RLIM_INFINITY);
	assert_int_equal(machine_disk_make_room(&w->m, &err), 0);
	run_until_layers(w, LAYERS_FLATTEN_TO);
}

static void test_paused_disk_stays(void **state)
{
	struct world *w = *state;
	struct layer_fds top = disk_model_layer(), keep = top;
	struct err err = {0};

	grow(w, LAYERS_FLATTEN_AT + 2);
	w->m.paused = true;
	run_for(w, 400);
	assert_int_equal(w->m.disk.layers.count, LAYERS_FLATTEN_AT + 3);
	/* Its top is unused: it stays, and the new one is the caller's. */
	assert_int_equal(machine_disk_split(&w->m, &top, &err), 0);
	assert_int_equal(top.rw, keep.rw);
	assert_int_equal(top.ro, keep.ro);
	close(top.rw);
	close(top.ro);
	assert_int_equal(w->m.disk.layers.count, LAYERS_FLATTEN_AT + 3);
}

static void test_room_for_a_running_disk(void **state)
{
	struct world *w = *state;
	struct err err = {0};

	/* All entries in use and the top not: by the time of the split it may be. */
	grow(w, LAYERS_MAX - 1);
	assert_int_equal(w->m.disk.layers.count, LAYERS_MAX);
	assert_true(layers_top_unused(&w->m.disk.layers));
	assert_int_equal(machine_disk_make_room(&w->m, &err), 0);
	assert_true(w->m.disk.layers.count < LAYERS_MAX);
}

static void test_split_with_bad_layer(void **state)
{
	struct world *w = *state;
	struct layer_fds good = disk_model_layer(), bad = {good.ro, good.ro};
	struct err err = {0};

	grow(w, 1);
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
	struct world *w = *state;
	struct err err = {0};

	fail_writes(w, 2);
	run_for(w, 20);
	assert_int_equal(w->reports, 1);
	/* As after fork(2): another loop, another hand-over. */
	assert_int_equal(loop_fork_child(&w->loop), 0);
	assert_int_equal(machine_disk_fork_child(&w->m, disk_model_layer(), &err), 0);
	close_fd(&w->m.handover_fd);
	assert_int_equal(machine_init_handover(&w->m, &err), 0);
	assert_idle(w);
	fail_writes(w, 1);
	run_for(w, 20);
	assert_int_equal(w->reports, 2);
	assert_int_equal(w->failures, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_rest_of_the_queue, setup, teardown),
		cmocka_unit_test_setup_teardown(test_drain, setup, teardown),
		cmocka_unit_test_setup_teardown(test_nothing_begins_while_held, setup, teardown),
		cmocka_unit_test_setup_teardown(test_failures_are_reported_once_a_second, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_thinning_out, setup, teardown),
		cmocka_unit_test_setup_teardown(test_room_costs_little, setup, teardown),
		cmocka_unit_test_setup_teardown(test_room_by_the_smallest, setup, teardown),
		cmocka_unit_test_setup_teardown(test_urgent_thinning_out, setup, teardown),
		cmocka_unit_test_setup_teardown(test_thinning_out_goes_on_after_a_failure, setup,
						teardown),
		cmocka_unit_test_setup_teardown(test_no_room_on_full_storage, setup, teardown),
		cmocka_unit_test_setup_teardown(test_paused_disk_stays, setup, teardown),
		cmocka_unit_test_setup_teardown(test_room_for_a_running_disk, setup, teardown),
		cmocka_unit_test_setup_teardown(test_split_with_bad_layer, setup, teardown),
		cmocka_unit_test_setup_teardown(test_child_counts_anew, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
