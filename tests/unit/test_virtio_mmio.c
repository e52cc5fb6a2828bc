/* SPDX-License-Identifier: Apache-2.0 */
/*
 * virtio-mmio transport with a small device of its own: the register file, the
 * status machine with every wrong step, deferral of notifications, interrupts,
 * saved state.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "vmm/virtio/mmio.h"
#include "vmm/virtio/virtio_spec.h"

#include <errno.h>
#include <string.h>

#define RAM     (1u << 20)
#define QUEUES  2u
#define QMAX    64u
#define FEATURE (1ull << 3)

struct toy {
	struct virtio_dev dev;
	struct gmem mem;
	unsigned irqs, deferred, notified[QUEUES], resets, activations, forks;
	int activate_rc;
	uint32_t own_state;
};

static struct toy *toy_of(struct virtio_dev *dev)
{
	return (struct toy *)(void *)dev;
}

static int toy_activate(struct virtio_dev *dev)
{
	toy_of(dev)->activations++;
	return toy_of(dev)->activate_rc;
}

static void toy_notify(struct virtio_dev *dev, unsigned q)
{
	struct virtq_chain ch;
	int rc;

	toy_of(dev)->notified[q]++;
	while ((rc = virtq_peek(&dev->queue[q], &ch)) > 0)
		virtq_complete(&dev->queue[q], &ch, 0);
	if (rc < 0)
		virtio_dev_fail(dev);
}

static void toy_config_read(struct virtio_dev *dev, uint32_t off, void *data, uint32_t len)
{
	static const uint8_t config[6] = {1, 2, 3, 4, 5, 6};

	(void)dev;
	assert_true(off < 6 && len <= 6 - off);
	memcpy(data, config + off, len);
}

static void toy_reset(struct virtio_dev *dev)
{
	toy_of(dev)->resets++;
}

static void toy_save(const struct virtio_dev *dev, struct bytes_out *o)
{
	bytes_put(o, ((const struct toy *)(const void *)dev)->own_state, 4);
}

static int toy_load(struct virtio_dev *dev, struct bytes_in *in)
{
	toy_of(dev)->own_state = bytes_get32(in);
	return 0;
}

static int toy_fork_child(struct virtio_dev *dev)
{
	toy_of(dev)->forks++;
	return 0;
}

static const struct virtio_ops toy_ops = {
	.device_id = 42,
	.features = VIRTIO_F_VERSION_1 | FEATURE,
	.queue_count = QUEUES,
	.queue_size_max = QMAX,
	.config_bytes = 6,
	.activate = toy_activate,
	.notify = toy_notify,
	.config_read = toy_config_read,
	.reset = toy_reset,
	.save = toy_save,
	.load = toy_load,
	.fork_child = toy_fork_child,
};

static void toy_irq(void *arg)
{
	((struct toy *)arg)->irqs++;
}

static void toy_defer(void *arg)
{
	((struct toy *)arg)->deferred++;
}

static void wr(struct toy *t, uint64_t reg, uint32_t v)
{
	virtio_mmio_write(&t->dev, reg, &v, 4);
}

static uint32_t rd(struct toy *t, uint64_t reg)
{
	uint32_t v = 0xdeadbeef;

	virtio_mmio_read(&t->dev, reg, &v, 4);
	return v;
}

static int setup(void **state)
{
	struct toy *t = calloc(1, sizeof(*t));

	t->mem.base = aligned_alloc(4096, RAM);
	t->mem.size = RAM;
	memset(t->mem.base, 0, RAM);
	virtio_dev_init(&t->dev, &toy_ops, &t->mem,
			&(struct virtio_host){.raise_irq = toy_irq, .arg = t});
	*state = t;
	return 0;
}

static int teardown(void **state)
{
	struct toy *t = *state;

	free(t->mem.base);
	free(t);
	return 0;
}

static void to_driver(struct toy *t)
{
	wr(t, VIRTIO_MMIO_STATUS, 0);
	wr(t, VIRTIO_MMIO_STATUS, 1);
	wr(t, VIRTIO_MMIO_STATUS, 3);
}

static void features(struct toy *t, uint64_t f)
{
	for (uint32_t i = 0; i < 2; i++) {
		wr(t, VIRTIO_MMIO_DRIVER_FEATURES_SEL, i);
		wr(t, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(f >> (32 * i)));
	}
}

static void to_features(struct toy *t)
{
	to_driver(t);
	features(t, VIRTIO_F_VERSION_1);
	wr(t, VIRTIO_MMIO_STATUS, 0xb);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 0xb);
}

static void queue(struct toy *t, uint32_t q)
{
	memset(t->mem.base + 0x1000 + q * 0x8000, 0, 0x3000);
	wr(t, VIRTIO_MMIO_QUEUE_SEL, q);
	wr(t, VIRTIO_MMIO_QUEUE_NUM, QMAX);
	wr(t, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000 + q * 0x8000);
	wr(t, VIRTIO_MMIO_QUEUE_DRIVER_LOW, 0x2000 + q * 0x8000);
	wr(t, VIRTIO_MMIO_QUEUE_DEVICE_LOW, 0x3000 + q * 0x8000);
	wr(t, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_int_equal(rd(t, VIRTIO_MMIO_QUEUE_READY), 1);
}

static void to_running(struct toy *t)
{
	to_features(t);
	queue(t, 0);
	queue(t, 1);
	wr(t, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 0xf);
	assert_true(virtio_dev_active(&t->dev));
}

/* Puts a chain of one descriptor into queue q without notifying. */
static void offer(struct toy *t, unsigned q, uint64_t addr)
{
	uint8_t *ram = t->mem.base + q * 0x8000;
	uint16_t idx;

	memcpy(&idx, ram + 0x2002, 2);
	memset(ram + 0x1000, 0, 16);
	memcpy(ram + 0x1000, &addr, 8);
	ram[0x1008] = 64;
	memset(ram + 0x2004 + 2 * (idx % QMAX), 0, 2);
	idx++;
	memcpy(ram + 0x2002, &idx, 2);
}

static void test_identity(void **state)
{
	struct toy *t = *state;

	assert_int_equal(rd(t, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
	assert_int_equal(rd(t, VIRTIO_MMIO_VERSION), 2);
	assert_int_equal(rd(t, VIRTIO_MMIO_DEVICE_ID), 42);
	assert_int_equal(rd(t, VIRTIO_MMIO_DEVICE_FEATURES), FEATURE);
	wr(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	assert_int_equal(rd(t, VIRTIO_MMIO_DEVICE_FEATURES), 1);
	wr(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
	assert_int_equal(rd(t, VIRTIO_MMIO_DEVICE_FEATURES), 0);
	wr(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0xffffffff);
	assert_int_equal(rd(t, VIRTIO_MMIO_DEVICE_FEATURES), 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_QUEUE_NUM_MAX), QMAX);
	wr(t, VIRTIO_MMIO_QUEUE_SEL, QUEUES);
	assert_int_equal(rd(t, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_QUEUE_READY), 0);
	wr(t, VIRTIO_MMIO_QUEUE_SEL, 0xffffffff);
	assert_int_equal(rd(t, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_CONFIG_GENERATION), 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_SHM_LEN_LOW), 0xffffffff);
	assert_int_equal(t->dev.ignored, 0);
	assert_int_equal(t->dev.faults, 0);
}

static void test_happy_path(void **state)
{
	struct toy *t = *state;

	to_running(t);
	assert_int_equal(t->activations, 1);
	assert_int_equal(t->notified[0], 1); /* kicked once at DRIVER_OK */
	assert_int_equal(t->notified[1], 1);
	assert_int_equal(t->irqs, 0);
	offer(t, 0, 0x10000);
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	assert_int_equal(t->notified[0], 2);
	assert_int_equal(t->irqs, 1);
	assert_int_equal(rd(t, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_INT_USED_RING);
	wr(t, VIRTIO_MMIO_INTERRUPT_ACK, 1);
	assert_int_equal(rd(t, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 1); /* spurious */
	assert_int_equal(t->irqs, 1);
	assert_int_equal(t->dev.faults, 0);
	wr(t, VIRTIO_MMIO_STATUS, 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_QUEUE_READY), 0);
	to_running(t); /* and again */
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
				wr(t, VIRTIO_MMIO_STATUS, 0);
				for (size_t i = 1; i <= from; i++)
					wr(t, VIRTIO_MMIO_STATUS, stage[i]);
				if (from == 2)
					features(t, VIRTIO_F_VERSION_1);
			} else if (from == 3) {
				to_features(t);
			} else {
				to_running(t);
			}
			wr(t, VIRTIO_MMIO_STATUS, v);
			now = rd(t, VIRTIO_MMIO_STATUS);
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

	to_driver(t);
	features(t, FEATURE); /* without VERSION_1 */
	wr(t, VIRTIO_MMIO_STATUS, 0xb);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 3);
	features(t, VIRTIO_F_VERSION_1 | 1ull << 29); /* EVENT_IDX was not offered */
	wr(t, VIRTIO_MMIO_STATUS, 0xb);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 3);
	features(t, VIRTIO_F_VERSION_1 | FEATURE);
	wr(t, VIRTIO_MMIO_STATUS, 0xb);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 0xb);
	assert_int_equal(t->dev.faults, 0);
	/* Frozen now. */
	features(t, VIRTIO_F_VERSION_1);
	assert_true(rd(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(t->dev.driver_features, VIRTIO_F_VERSION_1 | FEATURE);
	/* Bits beyond 63. */
	to_driver(t);
	wr(t, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
	wr(t, VIRTIO_MMIO_DRIVER_FEATURES, 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 3);
	wr(t, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	assert_true(rd(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
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

		to_driver(t);
		wr(t, queue_regs[i], 1);
		assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 3 | VIRTIO_STATUS_NEEDS_RESET);
		assert_int_equal(t->dev.queue[0].size, 0);

		to_running(t);
		wr(t, VIRTIO_MMIO_QUEUE_SEL, 0);
		before = t->dev.queue[0];
		wr(t, queue_regs[i], 32);
		assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_STATUS_NEEDS_RESET);
		assert_memory_equal(&before, &t->dev.queue[0], sizeof(before));
		assert_false(virtio_dev_active(&t->dev));

		to_features(t); /* ready, but not running yet */
		queue(t, 0);
		before = t->dev.queue[0];
		wr(t, queue_regs[i], 1);
		assert_true(rd(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
		assert_memory_equal(&before, &t->dev.queue[0], sizeof(before));
	}
	/* Taking a queue back is allowed before DRIVER_OK, and harmless after a reset. */
	to_features(t);
	queue(t, 0);
	wr(t, VIRTIO_MMIO_QUEUE_READY, 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_QUEUE_READY), 0);
	queue(t, 0);
	wr(t, VIRTIO_MMIO_STATUS, 0);
	wr(t, VIRTIO_MMIO_QUEUE_READY, 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 0);
}

static void test_bad_queue_setup(void **state)
{
	static const struct {
		uint32_t reg, v;
	} bad[] = {
		{VIRTIO_MMIO_QUEUE_NUM, 0},
		{VIRTIO_MMIO_QUEUE_NUM, 3},
		{VIRTIO_MMIO_QUEUE_NUM, QMAX * 2},
		{VIRTIO_MMIO_QUEUE_NUM, 0x10000 + QMAX},
		{VIRTIO_MMIO_QUEUE_NUM, 0xffffffff},
		{VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1001},
		{VIRTIO_MMIO_QUEUE_DESC_LOW, RAM},
		{VIRTIO_MMIO_QUEUE_DESC_HIGH, 0x80000000},
		{VIRTIO_MMIO_QUEUE_DRIVER_LOW, RAM - 4},
		{VIRTIO_MMIO_QUEUE_DRIVER_HIGH, 1},
		{VIRTIO_MMIO_QUEUE_DEVICE_LOW, 0xfffffffc},
		{VIRTIO_MMIO_QUEUE_DEVICE_HIGH, 0xffffffff},
	};
	struct toy *t = *state;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		to_features(t);
		queue(t, 0);
		wr(t, VIRTIO_MMIO_QUEUE_SEL, 1);
		wr(t, VIRTIO_MMIO_QUEUE_NUM, QMAX);
		wr(t, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
		wr(t, VIRTIO_MMIO_QUEUE_DRIVER_LOW, 0x2000);
		wr(t, VIRTIO_MMIO_QUEUE_DEVICE_LOW, 0x3000);
		wr(t, bad[i].reg, bad[i].v);
		wr(t, VIRTIO_MMIO_QUEUE_READY, 1);
		assert_int_equal(rd(t, VIRTIO_MMIO_QUEUE_READY), 0);
		assert_true(rd(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	}
	/* A queue that does not exist. */
	to_features(t);
	wr(t, VIRTIO_MMIO_QUEUE_SEL, QUEUES);
	wr(t, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_true(rd(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
	to_features(t);
	wr(t, VIRTIO_MMIO_QUEUE_SEL, 0x80000000);
	wr(t, VIRTIO_MMIO_QUEUE_NUM, 4);
	assert_true(rd(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);
}

static void test_odd_accesses(void **state)
{
	struct toy *t = *state;
	uint8_t data[8];
	uint64_t ignored;

	to_running(t);
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

	to_running(t);
	resets = t->resets;
	offer(t, 0, UINT64_MAX); /* a descriptor outside RAM */
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_STATUS_NEEDS_RESET);
	assert_int_equal(rd(t, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_INT_CONFIG);
	assert_int_equal(t->irqs, 1);
	assert_int_equal(t->resets, resets + 1); /* device told to let go, once */
	assert_int_equal(t->dev.faults, 1);
	notified = t->notified[0];
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	wr(t, VIRTIO_MMIO_STATUS, 0xf);
	wr(t, VIRTIO_MMIO_STATUS, 0xf | VIRTIO_STATUS_NEEDS_RESET);
	virtio_dev_resume(&t->dev);
	assert_int_equal(t->notified[0], notified);
	assert_int_equal(t->resets, resets + 1);
	to_running(t); /* a reset heals it */
	assert_true(t->notified[0] > notified);

	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, QUEUES);
	assert_true(rd(t, VIRTIO_MMIO_STATUS) & VIRTIO_STATUS_NEEDS_RESET);

	to_features(t); /* set-up that the device does not accept */
	t->activate_rc = -EPROTO;
	wr(t, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(rd(t, VIRTIO_MMIO_STATUS), 0xf | VIRTIO_STATUS_NEEDS_RESET);
	assert_false(virtio_dev_active(&t->dev));

	to_driver(t); /* before DRIVER_OK there is no interrupt */
	wr(t, VIRTIO_MMIO_INTERRUPT_ACK, 3);
	t->irqs = 0;
	wr(t, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(t->irqs, 0);
	assert_int_equal(rd(t, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

static void test_notify_early_and_deferred(void **state)
{
	struct toy *t = *state;

	to_features(t);
	queue(t, 0);
	queue(t, 1);
	offer(t, 0, 0x10000);
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0); /* before DRIVER_OK: nothing, and no harm */
	assert_int_equal(t->notified[0], 0);
	wr(t, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(t->irqs, 1); /* done at DRIVER_OK */
	assert_int_equal(t->dev.faults, 0);

	t->dev.host.defer_notify = toy_defer;
	offer(t, 1, 0x10000);
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
	assert_int_equal(t->deferred, 2);
	assert_int_equal(t->notified[1], 1);
	virtio_dev_run_kicks(&t->dev);
	assert_int_equal(t->notified[1], 2);
	assert_int_equal(t->notified[0], 1);
	assert_int_equal(t->irqs, 2);
	virtio_dev_run_kicks(&t->dev);
	assert_int_equal(t->notified[1], 2);
	/* A reset in between takes the notification with it. */
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
	wr(t, VIRTIO_MMIO_STATUS, 0);
	virtio_dev_run_kicks(&t->dev);
	assert_int_equal(t->notified[1], 2);
}

static int load_copy(struct toy *from, struct toy *t, const uint8_t *buf, size_t len)
{
	memset(t, 0, sizeof(*t));
	t->mem = from->mem;
	virtio_dev_init(&t->dev, &toy_ops, &t->mem,
			&(struct virtio_host){.raise_irq = toy_irq, .arg = t});
	return virtio_dev_load(&t->dev, buf, len);
}

static void test_save_load(void **state)
{
	uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	struct toy *t = *state;
	struct toy t2;
	int len;

	t->own_state = 0x12345678;
	to_running(t);
	offer(t, 0, 0x10000);
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	offer(t, 1, 0x10000); /* a notification that never came */
	wr(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	len = virtio_dev_save(&t->dev, a, sizeof(a));
	assert_true(len > 0);
	for (int cap = 0; cap < len; cap++)
		assert_int_equal(virtio_dev_save(&t->dev, b, (size_t)cap), -ENOSPC);

	assert_int_equal(load_copy(t, &t2, a, (size_t)len), 0);
	assert_int_equal(t2.own_state, 0x12345678);
	assert_int_equal(virtio_dev_save(&t2.dev, b, sizeof(b)), len);
	assert_memory_equal(a, b, (size_t)len);
	assert_int_equal(rd(&t2, VIRTIO_MMIO_STATUS), 0xf);
	assert_int_equal(rd(&t2, VIRTIO_MMIO_DEVICE_FEATURES), 1);
	assert_int_equal(t2.irqs, 0);
	virtio_dev_resume(&t2.dev);
	assert_int_equal(t2.notified[0], 1);
	assert_int_equal(t2.notified[1], 1);
	/* One for the work found, one because an interrupt was pending when it was saved. */
	assert_int_equal(t2.irqs, 2);

	/* In the middle of the start, too. */
	to_driver(t);
	len = virtio_dev_save(&t->dev, a, sizeof(a));
	assert_int_equal(load_copy(t, &t2, a, (size_t)len), 0);
	assert_int_equal(rd(&t2, VIRTIO_MMIO_STATUS), 3);
	to_running(&t2);

	/* Cut short or too long. */
	for (size_t cut = 0; cut < (size_t)len; cut++)
		assert_int_equal(load_copy(t, &t2, a, cut), -EPROTO);
	assert_int_equal(load_copy(t, &t2, a, (size_t)len + 1), -EPROTO);
	/* Refused states leave a device as new. */
	assert_int_equal(rd(&t2, VIRTIO_MMIO_STATUS), 0);
	assert_false(t2.dev.queue[0].ready);
	to_running(&t2);
}

/* Every byte of a good state replaced by every value: load refuses it or gives a sound device. */
static void test_load_hostile(void **state)
{
	uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	struct toy *t = *state;
	unsigned refused = 0;
	struct toy t2;
	int len;

	to_running(t);
	len = virtio_dev_save(&t->dev, a, sizeof(a));
	assert_true(len > 0);
	for (size_t i = 0; i < (size_t)len; i++)
		for (unsigned v = 0; v < 256; v++) {
			uint8_t keep = a[i];
			int rc;

			a[i] = (uint8_t)v;
			rc = load_copy(t, &t2, a, (size_t)len);
			if (rc == 0) {
				assert_int_equal(virtio_dev_save(&t2.dev, b, sizeof(b)), len);
				assert_memory_equal(a, b, (size_t)len);
				virtio_dev_resume(&t2.dev);
				wr(&t2, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
			} else {
				refused++;
				assert_int_equal(rd(&t2, VIRTIO_MMIO_STATUS), 0);
			}
			a[i] = keep;
		}
	assert_true(refused > 256 * 20);
	/* Status values that no driver can have reached. */
	for (unsigned v = 0; v < 256; v++) {
		unsigned plain = v & 0x3f;
		bool legal = plain == 0 || plain == 1 || plain == 3 || plain == 0xb || plain == 0xf;
		bool early = plain == 0 || plain == 1 || plain == 3; /* with ready queues */

		a[12] = (uint8_t)v;
		assert_int_equal(load_copy(t, &t2, a, (size_t)len), legal && !early ? 0 : -EPROTO);
	}
}

static void test_fork_child(void **state)
{
	struct toy *t = *state;

	to_running(t);
	t->dev.host.defer_notify = toy_defer;
	offer(t, 0, 0x10000);
	wr(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0); /* the parent's loop had it in hand */
	assert_int_equal(t->irqs, 0);
	assert_int_equal(virtio_dev_fork_child(&t->dev), 0);
	assert_int_equal(t->forks, 1);
	assert_int_equal(t->irqs, 0); /* there is no VM yet to interrupt */
	virtio_dev_resume(&t->dev);
	assert_true(t->irqs >= 1);
	assert_int_equal(rd(t, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_INT_USED_RING);
	assert_int_equal(t->dev.kicked, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_identity, setup, teardown),
		cmocka_unit_test_setup_teardown(test_happy_path, setup, teardown),
		cmocka_unit_test_setup_teardown(test_status_matrix, setup, teardown),
		cmocka_unit_test_setup_teardown(test_feature_negotiation, setup, teardown),
		cmocka_unit_test_setup_teardown(test_queue_registers_frozen, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_queue_setup, setup, teardown),
		cmocka_unit_test_setup_teardown(test_odd_accesses, setup, teardown),
		cmocka_unit_test_setup_teardown(test_needs_reset, setup, teardown),
		cmocka_unit_test_setup_teardown(test_notify_early_and_deferred, setup, teardown),
		cmocka_unit_test_setup_teardown(test_save_load, setup, teardown),
		cmocka_unit_test_setup_teardown(test_load_hostile, setup, teardown),
		cmocka_unit_test_setup_teardown(test_fork_child, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
