/* SPDX-License-Identifier: Apache-2.0 */
/* See disk_world.h. */
#define _GNU_SOURCE
#include "unit.h"

#include "disk_model.h"
#include "disk_world.h"
#include "lib/io.h"

#include <string.h>

#define OUT VIRTIO_BLK_T_OUT
#define MIB 1024u

static void on_disk_failed(void *arg, int errnum, uint64_t failures)
{
	struct disk_world *w = arg;

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

int disk_world_setup(void **state)
{
	struct disk_world *w = calloc(1, sizeof(*w));
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

int disk_world_teardown(void **state)
{
	struct disk_world *w = *state;

	layers_free(&w->m.disk.layers);
	close_fd(&w->m.handover_fd);
	loop_free(&w->loop);
	rig_free(&w->r);
	free(w);
	return 0;
}

unsigned disk_world_run(struct disk_world *w, unsigned ms)
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

void disk_world_idle(struct disk_world *w)
{
	/* One turn: the end of the wait itself. */
	assert_true(disk_world_run(w, 300) <= 1);
}

void disk_world_grow(struct disk_world *w, unsigned n)
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

void disk_world_until_layers(struct disk_world *w, unsigned n)
{
	uint64_t end = io_now_ns() + 60000000000ull;

	while (w->m.disk.layers.count > n) {
		assert_true(io_now_ns() < end);
		assert_int_equal(loop_run_once(&w->loop, 1000), 0);
	}
}
