/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-mmio transport: the register file, the status machine with every wrong
 * step, deferral of notifications, interrupts. Saved state: test_virtio_state.c.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "toy.h"

#include <errno.h>
#include <string.h>

static void test_identity(void **state)
{
	struct toy *t = *state;

	assert_int_equal(toy_read(t, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_VERSION), 2);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_DEVICE_ID), 42);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_DEVICE_FEATURES), TOY_FEATURE);
	toy_write(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_DEVICE_FEATURES), 1);
	toy_write(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_DEVICE_FEATURES), 0);
	toy_write(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0xffffffff);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_DEVICE_FEATURES), 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_QUEUE_NUM_MAX), TOY_QMAX);
	toy_write(t, VIRTIO_MMIO_QUEUE_SEL, TOY_QUEUES);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_QUEUE_READY), 0);
	toy_write(t, VIRTIO_MMIO_QUEUE_SEL, 0xffffffff);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_CONFIG_GENERATION), 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_SHM_LEN_LOW), 0xffffffff);
	assert_int_equal(t->dev.ignored, 0);
	assert_int_equal(t->dev.faults, 0);
}

static void test_happy_path(void **state)
{
	struct toy *t = *state;

	toy_to_running(t);
	assert_int_equal(t->activations, 1);
	assert_int_equal(t->notified[0], 1); /* kicked once at DRIVER_OK */
	assert_int_equal(t->notified[1], 1);
	assert_int_equal(t->irqs, 0);
	toy_offer(t, 0, 0x10000);
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	assert_int_equal(t->notified[0], 2);
	assert_int_equal(t->irqs, 1);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_INT_USED_RING);
	toy_write(t, VIRTIO_MMIO_INTERRUPT_ACK, 1);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 1); /* spurious */
	assert_int_equal(t->irqs, 1);
	assert_int_equal(t->dev.faults, 0);
	toy_write(t, VIRTIO_MMIO_STATUS, 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_QUEUE_READY), 0);
	toy_to_running(t); /* and again */
	assert_int_equal(t->dev.faults, 0);
}

/* Every pair of status values: only the five legal moves change anything for the better. */
static void test_status_matrix(void **state)
{
	static const uint8_t stage[] = {0, 1, 3, 0xb, 0xf};
	struct toy *t = *state;

	for (size_t from = 0; from < sizeof(stage); from++)
		for (uint32_t v = 0; v < 0x180; v++) {
			uint32_t now;

			if (from < 3) {
				toy_write(t, VIRTIO_MMIO_STATUS, 0);
				for (size_t i = 1; i <= from; i++)
					toy_write(t, VIRTIO_MMIO_STATUS, stage[i]);
				if (from == 2)
					toy_features(t, VIRTIO_F_VERSION_1);
			} else if (from == 3) {
				toy_to_features(t);
			} else {
				toy_to_running(t);
			}
			toy_write(t, VIRTIO_MMIO_STATUS, v);
			now = toy_read(t, VIRTIO_MMIO_STATUS);
			if (v == 0)
				assert_int_equal(now, 0);
			else if (v & VIRTIO_STATUS_FAILED)
				assert_int_equal(now, stage[from] | VIRTIO_STATUS_FAILED);
			else if (v == stage[from] ||
				 (from + 1 < sizeof(stage) && v == stage[from + 1]))
				assert_int_equal(now, v);
			else
				assert_int_equal(now, stage[from] | VIRTIO_STATUS_NEEDS_RESET);
		}
}

static void test_feature_negotiation(void **state)
{
	struct toy *t = *state;

	toy_to_driver(t);
	toy_features(t, TOY_FEATURE); /* without VERSION_1 */
	toy_write(t, VIRTIO_MMIO_STATUS, 0xb);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 3);
	toy_features(t, VIRTIO_F_VERSION_1 | 1ull << 29); /* EVENT_IDX was not offered */
	toy_write(t, VIRTIO_MMIO_STATUS, 0xb);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 3);
	toy_features(t, VIRTIO_F_VERSION_1 | TOY_FEATURE);
	toy_write(t, VIRTIO_MMIO_STATUS, 0xb);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 0xb);
	assert_int_equal(t->dev.faults, 0);
	/* Frozen now. */
	toy_features(t, VIRTIO_F_VERSION_1);
	assert_true(toy_read(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(t->dev.driver_features, VIRTIO_F_VERSION_1 | TOY_FEATURE);
	/* Bits beyond 63. */
	toy_to_driver(t);
	toy_write(t, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
	toy_write(t, VIRTIO_MMIO_DRIVER_FEATURES, 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 3);
	toy_write(t, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	assert_true(toy_read(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
}

static const uint32_t queue_regs[] = {
	VIRTIO_MMIO_QUEUE_NUM,         VIRTIO_MMIO_QUEUE_DESC_LOW,    VIRTIO_MMIO_QUEUE_DESC_HIGH,
	VIRTIO_MMIO_QUEUE_DRIVER_LOW,  VIRTIO_MMIO_QUEUE_DRIVER_HIGH, VIRTIO_MMIO_QUEUE_DEVICE_LOW,
	VIRTIO_MMIO_QUEUE_DEVICE_HIGH, VIRTIO_MMIO_QUEUE_READY,
};

/* Queue registers outside FEATURES_OK..DRIVER_OK change nothing and break the device. */
static void test_queue_registers_frozen(void **state)
{
	struct toy *t = *state;

	for (size_t i = 0; i < sizeof(queue_regs) / sizeof(queue_regs[0]); i++) {
		struct virtq before;

		toy_to_driver(t);
		toy_write(t, queue_regs[i], 1);
		assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 3 | VIRTIO_STATUS_NEEDS_RESET);
		assert_int_equal(t->dev.queue[0].size, 0);

		toy_to_running(t);
		toy_write(t, VIRTIO_MMIO_QUEUE_SEL, 0);
		before = t->dev.queue[0];
		toy_write(t, queue_regs[i], 32);
		assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_STATUS_NEEDS_RESET);
		assert_memory_equal(&before, &t->dev.queue[0], sizeof(before));
		assert_false(virtio_dev_active(&t->dev));

		toy_to_features(t); /* ready, but not running yet */
		toy_queue(t, 0);
		before = t->dev.queue[0];
		toy_write(t, queue_regs[i], 1);
		assert_true(toy_read(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
		assert_memory_equal(&before, &t->dev.queue[0], sizeof(before));
	}
	/* Taking a queue back is allowed before DRIVER_OK, and harmless after a reset. */
	toy_to_features(t);
	toy_queue(t, 0);
	toy_write(t, VIRTIO_MMIO_QUEUE_READY, 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_QUEUE_READY), 0);
	toy_queue(t, 0);
	toy_write(t, VIRTIO_MMIO_STATUS, 0);
	toy_write(t, VIRTIO_MMIO_QUEUE_READY, 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 0);
}

static void test_bad_queue_setup(void **state)
{
	static const struct {
		uint32_t reg, v;
	} bad[] = {
		{VIRTIO_MMIO_QUEUE_NUM, 0},
		{VIRTIO_MMIO_QUEUE_NUM, 3},
		{VIRTIO_MMIO_QUEUE_NUM, TOY_QMAX * 2},
		{VIRTIO_MMIO_QUEUE_NUM, 0x10000 + TOY_QMAX},
		{VIRTIO_MMIO_QUEUE_NUM, 0xffffffff},
		{VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1001},
		{VIRTIO_MMIO_QUEUE_DESC_LOW, TOY_RAM},
		{VIRTIO_MMIO_QUEUE_DESC_HIGH, 0x80000000},
		{VIRTIO_MMIO_QUEUE_DRIVER_LOW, TOY_RAM - 4},
		{VIRTIO_MMIO_QUEUE_DRIVER_HIGH, 1},
		{VIRTIO_MMIO_QUEUE_DEVICE_LOW, 0xfffffffc},
		{VIRTIO_MMIO_QUEUE_DEVICE_HIGH, 0xffffffff},
	};
	struct toy *t = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		toy_to_features(t);
		toy_queue(t, 0);
		toy_write(t, VIRTIO_MMIO_QUEUE_SEL, 1);
		toy_write(t, VIRTIO_MMIO_QUEUE_NUM, TOY_QMAX);
		toy_write(t, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
		toy_write(t, VIRTIO_MMIO_QUEUE_DRIVER_LOW, 0x2000);
		toy_write(t, VIRTIO_MMIO_QUEUE_DEVICE_LOW, 0x3000);
		toy_write(t, bad[i].reg, bad[i].v);
		toy_write(t, VIRTIO_MMIO_QUEUE_READY, 1);
		assert_int_equal(toy_read(t, VIRTIO_MMIO_QUEUE_READY), 0);
		assert_true(toy_read(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	}
	/* A queue that does not exist. */
	toy_to_features(t);
	toy_write(t, VIRTIO_MMIO_QUEUE_SEL, TOY_QUEUES);
	toy_write(t, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_true(toy_read(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	toy_to_features(t);
	toy_write(t, VIRTIO_MMIO_QUEUE_SEL, 0x80000000);
	toy_write(t, VIRTIO_MMIO_QUEUE_NUM, 4);
	assert_true(toy_read(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
}

static void test_odd_accesses(void **state)
{
	struct toy *t = *state;
	uint8_t data[8];
	uint64_t ignored;

	toy_to_running(t);
	ignored = t->dev.ignored;
	for (uint64_t off = 0; off < VIRTIO_MMIO_WINDOW; off++)
		for (unsigned len = 1; len <= 8; len *= 2) {
			memset(data, 0xff, sizeof(data));
			virtio_mmio_read(&t->dev, off, data, len);
			if (off >= VIRTIO_MMIO_CONFIG + 6)
				for (unsigned i = 0; i < len; i++)
					assert_int_equal(data[i], 0);
		}
	assert_true(t->dev.ignored > ignored);
	virtio_mmio_read(&t->dev, VIRTIO_MMIO_CONFIG + 2, data, 4);
	assert_memory_equal(data, "\3\4\5\6", 4);
	virtio_mmio_read(&t->dev, VIRTIO_MMIO_CONFIG + 3, data, 4); /* over the end */
	assert_memory_equal(data, "\0\0\0\0", 4);
	virtio_mmio_read(&t->dev, UINT64_MAX, data, 8);
	ignored = t->dev.ignored;
	/* Wrong widths, read-only registers, configuration, outside: all ignored. */
	memset(data, 0, sizeof(data));
	virtio_mmio_write(&t->dev, VIRTIO_MMIO_STATUS, data, 1);
	virtio_mmio_write(&t->dev, VIRTIO_MMIO_STATUS, data, 2);
	virtio_mmio_write(&t->dev, VIRTIO_MMIO_STATUS, data, 8);
	virtio_mmio_write(&t->dev, VIRTIO_MMIO_STATUS + 1, data, 4);
	virtio_mmio_write(&t->dev, VIRTIO_MMIO_MAGIC_VALUE, data, 4);
	virtio_mmio_write(&t->dev, VIRTIO_MMIO_CONFIG, data, 4);
	virtio_mmio_write(&t->dev, UINT64_MAX, data, 8);
	assert_int_equal(t->dev.ignored, ignored + 7);
	assert_true(virtio_dev_active(&t->dev));
}

static void test_needs_reset(void **state)
{
	struct toy *t = *state;
	unsigned resets, notified;

	toy_to_running(t);
	resets = t->resets;
	toy_offer(t, 0, UINT64_MAX); /* a descriptor outside RAM */
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_INT_CONFIG);
	assert_int_equal(t->irqs, 1);
	assert_int_equal(t->resets, resets + 1); /* device told to let go, once */
	assert_int_equal(t->dev.faults, 1);
	notified = t->notified[0];
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	toy_write(t, VIRTIO_MMIO_STATUS, 0xf);
	toy_write(t, VIRTIO_MMIO_STATUS, 0xf | VIRTIO_STATUS_NEEDS_RESET);
	virtio_dev_resume(&t->dev);
	assert_int_equal(t->notified[0], notified);
	assert_int_equal(t->resets, resets + 1);
	toy_to_running(t); /* a reset heals it */
	assert_true(t->notified[0] > notified);

	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, TOY_QUEUES);
	assert_true(toy_read(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);

	toy_to_features(t); /* set-up that the device does not accept */
	t->activate_rc = -EPROTO;
	toy_write(t, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_STATUS_NEEDS_RESET);
	assert_false(virtio_dev_active(&t->dev));

	toy_to_driver(t); /* before DRIVER_OK there is no interrupt */
	toy_write(t, VIRTIO_MMIO_INTERRUPT_ACK, 3);
	t->irqs = 0;
	toy_write(t, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(t->irqs, 0);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

static void test_notify_early_and_deferred(void **state)
{
	struct toy *t = *state;

	toy_to_features(t);
	toy_queue(t, 0);
	toy_queue(t, 1);
	toy_offer(t, 0, 0x10000);
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0); /* before DRIVER_OK: nothing, and no harm */
	assert_int_equal(t->notified[0], 0);
	toy_write(t, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(t->irqs, 1); /* done at DRIVER_OK */
	assert_int_equal(t->dev.faults, 0);

	t->dev.host.defer_notify = toy_defer;
	toy_offer(t, 1, 0x10000);
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
	assert_int_equal(t->deferred, 2);
	assert_int_equal(t->notified[1], 1);
	virtio_dev_run_kicks(&t->dev);
	assert_int_equal(t->notified[1], 2);
	assert_int_equal(t->notified[0], 1);
	assert_int_equal(t->irqs, 2);
	virtio_dev_run_kicks(&t->dev);
	assert_int_equal(t->notified[1], 2);
	/* A reset in between takes the notification with it. */
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
	toy_write(t, VIRTIO_MMIO_STATUS, 0);
	virtio_dev_run_kicks(&t->dev);
	assert_int_equal(t->notified[1], 2);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, toy_setup, toy_teardown)
	const struct CMUnitTest tests[] = {
		T(test_identity),
		T(test_happy_path),
		T(test_status_matrix),
		T(test_feature_negotiation),
		T(test_queue_registers_frozen),
		T(test_bad_queue_setup),
		T(test_odd_accesses),
		T(test_needs_reset),
		T(test_notify_early_and_deferred),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
