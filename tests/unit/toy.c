/* SPDX-License-Identifier: Apache-2.0 */
/* A virtio device that counts what it is told, and its driver, step by step. */
#define _GNU_SOURCE
#include "unit.h"

#include "../virtio_driver.h"
#include "toy.h"

#include <string.h>

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
	.features = VIRTIO_F_VERSION_1 | TOY_FEATURE,
	.queue_count = TOY_QUEUES,
	.queue_size_max = TOY_QMAX,
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

void toy_defer(void *arg)
{
	((struct toy *)arg)->deferred++;
}

void toy_write(struct toy *t, uint64_t reg, uint32_t v)
{
	driver_write(&t->dev, reg, v);
}

uint32_t toy_read(struct toy *t, uint64_t reg)
{
	uint32_t v = 0xdeadbeef;

	virtio_mmio_read(&t->dev, reg, &v, 4);
	return v;
}

void toy_init(struct toy *t)
{
	virtio_dev_init(&t->dev, &toy_ops, &t->mem,
			&(struct virtio_host){.raise_irq = toy_irq, .arg = t});
}

int toy_setup(void **state)
{
	struct toy *t = calloc(1, sizeof(*t));

	t->mem.base = aligned_alloc(4096, TOY_RAM);
	t->mem.size = TOY_RAM;
	memset(t->mem.base, 0, TOY_RAM);
	toy_init(t);
	*state = t;
	return 0;
}

int toy_teardown(void **state)
{
	struct toy *t = *state;

	free(t->mem.base);
	free(t);
	return 0;
}

void toy_to_driver(struct toy *t)
{
	toy_write(t, VIRTIO_MMIO_STATUS, 0);
	toy_write(t, VIRTIO_MMIO_STATUS, 1);
	toy_write(t, VIRTIO_MMIO_STATUS, 3);
}

void toy_features(struct toy *t, uint64_t f)
{
	for (uint32_t i = 0; i < 2; i++) {
		toy_write(t, VIRTIO_MMIO_DRIVER_FEATURES_SEL, i);
		toy_write(t, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(f >> (32 * i)));
	}
}

void toy_to_features(struct toy *t)
{
	toy_to_driver(t);
	toy_features(t, VIRTIO_F_VERSION_1);
	toy_write(t, VIRTIO_MMIO_STATUS, 0xb);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 0xb);
}

void toy_queue(struct toy *t, uint32_t q)
{
	memset(t->mem.base + 0x1000 + q * 0x8000, 0, 0x3000);
	toy_write(t, VIRTIO_MMIO_QUEUE_SEL, q);
	toy_write(t, VIRTIO_MMIO_QUEUE_NUM, TOY_QMAX);
	toy_write(t, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000 + q * 0x8000);
	toy_write(t, VIRTIO_MMIO_QUEUE_DRIVER_LOW, 0x2000 + q * 0x8000);
	toy_write(t, VIRTIO_MMIO_QUEUE_DEVICE_LOW, 0x3000 + q * 0x8000);
	toy_write(t, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_QUEUE_READY), 1);
}

void toy_to_running(struct toy *t)
{
	toy_to_features(t);
	toy_queue(t, 0);
	toy_queue(t, 1);
	toy_write(t, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_STATUS), 0xf);
	assert_true(virtio_dev_active(&t->dev));
}

void toy_offer(struct toy *t, unsigned q, uint64_t addr)
{
	uint8_t *ram = t->mem.base + q * 0x8000;
	uint16_t idx;

	memcpy(&idx, ram + 0x2002, 2);
	memset(ram + 0x1000, 0, 16);
	memcpy(ram + 0x1000, &addr, 8);
	ram[0x1008] = 64;
	memset(ram + 0x2004 + 2 * (idx % TOY_QMAX), 0, 2);
	idx++;
	memcpy(ram + 0x2002, &idx, 2);
}
