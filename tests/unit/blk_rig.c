/* SPDX-License-Identifier: Apache-2.0 */
/* See blk_rig.h. */
#define _GNU_SOURCE
#include "unit.h"

#include "../virtio_driver.h"
#include "blk_rig.h"
#include "disk_model.h"

#include <string.h>

static void on_irq(void *arg)
{
	((struct rig *)arg)->f.irqs++;
}

static void on_again(void *arg)
{
	((struct rig *)arg)->again++;
}

static void on_piled(void *arg)
{
	((struct rig *)arg)->piled++;
}

static void on_failed(void *arg, int errnum)
{
	struct rig *r = arg;

	r->failures++;
	r->failed_with = errnum;
}

void rig_init(struct rig *r)
{
	const struct virtio_host host = {.raise_irq = on_irq, .arg = r};
	const struct blk_events events = {
		.again = on_again, .piled = on_piled, .failed = on_failed, .arg = r};

	fake_init(&r->f);
	r->again = r->piled = r->failures = 0;
	assert_int_equal(layers_init(&r->disk, RIG_DISK, disk_model_layer()), 0);
	blk_init(&r->b, &r->f.mem, &host, &r->disk, &events);
	r->f.dev = &r->b.dev;
}

void rig_free(struct rig *r)
{
	layers_free(&r->disk);
	fake_free(&r->f);
}

void rig_start(struct rig *r, uint32_t features)
{
	struct fake *f = &r->f;

	driver_negotiate(f->dev, features);
	fake_setup_queue(f, VIRTIO_BLK_QUEUE, FAKE_QUEUE);
	fake_write(f, VIRTIO_MMIO_STATUS, 0xf);
	assert_int_equal(fake_read(f, VIRTIO_MMIO_STATUS), 0xf);
}

uint64_t rig_header(struct rig *r, unsigned n, uint32_t type, uint64_t sector)
{
	uint64_t at = RIG_HEADER + 16 * n;
	uint8_t *p = fake_ptr(&r->f, at);

	memset(p, 0, VIRTIO_BLK_HDR_BYTES);
	memcpy(p, &type, 4);
	memcpy(p + 8, &sector, 8);
	*fake_ptr(&r->f, RIG_STATUS + n) = 0xee;
	return at;
}

void rig_submit(struct rig *r, unsigned n, uint32_t type, uint64_t sector, uint64_t data,
		uint32_t len)
{
	bool in = type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_GET_ID;
	struct fake_seg seg[3] = {{rig_header(r, n, type, sector), VIRTIO_BLK_HDR_BYTES, false},
				  {data, len, in},
				  {RIG_STATUS + n, 1, true}};

	if (!len)
		seg[1] = seg[2];
	fake_chain(&r->f, VIRTIO_BLK_QUEUE, (uint16_t)(4 * n), seg, len ? 3 : 2);
}

uint8_t rig_status(struct rig *r, unsigned n)
{
	return *fake_ptr(&r->f, RIG_STATUS + n);
}

uint8_t rig_do(struct rig *r, uint32_t type, uint64_t sector, uint32_t len, uint32_t *used)
{
	unsigned irqs = r->f.irqs;
	uint32_t id, n;

	rig_submit(r, 0, type, sector, RIG_DATA, len);
	fake_kick(&r->f, VIRTIO_BLK_QUEUE);
	assert_true(fake_used(&r->f, VIRTIO_BLK_QUEUE, &id, &n));
	assert_int_equal(id, 0);
	assert_int_equal(r->f.irqs, irqs + 1);
	if (used)
		*used = n;
	return rig_status(r, 0);
}

void rig_range(struct rig *r, unsigned i, uint64_t sector, uint32_t sectors, uint32_t flags)
{
	uint8_t *p = fake_ptr(&r->f, RIG_DATA + 16 * i);

	memcpy(p, &sector, 8);
	memcpy(p + 8, &sectors, 4);
	memcpy(p + 12, &flags, 4);
}

int rig_setup(void **state)
{
	struct rig *r = malloc(sizeof(*r));

	rig_init(r);
	rig_start(r, RIG_FEATURES);
	*state = r;
	return 0;
}

int rig_teardown(void **state)
{
	rig_free(*state);
	free(*state);
	return 0;
}
