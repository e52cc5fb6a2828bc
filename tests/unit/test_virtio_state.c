/* SPDX-License-Identifier: Apache-2.0 */
/*
 * State of a virtio device: saved, loaded, also from hostile bytes, and forked.
 */
#define _GNU_SOURCE
#include "unit.h"

#include "toy.h"

#include <errno.h>
#include <string.h>

static int load_copy(struct toy *from, struct toy *t, const uint8_t *buf, size_t len)
{
	memset(t, 0, sizeof(*t));
	t->mem = from->mem;
	toy_init(t);
	return virtio_dev_load(&t->dev, buf, len);
}

static void test_save_load(void **state)
{
	uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	struct toy *t = *state;
	struct toy t2;
	int len;

	t->own_state = 0x12345678;
	toy_to_running(t);
	toy_offer(t, 0, 0x10000);
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	toy_offer(t, 1, 0x10000); /* a notification that never came */
	toy_write(t, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	len = virtio_dev_save(&t->dev, a, sizeof(a));
	assert_true(len > 0);
	for (int cap = 0; cap < len; cap++)
		assert_int_equal(virtio_dev_save(&t->dev, b, (size_t)cap), -ENOSPC);

	assert_int_equal(load_copy(t, &t2, a, (size_t)len), 0);
	assert_int_equal(t2.own_state, 0x12345678);
	assert_int_equal(virtio_dev_save(&t2.dev, b, sizeof(b)), len);
	assert_memory_equal(a, b, (size_t)len);
	assert_int_equal(toy_read(&t2, VIRTIO_MMIO_STATUS), 0xf);
	assert_int_equal(toy_read(&t2, VIRTIO_MMIO_DEVICE_FEATURES), 1);
	assert_int_equal(t2.irqs, 0);
	virtio_dev_resume(&t2.dev);
	assert_int_equal(t2.notified[0], 1);
	assert_int_equal(t2.notified[1], 1);
	/* One for the work found, one because an interrupt was pending when it was saved. */
	assert_int_equal(t2.irqs, 2);

	/* In the middle of the start, too. */
	toy_to_driver(t);
	len = virtio_dev_save(&t->dev, a, sizeof(a));
	assert_int_equal(load_copy(t, &t2, a, (size_t)len), 0);
	assert_int_equal(toy_read(&t2, VIRTIO_MMIO_STATUS), 3);
	toy_to_running(&t2);

	/* Cut short or too long. */
	for (size_t cut = 0; cut < (size_t)len; cut++)
		assert_int_equal(load_copy(t, &t2, a, cut), -EPROTO);
	assert_int_equal(load_copy(t, &t2, a, (size_t)len + 1), -EPROTO);
	/* Refused states leave a device as new. */
	assert_int_equal(toy_read(&t2, VIRTIO_MMIO_STATUS), 0);
	assert_false(t2.dev.queue[0].ready);
	toy_to_running(&t2);
}

/* Every byte of a good state replaced by every value: load refuses it or gives a sound device. */
static void test_load_hostile(void **state)
{
	uint8_t a[VIRTIO_STATE_MAX], b[VIRTIO_STATE_MAX];
	struct toy *t = *state;
	unsigned refused = 0;
	struct toy t2;
	int len;

	toy_to_running(t);
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
				toy_write(&t2, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
			} else {
				refused++;
				assert_int_equal(toy_read(&t2, VIRTIO_MMIO_STATUS), 0);
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

	toy_to_running(t);
	t->dev.host.defer_notify = toy_defer;
	toy_offer(t, 0, 0x10000);
	toy_write(t, VIRTIO_MMIO_QUEUE_NOTIFY, 0); /* the parent's loop had it in hand */
	assert_int_equal(t->irqs, 0);
	assert_int_equal(virtio_dev_fork_child(&t->dev), 0);
	assert_int_equal(t->forks, 1);
	assert_int_equal(t->irqs, 0); /* there is no VM yet to interrupt */
	virtio_dev_resume(&t->dev);
	assert_true(t->irqs >= 1);
	assert_int_equal(toy_read(t, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_INT_USED_RING);
	assert_int_equal(t->dev.kicked, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, toy_setup, toy_teardown)
	const struct CMUnitTest tests[] = {
		T(test_save_load),
		T(test_load_hostile),
		T(test_fork_child),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
